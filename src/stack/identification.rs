//! Identifications of packets that are sent in fragments (RFC 6864, RFC 7739).
//!
//! For each pair of addresses and protocol they count up from a secret offset: none is repeated before all have been
//! used, and other hosts cannot guess them. Each counter is shared by the destinations that hash to it. No locks:
//! counters are atomic.

use crate::stack::isn::IsnSecret;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};

const COUNTERS: usize = 512;

/// See the module.
#[derive(Debug)]
pub(in crate::stack) struct Identifications(Box<[AtomicU32; COUNTERS]>);

impl Default for Identifications {
    fn default() -> Identifications {
        Identifications(Box::new(std::array::from_fn(|_| AtomicU32::new(0))))
    }
}

impl Identifications {
    /// The next identification between these addresses. IPv4 uses the lower half.
    #[expect(clippy::cast_possible_truncation, reason = "identifications wrap")]
    pub(in crate::stack) fn next(
        &self,
        secret: &IsnSecret,
        ends: (IpAddr, IpAddr),
        protocol: u8,
    ) -> u32 {
        let hash = secret.keyed_hash((ends, protocol, "fragments"));
        let counter = &self.0[(hash >> 32) as usize % COUNTERS];
        (hash as u32).wrapping_add(counter.fetch_add(1, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::seed::Seed;
    use std::collections::HashSet;

    fn drawn() -> IsnSecret {
        IsnSecret::new(&Seed::draw(None).unwrap())
    }

    /// RFC 6864 4.3: none comes again before all have been used. RFC 7739 5.3: other destinations begin elsewhere,
    /// and so does another stack.
    #[test]
    fn each_destination_has_its_own_from_a_secret_number_on() {
        let (all, secret) = (Identifications::default(), drawn());
        let ends = |host: u8| (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 1, host]));
        let first = all.next(&secret, ends(1), 17);
        let seen: HashSet<u32> = (0..65_536)
            .map(|_| all.next(&secret, ends(1), 17) & 0xffff)
            .collect();
        assert_eq!(seen.len(), 65_536);
        let others: HashSet<u32> = (2..=201)
            .map(|host| all.next(&secret, ends(host), 17))
            .collect();
        assert!(others.len() == 200 && !others.contains(&first));
        let near = others
            .iter()
            .filter(|other| first.abs_diff(**other) < 1 << 16);
        assert!(near.count() < 3);
        let again = Identifications::default().next(&drawn(), ends(1), 17);
        assert!(
            again.abs_diff(first) > 16,
            "not but for one time in a hundred million"
        );
        assert_ne!(
            all.next(&secret, ends(1), 1),
            all.next(&secret, ends(1), 17)
        );
    }
}
