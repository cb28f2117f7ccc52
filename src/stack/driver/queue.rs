//! The receive queues of a stack's link, one driver each: the state of each driver, and the rules for
//! several.
//!
//! A link has one queue or several, and each has a [`FusedLink`], a [`RunQueue`] and counters of its
//! own. Each connection is pinned to one queue, its home, on which it transmits; its timers, and the
//! work that it leaves to a driver (segments beyond the share of the program's thread, waiting for room
//! in the link), are there too. For a passive open the home is the queue on which its SYN arrived; for
//! an active open the one on which the link expects answers or, if the link cannot tell, any.
//!
//! The other end of a connection to an own address of the stack has the same home; their packets are
//! looped there (`loopback`).
//!
//! All drivers share the table, listeners, half-open connections, held SYNs, addresses, and the ICMP
//! interface.
//!
//! 1. A frame may arrive on any queue. The driver that has it finds the connection in the table and
//!    queues the segment there; any thread may own the connection meanwhile (`tcp::conn`). The home
//!    matters only for speed.
//! 2. Answers without a connection (resets, pings, cookies, TIME-WAIT) are sent on the queue that
//!    received the cause.
//! 3. The same SYN may arrive on two queues at once. A connection has its SYN, and its place in
//!    `half_open`, before it is put into the table; the driver that loses the race queues its SYN at
//!    the connection that is in the table (model: `queue::loom`). The same applies to the segment that
//!    acknowledges a cookie, whose connection has also marked its SYN|ACK as sent. Of two SYNs for a
//!    conditional listener, the second refreshes the record of the first.
//! 4. An entry that a driver has seen in the table may have been removed, or replaced by another of the
//!    same tuple, when it acts on it. So half-open connections are identified by the number of their
//!    socket, and a record in TIME-WAIT is removed only if it is the one that was seen.
//! 5. The first driver whose link is up expires records (TIME-WAIT, held SYNs). Before it sleeps it
//!    marks itself asleep and then looks for the next expiry; a thread that adds a record then checks
//!    whether the driver sleeps, and wakes it. So no expiry is missed. A queue whose link is gone is
//!    marked before the other drivers are woken, so that the next first driver sees the records.
//! 6. A driver ends when its link is gone: the connections with that home end, and the other queues
//!    continue. It also ends when it is dropped, or when the stack has no handles left; then, and with
//!    the last queue, the stack goes down, which wakes the other drivers, and they end too. A driver
//!    puts a connection into the table before it checks whether the queue or the stack is down, and
//!    that is marked before the table is walked: one of the two sees the connection.
//!
//! Locks: the run queue, a leaf.

use crate::link::Link;
use crate::lock::{LEAF, Mutex};
use crate::stack::driver::run_queue::RunQueue;
use crate::stack::fused_link::FusedLink;
use crate::stack::loopback::Loopback;
use crate::tcp::counters::{Counter, Counters};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A receive queue; see the module. Aligned so that drivers on several processors do not share a cache
/// line.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Queue {
    pub(in crate::stack) link: FusedLink,
    /// The link is gone: no connection begins here, and those that were here have ended.
    pub(in crate::stack) gone: AtomicBool,
    /// For the stack's connections with itself that have their home here.
    pub(in crate::stack) loopback: Loopback,
    /// The same for answers without a connection.
    answers: Loopback,
    pub(crate) run_queue: Mutex<RunQueue, LEAF>,
    /// The counters of its connections.
    pub(in crate::stack) counters: Counters,
    pub(in crate::stack) frames: Counter,
    /// Of these, segments of connections whose home is elsewhere.
    pub(in crate::stack) astray: Counter,
}

impl Queue {
    pub(in crate::stack) fn new(link: Arc<dyn Link>) -> Queue {
        let [loopback, answers] = Loopback::new(&link);
        Queue {
            link: FusedLink::new(link),
            gone: AtomicBool::new(false),
            loopback,
            answers,
            run_queue: Mutex::default(),
            counters: Counters::default(),
            frames: Counter::default(),
            astray: Counter::default(),
        }
    }

    pub(in crate::stack) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// The link for the answer to a segment without a connection.
    pub(in crate::stack) fn way_back(&self, looped: bool) -> &dyn Link {
        if looped { &self.answers } else { &self.link }
    }

    pub(in crate::stack) fn wake_if(&self, needed: bool) {
        if needed {
            self.link.wake();
        }
    }
}

#[cfg(test)]
mod loom;
#[cfg(test)]
mod tests;
