//! Keep-alive (RFC 1122 4.2.3.6): when an idle connection probes its peer.
//!
//! A probe is an empty ACK one sequence number below SND.NXT, which every peer answers. When none of
//! them is answered the connection ends with `TimedOut`, after `idle + probes * interval`.
//!
//! Nothing here reads a clock or sends: [`KeepAliveTimer`] returns the due action, the control block
//! executes it.

use crate::keep_alive::KeepAlive;
use crate::tcp::block::time::Instant;

/// The due action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Probe,
    /// No probe was answered.
    Dead,
}

/// The keep-alive state of one connection.
#[derive(Debug)]
pub(crate) struct KeepAliveTimer {
    /// When the last segment was received, or the latest probe was sent since.
    since: Instant,
    /// Probes since the last received segment.
    sent: u32,
}

impl KeepAliveTimer {
    pub(crate) fn new(now: Instant) -> KeepAliveTimer {
        KeepAliveTimer {
            since: now,
            sent: 0,
        }
    }

    /// A segment was received.
    pub(crate) fn received(&mut self, now: Instant) {
        self.since = now;
        self.sent = 0;
    }

    /// A probe was sent and not answered yet.
    pub(crate) fn has_probed(&self) -> bool {
        self.sent > 0
    }

    /// When an action is due, with this setting.
    pub(crate) fn deadline(&self, setting: Option<KeepAlive>) -> Option<Instant> {
        let setting = setting?;
        let pause = match self.sent {
            0 => setting.idle,
            _ => setting.interval,
        };
        Some(self.since + pause)
    }

    /// The action that is due now, if any. The caller must send a due probe.
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
