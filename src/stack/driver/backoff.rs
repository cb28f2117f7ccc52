//! Back-off for a link that returns only errors, so that the driver does not spin on a failing device.

use std::time::{Duration, Instant};

/// The first pause; each further one is twice as long.
const FIRST: Duration = Duration::from_millis(1);
/// Number of doublings: up to 128 ms.
const DOUBLINGS: u32 = 7;

/// The back-off of a link.
#[derive(Debug, Default)]
pub(in crate::stack) struct Backoff {
    /// Calls in a row that returned only an error.
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    /// When the link may be called again, during back-off.
    pub(in crate::stack) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Whether the back-off still lasts.
    pub(in crate::stack) fn holds(&self, now: impl FnOnce() -> Instant) -> bool {
        self.until.is_some_and(|until| now() < until)
    }

    /// A call returned a frame, or no frame without an error.
    pub(in crate::stack) fn succeeded(&mut self) {
        *self = Backoff::default();
    }

    /// A call returned only an error.
    pub(in crate::stack) fn failed(&mut self, now: Instant) {
        self.until = Some(now + FIRST * (1 << self.failures));
        self.failures = (self.failures + 1).min(DOUBLINGS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    #[test]
    fn pauses_double_up_to_a_limit_and_end_with_a_success() {
        let mut now = SystemClock.now();
        let mut backoff = Backoff::default();
        assert!(!backoff.holds(|| unreachable!("the clock must not be read")));
        let mut pauses = Vec::new();
        for _ in 0..10 {
            backoff.failed(now);
            let until = backoff.until().unwrap();
            assert!(backoff.holds(|| now) && !backoff.holds(|| until));
            pauses.push((until - now).as_millis());
            now = until;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 128, 128]);
        backoff.succeeded();
        assert_eq!(backoff.until(), None);
        backoff.failed(now);
        assert_eq!(backoff.until(), Some(now + FIRST));
    }
}
