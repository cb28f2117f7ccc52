//! Addresses and routes: reachability, source address and packet size of each destination.
//!
//! A stack has one link, so a route has no next hop, but properties of a network. The longest prefix
//! wins. The network of each address is an implicit route ([`Route::LINK`]), and so is the default
//! route: without other routes, all destinations are reached over the link. Pure: the lock is the
//! stack's.
//!
//! Addresses that no host on the link can have are neither sources nor destinations ("martians", RFC
//! 1812 5.3.7). Most are recognised by the address alone ([`ip::is_endpoint`]); those that depend on
//! the stack's own addresses are recognised here.

use crate::ip;
use crate::stack::source_address;
use ipnet::IpNet;
use std::cmp::Reverse;
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// MTU limits of each family: the minimum (RFC 791 3.1, RFC 8200 5), and the largest packet.
const MTU_V4: RangeInclusive<usize> = 576..=65_535;
const MTU_V6: RangeInclusive<usize> = 1280..=65_535;

/// How a network is reached, see [`Builder::route`](crate::stack::Builder::route).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Route {
    /// Over the link, see [`LINK`](Self::LINK).
    #[non_exhaustive]
    Link {
        /// The address to connect from, unless the socket is bound; by default chosen by RFC 6724.
        source: Option<IpAddr>,
        /// Largest packet in bytes, 576 (IPv4) or 1,280 (IPv6) to 65,535, unless the link's is smaller.
        /// It limits the announced MSS and the packets sent.
        mtu: Option<usize>,
    },
    /// Not at all: connecting fails with [`HostUnreachable`](std::io::ErrorKind::HostUnreachable).
    Unreachable,
    /// Forbidden: connecting fails with [`PermissionDenied`](std::io::ErrorKind::PermissionDenied).
    Prohibited,
}

impl Route {
    /// Over the link, without further settings.
    pub const LINK: Route = Route::Link {
        source: None,
        mtu: None,
    };

    /// Over the link, from this address unless the socket is bound.
    #[must_use]
    pub fn with_source(self, address: IpAddr) -> Route {
        let source = Some(address);
        match self {
            Route::Link { mtu, .. } => Route::Link { source, mtu },
            Route::Unreachable | Route::Prohibited => Route::Link { source, mtu: None },
        }
    }

    /// Over the link, with packets of at most this many bytes.
    #[must_use]
    pub fn with_mtu(self, bytes: usize) -> Route {
        let mtu = Some(bytes);
        match self {
            Route::Link { source, .. } => Route::Link { source, mtu },
            Route::Unreachable | Route::Prohibited => Route::Link { source: None, mtu },
        }
    }
}

/// Why routes or an address were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// Two routes for one network.
    #[error("two routes for {0}: give one")]
    Duplicate(IpNet),
    /// The source of a route is not an address of the stack.
    #[error("the route for {0} names {1} as its source: give an address of this stack")]
    NotOwn(IpNet, IpAddr),
    /// The source of a route has the other address family.
    #[error("the route for {0} names {1} as its source: give an address of the same family")]
    Family(IpNet, IpAddr),
    /// An MTU outside the limits of IP.
    #[error("the route for {0} has an MTU of {1} bytes: use 576 (IPv4) or 1280 (IPv6) to 65535")]
    Mtu(IpNet, usize),
    /// An address that no host can have.
    #[error(
        "{0} cannot be a stack's address: give one that a host can have on a network, not a loopback, \
         multicast or reserved one, nor an IPv4 address in the form of IPv6"
    )]
    BadAddress(IpAddr),
    /// The address of a network, with a zero host part. In IPv6 that is the subnet-router anycast
    /// address (RFC 4291 2.6.1).
    #[error("{0} is the network itself: give the address of a host in it, with the prefix length")]
    NetworkAddress(IpNet),
    /// The broadcast address of its network.
    #[error("{0} is the broadcast address of its network: give the address of a host in it")]
    BroadcastAddress(IpNet),
    /// The stack has this address already.
    #[error("{0} is an address of this stack already: remove it first to change its prefix")]
    DuplicateAddress(IpAddr),
    /// The stack does not have this address.
    #[error("{0} is not an address of this stack")]
    NoSuchAddress(IpAddr),
    /// The address to remove is the source of a route.
    #[error("{1} is the source of the route for {0}: change the routes first")]
    InUse(IpNet, IpAddr),
}

/// The addresses and routes of a stack.
#[derive(Debug, Default)]
pub(in crate::stack) struct Network {
    addresses: Vec<IpNet>,
    /// Of these, addresses for connections that exist (RFC 4862 5.5.4).
    deprecated: Vec<IpAddr>,
    /// The longest prefixes first.
    routes: Vec<(IpNet, Route)>,
}

impl Network {
    pub(in crate::stack) fn new(
        addresses: Vec<IpNet>,
        routes: Vec<(IpNet, Route)>,
    ) -> Result<Network, RouteError> {
        let mut network = Network::default();
        for address in addresses {
            network.add_address(address)?;
        }
        network.set_routes(routes)?;
        Ok(network)
    }

    pub(in crate::stack) fn addresses(&self) -> &[IpNet] {
        &self.addresses
    }

    pub(in crate::stack) fn routes(&self) -> &[(IpNet, Route)] {
        &self.routes
    }

    pub(in crate::stack) fn is_own(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|net| net.addr() == address)
    }

    /// Whether it is a broadcast address of one of the stack's networks.
    pub(in crate::stack) fn is_broadcast(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|net| means_all(net, address)) && !self.is_own(address)
    }

    /// Whether no other host can have this source address.
    pub(in crate::stack) fn is_martian(&self, source: IpAddr) -> bool {
        !ip::is_endpoint(source) || self.is_own(source) || self.is_broadcast(source)
    }

    pub(in crate::stack) fn add_address(&mut self, net: IpNet) -> Result<(), RouteError> {
        let address = net.addr();
        if !ip::is_endpoint(address) {
            return Err(RouteError::BadAddress(address));
        }
        if is_a_network(&net) {
            return Err(RouteError::NetworkAddress(net));
        }
        if means_all(&net, address) {
            return Err(RouteError::BroadcastAddress(net));
        }
        if self.is_own(address) {
            return Err(RouteError::DuplicateAddress(address));
        }
        self.addresses.push(net);
        Ok(())
    }

    pub(in crate::stack) fn remove_address(&mut self, address: IpAddr) -> Result<(), RouteError> {
        let named = |route: &Route| matches!(route, Route::Link { source: Some(source), .. } if *source == address);
        if let Some((net, _)) = self.routes.iter().find(|(_, route)| named(route)) {
            return Err(RouteError::InUse(*net, address));
        }
        let at = self.addresses.iter().position(|net| net.addr() == address);
        let at = at.ok_or(RouteError::NoSuchAddress(address))?;
        self.addresses.remove(at);
        self.set_deprecated(address, false);
        Ok(())
    }

    /// A deprecated address is the source only without another one.
    pub(in crate::stack) fn set_deprecated(&mut self, address: IpAddr, deprecated: bool) {
        self.deprecated.retain(|other| *other != address);
        if deprecated && self.is_own(address) {
            self.deprecated.push(address);
        }
    }

    /// All or none.
    pub(in crate::stack) fn set_routes(
        &mut self,
        routes: impl IntoIterator<Item = (IpNet, Route)>,
    ) -> Result<(), RouteError> {
        let truncated = routes.into_iter().map(|(net, route)| (net.trunc(), route));
        let mut routes: Vec<(IpNet, Route)> = truncated.collect();
        routes.sort_by_key(|(net, _)| (Reverse(net.prefix_len()), *net));
        for pair in routes.windows(2) {
            if pair[0].0 == pair[1].0 {
                return Err(RouteError::Duplicate(pair[0].0));
            }
        }
        routes.iter().try_for_each(|route| self.check(route))?;
        self.routes = routes;
        Ok(())
    }

    fn check(&self, (net, route): &(IpNet, Route)) -> Result<(), RouteError> {
        let Route::Link { source, mtu } = *route else {
            return Ok(());
        };
        let v4 = net.addr().is_ipv4();
        if let Some(bad) = source.filter(|source| source.is_ipv4() != v4) {
            return Err(RouteError::Family(*net, bad));
        }
        if let Some(bad) = source.filter(|source| !self.is_own(*source)) {
            return Err(RouteError::NotOwn(*net, bad));
        }
        let range = if v4 { MTU_V4 } else { MTU_V6 };
        match mtu.filter(|mtu| !range.contains(mtu)) {
            Some(bad) => Err(RouteError::Mtu(*net, bad)),
            None => Ok(()),
        }
    }

    /// The route with the longest prefix. A configured route takes precedence over an address's network
    /// of the same length.
    pub(in crate::stack) fn route_to(&self, destination: IpAddr) -> Route {
        let mut routes = self.routes.iter();
        let Some((net, route)) = routes.find(|(net, _)| net.contains(&destination)) else {
            return Route::LINK;
        };
        let nearer =
            |own: &IpNet| own.contains(&destination) && own.prefix_len() > net.prefix_len();
        if self.addresses.iter().any(nearer) {
            Route::LINK
        } else {
            *route
        }
    }

    /// The source address for a destination.
    pub(in crate::stack) fn source_for(&self, destination: IpAddr) -> Option<IpAddr> {
        match self.route_to(destination) {
            Route::Link {
                source: Some(source),
                ..
            } => Some(source),
            _ => source_address::select(self.addresses.iter(), &self.deprecated, destination),
        }
    }

    /// Largest packet to a destination, if its route limits it.
    pub(in crate::stack) fn mtu_to(&self, destination: IpAddr) -> Option<usize> {
        match self.route_to(destination) {
            Route::Link { mtu, .. } => mtu,
            Route::Unreachable | Route::Prohibited => None,
        }
    }

    pub(in crate::stack) fn is_routed(&self, peer: IpAddr) -> bool {
        matches!(self.route_to(peer), Route::Link { .. })
    }
}

/// Whether it is the network's first address, which no host can have. In networks of two addresses or
/// one, hosts can have all (RFC 3021, 6164).
fn is_a_network(net: &IpNet) -> bool {
    net.prefix_len() + 1 < net.max_prefix_len() && net.addr() == net.network()
}

/// Whether it is the broadcast address of the network, or the network's own address, which old hosts
/// use as such (RFC 1122 3.3.6). IPv6 has no broadcast.
fn means_all(net: &IpNet, address: IpAddr) -> bool {
    let may = net.addr().is_ipv4() && net.prefix_len() + 1 < net.max_prefix_len();
    may && (address == net.broadcast() || address == net.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn from(source: &str) -> Route {
        Route::Link {
            source: Some(ip(source)),
            mtu: None,
        }
    }

    fn mtu(bytes: usize) -> Route {
        Route::Link {
            source: None,
            mtu: Some(bytes),
        }
    }

    fn network(routes: &[(&str, Route)]) -> Result<Network, RouteError> {
        let addresses = ["10.0.0.1/24", "10.9.0.1/16", "fd00::1/64", "2001:db8::1/64"];
        let routes = routes.iter().map(|(to, route)| (net(to), *route));
        Network::new(addresses.map(net).to_vec(), routes.collect())
    }

    #[test]
    fn without_routes_everything_leaves_by_the_link() {
        let network = network(&[]).unwrap();
        for to in ["10.0.0.2", "8.8.8.8", "fd00::2", "2606::1"] {
            assert_eq!(network.route_to(ip(to)), Route::LINK);
            assert_eq!(network.mtu_to(ip(to)), None);
        }
        assert_eq!(network.source_for(ip("8.8.8.8")), Some(ip("10.0.0.1")));
        assert_eq!(network.source_for(ip("2606::1")), Some(ip("2001:db8::1")));
    }

    #[test]
    fn the_longest_prefix_counts() {
        let network = network(&[
            ("0.0.0.0/0", Route::Unreachable),
            ("10.0.0.0/8", mtu(1400)),
            ("10.9.0.0/16", from("10.0.0.1")),
            ("10.9.7.0/24", Route::Prohibited),
            ("10.0.0.128/25", mtu(1300)),
            ("::/0", Route::Prohibited),
            ("2606::1/16", from("fd00::1")),
        ])
        .unwrap();
        let rows = [
            ("8.8.8.8", Route::Unreachable),
            ("10.1.2.3", mtu(1400)),
            // An address's network takes precedence over a shorter prefix, but not over an equal one.
            ("10.0.0.2", Route::LINK),
            ("10.0.0.200", mtu(1300)),
            ("10.9.8.1", from("10.0.0.1")),
            ("10.9.7.1", Route::Prohibited),
            ("fd00::2", Route::LINK),
            ("fd01::2", Route::Prohibited),
            ("2606:1::", from("fd00::1")),
        ];
        for (to, route) in rows {
            assert_eq!(network.route_to(ip(to)), route, "{to}");
            assert_eq!(
                network.is_routed(ip(to)),
                matches!(route, Route::Link { .. })
            );
        }
        assert_eq!(network.mtu_to(ip("10.1.2.3")), Some(1400));
        assert_eq!(network.source_for(ip("10.9.8.1")), Some(ip("10.0.0.1")));
        assert_eq!(network.source_for(ip("10.1.2.3")), Some(ip("10.0.0.1")));
        assert_eq!(network.source_for(ip("2606:1::")), Some(ip("fd00::1")));
    }

    #[test]
    fn nonsense_is_refused() {
        let (v4, v6) = (net("10.0.0.0/8"), net("fd00::/8"));
        let bad = |to: &str, route| network(&[(to, route)]).map(|_| ());
        let not_own = RouteError::NotOwn(v4, ip("10.0.0.2"));
        assert_eq!(bad("10.0.0.0/8", from("10.0.0.2")), Err(not_own));
        let family = RouteError::Family(v4, ip("fd00::1"));
        assert_eq!(bad("10.0.0.0/8", from("fd00::1")), Err(family));
        assert_eq!(bad("10.0.0.0/8", mtu(575)), Err(RouteError::Mtu(v4, 575)));
        assert_eq!(bad("10.0.0.0/8", mtu(576)), Ok(()));
        assert_eq!(bad("fd00::/8", mtu(1279)), Err(RouteError::Mtu(v6, 1279)));
        assert_eq!(bad("fd00::/8", mtu(1280)), Ok(()));
        assert_eq!(
            bad("fd00::/8", mtu(65_536)),
            Err(RouteError::Mtu(v6, 65_536))
        );
        let twice = [("10.0.0.0/8", Route::LINK), ("10.1.0.0/8", mtu(1400))];
        assert_eq!(network(&twice).map(|_| ()), Err(RouteError::Duplicate(v4)));
    }

    #[test]
    fn addresses_come_and_go() {
        let mut network = network(&[("10.0.0.0/8", from("10.9.0.1"))]).unwrap();
        let address = ip("10.9.0.1");
        let in_use = RouteError::InUse(net("10.0.0.0/8"), address);
        assert_eq!(network.remove_address(address), Err(in_use));
        network.set_routes([]).unwrap();
        assert_eq!(network.remove_address(address), Ok(()));
        let gone = RouteError::NoSuchAddress(address);
        assert_eq!(network.remove_address(address), Err(gone));
        assert!(!network.is_own(address));
        let again = RouteError::DuplicateAddress(ip("10.0.0.1"));
        assert_eq!(network.add_address(net("10.0.0.1/8")), Err(again));
    }

    #[test]
    fn impossible_addresses_are_refused() {
        let mut network = Network::default();
        let mut add = |text: &str| {
            network
                .add_address(net(text))
                .map_err(|why| why.to_string())
        };
        for bad in [
            "0.0.0.0/8",
            "0.1.2.3/32",
            "127.0.0.1/8",
            "127.0.0.1/32",
            "224.0.0.1/8",
            "240.0.0.1/24",
            "255.255.255.255/32",
            "::/0",
            "::1/128",
            "::ffff:10.0.0.1/128",
            "ff02::1/64",
        ] {
            let said = add(bad).unwrap_err();
            assert!(said.contains("cannot be a stack's address: give"), "{said}");
        }
        for bad in [
            "10.0.0.0/24",
            "10.0.0.0/8",
            "10.0.0.4/30",
            "fd00::/64",
            "fd00::4/126",
        ] {
            let said = add(bad).unwrap_err();
            let want = format!("{bad} is the network itself: give the address of a host in it");
            assert!(said.starts_with(&want), "{said}");
        }
        for bad in ["10.0.0.255/24", "10.255.255.255/8", "10.0.0.7/30"] {
            let said = add(bad).unwrap_err();
            let want = format!("{bad} is the broadcast address of its network: give");
            assert!(said.starts_with(&want), "{said}");
        }
        // Networks of two addresses and of one have no reserved addresses; IPv6 has no broadcast.
        for good in [
            "10.0.0.0/31",
            "10.0.0.1/31",
            "10.0.1.0/32",
            "10.0.1.255/32",
            "10.0.2.255/16",
            "fd00::/127",
            "fd00::1/127",
            "fd00:1::/128",
            "fd00::ffff:ffff:ffff:ffff/64",
        ] {
            assert_eq!(add(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn impossible_sources() {
        let network = network(&[]).unwrap();
        for source in [
            "127.0.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "240.0.0.1",
            "255.255.255.255",
            "224.0.0.1",
            "::",
            "::1",
            "::ffff:10.0.0.2",
            "ff02::1", // by the address alone
            "10.0.0.1",
            "10.9.0.1",
            "fd00::1", // the stack's own
            "10.0.0.0",
            "10.0.0.255",
            "10.9.0.0",
            "10.9.255.255", // broadcast
        ] {
            assert!(network.is_martian(ip(source)), "{source}");
        }
        for source in [
            "10.0.0.2",
            "10.9.0.255",
            "10.0.1.0",
            "8.8.8.255",
            "fd00::",
            "fd00::ffff",
        ] {
            assert!(!network.is_martian(ip(source)), "{source}");
        }
        let two = Network::new(vec![net("10.0.0.255/16"), net("10.0.0.1/24")], Vec::new());
        let two = two.unwrap();
        assert!(
            !two.is_broadcast(ip("10.0.0.255")),
            "an address comes first"
        );
        assert!(two.is_broadcast(ip("10.0.0.0")));
        let pair = Network::new(vec![net("10.0.0.0/31")], Vec::new()).unwrap();
        assert!(!pair.is_martian(ip("10.0.0.1")));
    }
}
