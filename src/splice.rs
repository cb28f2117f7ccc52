//! Splices: the bytes that one socket receives are sent by another one without passing through the
//! program (SO_SPLICE).
//!
//! [`Socket::splice_to`] joins a *source*'s `so_rcv` to a *sink*'s `so_snd`. Both directions of a
//! proxied connection are two splices; [`join`](join()) sets up both, and owns the sockets. A splice behaves
//! as FreeBSD documents it:
//!
//! * While it lasts, neither bytes that arrive at the source nor space in the sink wake a thread. A
//!   [`recv`](Socket::recv) on the source takes the bytes that are queued; a sleeping reader is not
//!   woken. When the splice ends, all threads that wait on either socket are woken. (This is the
//!   FreeBSD [flavor](crate::error::Flavor); in OpenBSD's a read finds no bytes.)
//! * It ends on the limit (to the byte), on the end of the stream after the last byte, when the sink
//!   takes no more, on its timeouts, on [`unsplice`](Socket::unsplice), and when either socket is
//!   closed. It does not shut down a socket (except with [`Options::forward_eof`] or
//!   [`Options::forward_reset`]) or set `so_error` (except in the OpenBSD flavor, where the source's
//!   holds the reason); bytes that the sink did not take are readable on the source. [`End`] has the
//!   cause and the number of bytes.
//! * Bytes for a sink that is still connecting wait in the source.
//! * The counter [`spliced`](Socket::spliced) belongs to the source, is set to 0 only by a
//!   successful `splice_to`, and outlives the splice.
//!
//! **Datagrams** are spliced as in OpenBSD, and only in its flavor, which sockets for datagrams have: each is moved
//! whole or not at all.
//!
//! * A datagram that would exceed the limit ends the splice before it, without an error; one that is longer than the
//!   sink's send buffer ends it with [`Cause::MessageSize`]. Both stay readable on the source.
//! * The sink must be connected, the source need not be. Addresses are lost, unless [`Options::addresses`] keeps
//!   them.
//! * An error of a socket (no program listens at the peer's port, say) ends the splice, but not the socket.
//! * A stream and datagrams cannot be spliced.
//!
//! Two improvements over FreeBSD: a call that fails changes nothing, and ending a splice never waits
//! for another thread, so any thread can do it, also in a callback.
//!
//! [`SplicePool::splices`] lists them, and [`SplicePool::stats`] has their counters.
//!
//! Inside: `machine` (states), `xfer` (moving), `task` (applies both under locks, with timers), `pool`
//! (threads), `join` (two splices). Locks: `so_rcv` of the source (2), `so_snd` of the sink (3), the
//! splice's state (4), queues (5).

mod info;
mod join;
mod machine;
mod options;
mod pool;
mod stats;
mod task;
mod token_bucket;
mod worker;
mod xfer;

pub use crate::end::{Cause, End, Role};
pub use info::{SpliceInfo, SpliceState, SpliceTable};
#[cfg(feature = "async")]
pub use join::JoinEnded;
pub use join::{Ends, Join, join};
pub use options::Options;
pub use pool::{Builder, DEFAULT_QUANTUM, SplicePool};
pub use stats::{Stats, WorkerStats};
pub use token_bucket::Rate;

use crate::error::{Errno, Flavor};
use crate::protocol::SoState;
use crate::run_list::{self, Budget, Job};
use crate::socket::Socket;
use crate::sync::{Protection, intact};
use token_bucket::TokenBucket;

use std::fmt;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use task::{Endpoint, Status, Task};
use worker::{Shared, Spliced};

/// The thread in which a splice moves its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Dispatch {
    /// As [`Direct`](Self::Direct) in a receiving thread that keeps up with the arriving frames; as
    /// [`Worker`](Self::Worker) in one that lags behind, and in users' threads.
    ///
    /// A receiving thread lags behind while it gets full batches of frames in a row, of 1 KiB or more
    /// on average: then there is enough work for two threads. Datagrams it moves itself nevertheless: nothing slows
    /// their senders down, so with the time that it saves it would receive more than the worker can move.
    #[default]
    Adaptive,
    /// On a worker thread of the pool, so that receiving and sending overlap.
    Worker,
    /// In the thread that brings the bytes or the space, after its batch or call; on the worker if that
    /// is not possible or would take long.
    Direct,
}

/// Why a splice could not be set up. The failed call changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpliceError {
    /// The pool has no workers.
    #[error("splicing is disabled: the pool has 0 workers, build one with at least 1")]
    PoolDisabled,
    /// The last handle of the pool was dropped.
    #[error("the pool is closed, keep a handle of it while splices are set up")]
    PoolClosed,
    /// The system did not start the pool's threads. The next splice tries again.
    #[error("the pool could not start its threads ({0}), try again when fewer are running")]
    Threads(io::ErrorKind),
    /// A processor chosen for the pool's threads is offline, or not available to this process.
    #[error(
        "no thread can run on processor {0}: give those that are online and that this process may use"
    )]
    NoProcessor(usize),
    /// The limit is zero.
    #[error("a limit of 0 bytes, set at least 1, or None for no limit")]
    ZeroLimit,
    /// A timeout is zero.
    #[error("a timeout of 0, set a longer one, or None for no timeout")]
    ZeroTimeout,
    /// Neither a stream of bytes nor, in the OpenBSD flavor, datagrams.
    #[error(
        "the {0} is no stream socket, only streams can be spliced (in the OpenBSD flavor, datagrams too)"
    )]
    NotAStream(Role),
    /// One is a stream, the other one is for datagrams.
    #[error(
        "the source and the sink are of different kinds: splice a stream to a stream, or datagrams to datagrams"
    )]
    DifferentKinds,
    /// A listening socket.
    #[error("the {0} is listening, splice a connection that it has accepted")]
    Listening(Role),
    /// Not connected, and not connecting.
    #[error("the {0} is not connected, connect it first (it may still be connecting)")]
    NotConnected(Role),
    /// Its stream is encrypted or decrypted below the socket (KTLS).
    #[error("the {0} is encrypted below the socket, only plain streams can be spliced")]
    Encrypted(Role),
    /// Already part of a splice, in the same role.
    #[error("the {0} is already the {0} of a splice, unsplice that one first")]
    Busy(Role),
    /// The pool has reached its maximum number of splices ([`Builder::max_splices`]).
    #[error(
        "the pool has {0} splices, its maximum: end some, or build it with a larger max_splices"
    )]
    TooManySplices(usize),
}

impl SpliceError {
    /// The error of `setsockopt(SO_SPLICE)` for it.
    ///
    /// ```
    /// use sosplice::error::{Errno, Flavor};
    /// use sosplice::splice::{Role, SpliceError};
    /// assert_eq!(SpliceError::Busy(Role::Sink).errno(Flavor::FreeBsd), Errno::EBUSY);
    /// assert_eq!(SpliceError::Listening(Role::Sink).errno(Flavor::OpenBsd), Errno::EOPNOTSUPP);
    /// ```
    pub const fn errno(self, flavor: Flavor) -> Errno {
        match self {
            SpliceError::PoolDisabled | SpliceError::PoolClosed => Errno::ENXIO,
            SpliceError::Threads(_) => Errno::EAGAIN,
            SpliceError::Listening(_) => match flavor {
                Flavor::FreeBsd => Errno::EINVAL,
                Flavor::OpenBsd => Errno::EOPNOTSUPP,
            },
            SpliceError::NoProcessor(_)
            | SpliceError::ZeroLimit
            | SpliceError::ZeroTimeout
            | SpliceError::Encrypted(_) => Errno::EINVAL,
            SpliceError::NotAStream(_) | SpliceError::DifferentKinds => Errno::EPROTONOSUPPORT,
            SpliceError::NotConnected(_) => Errno::ENOTCONN,
            SpliceError::Busy(_) => Errno::EBUSY,
            SpliceError::TooManySplices(_) => Errno::ENOBUFS,
        }
    }
}

/// Why a socket was not unspliced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnspliceError {
    /// The socket is not the source of a splice, or no longer.
    #[error("the socket is not the source of a splice (a splice is undone at its source)")]
    NotSpliced,
    /// The socket listens, so it cannot be spliced.
    #[error("the socket is listening, it is not the source of a splice")]
    Listening,
}

impl UnspliceError {
    /// The error of `setsockopt(SO_SPLICE)` for it.
    ///
    /// ```
    /// use sosplice::{error::{Errno, Flavor}, splice::UnspliceError};
    /// assert_eq!(UnspliceError::NotSpliced.errno(Flavor::FreeBsd), Errno::ENOTCONN);
    /// assert_eq!(UnspliceError::NotSpliced.errno(Flavor::OpenBsd), Errno::EPROTO);
    /// ```
    pub const fn errno(self, flavor: Flavor) -> Errno {
        match (flavor, self) {
            (Flavor::OpenBsd, _) => Errno::EPROTO,
            (Flavor::FreeBsd, UnspliceError::NotSpliced) => Errno::ENOTCONN,
            (Flavor::FreeBsd, UnspliceError::Listening) => Errno::EINVAL,
        }
    }
}

/// The handle of a splice, to watch or end it. Dropping the handle leaves the splice running.
///
/// ```
/// use sosplice::{local, splice::{Cause, Options}};
/// let ((a, b), (c, d)) = (local::pair(), local::pair());
/// let splice = b.splice_to(&c, Options::default().limit(4))?;
/// a.send(b"abcdef")?;
/// let end = splice.wait();
/// assert_eq!((end.cause, end.bytes), (Cause::Limit, 4));
/// assert_eq!(d.recv_chain(100)?.to_vec(), b"abcd");
/// assert_eq!(b.recv_chain(100)?.to_vec(), b"ef");
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Splice {
    status: Arc<Status>,
    task: Weak<Task>,
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("source", &self.source.end.id())
            .field("sink", &self.sink.end.id())
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Splice {
    fn of(task: &Arc<Task>) -> Splice {
        Splice {
            status: task.status.clone(),
            task: Arc::downgrade(task),
        }
    }

    /// Ends it with this cause, if it has not ended.
    fn end_by(&self, cause: Cause) {
        if let Some(task) = self.task.upgrade() {
            task.unsplice(cause);
        }
    }

    /// Waits until it has ended and the moved bytes were given to the sink's protocol. Must not be
    /// called in a worker or driver thread, which may be the one that ends it.
    pub fn wait(&self) -> End {
        let end = self.status.wait(None);
        end.expect("invariant: without a deadline only the end is waited for")
    }

    /// As [`wait`](Self::wait), but no longer than this, in real time.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<End> {
        let now = crate::clock::system().now();
        self.status.wait(now.checked_add(timeout))
    }

    /// Ends it, if it has not ended; a later splice of the same sockets is not affected. Does not wait:
    /// no more bytes are moved, but a pass on another thread may still be notifying the protocols
    /// ([`wait`](Self::wait) waits for that).
    ///
    /// # Errors
    /// [`UnspliceError::NotSpliced`] if it has ended before.
    pub fn unsplice(&self) -> Result<End, UnspliceError> {
        let task = self.task.upgrade().ok_or(UnspliceError::NotSpliced)?;
        let end = task.unsplice(Cause::Unspliced);
        end.ok_or(UnspliceError::NotSpliced)
    }

    /// A number that no other splice of this process has or had.
    ///
    /// ```
    /// use sosplice::{local, splice::Options};
    /// let ((a, b), (c, d)) = (local::pair(), local::pair());
    /// let up = b.splice_to(&c, Options::default())?;
    /// let down = c.splice_to(&b, Options::default())?;
    /// assert_ne!(up.id(), down.id());
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn id(&self) -> u64 {
        self.status.id()
    }

    /// Bytes that it has moved so far.
    pub fn bytes(&self) -> u64 {
        self.status.bytes(&self.task)
    }

    /// Whether it has ended: no byte moves any more.
    pub fn is_ended(&self) -> bool {
        self.end().is_some()
    }

    /// How it has ended, if it has.
    pub fn end(&self) -> Option<End> {
        self.status.end()
    }

    /// Calls `callback` once when [`wait`](Self::wait) would return: at once if the splice has ended,
    /// otherwise in the thread that ends it (a worker, a driver, a thread of the program), with no lock
    /// held. It may call anything, and splice again, but delays the other splices of that worker. If it
    /// panics, the remaining callbacks are still called, and [`Stats::panics`] counts it.
    ///
    /// Callbacks do not nest (see [the crate's page](crate#callbacks)): a callback that becomes due
    /// while another one, or other code of the program that the library calls, is running in the same
    /// thread is called after that has returned; this includes [`on_end`](Self::on_end) for a splice
    /// that has ended. So a callback must not wait for another one. A stream may be spliced in any
    /// number of pieces, each in the callback of the one before.
    ///
    /// ```
    /// use sosplice::{local, splice::Options};
    /// let ((a, b), (c, _d)) = (local::pair(), local::pair());
    /// let (sender, ends) = std::sync::mpsc::channel();
    /// b.splice_to(&c, Options::default())?.on_end(move |end| sender.send(end).unwrap_or(()));
    /// a.send(b"hello")?;
    /// a.close();
    /// assert_eq!(ends.recv()?.bytes, 5);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_end(&self, callback: impl FnOnce(End) + Send + 'static) {
        self.status.on_end(Box::new(callback));
    }

    /// A future for [`wait`](Self::wait), for any executor. It outlives the handle.
    ///
    /// ```
    /// # async fn example(source: sosplice::Socket, sink: sosplice::Socket)
    /// #     -> Result<(), sosplice::splice::SpliceError> {
    /// let splice = source.splice_to(&sink, Default::default())?;
    /// let end = splice.ended().await;
    /// println!("{:?} after {} bytes", end.cause, end.bytes);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "async")]
    pub fn ended(&self) -> Ended {
        Ended {
            status: self.status.clone(),
        }
    }
}

/// Becomes ready when a splice has ended. See [`Splice::ended`].
#[cfg(feature = "async")]
#[derive(Debug)]
#[must_use]
pub struct Ended {
    status: Arc<Status>,
}

#[cfg(feature = "async")]
impl Future for Ended {
    type Output = End;

    fn poll(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<End> {
        self.status.poll_end(cx)
    }
}

impl Socket {
    /// From now on `sink` sends the bytes that this socket receives (`setsockopt(SO_SPLICE)`). Bytes
    /// that are queued already are moved in this call.
    ///
    /// A socket can be the source of one splice and the sink of one; rings and a splice to itself
    /// are allowed. The splice does not keep the sockets open.
    ///
    /// ```
    /// use sosplice::{local, splice::Options};
    /// let ((a, b), (c, d)) = (local::pair(), local::pair());
    /// b.splice_to(&c, Options::default())?;
    /// a.send(b"hello")?;
    /// assert_eq!(d.recv_chain(100)?.to_vec(), b"hello");
    /// assert_eq!(b.spliced(), 5);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// See [`SpliceError`]; a failed call changes nothing.
    pub fn splice_to(
        &self,
        sink: &impl AsRef<Socket>,
        options: Options,
    ) -> Result<Splice, SpliceError> {
        set_up(self, sink.as_ref(), &options, self.flavor())
    }

    /// Ends the splice that this socket is the source of. See [`Splice::unsplice`].
    ///
    /// # Errors
    /// [`UnspliceError::NotSpliced`]; of several threads that try, one succeeds.
    pub fn unsplice(&self) -> Result<End, UnspliceError> {
        if self.protocol().so_state() == SoState::Listening {
            return Err(UnspliceError::Listening);
        }
        let diversion = self.end().rcv().diversion().cloned();
        let task = diversion.as_ref().and_then(Task::of);
        let end = task.and_then(|task| task.unsplice(Cause::Unspliced));
        end.ok_or(UnspliceError::NotSpliced)
    }

    /// Bytes moved by the latest splice of this source (`getsockopt(SO_SPLICE)`): so far or, if it has
    /// ended, in total.
    pub fn spliced(&self) -> u64 {
        self.end().spliced()
    }
}

/// [`Socket::splice_to`], with the checks in the order of this system.
pub(crate) fn set_up(
    source: &Socket,
    sink: &Socket,
    options: &Options,
    order: Flavor,
) -> Result<Splice, SpliceError> {
    let pool = start_pool(options)?;
    set_up_in(source, sink, options, order, pool)
}

/// As [`set_up`], in a pool that was checked.
fn set_up_in(
    source: &Socket,
    sink: &Socket,
    options: &Options,
    order: Flavor,
    pool: &Arc<Shared>,
) -> Result<Splice, SpliceError> {
    check_options(options)?;
    check(source, sink, (options, order))?;
    let task = put_on(source, sink, options, pool)?;
    run_list::scope(Budget::USER, || task.run());
    Ok(Splice::of(&task))
}

/// Splices two sockets to each other. Neither direction moves a byte before both are set up.
fn set_up_both(
    [a, b]: &[Socket; 2],
    options: &Options,
    pool: &Arc<Shared>,
) -> Result<[Splice; 2], SpliceError> {
    check(a, b, (options, a.flavor()))?;
    check(b, a, (options, b.flavor()))?;
    let there = put_on(a, b, options, pool)?;
    let back = put_on(b, a, options, pool).inspect_err(|_| {
        there.unsplice(Cause::Unspliced);
    })?;
    run_list::scope(Budget::USER, || {
        there.run();
        back.run();
    });
    Ok([Splice::of(&there), Splice::of(&back)])
}

/// Attaches a splice to both buffers. It is queued for its first pass, and has not moved bytes yet.
fn put_on(
    source: &Socket,
    sink: &Socket,
    options: &Options,
    pool: &Arc<Shared>,
) -> Result<Arc<Task>, SpliceError> {
    pool.take_place()?;
    let task = new_task(source, sink, options, pool);
    if let Err(error) = attach(&task) {
        pool.counts.give_back_place();
        return Err(error);
    }
    let spliced: Arc<dyn Spliced> = task.clone();
    pool.adopt(&spliced);
    task.report_set_up();
    Ok(task)
}

/// Whether the pool of these options works; FreeBSD checks that before the sockets.
pub(crate) fn check_pool(options: &Options) -> Result<(), SpliceError> {
    start_pool(options).map(drop)
}

fn start_pool(options: &Options) -> Result<&Arc<Shared>, SpliceError> {
    let pool = options.pool.as_ref();
    let pool = pool.unwrap_or_else(|| SplicePool::global()).shared();
    pool.start()?;
    Ok(pool)
}

fn check_options(options: &Options) -> Result<(), SpliceError> {
    if options.limit == Some(0) {
        return Err(SpliceError::ZeroLimit);
    }
    if [options.idle, options.lifetime].contains(&Some(Duration::ZERO)) {
        return Err(SpliceError::ZeroTimeout);
    }
    Ok(())
}

/// One condition for a socket to be spliced in this role.
type Check = fn(&Socket, Role, &Options) -> Result<(), SpliceError>;

const CHECKS: [Check; 4] = [
    check_listening,
    check_connected,
    check_free,
    check_encrypted,
];

/// The first error in the order of that system: FreeBSD checks the source completely first, OpenBSD
/// checks each condition for both sockets.
fn check(
    source: &Socket,
    sink: &Socket,
    (options, order): (&Options, Flavor),
) -> Result<(), SpliceError> {
    let parties = [(source, Role::Source), (sink, Role::Sink)];
    let both = |check: Check| {
        parties
            .iter()
            .try_for_each(|(socket, role)| check(socket, *role, options))
    };
    parties
        .iter()
        .try_for_each(|(socket, role)| check_kind(socket, *role, order))?;
    let [a, b] = [source, sink].map(|socket| socket.end().is_for_datagrams());
    if a != b {
        return Err(SpliceError::DifferentKinds);
    }
    match order {
        Flavor::FreeBsd => parties.iter().try_for_each(|(socket, role)| {
            CHECKS
                .iter()
                .try_for_each(|check| check(socket, *role, options))
        }),
        Flavor::OpenBsd => CHECKS.iter().try_for_each(|check| both(*check)),
    }
}

/// Whether that system splices sockets of this kind.
pub(crate) fn check_kind(socket: &Socket, role: Role, order: Flavor) -> Result<(), SpliceError> {
    match (socket.protocol().so_state(), order) {
        (SoState::NotAStream, _)
        | (SoState::Datagrams | SoState::UnconnectedDatagrams, Flavor::FreeBsd) => {
            Err(SpliceError::NotAStream(role))
        }
        _ => Ok(()),
    }
}

fn check_listening(socket: &Socket, role: Role, _options: &Options) -> Result<(), SpliceError> {
    match socket.protocol().so_state() {
        SoState::Listening => Err(SpliceError::Listening(role)),
        _ => Ok(()),
    }
}

fn check_encrypted(socket: &Socket, role: Role, _options: &Options) -> Result<(), SpliceError> {
    match socket.protocol().so_state() {
        SoState::Encrypted => Err(SpliceError::Encrypted(role)),
        _ => Ok(()),
    }
}

/// Neither may be disconnected: a source at its end, or a sink that takes no bytes, and closed in the
/// other direction too. (A source with unread bytes can be spliced.)
fn check_connected(socket: &Socket, role: Role, options: &Options) -> Result<(), SpliceError> {
    let end = socket.end();
    let is_over = match role {
        Role::Source => end.rcv().buf.is_finished() && end.snd().buf.is_closed(),
        Role::Sink => end.rcv().buf.is_closed() && end.snd().buf.is_closed(),
    };
    let is_unconnected = match socket.protocol().so_state() {
        SoState::Unconnected => true,
        // A datagram of the source need not come from one peer, but the sink has to know to whom it goes.
        SoState::UnconnectedDatagrams => role == Role::Sink && !options.addresses,
        _ => false,
    };
    if is_over || is_unconnected {
        return Err(SpliceError::NotConnected(role));
    }
    Ok(())
}

/// For the order of the errors only: [`attach`] decides.
fn check_free(socket: &Socket, role: Role, _options: &Options) -> Result<(), SpliceError> {
    let is_busy = match role {
        Role::Source => socket.end().rcv().is_diverted(),
        Role::Sink => socket.end().snd().is_diverted(),
    };
    if is_busy {
        return Err(SpliceError::Busy(role));
    }
    Ok(())
}

fn new_task(source: &Socket, sink: &Socket, options: &Options, pool: &Arc<Shared>) -> Arc<Task> {
    let party = |socket: &Socket| Endpoint {
        end: socket.end().clone(),
        protocol: socket.protocol().clone(),
    };
    let flavor = source.flavor();
    let (source, sink) = (party(source), party(sink));
    let now = || -> Instant { pool.now() };
    let worker = task::worker_for(pool, &source, &sink);
    Arc::new_cyclic(|me| Task {
        me: me.clone(),
        source,
        sink,
        status: Arc::new(Status::new(
            (pool, worker),
            options.idle.map(|_| now()),
            options.rate.map(|rate| TokenBucket::new(rate, now())),
        )),
        pool: pool.clone(),
        worker,
        dispatch: options.dispatch.unwrap_or(pool.dispatch),
        limit: options.limit,
        idle: options.idle,
        expires: options.lifetime.and_then(|time| now().checked_add(time)),
        needs_time: options.idle.is_some() || options.rate.is_some(),
        flavor,
        lowat: options.lowat,
        addressed: options.addresses,
        forward_eof: options.forward_eof,
        forward_reset: options.forward_reset,
    })
}

/// Attaches the splice to both buffers, both locked. From here on it receives wake-ups.
fn attach(task: &Arc<Task>) -> Result<(), SpliceError> {
    let mut rcv = task.source.end.rcv();
    let mut snd = task.sink.end.snd();
    if rcv.is_diverted() {
        return Err(SpliceError::Busy(Role::Source));
    }
    if snd.is_diverted() {
        return Err(SpliceError::Busy(Role::Sink));
    }
    rcv.divert(task.clone());
    if !intact(Protection::BothAtOnce) {
        drop((rcv, snd));
        snd = task.sink.end.snd();
    }
    snd.divert(task.clone());
    task.source.end.reset_spliced();
    Ok(())
}

#[cfg(test)]
mod loom;
#[cfg(test)]
mod tests;
