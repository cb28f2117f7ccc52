//! A host in a LAN, and everything that others may send there: frames of any content, ARP, neighbour discovery, router
//! advertisements, answers of DHCP, queries about groups; while time passes, and the stack sends. Nothing panics, what
//! the host sends is well formed and never without end, and its tables stay small.
//!
//! The input is a byte of settings and then a program ([`Input`]). To run it: `.ci/fuzz 60 host`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sosplice::clock::{Clock, system};
use sosplice::link::ethernet::{Host, HostConfig, Mac};
use sosplice::link::memory::{self, MemoryLink};
use sosplice::link::{Link, Packet};
use sosplice_fuzz::Input;
use sosplice_fuzz::ethernet::sum;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 9];
const ALL: [u8; 6] = [0xff; 6];
const MTU: usize = 1500;

#[derive(Debug)]
struct Time {
    start: Instant,
    millis: AtomicU64,
}

impl Clock for Time {
    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.millis.load(Ordering::Relaxed))
    }
}

fn config(settings: u8) -> HostConfig {
    let has = |bit: u8| settings & 1 << bit != 0;
    let mut config = HostConfig::new(Mac(OWN)).seed(settings.into());
    config = config.dhcp(has(0)).slaac(has(1)).probe(has(2)).keep(has(3));
    if has(4) {
        config = config.address("10.0.2.9/24".parse().unwrap());
        config = config.gateway([10, 0, 2, 1].into());
    }
    if has(5) {
        config = config.address("fd00::9/64".parse().unwrap());
    }
    if has(6) {
        config = config.proxy("10.0.3.0/24".parse().unwrap());
        config = config.proxy("fd03::/64".parse().unwrap());
    }
    if has(7) {
        config = config.dhcp_address(Ipv4Addr::new(10, 0, 2, 15));
    }
    config
}

/// A host's, mostly.
fn mac(input: &mut Input<'_>) -> [u8; 6] {
    let last = input.byte();
    match last {
        0 => OWN,
        1 => ALL,
        2 => [0; 6],
        _ => [2, 0, 0, 0, 1, last],
    }
}

fn v4(input: &mut Input<'_>) -> Ipv4Addr {
    let last = input.byte();
    match last {
        0 => Ipv4Addr::UNSPECIFIED,
        255 => Ipv4Addr::BROADCAST,
        254 => Ipv4Addr::new(10, 0, 3, 7),
        253 => Ipv4Addr::new(203, 0, 113, 5),
        252 => Ipv4Addr::new(239, 1, 2, 3),
        _ => Ipv4Addr::new(10, 0, 2, last),
    }
}

fn v6(input: &mut Input<'_>) -> Ipv6Addr {
    let last = input.byte();
    let prefix = input.pick(&[0xfd00, 0xfe80, 0xfd03, 0x2001, 0xff05]);
    match last {
        0 => Ipv6Addr::UNSPECIFIED,
        1 => Ipv6Addr::new(prefix, 0, 0, 0, 0, 0xff, 0xfe00, 9),
        2 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
        _ => Ipv6Addr::new(prefix, 0, 0, 0, 0, 0, 0, last.into()),
    }
}

/// A time in seconds.
fn seconds(input: &mut Input<'_>) -> u32 {
    match input.byte() {
        255 => u32::MAX,
        254 => 86_400,
        253 => 7201,
        other => other.into(),
    }
}

fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, packet: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), packet].concat()
}

/// A frame with an IPv4 packet to the host, or to all.
fn packet_v4(input: &mut Input<'_>, protocol: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let (from, to, all) = (v4(input), v4(input), input.flag());
    let header_len = 20 + options.len();
    let mut packet = vec![0; 20];
    packet[0] = 0x40 | (header_len / 4) as u8;
    packet[2..4].copy_from_slice(&((header_len + payload.len()) as u16).to_be_bytes());
    packet[8..10].copy_from_slice(&[64, protocol]);
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    packet.extend(options);
    let checksum = sum(&[&packet]).to_be_bytes();
    packet[10..12].copy_from_slice(&checksum);
    packet.extend(payload);
    ethernet(if all { ALL } else { OWN }, mac(input), 0x0800, &packet)
}

/// A frame with an ICMPv6 message. `alert`: behind a header with a router alert, as MLD wants it.
fn icmpv6(
    input: &mut Input<'_>,
    from: Ipv6Addr,
    to: Ipv6Addr,
    message: &[u8],
    alert: bool,
) -> Vec<u8> {
    let mut message = message.to_vec();
    message[2..4].fill(0);
    let addresses = [from.octets(), to.octets()].concat();
    let len = (message.len() as u32).to_be_bytes();
    let checksum = sum(&[&addresses, &len, &[0, 0, 0, 58], &message]).to_be_bytes();
    message[2..4].copy_from_slice(&checksum);
    let header: &[u8] = if alert {
        &[58, 0, 5, 2, 0, 0, 1, 0]
    } else {
        &[]
    };
    let (next, hops) = if alert { (0, 1) } else { (58, 255) };
    let len = (header.len() + message.len()) as u16;
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([next, hops]);
    packet.extend(addresses);
    packet.extend(header);
    packet.extend(message);
    let group = to.octets();
    let to = match to.is_multicast() {
        true => [0x33, 0x33, group[12], group[13], group[14], group[15]],
        false => OWN,
    };
    ethernet(to, mac(input), 0x86dd, &packet)
}

fn arp(input: &mut Input<'_>) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1 + u8::from(input.flag())];
    for _ in 0..2 {
        packet.extend(mac(input));
        packet.extend(v4(input).octets());
    }
    let (to, from) = (if input.flag() { ALL } else { OWN }, mac(input));
    ethernet(to, from, 0x0806, &packet)
}

/// An option: kind, and a value that is filled up with zeros.
fn option(message: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let units = (value.len() + 2).div_ceil(8);
    message.extend([kind, units as u8]);
    message.extend(value);
    message.resize(message.len().next_multiple_of(8), 0);
}

fn neighbour(input: &mut Input<'_>) -> Vec<u8> {
    let kind = input.pick(&[135, 136, 133, 137]);
    let mut message = vec![kind, 0, 0, 0, input.byte(), 0, 0, 0];
    if kind != 133 {
        message.extend(v6(input).octets());
    }
    for _ in 0..input.below(3) {
        let (kind, value) = (input.pick(&[1, 2, 14, 3]), mac(input));
        option(&mut message, kind, &value);
    }
    let (from, to) = (v6(input), v6(input));
    icmpv6(input, from, to, &message, false)
}

fn advertisement(input: &mut Input<'_>) -> Vec<u8> {
    let mut message = vec![134, 0, 0, 0, input.byte(), input.byte()];
    message.extend((seconds(input) as u16).to_be_bytes());
    for _ in 0..2 {
        message.extend(seconds(input).wrapping_mul(10).to_be_bytes());
    }
    for _ in 0..input.below(8) {
        let mut value = Vec::new();
        let kind = input.pick(&[1, 3, 5, 24, 25, 31]);
        match kind {
            3 => {
                value.extend([input.pick(&[64, 64, 64, 63, 128, 0, 200]), input.byte()]);
                for _ in 0..2 {
                    value.extend(seconds(input).to_be_bytes());
                }
                value.extend([0; 4]);
                value.extend(&v6(input).octets()[..8]);
                value.extend(v6(input).octets()[8..].iter().map(|byte| byte & 1));
            }
            24 => {
                value.extend([input.pick(&[0, 7, 64, 128, 255]), input.byte()]);
                value.extend(seconds(input).to_be_bytes());
                value.extend(&v6(input).octets()[..8 * input.below(3)]);
            }
            25 => {
                value.extend([0, 0]);
                value.extend(seconds(input).to_be_bytes());
                for _ in 0..input.below(4) {
                    value.extend(v6(input).octets());
                }
            }
            5 => value.extend([0, 0, 0, 0, input.byte(), input.byte()]),
            _ => value.extend(mac(input)),
        }
        option(&mut message, kind, &value);
    }
    let router = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, input.byte().into());
    icmpv6(
        input,
        router,
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
        &message,
        false,
    )
}

/// An answer in the transaction of the host's last message.
fn dhcp(input: &mut Input<'_>, transaction: [u8; 4]) -> Vec<u8> {
    let mut payload = vec![0; 236];
    payload[..3].copy_from_slice(&[2, 1, 6]);
    payload[4..8].copy_from_slice(&transaction);
    payload[16..20].copy_from_slice(&v4(input).octets());
    payload[28..34].copy_from_slice(&OWN);
    payload.extend([99, 130, 83, 99, 53, 1, input.pick(&[2, 5, 6, 2, 5])]);
    payload.extend([54, 4, 10, 0, 2, 1, 51, 4]);
    payload.extend(seconds(input).to_be_bytes());
    for _ in 0..input.below(6) {
        let kind = input.pick(&[1, 3, 6, 26, 51, 52, 58, 59, 61, 121, 255]);
        let len = input.below(40);
        let value = input.bytes(len);
        payload.extend([kind, value.len() as u8]);
        payload.extend(value);
    }
    let mut udp = vec![0, 67, 0, 68];
    udp.extend(((8 + payload.len()) as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    packet_v4(input, 17, &[], &udp)
}

fn query(input: &mut Input<'_>) -> Vec<u8> {
    let (time, is_general, rest) = (input.byte(), input.flag(), input.pick(&[0, 4, 8]));
    let tail = input.bytes(rest).to_vec();
    if input.flag() {
        let group = if is_general {
            Ipv4Addr::UNSPECIFIED
        } else {
            v4(input)
        };
        let mut message = vec![input.pick(&[0x11, 0x11, 0x16, 0x12, 0x17]), time, 0, 0];
        message.extend(group.octets());
        message.extend(tail);
        let checksum = sum(&[&message]).to_be_bytes();
        message[2..4].copy_from_slice(&checksum);
        return packet_v4(input, 2, &[0x94, 4, 0, 0], &message);
    }
    let group = if is_general {
        Ipv6Addr::UNSPECIFIED
    } else {
        v6(input)
    };
    let mut message = vec![input.pick(&[130, 130, 131, 132]), 0, 0, 0, time, 0, 0, 0];
    message.extend(group.octets());
    message.extend(tail);
    let to = match is_general {
        true => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
        false => group,
    };
    let router = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    icmpv6(input, router, to, &message, true)
}

/// A host, the rest of its LAN, and the transaction of its last message of DHCP.
struct Lan {
    host: Host<MemoryLink>,
    others: MemoryLink,
    time: Arc<Time>,
    transaction: [u8; 4],
}

impl Lan {
    fn new(settings: u8) -> Lan {
        let (transport, others) = memory::pair(memory::Config::default().mtu(MTU + 14));
        let time = Arc::new(Time {
            start: system().now(),
            millis: AtomicU64::new(0),
        });
        let host = Host::new(transport, config(settings)).unwrap();
        Lan {
            host: host.clock(time.clone()),
            others,
            time,
            transaction: [0; 4],
        }
    }

    fn send(&self, frame: &[u8]) {
        self.others.transmit(&Packet::new(frame, &[], 14)).ok();
    }

    /// The stack sends a packet.
    fn transmit(&self, to: IpAddr, len: usize) {
        let packet = match to {
            IpAddr::V4(to) => {
                let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 253, 0, 0, 10, 0, 2, 9];
                packet.extend(to.octets());
                packet.resize(20 + len, 0);
                let all = packet.len() as u16;
                packet[2..4].copy_from_slice(&all.to_be_bytes());
                let checksum = sum(&[&packet[..20]]).to_be_bytes();
                packet[10..12].copy_from_slice(&checksum);
                packet
            }
            IpAddr::V6(to) => {
                let mut packet = vec![0x60, 0, 0, 0, 0, 0, 253, 64];
                packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
                packet.extend(to.octets());
                packet.resize(40 + len, 0);
                packet[4..6].copy_from_slice(&(len as u16).to_be_bytes());
                packet
            }
        };
        let header_len = if to.is_ipv4() { 20 } else { 40 };
        self.host
            .transmit(&Packet::new(&packet, &[], header_len))
            .ok();
    }

    /// All that the host does now: it comes to rest.
    fn run(&mut self) {
        let (mut packets, mut events, mut sent) = (Vec::new(), Vec::new(), Vec::new());
        while self.host.receive(&mut packets, 64).unwrap() > 0 {}
        self.host.take_events(&mut events);
        while self.others.receive(&mut sent, 64).unwrap() > 0 {}
        // Queues of neighbours may empty at once.
        assert!(sent.len() < 2000, "{} frames at once", sent.len());
        for frame in &sent {
            self.check(&frame.to_complete_vec());
        }
        let now = self.time.now();
        let deadline = self.host.deadline();
        assert!(deadline.is_none_or(|at| at > now), "something is still due");
        assert!(self.host.addresses().len() <= 20);
        assert!(self.host.dns().len() <= 16);
        assert!(self.host.neighbours().len() <= 4096);
    }

    fn check(&mut self, frame: &[u8]) {
        assert!((14..=MTU + 14).contains(&frame.len()) && frame[6..12] == OWN);
        let packet = &frame[14..];
        match u16::from_be_bytes([frame[12], frame[13]]) {
            0x0806 => assert_eq!(packet.len(), 28),
            0x0800 => {
                let header_len = usize::from(packet[0] & 15) * 4;
                let len = u16::from_be_bytes([packet[2], packet[3]]);
                assert_eq!(usize::from(len), packet.len());
                assert_eq!(sum(&[&packet[..header_len]]), 0);
                if packet[9] == 17 && packet[22..24] == [0, 67] {
                    self.transaction.copy_from_slice(&packet[32..36]);
                }
            }
            0x86dd => {
                let len = u16::from_be_bytes([packet[4], packet[5]]);
                assert_eq!(usize::from(len) + 40, packet.len());
            }
            kind => panic!("a frame of kind {kind:#06x}"),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(12) {
            0 => {
                let waits = [1, 10, 200, 1000, 2000, 10_000, 60_000, 600_000, 7_200_000];
                let wait = input.pick(&waits);
                self.time.millis.fetch_add(wait, Ordering::Relaxed);
            }
            // To the next time, as a driver does.
            1 => {
                let since = |at: Instant| at.saturating_duration_since(self.time.start);
                let next = self.host.deadline().map(|at| since(at).as_millis() + 1);
                if let Some(next) = next.and_then(|next| u64::try_from(next).ok()) {
                    self.time
                        .millis
                        .fetch_max(next.min(1 << 40), Ordering::Relaxed);
                }
            }
            2 => {
                let len = input.byte().into();
                self.send(input.bytes(len));
            }
            3 => self.send(&arp(input)),
            4 => self.send(&neighbour(input)),
            5 | 6 => self.send(&advertisement(input)),
            7 | 8 => self.send(&dhcp(input, self.transaction)),
            9 => self.send(&query(input)),
            10 => {
                let to = if input.flag() {
                    v4(input).into()
                } else {
                    v6(input).into()
                };
                self.transmit(to, input.below(256) * 5);
            }
            _ => {
                let group = if input.flag() {
                    v4(input).into()
                } else {
                    v6(input).into()
                };
                match input.below(4) {
                    0 => _ = self.host.join(group),
                    1 => _ = self.host.leave(group),
                    2 => self.host.release(),
                    _ => self.host.reconnected(),
                }
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input::new(input);
    let mut lan = Lan::new(input.byte());
    lan.run();
    while !input.is_empty() {
        lan.step(&mut input);
        lan.run();
    }
});
