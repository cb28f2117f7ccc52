//! How an application is notified: it tries, or it uses a poller's edges.

use crate::plan::Hears;
use crate::world::Scene;
use sosplice::Socket;
use sosplice::socket::poller::{Event, Events, Interest, Mode, Poller, Token};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

#[derive(Debug, Default)]
struct Flags {
    readable: Cell<bool>,
    writable: Cell<bool>,
}

/// Readiness that a socket's owner has not used up yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ear(Rc<Flags>);

impl Ear {
    pub(crate) fn readable(&self, scene: &Scene) -> bool {
        scene.plan.hears == Hears::Polls || self.0.readable.get()
    }

    pub(crate) fn writable(&self, scene: &Scene) -> bool {
        scene.plan.hears == Hears::Polls || self.0.writable.get()
    }

    pub(crate) fn deaf_to_bytes(&self) {
        self.0.readable.set(false);
    }

    pub(crate) fn deaf_to_space(&self) {
        self.0.writable.set(false);
    }

    fn hear(&self, event: &Event) {
        let ended = event.source_end().is_some() || event.sink_end().is_some();
        if event.is_readable() || ended {
            self.0.readable.set(true);
        }
        if event.is_writable() || ended {
            self.0.writable.set(true);
        }
    }
}

/// The poller of all applications.
#[derive(Debug, Default)]
pub(crate) struct Ears {
    poller: Poller,
    /// By token.
    ears: RefCell<Vec<Ear>>,
    events: RefCell<Events>,
}

impl Ears {
    pub(crate) fn add(&self, socket: &Socket) -> Ear {
        let ear = Ear::default();
        let mut ears = self.ears.borrow_mut();
        let token = ears.len();
        ears.push(ear.clone());
        self.poller
            .add(socket, Token(token), Interest::BOTH, Mode::Edge)
            .unwrap();
        ear
    }

    /// Polls for events. `true` if there were some.
    pub(crate) fn listen(&self) -> bool {
        let mut events = self.events.borrow_mut();
        let count = self.poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
        for event in events.iter() {
            self.ears.borrow()[event.token().0].hear(event);
        }
        count > 0
    }
}
