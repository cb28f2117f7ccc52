//! Clocks.
//!
//! Pools and stacks are given a [`Clock`]; pure modules take the time as an argument. With the clock of
//! a simulator no thread of this crate waits for real time.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// A source of monotonic time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The time now. Never decreases.
    fn now(&self) -> Instant;
}

/// The system's monotonic clock.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::exhaustive_structs, reason = "it has no state")]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is where time enters the crate"
    )]
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// The system's clock, shared.
pub fn system() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}
