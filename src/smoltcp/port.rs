//! The protocol of an adopted socket: it notes what is wanted, and the program's thread does it.

use crate::error::SoError;
use crate::lock::{LEAF, Mutex};
use crate::protocol::{Protocol, SocketEnd};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Protection, intact};
use smoltcp::iface::SocketHandle;
use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// The sockets that are to be served, and how the program's loop is woken.
pub(super) struct Requests {
    queue: Mutex<Queue, LEAF>,
    wake: Box<dyn Fn() + Send + Sync>,
}

#[derive(Debug, Default)]
struct Queue {
    handles: VecDeque<SocketHandle>,
    /// The program's thread is serving, and looks here again before it stops.
    is_served: bool,
}

impl Requests {
    pub(super) fn new(wake: Box<dyn Fn() + Send + Sync>) -> Requests {
        let queue = Mutex::new(Queue::default());
        Requests { queue, wake }
    }

    /// Whether a socket waits to be served.
    pub(super) fn is_waiting(&self) -> bool {
        !self.queue.lock().handles.is_empty()
    }

    /// The program's thread begins to serve: until [`next`](Self::next) finds nothing, it need not be woken.
    pub(super) fn begin(&self) {
        self.queue.lock().is_served = true;
    }

    /// The next socket to be served. If there is none, the loop is woken for the next one.
    pub(super) fn next(&self) -> Option<SocketHandle> {
        let mut queue = self.queue.lock();
        let next = queue.handles.pop_front();
        queue.is_served = next.is_some();
        next
    }

    /// The next socket to be served, if there is one.
    pub(super) fn pop(&self) -> Option<SocketHandle> {
        self.queue.lock().handles.pop_front()
    }

    pub(super) fn push(&self, handle: SocketHandle) {
        let must_wake = {
            let mut queue = self.queue.lock();
            queue.handles.push_back(handle);
            !queue.is_served && queue.handles.len() == 1
        };
        if must_wake {
            (self.wake)();
        }
    }
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = &*self.queue.lock();
        f.debug_struct("Requests").field("queue", queue).finish()
    }
}

/// The protocol of one socket.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) end: Arc<SocketEnd>,
    handle: SocketHandle,
    addresses: (SocketAddr, SocketAddr),
    requests: Arc<Requests>,
    /// It is in the queue of requests.
    is_queued: AtomicBool,
    /// Received bytes are held back in smoltcp's buffer, for want of space in `so_rcv`.
    is_held: AtomicBool,
    /// The connection is to be reset.
    is_reset: AtomicBool,
    /// The socket is closed.
    is_detached: AtomicBool,
    /// The connection has ended.
    is_over: AtomicBool,
}

impl Port {
    pub(super) fn new(
        end: Arc<SocketEnd>,
        handle: SocketHandle,
        addresses: (SocketAddr, SocketAddr),
        requests: Arc<Requests>,
    ) -> Port {
        Port {
            end,
            handle,
            addresses,
            requests,
            is_queued: AtomicBool::new(false),
            is_held: AtomicBool::new(false),
            is_reset: AtomicBool::new(false),
            is_detached: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        }
    }

    /// Requests the program's thread to serve the socket.
    fn request(&self) {
        if !self.is_over() && !self.is_queued.swap(true, Ordering::AcqRel) {
            self.requests.push(self.handle);
        }
    }

    /// It is being served: a later request counts anew.
    pub(super) fn served(&self) {
        // A swap and no store: the service sees all that was done before the requests (model: `loom`).
        if intact(Protection::SeeRequest) {
            self.is_queued.swap(false, Ordering::AcqRel);
        } else {
            self.is_queued.store(false, Ordering::Release);
        }
    }

    /// Space in `so_rcv`. If there is none, [`rcvd`](Protocol::rcvd) requests service: a reader that makes room comes
    /// after this, and finds the flag.
    pub(super) fn room(&self) -> usize {
        self.end.with_rcv(|so_rcv| {
            let room = so_rcv.space();
            self.is_held.store(room == 0, Ordering::Release);
            room
        })
    }

    /// Whether received bytes wait for space in `so_rcv`.
    pub(super) fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Acquire)
    }

    pub(super) fn is_reset(&self) -> bool {
        self.is_reset.load(Ordering::Acquire)
    }

    pub(super) fn is_detached(&self) -> bool {
        self.is_detached.load(Ordering::Acquire)
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// The connection has ended: nothing is requested any more.
    pub(super) fn over(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    /// The connection has failed: received bytes stay readable, unsent ones are dropped.
    pub(super) fn fail(&self, error: SoError) {
        self.end.disconnected(Some(error));
        self.end.flush_snd();
    }

    /// Ends the connection with a reset.
    pub(super) fn reset(&self) {
        self.is_reset.store(true, Ordering::Release);
        self.fail(SoError::ConnectionAborted);
    }
}

impl Protocol for Port {
    fn output(&self) {
        self.request();
    }

    fn rcvd(&self, _idle: bool) {
        if self.is_held() {
            self.request();
        }
    }

    fn abort(&self) {
        if !self.is_over() {
            self.reset();
            self.request();
        }
        self.end.flush_rcv();
    }

    fn detach(&self) {
        self.is_detached.store(true, Ordering::Release);
        if self.is_over() {
            return;
        }
        if self.end.flush_rcv() > 0 || !self.end.is_connected() {
            self.reset();
        } else {
            self.end.cantsendmore();
        }
        self.request();
    }

    fn name(&self) -> &'static str {
        "smoltcp"
    }

    fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        (!self.is_over()).then_some(self.addresses)
    }
}

#[cfg(test)]
mod loom;
