//! Busy time of a thread, the time between waking and sleeping, and the turns of its loop.
//!
//! The time is one word, written by that thread alone when it wakes and when it goes to sleep, and read by any
//! thread. Asleep, it is the time that the thread has been awake so far. Awake, it is the present time
//! minus that: so a reader includes the present period, and counts none twice. No locks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Flag: the thread is awake. Nanoseconds have room in the other bits for 292 years.
const AWAKE: u64 = 1 << 63;

/// See the module.
#[derive(Debug)]
pub(crate) struct Busy {
    epoch: Instant,
    word: AtomicU64,
    turns: AtomicU64,
}

impl Busy {
    /// A thread that sleeps, or was not started yet. No later time may be before `epoch`.
    pub(crate) fn new(epoch: Instant) -> Busy {
        Busy {
            epoch,
            word: AtomicU64::new(0),
            turns: AtomicU64::new(0),
        }
    }

    fn nanos(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.epoch).as_nanos();
        u64::try_from(since).map_or(AWAKE - 1, |nanos| nanos.min(AWAKE - 1))
    }

    /// The thread is awake from now on, if it was not.
    pub(crate) fn wake(&self, now: Instant) {
        let word = self.word.load(Ordering::Relaxed);
        if word & AWAKE == 0 {
            let begin = self.nanos(now).saturating_sub(word);
            self.word.store(begin | AWAKE, Ordering::Relaxed);
        }
    }

    /// The thread is asleep from now on, or has ended.
    pub(crate) fn sleep(&self, now: Instant) {
        let time = self.time(now).as_nanos();
        let word = u64::try_from(time).unwrap_or(AWAKE - 1);
        self.word.store(word, Ordering::Relaxed);
    }

    /// The thread has completed a turn of its loop.
    pub(crate) fn turned(&self) {
        // A pool without threads of its own may be run by several.
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// Completed turns.
    pub(crate) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn is_asleep(&self) -> bool {
        self.word.load(Ordering::Relaxed) & AWAKE == 0
    }

    /// How long the thread has been awake until now.
    pub(crate) fn time(&self, now: Instant) -> Duration {
        let word = self.word.load(Ordering::Relaxed);
        Duration::from_nanos(match word & AWAKE {
            0 => word,
            _ => self.nanos(now).saturating_sub(word & !AWAKE),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    #[test]
    fn only_waking_time_counts() {
        let epoch = SystemClock.now();
        let at = |seconds| epoch + Duration::from_secs(seconds);
        let busy = Busy::new(epoch);
        let seconds = |now| busy.time(at(now)).as_secs();
        assert_eq!(seconds(100), 0, "never started");
        busy.wake(at(100));
        assert_eq!([seconds(100), seconds(103)], [0, 3], "still awake");
        busy.wake(at(103));
        busy.sleep(at(105));
        assert_eq!([seconds(105), seconds(500)], [5, 5]);
        busy.sleep(at(500));
        busy.wake(at(1000));
        assert_eq!([seconds(1000), seconds(1007)], [5, 12]);
        // A reader with an earlier time.
        assert_eq!(seconds(0), 0);
        busy.sleep(at(1010));
        assert_eq!(seconds(2000), 15);
    }
}
