//! Packets to the link: a header and references to the payload, which wait while the link is full.

use super::service::Env;
use super::wire::{self, MAX_HEADER};
use crate::buf::{Buf, Gather};
use crate::link::{Packet, TransmitError};
use smallvec::SmallVec;
use std::num::NonZeroU16;

/// A packet, which waits if the link has no room.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) header: SmallVec<[u8; MAX_HEADER]>,
    pub(super) ip_header_len: usize,
    pub(super) payload: Gather,
    pub(super) segment: Option<NonZeroU16>,
    /// It is a retransmission.
    pub(super) again: bool,
}

impl Waiting {
    /// `false` if the link is full.
    pub(super) fn send(&mut self, env: &Env<'_>) -> bool {
        let partial = env.link.capabilities().checksum;
        let payload = self.payload.iter().map(|buf| &buf[..]);
        let checksum = wire::finish(&mut self.header, self.ip_header_len, payload, partial);
        let packet = Packet {
            header: &self.header,
            payload: &self.payload,
            ip_header_len: self.ip_header_len,
            checksum,
            segment: self.segment,
        };
        match env.link.transmit(&packet) {
            Ok(()) => {
                let bytes = self.payload.iter().map(Buf::len).sum();
                env.sent.add(bytes, self.again);
                true
            }
            Err(TransmitError::Full) => {
                env.counters.link_full.add(1);
                false
            }
            Err(TransmitError::Refused(_) | TransmitError::Gone(_)) => {
                env.counters.lost.add(1);
                true
            }
        }
    }
}
