//! ARP for the gateway's address (RFC 826, RFC 5227).

use super::Gateway;
use crate::link::ethernet::frame::{self, Mac, be16};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

const LEN: usize = 28;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// At most one defence of an address in this time (RFC 5227, DEFEND_INTERVAL).
pub(super) const DEFEND_INTERVAL: Duration = Duration::from_secs(10);

/// A packet about IPv4 addresses on Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packet {
    operation: u16,
    sender: (Mac, Ipv4Addr),
    target: (Mac, Ipv4Addr),
}

impl Packet {
    fn parse(bytes: &[u8]) -> Option<Packet> {
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

    fn emit(self, frame: &mut Vec<u8>) {
        frame.extend([0, 1, 8, 0, 6, 4]);
        frame.extend(self.operation.to_be_bytes());
        for (mac, address) in [self.sender, self.target] {
            frame.extend(mac.0);
            frame.extend(address.octets());
        }
    }
}

impl Gateway {
    /// Answers a request for the gateway's address, also that of a host that probes it before use (its sender
    /// address is 0.0.0.0), and defends it. A guest's probe of its own address has no answer.
    pub(super) fn arp(&mut self, bytes: &[u8], now: Instant) {
        let Some(packet) = Packet::parse(bytes) else {
            self.stats.malformed += 1;
            return;
        };
        let own = (self.config.mac, self.config.gateway.addr());
        if packet.sender.1 == own.1 {
            self.stats.conflicts += 1;
            if self.may_defend(now) {
                // An announcement: all hosts that believe the other one correct their tables (RFC 5227 2.4).
                let target = (Mac([0; 6]), own.1);
                self.send_arp(
                    Mac::BROADCAST,
                    Packet {
                        operation: REQUEST,
                        sender: own,
                        target,
                    },
                );
            }
            return;
        }
        if packet.operation == REQUEST && packet.target.1 == own.1 {
            self.stats.arp_answered += 1;
            let target = packet.sender;
            self.send_arp(
                target.0,
                Packet {
                    operation: REPLY,
                    sender: own,
                    target,
                },
            );
        } else {
            self.stats.ignored += 1;
        }
    }

    fn send_arp(&mut self, to: Mac, packet: Packet) {
        let mut bytes = frame::header(to, self.config.mac, frame::ARP).to_vec();
        packet.emit(&mut bytes);
        self.answer(bytes);
    }

    /// Whether the last defence is long enough ago.
    pub(super) fn may_defend(&mut self, now: Instant) -> bool {
        let may = self
            .defended
            .is_none_or(|at| now.saturating_duration_since(at) >= DEFEND_INTERVAL);
        if may {
            self.defended = Some(now);
        }
        may
    }
}
