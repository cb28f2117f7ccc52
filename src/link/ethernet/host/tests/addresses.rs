//! Addresses before, in and after use.

use super::super::addresses::{DEFEND_INTERVAL, PROBE_AGAIN};
use super::*;

fn added(address: impl Into<IpAddr>, len: u8) -> Event {
    Event::Added(IpNet::new(address.into(), len).unwrap())
}

/// RFC 5227 2.1.1, 2.3.
#[test]
fn an_address_is_probed_and_announced() {
    for seed in 0..50 {
        let mut scene = Scene::probing(v4().seed(seed));
        assert_eq!(scene.state(OWN), Some(AddressState::Probing));
        assert_eq!(scene.events(), []);
        let sent = scene.pass(100 * SECOND);
        let (times, frames): (Vec<_>, Vec<_>) = sent.into_iter().unzip();
        let (probe, announcement) = (own_request(ANY, OWN), own_request(OWN, OWN));
        let expected = [&probe, &probe, &probe, &announcement, &announcement];
        assert!(frames.iter().eq(expected), "{frames:?}");
        assert!(times[0] <= 1000);
        let between: Vec<_> = times.windows(2).map(|two| two[1] - two[0]).collect();
        assert!((1000..=2000).contains(&between[0]) && (1000..=2000).contains(&between[1]));
        assert!(
            (1999..=2001).contains(&between[2]) && between[3] == 2000,
            "{between:?}"
        );
        assert_eq!(scene.events(), [added(OWN, 24)]);
        assert_eq!(scene.state(OWN), Some(AddressState::InUse));
    }
}

#[test]
fn without_probes_it_is_used_at_once() {
    let mut scene = Scene::probing(v4().probe(false));
    assert_eq!(scene.events(), [added(OWN, 24)]);
    let announcement = own_request(OWN, OWN);
    assert_eq!(
        scene.passing(100 * SECOND),
        [announcement.clone(), announcement]
    );
}

/// RFC 5227 2.1.1: any ARP from the address, and a probe of it by another host.
#[test]
fn an_address_of_another_host_is_not_used() {
    let conflicts = [
        arp(REPLY, (OTHER, OWN), (MAC, ANY)),
        arp(REQUEST, (OTHER, OWN), (NOBODY, PEER)),
        arp(REQUEST, (OTHER, OWN), (NOBODY, OWN)),
        arp(REQUEST, (OTHER, ANY), (NOBODY, OWN)),
    ];
    for conflict in conflicts {
        let mut scene = Scene::probing(v4());
        scene.pass(2 * SECOND);
        scene.nothing(&conflict);
        assert_eq!(scene.state(OWN), Some(AddressState::Conflict));
        assert_eq!(scene.passing(PROBE_AGAIN - SECOND), Vec::<Vec<u8>>::new());
        assert_eq!(scene.events(), []);
        assert_eq!(scene.station.stats.conflicts, 1);
        // It is not answered for.
        scene.nothing(&arp(REQUEST, (OTHER, PEER), (NOBODY, OWN)));
        // After a minute it is tried again.
        assert_eq!(scene.passing(10 * SECOND).len(), 5);
        assert_eq!(scene.events(), [added(OWN, 24)]);
    }
}

/// The last probe has two seconds for its answer.
#[test]
fn a_late_answer_counts() {
    let mut scene = Scene::probing(v4());
    let mut probes = 0;
    while probes < 3 {
        probes += scene.pass(Duration::from_millis(10)).len();
    }
    scene.pass(Duration::from_millis(1980));
    assert_eq!(scene.state(OWN), Some(AddressState::Probing));
    scene.nothing(&arp(REPLY, (OTHER, OWN), (MAC, ANY)));
    assert_eq!(scene.state(OWN), Some(AddressState::Conflict));
}

#[test]
fn other_messages_are_no_conflicts() {
    let mut scene = Scene::probing(v4());
    scene.pass(2 * SECOND);
    let harmless = [
        // Looped back by the link.
        own_request(ANY, OWN),
        arp(REQUEST, (OTHER, PEER), (NOBODY, OWN)),
        arp(REQUEST, (OTHER, ANY), (NOBODY, PEER)),
        arp(REPLY, (OTHER, PEER), (MAC, ANY)),
        arp(REPLY, (OTHER, PEER), (MAC, OWN)),
    ];
    for frame in harmless {
        scene.nothing(&frame);
        assert_eq!(scene.state(OWN), Some(AddressState::Probing));
    }
    assert_eq!(scene.station.stats.conflicts, 0);
    assert_eq!(scene.station.stats.looped, 1);
}

#[test]
fn it_is_answered_for_while_it_is_in_use() {
    let mut scene = Scene::new(v4());
    let answer = scene.answer(&arp(REQUEST, (OTHER, PEER), (NOBODY, OWN)));
    assert_eq!(answer, arp(REPLY, (MAC, OWN), (OTHER, PEER)));
    // A probe (RFC 5227 2.1.1).
    let answer = scene.answer(&arp(REQUEST, (OTHER, ANY), (NOBODY, OWN)));
    assert_eq!(answer, arp(REPLY, (MAC, OWN), (OTHER, ANY)));
    // From a network that is not ours; it is answered without an entry.
    let far = Ipv4Addr::new(192, 0, 2, 1);
    let answer = scene.answer(&arp(REQUEST, (THIRD, far), (NOBODY, OWN)));
    assert_eq!(answer, arp(REPLY, (MAC, OWN), (THIRD, far)));
    assert_eq!(scene.station.neighbours.list(scene.now).len(), 1);
    // Other addresses.
    scene.nothing(&arp(
        REQUEST,
        (OTHER, PEER),
        (NOBODY, Ipv4Addr::new(10, 0, 0, 6)),
    ));
    scene.nothing(&arp(REQUEST, (OTHER, PEER), (NOBODY, PEER)));
    let stats = scene.station.stats;
    assert_eq!(
        (stats.arp_answered, stats.ignored, stats.conflicts),
        (3, 2, 0)
    );
}

/// RFC 5227 2.4 b.
#[test]
fn it_is_defended_once_and_then_given_up() {
    let mut scene = Scene::new(v4());
    let claim = arp(REQUEST, (OTHER, OWN), (NOBODY, OWN));
    assert_eq!(scene.answer(&claim), own_request(OWN, OWN));
    scene.pass(DEFEND_INTERVAL);
    assert_eq!(scene.answer(&claim), own_request(OWN, OWN));
    assert_eq!(scene.events(), []);
    scene.pass(DEFEND_INTERVAL - SECOND);
    scene.nothing(&claim);
    assert_eq!(scene.events(), [Event::Removed(OWN.into())]);
    assert_eq!(scene.state(OWN), Some(AddressState::Conflict));
    scene.nothing(&claim);
    assert_eq!(scene.events(), []);
    assert_eq!(scene.station.stats.conflicts, 3);
    // The network is not on the link any more.
    assert_eq!(scene.send(&packet(OWN, PEER, 1)), None);
    assert_eq!(
        scene.events(),
        [Event::Undelivered(1, Undelivered::NoRoute)]
    );
    scene.pass(PROBE_AGAIN + 10 * SECOND);
    assert_eq!(scene.events(), [added(OWN, 24)]);
}

/// RFC 5227 2.4 c.
#[test]
fn a_kept_address_is_defended_once_in_ten_seconds() {
    let mut scene = Scene::new(v4().keep(true));
    let claim = arp(REPLY, (OTHER, OWN), (Mac::BROADCAST, OWN));
    for _ in 0..5 {
        assert_eq!(scene.answer(&claim), own_request(OWN, OWN));
        for _ in 0..9 {
            assert_eq!(scene.pass(SECOND), []);
            scene.nothing(&claim);
        }
        scene.pass(SECOND);
    }
    assert_eq!(scene.events(), []);
    assert_eq!(scene.state(OWN), Some(AddressState::InUse));
}

#[test]
fn networks_are_answered_for_by_proxy() {
    let proxied = Ipv4Addr::new(10, 0, 0, 77);
    let net = "10.0.0.64/26".parse().unwrap();
    let mut scene = Scene::new(v4().proxy(net));
    let answer = scene.answer(&arp(REQUEST, (OTHER, PEER), (NOBODY, proxied)));
    assert_eq!(answer, arp(REPLY, (MAC, proxied), (OTHER, PEER)));
    // Not to hosts that have the address, or want it.
    scene.nothing(&arp(REQUEST, (OTHER, proxied), (NOBODY, proxied)));
    scene.nothing(&arp(REQUEST, (OTHER, ANY), (NOBODY, proxied)));
    scene.nothing(&arp(
        REQUEST,
        (OTHER, PEER),
        (NOBODY, Ipv4Addr::new(10, 0, 0, 6)),
    ));
    let passed = packet(PEER, proxied, 1);
    assert_eq!(scene.receive(&in_frame(MAC, OTHER, &passed)), Some(passed));
}

/// The solicitations and advertisements of RFC 4862 5.4.2 and RFC 9131, of which only the number is not known.
#[test]
fn an_address_of_ipv6_is_checked_before_use() {
    for seed in 0..50 {
        let mut scene = Scene::probing(v6().seed(seed));
        let mut sent = scene.pass(100 * SECOND);
        assert_eq!(sent.len(), 4);
        sent.sort_by_key(|(_, frame)| frame[54..].to_vec());
        for (at, address) in [LINK_LOCAL, OWN_V6].into_iter().enumerate() {
            let of_address = |frame: &[u8]| frame[62..78] == address.octets();
            let mut own = sent.iter().filter(|(_, frame)| of_address(frame));
            let (asked, probe) = own.next().unwrap();
            let nonce = probe[probe.len() - 6..].try_into().unwrap();
            assert_eq!(*probe, probe_v6(MAC, address, nonce), "{at}");
            let (used, announcement) = own.next().unwrap();
            assert_eq!(*announcement, advertisement((MAC, address), None, 0));
            assert!(*asked <= 1000 && (999..=1001).contains(&(used - asked)));
        }
        let mut events = scene.events();
        events.sort_by_key(|event| format!("{event:?}"));
        assert_eq!(events, [added(OWN_V6, 64), added(LINK_LOCAL, 64)]);
    }
}

/// RFC 4862 5.4.3, 5.4.4.
#[test]
fn an_address_of_ipv6_of_another_host_is_not_used() {
    let conflicts = [
        advertisement((OTHER, OWN_V6), None, OVERRIDE),
        advertisement((OTHER, OWN_V6), None, 0),
        probe_v6(OTHER, OWN_V6, [1; 6]),
        solicitation((OTHER, Ipv6Addr::UNSPECIFIED), OWN_V6, None, None),
        // A host with the same hardware address: its number is another one (RFC 7527 4.2).
        probe_v6(MAC, OWN_V6, [1; 6]),
    ];
    for conflict in conflicts {
        let mut scene = Scene::probing(v6());
        let sent = scene.passing(SECOND);
        assert!(sent.iter().any(|frame| frame[62..78] == OWN_V6.octets()));
        scene.nothing(&conflict);
        assert_eq!(scene.state(OWN_V6), Some(AddressState::Conflict));
        scene.pass(10 * SECOND);
        assert_eq!(scene.events(), [added(LINK_LOCAL, 64)]);
        scene.pass(PROBE_AGAIN);
        assert_eq!(scene.events(), [added(OWN_V6, 64)]);
    }
    // To find the hardware address of its owner is none of a host without one.
    let mut scene = Scene::probing(v6());
    scene.pass(SECOND);
    scene.nothing(&solicitation((OTHER, PEER_V6), OWN_V6, Some(OTHER.0), None));
    assert_eq!(scene.state(OWN_V6), Some(AddressState::Probing));
}

/// RFC 7527: the link loops the host's own solicitation back, maybe with another hardware address.
#[test]
fn an_own_solicitation_that_comes_back_is_no_conflict() {
    for through in [MAC, OTHER] {
        let mut scene = Scene::probing(v6());
        let mut asked = 0;
        for _ in 0..100 {
            for mut frame in scene.passing(Duration::from_millis(100)) {
                frame[6..12].copy_from_slice(&through.0);
                if frame[54] == 135 && frame[62..78] == OWN_V6.octets() {
                    asked += 1;
                    assert_eq!(scene.receive(&frame), None);
                }
            }
        }
        // Asked again, but not for ever.
        assert_eq!((asked, scene.station.stats.conflicts), (4, 0));
        assert_eq!(scene.state(OWN_V6), Some(AddressState::InUse));
        assert_eq!(scene.station.stats.looped, 4);
    }
}

#[test]
fn solicitations_are_answered() {
    let mut scene = Scene::new(v6());
    for target in [OWN_V6, LINK_LOCAL] {
        let answer = scene.answer(&solicitation((OTHER, PEER_V6), target, Some(OTHER.0), None));
        let to = Some((OTHER, PEER_V6));
        assert_eq!(
            answer,
            advertisement((MAC, target), to, SOLICITED | OVERRIDE)
        );
        // A host that checks whether it may have the address.
        let answer = scene.answer(&probe_v6(OTHER, target, [1; 6]));
        assert_eq!(answer, advertisement((MAC, target), None, OVERRIDE));
    }
    // A probe of the neighbour's table, without a source.
    let answer = scene.answer(&solicitation((OTHER, PEER_V6), OWN_V6, None, None));
    let to = Some((OTHER, PEER_V6));
    assert_eq!(
        answer,
        advertisement((MAC, OWN_V6), to, SOLICITED | OVERRIDE)
    );
    // Another host's group is not ours.
    scene.nothing(&solicitation(
        (OTHER, PEER_V6),
        Ipv6Addr::LOCALHOST,
        None,
        None,
    ));
    assert_eq!(scene.station.stats.multicast, 1);
    assert_eq!(scene.station.stats.neighbours_answered, 5);
}

#[test]
fn an_address_of_ipv6_is_defended_and_kept() {
    let mut scene = Scene::new(v6());
    let claim = advertisement((OTHER, OWN_V6), None, OVERRIDE);
    assert_eq!(
        scene.answer(&claim),
        advertisement((MAC, OWN_V6), None, OVERRIDE)
    );
    scene.pass(DEFEND_INTERVAL - SECOND);
    scene.nothing(&claim);
    // As the source of another message.
    let other = solicitation((OTHER, OWN_V6), LINK_LOCAL, Some(OTHER.0), None);
    scene.nothing(&other);
    scene.pass(SECOND);
    let defence = advertisement((MAC, OWN_V6), None, OVERRIDE);
    assert_eq!(scene.answer(&other), defence);
    scene.pass(9 * SECOND);
    scene.nothing(&claim);
    scene.pass(SECOND);
    assert_eq!(
        scene.answer(&claim),
        advertisement((MAC, OWN_V6), None, OVERRIDE)
    );
    assert_eq!(scene.state(OWN_V6), Some(AddressState::InUse));
    assert_eq!(scene.events(), []);
}

#[test]
fn networks_of_ipv6_are_answered_for_by_proxy() {
    let proxied = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, 1);
    let mut scene = Scene::new(v6().proxy("fd00::1:0/112".parse().unwrap()));
    let answer = scene.answer(&solicitation(
        (OTHER, PEER_V6),
        proxied,
        Some(OTHER.0),
        None,
    ));
    let mut expected = vec![136, 0, 0, 0, SOLICITED, 0, 0, 0];
    expected.extend(proxied.octets());
    expected.extend([2, 1]);
    expected.extend(MAC.0);
    assert_eq!(answer, icmpv6((MAC, OTHER), LINK_LOCAL, PEER_V6, &expected));
    scene.nothing(&probe_v6(OTHER, proxied, [1; 6]));
    scene.nothing(&solicitation(
        (OTHER, PEER_V6),
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 2, 1),
        None,
        None,
    ));
}

#[test]
fn the_link_was_away() {
    let mut scene = Scene::new(v4());
    scene.station.reconnected(scene.now);
    let announcement = own_request(OWN, OWN);
    assert_eq!(
        scene.passing(10 * SECOND),
        [announcement.clone(), announcement]
    );
    assert_eq!(scene.events(), []);
}

#[test]
fn an_own_advertisement_that_comes_back_is_no_conflict() {
    let mut scene = Scene::new(v6());
    scene.nothing(&advertisement((MAC, OWN_V6), None, OVERRIDE));
    let stats = scene.station.stats;
    assert_eq!((stats.looped, stats.conflicts), (1, 0));
}

fn made(scene: &mut Scene) -> Ipv6Addr {
    let address = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0xff, 0xfe00, 5);
    let net = IpNet::new(address.into(), 64).unwrap();
    let slaac = super::super::addresses::Origin::Slaac;
    scene.station.add_own(net, slaac, scene.now);
    address
}

/// RFC 4861 6.3.4: a prefix for addresses alone is not on the link.
#[test]
fn an_address_by_advertisement_has_no_network_on_the_link() {
    let mut scene = Scene::new(v6());
    let own = made(&mut scene);
    scene.pass(10 * SECOND);
    let near = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 1);
    assert_eq!(scene.send(&packet(own, near, 1)), None);
    let none = Event::Undelivered(1, Undelivered::NoRoute);
    assert_eq!(scene.events().pop(), Some(none));
}

#[test]
fn an_address_that_is_removed_leaves_its_group() {
    let mut scene = Scene::new(v6());
    let own = made(&mut scene);
    let group = ndp_wire::solicited_node(own).into();
    let before = scene.station.groups.contains(group);
    scene.station.remove_own(own.into(), scene.now);
    assert!(
        before
            && scene
                .station
                .groups
                .contains(ndp_wire::solicited_node(OWN_V6).into())
    );
    // The group of an address that ends alike stays.
    assert_eq!(group, IpAddr::V6(ndp_wire::solicited_node(OWN_V6)));
    scene.station.remove_own(OWN_V6.into(), scene.now);
    scene.station.remove_own(LINK_LOCAL.into(), scene.now);
    assert!(!scene.station.groups.contains(group));
}

/// Before it is in use the stack does not know it.
#[test]
fn an_address_may_be_deprecated_from_the_start() {
    let mut scene = Scene::new(v6());
    let own = made(&mut scene);
    if scene.state(own) == Some(AddressState::InUse) {
        scene.events();
        scene.station.set_deprecated(own.into(), true);
        assert_eq!(scene.events(), [Event::Deprecated(own.into())]);
    }
    let mut scene = Scene::probing(v6());
    scene.pass(10 * SECOND);
    scene.events();
    let own = made(&mut scene);
    scene.station.set_deprecated(own.into(), true);
    assert_eq!(scene.events(), []);
    scene.pass(10 * SECOND);
    assert_eq!(
        scene.events(),
        [added(own, 64), Event::Deprecated(own.into())]
    );
}
