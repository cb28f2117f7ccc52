//! A proxy whose stacks are always short of memory: splices drain, and every byte arrives.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests"
)]

use sosplice::link::memory::{self, MemoryLink};
use sosplice::splice::{Cause, Dispatch, Options, SplicePool};
use sosplice::{Stack, TcpListener, TcpStream};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

const LIMIT: Option<Duration> = Some(Duration::from_secs(30));
const FLOWS: usize = 12;
const BYTES: usize = 1 << 20;

fn stack(link: MemoryLink, address: &str, memory: usize) -> Stack {
    let builder = Stack::builder(link).address(address.parse().unwrap());
    builder.max_buffer_memory(memory).build().unwrap()
}

fn text(flow: usize) -> Vec<u8> {
    let seed = flow as u64 + 1;
    (0..BYTES as u64)
        .map(|i| (i.wrapping_mul(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

/// Sends data and reads the echo; the server reads slowly at first.
fn client(stack: &Stack, flow: usize) {
    let stream = TcpStream::connect(stack, "10.1.0.2:80").unwrap();
    stream.set_read_timeout(LIMIT).unwrap();
    stream.set_write_timeout(LIMIT).unwrap();
    let text = text(flow);
    thread::scope(|scope| {
        scope.spawn(|| {
            (&stream).write_all(&text).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        (&stream).read_to_end(&mut back).unwrap();
        assert!(back == text, "flow {flow}: {} bytes", back.len());
    });
}

fn echo(stream: &TcpStream) {
    stream.set_read_timeout(LIMIT).unwrap();
    stream.set_write_timeout(LIMIT).unwrap();
    thread::sleep(Duration::from_millis(100));
    let mut part = vec![0; 100_000];
    loop {
        let count = (&*stream).read(&mut part).unwrap();
        if count == 0 {
            break;
        }
        (&*stream).write_all(&part[..count]).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

#[test]
fn splices_drain_while_memory_is_short() {
    for (memory, lowat, dispatch) in [
        (300_000, 0, Dispatch::Adaptive),
        (0, 0, Dispatch::Worker),
        (600_000, 128 * 1024, Dispatch::Direct),
    ] {
        let (left, client_end) = memory::pair(memory::Config::default());
        let (right, server_end) = memory::pair(memory::Config::default());
        let clients = stack(client_end, "10.1.0.1/24", usize::MAX);
        let servers = stack(server_end, "10.2.0.1/24", usize::MAX);
        let front = stack(left, "10.1.0.2/24", memory);
        let back = stack(right, "10.2.0.2/24", memory);
        let pool = SplicePool::builder().workers(1).dispatch(dispatch).build();
        let options = || {
            Options::default()
                .pool(pool.clone())
                .forward_eof(true)
                .lowat(lowat)
        };
        let inside = TcpListener::bind(&front, "10.1.0.2:80").unwrap();
        let outside = TcpListener::bind(&servers, "10.2.0.1:80").unwrap();
        thread::scope(|scope| {
            for flow in 0..FLOWS {
                let clients = &clients;
                scope.spawn(move || client(clients, flow));
                let (near, _) = inside.accept().unwrap();
                let far = TcpStream::connect(&back, "10.2.0.1:80").unwrap();
                let (served, _) = outside.accept().unwrap();
                scope.spawn(move || echo(&served));
                let there = near.splice_to(&far, options()).unwrap();
                let again = far.splice_to(&near, options()).unwrap();
                scope.spawn(move || {
                    for splice in [there, again] {
                        let end = splice.wait_timeout(Duration::from_secs(30)).unwrap();
                        assert_eq!((end.cause, end.bytes), (Cause::Eof, BYTES as u64));
                    }
                    drop((near, far));
                });
            }
        });
        for stack in [front, back] {
            let stats = stack.stats();
            assert!(stats.memory_pressures > 0, "{stats:?}");
            assert_eq!(stats.broken, 0);
        }
    }
}
