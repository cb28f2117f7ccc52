//! Ephemeral ports that cannot be guessed (RFC 6056). No locks: counters are atomic.

use crate::random::{STEP, mix};
use crate::stack::seed::Seed;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};

/// The default range (RFC 6335 6).
pub(in crate::stack) const EPHEMERAL: RangeInclusive<u16> = 49_152..=65_535;
/// Number of connection counters, each shared by the destinations that hash to it.
const COUNTERS: usize = 512;

#[derive(Debug)]
pub(in crate::stack) struct EphemeralPorts {
    secret: AtomicU64,
    ports: RangeInclusive<u16>,
    dialled: Box<[AtomicU64; COUNTERS]>,
    random: AtomicU64,
}

impl EphemeralPorts {
    pub(in crate::stack) fn new(seed: &Seed, ports: RangeInclusive<u16>) -> EphemeralPorts {
        let made = EphemeralPorts {
            secret: AtomicU64::new(0),
            ports,
            dialled: Box::new(std::array::from_fn(|_| AtomicU64::new(0))),
            random: AtomicU64::new(0),
        };
        made.reseed(seed);
        made
    }

    /// Replaces the secret. A port that another thread takes at the same time may follow from the former one.
    pub(in crate::stack) fn reseed(&self, seed: &Seed) {
        self.secret
            .store(seed.ports.rotate_left(32), Ordering::Relaxed);
        self.random.store(seed.ports, Ordering::Relaxed);
        // RFC 6056 3.3.4: each counter starts at a random value.
        for counter in self.dialled.iter() {
            counter.store(self.random(), Ordering::Relaxed);
        }
    }

    fn random(&self) -> u64 {
        let last = self.random.fetch_add(STEP, Ordering::Relaxed);
        mix(last.wrapping_add(STEP))
    }

    fn count(&self) -> u64 {
        u64::from(self.ports.end() - self.ports.start()) + 1
    }

    fn port(&self, number: u64) -> u16 {
        let offset = u16::try_from(number % self.count()).expect("invariant: below 65,536");
        self.ports.start() + offset
    }

    /// All ephemeral ports, from a random one on (RFC 6056 3.3.1).
    pub(in crate::stack) fn all_from_random(&self) -> impl Iterator<Item = u16> {
        let first = self.random() % self.count();
        (0..self.count()).map(move |i| self.port(first + i))
    }

    /// All ephemeral ports for connections to `to`, by RFC 6056 3.3.4 (double hash): the sequence
    /// starts at an offset of the destination, and each connection takes the next port. With random
    /// ports, a port would soon be reused while the peer still has the former connection in TIME-WAIT,
    /// which refuses the new one if the former was faster than the clock of initial sequence numbers. A
    /// single counter for all destinations would reveal the number of connections to other peers.
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
        (self.secret.load(Ordering::Relaxed), which, local, to).hash(&mut hasher);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn seeded(seed: u64) -> EphemeralPorts {
        EphemeralPorts::new(&Seed::repeatable(seed), EPHEMERAL)
    }

    fn to(host: u8) -> SocketAddr {
        SocketAddr::new([10, 0, 1, host].into(), 443)
    }

    /// Guards the table of counters: connections to other peers are not visible.
    #[test]
    fn a_peer_does_not_see_dials_to_others() {
        let ports = seeded(3);
        let dial = |host| ports.ports_to(LOCAL, to(host)).next().unwrap();
        let first = dial(1);
        let mut same = 0;
        for host in 2..=201 {
            dial(host);
            same +=
                usize::from(ports.counter_of(LOCAL, to(host)) == ports.counter_of(LOCAL, to(1)));
        }
        assert!(same < 10, "200 destinations share 512 counters");
        let expected = usize::from(first - EPHEMERAL.start()) + 1 + same;
        let port = EPHEMERAL.start() + u16::try_from(expected % 16_384).unwrap();
        assert_eq!(dial(1), port);
    }

    #[test]
    fn every_port_once_and_hard_to_guess() {
        let dialled = seeded(4);
        let ports: Vec<u16> = dialled.ports_to(LOCAL, to(1)).collect();
        assert_eq!(ports.iter().collect::<HashSet<_>>().len(), 16_384);
        assert!(ports.iter().all(|port| EPHEMERAL.contains(port)));
        let firsts: HashSet<u16> = (0..100)
            .filter_map(|host| dialled.ports_to(LOCAL, to(host)).next())
            .collect();
        assert!(firsts.len() > 90, "each destination begins elsewhere");
        let other = EphemeralPorts::new(&Seed::repeatable(5), EPHEMERAL);
        assert_ne!(other.ports_to(LOCAL, to(1)).next(), ports.first().copied());
        let all = EphemeralPorts::new(&Seed::repeatable(6), 1..=u16::MAX);
        assert_eq!(all.all_from_random().collect::<HashSet<_>>().len(), 65_535);
        let one = EphemeralPorts::new(&Seed::repeatable(6), 7..=7);
        assert!(one.ports_to(LOCAL, to(1)).eq([7]) && one.all_from_random().eq([7]));
    }
}
