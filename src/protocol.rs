//! The interface between a socket and its protocol: BSD's `protosw`.
//!
//! A protocol implements [`Protocol`] and holds a [`SocketEnd`]: both socket buffers, the socket's
//! error, and the wake-ups. It never sees the `Socket` itself, so there is no cycle of references:
//!
//! ```text
//! Socket ──> Arc<dyn Protocol> ──> Arc<SocketEnd> <── Socket
//! ```
//!
//! * Bytes arrive: [`SocketEnd::append_rcv`]. The peer will send no more: [`SocketEnd::cantrcvmore`].
//! * Bytes were acknowledged: [`SocketEnd::drop_snd`]. Nothing can be sent any more:
//!   [`SocketEnd::cantsendmore`].
//! * The connection is established: [`SocketEnd::connected`]. It has ended:
//!   [`SocketEnd::disconnected`], with the error, if there is one.
//!
//! Each of these wakes sleeping threads and calls the [`Upcall`]s on the buffer. While a splice diverts
//! the buffer, only its upcall is called, and sleeping readers are not woken. (Sleeping writers are: a
//! splice shares the sink with writers.) An upcall runs with that buffer's lock held, so it may take
//! only locks that no thread holds while it calls this crate, and must not move bytes or call a socket
//! or a splice. Therefore an upcall causes no other upcall: they do not nest.
//!
//! **Protocol methods are entered with no lock held.**

use crate::buf::{Buf, Chain, Taken};
use crate::end::{End, Role};
use crate::error::{Flavor, SoError};
use crate::lock::{self, Condvar, Guard, RCV, SND};
use crate::sockbuf::{Addresses, Run, SockBuf};
use crate::sync::{Protection, intact};
use smallvec::SmallVec;
use std::any::Any;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// The operations of a protocol for its socket. All methods are called with no lock held, from any
/// thread, also from several at once; none may wait for the network. A protocol that calls another
/// socket enters the protocol of that socket on the same thread stack, which grows with the depth of
/// such layers.
pub trait Protocol: Send + Sync + fmt::Debug {
    /// `so_snd` has new bytes, or has been closed for writing: send (`pr_send`, `pr_shutdown`).
    /// The bytes before the close are still to be delivered.
    fn output(&self);

    /// Bytes were taken from `so_rcv`: the window may open (`pr_rcvd`). `idle` means that the reader
    /// now waits, so a window update that was withheld to make it larger must be sent.
    fn rcvd(&self, idle: bool);

    /// Ends the connection at once and notifies the peer (`pr_abort`, a TCP reset).
    fn abort(&self);

    /// The socket is closed: no more reads or writes (`pr_detach`). If there are unread bytes, or bytes
    /// arrive later, the protocol refuses them (a TCP reset). Otherwise it delivers the bytes in
    /// `so_snd` and closes that ([`cantsendmore`](SocketEnd::cantsendmore)). The socket layer does not
    /// close it before, so that no end of file is sent where a reset is due. The last pass of a splice
    /// may still call [`output`](Self::output) or [`rcvd`](Self::rcvd) afterwards.
    fn detach(&self);

    /// Name of the kind of protocol; only sockets of stream protocols can be spliced.
    fn name(&self) -> &'static str;

    /// This side's address and the peer's, for listings; `None` if there are none, or no longer.
    fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        None
    }

    /// The kind of socket, which decides whether it can be spliced.
    fn so_state(&self) -> SoState {
        SoState::Stream
    }

    /// The thread, counted from 0, that receives for this socket; `None` if there is only one, or it is
    /// not known. If it is known for both sockets of a splice, the splice runs on the pool's worker of
    /// that number (modulo the number of workers).
    fn queue(&self) -> Option<usize> {
        None
    }
}

/// Whether a socket can be spliced (`so_state`, `so_proto`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SoState {
    /// A stream that is connected, connecting, or disconnected (its buffers are closed then).
    Stream,
    /// A stream that is not connected yet.
    Unconnected,
    /// A listening socket.
    Listening,
    /// Datagrams, to and from the peer that the socket is connected to.
    Datagrams,
    /// Datagrams, to and from whichever peer each one names.
    UnconnectedDatagrams,
    /// Neither a stream of bytes nor datagrams.
    NotAStream,
    /// A stream whose bytes are encrypted or decrypted below the socket (KTLS), so that its buffers
    /// do not hold what the user sends and receives.
    Encrypted,
}

/// The identity of a socket in listings. Displayed as `tcp 10.0.0.1:80-10.0.0.2:4000`: the protocol,
/// this side's address, the peer's; without addresses, as `local 17`, with the number.
///
/// ```
/// use sosplice::{local, protocol::SocketName};
/// let (a, _b) = local::pair();
/// let name = SocketName::of(a.end(), &**a.protocol());
/// assert_eq!((name.id, name.protocol, name.addresses), (a.end().id(), "local", None));
/// assert_eq!(name.to_string(), format!("local {}", name.id));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SocketName {
    /// Number of the socket ([`SocketEnd::id`]).
    pub id: u64,
    /// Name of its protocol ([`Protocol::name`]).
    pub protocol: &'static str,
    /// This side's address and the peer's ([`Protocol::addresses`]).
    pub addresses: Option<(SocketAddr, SocketAddr)>,
}

impl SocketName {
    /// The name of a socket. Calls the protocol, so no lock may be held.
    pub fn of(end: &SocketEnd, protocol: &dyn Protocol) -> SocketName {
        SocketName {
            id: end.id(),
            protocol: protocol.name(),
            addresses: protocol.addresses(),
        }
    }
}

impl fmt::Display for SocketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addresses {
            Some((local, peer)) => write!(f, "{} {local}-{peer}", self.protocol),
            None => write!(f, "{} {}", self.protocol, self.id),
        }
    }
}

/// A change of a socket buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Wakeup {
    /// `so_rcv` has more bytes.
    Data,
    /// `so_snd` has more space, or the connection is now established.
    Space,
    /// `so_rcv` gets no more bytes: end of file or error.
    RcvClosed,
    /// `so_snd` takes no more bytes.
    SndClosed,
    /// The socket, for datagrams, has an error that does not end it ([`SocketEnd::fail_once`]).
    Failed,
}

/// A callback for wake-ups of a buffer: in addition to the sleeping threads, or, if it diverts the
/// buffer, in place of them.
pub trait Upcall: Any + Send + Sync {
    /// Runs with the buffer's lock held: it must not call this crate, nor take a lock that is held
    /// while a socket is called. It sets a flag or appends to a queue.
    fn wakeup(&self, what: Wakeup);

    /// The splice that diverted this buffer has ended; the socket had this `role` in it. Runs as
    /// [`wakeup`](Self::wakeup) does. The default calls that, whether or not there is something to
    /// read or to write.
    fn unspliced(&self, role: Role, _end: End) {
        self.wakeup(match role {
            Role::Source => Wakeup::Data,
            Role::Sink => Wakeup::Space,
        });
    }

    /// The socket whose buffer this upcall diverts is being closed. Runs with no lock held, before the
    /// protocol is detached; it must have removed the upcall from both buffers when it returns. Other
    /// sockets that are dropped here are closed, and callbacks that become due are called, after it has
    /// returned.
    fn closing(&self, _end: &SocketEnd) {}

    /// For listings: the other socket of the splice that diverts this buffer, in which this socket has
    /// this `role`. Runs with no lock held.
    fn joined(&self, _role: Role) -> Option<SocketName> {
        None
    }
}

pub(crate) type Upcalls = SmallVec<[Arc<dyn Upcall>; 1]>;

/// A socket buffer and its upcalls.
pub(crate) struct Side {
    pub(crate) buf: SockBuf,
    upcalls: Upcalls,
    diversion: Option<Arc<dyn Upcall>>,
    ended: Option<End>,
    connected: bool,
    /// Send side: the diverting upcall waits for space.
    pub(crate) wants_space: bool,
    /// Receive side: before this position was read, the protocol does nothing when it is told of reading.
    pub(crate) rcvd_from: u64,
}

impl Side {
    fn new(buf: SockBuf) -> Side {
        Side {
            buf,
            upcalls: Upcalls::new(),
            diversion: None,
            ended: None,
            connected: false,
            wants_space: true,
            rcvd_from: 0,
        }
    }

    /// Receive side: whether the protocol is to be told that bytes were read.
    pub(crate) fn is_rcvd_wanted(&self) -> bool {
        self.buf.chain().start() >= self.rcvd_from
    }

    /// Adds an upcall for every wake-up.
    pub(crate) fn add_upcall(&mut self, upcall: Arc<dyn Upcall>) {
        self.upcalls.push(upcall);
    }

    /// Removes this upcall; `None` if it is not there. The caller drops it after releasing the lock.
    pub(crate) fn remove_upcall(&mut self, upcall: &dyn Upcall) -> Option<Arc<dyn Upcall>> {
        let at = self.upcalls.iter().position(|other| is_same(other, upcall));
        at.map(|at| self.upcalls.remove(at))
    }

    /// The upcalls that do not divert.
    pub(crate) fn upcalls(&self) -> &[Arc<dyn Upcall>] {
        &self.upcalls
    }

    /// The upcalls that do not divert. The caller drops removed ones after releasing the lock.
    pub(crate) fn upcalls_mut(&mut self) -> &mut Upcalls {
        &mut self.upcalls
    }

    /// Diverts this buffer to an upcall, which is called in place of the others and of waking sleeping
    /// readers (`SB_SPLICED`). `false`, without a change, if the buffer is diverted already.
    pub(crate) fn divert(&mut self, upcall: Arc<dyn Upcall>) -> bool {
        let free = self.diversion.is_none();
        if free {
            self.diversion = Some(upcall);
            self.ended = None;
            self.wants_space = true;
        }
        free
    }

    /// Removes the diverting upcall. The caller drops it after releasing the lock.
    pub(crate) fn take_diversion(&mut self) -> Option<Arc<dyn Upcall>> {
        self.diversion.take()
    }

    /// The diverting upcall.
    pub(crate) fn diversion(&self) -> Option<&Arc<dyn Upcall>> {
        self.diversion.as_ref()
    }

    /// How the latest splice of this buffer has ended; `None` while there is one.
    pub(crate) fn ended(&self) -> Option<End> {
        self.ended
    }

    /// Whether an upcall diverts this buffer.
    pub(crate) fn is_diverted(&self) -> bool {
        self.diversion.is_some()
    }

    /// Send side: whether bytes can go out yet. `false` while the socket connects.
    pub(crate) fn is_connected(&self) -> bool {
        self.connected
    }
}

impl fmt::Debug for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Side")
            .field("buf", &self.buf)
            .field("upcalls", &self.upcalls.len())
            .field("diverted", &self.is_diverted())
            .field("connected", &self.connected)
            .finish()
    }
}

/// Whether both are the same object.
pub(crate) fn is_same(upcall: &Arc<dyn Upcall>, other: &dyn Upcall) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(upcall), other)
}

/// The part of a socket that its protocol holds.
///
/// | field | lock |
/// |---|---|
/// | `so_rcv`, its closed flag, its upcalls | that of `so_rcv` |
/// | `so_snd`, its closed flag, its upcalls, connected | that of `so_snd` |
/// | `so_error`, byte counter, flavor | atomic |
#[derive(Debug)]
pub struct SocketEnd {
    id: u64,
    for_datagrams: bool,
    rcv: lock::Mutex<Side, RCV>,
    snd: lock::Mutex<Side, SND>,
    rcv_wait: Condvar,
    snd_wait: Condvar,
    error: AtomicU8,
    spliced: AtomicU64,
    is_openbsd: AtomicBool,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl SocketEnd {
    /// A socket end for a stream, with these high-water marks in bytes, not connected yet.
    pub fn new(rcv_hiwat: usize, snd_hiwat: usize) -> Arc<SocketEnd> {
        SocketEnd::with(SockBuf::new(rcv_hiwat), SockBuf::new(snd_hiwat), false)
    }

    /// A socket end for datagrams, with these high-water marks in bytes, and at most so many datagrams in each
    /// buffer. It has OpenBSD's flavor, for FreeBSD does not splice datagrams.
    ///
    /// ```
    /// use sosplice::protocol::SocketEnd;
    /// let end = SocketEnd::for_datagrams(65_536, 65_536, 100);
    /// assert!(end.with_rcv(|so_rcv| so_rcv.holds_records()));
    /// ```
    pub fn for_datagrams(rcv_hiwat: usize, snd_hiwat: usize, limit: usize) -> Arc<SocketEnd> {
        let buf = |hiwat| SockBuf::for_records(hiwat, limit);
        SocketEnd::with(buf(rcv_hiwat), buf(snd_hiwat), true)
    }

    fn with(rcv: SockBuf, snd: SockBuf, is_openbsd: bool) -> Arc<SocketEnd> {
        Arc::new(SocketEnd {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            for_datagrams: rcv.holds_records(),
            rcv: lock::Mutex::new(Side::new(rcv)),
            snd: lock::Mutex::new(Side::new(snd)),
            rcv_wait: Condvar::new(),
            snd_wait: Condvar::new(),
            error: AtomicU8::new(0),
            spliced: AtomicU64::new(0),
            is_openbsd: AtomicBool::new(is_openbsd),
        })
    }

    /// A number that no other socket of this process has or had.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether its buffers hold datagrams, and no stream.
    pub fn is_for_datagrams(&self) -> bool {
        self.for_datagrams
    }

    /// Locks `so_rcv` (rank 2).
    #[track_caller]
    pub(crate) fn rcv(&self) -> Guard<'_, Side, RCV> {
        self.rcv.lock()
    }

    /// Locks `so_snd` (rank 3).
    #[track_caller]
    pub(crate) fn snd(&self) -> Guard<'_, Side, SND> {
        self.snd.lock()
    }

    /// Calls `look` with `so_rcv` locked: it must not call this or another socket, nor wait.
    ///
    /// ```
    /// use sosplice::{buf::Buf, protocol::SocketEnd};
    /// let end = SocketEnd::new(1000, 1000);
    /// end.append_rcv([Buf::copy_of(b"hello")]);
    /// let window = end.with_rcv(|so_rcv| so_rcv.space());
    /// assert_eq!(window, 995);
    /// ```
    ///
    /// # Panics
    /// With debug assertions, if `look` is called inside that of another socket, or calls a socket.
    pub fn with_rcv<R>(&self, look: impl FnOnce(&SockBuf) -> R) -> R {
        look(&self.rcv().buf)
    }

    /// As [`with_rcv`](Self::with_rcv), for `so_snd`. A protocol that may retransmit clones the buffers
    /// ([`SockBuf::chain`]) and removes them with [`drop_snd`](Self::drop_snd) when they are acknowledged;
    /// one that sends each byte once uses [`take_snd`](Self::take_snd).
    ///
    /// # Panics
    /// As [`with_rcv`](Self::with_rcv).
    pub fn with_snd<R>(&self, look: impl FnOnce(&SockBuf) -> R) -> R {
        look(&self.snd().buf)
    }

    /// Whether the connection is established, or was: [`connected`](Self::connected) has been called. Nothing can
    /// be sent before.
    pub fn is_connected(&self) -> bool {
        self.snd().is_connected()
    }

    /// Diverts a buffer to an upcall, which is called in place of the others and of waking sleeping
    /// readers (`SB_SPLICED`): `so_rcv` for the source of a splice, `so_snd` for its sink. `false`,
    /// without a change, if the buffer is diverted already.
    ///
    /// ```
    /// use sosplice::{buf::Buf, local};
    /// use sosplice::protocol::{Upcall, Wakeup};
    /// use sosplice::splice::Role;
    /// use std::sync::{Arc, atomic::{AtomicUsize, Ordering}};
    /// struct Count(AtomicUsize);
    /// impl Upcall for Count {
    ///     fn wakeup(&self, _what: Wakeup) {
    ///         self.0.fetch_add(1, Ordering::Relaxed);
    ///     }
    /// }
    /// let (a, b) = local::pair();
    /// let count = Arc::new(Count(AtomicUsize::new(0)));
    /// assert!(b.end().divert(Role::Source, count.clone()));
    /// assert!(!b.end().divert(Role::Source, count.clone()));
    /// a.send(b"hello")?;
    /// assert_eq!(count.0.load(Ordering::Relaxed), 1);
    /// assert!(b.end().take_diversion(Role::Source).is_some());
    /// # std::io::Result::Ok(())
    /// ```
    pub fn divert(&self, role: Role, upcall: Arc<dyn Upcall>) -> bool {
        match role {
            Role::Source => self.rcv().divert(upcall),
            Role::Sink => self.snd().divert(upcall),
        }
    }

    /// Removes and returns the upcall that diverts a buffer; it may be that of a splice. Another thread
    /// may still be running it.
    pub fn take_diversion(&self, role: Role) -> Option<Arc<dyn Upcall>> {
        match role {
            Role::Source => self.rcv().take_diversion(),
            Role::Sink => self.snd().take_diversion(),
        }
    }

    /// Whether an upcall diverts a buffer: whether the socket is the source, or the sink, of a splice.
    pub fn is_diverted(&self, role: Role) -> bool {
        match role {
            Role::Source => self.rcv().is_diverted(),
            Role::Sink => self.snd().is_diverted(),
        }
    }

    /// The condition on which readers wait, with `so_rcv` locked.
    pub(crate) fn rcv_wait(&self) -> &Condvar {
        &self.rcv_wait
    }

    /// The condition on which writers and connecting threads wait, with `so_snd` locked.
    pub(crate) fn snd_wait(&self) -> &Condvar {
        &self.snd_wait
    }

    /// Appends received bytes and wakes (`sbappendstream`, `sorwakeup`).
    pub fn append_rcv(&self, bufs: impl IntoIterator<Item = Buf>) {
        self.append_rcv_chain(bufs.into_iter().collect());
    }

    /// As [`append_rcv`](Self::append_rcv), for a chain. After [`flush_rcv`](Self::flush_rcv) the bytes
    /// are dropped and count as read.
    pub fn append_rcv_chain(&self, mut chain: Chain) {
        self.append_rcv_from(&mut chain);
    }

    /// As [`append_rcv_chain`](Self::append_rcv_chain). The chain is empty afterwards, and keeps its
    /// allocation.
    pub(crate) fn append_rcv_from(&self, chain: &mut Chain) {
        self.append_rcv_and(chain, |_| {});
    }

    /// As [`append_rcv_from`](Self::append_rcv_from), and looks at `so_rcv` under the same lock. Without bytes it only
    /// looks, and wakes if memory became short: low-water marks are lower then, and the bytes may be enough.
    pub(crate) fn append_rcv_and(&self, chain: &mut Chain, look: impl FnOnce(&mut Side)) {
        let mut rcv = self.rcv();
        if chain.is_empty() {
            let before = rcv.buf.ceiling();
            look(&mut rcv);
            if rcv.buf.ceiling() < before && !rcv.buf.is_empty() {
                self.sorwakeup(&rcv, Wakeup::Data);
            }
            return;
        }
        let unwanted = rcv.buf.is_finished();
        rcv.buf.append_from(chain, chain.len());
        if unwanted {
            let dropped = rcv.buf.take_all();
            look(&mut rcv);
            drop(rcv);
            drop(dropped);
        } else {
            look(&mut rcv);
            self.sorwakeup(&rcv, Wakeup::Data);
        }
    }

    /// Appends a received datagram and wakes (`sbappendaddr`, `sorwakeup`). `false` if there is no room for it, or
    /// nothing is read any more: then it is dropped, and, for want of room, counted
    /// ([`SockBuf::dropped`]).
    ///
    /// ```
    /// use sosplice::{buf::Buf, protocol::SocketEnd, sockbuf::Addresses};
    /// let end = SocketEnd::for_datagrams(8, 8, 100);
    /// let from = Addresses::to("10.0.0.2:53".parse()?);
    /// assert!(end.append_record_rcv([Buf::copy_of(b"answer")], from));
    /// assert!(!end.append_record_rcv([Buf::copy_of(b"another")], from));
    /// assert_eq!(end.with_rcv(|so_rcv| (so_rcv.records(), so_rcv.dropped())), (1, 1));
    /// # Ok::<_, std::net::AddrParseError>(())
    /// ```
    ///
    /// # Panics
    /// If the socket is that of a stream.
    pub fn append_record_rcv(
        &self,
        payload: impl IntoIterator<Item = Buf>,
        addresses: Addresses,
    ) -> bool {
        let mut rcv = self.rcv();
        if rcv.buf.is_closed() || !rcv.buf.append_record(payload, addresses) {
            return false;
        }
        self.sorwakeup(&rcv, Wakeup::Data);
        true
    }

    /// Appends received datagrams, with one wake-up for all of them, while memory is short or not. Returns how many
    /// found room, and calls `held` with the memory of the buffer then.
    pub(crate) fn append_run_rcv(
        &self,
        run: Run,
        pressed: bool,
        held: impl FnOnce(usize),
    ) -> usize {
        let mut rcv = self.rcv();
        rcv.buf.set_pressed(pressed);
        let closed = rcv.buf.is_closed();
        let taken = if closed { 0 } else { rcv.buf.append_run(run) };
        held(rcv.buf.records_memory());
        if taken > 0 {
            self.sorwakeup(&rcv, Wakeup::Data);
        }
        taken
    }

    /// Something went wrong that does not end a socket for datagrams, for example that no program listens at the
    /// peer's port: sets `so_error` and wakes readers, writers and a splice.
    pub fn fail_once(&self, error: SoError) {
        let rcv = self.rcv();
        let snd = self.snd();
        self.set_error(error);
        self.sorwakeup(&rcv, Wakeup::Failed);
        self.sowwakeup(&snd, Wakeup::Failed);
    }

    /// Drops sent bytes from `so_snd` and wakes (`sbdrop`, `sowwakeup`).
    ///
    /// # Panics
    /// If `so_snd` holds fewer.
    pub fn drop_snd(&self, count: usize) {
        self.drop_snd_and(count, |_| {});
    }

    /// As [`drop_snd`](Self::drop_snd), and looks at the rest under the same lock, before threads are notified that
    /// there is room.
    pub(crate) fn drop_snd_and(&self, count: usize, look: impl FnOnce(&mut SockBuf)) {
        // The bytes are dropped after the lock is released: they may hold the last reference to a
        // frame.
        let mut sent = Taken::new();
        let mut snd = self.snd();
        snd.buf.take_bufs(count, &mut sent);
        look(&mut snd.buf);
        self.sowwakeup(&snd, Wakeup::Space);
        drop(snd);
        drop(sent);
    }

    /// Takes up to `max` bytes from the front of `so_snd`, and wakes: for a protocol that sends each byte once.
    ///
    /// ```
    /// use sosplice::protocol::SocketEnd;
    /// use std::io::Write;
    /// # use sosplice::{Socket, protocol::Protocol};
    /// # #[derive(Debug)]
    /// # struct Nothing;
    /// # impl Protocol for Nothing {
    /// #     fn output(&self) {}
    /// #     fn rcvd(&self, _idle: bool) {}
    /// #     fn abort(&self) {}
    /// #     fn detach(&self) {}
    /// #     fn name(&self) -> &'static str { "nothing" }
    /// # }
    /// # let end = SocketEnd::new(1000, 1000);
    /// # end.connected();
    /// # let mut socket = Socket::new(end.clone(), std::sync::Arc::new(Nothing));
    /// socket.write_all(b"hello")?;
    /// assert_eq!(end.take_snd(4).to_vec(), b"hell");
    /// assert_eq!(end.with_snd(|so_snd| so_snd.len()), 1);
    /// # std::io::Result::Ok(())
    /// ```
    pub fn take_snd(&self, max: usize) -> Chain {
        let mut snd = self.snd();
        let count = snd.buf.len().min(max);
        let taken = snd.buf.take(count);
        self.sowwakeup(&snd, Wakeup::Space);
        taken
    }

    /// The connection is established (`soisconnected`).
    pub fn connected(&self) {
        let mut snd = self.snd();
        snd.connected = true;
        self.sowwakeup(&snd, Wakeup::Space);
    }

    /// No more bytes will arrive (`socantrcvmore`). Queued bytes can still be read.
    pub fn cantrcvmore(&self) {
        self.close_rcv(&mut self.rcv());
    }

    /// No more bytes will be read (`sorflush`): drops the queued ones and returns their number. Closing
    /// and dropping are one step, so that a splice does not see the end of the stream before the bytes
    /// are dropped.
    pub fn flush_rcv(&self) -> usize {
        let mut rcv = self.rcv();
        rcv.buf.close();
        let unread = rcv.buf.take_all();
        self.sorwakeup(&rcv, Wakeup::RcvClosed);
        drop(rcv);
        unread.len()
    }

    /// Drops the bytes in `so_snd`, which can no longer be sent.
    pub fn flush_snd(&self) {
        let mut snd = self.snd();
        let unsent = snd.buf.take_all();
        self.sowwakeup(&snd, Wakeup::Space);
        drop(snd);
        drop(unsent);
    }

    /// No more bytes can be sent (`socantsendmore`).
    pub fn cantsendmore(&self) {
        self.close_snd(&mut self.snd());
    }

    /// The connection has ended (`soisdisconnected`): sets `so_error` if there is one, and closes both
    /// buffers. One step under both locks: a thread that has seen the error must find the socket
    /// closed.
    ///
    /// ```
    /// use sosplice::{error::SoError, protocol::SocketEnd};
    /// let end = SocketEnd::new(1000, 1000);
    /// end.disconnected(Some(SoError::ConnectionReset));
    /// assert!(end.with_rcv(|so_rcv| so_rcv.is_closed()));
    /// assert!(end.with_snd(|so_snd| so_snd.is_closed()));
    /// assert_eq!(end.take_error(), Some(SoError::ConnectionReset));
    /// ```
    pub fn disconnected(&self, error: Option<SoError>) {
        let mut rcv = self.rcv();
        let mut snd = self.snd();
        if let Some(error) = error {
            self.set_error(error);
        }
        rcv.rcvd_from = 0;
        self.close_rcv(&mut rcv);
        self.close_snd(&mut snd);
    }

    fn close_rcv(&self, rcv: &mut Guard<'_, Side, RCV>) {
        if !rcv.buf.is_closed() {
            rcv.buf.close();
            self.sorwakeup(rcv, Wakeup::RcvClosed);
        }
    }

    fn close_snd(&self, snd: &mut Guard<'_, Side, SND>) {
        if !snd.buf.is_closed() {
            snd.buf.close();
            self.sowwakeup(snd, Wakeup::SndClosed);
        }
    }

    /// Sets `so_error`. Does not wake: for the end of a connection see
    /// [`disconnected`](Self::disconnected).
    pub fn set_error(&self, error: SoError) {
        self.error.store(error as u8, Ordering::Release);
    }

    /// Sets `so_error` to the error of an ended splice, unless an error of the connection is there: if
    /// that were overwritten, the next splice would take a reset for the end of the stream.
    pub(crate) fn set_splice_error(&self, error: SoError) {
        let unless_real = |old| {
            let is_real = SoError::from_u8(old).is_some_and(|old| !old.is_of_splice());
            (!is_real).then_some(error as u8)
        };
        self.error
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, unless_real)
            .ok();
    }

    /// Reads `so_error` and leaves it.
    pub fn error(&self) -> Option<SoError> {
        SoError::from_u8(self.error.load(Ordering::Acquire))
    }

    /// Reads and clears `so_error` (`SO_ERROR`).
    pub fn take_error(&self) -> Option<SoError> {
        SoError::from_u8(self.error.swap(0, Ordering::AcqRel))
    }

    /// Bytes that left this socket through its latest splice.
    pub fn spliced(&self) -> u64 {
        self.spliced.load(Ordering::Acquire)
    }

    /// Counts bytes of a splice; called with `so_rcv` locked, before the sink's peer can see them.
    pub(crate) fn add_spliced(&self, count: u64) {
        self.spliced.fetch_add(count, Ordering::AcqRel);
    }

    /// A new splice begins.
    pub(crate) fn reset_spliced(&self) {
        self.spliced.store(0, Ordering::Release);
    }

    /// The system that this socket behaves like where the two differ.
    pub fn flavor(&self) -> Flavor {
        match self.is_openbsd.load(Ordering::Relaxed) {
            false => Flavor::FreeBsd,
            true => Flavor::OpenBsd,
        }
    }

    /// Sets the system that this socket behaves like; FreeBSD by default.
    pub fn set_flavor(&self, flavor: Flavor) {
        let is_openbsd = flavor == Flavor::OpenBsd;
        self.is_openbsd.store(is_openbsd, Ordering::Relaxed);
    }

    /// `sorwakeup_locked`: calls the splice on `so_rcv`; if there is none, the upcalls, and wakes
    /// readers.
    pub(crate) fn sorwakeup(&self, rcv: &Guard<'_, Side, RCV>, what: Wakeup) {
        if !notify(rcv, what) {
            self.rcv_wait.notify_all();
        }
    }

    /// `sowwakeup_locked`: calls the splice on `so_snd`, which is told of space only if it waits for that, or,
    /// if there is none, the upcalls; wakes writers in any case.
    pub(crate) fn sowwakeup(&self, snd: &Guard<'_, Side, SND>, what: Wakeup) {
        if what != Wakeup::Space || snd.wants_space || !snd.is_diverted() {
            notify(snd, what);
        }
        self.snd_wait.notify_all();
    }

    /// The splice of this source is detached: notifies upcalls and waiting threads of its end.
    pub(crate) fn source_unspliced(&self, rcv: &mut Guard<'_, Side, RCV>, end: End) {
        rcv.ended = Some(end);
        rcv.upcalls
            .iter()
            .for_each(|upcall| upcall.unspliced(Role::Source, end));
        if intact(Protection::WakeSleepers) {
            self.rcv_wait.notify_all();
        }
    }

    /// As [`source_unspliced`](Self::source_unspliced), for the sink.
    pub(crate) fn sink_unspliced(&self, snd: &mut Guard<'_, Side, SND>, end: End) {
        snd.ended = Some(end);
        snd.upcalls
            .iter()
            .for_each(|upcall| upcall.unspliced(Role::Sink, end));
        self.snd_wait.notify_all();
    }
}

/// Calls the upcalls. `true` if a splice diverts the wake-up.
fn notify(side: &Side, what: Wakeup) -> bool {
    if let Some(diversion) = &side.diversion {
        diversion.wakeup(what);
        return true;
    }
    side.upcalls.iter().for_each(|upcall| upcall.wakeup(what));
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::LEAF;

    #[derive(Default)]
    struct Log(lock::Mutex<Vec<Wakeup>, LEAF>);

    impl Upcall for Log {
        fn wakeup(&self, what: Wakeup) {
            self.0.lock().push(what);
        }
    }

    #[test]
    fn an_upcall_is_called_once_for_each_change() {
        let end = SocketEnd::new(100, 100);
        let log = Arc::new(Log::default());
        assert!(end.rcv().divert(log.clone()));
        assert!(!end.rcv().divert(log.clone()));
        assert!(end.snd().divert(log.clone()));
        end.append_rcv([Buf::copy_of(b"x")]);
        end.cantrcvmore();
        end.cantrcvmore();
        end.connected();
        end.cantsendmore();
        let heard = std::mem::take(&mut *log.0.lock());
        assert_eq!(
            heard,
            [
                Wakeup::Data,
                Wakeup::RcvClosed,
                Wakeup::Space,
                Wakeup::SndClosed
            ]
        );
        assert!(end.rcv().take_diversion().is_some());
        end.append_rcv([Buf::copy_of(b"x")]);
        assert!(log.0.lock().is_empty());
    }

    #[test]
    fn a_diversion_keeps_wakeups_from_the_other_upcall() {
        let end = SocketEnd::new(100, 100);
        let (user, splice) = (Arc::new(Log::default()), Arc::new(Log::default()));
        end.rcv().add_upcall(user.clone());
        assert!(end.rcv().divert(splice.clone()));
        end.append_rcv([Buf::copy_of(b"x")]);
        assert!(end.rcv().take_diversion().is_some());
        end.cantrcvmore();
        assert_eq!(*splice.0.lock(), [Wakeup::Data]);
        assert_eq!(*user.0.lock(), [Wakeup::RcvClosed]);
        assert!(end.rcv().remove_upcall(&*splice).is_none());
        assert!(end.rcv().remove_upcall(&*user).is_some());
        end.append_rcv([Buf::copy_of(b"x")]);
        assert_eq!(user.0.lock().len(), 1);
    }

    #[test]
    fn flushed_bytes_are_dropped_and_count_as_read() {
        let end = SocketEnd::new(100, 100);
        let log = Arc::new(Log::default());
        assert!(end.rcv().divert(log.clone()));
        end.append_rcv([Buf::copy_of(b"abc")]);
        assert_eq!(end.flush_rcv(), 3);
        end.append_rcv([Buf::copy_of(b"de")]);
        let rcv = end.rcv();
        assert!(rcv.buf.is_finished());
        assert_eq!(rcv.buf.chain().start(), 5);
        drop(rcv);
        assert_eq!(*log.0.lock(), [Wakeup::Data, Wakeup::RcvClosed]);
    }

    #[test]
    fn so_error_is_read_once() {
        let end = SocketEnd::new(100, 100);
        end.set_error(SoError::TimedOut);
        assert_eq!(end.error(), Some(SoError::TimedOut));
        assert_eq!(end.take_error(), Some(SoError::TimedOut));
        assert_eq!(end.take_error(), None);
    }

    #[test]
    fn a_splice_error_does_not_replace_a_connection_error() {
        let end = SocketEnd::new(100, 100);
        end.set_splice_error(SoError::SpliceLimit);
        end.set_splice_error(SoError::SpliceLoop);
        assert_eq!(end.error(), Some(SoError::SpliceLoop));
        end.set_error(SoError::ConnectionReset);
        end.set_splice_error(SoError::SpliceLimit);
        assert_eq!(end.error(), Some(SoError::ConnectionReset));
    }
}
