//! RACK: a segment sent well before a delivered one is lost (RFC 8985 6). Pure.

use super::record::{Record, Sent};
use super::rtt::Rtt;
use crate::tcp::block::time::Instant;
use std::time::Duration;

/// Recoveries after which a wider reordering window narrows again (RFC 8985 6.2 step 4).
const PERSIST: u32 = 16;
/// RFC 8985 6.2 step 4: number of duplicate acknowledgements that indicates a loss without reordering.
const DUPLICATES: u64 = 3;

/// The smallest reordering window, since timers are no finer.
const GRAIN: Duration = Duration::from_millis(1);

/// The most recently sent segment that was delivered.
#[derive(Debug, Clone, Copy)]
struct Latest {
    /// RACK.xmit_ts.
    xmit_ts: Instant,
    /// RACK.end_seq.
    end_seq: u64,
    /// RACK.rtt.
    rtt: Duration,
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Rack {
    latest: Option<Latest>,
    /// RACK.fack: the end of the highest delivered segment.
    fack: u64,
    /// RACK.reordering_seen.
    reordering_seen: bool,
    /// RACK.dsack_round: the multiplier grows once per round, until this is acknowledged.
    dsack_round: Option<u64>,
    /// RACK.reo_wnd_mult.
    reo_wnd_mult: u32,
    /// RACK.reo_wnd_persist.
    reo_wnd_persist: u32,
}

impl Rack {
    /// A value of its cache line.
    pub(crate) fn line(&self) -> u64 {
        self.fack
    }

    pub(crate) fn new() -> Rack {
        Rack {
            latest: None,
            fack: 0,
            reordering_seen: false,
            dsack_round: None,
            reo_wnd_mult: 1,
            reo_wnd_persist: PERSIST,
        }
    }

    /// The end of the highest delivered segment.
    pub(crate) fn fack(&self) -> u64 {
        self.fack
    }

    /// Step 2: a segment was newly delivered. A retransmission acknowledged in less than the minimum
    /// RTT is ignored: the original was delivered.
    pub(crate) fn delivered(&mut self, sent: &Sent, rtt: &Rtt, now: Instant) {
        let took = now.saturating_duration_since(sent.xmit_ts);
        if sent.retransmitted && rtt.least().is_some_and(|least| took < least) {
            return;
        }
        let later = |latest: Latest| (sent.xmit_ts, sent.end) > (latest.xmit_ts, latest.end_seq);
        if self.latest.is_none_or(later) {
            self.latest = Some(Latest {
                xmit_ts: sent.xmit_ts,
                end_seq: sent.end,
                rtt: took,
            });
        }
    }

    /// Restores the former latest segment.
    pub(crate) fn restore(&mut self, before: &Rack) {
        self.latest = before.latest;
    }

    /// Step 3: updates RACK.fack.
    pub(crate) fn advance(&mut self, to: u64) {
        self.fack = self.fack.max(to);
    }

    /// A segment that was sent once was delivered after a later one.
    pub(crate) fn saw_reordering(&mut self) {
        self.reordering_seen = true;
    }

    /// Step 4: a D-SACK reports a spurious retransmission.
    pub(crate) fn saw_duplicate(&mut self, una: u64, nxt: u64) {
        if self.dsack_round.is_some_and(|round| una < round) {
            return;
        }
        self.dsack_round = Some(nxt);
        self.reo_wnd_mult = (self.reo_wnd_mult + 1).min(20);
        self.reo_wnd_persist = PERSIST;
    }

    /// A recovery has ended.
    pub(crate) fn recovered(&mut self) {
        self.reo_wnd_persist = self.reo_wnd_persist.saturating_sub(1);
        if self.reo_wnd_persist == 0 {
            self.reo_wnd_mult = 1;
        }
    }

    /// Step 4: RACK.reo_wnd.
    fn reordering_window(
        &self,
        record: &Record,
        rtt: &Rtt,
        (mss, recovering): (u64, bool),
    ) -> Duration {
        if !self.reordering_seen && (recovering || record.sacked() >= DUPLICATES * mss) {
            return Duration::ZERO;
        }
        self.window(rtt)
    }

    fn window(&self, rtt: &Rtt) -> Duration {
        let least = rtt.least().unwrap_or_default();
        let window = least / 4 * self.reo_wnd_mult;
        window.min(rtt.smoothed().unwrap_or_default()).max(GRAIN)
    }

    /// The observed amount of reordering.
    pub(crate) fn allowance(&self, rtt: &Rtt) -> Duration {
        match self.reordering_seen {
            true => self.window(rtt),
            false => Duration::ZERO,
        }
    }

    /// Step 5: marks segments lost that were sent long enough before; `each` is called for them.
    /// Returns the number of bytes, and when more may be lost.
    pub(crate) fn detect(
        &self,
        record: &mut Record,
        rtt: &Rtt,
        context: (u64, bool),
        now: Instant,
        mut each: impl FnMut(&Sent),
    ) -> (u64, Option<Instant>) {
        let Some(latest) = self.latest else {
            return (0, None);
        };
        let window = self.reordering_window(record, rtt, context);
        let mut deadline = None;
        let lost = record.judge(|sent| {
            if (sent.xmit_ts, sent.end) >= (latest.xmit_ts, latest.end_seq) {
                // Original transmissions are in order: all later entries were sent later.
                return sent.retransmitted.then_some(false);
            }
            if sent.retransmitted && sent.xmit_ts == latest.xmit_ts {
                // Sent at the same time but after it.
                return Some(false);
            }
            let due = sent.xmit_ts + latest.rtt + window;
            if due > now {
                deadline = deadline.max(Some(due));
            } else {
                each(sent);
            }
            Some(due <= now)
        });
        (lost, deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::block::time::start as any_time;

    const MSS: u64 = 100;

    struct Flight {
        record: Record,
        rack: Rack,
        rtt: Rtt,
        start: Instant,
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    impl Flight {
        /// Ten segments, a millisecond apart, over 40 ms.
        fn new() -> Flight {
            let start = any_time();
            let mut record = Record::default();
            for k in 0..10 {
                record.push(k * MSS..(k + 1) * MSS, 100, start + ms(k));
            }
            let mut rtt = Rtt::default();
            rtt.sample(ms(40), start);
            Flight {
                record,
                rack: Rack::new(),
                rtt,
                start,
            }
        }

        fn sack(&mut self, segment: u64, at: u64) -> (u64, Option<u64>) {
            let now = self.start + ms(at);
            let (rack, rtt) = (&mut self.rack, &self.rtt);
            let range = segment * MSS..(segment + 1) * MSS;
            self.record
                .sack(&range, |sent| rack.delivered(sent, rtt, now));
            self.rack.advance(range.end);
            self.detect(at)
        }

        fn detect(&mut self, at: u64) -> (u64, Option<u64>) {
            let now = self.start + ms(at);
            let (lost, next) =
                self.rack
                    .detect(&mut self.record, &self.rtt, (MSS, false), now, |_| ());
            let next = next.map(|next| (next - self.start).as_millis().try_into().unwrap());
            (lost, next)
        }
    }

    #[test]
    fn three_segments_after_a_hole_are_a_loss_without_reordering() {
        let mut flight = Flight::new();
        assert_eq!(flight.sack(1, 41), (0, Some(50)), "a quarter of 40 ms");
        assert_eq!(flight.sack(2, 42), (0, Some(50)));
        assert_eq!(flight.sack(3, 43), (MSS, None));
    }

    #[test]
    fn a_delay_below_a_quarter_rtt_is_no_loss() {
        let mut flight = Flight::new();
        flight.rack.saw_reordering();
        for k in 1..10 {
            assert_eq!(flight.sack(k, 40 + k).0, 0);
        }
        assert_eq!(flight.detect(49).0, 0);
        assert_eq!(flight.detect(50).0, MSS);
    }

    #[test]
    fn spurious_retransmissions_widen_the_reordering_window_for_a_while() {
        let mut flight = Flight::new();
        flight.rack.saw_reordering();
        flight.rack.saw_duplicate(0, 1000);
        flight.rack.saw_duplicate(10, 1000);
        assert_eq!(flight.sack(1, 41).1, Some(60), "once in a round");
        flight.rack.saw_duplicate(1000, 1000);
        assert_eq!(flight.detect(41).1, Some(70));
        (0..PERSIST).for_each(|_| flight.rack.recovered());
        assert_eq!(flight.detect(41).1, Some(50));
    }

    #[test]
    fn a_lost_retransmission_is_lost_again() {
        let mut flight = Flight::new();
        (1..4).for_each(|k| {
            flight.sack(k, 40 + k);
        });
        let range = flight.record.next_lost(1000).unwrap();
        assert_eq!(range, 0..MSS);
        flight.record.resent(&range, 100, flight.start + ms(43));
        // Segments sent before it do not indicate a loss.
        assert_eq!(flight.sack(9, 49), (500, None));
        // Segments sent after it do.
        let now = flight.start + ms(50);
        flight.record.resent(&(400..500), 100, now);
        assert_eq!(flight.sack(4, 90).0, MSS);
    }

    #[test]
    fn an_acknowledgement_too_early_is_for_the_original() {
        let mut flight = Flight::new();
        flight.record.lose_first(MSS, |_| ());
        flight.record.resent(&(0..MSS), 100, flight.start + ms(30));
        flight.record.acknowledge(MSS, |sent| {
            flight
                .rack
                .delivered(sent, &flight.rtt, flight.start + ms(45));
        });
        assert!(flight.rack.latest.is_none());
    }
}
