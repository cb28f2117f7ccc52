//! TIME-WAIT without a control block: a small record that answers for a connection that has ended.

use super::wire::{self, ACK, FIN, Header, MAX_CANONICAL, RST, SYN, SynOptions, Tuple};
use smallvec::SmallVec;

/// What is remembered of a connection in TIME-WAIT, as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeWait {
    pub(crate) tuple: Tuple,
    pub(crate) snd_nxt: u32,
    pub(crate) rcv_nxt: u32,
    /// TSval and TSecr of its acknowledgements, with timestamps (RFC 7323 3.2).
    pub(crate) timestamps: Option<(u32, u32)>,
}

/// What a segment means to a connection in TIME-WAIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing (RFC 1337: a RST too).
    Ignore,
    /// The ACK again; `restart` if the peer's FIN came again (RFC 9293 3.10.7.4).
    Acknowledge {
        /// TIME-WAIT begins anew.
        restart: bool,
    },
    /// A new connection may take the place (RFC 1122 4.2.2.13).
    MakeRoom,
}

impl TimeWait {
    pub(crate) fn answer(&self, header: &Header, len: usize) -> Answer {
        let ahead = header.seq.wrapping_sub(self.rcv_nxt).cast_signed();
        if header.has(RST) {
            return Answer::Ignore;
        }
        if header.has(SYN) {
            // One that also ends is none that opens.
            let larger = ahead >= 0 && header.flags & (ACK | FIN) == 0;
            return if larger {
                Answer::MakeRoom
            } else {
                Answer::Acknowledge { restart: false }
            };
        }
        if header.has(FIN) {
            return Answer::Acknowledge { restart: true };
        }
        // A pure acknowledgement draws none, or two sides that disagree would go on for ever; a
        // keep-alive does, unless it acknowledges what was never sent: then they disagree.
        let believable = self.snd_nxt.wrapping_sub(header.ack).cast_signed() >= 0;
        if len > 0 || (ahead == -1 && believable) {
            Answer::Acknowledge { restart: false }
        } else {
            Answer::Ignore
        }
    }

    /// The ACK: IP and TCP header, checksums filled in.
    pub(crate) fn acknowledgement(&self, partial: bool) -> SmallVec<[u8; MAX_CANONICAL]> {
        let header = Header {
            seq: self.snd_nxt,
            ack: self.rcv_nxt,
            flags: ACK,
            window: 0,
            options: SynOptions::default(),
        };
        let tuple = &self.tuple;
        let mut out = [0; MAX_CANONICAL];
        let from = (tuple.local, tuple.local_port);
        let to = (tuple.remote, tuple.remote_port);
        let mut len = wire::compose(&mut out, from, to, &header, 0);
        if let Some(timestamps) = self.timestamps {
            len = wire::add_timestamps(&mut out, tuple.ip_header_len(), timestamps);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_9293_and_1122_rules() {
        let tuple = Tuple {
            local: [10, 0, 0, 1].into(),
            remote: [10, 0, 0, 2].into(),
            local_port: 1,
            remote_port: 2,
        };
        let record = TimeWait {
            tuple,
            snd_nxt: 1000,
            rcv_nxt: u32::MAX,
            timestamps: None,
        };
        let segment = |seq: u32, flags: u8| Header {
            seq,
            ack: 1000,
            flags,
            window: 0,
            options: SynOptions::default(),
        };
        assert_eq!(record.answer(&segment(u32::MAX, RST), 0), Answer::Ignore);
        assert_eq!(
            record.answer(&segment(5, SYN), 0),
            Answer::MakeRoom,
            "larger, wrapped"
        );
        assert_eq!(
            record.answer(&segment(5, SYN | FIN), 0),
            Answer::Acknowledge { restart: false },
            "what opens and closes opens nothing"
        );
        assert_eq!(
            record.answer(&segment(u32::MAX - 9, SYN), 0),
            Answer::Acknowledge { restart: false },
            "an old duplicate"
        );
        assert_eq!(
            record.answer(&segment(u32::MAX - 1, FIN | ACK), 0),
            Answer::Acknowledge { restart: true }
        );
        assert_eq!(record.answer(&segment(u32::MAX, ACK), 0), Answer::Ignore);
        assert_eq!(
            record.answer(&segment(17, ACK), 0),
            Answer::Ignore,
            "or two sides that disagree would answer each other for ever"
        );
        assert_eq!(
            record.answer(&segment(u32::MAX - 1, ACK), 0),
            Answer::Acknowledge { restart: false },
            "a keep-alive"
        );
        let disagrees = Header {
            ack: 1001,
            ..segment(u32::MAX - 1, ACK)
        };
        assert_eq!(
            record.answer(&disagrees, 0),
            Answer::Ignore,
            "it acknowledges what was never sent: an ACK storm"
        );
        assert_eq!(
            record.answer(&segment(0, ACK), 3),
            Answer::Acknowledge { restart: false }
        );
    }
}
