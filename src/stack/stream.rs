//! The program's handle of a TCP connection.

use crate::error::SoError;
use crate::protocol::Protocol;
use crate::socket::poller::pollable;
use crate::socket::{Socket, blocking};
use crate::stack::config::LONGEST;
use crate::stack::{Congestion, KeepAlive, Stack};
use crate::tcp::conn::{Conn, Runner};
use crate::tcp::limits::Limits;
use crate::tcp::service::Work;
use std::io;
use std::net::{Shutdown, SocketAddr, ToSocketAddrs};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

/// A TCP connection, in the shape of [`std::net::TcpStream`].
///
/// It is a [`Socket`] (to which it dereferences) with two addresses. Handles are cloned; dropping the
/// last one closes the connection: sent data is still delivered; if received data was not read, the
/// peer gets a reset (RFC 1122 4.2.2.13). [`set_linger`](Self::set_linger) changes that.
///
/// Differences from std: every connection belongs to a [`Stack`]; functions that cannot fail return no
/// `Result` ([`local_addr`](Self::local_addr), [`set_nodelay`](Self::set_nodelay), ...);
/// [`take_error`](Socket::take_error) returns the typed [`SoError`](crate::error::SoError), which is
/// turned into an [`io::Error`] by `into()`.
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

    /// The connection's home: the receive queue of its stack, counted from 0, on which it transmits and
    /// whose driver runs its timers. It never changes. Packets from the peer may arrive on any queue.
    pub fn queue(&self) -> usize {
        self.conn.home.queue.into()
    }

    #[cfg(test)]
    pub(crate) fn conn(&self) -> &Conn {
        &self.conn
    }

    /// Calls `callback` once: when the connection is established, or with the error when the attempt has failed; at once if
    /// one of these has happened. It is called by the thread that received the peer's answer, or found that there is none,
    /// so connecting without waiting ([`TcpSocket::start`](crate::TcpSocket::start)) wakes no other thread. That may also be
    /// a thread of the program that is in a call of this connection just then: hold no lock in such a call that the callback
    /// takes. A further call
    /// replaces a callback that was not called yet. As FreeBSD's `SO_SND` upcall at `soisconnected`.
    ///
    /// It must not wait: the stack receives nothing meanwhile. It is called with no lock held, and not inside another
    /// callback (see [`Splice::on_end`](crate::Splice::on_end)). It does not read the socket's error. Closing the last
    /// handle before gives it [`ConnectionAborted`](crate::error::SoError::ConnectionAborted); a handle of the same
    /// connection in the callback keeps it open until then.
    ///
    /// ```
    /// use sosplice::{Stack, TcpListener, TcpSocket, error::SoError, link::memory};
    /// use std::sync::mpsc::channel;
    ///
    /// let (a, b) = memory::pair(memory::Config::default());
    /// let server = Stack::builder(a).address("10.0.0.1/24".parse()?).build()?;
    /// let client = Stack::builder(b).address("10.0.0.2/24".parse()?).build()?;
    /// let _listener = TcpListener::bind(&server, "10.0.0.1:80")?;
    /// for (port, expected) in [(80, Ok(())), (81, Err(SoError::ConnectionRefused))] {
    ///     let stream = TcpSocket::new(&client).start(([10, 0, 0, 1], port).into())?;
    ///     let (sender, connected) = channel();
    ///     stream.on_connected(move |result| sender.send(result).unwrap_or(()));
    ///     assert_eq!(connected.recv()?, expected);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_connected(&self, callback: impl FnOnce(Result<(), SoError>) + Send + 'static) {
        self.conn.on_connected(Box::new(callback));
    }

    /// This side's address. For a connection of an intercepting listener, the original destination.
    pub fn local_addr(&self) -> SocketAddr {
        self.conn.tuple.ends().0
    }

    /// The peer's address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.conn.tuple.ends().1
    }

    /// Whether small segments are sent at once (the default) or wait for an acknowledgement
    /// (`false`: Nagle's algorithm, RFC 1122 4.2.3.4).
    pub fn set_nodelay(&self, nodelay: bool) {
        self.conn.options.set_nodelay(nodelay);
        self.options_changed();
    }

    /// Whether small segments are sent at once. They are by default, unlike in std.
    pub fn nodelay(&self) -> bool {
        self.conn.options.nodelay()
    }

    /// Sets the congestion control (`TCP_CONGESTION`), at any time; it starts with the connection's
    /// present window. The default is [`Builder::congestion`](crate::stack::Builder::congestion).
    ///
    /// ```
    /// use sosplice::{Stack, TcpSocket, link::memory, stack::Congestion};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let (stack, _driver) = Stack::builder(link).address("10.0.0.1/24".parse()?).build_with_driver()?;
    /// let stream = TcpSocket::new(&stack).start("10.0.0.2:80".parse()?)?;
    /// assert_eq!(stream.congestion(), Congestion::Cubic);
    /// stream.set_congestion(Congestion::Bbr);
    /// assert_eq!(stream.congestion(), Congestion::Bbr);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_congestion(&self, congestion: Congestion) {
        self.conn.options.set_congestion(congestion);
        self.options_changed();
    }

    /// The congestion control.
    pub fn congestion(&self) -> Congestion {
        self.conn.options.congestion()
    }

    fn options_changed(&self) {
        self.conn.run(Work::OPTIONS, Runner::User);
    }

    /// Another handle of the same connection: a clone, with std's signature.
    ///
    /// # Errors
    /// None.
    pub fn try_clone(&self) -> io::Result<TcpStream> {
        Ok(self.clone())
    }

    /// Sets the hop limit of packets (`IP_TTL`, `IPV6_UNICAST_HOPS`); 64 by default (RFC 1700). It
    /// applies to packets sent from now on, including retransmissions, until the connection ends:
    /// answers in TIME-WAIT have 64.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) outside 1 to 255.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        self.conn.options.set_hop_limit(hop_limit(ttl)?);
        Ok(())
    }

    /// The hop limit of packets.
    pub fn ttl(&self) -> u32 {
        u32::from(self.conn.options.hop_limit())
    }

    /// Sets the treatment of undelivered data when the last handle is closed (`SO_LINGER`).
    ///
    /// * `None`, the default: the connection delivers it in the background, within the stack's
    ///   [user timeout](crate::stack::Builder::user_timeout).
    /// * `Some(0)`: the last close resets the connection and drops the data.
    /// * `Some(d)`: if the peer has not acknowledged all data and the FIN after `d`, the connection is
    ///   reset.
    ///
    /// Unlike a kernel's, `close` never blocks, also with `Some(d)`: to learn that all data has
    /// arrived, shut down for writing and read until the peer's end of file.
    pub fn set_linger(&self, linger: Option<Duration>) {
        let linger = linger.map(|time| time.min(LONGEST));
        self.conn.options.set_linger(linger);
    }

    /// The setting of [`set_linger`](Self::set_linger).
    pub fn linger(&self) -> Option<Duration> {
        self.conn.options.linger()
    }

    /// Switches keep-alive on or (`None`) off (`SO_KEEPALIVE`, `TCP_KEEPIDLE`, `TCP_KEEPINTVL`,
    /// `TCP_KEEPCNT`; RFC 1122 4.2.3.6). The default is
    /// [`Builder::keep_alive`](crate::stack::Builder::keep_alive), or off. A change restarts the idle
    /// time. A peer that answers no probe ends the connection with
    /// [`TimedOut`](io::ErrorKind::TimedOut), after `idle + probes * interval`. While data is
    /// unacknowledged there are no probes; then the user timeout applies.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if a value is zero.
    pub fn set_keep_alive(&self, keep_alive: Option<KeepAlive>) -> io::Result<()> {
        self.conn.options.set_keep_alive(usable(keep_alive)?);
        self.options_changed();
        Ok(())
    }

    /// The keep-alive, if it is on.
    pub fn keep_alive(&self) -> Option<KeepAlive> {
        self.conn.options.keep_alive()
    }

    /// How long data may stay unacknowledged without any segment from the peer before the connection
    /// ends with [`TimedOut`](io::ErrorKind::TimedOut) (`TCP_USER_TIMEOUT`, RFC 5482 without the option
    /// on the wire). The default is [`Builder::user_timeout`](crate::stack::Builder::user_timeout). It
    /// applies to data that is unacknowledged already, too.
    ///
    /// ```
    /// use sosplice::{Stack, TcpSocket, link::memory};
    /// use std::time::Duration;
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let (stack, _driver) = Stack::builder(link).address("10.0.0.1/24".parse()?).build_with_driver()?;
    /// let stream = TcpSocket::new(&stack).start("10.0.0.2:80".parse()?)?;
    /// stream.set_user_timeout(Duration::from_secs(30))?;
    /// assert_eq!(stream.user_timeout(), Duration::from_secs(30));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for zero.
    pub fn set_user_timeout(&self, timeout: Duration) -> io::Result<()> {
        let timeout = above_zero(timeout)?;
        self.change_limits(|limits| limits.user = timeout);
        Ok(())
    }

    /// The setting of [`set_user_timeout`](Self::set_user_timeout) or the stack.
    pub fn user_timeout(&self) -> Duration {
        self.conn.options.limits().user
    }

    /// How long the half-closed connection may be idle, see
    /// [`Builder::half_closed_timeout`](crate::stack::Builder::half_closed_timeout). The time counts
    /// from the latest progress, even if that was before this call.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for zero.
    pub fn set_half_closed_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(above_zero).transpose()?;
        self.change_limits(|limits| limits.half_closed = timeout);
        Ok(())
    }

    /// The setting of [`set_half_closed_timeout`](Self::set_half_closed_timeout) or the stack.
    pub fn half_closed_timeout(&self) -> Option<Duration> {
        self.conn.options.limits().half_closed
    }

    /// How long the connection waits for its peer's FIN after its last handle was dropped
    /// (`TCP_LINGER2`), see [`Builder::fin_wait_timeout`](crate::stack::Builder::fin_wait_timeout).
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for zero.
    pub fn set_fin_wait_timeout(&self, timeout: Duration) -> io::Result<()> {
        let timeout = above_zero(timeout)?;
        self.change_limits(|limits| limits.fin_wait = timeout);
        Ok(())
    }

    /// The setting of [`set_fin_wait_timeout`](Self::set_fin_wait_timeout) or the stack.
    pub fn fin_wait_timeout(&self) -> Duration {
        self.conn.options.limits().fin_wait
    }

    fn change_limits(&self, change: impl FnOnce(&mut Limits)) {
        self.conn.options.change_limits(change);
        self.options_changed();
    }

    /// Ends one or both directions, see [`Socket::shutdown`].
    ///
    /// # Errors
    /// As for [`Socket::shutdown`].
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.socket.shutdown(how)
    }
}

/// Checks a hop limit.
pub(super) fn hop_limit(ttl: u32) -> io::Result<u8> {
    let hops = u8::try_from(ttl).ok().filter(|hops| *hops > 0);
    hops.ok_or_else(|| {
        let why = format!("a time to live of {ttl} is out of range: use 1 to 255");
        io::Error::new(io::ErrorKind::InvalidInput, why)
    })
}

/// Checks a keep-alive for zeros, and cuts its times so that they can be added to any time.
pub(super) fn usable(keep_alive: Option<KeepAlive>) -> io::Result<Option<KeepAlive>> {
    if keep_alive.is_some_and(|one| !one.is_valid()) {
        let why = "a keep-alive with a zero in it: give times above zero and one probe at least";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(keep_alive.map(|one| one.clamped(LONGEST)))
}

/// Checks a time limit for zero, and cuts it so that it can be added to any time.
pub(super) fn above_zero(timeout: Duration) -> io::Result<Duration> {
    if timeout.is_zero() {
        let why = "a time limit of zero would end the connection at once: give a time above zero";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(timeout.min(LONGEST))
}

/// Tries addresses in turn; the error is that of the last one.
pub(super) fn each<T>(
    addresses: impl ToSocketAddrs,
    mut attempt: impl FnMut(SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    let none = "no address: the name or the list is empty";
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, none);
    for address in addresses.to_socket_addrs()? {
        match attempt(address) {
            Ok(done) => return Ok(done),
            Err(error) => last = error,
        }
    }
    Err(last)
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
