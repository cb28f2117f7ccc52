//! Guests that flood the gateway: memory stays bounded, each frame is counted, and others are not harmed.

use super::several::{config, udp_from};
use super::*;

/// Guests with a lease and without one, to both of which packets are sent, and the flood's counters.
struct Flooded {
    scene: Scene,
    leased: Ipv4Addr,
    before: EdgeStats,
    frames: u64,
}

const STATIC: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 251);
/// Entries of neighbours, those of other hosts' messages included.
const MOST_NEIGHBOURS: usize = 1024 + 256;

fn forged(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac([6, a, b, c, d, 1])
}

impl Flooded {
    fn new() -> Flooded {
        let mut scene = Scene::several();
        let leased = scene.lease(GUEST);
        scene.send(STATIC);
        scene.answers(&arp(2, (OTHER, STATIC), (config().mac, GATEWAY)));
        Flooded {
            leased,
            before: scene.gateway.stats,
            scene,
            frames: 0,
        }
    }

    /// A forged frame, in batches of 64, one in each millisecond.
    fn frame(&mut self, frame: &[u8]) {
        let scene = &mut self.scene;
        let passed = scene.gateway.receive(Frame::new(frame), scene.now);
        assert!(passed.is_none() || scene.gateway.stats.passed > self.before.passed);
        self.frames += 1;
        if self.frames.is_multiple_of(64) {
            scene.now += Duration::from_millis(1);
            scene.gateway.tick(scene.now);
            self.answer();
        }
        if self.frames.is_multiple_of(8192) {
            self.check();
        }
    }

    /// The guest without a lease answers when it is asked.
    fn answer(&mut self) {
        let scene = &mut self.scene;
        let answers = std::mem::take(&mut scene.gateway.answers);
        assert!(answers.len() <= MAX_ANSWERS + 512);
        let question = arp(1, (config().mac, GATEWAY), (NOBODY, STATIC));
        if answers.iter().any(|frame| frame[6..] == question[6..]) {
            scene.nothing(&arp(2, (OTHER, STATIC), (config().mac, GATEWAY)));
            self.frames += 1;
        }
    }

    /// The guests are served, and the tables are bounded.
    fn check(&mut self) {
        let scene = &mut self.scene;
        assert_eq!(scene.send(self.leased).0, Some(GUEST));
        assert_eq!(scene.send(STATIC).0, Some(OTHER));
        scene.passed(&udp_from(GUEST, self.leased));
        scene.passed(&udp_from(OTHER, STATIC));
        self.frames += 2;
        let gateway = &scene.gateway;
        assert!(gateway.neighbours.list(scene.now).len() <= MOST_NEIGHBOURS);
        assert!(gateway.guests(scene.now).len() <= MOST_NEIGHBOURS + 241);
        assert!(gateway.waiting.is_empty());
    }

    /// At the end: each frame was counted.
    fn counted(mut self) -> EdgeStats {
        self.check();
        let stats = self.scene.gateway.stats;
        let counted = unaccounted(&self.before, 0) - unaccounted(&stats, 0);
        assert_eq!(counted, i128::from(self.frames));
        stats
    }
}

/// A million hosts ask for the gateway.
#[test]
fn a_flood_of_arp_from_forged_senders_harms_no_guest() {
    let mut flooded = Flooded::new();
    for number in 0..1_000_000u32 {
        let address = Ipv4Addr::from_bits(0x0a00_0200 | (number % 256));
        flooded.frame(&arp(1, (forged(number), address), (NOBODY, GATEWAY)));
    }
    let stats = flooded.counted();
    assert!(stats.spoofed > 10_000 && stats.conflicts > 3000);
    assert!(stats.arp_answered > 900_000);
}

/// They advertise the addresses of the gateway, of guests and of no one, solicit them, detect duplicates, and play
/// routers.
#[test]
fn a_flood_of_forged_discovery_harms_no_guest() {
    let mut flooded = Flooded::new();
    for number in 0..20_000u32 {
        let random = Ipv6Addr::from_bits(0xfd << 120 | u128::from(number) << 8 | 7);
        let target = match number % 4 {
            0 => GATEWAY_V6,
            1 => LINK_LOCAL,
            2 => GUEST_V6,
            _ => random,
        };
        let mut advertisement = vec![136, 0, 0, 0, 0xe0, 0, 0, 0];
        advertisement.extend(target.octets());
        advertisement.extend([2, 1]);
        advertisement.extend(forged(number).0);
        let mut router = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        router.extend([1, 1]);
        router.extend(forged(number).0);
        let redirect = [&[137, 0, 0, 0, 0, 0, 0, 0][..], &random.octets(), &[0; 16]].concat();
        let frames = [
            icmpv6(random, config().gateway_v6.unwrap().addr(), &advertisement),
            icmpv6(LINK_LOCAL, ALL_NODES, &router),
            icmpv6(random, ALL_NODES, &redirect),
            solicitation(Ipv6Addr::UNSPECIFIED, group_of(target), target, false),
            solicitation(random, group_of(GATEWAY_V6), GATEWAY_V6, false),
        ];
        for mut frame in frames {
            frame[6..12].copy_from_slice(&forged(number).0);
            flooded.frame(&frame);
        }
    }
    let defended = flooded.scene.gateway.defended.unwrap();
    assert!(flooded.scene.now - defended <= arp::DEFEND_INTERVAL);
    let stats = flooded.counted();
    assert_eq!(stats.conflicts, 10_000);
    assert!(stats.ignored > 40_000);
}

/// Fifty thousand guests discover addresses, and ask for them.
#[test]
fn dhcp_starvation_takes_no_lease_that_lasts() {
    let mut flooded = Flooded::new();
    for number in 0..50_000u32 {
        let guest = forged(number);
        let discovery = Request {
            guest,
            ..Request::new(1)
        };
        flooded.frame(&discovery.frame());
        let wish = Ipv4Addr::from_bits(0x0a00_0200 | (number % 256));
        let request = Request {
            guest,
            ..Request::new(3).option(50, wish)
        };
        flooded.frame(&request.frame());
        if number % 16 == 0 {
            let decline = Request {
                guest,
                ..Request::new(4).option(50, wish)
            };
            flooded.frame(&decline.frame());
        }
    }
    let leases = flooded.scene.gateway.leases.list(flooded.scene.now);
    assert!(leases.len() <= 241, "the pool");
    let stats = flooded.counted();
    assert!(stats.no_address > 0 && stats.dhcp_refused > 0, "{stats:?}");
}

/// A minute's new guests are few then, so a pool lasts for hours.
#[test]
fn with_a_rate_starvation_takes_few_addresses() {
    let mut flooded = Flooded::new();
    let config = config().new_guests_per_minute(10);
    flooded.scene.gateway = Gateway::new(config);
    for number in 0..10_000u32 {
        let guest = forged(number);
        let wish = Ipv4Addr::from_bits(0x0a00_020a + number % 240);
        let request = Request {
            guest,
            ..Request::new(3).option(50, wish)
        };
        flooded.scene.answers(&request.frame());
    }
    assert_eq!(
        flooded.scene.gateway.leases.list(flooded.scene.now).len(),
        10
    );
    let stats = flooded.scene.gateway.stats;
    assert_eq!(stats.leases_limited + stats.dhcp_refused, 9990);
}

/// The stack answers forged sources: each is asked for, and nothing waits without bound.
#[test]
fn packets_to_a_hundred_thousand_absent_guests_harm_no_other() {
    let mut flooded = Flooded::new();
    for number in 0..100_000u32 {
        let absent = Ipv6Addr::from_bits(0xfd << 120 | u128::from(number) << 8 | 7);
        flooded.scene.send(absent);
        if number % 64 == 0 {
            flooded.scene.now += Duration::from_millis(1);
            flooded.scene.gateway.tick(flooded.scene.now);
            flooded.answer();
        }
        if number % 1000 == 0 {
            flooded.check();
        }
    }
    let waiting = flooded.scene.gateway.neighbours.list(flooded.scene.now);
    let waiting: usize = waiting.iter().map(|neighbour| neighbour.waiting).sum();
    assert!(waiting <= 512);
    let counters = flooded.scene.gateway.neighbours.counters();
    assert!(counters.full > 90_000, "{counters:?}");
    flooded.counted();
}

/// Of any length, and with any number of tags.
#[test]
fn frames_of_any_length_and_stacks_of_tags_are_counted() {
    for vlan in [Vlan::Drop, Vlan::Strip] {
        let mut flooded = Flooded::new();
        flooded.scene.gateway.config.vlan = vlan;
        let addresses = [&config().mac.0[..], &forged(1).0].concat();
        for kind in [IPV4, IPV6, ARP, 0x8100, 0x88a8, 0, 46, 0xffff] {
            for len in (0..300).chain([1499, 1500, 1501, 9000, 65_535, 65_536]) {
                let mut frame = addresses.clone();
                frame.extend(kind.to_be_bytes());
                frame.resize(14 + len, 0x45);
                flooded.frame(&frame);
                frame.truncate(len.min(13));
                flooded.frame(&frame);
            }
            for tags in 0..200 {
                let mut frame = addresses.clone();
                frame.extend([0x81, 0, 0, 7, 0x88, 0xa8, 0, 7].repeat(tags));
                frame.extend(kind.to_be_bytes());
                frame.resize(frame.len() + 60, 0x45);
                flooded.frame(&frame);
            }
        }
        let stats = flooded.counted();
        assert!(stats.malformed > 100 && stats.unknown > 500 && stats.tagged > 1000);
    }
}
