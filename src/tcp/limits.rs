//! Time limits of a connection that can be set, and their defaults.
//!
//! A stack has one set of them, which its connections share; a connection whose limits are changed in
//! its [`options`](super::options) has its own. The control block's [`watch`](super::block::watch)
//! applies them. Nothing here reads a clock.

use crate::keep_alive::KeepAlive;
use std::time::Duration;

/// The first retransmission timeout of a SYN and the largest; it is doubled in between
/// (RFC 6298 2.1, 2.5, 5.5).
const FIRST: Duration = Duration::from_secs(1);
const LARGEST: Duration = Duration::from_secs(60);

/// Time limits of a connection. The documentation of the module `stack` has a table of them.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// SYN-SENT and SYN-RECEIVED.
    pub(crate) connect: Duration,
    /// Retransmissions of a SYN.
    pub(crate) syn_retries: Option<u32>,
    /// SYN-RECEIVED: it holds a place in the backlog.
    pub(crate) half_open: Duration,
    /// Retransmissions of a SYN|ACK.
    pub(crate) syn_ack_retries: Option<u32>,
    /// Unacknowledged data without any segment from the peer.
    pub(crate) user: Duration,
    /// Unacknowledged data without progress, even if the peer answers.
    pub(crate) stall: Option<Duration>,
    /// Half-closed without progress in the open direction.
    pub(crate) half_closed: Option<Duration>,
    /// FIN-WAIT-2 without a handle.
    pub(crate) fin_wait: Duration,
    /// Keep-alive probes of an idle connection.
    pub(crate) keep_alive: Option<KeepAlive>,
    /// Idle time before the memory of the queues is released.
    pub(crate) rest: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connect: Duration::from_secs(75),
            syn_retries: None,
            half_open: Duration::from_secs(20),
            syn_ack_retries: None,
            user: Duration::from_secs(300),
            stall: None,
            half_closed: None,
            fin_wait: Duration::from_secs(60),
            keep_alive: None,
            rest: Some(Duration::from_secs(5)),
        }
    }
}

impl Limits {
    /// How long an attempt to connect may take.
    pub(crate) fn syn_sent(&self) -> Duration {
        self.connect.min(patience(self.syn_retries))
    }

    /// How long routers must report that the peer is unreachable before an attempt to connect fails:
    /// until the SYN has been retransmitted four times (BSD's `tcp_notify`).
    pub(crate) fn soft_error_time() -> Duration {
        patience(Some(3))
    }

    /// How long a handshake that the peer began may take.
    pub(crate) fn syn_received(&self) -> Duration {
        let retries = patience(self.syn_ack_retries);
        self.connect.min(self.half_open).min(retries)
    }

    /// The name of the setter of the first limit that is zero.
    pub(crate) fn zero(&self) -> Option<&'static str> {
        let all = [
            ("connect_timeout", Some(self.connect)),
            ("half_open_timeout", Some(self.half_open)),
            ("user_timeout", Some(self.user)),
            ("stall_timeout", self.stall),
            ("half_closed_timeout", self.half_closed),
            ("fin_wait_timeout", Some(self.fin_wait)),
        ];
        let zero = all
            .iter()
            .find(|(_, time)| time.is_some_and(|time| time.is_zero()));
        zero.map(|(name, _)| *name)
    }
}

/// The time from the first transmission to when retransmission number `retries` + 1 would be due. A
/// time and not a count, as in Linux (`retransmits_timed_out`): counting the retransmissions of a slow
/// driver would wait longer than configured.
fn patience(retries: Option<u32>) -> Duration {
    let Some(retries) = retries else {
        return Duration::MAX;
    };
    // 1, 2, 4, 8, 16, 32 seconds, and then 60 each.
    let doubled = retries.min(5);
    FIRST * ((2 << doubled) - 1) + LARGEST * (retries - doubled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_retries() {
        let table = [
            (0, 1),
            (1, 3),
            (3, 15),
            (5, 63),
            (6, 123),
            (7, 183),
            (u32::MAX, 63 + 60 * (u64::from(u32::MAX) - 5)),
        ];
        for (retries, seconds) in table {
            assert_eq!(patience(Some(retries)).as_secs(), seconds, "{retries}");
        }
        assert_eq!(patience(None), Duration::MAX);
    }
}
