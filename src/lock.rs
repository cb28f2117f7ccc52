//! Locks with ranks, and the witness that checks them.
//!
//! | rank | lock |
//! |---:|---|
//! | 1 [`CONNECTION`] | ownership of one connection's control block |
//! | 2 [`RCV`] | `so_rcv` of a socket |
//! | 3 [`SND`] | `so_snd` of a socket |
//! | 4 [`SPLICE`] | the state of one splice |
//! | 5 [`LEAF`] | tables, queues, timers: never nest |
//! | 6 [`POOL`] | free frames: a buffer may be made and dropped anywhere |
//!
//! A thread takes only higher ranks than it holds, and one lock of each rank. Since every receive
//! buffer comes before every send buffer, A->B, B->A and A->A are safe together. `try_lock` never
//! waits, so it is exempt from the order, but the lock that it took counts from then on.
//!
//! In builds with debug assertions each thread remembers which ranks it holds and panics on a
//! breach, naming both ranks. In release builds the witness is compiled out.

use crate::sync::{RawCondvar, RawGuard, RawMutex};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Instant;

/// Rank of a connection's ownership.
pub(crate) const CONNECTION: u8 = 1;
/// Rank of a socket's receive buffer.
pub(crate) const RCV: u8 = 2;
/// Rank of a socket's send buffer.
pub(crate) const SND: u8 = 3;
/// Rank of a splice's state.
pub(crate) const SPLICE: u8 = 4;
/// Rank of locks that are never held while another lock is taken.
pub(crate) const LEAF: u8 = 5;
/// Rank of the frame pools, which are entered whenever a buffer is made or dropped.
pub(crate) const POOL: u8 = 6;

#[cfg(debug_assertions)]
mod witness {
    use crate::sync::thread_local;
    use std::cell::Cell;

    thread_local! {
        /// One bit for each rank that this thread holds.
        static HELD: Cell<u8> = const { Cell::new(0) };
    }

    pub(super) fn check(rank: u8) {
        let held = HELD.with(Cell::get);
        let above_or_same = held >> rank;
        assert!(
            above_or_same == 0,
            "lock order: rank {rank} wanted while rank {} is held",
            rank + u8::try_from(above_or_same.trailing_zeros()).unwrap_or(u8::MAX),
        );
    }

    pub(super) fn took(rank: u8) {
        HELD.with(|held| held.set(held.get() | 1 << rank));
    }

    pub(super) fn released(rank: u8) {
        // The thread-local may be destroyed already while a thread ends.
        let _ = HELD.try_with(|held| held.set(held.get() & !(1 << rank)));
    }

    pub(super) fn nothing_held() -> bool {
        HELD.with(Cell::get) == 0
    }
}

#[cfg(not(debug_assertions))]
mod witness {
    pub(super) fn check(_rank: u8) {}
    pub(super) fn took(_rank: u8) {}
    pub(super) fn released(_rank: u8) {}
}

/// Asserts, in builds with debug assertions, that this thread holds no lock of this crate.
///
/// [`Protocol`](crate::protocol::Protocol) methods and user callbacks are called without locks.
#[track_caller]
pub(crate) fn assert_none_held() {
    #[cfg(debug_assertions)]
    assert!(witness::nothing_held(), "a lock is held where none may be");
}

/// A mutual-exclusion lock of a fixed rank.
pub(crate) struct Mutex<T, const RANK: u8> {
    raw: RawMutex<T, RANK>,
}

impl<T, const RANK: u8> Mutex<T, RANK> {
    /// A lock around `value`.
    pub(crate) const fn new(value: T) -> Self {
        Mutex {
            raw: RawMutex::new(value),
        }
    }

    /// Waits for the lock.
    ///
    /// # Panics
    /// With debug assertions, if this thread already holds a lock of this rank or a higher one.
    #[track_caller]
    pub(crate) fn lock(&self) -> Guard<'_, T, RANK> {
        witness::check(RANK);
        let raw = self.raw.lock();
        witness::took(RANK);
        Guard { raw }
    }

    /// Takes the lock if it is free. Never waits, and is therefore exempt from the order of ranks
    /// (but not from the rule of one lock of each rank).
    pub(crate) fn try_lock(&self) -> Option<Guard<'_, T, RANK>> {
        let raw = self.raw.try_lock()?;
        witness::took(RANK);
        Some(Guard { raw })
    }

    /// The value; the exclusive reference shows that no thread holds the lock.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.raw.get_mut()
    }
}

impl<T, const RANK: u8> fmt::Debug for Mutex<T, RANK> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex")
            .field("rank", &RANK)
            .finish_non_exhaustive()
    }
}

impl<T: Default, const RANK: u8> Default for Mutex<T, RANK> {
    fn default() -> Self {
        Mutex::new(T::default())
    }
}

/// A held [`Mutex`].
pub(crate) struct Guard<'a, T, const RANK: u8> {
    raw: RawGuard<'a, T, RANK>,
}

impl<T, const RANK: u8> Deref for Guard<'_, T, RANK> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.raw
    }
}

impl<T, const RANK: u8> DerefMut for Guard<'_, T, RANK> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.raw
    }
}

impl<T, const RANK: u8> Drop for Guard<'_, T, RANK> {
    fn drop(&mut self) {
        witness::released(RANK);
    }
}

impl<T: fmt::Debug, const RANK: u8> fmt::Debug for Guard<'_, T, RANK> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// A condition variable for [`Mutex`]. A thread that waits must hold no other lock.
#[derive(Debug, Default)]
pub(crate) struct Condvar {
    raw: RawCondvar,
}

impl Condvar {
    /// A condition without waiting threads.
    pub(crate) const fn new() -> Self {
        Condvar {
            raw: RawCondvar::new(),
        }
    }

    /// Releases the lock, sleeps until notified (spurious wake-ups are possible), takes the lock again.
    pub(crate) fn wait<T, const RANK: u8>(&self, guard: &mut Guard<'_, T, RANK>) {
        self.raw.wait(&mut guard.raw);
    }

    /// As [`wait`](Self::wait), but no later than `deadline`; `true` if that has passed.
    /// `None` waits without limit.
    pub(crate) fn wait_until<T, const RANK: u8>(
        &self,
        guard: &mut Guard<'_, T, RANK>,
        deadline: Option<Instant>,
    ) -> bool {
        match deadline {
            Some(at) => self.raw.wait_until(&mut guard.raw, at).timed_out(),
            None => {
                self.raw.wait(&mut guard.raw);
                false
            }
        }
    }

    /// Wakes every waiter.
    pub(crate) fn notify_all(&self) {
        self.raw.notify_all();
    }

    /// Wakes one waiter.
    pub(crate) fn notify_one(&self) {
        self.raw.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_in_order_are_fine() {
        let rcv = Mutex::<_, RCV>::new(1);
        let snd = Mutex::<_, SND>::new(2);
        let a = rcv.lock();
        let b = snd.lock();
        assert_eq!(*a + *b, 3);
        drop(a);
        drop(b);
        assert_none_held();
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "rank 2 wanted while rank 3 is held")]
    fn witness_catches_the_wrong_order() {
        let rcv = Mutex::<_, RCV>::new(());
        let snd = Mutex::<_, SND>::new(());
        let _snd = snd.lock();
        let _rcv = rcv.lock();
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "rank 5 wanted while rank 5 is held")]
    fn witness_catches_two_of_one_rank() {
        let a = Mutex::<_, LEAF>::new(());
        let b = Mutex::<_, LEAF>::new(());
        let _a = a.lock();
        let _b = b.lock();
    }

    #[test]
    fn try_lock_is_exempt_from_the_order() {
        let connection = Mutex::<_, CONNECTION>::new(());
        let backlog = Mutex::<_, LEAF>::new(());
        let _leaf = backlog.lock();
        assert!(connection.try_lock().is_some());
    }
}
