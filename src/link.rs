//! Links: where frames (IP packets) come from and go to.
//!
//! A [`Link`] gives batches of received [`Frame`]s and takes [`Packet`]s to send: a header and
//! references to the payload, written with one gathering write. It never drops for want of room: it
//! says [`TransmitError::Full`], and the stack tries again when [`Link::wait`] says so (a lost
//! segment costs a second). [`memory`] is a pair in memory, `tun` (Linux) a TUN device with the
//! virtio-net header.
//!
//! A link's transmit never calls into a stack. Its locks are leaves.

pub mod memory;
#[cfg(target_os = "linux")]
pub mod tun;

use crate::buf::{Buf, Gather};
#[cfg(target_os = "linux")]
use crate::clock::{Clock, SystemClock};
#[cfg(target_os = "linux")]
use rustix::event::{PollFd, Timespec, poll};
#[cfg(target_os = "linux")]
use rustix::io::Errno;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Instant;

/// What a link can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Largest IP packet in bytes that goes out as one packet on the wire.
    pub mtu: usize,
    /// The link fills in TCP checksums of what is sent ([`Checksum::Partial`] is understood).
    pub checksum: bool,
    /// Largest TCP/IPv4 packet in bytes that the link cuts into segments itself; `None` if it does
    /// not.
    pub segment_v4: Option<usize>,
    /// The same for TCP/IPv6.
    pub segment_v6: Option<usize>,
}

/// A received IP packet. The first buffer holds all headers up to TCP's options; the payload may
/// begin in it and goes on in `rest`.
#[derive(Debug, Clone)]
pub struct Frame {
    /// The headers, and as much of the payload as lies behind them in memory.
    pub head: Buf,
    /// The rest of the payload.
    pub rest: Gather,
    /// The link vouches for the transport checksum.
    pub checksum_ok: bool,
}

impl Frame {
    /// Length of the whole packet in bytes.
    pub fn len(&self) -> usize {
        self.head.len() + self.rest.iter().map(Buf::len).sum::<usize>()
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole packet in one piece of memory.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.len());
        all.extend_from_slice(&self.head);
        self.rest.iter().for_each(|buf| all.extend_from_slice(buf));
        all
    }
}

/// State of the TCP checksum field of a packet to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// The field is right.
    Complete,
    /// The field holds the sum of the pseudo-header only; the link adds the rest. Only for links
    /// whose [`Capabilities::checksum`] is set.
    Partial,
}

/// An IP packet to send, by reference.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// IP header and transport header.
    pub header: &'a [u8],
    /// The payload, in order.
    pub payload: &'a [Buf],
    /// Length of the IP header: where the transport header begins.
    pub ip_header_len: usize,
    /// Who finishes the transport checksum.
    pub checksum: Checksum,
    /// To be cut into segments of this many payload bytes by the link.
    pub segment: Option<NonZeroU16>,
}

impl Packet<'_> {
    /// Length of the whole packet in bytes.
    pub fn len(&self) -> usize {
        self.header.len() + self.payload.iter().map(Buf::len).sum::<usize>()
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole packet in one piece of memory.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.len());
        all.extend_from_slice(self.header);
        self.payload
            .iter()
            .for_each(|buf| all.extend_from_slice(buf));
        all
    }
}

/// Both ends of a connection, as a link sees it from one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The end on this side of the link.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

/// Why a packet was not sent.
#[derive(Debug, thiserror::Error)]
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
    /// If the link is gone; nothing will ever arrive again.
    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> io::Result<usize>;

    /// Sends one packet, without waiting.
    ///
    /// # Errors
    /// See [`TransmitError`].
    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError>;

    /// Sleeps until a frame can be received, or, if `writable` is asked for, a packet can be sent,
    /// or [`wake`](Self::wake) was called since the last `wait` returned, or `deadline` has passed.
    /// May return early. `None` waits without limit.
    ///
    /// # Errors
    /// If the link is gone.
    fn wait(&self, writable: bool, deadline: Option<Instant>) -> io::Result<()>;

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
    /// A stack asks before it connects ([`TcpStream::connect_on`](crate::TcpStream::connect_on)); it
    /// takes a frame by any queue.
    fn steer(&self, flow: &Flow) -> Option<usize> {
        let _ = flow;
        None
    }
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
/// ([`Builder::unclaimed`](crate::stack::Builder::unclaimed)).
impl<L: Link + ?Sized> Link for Arc<L> {
    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> io::Result<usize> {
        (**self).receive(frames, max)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        (**self).transmit(packet)
    }

    fn wait(&self, writable: bool, deadline: Option<Instant>) -> io::Result<()> {
        (**self).wait(writable, deadline)
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
