//! Packets for tests.

#![expect(clippy::cast_possible_truncation, reason = "lengths are small")]

use super::header;
use std::net::IpAddr;

/// A peer's and ours.
pub(crate) fn addresses(v6: bool) -> (IpAddr, IpAddr) {
    let (peer, own) = match v6 {
        false => ("10.0.0.2", "10.0.0.1"),
        true => ("fd00::2", "fd00::1"),
    };
    (peer.parse().unwrap(), own.parse().unwrap())
}

/// A packet, the checksum of its IPv4 header filled in.
pub(crate) fn from_to((from, to): (IpAddr, IpAddr), protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = if from.is_ipv4() { 20 } else { 40 };
    let mut packet = vec![0; len];
    header::write(&mut packet, (from, to), protocol, payload.len());
    packet.extend_from_slice(payload);
    sum_header(&mut packet);
    packet
}

/// A datagram of UDP, with its checksum.
pub(crate) fn udp(
    (from, to): (IpAddr, IpAddr),
    (from_port, to_port): (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    let words = [from_port, to_port, len, 0].map(u16::to_be_bytes);
    let mut udp = [words.as_flattened(), payload].concat();
    let mut sum = header::pseudo_header(from, to, header::PROTO_UDP, udp.len());
    sum.add_bytes(&udp);
    udp[6..8].copy_from_slice(&sum.checksum());
    from_to((from, to), header::PROTO_UDP, &udp)
}

/// The same from the peer to us.
pub(crate) fn datagram(v6: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    from_to(addresses(v6), protocol, payload)
}

/// Fills in the checksum of an IPv4 header.
pub(crate) fn sum_header(packet: &mut [u8]) {
    if packet[0] >> 4 == 4 {
        let len = usize::from(packet[0] & 0x0f) * 4;
        packet[10..12].fill(0);
        let sum = internet_checksum::checksum(&packet[..len]);
        packet[10..12].copy_from_slice(&sum);
    }
}

/// A part of a packet: identification, offset, whether there are more.
pub(crate) fn fragment_from(
    ends: (IpAddr, IpAddr),
    protocol: u8,
    (id, offset, more): (u32, usize, bool),
    payload: &[u8],
) -> Vec<u8> {
    let more = u16::from(more);
    if ends.0.is_ipv4() {
        let mut packet = from_to(ends, protocol, payload);
        packet[4..6].copy_from_slice(&(id as u16).to_be_bytes());
        let field = more << 13 | (offset / 8) as u16;
        packet[6..8].copy_from_slice(&field.to_be_bytes());
        sum_header(&mut packet);
        return packet;
    }
    let field = offset as u16 | more;
    let header = [&[protocol, 0], &field.to_be_bytes()[..], &id.to_be_bytes()].concat();
    from_to(ends, 44, &[&header, payload].concat())
}

/// The same from the peer to us.
pub(crate) fn fragment(
    v6: bool,
    protocol: u8,
    place: (u32, usize, bool),
    payload: &[u8],
) -> Vec<u8> {
    fragment_from(addresses(v6), protocol, place, payload)
}
