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

mod lines;
mod pair;
mod state;
#[cfg(test)]
mod tests;

use crate::backends::{Balance, Id, Tried};
use crate::heads::{self, Expected, Fault, Head, Version};
use crate::lobby::{Lobby, Room};
use crate::measures::{Account, Measures};
use crate::services::{Chosen, Listed, Offer, Services};
use crate::totals::{BOTH, Direction, Failure, Refusal, Totals};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use ipnet::IpNet;
use lines::Ending;
use pair::{Client, Lane, Pair};
use proxy_header::ProxyHeader;
use sosplice::clock::{Clock, SystemClock};
use sosplice::error::SoError;
use sosplice::splice::{Cause, End, Options, Splice, SpliceError, SplicePool};
use sosplice::{Stack, TcpListener, TcpSocket, TcpStream};
use state::{State, Waiting};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
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

/// Numbers of clients.
#[derive(Debug)]
pub(crate) struct Counts {
    pub(crate) connections: u64,
    pub(crate) retried: u64,
    pub(crate) refused: Vec<(Refusal, u64)>,
    pub(crate) present: u64,
    pub(crate) waiting: u64,
    /// Those whose first bytes are missing, and the memory of their receive buffers.
    pub(crate) heads: (usize, usize),
    pub(crate) renewed: u64,
    pub(crate) rejected: u64,
    pub(crate) checks_failed: u64,
}

/// Numbers of a backend.
#[derive(Debug)]
pub(crate) struct BackendStats {
    pub(crate) name: Option<String>,
    pub(crate) at: SocketAddr,
    pub(crate) weight: u16,
    pub(crate) up: bool,
    pub(crate) active: u32,
    pub(crate) served: u64,
    pub(crate) failed: u64,
    pub(crate) account: Arc<Account>,
    /// It has refused several connections in a row.
    #[cfg(feature = "top")]
    pub(crate) rests: bool,
    /// Bytes of all its connections: from the clients, and to them.
    #[cfg(feature = "top")]
    pub(crate) bytes: [u64; 2],
    #[cfg(feature = "top")]
    id: Id,
}

#[cfg(feature = "top")]
impl BackendStats {
    pub(crate) fn is_same(&self, other: &BackendStats) -> bool {
        self.id == other.id
    }
}

/// All of a moment.
#[cfg(feature = "top")]
#[derive(Debug)]
pub(crate) struct Snapshot<'a> {
    pub(crate) at: SocketAddr,
    pub(crate) stopped: bool,
    pub(crate) counts: Counts,
    pub(crate) waits: &'a crate::histogram::Histogram,
    pub(crate) backends: Vec<BackendStats>,
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
                Ok(Event::Drained | Event::Queued) | Err(RecvTimeoutError::Timeout) => {}
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
                // The other process has ended.
                Ok(Event::Stop(_)) => front = None,
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

fn backends_of(state: &State) -> Vec<BackendStats> {
    let mut all = Vec::new();
    for service in state.services.all() {
        all.extend(service.backends.all().iter().map(|one| BackendStats {
            name: service.name.clone(),
            at: one.spec.address,
            weight: one.spec.weight,
            up: one.up,
            active: one.active,
            served: one.served,
            failed: one.failed,
            account: Arc::clone(&one.account),
            #[cfg(feature = "top")]
            rests: one.rests(SystemClock.now()),
            #[cfg(feature = "top")]
            bytes: one.account.bytes(),
            #[cfg(feature = "top")]
            id: one.id,
        }));
    }
    all
}

impl Shared {
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

    pub(crate) fn measures(&self) -> &Measures {
        &self.measures
    }

    pub(crate) fn counts(&self) -> Counts {
        let state = lock(&self.state);
        Counts {
            connections: state.totals.connections,
            retried: state.totals.retried,
            refused: state.totals.refused.clone(),
            present: state.pairs.len() as u64,
            waiting: state.waiting.len() as u64,
            heads: self.lobby.held(),
            renewed: state.totals.renewed,
            rejected: state.totals.rejected,
            checks_failed: state.totals.checks_failed,
        }
    }

    pub(crate) fn backends(&self) -> Vec<BackendStats> {
        backends_of(&lock(&self.state))
    }

    #[cfg(feature = "top")]
    pub(crate) fn snapshot(&self) -> Snapshot<'_> {
        let (stopped, pairs, mut backends) = {
            let state = lock(&self.state);
            let pairs: Vec<_> = state.pairs.values().cloned().collect();
            (state.stopped, pairs, backends_of(&state))
        };
        // Not under the lock: there may be many.
        for pair in &pairs {
            let same = |one: &&mut BackendStats| one.id == pair.backend.id;
            if let Some(one) = backends.iter_mut().find(same) {
                let present = BOTH.map(|direction| pair.carried(direction));
                one.bytes = [0, 1].map(|direction| one.bytes[direction] + present[direction]);
            }
        }
        Snapshot {
            at: self.listener.local_addr(),
            stopped,
            counts: self.counts(),
            waits: &self.measures.waits,
            backends,
        }
    }

    fn accepted(self: &Arc<Self>, client: TcpStream, peer: SocketAddr) {
        if self.own.contains(&peer.ip()) {
            return self.refuse(None, &client, peer, Refusal::Loop);
        }
        let terms = Arc::clone(&lock(&self.state).terms);
        match terms.expected == Expected::default() {
            true => self.admit(client, peer, terms, Head::default()),
            false => {
                if let Some((evicted, peer)) = self.lobby.enter(client, peer, terms) {
                    self.refuse(None, &evicted, peer, Refusal::Head(Fault::Crowded));
                }
            }
        }
    }

    fn refuse(&self, id: Option<u64>, client: &TcpStream, address: SocketAddr, why: Refusal) {
        lines::refused(id, address, why);
        lock(&self.state).totals.refuse(why);
        client.abort();
    }

    /// A client and its first bytes, if those were read.
    fn admit(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, terms: Arc<Terms>, head: Head) {
        let told = head.header.as_ref().and_then(ProxyHeader::proxied_address);
        let address = told.map_or(peer, |told| told.source);
        let (id, may) = {
            let state = &mut *lock(&self.state);
            state.totals.connections += 1;
            let mut may = state.clients.enter(address.ip(), terms.per_client);
            if !may {
                state.part_with_left();
                may = state.clients.enter(address.ip(), terms.per_client);
            }
            (state.totals.connections, may)
        };
        let client = Client {
            id,
            stream,
            address,
            header: head.header,
            server_name: head.server_name,
            since: SystemClock.now(),
            terms,
        };
        lines::opened(&client);
        if !may {
            return self.refuse(Some(id), &client.stream, address, Refusal::Client);
        }
        self.dial(&Arc::new(client), Tried::default());
    }

    /// Connects a client to a backend that it was not tried with.
    fn dial(self: &Arc<Self>, client: &Arc<Client>, tried: Tried) {
        if let Some(backend) = self.choose(client, &tried) {
            self.connect(client, backend, tried);
        }
    }

    /// A backend for a client; without one it waits, or is refused.
    fn choose(&self, client: &Arc<Client>, tried: &Tried) -> Option<Chosen> {
        let chosen = lock(&self.state).choose(client, tried);
        match chosen {
            Some(Ok(backend)) => return Some(backend),
            Some(Err(why)) => self.turn_away(client, why),
            None => self.tell(Event::Queued),
        }
        None
    }

    /// Connects a client to this backend, or to the next one that takes it.
    fn connect(self: &Arc<Self>, client: &Arc<Client>, mut backend: Chosen, mut tried: Tried) {
        loop {
            tried.add(backend.id);
            match self.start(client, backend.at) {
                Ok(server) => {
                    let pair = Arc::new(Pair {
                        client: Arc::clone(client),
                        server,
                        begun: SystemClock.now(),
                        backend,
                        tried,
                        routed: AtomicBool::new(false),
                        lanes: Mutex::default(),
                    });
                    self.note_when_taken(&pair);
                    if self.join(&pair) {
                        return;
                    }
                    tried = pair.tried.clone();
                }
                Err(error) => {
                    lines::not_taken(client, backend.at, Duration::ZERO, &error);
                    if error.kind() == io::ErrorKind::NetworkDown {
                        self.tell(Event::Failed(Failure::Dialling(error)));
                    }
                    self.refused(backend.id, Duration::ZERO);
                }
            }
            match self.choose(client, &tried) {
                Some(next) => backend = next,
                None => return,
            }
        }
    }

    /// Begins both splices. `false` if the backend has refused the connection already.
    fn join(self: &Arc<Self>, pair: &Arc<Pair>) -> bool {
        let ended = {
            let mut state = lock(&self.state);
            state.pairs.insert(pair.client.id, Arc::clone(pair));
            state.ended
        };
        let begun = BOTH.map(|direction| self.begin(pair, direction));
        if let [Ok(up), Ok(down)] = &begun
            && !ended
        {
            // Only now: their callbacks may try another backend.
            self.heed(pair, Direction::Up, up);
            self.heed(pair, Direction::Down, down);
            return true;
        }
        if let Some(error) = pair
            .server
            .take_error()
            .filter(|_| !pair.was_taken() && !ended)
        {
            // If not, it was ended meanwhile.
            return !self.give_up(pair, &error);
        }
        let error = begun.into_iter().find_map(Result::err);
        let why = error.map_or(Ending::Stopped, Ending::NotSpliced);
        self.over(pair, Verdict::Resets, why);
        true
    }

    fn start(&self, client: &Client, at: SocketAddr) -> io::Result<TcpStream> {
        let queue = client.stream.queue() % self.means.dial.queues();
        let mut socket = TcpSocket::new(&self.means.dial).queue(queue);
        if let Some(version) = client.terms.send_proxy {
            let ends = (client.stream.peer_addr(), client.stream.local_addr());
            socket = socket.data(&heads::for_backend(version, ends, client.header.as_ref()));
        }
        socket.start(at)
    }

    fn turn_away(&self, client: &Client, why: Refusal) {
        lock(&self.state).forget(client);
        self.refuse(Some(client.id), &client.stream, client.address, why);
    }

    /// Refuses clients that have waited for too long; returns when the next one will have.
    fn refuse_late(&self) -> Option<Instant> {
        loop {
            let late = {
                let mut state = lock(&self.state);
                let patience = state.terms.queue.1;
                let deadline = state.waiting.front()?.client.since + patience;
                if deadline > SystemClock.now() {
                    return Some(deadline);
                }
                state.waiting.pop_front()?
            };
            self.turn_away(&late.client, Refusal::Late);
        }
    }

    /// A backend has not taken a connection.
    fn refused(self: &Arc<Self>, backend: Id, time: Duration) {
        {
            let State {
                pairs, services, ..
            } = &mut *lock(&self.state);
            let took_since = |time| {
                let took = |pair: &Arc<Pair>| {
                    pair.backend.id == backend && pair.begun > time && pair.was_taken()
                };
                pairs.values().any(took)
            };
            services.change(backend, |backends, index| {
                backends.refused(index, SystemClock.now(), took_since);
                backends.leave(index);
                backends.all()[index].account.failures.observe_time(time);
            });
        }
        self.serve_waiting();
    }

    /// Notes when the backend takes the connection, if the time is read or logged. (That costs a callback.)
    fn note_when_taken(self: &Arc<Self>, pair: &Arc<Pair>) {
        if !self.are_times_wanted() {
            return;
        }
        let (shared, noted) = (Arc::clone(self), Arc::downgrade(pair));
        pair.server.on_connected(move |result| {
            if let (Ok(()), Some(pair)) = (result, noted.upgrade()) {
                shared.note_taken(&pair);
            }
        });
    }

    fn are_times_wanted(&self) -> bool {
        self.measures.are_times_read() || lines::are_wanted()
    }

    /// Once, when the backend has taken the connection: by the thread that has received its answer, or the one that ends
    /// the connection already.
    fn note_taken(&self, pair: &Pair) {
        if pair.routed.swap(true, Ordering::Relaxed) {
            return;
        }
        let now = SystemClock.now();
        let wait = now.saturating_duration_since(pair.client.since);
        let connect = now.saturating_duration_since(pair.begun);
        self.measures.waits.observe_time(wait);
        let mut state = lock(&self.state);
        state.services.change(pair.backend.id, |backends, index| {
            backends.all()[index].account.connects.observe_time(connect);
        });
        drop(state);
        lines::routed(pair, wait, connect);
    }

    /// Begins a splice in one direction.
    fn begin(&self, pair: &Pair, direction: Direction) -> Result<Arc<Splice>, SpliceError> {
        let (before, other_at_start) = {
            let lanes = lock(&pair.lanes);
            let carried = |direction: Direction| lanes[direction as usize].carried();
            (carried(direction), carried(direction.opposite()))
        };
        let terms = &pair.client.terms;
        let options = Options::default()
            .limit(terms.limit.map(|limit| limit - before))
            .idle(terms.idle)
            .forward_eof(true)
            .pool(self.means.pool.clone());
        let (source, sink) = pair.source_and_sink(direction);
        let splice = Arc::new(source.splice_to(sink, options)?);
        lock(&pair.lanes)[direction as usize] = Lane {
            splice: Some(Arc::clone(&splice)),
            over: false,
            before,
            other_at_start,
        };
        Ok(splice)
    }

    /// Heeds the end of a splice.
    fn heed(self: &Arc<Self>, pair: &Arc<Pair>, direction: Direction, splice: &Splice) {
        let (shared, pair) = (Arc::clone(self), Arc::clone(pair));
        splice.on_end(move |end| shared.ended(&pair, direction, end));
    }

    fn again(self: &Arc<Self>, pair: &Arc<Pair>, direction: Direction) -> bool {
        match self.begin(pair, direction) {
            Ok(splice) => {
                self.heed(pair, direction, &splice);
                if !lock(&self.state).has(pair) {
                    pair.unsplice().for_each(drop);
                }
                true
            }
            Err(error) => {
                self.over(pair, Verdict::Resets, Ending::NotSpliced(error));
                true
            }
        }
    }

    /// A splice has ended.
    fn ended(self: &Arc<Self>, pair: &Arc<Pair>, direction: Direction, end: End) {
        let (quiet, both) = {
            let mut lanes = lock(&pair.lanes);
            let other = &lanes[direction.opposite() as usize];
            let (carried, both) = (other.carried(), other.over);
            let lane = &mut lanes[direction as usize];
            // Counted already.
            if lane.splice.take().is_none() {
                return;
            }
            lane.before += end.bytes;
            lane.over = end.cause == Cause::Eof;
            (carried == lane.other_at_start, both)
        };
        if self.tries_another(pair, direction, end) {
            return;
        }
        lock(&self.state).totals.of(direction).add(end);
        let verdict = match end.cause {
            Cause::Eof if both => Verdict::Closes,
            Cause::Eof => return,
            Cause::Idle if quiet => Verdict::Closes,
            Cause::Idle if self.again(pair, direction) => return,
            Cause::Limit => Verdict::Closes,
            _ => Verdict::Resets,
        };
        self.over(pair, verdict, Ending::of(direction, end.cause));
    }

    /// If a splice has ended because the backend did not take the connection: tries another one.
    fn tries_another(self: &Arc<Self>, pair: &Arc<Pair>, direction: Direction, end: End) -> bool {
        let error = match (direction, end.cause) {
            (Direction::Up, Cause::SinkError(error))
            | (Direction::Down, Cause::SourceError(error)) => error,
            _ => return false,
        };
        if pair.was_taken() || end.bytes > 0 {
            return false;
        }
        if self.give_up(pair, &error) {
            self.dial(&pair.client, pair.tried.clone());
            self.note_drained();
        }
        true
    }

    /// A backend has not taken a connection: it is still the client's. `false` if another thread has come first, that of
    /// the other direction, or one that has ended the connection.
    fn give_up(self: &Arc<Self>, pair: &Pair, why: &SoError) -> bool {
        {
            let state = &mut *lock(&self.state);
            if !state.remove(pair) {
                return false;
            }
            state.totals.retried += 1;
        }
        let time = SystemClock.now().saturating_duration_since(pair.begun);
        lines::not_taken(&pair.client, pair.backend.at, time, why);
        pair.unsplice().for_each(drop);
        self.refused(pair.backend.id, time);
        true
    }

    /// Ends the remaining splices of a connection, counts and forgets it. `false` if another thread has come first.
    fn over(self: &Arc<Self>, pair: &Pair, verdict: Verdict, why: Ending) -> bool {
        if !lock(&self.state).has(pair) {
            return false;
        }
        for (direction, end) in pair.unsplice() {
            lock(&self.state).totals.of(direction).add(end);
        }
        if verdict == Verdict::Resets {
            pair.abort();
        }
        let bytes = BOTH.map(|direction| pair.carried(direction));
        let taken = pair.was_taken();
        if taken && self.are_times_wanted() {
            self.note_taken(pair);
        }
        {
            let state = &mut *lock(&self.state);
            if !state.remove(pair) {
                return false;
            }
            state.services.change(pair.backend.id, |backends, index| {
                if taken {
                    backends.took(index, pair.begun);
                }
                backends.leave(index);
                backends.all()[index].account.add(bytes);
            });
            state.forget(&pair.client);
        }
        let length = SystemClock
            .now()
            .saturating_duration_since(pair.client.since);
        self.measures.lengths.observe_time(length);
        for (histogram, bytes) in self.measures.bytes.iter().zip(bytes) {
            histogram.observe(bytes);
        }
        lines::ended(pair, why, length);
        // One that the thread of an idle splice has begun again since.
        pair.unsplice().for_each(drop);
        self.serve_waiting();
        self.note_drained();
        true
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
