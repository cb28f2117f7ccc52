//! Memory of the buffers of a stack's connections, and memory pressure (Linux's `tcp_mem`).
//!
//! Real memory counts (BSD's `sb_mbcnt`): `so_rcv`, `so_snd`, and out-of-order data. Each connection
//! has an [`Account`] of its share in the [`Memory`] of the stack, which it updates once in a service
//! step.
//!
//! Beyond three quarters of the limit the stack is *pressed*, until half of it is free again. Then a
//! connection
//! * opens its window, as data is read, only so far that window and unread data together reach a
//!   [floor](crate::sockbuf::SockBuf::ceiling); a window that was advertised before is not taken back
//!   (RFC 9293 3.8.6);
//! * drops out-of-order data;
//! * lets writers and splices fill `so_snd` only up to such a floor;
//! * wakes its reader or splice, whose low-water mark is now below the floor: bytes that waited for more leave, where
//!   more would be refused.
//!
//! Beyond the limit, in-order data is dropped too, unless less than the floor is unread: that much may
//! have been advertised since. Acknowledged data is never dropped, acknowledgements are always
//! processed, and sending is not delayed.
//!
//! So no connection waits for the end of the pressure: each continues, a floor at a time, and its next
//! service step opens the window again. No notification and no list of connections is needed.
//!
//! No locks: atomic.

use super::counters::Counter;
use crate::sockbuf::SockBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Memory of all connections of a stack. See the module.
#[derive(Debug)]
pub(crate) struct Memory {
    limit: usize,
    in_use: AtomicUsize,
    pressed: AtomicBool,
    /// Number of times that the pressure began.
    pub(crate) entered: Counter,
    /// Segments whose data was dropped because of it.
    pub(crate) dropped: Counter,
}

impl Default for Memory {
    /// Without a limit.
    fn default() -> Memory {
        Memory::new(usize::MAX)
    }
}

/// The data that a connection accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum AcceptPolicy {
    #[default]
    Everything,
    /// In-order data only.
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

    /// Memory in use, in bytes.
    pub(crate) fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }

    pub(crate) fn is_pressed(&self) -> bool {
        self.pressed.load(Ordering::Relaxed)
    }

    /// The policy for a connection with this many unread bytes. Bytes, not memory: a splice may wait
    /// for a low-water mark in bytes, which must be reachable.
    pub(crate) fn accept_policy(&self, unread: usize, floor: usize) -> AcceptPolicy {
        if !self.is_pressed() {
            AcceptPolicy::Everything
        } else if self.in_use() < self.limit || unread < floor {
            AcceptPolicy::InOrder
        } else {
            AcceptPolicy::Nothing
        }
    }

    /// Whether there is none left.
    pub(crate) fn is_used_up(&self) -> bool {
        self.is_pressed() && self.in_use() >= self.limit
    }

    /// A connection, or another socket, holds `after` bytes instead of `before`.
    pub(crate) fn change(&self, before: usize, after: usize) {
        let all = if after >= before {
            let more = after - before;
            self.in_use.fetch_add(more, Ordering::Relaxed) + more
        } else {
            let less = before - after;
            self.in_use.fetch_sub(less, Ordering::Relaxed) - less
        };
        // Two threads may write in the wrong order. The next change of any connection corrects that.
        if all > self.limit - self.limit / 4 {
            if !self.is_pressed() && !self.pressed.swap(true, Ordering::Relaxed) {
                self.entered.add(1);
            }
        } else if all <= self.limit / 2 && self.is_pressed() {
            self.pressed.store(false, Ordering::Relaxed);
        }
    }
}

/// The memory of one connection in bytes. More than 4 GiB counts as 4 GiB.
#[derive(Debug, Default)]
pub(crate) struct Account {
    rcv: u32,
    snd: u32,
    reported: u32,
    /// Bytes in `so_rcv`, as opposed to their memory.
    unread: u32,
}

fn clipped(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

impl Account {
    /// Records the present `so_rcv`.
    pub(crate) fn set_rcv(&mut self, so_rcv: &SockBuf) {
        self.rcv = clipped(so_rcv.memory());
        self.unread = clipped(so_rcv.len());
    }

    /// Records the memory of `so_snd`.
    pub(crate) fn set_snd(&mut self, bytes: usize) {
        self.snd = clipped(bytes);
    }

    /// Bytes in `so_rcv` at the latest record.
    pub(crate) fn unread(&self) -> usize {
        self.unread as usize
    }

    /// Updates the stack's sum, if there is a change. `out_of_order` is the memory of out-of-order
    /// data.
    pub(crate) fn update(&mut self, out_of_order: usize, memory: &Memory) {
        let all = self.rcv.saturating_add(self.snd);
        let all = all.saturating_add(clipped(out_of_order));
        if all != self.reported {
            memory.change(self.reported as usize, all as usize);
            self.reported = all;
        }
    }

    /// The connection has ended and holds no memory.
    pub(crate) fn close(&mut self, memory: &Memory) {
        *self = Account {
            reported: self.reported,
            ..Account::default()
        };
        self.update(0, memory);
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
        other.update(0, &memory);
        for (bytes, pressed, entered) in steps {
            one.rcv = clipped(bytes / 2);
            one.set_snd(bytes - bytes / 2);
            one.update(0, &memory);
            assert_eq!(memory.in_use(), bytes);
            assert_eq!(
                (memory.is_pressed(), memory.entered.get()),
                (pressed, entered)
            );
        }
        one.rcv = 10;
        one.update(5, &memory);
        other.set_snd(100);
        other.update(0, &memory);
        assert_eq!(memory.in_use(), 115);
        one.close(&memory);
        assert_eq!(memory.in_use(), 100);
        one.close(&memory);
        other.close(&memory);
        assert_eq!(memory.in_use(), 0);
    }

    #[test]
    fn a_connection_below_the_floor_accepts_data_beyond_the_limit() {
        let memory = Memory::new(1000);
        let mut account = Account::default();
        let mut accept_policy = |bytes, unread| {
            account.rcv = clipped(bytes);
            account.update(0, &memory);
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
            account.update(usize::MAX, &memory);
        }
        assert_eq!(memory.in_use(), 3 * u32::MAX as usize);
        assert!(!memory.is_pressed());
        accounts.iter_mut().for_each(|one| one.close(&memory));
        assert_eq!(memory.in_use(), 0);
    }
}
