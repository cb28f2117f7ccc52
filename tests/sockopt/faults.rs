//! The reported fault of a call: every single one, and of every possible pair the one that the system
//! checks first. The orders are data.

use crate::{Process, Splice, abi, posed_stream};
use sosplice::error::Flavor;
use sosplice::protocol::SoState;
use sosplice::sockopt::{self, Abi, DescriptorError, Layout, Rights, SockoptError};
use sosplice::splice::{Options, Role, SpliceError, SplicePool, UnspliceError};

/// One of the two descriptors of a call.
#[derive(Debug, Clone, Copy)]
struct Party {
    what: What,
    rights: Rights,
    state: SoState,
    dead: bool,
    busy: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Socket,
    File,
    Nothing,
}

/// A call, and the sockets that it meets.
#[derive(Debug, Clone, Copy)]
struct Call {
    source: Party,
    sink: Party,
    max: i64,
    idle: (i64, i64),
    unsplice: bool,
    cut: Option<usize>,
    workers: usize,
}

const GOOD: Party = Party {
    what: What::Socket,
    rights: Rights::all(),
    state: SoState::Stream,
    dead: false,
    busy: false,
};

const RIGHT: Call = Call {
    source: GOOD,
    sink: GOOD,
    max: 0,
    idle: (0, 0),
    unsplice: false,
    cut: None,
    workers: 1,
};

/// A fault, its subject (two faults of the same subject exclude each other), and the error.
struct Fault {
    name: &'static str,
    about: u32,
    make: fn(&mut Call),
    error: SockoptError,
    number: i32,
}

const SET: u32 = 1 << 0;
const RECV: u32 = 1 << 1;
const STATE: u32 = 1 << 2;
const LISTENS: u32 = 1 << 3;
const DEAD: u32 = 1 << 4;
const BUSY: u32 = 1 << 5;
const SOURCE: u32 = SET | RECV | STATE | LISTENS | DEAD | BUSY;
const SEND: u32 = 1 << 6;
const SINK_STATE: u32 = 1 << 7;
const SINK_DEAD: u32 = 1 << 8;
const SINK_BUSY: u32 = 1 << 9;
const SINK: u32 = SEND | SINK_STATE | SINK_DEAD | SINK_BUSY;
const LENGTH: u32 = 1 << 10;
const MAX: u32 = 1 << 11;
const IDLE: u32 = 1 << 12;
const POOL: u32 = 1 << 13;

/// The call's own descriptor.
const fn descriptor(error: DescriptorError) -> SockoptError {
    SockoptError::Descriptor(error)
}

const fn splice(error: SpliceError) -> SockoptError {
    SockoptError::Splice(error)
}

macro_rules! faults {
    ($($name:literal, $about:expr, $make:expr, $error:expr, $number:expr;)*) => {
        &[$(Fault {
            name: $name,
            about: $about,
            make: $make,
            error: $error,
            number: $number,
        }),*]
    };
}

use DescriptorError::{BadDescriptor, NotASocket, NotCapable};
use Role::{Sink, Source};

/// FreeBSD's order: everything about the source, then everything about the sink.
const IN_FREEBSD: &[Fault] = faults![
    "closed", SOURCE, |call| call.source.what = What::Nothing, descriptor(BadDescriptor), 9;
    "no CAP_SETSOCKOPT", SET, |call| call.source.rights -= Rights::SETSOCKOPT, descriptor(NotCapable), 93;
    "a file", STATE | LISTENS | DEAD | BUSY, |call| call.source.what = What::File, descriptor(NotASocket), 38;
    "short", LENGTH, |call| call.cut = Some(24), SockoptError::ShortOption { length: 24, needed: 32 }, 22;
    "no workers", POOL, |call| call.workers = 0, splice(SpliceError::PoolDisabled), 6;
    "unsplice a listening one", STATE | LISTENS | SINK, unsplice_listening, SockoptError::Unsplice(UnspliceError::Listening), 22;
    "unsplice, not spliced", LISTENS | BUSY | SINK, |call| call.unsplice = true, SockoptError::Unsplice(UnspliceError::NotSpliced), 57;
    "no CAP_RECV", RECV, |call| call.source.rights -= Rights::RECV, descriptor(NotCapable), 93;
    "sink: closed", SINK, |call| call.sink.what = What::Nothing, SockoptError::Sink(BadDescriptor), 9;
    "sink: no CAP_SEND", SEND, |call| call.sink.rights -= Rights::SEND, SockoptError::Sink(NotCapable), 93;
    "sink: a file", SINK_STATE | SINK_DEAD | SINK_BUSY, |call| call.sink.what = What::File, SockoptError::Sink(NotASocket), 38;
    "max", MAX, |call| call.max = -3, SockoptError::NegativeLimit(-3), 22;
    "seconds", IDLE, |call| call.idle = (-1, 0), bad_timeout(-1, 0), 22;
    "microseconds", IDLE, |call| call.idle = (1, 1_000_000), bad_timeout(1, 1_000_000), 22;
    "no stream", STATE, |call| call.source.state = SoState::NotAStream, splice(SpliceError::NotAStream(Source)), 43;
    "sink: no stream", SINK_STATE, |call| call.sink.state = SoState::NotAStream, splice(SpliceError::NotAStream(Sink)), 43;
    "listening", STATE | LISTENS, |call| call.source.state = SoState::Listening, splice(SpliceError::Listening(Source)), 22;
    "not connected", STATE | DEAD, |call| call.source.state = SoState::Unconnected, splice(SpliceError::NotConnected(Source)), 57;
    "dead", DEAD, |call| call.source.dead = true, splice(SpliceError::NotConnected(Source)), 57;
    "busy", BUSY, |call| call.source.busy = true, splice(SpliceError::Busy(Source)), 16;
    "encrypted", STATE, |call| call.source.state = SoState::Encrypted, splice(SpliceError::Encrypted(Source)), 22;
    "sink: listening", SINK_STATE, |call| call.sink.state = SoState::Listening, splice(SpliceError::Listening(Sink)), 22;
    "sink: not connected", SINK_STATE | SINK_DEAD, |call| call.sink.state = SoState::Unconnected, splice(SpliceError::NotConnected(Sink)), 57;
    "sink: dead", SINK_DEAD, |call| call.sink.dead = true, splice(SpliceError::NotConnected(Sink)), 57;
    "sink: busy", SINK_BUSY, |call| call.sink.busy = true, splice(SpliceError::Busy(Sink)), 16;
    "sink: encrypted", SINK_STATE, |call| call.sink.state = SoState::Encrypted, splice(SpliceError::Encrypted(Sink)), 22;
];

/// OpenBSD's order: each question about both.
const IN_OPENBSD: &[Fault] = faults![
    "closed", SOURCE, |call| call.source.what = What::Nothing, descriptor(BadDescriptor), 9;
    "a file", STATE | LISTENS | DEAD | BUSY, |call| call.source.what = What::File, descriptor(NotASocket), 38;
    "short", LENGTH, |call| call.cut = Some(3), SockoptError::ShortOption { length: 3, needed: 4 }, 22;
    "no stream", STATE, |call| call.source.state = SoState::NotAStream, splice(SpliceError::NotAStream(Source)), 43;
    "max", MAX, |call| call.max = -3, SockoptError::NegativeLimit(-3), 22;
    "seconds", IDLE, |call| call.idle = (-1, 0), bad_timeout(-1, 0), 22;
    "microseconds", IDLE, |call| call.idle = (1, 1_000_000), bad_timeout(1, 1_000_000), 22;
    "unsplice a listening one", STATE | LISTENS | SINK, unsplice_listening, SockoptError::Unsplice(UnspliceError::Listening), 95;
    "unsplice, not spliced", LISTENS | BUSY | SINK, |call| call.unsplice = true, SockoptError::Unsplice(UnspliceError::NotSpliced), 95;
    "no workers", POOL, |call| call.workers = 0, splice(SpliceError::PoolDisabled), 6;
    "sink: closed", SINK, |call| call.sink.what = What::Nothing, SockoptError::Sink(BadDescriptor), 9;
    "sink: a file", SINK_STATE | SINK_DEAD | SINK_BUSY, |call| call.sink.what = What::File, SockoptError::Sink(NotASocket), 38;
    "sink: no stream", SINK_STATE, |call| call.sink.state = SoState::NotAStream, splice(SpliceError::NotAStream(Sink)), 43;
    "listening", STATE | LISTENS, |call| call.source.state = SoState::Listening, splice(SpliceError::Listening(Source)), 45;
    "sink: listening", SINK_STATE, |call| call.sink.state = SoState::Listening, splice(SpliceError::Listening(Sink)), 45;
    "not connected", STATE | DEAD, |call| call.source.state = SoState::Unconnected, splice(SpliceError::NotConnected(Source)), 57;
    "dead", DEAD, |call| call.source.dead = true, splice(SpliceError::NotConnected(Source)), 57;
    "sink: not connected", SINK_STATE | SINK_DEAD, |call| call.sink.state = SoState::Unconnected, splice(SpliceError::NotConnected(Sink)), 57;
    "sink: dead", SINK_DEAD, |call| call.sink.dead = true, splice(SpliceError::NotConnected(Sink)), 57;
    "busy", BUSY, |call| call.source.busy = true, splice(SpliceError::Busy(Source)), 16;
    "sink: busy", SINK_BUSY, |call| call.sink.busy = true, splice(SpliceError::Busy(Sink)), 16;
    "encrypted", STATE, |call| call.source.state = SoState::Encrypted, splice(SpliceError::Encrypted(Source)), 22;
    "sink: encrypted", SINK_STATE, |call| call.sink.state = SoState::Encrypted, splice(SpliceError::Encrypted(Sink)), 22;
];

fn unsplice_listening(call: &mut Call) {
    call.unsplice = true;
    call.source.state = SoState::Listening;
}

const fn bad_timeout(seconds: i64, microseconds: i64) -> SockoptError {
    SockoptError::BadTimeout {
        seconds,
        microseconds,
    }
}

impl Call {
    /// Makes the sockets, and calls. A call that fails must have changed nothing.
    fn call(self, abi: Abi) -> Result<(), SockoptError> {
        let process = Process::new(abi);
        let [fd, sink] = [(self.source, Source), (self.sink, Sink)]
            .map(|(party, role)| party.open(&process, role));
        let fd_in_option = if self.unsplice { -7 } else { sink };
        let option = Splice {
            fd: fd_in_option,
            max: self.max,
            idle: self.idle,
        };
        let mut bytes = option.bytes(abi);
        bytes.truncate(self.cut.unwrap_or(bytes.len()));
        let pool = SplicePool::builder().workers(self.workers).manual().build();
        let before = process.trace();
        let defaults = in_pool(&pool);
        let set = |bytes: &[u8]| {
            sockopt::set_splice(&process.table, fd, Some(bytes), abi, &defaults).map(drop)
        };
        let result = set(&bytes);
        if result.is_err() {
            assert_eq!(process.trace(), before, "{self:?}");
            assert_eq!(pool.stats().started, 0, "{self:?}");
        }
        // Requests that fit the int form have the same result in it.
        let is_int = (self.max, self.idle, self.cut) == (0, (0, 0), None);
        if abi.flavor == Flavor::OpenBsd && is_int && result.is_err() {
            assert_eq!(set(&fd_in_option.to_ne_bytes()), result, "{self:?}");
            if self.unsplice {
                assert_eq!(set(&[]), result, "{self:?}");
            }
        }
        result
    }
}

fn in_pool(pool: &SplicePool) -> Options {
    Options::default().pool(pool.clone())
}

impl Party {
    /// A descriptor of it.
    fn open(self, process: &Process, role: Role) -> i32 {
        let whole = match self.what {
            What::Nothing => return 63,
            What::File => process.table.insert_file().unwrap(),
            What::Socket => self.socket(process, role),
        };
        process.table.dup(whole, self.rights).unwrap()
    }

    fn socket(self, process: &Process, role: Role) -> i32 {
        let (socket, posed) = posed_stream();
        if self.busy {
            let (other, _) = posed_stream();
            let [source, sink] = match role {
                Source => [&socket, &other],
                Sink => [&other, &socket],
            };
            source.splice_to(sink, in_pool(&process.pool)).unwrap();
            assert_eq!(source.spliced(), 3);
            process.table.insert(other).unwrap();
        }
        if self.dead {
            // With nothing left to read: otherwise the source would be worth a splice.
            socket.end().flush_rcv();
            socket.end().cantsendmore();
        }
        posed.pose(self.state);
        process.table.insert(socket).unwrap()
    }
}

/// Every fault, and every two.
fn check(order: &[Fault], abi: Abi, right: Call) -> usize {
    assert_eq!(right.call(abi), Ok(()));
    let mut pairs = 0;
    for (at, first) in order.iter().enumerate() {
        let mut call = right;
        (first.make)(&mut call);
        let name = first.name;
        let error = call.call(abi).unwrap_err();
        assert_eq!(error, first.error, "{name}");
        let number = error.errno(abi.flavor).number(abi.flavor);
        assert_eq!(number, first.number, "{name}");
        for second in &order[at + 1..] {
            if first.about & second.about == 0 {
                let mut both = call;
                (second.make)(&mut both);
                let error = both.call(abi).unwrap_err();
                assert_eq!(error, first.error, "{name} and {}", second.name);
                pairs += 1;
            }
        }
    }
    pairs
}

// Row: a call with several faults | looks at all of the source, then of the sink | asks each
// question of both | as the program's system, by the option; as the source's flavor, by `splice_to`
#[test]
fn of_two_faults_the_first_in_freebsds_order_counts() {
    let freebsd = abi(Flavor::FreeBsd, Layout::Lp64);
    assert!(check(IN_FREEBSD, freebsd, RIGHT) > 200);
}

#[test]
fn of_two_faults_the_first_in_openbsds_order_counts() {
    // Rights mean nothing there.
    let mut right = RIGHT;
    right.source.rights = Rights::empty();
    right.sink.rights = Rights::empty();
    for layout in [Layout::Ilp32, Layout::Lp64] {
        let openbsd = abi(Flavor::OpenBsd, layout);
        assert!(check(IN_OPENBSD, openbsd, right) > 150);
    }
}
