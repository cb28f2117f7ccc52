//! The threads that splices run on.
//!
//! Each worker has timers and a queue, which holds a splice at most once. A splice stays with its
//! worker; both directions of a connection pair share one; the splices of a stack with several
//! receiving threads follow those threads. The queue is a channel, so a wake-up of a busy worker costs
//! no system call; passes of different splices alternate, because a splice that has more to do goes to
//! the back.
//!
//! Closing a pool sets its flag, then ends the splices in its list, then wakes the workers; setting up
//! a splice adds it to the list, then checks the flag. So no splice is missed, and every worker wakes
//! (models: `shutdown_with_work_queued`, `close_against_everything`). The same order covers
//! notifications that were handed over to a worker (`handed_over_against_shutdown`).
//!
//! Queue and timers hold weak references. Locks: leaves (5), one at a time. The program's handle is a
//! [`SplicePool`]; workers and splices hold [`Shared`], so dropping the last handle can end them.

use super::Dispatch;
use super::stats::{Counts, Stats, WorkerStats};
use super::worker::{Shared, Worker};
use crate::affinity::Affinity;
use crate::clock::{self, Clock};
use crate::lock::Mutex;
use crate::probe::Probe;
use crate::sync::atomic::AtomicBool;
use crate::sync::thread;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Bytes that one pass moves at most, by default.
pub const DEFAULT_QUANTUM: usize = 256 * 1024;

/// Two splices for each pair of connections, with the default number of connections of a stack.
const MAX_SPLICES: usize = 2 << 20;

/// A pool of worker threads for splices.
///
/// Clones are the same pool. Its threads start with the first splice. When the last clone is dropped,
/// splices that still run end with [`Cause::PoolClosed`](super::Cause::PoolClosed) and the threads
/// finish; the drop does not wait for them.
///
/// ```
/// use sosplice::{local, splice::{Options, SplicePool}};
/// let pool = SplicePool::builder().workers(1).build();
/// let ((a, b), (c, d)) = (local::pair(), local::pair());
/// b.splice_to(&c, Options::default().pool(pool.clone()))?;
/// a.send(b"through the pool")?;
/// assert_eq!(d.recv_chain(100)?.to_vec(), b"through the pool");
/// assert_eq!(pool.stats().started, 1);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct SplicePool {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.shut_down();
    }
}

/// Settings of a [`SplicePool`].
#[derive(Debug)]
#[must_use]
pub struct Builder {
    workers: Option<usize>,
    clock: Arc<dyn Clock>,
    quantum: usize,
    dispatch: Dispatch,
    manual: bool,
    affinity: Affinity,
    max_splices: usize,
}

impl Builder {
    /// Number of worker threads; one for each processor if not set. 0 disables the pool.
    pub fn workers(mut self, workers: usize) -> Builder {
        self.workers = Some(workers);
        self
    }

    /// The pool's clock. Threads wait in real time; use another clock only with a
    /// [`manual`](Self::manual) pool.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Builder {
        self.clock = clock;
        self
    }

    /// Bytes that one pass moves at most (at least 1), [`DEFAULT_QUANTUM`] if not set. A pass that reaches it ends
    /// between two received packets, if it can.
    pub fn quantum(mut self, bytes: usize) -> Builder {
        self.quantum = bytes.max(1);
        self
    }

    /// Dispatch of splices whose options do not set it; [`Dispatch::Adaptive`] by default.
    pub fn dispatch(mut self, dispatch: Dispatch) -> Builder {
        self.dispatch = dispatch;
        self
    }

    /// The processors that the workers run on, counted from 0 as in `/proc/cpuinfo`: the first worker
    /// on the first of them, and so on, beginning again when there are more workers. By default the
    /// system decides. A processor that is not available makes the first splice fail with
    /// [`NoProcessor`](super::SpliceError::NoProcessor).
    ///
    /// ```
    /// use sosplice::{local, splice::{Options, SpliceError, SplicePool}};
    /// let ((a, b), (c, d)) = (local::pair(), local::pair());
    /// let pool = SplicePool::builder().workers(2).affinity([0, 5000]).build();
    /// let options = Options::default().pool(pool);
    /// let error = b.splice_to(&c, options).unwrap_err();
    /// assert_eq!(error, SpliceError::NoProcessor(5000));
    /// ```
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub fn affinity(mut self, cpus: impl IntoIterator<Item = usize>) -> Builder {
        self.affinity = Affinity::new(cpus);
        self
    }

    /// Maximum number of splices at a time; 2,097,152 if not set, one for each direction of as many
    /// pairs of connections as two stacks have by default. Beyond it
    /// [`splice_to`](crate::Socket::splice_to) fails with
    /// [`TooManySplices`](super::SpliceError::TooManySplices), which is counted ([`Stats::refused`]); a
    /// splice that ends makes room for another.
    ///
    /// ```
    /// use sosplice::{local, splice::{Options, SpliceError, SplicePool}};
    /// let pool = SplicePool::builder().workers(1).max_splices(1).build();
    /// let ((_a, b), (c, _d)) = (local::pair(), local::pair());
    /// let options = || Options::default().pool(pool.clone());
    /// let there = b.splice_to(&c, options())?;
    /// let back = c.splice_to(&b, options());
    /// assert_eq!(back.unwrap_err(), SpliceError::TooManySplices(1));
    /// there.unsplice()?;
    /// c.splice_to(&b, options())?;
    /// assert_eq!((pool.stats().running, pool.stats().refused), (1, 1));
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn max_splices(mut self, most: usize) -> Builder {
        self.max_splices = most;
        self
    }

    /// No threads: the workers run in [`SplicePool::run_one`].
    pub fn manual(mut self) -> Builder {
        self.manual = true;
        self
    }

    /// Builds the pool.
    pub fn build(self) -> SplicePool {
        let per_processor = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let workers = self.workers.unwrap_or_else(per_processor);
        let epoch = self.clock.now();
        SplicePool {
            handle: Arc::new(Handle {
                shared: Arc::new(Shared {
                    workers: (0..workers).map(|_| Worker::new(epoch)).collect(),
                    clock: self.clock,
                    quantum: self.quantum,
                    dispatch: self.dispatch,
                    manual: self.manual,
                    affinity: self.affinity,
                    max_splices: self.max_splices,
                    started: Mutex::default(),
                    closed: AtomicBool::new(false),
                    next_worker: AtomicUsize::new(0),
                    next_run: AtomicUsize::new(0),
                    counts: Counts::default(),
                }),
            }),
        }
    }
}

impl SplicePool {
    /// Settings of a new pool.
    pub fn builder() -> Builder {
        Builder {
            workers: None,
            clock: clock::system(),
            quantum: DEFAULT_QUANTUM,
            dispatch: Dispatch::default(),
            manual: false,
            affinity: Affinity::default(),
            max_splices: MAX_SPLICES,
        }
    }

    /// The default pool: a worker for each processor.
    ///
    /// ```
    /// assert!(sosplice::splice::SplicePool::global().workers() >= 1);
    /// ```
    pub fn global() -> &'static SplicePool {
        static GLOBAL: OnceLock<SplicePool> = OnceLock::new();
        GLOBAL.get_or_init(|| SplicePool::builder().build())
    }

    /// Number of workers.
    pub fn workers(&self) -> usize {
        self.handle.shared.workers.len()
    }

    /// Counters of its splices.
    pub fn stats(&self) -> Stats {
        self.handle.shared.counts.snapshot()
    }

    /// Counters and queue lengths of the workers.
    ///
    /// ```
    /// use sosplice::splice::SplicePool;
    /// let pool = SplicePool::builder().workers(2).build();
    /// let workers = pool.worker_stats();
    /// assert_eq!(workers.len(), 2);
    /// assert!(workers.iter().all(|worker| worker.busy.is_zero()), "nothing was spliced");
    /// ```
    pub fn worker_stats(&self) -> Vec<WorkerStats> {
        let shared = &self.handle.shared;
        let now = shared.now();
        let workers = shared.workers.iter();
        workers.map(|worker| worker.stats(now)).collect()
    }

    /// Asks each worker for a sign of life: wakes it, so that it completes a turn. Workers are started with the first
    /// splice; before, none is asked.
    ///
    /// ```
    /// use sosplice::{local, splice::{Options, SplicePool}};
    /// let pool = SplicePool::builder().workers(2).build();
    /// assert!(pool.probe().silent().is_empty(), "no worker was started");
    /// let ((_a, b), (c, _d)) = (local::pair(), local::pair());
    /// b.splice_to(&c, Options::default().pool(pool.clone()))?;
    /// let probe = pool.probe();
    /// while !probe.silent().is_empty() {
    ///     std::thread::yield_now(); // a watchdog would sleep
    /// }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn probe(&self) -> Probe {
        self.handle.shared.probe()
    }

    /// For a [`manual`](Builder::manual) pool: fires one timer that is due, or else runs one pass.
    /// `false` if there is no work now. Workers take turns.
    pub fn run_one(&self) -> bool {
        let shared = &self.handle.shared;
        let count = shared.workers.len();
        let first = shared.next_run.fetch_add(1, Ordering::Relaxed);
        (0..count).any(|turn| shared.workers[first.wrapping_add(turn) % count].run_one(shared))
    }

    /// The next time at which [`run_one`](Self::run_one) may have work, without other events: a
    /// simulator advances its clock to it.
    pub fn poll_at(&self) -> Option<Instant> {
        let workers = self.handle.shared.workers.iter();
        workers
            .filter_map(|worker| worker.timers.lock().next())
            .min()
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::local;
    use crate::splice::Options;
    use std::sync::atomic::AtomicU64;
    use std::thread::yield_now;
    use std::time::Duration;

    /// A clock that is advanced by hand.
    #[derive(Debug)]
    struct TestClock(Instant, AtomicU64);

    impl Clock for TestClock {
        fn now(&self) -> Instant {
            self.0 + Duration::from_secs(self.1.load(Ordering::SeqCst))
        }
    }

    #[test]
    fn a_worker_in_a_callback_that_does_not_return_is_silent() {
        let pool = SplicePool::builder().workers(2);
        let pool = pool.dispatch(Dispatch::Worker).build();
        let ((a, b), (c, _d)) = (local::pair(), local::pair());
        let options = Options::default().pool(pool.clone());
        let splice = b.splice_to(&c, options).unwrap();
        let all = pool.probe();
        while !all.silent().is_empty() {
            yield_now();
        }
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (begun, begins) = std::sync::mpsc::channel();
        splice.on_end(move |_| {
            begun.send(()).unwrap();
            wait.recv().unwrap_err();
        });
        a.shutdown(std::net::Shutdown::Write).unwrap();
        begins.recv().unwrap();
        let probe = pool.probe();
        while probe.silent().len() > 1 {
            yield_now();
        }
        assert_eq!(probe.silent(), [0]);
        drop(go);
        while !probe.silent().is_empty() {
            yield_now();
        }
    }

    #[test]
    fn a_worker_is_busy_between_waking_and_sleeping() {
        let clock = Arc::new(TestClock(SystemClock.now(), AtomicU64::new(0)));
        let advance = |seconds| {
            clock.1.fetch_add(seconds, Ordering::SeqCst);
        };
        let pool = SplicePool::builder().workers(2).clock(clock.clone());
        let pool = pool.dispatch(Dispatch::Worker).build();
        let busy = || {
            let workers = pool.worker_stats().into_iter();
            workers
                .map(|worker| worker.busy.as_secs())
                .collect::<Vec<_>>()
        };
        let asleep = || {
            let workers = &pool.shared().workers;
            while !workers.iter().all(|worker| worker.busy.is_asleep()) {
                yield_now();
            }
        };
        advance(10);
        assert_eq!(busy(), [0, 0], "not started");
        let ((a, b), (c, d)) = (local::pair(), local::pair());
        let options = Options {
            pool: Some(pool.clone()),
            ..Options::default()
        };
        let splice = b.splice_to(&c, options).unwrap();
        assert_eq!(pool.worker_stats()[0].splices, 1);
        a.send(b"x").unwrap();
        assert_eq!(d.recv(&mut [0; 1]).unwrap(), 1);
        asleep();
        let before = busy();
        advance(100);
        assert_eq!(busy(), before, "asleep");
        // The callback runs in the worker and takes seven seconds.
        let (sender, done) = std::sync::mpsc::channel();
        let late = clock.clone();
        splice.on_end(move |_| {
            late.1.fetch_add(7, Ordering::SeqCst);
            sender.send(()).unwrap();
        });
        a.shutdown(std::net::Shutdown::Write).unwrap();
        done.recv().unwrap();
        assert_eq!(busy()[0], before[0] + 7, "still awake, or asleep again");
        assert_eq!(busy()[1], before[1]);
        asleep();
        advance(100);
        assert_eq!(busy()[0], before[0] + 7);
        assert_eq!(pool.worker_stats()[0].splices, 0);
    }
}
