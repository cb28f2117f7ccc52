//! The queue of a connection in its stack.

use std::time::Instant;

/// An armed timer: its time, and a number of its own.
pub(crate) type TimerKey = (Instant, u64);

/// The queue that a connection is pinned to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Home {
    /// The number of the queue of the link.
    pub(crate) queue: u16,
    /// The peer is in the same stack: packets go to the queue's own driver.
    pub(crate) looped: bool,
}
