//! The states of a splice. Pure.
//!
//! | state | meaning |
//! |---|---|
//! | `Idle(reason)` | no work until the wake-up that the reason waits for, or until either side closes or fails |
//! | `Queued` | a pass is to run: on a worker's queue, on a run list, or the first one in the caller |
//! | `Running` | a pass runs; `rescan`: a wake-up came meanwhile, so it must not go idle |
//! | `Closing` | detached from both buffers, while its last pass still notifies the protocols |
//! | `Ended` | detached from both buffers, no pass runs; late wake-ups, queue entries and timers do nothing |
//!
//! There is no state for the set-up: the splice is attached to both buffers with both locked, and
//! starts as `Queued` for its first pass. Ending a splice does not wait for a pass: the splice is
//! detached with both buffers locked, and a pass moves bytes only while it is attached, so afterwards
//! no bytes are moved and the byte count is final.

use crate::protocol::Wakeup;
use crate::sync::{Protection, intact};

#[cfg(test)]
mod model;

/// Why a splice is idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reason {
    /// The source is empty, or has fewer bytes than the low-water mark.
    NoData,
    /// The sink has no room, or is not connected yet.
    NoRoom,
    /// The rate allows no bytes now.
    Rate,
}

/// The state of a splice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum State {
    Idle(Reason),
    Queued,
    Running { rescan: bool },
    Closing,
    Ended,
}

/// An event for a splice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Event {
    /// One of its buffers has changed.
    Wake(Wakeup),
    /// The rate allows bytes again.
    Refill,
    /// A thread starts a pass.
    Start,
    /// The pass has used up its quantum.
    DoneMore,
    /// The pass has stopped for this reason.
    DoneIdle(Reason),
    /// It was detached from both buffers.
    Detach,
}

/// The action for an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Action {
    Nothing,
    /// Queue a pass.
    Enqueue,
    /// Run the pass now.
    Run,
    /// It has ended: notify the waiting threads and callbacks.
    Complete,
    /// The event is impossible in this state.
    Invalid,
}

/// The transition table.
pub(super) fn step(state: State, event: Event) -> (State, Action) {
    match state {
        State::Idle(reason) => idle(reason, event),
        State::Queued => queued(event),
        State::Running { rescan } => running(rescan, event),
        State::Closing => closing(event),
        State::Ended => ended(event),
    }
}

fn idle(reason: Reason, event: Event) -> (State, Action) {
    let stay = State::Idle(reason);
    match (event, reason) {
        (Event::Wake(Wakeup::Data), Reason::NoData)
        | (Event::Wake(Wakeup::Space), Reason::NoRoom)
        | (Event::Refill, Reason::Rate)
        | (Event::Wake(Wakeup::RcvClosed | Wakeup::SndClosed | Wakeup::Failed), _) => {
            (State::Queued, Action::Enqueue)
        }
        (Event::Wake(Wakeup::Data), Reason::NoRoom | Reason::Rate)
        | (Event::Wake(Wakeup::Space), Reason::NoData | Reason::Rate)
        | (Event::Refill, Reason::NoData | Reason::NoRoom) => (stay, Action::Nothing),
        (Event::Detach, _) => (State::Ended, Action::Complete),
        (Event::Start | Event::DoneMore | Event::DoneIdle(_), _) => (stay, Action::Invalid),
    }
}

fn queued(event: Event) -> (State, Action) {
    match event {
        Event::Wake(_) | Event::Refill => (State::Queued, Action::Nothing),
        Event::Start => (State::Running { rescan: false }, Action::Run),
        Event::Detach => (State::Ended, Action::Complete),
        Event::DoneMore | Event::DoneIdle(_) => (State::Queued, Action::Invalid),
    }
}

fn running(rescan: bool, event: Event) -> (State, Action) {
    match event {
        Event::Wake(_) | Event::Refill => {
            let rescan = intact(Protection::Rescan);
            (State::Running { rescan }, Action::Nothing)
        }
        Event::DoneMore => (State::Queued, Action::Enqueue),
        Event::DoneIdle(_) if rescan => (State::Queued, Action::Enqueue),
        Event::DoneIdle(reason) => (State::Idle(reason), Action::Nothing),
        Event::Detach => (State::Closing, Action::Nothing),
        Event::Start => (State::Running { rescan }, Action::Invalid),
    }
}

fn closing(event: Event) -> (State, Action) {
    match event {
        Event::Wake(_) | Event::Refill => (State::Closing, Action::Nothing),
        Event::DoneMore | Event::DoneIdle(_) => (State::Ended, Action::Complete),
        Event::Start | Event::Detach => (State::Closing, Action::Invalid),
    }
}

fn ended(event: Event) -> (State, Action) {
    match event {
        Event::Wake(_) | Event::Refill | Event::Start => (State::Ended, Action::Nothing),
        Event::DoneMore | Event::DoneIdle(_) | Event::Detach => (State::Ended, Action::Invalid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    const STATES: [State; 8] = [
        State::Idle(Reason::NoData),
        State::Idle(Reason::NoRoom),
        State::Idle(Reason::Rate),
        State::Queued,
        State::Running { rescan: false },
        State::Running { rescan: true },
        State::Closing,
        State::Ended,
    ];

    const EVENTS: [Event; 12] = [
        Event::Wake(Wakeup::Data),
        Event::Wake(Wakeup::Space),
        Event::Wake(Wakeup::RcvClosed),
        Event::Wake(Wakeup::SndClosed),
        Event::Wake(Wakeup::Failed),
        Event::Refill,
        Event::Start,
        Event::DoneMore,
        Event::DoneIdle(Reason::NoData),
        Event::DoneIdle(Reason::NoRoom),
        Event::DoneIdle(Reason::Rate),
        Event::Detach,
    ];

    #[test]
    fn the_whole_table() {
        let mut table = String::new();
        for state in STATES {
            for event in EVENTS {
                let (to, action) = step(state, event);
                let line = format!("{state:?} + {event:?} = {to:?}, {action:?}");
                writeln!(table, "{line}").unwrap();
            }
        }
        assert_eq!(table, include_str!("machine.txt"), "now:\n{table}");
    }

    #[test]
    fn a_wakeup_during_a_pass_is_kept() {
        for wakeup in [
            Wakeup::Data,
            Wakeup::Space,
            Wakeup::RcvClosed,
            Wakeup::SndClosed,
            Wakeup::Failed,
        ] {
            for reason in [Reason::NoData, Reason::NoRoom] {
                let (state, _) = step(State::Running { rescan: false }, Event::Wake(wakeup));
                let after = step(state, Event::DoneIdle(reason));
                assert_eq!(after, (State::Queued, Action::Enqueue));
            }
        }
    }
}
