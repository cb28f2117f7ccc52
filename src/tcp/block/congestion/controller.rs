//! The interface of a congestion control.

use crate::tcp::block::time::Instant;
use std::time::Duration;

/// An acknowledgement in congestion avoidance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Growth {
    /// cwnd, in bytes.
    pub(crate) window: u64,
    /// Bytes that were delivered (byte counting, RFC 3465).
    pub(crate) delivered: u64,
    pub(crate) mss: u64,
    pub(crate) rtt: Duration,
    pub(crate) now: Instant,
}

/// A congestion control beyond slow start. All sizes are in bytes.
pub(crate) trait Controller {
    /// Congestion avoidance: the window after an acknowledgement.
    fn avoid(&mut self, growth: &Growth) -> u64;

    /// ssthresh after a loss.
    fn reduce(&mut self, window: u64, mss: u64) -> u64;

    /// Restarts growth, when slow start has ended without a loss, or after idle time.
    fn restart(&mut self);
}
