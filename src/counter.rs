//! A statistics counter.

use std::sync::atomic::{AtomicU64, Ordering};

/// A statistics counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn new(count: u64) -> Counter {
        Counter(AtomicU64::new(count))
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
