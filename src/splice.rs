//! Splices: bytes that a socket receives leave through another one, without their process
//! (SO_SPLICE).
//!
//! [`Socket::splice_to`] joins a *source*'s `so_rcv` to a *sink*'s `so_snd`; both directions of a
//! proxied connection are two splices. It behaves as FreeBSD documents it:
//!
//! * While it lasts, the source's arriving bytes wake nobody and the sink's space wakes nobody. A
//!   [`recv`](Socket::recv) on the source takes what happens to be there; a reader that sleeps goes
//!   on sleeping. When it ends, whoever sleeps on either socket is woken, always.
//! * It ends on the limit (to the byte), on the end of the stream after the last byte, when the sink
//!   takes no more, on its timeouts, on [`unsplice`](Socket::unsplice), and when either socket is
//!   closed. It shuts nothing down and leaves `so_error` alone; bytes that the sink did not take
//!   are readable on the source. [`End`] says why and after how many bytes.
//! * A sink that still connects holds the bytes back.
//! * The counter [`spliced`](Socket::spliced) belongs to the source, is set to 0 only by a
//!   successful `splice_to`, and outlives the splice.
//!
//! Two things are better than in FreeBSD: a call that fails changes nothing, and ending a splice
//! waits for nobody, so it can be done from any thread, also inside a callback.
//!
//! Inside: `machine` (states), `xfer` (moving), `task` (both, bound to locks and time), `pool`
//! (threads). Locks: `so_rcv` of the source (2), `so_snd` of the sink (3), the splice's state (4),
//! queues (5).

mod machine;
mod pool;
mod stats;
mod task;
mod xfer;

pub use pool::{Builder, DEFAULT_QUANTUM, SplicePool};
pub use stats::Stats;

use crate::error::SoError;
use crate::protocol::SoState;
use crate::run_list::{self, Budget, Job};
use crate::socket::Socket;
use pool::Shared;
use std::fmt;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use task::{Party, Status, Task};

/// Where a splice moves its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Dispatch {
    /// On a worker thread of the pool, so that receiving and sending overlap.
    #[default]
    Worker,
    /// In the thread that brings the bytes or the space, after its batch or call; on the worker
    /// when that is not possible or would take long.
    Direct,
}

/// How to splice.
///
/// ```
/// use sosplice::splice::Options;
/// let options = Options { limit: Some(1000), ..Options::default() };
/// assert_eq!(options.idle, None);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Ends after exactly this many bytes; what follows stays on the source.
    pub limit: Option<u64>,
    /// Ends when no byte has moved for so long (OpenBSD's meaning of the timeout).
    pub idle: Option<Duration>,
    /// Ends after this time, whatever has moved (FreeBSD's meaning).
    pub lifetime: Option<Duration>,
    /// Where it moves its bytes; as the pool says if not set.
    pub dispatch: Option<Dispatch>,
    /// The pool it runs in; [`SplicePool::global`] if not set.
    pub pool: Option<SplicePool>,
}

/// Why a splice has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// [`Socket::unsplice`] or [`Splice::unsplice`].
    Unspliced,
    /// The limit is reached.
    Limit,
    /// No byte has moved for the idle time.
    Idle,
    /// Its lifetime is over.
    Lifetime,
    /// The source's stream has ended and all of it was moved.
    Eof,
    /// The source has failed and all that it had received was moved.
    SourceError(SoError),
    /// The source was closed by its user.
    SourceClosed,
    /// The sink was shut down for writing.
    SinkShutdown,
    /// The sink has failed.
    SinkError(SoError),
    /// The sink was closed by its user.
    SinkClosed,
    /// The pool was dropped.
    PoolClosed,
}

impl Cause {
    const KINDS: usize = 11;

    fn kind(self) -> usize {
        match self {
            Cause::Unspliced => 0,
            Cause::Limit => 1,
            Cause::Idle => 2,
            Cause::Lifetime => 3,
            Cause::Eof => 4,
            Cause::SourceError(_) => 5,
            Cause::SourceClosed => 6,
            Cause::SinkShutdown => 7,
            Cause::SinkError(_) => 8,
            Cause::SinkClosed => 9,
            Cause::PoolClosed => 10,
        }
    }
}

/// How a splice has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct End {
    /// Why.
    pub cause: Cause,
    /// Bytes moved from the source to the sink.
    pub bytes: u64,
    /// Passes that it took.
    pub passes: u64,
}

/// The source or the sink of a splice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The socket that bytes come from.
    Source,
    /// The socket that bytes go to.
    Sink,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Source => "source",
            Role::Sink => "sink",
        })
    }
}

/// Why a splice could not be set up. Nothing has changed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpliceError {
    /// The pool has no workers.
    #[error("splicing is disabled: the pool has 0 workers, build one with at least 1")]
    PoolDisabled,
    /// The last handle of the pool was dropped.
    #[error("the pool is closed, keep a handle of it while splices are set up")]
    PoolClosed,
    /// The pool's threads could not be started.
    #[error("the pool could not start its threads ({0}), use another pool")]
    Threads(io::ErrorKind),
    /// The limit is zero.
    #[error("a limit of 0 bytes, set at least 1, or None for no limit")]
    ZeroLimit,
    /// A timeout is zero.
    #[error("a timeout of 0, set a longer one, or None for no timeout")]
    ZeroTimeout,
    /// Not a stream of bytes.
    #[error("the {0} is no stream socket, only streams can be spliced")]
    NotAStream(Role),
    /// A listening socket.
    #[error("the {0} is listening, splice a connection that it has accepted")]
    Listening(Role),
    /// Not connected, and not connecting.
    #[error("the {0} is not connected, connect it first (it may still be connecting)")]
    NotConnected(Role),
    /// In a splice already, in the same role.
    #[error("the {0} is already the {0} of a splice, unsplice that one first")]
    Busy(Role),
}

impl SpliceError {
    /// FreeBSD's number for it.
    ///
    /// ```
    /// use sosplice::splice::{Role, SpliceError};
    /// assert_eq!(SpliceError::Busy(Role::Sink).errno(), 16);
    /// ```
    pub const fn errno(self) -> i32 {
        match self {
            SpliceError::PoolDisabled | SpliceError::PoolClosed => 6,
            SpliceError::Threads(_) => 35,
            SpliceError::ZeroLimit | SpliceError::ZeroTimeout | SpliceError::Listening(_) => 22,
            SpliceError::NotAStream(_) => 43,
            SpliceError::NotConnected(_) => 57,
            SpliceError::Busy(_) => 16,
        }
    }
}

/// Why there was nothing to unsplice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnspliceError {
    /// The socket is not the source of a splice, or no longer.
    #[error("the socket is not the source of a splice (a splice is undone at its source)")]
    NotSpliced,
}

impl UnspliceError {
    /// FreeBSD's number for it.
    ///
    /// ```
    /// assert_eq!(sosplice::splice::UnspliceError::NotSpliced.errno(), 57);
    /// ```
    pub const fn errno(self) -> i32 {
        match self {
            UnspliceError::NotSpliced => 57,
        }
    }
}

/// A splice, to be watched or ended. Dropping the handle leaves the splice running.
///
/// ```
/// use sosplice::{local, splice::{Cause, Options}};
/// let ((a, b), (c, d)) = (local::pair(), local::pair());
/// let splice = b.splice_to(&c, Options { limit: Some(4), ..Options::default() })?;
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
    /// Waits until it has ended, and what it moved was given to the sink's protocol. Not for a
    /// worker or driver thread, which may be the one to end it.
    pub fn wait(&self) -> End {
        let end = self.status.wait(None);
        end.expect("invariant: without a deadline only the end is waited for")
    }

    /// As [`wait`](Self::wait), but no longer than this, in real time.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<End> {
        let now = crate::clock::system().now();
        self.status.wait(now.checked_add(timeout))
    }

    /// Ends it, if it is still there; a later splice of the same sockets is not touched. Waits for
    /// nobody: no byte moves any more, but a pass on another thread may still tell the protocols
    /// ([`wait`](Self::wait) waits for that).
    ///
    /// # Errors
    /// [`UnspliceError::NotSpliced`] if it has ended before.
    pub fn unsplice(&self) -> Result<End, UnspliceError> {
        let task = self.task.upgrade().ok_or(UnspliceError::NotSpliced)?;
        let end = task.dissolve(Cause::Unspliced);
        end.ok_or(UnspliceError::NotSpliced)
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
}

impl Socket {
    /// From now on, what this socket receives is sent by `sink` (`setsockopt(SO_SPLICE)`). Bytes
    /// that are already here go first, in this call.
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
    /// See [`SpliceError`]; nothing has changed then.
    pub fn splice_to(
        &self,
        sink: &impl AsRef<Socket>,
        options: Options,
    ) -> Result<Splice, SpliceError> {
        let sink = sink.as_ref();
        let pool = options
            .pool
            .as_ref()
            .unwrap_or_else(|| SplicePool::global());
        let pool = pool.shared();
        pool.start()?;
        check_options(&options)?;
        check_kind(self, sink)?;
        check_connected(self, sink)?;
        let task = new_task(self, sink, &options, pool);
        attach(&task)?;
        pool.adopt(&task);
        let splice = Splice {
            status: task.status.clone(),
            task: Arc::downgrade(&task),
        };
        run_list::scope(Budget::USER, || task.run());
        Ok(splice)
    }

    /// Ends the splice that this socket is the source of. See [`Splice::unsplice`].
    ///
    /// # Errors
    /// [`UnspliceError::NotSpliced`]; of several threads that try, one succeeds.
    pub fn unsplice(&self) -> Result<End, UnspliceError> {
        let diversion = self.end().rcv().diversion().cloned();
        let task = diversion.as_ref().and_then(Task::of);
        let end = task.and_then(|task| task.dissolve(Cause::Unspliced));
        end.ok_or(UnspliceError::NotSpliced)
    }

    /// Bytes that have left through the latest splice of this source
    /// (`getsockopt(SO_SPLICE)`), up to now or, if it has ended, altogether.
    pub fn spliced(&self) -> u64 {
        self.end().spliced()
    }
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

fn check_kind(source: &Socket, sink: &Socket) -> Result<(), SpliceError> {
    let parties = [
        (source.protocol().so_state(), Role::Source),
        (sink.protocol().so_state(), Role::Sink),
    ];
    for (state, role) in parties {
        if state == SoState::NotAStream {
            return Err(SpliceError::NotAStream(role));
        }
    }
    for (state, role) in parties {
        match state {
            SoState::Stream | SoState::NotAStream => {}
            SoState::Listening => return Err(SpliceError::Listening(role)),
            SoState::Unconnected => return Err(SpliceError::NotConnected(role)),
        }
    }
    Ok(())
}

/// Neither may be at its end: a source with nothing more to give, a sink that takes nothing, and
/// closed in the other direction too. (A source with unread bytes is worth a splice.)
fn check_connected(source: &Socket, sink: &Socket) -> Result<(), SpliceError> {
    let (source, sink) = (source.end(), sink.end());
    if source.rcv().buf.is_finished() && source.snd().buf.is_closed() {
        return Err(SpliceError::NotConnected(Role::Source));
    }
    if sink.rcv().buf.is_closed() && sink.snd().buf.is_closed() {
        return Err(SpliceError::NotConnected(Role::Sink));
    }
    Ok(())
}

fn new_task(source: &Socket, sink: &Socket, options: &Options, pool: &Arc<Shared>) -> Arc<Task> {
    let party = |socket: &Socket| Party {
        end: socket.end().clone(),
        protocol: socket.protocol().clone(),
    };
    let (source, sink) = (party(source), party(sink));
    let now = || -> Instant { pool.now() };
    let worker = pool.worker_for(&source, &sink);
    Arc::new_cyclic(|me| Task {
        me: me.clone(),
        source,
        sink,
        status: Arc::new(Status::new(options.idle.map(|_| now()))),
        pool: pool.clone(),
        worker,
        dispatch: options.dispatch.unwrap_or(pool.dispatch),
        limit: options.limit,
        idle: options.idle,
        expires: options.lifetime.and_then(|time| now().checked_add(time)),
    })
}

/// Puts the splice on both buffers at once. From here on wake-ups find it.
fn attach(task: &Arc<Task>) -> Result<(), SpliceError> {
    let mut rcv = task.source.end.rcv();
    let mut snd = task.sink.end.snd();
    if rcv.is_diverted() {
        return Err(SpliceError::Busy(Role::Source));
    }
    if snd.is_diverted() {
        return Err(SpliceError::Busy(Role::Sink));
    }
    rcv.set_upcall(task.clone(), true);
    snd.set_upcall(task.clone(), true);
    task.source.end.reset_spliced();
    Ok(())
}

#[cfg(test)]
mod tests;
