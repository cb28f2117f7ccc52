//! How much memory the buffers of a stack's connections hold, and what a connection does when that is
//! too much (Linux's `tcp_mem`).
//!
//! Real memory counts (BSD's `sb_mbcnt`): `so_rcv`, `so_snd`, and what has arrived ahead of its turn.
//! Each connection keeps an [`Account`] of what it has told the [`Memory`] of the stack, and tells the
//! difference once in a service step.
//!
//! Beyond three quarters of the limit the stack is *pressed*, until half of it is free again. Then a
//! connection
//! * opens its window, as data is read, only so far that the window and what waits to be read come to a
//!   [floor](crate::sockbuf::SockBuf::ceiling); what the peer was promised before stays promised (RFC
//!   9293 3.8.6);
//! * keeps nothing that arrives ahead of its turn;
//! * lets its user, or a splice, fill `so_snd` only up to such a floor.
//!
//! Beyond the limit, data in order is dropped too, unless less than the floor waits to be read: so
//! much it was promised since. What was acknowledged is never dropped, acknowledgements always
//! count, and what leaves is not held up.
//!
//! So no connection waits for the end of the pressure: each goes on, a floor at a time, and what its
//! next service step finds opens the window again. Nobody has to be told, and no list is walked.
//!
//! No locks: atomic.

use super::counters::Counter;
use crate::sockbuf::SockBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What all connections of a stack hold. See the module.
#[derive(Debug)]
pub(crate) struct Memory {
    limit: usize,
    in_use: AtomicUsize,
    pressed: AtomicBool,
    /// Times that the pressure has begun.
    pub(crate) entered: Counter,
    /// Segments whose data was dropped for it.
    pub(crate) dropped: Counter,
}

impl Default for Memory {
    /// Without a limit.
    fn default() -> Memory {
        Memory::new(usize::MAX)
    }
}

/// What a connection takes of what arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum AcceptPolicy {
    #[default]
    Everything,
    /// Nothing that arrives ahead of its turn.
    InOrder,
    /// No data.
    Nothing,
}

impl Memory {
    pub(crate) fn new(limit: usize) -> Memory {
        Memory {
            limit,
            in_use: AtomicUsize::new(0),
            pressed: AtomicBool::new(false),
            entered: Counter::default(),
            dropped: Counter::default(),
        }
    }

    /// Bytes.
    pub(crate) fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }

    pub(crate) fn is_pressed(&self) -> bool {
        self.pressed.load(Ordering::Relaxed)
    }

    /// What a connection takes that has so many bytes to be read. Bytes, not memory: a splice that waits
    /// for its low-water mark waits for bytes, and they must come.
    pub(crate) fn accept_policy(&self, unread: usize, floor: usize) -> AcceptPolicy {
        if !self.is_pressed() {
            AcceptPolicy::Everything
        } else if self.in_use() < self.limit || unread < floor {
            AcceptPolicy::InOrder
        } else {
            AcceptPolicy::Nothing
        }
    }

    /// A connection holds `after` bytes instead of `before`.
    fn change(&self, before: u32, after: u32) {
        let (before, after) = (before as usize, after as usize);
        let all = if after >= before {
            let more = after - before;
            self.in_use.fetch_add(more, Ordering::Relaxed) + more
        } else {
            let less = before - after;
            self.in_use.fetch_sub(less, Ordering::Relaxed) - less
        };
        // Of two threads the later may write first. Then the next change, of whichever connection, puts
        // it right, and nobody has waited for that.
        if all > self.limit - self.limit / 4 {
            if !self.is_pressed() && !self.pressed.swap(true, Ordering::Relaxed) {
                self.entered.add(1);
            }
        } else if all <= self.limit / 2 && self.is_pressed() {
            self.pressed.store(false, Ordering::Relaxed);
        }
    }
}

/// What one connection holds, in bytes. More than 4 GiB counts as 4 GiB.
#[derive(Debug, Default)]
pub(crate) struct Account {
    rcv: u32,
    snd: u32,
    told: u32,
    /// Bytes in `so_rcv`, whatever memory they take.
    unread: u32,
}

fn clipped(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

impl Account {
    /// `so_rcv` is as it is now.
    pub(crate) fn set_rcv(&mut self, so_rcv: &SockBuf) {
        self.rcv = clipped(so_rcv.memory());
        self.unread = clipped(so_rcv.len());
    }

    /// `so_snd` holds so much.
    pub(crate) fn set_snd(&mut self, bytes: usize) {
        self.snd = clipped(bytes);
    }

    /// Bytes in `so_rcv` when it was last looked at.
    pub(crate) fn unread(&self) -> usize {
        self.unread as usize
    }

    /// Tells the stack, if there is something new. `ahead` is what has arrived ahead of its turn.
    pub(crate) fn tell(&mut self, ahead: usize, memory: &Memory) {
        let all = self.rcv.saturating_add(self.snd);
        let all = all.saturating_add(clipped(ahead));
        if all != self.told {
            memory.change(self.told, all);
            self.told = all;
        }
    }

    /// The connection holds nothing any more.
    pub(crate) fn close(&mut self, memory: &Memory) {
        *self = Account {
            told: self.told,
            ..Account::default()
        };
        self.tell(0, memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_begins_at_three_quarters_and_ends_at_a_half() {
        let memory = Memory::new(1000);
        let mut one = Account::default();
        let mut other = Account::default();
        let steps = [
            (0, false, 0),
            (750, false, 0),
            (751, true, 1),
            (2000, true, 1),
            (501, true, 1),
            (500, false, 1),
            (751, true, 2),
            (0, false, 2),
        ];
        other.tell(0, &memory);
        for (bytes, pressed, entered) in steps {
            one.rcv = clipped(bytes / 2);
            one.set_snd(bytes - bytes / 2);
            one.tell(0, &memory);
            assert_eq!(memory.in_use(), bytes);
            assert_eq!(
                (memory.is_pressed(), memory.entered.get()),
                (pressed, entered)
            );
        }
        one.rcv = 10;
        one.tell(5, &memory);
        other.set_snd(100);
        other.tell(0, &memory);
        assert_eq!(memory.in_use(), 115);
        one.close(&memory);
        assert_eq!(memory.in_use(), 100);
        one.close(&memory);
        other.close(&memory);
        assert_eq!(memory.in_use(), 0);
    }

    #[test]
    fn who_holds_less_than_the_floor_takes_text_beyond_the_limit_too() {
        let memory = Memory::new(1000);
        let mut account = Account::default();
        let mut accept_policy = |bytes, unread| {
            account.rcv = clipped(bytes);
            account.tell(0, &memory);
            memory.accept_policy(unread, 100)
        };
        assert_eq!(accept_policy(750, 750), AcceptPolicy::Everything);
        assert_eq!(accept_policy(999, 999), AcceptPolicy::InOrder);
        assert_eq!(accept_policy(1000, 100), AcceptPolicy::Nothing);
        assert_eq!(accept_policy(1000, 99), AcceptPolicy::InOrder);
    }

    #[test]
    fn without_a_limit_there_is_no_pressure() {
        let memory = Memory::default();
        let mut accounts = [(); 3].map(|()| Account::default());
        for account in &mut accounts {
            account.rcv = u32::MAX;
            account.tell(usize::MAX, &memory);
        }
        assert_eq!(memory.in_use(), 3 * u32::MAX as usize);
        assert!(!memory.is_pressed());
        accounts.iter_mut().for_each(|one| one.close(&memory));
        assert_eq!(memory.in_use(), 0);
    }
}
