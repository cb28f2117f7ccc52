//! One splice at work: the machine and the transfer, bound to locks, queue and time
//! (FreeBSD's `so_splice_xfer` and `so_unsplice`).
//!
//! A [`Task`] is the diverting upcall on the source's `so_rcv` and on the sink's `so_snd`; those two
//! references keep it alive. Queues, run lists, timers and handles hold it weakly, and what they
//! hold is this splice and no later one of the same sockets: its identity is its generation.
//!
//! A pass: lock `so_rcv` (2) and `so_snd` (3), move, count, unlock; `output` of the sink; `rcvd` of
//! the source; leave RUNNING. The splice ends when somebody takes it off both buffers, holding both
//! locks ([`Task::hide`]): exactly one can, after that no byte moves, and both sides are woken.

use super::machine::{self, Action, Event, Reason, State};
use super::pool::Shared;
use super::xfer::{self, Stop, Terms};
use super::{Cause, Dispatch, End};
use crate::lock::{Condvar, Guard, Mutex, RCV, SND, SPLICE};
use crate::protocol::{Protocol, Side, SocketEnd, Upcall, Wakeup};
use crate::run_list::{self, Job};
use std::any::Any;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// One of the two sockets of a splice, without the handle that keeps it open.
pub(super) struct Party {
    pub(super) end: Arc<SocketEnd>,
    pub(super) protocol: Arc<dyn Protocol>,
}

/// How far a splice is: what its handles keep.
#[derive(Debug)]
pub(super) struct Status {
    progress: Mutex<Progress, SPLICE>,
    ended: Condvar,
}

#[derive(Debug)]
struct Progress {
    state: State,
    end: Option<End>,
    passes: u64,
    /// When bytes were moved last (or the splice began); kept only for an idle timeout.
    moved_at: Option<Instant>,
}

impl Status {
    pub(super) fn new(now: Option<Instant>) -> Status {
        Status {
            progress: Mutex::new(Progress {
                state: State::Queued,
                end: None,
                passes: 0,
                moved_at: now,
            }),
            ended: Condvar::new(),
        }
    }

    /// Waits until the splice has ended and its last pass is over.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> Option<End> {
        let mut progress = self.progress.lock();
        let mut timed_out = false;
        loop {
            if progress.state == State::Ended {
                return progress.end;
            }
            if timed_out {
                return None;
            }
            timed_out = self.ended.wait_until(&mut progress, deadline);
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
            // While the end is not recorded, the counter of the source is this splice's.
            (None, Some(task)) => task.source.end.spliced(),
            (None, None) => 0,
        }
    }
}

/// A splice at work.
pub(super) struct Task {
    pub(super) me: Weak<Task>,
    pub(super) source: Party,
    pub(super) sink: Party,
    pub(super) status: Arc<Status>,
    pub(super) pool: Arc<Shared>,
    pub(super) worker: usize,
    pub(super) dispatch: Dispatch,
    pub(super) limit: Option<u64>,
    pub(super) idle: Option<Duration>,
    pub(super) expires: Option<Instant>,
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

    /// Has a pass run: in this thread soon, or on the splice's worker.
    fn schedule(&self) {
        let direct = self.dispatch == Dispatch::Direct && run_list::push(self.me.clone());
        if !direct {
            self.hand_over();
        }
    }

    /// One pass. Entered with no lock held.
    fn pass(&self) -> u64 {
        if self.step(Event::Start) != Action::Run {
            return 0;
        }
        let (moved, stop) = self.transfer();
        let done = match stop {
            Stop::NoData => Event::DoneIdle(Reason::NoData),
            Stop::NoRoom => Event::DoneIdle(Reason::NoRoom),
            Stop::SinkGone | Stop::Limit | Stop::Eof | Stop::Quantum => Event::DoneMore,
        };
        let idle = done != Event::DoneMore;
        if moved > 0 {
            self.sink.protocol.output();
        }
        if moved > 0 || idle {
            self.source.protocol.rcvd(idle);
        }
        self.pool.counts.pass(moved, stop);
        if self.step(done) == Action::Enqueue {
            self.pool.counts.requeued();
            self.schedule();
        }
        moved
    }

    /// The middle of a pass: moves and counts; ends the splice if that was its last one.
    fn transfer(&self) -> (u64, Stop) {
        let now = self.idle.map(|_| self.pool.now());
        let mut rcv = self.source.end.rcv();
        let mut snd = self.sink.end.snd();
        if !self.is_on(&rcv) {
            return (0, Stop::Quantum);
        }
        let sink_error = self.sink.end.error();
        let counted = self.source.end.spliced();
        let terms = Terms {
            limit: self.limit.map(|limit| limit.saturating_sub(counted)),
            quantum: self.pool.quantum,
            connected: snd.is_connected(),
            failed: sink_error.is_some(),
        };
        let (moved, stop) = xfer::transfer(&mut rcv.buf, &mut snd.buf, terms);
        let moved = moved as u64;
        self.source.end.add_spliced(moved);
        if moved > 0 && now.is_some() {
            self.status.progress.lock().moved_at = now;
        }
        let cause = match stop {
            Stop::SinkGone => sink_error.map_or(Cause::SinkShutdown, Cause::SinkError),
            Stop::Limit => Cause::Limit,
            Stop::Eof => {
                let error = self.source.end.error();
                error.map_or(Cause::Eof, Cause::SourceError)
            }
            Stop::NoData | Stop::NoRoom | Stop::Quantum => return (moved, stop),
        };
        let (_, hidden) = self.hide(&mut rcv, &mut snd, cause);
        drop(snd);
        drop(rcv);
        drop(hidden);
        (moved, stop)
    }

    fn is_on(&self, rcv: &Guard<'_, Side, RCV>) -> bool {
        rcv.diversion()
            .is_some_and(|upcall| std::ptr::addr_eq(Arc::as_ptr(upcall), self))
    }

    /// Takes the splice off both buffers and wakes both sides unconditionally. The caller drops the
    /// references after the locks.
    fn hide(
        &self,
        rcv: &mut Guard<'_, Side, RCV>,
        snd: &mut Guard<'_, Side, SND>,
        cause: Cause,
    ) -> (End, [Option<Arc<dyn Upcall>>; 2]) {
        let hidden = [rcv.take_diversion(), snd.take_diversion()];
        let end = {
            let mut progress = self.status.progress.lock();
            let end = End {
                cause,
                bytes: self.source.end.spliced(),
                passes: progress.passes,
            };
            progress.end = Some(end);
            end
        };
        // Nothing or Complete, and step() has told who waits.
        let _ = self.step(Event::Hide);
        self.pool.counts.ended(cause);
        self.source.end.sorwakeup(rcv, Wakeup::Data);
        self.sink.end.sowwakeup(snd, Wakeup::Space);
        (end, hidden)
    }

    /// Ends the splice; `None` if it has ended before. Entered with no lock held; never waits for
    /// a pass, so any thread may call it.
    pub(super) fn dissolve(&self, cause: Cause) -> Option<End> {
        self.dissolve_if(cause, |_| true)
    }

    fn dissolve_if(&self, cause: Cause, due: impl FnOnce(&Progress) -> bool) -> Option<End> {
        let mut rcv = self.source.end.rcv();
        let mut snd = self.sink.end.snd();
        if !self.is_on(&rcv) || !due(&self.status.progress.lock()) {
            return None;
        }
        let (end, hidden) = self.hide(&mut rcv, &mut snd, cause);
        drop(snd);
        drop(rcv);
        drop(hidden);
        Some(end)
    }

    /// When its timer is to look again.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        let progress = self.status.progress.lock();
        if progress.end.is_some() {
            return None;
        }
        let idle = self.idle_deadline(&progress);
        [idle, self.expires].into_iter().flatten().min()
    }

    fn idle_deadline(&self, progress: &Progress) -> Option<Instant> {
        progress.moved_at?.checked_add(self.idle?)
    }

    /// Its timer has fired: that may be early, since moved bytes do not touch timers.
    pub(super) fn check_timers(&self, now: Instant) {
        let is_past = |deadline: Option<Instant>| deadline.is_some_and(|at| at <= now);
        if is_past(self.expires) {
            self.dissolve(Cause::Lifetime);
        } else if self.idle.is_some() {
            self.dissolve_if(Cause::Idle, |progress| {
                is_past(self.idle_deadline(progress))
            });
        }
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
        self.dissolve(if is_source {
            Cause::SourceClosed
        } else {
            Cause::SinkClosed
        });
    }
}

impl Job for Task {
    fn run(&self) -> u64 {
        self.pass()
    }

    fn hand_over(&self) {
        self.pool.enqueue(self.worker, self.me.clone());
    }
}
