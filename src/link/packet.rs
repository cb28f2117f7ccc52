//! IP packets to send ([`Packet`]) and received ones ([`Frame`]), with the state of their transport
//! checksum ([`Checksum`]) and the size of the segments that they consist of.

use crate::buf::{Buf, FrameMut, Gather};
use crate::checksum::Checksum as Sum;
use std::num::NonZeroU16;

const PROTO_UDP: u8 = 17;

/// State of the transport checksum of a packet, whatever the transport protocol.
///
/// The same three states describe a received frame and a packet to send, so that a frame can be
/// forwarded unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a link must handle all states")]
pub enum Checksum {
    /// The field is filled in. In a received frame it is not verified yet.
    Complete,
    /// The field is filled in, and the link has verified it (virtio's `DATA_VALID`). The same as
    /// `Complete` in a packet to send.
    Verified,
    /// The field holds the sum of the pseudo-header only (virtio's `NEEDS_CSUM`): before the packet is
    /// sent on a wire, or given to a program that verifies checksums, the bytes from `start` to the end
    /// of the packet must be added, and the inverted sum stored `offset` bytes after `start`. In a
    /// received frame this means that the bytes have not crossed a wire and need no verification. Only
    /// links whose [`Capabilities::checksum`](super::Capabilities::checksum) is set send such packets.
    Partial {
        /// Offset of the transport header in the packet, in bytes.
        start: u16,
        /// Offset of the field in the transport header: 16 for TCP, 6 for UDP.
        offset: u16,
    },
}

impl Checksum {
    /// A TCP checksum left to the link, after an IP header of this many bytes.
    ///
    /// ```
    /// use sosplice::link::Checksum;
    /// assert_eq!(Checksum::partial_tcp(40), Checksum::Partial { start: 40, offset: 16 });
    /// ```
    pub const fn partial_tcp(ip_header_len: u16) -> Checksum {
        Checksum::Partial {
            start: ip_header_len,
            offset: 16,
        }
    }

    /// A UDP checksum left to the link, after an IP header of this many bytes.
    ///
    /// ```
    /// use sosplice::link::Checksum;
    /// assert_eq!(Checksum::partial_udp(20), Checksum::Partial { start: 20, offset: 6 });
    /// ```
    pub const fn partial_udp(ip_header_len: u16) -> Checksum {
        Checksum::Partial {
            start: ip_header_len,
            offset: 6,
        }
    }

    /// Whether the bytes of a received frame need no verification: the link has verified them, or they
    /// have not crossed a wire.
    pub const fn is_vouched_for(self) -> bool {
        !matches!(self, Checksum::Complete)
    }
}

/// A received IP packet. The first buffer holds all headers up to TCP's options; the payload may begin
/// in it and continues in `rest`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Frame {
    /// The headers, and the part of the payload that follows them in memory.
    pub head: Buf,
    /// The rest of the payload.
    pub rest: Gather,
    /// State of the transport checksum.
    pub checksum: Checksum,
    /// The packet is a super-frame: several segments or datagrams of this many payload bytes each (the
    /// last one may be shorter), not separated by the link.
    pub segment: Option<NonZeroU16>,
}

impl Frame {
    /// A contiguous frame with an unverified checksum.
    ///
    /// ```
    /// use sosplice::link::{Checksum, Frame};
    /// let frame = Frame::new(&[0x45; 40]);
    /// assert_eq!((frame.len(), frame.checksum), (40, Checksum::Complete));
    /// ```
    pub fn new(packet: &[u8]) -> Frame {
        Frame {
            head: Buf::copy_of(packet),
            rest: Gather::new(),
            checksum: Checksum::Complete,
            segment: None,
        }
    }

    /// A frame whose payload continues in other buffers.
    pub fn with_rest(head: Buf, rest: Gather) -> Frame {
        Frame {
            head,
            rest,
            checksum: Checksum::Complete,
            segment: None,
        }
    }

    /// Sets [`checksum`](field@Self::checksum).
    #[must_use]
    pub fn checksum(mut self, checksum: Checksum) -> Frame {
        self.checksum = checksum;
        self
    }

    /// Sets [`segment`](field@Self::segment).
    #[must_use]
    pub fn segment(mut self, size: impl Into<Option<NonZeroU16>>) -> Frame {
        self.segment = size.into();
        self
    }

    /// Length of the whole packet in bytes.
    pub fn len(&self) -> usize {
        self.head.len() + self.rest.iter().map(Buf::len).sum::<usize>()
    }

    /// Whether the packet is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Moves bytes from [`rest`](field@Self::rest) until there are so many in [`head`](field@Self::head)
    /// (BSD's `m_pullup`).
    pub(crate) fn pull_up(&mut self, len: usize) {
        if self.head.len() >= len || self.rest.is_empty() {
            return;
        }
        let mut head = FrameMut::with_capacity(len);
        head.bytes_mut().extend_from_slice(&self.head);
        for buf in &mut self.rest {
            let missing = len - head.bytes_mut().len();
            let count = buf.len().min(missing);
            head.bytes_mut().extend_from_slice(&buf[..count]);
            buf.advance(count);
        }
        self.head = head.freeze();
        self.rest.retain(|buf| !buf.is_empty());
    }

    /// The whole packet in contiguous memory, unchanged: a [partial](Checksum::Partial) checksum stays
    /// partial.
    pub fn to_vec(&self) -> Vec<u8> {
        flatten(&self.head, &self.rest)
    }

    /// The whole packet in contiguous memory, with a [partial](Checksum::Partial) checksum filled in,
    /// for programs that verify it. For a super-frame it covers the whole packet. UDP's is never 0,
    /// which would mean "no checksum" (RFC 768).
    ///
    /// ```
    /// use sosplice::link::{Checksum, Frame};
    /// let mut udp = [
    ///     0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0x66, 0xcb, 10, 0, 0, 2, 10, 0, 0, 1, // IPv4
    ///     0, 7, 0, 7, 0, 12, 0x14, 0x20, b'e', b'c', b'h', b'o', // the pseudo-header's sum is 0x1420
    /// ];
    /// let frame = Frame::new(&udp).checksum(Checksum::partial_udp(20));
    /// assert_eq!(frame.to_complete_vec()[26..28], [0x1d, 0xf3]);
    /// ```
    pub fn to_complete_vec(&self) -> Vec<u8> {
        let mut packet = self.to_vec();
        if let Checksum::Partial { start, offset } = self.checksum {
            complete(&mut packet, start.into(), offset.into());
        }
        packet
    }
}

/// An IP packet to send, by reference.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Packet<'a> {
    /// IP header and transport header.
    pub header: &'a [u8],
    /// The payload, in order.
    pub payload: &'a [Buf],
    /// Length of the IP header: where the transport header begins.
    pub ip_header_len: usize,
    /// State of the transport checksum.
    pub checksum: Checksum,
    /// The link is to cut the packet into segments of this many payload bytes.
    pub segment: Option<NonZeroU16>,
}

impl<'a> Packet<'a> {
    /// A packet with a complete checksum, sent as one packet.
    ///
    /// ```
    /// use sosplice::link::{Checksum, Packet};
    /// let packet = Packet::new(&[0x45; 40], &[], 20).checksum(Checksum::Verified);
    /// assert_eq!((packet.len(), packet.segment), (40, None));
    /// ```
    pub const fn new(header: &'a [u8], payload: &'a [Buf], ip_header_len: usize) -> Packet<'a> {
        Packet {
            header,
            payload,
            ip_header_len,
            checksum: Checksum::Complete,
            segment: None,
        }
    }

    /// Sets [`checksum`](field@Self::checksum).
    #[must_use]
    pub const fn checksum(mut self, checksum: Checksum) -> Packet<'a> {
        self.checksum = checksum;
        self
    }

    /// Sets [`segment`](field@Self::segment).
    #[must_use]
    pub fn segment(mut self, size: impl Into<Option<NonZeroU16>>) -> Packet<'a> {
        self.segment = size.into();
        self
    }

    /// Length of the whole packet in bytes.
    pub fn len(&self) -> usize {
        self.header.len() + self.payload.iter().map(Buf::len).sum::<usize>()
    }

    /// Whether the packet is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole packet in contiguous memory.
    pub fn to_vec(&self) -> Vec<u8> {
        flatten(self.header, self.payload)
    }
}

fn flatten(head: &[u8], rest: &[Buf]) -> Vec<u8> {
    let len = head.len() + rest.iter().map(Buf::len).sum::<usize>();
    let mut all = Vec::with_capacity(len);
    all.extend_from_slice(head);
    rest.iter().for_each(|buf| all.extend_from_slice(buf));
    all
}

/// Completes the checksum with the bytes from `start` on. Does nothing if the field is outside the
/// packet.
fn complete(packet: &mut [u8], start: usize, offset: usize) {
    let udp = match packet.first().map(|byte| byte >> 4) {
        Some(4) => packet.get(9) == Some(&PROTO_UDP),
        // The offset identifies UDP also behind extension headers: no other protocol has its checksum
        // there.
        _ => offset == 6,
    };
    let Some(covered) = packet
        .get(start..)
        .filter(|bytes| offset + 2 <= bytes.len())
    else {
        return;
    };
    let mut sum = Sum::new();
    sum.add_bytes(covered);
    let checksum = match sum.checksum() {
        [0, 0] if udp => [0xff, 0xff],
        checksum => checksum,
    };
    packet[start + offset..start + offset + 2].copy_from_slice(&checksum);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partial(packet: &[u8], start: u16, offset: u16) -> Frame {
        Frame {
            checksum: Checksum::Partial { start, offset },
            ..Frame::new(packet)
        }
    }

    #[test]
    fn what_is_pulled_up_changes_no_byte() {
        let rest = [&b"345"[..], b"", b"67", b"8"].map(Buf::copy_of);
        for len in 0..12 {
            let mut frame =
                Frame::with_rest(Buf::copy_of(b"012"), rest.clone().into_iter().collect());
            frame.pull_up(len);
            assert_eq!(frame.head.len(), len.clamp(3, 9), "{len}");
            assert_eq!(frame.to_vec(), b"012345678", "{len}");
        }
    }

    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_ones() {
        // The words sum up to 0xffff, whose inverse is 0.
        let mut udp = [0; 28];
        (udp[0], udp[9]) = (0x45, 17);
        udp[20..22].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(partial(&udp, 20, 6).to_complete_vec()[26..28], [0xff, 0xff]);
        udp[9] = 6;
        assert_eq!(partial(&udp, 20, 6).to_complete_vec()[26..28], [0, 0]);
    }

    #[test]
    fn a_field_outside_of_the_packet_is_left_alone() {
        let packet = [0x45; 28];
        for (start, offset) in [(0, 27), (20, 7), (28, 0), (29, 0), (u16::MAX, u16::MAX)] {
            assert_eq!(partial(&packet, start, offset).to_complete_vec(), packet);
        }
    }

    #[test]
    fn what_is_complete_stays_as_it_is() {
        for checksum in [Checksum::Complete, Checksum::Verified] {
            let frame = Frame {
                checksum,
                ..Frame::new(&[0x45; 28])
            };
            assert_eq!(frame.to_complete_vec(), [0x45; 28]);
        }
    }
}
