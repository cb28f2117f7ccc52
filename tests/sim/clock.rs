//! Virtual time: it stands still until the world lets it jump.

use sosplice::clock::Clock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Nanoseconds since the run began.
#[derive(Debug)]
pub(crate) struct SimClock {
    start: Instant,
    nanos: AtomicU64,
}

impl SimClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "any moment will do to count from"
    )]
    pub(crate) fn new() -> SimClock {
        SimClock {
            start: Instant::now(),
            nanos: AtomicU64::new(0),
        }
    }

    pub(crate) fn start(&self) -> Instant {
        self.start
    }

    pub(crate) fn since_start(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }

    pub(crate) fn time(&self) -> Instant {
        self.start + self.since_start()
    }

    /// Time never goes back.
    pub(crate) fn jump(&self, to: Instant) {
        let nanos = u64::try_from((to - self.start).as_nanos()).unwrap();
        self.nanos.fetch_max(nanos, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Instant {
        self.time()
    }
}
