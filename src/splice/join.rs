//! Both directions between two sockets, and the sockets themselves: [`join`].
//!
//! Each direction is a splice. The callback for its end ([`Both::lane_ended`]) holds the sockets, so
//! they stay open until both directions have ended; [`Join`] holds them too. The idle timeout is for
//! the connection, not for a direction: a direction that ends by it is spliced again if the other one
//! has moved bytes.
//!
//! Locks: the state (5), a leaf.

use super::{
    Cause, End, Options, Shared, Splice, SpliceError, check_options, set_up_both, set_up_in,
    start_pool,
};
use crate::callbacks::{self, Once};
use crate::lock::{Condvar, LEAF, Mutex};
use crate::socket::Socket;
use std::fmt;
use std::sync::Arc;
#[cfg(feature = "async")]
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Splices two sockets to each other, both ways, and keeps them open while the splices last.
///
/// A socket that is passed by value is closed when both directions have ended and the [`Join`] is
/// dropped. One that is passed by reference (or of which there are clones) stays open beyond that. Any
/// two sockets can be joined: of stacks, of the operating system, in memory.
///
/// The options hold for each direction, with these meanings:
///
/// * `limit`: of each direction its own.
/// * `idle`: of both together. When neither has moved a byte for that time (counted in whole periods,
///   so after twice that at the latest) both end, with [`Cause::Idle`]. With two separate splices each
///   direction would time out by itself, so a long download would lose its other direction.
/// * `rate`: of each direction its own. Its burst is full again after the direction was idle.
/// * `forward_eof`, `forward_reset`: as for a splice. A proxy needs both; without the first the peer
///   receives no FIN before the sockets are closed.
///
/// ```
/// use sosplice::{local, splice::{self, Cause, Options}};
/// use std::net::Shutdown;
/// let ((client, inside), (outside, server)) = (local::pair(), local::pair());
/// let options = Options::default().forward_eof(true).forward_reset(true);
/// let join = splice::join(inside, outside, options)?;
///
/// client.send(b"ping")?;
/// client.shutdown(Shutdown::Write)?;
/// assert_eq!(server.recv_chain(100)?.to_vec(), b"ping");
/// server.send(b"hello")?;
/// server.close();
/// let ends = join.wait();
/// assert_eq!((ends.a_to_b.cause, ends.a_to_b.bytes), (Cause::Eof, 4));
/// assert_eq!((ends.b_to_a.cause, ends.b_to_a.bytes), (Cause::Eof, 5));
/// assert_eq!(client.recv_chain(100)?.to_vec(), b"hello");
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// See [`SpliceError`]; the source and the sink that it names are those of the direction from `a` to
/// `b` or, if that can be spliced, of the other one. No byte has been moved, and sockets that were
/// passed by value are closed.
pub fn join(
    a: impl AsRef<Socket>,
    b: impl AsRef<Socket>,
    options: Options,
) -> Result<Join, SpliceError> {
    let sockets = [a.as_ref().clone(), b.as_ref().clone()];
    let pool = start_pool(&options)?.clone();
    check_options(&options)?;
    let expires = options.lifetime;
    let expires = expires.and_then(|time| pool.now().checked_add(time));
    let splices = set_up_both(&sockets, &options, &pool)?;
    let both = Arc::new(Both {
        sockets,
        // Without the handle, which would keep the pool open.
        options: Options {
            pool: None,
            ..options
        },
        pool,
        expires,
        state: Mutex::default(),
        over: Condvar::new(),
    });
    for (lane, splice) in splices.into_iter().enumerate() {
        both.watch(lane, splice);
    }
    Ok(Join { both })
}

/// The handle of two sockets that are spliced to each other. Made by [`join`].
///
/// Dropping the handle leaves both directions running, as for a [`Splice`]: the sockets stay open until
/// both have ended, and are closed then. ([`abort`](Self::abort) and [`unsplice`](Self::unsplice) end
/// them earlier; so do the options, the pool when its last handle is dropped, and the stack when it
/// goes down.) While there is a handle the sockets stay open, so bytes that a direction has left on its
/// source can be read there.
///
/// ```
/// use sosplice::{local, splice::{self, Options}};
/// let ((client, inside), (outside, server)) = (local::pair(), local::pair());
/// drop(splice::join(inside, outside, Options::default().forward_eof(true))?);
/// client.send(b"hello")?;
/// client.close();
/// assert_eq!(server.recv_chain(100)?.to_vec(), b"hello");
/// assert!(server.recv_chain(100)?.is_empty());
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub struct Join {
    both: Arc<Both>,
}

/// How the two directions of a [`Join`] have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Ends {
    /// From the first socket to the second one.
    pub a_to_b: End,
    /// From the second socket to the first one.
    pub b_to_a: End,
}

impl Join {
    /// Waits until both directions have ended. Must not be called in a worker or driver thread, which
    /// may be the one that ends them.
    pub fn wait(&self) -> Ends {
        let ends = self.both.wait(None);
        ends.expect("invariant: without a deadline only the ends are waited for")
    }

    /// As [`wait`](Self::wait), but no longer than this, in real time.
    ///
    /// ```
    /// use sosplice::{local, splice::{self, Options}};
    /// use std::time::Duration;
    /// let ((client, inside), (outside, _server)) = (local::pair(), local::pair());
    /// let join = splice::join(inside, outside, Options::default().forward_reset(true))?;
    /// assert!(join.wait_timeout(Duration::from_millis(1)).is_none());
    /// client.abort();
    /// assert!(join.wait_timeout(Duration::from_secs(60)).is_some());
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Ends> {
        let now = crate::clock::system().now();
        self.both.wait(now.checked_add(timeout))
    }

    /// A future for [`wait`](Self::wait), for any executor. It outlives the handle.
    ///
    /// ```
    /// # async fn example(inside: sosplice::Socket, outside: sosplice::Socket)
    /// #     -> Result<(), sosplice::splice::SpliceError> {
    /// use sosplice::splice;
    /// let ends = splice::join(inside, outside, Default::default())?.ended().await;
    /// println!("{} bytes there, {} back", ends.a_to_b.bytes, ends.b_to_a.bytes);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "async")]
    pub fn ended(&self) -> JoinEnded {
        JoinEnded {
            both: self.both.clone(),
        }
    }

    /// Calls `callback` once when both directions have ended; see [`Splice::on_end`].
    ///
    /// ```
    /// use sosplice::{local, splice::{self, Options}};
    /// let ((client, inside), (outside, server)) = (local::pair(), local::pair());
    /// let (sender, ends) = std::sync::mpsc::channel();
    /// let join = splice::join(inside, outside, Options::default())?;
    /// join.on_end(move |ends| sender.send(ends).unwrap_or(()));
    /// client.send(b"hello")?;
    /// client.close();
    /// server.close();
    /// assert_eq!(ends.recv()?.a_to_b.bytes, 5);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_end(&self, callback: impl FnOnce(Ends) + Send + 'static) {
        self.both.on_end(Waiter::Callback(Box::new(callback)));
    }

    /// How both have ended, if they have.
    pub fn end(&self) -> Option<Ends> {
        self.both.state.lock().ends()
    }

    /// Bytes that were moved so far: from the first socket to the second one, and from the second to the
    /// first.
    pub fn bytes(&self) -> (u64, u64) {
        (self.both.carried(0), self.both.carried(1))
    }

    /// The two sockets.
    pub fn sockets(&self) -> (&Socket, &Socket) {
        let [a, b] = &self.both.sockets;
        (a, b)
    }

    /// Ends the directions that have not ended, as [`Splice::unsplice`] does, and leaves the sockets
    /// open while there is a handle of them or of this.
    ///
    /// ```
    /// use sosplice::{local, splice::{self, Cause, Options}};
    /// let ((client, inside), (outside, server)) = (local::pair(), local::pair());
    /// let join = splice::join(inside, outside, Options::default())?;
    /// client.send(b"spliced")?;
    /// assert_eq!(server.recv_chain(100)?.to_vec(), b"spliced");
    /// join.unsplice();
    /// client.send(b"read")?;
    /// let ends = join.wait();
    /// assert_eq!((ends.a_to_b.cause, ends.a_to_b.bytes), (Cause::Unspliced, 7));
    /// assert_eq!(join.sockets().0.recv_chain(100)?.to_vec(), b"read");
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn unsplice(&self) {
        self.both.stop(Cause::Unspliced);
    }

    /// Ends both connections at once and notifies the peers (a TCP reset), see [`Socket::abort`]. This
    /// ends both directions.
    pub fn abort(&self) {
        self.both.sockets.iter().for_each(Socket::abort);
    }
}

impl fmt::Debug for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = &self.both.sockets;
        f.debug_struct("Join")
            .field("a", &a.end().id())
            .field("b", &b.end().id())
            .field("ends", &self.end())
            .finish_non_exhaustive()
    }
}

/// The state shared by the handle and the callbacks of both splices.
struct Both {
    sockets: [Socket; 2],
    options: Options,
    pool: Arc<Shared>,
    expires: Option<Instant>,
    state: Mutex<State, LEAF>,
    over: Condvar,
}

#[derive(Default)]
struct State {
    /// From each socket to the other one.
    lanes: [Lane; 2],
    /// Set when the join is to end: no splice is set up any more, and the present ones end with this
    /// cause.
    stopped: Option<Cause>,
    waiters: Vec<Waiter>,
}

#[derive(Default)]
struct Lane {
    /// `None` between two splices, and at the end.
    splice: Option<Arc<Splice>>,
    /// Bytes and passes of its earlier splices.
    before: (u64, u64),
    /// Bytes that the other direction had moved when the splice began.
    other_then: u64,
    end: Option<End>,
}

enum Waiter {
    Callback(Box<dyn FnOnce(Ends) + Send>),
    #[cfg(feature = "async")]
    Waker(Waker),
}

impl State {
    fn ends(&self) -> Option<Ends> {
        Some(Ends {
            a_to_b: self.lanes[0].end?,
            b_to_a: self.lanes[1].end?,
        })
    }
}

impl Both {
    /// Registers a new splice of this direction.
    fn watch(self: &Arc<Self>, lane: usize, splice: Splice) {
        let splice = Arc::new(splice);
        let stopped = {
            let mut state = self.state.lock();
            state.lanes[lane].splice = Some(splice.clone());
            state.stopped
        };
        if let Some(cause) = stopped {
            splice.end_by(cause);
        }
        let both = self.clone();
        splice.on_end(move |end| both.lane_ended(lane, end));
    }

    fn carried(&self, lane: usize) -> u64 {
        let (before, splice) = {
            let state = self.state.lock();
            let lane = &state.lanes[lane];
            (lane.before.0, lane.splice.clone())
        };
        before + splice.map_or(0, |splice| splice.bytes())
    }

    fn lane_ended(self: &Arc<Self>, lane: usize, end: End) {
        let other = self.carried(1 - lane);
        let (again, end, former) = {
            let mut state = self.state.lock();
            let stopped = state.stopped.is_some();
            let lane = &mut state.lanes[lane];
            let former = lane.splice.take();
            lane.before.0 += end.bytes;
            lane.before.1 += end.passes;
            let moves = std::mem::replace(&mut lane.other_then, other) != other;
            let end = End {
                bytes: lane.before.0,
                passes: lane.before.1,
                ..end
            };
            let again = end.cause == Cause::Idle && moves && !stopped;
            (again, end, former)
        };
        drop(former);
        match again.then(|| self.again(lane, end)) {
            Some(Ok(splice)) => self.watch(lane, splice),
            Some(Err(end)) => self.finish(lane, end),
            None => self.finish(lane, end),
        }
    }

    /// Splices an idle direction again if the other one has moved bytes. Otherwise returns its end.
    fn again(&self, lane: usize, end: End) -> Result<Splice, End> {
        let now = self.pool.now();
        let left = self.expires.map(|at| at.saturating_duration_since(now));
        if left == Some(Duration::ZERO) {
            let cause = Cause::Lifetime;
            return Err(End { cause, ..end });
        }
        let options = Options {
            limit: self.options.limit.map(|limit| limit - end.bytes),
            lifetime: left,
            ..self.options.clone()
        };
        let (source, sink) = (&self.sockets[lane], &self.sockets[1 - lane]);
        set_up_in(source, sink, &options, source.flavor(), &self.pool).map_err(|_| end)
    }

    fn finish(&self, lane: usize, end: End) {
        if end.cause == Cause::Idle {
            self.stop(Cause::Idle);
        }
        let waiters = {
            let mut state = self.state.lock();
            state.lanes[lane].end = Some(end);
            let Some(ends) = state.ends() else { return };
            self.over.notify_all();
            (std::mem::take(&mut state.waiters), ends)
        };
        let (waiters, ends) = waiters;
        waiters
            .into_iter()
            .for_each(|waiter| self.notify(waiter, ends));
    }

    /// Ends the directions that have not ended.
    fn stop(&self, cause: Cause) {
        let splices = {
            let mut state = self.state.lock();
            state.stopped.get_or_insert(cause);
            state.lanes.each_ref().map(|lane| lane.splice.clone())
        };
        splices
            .iter()
            .flatten()
            .for_each(|splice| splice.end_by(cause));
    }

    fn wait(&self, deadline: Option<Instant>) -> Option<Ends> {
        let mut state = self.state.lock();
        let mut timed_out = false;
        loop {
            let ends = state.ends();
            if ends.is_some() || timed_out {
                return ends;
            }
            timed_out = self.over.wait_until(&mut state, deadline);
        }
    }

    fn on_end(&self, waiter: Waiter) {
        let over = {
            let mut state = self.state.lock();
            match state.ends() {
                Some(ends) => Some((ends, waiter)),
                None => {
                    state.waiters.push(waiter);
                    None
                }
            }
        };
        if let Some((ends, waiter)) = over {
            self.notify(waiter, ends);
        }
    }

    /// Calls the code of the program through the callback queue.
    fn notify(&self, waiter: Waiter, ends: Ends) {
        let call = Once::new(move || match waiter {
            Waiter::Callback(callback) => callback(ends),
            #[cfg(feature = "async")]
            Waiter::Waker(waker) => waker.wake(),
        });
        let _ = self.pool.counts.guard(|| callbacks::call(call));
    }
}

/// Becomes ready when both directions have ended. See [`Join::ended`].
#[cfg(feature = "async")]
#[must_use]
pub struct JoinEnded {
    both: Arc<Both>,
}

#[cfg(feature = "async")]
impl fmt::Debug for JoinEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinEnded")
    }
}

#[cfg(feature = "async")]
impl Future for JoinEnded {
    type Output = Ends;

    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ends> {
        // A waker is foreign code: cloned with no lock held.
        let new = cx.waker().clone();
        let mut state = self.both.state.lock();
        if let Some(ends) = state.ends() {
            return Poll::Ready(ends);
        }
        let mut wakers = state.waiters.iter();
        let known =
            wakers.any(|waiter| matches!(waiter, Waiter::Waker(waker) if waker.will_wake(&new)));
        if !known {
            state.waiters.push(Waiter::Waker(new));
        }
        Poll::Pending
    }
}
