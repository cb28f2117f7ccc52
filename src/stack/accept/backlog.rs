//! The backlog of a listener: connections that wait to be accepted, half-open ones, and SYNs that wait for a
//! decision.

use super::intercept::Rule;
use crate::error::SoError;
use crate::events::tell;
use crate::lock::{Condvar, LEAF, Mutex};
use crate::protocol::{Upcall, Upcalls, Wakeup, is_same};
use crate::socket::poller::{Condition, Watched};
use crate::tcp::conn::Conn;
use crate::tcp::wire::Tuple;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One record: its tuple, and a number that no other record has, so that a late decision is none
/// about the next SYN of that tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) tuple: Tuple,
    /// By which queue the first SYN came.
    pub(crate) queue: u16,
    pub(super) serial: u64,
}

#[derive(Default)]
struct Queue {
    ready: VecDeque<Arc<Conn>>,
    /// Held SYNs that nobody was handed yet.
    held: VecDeque<Key>,
    /// Told when a connection is ready, and when the stack is down, after the lock.
    upcalls: Upcalls,
    /// Half-open connections and held SYNs.
    half_open: usize,
    closed: bool,
    /// The stack is down, and why: nobody will come any more.
    down: Option<SoError>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("ready", &self.ready)
            .field("held", &self.held)
            .field("upcalls", &self.upcalls.len())
            .field("half_open", &self.half_open)
            .field("closed", &self.closed)
            .field("down", &self.down)
            .finish()
    }
}

/// What a listener leaves behind when it is closed.
#[derive(Debug)]
pub(crate) struct Unaccepted {
    pub(crate) ready: VecDeque<Arc<Conn>>,
    pub(crate) held: VecDeque<Key>,
}

/// How long a listener's queues are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queued {
    /// Handshakes that are not over, and SYNs that nobody has decided about.
    pub(crate) half_open: usize,
    /// Connections to be accepted, and SYNs to be handed out.
    pub(crate) waiting: usize,
}

/// What the stack knows of a listener.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) rule: Rule,
    /// SYNs are held until the user decides.
    pub(crate) decides: bool,
    /// At least 1.
    backlog: usize,
    queue: Mutex<Queue, LEAF>,
    changed: Condvar,
    pub(crate) nonblocking: AtomicBool,
}

impl Listening {
    pub(crate) fn new(rule: Rule, backlog: usize, decides: bool) -> Listening {
        Listening {
            rule,
            decides,
            backlog,
            queue: Mutex::default(),
            changed: Condvar::new(),
            nonblocking: AtomicBool::new(false),
        }
    }

    /// A SYN may begin a connection: half-open and waiting ones together fit into the backlog.
    pub(crate) fn reserve(&self) -> bool {
        let mut queue = self.queue.lock();
        let room = !queue.closed && queue.half_open + queue.ready.len() < self.backlog;
        queue.half_open += usize::from(room);
        room
    }

    /// A connection whose handshake is over with its first segment may begin: only those that wait
    /// count.
    pub(crate) fn reserve_beyond(&self) -> bool {
        let mut queue = self.queue.lock();
        let room = !queue.closed && queue.ready.len() < self.backlog;
        queue.half_open += usize::from(room);
        room
    }

    /// Whether there is room for connections that wait, were those that are half-open not there.
    pub(crate) fn accepts(&self) -> bool {
        let queue = self.queue.lock();
        !queue.closed && queue.ready.len() < self.backlog
    }

    pub(crate) fn backlog(&self) -> usize {
        self.backlog
    }

    pub(crate) fn queued(&self) -> Queued {
        let queue = self.queue.lock();
        Queued {
            half_open: queue.half_open,
            waiting: queue.ready.len() + queue.held.len(),
        }
    }

    /// A half-open connection has failed.
    pub(crate) fn release(&self) {
        self.queue.lock().half_open -= 1;
    }

    /// A half-open connection stands. `false`: the listener is closed.
    pub(crate) fn ready(&self, conn: &Arc<Conn>) -> bool {
        let upcalls = {
            let mut queue = self.queue.lock();
            queue.half_open -= 1;
            if queue.closed {
                return false;
            }
            queue.ready.push_back(conn.clone());
            self.changed.notify_one();
            queue.upcalls.clone()
        };
        upcalls
            .iter()
            .for_each(|upcall| upcall.wakeup(Wakeup::Data));
        true
    }

    /// A SYN is held. `false`: the listener is closed.
    pub(crate) fn offer(&self, key: Key) -> bool {
        let upcalls = {
            let mut queue = self.queue.lock();
            if queue.closed {
                return false;
            }
            queue.held.push_back(key);
            self.changed.notify_one();
            queue.upcalls.clone()
        };
        upcalls
            .iter()
            .for_each(|upcall| upcall.wakeup(Wakeup::Data));
        true
    }

    /// A SYN is held no longer. It is near the front: the oldest go first.
    pub(crate) fn withdraw(&self, key: Key) {
        let mut queue = self.queue.lock();
        let at = queue.held.iter().position(|other| *other == key);
        at.map(|at| queue.held.remove(at));
    }

    pub(crate) fn close(&self) -> Unaccepted {
        let (unaccepted, upcalls) = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            self.changed.notify_all();
            let upcalls = std::mem::take(&mut queue.upcalls);
            let ready = std::mem::take(&mut queue.ready);
            let held = std::mem::take(&mut queue.held);
            (Unaccepted { ready, held }, upcalls)
        };
        // Tasks that wait find it closed.
        upcalls
            .iter()
            .for_each(|upcall| upcall.wakeup(Wakeup::RcvClosed));
        drop(upcalls);
        unaccepted
    }

    /// The stack is down.
    pub(crate) fn go_down(&self, why: SoError) {
        let upcalls = {
            let mut queue = self.queue.lock();
            queue.down = Some(why);
            // Their records are about to go.
            queue.held.clear();
            self.changed.notify_all();
            queue.upcalls.clone()
        };
        upcalls
            .iter()
            .for_each(|upcall| upcall.wakeup(Wakeup::RcvClosed));
    }

    pub(crate) fn accept(&self) -> io::Result<Arc<Conn>> {
        self.wait(self.is_nonblocking(), |queue| queue.ready.pop_front())
    }

    pub(crate) fn pending(&self) -> io::Result<Key> {
        self.wait(self.is_nonblocking(), |queue| queue.held.pop_front())
    }

    /// As [`accept`](Self::accept), but never waits.
    #[cfg(feature = "async")]
    pub(crate) fn try_accept(&self) -> io::Result<Arc<Conn>> {
        self.wait(true, |queue| queue.ready.pop_front())
    }

    /// As [`pending`](Self::pending), but never waits.
    #[cfg(feature = "async")]
    pub(crate) fn try_pending(&self) -> io::Result<Key> {
        self.wait(true, |queue| queue.held.pop_front())
    }

    fn is_nonblocking(&self) -> bool {
        self.nonblocking.load(Ordering::Relaxed)
    }

    fn wait<T>(&self, nonblocking: bool, take: impl Fn(&mut Queue) -> Option<T>) -> io::Result<T> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(taken) = take(&mut queue) {
                return Ok(taken);
            }
            if queue.closed {
                let why = "the listener was closed by another thread";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
            if let Some(why) = queue.down {
                return Err(why.into());
            }
            if nonblocking {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.changed.wait(&mut queue);
        }
    }
}

impl Watched for Listening {
    fn edit(&self, edit: &mut dyn FnMut(&mut Upcalls)) {
        let mut queue = self.queue.lock();
        if !queue.closed {
            edit(&mut queue.upcalls);
        }
    }

    fn condition(&self, upcall: &dyn Upcall) -> Option<Condition> {
        let queue = self.queue.lock();
        let mut upcalls = queue.upcalls.iter();
        upcalls.find(|other| is_same(other, upcall))?;
        Some(Condition {
            readable: !(queue.ready.is_empty() && queue.held.is_empty()) || queue.down.is_some(),
            read_closed: queue.down.is_some(),
            error: queue.down,
            ..Condition::default()
        })
    }
}

/// A peer has begun a connection.
pub(in crate::stack) fn tell_of_peer(tuple: &Tuple) {
    let (local, peer) = tuple.ends();
    tell!(debug, "tcp", %local, %peer, "peer is connecting");
}
