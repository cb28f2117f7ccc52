//! Connections of a stack with itself: the driver of the queue receives the packets that either end
//! transmits.
//!
//! A connection is looped if its peer is an address of the stack when it begins
//! ([`Home::looped`](crate::tcp::home::Home)). It then transmits on the [`Loopback`] of its queue in
//! place of the link; the other end begins there, so both have the same home. Packets on the link with
//! addresses of such a connection are forged, and dropped. Other connections have no extra cost, and a
//! driver checks one flag for each batch.
//!
//! Frames cross as over a link in memory: by reference, up to 64 KiB in one, without verifying
//! checksums. The queue is bounded. A connection that finds it full waits, as for a link; meanwhile the
//! driver does not sleep, takes frames out in each turn, and then lets the waiting connections try
//! again: so there is always progress. Answers without a connection (resets, cookies) are not bounded,
//! since each replaces a frame that was taken out.
//!
//! A sender adds a frame before it checks whether the driver sleeps, and a driver marks itself asleep
//! before it checks for frames: so it never sleeps with a frame (model: `queue::loom`).
//!
//! Locks: the inbox's, a leaf, taken alone, except for the ownership of the transmitting connection.

use crate::buf::Buf;
use crate::link::{
    Capabilities, Checksum, Frame, Interest, Link, Packet, ReceiveError, TransmitError,
};
use crate::lock::{LEAF, Mutex};
use crate::sync::{Protection, intact};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Maximum number of frames and bytes: the defaults of a link in memory.
const FRAMES: usize = 256;
const BYTES: usize = 4 << 20;
/// Largest packet.
const LARGEST: usize = 65_535;

/// A link that transmits to the driver of a queue. See the module.
#[derive(Debug)]
pub(super) struct Loopback {
    inbox: Arc<Inbox>,
    bounded: bool,
}

#[derive(Debug)]
struct Inbox {
    /// The link on which the driver waits.
    link: Arc<dyn Link>,
    state: Mutex<State, LEAF>,
    /// There are frames. Written under the lock.
    waiting: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Frame>,
    bytes: usize,
    /// The driver sleeps, or is about to, and has not been woken.
    asleep: bool,
    /// The stack is down.
    over: bool,
}

impl State {
    fn has_room(&self, len: usize) -> bool {
        self.frames.is_empty() || (self.frames.len() < FRAMES && self.bytes + len <= BYTES)
    }
}

impl Loopback {
    /// One for connections, and one for answers without a connection.
    pub(super) fn new(link: &Arc<dyn Link>) -> [Loopback; 2] {
        let inbox = Arc::new(Inbox {
            link: link.clone(),
            state: Mutex::default(),
            waiting: AtomicBool::new(false),
        });
        [true, false].map(|bounded| Loopback {
            inbox: inbox.clone(),
            bounded,
        })
    }

    /// Whether there are frames. Frames that the driver added or was woken for are always seen.
    pub(super) fn has_frames(&self) -> bool {
        self.inbox.waiting.load(Ordering::Relaxed)
    }

    /// Appends up to `max` frames. Returns their number.
    pub(super) fn take(&self, frames: &mut Vec<Frame>, max: usize) -> usize {
        if !self.has_frames() {
            return 0;
        }
        let mut state = self.inbox.state.lock();
        let count = max.min(state.frames.len());
        let before = frames.len();
        frames.extend(state.frames.drain(..count));
        state.bytes -= frames[before..].iter().map(Frame::len).sum::<usize>();
        let more = !state.frames.is_empty();
        self.inbox.waiting.store(more, Ordering::Relaxed);
        count
    }

    /// The driver is about to sleep. `false` if there are frames.
    pub(super) fn fall_asleep(&self) -> bool {
        let is_empty = |state: &State| state.frames.is_empty();
        let too_early =
            (!intact(Protection::SleepFirst)).then(|| is_empty(&self.inbox.state.lock()));
        let mut state = self.inbox.state.lock();
        state.asleep = too_early.unwrap_or_else(|| is_empty(&state));
        state.asleep
    }

    pub(super) fn wake_up(&self) {
        self.inbox.state.lock().asleep = false;
    }

    /// The stack is down: refuses further frames.
    pub(super) fn end(&self) {
        let dropped = {
            let mut state = self.inbox.state.lock();
            state.over = true;
            state.bytes = 0;
            self.inbox.waiting.store(false, Ordering::Relaxed);
            std::mem::take(&mut state.frames)
        };
        drop(dropped);
    }
}

impl Link for Loopback {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            mtu: self.inbox.link.capabilities().mtu,
            checksum: true,
            segment_v4: Some(LARGEST),
            segment_v6: Some(LARGEST),
            datagrams_v4: Some(LARGEST),
            datagrams_v6: Some(LARGEST),
        }
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        Ok(self.take(frames, max))
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        let len = packet.len();
        let mut frame = Some(Frame {
            head: Buf::copy_of(packet.header),
            rest: packet.payload.iter().cloned().collect(),
            checksum: match packet.checksum {
                Checksum::Complete => Checksum::Verified,
                known => known,
            },
            segment: packet.segment,
        });
        // A frame that is not taken is dropped after releasing the lock.
        let wake = {
            let mut state = self.inbox.state.lock();
            if state.over {
                return Err(TransmitError::Gone(io::ErrorKind::NetworkDown.into()));
            }
            if self.bounded && !state.has_room(len) {
                return Err(TransmitError::Full);
            }
            state.bytes += len;
            state.frames.extend(frame.take());
            self.inbox.waiting.store(true, Ordering::Relaxed);
            std::mem::take(&mut state.asleep)
        };
        if wake {
            self.wake();
        }
        Ok(())
    }

    /// Not used: the driver waits on its own link.
    fn wait(&self, _interest: Interest, _deadline: Option<Instant>) -> io::Result<()> {
        Ok(())
    }

    fn wake(&self) {
        self.inbox.link.wake();
    }
}
