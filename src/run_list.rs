//! Run lists: jobs that a thread runs at the end of its present call or batch.
//!
//! A wake-up must not move bytes: it runs under a buffer's lock, and wake-ups would recurse without
//! end. It appends a [`Job`] to the run list of its thread, which is active during a batch of a driver
//! or a call of the program ([`scope`]), and is drained at the end of that, iteratively and with no
//! lock held. Jobs appended meanwhile are run too, within a [`Budget`]; the rest is handed over to a
//! worker. A thread without an active list takes no jobs ([`push`] returns false), and a lagging one
//! takes no jobs that a worker can do ([`offer`] returns false).
//!
//! The list belongs to its thread: no lock. A thread has none once its storage is destroyed at its end.

use crate::lock;
use crate::sync::thread_local;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Weak;

/// Deferred work. The list holds weak references: dropped jobs are skipped.
pub(crate) trait Job: Send + Sync {
    /// Does a bounded part of the work, with no lock held. Returns the bytes moved.
    fn run(&self) -> u64;

    /// Queues it on a worker.
    fn hand_over(&self);
}

/// The limit of a thread's run list before the rest is handed over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    jobs: usize,
    bytes: u64,
    /// Takes jobs that a worker can do, too.
    has_time: bool,
    /// Takes those too that only a thread which receives is to do.
    receives: bool,
}

impl Budget {
    /// A driver thread after a batch: a large budget.
    #[allow(dead_code, reason = "the stack's drivers use it")]
    pub(crate) const DRIVER: Budget = Budget {
        jobs: 256,
        bytes: 8 * 1024 * 1024,
        has_time: true,
        receives: true,
    };
    /// The same, while the driver lags behind.
    pub(crate) const LAGGING_DRIVER: Budget = Budget {
        has_time: false,
        ..Budget::DRIVER
    };
    /// A thread of the program at the end of a call: a small budget, so that it returns soon.
    pub(crate) const USER: Budget = Budget {
        jobs: 16,
        bytes: 256 * 1024,
        has_time: false,
        receives: false,
    };
}

/// A thread's list, which keeps its memory from one scope to the next.
struct List {
    active: bool,
    has_time: bool,
    receives: bool,
    jobs: VecDeque<Weak<dyn Job>>,
}

thread_local! {
    static LIST: RefCell<List> = const {
        RefCell::new(List {
            active: false,
            has_time: false,
            receives: false,
            jobs: VecDeque::new(),
        })
    };
}

/// `None` when the thread is ending and its storage is destroyed.
fn with_list<R>(change: impl FnOnce(&mut List) -> R) -> Option<R> {
    LIST.try_with(|list| change(&mut list.borrow_mut())).ok()
}

/// Calls `body` with an active run list and drains the list afterwards. Inside another scope it
/// only calls `body`: the outermost drains.
pub(crate) fn scope<R>(budget: Budget, body: impl FnOnce() -> R) -> R {
    let outermost = with_list(|list| {
        let outermost = !std::mem::replace(&mut list.active, true);
        if outermost {
            list.has_time = budget.has_time;
            list.receives = budget.receives;
        }
        outermost
    });
    if outermost != Some(true) {
        return body();
    }
    let rest = HandOver;
    let result = body();
    drain(&mut { budget });
    drop(rest);
    result
}

/// Appends a job to this thread's list. `false` if none is active.
pub(crate) fn push(job: Weak<dyn Job>) -> bool {
    with_list(|list| {
        if list.active {
            list.jobs.push_back(job);
        }
        list.active
    }) == Some(true)
}

/// As [`push`], for a job that a worker can do, too: `false` if this thread lags behind.
pub(crate) fn offer(job: Weak<dyn Job>) -> bool {
    with_list(|list| list.active && list.has_time) == Some(true) && push(job)
}

/// As [`push`], for a job that moves datagrams: `false` if this thread does not receive. One that lags behind takes it:
/// it would only receive more to drop.
pub(crate) fn offer_datagrams(job: Weak<dyn Job>) -> bool {
    with_list(|list| list.active && list.receives) == Some(true) && push(job)
}

fn next() -> Option<Weak<dyn Job>> {
    with_list(|list| list.jobs.pop_front()).flatten()
}

/// Runs the list within a budget, which it reduces.
pub(crate) fn drain(left: &mut Budget) {
    lock::assert_none_held();
    while left.jobs > 0 && left.bytes > 0 {
        let Some(job) = next() else { return };
        left.jobs -= 1;
        let moved = job.upgrade().map_or(0, |job| job.run());
        left.bytes = left.bytes.saturating_sub(moved);
    }
}

/// Ends the activity of the list, also when the body panics, and hands the rest over.
struct HandOver;

impl Drop for HandOver {
    fn drop(&mut self) {
        let rest = with_list(|list| {
            list.active = false;
            (!list.jobs.is_empty()).then(|| std::mem::take(&mut list.jobs))
        })
        .flatten();
        rest.iter()
            .flatten()
            .filter_map(Weak::upgrade)
            .for_each(|job| job.hand_over());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A job that always wants to run again.
    struct Endless {
        me: Weak<Endless>,
        runs: AtomicUsize,
        handed_over: AtomicUsize,
    }

    impl Endless {
        fn new() -> Arc<Endless> {
            Arc::new_cyclic(|me| Endless {
                me: me.clone(),
                runs: AtomicUsize::new(0),
                handed_over: AtomicUsize::new(0),
            })
        }

        fn counts(&self) -> (usize, usize) {
            let load = |count: &AtomicUsize| count.load(Ordering::Relaxed);
            (load(&self.runs), load(&self.handed_over))
        }
    }

    impl Job for Endless {
        fn run(&self) -> u64 {
            self.runs.fetch_add(1, Ordering::Relaxed);
            assert!(push(self.me.clone()), "the list is active while it drains");
            1
        }

        fn hand_over(&self) {
            self.handed_over.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn no_list_no_job() {
        let job = Endless::new();
        assert!(!push(job.me.clone()));
    }

    #[test]
    fn a_job_that_never_ends_is_handed_over() {
        let job = Endless::new();
        let budget = |jobs, bytes| Budget {
            jobs,
            bytes,
            ..Budget::USER
        };
        scope(budget(5, 99), || push(job.me.clone()));
        assert_eq!(job.counts(), (5, 1));
        scope(budget(99, 3), || push(job.me.clone()));
        assert_eq!(job.counts(), (8, 2));
        assert!(!push(job.me.clone()));
    }

    #[test]
    fn a_lagging_thread_takes_only_mandatory_jobs() {
        for (budget, takes) in [
            (Budget::USER, false),
            (Budget::LAGGING_DRIVER, false),
            (Budget::DRIVER, true),
        ] {
            let nobody: Weak<Endless> = Weak::new();
            scope(budget, || {
                assert_eq!(offer(nobody.clone()), takes);
                assert_eq!(offer_datagrams(nobody.clone()), budget.receives);
                // The outermost budget applies.
                scope(Budget::DRIVER, || assert_eq!(offer(nobody.clone()), takes));
                assert!(push(nobody.clone()));
            });
            assert!(!offer(nobody.clone()) && !offer_datagrams(nobody));
        }
    }

    #[test]
    fn the_outermost_scope_drains() {
        let job = Endless::new();
        let budget = Budget {
            jobs: 2,
            bytes: 99,
            ..Budget::USER
        };
        scope(budget, || {
            scope(budget, || push(job.me.clone()));
            assert_eq!(job.counts(), (0, 0));
        });
        assert_eq!(job.counts(), (2, 1));
    }

    #[test]
    fn a_dropped_job_is_skipped_and_a_panic_hands_over() {
        let (gone, kept) = (Endless::new(), Endless::new());
        let weak = gone.me.clone();
        scope(Budget::USER, move || {
            push(weak);
            drop(gone);
        });
        let result = std::panic::catch_unwind(|| {
            scope(Budget::USER, || {
                push(kept.me.clone());
                panic!("on purpose");
            });
        });
        assert!(result.is_err());
        assert_eq!(kept.counts(), (0, 1));
        assert!(!push(kept.me.clone()), "no list is left active");
    }
}
