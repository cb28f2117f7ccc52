//! Kernel sockets as ends of splices.
//!
//! A [`KernelStream`] is a TCP connection of the operating system as a [`Socket`]: received bytes are
//! read directly into pooled frames, and `so_snd` is sent with gathering writes without copying. So
//! bytes can be spliced between a userspace connection and a kernel's, or between two of the kernel's.
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

mod datagrams;
mod options;
mod ping;
mod reactor;
mod udp;

pub use crate::keep_alive::KeepAlive;
pub use datagrams::PathError;
pub use ping::KernelPing;
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
use mio::net::TcpStream as Stream;
use reactor::Reactor;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use smallvec::SmallVec;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

/// Bytes of one read, and of the frame for them.
const READ: usize = 65_536;
/// Smaller reads are copied, so that the frame can be reused.
const SMALL: usize = 4096;
/// Bytes and pieces of one write.
const WRITE: u64 = 1024 * 1024;
const PIECES: usize = 256;
/// Reads or writes in a row, before other connections are served.
const ROUNDS: usize = 32;

/// A TCP connection of the operating system, as a [`Socket`].
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
}

impl KernelStream {
    /// Takes a connection over. From now on it is non-blocking.
    ///
    /// # Errors
    /// Errors of the operating system, also if the reactor's thread cannot be started.
    pub fn from_std(stream: TcpStream) -> io::Result<KernelStream> {
        stream.set_nonblocking(true)?;
        KernelStream::new(Stream::from_std(stream), true)
    }

    /// Connects to an address of the operating system's network, and waits until the connection is
    /// established.
    ///
    /// # Errors
    /// Errors of the operating system.
    pub fn connect(address: SocketAddr) -> io::Result<KernelStream> {
        let stream = KernelStream::start(address)?;
        stream.wait_connected(None)?;
        Ok(stream)
    }

    /// Begins to connect and does not wait. The socket can be spliced at once: bytes for it are held
    /// until the connection is established.
    ///
    /// # Errors
    /// Immediate errors of the operating system, for example for a missing route.
    pub fn start(address: SocketAddr) -> io::Result<KernelStream> {
        KernelStream::new(Stream::connect(address)?, false)
    }

    fn new(stream: Stream, connected: bool) -> io::Result<KernelStream> {
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
            stream: Mutex::new(None),
            connecting: AtomicBool::new(!connected),
            reading: Turn::default(),
            writing: Turn::default(),
            may_read: AtomicBool::new(connected),
            may_write: AtomicBool::new(connected),
            at_end: AtomicBool::new(false),
            detached: AtomicBool::new(false),
            shut: AtomicBool::new(false),
        });
        conn.register(stream)?;
        let socket = Socket::new(end, conn.clone());
        Ok(KernelStream { socket, conn })
    }

    /// This side's address.
    ///
    /// # Errors
    /// `NotConnected` if the connection has failed.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.conn.live()?.local_addr()
    }

    /// The peer's address.
    ///
    /// # Errors
    /// `NotConnected` if the connection is not established.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.conn.live()?.peer_addr()
    }

    /// Returns the descriptor, in blocking mode and with the connection intact, and the bytes that were
    /// received and not read yet. For other handles the socket is closed.
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
        let mut stream = loop {
            match Arc::try_unwrap(shared) {
                Ok(stream) => break stream,
                Err(still) => shared = still,
            }
            thread::yield_now();
        };
        self.conn.reactor.deregister(&mut stream);
        end.cantrcvmore();
        end.cantsendmore();
        let unread = end.rcv().buf.take_all();
        let stream = TcpStream::from(stream);
        stream
            .set_nonblocking(false)
            .map_err(|_| GiveBackError::Gone)?;
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
    /// `None` when the connection has ended.
    stream: Mutex<Option<Arc<Stream>>, LEAF>,
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
    fn register(self: &Arc<Self>, mut stream: Stream) -> io::Result<()> {
        // Readiness reported before the slot is filled is lost, so both directions are checked once
        // more at the end.
        let both = Interest::READABLE | Interest::WRITABLE;
        let registered = self
            .reactor
            .register((self.token, self.clone()), &mut stream, both);
        *self.stream.lock() = Some(Arc::new(stream));
        registered?;
        self.ready(Readiness::BOTH);
        Ok(())
    }

    fn stream(&self) -> Option<Arc<Stream>> {
        self.stream.lock().clone()
    }

    fn live(&self) -> io::Result<Arc<Stream>> {
        self.stream()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn look_whether_connected(&self) {
        let Some(stream) = self.stream() else { return };
        match stream.take_error() {
            Ok(Some(error)) | Err(error) => self.fail(so_error(&error)),
            Ok(None) if stream.peer_addr().is_ok() => {
                self.connecting.store(false, Ordering::Release);
                self.end.connected();
            }
            Ok(None) => {}
        }
    }

    fn look_for_error(&self) {
        let Some(stream) = self.stream() else { return };
        // Bytes received before the error are read first.
        self.reading.take(|| self.fill());
        if let Ok(Some(error)) = stream.take_error() {
            self.fail(so_error(&error));
        }
    }

    /// Reads from the kernel as much as `so_rcv` has space for.
    fn fill(&self) {
        let Some(stream) = self.stream() else { return };
        let mut spare = None;
        for _ in 0..ROUNDS {
            if let Next::Stop = self.read(&stream, &mut spare) {
                return;
            }
        }
        self.reactor.again(self.me.clone());
    }

    fn read(&self, stream: &Stream, spare: &mut Option<FrameMut>) -> Next {
        let room = {
            let rcv = self.end.rcv();
            if rcv.buf.is_closed() {
                0
            } else {
                rcv.buf.space()
            }
        };
        let unready = self.connecting.load(Ordering::Acquire);
        if room == 0 || unready || self.detached.load(Ordering::Acquire) {
            return Next::Stop;
        }
        // Cleared first, so that later readiness is not lost.
        if !self.may_read.swap(false, Ordering::AcqRel) {
            return Next::Stop;
        }
        let want = room.min(READ);
        match read(stream, want, spare) {
            Ok(bytes) if bytes.is_empty() => {
                self.end.cantrcvmore();
                Next::Stop
            }
            Ok(bytes) => {
                // After a short read the kernel reports new bytes; an end of file may have been
                // reported already.
                let more = bytes.len() == want || self.at_end.load(Ordering::Acquire);
                self.may_read.fetch_or(more, Ordering::AcqRel);
                self.end.append_rcv([bytes]);
                Next::Again
            }
            Err(Errno::AGAIN) => Next::Stop,
            Err(errno) => {
                self.fail(so_error(&errno.into()));
                Next::Stop
            }
        }
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

    fn write(&self, stream: &Stream) -> Next {
        let (pieces, finished) = {
            let snd = self.end.snd();
            if !snd.is_connected() {
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
                self.fail(so_error(&errno.into()));
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
    fn finish(&self, stream: &Stream) {
        if !self.shut.swap(true, Ordering::AcqRel) {
            // If this fails, readiness reports the error.
            stream.shutdown(Shutdown::Write).ok();
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
        let stream = self.stream.lock().take();
        if stream.is_some() {
            self.reactor.forget(self.token);
        }
        stream.is_some()
    }

    /// Closes the descriptor so that the peer gets a reset.
    fn reset(&self, error: SoError) {
        // A thread that is writing still has the descriptor, and must not shut it down: this is no
        // orderly end.
        self.shut.store(true, Ordering::Release);
        if let Some(stream) = self.stream() {
            // Without it the peer would get an orderly end.
            let _ = rustix::net::sockopt::set_socket_linger(&*stream, Some(Duration::ZERO));
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
        }
    }

    fn name(&self) -> &'static str {
        "kernel"
    }

    fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        let stream = self.stream()?;
        Some((stream.local_addr().ok()?, stream.peer_addr().ok()?))
    }
}

/// One read, into a frame.
fn read(stream: &Stream, want: usize, spare: &mut Option<FrameMut>) -> Result<Buf, Errno> {
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
fn write(stream: &Stream, bufs: &Gather) -> Result<(usize, bool), Errno> {
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
fn so_error(error: &io::Error) -> SoError {
    match error.kind() {
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
