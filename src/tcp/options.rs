//! Options of one connection.
//!
//! Setters store here and set [`Work::OPTIONS`](super::service::Work), so that the next service step
//! applies it; getters read from here. Atomic, except for the time limits, a leaf (5).

use super::limits::Limits;
use crate::congestion::Congestion;
use crate::ip::header::HOP_LIMIT;
use crate::keep_alive::KeepAlive;
use crate::lock::{LEAF, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// Default hop limit (RFC 1700).
const NO_LINGER: u64 = u64::MAX;

/// See the module.
#[derive(Debug)]
pub(crate) struct Options {
    nodelay: AtomicBool,
    /// As a number.
    congestion: AtomicU8,
    hop_limit: AtomicU8,
    /// In nanoseconds.
    linger: AtomicU64,
    limits: Mutex<Arc<Limits>, LEAF>,
}

impl Options {
    pub(crate) fn new(nodelay: bool, limits: Arc<Limits>) -> Options {
        Options {
            nodelay: AtomicBool::new(nodelay),
            congestion: AtomicU8::new(Congestion::default().number()),
            hop_limit: AtomicU8::new(HOP_LIMIT),
            linger: AtomicU64::new(NO_LINGER),
            limits: Mutex::new(limits),
        }
    }

    pub(crate) fn nodelay(&self) -> bool {
        self.nodelay.load(Ordering::Relaxed)
    }

    pub(crate) fn set_nodelay(&self, nodelay: bool) {
        self.nodelay.store(nodelay, Ordering::Relaxed);
    }

    pub(crate) fn congestion(&self) -> Congestion {
        Congestion::numbered(self.congestion.load(Ordering::Relaxed))
    }

    pub(crate) fn set_congestion(&self, congestion: Congestion) {
        let number = congestion.number();
        self.congestion.store(number, Ordering::Relaxed);
    }

    pub(crate) fn hop_limit(&self) -> u8 {
        self.hop_limit.load(Ordering::Relaxed)
    }

    pub(crate) fn set_hop_limit(&self, hops: u8) {
        self.hop_limit.store(hops, Ordering::Relaxed);
    }

    pub(crate) fn linger(&self) -> Option<Duration> {
        let nanos = self.linger.load(Ordering::Relaxed);
        (nanos != NO_LINGER).then(|| Duration::from_nanos(nanos))
    }

    pub(crate) fn set_linger(&self, linger: Option<Duration>) {
        let nanos = linger.map_or(NO_LINGER, |time| {
            u64::try_from(time.as_nanos()).unwrap_or(NO_LINGER)
        });
        self.linger.store(nanos, Ordering::Relaxed);
    }

    pub(crate) fn keep_alive(&self) -> Option<KeepAlive> {
        self.limits().keep_alive
    }

    pub(crate) fn set_keep_alive(&self, keep_alive: Option<KeepAlive>) {
        self.change_limits(|limits| limits.keep_alive = keep_alive);
    }

    pub(crate) fn limits(&self) -> Arc<Limits> {
        self.limits.lock().clone()
    }

    pub(crate) fn change_limits(&self, change: impl FnOnce(&mut Limits)) {
        change(Arc::make_mut(&mut self.limits.lock()));
    }
}
