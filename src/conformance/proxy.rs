//! The usual set-up: two connections and the proxy between them.
//!
//! ```text
//! client ──> source ==splice==> sink ──> server      (FreeBSD's L0, L1, R0, R1)
//! ```
//!
//! And common steps: splice, wait for the end, fill a sink, pump a stream. Neighbours: `world` below,
//! the cases above.

use super::world::{World, ready};
use super::{Outcome, Setup};
use crate::error::{Flavor, SoError};
use crate::protocol::{Protocol, SoState, SocketEnd, Upcall, Wakeup};
use crate::socket::Socket;
use crate::splice::{End, Options, Splice, SpliceError};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Small, but possible for every protocol.
pub(super) const SMALL: Setup = Setup {
    rcv_hiwat: 4096,
    snd_hiwat: 4096,
};

/// Two connections.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) client: Socket,
    pub(super) source: Socket,
    pub(super) sink: Socket,
    pub(super) server: Socket,
}

impl Proxy {
    /// Splices source to sink.
    #[track_caller]
    pub(super) fn splice(&self, world: &World<'_>) -> Splice {
        self.splice_with(world.options())
    }

    #[track_caller]
    pub(super) fn splice_with(&self, options: Options) -> Splice {
        let splice = self.source.splice_to(&self.sink, options);
        splice.expect("nothing is wrong with these sockets")
    }

    /// Splices both directions.
    #[track_caller]
    pub(super) fn splice_both(&self, world: &World<'_>) -> [Splice; 2] {
        let back = self.sink.splice_to(&self.source, world.options());
        [
            self.splice(world),
            back.expect("the other direction is free"),
        ]
    }

    /// The counters of both directions.
    pub(super) fn counters(&self) -> [u64; 2] {
        [self.source.spliced(), self.sink.spliced()]
    }

    /// `SO_ERROR` of source and sink.
    pub(super) fn errors(&self) -> [Option<SoError>; 2] {
        [self.source.take_error(), self.sink.take_error()]
    }
}

impl World<'_> {
    pub(super) fn proxy(&self) -> Proxy {
        self.proxy_with(Setup::default())
    }

    pub(super) fn proxy_with(&self, setup: Setup) -> Proxy {
        let [client, source] = self.connect(setup);
        let [sink, server] = self.connect(setup);
        Proxy {
            client,
            source,
            sink,
            server,
        }
    }

    /// Selects by flavor.
    pub(super) fn by_flavor<T>(&self, freebsd: T, openbsd: T) -> T {
        match self.flavor() {
            Flavor::FreeBsd => freebsd,
            Flavor::OpenBsd => openbsd,
        }
    }

    /// Waits for the end of a splice.
    #[track_caller]
    pub(super) fn end_of(&self, splice: &Splice) -> End {
        self.until("the splice has ended", || splice.is_ended());
        splice.wait()
    }

    /// Waits until a socket has this many unread bytes.
    #[track_caller]
    pub(super) fn arrived(&self, socket: &Socket, count: usize) {
        self.until("the bytes are there, unread", || {
            socket.readable_bytes() >= count
        });
    }

    /// Sends until no byte moves any more. Returns the sent bytes.
    #[track_caller]
    pub(super) fn fill(&self, socket: &Socket) -> Vec<u8> {
        self.fill_until(socket, || Some(0))
    }

    /// As [`fill`](Self::fill) at the client, until bytes are stuck on the source too.
    #[track_caller]
    pub(super) fn stall(&self, proxy: &Proxy) -> Vec<u8> {
        self.fill_until(&proxy.client, || {
            let stuck = proxy.source.readable_bytes();
            let is_full = {
                let snd = proxy.sink.end().snd();
                snd.buf.space() < snd.buf.lowat()
            };
            (stuck > 0 && is_full).then(|| proxy.source.spliced() + stuck as u64)
        })
    }

    /// The bytes of `splice` when a moment of waiting adds none. In virtual time that is at once; with
    /// threads a delayed acknowledgement makes room in the sink once more, later than `stall` waits.
    #[track_caller]
    pub(super) fn standstill(&self, splice: &Splice) -> u64 {
        let attempts = if self.is_virtual() { 1 } else { 100 };
        let still = (0..attempts).find_map(|_| {
            let before = splice.bytes();
            self.settle();
            (splice.bytes() == before).then_some(before)
        });
        still.expect("a splice with a full sink keeps moving bytes")
    }

    /// Tries one sink after the other until one stays full: an operating system may make room by
    /// itself, and then `attempt` returns `None`. If sinks stand still there is one attempt.
    #[track_caller]
    pub(super) fn with_full_sink(&self, attempt: impl Fn() -> Option<Outcome>) -> Outcome {
        let attempts = match self.factory().stands_still() {
            true => 1,
            false => 10,
        };
        let outcome = (0..attempts).find_map(|_| attempt());
        outcome.unwrap_or_else(|| panic!("none of {attempts} sinks stayed full"))
    }

    /// Sends until there is no room for a while, and `state` is `Some` and does not change.
    #[track_caller]
    fn fill_until(&self, socket: &Socket, state: impl Fn() -> Option<u64>) -> Vec<u8> {
        let mut sent = Vec::new();
        let was = socket.is_nonblocking();
        socket.set_nonblocking(true);
        let (mut same, mut before) = (0, None);
        for _ in 0..10_000 {
            while let Some(count) = ready(socket.send(&pattern(sent.len(), 1000))) {
                sent.extend(pattern(sent.len(), count));
                same = 0;
            }
            self.settle();
            let now = state();
            same = if now == before { same + 1 } else { 0 };
            before = now;
            // In virtual time all work is done; threads may be slow.
            if now.is_some() && (same == 6 || self.is_virtual() && same == 1) {
                break;
            }
        }
        assert!(before.is_some(), "no byte is stuck");
        socket.set_nonblocking(was);
        sent
    }

    /// Sends a pattern of this many bytes and receives it at the other end, in turns; `meanwhile` is
    /// called repeatedly, and returns whether it did some work.
    #[track_caller]
    pub(super) fn pump(
        &self,
        from: &Socket,
        to: &Socket,
        count: usize,
        mut meanwhile: impl FnMut() -> bool,
    ) {
        let were = [from, to].map(Socket::is_nonblocking);
        from.set_nonblocking(true);
        to.set_nonblocking(true);
        let bytes = pattern(0, count);
        let (mut sent, mut got) = (0, 0);
        let mut buffer = vec![0; 10_000];
        self.until("all bytes have gone through", || {
            loop {
                let before = (sent, got);
                sent += ready(from.send(&bytes[sent..])).unwrap_or(0);
                while let Some(more @ 1..) = ready(to.recv(&mut buffer)) {
                    assert_eq!(buffer[..more], bytes[got..][..more], "after {got} bytes");
                    got += more;
                }
                if !meanwhile() && (sent, got) == before {
                    break;
                }
            }
            got == count
        });
        from.set_nonblocking(were[0]);
        to.set_nonblocking(were[1]);
    }

    /// Asserts that a socket gets nothing.
    #[track_caller]
    pub(super) fn assert_silent(&self, socket: &Socket) {
        self.settle();
        assert_eq!(self.try_read(socket), Err(ErrorKind::WouldBlock));
    }

    /// The error of splicing this pair.
    #[track_caller]
    pub(super) fn splice_error(&self, source: &Socket, sink: &Socket) -> SpliceError {
        let splice = source.splice_to(sink, self.options());
        splice.expect_err("something is wrong with these sockets")
    }

    /// A socket with only a state.
    pub(super) fn odd(&self, state: SoState) -> Socket {
        let end = SocketEnd::new(100, 100);
        self.adopt(Socket::new(end, Arc::new(Odd(state))))
    }
}

/// Bytes of a stream from `at` on. The period is coprime to buffer sizes.
pub(super) fn pattern(at: usize, count: usize) -> Vec<u8> {
    let period: Vec<u8> = (0..251).collect();
    let from = at % period.len();
    let mut bytes = period.repeat((from + count).div_ceil(period.len()));
    bytes.truncate(from + count);
    bytes.drain(..from);
    bytes
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

/// Counts wake-ups.
#[derive(Debug, Default)]
pub(super) struct Heard(AtomicUsize);

impl Heard {
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Upcall for Heard {
    fn wakeup(&self, _what: Wakeup) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}
