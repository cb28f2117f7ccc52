//! Keep-alive (RFC 1122 4.2.3.6): when an idle connection asks whether its peer is still there.
//!
//! The engine's own keep-alive is not used: it sends a byte that the peer has had already. A probe
//! of ours is an empty ACK one sequence number below SND.NXT, which every peer answers. When none of
//! them is answered the connection ends with `TimedOut`, after `idle + probes * interval`.
//!
//! Nothing here reads a clock or sends: [`Vigil`] says what is due, the service step
//! ([`tcb`](super::tcb)) does it.

use std::time::{Duration, Instant};

/// When an idle connection asks whether its peer is still there, and how often.
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
pub struct KeepAlive {
    /// How long nothing is heard of the peer before the first probe.
    pub idle: Duration,
    /// How long an answer may take, and the time between probes.
    pub interval: Duration,
    /// So many unanswered probes end the connection.
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
    /// Whether nothing of it is zero.
    pub(crate) fn is_valid(&self) -> bool {
        !self.idle.is_zero() && !self.interval.is_zero() && self.probes > 0
    }

    /// The same with times that can be added to any other.
    pub(crate) fn clamped(self, longest: Duration) -> KeepAlive {
        KeepAlive {
            idle: self.idle.min(longest),
            interval: self.interval.min(longest),
            ..self
        }
    }
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Probe,
    /// No probe was answered.
    Dead,
}

/// The watch over one connection.
#[derive(Debug)]
pub(crate) struct Vigil {
    setting: Option<KeepAlive>,
    /// When the peer was last heard, or the latest probe was sent since.
    from: Instant,
    /// Probes since the peer was last heard.
    sent: u32,
}

impl Vigil {
    pub(crate) fn new(now: Instant) -> Vigil {
        Vigil {
            setting: None,
            from: now,
            sent: 0,
        }
    }

    /// Takes a new setting; the time of idleness begins anew.
    pub(crate) fn set(&mut self, setting: Option<KeepAlive>, now: Instant) {
        if self.setting != setting {
            self.setting = setting;
            self.heard(now);
        }
    }

    /// The peer is there.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.from = now;
        self.sent = 0;
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let setting = self.setting?;
        let pause = match self.sent {
            0 => setting.idle,
            _ => setting.interval,
        };
        Some(self.from + pause)
    }

    /// What is due now, if anything. A probe must then be sent.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Due> {
        if self.deadline()? > now {
            return None;
        }
        if self.sent >= self.setting?.probes {
            return Some(Due::Dead);
        }
        self.from = now;
        self.sent += 1;
        Some(Due::Probe)
    }
}
