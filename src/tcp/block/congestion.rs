//! Congestion control: the window, slow start, undoing a reduction, validation of an unused window, and
//! the pacing rate.
//!
//! RFC 5681 3.1, 6928 (initial window), 9406 (slow start), 3465 (bytes are counted), 2861 and 7661 4.4
//! (an unused window does not grow, and decays). The algorithm beyond slow start is a [`Controller`].
//! During loss recovery [`prr`](super::recovery::prr) sets the window. [`Bbr`] replaces all of these by
//! a model: it is notified of each packet that is sent, delivered or lost, and sets the window after
//! each acknowledgement. Deterministic; time is an argument.

pub(crate) mod algorithm;
pub(crate) mod bbr;
pub(crate) mod controller;
pub(crate) mod cubic;
pub(crate) mod hystart;
pub(crate) mod rate;
pub(crate) mod reno;

use super::recovery::record::Sent;
use crate::tcp::block::time::Instant;
use algorithm::{Algorithm, Kind};
use bbr::{Bbr, Flow, bytes};
use controller::{Controller, Growth};
use hystart::{HyStart, Round};
use rate::Departure;
use std::time::Duration;

/// RFC 6928 2: in segments.
const INITIAL_SEGMENTS: u64 = 10;
const INITIAL_BYTES: u64 = 14_600;
/// With a smaller RTT there is no pacing: such a path is faster than this host.
const PACED_FROM: Duration = Duration::from_millis(1);

/// The values restored after a spurious reduction.
#[derive(Debug, Clone)]
struct Prior {
    cwnd: u64,
    ssthresh: u64,
    algorithm: Algorithm,
}

/// The contents of an acknowledgement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AckSample {
    pub(crate) delivered: u64,
    pub(crate) una: u64,
    pub(crate) nxt: u64,
    /// RTT sample of this acknowledgement.
    pub(crate) rtt: Option<Duration>,
    /// SRTT.
    pub(crate) srtt: Option<Duration>,
    pub(crate) now: Instant,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Congestion {
    /// `cwnd >= mss`.
    cwnd: u64,
    ssthresh: u64,
    /// Payload of a full segment.
    mss: u64,
    algorithm: Algorithm,
    hystart: HyStart,
    prior: Option<Box<Prior>>,
    /// The sender was cwnd-limited in the present round.
    limited: bool,
    /// The maximum in flight in the present round, and the position that ends the round.
    used: (u64, u64),
    /// The time of the latest transmission.
    sent_at: Option<Instant>,
}

impl Congestion {
    /// A value of each cache line.
    pub(crate) fn lines(&self) -> impl Sized + use<> {
        (self.prior.is_some(), self.mss, self.limited)
    }

    /// `seed`: a value that differs between connections.
    pub(crate) fn new(kind: Kind, mss: usize, seed: u32) -> Congestion {
        let mss = mss.max(1) as u64;
        Congestion {
            cwnd: initial_window(mss),
            ssthresh: u64::MAX,
            mss,
            algorithm: Algorithm::new(kind, initial_window(mss), seed),
            hystart: HyStart::default(),
            prior: None,
            limited: false,
            used: (0, 0),
            sent_at: None,
        }
    }

    fn bbr(&mut self) -> Option<&mut Bbr> {
        match &mut self.algorithm {
            Algorithm::Bbr(bbr) => Some(bbr),
            Algorithm::Cubic(_) | Algorithm::Reno(_) => None,
        }
    }

    /// Changes the algorithm, keeping the present window. `false` if it is the present one.
    pub(crate) fn change(&mut self, kind: Kind, (seed, nxt): (u32, u64)) -> bool {
        if self.algorithm.kind() == kind {
            return false;
        }
        if self.is_model() {
            // The present window becomes ssthresh.
            self.ssthresh = self.cwnd;
        }
        self.algorithm = Algorithm::new(kind, initial_window(self.mss), seed);
        self.hystart.restart(nxt);
        self.prior = None;
        true
    }

    /// Whether a model of the path sets the window, also during loss recovery.
    pub(crate) fn is_model(&self) -> bool {
        matches!(self.algorithm, Algorithm::Bbr(_))
    }

    /// The connection's values for a model.
    fn flow(&self, in_flight: u64, sack: bool, now: Instant) -> Flow {
        Flow {
            cwnd: self.cwnd as f64,
            mss: self.mss as f64,
            inflight: in_flight as f64,
            is_cwnd_limited: self.limited,
            sack,
            now,
        }
    }

    /// The RTT of the handshake.
    pub(crate) fn established(&mut self, rtt: Duration, now: Instant) {
        if let Some(bbr) = self.bbr() {
            bbr.begin(rtt, now);
        }
    }

    /// Releases memory that an idle connection does not need.
    pub(crate) fn release_memory(&mut self) {
        if let Some(bbr) = self.bbr() {
            bbr.release_memory();
        }
    }

    /// cwnd, in bytes.
    pub(crate) fn window(&self) -> u64 {
        self.cwnd
    }

    pub(crate) fn ssthresh(&self) -> u64 {
        self.ssthresh
    }

    pub(crate) fn in_slow_start(&self) -> bool {
        self.cwnd < self.ssthresh
    }

    /// The segment size has changed by the handshake or the path. Before the first transmission the
    /// initial window follows it; afterwards the window keeps its bytes.
    pub(crate) fn set_mss(&mut self, mss: usize) {
        self.mss = mss.max(1) as u64;
        if self.sent_at.is_none() {
            self.cwnd = initial_window(self.mss);
        }
        self.cwnd = self.cwnd.max(self.mss);
    }

    /// The SYN was lost more than once: one segment (RFC 5681 3.1).
    pub(crate) fn handshake_was_lost(&mut self) {
        self.cwnd = self.mss;
    }

    /// Transmission is about to restart after idle time: the window decays (RFC 2861 3: half for each
    /// RTO, RFC 5681 4.1). `true` if it was reduced.
    pub(crate) fn wake(&mut self, rto: Duration, now: Instant) -> bool {
        let flow = self.flow(0, true, now);
        if let Some(bbr) = self.bbr() {
            self.cwnd = bytes(bbr.wake(&flow));
            return false;
        }
        let Some(since) = self.sent_at else {
            return true;
        };
        let idle = now.saturating_duration_since(since);
        if idle <= rto {
            return false;
        }
        let restart = initial_window(self.mss).min(self.cwnd);
        self.ssthresh = self.ssthresh.max(self.cwnd / 4 * 3);
        let mut left = idle;
        while left > rto && self.cwnd > restart {
            left -= rto;
            self.cwnd /= 2;
        }
        self.cwnd = self.cwnd.max(restart);
        self.algorithm.restart();
        true
    }

    /// A packet was sent.
    pub(crate) fn sent(&mut self, departure: &Departure<'_>) {
        self.sent_at = Some(departure.now);
        if let Some(bbr) = self.bbr() {
            bbr.sent(departure);
        }
    }

    /// The sender is application-limited, with this many bytes in flight.
    pub(crate) fn limit_by_app(&mut self, in_flight: u64) {
        if let Some(bbr) = self.bbr() {
            bbr.limit_by_app(in_flight);
        }
    }

    /// A packet, or a part of it, was delivered.
    pub(crate) fn packet_arrived(&mut self, sent: &Sent, now: Instant) {
        if let Some(bbr) = self.bbr() {
            bbr.arrived(sent, now);
        }
    }

    /// A packet, or a part of it, was marked lost; [`lost`](Self::lost) then reduces the window.
    pub(crate) fn packet_lost(&mut self, sent: &Sent, sack: bool, now: Instant) {
        let flow = self.flow(0, sack, now);
        if let Some(bbr) = self.bbr() {
            bbr.lost(sent, &flow);
        }
    }

    /// All deliveries of an acknowledgement were reported: a model updates the window.
    pub(crate) fn model(
        &mut self,
        rtt: Option<Duration>,
        (in_flight, sack): (u64, bool),
        now: Instant,
    ) {
        let flow = self.flow(in_flight, sack, now);
        if let Some(bbr) = self.bbr() {
            let window = bbr.acknowledged(rtt, &flow);
            self.set_window(bytes(window));
        }
    }

    /// Transmission has stopped. `limited`: only because of cwnd (RFC 7661 4.1).
    pub(crate) fn validate(&mut self, limited: bool, pipe: u64, (una, nxt): (u64, u64)) {
        let (most, end) = self.used;
        if una >= end || limited || (!self.limited && pipe > most) {
            self.limited = limited;
            self.used = (pipe, nxt);
        }
    }

    /// Whether cwnd is used (RFC 7661 4.4); in slow start, half of it suffices.
    fn is_used(&self) -> bool {
        self.limited || (self.in_slow_start() && self.cwnd < 2 * self.used.0)
    }

    /// Data was delivered outside of loss recovery.
    pub(crate) fn acknowledged(&mut self, ack: &AckSample) {
        if !self.is_used() {
            return;
        }
        if self.in_slow_start() {
            let growth = self.hystart.acknowledged(&Round {
                delivered: ack.delivered,
                mss: self.mss,
                una: ack.una,
                nxt: ack.nxt,
                rtt: ack.rtt,
                paced: ack.srtt.is_some_and(|rtt| rtt >= PACED_FROM),
            });
            match growth {
                Some(growth) => self.cwnd += growth,
                None => {
                    self.ssthresh = self.cwnd;
                    self.algorithm.restart();
                }
            }
            return;
        }
        self.cwnd = self.algorithm.avoid(&Growth {
            window: self.cwnd,
            delivered: ack.delivered,
            mss: self.mss,
            rtt: ack.srtt.unwrap_or_default(),
            now: ack.now,
        });
    }

    fn remember(&mut self) {
        self.prior = Some(Box::new(Prior {
            cwnd: self.cwnd,
            ssthresh: self.ssthresh,
            algorithm: self.algorithm.clone(),
        }));
    }

    /// A loss was detected (RFC 5681 3.2): sets ssthresh. Loss recovery sets the window.
    pub(crate) fn lost(&mut self) {
        let window = self.cwnd as f64;
        if let Some(bbr) = self.bbr() {
            bbr.recovery_begins(window);
            return;
        }
        self.remember();
        self.ssthresh = self.algorithm.reduce(self.cwnd, self.mss);
    }

    /// A router has marked a packet (RFC 3168 6.1.2): as for a loss, without retransmission.
    pub(crate) fn marked(&mut self, in_flight: u64, now: Instant) {
        let flow = self.flow(in_flight, true, now);
        if let Some(bbr) = self.bbr() {
            bbr.marked(&flow);
            return;
        }
        self.prior = None;
        self.ssthresh = self.algorithm.reduce(self.cwnd, self.mss);
        self.cwnd = self.ssthresh.min(self.cwnd);
    }

    /// A retransmission timeout (RFC 5681 3.1 (4)). `first`: no recovery is under way.
    pub(crate) fn timed_out(&mut self, first: bool, nxt: u64) {
        let window = self.cwnd as f64;
        match self.bbr() {
            Some(bbr) => bbr.timed_out(window),
            None if first => self.lost(),
            None => {}
        }
        self.cwnd = self.mss;
        self.hystart.restart(nxt);
    }

    /// The window during a recovery.
    pub(crate) fn set_window(&mut self, window: u64) {
        self.cwnd = window.max(self.mss);
    }

    /// A recovery has ended (RFC 6937bis: cwnd = ssthresh).
    pub(crate) fn recovered(&mut self) {
        let window = self.cwnd as f64;
        if let Some(bbr) = self.bbr() {
            self.cwnd = bytes(bbr.recovered(window));
            return;
        }
        let before = self.prior.as_ref().map_or(self.cwnd, |prior| prior.cwnd);
        self.cwnd = self.ssthresh.min(before).max(self.mss);
    }

    /// The latest reduction was spurious (RFC 4015 3.2, 3.3).
    pub(crate) fn undo(&mut self, now: Instant) {
        let flow = self.flow(0, true, now);
        if let Some(bbr) = self.bbr() {
            self.cwnd = bytes(bbr.undo(&flow));
            return;
        }
        let Some(prior) = self.prior.take() else {
            return;
        };
        self.cwnd = self.cwnd.max(prior.cwnd);
        self.ssthresh = prior.ssthresh.max(self.ssthresh);
        self.algorithm = prior.algorithm;
    }

    /// The pacing rate in bytes per second; `None` without pacing. Two windows per RTT in slow start,
    /// and slightly more than one otherwise (as in Linux). A model has its own rate.
    pub(crate) fn pace(&self, smoothed: Option<Duration>) -> Option<f64> {
        if let Algorithm::Bbr(bbr) = &self.algorithm {
            return bbr.pacing();
        }
        let rtt = smoothed.filter(|rtt| *rtt >= PACED_FROM)?;
        let factor = if self.cwnd < self.ssthresh / 2 {
            2.0
        } else {
            1.2
        };
        Some(factor * self.cwnd as f64 / rtt.as_secs_f64())
    }

    /// The unpaced burst at the beginning of a connection; with a model pacing starts with the first
    /// byte.
    pub(crate) fn initial_burst(&self) -> u64 {
        match self.algorithm {
            Algorithm::Bbr(_) => 0,
            Algorithm::Cubic(_) | Algorithm::Reno(_) => initial_window(self.mss),
        }
    }

    #[cfg(test)]
    pub(crate) fn brief(&self) -> String {
        match &self.algorithm {
            Algorithm::Bbr(bbr) => bbr.brief(),
            Algorithm::Cubic(_) | Algorithm::Reno(_) => String::new(),
        }
    }
}

/// RFC 6928 2.
fn initial_window(mss: u64) -> u64 {
    (INITIAL_SEGMENTS * mss).min(INITIAL_BYTES.max(2 * mss))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::block::recovery::record::Record;
    use crate::tcp::block::time::start as any_time;

    fn ack(delivered: u64, now: Instant) -> AckSample {
        AckSample {
            delivered,
            una: 1,
            nxt: 0,
            rtt: None,
            srtt: Some(Duration::from_millis(50)),
            now,
        }
    }

    fn sent(congestion: &mut Congestion, now: Instant) {
        congestion.sent(&Departure {
            bytes: 0,
            in_flight: 0,
            record: &Record::default(),
            now,
        });
    }

    #[test]
    fn the_initial_window_of_rfc_6928() {
        let table = [(536, 5360), (1448, 14_480), (4000, 14_600), (9000, 18_000)];
        for (mss, window) in table {
            assert_eq!(Congestion::new(Kind::Cubic, mss, 1).window(), window);
        }
    }

    #[test]
    fn an_unused_window_does_not_grow_and_decays() {
        let now = any_time();
        let mut congestion = Congestion::new(Kind::Cubic, 1000, 1);
        sent(&mut congestion, now);
        congestion.validate(false, 3000, (0, 3000));
        congestion.acknowledged(&ack(3000, now));
        assert_eq!(congestion.window(), 10_000);
        congestion.validate(true, 10_000, (3000, 13_000));
        for _ in 0..9 {
            congestion.acknowledged(&ack(10_000, now));
        }
        assert_eq!(congestion.window(), 100_000);
        let rto = Duration::from_millis(300);
        assert!(!congestion.wake(rto, now + rto));
        assert!(congestion.wake(rto, now + rto * 5 / 2));
        assert_eq!(
            (congestion.window(), congestion.ssthresh()),
            (25_000, u64::MAX)
        );
        congestion.wake(rto, now + rto * 100);
        assert_eq!(congestion.window(), 10_000);
    }

    #[test]
    fn a_spurious_reduction_is_undone() {
        let now = any_time();
        let mut congestion = Congestion::new(Kind::Cubic, 1000, 1);
        sent(&mut congestion, now);
        congestion.lost();
        assert_eq!(congestion.ssthresh(), 7000);
        congestion.set_window(3000);
        congestion.recovered();
        assert_eq!(congestion.window(), 7000);
        congestion.undo(now);
        assert_eq!(
            (congestion.window(), congestion.ssthresh()),
            (10_000, u64::MAX)
        );
        congestion.timed_out(true, 5000);
        assert_eq!((congestion.window(), congestion.ssthresh()), (1000, 7000));
        congestion.timed_out(false, 5000);
        assert_eq!(congestion.ssthresh(), 7000);
        congestion.undo(now);
        assert_eq!(congestion.window(), 10_000);
    }

    #[test]
    fn a_path_faster_than_the_host_is_not_paced() {
        let congestion = Congestion::new(Kind::Reno, 1000, 1);
        assert_eq!(congestion.pace(None), None);
        assert_eq!(congestion.pace(Some(Duration::from_micros(900))), None);
        assert_eq!(
            congestion.pace(Some(Duration::from_millis(100))),
            Some(200_000.0)
        );
    }
}
