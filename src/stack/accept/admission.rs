//! How many connections a stack takes on: in all, half-open ones, and those that one peer has opened.
//!
//! What is counted where: all connections in the [table](crate::stack::demux::conn_table), half-open ones by their own
//! map, those of a peer here. A peer's connection counts when its handshake is over: who only forges
//! SYNs of an address cannot use up what its owner may have. Those that this side opened do not count,
//! or a proxy could not have more of them to its backend.
//!
//! Locks: the map of peers, a leaf, taken alone, and only if there is such a limit: when a connection
//! is asked for, stands and ends.

use crate::events::tell;
use crate::lock::{LEAF, Mutex};
use crate::stack::Shared;
use crate::stack::driver::queue::Queue;
use crate::stack::listener::Listening;
use crate::tcp::conn::Conn;
use crate::tcp::wire::{Segment, Tuple};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Linux's `fs.nr_open`: as many descriptors as a process can have there, unless it is told otherwise.
pub(in crate::stack) const MAX_CONNECTIONS: usize = 1 << 20;
/// Linux's largest default of `tcp_max_syn_backlog`. Each takes 4.6 kB: 20 MB.
pub(in crate::stack) const MAX_HALF_OPEN: usize = 4096;

/// Why a connection does not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is one with its addresses and ports.
    Taken,
    /// The listener has no room.
    Backlog,
    /// The stack has as many half-open connections as it may have.
    HalfOpen,
    /// The stack has as many connections as it may have.
    Connections,
    /// The peer has.
    Peer,
}

/// Connections of each peer. There is an entry only for who has one, so the map is no larger than the
/// table of connections.
#[derive(Debug, Default)]
pub(in crate::stack) struct Peers {
    counts: Mutex<HashMap<IpAddr, usize>, LEAF>,
}

/// One who opens connections: an IPv4 address, or an IPv6 network of 64 bits, in which a host has as
/// many addresses as it likes (RFC 4291 2.5.4, 8981).
fn client(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let network = address.to_bits() >> 64 << 64;
            Ipv6Addr::from_bits(network).into()
        }
    }
}

impl Peers {
    fn count(&self, address: IpAddr) -> usize {
        let counts = self.counts.lock();
        counts.get(&client(address)).copied().unwrap_or(0)
    }

    /// One more, unless it has `most`.
    fn take(&self, address: IpAddr, most: usize) -> bool {
        let mut counts = self.counts.lock();
        let count = counts.get(&client(address)).copied().unwrap_or(0);
        let room = count < most;
        if room {
            counts.insert(client(address), count + 1);
        }
        room
    }

    fn give_back(&self, address: IpAddr) {
        let mut counts = self.counts.lock();
        let left = counts.get(&client(address)).map_or(0, |count| count - 1);
        if left == 0 {
            counts.remove(&client(address));
        } else {
            counts.insert(client(address), left);
        }
    }

    #[cfg(test)]
    pub(in crate::stack) fn len(&self) -> usize {
        self.counts.lock().len()
    }
}

impl Shared {
    /// Whether a connection that a peer asks for may begin, as far as the stack's limits go. Nothing is
    /// taken yet. The cheapest questions first: a flood asks them all.
    pub(in crate::stack) fn admits(&self, tuple: &Tuple) -> Result<(), Refusal> {
        if !self.table.has_room() {
            return Err(Refusal::Connections);
        }
        match self.config.max_connections_per_peer {
            Some(most) if self.peers.count(tuple.remote) >= most => Err(Refusal::Peer),
            _ => Ok(()),
        }
    }

    /// As [`admits`](Self::admits), for one that is to be half-open.
    pub(in crate::stack) fn admits_half_open(&self) -> Result<(), Refusal> {
        let count = self.half_open.lock().len();
        let room = count < self.config.max_half_open;
        room.then_some(()).ok_or(Refusal::HalfOpen)
    }

    /// A connection stands. `false`: its peer has as many as it may have.
    pub(in crate::stack) fn admit(&self, conn: &Conn) -> bool {
        let Some(most) = self
            .config
            .max_connections_per_peer
            .filter(|_| conn.is_inbound)
        else {
            return true;
        };
        let admitted = self.peers.take(conn.tuple.remote, most);
        conn.counts_for_peer.store(admitted, Ordering::Relaxed);
        self.received.peers_refused.add(u64::from(!admitted));
        admitted
    }

    /// A connection is over.
    pub(in crate::stack) fn dismiss(&self, conn: &Conn) {
        if conn.counts_for_peer.swap(false, Ordering::Relaxed) {
            self.peers.give_back(conn.tuple.remote);
        }
    }

    /// A SYN begins no connection: it is answered with a cookie, if only connections that do not stand
    /// yet are in its way, or dropped. So is one in the place of a former connection, whose record would
    /// take what comes back for its own.
    pub(in crate::stack) fn turn_away(
        &self,
        queue: &Queue,
        refusal: Refusal,
        listening: &Listening,
        (syn, again, now): (&Segment, bool, Instant),
    ) {
        if refusal == Refusal::HalfOpen {
            self.received.half_open_full.add(1);
        }
        let waits = matches!(refusal, Refusal::Backlog | Refusal::HalfOpen);
        if !waits {
            self.count_dropped(refusal, now);
        } else if !again && self.answer_with_cookie(queue, listening, (syn, now)) {
            self.tell_of_cookies(listening, now);
        } else {
            self.drop_syn(listening, now);
        }
    }

    /// A segment that would have begun a connection is dropped.
    pub(in crate::stack) fn count_dropped(&self, refusal: Refusal, now: Instant) {
        let counter = match refusal {
            Refusal::Taken | Refusal::Backlog | Refusal::HalfOpen => &self.received.backlog_full,
            Refusal::Connections => &self.received.connections_refused,
            Refusal::Peer => &self.received.peers_refused,
        };
        counter.add(1);
        if self.syns_dropped.is_due(now) {
            let so_far = counter.get();
            tell!(
                warn,
                "stack",
                ?refusal,
                so_far,
                "connection refused: limit reached"
            );
        }
    }

    /// The error of a user whose connection does not begin.
    pub(in crate::stack) fn too_many_connections(&self) -> io::Error {
        self.count_dropped(Refusal::Connections, self.clock.now());
        let why = format!(
            "the stack has {} connections, as many as it may have: close some, or build it with a \
             larger max_connections",
            self.config.max_connections
        );
        io::Error::new(io::ErrorKind::QuotaExceeded, why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_has_a_connection_is_remembered() {
        let peers = Peers::default();
        let [one, other, near]: [IpAddr; 3] =
            ["10.0.0.1", "10.0.0.2", "fd00::1"].map(|address| address.parse().unwrap());
        assert!(peers.take(one, 2) && peers.take(one, 2) && !peers.take(one, 2));
        assert!(peers.take(other, 2) && peers.take(near, 2));
        let neighbour = "fd00::ffff:1".parse().unwrap();
        assert!(
            peers.take(neighbour, 2) && !peers.take(near, 2),
            "one network"
        );
        assert!(
            peers.take("fd00:0:0:1::1".parse().unwrap(), 2),
            "the next one"
        );
        assert_eq!(peers.len(), 4);
        peers.give_back(one);
        assert!(peers.take(one, 2) && !peers.take(one, 2));
        for address in [one, one, other, near, near] {
            peers.give_back(address);
        }
        assert_eq!(peers.len(), 1);
        assert_eq!((peers.count(one), peers.count(near)), (0, 0));
    }
}
