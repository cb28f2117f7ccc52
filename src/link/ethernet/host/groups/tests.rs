//! Packet by packet, in virtual time.

use super::*;
use crate::clock::{Clock, SystemClock};
use crate::link::ethernet::wire::ip;
use internet_checksum::checksum;
use proptest::prelude::*;

const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
const OWN_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

/// A message that was sent: destination, kind, and groups with kinds of records, or 0 in older versions.
#[derive(Debug, PartialEq, Eq)]
struct Sent {
    from: IpAddr,
    to: IpAddr,
    kind: u8,
    groups: Vec<(u8, IpAddr)>,
}

/// Checks all of a packet.
fn read(packet: &[u8]) -> Sent {
    let is_v6 = packet[0] >> 4 == 6;
    let address = |bytes: &[u8]| match is_v6 {
        false => IpAddr::from(<[u8; 4]>::try_from(bytes).unwrap()),
        true => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()),
    };
    let len = usize::from(u16::from_be_bytes(match is_v6 {
        false => [packet[2], packet[3]],
        true => [packet[4], packet[5]],
    }));
    let (from, to, message) = if is_v6 {
        assert_eq!((packet.len(), packet[6], packet[7]), (40 + len, 0, 1));
        assert_eq!(packet[40..48], [58, 0, 5, 2, 0, 0, 1, 0]);
        let sum = ip::transport_sum(&packet[8..40], 58, &packet[48..]);
        assert_eq!(sum, [0, 0]);
        (&packet[8..24], &packet[24..40], &packet[48..])
    } else {
        assert_eq!((packet[0], packet[1], packet.len()), (0x46, 0xc0, len));
        assert_eq!((packet[8], packet[9]), (1, 2));
        assert_eq!(packet[20..24], [0x94, 4, 0, 0]);
        assert_eq!(
            (checksum(&packet[..24]), checksum(&packet[24..])),
            ([0; 2], [0; 2])
        );
        (&packet[12..16], &packet[16..20], &packet[24..])
    };
    let kind = message[0];
    let groups = match kind {
        0x22 | 143 => {
            let size = 4 + from.len();
            let count = usize::from(u16::from_be_bytes([message[6], message[7]]));
            let records: Vec<_> = message[8..].chunks(size).collect();
            assert_eq!(records.len(), count);
            let record = |record: &&[u8]| {
                assert_eq!(record[1..4], [0; 3], "no sources");
                (record[0], address(&record[4..]))
            };
            records.iter().map(record).collect()
        }
        _ if is_v6 => vec![(0, address(&message[8..]))],
        _ => vec![(0, address(&message[4..]))],
    };
    Sent {
        from: address(from),
        to: address(to),
        kind,
        groups,
    }
}

/// An IPv4 packet with an IGMP message.
fn igmp(from: Ipv4Addr, to: Ipv4Addr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    let mut packet = vec![0x45, 0, 0, 20 + u8::try_from(message.len()).unwrap()];
    packet.extend([0, 0, 0, 0, 1, 2, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    packet.extend(message);
    packet
}

/// An IPv6 packet with an MLD message.
fn mld(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let addresses = [from.octets(), to.octets()].concat();
    let sum = ip::transport_sum(&addresses, 58, &message);
    message[2..4].copy_from_slice(&sum);
    let len = 8 + u8::try_from(message.len()).unwrap();
    let mut packet = vec![0x60, 0, 0, 0, 0, len, 0, 1];
    packet.extend(addresses);
    packet.extend([58, 0, 1, 0, 5, 2, 0, 0]);
    packet.extend(message);
    packet
}

/// A query in either family. Its time is in tenths of a second.
fn query(version: Version, group: IpAddr, tenths: u8) -> Vec<u8> {
    let is_general = group.is_unspecified();
    match group {
        IpAddr::V4(group) => {
            let mut message = vec![0x11, tenths, 0, 0];
            message.extend(group.octets());
            if version == Version::V3 {
                message.extend([2, 125, 0, 0]);
            }
            let to = if is_general { ALL_HOSTS } else { group };
            igmp(ROUTER, to, &message)
        }
        IpAddr::V6(group) => {
            let mut message = vec![130, 0, 0, 0];
            message.extend((u16::from(tenths) * 100).to_be_bytes());
            message.extend([0, 0]);
            message.extend(group.octets());
            if version == Version::V3 {
                message.extend([2, 125, 0, 0]);
            }
            let to = if is_general { ALL_NODES } else { group };
            mld(ROUTER_V6, to, &message)
        }
    }
}

/// The names of a family.
#[derive(Clone, Copy)]
struct Names {
    own: IpAddr,
    all: IpAddr,
    a: IpAddr,
    b: IpAddr,
    /// Where reports of version 3 go, and the kinds of messages.
    reports: IpAddr,
    routers: IpAddr,
    records: u8,
    member: u8,
    done: u8,
}

fn families() -> [Names; 2] {
    let v4 = Names {
        own: OWN.into(),
        all: ip("0.0.0.0"),
        a: ip("239.1.1.1"),
        b: ip("224.0.0.251"),
        reports: ip("224.0.0.22"),
        routers: ip("224.0.0.2"),
        records: 0x22,
        member: 0x16,
        done: 0x17,
    };
    let v6 = Names {
        own: OWN_V6.into(),
        all: ip("::"),
        a: ip("ff05::1:3"),
        b: ip("ff02::fb"),
        reports: ip("ff02::16"),
        routers: ip("ff02::2"),
        records: 143,
        member: 131,
        done: 132,
    };
    [v4, v6]
}

impl Names {
    fn records(&self, records: &[(u8, IpAddr)]) -> Sent {
        Sent {
            from: self.own,
            to: self.reports,
            kind: self.records,
            groups: records.to_vec(),
        }
    }

    fn member(&self, group: IpAddr) -> Sent {
        Sent {
            from: self.own,
            to: group,
            kind: self.member,
            groups: vec![(0, group)],
        }
    }

    fn done(&self, group: IpAddr) -> Sent {
        Sent {
            from: self.own,
            to: self.routers,
            kind: self.done,
            groups: vec![(0, group)],
        }
    }
}

struct Scene {
    groups: Groups,
    now: Instant,
}

impl Scene {
    fn with_seed(seed: u64) -> Scene {
        let now = SystemClock.now();
        let mut groups = Groups::new(seed);
        groups.set_ipv4(Some(OWN), now);
        groups.set_ipv6(Some(OWN_V6), now);
        Scene { groups, now }
    }

    fn new() -> Scene {
        Scene::with_seed(1)
    }

    fn join(&mut self, group: IpAddr) {
        assert!(self.groups.join(group, self.now));
    }

    fn leave(&mut self, group: IpAddr) {
        self.groups.leave(group, self.now);
    }

    /// The message that is due now.
    fn sent(&mut self) -> Sent {
        assert!(self.groups.deadline().is_some_and(|at| at <= self.now));
        read(&self.groups.poll(self.now).expect("it is due"))
    }

    fn nothing(&mut self) {
        assert_eq!(self.groups.poll(self.now), None);
    }

    /// All messages for so long.
    fn all_for(&mut self, time: Duration) -> Vec<Sent> {
        let end = self.now + time;
        let mut all = Vec::new();
        while let Some(at) = self.groups.deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            all.extend(self.groups.poll(self.now).map(|packet| read(&packet)));
            assert!(all.len() < 10_000);
        }
        self.now = end;
        all
    }

    /// Joined some time ago.
    fn member_of(groups: &[IpAddr]) -> Scene {
        let mut scene = Scene::new();
        for group in groups {
            scene.join(*group);
        }
        scene.all_for(seconds(100));
        assert_eq!(scene.groups.deadline(), None);
        scene
    }

    fn receive(&mut self, packet: &[u8]) {
        let malformed = self.groups.stats.malformed;
        assert!(is_message(packet));
        self.groups.receive(packet, self.now);
        assert_eq!(self.groups.stats.malformed, malformed);
    }
}

#[test]
fn a_join_is_reported_twice_and_a_leave_too() {
    for names in families() {
        let mut waits = Vec::new();
        for seed in 0..50 {
            let mut scene = Scene::with_seed(seed);
            let joined = names.records(&[(TO_EXCLUDE, names.a)]);
            scene.join(names.a);
            assert!(scene.groups.contains(names.a) && !scene.groups.contains(names.b));
            assert_eq!(scene.sent(), joined);
            let began = scene.now;
            let again = scene.groups.deadline().unwrap();
            waits.push(again - began);
            assert_eq!(scene.all_for(seconds(1)), [joined]);
            assert_eq!(scene.groups.deadline(), None);

            let left = || names.records(&[(TO_INCLUDE, names.a)]);
            scene.leave(names.a);
            assert!(!scene.groups.contains(names.a));
            assert_eq!(scene.sent(), left());
            assert_eq!(scene.all_for(seconds(1)), [left()]);
            assert_eq!(scene.groups.deadline(), None);
        }
        let half = seconds(1) / 2;
        assert!(waits.iter().any(|wait| *wait < half) && waits.iter().any(|wait| *wait > half));
    }
}

#[test]
fn joins_are_counted() {
    for names in families() {
        let mut scene = Scene::member_of(&[names.a, names.a]);
        scene.leave(names.a);
        scene.nothing();
        assert!(scene.groups.contains(names.a));
        scene.leave(names.a);
        assert_eq!(scene.all_for(seconds(9)).len(), 2);
        // One more is none.
        scene.leave(names.a);
        scene.nothing();
        assert!(scene.groups.v4.groups.is_empty() && scene.groups.v6.groups.is_empty());
    }
}

/// What comes last is reported last.
#[test]
fn a_leave_and_a_join_in_turn() {
    for names in families() {
        let mut scene = Scene::new();
        let kinds =
            |all: Vec<Sent>| -> Vec<u8> { all.iter().map(|sent| sent.groups[0].0).collect() };
        scene.join(names.a);
        scene.sent();
        scene.leave(names.a);
        scene.sent();
        scene.join(names.a);
        assert_eq!(kinds(scene.all_for(seconds(9))), [TO_EXCLUDE; 2]);
        scene.leave(names.a);
        assert_eq!(kinds(scene.all_for(seconds(9))), [TO_INCLUDE; 2]);
    }
}

#[test]
fn joins_at_once_share_a_report() {
    for names in families() {
        let mut scene = Scene::new();
        scene.join(names.a);
        scene.join(names.b);
        let both = [(TO_EXCLUDE, names.a), (TO_EXCLUDE, names.b)];
        assert_eq!(scene.sent(), names.records(&both));
        scene.nothing();
    }
}

/// RFC 3376 5, RFC 3810 6; the scopes of RFC 7346.
#[test]
fn groups_that_need_no_report() {
    let mut scene = Scene::new();
    for group in ["224.0.0.1", "ff02::1", "ff01::5", "ff11::5", "ff00::5"] {
        scene.join(ip(group));
        assert!(scene.groups.contains(ip(group)));
    }
    for names in families() {
        scene.receive(&query(Version::V3, names.all, 1));
    }
    scene.receive(&query(Version::V3, ip("224.0.0.1"), 1));
    assert_eq!(scene.all_for(seconds(100)), []);
    for group in ["224.0.0.1", "ff02::1", "ff01::5"] {
        scene.leave(ip(group));
        assert!(!scene.groups.contains(ip(group)));
    }
    assert_eq!(scene.all_for(seconds(100)), []);
    // Not a group.
    assert!(!scene.groups.join(ip("10.0.0.1"), scene.now));
    assert!(!scene.groups.join(ip("fe80::1"), scene.now));
    assert_eq!(scene.groups.stats().refused, 2);
}

#[test]
fn a_general_query_is_answered_with_all_groups_within_its_time() {
    for names in families() {
        let mut waits = Vec::new();
        for seed in 0..50 {
            let mut scene = Scene::with_seed(seed);
            scene.join(names.a);
            scene.join(names.b);
            scene.all_for(seconds(9));
            scene.receive(&query(Version::V3, names.all, 100));
            let at = scene.groups.deadline().unwrap();
            waits.push(at - scene.now);
            // A later one does not put it off, and no second answer is sent.
            scene.receive(&query(Version::V3, names.all, 200));
            assert!(scene.groups.deadline().unwrap() <= at);
            let both = [(IS_EXCLUDE, names.a), (IS_EXCLUDE, names.b)];
            assert_eq!(scene.all_for(seconds(10)), [names.records(&both)]);
        }
        assert!(waits.iter().all(|wait| *wait < seconds(10)));
        assert!(waits.iter().any(|wait| *wait > seconds(8)));
        assert!(waits.iter().any(|wait| *wait < seconds(2)));
    }
}

#[test]
fn a_query_about_a_group_is_answered_for_it() {
    for names in families() {
        let mut scene = Scene::member_of(&[names.a, names.b]);
        scene.receive(&query(Version::V3, names.b, 10));
        scene.receive(&query(Version::V3, names.b, 10));
        let answer = names.records(&[(IS_EXCLUDE, names.b)]);
        assert_eq!(scene.all_for(seconds(1)), [answer]);
        // The answer to a general query answers it too.
        scene.receive(&query(Version::V3, names.b, 200));
        scene.receive(&query(Version::V3, names.all, 0));
        assert_eq!(scene.sent().groups.len(), 2);
        assert_eq!(scene.groups.deadline(), None);
        // A group of others; a group that was left meanwhile.
        let other = if names.a.is_ipv4() {
            "239.9.9.9"
        } else {
            "ff05::9"
        };
        scene.receive(&query(Version::V3, ip(other), 10));
        assert_eq!(scene.groups.deadline(), None);
        scene.receive(&query(Version::V3, names.b, 200));
        scene.leave(names.b);
        let left = || names.records(&[(TO_INCLUDE, names.b)]);
        assert_eq!(scene.all_for(seconds(100)), [left(), left()]);
    }
}

/// RFC 3376 4.1.8: so one says it of single sources, which are answered for the group.
#[test]
fn a_query_about_sources() {
    let [names, _] = families();
    let mut scene = Scene::member_of(&[names.a]);
    let mut message = vec![0x11, 10, 0, 0, 239, 1, 1, 1, 2, 125, 0, 1];
    message.extend([10, 0, 0, 7]);
    scene.receive(&igmp(ROUTER, [239, 1, 1, 1].into(), &message));
    let answer = names.records(&[(IS_EXCLUDE, names.a)]);
    assert_eq!(scene.all_for(seconds(1)), [answer]);
}

/// RFC 3376 4.1.1, 4.1.6, 4.1.7: times in the form of floating point; robustness.
#[test]
fn a_querier_sets_times_and_robustness() {
    let [names, _] = families();
    let mut longest = Duration::ZERO;
    for seed in 0..200 {
        let mut scene = Scene::with_seed(seed);
        scene.join(names.a);
        scene.all_for(seconds(9));
        // (0x1c + 16) << (7 + 3) tenths of a second is less than (15 + 16) << 10.
        let message = [0x11, 0xff, 0, 0, 0, 0, 0, 0, 3, 0x8f, 0, 0];
        scene.receive(&igmp(ROUTER, ALL_HOSTS, &message));
        longest = longest.max(scene.groups.deadline().unwrap() - scene.now);
        let family = &scene.groups.v4;
        assert_eq!((family.robustness, family.interval), (3, seconds(31 << 3)));
        scene.join(names.b);
        assert_eq!(scene.all_for(seconds(9)).len(), 3);
    }
    assert!(
        longest < seconds(3175) && longest > seconds(3000),
        "{longest:?}"
    );
}

#[test]
fn an_older_querier_is_answered_in_its_version() {
    for names in families() {
        let mut scene = Scene::member_of(&[names.a, names.b]);
        scene.receive(&query(Version::V2, names.all, 100));
        let mut answers = scene.all_for(seconds(10));
        answers.sort_by_key(|sent| sent.to != names.a);
        assert_eq!(answers, [names.member(names.a), names.member(names.b)]);
        // A query of version 3 meanwhile.
        scene.receive(&query(Version::V3, names.all, 10));
        assert_eq!(scene.all_for(seconds(1)).len(), 2);
        scene.receive(&query(Version::V2, names.b, 10));
        assert_eq!(scene.all_for(seconds(1)), [names.member(names.b)]);
        scene.leave(names.b);
        assert_eq!(scene.all_for(seconds(9)), [names.done(names.b)]);
        // Joins: twice within ten seconds.
        scene.join(names.b);
        assert_eq!(scene.sent(), names.member(names.b));
        assert_eq!(scene.all_for(seconds(10)), [names.member(names.b)]);
        // It is gone: 2 * 125 s + 10 s.
        scene.all_for(seconds(260));
        scene.receive(&query(Version::V3, names.b, 10));
        let answer = names.records(&[(IS_EXCLUDE, names.b)]);
        assert_eq!(scene.all_for(seconds(1)), [answer]);
    }
}

/// RFC 2236 3, 2710 4.
#[test]
fn reports_of_others_stand_for_ones_own_in_older_versions() {
    for names in families() {
        let heard = match names.a {
            IpAddr::V4(group) => {
                let message = [&[0x16, 0, 0, 0][..], &group.octets()].concat();
                igmp([10, 0, 2, 99].into(), group, &message)
            }
            IpAddr::V6(group) => {
                let message = [&[131, 0, 0, 0, 0, 0, 0, 0][..], &group.octets()].concat();
                mld(Ipv6Addr::from_bits(OWN_V6.to_bits() + 1), group, &message)
            }
        };
        let mut scene = Scene::member_of(&[names.a, names.b]);
        scene.receive(&query(Version::V2, names.all, 100));
        scene.receive(&heard);
        assert_eq!(scene.all_for(seconds(10)), [names.member(names.b)]);
        scene.leave(names.a);
        scene.nothing();
        // Not in version 3.
        let mut scene = Scene::member_of(&[names.a]);
        scene.receive(&query(Version::V3, names.all, 100));
        scene.receive(&heard);
        assert_eq!(scene.all_for(seconds(10)).len(), 1);
    }
}

#[test]
fn a_querier_of_igmpv1_is_answered_and_not_told_of_leaves() {
    let [names, _] = families();
    let mut scene = Scene::member_of(&[names.a]);
    scene.receive(&query(Version::V2, names.all, 100));
    scene.receive(&query(Version::V1, names.all, 0));
    let answers = scene.all_for(seconds(10));
    assert_eq!(answers.len(), 1);
    assert_eq!((answers[0].kind, answers[0].to), (0x12, names.a));
    scene.leave(names.a);
    assert_eq!(scene.all_for(seconds(10)), []);
}

/// RFC 3376 7.2.1.
#[test]
fn another_version_cancels_what_is_pending() {
    for names in families() {
        let mut scene = Scene::new();
        scene.join(names.a);
        scene.leave(names.a);
        scene.join(names.b);
        scene.receive(&query(Version::V3, names.all, 100));
        scene.receive(&query(Version::V2, names.a, 100));
        assert_eq!(scene.all_for(seconds(100)), []);
    }
}

#[test]
fn joins_before_there_is_an_address_are_reported_when_there_is() {
    let [names, _] = families();
    let now = SystemClock.now();
    let groups = Groups::new(1);
    let mut scene = Scene { groups, now };
    scene.join(names.a);
    scene.join(names.b);
    scene.leave(names.b);
    scene.nothing();
    scene.receive(&query(Version::V3, names.all, 10));
    assert_eq!(scene.all_for(seconds(100)), []);
    scene.groups.set_ipv4(Some(OWN), scene.now);
    let joined = || names.records(&[(TO_EXCLUDE, names.a)]);
    let all = scene.all_for(seconds(100));
    assert!(
        all.contains(&joined()) && all[1..].contains(&joined()),
        "{all:?}"
    );
    // Away, and another one.
    scene.groups.set_ipv4(None, scene.now);
    assert_eq!(scene.groups.deadline(), None);
    scene.groups.set_ipv4(Some(OWN), scene.now);
    assert_eq!(scene.all_for(seconds(100)), [joined(), joined()]);
    scene.groups.set_ipv4(Some(OWN), scene.now);
    assert_eq!(scene.groups.deadline(), None, "the same");
    scene.groups.restart(scene.now);
    assert_eq!(scene.all_for(seconds(100)), [joined(), joined()]);
}

/// RFC 3590 4: e.g. before duplicates of the link-local address are excluded.
#[test]
fn mld_is_sent_from_the_unspecified_address_and_again() {
    let [_, names] = families();
    let now = SystemClock.now();
    let groups = Groups::new(1);
    let mut scene = Scene { groups, now };
    scene.join(names.a);
    let mut tentative = names;
    tentative.own = Ipv6Addr::UNSPECIFIED.into();
    let records = [(TO_EXCLUDE, names.a)];
    assert_eq!(scene.sent(), tentative.records(&records));
    scene.groups.set_ipv6(Some(OWN_V6), scene.now);
    let joined = || names.records(&records);
    assert_eq!(scene.all_for(seconds(9)), [joined(), joined()]);
}

#[test]
fn groups_and_reports_are_bounded() {
    for names in families() {
        let mut scene = Scene::new();
        let group = |number: u16| match names.a {
            IpAddr::V4(_) => {
                IpAddr::from([239, 0, number.to_be_bytes()[0], number.to_be_bytes()[1]])
            }
            IpAddr::V6(_) => IpAddr::from([0xff05, 0, 0, 0, 0, 0, 0, number + 1]),
        };
        (0..512).for_each(|number| scene.join(group(number)));
        assert!(!scene.groups.join(group(512), scene.now));
        assert!(scene.groups.join(group(511), scene.now), "once more");
        assert_eq!(scene.groups.stats().refused, 1);
        let counts =
            |all: Vec<Sent>| -> Vec<usize> { all.iter().map(|sent| sent.groups.len()).collect() };
        let expected = [60, 60, 60, 60, 60, 60, 60, 60, 32];
        assert_eq!(counts(scene.all_for(Duration::ZERO)), expected);
        scene.all_for(seconds(9));
        scene.receive(&query(Version::V3, names.all, 10));
        assert_eq!(counts(scene.all_for(seconds(1))), expected);
        assert_eq!(scene.groups.deadline(), None);
        // A group that is being left makes room.
        scene.leave(group(0));
        assert!(scene.groups.join(group(512), scene.now));
        let packet = scene.groups.poll(scene.now).unwrap();
        assert!(packet.len() <= 1280 && read(&packet).groups.len() == 1);
    }
}

#[test]
fn invalid_messages_are_counted() {
    let [v4, v6] = families();
    let good = query(Version::V3, v4.all, 100);
    let good_v6 = query(Version::V3, v6.all, 100);
    let changed = |packet: &[u8], at: usize, value: u8| {
        let mut packet = packet.to_vec();
        packet[at] = value;
        packet
    };
    let group = Ipv4Addr::new(239, 1, 1, 1);
    let not_local = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    let mut v6_message = good_v6[48..].to_vec();
    v6_message[2..4].fill(0);
    let mut no_alert = good_v6.clone();
    no_alert[42..48].copy_from_slice(&[1, 4, 0, 0, 0, 0]);
    let invalid = [
        // Checksums; a fragment; cut off.
        changed(&good, 8, 2),
        changed(&good, 21, 7),
        changed(&good_v6, 60, 7),
        good[..26].to_vec(),
        good_v6[..60].to_vec(),
        // To another group; about no group; of a length of no version.
        igmp(ROUTER, group, &[0x11, 1, 0, 0, 0, 0, 0, 0]),
        igmp(ROUTER, ALL_HOSTS, &[0x11, 1, 0, 0, 239, 1, 1, 1]),
        igmp(ROUTER, OWN, &[0x11, 1, 0, 0, 10, 0, 0, 1]),
        igmp(ROUTER, ALL_HOSTS, &[0x11, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        igmp(group, ALL_HOSTS, &[0x11, 1, 0, 0, 0, 0, 0, 0]),
        // RFC 3810 6.2.
        mld(not_local, ALL_NODES, &v6_message),
        changed(&good_v6, 7, 255),
        no_alert,
        mld(ROUTER_V6, ALL_NODES, &v6_message[..26]),
    ];
    let mut scene = Scene::member_of(&[v4.a, v6.a]);
    for (at, packet) in invalid.iter().enumerate() {
        scene.groups.receive(packet, scene.now);
        assert_eq!(scene.groups.stats.malformed, u64::try_from(at).unwrap() + 1);
        assert_eq!(scene.groups.deadline(), None, "{at}");
    }
    // For routers.
    scene.receive(&igmp(
        ROUTER,
        [224, 0, 0, 2].into(),
        &[0x17, 0, 0, 0, 239, 1, 1, 1],
    ));
    assert_eq!(scene.groups.stats().ignored, 1);
    // Other packets.
    assert!(!is_message(&[0x45; 9]) && !is_message(&[0x60; 41]) && !is_message(&[]));
    assert!(!is_message(&changed(&good_v6, 6, 58)) && !is_message(&changed(&good_v6, 48, 128)));
}

/// Random changes of messages.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let version = prop::sample::select(vec![Version::V1, Version::V2, Version::V3]);
    let group = prop::sample::select(vec![
        ip("0.0.0.0"),
        ip("::"),
        ip("239.1.1.1"),
        ip("ff05::1:3"),
        ip("224.0.0.1"),
    ]);
    let changes = prop::collection::vec((0..100_usize, any::<u8>()), 0..3);
    let changed = (version, group, any::<u8>(), changes);
    let changed = changed.prop_map(|(version, group, tenths, changes)| {
        let mut packet = query(version, group, tenths);
        for (at, value) in changes {
            let len = packet.len();
            packet[at % len] = value;
        }
        packet
    });
    prop_oneof![4 => changed, 1 => prop::collection::vec(any::<u8>(), 0..100)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Nothing panics, all messages are well formed, and nothing is sent without end.
    #[test]
    fn messages_of_any_content(
        all in prop::collection::vec((hostile(), 0..8_u8, 0..70_u8, 0..20_000_u64), 1..80),
        seed: u64,
    ) {
        let mut scene = Scene::with_seed(seed);
        for (packet, act, number, millis) in all {
            let group = match number % 2 {
                0 => IpAddr::from([239, 1, 1, number]),
                _ => IpAddr::from([0xff05, 0, 0, 0, 0, 0, 1, u16::from(number)]),
            };
            match act {
                0 | 1 => _ = scene.groups.join(group, scene.now),
                2 => scene.leave(group),
                3 => scene.groups.set_ipv4(None, scene.now),
                4 => scene.groups.set_ipv4(Some(OWN), scene.now),
                5 => scene.groups.restart(scene.now),
                _ => scene.groups.receive(&packet, scene.now),
            }
            scene.all_for(Duration::from_millis(millis));
            prop_assert!(scene.groups.v4.groups.len() <= 512 && scene.groups.v6.groups.len() <= 512);
        }
        scene.all_for(seconds(4000));
        prop_assert_eq!(scene.groups.deadline(), None);
    }
}
