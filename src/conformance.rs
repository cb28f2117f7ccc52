//! Conformance: a suite of cases for spliced sockets of any protocol.
//!
//! The author of a [`Protocol`](crate::protocol::Protocol) implements a [`Factory`] of connected pairs;
//! [`run`] runs every case that applies to it, with every [`Dispatch`], and reports each as it ends. A
//! case panics if a socket does not behave as specified; one that does not end within its time limit is
//! reported as stuck, and the others continue. The names are FreeBSD's (`F05 splice_limit_bytes`) and
//! OpenBSD's (`T18 args-max`) for cases of their suites.
//!
//! ```
//! use sosplice::{Socket, conformance::{self, Config, Factory, Setup}, local};
//! use std::sync::Arc;
//!
//! struct InMemory;
//! impl Factory for InMemory {
//!     fn connect(&self, setup: Setup) -> (Socket, Socket) {
//!         local::pair_with_hiwat(setup.rcv_hiwat, setup.snd_hiwat)
//!     }
//! }
//!
//! let only = |case: &conformance::Case| case.name.starts_with("F01");
//! let report = conformance::run(Arc::new(InMemory), Config::ALL, only, |ended| println!("{ended}"));
//! report.assert_passed();
//! ```
//!
//! Cases about time run only for a factory with virtual time ([`Factory::time`]).

mod ends;
mod extras;
mod flow;
mod freebsd;
mod limits;
mod openbsd;
mod proxy;
mod run;
mod shape;
mod users;
mod world;

pub use run::{CaseEnd, Failure, Report, run};
pub use world::World;

use crate::clock::Clock;
use crate::error::Flavor;
use crate::socket::Socket;
use crate::splice::Dispatch;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The buffer sizes that a case requests. A factory comes as close as its protocol can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setup {
    /// High-water mark of `so_rcv` in bytes.
    pub rcv_hiwat: usize,
    /// High-water mark of `so_snd` in bytes.
    pub snd_hiwat: usize,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            rcv_hiwat: crate::sockbuf::DEFAULT_HIWAT,
            snd_hiwat: crate::sockbuf::DEFAULT_HIWAT,
        }
    }
}

/// A connection whose handshake is held.
#[expect(
    clippy::exhaustive_structs,
    reason = "a factory makes it: a new field is a change for each of them"
)]
pub struct Connecting {
    /// The end that connects: bytes for it are held.
    pub socket: Socket,
    /// Completes the connection and returns its other end; or refuses it.
    pub complete: Box<dyn FnOnce(Verdict) -> Option<Socket> + Send>,
}

impl fmt::Debug for Connecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connecting")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

/// How a [`Connecting`] is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a connection is established or refused"
)]
pub enum Verdict {
    /// It is established.
    Accept,
    /// It fails with an error of the socket.
    Refuse,
}

/// Makes the sockets of one protocol.
pub trait Factory: Send + Sync {
    /// Both ends of a new connection.
    fn connect(&self, setup: Setup) -> (Socket, Socket);

    /// A connection whose handshake is held. `None` if the protocol has none.
    fn connecting(&self) -> Option<Connecting> {
        None
    }

    /// A listening socket.
    fn listening(&self) -> Option<Socket> {
        None
    }

    /// A socket that is not connected yet.
    fn unconnected(&self) -> Option<Socket> {
        None
    }

    /// Whether a full connection takes no more bytes while its reader does not read. (An operating
    /// system's own buffers do.)
    fn stands_still(&self) -> bool {
        true
    }

    /// Whether a socket learns that its peer has aborted, as [`SoError::ConnectionReset`](crate::error::SoError).
    /// (A unix socket's end is an end of file.)
    fn resets(&self) -> bool {
        true
    }

    /// The virtual time of the sockets, if there is one.
    fn time(&self) -> Option<&dyn Time> {
        None
    }
}

/// Virtual time: protocols work only in [`run`](Time::run), and time passes only in
/// [`advance`](Time::advance).
pub trait Time: Send + Sync {
    /// The clock of the sockets.
    fn clock(&self) -> Arc<dyn Clock>;

    /// Advances time.
    fn advance(&self, by: Duration);

    /// Does a piece of the protocol's work (receives frames, fires timers). `false` if there is no work
    /// now.
    fn run(&self) -> bool;

    /// Time until the next deadline of the protocol.
    fn poll_at(&self) -> Option<Duration>;
}

/// The configuration of a case: its splices, and its time limit.
///
/// ```
/// use sosplice::conformance::Config;
/// use std::time::Duration;
/// let patient = Config::ALL.map(|config| config.time_limit(Duration::from_secs(600)));
/// assert!(patient.iter().any(|config| config.dispatch == Config::default().dispatch));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// The thread in which splices move their bytes.
    pub dispatch: Dispatch,
    /// Number of workers.
    pub workers: usize,
    /// Time limit of a case, in real time, after which it counts as stuck.
    pub time_limit: Duration,
}

impl Config {
    /// Sets [`dispatch`](field@Self::dispatch).
    #[must_use]
    pub const fn dispatch(mut self, dispatch: Dispatch) -> Config {
        self.dispatch = dispatch;
        self
    }

    /// Sets [`workers`](field@Self::workers).
    #[must_use]
    pub const fn workers(mut self, workers: usize) -> Config {
        self.workers = workers;
        self
    }

    /// Sets [`time_limit`](field@Self::time_limit).
    #[must_use]
    pub const fn time_limit(mut self, limit: Duration) -> Config {
        self.time_limit = limit;
        self
    }

    /// Every dispatch, the default one first; two workers, and a minute for each case.
    pub const ALL: [Config; 3] = [
        Config::of(Dispatch::Adaptive),
        Config::of(Dispatch::Worker),
        Config::of(Dispatch::Direct),
    ];

    const fn of(dispatch: Dispatch) -> Config {
        Config {
            dispatch,
            workers: 2,
            time_limit: Duration::from_secs(60),
        }
    }
}

impl Default for Config {
    /// With the default dispatch of splices.
    fn default() -> Config {
        Config::of(Dispatch::default())
    }
}

/// A behaviour, and its test.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Case {
    /// Its name, unique; begins with its number in the system's own suite, if any.
    pub name: &'static str,
    /// The tested behaviour.
    pub behaviour: &'static str,
    /// What FreeBSD does.
    pub freebsd: &'static str,
    /// What OpenBSD does.
    pub openbsd: &'static str,
    /// What this crate does; empty if it does the same as both.
    pub here: &'static str,
    /// The flavors that it is run in.
    pub flavors: &'static [Flavor],
    /// Panics if a socket does not behave as specified.
    pub run: fn(&World<'_>) -> Outcome,
}

/// Both flavors.
pub const BOTH: &[Flavor] = &[Flavor::FreeBsd, Flavor::OpenBsd];
/// Only the FreeBSD flavor.
pub const FREEBSD: &[Flavor] = &[Flavor::FreeBsd];
/// Only the OpenBSD flavor.
pub const OPENBSD: &[Flavor] = &[Flavor::OpenBsd];

/// The result of a case that did not panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
#[expect(
    clippy::exhaustive_enums,
    reason = "a case that returns passes or does not apply"
)]
pub enum Outcome {
    /// The sockets behave as specified.
    Passed,
    /// It does not apply to this factory, because it lacks this.
    NotApplicable(&'static str),
}

/// Of a factory that has none.
const RESETS: Outcome = Outcome::NotApplicable("resets");

impl Case {
    /// Runs it in one flavor, in a thread of its own.
    ///
    /// # Panics
    /// If a socket does not behave as specified, or the case is stuck; the message has the expectation.
    #[track_caller]
    pub fn run(&self, factory: &Arc<dyn Factory>, config: Config, flavor: Flavor) -> Outcome {
        let end = run::attempt(self, factory, config, flavor);
        match end.result {
            Ok(outcome) => outcome,
            Err(_) => panic!("{end}"),
        }
    }
}

/// All cases.
///
/// ```
/// assert!(sosplice::conformance::cases().any(|case| case.name == "F05 splice_limit_bytes"));
/// ```
pub fn cases() -> impl Iterator<Item = &'static Case> {
    let theirs = freebsd::CASES.iter().chain(openbsd::CASES);
    let rows = ends::CASES.iter().chain(flow::CASES).chain(limits::CASES);
    let rows = rows.chain(users::CASES).chain(shape::CASES);
    theirs.chain(rows).chain(extras::CASES)
}
