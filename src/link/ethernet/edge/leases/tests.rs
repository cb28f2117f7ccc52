//! Leases, in virtual time.

use super::*;
use crate::clock::{Clock, SystemClock};
use proptest::prelude::*;
use std::collections::HashSet;

const LASTS: Duration = Duration::from_secs(3600);

fn mac(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac([2, 0, a, b, c, d])
}

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, last)
}

/// Addresses 10 to 13, 12 for the guest 1000 only, as is 99.
fn leases() -> Leases {
    Leases::new(
        address(10)..=address(13),
        &[(mac(1000), address(12)), (mac(1001), address(99))],
        LASTS,
    )
}

/// A table, its invariants, and the time.
struct Scene {
    leases: Leases,
    now: Instant,
}

impl Scene {
    fn new() -> Scene {
        Scene {
            leases: leases(),
            now: SystemClock.now(),
        }
    }

    fn offer(&mut self, guest: u32) -> Option<u8> {
        self.offer_with(guest, None)
    }

    fn offer_with(&mut self, guest: u32, wish: Option<u8>) -> Option<u8> {
        let offered = self.leases.offer(mac(guest), wish.map(address), self.now);
        self.check();
        offered.map(|address| address.octets()[3])
    }

    fn request(&mut self, guest: u32, last: u8) -> bool {
        let verdict = self
            .leases
            .request(mac(guest), address(last), None, self.now);
        self.check();
        verdict == Verdict::Given
    }

    /// Discovery and request.
    fn bound(&mut self, guest: u32) -> u8 {
        let offered = self.offer(guest).expect("an offer");
        assert!(self.request(guest, offered));
        offered
    }

    fn holder(&self, last: u8) -> Option<Mac> {
        self.leases.holder(address(last), self.now)
    }

    fn check(&self) {
        let leases = &self.leases;
        assert!(leases.records.len() <= 5, "four of the pool, one elsewhere");
        let mut macs = HashSet::new();
        for (address, record) in &leases.records {
            let live = record.until > self.now && record.state != State::Declined;
            assert!(
                !live || macs.insert(record.mac),
                "one lease or offer for each guest"
            );
            let reserved = leases.only_for.get(address);
            assert!(reserved.is_none_or(|owner| *owner == record.mac));
            let ends = leases.ends[record.state.order()].contains(&(record.until, *address));
            assert_eq!(ends, reserved.is_none());
        }
        for (mac, address) in &leases.of {
            assert_eq!(leases.records[address].mac, *mac);
        }
        let ends = leases.ends.iter().map(BTreeSet::len).sum::<usize>();
        assert!(ends <= leases.records.len() && leases.declined.len() <= 1);
    }
}

#[test]
fn each_guest_has_an_address_of_its_own_and_keeps_it() {
    let mut scene = Scene::new();
    assert_eq!([1, 2, 3].map(|guest| scene.bound(guest)), [10, 11, 13]);
    assert_eq!(scene.offer(4), None, "12 is for another guest");
    assert_eq!(scene.bound(1000), 12);
    assert_eq!(scene.bound(1001), 99);
    for guest in [1, 2, 3] {
        let last = scene.bound(guest);
        assert_eq!(scene.holder(last), Some(mac(guest)));
    }
    assert!(!scene.request(4, 10) && !scene.request(4, 99) && !scene.request(4, 200));
    assert!(!scene.request(1000, 13), "its own only");
}

#[test]
fn leases_are_renewed_and_expire() {
    let mut scene = Scene::new();
    assert_eq!(scene.bound(1), 10);
    scene.now += LASTS / 2;
    assert!(scene.request(1, 10));
    scene.now += LASTS - Duration::from_nanos(1);
    assert_eq!(scene.holder(10), Some(mac(1)));
    assert!(!scene.request(2, 10));
    scene.now += Duration::from_nanos(1);
    assert_eq!(scene.holder(10), None);
    assert_eq!(scene.offer(1), Some(10), "its former one");
    assert!(scene.request(2, 10), "a guest that had it elsewhere");
    assert_eq!(scene.offer(1), Some(11));
}

/// Others get the addresses that are over the longest, and only then those that were just offered.
#[test]
fn addresses_are_given_again_in_order() {
    let mut scene = Scene::new();
    for guest in [1, 2, 3] {
        scene.bound(guest);
        scene.now += Duration::from_secs(1);
    }
    assert!(scene.leases.release(mac(3), address(13), scene.now));
    assert!(!scene.leases.release(mac(3), address(10), scene.now));
    scene.now += Duration::from_secs(1);
    assert!(scene.leases.release(mac(1), address(10), scene.now));
    assert_eq!(scene.offer(1), Some(10), "the own one");
    for (guest, expected) in [(4, 13), (5, 10), (6, 13)] {
        scene.now += Duration::from_secs(1);
        assert_eq!(scene.offer(guest), Some(expected), "the oldest offer");
    }
    assert!(scene.request(6, 13));
    assert!(scene.request(4, 10), "the first that asks for it has it");
    assert!(!scene.request(5, 10));
    assert_eq!(
        scene.holder(11),
        Some(mac(2)),
        "which has lasted all the time"
    );
}

#[test]
fn a_wish_is_granted_if_the_address_is_free() {
    let mut scene = Scene::new();
    assert_eq!(scene.offer_with(1, Some(13)), Some(13));
    assert_eq!(
        scene.offer_with(2, Some(13)),
        Some(10),
        "expected by another guest"
    );
    assert_eq!(scene.offer_with(3, Some(12)), Some(11), "reserved");
    assert_eq!(scene.offer_with(3, Some(13)), Some(11), "its own");
    scene.now += OFFERED;
    assert_eq!(scene.offer_with(4, Some(13)), Some(13), "the offer is over");
}

/// A guest that was elsewhere, or whose server has forgotten it.
#[test]
fn an_old_address_is_kept_if_it_is_free() {
    let mut scene = Scene::new();
    assert!(scene.request(1, 11), "without an offer");
    assert!(!scene.request(2, 11));
    assert!(scene.request(1, 13), "another one in its place");
    assert_eq!(scene.holder(11), None);
    assert!(scene.request(2, 11));
}

#[test]
fn one_declined_address_at_a_time_is_not_given() {
    let mut scene = Scene::new();
    assert_eq!(scene.bound(1), 10);
    assert!(
        !scene.leases.decline(mac(2), address(10), scene.now),
        "another's"
    );
    assert!(scene.leases.decline(mac(1), address(10), scene.now));
    assert!(
        !scene.leases.decline(mac(1), address(10), scene.now),
        "no more"
    );
    assert_eq!(scene.holder(10), None);
    assert!(!scene.request(2, 10));
    assert_eq!(scene.bound(1), 11);
    // A quarter of four: the first one is given again.
    assert!(scene.leases.decline(mac(1), address(11), scene.now));
    scene.check();
    assert_eq!([1, 2].map(|guest| scene.bound(guest)), [13, 10]);
    assert_eq!(scene.offer(3), None);
    scene.now += DECLINED;
    assert_eq!(scene.offer(3), Some(11));
}

#[test]
fn another_servers_offer_frees_ours() {
    let mut scene = Scene::new();
    assert_eq!(scene.offer(1), Some(10));
    scene.leases.forget_offer(mac(1), scene.now);
    scene.check();
    assert_eq!(scene.offer_with(2, Some(10)), Some(10));
    scene.bound(3);
    scene.leases.forget_offer(mac(3), scene.now);
    assert_eq!(scene.holder(11), Some(mac(3)), "no offer");
}

/// Offers use up nothing; leases that last are not taken, whatever the number of guests that ask.
#[test]
fn a_hundred_thousand_forged_guests_take_no_lease_that_lasts() {
    let mut scene = Scene::new();
    scene.bound(1);
    for forged in 10_000..110_000 {
        scene.leases.offer(mac(forged), None, scene.now);
    }
    assert_eq!(scene.bound(2), scene.leases.of[&mac(2)].octets()[3]);
    for forged in 10_000..110_000 {
        if let Some(offered) = scene.leases.offer(mac(forged), None, scene.now) {
            let verdict = scene.leases.request(mac(forged), offered, None, scene.now);
            assert_eq!(verdict, Verdict::Given);
        }
    }
    scene.check();
    assert_eq!(scene.leases.list(scene.now).len(), 3);
    let of = |guest| scene.leases.of[&mac(guest)];
    let (first, second) = (of(1), of(2));
    assert_eq!(scene.leases.holder(first, scene.now), Some(mac(1)));
    assert_eq!(scene.leases.holder(second, scene.now), Some(mac(2)));
    assert!(scene.leases.of.len() <= 4);
    scene.bound(1000);
    scene.now += LASTS;
    assert!(
        scene.offer(3).is_some(),
        "after the leases of the forged ones"
    );
}

#[test]
fn new_guests_are_limited_and_others_are_not() {
    let mut scene = Scene::new();
    scene.leases = leases().rate(Some(1));
    scene.bound(1);
    assert_eq!(scene.offer(2), Some(11), "offers are none");
    let later = scene.leases.request(mac(2), address(11), None, scene.now);
    assert_eq!(later, Verdict::Later);
    assert!(scene.request(1, 10), "a renewal");
    assert_eq!(scene.bound(1000), 12, "a reservation");
    scene.now += MINUTE;
    assert_eq!(scene.bound(2), 11);
}

/// A machine that is started again with a random hardware address.
#[test]
fn the_only_address_is_for_whichever_guest_asks() {
    let (mut leases, now) = (Leases::for_any(address(15), LASTS), SystemClock.now());
    for guest in 0..1000 {
        assert_eq!(leases.offer(mac(guest), None, now), Some(address(15)));
        let verdict = leases.request(mac(guest), address(15), None, now);
        assert_eq!(verdict, Verdict::Given);
        assert_eq!(leases.holder(address(15), now), Some(mac(guest)));
        assert!(!leases.decline(mac(guest), address(15), now));
        assert!(!leases.release(mac(guest), address(15), now));
    }
    assert_eq!((leases.records.len(), leases.of.len()), (1, 1));
    let other = leases.request(mac(1), address(16), None, now);
    assert_eq!(other, Verdict::Refused);
}

#[test]
fn names_can_be_shown() {
    assert_eq!(name(b"web-1.example").as_deref(), Some("web-1.example"));
    assert_eq!(name(b"\x1b[2J\xff a\0").as_deref(), Some("2Ja"));
    assert_eq!(name(&[b'x'; 255]).map(|name| name.len()), Some(MAX_NAME));
    assert_eq!(name(b"\xff\x00"), None);
    let mut scene = Scene::new();
    let now = scene.now;
    for (name, expected) in [(Some("a"), "a"), (None, "a"), (Some("b"), "b")] {
        let name = name.map(String::from);
        let verdict = scene.leases.request(mac(1), address(10), name, now);
        assert_eq!(verdict, Verdict::Given);
        let listed = scene.leases.list(now)[0].name.clone();
        assert_eq!(listed.as_deref(), Some(expected));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// A lease that lasts stays with its guest, whatever others do.
    #[test]
    fn any_messages_in_any_order(steps in prop::collection::vec((0..8u8, 0..6u32, 9..15u8, 0..4000u64), 1..200)) {
        let mut scene = Scene::new();
        for (kind, guest, last, seconds) in steps {
            let guest = [1, 2, 3, 4, 1000, 1001][guest as usize];
            let before = scene.leases.list(scene.now);
            match kind {
                0 => scene.now += Duration::from_secs(seconds),
                1 => drop(scene.offer(guest)),
                2 => drop(scene.offer_with(guest, Some(last))),
                3 | 4 => {
                    if let Some(offered) = scene.offer(guest) {
                        prop_assert!(scene.request(guest, offered));
                    }
                }
                5 => drop(scene.request(guest, last)),
                6 => drop(scene.leases.release(mac(guest), address(last), scene.now)),
                _ => drop(scene.leases.decline(mac(guest), address(last), scene.now)),
            }
            scene.check();
            for lease in before {
                let holder = scene.leases.holder(lease.address, scene.now);
                let own = lease.mac == mac(guest) && kind != 0;
                prop_assert!(own || lease.until <= scene.now || holder == Some(lease.mac));
            }
        }
    }
}

#[test]
fn a_lease_may_have_no_end() {
    let (now, pool) = (SystemClock.now(), address(10)..=address(13));
    let mut leases = Leases::new(pool, &[], Duration::MAX);
    let verdict = leases.request(mac(1), address(10), None, now);
    assert_eq!(verdict, Verdict::Given);
    assert_eq!(leases.holder(address(10), now + LONGEST / 2), Some(mac(1)));
}
