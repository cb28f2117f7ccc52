//! The lines of the log about connections. Each one that was opened is refused or ends, and has its number.

use super::pair::{Client, Pair};
use crate::log::CONNECTION;
use crate::totals::{Direction, Refusal};
use sosplice::splice::{Cause, SpliceError};
use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;
use thiserror::Error;
use tracing::{Level, enabled, info, warn};

/// Why a connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Ending {
    #[error("both sides have closed")]
    Closed,
    #[error("no byte in the idle time")]
    Idle,
    #[error("the limit of bytes")]
    Limit,
    #[error("client: {0}")]
    Client(Fault),
    #[error("backend: {0}")]
    Backend(Fault),
    #[error("the proxy stops")]
    Stopped,
    #[error("it could not be spliced: {0}")]
    NotSpliced(SpliceError),
}

/// What was wrong with one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Fault {
    #[error("{0}")]
    Failed(sosplice::error::SoError),
    #[error("{0:?}")]
    Other(Cause),
}

impl Ending {
    /// That of a connection one of whose splices has ended so.
    pub(super) fn of(direction: Direction, cause: Cause) -> Ending {
        let (fault, is_source) = match cause {
            Cause::Eof => return Ending::Closed,
            Cause::Idle => return Ending::Idle,
            Cause::Limit => return Ending::Limit,
            Cause::SourceError(error) => (Fault::Failed(error), true),
            Cause::SinkError(error) => (Fault::Failed(error), false),
            Cause::SinkShutdown | Cause::SinkClosed => (Fault::Other(cause), false),
            _ => (Fault::Other(cause), true),
        };
        match is_source == (direction == Direction::Up) {
            true => Ending::Client(fault),
            false => Ending::Backend(fault),
        }
    }
}

/// Whether lines about connections that go well are wanted.
pub(super) fn are_wanted() -> bool {
    enabled!(target: CONNECTION, Level::INFO)
}

pub(super) fn opened(client: &Client) {
    let peer = client.stream.peer_addr();
    info!(
        target: CONNECTION,
        event = "opened",
        connection = client.id,
        client = %client.address,
        via = (peer != client.address).then(|| tracing::field::display(peer)),
        name = client.server_name.as_deref(),
    );
}

/// A backend has taken it.
pub(super) fn routed(pair: &Pair, wait: Duration, connect: Duration) {
    info!(
        target: CONNECTION,
        event = "routed",
        connection = pair.client.id,
        client = %pair.client.address,
        backend = %pair.backend.at,
        wait_seconds = wait.as_secs_f64(),
        connect_seconds = connect.as_secs_f64(),
    );
}

/// A backend has not taken it.
pub(super) fn not_taken(client: &Client, backend: SocketAddr, time: Duration, why: &dyn Display) {
    let (id, address) = (client.id, client.address);
    warn!(
        target: CONNECTION,
        event = "not_taken",
        connection = id,
        client = %address,
        backend = %backend,
        seconds = time.as_secs_f64(),
        cause = %why,
        "{address}: backend {backend}: {why}"
    );
}

/// No number: its first bytes were wrong.
pub(super) fn refused(id: Option<u64>, client: SocketAddr, why: Refusal) {
    warn!(
        target: CONNECTION,
        event = "refused",
        connection = id,
        client = %client,
        cause = %why,
        "{client}: {why}"
    );
}

pub(super) fn ended(pair: &Pair, why: Ending, length: Duration) {
    if !are_wanted() {
        return;
    }
    info!(
        target: CONNECTION,
        event = "ended",
        connection = pair.client.id,
        client = %pair.client.address,
        backend = %pair.backend.at,
        up_bytes = pair.carried(Direction::Up),
        down_bytes = pair.carried(Direction::Down),
        seconds = length.as_secs_f64(),
        cause = %why,
    );
}
