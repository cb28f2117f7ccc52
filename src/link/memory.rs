//! A link in memory with two ends: each receives the packets that the other sends.
//!
//! Frames cross by reference: the header is copied, the payload is not. Each direction is a queue that
//! is bounded by frames and by bytes; sending to a full queue fails with [`TransmitError::Full`], and
//! the sender's [`Link::wait`] returns when the receiver has made room. No frame is dropped.
//!
//! [`queues`] makes a link with several receive queues: each end is a link for each queue, and a hash
//! of a packet's addresses and ports selects the queue of the other side that receives it, whichever
//! queue it is sent on, as with the receive-side scaling of network cards. Both directions of a
//! connection have the same hash, and both sides the same number of queues, so a connection has the
//! same queue at both ends.
//!
//! Locks: the state of an end, of the innermost rank because [`Link::wake`] may be called with any
//! other lock held. The two ends are locked one after the other, never both, and no buffer is made or
//! dropped inside. A race to note: a sender that is short of room first clears `room`, then sets its
//! bit in `senders_short` of the full queues, then sleeps; the receiver that drains such a queue clears
//! the bit before it reports `room`.

use super::{
    Capabilities, Checksum, Flow, Frame, Interest, Link, Packet, ReceiveError, TransmitError,
    ethernet,
};
use crate::buf::Buf;
use crate::lock::{Condvar, Mutex, POOL};
use crate::random::mix;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// Bounds and capabilities of both ends of a [`pair`], or of each queue of [`queues`].
///
/// ```
/// use sosplice::link::memory::{self, Config};
/// let (a, b) = memory::pair(Config::default().mtu(9000).frames(64));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Maximum number of frames in one direction.
    pub frames: usize,
    /// Maximum bytes in one direction; a single larger frame still passes an empty queue.
    pub bytes: usize,
    /// The link's capabilities. With `checksum` it takes [`Checksum::Partial`], and the other side
    /// receives such frames without need of verification; with `segment_v4`, `segment_v6`, `datagrams_v4`
    /// and `datagrams_v6` frames up to these sizes cross in one piece, up to the limits of IP headers: 65,535
    /// and 65,575 bytes.
    pub capabilities: Capabilities,
}

impl Config {
    /// Sets [`frames`](field@Self::frames).
    #[must_use]
    pub const fn frames(mut self, frames: usize) -> Config {
        self.frames = frames;
        self
    }

    /// Sets [`bytes`](field@Self::bytes).
    #[must_use]
    pub const fn bytes(mut self, bytes: usize) -> Config {
        self.bytes = bytes;
        self
    }

    /// Sets [`capabilities`](field@Self::capabilities).
    #[must_use]
    pub const fn capabilities(mut self, capabilities: Capabilities) -> Config {
        self.capabilities = capabilities;
        self
    }

    /// Sets the MTU of the capabilities, in bytes.
    #[must_use]
    pub const fn mtu(mut self, bytes: usize) -> Config {
        self.capabilities.mtu = bytes;
        self
    }

    /// The receiver needs a length in the IP header.
    fn bounded(mut self) -> Config {
        let can = &mut self.capabilities;
        can.segment_v4 = can.segment_v4.map(|size| size.min(MAX_LENGTH));
        can.datagrams_v4 = can.datagrams_v4.map(|size| size.min(MAX_LENGTH));
        for size in [&mut can.segment_v6, &mut can.datagrams_v6] {
            *size = size.map(|size| size.min(IPV6_HEADER + MAX_LENGTH));
        }
        self
    }
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
                datagrams_v4: None,
                datagrams_v6: None,
            },
        }
    }
}

/// Two ends of a new link.
///
/// ```
/// use sosplice::link::{Checksum, Interest, Link, Packet, memory};
/// let (a, b) = memory::pair(memory::Config::default());
/// a.transmit(&Packet::new(&[0x45; 40], &[], 20))?;
/// let mut frames = Vec::new();
/// b.wait(Interest::READABLE, None)?;
/// assert_eq!(b.receive(&mut frames, 16)?, 1);
/// assert_eq!(frames[0].to_vec(), [0x45; 40]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn pair(config: Config) -> (MemoryLink, MemoryLink) {
    let config = config.bounded();
    let [a, b] = [(); 2].map(|()| Ends::from([Arc::default()]));
    (
        MemoryLink::new(config, (&a, &b), 0),
        MemoryLink::new(config, (&b, &a), 0),
    )
}

/// The IP header, and what follows it.
fn ip_header<'a>(packet: &Packet<'a>) -> &'a [u8] {
    // The link is also a transport of Ethernet frames. The length of an IP header is a multiple of 4, and with a link
    // header in front it is not.
    let at = match packet.ip_header_len % 4 {
        2 => ethernet::frame::HEADER,
        _ => 0,
    };
    packet.header.get(at..).unwrap_or_default()
}

/// Whether it is a datagram of UDP, or a super-frame of them.
fn is_udp(ip_header: &[u8]) -> bool {
    let at = match version(ip_header) {
        Some(4) => 9,
        _ => 6,
    };
    ip_header.get(at) == Some(&PROTO_UDP)
}

fn version(ip_header: &[u8]) -> Option<u8> {
    ip_header.first().map(|byte| byte >> 4)
}

/// The protocol's number in IP headers.
const PROTO_UDP: u8 = 17;
/// Maximum of a length field of IP.
const MAX_LENGTH: usize = 65_535;
/// Not included in the length field of IPv6.
const IPV6_HEADER: usize = 40;

/// Maximum number of queues of one side.
const MOST_QUEUES: usize = 64;

/// Two sides of a new link with several receive queues: the ends of each side, in the order of the
/// queues. There are `count` of them, between 1 and 64. See the module for the assignment of packets to
/// queues. When one end of a side is dropped, the link is closed for all ends of the other side.
///
/// ```
/// use sosplice::link::{Checksum, Flow, Link, Packet, memory};
/// let (near, far) = memory::queues(4, memory::Config::default());
/// let mut syn = [0; 40];
/// syn[0] = 0x45; // IPv4
/// syn[9] = 6; // TCP
/// syn[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
/// syn[20..24].copy_from_slice(&[0xc0, 0, 0, 80]);
/// near[1].transmit(&Packet::new(&syn, &[], 20))?;
/// let flow = Flow { local: "10.0.0.2:80".parse()?, remote: "10.0.0.1:49152".parse()? };
/// let queue = far[0].steer(&flow).unwrap_or(0);
/// assert_eq!(far[queue].receive(&mut Vec::new(), 16)?, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn queues(count: usize, config: Config) -> (Vec<MemoryLink>, Vec<MemoryLink>) {
    let count = count.clamp(1, MOST_QUEUES);
    let config = config.bounded();
    let [a, b] = [(); 2].map(|()| -> Ends { (0..count).map(|_| Arc::default()).collect() });
    let side = |here: &Ends, there: &Ends| {
        let link = |queue| MemoryLink::new(config, (here, there), queue);
        (0..count).map(link).collect()
    };
    (side(&a, &b), side(&b, &a))
}

/// One end of a [`pair`], or of a queue of [`queues`]. Dropping it closes the link: the other side
/// receives the remaining frames, then errors.
#[derive(Debug)]
pub struct MemoryLink {
    config: Config,
    /// The number of this queue.
    queue: usize,
    here: Arc<End>,
    /// The other side's queues.
    there: Ends,
}

/// The queues of one side.
type Ends = Arc<[Arc<End>]>;

/// The rank of the pools: no lock is taken inside.
const INNERMOST: u8 = POOL;

/// The state of one end.
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
    /// Queues of the other side, one bit each, that found the inbox full and are to be notified of
    /// room.
    senders_short: u64,
    /// Queues of the other side, one bit each, whose inbox was full for a packet of ours.
    full: u64,
    /// An inbox of the other side, found full before, has room.
    room: bool,
    /// `wake` was called.
    woken: bool,
    /// A thread sleeps in `wait`.
    asleep: bool,
    /// This end was dropped.
    closed: bool,
    /// An end of the other side was dropped.
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
    fn new(config: Config, (here, there): (&Ends, &Ends), queue: usize) -> MemoryLink {
        MemoryLink {
            config,
            queue,
            here: here[queue].clone(),
            there: there.clone(),
        }
    }

    /// The queue of the other side that is to receive the packet.
    fn target(&self, packet: &Packet<'_>) -> usize {
        match self.there.len() {
            1 => 0,
            count => queue_of(hash_of_packet(packet), count),
        }
    }

    /// Whether the link can carry the packet at all.
    fn check(&self, packet: &Packet<'_>) -> Result<(), &'static str> {
        let can = &self.config.capabilities;
        let ip_header = ip_header(packet);
        let most = match packet.segment {
            None => can.mtu,
            Some(_) => match (version(ip_header), is_udp(ip_header)) {
                (Some(4), false) => can.segment_v4.ok_or("no segmentation over IPv4")?,
                (Some(6), false) => can.segment_v6.ok_or("no segmentation over IPv6")?,
                (Some(4), true) => can.datagrams_v4.ok_or("no UDP segmentation over IPv4")?,
                (Some(6), true) => can.datagrams_v6.ok_or("no UDP segmentation over IPv6")?,
                _ => return Err("neither IPv4 nor IPv6"),
            },
        };
        if packet.len() > most {
            return Err("the packet is larger than the link takes");
        }
        if matches!(packet.checksum, Checksum::Partial { .. }) && !can.checksum {
            return Err("the link does not fill in checksums");
        }
        Ok(())
    }

    /// Whether one of the full queues (or any, if none was full) has room for a packet of any size now;
    /// if not, they will report room.
    fn room_or_report(&self) -> bool {
        let can = &self.config.capabilities;
        let segments = can.segment_v4.max(can.segment_v6);
        let segments = segments.max(can.datagrams_v4).max(can.datagrams_v6);
        let segments = segments.unwrap_or(0);
        let full = {
            let mut here = self.here.state.lock();
            here.room = false;
            std::mem::take(&mut here.full)
        };
        let mut room = false;
        for (queue, end) in self.there.iter().enumerate() {
            if full != 0 && full & 1 << queue == 0 {
                continue;
            }
            let mut there = end.state.lock();
            if there.closed || there.has_room(&self.config, can.mtu.max(segments)) {
                room = true;
            } else {
                there.senders_short |= 1 << self.queue;
            }
        }
        room
    }
}

fn hash_of_end(address: &[u8], port: u16) -> u64 {
    let words = address.chunks(4).map(|word| {
        let word = word
            .iter()
            .fold(0, |word, byte| word << 8 | u64::from(*byte));
        0x9e37_79b9_7f4a_7c15 ^ word
    });
    words.fold(u64::from(port), |hash, word| {
        mix(hash.rotate_left(32) ^ word)
    })
}

/// A hash of a flow, the same for both directions.
fn hash_of_flow(a: (&[u8], u16), b: (&[u8], u16)) -> u64 {
    mix(hash_of_end(a.0, a.1).wrapping_add(hash_of_end(b.0, b.1)))
}

/// For TCP and UDP a hash of addresses and ports, otherwise of the addresses.
fn hash_of_packet(packet: &Packet<'_>) -> u64 {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let header = ip_header(packet);
    let ports = packet.ip_header_len - (packet.header.len() - header.len());
    let bytes = |at: usize, len: usize| header.get(at..at + len).unwrap_or(&[]);
    let byte = |at: usize| header.get(at).copied().unwrap_or(0);
    let (protocol, at, len) = match byte(0) >> 4 {
        6 => (byte(6), 8, 16),
        _ => (byte(9), 12, 4),
    };
    let has_ports = matches!(protocol, TCP | UDP);
    let port = |at| match bytes(ports + at, 2) {
        [high, low] if has_ports => u16::from_be_bytes([*high, *low]),
        _ => 0,
    };
    hash_of_flow((bytes(at, len), port(0)), (bytes(at + len, len), port(2)))
}

/// Spreads hashes over queues.
fn queue_of(hash: u64, count: usize) -> usize {
    let scaled = (u128::from(hash) * count as u128) >> 64;
    usize::try_from(scaled).unwrap_or(0)
}

impl Link for MemoryLink {
    fn capabilities(&self) -> Capabilities {
        self.config.capabilities
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        frames.reserve(max.min(self.config.frames));
        let mut state = self.here.state.lock();
        let count = max.min(state.inbox.len());
        if count == 0 {
            return if state.peer_closed && max > 0 {
                Err(ReceiveError::Gone(gone()))
            } else {
                Ok(0)
            };
        }
        let before = frames.len();
        frames.extend(state.inbox.drain(..count));
        let taken: usize = frames[before..].iter().map(Frame::len).sum();
        state.bytes -= taken;
        let short = std::mem::take(&mut state.senders_short);
        drop(state);
        for queue in (0..self.there.len()).filter(|queue| short & 1 << queue != 0) {
            self.there[queue].update(|peer| peer.room = true);
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
            checksum: packet.checksum,
            segment: packet.segment,
        });
        let len = packet.len();
        let target = self.target(packet);
        // A frame that is not taken is dropped after releasing the lock.
        let result = self.there[target].update(|there| {
            if there.closed {
                return Err(TransmitError::Gone(gone()));
            }
            if !there.has_room(&self.config, len) {
                return Err(TransmitError::Full);
            }
            there.bytes += len;
            there.inbox.extend(frame.take());
            Ok(())
        });
        if self.there.len() > 1 && matches!(result, Err(TransmitError::Full)) {
            self.here.state.lock().full |= 1 << target;
        }
        result
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        let writable = interest.overlaps(Interest::WRITABLE);
        let readable = interest.overlaps(Interest::READABLE);
        let room = writable && self.room_or_report();
        let mut state = self.here.state.lock();
        let mut late = room;
        loop {
            let arrived = readable && !state.inbox.is_empty();
            let ready = arrived || (writable && state.room) || state.woken || late;
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

    fn steer(&self, flow: &Flow) -> Option<usize> {
        let bytes = |address: IpAddr| -> SmallVec<[u8; 16]> {
            match address {
                IpAddr::V4(v4) => SmallVec::from_slice(&v4.octets()),
                IpAddr::V6(v6) => SmallVec::from_slice(&v6.octets()),
            }
        };
        let (local, remote) = (bytes(flow.local.ip()), bytes(flow.remote.ip()));
        let hash = hash_of_flow((&local, flow.local.port()), (&remote, flow.remote.port()));
        let count = self.there.len();
        (count > 1).then(|| queue_of(hash, count))
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
        for end in self.there.iter() {
            end.update(|peer| peer.peer_closed = true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};
    use std::net::SocketAddr;
    use std::num::NonZeroU16;
    use std::thread;
    use std::time::Duration;

    const HEADER: [u8; 40] = [0x45; 40];

    fn packet(payload: &[Buf]) -> Packet<'_> {
        Packet {
            header: &HEADER,
            payload,
            ip_header_len: 20,
            checksum: Checksum::partial_tcp(20),
            segment: None,
        }
    }

    fn small() -> Config {
        Config {
            frames: 2,
            ..Config::default()
        }
    }

    /// Waits, and fails after a while.
    fn wait(link: &MemoryLink, interest: Interest) -> io::Result<()> {
        let deadline = SystemClock.now() + Duration::from_secs(20);
        let result = link.wait(interest, Some(deadline));
        assert!(SystemClock.now() < deadline, "the wait did not end");
        result
    }

    /// Returns when a thread sleeps in `wait`.
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
        assert_eq!(frames[0].checksum, Checksum::partial_tcp(20));
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
            let waiter = scope.spawn(|| wait(&a, Interest::BOTH));
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
            let waiter = scope.spawn(|| wait(&a, Interest::READABLE));
            until_asleep(&a);
            a.wake();
            waiter.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_frame_ends_a_wait() {
        let (a, b) = pair(Config::default());
        thread::scope(|scope| {
            let waiter = scope.spawn(|| wait(&b, Interest::READABLE));
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
        wait(&a, Interest::READABLE).unwrap();
        let deadline = SystemClock.now() + Duration::from_millis(20);
        a.wait(Interest::READABLE, Some(deadline)).unwrap();
        assert!(SystemClock.now() >= deadline, "a wake-up is left over");
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
        b.wait(Interest::READABLE, None).unwrap();
        assert_eq!(receive(&b).len(), 1);
        assert!(b.wait(Interest::READABLE, None).is_err());
        assert!(b.receive(&mut Vec::new(), 1).is_err());
        let gone = b.transmit(&packet(&[]));
        assert!(matches!(gone, Err(TransmitError::Gone(_))));
    }

    #[test]
    fn a_drop_ends_the_waits_of_the_other_end() {
        let (a, b) = pair(Config::default());
        thread::scope(|scope| {
            let waiter = scope.spawn(|| wait(&b, Interest::READABLE));
            until_asleep(&b);
            drop(a);
            assert!(waiter.join().unwrap().is_err());
        });
    }

    #[test]
    fn packets_beyond_the_capabilities_are_refused() {
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

    /// A TCP header between two addresses.
    fn tcp(from: SocketAddr, to: SocketAddr) -> (Vec<u8>, usize) {
        let mut header = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut ip = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
                ip.extend(from.octets().into_iter().chain(to.octets()));
                ip
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut ip = vec![0x60, 0, 0, 0, 0, 20, 6, 64];
                ip.extend(from.octets().into_iter().chain(to.octets()));
                ip
            }
            _ => panic!("two families"),
        };
        let ip_header_len = header.len();
        header.extend(from.port().to_be_bytes());
        header.extend(to.port().to_be_bytes());
        header.extend([0; 16]);
        (header, ip_header_len)
    }

    fn send(link: &MemoryLink, from: SocketAddr, to: SocketAddr) -> Result<(), TransmitError> {
        let (header, ip_header_len) = tcp(from, to);
        link.transmit(&Packet {
            header: &header,
            payload: &[],
            ip_header_len,
            checksum: Checksum::Complete,
            segment: None,
        })
    }

    /// The index of the link that has received a frame.
    fn receiver(links: &[MemoryLink]) -> usize {
        let counts: Vec<usize> = links.iter().map(|link| receive(link).len()).collect();
        assert_eq!(counts.iter().sum::<usize>(), 1, "{counts:?}");
        counts.iter().position(|count| *count == 1).unwrap()
    }

    #[test]
    fn a_flow_has_one_queue_on_both_sides() {
        let (near, far) = queues(4, Config::default());
        let mut counts = [0; 4];
        for port in 1000..2000 {
            let v6 = port % 2 == 0;
            let end = |host: u8, port| match v6 {
                true => SocketAddr::new([0xfd00, 0, 0, 0, 0, 0, 0, host.into()].into(), port),
                false => SocketAddr::new([10, 0, 0, host].into(), port),
            };
            let (local, remote) = (end(1, port), end(2, 80));
            let queue = near[0].steer(&Flow { local, remote }).unwrap();
            let by = usize::from(port % 4);
            send(&near[by], local, remote).unwrap();
            assert_eq!(receiver(&far), queue, "whichever queue it is sent on");
            send(&far[by], remote, local).unwrap();
            assert_eq!(receiver(&near), queue, "the answer is received on it too");
            counts[queue] += 1;
        }
        assert!(
            counts.iter().all(|count| (150..350).contains(count)),
            "{counts:?}"
        );
        let (single, _other) = pair(Config::default());
        let flow = Flow {
            local: "10.0.0.1:1".parse().unwrap(),
            remote: "10.0.0.2:2".parse().unwrap(),
        };
        assert_eq!(single.steer(&flow), None);
    }

    #[test]
    fn packets_without_ports_are_spread_by_addresses() {
        let (near, far) = queues(4, Config::default());
        for len in [0, 1, 19, 20, 21, 39] {
            let mut header = vec![0x45; len];
            if let Some(protocol) = header.get_mut(9) {
                *protocol = 1;
            }
            let packet = Packet {
                header: &header,
                checksum: Checksum::Complete,
                ..packet(&[])
            };
            near[0].transmit(&packet).unwrap();
            let first = receiver(&far);
            near[1].transmit(&packet).unwrap();
            assert_eq!(receiver(&far), first);
        }
    }

    /// The addresses of a flow that the given queue receives.
    fn flow_to(link: &MemoryLink, queue: usize) -> (SocketAddr, SocketAddr) {
        let remote = SocketAddr::new([10, 0, 0, 2].into(), 80);
        let flows = (1000..).map(|port| Flow {
            local: SocketAddr::new([10, 0, 0, 1].into(), port),
            remote,
        });
        let mut flows = flows.filter(|flow| link.steer(flow) == Some(queue));
        flows.next().map(|flow| (flow.local, flow.remote)).unwrap()
    }

    /// A waiting sender is notified by the first of several full queues that has room.
    #[test]
    fn room_in_any_queue_that_was_full_ends_a_wait() {
        for drained in [0, 1, 2] {
            let (near, far) = queues(3, small());
            for queue in [0, 1, 2] {
                let (local, remote) = flow_to(&near[1], queue);
                while send(&near[1], local, remote).is_ok() {}
            }
            thread::scope(|scope| {
                let waiter = scope.spawn(|| wait(&near[1], Interest::BOTH));
                until_asleep(&near[1]);
                receive(&far[drained]);
                waiter.join().unwrap().unwrap();
            });
            let (local, remote) = flow_to(&near[1], drained);
            send(&near[1], local, remote).unwrap();
        }
    }

    #[test]
    fn a_queue_that_was_not_full_ends_no_wait() {
        let (near, far) = queues(2, small());
        let (local, remote) = flow_to(&near[0], 1);
        while send(&near[0], local, remote).is_ok() {}
        let deadline = SystemClock.now() + Duration::from_millis(20);
        near[0].wait(Interest::BOTH, Some(deadline)).unwrap();
        assert!(
            SystemClock.now() >= deadline,
            "queue 0 has room, without a waiting sender"
        );
        assert_eq!(receive(&far[1]).len(), 2);
    }

    #[test]
    fn losing_one_queue_closes_the_link() {
        let (near, mut far) = queues(2, Config::default());
        let (local, remote) = flow_to(&near[0], 1);
        drop(far.remove(1));
        for link in &near {
            assert!(wait(link, Interest::READABLE).is_err());
            assert!(link.receive(&mut Vec::new(), 1).is_err());
        }
        let gone = send(&near[0], local, remote);
        assert!(matches!(gone, Err(TransmitError::Gone(_))));
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
                    wait(&a, Interest::BOTH).unwrap();
                }
            }
        });
        let mut frames = Vec::new();
        while b.receive(&mut frames, 16).is_ok() {
            // After an error the sender has closed, which `receive` reports too.
            wait(&b, Interest::READABLE).ok();
        }
        sender.unwrap().join().unwrap();
        let got = frames
            .iter()
            .map(|f| u32::from_be_bytes(f.rest[0][..].try_into().unwrap()));
        assert!(got.eq(0..20_000));
    }
}
