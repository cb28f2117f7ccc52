//! A connection in TIME-WAIT: its tuple, and the record that answers for it (rules:
//! [`block::time_wait`](super::block::time_wait)).

use super::block::time_wait::{Answer, Record};
use super::wire::{self, Header, MAX_CANONICAL, Segment, SynOptions, Tuple};
use smallvec::SmallVec;

/// A connection in TIME-WAIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeWait {
    pub(crate) tuple: Tuple,
    pub(crate) record: Record,
}

impl TimeWait {
    /// The answer to a segment with the same tuple.
    pub(crate) fn answer(&self, segment: &Segment) -> Answer {
        self.record.answer(&segment.bare())
    }

    /// The ACK: IP and TCP header, checksums filled in.
    pub(crate) fn acknowledgement(&self, partial: bool) -> SmallVec<[u8; MAX_CANONICAL]> {
        let segment = self.record.acknowledgement();
        let header = Header {
            seq: segment.seq,
            ack: segment.ack,
            flags: segment.flags,
            window: segment.window,
            options: SynOptions::default(),
        };
        let tuple = &self.tuple;
        let mut out = [0; MAX_CANONICAL];
        let from = (tuple.local, tuple.local_port);
        let to = (tuple.remote, tuple.remote_port);
        let mut len = wire::compose(&mut out, from, to, &header, 0);
        if let Some(stamps) = segment.options.timestamps {
            let timestamps = (stamps.value, stamps.echo);
            len = wire::add_timestamps(&mut out, (len, tuple.ip_header_len()), timestamps);
        }
        wire::finish(
            &mut out[..len],
            tuple.ip_header_len(),
            std::iter::empty(),
            partial,
        );
        SmallVec::from_slice(&out[..len])
    }
}
