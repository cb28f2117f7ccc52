//! Conformance: what sockets of any protocol do when they are spliced, as cases that can be run.
//!
//! Whoever writes a [`Protocol`](crate::protocol::Protocol) gives a [`Factory`] of connected pairs,
//! and [`run`] runs every case that applies to it, with every [`Dispatch`], and reports each as it ends.
//! A case panics where a socket behaves otherwise than it should; one that does not end in the time that
//! it may take is reported as stuck, and the others go on. The names are FreeBSD's
//! (`F05 splice_limit_bytes`) and OpenBSD's (`T18 args-max`) where the case is one of theirs.
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
//! A factory whose sockets live in virtual time ([`Factory::time`]) gets the cases that are about
//! time, too.

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

/// What a case wants of the sockets that it gets. A factory comes as near as its protocol can.
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

/// A connection that is still being made.
#[expect(
    clippy::exhaustive_structs,
    reason = "a factory makes it: a new field is a change for each of them"
)]
pub struct Connecting {
    /// The end that connects: bytes for it are held.
    pub socket: Socket,
    /// Lets the connection come about and returns its other end; or, if it is to be refused,
    /// refuses it.
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
    /// It stands.
    Accept,
    /// It fails with an error of the socket.
    Refuse,
}

/// Makes the sockets of one protocol.
pub trait Factory: Send + Sync {
    /// Both ends of a new connection.
    fn connect(&self, setup: Setup) -> (Socket, Socket);

    /// A connection whose handshake is held. Not all protocols have such a thing.
    fn connecting(&self) -> Option<Connecting> {
        None
    }

    /// A listening socket.
    fn listening(&self) -> Option<Socket> {
        None
    }

    /// A socket that nobody has connected yet.
    fn unconnected(&self) -> Option<Socket> {
        None
    }

    /// Whether a full connection stands still: nothing below the sockets goes on taking bytes when
    /// nobody reads. (An operating system's own buffers do.)
    fn stands_still(&self) -> bool {
        true
    }

    /// The time that the sockets live in, if it is not the system's.
    fn time(&self) -> Option<&dyn Time> {
        None
    }
}

/// Virtual time: nothing happens unless [`run`](Time::run) is called, and no time passes unless
/// [`advance`](Time::advance) is.
pub trait Time: Send + Sync {
    /// What the sockets read.
    fn clock(&self) -> Arc<dyn Clock>;

    /// Lets time pass.
    fn advance(&self, by: Duration);

    /// Does a piece of the protocol's work (receives frames, fires timers). `false` if there is
    /// nothing to do now.
    fn run(&self) -> bool;

    /// How long nothing will happen by itself.
    fn poll_at(&self) -> Option<Duration>;
}

/// How the splices of a case are to work, and how long it may take.
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
    /// Where splices move their bytes.
    pub dispatch: Dispatch,
    /// Number of workers.
    pub workers: usize,
    /// How long a case may take, in real time, before it counts as stuck.
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
    /// With the dispatch that splices have by default.
    fn default() -> Config {
        Config::of(Dispatch::default())
    }
}

/// One behaviour, and how to see it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Case {
    /// Its name, unique; begins with the number that the system's own suite gives it, if any.
    pub name: &'static str,
    /// What is looked at.
    pub behaviour: &'static str,
    /// What FreeBSD does.
    pub freebsd: &'static str,
    /// What OpenBSD does.
    pub openbsd: &'static str,
    /// What this crate does; empty if it is what both do.
    pub here: &'static str,
    /// The flavors that it is run in.
    pub flavors: &'static [Flavor],
    /// Panics if a socket behaves otherwise.
    pub run: fn(&World<'_>) -> Outcome,
}

/// Both flavors.
pub const BOTH: &[Flavor] = &[Flavor::FreeBsd, Flavor::OpenBsd];
/// For what only the FreeBSD flavor does.
pub const FREEBSD: &[Flavor] = &[Flavor::FreeBsd];
/// For what only the OpenBSD flavor does.
pub const OPENBSD: &[Flavor] = &[Flavor::OpenBsd];

/// How a case has ended that did not panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
#[expect(
    clippy::exhaustive_enums,
    reason = "a case that returns passes or does not apply"
)]
pub enum Outcome {
    /// The sockets behave as they should.
    Passed,
    /// It does not apply to this factory, because it lacks this.
    NotApplicable(&'static str),
}

impl Case {
    /// Runs it in one flavor, in a thread of its own.
    ///
    /// # Panics
    /// If a socket behaves otherwise than it should, or the case is stuck; the message says what was
    /// expected.
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
