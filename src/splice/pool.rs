//! The threads that splices run on.
//!
//! Each worker has a queue, on which a splice is at most once, and timers. A splice stays with its
//! worker; both directions of a connection pair share one; those of a stack with several receiving
//! threads are spread over workers as over these. The queue is a channel, so a wake-up of
//! a busy worker costs no system call; passes of different splices alternate, because a splice that
//! has more to do goes to the back.
//!
//! A pool that is closed says so, then ends the splices it finds, then wakes its workers; a splice that
//! is set up is put where it can be found, then asks whether the pool is closed. So none is left
//! behind, and no worker sleeps on (models: `shutdown_with_work_queued`, `close_against_everything`). Those
//! who wait for an end, and were handed over to a worker, are told in the same way
//! (`handed_over_against_shutdown`).
//!
//! Queue and timers hold splices weakly. Locks: leaves (5), one at a time. A user's handle is a
//! [`SplicePool`]; workers and splices hold [`Shared`], so the last handle can end them.

use super::stats::{Counts, Stats, WorkerStats};
use super::task::{Party, Status, Task};
use super::{Cause, Dispatch, SpliceError};
use crate::affinity::Affinity;
use crate::buf;
use crate::busy::Busy;
use crate::clock::{self, Clock};
use crate::lock::{LEAF, Mutex};
use crate::run_list::Job;
use crate::sync::atomic::AtomicBool;
use crate::sync::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use crate::sync::{Protection, intact, thread};
use crate::timer::Timers;
use std::collections::VecDeque;
use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

/// Bytes that one pass moves at most, unless the builder says otherwise.
pub const DEFAULT_QUANTUM: usize = 256 * 1024;

/// Two for each pair of connections, of as many as a stack has by default at each end.
const MAX_SPLICES: usize = 2 << 20;

/// A pool of worker threads for splices.
///
/// Clones are the same pool. Its threads start with the first splice. When the last clone is
/// dropped, splices that still run end with [`Cause::PoolClosed`] and the threads finish; nobody
/// waits for them.
///
/// ```
/// use sosplice::{local, splice::{Options, SplicePool}};
/// let pool = SplicePool::builder().workers(1).build();
/// let ((a, b), (c, d)) = (local::pair(), local::pair());
/// b.splice_to(&c, Options { pool: Some(pool.clone()), ..Options::default() })?;
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

/// What a [`SplicePool`] is made of.
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

    /// Where the pool's time comes from. Threads wait in real time; a clock of another kind is for
    /// a [`manual`](Self::manual) pool.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Builder {
        self.clock = clock;
        self
    }

    /// Bytes that one pass moves at most (at least 1), [`DEFAULT_QUANTUM`] if not set.
    pub fn quantum(mut self, bytes: usize) -> Builder {
        self.quantum = bytes.max(1);
        self
    }

    /// Where splices run that do not say it themselves, [`Dispatch::Adaptive`] if not set.
    pub fn dispatch(mut self, dispatch: Dispatch) -> Builder {
        self.dispatch = dispatch;
        self
    }

    /// The processors that the workers run on, counted from 0 as in `/proc/cpuinfo`: the first worker on
    /// the first of them, and so on, beginning again when there are more workers. By default the system
    /// decides. A processor that is not there makes the first splice fail with
    /// [`NoProcessor`](SpliceError::NoProcessor).
    ///
    /// ```
    /// use sosplice::{local, splice::{Options, SpliceError, SplicePool}};
    /// let ((a, b), (c, d)) = (local::pair(), local::pair());
    /// let pool = SplicePool::builder().workers(2).affinity([0, 5000]).build();
    /// let options = Options { pool: Some(pool), ..Options::default() };
    /// let error = b.splice_to(&c, options).unwrap_err();
    /// assert_eq!(error, SpliceError::NoProcessor(5000));
    /// ```
    #[cfg(target_os = "linux")]
    pub fn affinity(mut self, cpus: impl IntoIterator<Item = usize>) -> Builder {
        self.affinity = Affinity::new(cpus);
        self
    }

    /// How many splices the pool has at most at a time; 2,097,152 if not set, one for each direction of
    /// as many pairs of connections as two stacks have by default. Beyond it
    /// [`splice_to`](crate::Socket::splice_to) fails with
    /// [`TooManySplices`](SpliceError::TooManySplices), which is counted
    /// ([`Stats::refused`]); a splice that has ended makes room.
    ///
    /// ```
    /// use sosplice::{local, splice::{Options, SpliceError, SplicePool}};
    /// let pool = SplicePool::builder().workers(1).max_splices(1).build();
    /// let ((_a, b), (c, _d)) = (local::pair(), local::pair());
    /// let options = || Options { pool: Some(pool.clone()), ..Options::default() };
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

    /// No threads: the workers work when [`SplicePool::run_one`] is called.
    pub fn manual(mut self) -> Builder {
        self.manual = true;
        self
    }

    /// The pool.
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
    /// A pool to be set up.
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

    /// The pool of splices that name none: a worker for each processor.
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

    /// What its splices have done so far.
    pub fn stats(&self) -> Stats {
        self.handle.shared.counts.snapshot()
    }

    /// What each worker has done so far, and has to do.
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

    /// For a [`manual`](Builder::manual) pool: fires one timer that is due, or else runs one pass.
    /// `false` if there is nothing to do now. Workers take turns.
    pub fn run_one(&self) -> bool {
        let shared = &self.handle.shared;
        let count = shared.workers.len();
        let first = shared.next_run.fetch_add(1, Ordering::Relaxed);
        (0..count).any(|turn| shared.workers[first.wrapping_add(turn) % count].run_one(shared))
    }

    /// The next time at which [`run_one`](Self::run_one) may have something to do, if nothing else
    /// happens: a simulator lets its clock jump to it.
    pub fn next_deadline(&self) -> Option<Instant> {
        let workers = self.handle.shared.workers.iter();
        workers
            .filter_map(|worker| worker.timers.lock().next())
            .min()
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }
}

/// What workers and splices hold of a pool.
#[derive(Debug)]
pub(super) struct Shared {
    workers: Box<[Worker]>,
    clock: Arc<dyn Clock>,
    pub(super) quantum: usize,
    pub(super) dispatch: Dispatch,
    manual: bool,
    affinity: Affinity,
    max_splices: usize,
    /// How many threads have been started.
    started: Mutex<usize, LEAF>,
    closed: AtomicBool,
    next_worker: AtomicUsize,
    next_run: AtomicUsize,
    pub(super) counts: Counts,
}

impl Shared {
    pub(super) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Whether a splice can be set up; starts the threads.
    pub(super) fn start(self: &Arc<Self>) -> Result<(), SpliceError> {
        if self.workers.is_empty() {
            return Err(SpliceError::PoolDisabled);
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(SpliceError::PoolClosed);
        }
        if self.manual {
            return Ok(());
        }
        self.start_threads()
    }

    /// Starts those that are missing. In FreeBSD a failure is final (`splice_init`): a kernel that
    /// cannot start threads at boot never will, a process that has too many may soon have less.
    fn start_threads(self: &Arc<Self>) -> Result<(), SpliceError> {
        let failed = |error: io::Error| SpliceError::Threads(error.kind());
        let mut started = self.started.lock();
        if *started < self.workers.len() {
            let checked = self.affinity.check();
            checked.map_err(|(cpu, error)| match error.kind() {
                io::ErrorKind::InvalidInput => SpliceError::NoProcessor(cpu),
                _ => failed(error),
            })?;
        }
        while *started < self.workers.len() {
            let (shared, index) = (self.clone(), *started);
            thread::Builder::new()
                .name(format!("so_splice:{index}"))
                .spawn(move || {
                    shared.affinity.pin(index);
                    shared.workers[index].run(&shared);
                })
                .map_err(failed)?;
            *started += 1;
        }
        Ok(())
    }

    /// The worker of the opposite direction; or that of the source's receiving thread, if both sockets
    /// have one of several; or the next one.
    pub(super) fn worker_for(self: &Arc<Self>, source: &Party, sink: &Party) -> usize {
        let opposite = sink.end.rcv().diversion().cloned();
        if let Some(task) = opposite.as_ref().and_then(Task::of)
            && task.sink.end.id() == source.end.id()
            && Arc::ptr_eq(&task.pool, self)
        {
            return task.worker;
        }
        let queues = source.protocol.queue().zip(sink.protocol.queue());
        let next = || self.next_worker.fetch_add(1, Ordering::Relaxed);
        queues.map_or_else(next, |(queue, _)| queue) % self.workers.len()
    }

    /// A place for one more splice. It is given back when the splice has ended, or was not set up
    /// ([`Counts`]).
    pub(super) fn take_place(&self) -> Result<(), SpliceError> {
        let taken = self.counts.take_place(self.max_splices);
        taken
            .then_some(())
            .ok_or(SpliceError::TooManySplices(self.max_splices))
    }

    /// Takes a splice that has just been put on its buffers.
    pub(super) fn adopt(&self, task: &Arc<Task>) {
        let worker = &self.workers[task.worker];
        self.counts.started();
        worker.tasks.lock().add(Arc::downgrade(task));
        self.arm(task);
        // Either shut_down() has found the splice, or this finds the pool closed.
        if self.closed.load(Ordering::SeqCst) {
            task.dissolve(Cause::PoolClosed);
        }
    }

    /// The splices that have not ended, and some that are about to go.
    pub(super) fn tasks(&self) -> Vec<Arc<Task>> {
        let mut all = Vec::new();
        for worker in &self.workers {
            let tasks = worker.tasks.lock();
            all.extend(tasks.tasks.iter().filter_map(Weak::upgrade));
        }
        all
    }

    /// Has the splice's worker look after its timers, if one is due earlier than before.
    pub(super) fn arm(&self, task: &Arc<Task>) {
        if let Some(at) = task.arm() {
            let worker = &self.workers[task.worker];
            worker.arm(at, task);
            worker.send(Item::Look);
        }
    }

    pub(super) fn enqueue(&self, worker: usize, task: Weak<Task>) {
        self.workers[worker].send(Item::Pass(task));
    }

    /// Has those who wait for the end of a splice told by its worker. `false`: no worker is there any
    /// more.
    pub(super) fn enqueue_waiting(&self, worker: usize, status: &Arc<Status>) -> bool {
        if self.closed.load(Ordering::SeqCst) {
            return false;
        }
        let worker = &self.workers[worker];
        worker.waiting.lock().push_back(status.clone());
        worker.send(Item::Look);
        // Either shut_down() has found them, or this finds the pool closed.
        if self.closed.load(Ordering::SeqCst) && intact(Protection::LastWaiters) {
            while worker.tell_waiting() {}
        }
        true
    }

    fn shut_down(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for worker in &self.workers {
            let tasks = worker.tasks.lock().take();
            let tasks = tasks.iter().filter(|_| intact(Protection::LastEnd));
            for task in tasks.filter_map(Weak::upgrade) {
                task.dissolve(Cause::PoolClosed);
            }
            while worker.tell_waiting() {}
            if intact(Protection::LastLook) {
                worker.send(Item::Look);
            }
        }
    }
}

#[derive(Debug)]
enum Item {
    /// Run a pass.
    Pass(Weak<Task>),
    /// Timers have changed, somebody waits to be told of an end, or the pool has been closed.
    Look,
}

#[derive(Debug)]
struct Worker {
    sender: Sender<Item>,
    receiver: Receiver<Item>,
    timers: Mutex<Timers<Weak<Task>>, LEAF>,
    tasks: Mutex<Tasks, LEAF>,
    /// Ends of which those who wait are to be told; for each there is a look in the queue.
    waiting: Mutex<VecDeque<Arc<Status>>, LEAF>,
    busy: Busy,
}

/// A worker's thread is at work while this is there.
struct Awake<'a>(&'a Busy, &'a Shared);

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        self.0.sleep(self.1.now());
    }
}

impl Worker {
    fn new(epoch: Instant) -> Worker {
        let (sender, receiver) = unbounded();
        Worker {
            sender,
            receiver,
            timers: Mutex::default(),
            tasks: Mutex::default(),
            waiting: Mutex::default(),
            busy: Busy::new(epoch),
        }
    }

    fn stats(&self, now: Instant) -> WorkerStats {
        let live = |tasks: &[Weak<Task>]| {
            let live = tasks.iter().filter(|task| task.strong_count() > 0);
            live.count()
        };
        WorkerStats {
            queued: self.receiver.len(),
            splices: live(&self.tasks.lock().tasks),
            busy: self.busy.time(now),
        }
    }

    fn send(&self, item: Item) {
        // Cannot fail: the receiver is beside the sender.
        self.sender.send(item).ok();
    }

    fn arm(&self, at: Instant, task: &Arc<Task>) {
        let is_live = |task: &Weak<Task>| task.strong_count() > 0;
        self.timers.lock().insert(at, Arc::downgrade(task), is_live);
    }

    /// The thread.
    fn run(&self, shared: &Shared) {
        self.busy.wake(shared.now());
        let _awake = Awake(&self.busy, shared);
        let _at_work = buf::at_work();
        while !shared.closed.load(Ordering::Acquire) {
            let deadline = self.timers.lock().next();
            let next = self.receiver.try_recv();
            let item = next.or_else(|_| self.sleep(shared, deadline));
            if deadline.is_some() {
                while self.fire_one(shared) {}
            }
            if let Ok(item) = item {
                self.work(&item);
            }
        }
    }

    /// Does what an item says. Whether there was something to do.
    fn work(&self, item: &Item) -> bool {
        match item {
            Item::Pass(task) => task.upgrade().map(|task| task.run()).is_some(),
            Item::Look => self.tell_waiting(),
        }
    }

    /// Tells those who wait for the end of one splice. Whether there was one.
    fn tell_waiting(&self) -> bool {
        let status = self.waiting.lock().pop_front();
        status.map(|status| status.tell_waiters()).is_some()
    }

    /// Waits for something to do.
    fn sleep(&self, shared: &Shared, deadline: Option<Instant>) -> Result<Item, RecvTimeoutError> {
        buf::give_back();
        self.busy.sleep(shared.now());
        let item = match deadline {
            Some(at) => self.receiver.recv_deadline(at),
            None => self.receiver.recv().map_err(RecvTimeoutError::from),
        };
        self.busy.wake(shared.now());
        item
    }

    /// One turn of a worker without a thread.
    fn run_one(&self, shared: &Shared) -> bool {
        if self.fire_one(shared) {
            return true;
        }
        while let Ok(item) = self.receiver.try_recv() {
            if self.work(&item) {
                return true;
            }
        }
        false
    }

    /// Looks after one splice whose timer is due.
    fn fire_one(&self, shared: &Shared) -> bool {
        let now = shared.now();
        let due = self.timers.lock().pop(now);
        let Some((at, task)) = due else { return false };
        if let Some(task) = task.upgrade()
            && task.disarm(at)
        {
            task.check_timers(now);
            shared.arm(&task);
        }
        true
    }
}

/// The splices of a worker, to end them with the pool.
#[derive(Debug, Default)]
struct Tasks {
    tasks: Vec<Weak<Task>>,
    sweep_at: usize,
}

impl Tasks {
    fn add(&mut self, task: Weak<Task>) {
        if self.tasks.len() >= self.sweep_at {
            self.tasks.retain(|task| task.strong_count() > 0);
            self.sweep_at = 64.max(2 * self.tasks.len());
        }
        self.tasks.push(task);
    }

    fn take(&mut self) -> Vec<Weak<Task>> {
        std::mem::take(&mut self.tasks)
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

    /// Time that only moves when told to.
    #[derive(Debug)]
    struct TestClock(Instant, AtomicU64);

    impl Clock for TestClock {
        fn now(&self) -> Instant {
            self.0 + Duration::from_secs(self.1.load(Ordering::SeqCst))
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
        // What is done at the end is the worker's work: it takes seven seconds.
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
