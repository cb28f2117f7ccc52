//! Numbers that follow from a seed (SplitMix64). They are spread evenly and are no secrets: from one the next can be
//! computed.

use std::time::Duration;

/// Step of the generator's state.
pub(crate) const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The mixing function.
pub(crate) const fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A generator.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// A duration below `bound`, to the microsecond; zero if `bound` is zero.
    pub(crate) fn below(&mut self, bound: Duration) -> Duration {
        let micros = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.next().checked_rem(micros).unwrap_or(0))
    }
}
