//! Random losses, which the flow does not cause: those without a queue.
//!
//! A flow with the minimum RTT has filled no queue. Its losses then are caused by the medium or by
//! other traffic, and sending less would not help. Their share is measured in rounds without a queue;
//! only losses beyond it are a sign of congestion. At most [`MOST`] is attributed to the medium, so
//! that a policer, which drops without a queue, is still respected.

use super::LOSS_THRESHOLD;
use crate::tcp::block::congestion::rate::RateSample;
use std::time::Duration;

/// Maximum share that is treated as noise.
const MOST: f64 = 0.05;
/// Weight of a new round in the mean.
const GAIN: f64 = 0.25;
/// There is a queue if the RTT exceeds the minimum by this, or by a sixteenth.
const GRAIN: Duration = Duration::from_millis(1);

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Noise {
    /// Loss share without a queue, a mean over rounds.
    share: f64,
    /// Minimum RTT of the present round.
    round: Option<Duration>,
    /// There was a queue in the latest round, as far as is known.
    queued: bool,
}

/// Share of the data sent in the last round trip that was lost.
fn lost(sample: &RateSample) -> f64 {
    sample.lost as f64 / (sample.lost + sample.delivered).max(1) as f64
}

impl Noise {
    /// Bytes of a volume that may be lost without a sign of congestion: the noise plus twice its
    /// standard deviation, and a tolerated share.
    fn allowance(self, volume: f64, mss: f64, tolerated: f64) -> f64 {
        let expected = self.share * volume;
        expected + 2.0 * (expected * mss).sqrt() + tolerated * volume
    }

    /// The loss share without a sign of congestion during bandwidth probing.
    pub(super) fn threshold(self, volume: f64, mss: f64) -> f64 {
        self.allowance(volume, mss, LOSS_THRESHOLD) / volume.max(1.0)
    }

    /// The same in Startup, where the noise is not known yet.
    pub(super) fn startup_threshold(self, volume: f64, mss: f64) -> f64 {
        if self.queued {
            self.threshold(volume, mss)
        } else {
            LOSS_THRESHOLD + MOST
        }
    }

    /// Whether the losses of the last round trip are a sign of congestion. With a queue, each loss
    /// beyond the noise is.
    pub(super) fn is_exceeded(self, sample: &RateSample, mss: f64) -> bool {
        let tolerated = if self.queued { 0.0 } else { LOSS_THRESHOLD };
        let volume = (sample.lost + sample.delivered) as f64;
        sample.lost as f64 > self.allowance(volume, mss, tolerated)
    }

    #[cfg(test)]
    pub(super) fn share(self) -> f64 {
        self.share
    }

    /// `start`: a round begins with this acknowledgement. `steady`: its data was not sent to probe for
    /// bandwidth, as far as is known.
    pub(super) fn update(
        &mut self,
        sample: &RateSample,
        least: Option<Duration>,
        (start, steady): (bool, bool),
    ) {
        if start {
            let shortest = self.round.take().zip(least);
            self.queued =
                shortest.is_none_or(|(shortest, least)| shortest > least + GRAIN.max(least / 16));
            if !self.queued && steady {
                self.share += GAIN * (lost(sample).min(MOST) - self.share);
            }
        }
        if let Some(rtt) = sample.rtt {
            self.round = Some(self.round.map_or(rtt, |shortest| shortest.min(rtt)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_millis(50);

    fn sample(lost: u64, rtt: u64) -> RateSample {
        RateSample {
            newly_acked: 1000,
            delivered: 100_000 - lost,
            prior_delivered: 0,
            delivery_rate: None,
            rtt: Some(Duration::from_millis(rtt)),
            tx_in_flight: 100_000,
            lost,
            is_app_limited: false,
        }
    }

    /// Runs rounds with this loss share in thousandths.
    fn rounds(noise: &mut Noise, count: u32, lost: u64, rtt: u64) {
        for _ in 0..=count {
            noise.update(&sample(lost * 100, rtt), Some(LEAST), (true, true));
        }
    }

    #[test]
    fn losses_without_a_queue_are_no_sign() {
        let mut noise = Noise::default();
        let exceeded = |noise: Noise, lost, rtt| noise.is_exceeded(&sample(lost, rtt), 100.0);
        rounds(&mut noise, 1, 0, 50);
        assert!(!exceeded(noise, 1900, 50));
        assert!(exceeded(noise, 2100, 50));
        rounds(&mut noise, 20, 30, 51);
        assert!((noise.share() - 0.03).abs() < 0.001);
        assert!(!exceeded(noise, 5500, 50));
        assert!(exceeded(noise, 7000, 50), "more than before");
        rounds(&mut noise, 20, 300, 51);
        assert!(noise.share() <= MOST, "a policer");
        assert!(exceeded(noise, 30_000, 51));
    }

    #[test]
    fn losses_with_a_queue_are_a_sign() {
        let mut noise = Noise::default();
        rounds(&mut noise, 20, 30, 60);
        assert_eq!(noise.share(), 0.0);
        assert!(noise.is_exceeded(&sample(100, 60), 100.0), "each loss");
    }
}
