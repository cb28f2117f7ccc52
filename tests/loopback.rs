//! Connections of a stack with itself, in real time: driver threads, users' threads and splices.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use sosplice::clock::{Clock, SystemClock};
use sosplice::link::{Link, memory};
use sosplice::splice::{Cause, Dispatch, Options};
use sosplice::stack::Intercept;
use sosplice::{ConditionalListener, Stack, TcpListener, TcpStream};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// More than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

/// Two addresses of each family, over so many queues.
fn stack(queues: usize) -> (Stack, Vec<memory::MemoryLink>) {
    let (near, far) = memory::queues(queues, memory::Config::default());
    let addresses = ["10.0.0.1/24", "10.0.0.9/24", "fd00::1/64"];
    let addresses = addresses.map(|net| net.parse().unwrap());
    let builder = addresses
        .into_iter()
        .fold(Stack::with_queues(near), |builder, net| {
            builder.address(net)
        });
    (builder.build().unwrap(), far)
}

fn limited(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    stream
}

fn connect(stack: &Stack, to: &str) -> TcpStream {
    limited(TcpStream::connect(stack, to).unwrap())
}

fn accept(listener: &TcpListener) -> TcpStream {
    limited(listener.accept().unwrap().0)
}

fn bytes(seed: usize, len: usize) -> Vec<u8> {
    let mixed = |at: usize| (at as u64 ^ (seed as u64) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..len).map(|at| mixed(at).to_be_bytes()[1]).collect()
}

/// Sends everything back, until the end.
fn echo(mut stream: TcpStream) {
    let mut part = vec![0; 16 * 1024];
    loop {
        let count = stream.read(&mut part).unwrap();
        if count == 0 {
            return;
        }
        stream.write_all(&part[..count]).unwrap();
    }
}

/// Sends all of it, has it back, and closes half by half.
fn there_and_back(stream: &TcpStream, sent: &[u8]) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = stream;
            writer.write_all(sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let (mut got, mut reader) = (Vec::new(), stream);
        reader.read_to_end(&mut got).unwrap();
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    });
}

/// The other side of the link, which is to see nothing.
fn saw_nothing(far: &[memory::MemoryLink]) {
    for link in far {
        assert_eq!(link.receive(&mut Vec::new(), 100).unwrap(), 0);
    }
}

#[test]
fn many_connections_at_once_by_any_number_of_queues() {
    const CONNECTIONS: usize = 12;
    for queues in [1, 3] {
        let (stack, far) = stack(queues);
        let listener = TcpListener::bind(&stack, "0.0.0.0:80").unwrap();
        thread::scope(|scope| {
            for at in 0..CONNECTIONS {
                scope.spawn(|| echo(accept(&listener)));
                let stack = &stack;
                scope.spawn(move || {
                    let to = ["10.0.0.1:80", "10.0.0.9:80", "[fd00::1]:80"][at % 3];
                    there_and_back(&connect(stack, to), &bytes(at, 1_000_000));
                });
            }
        });
        saw_nothing(&far);
        let stats = stack.stats();
        assert_eq!((stats.broken, stats.segments_lost), (0, 0));
    }
}

/// Each call waits for the driver of a stack that sleeps.
#[test]
fn a_stack_that_sleeps_is_woken_by_itself() {
    let (stack, far) = stack(1);
    let listener = TcpListener::bind(&stack, "10.0.0.1:80").unwrap();
    for _ in 0..100 {
        let mut near = connect(&stack, "10.0.0.1:80");
        let far = accept(&listener);
        near.write_all(b"there").unwrap();
        assert_eq!(far.recv_chain(9).unwrap().to_vec(), b"there");
        far.send(b"back").unwrap();
        assert_eq!(near.recv_chain(9).unwrap().to_vec(), b"back");
        let refused = TcpStream::connect(&stack, "10.0.0.1:81").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
    saw_nothing(&far);
}

/// A proxy that finds its backend on its own stack: decided first, dialled, spliced.
#[test]
fn a_proxy_may_dial_its_own_stack() {
    for dispatch in [Dispatch::Worker, Dispatch::Direct, Dispatch::Adaptive] {
        let options = Options::default().dispatch(dispatch).forward_eof(true);
        let (near, far) = memory::pair(memory::Config::default());
        let client = Stack::builder(far).address("10.0.0.2/24".parse().unwrap());
        let client = client.build().unwrap();
        let proxy = Stack::builder(near).address("10.0.0.1/24".parse().unwrap());
        let proxy = proxy.build().unwrap();
        let front = ConditionalListener::intercept(&proxy, Intercept::all().ports(443..=443), 9);
        let front = front.unwrap();
        let service = TcpListener::bind(&proxy, "10.0.0.1:80").unwrap();
        thread::scope(|scope| {
            scope.spawn(|| echo(accept(&service)));
            // Of the client's stack once, and of its own.
            scope.spawn(|| echo(accept(&service)));
            for from in [&client, &proxy] {
                let (proxy, front, options) = (&proxy, &front, &options);
                scope.spawn(move || {
                    let pending = front.pending().unwrap();
                    let outside = connect(proxy, "10.0.0.1:80");
                    let inside = pending.accept().unwrap();
                    let up = inside.splice_to(&outside, options.clone()).unwrap();
                    let down = outside.splice_to(&inside, options.clone()).unwrap();
                    assert_eq!(up.wait().cause, Cause::Eof);
                    let end = down.wait();
                    assert_eq!((end.cause, end.bytes), (Cause::Eof, 3_000_000));
                });
                let user = connect(from, "10.0.0.1:443");
                there_and_back(&user, &bytes(1, 3_000_000));
            }
        });
        assert_eq!(proxy.stats().broken, 0);
    }
}

/// The handles of both ends and of the stack are dropped: sent data is delivered, and the driver ends.
#[test]
fn a_stack_without_handles_ends_after_looped_connections() {
    let (stack, far) = stack(2);
    let listener = TcpListener::bind(&stack, "10.0.0.1:80").unwrap();
    let ends: Vec<_> = (0..20)
        .map(|_| {
            let near = connect(&stack, "10.0.0.1:80");
            near.send(&[7; 100_000]).unwrap();
            (near, accept(&listener))
        })
        .collect();
    drop((stack, listener, ends));
    let limit = SystemClock.now() + LIMIT;
    while far[0].receive(&mut Vec::new(), 100).is_ok() {
        assert!(SystemClock.now() < limit, "the driver continues");
        thread::yield_now();
    }
}

/// An address that was dialled by its name, and one of several.
#[test]
fn of_several_addresses_the_own_one_answers() {
    let (stack, _far) = stack(1);
    let listener = TcpListener::bind(&stack, "10.0.0.9:80").unwrap();
    let all: [SocketAddr; 2] = ["10.0.0.1:80", "10.0.0.9:80"].map(|at| at.parse().unwrap());
    let near = TcpStream::connect(&stack, &all[..]).unwrap();
    assert_eq!(near.peer_addr(), listener.local_addr());
}

/// A loop of one's own around a driver sleeps in the link, and users' threads give it something to do.
#[test]
fn a_loop_of_the_program_misses_no_event() {
    let (link, far) = memory::pair(memory::Config::default());
    let link = Arc::new(link);
    let builder = Stack::builder(link.clone()).address("10.0.0.1/24".parse().unwrap());
    let builder = builder.connect_timeout(Duration::from_secs(1));
    let (stack, mut driver) = builder.build_with_driver().unwrap();
    let run = move || {
        while let Ok(busy) = driver.poll() {
            let deadline = driver.poll_at();
            if !busy && link.wait(driver.interest(), deadline).is_err() {
                break;
            }
        }
    };
    let driving = thread::Builder::new().spawn(run).unwrap();
    let listener = TcpListener::bind(&stack, "10.0.0.1:80").unwrap();
    thread::scope(|scope| {
        scope.spawn(|| echo(accept(&listener)));
        there_and_back(&connect(&stack, "10.0.0.1:80"), &bytes(1, 300_000));
    });
    // A timer that a user's thread has set.
    let error = TcpStream::connect_timeout(&stack, "10.0.0.2:80".parse().unwrap(), LIMIT);
    let text = error.unwrap_err().to_string();
    assert!(!text.contains("allow more time"), "{text}");
    drop(far);
    driving.join().unwrap();
}
