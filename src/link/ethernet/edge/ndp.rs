//! Neighbour discovery and router advertisements (RFC 4861, 4862, 8106).

use super::{Gateway, LINK_LOCAL, ip};
use crate::link::ethernet::frame::{self, Mac};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

pub(super) const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
pub(super) const REDIRECT: u8 = 137;

const SOURCE_ADDRESS: u8 = 1;
const TARGET_ADDRESS: u8 = 2;

const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

pub(super) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Lifetime of the router and its name servers, in seconds.
const LIFETIME: u16 = 1800;
/// Time between advertisements that were not solicited (RFC 4861, MaxRtrAdvInterval).
pub(super) const ADVERTISE_EVERY: Duration = Duration::from_secs(600);
/// Least time between advertisements to all nodes (RFC 4861, MIN_DELAY_BETWEEN_RAS).
pub(super) const LEAST_DELAY: Duration = Duration::from_secs(3);
/// Lifetimes of the prefix: for use, and for new connections, in seconds.
const VALID: u32 = 86_400;
const PREFERRED: u32 = 14_400;

/// The group of an address that is solicited (RFC 4291 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let low = address.to_bits() & 0x00ff_ffff;
    Ipv6Addr::from_bits(0xff02_0000_0000_0000_0000_0001_ff00_0000 | low)
}

/// Options, or nothing if one is empty or cut off (RFC 4861 4.6).
fn options(mut bytes: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut options = Vec::new();
    while let [kind, units, ..] = *bytes {
        let (option, rest) = bytes.split_at_checked(usize::from(units) * 8)?;
        options.push((kind, option.get(2..)?));
        bytes = rest;
    }
    bytes.is_empty().then_some(options)
}

/// A message whose checksum and hop limit are right.
struct Message<'a> {
    kind: u8,
    from: Ipv6Addr,
    to: Ipv6Addr,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// `packet` has a whole header and nothing after its payload.
    fn parse(packet: &'a [u8]) -> Option<Message<'a>> {
        let address = |at: usize| {
            packet[at..at + 16]
                .try_into()
                .map(Ipv6Addr::from_octets)
                .ok()
        };
        let body = &packet[ip::IPV6_HEADER..];
        // A router decrements the hop limit, so the sender is on this link. The code is zero.
        if body.len() < 8 || packet[7] != 255 || body[1] != 0 || !ip::icmpv6_holds(packet) {
            return None;
        }
        Some(Message {
            kind: body[0],
            from: address(8)?,
            to: address(24)?,
            body,
        })
    }

    /// The address that is solicited or advertised, if the message is valid (RFC 4861 7.1).
    fn target(&self) -> Option<Ipv6Addr> {
        let target = self
            .body
            .get(8..24)?
            .try_into()
            .map(Ipv6Addr::from_octets)
            .ok()?;
        let options = options(&self.body[24..])?;
        let names_source = options.iter().any(|option| option.0 == SOURCE_ADDRESS);
        let solicited = self.kind == NEIGHBOUR_ADVERTISEMENT && self.body[4] & SOLICITED != 0;
        let valid = match self.from.is_unspecified() {
            true => {
                self.kind == NEIGHBOUR_SOLICITATION
                    && self.to == solicited_node(target)
                    && !names_source
            }
            false => !(self.to.is_multicast() && solicited),
        };
        (valid && !target.is_multicast()).then_some(target)
    }
}

impl Gateway {
    /// A message of neighbour discovery, in a packet whose lengths were checked.
    pub(super) fn discovery(&mut self, packet: &[u8], source: Mac, now: Instant) {
        let handled = Message::parse(packet).and_then(|message| match message.kind {
            NEIGHBOUR_SOLICITATION => message
                .target()
                .map(|target| self.solicited(&message, target, source)),
            NEIGHBOUR_ADVERTISEMENT => message.target().map(|target| self.advertised(target, now)),
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

    fn is_own(&self, address: Ipv6Addr) -> bool {
        let own = self.config.gateway_v6.map(|gateway| gateway.addr());
        own.is_some() && (own == Some(address) || address == LINK_LOCAL)
    }

    /// Answers for own addresses, also a host that detects duplicates, whose source is unspecified.
    fn solicited(&mut self, message: &Message<'_>, target: Ipv6Addr, source: Mac) {
        if !self.is_own(target) {
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
    fn advertised(&mut self, target: Ipv6Addr, now: Instant) {
        if !self.is_own(target) {
            self.stats.ignored += 1;
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

    /// Sends the advertisement that is due.
    pub(super) fn tick(&mut self, now: Instant) {
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
        message.extend([5, 1, 0, 0]);
        message.extend(mtu.to_be_bytes());
        // On-link, and for addresses of the host's own.
        message.extend([3, 4, gateway.prefix_len(), 0xc0]);
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
            message.extend([25, units, 0, 0]);
            message.extend(u32::from(LIFETIME).to_be_bytes());
            message.extend(servers.concat());
        }
        self.send_icmpv6(LINK_LOCAL, to, message);
    }

    fn send_icmpv6(&mut self, from: Ipv6Addr, to: Option<(Mac, Ipv6Addr)>, message: Vec<u8>) {
        let (mac, to) = to.unwrap_or((Mac([0x33, 0x33, 0, 0, 0, 1]), ALL_NODES));
        let mut bytes = frame::header(mac, self.config.mac, frame::IPV6).to_vec();
        ip::emit_icmpv6(&mut bytes, from, to, message);
        self.answer(bytes);
    }
}
