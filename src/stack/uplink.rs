//! A stack's link, as the stack sees it: one of which any call has said that it is gone is gone.
//!
//! Who transmits holds a connection's lock and cannot end the stack. So the word is left here; the
//! driver, which it wakes, hears it as soon as what had arrived before is received. No locks.

use crate::link::{Capabilities, Frame, Link, Packet, TransmitError};
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

#[derive(Debug)]
pub(super) struct Uplink {
    link: Arc<dyn Link>,
    /// What a `transmit` said of the link's end.
    gone: OnceLock<io::Error>,
}

impl Uplink {
    pub(super) fn new(link: Arc<dyn Link>) -> Uplink {
        Uplink {
            link,
            gone: OnceLock::new(),
        }
    }
}

impl Link for Uplink {
    fn capabilities(&self) -> Capabilities {
        self.link.capabilities()
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> io::Result<usize> {
        let count = self.link.receive(frames, max)?;
        match self.gone.get() {
            Some(gone) if count == 0 => Err(io::Error::new(gone.kind(), gone.to_string())),
            _ => Ok(count),
        }
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        let result = self.link.transmit(packet);
        if let Err(TransmitError::Gone(error)) = result {
            let copy = io::Error::new(error.kind(), error.to_string());
            if self.gone.set(copy).is_ok() {
                self.link.wake();
            }
            return Err(TransmitError::Gone(error));
        }
        result
    }

    fn wait(&self, writable: bool, deadline: Option<Instant>) -> io::Result<()> {
        // The next receive says it.
        if self.gone.get().is_some() {
            return Ok(());
        }
        self.link.wait(writable, deadline)
    }

    fn wake(&self) {
        self.link.wake();
    }
}
