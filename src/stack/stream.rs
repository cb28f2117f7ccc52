//! A user's TCP connection.

use super::Stack;
use crate::protocol::Protocol;
use crate::socket::poller::pollable;
use crate::socket::{Socket, blocking};
use crate::tcp::conn::{Conn, Runner};
use crate::tcp::tcb::Work;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

/// A TCP connection, in the shape of [`std::net::TcpStream`].
///
/// It is a [`Socket`] (to which it dereferences) with two addresses. Handles are cloned; the last one
/// closes the connection: what was sent is still delivered; if something received was not read, the
/// peer gets a reset (RFC 1122 4.2.2.13).
///
/// An example is at [`TcpListener`](crate::TcpListener).
#[derive(Debug, Clone)]
pub struct TcpStream {
    socket: Socket,
    conn: Arc<Conn>,
}

impl TcpStream {
    pub(crate) fn new(stack: &Stack, conn: Arc<Conn>) -> TcpStream {
        let protocol: Arc<dyn Protocol> = conn.clone();
        let socket = Socket::new(conn.end.clone(), protocol);
        stack.shared().attach();
        TcpStream { socket, conn }
    }

    /// Connects to an address and waits until the connection stands. The source address is the one
    /// that is nearest to the destination, the port a free one that is hard to
    /// guess and was not in use lately (RFC 6056).
    ///
    /// # Errors
    /// [`ConnectionRefused`](io::ErrorKind::ConnectionRefused),
    /// [`TimedOut`](io::ErrorKind::TimedOut) after the stack's connect timeout,
    /// [`AddrNotAvailable`](io::ErrorKind::AddrNotAvailable) if the stack has no address of that
    /// family, [`InvalidInput`](io::ErrorKind::InvalidInput) for a destination that nobody can have.
    pub fn connect(stack: &Stack, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::start(stack, address)?;
        stream.socket.wait_connected(None)?;
        Ok(stream)
    }

    /// As [`connect`](Self::connect), but waits no longer than `timeout`.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    pub fn connect_timeout(
        stack: &Stack,
        address: SocketAddr,
        timeout: Duration,
    ) -> io::Result<TcpStream> {
        let deadline = stack.now().checked_add(timeout);
        let stream = TcpStream::start(stack, address)?;
        stream.socket.wait_connected(deadline)?;
        Ok(stream)
    }

    /// Begins to connect and does not wait. The connecting socket can be spliced at once: data for
    /// it is held until the connection stands. Dropping it cancels the attempt.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect), if nothing can be sent at all.
    pub fn start(stack: &Stack, address: SocketAddr) -> io::Result<TcpStream> {
        Ok(TcpStream::new(stack, stack.dial(address)?))
    }

    #[cfg(test)]
    pub(crate) fn conn(&self) -> &Conn {
        &self.conn
    }

    /// This side's address. For a connection of an intercepting listener, the address that the peer
    /// wanted to reach.
    pub fn local_addr(&self) -> SocketAddr {
        SocketAddr::new(self.conn.tuple.local, self.conn.tuple.local_port)
    }

    /// The peer's address.
    pub fn peer_addr(&self) -> SocketAddr {
        SocketAddr::new(self.conn.tuple.remote, self.conn.tuple.remote_port)
    }

    /// Whether small segments are sent at once (the default) or wait for an acknowledgement
    /// (`false`: Nagle's algorithm, RFC 1122 4.2.3.4).
    pub fn set_nodelay(&self, nodelay: bool) {
        let work = if nodelay { Work::NO_DELAY } else { Work::DELAY };
        self.conn.run(work, Runner::User);
    }

    /// Ends one or both directions, see [`Socket::shutdown`].
    ///
    /// # Errors
    /// As for [`Socket::shutdown`].
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.socket.shutdown(how)
    }
}

impl Deref for TcpStream {
    type Target = Socket;
    fn deref(&self) -> &Socket {
        &self.socket
    }
}

impl AsRef<Socket> for TcpStream {
    fn as_ref(&self) -> &Socket {
        &self.socket
    }
}

blocking!(TcpStream);
pollable!(TcpStream);
blocking!(&TcpStream);
#[cfg(any(feature = "futures-io", feature = "tokio"))]
crate::socket::aio::asynchronous!(TcpStream);
#[cfg(any(feature = "futures-io", feature = "tokio"))]
crate::socket::aio::asynchronous!(&TcpStream);
