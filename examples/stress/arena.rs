//! The shared state of the threads: sockets, splices and upcalls, each in a slot.
//!
//! A thread takes a clone out of a slot and works with it, holding no lock, so several threads may
//! work with one socket at once, and one may close it in its slot meanwhile. Half of the picks go to
//! a few slots, so that threads meet.

use crate::handle::Handle;
use crate::random::Random;
use parking_lot::Mutex;
use sosplice::protocol::{SocketEnd, Upcall, Wakeup};
use sosplice::splice::{End, Role, Splice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// An upcall that counts, and may hold a socket that is closed with it.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    pub(crate) rings: Arc<AtomicU64>,
    pub(crate) holds: Option<Handle>,
}

impl Upcall for Bell {
    fn wakeup(&self, _what: Wakeup) {
        self.rings.fetch_add(1, Ordering::Relaxed);
    }

    fn unspliced(&self, _role: Role, _end: End) {
        self.rings.fetch_add(1, Ordering::Relaxed);
    }
}

/// Places for one kind of thing.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    slots: Box<[Mutex<Option<T>>]>,
}

impl<T> Slots<T> {
    fn new(count: usize) -> Slots<T> {
        Slots {
            slots: (0..count.max(1)).map(|_| Mutex::new(None)).collect(),
        }
    }

    fn pick(&self, random: &mut Random) -> &Mutex<Option<T>> {
        let hot = self.slots.len().div_ceil(8);
        let among = if random.one_in(2) {
            hot
        } else {
            self.slots.len()
        };
        &self.slots[random.below(among)]
    }

    /// Stores a value in a slot. The caller drops the former one, with no lock held.
    #[must_use = "dropped with no lock held"]
    pub(crate) fn put(&self, random: &mut Random, thing: T) -> Option<T> {
        self.pick(random).lock().replace(thing)
    }

    /// Removes a value from a slot.
    pub(crate) fn take(&self, random: &mut Random) -> Option<T> {
        self.pick(random).lock().take()
    }

    /// Empties all slots.
    pub(crate) fn clear(&self) {
        for slot in &self.slots {
            let former = slot.lock().take();
            drop(former);
        }
    }
}

impl<T: Clone> Slots<T> {
    pub(crate) fn get(&self, random: &mut Random) -> Option<T> {
        self.pick(random).lock().clone()
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Arena {
    pub(crate) sockets: Slots<Handle>,
    pub(crate) splices: Slots<Arc<Splice>>,
    pub(crate) bells: Slots<Arc<Bell>>,
    /// Times that a bell has rung.
    pub(crate) rings: Arc<AtomicU64>,
    census: Mutex<Vec<Weak<SocketEnd>>>,
    made: AtomicU64,
    peak: AtomicU64,
}

impl Arena {
    pub(crate) fn new(sockets: usize) -> Arena {
        Arena {
            sockets: Slots::new(sockets),
            splices: Slots::new(sockets / 2),
            bells: Slots::new(sockets / 4),
            rings: Arc::default(),
            census: Mutex::default(),
            made: AtomicU64::new(0),
            peak: AtomicU64::new(0),
        }
    }

    /// Registers a socket, which must not be left over at the end.
    pub(crate) fn register(&self, socket: &Handle) {
        self.made.fetch_add(1, Ordering::Relaxed);
        self.census.lock().push(Arc::downgrade(socket.end()));
    }

    /// Shares a new socket.
    pub(crate) fn share(&self, random: &mut Random, socket: impl Into<Handle>) {
        let socket = socket.into();
        self.register(&socket);
        drop(self.sockets.put(random, socket));
    }

    pub(crate) fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// Number of sockets that still exist. Updates the peak.
    pub(crate) fn living(&self) -> u64 {
        let mut census = self.census.lock();
        census.retain(|end| end.strong_count() > 0);
        let living = census.len() as u64;
        self.peak.fetch_max(living, Ordering::Relaxed);
        living
    }

    /// The remaining sockets, for a report.
    pub(crate) fn remains(&self) -> Vec<Arc<SocketEnd>> {
        self.census
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    pub(crate) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}
