//! Endings: the effect of dropping a handle, a listener, a stack, a link or a pool with work in it. The
//! table of it is `src/doc/endings.md`.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "endings/listeners.rs"]
mod listeners;
#[path = "endings/panics.rs"]
mod panics;
#[path = "endings/pools.rs"]
mod pools;
#[path = "endings/sockets.rs"]
mod sockets;
#[path = "endings/stacks.rs"]
mod stacks;

use sosplice::clock::{Clock, SystemClock};
use sosplice::link::memory;
use sosplice::{Stack, TcpListener, TcpSocket, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// More than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);

/// Fails if `done` does not become true.
#[track_caller]
fn eventually(what: &str, done: impl Fn() -> bool) {
    let start = SystemClock.now();
    while !done() {
        assert!(SystemClock.now() - start < LIMIT, "timeout: {what}");
        thread::yield_now();
    }
}

/// Runs `body` in a thread of its own; fails if it does not end.
#[track_caller]
fn bounded(what: &str, body: impl FnOnce() + Send + 'static) {
    let thread = thread::Builder::new().spawn(body).unwrap();
    eventually(what, || thread.is_finished());
    thread.join().unwrap();
}

fn now() -> Instant {
    SystemClock.now()
}

/// Two stacks on one link, 10.0.0.1 and 10.0.0.2.
fn stacks() -> (Stack, Stack) {
    let (left, right) = memory::pair(memory::Config::default());
    let left = Stack::builder(left).address("10.0.0.1/24".parse().unwrap());
    let right = Stack::builder(right).address("10.0.0.2/24".parse().unwrap());
    (left.build().unwrap(), right.build().unwrap())
}

/// A connection between them: from the second to the first.
fn connection(server: &Stack, client: &Stack) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(server, "10.0.0.1:0").unwrap();
    let near = TcpStream::connect(client, listener.local_addr()).unwrap();
    let (far, _) = listener.accept().unwrap();
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
    }
    (far, near)
}
