//! Packets to other networks.

use super::super::routes::SEEK_AFTER;
use super::*;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const SECONDARY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const FAR_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);

fn reply(from: (Mac, Ipv4Addr), to: Ipv4Addr) -> Vec<u8> {
    arp(REPLY, from, (MAC, to))
}

#[test]
fn another_network_is_reached_by_its_gateway() {
    let config = v4().gateway(GATEWAY.into());
    let mut scene = Scene::new(config.route("192.0.2.0/24".parse().unwrap(), SECONDARY.into()));
    assert_eq!(scene.send(&packet(OWN, FAR, 1)), None);
    assert_eq!(scene.sent(), [own_request(OWN, SECONDARY)]);
    let frame = in_frame(OTHER, MAC, &packet(OWN, FAR, 1));
    assert_eq!(scene.answers(&reply((OTHER, SECONDARY), OWN)), [frame]);
    let other = Ipv4Addr::new(8, 8, 8, 8);
    assert_eq!(scene.send(&packet(OWN, other, 2)), None);
    assert_eq!(scene.sent(), [own_request(OWN, GATEWAY)]);
    let frame = in_frame(THIRD, MAC, &packet(OWN, other, 2));
    assert_eq!(scene.answers(&reply((THIRD, GATEWAY), OWN)), [frame]);
}

/// An address whose network is itself alone: the gateway is in no network of the host.
#[test]
fn a_single_address_reaches_its_gateway() {
    let own = Ipv4Addr::new(203, 0, 113, 9);
    let config = HostConfig::new(MAC).seed(1).gateway(GATEWAY.into());
    let config = config.address(IpNet::new(own.into(), 32).unwrap());
    let own_v6 = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 5);
    let gateway_v6 = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    let config = config
        .address(IpNet::new(own_v6.into(), 128).unwrap())
        .gateway(gateway_v6.into());
    let mut scene = Scene::new(config);
    assert_eq!(scene.send(&packet(own, FAR, 1)), None);
    assert_eq!(scene.sent(), [own_request(own, GATEWAY)]);
    let frame = in_frame(OTHER, MAC, &packet(own, FAR, 1));
    assert_eq!(scene.answers(&reply((OTHER, GATEWAY), own)), [frame]);
    assert!(
        scene.send(&packet(own, GATEWAY, 2)).is_some(),
        "the gateway itself"
    );
    assert_eq!(scene.send(&packet(own_v6, FAR_V6, 3)), None);
    assert_eq!(
        scene.sent(),
        [solicitation(
            (MAC, LINK_LOCAL),
            gateway_v6,
            Some(MAC.0),
            None
        )]
    );
    let answer = advertisement(
        (THIRD, gateway_v6),
        Some((MAC, LINK_LOCAL)),
        ROUTER | SOLICITED | OVERRIDE,
    );
    assert_eq!(
        scene.answers(&answer),
        [in_frame(THIRD, MAC, &packet(own_v6, FAR_V6, 3))]
    );
}

#[test]
fn without_a_route_the_packet_comes_back_at_once() {
    let mut scene = Scene::new(v4());
    assert_eq!(scene.send(&packet(OWN, FAR, 1)), None);
    assert_eq!(scene.send(&packet(OWN_V6, FAR_V6, 2)), None);
    let none = |number| Event::Undelivered(number, Undelivered::NoRoute);
    assert_eq!(scene.events(), [none(1), none(2)]);
    assert_eq!(scene.station.stats.no_route, 2);
    // Others are not affected, and the reports are bounded.
    assert_eq!(scene.send(&packet(OWN, PEER, 3)), None);
    for number in 0..2000 {
        assert_eq!(scene.send(&packet(OWN, FAR, number)), None);
    }
    assert_eq!(scene.events().len(), 512);
    assert_eq!(
        scene.answers(&reply((OTHER, PEER), OWN)).len(),
        2,
        "the request and the packet"
    );
}

#[test]
fn a_gateway_that_does_not_answer_is_passed_over() {
    let mut scene = Scene::new(v4().gateway(GATEWAY.into()).gateway(SECONDARY.into()));
    for number in 1..=2 {
        assert_eq!(scene.send(&packet(OWN, FAR, number)), None);
    }
    let frames = [vec![], scene.sent(), scene.passing(3 * SECOND)].concat();
    let request = own_request(OWN, GATEWAY);
    assert_eq!(
        frames,
        [
            request.clone(),
            request.clone(),
            request.clone(),
            own_request(OWN, SECONDARY)
        ]
    );
    assert_eq!(scene.events(), []);
    // The packets that have waited for the first go by the second.
    let frames = [1, 2].map(|number| in_frame(OTHER, MAC, &packet(OWN, FAR, number)));
    assert_eq!(scene.answers(&reply((OTHER, SECONDARY), OWN)), frames);
    assert!(scene.send(&packet(OWN, FAR, 3)).is_some());
    // After a minute the first is asked for; meanwhile the second is used.
    let asked = scene.passing(SEEK_AFTER + 5 * SECOND);
    let asked = asked.iter().filter(|frame| **frame == request);
    assert_eq!(asked.count(), 3);
    assert_eq!(scene.events(), []);
    assert_eq!(
        scene.send(&packet(OWN, FAR, 4)),
        Some(in_frame(OTHER, MAC, &packet(OWN, FAR, 4)))
    );
    scene.pass(SEEK_AFTER - SECOND);
    scene.nothing(&reply((OTHER, SECONDARY), OWN));
    assert_eq!(
        scene.answers(&reply((THIRD, GATEWAY), OWN)),
        Vec::<Vec<u8>>::new()
    );
    assert_eq!(
        scene.send(&packet(OWN, FAR, 5)),
        Some(in_frame(THIRD, MAC, &packet(OWN, FAR, 5)))
    );
}

/// A gateway that has answered, and does no more (RFC 4861 7.3.3).
#[test]
fn a_gateway_in_use_that_goes_away_is_passed_over() {
    let mut scene = Scene::new(v4().gateway(GATEWAY.into()).gateway(SECONDARY.into()));
    scene.send(&packet(OWN, FAR, 1));
    scene.sent();
    scene.answers(&reply((OTHER, GATEWAY), OWN));
    scene.pass(31 * SECOND);
    assert!(scene.send(&packet(OWN, FAR, 2)).is_some());
    assert_eq!(scene.passing(8 * SECOND).len(), 3);
    assert_eq!(scene.send(&packet(OWN, FAR, 3)), None);
    assert_eq!(scene.sent(), [own_request(OWN, SECONDARY)]);
}

#[test]
fn packets_fail_once_no_gateway_answers() {
    let mut scene = Scene::new(v4().gateway(GATEWAY.into()).gateway(SECONDARY.into()));
    assert_eq!(scene.send(&packet(OWN, FAR, 1)), None);
    scene.pass(7 * SECOND);
    let failed = |number| Event::Undelivered(number, Undelivered::HostUnreachable);
    assert_eq!(scene.events(), [failed(1)]);
    // Then one after the other is tried.
    assert_eq!(scene.send(&packet(OWN, FAR, 2)), None);
    assert_eq!(scene.sent(), [own_request(OWN, GATEWAY)]);
    scene.pass(4 * SECOND);
    assert_eq!(scene.events(), [failed(2)]);
    assert_eq!(scene.send(&packet(OWN, FAR, 3)), None);
    assert_eq!(scene.sent(), [own_request(OWN, SECONDARY)]);
}

/// RFC 1112 6.4, RFC 2464 7.
#[test]
fn groups_and_all_hosts_have_addresses_of_their_own() {
    let mut scene = Scene::new(v4().address(IpNet::new(OWN_V6.into(), 64).unwrap()));
    let rows: [(IpAddr, [u8; 6]); 6] = [
        (
            Ipv4Addr::new(224, 0, 0, 251).into(),
            [1, 0, 0x5e, 0, 0, 251],
        ),
        (
            Ipv4Addr::new(239, 255, 1, 2).into(),
            [1, 0, 0x5e, 0x7f, 1, 2],
        ),
        (Ipv4Addr::BROADCAST.into(), [0xff; 6]),
        (Ipv4Addr::new(10, 0, 0, 255).into(), [0xff; 6]),
        (
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb).into(),
            [0x33, 0x33, 0, 0, 0, 0xfb],
        ),
        (
            Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0x1234, 0x5678).into(),
            [0x33, 0x33, 0x12, 0x34, 0x56, 0x78],
        ),
    ];
    for (to, mac) in rows {
        let packet = match to {
            IpAddr::V4(_) => packet(OWN, to, 1),
            IpAddr::V6(_) => packet(OWN_V6, to, 1),
        };
        assert_eq!(
            scene.send(&packet),
            Some(in_frame(Mac(mac), MAC, &packet)),
            "{to}"
        );
    }
    // The broadcast address of another network is a host's.
    assert_eq!(
        scene.send(&packet(OWN, Ipv4Addr::new(10, 0, 1, 255), 9)),
        None
    );
    assert_eq!(
        scene.events(),
        [Event::Undelivered(9, Undelivered::NoRoute)]
    );
}
