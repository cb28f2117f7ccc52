//! A network between two links, in virtual time: delay, rate, queue, loss, reordering, duplication,
//! corruption, partition, and a path that carries only smaller packets from some moment on.

use crate::clock::SetClock;
use crate::monitor::{Limits, Monitor};
use crate::trace::Trace;
use fastrand::Rng;
use sosplice::clock::Clock;
use sosplice::link::{
    Capabilities, Checksum, Frame, Interest, Link, Packet, ReceiveError, TransmitError,
};
use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

const FIN: u8 = 1;
const PSH: u8 = 8;

/// The properties of a path from one end to the other. Chances are shares of 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path {
    pub(crate) delay: Duration,
    /// A packet is late by up to this much; a packet that is later than its successor is overtaken.
    pub(crate) jitter: Duration,
    /// Bytes per second; `None` is without limit.
    pub(crate) rate: Option<u64>,
    /// Packets that wait for their turn at most.
    pub(crate) queue: usize,
    /// The link reports a full queue, instead of dropping packets.
    pub(crate) says_full: bool,
    pub(crate) loss: f64,
    pub(crate) duplication: f64,
    pub(crate) corruption: f64,
    /// While nothing arrives, since the beginning.
    pub(crate) partition: Option<(Duration, Duration)>,
    /// From when on packets may not be larger than this.
    pub(crate) narrows: Option<(Duration, usize)>,
}

impl Path {
    /// Without delay, limits or faults.
    pub(crate) const PERFECT: Path = Path {
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        rate: None,
        queue: 1000,
        says_full: false,
        loss: 0.0,
        duplication: 0.0,
        corruption: 0.0,
        partition: None,
        narrows: None,
    };
}

/// An event: a packet reaches an end, or an end's queue has room again.
#[derive(Debug, PartialEq, Eq)]
struct Event {
    at: Instant,
    serial: u64,
    end: usize,
    packet: Option<(Vec<u8>, Checksum)>,
}

impl Ord for Event {
    fn cmp(&self, other: &Event) -> Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Event) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[derive(Debug)]
struct State {
    rng: Rng,
    paths: [Path; 2],
    /// When each queue is empty.
    free_at: [Instant; 2],
    /// Departure times of the packets in each queue.
    departures: [VecDeque<Instant>; 2],
    events: BinaryHeap<Reverse<Event>>,
    serial: u64,
    inboxes: [VecDeque<Frame>; 2],
    /// Beside each end, once there is one.
    monitors: [Option<Monitor>; 2],
    /// Packets that were lost on the way or found no room in a queue.
    lost: u64,
}

/// Two ends and the paths between them.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    name: &'static str,
    clock: Arc<SetClock>,
    trace: Trace,
    state: Arc<Mutex<State>>,
}

/// One end: the link of a stack.
#[derive(Debug)]
pub(crate) struct End {
    network: Network,
    index: usize,
    capabilities: Capabilities,
}

impl Network {
    pub(crate) fn new(
        name: &'static str,
        seed: u64,
        paths: [Path; 2],
        clock: &Arc<SetClock>,
        trace: &Trace,
    ) -> Network {
        Network {
            name,
            clock: clock.clone(),
            trace: trace.clone(),
            state: Arc::new(Mutex::new(State {
                rng: Rng::with_seed(seed),
                paths,
                free_at: [clock.start(); 2],
                departures: Default::default(),
                events: BinaryHeap::new(),
                serial: 0,
                inboxes: Default::default(),
                monitors: [None, None],
                lost: 0,
            })),
        }
    }

    /// An end, and beside it a monitor. `ack_delay`: that of its stack; `lateness`: how late a stack
    /// may handle a deadline.
    pub(crate) fn end(
        &self,
        index: usize,
        capabilities: Capabilities,
        (ack_delay, lateness): (Option<Duration>, Duration),
    ) -> End {
        let mut state = self.lock();
        let round_trip = state.paths.iter().map(|path| path.delay).sum();
        let limits = Limits::new(&capabilities, ack_delay, lateness, round_trip);
        state.monitors[index] = Some(Monitor::new(limits, self.clock.start()));
        End {
            network: self.clone(),
            index,
            capabilities,
        }
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lock().lost
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.lock().events.peek().map(|Reverse(event)| event.at)
    }

    /// Delivers packets that are due.
    pub(crate) fn run(&self) {
        let now = self.clock.now();
        let mut state = self.lock();
        while state
            .events
            .peek()
            .is_some_and(|Reverse(event)| event.at <= now)
        {
            let Some(Reverse(event)) = state.events.pop() else {
                break;
            };
            if let Some((bytes, checksum)) = event.packet {
                self.trace.packet(self.name, ">|", event.end, &bytes);
                state.inboxes[event.end].push_back(Frame::new(&bytes).checksum(checksum));
            }
        }
    }

    /// The monitors' violations so far.
    pub(crate) fn verdict(&self) -> Result<(), String> {
        let state = self.lock();
        let mut monitors = state.monitors.iter().flatten();
        monitors.try_for_each(Monitor::verdict)
    }

    /// Their violations at the end of the run.
    pub(crate) fn finish(&self) -> Result<(), String> {
        let now = self.clock.now();
        let mut state = self.lock();
        let mut monitors = state.monitors.iter_mut().flatten();
        monitors.try_for_each(|monitor| monitor.finish(now))
    }

    /// Nothing is on its way any more.
    pub(crate) fn clear(&self) {
        let mut state = self.lock();
        state.events.clear();
        state.inboxes.iter_mut().for_each(VecDeque::clear);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn push(&mut self, at: Instant, end: usize, packet: Option<(Vec<u8>, Checksum)>) {
        self.serial += 1;
        self.events.push(Reverse(Event {
            at,
            serial: self.serial,
            end,
            packet,
        }));
    }

    fn chance(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.rng.f64() < chance
    }

    /// When a packet of this size has left; `None` if there is no room for it.
    fn depart(&mut self, from: usize, len: usize, now: Instant) -> Option<Instant> {
        let queue = &mut self.departures[from];
        while queue.front().is_some_and(|&at| at <= now) {
            queue.pop_front();
        }
        let Some(rate) = self.paths[from].rate else {
            return Some(now);
        };
        if queue.len() >= self.paths[from].queue {
            return None;
        }
        let takes = Duration::from_nanos(len as u64 * 1_000_000_000 / rate.max(1));
        let at = self.free_at[from].max(now) + takes;
        self.free_at[from] = at;
        queue.push_back(at);
        Some(at)
    }

    fn arrival(&mut self, from: usize, departure: Instant) -> Instant {
        let jitter = self.paths[from].jitter.as_nanos() as u64;
        departure + self.paths[from].delay + Duration::from_nanos(self.rng.u64(0..=jitter))
    }

    fn carry(
        &mut self,
        from: usize,
        mut bytes: Vec<u8>,
        checksum: Checksum,
        since: Duration,
        departure: Instant,
    ) {
        let path = self.paths[from];
        if let Some((when, mtu)) = path.narrows
            && since >= when
            && bytes.len() > mtu
        {
            let error = too_big(&bytes, mtu);
            let at = self.arrival(from, departure);
            self.push(at, from, Some((error, Checksum::Complete)));
            return;
        }
        let parted = path
            .partition
            .is_some_and(|(begin, end)| (begin..end).contains(&since));
        if parted || self.chance(path.loss) {
            self.lost += 1;
            return;
        }
        if self.chance(path.duplication) {
            let at = self.arrival(from, departure);
            self.push(at, 1 - from, Some((bytes.clone(), checksum)));
        }
        // Packets with partial or verified checksums would not be checked again.
        if !checksum.is_vouched_for() && self.chance(path.corruption) {
            let (at, bit) = (self.rng.usize(0..bytes.len()), self.rng.u32(0..8));
            bytes[at] ^= 1 << bit;
        }
        let at = self.arrival(from, departure);
        self.push(at, 1 - from, Some((bytes, checksum)));
    }
}

impl Link for End {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        let mut state = self.network.lock();
        let most = state.rng.usize(1..=max);
        let now = self.network.clock.now();
        let State {
            inboxes, monitors, ..
        } = &mut *state;
        let inbox = &mut inboxes[self.index];
        let count = most.min(inbox.len());
        if let Some(monitor) = &mut monitors[self.index] {
            monitor.batch(count);
            for frame in inbox.iter().take(count) {
                monitor.arrives(&frame.head, frame.checksum, now);
            }
        }
        frames.extend(inbox.drain(..count));
        Ok(count)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        let network = &self.network;
        let now = network.clock.now();
        let bytes = packet.to_vec();
        let mut state = network.lock();
        let departure = state.depart(self.index, bytes.len(), now);
        let says_full = departure.is_none() && state.paths[self.index].says_full;
        if let Some(monitor) = &mut state.monitors[self.index] {
            match says_full {
                true => monitor.full(),
                false => monitor.leaves(packet, &bytes, now),
            }
        }
        let Some(departure) = departure else {
            if says_full {
                let room = state.departures[self.index].front().copied();
                state.push(room.unwrap_or(now), self.index, None);
                return Err(TransmitError::Full);
            }
            state.lost += 1;
            network
                .trace
                .packet(network.name, "queue full", self.index, &bytes);
            return Ok(());
        };
        network.trace.packet(network.name, "|>", self.index, &bytes);
        let since = now - network.clock.start();
        for piece in cut(packet, bytes) {
            state.carry(self.index, piece, packet.checksum, since, departure);
        }
        Ok(())
    }

    fn wait(&self, _interest: Interest, _deadline: Option<Instant>) -> io::Result<()> {
        Ok(())
    }

    fn wake(&self) {}
}

/// Cuts a packet into segments as a network card does: IPv4 only.
fn cut(packet: &Packet<'_>, bytes: Vec<u8>) -> Vec<Vec<u8>> {
    let Some(size) = packet.segment.map(|size| usize::from(size.get())) else {
        return vec![bytes];
    };
    let (header, payload) = bytes.split_at(packet.header.len());
    let pieces = payload.chunks(size).enumerate();
    pieces
        .map(|(index, piece)| {
            let is_last = (index + 1) * size >= payload.len();
            segment(header, index * size, piece, is_last, packet.checksum)
        })
        .collect()
}

fn segment(header: &[u8], offset: usize, piece: &[u8], is_last: bool, sums: Checksum) -> Vec<u8> {
    let mut bytes = [header, piece].concat();
    let total = u16::try_from(bytes.len()).unwrap();
    bytes[2..4].copy_from_slice(&total.to_be_bytes());
    bytes[10..12].fill(0);
    let sum = checksum(&[&bytes[..20]]);
    bytes[10..12].copy_from_slice(&sum);
    let seq = u32::from_be_bytes(bytes[24..28].try_into().unwrap());
    let seq = seq.wrapping_add(u32::try_from(offset).unwrap());
    bytes[24..28].copy_from_slice(&seq.to_be_bytes());
    if !is_last {
        bytes[33] &= !(FIN | PSH);
    }
    if sums == Checksum::Complete {
        bytes[36..38].fill(0);
        let len = (total - 20).to_be_bytes();
        let sum = checksum(&[&bytes[12..20], &[0, 6], &len, &bytes[20..]]);
        bytes[36..38].copy_from_slice(&sum);
    }
    bytes
}

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum = internet_checksum::Checksum::new();
    parts.iter().for_each(|part| sum.add_bytes(part));
    sum.checksum()
}

/// A router's report to the sender of a packet that is too big (RFC 1191, RFC 4443 3.2).
fn too_big(packet: &[u8], mtu: usize) -> Vec<u8> {
    let word = (mtu as u32).to_be_bytes();
    let v6 = packet[0] >> 4 == 6;
    let quote = &packet[..packet.len().min(if v6 { 128 } else { 28 })];
    let mut icmp = if v6 {
        vec![2, 0, 0, 0]
    } else {
        vec![3, 4, 0, 0]
    };
    icmp.extend(word);
    icmp.extend(quote);
    let mut ip;
    if v6 {
        ip = vec![0x60, 0, 0, 0, 0, icmp.len() as u8, 58, 64];
        ip.extend_from_slice(&packet[24..40]);
        ip.extend_from_slice(&packet[8..24]);
        let pseudo = [0, 0, 0, icmp.len() as u8, 0, 0, 0, 58];
        let sum = checksum(&[&ip[8..40], &pseudo, &icmp]);
        icmp[2..4].copy_from_slice(&sum);
    } else {
        let len = (20 + icmp.len()) as u8;
        ip = vec![0x45, 0, 0, len, 0, 0, 0, 0, 64, 1, 0, 0];
        ip.extend_from_slice(&packet[16..20]);
        ip.extend_from_slice(&packet[12..16]);
        let sum = checksum(&[&ip]);
        ip[10..12].copy_from_slice(&sum);
        let sum = checksum(&[&icmp]);
        icmp[2..4].copy_from_slice(&sum);
    }
    ip.extend(icmp);
    ip
}
