//! Datagrams in packets: RFC 768, and RFC 8200 8.1 for the checksum over IPv6. Pure.

use crate::buf::{Buf, Gather};
use crate::ip::header::pseudo_header;
use crate::ip::packet::{payload_of, sum_payload};
use crate::ip::{self, IPV4_HEADER, IPV6_HEADER, Malformed, PROTO_UDP, Tuple, be16, is_endpoint};
use crate::link::{Checksum, Frame};
use crate::sockbuf::{Addresses, Run};
use std::net::SocketAddr;

pub(crate) const UDP_HEADER: usize = 8;
/// Offset of the checksum in the UDP header.
const CHECKSUM: usize = 6;
/// Room for the headers of both families.
pub(crate) const MAX_HEADERS: usize = IPV6_HEADER + UDP_HEADER;

/// Most datagrams of a super-frame (`UDP_MAX_SEGMENTS` of Linux).
pub(crate) const MAX_SEGMENTS: usize = 128;

/// The largest packet, with its headers.
pub(crate) const fn largest(v4: bool) -> usize {
    65_535 + if v4 { 0 } else { IPV6_HEADER }
}

/// A received datagram, or several of one sender in one super-frame.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) tuple: Tuple,
    pub(crate) payload: Gather,
    pub(crate) len: usize,
    /// Payload bytes of each datagram but the last one, which may have fewer.
    pub(crate) segment: Option<usize>,
}

impl Received {
    /// The datagrams, to and from these addresses.
    pub(crate) fn run(self, addresses: Addresses) -> Run {
        let size = self.segment.filter(|size| *size < self.len);
        Run {
            size: size.unwrap_or(self.len),
            payload: self.payload,
            addresses,
        }
    }

    pub(crate) fn count(&self) -> usize {
        match self.segment {
            Some(size) if size < self.len => self.len.div_ceil(size),
            _ => 1,
        }
    }
}

/// The datagram in a packet of UDP.
pub(crate) fn parse(frame: &Frame, ip: &ip::Packet) -> Result<Received, Malformed> {
    let head: &[u8] = frame.head.get(ip.header_len..).unwrap_or_default();
    let most = ip.total_len - ip.header_len;
    if head.len() < UDP_HEADER || most < UDP_HEADER {
        return Err(Malformed::Header);
    }
    let told = usize::from(be16(head, 4));
    if told < UDP_HEADER || told > most {
        return Err(Malformed::Header);
    }
    let tuple = Tuple {
        local: ip.destination,
        remote: ip.source,
        local_port: be16(head, 2),
        remote_port: be16(head, 0),
    };
    if !is_endpoint(ip.source) || !is_endpoint(ip.destination) || tuple.local_port == 0 {
        return Err(Malformed::Address);
    }
    if !frame.checksum.is_vouched_for() && !checksum_holds(frame, ip, told) {
        return Err(Malformed::Checksum);
    }
    let len = told - UDP_HEADER;
    Ok(Received {
        tuple,
        payload: payload_of(frame, ip.header_len + UDP_HEADER, len),
        len,
        segment: frame.segment.map(|size| usize::from(size.get())),
    })
}

/// A checksum of 0 means none over IPv4, and nothing over IPv6.
fn checksum_holds(frame: &Frame, ip: &ip::Packet, len: usize) -> bool {
    let head = &frame.head[ip.header_len..];
    if be16(head, CHECKSUM) == 0 {
        return ip.source.is_ipv4();
    }
    let mut sum = pseudo_header(ip.source, ip.destination, PROTO_UDP, len);
    sum_payload(frame, ip.header_len, ip.header_len + len, &mut sum);
    sum.checksum() == [0, 0]
}

/// The headers of a datagram, or of a super-frame of them.
#[derive(Debug)]
pub(crate) struct Headers {
    pub(super) bytes: [u8; MAX_HEADERS],
    pub(crate) len: usize,
    pub(crate) ip_header_len: usize,
    pub(crate) checksum: Checksum,
}

impl Headers {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Writes the headers of a datagram from one address to another one. `partial`: the link completes the checksum.
/// A checksum of 0 would mean that there is none, and is sent as its other form (RFC 768).
pub(crate) fn compose(
    (from, to): (SocketAddr, SocketAddr),
    payload: &[Buf],
    (hop_limit, partial): (u8, bool),
) -> Headers {
    let len = UDP_HEADER + payload.iter().map(Buf::len).sum::<usize>();
    let mut bytes = [0; MAX_HEADERS];
    let ip_header_len = ip::header::write(&mut bytes, (from.ip(), to.ip()), PROTO_UDP, len);
    let hop_limit_at = if ip_header_len == IPV4_HEADER { 8 } else { 7 };
    bytes[hop_limit_at] = hop_limit;
    if ip_header_len == IPV4_HEADER {
        let sum = ip::header::ipv4_checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum);
    }
    let mut sum = pseudo_header(from.ip(), to.ip(), PROTO_UDP, len);
    let udp = &mut bytes[ip_header_len..ip_header_len + UDP_HEADER];
    udp[..2].copy_from_slice(&from.port().to_be_bytes());
    udp[2..4].copy_from_slice(&to.port().to_be_bytes());
    udp[4..6].copy_from_slice(&ip::header::length_field(len));
    let field = if partial {
        sum.checksum().map(|byte| !byte)
    } else {
        sum.add_bytes(udp);
        payload.iter().for_each(|part| sum.add_bytes(part));
        match sum.checksum() {
            [0, 0] => [0xff, 0xff],
            sum => sum,
        }
    };
    udp[CHECKSUM..].copy_from_slice(&field);
    let start = u16::try_from(ip_header_len).expect("invariant: 20 or 40");
    Headers {
        bytes,
        len: ip_header_len + UDP_HEADER,
        ip_header_len,
        checksum: match partial {
            true => Checksum::partial_udp(start),
            false => Checksum::Complete,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Packet;
    use proptest::prelude::*;

    fn ends(v4: bool) -> (SocketAddr, SocketAddr) {
        let (from, to) = match v4 {
            true => ("10.0.0.1:53", "10.0.0.2:4000"),
            false => ("[fd00::1]:53", "[fd00::2]:4000"),
        };
        (from.parse().unwrap(), to.parse().unwrap())
    }

    fn packet(v4: bool, payload: &[u8]) -> Vec<u8> {
        let payload = [Buf::copy_of(payload)];
        let headers = compose(ends(v4), &payload, (64, false));
        Packet::new(headers.bytes(), &payload, headers.ip_header_len).to_vec()
    }

    fn parsed(packet: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut frame = Frame::new(packet);
        let ip = ip::parse(&mut frame)?;
        let received = parse(&frame, &ip)?;
        Ok(received
            .payload
            .iter()
            .flat_map(|buf| buf.to_vec())
            .collect())
    }

    proptest! {
        /// What is written is read, and no bit can be changed unseen (but for those that no checksum covers).
        #[test]
        fn round_trip(v4: bool, payload in proptest::collection::vec(any::<u8>(), 0..300), at: usize, bit in 0u8..8) {
            let whole = packet(v4, &payload);
            prop_assert_eq!(parsed(&whole), Ok(payload.clone()));
            let mut changed = whole.clone();
            let udp = whole.len() - payload.len() - UDP_HEADER;
            let at = udp + at % (whole.len() - udp);
            changed[at] ^= 1 << bit;
            // A checksum of zero is none at all, over IPv4.
            let none = v4 && changed[udp + CHECKSUM..udp + UDP_HEADER] == [0, 0];
            prop_assert!(none || parsed(&changed).is_err(), "{at} {bit}");
        }

        #[test]
        fn nothing_panics(packet in proptest::collection::vec(any::<u8>(), 0..100), v4: bool) {
            let mut packet = packet;
            if let Some(first) = packet.first_mut() {
                *first = if v4 { 0x45 } else { 0x60 };
            }
            drop(parsed(&packet));
        }
    }

    #[test]
    fn a_checksum_that_comes_to_zero_is_sent_as_ones() {
        // The last word is chosen so that the sum is 0.
        for v4 in [true, false] {
            let mut payload = [0, 0];
            let sum = be16(&packet(v4, &payload), if v4 { 26 } else { 46 });
            payload.copy_from_slice(&sum.to_be_bytes());
            let whole = packet(v4, &payload);
            let at = whole.len() - 2 - UDP_HEADER + CHECKSUM;
            assert_eq!(whole[at..at + 2], [0xff, 0xff]);
            assert_eq!(parsed(&whole), Ok(payload.to_vec()));
        }
    }

    #[test]
    fn malformed_ones_are_told_apart() {
        let patched = |v4: bool, at: usize, value: u16| {
            let mut whole = packet(v4, b"four");
            let at = whole.len() - 4 - UDP_HEADER + at;
            whole[at..at + 2].copy_from_slice(&value.to_be_bytes());
            parsed(&whole)
        };
        for v4 in [true, false] {
            for told in [0, 7, 13, u16::MAX] {
                assert_eq!(
                    patched(v4, 4, told),
                    Err(Malformed::Header),
                    "length {told}"
                );
            }
            assert_eq!(patched(v4, 2, 0), Err(Malformed::Address), "port 0");
            assert_eq!(patched(v4, 6, 0x1234), Err(Malformed::Checksum));
        }
        assert_eq!(patched(true, 6, 0), Ok(b"four".to_vec()), "no checksum");
        assert_eq!(
            patched(false, 6, 0),
            Err(Malformed::Checksum),
            "RFC 8200 8.1"
        );
    }

    #[test]
    fn a_super_frame_is_several_datagrams() {
        let whole = packet(true, &[7; 25]);
        let mut frame = Frame::new(&whole);
        for (size, lens) in [(10, vec![10, 10, 5]), (25, vec![25]), (100, vec![25])] {
            frame.segment = std::num::NonZeroU16::new(size);
            let ip = ip::parse(&mut frame).unwrap();
            let received = parse(&frame, &ip).unwrap();
            let count = received.count();
            let mut run = received.run(Addresses::default());
            assert_eq!((count, run.count()), (lens.len(), lens.len()));
            let found: Vec<usize> = (0..count).map(|_| run.cut(1).len()).collect();
            assert_eq!((found, run.len()), (lens, 0));
        }
        let empty = packet(true, b"");
        let mut frame = Frame::new(&empty);
        let ip = ip::parse(&mut frame).unwrap();
        let received = parse(&frame, &ip).unwrap();
        let count = received.count();
        assert_eq!((count, received.run(Addresses::default()).count()), (1, 1));
    }
}
