//! Where a connection belongs in its stack.

use std::time::Instant;

/// An armed timer: its time, and a number of its own.
pub(crate) type TimerKey = (Instant, u64);

/// Where a connection belongs for life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Home {
    /// Which queue of the host's link.
    pub(crate) queue: u16,
    /// The peer is on the same host: what is transmitted goes to the queue's own driver.
    pub(crate) looped: bool,
}
