//! Neighbour discovery (RFC 4861, 4862, 7527), and for addresses of proxied networks (RFC 4389).

use super::Station;
use crate::link::ethernet::frame::{self, Mac};
use crate::link::ethernet::neighbours::Claim;
use crate::link::ethernet::wire::ip;
use crate::link::ethernet::wire::ndp::{
    ALL_NODES, Message, NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION, OVERRIDE, REDIRECT,
    ROUTER, ROUTER_ADVERTISEMENT, SOLICITED, SOURCE_ADDRESS, TARGET_ADDRESS, group_mac,
    solicited_node,
};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

/// The option with the number of a solicitation (RFC 3971 5.3.2, RFC 7527 4.1).
const NONCE: u8 = 14;

/// The value of an option of six bytes, behind fixed fields of so many.
fn option(message: &Message<'_>, fixed: usize, kind: u8) -> Option<[u8; 6]> {
    message.hardware_address(fixed, kind)?.try_into().ok()
}

fn mac_in(message: &Message<'_>, fixed: usize, kind: u8) -> Option<Mac> {
    let mac = option(message, fixed, kind).map(Mac);
    mac.filter(|mac| mac.is_unicast())
}

impl Station {
    /// A message of neighbour discovery, in a packet whose lengths were checked.
    pub(super) fn discovery(&mut self, packet: &[u8], source: Mac, now: Instant) {
        let message = Message::parse(packet);
        let handled = message.and_then(|message| match message.kind {
            NEIGHBOUR_SOLICITATION => {
                let target = message.target()?;
                self.solicited(&message, (target, source), now);
                Some(())
            }
            // Looped back by the link.
            _ if source == self.config.mac => {
                self.stats.looped += 1;
                Some(())
            }
            NEIGHBOUR_ADVERTISEMENT => {
                let target = message.target()?;
                self.neighbour_advertised(&message, target, now);
                Some(())
            }
            ROUTER_ADVERTISEMENT => self.router_advertised(&message, now).then_some(()),
            REDIRECT => {
                self.redirected();
                Some(())
            }
            _ => {
                self.stats.ignored += 1;
                Some(())
            }
        });
        if handled.is_none() {
            self.stats.malformed += 1;
        }
    }

    fn solicited(
        &mut self,
        message: &Message<'_>,
        (target, source): (Ipv6Addr, Mac),
        now: Instant,
    ) {
        let is_probe = message.from.is_unspecified();
        let own = self.own(target).map(|own| own.is_in_use());
        if own == Some(false) {
            if is_probe {
                self.probed(target, option(message, 24, NONCE), now);
            }
            return;
        }
        if !is_probe && source == self.config.mac {
            self.stats.looped += 1;
            return;
        }
        if self.own(message.from).is_some() {
            return self.conflict(message.from, now);
        }
        if own == Some(true) {
            self.file_source(message, now);
            return self.answer_for(
                target,
                (!is_probe).then_some((source, message.from)),
                OVERRIDE,
            );
        }
        let proxied = self
            .config
            .proxy
            .iter()
            .any(|net| net.contains(&IpAddr::V6(target)));
        if proxied && !is_probe && message.from != target {
            // Without the flag: the host itself is to be preferred, if it answers (RFC 4861 7.2.8).
            self.answer_for(target, Some((source, message.from)), 0);
        } else {
            self.stats.ignored += 1;
        }
    }

    /// The hardware address of a host that solicits one of ours.
    fn file_source(&mut self, message: &Message<'_>, now: Instant) {
        let address = IpAddr::V6(message.from);
        if let Some(mac) = mac_in(message, 24, SOURCE_ADDRESS) {
            let claim = Claim::request(self.routes.is_on_link(address));
            self.neighbours.claim(address, Some(mac), claim, now);
            self.heard(address, now);
        }
    }

    /// To the host that has solicited it, or to all.
    fn answer_for(&mut self, target: Ipv6Addr, to: Option<(Mac, Ipv6Addr)>, flags: u8) {
        self.stats.neighbours_answered += 1;
        let flags = flags | if to.is_some() { SOLICITED } else { 0 };
        // For another host, from an address of ours.
        let own = self.is_in_use(target).then_some(target);
        if let Some(from) = own.or_else(|| self.link_local()) {
            self.advertise((from, target), to, flags);
        }
    }

    fn neighbour_advertised(&mut self, message: &Message<'_>, target: Ipv6Addr, now: Instant) {
        if self.own(target).is_some() {
            return self.conflict(target, now);
        }
        let flags = message.body[4];
        let claim = Claim {
            solicited: flags & SOLICITED != 0,
            overrides: flags & OVERRIDE != 0,
            router: Some(flags & ROUTER != 0),
            creates: false,
        };
        let mac = mac_in(message, 24, TARGET_ADDRESS);
        self.neighbours.claim(target.into(), mac, claim, now);
        self.heard(target, now);
    }

    fn router_advertised(&mut self, message: &Message<'_>, now: Instant) -> bool {
        let valid = self.advertised(message, now);
        if let Some(mac) = mac_in(message, 16, SOURCE_ADDRESS).filter(|_| valid) {
            // RFC 4861 6.3.4.
            let claim = Claim {
                router: Some(true),
                ..Claim::request(false)
            };
            self.neighbours
                .claim(message.from.into(), Some(mac), claim, now);
            self.heard(message.from, now);
        }
        valid
    }

    /// Solicits a neighbour: its group, or its last hardware address.
    pub(super) fn ask_ndp(&mut self, from: Ipv6Addr, target: Ipv6Addr, at: Option<Mac>) {
        let mut message = solicitation(target);
        message.extend([SOURCE_ADDRESS, 1]);
        message.extend(self.config.mac.0);
        let to = match at {
            Some(mac) => (mac, target),
            None => to_group(solicited_node(target)),
        };
        self.send_icmpv6(from, to, message);
    }

    /// Asks whether another host has an address that is to be ours (RFC 4862 5.4.2).
    pub(super) fn send_probe(&mut self, target: Ipv6Addr, nonce: [u8; 6]) {
        let mut message = solicitation(target);
        message.extend([NONCE, 1]);
        message.extend(nonce);
        let to = to_group(solicited_node(target));
        self.send_icmpv6(Ipv6Addr::UNSPECIFIED, to, message);
    }

    /// The address is ours now (RFC 9131).
    pub(super) fn send_announcement(&mut self, address: Ipv6Addr) {
        self.advertise((address, address), None, 0);
    }

    /// The address is ours and no other host's.
    pub(super) fn send_defence(&mut self, address: Ipv6Addr) {
        self.advertise((address, address), None, OVERRIDE);
    }

    fn advertise(
        &mut self,
        (from, target): (Ipv6Addr, Ipv6Addr),
        to: Option<(Mac, Ipv6Addr)>,
        flags: u8,
    ) {
        let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
        message.extend(target.octets());
        message.extend([TARGET_ADDRESS, 1]);
        message.extend(self.config.mac.0);
        self.send_icmpv6(from, to.unwrap_or_else(|| to_group(ALL_NODES)), message);
    }

    fn send_icmpv6(&mut self, from: Ipv6Addr, (mac, to): (Mac, Ipv6Addr), message: Vec<u8>) {
        let mut bytes = frame::header(mac, self.config.mac, frame::IPV6).to_vec();
        ip::emit_icmpv6(&mut bytes, from, to, message);
        self.answer(bytes);
    }
}

fn solicitation(target: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    message
}

fn to_group(group: Ipv6Addr) -> (Mac, Ipv6Addr) {
    (group_mac(group.into()), group)
}
