//! Where the engine's frames go: they get their payload, their sequence numbers and their checksum,
//! and are given to the link, or wait for it.

use super::Env;
use crate::buf::Gather;
use crate::link::{Checksum, Packet, TransmitError};
use crate::tcp::ack::AckPolicy;
use crate::tcp::engine::{Emitted, Outlet};
use crate::tcp::guard::Guard;
use crate::tcp::wire::{self, ACK, FIN, RST, SYN};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::num::NonZeroU16;

/// IPv6, TCP, and all options that fit.
pub(super) const MAX_HEADER: usize = 40 + 60;

/// A packet that waits for room in the link.
#[derive(Debug)]
pub(super) struct Waiting {
    header: SmallVec<[u8; MAX_HEADER]>,
    ip_header_len: usize,
    payload: Gather,
    segment: Option<NonZeroU16>,
}

/// Where the engine's frames go: they get their payload, their checksum, and are transmitted.
pub(super) struct Wire<'a> {
    pub(super) guard: &'a mut Guard,
    pub(super) ack: &'a mut AckPolicy,
    pub(super) waiting: &'a mut VecDeque<Waiting>,
    pub(super) offset: &'a mut Option<u32>,
    pub(super) wire_iss: u32,
    pub(super) env: &'a Env<'a>,
    /// Bytes that the engine has to send, from the beginning.
    pub(super) queued: u64,
    /// Behind what was emitted there is nothing.
    pub(super) last: bool,
    pub(super) broken: bool,
    /// What is emitted is a keep-alive probe: one sequence number below what it would carry.
    pub(super) probe: bool,
    #[cfg(any(test, sosplice_fuzz))]
    pub(super) tap: &'a mut crate::tcp::oracle::Tap,
}

impl Wire<'_> {
    /// I6: the payload that belongs to an emitted range.
    fn payload(&mut self, seq: u32, len: usize) -> Option<Gather> {
        if len == 0 {
            return Some(Gather::new());
        }
        let from = self.guard.send_position(seq)?;
        let to = from + len as u64;
        let snd = self.env.end.snd();
        let chain = snd.buf.chain();
        (chain.start() <= from && to <= chain.end()).then(|| chain.range(from..to))
    }
}

impl Outlet for Wire<'_> {
    fn ready(&self) -> bool {
        self.waiting.is_empty()
    }

    fn emit(&mut self, emitted: Emitted<'_>) {
        let Emitted {
            header,
            ip_header_len,
            emission,
            segment,
        } = emitted;
        self.guard.emitted(&emission);
        if emission.header.has(ACK) {
            self.ack.sent(emission.len > 0, self.env.now);
        }
        let Some(payload) = self.payload(emission.header.seq, emission.len) else {
            debug_assert!(
                false,
                "invariant broken: I6: an emitted payload lies within so_snd"
            );
            self.broken = true;
            return;
        };
        #[cfg(any(test, sosplice_fuzz))]
        self.tap.emitted(header, &payload);
        if emission.header.has(SYN) && self.offset.is_none() {
            *self.offset = Some(self.wire_iss.wrapping_sub(emission.header.seq));
        }
        // Text goes before a bare acknowledgement.
        let end = self.guard.send_position(emission.header.seq);
        let end = end.map(|at| at + emission.len as u64);
        self.last = emission.len == 0 || end == Some(self.queued);
        let occupies = emission.len > 0 || emission.header.flags & (SYN | FIN | RST) != 0;
        let seq = if occupies {
            emission.header.seq
        } else {
            self.guard.ack_seq()
        };
        let seq = seq.wrapping_add(self.offset.unwrap_or(0));
        let seq = seq.wrapping_sub(u32::from(self.probe && !occupies));
        header[ip_header_len + 4..ip_header_len + 8].copy_from_slice(&seq.to_be_bytes());
        let window = self.guard.wire_window(&emission.header);
        header[ip_header_len + 14..ip_header_len + 16].copy_from_slice(&window.to_be_bytes());
        let hops_at = match ip_header_len {
            wire::IPV4_HEADER => 8,
            _ => 7,
        };
        header[hops_at] = self.env.options.hop_limit();
        let mut header = SmallVec::from_slice(header);
        if !occupies {
            wire::append_sack(&mut header, ip_header_len, &self.guard.sack());
        }
        let mut packet = Waiting {
            header,
            ip_header_len,
            payload,
            segment,
        };
        let behind = !self.waiting.is_empty();
        if behind && emission.header.has(RST) {
            // An answer to a segment that had nothing to do with us: its sender may ask again.
            self.env.counters.lost.add(1);
            return;
        }
        if behind || !packet.send(self.env) {
            // A newer pure acknowledgement says all that an older one did.
            if packet.payload.is_empty() && self.waiting.back().is_some_and(|last| last.is_ack()) {
                self.waiting.pop_back();
            }
            self.waiting.push_back(packet);
        }
    }
}

impl Waiting {
    fn is_ack(&self) -> bool {
        let flags = self.header[self.ip_header_len + 13];
        self.payload.is_empty() && flags & (SYN | FIN | RST) == 0
    }

    /// `false`: the link is full.
    pub(super) fn send(&mut self, env: &Env<'_>) -> bool {
        let partial = env.link.capabilities().checksum;
        let payload = self.payload.iter().map(|buf| &buf[..]);
        wire::finish(&mut self.header, self.ip_header_len, payload, partial);
        let packet = Packet {
            header: &self.header,
            payload: &self.payload,
            ip_header_len: self.ip_header_len,
            checksum: if partial {
                Checksum::Partial
            } else {
                Checksum::Complete
            },
            segment: self.segment,
        };
        match env.link.transmit(&packet) {
            Ok(()) => {
                env.counters.sent.add(1);
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
