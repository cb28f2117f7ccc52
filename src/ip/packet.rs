//! Received packets: their headers are parsed here, once for each frame.
//!
//! RFC 791, 8200. Pure.

use super::extension::{self, Stop};
use super::header::{CE, Fragment, IPV4_HEADER, IPV6_HEADER, Malformed, array, be16, options};
use crate::buf::Gather;
use crate::checksum::{Checksum, checksum};
use crate::link::Frame;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest header of a transport: TCP's, with options.
const TRANSPORT_HEADER: usize = 60;

/// The IP header of a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Protocol of the payload.
    pub(crate) protocol: u8,
    /// Length of all headers before the payload, extension headers included.
    pub(crate) header_len: usize,
    pub(crate) total_len: usize,
    /// RFC 3168 5.
    pub(crate) ecn: u8,
}

impl Packet {
    /// From a complete header.
    fn v4(header: &[u8]) -> Packet {
        Packet {
            source: IpAddr::V4(Ipv4Addr::from(array::<4>(header, 12))),
            destination: IpAddr::V4(Ipv4Addr::from(array::<4>(header, 16))),
            protocol: header[9],
            header_len: usize::from(header[0] & 0x0f) * 4,
            total_len: usize::from(be16(header, 2)),
            ecn: header[1] & CE,
        }
    }

    fn v6(header: &[u8]) -> Packet {
        Packet {
            source: IpAddr::V6(Ipv6Addr::from(array::<16>(header, 8))),
            destination: IpAddr::V6(Ipv6Addr::from(array::<16>(header, 24))),
            protocol: header[6],
            header_len: IPV6_HEADER,
            total_len: IPV6_HEADER + usize::from(be16(header, 4)),
            ecn: header[1] >> 4 & CE,
        }
    }
}

/// Parses the header of a frame's packet. Extension headers that continue in a frame's second buffer are moved
/// into the first.
pub(crate) fn parse(frame: &mut Frame) -> Result<Packet, Malformed> {
    match frame.head.first().map(|byte| byte >> 4) {
        Some(4) => parse_ipv4(frame),
        Some(6) => parse_ipv6(frame),
        _ => Err(Malformed::Header),
    }
}

fn parse_ipv4(frame: &Frame) -> Result<Packet, Malformed> {
    let head: &[u8] = &frame.head;
    let header_len = usize::from(head[0] & 0x0f) * 4;
    if header_len < IPV4_HEADER || head.len() < header_len {
        return Err(Malformed::Header);
    }
    let total_len = usize::from(be16(head, 2));
    if total_len < header_len || total_len > frame.len() {
        return Err(Malformed::Header);
    }
    if !frame.checksum.is_vouched_for() && checksum(&head[..header_len]) != [0, 0] {
        return Err(Malformed::Checksum);
    }
    if header_len > IPV4_HEADER && is_source_routed(&head[IPV4_HEADER..header_len]) {
        return Err(Malformed::Address);
    }
    if be16(head, 6) & (MORE | OFFSET) != 0 {
        return Err(Malformed::Fragment);
    }
    Ok(Packet::v4(head))
}

/// In IPv4's header: the more-fragments flag, and the offset in units of eight bytes.
const MORE: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// The header of [a fragment](Malformed::Fragment), and its place in its packet.
#[cold]
pub(crate) fn part(frame: &Frame) -> Option<(Packet, Fragment)> {
    let head: &[u8] = &frame.head;
    if head[0] >> 4 == 4 {
        let packet = Packet::v4(head);
        let field = be16(head, 6);
        let fragment = Fragment {
            identification: u32::from(be16(head, 4)),
            offset: usize::from(field & OFFSET) * 8,
            more: field & MORE != 0,
            unfragmentable_len: packet.header_len,
            next_header: packet.protocol,
            next_header_at: 9,
        };
        return Some((packet, fragment));
    }
    let chain = extension::chain(head).ok()?;
    let mut packet = Packet::v6(head);
    packet.protocol = chain.last.kind;
    packet.header_len = chain.last.at;
    Some((packet, chain.fragment?))
}

/// Whether the source has chosen the route, also if that has been followed to its end: what it asks for is
/// that answers go back by the same way, which lets anybody talk in another's name (RFC 1122 3.2.1.8).
/// Other options mean nothing here.
fn is_source_routed(ip_options: &[u8]) -> bool {
    /// Loose and strict (RFC 791 3.1).
    const SOURCE_ROUTES: [u8; 2] = [131, 137];
    options(ip_options).any(|(kind, _)| SOURCE_ROUTES.contains(&kind))
}

fn parse_ipv6(frame: &mut Frame) -> Result<Packet, Malformed> {
    let head: &[u8] = &frame.head;
    if head.len() < IPV6_HEADER {
        return Err(Malformed::Header);
    }
    let total_len = IPV6_HEADER + usize::from(be16(head, 4));
    if total_len > frame.len() {
        return Err(Malformed::Header);
    }
    let mut packet = Packet::v6(head);
    if extension::is_extension(packet.protocol) {
        pass_extensions(frame, &mut packet)?;
    }
    Ok(packet)
}

#[cold]
fn pass_extensions(frame: &mut Frame, packet: &mut Packet) -> Result<(), Malformed> {
    const MOST: usize = IPV6_HEADER + extension::MOST_BYTES + TRANSPORT_HEADER;
    let len = packet.total_len;
    let walk = |frame: &Frame| extension::chain(&frame.head[..len.min(frame.head.len())]);
    let mut chain = walk(frame);
    if chain.is_err_and(|why| why == Stop::Short) && frame.head.len() < len.min(MOST) {
        frame.pull_up(len.min(MOST));
        chain = walk(frame);
    }
    let chain = chain.map_err(|why| match why {
        Stop::Short => Malformed::Header,
        Stop::Malformed(why) => why,
    })?;
    if chain.fragment.is_some() {
        return Err(Malformed::Fragment);
    }
    packet.protocol = chain.last.kind;
    packet.header_len = chain.last.at;
    frame.pull_up(len.min(chain.last.at + TRANSPORT_HEADER));
    Ok(())
}

/// Length of a packet according to its header.
pub(crate) fn total_len(header: &[u8]) -> usize {
    match header[0] >> 4 {
        4 => usize::from(be16(header, 2)),
        _ => IPV6_HEADER + usize::from(be16(header, 4)),
    }
}

/// Adds a packet's payload to a sum.
pub(crate) fn sum_payload(frame: &Frame, header_len: usize, total_len: usize, sum: &mut Checksum) {
    let mut missing = total_len - header_len;
    let head = &frame.head[header_len..];
    for part in std::iter::once(head).chain(frame.rest.iter().map(|buf| &buf[..])) {
        let count = part.len().min(missing);
        sum.add_bytes(&part[..count]);
        missing -= count;
    }
}

/// References to the payload: `len` bytes behind the first `skip`, which are in the first buffer.
pub(crate) fn payload_of(frame: &Frame, skip: usize, len: usize) -> Gather {
    into_payload(frame.clone(), skip, len)
}

/// As [`payload_of`], but consumes the frame. Inlined, because it is called for each received segment.
#[inline(always)]
pub(crate) fn into_payload(frame: Frame, skip: usize, len: usize) -> Gather {
    let mut payload = Gather::new();
    let mut missing = len;
    let in_head = (frame.head.len() - skip).min(missing);
    if in_head > 0 {
        payload.push(frame.head.slice(skip..skip + in_head));
        missing -= in_head;
    }
    for buf in frame.rest {
        if missing == 0 {
            break;
        }
        let count = buf.len().min(missing);
        payload.push(if count == buf.len() {
            buf
        } else {
            buf.slice(0..count)
        });
        missing -= count;
    }
    payload
}
