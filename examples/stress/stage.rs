//! The state shared by all threads of a run, and its results.

use crate::arena::Arena;
use crate::arguments::Mode;
use crate::ends::Pool;
use crate::random::Random;
use crate::watch::Posts;
use crate::world::World;
use parking_lot::Mutex;
use sosplice::splice::{Options, Rate};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Faults that are kept; the first ones are most useful.
const MOST: usize = 20;

/// The faults found. The first one ends the run.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    found: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl Faults {
    pub(crate) fn report(&self, fault: String) {
        let mut found = self.found.lock();
        if found.len() < MOST {
            found.push(fault);
        }
        self.stop.store(true, Ordering::Release);
    }

    /// It is time to stop.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(crate) fn any(&self) -> bool {
        !self.found.lock().is_empty()
    }

    pub(crate) fn found(&self) -> Vec<String> {
        self.found.lock().clone()
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) seed: u64,
    pub(crate) dispatch: Mode,
    pub(crate) world: World,
    pub(crate) arena: Arena,
    /// A pool that was dropped at once, and the ends of its splices.
    pub(crate) guests: Arc<crate::ends::Ends>,
    pub(crate) guest_splices: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    /// Bytes that couriers have checked, and their trips.
    pub(crate) checked: AtomicU64,
    pub(crate) trips: AtomicU64,
    /// The longest time in microseconds without progress on a trip.
    pub(crate) longest_pause: AtomicU64,
    /// The longest trip in microseconds.
    pub(crate) longest_trip: AtomicU64,
    pub(crate) posts: Posts,
    pub(crate) faults: Arc<Faults>,
}

impl Stage {
    /// Any options for a splice in this pool.
    pub(crate) fn options(&self, random: &mut Random, pool: &Pool) -> Options {
        let slowest = NonZeroU64::MIN.saturating_add(200_000);
        Options::default()
            .limit(random.maybe(3, |random| random.size(1 << 20)))
            .idle(random.maybe(6, |random| random.millis(1..=300)))
            .lifetime(random.maybe(6, |random| random.millis(1..=500)))
            .forward_eof(random.one_in(3))
            .forward_reset(random.one_in(4))
            .lowat(random.maybe(4, |random| random.length(8192)).unwrap_or(0))
            .rate(random.maybe(6, |random| Rate {
                bytes_per_second: slowest.saturating_add(random.size(10_000_000)),
                burst: NonZeroU64::MIN.saturating_add(random.size(1 << 16)),
            }))
            .dispatch(self.dispatch.dispatch(random.one_in(2)))
            .pool(pool.pool.clone())
    }
}
