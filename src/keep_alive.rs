//! The keep-alive setting (RFC 1122 4.2.3.6), for a stack's connections (`tcp`) and the operating
//! system's (`kernel`).

use std::time::Duration;

/// When and how often an idle connection probes its peer.
///
/// Keep-alive is off unless it is switched on for all connections of a stack
/// ([`Builder::keep_alive`](crate::stack::Builder::keep_alive)) or for one
/// ([`TcpStream::set_keep_alive`](crate::TcpStream::set_keep_alive)).
/// The default values are those of BSD: 2 hours, 75 seconds, 8 probes (RFC 1122 4.2.3.6 asks for an
/// idle time of no less than 2 hours by default).
///
/// ```
/// use sosplice::stack::KeepAlive;
/// use std::time::Duration;
/// let keep_alive = KeepAlive { idle: Duration::from_secs(60), ..KeepAlive::default() };
/// assert_eq!((keep_alive.interval.as_secs(), keep_alive.probes), (75, 8));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "RFC 1122 4.2.3.6 and every system have these three"
)]
pub struct KeepAlive {
    /// Time without a segment from the peer before the first probe.
    pub idle: Duration,
    /// Time to wait for an answer, and between probes.
    pub interval: Duration,
    /// Number of unanswered probes that end the connection.
    pub probes: u32,
}

impl Default for KeepAlive {
    fn default() -> KeepAlive {
        KeepAlive {
            idle: Duration::from_secs(2 * 3600),
            interval: Duration::from_secs(75),
            probes: 8,
        }
    }
}

impl KeepAlive {
    /// Whether no value is zero.
    pub(crate) fn is_valid(&self) -> bool {
        !self.idle.is_zero() && !self.interval.is_zero() && self.probes > 0
    }

    /// The same, with times cut so that they can be added to any time.
    pub(crate) fn clamped(self, longest: Duration) -> KeepAlive {
        KeepAlive {
            idle: self.idle.min(longest),
            interval: self.interval.min(longest),
            ..self
        }
    }
}
