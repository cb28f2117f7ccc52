//! Any frames from a guest into the gateway of its network, over a socket or in memory: nothing panics, each frame is
//! counted once, and what the gateway sends is well formed.
//!
//! The input is a byte of settings ([`Settings`]), and then the bytes of a stream, or a row of frames, each after its
//! length (two bytes). To run it: `.ci/fuzz 60 ethernet`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sosplice::link::ethernet::{Edge, EdgeConfig, EdgeStats, FrameStream, Mac, Vlan};
use sosplice::link::memory;
use sosplice::link::{Link, Packet};
use sosplice_fuzz::ethernet::{check_sent, sum};
use std::io::Write;
use std::net::Ipv6Addr;
use std::os::unix::net::UnixStream;

/// The first byte.
struct Settings(u8);

impl Settings {
    /// A stream socket with the input's bytes as they are.
    const STREAM: u8 = 1;
    const STRIP: u8 = 2;
    /// Wrong checksums are replaced by right ones, which no input would have.
    const SUMS: u8 = 4;
    /// A frame after the gateway's header, which is most of what is to be found.
    const AIMED: u8 = 8;
    const SEVERAL: u8 = 16;

    fn has(&self, what: u8) -> bool {
        self.0 & what != 0
    }
}

const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn config(settings: &Settings) -> EdgeConfig {
    let vlan = if settings.has(Settings::STRIP) {
        Vlan::Strip
    } else {
        Vlan::Drop
    };
    let config = EdgeConfig::new("10.0.2.1/24".parse().unwrap(), [10, 0, 2, 15].into());
    let servers = [
        [10, 0, 2, 1].into(),
        Ipv6Addr::from_bits(0xfd << 120 | 1).into(),
    ];
    let mut config = config.mac(Mac(GATEWAY)).vlan(vlan).dns(servers);
    config.gateway_v6 = Some("fd00::1/64".parse().unwrap());
    if settings.has(Settings::SEVERAL) {
        config = config.pool([10, 0, 2, 15].into()..=[10, 0, 2, 17].into());
    }
    config
}

/// Of IPv4, and of ICMPv6 or UDP behind a header without options.
fn correct(packet: &mut [u8]) {
    let (protocol, addresses, at) = match packet.first() {
        Some(0x45) if packet.len() >= 28 => {
            packet[10..12].fill(0);
            let header = sum(&[&packet[..20]]).to_be_bytes();
            packet[10..12].copy_from_slice(&header);
            // A datagram without a checksum.
            packet[26..28].fill(0);
            return;
        }
        Some(byte) if byte >> 4 == 6 && packet.len() >= 48 => (packet[6], 8..40, 40),
        _ => return,
    };
    let end = packet
        .len()
        .min(at + usize::from(u16::from_be_bytes([packet[4], packet[5]])));
    if protocol == 58 && end >= at + 8 {
        packet[at + 2..at + 4].fill(0);
        let len = u16::try_from(end - at).unwrap().to_be_bytes();
        let icmp = sum(&[&packet[addresses], &len, &[0, protocol], &packet[at..end]]).to_be_bytes();
        packet[at + 2..at + 4].copy_from_slice(&icmp);
    }
}

/// All that happens to frames.
fn counted(stats: &EdgeStats) -> u64 {
    let answered =
        stats.arp_answered + stats.neighbours_answered + stats.dhcp_answered + stats.dhcp_refused;
    let dropped =
        stats.malformed + stats.tagged + stats.unknown + stats.not_for_us + stats.multicast;
    let unanswered = stats.spoofed + stats.no_address + stats.leases_limited;
    answered + unanswered + dropped + stats.passed + stats.ignored + stats.conflicts
}

fn frames(settings: &Settings, mut input: &[u8]) {
    let (transport, guest) = memory::pair(memory::Config::default().mtu(65_549));
    let edge = Edge::new(transport, config(settings)).unwrap();
    let mut sent = 0;
    while let Some((len, rest)) = input.split_first_chunk::<2>() {
        let (bytes, rest) = rest.split_at(usize::from(u16::from_be_bytes(*len)).min(rest.len()));
        input = rest;
        let mut frame = bytes.to_vec();
        if settings.has(Settings::AIMED) && frame.len() >= 14 {
            frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9]);
        }
        if settings.has(Settings::SUMS) && frame.len() > 14 {
            correct(&mut frame[14..]);
        }
        guest.transmit(&Packet::new(&frame, &[], 14)).unwrap();
        let mut passed = Vec::new();
        let count = edge.receive(&mut passed, 16).unwrap();
        assert_eq!(count, passed.len());
        passed
            .iter()
            .for_each(|packet| assert!(!packet.is_empty() && packet.len() < frame.len()));
        edge.transmit(&Packet::new(
            &[
                0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 1, 10, 0, 2, 15,
            ],
            &[],
            20,
        ))
        .ok();
        let mut answers = Vec::new();
        guest.receive(&mut answers, 1000).unwrap();
        answers
            .iter()
            .filter(|frame| frame.to_vec()[23] != 6 || frame.len() != 34)
            .for_each(|frame| check_sent(&frame.to_vec(), GATEWAY));
        sent += 1;
    }
    let stats = edge.stats();
    // An advertisement may answer several solicitations.
    assert!(counted(&stats) <= sent, "{sent}: {stats:?}");
}

fn stream(settings: &Settings, input: &[u8]) {
    let (near, mut far) = UnixStream::pair().unwrap();
    let edge = Edge::new(FrameStream::from_stream(near).unwrap(), config(settings)).unwrap();
    // It fits in the socket, and the end of the stream follows.
    far.write_all(input).unwrap();
    far.shutdown(std::net::Shutdown::Write).unwrap();
    let mut passed = Vec::new();
    while edge.receive(&mut passed, 3).is_ok() {}
    assert_eq!(edge.transport().stats().disconnects, 1);
}

fuzz_target!(|input: &[u8]| {
    let Some((settings, input)) = input.split_first() else {
        return;
    };
    let settings = Settings(*settings);
    match settings.has(Settings::STREAM) {
        true => stream(&settings, input),
        false => frames(&settings, input),
    }
});
