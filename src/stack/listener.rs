//! The program's handle of a listener, [`TcpListener`].

use crate::protocol::{Protocol, SoState, SocketEnd};
use crate::socket::Socket;
use crate::socket::poller::{Pollable, Sealed, Watched};
use crate::stack::Stack;
use crate::stack::accept::backlog::Listening;
use crate::stack::accept::intercept::Intercept;
use crate::stack::stream::{TcpStream, each};
use crate::tcp::conn::Conn;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

impl TcpListener {
    /// The stack, and its record of the listener.
    pub(super) fn parts(&self) -> (&Stack, &Listening) {
        (&self.open.stack, &self.open.listening)
    }
}

impl Sealed for TcpListener {
    fn watched(&self) -> Arc<dyn Watched> {
        self.open.listening.clone()
    }
}

impl Pollable for TcpListener {}

/// A socket that accepts connections, in the shape of [`std::net::TcpListener`].
///
/// Half-open connections, and those that wait for [`accept`](Self::accept), count against the backlog.
/// Beyond it SYNs are answered with cookies
/// ([`Builder::syn_cookies`](crate::stack::Builder::syn_cookies)) unless waiting connections alone fill
/// the backlog; otherwise they are dropped, and their senders try again.
///
/// Handles are cloned. Dropping the last one resets the connections that were not accepted.
///
/// Differences from std: a listener belongs to a [`Stack`], functions that cannot fail return no
/// `Result`, and there are no `ttl` and no `take_error`: the only errors of a listener are those that
/// [`accept`](Self::accept) returns.
///
/// ```
/// use sosplice::{TcpListener, TcpStream, Stack, link::memory};
/// use std::io::{Read, Write};
///
/// let (a, b) = memory::pair(memory::Config::default());
/// let server = Stack::builder(a).address("10.0.0.1/24".parse()?).build()?;
/// let client = Stack::builder(b).address("10.0.0.2/24".parse()?).build()?;
/// let listener = TcpListener::bind(&server, "10.0.0.1:80")?;
/// let mut to_server = TcpStream::connect(&client, "10.0.0.1:80")?;
/// let (mut from_client, peer) = listener.accept()?;
/// assert_eq!(peer, to_server.local_addr());
/// to_server.write_all(b"hello")?;
/// drop(to_server);
/// let mut text = String::new();
/// from_client.read_to_string(&mut text)?;
/// assert_eq!(text, "hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct TcpListener {
    open: Arc<Open>,
}

/// The listener that all handles share.
#[derive(Debug)]
struct Open {
    stack: Stack,
    listening: Arc<Listening>,
    socket: Socket,
}

/// Default backlog.
pub const DEFAULT_BACKLOG: usize = 128;

impl TcpListener {
    pub(super) fn new(stack: &Stack, listening: Arc<Listening>) -> TcpListener {
        let end = SocketEnd::new(0, 0);
        end.set_flavor(stack.shared().config.flavor);
        end.cantrcvmore();
        end.cantsendmore();
        TcpListener {
            open: Arc::new(Open {
                stack: stack.clone(),
                listening,
                socket: Socket::new(end, Arc::new(Passive)),
            }),
        }
    }

    /// Listens at an address of the stack; an unspecified one means all of them. Port 0 picks a free
    /// port. Of several addresses the first that works is taken; names are resolved by the operating
    /// system.
    ///
    /// # Errors
    /// The error of the last address tried: [`AddrNotAvailable`](io::ErrorKind::AddrNotAvailable) if
    /// the stack does not have the address, [`AddrInUse`](io::ErrorKind::AddrInUse) if another listener
    /// is bound to it.
    pub fn bind(stack: &Stack, address: impl ToSocketAddrs) -> io::Result<TcpListener> {
        TcpListener::bind_with_backlog(stack, address, DEFAULT_BACKLOG)
    }

    /// As [`bind`](Self::bind), with a backlog other than [`DEFAULT_BACKLOG`]. 0 counts as 1, here and
    /// wherever a backlog is given.
    ///
    /// # Errors
    /// As for [`bind`](Self::bind).
    pub fn bind_with_backlog(
        stack: &Stack,
        address: impl ToSocketAddrs,
        backlog: usize,
    ) -> io::Result<TcpListener> {
        let listening = each(address, |address| stack.listen(address, backlog, false))?;
        Ok(TcpListener::new(stack, listening))
    }

    /// Accepts connections to the destinations of a rule, also beyond the stack's own addresses, e.g.
    /// for a transparent proxy behind a TUN. `local_addr()` of an accepted connection is the original
    /// destination.
    ///
    /// Of several listeners for a destination, bound ones come first, then the intercepting one with
    /// the longest prefix, then the one with the fewest ports.
    ///
    /// The backlog is as for [`bind_with_backlog`](Self::bind_with_backlog): 0 counts as 1.
    ///
    /// # Errors
    /// [`AddrInUse`](io::ErrorKind::AddrInUse) if the rule overlaps an equally precise one,
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if the range of ports is empty.
    pub fn intercept(stack: &Stack, rule: Intercept, backlog: usize) -> io::Result<TcpListener> {
        let listening = stack.intercept(rule, backlog, false)?;
        Ok(TcpListener::new(stack, listening))
    }

    /// Waits for a connection and returns it with its peer's address.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is none and the listener is non-blocking;
    /// [`NetworkDown`](io::ErrorKind::NetworkDown) if there is none and the stack is down, with
    /// [`NetworkDown`](crate::error::SoError::NetworkDown) or
    /// [`DriverDropped`](crate::error::SoError::DriverDropped) inside.
    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let conn = self.open.listening.accept()?;
        Ok(self.open.accepted(conn))
    }

    /// Calls `callback` for each connection, also for those that wait already, instead of [`accept`](Self::accept),
    /// and once with the error when the stack is down. It is called by the thread that received the last segment of
    /// the handshake, so a connection wakes no other thread. A further call replaces the callback. As FreeBSD's
    /// `solisten_upcall_set`.
    ///
    /// It must not wait: the stack receives nothing meanwhile. With several receive queues it may run in several
    /// threads at once. It is called with no lock held, and not inside another callback (see
    /// [`Splice::on_end`](crate::Splice::on_end)). Closing the listener drops it.
    ///
    /// ```
    /// use sosplice::{Stack, TcpListener, TcpStream, link::memory};
    /// use std::sync::mpsc::channel;
    ///
    /// let (a, b) = memory::pair(memory::Config::default());
    /// let server = Stack::builder(a).address("10.0.0.1/24".parse()?).build()?;
    /// let client = Stack::builder(b).address("10.0.0.2/24".parse()?).build()?;
    /// let listener = TcpListener::bind(&server, "10.0.0.1:80")?;
    /// let (sender, accepted) = channel();
    /// listener.on_accept(move |accepted| sender.send(accepted).unwrap_or(()));
    /// let connected = TcpStream::connect(&client, "10.0.0.1:80")?;
    /// let (_stream, peer) = accepted.recv()??;
    /// assert_eq!(peer, connected.local_addr());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The callback gets those of [`accept`](Self::accept) of a stack that is down.
    pub fn on_accept(
        &self,
        callback: impl Fn(io::Result<(TcpStream, SocketAddr)>) + Send + Sync + 'static,
    ) {
        let open = Arc::downgrade(&self.open);
        let told = AtomicBool::new(false);
        let accept = move || {
            let Some(open) = open.upgrade() else { return };
            loop {
                match open.listening.try_accept() {
                    Ok(conn) => callback(Ok(open.accepted(conn))),
                    Err(error) if error.kind() == io::ErrorKind::NetworkDown => {
                        // A driver that was accepting may have found out before the one that announces it.
                        if !told.swap(true, Ordering::Relaxed) {
                            callback(Err(error));
                        }
                        return;
                    }
                    // No more of them, or closed.
                    Err(_) => return,
                }
            }
        };
        let accepting = &self.open.stack.shared().accepting;
        accepting.has_acceptors.store(true, Ordering::Release);
        self.open.listening.set_acceptor(Arc::new(accept));
    }

    /// An iterator over accepted connections that never ends.
    pub fn incoming(&self) -> impl Iterator<Item = io::Result<TcpStream>> + '_ {
        std::iter::repeat_with(|| self.accept().map(|(stream, _)| stream))
    }

    /// The address this listener was bound to, or the network that it intercepts. A range of addresses
    /// or ports is shown as zero.
    pub fn local_addr(&self) -> SocketAddr {
        self.open.listening.rule.address()
    }

    /// Whether [`accept`](Self::accept) returns at once when there is no connection.
    pub fn set_nonblocking(&self, nonblocking: bool) {
        self.open
            .listening
            .nonblocking
            .store(nonblocking, Ordering::Relaxed);
    }

    /// Another handle of the same listener: a clone, with std's signature.
    ///
    /// # Errors
    /// None.
    pub fn try_clone(&self) -> io::Result<TcpListener> {
        Ok(self.clone())
    }

    /// Stops listening, for all handles: threads that wait in [`accept`](Self::accept) return with
    /// an error.
    pub fn close(&self) {
        self.open.close();
    }
}

impl Open {
    fn accepted(&self, conn: Arc<Conn>) -> (TcpStream, SocketAddr) {
        let stream = TcpStream::new(&self.stack, conn);
        let peer = stream.peer_addr();
        (stream, peer)
    }

    fn close(&self) {
        let unaccepted = self.listening.close();
        self.stack.unlisten(&self.listening, unaccepted);
    }
}

/// A listening socket without bytes, for tables of descriptors
/// ([`sockopt::Table`](crate::sockopt::Table)) and for the error of splicing a listener. Its handles do
/// not keep the listener open.
impl AsRef<Socket> for TcpListener {
    fn as_ref(&self) -> &Socket {
        &self.open.socket
    }
}

/// The protocol of a listening socket: no bytes.
#[derive(Debug)]
struct Passive;

impl Protocol for Passive {
    fn output(&self) {}
    fn rcvd(&self, _idle: bool) {}
    fn abort(&self) {}
    fn detach(&self) {}
    fn name(&self) -> &'static str {
        "tcp"
    }
    fn so_state(&self) -> SoState {
        SoState::Listening
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.close();
    }
}
