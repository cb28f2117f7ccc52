//! The token bucket of a rate. Pure.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

const NANOS: u128 = 1_000_000_000;

/// A rate of bytes, with bursts.
///
/// Over any time *t* no more than `burst` + `bytes_per_second` * *t* bytes are moved.
///
/// ```
/// use sosplice::splice::{Options, Rate};
/// use std::num::NonZeroU64;
/// let megabyte = NonZeroU64::new(1_000_000).ok_or("zero")?;
/// let rate = Rate { bytes_per_second: megabyte, burst: megabyte };
/// let options = Options::default().rate(rate);
/// # Ok::<_, &str>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(
    clippy::exhaustive_structs,
    reason = "a token bucket has a rate and a depth"
)]
pub struct Rate {
    /// Average bytes per second.
    pub bytes_per_second: NonZeroU64,
    /// Bytes that may be moved at once after an idle time. When they are used up, the splice waits
    /// until the bytes of 10 ms are allowed again, those of a datagram that is longer, or the burst if
    /// that is less: a burst of a few bytes makes it slow at any rate.
    pub burst: NonZeroU64,
}

/// The bucket of a rate; starts full.
#[derive(Debug)]
pub(super) struct TokenBucket {
    rate: Rate,
    /// Bytes times [`NANOS`], to avoid rounding.
    level: u128,
    at: Instant,
    /// Bytes that can be used only together: those of a datagram.
    whole: u64,
}

impl TokenBucket {
    pub(super) fn new(rate: Rate, now: Instant) -> TokenBucket {
        TokenBucket {
            rate,
            level: u128::from(rate.burst.get()) * NANOS,
            at: now,
            whole: 0,
        }
    }

    /// Bytes that are allowed now.
    pub(super) fn allowance(&mut self, now: Instant) -> usize {
        let passed = now.saturating_duration_since(self.at).as_nanos();
        self.at = self.at.max(now);
        let fresh = passed.saturating_mul(self.rate.bytes_per_second.get().into());
        let full = u128::from(self.rate.burst.get()) * NANOS;
        self.level = self.level.saturating_add(fresh).min(full);
        usize::try_from(self.level / NANOS).unwrap_or(usize::MAX)
    }

    /// Bytes that are ever allowed at once.
    pub(super) fn burst(&self) -> usize {
        usize::try_from(self.rate.burst.get()).unwrap_or(usize::MAX)
    }

    /// Takes bytes that were allowed.
    pub(super) fn take(&mut self, bytes: u64) {
        self.level = self.level.saturating_sub(u128::from(bytes) * NANOS);
    }

    /// What comes next needs so many bytes at once.
    pub(super) fn wait_for(&mut self, bytes: usize) {
        self.whole = bytes as u64;
    }

    /// When the bytes of 10 ms are allowed, or those of a longer datagram, or the burst if that is less.
    pub(super) fn refilled_at(&self) -> Option<Instant> {
        let rate = u128::from(self.rate.bytes_per_second.get());
        let step = (rate / 100).max(self.whole.into());
        let step = step.clamp(1, self.rate.burst.get().into());
        let missing = (step * NANOS).saturating_sub(self.level);
        let nanos = u64::try_from(missing.div_ceil(rate)).unwrap_or(u64::MAX);
        self.at.checked_add(Duration::from_nanos(nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};
    use proptest::prelude::*;

    fn rate(bytes_per_second: u64, burst: u64) -> Rate {
        let nonzero = |value| NonZeroU64::new(value).expect("not zero");
        Rate {
            bytes_per_second: nonzero(bytes_per_second),
            burst: nonzero(burst),
        }
    }

    proptest! {
        #[test]
        fn never_more_than_the_rate_and_the_burst(
            bytes_per_second in 1u64..5_000_000_000, burst in 1u64..1_000_000,
            steps in proptest::collection::vec((0u64..2_000_000_000, 0u64..=100), 1..50),
        ) {
            let start = SystemClock.now();
            let mut bucket = TokenBucket::new(rate(bytes_per_second, burst), start);
            let (mut now, mut taken) = (start, 0u128);
            for (nanos, percent) in steps {
                now += Duration::from_nanos(nanos);
                let share = bucket.allowance(now) as u64 * percent / 100;
                bucket.take(share);
                taken += u128::from(share);
                let passed = (now - start).as_nanos();
                let most = u128::from(burst) + passed * u128::from(bytes_per_second) / NANOS;
                prop_assert!(taken <= most, "{taken} > {most}");
            }
        }

        #[test]
        fn a_wait_is_worth_it(bytes_per_second in 1u64..5_000_000_000, burst in 1u64..1_000_000) {
            let start = SystemClock.now();
            let mut bucket = TokenBucket::new(rate(bytes_per_second, burst), start);
            bucket.take(burst);
            let wake = bucket.refilled_at().expect("soon");
            let step = (bytes_per_second / 100).clamp(1, burst);
            prop_assert!(bucket.allowance(wake) as u64 >= step);
            prop_assert!(wake - start <= Duration::from_secs(1));
        }
    }
}
