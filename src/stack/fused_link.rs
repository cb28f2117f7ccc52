//! A stack's link, which stays gone once any call has reported that it is gone.
//!
//! A transmitting thread holds a connection's lock and cannot end the stack. So it stores the error
//! here and wakes the driver, which ends the queue after receiving the frames that have arrived. A
//! refused packet is counted here, and the driver reports it. Locks: a leaf, for a refused packet.

use crate::link::{
    Capabilities, Flow, Frame, Interest, Link, LinkEvent, Packet, ReceiveError, TransmitError,
};
use crate::lock::{LEAF, Mutex};
use crate::tcp::counters::Counter;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

#[derive(Debug)]
pub(in crate::stack) struct FusedLink {
    link: Arc<dyn Link>,
    /// The error that reported the end of the link.
    gone: OnceLock<io::Error>,
    /// Packets that were refused for good.
    refused: Counter,
    /// The error of the latest refused packet.
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

    /// The link is gone; the next `receive` without a frame reports it.
    fn ends_with(&self, error: &io::Error) {
        if self.gone.set(copy_of(error)).is_ok() {
            self.link.wake();
        }
    }

    /// Takes the error of the latest refused packet.
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

    fn deadline(&self) -> Option<Instant> {
        self.link.deadline()
    }

    fn wake(&self) {
        self.link.wake();
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn descriptors(&self) -> Option<[std::os::fd::BorrowedFd<'_>; 2]> {
        self.link.descriptors()
    }

    fn take_events(&self, events: &mut Vec<LinkEvent>) {
        self.link.take_events(events);
    }

    fn manages_addresses(&self) -> bool {
        self.link.manages_addresses()
    }

    fn reseed(&self, seed: u64) {
        self.link.reseed(seed);
    }

    fn steer(&self, flow: &Flow) -> Option<usize> {
        self.link.steer(flow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Receives one frame, sends nothing.
    #[derive(Debug, Default)]
    struct Stub {
        given: Mutex<bool, LEAF>,
        /// The error returned with the frame, and afterwards.
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
    fn frames_received_with_the_end_are_not_lost() {
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
    fn a_lost_link_that_reports_lost_frames_stays_gone() {
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
    fn earlier_frames_come_first_and_the_driver_is_woken_once() {
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
