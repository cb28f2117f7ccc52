//! What threads meet at: locks, condition variables, some atomics, the channel of the workers,
//! threads and what belongs to one.
//!
//! Normally these are the ones of `std`, `parking_lot` and `crossbeam-channel`. With
//! `--cfg sosplice_loom` they are [loom](https://docs.rs/loom)'s, which runs a test once for each way
//! in which its threads can interleave (`.ci/loom`); the modules named `loom` have these tests. No other
//! module knows which they are. (The name of the cfg is the crate's own: that of loom itself would
//! reach the dependencies too.)
//!
//! Not modelled:
//!
//! * `Arc` and `Weak` are `std`'s, for loom's know neither `dyn` nor weak references. loom does not
//!   see that an upgrade and the last drop depend on each other, so a model keeps a reference to what
//!   its threads may end.
//! * Statistics, options and numbers of sockets are `std`'s atomics: nobody waits for them.
//! * Free frames (rank 6): their lock is held while some are moved and never
//!   while another is taken. No thread keeps any for itself.
//! * Time stands still: what waits until a deadline waits until it is notified.
//!
//! [`Protection`] is what a model takes away to see that it would notice. Locks: all of them.

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

/// What keeps some interleaving from doing harm, by the rule that it implements.
///
/// Code asks [`intact`] where it does the rule's work; outside models the answer is a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protection {
    /// A wake-up during a pass is remembered.
    Rescan,
    /// A pass moves bytes only while its splice is on the buffers.
    OnBuffers,
    /// Who waits for the end is told after the last pass.
    LastPass,
    /// Who ends a splice looks, with its buffers locked, whether it is still there.
    OneEnds,
    /// Who sleeps on a socket is woken when its splice ends.
    WakeSleepers,
    /// A splice is put on both buffers at once.
    BothAtOnce,
    /// What a timer ends is the splice that it was armed for.
    Identity,
    /// Whether an idle time is over is asked when no byte can move.
    DueUnderLocks,
    /// A forwarded end of file closes the sink before anybody hears of the end.
    EofFirst,
    /// A pool that is closed wakes its workers.
    LastLook,
    /// A pool that is closed ends its splices.
    LastEnd,
    /// A pool that is closed leaves nobody in its queues who waits for an end.
    LastWaiters,
    /// An end that has failed says so before it is closed.
    FailureFirst,
    /// A connection is free before its backlog is.
    FreeFirst,
    /// A driver that leaves a service step to others leaves word of it.
    Owed,
    /// A connection has its place among the half-open ones before it can be found.
    HalfOpenFirst,
    /// A driver says that it falls asleep before it looks what there is to forget, and when, and what its
    /// stack has sent to itself.
    SleepFirst,
    /// Work that came meanwhile is done by the thread whose turn it is.
    LeaveWord,
    /// Whose turn it is sees what was done before word was left.
    SeeWord,
}
