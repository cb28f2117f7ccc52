//! Initial sequence numbers and timestamps: a clock, and a keyed hash of both ends (RFC 6528, RFC 7323).
//! No locks: the key is atomic.

use crate::stack::seed::Seed;
use crate::tcp::wire::Tuple;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The secret key of initial sequence numbers, timestamps, SYN cookies and identifications.
///
/// The standard library draws the keys of a thread's `RandomState`s from the operating system only once, so two copies
/// of a process get the same ones. Therefore a key of the stack's own is hashed before each value.
#[derive(Debug)]
pub(in crate::stack) struct IsnSecret {
    hasher: RandomState,
    key: [AtomicU64; 2],
    /// In tests that need repeatable numbers only the key counts.
    repeatable: AtomicBool,
}

impl IsnSecret {
    pub(in crate::stack) fn new(seed: &Seed) -> IsnSecret {
        let secret = IsnSecret {
            hasher: RandomState::new(),
            key: [0, 0].map(AtomicU64::new),
            repeatable: AtomicBool::new(false),
        };
        secret.reseed(seed);
        secret
    }

    /// Replaces the key. A call of another thread at the same time uses the former one, the new one, or one that is
    /// half of each: a secret in any case.
    pub(in crate::stack) fn reseed(&self, seed: &Seed) {
        self.repeatable.store(seed.repeatable, Ordering::Relaxed);
        for (half, new) in self.key.iter().zip(seed.hashes) {
            half.store(new, Ordering::Relaxed);
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

    /// A number beyond the last one of a former connection between these ends, whose records also a copy of the stack
    /// may have: by up to 2 to the power of 24.
    #[expect(clippy::cast_possible_truncation, reason = "24 bits of a hash")]
    pub(in crate::stack) fn number_after(&self, tuple: &Tuple, snd_nxt: u32) -> u32 {
        let secret = self.keyed_hash((tuple, snd_nxt, "beyond")) as u32 >> 8;
        snd_nxt.wrapping_add(1 << 16).wrapping_add(secret)
    }

    /// A hash with the secret key.
    pub(in crate::stack) fn keyed_hash(&self, value: impl Hash) -> u64 {
        let [first, second] = &self.key;
        let [first, second] = [first, second].map(|half| half.load(Ordering::Relaxed));
        match self.repeatable.load(Ordering::Relaxed) {
            true => BuildHasherDefault::<DefaultHasher>::default().hash_one((first, value)),
            false => self.hasher.hash_one((first, second, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn timestamps_of_the_same_ends_go_on_and_others_are_elsewhere() {
        let (secret, tuples) = (IsnSecret::new(&Seed::draw(None).unwrap()), tuples());
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
            let new = |seed| IsnSecret::new(&Seed::draw(repeatable.then_some(seed)).unwrap());
            let (stack, other) = (new(7), new(8));
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

    /// As in a copy of a process, whose threads have drawn the keys of their `RandomState`s: the hasher is the same.
    #[test]
    fn the_same_hasher_with_another_key_is_another_secret() {
        let (secret, tuples) = (IsnSecret::new(&Seed::draw(None).unwrap()), tuples());
        let numbers = || tuples.iter().map(|tuple| secret.keyed_hash(tuple));
        let before: Vec<u64> = numbers().collect();
        assert!(numbers().eq(before.iter().copied()));
        secret.reseed(&Seed::draw(None).unwrap());
        assert!(numbers().all(|number| !before.contains(&number)));
    }

    /// RFC 1122 4.2.2.13: it is larger, and no copy of the stack knows by how much.
    #[test]
    fn a_number_after_that_of_a_former_connection_is_larger_and_secret() {
        let (secret, tuple) = (IsnSecret::new(&Seed::draw(None).unwrap()), tuples()[0]);
        let mut seen = HashSet::new();
        for _ in 0..8 {
            let beyond = secret.number_after(&tuple, u32::MAX).wrapping_add(1);
            assert!((1 << 16..(1 << 24) + (1 << 16)).contains(&beyond));
            assert!(seen.insert(beyond), "not but for one time in 600,000");
            secret.reseed(&Seed::draw(None).unwrap());
        }
    }
}
