//! A client's way: admitted, connected to a backend or to the next one, spliced, and ended.

use super::lines::{self, Ending};
use super::pair::{Client, Lane, Pair};
use super::state::State;
use super::{Event, Shared, Terms, Verdict, lock};
use crate::backends::{Id, Tried};
use crate::heads::{self, Expected, Fault, Head};
use crate::services::Chosen;
use crate::totals::{BOTH, Direction, Failure, Refusal};
use proxy_header::ProxyHeader;
use sosplice::clock::{Clock, SystemClock};
use sosplice::error::SoError;
use sosplice::splice::{Cause, End, Options, Splice, SpliceError};
use sosplice::{TcpSocket, TcpStream};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

impl Shared {
    pub(super) fn accepted(self: &Arc<Self>, client: TcpStream, peer: SocketAddr) {
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

    pub(super) fn refuse(
        &self,
        id: Option<u64>,
        client: &TcpStream,
        address: SocketAddr,
        why: Refusal,
    ) {
        lines::refused(id, address, why);
        lock(&self.state).totals.refuse(why);
        client.abort();
    }

    /// A client and its first bytes, if those were read.
    pub(super) fn admit(
        self: &Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        terms: Arc<Terms>,
        head: Head,
    ) {
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
    pub(super) fn dial(self: &Arc<Self>, client: &Arc<Client>, tried: Tried) {
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
    pub(super) fn connect(
        self: &Arc<Self>,
        client: &Arc<Client>,
        mut backend: Chosen,
        mut tried: Tried,
    ) {
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

    pub(super) fn turn_away(&self, client: &Client, why: Refusal) {
        lock(&self.state).forget(client);
        self.refuse(Some(client.id), &client.stream, client.address, why);
    }

    /// Refuses clients that have waited for too long; returns when the next one will have.
    pub(super) fn refuse_late(&self) -> Option<Instant> {
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

    pub(super) fn again(self: &Arc<Self>, pair: &Arc<Pair>, direction: Direction) -> bool {
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
    pub(super) fn give_up(self: &Arc<Self>, pair: &Pair, why: &SoError) -> bool {
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
    pub(super) fn over(self: &Arc<Self>, pair: &Pair, verdict: Verdict, why: Ending) -> bool {
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
}
