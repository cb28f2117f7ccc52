//! The destinations that a listener accepts, and the choice among several listeners.
//!
//! Bound listeners come first, then intercepting ones; among each, the longest prefix wins, as in a
//! routing table, then the fewest ports. Two equally precise rules conflict if some destination matches
//! both. Pure: the list and its lock are the stack's.

use ipnet::IpNet;
use std::cmp::Reverse;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

/// The destinations of an intercepting listener
/// ([`TcpListener::intercept`](crate::stack::TcpListener::intercept)): by default all addresses, of
/// both families, and all ports. No rule matches addresses that no host can have (loopback, multicast,
/// broadcast and the like).
///
/// ```
/// use sosplice::{Intercept, Stack, TcpListener, link::memory};
/// let (link, _other) = memory::pair(memory::Config::default());
/// let stack = Stack::builder(link).address("10.0.0.1/24".parse()?).build()?;
/// let rest = TcpListener::intercept(&stack, Intercept::all(), 128)?;
/// let web = Intercept::all().addresses("203.0.113.0/24".parse()?).ports(80..=443);
/// // More precise, so it takes precedence, in any order.
/// let web = TcpListener::intercept(&stack, web, 128)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Intercept {
    addresses: Option<IpNet>,
    ports: RangeInclusive<u16>,
}

impl Intercept {
    /// All addresses and ports.
    pub const fn all() -> Intercept {
        Intercept {
            addresses: None,
            ports: 0..=u16::MAX,
        }
    }

    /// Only addresses of this network. Bits beyond the prefix are ignored.
    #[must_use]
    pub fn addresses(mut self, network: IpNet) -> Intercept {
        self.addresses = Some(network.trunc());
        self
    }

    /// Only these ports; at least one.
    #[must_use]
    pub const fn ports(mut self, ports: RangeInclusive<u16>) -> Intercept {
        self.ports = ports;
        self
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }
}

impl Default for Intercept {
    fn default() -> Intercept {
        Intercept::all()
    }
}

/// The destinations of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Destinations beyond the stack's own addresses are accepted too.
    intercepts: bool,
    wanted: Intercept,
}

impl Rule {
    /// An unspecified address means all of the stack's.
    pub(crate) fn bound(address: IpAddr, port: u16) -> Rule {
        let all = Intercept::all().ports(port..=port);
        let wanted = match address.is_unspecified() {
            true => all,
            false => all.addresses(address.into()),
        };
        Rule {
            intercepts: false,
            wanted,
        }
    }

    pub(crate) fn intercepting(wanted: Intercept) -> Rule {
        Rule {
            intercepts: true,
            wanted,
        }
    }

    /// `own`: the destination is an address of the stack.
    pub(crate) fn matches(&self, address: IpAddr, port: u16, own: bool) -> bool {
        let network = self.wanted.addresses;
        (own || self.intercepts)
            && self.wanted.ports.contains(&port)
            && network.is_none_or(|network| network.contains(&address))
    }

    /// Precedence: the smallest comes first.
    pub(crate) fn rank(&self) -> (bool, Reverse<Option<u8>>, u16) {
        let prefix = self.wanted.addresses.map(|network| network.prefix_len());
        let ports = self.wanted.ports.end() - self.wanted.ports.start();
        (self.intercepts, Reverse(prefix), ports)
    }

    /// Whether both cannot exist together. A bound listener has its port alone, as in BSD; intercepting
    /// ones differ in precision or have no destination in common.
    pub(crate) fn conflicts(&self, other: &Rule) -> bool {
        let (a, b) = (&self.wanted, &other.wanted);
        let common = a.ports.start() <= b.ports.end() && b.ports.start() <= a.ports.end();
        let same_net = a.addresses == b.addresses;
        let any_net = a.addresses.is_none() || b.addresses.is_none();
        match (self.intercepts, other.intercepts) {
            (false, false) => common && (same_net || any_net),
            (true, true) => common && same_net && self.rank() == other.rank(),
            _ => false,
        }
    }

    /// The listener's address and port; zero for a range.
    pub(crate) fn address(&self) -> SocketAddr {
        let unspecified = IpAddr::from([0, 0, 0, 0]);
        let address = self.wanted.addresses.map_or(unspecified, |net| net.addr());
        let (first, last) = (*self.wanted.ports.start(), *self.wanted.ports.end());
        SocketAddr::new(address, if first == last { first } else { 0 })
    }
}

/// As `10.0.0.1:80`, `[fd00::]/64:80-443` or `*:*`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.wanted.addresses {
            None => f.write_str("*")?,
            Some(net) => {
                match net.addr() {
                    IpAddr::V4(address) => write!(f, "{address}")?,
                    IpAddr::V6(address) => write!(f, "[{address}]")?,
                }
                if net.prefix_len() < net.max_prefix_len() {
                    write!(f, "/{}", net.prefix_len())?;
                }
            }
        }
        match (*self.wanted.ports.start(), *self.wanted.ports.end()) {
            (0, u16::MAX) => f.write_str(":*"),
            (first, last) if first == last => write!(f, ":{first}"),
            (first, last) => write!(f, ":{first}-{last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(network: &str, ports: RangeInclusive<u16>) -> Rule {
        let all = Intercept::all().ports(ports);
        Rule::intercepting(match network {
            "" => all,
            network => all.addresses(network.parse().unwrap()),
        })
    }

    #[test]
    fn a_rule_is_shown_as_addresses_and_ports() {
        let rules = [
            (Rule::bound([10, 0, 0, 1].into(), 80), "10.0.0.1:80"),
            (Rule::bound([0, 0, 0, 0].into(), 80), "*:80"),
            (rule("", 0..=65535), "*:*"),
            (rule("fd00::/64", 80..=443), "[fd00::]/64:80-443"),
        ];
        for (rule, shown) in rules {
            assert_eq!(rule.to_string(), shown);
        }
    }

    #[test]
    fn the_longest_prefix_then_the_fewest_ports() {
        let ordered = [
            Rule::bound([10, 0, 0, 1].into(), 80),
            Rule::bound([0, 0, 0, 0].into(), 80),
            rule("10.0.0.0/24", 0..=65535),
            rule("10.0.0.0/8", 80..=80),
            rule("10.0.0.0/8", 80..=81),
            rule("0.0.0.0/0", 80..=80),
            rule("", 80..=80),
            rule("", 0..=65535),
        ];
        for (i, one) in ordered.iter().enumerate() {
            assert!(one.matches([10, 0, 0, 1].into(), 80, true), "{one:?}");
            for other in &ordered[i + 1..] {
                assert!(one.rank() < other.rank(), "{one:?} {other:?}");
                assert_eq!(one.conflicts(other), !other.intercepts, "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn destinations_of_a_rule() {
        let web = rule("203.0.113.77/24", 80..=443);
        assert_eq!(web.address().to_string(), "203.0.113.0:0");
        let matches = |address: [u8; 4], port| web.matches(address.into(), port, false);
        assert!(matches([203, 0, 113, 1], 80) && matches([203, 0, 113, 255], 443));
        assert!(!matches([203, 0, 114, 1], 80));
        assert!(!matches([203, 0, 113, 1], 79) && !matches([203, 0, 113, 1], 444));
        let v6 = "2001:db8::1".parse().unwrap();
        assert!(!rule("0.0.0.0/0", 80..=80).matches(v6, 80, false));
        assert!(rule("", 80..=80).matches(v6, 80, false), "both families");
        let bound = Rule::bound([10, 0, 0, 1].into(), 80);
        assert!(!Rule::bound([0, 0, 0, 0].into(), 80).matches([10, 0, 0, 2].into(), 80, false));
        assert_eq!(bound.address().to_string(), "10.0.0.1:80");
    }

    #[test]
    fn equal_rules_that_overlap_conflict() {
        let net = "10.0.0.0/8";
        let conflict = |a: Rule, b: Rule| {
            assert_eq!(a.conflicts(&b), b.conflicts(&a));
            a.conflicts(&b)
        };
        assert!(conflict(rule(net, 1..=9), rule("10.9.9.9/8", 1..=9)));
        assert!(
            conflict(rule(net, 1..=9), rule(net, 9..=17)),
            "port 9 matches both"
        );
        assert!(!conflict(rule(net, 1..=9), rule(net, 10..=18)));
        assert!(
            !conflict(rule(net, 1..=9), rule(net, 9..=9)),
            "more precise"
        );
        assert!(!conflict(rule(net, 1..=9), rule("11.0.0.0/8", 1..=9)));
        assert!(conflict(rule("", 0..=65535), rule("", 0..=65535)));
    }
}
