//! What the guest may reach: the rules, what its answers said about names, and counters. Without rules all is allowed.

use crate::names::{Names, addresses, is_for_names};
use crate::rule::Rule;
use ipnet::IpNet;
use parking_lot::Mutex;
use simple_dns::Packet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

#[derive(Debug)]
pub(crate) struct Policy {
    rules: Vec<Rule>,
    /// The guest's networks.
    inside: Vec<IpNet>,
    names: Mutex<Names>,
    pub(crate) counters: Counters,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections: Counter,
    pub(crate) connections_failed: Counter,
    pub(crate) connections_prohibited: Counter,
    pub(crate) flows: Counter,
    pub(crate) flows_failed: Counter,
    pub(crate) flows_prohibited: Counter,
    pub(crate) pings: Counter,
    pub(crate) pings_failed: Counter,
    pub(crate) pings_prohibited: Counter,
    pub(crate) queries: Counter,
    pub(crate) queries_refused: Counter,
    /// Messages of the resolver that were no answers to a query.
    pub(crate) answers_ignored: Counter,
    /// Addresses in answers that names may not lead to.
    pub(crate) addresses_ignored: Counter,
    /// Connections and flows of a guest that is gone.
    pub(crate) abandoned: Counter,
}

#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.add_all(1);
    }

    pub(crate) fn add_all(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Counter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Policy {
    pub(crate) fn new(rules: Vec<Rule>, inside: Vec<IpNet>) -> Policy {
        Policy {
            rules,
            inside,
            names: Mutex::default(),
            counters: Counters::default(),
        }
    }

    /// Whether the guest may send to this port of an address, or ping it (`None`).
    pub(crate) fn allows(&self, to: IpAddr, port: Option<u16>, now: Instant) -> bool {
        let names = self.names.lock();
        let about = |rule: &&Rule| {
            rule.has_address(to) || names.of(to, now).any(|name| rule.has_name(name))
        };
        let mut rules = self.rules.iter().filter(|rule| rule.has_port(port));
        self.rules.is_empty() || rules.any(|rule| about(&rule))
    }

    /// Whether the guest may ask for this name; `None` is one that no host has.
    pub(crate) fn allows_name(&self, name: Option<&str>) -> bool {
        let matches = |name| self.rules.iter().any(|rule| rule.has_name(name));
        self.rules.is_empty() || name.is_some_and(matches)
    }

    /// What an answer says about the name that was asked for.
    pub(crate) fn learn(&self, name: &str, answer: &Packet<'_>, now: Instant) {
        let mut names = self.names.lock();
        for (address, ttl) in addresses(name, answer) {
            match is_for_names(address, &self.inside) {
                true => names.learn(name, address, ttl, now),
                false => self.counters.addresses_ignored.add(),
            }
        }
    }

    /// The name by which the guest knows an address.
    pub(crate) fn name(&self, address: IpAddr, now: Instant) -> Option<String> {
        self.names.lock().of(address, now).next().map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simple_dns::rdata::{A, RData};
    use simple_dns::{CLASS, Name, ResourceRecord};
    use sosplice::clock::{Clock, SystemClock};
    use std::time::Duration;

    fn policy(rules: &[&str]) -> Policy {
        let rules = rules.iter().map(|rule| rule.parse().unwrap());
        Policy::new(rules.collect(), Vec::new())
    }

    fn learn(policy: &Policy, name: &str, address: [u8; 4], now: Instant) {
        let data = RData::A(A {
            address: u32::from_be_bytes(address),
        });
        let mut answer = Packet::new_reply(1);
        let owner = Name::new(name).unwrap();
        answer.answers = vec![ResourceRecord::new(owner, CLASS::IN, 100, data)];
        policy.learn(name, &answer, now);
    }

    #[test]
    fn without_rules_all_is_allowed() {
        let (policy, now) = (policy(&[]), SystemClock.now());
        assert!(policy.allows([192, 0, 2, 1].into(), None, now));
        assert!(policy.allows_name(None));
    }

    #[test]
    fn an_address_is_allowed_by_its_network_or_by_its_name_while_it_has_it() {
        let policy = policy(&[
            "198.51.100.0/24",
            "192.0.2.9:443",
            "example.org:443",
            "*.test",
        ]);
        let start = SystemClock.now();
        let (web, other) = ([192, 0, 2, 1], [192, 0, 2, 2]);
        let allows = |address: [u8; 4], port, after| {
            policy.allows(address.into(), port, start + Duration::from_secs(after))
        };
        assert!(allows([198, 51, 100, 1], None, 0));
        assert!(allows([192, 0, 2, 9], Some(443), 0) && !allows([192, 0, 2, 9], Some(80), 0));
        assert!(!allows(web, Some(443), 0));
        learn(&policy, "example.org", web, start);
        assert!(allows(web, Some(443), 99));
        assert!(!allows(web, Some(443), 100), "expired");
        assert!(!allows(web, Some(80), 0) && !allows(web, None, 0));
        assert!(!allows(other, Some(443), 0));
        // It has a second name, with more rights.
        learn(&policy, "www.test", web, start);
        assert!(allows(web, Some(80), 0) && allows(web, None, 0));
        assert_eq!(
            policy.name(web.into(), start).as_deref(),
            Some("example.org")
        );
    }
}
