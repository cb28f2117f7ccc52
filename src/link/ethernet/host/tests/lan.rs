//! A host and a gateway in one Ethernet, in virtual time.

use super::*;
use crate::link::ethernet::{Edge, EdgeConfig};
use crate::link::memory::MemoryLink;
use std::sync::atomic::AtomicU64;

/// A clock that is set by hand, in microseconds.
#[derive(Debug)]
struct Hand {
    start: Instant,
    passed: AtomicU64,
}

impl Clock for Hand {
    fn now(&self) -> Instant {
        self.start + Duration::from_micros(self.passed.load(Ordering::Relaxed))
    }
}

/// A host, a gateway, and the time.
struct Lan {
    clock: Arc<Hand>,
    host: Host<MemoryLink>,
    edge: Edge<MemoryLink>,
    events: Vec<LinkEvent>,
    /// The gateway receives nothing.
    is_cut: bool,
}

const GATEWAY: &str = "10.0.2.1/24";
const GIVEN: &str = "10.0.2.15";

fn edge_config() -> EdgeConfig {
    let config = EdgeConfig::new(GATEWAY.parse().unwrap(), GIVEN.parse().unwrap());
    config.dns(["10.0.2.3".parse().unwrap(), "fd00::3".parse().unwrap()])
}

impl Lan {
    fn new(config: HostConfig, edge: EdgeConfig) -> Lan {
        let clock = Arc::new(Hand {
            start: SystemClock.now(),
            passed: AtomicU64::new(0),
        });
        let (a, b) = memory::pair(memory::Config::default().mtu(1514));
        let host = Host::new(a, config.seed(5)).unwrap().clock(clock.clone());
        let edge = Edge::new(b, edge).unwrap().clock(clock.clone());
        Lan {
            clock,
            host,
            edge,
            events: Vec::new(),
            is_cut: false,
        }
    }

    /// Lets both run until neither has work.
    fn settle(&mut self) {
        loop {
            let mut packets = Vec::new();
            let before = self.counters();
            self.host.receive(&mut packets, 64).unwrap();
            match self.is_cut {
                true => self.edge.transport().receive(&mut packets, 64).unwrap(),
                false => self.edge.receive(&mut packets, 64).unwrap(),
            };
            self.host.take_events(&mut self.events);
            if self.counters() == before {
                return;
            }
        }
    }

    fn counters(&self) -> String {
        let due = self
            .host
            .deadline()
            .is_some_and(|at| at <= self.clock.now());
        format!("{:?} {:?} {due}", self.host.stats(), self.edge.stats())
    }

    fn pass(&mut self, time: Duration) {
        let end = self.clock.now() + time;
        loop {
            self.settle();
            let edge = self.edge.deadline().filter(|_| !self.is_cut);
            let next = [self.host.deadline(), edge];
            let next = next.into_iter().flatten().min();
            let now = next.unwrap_or(end).min(end);
            let passed = (now - self.clock.start).as_micros() + 1;
            let passed = u64::try_from(passed).unwrap();
            self.clock.passed.fetch_max(passed, Ordering::Relaxed);
            if now == end {
                return self.settle();
            }
        }
    }

    fn addresses(&self) -> Vec<(String, AddressState)> {
        let addresses = self.host.addresses();
        addresses
            .iter()
            .map(|own| (own.address.to_string(), own.state))
            .collect()
    }

    /// The addresses that the stack would have.
    fn stack(&mut self) -> Vec<String> {
        let mut addresses = Vec::new();
        for event in &self.events {
            match event {
                LinkEvent::AddressAdded(net) => addresses.push(net.to_string()),
                LinkEvent::AddressRemoved(address) => {
                    let prefix = format!("{address}/");
                    addresses.retain(|net| !net.starts_with(&prefix));
                }
                LinkEvent::AddressDeprecated { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        addresses
    }
}

#[test]
fn dhcp_gives_an_address_which_is_probed_and_renewed() {
    let edge = edge_config().lease(600 * SECOND).mtu(1400);
    let mut lan = Lan::new(HostConfig::new(MAC).dhcp(true), edge);
    lan.pass(SECOND);
    assert_eq!(
        lan.addresses(),
        [("10.0.2.15/24".into(), AddressState::Probing)]
    );
    assert_eq!(lan.stack(), Vec::<String>::new());
    lan.pass(9 * SECOND);
    assert_eq!(lan.stack(), ["10.0.2.15/24"]);
    assert_eq!(lan.host.dns(), ["10.0.2.3".parse::<IpAddr>().unwrap()]);
    assert_eq!(lan.edge.guest(), Some(MAC));
    // The gateway is the router, and the MTU is the announced one.
    let own = GIVEN.parse::<Ipv4Addr>().unwrap();
    let far = Ipv4Addr::new(192, 0, 2, 9);
    lan.host
        .transmit(&Packet::new(&packet(own, far, 1), &[], 20))
        .unwrap();
    let mut packets = Vec::new();
    for _ in 0..4 {
        lan.edge.receive(&mut packets, 64).unwrap();
        lan.host.receive(&mut packets, 64).unwrap();
    }
    assert_eq!(packets.len(), 1);
    assert_eq!(packets[0].to_vec(), packet(own, far, 1));
    let mut large = packet(own, far, 2);
    large.resize(1401, 0);
    lan.host.transmit(&Packet::new(&large, &[], 20)).unwrap();
    let mut events = Vec::new();
    lan.host.take_events(&mut events);
    let too_big = |event: &LinkEvent| {
        matches!(
            event,
            LinkEvent::Undelivered {
                why: Undelivered::TooBig(1400),
                ..
            }
        )
    };
    assert!(events.len() == 1 && too_big(&events[0]), "{events:?}");
    // It is renewed again and again.
    let sent = lan.host.stats().dhcp_sent;
    lan.pass(3000 * SECOND);
    assert!((9..=12).contains(&(lan.host.stats().dhcp_sent - sent)));
    assert_eq!(lan.stack(), ["10.0.2.15/24"]);
}

#[test]
fn an_address_of_dhcp_that_another_host_has_is_declined() {
    let mut lan = Lan::new(HostConfig::new(MAC).dhcp(true), edge_config());
    lan.pass(SECOND);
    let own = GIVEN.parse::<Ipv4Addr>().unwrap();
    let now = lan.clock.now();
    let reply = arp(REPLY, (OTHER, own), (MAC, ANY));
    assert!(
        lan.host
            .station
            .lock()
            .receive(Frame::new(&reply), now)
            .is_none()
    );
    lan.settle();
    assert_eq!(lan.addresses(), []);
    assert_eq!(lan.edge.stats().declined, 1);
    // It is asked for again, and probed again.
    lan.pass(30 * SECOND);
    assert_eq!(lan.stack(), ["10.0.2.15/24"]);
    // While it is in use, the second claim in a row counts.
    for _ in 0..2 {
        let now = lan.clock.now();
        let claim = arp(REQUEST, (OTHER, own), (NOBODY, own));
        assert!(
            lan.host
                .station
                .lock()
                .receive(Frame::new(&claim), now)
                .is_none()
        );
        lan.pass(SECOND);
    }
    assert_eq!(lan.stack(), Vec::<String>::new());
    assert_eq!(lan.host.stats().dhcp_declined, 2);
}

#[test]
fn a_lease_is_given_back() {
    let mut lan = Lan::new(HostConfig::new(MAC).dhcp(true).probe(false), edge_config());
    lan.pass(SECOND);
    assert_eq!(lan.stack(), ["10.0.2.15/24"]);
    lan.host.release();
    lan.pass(3600 * SECOND);
    assert_eq!((lan.stack(), lan.addresses()), (vec![], vec![]));
    assert_eq!(lan.host.dns(), Vec::<IpAddr>::new());
}

#[test]
fn without_a_server_there_is_no_address_and_no_flood() {
    let mut lan = Lan::new(HostConfig::new(MAC).dhcp(true).slaac(true), edge_config());
    lan.is_cut = true;
    lan.pass(600 * SECOND);
    let stats = lan.host.stats();
    assert!((8..=15).contains(&stats.dhcp_sent), "{stats:?}");
    assert!((4..=9).contains(&stats.routers_solicited), "{stats:?}");
}

#[test]
fn router_advertisements_give_addresses_and_routes() {
    let edge = edge_config().gateway_v6("fd00:1::1/64".parse::<ipnet::Ipv6Net>().unwrap());
    let mut lan = Lan::new(HostConfig::new(MAC).slaac(true), edge.mtu(1300));
    lan.pass(10 * SECOND);
    let own = "fd00:1::ff:fe00:5";
    assert_eq!(lan.stack(), ["fe80::ff:fe00:5/64", &format!("{own}/64")]);
    assert_eq!(lan.host.dns(), ["fd00::3".parse::<IpAddr>().unwrap()]);
    // Off the link by the router, on the link without it.
    let own: Ipv6Addr = own.parse().unwrap();
    let near: Ipv6Addr = "fd00:1::9".parse().unwrap();
    let far: Ipv6Addr = "2001:db8::9".parse().unwrap();
    let mut station = lan.host.station.lock();
    let mut hop = |to: Ipv6Addr| station.routes.hop(to.into()).unwrap().address;
    let gateway: Ipv6Addr = "fe80::1".parse().unwrap();
    assert_eq!((hop(far), hop(near)), (gateway.into(), near.into()));
    drop(station);
    let mut large = packet(own, far, 2);
    large.resize(1301, 0);
    lan.host.transmit(&Packet::new(&large, &[], 40)).unwrap();
    lan.host.take_events(&mut lan.events);
    let last = lan.events.pop().unwrap();
    assert!(matches!(
        last,
        LinkEvent::Undelivered {
            why: Undelivered::TooBig(1300),
            ..
        }
    ));
    // They last while the router advertises.
    lan.pass(7200 * SECOND);
    assert_eq!(lan.stack().len(), 2);
    // The gateway is gone: the router after half an hour, then the address is deprecated, and after a day it is gone.
    lan.is_cut = true;
    lan.pass(1801 * SECOND);
    let hop = lan.host.station.lock().routes.hop(far.into());
    assert_eq!(hop, None);
    assert_eq!(lan.host.dns(), Vec::<IpAddr>::new());
    lan.events.clear();
    lan.pass(14_400 * SECOND);
    let deprecated = LinkEvent::AddressDeprecated {
        address: own.into(),
        deprecated: true,
    };
    assert_eq!(format!("{:?}", lan.events), format!("{:?}", [deprecated]));
    let addresses = lan.host.addresses();
    assert!(
        addresses
            .iter()
            .any(|one| one.is_deprecated && one.state == AddressState::InUse)
    );
    lan.events = vec![
        LinkEvent::AddressAdded("fe80::ff:fe00:5/64".parse().unwrap()),
        LinkEvent::AddressAdded(format!("{own}/64").parse().unwrap()),
    ];
    lan.pass(86_400 * SECOND);
    assert_eq!(lan.stack(), ["fe80::ff:fe00:5/64"]);
}

/// RFC 4861 6.3.5, 7.2.5.
#[test]
fn a_router_that_becomes_a_host_is_not_used() {
    let edge = edge_config().gateway_v6("fd00:1::1/64".parse::<ipnet::Ipv6Net>().unwrap());
    let mut lan = Lan::new(HostConfig::new(MAC).slaac(true), edge);
    lan.pass(10 * SECOND);
    let far = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 9]);
    let router: Ipv6Addr = "fe80::1".parse().unwrap();
    let now = lan.clock.now();
    let mut station = lan.host.station.lock();
    assert_eq!(station.routes.hop(far).unwrap().address, IpAddr::V6(router));
    // Packets are sent by it, so that its state is known.
    let own: Ipv6Addr = "fd00:1::ff:fe00:5".parse().unwrap();
    let outgoing = packet(own, far, 1);
    assert_eq!(
        station.depart(&Packet::new(&outgoing, &[], 40), now),
        Departure::Taken
    );
    for flags in [ROUTER | SOLICITED | OVERRIDE, OVERRIDE] {
        let frame = advertisement((OTHER, router), None, flags & !SOLICITED);
        assert!(station.receive(Frame::new(&frame), now).is_none());
    }
    assert_eq!(station.routes.hop(far), None);
}

#[test]
fn an_address_by_advertisement_that_another_host_has_is_not_used() {
    let edge = edge_config().gateway_v6("fd00:1::1/64".parse::<ipnet::Ipv6Net>().unwrap());
    let mut lan = Lan::new(HostConfig::new(MAC).slaac(true), edge);
    let own: Ipv6Addr = "fd00:1::ff:fe00:5".parse().unwrap();
    let is_probing = |lan: &Lan| {
        lan.addresses()
            .iter()
            .any(|(net, _)| net.starts_with("fd00"))
    };
    while !is_probing(&lan) {
        lan.pass(SECOND / 10);
    }
    let now = lan.clock.now();
    let claim = advertisement((OTHER, own), None, OVERRIDE);
    assert!(
        lan.host
            .station
            .lock()
            .receive(Frame::new(&claim), now)
            .is_none()
    );
    lan.pass(3600 * SECOND);
    assert_eq!(lan.stack(), ["fe80::ff:fe00:5/64"]);
}

#[test]
fn groups_are_joined_and_left() {
    let (a, b) = memory::pair(memory::Config::default().mtu(1514));
    let clock = Arc::new(Hand {
        start: SystemClock.now(),
        passed: AtomicU64::new(0),
    });
    let config = v4()
        .probe(false)
        .address(IpNet::new(OWN_V6.into(), 64).unwrap());
    let host = Host::new(a, config).unwrap().clock(clock.clone());
    let sent = || {
        let mut frames = Vec::new();
        for _ in 0..100 {
            clock.passed.fetch_add(100_000, Ordering::Relaxed);
            host.receive(&mut Vec::new(), 64).unwrap();
            b.receive(&mut frames, 64).unwrap();
        }
        let frames = frames.iter().map(Frame::to_vec);
        frames
            .filter(|frame| groups_wire::is_message(&frame[14..]))
            .count()
    };
    // Those of the addresses of IPv6.
    assert!(sent() >= 2);
    let group: IpAddr = "239.1.2.3".parse().unwrap();
    let to_group = in_frame(
        Mac([1, 0, 0x5e, 1, 2, 3]),
        OTHER,
        &packet(PEER, Ipv4Addr::new(239, 1, 2, 3), 1),
    );
    let passed = || {
        b.transmit(&Packet::new(&to_group, &[], 34)).unwrap();
        host.receive(&mut Vec::new(), 64).unwrap()
    };
    assert_eq!(passed(), 0);
    host.join(group).unwrap();
    host.join(group).unwrap();
    assert_eq!(passed(), 1);
    assert_eq!(sent(), 2, "reported twice");
    assert!(host.leave(group));
    assert_eq!((passed(), sent()), (1, 0));
    assert!(host.leave(group));
    assert_eq!((passed(), sent()), (0, 2));
    assert!(!host.leave(group));
    assert!(host.join(OWN.into()).is_err());
    let more = (0..600_u16)
        .map(|last| host.join(Ipv4Addr::from_bits(0xef00_0000 | u32::from(last)).into()));
    assert_eq!(more.filter(Result::is_ok).count(), 512);
    assert_eq!(host.stats().groups_refused, 88);
}
