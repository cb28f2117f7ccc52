//! SYNs that wait for the program's decision: a small record each, without control block and buffers.
//!
//! A record has a place in its listener's backlog. The thread that removes it from the list releases
//! the place. A repeated SYN refreshes its record. An accepted connection is put into the table before
//! its record is removed, and a driver that has made a record checks the table once more: so no SYN is
//! held while its connection exists. If two drivers have the same SYN and neither finds a record, the
//! second refreshes the record of the first.
//!
//! A TIME-WAIT record of the same tuple stays in the table until the SYN is accepted: a refused or
//! ignored SYN does not remove it.
//!
//! Locks: the list's, a leaf, taken alone.

use crate::buf::Gather;
use crate::stack::Shared;
use crate::stack::accept::admission::Refusal;
use crate::stack::accept::backlog::Key;
use crate::stack::accept::backlog::Listening;
use crate::stack::demux::conn_table::Entry;
use crate::stack::demux::stateless;
use crate::tcp::block::time_wait::Answer;
use crate::tcp::conn::{Conn, Host, Runner};
use crate::tcp::conn_state::Opening;
use crate::tcp::home::Home;
use crate::tcp::service::Work;
use crate::tcp::wire::{Header, Segment, Tuple};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// The contents of a SYN. Its payload, if any, is ignored (RFC 9293 3.10.7.2 lets the peer send it
/// again).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Syn {
    pub(crate) header: Header,
    /// TSval and TSecr (RFC 7323 3.2).
    pub(crate) timestamps: Option<(u32, u32)>,
}

/// One without timestamps.
impl From<Header> for Syn {
    fn from(header: Header) -> Syn {
        Syn {
            header,
            timestamps: None,
        }
    }
}

impl Syn {
    fn of(segment: &Segment) -> Syn {
        Syn {
            header: segment.header,
            timestamps: segment.timestamps,
        }
    }

    pub(in crate::stack) fn segment(&self, tuple: Tuple) -> Segment {
        Segment {
            tuple,
            header: self.header,
            payload: Gather::default(),
            payload_len: 0,
            sack: None,
            looped: false,
            marked: false,
            timestamps: self.timestamps,
        }
    }
}

#[derive(Debug)]
struct Record {
    serial: u64,
    home: Home,
    listening: Arc<Listening>,
    /// The latest one.
    syn: Syn,
    /// `None` while it is being accepted.
    until: Option<Instant>,
}

/// All records of a stack.
#[derive(Debug, Default)]
pub(crate) struct SynQueue {
    records: HashMap<Tuple, Record>,
    /// Expiry times.
    deadlines: BTreeMap<(Instant, u64), Tuple>,
    serial: u64,
}

impl SynQueue {
    /// `None` if another driver holds this SYN, or an earlier one of its tuple, already.
    fn insert(
        &mut self,
        (tuple, home): (Tuple, Home),
        listening: &Arc<Listening>,
        syn: Syn,
        at: Instant,
    ) -> Option<Key> {
        if self.refresh(&tuple, syn, at) {
            return None;
        }
        self.serial += 1;
        let serial = self.serial;
        let record = Record {
            serial,
            home,
            listening: listening.clone(),
            syn,
            until: Some(at),
        };
        self.records.insert(tuple, record);
        self.deadlines.insert((at, serial), tuple);
        Some(Key {
            tuple,
            queue: home.queue,
            serial,
        })
    }

    /// Refreshes the record of a tuple. `false` if there is none.
    fn refresh(&mut self, tuple: &Tuple, syn: Syn, at: Instant) -> bool {
        let Some(record) = self.records.get_mut(tuple) else {
            return false;
        };
        if let Some(until) = &mut record.until {
            self.deadlines.remove(&(*until, record.serial));
            self.deadlines.insert((at, record.serial), *tuple);
            (record.syn, *until) = (syn, at);
        }
        true
    }

    /// Stops the timeout of the record.
    fn begin(&mut self, key: Key) -> Option<(Home, Syn)> {
        let record = self.records.get_mut(&key.tuple)?;
        if record.serial != key.serial {
            return None;
        }
        if let Some(until) = record.until.take() {
            self.deadlines.remove(&(until, key.serial));
        }
        Some((record.home, record.syn))
    }

    fn take(&mut self, key: Key) -> Option<Record> {
        self.begin(key)?;
        self.records.remove(&key.tuple)
    }

    fn take_due(&mut self, now: Instant) -> Option<(Key, Record)> {
        let (&(until, serial), &tuple) = self.deadlines.first_key_value()?;
        let queue = self.records.get(&tuple)?.home.queue;
        let key = Key {
            tuple,
            queue,
            serial,
        };
        (until <= now).then(|| self.take(key).map(|record| (key, record)))?
    }

    /// When the first record expires.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.deadlines.first_key_value().map(|((at, _), _)| *at)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> (usize, usize) {
        (self.records.len(), self.deadlines.len())
    }
}

impl Shared {
    /// A SYN was repeated. `false` if it is not held.
    pub(crate) fn refresh_syn(&self, syn: &Segment, now: Instant) -> bool {
        if !self.accepting.decides.load(Ordering::Relaxed) {
            return false;
        }
        let until = now + self.config.limits.connect;
        (self.accepting.held.lock()).refresh(&syn.tuple, Syn::of(syn), until)
    }

    /// Holds a SYN, if the listener's backlog has room. Returns a connection if one was made meanwhile:
    /// the SYN is for that.
    pub(crate) fn hold_syn(
        &self,
        queue: u16,
        listening: &Arc<Listening>,
        syn: &Segment,
        now: Instant,
    ) -> Option<Arc<Conn>> {
        if !listening.reserve() {
            self.drop_syn(listening, now);
            return None;
        }
        let until = now + self.config.limits.connect;
        let looped = syn.looped;
        let place = (syn.tuple, Home { queue, looped });
        let key = (self.accepting.held.lock()).insert(place, listening, Syn::of(syn), until);
        let Some(key) = key else {
            listening.release();
            return None;
        };
        // Either go_down() has removed it, or this sees that the stack is down.
        if self.lifecycle.down.load(Ordering::SeqCst) {
            self.ignore_syn(key);
            return None;
        }
        self.expires_at(until);
        if let Some(Entry::Conn(conn)) = self.table.get(&syn.tuple) {
            self.ignore_syn(key);
            return Some(conn);
        }
        if !listening.offer(key) {
            self.refuse_syn(key);
        }
        None
    }

    /// Drops held SYNs without a decision in time.
    pub(crate) fn expire_syns(&self, now: Instant) {
        loop {
            let due = self.accepting.held.lock().take_due(now);
            let Some((key, record)) = due else { return };
            record.listening.withdraw(key);
            record.listening.release();
        }
    }

    /// Begins the connection of a held SYN.
    pub(crate) fn accept_held(self: &Arc<Self>, key: Key) -> io::Result<Arc<Conn>> {
        let tuple = key.tuple;
        let syn = self.accepting.held.lock().begin(key);
        let Some((home, syn)) = syn else {
            return Err(match self.lifecycle.down.load(Ordering::SeqCst) {
                true => self.why_down().into(),
                false => io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the peer has not tried again for the stack's connect timeout: decide earlier",
                ),
            });
        };
        let syn = syn.segment(tuple);
        let after = match self.table.get(&tuple) {
            Some(Entry::TimeWait(record, _)) if record.answer(&syn) == Answer::MakeRoom => {
                Some(record)
            }
            _ => None,
        };
        let now = self.clock.now();
        let number = self.initial_sequence_number(&tuple, after.as_ref(), now);
        let conn = self.connection(home, (tuple, Opening::Passive), number, now);
        // A thread that finds the connection in the table and runs it processes the SYN first.
        conn.leave(syn);
        let inserted = self.table.insert(&conn, after.as_ref());
        self.ignore_syn(key);
        match inserted {
            Ok(()) => {}
            Err(Refusal::Connections) => return Err(self.too_many_connections()),
            Err(_) => {
                let why = "this stack has dialled its peer from the same port meanwhile";
                return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
            }
        }
        self.counters(key.queue).passive_opens.add(1);
        crate::stack::accept::backlog::report_peer(&tuple);
        if self.end_if_down(&conn, Runner::User) {
            return Err(self.why_down().into());
        }
        conn.run(Work::SERVE, Runner::User);
        Ok(conn)
    }

    /// Answers with a reset. If the link is full, it is lost, and the peer's next SYN is a new one.
    pub(crate) fn refuse_syn(&self, key: Key) {
        if let Some(record) = self.take_syn(key) {
            let queue = &self.queues[usize::from(key.queue)];
            let link = queue.way_back(record.home.looped);
            stateless::reset(link, &record.syn.segment(key.tuple));
        }
    }

    /// Drops it without an answer.
    pub(crate) fn ignore_syn(&self, key: Key) {
        drop(self.take_syn(key));
    }

    fn take_syn(&self, key: Key) -> Option<Record> {
        let record = self.accepting.held.lock().take(key)?;
        record.listening.release();
        Some(record)
    }

    /// The stack is down.
    pub(crate) fn drop_syns(&self) {
        let all = std::mem::take(&mut *self.accepting.held.lock());
        drop(all);
    }
}
