//! Clients whose first bytes are to be read before a backend is chosen. One thread waits for all of them.

use crate::heads::{self, Fault, Head};
use crate::relay::Terms;
use sosplice::TcpStream;
use sosplice::clock::{Clock, SystemClock};
use sosplice::socket::poller::{Events, Interest, Mode, Poller, Token};
use std::collections::{BTreeMap, BTreeSet};
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
    /// Memory of its receive buffer.
    memory: usize,
}

/// How much the lobby holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) clients: usize,
    /// Bytes of their receive buffers.
    pub(crate) memory: usize,
}

impl Room {
    /// The smallest memory: of the packets that one head may come in.
    pub(crate) const LEAST: usize = 1 << 20;
}

impl Default for Room {
    fn default() -> Room {
        Room {
            clients: 1024,
            memory: 64 << 20,
        }
    }
}

#[derive(Debug, Default)]
struct Guests {
    /// By their arrival.
    all: BTreeMap<usize, Guest>,
    /// Those who wait, by their deadlines. (New settings may give later ones earlier deadlines.)
    deadlines: BTreeSet<(Instant, usize)>,
    last: usize,
    room: Room,
    /// Clients and their memory, with that whose bytes are being read.
    count: usize,
    memory: usize,
}

impl Guests {
    fn insert(&mut self, number: usize, guest: Guest) {
        self.count += 1;
        self.memory += guest.memory;
        self.put_back(number, guest);
    }

    fn put_back(&mut self, number: usize, guest: Guest) {
        self.deadlines.insert((guest.deadline, number));
        self.all.insert(number, guest);
    }

    /// Takes one out, which is counted until it is put back or [`forget`](Self::forget) is called.
    fn take(&mut self, number: usize) -> Option<Guest> {
        let guest = self.all.remove(&number)?;
        self.deadlines.remove(&(guest.deadline, number));
        Some(guest)
    }

    fn measure(&mut self, guest: &mut Guest) {
        let memory = guest.stream.end().with_rcv(|so_rcv| so_rcv.memory());
        self.memory = self.memory - guest.memory + memory;
        guest.memory = memory;
    }

    fn forget(&mut self, guest: &Guest) {
        self.count -= 1;
        self.memory -= guest.memory;
    }

    fn next(&self) -> Option<(Instant, usize)> {
        self.deadlines.first().copied()
    }

    /// The one that has waited for the longest time, if there are too many.
    fn evict(&mut self) -> Option<Guest> {
        if self.count <= self.room.clients && self.memory <= self.room.memory {
            return None;
        }
        let (oldest, _) = self.all.first_key_value()?;
        let guest = self.take(*oldest)?;
        self.forget(&guest);
        Some(guest)
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
    /// Takes a client in, and returns one for which there is no room any more.
    ///
    /// That is the one that has waited for the longest time, so that those which send nothing keep out only each other
    /// as long as they are not faster than the others' first bytes.
    pub(crate) fn enter(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        terms: Arc<Terms>,
    ) -> Option<(TcpStream, SocketAddr)> {
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
            memory: 0,
        };
        guests.insert(number, guest);
        let evicted = guests.evict();
        let is_first = guests.next() == Some((deadline, number));
        drop(guests);
        if is_first {
            // The thread sleeps for longer.
            self.poller.wake();
        }
        let guest = evicted?;
        self.inside.fetch_sub(1, Ordering::Release);
        Some((guest.stream, guest.peer))
    }

    /// Another limit, from now on.
    pub(crate) fn set_room(&self, room: Room) {
        self.guests().room = room;
        // Its thread evicts those that are too many.
        self.poller.wake();
    }

    /// Clients inside, and the memory of their receive buffers.
    pub(crate) fn held(&self) -> (usize, usize) {
        let guests = self.guests();
        (guests.count, guests.memory)
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no client is here, or about to be handed over.
    pub(crate) fn is_empty(&self) -> bool {
        self.inside.load(Ordering::Acquire) == 0
    }

    /// Resets those who wait, and ends [`run`](Self::run). Returns their number.
    pub(crate) fn close(&self) -> usize {
        self.closed.store(true, Ordering::Relaxed);
        let mut left = Vec::new();
        {
            let mut guests = self.guests();
            while let Some((_, number)) = guests.next() {
                let guest = guests.take(number);
                guest.iter().for_each(|guest| guests.forget(guest));
                left.extend(guest);
            }
        }
        left.iter().for_each(|guest| guest.stream.abort());
        self.inside.fetch_sub(left.len(), Ordering::Release);
        self.poller.wake();
        left.len()
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
            self.evict(&mut leave);
            let next = self.guests().next();
            let rest = next.map(|(at, _)| at.saturating_duration_since(now));
            self.poller.wait(&mut events, rest)?;
            for event in events.iter() {
                let Token(number) = event.token();
                let Some(mut guest) = self.guests().take(number) else {
                    continue;
                };
                let head = read(&guest, &mut buffer);
                let mut guests = self.guests();
                match head.transpose() {
                    None => {
                        guests.measure(&mut guest);
                        guests.put_back(number, guest);
                    }
                    Some(head) => {
                        guests.forget(&guest);
                        drop(guests);
                        self.poller.delete(&guest.stream).ok();
                        leave(guest, head);
                    }
                }
            }
            self.evict(&mut leave);
        }
        // One that was put back meanwhile.
        self.close();
        Ok(())
    }

    fn evict(&self, mut leave: impl FnMut(Guest, Result<Head, Fault>)) {
        loop {
            let evicted = self.guests().evict();
            let Some(guest) = evicted else { return };
            leave(guest, Err(Fault::Crowded));
        }
    }

    /// Those whose time is over.
    fn late(&self, now: Instant) -> Vec<Guest> {
        let mut late = Vec::new();
        let mut guests = self.guests();
        while let Some((_, number)) = guests.next().filter(|(deadline, _)| *deadline <= now) {
            let guest = guests.take(number);
            guest.iter().for_each(|guest| guests.forget(guest));
            late.extend(guest);
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
