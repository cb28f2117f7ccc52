//! The host's own addresses: probed, announced, defended (RFC 5227 for IPv4, RFC 4862 5.4 and 7527 for IPv6).
//!
//! | phase | sends | ends |
//! |---|---|---|
//! | `Probing` | IPv4: three probes 1 to 2 s apart, after up to 1 s; IPv6: one solicitation after up to 1 s | 2 s (IPv6: 1 s) after the last one: `InUse`; when another host has the address: `Conflict` |
//! | `InUse` | two announcements, 2 s apart (IPv6: one) | when another host insists on the address: `Conflict` |
//! | `Conflict` | | `Probing` after a minute, if the program has configured the address; others are removed |

use super::Station;
use super::config::means_all;
use crate::link::LinkEvent;
use crate::link::ethernet::neighbours::RETRANS_TIMER;
use crate::link::ethernet::wire::ndp::solicited_group;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

/// RFC 5227 1.1.
const PROBE_WAIT: Duration = Duration::from_secs(1);
const PROBES: u8 = 3;
const PROBE_MIN: Duration = Duration::from_secs(1);
const PROBE_SPREAD: Duration = Duration::from_secs(1);
const ANNOUNCE_WAIT: Duration = Duration::from_secs(2);
const ANNOUNCEMENTS: u8 = 2;
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(2);
pub(super) const DEFEND_INTERVAL: Duration = Duration::from_secs(10);
/// A configured address that another host has is probed again after this time (RFC 5227, RATE_LIMIT_INTERVAL).
pub(super) const PROBE_AGAIN: Duration = Duration::from_secs(60);
/// Solicitations of an IPv6 address, and further ones if the link has looped one back (RFC 7527 4.1).
const SOLICITATIONS: u8 = 1;
const LOOPED_SOLICITATIONS: u8 = 4;

/// Where an address is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// From the program, or made of the hardware address for the link.
    Configured,
    Dhcp,
    Slaac,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Probing {
        sent: u8,
        next: Instant,
    },
    InUse {
        announced: u8,
        next: Option<Instant>,
    },
    Conflict {
        until: Instant,
    },
}

/// An address of the host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Own {
    pub(super) net: IpNet,
    pub(super) origin: Origin,
    pub(super) phase: Phase,
    /// For connections that exist (RFC 4862 5.5.4).
    is_deprecated: bool,
    /// Time of the last defence.
    defended: Option<Instant>,
    /// The number in its last solicitation, by which one that was looped back is recognised.
    nonce: [u8; 6],
    /// One was looped back.
    looped: bool,
}

/// State of an address, see [`HostAddress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AddressState {
    /// The host asks whether another one has it. It is not used yet.
    Probing,
    /// It is used.
    InUse,
    /// Another host has it. It is not used.
    Conflict,
}

/// An address of a [`Host`](super::Host).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostAddress {
    /// The address, and the length of its network's prefix.
    pub address: IpNet,
    /// Its state.
    pub state: AddressState,
    /// Whether a router has declared it deprecated: it is used for new connections only without another one (RFC 4862
    /// 5.5.4).
    pub is_deprecated: bool,
}

impl Own {
    pub(super) fn is_in_use(&self) -> bool {
        matches!(self.phase, Phase::InUse { .. })
    }

    fn due(&self) -> Option<Instant> {
        match self.phase {
            Phase::Probing { next, .. } => Some(next),
            Phase::InUse { next, .. } => next,
            Phase::Conflict { until } => Some(until),
        }
    }

    fn deprecation(&self) -> LinkEvent {
        LinkEvent::AddressDeprecated {
            address: self.net.addr(),
            deprecated: self.is_deprecated,
        }
    }

    pub(super) fn describe(&self) -> HostAddress {
        HostAddress {
            address: self.net,
            state: match self.phase {
                Phase::Probing { .. } => AddressState::Probing,
                Phase::InUse { .. } => AddressState::InUse,
                Phase::Conflict { .. } => AddressState::Conflict,
            },
            is_deprecated: self.is_deprecated,
        }
    }
}

impl Station {
    /// Begins to use an address, after probing it.
    pub(super) fn add_own(&mut self, net: IpNet, origin: Origin, now: Instant) {
        let mut own = Own {
            net,
            origin,
            phase: self.probing(now),
            is_deprecated: false,
            defended: None,
            nonce: [0; 6],
            looped: false,
        };
        if !self.config.probe {
            self.use_own(&mut own, now);
        }
        if let Some(group) = solicited_group(net.addr()) {
            self.groups.join(group, now);
        }
        self.addresses.push(own);
        self.addresses_changed(now);
    }

    fn probing(&mut self, now: Instant) -> Phase {
        let next = now + self.random.below(PROBE_WAIT);
        Phase::Probing { sent: 0, next }
    }

    /// An address that is not the host's any more.
    pub(super) fn remove_own(&mut self, address: IpAddr, now: Instant) {
        let Some(at) = self
            .addresses
            .iter()
            .position(|own| own.net.addr() == address)
        else {
            return;
        };
        if self.addresses.remove(at).is_in_use() {
            self.events.push(LinkEvent::AddressRemoved(address));
        }
        if let Some(group) = solicited_group(address) {
            self.groups.leave(group, now);
        }
        self.addresses_changed(now);
    }

    fn addresses_changed(&mut self, now: Instant) {
        self.set_routes();
        self.set_group_sources(now);
    }

    pub(super) fn own(&self, address: impl Into<IpAddr>) -> Option<&Own> {
        let address = address.into();
        self.addresses.iter().find(|own| own.net.addr() == address)
    }

    pub(super) fn is_in_use(&self, address: impl Into<IpAddr>) -> bool {
        self.own(address).is_some_and(Own::is_in_use)
    }

    /// Whether it is the broadcast address of one of the host's networks.
    pub(super) fn means_all(&self, address: Ipv4Addr) -> bool {
        let in_use = self.addresses.iter().filter(|own| own.is_in_use());
        let mut in_use = in_use.map(|own| &own.net);
        address.is_broadcast() || in_use.any(|net| means_all(net, address.into()))
    }

    /// The own address from which a neighbour is asked for: of its network, if there is one.
    pub(super) fn source_for(&self, neighbour: IpAddr) -> Option<IpAddr> {
        let is_alike =
            |own: &&Own| own.is_in_use() && own.net.addr().is_ipv4() == neighbour.is_ipv4();
        let alike = self.addresses.iter().filter(is_alike);
        let mut of_network = alike.clone().filter(|own| own.net.contains(&neighbour));
        let source = of_network.next().or_else(|| alike.clone().next());
        source.map(|own| own.net.addr())
    }

    /// The link-local address, if it is in use.
    pub(super) fn link_local(&self) -> Option<Ipv6Addr> {
        let in_use = self.addresses.iter().filter(|own| own.is_in_use());
        let mut addresses = in_use.filter_map(|own| match own.net.addr() {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        });
        addresses.find(Ipv6Addr::is_unicast_link_local)
    }

    pub(super) fn addresses_deadline(&self) -> Option<Instant> {
        self.addresses.iter().filter_map(Own::due).min()
    }

    /// Probes and announcements that are due.
    pub(super) fn poll_addresses(&mut self, now: Instant) {
        if self.addresses_deadline().is_none_or(|at| at > now) {
            return;
        }
        let mut addresses = std::mem::take(&mut self.addresses);
        let mut changed = false;
        for own in &mut addresses {
            let was = own.is_in_use();
            while own.due().is_some_and(|at| at <= now) {
                self.turn(own, now);
            }
            changed |= was != own.is_in_use();
        }
        self.addresses = addresses;
        if changed {
            self.addresses_changed(now);
        }
    }

    fn turn(&mut self, own: &mut Own, now: Instant) {
        match own.phase {
            Phase::Probing { sent, .. } => {
                let all = match own.net.addr() {
                    IpAddr::V4(_) => PROBES,
                    IpAddr::V6(_) if own.looped => LOOPED_SOLICITATIONS,
                    IpAddr::V6(_) => SOLICITATIONS,
                };
                if sent >= all {
                    return self.use_own(own, now);
                }
                own.looped = false;
                let wait = self.probe(own, sent + 1);
                own.phase = Phase::Probing {
                    sent: sent + 1,
                    next: now + wait,
                };
            }
            Phase::InUse { announced, .. } => self.announce(own, announced, now),
            Phase::Conflict { .. } => own.phase = self.probing(now),
        }
    }

    /// Asks whether another host has the address. Returns the time until the next step.
    fn probe(&mut self, own: &mut Own, sent: u8) -> Duration {
        match own.net.addr() {
            IpAddr::V4(address) => {
                self.send_arp_request(Ipv4Addr::UNSPECIFIED, address);
                match sent {
                    PROBES => ANNOUNCE_WAIT,
                    _ => PROBE_MIN + self.random.below(PROBE_SPREAD),
                }
            }
            IpAddr::V6(address) => {
                let [_, _, nonce @ ..] = self.random.next().to_be_bytes();
                own.nonce = nonce;
                self.send_probe(address, nonce);
                RETRANS_TIMER
            }
        }
    }

    /// No other host has the address.
    fn use_own(&mut self, own: &mut Own, now: Instant) {
        own.phase = Phase::InUse {
            announced: 0,
            next: Some(now),
        };
        self.events.push(LinkEvent::AddressAdded(own.net));
        if own.is_deprecated {
            self.events.push(own.deprecation());
        }
    }

    fn announce(&mut self, own: &mut Own, announced: u8, now: Instant) {
        let all = match own.net.addr() {
            IpAddr::V4(address) => {
                self.send_arp_request(address, address);
                ANNOUNCEMENTS
            }
            IpAddr::V6(address) => {
                self.send_announcement(address);
                1
            }
        };
        let announced = announced + 1;
        own.phase = Phase::InUse {
            announced,
            next: (announced < all).then_some(now + ANNOUNCE_INTERVAL),
        };
    }

    /// Router advertisements deprecate an address, or do not any more.
    pub(super) fn set_deprecated(&mut self, address: IpAddr, deprecated: bool) {
        let mut addresses = self.addresses.iter_mut();
        let Some(own) = addresses.find(|own| own.net.addr() == address) else {
            return;
        };
        let changed = std::mem::replace(&mut own.is_deprecated, deprecated) != deprecated;
        if changed && own.is_in_use() {
            self.events.push(own.deprecation());
        }
    }

    /// Announces the addresses in use once more.
    pub(super) fn announce_again(&mut self, now: Instant) {
        for own in &mut self.addresses {
            if let Phase::InUse { announced, next } = &mut own.phase {
                (*announced, *next) = (0, Some(now));
            }
        }
    }

    /// Another host uses or claims an address of ours. It is defended, or given up.
    pub(super) fn conflict(&mut self, address: impl Into<IpAddr>, now: Instant) {
        let address = address.into();
        let Some(at) = self
            .addresses
            .iter()
            .position(|own| own.net.addr() == address)
        else {
            return;
        };
        let keep = self.config.keep;
        let own = &mut self.addresses[at];
        if matches!(own.phase, Phase::Conflict { .. }) {
            return;
        }
        self.stats.conflicts += 1;
        if own.is_in_use() {
            let recent = |at| now.saturating_duration_since(at) < DEFEND_INTERVAL;
            match own.defended.is_some_and(recent) {
                false => {
                    own.defended = Some(now);
                    return self.defend(address);
                }
                // No address of IPv6 is given up: RFC 4862 checks them before use only.
                true if keep || address.is_ipv6() => return,
                true => {}
            }
        }
        self.give_up(at, now);
    }

    fn defend(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.send_arp_request(address, address),
            IpAddr::V6(address) => self.send_defence(address),
        }
    }

    fn give_up(&mut self, at: usize, now: Instant) {
        let own = &mut self.addresses[at];
        let address = own.net.addr();
        let until = now + PROBE_AGAIN;
        let was_in_use = own.is_in_use();
        own.phase = Phase::Conflict { until };
        let origin = own.origin;
        if was_in_use {
            self.events.push(LinkEvent::AddressRemoved(address));
        }
        match (origin, address) {
            (Origin::Dhcp, _) => self.decline(now),
            (Origin::Slaac, IpAddr::V6(address)) => self.duplicate(address, now),
            _ => self.addresses_changed(now),
        }
    }

    /// A solicitation of an address by a host that has none, maybe our own that the link has looped back.
    pub(super) fn probed(&mut self, address: Ipv6Addr, nonce: Option<[u8; 6]>, now: Instant) {
        let mut addresses = self.addresses.iter_mut();
        let Some(own) = addresses.find(|own| own.net.addr() == IpAddr::V6(address)) else {
            return;
        };
        if matches!(own.phase, Phase::Probing { sent: 1.., .. }) && nonce == Some(own.nonce) {
            own.looped = true;
            self.stats.looped += 1;
            return;
        }
        self.conflict(address, now);
    }
}
