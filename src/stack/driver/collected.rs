//! Small datagrams of one flow that came one after the other: they are delivered as a super-frame is, with one look into
//! the table, one lock and one wake-up for all of them.

use crate::buf::FrameMut;
use crate::ip::Tuple;
use crate::udp::Udp;
use crate::udp::wire::Received;
use std::sync::Arc;
use std::time::Instant;

/// Bytes of all of them.
const ROOM: usize = 2048;
/// Longer datagrams are delivered by reference, each by itself.
const LONGEST: usize = 256;

#[derive(Debug)]
pub(super) struct Collected {
    udp: Arc<Udp>,
    tuple: Tuple,
    /// Length of each datagram but the last one, which may have less.
    size: usize,
    bytes: FrameMut,
    /// A shorter one was the last.
    over: bool,
}

impl Collected {
    /// Begins with this one, if it is small and of a flow.
    pub(super) fn begin(
        received: &Received,
        flow: impl FnOnce(&Tuple) -> Option<Arc<Udp>>,
    ) -> Option<Collected> {
        if received.len == 0 || received.len > LONGEST || received.segment.is_some() {
            return None;
        }
        let mut collected = Collected {
            udp: flow(&received.tuple)?,
            tuple: received.tuple,
            size: received.len,
            bytes: FrameMut::with_capacity(ROOM),
            over: false,
        };
        collected.append(received);
        Some(collected)
    }

    /// Adds a datagram, if it is alike.
    pub(super) fn add(&mut self, received: &Received) -> bool {
        let len = received.len;
        let alike = !self.over
            && (1..=self.size).contains(&len)
            && received.segment.is_none()
            && received.tuple == self.tuple
            && self.bytes.bytes_mut().len() + len <= ROOM;
        if alike {
            self.append(received);
            self.over = len < self.size;
        }
        alike
    }

    fn append(&mut self, received: &Received) {
        let bytes = self.bytes.bytes_mut();
        received
            .payload
            .iter()
            .for_each(|buf| bytes.extend_from_slice(buf));
    }

    pub(super) fn deliver(self, now: Instant) {
        let bytes = self.bytes.freeze();
        let all = Received {
            tuple: self.tuple,
            len: bytes.len(),
            payload: [bytes].into_iter().collect(),
            segment: Some(self.size),
        };
        self.udp.receive(all, now);
    }
}
