//! The tail loss probe (RFC 8985 7): what is lost at the end of a flight is found by sending one
//! segment, long before the retransmission timeout. Pure.

use super::rtt::Rtt;
use std::time::Duration;

/// How long the peer may delay the acknowledgement of a lone segment (RFC 8985 7.2: WCDelAckT).
const DELAYED_ACK: Duration = Duration::from_millis(200);
/// For what a clock does not see.
const GRAIN: Duration = Duration::from_millis(2);

/// What became of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Waiting,
    /// Nothing was lost, or nobody knows.
    Done,
    /// The probe has replaced what was lost: congestion control must know (RFC 8985 7.4.2).
    Repaired,
}

/// TLP.end_seq and TLP.is_retrans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outstanding {
    end_seq: u64,
    is_retrans: bool,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tlp {
    outstanding: Option<Outstanding>,
    /// A probe is to be sent.
    pub(crate) due: bool,
}

impl Tlp {
    /// PTO (RFC 8985 7.2), counted from now. `alone`: no more than one segment is in flight.
    pub(crate) fn timeout(rtt: &Rtt, alone: bool) -> Option<Duration> {
        let trips = rtt.smoothed()? * 2;
        Some(trips + if alone { DELAYED_ACK } else { GRAIN })
    }

    pub(crate) fn is_outstanding(&self) -> bool {
        self.outstanding.is_some()
    }

    /// A probe has left; all that was sent ends at `end`.
    pub(crate) fn sent(&mut self, end: u64, again: bool) {
        self.due = false;
        self.outstanding = Some(Outstanding {
            end_seq: end,
            is_retrans: again,
        });
    }

    /// Another way to recover has begun.
    pub(crate) fn give_up(&mut self) {
        *self = Tlp::default();
    }

    /// RFC 8985 7.4.2. `duplicate`: a D-SACK says that the probe came twice. `bare`: the ACK says nothing
    /// new.
    pub(crate) fn acknowledged(&mut self, una: u64, duplicate: bool, bare: bool) -> Verdict {
        let Some(probe) = self.outstanding else {
            return Verdict::Waiting;
        };
        if una < probe.end_seq {
            return Verdict::Waiting;
        }
        let verdict = match (probe.is_retrans, duplicate || bare) {
            (false, _) | (true, true) => Verdict::Done,
            // Until more than that is acknowledged the answer to the probe may be under way.
            (true, false) if una == probe.end_seq => return Verdict::Waiting,
            (true, false) => Verdict::Repaired,
        };
        self.outstanding = None;
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::block::time::start as any_time;

    #[test]
    fn a_lone_segment_is_given_time_for_a_delayed_acknowledgement() {
        let mut rtt = Rtt::default();
        assert_eq!(Tlp::timeout(&rtt, false), None);
        rtt.sample(Duration::from_millis(50), any_time());
        let ms = |alone| Tlp::timeout(&rtt, alone).unwrap().as_millis();
        assert_eq!((ms(false), ms(true)), (102, 300));
    }

    #[test]
    fn what_became_of_a_probe() {
        let probe = |again| {
            let mut tlp = Tlp::default();
            tlp.sent(1000, again);
            tlp
        };
        assert_eq!(probe(true).acknowledged(999, true, false), Verdict::Waiting);
        assert_eq!(probe(false).acknowledged(1000, false, false), Verdict::Done);
        assert_eq!(
            probe(true).acknowledged(1000, false, false),
            Verdict::Waiting
        );
        assert_eq!(probe(true).acknowledged(1000, true, false), Verdict::Done);
        assert_eq!(probe(true).acknowledged(1000, false, true), Verdict::Done);
        assert_eq!(
            probe(true).acknowledged(1001, false, false),
            Verdict::Repaired
        );
        assert_eq!(
            Tlp::default().acknowledged(5, false, false),
            Verdict::Waiting
        );
        let mut tlp = probe(true);
        tlp.give_up();
        assert!(!tlp.is_outstanding());
    }
}
