//! What a relay counts.

use crate::heads::Fault;
use crate::services::Lack;
use sosplice::splice::{Cause, End};
use std::io;
use thiserror::Error;

/// From the client to the server, or back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Up,
    Down,
}

pub(crate) const BOTH: [Direction; 2] = [Direction::Up, Direction::Down];

impl Direction {
    pub(crate) fn opposite(self) -> Direction {
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
    pub(crate) fn add(&mut self, end: End) {
        self.bytes += end.bytes;
        self.passes += end.passes;
        self.count(end.cause, 1);
    }

    pub(crate) fn count(&mut self, cause: Cause, times: u64) {
        count(&mut self.causes, cause, times);
    }
}

fn count<T: PartialEq>(counts: &mut Vec<(T, u64)>, what: T, times: u64) {
    match counts.iter_mut().find(|(other, _)| *other == what) {
        Some((_, count)) => *count += times,
        None => counts.push((what, times)),
    }
}

/// Why a client was reset before a backend served it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Refusal {
    #[error("{0}")]
    Head(Fault),
    #[error("no backend serves the name that it has asked for")]
    Name,
    #[error("it has as many connections as a client may")]
    Client,
    #[error("no backend is up that has not refused it")]
    Down,
    #[error("the backends have as many connections as they may")]
    Full,
    #[error("no backend had room in time")]
    Late,
    #[error("it comes from this proxy itself: the address of a backend leads back to it")]
    Loop,
    #[error("it was reset while it waited for a backend with room")]
    Left,
    #[error("the proxy stops, and it waited for a backend with room")]
    Stopped,
}

impl From<Lack> for Refusal {
    fn from(lack: Lack) -> Refusal {
        match lack {
            Lack::Name => Refusal::Name,
            Lack::Full => Refusal::Full,
            Lack::Down => Refusal::Down,
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
    /// Connections that were tried with another backend.
    pub(crate) retried: u64,
    pub(crate) refused: Vec<(Refusal, u64)>,
    /// Settings that were read again: those that hold since, and those with a mistake.
    pub(crate) renewed: u64,
    pub(crate) rejected: u64,
    /// Times that the checks did not go on.
    pub(crate) checks_failed: u64,
    /// Connections that were reset at the end of the grace time.
    pub(crate) cut_off: usize,
    /// The failure that ended it, if it was not stopped.
    pub(crate) failure: Option<Failure>,
    pub(crate) up: Tally,
    pub(crate) down: Tally,
}

impl Totals {
    pub(crate) fn of(&mut self, direction: Direction) -> &mut Tally {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }

    pub(crate) fn refuse(&mut self, why: Refusal) {
        count(&mut self.refused, why, 1);
    }
}
