//! Router advertisements and addresses of one's own (RFC 4191, 4861, 4862, 7559, 8106): a state machine that is given
//! messages and times.
//!
//! * **Solicitations**: the first after a random time of up to 1 s, then again after 4, 8, 16 ... s (±10 %), at last
//!   every hour, until a router has answered that it is one; anew when the last router is gone.
//! * **From advertisements**: default routers and other routes with their preferences, prefixes on the link,
//!   addresses, name servers, MTU, hop limit, and the times of neighbour discovery. Each list is bounded; entries in
//!   force stay, and what finds no room is dropped and counted.
//! * **Addresses** are made of a prefix of 64 bits and the hardware address (modified EUI-64, RFC 4291). RFC 8064
//!   recommends opaque identifiers (RFC 7217) so that a machine is not recognised by its hardware address. They need
//!   a secret that outlasts the program, or else the address changes with each start; and this hardware address is
//!   none of a machine's, but the program's choice, which may be random. Temporary addresses (RFC 8981) are not made.
//! * **Lifetimes** of addresses in use cannot be shortened to less than two hours by an advertisement (RFC 4862
//!   5.5.3), so that a forged one does not end connections.
//! * **Not heeded**: redirects, which are counted (any host of the link could divert single destinations, and a
//!   router forwards without them too), the flags for DHCPv6, and search domains.

#[cfg(test)]
mod tests;

use super::config::is_host;
use crate::link::ethernet::frame::Mac;
use crate::link::ethernet::wire::ndp::*;
use crate::random::Random;
use ipnet::Ipv6Net;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

/// Maximum number of entries.
const MAX_ROUTERS: usize = 8;
const MAX_ROUTES: usize = 32;
const MAX_PREFIXES: usize = 16;
const MAX_ADDRESSES: usize = 16;
const MAX_DNS: usize = 8;
/// RFC 4861 6.3.7: MAX_RTR_SOLICITATION_DELAY.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// RFC 7559 2: IRT and MRT.
const SOLICIT_AGAIN: Duration = Duration::from_secs(4);
const SOLICIT_SELDOM: Duration = Duration::from_secs(3600);
/// RFC 4862 5.5.3 e.
const TWO_HOURS: u32 = 7200;
const INFINITE: u32 = u32::MAX;
const LEAST_MTU: u32 = 1280;
/// The times of neighbour discovery that are heeded, in milliseconds: no router can make the host flood the link, or
/// wait without end.
const REACHABLE: (u32, u32) = (1000, 3_600_000);
const RETRANSMIT: (u32, u32) = (100, 60_000);

/// An end of a lifetime; `None`: never.
type End = Option<Instant>;

fn end(now: Instant, seconds: u32) -> End {
    match seconds {
        INFINITE => None,
        _ => now.checked_add(Duration::from_secs(seconds.into())),
    }
}

fn is_over(end: End, now: Instant) -> bool {
    end.is_some_and(|at| at <= now)
}

fn is_later(a: End, b: End) -> bool {
    match (a, b) {
        (None, _) => b.is_some(),
        (Some(_), None) => false,
        (Some(a), Some(b)) => a > b,
    }
}

/// Preference of a router, and of a route (RFC 4191 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Preference {
    Low,
    Medium,
    High,
}

impl Preference {
    /// Nothing for the reserved value.
    fn parse(flags: u8) -> Option<Preference> {
        match flags >> 3 & 3 {
            0 => Some(Preference::Medium),
            1 => Some(Preference::High),
            3 => Some(Preference::Low),
            _ => None,
        }
    }
}

/// A route by a router on the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) network: Ipv6Net,
    pub(super) router: Ipv6Addr,
    pub(super) preference: Preference,
    end: End,
}

/// An address of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    /// The address, and the length of its prefix.
    pub(super) address: Ipv6Net,
    /// It is for connections that exist, and for new ones only without another (RFC 4862 5.5.4).
    pub(super) deprecated: bool,
    /// Another host has it: it is not used, and not made again.
    duplicate: bool,
    preferred: End,
    end: End,
}

/// What routers set for the link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Parameters {
    /// 1,280 bytes to the link's own.
    pub(super) mtu: Option<u32>,
    pub(super) hop_limit: Option<u8>,
    /// How long a neighbour counts as reachable (RFC 4861 6.3.2: BaseReachableTime).
    pub(super) reachable: Option<Duration>,
    /// Time between solicitations of a neighbour (RetransTimer).
    pub(super) retransmit: Option<Duration>,
}

/// Counters of an [`Autoconf`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct AutoconfStats {
    /// Solicitations.
    pub(super) sent: u64,
    /// Advertisements that were heeded.
    pub(super) accepted: u64,
    /// Invalid advertisements.
    pub(super) malformed: u64,
    /// Parts of advertisements that were malformed, or found no room.
    pub(super) dropped: u64,
    pub(super) redirects: u64,
}

#[derive(Debug, Clone, Copy)]
struct Solicit {
    next: Instant,
    /// The time before it.
    wait: Duration,
}

/// See the module. The order of calls: `advertised` and `poll` at any time, `poll` also at the `deadline`, until it
/// returns nothing; then, if something `has_changed`, all that is in force anew.
#[derive(Debug)]
pub(super) struct Autoconf {
    mac: Mac,
    max_mtu: u32,
    random: Random,
    solicit: Option<Solicit>,
    /// Default routes, each by another router.
    routers: Vec<Route>,
    /// Other routes.
    routes: Vec<Route>,
    on_link: Vec<(Ipv6Net, End)>,
    addresses: Vec<Address>,
    dns: Vec<(Ipv6Addr, End)>,
    parameters: Parameters,
    changed: bool,
    stats: AutoconfStats,
}

/// Replaces an entry, or adds it if there is room. Nothing happens to a new entry that is over already.
fn file<T>(
    entries: &mut Vec<T>,
    max: usize,
    entry: T,
    is_same: impl Fn(&T) -> bool,
    lives: bool,
) -> bool {
    match entries.iter().position(is_same) {
        Some(at) => entries[at] = entry,
        None if !lives => {}
        None if entries.len() < max => entries.push(entry),
        None => return false,
    }
    true
}

impl Autoconf {
    /// `max_mtu`: that of the link in bytes.
    pub(super) fn new(mac: Mac, max_mtu: u32, seed: u64, now: Instant) -> Autoconf {
        let mut autoconf = Autoconf {
            mac,
            max_mtu,
            random: Random::new(seed),
            solicit: None,
            routers: Vec::new(),
            routes: Vec::new(),
            on_link: Vec::new(),
            addresses: Vec::new(),
            dns: Vec::new(),
            parameters: Parameters::default(),
            changed: false,
            stats: AutoconfStats::default(),
        };
        autoconf.restart(now);
        autoconf
    }

    /// Routes; of several to the same network the ones with the highest preference, and of those the first that can
    /// be reached, are to be used.
    pub(super) fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routers.iter().chain(&self.routes)
    }

    /// Prefixes on the link, beside fe80::/64.
    pub(super) fn on_link(&self) -> impl Iterator<Item = Ipv6Net> {
        self.on_link.iter().map(|prefix| prefix.0)
    }

    /// Addresses, also those whose uniqueness the host has not checked yet.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.addresses.iter().filter(|address| !address.duplicate)
    }

    /// Name servers.
    pub(super) fn dns(&self) -> impl Iterator<Item = Ipv6Addr> {
        self.dns.iter().map(|server| server.0)
    }

    pub(super) fn parameters(&self) -> Parameters {
        self.parameters
    }

    /// Replaces the random numbers.
    pub(super) fn reseed(&mut self, seed: u64) {
        self.random = Random::new(seed);
    }

    pub(super) fn stats(&self) -> AutoconfStats {
        self.stats
    }

    /// Whether something in force may have changed since the last call.
    #[must_use]
    pub(super) fn has_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The link was away: routers are solicited again.
    pub(super) fn restart(&mut self, now: Instant) {
        self.solicit = Some(Solicit {
            next: now + self.random.below(FIRST_DELAY),
            wait: Duration::ZERO,
        });
    }

    /// Another host has this address.
    pub(super) fn duplicate(&mut self, address: Ipv6Addr) {
        let mut addresses = self.addresses.iter_mut();
        if let Some(found) = addresses.find(|found| found.address.addr() == address) {
            found.duplicate = true;
            self.changed = true;
        }
    }

    /// A router advertises itself as a host: it is none of the default routers any more (RFC 4861 6.3.5).
    pub(super) fn no_router(&mut self, address: Ipv6Addr) {
        let before = self.routers.len();
        self.routers.retain(|route| route.router != address);
        self.changed |= self.routers.len() != before;
    }

    /// A redirect: counted, and not heeded.
    pub(super) fn redirected(&mut self) {
        self.stats.redirects += 1;
    }

    /// A router advertisement. Returns whether it is valid.
    pub(super) fn advertised(&mut self, message: &Message<'_>, now: Instant) -> bool {
        self.advance(now);
        let Some(advertisement) = message.advertisement() else {
            self.stats.malformed += 1;
            return false;
        };
        self.stats.accepted += 1;
        self.changed = true;
        self.heed(&advertisement);
        let preference = Preference::parse(advertisement.flags).unwrap_or(Preference::Medium);
        let lifetime = u32::from(advertisement.lifetime);
        let default = Ipv6Net::default();
        let mut dropped = 0;
        let mut count = |kept: Option<bool>| dropped += u64::from(kept != Some(true));
        count(Some(self.route(
            default,
            message.from,
            preference,
            lifetime,
            now,
        )));
        for (kind, value) in advertisement.options {
            match kind {
                PREFIX => count(self.prefix(value, now)),
                MTU => count(self.mtu(value)),
                // One to ::/0 takes the place of what the header says (RFC 4191 3.1).
                ROUTE => count(self.more_specific(value, message.from, now)),
                DNS => count(self.name_servers(value, now)),
                _ => {}
            }
        }
        self.stats.dropped += dropped;
        self.advance(now);
        if !self.routers.is_empty() {
            self.solicit = None;
        }
        true
    }

    fn route(
        &mut self,
        network: Ipv6Net,
        router: Ipv6Addr,
        preference: Preference,
        lifetime: u32,
        now: Instant,
    ) -> bool {
        let (routes, max) = match network.prefix_len() {
            0 => (&mut self.routers, MAX_ROUTERS),
            _ => (&mut self.routes, MAX_ROUTES),
        };
        let route = Route {
            network,
            router,
            preference,
            end: end(now, lifetime),
        };
        let is_same = |other: &Route| (other.network, other.router) == (network, router);
        file(routes, max, route, is_same, lifetime > 0)
    }

    /// A route information option (RFC 4191 2.3). One with a reserved preference is ignored.
    fn more_specific(&mut self, value: &[u8], router: Ipv6Addr, now: Instant) -> Option<bool> {
        let ([len, flags, lifetime @ ..], prefix) = value.split_first_chunk::<6>()?;
        let mut network = [0; 16];
        network.get_mut(..prefix.len())?.copy_from_slice(prefix);
        if usize::from(*len) > prefix.len() * 8 {
            return None;
        }
        let network = Ipv6Net::new(network.into(), *len).ok()?.trunc();
        let preference = Preference::parse(*flags)?;
        let lifetime = u32::from_be_bytes(*lifetime);
        Some(self.route(network, router, preference, lifetime, now))
    }

    fn heed(&mut self, advertisement: &Advertisement<'_>) {
        let time = |millis: u32, (least, most): (u32, u32)| {
            let millis = (millis > 0).then_some(millis.clamp(least, most));
            millis.map(|millis| Duration::from_millis(millis.into()))
        };
        let reachable = time(advertisement.reachable, REACHABLE);
        let retransmit = time(advertisement.retransmit, RETRANSMIT);
        let hop_limit = Some(advertisement.hop_limit).filter(|hop_limit| *hop_limit > 0);
        let parameters = &mut self.parameters;
        parameters.hop_limit = hop_limit.or(parameters.hop_limit);
        parameters.reachable = reachable.or(parameters.reachable);
        parameters.retransmit = retransmit.or(parameters.retransmit);
    }

    fn mtu(&mut self, value: &[u8]) -> Option<bool> {
        let [_, _, mtu @ ..]: [u8; 6] = value.try_into().ok()?;
        let mtu = u32::from_be_bytes(mtu);
        let heeded = (LEAST_MTU..=self.max_mtu).contains(&mtu);
        if heeded {
            self.parameters.mtu = Some(mtu);
        }
        Some(heeded)
    }

    /// A prefix information option (RFC 4861 6.3.4, 4862 5.5.3).
    fn prefix(&mut self, value: &[u8], now: Instant) -> Option<bool> {
        let ([len, flags, lifetimes @ ..], prefix) = value.split_first_chunk::<14>()?;
        let prefix = Ipv6Addr::from_octets(prefix.try_into().ok()?);
        let prefix = Ipv6Net::new(prefix, *len).ok()?.trunc();
        let (lifetimes, _) = lifetimes.as_chunks::<4>();
        let [valid, preferred] = [0, 1].map(|at| u32::from_be_bytes(lifetimes[at]));
        if prefix.addr().is_unicast_link_local() || prefix.addr().is_multicast() {
            return None;
        }
        let mut kept = true;
        if flags & ON_LINK != 0 {
            let entry = (prefix, end(now, valid));
            let is_same = |other: &(Ipv6Net, End)| other.0 == prefix;
            kept &= file(&mut self.on_link, MAX_PREFIXES, entry, is_same, valid > 0);
        }
        if flags & AUTONOMOUS != 0 {
            kept &= self.own_address(prefix, valid, preferred, now);
        }
        Some(kept)
    }

    fn own_address(&mut self, prefix: Ipv6Net, valid: u32, preferred: u32, now: Instant) -> bool {
        if preferred > valid || prefix.prefix_len() != 64 {
            return false;
        }
        let identifier = u128::from(interface_identifier(self.mac));
        let address = Ipv6Addr::from_bits(prefix.addr().to_bits() | identifier);
        let address = Ipv6Net::new(address, 64).expect("invariant: a length of at most 128");
        let is_same = |other: &Address| other.address == address;
        let old = self.addresses.iter().copied().find(is_same);
        let least = end(now, TWO_HOURS);
        let end = match (end(now, valid), old) {
            (new, None) => new,
            (new, Some(old)) if is_later(new, least) || is_later(new, old.end) => new,
            (_, Some(old)) if is_later(old.end, least) => least,
            (_, Some(old)) => old.end,
        };
        let preferred = self::end(now, preferred);
        let entry = Address {
            address,
            deprecated: is_over(preferred, now),
            duplicate: old.is_some_and(|old| old.duplicate),
            preferred,
            end,
        };
        file(
            &mut self.addresses,
            MAX_ADDRESSES,
            entry,
            is_same,
            valid > 0,
        )
    }

    /// An option with name servers (RFC 8106 5.1).
    fn name_servers(&mut self, value: &[u8], now: Instant) -> Option<bool> {
        let ([_, _, lifetime @ ..], servers) = value.split_first_chunk::<6>()?;
        let lifetime = u32::from_be_bytes(*lifetime);
        let (servers, rest) = servers.as_chunks::<16>();
        if servers.is_empty() || !rest.is_empty() {
            return None;
        }
        let mut kept = true;
        for server in servers {
            let server = Ipv6Addr::from_octets(*server);
            let entry = (server, end(now, lifetime));
            let is_same = |other: &(Ipv6Addr, End)| other.0 == server;
            kept &= is_host(server.into())
                && file(&mut self.dns, MAX_DNS, entry, is_same, lifetime > 0);
        }
        Some(kept)
    }

    /// When `poll` has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let preferred = self.addresses.iter().filter(|address| !address.deprecated);
        let addresses = self.addresses.iter().map(|address| address.end);
        let all = self.routes().map(|route| route.end);
        let all = all.chain(self.on_link.iter().map(|prefix| prefix.1));
        let all = all.chain(self.dns.iter().map(|server| server.1));
        let all = all.chain(addresses);
        let all = all.chain(preferred.map(|address| address.preferred));
        let solicit = self.solicit.map(|solicit| solicit.next);
        all.flatten().chain(solicit).min()
    }

    /// A router solicitation that is due, as an IPv6 packet from this address: link-local, or unspecified.
    pub(super) fn poll(&mut self, from: Ipv6Addr, now: Instant) -> Option<Vec<u8>> {
        self.advance(now);
        let solicit = self.solicit.filter(|solicit| solicit.next <= now)?;
        // RFC 7559 2, RFC 3315 14: double, and a tenth more or less.
        let (wait, spread) = match solicit.wait {
            Duration::ZERO => (SOLICIT_AGAIN, SOLICIT_AGAIN),
            last if last * 2 > SOLICIT_SELDOM => (SOLICIT_SELDOM, SOLICIT_SELDOM),
            last => (last * 2, last),
        };
        let wait = wait - spread / 10 + self.random.below(spread / 5);
        self.solicit = Some(Solicit {
            next: now + wait,
            wait,
        });
        self.stats.sent += 1;
        Some(router_solicitation(from, self.mac))
    }

    /// Removes what is over.
    fn advance(&mut self, now: Instant) {
        let count = |autoconf: &Autoconf| {
            let routes = autoconf.routers.len() + autoconf.routes.len();
            let deprecated = autoconf.addresses.iter().filter(|a| a.deprecated).count();
            let others = autoconf.on_link.len() + autoconf.dns.len();
            (routes + others, autoconf.addresses.len(), deprecated)
        };
        let before = count(self);
        let had_router = !self.routers.is_empty();
        self.routers.retain(|route| !is_over(route.end, now));
        self.routes.retain(|route| !is_over(route.end, now));
        self.on_link.retain(|prefix| !is_over(prefix.1, now));
        self.dns.retain(|server| !is_over(server.1, now));
        self.addresses.retain(|address| !is_over(address.end, now));
        for address in &mut self.addresses {
            address.deprecated = is_over(address.preferred, now);
        }
        self.changed |= count(self) != before;
        if had_router && self.routers.is_empty() {
            self.restart(now);
        }
    }
}

/// The lower half of addresses, made of a hardware address (RFC 4291, appendix A).
pub(super) fn interface_identifier(mac: Mac) -> u64 {
    let [a, b, c, d, e, f] = mac.0;
    u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// The link-local address (RFC 4862 5.3).
pub(super) fn link_local(mac: Mac) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(interface_identifier(mac)))
}
