//! Limits of connections: in all, half-open, and those opened by one peer.
//!
//! All connections are counted by the [table](crate::stack::demux::conn_table), half-open ones by their
//! own map, those of a peer here. A peer's connection counts once it is established, so forged SYNs
//! cannot exhaust the limit of an address. Active opens do not count, or the limit would apply to a
//! proxy's connections to its backend.
//!
//! Locks: the map of peers, a leaf, taken alone, and only if there is such a limit: when a connection
//! is requested, is established and ends.

use crate::ip::header::peer_of;
use crate::lock::{LEAF, Mutex};
use std::collections::HashMap;
use std::net::IpAddr;

/// Linux's `fs.nr_open`: the default limit of descriptors of a process.
pub(in crate::stack) const MAX_CONNECTIONS: usize = 1 << 20;
/// Linux's largest default of `tcp_max_syn_backlog`. Each takes 4.6 kB: 20 MB.
pub(in crate::stack) const MAX_HALF_OPEN: usize = 4096;

/// Why a connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is a connection with its addresses and ports.
    Taken,
    /// The listener's backlog is full.
    Backlog,
    /// The stack has its maximum number of half-open connections.
    HalfOpen,
    /// The stack has its maximum number of connections.
    Connections,
    /// The peer has its maximum number of connections.
    Peer,
}

/// Connections of each peer. There are entries only for peers with a connection, so the map is no
/// larger than the table of connections.
#[derive(Debug, Default)]
pub(in crate::stack) struct Peers {
    counts: Mutex<HashMap<IpAddr, usize>, LEAF>,
}

impl Peers {
    pub(super) fn count(&self, address: IpAddr) -> usize {
        let counts = self.counts.lock();
        counts.get(&peer_of(address)).copied().unwrap_or(0)
    }

    /// Counts one more, unless the peer has `most`.
    pub(super) fn take(&self, address: IpAddr, most: usize) -> bool {
        let mut counts = self.counts.lock();
        let count = counts.get(&peer_of(address)).copied().unwrap_or(0);
        let room = count < most;
        if room {
            counts.insert(peer_of(address), count + 1);
        }
        room
    }

    pub(super) fn give_back(&self, address: IpAddr) {
        let mut counts = self.counts.lock();
        let left = counts.get(&peer_of(address)).map_or(0, |count| count - 1);
        if left == 0 {
            counts.remove(&peer_of(address));
        } else {
            counts.insert(peer_of(address), left);
        }
    }

    #[cfg(test)]
    pub(in crate::stack) fn len(&self) -> usize {
        self.counts.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_peers_with_connections_have_entries() {
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
