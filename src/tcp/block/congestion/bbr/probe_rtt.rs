//! The RTT without a queue: the recent minimum, and a pause every five seconds that drains the flow's
//! own queue (draft-ietf-ccwg-bbr 5.3.4).

use super::{Bbr, Flow, PROBE_RTT_GAIN, State};
use crate::tcp::block::congestion::rate::RateSample;
use crate::tcp::block::time::Instant;
use std::time::Duration;

/// BBR.MinRTTFilterLen.
const FILTER: Duration = Duration::from_secs(10);
/// BBR.ProbeRTTInterval.
const INTERVAL: Duration = Duration::from_secs(5);
/// BBR.ProbeRTTDuration.
const DURATION: Duration = Duration::from_millis(200);

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RoundTrip {
    /// BBR.min_rtt and BBR.min_rtt_stamp.
    min_rtt: Option<(Duration, Instant)>,
    /// BBR.probe_rtt_min_delay and BBR.probe_rtt_min_stamp.
    probe_rtt_min: Option<(Duration, Instant)>,
    /// BBR.probe_rtt_expired.
    probe_rtt_expired: bool,
    /// BBR.probe_rtt_done_stamp.
    probe_rtt_done_stamp: Option<Instant>,
    /// BBR.probe_rtt_round_done.
    probe_rtt_round_done: bool,
}

impl RoundTrip {
    /// BBR.min_rtt.
    pub(super) fn least(&self) -> Option<Duration> {
        self.min_rtt.map(|(least, _)| least)
    }

    /// The RTT of the handshake.
    pub(super) fn begin(&mut self, rtt: Duration, now: Instant) {
        self.min_rtt = Some((rtt, now));
        self.probe_rtt_min = self.min_rtt;
    }

    /// UpdateMinRTT.
    pub(super) fn update(&mut self, rtt: Option<Duration>, now: Instant) {
        self.probe_rtt_expired = self
            .probe_rtt_min
            .is_some_and(|(_, at)| now > at + INTERVAL);
        if let Some(rtt) = rtt
            && (self.probe_rtt_expired || self.probe_rtt_min.is_none_or(|(recent, _)| rtt < recent))
        {
            self.probe_rtt_min = Some((rtt, now));
        }
        let Some((recent, _)) = self.probe_rtt_min else {
            return;
        };
        let shorter = |(least, at): (Duration, Instant)| recent < least || now > at + FILTER;
        if self.min_rtt.is_none_or(shorter) {
            self.min_rtt = self.probe_rtt_min;
        }
    }
}

impl Bbr {
    /// CheckProbeRTT. Returns the new window.
    pub(super) fn check_probe_rtt(&mut self, sample: &RateSample, flow: &Flow) -> f64 {
        if self.state != State::ProbeRtt && self.rtt.probe_rtt_expired && !self.idle_restart {
            self.save_window(flow.cwnd);
            self.state = State::ProbeRtt;
            self.rtt.probe_rtt_done_stamp = None;
            self.probing.stop();
            self.start_round();
        }
        let mut window = flow.cwnd;
        if self.state == State::ProbeRtt {
            window = self.hold_probe_rtt(flow);
        }
        self.idle_restart &= sample.delivered == 0;
        window
    }

    /// HandleProbeRTT.
    fn hold_probe_rtt(&mut self, flow: &Flow) -> f64 {
        self.rate.limit_by_app(super::bytes(flow.inflight));
        if self.rtt.probe_rtt_done_stamp.is_none() {
            if flow.inflight <= self.probe_rtt_window(flow) {
                self.rtt.probe_rtt_done_stamp = Some(flow.now + DURATION);
                self.rtt.probe_rtt_round_done = false;
                self.start_round();
            }
            return flow.cwnd;
        }
        self.rtt.probe_rtt_round_done |= self.rounds.round_start;
        if self.rtt.probe_rtt_round_done {
            return self.end_probe_rtt(flow);
        }
        flow.cwnd
    }

    /// CheckProbeRTTDone, ExitProbeRTT.
    pub(super) fn end_probe_rtt(&mut self, flow: &Flow) -> f64 {
        if self
            .rtt
            .probe_rtt_done_stamp
            .is_none_or(|at| flow.now <= at)
        {
            return flow.cwnd;
        }
        if let Some((_, at)) = &mut self.rtt.probe_rtt_min {
            *at = flow.now;
        }
        self.reset_short_term();
        if self.pipe.full_bw_reached {
            self.start_down(flow);
            self.state = State::Cruise;
        } else {
            self.state = State::Startup;
        }
        self.restored(flow.cwnd)
    }

    /// ProbeRTTCwnd (5.6.4.5).
    pub(super) fn probe_rtt_window(&self, flow: &Flow) -> f64 {
        self.bdp(self.bw(), PROBE_RTT_GAIN)
            .max(Bbr::least_window(flow))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::block::time::start as any_time;

    #[test]
    fn the_least_of_ten_seconds_and_a_pause_after_five() {
        let start = any_time();
        let ms = Duration::from_millis;
        let mut rtt = RoundTrip::default();
        rtt.begin(ms(50), start);
        rtt.update(Some(ms(60)), start + ms(4900));
        assert!(!rtt.probe_rtt_expired);
        assert_eq!(rtt.least(), Some(ms(50)));
        rtt.update(Some(ms(60)), start + ms(5100));
        assert!(rtt.probe_rtt_expired);
        assert_eq!(rtt.least(), Some(ms(50)), "ten seconds");
        rtt.update(Some(ms(55)), start + ms(10_100));
        assert_eq!(rtt.least(), Some(ms(55)));
        rtt.update(Some(ms(40)), start + ms(10_200));
        assert_eq!(rtt.least(), Some(ms(40)));
    }
}
