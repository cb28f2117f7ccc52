//! A socket that is configured before it connects, and the ways to connect.

use super::{Address, KernelStream};
use crate::clock::{Clock, SystemClock};
use crate::socket::ConnectError;
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// A stream socket of the operating system that is not connected yet, so that it can be configured first: with a
/// mark (`SO_MARK`), a device (`SO_BINDTODEVICE`), a local address, by Android's `VpnService.protect`. It is given out
/// as a descriptor for that, and can be made from one.
///
/// ```
/// use rustix::net::{AddressFamily, SocketType, sockopt};
/// use sosplice::kernel::{Address, KernelSocket};
/// use std::net::TcpListener;
/// use std::time::Duration;
/// let listener = TcpListener::bind("127.0.0.1:0")?;
///
/// // Made by another program, or with another crate.
/// let made = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
/// sockopt::set_ip_tos(&made, 0x10)?;
/// let socket = KernelSocket::from_fd(made)?;
/// socket.connect_timeout(listener.local_addr()?, Duration::from_secs(5))?;
///
/// // Made here, and configured through its descriptor.
/// let to = Address::from(listener.local_addr()?);
/// let socket = KernelSocket::new(&to)?;
/// sockopt::set_socket_recv_buffer_size(&socket, 1 << 20)?;
/// let stream = socket.connect(to)?;
/// assert_eq!(stream.peer_addr()?, listener.local_addr()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "nothing is connected before connect or start"]
pub struct KernelSocket {
    fd: OwnedFd,
    family: AddressFamily,
}

impl KernelSocket {
    /// A socket of the same family as the address that it is to be connected to.
    ///
    /// # Errors
    /// Errors of the operating system, for example that it has no sockets of this family.
    pub fn new(to: &Address) -> io::Result<KernelSocket> {
        let family = to.family();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        Ok(KernelSocket { fd, family })
    }

    /// Takes a socket over that is not connected: an `OwnedFd`, or a type that is made into one. Its options stay as
    /// they are.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if it is no stream socket, or listens; errors of the operating
    /// system. The descriptor is closed then.
    pub fn from_fd(socket: impl Into<OwnedFd>) -> io::Result<KernelSocket> {
        let fd = socket.into();
        let family = stream_family(&fd)?;
        Ok(KernelSocket { fd, family })
    }

    /// Connects, and waits until the connection is established.
    ///
    /// # Errors
    /// Errors of the operating system: as for [`KernelStream::connect`], and
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if the address is of another family.
    pub fn connect(self, address: impl Into<Address>) -> io::Result<KernelStream> {
        self.connect_until(&address.into(), None)
    }

    /// As [`connect`](Self::connect), but waits no longer than `timeout`.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect) and [`KernelStream::connect_timeout`].
    pub fn connect_timeout(
        self,
        address: impl Into<Address>,
        timeout: Duration,
    ) -> io::Result<KernelStream> {
        if timeout.is_zero() {
            return Err(invalid(
                "a zero timeout: start() begins to connect and does not wait",
            ));
        }
        let address = address.into();
        let deadline = SystemClock.now().checked_add(timeout);
        self.connect_until(&address, deadline)
    }

    /// Begins to connect and does not wait. The socket can be spliced at once: bytes for it are held until the
    /// connection is established.
    ///
    /// # Errors
    /// Immediate errors of the operating system, as for [`KernelStream::start`].
    pub fn start(self, address: impl Into<Address>) -> io::Result<KernelStream> {
        let address = address.into();
        self.check(&address)?;
        ioctl_fionbio(&self.fd, true)?;
        let connected = match address.connect(self.fd.as_fd()) {
            Ok(()) => true,
            Err(Errno::INPROGRESS | Errno::INTR) => false,
            // A unix socket's attempt does not go on by itself.
            Err(Errno::AGAIN) if self.family == AddressFamily::UNIX => {
                let why =
                    format!("the backlog of {address} is full: connect() waits, or try again");
                return Err(io::Error::new(io::ErrorKind::WouldBlock, why));
            }
            Err(errno) => return Err(errno.into()),
        };
        KernelStream::new(self.fd, self.family, connected)
    }

    fn connect_until(
        self,
        address: &Address,
        deadline: Option<Instant>,
    ) -> io::Result<KernelStream> {
        if self.family == AddressFamily::UNIX {
            self.check(address)?;
            return self.wait_for_backlog(address, deadline);
        }
        let stream = self.start(address.clone())?;
        stream.wait_connected(deadline)?;
        Ok(stream)
    }

    /// There is no readiness to wait for while a unix listener's backlog is full, so the kernel waits, in this
    /// thread, for as long as `SO_SNDTIMEO` allows.
    fn wait_for_backlog(
        self,
        address: &Address,
        deadline: Option<Instant>,
    ) -> io::Result<KernelStream> {
        let before = sockopt::socket_timeout(&self.fd, Timeout::Send)?;
        ioctl_fionbio(&self.fd, false)?;
        loop {
            let left =
                deadline.map(|deadline| deadline.saturating_duration_since(SystemClock.now()));
            // Zero would mean for ever.
            let left = left.map(|left| left.max(Duration::from_micros(1)));
            sockopt::set_socket_timeout(&self.fd, Timeout::Send, left)?;
            match address.connect(self.fd.as_fd()) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(ConnectError::Pending.into()),
                Err(errno) => return Err(errno.into()),
            }
        }
        sockopt::set_socket_timeout(&self.fd, Timeout::Send, before)?;
        ioctl_fionbio(&self.fd, true)?;
        KernelStream::new(self.fd, self.family, true)
    }

    fn check(&self, address: &Address) -> io::Result<()> {
        let (own, other) = (self.family, address.family());
        match own == other {
            true => Ok(()),
            false => Err(invalid(&format!(
                "{address} is of another family than the socket: make one for it"
            ))),
        }
    }
}

impl AsFd for KernelSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<KernelSocket> for OwnedFd {
    fn from(socket: KernelSocket) -> OwnedFd {
        socket.fd
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// The family of a descriptor that is a stream socket and does not listen.
pub(super) fn stream_family(fd: &OwnedFd) -> io::Result<AddressFamily> {
    let kind = sockopt::socket_type(fd).map_err(|errno| match errno {
        Errno::NOTSOCK => invalid("the descriptor is no socket"),
        errno => errno.into(),
    })?;
    if kind != SocketType::STREAM {
        return Err(invalid("the descriptor is no stream socket"));
    }
    if sockopt::socket_acceptconn(fd)? {
        return Err(invalid(
            "the socket listens: accept a connection, and use that",
        ));
    }
    Ok(sockopt::socket_domain(fd)?)
}
