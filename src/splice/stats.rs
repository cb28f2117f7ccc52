//! Counters of a pool. No locks.

use super::Cause;
use super::xfer::Stop;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Size classes of passes: none, below 1 KiB, and then up to each power of two.
const SIZES: usize = 13;
/// Base-2 logarithm of the smallest class boundary.
const SMALLEST: u32 = 10;

/// Counters of the splices of a pool.
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
    /// panic hook; the thread continued.
    pub panics: u64,
    /// Present splices, including those that are being set up.
    pub running: usize,
    /// Splices that were not set up because the pool had its maximum
    /// ([`Builder::max_splices`](super::Builder::max_splices)).
    pub refused: u64,
    ended: [u64; Cause::KINDS],
    by_size: [u64; SIZES],
}

impl Stats {
    /// Average bytes of a pass; 0 without passes.
    pub fn bytes_per_pass(&self) -> u64 {
        self.bytes.checked_div(self.passes).unwrap_or(0)
    }

    /// A histogram of passes by bytes moved, as pairs of a lower bound and a number of passes. The
    /// first pair counts passes that moved nothing; the bounds of the others are 1 byte, 1 KiB and the
    /// further powers of two up to 1 MiB. The sum of all is [`passes`](Self::passes).
    ///
    /// ```
    /// use sosplice::{local, splice::{Options, SplicePool}};
    /// let pool = SplicePool::builder().workers(1).manual().build();
    /// let ((a, b), (c, _d)) = (local::pair(), local::pair());
    /// a.send(&[7; 3000])?;
    /// b.splice_to(&c, Options::default().pool(pool.clone()))?;
    /// let sizes: Vec<_> = pool.stats().passes_by_size().filter(|(_, passes)| *passes > 0).collect();
    /// assert_eq!(sizes, [(2048, 1)]);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn passes_by_size(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        (0..).map(least).zip(self.by_size)
    }

    /// Splices that have ended.
    pub fn ended(&self) -> u64 {
        self.ended.iter().sum()
    }

    /// Splices that have ended for this cause (all errors are one cause).
    pub fn ended_by(&self, cause: Cause) -> u64 {
        self.ended[cause.kind()]
    }
}

/// Lower bound of a size class in bytes.
fn least(size: u32) -> u64 {
    match size {
        0 => 0,
        1 => 1,
        _ => 1 << (size - 2 + SMALLEST),
    }
}

/// The size class of a pass.
fn size_of(bytes: u64) -> usize {
    let bits = u64::BITS - bytes.leading_zeros();
    let size = match bytes {
        0 => 0,
        _ => 1 + bits.saturating_sub(SMALLEST) as usize,
    };
    size.min(SIZES - 1)
}

/// A snapshot of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Length of its queue: splices that are to run, and timers that have changed.
    pub queued: usize,
    /// Splices assigned to it.
    pub splices: usize,
    /// How long its thread has been awake, in the pool's clock, including time in which another thread
    /// had the processor. Zero for a worker that was not started, or is run by hand.
    pub busy: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    started: AtomicU64,
    /// Passes by size class.
    passes: [AtomicU64; SIZES],
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
    /// Reserves a place for one more splice, unless there are `most`. Of several threads that compete
    /// for the last place, one gets it.
    pub(super) fn take_place(&self, most: usize) -> bool {
        let one_more = |count| (count < most).then_some(count + 1);
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        let taken = self.running.fetch_update(set, get, one_more).is_ok();
        self.refused.fetch_add(u64::from(!taken), Ordering::Relaxed);
        taken
    }

    /// Releases the place of a splice that was not set up, or has ended.
    pub(super) fn give_back_place(&self) {
        self.running.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn started(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn pass(&self, bytes: u64, stop: Stop) {
        self.passes[size_of(bytes)].fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        match stop {
            Stop::NoData => self.no_data.fetch_add(1, Ordering::Relaxed),
            Stop::NoRoom => self.no_room.fetch_add(1, Ordering::Relaxed),
            Stop::Rate => self.rate.fetch_add(1, Ordering::Relaxed),
            Stop::SinkGone
            | Stop::SourceFailed
            | Stop::MessageSize
            | Stop::Loop
            | Stop::Limit
            | Stop::Eof
            | Stop::Quantum => 0,
        };
    }

    pub(super) fn requeued(&self) {
        self.requeues.fetch_add(1, Ordering::Relaxed);
    }

    /// Runs foreign code. A panic ends only that code, not the thread.
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
        let by_size = std::array::from_fn(|size| load(&self.passes[size]));
        Stats {
            started: load(&self.started),
            passes: by_size.iter().sum(),
            bytes: load(&self.bytes),
            requeues: load(&self.requeues),
            stalls_no_data: load(&self.no_data),
            stalls_no_room: load(&self.no_room),
            stalls_rate: load(&self.rate),
            panics: load(&self.panics),
            running: self.running.load(Ordering::Relaxed),
            refused: load(&self.refused),
            ended: std::array::from_fn(|kind| load(&self.ended[kind])),
            by_size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_two() {
        let table = [
            (0, 0),
            (1, 1),
            (1023, 1),
            (1024, 1024),
            (2047, 1024),
            (2048, 2048),
            ((1 << 20) - 1, 1 << 19),
            (1 << 20, 1 << 20),
            (u64::MAX, 1 << 20),
        ];
        for (bytes, expected) in table {
            let counts = Counts::default();
            counts.pass(bytes, Stop::Quantum);
            let stats = counts.snapshot();
            let mut sizes = stats.passes_by_size();
            let found = sizes.find(|(_, passes)| *passes > 0);
            assert_eq!(found, Some((expected, 1)), "{bytes}");
            assert_eq!((stats.passes, stats.bytes_per_pass()), (1, bytes));
        }
        assert_eq!(Stats::default().bytes_per_pass(), 0);
    }
}
