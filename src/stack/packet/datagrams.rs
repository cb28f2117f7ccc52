//! Packets of any protocol, whole or in fragments, for the tests beside this.

use super::*;

pub(super) const UDP: u8 = 17;
pub(super) const NOBODY_S: u8 = 253;

pub(super) fn addresses(v6: bool) -> (IpAddr, IpAddr) {
    let (peer, own) = match v6 {
        false => ("10.0.0.2", "10.0.0.1"),
        true => ("fd00::2", "fd00::1"),
    };
    (peer.parse().unwrap(), own.parse().unwrap())
}

/// A packet, the checksum of its IPv4 header filled in.
pub(super) fn from_to((from, to): (IpAddr, IpAddr), protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = if from.is_ipv4() { 20 } else { 40 };
    let mut packet = vec![0; len];
    ip::header::write(&mut packet, (from, to), protocol, payload.len());
    packet.extend_from_slice(payload);
    sum_header(&mut packet);
    packet
}

/// The same from the peer to the stack.
pub(super) fn datagram(v6: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    from_to(addresses(v6), protocol, payload)
}

/// Fills in the checksum of an IPv4 header.
pub(super) fn sum_header(packet: &mut [u8]) {
    if packet[0] >> 4 == 4 {
        let len = usize::from(packet[0] & 0x0f) * 4;
        packet[10..12].fill(0);
        let sum = checksum(&packet[..len]);
        packet[10..12].copy_from_slice(&sum);
    }
}

/// An ICMP message with its checksum.
pub(super) fn message((from, to): (IpAddr, IpAddr), kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0], rest].concat();
    let sum = ip::header::icmp_checksum(from, to, &message);
    message[2..4].copy_from_slice(&sum);
    message
}

pub(super) fn icmp_protocol(v6: bool) -> u8 {
    if v6 { 58 } else { 1 }
}

/// A ping from the peer; `rest` is identifier, number and data.
pub(super) fn ping(v6: bool, rest: &[u8]) -> Vec<u8> {
    let kind = if v6 { 128 } else { 8 };
    datagram(
        v6,
        icmp_protocol(v6),
        &message(addresses(v6), kind, 0, rest),
    )
}

/// What an ICMP packet of the stack says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) kind: u8,
    pub(super) code: u8,
    pub(super) word: u32,
    pub(super) rest: Vec<u8>,
}

impl Net {
    /// The packets that the stack has sent.
    pub(super) fn packets(&mut self) -> Vec<Vec<u8>> {
        self.turn();
        let mut frames = Vec::new();
        while self.wire.receive(&mut frames, 10_000).unwrap() > 0 {}
        frames.iter().map(crate::link::Frame::to_vec).collect()
    }

    /// ICMP messages that the stack has sent to the peer, all checked.
    pub(super) fn said(&mut self) -> Vec<Said> {
        let all = self.packets();
        all.iter().map(|packet| said(packet)).collect()
    }
}

pub(super) fn said(packet: &[u8]) -> Said {
    let parsed = ip::parse(&mut crate::link::Frame::new(packet)).unwrap();
    let v6 = parsed.source.is_ipv6();
    let (peer, own) = addresses(v6);
    assert_eq!((parsed.source, parsed.destination), (own, peer));
    assert_eq!(parsed.protocol, icmp_protocol(v6));
    assert_eq!(packet[if v6 { 7 } else { 8 }], 64, "the hop limit");
    assert!(parsed.fragment.is_none() && parsed.total_len == packet.len());
    let icmp = &packet[parsed.header_len..];
    assert!(ip::header::icmp_checksum_holds(own, peer, icmp));
    Said {
        kind: icmp[0],
        code: icmp[1],
        word: ip::be32(icmp, 4),
        rest: icmp[8..].to_vec(),
    }
}
