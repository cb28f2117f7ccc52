//! The registrations with changes, and how a waiting thread and a descriptor learn of them.
//!
//! The signal is set while the list is not empty. It is set for the first entry, after the list's lock is released,
//! and cleared when a wait leaves the list empty, *under* that lock: an entry that is added meanwhile sets it
//! afterwards (model: `loom`). A thread that is slow to set it may do so when its entry was taken already; the next
//! wait finds nothing then, and clears it.

use super::signal::Signal;
use crate::lock::{Condvar, LEAF, Mutex};
use crate::sync::{Protection, intact};
use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::Instant;

/// The registrations with changes, each at most once.
#[derive(Debug)]
pub(super) struct ReadyList<R> {
    pub(super) ready: Mutex<Ready<R>, LEAF>,
    changed: Condvar,
}

#[derive(Debug)]
pub(super) struct Ready<R> {
    pub(super) entries: VecDeque<R>,
    pub(super) woken: bool,
    signal: Option<Arc<Signal>>,
    /// The signal is set, or will be by the thread that has added the first entry.
    signalled: bool,
}

impl<R> Default for ReadyList<R> {
    fn default() -> ReadyList<R> {
        let ready = Ready {
            entries: VecDeque::new(),
            woken: false,
            signal: None,
            signalled: false,
        };
        ReadyList {
            ready: Mutex::new(ready),
            changed: Condvar::default(),
        }
    }
}

impl<R> Ready<R> {
    fn is_idle(&self) -> bool {
        self.entries.is_empty() && !self.woken
    }
}

impl<R> ReadyList<R> {
    pub(super) fn push(&self, entry: R) {
        self.change(|ready| ready.entries.push_back(entry));
    }

    pub(super) fn wake(&self) {
        self.change(|ready| ready.woken = true);
    }

    /// Moves entries that still have events to the back. Another waiting thread continues with the
    /// list.
    pub(super) fn give_back(&self, entries: &mut Vec<R>) {
        self.change(|ready| ready.entries.extend(entries.drain(..)));
    }

    /// Notifies one waiting thread if there is something then, and sets or clears the signal.
    fn change(&self, change: impl FnOnce(&mut Ready<R>)) {
        let mut ready = self.ready.lock();
        change(&mut ready);
        if ready.is_idle() {
            if let Some(signal) = ready.signal.clone() {
                ready.signalled = false;
                if !intact(Protection::ClearLocked) {
                    drop(ready);
                }
                signal.clear();
            }
            return;
        }
        let first = !mem::replace(&mut ready.signalled, true);
        let signal = ready.signal.clone().filter(|_| first);
        drop(ready);
        self.changed.notify_one();
        if let Some(signal) = signal {
            signal.set();
        }
    }

    /// Waits for entries and takes some. `true` if the time is over, or [`wake`](Self::wake) was
    /// called, so that the wait must return now.
    pub(super) fn take(&self, into: &mut Vec<R>, max: usize, until: Option<Instant>) -> bool {
        let mut ready = self.ready.lock();
        let mut is_over = false;
        loop {
            is_over |= mem::take(&mut ready.woken);
            if is_over || !ready.entries.is_empty() {
                let count = ready.entries.len().min(max);
                into.extend(ready.entries.drain(..count));
                return is_over;
            }
            is_over = self.changed.wait_until(&mut ready, until);
        }
    }

    /// The signal; the first call makes it.
    #[cfg(any(any(target_os = "linux", target_os = "android"), sosplice_loom))]
    pub(super) fn signal<E>(
        &self,
        make: impl FnOnce() -> Result<Signal, E>,
    ) -> Result<Arc<Signal>, E> {
        let present = self.ready.lock().signal.clone();
        if let Some(signal) = present {
            return Ok(signal);
        }
        let made = Arc::new(make()?);
        let mut ready = self.ready.lock();
        let signal = ready.signal.get_or_insert(made).clone();
        // Entries that came before are no news to `change`.
        ready.signalled = !ready.is_idle();
        if ready.signalled {
            signal.set();
        }
        Ok(signal)
    }
}

#[cfg(test)]
mod loom;
