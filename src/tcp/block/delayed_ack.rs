//! Delayed acknowledgements (RFC 9293 3.8.6.3, RFC 5681 4.2).
//!
//! * Every second full segment is acknowledged at once, and so is a segment that fills a hole or leaves
//!   one.
//! * At the beginning of a connection every full segment is acknowledged at once: the sender is in slow
//!   start.
//! * The acknowledgement of less than a full segment is delayed if the last answer came in time, as in
//!   Linux; a delay without an answer ends that. Otherwise it waits for 0.5 ms, and so does that of a FIN: the
//!   answer, or the own FIN, often takes it along.
//!
//! Pure: time is an argument.

use crate::tcp::block::time::Instant;
use std::time::Duration;

/// Number of segments that are acknowledged at once at the beginning of a connection.
const QUICK: u8 = 16;
/// How long the acknowledgement of less than a full segment, or of a FIN, waits while it is not known whether
/// answers come in time: a program nearby has answered by then, and a sender that waits for the acknowledgement (RFC
/// 896) is hardly delayed.
pub(crate) const SOON: Duration = Duration::from_micros(500);

/// A received segment, as it concerns its acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// In-order data; `pushed`: it has PSH.
    InOrder { bytes: usize, pushed: bool },
    /// In-order data with a FIN, or a FIN alone, and this side has not ended its own stream.
    Fin { bytes: usize },
    /// It fills a hole, leaves one, is a duplicate, or ends the connection.
    Urgent,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct DelayedAck {
    /// The maximum delay; `None`: no delay.
    delay: Option<Duration>,
    /// Answers come in time.
    answered: bool,
    /// When data was last received.
    received_at: Option<Instant>,
    /// Since when an acknowledgement is delayed.
    waiting_since: Option<Instant>,
    /// Bytes received since the last acknowledgement.
    unacknowledged: usize,
    /// Number of further segments that are acknowledged at once.
    quick: u8,
    /// An acknowledgement is to be sent at once.
    now: bool,
}

impl DelayedAck {
    pub(crate) fn new(delay: Option<Duration>) -> DelayedAck {
        DelayedAck {
            delay,
            answered: false,
            received_at: None,
            waiting_since: None,
            unacknowledged: 0,
            quick: QUICK,
            now: false,
        }
    }

    /// Records a received segment; `full` is the payload of a full segment. Returns the deadline of the
    /// acknowledgement, if it is delayed.
    pub(crate) fn receive(
        &mut self,
        arrival: Arrival,
        full: usize,
        now: Instant,
    ) -> Option<Instant> {
        self.received_at = Some(now);
        let Some(delay) = self.delay else {
            self.now = true;
            return None;
        };
        let soon = SOON.min(delay);
        let waits = match arrival {
            Arrival::Urgent => None,
            Arrival::Fin { bytes } => {
                self.unacknowledged += bytes;
                (self.unacknowledged < full).then_some(soon)
            }
            Arrival::InOrder { bytes, pushed } => {
                self.unacknowledged += bytes;
                let part = self.unacknowledged < full;
                let one = self.unacknowledged < 2 * full && self.quick == 0 && !pushed;
                self.quick = self.quick.saturating_sub(1);
                match self.answered {
                    true => (part || one).then_some(delay),
                    false if part => Some(soon),
                    false => one.then_some(delay),
                }
            }
        };
        self.now |= waits.is_none();
        let waits = waits.filter(|_| !self.now)?;
        let since = *self.waiting_since.get_or_insert(now);
        Some(since + waits)
    }

    /// Requests an acknowledgement at once.
    pub(crate) fn demand(&mut self) {
        self.now = true;
    }

    pub(crate) fn is_due(&self) -> bool {
        self.now
    }

    /// A segment was sent, which acknowledges all received data.
    pub(crate) fn sent(&mut self, data: bool, now: Instant) {
        self.now = false;
        self.unacknowledged = 0;
        let since = self.waiting_since.take();
        let Some(delay) = self.delay else { return };
        let late = |since: Instant| now.saturating_duration_since(since) >= delay;
        if data {
            self.answered |= self.received_at.is_some_and(|at| !late(at));
        } else if since.is_some_and(late) {
            self.answered = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::block::time::start as any_time;

    const DELAY: Duration = Duration::from_millis(40);
    const FULL: usize = 1000;

    fn bytes(bytes: usize) -> Arrival {
        Arrival::InOrder {
            bytes,
            pushed: false,
        }
    }

    /// A connection whose answers come in time, after its first segments.
    fn answered() -> (DelayedAck, Instant) {
        let now = any_time();
        let mut ack = DelayedAck::new(Some(DELAY));
        for _ in 0..QUICK {
            assert_eq!(ack.receive(bytes(FULL), FULL, now), None);
            assert!(ack.is_due(), "slow start");
            ack.sent(true, now);
        }
        (ack, now)
    }

    #[test]
    fn acknowledgements_are_delayed_if_answers_are_in_time() {
        let (mut ack, now) = answered();
        assert_eq!(ack.receive(bytes(10), FULL, now), Some(now + DELAY));
        assert!(!ack.is_due());
        ack.sent(true, now + DELAY / 2);
        let later = now + DELAY;
        assert_eq!(ack.receive(bytes(10), FULL, later), Some(later + DELAY));
        assert_eq!(
            ack.receive(bytes(10), FULL, later + DELAY / 2),
            Some(later + DELAY),
            "since the first"
        );
    }

    #[test]
    fn no_acknowledgement_waits_for_longer_than_the_maximum() {
        let (now, most) = (any_time(), SOON / 2);
        for arrival in [bytes(10), Arrival::Fin { bytes: 10 }] {
            let mut ack = DelayedAck::new(Some(most));
            assert_eq!(ack.receive(arrival, FULL, now), Some(now + most));
        }
    }

    #[test]
    fn one_that_waited_in_vain_is_the_last() {
        let (mut ack, now) = answered();
        assert!(ack.receive(bytes(10), FULL, now).is_some());
        ack.sent(false, now + DELAY);
        let then = now + DELAY;
        assert_eq!(ack.receive(bytes(10), FULL, then), Some(then + SOON));
        // A late answer does not count.
        ack.sent(true, now + 2 * DELAY);
        let then = now + 2 * DELAY;
        assert_eq!(ack.receive(bytes(10), FULL, then), Some(then + SOON));
    }

    #[test]
    fn every_second_segment_is_acknowledged() {
        let (mut ack, now) = answered();
        for _ in 0..3 {
            assert!(ack.receive(bytes(FULL), FULL, now).is_some());
            assert_eq!(ack.receive(bytes(FULL), FULL, now), None);
            assert!(ack.is_due());
            ack.sent(false, now);
        }
        let pushed = Arrival::InOrder {
            bytes: FULL,
            pushed: true,
        };
        assert_eq!(ack.receive(pushed, FULL, now), None, "PSH");
    }

    #[test]
    fn urgent_acknowledgements_are_not_delayed() {
        let (mut ack, now) = answered();
        assert!(ack.receive(bytes(1), FULL, now).is_some());
        assert_eq!(ack.receive(Arrival::Urgent, FULL, now), None);
        assert!(ack.is_due());
        ack.sent(false, now);
        ack.demand();
        assert!(ack.is_due());
        let mut ack = DelayedAck::new(None);
        assert_eq!(ack.receive(bytes(1), FULL, now), None);
        assert!(ack.is_due(), "no delay");
    }
}
