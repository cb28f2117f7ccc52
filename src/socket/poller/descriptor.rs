//! A poller as a descriptor, for loops that wait for other descriptors too.

use super::Poller;
use super::signal::Signal;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

/// A [`Poller`] that is a descriptor: it can be registered with epoll, mio, tokio or `poll(2)`. Handles are cloned.
///
/// It is readable while [`wait`](Poller::wait) has something to report or to return for: also a level that still holds,
/// and a [`wake`](Poller::wake). It is never written, and to read it is for [`wait`](Poller::wait) alone. When it is
/// readable, `wait` with a zero timeout has the events; it may find none, if they were taken or are gone meanwhile, and
/// then the descriptor is not readable any more. For edge-triggered loops (mio, tokio's `AsyncFd`) repeat that until
/// it finds none, and watch sockets with [`Mode::Edge`](super::Mode::Edge).
///
/// ```
/// use rustix::event::{PollFd, PollFlags, Timespec, poll};
/// use sosplice::socket::poller::{Events, Interest, Mode, Poller, Token};
/// use sosplice::local;
/// use std::time::Duration;
///
/// let (a, b) = local::pair();
/// let poller = Poller::new().descriptor()?;
/// poller.add(&b, Token(1), Interest::READABLE, Mode::Level)?;
/// let is_readable = || {
///     let mut descriptors = [PollFd::new(&poller, PollFlags::IN)];
///     poll(&mut descriptors, Some(&Timespec::default())).map(|count| count == 1)
/// };
/// let mut events = Events::default();
///
/// // The new registration was not looked at yet.
/// assert_eq!(poller.wait(&mut events, Some(Duration::ZERO))?, 0);
/// assert!(!is_readable()?);
/// a.send(b"hello")?;
/// assert!(is_readable()?);
/// assert_eq!(poller.wait(&mut events, Some(Duration::ZERO))?, 1);
/// assert!(is_readable()?, "the level holds");
/// b.recv(&mut [0; 5])?;
/// assert_eq!(poller.wait(&mut events, Some(Duration::ZERO))?, 0);
/// assert!(!is_readable()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct PollerFd {
    poller: Poller,
    signal: Arc<Signal>,
}

impl Poller {
    /// This poller as a descriptor (an eventfd), which all handles have in common. From now on the first change after
    /// a wait, and the wait that takes the last one, cost a system call each.
    ///
    /// # Errors
    /// Errors of the operating system: no descriptor is left.
    pub fn descriptor(&self) -> io::Result<PollerFd> {
        let signal = self.list.signal(Signal::new)?;
        let poller = self.clone();
        Ok(PollerFd { poller, signal })
    }
}

impl Deref for PollerFd {
    type Target = Poller;
    fn deref(&self) -> &Poller {
        &self.poller
    }
}

impl AsFd for PollerFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }
}

impl AsRawFd for PollerFd {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
