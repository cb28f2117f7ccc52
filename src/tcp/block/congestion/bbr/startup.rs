//! Startup and Drain: the rate doubles until the path is full, then the resulting queue is drained
//! (draft-ietf-ccwg-bbr 5.3.1, 5.3.2).

use super::{Bbr, Flow, State};
use crate::tcp::block::congestion::rate::RateSample;

/// Minimum growth in a round that counts.
const GROWTH: f64 = 1.25;
/// Number of rounds without growth that end Startup.
const FLAT_ROUNDS: u32 = 3;
/// BBRStartupFullLossCnt.
const LOST_RANGES: u32 = 6;
/// Maximum length of Drain in rounds.
const DRAIN_ROUNDS: u64 = 3;

/// The estimator of a full pipe (5.3.1.2, 5.3.1.3).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FullPipe {
    /// BBR.full_bw_reached.
    pub(super) full_bw_reached: bool,
    /// BBR.full_bw_now.
    pub(super) full_bw_now: bool,
    /// BBR.full_bw.
    pub(super) full_bw: f64,
    /// BBR.full_bw_count.
    full_bw_count: u32,
    /// Number of ranges lost in the present round, and the end of the last one.
    ranges: u32,
    range_end: u64,
    /// The round in which the present recovery began.
    recovery: u64,
    /// BBR.drain_start_round.
    drain_start_round: u64,
}

impl FullPipe {
    /// ResetFullBW.
    pub(super) fn reset(&mut self) {
        self.full_bw = 0.0;
        self.full_bw_count = 0;
        self.full_bw_now = false;
    }

    /// A range was lost.
    pub(super) fn note_loss(&mut self, start: u64, end: u64) {
        self.ranges += u32::from(start != self.range_end);
        self.range_end = end;
    }

    pub(super) fn recovery_begins(&mut self, round: u64) {
        self.recovery = round;
    }
}

impl Bbr {
    /// CheckFullBWReached (5.3.1.2).
    pub(super) fn check_full_pipe(&mut self, sample: &RateSample) {
        let pipe = &mut self.pipe;
        if pipe.full_bw_now || !self.rounds.round_start || sample.is_app_limited {
            return;
        }
        let Some(rate) = sample.delivery_rate else {
            return;
        };
        if rate >= pipe.full_bw * GROWTH {
            pipe.reset();
            pipe.full_bw = rate;
            return;
        }
        pipe.full_bw_count += 1;
        pipe.full_bw_now = pipe.full_bw_count >= FLAT_ROUNDS;
        pipe.full_bw_reached |= pipe.full_bw_now;
    }

    /// CheckStartupDone (5.3.1.1).
    pub(super) fn check_startup(&mut self, sample: &RateSample, flow: &Flow) {
        if self.state == State::Startup && self.is_startup_lossy(sample, flow) {
            self.undo.state = Some(State::Startup);
            self.pipe.full_bw_reached = true;
            self.inflight_longterm = self.bdp(self.bw(), 1.0).max(self.latest.inflight_latest);
        }
        if self.rounds.round_start {
            self.pipe.ranges = 0;
        }
        if self.state == State::Startup && self.pipe.full_bw_reached {
            self.state = State::Drain;
            self.pipe.drain_start_round = self.rounds.round_count;
        }
    }

    /// The criteria of 5.3.1.3, once in a round.
    fn is_startup_lossy(&self, sample: &RateSample, flow: &Flow) -> bool {
        if !self.recovering {
            return false;
        }
        if !flow.sack {
            return sample.lost > 0;
        }
        let volume = sample.tx_in_flight as f64;
        let lost = sample.lost as f64 > volume * self.noise.startup_threshold(volume, flow.mss);
        self.rounds.round_start
            && self.rounds.round_count > self.pipe.recovery
            && lost
            && self.pipe.ranges >= LOST_RANGES
    }

    /// CheckDrainDone (5.3.2).
    pub(super) fn check_drain(&mut self, flow: &Flow) {
        let drained = || flow.inflight <= self.inflight(self.bw(), flow);
        let late = self.rounds.round_count > self.pipe.drain_start_round + DRAIN_ROUNDS;
        if self.state == State::Drain && (late || drained()) {
            self.start_down(flow);
        }
    }
}
