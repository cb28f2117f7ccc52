//! Whether drivers and workers make progress, for a watchdog.
//!
//! Each of these threads counts the turns of its loop (`busy`). A probe notes the counts and wakes the threads, so that
//! also one without work completes a turn; one that waits for a lock, or is in a callback that does not return, does not.
//! No locks.

use crate::busy::Busy;
use std::sync::Arc;

/// Drivers ([`Stack::probe`](crate::Stack::probe)) or workers ([`SplicePool::probe`](crate::SplicePool::probe)) that
/// were asked for a sign of life.
///
/// A watchdog asks, and looks after a while which of them are still [`silent`](Self::silent).
#[derive(Debug, Clone)]
#[must_use = "the answers are in it"]
pub struct Probe(Vec<(Arc<Busy>, u64)>);

impl Probe {
    /// The caller wakes the threads afterwards.
    pub(crate) fn new<'a>(threads: impl IntoIterator<Item = &'a Arc<Busy>>) -> Probe {
        let threads = threads.into_iter();
        Probe(threads.map(|one| (one.clone(), one.turns())).collect())
    }

    /// The numbers of the threads that have completed no turn since they were asked, counted from 0: receive queues of
    /// the stack, or workers of the pool. One that has ended stays silent.
    ///
    /// A thread has answered when it gets through its loop once, which takes milliseconds when it is busy. It does not
    /// if a callback of the program (a hook, an [upcall](crate::protocol::Upcall), one of
    /// [`Splice::on_end`](crate::Splice::on_end) or [`TcpListener::on_accept`](crate::TcpListener::on_accept)) does not
    /// return.
    ///
    /// ```
    /// use sosplice::{Stack, link::memory};
    /// let (link, _other) = memory::pair(memory::Config::default());
    /// let builder = Stack::builder(link).address("10.0.0.1/24".parse()?);
    /// let (stack, mut driver) = builder.build_with_driver()?;
    /// let probe = stack.probe();
    /// assert_eq!(probe.silent(), [0], "the driver is not called");
    /// driver.poll()?;
    /// assert!(probe.silent().is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn silent(&self) -> Vec<usize> {
        let threads = self.0.iter().enumerate();
        let silent = threads.filter(|(_, (one, turns))| one.turns() == *turns);
        silent.map(|(number, _)| number).collect()
    }
}
