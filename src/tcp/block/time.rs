//! Time as the control block counts it: whole nanoseconds, in half the memory of
//! [`std::time::Instant`].
//!
//! Zero is the beginning of the stack ([`Clocked`]). A time beyond 64 bits (five hundred years) is
//! never; one before the beginning is taken for the beginning.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// A point in time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Instant(NonZeroU64);

fn nanos(duration: Duration) -> u64 {
    let whole = duration.as_secs().saturating_mul(1_000_000_000);
    whole.saturating_add(duration.subsec_nanos().into())
}

impl Instant {
    /// This many nanoseconds after the beginning.
    pub(crate) const fn from_nanos(nanos: u64) -> Instant {
        match NonZeroU64::new(nanos) {
            Some(nanos) => Instant(nanos),
            None => Instant(NonZeroU64::MIN),
        }
    }

    /// Nanoseconds since the beginning.
    pub(crate) const fn nanos(self) -> u64 {
        self.0.get()
    }

    /// Zero, if that is later.
    pub(crate) fn saturating_duration_since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.nanos().saturating_sub(earlier.nanos()))
    }

    /// `None` before the beginning.
    pub(crate) fn checked_sub(self, duration: Duration) -> Option<Instant> {
        let earlier = self.nanos().checked_sub(nanos(duration))?;
        NonZeroU64::new(earlier).map(Instant)
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, duration: Duration) -> Instant {
        Instant(self.0.saturating_add(nanos(duration)))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Instant) -> Duration {
        self.saturating_duration_since(earlier)
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Duration::from_nanos(self.nanos()).fmt(f)
    }
}

/// The beginning, by the system's clock; one for each stack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clocked {
    pub(crate) epoch: std::time::Instant,
}

impl Clocked {
    /// Converts from the system's clock.
    pub(crate) fn here(self, at: std::time::Instant) -> Instant {
        Instant::from_nanos(nanos(at.saturating_duration_since(self.epoch)))
    }

    /// Converts to the system's clock. "Never" becomes a time far in the future.
    pub(crate) fn there(self, at: Instant) -> std::time::Instant {
        /// A year.
        const FAR: Duration = Duration::from_secs(365 * 86_400);
        let passed = Duration::from_nanos(at.nanos());
        self.epoch.checked_add(passed).unwrap_or(self.epoch + FAR)
    }
}

/// Some time, for tests.
#[cfg(test)]
pub(crate) fn start() -> Instant {
    Instant::from_nanos(1_000_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    #[test]
    fn there_and_back() {
        let clocked = Clocked {
            epoch: SystemClock.now(),
        };
        for passed in [1, 999_999_999, 1_000_000_000, 86_400_000_000_001] {
            let at = clocked.epoch + Duration::from_nanos(passed);
            assert_eq!(clocked.here(at).nanos(), passed);
            assert_eq!(clocked.there(clocked.here(at)), at);
        }
        let before = clocked.epoch - Duration::from_secs(1);
        assert_eq!(clocked.here(before), Instant::from_nanos(0));
    }

    #[test]
    fn no_time_is_beyond_the_ends() {
        let at = Instant::from_nanos(u64::MAX - 1);
        assert_eq!(at + Duration::MAX, Instant::from_nanos(u64::MAX));
        assert_eq!(start() - at, Duration::ZERO);
        assert_eq!(start().checked_sub(Duration::from_secs(1000)), None);
        let second = Duration::from_secs(1);
        assert_eq!(
            start().checked_sub(second).map(|at| at + second),
            Some(start())
        );
        let mut later = start();
        later += second;
        assert_eq!(later - start(), second);
    }

    #[test]
    fn half_the_memory() {
        assert_eq!(size_of::<Option<Instant>>(), 8);
        assert_eq!(size_of::<Option<std::time::Instant>>(), 16);
    }
}
