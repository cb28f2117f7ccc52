//! Any packets into a stack with sockets, flows and splices of datagrams, and any calls of these: nothing panics,
//! memory stays within its bound, what is sent is well formed, and at the end everything is given back.
//!
//! The input is a row of records of four bytes and a payload: what happens ([`Act`]), between whom, and the payload's
//! length. To run it: `.ci/fuzz 60 udp`.
#![no_main]

#[path = "../../support/clock.rs"]
mod clock;

use clock::SetClock;
use libfuzzer_sys::fuzz_target;
use sosplice::buf::Buf;
use sosplice::link::memory::{self, MemoryLink};
use sosplice::link::{Capabilities, Checksum, Frame, Link, Packet};
use sosplice::sockbuf::{Addresses, Datagram};
use sosplice::splice::{Dispatch, Options, SplicePool};
use sosplice::stack::{Driver, FlowOptions, Mapping, UdpListener, UdpSocket};
use sosplice::{Intercept, Stack};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

/// Of all receive buffers together.
const MOST_MEMORY: usize = 1 << 20;
/// What a batch may add to it before it counts.
const SLACK: usize = 256 << 10;
/// A socket that is closed makes room for a new one.
const MOST_SOCKETS: usize = 12;

/// What a record asks for: the lower four bits of its first byte. The others vary it.
#[derive(Clone, Copy)]
struct Act(u8);

impl Act {
    /// Over IPv6.
    const V6: u8 = 16;
    /// Something is wrong with the packet, or the call is the other one of two.
    const ODD: u8 = 32;
    /// A super-frame, or a batch.
    const MANY: u8 = 64;
    /// The next record comes before the driver runs.
    const BATCH: u8 = 128;

    fn has(self, what: u8) -> bool {
        self.0 & what != 0
    }
}

fn address(v6: bool, [a, b]: [u8; 2]) -> IpAddr {
    match v6 {
        true => [0xfd00, 0, 0, 0, 0, 0, a.into(), b.into()].into(),
        false => [10, 0, a, b].into(),
    }
}

/// One of four peers and ports.
fn peer(act: Act, who: u8) -> SocketAddr {
    let host = address(act.has(Act::V6), [0, 2 + (who & 1)]);
    SocketAddr::new(host, 1000 + u16::from(who >> 1 & 3))
}

/// The stack's own address and port, or another destination.
fn destination(act: Act, who: u8) -> SocketAddr {
    let host = match who >> 6 {
        0 | 1 => [0, 1],
        2 => [9, who >> 4 & 3],
        _ => [0, 255],
    };
    SocketAddr::new(address(act.has(Act::V6), host), 7 + u16::from(who >> 3 & 7))
}

/// The headers and payload of a packet.
fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> (Vec<u8>, usize) {
    let len = u16::try_from(payload.len() + 8).unwrap();
    let mut bytes = Vec::new();
    match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes.extend([0x45, 0]);
            bytes.extend((len + 20).to_be_bytes());
            bytes.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend(len.to_be_bytes());
            bytes.extend([17, 64]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
        }
        _ => unreachable!("one family"),
    }
    let ip_header_len = bytes.len();
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    (bytes, ip_header_len)
}

/// An ICMP error about a datagram from the stack.
fn icmp_error(act: Act, who: u8, bytes: &[u8]) -> (Vec<u8>, usize) {
    let v6 = act.has(Act::V6);
    let (quote, ip_header_len) = datagram(destination(act, who), peer(act, who), b"");
    let mut icmp = match v6 {
        true => vec![1 + (who & 1), 4, 0, 0, 0, 0, 5, who],
        false => vec![3, 3 + (who & 1), 0, 0, 0, 0, 2, who],
    };
    icmp.extend(&quote);
    icmp.extend(&bytes[..bytes.len().min(8)]);
    let (mut packet, _) = datagram(peer(act, who), destination(act, who), &icmp);
    packet.drain(ip_header_len..ip_header_len + 8);
    let len = u16::try_from(packet.len()).unwrap();
    match v6 {
        true => {
            packet[4..6].copy_from_slice(&(len - 40).to_be_bytes());
            packet[6] = 58;
        }
        false => {
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            packet[9] = 1;
        }
    }
    (packet, ip_header_len)
}

/// The stack, the wire to it, and what the program has.
struct World {
    wire: MemoryLink,
    driver: Driver,
    stack: Stack,
    clock: Arc<SetClock>,
    pool: SplicePool,
    listeners: Vec<UdpListener>,
    sockets: Vec<UdpSocket>,
    frames: Vec<Frame>,
}

impl World {
    fn new(mapping: Mapping) -> World {
        let can = Capabilities::new(1500).checksum(true);
        let can = can.datagrams_v4(65_535).datagrams_v6(65_535);
        let config = memory::Config::default().capabilities(can).frames(20);
        let (link, wire) = memory::pair(config);
        let clock = SetClock::new();
        let (stack, driver) = Stack::builder(link)
            .address("10.0.0.1/24".parse().unwrap())
            .address("fd00::1/64".parse().unwrap())
            .max_buffer_memory(MOST_MEMORY)
            .clock(clock.clone())
            .seed(1)
            .build_with_driver()
            .unwrap();
        let pool = SplicePool::builder()
            .clock(clock.clone())
            .dispatch(Dispatch::Worker)
            .workers(1)
            .manual()
            .build();
        let mut world = World {
            wire,
            driver,
            stack,
            clock,
            pool,
            listeners: Vec::new(),
            sockets: Vec::new(),
            frames: Vec::new(),
        };
        world.listen(Intercept::all(), mapping);
        world.listen(Intercept::all().ports(9..=10), Mapping::Endpoint);
        world.bind(7);
        world
    }

    fn listen(&mut self, rule: Intercept, mapping: Mapping) {
        let options = FlowOptions::default()
            .mapping(mapping)
            .max_flows(10)
            .max_flows_per_client(6)
            .backlog(4);
        if let Ok(listener) = UdpListener::intercept(&self.stack, rule, options) {
            listener.set_nonblocking(true);
            self.listeners.push(listener);
        }
    }

    fn bind(&mut self, port: u16) {
        if let Ok(socket) = UdpSocket::bind(&self.stack, ("0.0.0.0", port)) {
            self.keep(socket);
        }
    }

    fn keep(&mut self, socket: UdpSocket) {
        socket.set_nonblocking(true);
        if self.sockets.len() == MOST_SOCKETS {
            self.sockets.remove(0);
        }
        self.sockets.push(socket);
    }

    /// Whatever the link does not take is no input.
    fn transmit(&self, act: Act, (bytes, ip_header_len): (Vec<u8>, usize)) {
        let at = bytes.len().min(ip_header_len + 8);
        let payload = [Buf::copy_of(&bytes[at..])];
        let rest = if at < bytes.len() { &payload[..] } else { &[] };
        let checksum = match act.has(Act::ODD) {
            true => Checksum::Complete,
            false => Checksum::partial_udp(20),
        };
        let many = act.has(Act::MANY) || bytes.len() > 1500;
        let segment = NonZeroU16::new(1 + u16::from(act.0) * 4).filter(|_| many);
        let packet = Packet::new(&bytes[..at], rest, ip_header_len);
        self.wire
            .transmit(&packet.checksum(checksum).segment(segment))
            .ok();
    }

    fn run(&mut self) {
        for _ in 0..1000 {
            let busy = self.driver.poll().expect("the link is there");
            let busy = self.pool.run_one() || busy;
            let received = self.wire.receive(&mut self.frames, 1000);
            let sent = received.expect("the stack is there") > 0;
            self.frames.drain(..).for_each(|frame| well_formed(&frame));
            if !busy && !sent {
                break;
            }
        }
        let memory = self.stack.stats().buffer_memory;
        assert!(memory <= MOST_MEMORY + SLACK, "{memory}");
    }

    fn record(&mut self, act: Act, who: u8, payload: &[u8]) {
        let (from, to) = (peer(act, who), destination(act, who));
        match act.0 & 15 {
            0..=3 => self.transmit(act, datagram(from, to, payload)),
            4 => {
                // Any bytes, with a header before them that may be right.
                let (mut bytes, ip_header_len) = datagram(from, to, payload);
                for (at, byte) in payload.iter().take(40).enumerate() {
                    bytes[at] ^= byte & who;
                }
                self.transmit(act, (bytes, ip_header_len));
            }
            5 => self.transmit(act, icmp_error(act, who, payload)),
            6 => {
                if let Some(listener) = self.listeners.get(usize::from(who & 1))
                    && let Ok((flow, _)) = listener.accept()
                {
                    self.keep(flow);
                }
            }
            7 => self.bind(to.port()),
            8 => self.clock.advance(Duration::from_secs(u64::from(who))),
            9 if act.has(Act::ODD) => drop(self.listeners.pop()),
            9 => self.listen(Intercept::all().ports(to.port()..=12), Mapping::Endpoint),
            _ if self.sockets.is_empty() => {}
            kind => {
                let which = usize::from(who) % self.sockets.len();
                self.call(act, kind, (which, from, to), payload);
            }
        }
        if !act.has(Act::BATCH) {
            self.run();
        }
    }

    fn call(
        &mut self,
        act: Act,
        kind: u8,
        (which, from, to): (usize, SocketAddr, SocketAddr),
        payload: &[u8],
    ) {
        let socket = &self.sockets[which];
        let to_peer = Addresses::to(from).from_local(to.ip());
        match kind {
            10 if act.has(Act::MANY) => drop(socket.recv_many(&mut Vec::new(), 9)),
            10 => drop(socket.recv_from(&mut [0; 100])),
            11 if act.has(Act::MANY) => {
                let one = Datagram::new([Buf::copy_of(payload)], Addresses::to(from));
                socket.send_many(&mut vec![one; 20]).ok();
            }
            11 if act.has(Act::ODD) => drop(socket.send_datagram(payload, to_peer)),
            11 => drop(socket.send(payload)),
            12 if act.has(Act::ODD) => drop(socket.send_to(payload, to)),
            12 => drop(socket.send_to(payload, from)),
            13 => drop(socket.connect(from)),
            14 => {
                let sink = &self.sockets[payload.len() % self.sockets.len()];
                let options = Options::default()
                    .addresses(act.has(Act::ODD))
                    .pool(self.pool.clone());
                drop(socket.splice_to(sink, options));
            }
            _ if act.has(Act::MANY) => self.sockets.remove(which).refuse(),
            _ if act.has(Act::ODD) => drop(socket.shutdown(Shutdown::Read)),
            _ => drop(self.sockets.remove(which)),
        }
    }
}

/// Lengths and checksums of what the stack sends.
fn well_formed(frame: &Frame) {
    let bytes = frame.to_complete_vec();
    let number = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let (protocol, ip_header_len, len) = match bytes[0] >> 4 {
        4 => (bytes[9], 20, usize::from(number(2))),
        _ => (bytes[6], 40, 40 + usize::from(number(4))),
    };
    assert_eq!(len, bytes.len());
    assert!(frame.segment.is_some() || len <= 1500);
    if protocol != 17 || bytes[0] >> 4 == 4 && number(6) & 0x3fff != 0 {
        return;
    }
    let udp = &bytes[ip_header_len..];
    assert_eq!(usize::from(number(ip_header_len + 4)), udp.len());
    assert_ne!(number(ip_header_len + 2), 0, "the destination's port");
    let addresses = match ip_header_len {
        20 => &bytes[12..20],
        _ => &bytes[8..40],
    };
    let mut sum = 17 + udp.len() as u64;
    for part in [addresses, udp] {
        for word in part.chunks(2) {
            let low = word.get(1).copied().unwrap_or(0);
            sum += u64::from(u16::from_be_bytes([word[0], low]));
        }
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    assert_eq!(sum, 0xffff, "the checksum");
    if let Some(size) = frame.segment {
        let count = (udp.len() - 8).div_ceil(usize::from(size.get()));
        assert!((2..=128).contains(&count), "{count}");
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((first, mut rest)) = input.split_first() else {
        return;
    };
    let mapping = match first & 1 {
        0 => Mapping::Flow,
        _ => Mapping::Endpoint,
    };
    let mut world = World::new(mapping);
    while let [act, who, long, len, more @ ..] = rest {
        let (given, behind) = more.split_at(more.len().min(usize::from(*len)).min(64));
        rest = behind;
        let len = usize::from(*len) + usize::from(*long) * if long & 1 == 0 { 0 } else { 250 };
        let mut payload = vec![7; len];
        let given = &given[..given.len().min(len)];
        payload[..given.len()].copy_from_slice(given);
        world.record(Act(*act), *who, &payload);
    }
    world.run();
    world.sockets.clear();
    world.listeners.clear();
    world.run();
    let stats = world.stack.stats();
    assert_eq!((stats.flows, stats.datagram_sockets), (0, 0));
    assert_eq!((stats.buffer_memory, stats.broken), (0, 0));
    assert!(world.stack.datagram_sockets().is_empty());
});
