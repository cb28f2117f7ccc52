//! Any fragments and extension headers into a stack: nothing panics, memory stays within its bound, and all of it
//! is given back when the time of the fragments is over.
//!
//! The input is a row of records of four bytes and a payload: what to do ([`Act`]) and the identification; where
//! the payload belongs; its length in units of eight bytes; what it is. To run it: `.ci/fuzz 60 fragments`.
#![no_main]

#[path = "../../support/clock.rs"]
mod clock;

use clock::SetClock;
use libfuzzer_sys::fuzz_target;
use sosplice::Stack;
use sosplice::buf::Buf;
use sosplice::link::memory::{self, MemoryLink};
use sosplice::link::{Checksum, Link, Packet};
use std::time::Duration;

/// What a record's first byte asks for; its lowest two bits are the identification.
struct Act(u8);

impl Act {
    const V6: u8 = 4;
    const MORE: u8 = 8;
    /// The payload does not lie behind the headers in memory.
    const SPLIT: u8 = 16;
    /// Some bytes less, so that the length is no multiple of eight.
    const ODD: u8 = 32;
    /// The payload is a ping, so that what becomes whole is answered.
    const PING: u8 = 64;
    /// Time passes.
    const TIME: u8 = 128;

    fn has(&self, what: u8) -> bool {
        self.0 & what != 0
    }
}

/// Of all fragments together.
const MOST_MEMORY: usize = 4 << 20;

fn packet(act: &Act, offset: u16, protocol: u8, payload: &[u8]) -> (Vec<u8>, usize) {
    let len = u16::try_from(payload.len()).unwrap();
    let more = u16::from(act.has(Act::MORE));
    let mut bytes = Vec::new();
    if act.has(Act::V6) {
        bytes.extend([0x60, 0, 0, 0]);
        bytes.extend((len + 8).to_be_bytes());
        bytes.extend([44, 64]);
        for host in [2, 1] {
            bytes.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
        }
        bytes.extend([protocol, 0]);
        bytes.extend((offset | more).to_be_bytes());
        bytes.extend([0, 0, 0, act.0 & 3]);
    } else {
        bytes.extend([0x45, 0]);
        bytes.extend((len + 20).to_be_bytes());
        bytes.extend([0, act.0 & 3]);
        bytes.extend((more << 13 | offset / 8).to_be_bytes());
        bytes.extend([64, protocol, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1]);
    }
    let headers = bytes.len();
    bytes.extend(payload);
    (bytes, headers)
}

fn transmit(wire: &MemoryLink, act: &Act, (bytes, headers): (Vec<u8>, usize)) {
    let at = if act.has(Act::SPLIT) {
        headers
    } else {
        bytes.len()
    };
    let payload = [Buf::copy_of(&bytes[at..])];
    let rest = if at < bytes.len() { &payload[..] } else { &[] };
    // The header of IPv4 has no checksum.
    let packet = Packet::new(&bytes[..at], rest, 20).checksum(Checksum::partial_tcp(20));
    wire.transmit(&packet).ok();
}

fuzz_target!(|input: &[u8]| {
    let mut config = memory::Config::default();
    config.capabilities.mtu = 9000;
    let (link, wire) = memory::pair(config);
    let clock = SetClock::new();
    let (stack, mut driver) = Stack::builder(link)
        .address("10.0.0.1/24".parse().unwrap())
        .address("fd00::1/64".parse().unwrap())
        .clock(clock.clone())
        .seed(1)
        .build_with_driver()
        .unwrap();
    let (mut rest, mut frames) = (input, Vec::new());
    while let [act, place, units, kind, more @ ..] = rest {
        let act = Act(*act);
        let len = usize::from(*units) * 8;
        let len = len.saturating_sub(if act.has(Act::ODD) { 3 } else { 0 });
        let (given, behind) = more.split_at(more.len().min(len).min(32));
        rest = behind;
        let mut payload = vec![0; len];
        payload[..given.len()].copy_from_slice(given);
        let mut protocol = *kind;
        if act.has(Act::PING) {
            protocol = if act.has(Act::V6) { 58 } else { 1 };
            if *place == 0 && len > 0 {
                payload[0] = if act.has(Act::V6) { 128 } else { 8 };
            }
        }
        let offset = u16::from(*place) * if *kind & 1 == 0 { 8 } else { 256 };
        transmit(&wire, &act, packet(&act, offset & !7, protocol, &payload));
        while driver.poll().expect("the link is there") {}
        wire.receive(&mut frames, 1000).expect("the stack is there");
        assert!(frames.iter().all(|frame| frame.len() <= 9000));
        frames.clear();
        assert!(stack.stats().fragment_memory <= MOST_MEMORY);
        if act.has(Act::TIME) {
            clock.advance(Duration::from_secs(u64::from(*units)));
        }
    }
    clock.advance(Duration::from_secs(31));
    while driver.poll().expect("the link is there") {}
    let stats = stack.stats();
    assert_eq!((stats.fragment_memory, stats.broken), (0, 0));
});
