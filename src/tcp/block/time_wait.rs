//! TIME-WAIT without a control block: a small record that answers for an ended connection (RFC 9293
//! 3.10.7.4, 1337, 6191). Pure.

use super::segment::{ACK, FIN, RST, SYN, Segment, SegmentOptions, Timestamps};
use super::seq::older;

/// The record: sequence numbers as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) snd_nxt: u32,
    pub(crate) rcv_nxt: u32,
    /// TS.Recent and the next TSval, with timestamps.
    pub(crate) timestamps: Option<Timestamps>,
}

/// The answer to a segment in TIME-WAIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// None (RFC 1337: also to a RST).
    Ignore,
    /// The ACK again; `restart`: restarts TIME-WAIT, since the peer retransmitted its FIN.
    Acknowledge { restart: bool },
    /// A new connection may replace the record (RFC 9293 3.10.7.4, 6191 2).
    MakeRoom,
}

impl Record {
    pub(crate) fn answer(&self, segment: &Segment) -> Answer {
        let ahead = segment.seq.wrapping_sub(self.rcv_nxt).cast_signed();
        if segment.has(RST) {
            return Answer::Ignore;
        }
        if segment.has(SYN) {
            let opens = segment.flags & (SYN | ACK | FIN) == SYN;
            return match opens && self.is_newer(segment, ahead) {
                true => Answer::MakeRoom,
                false => Answer::Acknowledge { restart: false },
            };
        }
        if segment.has(FIN) {
            return Answer::Acknowledge { restart: true };
        }
        // A pure acknowledgement is not answered, or two sides that disagree would answer each other
        // for ever; a keep-alive is, unless it acknowledges data that was never sent.
        let believable = self.snd_nxt.wrapping_sub(segment.ack).cast_signed() >= 0;
        if segment.len > 0 || (ahead == -1 && believable) {
            Answer::Acknowledge { restart: false }
        } else {
            Answer::Ignore
        }
    }

    /// RFC 6191 2: with a newer timestamp, with the first one between these ends, or with a larger
    /// sequence number if timestamps do not decide.
    fn is_newer(&self, syn: &Segment, ahead: i32) -> bool {
        match (self.timestamps, syn.options.timestamps) {
            (Some(recent), Some(stamps)) if stamps.value != recent.echo => {
                older(recent.echo, stamps.value)
            }
            // Segments of the former connection have no timestamps, so none is taken for the new one's.
            (None, Some(_)) => true,
            _ => ahead >= 0,
        }
    }

    /// The ACK.
    pub(crate) fn acknowledgement(&self) -> Segment {
        Segment {
            seq: self.snd_nxt,
            ack: self.rcv_nxt,
            flags: ACK,
            options: SegmentOptions {
                timestamps: self.timestamps,
                ..SegmentOptions::default()
            },
            ..Segment::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(seq: u32, flags: u8) -> Segment {
        Segment {
            seq,
            ack: 1000,
            flags,
            ..Segment::default()
        }
    }

    fn stamped(value: u32, seq: u32) -> Segment {
        let mut syn = segment(seq, SYN);
        syn.options.timestamps = Some(Timestamps { value, echo: 0 });
        syn
    }

    const LAST: u32 = u32::MAX;

    fn record() -> Record {
        Record {
            snd_nxt: 1000,
            rcv_nxt: LAST,
            timestamps: None,
        }
    }

    #[test]
    fn rules_of_rfc_9293_and_1337() {
        let again = Answer::Acknowledge { restart: false };
        let table = [
            (segment(LAST, RST), Answer::Ignore, "RFC 1337"),
            (segment(5, SYN), Answer::MakeRoom, "larger, wrapped"),
            (segment(LAST - 9, SYN), again, "an old duplicate"),
            (segment(5, SYN | FIN), again, "no SYN opens and closes"),
            (segment(5, SYN | ACK), again, "nor answers"),
            (
                segment(LAST - 1, FIN | ACK),
                Answer::Acknowledge { restart: true },
                "the FIN again",
            ),
            (segment(LAST, ACK), Answer::Ignore, "an acknowledgement"),
            (
                segment(17, ACK),
                Answer::Ignore,
                "not answered, against an ACK loop",
            ),
            (segment(LAST - 1, ACK), again, "a keep-alive"),
        ];
        for (segment, answer, why) in table {
            assert_eq!(record().answer(&segment), answer, "{why}");
        }
        let mut disagrees = segment(LAST - 1, ACK);
        disagrees.ack = 1001;
        assert_eq!(record().answer(&disagrees), Answer::Ignore, "an ACK storm");
        let mut data = segment(0, ACK);
        data.len = 3;
        assert_eq!(record().answer(&data), again);
        assert_eq!(record().acknowledgement().ack, LAST);
    }

    #[test]
    fn a_newer_timestamp_makes_room_rfc_6191() {
        let mut record = record();
        record.timestamps = Some(Timestamps {
            value: 7,
            echo: 500,
        });
        assert_eq!(record.answer(&stamped(501, LAST - 9)), Answer::MakeRoom);
        assert_eq!(record.answer(&stamped(500, 5)), Answer::MakeRoom);
        let older = Answer::Acknowledge { restart: false };
        assert_eq!(record.answer(&stamped(499, 5)), older);
        assert_eq!(record.answer(&segment(5, SYN)), Answer::MakeRoom);
        assert_eq!(record.answer(&segment(LAST - 9, SYN)), older);
        record.timestamps = None;
        assert_eq!(record.answer(&stamped(1, LAST - 9)), Answer::MakeRoom);
    }
}
