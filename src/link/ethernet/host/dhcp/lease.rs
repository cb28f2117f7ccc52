//! What a server gives.

use crate::link::ethernet::host::config::{is_address, is_host};
use crate::link::ethernet::wire::dhcp::*;
use crate::random::Random;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Maximum number of routes, and of name servers.
const MAX_ROUTES: usize = 32;
const MAX_DNS: usize = 8;
/// A smaller MTU is ignored: any host takes packets of 576 bytes (RFC 1122 3.3.3).
const LEAST_MTU: u16 = 576;
const INFINITE: u32 = u32::MAX;

/// An address for some time, and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::link::ethernet::host) struct Lease {
    /// The address, and the length of its network's prefix.
    pub(in crate::link::ethernet::host) address: Ipv4Net,
    /// Routes by a gateway, or to hosts on the link. Of several to the same network the first is preferred.
    pub(in crate::link::ethernet::host) routes: Vec<(Ipv4Net, Option<Ipv4Addr>)>,
    pub(in crate::link::ethernet::host) dns: Vec<Ipv4Addr>,
    /// At least 576 bytes.
    pub(in crate::link::ethernet::host) mtu: Option<u16>,
    pub(in crate::link::ethernet::host) server: Ipv4Addr,
    /// `None`: never.
    pub(in crate::link::ethernet::host) expires: Option<Instant>,
}

/// Times of a lease that ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) length: Duration,
    /// T1.
    pub(super) renew: Instant,
    /// T2.
    pub(super) rebind: Instant,
    pub(super) expire: Instant,
}

impl Times {
    /// T1 and T2 up to 1/32 of the time before them earlier, so that clients that began together do not all renew
    /// together (RFC 2131 4.4.5).
    pub(super) fn earlier(self, random: &mut Random) -> Times {
        let early = |before: Duration, random: &mut Random| random.below(before / 32);
        let to_rebind = self.rebind.saturating_duration_since(self.renew);
        let to_renew = self.length - self.expire.saturating_duration_since(self.renew);
        Times {
            renew: self.renew - early(to_renew, random),
            rebind: self.rebind - early(to_rebind, random),
            ..self
        }
    }
}

impl Lease {
    /// The parts of an offer or an ACK, if it gives an address of a host for some time. A time beyond what the clock can count
    /// is one without end.
    pub(super) fn parse(message: &Message<'_>, now: Instant) -> Option<(Lease, Option<Times>)> {
        let address = message.yiaddr()?;
        let seconds = message.number(LEASE).filter(|seconds| *seconds > 0)?;
        let prefix = prefix_len(message.number(MASK), address);
        let address = Ipv4Net::new(address, prefix).ok()?;
        if !is_address(&address.into()) {
            return None;
        }
        let times = times(seconds, message, now);
        let mtu = message.option(MTU).and_then(|value| value.try_into().ok());
        let lease = Lease {
            address,
            routes: routes(message),
            dns: hosts(message, DNS).take(MAX_DNS).collect(),
            mtu: mtu.map(u16::from_be_bytes).filter(|mtu| *mtu >= LEAST_MTU),
            server: message.server?,
            expires: times.map(|times| times.expire),
        };
        Some((lease, times))
    }
}

fn times(seconds: u32, message: &Message<'_>, now: Instant) -> Option<Times> {
    let length = Duration::from_secs(seconds.into());
    let option = |kind| {
        let seconds = message.number(kind)?;
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    };
    let (renew, rebind) = (length / 2, length * 7 / 8);
    let (renew, rebind) = match (option(RENEW), option(REBIND)) {
        (Some(t1), Some(t2)) if t1 <= t2 && t2 <= length => (t1, t2),
        (Some(t1), None) if t1 <= rebind => (t1, rebind),
        (None, Some(t2)) if renew <= t2 && t2 <= length => (renew, t2),
        _ => (renew, rebind),
    };
    let times = || {
        Some(Times {
            length,
            renew: now.checked_add(renew)?,
            rebind: now.checked_add(rebind)?,
            expire: now.checked_add(length)?,
        })
    };
    if seconds == INFINITE { None } else { times() }
}

/// By the mask, or without a valid one by the class of the address.
fn prefix_len(mask: Option<u32>, address: Ipv4Addr) -> u8 {
    let by_mask = mask.and_then(|mask| {
        let is_mask = mask != 0 && mask.leading_ones() + mask.trailing_zeros() == 32;
        u8::try_from(mask.leading_ones()).ok().filter(|_| is_mask)
    });
    by_mask.unwrap_or(match address.octets()[0] {
        0..128 => 8,
        128..192 => 16,
        _ => 24,
    })
}

/// Addresses of hosts in an option.
fn hosts(message: &Message<'_>, kind: u8) -> impl Iterator<Item = Ipv4Addr> {
    let addresses = message.joined(kind);
    let (addresses, _) = addresses.as_chunks::<4>();
    let hosts: Vec<_> = addresses.iter().copied().map(Ipv4Addr::from).collect();
    hosts
        .into_iter()
        .filter(|address| is_host((*address).into()))
}

/// The classless routes; without them default routes by the routers (RFC 3442).
fn routes(message: &Message<'_>) -> Vec<(Ipv4Net, Option<Ipv4Addr>)> {
    let classless = classless(&message.joined(ROUTES));
    let routers = hosts(message, ROUTER).map(|router| (Ipv4Net::default(), Some(router)));
    let mut routes = classless.unwrap_or_else(|| routers.collect());
    routes.truncate(MAX_ROUTES);
    routes
}

/// Nothing if there are none, or one is malformed.
fn classless(mut bytes: &[u8]) -> Option<Vec<(Ipv4Net, Option<Ipv4Addr>)>> {
    let mut routes = Vec::new();
    while let Some((prefix, rest)) = bytes.split_first() {
        let (significant, rest) = rest.split_at_checked(usize::from(prefix.div_ceil(8)))?;
        let (gateway, rest) = rest.split_first_chunk::<4>()?;
        let mut network = [0; 4];
        network
            .get_mut(..significant.len())?
            .copy_from_slice(significant);
        let network = Ipv4Net::new(network.into(), *prefix).ok()?.trunc();
        let gateway = Ipv4Addr::from(*gateway);
        // 0.0.0.0: the hosts are on the link.
        if gateway.is_unspecified() || is_host(gateway.into()) {
            routes.push((
                network,
                Some(gateway).filter(|gateway| !gateway.is_unspecified()),
            ));
        }
        bytes = rest;
    }
    (!routes.is_empty()).then_some(routes)
}
