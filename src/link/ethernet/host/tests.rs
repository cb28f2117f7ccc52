//! A host, frame by frame, in virtual time.

mod addresses;
mod configured;
mod frames;
mod lan;
mod neighbours;
mod routes;

use super::station::{Departure, Outgoing, Station};
use super::*;
use crate::clock::SystemClock;
use crate::link::ethernet::frame::{ARP, IPV4, IPV6, be16, header};
use crate::link::ethernet::wire::arp::{self as arp_wire, REPLY, REQUEST};
use crate::link::ethernet::wire::{groups as groups_wire, ip, ndp as ndp_wire};
use crate::link::{Undelivered, memory};
use ipnet::IpNet;
use std::net::{Ipv4Addr, Ipv6Addr};

const MAC: Mac = Mac([2, 0, 0, 0, 0, 5]);
const OTHER: Mac = Mac([2, 0, 0, 0, 0, 7]);
const THIRD: Mac = Mac([2, 0, 0, 0, 0, 9]);
const NOBODY: Mac = Mac([0; 6]);
const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);
const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const OWN_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 5);
const PEER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 5);
const SECOND: Duration = Duration::from_secs(1);

/// Of IPv4 alone.
fn v4() -> HostConfig {
    HostConfig::new(MAC)
        .address(IpNet::new(OWN.into(), 24).unwrap())
        .seed(7)
}

fn v6() -> HostConfig {
    HostConfig::new(MAC)
        .address(IpNet::new(OWN_V6.into(), 64).unwrap())
        .seed(7)
}

/// A host and the time.
struct Scene {
    station: Station,
    start: Instant,
    now: Instant,
}

/// An event, without the rest of a packet.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Added(IpNet),
    Removed(IpAddr),
    Deprecated(IpAddr),
    /// The packet's number, see [`packet`].
    Undelivered(u16, Undelivered),
}

impl Scene {
    /// Before the addresses are in use.
    fn probing(config: HostConfig) -> Scene {
        config.check().unwrap();
        let seed = config.seed.unwrap();
        let now = SystemClock.now();
        let mut scene = Scene {
            station: Station::new(config, seed),
            start: now,
            now,
        };
        scene.station.begin(now);
        scene
    }

    /// With its addresses in use, which were not probed.
    fn new(config: HostConfig) -> Scene {
        let mut scene = Scene::probing(config.probe(false));
        scene.pass(3 * SECOND);
        scene.events();
        scene
    }

    /// Lets time pass, and returns the frames that are sent meanwhile, with the times in milliseconds since the start.
    fn pass(&mut self, time: Duration) -> Vec<(u128, Vec<u8>)> {
        let end = self.now + time;
        let mut sent = Vec::new();
        while let Some(at) = self.station.deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.station.poll(self.now);
            let frames = self.sent().into_iter();
            let since = (self.now - self.start).as_millis();
            sent.extend(frames.map(|frame| (since, frame)));
            let next = self.station.deadline();
            assert!(next.is_none_or(|next| next > self.now), "time goes on");
        }
        self.now = end;
        sent
    }

    /// As `pass`, without the times.
    fn passing(&mut self, time: Duration) -> Vec<Vec<u8>> {
        self.pass(time)
            .into_iter()
            .map(|(_, frame)| frame)
            .collect()
    }

    /// The frames that are to be sent, without those about groups.
    fn sent(&mut self) -> Vec<Vec<u8>> {
        let outgoing = std::iter::from_fn(|| {
            let outgoing = self.station.next_outgoing();
            self.station.is_sent(false);
            outgoing
        });
        outgoing
            .map(|outgoing| match outgoing {
                Outgoing::Answer(frame) => frame,
                Outgoing::Packet(to, packet) => in_frame(to, MAC, packet.bytes()),
            })
            .filter(|frame| !groups_wire::is_message(&frame[14..]))
            .collect()
    }

    fn events(&mut self) -> Vec<Event> {
        let events = std::mem::take(&mut self.station.events).into_iter();
        events
            .map(|event| match event {
                LinkEvent::AddressAdded(net) => Event::Added(net),
                LinkEvent::AddressRemoved(address) => Event::Removed(address),
                LinkEvent::AddressDeprecated { address, .. } => Event::Deprecated(address),
                LinkEvent::Undelivered { packet, why } => {
                    Event::Undelivered(number_of(&packet.to_vec()), why)
                }
            })
            .collect()
    }

    fn receive(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let passed = self.station.receive(Frame::new(frame), self.now);
        passed.map(|frame| frame.to_vec())
    }

    /// The answers to a frame that is not passed on.
    fn answers(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        assert_eq!(self.receive(frame), None);
        self.sent()
    }

    fn answer(&mut self, frame: &[u8]) -> Vec<u8> {
        let mut answers = self.answers(frame);
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    }

    fn nothing(&mut self, frame: &[u8]) {
        assert_eq!(self.answers(frame), Vec::<Vec<u8>>::new());
    }

    /// A packet of the stack. Returns its frame, if it leaves at once.
    fn send(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let header_len = if packet[0] >> 4 == 4 { 20 } else { 40 };
        let whole = Packet::new(packet, &[], header_len);
        match self.station.depart(&whole, self.now) {
            Departure::Now(to) => Some(in_frame(to, MAC, packet)),
            Departure::Taken => None,
        }
    }

    fn state(&self, address: impl Into<IpAddr>) -> Option<AddressState> {
        let own = self.station.own(address);
        own.map(|own| own.describe().state)
    }
}

fn in_frame(to: Mac, from: Mac, packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 4 { IPV4 } else { IPV6 };
    [&header(to, from, kind)[..], packet].concat()
}

/// A packet with a number, in the field for identification or in the flow label.
fn packet(from: impl Into<IpAddr>, to: impl Into<IpAddr>, number: u16) -> Vec<u8> {
    match (from.into(), to.into()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut packet = Vec::new();
            ip::emit_udp(&mut packet, (from, 9), (to, 9), b"data");
            packet[4..6].copy_from_slice(&number.to_be_bytes());
            packet
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut packet = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
            packet[2..4].copy_from_slice(&number.to_be_bytes());
            packet.extend([from.octets(), to.octets()].concat());
            packet.extend([0, 9, 0, 9, 0, 8, 0, 0]);
            packet
        }
        _ => unreachable!("of one family"),
    }
}

fn number_of(packet: &[u8]) -> u16 {
    be16(packet, if packet[0] >> 4 == 4 { 4 } else { 2 })
}

fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let to = match target.0 {
        NOBODY => Mac::BROADCAST,
        to => to,
    };
    let mut frame = header(to, sender.0, ARP).to_vec();
    let packet = arp_wire::Packet {
        operation,
        sender,
        target,
    };
    packet.emit(&mut frame);
    frame
}

/// A request from one of the host's addresses, or of 0.0.0.0: a probe.
fn own_request(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    arp(REQUEST, (MAC, sender), (NOBODY, target))
}

fn icmpv6(way: (Mac, Mac), from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let mut frame = header(way.1, way.0, IPV6).to_vec();
    ip::emit_icmpv6(&mut frame, from, to, message.to_vec());
    frame
}

fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

/// An option of six bytes.
type Six = Option<[u8; 6]>;

/// A solicitation to the target's group, with a source or with a nonce.
fn solicitation(from: (Mac, Ipv6Addr), target: Ipv6Addr, source: Six, nonce: Six) -> Vec<u8> {
    let group = ndp_wire::solicited_node(target);
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    for (kind, value) in [(1, source), (14, nonce)] {
        if let Some(value) = value {
            message.extend([kind, 1]);
            message.extend(value);
        }
    }
    icmpv6((from.0, group_mac(group)), from.1, group, &message)
}

fn probe_v6(from: Mac, target: Ipv6Addr, nonce: [u8; 6]) -> Vec<u8> {
    solicitation((from, Ipv6Addr::UNSPECIFIED), target, None, Some(nonce))
}

/// An advertisement from the target itself, to one host or to all.
fn advertisement(target: (Mac, Ipv6Addr), to: Option<(Mac, Ipv6Addr)>, flags: u8) -> Vec<u8> {
    let mut message = vec![136, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.1.octets());
    message.extend([2, 1]);
    message.extend(target.0.0);
    let all = ndp_wire::ALL_NODES;
    let (mac, to) = to.unwrap_or((group_mac(all), all));
    icmpv6((target.0, mac), target.1, to, &message)
}

const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
