//! Our timestamps: milliseconds from an unpredictable offset (RFC 7323 5.4, 7.1). Pure.

use crate::tcp::block::time::Instant;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StampClock {
    base: Instant,
    offset: u32,
}

impl StampClock {
    pub(crate) fn new(base: Instant, offset: u32) -> StampClock {
        StampClock { base, offset }
    }

    /// TSval at a time.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "timestamps are modulo 2^32"
    )]
    pub(crate) fn at(&self, now: Instant) -> u32 {
        let passed = now.saturating_duration_since(self.base).as_millis();
        self.offset.wrapping_add(passed as u32)
    }
}
