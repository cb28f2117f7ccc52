//! Segment arrival (RFC 9293 3.10.7).

use super::{CHALLENGE_EVERY, Cause, News, Reset, Taken, Tcb};
use crate::tcp::block::delayed_ack::Arrival;
use crate::tcp::block::receiver::{Cut, Kept};
use crate::tcp::block::recovery::{Ack, Phase};
use crate::tcp::block::segment::{ACK, FIN, PSH, RST, SYN, Segment, TIMESTAMPS_LEN};
use crate::tcp::block::seq::signed;
use crate::tcp::block::state::{self, Event};
use crate::tcp::block::time::Instant;
use crate::tcp::block::timers::Timer;
use crate::tcp::state::TcpState;
use smallvec::SmallVec;
use std::ops::Range;
use std::time::Duration;

impl Tcb {
    /// Processes a received segment with verified addresses, ports and checksum. [`Taken`] describes
    /// the payload to keep.
    pub(crate) fn handle_segment(&mut self, segment: &Segment, now: Instant) -> Taken {
        let taken = match self.state {
            TcpState::Closed | TcpState::Listen | TcpState::TimeWait => Taken::default(),
            TcpState::SynSent => self.in_syn_sent(segment, now),
            _ => self.synchronised(segment, now),
        };
        self.settle(now);
        taken
    }

    /// RFC 9293 3.10.7.3.
    fn in_syn_sent(&mut self, segment: &Segment, now: Instant) -> Taken {
        let right = segment.has(ACK) && segment.ack == self.sender.seq(0);
        if segment.has(ACK) && !right {
            self.refuse_stale(segment);
            return Taken::default();
        }
        if segment.has(RST) {
            if right {
                self.end(Cause::Reset);
            }
            return Taken::default();
        }
        if !segment.has(SYN) {
            return Taken::default();
        }
        self.synchronise(segment, now);
        self.watch.received(right, now);
        if !right {
            // A simultaneous open.
            self.change(Event::Syn);
            self.handshake.due = true;
            self.timers.stop(Timer::Handshake);
            return Taken {
                accepted: true,
                ..Taken::default()
            };
        }
        self.establish(segment, now);
        self.delayed_ack.demand();
        // "If there are other controls or text in the segment, then continue processing at the sixth
        // step."
        let rest = Segment {
            seq: segment.seq.wrapping_add(1),
            flags: segment.flags & !SYN,
            ..segment.clone()
        };
        let cut = self.receiver.trim(&rest, true);
        let kept = self.receive(&rest, &cut, now);
        Taken {
            kept,
            accepted: true,
            declined: self.receiver.has_declined(),
        }
    }

    /// An acknowledgement of a former connection: resets that, and retransmits the SYN at once, as
    /// Linux does (RFC 9293 3.5.2, figure 10).
    fn refuse_stale(&mut self, segment: &Segment) {
        if segment.has(RST) {
            return;
        }
        self.reset = Some(Reset::Answer(segment.ack));
        if !self.handshake.hurried {
            self.handshake.hurried = true;
            self.handshake.due = true;
        }
    }

    /// The peer's SYN is accepted: option negotiation.
    pub(super) fn synchronise(&mut self, syn: &Segment, now: Instant) {
        let options = &syn.options;
        self.agreed.timestamps = self.offered.timestamps && options.timestamps.is_some();
        self.agreed.sack = self.offered.sack && options.sack_permitted;
        self.agreed.scaled = self.offered.scaled && options.window_scale.is_some();
        self.ecn.synchronise(syn.flags, false);
        self.receiver.synchronise(syn.seq, self.agreed.scaled);
        let scale = options.window_scale.filter(|_| self.agreed.scaled);
        let scale = scale.map_or(0, |scale| scale.min(14));
        self.sender.synchronise(syn.window, scale);
        if let Some(stamps) = options.timestamps.filter(|_| self.agreed.timestamps) {
            self.receiver.note_timestamp(-1, stamps.value, now);
        } else {
            self.stamps = None;
        }
        let len = if self.agreed.timestamps {
            TIMESTAMPS_LEN
        } else {
            0
        };
        self.path.agree(options.mss, len);
        self.apply_mss();
        self.recovery.agree(self.agreed.sack, self.stamps);
    }

    /// Our SYN is acknowledged.
    fn establish(&mut self, segment: &Segment, now: Instant) {
        self.change(Event::SynAcked);
        self.timers.stop(Timer::Handshake);
        self.handshake.due = false;
        if self.handshake.retransmissions == 0 && !self.handshake.hurried {
            let rtt = match self.handshake.sent_at {
                Some(at) => Some(now.saturating_duration_since(at)),
                None => self.since_cookie(segment, now),
            };
            if let Some(rtt) = rtt {
                self.recovery.sample_handshake(rtt, now);
                self.congestion.established(rtt, now);
            }
        } else if self.handshake.retransmissions > 1 {
            self.congestion.handshake_was_lost();
        }
        if !segment.has(SYN) {
            let start = self.receiver.position(segment.seq);
            self.sender.update_window(start, 0, segment.window);
        }
        self.pacer.allow(self.congestion.initial_burst());
        self.watch.established();
        self.news.push(News::Established);
        // A close before the connection was established.
        self.close();
    }

    /// How long ago a cookie was sent, if it had a timestamp. `None` beyond the initial RTO, when the
    /// segment may be a later one.
    fn since_cookie(&self, segment: &Segment, now: Instant) -> Option<Duration> {
        let stamps = self.stamps.filter(|_| self.agreed.timestamps)?;
        let echo = segment.options.timestamps?.echo;
        let passed = Duration::from_millis(stamps.at(now).wrapping_sub(echo).into());
        (!passed.is_zero() && passed <= self.recovery.timeout()).then_some(passed)
    }

    /// RFC 9293 3.10.7.4, in its order.
    fn synchronised(&mut self, segment: &Segment, now: Instant) -> Taken {
        if !self.has_fresh_timestamp(segment, now) {
            return Taken::default();
        }
        // First, the sequence number.
        let may_receive = state::may_receive(self.state) || self.state == TcpState::SynReceived;
        let mut cut = self.receiver.trim(segment, may_receive);
        // Second, resets.
        if segment.has(RST) {
            self.reset_arrives(&cut, now);
            return Taken::default();
        }
        // Fourth, SYNs.
        if segment.has(SYN) {
            self.syn_arrives(segment, now);
            return Taken::default();
        }
        // Fifth, acknowledgements.
        if !segment.has(ACK) {
            return Taken::default();
        }
        if !cut.acceptable {
            self.outside(segment, &cut, now);
            return Taken::default();
        }
        let Some(ack) = self.ack_arrives(segment, &cut, now) else {
            return Taken::default();
        };
        if let Some(stamps) = segment
            .options
            .timestamps
            .filter(|_| self.agreed.timestamps)
        {
            self.receiver.note_timestamp(cut.start, stamps.value, now);
        }
        if !state::may_receive(self.state) {
            cut = Cut {
                skip: 0,
                len: 0,
                fin: false,
                ..cut
            };
        }
        if ack && self.finish_close(now) {
            return Taken {
                accepted: true,
                ..Taken::default()
            };
        }
        // Seventh and eighth, the payload and the FIN.
        let cut = self.receiver.decline(cut);
        let kept = self.receive(segment, &cut, now);
        Taken {
            kept,
            accepted: true,
            declined: self.receiver.has_declined(),
        }
    }

    /// PAWS (RFC 7323 5.3 R1); resets are exempt. `false`: the segment is dropped.
    fn has_fresh_timestamp(&mut self, segment: &Segment, now: Instant) -> bool {
        if !self.agreed.timestamps || segment.has(RST) {
            return true;
        }
        let Some(stamps) = segment.options.timestamps else {
            // RFC 7323 3.2: without the option it is dropped.
            return false;
        };
        let start = self.receiver.position(segment.seq);
        if !self
            .receiver
            .is_old((start, segment.len), stamps.value, now)
        {
            return true;
        }
        let bare = segment.len == 0 && !segment.has(FIN) && !segment.has(SYN);
        if bare && start == signed(self.receiver.nxt()) && self.was_overtaken(stamps.value) {
            self.process_overtaken(segment, now);
        } else if segment.len > 0 || segment.has(FIN) {
            self.receiver.note_duplicate(start, segment.len);
            self.delayed_ack.demand();
        } else {
            self.challenge(now);
        }
        false
    }

    /// Whether an acknowledgement with this TSval was sent shortly before the latest received one:
    /// within an RTO, as in Linux.
    fn was_overtaken(&self, value: u32) -> bool {
        let late = self.receiver.echo().wrapping_sub(value);
        u128::from(late) <= self.recovery.timeout().as_millis()
    }

    /// An overtaken acknowledgement: only its SACK blocks are used, since a later one may have had no
    /// room for them.
    fn process_overtaken(&mut self, segment: &Segment, now: Instant) {
        let known = self.sender.acceptable(segment.ack);
        if known.is_some_and(|ack| ack <= signed(self.sender.una())) {
            self.recover(segment, false, now);
        }
    }

    /// RFC 5961 3.2: only one with exactly RCV.NXT resets.
    fn reset_arrives(&mut self, cut: &Cut, now: Instant) {
        let next = signed(self.receiver.nxt());
        let inside = cut.start > next && cut.start < signed(self.receiver.edge());
        if cut.start == next {
            self.end(Cause::Reset);
        } else if inside {
            self.challenge(now);
        }
    }

    /// RFC 5961 4.2; in SYN-RECEIVED also the rest of the handshake.
    fn syn_arrives(&mut self, segment: &Segment, now: Instant) {
        if self.state != TcpState::SynReceived || segment.seq != self.receiver.irs() {
            self.challenge(now);
            return;
        }
        if segment.has(ACK) && segment.ack == self.sender.seq(0) {
            // A simultaneous open: the peer's SYN|ACK.
            self.sender
                .synchronise(segment.window, self.peer_scale(segment));
            self.establish(segment, now);
            self.delayed_ack.demand();
        } else if !segment.has(ACK) {
            // The peer has not received our answer.
            self.ecn.synchronise(segment.flags, true);
            self.handshake.due = true;
        }
    }

    fn peer_scale(&self, segment: &Segment) -> u8 {
        let scale = segment.options.window_scale;
        let scale = scale.filter(|_| self.agreed.scaled);
        scale.map_or(0, |scale| scale.min(14))
    }

    /// A segment outside the window (RFC 9293 3.10.7.4): its sender needs an acknowledgement to make
    /// progress. Its ACK is processed, as in BSD: otherwise two sides that both retransmit would refuse
    /// each other's acknowledgements.
    fn outside(&mut self, segment: &Segment, cut: &Cut, now: Instant) {
        let next = signed(self.receiver.nxt());
        let known = self.sender.acceptable(segment.ack);
        let near = cut.start >= next - (1 << 30) && cut.start <= signed(self.receiver.edge());
        if near
            && self.state != TcpState::SynReceived
            && known.is_some_and(|ack| ack >= signed(self.sender.una()))
        {
            let bare = Cut {
                occupies: true,
                ..*cut
            };
            if self.ack_arrives(segment, &bare, now).is_some() {
                self.finish_close(now);
            }
        }
        if segment.len > 0 {
            self.receiver.note_duplicate(cut.start, segment.len);
        }
        // An empty segment just below the window is a keep-alive or a probe, unless it acknowledges
        // data that was never sent: two sides, each with a forged byte injected, would answer each
        // other for ever.
        if cut.occupies || (cut.start == next - 1 && known.is_some()) {
            self.delayed_ack.demand();
        } else {
            self.challenge(now);
        }
    }

    /// RFC 9293 3.10.7.4, fifth, and 5961 5.2. `None` if the segment is dropped, `Some(true)` if it
    /// acknowledges new data.
    fn ack_arrives(&mut self, segment: &Segment, cut: &Cut, now: Instant) -> Option<bool> {
        if self.state == TcpState::SynReceived {
            if segment.ack != self.sender.seq(0) {
                self.reset = Some(Reset::Answer(segment.ack));
                return None;
            }
            self.establish(segment, now);
        }
        let Some(position) = self.sender.acceptable(segment.ack) else {
            self.challenge(now);
            return None;
        };
        let una = self.sender.una();
        let Some(position) = u64::try_from(position).ok().filter(|at| *at >= una) else {
            // An old ACK: the payload is still processed.
            self.watch.received(false, now);
            self.process_overtaken(segment, now);
            return Some(false);
        };
        let new = self.sender.acknowledge(position);
        if new {
            self.timers.stop(Timer::Persist);
            if self.path.acknowledged(position, now) {
                self.apply_mss();
            }
        }
        let moved = self
            .sender
            .update_window(cut.start, position, segment.window);
        self.watch.received(new, now);
        let in_flight = self.sender.una() < self.sender.nxt();
        let repeated = !new && !moved && !cut.occupies && in_flight;
        // With nothing in flight, the peer's data segments carry no information for loss recovery.
        if new || in_flight || !segment.options.sack.is_empty() {
            self.recover(segment, repeated, now);
        }
        Some(new)
    }

    /// Passes the acknowledgement to loss recovery.
    fn recover(&mut self, segment: &Segment, repeated: bool, now: Instant) {
        self.note_app_limit();
        let (blocks, duplicate) = self.blocks(segment);
        let echo = segment
            .options
            .timestamps
            .filter(|_| self.agreed.timestamps);
        let ack = Ack {
            una: self.sender.una(),
            nxt: self.sender.nxt(),
            blocks: &blocks,
            duplicate,
            echo: echo.map(|stamps| stamps.echo),
            repeated,
            now,
        };
        let before = self.recovery.phase();
        self.recovery
            .acknowledged(&ack, &mut self.congestion, &mut self.timers);
        self.note_reduction(before);
        self.note_echoed_mark(segment, now);
    }

    /// RFC 3168 6.1.2: the peer echoes a mark. A recovery under way has reduced the window already.
    fn note_echoed_mark(&mut self, segment: &Segment, now: Instant) {
        let marked = self.ecn.is_marked(segment.flags, self.sender.una());
        if marked && self.recovery.phase() == Phase::Open {
            self.congestion.marked(self.recovery.pipe(), now);
            self.ecn.reduced(self.sender.nxt());
        }
    }

    /// The valid blocks of a SACK option, and the D-SACK block (RFC 2883 4: the first block, if it is
    /// acknowledged or within the second).
    fn blocks(&self, segment: &Segment) -> (SmallVec<[Range<u64>; 4]>, Option<Range<u64>>) {
        let mut blocks = SmallVec::new();
        if !self.agreed.sack || segment.options.sack.is_empty() {
            return (blocks, None);
        }
        let (una, nxt) = (self.sender.una(), self.sender.nxt());
        let mut duplicate = None;
        let position = |seq| u64::try_from(self.sender.position(seq)).ok();
        let mut raw = segment.options.sack.iter().map(|(start, end)| {
            Some(position(*start)?..position(*end)?)
                .filter(|block| block.start < block.end && block.end <= nxt)
        });
        let first = raw.next().flatten();
        blocks.extend(raw.flatten().filter(|block| block.start >= una));
        if let Some(first) = first {
            let within = |known: &Range<u64>| known.start <= first.start && first.end <= known.end;
            let acked = signed(first.end) <= self.sender.position(segment.ack);
            if acked || blocks.first().is_some_and(within) {
                duplicate = Some(first);
            } else if first.start >= una {
                blocks.insert(0, first);
            }
        }
        (blocks, duplicate)
    }

    /// Our FIN is acknowledged. `true` if the connection has ended.
    fn finish_close(&mut self, now: Instant) -> bool {
        if !self.sender.fin_acknowledged() || !self.change(Event::FinAcked) {
            return false;
        }
        match self.state {
            TcpState::Closed => {
                // Set directly: `end` uses the state before.
                self.state = TcpState::LastAck;
                self.end(Cause::Finished);
                true
            }
            TcpState::TimeWait => {
                self.enter_time_wait(now);
                true
            }
            _ => false,
        }
    }

    fn enter_time_wait(&mut self, now: Instant) {
        self.timers.clear();
        self.news.push(News::TimeWait(self.time_wait(now)));
    }

    /// RFC 9293 3.10.7.4, seventh and eighth.
    fn receive(&mut self, segment: &Segment, cut: &Cut, now: Instant) -> Option<Kept> {
        if !cut.occupies {
            return None;
        }
        if !state::may_receive(self.state) {
            // Data after the peer's FIN: it has not received our acknowledgement.
            self.delayed_ack.demand();
            return None;
        }
        if segment.len > 0 {
            self.receiver.note_duplicate(cut.start, segment.len);
        }
        let marked = self.ecn.received(segment.flags, segment.marked);
        let holes = self.receiver.has_holes();
        let kept = self.receiver.take(cut);
        let growth = kept.map_or(0, |kept| kept.growth);
        if growth > 0 && self.watch.is_detached() {
            // RFC 9293 3.10.4, 1122 4.2.2.13: data for a socket that is closed.
            self.abort(Cause::Aborted);
            return None;
        }
        let fin = self.receiver.fin_taken();
        let in_order = kept.is_none_or(|kept| kept.skip == 0 && kept.growth == kept.len as u64);
        let bytes = kept.map_or(0, |kept| kept.len);
        let arrival = match kept {
            _ if holes || marked || !in_order => Arrival::Urgent,
            _ if fin && segment.has(FIN) && self.state == TcpState::Established => {
                Arrival::Fin { bytes }
            }
            Some(_) if !fin => Arrival::InOrder {
                bytes,
                pushed: segment.has(PSH),
            },
            _ => Arrival::Urgent,
        };
        let at = self.delayed_ack.receive(arrival, self.receiver.mss(), now);
        match at {
            Some(at) => self.timers.set(Timer::DelayedAck, at),
            None => self.timers.stop(Timer::DelayedAck),
        }
        if fin {
            self.fin_arrives(now);
        }
        kept
    }

    fn fin_arrives(&mut self, now: Instant) {
        self.change(Event::Fin);
        self.news.push(News::PeerClosed);
        if self.state == TcpState::TimeWait {
            self.enter_time_wait(now);
        }
    }

    /// A challenge ACK, unless one was sent recently (RFC 5961 7).
    fn challenge(&mut self, now: Instant) {
        let lately = |at: Instant| now.saturating_duration_since(at) < CHALLENGE_EVERY;
        if self.challenged_at.is_none_or(|at| !lately(at)) {
            self.challenged_at = Some(now);
            self.delayed_ack.demand();
        }
    }
}
