//! BBR, version 3: a model of the path (bandwidth, RTT without a queue, capacity without loss)
//! determines pacing rate and window.
//!
//! draft-ietf-ccwg-bbr; sections as of August 2026 are cited where they are followed. It uses a path
//! with random losses, which loss-based controls treat as congestion, and keeps queues short.
//!
//! | file | section |
//! |---|---|
//! | here | 5.2 (order of steps), 5.6 (control parameters), 5.4 (idle), 5.6.4.4 (recovery) |
//! | `model` | 5.5 (the path's model, short-term bounds, aggregation) |
//! | `startup` | 5.3.1, 5.3.2 (Startup, Drain) |
//! | `probe_bw`, `probe_rtt` | 5.3.3, 5.3.4 |
//! | [`noise`] | none: losses that the flow does not cause |
//! | [`rate`](super::rate) | 4.1 (delivery rate samples) |
//!
//! One difference from the draft: it treats each loss as a sign of congestion, so that two percent of
//! random loss take most of the rate. Here only losses beyond the rate measured without a queue count
//! ([`noise`]). Without random losses it is as in the draft.
//!
//! Sizes are numbers of bytes and rates bytes per second, both as `f64`: far below 2^53, or infinite.
//! Deterministic; time is an argument.

mod model;
mod noise;
mod probe_bw;
mod probe_rtt;
mod startup;

use super::rate::{Departure, Rate, RateSample};
use crate::tcp::block::recovery::record::Sent;
use crate::tcp::block::time::Instant;
use model::{Aggregation, Latest, MaxBandwidth};
use noise::Noise;
use probe_bw::Probing;
use probe_rtt::RoundTrip;
use startup::FullPipe;
use std::time::Duration;

/// BBR.StartupPacingGain: 4 ln 2.
const STARTUP_GAIN: f64 = 2.77;
/// BBR.DrainPacingGain.
const DRAIN_GAIN: f64 = 0.5;
/// BBR.DefaultCwndGain.
const WINDOW_GAIN: f64 = 2.0;
/// BBR.ProbeRTTCwndGain.
const PROBE_RTT_GAIN: f64 = 0.5;
/// BBR.PacingMarginPercent.
const MARGIN: f64 = 0.99;
/// BBR.LossThresh.
const LOSS_THRESHOLD: f64 = 0.02;
/// BBR.Beta.
const BETA: f64 = 0.7;
/// BBR.Headroom.
const HEADROOM: f64 = 0.15;
/// BBR.MinPipeCwnd, in segments.
const LEAST_SEGMENTS: f64 = 4.0;
/// The largest send quantum.
const LARGEST_QUANTUM: f64 = 65_536.0;

/// BBR.state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Startup,
    Drain,
    Down,
    Cruise,
    Refill,
    Up,
    ProbeRtt,
}

impl State {
    /// IsInAProbeBWState.
    fn is_probe_bw(self) -> bool {
        matches!(
            self,
            State::Down | State::Cruise | State::Refill | State::Up
        )
    }

    /// IsProbingBW.
    fn is_accelerating(self) -> bool {
        matches!(self, State::Startup | State::Refill | State::Up)
    }

    /// 5.6.1.
    fn pacing_gain(self) -> f64 {
        match self {
            State::Startup => STARTUP_GAIN,
            State::Drain => DRAIN_GAIN,
            State::Down => 0.9,
            State::Cruise | State::Refill | State::ProbeRtt => 1.0,
            State::Up => 1.25,
        }
    }

    fn window_gain(self) -> f64 {
        match self {
            State::Up => 2.25,
            State::ProbeRtt => PROBE_RTT_GAIN,
            _ => WINDOW_GAIN,
        }
    }
}

/// Values of the connection (C).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    /// C.cwnd.
    pub(crate) cwnd: f64,
    /// C.SMSS.
    pub(crate) mss: f64,
    /// C.inflight.
    pub(crate) inflight: f64,
    /// C.is_cwnd_limited.
    pub(crate) is_cwnd_limited: bool,
    /// The peer takes SACK (C.has_selective_acks).
    pub(crate) sack: bool,
    pub(crate) now: Instant,
}

/// Packet-timed round trips (5.5.1).
#[derive(Debug, Clone, Copy, Default)]
struct Rounds {
    /// BBR.round_count.
    round_count: u64,
    /// BBR.next_round_delivered.
    next_round_delivered: u64,
    /// BBR.round_start.
    round_start: bool,
}

/// The values restored after a spurious loss (5.5.11.1).
#[derive(Debug, Clone, Copy)]
struct Undo {
    state: Option<State>,
    bw_shortterm: f64,
    inflight_shortterm: f64,
    inflight_longterm: f64,
}

/// A volume as a number of bytes.
#[expect(
    clippy::cast_possible_truncation,
    reason = "far below 2^53, and never negative"
)]
pub(super) fn bytes(volume: f64) -> u64 {
    volume.max(0.0) as u64
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Bbr {
    rate: Rate,
    state: State,
    rounds: Rounds,
    max_bw: MaxBandwidth,
    /// BBR.bw_shortterm, BBR.inflight_shortterm, BBR.inflight_longterm.
    bw_shortterm: f64,
    inflight_shortterm: f64,
    inflight_longterm: f64,
    latest: Latest,
    aggregation: Aggregation,
    pipe: FullPipe,
    probing: Probing,
    rtt: RoundTrip,
    noise: Noise,
    /// C.pacing_rate, once a round trip was measured.
    pacing_rate: Option<f64>,
    initial_window: f64,
    /// BBR.idle_restart.
    idle_restart: bool,
    /// Loss recovery is under way.
    recovering: bool,
    /// BBR.prior_cwnd.
    prior_cwnd: f64,
    undo: Undo,
}

impl Bbr {
    /// OnInit (5.2.1). `seed` of random numbers.
    pub(crate) fn new(initial_window: f64, seed: u32) -> Bbr {
        Bbr {
            rate: Rate::default(),
            state: State::Startup,
            rounds: Rounds::default(),
            max_bw: MaxBandwidth::default(),
            bw_shortterm: f64::INFINITY,
            inflight_shortterm: f64::INFINITY,
            inflight_longterm: f64::INFINITY,
            latest: Latest::default(),
            aggregation: Aggregation::default(),
            pipe: FullPipe::default(),
            probing: Probing::new(seed),
            rtt: RoundTrip::default(),
            noise: Noise::default(),
            pacing_rate: None,
            initial_window,
            idle_restart: false,
            recovering: false,
            prior_cwnd: 0.0,
            undo: Undo {
                state: None,
                bw_shortterm: 0.0,
                inflight_shortterm: 0.0,
                inflight_longterm: 0.0,
            },
        }
    }

    /// C.pacing_rate.
    pub(crate) fn pacing(&self) -> Option<f64> {
        self.pacing_rate
    }

    /// A line for debugging.
    #[cfg(test)]
    pub(crate) fn brief(&self) -> String {
        format!(
            "{:?} pace {:.2} max {:.2} short {:.2} {:.0} long {:.0} noise {:.3}",
            self.state,
            self.pacing_rate.unwrap_or_default() * 8e-6,
            self.max_bw.get() * 8e-6,
            self.bw_shortterm * 8e-6,
            self.inflight_shortterm / 1448.0,
            self.inflight_longterm / 1448.0,
            self.noise.share(),
        )
    }

    /// The RTT of the handshake.
    pub(crate) fn begin(&mut self, rtt: Duration, now: Instant) {
        self.rtt.begin(rtt, now);
        self.start_pacing(rtt);
    }

    /// InitPacingRate (5.6.2), once there is an RTT sample.
    fn start_pacing(&mut self, rtt: Duration) {
        let seconds = rtt.max(Duration::from_micros(1)).as_secs_f64();
        self.pacing_rate = Some(STARTUP_GAIN * self.initial_window / seconds);
    }

    /// Nothing is in flight: releases the memory of samples.
    pub(crate) fn release_memory(&mut self) {
        self.rate.release_memory();
    }

    // Events of transmission.

    pub(crate) fn sent(&mut self, departure: &Departure<'_>) {
        self.rate.sent(departure);
    }

    /// The sender is application-limited (CheckIfApplicationLimited, 4.1.2.4).
    pub(crate) fn limit_by_app(&mut self, in_flight: u64) {
        self.rate.limit_by_app(in_flight);
    }

    /// HandleRestartFromIdle (5.4.1): transmission restarts with nothing in flight. Returns the new
    /// window.
    pub(crate) fn wake(&mut self, flow: &Flow) -> f64 {
        if !self.rate.is_app_limited() {
            return flow.cwnd;
        }
        self.idle_restart = true;
        self.aggregation.restart(flow.now);
        if self.state.is_probe_bw() {
            self.set_pacing(1.0);
        } else if self.state == State::ProbeRtt {
            return self.end_probe_rtt(flow);
        }
        flow.cwnd
    }

    // Events of acknowledgements and timers.

    /// A packet, or a part of it, was delivered.
    pub(crate) fn arrived(&mut self, sent: &Sent, now: Instant) {
        self.rate.arrived(sent, now);
    }

    /// UpdateOnACK (5.2.3). Returns the new window.
    pub(crate) fn acknowledged(&mut self, rtt: Option<Duration>, flow: &Flow) -> f64 {
        if let Some(rtt) = rtt.filter(|_| self.pacing_rate.is_none()) {
            self.start_pacing(rtt);
        }
        let Some(sample) = self.rate.sample(rtt, self.rtt.least()) else {
            return flow.cwnd;
        };
        let mut flow = *flow;
        self.update_latest(&sample);
        self.update_congestion_signals(&sample, &flow);
        self.update_aggregation(&sample, &flow);
        self.check_full_pipe(&sample);
        self.check_startup(&sample, &flow);
        self.check_drain(&flow);
        self.update_cycle(&sample, &flow);
        self.rtt.update(sample.rtt, flow.now);
        flow.cwnd = self.check_probe_rtt(&sample, &flow);
        self.latest.advance(&sample);
        self.set_pacing(self.state.pacing_gain());
        self.window(&sample, &flow)
    }

    /// SetPacingRateWithGain (5.6.2).
    fn set_pacing(&mut self, gain: f64) {
        let rate = gain * self.bw() * MARGIN;
        let present = self.pacing_rate.unwrap_or(0.0);
        if rate > 0.0 && (self.pipe.full_bw_reached || rate > present) {
            self.pacing_rate = Some(rate);
        }
    }

    /// SetSendQuantum (5.6.3).
    fn quantum(&self, flow: &Flow) -> f64 {
        let quantum = self.pacing_rate.unwrap_or(0.0) * 0.001;
        quantum.min(LARGEST_QUANTUM).max(2.0 * flow.mss)
    }

    fn least_window(flow: &Flow) -> f64 {
        LEAST_SEGMENTS * flow.mss
    }

    /// BDPMultiple (5.6.4.2).
    fn bdp(&self, bw: f64, gain: f64) -> f64 {
        match self.rtt.least() {
            None => self.initial_window,
            Some(least) => gain * bw * least.as_secs_f64(),
        }
    }

    /// QuantizationBudget (5.6.4.2).
    fn quantized(&self, inflight: f64, flow: &Flow) -> f64 {
        let budget = 3.0 * self.quantum(flow);
        let inflight = inflight.max(budget).max(Bbr::least_window(flow));
        match self.state {
            State::Up => inflight + 2.0 * flow.mss,
            _ => inflight,
        }
    }

    /// Inflight (5.6.4.2).
    fn inflight(&self, bw: f64, flow: &Flow) -> f64 {
        self.quantized(self.bdp(bw, 1.0), flow)
    }

    /// SetCwnd (5.6.4.6).
    fn window(&self, sample: &RateSample, flow: &Flow) -> f64 {
        let most = self.bdp(self.bw(), self.state.window_gain()) + self.aggregation.extra();
        let most = self.quantized(most, flow);
        let grown = flow.cwnd + sample.newly_acked as f64;
        let window = if self.pipe.full_bw_reached {
            grown.min(most)
        } else if flow.cwnd < most || (self.rate.delivered() as f64) < self.initial_window {
            grown
        } else {
            flow.cwnd
        };
        let window = window.max(Bbr::least_window(flow));
        self.bounded(window, flow)
    }

    /// BoundCwndForProbeRTT, BoundCwndForModel (5.6.4.5, 5.6.4.7).
    fn bounded(&self, window: f64, flow: &Flow) -> f64 {
        let cap = match self.state {
            State::Startup | State::Drain => f64::INFINITY,
            State::Down | State::Refill | State::Up => self.inflight_longterm,
            State::Cruise => self.inflight_with_headroom(flow),
            State::ProbeRtt => self
                .inflight_with_headroom(flow)
                .min(self.probe_rtt_window(flow)),
        };
        let cap = cap.min(self.inflight_shortterm);
        window.min(cap.max(Bbr::least_window(flow)))
    }

    // Recovery (5.6.4.4).

    /// SaveCwnd.
    fn save_window(&mut self, window: f64) {
        self.prior_cwnd = if self.recovering || self.state == State::ProbeRtt {
            self.prior_cwnd.max(window)
        } else {
            window
        };
    }

    /// RestoreCwnd.
    fn restored(&self, window: f64) -> f64 {
        window.max(self.prior_cwnd)
    }

    /// SaveStateUponLoss (5.5.11.1).
    fn save_state(&mut self, window: f64) {
        self.save_window(window);
        self.undo = Undo {
            state: None,
            bw_shortterm: self.bw_shortterm,
            inflight_shortterm: self.inflight_shortterm,
            inflight_longterm: self.inflight_longterm,
        };
    }

    /// HandleLostPacket (5.5.10.2).
    pub(crate) fn lost(&mut self, sent: &Sent, flow: &Flow) {
        if !self.latest.is_loss_in_round {
            // NoteLoss.
            self.latest.loss_round_delivered = self.rate.delivered();
            self.save_state(flow.cwnd);
        }
        self.latest.is_loss_in_round = true;
        self.pipe.note_loss(sent.start, sent.end);
        let Some(loss) = self.rate.lost(sent) else {
            return;
        };
        self.note_probe_loss(&loss, flow);
    }

    /// A router has marked a packet. The draft only states that it is a sign of congestion (3.6); it is
    /// treated like losses beyond the threshold.
    pub(crate) fn marked(&mut self, flow: &Flow) {
        if !self.latest.is_loss_in_round {
            self.latest.loss_round_delivered = self.rate.delivered();
        }
        self.latest.is_loss_in_round = true;
        self.latest.marked = true;
        if self.state == State::Startup {
            self.pipe.full_bw_reached = true;
            self.inflight_longterm = self.bdp(self.bw(), 1.0).max(self.latest.inflight_latest);
        }
        self.probe_was_marked(flow);
    }

    /// OnEnterFastRecovery: the lost packets were reported before.
    pub(crate) fn recovery_begins(&mut self, window: f64) {
        self.save_window(window);
        self.recovering = true;
        self.pipe.recovery_begins(self.rounds.round_count);
    }

    /// OnEnterRTO: the lost packets are reported afterwards.
    pub(crate) fn timed_out(&mut self, window: f64) {
        self.save_state(window);
        self.recovering = true;
        self.pipe.recovery_begins(self.rounds.round_count);
    }

    /// Loss recovery has ended. Returns the new window, which the next acknowledgement bounds.
    pub(crate) fn recovered(&mut self, window: f64) -> f64 {
        self.recovering = false;
        self.restored(window)
    }

    /// HandleSpuriousLossDetection (5.5.11.2). Returns the new window.
    pub(crate) fn undo(&mut self, flow: &Flow) -> f64 {
        let window = self.recovered(flow.cwnd);
        self.latest.is_loss_in_round = false;
        self.pipe.reset();
        self.bw_shortterm = self.bw_shortterm.max(self.undo.bw_shortterm);
        self.inflight_shortterm = self.inflight_shortterm.max(self.undo.inflight_shortterm);
        self.inflight_longterm = self.inflight_longterm.max(self.undo.inflight_longterm);
        match self.undo.state.take() {
            Some(State::Startup) if self.state != State::Startup => {
                self.pipe.full_bw_reached = false;
                if self.state != State::ProbeRtt {
                    self.state = State::Startup;
                }
            }
            Some(State::Up) if !matches!(self.state, State::Up | State::ProbeRtt) => {
                self.start_refill();
            }
            _ => {}
        }
        window
    }
}
