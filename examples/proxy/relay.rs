//! The proxy itself: for each connection that a listener accepts, one to the backend, and two
//! splices between them.
//!
//! One thread manages all connections, another one accepts; neither touches a byte. Each source of a
//! splice has a [`Bell`] as its upcall, which is called when the splice has ended.
//!
//! * With several receive queues, the connection to the backend is on the queue of the client's: one
//!   thread receives for both then.
//! * Connecting to the backend does not wait, and both splices are set up at once: bytes wait until the
//!   connection is established.
//! * The end of one direction is forwarded (half-close); the connection has ended when both have.
//! * An error in either direction resets both sides.

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use sosplice::clock::{Clock, SystemClock};
use sosplice::protocol::{Upcall, Wakeup};
use sosplice::splice::{Cause, End, Options, Splice, SplicePool};
use sosplice::{Stack, TcpListener, TcpSocket, TcpStream};
use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// The settings for each connection.
#[derive(Debug)]
pub(crate) struct Config {
    /// The stack for connections to the backend.
    pub(crate) dial: Stack,
    pub(crate) backend: SocketAddr,
    pub(crate) pool: SplicePool,
    pub(crate) idle: Option<Duration>,
    pub(crate) limit: Option<u64>,
}

/// An event of a relay.
#[derive(Debug)]
pub(crate) enum Event {
    Accepted(TcpStream, SocketAddr),
    /// The listener has failed.
    NotListening(io::Error),
    /// A splice of this connection has ended.
    Ring(u64),
    /// Stop accepting, end within this time.
    Stop(Duration),
}

/// From the client to the server, or back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Up,
    Down,
}

pub(crate) const BOTH: [Direction; 2] = [Direction::Up, Direction::Down];

impl Direction {
    fn opposite(self) -> Direction {
        match self {
            Direction::Up => Direction::Down,
            Direction::Down => Direction::Up,
        }
    }
}

/// Totals of the splices of one direction.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tally {
    pub(crate) bytes: u64,
    pub(crate) passes: u64,
    pub(crate) causes: Vec<(Cause, u64)>,
}

impl Tally {
    fn add(&mut self, end: End) {
        self.bytes += end.bytes;
        self.passes += end.passes;
        self.count(end.cause, 1);
    }

    pub(crate) fn count(&mut self, cause: Cause, times: u64) {
        match self.causes.iter_mut().find(|(other, _)| *other == cause) {
            Some((_, count)) => *count += times,
            None => self.causes.push((cause, times)),
        }
    }
}

/// Why a relay has failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The listener has failed.
    Listening(io::Error),
    /// The stack for connections to the backend is down.
    Dialling(io::Error),
}

/// Totals of a relay.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) connections: u64,
    /// Connections that were reset at the end of the grace time.
    pub(crate) cut_off: usize,
    /// The failure that ended it, if it was not stopped.
    pub(crate) failure: Option<Failure>,
    pub(crate) up: Tally,
    pub(crate) down: Tally,
}

impl Totals {
    fn of(&mut self, direction: Direction) -> &mut Tally {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }
}

/// Rings when a splice has ended.
struct Bell {
    id: u64,
    events: Sender<Event>,
}

impl Upcall for Bell {
    fn wakeup(&self, _what: Wakeup) {
        // Fails only when the relay has ended.
        self.events.send(Event::Ring(self.id)).ok();
    }
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Lane {
    /// `None` when it has ended for good.
    splice: Option<Splice>,
    /// Bytes of its earlier splices.
    before: u64,
    /// Bytes of the other direction when the splice began.
    other_at_start: u64,
}

impl Lane {
    fn carried(&self) -> u64 {
        self.before + self.splice.as_ref().map_or(0, Splice::bytes)
    }
}

/// A client's connection and the one to the backend.
#[derive(Debug)]
struct Pair {
    client: TcpStream,
    peer: SocketAddr,
    server: TcpStream,
    up: Lane,
    down: Lane,
}

impl Pair {
    fn lane(&mut self, direction: Direction) -> &mut Lane {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }

    fn source_and_sink(&self, direction: Direction) -> (&TcpStream, &TcpStream) {
        match direction {
            Direction::Up => (&self.client, &self.server),
            Direction::Down => (&self.server, &self.client),
        }
    }

    fn abort(&self) {
        self.client.abort();
        self.server.abort();
    }
}

/// How to end a connection.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Goes,
    /// Both sides get all bytes, then the end of the stream.
    Closes,
    /// Both sides get a reset.
    Resets,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Relay {
    config: Config,
    listener: Arc<TcpListener>,
    inbox: Receiver<Event>,
    events: Sender<Event>,
    pairs: HashMap<u64, Pair>,
    totals: Totals,
}

impl Relay {
    /// A relay for the connections of `listener`. The sender is for [`Event::Stop`].
    pub(crate) fn new(listener: TcpListener, config: Config) -> (Relay, Sender<Event>) {
        let (events, inbox) = unbounded();
        let relay = Relay {
            config,
            listener: Arc::new(listener),
            inbox,
            events: events.clone(),
            pairs: HashMap::new(),
            totals: Totals::default(),
        };
        (relay, events)
    }

    /// Runs until it is stopped, or one of its links is gone (that of the backend is noticed at the
    /// next client). Returns also when the grace time ends.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(crate) fn run(mut self) -> io::Result<(Totals, Instant)> {
        let (listener, events) = (self.listener.clone(), self.events.clone());
        thread::Builder::new()
            .name("accept".into())
            .spawn(move || accept(&listener, &events))?;
        loop {
            match self.inbox.recv() {
                Ok(Event::Accepted(client, peer)) => self.accepted(client, peer),
                Ok(Event::Ring(id)) => self.look(id),
                Ok(Event::NotListening(error)) => {
                    self.totals.failure = Some(Failure::Listening(error));
                }
                Ok(Event::Stop(grace)) => return Ok(self.wind_down(grace)),
                Err(gone) => return Err(io::Error::other(gone)),
            }
            if self.totals.failure.is_some() {
                return Ok(self.wind_down(Duration::ZERO));
            }
        }
    }

    fn accepted(&mut self, client: TcpStream, peer: SocketAddr) {
        let id = self.totals.connections;
        self.totals.connections += 1;
        let queue = client.queue() % self.config.dial.queues();
        let started = TcpSocket::new(&self.config.dial)
            .queue(queue)
            .start(self.config.backend);
        let server = match started {
            Ok(server) => server,
            Err(error) => {
                self.complain(peer, &error);
                client.abort();
                if error.kind() == io::ErrorKind::NetworkDown {
                    self.totals.failure = Some(Failure::Dialling(error));
                }
                return;
            }
        };
        for source in [&client, &server] {
            let events = self.events.clone();
            source.add_rcv_upcall(Arc::new(Bell { id, events }));
        }
        let mut pair = Pair {
            client,
            peer,
            server,
            up: Lane::default(),
            down: Lane::default(),
        };
        if BOTH
            .iter()
            .all(|direction| self.splice(&mut pair, *direction))
        {
            self.pairs.insert(id, pair);
        } else {
            self.settle(&mut pair);
            pair.abort();
        }
    }

    /// Begins a splice in one direction.
    fn splice(&self, pair: &mut Pair, direction: Direction) -> bool {
        let other_at_start = pair.lane(direction.opposite()).carried();
        let before = pair.lane(direction).carried();
        let options = Options::default()
            .limit(self.config.limit.map(|limit| limit - before))
            .idle(self.config.idle)
            .pool(self.config.pool.clone());
        let (source, sink) = pair.source_and_sink(direction);
        match source.splice_to(sink, options) {
            Ok(splice) => {
                *pair.lane(direction) = Lane {
                    splice: Some(splice),
                    before,
                    other_at_start,
                };
                true
            }
            Err(error) => {
                // The backend may have refused already.
                match pair.server.take_error() {
                    Some(why) => self.complain(pair.peer, &why),
                    None => self.complain(pair.peer, &error),
                }
                false
            }
        }
    }

    /// Handles the splices of a connection that have ended.
    fn look(&mut self, id: u64) {
        // Late events of a removed connection are normal.
        let Some(mut pair) = self.pairs.remove(&id) else {
            return;
        };
        let mut verdict = Verdict::Goes;
        for direction in BOTH {
            let splice = pair.lane(direction).splice.as_ref();
            if verdict == Verdict::Goes
                && let Some(end) = splice.and_then(Splice::end)
            {
                verdict = self.ended(&mut pair, direction, end);
            }
        }
        let over = pair.up.splice.is_none() && pair.down.splice.is_none();
        if verdict == Verdict::Goes && !over {
            self.pairs.insert(id, pair);
            return;
        }
        self.settle(&mut pair);
        if verdict == Verdict::Resets {
            pair.abort();
        }
    }

    fn ended(&mut self, pair: &mut Pair, direction: Direction, end: End) -> Verdict {
        self.totals.of(direction).add(end);
        let lane = pair.lane(direction);
        lane.before += end.bytes;
        lane.splice = None;
        let other = pair.lane(direction.opposite()).carried();
        let quiet = other == pair.lane(direction).other_at_start;
        match end.cause {
            Cause::Eof => {
                let (_, sink) = pair.source_and_sink(direction);
                // The failure of a sink is handled in its own direction.
                sink.shutdown(Shutdown::Write).ok();
                Verdict::Goes
            }
            Cause::Idle if quiet => Verdict::Closes,
            Cause::Idle if self.splice(pair, direction) => Verdict::Goes,
            Cause::Limit => Verdict::Closes,
            cause => {
                self.report_failed_dial(pair, direction, cause);
                Verdict::Resets
            }
        }
    }

    fn report_failed_dial(&self, pair: &Pair, direction: Direction, cause: Cause) {
        let dialled = pair.server.end().is_connected();
        let of_backend = match (direction, cause) {
            (Direction::Up, Cause::SinkError(error))
            | (Direction::Down, Cause::SourceError(error)) => Some(error),
            _ => None,
        };
        if let Some(error) = of_backend
            && !dialled
        {
            self.complain(pair.peer, &error);
        }
    }

    fn complain(&self, peer: SocketAddr, why: &dyn std::error::Error) {
        eprintln!("{peer}: backend {}: {why}", self.config.backend);
    }

    /// Ends the remaining splices of a connection, and counts it.
    fn settle(&mut self, pair: &mut Pair) {
        for direction in BOTH {
            if let Some(splice) = pair.lane(direction).splice.take()
                && let Some(end) = splice.unsplice().ok().or_else(|| splice.end())
            {
                self.totals.of(direction).add(end);
            }
        }
    }

    /// Stops accepting; lets connections end within the grace time, then resets them.
    fn wind_down(mut self, grace: Duration) -> (Totals, Instant) {
        let deadline = SystemClock.now() + grace;
        self.listener.close();
        while !self.pairs.is_empty() {
            match self.inbox.recv_deadline(deadline) {
                Ok(Event::Accepted(client, _)) => client.abort(),
                Ok(Event::Ring(id)) => self.look(id),
                Ok(Event::NotListening(_) | Event::Stop(_)) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        self.totals.cut_off = self.pairs.len();
        for (_, mut pair) in std::mem::take(&mut self.pairs) {
            self.settle(&mut pair);
            pair.abort();
        }
        (self.totals, deadline)
    }
}

fn accept(listener: &TcpListener, events: &Sender<Event>) {
    loop {
        let event = match listener.accept() {
            Ok((client, peer)) => Event::Accepted(client, peer),
            Err(error) => Event::NotListening(error),
        };
        let over = matches!(event, Event::NotListening(_));
        if events.send(event).is_err() || over {
            return;
        }
    }
}
