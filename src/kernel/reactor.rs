//! The thread that waits for readiness of kernel sockets.
//!
//! There is one for the process, started with the first socket. Locks: the table of sockets and the
//! list of those with postponed work (leaves, 5).

use crate::lock::{LEAF, Mutex};
use crate::run_list::{self, Budget};
use mio::event::Source;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use std::collections::HashMap;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;

/// Bursts of reads, or writes, in a row, before other sockets are served.
pub(super) const ROUNDS: usize = 32;
const WAKE: Token = Token(0);
/// Maximum number of events in one turn.
const EVENTS: usize = 256;

/// Readiness reported by the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Readiness {
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) read_closed: bool,
    /// An error, or both directions are closed.
    pub(super) over: bool,
}

impl Readiness {
    pub(super) const BOTH: Readiness = Readiness {
        readable: true,
        writable: true,
        read_closed: false,
        over: false,
    };
}

/// A socket that the reactor serves.
pub(super) trait Ready: Send + Sync + std::fmt::Debug {
    /// The kernel reports readiness.
    fn ready(&self, ready: Readiness);

    /// What was left to the reactor is to be done.
    fn resume(&self);

    /// Its work has panicked: it ends.
    fn give_up(&self);
}

/// The next action of a thread.
pub(super) enum Next {
    Again,
    Stop,
}

#[derive(Debug)]
pub(super) struct Reactor {
    registry: Registry,
    waker: Waker,
    sockets: Mutex<HashMap<Token, Arc<dyn Ready>>, LEAF>,
    again: Mutex<Vec<Weak<dyn Ready>>, LEAF>,
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
            sockets: Mutex::default(),
            again: Mutex::default(),
            next: AtomicUsize::new(WAKE.0 + 1),
        });
        let shared = reactor.clone();
        thread::Builder::new()
            .name("sosplice:kernel".into())
            .spawn(move || shared.run(poll))?;
        Ok(reactor)
    }

    /// A token that no other socket has or had.
    pub(super) fn token(&self) -> Token {
        Token(self.next.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn register(
        &self,
        (token, socket): (Token, Arc<dyn Ready>),
        descriptor: &mut impl Source,
        interest: Interest,
    ) -> io::Result<()> {
        self.sockets.lock().insert(token, socket);
        let registered = self.registry.register(descriptor, token, interest);
        if registered.is_err() {
            self.forget(token);
        }
        registered
    }

    /// The socket is notified of nothing any more.
    pub(super) fn forget(&self, token: Token) {
        let gone = self.sockets.lock().remove(&token);
        drop(gone);
    }

    /// The socket is notified of this from now on, also of what is so already.
    pub(super) fn reregister(
        &self,
        token: Token,
        descriptor: &mut impl Source,
        interest: Interest,
    ) -> io::Result<()> {
        self.registry.reregister(descriptor, token, interest)
    }

    /// The descriptor is used by other code from now on.
    pub(super) fn deregister(&self, descriptor: &mut impl Source) {
        // Fails only if it is not registered, which is as well.
        self.registry.deregister(descriptor).ok();
    }

    /// The socket has more to do than one thread should do in a row.
    pub(super) fn again(&self, socket: Weak<dyn Ready>) {
        self.again.lock().push(socket);
        // Fails only if the thread is gone, which it never is.
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
            let socket = self.sockets.lock().get(&event.token()).cloned();
            if let Some(socket) = socket {
                let over = event.is_error() || event.is_write_closed();
                let read_closed = event.is_read_closed() || over;
                let ready = Readiness {
                    readable: event.is_readable() || read_closed,
                    writable: event.is_writable() || over,
                    read_closed,
                    over,
                };
                attend(&*socket, || socket.ready(ready));
            }
        }
        let again = std::mem::take(&mut *self.again.lock());
        for socket in again.iter().filter_map(Weak::upgrade) {
            attend(&*socket, || socket.resume());
        }
    }
}

/// Does something for a socket. A panic, which can come from an upcall of the program's, ends that
/// socket and no other: this thread serves all of them.
fn attend(socket: &dyn Ready, work: impl FnOnce()) {
    if panic::catch_unwind(AssertUnwindSafe(work)).is_err() {
        // The upcall is notified of this too, and may panic again.
        panic::catch_unwind(AssertUnwindSafe(|| socket.give_up())).ok();
    }
}
