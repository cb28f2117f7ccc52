//! A program's socket: blocking and non-blocking I/O, shutdown, close, options.
//!
//! A [`Socket`] holds a [`SocketEnd`], whose buffers it reads and fills, and the [`Protocol`], which it
//! calls. It does not depend on splices: a splice is an [`Upcall`] that diverts a buffer and is called
//! when the socket is being closed.
//!
//! * Each method locks one buffer, releases it, and then calls the protocol, with no lock held and
//!   inside a run list: splices that are to run in this thread run after the call.
//! * A reader calls `rcvd(true)` before it sleeps, so that no window update is withheld while both
//!   sides wait.
//! * Cloning a handle is like duplicating a descriptor; the last one closes the socket, which ends its
//!   splices in both roles. A splice does not keep a socket open.
//!
//! [`poller`] waits for many sockets at once.
//!
//! Locks: `so_rcv` (2) or `so_snd` (3), never both here.

mod datagrams;
pub mod poller;

use crate::buf::{Buf, Chain};
use crate::callbacks::{self, Once};
use crate::clock::{Clock, SystemClock};
use crate::end::{End, Role};
use crate::error::{Flavor, SoError};
use crate::lock::{self, Guard, RCV, SND};
use crate::protocol::{Protocol, Side, SocketEnd, Upcall, Upcalls, Wakeup};
use crate::run_list::{self, Budget};
use crate::sockbuf::{Addresses, Datagram};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[cfg(feature = "async")]
pub(crate) mod aio;

/// A handle of a socket. Clones are the same socket.
///
/// ```
/// use std::io::{Read, Write};
/// let (mut a, mut b) = sosplice::local::pair();
/// a.write_all(b"over memory")?;
/// a.close();
/// let mut all = String::new();
/// b.read_to_string(&mut all)?;
/// assert_eq!(all, "over memory");
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug, Clone)]
pub struct Socket {
    open: Arc<Open>,
}

/// The open socket that all handles share (as descriptors share a file description).
#[derive(Debug)]
struct Open {
    end: Arc<SocketEnd>,
    protocol: Arc<dyn Protocol>,
    nonblocking: AtomicBool,
    read_timeout: Timeout,
    write_timeout: Timeout,
    #[cfg(feature = "async")]
    wakers: std::sync::OnceLock<Arc<aio::Wakers>>,
}

/// Why a connection is not established.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The connection attempt failed.
    #[error(transparent)]
    Failed(#[from] SoError),
    /// Still connecting when the caller's deadline passed.
    #[error("the peer has not answered in the time given, wait longer or close the socket")]
    Pending,
}

impl From<ConnectError> for io::Error {
    fn from(error: ConnectError) -> io::Error {
        match error {
            ConnectError::Failed(error) => error.into(),
            ConnectError::Pending => io::Error::new(io::ErrorKind::TimedOut, error),
        }
    }
}

impl Socket {
    /// A socket over a protocol and the end that it holds.
    ///
    /// ```
    /// use sosplice::{protocol::{Protocol, SocketEnd}, socket::Socket};
    /// use std::sync::Arc;
    ///
    /// /// Sends everything to nowhere.
    /// #[derive(Debug)]
    /// struct Discard(Arc<SocketEnd>);
    /// impl Protocol for Discard {
    ///     fn output(&self) {
    ///         drop(self.0.take_snd(usize::MAX));
    ///     }
    ///     fn rcvd(&self, _idle: bool) {}
    ///     fn abort(&self) {}
    ///     fn detach(&self) {}
    ///     fn name(&self) -> &'static str {
    ///         "discard"
    ///     }
    /// }
    ///
    /// let end = SocketEnd::new(1000, 1000);
    /// end.connected();
    /// let socket = Socket::new(end.clone(), Arc::new(Discard(end)));
    /// assert_eq!(socket.send(b"never received")?, 14);
    /// # std::io::Result::Ok(())
    /// ```
    pub fn new(end: Arc<SocketEnd>, protocol: Arc<dyn Protocol>) -> Socket {
        Socket {
            open: Arc::new(Open {
                end,
                protocol,
                nonblocking: AtomicBool::new(false),
                read_timeout: Timeout::default(),
                write_timeout: Timeout::default(),
                #[cfg(feature = "async")]
                wakers: std::sync::OnceLock::new(),
            }),
        }
    }

    /// The part of this socket that the protocol holds.
    pub fn end(&self) -> &Arc<SocketEnd> {
        &self.open.end
    }

    /// The protocol.
    pub fn protocol(&self) -> &Arc<dyn Protocol> {
        &self.open.protocol
    }

    /// Receives bytes. Waits for the first one (or for the low-water mark, [`set_rcv_lowat`]), then
    /// returns the bytes that are there. `Ok(0)` at the end of the stream.
    ///
    /// [`set_rcv_lowat`]: Self::set_rcv_lowat
    ///
    /// # Errors
    /// `WouldBlock` if the socket is non-blocking and there are no bytes, or after the read timeout;
    /// once, the error that has ended the connection.
    pub fn recv(&self, out: &mut [u8]) -> io::Result<usize> {
        self.receive_into(self.wait_for_bytes(), out)
    }

    /// As [`recv`](Self::recv), into several buffers, one after the other (`readv`).
    ///
    /// ```
    /// use std::io::IoSliceMut;
    /// let (a, b) = sosplice::local::pair();
    /// a.send(b"hello world")?;
    /// let (mut first, mut second) = ([0; 5], [0; 20]);
    /// let count = b.recv_vectored(&mut [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)])?;
    /// assert_eq!((count, &first, &second[..6]), (11, b"hello", &b" world"[..]));
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    /// As for [`recv`](Self::recv).
    pub fn recv_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let want = bufs.iter().map(|buf| buf.len()).sum();
        if want == 0 && !self.end().is_for_datagrams() {
            return Ok(0);
        }
        let taken = self.receive(self.wait_for_bytes(), want, |rcv| {
            let whole = rcv.buf.first_record().map_or(usize::MAX, |(len, _)| len);
            let mut left = whole;
            for buf in bufs.iter_mut() {
                let room = buf.len().min(left);
                left -= rcv.buf.read(&mut buf[..room]);
            }
            rcv.buf.end_record();
            whole - left
        })?;
        Ok(taken.unwrap_or(0))
    }

    /// As [`recv`](Self::recv), but never waits.
    #[cfg(feature = "async")]
    fn try_recv(&self, out: &mut [u8]) -> io::Result<usize> {
        self.receive_into(Wait::Never, out)
    }

    fn receive_into(&self, wait: Wait, out: &mut [u8]) -> io::Result<usize> {
        if self.end().is_for_datagrams() {
            return Ok(self.receive_datagram(wait, out)?.0);
        }
        if out.is_empty() {
            return Ok(0);
        }
        let taken = self.receive(wait, out.len(), |rcv| rcv.buf.read(out))?;
        Ok(taken.unwrap_or(0))
    }

    /// Whether and how long a read waits.
    fn wait_for_bytes(&self) -> Wait {
        Wait::new(self.is_nonblocking(), &self.open.read_timeout)
    }

    /// Whether and how long a write waits.
    fn wait_for_space(&self) -> Wait {
        Wait::new(self.is_nonblocking(), &self.open.write_timeout)
    }

    /// Receives up to `max` bytes without copying. An empty chain at the end of the stream.
    ///
    /// ```
    /// let (a, b) = sosplice::local::pair();
    /// a.send(b"hello world")?;
    /// assert_eq!(b.recv_chain(5)?.to_vec(), b"hello");
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn recv_chain(&self, max: usize) -> io::Result<Chain> {
        if max == 0 && !self.end().is_for_datagrams() {
            return Ok(Chain::default());
        }
        let taken = self.receive(self.wait_for_bytes(), max, |rcv| {
            let len = rcv.buf.first_record().map_or(rcv.buf.len(), |(len, _)| len);
            let taken = rcv.buf.take(len.min(max));
            rcv.buf.end_record();
            taken
        })?;
        Ok(taken.unwrap_or_default())
    }

    /// As [`recv`](Self::recv), but leaves the bytes (`MSG_PEEK`).
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn peek(&self, out: &mut [u8]) -> io::Result<usize> {
        self.peek_into(self.wait_for_bytes(), out)
    }

    fn peek_into(&self, wait: Wait, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        let rcv = self.wait_readable(wait, out.len())?;
        let Some(rcv) = rcv else { return Ok(0) };
        let most = rcv.buf.first_record().map_or(out.len(), |(len, _)| len);
        let room = out.len().min(most);
        Ok(rcv.buf.chain().peek(&mut out[..room]))
    }

    fn receive<R>(
        &self,
        wait: Wait,
        want: usize,
        take: impl FnOnce(&mut Guard<'_, Side, RCV>) -> R,
    ) -> io::Result<Option<R>> {
        let Some(mut rcv) = self.wait_readable(wait, want)? else {
            return Ok(None);
        };
        let taken = take(&mut rcv);
        if rcv.is_diverted() && rcv.buf.is_finished() {
            // A splice that waits for room must notice that its source is closed.
            self.open.end.sorwakeup(&rcv, Wakeup::RcvClosed);
        }
        drop(rcv);
        self.enter(|protocol| protocol.rcvd(false));
        Ok(Some(taken))
    }

    /// `so_rcv` with bytes in it, locked; `None` at the end of the stream.
    fn wait_readable(&self, wait: Wait, want: usize) -> io::Result<Option<Guard<'_, Side, RCV>>> {
        let end = &self.open.end;
        let mut announced = false;
        let mut timed_out = wait == Wait::Never;
        let mut rcv = end.rcv();
        loop {
            let impatient = timed_out || rcv.buf.is_closed() || end.error().is_some();
            let enough = if !impatient {
                rcv.buf.lowat().min(want)
            } else {
                1
            };
            // OpenBSD: while the splice lasts, the buffer appears empty to readers.
            let hidden = rcv.is_diverted() && end.flavor() == Flavor::OpenBsd;
            if !hidden {
                if rcv.buf.has(enough) {
                    return Ok(Some(rcv));
                }
                if rcv.buf.is_empty()
                    && let Some(error) = end.take_error()
                {
                    return Err(error.into());
                }
                if rcv.buf.is_finished() {
                    return Ok(None);
                }
            }
            if timed_out {
                return Err(would_block("no bytes to read"));
            }
            if announced {
                timed_out = end.rcv_wait().wait_until(&mut rcv, wait.deadline());
            } else {
                drop(rcv);
                self.enter(|protocol| protocol.rcvd(true));
                rcv = end.rcv();
            }
            announced = !announced;
        }
    }

    /// Sends bytes. Waits until there is space, then sends as many as fit and returns their number.
    ///
    /// # Errors
    /// `WouldBlock` if the socket is non-blocking and there is no space or no connection yet, or after
    /// the write timeout; the error that has ended the connection, or `BrokenPipe`.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.send_from(self.wait_for_space(), &[IoSlice::new(bytes)])
    }

    /// As [`send`](Self::send), from several buffers, one after the other (`writev`).
    ///
    /// ```
    /// use std::io::IoSlice;
    /// let (a, b) = sosplice::local::pair();
    /// a.send_vectored(&[IoSlice::new(b"hello"), IoSlice::new(b" world")])?;
    /// assert_eq!(b.recv_chain(100)?.to_vec(), b"hello world");
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn send_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send_from(self.wait_for_space(), bufs)
    }

    /// As [`send_vectored`](Self::send_vectored), but never waits.
    #[cfg(feature = "async")]
    fn try_send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send_from(Wait::Never, bufs)
    }

    fn send_from(&self, wait: Wait, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.end().is_for_datagrams() {
            return self.send_slices(wait, bufs, Addresses::default());
        }
        let want = bufs.iter().map(|buf| buf.len()).sum();
        if want == 0 {
            return Ok(0);
        }
        let mut snd = self.wait_writable(wait, want)?;
        let count = snd.buf.space().min(want);
        let mut left = count;
        for buf in bufs {
            let part = &buf[..buf.len().min(left)];
            snd.buf.append_copy(part);
            left -= part.len();
        }
        drop(snd);
        self.enter(|protocol| protocol.output());
        Ok(count)
    }

    /// Appends the first bytes of a connection, which may be under way. They fit into `so_snd`.
    pub(crate) fn send_early(&self, bytes: Buf) {
        let mut snd = self.end().snd();
        // It may have failed already.
        if !snd.buf.is_closed() {
            snd.buf.append(bytes);
        }
        drop(snd);
        self.enter(|protocol| protocol.output());
    }

    /// Sends from the front of `chain` without copying: as [`send`](Self::send), bytes that did not fit
    /// stay in the chain.
    ///
    /// ```
    /// use sosplice::buf::{Buf, Chain};
    /// let (a, b) = sosplice::local::pair_with_hiwat(4, 4);
    /// let mut chain = Chain::from(Buf::copy_of(b"hello"));
    /// assert_eq!(a.send_chain(&mut chain)?, 4);
    /// assert_eq!(chain.to_vec(), b"o");
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_chain(&self, chain: &mut Chain) -> io::Result<usize> {
        if self.end().is_for_datagrams() {
            let payload = chain.iter().cloned();
            let mut one = vec![Datagram::new(payload, Addresses::default())];
            self.send_datagrams(&mut one)?;
            let count = chain.len();
            chain.advance(count);
            return Ok(count);
        }
        if chain.is_empty() {
            return Ok(0);
        }
        let mut snd = self.wait_writable(self.wait_for_space(), chain.len())?;
        let count = snd.buf.space().min(chain.len());
        snd.buf.append_from(chain, count);
        drop(snd);
        self.enter(|protocol| protocol.output());
        Ok(count)
    }

    /// `so_snd` with space in it, locked.
    fn wait_writable(&self, wait: Wait, want: usize) -> io::Result<Guard<'_, Side, SND>> {
        let end = &self.open.end;
        let mut timed_out = wait == Wait::Never;
        let mut snd = end.snd();
        loop {
            if let Some(error) = end.take_error() {
                return Err(error.into());
            }
            if snd.buf.is_closed() {
                return Err(SoError::BrokenPipe.into());
            }
            let enough = if timed_out {
                1
            } else {
                snd.buf.lowat().min(want)
            };
            if snd.is_connected() && snd.buf.space() >= enough {
                return Ok(snd);
            }
            if timed_out {
                return Err(would_block("no space to write into"));
            }
            timed_out = end.snd_wait().wait_until(&mut snd, wait.deadline());
        }
    }

    /// Waits until the connection is established or has failed; without `deadline`, without limit.
    ///
    /// ```
    /// let (a, _b) = sosplice::local::pair();
    /// assert_eq!(a.wait_connected(None), Ok(()));
    /// ```
    ///
    /// # Errors
    /// The error that has ended the connection ([`take_error`](Self::take_error) no longer returns it);
    /// [`ConnectError::Pending`] after the deadline.
    pub fn wait_connected(&self, deadline: Option<Instant>) -> Result<(), ConnectError> {
        let end = &self.open.end;
        let mut snd = end.snd();
        let mut timed_out = false;
        loop {
            if snd.is_connected() {
                return Ok(());
            }
            if snd.buf.is_closed() {
                let error = end.take_error().unwrap_or(SoError::ConnectionAborted);
                return Err(error.into());
            }
            if timed_out {
                return Err(ConnectError::Pending);
            }
            timed_out = end.snd_wait().wait_until(&mut snd, deadline);
        }
    }

    /// Ends one or both directions. The peer still gets the bytes that were sent before.
    ///
    /// # Errors
    /// None at present.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if matches!(how, Shutdown::Read | Shutdown::Both) {
            self.open.end.flush_rcv();
            self.enter(|protocol| protocol.rcvd(true));
        }
        if matches!(how, Shutdown::Write | Shutdown::Both) {
            self.open.end.cantsendmore();
            self.enter(|protocol| protocol.output());
        }
        Ok(())
    }

    /// Drops this handle. The last one closes the socket: its splices end, and the bytes sent before
    /// are still delivered. Dropping the handle does the same.
    pub fn close(self) {}

    /// Ends the connection at once, for all handles, and notifies the peer (a TCP reset).
    pub fn abort(&self) {
        self.enter(|protocol| protocol.abort());
    }

    /// Reads and clears the socket's error (`SO_ERROR`).
    pub fn take_error(&self) -> Option<SoError> {
        self.open.end.take_error()
    }

    /// Number of bytes that can be read at once (`FIONREAD`).
    pub fn readable_bytes(&self) -> usize {
        self.open.end.rcv().buf.len()
    }

    /// Whether calls return `WouldBlock` instead of waiting; for all handles.
    pub fn set_nonblocking(&self, nonblocking: bool) {
        self.open.nonblocking.store(nonblocking, Ordering::Relaxed);
    }

    /// Whether calls return `WouldBlock` instead of waiting.
    pub fn is_nonblocking(&self) -> bool {
        self.open.nonblocking.load(Ordering::Relaxed)
    }

    /// How long a read waits (`SO_RCVTIMEO`); `None` waits without limit.
    ///
    /// # Errors
    /// `InvalidInput` for a zero timeout; use [`set_nonblocking`](Self::set_nonblocking).
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.open.read_timeout.set(timeout)
    }

    /// How long a write waits (`SO_SNDTIMEO`); `None` waits without limit.
    ///
    /// # Errors
    /// `InvalidInput` for a zero timeout; use [`set_nonblocking`](Self::set_nonblocking).
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.open.write_timeout.set(timeout)
    }

    /// How long a read waits.
    pub fn read_timeout(&self) -> Option<Duration> {
        self.open.read_timeout.get()
    }

    /// How long a write waits.
    pub fn write_timeout(&self) -> Option<Duration> {
        self.open.write_timeout.get()
    }

    /// High-water mark of `so_rcv` in bytes (`SO_RCVBUF`).
    pub fn rcv_hiwat(&self) -> usize {
        self.open.end.rcv().buf.hiwat()
    }

    /// Sets the high-water mark of `so_rcv`. The largest window of a TCP connection is set by its
    /// stack's configuration and does not change.
    pub fn set_rcv_hiwat(&self, bytes: usize) {
        let mut rcv = self.open.end.rcv();
        rcv.buf.set_hiwat(bytes);
        // The low-water mark may have come down with it.
        self.open.end.sorwakeup(&rcv, Wakeup::Data);
        drop(rcv);
        self.enter(|protocol| protocol.rcvd(true));
    }

    /// High-water mark of `so_snd` in bytes (`SO_SNDBUF`).
    pub fn snd_hiwat(&self) -> usize {
        self.open.end.snd().buf.hiwat()
    }

    /// Sets the high-water mark of `so_snd`.
    pub fn set_snd_hiwat(&self, bytes: usize) {
        let mut snd = self.open.end.snd();
        snd.buf.set_hiwat(bytes);
        self.open.end.sowwakeup(&snd, Wakeup::Space);
    }

    /// Bytes that a waiting read waits for (`SO_RCVLOWAT`).
    pub fn rcv_lowat(&self) -> usize {
        self.open.end.rcv().buf.lowat()
    }

    /// Sets how many bytes a waiting read waits for, within 1 and three quarters of the
    /// high-water mark.
    pub fn set_rcv_lowat(&self, bytes: usize) {
        let mut rcv = self.open.end.rcv();
        rcv.buf.set_lowat(bytes);
        self.open.end.sorwakeup(&rcv, Wakeup::Data);
    }

    /// Bytes of space that a waiting write (or a splice into this socket) waits for
    /// (`SO_SNDLOWAT`).
    pub fn snd_lowat(&self) -> usize {
        self.open.end.snd().buf.lowat()
    }

    /// Sets how much space a waiting write waits for, within 1 and three quarters of the
    /// high-water mark.
    pub fn set_snd_lowat(&self, bytes: usize) {
        let mut snd = self.open.end.snd();
        snd.buf.set_lowat(bytes);
        self.open.end.sowwakeup(&snd, Wakeup::Space);
    }

    /// The system that this socket behaves like where FreeBSD and OpenBSD differ.
    pub fn flavor(&self) -> Flavor {
        self.open.end.flavor()
    }

    /// Sets the system that this socket behaves like, as the source of splices that are set up
    /// afterwards and for reads while one lasts.
    pub fn set_flavor(&self, flavor: Flavor) {
        self.open.end.set_flavor(flavor);
    }

    /// How the latest splice with this socket in this role has ended; `None` before the first one, and
    /// while one lasts.
    pub fn splice_end(&self, role: Role) -> Option<End> {
        match role {
            Role::Source => self.open.end.rcv().ended(),
            Role::Sink => self.open.end.snd().ended(),
        }
    }

    /// Puts an upcall on `so_rcv` (`soupcall_set`); there can be several. It runs under the buffer's
    /// lock, see [`Upcall`]. It is not called while the socket is the source of a splice, and is called
    /// when the splice ends, whether or not there is something to read.
    pub fn add_rcv_upcall(&self, upcall: Arc<dyn Upcall>) {
        self.open.end.rcv().add_upcall(upcall);
    }

    /// Removes an upcall from `so_rcv` and returns it, if it is there. Another thread may still be
    /// running it.
    pub fn remove_rcv_upcall(&self, upcall: &dyn Upcall) -> Option<Arc<dyn Upcall>> {
        self.open.end.rcv().remove_upcall(upcall)
    }

    /// Puts an upcall on `so_snd`, as [`add_rcv_upcall`](Self::add_rcv_upcall). It is not called while
    /// the socket is the sink of a splice.
    pub fn add_snd_upcall(&self, upcall: Arc<dyn Upcall>) {
        self.open.end.snd().add_upcall(upcall);
    }

    /// Removes an upcall from `so_snd` and returns it, if it is there.
    pub fn remove_snd_upcall(&self, upcall: &dyn Upcall) -> Option<Arc<dyn Upcall>> {
        self.open.end.snd().remove_upcall(upcall)
    }

    fn enter(&self, call: impl FnOnce(&dyn Protocol)) {
        self.open.enter(call);
    }
}

impl Open {
    /// Calls the protocol, with no lock held.
    fn enter(&self, call: impl FnOnce(&dyn Protocol)) {
        enter(&*self.protocol, call);
    }
}

fn enter(protocol: &dyn Protocol, call: impl FnOnce(&dyn Protocol)) {
    lock::assert_none_held();
    run_list::scope(Budget::USER, || call(protocol));
}

impl Drop for Open {
    fn drop(&mut self) {
        // The socket's own upcalls are not called for the close; those of the other socket of a splice
        // are.
        let upcalls: [Upcalls; 2] = [
            std::mem::take(self.end.rcv().upcalls_mut()),
            std::mem::take(self.end.snd().upcalls_mut()),
        ];
        #[cfg(feature = "async")]
        drop(self.wakers.take());
        if upcalls.iter().any(|upcalls| !upcalls.is_empty()) {
            // They may hold the last handle of another socket with upcalls.
            callbacks::call(Once::new(move || drop(upcalls)));
        }
        if callbacks::is_closing() {
            let (end, protocol) = (self.end.clone(), self.protocol.clone());
            callbacks::call(Once::new(move || soclose(&end, &*protocol)));
        } else {
            soclose(&self.end, &*self.protocol);
        }
    }
}

fn soclose(end: &SocketEnd, protocol: &dyn Protocol) {
    let source_of = end.rcv().diversion().cloned();
    let sink_of = end.snd().diversion().cloned();
    for splice in [source_of, sink_of].into_iter().flatten() {
        callbacks::while_closing(|| splice.closing(end));
    }
    // Not closed for writing here: the protocol might send a FIN before `detach` finds unread bytes,
    // for which a reset is due.
    enter(protocol, |protocol| protocol.detach());
}

fn would_block(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::WouldBlock, what)
}

/// A duration in nanoseconds; 0 is none.
#[derive(Debug, Default)]
struct Timeout(AtomicU64);

impl Timeout {
    fn set(&self, timeout: Option<Duration>) -> io::Result<()> {
        if timeout == Some(Duration::ZERO) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a zero timeout: None waits without limit, set_nonblocking(true) never waits",
            ));
        }
        let nanos = timeout.map_or(0, |timeout| {
            u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX)
        });
        self.0.store(nanos, Ordering::Relaxed);
        Ok(())
    }

    fn get(&self) -> Option<Duration> {
        let nanos = self.0.load(Ordering::Relaxed);
        (nanos > 0).then(|| Duration::from_nanos(nanos))
    }
}

/// Whether and how long a call waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    Never,
    Until(Instant),
    Forever,
}

impl Wait {
    /// For a call that begins now.
    fn new(nonblocking: bool, timeout: &Timeout) -> Wait {
        if nonblocking {
            return Wait::Never;
        }
        let deadline = timeout
            .get()
            .and_then(|timeout| SystemClock.now().checked_add(timeout));
        deadline.map_or(Wait::Forever, Wait::Until)
    }

    fn deadline(self) -> Option<Instant> {
        match self {
            Wait::Until(deadline) => Some(deadline),
            Wait::Never | Wait::Forever => None,
        }
    }
}

impl AsRef<Socket> for Socket {
    fn as_ref(&self) -> &Socket {
        self
    }
}

/// The traits of [`std::io`], for types that have a socket.
macro_rules! blocking {
    ($stream:ty) => {
        impl std::io::Read for $stream {
            fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
                self.recv(out)
            }

            fn read_vectored(
                &mut self,
                bufs: &mut [std::io::IoSliceMut<'_>],
            ) -> std::io::Result<usize> {
                self.recv_vectored(bufs)
            }
        }

        impl std::io::Write for $stream {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.send(bytes)
            }

            fn write_vectored(&mut self, bufs: &[std::io::IoSlice<'_>]) -> std::io::Result<usize> {
                self.send_vectored(bufs)
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
    };
}

pub(crate) use blocking;

blocking!(Socket);
blocking!(&Socket);

#[cfg(test)]
mod tests;
