//! Numbers for the operator.

use super::state::State;
use super::{Shared, lock};
#[cfg(feature = "top")]
use crate::backends::Id;
use crate::measures::{Account, Measures};
#[cfg(feature = "top")]
use crate::totals::BOTH;
use crate::totals::Refusal;
#[cfg(feature = "top")]
use sosplice::clock::{Clock, SystemClock};
use std::net::SocketAddr;
use std::sync::Arc;

/// Numbers of clients.
#[derive(Debug)]
pub(crate) struct Counts {
    pub(crate) connections: u64,
    pub(crate) retried: u64,
    pub(crate) refused: Vec<(Refusal, u64)>,
    pub(crate) present: u64,
    pub(crate) waiting: u64,
    /// Those whose first bytes are missing, and the memory of their receive buffers.
    pub(crate) heads: (usize, usize),
    pub(crate) renewed: u64,
    pub(crate) rejected: u64,
    pub(crate) checks_failed: u64,
}

/// Numbers of a backend.
#[derive(Debug)]
pub(crate) struct BackendStats {
    pub(crate) name: Option<String>,
    pub(crate) at: SocketAddr,
    pub(crate) weight: u16,
    pub(crate) up: bool,
    pub(crate) active: u32,
    pub(crate) served: u64,
    pub(crate) failed: u64,
    pub(crate) account: Arc<Account>,
    /// It has refused several connections in a row.
    #[cfg(feature = "top")]
    pub(crate) rests: bool,
    /// Bytes of all its connections: from the clients, and to them.
    #[cfg(feature = "top")]
    pub(crate) bytes: [u64; 2],
    #[cfg(feature = "top")]
    id: Id,
}

#[cfg(feature = "top")]
impl BackendStats {
    pub(crate) fn is_same(&self, other: &BackendStats) -> bool {
        self.id == other.id
    }
}

/// All of a moment.
#[cfg(feature = "top")]
#[derive(Debug)]
pub(crate) struct Snapshot<'a> {
    pub(crate) at: SocketAddr,
    pub(crate) stopped: bool,
    pub(crate) counts: Counts,
    pub(crate) waits: &'a crate::histogram::Histogram,
    pub(crate) backends: Vec<BackendStats>,
}

fn backends_of(state: &State) -> Vec<BackendStats> {
    let mut all = Vec::new();
    for service in state.services.all() {
        all.extend(service.backends.all().iter().map(|one| BackendStats {
            name: service.name.clone(),
            at: one.spec.address,
            weight: one.spec.weight,
            up: one.up,
            active: one.active,
            served: one.served,
            failed: one.failed,
            account: Arc::clone(&one.account),
            #[cfg(feature = "top")]
            rests: one.rests(SystemClock.now()),
            #[cfg(feature = "top")]
            bytes: one.account.bytes(),
            #[cfg(feature = "top")]
            id: one.id,
        }));
    }
    all
}

impl Shared {
    pub(crate) fn measures(&self) -> &Measures {
        &self.measures
    }

    pub(crate) fn counts(&self) -> Counts {
        let state = lock(&self.state);
        Counts {
            connections: state.totals.connections,
            retried: state.totals.retried,
            refused: state.totals.refused.clone(),
            present: state.pairs.len() as u64,
            waiting: state.waiting.len() as u64,
            heads: self.lobby.held(),
            renewed: state.totals.renewed,
            rejected: state.totals.rejected,
            checks_failed: state.totals.checks_failed,
        }
    }

    pub(crate) fn backends(&self) -> Vec<BackendStats> {
        backends_of(&lock(&self.state))
    }

    #[cfg(feature = "top")]
    pub(crate) fn snapshot(&self) -> Snapshot<'_> {
        let (stopped, pairs, mut backends) = {
            let state = lock(&self.state);
            let pairs: Vec<_> = state.pairs.values().cloned().collect();
            (state.stopped, pairs, backends_of(&state))
        };
        // Not under the lock: there may be many.
        for pair in &pairs {
            let same = |one: &&mut BackendStats| one.id == pair.backend.id;
            if let Some(one) = backends.iter_mut().find(same) {
                let present = BOTH.map(|direction| pair.carried(direction));
                one.bytes = [0, 1].map(|direction| one.bytes[direction] + present[direction]);
            }
        }
        Snapshot {
            at: self.listener.local_addr(),
            stopped,
            counts: self.counts(),
            waits: &self.measures.waits,
            backends,
        }
    }
}
