//! Virtual time: it changes only when a test sets it.

#![allow(dead_code, reason = "not every test asks everything of it")]

use sosplice::clock::{Clock, system};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A clock set by hand. Never decreases.
#[derive(Debug)]
pub(crate) struct SetClock {
    start: Instant,
    nanos: AtomicU64,
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl SetClock {
    pub(crate) fn new() -> Arc<SetClock> {
        Arc::new(SetClock {
            start: system().now(),
            nanos: AtomicU64::new(0),
        })
    }

    pub(crate) fn start(&self) -> Instant {
        self.start
    }

    /// Since the start.
    pub(crate) fn passed(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::SeqCst))
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.nanos.fetch_add(nanos(by), Ordering::SeqCst);
    }

    pub(crate) fn jump(&self, to: Instant) {
        self.nanos
            .fetch_max(nanos(to - self.start), Ordering::SeqCst);
    }
}

impl Clock for SetClock {
    fn now(&self) -> Instant {
        self.start + self.passed()
    }
}
