//! What is set while a poller has something to report: on Linux a descriptor.

#[cfg(all(any(target_os = "linux", target_os = "android"), not(sosplice_loom)))]
mod descriptor {
    use rustix::event::{EventfdFlags, eventfd};
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

    /// An eventfd, readable while it is set.
    #[derive(Debug)]
    pub(in crate::socket::poller) struct Signal(OwnedFd);

    impl Signal {
        pub(in crate::socket::poller) fn new() -> io::Result<Signal> {
            let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
            Ok(Signal(eventfd(0, flags)?))
        }

        pub(in crate::socket::poller) fn set(&self) {
            // Fails only if it is set 2^64 times.
            rustix::io::write(&self.0, &1u64.to_ne_bytes()).ok();
        }

        pub(in crate::socket::poller) fn clear(&self) {
            // Fails if it is not set.
            rustix::io::read(&self.0, &mut [0; 8]).ok();
        }
    }

    impl AsFd for Signal {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

#[cfg(all(any(target_os = "linux", target_os = "android"), not(sosplice_loom)))]
pub(super) use descriptor::Signal;

#[cfg(sosplice_loom)]
mod modelled {
    use crate::sync::atomic::{AtomicBool, Ordering};

    #[derive(Debug, Default)]
    pub(in crate::socket::poller) struct Signal(AtomicBool);

    impl Signal {
        pub(in crate::socket::poller) fn set(&self) {
            self.0.store(true, Ordering::SeqCst);
        }

        pub(in crate::socket::poller) fn clear(&self) {
            self.0.store(false, Ordering::SeqCst);
        }

        pub(in crate::socket::poller) fn is_set(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }
    }
}

#[cfg(sosplice_loom)]
pub(super) use modelled::Signal;

#[cfg(not(any(any(target_os = "linux", target_os = "android"), sosplice_loom)))]
mod none {
    /// There is none.
    #[derive(Debug)]
    pub(in crate::socket::poller) enum Signal {}

    impl Signal {
        pub(in crate::socket::poller) fn set(&self) {
            match *self {}
        }

        pub(in crate::socket::poller) fn clear(&self) {
            match *self {}
        }
    }
}

#[cfg(not(any(any(target_os = "linux", target_os = "android"), sosplice_loom)))]
pub(super) use none::Signal;
