//! One connection as seen beside one of its ends.

use super::Batch;
use super::ranges::Ranges;
use super::segment::Segment;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How long the acknowledgement of a FIN may wait for the own one.
const END_DELAY: Duration = Duration::from_micros(500);

/// Payload of a full segment is taken to be no less than this (RFC 9293 3.7.1).
const LEAST_FULL: u64 = 536;

/// The segments of one side. Positions count from its SYN, which is 0.
#[derive(Debug, Default)]
pub(super) struct Way {
    pub(super) syn: Option<Segment>,
    /// Behind all that was sent.
    pub(super) end: u64,
    pub(super) fin: Option<u64>,
    /// The most that the other side has acknowledged, and the rightmost edge of a window that it
    /// has advertised.
    pub(super) acked: u64,
    pub(super) edge: u64,
    /// The newest timestamp.
    pub(super) stamp: Option<u32>,
}

impl Way {
    /// The position of a sequence number, near another one.
    pub(super) fn position(&self, seq: u32, near: u64) -> i64 {
        let initial = self.syn.as_ref().map_or(0, |syn| syn.seq);
        let distance = seq.wrapping_sub(initial.wrapping_add(near as u32));
        near.cast_signed() + i64::from(distance.cast_signed())
    }
}

/// How often the same first byte has left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Repeats {
    pub(super) last: Instant,
    /// After the time before.
    pub(super) interval: Duration,
    pub(super) intervals: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Sent segments, and received ones.
    pub(super) out: Way,
    pub(super) incoming: Way,
    /// The bytes that have left; the first one is at position 1.
    pub(super) sent: Vec<u8>,
    /// Received ranges, those received more than once, and those that must have been accepted.
    pub(super) arrived: Ranges,
    pub(super) twice: Ranges,
    sure: Ranges,
    stamps: HashSet<u32>,
    /// Timestamps of original transmissions, and their ends.
    pub(super) dates: Vec<(u64, u32)>,
    pub(super) echo: Option<u32>,
    /// Where data began that came ahead of a hole: of the last batch, and one before. Not all of it need have
    /// been taken.
    pub(super) latest: Vec<(u64, bool)>,
    batch: u64,
    /// Payload of the largest segment that has arrived.
    full: u64,
    /// Since when in-order bytes are not acknowledged.
    pub(super) due: Option<Instant>,
    /// When the same first byte left.
    pub(super) repeats: HashMap<u64, Repeats>,
    told: Option<(i64, u64)>,
    /// Segments that have arrived, and of those without RST the ones that brought something again.
    pub(super) heard: u64,
    pub(super) again: u64,
    pub(super) resets: u64,
    pub(super) idle_acks: u64,
    pub(super) duplicates_told: u64,
    pub(super) burst: (Option<Instant>, u64),
    pub(super) widest: u64,
    /// A reset has passed.
    pub(super) reset: bool,
    pub(super) silent: bool,
    /// The link was full: the next packet was made before.
    pub(super) waited: bool,
    next_syn: Option<Segment>,
}

impl View {
    pub(super) fn is_established(&self) -> bool {
        self.incoming.syn.is_some() && self.out.acked > 0
    }

    /// Its ends may have forgotten it.
    pub(super) fn is_over(&self) -> bool {
        let closed = self.out.fin.is_some() && self.incoming.fin.is_some();
        self.reset || closed || !self.is_established()
    }

    /// Both FINs are acknowledged.
    fn is_closed(&self) -> bool {
        let ways = [&self.out, &self.incoming];
        ways.iter()
            .all(|way| way.fin.is_some_and(|fin| way.acked > fin))
    }

    /// Both sides have offered it in their SYNs.
    pub(super) fn agreed(&self, offers: impl Fn(&Segment) -> bool) -> bool {
        let both = [&self.out.syn, &self.incoming.syn];
        both.iter().all(|syn| syn.as_ref().is_some_and(&offers))
    }

    /// How far the windows of one side are shifted (RFC 7323 2.2).
    pub(super) fn shift(&self, of: &Way, segment: &Segment) -> u8 {
        if segment.syn || !self.agreed(|syn| syn.scale.is_some()) {
            return 0;
        }
        let shift = of.syn.as_ref().and_then(|syn| syn.scale);
        shift.unwrap_or(0).min(14)
    }

    /// The next connection with the same addresses and ports.
    pub(super) fn next(&mut self, now: Instant) -> View {
        let mut next = View::default();
        let syn = self.next_syn.take().or(self.incoming.syn.take());
        if let Some(syn) = syn {
            next.arrives(&syn, (Batch::default(), Duration::ZERO), now);
        }
        next
    }

    /// A segment arrives, as one of a batch. `delay`: how long its acknowledgement may take.
    pub(super) fn arrives(&mut self, segment: &Segment, batch: (Batch, Duration), now: Instant) {
        if segment.rst {
            self.reset = true;
            self.due = None;
            return;
        }
        self.heard += 1;
        let known = self.incoming.syn.as_ref();
        let other = known.is_some_and(|syn| syn.seq != segment.seq);
        if segment.syn && (other || self.is_over()) {
            self.next_syn = Some(segment.clone());
        }
        if segment.syn && other {
            return;
        }
        if segment.syn && known.is_none() {
            self.incoming.syn = Some(segment.clone());
            self.arrived.insert(0..1);
            self.sure.insert(0..1);
            self.out.edge = 1 + u64::from(segment.window);
        }
        if self.incoming.syn.is_none() {
            return;
        }
        self.hear_ack(segment);
        if self.is_closed() {
            self.due = None;
        }
        self.hear_data(segment, batch, now);
        if let Some((value, _)) = segment.stamps {
            self.stamps.insert(value);
            let newest = self.incoming.stamp.get_or_insert(value);
            if !is_older(value, *newest) {
                *newest = value;
            }
        }
    }

    fn hear_ack(&mut self, segment: &Segment) {
        let Some(ack) = segment.ack.filter(|_| self.out.syn.is_some()) else {
            self.repeats.clear();
            return;
        };
        let ack = self.out.position(ack, self.out.acked);
        let window = u64::from(segment.window) << self.shift(&self.incoming, segment);
        let news = self.told != Some((ack, window));
        self.told = Some((ack, window));
        if news || !segment.blocks().is_empty() || segment.syn {
            self.repeats.clear();
        }
        self.widest = self.widest.max(window);
        if (0..=self.out.end.cast_signed()).contains(&ack) {
            let ack = ack.cast_unsigned();
            self.out.acked = self.out.acked.max(ack);
            self.out.edge = self.out.edge.max(ack + window);
        }
    }

    /// Its payload and FIN.
    fn hear_data(&mut self, segment: &Segment, (batch, delay): (Batch, Duration), now: Instant) {
        let near = self.incoming.acked;
        let start = self.incoming.position(segment.seq, near) + i64::from(segment.syn);
        let Ok(start) = u64::try_from(start) else {
            return;
        };
        let end = start + segment.len as u64;
        if segment.fin {
            self.incoming.fin.get_or_insert(end);
        }
        let range = start..end + u64::from(segment.fin);
        if range.is_empty() {
            return;
        }
        self.incoming.end = self.incoming.end.max(range.end);
        let known = self.arrived.overlaps(&range);
        self.again += u64::from(!known.is_empty());
        known.into_iter().for_each(|part| self.twice.insert(part));
        self.arrived.insert(range.clone());
        // A full window, and the timestamps of overtaken segments, are reasons to drop it.
        let newest = self.incoming.stamp;
        let old = |(value, _)| newest.is_some_and(|newest| is_older(value, newest));
        let taken = range.start..range.end.min(self.incoming.edge);
        let maybe = segment.stamps.is_some_and(old) || taken.is_empty() || self.reset;
        if segment.len > 0 && start > self.taken() {
            self.note_latest((start, !maybe), batch);
        }
        if maybe || self.is_closed() {
            return;
        }
        let before = self.taken();
        self.sure.insert(taken);
        self.full = self.full.max(segment.len as u64);
        let reach = self.taken();
        let waits = reach - self.incoming.acked;
        // Behind a hole, in one, or again.
        let apart = start > self.arrived.reach(0) || reach > range.end || range.end <= before;
        let at_once = apart || waits >= 2 * self.full.max(LEAST_FULL);
        let due = now
            + match at_once {
                true => Duration::ZERO,
                false if segment.fin => delay.min(END_DELAY),
                false => delay,
            };
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
    }

    fn note_latest(&mut self, start: (u64, bool), batch: Batch) {
        if batch.frames == 1 && start.1 {
            // Nothing leaves before it has been looked at.
            self.latest.clear();
        }
        if self.batch != batch.number {
            self.batch = batch.number;
            let last = self.latest.iter().rposition(|(_, sure)| *sure);
            self.latest.drain(..last.unwrap_or(0));
        }
        self.latest.push(start);
    }

    /// Behind the bytes in order that must have been taken.
    pub(super) fn taken(&self) -> u64 {
        self.sure.reach(0)
    }

    /// All below is acknowledged: it was taken.
    pub(super) fn acknowledged(&mut self, to: u64) {
        self.incoming.acked = to;
        self.sure.insert(0..to);
    }

    /// Whether a timestamp has arrived.
    pub(super) fn knows_stamp(&self, value: u32) -> bool {
        self.stamps.contains(&value)
    }
}

/// Comparison of 32-bit numbers that wrap.
pub(super) fn is_older(one: u32, other: u32) -> bool {
    one.wrapping_sub(other).cast_signed() < 0
}
