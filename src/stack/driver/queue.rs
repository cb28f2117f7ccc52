//! The receive queues of a stack's link, one driver each: what is a driver's own, and the rules that
//! let there be several.
//!
//! A link has one queue or several, and each has an [`FusedLink`], an [`RunQueue`] and counters of its own.
//! A connection has a home among them for life: it transmits by that queue, and its timers are there,
//! and so is what it leaves to a driver (segments beyond a user's share, room in the link to wait
//! for). Home is where its SYN arrived, or, if it was dialled, where the link says that its answers
//! will arrive, or, if the link cannot say, any.
//!
//! The other end of a connection to an own address of the stack has the same home; what they send each
//! other goes from there to there (`loopback`).
//!
//! What all drivers share: the table, listeners, half-open connections, held SYNs, addresses, the
//! control interface.
//!
//! 1. A frame may arrive by any queue. Whoever has it finds the connection in the table and leaves it
//!    there; who owns the connection meanwhile does not matter (`tcp::conn`). Home is about speed only.
//! 2. Answers that are no connection's (resets, pings, cookies, TIME-WAIT) leave by the queue that drew
//!    them.
//! 3. The same SYN may arrive by two queues at once. A connection that is put in the table has its
//!    SYN, and its place in `half_open`, before anybody can find it there; the driver whose connection
//!    is not taken leaves its SYN with the one that is (model: `queue::loom`). The same goes for the
//!    segment that brings a cookie back, where the connection has sent its SYN|ACK before, too. Of two
//!    SYNs for a user to decide about, the second refreshes the record of the first.
//! 4. Whatever a driver has seen in the table may be gone, or another of the same tuple, when it acts
//!    on it. So half-open connections are known by the number of their socket, and a record in
//!    TIME-WAIT is taken out only if it is the one that was seen.
//! 5. The first driver whose link is there forgets what is no connection when its time is over
//!    (TIME-WAIT, held SYNs). Falling asleep, it says so first and looks for the next such time then; who
//!    adds one looks whether it sleeps after that, and wakes it. So no such time is missed. A queue that
//!    goes is marked before the others' drivers are woken, so that the next first one finds what was added.
//! 6. A driver ends when its link is gone: with it end the connections whose home the queue is, and the
//!    other queues go on. It also ends when it is dropped, or when the stack is needed no longer; then, and
//!    with the last queue, the stack goes down, which wakes the other drivers, and they end too. What a
//!    driver puts into the table, it puts there before it asks whether the queue or the stack is down, and
//!    that is marked before the table is walked: one of them finds the connection.
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

/// See the module. Drivers on several processors do not share a line of memory here.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Queue {
    pub(in crate::stack) link: FusedLink,
    /// The link is gone: nothing begins here, and what was here has ended.
    pub(in crate::stack) gone: AtomicBool,
    /// By which connections of the stack with itself transmit that have their home here.
    pub(in crate::stack) loopback: Loopback,
    /// The same for answers that no connection gives.
    answers: Loopback,
    pub(crate) run_queue: Mutex<RunQueue, LEAF>,
    /// What its connections count.
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

    /// By which a segment without a connection is answered.
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
