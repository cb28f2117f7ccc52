//! Several guests on one transport: which hardware address an address is of, and whether it may be used.
//!
//! An address with a lease is of the guest that has it. Any other one is of the guest that answers for it: the gateway
//! asks when it has a packet for it, and then the address stays with that guest as long as it answers
//! ([`Neighbours`](super::super::neighbours::Neighbours)).

use super::{Gateway, LINK_LOCAL};
use crate::link::Packet;
use crate::link::ethernet::carry::Waiting;
use crate::link::ethernet::frame::Mac;
use crate::link::ethernet::neighbours::{Action, Claim, Resolution};
use crate::link::ethernet::wire::arp::{self, REQUEST};
use crate::link::ethernet::wire::ip;
use crate::link::ethernet::wire::ndp::{
    NEIGHBOUR_SOLICITATION, SOURCE_ADDRESS, group_mac, solicited_node,
};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

/// A guest of an [`Edge`](super::Edge).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Guest {
    /// Its hardware address.
    pub mac: Mac,
    /// Its addresses: that of its lease, and those that it has answered for.
    pub addresses: Vec<IpAddr>,
    /// When its lease ends, unless it is renewed.
    pub lease_ends: Option<Instant>,
    /// The name that it has told the DHCP server: up to 63 letters, digits, hyphens, dots and underscores.
    pub name: Option<String>,
}

impl Guest {
    fn new(mac: Mac) -> Guest {
        Guest {
            mac,
            addresses: Vec::new(),
            lease_ends: None,
            name: None,
        }
    }
}

impl Gateway {
    /// The hardware address for a packet. While it is unknown the packet waits.
    pub(super) fn resolve(&mut self, packet: &Packet<'_>, now: Instant) -> Option<Mac> {
        let address = ip::destination(packet.header)?;
        if let Some(group) = self.group(address) {
            return Some(group);
        }
        if !self.is_on_link(address) {
            self.stats.unreachable += 1;
            return None;
        }
        if let Some(holder) = self.holder(address, now) {
            return Some(holder);
        }
        let waiting = || Waiting::new(packet);
        let len = packet.len();
        match self.neighbours.resolve(address, len, waiting, now) {
            Resolution::Resolved(mac) => return Some(mac),
            Resolution::Waiting | Resolution::Full => self.act(),
        }
        None
    }

    /// The hardware address of a multicast or broadcast address.
    fn group(&self, address: IpAddr) -> Option<Mac> {
        match address {
            IpAddr::V4(to) if to.is_broadcast() || to == self.config.gateway.broadcast() => {
                Some(Mac::BROADCAST)
            }
            to if to.is_multicast() => Some(group_mac(to)),
            _ => None,
        }
    }

    /// Whether an address may be that of a guest.
    pub(super) fn is_on_link(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.config.is_host(address),
            IpAddr::V6(address) => {
                let prefix = self.config.gateway_v6;
                let on_link = prefix.is_some_and(|prefix| prefix.contains(&address));
                (on_link || address.is_unicast_link_local()) && !self.is_own(address)
            }
        }
    }

    fn holder(&self, address: IpAddr, now: Instant) -> Option<Mac> {
        match address {
            IpAddr::V4(address) => self.leases.holder(address, now),
            IpAddr::V6(_) => None,
        }
    }

    /// Whether a guest may use the address, if there are several. If not it is counted, and the address's owner is asked
    /// whether it is still there.
    pub(super) fn may_use(&mut self, address: IpAddr, mac: Mac, now: Instant) -> bool {
        if !self.several() {
            return true;
        }
        let holder = self.holder(address, now);
        let owner = holder.or_else(|| self.neighbours.known(address));
        if self.is_on_link(address) && owner.is_none_or(|owner| owner == mac) {
            return true;
        }
        self.stats.spoofed += 1;
        if holder.is_none() {
            self.neighbours.doubt(address, now);
            self.act();
        }
        false
    }

    /// Whether another guest answers for an address that this one asks for without having a lease of it. That one is
    /// asked whether it is still there.
    pub(super) fn is_taken(&mut self, address: Ipv4Addr, mac: Mac, now: Instant) -> bool {
        let owner = self.neighbours.known(address.into());
        if owner.is_none_or(|owner| owner == mac) || self.leases.is_of(mac, address, now) {
            return false;
        }
        self.neighbours.doubt(address.into(), now);
        self.act();
        true
    }

    /// A message of a guest about an address that it may use.
    pub(super) fn claim(&mut self, address: IpAddr, mac: Mac, claim: Claim, now: Instant) {
        if self.several() {
            self.neighbours.claim(address, Some(mac), claim, now);
            self.act();
        }
    }

    /// Does what the table of neighbours asks for.
    pub(super) fn act(&mut self) {
        while let Some(action) = self.neighbours.next_action() {
            match action {
                Action::Solicit { address, at } => self.solicit(address, at),
                Action::Send { to, packet } => self.released.push_back((to, packet)),
                Action::Failed { packets, .. } => {
                    self.stats.unanswered += u64::try_from(packets.len()).unwrap_or(u64::MAX);
                    // No more than may wait.
                    self.failed.extend(packets);
                }
                Action::NoRouter { .. } => {}
            }
        }
    }

    /// Asks all guests for an address, or the one that has it. The table of neighbours bounds how often, so no answer to
    /// a flood takes its place.
    fn solicit(&mut self, address: IpAddr, at: Option<Mac>) {
        self.stats.solicitations += 1;
        let question = match address {
            IpAddr::V4(address) => {
                let packet = arp::Packet {
                    operation: REQUEST,
                    sender: (self.config.mac, self.config.gateway.addr()),
                    target: (Mac([0; 6]), address),
                };
                self.arp_frame(at.unwrap_or(Mac::BROADCAST), packet)
            }
            IpAddr::V6(address) => self.solicitation(address, at),
        };
        self.answers.push(question);
    }

    fn solicitation(&self, target: Ipv6Addr, at: Option<Mac>) -> Vec<u8> {
        let prefix = self.config.gateway_v6;
        let from = prefix.filter(|prefix| prefix.contains(&target));
        let from = from.map_or(LINK_LOCAL, |prefix| prefix.addr());
        let group = solicited_node(target);
        let to = match at {
            Some(mac) => (mac, target),
            None => (group_mac(group.into()), group),
        };
        let mut message = vec![NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        message.extend(target.octets());
        message.extend([SOURCE_ADDRESS, 1]);
        message.extend(self.config.mac.0);
        self.icmpv6_frame(from, to, message)
    }

    /// A guest has got an address of the pool: packets that wait for it are sent there.
    pub(super) fn leased(&mut self, address: Ipv4Addr, mac: Mac, now: Instant) {
        let claim = Claim {
            solicited: true,
            overrides: true,
            ..Claim::default()
        };
        self.claim(address.into(), mac, claim, now);
    }

    /// All guests, by hardware address.
    pub(super) fn guests(&self, now: Instant) -> Vec<Guest> {
        let mut all: BTreeMap<Mac, Guest> = BTreeMap::new();
        if let Some(mac) = self.guest {
            all.insert(mac, Guest::new(mac));
        }
        for lease in self.leases.list(now) {
            let guest = all
                .entry(lease.mac)
                .or_insert_with_key(|mac| Guest::new(*mac));
            guest.addresses.push(lease.address.into());
            guest.lease_ends = Some(lease.until);
            guest.name = lease.name;
        }
        for neighbour in self.neighbours.list(now) {
            let Some(mac) = neighbour.mac else { continue };
            let guest = all.entry(mac).or_insert_with_key(|mac| Guest::new(*mac));
            if !guest.addresses.contains(&neighbour.address)
                && self.holder(neighbour.address, now).is_none()
            {
                guest.addresses.push(neighbour.address);
            }
        }
        all.into_values().collect()
    }
}
