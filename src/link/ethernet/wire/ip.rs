//! Headers of the IP packets with control messages.

use crate::checksum::{Checksum, checksum};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(in crate::link::ethernet) const UDP: u8 = 17;
pub(in crate::link::ethernet) const ICMPV6: u8 = 58;
pub(in crate::link::ethernet) const IPV6_HEADER: usize = 40;
/// Length of a header without options.
pub(in crate::link::ethernet) const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// Length of the header of an IPv4 packet, and the length field: 0 in a super-frame that does not fit it. `head` is the
/// beginning of the packet, which has `received` bytes.
pub(in crate::link::ethernet) fn v4_lengths(
    head: &[u8],
    received: usize,
) -> Option<(usize, usize)> {
    let first = *head.first()?;
    let header_len = usize::from(first & 15) * 4;
    if first >> 4 != 4 || header_len < IPV4_HEADER || head.len() < header_len {
        return None;
    }
    let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
    (len == 0 || (header_len..=received).contains(&len)).then_some((header_len, len))
}

/// The length of an IPv6 packet by its header: 0 also in a super-frame with a jumbo payload option.
pub(in crate::link::ethernet) fn v6_length(head: &[u8], received: usize) -> Option<usize> {
    if head.len() < IPV6_HEADER || head[0] >> 4 != 6 {
        return None;
    }
    let len = match u16::from_be_bytes([head[4], head[5]]) {
        0 => 0,
        payload => IPV6_HEADER + usize::from(payload),
    };
    (len <= received).then_some(len)
}

/// The destination of a packet.
pub(in crate::link::ethernet) fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(Ipv4Addr::from(*packet.get(16..)?.first_chunk::<4>()?).into()),
        6 => Some(Ipv6Addr::from(*packet.get(24..)?.first_chunk::<16>()?).into()),
        _ => None,
    }
}

/// The checksum over the pseudo-header and the payload; 0 if the payload contains a right one.
pub(in crate::link::ethernet) fn transport_sum(
    addresses: &[u8],
    protocol: u8,
    payload: &[u8],
) -> [u8; 2] {
    let mut sum = Checksum::new();
    let len = u32::try_from(payload.len()).expect("invariant: a frame is smaller than 4 GiB");
    sum.add_bytes(addresses);
    sum.add_bytes(&len.to_be_bytes());
    sum.add_bytes(&[0, 0, 0, protocol]);
    sum.add_bytes(payload);
    sum.checksum()
}

/// The payload of a datagram in an IPv4 packet whose lengths were checked, if it is whole and its checksums are
/// right.
pub(in crate::link::ethernet) fn udp_payload(packet: &[u8]) -> Option<&[u8]> {
    let (header, udp) = packet.split_at_checked(usize::from(packet.first()? & 15) * 4)?;
    let len = usize::from(u16::from_be_bytes([*udp.get(4)?, *udp.get(5)?]));
    let udp = udp.get(..len).filter(|udp| udp.len() >= UDP_HEADER)?;
    let summed = udp[6..8] != [0, 0];
    if checksum(header) != [0, 0] || (summed && transport_sum(&header[12..20], UDP, udp) != [0, 0])
    {
        return None;
    }
    Some(&udp[UDP_HEADER..])
}

/// Appends an IPv4 packet with a datagram.
pub(in crate::link::ethernet) fn emit_udp(
    bytes: &mut Vec<u8>,
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    payload: &[u8],
) {
    let len = |headers: usize| {
        let len = u16::try_from(headers + payload.len());
        len.expect("invariant: an answer of DHCP is short")
            .to_be_bytes()
    };
    let mut header = [
        0x45, 0, 0, 0, 0, 0, 0, 0, 64, UDP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    header[2..4].copy_from_slice(&len(IPV4_HEADER + UDP_HEADER));
    header[12..16].copy_from_slice(&from.0.octets());
    header[16..20].copy_from_slice(&to.0.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    let mut udp = [
        from.1.to_be_bytes(),
        to.1.to_be_bytes(),
        len(UDP_HEADER),
        [0, 0],
    ]
    .concat();
    udp.extend_from_slice(payload);
    let sum = match transport_sum(&header[12..20], UDP, &udp) {
        // 0 would mean "no checksum" (RFC 768).
        [0, 0] => [0xff, 0xff],
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum);
    bytes.extend(header);
    bytes.extend(udp);
}

/// Whether the checksum of the ICMPv6 message in a packet without extension headers is right.
pub(in crate::link::ethernet) fn icmpv6_holds(packet: &[u8]) -> bool {
    transport_sum(&packet[8..40], ICMPV6, &packet[IPV6_HEADER..]) == [0, 0]
}

/// Appends an IPv6 packet with an ICMPv6 message of neighbour discovery, whose checksum is filled in.
pub(in crate::link::ethernet) fn emit_icmpv6(
    bytes: &mut Vec<u8>,
    from: Ipv6Addr,
    to: Ipv6Addr,
    mut message: Vec<u8>,
) {
    let len = u16::try_from(message.len()).expect("invariant: a message has few options");
    let addresses = [from.octets(), to.octets()].concat();
    let sum = transport_sum(&addresses, ICMPV6, &message);
    message[2..4].copy_from_slice(&sum);
    bytes.extend([0x60, 0, 0, 0]);
    bytes.extend(len.to_be_bytes());
    bytes.extend([ICMPV6, 255]);
    bytes.extend(addresses);
    bytes.extend(message);
}
