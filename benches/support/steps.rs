//! A clock for `valgrind`.

use sosplice::clock::{Clock, SystemClock};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A clock that advances a little at each reading: under valgrind the system's clock runs far ahead of
/// the work.
#[derive(Debug)]
pub(crate) struct Steps {
    start: Instant,
    looks: AtomicU64,
}

impl Steps {
    pub(crate) fn new() -> Steps {
        Steps {
            start: SystemClock.now(),
            looks: AtomicU64::new(0),
        }
    }
}

impl Clock for Steps {
    fn now(&self) -> Instant {
        self.start + Duration::from_nanos(100 * self.looks.fetch_add(1, Ordering::Relaxed))
    }
}
