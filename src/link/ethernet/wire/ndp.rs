//! Messages of neighbour discovery (RFC 4191, 4861, 4862, 8106).

use super::ip;
use crate::link::ethernet::frame::Mac;
use std::net::{IpAddr, Ipv6Addr};

pub(in crate::link::ethernet) const ROUTER_SOLICITATION: u8 = 133;
pub(in crate::link::ethernet) const ROUTER_ADVERTISEMENT: u8 = 134;
pub(in crate::link::ethernet) const NEIGHBOUR_SOLICITATION: u8 = 135;
pub(in crate::link::ethernet) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
pub(in crate::link::ethernet) const REDIRECT: u8 = 137;

pub(in crate::link::ethernet) const SOURCE_ADDRESS: u8 = 1;
pub(in crate::link::ethernet) const TARGET_ADDRESS: u8 = 2;
pub(in crate::link::ethernet) const PREFIX: u8 = 3;
pub(in crate::link::ethernet) const MTU: u8 = 5;
pub(in crate::link::ethernet) const ROUTE: u8 = 24;
pub(in crate::link::ethernet) const DNS: u8 = 25;

pub(in crate::link::ethernet) const ROUTER: u8 = 0x80;
pub(in crate::link::ethernet) const SOLICITED: u8 = 0x40;
pub(in crate::link::ethernet) const OVERRIDE: u8 = 0x20;

/// Flags of a prefix.
pub(in crate::link::ethernet) const ON_LINK: u8 = 0x80;
pub(in crate::link::ethernet) const AUTONOMOUS: u8 = 0x40;

pub(in crate::link::ethernet) const ALL_NODES: Ipv6Addr =
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
pub(in crate::link::ethernet) const ALL_ROUTERS: Ipv6Addr =
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// The group of an address that is solicited (RFC 4291 2.7.1).
pub(in crate::link::ethernet) fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let low = address.to_bits() & 0x00ff_ffff;
    Ipv6Addr::from_bits(0xff02_0000_0000_0000_0000_0001_ff00_0000 | low)
}

/// The same for an address of any family; IPv4 has none.
pub(in crate::link::ethernet) fn solicited_group(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V6(address) => Some(solicited_node(address).into()),
        IpAddr::V4(_) => None,
    }
}

/// The hardware address of a multicast address (RFC 1112 6.4, RFC 2464 7).
pub(in crate::link::ethernet) fn group_mac(group: IpAddr) -> Mac {
    match group {
        IpAddr::V4(group) => {
            let [_, a, b, c] = group.octets();
            Mac([1, 0, 0x5e, a & 0x7f, b, c])
        }
        IpAddr::V6(group) => {
            let [.., a, b, c, d] = group.octets();
            Mac([0x33, 0x33, a, b, c, d])
        }
    }
}

/// Options, or nothing if one is empty or cut off (RFC 4861 4.6).
pub(in crate::link::ethernet) fn options(mut bytes: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut options = Vec::new();
    while let [kind, units, ..] = *bytes {
        let (option, rest) = bytes.split_at_checked(usize::from(units) * 8)?;
        options.push((kind, option.get(2..)?));
        bytes = rest;
    }
    bytes.is_empty().then_some(options)
}

/// A router solicitation, which names the hardware address unless its source is unspecified (RFC 4861 4.1).
pub(in crate::link::ethernet) fn router_solicitation(from: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let mut message = vec![ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    if !from.is_unspecified() {
        message.extend([SOURCE_ADDRESS, 1]);
        message.extend(mac.0);
    }
    let mut packet = Vec::new();
    ip::emit_icmpv6(&mut packet, from, ALL_ROUTERS, message);
    packet
}

/// A router advertisement (RFC 4861 4.2, 4191 2.2). Times are in milliseconds.
pub(in crate::link::ethernet) struct Advertisement<'a> {
    pub(in crate::link::ethernet) hop_limit: u8,
    pub(in crate::link::ethernet) flags: u8,
    /// In seconds.
    pub(in crate::link::ethernet) lifetime: u16,
    pub(in crate::link::ethernet) reachable: u32,
    pub(in crate::link::ethernet) retransmit: u32,
    pub(in crate::link::ethernet) options: Vec<(u8, &'a [u8])>,
}

/// A message whose checksum and hop limit are right.
pub(in crate::link::ethernet) struct Message<'a> {
    pub(in crate::link::ethernet) kind: u8,
    pub(in crate::link::ethernet) from: Ipv6Addr,
    pub(in crate::link::ethernet) to: Ipv6Addr,
    pub(in crate::link::ethernet) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// `packet` has a whole header and nothing after its payload.
    pub(in crate::link::ethernet) fn parse(packet: &'a [u8]) -> Option<Message<'a>> {
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

    /// The router advertisement, if the message is a valid one (RFC 4861 6.1.2).
    pub(in crate::link::ethernet) fn advertisement(&self) -> Option<Advertisement<'a>> {
        let (fixed, rest) = self.body.split_first_chunk::<16>()?;
        if self.kind != ROUTER_ADVERTISEMENT || !self.from.is_unicast_link_local() {
            return None;
        }
        let [_, _, _, _, hop_limit, flags, high, low, times @ ..] = fixed;
        let (times, _) = times.as_chunks::<4>();
        Some(Advertisement {
            hop_limit: *hop_limit,
            flags: *flags,
            lifetime: u16::from_be_bytes([*high, *low]),
            reachable: u32::from_be_bytes(times[0]),
            retransmit: u32::from_be_bytes(times[1]),
            options: options(rest)?,
        })
    }

    /// The address that is solicited or advertised, if the message is valid (RFC 4861 7.1).
    pub(in crate::link::ethernet) fn target(&self) -> Option<Ipv6Addr> {
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

    /// The hardware address in an option of this kind, behind fixed fields of so many bytes.
    pub(in crate::link::ethernet) fn hardware_address(
        &self,
        fixed: usize,
        kind: u8,
    ) -> Option<&'a [u8]> {
        let options = options(self.body.get(fixed..)?)?;
        let option = options.into_iter().find(|option| option.0 == kind);
        option.map(|option| option.1)
    }
}
