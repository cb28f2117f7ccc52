//! Several guests that attack each other and their gateway, with messages whose formats and checksums are right: ARP,
//! neighbour discovery, DHCP, packets, and time. Nothing panics, each frame is counted once, a lease that lasts is no other
//! guest's, packets are those of their guests, and the tables stay small.
//!
//! The input is a program ([`Input`]). To run it: `.ci/fuzz 60 guests`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sosplice::clock::{Clock, system};
use sosplice::link::ethernet::{Edge, EdgeConfig, EdgeStats, Mac, Vlan};
use sosplice::link::memory::{self, MemoryLink};
use sosplice::link::{Link, Packet};
use sosplice_fuzz::Input;
use sosplice_fuzz::ethernet::{check_sent, sum};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 1];
const LEASE: Duration = Duration::from_secs(100);

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

fn guest(number: usize) -> [u8; 6] {
    [2, 0, 0, 0, 1, number as u8]
}

/// One of the four guests, mostly, or another address.
fn mac(input: &mut Input<'_>) -> [u8; 6] {
    match input.below(8) {
        7 => GATEWAY,
        6 => [0xff; 6],
        5 => [0x33, 0x33, 0, 0, 0, 1],
        number => guest(number % 4),
    }
}

/// Of the gateway, of the pool (10 to 13), reserved for the guest 3 (9), without a lease, and special ones.
fn v4(input: &mut Input<'_>) -> Ipv4Addr {
    let last = input.pick(&[1, 10, 11, 12, 13, 9, 200, 0, 255]);
    match input.below(12) {
        11 => Ipv4Addr::UNSPECIFIED,
        10 => Ipv4Addr::BROADCAST,
        9 => [203, 0, 113, 5].into(),
        _ => [10, 0, 2, last].into(),
    }
}

fn v6(input: &mut Input<'_>) -> Ipv6Addr {
    let low = u128::from(input.pick(&[1u8, 2, 3, 9]));
    match input.below(8) {
        0 => Ipv6Addr::UNSPECIFIED,
        1 => Ipv6Addr::from_bits(0xff02 << 112 | 1),
        2 => Ipv6Addr::from_bits(0xff02_0000_0000_0000_0000_0001_ff00_0000 | low),
        3 => Ipv6Addr::from_bits(0x2001 << 112 | low),
        4 | 5 => Ipv6Addr::from_bits(0xfe80 << 112 | low),
        _ => Ipv6Addr::from_bits(0xfd << 120 | low),
    }
}

fn arp(input: &mut Input<'_>, from: [u8; 6]) -> Vec<u8> {
    let sender = if input.below(4) == 0 {
        mac(input)
    } else {
        from
    };
    let mut frame = vec![0, 1, 8, 0, 6, 4, 0, input.pick(&[1, 2, 1, 3])];
    frame.extend(sender);
    frame.extend(v4(input).octets());
    frame.extend(mac(input));
    frame.extend(v4(input).octets());
    frame
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut header = vec![0x45, 0, len[0], len[1], 0, 0, 0, 0, 64, protocol, 0, 0];
    header.extend(from.octets());
    header.extend(to.octets());
    let checksum = sum(&[&header]).to_be_bytes();
    header[10..12].copy_from_slice(&checksum);
    header.extend(payload);
    header
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    header.extend([protocol, 255]);
    header.extend(from.octets());
    header.extend(to.octets());
    header.extend(payload);
    header
}

fn discovery(input: &mut Input<'_>, source: [u8; 6]) -> Vec<u8> {
    let kind = 133 + input.byte() % 5;
    let (from, to) = (v6(input), v6(input));
    let mut message = vec![kind, 0, 0, 0, input.byte(), 0, 0, 0];
    match kind {
        133 => {}
        134 => message.extend([0; 8]),
        135 | 136 => message.extend(v6(input).octets()),
        _ => message.extend([0; 32]),
    }
    if input.flag() {
        let named = if input.below(4) == 0 {
            mac(input)
        } else {
            source
        };
        message.extend([input.pick(&[1, 2, 3]), 1]);
        message.extend(named);
    }
    let addresses = [from.octets(), to.octets()].concat();
    let len = u16::try_from(message.len()).unwrap().to_be_bytes();
    let checksum = sum(&[&addresses, &len, &[0, 58], &message]).to_be_bytes();
    message[2..4].copy_from_slice(&checksum);
    ipv6(from, to, 58, &message)
}

/// A message of DHCP that was sent.
struct Sent {
    kind: u8,
    mac: [u8; 6],
    ciaddr: Ipv4Addr,
    requested: Option<Ipv4Addr>,
}

fn dhcp(input: &mut Input<'_>, source: [u8; 6]) -> (Vec<u8>, Sent) {
    let kind = input.pick(&[1, 3, 3, 3, 4, 7, 8, 2]);
    let mac = if input.below(8) == 0 {
        mac(input)
    } else {
        source
    };
    let mut message = vec![0; 236];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[10] = input.pick(&[0, 0x80]);
    let ciaddr = if input.flag() {
        v4(input)
    } else {
        Ipv4Addr::UNSPECIFIED
    };
    message[12..16].copy_from_slice(&ciaddr.octets());
    message[28..34].copy_from_slice(&mac);
    message.extend([99, 130, 83, 99, 53, 1, kind]);
    let requested = input.flag().then(|| v4(input));
    if let Some(requested) = requested {
        message.extend([50, 4]);
        message.extend(requested.octets());
    }
    if input.flag() {
        message.extend([54, 4]);
        message.extend(v4(input).octets());
    }
    let rest = input.below(24);
    let rest = input.bytes(rest);
    message.extend([12, u8::try_from(rest.len()).unwrap()]);
    message.extend(rest);
    message.push(255);
    let len = u16::try_from(8 + message.len()).unwrap().to_be_bytes();
    let udp = [&[0, 68, 0, 67, len[0], len[1], 0, 0], &message[..]].concat();
    let to = input.pick(&[Ipv4Addr::BROADCAST, Ipv4Addr::new(10, 0, 2, 1)]);
    let sent = Sent {
        kind,
        mac,
        ciaddr,
        requested,
    };
    (ipv4(ciaddr, to, 17, &udp), sent)
}

fn counted(stats: &EdgeStats) -> u64 {
    let answered =
        stats.arp_answered + stats.neighbours_answered + stats.dhcp_answered + stats.dhcp_refused;
    let dropped =
        stats.malformed + stats.tagged + stats.unknown + stats.not_for_us + stats.multicast;
    let unanswered = stats.spoofed + stats.no_address + stats.leases_limited;
    answered + unanswered + dropped + stats.passed + stats.ignored + stats.conflicts
}

struct World {
    clock: Arc<Time>,
    edge: Edge<MemoryLink>,
    wire: MemoryLink,
    /// Leases by the messages that were seen.
    leases: HashMap<Ipv4Addr, ([u8; 6], Instant)>,
}

impl World {
    fn new(rate: bool) -> World {
        let clock = Arc::new(Time {
            start: system().now(),
            millis: AtomicU64::new(0),
        });
        let mut config = EdgeConfig::new("10.0.2.1/24".parse().unwrap(), [10, 0, 2, 15].into())
            .mac(Mac(GATEWAY))
            .vlan(Vlan::Strip)
            .lease(LEASE)
            .pool([10, 0, 2, 10].into()..=[10, 0, 2, 13].into())
            .reservations([(Mac(guest(3)), [10, 0, 2, 9].into())])
            .new_guests_per_minute(rate.then_some(2));
        config.gateway_v6 = Some("fd00::1/64".parse().unwrap());
        let (transport, wire) = memory::pair(memory::Config::default().mtu(65_549));
        let edge = Edge::new(transport, config).unwrap().clock(clock.clone());
        World {
            clock,
            edge,
            wire,
            leases: HashMap::new(),
        }
    }

    fn holder(&self, address: Ipv4Addr) -> Option<[u8; 6]> {
        let (mac, until) = self.leases.get(&address)?;
        (*until > self.clock.now()).then_some(*mac)
    }

    /// A frame of a guest; `sent` if it is a message of DHCP as it was made.
    fn frame(&mut self, frame: &[u8], sent: Option<&Sent>) {
        let before = self.edge.stats();
        self.wire.transmit(&Packet::new(frame, &[], 14)).unwrap();
        let mut passed = Vec::new();
        self.edge.receive(&mut passed, 16).unwrap();
        let stats = self.edge.stats();
        let count = counted(&stats) - counted(&before);
        // A router solicitation may have been answered by an advertisement, now or later.
        assert!(
            count == 1 || (count == 0 && frame.get(12..14) != Some(&[8, 6][..])),
            "{count}"
        );
        assert_eq!(stats.passed - before.passed, passed.len() as u64);
        for packet in &passed {
            let packet = packet.to_vec();
            if packet[0] >> 4 == 4 {
                let source: [u8; 4] = packet[12..16].try_into().unwrap();
                assert_eq!(source[..3], [10, 0, 2]);
                let holder = self.holder(source.into());
                assert!(holder.is_none_or(|holder| holder == frame[6..12]));
            }
        }
        if let Some(sent) = sent.filter(|sent| sent.mac == frame[6..12]) {
            let gives_back = match sent.kind {
                4 => sent.requested,
                7 => Some(sent.ciaddr),
                _ => None,
            };
            if let Some(address) = gives_back.filter(|back| self.holder(*back) == Some(sent.mac)) {
                self.leases.remove(&address);
            }
        }
        self.answers();
    }

    /// What the gateway has sent.
    fn answers(&mut self) {
        let mut frames = Vec::new();
        self.wire.receive(&mut frames, 1000).unwrap();
        for frame in frames {
            let frame = frame.to_vec();
            check_sent(&frame, GATEWAY);
            let is_dhcp = frame[12..14] == [8, 0] && frame.get(34..38) == Some(&[0, 67, 0, 68][..]);
            if !is_dhcp {
                continue;
            }
            let message = &frame[42..];
            let address: [u8; 4] = message[16..20].try_into().unwrap();
            let mac: [u8; 6] = message[28..34].try_into().unwrap();
            if message[242] == 5 && address != [0; 4] {
                self.leased(address.into(), mac);
            }
        }
        assert!(self.edge.guests().len() <= 4 + 32);
    }

    fn leased(&mut self, address: Ipv4Addr, mac: [u8; 6]) {
        let last = address.octets()[3];
        let reserved = mac == guest(3);
        assert!(if reserved {
            last == 9
        } else {
            (10..=13).contains(&last)
        });
        let holder = self.holder(address);
        assert!(
            holder.is_none_or(|holder| holder == mac),
            "a lease that lasts"
        );
        self.leases.retain(|_, lease| lease.0 != mac);
        self.leases.insert(address, (mac, self.clock.now() + LEASE));
    }

    /// A packet of the stack.
    fn packet(&mut self, to: IpAddr) {
        let gateway_v6 = Ipv6Addr::from_bits(0xfd << 120 | 1);
        let packet = match to {
            IpAddr::V4(to) => ipv4([10, 0, 2, 1].into(), to, 6, b"data"),
            IpAddr::V6(to) => ipv6(gateway_v6, to, 6, b"data"),
        };
        self.edge.transmit(&Packet::new(&packet, &[], 20)).ok();
        let IpAddr::V4(to) = to else {
            return self.answers();
        };
        if let Some(holder) = self.holder(to) {
            let mut frames = Vec::new();
            self.wire.receive(&mut frames, 1000).unwrap();
            let last = frames.last().expect("it was sent").to_vec();
            assert!(last[..6] == holder && last[14..] == packet);
        }
        self.answers();
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let source = guest(input.below(4));
        let to = if input.below(4) == 0 {
            mac(input)
        } else {
            GATEWAY
        };
        let (kind, packet, sent) = match input.below(8) {
            0 => (0x0806u16, arp(input, source), None),
            1 => (0x86dd, discovery(input, source), None),
            2 | 3 => {
                let (packet, sent) = dhcp(input, source);
                (0x0800, packet, Some(sent))
            }
            4 => {
                let (from, to) = (v4(input), v4(input));
                (0x0800, ipv4(from, to, 6, b"data"), None)
            }
            5 => {
                let (from, to) = (v6(input), v6(input));
                (0x86dd, ipv6(from, to, 6, b"data"), None)
            }
            6 => {
                let millis = u64::from(input.byte()) * u64::from(input.byte());
                self.clock.millis.fetch_add(millis, Ordering::Relaxed);
                self.edge.receive(&mut Vec::new(), 16).unwrap();
                return self.answers();
            }
            _ => {
                let to = if input.flag() {
                    v4(input).into()
                } else {
                    v6(input).into()
                };
                return self.packet(to);
            }
        };
        let mut frame = [&to[..], &source].concat();
        frame.extend(kind.to_be_bytes());
        frame.extend(packet);
        // In one of eight a byte is another one, or the end is missing: what it means then is not known.
        let at = usize::from(input.u16()) % frame.len();
        match input.below(16) {
            0 => frame[at] = input.byte(),
            1 => frame.truncate(at),
            _ => return self.frame(&frame, sent.as_ref()),
        }
        self.leases
            .retain(|_, lease| sent.is_none() || lease.0 != source);
        self.frame(&frame, None);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mut world = World::new(input.flag());
    while !input.is_empty() {
        world.step(&mut input);
    }
});
