//! A client's connection, one to a backend, and the two splices between them.

use super::{Terms, lock};
use crate::backends::Tried;
use crate::services::Chosen;
use crate::totals::{BOTH, Direction};
use proxy_header::ProxyHeader;
use sosplice::TcpStream;
use sosplice::splice::{End, Splice};
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// One direction of a connection.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) splice: Option<Arc<Splice>>,
    /// It has ended for good.
    pub(super) over: bool,
    /// Bytes of its earlier splices.
    pub(super) before: u64,
    /// Bytes of the other direction when the splice began.
    pub(super) other_at_start: u64,
}

impl Lane {
    pub(super) fn carried(&self) -> u64 {
        self.before + self.splice.as_ref().map_or(0, |splice| splice.bytes())
    }
}

/// A client that was admitted.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: u64,
    pub(super) stream: TcpStream,
    /// Its address; behind another proxy, that which the header tells.
    pub(super) address: SocketAddr,
    pub(super) header: Option<ProxyHeader<'static>>,
    pub(super) server_name: Option<String>,
    pub(super) since: Instant,
    pub(super) terms: Arc<Terms>,
}

impl Client {
    /// Its connection is reset. (One that has sent the end of its stream waits for an answer.)
    pub(super) fn has_left(&self) -> bool {
        let end = self.stream.end();
        end.with_snd(|so_snd| so_snd.is_closed())
    }
}

/// A client's connection and one to a backend.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) client: Arc<Client>,
    pub(super) server: TcpStream,
    /// When the connection to the backend was begun.
    pub(super) begun: Instant,
    pub(super) backend: Chosen,
    /// This backend and those before it.
    pub(super) tried: Tried,
    /// It is counted and logged that the backend has taken it.
    pub(super) routed: AtomicBool,
    /// Up and down.
    pub(super) lanes: Mutex<[Lane; 2]>,
}

impl Pair {
    pub(super) fn source_and_sink(&self, direction: Direction) -> (&TcpStream, &TcpStream) {
        match direction {
            Direction::Up => (&self.client.stream, &self.server),
            Direction::Down => (&self.server, &self.client.stream),
        }
    }

    pub(super) fn abort(&self) {
        self.client.stream.abort();
        self.server.abort();
    }

    /// Whether the backend has taken the connection.
    pub(super) fn was_taken(&self) -> bool {
        self.server.end().is_connected()
    }

    /// The bytes of this direction.
    pub(super) fn carried(&self, direction: Direction) -> u64 {
        lock(&self.lanes)[direction as usize].carried()
    }

    /// Ends its splices; the callbacks of those find nothing to do.
    pub(super) fn unsplice(&self) -> impl Iterator<Item = (Direction, End)> {
        BOTH.into_iter().filter_map(|direction| {
            let splice = lock(&self.lanes)[direction as usize].splice.take()?;
            let end = splice.unsplice().ok().or_else(|| splice.end())?;
            lock(&self.lanes)[direction as usize].before += end.bytes;
            Some((direction, end))
        })
    }
}
