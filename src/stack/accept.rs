//! Connections that peers open: which SYN begins one, and what becomes of the others.

pub(in crate::stack) mod admission;
pub(in crate::stack) mod backlog;
pub(in crate::stack) mod begin;
pub(in crate::stack) mod intercept;
mod syn_cookie;
pub(in crate::stack) mod syn_queue;

use crate::events::tell;
use crate::stack::Shared;
use crate::stack::driver::queue::Queue;
use crate::tcp::conn::Conn;
use crate::tcp::wire::{Segment, Tuple};
use admission::Refusal;
use backlog::Listening;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Instant;

impl Shared {
    /// Whether a connection that a peer asks for may begin, as far as the stack's limits go. Nothing is
    /// taken yet. The cheapest questions first: a flood asks them all.
    pub(in crate::stack) fn admits(&self, tuple: &Tuple) -> Result<(), Refusal> {
        if !self.table.has_room() {
            return Err(Refusal::Connections);
        }
        match self.config.max_connections_per_peer {
            Some(most) if self.accepting.peers.count(tuple.remote) >= most => Err(Refusal::Peer),
            _ => Ok(()),
        }
    }

    /// As [`admits`](Self::admits), for one that is to be half-open.
    pub(in crate::stack) fn admits_half_open(&self) -> Result<(), Refusal> {
        let count = self.accepting.half_open.lock().len();
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
        let admitted = self.accepting.peers.take(conn.tuple.remote, most);
        conn.counts_for_peer.store(admitted, Ordering::Relaxed);
        self.received.peers_refused.add(u64::from(!admitted));
        admitted
    }

    /// A connection is over.
    pub(in crate::stack) fn dismiss(&self, conn: &Conn) {
        if conn.counts_for_peer.swap(false, Ordering::Relaxed) {
            self.accepting.peers.give_back(conn.tuple.remote);
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
        if self.reports.syns_dropped.is_due(now) {
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
