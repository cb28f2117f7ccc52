//! The cycle of probing for bandwidth (draft-ietf-ccwg-bbr 5.3.3, 5.5.10.2).

use super::{BETA, Bbr, Flow, HEADROOM, State};
use crate::tcp::block::congestion::rate::{Loss, RateSample};
use crate::tcp::block::time::Instant;
use std::time::Duration;

/// Maximum number of rounds between probes, for fairness to Reno flows.
const RENO_ROUNDS: f64 = 63.0;
/// BBR.bw_probe_up_rounds.
const LARGEST_SLOPE: i32 = 30;

/// BBR.ack_phase: which data the acknowledgements are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Acks {
    Init,
    Refilling,
    Starting,
    Feedback,
    Stopping,
}

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probing {
    acks: Acks,
    /// BBR.cycle_stamp.
    cycle_stamp: Option<Instant>,
    /// BBR.bw_probe_wait.
    bw_probe_wait: Duration,
    /// BBR.rounds_since_probe_up.
    rounds_since_probe_up: u64,
    /// BBR.bw_probe_up_rounds.
    bw_probe_up_rounds: i32,
    /// BBR.bw_probe_up_acked.
    bw_probe_up_acked: f64,
    /// BBR.probe_up_acked_per_inc.
    probe_up_acked_per_inc: f64,
    /// BBR.is_bw_probe_sample.
    is_bw_probe_sample: bool,
    /// BBR.prev_probe_too_high, BBR.prev_probe_precautionary.
    prev_probe_too_high: bool,
    prev_probe_precautionary: bool,
    /// State of the random numbers.
    random: u64,
}

impl Probing {
    pub(super) fn new(seed: u32) -> Probing {
        Probing {
            acks: Acks::Init,
            cycle_stamp: None,
            bw_probe_wait: Duration::ZERO,
            rounds_since_probe_up: 0,
            bw_probe_up_rounds: 0,
            bw_probe_up_acked: 0.0,
            probe_up_acked_per_inc: f64::INFINITY,
            is_bw_probe_sample: false,
            prev_probe_too_high: false,
            prev_probe_precautionary: false,
            random: u64::from(seed) | 1 << 40,
        }
    }

    pub(super) fn round_passed(&mut self) {
        self.rounds_since_probe_up += 1;
    }

    /// Whether all probing data is acknowledged.
    pub(super) fn is_over(self) -> bool {
        self.acks == Acks::Init
    }

    /// A random number that need not be unpredictable (xorshift64).
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// PickProbeWait.
    fn pick_wait(&mut self) {
        let random = self.next_random();
        self.rounds_since_probe_up = random & 1;
        self.bw_probe_wait = Duration::from_millis(2000 + (random >> 8) % 1000);
    }

    /// Acknowledgements from now on are for data sent before the new state.
    pub(super) fn stop(&mut self) {
        self.acks = Acks::Stopping;
    }
}

impl Bbr {
    /// StartProbeBW_DOWN.
    pub(super) fn start_down(&mut self, flow: &Flow) {
        self.latest.reset();
        self.probing.probe_up_acked_per_inc = f64::INFINITY;
        self.probing.pick_wait();
        self.probing.cycle_stamp = Some(flow.now);
        self.probing.stop();
        self.start_round();
        self.state = State::Down;
    }

    /// StartProbeBW_REFILL.
    pub(super) fn start_refill(&mut self) {
        self.reset_short_term();
        self.probing.bw_probe_up_rounds = 0;
        self.probing.bw_probe_up_acked = 0.0;
        self.probing.prev_probe_precautionary = false;
        self.probing.acks = Acks::Refilling;
        self.start_round();
        self.state = State::Refill;
    }

    /// StartProbeBW_UP.
    fn start_up(&mut self, sample: &RateSample, flow: &Flow) {
        self.probing.acks = Acks::Starting;
        self.start_round();
        self.pipe.reset();
        self.pipe.full_bw = sample.delivery_rate.unwrap_or(0.0);
        self.state = State::Up;
        self.raise_slope(flow);
    }

    /// UpdateProbeBWCyclePhase.
    pub(super) fn update_cycle(&mut self, sample: &RateSample, flow: &Flow) {
        if !self.pipe.full_bw_reached || self.adapt_long_term(sample, flow) {
            return;
        }
        let state = self.state;
        match state {
            State::Down | State::Cruise if self.is_time_to_probe(flow) => self.start_refill(),
            State::Down if self.is_time_to_cruise(flow) => self.state = State::Cruise,
            State::Refill if self.rounds.round_start => {
                self.probing.is_bw_probe_sample = true;
                self.start_up(sample, flow);
            }
            State::Up if self.is_time_to_go_down(sample, flow) => {
                self.probing.prev_probe_too_high = false;
                self.start_down(flow);
            }
            _ => {}
        }
    }

    /// IsTimeToProbeBW, with IsRenoCoexistenceProbeTime.
    fn is_time_to_probe(&self, flow: &Flow) -> bool {
        let wait = self.probing.bw_probe_wait;
        let elapsed = self
            .probing
            .cycle_stamp
            .is_some_and(|at| flow.now > at + wait);
        let rounds = (self.target(flow) / flow.mss).min(RENO_ROUNDS);
        elapsed || self.probing.rounds_since_probe_up as f64 >= rounds
    }

    /// IsTimeToCruise.
    fn is_time_to_cruise(&self, flow: &Flow) -> bool {
        flow.inflight <= self.inflight_with_headroom(flow)
            && flow.inflight <= self.inflight(self.max_bw.get(), flow)
    }

    /// IsTimeToGoDown.
    fn is_time_to_go_down(&mut self, sample: &RateSample, flow: &Flow) -> bool {
        if self.probing.prev_probe_too_high && flow.inflight >= self.inflight_longterm {
            self.probing.prev_probe_precautionary = true;
            return true;
        }
        if flow.is_cwnd_limited && flow.cwnd >= self.inflight_longterm {
            self.pipe.reset();
            self.pipe.full_bw = sample.delivery_rate.unwrap_or(0.0);
            return false;
        }
        self.pipe.full_bw_now
    }

    /// TargetInflight.
    fn target(&self, flow: &Flow) -> f64 {
        self.bdp(self.bw(), 1.0).min(flow.cwnd)
    }

    /// InflightWithHeadroom.
    pub(super) fn inflight_with_headroom(&self, flow: &Flow) -> f64 {
        if self.inflight_longterm.is_infinite() {
            return f64::INFINITY;
        }
        let headroom = flow.mss.max(HEADROOM * self.inflight_longterm);
        (self.inflight_longterm - headroom).max(Bbr::least_window(flow))
    }

    /// RaiseInflightLongtermSlope.
    fn raise_slope(&mut self, flow: &Flow) {
        let probing = &mut self.probing;
        let growth = 2f64.powi(probing.bw_probe_up_rounds);
        probing.bw_probe_up_rounds = (probing.bw_probe_up_rounds + 1).min(LARGEST_SLOPE);
        probing.probe_up_acked_per_inc = (flow.cwnd / growth).max(flow.mss);
    }

    /// ProbeInflightLongtermUpward.
    fn probe_upward(&mut self, sample: &RateSample, flow: &Flow) {
        if !flow.is_cwnd_limited || flow.cwnd < self.inflight_longterm {
            return;
        }
        let probing = &mut self.probing;
        probing.bw_probe_up_acked += sample.newly_acked as f64;
        let times = (probing.bw_probe_up_acked / probing.probe_up_acked_per_inc).floor();
        if times >= 1.0 {
            probing.bw_probe_up_acked -= times * probing.probe_up_acked_per_inc;
            self.inflight_longterm += times * flow.mss;
        }
        if self.rounds.round_start {
            self.raise_slope(flow);
        }
    }

    /// AdaptLongTermModel. `true` if a state has begun.
    fn adapt_long_term(&mut self, sample: &RateSample, flow: &Flow) -> bool {
        if self.rounds.round_start && self.probing.acks == Acks::Starting {
            self.probing.acks = Acks::Feedback;
        }
        if self.rounds.round_start && self.probing.acks == Acks::Stopping {
            self.probing.is_bw_probe_sample = false;
            self.probing.acks = Acks::Init;
            if self.state.is_probe_bw() {
                if !sample.is_app_limited {
                    self.max_bw.advance();
                }
                if self.probing.prev_probe_precautionary && !self.probing.prev_probe_too_high {
                    self.start_refill();
                    return true;
                }
            }
        }
        let too_high = self.is_inflight_too_high(sample.lost, sample.tx_in_flight, flow);
        if too_high || self.latest.marked || self.inflight_longterm.is_infinite() {
            return false;
        }
        self.inflight_longterm = self.inflight_longterm.max(sample.tx_in_flight as f64);
        if self.state == State::Up {
            self.probe_upward(sample, flow);
        }
        false
    }

    /// IsInflightTooHigh (5.5.10.2).
    fn is_inflight_too_high(&self, lost: u64, in_flight: u64, flow: &Flow) -> bool {
        let volume = in_flight as f64;
        let most = volume * self.noise.threshold(volume, flow.mss);
        lost as f64 > most || (lost > 0 && !flow.sack)
    }

    /// The rest of HandleLostPacket (5.5.10.2).
    pub(super) fn note_probe_loss(&mut self, loss: &Loss, flow: &Flow) {
        if !self.probing.is_bw_probe_sample
            || !self.is_inflight_too_high(loss.lost, loss.tx_in_flight, flow)
        {
            return;
        }
        let safe = self.inflight_at_loss(loss, flow);
        self.probe_was_too_high((!loss.is_app_limited).then_some(safe), flow);
    }

    /// A router has marked probing data.
    pub(super) fn probe_was_marked(&mut self, flow: &Flow) {
        if self.probing.is_bw_probe_sample {
            self.probe_was_too_high(Some(flow.inflight), flow);
        }
    }

    /// HandleInflightTooHigh; `safe`: an amount in flight that was not too high.
    fn probe_was_too_high(&mut self, safe: Option<f64>, flow: &Flow) {
        self.probing.prev_probe_too_high = true;
        self.probing.is_bw_probe_sample = false;
        if let Some(safe) = safe {
            let least = BETA * self.target(flow);
            self.inflight_longterm = safe.max(least);
        }
        if self.state == State::Up {
            self.undo.state = Some(State::Up);
            self.start_down(flow);
        }
    }

    /// InflightAtLoss (5.5.10.2).
    fn inflight_at_loss(&self, loss: &Loss, flow: &Flow) -> f64 {
        let threshold = self.noise.threshold(loss.tx_in_flight as f64, flow.mss);
        let before = loss.tx_in_flight.saturating_sub(loss.size) as f64;
        let lost_before = loss.lost.saturating_sub(loss.size) as f64;
        let prefix = (threshold * before - lost_before) / (1.0 - threshold);
        before + prefix.max(0.0)
    }
}
