//! Names of addresses, by the answers of name servers. Time is an argument.

use crate::message::host_name;
use ipnet::IpNet;
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Packet};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How many pairs of address and name are known at most. The one that expires first makes room for a new one.
pub(crate) const MOST: usize = 4096;
/// Programs use an address somewhat longer than its time to live says, and nothing is to be allowed for ever.
pub(crate) const SHORTEST: Duration = Duration::from_secs(60);
pub(crate) const LONGEST: Duration = Duration::from_secs(86_400);
/// Aliases that are followed in an answer, and addresses that are taken from it.
const ALIASES: usize = 16;
const ADDRESSES: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Names {
    of: HashMap<IpAddr, Vec<Known>>,
    count: usize,
}

#[derive(Debug)]
struct Known {
    name: String,
    until: Instant,
}

impl Names {
    /// Records that a name has an address.
    pub(crate) fn learn(&mut self, name: &str, address: IpAddr, ttl: Duration, now: Instant) {
        let until = now + ttl.clamp(SHORTEST, LONGEST);
        let mut known = self.of.get_mut(&address).into_iter().flatten();
        if let Some(known) = known.find(|known| known.name == name) {
            known.until = known.until.max(until);
            return;
        }
        if self.count == MOST {
            self.forget(now);
        }
        let name = name.to_owned();
        let known = self.of.entry(address).or_default();
        known.push(Known { name, until });
        self.count += 1;
    }

    /// Forgets what has expired, or else what expires first.
    fn forget(&mut self, now: Instant) {
        let all = self.of.values().flatten().map(|known| known.until);
        let first = all.min().unwrap_or(now).max(now);
        self.count = 0;
        self.of.retain(|_, known| {
            known.retain(|known| known.until > first);
            self.count += known.len();
            !known.is_empty()
        });
    }

    /// The names that have this address now.
    pub(crate) fn of(&self, address: IpAddr, now: Instant) -> impl Iterator<Item = &str> {
        let known = self.of.get(&address).into_iter().flatten();
        let valid = known.filter(move |known| known.until > now);
        valid.map(|known| known.name.as_str())
    }
}

/// The addresses of a name in an answer, with their times to live: its own, and those of its aliases (CNAME), however
/// the records are ordered.
pub(crate) fn addresses(name: &str, answer: &Packet<'_>) -> Vec<(IpAddr, Duration)> {
    let records = answer.answers.iter();
    let records = records.filter(|record| record.class == CLASS::IN);
    let named: Vec<_> = records
        .filter_map(|record| {
            let labels = record.name.get_labels().iter().map(AsRef::as_ref);
            Some((host_name(labels)?, record))
        })
        .collect();
    let mut found = Vec::new();
    let mut aliases = vec![(name.to_owned(), u32::MAX)];
    for at in 0..ALIASES {
        let Some((owner, longest)) = aliases.get(at).cloned() else {
            break;
        };
        for (_, record) in named.iter().filter(|(name, _)| *name == owner) {
            // RFC 2181 8: one with the upper bit is zero.
            let ttl = i32::try_from(record.ttl).map_or(0, |_| record.ttl.min(longest));
            let address: IpAddr = match &record.rdata {
                RData::A(data) => data.address.to_be_bytes().into(),
                RData::AAAA(data) => data.address.to_be_bytes().into(),
                RData::CNAME(data) => {
                    let alias = host_name(data.0.get_labels().iter().map(AsRef::as_ref));
                    let seen = |alias: &String| aliases.iter().any(|(name, _)| name == alias);
                    aliases.extend(alias.filter(|alias| !seen(alias)).map(|name| (name, ttl)));
                    continue;
                }
                _ => continue,
            };
            found.push((address, Duration::from_secs(ttl.into())));
        }
    }
    found.truncate(ADDRESSES);
    found
}

/// Whether a name may lead to this address. The name server of an allowed name chooses its addresses: not those that
/// only the host itself or its link can reach, and not those of the guest's own network (DNS rebinding). IPv4 in the
/// form of IPv6 is none.
pub(crate) fn is_for_names(address: IpAddr, inside: &[IpNet]) -> bool {
    let reserved = match address {
        IpAddr::V4(v4) => {
            let octets = v4.octets();
            octets[0] == 0 || octets[0] >= 224 || v4.is_loopback() || v4.is_link_local()
        }
        IpAddr::V6(v6) => {
            let is_v4 = v6.segments()[..5] == [0; 5];
            is_v4 || v6.is_multicast() || v6.is_unicast_link_local()
        }
    };
    !reserved && !inside.iter().any(|network| network.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use simple_dns::rdata::{A, AAAA, CNAME};
    use simple_dns::{Name, ResourceRecord};
    use sosplice::clock::{Clock, SystemClock};

    fn ip(string: &str) -> IpAddr {
        string.parse().unwrap()
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn record<'a>(name: &'a str, ttl: u32, data: RData<'a>) -> ResourceRecord<'a> {
        ResourceRecord::new(Name::new(name).unwrap(), CLASS::IN, ttl, data)
    }

    fn a<'a>(name: &'a str, address: [u8; 4], ttl: u32) -> ResourceRecord<'a> {
        let address = u32::from_be_bytes(address);
        record(name, ttl, RData::A(A { address }))
    }

    fn alias<'a>(name: &'a str, to: &'a str, ttl: u32) -> ResourceRecord<'a> {
        record(name, ttl, RData::CNAME(CNAME(Name::new(to).unwrap())))
    }

    fn of(name: &str, answers: Vec<ResourceRecord<'_>>) -> Vec<(String, u64)> {
        let mut packet = Packet::new_reply(1);
        packet.answers = answers;
        let found = addresses(name, &packet).into_iter();
        found
            .map(|(ip, ttl)| (ip.to_string(), ttl.as_secs()))
            .collect()
    }

    fn one(address: &str, ttl: u64) -> Vec<(String, u64)> {
        vec![(address.to_owned(), ttl)]
    }

    #[test]
    fn records_of_other_names_are_not_its_addresses() {
        let answers = vec![
            a("other.test", [192, 0, 2, 1], 60),
            a("WWW.test", [192, 0, 2, 2], 70),
            ResourceRecord {
                class: CLASS::CH,
                ..a("www.test", [192, 0, 2, 3], 60)
            },
        ];
        assert_eq!(of("www.test", answers), one("192.0.2.2", 70));
        let answers = vec![a("www.test", [192, 0, 2, 1], 1 << 31)];
        assert_eq!(of("www.test", answers), one("192.0.2.1", 0));
        let address = u128::from_be_bytes([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let answers = vec![record("www.test", 5, RData::AAAA(AAAA { address }))];
        assert_eq!(of("www.test", answers), one("2001:db8::1", 5));
    }

    #[test]
    fn aliases_are_followed_in_any_order_and_the_shortest_time_counts() {
        let mut answers = vec![
            alias("www.test", "b.test", 300),
            alias("b.test", "C.test", 20),
            a("c.test", [192, 0, 2, 1], 100),
        ];
        assert_eq!(of("www.test", answers.clone()), one("192.0.2.1", 20));
        answers.reverse();
        assert_eq!(of("www.test", answers), one("192.0.2.1", 20));
        // A circle ends.
        let answers = vec![
            alias("www.test", "b.test", 300),
            alias("b.test", "www.test", 300),
        ];
        assert_eq!(of("www.test", answers), []);
    }

    #[test]
    fn no_answer_has_endless_aliases_or_addresses() {
        let names: Vec<_> = (0..100).map(|at| format!("n{at}.test")).collect();
        let chain = |len: usize| {
            let pairs = names[..len].windows(2);
            let mut answers: Vec<_> = pairs.map(|pair| alias(&pair[0], &pair[1], 60)).collect();
            answers.push(a(&names[len - 1], [192, 0, 2, 1], 60));
            answers
        };
        assert_eq!(of("n0.test", chain(ALIASES)), one("192.0.2.1", 60));
        assert_eq!(of("n0.test", chain(ALIASES + 1)), []);
        let many = (0..200).map(|at| a("n0.test", [192, 0, 2, at], 60));
        assert_eq!(of("n0.test", many.collect()).len(), ADDRESSES);
    }

    #[test]
    fn a_name_is_known_for_its_time_and_at_least_for_a_minute() {
        let (mut names, now) = (Names::default(), SystemClock.now());
        let knows = |names: &Names, address: &str, after: Duration| {
            names.of(ip(address), now + after).count() == 1
        };
        for (address, ttl, until) in [
            ("192.0.2.1", seconds(0), SHORTEST),
            ("192.0.2.2", seconds(300), seconds(300)),
            ("192.0.2.3", seconds(u32::MAX.into()), LONGEST),
        ] {
            names.learn("www.test", ip(address), ttl, now);
            assert!(knows(&names, address, until - seconds(1)));
            assert!(!knows(&names, address, until));
        }
        // Another answer makes it no shorter.
        names.learn("www.test", ip("192.0.2.2"), seconds(10), now + seconds(1));
        assert!(knows(&names, "192.0.2.2", seconds(299)));
        names.learn("www.test", ip("192.0.2.2"), seconds(300), now + seconds(1));
        assert!(knows(&names, "192.0.2.2", seconds(300)));
    }

    #[test]
    fn an_address_may_have_several_names() {
        let (mut names, now) = (Names::default(), SystemClock.now());
        names.learn("a.test", ip("192.0.2.1"), seconds(100), now);
        names.learn("b.test", ip("192.0.2.1"), seconds(200), now);
        let of = |after| -> Vec<_> { names.of(ip("192.0.2.1"), now + after).collect() };
        assert_eq!(of(seconds(99)), ["a.test", "b.test"]);
        assert_eq!(of(seconds(199)), ["b.test"]);
    }

    #[test]
    fn the_first_to_expire_makes_room() {
        let (mut names, now) = (Names::default(), SystemClock.now());
        let address = |at: usize| IpAddr::from(u32::try_from(at).unwrap().to_be_bytes());
        let ttl = |at: usize| seconds(1000 + u64::try_from(at).unwrap());
        for at in 0..MOST {
            names.learn("www.test", address(at), ttl(at), now);
        }
        assert_eq!(names.count, MOST);
        names.learn("new.test", address(MOST), ttl(MOST), now);
        assert_eq!((names.count, names.of.len()), (MOST, MOST));
        assert_eq!(names.of(address(0), now).count(), 0);
        assert_eq!(names.of(address(1), now).count(), 1);
        // All that has expired goes at once.
        names.learn("new.test", address(MOST + 1), ttl(0), now + ttl(99));
        assert_eq!(names.count, MOST + 1 - 99);
        assert_eq!(names.of.values().flatten().count(), names.count);
    }

    #[test]
    fn names_do_not_lead_to_the_host_or_its_link() {
        let inside = ["10.0.2.0/24", "fd00::/64"].map(|network| network.parse().unwrap());
        for address in ["192.0.2.1", "10.0.3.1", "2001:db8::1", "fd01::1"] {
            assert!(is_for_names(ip(address), &inside), "{address}");
        }
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "10.0.2.1",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:192.0.2.1",
            "::7f00:1",
            "fe80::1",
            "ff02::1",
            "fd00::1",
        ] {
            assert!(!is_for_names(ip(address), &inside), "{address}");
        }
    }
}
