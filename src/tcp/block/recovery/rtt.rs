//! Round-trip times (RFC 6298 2, 3; RFC 8985 5.2 for the minimum). Pure.

use crate::tcp::block::time::Instant;
use std::time::Duration;

/// A minimum expires after this time.
const WINDOW: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rtt {
    /// SRTT; `None` before the first sample.
    srtt: Option<Duration>,
    /// RTTVAR.
    rttvar: Duration,
    /// min_RTT of the present window, and its time.
    min_rtt: Option<(Duration, Instant)>,
    /// The minimum in the second half of that window, which replaces it.
    next_min_rtt: Option<(Duration, Instant)>,
}

impl Rtt {
    /// Adds a sample, never of a retransmitted segment (Karn; RFC 6298 3).
    pub(crate) fn sample(&mut self, rtt: Duration, now: Instant) {
        self.srtt = Some(match self.srtt {
            None => {
                self.rttvar = rtt / 2;
                rtt
            }
            Some(smoothed) => {
                self.rttvar = (self.rttvar * 3 + smoothed.abs_diff(rtt)) / 4;
                (smoothed * 7 + rtt) / 8
            }
        });
        self.note_least(rtt, now);
    }

    /// Adds a sample for the minimum only.
    pub(crate) fn note_least(&mut self, rtt: Duration, now: Instant) {
        let age = |since: Instant| now.saturating_duration_since(since);
        match self.min_rtt {
            Some((least, since)) if rtt > least && age(since) <= WINDOW => {
                let late = age(since) > WINDOW / 2;
                if late && self.next_min_rtt.is_none_or(|(next, _)| rtt <= next) {
                    self.next_min_rtt = Some((rtt, now));
                }
            }
            Some((least, _)) if rtt > least => {
                let next = self.next_min_rtt.take().filter(|(next, _)| *next < rtt);
                self.min_rtt = next.or(Some((rtt, now)));
            }
            Some(_) | None => {
                self.min_rtt = Some((rtt, now));
                self.next_min_rtt = None;
            }
        }
    }

    pub(crate) fn smoothed(&self) -> Option<Duration> {
        self.srtt
    }

    pub(crate) fn variance(&self) -> Duration {
        self.rttvar
    }

    pub(crate) fn least(&self) -> Option<Duration> {
        self.min_rtt.map(|(least, _)| least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::block::time::start as any_time;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn rfc_6298_2() {
        let now = any_time();
        let mut rtt = Rtt::default();
        rtt.sample(ms(100), now);
        assert_eq!((rtt.smoothed(), rtt.variance()), (Some(ms(100)), ms(50)));
        rtt.sample(ms(180), now);
        assert_eq!(rtt.smoothed(), Some(ms(110)));
        assert_eq!(rtt.variance(), Duration::from_micros(57_500));
        assert_eq!(rtt.least(), Some(ms(100)));
    }

    #[test]
    fn a_minimum_expires() {
        let start = any_time();
        let mut rtt = Rtt::default();
        rtt.sample(ms(10), start);
        for second in 1..=29 {
            rtt.sample(ms(50), start + Duration::from_secs(second));
            assert_eq!(rtt.least(), Some(ms(10)));
        }
        rtt.sample(ms(50), start + Duration::from_secs(31));
        assert_eq!(rtt.least(), Some(ms(50)));
    }
}
