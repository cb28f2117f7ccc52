//! The option as bytes, as programs of FreeBSD and OpenBSD use it: the cases of both systems' suites
//! that are about calls, all faults and all pairs of faults, and arbitrary bytes.
//!
//! Here the bench: a table, a pool without threads, a clock set by hand, and sockets in any state.

#![allow(
    clippy::unwrap_used,
    reason = "a test says by panicking what it did not expect"
)]

mod calls;
mod capsicum;
#[path = "../support/cases.rs"]
mod cases;
#[path = "../support/clock.rs"]
mod clock;
mod faults;
mod fuzz;
mod listening;
#[path = "../support/long.rs"]
mod long;
#[path = "../support/posed.rs"]
mod posed;
mod suites;

use clock::SetClock;
use posed::Posed;
use sosplice::buf::Buf;
use sosplice::error::{Errno, Flavor};
use sosplice::protocol::{SoState, SocketEnd};
use sosplice::sockopt::{self, Abi, Descriptors, Layout, Rights, SockoptError, Table};
use sosplice::splice::{Options, Role, SplicePool};
use sosplice::{Socket, local};
use std::sync::Arc;
use std::time::Duration;

pub(crate) const FREEBSD: Abi = abi(Flavor::FreeBsd, Layout::Lp64);
pub(crate) const OPENBSD: Abi = abi(Flavor::OpenBsd, Layout::Lp64);

pub(crate) const fn abi(flavor: Flavor, layout: Layout) -> Abi {
    Abi { flavor, layout }
}

/// `struct splice`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Splice {
    pub(crate) fd: i32,
    pub(crate) max: i64,
    pub(crate) idle: (i64, i64),
}

impl Splice {
    pub(crate) const fn to(fd: i32) -> Splice {
        let (max, idle) = (0, (0, 0));
        Splice { fd, max, idle }
    }

    pub(crate) const UNSPLICE: Splice = Splice::to(-1);

    /// As a C compiler lays it out.
    pub(crate) fn bytes(self, abi: Abi) -> Vec<u8> {
        let long = |bytes: &mut Vec<u8>, value: i64| match abi.layout {
            Layout::Lp64 => bytes.extend(value.to_ne_bytes()),
            Layout::Ilp32 => bytes.extend(i32::try_from(value).unwrap().to_ne_bytes()),
        };
        let mut bytes = self.fd.to_ne_bytes().to_vec();
        if abi.layout == Layout::Lp64 {
            bytes.extend([0xaa; 4]);
        }
        bytes.extend(self.max.to_ne_bytes());
        match abi.flavor {
            Flavor::FreeBsd => long(&mut bytes, self.idle.0),
            _ => bytes.extend(self.idle.0.to_ne_bytes()),
        }
        long(&mut bytes, self.idle.1);
        assert_eq!(bytes.len(), abi.size());
        bytes
    }
}

/// A process: its descriptors, and a pool driven by the test.
pub(crate) struct Process {
    pub(crate) table: Table,
    pub(crate) abi: Abi,
    pub(crate) pool: SplicePool,
    clock: Arc<SetClock>,
}

impl Process {
    pub(crate) fn new(abi: Abi) -> Process {
        let clock = SetClock::new();
        let pool = SplicePool::builder().workers(1).clock(clock.clone());
        Process {
            table: Table::new(64),
            abi,
            pool: pool.manual().build(),
            clock,
        }
    }

    /// The process's end of a new connection, and its peer.
    pub(crate) fn connect(&self) -> (i32, Socket) {
        let (near, far) = local::pair_with_hiwat(1000, 1000);
        for socket in [&near, &far] {
            socket.set_flavor(self.abi.flavor);
            socket.set_nonblocking(true);
        }
        (self.table.insert(near).unwrap(), far)
    }

    /// A socket in this state.
    pub(crate) fn posed(&self, state: SoState) -> i32 {
        self.table.insert(posed(state)).unwrap()
    }

    pub(crate) fn socket(&self, fd: i32) -> Socket {
        self.table.get(fd, Rights::empty()).unwrap()
    }

    pub(crate) fn set(&self, fd: i32, value: Option<&[u8]>) -> Result<(), SockoptError> {
        let defaults = Options::default().pool(self.pool.clone());
        sockopt::set_splice(&self.table, fd, value, self.abi, &defaults).map(drop)
    }

    /// The struct form.
    pub(crate) fn splice(&self, fd: i32, splice: Splice) -> Result<(), Errno> {
        self.errno(self.set(fd, Some(&splice.bytes(self.abi))))
    }

    pub(crate) fn errno<T>(&self, result: Result<T, SockoptError>) -> Result<T, Errno> {
        result.map_err(|error| error.errno(self.abi.flavor))
    }

    /// The counter.
    pub(crate) fn count(&self, fd: i32) -> i64 {
        let mut bytes = [0xee; 8];
        let length = sockopt::get_splice(&self.table, fd, &mut bytes, self.abi);
        assert_eq!(length, Ok(8));
        i64::from_ne_bytes(bytes)
    }

    pub(crate) fn is_source(&self, fd: i32) -> bool {
        self.socket(fd).end().is_diverted(Role::Source)
    }

    pub(crate) fn run(&self) {
        while self.pool.run_one() {}
    }

    /// Lets time pass.
    pub(crate) fn sleep(&self, millis: u64) {
        self.clock.advance(Duration::from_millis(millis));
        self.run();
    }
}

/// All that a failed call must leave alone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    sockets: Vec<Option<String>>,
    pool: String,
}

impl Process {
    pub(crate) fn trace(&self) -> Trace {
        let socket = |socket: Socket| {
            // One lock at a time.
            let is_source = socket.end().is_diverted(Role::Source);
            let is_sink = socket.end().is_diverted(Role::Sink);
            let ends = [Role::Source, Role::Sink].map(|role| socket.splice_end(role));
            let (bytes, readable) = (socket.spliced(), socket.readable_bytes());
            let (error, flavor) = (socket.end().error(), socket.flavor());
            format!("{is_source} {is_sink} {ends:?} {bytes} {readable} {error:?} {flavor:?}")
        };
        let sockets = (0..16).map(|fd| self.table.get(fd, Rights::empty()).ok().map(socket));
        Trace {
            sockets: sockets.collect(),
            pool: format!("{:?}", self.pool.stats()),
        }
    }
}

/// A socket whose protocol reports this state.
fn posed(state: SoState) -> Socket {
    let end = SocketEnd::new(1000, 1000);
    end.connected();
    Socket::new(end, Posed::new(state))
}

/// A stream, with a way to change its reported state, and three bytes to be read.
pub(crate) fn posed_stream() -> (Socket, Arc<Posed>) {
    let end = SocketEnd::new(1000, 1000);
    end.connected();
    end.append_rcv([Buf::copy_of(b"abc")]);
    let posed = Posed::new(SoState::Stream);
    (Socket::new(end, posed.clone()), posed)
}

pub(crate) fn read(socket: &Socket) -> Vec<u8> {
    let chain = socket.recv_chain(10_000);
    chain.map_or_else(|_| Vec::new(), |chain| chain.to_vec())
}
