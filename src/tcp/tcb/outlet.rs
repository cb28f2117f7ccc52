//! Where the engine's frames go: they get their payload, their sequence numbers and their checksum,
//! and are given to the link, or wait for it.
//!
//! Over IPv6 the engine emits nothing larger than a segment, and over IPv4 nothing larger than 64 KiB. What
//! it emits in a row becomes one packet here, if the link cuts such into segments. One that is longer than
//! IP's header can say has a total length of 0 in IPv4, as the kernel's own super-frames have, and a jumbo
//! payload option (RFC 2675) in IPv6.

use super::Env;
use crate::buf::{Buf, Gather};
use crate::link::{Packet, TransmitError};
use crate::tcp::ack::AckPolicy;
use crate::tcp::engine::{Emitted, Outlet};
use crate::tcp::guard::Guard;
use crate::tcp::recovery::Recovery;
use crate::tcp::wire::{
    self, ACK, FIN, MAX_CANONICAL, MAX_HEADER, MAX_LENGTH, PSH, RST, SYN, Tuple,
};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::ops::Range;

/// A packet that waits for room in the link.
#[derive(Debug)]
pub(in crate::tcp) struct Waiting {
    pub(in crate::tcp) header: SmallVec<[u8; MAX_HEADER]>,
    pub(in crate::tcp) ip_header_len: usize,
    pub(in crate::tcp) payload: Gather,
    pub(in crate::tcp) segment: Option<NonZeroU16>,
    /// It begins before what was sent already.
    pub(in crate::tcp) again: bool,
}

/// Where the engine's frames go: they get their payload, their checksum, and are transmitted.
pub(super) struct Wire<'a> {
    pub(super) guard: &'a mut Guard,
    pub(super) ack: &'a mut AckPolicy,
    pub(super) recovery: &'a mut Recovery,
    pub(super) waiting: &'a mut VecDeque<Waiting>,
    pub(super) offset: &'a mut Option<u32>,
    pub(super) wire_iss: u32,
    pub(super) env: &'a Env<'a>,
    /// What may still grow. Released when the engine has emitted what it could.
    pub(super) held: Option<Held>,
    /// Bytes that the engine has to send, from the beginning.
    pub(super) queued: u64,
    /// Behind what was emitted there is nothing.
    pub(super) last: bool,
    pub(super) broken: bool,
    /// What is emitted is a keep-alive probe: one sequence number below what it would carry.
    pub(super) probe: bool,
    #[cfg(any(test, sosplice_fuzz))]
    pub(super) tap: &'a mut crate::tcp::oracle::Tap,
}

/// Data that further data may join.
#[derive(Debug)]
pub(super) struct Held {
    header: SmallVec<[u8; MAX_HEADER]>,
    /// Position of the first byte, and how many there are.
    from: u64,
    len: usize,
    /// Bytes of each segment but the last.
    segment: u16,
    /// The last one is as long as the others.
    open: bool,
    /// It begins before what was sent already.
    again: bool,
}

impl Held {
    /// Takes text that follows, if it has the same header but for what a link works out for each
    /// segment. FIN and PSH end up in the last.
    fn join(&mut self, header: &[u8], new: &New, most: usize) -> bool {
        let tcp = wire::ip_header_of(header);
        let (seq_end, flags) = (tcp + 8, tcp + 13);
        let same = header.len() == self.header.len()
            && header[seq_end..flags] == self.header[seq_end..flags]
            && header[flags + 1..] == self.header[flags + 1..]
            && (header[flags] ^ self.header[flags]) & !(FIN | PSH) == 0;
        let follows = self.open && new.from == self.from + self.len as u64;
        // Several segments of another size would be cut in the wrong places.
        let alike = new.len <= usize::from(self.segment) || new.segment == self.segment;
        let joins =
            same && follows && alike && wire::packet_len(header, self.len + new.len) <= most;
        if joins {
            self.header[flags] |= header[flags];
            self.len += new.len;
            self.open = is_open(self.len, self.segment, header[flags]);
        }
        joins
    }

    /// The header with the length of all that has joined, and how much of it is IP's.
    fn finish(mut self) -> (SmallVec<[u8; MAX_HEADER]>, usize) {
        let ip_header_len = wire::set_length(&mut self.header, self.len);
        (self.header, ip_header_len)
    }
}

/// Data that the engine emits, and the size of the segments that it is to be cut into.
#[derive(Debug, Clone, Copy)]
struct New {
    from: u64,
    len: usize,
    segment: u16,
    /// It begins before what was sent already.
    again: bool,
}

/// More may follow: the last segment is as long as the others, and not the end.
fn is_open(len: usize, segment: u16, flags: u8) -> bool {
    len.is_multiple_of(segment.into()) && flags & FIN == 0
}

impl Wire<'_> {
    /// I6: the payload at a position.
    fn payload(&self, from: u64, len: usize) -> Option<Gather> {
        if len == 0 {
            return Some(Gather::new());
        }
        let to = from + len as u64;
        let snd = self.env.end.snd();
        let chain = snd.buf.chain();
        (chain.start() <= from && to <= chain.end()).then(|| chain.range(from..to))
    }

    /// The largest packet that data may be put together into. `None`: as the engine emits it.
    fn largest(&self, over_v6: bool) -> Option<usize> {
        let can = self.env.link.capabilities();
        match over_v6 {
            true => can.segment_v6,
            false => can.segment_v4.filter(|most| *most > MAX_LENGTH),
        }
    }

    /// Holds data that others may join, or lets it join.
    fn hold(&mut self, header: &[u8], new: New) -> bool {
        let over_v6 = wire::ip_header_of(header) == wire::IPV6_HEADER;
        let Some(most) = self.largest(over_v6).filter(|_| new.segment > 0) else {
            return false;
        };
        if let Some(held) = &mut self.held
            && held.join(header, &new, most)
        {
            return true;
        }
        self.release();
        let flags = header[wire::ip_header_of(header) + 13];
        let ends = flags & (SYN | FIN | RST) != 0;
        if ends || header.len() + 2 * new.len > most {
            return false;
        }
        self.held = Some(Held {
            header: SmallVec::from_slice(header),
            from: new.from,
            len: new.len,
            segment: new.segment,
            open: is_open(new.len, new.segment, flags),
            again: new.again,
        });
        true
    }

    /// Lets go what is held.
    pub(super) fn release(&mut self) {
        let Some(held) = self.held.take() else { return };
        let Some(payload) = self.payload(held.from, held.len) else {
            self.lacks_payload();
            return;
        };
        let several = held.len > held.segment.into();
        let segment = NonZeroU16::new(held.segment).filter(|_| several);
        let again = held.again;
        let (header, ip_header_len) = held.finish();
        self.give(Waiting {
            header,
            ip_header_len,
            payload,
            segment,
            again,
        });
    }

    /// Sends text once more, in segments of this size, without asking the engine.
    pub(super) fn again(&mut self, tuple: &Tuple, range: Range<u64>, segment: usize) {
        let len = usize::try_from(range.end - range.start).unwrap_or(0);
        let Some(payload) = self.payload(range.start, len) else {
            self.lacks_payload();
            return;
        };
        let mut header = self.guard.again(range.start);
        header.seq = header.seq.wrapping_add(self.offset.unwrap_or(0));
        let local = (tuple.local, tuple.local_port);
        let remote = (tuple.remote, tuple.remote_port);
        let mut composed = [0; MAX_CANONICAL];
        let header_len = wire::compose(&mut composed, local, remote, &header, len);
        let ip_header_len = tuple.ip_header_len();
        composed[hops_at(ip_header_len)] = self.env.options.hop_limit();
        let several = len > segment;
        let segment = u16::try_from(segment).ok().and_then(NonZeroU16::new);
        self.give(Waiting {
            header: SmallVec::from_slice(&composed[..header_len]),
            ip_header_len,
            payload,
            segment: segment.filter(|_| several),
            again: true,
        });
    }

    fn lacks_payload(&mut self) {
        debug_assert!(
            false,
            "invariant broken: I6: an emitted payload lies within so_snd"
        );
        self.broken = true;
    }

    fn give(&mut self, mut packet: Waiting) {
        let behind = !self.waiting.is_empty();
        if behind && packet.flags() & RST != 0 {
            // An answer to a segment that had nothing to do with us: its sender may ask again.
            self.env.counters.lost.add(1);
            return;
        }
        if behind || !packet.send(self.env) {
            // A newer pure acknowledgement says all that an older one did.
            if packet.payload.is_empty() && self.waiting.back().is_some_and(|last| last.is_ack()) {
                self.waiting.pop_back();
            }
            self.waiting.push_back(packet);
        }
    }
}

impl Outlet for Wire<'_> {
    fn ready(&self) -> bool {
        self.waiting.is_empty()
    }

    fn emit(&mut self, emitted: Emitted<'_>) {
        let Emitted {
            header,
            ip_header_len,
            emission,
            segment,
        } = emitted;
        let sent = self.guard.snd_max();
        let probe = self.guard.emitted(&emission);
        if emission.header.has(ACK) {
            self.ack.sent(emission.len > 0, self.env.now);
        }
        let from = self.guard.send_position(emission.header.seq);
        #[cfg(any(test, sosplice_fuzz))]
        {
            let payload = self.payload(from.unwrap_or(0), emission.len);
            self.tap.emitted(header, &payload.unwrap_or_default());
        }
        let again = match emission.header.has(SYN) {
            true => self.offset.is_some(),
            // The byte of a window probe tells nothing but that there is more.
            false => from.is_some_and(|from| from < sent) && (!probe || emission.header.has(FIN)),
        };
        if emission.header.has(SYN) && self.offset.is_none() {
            *self.offset = Some(self.wire_iss.wrapping_sub(emission.header.seq));
        }
        // Text goes before a bare acknowledgement.
        let end = from.map(|from| from + emission.len as u64);
        if let Some(end) = end.filter(|_| emission.len > 0 && !probe) {
            self.recovery.sent(end, end > sent, self.env.now);
        }
        self.last = !probe && (emission.len == 0 || end == Some(self.queued));
        let occupies = emission.len > 0 || emission.header.flags & (SYN | FIN | RST) != 0;
        let seq = if occupies {
            emission.header.seq
        } else {
            self.guard.ack_seq()
        };
        let seq = seq.wrapping_add(self.offset.unwrap_or(0));
        let seq = seq.wrapping_sub(u32::from(self.probe && !occupies));
        header[ip_header_len + 4..ip_header_len + 8].copy_from_slice(&seq.to_be_bytes());
        let window = self.guard.wire_window(&emission.header);
        header[ip_header_len + 14..ip_header_len + 16].copy_from_slice(&window.to_be_bytes());
        header[hops_at(ip_header_len)] = self.env.options.hop_limit();
        let size = segment.map_or(emission.len, |size| size.get().into());
        let new = New {
            from: from.unwrap_or(0),
            len: emission.len,
            segment: u16::try_from(size).unwrap_or(0),
            again,
        };
        if self.hold(header, new) {
            return;
        }
        self.release();
        let Some(payload) = self.payload(from.unwrap_or(0), emission.len) else {
            self.lacks_payload();
            return;
        };
        let mut header = SmallVec::from_slice(header);
        if !occupies {
            wire::append_sack(&mut header, ip_header_len, &self.guard.sack());
        }
        self.give(Waiting {
            header,
            ip_header_len,
            payload,
            segment,
            again: again && occupies && !emission.header.has(RST),
        });
    }
}

/// Where the hop limit is.
fn hops_at(ip_header_len: usize) -> usize {
    match ip_header_len {
        wire::IPV4_HEADER => 8,
        _ => 7,
    }
}

impl Waiting {
    fn flags(&self) -> u8 {
        self.header[self.ip_header_len + 13]
    }

    fn is_ack(&self) -> bool {
        self.payload.is_empty() && self.flags() & (SYN | FIN | RST) == 0
    }

    /// `false`: the link is full.
    pub(in crate::tcp) fn send(&mut self, env: &Env<'_>) -> bool {
        let partial = env.link.capabilities().checksum;
        let payload = self.payload.iter().map(|buf| &buf[..]);
        let checksum = wire::finish(&mut self.header, self.ip_header_len, payload, partial);
        let packet = Packet {
            header: &self.header,
            payload: &self.payload,
            ip_header_len: self.ip_header_len,
            checksum,
            segment: self.segment,
        };
        match env.link.transmit(&packet) {
            Ok(()) => {
                let bytes = self.payload.iter().map(Buf::len).sum();
                env.sent.add(bytes, self.again);
                true
            }
            Err(TransmitError::Full) => {
                env.counters.link_full.add(1);
                false
            }
            Err(TransmitError::Refused(_) | TransmitError::Gone(_)) => {
                env.counters.lost.add(1);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 65_535;

    fn header(flags: u8, ack: u8) -> [u8; 60] {
        let mut header = [0; 60];
        (header[0], header[6]) = (0x60, wire::PROTO_TCP);
        header[wire::IPV6_HEADER + 11] = ack;
        header[wire::IPV6_HEADER + 13] = flags;
        header
    }

    fn new(from: u64, len: usize) -> New {
        New {
            from,
            len,
            segment: 1440,
            again: false,
        }
    }

    fn held() -> Held {
        Held {
            header: SmallVec::from_slice(&header(ACK, 1)),
            from: 5000,
            len: 1440,
            segment: 1440,
            open: true,
            again: false,
        }
    }

    #[test]
    fn what_follows_joins() {
        let mut held = held();
        assert!(held.join(&header(ACK, 1), &new(6440, 1440), MOST));
        assert!(held.join(&header(ACK | PSH | FIN, 1), &new(7880, 100), MOST));
        assert_eq!((held.from, held.len, held.segment), (5000, 2980, 1440));
        let (header, ip_header_len) = held.finish();
        assert_eq!(header[wire::IPV6_HEADER + 13], ACK | PSH | FIN);
        assert_eq!(header[4..6], 3000u16.to_be_bytes());
        assert_eq!(ip_header_len, wire::IPV6_HEADER);
    }

    #[test]
    fn what_does_not_belong_together_stays_apart() {
        let refuses = |held: &mut Held, header: &[u8], new: New, most| {
            let before = format!("{held:?}");
            assert!(!held.join(header, &new, most));
            assert_eq!(format!("{held:?}"), before, "it is as it was");
        };
        let (same, mut one) = (header(ACK, 1), held());
        refuses(&mut one, &same, new(6441, 1440), MOST); // a hole
        refuses(&mut one, &same, new(5000, 1440), MOST); // sent again
        let mut longer = new(6440, 1441);
        longer.segment = 1441;
        refuses(&mut one, &same, longer, MOST); // longer than the others
        refuses(&mut one, &same, new(6440, 1440), 2939); // too large for the link
        refuses(&mut one, &header(ACK, 2), new(6440, 1440), MOST); // another acknowledgement
        refuses(&mut one, &header(ACK | SYN, 1), new(6440, 1440), MOST);
        let mut options = same.to_vec();
        options.extend([1; 4]);
        refuses(&mut one, &options, new(6440, 1440), MOST);
        // Behind a shorter one, and behind the end.
        assert!(one.join(&same, &new(6440, 100), MOST));
        refuses(&mut one, &same, new(6540, 100), MOST);
        let mut one = held();
        assert!(one.join(&header(ACK | FIN, 1), &new(6440, 1440), MOST));
        refuses(&mut one, &same, new(7880, 1440), MOST);
    }

    #[test]
    fn lengths_that_ip_cannot_say() {
        let mut held = held();
        assert!(held.join(&header(ACK, 1), &new(6440, 100 * 1440), 1 << 20));
        let (header, ip_header_len) = held.finish();
        assert_eq!((header[4..7].to_vec(), ip_header_len), (vec![0, 0, 0], 48));
        let len = 8 + 20 + 101 * 1440_u32;
        let mut option = vec![wire::PROTO_TCP, 0, 0xc2, 4];
        option.extend(len.to_be_bytes());
        assert_eq!(header[40..48], option);
        assert_eq!(header[48 + 13], ACK);
        for (len, total) in [(65_495, 65_535), (65_496, 0)] {
            let mut v4 = held_v4();
            v4.len = len;
            let (header, ip_header_len) = v4.finish();
            assert_eq!(
                (&header[2..4], ip_header_len),
                (&u16::to_be_bytes(total)[..], 20)
            );
        }
    }

    #[test]
    fn what_is_joined_has_room_for_the_option_that_it_gets() {
        let finished = |more: usize, most: usize| {
            let mut held = held();
            let joined = held.join(&header(ACK, 1), &new(6440, more * 1440), most);
            let len = held.len;
            joined.then(|| held.finish().0.len() + len)
        };
        let whole = 60 + 8 + 100 * 1440;
        assert_eq!(finished(99, whole), Some(whole));
        assert_eq!(finished(99, whole - 1), None);
        assert_eq!(finished(99, whole - 8), None);
        assert_eq!(finished(1, 60 + 2880), Some(60 + 2880), "none is needed");
    }

    fn held_v4() -> Held {
        let mut header = [0; 40];
        (header[0], header[9]) = (0x45, wire::PROTO_TCP);
        Held {
            header: SmallVec::from_slice(&header),
            ..held()
        }
    }
}
