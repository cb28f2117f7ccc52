//! The timers of a connection in one table; the earliest is the connection's deadline.
//!
//! Setting a timer replaces its former time. Users: `Handshake`, `Retransmit`, `Probe` and `Reorder`
//! loss recovery, `Persist` the sender, `DelayedAck` the receiver, `Pace` the pacer. Pure: time is an
//! argument.

use crate::tcp::block::time::Instant;

/// The kinds of timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Timer {
    /// Retransmission of SYN or SYN|ACK (RFC 6298).
    Handshake,
    /// PTO of the tail loss probe (RFC 8985 7.2). Listed before `Retransmit`, which it replaces while
    /// it is set.
    Probe,
    /// RTO (RFC 6298 5).
    Retransmit,
    /// RACK reordering timer (RFC 8985 6.2).
    Reorder,
    /// Zero-window probe, or the override of silly-window avoidance (RFC 9293 3.8.6.1, 3.8.6.2.1).
    Persist,
    /// Delayed acknowledgement (RFC 9293 3.8.6.3).
    DelayedAck,
    /// The next burst may leave.
    Pace,
}

impl Timer {
    pub(crate) const COUNT: usize = 7;

    pub(crate) const ALL: [Timer; Timer::COUNT] = [
        Timer::Handshake,
        Timer::Probe,
        Timer::Retransmit,
        Timer::Reorder,
        Timer::Persist,
        Timer::DelayedAck,
        Timer::Pace,
    ];
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timers {
    at: [Option<Instant>; Timer::COUNT],
}

impl Timers {
    pub(crate) fn set(&mut self, timer: Timer, at: Instant) {
        self.at[timer as usize] = Some(at);
    }

    pub(crate) fn stop(&mut self, timer: Timer) {
        self.at[timer as usize] = None;
    }

    pub(crate) fn get(&self, timer: Timer) -> Option<Instant> {
        self.at[timer as usize]
    }

    pub(crate) fn is_set(&self, timer: Timer) -> bool {
        self.get(timer).is_some()
    }

    /// The earliest.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.at.iter().flatten().min().copied()
    }

    /// Stops the timer if it is due.
    pub(crate) fn take_due(&mut self, timer: Timer, now: Instant) -> bool {
        self.at[timer as usize].take_if(|at| *at <= now).is_some()
    }

    pub(crate) fn clear(&mut self) {
        *self = Timers::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::block::time::start as any_time;
    use std::time::Duration;

    #[test]
    fn the_earliest_is_the_deadline() {
        let start = any_time();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut timers = Timers::default();
        assert_eq!(timers.next(), None);
        for (place, timer) in (0..).zip(Timer::ALL) {
            assert_eq!(timer as usize, place);
            timers.set(timer, at(10 + place as u64));
        }
        assert_eq!(timers.next(), Some(at(10)));
        assert!(!timers.take_due(Timer::Handshake, at(9)));
        assert!(timers.take_due(Timer::Handshake, at(10)));
        assert!(!timers.take_due(Timer::Handshake, at(10)));
        assert_eq!(timers.next(), Some(at(11)));
        timers.stop(Timer::Probe);
        assert!(!timers.is_set(Timer::Probe) && timers.is_set(Timer::Retransmit));
        timers.clear();
        assert_eq!(timers.next(), None);
    }
}
