//! The table of connections: sharded, found by a hash of both ends.

use crate::lock::{LEAF, Mutex};
use crate::tcp::conn::Conn;
use crate::tcp::time_wait::TimeWait;
use crate::tcp::wire::Tuple;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const SHARDS: usize = 64;

/// What has a tuple.
#[derive(Debug, Clone)]
pub(crate) enum Entry {
    Conn(Arc<Conn>),
    TimeWait(TimeWait, Instant),
}

/// All shards have their own leaf lock; no two are held at once.
#[derive(Debug)]
pub(crate) struct Table {
    shards: [Mutex<HashMap<Tuple, Entry>, LEAF>; SHARDS],
    /// In the order in which TIME-WAIT began, so in the order in which it ends.
    waiting: Mutex<VecDeque<(Instant, Tuple)>, LEAF>,
    connections: AtomicUsize,
    time_wait: Duration,
}

impl Table {
    pub(crate) fn new(time_wait: Duration) -> Table {
        Table {
            shards: std::array::from_fn(|_| Mutex::default()),
            waiting: Mutex::default(),
            connections: AtomicUsize::new(0),
            time_wait,
        }
    }

    /// The shard's map hashes with a key of its own; this only spreads.
    fn shard(&self, tuple: &Tuple) -> &Mutex<HashMap<Tuple, Entry>, LEAF> {
        let mixed = usize::from(tuple.local_port).wrapping_mul(31) ^ usize::from(tuple.remote_port);
        &self.shards[mixed % SHARDS]
    }

    pub(crate) fn get(&self, tuple: &Tuple) -> Option<Entry> {
        self.shard(tuple).lock().get(tuple).cloned()
    }

    pub(crate) fn contains(&self, tuple: &Tuple) -> bool {
        self.shard(tuple).lock().contains_key(tuple)
    }

    /// Puts a connection in, unless its tuple is taken.
    pub(crate) fn insert(&self, conn: &Arc<Conn>) -> bool {
        let mut shard = self.shard(&conn.tuple).lock();
        let vacant = !shard.contains_key(&conn.tuple);
        if vacant {
            shard.insert(conn.tuple, Entry::Conn(conn.clone()));
            self.connections.fetch_add(1, Ordering::Relaxed);
        }
        vacant
    }

    /// Takes a connection out; a record may take its place. The reference is given back, to be
    /// dropped with no lock held.
    pub(crate) fn end(
        &self,
        conn: &Arc<Conn>,
        record: Option<TimeWait>,
        now: Instant,
    ) -> Option<Entry> {
        let until = now + self.time_wait;
        let removed = {
            let mut shard = self.shard(&conn.tuple).lock();
            let here = match shard.get(&conn.tuple) {
                Some(Entry::Conn(found)) => Arc::ptr_eq(found, conn),
                _ => false,
            };
            match (here, record) {
                (false, _) => None,
                (true, None) => shard.remove(&conn.tuple),
                (true, Some(record)) => shard.insert(conn.tuple, Entry::TimeWait(record, until)),
            }
        };
        if removed.is_some() {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            if record.is_some() {
                self.waiting.lock().push_back((until, conn.tuple));
            }
        }
        removed
    }

    /// TIME-WAIT begins anew.
    pub(crate) fn restart(&self, record: &TimeWait, now: Instant) {
        let until = now + self.time_wait;
        let mut shard = self.shard(&record.tuple).lock();
        if let Some(Entry::TimeWait(_, at)) = shard.get_mut(&record.tuple) {
            *at = until;
        }
    }

    /// Makes room for a new connection in the place of one in TIME-WAIT.
    pub(crate) fn forget(&self, tuple: &Tuple) {
        let mut shard = self.shard(tuple).lock();
        if matches!(shard.get(tuple), Some(Entry::TimeWait(..))) {
            shard.remove(tuple);
        }
    }

    /// Ends what has been in TIME-WAIT long enough.
    pub(crate) fn expire(&self, now: Instant) {
        loop {
            let tuple = {
                let mut waiting = self.waiting.lock();
                match waiting.front() {
                    Some((at, _)) if *at <= now => waiting.pop_front().map(|(_, tuple)| tuple),
                    _ => None,
                }
            };
            let Some(tuple) = tuple else { return };
            let later = {
                let mut shard = self.shard(&tuple).lock();
                match shard.get(&tuple) {
                    Some(Entry::TimeWait(_, at)) if *at > now => Some(*at),
                    Some(Entry::TimeWait(..)) => {
                        shard.remove(&tuple);
                        None
                    }
                    _ => None,
                }
            };
            if later.is_some() {
                // It was restarted: its turn comes a full period from now at the latest.
                self.waiting.lock().push_back((now + self.time_wait, tuple));
            }
        }
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.waiting.lock().front().map(|(at, _)| *at)
    }

    /// Connections, those in TIME-WAIT not counted.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// References to all connections.
    pub(crate) fn all(&self) -> Vec<Arc<Conn>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.lock().values().filter_map(|entry| match entry {
                Entry::Conn(conn) => Some(conn.clone()),
                Entry::TimeWait(..) => None,
            }));
        }
        all
    }
}
