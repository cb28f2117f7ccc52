//! Connections of the operating system that are being made, any number of them in one thread.

use sosplice::clock::{Clock, SystemClock};
use sosplice::kernel::KernelStream;
use sosplice::socket::ConnectError;
use sosplice::socket::poller::{Events, Interest, Mode, Pollable, Poller, Token};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::ops::RangeFrom;
use std::time::{Duration, Instant};

/// The poller's name for the listener; connections are numbered from 0.
const LISTENER: Token = Token(usize::MAX);

/// Connections that are being made, and what waits for each of them.
pub(crate) struct Dials<T> {
    poller: Poller,
    events: Events,
    waiting: HashMap<Token, (T, KernelStream)>,
    /// In the order in which they began. Those that have ended are still there.
    deadlines: VecDeque<(Instant, Token)>,
    numbers: RangeFrom<usize>,
    timeout: Duration,
}

impl<T> Dials<T> {
    /// None yet. Each may take so long; clients come from a listener, which does not wait.
    pub(crate) fn new(listener: &impl Pollable, timeout: Duration) -> io::Result<Dials<T>> {
        let poller = Poller::new();
        poller.add(listener, LISTENER, Interest::READABLE, Mode::Level)?;
        Ok(Dials {
            poller,
            events: Events::default(),
            waiting: HashMap::new(),
            deadlines: VecDeque::new(),
            numbers: 0..,
            timeout,
        })
    }

    /// Begins to connect. Returns what is to wait if that fails at once.
    pub(crate) fn start(&mut self, to: SocketAddr, waits: T) -> Result<(), (T, io::Error)> {
        let token = self.numbers.next().map_or(LISTENER, Token);
        let started = KernelStream::start(to).and_then(|server| {
            // The edge comes when it is connected, or has failed.
            let edge = Mode::Edge;
            self.poller.add(&server, token, Interest::WRITABLE, edge)?;
            Ok(server)
        });
        match started {
            Ok(server) => {
                self.waiting.insert(token, (waits, server));
                let deadline = SystemClock.now() + self.timeout;
                self.deadlines.push_back((deadline, token));
                Ok(())
            }
            Err(error) => Err((waits, error)),
        }
    }

    /// Waits until a connection is made or has failed, or the listener has a client. Returns what has waited for those
    /// connections.
    pub(crate) fn ended(&mut self) -> io::Result<Vec<(T, io::Result<KernelStream>)>> {
        let now = SystemClock.now();
        let left = self.deadlines.front();
        let left = left.map(|(deadline, _)| deadline.saturating_duration_since(now));
        self.poller.wait(&mut self.events, left)?;
        let mut ended = Vec::new();
        for event in &self.events {
            if let Some((waits, server)) = self.waiting.remove(&event.token()) {
                match server.wait_connected(Some(SystemClock.now())) {
                    Err(ConnectError::Pending) => {
                        self.waiting.insert(event.token(), (waits, server));
                    }
                    Err(error) => ended.push((waits, Err(error.into()))),
                    Ok(()) => {
                        // From here on others look after it. It is watched, so this does not fail.
                        self.poller.delete(&server).ok();
                        ended.push((waits, Ok(server)));
                    }
                }
            }
        }
        ended.extend(self.late());
        Ok(ended)
    }

    /// Cancels connections whose time is over.
    fn late(&mut self) -> Vec<(T, io::Result<KernelStream>)> {
        let now = SystemClock.now();
        let count = self
            .deadlines
            .iter()
            .take_while(|(deadline, _)| *deadline <= now);
        let over = self.deadlines.drain(..count.count());
        let cancelled = over.filter_map(|(_, token)| self.waiting.remove(&token));
        let late = |(waits, _)| (waits, Err(io::Error::from(ConnectError::Pending)));
        cancelled.map(late).collect()
    }
}
