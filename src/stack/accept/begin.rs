//! Passive opens: listeners, and connections made from SYNs.

use crate::events::report;
use crate::stack::accept::admission::Refusal;
use crate::stack::accept::backlog::report_peer;
use crate::stack::accept::backlog::{Listening, Unaccepted};
use crate::stack::accept::intercept::Rule;
use crate::stack::demux::conn_table::Entry;
use crate::stack::{Intercept, Shared, Stack};
use crate::sync::{Protection, intact};
use crate::tcp::conn::{Conn, Host, Runner};
use crate::tcp::conn_state::Opening;
use crate::tcp::home::Home;
use crate::tcp::service::Work;
use crate::tcp::time_wait::TimeWait;
use crate::tcp::wire::{Segment, Tuple};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

impl Stack {
    pub(crate) fn listen(
        &self,
        at: SocketAddr,
        backlog: usize,
        decides: bool,
    ) -> io::Result<Arc<Listening>> {
        let shared = self.shared();
        if !at.ip().is_unspecified() && !shared.is_own(at.ip()) {
            let why = format!("{} is not an address of this stack", at.ip());
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, why));
        }
        let at_port = |port| shared.add_listener(Rule::bound(at.ip(), port), backlog, decides);
        if at.port() != 0 {
            return at_port(at.port());
        }
        let mut listening = shared
            .addressing
            .ephemeral_ports
            .all_from_random()
            .map(at_port);
        listening
            .find_map(Result::ok)
            .ok_or_else(|| io::ErrorKind::AddrInUse.into())
    }

    pub(crate) fn intercept(
        &self,
        rule: Intercept,
        backlog: usize,
        decides: bool,
    ) -> io::Result<Arc<Listening>> {
        if rule.is_empty() {
            let why = "the range of ports is empty: give at least one port";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let shared = self.shared();
        shared.add_listener(Rule::intercepting(rule), backlog, decides)
    }

    pub(crate) fn unlisten(&self, listening: &Arc<Listening>, unaccepted: Unaccepted) {
        let shared = self.shared();
        let gone = {
            let mut listeners = shared.accepting.listeners.lock();
            let at = listeners
                .iter()
                .position(|other| Arc::ptr_eq(other, listening));
            at.map(|at| listeners.remove(at))
        };
        if gone.is_some() && !thread::panicking() {
            let accepts = listening.rule.clone();
            report!(info, "stack", %accepts, "listener closed");
        }
        drop(gone);
        let half_open: Vec<(u64, Tuple)> = {
            let half_open = shared.accepting.half_open.lock();
            let mine = half_open
                .iter()
                .filter(|(_, (_, other))| Arc::ptr_eq(other, listening));
            mine.map(|(id, (tuple, _))| (*id, *tuple)).collect()
        };
        // A connection that is not in the table yet finds the listener closed when it is established.
        for (id, tuple) in half_open {
            if let Some(Entry::Conn(conn)) = shared.table.get(&tuple)
                && conn.end.id() == id
            {
                conn.run(Work::ABORT, Runner::User);
            }
        }
        for conn in unaccepted.ready {
            conn.run(Work::ABORT, Runner::User);
        }
        for key in unaccepted.held {
            shared.refuse_syn(key);
        }
    }
}

impl Shared {
    fn add_listener(
        &self,
        rule: Rule,
        backlog: usize,
        decides: bool,
    ) -> io::Result<Arc<Listening>> {
        let backlog = backlog.max(1);
        let listening = Arc::new(Listening::new(rule, backlog, decides));
        let mut listeners = self.accepting.listeners.lock();
        if self.lifecycle.down.load(Ordering::SeqCst) {
            return Err(self.why_down().into());
        }
        let rule = &listening.rule;
        if listeners.iter().any(|other| other.rule.conflicts(rule)) {
            let why = "somebody listens there already: close that listener, or be more precise";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
        }
        // Set before the listener is visible: a driver holds a SYN only after finding it.
        self.accepting.decides.fetch_or(decides, Ordering::Relaxed);
        listeners.push(listening.clone());
        listeners.sort_by_key(|one| one.rule.rank());
        drop(listeners);
        let accepts = listening.rule.clone();
        report!(info, "stack", %accepts, backlog, decides, "listener bound");
        Ok(listening)
    }

    pub(crate) fn listener_for(&self, tuple: &Tuple, own: bool) -> Option<Arc<Listening>> {
        let listeners = self.accepting.listeners.lock();
        let mut listeners = listeners.iter();
        let wanted = |one: &&Arc<Listening>| one.rule.matches(tuple.local, tuple.local_port, own);
        listeners.find(wanted).cloned()
    }

    /// A new half-open connection, if there is room for it. `former` is the record with its tuple.
    pub(crate) fn accept_syn(
        self: &Arc<Self>,
        queue: u16,
        listening: &Arc<Listening>,
        (syn, now): (&Segment, Instant),
        former: Option<&TimeWait>,
    ) -> Result<Begun, Refusal> {
        if !listening.reserve() {
            return Err(Refusal::Backlog);
        }
        let admitted = self.admits_half_open();
        admitted.inspect_err(|_| listening.release())?;
        let (tuple, looped) = (&syn.tuple, syn.looped);
        let home = Home { queue, looped };
        let number = self.initial_sequence_number(tuple, former, now);
        let conn = self.connection(home, (*tuple, Opening::Passive), number, now);
        // A thread that finds the connection in the table and runs it processes the SYN first.
        conn.leave(syn.clone());
        if intact(Protection::HalfOpenFirst) {
            self.half_open(&conn, listening);
        }
        Ok(match self.put(conn, listening, former)? {
            Put::Taken(conn) => {
                self.counters(queue).passive_opens.add(1);
                report_peer(&conn.tuple);
                if !intact(Protection::HalfOpenFirst) {
                    self.half_open(&conn, listening);
                }
                Begun::Runs(conn)
            }
            Put::Other(other) => {
                other.leave(syn.clone());
                Begun::Runs(other)
            }
            Put::Ended => Begun::Nothing,
        })
    }

    /// Registers a half-open connection, before it is visible to other threads: the thread that
    /// completes the handshake looks up its listener.
    pub(in crate::stack) fn half_open(&self, conn: &Arc<Conn>, listening: &Arc<Listening>) {
        let half_open = (conn.tuple, listening.clone());
        self.accepting
            .half_open
            .lock()
            .insert(conn.end.id(), half_open);
    }

    /// Puts a half-open connection into the table, unless its tuple is taken: by another driver that
    /// got the same SYN, or by an active open from this stack.
    pub(in crate::stack) fn put(
        &self,
        conn: Arc<Conn>,
        listening: &Arc<Listening>,
        former: Option<&TimeWait>,
    ) -> Result<Put, Refusal> {
        let Err(refusal) = self.table.insert(&conn, former) else {
            self.end_if_down(&conn, Runner::Driver);
            return Ok(Put::Taken(conn));
        };
        let forgotten = self.accepting.half_open.lock().remove(&conn.end.id());
        if forgotten.is_some() {
            listening.release();
        }
        if refusal != Refusal::Taken {
            return Err(refusal);
        }
        Ok(match self.table.get(&conn.tuple) {
            Some(Entry::Conn(other)) => Put::Other(other),
            _ => Put::Ended,
        })
    }
}

/// The result of a SYN for a listener.
#[derive(Debug)]
pub(crate) enum Begun {
    /// This connection has it queued, and is to be run.
    Runs(Arc<Conn>),
    /// Another connection had its tuple and has ended meanwhile: the SYN will be repeated.
    Nothing,
}

/// The holder of a tuple in the table.
#[derive(Debug)]
pub(in crate::stack) enum Put {
    /// The new connection.
    Taken(Arc<Conn>),
    /// Another one.
    Other(Arc<Conn>),
    /// One that has ended meanwhile.
    Ended,
}
