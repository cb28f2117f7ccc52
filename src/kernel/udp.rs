//! UDP sockets of the operating system.

use super::datagrams::{Datagrams, Kind, PathError};
use crate::sockbuf::Addresses;
use crate::socket::Socket;
use crate::socket::poller::pollable;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::Deref;
use std::sync::Arc;

/// A UDP socket of the operating system, as a [`Socket`] for datagrams: it can be an end of a splice with a
/// [`UdpSocket`](crate::stack::UdpSocket) or a flow of a stack, with another one of these, or with a socket in memory.
///
/// * Connected ([`connect`](Self::connect)), it sends to its peer and receives from there only; or it is
///   [bound](Self::bind), and each datagram that it receives or sends has its [`Addresses`]: the peer's and, for a
///   host with several, this side's own. Such a socket can be the source of a splice, and with
///   [`Options::addresses`](crate::splice::Options::addresses) the sink.
/// * Datagrams are read and sent many at a time (`recvmmsg`, `sendmmsg`), and those with the same addresses and length
///   as one that the kernel cuts or has put together (`UDP_SEGMENT`, `UDP_GRO`), where the kernel and its devices do
///   that.
/// * It reads no more than `so_rcv` has room for; then the kernel's buffer fills, and the kernel drops. What is sent
///   waits in `so_snd` while the kernel has no room. One that is longer than the path's MTU is sent in fragments.
/// * What has happened to a datagram is an error of the next call, once, and of a splice; it ends the socket in no
///   case, and a datagram that cannot be sent does not hold up the others. ICMP errors are `so_error` of a connected
///   socket; for all sockets [`take_errors`](Self::take_errors) has them. A datagram that a device's full queue
///   drops is lost, and counted ([`unsent`](Self::unsent)).
///
/// Handles are cloned; dropping the last one closes the socket when what was to be sent is sent.
///
/// ```
/// use sosplice::kernel::KernelUdp;
/// use sosplice::{local, splice::Options};
/// use std::net::UdpSocket;
///
/// let server = UdpSocket::bind("127.0.0.1:0")?;
/// let relay = KernelUdp::connect(server.local_addr()?)?;
/// let (user, inside) = local::datagram_pair();
/// inside.splice_to(&relay, Options::default())?;
/// relay.splice_to(&inside, Options::default())?;
///
/// user.send(b"question")?;
/// let mut bytes = [0; 100];
/// let (len, from) = server.recv_from(&mut bytes)?;
/// assert_eq!((&bytes[..len], from), (&b"question"[..], relay.local_addr()?));
/// server.send_to(b"answer", from)?;
/// assert_eq!(user.recv(&mut bytes)?, 6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct KernelUdp {
    socket: Socket,
    pub(super) datagrams: Arc<Datagrams>,
}

impl KernelUdp {
    /// A socket that is connected to this address, from an address and port that the system chooses.
    ///
    /// # Errors
    /// Those of the operating system, for example that there is no route; the thread for readiness may not start.
    pub fn connect(peer: SocketAddr) -> io::Result<KernelUdp> {
        let any = match peer {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(peer)?;
        KernelUdp::from_std(socket)
    }

    /// A socket that is bound to this address and not connected. An unspecified address means all of the host;
    /// that of IPv6 means those of IPv4 too, unless the system's `net.ipv6.bindv6only` is set. Port 0 means one that
    /// the system chooses.
    ///
    /// ```
    /// use sosplice::{kernel::KernelUdp, sockbuf::Addresses};
    /// let echo = KernelUdp::bind("0.0.0.0:0".parse()?)?;
    /// let client = std::net::UdpSocket::bind("127.0.0.1:0")?;
    /// client.send_to(b"hello", ("127.0.0.1", echo.local_addr()?.port()))?;
    /// let mut bytes = [0; 100];
    /// let (len, addresses) = echo.recv_datagram(&mut bytes)?;
    /// assert_eq!(addresses.local, Some("127.0.0.1".parse()?));
    /// echo.send_datagram(&bytes[..len], addresses)?;
    /// assert_eq!(client.recv(&mut bytes)?, 5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of the operating system, for example that another socket has the address; the thread for readiness may
    /// not start.
    pub fn bind(address: SocketAddr) -> io::Result<KernelUdp> {
        KernelUdp::from_std(UdpSocket::bind(address)?)
    }

    /// Takes a socket over, connected or not. From now on it is non-blocking, has larger buffers, and reports the
    /// addresses of datagrams and ICMP errors.
    ///
    /// # Errors
    /// Those of the operating system; the thread for readiness may not start.
    pub fn from_std(socket: UdpSocket) -> io::Result<KernelUdp> {
        let peer = socket.peer_addr().ok();
        let (socket, datagrams) = Datagrams::start(socket, Kind::Udp, peer)?;
        Ok(KernelUdp { socket, datagrams })
    }

    /// Sends one datagram to an address: [`Socket::send_datagram`].
    ///
    /// # Errors
    /// As for [`Socket::send_datagram`]. What the kernel says to the datagram may be an error of a later call.
    pub fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        self.socket.send_datagram(bytes, Addresses::to(to))
    }

    /// Receives one datagram: returns how much of it was copied, and from where it came:
    /// [`Socket::recv_datagram`].
    ///
    /// # Errors
    /// As for [`Socket::recv_datagram`]; [`NotConnected`](io::ErrorKind::NotConnected) once the socket is shut down
    /// for reading.
    pub fn recv_from(&self, out: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (len, addresses) = self.socket.recv_datagram(out)?;
        let from = addresses.peer.ok_or(io::ErrorKind::NotConnected)?;
        Ok((len, from))
    }

    /// This side's address.
    ///
    /// # Errors
    /// `NotConnected` if the socket was closed.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.datagrams.live()?.local_addr()
    }

    /// The peer's address.
    ///
    /// # Errors
    /// `NotConnected` if there is none, or the socket was closed.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.datagrams.live()?.peer_addr()
    }

    /// Takes the ICMP errors about datagrams that were sent, the oldest first: at most the latest 64 since the call
    /// before.
    ///
    /// ```
    /// use sosplice::{error::SoError, kernel::KernelUdp};
    /// let nobody = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
    /// let socket = KernelUdp::connect(nobody)?;
    /// socket.send(b"hello?")?;
    /// let refused = socket.recv(&mut [0; 10]).unwrap_err();
    /// assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    /// let error = socket.take_errors()[0];
    /// assert_eq!((error.error, error.icmp), (SoError::ConnectionRefused, (3, 3)));
    /// assert_eq!((error.to, error.by), (Some(nobody), Some(nobody.ip())));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn take_errors(&self) -> Vec<PathError> {
        self.datagrams.take_errors()
    }

    /// Received datagrams that `so_rcv` could never hold, and were dropped. Those that the kernel drops are not among
    /// them.
    pub fn dropped(&self) -> u64 {
        self.end().with_rcv(|so_rcv| so_rcv.dropped())
    }

    /// Datagrams that could not be sent.
    pub fn unsent(&self) -> u64 {
        self.datagrams.unsent.get()
    }
}

impl Deref for KernelUdp {
    type Target = Socket;
    fn deref(&self) -> &Socket {
        &self.socket
    }
}

impl AsRef<Socket> for KernelUdp {
    fn as_ref(&self) -> &Socket {
        &self.socket
    }
}

pollable!(KernelUdp);
