//! Links: sources and destinations of IP packets.
//!
//! A [`Link`] gives batches of received [`Frame`]s and takes [`Packet`]s to send: a header and
//! references to the payload, written with one gathering write. A full link must not drop packets: it
//! returns [`TransmitError::Full`], and the stack tries again when [`Link::wait`] reports room (a lost
//! segment would cost a retransmission timeout). A packet that can never be received or sent is lost;
//! only a closed link ends the stack above it. [`memory`] is a pair in memory, `tun` (Linux, Android) a
//! TUN device, opened or taken over as a descriptor, `tun_rs` (with that feature) a device of the crate
//! tun-rs, [`ethernet`] makes links of packets from transports of Ethernet frames: TAP devices, packet
//! sockets, Unix sockets.
//!
//! A link's transmit never calls into a stack. Its locks are leaves.

pub mod ethernet;
pub mod memory;
mod packet;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod place;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub mod tun;
#[cfg(feature = "tun-rs")]
pub mod tun_rs;
#[cfg(any(target_os = "linux", target_os = "android", feature = "tun-rs"))]
mod virtio;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod waker;

pub use crate::interest::Interest;
pub use packet::{Checksum, Frame, Packet};

#[cfg(any(target_os = "linux", target_os = "android"))]
use crate::clock::{Clock, SystemClock};
use ipnet::IpNet;
#[cfg(any(target_os = "linux", target_os = "android"))]
use rustix::event::{PollFd, PollFlags, Timespec, poll};
#[cfg(any(target_os = "linux", target_os = "android"))]
use rustix::io::Errno;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

/// Capabilities of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Largest IP packet in bytes that is sent as one packet on the wire.
    pub mtu: usize,
    /// The link fills in transport checksums of packets to send ([`Checksum::Partial`]).
    pub checksum: bool,
    /// Largest TCP/IPv4 packet in bytes that the link cuts into segments itself; `None` if it does not.
    /// Above 65,535 the link takes packets with a total length of 0, whose length does not fit the
    /// header.
    pub segment_v4: Option<usize>,
    /// The same for TCP/IPv6. Above 65,575 the link takes packets with a payload length of 0 and a jumbo
    /// payload option (RFC 2675).
    pub segment_v6: Option<usize>,
    /// Largest UDP/IPv4 packet in bytes that the link cuts into datagrams itself, of at most 128 (UDP segmentation
    /// offload); `None` if it does not.
    pub datagrams_v4: Option<usize>,
    /// The same for UDP/IPv6.
    pub datagrams_v6: Option<usize>,
}

impl Capabilities {
    /// A link with this MTU, without checksum and segmentation offload.
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
            datagrams_v4: None,
            datagrams_v6: None,
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

    /// Sets [`datagrams_v4`](field@Self::datagrams_v4).
    #[must_use]
    pub fn datagrams_v4(mut self, bytes: impl Into<Option<usize>>) -> Capabilities {
        self.datagrams_v4 = bytes.into();
        self
    }

    /// Sets [`datagrams_v6`](field@Self::datagrams_v6).
    #[must_use]
    pub fn datagrams_v6(mut self, bytes: impl Into<Option<usize>>) -> Capabilities {
        self.datagrams_v6 = bytes.into();
        self
    }
}

/// The addresses and ports of a connection, seen from one side of a link.
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
    /// No room now; [`Link::wait`] returns when there is.
    #[error("the link is full: try again when it is writable")]
    Full,
    /// The packet can never be sent, e.g. the kernel refused it. It counts as lost.
    #[error("the link refused the packet: {0}")]
    Refused(io::Error),
    /// The link is gone. The stack goes down after receiving the frames that have arrived.
    #[error("the link is gone: {0}")]
    Gone(io::Error),
}

/// Why a frame was not received. Frames received before it are in the list.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// A frame could not be received and is lost, e.g. because the kernel cannot describe it. The next
    /// one may be intact. A stack counts the error ([`Stats::receive_errors`](crate::stack::Stats));
    /// while a link returns nothing else, the stack polls it with a back-off of 1 to 128 ms.
    #[error("a frame was lost: {0}")]
    Lost(io::Error),
    /// The link is gone: no frame will arrive any more.
    #[error("the link is gone: {0}")]
    Gone(io::Error),
}

/// An event of a link besides received frames, see [`Link::take_events`].
#[derive(Debug)]
#[non_exhaustive]
pub enum LinkEvent {
    /// The link has an address now: the stack adds it.
    AddressAdded(IpNet),
    /// The link has lost this address, e.g. to another host: the stack removes it, and the connections of the address end.
    AddressRemoved(IpAddr),
    /// An address is deprecated, or is not any more: the stack connects from others while it has any (RFC 4862 5.5.4).
    AddressDeprecated {
        /// The address.
        address: IpAddr,
        /// Whether it is deprecated.
        deprecated: bool,
    },
    /// A packet that the link had taken was not sent. The stack treats that like an ICMP error from the network.
    Undelivered {
        /// The packet.
        packet: Frame,
        /// Why it was not sent.
        why: Undelivered,
    },
}

/// Why a packet that a link had taken was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Undelivered {
    /// There is no route to its destination.
    NoRoute,
    /// The next host on the way to its destination does not answer.
    HostUnreachable,
    /// It is larger than this number of bytes, the present MTU.
    TooBig(usize),
}

/// A source and destination of frames. Shared by all threads that send; one thread at a time receives
/// and waits.
///
/// A device with several receive queues is one link for each of them
/// ([`Builder::queue`](crate::stack::Builder::queue)).
pub trait Link: Send + Sync + fmt::Debug {
    /// The link's capabilities. Constant.
    fn capabilities(&self) -> Capabilities;

    /// Appends up to `max` received frames to `frames`, without waiting. Returns their number.
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
    /// ([`Interest::WRITABLE`]), as `interest` asks, or [`wake`](Self::wake) was called since the last
    /// `wait` returned, or `deadline` has passed. May return early. `None` waits without limit.
    ///
    /// # Errors
    /// If the link is gone.
    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()>;

    /// When the link has work of its own, e.g. a message to repeat: [`receive`](Self::receive) is to be called then, even
    /// if no frame has arrived. In the time of the link's clock, which is to be that of the stack. A stack's driver
    /// heeds it ([`Driver::poll_at`](crate::stack::Driver::poll_at)); if it becomes earlier in a call of another
    /// thread, the link [wakes](Self::wake) the driver. `None` by default: it has none.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Ends the current or the next [`wait`](Self::wait). May be called from any thread, with any lock
    /// held.
    fn wake(&self);

    /// The descriptors behind `wait`, for a thread that polls several links
    /// ([`Driver::run_all`](crate::stack::Driver::run_all)): one that is readable when a frame can be
    /// received and writable when a packet can be sent, and one that is readable when `wake` was
    /// called. If the second is readable, or the first reports any other condition, the thread must
    /// then call `wait` without waiting. `None` by default: only `wait` can wait.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn descriptors(&self) -> Option<[std::os::fd::BorrowedFd<'_>; 2]> {
        None
    }

    /// Appends the events that have happened since the last call, and forgets them. None by default. A stack calls it
    /// when it is built, and each of its drivers after each `receive`, with no lock held.
    fn take_events(&self, events: &mut Vec<LinkEvent>) {
        let _ = events;
    }

    /// Whether the link finds the stack's addresses itself, and gives them as [events](Self::take_events): then the
    /// stack is built also with none. `false` by default. Constant.
    fn manages_addresses(&self) -> bool {
        false
    }

    /// Replaces the link's random numbers by those that follow from `seed`: the machine was copied
    /// ([`Stack::reseed`](crate::Stack::reseed), which calls it with no lock held). Nothing by default.
    fn reseed(&self, seed: u64) {
        let _ = seed;
    }

    /// For a link with several queues: the queue, counted from 0, on which this side receives packets
    /// of a connection. `None` if that is not known in advance, or there is only one queue.
    ///
    /// A stack uses it before it connects ([`TcpSocket::queue`](crate::TcpSocket::queue)); it accepts a
    /// frame from any queue.
    fn steer(&self, flow: &Flow) -> Option<usize> {
        let _ = flow;
        None
    }
}

/// The events for poll(2).
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn poll_flags(interest: Interest) -> PollFlags {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, interest.overlaps(Interest::READABLE));
    flags.set(PollFlags::OUT, interest.overlaps(Interest::WRITABLE));
    flags
}

/// Repeats a call that a signal interrupted.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn retry<R>(mut call: impl FnMut() -> Result<R, Errno>) -> Result<R, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Waits with poll(2) until one of the descriptors has an event, or `deadline` has passed, or a signal
/// arrives.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn poll_until(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> Result<(), Errno> {
    let left = deadline.map(|at| at.saturating_duration_since(SystemClock.now()));
    let limit = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(fds, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A shared link, through which a second stack beside this one can transmit
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

    fn deadline(&self) -> Option<Instant> {
        (**self).deadline()
    }

    fn wake(&self) {
        (**self).wake();
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn descriptors(&self) -> Option<[std::os::fd::BorrowedFd<'_>; 2]> {
        (**self).descriptors()
    }

    fn take_events(&self, events: &mut Vec<LinkEvent>) {
        (**self).take_events(events);
    }

    fn manages_addresses(&self) -> bool {
        (**self).manages_addresses()
    }

    fn reseed(&self, seed: u64) {
        (**self).reseed(seed);
    }

    fn steer(&self, flow: &Flow) -> Option<usize> {
        (**self).steer(flow)
    }
}
