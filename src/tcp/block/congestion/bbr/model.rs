//! The model of the path: bandwidth, and the effect of losses on it (draft-ietf-ccwg-bbr 5.5).

use super::{BETA, Bbr, Flow};
use crate::tcp::block::congestion::rate::RateSample;
use crate::tcp::block::time::Instant;

/// BBR.ExtraAckedFilterLen, in two slots.
const SLOT_ROUNDS: u64 = 5;

/// BBR.max_bw_filter: the maximum of the present and the former probing cycle (5.5.3 to 5.5.6).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MaxBandwidth {
    former: f64,
    present: f64,
}

impl MaxBandwidth {
    /// BBR.max_bw.
    pub(super) fn get(self) -> f64 {
        self.former.max(self.present)
    }

    fn update(&mut self, rate: f64) {
        self.present = self.present.max(rate);
    }

    /// AdvanceMaxBwFilter (5.5.6). A cycle without a sample is skipped.
    pub(super) fn advance(&mut self) {
        if self.present > 0.0 {
            self.former = std::mem::take(&mut self.present);
        }
    }
}

/// The maxima of the last round trip (5.5.10.3).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Latest {
    /// BBR.bw_latest.
    pub(super) bw_latest: f64,
    /// BBR.inflight_latest.
    pub(super) inflight_latest: f64,
    /// BBR.is_loss_in_round.
    pub(super) is_loss_in_round: bool,
    /// A packet was marked in the round.
    pub(super) marked: bool,
    /// BBR.loss_round_delivered.
    pub(super) loss_round_delivered: u64,
    /// BBR.loss_round_start.
    pub(super) loss_round_start: bool,
}

impl Latest {
    /// AdvanceLatestDeliverySignals.
    pub(super) fn advance(&mut self, sample: &RateSample) {
        if self.loss_round_start {
            self.bw_latest = sample.delivery_rate.unwrap_or(0.0);
            self.inflight_latest = sample.delivered as f64;
        }
    }

    /// ResetCongestionSignals.
    pub(super) fn reset(&mut self) {
        self.is_loss_in_round = false;
        self.marked = false;
        self.bw_latest = 0.0;
        self.inflight_latest = 0.0;
    }
}

/// BBR.extra_acked (5.5.9): ACK aggregation.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Aggregation {
    /// BBR.extra_acked_interval_start.
    extra_acked_interval_start: Option<Instant>,
    /// BBR.extra_acked_delivered.
    extra_acked_delivered: f64,
    /// BBR.extra_acked_filter: the maximum of the present span of rounds, and of the one before.
    former: f64,
    present: f64,
    /// The round with which the present span began.
    began: u64,
}

impl Aggregation {
    pub(super) fn restart(&mut self, now: Instant) {
        self.extra_acked_interval_start = Some(now);
        self.extra_acked_delivered = 0.0;
    }

    /// BBR.extra_acked.
    pub(super) fn extra(self) -> f64 {
        self.former.max(self.present)
    }

    fn update(&mut self, extra: f64, round: u64, slot: u64) {
        if round >= self.began + slot {
            self.former = std::mem::take(&mut self.present);
            self.began = round;
        }
        self.present = self.present.max(extra);
    }
}

impl Bbr {
    /// BBR.bw (BoundBWForModel).
    pub(super) fn bw(&self) -> f64 {
        self.max_bw.get().min(self.bw_shortterm)
    }

    /// UpdateLatestDeliverySignals.
    pub(super) fn update_latest(&mut self, sample: &RateSample) {
        let latest = &mut self.latest;
        latest.loss_round_start = sample.prior_delivered >= latest.loss_round_delivered;
        latest.bw_latest = latest.bw_latest.max(sample.delivery_rate.unwrap_or(0.0));
        latest.inflight_latest = latest.inflight_latest.max(sample.delivered as f64);
        if latest.loss_round_start {
            latest.loss_round_delivered = self.rate.delivered();
        }
    }

    /// StartRound (5.5.1).
    pub(super) fn start_round(&mut self) {
        self.rounds.next_round_delivered = self.rate.delivered();
    }

    /// UpdateRound (5.5.1).
    fn update_round(&mut self, sample: &RateSample) {
        self.rounds.round_start = sample.prior_delivered >= self.rounds.next_round_delivered;
        if self.rounds.round_start {
            self.start_round();
            self.rounds.round_count += 1;
            self.probing.round_passed();
        }
        let steady = self.state.is_accelerating() || self.probing.is_over();
        self.noise
            .update(sample, self.rtt.least(), (self.rounds.round_start, steady));
    }

    /// UpdateCongestionSignals (5.5.10.3), with UpdateMaxBw (5.5.5).
    pub(super) fn update_congestion_signals(&mut self, sample: &RateSample, flow: &Flow) {
        self.update_round(sample);
        if let Some(rate) = sample.delivery_rate
            && (rate >= self.max_bw.get() || !sample.is_app_limited)
        {
            self.max_bw.update(rate);
        }
        if !self.latest.loss_round_start {
            return;
        }
        let exceeded = self.latest.marked || self.noise.is_exceeded(sample, flow.mss);
        let is_loss = self.latest.is_loss_in_round && exceeded;
        if is_loss && !self.state.is_accelerating() {
            self.lower_bounds(flow);
        }
        self.latest.is_loss_in_round = false;
        self.latest.marked = false;
    }

    /// InitLowerBounds, LossLowerBounds (5.5.10.3).
    fn lower_bounds(&mut self, flow: &Flow) {
        if self.bw_shortterm.is_infinite() {
            self.bw_shortterm = self.max_bw.get();
        }
        if self.inflight_shortterm.is_infinite() {
            self.inflight_shortterm = flow.cwnd;
        }
        self.bw_shortterm = self.latest.bw_latest.max(BETA * self.bw_shortterm);
        self.inflight_shortterm = self
            .latest
            .inflight_latest
            .max(BETA * self.inflight_shortterm);
    }

    /// ResetShortTermModel (5.5.10.3).
    pub(super) fn reset_short_term(&mut self) {
        self.bw_shortterm = f64::INFINITY;
        self.inflight_shortterm = f64::INFINITY;
    }

    /// UpdateACKAggregation (5.5.9).
    pub(super) fn update_aggregation(&mut self, sample: &RateSample, flow: &Flow) {
        let bw = self.bw();
        let (round, full) = (self.rounds.round_count, self.pipe.full_bw_reached);
        let aggregation = &mut self.aggregation;
        let since = *aggregation
            .extra_acked_interval_start
            .get_or_insert(flow.now);
        let interval = flow.now.saturating_duration_since(since);
        let mut expected = bw * interval.as_secs_f64();
        if aggregation.extra_acked_delivered <= expected {
            aggregation.restart(flow.now);
            expected = 0.0;
        }
        aggregation.extra_acked_delivered += sample.newly_acked as f64;
        let extra = (aggregation.extra_acked_delivered - expected).min(flow.cwnd);
        aggregation.update(extra, round, if full { SLOT_ROUNDS } else { 1 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_of_two_cycles() {
        let mut filter = MaxBandwidth::default();
        filter.update(10.0);
        filter.advance();
        filter.advance();
        assert_eq!(filter.get(), 10.0, "a cycle without a sample");
        filter.update(7.0);
        assert_eq!(filter.get(), 10.0);
        filter.advance();
        assert_eq!(filter.get(), 7.0);
    }

    #[test]
    fn aggregation_is_kept_for_up_to_ten_rounds() {
        let mut aggregation = Aggregation::default();
        aggregation.update(9.0, 1, SLOT_ROUNDS);
        for round in 2..=9 {
            aggregation.update(1.0, round, SLOT_ROUNDS);
            assert_eq!(aggregation.extra(), 9.0, "{round}");
        }
        for round in 10..=15 {
            aggregation.update(1.0, round, SLOT_ROUNDS);
        }
        assert_eq!(aggregation.extra(), 1.0);
    }
}
