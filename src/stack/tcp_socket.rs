//! Connecting: [`TcpSocket`], and two functions with std's signatures.

use crate::buf::Buf;
use crate::socket::ConnectError;
use crate::stack::config::LONGEST;
use crate::stack::stream::{above_zero, each, hop_limit, usable};
use crate::stack::{Congestion, KeepAlive, Stack, TcpStream};
use crate::tcp::preset::Preset;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

/// The local address and options of a connection to be made, like tokio's `TcpSocket`.
///
/// It is only a description: [`connect`](Self::connect) and [`start`](Self::start), which can be called
/// any number of times, reserve the address and report errors. Every option applies from the first
/// segment on, and can be changed for the [`TcpStream`] later.
///
/// ```
/// use sosplice::{Stack, TcpListener, TcpSocket, link::memory, stack::Congestion};
/// use std::time::Duration;
/// let (a, b) = memory::pair(memory::Config::default());
/// let server = Stack::builder(a).address("10.0.0.1/24".parse()?).build()?;
/// let client = Stack::builder(b)
///     .address("10.0.0.2/24".parse()?)
///     .address("10.0.0.3/24".parse()?)
///     .build()?;
/// let listener = TcpListener::bind(&server, "10.0.0.1:80")?;
/// let stream = TcpSocket::new(&client)
///     .bind("10.0.0.3:1023".parse()?)
///     .congestion(Congestion::Bbr)
///     .user_timeout(Duration::from_secs(30))
///     .connect("10.0.0.1:80".parse()?)?;
/// assert_eq!(stream.local_addr(), "10.0.0.3:1023".parse()?);
/// assert_eq!(stream.congestion(), Congestion::Bbr);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is connected before connect or start"]
pub struct TcpSocket {
    stack: Stack,
    local: Option<SocketAddr>,
    queue: Option<usize>,
    nodelay: Option<bool>,
    congestion: Option<Congestion>,
    ttl: Option<u32>,
    linger: Option<Duration>,
    keep_alive: Option<Option<KeepAlive>>,
    user_timeout: Option<Duration>,
    half_closed_timeout: Option<Option<Duration>>,
    fin_wait_timeout: Option<Duration>,
    data: Option<Buf>,
}

impl TcpSocket {
    /// A socket with the stack's default options, whose address, port and queue the stack chooses.
    pub fn new(stack: &Stack) -> TcpSocket {
        TcpSocket {
            stack: stack.clone(),
            local: None,
            queue: None,
            nodelay: None,
            congestion: None,
            ttl: None,
            linger: None,
            keep_alive: None,
            user_timeout: None,
            half_closed_timeout: None,
            fin_wait_timeout: None,
            data: None,
        }
    }

    /// Connects from this address and port. An unspecified address or port 0 is chosen by the stack.
    ///
    /// A port that is used again at once may be refused or not answered while the peer has the former
    /// connection in TIME-WAIT; ports chosen by the stack are reused later.
    pub fn bind(mut self, local: SocketAddr) -> TcpSocket {
        self.local = Some(local);
        self
    }

    /// Connects so that the peer's packets arrive on this receive queue, counted from 0, of a stack
    /// with several ([`Stack::with_queues`]). That queue's driver runs the connection; with the queue
    /// of the other connection of a pair ([`TcpStream::queue`]), one thread runs both and their
    /// splices.
    ///
    /// If the link can predict the queue of answers ([`Link::steer`](crate::link::Link::steer)), the
    /// port is chosen accordingly, and each queue has its share of the ephemeral ports. Otherwise this
    /// only sets the connection's home: a TUN learns the queue for answers from sent packets.
    ///
    /// ```
    /// use sosplice::{Stack, TcpListener, TcpSocket, link::memory};
    /// let (near, far) = memory::queues(4, memory::Config::default());
    /// let server = Stack::with_queues(near).address("10.0.0.1/24".parse()?).build()?;
    /// let client = Stack::with_queues(far).address("10.0.0.2/24".parse()?).build()?;
    /// let listener = TcpListener::bind(&server, "10.0.0.1:80")?;
    /// let stream = TcpSocket::new(&client).queue(3).connect("10.0.0.1:80".parse()?)?;
    /// assert_eq!(stream.queue(), 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn queue(mut self, queue: usize) -> TcpSocket {
        self.queue = Some(queue);
        self
    }

    /// See [`TcpStream::set_nodelay`].
    pub fn nodelay(mut self, nodelay: bool) -> TcpSocket {
        self.nodelay = Some(nodelay);
        self
    }

    /// See [`TcpStream::set_congestion`].
    pub fn congestion(mut self, congestion: Congestion) -> TcpSocket {
        self.congestion = Some(congestion);
        self
    }

    /// See [`TcpStream::set_ttl`]. It applies to the SYN too.
    pub fn ttl(mut self, ttl: u32) -> TcpSocket {
        self.ttl = Some(ttl);
        self
    }

    /// See [`TcpStream::set_linger`].
    pub fn linger(mut self, linger: Option<Duration>) -> TcpSocket {
        self.linger = linger;
        self
    }

    /// See [`TcpStream::set_keep_alive`]; `None` switches off the stack's setting.
    pub fn keep_alive(mut self, keep_alive: Option<KeepAlive>) -> TcpSocket {
        self.keep_alive = Some(keep_alive);
        self
    }

    /// See [`TcpStream::set_user_timeout`].
    pub fn user_timeout(mut self, timeout: Duration) -> TcpSocket {
        self.user_timeout = Some(timeout);
        self
    }

    /// See [`TcpStream::set_half_closed_timeout`].
    pub fn half_closed_timeout(mut self, timeout: Option<Duration>) -> TcpSocket {
        self.half_closed_timeout = Some(timeout);
        self
    }

    /// See [`TcpStream::set_fin_wait_timeout`].
    pub fn fin_wait_timeout(mut self, timeout: Duration) -> TcpSocket {
        self.fin_wait_timeout = Some(timeout);
        self
    }

    /// The first bytes of the connection, such as a header of the PROXY protocol: they are in the send buffer before
    /// anything else can be, and leave with the acknowledgement that ends the handshake (RFC 9293 3.10.2: in
    /// SYN-SENT, data is queued). The peer's stack gets them only if the connection is established.
    ///
    /// ```
    /// use sosplice::{Stack, TcpListener, TcpSocket, link::memory};
    /// use std::io::Read;
    /// let (a, b) = memory::pair(memory::Config::default());
    /// let server = Stack::builder(a).address("10.0.0.1/24".parse()?).build()?;
    /// let client = Stack::builder(b).address("10.0.0.2/24".parse()?).build()?;
    /// let listener = TcpListener::bind(&server, "10.0.0.1:80")?;
    /// let _stream = TcpSocket::new(&client).data(b"hello").start("10.0.0.1:80".parse()?)?;
    /// let mut bytes = [0; 5];
    /// listener.accept()?.0.read_exact(&mut bytes)?;
    /// assert_eq!(&bytes, b"hello");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn data(mut self, bytes: &[u8]) -> TcpSocket {
        self.data = (!bytes.is_empty()).then(|| Buf::copy_of(bytes));
        self
    }

    /// Connects and waits until the connection is established, as [`TcpStream::connect`] does.
    ///
    /// # Errors
    /// As for [`TcpStream::connect`], and [`AddrNotAvailable`](io::ErrorKind::AddrNotAvailable) if it
    /// is bound to an address that the stack does not have, or all ports for its queue are in use;
    /// [`AddrInUse`](io::ErrorKind::AddrInUse) if there is a connection with the same addresses and
    /// ports, also in TIME-WAIT; [`InvalidInput`](io::ErrorKind::InvalidInput) for addresses of two
    /// families, if both ends are the same, for a queue that the stack does not have, for an option
    /// that is out of range, and for [`data`](Self::data) that is larger than the send buffer.
    pub fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.start(address)?;
        stream.wait_connected(None)?;
        Ok(stream)
    }

    /// As [`connect`](Self::connect), but waits no longer than `timeout`. A longer attempt is
    /// cancelled.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect), [`TimedOut`](io::ErrorKind::TimedOut) after `timeout` too, and
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a zero timeout: [`start`](Self::start) does not wait.
    pub fn connect_timeout(&self, address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        if timeout.is_zero() {
            let why = "a zero timeout: TcpSocket::start begins to connect and does not wait";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let deadline = self.stack.now().checked_add(timeout);
        let stream = self.start(address)?;
        let connected = stream.wait_connected(deadline);
        connected.map_err(|error| match error {
            ConnectError::Pending => {
                let why = format!("{address} has not answered within {timeout:?}: allow more time");
                io::Error::new(io::ErrorKind::TimedOut, why)
            }
            failed => failed.into(),
        })?;
        Ok(stream)
    }

    /// Begins to connect and does not wait. The connecting socket can be spliced at once: data for it
    /// is held until the connection is established. Dropping the last handle cancels the attempt, and
    /// so does [`abort`](crate::Socket::abort) of any handle: a thread in
    /// [`wait_connected`](crate::Socket::wait_connected) gets `ConnectionAborted`. A
    /// [`shutdown`](TcpStream::shutdown) for writing wakes threads that wait there, too.
    ///
    /// ```
    /// use sosplice::{Stack, TcpListener, TcpSocket, link::memory};
    /// let (a, b) = memory::pair(memory::Config::default());
    /// let server = Stack::builder(a).address("10.0.0.1/24".parse()?).build()?;
    /// let client = Stack::builder(b).address("10.0.0.2/24".parse()?).build()?;
    /// let listener = TcpListener::bind(&server, "10.0.0.1:80")?;
    /// let stream = TcpSocket::new(&client).start("10.0.0.1:80".parse()?)?;
    /// stream.wait_connected(None)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect) that occur before the SYN is sent.
    pub fn start(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let local = self.local.unwrap_or_else(|| any_like(address));
        let preset = self.preset()?;
        let (first, room) = (
            self.data.as_ref().map_or(0, Buf::len),
            self.stack.send_buffer(),
        );
        if first > room {
            let why = format!(
                "{first} first bytes for a send buffer of {room}: give fewer, or a larger buffer"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let conn = self.stack.dial(local, address, self.queue, &preset)?;
        let stream = TcpStream::new(&self.stack, conn);
        if let Some(data) = &self.data {
            stream.send_early(data.clone());
        }
        Ok(stream)
    }

    fn preset(&self) -> io::Result<Preset> {
        Ok(Preset {
            nodelay: self.nodelay,
            congestion: self.congestion,
            hop_limit: self.ttl.map(hop_limit).transpose()?,
            linger: self.linger.map(|time| time.min(LONGEST)),
            keep_alive: self.keep_alive.map(usable).transpose()?,
            user_timeout: self.user_timeout.map(above_zero).transpose()?,
            half_closed_timeout: match self.half_closed_timeout {
                Some(Some(time)) => Some(Some(above_zero(time)?)),
                other => other,
            },
            fin_wait_timeout: self.fin_wait_timeout.map(above_zero).transpose()?,
        })
    }
}

impl TcpStream {
    /// Connects to an address and waits until the connection is established. [`TcpSocket`] has more
    /// ways. The source address is chosen by RFC 6724, the port is a free one that is hard to guess and
    /// was not in use lately (RFC 6056).
    ///
    /// An address of the stack itself is reached within the stack: the connection is accepted by one of its
    /// listeners, or refused at once.
    ///
    /// Of several addresses each is tried in turn. Names are resolved by the operating system, which
    /// may use another network than the stack; IP addresses, also as strings, need no resolver.
    ///
    /// ```
    /// use sosplice::{Stack, TcpListener, TcpStream, link::memory};
    /// let (a, b) = memory::pair(memory::Config::default());
    /// let server = Stack::builder(a).address("10.0.0.1/24".parse()?).build()?;
    /// let client = Stack::builder(b).address("10.0.0.2/24".parse()?).build()?;
    /// let listener = TcpListener::bind(&server, "10.0.0.1:80")?;
    /// let stream = TcpStream::connect(&client, "10.0.0.1:80")?;
    /// assert_eq!(stream.peer_addr(), listener.local_addr());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The error of the last address tried: [`ConnectionRefused`](io::ErrorKind::ConnectionRefused),
    /// [`TimedOut`](io::ErrorKind::TimedOut) after the stack's connect timeout,
    /// [`AddrNotAvailable`](io::ErrorKind::AddrNotAvailable) if the stack has no address of that family
    /// or all ephemeral ports to it are in use, [`QuotaExceeded`](io::ErrorKind::QuotaExceeded) if the
    /// stack has its maximum number of connections
    /// ([`Builder::max_connections`](crate::stack::Builder::max_connections)),
    /// [`HostUnreachable`](io::ErrorKind::HostUnreachable) or
    /// [`PermissionDenied`](io::ErrorKind::PermissionDenied) because of a
    /// [`Route`](crate::stack::Route), [`InvalidInput`](io::ErrorKind::InvalidInput), before anything
    /// is sent, for a destination that no host can have (unspecified, loopback, multicast, reserved,
    /// the broadcast address of a network of the stack, an IPv4-mapped IPv6 address, port 0), or
    /// without an address. An error of the operating system's resolver for a name.
    pub fn connect(stack: &Stack, address: impl ToSocketAddrs) -> io::Result<TcpStream> {
        let socket = TcpSocket::new(stack);
        each(address, |address| socket.connect(address))
    }

    /// As [`connect`](Self::connect) to one address, but waits no longer than `timeout`, see
    /// [`TcpSocket::connect_timeout`].
    ///
    /// # Errors
    /// As there.
    pub fn connect_timeout(
        stack: &Stack,
        address: SocketAddr,
        timeout: Duration,
    ) -> io::Result<TcpStream> {
        TcpSocket::new(stack).connect_timeout(address, timeout)
    }
}

/// The unspecified address of the same family.
fn any_like(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
    }
}
