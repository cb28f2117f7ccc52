//! Several guests on one transport.

use super::*;
use crate::link::ethernet::neighbours::{MAX_SOLICITS, RETRANS_TIMER};

pub(super) const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 10);
const LAST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 250);
/// Addresses without a lease, and one outside of the network.
const STATIC: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 251);
const FAR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);

pub(super) fn config() -> EdgeConfig {
    super::config().pool(FIRST..=LAST)
}

impl Scene {
    pub(super) fn several() -> Scene {
        Scene::with(config())
    }

    /// A guest gets an address.
    pub(super) fn lease(&mut self, guest: Mac) -> Ipv4Addr {
        let discovery = Request {
            guest,
            ..Request::new(1)
        };
        let offer = Answer::parse(&self.answer(&discovery.frame()));
        assert_eq!(offer.kind(), 2);
        let request = Request {
            guest,
            ..Request::new(3).option(54, GATEWAY).option(50, offer.yours)
        };
        let ack = Answer::parse(&self.answer(&request.frame()));
        assert_eq!((ack.kind(), ack.yours), (5, offer.yours));
        ack.yours
    }

    /// A packet of the stack: where it is sent, and what the gateway sends before.
    pub(super) fn send(&mut self, to: impl Into<IpAddr>) -> (Option<Mac>, Vec<Vec<u8>>) {
        let header = match to.into() {
            IpAddr::V4(to) => {
                let mut header = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 1];
                header.extend(to.octets());
                header
            }
            IpAddr::V6(to) => {
                let mut header = vec![0x60, 0, 0, 0, 0, 0, 6, 64];
                header.extend(GATEWAY_V6.octets());
                header.extend(to.octets());
                header
            }
        };
        let to = self
            .gateway
            .resolve(&Packet::new(&header, &[], 20), self.now);
        (to, std::mem::take(&mut self.gateway.answers))
    }

    /// Lets time pass, from timer to timer. Returns what is sent.
    fn pass(&mut self, time: Duration) -> Vec<Vec<u8>> {
        let until = self.now + time;
        while let Some(at) = self.gateway.neighbours.deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.gateway.tick(self.now);
        }
        self.now = until;
        std::mem::take(&mut self.gateway.answers)
    }

    fn spoofed(&self) -> u64 {
        self.gateway.stats.spoofed
    }
}

pub(super) fn udp_from(mac: Mac, from: Ipv4Addr) -> Vec<u8> {
    let mut frame = header(config().mac, mac, IPV4).to_vec();
    ip::emit_udp(&mut frame, (from, 1000), (FAR, 2000), b"data");
    frame
}

fn request_of_gateway(target: Ipv4Addr, to: Mac) -> Vec<u8> {
    let mut frame = arp(1, (config().mac, GATEWAY), (NOBODY, target));
    frame[..6].copy_from_slice(&to.0);
    frame
}

fn reply(guest: Mac, address: Ipv4Addr) -> Vec<u8> {
    arp(2, (guest, address), (config().mac, GATEWAY))
}

#[test]
fn each_guest_has_an_address_and_its_packets() {
    let mut scene = Scene::several();
    let [first, second] = [GUEST, OTHER].map(|guest| (guest, scene.lease(guest)));
    assert_eq!((first.1, second.1), (FIRST, Ipv4Addr::new(10, 0, 2, 11)));
    for (guest, address) in [first, second] {
        assert_eq!(
            scene.send(address),
            (Some(guest), Vec::new()),
            "without ARP"
        );
        scene.passed(&udp_from(guest, address));
    }
    assert_eq!(scene.lease(GUEST), FIRST, "it keeps it");
    assert_eq!(scene.gateway.guest, None);
}

#[test]
fn guests_are_listed_with_their_names_and_leases() {
    let mut scene = Scene::several();
    let mut request = Request::new(3).option(50, FIRST);
    request.options.extend([12, 4, b'w', b'e', b'b', 7]);
    assert_eq!(Answer::parse(&scene.answer(&request.frame())).kind(), 5);
    scene.send(STATIC);
    scene.nothing_but_packets(&reply(OTHER, STATIC), OTHER, 1);
    let guests = scene.gateway.guests(scene.now);
    let expected = [
        Guest {
            mac: OTHER,
            addresses: vec![STATIC.into()],
            lease_ends: None,
            name: None,
        },
        Guest {
            mac: GUEST,
            addresses: vec![FIRST.into()],
            lease_ends: Some(scene.now + config().lease),
            name: Some("web".into()),
        },
    ];
    assert_eq!(guests, expected);
    scene.now += config().lease;
    assert_eq!(scene.gateway.guests(scene.now).len(), 1);
}

impl Scene {
    /// A frame whose only effect is that so many packets that have waited are sent to this guest.
    fn nothing_but_packets(&mut self, frame: &[u8], to: Mac, count: usize) {
        self.nothing(frame);
        let released = std::mem::take(&mut self.gateway.released);
        assert_eq!(released.len(), count);
        assert!(released.iter().all(|(mac, _)| *mac == to));
    }
}

#[test]
fn an_unknown_guest_is_asked_for_and_packets_wait() {
    let mut scene = Scene::several();
    let question = request_of_gateway(STATIC, Mac::BROADCAST);
    assert_eq!(scene.send(STATIC), (None, vec![question.clone()]));
    assert_eq!(scene.send(STATIC), (None, Vec::new()), "asked already");
    assert_eq!(scene.pass(RETRANS_TIMER), [question], "once a second");
    scene.nothing_but_packets(&reply(OTHER, STATIC), OTHER, 2);
    assert_eq!(scene.send(STATIC), (Some(OTHER), Vec::new()));
    assert_eq!(scene.gateway.stats.solicitations, 2);
}

/// A guest makes several addresses of its own; each is asked for at its group.
#[test]
fn a_guest_has_several_addresses_of_ipv6() {
    let mut scene = Scene::several();
    let own = [0x11u128, 0x22, 0x33].map(|low| Ipv6Addr::from_bits(0xfd << 120 | low));
    for address in own.into_iter().chain([GUEST_V6]) {
        let (to, sent) = scene.send(address);
        let (mac, from, group, message) = parsed(&sent[0]);
        assert_eq!((to, sent.len(), group), (None, 1, group_of(address)));
        let [.., a, b, c] = address.octets();
        assert_eq!(mac, Mac([0x33, 0x33, 0xff, a, b, c]));
        let expected = if address == GUEST_V6 {
            LINK_LOCAL
        } else {
            GATEWAY_V6
        };
        assert_eq!((from, message[0]), (expected, 135));
        assert_eq!(message[8..24], address.octets());
        assert_eq!(message[24..], [&[1, 1], &config().mac.0[..]].concat());
        let mut answer = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
        answer.extend(address.octets());
        answer.extend([2, 1]);
        answer.extend(GUEST.0);
        scene.nothing_but_packets(&icmpv6(address, from, &answer), GUEST, 1);
        assert_eq!(scene.send(address), (Some(GUEST), Vec::new()));
    }
    assert_eq!(scene.gateway.guests(scene.now)[0].addresses.len(), 4);
}

#[test]
fn packets_for_guests_that_do_not_answer_are_dropped() {
    let mut scene = Scene::several();
    for _ in 0..3 {
        scene.send(STATIC);
    }
    let asked = scene.pass(RETRANS_TIMER * u32::from(MAX_SOLICITS));
    assert_eq!(asked.len(), usize::from(MAX_SOLICITS) - 1);
    assert_eq!(scene.gateway.stats.unanswered, 3);
    assert!(scene.gateway.neighbours.list(scene.now).is_empty());
    assert_eq!(scene.send(FAR), (None, Vec::new()));
    assert_eq!(
        scene.send(Ipv6Addr::from_bits(0x2001 << 112)),
        (None, Vec::new())
    );
    assert_eq!(scene.gateway.stats.unreachable, 2);
}

#[test]
fn packets_to_groups_and_to_all_are_sent_to_them() {
    let mut scene = Scene::several();
    let cases: [(IpAddr, Mac); 4] = [
        (Ipv4Addr::BROADCAST.into(), Mac::BROADCAST),
        (Ipv4Addr::new(10, 0, 2, 255).into(), Mac::BROADCAST),
        (
            Ipv4Addr::new(239, 200, 1, 2).into(),
            Mac([1, 0, 0x5e, 0x48, 1, 2]),
        ),
        (ALL_NODES.into(), Mac([0x33, 0x33, 0, 0, 0, 1])),
    ];
    for (to, mac) in cases {
        assert_eq!(scene.send(to), (Some(mac), Vec::new()));
    }
}

/// One with a static address in the pool, whose packets no other guest gets by DHCP.
#[test]
fn an_address_that_another_guest_answers_for_is_not_leased() {
    let mut scene = Scene::several();
    scene.send(FIRST);
    scene.nothing_but_packets(&reply(OTHER, FIRST), OTHER, 1);
    let request = Request::new(3).option(50, FIRST).frame();
    assert_eq!(Answer::parse(&scene.answer(&request)).kind(), 6);
    assert_eq!(scene.send(FIRST), (Some(OTHER), Vec::new()));
    let offer = Answer::parse(&scene.answer(&Request::new(1).option(50, FIRST).frame()));
    assert_eq!(
        (offer.kind(), offer.yours),
        (2, Ipv4Addr::new(10, 0, 2, 11))
    );
    // It is asked whether it is there, and is silent.
    scene.now += Duration::from_secs(6);
    let answers = scene.answers(&request);
    assert_eq!(answers[0], request_of_gateway(FIRST, OTHER));
    assert_eq!(Answer::parse(&answers[1]).kind(), 6);
    scene.pass(RETRANS_TIMER * u32::from(MAX_SOLICITS));
    assert_eq!(Answer::parse(&scene.answer(&request)).kind(), 5);
    assert_eq!(scene.send(FIRST), (Some(GUEST), Vec::new()));
}

/// A reservation is its guest's, whoever answers for it.
#[test]
fn a_reserved_address_is_leased_although_another_guest_answers_for_it() {
    let mut scene = Scene::with(config().reservations([(GUEST, STATIC)]));
    scene.send(STATIC);
    scene.nothing_but_packets(&reply(OTHER, STATIC), OTHER, 1);
    assert_eq!(scene.lease(GUEST), STATIC);
    assert_eq!(scene.send(STATIC), (Some(GUEST), Vec::new()));
}

/// By packets, ARP and DHCP.
#[test]
fn a_leased_address_is_of_its_guest_only() {
    let mut scene = Scene::several();
    let address = scene.lease(GUEST);
    scene.nothing(&udp_from(OTHER, address));
    scene.nothing(&arp(1, (OTHER, address), (NOBODY, GATEWAY)));
    scene.nothing(&arp(1, (OTHER, address), (NOBODY, address)));
    scene.nothing(&reply(OTHER, address));
    // The hardware address of the message is another one than that of the frame.
    let mut forged = arp(1, (GUEST, address), (NOBODY, GATEWAY));
    forged[6..12].copy_from_slice(&OTHER.0);
    scene.nothing(&forged);
    for kind in [1, 3, 4, 7] {
        let request = Request {
            address,
            ..Request::new(kind)
        };
        let mut forged = request.frame();
        forged[6..12].copy_from_slice(&OTHER.0);
        scene.nothing(&forged);
    }
    assert_eq!(scene.spoofed(), 9);
    let request = Request {
        guest: OTHER,
        ..Request::new(3).option(50, address)
    };
    assert_eq!(Answer::parse(&scene.answer(&request.frame())).kind(), 6);
    assert_eq!(scene.send(address), (Some(GUEST), Vec::new()));
    scene.passed(&udp_from(GUEST, address));
    // When the lease is over it is anybody's.
    scene.now += config().lease;
    scene.passed(&udp_from(OTHER, address));
}

#[test]
fn sources_outside_of_the_network_are_dropped() {
    let mut scene = Scene::several();
    let sources = [
        FAR,
        GATEWAY,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::new(10, 0, 2, 0),
        Ipv4Addr::new(10, 0, 2, 255),
        Ipv4Addr::LOCALHOST,
    ];
    for source in sources {
        scene.nothing(&udp_from(GUEST, source));
    }
    let mut v6 = icmpv6(
        Ipv6Addr::from_bits(0x2001 << 112),
        ALL_NODES,
        &[128, 0, 0, 0, 0, 0, 0, 0],
    );
    v6[..6].copy_from_slice(&config().mac.0);
    v6[38] = 0x20;
    scene.nothing(&v6);
    assert_eq!(scene.spoofed(), 7);
}

/// Its former place is asked first, so that a guest keeps its address as long as it answers.
#[test]
fn an_address_without_a_lease_moves_when_its_guest_is_silent() {
    let mut scene = Scene::several();
    scene.send(STATIC);
    scene.nothing_but_packets(&reply(GUEST, STATIC), GUEST, 1);
    let gratuitous = arp(1, (OTHER, STATIC), (NOBODY, STATIC));
    scene.nothing(&gratuitous);
    assert_eq!(
        scene.send(STATIC),
        (Some(GUEST), Vec::new()),
        "it has just answered"
    );
    scene.now += Duration::from_secs(6);
    let question = request_of_gateway(STATIC, GUEST);
    assert_eq!(scene.answer(&gratuitous), question);
    scene.nothing(&udp_from(OTHER, STATIC));
    scene.nothing(&reply(GUEST, STATIC));
    assert_eq!(scene.send(STATIC), (Some(GUEST), Vec::new()), "it is there");
    assert_eq!(scene.spoofed(), 3);
    // Now it is not.
    scene.now += Duration::from_secs(6);
    assert_eq!(scene.answer(&udp_from(OTHER, STATIC)), question);
    assert_eq!(scene.pass(RETRANS_TIMER * 3).len(), 2);
    scene.passed(&udp_from(OTHER, STATIC));
    let question = request_of_gateway(STATIC, Mac::BROADCAST);
    assert_eq!(scene.send(STATIC), (None, vec![question]));
    scene.nothing_but_packets(&reply(OTHER, STATIC), OTHER, 1);
}

/// The same over IPv6, where an advertisement claims the address.
#[test]
fn a_forged_advertisement_takes_no_address() {
    let mut scene = Scene::several();
    let address = Ipv6Addr::from_bits(0xfd << 120 | 9);
    scene.send(address);
    let advertisement = |source: Mac, named: Mac, flags: u8| {
        let mut message = vec![136, 0, 0, 0, flags, 0, 0, 0];
        message.extend(address.octets());
        message.extend([2, 1]);
        message.extend(named.0);
        let to = if flags & 0x40 == 0 {
            ALL_NODES
        } else {
            GATEWAY_V6
        };
        let mut frame = icmpv6(address, to, &message);
        frame[6..12].copy_from_slice(&source.0);
        frame
    };
    scene.nothing(&advertisement(OTHER, GUEST, 0x60));
    scene.nothing_but_packets(&advertisement(GUEST, GUEST, 0x60), GUEST, 1);
    scene.nothing(&advertisement(OTHER, OTHER, 0x20));
    scene.nothing(&advertisement(OTHER, OTHER, 0x60));
    let mut solicitation = solicitation(address, group_of(GATEWAY_V6), GATEWAY_V6, false);
    solicitation[6..12].copy_from_slice(&OTHER.0);
    scene.nothing(&solicitation);
    assert_eq!(scene.spoofed(), 4);
    assert_eq!(scene.send(address), (Some(GUEST), Vec::new()));
    // Whoever detects duplicates of it, or uses its own, is no forger.
    scene.nothing(&super::solicitation(
        Ipv6Addr::UNSPECIFIED,
        group_of(address),
        address,
        false,
    ));
    assert_eq!(scene.spoofed(), 4);
}

/// Packets for an address that is leased later.
#[test]
fn packets_that_wait_are_sent_when_the_address_is_leased() {
    let mut scene = Scene::several();
    scene.send(FIRST);
    let request = Request::new(3).option(50, FIRST);
    assert_eq!(Answer::parse(&scene.answer(&request.frame())).kind(), 5);
    assert_eq!(scene.gateway.released.len(), 1);
    assert_eq!(scene.gateway.released[0].0, GUEST);
}

#[test]
fn addresses_that_are_given_back_or_declined() {
    let mut scene = Scene::several();
    let address = scene.lease(GUEST);
    for kind in [4, 7] {
        let to_another = Request {
            address,
            ..Request::new(kind).option(50, address).option(54, STATIC)
        };
        scene.nothing(&to_another.frame());
        assert_eq!(scene.gateway.leases.holder(address, scene.now), Some(GUEST));
    }
    assert_eq!(scene.gateway.stats.declined, 0);
    let release = Request {
        address,
        ..Request::new(7)
    };
    scene.nothing(&release.frame());
    assert_eq!(scene.gateway.leases.holder(address, scene.now), None);
    assert_eq!(scene.lease(GUEST), address);
    scene.nothing(
        &Request::new(4)
            .option(50, address)
            .option(54, GATEWAY)
            .frame(),
    );
    assert_eq!(scene.gateway.stats.declined, 1);
    assert_ne!(scene.lease(GUEST), address);
    let other_server = Request::new(3).option(54, STATIC).option(50, STATIC);
    scene.nothing(&other_server.frame());
}

#[test]
fn pools_and_reservations_that_are_refused() {
    let refused = |config: EdgeConfig| {
        Edge::new(memory::pair(memory::Config::default()).0, config).unwrap_err()
    };
    let pools = [
        LAST..=FIRST,
        GATEWAY..=LAST,
        Ipv4Addr::new(10, 0, 2, 0)..=LAST,
        FIRST..=Ipv4Addr::new(10, 0, 2, 255),
        FIRST..=Ipv4Addr::new(10, 0, 3, 5),
    ];
    for pool in pools {
        let refused = refused(config().pool(pool.clone()));
        assert!(matches!(refused, ConfigError::Pool { .. }), "{pool:?}");
    }
    let wide: Ipv4Net = "10.0.0.1/8".parse().unwrap();
    let large = EdgeConfig::new(wide, ADDRESS).pool(FIRST..=Ipv4Addr::new(10, 1, 0, 0));
    assert!(matches!(refused(large), ConfigError::Pool { .. }));
    let reservations = [
        vec![(GUEST, STATIC), (GUEST, LAST)],
        vec![(GUEST, STATIC), (OTHER, STATIC)],
        vec![(GUEST, FAR)],
        vec![(GUEST, GATEWAY)],
        vec![(Mac::BROADCAST, STATIC)],
    ];
    for all in reservations {
        let refused = refused(config().reservations(all.clone()));
        assert!(matches!(refused, ConfigError::Reservations), "{all:?}");
    }
    let alone = super::config().reservations([(GUEST, ADDRESS)]);
    assert!(matches!(refused(alone), ConfigError::Reservations));
}

/// Guards the wake-up after a packet, and the link's deadline: nothing arrives, and the question is repeated in virtual
/// time.
#[test]
fn a_stack_reaches_guests_by_their_addresses() {
    let start = SystemClock.now();
    let clock = Arc::new(Hand(Mutex::new(start)));
    let (transport, bridge) = memory::pair(memory::Config::default().mtu(1514));
    let edge = Arc::new(Edge::new(transport, config()).unwrap().clock(clock.clone()));
    let builder = crate::Stack::builder(edge.clone()).clock(clock.clone());
    let builder = builder.address("10.0.2.1/24".parse().unwrap());
    let (stack, mut driver) = builder.build_with_driver().unwrap();
    let socket = crate::UdpSocket::bind(&stack, "10.0.2.1:9").unwrap();
    socket.send_to(b"hello", (STATIC, 7)).unwrap();
    let received = || {
        let mut frames = Vec::new();
        bridge.receive(&mut frames, 9).unwrap();
        frames.iter().map(Frame::to_vec).collect::<Vec<_>>()
    };
    let question = request_of_gateway(STATIC, Mac::BROADCAST);
    while driver.poll().unwrap() {}
    assert_eq!(received(), std::slice::from_ref(&question));
    assert_eq!(driver.poll_at(), Some(start + RETRANS_TIMER));
    *clock.0.lock() = start + RETRANS_TIMER;
    while driver.poll().unwrap() {}
    assert_eq!(received(), [question]);
    bridge
        .transmit(&Packet::new(&reply(OTHER, STATIC), &[], 14))
        .unwrap();
    while driver.poll().unwrap() {}
    let frames = received();
    assert!(frames.len() == 1 && frames[0].ends_with(b"hello") && frames[0][..6] == OTHER.0);
    assert_eq!(edge.guests().len(), 1);
}
