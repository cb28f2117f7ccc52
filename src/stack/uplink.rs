//! A stack's link, as the stack sees it: one of which any call has said that it is gone is gone.
//!
//! Who transmits holds a connection's lock and cannot end the stack. So the error is left here; the
//! driver, which it wakes, ends the queue as soon as what had arrived before is received. A packet that was
//! refused is counted here, and the driver tells of it. Locks: a leaf, when a packet was refused.

use crate::link::{Capabilities, Flow, Frame, Interest, Link, Packet, ReceiveError, TransmitError};
use crate::lock::{LEAF, Mutex};
use crate::tcp::host::Counter;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

#[derive(Debug)]
pub(super) struct Uplink {
    link: Arc<dyn Link>,
    /// What a `transmit` said of the link's end.
    gone: OnceLock<io::Error>,
    /// Packets that were refused for good.
    refused: Counter,
    /// Why the last one was.
    refusal: Mutex<Option<io::Error>, LEAF>,
}

impl Uplink {
    pub(super) fn new(link: Arc<dyn Link>) -> Uplink {
        Uplink {
            link,
            gone: OnceLock::new(),
            refused: Counter::default(),
            refusal: Mutex::default(),
        }
    }

    /// Packets that were refused for good.
    pub(super) fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// Why the last of them was, said once.
    pub(super) fn take_refusal(&self) -> Option<io::Error> {
        self.refusal.lock().take()
    }
}

fn copy_of(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

impl Link for Uplink {
    fn capabilities(&self) -> Capabilities {
        self.link.capabilities()
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        let count = self.link.receive(frames, max)?;
        match self.gone.get() {
            Some(gone) if count == 0 => Err(ReceiveError::Gone(copy_of(gone))),
            _ => Ok(count),
        }
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        let result = self.link.transmit(packet);
        match &result {
            Err(TransmitError::Gone(error)) if self.gone.set(copy_of(error)).is_ok() => {
                self.link.wake();
            }
            Err(TransmitError::Refused(error)) => {
                self.refused.add(1);
                *self.refusal.lock() = Some(copy_of(error));
            }
            _ => {}
        }
        result
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.link.wait(interest, deadline)
    }

    fn wake(&self) {
        self.link.wake();
    }

    #[cfg(target_os = "linux")]
    fn descriptors(&self) -> Option<[std::os::fd::BorrowedFd<'_>; 2]> {
        self.link.descriptors()
    }

    fn steer(&self, flow: &Flow) -> Option<usize> {
        self.link.steer(flow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Has one frame, sends nothing.
    #[derive(Debug, Default)]
    struct Stub {
        given: Mutex<bool, LEAF>,
        woken: AtomicUsize,
    }

    impl Link for Stub {
        fn capabilities(&self) -> Capabilities {
            unreachable!("nobody asks")
        }
        fn receive(&self, frames: &mut Vec<Frame>, _max: usize) -> Result<usize, ReceiveError> {
            if std::mem::replace(&mut *self.given.lock(), true) {
                return Ok(0);
            }
            frames.push(Frame::new(b"frame"));
            Ok(1)
        }
        fn transmit(&self, _packet: &Packet<'_>) -> Result<(), TransmitError> {
            Err(TransmitError::Gone(io::Error::other("pulled")))
        }
        fn wait(&self, _interest: Interest, _deadline: Option<Instant>) -> io::Result<()> {
            Ok(())
        }
        fn wake(&self) {
            self.woken.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_had_arrived_comes_first_and_the_driver_is_woken_once() {
        let stub = Arc::new(Stub::default());
        let uplink = Uplink::new(stub.clone());
        let packet = Packet {
            header: &[],
            payload: &[],
            ip_header_len: 0,
            checksum: crate::link::Checksum::Complete,
            segment: None,
        };
        for _ in 0..2 {
            let said = uplink.transmit(&packet);
            assert!(matches!(said, Err(TransmitError::Gone(_))));
        }
        assert_eq!(stub.woken.load(Ordering::Relaxed), 1);
        let mut frames = Vec::new();
        assert_eq!(uplink.receive(&mut frames, 9).ok(), Some(1));
        let gone = uplink.receive(&mut frames, 9).unwrap_err();
        assert_eq!(gone.to_string(), "the link is gone: pulled");
    }
}
