//! Ownership of a connection: which thread runs it, and how other threads queue work for it.
//!
//! A connection is run by one thread at a time, its owner, which holds `state` (rank 1). No thread
//! waits for that lock: a thread that finds the connection free becomes the owner; else a driver queues its
//! segments in the backlog, and other threads set [`Work`] bits there, both under the backlog's leaf lock.
//!
//! 1. Under the backlog lock a thread tries to lock the connection. If that fails, there is an owner,
//!    which has not released it yet, and segments and bits are added, still under that lock. Else the
//!    thread takes what is in the backlog, before its own segments.
//! 2. The owner releases the connection only under the backlog lock, after finding the backlog empty:
//!    first `state`, then the backlog. So no entry is missed (model: `conn::loom`).
//! 3. The owner takes segments in the order of their arrival.
//! 4. A thread of the program processes a bounded number of segments. The rest stays in the backlog,
//!    and the driver is notified; the next owner takes it first. A driver has a larger bound: a second
//!    driver may add segments as fast as the first one takes them, and the first one's other
//!    connections must not wait.
//! 5. A driver may leave the service step of a batch as work ([`Conn::receive`]): the splices that run
//!    next call the same connection, and do it. The driver does the remaining work ([`Conn::catch_up`])
//!    before its next connection.
//! 6. Any driver may run a connection: frames may arrive on any queue of the link
//!    (`stack::driver::queue`). Each connection is pinned to one queue, its home, on which it transmits
//!    and whose driver is notified.
//! 7. Events are reported after the connection is released, because a subscriber may use it. So the
//!    events of two owners may be reported in another order. The program is told of the end of an attempt to connect
//!    once: whichever thread takes its callback, under the backlog lock, calls it. One that is set when the attempt is
//!    over is taken by the thread that sets it, which looks at the state afterwards.

use super::block::path_mtu::Finding;
use super::block::time::{Clocked, Instant as BlockInstant};
use super::conn_state::{ConnConfig, ConnState, Opening};
use super::counters::{Counters, Sent};
use super::home::{Home, TimerKey};
use super::icmp::IcmpError;
use super::memory::Memory;
use super::options::Options;
use super::service::{Absorbed, Done, Ending, Env, Work};
use super::state::TcpState;
use super::time_wait::TimeWait;
use super::wire::{Segment, Tuple};
use crate::error::SoError;
use crate::events::report;
use crate::link::Link;
use crate::lock::{self, CONNECTION, Guard, LEAF};
use crate::protocol::{Protocol, SocketEnd};
use crate::sync::{Protection, intact};
use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

/// Maximum number of segments in the backlog.
const BACKLOG: usize = 512;
/// Maximum number of ICMP errors in the backlog.
const ERRORS: usize = 16;
/// Rounds of segments that a thread of the program processes before it leaves the rest to the driver.
const USER_ROUNDS: u32 = 4;
/// Rounds that a driver processes before it leaves the rest for its next turn, or to the connection's
/// own driver.
const DRIVER_ROUNDS: u32 = 64;

/// The code behind [`TcpStream::on_connected`](crate::TcpStream::on_connected).
pub(crate) type Connected = Box<dyn FnOnce(Result<(), SoError>) + Send>;

#[derive(Default)]
struct Backlog {
    segments: VecDeque<Segment>,
    errors: Vec<IcmpError>,
    work: Work,
    attempt: Attempt,
}

/// The attempt to connect.
#[derive(Default)]
enum Attempt {
    #[default]
    Open,
    /// This is to be called at its end.
    Asked(Connected),
    Over(Result<(), SoError>),
}

impl fmt::Debug for Backlog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backlog")
            .field("segments", &self.segments)
            .field("errors", &self.errors)
            .field("work", &self.work)
            .finish_non_exhaustive()
    }
}

impl Backlog {
    fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.errors.is_empty() && self.work.is_empty()
    }

    /// Takes everything: its segments are put in front of others.
    fn take(&mut self, segments: &mut VecDeque<Segment>) -> Round {
        if !self.segments.is_empty() {
            let mut first = std::mem::take(&mut self.segments);
            first.append(segments);
            segments.append(&mut first);
        }
        Round {
            errors: std::mem::take(&mut self.errors),
            work: std::mem::take(&mut self.work),
        }
    }
}

/// What an owner processes before it looks into the backlog again.
#[derive(Debug, Default)]
struct Round {
    errors: Vec<IcmpError>,
    work: Work,
}

/// The kind of thread that runs the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runner {
    Driver,
    /// The driver, during a batch.
    Batch,
    User,
}

impl Runner {
    /// Maximum number of rounds.
    fn rounds(self) -> u32 {
        match self {
            Runner::Driver | Runner::Batch => DRIVER_ROUNDS,
            Runner::User => USER_ROUNDS,
        }
    }
}

/// The interface of the stack to its connections. All methods take only leaf locks (rank 5).
pub(crate) trait Host: Send + Sync {
    /// The link on which a connection with this home transmits.
    fn link(&self, home: Home) -> &dyn Link;
    /// Number of queues.
    fn queues(&self) -> usize;
    fn now(&self) -> Instant;
    /// Converts the stack's time to that of control blocks.
    fn clocked(&self) -> Clocked;
    /// Memory of the buffers of all connections.
    fn memory(&self) -> &Memory;
    /// Counters of the connections of this queue.
    fn counters(&self, queue: u16) -> &Counters;
    /// The connection is to be served no later than this. Replaces the former timer.
    fn arm(&self, conn: &Arc<Conn>, at: Instant, former: Option<TimerKey>) -> TimerKey;
    /// The connection waits for room in the link.
    fn blocked(&self, conn: &Arc<Conn>);
    /// The connection has segments that its owner left to the driver of its queue.
    fn hand_over(&self, conn: &Arc<Conn>);
    /// The connection is established.
    fn established(&self, conn: &Arc<Conn>);
    /// The same, later, with no lock held.
    fn announce(&self, conn: &Arc<Conn>);
    /// Tells the program how an attempt to connect has ended. Called with no lock held.
    fn tell(&self, callback: Connected, result: Result<(), SoError>);
    /// A connection to this address has a finding about the path MTU.
    fn path_found(&self, to: IpAddr, finding: Finding);
    /// The last handle of a socket was closed.
    fn detached(&self);
    /// The connection has ended.
    fn closed(&self, conn: &Arc<Conn>, record: Option<TimeWait>);
}

/// One TCP connection.
pub(crate) struct Conn {
    me: Weak<Conn>,
    pub(crate) tuple: Tuple,
    pub(crate) home: Home,
    pub(crate) end: Arc<SocketEnd>,
    pub(crate) options: Options,
    /// It is a passive open.
    pub(crate) is_inbound: bool,
    /// The host counts it among those of its peer.
    pub(crate) counts_for_peer: AtomicBool,
    host: Arc<dyn Host>,
    state: lock::Mutex<ConnState, CONNECTION>,
    backlog: lock::Mutex<Backlog, LEAF>,
    began: Instant,
    gauge: Gauge,
}

/// Values for threads that do not own the connection; its owner publishes them after each step.
/// (Atomics of `std`, also in models, since no thread waits for them.)
#[derive(Debug, Default)]
struct Gauge {
    state: AtomicU8,
    /// The time of the latest progress, in the time of the control block.
    moved: AtomicU64,
    /// Real memory of out-of-order data.
    reassembly: AtomicUsize,
}

/// The notifications of an owner, made after it has released the connection.
#[derive(Debug, Default)]
struct News {
    established: bool,
    done: Option<Over>,
}

#[derive(Debug)]
enum Over {
    Closed(Ending),
    TimeWait,
}

impl Conn {
    pub(crate) fn new(
        tuple: Tuple,
        end: Arc<SocketEnd>,
        (config, options): (&ConnConfig, Options),
        host: Arc<dyn Host>,
    ) -> Arc<Conn> {
        let link_mtu = host.link(config.home).capabilities().mtu;
        let now = config.began;
        let state = ConnState::new(
            tuple,
            (config, &options),
            link_mtu,
            host.clocked().here(now),
        );
        let published = state.tcp_state();
        Arc::new_cyclic(|me| Conn {
            me: me.clone(),
            tuple,
            home: config.home,
            end,
            options,
            is_inbound: config.opening != Opening::Active,
            counts_for_peer: AtomicBool::new(false),
            host,
            state: lock::Mutex::new(state),
            backlog: lock::Mutex::default(),
            began: now,
            gauge: Gauge {
                state: AtomicU8::new(published.number()),
                ..Gauge::default()
            },
        })
    }

    /// The state after the latest step.
    pub(crate) fn state(&self) -> TcpState {
        TcpState::of_number(self.gauge.state.load(Ordering::Relaxed))
    }

    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// The time of the latest progress in either direction, or of the beginning.
    pub(crate) fn moved_at(&self) -> Instant {
        let moved = BlockInstant::from_nanos(self.gauge.moved.load(Ordering::Relaxed));
        self.host.clocked().there(moved)
    }

    /// Real memory of out-of-order data in bytes.
    pub(crate) fn reassembly_memory(&self) -> usize {
        self.gauge.reassembly.load(Ordering::Relaxed)
    }

    fn publish_state(&self, state: TcpState) {
        self.gauge.state.store(state.number(), Ordering::Relaxed);
    }

    /// In TIME-WAIT only a record remains.
    fn publish(&self, state: &ConnState, done: Option<&Done>) {
        self.publish_state(match done {
            Some(Done::TimeWait(_)) => TcpState::TimeWait,
            Some(Done::Closed(_)) | None => state.tcp_state(),
        });
        let moved = state.moved_at().nanos();
        self.gauge.moved.store(moved, Ordering::Relaxed);
        let ahead = state.reassembly_memory();
        self.gauge.reassembly.store(ahead, Ordering::Relaxed);
    }

    /// Adds a segment to the backlog; `false` if that is full. [`run`](Self::run), or
    /// [`receive`](Self::receive), must follow, also after several.
    pub(crate) fn leave(&self, segment: Segment) -> bool {
        self.leave_all(self.backlog.lock(), &mut VecDeque::from([segment])) == 0
    }

    /// Adds segments, and returns how many were dropped, since the backlog is full.
    fn leave_all(
        &self,
        mut backlog: Guard<'_, Backlog, LEAF>,
        segments: &mut VecDeque<Segment>,
    ) -> usize {
        let room = BACKLOG.saturating_sub(backlog.segments.len());
        let taken = room.min(segments.len());
        backlog.segments.extend(segments.drain(..taken));
        drop(backlog);
        let dropped = segments.len();
        segments.clear();
        if dropped > 0 {
            let counters = self.host.counters(self.home.queue);
            counters.backlog_full.add(dropped as u64);
        }
        dropped
    }

    /// Adds an ICMP error, as [`leave`](Self::leave) does a segment.
    pub(crate) fn leave_error(&self, error: IcmpError) -> bool {
        let mut backlog = self.backlog.lock();
        let room = backlog.errors.len() < ERRORS;
        if room {
            backlog.errors.push(error);
        } else {
            drop(backlog);
            self.host.counters(self.home.queue).icmp_ignored.add(1);
        }
        room
    }

    /// Adds work for the present owner, which is a caller of this thread.
    pub(crate) fn leave_work(&self, work: Work) {
        self.backlog.lock().work.add(work);
    }

    /// Adds work, and does it (and all that is in the backlog) if the connection is free.
    pub(crate) fn run(&self, work: Work, runner: Runner) {
        let mut backlog = self.backlog.lock();
        backlog.work.add(work);
        let Some(state) = self.state.try_lock() else {
            return;
        };
        let mut segments = VecDeque::new();
        let first = backlog.take(&mut segments);
        drop(backlog);
        self.own(state, runner, (first, &mut segments));
    }

    /// Processes segments of a batch, or leaves them to the owner, and returns how many were dropped,
    /// since the backlog is full. The queue is empty then, and keeps its memory.
    /// [`catch_up`](Self::catch_up) must follow.
    pub(crate) fn receive(&self, segments: &mut VecDeque<Segment>) -> usize {
        let mut backlog = self.backlog.lock();
        let Some(state) = self.state.try_lock() else {
            return self.leave_all(backlog, segments);
        };
        let first = backlog.take(segments);
        drop(backlog);
        self.own(state, Runner::Batch, (first, segments));
        0
    }

    /// Does the remaining work, if any.
    pub(crate) fn catch_up(&self) {
        let nothing = self.backlog.lock().is_empty();
        if !nothing {
            self.run(Work::REST, Runner::Driver);
        }
    }

    /// A timer is due, the link has room again, or segments were handed over.
    pub(crate) fn resume(&self) {
        self.run(Work::SERVE, Runner::Driver);
    }

    fn own(
        &self,
        state: Guard<'_, ConnState, CONNECTION>,
        runner: Runner,
        first: (Round, &mut VecDeque<Segment>),
    ) {
        let mut news = News::default();
        self.drive(state, runner, first, &mut news);
        self.notify(&news);
        if news.established {
            self.host.announce(&self.me());
        }
        if news.established {
            self.tell_connected(Ok(()));
        }
        if let Some(Over::Closed(ending)) = &news.done {
            // Nothing, if it was established.
            self.tell_connected(Err(ending.error().unwrap_or(SoError::ConnectionAborted)));
        }
    }

    /// Has this called when the attempt to connect is over, or now if it is. Called with no lock held.
    pub(crate) fn on_connected(&self, callback: Connected) {
        let mut backlog = self.backlog.lock();
        if let Attempt::Over(result) = backlog.attempt {
            drop(backlog);
            self.host.tell(callback, result);
            return;
        }
        let former = std::mem::replace(&mut backlog.attempt, Attempt::Asked(callback));
        drop(backlog);
        drop(former);
    }

    /// The attempt to connect has ended, if it had not before: tells the program, if it is to be told.
    fn tell_connected(&self, result: Result<(), SoError>) {
        let mut backlog = self.backlog.lock();
        if let Attempt::Over(_) = backlog.attempt {
            return;
        }
        let former = std::mem::replace(&mut backlog.attempt, Attempt::Over(result));
        drop(backlog);
        if let Attempt::Asked(callback) = former {
            self.host.tell(callback, result);
        }
    }

    fn me(&self) -> Arc<Conn> {
        (self.me.upgrade()).expect("invariant: who runs a connection has a reference to it")
    }

    /// Makes the notifications. Called with no lock held; another owner may have made later ones
    /// before.
    fn notify(&self, news: &News) {
        if !news.established && news.done.is_none() {
            return;
        }
        let (local, peer) = self.tuple.ends();
        if news.established {
            report!(debug, "tcp", %local, %peer, "connection established");
        }
        match news.done {
            None => {}
            Some(Over::TimeWait) => report!(debug, "tcp", %local, %peer, "connection in TIME-WAIT"),
            Some(Over::Closed(ending)) => match ending.error() {
                None => report!(debug, "tcp", %local, %peer, "connection ended"),
                Some(error) => {
                    let was_established = !ending.failed();
                    report!(debug, "tcp", %local, %peer, ?error, was_established, "connection failed");
                }
            },
        }
    }

    /// Runs rounds until the backlog is empty, or the bound is reached.
    fn drive(
        &self,
        mut state: Guard<'_, ConnState, CONNECTION>,
        runner: Runner,
        (mut round, segments): (Round, &mut VecDeque<Segment>),
        news: &mut News,
    ) {
        for number in 1.. {
            let may_owe = runner == Runner::Batch && round.work.is_empty();
            let owed = self.step(&mut state, (round, &mut *segments), may_owe, news);
            let mut backlog = self.backlog.lock();
            if backlog.is_empty() {
                if owed && intact(Protection::Owed) {
                    backlog.work.add(Work::REST);
                }
                if !intact(Protection::FreeFirst) {
                    drop(backlog);
                }
                // The connection, then the backlog (rule 2).
                drop(state);
                return;
            }
            if number >= runner.rounds() {
                // A postponed service step is done with the rest.
                drop(state);
                drop(backlog);
                self.host.hand_over(&self.me());
                return;
            }
            round = backlog.take(segments);
        }
    }

    /// One round: the segments of the backlog, then one service step for all of them. `true` if that
    /// step is postponed.
    fn step(
        &self,
        state: &mut ConnState,
        (round, segments): (Round, &mut VecDeque<Segment>),
        may_owe: bool,
        news: &mut News,
    ) -> bool {
        let Round { errors, work } = round;
        state.prefetch();
        let counters = self.host.counters(self.home.queue);
        let (now, clocked) = (self.host.now(), self.host.clocked());
        let env = Env {
            now: clocked.here(now),
            link: self.host.link(self.home),
            end: &self.end,
            counters,
            memory: self.host.memory(),
            sent: Sent::new(counters),
            options: &self.options,
        };
        // First: a later segment may acknowledge the quoted one.
        for error in errors {
            state.icmp(&error, &env);
        }
        for segment in segments.drain(..) {
            state.input(&segment, &env);
        }
        if may_owe {
            match state.absorb(&env) {
                Absorbed::Nothing => {}
                Absorbed::Part => return true,
                Absorbed::Whole(next) => {
                    self.publish(state, None);
                    if let Some(at) = next {
                        self.arm(state, clocked.there(at), now);
                    }
                    return false;
                }
            }
        }
        // Before the effects of the segments are visible to other threads.
        self.publish_state(state.tcp_state());
        let served = state.serve(work, &env);
        self.publish(state, served.done.as_ref());
        news.established |= served.established;
        if served.established {
            self.host.established(&self.me());
        }
        if let Some(finding) = served.path.filter(|_| !self.home.looped) {
            self.host.path_found(self.tuple.remote, finding);
        }
        if served.link_full {
            self.host.blocked(&self.me());
        }
        match served.done {
            Some(Done::Closed(ending)) => {
                news.done = Some(Over::Closed(ending));
                self.host.closed(&self.me(), None);
            }
            Some(Done::TimeWait(record)) => {
                news.done = Some(Over::TimeWait);
                self.host.closed(&self.me(), Some(record));
            }
            None => {}
        }
        if let Some(at) = served.next {
            self.arm(state, clocked.there(at), now);
        }
        false
    }

    /// Arms the timer, unless an earlier one is armed, which will check again. One that is due is
    /// ignored: it has fired, or is about to.
    fn arm(&self, state: &mut ConnState, at: Instant, now: Instant) {
        let former = state.armed;
        if former.is_some_and(|(armed, _)| now < armed && armed <= at) {
            return;
        }
        state.armed = Some(self.host.arm(&self.me(), at, former));
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        // Unread bytes are dropped with the socket, which is dropped with this.
        let memory = self.host.memory();
        self.state.get_mut().account.close(memory);
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn")
            .field("tuple", &self.tuple)
            .finish_non_exhaustive()
    }
}

impl Protocol for Conn {
    fn output(&self) {
        lock::assert_none_held();
        self.run(Work::WRITTEN, Runner::User);
    }

    fn rcvd(&self, idle: bool) {
        lock::assert_none_held();
        let mut work = Work::READ;
        if idle {
            work.add(Work::IDLE);
        }
        self.run(work, Runner::User);
    }

    fn abort(&self) {
        lock::assert_none_held();
        self.run(Work::ABORT, Runner::User);
    }

    fn detach(&self) {
        lock::assert_none_held();
        self.run(Work::DETACH, Runner::User);
        self.host.detached();
    }

    fn name(&self) -> &'static str {
        "tcp"
    }

    fn queue(&self) -> Option<usize> {
        (self.host.queues() > 1).then_some(self.home.queue.into())
    }

    fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        Some(self.tuple.ends())
    }
}

#[cfg(test)]
mod loom;
