//! The backlog of a listener: connections that wait to be accepted, half-open ones, and SYNs that wait for a
//! decision.

use super::intercept::Rule;
use crate::callbacks::{self, Once};
use crate::error::SoError;
use crate::events::report;
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

/// Identifies a record: its tuple, and a unique number, so that a late decision does not apply to the
/// next SYN of that tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) tuple: Tuple,
    /// The queue on which the first SYN arrived.
    pub(crate) queue: u16,
    pub(super) serial: u64,
}

/// The code behind [`TcpListener::on_accept`](crate::TcpListener::on_accept).
pub(crate) type Acceptor = dyn Fn() + Send + Sync;

#[derive(Default)]
struct Queue {
    ready: VecDeque<Arc<Conn>>,
    /// Held SYNs that were not returned to the program yet.
    held: VecDeque<Key>,
    /// Called when a connection is ready, and when the stack is down, after releasing the lock.
    upcalls: Upcalls,
    /// Takes connections that are ready. Called with no lock held.
    acceptor: Option<Arc<Acceptor>>,
    /// Half-open connections and held SYNs.
    half_open: usize,
    closed: bool,
    /// Why the stack is down, if it is: no connection will arrive any more.
    down: Option<SoError>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("ready", &self.ready)
            .field("held", &self.held)
            .field("upcalls", &self.upcalls.len())
            .field("acceptor", &self.acceptor.is_some())
            .field("half_open", &self.half_open)
            .field("closed", &self.closed)
            .field("down", &self.down)
            .finish()
    }
}

/// The contents of a listener when it is closed.
#[derive(Debug)]
pub(crate) struct Unaccepted {
    pub(crate) ready: VecDeque<Arc<Conn>>,
    pub(crate) held: VecDeque<Key>,
}

/// The lengths of a listener's queues.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queued {
    /// Half-open connections, and SYNs that wait for a decision.
    pub(crate) half_open: usize,
    /// Connections that wait to be accepted, and SYNs not returned yet.
    pub(crate) waiting: usize,
}

/// The stack's record of a listener.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) rule: Rule,
    /// SYNs are held until the program decides.
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

    /// Reserves a place for a half-open connection. `false` if half-open and waiting ones together fill
    /// the backlog.
    pub(crate) fn reserve(&self) -> bool {
        let mut queue = self.queue.lock();
        let room = !queue.closed && queue.half_open + queue.ready.len() < self.backlog;
        queue.half_open += usize::from(room);
        room
    }

    /// Reserves a place for a connection that is established with its first segment: only waiting ones
    /// count.
    pub(crate) fn reserve_beyond(&self) -> bool {
        let mut queue = self.queue.lock();
        let room = !queue.closed && queue.ready.len() < self.backlog;
        queue.half_open += usize::from(room);
        room
    }

    /// Whether the backlog has room without counting half-open connections.
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

    /// Releases the place of a half-open connection that has failed.
    pub(crate) fn release(&self) {
        self.queue.lock().half_open -= 1;
    }

    /// A half-open connection is established. `false` if the listener is closed.
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

    /// Sets the code that takes connections, unless the listener is closed.
    pub(crate) fn set_acceptor(&self, acceptor: Arc<Acceptor>) {
        let former = {
            let mut queue = self.queue.lock();
            match queue.closed {
                true => Some(acceptor),
                false => queue.acceptor.replace(acceptor),
            }
        };
        drop(former);
        self.announce();
    }

    /// Calls the code that takes connections, if one is ready or the stack is down. Called with no lock held.
    pub(crate) fn announce(&self) {
        let acceptor = {
            let queue = self.queue.lock();
            let wanted = !queue.ready.is_empty() || queue.down.is_some();
            queue.acceptor.clone().filter(|_| wanted)
        };
        if let Some(acceptor) = acceptor {
            callbacks::call(Once::new(move || acceptor()));
        }
    }

    /// Queues a held SYN. `false` if the listener is closed.
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

    /// Removes a SYN that is no longer held. It is near the front, since the oldest expire first.
    pub(crate) fn withdraw(&self, key: Key) {
        let mut queue = self.queue.lock();
        let at = queue.held.iter().position(|other| *other == key);
        at.map(|at| queue.held.remove(at));
    }

    pub(crate) fn close(&self) -> Unaccepted {
        let (unaccepted, (upcalls, acceptor)) = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            self.changed.notify_all();
            let upcalls = std::mem::take(&mut queue.upcalls);
            let acceptor = queue.acceptor.take();
            let ready = std::mem::take(&mut queue.ready);
            let held = std::mem::take(&mut queue.held);
            (Unaccepted { ready, held }, (upcalls, acceptor))
        };
        // Woken tasks see that it is closed.
        upcalls
            .iter()
            .for_each(|upcall| upcall.wakeup(Wakeup::RcvClosed));
        drop((upcalls, acceptor));
        unaccepted
    }

    /// The stack is down.
    pub(crate) fn go_down(&self, why: SoError) {
        let upcalls = {
            let mut queue = self.queue.lock();
            queue.down = Some(why);
            // Their records are about to be removed.
            queue.held.clear();
            self.changed.notify_all();
            queue.upcalls.clone()
        };
        upcalls
            .iter()
            .for_each(|upcall| upcall.wakeup(Wakeup::RcvClosed));
        self.announce();
    }

    pub(crate) fn accept(&self) -> io::Result<Arc<Conn>> {
        self.wait(self.is_nonblocking(), |queue| queue.ready.pop_front())
    }

    pub(crate) fn pending(&self) -> io::Result<Key> {
        self.wait(self.is_nonblocking(), |queue| queue.held.pop_front())
    }

    /// As [`accept`](Self::accept), but never waits.
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
            may_wait(queue.closed, queue.down, nonblocking)?;
            self.changed.wait(&mut queue);
        }
    }
}

/// Whether a thread that finds a listener's queue empty may wait; otherwise the error of its call.
pub(in crate::stack) fn may_wait(
    closed: bool,
    down: Option<SoError>,
    nonblocking: bool,
) -> io::Result<()> {
    if closed {
        let why = "the listener was closed by another thread";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    if let Some(why) = down {
        return Err(why.into());
    }
    match nonblocking {
        true => Err(io::ErrorKind::WouldBlock.into()),
        false => Ok(()),
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

/// Reports a connection opened by a peer.
pub(in crate::stack) fn report_peer(tuple: &Tuple) {
    let (local, peer) = tuple.ends();
    report!(debug, "tcp", %local, %peer, "peer is connecting");
}
