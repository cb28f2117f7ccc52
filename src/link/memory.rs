//! A link in memory: two ends, and what one sends the other receives.
//!
//! Frames cross by reference: the header is copied, the payload is not. Each direction is a queue
//! that is bounded by frames and by bytes; a sender that finds it full is told
//! [`TransmitError::Full`] and its [`Link::wait`] returns when the receiver has made room. Nothing is
//! ever dropped.
//!
//! Locks: the state of an end, of the innermost rank because [`Link::wake`] may be called with any
//! other lock held. The two ends are locked one after the other, never both, and no buffer is made
//! or dropped inside. Race to know: an end that is short of room first forgets `room`, then leaves `sender_short` with
//! its peer, then sleeps; the peer that drains takes `sender_short` away before it reports `room`.

use super::{Capabilities, Checksum, Frame, Link, Packet, TransmitError};
use crate::buf::Buf;
use crate::lock::{Condvar, Mutex, POOL};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// Bounds and capabilities of both ends of a [`pair`].
///
/// ```
/// use sosplice::link::memory::{self, Config};
/// let mut config = Config::default();
/// config.capabilities.mtu = 9000;
/// config.frames = 64;
/// let (a, b) = memory::pair(config);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Most frames that one direction holds.
    pub frames: usize,
    /// Most bytes that one direction holds; a single larger frame still passes an empty queue.
    pub bytes: usize,
    /// What the link says it can do. With `checksum` it takes [`Checksum::Partial`] and vouches for
    /// such frames on the other side; with `segment_v4` and `segment_v6` frames up to these sizes
    /// cross whole.
    pub capabilities: Capabilities,
}

impl Default for Config {
    /// 256 frames or 4 MiB, MTU 1500, checksums left to the link, 64 KiB frames over IPv4.
    fn default() -> Self {
        Config {
            frames: 256,
            bytes: 4 << 20,
            capabilities: Capabilities {
                mtu: 1500,
                checksum: true,
                segment_v4: Some(65_535),
                segment_v6: None,
            },
        }
    }
}

/// Two ends of a new link.
///
/// ```
/// use sosplice::link::{Checksum, Link, Packet, memory};
/// let (a, b) = memory::pair(memory::Config::default());
/// a.transmit(&Packet {
///     header: &[0x45; 40],
///     payload: &[],
///     ip_header_len: 20,
///     checksum: Checksum::Complete,
///     segment: None,
/// })?;
/// let mut frames = Vec::new();
/// b.wait(false, None)?;
/// assert_eq!(b.receive(&mut frames, 16)?, 1);
/// assert_eq!(frames[0].to_vec(), [0x45; 40]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn pair(config: Config) -> (MemoryLink, MemoryLink) {
    let a = Arc::new(End::default());
    let b = Arc::new(End::default());
    let link = |here: &Arc<End>, there: &Arc<End>| MemoryLink {
        config,
        here: Arc::clone(here),
        there: Arc::clone(there),
    };
    (link(&a, &b), link(&b, &a))
}

/// One end of a [`pair`]. Dropping it closes the link: the other end receives what is left, then
/// errors.
#[derive(Debug)]
pub struct MemoryLink {
    config: Config,
    here: Arc<End>,
    there: Arc<End>,
}

/// The rank of the pools: nothing is taken inside.
const INNERMOST: u8 = POOL;

/// What is waiting for one end.
#[derive(Debug, Default)]
struct End {
    state: Mutex<State, INNERMOST>,
    /// Notified only while `State::asleep`.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    inbox: VecDeque<Frame>,
    /// Sum of the lengths of `inbox`.
    bytes: usize,
    /// The peer found the inbox full and wants to hear of room.
    sender_short: bool,
    /// The peer's inbox, found full before, has room.
    room: bool,
    /// `wake` was called.
    woken: bool,
    /// A thread sleeps in `wait`.
    asleep: bool,
    /// This end was dropped.
    closed: bool,
    /// The peer was dropped.
    peer_closed: bool,
}

impl State {
    fn has_room(&self, config: &Config, len: usize) -> bool {
        self.inbox.is_empty()
            || (self.inbox.len() < config.frames && self.bytes + len <= config.bytes)
    }
}

impl End {
    /// Changes the state and wakes the thread that sleeps on it.
    fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock();
        let result = change(&mut state);
        let asleep = state.asleep;
        drop(state);
        if asleep {
            self.changed.notify_all();
        }
        result
    }
}

fn gone() -> io::Error {
    io::Error::new(
        io::ErrorKind::BrokenPipe,
        "the other end of the link was dropped",
    )
}

impl MemoryLink {
    /// Whether the link can carry the packet at all.
    fn check(&self, packet: &Packet<'_>) -> Result<(), &'static str> {
        let can = &self.config.capabilities;
        let most = match packet.segment {
            None => can.mtu,
            Some(_) => match packet.header.first().map(|byte| byte >> 4) {
                Some(4) => can.segment_v4.ok_or("no segmentation over IPv4")?,
                Some(6) => can.segment_v6.ok_or("no segmentation over IPv6")?,
                _ => return Err("neither IPv4 nor IPv6"),
            },
        };
        if packet.len() > most {
            return Err("the packet is larger than the link takes");
        }
        if packet.checksum == Checksum::Partial && !can.checksum {
            return Err("the link does not fill in checksums");
        }
        Ok(())
    }

    /// Whether the other end takes a packet of any size now; if not, it will report room.
    fn room_or_report(&self) -> bool {
        let can = &self.config.capabilities;
        let segments = can.segment_v4.max(can.segment_v6).unwrap_or(0);
        self.here.state.lock().room = false;
        let mut there = self.there.state.lock();
        let room = there.closed || there.has_room(&self.config, can.mtu.max(segments));
        there.sender_short |= !room;
        room
    }
}

impl Link for MemoryLink {
    fn capabilities(&self) -> Capabilities {
        self.config.capabilities
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> io::Result<usize> {
        frames.reserve(max.min(self.config.frames));
        let mut state = self.here.state.lock();
        let count = max.min(state.inbox.len());
        if count == 0 {
            return if state.peer_closed && max > 0 {
                Err(gone())
            } else {
                Ok(0)
            };
        }
        let before = frames.len();
        frames.extend(state.inbox.drain(..count));
        let taken: usize = frames[before..].iter().map(Frame::len).sum();
        state.bytes -= taken;
        let report = std::mem::take(&mut state.sender_short);
        drop(state);
        if report {
            self.there.update(|peer| peer.room = true);
        }
        Ok(count)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        self.check(packet).map_err(|why| {
            TransmitError::Refused(io::Error::new(io::ErrorKind::InvalidInput, why))
        })?;
        let mut frame = Some(Frame {
            head: Buf::copy_of(packet.header),
            rest: packet.payload.iter().cloned().collect(),
            checksum_ok: packet.checksum == Checksum::Partial,
        });
        let len = packet.len();
        // A frame that is not taken is dropped behind the lock.
        self.there.update(|there| {
            if there.closed {
                return Err(TransmitError::Gone(gone()));
            }
            if !there.has_room(&self.config, len) {
                return Err(TransmitError::Full);
            }
            there.bytes += len;
            there.inbox.extend(frame.take());
            Ok(())
        })
    }

    fn wait(&self, writable: bool, deadline: Option<Instant>) -> io::Result<()> {
        let room = writable && self.room_or_report();
        let mut state = self.here.state.lock();
        let mut late = room;
        loop {
            let ready = !state.inbox.is_empty() || (writable && state.room) || state.woken || late;
            if ready || state.peer_closed {
                state.woken = false;
                return if ready { Ok(()) } else { Err(gone()) };
            }
            state.asleep = true;
            late = self.here.changed.wait_until(&mut state, deadline);
            state.asleep = false;
        }
    }

    fn wake(&self) {
        self.here.update(|state| state.woken = true);
    }
}

impl Drop for MemoryLink {
    fn drop(&mut self) {
        let unread = self.here.update(|state| {
            state.closed = true;
            state.bytes = 0;
            std::mem::take(&mut state.inbox)
        });
        drop(unread);
        self.there.update(|peer| peer.peer_closed = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};
    use std::num::NonZeroU16;
    use std::thread;
    use std::time::Duration;

    const HEADER: [u8; 40] = [0x45; 40];

    fn packet(payload: &[Buf]) -> Packet<'_> {
        Packet {
            header: &HEADER,
            payload,
            ip_header_len: 20,
            checksum: Checksum::Partial,
            segment: None,
        }
    }

    fn small() -> Config {
        Config {
            frames: 2,
            ..Config::default()
        }
    }

    /// Waits, and fails if nothing ends it.
    fn wait(link: &MemoryLink, writable: bool) -> io::Result<()> {
        let deadline = SystemClock.now() + Duration::from_secs(20);
        let result = link.wait(writable, Some(deadline));
        assert!(SystemClock.now() < deadline, "nothing ended the wait");
        result
    }

    /// Returns when a thread sleeps in `wait`, so that what follows has to wake it.
    fn until_asleep(link: &MemoryLink) {
        while !link.here.state.lock().asleep {
            thread::yield_now();
        }
    }

    fn receive(link: &MemoryLink) -> Vec<Frame> {
        let mut frames = Vec::new();
        link.receive(&mut frames, 100).unwrap();
        frames
    }

    #[test]
    fn payload_crosses_without_a_copy() {
        let (a, b) = pair(Config::default());
        let payload = Buf::copy_of(&[7; 1000]);
        let parts = [payload.slice(0..400), payload.slice(400..1000)];
        a.transmit(&packet(&parts)).unwrap();
        let frames = receive(&b);
        assert_eq!((frames.len(), frames[0].len()), (1, 1040));
        assert!(frames[0].checksum_ok);
        assert_eq!(frames[0].rest[0].as_ptr(), payload.as_ptr());
    }

    #[test]
    fn both_directions_are_apart_and_in_order() {
        let (a, b) = pair(Config::default());
        for n in 0..5 {
            a.transmit(&packet(&[Buf::copy_of(&[n])])).unwrap();
            b.transmit(&packet(&[Buf::copy_of(&[100 + n])])).unwrap();
        }
        let last = |link| {
            receive(link)
                .iter()
                .map(|f| f.rest[0][0])
                .collect::<Vec<_>>()
        };
        assert_eq!(last(&b), [0, 1, 2, 3, 4]);
        assert_eq!(last(&a), [100, 101, 102, 103, 104]);
    }

    #[test]
    fn a_batch_ends_at_max() {
        let (a, b) = pair(Config::default());
        (0..5).for_each(|_| a.transmit(&packet(&[])).unwrap());
        let mut frames = Vec::new();
        assert_eq!(b.receive(&mut frames, 3).unwrap(), 3);
        assert_eq!(b.receive(&mut frames, 3).unwrap(), 2);
        assert_eq!(b.receive(&mut frames, 3).unwrap(), 0);
    }

    #[test]
    fn full_by_frames_until_received() {
        let (a, b) = pair(small());
        a.transmit(&packet(&[])).unwrap();
        a.transmit(&packet(&[])).unwrap();
        assert!(matches!(a.transmit(&packet(&[])), Err(TransmitError::Full)));
        thread::scope(|scope| {
            let waiter = scope.spawn(|| wait(&a, true));
            until_asleep(&a);
            receive(&b);
            waiter.join().unwrap().unwrap();
        });
        a.transmit(&packet(&[])).unwrap();
    }

    #[test]
    fn full_by_bytes_until_received() {
        let (a, b) = pair(Config {
            bytes: 2500,
            ..Config::default()
        });
        let payload = [Buf::copy_of(&[0; 1000])];
        for _ in 0..3 {
            a.transmit(&packet(&payload)).unwrap();
            a.transmit(&packet(&payload)).unwrap();
            let third = a.transmit(&packet(&payload));
            assert!(matches!(third, Err(TransmitError::Full)));
            assert_eq!(receive(&b).len(), 2);
        }
    }

    #[test]
    fn a_frame_above_the_bound_passes_alone() {
        let (a, b) = pair(Config {
            bytes: 100,
            ..Config::default()
        });
        let payload = [Buf::copy_of(&[0; 1000])];
        a.transmit(&packet(&payload)).unwrap();
        assert!(matches!(a.transmit(&packet(&[])), Err(TransmitError::Full)));
        assert_eq!(receive(&b).len(), 1);
        a.transmit(&packet(&payload)).unwrap();
    }

    #[test]
    fn a_wake_up_reaches_a_sleeper() {
        let (a, _b) = pair(Config::default());
        thread::scope(|scope| {
            let waiter = scope.spawn(|| wait(&a, false));
            until_asleep(&a);
            a.wake();
            waiter.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_frame_ends_a_wait() {
        let (a, b) = pair(Config::default());
        thread::scope(|scope| {
            let waiter = scope.spawn(|| wait(&b, false));
            until_asleep(&b);
            a.transmit(&packet(&[])).unwrap();
            waiter.join().unwrap().unwrap();
        });
        assert_eq!(receive(&b).len(), 1);
    }

    #[test]
    fn wake_ends_one_wait_only() {
        let (a, _b) = pair(Config::default());
        a.wake();
        a.wake();
        wait(&a, false).unwrap();
        let deadline = SystemClock.now() + Duration::from_millis(20);
        a.wait(false, Some(deadline)).unwrap();
        assert!(
            SystemClock.now() >= deadline,
            "nothing left of the wake-ups"
        );
    }

    #[test]
    fn wake_is_fine_under_a_leaf() {
        let (a, _b) = pair(Config::default());
        let leaf = Mutex::<_, { crate::lock::LEAF }>::new(());
        let _held = leaf.lock();
        a.wake();
    }

    #[test]
    fn a_dropped_end_is_drained_first() {
        let (a, b) = pair(Config::default());
        a.transmit(&packet(&[])).unwrap();
        drop(a);
        b.wait(false, None).unwrap();
        assert_eq!(receive(&b).len(), 1);
        assert!(b.wait(false, None).is_err());
        assert!(b.receive(&mut Vec::new(), 1).is_err());
        let gone = b.transmit(&packet(&[]));
        assert!(matches!(gone, Err(TransmitError::Gone(_))));
    }

    #[test]
    fn a_drop_ends_the_waits_of_the_other_end() {
        let (a, b) = pair(Config::default());
        thread::scope(|scope| {
            let waiter = scope.spawn(|| wait(&b, false));
            until_asleep(&b);
            drop(a);
            assert!(waiter.join().unwrap().is_err());
        });
    }

    #[test]
    fn what_the_capabilities_exclude_is_refused() {
        let mut config = Config::default();
        config.capabilities.segment_v4 = None;
        config.capabilities.checksum = false;
        let (a, _b) = pair(config);
        let refused =
            |packet: &Packet<'_>| matches!(a.transmit(packet), Err(TransmitError::Refused(_)));
        let payload = [Buf::copy_of(&[0; 3000])];
        let complete = Packet {
            checksum: Checksum::Complete,
            ..packet(&payload)
        };
        assert!(refused(&packet(&[])), "partial checksum");
        assert!(refused(&complete), "larger than the MTU");
        let segment = NonZeroU16::new(1460);
        assert!(
            refused(&Packet {
                segment,
                ..complete
            }),
            "segmentation"
        );
    }

    #[test]
    fn super_frames_cross_whole() {
        let (a, b) = pair(Config::default());
        let payload = [Buf::copy_of(&[0; 60_000])];
        let whole = Packet {
            segment: NonZeroU16::new(1460),
            ..packet(&payload)
        };
        a.transmit(&whole).unwrap();
        assert_eq!(receive(&b)[0].len(), 60_040);
    }

    #[test]
    fn a_stream_through_a_narrow_link_loses_nothing() {
        let (a, b) = pair(small());
        let sender = thread::Builder::new().name("sender".into());
        let sender = sender.spawn(move || {
            for n in 0..20_000u32 {
                let payload = [Buf::copy_of(&n.to_be_bytes())];
                while let Err(error) = a.transmit(&packet(&payload)) {
                    assert!(matches!(error, TransmitError::Full), "{error}");
                    wait(&a, true).unwrap();
                }
            }
        });
        let mut frames = Vec::new();
        while b.receive(&mut frames, 16).is_ok() {
            // An error is the end of the sender, met again by `receive`.
            wait(&b, false).ok();
        }
        sender.unwrap().join().unwrap();
        let got = frames
            .iter()
            .map(|f| u32::from_be_bytes(f.rest[0][..].try_into().unwrap()));
        assert!(got.eq(0..20_000));
    }
}
