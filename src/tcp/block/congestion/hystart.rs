//! HyStart++ (RFC 9406): slow start ends when the RTT increases, before a loss. Pure.

use std::time::Duration;

/// RFC 9406 4.3.
const MIN_RTT_THRESH: Duration = Duration::from_millis(4);
const MAX_RTT_THRESH: Duration = Duration::from_millis(16);
const MIN_RTT_DIVISOR: u32 = 8;
const N_RTT_SAMPLE: u32 = 8;
const CSS_GROWTH_DIVISOR: u64 = 4;
const CSS_ROUNDS: u32 = 5;
/// L, without pacing.
const L: u64 = 8;

/// Conservative slow start.
#[derive(Debug, Clone, Copy)]
struct Conservative {
    /// cssBaselineMinRtt.
    css_baseline_min_rtt: Duration,
    css_rounds: u32,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct HyStart {
    /// windowEnd: the round ends when this is acknowledged.
    window_end: u64,
    /// lastRoundMinRTT.
    last_round_min_rtt: Option<Duration>,
    /// currentRoundMinRTT.
    current_round_min_rtt: Option<Duration>,
    /// rttSampleCount.
    rtt_sample_count: u32,
    css: Option<Conservative>,
}

/// An acknowledgement in slow start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round {
    pub(crate) delivered: u64,
    pub(crate) mss: u64,
    pub(crate) una: u64,
    pub(crate) nxt: u64,
    pub(crate) rtt: Option<Duration>,
    pub(crate) paced: bool,
}

impl HyStart {
    /// The growth of the window; `None` if slow start has ended.
    pub(crate) fn acknowledged(&mut self, round: &Round) -> Option<u64> {
        if round.una >= self.window_end && !self.next_round(round.nxt) {
            return None;
        }
        if let Some(rtt) = round.rtt {
            self.current_round_min_rtt = Some(
                self.current_round_min_rtt
                    .map_or(rtt, |least| least.min(rtt)),
            );
            self.rtt_sample_count += 1;
        }
        self.compare();
        let most = if round.paced { u64::MAX } else { L * round.mss };
        let growth = round.delivered.min(most);
        Some(match self.css {
            None => growth,
            Some(_) => growth / CSS_GROWTH_DIVISOR,
        })
    }

    /// Compares the RTT with that of the round before.
    fn compare(&mut self) {
        let Some(current) = self
            .current_round_min_rtt
            .filter(|_| self.rtt_sample_count >= N_RTT_SAMPLE)
        else {
            return;
        };
        match (self.css, self.last_round_min_rtt) {
            (Some(css), _) if current < css.css_baseline_min_rtt => self.css = None,
            (None, Some(last)) => {
                let threshold = last / MIN_RTT_DIVISOR;
                let threshold = threshold.clamp(MIN_RTT_THRESH, MAX_RTT_THRESH);
                if current >= last + threshold {
                    self.css = Some(Conservative {
                        css_baseline_min_rtt: current,
                        css_rounds: 0,
                    });
                }
            }
            (Some(_), _) | (None, None) => {}
        }
    }

    /// `false` if that was the last round of slow start.
    fn next_round(&mut self, nxt: u64) -> bool {
        self.window_end = nxt;
        self.last_round_min_rtt = self.current_round_min_rtt.take();
        self.rtt_sample_count = 0;
        let Some(css) = &mut self.css else {
            return true;
        };
        css.css_rounds += 1;
        css.css_rounds < CSS_ROUNDS
    }

    /// Restarts slow start.
    pub(crate) fn restart(&mut self, nxt: u64) {
        *self = HyStart {
            window_end: nxt,
            ..HyStart::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A round of ten acknowledgements with this RTT in milliseconds. Returns the growth of each, or
    /// `None` at the end.
    fn round(hystart: &mut HyStart, number: u64, rtt: u64) -> Option<u64> {
        let mut growth = None;
        for k in 1..=10 {
            growth = Some(hystart.acknowledged(&Round {
                delivered: 1000,
                mss: 1000,
                una: number * 10_000 + k * 1000,
                nxt: number * 10_000 + 10_000 + k * 1000,
                rtt: Some(Duration::from_millis(rtt)),
                paced: true,
            })?);
        }
        growth
    }

    #[test]
    fn a_growing_delay_ends_slow_start_after_five_rounds() {
        let mut hystart = HyStart::default();
        assert_eq!(round(&mut hystart, 0, 50), Some(1000));
        assert_eq!(
            round(&mut hystart, 1, 51),
            Some(1000),
            "less than an eighth"
        );
        assert_eq!(round(&mut hystart, 2, 60), Some(250));
        for number in 3..6 {
            assert_eq!(round(&mut hystart, number, 61), Some(250));
        }
        assert_eq!(
            (6..8).find_map(|number| round(&mut hystart, number, 61).is_none().then_some(())),
            Some(())
        );
    }

    #[test]
    fn a_delay_that_passes_was_jitter() {
        let mut hystart = HyStart::default();
        round(&mut hystart, 0, 50);
        assert_eq!(round(&mut hystart, 1, 60), Some(250));
        assert_eq!(round(&mut hystart, 2, 50), Some(1000));
    }

    #[test]
    fn without_pacing_a_large_acknowledgement_opens_eight_segments() {
        let mut ack = Round {
            delivered: 64_000,
            mss: 1000,
            una: 1,
            nxt: 2,
            rtt: None,
            paced: false,
        };
        assert_eq!(HyStart::default().acknowledged(&ack), Some(8000));
        ack.paced = true;
        assert_eq!(HyStart::default().acknowledged(&ack), Some(64_000));
    }
}
