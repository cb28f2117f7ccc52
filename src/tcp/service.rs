//! Inputs and results of a service step.

use super::block::path_mtu::Finding;
use super::block::time::Instant;
use super::counters::{Counters, Sent};
use super::memory::Memory;
use super::options::Options;
use super::state::TcpState;
use super::time_wait::TimeWait;
use crate::error::SoError;
use crate::link::Link;
use crate::protocol::SocketEnd;

/// The environment of a service step.
pub(crate) struct Env<'a> {
    pub(crate) now: Instant,
    pub(crate) link: &'a dyn Link,
    pub(crate) end: &'a SocketEnd,
    pub(crate) counters: &'a Counters,
    pub(crate) memory: &'a Memory,
    pub(crate) sent: Sent<'a>,
    pub(crate) options: &'a Options,
}

/// Requests of the program and the driver to a connection, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Work(pub(crate) u16);

impl Work {
    /// A full service step: a timer is due, the link has room, or another reason.
    pub(crate) const SERVE: Work = Work(1);
    /// The reader sleeps: withheld window updates must go out.
    pub(crate) const IDLE: Work = Work(2);
    pub(crate) const ABORT: Work = Work(4);
    pub(crate) const DETACH: Work = Work(8);
    /// An option was set.
    pub(crate) const OPTIONS: Work = Work(16);
    /// The link is gone.
    pub(crate) const NETWORK_DOWN: Work = Work(32);
    /// A driver of the stack was dropped.
    pub(crate) const DRIVER_DROPPED: Work = Work(64);
    /// The address was removed.
    pub(crate) const ADDRESS_REMOVED: Work = Work(128);
    /// `so_snd` has more bytes or was closed.
    pub(crate) const WRITTEN: Work = Work(256);
    /// Bytes of `so_rcv` were taken.
    pub(crate) const READ: Work = Work(512);
    /// The rest of the service step for segments that were processed before.
    pub(crate) const REST: Work = Work(1024);
    /// Requests that concern at most one of the buffers.
    const DATA: Work = Work(Work::IDLE.0 | Work::WRITTEN.0 | Work::READ.0 | Work::REST.0);

    /// Requests that end a connection from below, with its error.
    pub(crate) const FROM_BELOW: [(Work, SoError); 3] = [
        (Work::NETWORK_DOWN, SoError::NetworkDown),
        (Work::DRIVER_DROPPED, SoError::DriverDropped),
        (Work::ADDRESS_REMOVED, SoError::AddressRemoved),
    ];

    pub(crate) fn has(self, other: Work) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) fn add(&mut self, other: Work) {
        self.0 |= other.0;
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether a full service step is requested.
    pub(crate) fn is_everything(self) -> bool {
        self.0 & !Work::DATA.0 != 0
    }
}

/// How a connection ended.
#[derive(Debug)]
pub(crate) enum Done {
    /// Nothing remains.
    Closed(Ending),
    /// A record remains.
    TimeWait(TimeWait),
}

/// Why a connection without a TIME-WAIT record has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    /// The state before.
    pub(super) before: TcpState,
    /// Its `so_error`.
    pub(super) error: Option<SoError>,
}

impl Ending {
    /// Its `so_error`.
    pub(crate) fn error(self) -> Option<SoError> {
        self.error
    }

    /// It was never established (RFC 4022, tcpAttemptFails).
    pub(crate) fn failed(self) -> bool {
        matches!(
            self.before,
            TcpState::Listen | TcpState::SynSent | TcpState::SynReceived
        )
    }

    /// It was established, and not closed on this side (RFC 4022, tcpEstabResets).
    pub(crate) fn reset(self) -> bool {
        matches!(self.before, TcpState::Established | TcpState::CloseWait)
    }
}

/// The part of the service step that was done during a batch.
#[derive(Debug)]
pub(crate) enum Absorbed {
    /// None: a service step must follow at once.
    Nothing,
    /// The urgent part. The rest of the service step can wait until the end of the batch.
    Part,
    /// All of it; only this deadline remains.
    Whole(Option<Instant>),
}

/// The results of a service step.
#[derive(Debug, Default)]
pub(crate) struct Served {
    /// When to serve again at the latest.
    pub(crate) next: Option<Instant>,
    /// The link was full: serve again when it is not.
    pub(crate) link_full: bool,
    /// The connection was established in this step.
    pub(crate) established: bool,
    /// A finding about the path MTU.
    pub(crate) path: Option<Finding>,
    pub(crate) done: Option<Done>,
}
