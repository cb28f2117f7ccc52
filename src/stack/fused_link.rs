//! A stack's link, as the stack sees it: one of which any call has said that it is gone is gone.
//!
//! Who transmits holds a connection's lock and cannot end the stack. So the error is left here; the
//! driver, which it wakes, ends the queue as soon as what had arrived before is received. A packet that was
//! refused is counted here, and the driver tells of it. Locks: a leaf, when a packet was refused.

use crate::link::{Capabilities, Flow, Frame, Interest, Link, Packet, ReceiveError, TransmitError};
use crate::lock::{LEAF, Mutex};
use crate::tcp::counters::Counter;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

#[derive(Debug)]
pub(in crate::stack) struct FusedLink {
    link: Arc<dyn Link>,
    /// What a call said of the link's end.
    gone: OnceLock<io::Error>,
    /// Packets that were refused for good.
    refused: Counter,
    /// Why the last one was.
    refusal: Mutex<Option<io::Error>, LEAF>,
}

impl FusedLink {
    pub(in crate::stack) fn new(link: Arc<dyn Link>) -> FusedLink {
        FusedLink {
            link,
            gone: OnceLock::new(),
            refused: Counter::default(),
            refusal: Mutex::default(),
        }
    }

    /// Packets that were refused for good.
    pub(in crate::stack) fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// The link is gone, and the next `receive` that gives nothing says so.
    fn ends_with(&self, error: &io::Error) {
        if self.gone.set(copy_of(error)).is_ok() {
            self.link.wake();
        }
    }

    /// Why the last of them was, said once.
    pub(in crate::stack) fn take_refusal(&self) -> Option<io::Error> {
        self.refusal.lock().take()
    }
}

fn copy_of(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

impl Link for FusedLink {
    fn capabilities(&self) -> Capabilities {
        self.link.capabilities()
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        let before = frames.len();
        let result = self.link.receive(frames, max);
        let count = frames.len() - before;
        match (result, self.gone.get()) {
            (Err(ReceiveError::Gone(error)), _) if count > 0 => {
                self.ends_with(&error);
                Ok(count)
            }
            (Ok(_) | Err(ReceiveError::Lost(_)), Some(gone)) if count == 0 => {
                Err(ReceiveError::Gone(copy_of(gone)))
            }
            (result, _) => result,
        }
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        let result = self.link.transmit(packet);
        match &result {
            Err(TransmitError::Gone(error)) => self.ends_with(error),
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
        /// With the frame, and whenever it has none, comes an error.
        fails: Option<fn(io::Error) -> ReceiveError>,
        woken: AtomicUsize,
    }

    impl Link for Stub {
        fn capabilities(&self) -> Capabilities {
            unreachable!("nobody asks")
        }
        fn receive(&self, frames: &mut Vec<Frame>, _max: usize) -> Result<usize, ReceiveError> {
            let count = usize::from(!std::mem::replace(&mut *self.given.lock(), true));
            frames.extend((0..count).map(|_| Frame::new(b"frame")));
            match self.fails {
                Some(error) => Err(error(io::Error::other("pulled"))),
                None => Ok(count),
            }
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

    fn fail_to_send(fused_link: &FusedLink) {
        let said = fused_link.transmit(&Packet {
            header: &[],
            payload: &[],
            ip_header_len: 0,
            checksum: crate::link::Checksum::Complete,
            segment: None,
        });
        assert!(matches!(said, Err(TransmitError::Gone(_))));
    }

    #[test]
    fn what_arrives_with_the_end_is_not_lost() {
        let stub = Arc::new(Stub {
            fails: Some(ReceiveError::Gone),
            ..Stub::default()
        });
        let fused_link = FusedLink::new(stub.clone());
        let mut frames = Vec::new();
        assert_eq!(fused_link.receive(&mut frames, 9).ok(), Some(1));
        assert_eq!((frames.len(), stub.woken.load(Ordering::Relaxed)), (1, 1));
        let gone = fused_link.receive(&mut frames, 9).unwrap_err();
        assert!(matches!(gone, ReceiveError::Gone(_)), "{gone}");
    }

    #[test]
    fn a_link_that_is_gone_and_says_that_frames_are_lost_is_gone() {
        let fused_link = FusedLink::new(Arc::new(Stub {
            fails: Some(ReceiveError::Lost),
            ..Stub::default()
        }));
        fail_to_send(&fused_link);
        let mut frames = Vec::new();
        let lost = fused_link.receive(&mut frames, 9).unwrap_err();
        assert!(matches!(lost, ReceiveError::Lost(_)), "{lost}");
        assert_eq!(frames.len(), 1);
        let gone = fused_link.receive(&mut frames, 9).unwrap_err();
        assert!(matches!(gone, ReceiveError::Gone(_)), "{gone}");
    }

    #[test]
    fn what_had_arrived_comes_first_and_the_driver_is_woken_once() {
        let stub = Arc::new(Stub::default());
        let fused_link = FusedLink::new(stub.clone());
        for _ in 0..2 {
            fail_to_send(&fused_link);
        }
        assert_eq!(stub.woken.load(Ordering::Relaxed), 1);
        let mut frames = Vec::new();
        assert_eq!(fused_link.receive(&mut frames, 9).ok(), Some(1));
        let gone = fused_link.receive(&mut frames, 9).unwrap_err();
        assert_eq!(gone.to_string(), "the link is gone: pulled");
    }
}
