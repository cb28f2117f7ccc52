//! Random numbers that a seed repeats (SplitMix64).

use std::ops::RangeInclusive;
use std::time::Duration;

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A sequence of random numbers.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

pub(crate) fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

impl Random {
    /// The sequence for one operation of a thread: independent of the numbers drawn by other
    /// operations.
    pub(crate) fn of(seed: u64, thread: u64, operation: u64) -> Random {
        let thread = mix(seed ^ thread.wrapping_mul(STEP));
        Random(mix(thread ^ operation.wrapping_mul(STEP)))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    pub(crate) fn between(&mut self, range: RangeInclusive<u64>) -> u64 {
        range.start() + self.next() % (range.end() - range.start() + 1)
    }

    /// Less than this.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % bound).unwrap_or(0)
    }

    pub(crate) fn one_in(&mut self, count: u64) -> bool {
        self.next().is_multiple_of(count)
    }

    /// One of them.
    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// 1 up to about `most`, every order of magnitude as often as the others.
    pub(crate) fn size(&mut self, most: u64) -> u64 {
        let bits = u64::from(most.max(1).ilog2());
        let magnitude = 1 << self.between(0..=bits);
        self.between(magnitude..=2 * magnitude - 1).min(most.max(1))
    }

    pub(crate) fn length(&mut self, most: usize) -> usize {
        usize::try_from(self.size(most as u64)).unwrap_or(most)
    }

    pub(crate) fn millis(&mut self, range: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.between(range))
    }

    /// The value with this probability, else `None`.
    pub(crate) fn maybe<T>(
        &mut self,
        count: u64,
        value: impl FnOnce(&mut Random) -> T,
    ) -> Option<T> {
        self.one_in(count).then(|| value(self))
    }
}
