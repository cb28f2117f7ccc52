//! ARP for IPv4 on Ethernet (RFC 826).

use crate::link::ethernet::frame::{Mac, be16};
use std::net::Ipv4Addr;

const LEN: usize = 28;
pub(in crate::link::ethernet) const REQUEST: u16 = 1;
pub(in crate::link::ethernet) const REPLY: u16 = 2;

/// A packet about IPv4 addresses on Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::link::ethernet) struct Packet {
    pub(in crate::link::ethernet) operation: u16,
    pub(in crate::link::ethernet) sender: (Mac, Ipv4Addr),
    pub(in crate::link::ethernet) target: (Mac, Ipv4Addr),
}

impl Packet {
    pub(in crate::link::ethernet) fn parse(bytes: &[u8]) -> Option<Packet> {
        let end = |at: usize| {
            let mac: [u8; 6] = bytes[at..at + 6].try_into().ok()?;
            let address: [u8; 4] = bytes[at + 6..at + 10].try_into().ok()?;
            Some((Mac(mac), Ipv4Addr::from(address)))
        };
        if bytes.len() < LEN || bytes[..6] != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        let operation = be16(bytes, 6);
        let packet = Packet {
            operation,
            sender: end(8)?,
            target: end(18)?,
        };
        (matches!(operation, REQUEST | REPLY) && packet.sender.0.is_unicast()).then_some(packet)
    }

    pub(in crate::link::ethernet) fn emit(self, frame: &mut Vec<u8>) {
        frame.extend([0, 1, 8, 0, 6, 4]);
        frame.extend(self.operation.to_be_bytes());
        for (mac, address) in [self.sender, self.target] {
            frame.extend(mac.0);
            frame.extend(address.octets());
        }
    }
}
