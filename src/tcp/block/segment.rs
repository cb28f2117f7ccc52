//! A segment without its payload and its wire format (RFC 9293 3.1).

use smallvec::SmallVec;
use std::ops::Range;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
/// RFC 3168 6.1.
pub(crate) const ECE: u8 = 0x40;
pub(crate) const CWR: u8 = 0x80;

/// Maximum number of SACK blocks (RFC 2018 3); three with timestamps.
pub(crate) const SACK_BLOCKS: usize = 4;

/// Bytes of a SACK option, padded (RFC 2018 3).
pub(crate) fn sack_len(blocks: usize) -> usize {
    match blocks {
        0 => 0,
        blocks => 4 + 8 * blocks,
    }
}

/// Bytes of the timestamps option, padded (RFC 7323 appendix A).
pub(crate) const TIMESTAMPS_LEN: usize = 12;

/// The timestamps option (RFC 7323 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timestamps {
    /// TSval.
    pub(crate) value: u32,
    /// TSecr; meaningless without ACK.
    pub(crate) echo: u32,
}

/// Options of a segment. The first three are used only in a SYN.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct SegmentOptions {
    /// RFC 9293 3.7.1.
    pub(crate) mss: Option<u16>,
    /// RFC 7323 2.2; at most 14.
    pub(crate) window_scale: Option<u8>,
    /// RFC 2018 2.
    pub(crate) sack_permitted: bool,
    pub(crate) timestamps: Option<Timestamps>,
    /// RFC 2018 3, 2883: starts and ends.
    pub(crate) sack: SmallVec<[(u32, u32); SACK_BLOCKS]>,
}

/// A received segment, or the header of one to send.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Segment {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    /// The window field, not scaled.
    pub(crate) window: u16,
    pub(crate) options: SegmentOptions,
    /// Bytes of payload.
    pub(crate) len: usize,
    /// A router has marked it: CE (RFC 3168 5). Only for received ones.
    pub(crate) marked: bool,
}

impl Segment {
    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A packet to send: a segment, or several of the same size that the link cuts apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Emission {
    /// `len` covers the whole payload.
    pub(crate) segment: Segment,
    /// The payload, as positions of the sent stream.
    pub(crate) payload: Range<u64>,
    /// Bytes of payload in each segment but the last.
    pub(crate) size: usize,
    /// It is a retransmission.
    pub(crate) again: bool,
    /// Routers may mark the packet: ECT(0) (RFC 3168 5).
    pub(crate) markable: bool,
    /// Routers must not fragment the packet (RFC 1191 3); `false` on a path below the minimum.
    pub(crate) dont_fragment: bool,
}

impl Emission {
    /// Payload plus SACK option in each segment but the last: the variable part of its size.
    pub(crate) fn full(&self) -> usize {
        self.size + sack_len(self.segment.options.sack.len())
    }
}
