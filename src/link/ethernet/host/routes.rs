//! Routes: the next hop of each destination, and gateways that do not answer.
//!
//! The longest prefix wins; for one network a route without a gateway is before one with, then the higher preference
//! counts, then the order. A gateway that does not answer is passed over while another one does (RFC 4861 6.3.6). After a
//! minute it is asked for again, without a packet, and until it answers the others are used.

use ipnet::IpNet;
use std::cmp::Reverse;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// After this time a gateway that did not answer is asked for again.
pub(super) const SEEK_AFTER: Duration = Duration::from_secs(60);

/// A route to a network: over the link, or by a gateway on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) network: IpNet,
    pub(super) via: Option<IpAddr>,
    /// Higher is better.
    pub(super) preference: u8,
}

impl Route {
    pub(super) fn on_link(network: IpNet) -> Route {
        Route {
            network,
            via: None,
            preference: 0,
        }
    }

    pub(super) fn via(network: IpNet, gateway: IpAddr, preference: u8) -> Route {
        Route {
            network,
            via: Some(gateway),
            preference,
        }
    }
}

/// The next hop of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) address: IpAddr,
    pub(super) is_gateway: bool,
    /// It did not answer the last time, and there is no better one.
    pub(super) is_down: bool,
}

/// The routes, and gateways that do not answer.
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// In the order in which they are tried.
    routes: Vec<Route>,
    /// Gateways that did not answer, with the time when they are asked for again; the first has failed first.
    down: Vec<(IpAddr, Instant)>,
    /// The last answer of `hop`: usually the next packet goes to the same host.
    last: Option<(IpAddr, Option<Hop>)>,
}

impl Routes {
    /// Replaces all routes. A gateway is on the link by itself, also if its network is not.
    pub(super) fn set(&mut self, routes: impl IntoIterator<Item = Route>) {
        self.last = None;
        self.routes = routes.into_iter().collect();
        let gateways = self.routes.iter().filter_map(|route| route.via);
        let direct: Vec<_> = gateways.map(|at| Route::on_link(at.into())).collect();
        self.routes.extend(direct);
        self.routes.sort_by_key(|route| {
            let length = Reverse(route.network.prefix_len());
            (length, route.via.is_some(), Reverse(route.preference))
        });
        let routes = &self.routes;
        let is_gateway = |address| routes.iter().any(|route| route.via == Some(address));
        self.down.retain(|(address, _)| is_gateway(*address));
    }

    /// The next hop to a destination, if there is a route.
    pub(super) fn hop(&mut self, to: IpAddr) -> Option<Hop> {
        if let Some((last, hop)) = self.last
            && last == to
        {
            return hop;
        }
        let hop = self.find(to);
        self.last = Some((to, hop));
        hop
    }

    fn find(&self, to: IpAddr) -> Option<Hop> {
        let mut matching = self
            .routes
            .iter()
            .filter(|route| route.network.contains(&to));
        let first = matching.clone().next()?;
        let Some(gateway) = first.via else {
            return Some(Hop {
                address: to,
                is_gateway: false,
                is_down: false,
            });
        };
        let length = first.network.prefix_len();
        let alike = |route: &&Route| route.network.prefix_len() == length;
        let mut gateways = matching
            .by_ref()
            .take_while(alike)
            .filter_map(|route| route.via);
        let up = gateways.find(|gateway| !self.is_down(*gateway));
        let hop = |address, is_down| Hop {
            address,
            is_gateway: true,
            is_down,
        };
        Some(match up {
            Some(gateway) => hop(gateway, false),
            None => hop(self.longest_down(to, length).unwrap_or(gateway), true),
        })
    }

    /// Of several gateways that do not answer, the one that was tried the longest ago.
    fn longest_down(&self, to: IpAddr, length: u8) -> Option<IpAddr> {
        let is_alike = |route: &Route, gateway: IpAddr| {
            let network = route.network;
            route.via == Some(gateway) && network.prefix_len() == length && network.contains(&to)
        };
        let mut down = self.down.iter().map(|(gateway, _)| *gateway);
        down.find(|gateway| self.routes.iter().any(|route| is_alike(route, *gateway)))
    }

    /// Whether a host is reached without a gateway.
    pub(super) fn is_on_link(&self, address: IpAddr) -> bool {
        self.find(address).is_some_and(|hop| !hop.is_gateway)
    }

    fn is_down(&self, gateway: IpAddr) -> bool {
        self.down.iter().any(|(address, _)| *address == gateway)
    }

    /// A host does not answer. No effect if it is no gateway.
    pub(super) fn failed(&mut self, address: IpAddr, now: Instant) {
        self.answered(address);
        self.last = None;
        if self.routes.iter().any(|route| route.via == Some(address)) {
            self.down.push((address, now + SEEK_AFTER));
        }
    }

    /// A host has answered.
    pub(super) fn answered(&mut self, address: IpAddr) {
        if self.is_down(address) {
            self.last = None;
            self.down.retain(|(gateway, _)| *gateway != address);
        }
    }

    /// When gateways are to be asked for again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.down.iter().map(|(_, at)| *at).min()
    }

    /// The gateways that are to be asked for again.
    pub(super) fn seek(&mut self, now: Instant) -> Vec<IpAddr> {
        let due = self.down.iter_mut().filter(|(_, at)| *at <= now);
        due.map(|(gateway, at)| {
            *at = now + SEEK_AFTER;
            *gateway
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    fn routes(rows: &[(&str, &str, u8)]) -> Routes {
        let mut routes = Routes::default();
        routes.set(rows.iter().map(|(network, via, preference)| Route {
            network: network.parse().unwrap(),
            via: via.parse().ok(),
            preference: *preference,
        }));
        routes
    }

    fn hop(routes: &mut Routes, to: &str) -> Option<(String, bool)> {
        let hop = routes.hop(to.parse().unwrap())?;
        assert!(hop.is_gateway || !hop.is_down);
        Some((hop.address.to_string(), hop.is_down))
    }

    fn up(address: &str) -> Option<(String, bool)> {
        Some((address.into(), false))
    }

    #[test]
    fn the_longest_prefix_wins() {
        let mut routes = routes(&[
            ("0.0.0.0/0", "10.0.0.1", 0),
            ("192.168.0.0/16", "10.0.0.2", 0),
            ("192.168.7.0/24", "10.0.0.3", 0),
            ("10.0.0.0/24", "", 0),
            ("fd00::/64", "", 0),
            ("::/0", "fe80::1", 0),
        ]);
        assert_eq!(hop(&mut routes, "8.8.8.8"), up("10.0.0.1"));
        assert_eq!(hop(&mut routes, "192.168.1.1"), up("10.0.0.2"));
        assert_eq!(hop(&mut routes, "192.168.7.1"), up("10.0.0.3"));
        assert_eq!(hop(&mut routes, "10.0.0.77"), up("10.0.0.77"));
        assert_eq!(hop(&mut routes, "fd00::5"), up("fd00::5"));
        assert_eq!(hop(&mut routes, "2001:db8::5"), up("fe80::1"));
        assert_eq!(
            hop(&mut self::routes(&[("10.0.0.0/24", "", 0)]), "8.8.8.8"),
            None
        );
    }

    /// An address with a prefix of 32 bits.
    #[test]
    fn a_gateway_is_on_the_link_by_definition() {
        let mut routes = routes(&[("0.0.0.0/0", "192.0.2.1", 0), ("203.0.113.9/32", "", 0)]);
        assert_eq!(hop(&mut routes, "192.0.2.1"), up("192.0.2.1"));
        assert!(routes.is_on_link("192.0.2.1".parse().unwrap()));
        assert_eq!(hop(&mut routes, "192.0.2.2"), up("192.0.2.1"));
        assert!(!routes.is_on_link("192.0.2.2".parse().unwrap()));
    }

    #[test]
    fn of_several_gateways_the_first_that_answers() {
        let now = SystemClock.now();
        let mut routes = routes(&[
            ("0.0.0.0/0", "10.0.0.1", 1),
            ("0.0.0.0/0", "10.0.0.2", 1),
            ("0.0.0.0/0", "10.0.0.3", 2),
            ("10.0.0.0/24", "", 0),
        ]);
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        assert_eq!(hop(&mut routes, "8.8.8.8"), up("10.0.0.3"));
        routes.failed(address(3), now);
        assert_eq!(hop(&mut routes, "8.8.8.8"), up("10.0.0.1"));
        routes.failed(address(77), now);
        assert_eq!(
            routes.deadline(),
            Some(now + SEEK_AFTER),
            "that is no gateway"
        );
        routes.failed(address(1), now + Duration::from_secs(1));
        assert_eq!(hop(&mut routes, "8.8.8.8"), up("10.0.0.2"));
        routes.failed(address(2), now);
        assert_eq!(hop(&mut routes, "8.8.8.8"), Some(("10.0.0.3".into(), true)));
        routes.failed(address(3), now);
        assert_eq!(hop(&mut routes, "8.8.8.8"), Some(("10.0.0.1".into(), true)));
        routes.answered(address(2));
        assert_eq!(hop(&mut routes, "8.8.8.8"), up("10.0.0.2"));
        assert!(routes.seek(now).is_empty());
        let later = now + SEEK_AFTER;
        assert_eq!(routes.seek(later), [address(3)]);
        assert!(routes.seek(later).is_empty(), "once a minute");
        routes.set([]);
        assert_eq!(routes.deadline(), None);
    }
}
