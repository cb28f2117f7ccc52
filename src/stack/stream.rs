//! A user's TCP connection.

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
/// It is a [`Socket`] (to which it dereferences) with two addresses. Handles are cloned; the last one
/// closes the connection: what was sent is still delivered; if something received was not read, the
/// peer gets a reset (RFC 1122 4.2.2.13). [`set_linger`](Self::set_linger) changes that.
///
/// What differs from std in shape: every connection belongs to a [`Stack`]; what cannot fail returns
/// no `Result` ([`local_addr`](Self::local_addr), [`set_nodelay`](Self::set_nodelay), ...);
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

    /// Which receive queue of its stack is the connection's home, counted from 0: by that it sends, and
    /// that queue's driver looks after it. It stays the same. What the peer sends may arrive by any.
    pub fn queue(&self) -> usize {
        self.conn.home.queue.into()
    }

    #[cfg(test)]
    pub(crate) fn conn(&self) -> &Conn {
        &self.conn
    }

    /// This side's address. For a connection of an intercepting listener, the address that the peer
    /// wanted to reach.
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

    /// Whether small segments are sent at once. They are by default, other than in std.
    pub fn nodelay(&self) -> bool {
        self.conn.options.nodelay()
    }

    /// Sets the congestion control (`TCP_CONGESTION`), at any time: what is sent from now on follows it, and
    /// it begins with the window that the connection has. By default it is as
    /// [`Builder::congestion`](crate::stack::Builder::congestion) says. For accepted connections too it is set
    /// here.
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

    /// Another handle of the same connection: what a clone is, in the shape of std.
    ///
    /// # Errors
    /// None.
    pub fn try_clone(&self) -> io::Result<TcpStream> {
        Ok(self.clone())
    }

    /// Sets how many routers a packet may pass (`IP_TTL`, `IPV6_UNICAST_HOPS`); 64 by default
    /// (RFC 1700). It holds for what is sent from now on, retransmissions included, until the
    /// connection is over: what TIME-WAIT answers has 64.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) outside 1 to 255.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        self.conn.options.set_hop_limit(hop_limit(ttl)?);
        Ok(())
    }

    /// How many routers a packet may pass.
    pub fn ttl(&self) -> u32 {
        u32::from(self.conn.options.hop_limit())
    }

    /// What becomes of data that was not delivered when the last handle is closed (`SO_LINGER`).
    ///
    /// * `None`, the default: the connection delivers it in the background, within the stack's
    ///   [user timeout](crate::stack::Builder::user_timeout).
    /// * `Some(0)`: the last close resets the connection, whatever there is to deliver.
    /// * `Some(d)`: what the peer has not acknowledged after `d` (its bytes and the end) is given up
    ///   with a reset.
    ///
    /// Other than a system's, `close` never blocks, also with `Some(d)`: who wants to know that
    /// everything has arrived shuts down for writing and reads until the peer's end.
    pub fn set_linger(&self, linger: Option<Duration>) {
        let linger = linger.map(|time| time.min(LONGEST));
        self.conn.options.set_linger(linger);
    }

    /// What [`set_linger`](Self::set_linger) has set.
    pub fn linger(&self) -> Option<Duration> {
        self.conn.options.linger()
    }

    /// Switches keep-alive on or (`None`) off (`SO_KEEPALIVE`, `TCP_KEEPIDLE`, `TCP_KEEPINTVL`,
    /// `TCP_KEEPCNT`; RFC 1122 4.2.3.6). By default it is as
    /// [`Builder::keep_alive`](crate::stack::Builder::keep_alive) says, or else off. The time of idleness
    /// begins when it is changed. A peer that answers no probe ends the connection with
    /// [`TimedOut`](io::ErrorKind::TimedOut), after `idle + probes * interval`. While data is on its
    /// way there are no probes; then the user timeout counts.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if something of it is zero.
    pub fn set_keep_alive(&self, keep_alive: Option<KeepAlive>) -> io::Result<()> {
        self.conn.options.set_keep_alive(usable(keep_alive)?);
        self.options_changed();
        Ok(())
    }

    /// The keep-alive, if it is on.
    pub fn keep_alive(&self) -> Option<KeepAlive> {
        self.conn.options.keep_alive()
    }

    /// How long data may stay unacknowledged without any sign of the peer before the connection ends
    /// with [`TimedOut`](io::ErrorKind::TimedOut) (`TCP_USER_TIMEOUT`, RFC 5482 without the option on
    /// the wire). By default it is as [`Builder::user_timeout`](crate::stack::Builder::user_timeout) says. It
    /// holds for what is unacknowledged already.
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

    /// What [`set_user_timeout`](Self::set_user_timeout) or the stack has set.
    pub fn user_timeout(&self) -> Duration {
        self.conn.options.limits().user
    }

    /// How long the connection may stand still once one direction has ended, see
    /// [`Builder::half_closed_timeout`](crate::stack::Builder::half_closed_timeout). The time counts from when
    /// something last moved, also if that was before.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for zero.
    pub fn set_half_closed_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(above_zero).transpose()?;
        self.change_limits(|limits| limits.half_closed = timeout);
        Ok(())
    }

    /// What [`set_half_closed_timeout`](Self::set_half_closed_timeout) or the stack has set.
    pub fn half_closed_timeout(&self) -> Option<Duration> {
        self.conn.options.limits().half_closed
    }

    /// How long the connection waits for its peer's end when its last handle is gone (`TCP_LINGER2`),
    /// see [`Builder::fin_wait_timeout`](crate::stack::Builder::fin_wait_timeout).
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for zero.
    pub fn set_fin_wait_timeout(&self, timeout: Duration) -> io::Result<()> {
        let timeout = above_zero(timeout)?;
        self.change_limits(|limits| limits.fin_wait = timeout);
        Ok(())
    }

    /// What [`set_fin_wait_timeout`](Self::set_fin_wait_timeout) or the stack has set.
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

/// How many routers a packet may pass.
pub(super) fn hop_limit(ttl: u32) -> io::Result<u8> {
    let hops = u8::try_from(ttl).ok().filter(|hops| *hops > 0);
    hops.ok_or_else(|| {
        let why = format!("a time to live of {ttl} is out of range: use 1 to 255");
        io::Error::new(io::ErrorKind::InvalidInput, why)
    })
}

/// A keep-alive without a zero, with times that can be added to any time.
pub(super) fn usable(keep_alive: Option<KeepAlive>) -> io::Result<Option<KeepAlive>> {
    if keep_alive.is_some_and(|one| !one.is_valid()) {
        let why = "a keep-alive with a zero in it: give times above zero and one probe at least";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(keep_alive.map(|one| one.clamped(LONGEST)))
}

/// A time limit, no longer than can be added to any time.
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
