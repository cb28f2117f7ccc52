//! What stands before the engine: segment acceptance by RFC 9293 3.10.7 and RFC 5961.
//!
//! The engine keeps sequence numbers, windows and timers, but it has holes that a remote peer can
//! reach, and it never sees a payload. So the guard decides, before anything is fed or kept, what
//! of a segment counts, and composes what the engine is told:
//!
//! * the payload is trimmed to `[rcv_nxt, R)`, `R` being the smaller of the advertised edge and the
//!   free space of the engine's ring; what is cut on the right loses its FIN;
//! * the advertised edge is taken from every frame that leaves, SYNs unscaled, so a peer that
//!   believes a larger window than the ring holds cannot make the engine panic; the engine itself
//!   forgets what its window probes advertised and is reminded when it matters;
//! * an acknowledgement of what was never sent, and one far too old, is challenged; an old one does
//!   not carry its window in, and its payload still counts;
//! * a RST counts only exactly at `rcv_nxt`, elsewhere in the window it is challenged; a SYN in a
//!   synchronised state is challenged;
//! * a window that shrinks below what is in flight is kept open that far, for retransmissions;
//! * a payload that arrives ahead of its turn is kept here, and the engine hears of it when the hole
//!   before it is filled: it would remember four holes, and drop what comes with the next one without
//!   a word. Meanwhile each such segment draws an ACK that says what is here (RFC 5681 4.2, 2018);
//! * a FIN that arrives before a hole is filled is remembered and replayed when its turn comes.
//!
//! Positions are absolute: byte *k* of a direction has position *k*, its FIN the position behind the
//! last byte. They are 64 bits wide and only grow, so sequence numbers may wrap as often as they
//! like. Deterministic; under the connection's ownership (rank 1).

use super::ahead::{Ahead, BLOCKS};
use super::memory::Appetite;
use super::wire::{self, ACK, FIN, Header, PSH, RST, SYN, SynOptions};
use smallvec::SmallVec;
use smoltcp::socket::tcp::State;

/// No peer makes our segments smaller than this, or a few bytes of payload would cost as many frames
/// (CVE-2019-11479). FreeBSD's `net.inet.tcp.minmss`: what fits into the smallest MTU in use.
const LEAST_MSS: u16 = 216;

/// What the engine is to be fed, if anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Drop,
    /// This segment.
    Feed(Feed),
    /// A segment below the window with one dummy byte, which draws an ACK.
    Answer(Header),
    /// An empty segment below the window, which draws an ACK at most once a second (RFC 5961 7).
    Challenge(Header),
    /// This segment, and then one that draws an ACK: a window probe's acknowledgement counts, and a
    /// segment ahead of its turn is answered at once.
    FeedThenAnswer(Feed, Header),
}

/// An accepted segment, and what the engine is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Feed {
    /// For the engine; its sequence number is that of the next byte in order.
    pub(crate) header: Header,
    /// Bytes of the received payload to leave out in front.
    pub(crate) skip: usize,
    /// Bytes of payload that count.
    pub(crate) len: usize,
    /// Position of the first of them.
    pub(crate) position: u64,
    /// They are kept. Otherwise there are too many holes.
    pub(crate) keep: bool,
    /// So many bytes are in order now, and go to the engine: from this segment, and what was waiting
    /// behind it.
    pub(crate) growth: usize,
    /// There is something to tell the engine, also if nothing is in order.
    tell: bool,
    /// The engine is told a larger window than the peer has: [`Guard::shut`] is to be fed behind it.
    pub(crate) shut: bool,
}

/// Bytes of payload that the engine is fed at once: they fit into a packet with its headers.
const PART: usize = 65_000;

impl Feed {
    /// An acknowledgement, and nothing else.
    pub(crate) fn says_nothing(&self) -> bool {
        self.len == 0 && self.header.flags & !PSH == ACK
    }

    /// What the engine is fed, one after the other: headers, and bytes of payload behind them.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (Header, usize)> + use<> {
        let Feed { header, growth, .. } = *self;
        let parts = growth.div_ceil(PART).max(usize::from(self.tell));
        (0..parts).map(move |part| {
            let at = part * PART;
            let seq = header.seq.wrapping_add(u32::try_from(at).unwrap_or(0));
            let last = part + 1 == parts;
            let flags = header.flags & if last { u8::MAX } else { !(FIN | PSH) };
            let len = PART.min(growth - at);
            (
                Header {
                    seq,
                    flags,
                    ..header
                },
                len,
            )
        })
    }
}

/// What the guard needs to know of an emitted frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Emission {
    pub(crate) header: Header,
    pub(crate) len: usize,
}

/// The two initial sequence numbers and everything that follows from them. See the module.
#[derive(Debug)]
pub(crate) struct Guard {
    /// Size of the engine's receive ring.
    capacity: u64,
    /// Our window shift, once both sides offered the option; until then the one we offer.
    shift: u8,
    iss: Option<u32>,
    irs: Option<u32>,
    rcv_nxt: u64,
    /// Right edge of the window as the engine last advertised it. It moves left by up to 2^shift - 1
    /// (RFC 7323 2.4), since the engine rounds down; see [`wire_window`](Self::wire_window).
    edge: u64,
    /// The same, of the last frame that the engine certainly remembers: it forgets what its window
    /// probes advertise. See [`unsettled`](Self::unsettled).
    sure_edge: u64,
    /// Bytes that left the engine's receive ring.
    consumed: u64,
    /// Position behind the last byte that is kept.
    high: u64,
    /// A FIN that waits for bytes before it.
    fin_at: Option<u64>,
    fin_received: bool,
    snd_una: u64,
    /// Position behind the last byte (or FIN) that ever left.
    snd_max: u64,
    /// The same without zero-window probes: the sequence number of a pure ACK.
    snd_nxt: u64,
    /// Position of our FIN, once it was sent.
    fin_sent: Option<u64>,
    /// Sequence and acknowledgement of the segment that gave the peer's window (SND.WL1, SND.WL2).
    wl1: i64,
    wl2: u64,
    /// The peer's window as last accepted: the raw field.
    window: u16,
    /// The window as the engine counts it, in bytes.
    snd_wnd: u64,
    /// Largest window the peer ever offered, in bytes (RFC 5961 5.2).
    max_window: u64,
    remote_shift: u8,
    ahead: Ahead,
    /// The peer takes SACK options.
    sack: bool,
    /// What the peer takes in a segment, if it has said so.
    remote_mss: Option<u16>,
    /// Acknowledgement and window of the last frame, as they are on the wire.
    told: (u32, u16),
    /// What is taken of the next segments.
    appetite: Appetite,
    /// Text of the last segment was not taken for that.
    declined: bool,
}

impl Guard {
    /// A guard for an engine whose receive ring has `capacity` bytes.
    pub(crate) fn new(capacity: usize) -> Guard {
        Guard {
            capacity: capacity as u64,
            shift: wire::shift_for(capacity),
            iss: None,
            irs: None,
            rcv_nxt: 0,
            edge: 0,
            sure_edge: 0,
            consumed: 0,
            high: 0,
            fin_at: None,
            fin_received: false,
            snd_una: 0,
            snd_max: 0,
            snd_nxt: 0,
            fin_sent: None,
            wl1: -1,
            wl2: 0,
            window: 0,
            snd_wnd: 0,
            max_window: 0,
            remote_shift: 0,
            ahead: Ahead::default(),
            sack: false,
            remote_mss: None,
            told: (0, 0),
            appetite: Appetite::Everything,
            declined: false,
        }
    }

    /// Position of the next byte expected in order (its FIN included).
    #[cfg(test)]
    pub(crate) fn rcv_nxt(&self) -> u64 {
        self.rcv_nxt
    }

    /// Sequence number of that byte, as the peer counts.
    pub(crate) fn rcv_nxt_seq(&self) -> u32 {
        self.rcv_seq(self.rcv_nxt)
    }

    /// Everything before this position is acknowledged.
    pub(crate) fn snd_una(&self) -> u64 {
        self.snd_una
    }

    /// Everything before this position was sent at least once.
    pub(crate) fn snd_max(&self) -> u64 {
        self.snd_max
    }

    /// Sequence number behind everything that was sent, as the engine counts.
    pub(crate) fn snd_max_seq(&self) -> u32 {
        self.snd_seq(self.snd_max)
    }

    /// The peer's FIN was accepted in order.
    #[cfg(test)]
    pub(crate) fn fin_received(&self) -> bool {
        self.fin_received
    }

    /// Size of the engine's receive ring.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The peer's window, in bytes.
    pub(crate) fn window(&self) -> usize {
        usize::from(self.window) << self.remote_shift
    }

    /// Nothing is in flight in either direction, and no hole and no end waits. The peer's window can
    /// be told again: that of its SYN may be less than a unit.
    pub(crate) fn is_at_rest(&self) -> bool {
        let still = self.snd_una == self.snd_max && self.fin_at.is_none() && !self.has_holes();
        still && (self.window > 0 || self.snd_wnd == 0)
    }

    /// The peer's SYN, as if it had sent nothing before what comes next.
    pub(crate) fn syn_again(&self) -> Header {
        let scaled = self.shift > 0 || self.remote_shift > 0;
        Header {
            seq: self.rcv_nxt_seq().wrapping_sub(1),
            ack: 0,
            flags: SYN,
            window: self.window,
            options: SynOptions {
                mss: self.remote_mss,
                window_scale: scaled.then_some(self.remote_shift),
                sack_permitted: self.sack,
            },
        }
    }

    /// The acknowledgement behind it.
    pub(crate) fn ack_again(&mut self) -> Header {
        self.snd_wnd = u64::from(self.window) << self.remote_shift;
        Header {
            seq: self.rcv_nxt_seq(),
            ..self.below_window()
        }
    }

    /// Another engine's SYN stands right before what is sent next. Returns by how much its numbers are
    /// larger than those of the former one.
    pub(crate) fn move_iss(&mut self, syn: u32) -> u32 {
        let former = self.snd_seq(self.snd_una);
        let moved = syn.wrapping_add(1).wrapping_sub(former);
        self.iss = self.iss.map(|iss| iss.wrapping_add(moved));
        moved
    }

    /// What is taken of what arrives from now on.
    pub(crate) fn set_appetite(&mut self, appetite: Appetite) {
        self.appetite = appetite;
        self.declined = false;
    }

    /// Whether text of the last segment was not taken although there was room in the window.
    pub(crate) fn has_declined(&self) -> bool {
        self.declined
    }

    /// Bytes left the engine's receive ring.
    pub(crate) fn consume(&mut self, count: usize) {
        self.consumed += count as u64;
    }

    /// Bytes that ever left the engine's receive ring.
    pub(crate) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// What the peer has said last: up to where it has everything, and how much more it takes.
    pub(crate) fn heard(&self) -> (u64, u64) {
        (self.snd_una, self.snd_wnd)
    }

    /// The peer says what it has (SACK).
    pub(crate) fn takes_sack(&self) -> bool {
        self.sack
    }

    /// The largest segment that the peer takes, if it has said so.
    pub(crate) fn remote_mss(&self) -> Option<u16> {
        self.remote_mss
    }

    /// What goes before text that is sent again. It says again what was said last: the engine is not
    /// asked, so it can promise nothing new.
    pub(crate) fn again(&self, position: u64) -> Header {
        let (ack, window) = self.told;
        Header {
            seq: self.snd_seq(position),
            ack,
            flags: ACK | PSH,
            window,
            options: SynOptions::default(),
        }
    }

    /// Position of an emitted payload. `None` if the frame cannot be of this connection.
    pub(crate) fn send_position(&self, seq: u32) -> Option<u64> {
        let position = unwrap(seq, self.iss?, self.snd_max);
        u64::try_from(position).ok()
    }

    fn rcv_seq(&self, position: u64) -> u32 {
        wrap(self.irs.unwrap_or(0), position)
    }

    fn snd_seq(&self, position: u64) -> u32 {
        wrap(self.iss.unwrap_or(0), position)
    }

    /// Takes note of a frame that the engine emitted. To be called for every one of them. `true`: it may
    /// be a window probe, which the engine forgets.
    pub(crate) fn emitted(&mut self, emission: &Emission) -> bool {
        let header = &emission.header;
        if header.has(RST) {
            return false;
        }
        if header.has(SYN) {
            self.iss.get_or_insert(header.seq);
            if !header.has(ACK) {
                // The peer may send this much, counted from a number that is not known yet.
                self.edge = u64::from(header.window);
                self.sure_edge = self.edge;
            }
        }
        // Read before anything is taken note of. Only a window probe leaves into a closed window.
        let probe = !header.has(SYN)
            && emission.len <= 1
            && self
                .send_position(header.seq)
                .is_some_and(|position| position >= self.snd_una + self.snd_wnd);
        if let Some(position) = self.send_position(header.seq)
            && !header.has(SYN)
        {
            let end = position + emission.len as u64 + u64::from(header.has(FIN));
            self.snd_max = self.snd_max.max(end);
            if header.has(FIN) {
                self.fin_sent = Some(end - 1);
            }
            if !probe {
                self.snd_nxt = self.snd_nxt.max(end);
            }
        }
        if header.has(ACK)
            && let Some(irs) = self.irs
        {
            let shift = if header.has(SYN) { 0 } else { self.shift };
            let acked = unwrap(header.ack, irs, self.rcv_nxt);
            let edge = u64::try_from(acked).unwrap_or(0) + (u64::from(header.window) << shift);
            self.edge = edge;
            self.told = (header.ack, self.wire_window(header));
            if probe {
                // What looks like a probe may be an acknowledgement that the engine remembers.
                self.sure_edge = self.sure_edge.min(self.edge);
            } else {
                self.settle();
            }
        }
        probe
    }

    /// The window field to send instead of the engine's: one unit less. The edge that the engine
    /// advertises may move left by less than a unit, and then it refuses what the peer was allowed to
    /// send before. So the peer is told an edge behind which the engine's never falls.
    pub(crate) fn wire_window(&self, header: &Header) -> u16 {
        let exact = self.shift == 0 || header.has(SYN) || header.has(RST);
        header.window - u16::from(!exact && header.window > 0)
    }

    /// The sequence number that a pure ACK is to carry. The engine's is rewound by a retransmission
    /// and would be refused by a peer that has received more (RFC 9293 3.10.7.4: SND.NXT).
    pub(crate) fn ack_seq(&self) -> u32 {
        self.snd_seq(self.snd_nxt.max(self.snd_una))
    }

    /// Whether engine and guard may disagree about the window to which a segment belongs. Then this
    /// is to be fed first, with one dummy byte: the engine's answer says where both stand, and
    /// [`settle`](Self::settle) takes note of it.
    ///
    /// * A text reaches behind the edge that the engine certainly remembers.
    /// * A FIN right at the edge has moved `rcv_nxt` behind it. Until it is acknowledged, the engine
    ///   takes every segment for one outside the window, also a RST.
    pub(crate) fn unsettled(&self, state: State, header: &Header, len: usize) -> Option<Header> {
        let end = self.position_of(header.seq) + i64::try_from(len).unwrap_or(i64::MAX);
        let end = u64::try_from(end).map_or(end, |end| signed(self.ahead.reach(end)));
        let text = len > 0 && may_receive(state);
        let beyond = text && self.edge > self.sure_edge && end > signed(self.sure_edge);
        let behind = self.fin_received && self.rcv_nxt > self.edge;
        (beyond || behind).then(|| self.below_window())
    }

    /// The engine has answered: it counts the edge that was advertised last.
    pub(crate) fn settle(&mut self) {
        self.sure_edge = self.edge;
    }

    /// Whether a segment with this sequence number (as the engine counts) is in flight: only an ICMP
    /// error that quotes such a one is believed (RFC 5927 4.1).
    pub(crate) fn in_flight(&self, state: State, seq: u32) -> bool {
        let Some(iss) = self.iss else { return false };
        let position = unwrap(seq, iss, self.snd_una);
        if matches!(state, State::SynSent | State::SynReceived) {
            position == -1
        } else {
            position >= signed(self.snd_una) && position < signed(self.snd_max)
        }
    }

    /// Decides about a segment in the engine's present state. What is to be fed must be fed.
    pub(crate) fn judge(&mut self, state: State, header: &Header, len: usize) -> Verdict {
        match state {
            State::Closed => Verdict::Drop,
            State::Listen => self.judge_listen(header),
            State::SynSent => self.judge_syn_sent(header),
            State::SynReceived => self.judge_syn_received(header, len),
            _ => self.judge_synchronised(state, header, len),
        }
    }

    fn judge_listen(&mut self, header: &Header) -> Verdict {
        if header.flags & (SYN | ACK | RST | FIN) != SYN {
            return Verdict::Drop;
        }
        self.synchronise(header);
        Verdict::Feed(bare(Header {
            ack: 0,
            flags: SYN,
            options: believed(header.options),
            ..*header
        }))
    }

    fn judge_syn_sent(&mut self, header: &Header) -> Verdict {
        let Some(iss) = self.iss else {
            return Verdict::Drop;
        };
        let right_ack = header.has(ACK) && header.ack == iss.wrapping_add(1);
        if header.has(RST) {
            let reset = bare(Header {
                flags: RST | ACK,
                ..*header
            });
            return if right_ack {
                Verdict::Feed(reset)
            } else {
                Verdict::Drop
            };
        }
        let flags = header.flags & (SYN | ACK);
        if flags == 0 || (header.has(SYN) && header.has(FIN)) {
            return Verdict::Drop;
        }
        // A wrong ACK draws a RST from the engine; a right one without SYN is ignored there.
        if flags == SYN || (flags == SYN | ACK && right_ack) {
            // The engine counts the edge of our SYN from irs, not irs + 1: one byte less.
            let advertised = self.edge;
            self.synchronise(header);
            self.edge = advertised.saturating_sub(1);
            self.sure_edge = self.edge;
        }
        Verdict::Feed(bare(Header {
            flags,
            options: believed(header.options),
            ..*header
        }))
    }

    fn judge_syn_received(&mut self, header: &Header, len: usize) -> Verdict {
        let Some(iss) = self.iss else {
            return Verdict::Drop;
        };
        if header.has(RST) {
            return self.judge_reset(header);
        }
        let right_ack = header.has(ACK) && header.ack == iss.wrapping_add(1);
        if header.has(SYN) {
            return match (header.seq == self.irs.unwrap_or(0), right_ack) {
                // Simultaneous open: the peer's SYN|ACK is its acknowledgement of our SYN.
                (true, true) => {
                    self.window = header.window >> self.remote_shift;
                    let seq = self.rcv_seq(0);
                    Verdict::Feed(bare(Header {
                        seq,
                        ack: header.ack,
                        ..self.below_window()
                    }))
                }
                // The same SYN again: the SYN|ACK is repeated by its timer.
                (true, false) => Verdict::Drop,
                (false, _) => Verdict::Challenge(self.below_window()),
            };
        }
        match (header.has(ACK), right_ack) {
            (false, _) => Verdict::Drop,
            // The engine answers with a RST.
            (true, false) => Verdict::Feed(bare(Header {
                flags: ACK,
                ..*header
            })),
            (true, true) => self.judge_synchronised(State::SynReceived, header, len),
        }
    }

    /// RFC 5961 3.2.
    fn judge_reset(&self, header: &Header) -> Verdict {
        let start = self.position_of(header.seq);
        let next = signed(self.rcv_nxt);
        if start == next {
            Verdict::Feed(bare(Header {
                flags: RST,
                ..*header
            }))
        } else if start > next && start < signed(self.right_edge()) {
            Verdict::Challenge(self.below_window())
        } else {
            Verdict::Drop
        }
    }

    fn judge_synchronised(&mut self, state: State, header: &Header, len: usize) -> Verdict {
        if header.has(RST) {
            return self.judge_reset(header);
        }
        if header.has(SYN) {
            return Verdict::Challenge(self.below_window()); // RFC 5961 4.2
        }
        if !header.has(ACK) {
            return Verdict::Drop;
        }
        let mut cut = self.trim(state, header, len);
        if !cut.acceptable {
            return self.judge_outside(state, header, &cut);
        }
        let declined = self.appetite == Appetite::Nothing && cut.len > 0;
        if declined {
            // As if it had been lost behind its header: the peer sends it again.
            (cut.len, cut.fin) = (0, false);
            self.declined = true;
        }
        let Some(ack) = self.acceptable_ack(header.ack) else {
            return Verdict::Challenge(self.below_window());
        };
        let says_nothing =
            ack < signed(self.snd_una) || (ack == signed(self.snd_una) && self.awaits_only_fin());
        if says_nothing && cut.len == 0 && !cut.fin {
            return Verdict::Drop; // it must not count as a duplicate acknowledgement
        }
        let before = self.heard();
        let mut feed = self.accept(header, &cut, ack);
        if declined && self.heard() == before && state != State::SynReceived {
            return Verdict::Drop; // nor must this
        }
        if feed.len > 0 && feed.growth == 0 {
            feed.tell |= state == State::SynReceived;
            return Verdict::FeedThenAnswer(feed, self.below_window());
        }
        Verdict::Feed(feed)
    }

    /// A segment of which nothing is in the window. Its sender needs an ACK to make progress, but
    /// what it acknowledges counts all the same: with a closed window (RFC 9293 3.10.7.4), and, as in
    /// BSD, in duplicates: two sides that both retransmit would otherwise refuse each other's
    /// acknowledgements.
    fn judge_outside(&mut self, state: State, header: &Header, cut: &Cut) -> Verdict {
        let answer = self.below_window();
        let next = signed(self.rcv_nxt);
        let known = state != State::SynReceived
            && cut.start >= next - signed(self.capacity)
            && cut.start <= signed(self.right_edge());
        let again = cut.start >= next && !self.awaits_only_fin();
        let new =
            |ack: &i64| *ack > signed(self.snd_una) || (again && *ack == signed(self.snd_una));
        let known_ack = self.acceptable_ack(header.ack);
        let ack = known_ack.filter(|ack| known && new(ack));
        // Keep-alive and window probe are empty, or lie just below the window. One that acknowledges
        // what was never sent is none: two sides, each fed a forged byte, would answer each other
        // for ever (an ACK storm).
        let probe = cut.occupies || (cut.start == next - 1 && known_ack.is_some());
        match (ack, probe) {
            (None, true) => Verdict::Answer(answer),
            (None, false) => Verdict::Challenge(answer),
            (Some(ack), probe) => {
                let empty = Cut {
                    acceptable: true,
                    skip: 0,
                    len: 0,
                    fin: false,
                    ..*cut
                };
                let feed = self.accept(header, &empty, ack);
                let answer = self.below_window();
                if probe {
                    Verdict::FeedThenAnswer(feed, answer)
                } else {
                    Verdict::Feed(feed)
                }
            }
        }
    }

    /// Turns an acceptable segment into what the engine is fed, and takes note of it.
    fn accept(&mut self, header: &Header, cut: &Cut, ack: i64) -> Feed {
        let before = (self.snd_una, self.snd_wnd);
        let current = ack >= signed(self.snd_una);
        let ack = u64::try_from(ack).unwrap_or(0).max(self.snd_una);
        // SND.WL1, SND.WL2: only a segment that is not older gives a window.
        let newer = cut.start > self.wl1 || (cut.start == self.wl1 && ack >= self.wl2);
        if current && newer {
            self.wl1 = cut.start;
            self.wl2 = ack;
            self.window = header.window;
            self.max_window = self
                .max_window
                .max(u64::from(header.window) << self.remote_shift);
        } else {
            // As in BSD, the edge stays where it was: the window shrinks by what is acknowledged.
            let before = u64::from(self.window) << self.remote_shift;
            let left = before.saturating_sub(ack - self.snd_una) >> self.remote_shift;
            self.window = u16::try_from(left).unwrap_or(u16::MAX);
        }
        let new = ack > self.snd_una;
        self.snd_una = ack;
        let window = self.open_window();
        self.snd_wnd = u64::from(window) << self.remote_shift;
        // An acknowledgement of something new with a window of 0 would put the timer for probes in the
        // place of that for retransmissions, and probes leave behind what is in flight.
        let shut = new && window == 0 && self.in_flight_units() > 0;
        let start = self.rcv_nxt.max(u64::try_from(cut.start).unwrap_or(0));
        let mut feed = Feed {
            header: Header {
                seq: self.rcv_nxt_seq(),
                ack: self.snd_seq(ack),
                flags: ACK | header.flags & PSH,
                window: if shut { self.in_flight_units() } else { window },
                options: SynOptions::default(),
            },
            skip: cut.skip,
            len: cut.len,
            position: start,
            keep: false,
            growth: 0,
            // A repeated acknowledgement with text is none for a loss (RFC 5681 2).
            tell: cut.len == 0 || before != (self.snd_una, self.snd_wnd),
            shut,
        };
        if cut.len > 0 {
            let end = start + cut.len as u64;
            if start == self.rcv_nxt {
                let in_order = self.ahead.advance(end) - start;
                feed.growth = usize::try_from(in_order).unwrap_or(usize::MAX);
                feed.keep = true;
            } else {
                self.declined = self.appetite != Appetite::Everything;
                feed.keep = !self.declined && self.ahead.add(start, end);
            }
            if feed.keep {
                self.high = self.high.max(end);
            }
        }
        if cut.fin {
            if start == self.rcv_nxt {
                feed.header.flags |= FIN;
                feed.header.flags &= !PSH;
                self.fin_received = true;
            } else {
                self.fin_at = Some(start + cut.len as u64);
            }
        }
        self.rcv_nxt += feed.growth as u64 + u64::from(feed.header.has(FIN));
        feed
    }

    /// The remembered FIN, if its turn has come: a segment to feed.
    pub(crate) fn replay_fin(&mut self) -> Option<Feed> {
        if self.fin_at != Some(self.rcv_nxt) || self.fin_received {
            return None;
        }
        let header = Header {
            seq: self.rcv_nxt_seq(),
            ack: self.snd_seq(self.snd_una),
            flags: ACK | FIN,
            window: self.open_window(),
            options: SynOptions::default(),
        };
        self.snd_wnd = u64::from(header.window) << self.remote_shift;
        let feed = Feed {
            position: self.rcv_nxt,
            ..bare(header)
        };
        self.fin_at = None;
        self.fin_received = true;
        self.rcv_nxt += 1;
        Some(feed)
    }

    /// The peer's window, but never smaller than what is in flight. When a peer takes its window back,
    /// the engine would stop its retransmission timer and never send again what was lost; it must
    /// retransmit, and send nothing new (RFC 9293 3.8.6).
    ///
    /// An edge that has only been rounded down (RFC 7323 2.4) is taken as it is: in the peer's units,
    /// a window that covers what is in flight would let the engine send a few bytes beyond the edge.
    ///
    /// Once our FIN is acknowledged there is nothing left to send, and no window is closed: in
    /// FIN-WAIT-2 the engine's timer for probes, once due, would send acknowledgements without end.
    fn open_window(&self) -> u16 {
        if self.fin_sent.is_some_and(|fin| self.snd_una > fin) {
            return self.window.max(1);
        }
        let unit = 1 << self.remote_shift;
        let rounded = self.in_flight_bytes() < (u64::from(self.window) << self.remote_shift) + unit;
        if rounded {
            self.window
        } else {
            self.window.max(self.in_flight_units())
        }
    }

    fn in_flight_bytes(&self) -> u64 {
        self.snd_nxt.saturating_sub(self.snd_una)
    }

    /// The smallest window that covers what is in flight, as the peer would tell it.
    fn in_flight_units(&self) -> u16 {
        let units = self.in_flight_bytes().div_ceil(1 << self.remote_shift);
        u16::try_from(units).unwrap_or(u16::MAX)
    }

    /// What the peer has said last, behind a [`Feed`] that has told more: that its window is closed. It
    /// acknowledges nothing new, so the timer for retransmissions goes on.
    pub(crate) fn shut(&self) -> Header {
        Header {
            seq: self.rcv_nxt_seq(),
            window: 0,
            ..self.below_window()
        }
    }

    /// What of a segment lies in the window.
    fn trim(&self, state: State, header: &Header, len: usize) -> Cut {
        let start = self.position_of(header.seq);
        let end = start + i64::try_from(len).unwrap_or(i64::MAX);
        let (next, right) = (signed(self.rcv_nxt), signed(self.right_edge()));
        let fin = header.has(FIN);
        let occupies = len > 0 || fin;
        let mut cut = Cut {
            start,
            occupies,
            acceptable: false,
            skip: 0,
            len: 0,
            fin: false,
        };
        if !occupies || !may_receive(state) {
            // At the very edge is fine: the peer has filled the window. Text behind the peer's FIN
            // is ignored, its acknowledgement is not.
            cut.acceptable = start >= next && start <= right;
            return cut;
        }
        // By the time that the hole is filled the engine's edge may have moved left by part of a unit.
        let unit = if start > next { 1 << self.shift } else { 1 };
        let limit = right - (unit - 1);
        let stop = self
            .fin_at
            .map_or(limit, |fin_at| limit.min(signed(fin_at)));
        let (from, to) = (start.max(next), end.min(stop));
        if from < to {
            cut.acceptable = true;
            cut.skip = usize::try_from(from - start).unwrap_or(0);
            cut.len = usize::try_from(to - from).unwrap_or(0);
        }
        // A FIN counts if nothing before it was cut, and nothing is known behind it.
        let whole = end <= if len > 0 { limit } else { right };
        if fin && end >= next && whole && start <= right && end >= signed(self.high) {
            cut.fin = self.fin_at.is_none_or(|fin_at| signed(fin_at) == end);
            cut.acceptable |= cut.fin;
        }
        cut
    }

    /// RFC 9293 3.10.7.4 and RFC 5961 5.2. The position, also of an old acknowledgement.
    fn acceptable_ack(&self, ack: u32) -> Option<i64> {
        let ack = unwrap(ack, self.iss?, self.snd_una);
        let oldest = signed(self.snd_una) - signed(self.max_window);
        (ack >= oldest && ack <= signed(self.snd_max)).then_some(ack)
    }

    /// Everything but our FIN is acknowledged. The engine takes three duplicate acknowledgements for
    /// the loss of a text, finds none, and forgets to send the FIN again.
    fn awaits_only_fin(&self) -> bool {
        self.fin_sent == Some(self.snd_una)
    }

    fn right_edge(&self) -> u64 {
        self.edge
            .min(self.consumed + self.capacity)
            .max(self.rcv_nxt)
    }

    fn position_of(&self, seq: u32) -> i64 {
        unwrap(seq, self.irs.unwrap_or(0), self.rcv_nxt)
    }

    /// What the peer has said last, once more. While there is something that was never sent (up to
    /// `queued`), the window is called closed, for what is open of it is in flight.
    pub(crate) fn standing(&mut self, queued: u64) -> Header {
        let window = if self.snd_nxt < queued {
            0
        } else {
            self.open_window()
        };
        self.snd_wnd = u64::from(window) << self.remote_shift;
        Header {
            seq: self.rcv_nxt_seq(),
            window,
            ..self.below_window()
        }
    }

    /// A segment just below the window, with everything else as it stands.
    pub(crate) fn below_window(&self) -> Header {
        Header {
            seq: self.rcv_nxt_seq().wrapping_sub(1),
            ack: self.snd_seq(self.snd_una),
            flags: ACK,
            window: self.window,
            options: SynOptions::default(),
        }
    }

    /// Something before what has arrived is missing.
    pub(crate) fn has_holes(&self) -> bool {
        self.ahead.len() > 0
    }

    /// What arrived ahead of its turn, as sequence numbers: the blocks of a SACK option, if the peer
    /// takes one.
    pub(crate) fn sack(&self) -> SmallVec<[(u32, u32); BLOCKS]> {
        let blocks = self.ahead.blocks();
        let wanted = blocks.iter().filter(|_| self.sack);
        wanted
            .map(|(start, end)| (self.rcv_seq(*start), self.rcv_seq(*end)))
            .collect()
    }

    /// The peer's SYN is accepted.
    fn synchronise(&mut self, header: &Header) {
        self.irs = Some(header.seq);
        self.sack = header.options.sack_permitted;
        self.remote_mss = believed(header.options).mss;
        match header.options.window_scale {
            Some(shift) => self.remote_shift = shift,
            None => self.shift = 0,
        }
        // Not scaled (RFC 7323 2.2). Told again, it is less by a part of a unit.
        self.window = header.window >> self.remote_shift;
        self.snd_wnd = u64::from(header.window);
        self.max_window = self.snd_wnd;
        self.wl1 = -1;
    }
}

/// What of a segment lies in the window.
#[derive(Debug, Clone, Copy)]
struct Cut {
    /// Position of the segment before trimming.
    start: i64,
    /// It has a payload or a FIN.
    occupies: bool,
    acceptable: bool,
    skip: usize,
    len: usize,
    fin: bool,
}

/// States in which something may be in flight and the engine takes a window. In LAST-ACK it takes an
/// acknowledgement of nothing new for a challenge.
pub(crate) fn hears_windows(state: State) -> bool {
    matches!(
        state,
        State::Established | State::FinWait1 | State::CloseWait | State::Closing
    )
}

fn may_receive(state: State) -> bool {
    matches!(
        state,
        State::SynReceived | State::Established | State::FinWait1 | State::FinWait2
    )
}

/// The options of a SYN, with what would harm us left out.
fn believed(options: SynOptions) -> SynOptions {
    SynOptions {
        mss: options.mss.map(|mss| mss.max(LEAST_MSS)),
        ..options
    }
}

fn bare(header: Header) -> Feed {
    Feed {
        header,
        skip: 0,
        len: 0,
        position: 0,
        keep: false,
        growth: 0,
        tell: true,
        shut: false,
    }
}

/// Sequence number of a position; 0 is the byte behind the SYN.
#[expect(
    clippy::cast_possible_truncation,
    reason = "sequence numbers are positions modulo 2^32"
)]
fn wrap(initial: u32, position: u64) -> u32 {
    initial.wrapping_add(1).wrapping_add(position as u32)
}

/// The position with this sequence number that is nearest to `near`.
fn unwrap(seq: u32, initial: u32, near: u64) -> i64 {
    let distance = seq.wrapping_sub(wrap(initial, near)).cast_signed();
    signed(near) + i64::from(distance)
}

fn signed(position: u64) -> i64 {
    i64::try_from(position).expect("invariant: no connection carries 2^63 bytes")
}

#[cfg(test)]
mod tests;
