//! The real types.

use super::Protection;

pub(crate) use std::sync::atomic;
pub(crate) use std::{thread, thread_local};

/// A lock; the rank is for [`lock`](crate::lock).
pub(crate) type RawMutex<T, const RANK: u8> = parking_lot::Mutex<T>;
pub(crate) type RawGuard<'a, T, const RANK: u8> = parking_lot::MutexGuard<'a, T>;
pub(crate) use parking_lot::Condvar as RawCondvar;

/// The channel of a worker.
pub(crate) mod channel {
    pub(crate) use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
}

/// Whether this protection is active: always.
pub(crate) const fn intact(_protection: Protection) -> bool {
    true
}

/// Whether a thread at work keeps free frames for itself.
pub(crate) const KEEPS_FRAMES: bool = true;
