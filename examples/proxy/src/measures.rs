//! What is measured of connections: for Prometheus, and for `--top`.

use crate::histogram::Histogram;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Of all connections.
#[derive(Debug)]
pub(crate) struct Measures {
    /// From the admission of a client until a backend has taken its connection.
    pub(crate) waits: Histogram,
    /// From the admission of a client to the end of its connection.
    pub(crate) lengths: Histogram,
    /// Bytes of each connection, from the client and to it.
    pub(crate) bytes: [Histogram; 2],
    /// Something reads the times of connecting, which cost a callback each.
    reads_times: AtomicBool,
}

impl Default for Measures {
    fn default() -> Measures {
        Measures {
            waits: Histogram::of_short_times(),
            lengths: Histogram::of_long_times(),
            bytes: [(); 2].map(|()| Histogram::of_bytes()),
            reads_times: AtomicBool::new(false),
        }
    }
}

impl Measures {
    /// The times of connecting are wanted from now on.
    pub(crate) fn read_times(&self) {
        self.reads_times.store(true, Relaxed);
    }

    pub(crate) fn are_times_read(&self) -> bool {
        self.reads_times.load(Relaxed)
    }
}

/// Of the connections to one backend.
#[derive(Debug)]
pub(crate) struct Account {
    /// From the SYN until the backend has taken the connection.
    pub(crate) connects: Histogram,
    /// From the SYN until it has refused, or has not answered in time.
    pub(crate) failures: Histogram,
    /// Bytes of connections that have ended: from the client, and to it.
    bytes: [AtomicU64; 2],
}

impl Default for Account {
    fn default() -> Account {
        Account {
            connects: Histogram::of_short_times(),
            failures: Histogram::of_short_times(),
            bytes: Default::default(),
        }
    }
}

impl Account {
    pub(crate) fn add(&self, bytes: [u64; 2]) {
        for (all, more) in self.bytes.iter().zip(bytes) {
            all.fetch_add(more, Relaxed);
        }
    }

    #[cfg(feature = "top")]
    pub(crate) fn bytes(&self) -> [u64; 2] {
        [0, 1].map(|direction: usize| self.bytes[direction].load(Relaxed))
    }
}
