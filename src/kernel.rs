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

use crate::buf::{Buf, Chain, FrameMut, Gather};
use crate::error::SoError;
use crate::lock::{LEAF, Mutex};
use crate::protocol::{Protocol, SocketEnd, Wakeup};
use crate::sockbuf::DEFAULT_HIWAT;
use crate::socket::poller::pollable;
use crate::socket::{Socket, blocking};
use crate::turn::Turn;
use mio::Interest;
use mio::unix::SourceFd;
use reactor::Reactor;
use rustix::buffer::spare_capacity;
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendFlags, sockopt};
use smallvec::SmallVec;
use socket::stream_family;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpStream};
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::Duration;

/// Bytes of one read, and of the frame for them.
const READ: usize = 65_536;
/// Smaller reads are copied, so that the frame can be reused.
const SMALL: usize = 4096;
/// Bytes and pieces of one write.
const WRITE: u64 = 1024 * 1024;
const PIECES: usize = 256;
/// Bytes that are read before they are passed on: their receivers are then woken once for all. Twice as much leaves the
/// nearer caches.
const BURST: usize = 4 * READ;
/// Bursts of reads, or writes, in a row, before other connections are served.
const BURSTS: usize = 8;
const ROUNDS: usize = 32;

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
        let reactor = Reactor::global()?;
        let end = SocketEnd::new(DEFAULT_HIWAT, DEFAULT_HIWAT);
        if connected {
            end.connected();
        }
        let conn = Arc::new_cyclic(|me| Conn {
            me: me.clone(),
            token: reactor.token(),
            end: end.clone(),
            reactor,
            family,
            stream: Mutex::new(None),
            connecting: AtomicBool::new(!connected),
            reading: Turn::default(),
            writing: Turn::default(),
            may_read: AtomicBool::new(connected),
            may_write: AtomicBool::new(connected),
            at_end: AtomicBool::new(false),
            detached: AtomicBool::new(false),
            shut: AtomicBool::new(false),
            broken: OnceLock::new(),
        });
        conn.register(stream)?;
        let socket = Socket::new(end, conn.clone());
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
        let end = &self.conn.end;
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
        let stream = self.conn.stream.lock().take();
        let mut shared = stream.ok_or(GiveBackError::Gone)?;
        self.conn.reactor.forget(self.conn.token);
        // A thread that is reading or writing holds a reference for a short time, and does not wait.
        let stream = loop {
            match Arc::try_unwrap(shared) {
                Ok(stream) => break stream,
                Err(still) => shared = still,
            }
            thread::yield_now();
        };
        self.conn
            .reactor
            .deregister(&mut SourceFd(&stream.as_raw_fd()));
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

/// The protocol: one connection of the kernel.
#[derive(Debug)]
struct Conn {
    me: Weak<Conn>,
    token: mio::Token,
    end: Arc<SocketEnd>,
    reactor: Arc<Reactor>,
    family: AddressFamily,
    /// `None` when the connection has ended.
    stream: Mutex<Option<Arc<OwnedFd>>, LEAF>,
    connecting: AtomicBool,
    reading: Turn,
    writing: Turn,
    /// Set by readiness, cleared before a system call that may use it up.
    may_read: AtomicBool,
    may_write: AtomicBool,
    /// The peer has closed its direction. The end of file is a read of its own after the last byte,
    /// without a new report of readiness.
    at_end: AtomicBool,
    /// The socket is closed.
    detached: AtomicBool,
    /// The kernel's socket was shut down for writing.
    shut: AtomicBool,
    /// The error that ends it when the bytes that the kernel has are read. (Not for TCP, whose reset says that bytes
    /// may be missing.)
    broken: OnceLock<SoError>,
}

/// Readiness reported by the kernel.
#[derive(Debug, Clone, Copy)]
struct Readiness {
    readable: bool,
    writable: bool,
    read_closed: bool,
    /// An error, or both directions are closed.
    over: bool,
}

impl Readiness {
    const BOTH: Readiness = Readiness {
        readable: true,
        writable: true,
        read_closed: false,
        over: false,
    };
}

/// A socket that the reactor serves.
trait Ready: Send + Sync + std::fmt::Debug {
    /// The kernel reports readiness.
    fn ready(&self, ready: Readiness);

    /// What was left to the reactor is to be done.
    fn resume(&self);

    /// Its work has panicked: it ends.
    fn give_up(&self);
}

/// The next action of a thread.
enum Next {
    Again,
    Stop,
}

impl Conn {
    fn register(self: &Arc<Self>, stream: OwnedFd) -> io::Result<()> {
        // Readiness reported before the slot is filled is lost, so both directions are checked once
        // more at the end.
        let both = Interest::READABLE | Interest::WRITABLE;
        let registered = self.reactor.register(
            (self.token, self.clone()),
            &mut SourceFd(&stream.as_raw_fd()),
            both,
        );
        *self.stream.lock() = Some(Arc::new(stream));
        registered?;
        self.ready(Readiness::BOTH);
        Ok(())
    }

    fn is_ip(&self) -> bool {
        matches!(self.family, AddressFamily::INET | AddressFamily::INET6)
    }

    fn stream(&self) -> Option<Arc<OwnedFd>> {
        self.stream.lock().clone()
    }

    fn live(&self) -> io::Result<Arc<OwnedFd>> {
        self.stream()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn look_whether_connected(&self) {
        let Some(stream) = self.stream() else { return };
        match sockopt::socket_error(&*stream) {
            Ok(Err(errno)) | Err(errno) => self.fail(so_error(errno)),
            Ok(Ok(())) if rustix::net::getpeername(&*stream).is_ok() => {
                self.connecting.store(false, Ordering::Release);
                self.end.connected();
            }
            Ok(Ok(())) => {}
        }
    }

    fn look_for_error(&self) {
        let Some(stream) = self.stream() else { return };
        // Bytes received before the error are read first.
        self.reading.take(|| self.fill());
        if let Ok(Err(errno)) = sockopt::socket_error(&*stream) {
            self.break_off(so_error(errno));
        }
    }

    /// It has failed. What the peer of a unix socket has sent before it closed is still there.
    fn break_off(&self, error: SoError) {
        if self.is_ip() {
            self.fail(error);
            return;
        }
        self.broken.get_or_init(|| error);
        self.may_read.store(true, Ordering::Release);
        self.reading.take(|| self.fill());
    }

    /// Reads from the kernel as much as `so_rcv` has space for.
    fn fill(&self) {
        let Some(stream) = self.stream() else { return };
        let mut spare = None;
        for _ in 0..BURSTS {
            if let Next::Stop = self.read(&stream, &mut spare) {
                return;
            }
        }
        self.reactor.again(self.me.clone());
    }

    fn read(&self, stream: &OwnedFd, spare: &mut Option<FrameMut>) -> Next {
        let room = self.end.with_rcv(|so_rcv| match so_rcv.is_closed() {
            true => None,
            false => Some(so_rcv.space()),
        });
        let detached = self.detached.load(Ordering::Acquire);
        match self.broken.get() {
            // There is nothing to read for.
            Some(error) if room.is_none() || detached => self.fail(*error),
            Some(_) if room == Some(0) => self.stop_writing(),
            _ => {}
        }
        let unready = self.connecting.load(Ordering::Acquire);
        let room = room.unwrap_or(0);
        if room == 0 || unready || detached {
            return Next::Stop;
        }
        // Cleared first, so that later readiness is not lost.
        if !self.may_read.swap(false, Ordering::AcqRel) {
            return Next::Stop;
        }
        let (bufs, stopped) = burst(stream, room.min(BURST), spare);
        let received = !bufs.is_empty();
        // After a short read of TCP's the kernel reports new bytes; an end of file may have been reported already.
        // Those of a unix socket end at descriptors and urgent bytes too.
        let full = matches!(stopped, Ok(Stopped::Full));
        let more = full || !self.is_ip() || self.at_end.load(Ordering::Acquire);
        if received {
            self.may_read.fetch_or(more, Ordering::AcqRel);
            self.end.append_rcv(bufs);
        }
        match (stopped, self.broken.get()) {
            (Ok(Stopped::End), Some(error)) => {
                self.fail(*error);
                Next::Stop
            }
            (Ok(Stopped::End), None) => {
                self.end.cantrcvmore();
                Next::Stop
            }
            (Ok(_), _) => Next::Again,
            (Err(Errno::AGAIN), _) if received => Next::Again,
            (Err(Errno::AGAIN), None) => Next::Stop,
            // It may have shut down its reading only.
            (Err(Errno::AGAIN), Some(_)) => {
                self.stop_writing();
                Next::Stop
            }
            (Err(errno), _) => {
                self.fail(so_error(errno));
                Next::Stop
            }
        }
    }

    /// The error comes when the rest is read; until then nothing can be sent.
    fn stop_writing(&self) {
        self.end.cantsendmore();
        self.end.flush_snd();
    }

    /// Writes from `so_snd` as much as the kernel takes; then, if it is closed, shuts down.
    fn flush(&self) {
        let Some(stream) = self.stream() else { return };
        for _ in 0..ROUNDS {
            if let Next::Stop = self.write(&stream) {
                return;
            }
        }
        self.reactor.again(self.me.clone());
    }

    fn write(&self, stream: &OwnedFd) -> Next {
        let (pieces, finished) = {
            let snd = self.end.snd();
            if !snd.is_connected() || self.broken.get().is_some() {
                return Next::Stop;
            }
            let chain = snd.buf.chain();
            let end = chain.end().min(chain.start() + WRITE);
            (chain.range(chain.start()..end), snd.buf.is_finished())
        };
        if pieces.is_empty() {
            if finished {
                self.finish(stream);
            }
            return Next::Stop;
        }
        if !self.may_write.swap(false, Ordering::AcqRel) {
            return Next::Stop;
        }
        match write(stream, &pieces) {
            Ok((count, all)) => {
                self.may_write.fetch_or(all, Ordering::AcqRel);
                drop(pieces);
                self.sent(count);
                Next::Again
            }
            Err(Errno::AGAIN) => Next::Stop,
            Err(errno) => {
                self.break_off(so_error(errno));
                Next::Stop
            }
        }
    }

    /// Drops sent bytes from `so_snd`, unless the connection has failed meanwhile, which flushes it.
    fn sent(&self, count: usize) {
        let mut snd = self.end.snd();
        let count = count.min(snd.buf.len());
        let sent = snd.buf.take(count);
        self.end.sowwakeup(&snd, Wakeup::Space);
        drop(snd);
        drop(sent);
    }

    /// Everything is sent and nothing will follow.
    fn finish(&self, stream: &OwnedFd) {
        if !self.shut.swap(true, Ordering::AcqRel) {
            // If this fails, readiness reports the error.
            rustix::net::shutdown(stream, rustix::net::Shutdown::Write).ok();
        }
        if self.detached.load(Ordering::Acquire) {
            self.let_go();
        }
    }

    /// The connection has failed: received bytes stay readable, unsent ones are dropped.
    fn fail(&self, error: SoError) {
        if self.let_go() {
            self.end.disconnected(Some(error));
            self.end.flush_snd();
        }
    }

    /// Drops the descriptor, which closes it. `false` if it was dropped before.
    fn let_go(&self) -> bool {
        let Some(stream) = self.stream.lock().take() else {
            return false;
        };
        self.reactor.forget(self.token);
        // A duplicate of it, in this process or another, would keep it registered.
        (self.reactor).deregister(&mut SourceFd(&stream.as_raw_fd()));
        true
    }

    /// Closes the descriptor so that the peer gets a reset.
    fn reset(&self, error: SoError) {
        // A thread that is writing still has the descriptor, and must not shut it down: this is no
        // orderly end.
        self.shut.store(true, Ordering::Release);
        if let Some(stream) = self.stream() {
            // Without it the peer would get an orderly end.
            let _ = sockopt::set_socket_linger(&*stream, Some(Duration::ZERO));
        }
        self.fail(error);
    }
}

impl Ready for Conn {
    fn ready(&self, ready: Readiness) {
        self.at_end.fetch_or(ready.read_closed, Ordering::AcqRel);
        self.may_read.fetch_or(ready.readable, Ordering::AcqRel);
        self.may_write.fetch_or(ready.writable, Ordering::AcqRel);
        if self.connecting.load(Ordering::Acquire) {
            self.look_whether_connected();
        } else if ready.over {
            self.look_for_error();
        }
        self.resume();
    }

    /// Goes on with what can be done.
    fn resume(&self) {
        self.reading.take(|| self.fill());
        self.writing.take(|| self.flush());
    }

    fn give_up(&self) {
        self.fail(SoError::ConnectionAborted);
    }
}

impl Protocol for Conn {
    fn output(&self) {
        self.writing.take(|| self.flush());
    }

    fn rcvd(&self, _idle: bool) {
        self.reading.take(|| self.fill());
    }

    fn abort(&self) {
        self.reset(SoError::ConnectionAborted);
        self.end.flush_rcv();
    }

    fn detach(&self) {
        self.detached.store(true, Ordering::Release);
        let unread = !self.end.rcv().buf.is_empty();
        let connecting = self.connecting.load(Ordering::Acquire);
        if unread || connecting || self.closes_with_reset() {
            self.reset(SoError::ConnectionAborted);
        } else {
            self.end.cantsendmore();
            self.writing.take(|| self.flush());
            if !self.is_ip() {
                // It may have failed, with bytes that no one reads any more.
                self.reading.take(|| self.fill());
            }
        }
    }

    fn name(&self) -> &'static str {
        match self.family {
            AddressFamily::UNIX => "unix",
            AddressFamily::VSOCK => "vsock",
            _ => "kernel",
        }
    }

    fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        let stream = self.stream()?;
        let (local, peer) = (Address::local(&*stream), Address::peer(&*stream));
        Some((local.ok()?.ip().ok()?, peer.ok()?.ip().ok()?))
    }
}

/// Why no more was read.
enum Stopped {
    Full,
    Short,
    End,
}

/// Reads until there are so many bytes, or the kernel has no more.
fn burst(
    stream: &OwnedFd,
    most: usize,
    spare: &mut Option<FrameMut>,
) -> (Gather, Result<Stopped, Errno>) {
    let (mut bufs, mut left) = (Gather::new(), most);
    while left > 0 {
        let want = left.min(READ);
        let buf = match read(stream, want, spare) {
            Ok(buf) if buf.is_empty() => return (bufs, Ok(Stopped::End)),
            Ok(buf) => buf,
            Err(errno) => return (bufs, Err(errno)),
        };
        let len = buf.len();
        bufs.push(buf);
        left -= len;
        if len < want {
            return (bufs, Ok(Stopped::Short));
        }
    }
    (bufs, Ok(Stopped::Full))
}

/// One read, into a frame.
fn read(stream: &OwnedFd, want: usize, spare: &mut Option<FrameMut>) -> Result<Buf, Errno> {
    if spare
        .as_mut()
        .is_none_or(|frame| frame.bytes_mut().capacity() < want)
    {
        *spare = Some(FrameMut::with_capacity(want));
    }
    let frame = spare.get_or_insert_with(|| FrameMut::with_capacity(want));
    let bytes = frame.bytes_mut();
    // The system fills the whole capacity after these bytes, which must be limited to the wanted
    // length.
    let skip = bytes.capacity().saturating_sub(want);
    bytes.clear();
    bytes.resize(skip, 0);
    let count = loop {
        match rustix::io::read(stream, spare_capacity(bytes)) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    if count < SMALL {
        return Ok(Buf::copy_of(&bytes[skip..]));
    }
    let whole = spare.take().map(FrameMut::freeze);
    Ok(whole.map_or_else(|| Buf::copy_of(&[]), |buf| buf.slice(skip..buf.len())))
}

/// One gathering write. Returns the number of bytes that the kernel took, and whether these were all.
fn write(stream: &OwnedFd, bufs: &Gather) -> Result<(usize, bool), Errno> {
    let pieces = bufs.iter().take(PIECES).map(|buf| IoSlice::new(buf));
    let pieces: SmallVec<[IoSlice<'_>; 16]> = pieces.collect();
    let len: usize = pieces.iter().map(|piece| piece.len()).sum();
    loop {
        let mut nothing = SendAncillaryBuffer::default();
        match rustix::net::sendmsg(stream, &pieces, &mut nothing, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            result => return result.map(|count| (count, count == len)),
        }
    }
}

/// The kernel's error as a socket error. `EPIPE` is a reset after the peer's end of file, since there
/// are no writes after this side's own shutdown.
fn so_error(errno: Errno) -> SoError {
    match io::Error::from(errno).kind() {
        io::ErrorKind::ConnectionRefused => SoError::ConnectionRefused,
        io::ErrorKind::TimedOut => SoError::TimedOut,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            SoError::HostUnreachable
        }
        io::ErrorKind::NetworkDown => SoError::NetworkDown,
        io::ErrorKind::ConnectionAborted => SoError::ConnectionAborted,
        _ => SoError::ConnectionReset,
    }
}

#[cfg(test)]
mod tests;
