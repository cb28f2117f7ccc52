//! Events of `tracing` about the life cycles of stacks, listeners, connections and splices.
//!
//! Subscribers are foreign code: they may call any function of this crate, and may panic. So an event
//! is reported with no lock held, after the change that it describes, and, if a callback has caused it,
//! after that has returned (`callbacks`). Builds with debug assertions check the locks also without a
//! subscriber.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Reports an event: a level of `tracing`, the target after `sosplice::`, fields, and a message. The
/// fields' values are moved, since the event may be deferred.
macro_rules! report {
    ($level:ident, $target:literal, $($what:tt)+) => {{
        $crate::callbacks::call($crate::callbacks::Once::new(move || {
            ::tracing::$level!(target: concat!("sosplice::", $target), $($what)+);
        }));
    }};
}
pub(crate) use report;

/// A rate limit of one a second, for events that could occur with every segment.
#[derive(Debug)]
pub(crate) struct RateLimited {
    epoch: Instant,
    /// When the next event may be reported, in seconds from the epoch.
    next: AtomicU64,
}

impl RateLimited {
    pub(crate) fn new(epoch: Instant) -> RateLimited {
        RateLimited {
            epoch,
            next: AtomicU64::new(0),
        }
    }

    /// Whether to report an event now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let second = now.saturating_duration_since(self.epoch).as_secs();
        let next = self.next.load(Ordering::Relaxed);
        let relaxed = Ordering::Relaxed;
        second >= next
            && self
                .next
                .compare_exchange(next, second + 1, relaxed, relaxed)
                .is_ok()
    }
}

/// As a number of seconds, for events.
pub(crate) fn seconds(time: Option<Duration>) -> Option<f64> {
    time.map(|time| time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    #[test]
    fn once_a_second() {
        let epoch = SystemClock.now();
        let seldom = RateLimited::new(epoch);
        let millis = [0, 1, 999, 1000, 1999, 5500, 5999, 6000];
        let due = millis.map(|at| seldom.is_due(epoch + Duration::from_millis(at)));
        let expected = [true, false, false, true, false, true, false, true];
        assert_eq!(due, expected);
    }
}
