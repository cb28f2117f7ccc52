//! The table of connections: sharded, found by a hash of both ends.

use crate::lock::{LEAF, Mutex};
use crate::stack::accept::admission::Refusal;
use crate::tcp::conn::Conn;
use crate::tcp::time_wait::TimeWait;
use crate::tcp::wire::Tuple;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const SHARDS: usize = 64;
/// An active open may replace a record that has been in TIME-WAIT for this long (Linux's
/// `tcp_tw_reuse_delay`).
const REUSE: Duration = Duration::from_secs(1);

/// The holder of a tuple.
#[derive(Debug, Clone)]
pub(crate) enum Entry {
    Conn(Arc<Conn>),
    TimeWait(TimeWait, Term),
}

/// How long a record stays.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Term {
    pub(crate) until: Instant,
    /// The time of its entry in the queue. Another entry with its tuple belongs to an earlier record,
    /// which was removed.
    queued: Instant,
}

/// The table. Each shard has a leaf lock of its own; no two are held at once.
#[derive(Debug)]
pub(crate) struct Table {
    shards: [Mutex<HashMap<Tuple, Entry>, LEAF>; SHARDS],
    /// In the order in which TIME-WAIT began, so in the order in which it ends.
    waiting: Mutex<VecDeque<(Instant, Tuple)>, LEAF>,
    connections: AtomicUsize,
    records: AtomicUsize,
    dropped: AtomicU64,
    time_wait: Duration,
    /// Maximum length of the queue, and so of the number of records.
    limit: usize,
    /// Maximum number of connections.
    most: usize,
}

impl Table {
    /// At most `limit` records and `most` connections.
    pub(crate) fn new(time_wait: Duration, limit: usize, most: usize) -> Table {
        Table {
            shards: std::array::from_fn(|_| Mutex::default()),
            waiting: Mutex::default(),
            connections: AtomicUsize::new(0),
            records: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
            time_wait,
            limit,
            most,
        }
    }

    /// This only spreads tuples over shards; each shard's map hashes with a key of its own.
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

    /// Inserts a connection, unless there are too many. Its tuple must be free, or still held by the
    /// record of the former connection: if that were removed first, another connection could begin
    /// meanwhile with unsuitable sequence numbers.
    pub(crate) fn insert(
        &self,
        conn: &Arc<Conn>,
        former: Option<&TimeWait>,
    ) -> Result<(), Refusal> {
        self.take_place()?;
        let placed = {
            let mut shard = self.shard(&conn.tuple).lock();
            let free = match shard.get(&conn.tuple) {
                None => true,
                Some(Entry::TimeWait(record, _)) if Some(record) == former => {
                    self.records.fetch_sub(1, Ordering::Relaxed);
                    true
                }
                Some(_) => false,
            };
            if free {
                shard.insert(conn.tuple, Entry::Conn(conn.clone()));
            }
            free
        };
        if !placed {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::Taken);
        }
        Ok(())
    }

    /// Counted first: of several threads that compete for the last place, one gets it.
    fn take_place(&self) -> Result<(), Refusal> {
        let one_more = |count| (count < self.most).then_some(count + 1);
        self.connections
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .map(drop)
            .map_err(|_| Refusal::Connections)
    }

    /// Whether one more connection may begin.
    pub(crate) fn has_room(&self) -> bool {
        self.connections() < self.most
    }

    /// Removes a connection; a record may take its place. Returns the reference, to be dropped with no
    /// lock held.
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
                    self.records.fetch_add(1, Ordering::Relaxed);
                    shard.insert(conn.tuple, entry)
                }
            }
        };
        if removed.is_some() {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            if record.is_some() {
                self.waiting.lock().push_back((until, conn.tuple));
                self.drop_oldest();
            }
        }
        removed
    }

    /// Queue entries of removed records count too: a peer that opens one connection again and again
    /// takes as much memory as one that opens many.
    fn drop_oldest(&self) {
        loop {
            let oldest = {
                let mut waiting = self.waiting.lock();
                if waiting.len() <= self.limit {
                    return;
                }
                waiting.pop_front()
            };
            let Some((at, tuple)) = oldest else { return };
            let mut shard = self.shard(&tuple).lock();
            if matches!(shard.get(&tuple), Some(Entry::TimeWait(_, term)) if term.queued == at) {
                self.remove_record(&mut shard, &tuple);
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn remove_record(&self, shard: &mut HashMap<Tuple, Entry>, tuple: &Tuple) {
        shard.remove(tuple);
        self.records.fetch_sub(1, Ordering::Relaxed);
    }

    /// Restarts TIME-WAIT.
    pub(crate) fn restart(&self, record: &TimeWait, now: Instant) {
        let until = now + self.time_wait;
        let mut shard = self.shard(&record.tuple).lock();
        if let Some(Entry::TimeWait(_, term)) = shard.get_mut(&record.tuple) {
            term.until = until;
        }
    }

    /// A record that an active open may replace.
    pub(crate) fn reusable(&self, tuple: &Tuple, now: Instant) -> Option<TimeWait> {
        match self.shard(tuple).lock().get(tuple)? {
            Entry::Conn(_) => None,
            Entry::TimeWait(record, term) => {
                let old = term.until + REUSE <= now + self.time_wait;
                old.then_some(*record)
            }
        }
    }

    /// Removes a record, if it is still there.
    pub(crate) fn remove(&self, record: &TimeWait) {
        let tuple = &record.tuple;
        let mut shard = self.shard(tuple).lock();
        if matches!(shard.get(tuple), Some(Entry::TimeWait(other, _)) if other == record) {
            self.remove_record(&mut shard, tuple);
        }
    }

    /// Removes expired records.
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
                            self.remove_record(&mut shard, &tuple);
                        }
                        restarted
                    }
                    _ => false,
                }
            };
            if restarted {
                // It expires a full period from now at the latest.
                self.waiting.lock().push_back((again, tuple));
            }
        }
    }

    /// When [`expire`](Self::expire) has work.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.waiting.lock().front().map(|(at, _)| *at)
    }

    /// Number of connections, without those in TIME-WAIT.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Number of records in TIME-WAIT.
    pub(crate) fn records(&self) -> usize {
        self.records.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn places(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Number of records dropped early.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// All entries, by shards.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.lock().values().cloned());
        }
        all
    }

    /// The connection with this tuple.
    #[cfg(test)]
    pub(crate) fn conn(&self, tuple: &Tuple) -> Arc<Conn> {
        match self.get(tuple) {
            Some(Entry::Conn(conn)) => conn,
            _ => panic!("a connection is in the table"),
        }
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
    use crate::stack::{Stack, TcpSocket};
    use crate::tcp::block::time_wait::Record;

    /// A connection and its TIME-WAIT record.
    fn connection() -> (Arc<Conn>, TimeWait) {
        let (link, _far) = memory::pair(memory::Config::default());
        let builder = Stack::builder(link).address("10.0.0.1/24".parse().unwrap());
        let (stack, _driver) = builder.build_with_driver().unwrap();
        let stream = TcpSocket::new(&stack)
            .start("10.0.0.2:80".parse().unwrap())
            .unwrap();
        let tuple = stream.conn().tuple;
        let record = TimeWait {
            tuple,
            record: Record {
                snd_nxt: 7,
                rcv_nxt: 0,
                timestamps: None,
            },
        };
        (stack.shared().table.conn(&tuple), record)
    }

    #[test]
    fn records_are_queued_once() {
        let (conn, record) = connection();
        let tuple = conn.tuple;
        let table = Table::new(Duration::from_secs(60), 1000, 1);
        let start = SystemClock.now();
        // A peer that opens the same connection again and again, for two hours.
        for second in 0..7200 {
            let now = start + Duration::from_secs(second);
            table.insert(&conn, Some(&record)).unwrap();
            drop(table.end(&conn, Some(record), now));
            table.expire(now);
            assert!(table.waiting.lock().len() <= 61);
        }
        // A record that is restarted stays for a period from then.
        let now = start + Duration::from_secs(7200);
        table.insert(&conn, Some(&record)).unwrap();
        drop(table.end(&conn, Some(record), now));
        table.restart(&record, now + Duration::from_secs(59));
        table.expire(now + Duration::from_secs(60));
        assert!(table.contains(&tuple));
        table.expire(now + Duration::from_secs(120));
        assert!(!table.contains(&tuple) && table.next_expiry().is_none());
    }

    /// Guards `Table::insert`: the record must stay until the new connection is inserted: a connection
    /// in between would not know the former sequence numbers.
    #[test]
    fn a_record_stays_until_its_place_is_taken() {
        let (conn, record) = connection();
        let tuple = conn.tuple;
        let table = Table::new(Duration::from_secs(60), 1000, 10);
        let start = SystemClock.now();
        table.insert(&conn, None).unwrap();
        drop(table.end(&conn, Some(record), start));
        let now = start + Duration::from_secs(1);
        assert_eq!(table.reusable(&tuple, now - Duration::from_nanos(1)), None);
        assert_eq!(table.reusable(&tuple, now), Some(record));
        let mut other = record;
        other.record.snd_nxt = 8;
        for former in [None, Some(&other)] {
            assert_eq!(table.insert(&conn, former), Err(Refusal::Taken));
        }
        assert_eq!((table.connections(), table.records()), (0, 1));
        table.insert(&conn, Some(&record)).unwrap();
        assert_eq!(table.insert(&conn, Some(&record)), Err(Refusal::Taken));
        assert_eq!((table.connections(), table.records()), (1, 0));
    }

    #[test]
    fn a_record_stays_where_there_is_no_room_for_a_connection() {
        let (conn, record) = connection();
        let tuple = conn.tuple;
        let table = Table::new(Duration::from_secs(60), 1000, 1);
        table.insert(&conn, None).unwrap();
        drop(table.end(&conn, Some(record), SystemClock.now()));
        table.take_place().unwrap();
        assert_eq!(
            table.insert(&conn, Some(&record)),
            Err(Refusal::Connections)
        );
        assert!(matches!(table.get(&tuple), Some(Entry::TimeWait(..))));
    }

    /// Checks the size stated at [`Builder::time_wait_limit`](crate::stack::Builder::time_wait_limit):
    /// an entry, with one in eight places of a hash map free and a byte each, and an entry in the
    /// queue.
    #[test]
    fn a_record_is_small() {
        let entry = size_of::<(Tuple, Entry)>() + 1;
        let place = size_of::<(Instant, Tuple)>();
        // Both grow by doubling, so half of each may be empty after that.
        assert!(entry * 8 / 7 + place < 256, "{entry} {place}");
    }
}
