//! A running splice: the state machine and the transfer, with locks, queue and timers (FreeBSD's
//! `so_splice_xfer` and `so_unsplice`).
//!
//! A [`Task`] is the diverting upcall on the source's `so_rcv` and on the sink's `so_snd`; those two
//! references keep it alive. Queues, run lists, timers and handles hold weak references to it, which
//! cannot refer to a later splice of the same sockets: no generation counter is needed.
//!
//! A pass: lock `so_rcv` (2) and `so_snd` (3), move, count, unlock; `output` of the sink; `rcvd` of
//! the source; leave RUNNING.
//!
//! The rules, with the models that check them (`splice::loom`):
//!
//! 1. A wake-up does not move bytes: it changes the state, and queues a pass if the splice was idle for
//!    that reason. So a splice is queued at most once.
//! 2. A wake-up during a pass is recorded, and the splice is queued again after the pass, even if the
//!    pass would make it idle (`wakeup_against_pass`, `eof_during_a_pass`).
//! 3. A pass moves bytes only while the splice is attached, which it checks with both buffers locked
//!    (`unsplice_against_worker`).
//! 4. The splice is attached to both buffers, and detached ([`Task::detach`]), with both locked:
//!    exactly one thread ends it, its count is final then, and both sides are woken
//!    (`unsplice_against_set_up`, `unsplice_against_users`).
//! 5. A timer that fires ends only the splice it was armed for, and checks with both buffers locked
//!    whether the splice was idle for that time (`unsplice_against_timer`).
//! 6. A forwarded end of file closes the sink with both buffers locked, so that no thread that is
//!    notified of the end can write after it (`eof_during_a_pass`).
//! 7. Threads and callbacks that wait for the end ([`Status`]) are notified once, with no lock held,
//!    when no pass is left that could still call a protocol: by that pass, or by the thread that has
//!    ended the splice (`unsplice_against_worker`, `close_against_everything`).

use super::machine::{self, Action, Event, Reason, State};
use super::token_bucket::TokenBucket;
use super::worker::{Shared, Spliced, Waited};
use super::xfer::{self, Moved, Stop, XferLimits};
use super::{Cause, Dispatch, End, Role};
use crate::callbacks::{self, Callback};
use crate::error::{Flavor, SoError};
use crate::events::{self, report};
use crate::lock::{Condvar, Guard, Mutex, RCV, SND, SPLICE};
use crate::protocol::{Protocol, Side, SocketEnd, SocketName, Upcall, Wakeup};
use crate::run_list::{self, Job};
use crate::sync::{Protection, intact};
use std::any::Any;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
#[cfg(feature = "async")]
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// One of the two sockets of a splice, without the handle that keeps it open.
pub(super) struct Endpoint {
    pub(super) end: Arc<SocketEnd>,
    pub(super) protocol: Arc<dyn Protocol>,
}

/// The progress of a splice, held by its handles.
pub(super) struct Status {
    id: u64,
    /// Weak: the handle of an ended splice must not keep the pool.
    pool: Weak<Shared>,
    worker: usize,
    progress: Mutex<Progress, SPLICE>,
    ended: Condvar,
}

struct Progress {
    state: State,
    end: Option<End>,
    passes: u64,
    /// When bytes were last moved (or the splice began); only with an idle timeout.
    moved_at: Option<Instant>,
    bucket: Option<TokenBucket>,
    /// The time of the valid timer; others in the queue are stale.
    armed: Option<Instant>,
    waiters: Vec<Waiter>,
}

/// A callback or waker for the end of the splice.
enum Waiter {
    Callback(Box<dyn FnOnce(End) + Send>),
    #[cfg(feature = "async")]
    Waker(Waker),
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Status")
            .field("id", &self.id)
            .field("worker", &self.worker)
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("state", &self.state)
            .field("end", &self.end)
            .field("passes", &self.passes)
            .finish_non_exhaustive()
    }
}

impl Progress {
    /// The end, once the last pass has finished.
    fn complete(&self) -> Option<End> {
        self.end.filter(|_| self.state == State::Ended)
    }
}

impl Status {
    pub(super) fn new(
        (pool, worker): (&Arc<Shared>, usize),
        moved_at: Option<Instant>,
        bucket: Option<TokenBucket>,
    ) -> Status {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Status {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            pool: Arc::downgrade(pool),
            worker,
            progress: Mutex::new(Progress {
                state: State::Queued,
                end: None,
                passes: 0,
                moved_at,
                bucket,
                armed: None,
                waiters: Vec::new(),
            }),
            ended: Condvar::new(),
        }
    }

    /// A number that no other splice has.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Its state and number of passes; `None` once its end is recorded.
    pub(super) fn standing(&self) -> Option<(State, u64)> {
        let progress = self.progress.lock();
        let standing = (progress.state, progress.passes);
        progress.end.is_none().then_some(standing)
    }

    /// Waits until the splice has ended and its last pass has finished.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> Option<End> {
        let mut progress = self.progress.lock();
        let mut timed_out = false;
        loop {
            let end = progress.complete();
            if end.is_some() || timed_out {
                return end;
            }
            timed_out = self.ended.wait_until(&mut progress, deadline);
        }
    }

    /// Calls `callback` when [`wait`](Self::wait) would return: now, or in the thread that ends the
    /// splice.
    pub(super) fn on_end(self: &Arc<Self>, callback: Box<dyn FnOnce(End) + Send>) {
        let is_over = {
            let mut progress = self.progress.lock();
            progress.waiters.push(Waiter::Callback(callback));
            progress.complete().is_some()
        };
        if is_over {
            self.notify_waiters();
        }
    }

    #[cfg(feature = "async")]
    pub(super) fn poll_end(&self, cx: &Context<'_>) -> Poll<End> {
        // A waker is foreign code: cloned with no lock held.
        let new = cx.waker().clone();
        let mut progress = self.progress.lock();
        if let Some(end) = progress.complete() {
            return Poll::Ready(end);
        }
        let mut wakers = progress.waiters.iter();
        let known =
            wakers.any(|waiter| matches!(waiter, Waiter::Waker(waker) if waker.will_wake(&new)));
        if !known {
            progress.waiters.push(Waiter::Waker(new));
        }
        Poll::Pending
    }

    /// The last pass has finished: reports the end and notifies all waiters. Called once, with no lock
    /// held.
    fn complete(self: &Arc<Self>) {
        let (end, anybody_waits) = {
            let progress = self.progress.lock();
            (progress.end, !progress.waiters.is_empty())
        };
        if let Some(end) = end {
            self.guard(|| self.report_end(end));
        }
        // Threads that come later see the end in the status.
        if anybody_waits {
            self.notify_waiters();
        }
    }

    fn report_end(&self, end: End) {
        let End {
            cause,
            bytes,
            passes,
            residual,
        } = end;
        let splice = self.id;
        report!(
            debug,
            "splice",
            splice,
            ?cause,
            bytes,
            passes,
            residual,
            "splice ended"
        );
    }

    /// Notifies all waiters. If this thread is running a callback, they are notified after it has
    /// returned.
    pub(super) fn notify_waiters(self: &Arc<Self>) {
        // Code that runs because of them may panic too.
        self.guard(|| callbacks::call(Waiting(self.clone())));
    }

    /// Runs foreign code. A panic ends only that code, and is counted by the pool if that still exists.
    fn guard(&self, foreign: impl FnOnce()) {
        match self.pool.upgrade() {
            Some(pool) => drop(pool.counts.guard(foreign)),
            None => drop(panic::catch_unwind(AssertUnwindSafe(foreign))),
        }
    }

    /// How it has ended, if it has.
    pub(super) fn end(&self) -> Option<End> {
        self.progress.lock().end
    }

    /// Bytes so far.
    pub(super) fn bytes(&self, task: &Weak<Task>) -> u64 {
        let task = task.upgrade();
        let progress = self.progress.lock();
        match (progress.end, &task) {
            (Some(end), _) => end.bytes,
            // While the end is not recorded, the source's counter belongs to this splice.
            (None, Some(task)) => task.source.end.spliced(),
            (None, None) => 0,
        }
    }
}

/// The waiters of an ended splice.
struct Waiting(Arc<Status>);

impl Callback for Waiting {
    /// Calls all of them, even if one panics.
    fn call(&mut self) {
        let Waiting(status) = self;
        let (end, waiters) = {
            let mut progress = status.progress.lock();
            (progress.complete(), std::mem::take(&mut progress.waiters))
        };
        let Some(end) = end else { return };
        for waiter in waiters {
            status.guard(|| match waiter {
                Waiter::Callback(callback) => callback(end),
                #[cfg(feature = "async")]
                Waiter::Waker(waker) => waker.wake(),
            });
        }
    }

    /// Moves the notification to the back of the queue of the splice's worker.
    fn hand_over(&mut self) -> bool {
        let Waiting(status) = self;
        let pool = status.pool.upgrade();
        pool.is_some_and(|pool| {
            let waited: Arc<dyn Waited> = status.clone();
            pool.enqueue_waiting(status.worker, &waited)
        })
    }
}

/// A running splice.
pub(super) struct Task {
    pub(super) me: Weak<Task>,
    pub(super) source: Endpoint,
    pub(super) sink: Endpoint,
    pub(super) status: Arc<Status>,
    pub(super) pool: Arc<Shared>,
    pub(super) worker: usize,
    pub(super) dispatch: Dispatch,
    pub(super) limit: Option<u64>,
    pub(super) idle: Option<Duration>,
    pub(super) expires: Option<Instant>,
    /// It has an idle time or a rate.
    pub(super) needs_time: bool,
    pub(super) flavor: Flavor,
    pub(super) lowat: usize,
    pub(super) addressed: bool,
    pub(super) forward_eof: bool,
    pub(super) forward_reset: bool,
}

/// OpenBSD's limit for the number of splices that bytes may pass.
const MAX_HOPS: u8 = 128;

/// A splice that was just detached: the work to be done without locks.
#[must_use]
struct Detached {
    end: End,
    upcalls: [Option<Arc<dyn Upcall>>; 2],
    /// No pass is left: waiters are to be notified.
    complete: bool,
}

/// The worker of the opposite direction; or that of the source's receiving thread, if both sockets have
/// several; or the next one in turn.
pub(super) fn worker_for(pool: &Arc<Shared>, source: &Endpoint, sink: &Endpoint) -> usize {
    let opposite = sink.end.rcv().diversion().cloned();
    if let Some(task) = opposite.as_ref().and_then(Task::of)
        && task.sink.end.id() == source.end.id()
        && Arc::ptr_eq(&task.pool, pool)
    {
        return task.worker;
    }
    let queues = source.protocol.queue().zip(sink.protocol.queue());
    let next = || pool.next_worker();
    queues.map_or_else(next, |(queue, _)| queue % pool.workers())
}

impl Task {
    /// The splice behind an upcall.
    pub(super) fn of(upcall: &Arc<dyn Upcall>) -> Option<&Task> {
        let upcall: &dyn Any = &**upcall;
        upcall.downcast_ref()
    }

    fn step(&self, event: Event) -> Action {
        let mut progress = self.status.progress.lock();
        let (state, action) = machine::step(progress.state, event);
        debug_assert_ne!(action, Action::Invalid, "{:?} + {event:?}", progress.state);
        progress.state = state;
        match action {
            Action::Run => progress.passes += 1,
            Action::Complete => self.status.ended.notify_all(),
            Action::Nothing | Action::Enqueue | Action::Invalid => {}
        }
        action
    }

    /// Called with no lock held.
    pub(super) fn report_set_up(self: &Arc<Self>) {
        let idle = events::seconds(self.idle);
        let task = self.clone();
        report!(
            debug,
            "splice",
            splice = task.status.id(),
            source = %task.source.name(),
            sink = %task.sink.name(),
            limit = task.limit,
            idle,
            worker = task.worker,
            "splice set up"
        );
    }

    fn complete(&self) {
        self.status.complete();
    }

    /// Queues a pass: in the run list of this thread, or on the splice's worker.
    fn schedule(&self) {
        let here = match self.dispatch {
            Dispatch::Worker => false,
            Dispatch::Direct => run_list::push(self.me.clone()),
            Dispatch::Adaptive if self.source.end.is_for_datagrams() => {
                run_list::offer_datagrams(self.me.clone())
            }
            Dispatch::Adaptive => run_list::offer(self.me.clone()),
        };
        if !here {
            self.hand_over();
        }
    }

    /// One pass. Called with no lock held.
    fn pass(&self) -> u64 {
        if self.step(Event::Start) != Action::Run {
            return 0;
        }
        let pass = Unwinding(self);
        let (Moved { bytes, datagrams }, (stop, ended), tells) = self.transfer();
        let moved = bytes as u64;
        let any = moved > 0 || datagrams > 0;
        let done = match stop {
            Stop::NoData => Event::DoneIdle(Reason::NoData),
            Stop::NoRoom => Event::DoneIdle(Reason::NoRoom),
            Stop::Rate => Event::DoneIdle(Reason::Rate),
            Stop::SinkGone
            | Stop::SourceFailed
            | Stop::MessageSize
            | Stop::Loop
            | Stop::Limit
            | Stop::Eof
            | Stop::Quantum => Event::DoneMore,
        };
        if !intact(Protection::WantsFirst) {
            self.sink.end.snd().wants_space = stop == Stop::NoRoom;
        }
        let idle = done != Event::DoneMore;
        let eof = ended == Some(Cause::Eof) && self.forward_eof;
        if eof && !intact(Protection::EofFirst) {
            self.sink.end.cantsendmore();
        }
        if any || eof {
            self.sink.protocol.output();
        }
        if tells && (any || idle) {
            self.source.protocol.rcvd(idle);
        }
        match ended {
            Some(Cause::SourceError(_)) if self.forward_reset => self.sink.protocol.abort(),
            Some(Cause::SinkError(_)) if self.forward_reset => self.source.protocol.abort(),
            _ => {}
        }
        std::mem::forget(pass);
        self.pool.counts.pass(moved, stop);
        match self.step(done) {
            Action::Enqueue => {
                self.pool.counts.requeued();
                self.schedule();
            }
            Action::Complete => self.complete(),
            Action::Nothing | Action::Run | Action::Invalid => {}
        }
        if stop == Stop::Rate
            && let Some(me) = self.me.upgrade()
        {
            let me: Arc<dyn Spliced> = me;
            self.pool.arm(&me);
        }
        moved
    }

    /// The locked part of a pass: moves and counts bytes; detaches the splice if it has ended. Returns also whether the
    /// source's protocol is to be told that bytes were read.
    fn transfer(&self) -> (Moved, (Stop, Option<Cause>), bool) {
        let now = self.needs_time.then(|| self.pool.now());
        let mut rcv = self.source.end.rcv();
        let mut snd = self.sink.end.snd();
        if !self.is_on(&rcv) && intact(Protection::OnBuffers) {
            return (Moved::default(), (Stop::Quantum, None), true);
        }
        // The error of the sink's own ended splice is not an error of the connection.
        let is_real = |error: &SoError| !error.is_of_splice();
        let sink_error = self.sink.end.error().filter(is_real);
        let source_error = self.source.end.error().filter(is_real);
        let terms = self.terms(&rcv, &snd, [source_error, sink_error], now);
        let transfer = match rcv.buf.holds_records() {
            true => xfer::transfer_records,
            false => xfer::transfer,
        };
        let (moved, stop) = transfer(&mut rcv.buf, &mut snd.buf, terms);
        // With both buffers locked: space that comes after this is seen.
        if intact(Protection::WantsFirst) {
            snd.wants_space = stop == Stop::NoRoom;
        }
        let tells = rcv.is_rcvd_wanted();
        let bytes = moved.bytes as u64;
        self.source.end.add_spliced(bytes);
        if moved != Moved::default() && now.is_some() {
            self.status.progress.lock().moved(bytes, now);
        }
        if stop == Stop::Rate {
            let next = rcv.buf.first_record().map_or(0, |(len, _)| len);
            self.status.progress.lock().waits_for(next);
        }
        let cause = match stop {
            Stop::SinkGone => sink_error.map_or(Cause::SinkShutdown, Cause::SinkError),
            Stop::Loop => Cause::Loop,
            Stop::MessageSize => Cause::MessageSize,
            Stop::Limit => Cause::Limit,
            Stop::SourceFailed => source_error.map_or(Cause::Eof, Cause::SourceError),
            Stop::Eof => {
                let error = self.source.end.error().filter(is_real);
                if self.forward_eof && error.is_none() && intact(Protection::EofFirst) {
                    // Before a thread is notified of the end and could write after it.
                    snd.buf.close();
                }
                error.map_or(Cause::Eof, Cause::SourceError)
            }
            Stop::NoData | Stop::NoRoom | Stop::Rate | Stop::Quantum => {
                return (moved, (stop, None), tells);
            }
        };
        let detached = self.detach(&mut rcv, &mut snd, cause);
        drop(snd);
        drop(rcv);
        // The pass has not finished, so waiters are not notified yet.
        drop(detached);
        (moved, (stop, Some(cause)), tells)
    }

    /// The terms of a pass.
    fn terms(
        &self,
        rcv: &Side,
        snd: &Side,
        [source_error, sink_error]: [Option<SoError>; 2],
        now: Option<Instant>,
    ) -> XferLimits {
        let counted = self.source.end.spliced();
        let allowance = now.and_then(|now| {
            let mut progress = self.status.progress.lock();
            let bucket = progress.bucket.as_mut();
            bucket.map(|bucket| (bucket.allowance(now), bucket.burst()))
        });
        let (allowance, burst) = allowance.unwrap_or((usize::MAX, usize::MAX));
        XferLimits {
            limit: self.limit.map(|limit| limit.saturating_sub(counted)),
            quantum: self.pool.quantum,
            allowance,
            burst,
            // More could never arrive if the window were held back until then.
            lowat: self.lowat.min(rcv.buf.ceiling() / 2),
            max_hops: (self.flavor == Flavor::OpenBsd).then_some(MAX_HOPS),
            connected: snd.is_connected(),
            failed: sink_error.is_some(),
            source_failed: source_error.is_some(),
            addressed: self.addressed,
        }
    }

    fn is_on(&self, rcv: &Guard<'_, Side, RCV>) -> bool {
        rcv.diversion().is_some_and(|upcall| {
            std::ptr::addr_eq(Arc::as_ptr(upcall), self) || !intact(Protection::Identity)
        })
    }

    /// Detaches the splice from both buffers and wakes both sides unconditionally. The caller drops the
    /// result after releasing the locks.
    fn detach(
        &self,
        rcv: &mut Guard<'_, Side, RCV>,
        snd: &mut Guard<'_, Side, SND>,
        cause: Cause,
    ) -> Detached {
        let upcalls = [rcv.take_diversion(), snd.take_diversion()];
        // First the values that are read without a lock: a thread that is notified of the end must see
        // them.
        self.pool.counts.ended(cause);
        if self.flavor == Flavor::OpenBsd
            && let Some(error) = left_on_source(cause)
            && !self.is_short_of_limit(cause)
        {
            self.source.end.set_splice_error(error);
        }
        let end = {
            let mut progress = self.status.progress.lock();
            let end = End {
                cause,
                bytes: self.source.end.spliced(),
                passes: progress.passes,
                residual: rcv.buf.len(),
            };
            progress.end = Some(end);
            end
        };
        self.source.end.source_unspliced(rcv, end);
        self.sink.end.sink_unspliced(snd, end);
        // Last: a thread that waits for the end returns after all notifications.
        let complete =
            self.step(Event::Detach) == Action::Complete || !intact(Protection::LastPass);
        Detached {
            end,
            upcalls,
            complete,
        }
    }

    /// It ends before a datagram that would exceed its limit.
    fn is_short_of_limit(&self, cause: Cause) -> bool {
        cause == Cause::Limit && self.limit != Some(self.source.end.spliced())
    }

    /// Ends the splice; `None` if it has ended before. Called with no lock held; never waits for a
    /// pass, so any thread may call it.
    pub(super) fn unsplice(&self, cause: Cause) -> Option<End> {
        self.unsplice_if(cause, |_| true)
    }

    fn unsplice_if(&self, cause: Cause, due: impl FnOnce(&Progress) -> bool) -> Option<End> {
        let mut rcv = self.source.end.rcv();
        let mut snd = self.sink.end.snd();
        let is_on = self.is_on(&rcv) || !intact(Protection::OneEnds);
        if !is_on || !due(&self.status.progress.lock()) {
            return None;
        }
        let detached = self.detach(&mut rcv, &mut snd, cause);
        drop(snd);
        drop(rcv);
        drop(detached.upcalls);
        if detached.complete {
            self.complete();
        }
        Some(detached.end)
    }

    /// The time for which a timer is to be armed, if it changed; the former timer becomes stale.
    pub(super) fn arm(&self) -> Option<Instant> {
        let mut progress = self.status.progress.lock();
        let next = self.next_timer(&progress)?;
        if progress.armed.is_some_and(|armed| armed <= next) {
            return None;
        }
        progress.armed = Some(next);
        Some(next)
    }

    /// Whether the timer that has fired for this time is the valid one.
    pub(super) fn disarm(&self, at: Instant) -> bool {
        let mut progress = self.status.progress.lock();
        let counts = progress.armed == Some(at);
        if counts {
            progress.armed = None;
        }
        counts
    }

    fn next_timer(&self, progress: &Progress) -> Option<Instant> {
        if progress.end.is_some() {
            return None;
        }
        let refilled = refill_deadline(progress);
        [refilled, self.idle_deadline(progress), self.expires]
            .into_iter()
            .flatten()
            .min()
    }

    fn idle_deadline(&self, progress: &Progress) -> Option<Instant> {
        progress.moved_at?.checked_add(self.idle?)
    }

    /// Its timer has fired, possibly too early, since moving bytes does not re-arm timers.
    pub(super) fn check_timers(&self, now: Instant) {
        let is_past = |deadline: Option<Instant>| deadline.is_some_and(|at| at <= now);
        if is_past(self.expires) {
            self.unsplice(Cause::Lifetime);
            return;
        }
        if self.idle.is_some() {
            let early = !intact(Protection::DueUnderLocks)
                && is_past(self.idle_deadline(&self.status.progress.lock()));
            self.unsplice_if(Cause::Idle, |progress| {
                early || is_past(self.idle_deadline(progress))
            });
        }
        let refilled = is_past(refill_deadline(&self.status.progress.lock()));
        if refilled && self.step(Event::Refill) == Action::Enqueue {
            self.schedule();
        }
    }
}

impl Progress {
    fn moved(&mut self, bytes: u64, now: Option<Instant>) {
        self.moved_at = self.moved_at.and(now);
        if let Some(bucket) = &mut self.bucket {
            bucket.take(bytes);
        }
    }

    /// It waits for its rate to allow a datagram of this length, or any bytes.
    fn waits_for(&mut self, bytes: usize) {
        if let Some(bucket) = &mut self.bucket {
            bucket.wait_for(bytes);
        }
    }
}

/// When a splice that waits for its rate may continue.
fn refill_deadline(progress: &Progress) -> Option<Instant> {
    let waits = progress.state == State::Idle(Reason::Rate);
    let bucket = progress.bucket.as_ref().filter(|_| waits);
    bucket.and_then(TokenBucket::refilled_at)
}

/// The `so_error` of the source after this cause in the OpenBSD flavor.
fn left_on_source(cause: Cause) -> Option<SoError> {
    match cause {
        Cause::Limit => Some(SoError::SpliceLimit),
        Cause::Idle | Cause::Lifetime => Some(SoError::SpliceTimedOut),
        Cause::Loop => Some(SoError::SpliceLoop),
        Cause::MessageSize => Some(SoError::MessageSize),
        Cause::SinkShutdown => Some(SoError::BrokenPipe),
        Cause::SinkError(error) => Some(error),
        Cause::Unspliced
        | Cause::Eof
        | Cause::SourceError(_)
        | Cause::SourceClosed
        | Cause::SinkClosed
        | Cause::PoolClosed
        | Cause::Panicked => None,
    }
}

impl Upcall for Task {
    fn wakeup(&self, what: Wakeup) {
        if self.step(Event::Wake(what)) == Action::Enqueue {
            self.schedule();
        }
    }

    fn closing(&self, end: &SocketEnd) {
        let is_source = end.id() == self.source.end.id();
        self.unsplice(if is_source {
            Cause::SourceClosed
        } else {
            Cause::SinkClosed
        });
    }

    fn joined(&self, role: Role) -> Option<SocketName> {
        Some(match role {
            Role::Source => self.sink.name(),
            Role::Sink => self.source.name(),
        })
    }
}

/// Guard for a pass: if a protocol panics, the splice ends and its waiters are notified. A pass that
/// finishes forgets the guard.
struct Unwinding<'a>(&'a Task);

impl Drop for Unwinding<'_> {
    fn drop(&mut self) {
        self.0.unsplice(Cause::Panicked);
        if self.0.step(Event::DoneMore) == Action::Complete {
            self.0.complete();
        }
    }
}

impl Job for Task {
    /// A panic must not end the thread, which may be a worker's, a driver's or the program's.
    fn run(&self) -> u64 {
        self.pool.counts.guard(|| self.pass()).unwrap_or(0)
    }

    fn hand_over(&self) {
        self.pool.enqueue(self.worker, self.me.clone());
    }
}

impl Spliced for Task {
    fn worker(&self) -> usize {
        self.worker
    }

    fn arm(&self) -> Option<Instant> {
        Task::arm(self)
    }

    fn disarm(&self, at: Instant) -> bool {
        Task::disarm(self, at)
    }

    fn check_timers(&self, now: Instant) {
        Task::check_timers(self, now);
    }

    fn pool_closed(&self) {
        self.unsplice(Cause::PoolClosed);
    }
}

impl Waited for Status {
    fn notify_waiters(self: Arc<Self>) {
        Status::notify_waiters(&self);
    }
}
