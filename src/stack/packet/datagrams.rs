//! Packets of any protocol, whole or in fragments, for the tests beside this.

use super::*;
pub(super) use crate::ip::samples::{
    addresses, datagram, fragment, fragment_from, from_to, sum_header,
};

pub(super) const UDP: u8 = 17;
pub(super) const NOBODY_S: u8 = 253;

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
    assert!(parsed.total_len == packet.len());
    let icmp = &packet[parsed.header_len..];
    assert!(ip::header::icmp_checksum_holds(own, peer, icmp));
    Said {
        kind: icmp[0],
        code: icmp[1],
        word: ip::be32(icmp, 4),
        rest: icmp[8..].to_vec(),
    }
}
