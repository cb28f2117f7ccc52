//! Fake addresses: each name that is asked for has one, of a network that is reached through the proxy only.

use ipnet::Ipv4Net;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};

/// Most names. The one whose address was not used for the longest time loses it to a new one.
const MOST: u32 = 65_536;

struct Entry {
    name: String,
    used: u64,
}

/// Names and their addresses.
pub(crate) struct Names {
    network: Ipv4Net,
    /// Addresses that have not been given yet, as many as may be.
    fresh: Box<dyn Iterator<Item = Ipv4Addr> + Send>,
    addresses: HashMap<String, Ipv4Addr>,
    entries: HashMap<Ipv4Addr, Entry>,
    /// Addresses by their last use.
    order: BTreeMap<u64, Ipv4Addr>,
    uses: u64,
}

impl Names {
    /// Addresses of a network, without those that are the stack's own.
    pub(crate) fn new(network: Ipv4Net, own: Vec<IpAddr>) -> Names {
        let fresh = network
            .hosts()
            .filter(move |host| !own.contains(&IpAddr::V4(*host)));
        Names {
            network,
            fresh: Box::new(fresh.take(MOST as usize)),
            addresses: HashMap::new(),
            entries: HashMap::new(),
            order: BTreeMap::new(),
            uses: 0,
        }
    }

    /// Whether an address is fake, used or not.
    pub(crate) fn is_fake(&self, address: IpAddr) -> bool {
        matches!(address, IpAddr::V4(address) if self.network.contains(&address))
    }

    /// The address of a name, which gets one if it has none. `None` if the network has no address at all.
    pub(crate) fn address(&mut self, name: &str) -> Option<Ipv4Addr> {
        if let Some(address) = self.addresses.get(name).copied() {
            self.touch(address);
            return Some(address);
        }
        let address = self.fresh.next().or_else(|| self.take_oldest())?;
        self.uses += 1;
        let entry = Entry {
            name: name.to_owned(),
            used: self.uses,
        };
        self.order.insert(entry.used, address);
        self.entries.insert(address, entry);
        self.addresses.insert(name.to_owned(), address);
        Some(address)
    }

    /// The name that has an address.
    pub(crate) fn name(&mut self, address: IpAddr) -> Option<String> {
        let IpAddr::V4(address) = address else {
            return None;
        };
        self.touch(address);
        Some(self.entries.get(&address)?.name.clone())
    }

    fn touch(&mut self, address: Ipv4Addr) {
        if let Some(entry) = self.entries.get_mut(&address) {
            self.uses += 1;
            self.order.remove(&entry.used);
            self.order.insert(self.uses, address);
            entry.used = self.uses;
        }
    }

    fn take_oldest(&mut self) -> Option<Ipv4Addr> {
        let (_, address) = self.order.pop_first()?;
        let entry = self.entries.remove(&address)?;
        self.addresses.remove(&entry.name);
        Some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_that_was_not_used_for_the_longest_time_is_given_again() {
        let network = "198.18.0.0/29".parse().unwrap();
        let mut names = Names::new(network, vec!["198.18.0.1".parse().unwrap()]);
        let given: Vec<_> = ["a", "b", "c", "d", "e"]
            .map(|name| names.address(name).unwrap())
            .to_vec();
        let expected: Vec<Ipv4Addr> = (2..7).map(|host| Ipv4Addr::new(198, 18, 0, host)).collect();
        assert_eq!(given, expected);
        // Used: "a" by its address, "b" by its name.
        assert_eq!(names.name(given[0].into()).as_deref(), Some("a"));
        assert_eq!(names.address("b"), Some(given[1]));
        assert_eq!(names.address("f"), Some(given[2]));
        assert_eq!(names.name(given[2].into()).as_deref(), Some("f"));
        assert_eq!(names.address("c"), Some(given[3]));
        assert_eq!(names.entries.len(), 5);
        assert_eq!((names.addresses.len(), names.order.len()), (5, 5));
    }

    #[test]
    fn an_address_without_a_name_has_none_and_a_network_of_own_addresses_gives_none() {
        let own: IpAddr = "10.0.0.1".parse().unwrap();
        let mut names = Names::new("10.0.0.1/32".parse().unwrap(), vec![own]);
        assert!(names.is_fake(own) && !names.is_fake("10.0.0.2".parse().unwrap()));
        assert_eq!((names.address("a"), names.name(own)), (None, None));
    }
}
