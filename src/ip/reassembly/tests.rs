use super::*;
use crate::cases::cases;
use crate::clock::{Clock, SystemClock};
use crate::ip;
use crate::ip::samples::{addresses, fragment, fragment_from, from_to};
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

const NOBODY_S: u8 = 253;

fn frame(packet: &[u8]) -> Frame {
    Frame::new(packet)
}

impl Reassembler {
    fn give(&mut self, packet: &[u8], now: Instant) -> Added {
        let mut frame = frame(packet);
        assert_eq!(ip::parse(&mut frame).unwrap_err(), ip::Malformed::Fragment);
        self.add(frame, now)
    }

    /// What is counted is what there is.
    fn check(&self) {
        let held: usize = self.partial.values().map(|one| one.footprint()).sum();
        assert_eq!(self.memory, held);
        assert!(self.memory <= MOST_MEMORY && self.partial.len() <= MOST_PACKETS);
        assert_eq!(self.by_key.len(), self.partial.len());
        let shared: usize = self.shares.values().map(|share| share.memory).sum();
        assert_eq!(shared, held);
        let packets: usize = self.shares.values().map(|share| share.packets.len()).sum();
        assert_eq!(packets, self.partial.len());
        for share in self.shares.values() {
            assert!(share.memory <= MOST_MEMORY_OF_ONE && !share.packets.is_empty());
            assert!(share.packets.len() <= MOST_PACKETS_OF_ONE);
        }
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0])
        .collect()
}

fn whole(added: Added) -> Option<Vec<u8>> {
    match added {
        Added::Whole(frame) => {
            assert!(frame.head.len() >= 20 + frame.len().min(60).saturating_sub(40));
            Some(frame.to_vec())
        }
        _ => None,
    }
}

fn expected(v6: bool, payload: &[u8]) -> Vec<u8> {
    from_to(addresses(v6), NOBODY_S, payload)
}

/// Without what differs from a packet that was never cut: identification and flags.
fn plain(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        assert_eq!(packet[6..8], [0, 0]);
        packet[4..8].copy_from_slice(&[0, 0, 0x40, 0]);
        ip::samples::sum_header(&mut packet);
    }
    packet
}

proptest! {
    #![proptest_config(cases(100, 100))]

    /// Any cuts, any order, any duplicates.
    #[test]
    fn what_was_cut_is_put_together(
        v6: bool,
        len in 9usize..=65_515,
        cuts in proptest::collection::btree_set(1usize..8190, 1..100),
        keys in proptest::collection::vec(any::<u32>(), 101),
        twice in proptest::collection::vec(any::<bool>(), 101),
    ) {
        let payload = pattern(len);
        let mut edges: Vec<usize> = cuts.iter().map(|cut| cut * 8).filter(|cut| *cut < len).collect();
        edges.insert(0, 0);
        edges.push(len);
        prop_assume!(edges.len() > 2);
        let mut parts: Vec<_> = edges.windows(2).zip(&keys).map(|(edge, key)| (*key, edge[0], edge[1])).collect();
        let again: Vec<_> = parts.iter().zip(&twice).filter(|(_, twice)| **twice).map(|(part, _)| *part).collect();
        parts.sort_unstable();
        parts.extend(again);
        let (now, mut reassembler) = (SystemClock.now(), Reassembler::default());
        let mut seen = std::collections::BTreeSet::new();
        for (_, from, to) in parts {
            seen.insert(from);
            let added = reassembler.give(&fragment(v6, NOBODY_S, (7, from, to < len), &payload[from..to]), now);
            let is_whole = seen.len() == edges.len() - 1;
            match whole(added) {
                Some(packet) => {
                    prop_assert!(is_whole);
                    // What comes twice may belong to a packet that is sent again.
                    seen.clear();
                    prop_assert_eq!(plain(packet), expected(v6, &payload));
                }
                None => prop_assert!(!is_whole),
            }
        }
    }

    /// Beside a model that looks at every pair: any fragments, of few places, so that many overlap.
    #[test]
    fn any_fragments_as_in_the_model(
        v6: bool,
        all in proptest::collection::vec((0usize..6, 1usize..4, any::<bool>(), 0u8..8, 0u32..2), 1..40),
    ) {
        let (now, mut reassembler) = (SystemClock.now(), Reassembler::default());
        let mut model: HashMap<u32, Model> = HashMap::new();
        for (at, units, more, odd, id) in all {
            let len = if more { units * 8 } else { units * 8 - usize::from(odd % 3) };
            if at == 0 && !more {
                continue;
            }
            let bytes = vec![u8::from(odd == 7); len];
            let added = reassembler.give(&fragment(v6, NOBODY_S, (id, at * 8, more), &bytes), now);
            let one = model.entry(id).or_default();
            let said = one.take(at * 8, &bytes, !more);
            match (&added, &said) {
                (Added::Whole(frame), Modelled::Whole(payload)) => {
                    prop_assert_eq!(plain(frame.to_vec()), expected(v6, payload));
                    model.remove(&id);
                }
                (Added::Waits(_), Modelled::Waits)
                | (Added::Duplicate, Modelled::Duplicate)
                | (Added::Dropped(Dropped::Abandoned, None), Modelled::Abandoned) => {}
                (Added::Dropped(Dropped::Overlap, None), Modelled::Overlap) => {
                    if v6 {
                        one.abandoned = true;
                    } else {
                        model.remove(&id);
                    }
                }
                _ => prop_assert!(false, "{:?} {:?}", added, said),
            }
        }
    }

    /// Whatever comes, from whomever: the bounds hold, and what is counted is there.
    #[test]
    fn a_flood_stays_within_the_bounds(
        all in proptest::collection::vec((any::<u8>(), 0u32..400, 0usize..8000, 1usize..180, any::<bool>()), 1..3000),
    ) {
        let (mut now, mut reassembler) = (SystemClock.now(), Reassembler::default());
        for (source, id, at, units, more) in all {
            let ends = (Ipv4Addr::new(10, 0, 1, source % 12).into(), addresses(false).1);
            let packet = fragment_from(ends, NOBODY_S, (id, at * 8, more), &vec![0; units * 8]);
            if packet.len() + at * 8 > MAX_LENGTH || at == 0 && !more {
                continue;
            }
            now += Duration::from_millis(1);
            reassembler.give(&packet, now);
            if id == 0 {
                reassembler.check();
            }
        }
        reassembler.check();
        while reassembler.expire(now + LIFE).is_some() {
            now += Duration::from_micros(1);
        }
        reassembler.check();
        prop_assert!(reassembler.is_empty() && reassembler.memory() == 0);
        prop_assert_eq!(reassembler.next_expiry(), None);
    }
}

#[derive(Debug, Default)]
struct Model {
    parts: Vec<(usize, Vec<u8>, bool)>,
    abandoned: bool,
}

#[derive(Debug)]
enum Modelled {
    Waits,
    Duplicate,
    Whole(Vec<u8>),
    Overlap,
    Abandoned,
}

impl Model {
    fn take(&mut self, start: usize, bytes: &[u8], last: bool) -> Modelled {
        if self.abandoned {
            return Modelled::Abandoned;
        }
        let one = (start, bytes.to_vec(), last);
        if self.parts.contains(&one) {
            return Modelled::Duplicate;
        }
        self.parts.push(one);
        let mut all = vec![None; 2000];
        let ends: Vec<_> = self
            .parts
            .iter()
            .filter(|(.., last)| *last)
            .map(|(start, bytes, _)| start + bytes.len())
            .collect();
        for (start, bytes, _) in &self.parts {
            for (at, byte) in (*start..).zip(bytes) {
                if all[at].replace(*byte).is_some() || ends.first().is_some_and(|end| at >= *end) {
                    return Modelled::Overlap;
                }
            }
        }
        if ends.len() > 1 {
            return Modelled::Overlap;
        }
        match ends.first() {
            Some(end) if all[..*end].iter().all(Option::is_some) => {
                Modelled::Whole(all[..*end].iter().flatten().copied().collect())
            }
            _ => Modelled::Waits,
        }
    }
}

/// One source fills its share, and what others send becomes whole.
#[test]
fn one_source_does_not_take_the_places_of_others() {
    let (now, mut reassembler) = (SystemClock.now(), Reassembler::default());
    let part = |v6, id, more| {
        fragment(
            v6,
            NOBODY_S,
            (id, if more { 0 } else { 64 }, more),
            &[7; 64],
        )
    };
    for v6 in [false, true] {
        reassembler.give(&part(v6, 1, true), now);
    }
    let neighbours =
        (0..10u16).map(|host| IpAddr::from(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, host)));
    for (from, to) in [(IpAddr::from([10, 0, 0, 77]), addresses(false).1)]
        .into_iter()
        .chain(neighbours.map(|from| (from, addresses(true).1)))
    {
        for id in 0..1000 {
            let packet = fragment_from((from, to), NOBODY_S, (id, 8, true), &[0; 8]);
            assert!(matches!(
                reassembler.give(&packet, now),
                Added::Waits(Some(_))
            ));
        }
    }
    reassembler.check();
    assert_eq!(
        reassembler.partial.len(),
        2 + 2 * MOST_PACKETS_OF_ONE,
        "a network of 64 bits is one"
    );
    assert_eq!(
        reassembler.take_evicted(),
        11_000 - 2 * MOST_PACKETS_OF_ONE as u64
    );
    for v6 in [false, true] {
        assert!(whole(reassembler.give(&part(v6, 1, false), now)).is_some());
    }
}

/// Many forged sources: the oldest packets go, and one whose fragments come at once is not among them.
#[test]
fn of_too_many_packets_the_oldest_goes() {
    let (now, mut reassembler) = (SystemClock.now(), Reassembler::default());
    for host in 0..5000u32 {
        let from = IpAddr::from(Ipv4Addr::from(0x0a01_0000 + host));
        let packet = fragment_from(
            (from, addresses(false).1),
            NOBODY_S,
            (1, 8, true),
            &[0; 1400],
        );
        reassembler.give(&packet, now);
    }
    reassembler.check();
    assert_eq!(reassembler.partial.len(), MOST_PACKETS);
    assert!(reassembler.memory() > MOST_MEMORY / 4);
    let payload = pattern(60_000);
    let mut got = None;
    for (at, part) in payload.chunks(1480).enumerate() {
        let more = (at + 1) * 1480 < payload.len();
        got = whole(reassembler.give(&fragment(false, NOBODY_S, (9, at * 1480, more), part), now));
    }
    assert_eq!(got.map(plain), Some(expected(false, &payload)));
}

/// A packet in many small pieces holds no more than its share, and goes.
#[test]
fn a_bomb_of_tiny_fragments_is_dropped() {
    let (now, mut reassembler) = (SystemClock.now(), Reassembler::default());
    let mut dropped = 0;
    for id in 0..20 {
        for at in (0..1000).rev() {
            let packet = fragment(true, NOBODY_S, (id, at * 8, at < 999), &[1; 8]);
            match reassembler.give(&packet, now) {
                Added::Dropped(Dropped::Limit, None) => dropped += 1,
                Added::Waits(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(dropped >= 20 * 3, "{dropped}");
    assert!(reassembler.memory() <= MOST_MEMORY_OF_ONE);
}

/// A link that reads each packet into a large buffer: what waits does not hold that.
#[test]
fn a_fragment_does_not_hold_more_memory_than_it_needs() {
    let (now, mut reassembler) = (SystemClock.now(), Reassembler::default());
    for id in 0..100 {
        let mut large = FrameMut::with_capacity(60_000);
        large
            .bytes_mut()
            .extend_from_slice(&fragment(false, NOBODY_S, (id, 8, true), &[1; 1400]));
        let frame = Frame::with_rest(large.freeze(), Gather::new());
        assert!(matches!(reassembler.add(frame, now), Added::Waits(_)));
    }
    assert!(
        reassembler.memory() < 100 * 4096,
        "{}",
        reassembler.memory()
    );
}

/// The largest packet in the smallest packets of every host, RFC 791 3.1.
#[test]
fn the_largest_packet_in_packets_of_576_bytes() {
    for v6 in [false, true] {
        let payload = pattern(if v6 { 65_535 } else { 65_515 });
        let (now, mut reassembler) = (SystemClock.now(), Reassembler::default());
        let mut got = None;
        for (at, part) in payload.chunks(552).enumerate() {
            let more = (at + 1) * 552 < payload.len();
            got = whole(reassembler.give(&fragment(v6, NOBODY_S, (9, at * 552, more), part), now));
        }
        assert_eq!(got.map(plain), Some(expected(v6, &payload)));
    }
}

/// The sums over what came by a link that vouches for it are not taken again.
#[test]
fn a_packet_is_vouched_for_if_all_of_it_is() {
    for (one, other, vouched) in [
        (true, true, true),
        (true, false, false),
        (false, true, false),
    ] {
        let (now, mut reassembler) = (SystemClock.now(), Reassembler::default());
        let mut last = None;
        for (at, vouched) in [(0, one), (8, other)] {
            let mut frame = frame(&fragment(false, NOBODY_S, (1, at, at == 0), &[0; 8]));
            if vouched {
                frame.checksum = Checksum::Verified;
            }
            last = Some(reassembler.add(frame, now));
        }
        match last {
            Some(Added::Whole(frame)) => assert_eq!(frame.checksum.is_vouched_for(), vouched),
            other => panic!("{other:?}"),
        }
    }
}
