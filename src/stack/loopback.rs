//! Connections of a stack with itself: what one end transmits, the driver of its queue receives.
//!
//! Whether a connection is such a one is decided when it begins: its peer is an address of the stack
//! ([`Home::looped`](crate::tcp::home::Home)). It then transmits by the [`Loopback`] of its queue in the
//! place of the link; the other end begins there, so both have the same home. Nothing of it ever comes or
//! goes by the link: what comes by it with addresses of such a connection is forged, and dropped. All other
//! connections cost nothing more than before, and a driver one look at a flag for each batch.
//!
//! Frames cross as over a link in memory: by reference, up to 64 KiB in one, with checksums taken for
//! right. The queue is bounded. A connection that finds it full waits, as for a link; a driver does not
//! sleep while one does, takes frames out in each turn, whatever becomes of their answers, and then has
//! those that wait try again: so there is always progress. Answers that no connection gives (resets,
//! cookies) take the places of frames that were taken out, and are not bounded.
//!
//! A frame is put in before it is asked whether the driver sleeps, and a driver says that it falls asleep
//! before it looks for frames: so it sleeps with none (model: `queue::loom`).
//!
//! Locks: the inbox's, a leaf, taken alone but for the connection that transmits.

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

/// Most frames and bytes that wait: what a link in memory has by default.
const FRAMES: usize = 256;
const BYTES: usize = 4 << 20;
/// Largest packet.
const LARGEST: usize = 65_535;

/// What transmits to the driver of a queue. See the module.
#[derive(Debug)]
pub(super) struct Loopback {
    inbox: Arc<Inbox>,
    bounded: bool,
}

#[derive(Debug)]
struct Inbox {
    /// What the driver waits for.
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
    /// What connections transmit by, and what answers that no connection gives do.
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

    /// Whether there are frames. The driver's own, and what it was told of, are seen.
    pub(super) fn has_frames(&self) -> bool {
        self.inbox.waiting.load(Ordering::Relaxed)
    }

    /// Appends up to `max` frames. Returns how many.
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

    /// The driver is about to sleep. `false`: there is something to do after all.
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

    /// The stack is down: nothing is taken any more.
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
        // A frame that is not taken is dropped behind the lock.
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

    /// Nobody waits here: the driver sleeps by its link.
    fn wait(&self, _interest: Interest, _deadline: Option<Instant>) -> io::Result<()> {
        Ok(())
    }

    fn wake(&self) {
        self.inbox.link.wake();
    }
}
