//! The sockets and flows of a stack, by their addresses.
//!
//! Locks: leaves, one at a time.

use crate::ip::Tuple;
use crate::lock::{LEAF, Mutex};
use crate::stack::udp::listener::Flows;
use crate::udp::{Kind, Names, Udp, UdpCounters};
use smallvec::SmallVec;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

const SHARDS: usize = 64;

/// A map in parts, each with a leaf lock of its own.
#[derive(Debug)]
struct Sharded<K, V>([Mutex<HashMap<K, V>, LEAF>; SHARDS]);

impl<K, V> Default for Sharded<K, V> {
    fn default() -> Sharded<K, V> {
        Sharded(std::array::from_fn(|_| Mutex::default()))
    }
}

impl<K, V> Sharded<K, V> {
    /// `mix` only spreads: each map hashes with a key of its own.
    fn shard(&self, mix: u16) -> &Mutex<HashMap<K, V>, LEAF> {
        &self.0[usize::from(mix) % SHARDS]
    }
}

impl<K: Hash + Eq> Sharded<K, Arc<Udp>> {
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
        let is_this = shard.get(key).is_some_and(|found| is(found, udp));
        is_this.then(|| shard.remove(key)).flatten()
    }

    fn all(&self, found: &mut Vec<Arc<Udp>>) {
        for shard in &self.0 {
            found.extend(shard.lock().values().cloned());
        }
    }
}

/// A client's flows with an endpoint-independent mapping, each with its listener.
type Endpoints = SmallVec<[(Arc<Flows>, Arc<Udp>); 1]>;

/// The sockets that are bound to one port.
type AtPort = Vec<(Names, Arc<Udp>)>;

/// The flows by the numbers of their sockets, and when they are looked at.
#[derive(Debug, Default)]
struct Lasting {
    owners: HashMap<u64, Owner>,
    timers: BTreeMap<(Instant, u64), Weak<Udp>>,
}

/// Whose flow it is.
#[derive(Debug)]
struct Owner {
    flows: Arc<Flows>,
    client: IpAddr,
    timer: Option<Instant>,
}

impl Lasting {
    fn remove(&mut self, id: u64) -> Option<(Owner, Option<Weak<Udp>>)> {
        let owner = self.owners.remove(&id)?;
        let timer = owner.timer.and_then(|at| self.timers.remove(&(at, id)));
        Some((owner, timer))
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::stack) struct UdpTable {
    flows: Sharded<Tuple, Arc<Udp>>,
    endpoints: Sharded<SocketAddr, Endpoints>,
    /// Of those in `endpoints`.
    mapped: AtomicUsize,
    /// By their ports.
    bound: Mutex<HashMap<u16, AtPort>, LEAF>,
    /// The most precise rules first.
    listeners: Mutex<Vec<Arc<Flows>>, LEAF>,
    lasting: Mutex<Lasting, LEAF>,
    pub(in crate::stack) counters: UdpCounters,
}

impl UdpTable {
    /// The flow with these addresses.
    pub(in crate::stack) fn flow(&self, tuple: &Tuple) -> Option<Arc<Udp>> {
        self.flows.shard(mix(tuple)).lock().get(tuple).cloned()
    }

    /// The flow of this sender with the most precise rule for the destination, and its listener.
    pub(in crate::stack) fn endpoint(
        &self,
        tuple: &Tuple,
        own: bool,
    ) -> Option<(Arc<Flows>, Arc<Udp>)> {
        if self.mapped.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let client = tuple.ends().1;
        let endpoints = self.endpoints.shard(client.port()).lock();
        let of_client = endpoints.get(&client)?;
        let rule = |flows: &Flows| flows.rule.matches(tuple.local, tuple.local_port, own);
        let matching = of_client.iter().filter(|(flows, _)| rule(flows));
        matching.min_by_key(|(flows, _)| flows.rule.rank()).cloned()
    }

    /// The flow that has sent a datagram in the name of any address.
    pub(in crate::stack) fn endpoint_that_sent(&self, tuple: &Tuple) -> Option<Arc<Udp>> {
        if let Some((_, udp)) = self.endpoint(tuple, true) {
            return Some(udp);
        }
        let client = tuple.ends().1;
        let endpoints = self.endpoints.shard(client.port()).lock();
        let of_client = endpoints.get(&client)?;
        of_client.first().map(|(_, udp)| udp.clone())
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
            if is(other, udp) {
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
        let Some((client, _)) = udp.client() else {
            return Err(None);
        };
        let owner = Owner {
            flows: flows.clone(),
            client: client.ip(),
            timer: None,
        };
        // First, so that whoever finds the flow and ends it finds its place.
        self.lasting.lock().owners.insert(udp.end.id(), owner);
        let result = match &udp.kind {
            Kind::Flow(tuple) => self.flows.insert(mix(tuple), *tuple, udp),
            _ => self.insert_endpoint(client, udp, flows),
        };
        result.map_err(|first| {
            let owner = self.lasting.lock().remove(udp.end.id());
            drop(owner);
            Some(first)
        })
    }

    fn insert_endpoint(
        &self,
        client: SocketAddr,
        udp: &Arc<Udp>,
        flows: &Arc<Flows>,
    ) -> Result<(), Arc<Udp>> {
        let mut endpoints = self.endpoints.shard(client.port()).lock();
        let of_client = endpoints.entry(client).or_default();
        let same = of_client
            .iter()
            .find(|(owner, _)| Arc::ptr_eq(owner, flows));
        if let Some((_, first)) = same {
            return Err(first.clone());
        }
        of_client.push((flows.clone(), udp.clone()));
        self.mapped.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn remove_endpoint(&self, client: SocketAddr, udp: &Udp) -> Option<(Arc<Flows>, Arc<Udp>)> {
        let mut endpoints = self.endpoints.shard(client.port()).lock();
        let of_client = endpoints.get_mut(&client)?;
        let at = of_client.iter().position(|(_, other)| is(other, udp))?;
        let removed = of_client.remove(at);
        if of_client.is_empty() {
            endpoints.remove(&client);
        }
        self.mapped.fetch_sub(1, Ordering::Relaxed);
        Some(removed)
    }

    fn remove_bound(&self, port: u16, udp: &Udp) -> Option<Arc<Udp>> {
        let mut bound = self.bound.lock();
        let sockets = bound.get_mut(&port)?;
        let at = sockets.iter().position(|(_, other)| is(other, udp))?;
        let (_, removed) = sockets.swap_remove(at);
        if sockets.is_empty() {
            bound.remove(&port);
        }
        Some(removed)
    }

    /// Takes a socket or a flow out.
    pub(in crate::stack) fn remove(&self, udp: &Udp) {
        match &udp.kind {
            Kind::Flow(tuple) => drop(self.flows.remove(mix(tuple), tuple, udp)),
            Kind::Endpoint { client, .. } => drop(self.remove_endpoint(*client, udp)),
            Kind::Bound(names) => {
                let port = names.lock().local.port();
                drop(self.remove_bound(port, udp));
            }
        }
        let owner = self.lasting.lock().remove(udp.end.id());
        if let Some((owner, _timer)) = owner {
            owner.flows.release(owner.client, udp);
        }
    }

    /// All sockets and flows.
    pub(in crate::stack) fn all(&self) -> Vec<Arc<Udp>> {
        let mut found = Vec::new();
        self.flows.all(&mut found);
        for shard in &self.endpoints.0 {
            let endpoints = shard.lock();
            found.extend(endpoints.values().flatten().map(|(_, udp)| udp.clone()));
        }
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

    /// Number of bound sockets.
    pub(in crate::stack) fn sockets(&self) -> usize {
        self.bound.lock().values().map(Vec::len).sum()
    }

    /// Number of flows.
    pub(in crate::stack) fn count(&self) -> usize {
        self.lasting.lock().owners.len()
    }

    /// Has a flow looked at, at this time, unless it is over.
    pub(in crate::stack) fn arm(&self, udp: &Arc<Udp>, at: Instant) {
        let (id, weak) = (udp.end.id(), Arc::downgrade(udp));
        let mut lasting = self.lasting.lock();
        let Some(owner) = lasting.owners.get_mut(&id) else {
            return;
        };
        let former = owner.timer.replace(at);
        if let Some(former) = former {
            lasting.timers.remove(&(former, id));
        }
        lasting.timers.insert((at, id), weak);
    }

    /// The next flow that is to be looked at by now.
    pub(in crate::stack) fn due(&self, now: Instant) -> Option<Arc<Udp>> {
        let mut lasting = self.lasting.lock();
        loop {
            let first = lasting.timers.first_entry()?;
            let (at, id) = *first.key();
            if at > now {
                return None;
            }
            let udp = first.remove().upgrade();
            if let Some(owner) = lasting.owners.get_mut(&id) {
                owner.timer = None;
            }
            if udp.is_some() {
                return udp;
            }
        }
    }

    /// When a flow is next to be looked at.
    pub(in crate::stack) fn next_expiry(&self) -> Option<Instant> {
        let lasting = self.lasting.lock();
        lasting.timers.first_key_value().map(|((at, _), _)| *at)
    }

    /// Number of timers.
    #[cfg(test)]
    pub(in crate::stack) fn armed(&self) -> usize {
        self.lasting.lock().timers.len()
    }
}

/// Whether that is this one.
fn is(other: &Arc<Udp>, udp: &Udp) -> bool {
    std::ptr::eq(Arc::as_ptr(other), udp)
}

fn mix(tuple: &Tuple) -> u16 {
    tuple.local_port.wrapping_mul(31) ^ tuple.remote_port
}
