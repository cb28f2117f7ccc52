//! FreeBSD's cases for SO_SPLICE (`tests/sys/kern/socket_splice.c`), by name, over any kind of
//! socket and both ways of dispatch. Capability rights (F02) are in `sockopt`.
//!
//! A [`Factory`] makes connected pairs; `conformance!` runs all cases over one, and
//! `mixed!` the case that takes two.

#![allow(
    clippy::unwrap_used,
    reason = "a test says by panicking what it did not expect"
)]

use sosplice::error::Flavor;
use sosplice::protocol::{Protocol, SoState, SocketEnd, Upcall, Wakeup};
use sosplice::socket::Socket;
use sosplice::splice::{Cause, Dispatch, Options, Role, SpliceError, SplicePool, UnspliceError};
use sosplice::{Stack, TcpListener, TcpStream, link, local};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

/// Something that connects two sockets.
type Factory = fn() -> (Socket, Socket);

fn memory() -> (Socket, Socket) {
    local::pair()
}

fn small_memory() -> (Socket, Socket) {
    local::pair_with_hiwat(4096, 4096)
}

/// Two stacks on both ends of a link, for all connections of this process.
struct Stacks {
    client: Stack,
    server: Stack,
}

static STACKS: LazyLock<Stacks> = LazyLock::new(|| {
    let (a, b) = link::memory::pair(link::memory::Config::default());
    let stack = |link, host: u8| {
        Stack::builder(link)
            .address(format!("10.0.0.{host}/24").parse().unwrap())
            .address(format!("fd00::{host}/64").parse().unwrap())
            .build()
            .unwrap()
    };
    Stacks {
        client: stack(a, 1),
        server: stack(b, 2),
    }
});

fn connection(server: &str) -> (Socket, Socket) {
    let listener = TcpListener::bind(&STACKS.server, server.parse().unwrap()).unwrap();
    let client = TcpStream::connect(&STACKS.client, listener.local_addr()).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client.as_ref().clone(), server.as_ref().clone())
}

fn tcp() -> (Socket, Socket) {
    connection("10.0.0.2:0")
}

fn tcp6() -> (Socket, Socket) {
    connection("[fd00::2]:0")
}

/// FreeBSD's number.
fn number(error: SpliceError) -> i32 {
    error.errno(Flavor::FreeBsd).number(Flavor::FreeBsd)
}

/// Two connections. `left[1]` and `right[0]` are the proxy's.
struct Pairs {
    left: [Socket; 2],
    right: [Socket; 2],
    dispatch: Dispatch,
    pool: SplicePool,
}

impl Pairs {
    fn new(left: Factory, right: Factory, dispatch: Dispatch) -> Pairs {
        Pairs {
            left: left().into(),
            right: right().into(),
            dispatch,
            pool: SplicePool::builder().workers(2).build(),
        }
    }

    /// Both directions spliced.
    fn spliced(left: Factory, right: Factory, dispatch: Dispatch) -> Pairs {
        let pairs = Pairs::new(left, right, dispatch);
        pairs.splice();
        pairs
    }

    fn splice(&self) {
        let [_, l1] = &self.left;
        let [r0, _] = &self.right;
        l1.splice_to(r0, self.options()).unwrap();
        r0.splice_to(l1, self.options()).unwrap();
    }

    fn options(&self) -> Options {
        Options {
            dispatch: Some(self.dispatch),
            pool: Some(self.pool.clone()),
            ..Options::default()
        }
    }

    fn counters(&self) -> [u64; 2] {
        [self.left[1].spliced(), self.right[0].spliced()]
    }
}

fn exchange(from: &Socket, to: &Socket, bytes: &[u8]) {
    let mut sender = from;
    let mut receiver = to;
    let mut got = vec![0; bytes.len()];
    sender.write_all(bytes).unwrap();
    receiver.read_exact(&mut got).unwrap();
    assert_eq!(got, bytes);
}

fn is_empty(socket: &Socket) -> bool {
    let was = socket.is_nonblocking();
    socket.set_nonblocking(true);
    let empty = socket.recv(&mut [0]).map_err(|error| error.kind()) == Err(ErrorKind::WouldBlock);
    socket.set_nonblocking(was);
    empty
}

/// F01 `splice_basic`
fn basic(factory: Factory, dispatch: Dispatch) {
    let pairs = Pairs::spliced(factory, factory, dispatch);
    let ([l0, l1], [r0, r1]) = (&pairs.left, &pairs.right);
    exchange(l0, r1, b"x");
    assert_eq!(pairs.counters(), [1, 0]);
    exchange(r1, l0, b"y");
    assert_eq!(pairs.counters(), [1, 1]);
    assert_eq!(l1.unsplice().unwrap().bytes, 1);
    assert_eq!(r0.unsplice().unwrap().cause, Cause::Unspliced);
    assert_eq!(pairs.counters(), [1, 1]);
}

#[derive(Debug)]
struct Odd(SoState);

impl Protocol for Odd {
    fn output(&self) {}
    fn rcvd(&self, _idle: bool) {}
    fn abort(&self) {}
    fn detach(&self) {}
    fn name(&self) -> &'static str {
        "odd"
    }
    fn so_state(&self) -> SoState {
        self.0
    }
}

fn odd(state: SoState) -> Socket {
    Socket::new(SocketEnd::new(100, 100), Arc::new(Odd(state)))
}

/// F03 `splice_error`, as far as there are no descriptors
fn error(factory: Factory, dispatch: Dispatch) {
    let pairs = Pairs::new(factory, factory, dispatch);
    let ([l0, l1], [r0, r1]) = (&pairs.left, &pairs.right);
    let try_splice = |source: &Socket, sink: &Socket| {
        let splice = source.splice_to(sink, pairs.options());
        splice.map(drop).map_err(|error| (error, number(error)))
    };
    let zero = Options {
        limit: Some(0),
        ..pairs.options()
    };
    assert_eq!(
        l1.splice_to(r0, zero).map(drop),
        Err(SpliceError::ZeroLimit)
    );

    assert_eq!(l1.unsplice().unwrap_err(), UnspliceError::NotSpliced);
    assert_eq!(try_splice(l1, r0), Ok(()));
    assert!(l1.unsplice().is_ok());
    assert_eq!(l1.unsplice(), Err(UnspliceError::NotSpliced));

    assert_eq!(try_splice(l1, r0), Ok(()));
    assert_eq!(
        try_splice(l1, r1),
        Err((SpliceError::Busy(Role::Source), 16))
    );
    assert_eq!(try_splice(l0, r0), Err((SpliceError::Busy(Role::Sink), 16)));
    assert_eq!(
        r0.unsplice(),
        Err(UnspliceError::NotSpliced),
        "only at the source"
    );

    let unconnected = odd(SoState::Unconnected);
    assert_eq!(try_splice(l0, &unconnected).unwrap_err().1, 57);
    assert_eq!(try_splice(&unconnected, r1).unwrap_err().1, 57);
    let not_a_stream = odd(SoState::NotAStream);
    assert_eq!(try_splice(l0, &not_a_stream).unwrap_err().1, 43);
    assert_eq!(try_splice(&not_a_stream, r1).unwrap_err().1, 43);
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Upcall for Count {
    fn wakeup(&self, _what: Wakeup) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// F04 `splice_kevent`: a spliced source does not become readable
fn kevent(factory: Factory, dispatch: Dispatch) {
    let pairs = Pairs::new(factory, factory, dispatch);
    let ([l0, l1], [_, r1]) = (&pairs.left, &pairs.right);
    let events = Arc::new(Count::default());
    l1.add_rcv_upcall(events.clone());
    pairs.splice();
    exchange(l0, r1, b"ping");
    exchange(r1, l0, b"pong");
    assert_eq!(events.0.load(Ordering::SeqCst), 0);
    l1.unsplice().unwrap();
    assert_eq!(events.0.load(Ordering::SeqCst), 1);
}

/// F05 `splice_limit_bytes`
fn limit_bytes(factory: Factory, dispatch: Dispatch) {
    let pairs = Pairs::new(factory, factory, dispatch);
    let ([l0, l1], [r0, r1]) = (&pairs.left, &pairs.right);
    let options = Options {
        limit: Some(129),
        ..pairs.options()
    };
    let splice = l1.splice_to(r0, options).unwrap();
    exchange(l0, r1, &[7; 128]);
    assert_eq!(l1.spliced(), 128);
    exchange(l0, r1, b"x");
    let end = splice.wait();
    assert_eq!((end.cause, end.bytes), (Cause::Limit, 129));
    exchange(l0, l1, b"y");
    assert!(
        [l0, l1, r0, r1]
            .iter()
            .all(|socket| socket.readable_bytes() == 0)
    );
}

/// F06 `splice_limit_timeout`: FreeBSD's timeout is a lifetime
fn limit_timeout(factory: Factory, dispatch: Dispatch) {
    for idle in [false, true] {
        let pairs = Pairs::new(factory, factory, dispatch);
        let ([l0, l1], [r0, r1]) = (&pairs.left, &pairs.right);
        let time = Some(Duration::from_millis(if idle { 50 } else { 500 }));
        let mut options = pairs.options();
        *(if idle {
            &mut options.idle
        } else {
            &mut options.lifetime
        }) = time;
        let splice = l1.splice_to(r0, options).unwrap();
        // A slow machine may let an idle time pass here, but not unnoticed.
        if !idle {
            exchange(l0, r1, &[7; 128]);
        }
        let end = splice.wait();
        assert_eq!(end.cause, if idle { Cause::Idle } else { Cause::Lifetime });
        exchange(l0, l1, b"x");
        assert!(is_empty(r1));
    }
}

/// F07 `splice_listen`, over something that says it listens
fn listen(factory: Factory, dispatch: Dispatch) {
    let pairs = Pairs::new(factory, factory, dispatch);
    let l1 = &pairs.left[1];
    let listening = odd(SoState::Listening);
    let as_sink = l1.splice_to(&listening, pairs.options()).unwrap_err();
    let as_source = listening.splice_to(l1, pairs.options()).unwrap_err();
    assert_eq!((number(as_sink), number(as_source)), (22, 22));
    assert!(listening.unsplice().is_err());
}

/// F08 `splice_loop`: the bytes circulate, others are served, and closing ends it
fn ring(factory: Factory, dispatch: Dispatch) {
    let pairs = Pairs::new(factory, factory, dispatch);
    let ([l0, l1], [r0, r1]) = (&pairs.left, &pairs.right);
    let round = l0.splice_to(l1, pairs.options()).unwrap();
    let back = l1.splice_to(l0, pairs.options()).unwrap();
    l0.send(b"go").unwrap();
    while round.bytes() + back.bytes() < 1000 {
        thread::yield_now();
    }
    let echo = r0.splice_to(r0, pairs.options()).unwrap();
    exchange(r1, r1, b"still served");
    let end = echo.unsplice().unwrap();
    assert_eq!(end.bytes, 12);
    drop(pairs.left);
    assert!(matches!(
        round.wait().cause,
        Cause::SourceClosed | Cause::SinkClosed
    ));
    assert!(matches!(
        back.wait().cause,
        Cause::SourceClosed | Cause::SinkClosed
    ));
}

/// F09 `splice_nonblock`
fn nonblock(factory: Factory, dispatch: Dispatch) {
    let pairs = Pairs::spliced(factory, factory, dispatch);
    let ([l0, _], [_, r1]) = (&pairs.left, &pairs.right);
    l0.set_nonblocking(true);
    let mut sent = Vec::new();
    let mut block = [0; 200];
    loop {
        for (index, byte) in block.iter_mut().enumerate() {
            *byte = u8::try_from((sent.len() + index) % 251).unwrap();
        }
        match l0.send(&block) {
            Ok(count) => sent.extend(&block[..count]),
            Err(error) => break assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    let mut got = vec![0; sent.len()];
    let mut receiver = r1;
    receiver.read_exact(&mut got).unwrap();
    assert_eq!(got, sent);
    assert!(is_empty(r1));
}

/// F10 `splice_resplice`
fn resplice(factory: Factory, dispatch: Dispatch) {
    let pairs = Pairs::spliced(factory, factory, dispatch);
    let ([l0, l1], [r0, r1]) = (&pairs.left, &pairs.right);
    exchange(l0, r1, b"one");
    exchange(r1, l0, b"two!");
    assert_eq!(pairs.counters(), [3, 4]);
    l1.unsplice().unwrap();
    r0.unsplice().unwrap();
    pairs.splice();
    assert_eq!(pairs.counters(), [0, 0]);
    exchange(l0, r1, b"again");
    assert_eq!(pairs.counters(), [5, 0]);
}

/// Bytes that cannot be confused with others nearby.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn send_all(mut socket: &Socket, bytes: &[u8]) {
    socket.write_all(bytes).unwrap();
}

fn receive(mut socket: &Socket, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    socket.read_exact(&mut bytes).unwrap();
    bytes
}

/// F11 `splice_throughput`
fn throughput(factory: Factory, dispatch: Dispatch) {
    let pairs = Pairs::spliced(factory, factory, dispatch);
    let ([l0, _], [_, r1]) = (&pairs.left, &pairs.right);
    let (up, down) = (pattern(24_000_017), pattern(9_000_001));
    thread::scope(|scope| {
        scope.spawn(|| send_all(l0, &up));
        scope.spawn(|| send_all(r1, &down));
        let at_right = scope.spawn(|| receive(r1, up.len()));
        assert!(receive(l0, down.len()) == down);
        assert!(at_right.join().unwrap() == up);
    });
    assert_eq!(pairs.counters(), [24_000_017, 9_000_001]);
}

/// F12 `splice_v4v6`: two kinds of sockets
fn two_kinds(one: Factory, other: Factory, dispatch: Dispatch) {
    for (left, right) in [(one, other), (other, one)] {
        let pairs = Pairs::spliced(left, right, dispatch);
        let ([l0, _], [_, r1]) = (&pairs.left, &pairs.right);
        exchange(l0, r1, b"there");
        exchange(r1, l0, b"back");
        assert_eq!(pairs.counters(), [5, 4]);
    }
}

/// The end of the stream: not forwarded, and after it both sides are the user's again.
fn eof(factory: Factory, dispatch: Dispatch) {
    let pairs = Pairs::new(factory, factory, dispatch);
    let ([l0, l1], [r0, r1]) = (&pairs.left, &pairs.right);
    let splice = l1.splice_to(r0, pairs.options()).unwrap();
    thread::scope(|scope| {
        // Sleeps on the source until the splice is over, or takes a byte from it.
        let reader = scope.spawn(|| l1.recv_chain(1).unwrap().len());
        scope.spawn(|| {
            send_all(l0, &pattern(1_000_000));
            l0.shutdown(Shutdown::Write).unwrap();
        });
        let most = receive(r1, 999_999).len() as u64;
        let taken = reader.join().unwrap();
        let rest = receive(r1, 1 - taken).len() as u64;
        let end = splice.wait();
        assert_eq!((end.cause, end.bytes), (Cause::Eof, most + rest));
    });
    assert!(is_empty(r1));
    assert_eq!(l1.recv(&mut [0]).unwrap(), 0);
    exchange(r0, r1, b"mine again");
}

/// Splicing and unsplicing under a flood, with a second thread that unsplices too: every byte
/// arrives once and in order, and each splice is ended by exactly one.
fn race(factory: Factory, dispatch: Dispatch) {
    const BYTES: usize = 3_000_000;
    let pairs = Pairs::new(factory, factory, dispatch);
    let ([l0, l1], [r0, r1]) = (&pairs.left, &pairs.right);
    let bytes = pattern(BYTES);
    let (splices, moved) = thread::scope(|scope| {
        scope.spawn(|| {
            send_all(l0, &bytes);
            l0.shutdown(Shutdown::Write).unwrap();
        });
        let at_right = scope.spawn(|| receive(r1, BYTES));
        let mut moved = 0;
        let mut splices = 0;
        loop {
            // Whoever wins knows how many bytes that splice moved.
            let splice = l1.splice_to(r0, pairs.options()).unwrap();
            splices += 1;
            let rival = scope.spawn(|| l1.unsplice().is_ok());
            let mine = splice.unsplice().is_ok();
            let theirs = rival.join().unwrap();
            let end = splice.wait();
            moved += end.bytes;
            assert_eq!(splice.bytes(), end.bytes);
            match end.cause {
                Cause::Unspliced => assert!(mine ^ theirs),
                Cause::Eof => break assert!(!mine && !theirs),
                cause => panic!("{cause:?}"),
            }
        }
        assert!(at_right.join().unwrap() == bytes);
        (splices, moved)
    });
    assert_eq!(moved, BYTES as u64);
    let stats = pairs.pool.stats();
    assert_eq!(
        (stats.started, stats.ended(), stats.bytes),
        (splices, splices, moved)
    );
}

/// A second splice that always fails, under a flood, disturbs nothing.
fn failing_setup(factory: Factory, dispatch: Dispatch) {
    let pairs = Pairs::spliced(factory, factory, dispatch);
    let ([l0, l1], [r0, r1]) = (&pairs.left, &pairs.right);
    let bytes = pattern(2_000_000);
    thread::scope(|scope| {
        scope.spawn(|| send_all(l0, &bytes));
        let at_right = scope.spawn(|| receive(r1, bytes.len()));
        while !at_right.is_finished() {
            assert!(l1.splice_to(l0, pairs.options()).is_err());
            assert!(r1.splice_to(r0, pairs.options()).is_err());
        }
        assert!(at_right.join().unwrap() == bytes);
    });
    assert_eq!(pairs.counters(), [2_000_000, 0]);
}

macro_rules! conformance {
    ($name:ident, $factory:expr, $dispatch:expr) => {
        mod $name {
            use super::*;
            conformance!(@ $factory, $dispatch,
                basic error kevent limit_bytes limit_timeout listen ring nonblock resplice
                throughput eof race failing_setup);
        }
    };
    (@ $factory:expr, $dispatch:expr, $($case:ident)*) => {
        $(#[test]
        fn $case() {
            super::$case($factory, $dispatch);
        })*
    };
}

macro_rules! mixed {
    ($name:ident, $one:expr, $other:expr) => {
        #[test]
        fn $name() {
            two_kinds($one, $other, Dispatch::Worker);
            two_kinds($one, $other, Dispatch::Direct);
        }
    };
}

conformance!(memory_worker, memory, Dispatch::Worker);
conformance!(memory_direct, memory, Dispatch::Direct);
conformance!(small_memory_worker, small_memory, Dispatch::Worker);
conformance!(small_memory_direct, small_memory, Dispatch::Direct);
mixed!(memory_and_small_memory, memory, small_memory);
conformance!(tcp_worker, tcp, Dispatch::Worker);
conformance!(tcp_direct, tcp, Dispatch::Direct);
conformance!(tcp6_worker, tcp6, Dispatch::Worker);
mixed!(v4_to_v6, tcp, tcp6);
mixed!(v6_to_v4, tcp6, tcp);
mixed!(memory_to_tcp, memory, tcp);
