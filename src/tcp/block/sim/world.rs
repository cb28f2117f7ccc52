//! Two ends and the path between them.

use super::monitor::Monitor;
use super::path::{Direction, Path};
use crate::tcp::block::segment::{ACK, FIN, PSH, RST, Segment};
use crate::tcp::block::tcb::{Config, Ending, News, Tcb};
use crate::tcp::block::time::Instant;
use crate::tcp::block::time::start as any_time;
use crate::tcp::block::time_wait::{Answer, Record};
use crate::tcp::state::TcpState;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// Bytes of IP and TCP headers on the wire, with timestamps.
const HEADERS: usize = 52;

/// The application of an end.
#[derive(Debug, Clone)]
pub(crate) struct App {
    /// Bytes to send.
    pub(crate) total: u64,
    /// Bytes of its send buffer.
    pub(crate) buffer: u64,
    /// Closes when all bytes are written; `false`: only when the peer has closed.
    pub(crate) closes: bool,
    /// Writes only once this many bytes were received.
    pub(crate) after: u64,
    /// Reads this many bytes in each interval; `None`: all bytes at once.
    pub(crate) reads: Option<(u64, Duration)>,
}

impl Default for App {
    fn default() -> App {
        App {
            total: 0,
            buffer: 4 << 20,
            closes: true,
            after: 0,
            reads: None,
        }
    }
}

/// One end.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) tcb: Option<Tcb>,
    config: Config,
    pub(crate) app: App,
    pub(crate) monitor: Monitor,
    written: u64,
    read: u64,
    next_read: Option<Instant>,
    /// The received stream; only as long as bytes are checked.
    bytes: Vec<u8>,
    pub(crate) peer_closed: bool,
    pub(crate) established_at: Option<Instant>,
    pub(crate) ended: Option<Ending>,
    pub(crate) time_wait: Option<Record>,
    /// When the last byte of the stream was in order.
    pub(crate) complete_at: Option<Instant>,
    armed: Option<Instant>,
    /// Bytes of payload that a packet carries before it is cut.
    most: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    place: usize,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Arrives(usize, Packet),
    Wakes(usize),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) start: Instant,
    pub(crate) now: Instant,
    pub(crate) ends: [End; 2],
    pub(crate) ways: [Direction; 2],
    events: BinaryHeap<Reverse<(Instant, u64, What)>>,
    count: u64,
    packets: Vec<Option<(Segment, Vec<u8>)>>,
    free: Vec<usize>,
    checks_bytes: bool,
    pub(crate) trace: bool,
    /// The ends drop all data older than TS.Recent; counted.
    pub(crate) strict: bool,
    pub(crate) refused: u64,
}

/// Byte of the stream of an end at a position.
fn byte(end: usize, position: u64) -> u8 {
    let mixed = position.wrapping_mul(0x9e37_79b9) >> 7;
    (mixed ^ end as u64).to_le_bytes()[0]
}

impl World {
    /// The first end connects to the second.
    pub(crate) fn new(configs: [Config; 2], apps: [App; 2], paths: [Path; 2], seed: u64) -> World {
        let now = any_time();
        let ways = {
            let [there, back] = paths;
            [
                Direction::new(there, 2 * seed, now),
                Direction::new(back, 2 * seed + 1, now),
            ]
        };
        let mut configs = configs.into_iter();
        let mut apps = apps.into_iter();
        let mut end = || End {
            tcb: None,
            config: configs.next().unwrap(),
            app: apps.next().unwrap(),
            monitor: Monitor::default(),
            written: 0,
            read: 0,
            next_read: None,
            bytes: Vec::new(),
            peer_closed: false,
            established_at: None,
            ended: None,
            time_wait: None,
            complete_at: None,
            armed: None,
            most: 65_000,
        };
        let mut world = World {
            start: now,
            now,
            ends: [end(), end()],
            ways,
            events: BinaryHeap::new(),
            count: 0,
            packets: Vec::new(),
            free: Vec::new(),
            checks_bytes: true,
            trace: false,
            strict: false,
            refused: 0,
        };
        let tcb = Tcb::connect(&world.ends[0].config, now);
        world.ends[0].tcb = Some(tcb);
        world.serve(0);
        world
    }

    /// Does not check payload.
    pub(crate) fn without_bytes(mut self) -> World {
        self.checks_bytes = false;
        self
    }

    fn push(&mut self, at: Instant, what: What) {
        self.count += 1;
        self.events.push(Reverse((at, self.count, what)));
    }

    /// Runs an end until it has no more output.
    pub(crate) fn serve(&mut self, index: usize) {
        for _ in 0..1000 {
            self.user(index);
            self.transmit(index);
            if !self.listen(index) {
                self.arm(index);
                return;
            }
        }
        panic!("events without end");
    }

    /// The application reads and writes.
    fn user(&mut self, index: usize) {
        let now = self.now;
        let end = &mut self.ends[index];
        let Some(tcb) = &mut end.tcb else { return };
        let in_order = tcb.in_order();
        let to = match end.app.reads {
            None => in_order,
            Some((count, interval)) => match end.next_read {
                Some(at) if at > now => end.read,
                _ => {
                    end.next_read = Some(now + interval);
                    (end.read + count).min(in_order)
                }
            },
        };
        if to > end.read {
            end.read = to;
            tcb.read(to, to == in_order, now);
        }
        let open = end.established_at.is_some() && tcb.in_order() >= end.app.after;
        let room = tcb.acknowledged() + end.app.buffer;
        let target = room.min(end.app.total);
        if open && target > end.written {
            end.written = target;
            tcb.written(target, now);
        }
        let done = end.written == end.app.total && (end.app.closes || end.peer_closed);
        let may_close = matches!(tcb.state(), TcpState::Established | TcpState::CloseWait);
        if open && done && may_close {
            tcb.shutdown(now);
        }
    }

    fn transmit(&mut self, index: usize) {
        for _ in 0..100_000 {
            let end = &mut self.ends[index];
            let Some(tcb) = &mut end.tcb else { return };
            let Some(emission) = tcb.poll_transmit(end.most, self.now) else {
                return;
            };
            assert!(
                emission.payload.end <= end.written,
                "payload that was not written"
            );
            let size = emission.size.max(1);
            let len = emission.segment.len;
            let mut at = 0;
            loop {
                let part = size.min(len - at);
                let last = at + part == len;
                let mut segment = emission.segment.clone();
                segment.seq = segment.seq.wrapping_add(u32::try_from(at).unwrap());
                segment.len = part;
                if !last {
                    segment.flags &= !(FIN | PSH);
                }
                let from = emission.payload.start + at as u64;
                self.send(index, segment, from, emission.markable);
                at += part;
                if last {
                    break;
                }
            }
        }
        panic!("emissions without end");
    }

    fn send(&mut self, index: usize, segment: Segment, from: u64, markable: bool) {
        let now = self.now;
        if self.trace {
            eprintln!("{:?} {index} -> {segment:?}", now - self.start);
        }
        let end = &mut self.ends[index];
        let mss = end.tcb.as_ref().map_or(0, Tcb::mss);
        if segment.len > 0 && segment.len < mss {
            end.monitor.small += 1;
        }
        end.monitor.leaves(&segment, now);
        let bytes = match self.checks_bytes {
            true => (from..from + segment.len as u64)
                .map(|at| byte(index, at))
                .collect(),
            false => Vec::new(),
        };
        for at in self.ways[index].send(segment.len + HEADERS, now) {
            let mut segment = segment.clone();
            segment.marked = markable && self.ways[index].marks;
            self.ways[index].marked += u64::from(segment.marked);
            let packet = Some((segment, bytes.clone()));
            let place = match self.free.pop() {
                Some(place) => {
                    self.packets[place] = packet;
                    place
                }
                None => {
                    self.packets.push(packet);
                    self.packets.len() - 1
                }
            };
            self.push(at, What::Arrives(1 - index, Packet { place }));
        }
    }

    /// Handles events. `true` if there were some.
    fn listen(&mut self, index: usize) -> bool {
        let now = self.now;
        let end = &mut self.ends[index];
        let Some(tcb) = &mut end.tcb else {
            return false;
        };
        let mut any = false;
        while let Some(news) = tcb.poll_event() {
            any = true;
            match news {
                News::Established => {
                    assert!(end.established_at.replace(now).is_none(), "reported twice");
                }
                News::PeerClosed => {
                    assert!(
                        !std::mem::replace(&mut end.peer_closed, true),
                        "reported twice"
                    );
                }
                News::Ended(ending) => end.ended = Some(ending),
                News::TimeWait(record) => end.time_wait = Some(record),
            }
        }
        any
    }

    fn arm(&mut self, index: usize) {
        let end = &mut self.ends[index];
        let tcb = end.tcb.as_ref().and_then(Tcb::deadline);
        let unread = end
            .tcb
            .as_ref()
            .is_some_and(|tcb| tcb.in_order() > end.read);
        let read = end.next_read.filter(|_| unread);
        let at = tcb.into_iter().chain(read).min();
        if let Some(at) = at
            && end.armed != Some(at)
        {
            end.armed = Some(at);
            self.push(at.max(self.now), What::Wakes(index));
        }
    }

    fn arrive(&mut self, index: usize, packet: &Packet) {
        let (segment, bytes) = self.packets[packet.place].take().unwrap();
        self.free.push(packet.place);
        let now = self.now;
        let other = self.ends[1 - index].app.total;
        let end = &mut self.ends[index];
        if self.strict && end.monitor.is_old(&segment) {
            self.refused += 1;
            return;
        }
        end.monitor.arrives(&segment);
        let Some(tcb) = &mut end.tcb else {
            end.tcb = Tcb::accept(&end.config, &segment, now);
            return;
        };
        if let Some(record) = end.time_wait {
            if let Answer::Acknowledge { .. } = record.answer(&segment) {
                self.send(index, record.acknowledgement(), 0, false);
            }
            return;
        }
        if end.ended.is_some() {
            // RFC 9293 3.10.7.1.
            if segment.has(ACK) && !segment.has(RST) {
                let reset = Segment {
                    seq: segment.ack,
                    flags: RST,
                    ..Segment::default()
                };
                self.send(index, reset, 0, false);
            }
            return;
        }
        let before = tcb.in_order();
        let taken = tcb.handle_segment(&segment, now);
        let after = tcb.in_order();
        if let Some(kept) = taken.kept {
            assert_eq!(after - before, kept.growth);
            if self.checks_bytes {
                let to = usize::try_from(kept.position).unwrap() + kept.len;
                if end.bytes.len() < to {
                    end.bytes.resize(to, 0);
                }
                end.bytes[to - kept.len..to]
                    .copy_from_slice(&bytes[kept.skip..kept.skip + kept.len]);
                let grown = before..after;
                for at in grown {
                    let got = end.bytes[usize::try_from(at).unwrap()];
                    assert_eq!(got, byte(1 - index, at), "byte {at}");
                }
            }
        } else {
            assert_eq!(before, after);
        }
        if after == other && end.complete_at.is_none() {
            end.complete_at = Some(now);
        }
    }

    /// The time of the next event.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.events.peek().map(|Reverse((at, _, _))| *at)
    }

    /// Runs the next event.
    pub(crate) fn step(&mut self) {
        let Some(Reverse((at, _, what))) = self.events.pop() else {
            return;
        };
        self.now = self.now.max(at);
        match what {
            What::Arrives(index, packet) => {
                self.arrive(index, &packet);
                self.serve(index);
            }
            What::Wakes(index) => {
                let end = &mut self.ends[index];
                if end.armed != Some(at) {
                    return;
                }
                end.armed = None;
                if let Some(tcb) = &mut end.tcb {
                    tcb.handle_timeout(self.now);
                }
                self.serve(index);
            }
        }
    }

    /// Runs until there are no more events, or for this time. `true` if there are no more events.
    pub(crate) fn run(&mut self, most: Duration) -> bool {
        let until = self.start + most;
        while let Some(at) = self.next() {
            if at > until {
                return false;
            }
            self.step();
        }
        true
    }

    /// Both ends have closed in order.
    pub(crate) fn check_closed(&self) {
        for (index, end) in self.ends.iter().enumerate() {
            let other = &self.ends[1 - index];
            let tcb = end.tcb.as_ref().expect("it was opened");
            assert_eq!(
                tcb.in_order(),
                other.app.total,
                "all was received by {index}"
            );
            assert_eq!(tcb.acknowledged(), end.app.total, "and acknowledged");
            assert!(end.peer_closed, "{index} got the end");
            let ended = end.ended.map(|ending| ending.error());
            assert!(
                end.time_wait.is_some() || ended == Some(None),
                "{index} is in {:?}: {ended:?}",
                tcb.state()
            );
        }
        let wait = self
            .ends
            .iter()
            .filter(|end| end.time_wait.is_some())
            .count();
        assert!(wait >= 1, "one at least is in TIME-WAIT");
    }

    /// Mbit/s of received bytes, from the first SYN on.
    pub(crate) fn goodput(&self, receiver: usize) -> f64 {
        let at = self.ends[receiver].complete_at.expect("all was received");
        let bytes = self.ends[1 - receiver].app.total;
        bytes as f64 * 8e-6 / (at - self.start).as_secs_f64()
    }
}
