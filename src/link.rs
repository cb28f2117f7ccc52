//! Links: where frames (IP packets) come from and go to.
//!
//! A [`Link`] gives batches of received [`Frame`]s and takes [`Packet`]s to send: a header and
//! references to the payload, written with one gathering write. It never drops for want of room: it
//! says [`TransmitError::Full`], and the stack tries again when [`Link::wait`] says so (a lost
//! segment costs a second). What cannot be received or sent, ever, is a lost packet; only a link that is
//! gone ends what is above it. [`memory`] is a pair in memory, `tun` (Linux) a TUN device with the
//! virtio-net header.
//!
//! A link's transmit never calls into a stack. Its locks are leaves.

pub mod memory;
mod packet;
#[cfg(target_os = "linux")]
pub mod tun;

pub use crate::interest::Interest;
pub use packet::{Checksum, Frame, Packet};

#[cfg(target_os = "linux")]
use crate::clock::{Clock, SystemClock};
#[cfg(target_os = "linux")]
use rustix::event::{PollFd, PollFlags, Timespec, poll};
#[cfg(target_os = "linux")]
use rustix::io::Errno;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// What a link can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Largest IP packet in bytes that goes out as one packet on the wire.
    pub mtu: usize,
    /// The link fills in transport checksums of what is sent ([`Checksum::Partial`] is understood).
    pub checksum: bool,
    /// Largest TCP/IPv4 packet in bytes that the link cuts into segments itself; `None` if it does
    /// not. Above 65,535 the link takes packets that are longer than their header can say: with a total
    /// length of 0.
    pub segment_v4: Option<usize>,
    /// The same for TCP/IPv6. Above 65,575 the link takes packets with a payload length of 0 and a jumbo
    /// payload option (RFC 2675).
    pub segment_v6: Option<usize>,
}

impl Capabilities {
    /// Those of a link that leaves checksums and segmentation to others.
    ///
    /// ```
    /// use sosplice::link::Capabilities;
    /// let plain = Capabilities::new(1500);
    /// assert_eq!((plain.mtu, plain.checksum, plain.segment_v4), (1500, false, None));
    /// let offloading = plain.checksum(true).segment_v4(65_535);
    /// assert_eq!(offloading.segment_v4, Some(65_535));
    /// ```
    pub const fn new(mtu: usize) -> Capabilities {
        Capabilities {
            mtu,
            checksum: false,
            segment_v4: None,
            segment_v6: None,
        }
    }

    /// Sets [`mtu`](field@Self::mtu).
    #[must_use]
    pub const fn mtu(mut self, bytes: usize) -> Capabilities {
        self.mtu = bytes;
        self
    }

    /// Sets [`checksum`](field@Self::checksum).
    #[must_use]
    pub const fn checksum(mut self, checksum: bool) -> Capabilities {
        self.checksum = checksum;
        self
    }

    /// Sets [`segment_v4`](field@Self::segment_v4).
    #[must_use]
    pub fn segment_v4(mut self, bytes: impl Into<Option<usize>>) -> Capabilities {
        self.segment_v4 = bytes.into();
        self
    }

    /// Sets [`segment_v6`](field@Self::segment_v6).
    #[must_use]
    pub fn segment_v6(mut self, bytes: impl Into<Option<usize>>) -> Capabilities {
        self.segment_v6 = bytes.into();
        self
    }
}

/// Both ends of a connection, as a link sees it from one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_structs, reason = "a connection has two ends")]
pub struct Flow {
    /// The end on this side of the link.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

/// Why a packet was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransmitError {
    /// No room now; [`Link::wait`] tells when there is again.
    #[error("the link is full: try again when it is writable")]
    Full,
    /// The packet cannot be sent and never will be, e.g. the kernel refused it. It counts as lost.
    #[error("the link refused the packet: {0}")]
    Refused(io::Error),
    /// The link is gone. The stack goes down as soon as what has arrived is received.
    #[error("the link is gone: {0}")]
    Gone(io::Error),
}

/// Why a frame was not received. What was received before it is in the list all the same.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// A frame could not be received, and is lost: the kernel cannot describe it, say. The next one may
    /// be whole. A stack counts it ([`Stats::receive_errors`](crate::stack::Stats)), and leaves a link
    /// that gives nothing else alone for a while, 1 ms at first and 128 ms at most.
    #[error("a frame was lost: {0}")]
    Lost(io::Error),
    /// The link is gone: nothing will ever arrive again.
    #[error("the link is gone: {0}")]
    Gone(io::Error),
}

/// Where frames come from and go to. Shared by all threads that send; one thread at a time receives
/// and waits.
///
/// What has several receive queues is a link for each of them
/// ([`Builder::queue`](crate::stack::Builder::queue)).
pub trait Link: Send + Sync + fmt::Debug {
    /// What the link can do. Constant.
    fn capabilities(&self) -> Capabilities;

    /// Appends up to `max` received frames to `frames`, without waiting. Returns how many.
    ///
    /// # Errors
    /// See [`ReceiveError`]. Frames may have been appended before.
    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError>;

    /// Sends one packet, without waiting.
    ///
    /// # Errors
    /// See [`TransmitError`].
    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError>;

    /// Sleeps until a frame can be received ([`Interest::READABLE`]) or a packet can be sent
    /// ([`Interest::WRITABLE`]), as far as it is asked for, or [`wake`](Self::wake) was called since the
    /// last `wait` returned, or `deadline` has passed. May return early. `None` waits without limit.
    ///
    /// # Errors
    /// If the link is gone.
    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()>;

    /// Ends the current or the next [`wait`](Self::wait). From any thread, with any lock held.
    fn wake(&self);

    /// What `wait` waits for, for a thread that waits for several links
    /// ([`Driver::run_all`](crate::stack::Driver::run_all)): a descriptor that is readable when a frame
    /// can be received, and writable when a packet can be sent, and one that is readable when `wake` was
    /// called. Whenever the second is, or the first says anything else, a `wait` that does not wait is to
    /// follow. `None`, if nothing else is said: only `wait` can wait.
    #[cfg(target_os = "linux")]
    fn descriptors(&self) -> Option<[std::os::fd::BorrowedFd<'_>; 2]> {
        None
    }

    /// If this is a queue of several: by which of them, counted from 0, this side receives what the
    /// other one sends on a connection. `None`: that is not known beforehand, or there is one queue
    /// only.
    ///
    /// A stack asks before it connects ([`TcpSocket::queue`](crate::TcpSocket::queue)); it
    /// takes a frame by any queue.
    fn steer(&self, flow: &Flow) -> Option<usize> {
        let _ = flow;
        None
    }
}

/// What poll(2) is to look for.
#[cfg(target_os = "linux")]
pub(crate) fn poll_flags(interest: Interest) -> PollFlags {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, interest.overlaps(Interest::READABLE));
    flags.set(PollFlags::OUT, interest.overlaps(Interest::WRITABLE));
    flags
}

/// Waits with poll(2) until something has happened to one of the descriptors, or `deadline` has passed. A
/// signal ends it too.
#[cfg(target_os = "linux")]
pub(crate) fn poll_until(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> Result<(), Errno> {
    let left = deadline.map(|at| at.saturating_duration_since(SystemClock.now()));
    let limit = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(fds, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A shared link: what a second stack beside ours transmits through
/// ([`Builder::on_unhandled`](crate::stack::Builder::on_unhandled)).
impl<L: Link + ?Sized> Link for Arc<L> {
    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        (**self).receive(frames, max)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        (**self).transmit(packet)
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        (**self).wait(interest, deadline)
    }

    fn wake(&self) {
        (**self).wake();
    }

    #[cfg(target_os = "linux")]
    fn descriptors(&self) -> Option<[std::os::fd::BorrowedFd<'_>; 2]> {
        (**self).descriptors()
    }

    fn steer(&self, flow: &Flow) -> Option<usize> {
        (**self).steer(flow)
    }
}
