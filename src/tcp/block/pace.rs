//! Pacing: when the next burst may be sent.
//!
//! A virtual clock: each burst moves it on by the time that its bytes take at the given rate; a burst
//! may begin when that clock is not ahead of time, and continues until it has a full segment. Otherwise
//! small segments would be spaced out: each would be acknowledged separately, each acknowledgement
//! would free as little of a full send buffer, and a fast writer would make ever smaller segments, down
//! to single bytes. Unused time is kept for a short while, since timers are late. Pure: time is an
//! argument.

use crate::tcp::block::time::Instant;
use std::time::Duration;

/// Maximum of unused time.
const CREDIT: Duration = Duration::from_millis(2);
/// Length of a burst at the pacing rate, in seconds.
const BURST: f64 = 0.001;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Pacer {
    /// When the bytes sent so far would have been sent at the given rate.
    clock: Option<Instant>,
    /// Bytes that may be sent unpaced: at the beginning of a connection, or after idle time.
    free: u64,
    /// Remaining bytes of the present burst.
    open: u64,
}

impl Pacer {
    /// Allows this many unpaced bytes.
    pub(crate) fn allow(&mut self, bytes: u64) {
        self.free = bytes;
        self.clock = None;
        self.open = 0;
    }

    /// Number of unpaced bytes left.
    pub(crate) fn free(&self) -> u64 {
        self.free
    }

    /// When the next bytes may leave, if not now.
    pub(crate) fn release(&self, now: Instant) -> Option<Instant> {
        let at_once = self.free > 0 || self.open > 0;
        self.clock.filter(|at| *at > now && !at_once)
    }

    /// The largest burst: whole segments, two at least.
    pub(crate) fn burst(rate: f64, mss: u64) -> u64 {
        let segments = rate * BURST / mss as f64;
        #[expect(clippy::cast_possible_truncation, reason = "a rate is far below 2^53")]
        let segments = segments.clamp(2.0, 1e6) as u64;
        segments * mss
    }

    /// Records sent bytes; a full segment has `mss`.
    pub(crate) fn sent(&mut self, bytes: u64, (rate, mss): (f64, u64), now: Instant) {
        let free = self.free.min(bytes);
        self.free -= free;
        if self.clock.is_none_or(|clock| clock <= now) {
            self.open = mss;
        }
        self.open = self.open.saturating_sub(bytes - free);
        let time = Duration::from_secs_f64((bytes - free) as f64 / rate.max(1.0));
        let from = self.clock.map_or(now, |clock| {
            clock.max(now.checked_sub(CREDIT).unwrap_or(clock))
        });
        self.clock = Some(from + time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::block::time::start as any_time;

    #[test]
    fn bursts_follow_the_pacing_rate() {
        let start = any_time();
        let mut pacer = Pacer::default();
        let rate = 1_000_000.0;
        pacer.allow(10_000);
        let (mut sent, mut now) = (0, start);
        while now < start + Duration::from_millis(100) {
            if let Some(at) = pacer.release(now) {
                now = at;
                continue;
            }
            pacer.sent(1000, (rate, 1000), now);
            sent += 1000;
        }
        assert!((109_000..=112_000).contains(&sent), "{sent}");
        // A pause adds little credit.
        now += Duration::from_secs(1);
        let mut burst = 0;
        while pacer.release(now).is_none() {
            pacer.sent(1000, (rate, 1000), now);
            burst += 1000;
        }
        assert!(burst <= 3000, "{burst}");
        assert_eq!(Pacer::burst(12_500_000.0, 1448), 8 * 1448);
        assert_eq!(Pacer::burst(100.0, 1448), 2 * 1448);
    }

    #[test]
    fn small_segments_leave_together() {
        let mut now = any_time();
        let mut pacer = Pacer::default();
        for _ in 0..3 {
            for _ in 0..10 {
                assert_eq!(pacer.release(now), None);
                pacer.sent(100, (1000.0, 1000), now);
            }
            let next = now + Duration::from_secs(1);
            assert_eq!(pacer.release(now), Some(next), "a full segment was sent");
            now = next;
        }
        // An open burst still counts against the rate.
        pacer.sent(1, (1000.0, 1000), now);
        pacer.sent(5000, (1000.0, 1000), now);
        assert_eq!(
            pacer.release(now),
            Some(now + Duration::from_millis(5001)),
            "bytes beyond a full segment are paced"
        );
    }
}
