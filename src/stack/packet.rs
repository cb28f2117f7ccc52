//! Packet tests: a stack against a peer made of raw segments, in virtual time.
//!
//! Each test is named after the fault that it prevents and reads like a packet trace.

#![expect(
    clippy::cast_possible_truncation,
    reason = "sequence numbers wrap, and lengths are small"
)]

mod acks;
mod addresses;
mod ahead;
mod counters;
mod datagrams;
mod errors;
mod extensions;
mod fragments;
mod fuzz;
mod held;
mod hostile;
mod icmp;
mod listings;
mod loopback;
mod options;
mod presets;
mod queues;
mod recovery;
mod routes;
mod segments;
mod splice;
mod stamps;
mod timers;
mod udp;
mod unclaimed;

use super::*;
use crate::buf::Buf;
use crate::clock::{Clock, SystemClock};
use crate::error::SoError;
use crate::ip;
use crate::link::memory::{self, MemoryLink};
use crate::link::{Capabilities, Checksum, Packet};
use crate::lock::{LEAF, Mutex};
use crate::tcp::block::delayed_ack::SOON;
use crate::tcp::conn::Host;
use crate::tcp::home::Home;
use crate::tcp::wire::{
    self, ACK, FIN, Header, MAX_CANONICAL, PSH, Parsed, RST, SYN, Segment, SynOptions, Tuple,
};
use demux::conn_table::Entry;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::num::NonZeroU16;
use std::sync::atomic::AtomicUsize;
use std::thread;
use std::time::Duration;

/// A clock that is advanced by hand.
#[derive(Debug)]
pub(super) struct TestClock(pub(super) Mutex<Instant, LEAF>);

impl Clock for TestClock {
    fn now(&self) -> Instant {
        *self.0.lock()
    }
}

/// A stack, its driver, and the other end of its link.
struct Net {
    clock: Arc<TestClock>,
    stack: Stack,
    driver: Driver,
    wire: MemoryLink,
}

/// A frame of the stack.
#[derive(Debug, Clone)]
struct Seen {
    tuple: Tuple,
    header: Header,
    timestamps: Option<(u32, u32)>,
    sack: Option<Box<[(u32, u32)]>>,
    payload: Vec<u8>,
}

impl Seen {
    fn has(&self, flags: u8) -> bool {
        self.header.flags & flags == flags
    }
}

const OPTIONS: SynOptions = SynOptions {
    mss: Some(1460),
    window_scale: Some(0),
    sack_permitted: false,
};

fn one_packet_each() -> memory::Config {
    let mut config = memory::Config::default();
    config.capabilities.segment_v4 = None;
    config.frames = 10_000;
    config
}

impl Net {
    fn new() -> Net {
        Net::with(one_packet_each(), |builder| builder)
    }

    fn with(config: memory::Config, build: impl FnOnce(Builder) -> Builder) -> Net {
        let clock = Arc::new(TestClock(Mutex::new(SystemClock.now())));
        let (link, wire) = memory::pair(config);
        let builder = Stack::builder(link)
            .address("10.0.0.1/24".parse().unwrap())
            .address("fd00::1/64".parse().unwrap())
            .clock(clock.clone());
        let (stack, driver) = build(builder).build_with_driver().unwrap();
        Net {
            clock,
            stack,
            driver,
            wire,
        }
    }

    /// Lets the driver do all present work.
    fn turn(&mut self) {
        for _ in 0..100_000 {
            if !self.driver.poll().unwrap() {
                return;
            }
        }
        panic!("the driver does not become idle");
    }

    /// Advances time, from deadline to deadline.
    fn pass(&mut self, time: Duration) {
        let until = self.clock.now() + time;
        loop {
            self.turn();
            let next = self.driver.poll_at().map_or(until, |at| at.min(until));
            let now = self.clock.now();
            if now >= until {
                return;
            }
            *self.clock.0.lock() = next.max(now + Duration::from_micros(1));
        }
    }

    /// The segments that the stack has sent.
    fn seen(&mut self) -> Vec<Seen> {
        self.turn();
        self.drain()
    }

    fn drain(&self) -> Vec<Seen> {
        let mut frames = Vec::new();
        while self.wire.receive(&mut frames, 10_000).unwrap() > 0 {}
        frames
            .into_iter()
            .map(|frame| match wire::parse(frame) {
                Parsed::Tcp(segment) => Seen {
                    tuple: segment.tuple,
                    header: segment.header,
                    timestamps: segment.timestamps,
                    sack: segment.sack,
                    payload: segment
                        .payload
                        .iter()
                        .flat_map(|buf| buf.to_vec())
                        .collect(),
                },
                other => panic!("not a segment: {other:?}"),
            })
            .collect()
    }

    fn one(&mut self) -> Seen {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:#?}");
        seen[0].clone()
    }

    /// The acknowledgement of less than a full segment, or of a FIN: it does not wait long.
    #[track_caller]
    fn soon(&mut self) -> Seen {
        assert_eq!(self.seen().len(), 0, "not at once");
        self.pass(SOON);
        self.one()
    }

    fn raw(&self, packet: &[u8]) {
        let packet = Packet {
            header: packet,
            payload: &[],
            ip_header_len: 20,
            checksum: Checksum::Complete,
            segment: None,
        };
        self.wire.transmit(&packet).unwrap();
    }

    fn listen(&self, port: u16) -> TcpListener {
        let at = SocketAddr::new([0, 0, 0, 0].into(), port);
        let listener = TcpListener::bind(&self.stack, at).unwrap();
        listener.set_nonblocking(true);
        listener
    }

    /// A connection that the raw peer opened.
    fn accepted(&mut self) -> (Raw, TcpStream) {
        let listener = self.listen(80);
        let mut raw = Raw::new(5000);
        raw.handshake(self);
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true);
        (raw, stream)
    }

    /// A connection that the stack opens; its SYN has been seen.
    fn dialled(&mut self) -> (Raw, TcpStream) {
        let stream = TcpSocket::new(&self.stack)
            .start("10.0.0.2:9".parse().unwrap())
            .unwrap();
        stream.set_nonblocking(true);
        let syn = self.one();
        assert_eq!(syn.header.flags, SYN);
        let mut raw = Raw::new(9);
        raw.to.1 = stream.local_addr().port();
        raw.ack = syn.header.seq.wrapping_add(1);
        (raw, stream)
    }

    fn healthy(&self) {
        assert_eq!(self.stack.stats().broken, 0);
    }
}

/// The raw peer of one connection.
#[derive(Debug, Clone)]
struct Raw {
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    /// The next sequence number to send.
    seq: u32,
    ack: u32,
    window: u16,
    options: SynOptions,
}

impl Raw {
    fn new(port: u16) -> Raw {
        Raw {
            from: ([10, 0, 0, 2].into(), port),
            to: ([10, 0, 0, 1].into(), 80),
            seq: u32::MAX - 500,
            ack: 0,
            window: 60_000,
            options: OPTIONS,
        }
    }

    /// A segment at an offset from the peer's next sequence number.
    fn send_at(&self, net: &Net, offset: i32, flags: u8, payload: &[u8]) {
        let options = if flags & SYN == 0 {
            SynOptions::default()
        } else {
            self.options
        };
        let header = Header {
            seq: self.seq.wrapping_add_signed(offset),
            ack: if flags & ACK == 0 { 0 } else { self.ack },
            flags,
            window: self.window,
            options,
        };
        let mut out = [0; MAX_CANONICAL];
        let len = wire::compose(&mut out, self.from, self.to, &header, payload.len());
        let ip_header_len = if self.from.0.is_ipv4() { 20 } else { 40 };
        wire::finish(
            &mut out[..len],
            ip_header_len,
            std::iter::once(payload),
            false,
        );
        let packet = Packet {
            header: &out[..len],
            payload: &[Buf::copy_of(payload)],
            ip_header_len,
            checksum: Checksum::Complete,
            segment: None,
        };
        self.wire(net, packet);
    }

    /// The peer's next segment, with these options.
    fn send_with(&self, net: &Net, flags: u8, options: &[u8], payload: &[u8]) {
        let header = Header {
            seq: self.seq,
            ack: if flags & ACK == 0 { 0 } else { self.ack },
            flags,
            window: self.window,
            options: SynOptions::default(),
        };
        let rest = [options, payload].concat();
        let mut out = [0; MAX_CANONICAL];
        let len = wire::compose(&mut out, self.from, self.to, &header, rest.len());
        let ip_header_len = if self.from.0.is_ipv4() { 20 } else { 40 };
        let mut packet = [&out[..len], &rest].concat();
        packet[ip_header_len + 12] = (5 + options.len() as u8 / 4) << 4;
        wire::finish(&mut packet, ip_header_len, std::iter::empty(), false);
        let packet = Packet {
            header: &packet,
            payload: &[],
            ip_header_len,
            checksum: Checksum::Complete,
            segment: None,
        };
        self.wire(net, packet);
    }

    /// The default link of the peer takes any size: an attacker need not respect the MTU.
    fn wire(&self, net: &Net, packet: Packet<'_>) {
        if packet.len() <= 1500 {
            net.wire.transmit(&packet).unwrap();
        } else {
            let segment = NonZeroU16::new(1460);
            net.wire.transmit(&Packet { segment, ..packet }).unwrap();
        }
    }

    /// The peer's next segment.
    fn send(&self, net: &Net, flags: u8, payload: &[u8]) {
        self.send_at(net, 0, flags, payload);
    }

    /// Sends data, advancing the peer's sequence number.
    fn send_data(&mut self, net: &Net, payload: &[u8]) {
        self.send(net, ACK | PSH, payload);
        self.seq = self.seq.wrapping_add(payload.len() as u32);
    }

    fn fin(&mut self, net: &Net) {
        self.send(net, ACK | FIN, b"");
        self.seq = self.seq.wrapping_add(1);
    }

    fn syn(&mut self, net: &mut Net) -> Seen {
        self.send(net, SYN, b"");
        let answer = net.one();
        assert_eq!(answer.header.flags, SYN | ACK, "{answer:?}");
        self.seq = self.seq.wrapping_add(1);
        self.ack = answer.header.seq.wrapping_add(1);
        assert_eq!(answer.header.ack, self.seq);
        answer
    }

    fn handshake(&mut self, net: &mut Net) {
        self.syn(net);
        self.send(net, ACK, b"");
        assert!(net.seen().is_empty());
    }

    /// Acknowledges all data in these frames, in order; returns it.
    fn take(&mut self, seen: &[Seen]) -> Vec<u8> {
        let mut all = Vec::new();
        for frame in seen {
            if frame.payload.is_empty() && !frame.has(FIN) {
                continue;
            }
            assert_eq!(frame.header.seq, self.ack, "in order, once");
            all.extend_from_slice(&frame.payload);
            let len = frame.payload.len() as u32 + u32::from(frame.has(FIN));
            self.ack = self.ack.wrapping_add(len);
        }
        all
    }
}

fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len)
        .map(|i| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0])
        .collect()
}

/// All bytes that can be read now.
fn read(mut stream: &TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut part = [0; 4096];
    while let Ok(count) = stream.read(&mut part) {
        if count == 0 {
            break;
        }
        all.extend_from_slice(&part[..count]);
    }
    all
}

fn is_end(mut stream: &TcpStream) -> bool {
    stream.read(&mut [0; 1]).is_ok_and(|count| count == 0)
}

fn error_kind(mut stream: &TcpStream) -> Option<ErrorKind> {
    stream.read(&mut [0; 1]).err().map(|error| error.kind())
}

/// The stack closed first, in order: a TIME-WAIT record remains.
fn in_time_wait(net: &mut Net) -> (Raw, TcpListener) {
    let listener = net.listen(80);
    let mut raw = Raw::new(5000);
    raw.handshake(net);
    drop(listener.accept().unwrap());
    raw.take(&net.seen());
    raw.fin(net);
    assert_eq!(net.one().header.ack, raw.seq);
    assert_eq!(net.stack.stats().connections, 0);
    (raw, listener)
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    internet_checksum::checksum(bytes)
}
