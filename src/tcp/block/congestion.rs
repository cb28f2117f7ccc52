//! Congestion control: the window, slow start, what is remembered to undo a reduction, validation
//! of a window that is not used, and the rate at which bursts are paced.
//!
//! RFC 5681 3.1, 6928 (initial window), 9406 (slow start), 3465 (bytes are counted), 2861 and 7661 4.4
//! (a window that is not used does not grow, and is forgotten with time). The algorithm beyond slow
//! start is a [`Controller`]. Recovery of losses sets the window meanwhile
//! ([`prr`](super::recovery::prr)). [`Bbr`] has a model in place of all of these: it is shown each packet
//! that leaves, arrives or is lost, and sets the window after each acknowledgement. Deterministic; time is
//! an argument.

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

/// RFC 6928 2: segments, and bytes where segments are large.
const INITIAL_SEGMENTS: u64 = 10;
const INITIAL_BYTES: u64 = 14_600;
/// Below this round trip nothing is paced: such a path is faster than we are.
const PACED_FROM: Duration = Duration::from_millis(1);

/// What is put back when a reduction was for nothing.
#[derive(Debug, Clone)]
struct Prior {
    cwnd: u64,
    ssthresh: u64,
    algorithm: Algorithm,
}

/// What an acknowledgement says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AckSample {
    pub(crate) delivered: u64,
    pub(crate) una: u64,
    pub(crate) nxt: u64,
    /// Measured with this acknowledgement.
    pub(crate) rtt: Option<Duration>,
    /// SRTT.
    pub(crate) srtt: Option<Duration>,
    pub(crate) now: Instant,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Congestion {
    /// cwnd: `window >= mss`.
    cwnd: u64,
    ssthresh: u64,
    /// Payload of a full segment.
    mss: u64,
    algorithm: Algorithm,
    hystart: HyStart,
    prior: Option<Box<Prior>>,
    /// The window has kept something from being sent in the present round.
    limited: bool,
    /// The most that was in flight in the present round, which ends with this position.
    used: (u64, u64),
    /// When something was last sent.
    sent_at: Option<Instant>,
}

impl Congestion {
    /// `seed`: of what differs between connections.
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

    /// Another algorithm, which goes on from the present window. `false`: it is the one that there is.
    pub(crate) fn change(&mut self, kind: Kind, (seed, nxt): (u32, u64)) -> bool {
        if self.algorithm.kind() == kind {
            return false;
        }
        if self.is_model() {
            // What it has learned is the window.
            self.ssthresh = self.cwnd;
        }
        self.algorithm = Algorithm::new(kind, initial_window(self.mss), seed);
        self.hystart.restart(nxt);
        self.prior = None;
        true
    }

    /// A model of the path sets the window, also while losses are recovered.
    pub(crate) fn is_model(&self) -> bool {
        matches!(self.algorithm, Algorithm::Bbr(_))
    }

    /// What a model is told of the connection.
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

    /// The round trip of the handshake.
    pub(crate) fn established(&mut self, rtt: Duration, now: Instant) {
        if let Some(bbr) = self.bbr() {
            bbr.begin(rtt, now);
        }
    }

    /// Gives back memory that an idle connection does not need.
    pub(crate) fn rest(&mut self) {
        if let Some(bbr) = self.bbr() {
            bbr.rest();
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

    /// The handshake or the path has told another size of segments. Before anything is sent the window is
    /// that of the size; afterwards it is the same number of bytes.
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

    /// Something is about to be sent after nothing was in flight: what was learned long ago does not
    /// count any more (RFC 2861 3: half for each RTO, RFC 5681 4.1). `true`: it was.
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

    /// The user has written less than could be sent, while so much is in flight.
    pub(crate) fn limit_by_app(&mut self, in_flight: u64) {
        if let Some(bbr) = self.bbr() {
            bbr.limit_by_app(in_flight);
        }
    }

    /// A packet, or a part of one, is delivered.
    pub(crate) fn packet_arrived(&mut self, sent: &Sent, now: Instant) {
        if let Some(bbr) = self.bbr() {
            bbr.arrived(sent, now);
        }
    }

    /// A packet, or a part of one, is taken for lost; what follows of it for the window comes in
    /// [`lost`](Self::lost).
    pub(crate) fn packet_lost(&mut self, sent: &Sent, sack: bool, now: Instant) {
        let flow = self.flow(0, sack, now);
        if let Some(bbr) = self.bbr() {
            bbr.lost(sent, &flow);
        }
    }

    /// All that an acknowledgement delivers was told. For a model: the window that follows.
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

    /// What could be sent was. `limited`: but for the window there would be more (RFC 7661 4.1).
    pub(crate) fn validate(&mut self, limited: bool, pipe: u64, (una, nxt): (u64, u64)) {
        let (most, end) = self.used;
        if una >= end || limited || (!self.limited && pipe > most) {
            self.limited = limited;
            self.used = (pipe, nxt);
        }
    }

    /// The window is in use: RFC 7661 4.4, and in slow start so much of it that it will be.
    fn is_used(&self) -> bool {
        self.limited || (self.in_slow_start() && self.cwnd < 2 * self.used.0)
    }

    /// Something was delivered, and nothing is being recovered.
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

    /// Something was lost (RFC 5681 3.2). The window itself is set by what recovers it.
    pub(crate) fn lost(&mut self) {
        let window = self.cwnd as f64;
        if let Some(bbr) = self.bbr() {
            bbr.recovery_begins(window);
            return;
        }
        self.remember();
        self.ssthresh = self.algorithm.reduce(self.cwnd, self.mss);
    }

    /// A router has marked something (RFC 3168 6.1.2): as for a loss, but nothing is to be sent again.
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

    /// A recovery is over (RFC 6937bis: cwnd = ssthresh).
    pub(crate) fn recovered(&mut self) {
        let window = self.cwnd as f64;
        if let Some(bbr) = self.bbr() {
            self.cwnd = bytes(bbr.recovered(window));
            return;
        }
        let before = self.prior.as_ref().map_or(self.cwnd, |prior| prior.cwnd);
        self.cwnd = self.ssthresh.min(before).max(self.mss);
    }

    /// The latest reduction was for nothing (RFC 4015 3.2, 3.3).
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

    /// Bytes per second at which bursts leave; `None`: all at once. Twice the window in a round trip while
    /// it is to double, and a little more than the window otherwise (as in Linux). A model has its own rate.
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

    /// What may leave at once when a connection begins. What a model sends is paced from the first byte on.
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
    fn a_window_that_is_not_used_does_not_grow_and_is_forgotten() {
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
    fn a_reduction_for_nothing_is_undone() {
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
    fn what_is_faster_than_we_are_is_not_paced() {
        let congestion = Congestion::new(Kind::Reno, 1000, 1);
        assert_eq!(congestion.pace(None), None);
        assert_eq!(congestion.pace(Some(Duration::from_micros(900))), None);
        assert_eq!(
            congestion.pace(Some(Duration::from_millis(100))),
            Some(200_000.0)
        );
    }
}
