//! The thread that waits for readiness of kernel sockets.
//!
//! There is one for the process, started with the first socket. Locks: the table of sockets and the
//! list of those with postponed work (leaves, 5).

use super::{Conn, Readiness};
use crate::error::SoError;
use crate::lock::{LEAF, Mutex};
use crate::run_list::{self, Budget};
use mio::net::TcpStream as Stream;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use std::collections::HashMap;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;

const WAKE: Token = Token(0);
/// Maximum number of events in one turn.
const EVENTS: usize = 256;

#[derive(Debug)]
pub(super) struct Reactor {
    registry: Registry,
    waker: Waker,
    conns: Mutex<HashMap<Token, Arc<Conn>>, LEAF>,
    again: Mutex<Vec<Weak<Conn>>, LEAF>,
    next: AtomicUsize,
}

impl Reactor {
    /// The reactor of this process. If it cannot start, the next call tries again.
    pub(super) fn global() -> io::Result<Arc<Reactor>> {
        static GLOBAL: Mutex<Option<Arc<Reactor>>, LEAF> = Mutex::new(None);
        let mut global = GLOBAL.lock();
        if let Some(reactor) = &*global {
            return Ok(reactor.clone());
        }
        let reactor = Reactor::start()?;
        Ok(global.insert(reactor).clone())
    }

    fn start() -> io::Result<Arc<Reactor>> {
        let poll = Poll::new()?;
        let reactor = Arc::new(Reactor {
            registry: poll.registry().try_clone()?,
            waker: Waker::new(poll.registry(), WAKE)?,
            conns: Mutex::default(),
            again: Mutex::default(),
            next: AtomicUsize::new(WAKE.0 + 1),
        });
        let shared = reactor.clone();
        thread::Builder::new()
            .name("sosplice:kernel".into())
            .spawn(move || shared.run(poll))?;
        Ok(reactor)
    }

    /// A token that no other connection has or had.
    pub(super) fn token(&self) -> Token {
        Token(self.next.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn register(&self, conn: &Arc<Conn>, stream: &mut Stream) -> io::Result<()> {
        self.conns.lock().insert(conn.token, conn.clone());
        let both = Interest::READABLE | Interest::WRITABLE;
        let registered = self.registry.register(stream, conn.token, both);
        if registered.is_err() {
            self.forget(conn.token);
        }
        registered
    }

    /// The connection gets no events any more.
    pub(super) fn forget(&self, token: Token) {
        let gone = self.conns.lock().remove(&token);
        drop(gone);
    }

    /// The descriptor is used outside this crate from now on.
    pub(super) fn deregister(&self, stream: &mut Stream) {
        // Fails only if it is not registered.
        self.registry.deregister(stream).ok();
    }

    /// The connection has more work than one thread should do in a row.
    pub(super) fn again(&self, conn: &Weak<Conn>) {
        self.again.lock().push(conn.clone());
        // Fails only if the thread has ended, which it never does.
        self.waker.wake().ok();
    }

    fn run(&self, mut poll: Poll) {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            match poll.poll(&mut events, None) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
                Ok(()) => run_list::scope(Budget::DRIVER, || self.turn(&events)),
            }
        }
    }

    fn turn(&self, events: &Events) {
        for event in events {
            let conn = self.conns.lock().get(&event.token()).cloned();
            if let Some(conn) = conn {
                let over = event.is_error() || event.is_write_closed();
                let read_closed = event.is_read_closed() || over;
                let ready = Readiness {
                    readable: event.is_readable() || read_closed,
                    writable: event.is_writable() || over,
                    read_closed,
                    over,
                };
                attend(&conn, || conn.ready(ready));
            }
        }
        let again = std::mem::take(&mut *self.again.lock());
        for conn in again.iter().filter_map(Weak::upgrade) {
            attend(&conn, || conn.resume());
        }
    }
}

/// Runs the work of a connection. A panic, e.g. of an upcall, ends only that connection, since all of
/// them share this thread.
fn attend(conn: &Conn, work: impl FnOnce()) {
    if panic::catch_unwind(AssertUnwindSafe(work)).is_err() {
        // The upcall is called for this too, and may panic again.
        let fail = || conn.fail(SoError::ConnectionAborted);
        panic::catch_unwind(AssertUnwindSafe(fail)).ok();
    }
}
