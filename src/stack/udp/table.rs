//! The sockets and flows of a stack, by their addresses.
//!
//! Locks: leaves, one at a time.

use crate::ip::Tuple;
use crate::lock::{LEAF, Mutex};
use crate::stack::udp::listener::Flows;
use crate::udp::{Kind, Names, Udp, UdpCounters};
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

const SHARDS: usize = 64;

/// A map in parts, each with a leaf lock of its own.
#[derive(Debug)]
struct Sharded<K>([Mutex<HashMap<K, Arc<Udp>>, LEAF>; SHARDS]);

impl<K> Default for Sharded<K> {
    fn default() -> Sharded<K> {
        Sharded(std::array::from_fn(|_| Mutex::default()))
    }
}

impl<K: Hash + Eq> Sharded<K> {
    /// `mix` only spreads: each map hashes with a key of its own.
    fn shard(&self, mix: u16) -> &Mutex<HashMap<K, Arc<Udp>>, LEAF> {
        &self.0[usize::from(mix) % SHARDS]
    }

    /// Puts it in; gives back what is there already.
    fn insert(&self, mix: u16, key: K, udp: &Arc<Udp>) -> Result<(), Arc<Udp>> {
        let mut shard = self.shard(mix).lock();
        if let Some(first) = shard.get(&key) {
            return Err(first.clone());
        }
        shard.insert(key, udp.clone());
        Ok(())
    }

    /// Takes this socket out. What is given back is to be dropped after the lock.
    fn remove(&self, mix: u16, key: &K, udp: &Udp) -> Option<Arc<Udp>> {
        let mut shard = self.shard(mix).lock();
        let is_this = shard
            .get(key)
            .is_some_and(|found| std::ptr::eq(Arc::as_ptr(found), udp));
        is_this.then(|| shard.remove(key)).flatten()
    }

    fn all(&self, found: &mut Vec<Arc<Udp>>) {
        for shard in &self.0 {
            found.extend(shard.lock().values().cloned());
        }
    }
}

/// When a flow is looked at, and which.
type Timer = ((Instant, u64), Weak<Udp>);

/// See the module.
#[derive(Debug, Default)]
pub(in crate::stack) struct UdpTable {
    flows: Sharded<Tuple>,
    endpoints: Sharded<SocketAddr>,
    /// Of those in `endpoints`.
    mapped: AtomicUsize,
    /// By their ports.
    bound: Mutex<HashMap<u16, Vec<(Names, Arc<Udp>)>>, LEAF>,
    /// The most precise rules first.
    listeners: Mutex<Vec<Arc<Flows>>, LEAF>,
    /// The listener of each flow, by the number of its socket.
    owners: Mutex<HashMap<u64, (Arc<Flows>, IpAddr)>, LEAF>,
    timers: Mutex<BTreeMap<(Instant, u64), Weak<Udp>>, LEAF>,
    serial: AtomicU64,
    pub(in crate::stack) counters: UdpCounters,
}

impl UdpTable {
    /// The flow with these addresses.
    pub(in crate::stack) fn flow(&self, tuple: &Tuple) -> Option<Arc<Udp>> {
        self.flows.shard(mix(tuple)).lock().get(tuple).cloned()
    }

    /// The flow of this sender.
    pub(in crate::stack) fn endpoint(&self, tuple: &Tuple) -> Option<Arc<Udp>> {
        if self.mapped.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let client = tuple.ends().1;
        self.endpoints
            .shard(client.port())
            .lock()
            .get(&client)
            .cloned()
    }

    /// The most precisely bound socket for a datagram: connected, then bound to its address, then to all.
    pub(in crate::stack) fn bound(&self, tuple: &Tuple) -> Option<Arc<Udp>> {
        let bound = self.bound.lock();
        let sockets = bound.get(&tuple.local_port)?;
        let peer = tuple.ends().1;
        let rank = |names: &Names| {
            let local = names.local.ip();
            let here = local.is_unspecified() || local == tuple.local;
            let from = names.peer.is_none_or(|only| only == peer);
            (here && from).then_some((names.peer.is_some(), !local.is_unspecified()))
        };
        let ranked = sockets
            .iter()
            .filter_map(|(names, udp)| Some((rank(names)?, udp)));
        ranked
            .max_by_key(|(rank, _)| *rank)
            .map(|(_, udp)| udp.clone())
    }

    /// Binds a socket, unless another one has the port.
    pub(in crate::stack) fn bind(&self, udp: &Arc<Udp>) -> io::Result<()> {
        let Kind::Bound(names) = &udp.kind else {
            return Ok(());
        };
        let names = *names.lock();
        let local = names.local;
        let mut bound = self.bound.lock();
        let sockets = bound.entry(local.port()).or_default();
        let overlaps = |(names, _): &(Names, Arc<Udp>)| {
            let other = names.local.ip();
            other.is_unspecified() || local.ip().is_unspecified() || other == local.ip()
        };
        if sockets.iter().any(overlaps) {
            let why = format!("{local} is taken by another socket: give another port, or 0");
            return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
        }
        sockets.push((names, udp.clone()));
        Ok(())
    }

    /// A bound socket has these addresses from now on.
    pub(in crate::stack) fn rename(&self, udp: &Udp, new: Names) {
        let mut bound = self.bound.lock();
        let sockets = bound.get_mut(&new.local.port());
        for (names, other) in sockets.into_iter().flatten() {
            if std::ptr::eq(Arc::as_ptr(other), udp) {
                *names = new;
            }
        }
    }

    /// Puts a new flow in. If there is one already, as another thread was first, gives that back.
    pub(in crate::stack) fn insert(
        &self,
        udp: &Arc<Udp>,
        flows: &Arc<Flows>,
    ) -> Result<(), Option<Arc<Udp>>> {
        let (client, result) = match &udp.kind {
            Kind::Flow(tuple) => (tuple.remote, self.flows.insert(mix(tuple), *tuple, udp)),
            Kind::Endpoint(client) => {
                let inserted = self.endpoints.insert(client.port(), *client, udp);
                if inserted.is_ok() {
                    self.mapped.fetch_add(1, Ordering::Relaxed);
                }
                (client.ip(), inserted)
            }
            Kind::Bound(_) => return Err(None),
        };
        result.map_err(Some)?;
        let owner = (flows.clone(), client);
        self.owners.lock().insert(udp.end.id(), owner);
        Ok(())
    }

    /// Takes a socket or a flow out.
    pub(in crate::stack) fn remove(&self, udp: &Udp) {
        let removed = match &udp.kind {
            Kind::Flow(tuple) => self.flows.remove(mix(tuple), tuple, udp),
            Kind::Endpoint(client) => {
                let removed = self.endpoints.remove(client.port(), client, udp);
                if removed.is_some() {
                    self.mapped.fetch_sub(1, Ordering::Relaxed);
                }
                removed
            }
            Kind::Bound(names) => {
                let port = names.lock().local.port();
                let mut bound = self.bound.lock();
                let sockets = bound.get_mut(&port);
                let removed = sockets.and_then(|sockets| {
                    let at = sockets
                        .iter()
                        .position(|(_, other)| std::ptr::eq(Arc::as_ptr(other), udp));
                    at.map(|at| sockets.swap_remove(at).1)
                });
                if bound
                    .get(&port)
                    .is_some_and(|sockets| Vec::is_empty(sockets))
                {
                    bound.remove(&port);
                }
                removed
            }
        };
        let owner = self.owners.lock().remove(&udp.end.id());
        if let Some((flows, client)) = owner {
            flows.release(client);
        }
        drop(removed);
    }

    /// All sockets and flows.
    pub(in crate::stack) fn all(&self) -> Vec<Arc<Udp>> {
        let mut found = Vec::new();
        self.flows.all(&mut found);
        self.endpoints.all(&mut found);
        let bound = self.bound.lock();
        let sockets = bound.values().flatten();
        found.extend(sockets.map(|(_, udp)| udp.clone()));
        found
    }

    /// Adds a listener, unless a rule as precise is there.
    pub(in crate::stack) fn listen(&self, flows: &Arc<Flows>) -> io::Result<()> {
        let mut listeners = self.listeners.lock();
        if listeners
            .iter()
            .any(|other| flows.rule.conflicts(&other.rule))
        {
            let why = format!("{} overlaps a rule that is as precise", flows.rule);
            return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
        }
        listeners.push(flows.clone());
        listeners.sort_by_key(|flows| flows.rule.rank());
        Ok(())
    }

    pub(in crate::stack) fn unlisten(&self, flows: &Arc<Flows>) {
        self.listeners
            .lock()
            .retain(|other| !Arc::ptr_eq(other, flows));
    }

    pub(in crate::stack) fn listeners(&self) -> Vec<Arc<Flows>> {
        self.listeners.lock().clone()
    }

    /// The listener with the most precise rule for a datagram.
    pub(in crate::stack) fn listener_for(&self, tuple: &Tuple, own: bool) -> Option<Arc<Flows>> {
        let listeners = self.listeners.lock();
        let mut matching = listeners.iter();
        let matching =
            matching.find(|flows| flows.rule.matches(tuple.local, tuple.local_port, own));
        matching.cloned()
    }

    /// Has a flow looked at, at this time.
    pub(in crate::stack) fn arm(&self, udp: &Arc<Udp>, at: Instant) {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let ((at, serial), weak): Timer = ((at, serial), Arc::downgrade(udp));
        self.timers.lock().insert((at, serial), weak);
    }

    /// The next flow that is to be looked at by now.
    pub(in crate::stack) fn due(&self, now: Instant) -> Option<Arc<Udp>> {
        let mut timers = self.timers.lock();
        loop {
            let first = timers.first_entry()?;
            if first.key().0 > now {
                return None;
            }
            if let Some(udp) = first.remove().upgrade() {
                return Some(udp);
            }
        }
    }

    /// When a flow is next to be looked at.
    pub(in crate::stack) fn next_expiry(&self) -> Option<Instant> {
        self.timers.lock().first_key_value().map(|((at, _), _)| *at)
    }
}

fn mix(tuple: &Tuple) -> u16 {
    tuple.local_port.wrapping_mul(31) ^ tuple.remote_port
}
