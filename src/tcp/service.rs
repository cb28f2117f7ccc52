//! What a service step works with, what it is asked to do, and what it leaves to be done by others.

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

/// What a service step works with.
pub(crate) struct Env<'a> {
    pub(crate) now: Instant,
    pub(crate) link: &'a dyn Link,
    pub(crate) end: &'a SocketEnd,
    pub(crate) counters: &'a Counters,
    pub(crate) memory: &'a Memory,
    pub(crate) sent: Sent<'a>,
    pub(crate) options: &'a Options,
}

/// What the users and the driver want of a connection, as bits that add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Work(pub(crate) u16);

impl Work {
    /// A timer is due, the link has room, or whatever else is to be looked at.
    pub(crate) const SERVE: Work = Work(1);
    /// The reader sleeps: withheld window updates must go out.
    pub(crate) const IDLE: Work = Work(2);
    pub(crate) const ABORT: Work = Work(4);
    pub(crate) const DETACH: Work = Work(8);
    /// The user has set something.
    pub(crate) const OPTIONS: Work = Work(16);
    /// The link is gone.
    pub(crate) const NETWORK_DOWN: Work = Work(32);
    /// A driver of the stack is.
    pub(crate) const DRIVER_DROPPED: Work = Work(64);
    /// The address is.
    pub(crate) const ADDRESS_REMOVED: Work = Work(128);
    /// `so_snd` has more bytes or was closed.
    pub(crate) const WRITTEN: Work = Work(256);
    /// Bytes of `so_rcv` were taken.
    pub(crate) const READ: Work = Work(512);
    /// What follows from segments that were taken before: the rest of their service step.
    pub(crate) const REST: Work = Work(1024);
    /// What concerns no more than one of the buffers, or none.
    const DATA: Work = Work(Work::IDLE.0 | Work::WRITTEN.0 | Work::READ.0 | Work::REST.0);

    /// What ends a connection from below, and the error that it ends with.
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

    /// Whether more is to be looked at than what the bits say.
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

/// Why a connection of which nothing remains has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    /// The state before.
    pub(super) before: TcpState,
    /// What `so_error` says.
    pub(super) error: Option<SoError>,
}

impl Ending {
    /// What `so_error` says.
    pub(crate) fn error(self) -> Option<SoError> {
        self.error
    }

    /// It never stood (RFC 4022, tcpAttemptFails).
    pub(crate) fn failed(self) -> bool {
        matches!(
            self.before,
            TcpState::Listen | TcpState::SynSent | TcpState::SynReceived
        )
    }

    /// It stood, and nobody has closed it on this side (RFC 4022, tcpEstabResets).
    pub(crate) fn reset(self) -> bool {
        matches!(self.before, TcpState::Established | TcpState::CloseWait)
    }
}

/// What was done with segments amid a batch.
#[derive(Debug)]
pub(crate) enum Absorbed {
    /// Nothing: a service step is to follow at once.
    Nothing,
    /// What others wait for. The rest of the service step can wait until the end of the batch.
    Part,
    /// Everything: nothing follows but this deadline.
    Whole(Option<Instant>),
}

/// What a service step left to be done by others.
#[derive(Debug, Default)]
pub(crate) struct Served {
    /// When to serve again at the latest.
    pub(crate) next: Option<Instant>,
    /// The link was full: serve again when it is not.
    pub(crate) link_full: bool,
    /// The handshake is over; said once.
    pub(crate) established: bool,
    /// What was found out about the path to the peer.
    pub(crate) path: Option<Finding>,
    pub(crate) done: Option<Done>,
}
