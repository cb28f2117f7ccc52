//! Passive opens: which SYN begins a connection, and the treatment of the others.

pub(in crate::stack) mod admission;
pub(in crate::stack) mod backlog;
pub(in crate::stack) mod begin;
pub(in crate::stack) mod intercept;
mod syn_cookie;
pub(in crate::stack) mod syn_marks;
pub(in crate::stack) mod syn_queue;

use crate::events::report;
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
    /// Whether the stack's limits allow a connection that a peer opens. Reserves nothing. The cheapest
    /// checks come first, in case of a flood.
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

    /// Counts an established connection. `false` if its peer has reached its limit.
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

    /// Releases the place of a connection that has ended.
    pub(in crate::stack) fn dismiss(&self, conn: &Conn) {
        if conn.counts_for_peer.swap(false, Ordering::Relaxed) {
            self.accepting.peers.give_back(conn.tuple.remote);
        }
    }

    /// A SYN begins no connection: it is answered with a cookie, in a flood if it is repeated, if only half-open
    /// connections fill the limit; otherwise dropped. It is also dropped if there is a record in TIME-WAIT, which would take
    /// the cookie's acknowledgement for its own.
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
        } else if again || !self.sends_cookies(listening) {
            self.drop_syn(listening, now);
        } else if !self.may_answer(syn, now) {
            self.received.cookies_withheld.add(1);
            self.report_withheld(listening, now);
        } else {
            self.answer_with_cookie(queue, (syn, now));
            self.report_cookies(listening, now);
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
            report!(
                warn,
                "stack",
                ?refusal,
                so_far,
                "connection refused: limit reached"
            );
        }
    }

    /// The error for a connection beyond the limit.
    pub(in crate::stack) fn too_many_connections(&self) -> io::Error {
        self.count_dropped(Refusal::Connections, self.clock.now());
        let why = format!(
            "the stack has {} connections, its maximum: close some, or build it with a \
             larger max_connections",
            self.config.max_connections
        );
        io::Error::new(io::ErrorKind::QuotaExceeded, why)
    }
}
