//! loom's types, with the interface of the real ones.
//!
//! loom's objects belong to one run of a model, so they cannot be made in constants: each is made at
//! its first use. The data are beside them in a lock that is always free when loom grants access, since
//! all threads of a model are coroutines of one thread.

use super::Protection;
use ::loom::sync as model;
use std::cell::Cell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::Instant;

pub(crate) use ::loom::sync::atomic;

/// Thread-local data of the model's threads.
macro_rules! of_each_thread {
    ($(#[$attribute:meta])* static $name:ident: $type:ty = const { $init:expr };) => {
        ::loom::thread_local! { $(#[$attribute])* static $name: $type = $init; }
    };
}
pub(crate) use of_each_thread as thread_local;

/// The rank of locks that are only tried.
pub(super) const CONNECTION: u8 = 1;
const LEAF: u8 = 5;
/// The rank of locks that are not modelled.
pub(super) const POOL: u8 = 6;

/// A lock. Two ranks are special: that of the connections is only ever tried, which loom's own lock
/// does not model (it does not explore a try between two unlocks), so it is an atomic flag; the pools
/// are not modelled.
#[derive(Default)]
pub(crate) struct RawMutex<T, const RANK: u8> {
    lock: OnceLock<model::Mutex<()>>,
    flag: OnceLock<atomic::AtomicBool>,
    data: parking_lot::Mutex<T>,
}

/// A held lock. Fields are dropped in this order.
pub(crate) struct RawGuard<'a, T, const RANK: u8> {
    data: Option<parking_lot::MutexGuard<'a, T>>,
    _flag: Option<Flag<'a>>,
    lock: Option<model::MutexGuard<'a, ()>>,
    mutex: &'a RawMutex<T, RANK>,
}

impl<T, const RANK: u8> RawMutex<T, RANK> {
    pub(crate) const fn new(value: T) -> Self {
        RawMutex {
            lock: OnceLock::new(),
            flag: OnceLock::new(),
            data: parking_lot::Mutex::new(value),
        }
    }

    pub(crate) fn lock(&self) -> RawGuard<'_, T, RANK> {
        assert_ne!(RANK, CONNECTION, "a connection is only tried");
        let modelled = RANK != POOL && !is_failing();
        let lock = self.lock.get_or_init(model::Mutex::default);
        self.guard(modelled.then(|| lock.lock().expect("never poisoned")), None)
    }

    pub(crate) fn try_lock(&self) -> Option<RawGuard<'_, T, RANK>> {
        assert_eq!(RANK, CONNECTION, "locks of other ranks are not tried");
        let flag = self.flag.get_or_init(atomic::AtomicBool::default);
        let taken = flag.swap(true, Ordering::AcqRel);
        (!taken).then(|| self.guard(None, Some(Flag(flag))))
    }

    fn guard<'a>(
        &'a self,
        lock: Option<model::MutexGuard<'a, ()>>,
        flag: Option<Flag<'a>>,
    ) -> RawGuard<'a, T, RANK> {
        RawGuard {
            data: Some(self.take()),
            _flag: flag,
            lock,
            mutex: self,
        }
    }

    /// A failing model drops objects that its other threads may be using: avoids a second failure.
    fn take(&self) -> parking_lot::MutexGuard<'_, T> {
        match RANK {
            // Other models of the process use them too.
            POOL => self.data.lock(),
            _ => self.data.try_lock().expect("free when loom says so"),
        }
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }
}

impl<T, const RANK: u8> Deref for RawGuard<'_, T, RANK> {
    type Target = T;
    fn deref(&self) -> &T {
        self.data.as_ref().expect("never used while it waits")
    }
}

impl<T, const RANK: u8> DerefMut for RawGuard<'_, T, RANK> {
    fn deref_mut(&mut self) -> &mut T {
        self.data.as_mut().expect("never used while it waits")
    }
}

/// The flag of an owned connection.
struct Flag<'a>(&'a atomic::AtomicBool);

impl Drop for Flag<'_> {
    fn drop(&mut self) {
        if !is_failing() {
            self.0.store(false, Ordering::Release);
        }
    }
}

/// Whether the model has failed: drops are not modelled then.
fn is_failing() -> bool {
    std::thread::panicking()
}

/// A condition variable.
#[derive(Default)]
pub(crate) struct RawCondvar(OnceLock<model::Condvar>);

/// The result of a wait with a deadline.
pub(crate) struct Waited;

impl Waited {
    pub(crate) fn timed_out(&self) -> bool {
        false
    }
}

impl RawCondvar {
    pub(crate) const fn new() -> Self {
        RawCondvar(OnceLock::new())
    }

    pub(crate) fn wait<T, const RANK: u8>(&self, guard: &mut RawGuard<'_, T, RANK>) {
        guard.data = None;
        let lock = guard.lock.take().expect("a lock that is waited for");
        guard.lock = self.condvar().wait(lock).ok();
        guard.data = Some(guard.mutex.take());
    }

    pub(crate) fn wait_until<T, const RANK: u8>(
        &self,
        guard: &mut RawGuard<'_, T, RANK>,
        _deadline: Instant,
    ) -> Waited {
        self.wait(guard);
        Waited
    }

    pub(crate) fn notify_all(&self) {
        if !is_failing() {
            self.condvar().notify_all();
        }
    }

    pub(crate) fn notify_one(&self) {
        if !is_failing() {
            self.condvar().notify_one();
        }
    }

    fn condvar(&self) -> &model::Condvar {
        self.0.get_or_init(model::Condvar::default)
    }
}

impl fmt::Debug for RawCondvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RawCondvar")
    }
}

/// The channel of a worker: a queue under a lock. Both ends live as long as the worker.
pub(crate) mod channel {
    use super::{LEAF, RawCondvar, RawMutex};
    pub(crate) use crossbeam_channel::RecvTimeoutError;
    use crossbeam_channel::{RecvError, SendError, TryRecvError};
    use std::collections::VecDeque;
    use std::fmt;
    use std::sync::Arc;
    use std::time::Instant;

    struct Queue<T> {
        items: RawMutex<VecDeque<T>, LEAF>,
        arrived: RawCondvar,
    }

    pub(crate) struct Sender<T>(Arc<Queue<T>>);
    pub(crate) struct Receiver<T>(Arc<Queue<T>>);

    pub(crate) fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
        let queue = Arc::new(Queue {
            items: RawMutex::default(),
            arrived: RawCondvar::new(),
        });
        (Sender(queue.clone()), Receiver(queue))
    }

    impl<T> Sender<T> {
        pub(crate) fn send(&self, item: T) -> Result<(), SendError<T>> {
            self.0.items.lock().push_back(item);
            self.0.arrived.notify_one();
            Ok(())
        }
    }

    impl<T> Receiver<T> {
        pub(crate) fn recv(&self) -> Result<T, RecvError> {
            let mut items = self.0.items.lock();
            loop {
                if let Some(item) = items.pop_front() {
                    return Ok(item);
                }
                self.0.arrived.wait(&mut items);
            }
        }

        pub(crate) fn recv_deadline(&self, _deadline: Instant) -> Result<T, RecvTimeoutError> {
            self.recv().map_err(RecvTimeoutError::from)
        }

        pub(crate) fn try_recv(&self) -> Result<T, TryRecvError> {
            self.0.items.lock().pop_front().ok_or(TryRecvError::Empty)
        }

        pub(crate) fn len(&self) -> usize {
            self.0.items.lock().len()
        }

        pub(crate) fn is_empty(&self) -> bool {
            self.len() == 0
        }
    }

    impl<T> fmt::Debug for Sender<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Sender")
        }
    }

    impl<T> fmt::Debug for Receiver<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Receiver")
        }
    }
}

/// Threads of a model.
pub(crate) mod thread {
    pub(crate) use std::thread::available_parallelism;

    /// In words: loom's own 32 KiB are too few for a connection.
    const STACK: usize = 64 * 1024;

    pub(crate) struct Builder;

    impl Builder {
        #[expect(clippy::new_ret_no_self, reason = "loom's, with a larger stack")]
        pub(crate) fn new() -> ::loom::thread::Builder {
            ::loom::thread::Builder::new().stack_size(STACK)
        }
    }
}

std::thread_local! {
    static WITHOUT: Cell<Option<Protection>> = const { Cell::new(None) };
}

/// Whether this protection is active: unless the model switches it off.
pub(crate) fn intact(protection: Protection) -> bool {
    WITHOUT.get() != Some(protection)
}

/// Not modelled, as the pools: kept frames would outlive the model.
pub(crate) const KEEPS_FRAMES: bool = false;

/// Switches a protection off, in the models that this thread runs.
#[cfg(test)]
pub(crate) fn remove(protection: Option<Protection>) {
    WITHOUT.set(protection);
}
