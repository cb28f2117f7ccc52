//! A queue of deadlines. Pure: time is an argument.
//!
//! Cancelling is lazy: stale items are dropped when they fire, or when [`insert`](Timers::insert) finds
//! that the queue has doubled and sweeps it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Below this length there is no sweep.
const SWEEP_FROM: usize = 64;

/// Items by deadline; equal deadlines in the order of insertion.
#[derive(Debug)]
pub(crate) struct Timers<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
    inserted: u64,
    sweep_at: usize,
}

#[derive(Debug)]
struct Entry<T> {
    at: Instant,
    number: u64,
    item: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Timers {
            heap: BinaryHeap::new(),
            inserted: 0,
            sweep_at: SWEEP_FROM,
        }
    }
}

impl<T> Timers<T> {
    /// Adds an item. `live` returns whether another item is not stale.
    pub(crate) fn insert(&mut self, at: Instant, item: T, live: impl Fn(&T) -> bool) {
        if self.heap.len() >= self.sweep_at {
            self.heap.retain(|Reverse(entry)| live(&entry.item));
            self.sweep_at = SWEEP_FROM.max(2 * self.heap.len());
        }
        self.inserted += 1;
        self.heap.push(Reverse(Entry {
            at,
            number: self.inserted,
            item,
        }));
    }

    /// The first deadline.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }

    /// Removes the first item, if its deadline has passed.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<(Instant, T)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| (entry.at, entry.item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};
    use std::time::Duration;

    #[test]
    fn in_order_of_deadlines_then_of_insertion() {
        let start = SystemClock.now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        for (ms, item) in [(5, 'c'), (1, 'a'), (5, 'd'), (2, 'b')] {
            timers.insert(at(ms), item, |_| true);
        }
        assert_eq!(timers.next(), Some(at(1)));
        assert_eq!(timers.pop(start), None);
        let fired = std::iter::from_fn(|| timers.pop(at(5)));
        let fired: String = fired.map(|(_, item)| item).collect();
        assert_eq!(fired, "abcd");
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn dead_items_are_swept() {
        let start = SystemClock.now();
        let mut timers = Timers::default();
        for number in 0..10_000 {
            timers.insert(start, number, |item| *item > number - 10);
            assert!(timers.heap.len() <= SWEEP_FROM);
        }
    }
}
