//! Initial sequence numbers and timestamps: a clock, and a keyed hash of both ends (RFC 6528, RFC 7323).

use crate::tcp::wire::Tuple;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash, RandomState};
use std::time::Duration;

/// The secret key of initial sequence numbers, timestamps and SYN cookies.
#[derive(Debug)]
pub(in crate::stack) struct IsnSecret {
    secret: RandomState,
    /// Replaces the random secret in tests that need repeatable numbers.
    fixed: Option<u64>,
}

impl IsnSecret {
    /// A random secret, or in tests the given one.
    pub(in crate::stack) fn new(fixed: Option<u64>) -> IsnSecret {
        IsnSecret {
            secret: RandomState::new(),
            fixed,
        }
    }

    /// RFC 6528: a clock of 4 us ticks, and a keyed hash of both ends.
    #[expect(clippy::cast_possible_truncation, reason = "sequence numbers wrap")]
    pub(in crate::stack) fn initial_sequence_number(
        &self,
        tuple: &Tuple,
        since_epoch: Duration,
    ) -> u32 {
        let ticks = since_epoch.as_micros() / 4;
        (self.keyed_hash(tuple) as u32).wrapping_add(ticks as u32)
    }

    /// RFC 7323 5.4, 7.1: a clock of milliseconds, and a keyed hash of both ends. So a connection's
    /// timestamps are later than those of any former one between the same ends, as a peer in TIME-WAIT
    /// requires.
    #[expect(clippy::cast_possible_truncation, reason = "timestamps wrap")]
    pub(in crate::stack) fn initial_timestamp(&self, tuple: &Tuple, since_epoch: Duration) -> u32 {
        let offset = self.keyed_hash((tuple, "timestamps")) as u32;
        offset.wrapping_add(since_epoch.as_millis() as u32)
    }

    /// A hash with the secret key.
    pub(in crate::stack) fn keyed_hash(&self, value: impl Hash) -> u64 {
        match self.fixed {
            Some(key) => BuildHasherDefault::<DefaultHasher>::default().hash_one((key, value)),
            None => self.secret.hash_one(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn timestamps_of_the_same_ends_go_on_and_others_are_elsewhere() {
        let (secret, tuples) = (IsnSecret::new(None), tuples());
        let at = |tuple, millis| secret.initial_timestamp(tuple, Duration::from_millis(millis));
        for tuple in &tuples {
            assert_eq!(at(tuple, 61_000).wrapping_sub(at(tuple, 1000)), 60_000);
            let wrapped = at(tuple, u64::from(u32::MAX) + 1001);
            assert_eq!(wrapped, at(tuple, 1000));
        }
        let all: HashSet<u32> = tuples.iter().map(|tuple| at(tuple, 1000)).collect();
        assert_eq!(all.len(), tuples.len());
        // The timestamp cannot be derived from the sequence number.
        let both = |tuple: &Tuple| {
            let now = Duration::from_secs(1);
            let number = secret.initial_sequence_number(tuple, now);
            number.wrapping_sub(secret.initial_timestamp(tuple, now))
        };
        let apart: HashSet<u32> = tuples.iter().map(both).collect();
        assert_eq!(apart.len(), tuples.len());
    }

    fn tuples() -> Vec<Tuple> {
        let tuple = |local: &str, remote: &str, local_port, remote_port| Tuple {
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            local_port,
            remote_port,
        };
        vec![
            tuple("10.0.0.1", "10.0.0.2", 50_000, 80),
            tuple("10.0.0.3", "10.0.0.2", 50_000, 80),
            tuple("10.0.0.1", "10.0.0.3", 50_000, 80),
            tuple("10.0.0.1", "10.0.0.2", 50_001, 80),
            tuple("10.0.0.1", "10.0.0.2", 50_000, 81),
            tuple("fd00::1", "fd00::2", 50_000, 80),
            tuple("fd00::1", "fd00::3", 50_000, 80),
        ]
    }

    /// Guards the clock M, the hash F over all of the tuple, and its secret (RFC 6528 3).
    #[test]
    fn rfc_6528() {
        for repeatable in [false, true] {
            let stack = IsnSecret::new(repeatable.then_some(7));
            let other = IsnSecret::new(repeatable.then_some(8));
            let mut first = HashSet::new();
            for tuple in &tuples() {
                let at = |time| stack.initial_sequence_number(tuple, time);
                let start = at(Duration::ZERO);
                assert!(first.insert(start), "{tuple:?} has a number of its own");
                let elsewhere = other.initial_sequence_number(tuple, Duration::ZERO);
                assert!(first.insert(elsewhere), "each stack has a secret");
                assert_eq!(at(Duration::from_micros(3)), start);
                assert_eq!(at(Duration::from_micros(4)), start.wrapping_add(1));
                assert_eq!(at(Duration::from_secs(60)), start.wrapping_add(15_000_000));
                // The clock wraps after 4.77 hours.
                assert_eq!(at(Duration::from_micros(4 << 32)), start);
            }
        }
    }
}
