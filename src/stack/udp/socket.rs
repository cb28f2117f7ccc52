//! The program's handle of a UDP socket or flow.

use crate::error::SoError;
use crate::protocol::{Protocol, SocketEnd};
use crate::sockbuf::{Addresses, Datagram};
use crate::socket::Socket;
use crate::socket::poller::pollable;
use crate::stack::Stack;
use crate::stack::stream::{each, hop_limit};
use crate::stack::udp::{HIWAT, LIMIT, NEVER};
use crate::udp::{Host, Kind, Names, Transport, Udp};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A UDP socket of a stack, in the shape of [`std::net::UdpSocket`], or a flow that a
/// [`UdpListener`](crate::stack::UdpListener) has accepted.
///
/// It is a [`Socket`] (to which it dereferences), so it has timeouts, upcalls and pollers, and can be an end of a
/// splice: with another socket for datagrams, of a stack, of the operating system or in memory.
///
/// * A receive buffer that is full drops datagrams, and counts them. A send buffer that is full, because the link
///   is, makes calls wait.
/// * An ICMP error about a datagram that was sent to the peer is an error of the next call, once: nothing ends by
///   it. A socket without a peer is not told, for it has many (as on Linux and BSD).
/// * At its end, when a flow has expired or the socket was shut down for reading, receiving is the error
///   [`UnexpectedEof`](io::ErrorKind::UnexpectedEof): 0 bytes are an empty datagram. (By the methods of [`Socket`]
///   it is 0, as for all sockets.)
/// * A datagram that is larger than the path's MTU is sent in fragments; one that no packet can hold is refused with
///   [`SoError::MessageSize`](crate::error::SoError::MessageSize).
/// * Bound to an unspecified address, it answers from the address that was asked if the answer is sent with the
///   [`Addresses`] that the question came with ([`recv_datagram`](Socket::recv_datagram)).
///
/// Handles are cloned; dropping the last one closes the socket.
///
/// | [`std::net::UdpSocket`] | here |
/// |---|---|
/// | `bind(address)` | [`bind(&stack, address)`](Self::bind); `0.0.0.0` and `::` both mean all addresses of the stack, of both families |
/// | `connect`, `send`, `recv`, `peek`, `send_to`, `recv_from`, `peek_from`, `peer_addr`, `try_clone` | the same |
/// | `local_addr` | cannot fail |
/// | `ttl`, `set_ttl` | the same, for both families; `ttl` cannot fail |
/// | `set_nonblocking`, `read_timeout` and the like | [`Socket::set_nonblocking`], [`Socket::set_read_timeout`] and the like; fewer of them can fail |
/// | `take_error` | [`Socket::take_error`]: the error itself |
/// | a datagram that is longer than the buffer | cut, as on Unix |
/// | port 0 as a destination | [`AddrNotAvailable`](io::ErrorKind::AddrNotAvailable), as on BSD; `InvalidInput` on Linux |
/// | sending without a peer | [`NotConnected`](io::ErrorKind::NotConnected); its own error on Linux (`EDESTADDRREQ`) |
/// | the second socket of a port | `AddrInUse`, also where the address of the first one is of the other family and unspecified |
/// | IPv4 addresses in the form of IPv6 | [`HostUnreachable`](io::ErrorKind::HostUnreachable) |
/// | `set_broadcast`, `join_multicast_v4` and the like | none: datagrams to many hosts are neither sent nor received |
/// | no such thing | batches ([`recv_many`](Self::recv_many), [`send_many`](Self::send_many)), own addresses ([`Socket::recv_datagram`], [`Socket::send_datagram`]), [`dropped`](Self::dropped), [`refuse`](Self::refuse), splices |
///
/// With the feature `async` there are polls and futures in tokio's shape, with names that end in `_async`.
///
/// ```
/// use sosplice::{link::memory, stack::{Stack, UdpSocket}};
/// let (a, b) = memory::pair(memory::Config::default());
/// let server = Stack::builder(a).address("10.0.0.1/24".parse()?).build()?;
/// let client = Stack::builder(b).address("10.0.0.2/24".parse()?).build()?;
/// let echo = UdpSocket::bind(&server, "10.0.0.1:7")?;
/// let socket = UdpSocket::bind(&client, "0.0.0.0:0")?;
/// socket.connect("10.0.0.1:7")?;
/// socket.send(b"hello")?;
/// let mut buffer = [0; 100];
/// let (len, from) = echo.recv_from(&mut buffer)?;
/// echo.send_to(&buffer[..len], from)?;
/// assert_eq!(socket.recv(&mut buffer)?, 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct UdpSocket {
    socket: Socket,
    udp: Arc<Udp>,
}

impl UdpSocket {
    pub(super) fn new(stack: &Stack, udp: Arc<Udp>) -> UdpSocket {
        let protocol: Arc<dyn Protocol> = udp.clone();
        let socket = Socket::new(udp.end.clone(), protocol);
        stack.shared().attach();
        udp.attached.store(true, Ordering::Release);
        UdpSocket { socket, udp }
    }

    /// Binds a socket to an address of the stack; an unspecified one means all of them. Port 0 picks a free port that
    /// is not to be guessed (RFC 6056). Of several addresses the first that can be had; names are resolved by the
    /// operating system.
    ///
    /// # Errors
    /// That of the last address that was tried: [`AddrNotAvailable`](io::ErrorKind::AddrNotAvailable) if the stack
    /// does not have the address, or no port is free, [`AddrInUse`](io::ErrorKind::AddrInUse) if another socket has
    /// it; [`NetworkDown`](io::ErrorKind::NetworkDown) if the stack is down.
    pub fn bind(stack: &Stack, address: impl ToSocketAddrs) -> io::Result<UdpSocket> {
        let udp = each(address, |address| bind(stack, address))?;
        let shared = stack.shared();
        let socket = UdpSocket::new(stack, udp);
        // Either the stack that goes down, or the removal of the address, has found the socket in the table, or
        // this sees it.
        if shared.is_down(socket.udp.queue) {
            return Err(shared.why_down().into());
        }
        has_address(stack, socket.local_addr().ip())?;
        Ok(socket)
    }

    /// Connects a bound socket to a peer: it then receives from there only, and [`send`](Socket::send) sends there.
    /// An unspecified own address becomes the one that the peer is reached from. Sends nothing.
    ///
    /// # Errors
    /// [`HostUnreachable`](io::ErrorKind::HostUnreachable) if no datagram can be sent there;
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for port 0, and on a flow, which has a peer.
    pub fn connect(&self, peer: impl ToSocketAddrs) -> io::Result<()> {
        each(peer, |peer| {
            if peer.port() == 0 {
                let why = "port 0 is no peer's, give its port";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
            if !matches!(self.udp.kind, Kind::Bound(_)) {
                let why = "a flow has its client for a peer, bind a socket to talk to others";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
            Ok(self.udp.connect(peer)?)
        })
    }

    /// Sends one datagram to the peer.
    ///
    /// # Errors
    /// [`NotConnected`](io::ErrorKind::NotConnected) if there is none; as for [`send_to`](Self::send_to).
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.send_one(bytes, Addresses::default())
    }

    /// Receives one datagram: returns how much of it was copied; the rest is lost.
    ///
    /// # Errors
    /// As for [`recv_from`](Self::recv_from).
    pub fn recv(&self, out: &mut [u8]) -> io::Result<usize> {
        Ok(self.socket.recv_whole(out)?.0)
    }

    /// As [`recv`](Self::recv), and leaves the datagram.
    ///
    /// # Errors
    /// As for [`recv_from`](Self::recv_from).
    pub fn peek(&self, out: &mut [u8]) -> io::Result<usize> {
        Ok(self.socket.peek_whole(out)?.0)
    }

    /// Sends one datagram to an address. On a flow that is its client, and no other; on one with an endpoint-independent mapping, to the client, in the name of
    /// that address.
    ///
    /// # Errors
    /// As for [`Socket::send`]; [`HostUnreachable`](io::ErrorKind::HostUnreachable) if no datagram can be sent there,
    /// [`PermissionDenied`](io::ErrorKind::PermissionDenied) if a route forbids it,
    /// [`AddrNotAvailable`](io::ErrorKind::AddrNotAvailable) for port 0,
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) with [`SoError::MessageSize`](crate::error::SoError::MessageSize) if it is too long, and without if it
    /// is not for a flow's client.
    pub fn send_to(&self, bytes: &[u8], to: impl ToSocketAddrs) -> io::Result<usize> {
        each(to, |to| {
            self.is_peer(to)?;
            self.send_one(bytes, Addresses::to(to))
        })
    }

    fn send_one(&self, bytes: &[u8], addresses: Addresses) -> io::Result<usize> {
        self.check(addresses, bytes.len())?;
        self.socket.send_datagram(bytes, addresses)
    }

    /// Whether a datagram of so many bytes can be sent, as far as that is known at once.
    pub(in crate::stack) fn check(&self, addresses: Addresses, len: usize) -> io::Result<()> {
        Ok(self.udp.check(addresses, len)?)
    }

    pub(in crate::stack) fn check_first(&self, datagrams: &[Datagram]) -> io::Result<()> {
        let first = datagrams.first();
        first.map_or(Ok(()), |first| self.check(first.addresses, first.len()))
    }

    /// A flow has one peer, in whose destination's name it speaks.
    pub(in crate::stack) fn is_peer(&self, to: SocketAddr) -> io::Result<()> {
        let is_other = |client: SocketAddr| (client.ip(), client.port()) != (to.ip(), to.port());
        match (&self.udp.kind, self.udp.client()) {
            (Kind::Flow(_), Some((client, _))) if is_other(client) => {
                let why = format!("the flow is that of {client}, bind a socket to talk to others");
                Err(io::Error::new(io::ErrorKind::InvalidInput, why))
            }
            _ => Ok(()),
        }
    }

    /// Receives one datagram: returns how much of it was copied, and from where it came. On a flow with an
    /// endpoint-independent mapping that is where the client has sent it.
    ///
    /// # Errors
    /// As for [`Socket::recv`]; [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) at its end.
    pub fn recv_from(&self, out: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (count, addresses) = self.socket.recv_whole(out)?;
        Ok((count, self.from(addresses)))
    }

    /// As [`recv_from`](Self::recv_from), and leaves the datagram.
    ///
    /// # Errors
    /// As for [`recv_from`](Self::recv_from).
    pub fn peek_from(&self, out: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (count, addresses) = self.socket.peek_whole(out)?;
        Ok((count, self.from(addresses)))
    }

    /// From where a datagram came.
    pub(in crate::stack) fn from(&self, addresses: Addresses) -> SocketAddr {
        addresses.peer.unwrap_or_else(|| self.peer())
    }

    /// Receives up to `max` datagrams by reference: [`Socket::recv_datagrams`].
    ///
    /// # Errors
    /// As for [`Socket::recv_datagrams`], which returns 0 at the end.
    pub fn recv_many(&self, datagrams: &mut Vec<Datagram>, max: usize) -> io::Result<usize> {
        self.socket.recv_datagrams(datagrams, max)
    }

    /// Sends datagrams from the front of the list by reference: [`Socket::send_datagrams`]. Those of the same
    /// addresses and length leave in one super-frame, where the link takes it.
    ///
    /// # Errors
    /// As for [`send_to`](Self::send_to), about the first one.
    pub fn send_many(&self, datagrams: &mut Vec<Datagram>) -> io::Result<usize> {
        self.check_first(datagrams)?;
        self.socket.send_datagrams(datagrams)
    }

    /// This side's address. Of a flow it is the original destination; with an endpoint-independent mapping, which has
    /// many, the unspecified address and port 0.
    pub fn local_addr(&self) -> SocketAddr {
        let unspecified = || match self.peer() {
            SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
            SocketAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
        };
        self.udp.names().0.unwrap_or_else(unspecified)
    }

    /// The peer's address: of a flow its client.
    ///
    /// # Errors
    /// [`NotConnected`](io::ErrorKind::NotConnected) if there is none.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.udp
            .names()
            .1
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    pub(super) fn peer(&self) -> SocketAddr {
        let nobody = SocketAddr::new(IpAddr::from([0; 4]), 0);
        self.udp.names().1.unwrap_or(nobody)
    }

    /// Received datagrams that found the receive buffer full, and were dropped.
    pub fn dropped(&self) -> u64 {
        self.end().with_rcv(|so_rcv| so_rcv.dropped())
    }

    /// Tells the client of a flow that its destination cannot be reached ("port unreachable", or what `so_error`
    /// says), and ends the flow. A bound socket just ends.
    pub fn refuse(self) {
        self.socket.abort();
    }

    /// As [`refuse`](Self::refuse), for the reason that the other side has given: "administratively prohibited" for
    /// [`PermissionDenied`](io::ErrorKind::PermissionDenied), "port unreachable" for
    /// [`ConnectionRefused`](io::ErrorKind::ConnectionRefused), "host unreachable" for everything else.
    pub fn refuse_with(self, why: &io::Error) {
        self.end().set_error(reason(why));
        self.socket.abort();
    }

    /// Sets the hop limit of packets (`IP_TTL`, `IPV6_UNICAST_HOPS`); 64 by default.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) outside 1 to 255.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        self.udp.set_hop_limit(hop_limit(ttl)?);
        Ok(())
    }

    /// The hop limit of packets.
    pub fn ttl(&self) -> u32 {
        self.udp.hop_limit().into()
    }

    /// Another handle of the same socket: a clone, with std's signature.
    ///
    /// # Errors
    /// None.
    pub fn try_clone(&self) -> io::Result<UdpSocket> {
        Ok(self.clone())
    }
}

/// What a client is told of an error.
pub(super) fn reason(why: &io::Error) -> SoError {
    match why.kind() {
        io::ErrorKind::PermissionDenied => SoError::Prohibited,
        io::ErrorKind::ConnectionRefused => SoError::ConnectionRefused,
        _ => SoError::HostUnreachable,
    }
}

fn bind(stack: &Stack, address: SocketAddr) -> io::Result<Arc<Udp>> {
    let shared = stack.shared();
    has_address(stack, address.ip())?;
    let queue = shared.first_up();
    if shared.is_down(queue) {
        return Err(shared.why_down().into());
    }
    let made = |port| {
        let end = SocketEnd::for_datagrams(HIWAT, HIWAT, LIMIT);
        let names = Names {
            local: SocketAddr::new(address.ip(), port),
            peer: None,
        };
        let host: Arc<dyn Host> = shared.clone();
        Udp::new(
            host,
            end,
            (
                Transport::Udp,
                Kind::Bound(crate::lock::Mutex::new(names)),
                queue,
            ),
            NEVER,
        )
    };
    if address.port() != 0 {
        let udp = made(address.port());
        shared.udp.bind(&udp)?;
        return Ok(udp);
    }
    for port in shared.addressing.ephemeral_ports.all_from_random() {
        let udp = made(port);
        if shared.udp.bind(&udp).is_ok() {
            return Ok(udp);
        }
    }
    let why = "all ephemeral ports are in use";
    Err(io::Error::new(io::ErrorKind::AddrNotAvailable, why))
}

fn has_address(stack: &Stack, address: IpAddr) -> io::Result<()> {
    if address.is_unspecified() || stack.shared().is_own(address) {
        return Ok(());
    }
    let why = format!("{address} is not an address of this stack");
    Err(io::Error::new(io::ErrorKind::AddrNotAvailable, why))
}

impl Deref for UdpSocket {
    type Target = Socket;
    fn deref(&self) -> &Socket {
        &self.socket
    }
}

impl AsRef<Socket> for UdpSocket {
    fn as_ref(&self) -> &Socket {
        &self.socket
    }
}

pollable!(UdpSocket);
