//! The option as arbitrary bytes, in any order, on sockets in any state: no panic, each call has the
//! result in the tables of `sosplice::sockopt`, and a failed call changes nothing.
//!
//! The results are computed independently here, check by check, from the visible state of the sockets.
//! The input is a program of [`World::act`]. To run it: `.ci/fuzz 60 sockopt`.
#![no_main]

#[path = "../../support/clock.rs"]
mod clock;
#[path = "../../support/posed.rs"]
mod posed;

use clock::SetClock;
use libfuzzer_sys::fuzz_target;
use posed::Posed;
use sosplice::buf::Buf;
use sosplice::error::{Errno, Flavor, SoError};
use sosplice::protocol::{SoState, SocketEnd};
use sosplice::sockopt::{self, Abi, Layout, Rights, SO_ERROR, SO_SPLICE, SOL_SOCKET, Table};
use sosplice::splice::{Cause, End, Role};
use sosplice::splice::{Dispatch, Options, Rate, SplicePool, Stats};
use sosplice::{Socket, local};
use sosplice_fuzz::Input;
use std::net::Shutdown;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

/// Descriptors that there can be.
const OPEN: usize = 12;

const STATES: [SoState; 5] = [
    SoState::Stream,
    SoState::Unconnected,
    SoState::Listening,
    SoState::NotAStream,
    SoState::Encrypted,
];

/// The object of a descriptor.
#[derive(Debug, Clone)]
struct Entry {
    /// None is a file.
    socket: Option<Socket>,
    rights: Rights,
    /// Its own number, to identify it.
    file: usize,
}

/// All that a call that fails must leave alone, of one socket.
#[derive(Debug, PartialEq)]
struct Sight {
    diverted: [bool; 2],
    ends: [Option<End>; 2],
    lengths: [usize; 2],
    spliced: u64,
    error: Option<SoError>,
}

fn see(socket: &Socket) -> Sight {
    let end = socket.end();
    let (unread, unsent) = (end.with_rcv(|rcv| rcv.len()), end.with_snd(|snd| snd.len()));
    Sight {
        diverted: [Role::Source, Role::Sink].map(|role| end.is_diverted(role)),
        ends: [Role::Source, Role::Sink].map(|role| socket.splice_end(role)),
        lengths: [unread, unsent],
        spliced: socket.spliced(),
        error: end.error(),
    }
}

/// The parsed request of a call.
struct Request {
    fd: i32,
    max: i64,
    seconds: i64,
    microseconds: i64,
}

/// A field of 4 or 8 bytes.
fn field(bytes: &[u8]) -> i64 {
    match bytes.len() {
        4 => i32::from_ne_bytes(bytes.try_into().unwrap()).into(),
        _ => i64::from_ne_bytes(bytes.try_into().unwrap()),
    }
}

impl Request {
    /// By the table of forms and the one of layouts.
    fn read(bytes: &[u8], abi: Abi) -> Result<Request, Errno> {
        let only = |fd| Request {
            fd,
            max: 0,
            seconds: 0,
            microseconds: 0,
        };
        let (size, at) = match (abi.flavor, abi.layout) {
            (_, Layout::Lp64) => (32, [8, 16, 24, 32]),
            (Flavor::FreeBsd, Layout::Ilp32) => (20, [4, 12, 16, 20]),
            (_, Layout::Ilp32) => (24, [4, 12, 20, 24]),
        };
        let int = || i32::from_ne_bytes(bytes[..4].try_into().unwrap());
        match (abi.flavor, bytes.len()) {
            (Flavor::OpenBsd, 0) => Ok(only(-1)),
            (Flavor::FreeBsd, len) if len < size => Err(Errno::EINVAL),
            (Flavor::OpenBsd, ..4) => Err(Errno::EINVAL),
            (Flavor::OpenBsd, len) if len < size => Ok(only(int())),
            _ => Ok(Request {
                max: field(&bytes[at[0]..at[1]]),
                seconds: field(&bytes[at[1]..at[2]]),
                microseconds: field(&bytes[at[2]..at[3]]),
                ..only(int())
            }),
        }
    }

    fn numbers(&self) -> Result<(), Errno> {
        let is_time = self.seconds >= 0 && (0..1_000_000).contains(&self.microseconds);
        (self.max >= 0 && is_time)
            .then_some(())
            .ok_or(Errno::EINVAL)
    }
}

fn state(socket: &Socket) -> SoState {
    socket.protocol().so_state()
}

fn streams(source: &Socket, sink: &Socket) -> Result<(), Errno> {
    let none = [source, sink].map(state).contains(&SoState::NotAStream);
    (!none).then_some(()).ok_or(Errno::EPROTONOSUPPORT)
}

/// Whether it has no connection any more, or has never had one.
fn is_over(socket: &Socket, role: Role) -> bool {
    let rcv = socket.end().with_rcv(|rcv| match role {
        Role::Source => rcv.is_finished(),
        Role::Sink => rcv.is_closed(),
    });
    state(socket) == SoState::Unconnected || rcv && socket.end().with_snd(|buf| buf.is_closed())
}

fn is_busy(socket: &Socket, role: Role) -> bool {
    socket.end().is_diverted(role)
}

/// The checks of one socket, in FreeBSD's order: failed or not, and the error.
fn questions(socket: &Socket, role: Role, flavor: Flavor) -> [(bool, Errno); 4] {
    let listening = match flavor {
        Flavor::FreeBsd => Errno::EINVAL,
        _ => Errno::EOPNOTSUPP,
    };
    [
        (state(socket) == SoState::Listening, listening),
        (is_over(socket, role), Errno::ENOTCONN),
        (is_busy(socket, role), Errno::EBUSY),
        (state(socket) == SoState::Encrypted, Errno::EINVAL),
    ]
}

fn both(source: &Socket, sink: &Socket, flavor: Flavor) -> Result<(), Errno> {
    streams(source, sink)?;
    let source = questions(source, Role::Source, flavor);
    let sink = questions(sink, Role::Sink, flavor);
    let all: Vec<_> = match flavor {
        Flavor::FreeBsd => source.into_iter().chain(sink).collect(),
        _ => source
            .into_iter()
            .zip(sink)
            .flat_map(|(a, b)| [a, b])
            .collect(),
    };
    let bad = all.into_iter().find(|(bad, _)| *bad);
    bad.map_or(Ok(()), |(_, errno)| Err(errno))
}

/// The clients' side of things.
struct World {
    table: Table,
    /// The contents of the table, by number.
    entries: Vec<Option<Entry>>,
    files: usize,
    peers: Vec<Option<Socket>>,
    posed: Vec<Arc<Posed>>,
    clock: Arc<SetClock>,
    pools: [SplicePool; 2],
    /// The limits of splices, by source.
    limits: Vec<(Socket, u64)>,
}

impl World {
    fn new() -> World {
        let clock = SetClock::new();
        let pool = |workers| {
            let builder = SplicePool::builder().workers(workers).clock(clock.clone());
            builder.quantum(64).manual().build()
        };
        let mut world = World {
            table: Table::new(OPEN),
            entries: Vec::new(),
            files: 0,
            peers: Vec::new(),
            posed: Vec::new(),
            pools: [pool(1), pool(0)],
            clock,
            limits: Vec::new(),
        };
        (0..3).for_each(|_| world.connect());
        world
    }

    /// Inserts it, and compares the result with the model.
    fn open(&mut self, socket: Option<Socket>) {
        let entry = Entry {
            socket: socket.clone(),
            rights: Rights::all(),
            file: self.files,
        };
        self.files += 1;
        let fd = match socket {
            Some(socket) => self.table.insert(socket),
            None => self.table.insert_file(),
        };
        self.opened(entry, fd.ok());
    }

    /// The lowest number that is free, if there is one.
    fn opened(&mut self, entry: Entry, fd: Option<i32>) {
        let free = self.entries.iter().position(Option::is_none);
        let free = free.unwrap_or(self.entries.len());
        if free == OPEN {
            assert_eq!(fd, None);
            return;
        }
        assert_eq!(fd, i32::try_from(free).ok());
        if free == self.entries.len() {
            self.entries.push(None);
        }
        self.entries[free] = Some(entry);
    }

    fn connect(&mut self) {
        let (near, far) = local::pair_with_hiwat(100, 100);
        self.hold(near, far);
    }

    fn hold(&mut self, near: Socket, far: Socket) {
        near.set_nonblocking(true);
        far.set_nonblocking(true);
        self.open(Some(near));
        self.peers.push(Some(far));
    }

    fn pose(&mut self, state: SoState) {
        let end = SocketEnd::new(100, 100);
        end.connected();
        end.append_rcv([Buf::copy_of(b"abc")]);
        let posed = Posed::new(state);
        let socket = Socket::new(end, posed.clone());
        socket.set_nonblocking(true);
        self.posed.push(posed);
        self.open(Some(socket));
    }

    fn get(&self, fd: i32, need: Rights, flavor: Flavor) -> Result<Socket, Errno> {
        let entry = usize::try_from(fd)
            .ok()
            .and_then(|fd| self.entries.get(fd)?.as_ref());
        let entry = entry.ok_or(Errno::EBADF)?;
        if flavor == Flavor::FreeBsd && !entry.rights.contains(need) {
            return Err(Errno::ENOTCAPABLE);
        }
        entry.socket.clone().ok_or(Errno::ENOTSOCK)
    }

    /// FreeBSD's column.
    fn freebsd(&self, fd: i32, bytes: &[u8], abi: Abi, pool: usize) -> Result<(), Errno> {
        let get = |fd, need| self.get(fd, need, abi.flavor);
        let socket = get(fd, Rights::SETSOCKOPT)?;
        let request = Request::read(bytes, abi)?;
        if pool == 1 {
            return Err(Errno::ENXIO);
        }
        if request.fd < 0 {
            return match state(&socket) {
                SoState::Listening => Err(Errno::EINVAL),
                _ if is_busy(&socket, Role::Source) => Ok(()),
                _ => Err(Errno::ENOTCONN),
            };
        }
        let source = get(fd, Rights::RECV)?;
        let sink = get(request.fd, Rights::SEND)?;
        request.numbers()?;
        both(&source, &sink, abi.flavor)
    }

    /// OpenBSD's column.
    fn openbsd(&self, fd: i32, bytes: &[u8], abi: Abi, pool: usize) -> Result<(), Errno> {
        let get = |fd| self.get(fd, Rights::empty(), abi.flavor);
        let source = get(fd)?;
        let request = Request::read(bytes, abi)?;
        streams(&source, &source)?;
        request.numbers()?;
        if request.fd < 0 {
            let can = state(&source) != SoState::Listening && is_busy(&source, Role::Source);
            return can.then_some(()).ok_or(Errno::EPROTO);
        }
        if pool == 1 {
            return Err(Errno::ENXIO);
        }
        let sink = get(request.fd)?;
        both(&source, &sink, abi.flavor)
    }

    fn sights(&self) -> (Vec<Sight>, Stats) {
        let sockets = self
            .entries
            .iter()
            .flatten()
            .filter_map(|entry| entry.socket.as_ref());
        let all = sockets.chain(self.peers.iter().flatten());
        (all.map(see).collect(), self.pools[0].stats())
    }
}

fn abi(input: &mut Input<'_>) -> Abi {
    let form = input.byte();
    Abi {
        flavor: if form & 1 == 0 {
            Flavor::FreeBsd
        } else {
            Flavor::OpenBsd
        },
        layout: if form & 2 == 0 {
            Layout::Lp64
        } else {
            Layout::Ilp32
        },
    }
}

fn descriptor(input: &mut Input<'_>) -> i32 {
    match input.byte() {
        255 => input.i32(),
        254 => -1,
        small => i32::from(small) % 14,
    }
}

/// The value of a call: none, arbitrary bytes, or a nearly valid one.
fn value(input: &mut Input<'_>, abi: Abi) -> Option<Vec<u8>> {
    match input.byte() {
        0 => None,
        1 => {
            let length = input.below(41);
            Some(input.bytes(length).to_vec())
        }
        form => {
            let mut bytes = descriptor(input).to_ne_bytes().to_vec();
            if abi.layout == Layout::Lp64 {
                bytes.extend([0xaa; 4]);
            }
            bytes.extend(input.i64().to_ne_bytes());
            let idle = [input.i64(), input.i64()].map(|part| if form < 128 { 0 } else { part });
            let seconds = match (abi.layout, abi.flavor) {
                (Layout::Ilp32, Flavor::FreeBsd) => 4,
                _ => 8,
            };
            bytes.extend(&idle[0].to_ne_bytes()[..seconds]);
            let long = if abi.layout == Layout::Lp64 { 8 } else { 4 };
            bytes.extend(&idle[1].to_ne_bytes()[..long]);
            assert_eq!(bytes.len(), abi.size());
            if form % 16 == 15 {
                bytes.resize(input.below(41), 0);
            }
            Some(bytes)
        }
    }
}

fn name(input: &mut Input<'_>) -> (i32, i32) {
    match input.byte() {
        255 => (input.i32(), input.i32()),
        254 => (SOL_SOCKET, input.i32()),
        253 => (input.i32(), SO_SPLICE),
        form if form % 4 == 3 => (SOL_SOCKET, SO_ERROR),
        _ => (SOL_SOCKET, SO_SPLICE),
    }
}

/// Settings that the option lacks; limit and timeouts are wrong here, and must be ignored.
fn defaults(input: &mut Input<'_>, pool: SplicePool) -> Options {
    let form = input.byte();
    let some = |at: u8| form & 1 << at != 0;
    let rate = |speed: u64| NonZeroU64::new(speed).unwrap();
    Options::default()
        .limit(0)
        .idle(Duration::ZERO)
        .lifetime(Duration::ZERO)
        .forward_eof(some(0))
        .forward_reset(some(1))
        .lowat(if some(2) { 30 } else { 0 })
        .rate(some(3).then_some(Rate {
            bytes_per_second: rate(100),
            burst: rate(7),
        }))
        .dispatch(some(4).then_some(Dispatch::Direct))
        .pool(pool)
}

impl World {
    fn set(&mut self, input: &mut Input<'_>) {
        let (fd, abi, (level, name)) = (descriptor(input), abi(input), name(input));
        let value = value(input, abi);
        let pool = usize::from(input.byte() == 255);
        let defaults = defaults(input, self.pools[pool].clone());
        let bytes = value.as_deref().unwrap_or_default();
        let expected = match (level, name) {
            (SOL_SOCKET, SO_SPLICE) => match abi.flavor {
                Flavor::FreeBsd => self.freebsd(fd, bytes, abi, pool),
                _ => self.openbsd(fd, bytes, abi, pool),
            },
            _ => self
                .get(fd, Rights::SETSOCKOPT, abi.flavor)
                .and(Err(Errno::ENOPROTOOPT)),
        };
        let before = self.sights();
        let table = &self.table;
        let set = sockopt::setsockopt(table, fd, level, name, value.as_deref(), abi, &defaults);
        let set = set.map_err(|error| {
            assert!(!error.to_string().is_empty());
            error.errno(abi.flavor)
        });
        assert_eq!(set, expected, "{fd} {value:02x?} {abi:?}");
        if set.is_err() {
            assert_eq!(self.sights(), before);
            return;
        }
        let source = self.get(fd, Rights::empty(), abi.flavor).unwrap();
        let request = Request::read(bytes, abi).unwrap();
        let is_source = source.end().is_diverted(Role::Source);
        let end = source.splice_end(Role::Source);
        assert_eq!(end.is_some(), !is_source);
        if request.fd < 0 {
            assert_eq!(end.unwrap().cause, Cause::Unspliced);
        } else {
            self.limits
                .retain(|(other, _)| other.end().id() != source.end().id());
            let limit = u64::try_from(request.max).unwrap();
            self.limits.push((source, limit));
        }
    }

    fn read(&mut self, input: &mut Input<'_>) {
        let (fd, abi, (level, name)) = (descriptor(input), abi(input), name(input));
        let mut out = vec![0xee; input.below(12)];
        let before = self.sights();
        let socket = self.get(fd, Rights::GETSOCKOPT, abi.flavor);
        let expected = socket.clone().and_then(|socket| match (level, name) {
            (SOL_SOCKET, SO_SPLICE) => Ok(socket.spliced().to_ne_bytes().to_vec()),
            (SOL_SOCKET, SO_ERROR) => {
                let error = socket.end().error();
                let number = error.map_or(0, |error| error.errno().number(abi.flavor));
                Ok(number.to_ne_bytes().to_vec())
            }
            _ => Err(Errno::ENOPROTOOPT),
        });
        let got = sockopt::getsockopt(&self.table, fd, level, name, &mut out, abi);
        let got = got.map_err(|error| error.errno(abi.flavor));
        let length = expected.clone().map(|bytes| bytes.len().min(out.len()));
        assert_eq!(got, length);
        if let (Ok(length), Ok(bytes)) = (length, &expected) {
            assert_eq!(out[..length], bytes[..length]);
            assert!(out[length..].iter().all(|byte| *byte == 0xee));
        }
        if name == SO_ERROR && got.is_ok() {
            assert_eq!(socket.unwrap().end().error(), None);
        } else {
            assert_eq!(self.sights(), before);
        }
    }

    fn close(&mut self, fd: i32) {
        let open = !matches!(
            self.get(fd, Rights::empty(), Flavor::OpenBsd),
            Err(Errno::EBADF)
        );
        assert_eq!(self.table.close(fd).is_ok(), open);
        if open {
            let index = usize::try_from(fd).unwrap();
            let gone = self.entries[index].take().unwrap();
            let mut others = self.entries.iter().flatten();
            if !others.any(|entry| entry.file == gone.file) {
                // Else the model would keep it open.
                self.limits.retain(|(socket, _)| match &gone.socket {
                    Some(gone) => gone.end().id() != socket.end().id(),
                    None => true,
                });
            }
        }
    }

    fn dup(&mut self, fd: i32, rights: Rights) {
        let entry = usize::try_from(fd)
            .ok()
            .and_then(|fd| self.entries.get(fd)?.clone());
        let new = self.table.dup(fd, rights);
        match entry {
            None => assert!(new.is_err()),
            Some(mut entry) => {
                entry.rights &= rights;
                self.opened(entry, new.ok());
            }
        }
    }

    /// A user of one of the sockets does something.
    fn touch(&mut self, input: &mut Input<'_>) {
        let at = input.below(2 * OPEN);
        let socket = match self.peers.get(at) {
            Some(peer) => peer.as_ref(),
            None => {
                let at = at.wrapping_sub(self.peers.len());
                let entry = self.entries.get(at).and_then(Option::as_ref);
                entry.and_then(|entry| entry.socket.as_ref())
            }
        };
        let Some(socket) = socket else { return };
        let how = [Shutdown::Read, Shutdown::Write, Shutdown::Both];
        match input.below(10) {
            0..4 => drop(socket.send(&vec![7; input.below(150)])),
            4..6 => drop(socket.recv(&mut vec![0; input.below(150)])),
            6 => socket.shutdown(input.pick(&how)).unwrap(),
            7 => socket.abort(),
            8 => socket.set_flavor(input.pick(&[Flavor::FreeBsd, Flavor::OpenBsd])),
            _ => {
                socket.set_rcv_hiwat(input.below(200));
                socket.set_snd_lowat(input.below(200));
            }
        }
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.below(16) {
            0..5 => self.set(input),
            5 | 6 => self.read(input),
            7 | 8 => self.touch(input),
            9 => {
                for _ in 0..input.below(40) {
                    self.pools[0].run_one();
                }
            }
            10 => self
                .clock
                .advance(Duration::from_millis(1 << input.below(24))),
            11 => self.close(descriptor(input)),
            12 => self.dup(descriptor(input), Rights::from_bits_truncate(input.byte())),
            13 if self.peers.len() < OPEN => match input.below(3) {
                0 => self.connect(),
                1 => {
                    let (near, far) = local::connecting_pair();
                    self.hold(near, far);
                }
                _ => self.open(None),
            },
            14 if self.posed.len() < 20 => self.pose(input.pick(&STATES)),
            _ => {
                let (at, state) = (input.below(20), input.pick(&STATES));
                if let Some(posed) = self.posed.get(at) {
                    posed.pose(state);
                } else if let Some(peer) = self.peers.get_mut(at) {
                    *peer = None;
                }
            }
        }
        self.check_limits();
    }

    /// A limit is exact, and nothing else ends a splice that has reached it.
    fn check_limits(&self) {
        for (source, limit) in &self.limits {
            if let Some(end) = source.splice_end(Role::Source) {
                assert_eq!(
                    end.cause == Cause::Limit,
                    *limit > 0 && end.bytes == *limit,
                    "{end:?}"
                );
                assert!(*limit == 0 || end.bytes <= *limit);
                assert_eq!(end.bytes, source.spliced());
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input::new(input);
    let mut world = World::new();
    while !input.is_empty() {
        world.act(&mut input);
    }
    assert_eq!(world.pools[0].stats().panics, 0);
});
