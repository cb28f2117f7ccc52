//! The connections of a batch of frames.
//!
//! The segments of a connection are kept here, in queues that each batch uses again, until the connection
//! is run: its own memory is not touched before.

use crate::tcp::conn::Conn;
use crate::tcp::wire::Segment;
use std::collections::VecDeque;
use std::sync::Arc;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// In the order of their first segments.
    conns: Vec<Arc<Conn>>,
    /// The segments of each, then empty queues.
    segments: Vec<VecDeque<Segment>>,
}

impl Batch {
    /// The connection is to be run, with this segment after its others.
    pub(super) fn add(&mut self, conn: Arc<Conn>, segment: Option<Segment>) {
        let known = self.conns.iter().rposition(|one| Arc::ptr_eq(one, &conn));
        let at = known.unwrap_or(self.conns.len());
        if known.is_none() {
            self.conns.push(conn);
        }
        if at == self.segments.len() {
            self.segments.push(VecDeque::new());
        }
        self.segments[at].extend(segment);
    }

    /// The connections, each with its segments.
    pub(super) fn each(&mut self) -> impl Iterator<Item = (&Arc<Conn>, &mut VecDeque<Segment>)> {
        self.conns.iter().zip(&mut self.segments)
    }

    /// Forgets the connections, whose segments were taken.
    pub(super) fn clear(&mut self) {
        self.conns.clear();
    }
}
