//! Which bytes the peer lacks of those that were sent, by what it says of the ones behind them (SACK,
//! RFC 2018), and when they are sent again (RFC 6675).
//!
//! The engine knows nothing of SACK. It sends one segment again when an acknowledgement comes for the
//! fourth time, and then all of them when its timer runs out, after a second at the earliest: where a
//! link cuts packets of 64 KiB into segments, and one of those packets is lost, that is each time. So
//! holes are filled here. The engine is not asked, and sees nothing but an acknowledgement that it has
//! waited for.
//!
//! * A byte is lost when the peer has more than two segments' worth behind it, and the first one that it
//!   lacks also when the third acknowledgement in a row says that (RFC 6675 4, 5).
//! * As much is sent again as is delivered meanwhile, and a segment more for each acknowledgement that
//!   delivers anything; but once seven tenths of what was in flight (CUBIC's reduction) are on their way
//!   again, seven tenths of what is delivered (after RFC 6937). The engine's congestion window has
//!   nothing to do with it. Of acknowledgements that repeat themselves the engine hears those that
//!   tell of something new (RFC 6675 2): others are answers to what was sent twice, and it would take
//!   them for another loss.
//! * What was sent again is taken for lost once more when the peer has more than two segments' worth of
//!   what was sent for the first time after that.
//! * Where the last of what was sent is lost, nothing tells: when nothing was acknowledged for two
//!   round-trip times, and 100 ms, a segment is sent again to have the peer say what it has (a tail loss
//!   probe, RFC 8985 7). Once, then the engine's timer has its turn. What the peer then lacks is lost.
//!
//! Positions as in the [`guard`](super::guard). Pure.

use super::ahead::Ahead;
use std::ops::Range;
use std::time::{Duration, Instant};

/// A probe waits at least so long. A peer that delays acknowledgements needs 40 ms; and a timer that
/// is nearer is armed, and fires for nothing, the more often.
const PROBE_AFTER: Duration = Duration::from_millis(100);
/// Segments that are sent again at once when a probe has shown a loss (RFC 6928), and bytes at any time.
const BURST: u64 = 10;
const LARGEST_BURST: u64 = 64 * 1024;

/// So many segments behind a byte, and it is not lost yet.
const REORDERED: u64 = 2;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// What the peer has behind what it has acknowledged.
    has: Ahead,
    acknowledged: u64,
    /// Acknowledgements in a row that said only of more behind it.
    repeated: u32,
    round: Option<Round>,
    /// Smoothed (RFC 6298 2).
    round_trip: Option<Duration>,
    /// Text that ends there left then, for the first time; and nothing was sent again since (Karn).
    timed: Option<(u64, Instant)>,
    /// The same, but something was sent again since.
    doubtful: Option<(u64, Instant)>,
    /// How long that took, unless something was measured after it.
    took: Option<Duration>,
    /// When text was last sent, or acknowledged.
    heard_at: Option<Instant>,
    probed: bool,
}

/// A loss that is being repaired.
#[derive(Debug)]
struct Round {
    /// It is over when this is acknowledged.
    until: u64,
    /// Holes before this were filled.
    repaired: u64,
    /// What is behind this left later than what was filled last.
    mark: u64,
    /// Bytes that may be sent again now.
    allowance: u64,
    /// Bytes that were sent again and are not known to be delivered, and how many that should be.
    out: u64,
    target: u64,
}

impl Recovery {
    /// The peer is not known to lack anything.
    pub(super) fn is_idle(&self) -> bool {
        self.has.len() == 0
    }

    /// Text that ends there has left, for the first time or again.
    pub(super) fn sent(&mut self, end: u64, first: bool, now: Instant) {
        match first {
            true => drop(self.timed.get_or_insert((end, now))),
            false => self.doubtful = self.doubtful.or(self.timed.take()),
        }
        self.heard_at = Some(now);
    }

    fn progress(&mut self, acknowledged: u64, now: Instant) {
        let sample = self.timed.take_if(|(end, _)| *end <= acknowledged);
        if let Some((_, at)) = sample {
            let sample = now.saturating_duration_since(at);
            let smooth = |former: Duration| (former * 7 + sample) / 8;
            self.round_trip = Some(self.round_trip.map_or(sample, smooth));
            self.took = None;
        }
        let doubtful = self.doubtful.take_if(|(end, _)| *end <= acknowledged);
        if let Some((_, at)) = doubtful {
            self.took = Some(now.saturating_duration_since(at));
        }
        self.heard_at = Some(now);
        self.probed = false;
    }

    /// A round trip of which three are enough to wait for an acknowledgement (RFC 6298 2.2). Where text
    /// was sent again before it was acknowledged, nothing is known but that it took no longer than that;
    /// as that may have been too soon, twice that time is enough (Karn).
    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.took.map(|took| took * 2 / 3).max(self.round_trip)
    }

    /// When to probe, if text is in flight until then and nothing is heard.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        let after = (self.round_trip? * 2).max(PROBE_AFTER);
        self.heard_at.filter(|_| !self.probed).map(|at| at + after)
    }

    /// What to probe with: the first segment that is lacking, if one is known to be; else the last of all.
    pub(super) fn probe(
        &mut self,
        (acknowledged, end, sent): (u64, u64, u64),
        segment: u64,
    ) -> Option<Range<u64>> {
        self.probed = true;
        if !self.is_idle() {
            // It is lost by now, and so is what may have filled the hole.
            self.begin(sent, segment);
            return self.next((end, sent), segment, segment);
        }
        (acknowledged < end).then(|| acknowledged.max(end.saturating_sub(segment))..end)
    }

    /// An acknowledgement has come, and says that the peer has these too. Everything before `sent` has
    /// been sent. `true`: that was new.
    pub(super) fn heard(
        &mut self,
        acknowledged: u64,
        blocks: impl Iterator<Item = Range<u64>>,
        (sent, segment): (u64, u64),
        now: Instant,
    ) -> bool {
        // Until something is known to be missing, an acknowledgement delivers what was on time.
        let before = match self.is_idle() {
            true => acknowledged,
            false => self.acknowledged + self.behind(0),
        };
        let repeats = acknowledged <= self.acknowledged;
        if !repeats {
            self.acknowledged = acknowledged;
            self.progress(acknowledged, now);
        }
        self.has.advance(self.acknowledged);
        for block in blocks {
            // Others say what came twice (RFC 2883), or nothing that makes sense.
            if self.acknowledged < block.start && block.start < block.end && block.end <= sent {
                self.has.add(block.start, block.end);
            }
        }
        let delivered = (self.acknowledged + self.behind(0)).saturating_sub(before);
        self.repeated = match repeats {
            true => self.repeated + u32::from(delivered > 0),
            false => 0,
        };
        let many = self.behind(self.acknowledged) > REORDERED * segment;
        let shown = self.probed && delivered > 0 && !self.is_idle();
        let lost = many || shown || u64::from(self.repeated) > REORDERED;
        let over = |round: &mut Round| self.acknowledged >= round.until;
        let former = self.round.take_if(over);
        let lost_again = self
            .round
            .as_ref()
            .is_some_and(|round| self.behind(round.mark) > REORDERED * segment);
        match &mut self.round {
            None if lost => {
                let burst = if shown { BURST * segment } else { segment };
                self.begin(sent, delivered.max(burst));
                if let (Some(former), Some(round)) = (former, &mut self.round) {
                    round.repaired = former.repaired;
                    round.mark = former.mark;
                }
            }
            None => {}
            Some(round) => {
                round.out = round.out.saturating_sub(delivered);
                if delivered > 0 {
                    let more = match round.out < round.target {
                        true => delivered + segment,
                        false => (delivered * 7 / 10).max(segment),
                    };
                    let most = LARGEST_BURST.max(BURST * segment);
                    round.allowance = (round.allowance + more).min(most);
                }
                if lost_again {
                    round.repaired = self.acknowledged;
                    round.mark = sent;
                }
            }
        }
        delivered > 0
    }

    fn begin(&mut self, sent: u64, allowance: u64) {
        self.round = Some(Round {
            until: sent,
            repaired: self.acknowledged,
            mark: sent,
            allowance,
            out: 0,
            target: (sent - self.acknowledged) * 7 / 10,
        });
    }

    /// What to send again next, at most so many bytes and nothing from `end` on. Everything before `sent`
    /// has been sent.
    pub(super) fn next(
        &mut self,
        (end, sent): (u64, u64),
        most: u64,
        segment: u64,
    ) -> Option<Range<u64>> {
        let round = self.round.as_ref()?;
        let mut start = round.repaired.max(self.acknowledged);
        let mut stop = None;
        for (from, to) in self.has.ranges() {
            if from > start {
                stop = Some(from);
                break;
            }
            start = start.max(to);
        }
        // Behind the last that the peer has, nothing is known.
        let stop = stop?.min(end).min(start + most);
        let is_first = self.has.ranges().all(|(from, _)| from > start);
        if start >= stop || !(is_first || self.behind(start) > REORDERED * segment) {
            return None;
        }
        let round = self.round.as_mut()?;
        let whole = stop - start;
        let len = if whole <= round.allowance {
            whole
        } else {
            round.allowance / segment * segment
        };
        if len == 0 {
            return None;
        }
        round.allowance -= len;
        round.out += len;
        round.repaired = start + len;
        round.mark = sent;
        Some(start..start + len)
    }

    /// Bytes that the peer has from there on, beyond what it has acknowledged.
    fn behind(&self, position: u64) -> u64 {
        let ranges = self.has.ranges();
        ranges
            .map(|(from, to)| to.saturating_sub(from.max(position)))
            .sum()
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "blocks of a SACK option")]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    const SEGMENT: u64 = 100;

    /// A sender's recovery, what it has sent, and what is acknowledged.
    #[derive(Default)]
    struct Sender {
        recovery: Recovery,
        sent: u64,
        acknowledged: u64,
    }

    impl Sender {
        fn new(acknowledged: u64, sent: u64) -> Sender {
            let mut sender = Sender {
                recovery: Recovery::default(),
                sent,
                acknowledged: 0,
            };
            sender.heard(acknowledged, []);
            sender
        }

        fn heard<const N: usize>(&mut self, ack: u64, has: [Range<u64>; N]) -> bool {
            self.heard_at(ack, has, SystemClock.now())
        }

        fn heard_at<const N: usize>(
            &mut self,
            ack: u64,
            has: [Range<u64>; N],
            at: Instant,
        ) -> bool {
            self.acknowledged = self.acknowledged.max(ack);
            let has = has.into_iter();
            self.recovery.heard(ack, has, (self.sent, SEGMENT), at)
        }

        fn next(&mut self) -> Option<Range<u64>> {
            self.recovery.next((self.sent, self.sent), 1000, SEGMENT)
        }

        fn probe(&mut self) -> Option<Range<u64>> {
            let stands = (self.acknowledged, self.sent, self.sent);
            self.recovery.probe(stands, SEGMENT)
        }
    }

    #[test]
    fn what_only_overtook_is_not_sent_again() {
        let mut sender = Sender::new(1000, 2000);
        sender.heard(1000, []);
        assert!(sender.recovery.is_idle());
        sender.heard(1000, [1100..1300]);
        assert_eq!(sender.next(), None, "two segments are not enough");
        sender.heard(1300, []);
        assert!(sender.recovery.is_idle());
    }

    #[test]
    fn a_hole_is_filled_once() {
        let mut sender = Sender::new(1000, 2000);
        sender.heard(1000, [1100..1201]);
        sender.heard(1000, [1100..1301]);
        assert_eq!(sender.next(), Some(1000..1100));
        assert_eq!(sender.next(), None);
        // What was sent before it says nothing of it.
        sender.heard(1000, [1100..2000]);
        assert_eq!(sender.next(), None);
        sender.heard(2000, []);
        assert_eq!(sender.next(), None);
        assert!(sender.recovery.is_idle() && sender.recovery.round.is_none());
    }

    #[test]
    fn of_little_text_the_third_time_counts() {
        let mut sender = Sender::new(1000, 2000);
        sender.heard(1000, [1010..1020]);
        sender.heard(1000, [1010..1030]);
        assert_eq!(sender.next(), None);
        sender.heard(1000, [1010..1030]);
        assert_eq!(sender.next(), None, "that is no news");
        sender.heard(1000, [1010..1040]);
        assert_eq!(sender.next(), Some(1000..1010));
        assert_eq!(sender.next(), None);
    }

    #[test]
    fn several_holes_and_one_that_may_yet_arrive() {
        let mut sender = Sender::new(0, 3000);
        sender.heard(0, [100..1000, 1200..2000, 2100..2200]);
        assert_eq!(sender.next(), Some(0..100));
        assert_eq!(sender.next(), Some(1000..1200));
        assert_eq!(sender.next(), None, "only one segment is behind 2000");
        sender.heard(0, [2100..2400]);
        assert_eq!(sender.next(), Some(2000..2100));
    }

    #[test]
    fn so_much_is_sent_again_as_is_delivered() {
        let mut sender = Sender::new(0, 1000);
        sender.heard(0, [600..901]);
        assert_eq!(sender.next(), Some(0..300), "three were delivered");
        assert_eq!(sender.next(), None);
        sender.heard(0, [901..911]);
        assert_eq!(sender.next(), Some(300..400), "one more");
        sender.heard(0, [911..961]);
        assert_eq!(sender.next(), Some(400..500));
        // An acknowledgement that delivers nothing allows nothing.
        sender.heard(0, [911..961]);
        assert_eq!(sender.next(), None);
        // More than seven tenths of all that was in flight are on their way again.
        let round = sender.recovery.round.as_mut().unwrap();
        assert_eq!((round.target, round.allowance), (700, 61));
        (round.out, round.allowance) = (2000, 0);
        sender.heard(300, []);
        assert_eq!(sender.recovery.round.as_ref().unwrap().allowance, 210);
    }

    #[test]
    fn what_may_be_sent_again_does_not_pile_up() {
        let mut sender = Sender::new(0, 10_000_000);
        sender.heard(0, [100..400]);
        assert_eq!(sender.next(), Some(0..100));
        for to in 1..1000 {
            sender.heard(0, [100..to * 10_000]);
        }
        let allowance = sender.recovery.round.as_ref().unwrap().allowance;
        assert_eq!(allowance, LARGEST_BURST);
    }

    #[test]
    fn what_is_lost_again_is_sent_again() {
        let mut sender = Sender::new(0, 500);
        sender.heard(0, [100..500]);
        assert_eq!(sender.next(), Some(0..100));
        sender.sent = 900;
        sender.heard(0, [500..700]);
        assert_eq!(sender.next(), None, "two segments behind it are not enough");
        sender.heard(0, [700..800]);
        assert_eq!(sender.next(), Some(0..100));
        sender.heard(0, [800..900]);
        assert_eq!(sender.next(), None, "that was sent before");
    }

    #[test]
    fn what_was_filled_late_is_not_lost_for_what_came_before_it() {
        let mut sender = Sender::new(0, 1000);
        sender.heard(0, [100..900]);
        assert_eq!(sender.next(), Some(0..100));
        sender.sent = 1500;
        sender.heard(0, [1000..1200]);
        // One hole is filled behind that.
        assert_eq!(sender.next(), None);
        sender.heard(900, [1000..1210]);
        assert_eq!(sender.next(), Some(900..1000));
        sender.heard(900, [1000..1500]);
        assert_eq!(sender.next(), None, "all that left before");
    }

    #[test]
    fn what_is_new_is_told() {
        let mut sender = Sender::new(0, 1000);
        assert!(!sender.heard(0, []));
        assert!(sender.heard(0, [100..200]));
        assert!(!sender.heard(0, [100..200]));
        assert!(sender.heard(0, [100..300]));
        assert!(sender.heard(300, []));
        assert!(!sender.heard(300, []));
    }

    #[test]
    fn nonsense_is_no_news() {
        let mut sender = Sender::new(500, 1000);
        #[expect(clippy::reversed_empty_ranges, reason = "nonsense")]
        let news = sender.heard(500, [0..50, 100..400, 700..600, 600..600, 900..2000]);
        assert!(!news);
        assert!(sender.recovery.is_idle());
        assert_eq!(sender.next(), None);
    }

    #[test]
    fn limits_of_a_packet_and_of_the_text() {
        let mut sender = Sender::new(0, 7000);
        sender.heard(0, [2500..6000]);
        assert_eq!(sender.next(), Some(0..1000));
        let recovery = &mut sender.recovery;
        let all = (1500, 7000);
        assert_eq!(recovery.next(all, 1000, SEGMENT), Some(1000..1500));
        assert_eq!(recovery.next(all, 1000, SEGMENT), None);
    }

    #[test]
    fn the_end_of_what_was_sent_is_probed_once() {
        let start = SystemClock.now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut sender = Sender::new(0, 1050);
        sender.recovery.sent(100, true, at(0));
        assert_eq!(sender.recovery.probe_at(), None, "no round trip is known");
        sender.heard_at(100, [], at(80));
        sender.recovery.sent(1000, true, at(90));
        sender.recovery.sent(1050, true, at(95));
        assert_eq!(sender.recovery.probe_at(), Some(at(95 + 160)));
        assert_eq!(sender.probe(), Some(950..1050));
        assert_eq!(sender.recovery.probe_at(), None);
        sender.recovery.sent(1050, false, at(255));
        // What is sent again tells nothing of the round trip.
        sender.heard_at(1000, [], at(1000));
        let round_trip = sender.recovery.round_trip;
        assert_eq!(round_trip, Some(Duration::from_millis(80)));
        assert_eq!(sender.recovery.probe_at(), Some(at(1160)));
        assert_eq!(sender.probe(), Some(1000..1050));
        sender.heard_at(1050, [], at(1100));
        assert_eq!(sender.probe(), None, "all has arrived");
        for end in 2000..2100 {
            sender.recovery.sent(end, true, at(2000));
            sender.heard_at(end, [], at(2001));
        }
        assert!(sender.recovery.round_trip < Some(Duration::from_millis(2)));
        assert_eq!(sender.recovery.probe_at(), Some(at(2001) + PROBE_AFTER));
    }

    #[test]
    fn what_a_probe_shows_is_lost() {
        let mut sender = Sender::new(0, 3000);
        assert_eq!(sender.probe(), Some(2900..3000));
        sender.heard(0, [2900..3000]);
        assert_eq!(sender.next(), Some(0..1000), "ten segments at once");
    }

    #[test]
    fn a_probe_fills_the_first_hole_again() {
        let mut sender = Sender::new(0, 600);
        sender.heard(0, [200..600]);
        assert_eq!(sender.next(), Some(0..200));
        assert_eq!(sender.probe(), Some(0..100));
        assert_eq!(sender.next(), None, "one segment");
        sender.heard(100, [200..600]);
        assert_eq!(sender.next(), Some(100..200));
    }
}
