//! Reassembly of packets from fragments (RFC 791 3.2, RFC 8200 4.5).
//!
//! Fragments are kept by reference, unless they use less than half of their buffer. A packet is dropped if its
//! fragments overlap (RFC 5722), if it is longer than 65,535 bytes, if its first fragment does not contain the
//! transport header (RFC 1858, RFC 7112), if its ECN marks contradict each other (RFC 3168 5.3), and if it is
//! incomplete after [`LIFE`]. Exact duplicates of a fragment are ignored.
//!
//! Packets, fragments of a packet, and allocated memory are bounded. A source (an IPv4 address, or a /64 of IPv6)
//! has a share of these bounds, beyond which its own oldest packet is evicted; beyond the bounds of the stack the
//! oldest of all packets is evicted, because it is the least likely to be completed.
//!
//! Pure: time is an argument.

use super::extension::{self, ERRONEOUS_FIELD, INCOMPLETE_CHAIN};
use super::header::{
    CE, Fragment, IPV6_HEADER, MAX_LENGTH, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP,
    ipv4_checksum_of, length_field, peer_of,
};
use super::icmp::Kind;
use super::packet::{Packet, into_payload, part};
use crate::buf::{Buf, FrameMut, Gather};
use crate::link::{Checksum, Frame};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long a packet may be incomplete: Linux's `ipfrag_time`. RFC 8200 4.5 has 60 s, RFC 1122 3.3.2 has 60 to
/// 120 s, from times of slower links.
pub(crate) const LIFE: Duration = Duration::from_secs(30);
/// Largest number of incomplete packets, and of those from one source.
pub(crate) const MOST_PACKETS: usize = 1024;
pub(crate) const MOST_PACKETS_OF_ONE: usize = MOST_PACKETS / 8;
/// Largest number of fragments of a packet. The longest packet needs 119 of 576 bytes.
pub(crate) const MOST_FRAGMENTS: usize = 256;
/// Limit of memory in bytes, and that of one source.
pub(crate) const MOST_MEMORY: usize = 4 << 20;
pub(crate) const MOST_MEMORY_OF_ONE: usize = MOST_MEMORY / 8;
/// Memory of the tables for each packet.
const OVERHEAD: usize = 512;
/// Bytes of the payload that are copied behind the headers of a reassembled packet: the transport header.
const IN_HEAD: usize = 128;

/// Why a fragment, or a packet, was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// An invalid length or offset, or a first fragment without the transport header.
    Malformed,
    /// The packet was dropped, because fragments overlap or contradict each other.
    Overlap,
    /// A later fragment of such a packet.
    Abandoned,
    /// A limit was reached.
    Limit,
}

/// The result of adding a fragment.
#[derive(Debug)]
pub(crate) enum Added {
    /// The packet is incomplete. For the first fragment: when it expires.
    Waits(Option<Instant>),
    /// The fragment was received before.
    Duplicate,
    /// The packet is complete.
    Whole(Frame),
    /// It was dropped. The error may be sent to its source.
    Dropped(Dropped, Option<Kind>),
}

/// Identifies the packet of a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    identification: u32,
    /// Only in IPv4.
    protocol: Option<u8>,
}

impl Key {
    fn new(packet: &Packet, fragment: &Fragment) -> Key {
        Key {
            source: packet.source,
            destination: packet.destination,
            identification: fragment.identification,
            protocol: packet.source.is_ipv4().then_some(fragment.next_header),
        }
    }
}

#[derive(Debug)]
struct Piece {
    start: usize,
    len: usize,
    bytes: Gather,
}

impl Piece {
    fn end(&self) -> usize {
        self.start + self.len
    }

    fn is(&self, other: &Piece) -> bool {
        let same = || bytes(&self.bytes).eq(bytes(&other.bytes));
        (self.start, self.len) == (other.start, other.len) && same()
    }
}

fn bytes(parts: &Gather) -> impl Iterator<Item = &u8> {
    parts.iter().flat_map(|buf| buf.iter())
}

/// An incomplete packet.
#[derive(Debug)]
struct Partial {
    key: Key,
    until: Instant,
    /// Sorted, without overlaps.
    pieces: Vec<Piece>,
    /// Total length of the pieces.
    received: usize,
    /// Length of the payload, known from the last fragment.
    total: Option<usize>,
    /// The headers of the first fragment.
    first: Option<(Buf, Fragment)>,
    /// The ECN codepoints of the fragments, a bit for each.
    marks: u8,
    /// The links vouch for all fragments.
    vouched: bool,
    /// Memory that was accounted for it.
    memory: usize,
    /// Fragments overlapped: later fragments are dropped too (RFC 5722 4).
    abandoned: bool,
}

impl Partial {
    fn new(key: Key, until: Instant) -> Partial {
        Partial {
            key,
            until,
            pieces: Vec::new(),
            received: 0,
            total: None,
            first: None,
            marks: 0,
            vouched: true,
            memory: 0,
            abandoned: false,
        }
    }

    /// Adds a fragment. `false`: it is a duplicate.
    fn take(&mut self, piece: Piece, last: bool) -> Result<bool, Dropped> {
        let (start, end) = (piece.start, piece.end());
        let at = self.pieces.partition_point(|other| other.start < start);
        let next = self.pieces.get(at);
        if next.is_some_and(|other| other.is(&piece)) && last == (self.total == Some(end)) {
            return Ok(false);
        }
        let before = at.checked_sub(1).map(|before| &self.pieces[before]);
        let overlaps = before.is_some_and(|before| before.end() > start)
            || next.is_some_and(|next| next.start < end);
        let beyond = match self.total {
            Some(total) => end > total || last,
            None => last && next.is_some(),
        };
        if overlaps || beyond {
            return Err(Dropped::Overlap);
        }
        if self.pieces.len() == MOST_FRAGMENTS {
            return Err(Dropped::Limit);
        }
        if last {
            self.total = Some(end);
        }
        self.received += piece.len;
        self.pieces.insert(at, piece);
        Ok(true)
    }

    /// Allocated memory in bytes.
    fn footprint(&self) -> usize {
        let bytes = |piece: &Piece| {
            let spilled = match piece.bytes.spilled() {
                true => piece.bytes.capacity() * size_of::<Buf>(),
                false => 0,
            };
            spilled + piece.bytes.iter().map(Buf::footprint).sum::<usize>()
        };
        let first = self.first.as_ref().map_or(0, |(head, _)| head.footprint());
        OVERHEAD
            + first
            + self.pieces.capacity() * size_of::<Piece>()
            + self.pieces.iter().map(bytes).sum::<usize>()
    }

    fn abandon(&mut self) {
        self.pieces = Vec::new();
        self.first = None;
        self.abandoned = true;
    }

    /// The complete packet, with the headers of the first fragment (RFC 791 3.2, RFC 8200 4.5) and the payload by
    /// reference.
    fn whole(self) -> Option<Frame> {
        let (Some((head, fragment)), Some(total)) = (self.first, self.total) else {
            return None;
        };
        let header_len = fragment.unfragmentable_len;
        let mut whole = FrameMut::with_capacity(header_len + IN_HEAD.min(total));
        let bytes = whole.bytes_mut();
        bytes.extend_from_slice(&head[..header_len]);
        if head[0] >> 4 == 4 {
            bytes[2..4].copy_from_slice(&length_field(header_len + total));
            bytes[6..8].fill(0);
        } else {
            bytes[4..6].copy_from_slice(&length_field(header_len - IPV6_HEADER + total));
            bytes[fragment.next_header_at] = fragment.next_header;
        }
        mark(bytes, self.marks)?;
        if head[0] >> 4 == 4 {
            bytes[10..12].fill(0);
            let sum = ipv4_checksum_of(bytes);
            bytes[10..12].copy_from_slice(&sum);
        }
        let mut rest = Gather::new();
        let mut missing = IN_HEAD;
        for mut buf in self.pieces.into_iter().flat_map(|piece| piece.bytes) {
            let count = buf.len().min(missing);
            bytes.extend_from_slice(&buf[..count]);
            missing -= count;
            buf.advance(count);
            if !buf.is_empty() {
                rest.push(buf);
            }
        }
        let checksum = match self.vouched {
            true => Checksum::Verified,
            false => Checksum::Complete,
        };
        Some(Frame::with_rest(whole.freeze(), rest).checksum(checksum))
    }
}

/// RFC 3168 5.3: a packet is marked if a fragment is. `None`: another fragment is not ECN-capable.
fn mark(header: &mut [u8], marks: u8) -> Option<()> {
    let marked = marks & 1 << CE != 0;
    if marked && marks & 1 != 0 {
        return None;
    }
    let shift = if header[0] >> 4 == 4 { 0 } else { 4 };
    if marked {
        header[1] |= CE << shift;
    }
    Some(())
}

/// The packets of one source.
#[derive(Debug, Default)]
struct Share {
    memory: usize,
    /// Numbers of its packets, the oldest first.
    packets: VecDeque<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Reassembler {
    /// By number: the oldest first.
    partial: BTreeMap<u64, Box<Partial>>,
    by_key: HashMap<Key, u64>,
    shares: HashMap<IpAddr, Share>,
    memory: usize,
    /// Number of the next packet.
    next: u64,
    /// Number of evicted packets.
    evicted: u64,
}

impl Reassembler {
    /// Takes a frame that is [a fragment](super::header::Malformed::Fragment).
    pub(crate) fn add(&mut self, mut frame: Frame, now: Instant) -> Added {
        let Some((packet, fragment)) = part(&frame) else {
            return Added::Whole(frame);
        };
        let packet = &packet;
        if let Err(kind) = check(packet, &fragment, &mut frame) {
            return Added::Dropped(Dropped::Malformed, kind);
        }
        let key = Key::new(packet, &fragment);
        let (number, until) = match self.by_key.get(&key) {
            Some(number) => (*number, None),
            None => {
                let until = now + LIFE;
                (self.begin(key, until), Some(until))
            }
        };
        let partial = self.partial.get_mut(&number);
        let partial = partial.expect("invariant: each key has a packet");
        if partial.abandoned {
            return Added::Dropped(Dropped::Abandoned, None);
        }
        let vouched = frame.checksum.is_vouched_for();
        let head = (fragment.offset == 0).then(|| Buf::copy_of(&frame.head[..packet.header_len]));
        match partial.take(piece(packet, &fragment, frame), !fragment.more) {
            Ok(true) => {}
            Ok(false) => return Added::Duplicate,
            Err(why) => {
                self.give_up(number, why);
                return Added::Dropped(why, None);
            }
        }
        partial.vouched &= vouched;
        partial.marks |= 1 << packet.ecn;
        if let Some(head) = head {
            partial.first = Some((head, fragment));
        }
        if partial.total == Some(partial.received) {
            let whole = self.remove(number).and_then(|partial| partial.whole());
            return whole.map_or(Added::Dropped(Dropped::Malformed, None), Added::Whole);
        }
        match self.fits(number) {
            true => Added::Waits(until),
            false => Added::Dropped(Dropped::Limit, None),
        }
    }

    /// When the next packet expires.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        let (_, oldest) = self.partial.first_key_value()?;
        Some(oldest.until)
    }

    /// Removes an expired packet, if there is one, and returns its first fragment, if that was received: an error is
    /// sent about it (RFC 792, RFC 8200 4.5).
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Option<Frame>> {
        if self.next_expiry()? > now {
            return None;
        }
        let (&number, _) = self.partial.first_key_value()?;
        let mut partial = self.remove(number)?;
        Some(partial.first.take().and_then(|(head, _)| {
            let first = partial.pieces.into_iter().next()?;
            let len = head.len() + IN_HEAD;
            let mut first = Frame::with_rest(head, first.bytes);
            first.pull_up(len);
            Some(first)
        }))
    }

    /// Number of packets evicted since the last call.
    pub(crate) fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.partial.is_empty()
    }

    /// Memory of all packets in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.memory
    }

    fn begin(&mut self, key: Key, until: Instant) -> u64 {
        let number = self.next;
        self.next += 1;
        let share = self.shares.entry(peer_of(key.source)).or_default();
        let full = share.packets.len() == MOST_PACKETS_OF_ONE;
        let oldest = share.packets.front().copied().filter(|_| full);
        share.packets.push_back(number);
        if let Some(oldest) = oldest {
            self.evict(oldest);
        }
        if self.partial.len() == MOST_PACKETS {
            self.evict_oldest();
        }
        self.by_key.insert(key, number);
        let partial = Partial::new(key, until);
        self.partial.insert(number, Box::new(partial));
        self.account(number);
        number
    }

    /// Accounts for the memory of a packet, and evicts packets beyond the limits. `false`: it was evicted itself.
    fn fits(&mut self, number: u64) -> bool {
        self.account(number);
        let Some(partial) = self.partial.get(&number) else {
            return false;
        };
        let source = peer_of(partial.key.source);
        while let Some(share) = self.shares.get(&source)
            && share.memory > MOST_MEMORY_OF_ONE
            && let Some(&oldest) = share.packets.front()
        {
            self.evict(oldest);
        }
        while self.memory > MOST_MEMORY {
            self.evict_oldest();
        }
        self.partial.contains_key(&number)
    }

    fn account(&mut self, number: u64) {
        let Some(partial) = self.partial.get_mut(&number) else {
            return;
        };
        let footprint = partial.footprint();
        let former = std::mem::replace(&mut partial.memory, footprint);
        self.memory = self.memory - former + partial.memory;
        if let Some(share) = self.shares.get_mut(&peer_of(partial.key.source)) {
            share.memory = share.memory - former + partial.memory;
        }
    }

    fn evict_oldest(&mut self) {
        if let Some((&oldest, _)) = self.partial.first_key_value() {
            self.evict(oldest);
        }
    }

    fn evict(&mut self, number: u64) {
        self.evicted += 1;
        self.remove(number);
    }

    fn give_up(&mut self, number: u64, why: Dropped) {
        // An identification of IPv4 may soon be reused.
        let again = |partial: &Partial| partial.key.protocol.is_some();
        match self.partial.get_mut(&number) {
            Some(partial) if why == Dropped::Overlap && !again(partial) => {
                partial.abandon();
                self.account(number);
            }
            _ => drop(self.remove(number)),
        }
    }

    fn remove(&mut self, number: u64) -> Option<Box<Partial>> {
        let partial = self.partial.remove(&number)?;
        self.by_key.remove(&partial.key);
        self.memory -= partial.memory;
        let source = peer_of(partial.key.source);
        if let Some(share) = self.shares.get_mut(&source) {
            share.memory -= partial.memory;
            share.packets.retain(|other| *other != number);
            if share.packets.is_empty() {
                self.shares.remove(&source);
            }
        }
        Some(partial)
    }
}

/// Checks a fragment by itself. The error, if any, may be sent to its source.
fn check(packet: &Packet, fragment: &Fragment, frame: &mut Frame) -> Result<(), Option<Kind>> {
    let len = packet.total_len - packet.header_len;
    let v6 = packet.source.is_ipv6();
    let problem = |code, pointer: usize| {
        let pointer = u32::try_from(pointer).unwrap_or(u32::MAX);
        v6.then_some(Kind::Parameter { code, pointer })
    };
    if fragment.more && !len.is_multiple_of(8) {
        return Err(problem(ERRONEOUS_FIELD, 4));
    }
    let fixed = if v6 { IPV6_HEADER } else { 0 };
    if fragment.unfragmentable_len - fixed + fragment.offset + len > MAX_LENGTH {
        return Err(problem(ERRONEOUS_FIELD, fragment.unfragmentable_len + 2));
    }
    if len == 0 {
        return Err(None);
    }
    if fragment.offset == 0 && !shows_transport(packet, frame) {
        return Err(problem(INCOMPLETE_CHAIN, 0));
    }
    Ok(())
}

/// Whether a first fragment contains all headers up to the transport header, as filters on the path assume (RFC
/// 1858 3, RFC 7112 5).
fn shows_transport(packet: &Packet, frame: &mut Frame) -> bool {
    let len = packet.total_len;
    let (protocol, at) = match packet.source {
        IpAddr::V4(_) => (packet.protocol, packet.header_len),
        IpAddr::V6(_) => {
            frame.pull_up(len.min(packet.header_len + IN_HEAD));
            if extension::is_extension(packet.protocol) {
                frame.pull_up(len.min(packet.header_len + extension::MOST_BYTES));
            }
            let (last, _) = extension::last(&frame.head[..len.min(frame.head.len())]);
            if extension::is_extension(last.kind) {
                return false;
            }
            (last.kind, last.at)
        }
    };
    let least = match protocol {
        PROTO_TCP => 20,
        PROTO_UDP => 8,
        PROTO_ICMP | PROTO_ICMPV6 => 8,
        _ => 0,
    };
    at + least <= len
}

fn piece(packet: &Packet, fragment: &Fragment, frame: Frame) -> Piece {
    let len = packet.total_len - packet.header_len;
    let mut bytes = into_payload(frame, packet.header_len, len);
    for buf in &mut bytes {
        if buf.footprint() > buf.len() {
            *buf = Buf::copy_of(buf);
        }
    }
    Piece {
        start: fragment.offset,
        len,
        bytes,
    }
}

#[cfg(test)]
mod tests;
