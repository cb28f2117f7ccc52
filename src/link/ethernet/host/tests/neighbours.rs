//! Packets to neighbours.

use super::*;
use crate::link::ethernet::neighbours::NeighbourState;

fn state(scene: &Scene, of: impl Into<IpAddr>) -> Option<(NeighbourState, Option<Mac>)> {
    let of = of.into();
    let list = scene.station.neighbours.list(scene.now);
    let found = list.into_iter().find(|one| one.address == of);
    found.map(|one| (one.state, one.mac))
}

fn reply(from: (Mac, Ipv4Addr)) -> Vec<u8> {
    arp(REPLY, from, (MAC, OWN))
}

#[test]
fn packets_wait_for_the_answer() {
    let mut scene = Scene::new(v4());
    for number in 1..=3 {
        assert_eq!(scene.send(&packet(OWN, PEER, number)), None);
    }
    assert_eq!(scene.sent(), [own_request(OWN, PEER)]);
    let frames = [1, 2, 3].map(|number| in_frame(OTHER, MAC, &packet(OWN, PEER, number)));
    assert_eq!(scene.answers(&reply((OTHER, PEER))), frames);
    let frame = in_frame(OTHER, MAC, &packet(OWN, PEER, 4));
    assert_eq!(scene.send(&packet(OWN, PEER, 4)), Some(frame));
    assert_eq!(scene.events(), []);
}

#[test]
fn packets_wait_for_the_advertisement() {
    let mut scene = Scene::new(v6());
    assert_eq!(scene.send(&packet(OWN_V6, PEER_V6, 1)), None);
    let own = (MAC, OWN_V6);
    assert_eq!(
        scene.sent(),
        [solicitation(own, PEER_V6, Some(MAC.0), None)]
    );
    let to = Some((MAC, OWN_V6));
    let frame = in_frame(OTHER, MAC, &packet(OWN_V6, PEER_V6, 1));
    let answers = scene.answers(&advertisement((OTHER, PEER_V6), to, SOLICITED | OVERRIDE));
    assert_eq!(answers, [frame]);
    assert_eq!(
        state(&scene, PEER_V6),
        Some((NeighbourState::Reachable, Some(OTHER)))
    );
}

#[test]
fn packets_to_a_host_that_does_not_answer_come_back() {
    let mut scene = Scene::new(v4());
    assert_eq!(scene.send(&packet(OWN, PEER, 1)), None);
    assert_eq!(scene.send(&packet(OWN, PEER, 2)), None);
    let request = own_request(OWN, PEER);
    assert_eq!(scene.sent(), std::slice::from_ref(&request));
    assert_eq!(scene.passing(3 * SECOND), [request.clone(), request]);
    let failed = |number| Event::Undelivered(number, Undelivered::HostUnreachable);
    assert_eq!(scene.events(), [failed(1), failed(2)]);
    assert_eq!(scene.station.stats.unreachable, 2);
    let mut scene = Scene::new(v6());
    assert_eq!(scene.send(&packet(OWN_V6, PEER_V6, 7)), None);
    assert_eq!(scene.sent().len() + scene.passing(3 * SECOND).len(), 3);
    assert_eq!(scene.events(), [failed(7)]);
}

/// RFC 4861 7.3.3, for ARP too (RFC 1122 2.3.2.1).
#[test]
fn a_used_neighbour_is_probed_alone() {
    let mut scene = Scene::new(v4());
    scene.send(&packet(OWN, PEER, 1));
    scene.sent();
    scene.answers(&reply((OTHER, PEER)));
    scene.pass(31 * SECOND);
    assert!(scene.send(&packet(OWN, PEER, 2)).is_some());
    let probe = arp(REQUEST, (MAC, OWN), (NOBODY, PEER));
    let probe = [&header(OTHER, MAC, ARP), &probe[14..]].concat();
    assert_eq!(scene.passing(5 * SECOND), [probe]);
    scene.nothing(&reply((OTHER, PEER)));
    assert_eq!(scene.passing(100 * SECOND), Vec::<Vec<u8>>::new());
    let mut scene = Scene::new(v6());
    scene.send(&packet(OWN_V6, PEER_V6, 1));
    scene.sent();
    let to = Some((MAC, OWN_V6));
    scene.answers(&advertisement((OTHER, PEER_V6), to, SOLICITED | OVERRIDE));
    scene.pass(31 * SECOND);
    assert!(scene.send(&packet(OWN_V6, PEER_V6, 2)).is_some());
    let probes = scene.passing(5 * SECOND);
    assert_eq!((probes.len(), &probes[0][..6]), (1, &OTHER.0[..]));
    assert_eq!(probes[0][38..54], PEER_V6.octets());
}

#[test]
fn a_neighbour_that_moves_is_followed() {
    let mut scene = Scene::new(v4());
    // Unknown hosts are not filed.
    scene.nothing(&arp(REQUEST, (OTHER, PEER), (NOBODY, PEER)));
    scene.nothing(&arp(REPLY, (OTHER, PEER), (Mac::BROADCAST, PEER)));
    assert_eq!(state(&scene, PEER), None);
    scene.send(&packet(OWN, PEER, 1));
    scene.sent();
    scene.answers(&reply((OTHER, PEER)));
    for gratuitous in [
        arp(REQUEST, (THIRD, PEER), (NOBODY, PEER)),
        arp(REPLY, (THIRD, PEER), (Mac::BROADCAST, PEER)),
    ] {
        scene.nothing(&reply((OTHER, PEER)));
        scene.nothing(&gratuitous);
        assert_eq!(
            state(&scene, PEER),
            Some((NeighbourState::Stale, Some(THIRD)))
        );
    }
    let frame = in_frame(THIRD, MAC, &packet(OWN, PEER, 2));
    assert_eq!(scene.send(&packet(OWN, PEER, 2)), Some(frame));
}

/// A proxy advertises the address of another host from its own.
#[test]
fn an_advertisement_is_filed_under_its_target() {
    let mut scene = Scene::new(v6());
    scene.send(&packet(OWN_V6, PEER_V6, 1));
    scene.sent();
    let proxy = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
    let mut message = vec![136, 0, 0, 0, SOLICITED, 0, 0, 0];
    message.extend(PEER_V6.octets());
    message.extend([2, 1]);
    message.extend(THIRD.0);
    let frame = in_frame(THIRD, MAC, &packet(OWN_V6, PEER_V6, 1));
    assert_eq!(
        scene.answers(&icmpv6((THIRD, MAC), proxy, OWN_V6, &message)),
        [frame]
    );
    assert_eq!(state(&scene, proxy), None);
    // The host itself answers too. The first answer stays, as long as the flag for override is missing.
    scene.nothing(&advertisement(
        (OTHER, PEER_V6),
        Some((MAC, OWN_V6)),
        SOLICITED,
    ));
    assert_eq!(
        state(&scene, PEER_V6),
        Some((NeighbourState::Stale, Some(THIRD)))
    );
    scene.nothing(&advertisement(
        (OTHER, PEER_V6),
        Some((MAC, OWN_V6)),
        SOLICITED | OVERRIDE,
    ));
    assert_eq!(
        state(&scene, PEER_V6),
        Some((NeighbourState::Reachable, Some(OTHER)))
    );
}

/// The answer to a host that asks us needs no request.
#[test]
fn a_host_that_asks_is_known() {
    let mut scene = Scene::new(v4());
    scene.answer(&arp(REQUEST, (OTHER, PEER), (NOBODY, OWN)));
    let frame = in_frame(OTHER, MAC, &packet(OWN, PEER, 1));
    assert_eq!(scene.send(&packet(OWN, PEER, 1)), Some(frame));
    let mut scene = Scene::new(v6());
    scene.answer(&solicitation((OTHER, PEER_V6), OWN_V6, Some(OTHER.0), None));
    let frame = in_frame(OTHER, MAC, &packet(OWN_V6, PEER_V6, 1));
    assert_eq!(scene.send(&packet(OWN_V6, PEER_V6, 1)), Some(frame));
}

#[test]
fn a_flood_of_requests_moves_no_neighbour_in_use() {
    let mut scene = Scene::new(v4());
    let wide = IpNet::new(OWN.into(), 8).unwrap();
    scene.station.add_own(
        IpNet::new(Ipv4Addr::new(10, 0, 0, 4).into(), wide.prefix_len()).unwrap(),
        super::super::addresses::Origin::Configured,
        scene.now,
    );
    scene.pass(10 * SECOND);
    scene.send(&packet(OWN, PEER, 1));
    scene.sent();
    scene.answers(&reply((OTHER, PEER)));
    for number in 0..20_000_u32 {
        let [_, b, c, d] = (number + 1).to_be_bytes();
        let forged = (Mac([2, 1, 1, b, c, d]), Ipv4Addr::new(10, 9 + b, c, d));
        scene.answer(&arp(REQUEST, forged, (NOBODY, OWN)));
    }
    let list = scene.station.neighbours.list(scene.now);
    assert!(list.len() <= 257, "{}", list.len());
    assert_eq!(
        state(&scene, PEER),
        Some((NeighbourState::Reachable, Some(OTHER)))
    );
    scene.pass(100 * SECOND);
    assert_eq!(scene.station.neighbours.list(scene.now).len(), 1);
}

/// The transport has room for two frames.
#[test]
fn waiting_packets_leave_before_later_ones_when_there_is_room() {
    let (transport, far) = memory::pair(memory::Config::default().mtu(1514).frames(2));
    let host = Host::new(transport, v4().probe(false)).unwrap();
    let transmit = |number| {
        let packet = packet(OWN, PEER, number);
        host.transmit(&Packet::new(&packet, &[], 20))
    };
    let mut arrived = Vec::new();
    let mut receive = || {
        let mut frames = Vec::new();
        far.receive(&mut frames, 64).unwrap();
        let frames = frames.iter().map(Frame::to_vec);
        let packets = frames.filter(|frame| be16(frame, 12) == IPV4);
        arrived.extend(packets.map(|frame| number_of(&frame[14..])));
        arrived.clone()
    };
    (1..=5).for_each(|number| transmit(number).unwrap());
    host.receive(&mut Vec::new(), 64).unwrap();
    receive();
    far.transmit(&Packet::new(&reply((OTHER, PEER)), &[], 34))
        .unwrap();
    host.receive(&mut Vec::new(), 64).unwrap();
    assert!(matches!(transmit(6), Err(TransmitError::Full)));
    assert!(
        host.deadline()
            .is_some_and(|at| at <= SystemClock.now() + SECOND)
    );
    for expected in [2, 4, 5] {
        assert_eq!(receive().len(), expected);
        host.receive(&mut Vec::new(), 64).unwrap();
    }
    transmit(6).unwrap();
    assert_eq!(receive(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(host.stats().answers_dropped, 0);
}

/// The packet is with the transport, and no later one may overtake it.
#[test]
fn a_packet_that_is_being_sent_comes_first() {
    let mut scene = Scene::new(v4());
    scene.send(&packet(OWN, PEER, 1));
    scene.sent();
    assert_eq!(scene.receive(&reply((OTHER, PEER))), None);
    let outgoing = scene.station.next_outgoing().unwrap();
    assert!(matches!(outgoing, Outgoing::Packet(..)));
    assert!(scene.station.has_departures() && !scene.station.has_outgoing());
    scene.station.put_back(outgoing);
    assert!(scene.station.has_departures() && scene.station.has_outgoing());
    scene.station.next_outgoing().unwrap();
    scene.station.is_sent(false);
    assert!(!scene.station.has_departures());
}

#[test]
fn answers_that_are_not_sent_are_bounded() {
    let mut scene = Scene::new(v4());
    for _ in 0..1000 {
        scene.receive(&arp(REQUEST, (OTHER, PEER), (NOBODY, OWN)));
    }
    assert_eq!(scene.sent().len(), 256);
    assert_eq!(scene.station.stats.answers_dropped, 744);
}

/// RFC 4861 6.3.4.
#[test]
fn a_router_sets_the_time_between_solicitations() {
    let mut scene = Scene::new(v6().slaac(true));
    let router = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    let mut message = vec![134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0];
    message.extend(5000_u32.to_be_bytes());
    let all = ndp_wire::ALL_NODES;
    scene.receive(&icmpv6((OTHER, group_mac(all)), router, all, &message));
    assert_eq!(scene.send(&packet(OWN_V6, PEER_V6, 1)), None);
    scene.pass(14 * SECOND);
    assert_eq!(scene.events(), []);
    scene.pass(2 * SECOND);
    let failed = Event::Undelivered(1, Undelivered::HostUnreachable);
    assert_eq!(scene.events(), [failed]);
}

/// Counts wake-ups.
#[derive(Debug, Default)]
struct Woken(std::sync::atomic::AtomicUsize);

impl Link for Woken {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(1514)
    }
    fn receive(&self, _frames: &mut Vec<Frame>, _max: usize) -> Result<usize, ReceiveError> {
        Ok(0)
    }
    fn transmit(&self, _packet: &Packet<'_>) -> Result<(), TransmitError> {
        Ok(())
    }
    fn wait(&self, _interest: Interest, _deadline: Option<Instant>) -> io::Result<()> {
        Ok(())
    }
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The driver may sleep longer than the request for a hardware address waits, and events are not seen while it does.
#[test]
fn the_driver_is_woken_for_earlier_timers_and_for_events() {
    let host = Host::new(Woken::default(), v4().probe(false)).unwrap();
    let transmit = |to| {
        let before = host.transport().0.load(Ordering::Relaxed);
        let packet = packet(OWN, to, 1);
        host.transmit(&Packet::new(&packet, &[], 20)).unwrap();
        host.take_events(&mut Vec::new());
        host.transport().0.load(Ordering::Relaxed) - before
    };
    host.take_events(&mut Vec::new());
    assert_eq!(transmit(PEER), 1);
    assert_eq!(transmit(PEER), 0, "no earlier timer");
    assert_eq!(transmit(Ipv4Addr::new(192, 0, 2, 1)), 1);
}
