//! A pool, and the ends of its splices as reported by callbacks.
//!
//! Beside the pool's own counters: each splice reports its end once, and both sums must be equal.

use sosplice::error::SoError;
use sosplice::splice::{Cause, End, SplicePool, Stats};
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};

/// One of each kind.
pub(crate) const CAUSES: [Cause; 14] = [
    Cause::Unspliced,
    Cause::Limit,
    Cause::Idle,
    Cause::Lifetime,
    Cause::Eof,
    Cause::SourceError(SoError::ConnectionReset),
    Cause::SourceClosed,
    Cause::SinkShutdown,
    Cause::SinkError(SoError::ConnectionReset),
    Cause::SinkClosed,
    Cause::PoolClosed,
    Cause::Panicked,
    Cause::Loop,
    Cause::MessageSize,
];

/// The name of a kind.
pub(crate) fn name(cause: Cause) -> &'static str {
    match cause {
        Cause::Unspliced => "Unspliced",
        Cause::Limit => "Limit",
        Cause::Idle => "Idle",
        Cause::Lifetime => "Lifetime",
        Cause::Eof => "Eof",
        Cause::SourceError(_) => "SourceError",
        Cause::SourceClosed => "SourceClosed",
        Cause::SinkShutdown => "SinkShutdown",
        Cause::SinkError(_) => "SinkError",
        Cause::SinkClosed => "SinkClosed",
        Cause::PoolClosed => "PoolClosed",
        Cause::Panicked => "Panicked",
        Cause::Loop => "Loop",
        Cause::MessageSize => "MessageSize",
        _ => "another cause",
    }
}

/// Ends by cause, and their bytes.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    counts: [AtomicU64; CAUSES.len()],
    unknown: AtomicU64,
    bytes: AtomicU64,
}

impl Ends {
    pub(crate) fn add(&self, end: End) {
        let kind = mem::discriminant(&end.cause);
        let at = CAUSES
            .iter()
            .position(|cause| mem::discriminant(cause) == kind);
        let count = at.map_or(&self.unknown, |at| &self.counts[at]);
        count.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(end.bytes, Ordering::Relaxed);
    }

    pub(crate) fn all(&self) -> u64 {
        let known = self
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        known.sum::<u64>() + self.unknown.load(Ordering::Relaxed)
    }

    pub(crate) fn by_cause(&self) -> impl Iterator<Item = (Cause, u64)> {
        let counts = self
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        CAUSES.into_iter().zip(counts)
    }

    /// Differences from the pool's counters.
    pub(crate) fn differ_from(&self, stats: &Stats) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut compare = |what: &str, told: u64, counted: u64| {
            if told != counted {
                wrong.push(format!(
                    "{what}: {told} by the splices, {counted} by the pool"
                ));
            }
        };
        compare("ends", self.all(), stats.ended());
        compare("ends of a splice each", self.all(), stats.started);
        compare("bytes", self.bytes.load(Ordering::Relaxed), stats.bytes);
        for (cause, told) in self.by_cause() {
            compare(name(cause), told, stats.ended_by(cause));
        }
        wrong
    }
}

/// A pool and the ends of its splices.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) name: &'static str,
    pub(crate) pool: SplicePool,
    pub(crate) ends: Ends,
}
