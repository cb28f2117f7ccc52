//! Numbers that are not to be guessed: initial sequence numbers, ephemeral ports, seeds.
//!
//! No locks: counters are atomic.

use crate::tcp::wire::Tuple;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash, Hasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Ports for connections that do not ask for one (RFC 6335 6).
pub(in crate::stack) const EPHEMERAL: RangeInclusive<u16> = 49_152..=65_535;
/// Counters of dials, each shared by the destinations that hash to it.
const COUNTERS: usize = 512;

#[derive(Debug)]
pub(in crate::stack) struct Numbers {
    /// Keys the initial sequence numbers (RFC 6528).
    secret: RandomState,
    /// A test gave the seed, and wants the same numbers again.
    repeatable: bool,
    /// Keys the ports to dial from.
    port_secret: u64,
    ports: RangeInclusive<u16>,
    dialled: Box<[AtomicU64; COUNTERS]>,
    random: AtomicU64,
}

impl Numbers {
    pub(in crate::stack) fn new(
        seed: u64,
        repeatable: bool,
        ports: RangeInclusive<u16>,
    ) -> Numbers {
        let mut numbers = Numbers {
            secret: RandomState::new(),
            repeatable,
            port_secret: seed.rotate_left(32),
            ports,
            dialled: Box::new(std::array::from_fn(|_| AtomicU64::new(0))),
            random: AtomicU64::new(seed),
        };
        // RFC 6056 3.3.4: they begin anywhere.
        numbers.dialled = Box::new(std::array::from_fn(|_| AtomicU64::new(numbers.random())));
        numbers
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

    /// RFC 7323 5.4, 7.1: a clock of milliseconds, and a keyed hash of both ends. So a connection's are later
    /// than those of any former one between the same ends, which a peer in TIME-WAIT looks at.
    #[expect(clippy::cast_possible_truncation, reason = "timestamps wrap")]
    pub(in crate::stack) fn initial_timestamp(&self, tuple: &Tuple, since_epoch: Duration) -> u32 {
        let offset = self.keyed_hash((tuple, "timestamps")) as u32;
        offset.wrapping_add(since_epoch.as_millis() as u32)
    }

    /// With the secret of the initial sequence numbers.
    pub(in crate::stack) fn keyed_hash(&self, value: impl Hash) -> u64 {
        match self.repeatable {
            true => {
                BuildHasherDefault::<DefaultHasher>::default().hash_one((self.port_secret, value))
            }
            false => self.secret.hash_one(value),
        }
    }

    /// SplitMix64: for ports; sequence numbers on the wire do not depend on it.
    pub(in crate::stack) fn random(&self) -> u64 {
        let step = 0x9e37_79b9_7f4a_7c15;
        let mut z = self
            .random
            .fetch_add(step, Ordering::Relaxed)
            .wrapping_add(step);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn count(&self) -> u64 {
        u64::from(self.ports.end() - self.ports.start()) + 1
    }

    fn port(&self, number: u64) -> u16 {
        let offset = u16::try_from(number % self.count()).expect("invariant: below 65,536");
        self.ports.start() + offset
    }

    /// All ephemeral ports, from a random one on (RFC 6056 3.3.1).
    pub(in crate::stack) fn ephemeral(&self) -> impl Iterator<Item = u16> {
        let first = self.random() % self.count();
        (0..self.count()).map(move |i| self.port(first + i))
    }

    /// All ephemeral ports for connections to `to`, by RFC 6056 3.3.4 (double hash): from one on that
    /// only this destination has, each dial a step further. A port that was free again would soon be
    /// taken a second time if they were random, and while the peer remembers its former connection
    /// (TIME-WAIT) that is refused if the connection was faster than the clock of initial sequence
    /// numbers. A single counter of all dials would tell each peer how many others there are.
    pub(in crate::stack) fn ports_to(
        &self,
        local: IpAddr,
        to: SocketAddr,
    ) -> impl Iterator<Item = u16> {
        let first = self.hash(0, local, to) % self.count();
        let dialled = &self.dialled[self.counter_of(local, to)];
        (0..self.count()).map(move |_| {
            let step = dialled.fetch_add(1, Ordering::Relaxed) % self.count();
            self.port(first + step)
        })
    }

    fn counter_of(&self, local: IpAddr, to: SocketAddr) -> usize {
        let bucket = self.hash(1, local, to) % COUNTERS as u64;
        usize::try_from(bucket).expect("invariant: below COUNTERS")
    }

    fn hash(&self, which: u8, local: IpAddr, to: SocketAddr) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.port_secret, which, local, to).hash(&mut hasher);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn numbers(seed: u64) -> Numbers {
        Numbers::new(seed, false, EPHEMERAL)
    }

    #[test]
    fn timestamps_of_the_same_ends_go_on_and_others_are_elsewhere() {
        let (numbers, tuples) = (numbers(1), tuples());
        let at = |tuple, millis| numbers.initial_timestamp(tuple, Duration::from_millis(millis));
        for tuple in &tuples {
            assert_eq!(at(tuple, 61_000).wrapping_sub(at(tuple, 1000)), 60_000);
            let wrapped = at(tuple, u64::from(u32::MAX) + 1001);
            assert_eq!(wrapped, at(tuple, 1000));
        }
        let all: HashSet<u32> = tuples.iter().map(|tuple| at(tuple, 1000)).collect();
        assert_eq!(all.len(), tuples.len());
        // Who knows the sequence number does not know the timestamp.
        let both = |tuple: &Tuple| {
            let now = Duration::from_secs(1);
            let number = numbers.initial_sequence_number(tuple, now);
            number.wrapping_sub(numbers.initial_timestamp(tuple, now))
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
            let stack = Numbers::new(7, repeatable, EPHEMERAL);
            let other = Numbers::new(8, repeatable, EPHEMERAL);
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
                // 4.77 hours later the clock has gone round.
                assert_eq!(at(Duration::from_micros(4 << 32)), start);
            }
        }
    }

    fn to(host: u8) -> SocketAddr {
        SocketAddr::new([10, 0, 1, host].into(), 443)
    }

    /// Guards the table of counters: what is dialled elsewhere does not show.
    #[test]
    fn a_peer_does_not_see_dials_to_others() {
        let numbers = numbers(3);
        let dial = |host| numbers.ports_to(LOCAL, to(host)).next().unwrap();
        let first = dial(1);
        let mut same = 0;
        for host in 2..=201 {
            dial(host);
            same += usize::from(
                numbers.counter_of(LOCAL, to(host)) == numbers.counter_of(LOCAL, to(1)),
            );
        }
        assert!(same < 10, "200 destinations share 512 counters");
        let expected = usize::from(first - EPHEMERAL.start()) + 1 + same;
        let port = EPHEMERAL.start() + u16::try_from(expected % 16_384).unwrap();
        assert_eq!(dial(1), port);
    }

    #[test]
    fn every_port_once_and_hard_to_guess() {
        let numbers = numbers(4);
        let ports: Vec<u16> = numbers.ports_to(LOCAL, to(1)).collect();
        assert_eq!(ports.iter().collect::<HashSet<_>>().len(), 16_384);
        assert!(ports.iter().all(|port| EPHEMERAL.contains(port)));
        let firsts: HashSet<u16> = (0..100)
            .filter_map(|host| numbers.ports_to(LOCAL, to(host)).next())
            .collect();
        assert!(firsts.len() > 90, "each destination begins elsewhere");
        let other = Numbers::new(5, false, EPHEMERAL);
        assert_ne!(other.ports_to(LOCAL, to(1)).next(), ports.first().copied());
        let all = Numbers::new(6, false, 1..=u16::MAX);
        assert_eq!(all.ephemeral().collect::<HashSet<_>>().len(), 65_535);
        let one = Numbers::new(6, false, 7..=7);
        assert!(one.ports_to(LOCAL, to(1)).eq([7]) && one.ephemeral().eq([7]));
    }
}
