//! A monitor on the wire: for each segment that an end sends it checks the rules that an observer of
//! its received and sent segments can check.

use crate::tcp::block::range_set::RangeSet;
use crate::tcp::block::recovery::rto;
use crate::tcp::block::segment::{ACK, FIN, RST, SYN, Segment};
use crate::tcp::block::seq::{Space, older};
use crate::tcp::block::time::Instant;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Monitor {
    /// ISS and IRS, once seen.
    ours: Option<Space>,
    theirs: Option<Space>,
    /// Window scales of both sides; `None` without the option.
    their_scale: Option<u8>,
    our_scale: Option<u8>,
    /// The highest values of the peer: acknowledgement and right window edge.
    their_ack: u64,
    their_edge: u64,
    /// Our highest values.
    our_ack: u64,
    our_edge: u64,
    /// The end of our sent data, including the FIN.
    our_end: u64,
    our_fin: Option<u64>,
    /// The received ranges.
    arrived: RangeSet,
    their_fin: Option<u64>,
    their_stamps: BTreeSet<u32>,
    our_stamp: Option<u32>,
    /// TS.Recent.
    recent: Option<u32>,
    /// Repeated segments, without an answer in between.
    repeats: HashMap<u32, (Instant, Option<Duration>)>,
    /// Bytes sent at one instant, and their maximum.
    burst: (Option<Instant>, u64),
    pub(crate) longest_burst: u64,
    pub(crate) segments: u64,
    pub(crate) bare_acks: u64,
    pub(crate) again: u64,
    pub(crate) bytes_again: u64,
    pub(crate) small: u64,
}

impl Monitor {
    /// The window's right edge in positions.
    fn edge(space: Space, near: u64, segment: &Segment, scale: Option<u8>) -> u64 {
        let ack = space.position(segment.ack, near).max(0).unsigned_abs();
        let shift = if segment.has(SYN) {
            0
        } else {
            scale.unwrap_or(0)
        };
        ack + (u64::from(segment.window) << shift)
    }

    /// A segment arrives.
    pub(crate) fn arrives(&mut self, segment: &Segment) {
        self.repeats.clear();
        if let Some(stamps) = segment.options.timestamps {
            self.their_stamps.insert(stamps.value);
        }
        if segment.has(RST) {
            return;
        }
        if segment.has(SYN) {
            self.theirs = Some(Space::new(segment.seq));
            self.their_scale = segment.options.window_scale;
            if !segment.has(ACK) {
                self.their_edge = self.their_edge.max(segment.window.into());
            }
        }
        if let Some(ours) = self.ours.filter(|_| segment.has(ACK)) {
            let scale = self.their_scale.filter(|_| self.our_scale.is_some());
            let edge = Monitor::edge(ours, self.our_end, segment, scale);
            self.their_edge = self.their_edge.max(edge);
            let ack = ours.position(segment.ack, self.our_end);
            self.their_ack = self.their_ack.max(ack.max(0).unsigned_abs());
        }
        let Some(theirs) = self.theirs.filter(|_| !segment.has(SYN)) else {
            return;
        };
        let near = self.arrived.reach(0);
        let Ok(start) = u64::try_from(theirs.position(segment.seq, near)) else {
            return;
        };
        let end = start + segment.len as u64;
        self.arrived.insert(start..end);
        if segment.has(FIN) {
            self.their_fin = Some(end);
        }
    }

    /// Whether strict receivers (RFC 7323 5.3) would drop the data, as most do and ours does not.
    pub(crate) fn is_old(&mut self, segment: &Segment) -> bool {
        let (Some(theirs), Some(stamps)) = (self.theirs, segment.options.timestamps) else {
            return false;
        };
        let recent = *self.recent.get_or_insert(stamps.value);
        if older(stamps.value, recent) {
            return segment.len > 0;
        }
        if theirs.position(segment.seq, self.our_ack) <= signed(self.our_ack) {
            self.recent = Some(stamps.value);
        }
        false
    }

    /// The end of the peer's in-order data, including the FIN.
    fn received(&self) -> u64 {
        let reach = self.arrived.reach(0);
        reach + u64::from(self.their_fin == Some(reach))
    }

    /// A segment is sent.
    pub(crate) fn leaves(&mut self, segment: &Segment, now: Instant) {
        self.segments += 1;
        let occupies = segment.len > 0 || segment.flags & (SYN | FIN) != 0;
        self.bare_acks += u64::from(!occupies);
        self.check_stamps(segment);
        if segment.has(SYN) {
            self.ours.get_or_insert(Space::new(segment.seq));
            self.our_scale = segment.options.window_scale;
            assert_eq!(self.ours, Some(Space::new(segment.seq)), "one SYN");
        }
        if segment.has(RST) {
            return;
        }
        if segment.has(ACK) {
            self.check_ack(segment);
        }
        if occupies {
            self.check_backoff(segment, now);
        }
        if !segment.has(SYN) {
            self.check_data(segment, now);
        }
    }

    fn check_stamps(&mut self, segment: &Segment) {
        let Some(stamps) = segment.options.timestamps else {
            return;
        };
        let start = self
            .ours
            .map(|ours| ours.position(segment.seq, self.our_end));
        let occupies = segment.len > 0 || segment.has(FIN);
        let again = occupies && start.is_some_and(|start| start < signed(self.our_end));
        match self.our_stamp {
            Some(before) if older(stamps.value, before) => {
                assert!(again, "a timestamp decreased, not in a retransmission");
            }
            Some(_) | None => self.our_stamp = Some(stamps.value),
        }
        if segment.has(ACK) {
            assert!(
                self.their_stamps.contains(&stamps.echo),
                "an echo that was never sent"
            );
        }
    }

    /// ACK and window never decrease, and only received data is acknowledged.
    fn check_ack(&mut self, segment: &Segment) {
        let theirs = self.theirs.expect("a SYN has arrived");
        let ack = theirs.position(segment.ack, self.our_ack);
        let ack = u64::try_from(ack).expect("an acknowledgement of a byte before the first");
        assert!(ack >= self.our_ack, "an ACK decreased");
        assert!(ack <= self.received(), "an ACK of data that did not arrive");
        self.our_ack = ack;
        let scale = self.our_scale.filter(|_| self.their_scale.is_some());
        let edge = Monitor::edge(theirs, ack, segment, scale);
        let unit = 1 << scale.unwrap_or(0);
        assert!(
            edge + unit > self.our_edge || self.their_fin.is_some_and(|fin| ack > fin),
            "a window shrank from {} to {edge} (RFC 7323 2.4 allows less than {unit})",
            self.our_edge
        );
        self.our_edge = self.our_edge.max(edge);
        for (index, (start, end)) in segment.options.sack.iter().enumerate() {
            let start = theirs.position(*start, ack);
            let end = theirs.position(*end, ack);
            let start = u64::try_from(start).expect("a block before the first byte");
            let end = end.unsigned_abs();
            assert!(start < end, "an empty block");
            assert!(
                self.arrived.covers(&(start..end)),
                "a block of data that did not arrive"
            );
            assert!(
                index == 0 || start > ack,
                "only the first block may be a D-SACK"
            );
        }
    }

    /// Retransmissions without an answer back off, after a probe, up to the longest timeout. (The first interval may be
    /// longer: the timeout restarts with a probe, RFC 8985 7.3.)
    fn check_backoff(&mut self, segment: &Segment, now: Instant) {
        let Some((at, interval)) = self.repeats.get(&segment.seq).copied() else {
            self.repeats.insert(segment.seq, (now, None));
            return;
        };
        let passed = now - at;
        if let Some(interval) = interval {
            assert!(
                passed + Duration::from_millis(1) >= interval.min(rto::LARGEST),
                "sent again after {passed:?}, and before that after {interval:?}"
            );
        }
        self.repeats.insert(segment.seq, (now, Some(passed)));
    }

    fn check_data(&mut self, segment: &Segment, now: Instant) {
        let ours = self.ours.expect("our SYN was sent");
        let start = ours.position(segment.seq, self.our_end);
        if segment.len == 0 && !segment.has(FIN) {
            // At the position that the peer expects, or one before for a keep-alive.
            assert!(
                start + 1 >= signed(self.their_ack),
                "an empty ACK with an old SEQ: {start}"
            );
            return;
        }
        let start = start.unsigned_abs();
        let end = start + segment.len as u64;
        let probe = segment.len <= 1 && start >= self.their_edge;
        assert!(
            probe || end + u64::from(segment.has(FIN)) <= self.their_edge,
            "{end} is beyond the edge at {}",
            self.their_edge
        );
        if let Some(fin) = self.our_fin {
            assert!(end <= fin, "data after the FIN");
        }
        if segment.has(FIN) {
            assert_eq!(*self.our_fin.get_or_insert(end), end, "one FIN");
        }
        if start < self.our_end {
            self.again += 1;
            self.bytes_again += segment.len as u64;
        }
        self.our_end = self.our_end.max(end + u64::from(segment.has(FIN)));
        if self.burst.0 != Some(now) {
            self.burst = (Some(now), 0);
        }
        self.burst.1 += segment.len as u64;
        self.longest_burst = self.longest_burst.max(self.burst.1);
    }
}

fn signed(position: u64) -> i64 {
    i64::try_from(position).expect("small numbers")
}
