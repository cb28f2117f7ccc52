//! Keep-alive (RFC 1122 4.2.3.6): when an idle connection asks whether its peer is still there.
//!
//! A probe is an empty ACK one sequence number below SND.NXT, which every peer answers. When none of
//! them is answered the connection ends with `TimedOut`, after `idle + probes * interval`.
//!
//! Nothing here reads a clock or sends: [`KeepAliveTimer`] says what is due, the control block does it.

use crate::keep_alive::KeepAlive;
use crate::tcp::block::time::Instant;

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Probe,
    /// No probe was answered.
    Dead,
}

/// The watch over one connection.
#[derive(Debug)]
pub(crate) struct KeepAliveTimer {
    /// When the peer was last heard, or the latest probe was sent since.
    since: Instant,
    /// Probes since the peer was last heard.
    sent: u32,
}

impl KeepAliveTimer {
    pub(crate) fn new(now: Instant) -> KeepAliveTimer {
        KeepAliveTimer {
            since: now,
            sent: 0,
        }
    }

    /// The peer is there.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.since = now;
        self.sent = 0;
    }

    /// It has been asked whether it is, and has not answered.
    pub(crate) fn has_asked(&self) -> bool {
        self.sent > 0
    }

    /// When something is due, with this setting.
    pub(crate) fn deadline(&self, setting: Option<KeepAlive>) -> Option<Instant> {
        let setting = setting?;
        let pause = match self.sent {
            0 => setting.idle,
            _ => setting.interval,
        };
        Some(self.since + pause)
    }

    /// What is due now, if anything. A probe must then be sent.
    pub(crate) fn due(&mut self, setting: Option<KeepAlive>, now: Instant) -> Option<Due> {
        if self.deadline(setting)? > now {
            return None;
        }
        if self.sent >= setting?.probes {
            return Some(Due::Dead);
        }
        self.since = now;
        self.sent += 1;
        Some(Due::Probe)
    }
}
