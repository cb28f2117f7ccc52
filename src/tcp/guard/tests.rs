//! The guard against a model of segment arrival, written from RFC 9293 3.10.7, 5961 and 7323.
//!
//! The model keeps what a receiver keeps: the next byte, the edge it advertised, the ranges that
//! arrived, what it sent and what of it was acknowledged. It says which kinds of verdict a segment may
//! get; when one feeds something, it checks the range, the FIN and the acknowledgement, and takes
//! the consequences. In [`guard_and_model_agree`] the model also plays the engine; in
//! [`the_engine_does_what_the_guard_says`] a real one has to agree too.

#![expect(
    clippy::cast_possible_truncation,
    reason = "positions become sequence numbers, and indices within small buffers"
)]

use super::*;
use crate::link::Capabilities;
use crate::tcp::ahead::MOST;
use crate::tcp::engine::{Emitted, Engine, EngineConfig, Outlet};
use crate::tcp::wire::Tuple;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use smoltcp::time::Instant;

/// What happens to a connection, relative to where it stands.
#[derive(Debug, Clone)]
enum Step {
    Arrive(Shape),
    /// The engine acknowledges.
    Emit,
    /// The reader takes some of what is in order.
    Consume(usize),
    /// The engine sends new bytes.
    Send(usize),
    /// The engine sends the oldest unacknowledged bytes again.
    Resend(usize),
    Close,
}

#[derive(Debug, Clone, Copy)]
enum Anchor {
    Next,
    Edge,
    Kept,
    Fin,
    Anywhere(u32),
}

#[derive(Debug, Clone, Copy)]
enum AckAnchor {
    Una,
    Max,
    FarBelow,
    Anywhere(u32),
}

#[derive(Debug, Clone, Copy)]
enum Length {
    Bytes(usize),
    /// As far as this many bytes from the edge.
    ToEdge(i32),
    /// As far as this many bytes from the next one expected.
    ToNext(i32),
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    seq: (Anchor, i32),
    len: Length,
    flags: u8,
    ack: (AckAnchor, i32),
    window: u16,
    options: SynOptions,
}

fn near() -> impl Strategy<Value = i32> {
    prop_oneof![6 => Just(0), 4 => -3i32..=3, 3 => -70_000i32..70_000, 1 => any::<i32>()]
}

fn flags() -> impl Strategy<Value = u8> {
    prop_oneof![
        12 => Just(ACK),
        4 => Just(ACK | PSH),
        5 => Just(ACK | FIN),
        1 => Just(RST),
        1 => Just(RST | ACK),
        1 => Just(SYN),
        1 => Just(SYN | ACK),
        1 => any::<u8>(),
    ]
}

fn syn_options() -> impl Strategy<Value = SynOptions> {
    (
        any::<Option<u16>>(),
        prop::option::of(0u8..=14),
        any::<bool>(),
    )
        .prop_map(|(mss, window_scale, sack_permitted)| SynOptions {
            mss,
            window_scale,
            sack_permitted,
        })
}

fn shape() -> impl Strategy<Value = Shape> {
    let seq = prop_oneof![
        6 => Just(Anchor::Next), 3 => Just(Anchor::Edge), 2 => Just(Anchor::Kept),
        2 => Just(Anchor::Fin), 1 => any::<u32>().prop_map(Anchor::Anywhere),
    ];
    let ack = prop_oneof![
        4 => Just(AckAnchor::Una), 8 => Just(AckAnchor::Max),
        1 => Just(AckAnchor::FarBelow), 1 => any::<u32>().prop_map(AckAnchor::Anywhere),
    ];
    let ack_by = prop_oneof![10 => Just(0), 2 => -3i32..=3, 1 => near()];
    let len = prop_oneof![
        3 => Just(Length::Bytes(0)), 2 => Just(Length::Bytes(1)),
        4 => (0usize..3000).prop_map(Length::Bytes), 1 => (0usize..65_000).prop_map(Length::Bytes),
        3 => (-3i32..4).prop_map(Length::ToEdge), 2 => (-3i32..3000).prop_map(Length::ToNext),
    ];
    let window = prop_oneof![1 => Just(0u16), 4 => any::<u16>()];
    (
        (seq, near()),
        len,
        flags(),
        (ack, ack_by),
        window,
        syn_options(),
    )
        .prop_map(|(seq, len, flags, ack, window, options)| Shape {
            seq,
            len,
            flags,
            ack,
            window,
            options,
        })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => shape().prop_map(Step::Arrive),
        6 => Just(Step::Emit),
        3 => (0usize..100_000).prop_map(Step::Consume),
        2 => (1usize..60_000).prop_map(Step::Send),
        1 => (1usize..2000).prop_map(Step::Resend),
        1 => Just(Step::Close),
    ]
}

/// How a connection begins.
#[derive(Debug, Clone, Copy)]
struct Beginning {
    active: bool,
    /// Active, and the peer's SYN comes without an ACK.
    simultaneous: bool,
    irs: u32,
    iss: u32,
    options: SynOptions,
    /// The SYN carries text, which does not count.
    text: usize,
    /// The third segment of the handshake has passed before the steps.
    finished: bool,
    capacity: usize,
}

/// Initial sequence numbers close to where they wrap, mostly.
fn isn() -> impl Strategy<Value = u32> {
    prop_oneof![3 => (u32::MAX - 100_000)..=u32::MAX, 1 => 0u32..1000, 1 => any::<u32>()]
}

fn beginning(capacity: impl Strategy<Value = usize>) -> impl Strategy<Value = Beginning> {
    let text = prop_oneof![3 => Just(0usize), 1 => 1usize..2000];
    (
        any::<(bool, bool, bool)>(),
        isn(),
        isn(),
        syn_options(),
        text,
        capacity,
    )
        .prop_map(|(flags, irs, iss, options, text, capacity)| Beginning {
            active: flags.0,
            simultaneous: flags.0 && flags.1,
            finished: flags.2,
            irs,
            iss,
            options,
            text,
            capacity,
        })
}

/// Capacities for every shift from 0 to 14, also such that are no power of two.
fn any_capacity() -> impl Strategy<Value = usize> {
    (0u32..=14, 0usize..1000).prop_map(|(shift, odd)| match shift {
        0 => 2048 + odd * 63,
        _ => (1usize << (15 + shift)) + odd * (1 << (shift + 4)),
    })
}

/// What a verdict must amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// Nothing is done.
    Nothing,
    /// Nothing but an ACK of ours, if at all.
    AtMostAck,
    /// An ACK of ours, and at most this segment's acknowledgement.
    Ack,
    /// A challenge ACK (RFC 5961).
    Challenge,
    /// The connection is reset.
    Reset,
    /// The handshake goes on.
    Syn,
    /// The engine may answer with a reset; nothing changes.
    Refuse,
    /// The rest of 3.10.7.4.
    Process,
}

/// The receiver and sender of RFC 9293, in positions: 0 is the byte behind the SYN.
#[derive(Debug)]
struct Model {
    state: State,
    capacity: u64,
    shift: u32,
    irs: u32,
    iss: u32,
    /// RCV.NXT, the FIN included.
    next: u64,
    /// The window's right edge as last advertised.
    edge: u64,
    consumed: u64,
    /// Ranges that were kept and are not in order yet.
    ahead: Vec<(u64, u64)>,
    /// Behind the last byte that was kept.
    kept: u64,
    /// Where FINs were seen that may count.
    fins: Vec<u64>,
    fin_done: bool,
    una: u64,
    max: u64,
    fin_sent: bool,
    peer_shift: u32,
    /// Largest window that the peer offered.
    max_window: u64,
    /// SND.WL1 and SND.WL2.
    wl: (i128, u64),
    /// Our SYN has left, so it can be acknowledged.
    syn_sent: bool,
}

fn nearest(seq: u32, base: u32, near: u64) -> i128 {
    let at = base.wrapping_add(1).wrapping_add(near as u32);
    i128::from(near) + i128::from(seq.wrapping_sub(at).cast_signed())
}

impl Model {
    fn new(begin: &Beginning) -> Model {
        let log2 = usize::BITS - begin.capacity.leading_zeros();
        Model {
            state: if begin.active {
                State::SynSent
            } else {
                State::Listen
            },
            capacity: begin.capacity as u64,
            shift: log2.saturating_sub(16),
            irs: 0,
            iss: begin.iss,
            next: 0,
            edge: 0,
            consumed: 0,
            ahead: Vec::new(),
            kept: 0,
            fins: Vec::new(),
            fin_done: false,
            una: 0,
            max: 0,
            fin_sent: false,
            peer_shift: 0,
            max_window: 0,
            wl: (-1, 0),
            syn_sent: false,
        }
    }

    fn unread(&self) -> u64 {
        self.next - u64::from(self.fin_done) - self.consumed
    }

    fn seq_of(&self, position: u64) -> u32 {
        self.irs.wrapping_add(1).wrapping_add(position as u32)
    }

    fn ack_of(&self, position: u64) -> u32 {
        self.iss.wrapping_add(1).wrapping_add(position as u32)
    }

    /// A frame of ours: also moves the edge.
    fn frame(&mut self, flags: u8, position: u64, len: usize) -> Emission {
        let free = self.capacity - self.unread();
        let syn = flags & SYN != 0;
        self.syn_sent |= syn;
        let field = if syn { free } else { free >> self.shift };
        let field = field.min(65_535);
        if flags == SYN {
            self.edge = field;
        }
        if flags & ACK != 0 {
            self.edge = self.next + if syn { field } else { field << self.shift };
        }
        let seq = self.ack_of(position).wrapping_sub(u32::from(syn));
        Emission {
            header: Header {
                seq,
                ack: self.seq_of(self.next),
                flags,
                window: field as u16,
                options: SynOptions::default(),
            },
            len,
        }
    }

    /// RCV.NXT + RCV.WND. A FIN is not in the ring, so the edge may lie a byte behind its space.
    fn right(&self) -> u64 {
        self.edge.min(self.consumed + self.capacity)
    }

    /// How far text may reach that begins at `seq`: ahead of its turn not into the last unit of the
    /// window, by which the edge may move left.
    fn limit(&self, seq: i128) -> i128 {
        let unit = if seq > i128::from(self.next) {
            1 << self.shift
        } else {
            1
        };
        i128::from(self.right()) - (unit - 1)
    }

    fn can_receive(&self) -> bool {
        matches!(
            self.state,
            State::SynReceived | State::Established | State::FinWait1 | State::FinWait2
        ) && !self.fin_done
    }

    fn synchronised(&self) -> bool {
        !matches!(self.state, State::Listen | State::SynSent)
    }

    /// Segment arrives: what must come of it.
    fn expect(&self, header: &Header, len: usize) -> Expected {
        match self.state {
            State::Listen if header.flags & (RST | ACK) != 0 => Expected::Nothing,
            State::Listen if header.has(SYN) => Expected::Syn,
            State::Listen | State::Closed => Expected::Nothing,
            State::SynSent => self.expect_syn_sent(header),
            _ => self.expect_synchronised(header, len),
        }
    }

    /// RFC 9293 3.10.7.3.
    fn expect_syn_sent(&self, header: &Header) -> Expected {
        let acked = header.has(ACK);
        let good = acked && header.ack == self.ack_of(0);
        match (acked, good, header.has(RST), header.has(SYN)) {
            (true, false, true, _) | (false, _, true, _) => Expected::Nothing,
            (true, false, false, _) => Expected::Refuse,
            (true, true, true, _) => Expected::Reset,
            (_, _, false, true) => Expected::Syn,
            (_, _, false, false) => Expected::Nothing,
        }
    }

    /// RFC 9293 3.10.7.4, RFC 5961.
    fn expect_synchronised(&self, header: &Header, len: usize) -> Expected {
        let seq = nearest(header.seq, self.irs, self.next);
        let (next, edge) = (i128::from(self.next), i128::from(self.right()));
        let in_window = next <= seq && seq < edge;
        if header.has(RST) {
            return match (seq == next, in_window) {
                (true, _) => Expected::Reset,
                (false, true) => Expected::Challenge,
                (false, false) => Expected::Nothing,
            };
        }
        if header.has(SYN) {
            return match self.state {
                State::SynReceived => Expected::AtMostAck,
                _ => Expected::Challenge,
            };
        }
        if !header.has(ACK) {
            return Expected::Nothing;
        }
        let seg = len as i128 + i128::from(header.has(FIN));
        // The RFC's own test forgets a segment that begins before the window and ends behind it.
        let limit = if len > 0 { self.limit(seq) } else { edge };
        let overlaps = seq < limit && next < seq + seg;
        // A FIN right at the edge, or one that fits into a window of zero, occupies no buffer.
        let at_edge = header.has(FIN) && seq + len as i128 == edge && next <= edge && edge <= limit;
        let acceptable = match (seg, self.right() <= self.next) {
            // A peer that has filled the window stands right at its edge.
            (0, _) => next <= seq && seq <= edge.max(next),
            (_, true) => at_edge,
            (_, false) => overlaps || at_edge,
        };
        let ack = nearest(header.ack, self.iss, self.una);
        let (una, max) = (i128::from(self.una), i128::from(self.max));
        if self.state == State::SynReceived && (ack != 0 || !self.syn_sent) {
            return if self.syn_sent {
                Expected::Refuse
            } else {
                Expected::Nothing
            };
        }
        if !acceptable {
            return if ack > max || self.state == State::SynReceived {
                Expected::AtMostAck
            } else {
                Expected::Ack
            };
        }
        // RFC 5961 5.2: SND.UNA - MAX.SND.WND <= SEG.ACK <= SND.NXT.
        if ack > max || ack < una - i128::from(self.max_window) {
            return Expected::Challenge;
        }
        Expected::Process
    }

    /// An old acknowledgement, or the same again, and nothing new.
    fn is_useless(&self, header: &Header, len: usize) -> bool {
        let ack = nearest(header.ack, self.iss, self.una);
        // While only our FIN is outstanding, the same acknowledgement again says nothing either.
        let again = self.fin_sent && self.una + 1 == self.max && ack == i128::from(self.una);
        let old = again || ack < i128::from(self.una);
        let text = self.can_receive() && self.fins.is_empty() && (len > 0 || header.has(FIN));
        old && !text
    }

    /// Text or another FIN where a FIN says that there is none.
    fn contradicts_fin(&self, header: &Header, len: usize) -> bool {
        let end = nearest(header.seq, self.irs, self.next) + len as i128;
        let fin = self
            .fins
            .iter()
            .min()
            .is_some_and(|fin| end > i128::from(*fin))
            || self.fin_done;
        fin || (header.has(FIN) && (end < i128::from(self.kept) || !self.fins.is_empty()))
    }

    /// A segment that the engine is given. Returns by how much its in-order bytes grow.
    fn take(
        &mut self,
        received: &Header,
        received_len: usize,
        feed: &Feed,
    ) -> Result<u64, TestCaseError> {
        let header = &feed.header;
        prop_assert!(!header.has(SYN | RST));
        prop_assert!(header.has(ACK));
        let seq = nearest(received.seq, self.irs, self.next);
        let end = seq + received_len as i128;
        let whole = end <= i128::from(self.edge) && (received_len == 0 || end <= self.limit(seq));
        self.take_text(seq, received_len, feed)?;
        let mut growth = 0;
        if feed.keep {
            let before = self.next;
            self.ahead
                .push((feed.position, feed.position + feed.len as u64));
            self.kept = self.kept.max(feed.position + feed.len as u64);
            self.ahead.sort_unstable();
            for (from, to) in &self.ahead {
                if *from <= self.next {
                    self.next = self.next.max(*to);
                }
            }
            self.ahead.retain(|(_, to)| *to > self.next);
            growth = self.next - before;
        }
        prop_assert_eq!(feed.growth as u64, growth, "growth");
        let fed: usize = feed.parts().map(|(_, len)| len).sum();
        prop_assert_eq!(fed as u64, growth, "all that is in order is fed");
        self.take_ack(seq, received, header)?;
        self.take_fin(end, whole, received, feed)?;
        Ok(growth)
    }

    fn take_text(&self, seq: i128, received_len: usize, feed: &Feed) -> Result<(), TestCaseError> {
        if feed.len == 0 {
            prop_assert!(!feed.keep, "nothing to keep");
            return Ok(());
        }
        prop_assert!(self.can_receive(), "text in {:?}", self.state);
        let end = feed.position + feed.len as u64;
        prop_assert!(
            feed.position >= self.next && end <= self.edge,
            "outside the window"
        );
        prop_assert!(end <= self.consumed + self.capacity, "beyond the ring");
        prop_assert!(
            feed.skip + feed.len <= received_len,
            "bytes that were not received"
        );
        prop_assert_eq!(
            seq + feed.skip as i128,
            i128::from(feed.position),
            "the right bytes"
        );
        prop_assert_eq!(feed.header.seq, self.seq_of(self.next));
        prop_assert!(
            self.fins.iter().all(|fin| *fin >= end || *fin < self.kept) || self.fins.len() > 1,
            "data behind the FIN"
        );
        // Nothing acceptable is cut away: all of the window, but for one byte before our first ACK.
        let want = (seq + received_len as i128).min(self.limit(seq));
        let limit = self.fins.iter().copied().min().unwrap_or(u64::MAX);
        prop_assert!(
            i128::from(end) >= want.min(i128::from(limit)),
            "cut too much: {} of {}",
            end,
            want
        );
        Ok(())
    }

    fn take_ack(
        &mut self,
        seq: i128,
        received: &Header,
        header: &Header,
    ) -> Result<(), TestCaseError> {
        let given = nearest(header.ack, self.iss, self.una);
        prop_assert!(
            given >= i128::from(self.una),
            "the acknowledgement goes back"
        );
        prop_assert!(
            given <= i128::from(self.max),
            "acknowledges what was never sent"
        );
        let was = nearest(received.ack, self.iss, self.una);
        prop_assert_eq!(given, was.max(i128::from(self.una)));
        let newer = seq > self.wl.0 || (seq == self.wl.0 && given >= i128::from(self.wl.1));
        if was >= i128::from(self.una) && newer {
            self.wl = (seq, given as u64);
            self.max_window = self
                .max_window
                .max(u64::from(received.window) << self.peer_shift);
        }
        self.una = given as u64;
        let fin_acked = self.fin_sent && self.una == self.max;
        self.state = match self.state {
            State::SynReceived => State::Established,
            State::FinWait1 if fin_acked => State::FinWait2,
            State::Closing if fin_acked => State::TimeWait,
            State::LastAck if fin_acked => State::Closed,
            other => other,
        };
        Ok(())
    }

    /// `at`: where it would be; `whole`: nothing before it was cut.
    fn take_fin(
        &mut self,
        at: i128,
        whole: bool,
        received: &Header,
        feed: &Feed,
    ) -> Result<(), TestCaseError> {
        if received.has(FIN) && whole && at >= i128::from(self.next) && !self.fin_done {
            let at = at as u64;
            if !self.fins.contains(&at) {
                self.fins.push(at);
            }
        }
        if feed.header.has(FIN) {
            prop_assert!(received.has(FIN), "a FIN from nowhere");
            prop_assert!(whole, "a FIN whose text was cut");
            prop_assert_eq!(at, i128::from(self.next), "a FIN out of order");
            self.finish()?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), TestCaseError> {
        prop_assert!(!self.fin_done, "a second FIN");
        prop_assert!(self.ahead.is_empty(), "a FIN with data behind it");
        self.fin_done = true;
        self.next += 1;
        self.state = match self.state {
            State::SynReceived | State::Established => State::CloseWait,
            State::FinWait1 => State::Closing,
            State::FinWait2 => State::TimeWait,
            other => return Err(TestCaseError::fail(format!("FIN in {other:?}"))),
        };
        Ok(())
    }
}

/// Guard and model, and perhaps the engine.
struct Rig {
    guard: Guard,
    model: Model,
    engine: Option<Live>,
    last: (u64, u64, u64, u64),
}

/// A real engine: it emits into the list.
struct Live {
    engine: Engine,
    tuple: Tuple,
    now: i64,
}

#[derive(Default)]
struct Frames(Vec<Emission>);

impl Outlet for Frames {
    fn ready(&self) -> bool {
        true
    }
    fn emit(&mut self, emitted: Emitted<'_>) {
        self.0.push(emitted.emission);
    }
}

impl Live {
    fn feed(&mut self, header: &Header, len: usize) -> Vec<Emission> {
        let mut frames = Frames::default();
        let now = Instant::from_millis(self.now);
        let tuple = self.tuple;
        self.engine.feed(now, &tuple, header, len, &mut frames);
        frames.0
    }

    fn egress(&mut self) -> Vec<Emission> {
        let mut frames = Frames::default();
        let now = Instant::from_millis(self.now);
        while self.engine.egress(now, &mut frames) {
            assert!(
                frames.0.len() < 1000,
                "no end of sending: {:?}",
                self.engine
            );
        }
        frames.0
    }
}

const LINK: Capabilities = Capabilities {
    mtu: 1500,
    checksum: true,
    segment_v4: Some(65_535),
    segment_v6: None,
};

impl Rig {
    fn new(begin: &Beginning, real: bool) -> Rig {
        let tuple = Tuple {
            local: [10, 0, 0, 1].into(),
            remote: [10, 0, 0, 2].into(),
            local_port: 80,
            remote_port: 5000,
        };
        let config = EngineConfig {
            rcv_ring: begin.capacity,
            snd_ring: 60_000,
            shared_rings: Some(0),
            nagle: false,
            seed: u64::from(begin.iss),
        };
        let engine = real.then(|| Live {
            engine: if begin.active {
                Engine::connecting(&LINK, &config, &tuple)
            } else {
                Engine::listening(&LINK, &config, &tuple)
            },
            tuple,
            now: 1000,
        });
        Rig {
            guard: Guard::new(begin.capacity),
            model: Model::new(begin),
            engine,
            last: (0, 0, 0, 0),
        }
    }

    /// Frames that left the real engine.
    fn emitted(&mut self, frames: Vec<Emission>) {
        for frame in frames {
            self.guard.emitted(&frame);
            if frame.header.has(RST) {
                continue;
            }
            let model = &mut self.model;
            if frame.header.has(SYN) {
                model.iss = frame.header.seq;
                model.syn_sent = true;
                model.edge = u64::from(frame.header.window);
            }
            if frame.header.has(ACK) {
                let syn = frame.header.has(SYN);
                let window = u64::from(frame.header.window) << if syn { 0 } else { model.shift };
                let ack = nearest(frame.header.ack, model.irs, model.next);
                model.edge = (ack + i128::from(window)) as u64;
            }
            model.fin_sent |= frame.header.has(FIN);
            let end = nearest(frame.header.seq, model.iss, model.max)
                + frame.len as i128
                + i128::from(frame.header.flags & (SYN | FIN) != 0);
            model.max = model.max.max(u64::try_from(end).unwrap_or(0));
        }
    }

    /// A frame of the model, when it is the engine.
    fn emit(&mut self, flags: u8, position: u64, len: usize) {
        let emission = self.model.frame(flags, position, len);
        self.guard.emitted(&emission);
    }

    fn acknowledge(&mut self) {
        match &mut self.engine {
            Some(live) => {
                let frames = live.egress();
                self.emitted(frames);
            }
            None if self.model.state == State::SynReceived => self.emit(SYN | ACK, 0, 0),
            None if self.model.synchronised() => self.emit(ACK, self.model.max, 0),
            None => {}
        }
    }

    fn begin(&mut self, begin: &Beginning) -> Result<(), TestCaseError> {
        match &self.engine {
            Some(_) => self.acknowledge(),
            None if begin.active => self.emit(SYN, 0, 0),
            None => {}
        }
        let acks = begin.active && !begin.simultaneous;
        let header = Header {
            seq: begin.irs,
            ack: self.model.iss.wrapping_add(1),
            flags: SYN | if acks { ACK } else { 0 },
            window: 1000,
            options: begin.options,
        };
        self.arrive(&header, begin.text)?;
        if self.model.state == State::SynReceived || begin.finished {
            self.acknowledge();
        }
        if begin.finished && self.model.state == State::SynReceived {
            let header = Header {
                seq: begin.irs.wrapping_add(1),
                ack: self.model.ack_of(0),
                flags: ACK,
                window: 1000,
                options: SynOptions::default(),
            };
            self.arrive(&header, 0)?;
            prop_assert_eq!(self.model.state, State::Established);
        }
        Ok(())
    }

    fn segment(&self, shape: &Shape) -> (Header, usize) {
        let model = &self.model;
        let fin = model.fins.first().copied().unwrap_or(model.kept);
        let at = match shape.seq.0 {
            Anchor::Next => model.next,
            Anchor::Edge => model.edge,
            Anchor::Kept => model.kept,
            Anchor::Fin => fin,
            Anchor::Anywhere(at) => model.next.wrapping_add(u64::from(at)),
        };
        let at = i128::from(at) + i128::from(shape.seq.1);
        let len = match shape.len {
            Length::Bytes(len) => len as i128,
            Length::ToEdge(by) => i128::from(model.edge) + i128::from(by) - at,
            Length::ToNext(by) => i128::from(model.next) + i128::from(by) - at,
        };
        let ack = match shape.ack.0 {
            AckAnchor::Una => model.una,
            AckAnchor::Max => model.max,
            AckAnchor::FarBelow => model.una.wrapping_sub(model.max_window),
            AckAnchor::Anywhere(at) => u64::from(at),
        };
        let header = Header {
            seq: model.seq_of(at as u64),
            ack: model.ack_of(ack).wrapping_add(shape.ack.1.cast_unsigned()),
            flags: shape.flags,
            window: shape.window,
            options: if shape.flags & SYN == 0 {
                SynOptions::default()
            } else {
                shape.options
            },
        };
        (header, len.clamp(0, 65_000) as usize)
    }

    #[expect(
        clippy::too_many_lines,
        reason = "one table of what may come of a segment"
    )]
    fn arrive(&mut self, header: &Header, len: usize) -> Result<(), TestCaseError> {
        if let Some(reminder) = self.guard.unsettled(self.model.state, header, len) {
            self.answer(&reminder, 1)?;
            self.guard.settle();
        }
        let expected = self.model.expect(header, len);
        let state = self.model.state;
        let useless = self.model.is_useless(header, len);
        let verdict = self.guard.judge(state, header, len);
        let context = format!(
            "{expected:?} in {state:?}, but {verdict:?} for {header:?} + {len}\n{:?}",
            self.model
        );
        match (expected, verdict) {
            (Expected::Nothing | Expected::AtMostAck | Expected::Refuse, Verdict::Drop) => {}
            (
                Expected::AtMostAck | Expected::Ack | Expected::Challenge,
                Verdict::Challenge(answer),
            ) => {
                self.answer(&answer, 0)?;
            }
            (Expected::AtMostAck | Expected::Ack, Verdict::Answer(answer)) => {
                self.answer(&answer, 1)?
            }
            (Expected::Refuse, Verdict::Feed(feed)) => self.refuse(&feed, &context)?,
            // Beyond an edge that has moved left, an old acknowledgement means nothing.
            (Expected::Ack, Verdict::Drop) if len == 0 && !header.has(FIN) && useless => {}
            // As in BSD, an acknowledgement in a duplicate counts.
            (Expected::Ack, Verdict::Feed(feed)) => {
                prop_assert!(feed.len == 0 && !feed.header.has(FIN), "{}", context);
                self.process(header, len, &feed, &context)?;
            }
            (Expected::Ack, Verdict::FeedThenAnswer(feed, answer)) => {
                prop_assert!(feed.len == 0 && !feed.header.has(FIN), "{}", context);
                self.process(header, len, &feed, &context)?;
                if self.model.state != State::Closed {
                    self.answer(&answer, 1)?;
                }
            }
            // Simultaneous open: the peer's SYN|ACK acknowledges our SYN.
            (Expected::AtMostAck, Verdict::Feed(feed))
                if state == State::SynReceived
                    && header.seq == self.model.irs
                    && header.has(ACK)
                    && header.ack == self.model.ack_of(0) =>
            {
                prop_assert!(
                    feed.len == 0 && !feed.keep && feed.header.flags == ACK,
                    "{}",
                    context
                );
                self.model.state = State::Established;
                if let Some(live) = &mut self.engine {
                    let frames = live.feed(&feed.header, 0);
                    prop_assert_eq!(live.engine.state(), State::Established, "{}", context);
                    self.emitted(frames);
                }
            }
            (Expected::Ack, Verdict::Drop) => prop_assert!(self.model.fin_done, "{}", context),
            // No stack sends SYN and FIN together.
            (Expected::Syn, Verdict::Drop) => prop_assert!(header.has(FIN), "{}", context),
            (Expected::Process, Verdict::Drop) => {
                prop_assert!(self.model.is_useless(header, len), "{}", context)
            }
            (Expected::Process | Expected::Challenge, Verdict::Answer(answer)) => {
                prop_assert!(self.model.contradicts_fin(header, len), "{}", context);
                self.answer(&answer, 1)?;
            }
            (Expected::Process, Verdict::FeedThenAnswer(feed, answer)) => {
                self.process(header, len, &feed, &context)?;
                if self.model.state != State::Closed {
                    self.answer(&answer, 1)?;
                }
            }
            (Expected::Process, Verdict::Feed(feed)) => {
                self.process(header, len, &feed, &context)?
            }
            (Expected::Reset, Verdict::Feed(feed)) => {
                prop_assert!(
                    feed.header.has(RST) && feed.len == 0 && !feed.keep,
                    "{}",
                    context
                );
                if let Some(live) = &mut self.engine {
                    live.feed(&feed.header, 0);
                    let after = live.engine.state();
                    prop_assert!(
                        matches!(after, State::Closed | State::Listen),
                        "{}",
                        context
                    );
                }
                self.model.state = State::Closed;
            }
            (Expected::Syn, Verdict::Feed(feed)) => self.synchronise(header, &feed, &context)?,
            _ => return Err(TestCaseError::fail(context)),
        }
        self.replay()?;
        self.check(&context)
    }

    /// The engine is to answer, and nothing else.
    fn answer(&mut self, header: &Header, len: usize) -> Result<(), TestCaseError> {
        prop_assert!(
            !header.has(SYN | RST | FIN) && header.has(ACK),
            "{:?}",
            header
        );
        let Some(live) = &mut self.engine else {
            return Ok(());
        };
        let before = (
            live.engine.state(),
            live.engine.rcv_queue(),
            live.engine.snd_queue(),
        );
        live.now += 1001;
        let frames = live.feed(header, len);
        let after = (
            live.engine.state(),
            live.engine.rcv_queue(),
            live.engine.snd_queue(),
        );
        prop_assert_eq!(before, after, "an answer changes nothing");
        // LAST-ACK and the like answer too; only a handshake repeats its SYN|ACK by timer.
        prop_assert!(
            frames.len() == 1 || before.0 == State::SynReceived,
            "no ACK in {:?}: {:?}",
            before,
            header
        );
        self.emitted(frames);
        Ok(())
    }

    fn refuse(&mut self, feed: &Feed, context: &str) -> Result<(), TestCaseError> {
        prop_assert!(feed.len == 0 && !feed.keep, "{}", context);
        if let Some(live) = &mut self.engine {
            let before = live.engine.state();
            let frames = live.feed(&feed.header, 0);
            prop_assert_eq!(live.engine.state(), before, "{}", context);
            self.emitted(frames);
        }
        Ok(())
    }

    fn synchronise(
        &mut self,
        header: &Header,
        feed: &Feed,
        context: &str,
    ) -> Result<(), TestCaseError> {
        prop_assert!(
            feed.len == 0 && !feed.keep && !feed.header.has(FIN),
            "{}",
            context
        );
        prop_assert!(
            feed.header.has(SYN) && feed.header.seq == header.seq,
            "{}",
            context
        );
        let model = &mut self.model;
        model.irs = header.seq;
        model.max_window = u64::from(header.window);
        match header.options.window_scale {
            Some(shift) => model.peer_shift = u32::from(shift),
            None => model.shift = 0,
        }
        if model.state == State::SynSent {
            // The engine counts the window of our SYN from irs: the last byte is not used.
            model.edge -= 1;
        }
        let acks = model.state == State::SynSent && header.has(ACK);
        model.state = if acks {
            State::Established
        } else {
            State::SynReceived
        };

        if let Some(live) = &mut self.engine {
            let frames = live.feed(&feed.header, 0);
            prop_assert_eq!(live.engine.state(), self.model.state, "{}", context);
            self.emitted(frames);
        }
        Ok(())
    }

    fn process(
        &mut self,
        header: &Header,
        len: usize,
        feed: &Feed,
        context: &str,
    ) -> Result<(), TestCaseError> {
        let full = self.guard.ahead.len() == MOST;
        let growth = self.model.take(header, len, feed)?;
        if feed.len > 0 && !feed.keep {
            prop_assert!(full, "dropped without need: {}", context);
        }
        if let Some(live) = &mut self.engine {
            let before = live.engine.rcv_queue() as u64;
            let mut frames = Vec::new();
            for (header, len) in feed.parts() {
                frames.extend(live.feed(&header, len));
            }
            if feed.shut && hears_windows(live.engine.state()) {
                frames.extend(live.feed(&self.guard.shut(), 0));
            }
            prop_assert_eq!(live.engine.state(), self.model.state, "{}", context);
            if live.engine.state() != State::Closed {
                prop_assert_eq!(
                    live.engine.rcv_queue() as u64 - before,
                    growth,
                    "{}",
                    context
                );
            }
            self.emitted(frames);
        }
        Ok(())
    }

    fn replay(&mut self) -> Result<(), TestCaseError> {
        let model = &mut self.model;
        let due = model.can_receive()
            && model.state != State::SynReceived
            && model.fins == [model.next]
            && model.kept <= model.next;
        let Some(feed) = self.guard.replay_fin() else {
            prop_assert!(!due, "the FIN was forgotten: {:?}", model);
            return Ok(());
        };
        prop_assert!(
            model.fins.contains(&model.next),
            "a FIN from nowhere: {:?}",
            model
        );
        prop_assert!(feed.len == 0 && !feed.keep && feed.header.has(FIN) && feed.growth == 0);
        prop_assert_eq!(feed.header.seq, model.seq_of(model.next));
        prop_assert_eq!(feed.header.ack, model.ack_of(model.una));
        model.finish()?;
        if let Some(live) = &mut self.engine {
            let frames = live.feed(&feed.header, 0);
            prop_assert_eq!(live.engine.state(), self.model.state, "replay");
            self.emitted(frames);
        }
        Ok(())
    }

    /// Positions agree, never go back, and an unsent byte is never acknowledged.
    fn check(&mut self, context: &str) -> Result<(), TestCaseError> {
        let now = (
            self.guard.rcv_nxt(),
            self.guard.snd_una(),
            self.guard.snd_max(),
            self.guard.consumed(),
        );
        prop_assert!(now.1 <= now.2, "{}", context);
        let last = self.last;
        prop_assert!(
            now.0 >= last.0 && now.1 >= last.1 && now.2 >= last.2 && now.3 >= last.3,
            "went back: {}",
            context
        );
        self.last = now;
        if self.model.synchronised() && self.model.syn_sent && self.model.state != State::Closed {
            prop_assert_eq!(now.0, self.model.next, "{}", context);
            prop_assert_eq!(now.1, self.model.una, "{}", context);
            prop_assert_eq!(now.2, self.model.max, "{}", context);
            prop_assert_eq!(
                self.guard.fin_received(),
                self.model.fin_done,
                "{}",
                context
            );
            prop_assert_eq!(self.guard.rcv_nxt_seq(), self.model.seq_of(now.0));
            prop_assert_eq!(self.guard.snd_max_seq(), self.model.ack_of(now.2));
        }
        Ok(())
    }

    fn consume(&mut self, count: usize) {
        let mut count = count.min(usize::try_from(self.model.unread()).unwrap_or(0));
        if let Some(live) = &mut self.engine {
            count = live.engine.dequeue(count);
        }
        self.guard.consume(count);
        self.model.consumed += count as u64;
    }

    fn send(&mut self, count: usize) {
        if !matches!(self.model.state, State::Established | State::CloseWait) {
            return;
        }
        match &mut self.engine {
            Some(live) => {
                live.engine.enqueue(count);
                let frames = live.egress();
                self.emitted(frames);
            }
            None => {
                let at = self.model.max;
                self.model.max += count as u64;
                self.emit(ACK | PSH, at, count);
            }
        }
    }

    /// Sends what was sent before again.
    fn resend(&mut self, count: usize) {
        match &mut self.engine {
            Some(live) => {
                live.now += 70_000;
                let frames = live.egress();
                self.emitted(frames);
            }
            None if self.model.state == State::Established => {
                let (una, max) = (self.model.una, self.model.max);
                let count = (count as u64).min(max - una) as usize;
                self.emit(ACK, una, count);
            }
            None => {}
        }
    }

    fn close(&mut self) {
        let after = match self.model.state {
            State::Established => State::FinWait1,
            State::CloseWait => State::LastAck,
            _ => return,
        };
        match &mut self.engine {
            Some(live) => {
                live.engine.close();
                let frames = live.egress();
                self.emitted(frames);
            }
            None => {
                let at = self.model.max;
                self.model.max += 1;
                self.model.fin_sent = true;
                self.emit(ACK | FIN, at, 0);
            }
        }
        self.model.state = after;
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Arrive(shape) => {
                let (header, len) = self.segment(shape);
                self.arrive(&header, len)?;
            }
            Step::Emit => self.acknowledge(),
            Step::Consume(count) => self.consume(*count),
            Step::Send(count) => self.send(*count),
            Step::Resend(count) => self.resend(*count),
            Step::Close => self.close(),
        }
        Ok(())
    }

    fn run(begin: &Beginning, steps: &[Step], real: bool) -> Result<(), TestCaseError> {
        let mut rig = Rig::new(begin, real);
        rig.begin(begin)?;
        for step in steps {
            if matches!(rig.model.state, State::Closed | State::TimeWait) {
                break;
            }
            rig.step(step)?;
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, max_shrink_iters: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn guard_and_model_agree(
        begin in beginning(any_capacity()), steps in prop::collection::vec(step(), 1..24),
    ) {
        Rig::run(&begin, &steps, false)?;
    }

    #[test]
    fn the_engine_does_what_the_guard_says(
        begin in beginning(prop_oneof![5 => 2048usize..40_000, 1 => 40_000usize..400_000]), steps in prop::collection::vec(step(), 1..24),
    ) {
        Rig::run(&begin, &steps, true)?;
    }

    /// Small pieces in any order: all are kept, and the engine gets each when its turn comes.
    #[test]
    fn pieces_in_any_order_are_kept(
        begin in beginning(2048usize..10_000),
        pieces in prop::collection::vec((0u32..40, 1usize..120), 1..32),
    ) {
        let begin = Beginning { finished: true, ..begin };
        let mut rig = Rig::new(&begin, true);
        rig.begin(&begin)?;
        let whole = (0..40).map(|at| (at, 50));
        for (at, len) in pieces.into_iter().chain(whole) {
            let header = Header {
                seq: rig.model.seq_of(u64::from(at) * 50),
                ack: rig.model.ack_of(rig.model.max),
                flags: ACK,
                window: 1000,
                options: SynOptions::default(),
            };
            rig.arrive(&header, len)?;
            rig.acknowledge();
        }
        prop_assert!(rig.model.ahead.is_empty() && rig.model.next >= 2000.min(begin.capacity as u64 / 2));
    }
}
