//! Explicit congestion notification (RFC 3168): a router marks a packet instead of dropping it, the
//! receiver echoes the mark, and the sender reduces its window once in a round trip.
//!
//! Not used unless both SYNs have negotiated it. Pure.

use super::segment::{ACK, CWR, ECE};

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ecn {
    /// We offer ECN.
    offered: bool,
    /// Both SYNs have negotiated ECN.
    agreed: bool,
    /// A mark was received, and no CWR since: each segment has ECE (6.1.3).
    ece: bool,
    /// The window was reduced: the next new data has CWR (6.1.2).
    cwr: bool,
    /// SND.NXT at the latest reduction, which covers marks of data sent before.
    reduction_point: u64,
}

impl Ecn {
    pub(crate) fn new(offered: bool) -> Ecn {
        Ecn {
            offered,
            ..Ecn::default()
        }
    }

    // The handshake (6.1.1).

    /// Flags of our SYN after this many retransmissions. An unanswered SYN may have been dropped
    /// because of its flags: a retransmission has none (6.1.1.1).
    pub(crate) fn syn(&mut self, again: u32) -> u8 {
        self.offered &= again == 0;
        if self.offered { ECE | CWR } else { 0 }
    }

    /// Flags of our SYN|ACK.
    pub(crate) fn syn_ack(self) -> u8 {
        if self.agreed { ECE } else { 0 }
    }

    /// The peer's SYN or SYN|ACK. A SYN|ACK with both flags comes from a peer that reflects unknown
    /// bits. `again`: it is a retransmission.
    pub(crate) fn synchronise(&mut self, flags: u8, again: bool) {
        let wanted = if flags & ACK == 0 { ECE | CWR } else { ECE };
        let setup = flags & (ECE | CWR) == wanted;
        self.agreed = self.offered && setup && (self.agreed || !again);
    }

    // The receiving half (6.1.3).

    /// A segment with new data was received. `true` if it must be acknowledged at once.
    pub(crate) fn received(&mut self, flags: u8, marked: bool) -> bool {
        if !self.agreed {
            return false;
        }
        if flags & CWR != 0 {
            self.ece = false;
        }
        let first = marked && !self.ece;
        self.ece |= marked;
        first
    }

    /// Flags of each segment with an acknowledgement.
    pub(crate) fn echo(self) -> u8 {
        if self.ece { ECE } else { 0 }
    }

    // The sending half (6.1.2).

    /// An acknowledgement up to `una` was received. `true` if it echoes a mark for which the window was
    /// not reduced yet.
    pub(crate) fn is_marked(self, flags: u8, una: u64) -> bool {
        self.agreed && flags & ECE != 0 && una > self.reduction_point
    }

    /// The window was reduced, for a mark or for a loss, at this SND.NXT.
    pub(crate) fn reduced(&mut self, nxt: u64) {
        self.cwr = self.agreed;
        self.reduction_point = nxt;
    }

    /// Whether the next new data has CWR. It must be a single segment: if the link cuts a packet, each
    /// segment would have the flag.
    pub(crate) fn must_send_cwr(self) -> bool {
        self.cwr
    }

    /// New data is sent, as one segment if [`must_send_cwr`](Self::must_send_cwr). Returns its flags, and
    /// whether routers may mark it; no other packets may be marked (6.1.4 to 6.1.6).
    pub(crate) fn sent(&mut self) -> (u8, bool) {
        let reduced = std::mem::take(&mut self.cwr);
        (if reduced { CWR } else { 0 }, self.agreed)
    }
}
