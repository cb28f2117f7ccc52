//! What a relay knows of its connections, and the queue of clients for which no backend has room.

use super::Terms;
use super::lines;
use super::pair::{Client, Pair};
use crate::backends::{Clients, Tried};
use crate::services::{Chosen, Lack, Services};
use crate::totals::{Refusal, Totals};
use sosplice::clock::{Clock, SystemClock};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// A client for which no backend has room.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) client: Arc<Client>,
    pub(super) tried: Tried,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) pairs: HashMap<u64, Arc<Pair>>,
    pub(super) terms: Arc<Terms>,
    pub(super) services: Services,
    pub(super) clients: Clients,
    /// Clients for which no backend has room, in the order of their arrival.
    pub(super) waiting: VecDeque<Waiting>,
    /// A thread is in `serve_waiting`.
    pub(super) serving: bool,
    pub(super) totals: Totals,
    /// No more clients are accepted.
    pub(super) stopped: bool,
    /// The rest is reset.
    pub(super) ended: bool,
}

impl State {
    /// A backend for a client, `None` if it is to wait now.
    pub(super) fn choose(
        &mut self,
        client: &Arc<Client>,
        tried: &Tried,
    ) -> Option<Result<Chosen, Refusal>> {
        let lack = match self.ask(client, tried) {
            Ok(backend) => return Some(Ok(backend)),
            Err(lack) => lack,
        };
        if lack == Lack::Full && !self.ended {
            let most = client.terms.queue.0;
            if self.waiting.len() >= most {
                self.part_with_left();
            }
            if self.waiting.len() < most {
                // One that has waited before keeps its turn.
                let first = |other: &Waiting| other.client.since <= client.since;
                let at = self.waiting.partition_point(first);
                let (client, tried) = (Arc::clone(client), tried.clone());
                self.waiting.insert(at, Waiting { client, tried });
                return None;
            }
        }
        Some(Err(lack.into()))
    }

    pub(super) fn ask(&mut self, client: &Client, tried: &Tried) -> Result<Chosen, Lack> {
        let (name, asks) = (client.server_name.as_deref(), (client.address.ip(), tried));
        self.services.choose(name, asks, SystemClock.now())
    }

    /// The first one that waits and need not any more, and its backend.
    pub(super) fn next(&mut self) -> Option<(Waiting, Result<Chosen, Refusal>)> {
        let waiting = std::mem::take(&mut self.waiting);
        let mut full: Vec<(Option<usize>, &Tried)> = Vec::new();
        let found = waiting.iter().enumerate().find_map(|(at, one)| {
            let Waiting { client, tried } = one;
            if client.has_left() {
                return Some((at, Err(Refusal::Left)));
            }
            let service = self.services.find(client.server_name.as_deref());
            if full.contains(&(service, tried)) {
                return None;
            }
            match self.ask(client, tried) {
                Err(Lack::Full) => {
                    full.push((service, tried));
                    None
                }
                chosen => Some((at, chosen.map_err(Refusal::from))),
            }
        });
        self.waiting = waiting;
        let (at, chosen) = found?;
        Some((self.waiting.remove(at)?, chosen))
    }

    /// Forgets those that have left while they waited.
    pub(super) fn part_with_left(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        for one in waiting {
            if one.client.has_left() {
                self.forget(&one.client);
                lines::refused(Some(one.client.id), one.client.address, Refusal::Left);
                self.totals.refuse(Refusal::Left);
            } else {
                self.waiting.push_back(one);
            }
        }
    }

    pub(super) fn has(&self, pair: &Pair) -> bool {
        let same = |other: &Arc<Pair>| std::ptr::eq(&raw const **other, pair);
        self.pairs.get(&pair.client.id).is_some_and(same)
    }

    /// Removes a connection. `false` if another thread has done so: this one has nothing to count then, nor if the client
    /// has a connection to another backend already.
    pub(super) fn remove(&mut self, pair: &Pair) -> bool {
        self.has(pair) && self.pairs.remove(&pair.client.id).is_some()
    }

    /// A client that was admitted has left.
    pub(super) fn forget(&mut self, client: &Client) {
        if client.terms.per_client.is_some() {
            self.clients.leave(client.address.ip());
        }
    }
}
