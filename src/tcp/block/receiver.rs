//! The receiving half: acceptance, acknowledgement, and the advertised window.
//!
//! RFC 9293 3.4 and 3.10.7.4 (acceptance, trimming), 3.8.6 (windows; 3.8.6.2.2 against silly ones), RFC
//! 5681 4.2 and 2018 (SACK for out-of-order data), RFC 2883 (D-SACK for duplicates), RFC 7323 2 (window
//! scale) and 5 (PAWS). The bytes themselves are elsewhere: here are positions. Deterministic; time is
//! an argument.
//!
//! Invariants: `last_ack_sent <= rcv_nxt`, `read <= rcv_nxt <= rcv_adv`, `rcv_adv` only grows, every
//! range of `out_of_order` begins after `rcv_nxt`.

use super::auto_tune::AutoTune;
use super::range_set::RangeSet;
use super::segment::{FIN, SACK_BLOCKS, Segment};
use super::seq::{Space, older, signed};
use crate::tcp::block::time::Instant;
use crate::tcp::memory::AcceptPolicy;
use smallvec::SmallVec;
use std::ops::Range;
use std::time::Duration;

/// Maximum number of out-of-order ranges, against a peer that sends every second byte.
pub(crate) const MOST_RANGES: usize = 1024;
/// The assumed segment size of the peer until a larger one arrives (RFC 9293 3.7.1).
const LEAST_MSS: usize = 536;
/// An older TS.Recent is invalid (RFC 7323 5.5).
const TIMESTAMP_LIFE: Duration = Duration::from_secs(24 * 86_400);

/// The part of a segment in the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Position of the segment before trimming.
    pub(crate) start: i64,
    /// It has a payload or a FIN.
    pub(crate) occupies: bool,
    pub(crate) acceptable: bool,
    /// Bytes to skip at the front of the payload.
    pub(crate) skip: usize,
    /// Bytes of payload in the window.
    pub(crate) len: usize,
    pub(crate) fin: bool,
}

/// Payload to keep: bytes of a segment, and their position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Bytes to skip at the front of the received payload.
    pub(crate) skip: usize,
    pub(crate) len: usize,
    /// Position of the first kept byte.
    pub(crate) position: u64,
    /// Number of bytes that are in order now, from this segment and from out-of-order data after it.
    pub(crate) growth: u64,
}

/// TS.Recent and when it was set (RFC 7323 4.3).
#[derive(Debug, Clone, Copy)]
struct Recent {
    value: u32,
    at: Instant,
}

/// The value of TS.Recent 1 to 2 GiB before.
#[derive(Debug, Clone, Copy)]
struct Floor {
    value: u32,
    next: u32,
    at: u64,
}

impl Floor {
    fn advance(&mut self, nxt: u64, value: u32) {
        if nxt - self.at > 1 << 30 {
            self.value = std::mem::replace(&mut self.next, value);
            self.at = nxt;
        }
    }
}

/// ACK number and window field of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Advertised {
    pub(crate) ack: u32,
    pub(crate) window: u16,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Receiver {
    /// Sequence numbers from IRS.
    space: Space,
    /// RCV.NXT, including the peer's FIN: `fin < rcv_nxt` once that was received in order.
    rcv_nxt: u64,
    /// The largest right edge ever advertised: RCV.NXT + RCV.WND.
    rcv_adv: u64,
    /// Last.ACK.sent: `last_ack_sent <= rcv_nxt`.
    last_ack_sent: u64,
    /// Bytes that the reader has read: `read <= rcv_nxt`.
    read: u64,
    /// Rcv.Wind.Shift once both sides have offered the option; before, our offer.
    rcv_wind_shift: u8,
    tune: AutoTune,
    out_of_order: RangeSet,
    /// A position in each recently changed range, the latest first.
    recent_blocks: SmallVec<[u64; SACK_BLOCKS]>,
    /// Duplicate data for the first block of the next ACK (RFC 2883 4).
    duplicate: Option<Range<u64>>,
    /// Position of the peer's FIN, once it was received.
    fin: Option<u64>,
    /// TS.Recent; `None` without timestamps.
    ts_recent: Option<Recent>,
    ts_floor: Floor,
    /// Payload of the peer's largest segment so far, for windows and acknowledgements.
    mss: usize,
    accept_policy: AcceptPolicy,
    /// Payload of the latest segment was dropped because of memory pressure.
    declined: bool,
}

impl Receiver {
    /// `capacity`: bytes of the buffer; `initial`: the initial window; `mss`: by our link.
    pub(crate) fn new((capacity, initial): (usize, usize), mss: usize, now: Instant) -> Receiver {
        let mut receiver = Receiver {
            space: Space::new(0),
            rcv_nxt: 0,
            rcv_adv: 0,
            last_ack_sent: 0,
            read: 0,
            rcv_wind_shift: shift_for(capacity),
            tune: AutoTune::new((capacity, initial), mss, now),
            out_of_order: RangeSet::default(),
            recent_blocks: SmallVec::new(),
            duplicate: None,
            fin: None,
            ts_recent: None,
            ts_floor: Floor {
                value: 0,
                next: 0,
                at: 0,
            },
            mss: mss.clamp(1, LEAST_MSS),
            accept_policy: AcceptPolicy::Everything,
            declined: false,
        };
        receiver.rcv_adv = u64::from(receiver.syn_window());
        receiver
    }

    /// The window field of our SYN, not scaled (RFC 7323 2.2).
    pub(crate) fn syn_window(&self) -> u16 {
        u16::try_from(self.tune.window()).unwrap_or(u16::MAX)
    }

    /// The shift to offer (RFC 7323 2.3).
    pub(crate) fn scale(&self) -> u8 {
        self.rcv_wind_shift
    }

    /// The peer's SYN is accepted.
    pub(crate) fn synchronise(&mut self, irs: u32, scaled: bool) {
        self.space = Space::new(irs);
        if !scaled {
            self.rcv_wind_shift = 0;
        }
    }

    pub(crate) fn irs(&self) -> u32 {
        self.space.initial()
    }

    pub(crate) fn nxt(&self) -> u64 {
        self.rcv_nxt
    }

    /// RCV.NXT as a sequence number.
    pub(crate) fn nxt_seq(&self) -> u32 {
        self.space.seq(self.rcv_nxt)
    }

    /// Bytes of the stream that are in order: RCV.NXT without the FIN.
    pub(crate) fn in_order(&self) -> u64 {
        self.rcv_nxt - u64::from(self.fin_taken())
    }

    /// The right edge of the window.
    pub(crate) fn edge(&self) -> u64 {
        self.rcv_adv.max(self.rcv_nxt)
    }

    pub(crate) fn fin_taken(&self) -> bool {
        self.fin.is_some_and(|fin| self.rcv_nxt > fin)
    }

    /// Whether there is out-of-order data.
    pub(crate) fn has_holes(&self) -> bool {
        !self.out_of_order.is_empty()
    }

    pub(crate) fn set_accept_policy(&mut self, accept_policy: AcceptPolicy) {
        self.accept_policy = accept_policy;
        self.declined = false;
    }

    /// Whether payload of the latest segment was dropped although it was in the window.
    pub(crate) fn has_declined(&self) -> bool {
        self.declined
    }

    /// Payload of a full segment of the peer, as seen so far.
    pub(crate) fn mss(&self) -> usize {
        self.mss
    }

    pub(crate) fn position(&self, seq: u32) -> i64 {
        self.space.position(seq, self.rcv_nxt)
    }

    /// Releases memory that an idle connection does not need.
    pub(crate) fn release_memory(&mut self) {
        if self.out_of_order.is_empty() {
            self.out_of_order.clear();
        }
    }

    /// A value of each cache line.
    pub(crate) fn lines(&self) -> impl Sized + use<> {
        (self.fin, self.rcv_nxt, self.recent_blocks.len(), self.mss)
    }

    // Acceptance.

    /// Trims a segment to the window (RFC 9293 3.10.7.4, first check, and trimming). Payload after the
    /// peer's FIN is ignored; its acknowledgement is not.
    pub(crate) fn trim(&self, segment: &Segment, may_receive: bool) -> Cut {
        let start = self.position(segment.seq);
        let end = start + i64::try_from(segment.len).unwrap_or(i64::MAX);
        let (next, right) = (signed(self.rcv_nxt), signed(self.edge()));
        let fin = segment.has(FIN);
        let mut cut = Cut {
            start,
            occupies: segment.len > 0 || fin,
            acceptable: false,
            skip: 0,
            len: 0,
            fin: false,
        };
        if !cut.occupies || !may_receive {
            // At the right edge it is acceptable: the peer has filled the window.
            cut.acceptable = start >= next && start <= right;
            return cut;
        }
        let stop = self.fin.map_or(right, |fin| right.min(signed(fin)));
        let (from, to) = (start.max(next), end.min(stop));
        if from < to {
            cut.acceptable = true;
            cut.skip = usize::try_from(from - start).unwrap_or(0);
            cut.len = usize::try_from(to - from).unwrap_or(0);
        }
        // A FIN is valid if no payload before it was cut, and no data after it was received.
        let high = self
            .out_of_order
            .end()
            .unwrap_or(self.rcv_nxt)
            .max(self.rcv_nxt);
        if fin && end >= next && end <= right && end >= signed(high) {
            cut.fin = self.fin.is_none_or(|known| signed(known) == end);
            cut.acceptable |= cut.fin;
        }
        cut
    }

    /// Under memory pressure payload is dropped, as if only the header had arrived.
    pub(crate) fn decline(&mut self, cut: Cut) -> Cut {
        if self.accept_policy != AcceptPolicy::Nothing || cut.len == 0 {
            return cut;
        }
        self.declined = true;
        Cut {
            occupies: false,
            len: 0,
            fin: false,
            ..cut
        }
    }

    /// PAWS (RFC 7323 5.3 R1): the segment is older than TS.Recent.
    ///
    /// A segment that fills a hole may be older: it was overtaken, possibly by a retransmission that
    /// has set TS.Recent since, and would be dropped each time. It must not be older than TS.Recent was
    /// 1 GiB before, so that no segment from before a wrap passes.
    pub(crate) fn is_old(&self, (start, len): (i64, usize), value: u32, now: Instant) -> bool {
        let Some(recent) = self.ts_recent else {
            return false;
        };
        let age = now.saturating_duration_since(recent.at);
        if !older(value, recent.value) || age >= TIMESTAMP_LIFE {
            return false;
        }
        let ahead = self.out_of_order.end().map_or(i64::MIN, signed);
        let end = start + i64::try_from(len).unwrap_or(0);
        let fills = end > signed(self.rcv_nxt) && start < ahead;
        !fills || older(value, self.ts_floor.value)
    }

    /// RFC 7323 4.3 (2): only of a segment that begins at or before Last.ACK.sent.
    pub(crate) fn note_timestamp(&mut self, start: i64, value: u32, now: Instant) {
        let first = self.ts_recent.is_none();
        if first {
            self.ts_floor = Floor {
                value,
                next: value,
                at: 0,
            };
        }
        let newer = self.ts_recent.is_none_or(|recent| {
            let age = now.saturating_duration_since(recent.at);
            !older(value, recent.value) || age >= TIMESTAMP_LIFE
        });
        if newer && (first || start <= signed(self.last_ack_sent)) {
            self.ts_recent = Some(Recent { value, at: now });
            self.ts_floor.advance(self.rcv_nxt, value);
        }
    }

    /// TSecr of sent segments (RFC 7323 4.3 (3)).
    pub(crate) fn echo(&self) -> u32 {
        self.ts_recent.map_or(0, |recent| recent.value)
    }

    /// Records the part of a segment that was received before (RFC 2883 4).
    pub(crate) fn note_duplicate(&mut self, start: i64, len: usize) {
        let end = start + i64::try_from(len).unwrap_or(i64::MAX);
        let Ok(end) = u64::try_from(end) else { return };
        let start = u64::try_from(start).unwrap_or(0);
        let again = if start < self.rcv_nxt {
            let from = start..end.min(self.in_order());
            // Adjacent duplicates are reported as one.
            match self.duplicate.take() {
                Some(former) if former.end == from.start => former.start..from.end,
                Some(_) | None => from,
            }
        } else {
            match self.out_of_order.covering(start) {
                Some(known) => start..end.min(known.end),
                None => return,
            }
        };
        if again.start < again.end {
            self.duplicate = Some(again);
        }
    }

    /// Accepts the payload that [`trim`](Self::trim) left. `None` if none is to be kept.
    pub(crate) fn take(&mut self, cut: &Cut) -> Option<Kept> {
        let position = self.rcv_nxt.max(u64::try_from(cut.start).unwrap_or(0));
        let end = position + cut.len as u64;
        if cut.fin {
            self.fin = Some(end);
        }
        self.mss = self.mss.max(cut.len.min(self.tune.path_mss()));
        let mut kept = Kept {
            skip: cut.skip,
            len: cut.len,
            position,
            growth: 0,
        };
        if position == self.rcv_nxt {
            self.rcv_nxt = self.out_of_order.reach(end);
            kept.growth = self.rcv_nxt - position;
            self.tune.waits(self.rcv_nxt - self.read);
            if !self.out_of_order.is_empty() {
                self.out_of_order.remove_below(self.rcv_nxt);
                let nxt = self.rcv_nxt;
                self.recent_blocks.retain(|at| *at >= nxt);
            }
        } else if cut.len > 0 && !self.take_ahead(position..end) {
            return None;
        }
        // The FIN takes effect after the last byte.
        if self.fin == Some(self.rcv_nxt) {
            self.rcv_nxt += 1;
        }
        (cut.len > 0).then_some(kept)
    }

    fn take_ahead(&mut self, range: Range<u64>) -> bool {
        let full = self.out_of_order.len() >= MOST_RANGES && !self.out_of_order.touches(&range);
        if full || self.accept_policy != AcceptPolicy::Everything {
            self.declined = true;
            return false;
        }
        self.out_of_order.insert(range.clone());
        if let Some(joined) = self.out_of_order.covering(range.start).cloned() {
            self.recent_blocks.retain(|at| !joined.contains(at));
            self.recent_blocks.truncate(SACK_BLOCKS - 1);
            self.recent_blocks.insert(0, range.start);
        }
        true
    }

    // The window.

    /// The reader has read all bytes up to a position.
    pub(crate) fn read(&mut self, position: u64, rtt: Option<Duration>, now: Instant) {
        debug_assert!(self.read <= position && position <= self.in_order());
        self.read = position;
        self.tune.read(position, rtt, now);
    }

    /// The buffer's size has changed, or memory is short: window plus unread data are limited to this.
    /// An advertised window is not taken back (RFC 9293 3.8.6).
    pub(crate) fn set_capacity(&mut self, capacity: usize) {
        self.tune.set_capacity(capacity as u64);
    }

    /// The least that the right edge moves by.
    fn least_growth(&self) -> u64 {
        (self.tune.window() / 2).min(self.mss as u64).max(1)
    }

    /// The right edge to advertise now; it moves only by at least a segment or half the window (RFC
    /// 9293 3.8.6.2.2).
    fn next_edge(&self) -> u64 {
        let limit = self.read + self.tune.window();
        if limit >= self.rcv_adv + self.least_growth() {
            limit
        } else {
            self.rcv_adv
        }
    }

    /// The ACK number and the window of a segment that is sent now. Must be called for each segment
    /// with an ACK.
    pub(crate) fn advertise(&mut self) -> Advertised {
        let edge = self.next_edge().max(self.rcv_nxt);
        let field = (edge - self.rcv_nxt) >> self.rcv_wind_shift;
        let window = u16::try_from(field).unwrap_or(u16::MAX);
        self.rcv_adv = self
            .rcv_adv
            .max(self.rcv_nxt + (u64::from(window) << self.rcv_wind_shift));
        self.last_ack_sent = self.rcv_nxt;
        Advertised {
            ack: self.nxt_seq(),
            window,
        }
    }

    /// The same for a SYN|ACK, whose window is not scaled.
    pub(crate) fn advertise_syn(&mut self) -> Advertised {
        let window = self.syn_window();
        self.rcv_adv = self.rcv_adv.max(self.rcv_nxt + u64::from(window));
        self.last_ack_sent = self.rcv_nxt;
        Advertised {
            ack: self.nxt_seq(),
            window,
        }
    }

    /// Whether to send a window update: the window doubles, or opens by half of its maximum. `idle`:
    /// the reader waits, so a quarter suffices.
    pub(crate) fn wants_update(&self, idle: bool) -> bool {
        let growth = self.next_edge() - self.rcv_adv;
        let open = self.rcv_adv.saturating_sub(self.rcv_nxt);
        // The window of the SYN suffices for a peer that has sent little data, or none.
        let suffices = self.rcv_nxt <= open / 4;
        if self.fin.is_some() || growth == 0 || suffices {
            return false;
        }
        let window = self.tune.window();
        let (least, most) = match idle {
            true => (0, window / 4),
            false => ((window / 4).min(2 * self.mss as u64), window / 2),
        };
        growth >= least && (growth >= open || growth >= most)
    }

    /// Before this position is read there is no update, if no segment arrives or is sent, even for a reader that waits.
    pub(crate) fn next_update(&self) -> u64 {
        let window = self.tune.window();
        let open = self.rcv_adv.saturating_sub(self.rcv_nxt);
        let least = open.min(window / 4).max(self.least_growth());
        (self.rcv_adv + least).saturating_sub(window)
    }

    // SACK.

    /// Blocks of the SACK option for an ACK that is sent now (RFC 2018 4, 2883 4): a duplicate, the
    /// range of the latest segment, recently reported ranges, then the first ones.
    pub(crate) fn sack(&mut self, most: usize) -> SmallVec<[(u32, u32); SACK_BLOCKS]> {
        let duplicate = self.duplicate.take().filter(|_| most > 0);
        if duplicate.is_none() && !self.has_holes() {
            return SmallVec::new();
        }
        let mut blocks: SmallVec<[Range<u64>; SACK_BLOCKS]> = SmallVec::new();
        let around = duplicate
            .as_ref()
            .and_then(|range| self.out_of_order.covering(range.start));
        let latest = self
            .recent_blocks
            .iter()
            .filter_map(|at| self.out_of_order.covering(*at));
        let ranges = around
            .into_iter()
            .chain(latest)
            .chain(self.out_of_order.iter().take(SACK_BLOCKS));
        let room = most - usize::from(duplicate.is_some());
        for range in ranges {
            if blocks.len() < room && !blocks.contains(range) {
                blocks.push(range.clone());
            }
        }
        let space = self.space;
        let all = duplicate.into_iter().chain(blocks);
        all.map(|range| (space.seq(range.start), space.seq(range.end)))
            .collect()
    }

    /// How many blocks [`sack`](Self::sack) has now.
    pub(crate) fn blocks(&self, most: usize) -> usize {
        most.min(self.out_of_order.len() + usize::from(self.duplicate.is_some()))
    }

    /// Whether there are blocks for a SACK option.
    pub(crate) fn has_blocks(&self) -> bool {
        self.duplicate.is_some() || self.has_holes()
    }

    /// The ranges of out-of-order data.
    #[cfg(test)]
    pub(crate) fn ahead(&self) -> impl Iterator<Item = &Range<u64>> {
        self.out_of_order.iter()
    }
}

/// The window scale for a buffer of this size (RFC 7323 2.3: at most 14).
pub(crate) fn shift_for(capacity: usize) -> u8 {
    let bits = usize::BITS - capacity.leading_zeros();
    u8::try_from(bits.saturating_sub(16).min(14)).unwrap_or(14)
}
