//! Advertisement by advertisement, in virtual time.

use super::*;
use crate::clock::{Clock, SystemClock};
use crate::link::ethernet::frame::HEADER;
use crate::link::ethernet::wire::ip;
use crate::link::ethernet::{Edge, EdgeConfig, frame};
use crate::link::{Frame, Link, Packet, memory};
use proptest::prelude::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);
const ROUTER_A: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const ROUTER_B: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const OWN: &str = "fd00::ff:fe00:9";
const HOUR: u32 = 3600;
const DAY: u32 = 86_400;

const fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds as u64)
}

fn net(net: &str) -> Ipv6Net {
    net.parse().unwrap()
}

fn address(address: &str) -> Ipv6Addr {
    address.parse().unwrap()
}

/// An advertisement.
#[derive(Debug, Clone)]
struct Sent {
    from: Ipv6Addr,
    bytes: Vec<u8>,
}

impl Sent {
    fn new(lifetime: u16) -> Sent {
        let mut bytes = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 0, 0];
        bytes.extend(lifetime.to_be_bytes());
        bytes.extend([0; 8]);
        Sent {
            from: ROUTER_A,
            bytes,
        }
    }

    fn from(mut self, from: Ipv6Addr) -> Sent {
        self.from = from;
        self
    }

    /// Changes a byte of the fixed fields.
    fn with(mut self, at: usize, value: u8) -> Sent {
        self.bytes[at] = value;
        self
    }

    /// An option: its value after kind and length, to which zeros are added.
    fn option(mut self, kind: u8, value: &[u8]) -> Sent {
        let units = (value.len() + 2).div_ceil(8);
        self.bytes.extend([kind, u8::try_from(units).unwrap()]);
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self
    }

    fn prefix(self, prefix: &str, flags: u8, valid: u32, preferred: u32) -> Sent {
        let prefix = net(prefix);
        let mut value = vec![prefix.prefix_len(), flags];
        for part in [valid, preferred, 0] {
            value.extend(part.to_be_bytes());
        }
        value.extend(prefix.addr().octets());
        self.option(PREFIX, &value)
    }

    /// Its prefix, with both flags.
    fn own(self, valid: u32, preferred: u32) -> Sent {
        self.prefix("fd00::/64", ON_LINK | AUTONOMOUS, valid, preferred)
    }

    fn route(self, network: &str, units: usize, preference: u8, lifetime: u32) -> Sent {
        let network = net(network);
        let mut value = vec![network.prefix_len(), preference << 3];
        value.extend(lifetime.to_be_bytes());
        value.extend(&network.addr().octets()[..(units - 1) * 8]);
        self.option(ROUTE, &value)
    }

    fn dns(self, servers: &[Ipv6Addr], lifetime: u32) -> Sent {
        let mut value = vec![0, 0];
        value.extend(lifetime.to_be_bytes());
        value.extend(servers.iter().flat_map(Ipv6Addr::octets));
        self.option(DNS, &value)
    }

    fn mtu(self, mtu: u32) -> Sent {
        self.option(MTU, &[&[0, 0][..], &mtu.to_be_bytes()].concat())
    }

    fn packet(&self) -> Vec<u8> {
        let mut packet = Vec::new();
        ip::emit_icmpv6(&mut packet, self.from, ALL_NODES, self.bytes.clone());
        packet
    }
}

struct Scene {
    autoconf: Autoconf,
    now: Instant,
}

impl Scene {
    fn with_seed(seed: u64) -> Scene {
        let now = SystemClock.now();
        Scene {
            autoconf: Autoconf::new(MAC, 1500, seed, now),
            now,
        }
    }

    fn new() -> Scene {
        Scene::with_seed(1)
    }

    /// Whether it is valid.
    fn takes(&mut self, sent: &Sent) -> bool {
        let packet = sent.packet();
        let message = Message::parse(&packet).unwrap();
        self.autoconf.advertised(&message, self.now)
    }

    /// It is heeded in all its parts.
    fn heeds(&mut self, sent: &Sent) {
        let dropped = self.autoconf.stats.dropped;
        assert!(self.takes(sent) && self.autoconf.has_changed());
        assert_eq!(self.autoconf.stats.dropped, dropped);
    }

    /// It is valid, and one part is dropped.
    fn drops(&mut self, sent: &Sent) {
        let dropped = self.autoconf.stats.dropped;
        assert!(self.takes(sent));
        assert_eq!(self.autoconf.stats.dropped, dropped + 1);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.autoconf.advance(self.now);
    }

    /// Address, whether it is deprecated, rest of its lifetime in seconds.
    fn addresses(&self) -> Vec<(String, bool, Option<u64>)> {
        let rest = |end: End| end.map(|end| (end - self.now).as_secs());
        let addresses = self.autoconf.addresses();
        addresses
            .map(|found| (found.address.to_string(), found.deprecated, rest(found.end)))
            .collect()
    }

    fn routers(&self) -> Vec<(Ipv6Addr, Preference)> {
        let default = self.autoconf.routes();
        let default = default.filter(|route| route.network.prefix_len() == 0);
        default
            .map(|route| (route.router, route.preference))
            .collect()
    }

    /// Goes to the next solicitation. Returns the time until it.
    fn solicitation(&mut self, from: Ipv6Addr) -> (Duration, Vec<u8>) {
        let at = self.autoconf.solicit.unwrap().next;
        let just_before = at.checked_sub(Duration::from_nanos(1)).unwrap();
        if just_before > self.now {
            assert_eq!(self.autoconf.poll(from, just_before), None);
        }
        assert!(self.autoconf.deadline().unwrap() <= at);
        let wait = at - self.now;
        self.now = at;
        let packet = self.autoconf.poll(from, at).expect("it is due");
        assert_eq!(self.autoconf.poll(from, at), None);
        (wait, packet)
    }
}

/// RFC 4861 4.1.
#[test]
fn a_solicitation_names_the_hardware_address_unless_it_has_no_source() {
    let mut scene = Scene::new();
    for (from, len) in [(Ipv6Addr::UNSPECIFIED, 8), (link_local(MAC), 16)] {
        let packet = scene.solicitation(from).1;
        let message = Message::parse(&packet).unwrap();
        assert_eq!((message.kind, message.from), (ROUTER_SOLICITATION, from));
        assert_eq!(message.to, address("ff02::2"));
        assert_eq!(message.body.len(), len);
        let own = [&[1, 1][..], &MAC.0].concat();
        assert!(message.body[8..] == own[..len - 8]);
    }
}

/// RFC 4861 6.3.7, RFC 7559.
#[test]
fn solicitations_go_on_more_and_more_slowly() {
    let mut first = Duration::MAX..Duration::ZERO;
    for seed in 0..100 {
        let mut scene = Scene::with_seed(seed);
        let (wait, _) = scene.solicitation(ROUTER_B);
        first = first.start.min(wait)..first.end.max(wait);
        assert!(wait < seconds(1));
        let mut last = Duration::ZERO;
        for double in 0..20 {
            let (wait, _) = scene.solicitation(ROUTER_B);
            let expected = match double {
                0 => seconds(4),
                _ => (last * 2).min(seconds(HOUR)),
            };
            let near = expected - expected / 10..=expected + expected / 10;
            assert!(near.contains(&wait), "{double}: {wait:?}");
            last = wait;
        }
        assert!(last >= seconds(HOUR - 360));
    }
    assert!(first.start < seconds(1) / 5 && first.end > seconds(1) / 5 * 4);
}

/// RFC 7559 2: an advertisement of no router is no end.
#[test]
fn solicitations_end_with_a_router_and_begin_again_without() {
    let mut scene = Scene::new();
    scene.solicitation(ROUTER_B);
    scene.heeds(&Sent::new(0).own(DAY, HOUR));
    assert!(scene.autoconf.solicit.is_some());
    scene.solicitation(ROUTER_B);
    scene.heeds(&Sent::new(1800));
    assert!(scene.autoconf.solicit.is_none());
    scene.pass(seconds(1799));
    assert!(scene.autoconf.solicit.is_none());
    let at = scene.autoconf.deadline().unwrap();
    assert_eq!(at, scene.now + seconds(1));
    scene.now = at;
    assert_eq!(scene.autoconf.poll(ROUTER_B, at), None);
    let (wait, _) = scene.solicitation(ROUTER_B);
    assert!(wait < seconds(1), "the router is gone");
    // The router withdraws.
    scene.heeds(&Sent::new(1800));
    scene.heeds(&Sent::new(0));
    assert_eq!(scene.routers(), []);
    assert!(scene.solicitation(ROUTER_B).0 < seconds(1));
    // The link was away.
    scene.heeds(&Sent::new(1800));
    scene.autoconf.restart(scene.now);
    assert!(scene.solicitation(ROUTER_B).0 < seconds(1));
}

/// RFC 4861 6.1.2.
#[test]
fn invalid_advertisements_are_dropped() {
    let good = Sent::new(1800).own(DAY, HOUR);
    let mut short = good.clone();
    short.bytes.truncate(15);
    let mut cut = good.clone();
    cut.bytes.truncate(20);
    let mut empty = good.clone();
    empty.bytes[17] = 0;
    let invalid = [
        good.clone().from(address("fd00::1")),
        good.clone().from(Ipv6Addr::UNSPECIFIED),
        good.clone().with(0, NEIGHBOUR_ADVERTISEMENT),
        short,
        cut,
        empty,
    ];
    let mut scene = Scene::new();
    for sent in &invalid {
        assert!(!scene.takes(sent));
    }
    let before = (scene.routers(), scene.addresses());
    assert_eq!(before, (vec![], vec![]));
    assert!(!scene.autoconf.has_changed());
    assert_eq!(scene.autoconf.stats().malformed, 6);
    // From another network, or changed on the way.
    for (at, value) in [(7, 254), (41, 1), (50, 7)] {
        let mut packet = good.packet();
        packet[at] = value;
        assert!(Message::parse(&packet).is_none());
    }
}

/// RFC 4191 2.2, 3.1.
#[test]
fn routers_have_preferences_and_lifetimes() {
    let mut scene = Scene::new();
    scene.heeds(&Sent::new(1800).with(5, 0x18));
    scene.heeds(&Sent::new(600).from(ROUTER_B).with(5, 0x08));
    assert_eq!(
        scene.routers(),
        [(ROUTER_A, Preference::Low), (ROUTER_B, Preference::High)]
    );
    // The reserved value means medium.
    scene.heeds(&Sent::new(1800).with(5, 0x10));
    assert_eq!(scene.routers()[0], (ROUTER_A, Preference::Medium));
    scene.pass(seconds(600));
    assert!(scene.autoconf.has_changed());
    assert_eq!(scene.routers(), [(ROUTER_A, Preference::Medium)]);
    // The option takes the place of the header.
    scene.heeds(&Sent::new(0).route("::/0", 1, 1, HOUR));
    assert_eq!(scene.routers(), [(ROUTER_A, Preference::High)]);
    scene.heeds(&Sent::new(1800).route("::/0", 1, 1, 0));
    assert_eq!(scene.routers(), []);
}

/// RFC 4191 2.3.
#[test]
fn routes_by_routers() {
    let mut scene = Scene::new();
    let sent = Sent::new(0).route("2001:db8::/48", 2, 1, 600);
    scene.heeds(&sent.route("2001:db8:1::1/128", 3, 3, u32::MAX));
    scene.heeds(&Sent::new(0).from(ROUTER_B).route("fc00::/7", 3, 0, 60));
    let routes = |scene: &Scene| -> Vec<_> {
        let routes = scene.autoconf.routes();
        routes
            .map(|route| (route.network, route.router, route.preference))
            .collect()
    };
    let expected = [
        (net("2001:db8::/48"), ROUTER_A, Preference::High),
        (net("2001:db8:1::1/128"), ROUTER_A, Preference::Low),
        (net("fc00::/7"), ROUTER_B, Preference::Medium),
    ];
    assert_eq!(routes(&scene), expected);
    scene.pass(seconds(60));
    assert_eq!(routes(&scene), expected[..2]);
    scene.heeds(&Sent::new(0).route("2001:db8::/48", 2, 1, 0));
    assert_eq!(routes(&scene), expected[1..2]);
    scene.pass(seconds(u32::MAX));
    assert_eq!(routes(&scene), expected[1..2], "without end");
    // A reserved preference; a prefix that is longer than its bytes, or than there can be.
    scene.drops(&Sent::new(0).route("fc00::/7", 3, 2, 60));
    scene.drops(&Sent::new(0).route("2001:db8:1::1/128", 2, 0, 60));
    scene.drops(&Sent::new(0).option(ROUTE, &[129, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0]));
    scene.drops(&Sent::new(0).option(ROUTE, &[64, 0, 0, 0, 0, 9].repeat(5)));
    assert_eq!(routes(&scene), expected[1..2]);
}

/// RFC 4862 5.5.3 a to d.
#[test]
fn addresses_are_made_of_prefixes() {
    let mut scene = Scene::new();
    scene.heeds(&Sent::new(1800).own(DAY, HOUR));
    let own = (format!("{OWN}/64"), false, Some(u64::from(DAY)));
    assert_eq!(scene.addresses(), std::slice::from_ref(&own));
    assert!(scene.autoconf.on_link().eq([net("fd00::/64")]));
    // Each flag alone.
    scene.heeds(&Sent::new(1800).prefix("fd01::/64", AUTONOMOUS, DAY, HOUR));
    scene.heeds(&Sent::new(1800).prefix("fd02::/63", ON_LINK, u32::MAX, HOUR));
    scene.heeds(&Sent::new(1800).prefix("fd03::/64", 0, DAY, HOUR));
    let other = ("fd01::ff:fe00:9/64".to_owned(), false, Some(DAY.into()));
    assert_eq!(scene.addresses(), [own.clone(), other.clone()]);
    let on_link = [net("fd00::/64"), net("fd02::/63")];
    assert!(scene.autoconf.on_link().eq(on_link));
    // Longer in use than valid; of another length; of the link; a group's; cut off.
    let both = ON_LINK | AUTONOMOUS;
    scene.drops(&Sent::new(1800).prefix("fd04::/64", AUTONOMOUS, HOUR, DAY));
    scene.drops(&Sent::new(1800).prefix("fd04::/63", AUTONOMOUS, DAY, HOUR));
    scene.drops(&Sent::new(1800).prefix("fe80::/64", both, DAY, HOUR));
    scene.drops(&Sent::new(1800).prefix("ff05::/64", both, DAY, HOUR));
    scene.drops(&Sent::new(1800).option(PREFIX, &[64, both, 0, 1, 0, 0, 0, 1]));
    scene.drops(&Sent::new(1800).option(PREFIX, &[129; 30]));
    // Valid for no time.
    scene.heeds(&Sent::new(1800).prefix("fd04::/64", both, 0, 0));
    assert_eq!(scene.addresses(), [own, other]);
    assert!(scene.autoconf.on_link().eq(on_link));
}

#[test]
fn an_address_is_deprecated_and_ends() {
    let mut scene = Scene::new();
    scene.heeds(&Sent::new(0).own(DAY, HOUR));
    scene.autoconf.solicit = None;
    assert_eq!(
        scene.autoconf.deadline(),
        Some(scene.now + seconds(HOUR)),
        "of the preference"
    );
    scene.pass(seconds(HOUR));
    assert!(scene.autoconf.has_changed());
    assert!(scene.addresses()[0].1, "deprecated");
    // Preferred again.
    scene.heeds(&Sent::new(0).own(DAY, HOUR));
    assert!(!scene.addresses()[0].1);
    scene.heeds(&Sent::new(0).own(DAY, 0));
    assert!(scene.addresses()[0].1);
    scene.autoconf.solicit = None;
    assert_eq!(scene.autoconf.deadline(), Some(scene.now + seconds(DAY)));
    scene.pass(seconds(DAY));
    assert!(scene.autoconf.has_changed());
    assert_eq!(scene.addresses(), []);
    assert_eq!(scene.autoconf.on_link().count(), 0);
    assert_eq!(scene.autoconf.deadline(), None);
}

/// RFC 4862 5.5.3 e. The lifetime before, the one that is received, and the one after it, in seconds.
#[test]
fn no_advertisement_ends_an_address_in_less_than_two_hours() {
    let hours = |count: u32| count * HOUR;
    let cases = [
        // Longer than two hours, or than what is left.
        (hours(24), hours(3), hours(3)),
        (hours(1), hours(2), hours(2)),
        (100, 200, 200),
        (hours(1), u32::MAX, u32::MAX),
        (u32::MAX, hours(3), hours(3)),
        // Not longer than two hours are left.
        (hours(1), 100, hours(1)),
        (hours(2), 0, hours(2)),
        (100, 100, 100),
        // More are left.
        (hours(24), 100, hours(2)),
        (hours(24), hours(2), hours(2)),
        (hours(24), 0, hours(2)),
        (u32::MAX, 0, hours(2)),
    ];
    for (before, received, after) in cases {
        let mut scene = Scene::new();
        scene.heeds(&Sent::new(0).own(before, 10));
        scene.heeds(&Sent::new(0).own(received, 0));
        let rest = Some(after.into()).filter(|_| after != u32::MAX);
        let expected = (format!("{OWN}/64"), true, rest);
        assert_eq!(scene.addresses(), [expected], "{before} {received}");
        // On-link prefixes have no such rule.
        let count = usize::from(received > 0);
        assert_eq!(scene.autoconf.on_link().count(), count);
    }
}

/// RFC 4862 5.4.5.
#[test]
fn a_duplicate_is_not_used_and_not_made_again() {
    let mut scene = Scene::new();
    scene.heeds(&Sent::new(0).own(DAY, HOUR));
    scene.autoconf.duplicate(address("fd00::7"));
    assert!(!scene.autoconf.has_changed());
    scene.autoconf.duplicate(address(OWN));
    assert!(scene.autoconf.has_changed());
    assert_eq!(scene.addresses(), []);
    scene.heeds(&Sent::new(0).own(DAY, HOUR));
    assert_eq!(scene.addresses(), []);
}

/// RFC 8106 5.1.
#[test]
fn name_servers_have_lifetimes() {
    let (a, b) = (address("fd00::53"), address("fe80::53"));
    let mut scene = Scene::new();
    scene.heeds(&Sent::new(0).dns(&[a, b], 600));
    assert!(scene.autoconf.dns().eq([a, b]));
    scene.heeds(&Sent::new(0).dns(&[b], u32::MAX));
    scene.pass(seconds(600));
    assert!(scene.autoconf.has_changed());
    assert!(scene.autoconf.dns().eq([b]));
    scene.heeds(&Sent::new(0).dns(&[b], 0));
    assert_eq!(scene.autoconf.dns().count(), 0);
    scene.drops(&Sent::new(0).dns(&[], 600));
    for nobody in ["ff02::fb", "::", "::1", "::ffff:127.0.0.1"] {
        scene.drops(&Sent::new(0).dns(&[address(nobody)], 600));
    }
    scene.drops(&Sent::new(0).option(DNS, &[0; 14]));
    assert_eq!(scene.autoconf.dns().count(), 0);
}

#[test]
fn parameters_of_the_link() {
    let mut scene = Scene::new();
    let millis = |sent: Sent, reachable: u32, retransmit: u32| {
        let mut sent = sent.with(4, 64);
        sent.bytes[8..12].copy_from_slice(&reachable.to_be_bytes());
        sent.bytes[12..16].copy_from_slice(&retransmit.to_be_bytes());
        sent
    };
    scene.heeds(&millis(Sent::new(0).mtu(1400), 30_000, 2000));
    let expected = Parameters {
        mtu: Some(1400),
        hop_limit: Some(64),
        reachable: Some(seconds(30)),
        retransmit: Some(seconds(2)),
    };
    assert_eq!(scene.autoconf.parameters(), expected);
    // Zero: not specified.
    scene.heeds(&Sent::new(0));
    scene.drops(&Sent::new(0).mtu(1279));
    scene.drops(&Sent::new(0).mtu(1501));
    assert_eq!(scene.autoconf.parameters(), expected);
    scene.heeds(&millis(Sent::new(0), 1, 1));
    let bounded = scene.autoconf.parameters();
    assert_eq!(bounded.reachable, Some(seconds(1)));
    assert_eq!(bounded.retransmit, Some(seconds(1) / 10));
    scene.heeds(&millis(Sent::new(0), u32::MAX, u32::MAX));
    let bounded = scene.autoconf.parameters();
    assert_eq!(bounded.reachable, Some(seconds(3600)));
    assert_eq!(bounded.retransmit, Some(seconds(60)));
}

#[test]
fn redirects_are_counted() {
    let mut scene = Scene::new();
    scene.autoconf.redirected();
    assert_eq!(scene.autoconf.stats().redirects, 1);
    assert!(!scene.autoconf.has_changed());
}

/// A flood of advertisements, each of another router with other prefixes.
#[test]
fn entries_in_force_stay_and_the_rest_is_counted() {
    let mut scene = Scene::new();
    let server = address("fd00::53");
    let first = Sent::new(1800).own(DAY, HOUR).dns(&[server], HOUR);
    scene.heeds(&first.clone().route("2001:db8::/48", 3, 0, HOUR));
    for number in 1..200_u16 {
        let from = Ipv6Addr::from_bits(ROUTER_A.to_bits() + u128::from(number));
        let prefix = format!("fd00:{number}::/64");
        let server = Ipv6Addr::from_bits(server.to_bits() + u128::from(number));
        let sent = Sent::new(1800).prefix(&prefix, ON_LINK | AUTONOMOUS, DAY, HOUR);
        let sent = sent.dns(&[server], HOUR).route(&prefix, 3, 0, HOUR);
        assert!(scene.takes(&sent.from(from)));
    }
    let autoconf = &scene.autoconf;
    assert_eq!((autoconf.routers.len(), autoconf.routes.len()), (8, 32));
    let lists = (autoconf.on_link.len(), autoconf.addresses.len());
    assert_eq!((lists, autoconf.dns.len()), ((16, 16), 8));
    assert_eq!(scene.routers()[0].0, ROUTER_A);
    assert_eq!(scene.addresses()[0].0, format!("{OWN}/64"));
    let dropped = (200 - 8) + (200 - 16) + (200 - 8) + (200 - 32);
    assert_eq!(autoconf.stats().dropped, dropped);
    // They can be prolonged, and withdrawn: then there is room.
    scene.heeds(&first);
    scene.heeds(&Sent::new(0));
    let late = Ipv6Addr::from_bits(ROUTER_A.to_bits() + 500);
    scene.heeds(&Sent::new(1800).from(late));
    assert_eq!(scene.routers()[7].0, late);
    // What is not there cannot be withdrawn.
    scene.heeds(&Sent::new(0).from(address("fe80::dead")));
}

/// RFC 4291, appendix A.
#[test]
fn identifiers_are_made_of_hardware_addresses() {
    let mac = "34:56:78:9a:bc:de".parse().unwrap();
    assert_eq!(link_local(mac), address("fe80::3656:78ff:fe9a:bcde"));
}

/// The crate's own gateway is solicited, and answers.
#[test]
fn the_own_gateway_is_a_router() {
    let (transport, guest) = memory::pair(memory::Config::default().mtu(1514));
    let config = EdgeConfig::new("10.0.2.1/24".parse().unwrap(), [10, 0, 2, 15].into());
    let config = config.gateway_v6(net("fd00::1/64")).mtu(1400);
    let edge = Edge::new(transport, config.dns([address("fd00::1").into()])).unwrap();
    for from in [Ipv6Addr::UNSPECIFIED, link_local(MAC)] {
        let mut scene = Scene::new();
        let (_, packet) = scene.solicitation(from);
        let to = Mac([0x33, 0x33, 0, 0, 0, 2]);
        let bytes = [&frame::header(to, MAC, frame::IPV6)[..], &packet].concat();
        guest.transmit(&Packet::new(&bytes, &[], HEADER)).unwrap();
        edge.receive(&mut Vec::new(), 64).unwrap();
        let mut frames: Vec<Frame> = Vec::new();
        guest.receive(&mut frames, 64).unwrap();
        let answer = frames[0].to_vec();
        let message = Message::parse(&answer[HEADER..]).unwrap();
        assert!(scene.autoconf.advertised(&message, scene.now));
        assert_eq!(scene.routers(), [(ROUTER_A, Preference::Medium)]);
        let own = (format!("{OWN}/64"), false, Some(u64::from(DAY)));
        assert_eq!(scene.addresses(), [own]);
        assert!(scene.autoconf.dns().eq([address("fd00::1")]));
        let parameters = scene.autoconf.parameters();
        assert_eq!(
            (parameters.mtu, parameters.hop_limit),
            (Some(1400), Some(64))
        );
        assert_eq!(scene.autoconf.stats().dropped, 0);
    }
}

/// An advertisement with random options.
fn hostile() -> impl Strategy<Value = Sent> {
    let lifetime = prop_oneof![Just(0), Just(1), any::<u16>()];
    let seconds = || prop_oneof![Just(0), Just(1), 0..10_000_u32, Just(u32::MAX)];
    let prefix = (any::<u8>(), any::<u8>(), 0..140_u8, seconds(), seconds());
    let option = prop_oneof![
        prefix.prop_map(|(last, flags, len, valid, preferred)| {
            let mut value = vec![if len > 128 { 64 } else { len }, flags];
            for part in [valid, preferred, 0] {
                value.extend(part.to_be_bytes());
            }
            value.extend([0xfd, last, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
            (PREFIX, value)
        }),
        (
            prop::sample::select(vec![1, PREFIX, MTU, ROUTE, DNS]),
            prop::collection::vec(any::<u8>(), 0..60)
        ),
        (any::<u8>(), prop::collection::vec(any::<u8>(), 0..60)),
    ];
    let fixed = (any::<[u8; 6]>(), lifetime, 0..40_u8);
    (fixed, prop::collection::vec(option, 0..12)).prop_map(|((fixed, lifetime, from), options)| {
        let from = Ipv6Addr::from_bits(ROUTER_A.to_bits() + u128::from(from));
        let mut sent = Sent::new(lifetime).from(from);
        sent.bytes[4..6].copy_from_slice(&fixed[..2]);
        sent.bytes[12..16].copy_from_slice(&fixed[2..]);
        options
            .iter()
            .fold(sent, |sent, (kind, value)| sent.option(*kind, value))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn advertisements_of_any_content(
        all in prop::collection::vec((hostile(), 0..5000_u32), 1..60),
        noise in prop::collection::vec(any::<u8>(), 0..100),
        seed: u64,
    ) {
        let mut scene = Scene::with_seed(seed);
        for (sent, wait) in all {
            prop_assert!(scene.takes(&sent));
            let autoconf = &scene.autoconf;
            prop_assert!(autoconf.routers.len() <= 8 && autoconf.routes.len() <= 32);
            prop_assert!(autoconf.on_link.len() <= 16 && autoconf.addresses.len() <= 16);
            prop_assert!(autoconf.dns.len() <= 8);
            prop_assert_eq!(autoconf.routers.is_empty(), autoconf.solicit.is_some());
            let parameters = autoconf.parameters();
            prop_assert!(parameters.mtu.is_none_or(|mtu| (1280..=1500).contains(&mtu)));
            prop_assert!(autoconf.deadline().is_none_or(|at| at > scene.now) || autoconf.solicit.is_some());
            scene.now += seconds(wait);
            while scene.autoconf.poll(ROUTER_B, scene.now).is_some() {}
            prop_assert!(scene.autoconf.deadline().is_none_or(|at| at > scene.now));
        }
        let mut noisy = Sent::new(9);
        noisy.bytes = noise;
        noisy.bytes.resize(noisy.bytes.len().max(8), 0);
        noisy.bytes[..4].copy_from_slice(&[ROUTER_ADVERTISEMENT, 0, 0, 0]);
        scene.takes(&noisy);
    }
}
