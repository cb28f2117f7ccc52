//! Random operations on connected pairs and the splices between them, compared with a model: a queue of
//! bytes for each direction.
//!
//! A receiver gets the next bytes that were sent or spliced in its direction; a splice's count is the
//! number of bytes it moved; it ends with a correct cause, reported once; while it lasts and nothing is
//! left to run, no byte could move, and none of its timeouts has expired. The pairs are in memory, or
//! one of them is a TCP connection of two stacks.
//!
//! Only the counts of a splice are read. They are enough: each queue has one reader and one writer at a
//! time, so its contents do not depend on the order of the splices.
//!
//! The input is a program of [`World::act`]. To run it: `.ci/fuzz 60 operations`.
#![no_main]

#[path = "../../support/clock.rs"]
mod clock;

use clock::SetClock;
use libfuzzer_sys::fuzz_target;
use sosplice::buf::{Buf, Chain};
use sosplice::clock::Clock;
use sosplice::error::{Flavor, SoError};
use sosplice::link::memory;
use sosplice::protocol::SocketEnd;
use sosplice::splice::{
    Cause, Dispatch, End, Options, Rate, Role, Splice, SpliceError, SplicePool,
};
use sosplice::stack::Driver;
use sosplice::{Socket, Stack, TcpListener, TcpSocket, local};
use sosplice_fuzz::Input;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SOCKETS: usize = 6;
/// The connection that may be one of TCP: sockets 0 and 1.
const TCP: usize = 0;
/// Time that may pass in all; then the clock stops.
const MOST: Duration = Duration::from_secs(1 << 31);

/// One end of a connection, and the bytes that it has sent and its peer has not received yet.
struct Side {
    /// All handles; none if it is closed.
    handles: Vec<Socket>,
    end: Arc<SocketEnd>,
    sent: VecDeque<u8>,
    /// It is shut down for writing, by a call or a forwarded end.
    shut: bool,
    /// It is shut down for reading.
    deaf: bool,
}

/// A splice, as it should be.
struct Watch {
    splice: Splice,
    source: usize,
    sink: usize,
    options: Options,
    flavor: Flavor,
    pool: usize,
    began: Instant,
    moved_at: Instant,
    bytes: u64,
    /// It was unspliced by a call.
    unspliced: bool,
    /// Its source was read by a call.
    robbed: bool,
    told: Arc<Mutex<Vec<End>>>,
}

/// Two stacks with a link between them.
struct Network {
    stacks: [(Stack, Driver); 2],
    _listener: TcpListener,
}

struct World {
    clock: Arc<SetClock>,
    pools: Vec<Option<SplicePool>>,
    network: Option<Network>,
    sides: Vec<Side>,
    /// By connection: it was reset, or has failed otherwise.
    failed: [bool; SOCKETS / 2],
    live: Vec<Watch>,
    started: u64,
    serial: u32,
}

fn byte(serial: u32) -> u8 {
    serial.wrapping_mul(0x9e37_79b9).to_be_bytes()[0]
}

fn network(clock: &Arc<SetClock>) -> (Network, [Socket; 2]) {
    let (a, b) = memory::pair(memory::Config::default());
    let stack = |link, address: &str| {
        Stack::builder(link)
            .address(address.parse().unwrap())
            .receive_buffer(2048)
            .send_buffer(2048)
            .clock(clock.clone())
            .seed(1)
            .build_with_driver()
            .unwrap()
    };
    let mut stacks = [stack(a, "10.0.0.1/24"), stack(b, "10.0.0.2/24")];
    let listener = TcpListener::bind(&stacks[1].0, "10.0.0.2:80").unwrap();
    listener.set_nonblocking(true);
    let near = TcpSocket::new(&stacks[0].0)
        .start("10.0.0.2:80".parse().unwrap())
        .unwrap();
    for _ in 0..4 {
        for (_, driver) in &mut stacks {
            while driver.poll().unwrap() {}
        }
    }
    let (far, _) = listener.accept().unwrap();
    let sockets = [near, far].map(|stream| AsRef::<Socket>::as_ref(&stream).clone());
    let network = Network {
        stacks,
        _listener: listener,
    };
    (network, sockets)
}

impl World {
    fn new(input: &mut Input<'_>) -> World {
        let form = input.byte();
        let clock = SetClock::new();
        let mut sockets = Vec::new();
        let mut network = None;
        if form & 1 != 0 {
            let (stacks, pair) = self::network(&clock);
            network = Some(stacks);
            sockets.extend(pair);
        }
        while sockets.len() < SOCKETS {
            let (rcv, snd) = (input.below(256), input.below(256));
            let connects = sockets.len() == SOCKETS - 2 && form & 2 != 0;
            let (a, b) = match connects {
                true => local::connecting_pair(),
                false => local::pair_with_hiwat(rcv + 1, snd + 1),
            };
            sockets.extend([a, b]);
        }
        let side = |(at, socket): (usize, Socket)| {
            socket.set_nonblocking(true);
            if form & 4 << (at / 2) != 0 {
                socket.set_flavor(Flavor::OpenBsd);
            }
            Side {
                end: socket.end().clone(),
                handles: vec![socket],
                sent: VecDeque::new(),
                shut: false,
                deaf: false,
            }
        };
        let mut world = World {
            pools: Vec::new(),
            network,
            sides: sockets.into_iter().enumerate().map(side).collect(),
            failed: [false; SOCKETS / 2],
            live: Vec::new(),
            started: 0,
            serial: 0,
            clock,
        };
        world.new_pool(input);
        world
    }

    fn new_pool(&mut self, input: &mut Input<'_>) {
        let form = input.byte();
        let dispatch = if form & 1 == 0 {
            Dispatch::Worker
        } else {
            Dispatch::Direct
        };
        let builder = SplicePool::builder().workers(usize::from(form >> 1 & 1) + 1);
        let builder = builder
            .quantum(usize::from(form >> 2) + 1)
            .dispatch(dispatch);
        self.started = 0;
        self.pools
            .push(Some(builder.clock(self.clock.clone()).manual().build()));
    }

    fn pool(&self) -> &SplicePool {
        self.pools.last().and_then(Option::as_ref).unwrap()
    }

    fn is_tcp(&self, at: usize) -> bool {
        at / 2 == TCP && self.network.is_some()
    }
}

// Operations.

impl World {
    fn send(&mut self, at: usize, count: usize, form: usize) {
        let Some(socket) = self.sides[at].handles.first() else {
            return;
        };
        let bytes: Vec<u8> = (0..).map(|i| byte(self.serial + i)).take(count).collect();
        let end = socket.end();
        let (closed, space) = end.with_snd(|snd| (snd.is_closed(), snd.space()));
        let connected = end.is_connected();
        let error = socket.end().error();
        let sent = match form {
            0 => {
                let (a, b) = bytes.split_at(count / 3);
                socket.send_vectored(&[IoSlice::new(a), IoSlice::new(b)])
            }
            1 => socket.send_chain(&mut Chain::from(Buf::copy_of(&bytes))),
            _ => socket.send(&bytes),
        };
        let open = !closed && error.is_none() && connected;
        match sent {
            Ok(0) => assert_eq!(count, 0),
            Ok(sent) => {
                assert!(open && sent == count.min(space), "{sent} {count} {space}");
                self.sides[at].sent.extend(&bytes[..sent]);
                self.serial += u32::try_from(sent).unwrap();
            }
            Err(why) => self.refused(at, &why, |kind| match kind {
                ErrorKind::WouldBlock => error.is_none() && !closed && (space == 0 || !connected),
                ErrorKind::BrokenPipe => closed,
                _ => false,
            }),
        }
    }

    /// Checks the error of a call: an expected one, or the error that has ended the connection or a
    /// splice.
    fn refused(&mut self, at: usize, why: &io::Error, right: impl Fn(ErrorKind) -> bool) {
        let of_splice = why
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<SoError>())
            .is_some_and(|error| error.is_of_splice() || *error == SoError::BrokenPipe);
        let openbsd = self.sides[at].end.flavor() == Flavor::OpenBsd || of_splice;
        assert!(right(why.kind()) || self.failed[at / 2] || openbsd, "{why}");
    }

    fn recv(&mut self, at: usize, count: usize, form: usize) {
        let Some(socket) = self.sides[at].handles.first().cloned() else {
            return;
        };
        let end = socket.end();
        let (unread, finished) = end.with_rcv(|rcv| (rcv.len(), rcv.is_finished()));
        let diverted = end.is_diverted(Role::Source);
        let hidden = diverted && socket.flavor() == Flavor::OpenBsd;
        let mut out = vec![0; count];
        let got = match form {
            0 => socket.peek(&mut out),
            1 => {
                let (a, b) = out.split_at_mut(count / 3);
                socket.recv_vectored(&mut [IoSliceMut::new(a), IoSliceMut::new(b)])
            }
            2 => socket.recv_chain(count).map(|chain| {
                out[..chain.len()].copy_from_slice(&chain.to_vec());
                chain.len()
            }),
            _ => socket.recv(&mut out),
        };
        match got {
            Ok(0) => assert!(count == 0 || finished && !hidden && self.may_end(at)),
            Ok(got) => {
                assert!(!hidden && !self.sides[at].deaf && got == count.min(unread));
                let sent = &mut self.sides[at ^ 1].sent;
                assert!(got <= sent.len(), "more than was sent");
                assert!(
                    sent.iter().zip(&out[..got]).all(|(a, b)| a == b),
                    "other bytes"
                );
                if form != 0 {
                    sent.drain(..got);
                    let mut live = self.live.iter_mut();
                    if let Some(watch) = live.find(|watch| watch.source == at) {
                        watch.robbed = true;
                    }
                }
            }
            Err(why) => self.refused(at, &why, |kind| {
                kind == ErrorKind::WouldBlock && (hidden || unread == 0 && !finished)
            }),
        }
    }

    /// Whether the stream that this one receives may be at its end.
    fn may_end(&self, at: usize) -> bool {
        let peer = &self.sides[at ^ 1];
        let all = peer.sent.is_empty();
        peer.shut && all || self.sides[at].deaf || self.failed[at / 2]
    }

    fn shutdown(&mut self, at: usize, how: Shutdown) {
        let side = &mut self.sides[at];
        let Some(socket) = side.handles.first() else {
            return;
        };
        side.shut |= how != Shutdown::Read;
        side.deaf |= how != Shutdown::Write;
        socket.shutdown(how).unwrap();
    }

    fn close(&mut self, at: usize) {
        let side = &mut self.sides[at];
        if side.handles.len() == 1 {
            side.shut = true;
            side.deaf = true;
            // Unread bytes cause a reset.
            self.failed[at / 2] |= !side.end.with_rcv(|buf| buf.is_empty());
        }
        side.handles.pop();
    }

    fn splice(&mut self, input: &mut Input<'_>) {
        let (source, sink) = (input.below(SOCKETS), input.below(SOCKETS));
        let options = self.options(input);
        let (Some(from), Some(to)) = (
            self.sides[source].handles.first(),
            self.sides[sink].handles.first(),
        ) else {
            return;
        };
        let busy = [
            from.end().is_diverted(Role::Source),
            to.end().is_diverted(Role::Sink),
        ];
        let counted = from.spliced();
        match from.splice_to(to, options.clone()) {
            Ok(splice) => {
                assert_eq!(busy, [false; 2]);
                let told: Arc<Mutex<Vec<End>>> = Arc::default();
                let tell = told.clone();
                splice.on_end(move |end| tell.lock().unwrap().push(end));
                self.started += 1;
                let now = self.clock.now();
                self.live.push(Watch {
                    splice,
                    source,
                    sink,
                    flavor: from.flavor(),
                    options: options.pool(None),
                    pool: self.pools.len() - 1,
                    began: now,
                    moved_at: now,
                    bytes: 0,
                    unspliced: false,
                    robbed: false,
                    told,
                });
            }
            Err(why) => {
                assert_eq!(from.spliced(), counted);
                let right = match why {
                    SpliceError::ZeroLimit => options.limit == Some(0),
                    SpliceError::ZeroTimeout => {
                        [options.idle, options.lifetime].contains(&Some(Duration::ZERO))
                    }
                    SpliceError::Busy(Role::Source) => busy[0],
                    SpliceError::Busy(Role::Sink) => busy[1],
                    SpliceError::NotConnected(role) => {
                        let end = if role == Role::Source {
                            from.end()
                        } else {
                            to.end()
                        };
                        end.with_rcv(|buf| buf.is_closed()) && end.with_snd(|buf| buf.is_closed())
                    }
                    _ => false,
                };
                assert!(right, "{why}");
            }
        }
    }

    fn options(&self, input: &mut Input<'_>) -> Options {
        let form = input.byte();
        let some = |at: u8| form & 1 << at != 0;
        let number = |input: &mut Input<'_>| NonZeroU64::new(u64::from(input.byte()) + 1).unwrap();
        let time = |input: &mut Input<'_>| Duration::from_millis(1 << input.below(33) >> 1);
        Options::default()
            .limit(some(0).then(|| input.byte().into()))
            .idle(some(1).then(|| time(input)))
            .lifetime(some(2).then(|| time(input)))
            .forward_eof(some(3))
            .forward_reset(some(4))
            .lowat(if some(5) { input.below(256) } else { 0 })
            .rate(some(6).then(|| Rate {
                bytes_per_second: number(input),
                burst: number(input),
            }))
            .dispatch(some(7).then(|| match input.flag() {
                true => Dispatch::Direct,
                false => Dispatch::Worker,
            }))
            .pool(self.pool().clone())
    }

    fn unsplice(&mut self, input: &mut Input<'_>) {
        let by_handle = input.flag();
        let at = input.below(SOCKETS);
        if by_handle {
            let Some(watch) = self.live.get_mut(at) else {
                return;
            };
            let end = watch.splice.unsplice().unwrap();
            watch.unspliced = true;
            assert_eq!(watch.splice.end(), Some(end));
            return;
        }
        let Some(socket) = self.sides[at].handles.first() else {
            return;
        };
        let watch = self.live.iter_mut().find(|watch| watch.source == at);
        let end = socket.unsplice();
        assert_eq!(end.is_ok(), watch.is_some());
        if let Some(watch) = watch {
            watch.unspliced = true;
            assert_eq!(watch.splice.end(), end.ok());
        }
    }

    fn marks(&self, input: &mut Input<'_>) {
        let Some(socket) = self.sides[input.below(SOCKETS)].handles.first() else {
            return;
        };
        let mark = input.below(256);
        match input.below(7) {
            0 => socket.set_rcv_hiwat(mark),
            1 => socket.set_snd_hiwat(mark),
            2 => socket.set_rcv_lowat(mark),
            3 => socket.set_snd_lowat(mark),
            4 => socket.set_flavor(if mark & 1 == 0 {
                Flavor::FreeBsd
            } else {
                Flavor::OpenBsd
            }),
            5 => drop(socket.take_error()),
            _ => socket.end().connected(),
        }
    }

    fn pass(&mut self, input: &mut Input<'_>) {
        let time = match input.byte() {
            // A simulator lets its clock jump.
            255 => {
                let next = self.pool().poll_at();
                next.map_or(Duration::ZERO, |at| {
                    at.saturating_duration_since(self.clock.now())
                })
            }
            254 => Duration::from_secs(u64::from(input.byte())),
            some => Duration::from_millis(1 << (some % 16)),
        };
        if self.clock.passed() + time < MOST {
            self.clock.advance(time);
        }
    }

    fn network(&mut self) {
        if let Some(network) = &mut self.network {
            for (stack, driver) in &mut network.stacks {
                for _ in 0..20 {
                    if !driver.poll().unwrap() {
                        break;
                    }
                }
                assert_eq!(stack.stats().broken, 0);
            }
        }
    }

    fn act(&mut self, input: &mut Input<'_>) {
        let op = input.byte();
        let at = usize::from(op >> 5) % SOCKETS;
        let mut ran = false;
        match op % 32 {
            0..7 => self.send(at, input.below(256), usize::from(op % 32)),
            7..12 => self.recv(at, input.below(256), usize::from(op % 32 - 7)),
            12 => self.shutdown(at, Shutdown::Write),
            13 => self.shutdown(at, input.pick(&[Shutdown::Read, Shutdown::Both])),
            14 => self.close(at),
            15 => {
                if let Some(socket) = self.sides[at].handles.first() {
                    self.failed[at / 2] = true;
                    socket.abort();
                }
            }
            16 => {
                let handles = &mut self.sides[at].handles;
                handles.extend(handles.first().cloned());
            }
            17..22 => self.splice(input),
            22 => self.unsplice(input),
            23 => self.marks(input),
            24 | 25 => self.pass(input),
            26 => self.network(),
            27 if self.pools.len() < 4 => {
                let last = self.pools.len() - 1;
                self.pools[last] = None;
                self.new_pool(input);
            }
            _ => ran = self.run(input.below(64)),
        }
        self.check();
        if ran {
            self.rest();
        }
    }

    /// Whether nothing is left to be done.
    fn run(&self, times: usize) -> bool {
        (0..times).any(|_| !self.pool().run_one())
    }
}

// Observations.

impl World {
    fn check(&mut self) {
        for (at, side) in self.sides.iter().enumerate() {
            let error = side.end.error();
            self.failed[at / 2] |=
                error.is_some_and(|error| !error.is_of_splice() && error != SoError::BrokenPipe);
        }
        self.moved();
        let ended = |watch: &mut Watch| watch.splice.is_ended();
        let ended: Vec<Watch> = self.live.extract_if(.., ended).collect();
        // One may have led to the other.
        ended.iter().for_each(|watch| self.forwarded(watch));
        ended.iter().for_each(|watch| self.ended(watch));
        self.buffers();
        for watch in &self.live {
            assert!(watch.told.lock().unwrap().is_empty());
            assert!(self.sides[watch.source].end.is_diverted(Role::Source));
            assert!(self.sides[watch.sink].end.is_diverted(Role::Sink));
            assert!(!self.sides[watch.source].handles.is_empty());
            assert!(!self.sides[watch.sink].handles.is_empty());
            assert!(self.pools[watch.pool].is_some());
            assert!(watch.options.limit.is_none_or(|limit| watch.bytes < limit));
            assert_eq!(self.sides[watch.source].end.spliced(), watch.bytes);
        }
        let stats = self.pool().stats();
        let live = self
            .live
            .iter()
            .filter(|watch| watch.pool == self.pools.len() - 1);
        assert_eq!(stats.started, self.started);
        assert_eq!(stats.started - stats.ended(), live.count() as u64);
        assert_eq!(stats.panics, 0);
    }

    /// Lets the queues follow the counts.
    fn moved(&mut self) {
        let now = self.clock.now();
        let mut left = Vec::new();
        for watch in &mut self.live {
            let bytes = watch.splice.bytes();
            let count = bytes.checked_sub(watch.bytes).expect("a count decreased");
            if count > 0 {
                watch.moved_at = now;
                watch.bytes = bytes;
                left.push((watch.source, watch.sink, usize::try_from(count).unwrap()));
            }
        }
        while !left.is_empty() {
            let mut moved = 0;
            for (source, sink, count) in &mut left {
                let from = &mut self.sides[*source ^ 1].sent;
                let some = from.len().min(*count);
                let bytes: Vec<u8> = from.drain(..some).collect();
                self.sides[*sink].sent.extend(bytes);
                *count -= some;
                moved += some;
            }
            assert!(moved > 0, "bytes from nowhere: {left:?}");
            left.retain(|(_, _, count)| *count > 0);
        }
    }

    /// No byte is lost on the way, and none is there twice.
    fn buffers(&self) {
        for (at, side) in self.sides.iter().enumerate() {
            let peer = &self.sides[at ^ 1];
            let unsent = side.end.with_snd(|buf| buf.len());
            let unread = peer.end.with_rcv(|buf| buf.len());
            if self.is_tcp(at) {
                assert!(unread <= side.sent.len());
            } else if !self.failed[at / 2] && !peer.deaf {
                assert_eq!(unsent + unread, side.sent.len());
            }
        }
    }

    /// Further effects of its end.
    fn forwarded(&mut self, watch: &Watch) {
        let (options, end) = (&watch.options, watch.splice.end().unwrap());
        match end.cause {
            Cause::Eof => self.sides[watch.sink].shut |= options.forward_eof,
            Cause::SourceError(_) => self.failed[watch.sink / 2] |= options.forward_reset,
            Cause::SinkError(_) => self.failed[watch.source / 2] |= options.forward_reset,
            _ => {}
        }
    }

    fn ended(&self, watch: &Watch) {
        let end = watch.splice.end().unwrap();
        assert_eq!(*watch.told.lock().unwrap(), [end]);
        assert_eq!(end.bytes, watch.bytes);
        let limit = watch.options.limit;
        assert_eq!(end.cause == Cause::Limit, limit == Some(end.bytes));
        assert!(limit.is_none_or(|limit| end.bytes <= limit));
        let (source, sink) = (&self.sides[watch.source], &self.sides[watch.sink]);
        let failed = |at: usize| self.failed[at / 2];
        let is_real = |error: SoError, at: usize| {
            !error.is_of_splice() && (failed(at) || error == SoError::BrokenPipe)
        };
        let now = self.clock.now();
        let right = match end.cause {
            Cause::Limit => true,
            Cause::Unspliced => watch.unspliced,
            Cause::Idle => watch
                .options
                .idle
                .is_some_and(|idle| now - watch.moved_at >= idle),
            Cause::Lifetime => watch
                .options
                .lifetime
                .is_some_and(|time| now - watch.began >= time),
            Cause::Eof => {
                let peer = &self.sides[watch.source ^ 1];
                peer.shut || source.deaf || failed(watch.source)
            }
            // A splice of the OpenBSD flavor may have left its own error there.
            Cause::SourceError(error) => is_real(error, watch.source),
            Cause::SinkError(error) => is_real(error, watch.sink),
            Cause::SourceClosed => source.handles.is_empty(),
            Cause::SinkClosed => sink.handles.is_empty(),
            Cause::SinkShutdown => sink.shut || failed(watch.sink),
            Cause::PoolClosed => self.pools[watch.pool].is_none(),
            Cause::Loop => watch.flavor == Flavor::OpenBsd,
            _ => false,
        };
        assert!(right, "{end:?}");
        assert!(end.cause != Cause::Eof || end.residual == 0);
    }

    /// Nothing is left to be done, so nothing is left that could be.
    fn rest(&self) {
        let now = self.clock.now();
        let deadline = self.pool().poll_at();
        assert!(deadline.is_none_or(|at| at > now));
        for watch in &self.live {
            let idle = watch.options.idle.map(|idle| watch.moved_at + idle);
            let lifetime = watch.options.lifetime.map(|time| watch.began + time);
            for end in [idle, lifetime].into_iter().flatten() {
                assert!(now < end, "late: {:?}", watch.options);
                assert!(deadline.is_some_and(|at| at <= end), "{deadline:?} {end:?}");
            }
            if let Some(rate) = watch.options.rate {
                let passed = (now - watch.began).as_nanos();
                let most = u128::from(rate.bytes_per_second.get()) * passed / 1_000_000_000;
                assert!(u128::from(watch.bytes) <= most + u128::from(rate.burst.get()));
            } else {
                self.stalled(watch);
            }
        }
    }

    /// Either there is nothing to move, or no room for it.
    fn stalled(&self, watch: &Watch) {
        let source = &self.sides[watch.source].end;
        let (queued, closed, most) =
            source.with_rcv(|rcv| (rcv.len(), rcv.is_closed(), rcv.hiwat() / 2));
        let sink = &self.sides[watch.sink].end;
        let (space, lowat) = sink.with_snd(|snd| {
            assert!(!snd.is_closed(), "its sink takes nothing");
            (snd.space(), snd.lowat())
        });
        assert!(!closed || queued > 0, "its source is at the end");
        let left = watch
            .options
            .limit
            .map_or(u64::MAX, |limit| limit - watch.bytes);
        let left = usize::try_from(left).unwrap();
        let want = queued.min(left);
        let enough = want >= watch.options.lowat.min(most).min(left) || closed;
        // Less than the low-water mark is used if all fits. If it fits now because the rest was read,
        // the splice is not woken: the sink will make more room by itself.
        let fits = space >= want && !watch.robbed;
        let room = space > 0 && (fits || space >= lowat) && sink.is_connected();
        assert!(
            want == 0 || !enough || !room,
            "{want} bytes, room for {space}"
        );
    }
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input::new(input);
    let mut world = World::new(&mut input);
    while !input.is_empty() {
        world.act(&mut input);
    }
});
