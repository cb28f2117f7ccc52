//! A protocol with a settable state, which does nothing.

use sosplice::protocol::{Protocol, SoState};
use std::sync::{Arc, Mutex};

#[derive(Debug)]
pub(crate) struct Posed(Mutex<SoState>);

impl Posed {
    pub(crate) fn new(state: SoState) -> Arc<Posed> {
        Arc::new(Posed(Mutex::new(state)))
    }

    pub(crate) fn pose(&self, state: SoState) {
        *self.0.lock().unwrap() = state;
    }
}

impl Protocol for Posed {
    fn output(&self) {}
    fn rcvd(&self, _idle: bool) {}
    fn abort(&self) {}
    fn detach(&self) {}
    fn name(&self) -> &'static str {
        "posed"
    }
    fn so_state(&self) -> SoState {
        *self.0.lock().unwrap()
    }
}
