//! Synchronisation: locks, condition variables, some atomics, the channel of the workers, threads and
//! thread-local data.
//!
//! Normally these are the ones of `std`, `parking_lot` and `crossbeam-channel`. With `--cfg
//! sosplice_loom` they are [loom](https://docs.rs/loom)'s, which runs a test once for each interleaving
//! of its threads (`.ci/loom`); the modules named `loom` have these tests. The other modules do not
//! depend on the choice. (The cfg has a name of the crate's own, since loom's would apply to the
//! dependencies too.)
//!
//! Not modelled:
//!
//! * `Arc` and `Weak` are `std`'s, since loom's support neither `dyn` nor weak references. loom does
//!   not see that an upgrade and the last drop depend on each other, so a model keeps a reference to
//!   objects that its threads may drop.
//! * Statistics, options and numbers of sockets are `std`'s atomics, since no thread waits for them.
//! * Free frames (rank 6): their lock is held while some are moved and never while another is taken.
//!   There are no magazines.
//! * Time does not advance: a wait with a deadline lasts until it is notified.
//!
//! A model must fail without the [`Protection`] that it is about.

#[cfg(not(sosplice_loom))]
mod real;
#[cfg(not(sosplice_loom))]
pub(crate) use real::*;

#[cfg(sosplice_loom)]
mod modelled;
#[cfg(sosplice_loom)]
pub(crate) use modelled::*;

#[cfg(test)]
pub(crate) mod model;

/// A rule that protects against harmful interleavings.
///
/// The code that implements a rule checks [`intact`]; outside models that is a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protection {
    /// A wake-up during a pass is recorded.
    Rescan,
    /// A pass that finds no room says that it waits for it while no room can be made.
    WantsFirst,
    /// A pass moves bytes only while its splice is attached to the buffers.
    OnBuffers,
    /// Waiters for the end are notified after the last pass.
    LastPass,
    /// A thread that ends a splice checks, with its buffers locked, that it is still attached.
    OneEnds,
    /// Threads that sleep on a socket are woken when its splice ends.
    WakeSleepers,
    /// A splice is attached to both buffers at once.
    BothAtOnce,
    /// A timer ends only the splice that it was armed for.
    Identity,
    /// The idle time is checked while no byte can move.
    DueUnderLocks,
    /// A forwarded end of file closes the sink before the end is notified.
    EofFirst,
    /// Closing a pool wakes its workers.
    LastLook,
    /// Closing a pool ends its splices.
    LastEnd,
    /// Closing a pool notifies the waiters in its queues.
    LastWaiters,
    /// An end that has failed is marked before it is closed.
    FailureFirst,
    /// A connection is released before its backlog.
    FreeFirst,
    /// A driver that postpones a service step sets its work bit.
    Owed,
    /// A connection is registered as half-open before it is visible.
    HalfOpenFirst,
    /// A driver marks itself asleep before it checks for expiring records and for looped frames.
    SleepFirst,
    /// Work requested meanwhile is done by the thread whose turn it is.
    LeaveWord,
    /// The thread whose turn it is sees the changes made before a request.
    SeeWord,
    /// The service of an adopted socket sees the changes made before a request.
    #[allow(dead_code, reason = "a module that is optional uses it")]
    SeeRequest,
    /// A poller's descriptor is cleared under the lock of its list.
    ClearLocked,
}
