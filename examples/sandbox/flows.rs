//! The connections, UDP flows and pings that pass, as a table.

use parking_lot::Mutex;
use sosplice::Stack;
use sosplice::clock::{Clock, SystemClock};
use sosplice::splice::Join;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// The table has the newest flows, and no more than these.
const ROWS: usize = 40;
const COLUMNS: [&str; 8] = [
    "Kind",
    "Guest",
    "Other end",
    "State",
    "Up",
    "Down",
    "Age",
    "Name",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Udp,
    Ping,
    /// A connection into the guest.
    Forward,
}

/// One of them.
#[derive(Debug, Clone)]
pub(crate) struct Flow {
    pub(crate) kind: Kind,
    pub(crate) guest: SocketAddr,
    /// The address that the guest knows as the other one.
    pub(crate) peer: SocketAddr,
    /// Where the host's socket is connected to.
    pub(crate) other: SocketAddr,
    pub(crate) name: Option<String>,
    /// Which guest it is, if one follows the other.
    pub(crate) generation: u64,
}

#[derive(Debug)]
struct Entry {
    flow: Flow,
    began: Instant,
    /// The first socket is the guest's.
    join: Arc<Join>,
}

#[derive(Debug, Default)]
struct List {
    entries: BTreeMap<u64, Entry>,
    next: u64,
}

/// All of them, by age.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flows(Arc<Mutex<List>>);

impl Flows {
    /// Adds one. It is removed when it ends.
    pub(crate) fn add(&self, flow: Flow, join: Join) {
        let join = Arc::new(join);
        let entry = Entry {
            flow,
            began: SystemClock.now(),
            join: Arc::clone(&join),
        };
        let id = {
            let mut list = self.0.lock();
            list.next += 1;
            let id = list.next;
            list.entries.insert(id, entry);
            id
        };
        let flows = self.clone();
        join.on_end(move |_| {
            let ended = flows.0.lock().entries.remove(&id);
            // Closes the sockets: not under the lock.
            drop(ended);
        });
    }

    /// Ends those of guests before this one, and returns how many there were.
    pub(crate) fn end_before(&self, generation: u64) -> usize {
        let old = |entry: &&Entry| entry.flow.generation < generation;
        let joins: Vec<_> = {
            let list = self.0.lock();
            let old = list.entries.values().filter(old);
            old.map(|entry| Arc::clone(&entry.join)).collect()
        };
        // This removes them from the list.
        joins.iter().for_each(|join| join.abort());
        joins.len()
    }

    pub(crate) fn table(&self, stack: &Stack) -> Table {
        let now = SystemClock.now();
        let sockets = stack.sockets().into_iter();
        let states = sockets.map(|socket| ((socket.local, socket.peer), socket.state.to_string()));
        let states: HashMap<_, _> = states.collect();
        let list = self.0.lock();
        let newest = list.entries.values().rev().take(ROWS);
        let rows = newest.map(|entry| {
            let state = states.get(&(entry.flow.peer, Some(entry.flow.guest)));
            entry.row(state.cloned(), now)
        });
        Table {
            rows: rows.collect(),
            count: list.entries.len(),
        }
    }
}

impl Entry {
    fn row(&self, state: Option<String>, now: Instant) -> [String; COLUMNS.len()] {
        let (up, down) = self.join.bytes();
        let kind = match self.flow.kind {
            Kind::Tcp => "tcp",
            Kind::Udp => "udp",
            Kind::Ping => "ping",
            Kind::Forward => "forward",
        };
        let answered = if down == 0 { "unanswered" } else { "answered" };
        let shown = |address: SocketAddr| match address.port() {
            0 => address.ip().to_string(),
            _ => address.to_string(),
        };
        [
            kind.to_owned(),
            shown(self.flow.guest),
            shown(self.flow.other),
            match self.flow.kind {
                Kind::Tcp | Kind::Forward => state.unwrap_or_default(),
                Kind::Udp | Kind::Ping => answered.to_owned(),
            },
            up.to_string(),
            down.to_string(),
            format!("{} s", now.saturating_duration_since(self.began).as_secs()),
            self.flow.name.clone().unwrap_or_default(),
        ]
    }
}

/// Flows at one moment, the newest first: bytes from the guest (up) and to it (down).
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<[String; COLUMNS.len()]>,
    count: usize,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = COLUMNS.map(str::to_owned);
        let lines = || std::iter::once(&names).chain(&self.rows);
        let widths: [usize; COLUMNS.len()] =
            std::array::from_fn(|at| lines().map(|line| line[at].len()).max().unwrap_or(0));
        for line in lines() {
            let cells = line.iter().zip(widths);
            let cells: Vec<_> = cells
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        write!(f, "{} flows", self.count)
    }
}
