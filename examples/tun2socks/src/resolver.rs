//! Queries over TCP: one connection to each resolver, by way of the proxy, for all clients (RFC 7766).
//!
//! Queries are sent as they come, with numbers of this side's own, so that those of two clients are never mistaken for
//! each other; answers come in any order. If a resolver ends a connection on which it has answered, the rest is asked
//! again on another one; else the rest is lost, and clients ask again, as after the loss of a datagram.

use crate::dns::{IDLE, fit};
use crate::message::{is_query, read_message, write_message};
use crate::proxy::Proxy;
use fast_socks5::util::target_addr::TargetAddr;
use parking_lot::Mutex;
use sosplice::UdpSocket;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::timeout;

/// Most queries to one resolver that wait for an answer; the oldest is dropped for the next one.
const WAITING: usize = 1024;
/// Most resolvers at once.
const RESOLVERS: usize = 64;

/// A query, and the flow of the client that is to receive the answer.
pub(crate) struct Query {
    bytes: Vec<u8>,
    client: UdpSocket,
}

impl Query {
    pub(crate) fn new(bytes: Vec<u8>, client: UdpSocket) -> Query {
        Query { bytes, client }
    }
}

/// The connections to resolvers.
#[derive(Default)]
pub(crate) struct Resolvers(Mutex<HashMap<SocketAddr, Sender<Query>>>);

impl Resolvers {
    /// Sends a query to a resolver, if there is room for one.
    pub(crate) fn ask(&self, proxy: &Proxy, resolver: SocketAddr, query: Query) {
        if !is_query(&query.bytes) {
            return;
        }
        let mut open = self.0.lock();
        open.retain(|_, queries| !queries.is_closed());
        if open.len() >= RESOLVERS && !open.contains_key(&resolver) {
            return;
        }
        let queries = open.entry(resolver).or_insert_with(|| {
            let (sender, receiver) = channel(WAITING);
            tokio::spawn(run(proxy.clone(), resolver, receiver));
            sender
        });
        queries.try_send(query).ok();
    }
}

/// Asks a resolver, until there was no query for a while.
async fn run(proxy: Proxy, resolver: SocketAddr, mut queries: Receiver<Query>) {
    let waiting = Mutex::new(Waiting::default());
    loop {
        if waiting.lock().queue.is_empty() {
            let Some(query) = next(&mut queries).await else {
                return;
            };
            waiting.lock().add(query);
        }
        waiting.lock().answered = false;
        let end = converse(&proxy, resolver, &mut queries, &waiting).await;
        let mut waiting = waiting.lock();
        if !waiting.answered {
            if let (Err(error), false) = (end, waiting.queue.is_empty()) {
                eprintln!("{resolver}: {error:#}");
            }
            waiting.queue.clear();
        }
    }
}

/// Waits for a query; `None` if there was none for a while, and there will be none.
async fn next(queries: &mut Receiver<Query>) -> Option<Query> {
    if let Ok(query) = timeout(IDLE, queries.recv()).await {
        return query;
    }
    queries.close();
    // It may have come at that moment.
    queries.try_recv().ok()
}

/// Sends what waits and what comes, and receives answers, until the connection ends.
async fn converse(
    proxy: &Proxy,
    resolver: SocketAddr,
    queries: &mut Receiver<Query>,
    waiting: &Mutex<Waiting>,
) -> anyhow::Result<()> {
    let stream = proxy.connect(TargetAddr::Ip(resolver)).await?;
    let (mut answers, mut sink) = stream.into_split();
    let asking = async {
        let earlier = waiting.lock().messages();
        for message in earlier {
            write_message(&mut sink, &message).await?;
        }
        while let Some(query) = queries.recv().await {
            let message = waiting.lock().add(query);
            write_message(&mut sink, &message).await?;
        }
        std::future::pending().await
    };
    let hearing = async {
        loop {
            let answer = timeout(IDLE, read_message(&mut answers)).await??;
            waiting.lock().answer(answer);
        }
    };
    tokio::select! {
        end = asking => end,
        end = hearing => end,
    }
}

/// Queries that wait for an answer, in the order of their numbers.
#[derive(Default)]
struct Waiting {
    queue: VecDeque<(u16, Query)>,
    number: u16,
    /// On this connection.
    answered: bool,
}

fn numbered(message: &[u8], number: u16) -> Vec<u8> {
    let mut message = message.to_vec();
    message[..2].copy_from_slice(&number.to_be_bytes());
    message
}

impl Waiting {
    /// Adds a query, and returns it with its number.
    fn add(&mut self, query: Query) -> Vec<u8> {
        self.number = self.number.wrapping_add(1);
        let number = self.number;
        // No number is there twice.
        let is_old = |(old, _): &(u16, Query)| number.wrapping_sub(*old) > u16::MAX / 2;
        if self.queue.len() == WAITING || self.queue.front().is_some_and(is_old) {
            self.queue.pop_front();
        }
        let message = numbered(&query.bytes, number);
        self.queue.push_back((number, query));
        message
    }

    fn messages(&self) -> Vec<Vec<u8>> {
        let message = |(number, query): &(u16, Query)| numbered(&query.bytes, *number);
        self.queue.iter().map(message).collect()
    }

    /// Gives an answer to its client, in datagrams that it can take.
    fn answer(&mut self, answer: Vec<u8>) {
        self.answered = true;
        let Some(number) = answer
            .first_chunk()
            .map(|number| u16::from_be_bytes(*number))
        else {
            return;
        };
        let found = self.queue.iter().position(|(other, _)| *other == number);
        let Some((_, query)) = found.and_then(|at| self.queue.remove(at)) else {
            return;
        };
        if is_query(&answer) || answer.len() < 12 {
            return;
        }
        let id = u16::from_be_bytes([query.bytes[0], query.bytes[1]]);
        let answer = fit(&query.bytes, numbered(&answer, id));
        query.client.send(&answer).ok();
    }
}
