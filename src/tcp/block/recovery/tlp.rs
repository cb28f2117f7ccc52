//! The tail loss probe (RFC 8985 7): a loss at the end of a flight is detected by sending one segment,
//! long before the retransmission timeout. Pure.

use super::rtt::Rtt;
use std::time::Duration;

/// How long the peer may delay the acknowledgement of a lone segment (RFC 8985 7.2: WCDelAckT).
const DELAYED_ACK: Duration = Duration::from_millis(200);
/// Clock granularity.
const GRAIN: Duration = Duration::from_millis(2);

/// The result of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Waiting,
    /// No loss was detected.
    Done,
    /// The probe has repaired a loss, to which congestion control must respond (RFC 8985 7.4.2).
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
    /// PTO (RFC 8985 7.2), counted from now. `alone`: at most one segment is in flight.
    pub(crate) fn timeout(rtt: &Rtt, alone: bool) -> Option<Duration> {
        let trips = rtt.smoothed()? * 2;
        Some(trips + if alone { DELAYED_ACK } else { GRAIN })
    }

    pub(crate) fn is_outstanding(&self) -> bool {
        self.outstanding.is_some()
    }

    /// A probe was sent; `end` is SND.NXT.
    pub(crate) fn sent(&mut self, end: u64, again: bool) {
        self.due = false;
        self.outstanding = Some(Outstanding {
            end_seq: end,
            is_retrans: again,
        });
    }

    /// Loss recovery has begun by other means.
    pub(crate) fn give_up(&mut self) {
        *self = Tlp::default();
    }

    /// RFC 8985 7.4.2. `duplicate`: a D-SACK reports the probe as a duplicate. `bare`: the ACK carries
    /// no new information.
    pub(crate) fn acknowledged(&mut self, una: u64, duplicate: bool, bare: bool) -> Verdict {
        let Some(probe) = self.outstanding else {
            return Verdict::Waiting;
        };
        if una < probe.end_seq {
            return Verdict::Waiting;
        }
        let verdict = match (probe.is_retrans, duplicate || bare) {
            (false, _) | (true, true) => Verdict::Done,
            // Until more is acknowledged, the answer to the probe may still be in flight.
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
    fn the_result_of_a_probe() {
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
