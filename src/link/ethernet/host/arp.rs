//! ARP (RFC 826, 5227), and for addresses of proxied networks (RFC 1027).

use super::Station;
use super::config::is_host;
use crate::link::ethernet::frame::{self, Mac};
use crate::link::ethernet::neighbours::Claim;
use crate::link::ethernet::wire::arp::{Packet, REPLY, REQUEST};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

const NOBODY: Mac = Mac([0; 6]);

impl Station {
    pub(super) fn arp(&mut self, bytes: &[u8], now: Instant) {
        let Some(packet) = Packet::parse(bytes) else {
            self.stats.malformed += 1;
            return;
        };
        let (mac, sender) = packet.sender;
        let target = packet.target.1;
        if mac == self.config.mac {
            // A request of our own that the link has looped back.
            self.stats.looped += 1;
            return;
        }
        if self.own(sender).is_some() {
            return self.conflict(sender, now);
        }
        let is_request = packet.operation == REQUEST;
        if self.own(target).is_some_and(|own| !own.is_in_use()) {
            // Another host probes the address at the same time (RFC 5227 2.1.1).
            if is_request && sender.is_unspecified() {
                self.conflict(target, now);
            }
            return;
        }
        self.file_sender(&packet, now);
        let own = self.is_in_use(target);
        if is_request && (own || self.stands_for(sender, target)) {
            self.stats.arp_answered += 1;
            self.reply(target, packet.sender);
        } else {
            self.stats.ignored += u64::from(is_request);
        }
    }

    /// The sender's hardware address.
    fn file_sender(&mut self, packet: &Packet, now: Instant) {
        let (mac, sender) = packet.sender;
        let address = IpAddr::V4(sender);
        if !is_host(address) || self.means_all(sender) {
            return;
        }
        let claim = match packet.operation {
            REPLY => Claim::reply(packet.target.0 == self.config.mac),
            _ => {
                let to_us = self.is_in_use(packet.target.1);
                Claim::request(to_us && self.routes.is_on_link(address))
            }
        };
        self.neighbours.claim(address, Some(mac), claim, now);
        self.heard(address, now);
    }

    /// Whether the host answers for another one: not to the host itself, and not to one that probes the address.
    fn stands_for(&self, sender: Ipv4Addr, target: Ipv4Addr) -> bool {
        let target = IpAddr::V4(target);
        let proxied = self.config.proxy.iter().any(|net| net.contains(&target));
        proxied && !sender.is_unspecified() && IpAddr::V4(sender) != target
    }

    fn reply(&mut self, address: Ipv4Addr, target: (Mac, Ipv4Addr)) {
        let packet = Packet {
            operation: REPLY,
            sender: (self.config.mac, address),
            target,
        };
        self.send_arp(target.0, packet);
    }

    /// A probe, from 0.0.0.0; or, if both are the same, an announcement.
    pub(super) fn send_arp_request(&mut self, sender: Ipv4Addr, target: Ipv4Addr) {
        self.ask_arp(sender, target, Mac::BROADCAST);
    }

    /// Asks all hosts, or one, for an address.
    pub(super) fn ask_arp(&mut self, sender: Ipv4Addr, target: Ipv4Addr, to: Mac) {
        let packet = Packet {
            operation: REQUEST,
            sender: (self.config.mac, sender),
            target: (NOBODY, target),
        };
        self.send_arp(to, packet);
    }

    fn send_arp(&mut self, to: Mac, packet: Packet) {
        let mut bytes = frame::header(to, self.config.mac, frame::ARP).to_vec();
        packet.emit(&mut bytes);
        self.answer(bytes);
    }
}
