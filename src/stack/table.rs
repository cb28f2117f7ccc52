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
    TimeWait(TimeWait, Term),
}

/// How long a record stays.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Term {
    pub(crate) until: Instant,
    /// When it is looked at: its place in the queue. Another place with its tuple is an earlier
    /// record's, which has gone.
    queued: Instant,
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
                (true, Some(record)) => {
                    let queued = until;
                    let entry = Entry::TimeWait(record, Term { until, queued });
                    shard.insert(conn.tuple, entry)
                }
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
        if let Some(Entry::TimeWait(_, term)) = shard.get_mut(&record.tuple) {
            term.until = until;
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
            let due = {
                let mut waiting = self.waiting.lock();
                match waiting.front() {
                    Some((at, _)) if *at <= now => waiting.pop_front(),
                    _ => None,
                }
            };
            let Some((at, tuple)) = due else { return };
            let again = now + self.time_wait;
            let restarted = {
                let mut shard = self.shard(&tuple).lock();
                match shard.get_mut(&tuple) {
                    Some(Entry::TimeWait(_, term)) if term.queued == at => {
                        let restarted = term.until > now;
                        if restarted {
                            term.queued = again;
                        } else {
                            shard.remove(&tuple);
                        }
                        restarted
                    }
                    _ => false,
                }
            };
            if restarted {
                // Its turn comes a full period from now at the latest.
                self.waiting.lock().push_back((again, tuple));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};
    use crate::link::memory;
    use crate::stack::{Stack, TcpStream};

    #[test]
    fn records_are_queued_once() {
        let (link, _far) = memory::pair(memory::Config::default());
        let builder = Stack::builder(link).address("10.0.0.1/24".parse().unwrap());
        let (stack, _driver) = builder.manual().unwrap();
        let stream = TcpStream::start(&stack, "10.0.0.2:80".parse().unwrap()).unwrap();
        let tuple = Tuple {
            local: stream.local_addr().ip(),
            remote: stream.peer_addr().ip(),
            local_port: stream.local_addr().port(),
            remote_port: stream.peer_addr().port(),
        };
        let Some(Entry::Conn(conn)) = stack.shared().table.get(&tuple) else {
            panic!("a connection is in the table");
        };
        let record = TimeWait {
            tuple,
            snd_nxt: 0,
            rcv_nxt: 0,
        };
        let table = Table::new(Duration::from_secs(60));
        let start = SystemClock.now();
        // A peer that opens the same connection again and again, for two hours.
        for second in 0..7200 {
            let now = start + Duration::from_secs(second);
            table.forget(&tuple);
            assert!(table.insert(&conn));
            drop(table.end(&conn, Some(record), now));
            table.expire(now);
            assert!(table.waiting.lock().len() <= 61);
        }
        // A record that is restarted stays for a period from then.
        let now = start + Duration::from_secs(7200);
        table.forget(&tuple);
        assert!(table.insert(&conn));
        drop(table.end(&conn, Some(record), now));
        table.restart(&record, now + Duration::from_secs(59));
        table.expire(now + Duration::from_secs(60));
        assert!(table.contains(&tuple));
        table.expire(now + Duration::from_secs(120));
        assert!(!table.contains(&tuple) && table.next_expiry().is_none());
    }
}
