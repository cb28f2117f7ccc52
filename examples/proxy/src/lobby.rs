//! Clients whose first bytes are to be read before a backend is chosen. One thread waits for all of them.

use crate::heads::{self, Fault, Head};
use crate::relay::Terms;
use sosplice::TcpStream;
use sosplice::clock::{Clock, SystemClock};
use sosplice::socket::poller::{Events, Interest, Mode, Poller, Token};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Events taken at a time.
const EVENTS: usize = 64;

#[derive(Debug)]
struct Guest {
    stream: TcpStream,
    peer: SocketAddr,
    terms: Arc<Terms>,
    deadline: Instant,
}

#[derive(Debug, Default)]
struct Guests {
    all: HashMap<usize, Guest>,
    /// Those who wait, by their deadlines. (New settings may give later ones earlier deadlines.)
    deadlines: BTreeSet<(Instant, usize)>,
    last: usize,
}

impl Guests {
    fn insert(&mut self, number: usize, guest: Guest) {
        self.deadlines.insert((guest.deadline, number));
        self.all.insert(number, guest);
    }

    fn remove(&mut self, number: usize) -> Option<Guest> {
        let guest = self.all.remove(&number)?;
        self.deadlines.remove(&(guest.deadline, number));
        Some(guest)
    }

    fn next(&self) -> Option<(Instant, usize)> {
        self.deadlines.first().copied()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Lobby {
    poller: Poller,
    guests: Mutex<Guests>,
    /// Guests, and those that are handed over now.
    inside: AtomicUsize,
    closed: AtomicBool,
}

impl Lobby {
    /// Takes a client in.
    pub(crate) fn enter(&self, stream: TcpStream, peer: SocketAddr, terms: Arc<Terms>) {
        self.inside.fetch_add(1, Ordering::Release);
        let mut guests = self.guests();
        guests.last += 1;
        let number = guests.last;
        let deadline = SystemClock.now() + terms.head_timeout;
        // An edge for each arrival; the first one for what is there.
        let watched = self
            .poller
            .add(&stream, Token(number), Interest::READABLE, Mode::Edge);
        debug_assert!(watched.is_ok(), "a new connection is not watched yet");
        let guest = Guest {
            stream,
            peer,
            terms,
            deadline,
        };
        guests.insert(number, guest);
        let is_first = guests.next() == Some((deadline, number));
        drop(guests);
        if is_first {
            // The thread sleeps for longer.
            self.poller.wake();
        }
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no client is here, or about to be handed over.
    pub(crate) fn is_empty(&self) -> bool {
        self.inside.load(Ordering::Acquire) == 0
    }

    /// Resets those who wait, and ends [`run`](Self::run).
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.poller.wake();
    }

    /// Hands over each client with its head, or with what is wrong with it, until the lobby is closed.
    pub(crate) fn run(
        &self,
        mut leave: impl FnMut(TcpStream, SocketAddr, Arc<Terms>, Result<Head, Fault>),
    ) -> io::Result<()> {
        let mut leave = |guest: Guest, head| {
            leave(guest.stream, guest.peer, guest.terms, head);
            self.inside.fetch_sub(1, Ordering::Release);
        };
        let mut events = Events::with_capacity(EVENTS);
        let mut buffer = vec![0; heads::MOST];
        while !self.closed.load(Ordering::Relaxed) {
            let now = SystemClock.now();
            for guest in self.late(now) {
                leave(guest, Err(Fault::Late));
            }
            let next = self.guests().next();
            let rest = next.map(|(at, _)| at.saturating_duration_since(now));
            self.poller.wait(&mut events, rest)?;
            for event in events.iter() {
                let Token(number) = event.token();
                let Some(guest) = self.guests().remove(number) else {
                    continue;
                };
                match read(&guest, &mut buffer) {
                    Ok(None) => self.guests().insert(number, guest),
                    Ok(Some(head)) => {
                        self.poller.delete(&guest.stream).ok();
                        leave(guest, Ok(head));
                    }
                    Err(fault) => leave(guest, Err(fault)),
                }
            }
        }
        let left = std::mem::take(&mut self.guests().all);
        left.values().for_each(|guest| guest.stream.abort());
        Ok(())
    }

    /// Those whose time is over.
    fn late(&self, now: Instant) -> Vec<Guest> {
        let mut late = Vec::new();
        let mut guests = self.guests();
        while let Some((_, number)) = guests.next().filter(|(deadline, _)| *deadline <= now) {
            late.extend(guests.remove(number));
        }
        late
    }
}

/// The head, once it is complete; then its header is taken from the stream.
fn read(guest: &Guest, buffer: &mut [u8]) -> Result<Option<Head>, Fault> {
    // First: what arrives after this look comes with an event of its own.
    let ended = guest.stream.end().with_rcv(|so_rcv| so_rcv.is_closed());
    let count = match guest.stream.readable_bytes() {
        0 => 0,
        _ => guest.stream.peek(buffer).map_err(|_| Fault::Ended)?,
    };
    let Some(head) = heads::parse(&buffer[..count], guest.terms.expected)? else {
        return match ended {
            true => Err(Fault::Ended),
            false => Ok(None),
        };
    };
    if head.header_len > 0 {
        let header = guest.stream.recv_chain(head.header_len);
        header.map_err(|_| Fault::Ended)?;
    }
    Ok(Some(head))
}
