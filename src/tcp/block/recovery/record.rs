//! The transmit record of all data that is not acknowledged cumulatively.
//!
//! One entry for each packet that was given to the link, even if the link cuts it into segments; an
//! entry is split when a part of it is SACKed or lost. Invariants: entries are contiguous and cover
//! `[SND.UNA, SND.NXT)`; each is in flight, lost, or SACKed; `in_flight`, `lost` and `sacked` are the
//! bytes of each kind (a FIN counts as one). Pure.

use crate::tcp::block::time::Instant;
use std::collections::VecDeque;
use std::ops::Range;

/// The status of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    InFlight,
    /// Marked lost, and not retransmitted since.
    Lost,
    /// Acknowledged by SACK (RFC 2018).
    Sacked,
}

/// A range of positions that was sent as one packet.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// When it was last sent (RFC 8985 5.1: Segment.xmit_ts).
    pub(crate) xmit_ts: Instant,
    /// It was sent more than once (Segment.retransmitted).
    pub(crate) retransmitted: bool,
    pub(crate) status: Status,
    /// Bytes of each of its segments.
    pub(crate) size: u16,
    /// Number of its packet, in the order of transmission; wraps.
    pub(crate) packet: u32,
}

impl Sent {
    pub(crate) fn len(&self) -> u64 {
        self.end - self.start
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Record {
    sent: VecDeque<Sent>,
    in_flight: u64,
    lost: u64,
    sacked: u64,
    /// Nothing below this position is lost.
    lost_from: u64,
    /// Number of the latest packet.
    packet: u32,
}

impl Record {
    pub(crate) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Bytes in the network: RFC 6675's pipe.
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Bytes marked lost.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// SACKed bytes.
    pub(crate) fn sacked(&self) -> u64 {
        self.sacked
    }

    pub(crate) fn first(&self) -> Option<&Sent> {
        self.sent.front()
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Sent> {
        self.sent.iter()
    }

    /// Number of the latest packet.
    pub(crate) fn latest_packet(&self) -> u32 {
        self.packet
    }

    /// When the data at a position was last sent.
    pub(crate) fn sent_at(&self, position: u64) -> Option<Instant> {
        let index = self.sent.partition_point(|sent| sent.end <= position);
        self.sent.get(index).map(|sent| sent.xmit_ts)
    }

    fn count(&mut self, status: Status) -> &mut u64 {
        match status {
            Status::InFlight => &mut self.in_flight,
            Status::Lost => &mut self.lost,
            Status::Sacked => &mut self.sacked,
        }
    }

    fn set(&mut self, index: usize, status: Status) {
        let (len, before) = (self.sent[index].len(), self.sent[index].status);
        *self.count(before) -= len;
        *self.count(status) += len;
        self.sent[index].status = status;
        if status == Status::Lost {
            self.lost_from = self.lost_from.min(self.sent[index].start);
        }
    }

    /// New data was sent.
    pub(crate) fn push(&mut self, range: Range<u64>, size: u16, now: Instant) {
        debug_assert!(self.sent.back().is_none_or(|last| last.end == range.start));
        self.in_flight += range.end - range.start;
        self.packet = self.packet.wrapping_add(1);
        self.sent.push_back(Sent {
            start: range.start,
            end: range.end,
            xmit_ts: now,
            retransmitted: false,
            status: Status::InFlight,
            size,
            packet: self.packet,
        });
    }

    /// Index of the entry with this position, split so that it begins there.
    fn split(&mut self, position: u64) -> usize {
        let index = self.sent.partition_point(|sent| sent.end <= position);
        let inside = self
            .sent
            .get_mut(index)
            .filter(|sent| sent.start < position);
        let Some(before) = inside else { return index };
        let behind = Sent {
            start: position,
            ..before.clone()
        };
        before.end = position;
        self.sent.insert(index + 1, behind);
        index + 1
    }

    /// All below a position is acknowledged; `each` is called for the removed entries.
    pub(crate) fn acknowledge(&mut self, una: u64, mut each: impl FnMut(&Sent)) {
        while let Some(first) = self.sent.front_mut() {
            if first.start >= una {
                break;
            }
            let part = Sent {
                end: first.end.min(una),
                ..first.clone()
            };
            if part.end == first.end {
                self.sent.pop_front();
            } else {
                first.start = una;
            }
            *self.count(part.status) -= part.len();
            each(&part);
        }
        self.lost_from = self.lost_from.max(una);
    }

    /// Releases memory that an idle connection does not need.
    pub(crate) fn release_memory(&mut self) {
        self.sent.shrink_to(0);
    }

    /// A range is SACKed; `each` is called for newly SACKed parts.
    pub(crate) fn sack(&mut self, range: &Range<u64>, mut each: impl FnMut(&Sent)) {
        let mut index = self.split(range.start);
        self.split(range.end);
        while self
            .sent
            .get(index)
            .is_some_and(|sent| sent.start < range.end)
        {
            if self.sent[index].status != Status::Sacked {
                each(&self.sent[index]);
                self.set(index, Status::Sacked);
            }
            index += 1;
        }
    }

    /// Visits entries in flight from the front, until `each` returns `None`; `Some(true)` marks the
    /// entry lost. Returns the number of lost bytes.
    pub(crate) fn judge(&mut self, mut each: impl FnMut(&Sent) -> Option<bool>) -> u64 {
        let before = self.lost;
        for index in 0..self.sent.len() {
            if self.sent[index].status != Status::InFlight {
                continue;
            }
            match each(&self.sent[index]) {
                None => break,
                Some(false) => {}
                Some(true) => self.set(index, Status::Lost),
            }
        }
        self.lost - before
    }

    /// Marks the first `len` bytes lost, if they are in flight; `each` is called for them.
    pub(crate) fn lose_first(&mut self, len: u64, each: impl FnOnce(&Sent)) {
        let Some(start) = self.first().map(|first| first.start) else {
            return;
        };
        self.split(start + len);
        if self.sent[0].status == Status::InFlight {
            each(&self.sent[0]);
            self.set(0, Status::Lost);
        }
    }

    /// Marks all data lost that is not SACKed; `each` is called for it. `forget`: discards the SACK
    /// state too.
    pub(crate) fn lose_all(&mut self, forget: bool, mut each: impl FnMut(&Sent)) {
        for index in 0..self.sent.len() {
            let status = self.sent[index].status;
            if status == Status::InFlight || (forget && status == Status::Sacked) {
                each(&self.sent[index]);
                self.set(index, Status::Lost);
            }
        }
    }

    /// Marks all lost data in flight again.
    pub(crate) fn find_all(&mut self) {
        for index in 0..self.sent.len() {
            if self.sent[index].status == Status::Lost {
                self.set(index, Status::InFlight);
            }
        }
        self.lost_from = self.sent.front().map_or(0, |first| first.start);
    }

    /// The first lost range, of at most `most` bytes; adjacent ones are joined.
    pub(crate) fn next_lost(&mut self, most: u64) -> Option<Range<u64>> {
        if self.lost == 0 {
            return None;
        }
        let from = self.lost_from;
        let index = self.sent.partition_point(|sent| sent.end <= from);
        let behind = self.sent.range(index..);
        let mut lost = behind.skip_while(|sent| sent.status != Status::Lost);
        let first = lost.next()?;
        let (start, mut end) = (first.start, first.end);
        for sent in lost {
            if sent.status != Status::Lost || end - start >= most {
                break;
            }
            end = sent.end;
        }
        self.lost_from = start;
        Some(start..end.min(start + most))
    }

    /// A range was retransmitted.
    pub(crate) fn resent(&mut self, range: &Range<u64>, size: u16, now: Instant) {
        let first = self.split(range.start);
        let last = self.split(range.end);
        self.packet = self.packet.wrapping_add(1);
        for index in first..last {
            self.set(index, Status::InFlight);
            let sent = &mut self.sent[index];
            (sent.xmit_ts, sent.retransmitted, sent.size) = (now, true, size);
            sent.packet = self.packet;
        }
        // Merged into one entry: they were sent as one packet.
        if last > first + 1 {
            self.sent[first].end = range.end;
            self.sent.drain(first + 1..last);
        }
    }

    /// The last `most` bytes that are not SACKed.
    pub(crate) fn tail(&self, most: u64) -> Option<Range<u64>> {
        let last = self
            .iter()
            .rev()
            .find(|sent| sent.status != Status::Sacked)?;
        Some(last.start.max(last.end.saturating_sub(most))..last.end)
    }

    /// Checks the invariants of the module.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let sum = |status| {
            let all = self.sent.iter().filter(|sent| sent.status == status);
            all.map(Sent::len).sum::<u64>()
        };
        assert_eq!(sum(Status::InFlight), self.in_flight);
        assert_eq!(sum(Status::Lost), self.lost);
        assert_eq!(sum(Status::Sacked), self.sacked);
        let pairs = self.sent.iter().zip(self.sent.iter().skip(1));
        assert!(pairs.clone().all(|(one, other)| one.end == other.start));
        assert!(self.sent.iter().all(|sent| sent.start < sent.end));
        let early = |sent: &Sent| sent.status == Status::Lost && sent.end <= self.lost_from;
        assert!(
            !self.sent.iter().any(early),
            "lost below {}",
            self.lost_from
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::cases;
    use crate::tcp::block::time::start as any_time;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Op {
        Send(u64),
        Acknowledge(u64),
        Sack(u64, u64),
        LoseFirst(u64),
        LoseAll(bool),
        FindAll,
        Resend(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (1u64..50).prop_map(Op::Send),
            (0u64..60).prop_map(Op::Acknowledge),
            (0u64..100, 1u64..40).prop_map(|(at, len)| Op::Sack(at, len)),
            (1u64..20).prop_map(Op::LoseFirst),
            any::<bool>().prop_map(Op::LoseAll),
            Just(Op::FindAll),
            (1u64..30).prop_map(Op::Resend),
        ]
    }

    proptest! {
        #![proptest_config(cases(500, 500))]

        /// The invariants hold, and `each` is called for exactly the changes.
        #[test]
        fn entries_are_contiguous_and_counted(ops in proptest::collection::vec(op(), 1..60)) {
            let now = any_time();
            let mut record = Record::default();
            let (mut una, mut nxt) = (0, 0);
            for op in ops {
                match op {
                    Op::Send(len) => {
                        record.push(nxt..nxt + len, 10, now);
                        nxt += len;
                    }
                    Op::Acknowledge(len) => {
                        let to = (una + len).min(nxt);
                        let mut bytes = 0;
                        record.acknowledge(to, |sent| bytes += sent.len());
                        prop_assert_eq!(bytes, to - una);
                        una = to;
                    }
                    Op::Sack(at, len) => {
                        let range = (una + at).min(nxt)..(una + at + len).min(nxt);
                        let before = record.sacked();
                        let mut bytes = 0;
                        if range.start < range.end {
                            record.sack(&range, |sent| bytes += sent.len());
                        }
                        prop_assert_eq!(record.sacked() - before, bytes);
                    }
                    Op::LoseFirst(len) => record.lose_first(len, |_| ()),
                    Op::LoseAll(forget) => {
                        record.lose_all(forget, |_| ());
                        prop_assert_eq!(record.in_flight(), 0);
                    }
                    Op::FindAll => {
                        record.find_all();
                        prop_assert_eq!(record.lost(), 0);
                    }
                    Op::Resend(most) => {
                        let lost = record.lost();
                        let next = record.next_lost(most);
                        prop_assert_eq!(next.is_some(), lost > 0);
                        if let Some(range) = next {
                            prop_assert!(range.end - range.start <= most);
                            record.resent(&range, 10, now);
                            prop_assert_eq!(record.lost(), lost - (range.end - range.start));
                        }
                    }
                }
                record.check();
                prop_assert_eq!(record.in_flight() + record.lost() + record.sacked(), nxt - una);
                prop_assert_eq!(record.is_empty(), una == nxt);
                if let Some(tail) = record.tail(7) {
                    prop_assert!(tail.start < tail.end && tail.end - tail.start <= 7);
                }
            }
        }
    }
}
