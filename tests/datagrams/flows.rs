//! Two thousand flows at once, from a stack to the kernel and back.

use crate::kinds::{LIMIT, read};
use sosplice::Stack;
use sosplice::kernel::KernelUdp;
use sosplice::link::memory;
use sosplice::splice::{self, Options};
use sosplice::stack::{FlowOptions, Intercept, UdpListener, UdpSocket};
use std::net::SocketAddr;
use std::thread;

const FLOWS: usize = 2000;
const ROUNDS: usize = 5;

/// What a flow sends in a round.
fn question(flow: usize, round: usize) -> Vec<u8> {
    let len = (flow * 31 + round * 257) % 1400;
    let mut bytes = vec![u8::try_from((flow + round) % 251).unwrap(); len];
    bytes.extend_from_slice(&u32::try_from(flow).unwrap().to_be_bytes());
    bytes
}

/// Answers each datagram with its bytes in reverse, until it is dropped with its socket.
fn echo() -> SocketAddr {
    let server = KernelUdp::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = server.local_addr().unwrap();
    let serve = move || {
        let mut bytes = vec![0; 2000];
        loop {
            let (len, addresses) = server.recv_datagram(&mut bytes).unwrap();
            bytes[..len].reverse();
            server.send_datagram(&bytes[..len], addresses).unwrap();
        }
    };
    drop(thread::Builder::new().spawn(serve).unwrap());
    address
}

#[test]
fn two_thousand_flows_keep_their_datagrams_apart() {
    let server = echo();
    let (a, b) = memory::pair(memory::Config::default().frames(8192).bytes(64 << 20));
    let near = Stack::builder(a)
        .address("10.0.0.1/24".parse().unwrap())
        .route("0.0.0.0/0".parse().unwrap(), sosplice::stack::Route::LINK)
        .build()
        .unwrap();
    let far = Stack::builder(b)
        .address("10.0.0.2/24".parse().unwrap())
        .build()
        .unwrap();
    let options = FlowOptions::default()
        .max_flows(FLOWS)
        .max_flows_per_client(FLOWS)
        .backlog(FLOWS);
    let listener = UdpListener::intercept(&far, Intercept::all(), options).unwrap();
    let relay = move || {
        let joins: Vec<_> = (0..FLOWS)
            .map(|_| {
                let (flow, _client) = listener.accept().unwrap();
                let out = KernelUdp::connect(server).unwrap();
                splice::join(&flow, &out, Options::default()).unwrap()
            })
            .collect();
        (listener, joins)
    };
    let relay = thread::Builder::new().spawn(relay).unwrap();
    let clients: Vec<_> = (0..FLOWS)
        .map(|_| {
            let client = UdpSocket::bind(&near, "10.0.0.1:0").unwrap();
            client.connect("203.0.113.1:7").unwrap();
            client.set_read_timeout(Some(LIMIT)).unwrap();
            client
        })
        .collect();
    for round in 0..ROUNDS {
        // Some at a time: no buffer on the way is full.
        for some in (0..FLOWS).collect::<Vec<_>>().chunks(50) {
            for &flow in some {
                clients[flow].send(&question(flow, round)).unwrap();
            }
            for &flow in some {
                let mut answer = read(&clients[flow]);
                answer.reverse();
                assert!(
                    answer == question(flow, round),
                    "flow {flow}, round {round}"
                );
            }
        }
    }
    let (_listener, joins) = relay.join().unwrap();
    let total = |sum: u64, flow: usize, round: usize| sum + question(flow, round).len() as u64;
    for join in &joins {
        let (up, down) = join.bytes();
        assert_eq!(up, down);
    }
    let sent = (0..FLOWS).flat_map(|flow| (0..ROUNDS).map(move |round| (flow, round)));
    let sent = sent.fold(0, |sum, (flow, round)| total(sum, flow, round));
    let moved: u64 = joins.iter().map(|join| join.bytes().0).sum();
    assert_eq!(moved, sent);
}
