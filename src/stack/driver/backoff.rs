//! A link that gives nothing but errors is left alone for a while, so that a device which only fails is
//! not spun on.

use std::time::{Duration, Instant};

/// The first pause; each further one is twice as long.
const FIRST: Duration = Duration::from_millis(1);
/// So often: up to 128 ms.
const DOUBLINGS: u32 = 7;

/// Whether a link may be received from. See the module.
#[derive(Debug, Default)]
pub(in crate::stack) struct Backoff {
    /// Calls in a row that gave nothing but an error.
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    /// When the link may be asked again, if it is left alone.
    pub(in crate::stack) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Whether the link is still left alone.
    pub(in crate::stack) fn holds(&self, now: impl FnOnce() -> Instant) -> bool {
        self.until.is_some_and(|until| now() < until)
    }

    /// A call has given a frame, or there was none to give.
    pub(in crate::stack) fn succeeded(&mut self) {
        *self = Backoff::default();
    }

    /// A call has given nothing but an error.
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
        assert!(!backoff.holds(|| unreachable!("the clock is not asked without need")));
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
