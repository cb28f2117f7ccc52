//! Waiting for many sockets at once, as kqueue and epoll do for descriptors.
//!
//! A [`Poller`] is a list of registrations with changes. Each [`wait`](Poller::wait) takes entries off,
//! clears their mark, and only then checks the sockets, with no lock held: a change meanwhile marks
//! them again, so none is missed. The cost depends on the entries in the list, not on the number of
//! registered sockets. There is no table: a registration is an upcall on the socket's buffers (see
//! `registration`), and is dropped when the socket is closed.
//!
//! # Conditions
//!
//! | | is |
//! |---|---|
//! | readable | not the source of a splice, and: bytes up to the low-water mark, or closed for reading, or `so_error` is set |
//! | writable | not the sink of a splice, and: connected with space up to the low-water mark, or closed for writing, or `so_error` is set |
//! | readable, for a listener | a connection waits to be accepted, or a SYN for a decision, or the stack is down |
//!
//! During a splice the source is never readable and the sink never writable; their other directions are
//! not affected. **When a splice ends**, for any cause, there is one event for each registration of the
//! source and of the sink, independent of its interests and mode, with the end ([`Event::source_end`],
//! [`Event::sink_end`]). The registration stores the end at once: it is not lost if the socket is
//! spliced again, and two ends are two events. (An end before [`add`](Poller::add) is not reported:
//! watch first, then splice.) The event means that no more bytes are moved, as with
//! [`Splice::end`](crate::Splice::end): the bytes of the last pass are in the sink's `so_snd`, and are
//! delivered even after a close, but may not be sent yet.
//!
//! # Modes
//!
//! [`Mode::Level`] reports a condition in each wait as long as it holds. [`Mode::Edge`] reports it once
//! after each change of that direction (bytes, space, a close), and after [`add`](Poller::add) and
//! [`modify`](Poller::modify): read and write until [`WouldBlock`](std::io::ErrorKind::WouldBlock),
//! then wait. For the source of splices use an edge: at the end of its stream, without a splice, it
//! stays readable for ever.
//!
//! # Differences from kqueue and epoll
//!
//! * One registration has both directions and one token, as with epoll. Edges are of one direction,
//!   as with kqueue (`EV_CLEAR`): new space does not report unread bytes again. A close of either
//!   direction counts for both.
//! * Ends of splices are events. FreeBSD only wakes, and reports an event only if there is something to
//!   read; OpenBSD uses `so_error`.
//! * A spliced source is not readable even at its end of file, as with kevent on both systems
//!   (FreeBSD's `poll` reports it). A spliced sink is not writable even on error, as with FreeBSD's
//!   `poll`.
//! * `so_error` is in the event and stays on the socket.
//! * Several threads may wait. An edge or an end goes to one of them; a level to any of them.
//! * There is no one-shot mode. A poller is a descriptor if asked for (`PollerFd`, on Linux).
//!
//! Locks: none is held when a socket is checked (`so_rcv` 2, then `so_snd` 3); the list and each
//! registration have a leaf lock (5), never both.

#[cfg(all(any(target_os = "linux", target_os = "android"), not(sosplice_loom)))]
mod descriptor;
mod ready_list;
mod registration;
mod signal;

pub use crate::interest::Interest;
#[cfg(all(any(target_os = "linux", target_os = "android"), not(sosplice_loom)))]
pub use descriptor::PollerFd;
pub use registration::Event;
pub(crate) use registration::{Condition, Watched};

use crate::clock::{Clock, SystemClock};
use crate::lock;
use crate::protocol::Upcalls;
use crate::socket::Socket;
use registration::{ReadyList, Registration, XferLimits};
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// A number chosen by the program, returned in the events of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(clippy::exhaustive_structs, reason = "a number of the user")]
pub struct Token(pub usize);

/// When a condition is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a poller is level- or edge-triggered"
)]
pub enum Mode {
    /// In each wait as long as it holds.
    Level,
    /// Once after each change.
    Edge,
}

mod sealed {
    use super::{Arc, Watched};

    pub trait Pollable {
        fn watched(&self) -> Arc<dyn Watched>;
    }
}

pub(crate) use sealed::Pollable as Sealed;

/// A type that a [`Poller`] can watch: a [`Socket`], types that dereference to one
/// ([`TcpStream`](crate::TcpStream), [`UdpSocket`](crate::UdpSocket), [`PingFlow`](crate::stack::PingFlow) and, on
/// Linux, `KernelStream`, `KernelUdp` and `KernelPing`), a [`TcpListener`](crate::TcpListener), a
/// [`ConditionalListener`](crate::ConditionalListener), a [`UdpListener`](crate::UdpListener), and a
/// [`PingListener`](crate::stack::PingListener).
pub trait Pollable: Sealed {}

/// For types that are sockets.
macro_rules! pollable {
    ($stream:ty) => {
        impl $crate::socket::poller::Sealed for $stream {
            fn watched(&self) -> std::sync::Arc<dyn $crate::socket::poller::Watched> {
                self.end().clone()
            }
        }

        impl $crate::socket::poller::Pollable for $stream {}
    };
}

pub(crate) use pollable;

pollable!(Socket);

/// Watches sockets and listeners, and waits for their events. Handles are cloned; dropping the last one
/// ends all registrations.
///
/// A poller is for threads of the program: workers, drivers and the callbacks that run in them must
/// not wait. A registration does not keep its socket open.
///
/// ```
/// use sosplice::socket::poller::{Events, Interest, Mode, Poller, Token};
/// use sosplice::{local, splice::{Cause, Options}};
/// use std::time::Duration;
///
/// let ((a, b), (c, d)) = (local::pair(), local::pair());
/// let poller = Poller::new();
/// let mut events = Events::default();
/// poller.add(&b, Token(1), Interest::READABLE, Mode::Level)?;
///
/// a.send(b"hello")?;
/// poller.wait(&mut events, None)?;
/// let event = events.iter().next().expect("an event");
/// assert!(event.token() == Token(1) && event.is_readable());
///
/// // Spliced, it is silent until the splice ends.
/// b.splice_to(&c, Options::default().limit(8))?;
/// assert_eq!(poller.wait(&mut events, Some(Duration::ZERO))?, 0);
/// a.send(b"abcdef")?;
/// poller.wait(&mut events, None)?;
/// let event = events.iter().next().expect("an event");
/// let end = event.source_end().expect("it was the source");
/// assert_eq!((end.cause, end.bytes), (Cause::Limit, 8));
/// assert_eq!(b.recv_chain(100)?.to_vec(), b"def");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Poller {
    list: Arc<ReadyList>,
}

impl Poller {
    /// A poller without registrations.
    pub fn new() -> Poller {
        Poller::default()
    }

    /// Watches a socket or a listener. A condition that holds already is reported.
    ///
    /// # Errors
    /// [`AlreadyExists`](io::ErrorKind::AlreadyExists) if this poller watches it already (other
    /// pollers may), [`InvalidInput`](io::ErrorKind::InvalidInput) for a listener that is closed.
    pub fn add(
        &self,
        what: &impl Pollable,
        token: Token,
        interest: Interest,
        mode: Mode,
    ) -> io::Result<()> {
        let watched = what.watched();
        let terms = XferLimits {
            token,
            interest,
            mode,
        };
        let registration = Registration::new(&self.list, &watched, terms);
        let mut orphans = Upcalls::new();
        let mut result = Err(error(
            io::ErrorKind::InvalidInput,
            "the listener is closed, watch one that is open",
        ));
        watched.edit(&mut |upcalls| {
            upcalls.retain(|upcall| {
                let is_orphan = Registration::of(upcall).is_some_and(Registration::is_orphan);
                if is_orphan {
                    orphans.push(upcall.clone());
                }
                !is_orphan
            });
            result = match upcalls.iter().any(|upcall| self.owns(upcall)) {
                false => {
                    upcalls.push(registration.clone());
                    Ok(())
                }
                true => Err(error(
                    io::ErrorKind::AlreadyExists,
                    "this poller watches the socket already, use modify to change that",
                )),
            };
        });
        drop(orphans);
        result?;
        registration.touch();
        Ok(())
    }

    /// Changes a registration. A condition that holds is reported (again). Ends of splices that were
    /// not reported yet are reported with the new token.
    ///
    /// # Errors
    /// [`NotFound`](io::ErrorKind::NotFound) if this poller does not watch it.
    pub fn modify(
        &self,
        what: &impl Pollable,
        token: Token,
        interest: Interest,
        mode: Mode,
    ) -> io::Result<()> {
        let mut found = None;
        what.watched().edit(&mut |upcalls| {
            found = upcalls.iter().find(|upcall| self.owns(upcall)).cloned();
        });
        let registration = found.as_ref().and_then(Registration::of);
        let registration = registration.ok_or_else(not_found)?;
        registration.set_terms(XferLimits {
            token,
            interest,
            mode,
        });
        registration.touch();
        Ok(())
    }

    /// Removes a registration. A [`wait`](Self::wait) that begins afterwards returns no event of it.
    ///
    /// # Errors
    /// [`NotFound`](io::ErrorKind::NotFound) if this poller does not watch it.
    pub fn delete(&self, what: &impl Pollable) -> io::Result<()> {
        let mut removed = Upcalls::new();
        what.watched().edit(&mut |upcalls| {
            if let Some(at) = upcalls.iter().position(|upcall| self.owns(upcall)) {
                removed.push(upcalls.remove(at));
            }
        });
        if removed.is_empty() {
            return Err(not_found());
        }
        Ok(())
    }

    /// Whether the upcall is a registration of this poller.
    fn owns(&self, upcall: &Arc<dyn crate::protocol::Upcall>) -> bool {
        Registration::of(upcall).is_some_and(|registration| registration.is_of(&self.list))
    }

    /// Waits for events, fills `events` with them, and returns their number. Returns with none after
    /// `timeout` (real time; `None` waits without limit, zero does not wait) or after a
    /// [`wake`](Self::wake).
    ///
    /// # Errors
    /// None at present.
    ///
    /// # Panics
    /// With debug assertions, if the thread holds a lock of this crate (in an upcall).
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<usize> {
        lock::assert_none_held();
        let deadline = timeout.and_then(|timeout| SystemClock.now().checked_add(timeout));
        let Events {
            list,
            batch,
            capacity,
        } = events;
        list.clear();
        loop {
            let is_over = self.list.take(batch, capacity.get(), deadline);
            batch.retain(|entry| match entry.upgrade() {
                Some(registration) => {
                    let (event, again) = registration.look();
                    list.extend(event);
                    again
                }
                None => false,
            });
            self.list.give_back(batch);
            // Entries without events must not delay the return.
            if is_over || !list.is_empty() || deadline.is_some_and(|at| at <= SystemClock.now()) {
                return Ok(list.len());
            }
        }
    }

    /// Lets one [`wait`](Self::wait) return: a present one or, if there is none, the next one. Several
    /// calls before that count as one. Can be called in any thread, also in callbacks.
    ///
    /// ```
    /// use sosplice::socket::poller::{Events, Poller};
    /// let poller = Poller::new();
    /// let waker = poller.clone();
    /// let waiting = std::thread::Builder::new()
    ///     .spawn(move || poller.wait(&mut Events::default(), None))?;
    /// waker.wake();
    /// assert_eq!(waiting.join().expect("no panic")?, 0);
    /// # std::io::Result::Ok(())
    /// ```
    pub fn wake(&self) {
        self.list.wake();
    }
}

fn error(kind: io::ErrorKind, what: &'static str) -> io::Error {
    io::Error::new(kind, what)
}

fn not_found() -> io::Error {
    let what = "this poller does not watch the socket, add it first";
    error(io::ErrorKind::NotFound, what)
}

/// A buffer for the events of [`Poller::wait`], reusable for all waits.
pub struct Events {
    list: Vec<Event>,
    /// Entries that are being checked; empty between two waits.
    batch: Vec<Weak<Registration>>,
    capacity: NonZeroUsize,
}

impl Events {
    /// Room for this many events of one wait, at least 1. Further events come with the next wait.
    ///
    /// ```
    /// use sosplice::socket::poller::{Events, Interest, Mode, Poller, Token};
    /// let (a, b) = sosplice::local::pair();
    /// let poller = Poller::new();
    /// poller.add(&a, Token(0), Interest::WRITABLE, Mode::Edge)?;
    /// poller.add(&b, Token(1), Interest::WRITABLE, Mode::Edge)?;
    /// let mut events = Events::with_capacity(1);
    /// assert_eq!(poller.wait(&mut events, None)?, 1);
    /// assert_eq!(events.iter().next().map(|event| event.token()), Some(Token(0)));
    /// assert_eq!(poller.wait(&mut events, None)?, 1);
    /// assert_eq!(events.iter().next().map(|event| event.token()), Some(Token(1)));
    /// # std::io::Result::Ok(())
    /// ```
    pub fn with_capacity(capacity: usize) -> Events {
        Events {
            list: Vec::new(),
            batch: Vec::new(),
            capacity: NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN),
        }
    }

    /// The events of the latest wait.
    pub fn iter(&self) -> std::slice::Iter<'_, Event> {
        self.list.iter()
    }

    /// Number of events of the latest wait.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether the latest wait has returned without an event.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

impl Default for Events {
    /// Room for 1024.
    fn default() -> Events {
        Events::with_capacity(1024)
    }
}

impl<'a> IntoIterator for &'a Events {
    type Item = &'a Event;
    type IntoIter = std::slice::Iter<'a, Event>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.list).finish()
    }
}

#[cfg(test)]
mod tests;
