//! Frames of a TAP device.

use crate::link::tun::{self, FdBuilder, FdError, OpenError, Place, Tun};
use crate::link::virtio::Content;
use crate::link::{Capabilities, Frame, Interest, Link, Packet, ReceiveError, TransmitError};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::io;
use std::time::Instant;

/// A transport of frames over a TAP device of Linux, with the virtio-net header: the far end of the cable at an
/// interface of this host, which may have addresses or be a port of a bridge. Dropping it detaches from the interface,
/// which continues to exist.
///
/// All that [`tun`] says about TUN devices holds for it: super-frames and partial checksums in both directions,
/// settings of the device, errors, namespaces. Each of several queues is a transport of its own, for programs that
/// distribute frames themselves: an [`Edge`](super::Edge) is to have all frames of its guest. The administrator creates it with `ip tuntap add tap0 mode
/// tap` and `ip link set tap0 up`. Capabilities are those of frames, with 14 bytes for the link header. The kernel puts
/// tags of virtual LANs into the frames.
///
/// The interface of the host and the stack behind this transport are two hosts on one cable: they need different
/// hardware and IP addresses.
///
/// ```no_run
/// use sosplice::Stack;
/// use sosplice::link::ethernet::{Edge, EdgeConfig, Tap};
/// let tap = Tap::open("tap0")?;
/// let edge = Edge::new(tap, EdgeConfig::new("10.0.2.1/24".parse()?, "10.0.2.15".parse()?))?;
/// let stack = Stack::builder(edge).address("10.0.2.1/24".parse()?).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Tap(Tun);

impl Tap {
    /// Opens the existing TAP `name` in the network namespace of the calling thread, with offloads.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(name: &str) -> Result<Tap, OpenError> {
        Tap::builder(name).build()
    }

    /// Settings to open the TAP `name` with.
    ///
    /// ```no_run
    /// use sosplice::link::ethernet::Tap;
    /// let tap = Tap::builder("tap0").netns("lan").create(true).build()?;
    /// # Ok::<(), sosplice::link::tun::OpenError>(())
    /// ```
    pub fn builder(name: &str) -> tun::Builder<Tap> {
        tun::Builder::new(name, Content::Frames)
    }

    /// Takes over the descriptor of a TAP that another program has attached, as [`Tun::from_fd`].
    ///
    /// ```no_run
    /// use sosplice::link::{ethernet::Tap, tun::FdError};
    /// fn of_helper(descriptor: std::os::fd::OwnedFd) -> Result<Tap, FdError> {
    ///     Tap::from_fd(descriptor)
    /// }
    /// ```
    ///
    /// # Errors
    /// See [`FdError`]; the descriptor is closed then.
    pub fn from_fd(fd: impl Into<OwnedFd>) -> Result<Tap, FdError> {
        Tap::fd_builder().build(fd)
    }

    /// Settings to take over descriptors with, as [`Tun::fd_builder`].
    pub fn fd_builder() -> FdBuilder<Tap> {
        FdBuilder::new(Content::Frames)
    }

    /// The device's name and namespace.
    pub fn place(&self) -> &Place {
        self.0.place()
    }
}

impl FdBuilder<Tap> {
    /// Takes over an attached descriptor of a TAP device.
    ///
    /// # Errors
    /// See [`FdError`]; the descriptor is closed then.
    pub fn build(self, fd: impl Into<OwnedFd>) -> Result<Tap, FdError> {
        let mut all = self.build_queues(vec![fd.into()])?;
        Ok(all.pop().expect("invariant: one for each descriptor"))
    }

    /// Takes over several queues of one device, in their order.
    ///
    /// # Errors
    /// See [`FdError`]; all descriptors are closed then.
    pub fn build_queues(self, fds: Vec<OwnedFd>) -> Result<Vec<Tap>, FdError> {
        Ok(self.take_all(fds)?.into_iter().map(Tap).collect())
    }
}

impl tun::Builder<Tap> {
    /// Opens all the queues of a TAP, in their order.
    ///
    /// # Errors
    /// See [`OpenError`]; no queue is open then.
    pub fn build_queues(self) -> Result<Vec<Tap>, OpenError> {
        Ok(self.open_queues()?.into_iter().map(Tap).collect())
    }

    /// Opens the TAP, or a queue of it.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn build(self) -> Result<Tap, OpenError> {
        self.open().map(Tap)
    }
}

impl Link for Tap {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        self.0.receive(frames, max)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        self.0.transmit(packet)
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.0.wait(interest, deadline)
    }

    fn wake(&self) {
        self.0.wake();
    }

    fn descriptors(&self) -> Option<[BorrowedFd<'_>; 2]> {
        self.0.descriptors()
    }
}

impl AsFd for Tap {
    /// The device, to be polled along with other files.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
