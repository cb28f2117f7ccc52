//! ARP for the gateway's address (RFC 826, RFC 5227).

use super::Gateway;
use crate::link::ethernet::frame::{self, Mac};
use crate::link::ethernet::neighbours::Claim;
use crate::link::ethernet::wire::arp::{Packet, REPLY, REQUEST};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// At most one defence of an address in this time (RFC 5227, DEFEND_INTERVAL).
pub(super) const DEFEND_INTERVAL: Duration = Duration::from_secs(10);

impl Gateway {
    /// Answers a request for the gateway's address, also that of a host that probes it before use (its sender
    /// address is 0.0.0.0), and defends it. A guest's probe of its own address has no answer. `source`: of the frame.
    pub(super) fn arp(&mut self, bytes: &[u8], source: Mac, now: Instant) {
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
        let asked = packet.operation == REQUEST && packet.target.1 == own.1;
        if self.several() && !self.knows(&packet, source, asked, now) {
            return;
        }
        if asked {
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

    /// Notes the sender of a packet. `false` if it may not use its address, which is counted.
    fn knows(&mut self, packet: &Packet, source: Mac, asked: bool, now: Instant) -> bool {
        let (mac, address) = (packet.sender.0, IpAddr::from(packet.sender.1));
        if mac != source {
            self.stats.spoofed += 1;
            return false;
        }
        if address.is_unspecified() {
            return true;
        }
        if !self.may_use(address, mac, now) {
            return false;
        }
        let claim = match packet.operation {
            REQUEST => Claim::request(asked),
            _ => Claim::reply(packet.target.0 == self.config.mac),
        };
        self.claim(address, mac, claim, now);
        true
    }

    fn send_arp(&mut self, to: Mac, packet: Packet) {
        let bytes = self.arp_frame(to, packet);
        self.answer(bytes);
    }

    pub(super) fn arp_frame(&self, to: Mac, packet: Packet) -> Vec<u8> {
        let mut bytes = frame::header(to, self.config.mac, frame::ARP).to_vec();
        packet.emit(&mut bytes);
        bytes
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
