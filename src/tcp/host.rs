//! What a connection needs of the stack it belongs to.

use super::conn::Conn;
use super::memory::Memory;
use super::time_wait::TimeWait;
use crate::link::Link;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A statistics counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What connections count.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Segments given to the link.
    pub(crate) sent: Counter,
    /// Packets that were sent again because the peer told of a hole, or to have it tell.
    pub(crate) repaired: Counter,
    /// Segments that the link refused for good.
    pub(crate) lost: Counter,
    /// Times that the link had no room.
    pub(crate) link_full: Counter,
    /// Segments that the guard did not accept.
    pub(crate) refused: Counter,
    /// Segments dropped because a backlog was full.
    pub(crate) backlog_full: Counter,
    /// ICMP errors that quote what is in flight.
    pub(crate) icmp_errors: Counter,
    /// Times that an ICMP error made a connection send smaller packets.
    pub(crate) mtu_lowered: Counter,
    /// ICMP errors that quote anything else.
    pub(crate) icmp_ignored: Counter,
    /// Connections reset because an invariant was broken.
    pub(crate) broken: Counter,
    /// What the connections' buffers hold.
    pub(crate) memory: Memory,
}

/// An armed timer: its time, and a number of its own.
pub(crate) type TimerKey = (Instant, u64);

/// The stack, as a connection sees it. All methods take only leaf locks (rank 5).
pub(crate) trait Host: Send + Sync {
    fn link(&self) -> &dyn Link;
    fn now(&self) -> Instant;
    fn counters(&self) -> &Counters;
    /// The connection is to be served no later than this. The former timer, if it is still there,
    /// goes.
    fn arm(&self, conn: &Arc<Conn>, at: Instant, former: Option<TimerKey>) -> TimerKey;
    /// The connection waits for room in the link.
    fn blocked(&self, conn: &Arc<Conn>);
    /// The connection has segments that its owner left to the driver.
    fn hand_over(&self, conn: &Arc<Conn>);
    /// The handshake is over.
    fn established(&self, conn: &Arc<Conn>);
    /// The last handle of a socket was closed.
    fn detached(&self);
    /// The connection is over.
    fn closed(&self, conn: &Arc<Conn>, record: Option<TimeWait>);
}
