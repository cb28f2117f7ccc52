//! Workers: the threads of a pool, their queues and their timers.
//!
//! They use a splice only through [`Spliced`], by weak references. Locks: leaves (5), one at a time.

use super::stats::{Counts, WorkerStats};
use super::{Dispatch, SpliceError};
use crate::affinity::Affinity;
use crate::buf;
use crate::busy::Busy;
use crate::clock::Clock;
use crate::lock::{LEAF, Mutex};
use crate::probe::Probe;
use crate::run_list::Job;
use crate::sync::atomic::AtomicBool;
use crate::sync::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use crate::sync::{Protection, intact, thread};
use crate::timer::Timers;
use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

/// The interface of a splice to its worker.
pub(super) trait Spliced: Job + Any + fmt::Debug + Send + Sync {
    /// The number of its worker.
    fn worker(&self) -> usize;
    /// When its timer is due, if that is earlier than the armed one.
    fn arm(&self) -> Option<Instant>;
    /// Its timer of this time has fired. `false` if that timer is stale.
    fn disarm(&self, at: Instant) -> bool;
    /// Handles the timers that are due.
    fn check_timers(&self, now: Instant);
    /// Ends the splice because the pool is closed.
    fn pool_closed(&self);
}

/// The end of a splice that has waiters.
pub(super) trait Waited: fmt::Debug + Send + Sync {
    /// Notifies them.
    fn notify_waiters(self: Arc<Self>);
}

/// The part of a pool that workers and splices hold.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) workers: Box<[Worker]>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) quantum: usize,
    pub(super) dispatch: Dispatch,
    pub(super) manual: bool,
    pub(super) affinity: Affinity,
    pub(super) max_splices: usize,
    /// Number of threads started.
    pub(super) started: Mutex<usize, LEAF>,
    pub(super) closed: AtomicBool,
    pub(super) next_worker: AtomicUsize,
    pub(super) next_run: AtomicUsize,
    pub(super) counts: Counts,
}

impl Shared {
    pub(super) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Checks that a splice can be set up, and starts the threads.
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

    /// Starts the missing threads. In FreeBSD a failure is final (`splice_init`); here the next splice
    /// tries again, since the process may have fewer threads then.
    pub(super) fn start_threads(self: &Arc<Self>) -> Result<(), SpliceError> {
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

    /// The next worker in turn.
    pub(super) fn next_worker(&self) -> usize {
        self.next_worker.fetch_add(1, Ordering::Relaxed) % self.workers.len()
    }

    /// How many workers there are.
    pub(super) fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Reserves a place for one more splice. It is released when the splice has ended, or was not set
    /// up ([`Counts`]).
    pub(super) fn take_place(&self) -> Result<(), SpliceError> {
        let taken = self.counts.take_place(self.max_splices);
        taken
            .then_some(())
            .ok_or(SpliceError::TooManySplices(self.max_splices))
    }

    /// Registers a splice that was just attached to its buffers.
    pub(super) fn adopt(&self, task: &Arc<dyn Spliced>) {
        let worker = &self.workers[task.worker()];
        self.counts.started();
        worker.tasks.lock().add(Arc::downgrade(task));
        self.arm(task);
        // Either shut_down() has seen the splice, or this sees that the pool is closed.
        if self.closed.load(Ordering::SeqCst) {
            task.pool_closed();
        }
    }

    /// The splices that have not ended, and some that are ending.
    pub(super) fn tasks(&self) -> Vec<Arc<dyn Spliced>> {
        let mut all = Vec::new();
        for worker in &self.workers {
            let tasks = worker.tasks.lock();
            all.extend(tasks.tasks.iter().filter_map(Weak::upgrade));
        }
        all
    }

    /// Makes the splice's worker check its timers, if one is due earlier than before.
    pub(super) fn arm(&self, task: &Arc<dyn Spliced>) {
        if let Some(at) = task.arm() {
            let worker = &self.workers[task.worker()];
            worker.arm(at, task);
            worker.send(Item::Look);
        }
    }

    pub(super) fn enqueue(&self, worker: usize, task: Weak<dyn Spliced>) {
        self.workers[worker].send(Item::Pass(task));
    }

    /// Makes the worker of a splice notify its waiters. `false` if the worker has finished.
    pub(super) fn enqueue_waiting(&self, worker: usize, status: &Arc<dyn Waited>) -> bool {
        if self.closed.load(Ordering::SeqCst) {
            return false;
        }
        let worker = &self.workers[worker];
        worker.waiting.lock().push_back(status.clone());
        worker.send(Item::Look);
        // Either shut_down() has seen them, or this sees that the pool is closed.
        if self.closed.load(Ordering::SeqCst) && intact(Protection::LastWaiters) {
            while worker.notify_waiting() {}
        }
        true
    }

    /// Asks the workers that were started for a sign of life.
    pub(super) fn probe(&self) -> Probe {
        let started = match self.manual {
            true => self.workers.len(),
            false => *self.started.lock(),
        };
        let workers = &self.workers[..started];
        let probe = Probe::new(workers.iter().map(|worker| &worker.busy));
        workers.iter().for_each(Worker::wake);
        probe
    }

    pub(super) fn shut_down(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for worker in &self.workers {
            let tasks = worker.tasks.lock().take();
            let tasks = tasks.iter().filter(|_| intact(Protection::LastEnd));
            for task in tasks.filter_map(Weak::upgrade) {
                task.pool_closed();
            }
            while worker.notify_waiting() {}
            if intact(Protection::LastLook) {
                worker.send(Item::Look);
            }
        }
    }
}

#[derive(Debug)]
enum Item {
    /// Run a pass.
    Pass(Weak<dyn Spliced>),
    /// Timers have changed, waiters are to be notified, or the pool has been closed.
    Look,
}

#[derive(Debug)]
pub(super) struct Worker {
    sender: Sender<Item>,
    receiver: Receiver<Item>,
    pub(super) timers: Mutex<Timers<Weak<dyn Spliced>>, LEAF>,
    pub(super) tasks: Mutex<Tasks, LEAF>,
    /// Ends whose waiters are to be notified; for each there is a `Look` in the queue.
    waiting: Mutex<VecDeque<Arc<dyn Waited>>, LEAF>,
    pub(super) busy: Arc<Busy>,
}

/// Marks a worker's thread as busy while it exists.
struct Awake<'a>(&'a Busy, &'a Shared);

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        self.0.sleep(self.1.now());
    }
}

impl Worker {
    pub(super) fn new(epoch: Instant) -> Worker {
        let (sender, receiver) = unbounded();
        Worker {
            sender,
            receiver,
            timers: Mutex::default(),
            tasks: Mutex::default(),
            waiting: Mutex::default(),
            busy: Arc::new(Busy::new(epoch)),
        }
    }

    pub(super) fn stats(&self, now: Instant) -> WorkerStats {
        let live = |tasks: &[Weak<dyn Spliced>]| {
            let live = tasks.iter().filter(|task| task.strong_count() > 0);
            live.count()
        };
        WorkerStats {
            queued: self.receiver.len(),
            splices: live(&self.tasks.lock().tasks),
            busy: self.busy.time(now),
        }
    }

    /// Makes it complete a turn. It has one before it if there is work in its queue.
    fn wake(&self) {
        if self.receiver.is_empty() {
            self.send(Item::Look);
        }
    }

    fn send(&self, item: Item) {
        // Cannot fail: the receiver is beside the sender.
        self.sender.send(item).ok();
    }

    fn arm(&self, at: Instant, task: &Arc<dyn Spliced>) {
        let is_live = |task: &Weak<dyn Spliced>| task.strong_count() > 0;
        self.timers.lock().insert(at, Arc::downgrade(task), is_live);
    }

    /// The loop of the thread.
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
            self.busy.turned();
        }
    }

    /// Handles an item. `true` if there was work.
    fn work(&self, item: &Item) -> bool {
        match item {
            Item::Pass(task) => task.upgrade().map(|task| task.run()).is_some(),
            Item::Look => self.notify_waiting(),
        }
    }

    /// Notifies the waiters of one splice. `false` if there was none.
    fn notify_waiting(&self) -> bool {
        let status = self.waiting.lock().pop_front();
        status.map(|status| status.notify_waiters()).is_some()
    }

    /// Waits for work.
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
    pub(super) fn run_one(&self, shared: &Shared) -> bool {
        self.busy.turned();
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

    /// Handles one timer that is due.
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
pub(super) struct Tasks {
    pub(super) tasks: Vec<Weak<dyn Spliced>>,
    sweep_at: usize,
}

impl Tasks {
    fn add(&mut self, task: Weak<dyn Spliced>) {
        if self.tasks.len() >= self.sweep_at {
            self.tasks.retain(|task| task.strong_count() > 0);
            self.sweep_at = 64.max(2 * self.tasks.len());
        }
        self.tasks.push(task);
    }

    fn take(&mut self) -> Vec<Weak<dyn Spliced>> {
        std::mem::take(&mut self.tasks)
    }
}
