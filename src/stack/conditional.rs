//! A listener that returns each SYN to the program before it is answered.
//!
//! For proxies: the proxy connects to its backend first, and then accepts or refuses the client's
//! `connect()` accordingly. The records of held SYNs are in `syn_queue`.

use crate::socket::Socket;
use crate::socket::poller::{Pollable, Sealed, Watched};
use crate::stack::accept::backlog::{Key, Listening};
use crate::stack::accept::intercept::Intercept;
use crate::stack::stream::TcpStream;
use crate::stack::{Stack, TcpListener};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

/// A listener that returns each SYN before it is answered, as a [`ConnectionRequest`].
///
/// A held SYN is a small record. It counts against the backlog until the program decides; SYNs beyond
/// the backlog are dropped. A repeated SYN refreshes its record. If it is not repeated within the
/// stack's connect timeout, the record is dropped silently. For a poller the listener is readable when
/// there is a `ConnectionRequest`, or the stack is down.
///
/// Dropping the listener refuses the SYNs that were not returned yet; further SYNs are answered as at a
/// closed port. A `ConnectionRequest` that was returned can still be decided.
///
/// ```
/// use sosplice::{ConditionalListener, TcpListener, TcpSocket, TcpStream, Stack, link::memory, splice};
/// use std::io::{ErrorKind, Read, Write};
///
/// # let (left, left_end) = memory::pair(memory::Config::default());
/// # let (right, right_end) = memory::pair(memory::Config::default());
/// # let client = Stack::builder(left_end).address("10.1.0.1/24".parse()?).build()?;
/// # let server = Stack::builder(right_end).address("10.2.0.1/24".parse()?).build()?;
/// let front = Stack::builder(left).address("10.1.0.2/24".parse()?).build()?;
/// let back = Stack::builder(right).address("10.2.0.2/24".parse()?).build()?;
/// let listener = ConditionalListener::bind(&front, "10.1.0.2:80".parse()?)?;
///
/// # let connecting = TcpSocket::new(&client).start("10.1.0.2:80".parse()?)?;
/// // No server yet: the client's connect() is refused, as without a proxy.
/// let pending = listener.pending()?;
/// match TcpStream::connect(&back, "10.2.0.1:8080") {
///     Ok(_) => unreachable!("no listener there"),
///     Err(_) => pending.refuse(),
/// }
/// # let refused = std::io::Error::from(connecting.wait_connected(None).unwrap_err());
/// assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
///
/// let service = TcpListener::bind(&server, "10.2.0.1:8080")?;
/// # let mut connecting = TcpSocket::new(&client).start("10.1.0.2:80".parse()?)?;
/// let pending = listener.pending()?;
/// let outside = TcpStream::connect(&back, "10.2.0.1:8080")?;
/// // Now the SYN|ACK goes out.
/// let inside = pending.accept()?;
/// let down = outside.splice_to(&inside, splice::Options::default())?;
/// service.accept()?.0.write_all(b"hello")?;
/// # let mut text = [0; 5];
/// connecting.read_exact(&mut text)?;
/// assert_eq!(&text, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ConditionalListener {
    listener: TcpListener,
}

impl ConditionalListener {
    /// As [`TcpListener::bind`].
    ///
    /// # Errors
    /// As there.
    pub fn bind(stack: &Stack, address: SocketAddr) -> io::Result<ConditionalListener> {
        ConditionalListener::bind_with_backlog(stack, address, crate::stack::DEFAULT_BACKLOG)
    }

    /// As [`TcpListener::bind_with_backlog`]; a backlog of 0 counts as 1.
    ///
    /// # Errors
    /// As there.
    pub fn bind_with_backlog(
        stack: &Stack,
        address: SocketAddr,
        backlog: usize,
    ) -> io::Result<ConditionalListener> {
        let listening = stack.listen(address, backlog, true)?;
        let listener = TcpListener::new(stack, listening);
        Ok(ConditionalListener { listener })
    }

    /// As [`TcpListener::intercept`]; a backlog of 0 counts as 1.
    ///
    /// # Errors
    /// As there.
    pub fn intercept(
        stack: &Stack,
        rule: Intercept,
        backlog: usize,
    ) -> io::Result<ConditionalListener> {
        let listening = stack.intercept(rule, backlog, true)?;
        let listener = TcpListener::new(stack, listening);
        Ok(ConditionalListener { listener })
    }

    /// Waits for a SYN and returns it, unanswered.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if none is there and the listener is non-blocking;
    /// [`NetworkDown`](io::ErrorKind::NetworkDown) if none is there and the stack is down, as for
    /// [`TcpListener::accept`].
    pub fn pending(&self) -> io::Result<ConnectionRequest> {
        let (stack, listening) = self.parts();
        Ok(ConnectionRequest::new(stack, listening.pending()?))
    }

    /// The stack, and its record of the listener.
    pub(super) fn parts(&self) -> (&Stack, &Listening) {
        self.listener.parts()
    }

    /// An iterator over SYNs that never ends.
    pub fn incoming(&self) -> impl Iterator<Item = io::Result<ConnectionRequest>> + '_ {
        std::iter::repeat_with(|| self.pending())
    }

    /// As [`TcpListener::local_addr`].
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Whether [`pending`](Self::pending) returns at once when there is no SYN.
    pub fn set_nonblocking(&self, nonblocking: bool) {
        self.listener.set_nonblocking(nonblocking);
    }

    /// Stops listening: threads that wait in [`pending`](Self::pending) return with an error.
    pub fn close(&self) {
        self.listener.close();
    }
}

impl Sealed for ConditionalListener {
    fn watched(&self) -> Arc<dyn Watched> {
        self.listener.watched()
    }
}

impl Pollable for ConditionalListener {}

/// As for [`TcpListener`].
impl AsRef<Socket> for ConditionalListener {
    fn as_ref(&self) -> &Socket {
        self.listener.as_ref()
    }
}

/// A SYN that waits for a decision; dropping it ignores it. Made by [`ConditionalListener::pending`].
#[derive(Debug)]
#[must_use = "dropping it ignores the SYN: accept or refuse it"]
pub struct ConnectionRequest {
    stack: Stack,
    key: Key,
}

impl ConnectionRequest {
    pub(super) fn new(stack: &Stack, key: Key) -> ConnectionRequest {
        ConnectionRequest {
            stack: stack.clone(),
            key,
        }
    }

    #[cfg(test)]
    pub(crate) fn key(&self) -> Key {
        self.key
    }

    /// The address that the peer wants to reach.
    pub fn local_addr(&self) -> SocketAddr {
        SocketAddr::new(self.key.tuple.local, self.key.tuple.local_port)
    }

    /// The peer's address.
    pub fn peer_addr(&self) -> SocketAddr {
        SocketAddr::new(self.key.tuple.remote, self.key.tuple.remote_port)
    }

    /// The receive queue of the stack's link on which it arrived, counted from 0: the home of the
    /// connection that [`accept`](Self::accept) returns ([`TcpStream::queue`]).
    pub fn queue(&self) -> usize {
        self.key.queue.into()
    }

    /// Answers the SYN and returns the connection, which is not established yet:
    /// [`wait_connected`](Socket::wait_connected), reading and writing wait for that; it can be spliced
    /// at once. It no longer counts against the backlog.
    ///
    /// # Errors
    /// [`TimedOut`](io::ErrorKind::TimedOut) if the SYN is no longer held, see [`ConditionalListener`];
    /// [`AddrInUse`](io::ErrorKind::AddrInUse) if this stack has meanwhile connected to that peer from
    /// the same port; [`QuotaExceeded`](io::ErrorKind::QuotaExceeded) if the stack has its maximum
    /// number of connections ([`Builder::max_connections`](crate::stack::Builder::max_connections));
    /// [`NetworkDown`](io::ErrorKind::NetworkDown) if the stack is down.
    pub fn accept(self) -> io::Result<TcpStream> {
        let conn = self.stack.shared().accept_held(self.key)?;
        Ok(TcpStream::new(&self.stack, conn))
    }

    /// Answers the SYN with a reset: the peer's connection is refused. Does nothing if the SYN is no
    /// longer held.
    pub fn refuse(self) {
        self.stack.shared().refuse_syn(self.key);
    }

    /// Does not answer: the same as dropping it. The peer's next SYN is a new [`ConnectionRequest`].
    pub fn ignore(self) {}
}

impl Drop for ConnectionRequest {
    fn drop(&mut self) {
        self.stack.shared().ignore_syn(self.key);
    }
}
