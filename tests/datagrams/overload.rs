//! More datagrams than anything keeps up with.

use sosplice::link::memory;
use sosplice::local;
use sosplice::splice::{self, Dispatch, Options, SplicePool};
use sosplice::stack::{Driver, FlowOptions, Intercept, Stack, UdpListener, UdpSocket};

/// Frames of a full batch, and such batches.
const BATCH: usize = 32;
const BATCHES: usize = 8;
/// With more on average a receiving thread that gets full batches lags behind.
const SIZE: usize = 1400;

fn built(link: memory::MemoryLink, address: &str) -> (Stack, Driver) {
    let builder = Stack::builder(link).address(address.parse().unwrap());
    builder.build_with_driver().unwrap()
}

/// A receiving thread that lags behind hands splices of streams to a worker. Those of datagrams it runs itself:
/// here the worker never runs, and all arrive.
#[test]
fn a_receiving_thread_that_lags_behind_moves_datagrams_itself() {
    let (near, far) = memory::pair(memory::Config::default().frames(4096).bytes(64 << 20));
    let (client_stack, mut client_driver) = built(near, "10.0.0.1/24");
    let (stack, mut driver) = built(far, "10.0.0.2/24");
    let listener =
        UdpListener::intercept(&stack, Intercept::all(), FlowOptions::default()).unwrap();
    let client = UdpSocket::bind(&client_stack, "10.0.0.1:4000").unwrap();
    client.connect("10.0.0.2:53").unwrap();
    client.send(b"first").unwrap();
    client_driver.poll().unwrap();
    driver.poll().unwrap();
    let (flow, _) = listener.accept().unwrap();

    let total = BATCH * BATCHES;
    let most = total * SIZE + b"first".len();
    let (inside, user) = local::datagram_pair_with(most, most, total + 1);
    let pool = SplicePool::builder().workers(1).manual().build();
    let options = Options::default()
        .pool(pool.clone())
        .dispatch(Dispatch::Adaptive);
    splice::join(flow, inside, options).unwrap();
    while pool.run_one() {}
    for number in 0..total {
        client
            .send(&[u8::try_from(number % 251).unwrap(); SIZE])
            .unwrap();
    }
    client_driver.poll().unwrap();
    for _ in 0..BATCHES {
        driver.poll().unwrap();
    }

    user.set_nonblocking(true);
    let mut bytes = [0; SIZE];
    assert_eq!(user.recv(&mut bytes).unwrap(), 5);
    for number in 0..total {
        assert_eq!(user.recv(&mut bytes).unwrap(), SIZE, "datagram {number}");
        assert_eq!(usize::from(bytes[0]), number % 251);
    }
}

/// Small ones of several flows, in runs and in turns, with different lengths: each arrives whole, in order, and in its
/// flow.
#[test]
fn small_datagrams_that_are_collected_stay_apart() {
    let (near, far) = memory::pair(memory::Config::default().frames(4096).bytes(64 << 20));
    let (client_stack, mut client_driver) = built(near, "10.0.0.1/24");
    let (stack, mut driver) = built(far, "10.0.0.2/24");
    let listener =
        UdpListener::intercept(&stack, Intercept::all(), FlowOptions::default()).unwrap();
    let mut flows = Vec::new();
    for port in [4000, 4001, 4002] {
        let client = UdpSocket::bind(&client_stack, ("10.0.0.1", port)).unwrap();
        client.connect("10.0.0.2:53").unwrap();
        client.send(b"").unwrap();
        client_driver.poll().unwrap();
        driver.poll().unwrap();
        let (flow, _) = listener.accept().unwrap();
        flow.set_nonblocking(true);
        assert_eq!(flow.recv(&mut [0; 8]).unwrap(), 0);
        flows.push((client, flow));
    }
    let mut sent = vec![Vec::new(); flows.len()];
    let lens = [64, 64, 10, 64, 0, 64, 64, 65, 300, 64, 1, 1, 256, 257];
    for round in 0..60_usize {
        let flow = if round < 30 { round / 10 } else { round % 3 };
        let len = if round < 20 {
            64
        } else {
            lens[round % lens.len()]
        };
        let datagram = vec![u8::try_from(round).unwrap(); len];
        flows[flow].0.send(&datagram).unwrap();
        sent[flow].push(datagram);
    }
    client_driver.poll().unwrap();
    while driver.poll().unwrap() {}
    for ((_, flow), sent) in flows.iter().zip(sent) {
        for want in sent {
            let mut bytes = [0; 512];
            let len = flow.recv(&mut bytes).unwrap();
            assert_eq!(bytes[..len], want);
        }
        assert!(flow.recv(&mut [0; 8]).is_err());
    }
}
