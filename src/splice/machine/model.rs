//! Every interleaving of a small world with the machine: bytes and room that come one at a time, an end
//! of file, a rate, a thread that unsplices, and a pass that is three steps (start, move, done).
//!
//! A buffer changes and wakes in one step, since both happen under its lock; so do moving and
//! hiding. Checked in every world: at most one queue entry, no impossible event. Checked where
//! nothing can happen any more: no byte is left that could move, no end is left undiscovered.

use super::{Action, Event, Reason, State, step};
use crate::protocol::Wakeup;
use std::collections::HashSet;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Pass {
    None,
    Started,
    Moved(Event),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct World {
    state: State,
    queued: u8,
    pass: Pass,
    detached: bool,
    completed: u8,
    data: u8,
    room: u8,
    tokens: u8,
    eof: bool,
    // Events still to come.
    arrivals: u8,
    acks: u8,
    refills: u8,
    closes: u8,
    unsplices: u8,
}

impl World {
    /// After set-up: the first pass is to run in the caller.
    fn new(unsplices: u8) -> World {
        World {
            state: State::Queued,
            queued: 1,
            pass: Pass::None,
            detached: false,
            completed: 0,
            data: 1,
            room: 1,
            tokens: 1,
            eof: false,
            arrivals: 4,
            acks: 4,
            refills: 4,
            closes: 1,
            unsplices,
        }
    }

    fn happen(mut self, event: Event) -> (World, Action) {
        let (state, action) = step(self.state, event);
        self.state = state;
        self.queued += u8::from(action == Action::Enqueue);
        self.completed += u8::from(action == Action::Complete);
        assert_ne!(action, Action::Invalid, "{event:?} in {self:?}");
        assert!(self.queued <= 1 && self.completed <= 1, "{self:?}");
        (self, action)
    }

    /// A wake-up reaches the splice only while it is attached.
    fn wake(self, wakeup: Wakeup) -> World {
        if self.detached {
            return self;
        }
        self.happen(Event::Wake(wakeup)).0
    }

    fn detach(self) -> World {
        World {
            detached: true,
            ..self
        }
        .happen(Event::Detach)
        .0
    }

    /// The locked part of a pass: one byte at most.
    fn transfer(mut self) -> World {
        let mut done = Event::DoneMore;
        if !self.detached {
            let count = self.data.min(self.room).min(self.tokens).min(1);
            self.data -= count;
            self.room -= count;
            self.tokens -= count;
            if self.eof && self.data == 0 {
                self = self.detach();
            } else if self.data == 0 {
                done = Event::DoneIdle(Reason::NoData);
            } else if self.room == 0 {
                done = Event::DoneIdle(Reason::NoRoom);
            } else if self.tokens == 0 {
                done = Event::DoneIdle(Reason::Rate);
            }
        }
        World {
            pass: Pass::Moved(done),
            ..self
        }
    }

    fn next(self) -> Vec<World> {
        let mut next = Vec::new();
        if self.arrivals > 0 {
            let (arrivals, data) = (self.arrivals - 1, self.data + 1);
            next.push(
                World {
                    arrivals,
                    data,
                    ..self
                }
                .wake(Wakeup::Data),
            );
        } else if self.closes > 0 {
            next.push(
                World {
                    closes: 0,
                    eof: true,
                    ..self
                }
                .wake(Wakeup::RcvClosed),
            );
        }
        if self.acks > 0 {
            let (acks, room) = (self.acks - 1, self.room + 1);
            next.push(World { acks, room, ..self }.wake(Wakeup::Space));
        }
        if self.refills > 0 {
            let (refills, tokens) = (self.refills - 1, self.tokens + 1);
            next.push(World {
                refills,
                tokens,
                ..self
            });
        }
        // The timer, armed by the pass that stopped for the rate.
        if self.tokens > 0 && self.state == State::Idle(Reason::Rate) {
            next.push(self.happen(Event::Refill).0);
        }
        if self.unsplices > 0 && !self.detached {
            next.push(
                World {
                    unsplices: 0,
                    ..self
                }
                .detach(),
            );
        }
        match self.pass {
            Pass::None if self.queued > 0 => {
                let queued = self.queued - 1;
                let (world, action) = World { queued, ..self }.happen(Event::Start);
                let pass = if action == Action::Run {
                    Pass::Started
                } else {
                    Pass::None
                };
                next.push(World { pass, ..world });
            }
            Pass::None => {}
            Pass::Started => next.push(self.transfer()),
            Pass::Moved(done) => next.push(
                World {
                    pass: Pass::None,
                    ..self
                }
                .happen(done)
                .0,
            ),
        }
        next
    }

    fn check_the_end(self) {
        let ended = self.state == State::Ended && self.completed == 1;
        let can_move = self.data > 0 && self.room > 0 && self.tokens > 0;
        let can_end = self.eof && self.data == 0;
        assert_eq!(ended, self.detached, "{self:?}");
        assert!(ended || !(can_move || can_end), "stranded: {self:?}");
    }
}

/// Visits all reachable worlds; returns their number, and the number of final ones.
fn explore(start: World) -> (usize, usize) {
    let mut seen = HashSet::from([start]);
    let mut open = vec![start];
    let mut finals = 0;
    while let Some(world) = open.pop() {
        let next = world.next();
        if next.is_empty() {
            world.check_the_end();
            finals += 1;
        }
        open.extend(next.into_iter().filter(|world| seen.insert(*world)));
    }
    (seen.len(), finals)
}

#[test]
fn no_interleaving_strands_a_byte() {
    let (worlds, finals) = explore(World::new(0));
    assert!(
        worlds > 500 && finals >= 1,
        "{worlds} worlds, {finals} final"
    );
}

#[test]
fn no_interleaving_with_an_unsplicer_hangs() {
    let (worlds, finals) = explore(World::new(1));
    assert!(
        worlds > 1000 && finals > 5,
        "{worlds} worlds, {finals} final"
    );
}
