//! The proxy itself: for each connection that a listener accepts, one to a backend, and two
//! splices between them.
//!
//! There is no thread for it. The listener's callback runs in the thread that received the connection, and
//! that of a splice in the thread that ended it, so a short connection wakes no other one. (Only clients whose first
//! bytes decide wait in the [`lobby`](crate::lobby).)
//!
//! * With several receive queues, the connection to the backend is on the queue of the client's: one
//!   thread receives for both then.
//! * Connecting to the backend does not wait, and both splices are set up at once: bytes wait until the
//!   connection is established. If it is not, they are still the client's, and another backend is tried.
//! * The end of one direction is forwarded (half-close); the connection has ended when both have.
//! * An error in either direction resets both sides.

mod clients;
mod lines;
mod numbers;
mod pair;
mod state;
#[cfg(test)]
mod tests;

use crate::backends::{Balance, Id};
use crate::heads::{Expected, Fault, Head, Version};
use crate::lobby::{Lobby, Room};
use crate::measures::Measures;
use crate::services::{Listed, Offer, Services};
use crate::totals::{Failure, Refusal, Totals};
pub(crate) use numbers::BackendStats;
#[cfg(feature = "top")]
pub(crate) use numbers::Snapshot;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use ipnet::IpNet;
use lines::Ending;
use sosplice::clock::{Clock, SystemClock};
use sosplice::splice::SplicePool;
use sosplice::{Stack, TcpListener};
use state::{State, Waiting};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often to check whether the last connection has ended.
const LOOK: Duration = Duration::from_millis(5);

/// The stack for connections to the backends, and the pool of all splices.
#[derive(Debug)]
pub(crate) struct Means {
    pub(crate) dial: Stack,
    pub(crate) pool: SplicePool,
}

/// The settings for each connection, which keeps those that it began with.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) idle: Option<Duration>,
    pub(crate) limit: Option<u64>,
    /// What clients begin with, and how long that may take.
    pub(crate) expected: Expected,
    pub(crate) head_timeout: Duration,
    pub(crate) head_room: Room,
    /// The header that backends get.
    pub(crate) send_proxy: Option<Version>,
    /// The maximum number of connections of a client.
    pub(crate) per_client: Option<u32>,
    /// How many clients wait for a backend that has room, and how long.
    pub(crate) queue: (usize, Duration),
}

impl Default for Terms {
    fn default() -> Terms {
        Terms {
            idle: None,
            limit: None,
            expected: Expected::default(),
            head_timeout: Duration::from_secs(5),
            head_room: Room::default(),
            send_proxy: None,
            per_client: None,
            queue: (0, Duration::from_secs(10)),
        }
    }
}

/// An event for the thread that waits for the relay's end.
#[derive(Debug)]
pub(crate) enum Event {
    /// The listener, or the stack for connections to the backend, has failed.
    Failed(Failure),
    /// Stop accepting, end within this time.
    Stop(Duration),
    /// Another process accepts from now on: end within this time, when this stack has no connection any more, not even
    /// one that a client has only begun.
    #[cfg_attr(
        not(any(target_os = "linux", target_os = "android")),
        expect(dead_code, reason = "only Linux has TUNs")
    )]
    Leave { grace: Duration, front: Stack },
    /// That process has ended: what clients have begun is not waited for.
    #[cfg_attr(
        not(any(target_os = "linux", target_os = "android")),
        expect(dead_code, reason = "only Linux has TUNs")
    )]
    Left,
    /// A client waits for a backend.
    Queued,
    /// No connection is left.
    Drained,
}

/// A thread that panicked has left nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How to end a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Both sides get all bytes, then the end of the stream.
    Closes,
    /// Both sides get a reset.
    Resets,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Relay {
    shared: Arc<Shared>,
    inbox: Receiver<Event>,
}

/// What the callbacks use. They are called with nothing locked.
#[derive(Debug)]
pub(crate) struct Shared {
    means: Means,
    /// The addresses from which it connects to backends.
    own: Vec<IpAddr>,
    listener: TcpListener,
    lobby: Lobby,
    state: Mutex<State>,
    measures: Measures,
    events: Sender<Event>,
}

impl Relay {
    /// A relay for the connections of `listener`. The sender is for [`Event::Stop`].
    pub(crate) fn new(
        listener: TcpListener,
        means: Means,
        terms: Terms,
        services: Services,
    ) -> (Relay, Sender<Event>) {
        let (events, inbox) = unbounded();
        let own = means.dial.addresses().iter().map(IpNet::addr).collect();
        let lobby = Lobby::default();
        lobby.set_room(terms.head_room);
        let shared = Shared {
            means,
            own,
            lobby,
            listener,
            state: Mutex::new(State {
                terms: Arc::new(terms),
                services,
                ..State::default()
            }),
            measures: Measures::default(),
            events: events.clone(),
        };
        let shared = Arc::new(shared);
        (Relay { shared, inbox }, events)
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Runs until it is stopped, or one of its links is gone (that of the backend is noticed at the
    /// next client). Returns also when the grace time ends.
    pub(crate) fn run(self) -> (Totals, Instant) {
        let shared = &self.shared;
        thread::scope(|scope| {
            let lobby = || {
                let leave = |stream, peer, terms, head: Result<Head, Fault>| match head {
                    Ok(head) => shared.admit(stream, peer, terms, head),
                    Err(fault) => shared.refuse(None, &stream, peer, Refusal::Head(fault)),
                };
                if let Err(error) = shared.lobby.run(leave) {
                    shared.tell(Event::Failed(Failure::Listening(error)));
                }
            };
            let started = thread::Builder::new()
                .name("lobby".into())
                .spawn_scoped(scope, lobby);
            if let Err(error) = started {
                shared.tell(Event::Failed(Failure::Listening(error)));
            }
            self.listen();
            let (grace, front) = self.wait_for_stop();
            self.wind_down(grace, front)
        })
    }

    fn listen(&self) {
        let shared = self.shared();
        self.shared
            .listener
            .on_accept(move |accepted| match accepted {
                Ok((client, peer)) => shared.accepted(client, peer),
                Err(error) => shared.tell(Event::Failed(Failure::Listening(error))),
            });
    }

    /// Returns the time for the rest, and a stack that others accept for.
    fn wait_for_stop(&self) -> (Duration, Option<Stack>) {
        loop {
            let event = match self.shared.refuse_late() {
                Some(next) => self.inbox.recv_deadline(next),
                None => self
                    .inbox
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Ok(Event::Drained | Event::Queued | Event::Left)
                | Err(RecvTimeoutError::Timeout) => {}
                Ok(Event::Stop(grace)) => return (grace, None),
                Ok(Event::Leave { grace, front }) => return (grace, Some(front)),
                Ok(Event::Failed(failure)) => {
                    lock(&self.shared.state).totals.failure = Some(failure);
                    return (Duration::ZERO, None);
                }
                Err(RecvTimeoutError::Disconnected) => {
                    unreachable!("the relay itself has a sender")
                }
            }
        }
    }

    /// Stops accepting; lets connections end within the grace time, then resets them. Handshakes that clients have begun
    /// with the stack `front` may still become connections.
    fn wind_down(&self, grace: Duration, mut front: Option<Stack>) -> (Totals, Instant) {
        let deadline = SystemClock.now() + grace;
        lock(&self.shared.state).stopped = true;
        loop {
            let unheard = match &front {
                Some(front) => front.stats().connections > 0,
                None => {
                    self.shared.listener.close();
                    false
                }
            };
            if !unheard && self.shared.is_drained() {
                break;
            }
            let now = SystemClock.now();
            let late = self.shared.refuse_late();
            // Stacks do not report their last connection, nor the lobby its last client.
            let next = late
                .into_iter()
                .fold(deadline, Instant::min)
                .min(now + LOOK);
            match self.inbox.recv_deadline(next) {
                Ok(Event::Left) => front = None,
                // It ends already.
                Ok(_) => {}
                Err(_) if now >= deadline => break,
                Err(_) => {}
            }
        }
        self.shared.listener.close();
        let without_head = self.shared.lobby.close();
        let (left, waiting) = {
            let mut state = lock(&self.shared.state);
            state.ended = true;
            (
                state.pairs.values().cloned().collect::<Vec<_>>(),
                std::mem::take(&mut state.waiting),
            )
        };
        for Waiting { client, .. } in &waiting {
            lines::refused(Some(client.id), client.address, Refusal::Stopped);
            client.stream.abort();
        }
        let cut = left
            .iter()
            .filter(|pair| self.shared.over(pair, Verdict::Resets, Ending::Stopped));
        let cut_off = cut.count() + waiting.len() + without_head;
        let mut totals = std::mem::take(&mut lock(&self.shared.state).totals);
        totals.cut_off = cut_off;
        (totals, deadline)
    }
}

impl Shared {
    /// Whether it accepts no more.
    pub(crate) fn is_stopped(&self) -> bool {
        lock(&self.state).stopped
    }

    fn tell(&self, event: Event) {
        // Fails only when the relay has ended.
        self.events.send(event).ok();
    }

    /// Other settings and backends for further clients, and for those that wait.
    pub(crate) fn renew(self: &Arc<Self>, terms: Terms, offers: Vec<Offer>, balance: Balance) {
        self.lobby.set_room(terms.head_room);
        {
            let mut state = lock(&self.state);
            state.terms = Arc::new(terms);
            state.services.renew(offers, balance);
            state.totals.renewed += 1;
        }
        self.serve_waiting();
        // They may wait for another time.
        self.tell(Event::Queued);
    }

    /// Settings with a mistake change nothing.
    #[cfg_attr(
        not(any(target_os = "linux", target_os = "android")),
        expect(dead_code, reason = "only Linux has TUNs")
    )]
    pub(crate) fn reject(&self) {
        lock(&self.state).totals.rejected += 1;
    }

    /// The checks of these backends do not go on: without them all are up, and those that do not answer are found out by
    /// the clients' connections.
    pub(crate) fn checks_failed(self: &Arc<Self>, backends: &[Listed]) {
        lock(&self.state).totals.checks_failed += 1;
        backends.iter().for_each(|one| self.set_up(one.id, true));
    }

    /// All backends.
    pub(crate) fn list(&self) -> Vec<Listed> {
        lock(&self.state).services.list()
    }

    /// The result of the checks of a backend has changed.
    pub(crate) fn set_up(self: &Arc<Self>, backend: Id, up: bool) {
        lock(&self.state)
            .services
            .change(backend, |backends, index| backends.set_up(index, up));
        self.serve_waiting();
    }

    /// Serves those that wait as far as backends have room. One thread at a time: it sees also what others have freed
    /// meanwhile, and so does that which frees something as it serves.
    fn serve_waiting(self: &Arc<Self>) {
        {
            let state = &mut *lock(&self.state);
            if state.waiting.is_empty() || std::mem::replace(&mut state.serving, true) {
                return;
            }
        }
        loop {
            let next = {
                let state = &mut *lock(&self.state);
                let next = state.next();
                state.serving = next.is_some();
                next
            };
            let Some((Waiting { client, tried }, chosen)) = next else {
                return;
            };
            match chosen {
                Ok(backend) => self.connect(&client, backend, tried),
                Err(why) => self.turn_away(&client, why),
            }
        }
    }

    /// Whether no client is left.
    fn is_drained(&self) -> bool {
        let state = lock(&self.state);
        state.pairs.is_empty() && state.waiting.is_empty() && self.lobby.is_empty()
    }

    fn note_drained(&self) {
        if lock(&self.state).stopped && self.is_drained() {
            self.tell(Event::Drained);
        }
    }
}
