//! How a splice ends. Pure; public as part of [`splice`](crate::splice).
//!
//! Here, below the sockets, because a socket keeps the end of its latest splice.

use crate::error::SoError;
use std::fmt;

/// Why a splice has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// [`Socket::unsplice`](crate::Socket::unsplice) or [`Splice::unsplice`](crate::Splice::unsplice).
    Unspliced,
    /// The limit is reached; or, since a datagram is moved whole or not at all, the next one would
    /// exceed it: then [`End::bytes`] is less.
    Limit,
    /// No byte has moved for the idle time.
    Idle,
    /// Its lifetime has expired.
    Lifetime,
    /// The source's stream has ended, and all bytes were moved.
    Eof,
    /// The source has failed, and all received bytes were moved.
    SourceError(SoError),
    /// The source was closed by the program.
    SourceClosed,
    /// The sink was shut down for writing.
    SinkShutdown,
    /// The sink has failed.
    SinkError(SoError),
    /// The sink was closed by the program.
    SinkClosed,
    /// The pool was dropped.
    PoolClosed,
    /// The splices form a ring: bytes have passed 128 splices (only in the OpenBSD flavor).
    Loop,
    /// A [`Protocol`](crate::protocol::Protocol) of either side panicked while the splice called it.
    /// Moved bytes are counted.
    Panicked,
    /// The next datagram is longer than the sink's send buffer ever takes. It stays on the source.
    MessageSize,
}

impl Cause {
    pub(crate) const KINDS: usize = 14;

    pub(crate) fn kind(self) -> usize {
        match self {
            Cause::Unspliced => 0,
            Cause::Limit => 1,
            Cause::Idle => 2,
            Cause::Lifetime => 3,
            Cause::Eof => 4,
            Cause::SourceError(_) => 5,
            Cause::SourceClosed => 6,
            Cause::SinkShutdown => 7,
            Cause::SinkError(_) => 8,
            Cause::SinkClosed => 9,
            Cause::PoolClosed => 10,
            Cause::Loop => 11,
            Cause::Panicked => 12,
            Cause::MessageSize => 13,
        }
    }
}

/// How a splice has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct End {
    /// Why.
    pub cause: Cause,
    /// Bytes moved from the source to the sink.
    pub bytes: u64,
    /// Number of passes.
    pub passes: u64,
    /// Bytes left on the source: received in order, but not moved. They can be read there.
    pub residual: usize,
}

/// The source or the sink of a splice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a splice has a source and a sink")]
pub enum Role {
    /// The socket that bytes come from.
    Source,
    /// The socket that bytes go to.
    Sink,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Source => "source",
            Role::Sink => "sink",
        })
    }
}
