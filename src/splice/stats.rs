//! What the splices of a pool have done, counted. No locks.

use super::Cause;
use super::xfer::Stop;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What the splices of a pool have done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Splices set up.
    pub started: u64,
    /// Passes run.
    pub passes: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Passes after which the splice went straight back to its queue.
    pub requeues: u64,
    /// Passes that stopped because the source was empty, or below the splice's low-water mark.
    pub stalls_no_data: u64,
    /// Passes that stopped because the sink had no room or was not connected.
    pub stalls_no_room: u64,
    /// Passes that stopped because the splice's rate allowed no more.
    pub stalls_rate: u64,
    /// Panics of code that is not this crate's: callbacks, wakers, protocols. Each was reported by the
    /// panic hook; the thread went on.
    pub panics: u64,
    /// Splices at this moment, also while one is being set up.
    pub running: usize,
    /// Splices that were not set up because there were as many as the pool may have
    /// ([`Builder::max_splices`](super::Builder::max_splices)).
    pub refused: u64,
    ended: [u64; Cause::KINDS],
}

impl Stats {
    /// Splices that have ended.
    pub fn ended(&self) -> u64 {
        self.ended.iter().sum()
    }

    /// Splices that have ended for this kind of cause (which error it was plays no part).
    pub fn ended_by(&self, cause: Cause) -> u64 {
        self.ended[cause.kind()]
    }
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    started: AtomicU64,
    passes: AtomicU64,
    bytes: AtomicU64,
    requeues: AtomicU64,
    no_data: AtomicU64,
    no_room: AtomicU64,
    rate: AtomicU64,
    panics: AtomicU64,
    running: AtomicUsize,
    refused: AtomicU64,
    ended: [AtomicU64; Cause::KINDS],
}

impl Counts {
    /// A place for one more splice, unless there are `most`. Of several threads that find the last one,
    /// one has it.
    pub(super) fn take_place(&self, most: usize) -> bool {
        let one_more = |count| (count < most).then_some(count + 1);
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        let taken = self.running.fetch_update(set, get, one_more).is_ok();
        self.refused.fetch_add(u64::from(!taken), Ordering::Relaxed);
        taken
    }

    /// The place of a splice that was not set up, or has ended.
    pub(super) fn give_back_place(&self) {
        self.running.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn started(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn pass(&self, bytes: u64, stop: Stop) {
        self.passes.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        match stop {
            Stop::NoData => self.no_data.fetch_add(1, Ordering::Relaxed),
            Stop::NoRoom => self.no_room.fetch_add(1, Ordering::Relaxed),
            Stop::Rate => self.rate.fetch_add(1, Ordering::Relaxed),
            Stop::SinkGone | Stop::Loop | Stop::Limit | Stop::Eof | Stop::Quantum => 0,
        };
    }

    pub(super) fn requeued(&self) {
        self.requeues.fetch_add(1, Ordering::Relaxed);
    }

    /// Runs code that is not this crate's. A panic ends only that: whose thread this is has nothing to
    /// do with it.
    pub(super) fn guard<R>(&self, foreign: impl FnOnce() -> R) -> Option<R> {
        let result = panic::catch_unwind(AssertUnwindSafe(foreign));
        if result.is_err() {
            self.panics.fetch_add(1, Ordering::Relaxed);
        }
        result.ok()
    }

    pub(super) fn ended(&self, cause: Cause) {
        self.give_back_place();
        self.ended[cause.kind()].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> Stats {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Stats {
            started: load(&self.started),
            passes: load(&self.passes),
            bytes: load(&self.bytes),
            requeues: load(&self.requeues),
            stalls_no_data: load(&self.no_data),
            stalls_no_room: load(&self.no_room),
            stalls_rate: load(&self.rate),
            panics: load(&self.panics),
            running: self.running.load(Ordering::Relaxed),
            refused: load(&self.refused),
            ended: std::array::from_fn(|kind| load(&self.ended[kind])),
        }
    }
}
