//! Kernel sockets as ends of splices.
//!
//! A [`KernelStream`] is a connection of the operating system as a [`Socket`]: TCP, a unix stream socket, or vsock.
//! Received bytes are read directly into pooled frames, and `so_snd` is sent with gathering writes without copying. So
//! bytes can be spliced between a userspace connection and a kernel's, or between two of the kernel's. A
//! [`KernelSocket`] is configured before it connects.
//!
//! * It reads only as much as `so_rcv` has space for; then the kernel's own buffer fills and its window
//!   closes. So back-pressure is exact.
//! * Half-close, end of file and errors are passed on in both directions.
//! * A [`KernelUdp`] is a UDP socket, and a [`KernelPing`] sends pings: each for datagrams, which can be spliced
//!   with those of a stack (`datagrams`).
//! * One thread for the process, `sosplice:kernel`, waits for readiness (`reactor`). Reading and
//!   writing happen there, and in the threads that remove bytes from `so_rcv` or add some to `so_snd`.
//!
//! Each direction is served by one thread at a time (`Turn`); another thread sets a flag and returns.
//! No lock is held during system calls. Locks: `so_rcv` (2), `so_snd` (3), the descriptor's slot (5).

mod address;
mod conn;
mod datagrams;
mod options;
mod ping;
mod reactor;
mod socket;
mod udp;

pub use crate::keep_alive::KeepAlive;
pub use address::Address;
pub use datagrams::PathError;
pub use ping::KernelPing;
pub use socket::KernelSocket;
pub use udp::KernelUdp;

use crate::buf::Chain;
use crate::socket::poller::pollable;
use crate::socket::{Socket, blocking};
use conn::Conn;
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{AddressFamily, sockopt};
use socket::stream_family;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A connection of the operating system, as a [`Socket`]: TCP, a unix stream socket, or vsock.
///
/// They differ in what the peer sees of an [`abort`](Socket::abort), and of a close with unread bytes:
///
/// | | the peer reads | the peer writes |
/// |---|---|---|
/// | TCP | a reset (`ECONNRESET`) | a reset |
/// | unix | the end of file; `ECONNRESET` if the kernel still has bytes of the peer's, which it has while `so_rcv` is full | `EPIPE` |
/// | vsock | the end of file, or a reset | `EPIPE` or a reset |
///
/// A unix socket has no resets but that one. So who must know whether a unix peer has all bytes, needs a length or
/// an end mark in them. When a unix or vsock peer takes no more bytes, those that it sends can be read, and after its
/// end the error comes; if that is not at once, writing ends before.
///
/// ```
/// use sosplice::kernel::KernelStream;
/// use sosplice::{local, splice::Options};
/// use std::io::{Read, Write};
/// use std::net::{TcpListener, TcpStream};
///
/// let listener = TcpListener::bind("127.0.0.1:0")?;
/// let mut user = TcpStream::connect(listener.local_addr()?)?;
/// let inside = KernelStream::from_std(listener.accept()?.0)?;
/// let (a, b) = local::pair();
/// inside.splice_to(&a, Options::default())?;
/// user.write_all(b"from the kernel")?;
/// assert_eq!(b.recv_chain(100)?.to_vec(), b"from the kernel");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A descriptor of any kind, here that of a unix socket:
///
/// ```
/// use sosplice::kernel::KernelStream;
/// use sosplice::{local, splice::Options};
/// use std::io::Write;
/// use std::os::unix::net::UnixStream;
///
/// let (mut user, inside) = UnixStream::pair()?;
/// let inside = KernelStream::from_fd(inside)?;
/// let (a, b) = local::pair();
/// inside.splice_to(&a, Options::default())?;
/// user.write_all(b"from a unix socket")?;
/// assert_eq!(b.recv_chain(100)?.to_vec(), b"from a unix socket");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct KernelStream {
    socket: Socket,
    conn: Arc<Conn>,
}

/// Why the descriptor was not returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GiveBackError {
    /// The socket is part of a splice.
    #[error("the socket is spliced, unsplice it first")]
    Spliced,
    /// Written bytes were not taken by the kernel yet.
    #[error("bytes wait to be sent, try again when they are sent, without a shutdown")]
    Unsent,
    /// The connection has failed, or the descriptor was returned before.
    #[error(
        "there is no descriptor: the connection has failed, or the descriptor was returned before"
    )]
    Gone,
    /// It is a unix socket, or vsock.
    #[error("this is no TCP connection, take its descriptor with into_fd")]
    NotTcp,
}

impl KernelStream {
    /// Takes a TCP connection over. From now on it is non-blocking.
    ///
    /// # Errors
    /// Errors of the operating system, also if the reactor's thread cannot be started. The connection is closed then.
    pub fn from_std(stream: TcpStream) -> io::Result<KernelStream> {
        let fd = OwnedFd::from(stream);
        ioctl_fionbio(&fd, true)?;
        let family = sockopt::socket_domain(&fd)?;
        KernelStream::new(fd, family, true)
    }

    /// Takes a connection over, of TCP, a unix stream socket or vsock: an `OwnedFd`, or a type that is made into one,
    /// for example one that another process has passed on. From now on it is non-blocking. Descriptors that the peer
    /// of a unix socket sends along are closed. While another program keeps a duplicate open, an
    /// [`abort`](Socket::abort) does not reach the peer.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if it is no stream socket, or listens;
    /// [`NotConnected`](io::ErrorKind::NotConnected) if it is not connected ([`KernelSocket`] connects it), or the error
    /// that has ended the connection; errors of the operating system, also if the reactor's thread cannot be started.
    /// The descriptor is closed then.
    pub fn from_fd(socket: impl Into<OwnedFd>) -> io::Result<KernelStream> {
        let fd = socket.into();
        let family = stream_family(&fd)?;
        match rustix::net::getpeername(&fd) {
            Ok(_) => {}
            Err(Errno::NOTCONN) => {
                sockopt::socket_error(&fd)??;
                let why =
                    "the socket is not connected: KernelSocket::from_fd takes and connects it";
                return Err(io::Error::new(io::ErrorKind::NotConnected, why));
            }
            Err(errno) => return Err(errno.into()),
        }
        ioctl_fionbio(&fd, true)?;
        KernelStream::new(fd, family, true)
    }

    /// Connects to an address of the operating system's network, of a unix socket or of vsock, and waits until the
    /// connection is established. [`KernelSocket`] does the same with options that are set before.
    ///
    /// ```
    /// use sosplice::kernel::{Address, KernelStream};
    /// use std::os::linux::net::SocketAddrExt;
    /// use std::os::unix::net::{SocketAddr, UnixListener};
    /// let name = format!("sosplice-example-{}", std::process::id());
    /// let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    /// let stream = KernelStream::connect(Address::unix_abstract(&name)?)?;
    /// stream.send(b"hello")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Errors of the operating system. A vsock peer without a listener answers with a reset, and the kernel gives it
    /// two seconds for an answer.
    pub fn connect(address: impl Into<Address>) -> io::Result<KernelStream> {
        let address = address.into();
        KernelSocket::new(&address)?.connect(address)
    }

    /// Begins to connect and does not wait. The socket can be spliced at once: bytes for it are held
    /// until the connection is established.
    ///
    /// # Errors
    /// Immediate errors of the operating system, for example for a missing route. A unix socket connects at once, or
    /// fails with [`WouldBlock`](io::ErrorKind::WouldBlock) if the listener's backlog is full: the kernel has nothing
    /// that reports its end.
    pub fn start(address: impl Into<Address>) -> io::Result<KernelStream> {
        let address = address.into();
        KernelSocket::new(&address)?.start(address)
    }

    fn new(stream: OwnedFd, family: AddressFamily, connected: bool) -> io::Result<KernelStream> {
        let conn = Conn::open(stream, family, connected)?;
        let socket = Socket::new(conn.end().clone(), conn.clone());
        Ok(KernelStream { socket, conn })
    }

    /// This side's IP address and port.
    ///
    /// # Errors
    /// `NotConnected` if the connection has failed; [`Unsupported`](io::ErrorKind::Unsupported) for unix sockets and
    /// vsock, which have a [`local_address`](Self::local_address).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.local_address()?.ip()
    }

    /// The peer's IP address and port.
    ///
    /// # Errors
    /// `NotConnected` if the connection is not established; [`Unsupported`](io::ErrorKind::Unsupported) for unix sockets
    /// and vsock, which have a [`peer_address`](Self::peer_address).
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.peer_address()?.ip()
    }

    /// This side's address, of any kind.
    ///
    /// # Errors
    /// `NotConnected` if the connection has failed.
    pub fn local_address(&self) -> io::Result<Address> {
        Address::local(&*self.conn.live()?)
    }

    /// The peer's address, of any kind.
    ///
    /// # Errors
    /// `NotConnected` if the connection is not established.
    pub fn peer_address(&self) -> io::Result<Address> {
        Address::peer(&*self.conn.live()?)
    }

    /// As [`into_fd`](Self::into_fd), for TCP.
    ///
    /// ```
    /// use sosplice::kernel::KernelStream;
    /// use std::net::{TcpListener, TcpStream};
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let stream = KernelStream::from_std(TcpStream::connect(listener.local_addr()?)?)?;
    /// let (stream, unread) = stream.give_back()?;
    /// assert!(stream.peer_addr()? == listener.local_addr()? && unread.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// See [`GiveBackError`]; the connection is unchanged then, but this handle is closed.
    pub fn give_back(self) -> Result<(TcpStream, Chain), GiveBackError> {
        if !self.conn.is_ip() {
            return Err(GiveBackError::NotTcp);
        }
        let (fd, unread) = self.into_fd()?;
        Ok((TcpStream::from(fd), unread))
    }

    /// Returns the descriptor, in blocking mode and with the connection intact, and the bytes that were
    /// received and not read yet. For other handles the socket is closed.
    ///
    /// ```
    /// use sosplice::kernel::KernelStream;
    /// use std::os::unix::net::UnixStream;
    /// let stream = KernelStream::from_fd(UnixStream::pair()?.0)?;
    /// let (descriptor, unread) = stream.into_fd()?;
    /// let stream = UnixStream::from(descriptor);
    /// assert!(unread.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// See [`GiveBackError`]; the connection is unchanged then, but this handle is closed.
    pub fn into_fd(self) -> Result<(OwnedFd, Chain), GiveBackError> {
        let end = self.conn.end();
        {
            let rcv = end.rcv();
            let snd = end.snd();
            if rcv.is_diverted() || snd.is_diverted() {
                return Err(GiveBackError::Spliced);
            }
            if !snd.buf.is_empty() {
                return Err(GiveBackError::Unsent);
            }
        }
        let stream = self.conn.take().ok_or(GiveBackError::Gone)?;
        end.cantrcvmore();
        end.cantsendmore();
        let unread = end.rcv().buf.take_all();
        ioctl_fionbio(&stream, false).map_err(|_| GiveBackError::Gone)?;
        Ok((stream, unread))
    }
}

impl Deref for KernelStream {
    type Target = Socket;
    fn deref(&self) -> &Socket {
        &self.socket
    }
}

impl AsRef<Socket> for KernelStream {
    fn as_ref(&self) -> &Socket {
        &self.socket
    }
}

blocking!(KernelStream);
pollable!(KernelStream);
blocking!(&KernelStream);
#[cfg(any(feature = "futures-io", feature = "tokio"))]
crate::socket::aio::asynchronous!(KernelStream);
#[cfg(any(feature = "futures-io", feature = "tokio"))]
crate::socket::aio::asynchronous!(&KernelStream);

#[cfg(test)]
mod tests;
