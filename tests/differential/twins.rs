//! Two ends and one peer: the peer's segments and the applications' calls are the same at both, and are
//! read from an input. An end must deliver exactly the sent bytes, accept what it must, and both must
//! end alike.
//!
//! The peer is consistent: its stream has the same byte at a position in each transmission, and its FIN
//! does not move. But its segments arrive in any order, duplicated, cut differently, with old or
//! impossible acknowledgements, and between forged resets and SYNs. Sequence and acknowledgement
//! numbers are counted from where each end is.
//!
//! Where the ends differ and both may, there is a row in [`Excuse`].

mod ends;
#[cfg(test)]
mod rows;

use crate::Input;
use crate::clock::SetClock;
pub(crate) use ends::Setting;
use ends::{End, MOST_PACKETS, OWN, Ours, PEER, PORT, Plain, Read, State};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
    TcpTimestampRepr,
};
use std::sync::Arc;
use std::time::Duration;

/// The peer's initial sequence number: its stream passes the end of the sequence space.
const ISS: u32 = u32::MAX - 3000;
const PEER_PORT: u16 = 40_000;
/// No stream is longer.
const MOST: u64 = 100_000;
/// The peer's window by default.
const WINDOW: u16 = 20_000;
/// Payload of a full segment, with timestamps.
const FULL: u64 = 1448;
/// The final state of both streams is reached after this many rounds.
const ROUNDS: usize = 2000;

/// Accepted differences of plain smoltcp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Excuse {
    ResetInWindow,
    OldAck,
    Timestamps,
    Straddles,
    CutFin,
    EmptyAtEdge,
    FinAgain,
    ForgottenEnd,
    ProbedWindow,
    Endless,
}

/// The section that ours follows, and the behaviour of smoltcp.
pub(crate) const EXCUSES: [(Excuse, &str, &str); 10] = [
    (
        Excuse::ResetInWindow,
        "RFC 5961 3.2",
        "takes a reset anywhere in the window; ours only where the next byte belongs",
    ),
    (
        Excuse::OldAck,
        "RFC 9293 3.10.7.4, 5961 5.2",
        "drops the payload of a segment whose acknowledgement is old; ours ignores the acknowledgement",
    ),
    (
        Excuse::Timestamps,
        "RFC 7323 3.2, 5.3",
        "accepts segments without the negotiated timestamps, or with old ones; ours drops them",
    ),
    (
        Excuse::Straddles,
        "RFC 9293 3.10.7.4",
        "drops a segment that begins before the window and ends after it; ours accepts the part in the window",
    ),
    (
        Excuse::CutFin,
        "RFC 9293 3.10.7.4",
        "accepts the FIN of a segment whose payload it has trimmed to the window, and so ends the stream \
         too early; ours trims the FIN too",
    ),
    (
        Excuse::EmptyAtEdge,
        "RFC 9293 3.10.7.4",
        "drops an empty segment at the window's right edge, with its acknowledgement; ours accepts it, since \
         the peer has filled the window",
    ),
    (
        Excuse::FinAgain,
        "RFC 9293 3.10.7.4",
        "drops a segment with a retransmitted FIN, with its acknowledgement; ours processes the acknowledgement",
    ),
    (
        Excuse::ForgottenEnd,
        "RFC 9293 3.10.3",
        "reports to a reader after TIME-WAIT that there is no connection; ours reports end of file",
    ),
    (
        Excuse::ProbedWindow,
        "RFC 9293 3.8.6",
        "forgets the window that it has advertised in a zero-window probe, and trims or drops a segment that \
         ends behind the older one; ours accepts what any segment has advertised",
    ),
    (
        Excuse::Endless,
        "RFC 9293 3.8.6",
        "may send empty segments without end in one poll, until its device is full; ours may not",
    ),
];

/// The acknowledgement number of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ack {
    /// Of all that the end has sent.
    All,
    /// The same as before.
    Same,
    Old(u16),
    /// Of data that was never sent.
    Beyond,
    Missing,
}

/// The timestamp of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stamp {
    Fresh,
    Old,
    Missing,
}

/// A segment of the peer, with offsets instead of an end's sequence numbers.
#[derive(Debug, Clone, Copy)]
struct Cast {
    start: u64,
    len: u64,
    fin: bool,
    ack: Ack,
    window: u16,
    stamp: Stamp,
    push: bool,
}

/// The byte at a position of the peer's stream, or of the ends'.
fn byte(of_peer: bool, position: u64) -> u8 {
    let mixed = (position ^ u64::from(of_peer) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

fn stream(of_peer: bool, from: u64, len: u64) -> Vec<u8> {
    (from..from + len).map(|at| byte(of_peer, at)).collect()
}

/// One end, as seen by the peer. Positions of both streams begin after the SYN.
struct Side {
    name: &'static str,
    end: Box<dyn End>,
    /// Its sequence number of position 0, and its port.
    base: u32,
    port: u16,
    /// The end of its sent data, including its FIN, and the acknowledged part.
    sent: u64,
    acked: u64,
    /// The most that was acknowledged in any segment, also in one that need not be heeded.
    told: u64,
    fin: Option<u64>,
    /// The peer had closed before its application did, or not before its FIN has left.
    passive: Option<bool>,
    /// Its acknowledgement, and its advertised right edge.
    next: u64,
    edge: u64,
    /// The part of it that was not advertised by a zero-window probe alone.
    kept_edge: u64,
    stamp: u32,
    /// Bytes written and read by its application, and whether that has reached the end.
    written: u64,
    shut: bool,
    read: u64,
    at_end: bool,
    forgot: bool,
    /// It has sent a reset.
    resets: bool,
    /// It takes no more part.
    out: bool,
    /// It has filled its device in one poll.
    endless: bool,
    /// A FIN whose payload was trimmed came ahead of a hole.
    cut_fin: bool,
}

impl Side {
    fn new(name: &'static str, end: Box<dyn End>) -> Side {
        Side {
            name,
            end,
            base: 0,
            port: PORT,
            sent: 0,
            acked: 0,
            told: 0,
            fin: None,
            passive: None,
            next: 0,
            edge: 0,
            kept_edge: 0,
            stamp: 0,
            written: 0,
            shut: false,
            read: 0,
            at_end: false,
            forgot: false,
            resets: false,
            out: false,
            endless: false,
            cut_fin: false,
        }
    }

    /// Observes a packet that it sends.
    fn observe(&mut self, packet: &[u8]) {
        let ip = Ipv4Packet::new_checked(packet).unwrap();
        let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
        let summary = tcp.options_summary().unwrap();
        if let Some((value, _)) = summary.timestamp {
            self.stamp = value;
        }
        if tcp.rst() {
            self.resets = true;
            return;
        }
        let seq = tcp.seq_number().0.cast_unsigned();
        if tcp.syn() {
            self.base = seq.wrapping_add(1);
            self.port = tcp.src_port();
            self.edge = self.edge.max(tcp.window_len().into());
            self.kept_edge = self.edge;
            return;
        }
        let near = |number: u32, of: u32, near: u64| {
            let distance = number.wrapping_sub(of.wrapping_add(near as u32));
            near.cast_signed() + i64::from(distance.cast_signed())
        };
        let start = near(seq, self.base, self.sent);
        let payload = tcp.payload();
        if !payload.is_empty() || tcp.fin() {
            let start = u64::try_from(start).expect("a position of the stream");
            let len = payload.len() as u64;
            assert!(start <= self.sent, "{}: a hole", self.name);
            let right = stream(false, start, len);
            assert!(payload == right, "{}: wrong bytes at {start}", self.name);
            assert!(start + len <= self.written, "{}: never written", self.name);
            self.sent = self.sent.max(start + len + u64::from(tcp.fin()));
            if tcp.fin() {
                let fin = *self.fin.get_or_insert(start + len);
                assert_eq!(fin, start + len, "{}: a FIN that moves", self.name);
            }
        }
        let ack = near(
            tcp.ack_number().0.cast_unsigned(),
            ISS.wrapping_add(1),
            self.next,
        );
        let ack = u64::try_from(ack).expect("an acknowledgement of the stream");
        self.next = self.next.max(ack);
        let edge = ack + u64::from(tcp.window_len());
        self.edge = self.edge.max(edge);
        // A single byte may be a probe; the bytes do not always show it.
        if payload.len() != 1 {
            self.kept_edge = self.kept_edge.max(edge);
        }
    }

    fn poll(&mut self, fin: Option<u64>) {
        for _ in 0..50 {
            let packets = self.end.poll();
            let closed = fin.is_some_and(|fin| self.next > fin);
            packets.iter().for_each(|packet| self.observe(packet));
            if self.fin.is_some() && !closed {
                self.passive.get_or_insert(false);
            }
            if packets.is_empty() {
                return;
            }
            if packets.len() >= MOST_PACKETS {
                (self.endless, self.out) = (true, true);
                return;
            }
        }
        panic!("{}: segments without end", self.name);
    }

    fn read(&mut self, to: u64) {
        let mut bytes = [0; 4096];
        while self.read < to && !self.at_end {
            let most = usize::try_from(to - self.read).map_or(4096, |most| most.min(4096));
            match self.end.read(&mut bytes[..most]) {
                Read::Bytes(count) => {
                    let right = stream(true, self.read, count as u64);
                    assert!(
                        bytes[..count] == right,
                        "{}: wrong bytes were delivered behind {}",
                        self.name,
                        self.read
                    );
                    self.read += count as u64;
                }
                Read::End => self.at_end = true,
                Read::Forgotten => (self.at_end, self.forgot) = (true, true),
                Read::Nothing => break,
            }
        }
    }

    /// Both FINs are acknowledged.
    fn is_closed(&self, fin: Option<u64>) -> bool {
        let own = self.fin.is_some_and(|own| self.acked > own);
        own && fin.is_some_and(|fin| self.next > fin)
    }

    /// Both may be.
    fn may_be_closed(&self, fin: Option<u64>) -> bool {
        let own = self.fin.is_some_and(|own| self.told > own);
        own && fin.is_some_and(|fin| self.next > fin)
    }
}

/// See the module.
pub(crate) struct Twins {
    setting: Setting,
    clock: Arc<SetClock>,
    sides: [Side; 2],
    /// Behind the peer's data that was sent without a hole, and behind all of it.
    front: u64,
    high: u64,
    fin: Option<u64>,
    /// Bytes that the applications are to write and read.
    to_write: u64,
    to_read: u64,
    shuts: bool,
    ticks: u32,
    casts: Vec<Cast>,
    excuses: Vec<Excuse>,
}

const OURS: usize = 0;
const PLAIN: usize = 1;

impl Twins {
    /// After the handshake.
    pub(crate) fn new(setting: Setting) -> Twins {
        let clock = ends::clock();
        let ours = Box::new(Ours::new(&setting, &clock));
        let plain = Box::new(Plain::new(&setting, &clock));
        let mut twins = Twins {
            setting,
            clock,
            sides: [Side::new("ours", ours), Side::new("plain", plain)],
            front: 0,
            high: 0,
            fin: None,
            to_write: 0,
            to_read: 0,
            shuts: false,
            ticks: 0,
            casts: Vec::new(),
            excuses: Vec::new(),
        };
        twins.handshake();
        twins
    }

    fn handshake(&mut self) {
        for index in [OURS, PLAIN] {
            let side = &mut self.sides[index];
            side.poll(None);
            let mut syn = self.segment(index, 0, Stamp::Fresh);
            syn.seq_number = TcpSeqNumber(ISS.cast_signed());
            syn.control = TcpControl::Syn;
            syn.max_seg_size = Some(1460);
            syn.sack_permitted = true;
            syn.ack_number = syn.ack_number.filter(|_| self.setting.dials);
            self.give(index, &syn);
            self.sides[index].poll(None);
            let ack = self.segment(index, 0, Stamp::Fresh);
            self.give(index, &ack);
            self.sides[index].poll(None);
            assert_eq!(self.sides[index].end.state(), State::Open, "established");
        }
    }

    fn stamp(&mut self, index: usize, stamp: Stamp) -> Option<TcpTimestampRepr> {
        self.ticks += 1;
        let millis = u32::try_from(self.clock.passed().as_millis()).unwrap();
        let value = 1_000_000 + millis + self.ticks;
        let value = match stamp {
            Stamp::Fresh => value,
            Stamp::Old => value - 900_000,
            Stamp::Missing => return None,
        };
        let echo = self.sides[index].stamp;
        self.setting
            .stamps
            .then(|| TcpTimestampRepr::new(value, echo))
    }

    /// An empty segment of the peer's at a position, which acknowledges all.
    fn segment(&mut self, index: usize, start: u64, stamp: Stamp) -> TcpRepr<'static> {
        let timestamp = self.stamp(index, stamp);
        let side = &self.sides[index];
        let seq = ISS.wrapping_add(1).wrapping_add(start as u32);
        let ack = side.base.wrapping_add(side.sent as u32);
        TcpRepr {
            src_port: if self.setting.dials { PORT } else { PEER_PORT },
            dst_port: side.port,
            control: TcpControl::None,
            seq_number: TcpSeqNumber(seq.cast_signed()),
            ack_number: Some(TcpSeqNumber(ack.cast_signed())),
            window_len: WINDOW,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp,
            payload: &[],
        }
    }

    fn give(&mut self, index: usize, segment: &TcpRepr<'_>) {
        let ip = Ipv4Repr {
            src_addr: PEER,
            dst_addr: OWN,
            next_header: IpProtocol::Tcp,
            payload_len: segment.buffer_len(),
            hop_limit: 64,
        };
        let sums = ChecksumCapabilities::default();
        let mut packet = vec![0; 20 + segment.buffer_len()];
        ip.emit(&mut Ipv4Packet::new_unchecked(&mut packet), &sums);
        let mut tcp = TcpPacket::new_unchecked(&mut packet[20..]);
        segment.emit(&mut tcp, &PEER.into(), &OWN.into(), &sums);
        let fin = self.fin;
        let side = &mut self.sides[index];
        let (resets, gone) = (side.resets, side.end.state() == State::Gone);
        side.end.packet(&packet);
        side.poll(fin);
        // A reset that answers a segment after the connection does not count.
        side.resets &= resets || !(gone || side.may_be_closed(fin));
    }

    fn excuse(&mut self, excuse: Excuse) {
        self.excuses.push(excuse);
    }

    /// The ends that still take part.
    fn parts(&self) -> Vec<usize> {
        let all = [OURS, PLAIN].into_iter();
        all.filter(|&index| !self.sides[index].out).collect()
    }

    /// The peer sends the same to both.
    fn cast(&mut self, cast: &Cast) {
        self.high = self.high.max(cast.start + cast.len);
        if cast.start <= self.front {
            self.front = self.front.max(cast.start + cast.len);
        }
        for index in self.parts() {
            self.cast_to(index, cast);
        }
        self.settle();
    }

    fn cast_to(&mut self, index: usize, cast: &Cast) {
        let payload = stream(true, cast.start, cast.len);
        let mut segment = self.segment(index, cast.start, cast.stamp);
        let side = &mut self.sides[index];
        let ack = match cast.ack {
            Ack::All => side.sent,
            Ack::Same => side.told,
            Ack::Old(by) => side.told.wrapping_sub(by.into()),
            Ack::Beyond => side.sent + 200_000,
            Ack::Missing => 0,
        };
        let ack = side.base.wrapping_add(ack as u32).cast_signed();
        segment.ack_number = (cast.ack != Ack::Missing).then_some(TcpSeqNumber(ack));
        segment.window_len = cast.window;
        segment.payload = &payload;
        segment.control = match (cast.fin, cast.push) {
            (true, _) => TcpControl::Fin,
            (false, true) => TcpControl::Psh,
            (false, false) => TcpControl::None,
        };
        let end = cast.start + cast.len;
        let (before, edge, sent) = (side.next, side.edge, side.sent);
        let kept_edge = if index == PLAIN { side.kept_edge } else { edge };
        // The part of the segment that must be accepted.
        let sane = matches!(cast.ack, Ack::All | Ack::Same | Ack::Old(_));
        let fresh = cast.stamp == Stamp::Fresh || !self.setting.stamps;
        let must = sane && fresh && cast.start <= before && before < end.min(edge);
        let excuse = match cast.ack {
            Ack::Old(_) => Some(Excuse::OldAck),
            _ if cast.len > 0 && cast.start < before && end > edge => Some(Excuse::Straddles),
            _ if side.cut_fin => Some(Excuse::CutFin),
            _ if end > kept_edge => Some(Excuse::ProbedWindow),
            _ => None,
        };
        if cast.ack == Ack::All {
            side.told = side.told.max(sent);
        }
        self.give(index, &segment);
        if self.sides[index].out {
            return;
        }
        let closed = self.sides[index].may_be_closed(self.fin);
        if must && self.sides[index].next < end.min(edge) && !closed {
            let excused = excuse.filter(|_| index == PLAIN);
            let name = self.sides[index].name;
            let excused = excused.unwrap_or_else(|| {
                panic!("{name}: {cast:?} was not taken at {before}, edge {edge}")
            });
            self.sides[index].out |= excused == Excuse::CutFin;
            self.excuse(excused);
        }
        self.note_ack(index, cast, (fresh, sent), (before, kept_edge));
        self.note_differences(index, cast, (fresh, before, kept_edge));
    }

    /// The peer's acknowledgement counts as received only if the segment is acceptable to any TCP.
    fn note_ack(
        &mut self,
        index: usize,
        cast: &Cast,
        (fresh, sent): (bool, u64),
        (before, edge): (u64, u64),
    ) {
        if index == PLAIN && cast.fin {
            let side = &self.sides[index];
            let closes = side.may_be_closed(self.fin) && cast.ack == Ack::All && fresh;
            if closes && side.end.state() == State::Open {
                self.excuse(Excuse::FinAgain);
            }
            return;
        }
        let end = cast.start + cast.len;
        let inside = match cast.len {
            0 => cast.start == before || (before..edge).contains(&cast.start),
            _ => before < end && cast.start < edge && (cast.start >= before || end <= edge),
        };
        let side = &mut self.sides[index];
        if cast.ack == Ack::All && fresh && inside {
            side.acked = side.acked.max(sent);
        }
    }

    /// Segments that only plain smoltcp accepts.
    fn note_differences(
        &mut self,
        index: usize,
        cast: &Cast,
        (fresh, before, edge): (bool, u64, u64),
    ) {
        if index == OURS {
            return;
        }
        if !fresh && self.sides[PLAIN].next > before {
            self.excuse(Excuse::Timestamps);
        }
        let cut = cast.fin && cast.len > 0 && cast.start + cast.len > edge;
        if cut && cast.start <= self.sides[PLAIN].next {
            self.excuse(Excuse::CutFin);
            self.sides[PLAIN].out = true;
        } else if cut {
            // Ahead of a hole: the FIN that it keeps ends the window where the payload was trimmed.
            self.sides[PLAIN].cut_fin = true;
        }
    }

    /// Runs the applications, and checks the state of both ends.
    fn settle(&mut self) {
        let (fin, to_read) = (self.fin, self.to_read);
        for index in self.parts() {
            let side = &mut self.sides[index];
            while side.written < self.to_write {
                let rest = (self.to_write - side.written).min(4096);
                let count = side.end.write(&stream(false, side.written, rest));
                side.written += count as u64;
                side.poll(fin);
                if count == 0 {
                    break;
                }
            }
            if self.shuts && side.written == self.to_write && !side.shut {
                side.shut = true;
                if fin.is_some_and(|fin| side.next > fin) {
                    side.passive = Some(true);
                }
                side.end.shutdown();
            }
            side.read(to_read);
            side.poll(fin);
            assert!(
                side.next <= self.high + u64::from(fin.is_some()),
                "never sent"
            );
            assert!(side.read <= side.next, "{}: not acknowledged", side.name);
            if side.at_end {
                let right = fin == Some(side.read);
                // The segment does not always determine the reason.
                if !right && index == PLAIN {
                    side.out = true;
                    self.excuse(Excuse::CutFin);
                    continue;
                }
                assert!(right, "{}: an end at {}", side.name, side.read);
            }
        }
    }

    /// The connection of this end was reset.
    fn is_reset(&self, index: usize) -> bool {
        let side = &self.sides[index];
        side.end.state() == State::Gone && !side.may_be_closed(self.fin)
    }

    /// A forged reset, so far from where the next byte belongs.
    fn reset(&mut self, distance: i64) {
        for index in self.parts() {
            let was_open = self.sides[index].end.state() == State::Open;
            let (next, edge) = (self.sides[index].next, self.sides[index].edge);
            let at = next.cast_signed() + distance;
            let mut segment = self.segment(index, 0, Stamp::Missing);
            segment.seq_number += usize::try_from(at.max(0)).unwrap();
            segment.control = TcpControl::Rst;
            self.give(index, &segment);
            let reset = was_open && self.sides[index].end.state() == State::Gone;
            let exact = at.max(0) == next.cast_signed();
            let inside = at > next.cast_signed() && at < edge.cast_signed();
            if reset && inside && !exact && index == PLAIN {
                self.excuse(Excuse::ResetInWindow);
            } else if was_open {
                let name = self.sides[index].name;
                assert_eq!(reset, exact, "{name}: a reset at {at}, next {next}");
            }
            self.sides[index].out |= reset;
        }
        self.settle();
    }

    /// A forged SYN, which changes nothing.
    fn syn(&mut self, distance: u64) {
        for index in self.parts() {
            let at = self.sides[index].next + distance;
            let mut segment = self.segment(index, at, Stamp::Fresh);
            segment.control = TcpControl::Syn;
            let before = self.sides[index].end.state();
            self.give(index, &segment);
            assert_eq!(self.sides[index].end.state(), before, "a SYN");
        }
        self.settle();
    }

    fn pass(&mut self, time: Duration) {
        self.clock.advance(time);
        self.settle();
    }

    /// Runs a program, and returns the excuses that it used.
    pub(crate) fn run(mut self, input: &mut Input<'_>) -> Vec<Excuse> {
        while !input.is_empty() && !self.parts().is_empty() && self.casts.len() < 400 {
            self.act(input);
            self.check_alike();
        }
        if aborts(self.to_write) {
            self.abort();
        } else {
            self.finish();
        }
        self.check_endless();
        self.excuses
    }

    fn check_endless(&mut self) {
        assert!(!self.sides[OURS].endless, "ours: segments without end");
        if self.sides[PLAIN].endless {
            self.excuse(Excuse::Endless);
        }
    }

    /// Without an excuse neither is reset alone.
    fn check_alike(&self) {
        for index in self.parts() {
            let name = self.sides[index].name;
            assert!(!self.is_reset(index), "{name} was reset");
        }
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.below(16) {
            0..=6 => {
                let cast = self.any_cast(input);
                self.casts.push(cast);
                self.cast(&cast);
            }
            7 | 8 if !self.casts.is_empty() => {
                // The same again, late.
                let index = input.below(self.casts.len().min(256));
                let cast = self.casts[self.casts.len() - 1 - index];
                self.cast(&cast);
            }
            9 if !self.shuts => {
                self.to_write = (self.to_write + u64::from(input.u16()) / 4).min(MOST)
            }
            10 => self.to_read += u64::from(input.u16()) / 2,
            11 => self.shuts |= input.below(4) == 0,
            12 => self.pass(Duration::from_millis(1 << input.below(11))),
            13 => {
                let near = [0, 0, 1, -1, 100, 1500, 10_000, -1000, 70_000];
                if input.below(4) == 0 {
                    self.reset(input.pick(&near));
                }
            }
            14 => self.syn(u64::from(input.u16())),
            15 => {
                self.fin.get_or_insert(self.high);
            }
            _ => {}
        }
        self.settle();
    }

    fn any_cast(&mut self, input: &mut Input<'_>) -> Cast {
        let from = match input.below(4) {
            0 => self.sides[OURS].next.min(self.sides[PLAIN].next),
            1 => self.high,
            _ => self.front,
        };
        let distance = match input.below(5) {
            0 => i64::from(input.byte()) - 128,
            1 => i64::from(input.byte()) * 50,
            2 => -i64::from(input.byte()) * 50,
            _ => 0,
        };
        let start = from.saturating_add_signed(distance).min(MOST);
        let len = match input.below(4) {
            0 => 0,
            1 => u64::from(input.byte()),
            2 => FULL,
            _ => u64::from(input.u16()) % FULL,
        };
        let limit = self.fin.unwrap_or(MOST);
        let start = start.min(limit);
        let len = len.min(limit - start);
        let how = input.byte();
        Cast {
            start,
            len,
            fin: self.fin == Some(start + len) && how & 1 == 0,
            ack: match how >> 1 & 15 {
                0 => Ack::Old(input.u16() % 1000 + 1),
                1 => Ack::Beyond,
                2 => Ack::Missing,
                3..=5 => Ack::Same,
                _ => Ack::All,
            },
            window: match how >> 5 {
                0 => 0,
                1 => input.u16() % 3000,
                _ => WINDOW,
            },
            stamp: match input.below(16) {
                0 => Stamp::Old,
                1 => Stamp::Missing,
                _ => Stamp::Fresh,
            },
            push: input.flag(),
        }
    }

    /// The peer sends all data in order, and receives all: both ends must have the same data, and be
    /// closed.
    fn finish(&mut self) {
        (self.to_read, self.shuts) = (u64::MAX, true);
        let total = *self.fin.get_or_insert(self.high);
        for _ in 0..ROUNDS {
            let parts = self.parts();
            let ready = parts.iter().all(|&index| self.is_finished(index, total));
            if ready {
                break;
            }
            for index in parts {
                self.finish_round(index, total);
            }
            self.pass(Duration::from_millis(20));
        }
        for index in self.parts() {
            self.check_finished(index, total);
        }
        if self.sides[PLAIN].forgot {
            self.excuse(Excuse::ForgottenEnd);
        }
    }

    fn is_finished(&self, index: usize, total: u64) -> bool {
        let side = &self.sides[index];
        side.read == total && side.at_end && side.is_closed(self.fin)
    }

    fn finish_round(&mut self, index: usize, total: u64) {
        let Side { next, edge, .. } = self.sides[index];
        if self.is_finished(index, total) {
            return;
        }
        let sane = Cast {
            start: next.min(total + 1),
            len: 0,
            fin: false,
            ack: Ack::All,
            window: WINDOW,
            stamp: Stamp::Fresh,
            push: true,
        };
        self.cast_to(index, &sane);
        let len = (total - next.min(total))
            .min(edge - next.min(edge))
            .min(1000);
        let data = Cast {
            start: next.min(total),
            len,
            fin: next + len >= total,
            ..sane
        };
        self.cast_to(index, &data);
    }

    fn check_finished(&self, index: usize, total: u64) {
        let side = &self.sides[index];
        let name = side.name;
        assert_eq!(side.read, total, "{name}: the delivered bytes");
        assert!(side.at_end, "{name}: the end of the stream");
        assert_eq!(side.written, self.to_write, "{name}: the written bytes");
        let fin = side.fin;
        assert_eq!(fin, Some(self.to_write), "{name}: the sent bytes");
        assert!(side.is_closed(self.fin), "{name}: closed");
        assert!(!side.resets, "{name}: no reset");
        let state = side.end.state();
        // RFC 9293 3.6: the side that closes last need not wait.
        let right = match side.passive {
            Some(true) => state == State::Gone,
            Some(false) | None => state != State::Open,
        };
        assert!(right, "{name}: {state:?}, and passive: {:?}", side.passive);
    }

    /// RFC 9293 3.10.5: the peer is reset, unless both have closed.
    fn abort(&mut self) {
        let fin = self.fin;
        for index in self.parts() {
            let side = &mut self.sides[index];
            let both = side.fin.is_some() && fin.is_some_and(|fin| side.next > fin);
            side.end.abort();
            side.poll(fin);
            assert!(side.resets || both, "{}: no reset", side.name);
            assert_ne!(side.end.state(), State::Open, "{}", side.name);
        }
    }
}

/// One program in sixteen ends with an abort.
fn aborts(written: u64) -> bool {
    written % 16 == 15
}

/// Runs the program of an input.
pub(crate) fn run(bytes: &[u8]) -> Vec<Excuse> {
    let mut input = Input::new(bytes);
    let how = input.byte();
    let setting = Setting {
        dials: how & 1 != 0,
        stamps: how & 2 != 0,
        receive_buffer: [2048, 5000, 20_000, 60_000][usize::from(how >> 2 & 3)],
        send_buffer: [2048, 5000, 20_000, 60_000][usize::from(how >> 4 & 3)],
    };
    Twins::new(setting).run(&mut input)
}
