//! The size of the receive window: small at first, then twice the bytes read in a round trip (dynamic
//! right-sizing, as in Linux), and doubled when half of it is unread, since the reader may wait for
//! more. Limited by the buffer's size.
//!
//! So an idle connection advertises little, and a fast one is not limited by its window. The window
//! only grows, up to the buffer's size. Pure: time is an argument.

use crate::tcp::block::time::Instant;
use std::time::Duration;

/// The default initial window: the largest value of a SYN's window field (RFC 7323 2.2).
pub(crate) const INITIAL: usize = 65_535;
/// The assumed RTT before the first sample.
const UNKNOWN: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug)]
pub(crate) struct AutoTune {
    /// RCV.BUFF: `window() <= rcv_buff`.
    rcv_buff: u64,
    window: u64,
    path_mss: usize,
    /// The position read at the beginning of the present round, and its time.
    round: (u64, Instant),
    /// Maximum bytes read in a round.
    max_read: u64,
}

impl AutoTune {
    pub(crate) fn new(
        (capacity, initial): (usize, usize),
        path_mss: usize,
        now: Instant,
    ) -> AutoTune {
        AutoTune {
            rcv_buff: capacity as u64,
            window: initial as u64,
            path_mss,
            round: (0, now),
            max_read: initial as u64 / 4,
        }
    }

    /// Window plus unread bytes.
    pub(crate) fn window(&self) -> u64 {
        self.window.min(self.rcv_buff)
    }

    /// The MSS of our link.
    pub(crate) fn path_mss(&self) -> usize {
        self.path_mss
    }

    pub(crate) fn set_capacity(&mut self, capacity: u64) {
        self.rcv_buff = capacity;
    }

    /// Records the number of unread bytes.
    pub(crate) fn waits(&mut self, unread: u64) {
        if 2 * unread > self.window && self.window < self.rcv_buff {
            self.window = (2 * self.window).min(self.rcv_buff);
        }
    }

    /// The reader has read all bytes up to a position.
    pub(crate) fn read(&mut self, position: u64, rtt: Option<Duration>, now: Instant) {
        let (from, since) = self.round;
        if now.saturating_duration_since(since) < rtt.unwrap_or(UNKNOWN) {
            return;
        }
        self.round = (position, now);
        let taken = position - from;
        if taken <= self.max_read {
            return;
        }
        // Twice, since the sender may double its rate in a round trip, and some more meanwhile.
        let room = 2 * taken + 16 * self.path_mss as u64;
        let growth = room / self.max_read.max(1) * (taken - self.max_read);
        self.max_read = taken;
        self.window = self
            .window
            .max(room + 2 * growth)
            .min(self.rcv_buff.max(self.window));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::block::time::start as any_time;

    #[test]
    fn the_window_stays_ahead_of_a_sender_that_doubles() {
        let start = any_time();
        let rtt = Duration::from_millis(50);
        let mut tune = AutoTune::new((4_000_000, INITIAL), 1448, start);
        assert_eq!(tune.window(), INITIAL as u64);
        let (mut position, mut flight, mut now) = (0, 14_480, start);
        while flight < 1_800_000 {
            assert!(tune.window() >= flight, "{} for {flight}", tune.window());
            now += rtt;
            position += flight;
            tune.read(position, Some(rtt), now);
            flight *= 2;
        }
        for _ in 0..100 {
            now += rtt;
            position += flight;
            tune.read(position, Some(rtt), now);
        }
        assert_eq!(tune.window(), 4_000_000);
        tune.set_capacity(10_000);
        assert_eq!(tune.window(), 10_000);
    }

    /// Otherwise a splice with a low-water mark beyond the window would wait for ever.
    #[test]
    fn a_reader_that_waits_for_much_gets_it() {
        let mut tune = AutoTune::new((1_000_000, INITIAL), 1448, any_time());
        let mut unread = 0;
        while unread < tune.window() {
            unread += 10_000;
            tune.waits(unread);
        }
        assert_eq!(tune.window(), 1_000_000);
    }

    #[test]
    fn a_slow_reader_gets_no_larger_window() {
        let start = any_time();
        let rtt = Duration::from_millis(50);
        let mut tune = AutoTune::new((4_000_000, INITIAL), 1448, start);
        for round in 1..1000 {
            tune.read(u64::from(round) * 10_000, Some(rtt), start + rtt * round);
        }
        assert_eq!(tune.window(), INITIAL as u64);
    }
}
