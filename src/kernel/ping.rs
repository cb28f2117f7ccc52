//! Pings of the operating system: ICMP echo as datagrams.

use super::datagrams::{Datagrams, Form, Kind, PathError};
use crate::socket::Socket;
use crate::socket::poller::pollable;
use rustix::net::{self, AddressFamily, Protocol, SocketFlags, SocketType, ipproto};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::Deref;
use std::sync::Arc;

/// Pings of one destination by the operating system, as a [`Socket`] for datagrams: each datagram is an ICMP echo
/// message, from its type on: eight bytes of header, and data.
///
/// Echo requests are sent and the answers received; other messages are not. The identifier is the socket's own,
/// whatever a request has; the sequence number and the data are the request's. The checksum is put in.
///
/// A *ping socket* does this, which the system allows to the groups in `net.ipv4.ping_group_range`; where that is not
/// allowed a raw socket, which needs the capability `CAP_NET_RAW`.
///
/// ICMP errors are `so_error`, and [`take_errors`](Self::take_errors) has them.
///
/// ```
/// use sosplice::kernel::KernelPing;
/// let ping = match KernelPing::connect("127.0.0.1".parse()?) {
///     Ok(ping) => ping,
///     Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return Ok(()),
///     Err(error) => return Err(error.into()),
/// };
/// ping.send(&[8, 0, 0, 0, 0, 0, 0, 17, b'h', b'i'])?;
/// let mut answer = [0; 100];
/// assert_eq!(ping.recv(&mut answer)?, 10);
/// assert_eq!((answer[0], &answer[6..10]), (0, &[0, 17, b'h', b'i'][..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct KernelPing {
    socket: Socket,
    datagrams: Arc<Datagrams>,
    to: IpAddr,
    raw: bool,
}

impl KernelPing {
    /// A socket for pings of this address.
    ///
    /// # Errors
    /// [`PermissionDenied`](io::ErrorKind::PermissionDenied) if the system allows neither a ping socket nor a raw one;
    /// otherwise those of the operating system, for example that there is no route.
    pub fn connect(to: IpAddr) -> io::Result<KernelPing> {
        let refused = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        match KernelPing::start(to, SocketType::DGRAM) {
            Err(error) if refused(&error) => {}
            other => return other,
        }
        KernelPing::start(to, SocketType::RAW).map_err(|error| match refused(&error) {
            true => io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the system does not let this process ping: put its group into the range of the sysctl \
                 net.ipv4.ping_group_range, or give it the capability CAP_NET_RAW",
            ),
            false => error,
        })
    }

    fn start(to: IpAddr, of_type: SocketType) -> io::Result<KernelPing> {
        let (family, protocol): (_, Protocol) = match to {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let socket = net::socket_with(family, of_type, SocketFlags::CLOEXEC, Some(protocol))?;
        let socket = UdpSocket::from(socket);
        let peer = SocketAddr::new(to, 0);
        socket.connect(peer)?;
        let raw = of_type == SocketType::RAW;
        let form = Form {
            v4: to.is_ipv4(),
            identifier: match raw {
                true => Some(identifier()?),
                false => None,
            },
        };
        let (socket, datagrams) = Datagrams::start(socket, Kind::Ping(form), Some(peer))?;
        Ok(KernelPing {
            socket,
            datagrams,
            to,
            raw,
        })
    }

    /// Whether it is a raw socket, since the system does not allow a ping socket.
    pub fn is_raw(&self) -> bool {
        self.raw
    }

    /// The address that it pings.
    pub fn destination(&self) -> IpAddr {
        self.to
    }

    /// Takes the ICMP errors about requests, the oldest first: at most the latest 64 since the call before.
    pub fn take_errors(&self) -> Vec<PathError> {
        self.datagrams.take_errors()
    }

    /// Datagrams that could not be sent, or were no echo requests.
    pub fn unsent(&self) -> u64 {
        self.datagrams.unsent.get()
    }
}

/// One that is not to be guessed, and that no other raw socket here is likely to have.
fn identifier() -> io::Result<u16> {
    let [a, b, ..] = getrandom::u32().map_err(io::Error::other)?.to_ne_bytes();
    Ok(u16::from_ne_bytes([a, b]))
}

impl Deref for KernelPing {
    type Target = Socket;
    fn deref(&self) -> &Socket {
        &self.socket
    }
}

impl AsRef<Socket> for KernelPing {
    fn as_ref(&self) -> &Socket {
        &self.socket
    }
}

pollable!(KernelPing);
