//! Arbitrary bytes as frames into a stack with a listener and an established connection: no panic, and
//! no invariant of the crate breaks.
//!
//! The input is a sequence of records: a byte with the action ([`Act`]), a length in two bytes, and
//! that many bytes of a frame (or as many as are left). With [`Act::AIM`] an IPv4 or IPv6 segment
//! becomes one of the established connection: addresses and ports are set, sequence and acknowledgement
//! numbers are relative to the connection's, lengths are filled in.
//!
//! To run it: `.ci/fuzz 60 frames`.
#![no_main]

#[path = "../../support/clock.rs"]
mod clock;

use clock::SetClock;
use libfuzzer_sys::fuzz_target;
use sosplice::buf::Buf;
use sosplice::link::memory::{self, MemoryLink};
use sosplice::link::{Checksum, Frame, Link, Packet};
use sosplice::stack::Driver;
use sosplice::{Stack, TcpListener, TcpStream};
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

/// The action in a record's first byte.
struct Act(u8);

impl Act {
    /// The link vouches for the checksum.
    const VOUCHED: u8 = 1;
    /// The frame is made one of the established connection.
    const AIM: u8 = 2;
    /// The payload does not lie behind the headers in memory.
    const SPLIT: u8 = 4;
    /// The user sends.
    const SEND: u8 = 8;
    /// The user reads.
    const READ: u8 = 16;
    /// The user ends his direction.
    const SHUT: u8 = 32;
    /// The next frame comes in the same batch.
    const BATCH: u8 = 64;
    /// Time passes.
    const TIME: u8 = 128;

    fn has(&self, what: u8) -> bool {
        self.0 & what != 0
    }
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const ACK: u8 = 16;
const PORT: u16 = 80;
const PEER_PORT: u16 = 50_000;
/// The sequence number of the SYN.
const ISS: u32 = 1000;

/// The stack, and the wire to it.
struct World {
    wire: MemoryLink,
    driver: Driver,
    stack: Stack,
    listener: TcpListener,
    clock: Arc<SetClock>,
    /// Where the stack's side of the established connection is.
    snd_nxt: u32,
    /// And the other side.
    rcv_nxt: u32,
    frames: Vec<Frame>,
    accepted: Vec<TcpStream>,
}

fn address(v6: bool, last: u8) -> IpAddr {
    if v6 {
        [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)].into()
    } else {
        [10, 0, 0, last].into()
    }
}

impl World {
    fn new(v6: bool) -> World {
        let mut config = memory::Config::default();
        config.capabilities.segment_v6 = Some(65_535);
        let (link, wire) = memory::pair(config);
        let clock = SetClock::new();
        let (stack, driver) = Stack::builder(link)
            .address("10.0.0.1/24".parse().unwrap())
            .address("fd00::1/64".parse().unwrap())
            .receive_buffer(70_000)
            .send_buffer(8192)
            .clock(clock.clone())
            .seed(1)
            .build_with_driver()
            .unwrap();
        let listener = TcpListener::bind_with_backlog(&stack, ("0.0.0.0", PORT), 4);
        let listener = listener.unwrap();
        listener.set_nonblocking(true);
        let mut world = World {
            wire,
            driver,
            stack,
            listener,
            clock,
            snd_nxt: 0,
            rcv_nxt: ISS,
            frames: Vec::new(),
            accepted: Vec::new(),
        };
        world.handshake(v6);
        world
    }

    fn handshake(&mut self, v6: bool) {
        let options = [2, 4, 5, 0xb4, 1, 3, 3, 2];
        self.transmit(
            &segment(v6, self.rcv_nxt, 0, SYN, &options),
            &Act(Act::VOUCHED),
        );
        self.run();
        let ip = if v6 { 40 } else { 20 };
        let answer = self.frames.pop().expect("a SYN|ACK");
        let answer = answer.to_vec();
        assert_eq!(answer[ip + 13], SYN | ACK);
        let iss = u32::from_be_bytes(answer[ip + 4..ip + 8].try_into().unwrap());
        (self.snd_nxt, self.rcv_nxt) = (iss.wrapping_add(1), ISS + 1);
        let ack = segment(v6, self.rcv_nxt, self.snd_nxt, ACK, &[]);
        self.transmit(&ack, &Act(Act::VOUCHED));
        self.run();
        assert_eq!(self.accepted.len(), 1, "the connection is established");
    }

    /// Frames that the link does not take are ignored.
    fn transmit(&self, bytes: &[u8], act: &Act) {
        let at = if act.has(Act::SPLIT) {
            bytes.len().min(120)
        } else {
            bytes.len()
        };
        let payload = [Buf::copy_of(&bytes[at..])];
        let packet = Packet::new(
            &bytes[..at],
            if at < bytes.len() { &payload } else { &[] },
            20,
        )
        .checksum(if act.has(Act::VOUCHED) {
            Checksum::partial_tcp(20)
        } else {
            Checksum::Complete
        })
        .segment(NonZeroU16::new(1460).filter(|_| bytes.len() > 1500));
        self.wire.transmit(&packet).ok();
    }

    fn run(&mut self) {
        for _ in 0..100 {
            let busy = self.driver.poll().expect("the link is there");
            self.wire
                .receive(&mut self.frames, 1000)
                .expect("the stack is there");
            while let Ok((stream, _)) = self.listener.accept() {
                stream.set_nonblocking(true);
                self.accepted.push(stream);
            }
            if !busy {
                break;
            }
        }
    }

    /// Follows the established connection: where its numbers are.
    fn follow(&mut self) {
        for frame in self.frames.drain(..) {
            let bytes = frame.to_vec();
            let ip = if bytes[0] >> 4 == 6 { 40 } else { 20 };
            let is_ours = bytes.len() >= ip + 20
                && bytes[if ip == 40 { 6 } else { 9 }] == 6
                && bytes[ip..ip + 4] == ports(PORT, PEER_PORT);
            if is_ours {
                let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
                let flags = bytes[ip + 13];
                let header = ip + usize::from(bytes[ip + 12] >> 4) * 4;
                let len = bytes.len() - header + usize::from(flags & FIN != 0);
                self.snd_nxt = number(ip + 4).wrapping_add(u32::try_from(len).unwrap());
                if flags & ACK != 0 {
                    self.rcv_nxt = number(ip + 8);
                }
            }
        }
    }

    fn record(&mut self, act: &Act, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        if act.has(Act::AIM) {
            aim(&mut bytes, self.rcv_nxt, self.snd_nxt);
        }
        self.transmit(&bytes, act);
        if act.has(Act::BATCH) {
            return;
        }
        self.run();
        self.follow();
        if act.has(Act::TIME) {
            let passed = 1 << (bytes.len() % 17);
            self.clock.advance(Duration::from_millis(passed));
        }
        for mut stream in &self.accepted {
            if act.has(Act::SEND) {
                drop(stream.write(&[7; 3000]));
            }
            if act.has(Act::READ) {
                drop(stream.read(&mut [0; 5000]));
            }
            if act.has(Act::SHUT) {
                stream.shutdown(Shutdown::Write).ok();
            }
        }
        self.run();
        self.follow();
    }
}

fn ports(source: u16, destination: u16) -> [u8; 4] {
    (u32::from(source) << 16 | u32::from(destination)).to_be_bytes()
}

/// Addresses and lengths of the established connection's packets.
fn aim_ip(bytes: &mut [u8]) -> Option<usize> {
    let total = u16::try_from(bytes.len()).ok()?;
    let v6 = bytes.first()? >> 4 == 6;
    let ip = if v6 { 40 } else { 20 };
    if bytes.len() < ip + 20 {
        return None;
    }
    let (peer, own) = (address(v6, 2), address(v6, 1));
    match (peer, own) {
        (IpAddr::V6(peer), IpAddr::V6(own)) => {
            bytes[4..6].copy_from_slice(&(total - 40).to_be_bytes());
            bytes[6] = 6;
            bytes[8..24].copy_from_slice(&peer.octets());
            bytes[24..40].copy_from_slice(&own.octets());
        }
        (IpAddr::V4(peer), IpAddr::V4(own)) => {
            bytes[0] = 0x45;
            bytes[2..4].copy_from_slice(&total.to_be_bytes());
            bytes[6..8].fill(0);
            bytes[9] = 6;
            bytes[10..12].fill(0);
            bytes[12..16].copy_from_slice(&peer.octets());
            bytes[16..20].copy_from_slice(&own.octets());
            let words = bytes[..20].chunks_exact(2);
            let sum: u32 = words
                .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
                .sum();
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = !(sum + (sum >> 16));
            bytes[10..12].copy_from_slice(&sum.to_be_bytes()[2..]);
        }
        _ => unreachable!(),
    }
    Some(ip)
}

fn aim(bytes: &mut [u8], seq: u32, ack: u32) -> Option<()> {
    let ip = aim_ip(bytes)?;
    bytes[ip..ip + 4].copy_from_slice(&ports(PEER_PORT, PORT));
    for (at, base) in [(ip + 4, seq), (ip + 8, ack)] {
        let offset = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        bytes[at..at + 4].copy_from_slice(&base.wrapping_add(offset).to_be_bytes());
    }
    Some(())
}

/// A segment of the established connection.
fn segment(v6: bool, seq: u32, ack: u32, flags: u8, options: &[u8]) -> Vec<u8> {
    let ip = if v6 { 40 } else { 20 };
    let mut bytes = vec![0; ip + 20];
    bytes[0] = if v6 { 0x60 } else { 0x45 };
    bytes[if v6 { 7 } else { 8 }] = 64;
    bytes[ip + 12] = u8::try_from((20 + options.len()) * 4).unwrap();
    bytes[ip + 13] = flags;
    bytes[ip + 14..ip + 16].copy_from_slice(&[0x20, 0]);
    bytes.extend(options);
    aim(&mut bytes, seq, ack);
    bytes
}

fuzz_target!(|input: &[u8]| {
    let Some((first, mut rest)) = input.split_first() else {
        return;
    };
    let mut world = World::new(first & 1 != 0);
    while let [act, high, low, more @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(more.len());
        let (frame, behind) = more.split_at(len);
        world.record(&Act(*act), frame);
        rest = behind;
    }
    world.run();
    assert_eq!(world.stack.stats().broken, 0);
    drop(world.accepted);
    world.driver.poll().ok();
    assert_eq!(world.stack.stats().broken, 0);
});
