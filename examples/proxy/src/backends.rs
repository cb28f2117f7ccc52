//! The backends of one service, and which of them gets the next connection.
//!
//! Pure: time is an argument, nothing waits and nothing is sent.

#[cfg(test)]
mod tests;

use crate::measures::Account;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Connections in a row that a backend may fail to take before it rests.
const STRIKES: u32 = 3;
/// How long it rests.
const REST: Duration = Duration::from_secs(10);
/// Places of the table for consistent hashing: a prime number, at least a hundred for each backend.
const PLACES: usize = 65_537;

/// A backend as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) address: SocketAddr,
    /// Its share of the connections; one with 0 gets no new ones.
    pub(crate) weight: u16,
    /// The maximum number of connections.
    pub(crate) limit: Option<u32>,
}

/// How a backend is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Balance {
    /// In turn, by weight
    #[default]
    RoundRobin,
    /// The one with the fewest connections for its weight
    Least,
    /// By the client's address (Maglev): the same client gets the same backend, also from other proxies with the same
    /// backends, and few move when one fails
    Client,
}

/// Backends that a connection was tried with. (Not by their places, which other settings change.)
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Tried(Vec<Id>);

/// The maximum number of backends of a service.
pub(crate) const MOST: usize = 64;

impl Tried {
    pub(crate) fn add(&mut self, backend: Id) {
        self.0.push(backend);
    }

    fn has(&self, backend: Id) -> bool {
        self.0.contains(&backend)
    }
}

/// The backend of a connection, or why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    Backend(usize),
    /// Those that could serve have as many connections as they may.
    Full,
    /// None is up that was not tried.
    None,
}

/// The number of a backend: the same as long as its service and its address are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Id(pub(crate) u64);

/// A backend and what is known of it.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) id: Id,
    pub(crate) spec: Spec,
    /// By the checks.
    pub(crate) up: bool,
    pub(crate) active: u32,
    pub(crate) served: u64,
    /// Connections that it did not take.
    pub(crate) failed: u64,
    pub(crate) account: Arc<Account>,
    strikes: u32,
    /// When the latest one was.
    refused_at: Option<Instant>,
    rests_until: Option<Instant>,
    /// What it is owed by the others, in turn.
    credit: i64,
}

impl Backend {
    pub(crate) fn new(id: Id, spec: Spec) -> Backend {
        Backend {
            id,
            spec,
            up: true,
            active: 0,
            served: 0,
            failed: 0,
            account: Arc::default(),
            strikes: 0,
            refused_at: None,
            rests_until: None,
            credit: 0,
        }
    }

    /// The same one with other settings.
    pub(crate) fn with(self, spec: Spec) -> Backend {
        Backend { spec, ..self }
    }

    fn serves(&self) -> bool {
        self.up && self.spec.weight > 0
    }

    fn has_room(&self) -> bool {
        self.spec.limit.is_none_or(|limit| self.active < limit)
    }

    pub(crate) fn rests(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Backends {
    all: Vec<Backend>,
    balance: Balance,
    /// The backend of each place, of those that serve.
    table: Vec<u8>,
}

impl Backends {
    /// # Panics
    /// For more than [`MOST`].
    pub(crate) fn new(all: Vec<Backend>, balance: Balance) -> Backends {
        assert!(all.len() <= MOST, "at most {MOST} backends");
        let mut backends = Backends {
            all,
            balance,
            table: Vec::new(),
        };
        backends.fill();
        backends
    }

    pub(crate) fn all(&self) -> &[Backend] {
        &self.all
    }

    pub(crate) fn into_all(self) -> Vec<Backend> {
        self.all
    }

    pub(crate) fn find(&self, id: Id) -> Option<usize> {
        self.all.iter().position(|backend| backend.id == id)
    }

    /// Chooses a backend for a client, and counts the connection as its own until [`leave`](Self::leave).
    pub(crate) fn choose(&mut self, client: IpAddr, tried: &Tried, now: Instant) -> Choice {
        let fresh = |backend: &Backend| backend.serves() && !tried.has(backend.id);
        let rested = |backend: &Backend| fresh(backend) && !backend.rests(now);
        let any = |wanted: &dyn Fn(&Backend) -> bool| self.all.iter().any(wanted);
        // One that rests is better than none.
        let wanted: &dyn Fn(&Backend) -> bool = if any(&rested) {
            &rested
        } else if any(&fresh) {
            &fresh
        } else {
            return Choice::None;
        };
        let chosen: Vec<usize> = (0..self.all.len())
            .filter(|index| wanted(&self.all[*index]) && self.all[*index].has_room())
            .collect();
        let index = match self.balance {
            _ if chosen.is_empty() => return Choice::Full,
            Balance::RoundRobin => self.in_turn(&chosen),
            Balance::Least => self.least(&chosen),
            Balance::Client => self.by_client(client, &chosen),
        };
        self.all[index].active += 1;
        Choice::Backend(index)
    }

    /// Smooth weighted round robin: each one earns its weight, and the richest pays for all.
    fn in_turn(&mut self, chosen: &[usize]) -> usize {
        let mut sum = 0;
        let mut best = chosen[0];
        for index in chosen {
            let weight = i64::from(self.all[*index].spec.weight);
            self.all[*index].credit += weight;
            sum += weight;
            if self.all[*index].credit > self.all[best].credit {
                best = *index;
            }
        }
        self.all[best].credit -= sum;
        best
    }

    fn least(&mut self, chosen: &[usize]) -> usize {
        let load = |index: usize| u64::from(self.all[index].active) + 1;
        let weight = |index: usize| u64::from(self.all[index].spec.weight);
        let fewest = chosen.iter().copied().min_by(|one, other| {
            let (here, there) = (load(*one) * weight(*other), load(*other) * weight(*one));
            here.cmp(&there)
        });
        let fewest = fewest.expect("invariant: one could be chosen");
        // Of equals, each in turn.
        let equals = |index: &usize| load(*index) * weight(fewest) == load(fewest) * weight(*index);
        let equals: Vec<usize> = chosen.iter().copied().filter(equals).collect();
        self.in_turn(&equals)
    }

    /// The next place of the table, from the client's on, whose backend can be chosen.
    fn by_client(&self, client: IpAddr, chosen: &[usize]) -> usize {
        let first = usize::try_from(hash(0, client, 0) % PLACES as u64).unwrap_or(0);
        let places = self.table[first..].iter().chain(&self.table[..first]);
        let mut places = places.map(|index| usize::from(*index));
        let found = places.find(|index| chosen.contains(index));
        found.unwrap_or(chosen[0])
    }

    /// The table of Maglev (Eisenbud et al., NSDI 2016, 3.4): each backend takes places in an order of its own, in
    /// turns by weight, until none is left.
    fn fill(&mut self) {
        self.table.clear();
        let serving: Vec<_> = (0..self.all.len())
            .filter(|index| self.all[*index].serves())
            .collect();
        if self.balance != Balance::Client || serving.is_empty() {
            return;
        }
        let weight = |index: usize| u32::from(self.all[index].spec.weight);
        let most = serving.iter().map(|index| weight(*index)).max();
        let most = most.unwrap_or(1);
        let places = PLACES as u64;
        let mut orders: Vec<_> = serving
            .iter()
            .map(|index| {
                let address = self.all[*index].spec.address;
                let hash = |salt| hash(salt, address.ip(), address.port());
                let (offset, skip) = (hash(1) % places, hash(2) % (places - 1) + 1);
                (0..places).map(move |turn| (offset + turn * skip) % places)
            })
            .collect();
        let mut earned = vec![0; serving.len()];
        let mut table = vec![None; PLACES];
        let mut left = PLACES;
        'full: loop {
            for (nth, index) in serving.iter().enumerate() {
                earned[nth] += weight(*index);
                while earned[nth] >= most {
                    earned[nth] -= most;
                    let order = &mut orders[nth];
                    let free = order.find_map(|place| {
                        let place = usize::try_from(place).ok()?;
                        table[place].is_none().then_some(place)
                    });
                    let Some(free) = free else { continue };
                    table[free] = u8::try_from(*index).ok();
                    left -= 1;
                    if left == 0 {
                        break 'full;
                    }
                }
            }
        }
        self.table = table.into_iter().flatten().collect();
    }

    /// A connection to this backend, begun at this time, was established. One from before the latest refusal tells
    /// nothing about now.
    pub(crate) fn took(&mut self, index: usize, begun: Instant) {
        let backend = &mut self.all[index];
        backend.served += 1;
        if backend.refused_at.is_none_or(|at| begun > at) {
            backend.strikes = 0;
            backend.rests_until = None;
        }
    }

    /// A backend has refused a connection, or not answered. Connections are counted when they end, so before it rests it is
    /// asked whether one is established that was begun after this time.
    pub(crate) fn refused(
        &mut self,
        index: usize,
        now: Instant,
        took_since: impl FnOnce(Instant) -> bool,
    ) {
        let backend = &mut self.all[index];
        backend.failed += 1;
        let before = backend.refused_at.replace(now);
        if backend.strikes + 1 == STRIKES && before.is_some_and(took_since) {
            backend.strikes = 0;
        }
        backend.strikes += 1;
        if backend.strikes >= STRIKES {
            backend.rests_until = Some(now + REST);
        }
    }

    /// A connection has ended, or was not taken.
    pub(crate) fn leave(&mut self, index: usize) {
        let active = &mut self.all[index].active;
        *active = active.saturating_sub(1);
    }

    /// The result of the checks has changed.
    pub(crate) fn set_up(&mut self, index: usize, up: bool) {
        self.all[index].up = up;
        self.all[index].strikes = 0;
        self.all[index].rests_until = None;
        self.fill();
    }
}

/// The same in each proxy, so neither random nor std's, which may change: FNV-1a with more mixing behind it.
fn hash(salt: u8, address: IpAddr, port: u16) -> u64 {
    let octets = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let bytes = octets.into_iter().chain(port.to_be_bytes()).chain([salt]);
    let fnv = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (fnv ^ fnv >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ mixed >> 32
}

/// Connections of each client: of an IPv4 address, or of the /64 of an IPv6 address, which one host has whole (RFC 4291
/// 2.5.1, RFC 8981).
#[derive(Debug, Default)]
pub(crate) struct Clients {
    active: HashMap<IpAddr, u32>,
}

impl Clients {
    /// Counts a connection, unless the client has as many as it may.
    pub(crate) fn enter(&mut self, client: IpAddr, limit: Option<u32>) -> bool {
        let Some(limit) = limit else { return true };
        let active = self.active.entry(network(client)).or_default();
        let may = *active < limit;
        *active += u32::from(may);
        may
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    /// A counted connection has ended.
    pub(crate) fn leave(&mut self, client: IpAddr) {
        let client = network(client);
        if let Some(active) = self.active.get_mut(&client) {
            *active -= 1;
            if *active == 0 {
                self.active.remove(&client);
            }
        }
    }
}

fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_none() => {
            let [a, b, c, d, ..] = v6.segments();
            [a, b, c, d, 0, 0, 0, 0].into()
        }
        other => other,
    }
}
