//! The gateway, frame by frame, in virtual time.

mod hostile;
mod several;

use super::*;
use crate::buf::Buf;
use crate::clock::SystemClock;
use crate::link::ethernet::frame::{ARP, IPV4, IPV6, Vlan, be16, header};
use crate::link::ethernet::wire::ndp::ALL_NODES;
use crate::link::{Checksum, memory};
use ipnet::{Ipv4Net, Ipv6Net};
use proptest::prelude::*;
use std::num::NonZeroU16;
use std::time::Duration;

const GUEST: Mac = Mac([2, 0, 0, 0, 0, 9]);
const OTHER: Mac = Mac([2, 0, 0, 0, 0, 7]);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);

fn config() -> EdgeConfig {
    let config = EdgeConfig::new(Ipv4Net::new(GATEWAY, 24).unwrap(), ADDRESS);
    config
        .gateway_v6(Ipv6Net::new(GATEWAY_V6, 64).unwrap())
        .dns([GATEWAY.into(), GATEWAY_V6.into()])
}

/// A gateway and the time.
struct Scene {
    gateway: Gateway,
    now: Instant,
}

impl Scene {
    fn new() -> Scene {
        Scene::with(config())
    }

    fn with(config: EdgeConfig) -> Scene {
        Scene {
            gateway: Gateway::new(config),
            now: SystemClock.now(),
        }
    }

    fn mac(&self) -> Mac {
        self.gateway.config.mac
    }

    /// The answers to a frame that is not passed on.
    fn answers(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        let passed = self.gateway.receive(Frame::new(frame), self.now);
        assert!(passed.is_none(), "{passed:?}");
        std::mem::take(&mut self.gateway.answers)
    }

    fn answer(&mut self, frame: &[u8]) -> Vec<u8> {
        let mut answers = self.answers(frame);
        assert_eq!(answers.len(), 1);
        answers.remove(0)
    }

    fn nothing(&mut self, frame: &[u8]) {
        assert_eq!(self.answers(frame), Vec::<Vec<u8>>::new());
    }

    fn passed(&mut self, frame: &[u8]) -> Vec<u8> {
        let packet = self.gateway.receive(Frame::new(frame), self.now);
        packet.expect("it is passed on").to_vec()
    }
}

fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let to = if operation == 1 {
        Mac::BROADCAST
    } else {
        target.0
    };
    let mut frame = header(to, sender.0, ARP).to_vec();
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        frame.extend(mac.0);
        frame.extend(address.octets());
    }
    frame
}

const NOBODY: Mac = Mac([0; 6]);

#[test]
fn a_request_for_the_gateway_is_answered_and_the_guest_learned() {
    let mut scene = Scene::new();
    let answer = scene.answer(&arp(1, (GUEST, ADDRESS), (NOBODY, GATEWAY)));
    assert_eq!(answer, arp(2, (scene.mac(), GATEWAY), (GUEST, ADDRESS)));
    assert_eq!(scene.gateway.guest, Some(GUEST));
}

/// RFC 5227 2.1.1: the sender address of a probe is zero.
#[test]
fn a_probe_of_the_gateways_address_is_answered() {
    let mut scene = Scene::new();
    let answer = scene.answer(&arp(1, (GUEST, Ipv4Addr::UNSPECIFIED), (NOBODY, GATEWAY)));
    assert_eq!(
        answer,
        arp(2, (scene.mac(), GATEWAY), (GUEST, Ipv4Addr::UNSPECIFIED))
    );
}

/// A guest probes the address that DHCP gave it. An answer would make it decline.
#[test]
fn other_addresses_are_not_answered_for() {
    let mut scene = Scene::new();
    scene.nothing(&arp(1, (GUEST, Ipv4Addr::UNSPECIFIED), (NOBODY, ADDRESS)));
    scene.nothing(&arp(1, (GUEST, ADDRESS), (NOBODY, ADDRESS)));
    scene.nothing(&arp(
        1,
        (GUEST, ADDRESS),
        (NOBODY, Ipv4Addr::new(10, 0, 2, 77)),
    ));
    scene.nothing(&arp(2, (GUEST, ADDRESS), (NOBODY, GATEWAY)));
    assert_eq!(scene.gateway.stats.ignored, 4);
}

/// RFC 5227 2.4 b.
#[test]
fn the_gateways_address_is_defended_once_in_ten_seconds() {
    let mut scene = Scene::new();
    let claim = arp(1, (GUEST, GATEWAY), (NOBODY, GATEWAY));
    let announcement = arp(1, (scene.mac(), GATEWAY), (NOBODY, GATEWAY));
    assert_eq!(scene.answer(&claim), announcement);
    scene.now += arp::DEFEND_INTERVAL - Duration::from_millis(1);
    scene.nothing(&claim);
    scene.now += Duration::from_millis(1);
    assert_eq!(scene.answer(&claim), announcement);
    assert_eq!(scene.gateway.stats.conflicts, 3);
}

#[test]
fn malformed_arp_is_counted() {
    let mut scene = Scene::new();
    let good = arp(1, (GUEST, ADDRESS), (NOBODY, GATEWAY));
    let mut count = 0;
    for len in HEADER..good.len() {
        scene.nothing(&good[..len]);
        count += 1;
    }
    for at in [14, 15, 16, 18, 19, 20, 22] {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        scene.nothing(&bad);
        count += 1;
    }
    assert_eq!(scene.gateway.stats.malformed, count);
}

fn icmpv6(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let mac = match to.octets() {
        [0xff, .., a, b, c, d] => Mac([0x33, 0x33, a, b, c, d]),
        _ => config().mac,
    };
    let mut frame = header(mac, GUEST, IPV6).to_vec();
    ip::emit_icmpv6(&mut frame, from, to, message.to_vec());
    frame
}

fn solicitation(from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr, source: bool) -> Vec<u8> {
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    if source {
        message.extend([1, 1]);
        message.extend(GUEST.0);
    }
    icmpv6(from, to, &message)
}

fn group_of(address: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(
        0xff02_0000_0000_0000_0000_0001_ff00_0000 | (address.to_bits() & 0x00ff_ffff),
    )
}

/// Destination hardware address, source and destination, and the message of an ICMPv6 frame.
fn parsed(frame: &[u8]) -> (Mac, Ipv6Addr, Ipv6Addr, Vec<u8>) {
    let address = |at: usize| Ipv6Addr::from_octets(frame[at..at + 16].try_into().unwrap());
    assert!(ip::icmpv6_holds(&frame[HEADER..]));
    assert_eq!((be16(frame, 12), frame[HEADER + 7]), (IPV6, 255));
    assert_eq!(
        usize::from(be16(frame, HEADER + 4)),
        frame.len() - HEADER - 40
    );
    (
        Mac(frame[..6].try_into().unwrap()),
        address(22),
        address(38),
        frame[54..].to_vec(),
    )
}

#[test]
fn solicitations_for_the_gateway_are_answered() {
    for target in [GATEWAY_V6, LINK_LOCAL] {
        for to in [group_of(target), target] {
            let mut scene = Scene::new();
            let answer = scene.answer(&solicitation(GUEST_V6, to, target, true));
            let (mac, from, to, message) = parsed(&answer);
            assert_eq!((mac, from, to), (GUEST, target, GUEST_V6));
            assert_eq!(message[0], 136);
            assert_eq!(message[4], 0xe0, "router, solicited, override");
            assert_eq!(message[8..24], target.octets());
            assert_eq!(message[24..32], [&[2, 1], &scene.mac().0[..]].concat());
        }
    }
}

/// RFC 4862 5.4: the answer to a host that detects duplicates goes to all.
#[test]
fn duplicates_of_the_gateways_address_are_detected() {
    let mut scene = Scene::new();
    let probe = solicitation(
        Ipv6Addr::UNSPECIFIED,
        group_of(GATEWAY_V6),
        GATEWAY_V6,
        false,
    );
    let (mac, from, to, message) = parsed(&scene.answer(&probe));
    assert_eq!((from, to), (GATEWAY_V6, ALL_NODES));
    assert_eq!(mac, Mac([0x33, 0x33, 0, 0, 0, 1]));
    assert_eq!(message[4], 0xa0, "not solicited");
    // The guest's own address.
    scene.nothing(&solicitation(
        Ipv6Addr::UNSPECIFIED,
        group_of(GUEST_V6),
        GUEST_V6,
        false,
    ));
}

/// RFC 4861 7.1.1 and 7.1.2.
#[test]
fn invalid_discovery_is_counted() {
    let good = solicitation(GUEST_V6, group_of(GATEWAY_V6), GATEWAY_V6, true);
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut message = parsed(&good).3;
        message[2..4].fill(0);
        change(&mut message);
        icmpv6(GUEST_V6, group_of(GATEWAY_V6), &message)
    };
    let mut hops = good.clone();
    hops[HEADER + 7] = 254;
    let mut sum = good.clone();
    sum[56] ^= 1;
    let group = group_of(GATEWAY_V6);
    let bad = [
        hops,
        sum,
        changed(&|message| message[1] = 1),
        changed(&|message| message[25] = 0),
        changed(&|message| message[25] = 2),
        changed(&|message| message[8] = 0xff),
        changed(&|message| message.truncate(23)),
        solicitation(Ipv6Addr::UNSPECIFIED, group, GATEWAY_V6, true),
        solicitation(Ipv6Addr::UNSPECIFIED, GATEWAY_V6, GATEWAY_V6, false),
    ];
    let mut scene = Scene::new();
    for (at, frame) in bad.iter().enumerate() {
        scene.nothing(frame);
        assert_eq!(
            scene.gateway.stats.malformed,
            u64::try_from(at).unwrap() + 1,
            "frame {at}"
        );
    }
}

#[test]
fn an_advertised_address_of_the_gateway_is_defended() {
    let mut scene = Scene::new();
    let mut claim = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    claim.extend(GATEWAY_V6.octets());
    let claim = icmpv6(GUEST_V6, ALL_NODES, &claim);
    assert_eq!(parsed(&scene.answer(&claim)).3[0], 136);
    scene.nothing(&claim);
    assert_eq!(scene.gateway.stats.conflicts, 2);
}

fn router_solicitation(from: Ipv6Addr) -> Vec<u8> {
    icmpv6(
        from,
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2),
        &[133, 0, 0, 0, 0, 0, 0, 0],
    )
}

#[test]
fn a_solicited_router_advertises_prefix_mtu_and_name_servers() {
    let mut scene = Scene::new();
    let (mac, from, to, message) = parsed(&scene.answer(&router_solicitation(GUEST_V6)));
    assert_eq!((mac, from, to), (GUEST, LINK_LOCAL, GUEST_V6));
    assert_eq!(message[0], 134);
    assert_eq!(be16(&message, 6), 1800, "lifetime of the router");
    let mut options = Vec::new();
    let mut rest = &message[16..];
    while !rest.is_empty() {
        let (option, next) = rest.split_at(usize::from(rest[1]) * 8);
        options.push(option);
        rest = next;
    }
    let kinds: Vec<u8> = options.iter().map(|option| option[0]).collect();
    assert_eq!(kinds, [1, 5, 3, 25]);
    assert_eq!(options[1][4..], 1500u32.to_be_bytes());
    assert_eq!(options[2][2..4], [64, 0xc0]);
    assert_eq!(
        options[2][16..],
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0).octets()
    );
    assert_eq!(options[3][8..], GATEWAY_V6.octets());
}

/// RFC 4861 6.2.6: at most one advertisement to all in three seconds, then one every ten minutes.
#[test]
fn advertisements_to_all_are_limited() {
    let mut scene = Scene::new();
    let solicitation = router_solicitation(Ipv6Addr::UNSPECIFIED);
    assert_eq!(parsed(&scene.answer(&solicitation)).2, ALL_NODES);
    scene.now += Duration::from_secs(1);
    scene.nothing(&solicitation);
    scene.nothing(&solicitation);
    let next = scene.gateway.next_advertisement.unwrap();
    assert_eq!(next, scene.now + ndp::LEAST_DELAY - Duration::from_secs(1));
    scene.gateway.tick(next);
    assert_eq!(scene.gateway.answers.len(), 1);
    let later = scene.gateway.next_advertisement.unwrap();
    assert_eq!(later, next + ndp::ADVERTISE_EVERY);
    scene.gateway.tick(later - Duration::from_millis(1));
    assert_eq!(scene.gateway.answers.len(), 1);
    scene.gateway.tick(later);
    assert_eq!(scene.gateway.answers.len(), 2);
}

#[test]
fn without_ipv6_nothing_is_advertised() {
    let mut scene = Scene::new();
    scene.gateway = Gateway::new(config().gateway_v6(None));
    scene.nothing(&router_solicitation(GUEST_V6));
    scene.nothing(&solicitation(
        GUEST_V6,
        group_of(LINK_LOCAL),
        LINK_LOCAL,
        true,
    ));
}

/// A message of a DHCP client.
#[derive(Clone)]
struct Request {
    kind: u8,
    guest: Mac,
    address: Ipv4Addr,
    flags: u16,
    relay: Ipv4Addr,
    options: Vec<u8>,
}

impl Request {
    fn new(kind: u8) -> Request {
        let none = Ipv4Addr::UNSPECIFIED;
        Request {
            kind,
            guest: GUEST,
            address: none,
            flags: 0,
            relay: none,
            options: Vec::new(),
        }
    }

    fn option(mut self, kind: u8, address: Ipv4Addr) -> Request {
        self.options.extend([kind, 4]);
        self.options.extend(address.octets());
        self
    }

    fn payload(&self) -> Vec<u8> {
        let mut fixed = [0; 236];
        fixed[..8].copy_from_slice(&[1, 1, 6, 0, 0xca, 0xfe, 0, 1]);
        fixed[10..12].copy_from_slice(&self.flags.to_be_bytes());
        fixed[12..16].copy_from_slice(&self.address.octets());
        fixed[24..28].copy_from_slice(&self.relay.octets());
        fixed[28..34].copy_from_slice(&self.guest.0);
        [
            &fixed[..],
            &[99, 130, 83, 99, 53, 1, self.kind],
            &self.options,
            &[255],
        ]
        .concat()
    }

    fn frame(&self) -> Vec<u8> {
        let mut frame = header(Mac::BROADCAST, self.guest, IPV4).to_vec();
        let from = (self.address, 68);
        ip::emit_udp(&mut frame, from, (Ipv4Addr::BROADCAST, 67), &self.payload());
        frame
    }
}

/// An answer of DHCP.
#[derive(Debug)]
struct Answer {
    mac: Mac,
    to: Ipv4Addr,
    yours: Ipv4Addr,
    options: Vec<(u8, Vec<u8>)>,
}

impl Answer {
    fn parse(frame: &[u8]) -> Answer {
        let address = |at: usize| Ipv4Addr::from_octets(frame[at..at + 4].try_into().unwrap());
        let payload = ip::udp_payload(&frame[HEADER..]).unwrap();
        assert!(payload.len() >= 300);
        assert_eq!(payload[..8], [2, 1, 6, 0, 0xca, 0xfe, 0, 1]);
        let mut options = Vec::new();
        let mut rest = &payload[240..];
        while rest[0] != 255 {
            let (value, next) = rest[2..].split_at(rest[1].into());
            options.push((rest[0], value.to_vec()));
            rest = next;
        }
        Answer {
            mac: Mac(frame[..6].try_into().unwrap()),
            to: address(HEADER + 16),
            yours: address(HEADER + 28 + 16),
            options,
        }
    }

    fn option(&self, kind: u8) -> Option<&[u8]> {
        let option = self.options.iter().find(|option| option.0 == kind);
        option.map(|option| option.1.as_slice())
    }

    fn kind(&self) -> u8 {
        self.option(53).unwrap()[0]
    }
}

#[test]
fn a_discovering_guest_is_offered_its_address() {
    let mut scene = Scene::new();
    let answer = Answer::parse(&scene.answer(&Request::new(1).frame()));
    assert_eq!((answer.kind(), answer.yours), (2, ADDRESS));
    assert_eq!(
        (answer.mac, answer.to),
        (GUEST, ADDRESS),
        "no broadcast was asked for"
    );
    assert_eq!(answer.option(54), Some(&GATEWAY.octets()[..]));
    assert_eq!(answer.option(51), Some(&86_400u32.to_be_bytes()[..]));
    assert_eq!(answer.option(58), Some(&43_200u32.to_be_bytes()[..]));
    assert_eq!(answer.option(59), Some(&75_600u32.to_be_bytes()[..]));
    assert_eq!(answer.option(1), Some(&[255, 255, 255, 0][..]));
    assert_eq!(answer.option(3), Some(&GATEWAY.octets()[..]));
    assert_eq!(answer.option(6), Some(&GATEWAY.octets()[..]));
    assert_eq!(answer.option(26), Some(&1500u16.to_be_bytes()[..]));
}

/// RFC 2131 4.1.
#[test]
fn answers_go_where_the_client_can_receive_them() {
    let mut scene = Scene::new();
    let broadcast = Request {
        flags: 0x8000,
        ..Request::new(1)
    };
    let answer = Answer::parse(&scene.answer(&broadcast.frame()));
    assert_eq!(
        (answer.mac, answer.to),
        (Mac::BROADCAST, Ipv4Addr::BROADCAST)
    );
    let renewal = Request {
        address: ADDRESS,
        ..Request::new(3)
    };
    let answer = Answer::parse(&scene.answer(&renewal.frame()));
    assert_eq!((answer.mac, answer.to), (GUEST, ADDRESS));
    // To the port of the server itself, as at renewal.
    let mut frame = header(scene.mac(), GUEST, IPV4).to_vec();
    ip::emit_udp(&mut frame, (ADDRESS, 68), (GATEWAY, 67), &renewal.payload());
    assert_eq!(Answer::parse(&scene.answer(&frame)).kind(), 5);
}

/// RFC 2131 4.3.2, each state of the client.
#[test]
fn requests_are_acknowledged_or_refused() {
    let old = Ipv4Addr::new(192, 168, 1, 5);
    let other = Ipv4Addr::new(10, 0, 2, 2);
    let cases = [
        (
            "selecting",
            Request::new(3).option(54, GATEWAY).option(50, ADDRESS),
            Some(5),
        ),
        (
            "selecting another address",
            Request::new(3).option(54, GATEWAY).option(50, old),
            Some(6),
        ),
        (
            "selecting another server",
            Request::new(3).option(54, other).option(50, ADDRESS),
            None,
        ),
        (
            "after a restart",
            Request::new(3).option(50, ADDRESS),
            Some(5),
        ),
        ("after a move", Request::new(3).option(50, old), Some(6)),
        (
            "renewing",
            Request {
                address: ADDRESS,
                ..Request::new(3)
            },
            Some(5),
        ),
        (
            "renewing an old address",
            Request {
                address: old,
                ..Request::new(3)
            },
            Some(6),
        ),
        ("no address", Request::new(3), None),
    ];
    for (name, request, expected) in cases {
        let mut scene = Scene::new();
        let answers = scene.answers(&request.frame());
        let answer = answers.first().map(|frame| Answer::parse(frame));
        assert_eq!(answer.as_ref().map(Answer::kind), expected, "{name}");
        match answer.filter(|answer| answer.kind() == 6) {
            Some(nak) => {
                assert_eq!(
                    (nak.mac, nak.yours),
                    (Mac::BROADCAST, Ipv4Addr::UNSPECIFIED),
                    "{name}"
                );
                assert_eq!(nak.option(51), None);
            }
            None if expected.is_some() => assert_eq!(scene.gateway.stats.dhcp_answered, 1),
            None => assert_eq!(scene.gateway.stats.ignored, 1),
        }
    }
}

#[test]
fn a_guest_that_has_an_address_asks_for_the_rest() {
    let mut scene = Scene::new();
    let inform = Request {
        address: Ipv4Addr::new(10, 0, 2, 77),
        ..Request::new(8)
    };
    let answer = Answer::parse(&scene.answer(&inform.frame()));
    assert_eq!((answer.kind(), answer.yours), (5, Ipv4Addr::UNSPECIFIED));
    assert_eq!(
        (answer.option(51), answer.option(3)),
        (None, Some(&GATEWAY.octets()[..]))
    );
}

#[test]
fn messages_without_an_answer() {
    let mut scene = Scene::new();
    for kind in [0, 2, 4, 5, 6, 7, 9, 255] {
        scene.nothing(&Request::new(kind).frame());
    }
    assert_eq!(
        (scene.gateway.stats.ignored, scene.gateway.stats.declined),
        (8, 1)
    );
    let relayed = Request {
        relay: GATEWAY,
        ..Request::new(1)
    };
    scene.nothing(&relayed.frame());
    let mut sum = Request::new(1).frame();
    sum[60] ^= 1;
    scene.nothing(&sum);
    assert_eq!(scene.gateway.stats.malformed, 2);
}

/// RFC 6842, and RFC 2132 9.3.
#[test]
fn the_clients_identifier_is_returned_also_from_other_fields() {
    let mut request = Request::new(1);
    request.options.extend([61, 3, 1, 2, 3]);
    let answer = Answer::parse(&Scene::new().answer(&request.frame()));
    assert_eq!(answer.option(61), Some(&[1, 2, 3][..]));
    let mut payload = Request::new(1).payload();
    payload[108..113].copy_from_slice(&[61, 2, 8, 9, 255]);
    let end = payload.len() - 1;
    payload.splice(end.., [52, 1, 1, 255]);
    let mut frame = header(Mac::BROADCAST, GUEST, IPV4).to_vec();
    ip::emit_udp(
        &mut frame,
        (Ipv4Addr::UNSPECIFIED, 68),
        (Ipv4Addr::BROADCAST, 67),
        &payload,
    );
    let answer = Answer::parse(&Scene::new().answer(&frame));
    assert_eq!(answer.option(61), Some(&[8, 9][..]));
}

fn udp_to(mac: Mac, to: Ipv4Addr) -> Vec<u8> {
    let mut frame = header(mac, GUEST, IPV4).to_vec();
    ip::emit_udp(&mut frame, (ADDRESS, 1000), (to, 2000), b"data");
    frame
}

#[test]
fn packets_through_the_gateway_are_passed_on() {
    let mut scene = Scene::new();
    let far = Ipv4Addr::new(203, 0, 113, 5);
    let mut frame = udp_to(scene.mac(), far);
    assert_eq!(scene.passed(&frame), frame[HEADER..]);
    let len = frame.len();
    frame.resize(60, 0xee);
    assert_eq!(scene.passed(&frame), frame[HEADER..len], "without padding");
    let tagged = [&frame[..12], &[0x81, 0, 0, 7], &frame[12..]].concat();
    scene.nothing(&tagged);
    scene.gateway.config.vlan = Vlan::Strip;
    assert_eq!(scene.passed(&tagged), frame[HEADER..len]);
    assert_eq!(
        (scene.gateway.stats.passed, scene.gateway.stats.tagged),
        (3, 1)
    );
}

#[test]
fn packets_to_others_and_to_groups_are_dropped() {
    let mut scene = Scene::new();
    let far = Ipv4Addr::new(203, 0, 113, 5);
    scene.nothing(&udp_to(OTHER, far));
    scene.nothing(&udp_to(Mac::BROADCAST, far));
    scene.nothing(&udp_to(
        Mac([1, 0, 0x5e, 0, 0, 251]),
        Ipv4Addr::new(224, 0, 0, 251),
    ));
    scene.nothing(&udp_to(scene.mac(), Ipv4Addr::new(224, 0, 0, 251)));
    scene.nothing(&udp_to(Mac::BROADCAST, Ipv4Addr::BROADCAST));
    scene.nothing(&udp_to(Mac::BROADCAST, Ipv4Addr::new(10, 0, 2, 255)));
    scene.nothing(&icmpv6(GUEST_V6, ALL_NODES, &[128, 0, 0, 0, 0, 0, 0, 0]));
    let mut own = udp_to(scene.mac(), far);
    own[6..12].copy_from_slice(&config().mac.0);
    scene.nothing(&own);
    scene.nothing(&header(scene.mac(), GUEST, 0x88cc));
    let stats = scene.gateway.stats;
    assert_eq!(
        (
            stats.not_for_us,
            stats.multicast,
            stats.unknown,
            stats.passed
        ),
        (2, 6, 1, 0)
    );
}

#[test]
fn packets_wait_for_the_guest_within_bounds() {
    let mut scene = Scene::new();
    let packet = |number: u8, len: usize| {
        Waiting::new(&Packet::new(
            &[0x45, number],
            &[Buf::copy_of(&vec![0; len])],
            20,
        ))
    };
    for number in 0..100 {
        scene.gateway.keep(packet(number, 100));
    }
    assert_eq!(scene.gateway.waiting.len(), MAX_WAITING);
    let answers = scene.answers(&arp(1, (GUEST, ADDRESS), (NOBODY, GATEWAY)));
    let newest = (36..100).map(|number| (GUEST, packet(number, 100)));
    assert!(
        scene.gateway.released.iter().cloned().eq(newest),
        "the newest, in order"
    );
    assert_eq!(
        (scene.gateway.stats.waiting_dropped, answers.len()),
        (36, 1)
    );
    let mut scene = Scene::new();
    for number in 0..10 {
        scene.gateway.keep(packet(number, 60_000));
    }
    assert_eq!(scene.gateway.waiting.len(), 2, "bounded by bytes");
    assert!(scene.gateway.waiting_bytes <= MAX_WAITING_BYTES);
}

#[test]
fn answers_without_room_are_dropped() {
    let mut scene = Scene::new();
    let request = arp(1, (GUEST, ADDRESS), (NOBODY, GATEWAY));
    for _ in 0..1000 {
        scene.gateway.receive(Frame::new(&request), scene.now);
    }
    assert_eq!(scene.gateway.answers.len(), MAX_ANSWERS);
    assert_eq!(scene.gateway.stats.answers_dropped, 1000 - 128);
}

#[test]
fn settings_that_are_refused() {
    let refused = |config: EdgeConfig| {
        Edge::new(memory::pair(memory::Config::default()).0, config).unwrap_err()
    };
    let outside = EdgeConfig {
        guest: Ipv4Addr::new(10, 0, 3, 1),
        ..config()
    };
    assert!(matches!(refused(outside), ConfigError::Guest { .. }));
    let same = EdgeConfig {
        guest: GATEWAY,
        ..config()
    };
    assert!(matches!(refused(same), ConfigError::Guest { .. }));
    let prefix = config().gateway_v6(Ipv6Net::new(GATEWAY_V6, 80).unwrap());
    assert!(matches!(refused(prefix), ConfigError::Prefix(_)));
    assert!(matches!(
        refused(config().mtu(1279)),
        ConfigError::Mtu { least: 1280, .. }
    ));
    assert!(matches!(
        refused(config().gateway_v6(None).mtu(65_536)),
        ConfigError::Mtu { .. }
    ));
    assert!(matches!(
        refused(config().mac(Mac::BROADCAST)),
        ConfigError::Mac(_)
    ));
    assert!(matches!(
        refused(config().lease(Duration::from_millis(999))),
        ConfigError::Lease(_)
    ));
    assert!(matches!(
        refused(config().dns([GATEWAY.into(); 9])),
        ConfigError::Dns(9)
    ));
}

/// A packet of a stack, over a pair in memory, before and after the guest is known.
#[test]
fn a_link_carries_packets_both_ways() {
    let (transport, guest) = memory::pair(memory::Config::default().mtu(1514));
    let edge = Edge::new(transport, config()).unwrap();
    let (mut frames, far) = (Vec::new(), Ipv4Addr::new(203, 0, 113, 5));
    let ip = udp_to(config().mac, far)[HEADER..].to_vec();
    let checksum = Checksum::partial_udp(20);
    edge.transmit(&Packet {
        checksum,
        ..Packet::new(&ip, &[], 20)
    })
    .unwrap();
    assert_eq!(guest.receive(&mut frames, 9).unwrap(), 0);
    let up = udp_to(config().mac, far);
    guest
        .transmit(&Packet {
            checksum: Checksum::partial_udp(34),
            ..Packet::new(&up, &[], 34)
        })
        .unwrap();
    assert_eq!(edge.receive(&mut frames, 9).unwrap(), 1);
    assert_eq!(
        (frames[0].to_vec(), frames[0].checksum),
        (up[HEADER..].to_vec(), checksum)
    );
    frames.clear();
    edge.transmit(&Packet {
        checksum,
        ..Packet::new(&ip, &[], 20)
    })
    .unwrap();
    assert_eq!(guest.receive(&mut frames, 9).unwrap(), 2);
    assert_eq!(
        frames[0].to_vec()[..HEADER],
        header(GUEST, config().mac, IPV4)
    );
    assert_eq!(frames[0].checksum, Checksum::partial_udp(34));
    assert_eq!(frames[1].checksum, Checksum::partial_udp(34));
    let refused = edge.transmit(&Packet::new(&[0x45; 1501], &[], 20));
    assert!(matches!(refused, Err(TransmitError::Refused(_))));
}

/// Both to a guest that is known and to one that is not yet, and from it.
#[test]
fn super_frames_cross_with_their_segments_and_checksums() {
    let can = Capabilities::new(1514).checksum(true);
    let can = can.segment_v4(65_000).datagrams_v4(64_000);
    let transport = memory::Config::default().capabilities(can.segment_v6(63_000));
    let (near, guest) = memory::pair(transport);
    let edge = Edge::new(near, config()).unwrap();
    let can = edge.capabilities();
    assert_eq!((can.mtu, can.checksum), (1500, true));
    assert_eq!(
        (can.segment_v4, can.segment_v6),
        (Some(64_986), Some(62_986))
    );
    assert_eq!((can.datagrams_v4, can.datagrams_v6), (Some(63_986), None));
    let mut header = [0; 28];
    (header[0], header[9]) = (0x45, 17);
    let payload = [Buf::copy_of(&[7; 40_000])];
    let packet = Packet::new(&header, &payload, 20)
        .checksum(Checksum::partial_udp(20))
        .segment(NonZeroU16::new(1200));
    edge.transmit(&packet).unwrap();
    let mut frames = Vec::new();
    assert_eq!(guest.receive(&mut frames, 9).unwrap(), 0, "it waits");
    let request = arp(1, (GUEST, ADDRESS), (NOBODY, GATEWAY));
    guest.transmit(&Packet::new(&request, &[], HEADER)).unwrap();
    edge.receive(&mut Vec::new(), 9).unwrap();
    edge.transmit(&packet).unwrap();
    assert_eq!(guest.receive(&mut frames, 9).unwrap(), 3);
    let answer = frames.remove(1);
    assert_eq!(answer.segment, None);
    for frame in &frames {
        assert_eq!(frame.len(), HEADER + 28 + 40_000);
        assert_eq!(frame.checksum, Checksum::partial_udp(34));
        assert_eq!(frame.segment, NonZeroU16::new(1200));
        let mut back = frame.to_vec();
        back[..6].copy_from_slice(&config().mac.0);
        back[6..12].copy_from_slice(&GUEST.0);
        let back = Packet::new(&back, &[], HEADER + 20)
            .checksum(frame.checksum)
            .segment(frame.segment);
        guest.transmit(&back).unwrap();
    }
    let mut packets = Vec::new();
    edge.receive(&mut packets, 9).unwrap();
    for packet in packets {
        assert_eq!(packet.len(), 28 + 40_000);
        assert_eq!(packet.checksum, Checksum::partial_udp(20));
        assert_eq!(packet.segment, NonZeroU16::new(1200));
    }
}

/// Random changes of valid frames, and random bytes.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let samples = vec![
        arp(1, (GUEST, ADDRESS), (NOBODY, GATEWAY)),
        solicitation(GUEST_V6, group_of(GATEWAY_V6), GATEWAY_V6, true),
        router_solicitation(GUEST_V6),
        Request::new(1).frame(),
        Request::new(3).option(50, ADDRESS).frame(),
        udp_to(config().mac, Ipv4Addr::new(203, 0, 113, 5)),
    ];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let changed = (
        prop::sample::select(samples),
        changes,
        any::<prop::sample::Index>(),
        any::<bool>(),
    );
    let changed = changed.prop_map(|(mut frame, changes, end, cut)| {
        for (at, value) in changes {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        let end = if cut {
            end.index(frame.len())
        } else {
            frame.len()
        };
        frame.truncate(end);
        frame
    });
    prop_oneof![4 => changed, 1 => prop::collection::vec(any::<u8>(), 0..200)]
}

/// Frames that were neither answered, ignored, dropped nor passed on, by the counters.
fn unaccounted(stats: &EdgeStats, frames: u64) -> i128 {
    let EdgeStats {
        passed,
        arp_answered,
        neighbours_answered,
        dhcp_answered,
        dhcp_refused,
        ignored,
        ..
    } = *stats;
    let EdgeStats {
        conflicts,
        malformed,
        tagged,
        unknown,
        not_for_us,
        multicast,
        advertisements,
        spoofed,
        no_address,
        leases_limited,
        ..
    } = *stats;
    let answered =
        arp_answered + neighbours_answered + dhcp_answered + dhcp_refused + advertisements;
    let unanswered = spoofed + no_address + leases_limited;
    let dropped = malformed + tagged + unknown + not_for_us + multicast + unanswered;
    i128::from(frames) - i128::from(passed + answered + dropped + ignored + conflicts)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Each is answered, ignored, dropped or passed on, and counted. Solicitations of the router that come too soon
    /// share an answer.
    #[test]
    fn frames_of_any_content(
        frames in prop::collection::vec(hostile(), 1..40),
        strip: bool,
        several: bool,
    ) {
        let mut scene = Scene::new();
        if several {
            scene = Scene::with(several::config());
        }
        scene.gateway.config.vlan = if strip { Vlan::Strip } else { Vlan::Drop };
        let mut shared = 0;
        for frame in &frames {
            let before = scene.gateway.stats;
            let passed = scene.gateway.receive(Frame::new(frame), scene.now);
            let counted = unaccounted(&before, 0) - unaccounted(&scene.gateway.stats, 0);
            shared += 1 - counted;
            prop_assert!(counted == 1 || (counted == 0 && scene.gateway.next_advertisement.is_some()));
            prop_assert_eq!(passed.is_some(), scene.gateway.stats.passed > before.passed);
            prop_assert!(scene.gateway.answers.len() <= MAX_ANSWERS);
            for answer in scene.gateway.answers.drain(..) {
                prop_assert!(answer.len() <= 14 + 1500 && answer[6..12] == config().mac.0);
            }
            scene.now += Duration::from_millis(100);
        }
        let total = u64::try_from(frames.len()).unwrap();
        prop_assert_eq!(unaccounted(&scene.gateway.stats, total), shared);
    }
}

/// A clock that is set by hand.
#[derive(Debug)]
struct Hand(Mutex<Instant, LEAF>);

impl Clock for Hand {
    fn now(&self) -> Instant {
        *self.0.lock()
    }
}

/// Guards `Link::deadline` and the driver's heed of it: no frame arrives, and virtual time alone brings the next
/// advertisement.
#[test]
fn timers_are_those_of_the_clock() {
    let start = SystemClock.now();
    let clock = Arc::new(Hand(Mutex::new(start)));
    let (transport, guest) = memory::pair(memory::Config::default().mtu(1514));
    let edge = Edge::new(transport, config()).unwrap().clock(clock.clone());
    let builder = crate::Stack::builder(edge).clock(clock.clone());
    let builder = builder.address("10.0.2.1/24".parse().unwrap());
    let (_stack, mut driver) = builder.build_with_driver().unwrap();
    let mut poll = || {
        while driver.poll().unwrap() {}
        let mut frames = Vec::new();
        guest.receive(&mut frames, 9).unwrap();
        (frames.len(), driver.poll_at())
    };
    assert_eq!(poll(), (0, None));
    let solicitation = router_solicitation(GUEST_V6);
    guest
        .transmit(&Packet::new(&solicitation, &[], 14))
        .unwrap();
    let next = start + ndp::ADVERTISE_EVERY;
    assert_eq!(poll(), (1, Some(next)));
    *clock.0.lock() = next;
    assert_eq!(poll(), (1, Some(next + ndp::ADVERTISE_EVERY)));
}
