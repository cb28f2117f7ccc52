//! Events for whoever subscribes to them: what becomes of stacks, listeners, connections and splices.
//!
//! Subscribers are foreign code: they may do anything with our sockets, and may panic. So an event is
//! told with no lock held, behind what it tells of, and, if user code has brought it about, when that has
//! returned (`callbacks`); builds with debug assertions check the first also when nobody subscribes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Tells an event: a level of `tracing`, the target behind `sosplice::`, fields, and what happened. The
/// fields' values are moved: they may have to wait.
macro_rules! report {
    ($level:ident, $target:literal, $($what:tt)+) => {{
        $crate::callbacks::call($crate::callbacks::Once::new(move || {
            ::tracing::$level!(target: concat!("sosplice::", $target), $($what)+);
        }));
    }};
}
pub(crate) use report;

/// What may happen with every segment, and is told once a second at most.
#[derive(Debug)]
pub(crate) struct RateLimited {
    epoch: Instant,
    /// Seconds from the epoch to when it may be told again.
    next: AtomicU64,
}

impl RateLimited {
    pub(crate) fn new(epoch: Instant) -> RateLimited {
        RateLimited {
            epoch,
            next: AtomicU64::new(0),
        }
    }

    /// Whether it is to be told now.
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
