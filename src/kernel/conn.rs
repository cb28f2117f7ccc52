//! One connection of the kernel as a protocol: reads and writes of its descriptor.

use super::address::Address;
use super::reactor::{Next, ROUNDS, Reactor, Readiness, Ready};
use crate::buf::{Buf, FrameMut, Gather};
use crate::error::SoError;
use crate::lock::{LEAF, Mutex};
use crate::protocol::{Protocol, SocketEnd, Wakeup};
use crate::sockbuf::DEFAULT_HIWAT;
use crate::turn::Turn;
use mio::Interest;
use mio::unix::SourceFd;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendFlags, sockopt};
use smallvec::SmallVec;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
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

/// The protocol: one connection of the kernel.
#[derive(Debug)]
pub(super) struct Conn {
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

impl Conn {
    /// Serves the descriptor, which is non-blocking.
    pub(super) fn open(
        stream: OwnedFd,
        family: AddressFamily,
        connected: bool,
    ) -> io::Result<Arc<Conn>> {
        let reactor = Reactor::global()?;
        let end = SocketEnd::new(DEFAULT_HIWAT, DEFAULT_HIWAT);
        if connected {
            end.connected();
        }
        let conn = Arc::new_cyclic(|me| Conn {
            me: me.clone(),
            token: reactor.token(),
            end,
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
        Ok(conn)
    }

    pub(super) fn end(&self) -> &Arc<SocketEnd> {
        &self.end
    }

    /// Takes the descriptor back, which the reactor serves no more. `None` when the connection has ended.
    pub(super) fn take(&self) -> Option<OwnedFd> {
        let mut shared = self.stream.lock().take()?;
        self.reactor.forget(self.token);
        // A thread that is reading or writing holds a reference for a short time, and does not wait.
        let stream = loop {
            match Arc::try_unwrap(shared) {
                Ok(stream) => break stream,
                Err(still) => shared = still,
            }
            thread::yield_now();
        };
        self.reactor.deregister(&mut SourceFd(&stream.as_raw_fd()));
        Some(stream)
    }

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

    pub(super) fn is_ip(&self) -> bool {
        matches!(self.family, AddressFamily::INET | AddressFamily::INET6)
    }

    pub(super) fn stream(&self) -> Option<Arc<OwnedFd>> {
        self.stream.lock().clone()
    }

    pub(super) fn live(&self) -> io::Result<Arc<OwnedFd>> {
        self.stream()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Whether the last close is a reset (`SO_LINGER` with zero).
    fn closes_with_reset(&self) -> bool {
        let stream = self.stream();
        let linger = stream.and_then(|stream| sockopt::socket_linger(&*stream).ok());
        linger.flatten() == Some(Duration::ZERO)
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
