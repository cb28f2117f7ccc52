//! Neighbour discovery and router advertisements (RFC 4861, 4862, 8106).

use super::{Gateway, LINK_LOCAL};
use crate::link::ethernet::frame::{self, Mac};
use crate::link::ethernet::neighbours::Claim;
use crate::link::ethernet::wire::ip;
use crate::link::ethernet::wire::ndp::*;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Lifetime of the router and its name servers, in seconds.
const LIFETIME: u16 = 1800;
/// Time between advertisements that were not solicited (RFC 4861, MaxRtrAdvInterval).
pub(super) const ADVERTISE_EVERY: Duration = Duration::from_secs(600);
/// Least time between advertisements to all nodes (RFC 4861, MIN_DELAY_BETWEEN_RAS).
pub(super) const LEAST_DELAY: Duration = Duration::from_secs(3);
/// Lifetimes of the prefix: for use, and for new connections, in seconds.
const VALID: u32 = 86_400;
const PREFERRED: u32 = 14_400;

impl Gateway {
    /// A message of neighbour discovery, in a packet whose lengths were checked.
    pub(super) fn discovery(&mut self, packet: &[u8], source: Mac, now: Instant) {
        let handled = Message::parse(packet).and_then(|message| match message.kind {
            NEIGHBOUR_SOLICITATION => message
                .target()
                .map(|target| self.solicited(&message, target, source, now)),
            NEIGHBOUR_ADVERTISEMENT => message
                .target()
                .map(|target| self.advertised(&message, target, source, now)),
            ROUTER_SOLICITATION => self.router_solicited(&message, source, now),
            // Another router's, on the guest's side.
            _ => {
                self.stats.ignored += 1;
                Some(())
            }
        });
        if handled.is_none() {
            self.stats.malformed += 1;
        }
    }

    /// Notes a guest that has sent a message about one of its addresses. `false` if it may not use the address, or
    /// names another hardware address than that of its frame, which is counted.
    fn hears(
        &mut self,
        address: Ipv6Addr,
        named: Option<&[u8]>,
        from: (Mac, Claim),
        now: Instant,
    ) -> bool {
        let (source, claim) = from;
        if !self.several() {
            return true;
        }
        if named.is_some_and(|named| named != source.0) {
            self.stats.spoofed += 1;
            return false;
        }
        let may = self.may_use(address.into(), source, now);
        if may {
            self.claim(address.into(), source, claim, now);
        }
        may
    }

    pub(super) fn is_own(&self, address: Ipv6Addr) -> bool {
        let own = self.config.gateway_v6.map(|gateway| gateway.addr());
        own.is_some() && (own == Some(address) || address == LINK_LOCAL)
    }

    /// Answers for own addresses, also a host that detects duplicates, whose source is unspecified.
    fn solicited(&mut self, message: &Message<'_>, target: Ipv6Addr, source: Mac, now: Instant) {
        let asked = self.is_own(target);
        let named = message.hardware_address(24, SOURCE_ADDRESS);
        let claim = (source, Claim::request(asked));
        if !message.from.is_unspecified() && !self.hears(message.from, named, claim, now) {
            return;
        }
        if !asked {
            self.stats.ignored += 1;
            return;
        }
        self.stats.neighbours_answered += 1;
        match message.from.is_unspecified() {
            true => self.advertise_neighbour(target, None),
            false => self.advertise_neighbour(target, Some((source, message.from))),
        }
    }

    /// Another host advertises an address. An own one is defended.
    fn advertised(&mut self, message: &Message<'_>, target: Ipv6Addr, source: Mac, now: Instant) {
        if !self.is_own(target) {
            let claim = Claim {
                solicited: message.body[4] & SOLICITED != 0,
                overrides: message.body[4] & OVERRIDE != 0,
                ..Claim::default()
            };
            let named = message.hardware_address(24, TARGET_ADDRESS);
            let heard = self.hears(target, named, (source, claim), now);
            self.stats.ignored += u64::from(heard);
            return;
        }
        self.stats.conflicts += 1;
        if self.may_defend(now) {
            self.advertise_neighbour(target, None);
        }
    }

    /// To one host that has solicited it, or to all.
    fn advertise_neighbour(&mut self, target: Ipv6Addr, to: Option<(Mac, Ipv6Addr)>) {
        let flags = ROUTER | OVERRIDE | if to.is_some() { SOLICITED } else { 0 };
        let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
        message.extend(target.octets());
        message.extend([TARGET_ADDRESS, 1]);
        message.extend(self.config.mac.0);
        self.send_icmpv6(target, to, message);
    }

    fn router_solicited(&mut self, message: &Message<'_>, source: Mac, now: Instant) -> Option<()> {
        let options = options(&message.body[8..])?;
        let names_source = options.iter().any(|option| option.0 == SOURCE_ADDRESS);
        if message.from.is_unspecified() && names_source {
            return None;
        }
        let named = message.hardware_address(8, SOURCE_ADDRESS);
        let claim = (source, Claim::request(true));
        if !message.from.is_unspecified() && !self.hears(message.from, named, claim, now) {
            return Some(());
        }
        if self.config.gateway_v6.is_none() {
            self.stats.ignored += 1;
        } else if message.from.is_unspecified() {
            // One answer to all, not too soon after the last one.
            let earliest = self.advertised.map_or(now, |at| at + LEAST_DELAY);
            let next = self
                .next_advertisement
                .map_or(earliest, |at| at.min(earliest));
            self.next_advertisement = Some(next);
            self.tick(now);
        } else {
            self.advertise_router(Some((source, message.from)));
            self.next_advertisement.get_or_insert(now + ADVERTISE_EVERY);
        }
        Some(())
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, now: Instant) {
        self.neighbours.poll(now);
        self.act();
        if self.next_advertisement.is_some_and(|at| at <= now) {
            self.advertised = Some(now);
            self.next_advertisement = Some(now + ADVERTISE_EVERY);
            self.advertise_router(None);
        }
    }

    /// Prefix, MTU and name servers, to one host or to all.
    fn advertise_router(&mut self, to: Option<(Mac, Ipv6Addr)>) {
        let Some(gateway) = self.config.gateway_v6 else {
            return;
        };
        self.stats.advertisements += 1;
        let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 64, 0];
        message.extend(LIFETIME.to_be_bytes());
        message.extend([0; 8]);
        message.extend([SOURCE_ADDRESS, 1]);
        message.extend(self.config.mac.0);
        let mtu = u32::try_from(self.config.mtu).expect("invariant: the MTU was checked");
        message.extend([MTU, 1, 0, 0]);
        message.extend(mtu.to_be_bytes());
        // On-link, and for addresses of the host's own.
        message.extend([PREFIX, 4, gateway.prefix_len(), ON_LINK | AUTONOMOUS]);
        message.extend(VALID.to_be_bytes());
        message.extend(PREFERRED.to_be_bytes());
        message.extend([0; 4]);
        message.extend(gateway.network().octets());
        let servers: Vec<_> = self
            .config
            .dns
            .iter()
            .filter_map(|server| match server {
                IpAddr::V6(server) => Some(server.octets()),
                IpAddr::V4(_) => None,
            })
            .collect();
        if !servers.is_empty() {
            let units =
                u8::try_from(1 + 2 * servers.len()).expect("invariant: there are few name servers");
            message.extend([DNS, units, 0, 0]);
            message.extend(u32::from(LIFETIME).to_be_bytes());
            message.extend(servers.concat());
        }
        self.send_icmpv6(LINK_LOCAL, to, message);
    }

    fn send_icmpv6(&mut self, from: Ipv6Addr, to: Option<(Mac, Ipv6Addr)>, message: Vec<u8>) {
        let to = to.unwrap_or((group_mac(ALL_NODES.into()), ALL_NODES));
        let bytes = self.icmpv6_frame(from, to, message);
        self.answer(bytes);
    }

    pub(super) fn icmpv6_frame(
        &self,
        from: Ipv6Addr,
        (mac, to): (Mac, Ipv6Addr),
        message: Vec<u8>,
    ) -> Vec<u8> {
        let mut bytes = frame::header(mac, self.config.mac, frame::IPV6).to_vec();
        ip::emit_icmpv6(&mut bytes, from, to, message);
        bytes
    }
}
