//! Whether an acknowledgement waits for an answer that it can ride on (RFC 9293 3.8.6.3).
//!
//! It does where the last one found an answer in time, as in Linux: two sides that talk in turns then
//! send half as many segments, and nobody else waits. A connection begins with acknowledging at once;
//! text that is sent soon behind text that was received has it wait from then on, and one that has
//! waited in vain ends that. Whatever fills a segment is acknowledged at once, and so is what
//! fills a hole (RFC 5681 4.2), or ends the stream. Pure: time is an argument.

use std::time::{Duration, Instant};

/// See the module.
#[derive(Debug)]
pub(super) struct AckPolicy {
    /// How long an acknowledgement may wait. `None`: none does.
    delay: Option<Duration>,
    /// Answers come in time.
    answered: bool,
    /// When text was last received.
    received_at: Option<Instant>,
    /// An acknowledgement waits since then.
    waiting_since: Option<Instant>,
    /// The engine's timer for it may run.
    timer: bool,
}

/// What is received, as far as its acknowledgement is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Text {
    /// Less than a segment takes.
    Part,
    /// A segment, or more.
    Full,
    /// It fills a hole, or is the last.
    Urgent,
}

/// How the engine is to acknowledge what it is fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Manner {
    /// The engine's delay.
    pub(super) delay: Option<Duration>,
    /// An earlier one waits, and this one must not: an answer is to be drawn.
    pub(super) draw: bool,
}

impl AckPolicy {
    pub(super) fn new(delay: Option<Duration>) -> AckPolicy {
        AckPolicy {
            delay,
            answered: false,
            received_at: None,
            waiting_since: None,
            timer: false,
        }
    }

    /// Text is about to be fed, or the end of it.
    pub(super) fn receive(&mut self, text: Text, now: Instant) -> Manner {
        self.received_at = Some(now);
        if text == Text::Part && self.answered && self.delay.is_some() {
            self.timer = true;
            self.waiting_since.get_or_insert(now);
        }
        Manner {
            // Where its timer runs already, the engine decides by how much has come.
            delay: self.delay.filter(|_| self.timer),
            draw: self.timer && text == Text::Urgent,
        }
    }

    /// A segment has left, and what it acknowledges is all that was received.
    pub(super) fn sent(&mut self, text: bool, now: Instant) {
        let Some(delay) = self.delay else { return };
        let late = |since: Instant| now.saturating_duration_since(since) >= delay;
        if text {
            self.answered |= self.received_at.is_some_and(|at| !late(at));
        } else if self.waiting_since.is_some_and(late) {
            self.answered = false;
        }
        self.waiting_since = None;
    }

    /// The engine has emitted a segment by itself, which stops its timer.
    pub(super) fn settled(&mut self) {
        self.timer = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    const DELAY: Duration = Duration::from_millis(40);
    const AT_ONCE: Manner = Manner {
        delay: None,
        draw: false,
    };
    const LATER: Manner = Manner {
        delay: Some(DELAY),
        draw: false,
    };

    fn answered() -> (AckPolicy, Instant) {
        let now = SystemClock.now();
        let mut policy = AckPolicy::new(Some(DELAY));
        assert_eq!(
            policy.receive(Text::Part, now),
            AT_ONCE,
            "nothing is known yet"
        );
        policy.sent(true, now);
        policy.settled();
        (policy, now)
    }

    #[test]
    fn it_waits_where_answers_come() {
        let (mut policy, now) = answered();
        assert_eq!(policy.receive(Text::Part, now), LATER);
        policy.sent(true, now + DELAY / 2);
        policy.settled();
        assert_eq!(policy.receive(Text::Part, now + DELAY), LATER);
    }

    #[test]
    fn one_that_waited_in_vain_is_the_last() {
        let (mut policy, now) = answered();
        assert_eq!(policy.receive(Text::Part, now), LATER);
        policy.sent(false, now + DELAY);
        policy.settled();
        assert_eq!(policy.receive(Text::Part, now + DELAY), AT_ONCE);
        // An answer that comes late is none.
        policy.sent(true, now + 2 * DELAY);
        assert_eq!(policy.receive(Text::Part, now + 2 * DELAY), AT_ONCE);
    }

    #[test]
    fn a_window_update_is_no_sign_of_waiting_in_vain() {
        let (mut policy, now) = answered();
        assert_eq!(policy.receive(Text::Part, now), LATER);
        policy.sent(false, now + DELAY / 2);
        policy.settled();
        assert_eq!(policy.receive(Text::Part, now + DELAY), LATER);
    }

    #[test]
    fn what_must_not_wait_does_not() {
        let (mut policy, now) = answered();
        assert_eq!(policy.receive(Text::Full, now), AT_ONCE);
        assert_eq!(policy.receive(Text::Urgent, now), AT_ONCE);
        assert_eq!(policy.receive(Text::Part, now), LATER);
        // The timer of the one before runs in the engine.
        let drawn = Manner {
            draw: true,
            ..LATER
        };
        assert_eq!(policy.receive(Text::Full, now), LATER, "the engine counts");
        assert_eq!(policy.receive(Text::Urgent, now), drawn);
    }

    #[test]
    fn without_a_delay_nothing_waits() {
        let now = SystemClock.now();
        let mut policy = AckPolicy::new(None);
        for _ in 0..3 {
            assert_eq!(policy.receive(Text::Part, now), AT_ONCE);
            policy.sent(true, now);
            policy.settled();
        }
    }
}
