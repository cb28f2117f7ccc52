//! Options set before the connection exists.

use super::options::Options;
use crate::congestion::Congestion;
use crate::keep_alive::KeepAlive;
use std::time::Duration;

/// `None` stands for the stack's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Preset {
    pub(crate) nodelay: Option<bool>,
    pub(crate) congestion: Option<Congestion>,
    pub(crate) hop_limit: Option<u8>,
    pub(crate) linger: Option<Duration>,
    pub(crate) keep_alive: Option<Option<KeepAlive>>,
    pub(crate) user_timeout: Option<Duration>,
    pub(crate) half_closed_timeout: Option<Option<Duration>>,
    pub(crate) fin_wait_timeout: Option<Duration>,
}

impl Preset {
    /// Nothing is set.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Preset::default()
    }

    /// For a connection that no other thread can reach yet. [`Work::OPTIONS`](super::service::Work)
    /// must follow.
    pub(crate) fn apply(&self, options: &Options) {
        if let Some(nodelay) = self.nodelay {
            options.set_nodelay(nodelay);
        }
        if let Some(congestion) = self.congestion {
            options.set_congestion(congestion);
        }
        if let Some(hops) = self.hop_limit {
            options.set_hop_limit(hops);
        }
        options.set_linger(self.linger);
        if let Some(keep_alive) = self.keep_alive {
            options.set_keep_alive(keep_alive);
        }
        if let Some(time) = self.user_timeout {
            options.change_limits(|limits| limits.user = time);
        }
        if let Some(time) = self.half_closed_timeout {
            options.change_limits(|limits| limits.half_closed = time);
        }
        if let Some(time) = self.fin_wait_timeout {
            options.change_limits(|limits| limits.fin_wait = time);
        }
    }
}
