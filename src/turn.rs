//! Turns: work that any thread may have to do, and one thread at a time does.

use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::{Protection, intact};

/// One thread at a time does a piece of work. Who comes meanwhile leaves word, and the work is done
/// once more (model: `turn::loom`).
#[derive(Debug, Default)]
pub(crate) struct Turn(AtomicU8);

impl Turn {
    const FREE: u8 = 0;
    const TAKEN: u8 = 1;
    const WANTED: u8 = 2;

    pub(crate) fn take(&self, work: impl Fn()) {
        if self.0.swap(Turn::WANTED, Ordering::AcqRel) != Turn::FREE {
            return;
        }
        loop {
            // A swap and no store: what the others did before they left word is seen by the work.
            if intact(Protection::SeeWord) {
                self.0.swap(Turn::TAKEN, Ordering::AcqRel);
            } else {
                self.0.store(Turn::TAKEN, Ordering::Release);
            }
            work();
            let left = self.0.compare_exchange(
                Turn::TAKEN,
                Turn::FREE,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            if left.is_ok() || !intact(Protection::LeaveWord) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod loom;
