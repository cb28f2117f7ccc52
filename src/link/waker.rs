//! Ends a `poll` of another thread.

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use rustix::io::Result;
use std::sync::atomic::{AtomicBool, Ordering};

/// An eventfd, and whether it was written.
#[derive(Debug)]
pub(super) struct Waker {
    pub(super) fd: OwnedFd,
    /// `fd` was written since it was last emptied; spares further system calls.
    woken: AtomicBool,
}

impl Waker {
    pub(super) fn new() -> Result<Waker> {
        Ok(Waker {
            fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            woken: AtomicBool::new(false),
        })
    }

    pub(super) fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            // Fails only if the counter is at its maximum, and then the wait ends as well.
            let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        }
    }

    /// To be called when the descriptor was found readable.
    pub(super) fn clear(&self) {
        // Emptied before the flag is cleared: the return covers a wake-up in between. The other order could leave
        // the flag set with an empty eventfd for ever.
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
        self.woken.swap(false, Ordering::AcqRel);
    }
}
