//! Explicit congestion notification (RFC 3168): a router marks a packet instead of dropping it, the
//! receiver echoes that, and the sender reduces its window once in a round trip.
//!
//! Nothing here says anything before both SYNs have agreed on it. Pure.

use super::segment::{ACK, CWR, ECE};

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ecn {
    /// We are willing.
    offered: bool,
    /// Both SYNs have said so.
    agreed: bool,
    /// A mark has come, and no CWR since: each segment says so (6.1.3).
    ece: bool,
    /// The window was reduced, and the peer does not know (6.1.2).
    cwr: bool,
    /// SND.NXT at the latest reduction: marks of what was sent before are accounted for.
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

    /// Flags of our SYN that was sent so often before. One that is not answered may have been dropped for its
    /// flags: the next one has none (6.1.1.1).
    pub(crate) fn syn(&mut self, again: u32) -> u8 {
        self.offered &= again == 0;
        if self.offered { ECE | CWR } else { 0 }
    }

    /// Flags of our SYN|ACK.
    pub(crate) fn syn_ack(self) -> u8 {
        if self.agreed { ECE } else { 0 }
    }

    /// The peer's SYN or SYN|ACK. A SYN|ACK with both flags is of a peer that reflects what it does not
    /// know. `again`: it has sent one before.
    pub(crate) fn synchronise(&mut self, flags: u8, again: bool) {
        let wanted = if flags & ACK == 0 { ECE | CWR } else { ECE };
        let setup = flags & (ECE | CWR) == wanted;
        self.agreed = self.offered && setup && (self.agreed || !again);
    }

    // The receiving half (6.1.3).

    /// A segment with new data has come. `true`: what it says is to be told at once.
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

    /// An acknowledgement has come, up to `una`. `true`: it tells of a mark that the window was not reduced
    /// for.
    pub(crate) fn is_marked(self, flags: u8, una: u64) -> bool {
        self.agreed && flags & ECE != 0 && una > self.reduction_point
    }

    /// The window was reduced, for a mark or for a loss, with so much sent.
    pub(crate) fn reduced(&mut self, nxt: u64) {
        self.cwr = self.agreed;
        self.reduction_point = nxt;
    }

    /// The next segment with new data tells of a reduction. It is to be alone: of several that the link cuts
    /// apart each would have the flag.
    pub(crate) fn must_tell(self) -> bool {
        self.cwr
    }

    /// New data leaves, as one segment if [`must_tell`](Self::must_tell). Its flags, and whether routers may
    /// mark it: nothing else is that (6.1.4 to 6.1.6).
    pub(crate) fn sent(&mut self) -> (u8, bool) {
        let told = std::mem::take(&mut self.cwr);
        (if told { CWR } else { 0 }, self.agreed)
    }
}
