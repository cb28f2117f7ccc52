//! The table of neighbours in virtual time.

use super::*;
use crate::clock::{Clock, SystemClock};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

const SECOND: Duration = Duration::from_secs(1);

fn host(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, number).into()
}

fn mac(number: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, number])
}

/// An advertisement with flags.
fn advertisement(solicited: bool, overrides: bool) -> Claim {
    Claim {
        solicited,
        overrides,
        ..Claim::default()
    }
}

const ANSWER: Claim = Claim {
    solicited: true,
    overrides: true,
    router: None,
    creates: false,
};

/// A table and the time. Packets are numbers.
struct Scene {
    table: Neighbours<u32>,
    now: Instant,
}

impl Scene {
    fn new(limits: Limits) -> Scene {
        Scene {
            table: Neighbours::new(limits),
            now: SystemClock.now(),
        }
    }

    fn send(&mut self, to: u8, packet: u32) -> Resolution {
        self.table.resolve(host(to), 100, || packet, self.now)
    }

    fn claim(&mut self, of: u8, at: u8, claim: Claim) {
        self.table.claim(host(of), Some(mac(at)), claim, self.now);
    }

    fn actions(&mut self) -> Vec<Action<u32>> {
        std::iter::from_fn(|| self.table.next_action()).collect()
    }

    /// Lets time pass to the next deadline, at most this far, and returns what is to be done then.
    fn pass(&mut self, time: Duration) -> Vec<Action<u32>> {
        let end = self.now + time;
        let mut actions = Vec::new();
        while let Some(at) = self.table.deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.table.poll(self.now);
            actions.extend(self.actions());
        }
        self.now = end;
        actions
    }

    fn state(&self, of: u8) -> Option<(NeighbourState, Option<Mac>)> {
        let list = self.table.list(self.now);
        let found = list.into_iter().find(|entry| entry.address == host(of));
        found.map(|entry| (entry.state, entry.mac))
    }

    /// A neighbour that has answered.
    fn meet(&mut self, of: u8) {
        assert_eq!(self.send(of, 0), Resolution::Waiting);
        self.claim(of, of, ANSWER);
        self.actions();
    }
}

fn scene() -> Scene {
    Scene::new(Limits::default())
}

fn ask(of: u8) -> Action<u32> {
    Action::Solicit {
        address: host(of),
        at: None,
    }
}

fn probe(of: u8) -> Action<u32> {
    Action::Solicit {
        address: host(of),
        at: Some(mac(of)),
    }
}

fn sent(to: u8, packet: u32) -> Action<u32> {
    Action::Send {
        to: mac(to),
        packet,
    }
}

fn failed(of: u8, packets: impl IntoIterator<Item = u32>) -> Action<u32> {
    Action::Failed {
        address: host(of),
        packets: packets.into_iter().collect(),
    }
}

#[test]
fn packets_wait_for_the_answer_and_leave_in_order() {
    let mut scene = scene();
    for packet in 1..=3 {
        assert_eq!(scene.send(7, packet), Resolution::Waiting);
    }
    assert_eq!(scene.actions(), [ask(7)], "one request for all");
    scene.claim(7, 7, ANSWER);
    assert_eq!(scene.actions(), [sent(7, 1), sent(7, 2), sent(7, 3)]);
    assert_eq!(scene.send(7, 4), Resolution::Resolved(mac(7)));
    assert_eq!(
        scene.state(7),
        Some((NeighbourState::Reachable, Some(mac(7))))
    );
}

/// RFC 4861 7.2.2: three requests, one a second.
#[test]
fn without_an_answer_the_packets_are_given_back() {
    let mut scene = scene();
    assert_eq!(scene.send(7, 1), Resolution::Waiting);
    assert_eq!(scene.actions(), [ask(7)]);
    assert_eq!(scene.pass(SECOND - Duration::from_nanos(1)), []);
    assert_eq!(scene.pass(Duration::from_nanos(1)), [ask(7)]);
    assert_eq!(scene.send(7, 2), Resolution::Waiting);
    assert_eq!(scene.pass(SECOND), [ask(7)]);
    assert_eq!(scene.pass(SECOND), [failed(7, [1, 2])]);
    assert_eq!(scene.state(7), None);
    assert_eq!(scene.table.counters().failed, 1);
    // The next packet begins again.
    assert_eq!(scene.send(7, 3), Resolution::Waiting);
    assert_eq!(scene.actions(), [ask(7)]);
}

#[test]
fn the_time_between_requests_is_settable() {
    let mut scene = scene();
    scene.table.set_retrans(3 * SECOND);
    assert_eq!(scene.send(7, 1), Resolution::Waiting);
    scene.actions();
    assert_eq!(scene.pass(5 * SECOND), [ask(7)]);
    assert_eq!(scene.pass(4 * SECOND), [ask(7), failed(7, [1])]);
}

/// RFC 4861 7.3.3.
#[test]
fn a_used_entry_is_confirmed_by_a_probe() {
    let mut scene = scene();
    scene.meet(7);
    assert_eq!(scene.pass(REACHABLE_TIME), []);
    assert_eq!(scene.state(7), Some((NeighbourState::Stale, Some(mac(7)))));
    assert_eq!(scene.pass(1000 * SECOND), [], "nothing while it is unused");
    assert_eq!(scene.send(7, 1), Resolution::Resolved(mac(7)));
    assert_eq!(scene.state(7), Some((NeighbourState::Delay, Some(mac(7)))));
    assert_eq!(scene.pass(DELAY_FIRST_PROBE), [probe(7)]);
    assert_eq!(scene.state(7), Some((NeighbourState::Probe, Some(mac(7)))));
    assert_eq!(scene.send(7, 2), Resolution::Resolved(mac(7)));
    assert_eq!(scene.pass(SECOND), [probe(7)]);
    scene.claim(7, 7, ANSWER);
    assert_eq!(
        scene.state(7),
        Some((NeighbourState::Reachable, Some(mac(7))))
    );
    assert_eq!(scene.pass(REACHABLE_TIME), []);
}

#[test]
fn a_neighbour_that_answers_no_probe_is_forgotten() {
    let mut scene = scene();
    scene.meet(7);
    scene.pass(REACHABLE_TIME);
    assert_eq!(scene.send(7, 1), Resolution::Resolved(mac(7)));
    let actions = scene.pass(100 * SECOND);
    assert_eq!(actions, [probe(7), probe(7), probe(7), failed(7, [])]);
    assert_eq!(scene.send(7, 2), Resolution::Waiting);
    assert_eq!(scene.actions(), [ask(7)]);
}

/// RFC 4861 7.2.5: all combinations of flags, for a known address and for another one.
#[test]
fn flags_of_advertisements() {
    use NeighbourState::{Reachable, Stale};
    // At first reachable; same address, solicited, override: state and address afterwards.
    let rows = [
        (Reachable, true, false, false, Reachable, 7),
        (Reachable, true, true, false, Reachable, 7),
        (Reachable, false, false, false, Stale, 7),
        (Reachable, false, true, false, Stale, 7),
        (Reachable, false, false, true, Stale, 9),
        (Reachable, false, true, true, Reachable, 9),
        (Stale, true, false, false, Stale, 7),
        (Stale, true, true, false, Reachable, 7),
        (Stale, false, false, false, Stale, 7),
        (Stale, false, true, false, Stale, 7),
        (Stale, false, false, true, Stale, 9),
        (Stale, false, true, true, Reachable, 9),
    ];
    for (before, same, solicited, overrides, state, at) in rows {
        let mut scene = scene();
        scene.meet(7);
        if before == Stale {
            scene.pass(REACHABLE_TIME);
        }
        scene.claim(
            7,
            if same { 7 } else { 9 },
            advertisement(solicited, overrides),
        );
        let row = (before, same, solicited, overrides);
        assert_eq!(scene.state(7), Some((state, Some(mac(at)))), "{row:?}");
        assert_eq!(scene.table.counters().moved, u64::from(at == 9), "{row:?}");
    }
    // An answer that does not repeat the address.
    let mut scene = scene();
    scene.meet(7);
    scene.pass(REACHABLE_TIME);
    let now = scene.now;
    scene
        .table
        .claim(host(7), None, advertisement(true, false), now);
    assert_eq!(scene.state(7), Some((Reachable, Some(mac(7)))));
    // That is no answer to the first question.
    assert_eq!(scene.send(8, 1), Resolution::Waiting);
    scene
        .table
        .claim(host(8), None, advertisement(true, true), now);
    assert_eq!(scene.state(8), Some((NeighbourState::Incomplete, None)));
}

#[test]
fn an_unsolicited_advertisement_ends_the_waiting_as_stale() {
    let mut scene = scene();
    assert_eq!(scene.send(7, 1), Resolution::Waiting);
    scene.actions();
    scene.claim(7, 7, advertisement(false, false));
    assert_eq!(scene.actions(), [sent(7, 1)]);
    assert_eq!(scene.state(7), Some((NeighbourState::Stale, Some(mac(7)))));
}

#[test]
fn gratuitous_messages_update_entries_and_make_none() {
    let mut scene = scene();
    scene.claim(7, 7, Claim::reply(false));
    scene.claim(7, 7, Claim::request(false));
    scene.claim(7, 7, advertisement(false, true));
    assert_eq!(scene.state(7), None);
    scene.meet(7);
    scene.claim(7, 9, Claim::reply(false));
    assert_eq!(scene.state(7), Some((NeighbourState::Stale, Some(mac(9)))));
    assert_eq!(scene.send(7, 1), Resolution::Resolved(mac(9)));
}

#[test]
fn a_router_that_is_none_any_more_is_reported() {
    let mut scene = scene();
    let router = |router| Claim {
        router: Some(router),
        ..ANSWER
    };
    assert_eq!(scene.send(7, 1), Resolution::Waiting);
    scene.claim(7, 7, router(true));
    assert!(scene.table.list(scene.now)[0].is_router);
    scene.actions();
    scene.claim(7, 7, ANSWER);
    assert!(scene.table.list(scene.now)[0].is_router, "not mentioned");
    scene.claim(7, 7, router(false));
    assert_eq!(scene.actions(), [Action::NoRouter { address: host(7) }]);
    scene.claim(7, 7, router(false));
    assert_eq!(scene.actions(), []);
}

/// RFC 826: the host that asks us will get an answer, and need not be asked.
#[test]
fn a_request_to_us_spares_one_of_ours() {
    let mut scene = scene();
    scene.claim(7, 7, Claim::request(true));
    assert_eq!(scene.state(7), Some((NeighbourState::Stale, Some(mac(7)))));
    assert_eq!(scene.send(7, 1), Resolution::Resolved(mac(7)));
    assert_eq!(scene.pass(DELAY_FIRST_PROBE), [probe(7)]);
    // One that is never used is removed.
    scene.claim(8, 8, Claim::request(true));
    assert_eq!(
        scene.pass(UNUSED - SECOND),
        [probe(7), probe(7), failed(7, [])]
    );
    assert!(scene.state(8).is_some());
    assert_eq!(scene.pass(SECOND), []);
    assert_eq!(scene.state(8), None);
}

#[test]
fn a_flood_of_strangers_changes_no_entry_in_use() {
    let limits = Limits {
        entries: 4,
        strangers: 3,
        ..Limits::default()
    };
    let mut scene = Scene::new(limits);
    (1..=4).for_each(|number| scene.meet(number));
    for number in 100..=250 {
        scene.claim(number, number, Claim::request(true));
    }
    assert_eq!(scene.table.list(scene.now).len(), 7);
    for number in 1..=4 {
        assert_eq!(scene.send(number, 1), Resolution::Resolved(mac(number)));
    }
    // One that is used takes the place of the oldest.
    assert_eq!(scene.send(100, 1), Resolution::Resolved(mac(100)));
    let there = scene.table.list(scene.now).len();
    assert_eq!((scene.state(1), there), (None, 6));
    scene.pass(UNUSED);
    let there = scene.table.list(scene.now).len();
    assert_eq!(
        there, 3,
        "the strangers are gone, also the one that did not answer"
    );
}

#[test]
fn a_new_neighbour_takes_the_place_of_the_least_used_one() {
    let limits = Limits {
        entries: 4,
        ..Limits::default()
    };
    let mut scene = Scene::new(limits);
    (1..=4).for_each(|number| scene.meet(number));
    assert_eq!(scene.send(1, 1), Resolution::Resolved(mac(1)));
    scene.meet(5);
    assert_eq!(scene.state(2), None);
    // Those that are asked for stay, and may be half of all.
    assert_eq!(scene.send(6, 1), Resolution::Waiting);
    assert_eq!(scene.send(7, 2), Resolution::Waiting);
    assert_eq!(scene.send(8, 3), Resolution::Full);
    assert_eq!(scene.table.counters().full, 1);
    assert_eq!(scene.table.list(scene.now).len(), 4);
    assert!(scene.state(1).is_some() && scene.state(5).is_some());
}

#[test]
fn beyond_the_limits_the_oldest_packets_are_dropped() {
    let limits = Limits {
        packets: 3,
        bytes: 1000,
        all_packets: 5,
        all_bytes: 2000,
        ..Limits::default()
    };
    let mut scene = Scene::new(limits);
    for packet in 0..5 {
        assert_eq!(scene.send(7, packet), Resolution::Waiting);
    }
    assert_eq!(scene.table.counters().dropped, 2);
    let now = scene.now;
    let large = scene.table.resolve(host(7), 850, || 5, now);
    assert_eq!(large, Resolution::Waiting);
    assert_eq!(scene.table.counters().dropped, 4, "two of 100 bytes");
    // In all: packets of the neighbour with the most bytes.
    for packet in [10, 11, 12] {
        assert_eq!(scene.send(8, packet), Resolution::Waiting);
    }
    assert_eq!(scene.table.counters().dropped, 4);
    assert_eq!(scene.send(9, 20), Resolution::Waiting);
    assert_eq!(scene.table.counters().dropped, 5);
    scene.actions();
    scene.claim(7, 7, ANSWER);
    assert_eq!(scene.actions(), [sent(7, 5)]);
    scene.claim(8, 8, ANSWER);
    assert_eq!(scene.actions(), [sent(8, 10), sent(8, 11), sent(8, 12)]);
    scene.claim(9, 9, ANSWER);
    assert_eq!(scene.actions(), [sent(9, 20)]);
    assert_eq!(scene.table.waiting, (0, 0));
}

#[test]
fn a_removed_neighbour_gives_its_packets_back() {
    let mut scene = scene();
    assert_eq!(scene.send(7, 1), Resolution::Waiting);
    scene.actions();
    scene.table.remove(host(7));
    scene.table.remove(host(8));
    assert_eq!(scene.actions(), [failed(7, [1])]);
    assert_eq!(scene.pass(100 * SECOND), []);
}

/// A step of the model.
#[derive(Debug, Clone)]
enum Step {
    Send(u8, usize),
    Claim(u8, Option<u8>, Claim),
    Remove(u8),
    Pass(u64),
}

fn claims() -> impl Strategy<Value = Claim> {
    let flags = (
        any::<bool>(),
        any::<bool>(),
        any::<Option<bool>>(),
        any::<bool>(),
    );
    flags.prop_map(|(solicited, overrides, router, creates)| Claim {
        solicited,
        overrides,
        router,
        creates,
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let of = 0..12_u8;
    let step = prop_oneof![
        8 => (of.clone(), 1..600_usize).prop_map(|(to, len)| Step::Send(to, len)),
        3 => (of.clone(), any::<Option<u8>>(), claims()).prop_map(|(of, at, claim)| Step::Claim(of, at, claim)),
        1 => of.prop_map(Step::Remove),
        3 => (0..8_000_u64).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 0..300)
}

/// Where the packets to each neighbour are: waiting, in order.
#[derive(Default)]
struct Model {
    waiting: BTreeMap<IpAddr, Vec<u32>>,
    requested: BTreeMap<IpAddr, Instant>,
    dropped: u64,
}

impl Model {
    /// The packets leave in order; those missing before the first were dropped.
    fn leave(&mut self, address: IpAddr, packet: u32) {
        let waiting = self.waiting.entry(address).or_default();
        let at = waiting.iter().position(|waits| *waits == packet);
        let at = at.expect("it waits, and was not sent before");
        self.dropped += at as u64;
        waiting.drain(..=at);
    }

    fn is_over(&mut self, address: IpAddr) {
        let rest = self.waiting.remove(&address).unwrap_or_default();
        self.dropped += rest.len() as u64;
    }

    fn heed(&mut self, scene: &mut Scene, since: Duration) {
        let mut sent = BTreeMap::new();
        for action in scene.actions() {
            match action {
                Action::Solicit { address, .. } => {
                    let before = self.requested.insert(address, scene.now);
                    let early = before.is_some_and(|at| scene.now < at + since);
                    assert!(!early, "{address} is asked too often");
                }
                Action::Send { packet, .. } => {
                    let address = self.find(packet);
                    self.leave(address, packet);
                    sent.insert(address, ());
                }
                Action::Failed { address, packets } => {
                    packets
                        .iter()
                        .for_each(|packet| self.leave(address, *packet));
                    self.is_over(address);
                    self.requested.remove(&address);
                }
                Action::NoRouter { .. } => {}
            }
        }
        for address in sent.into_keys() {
            self.is_over(address);
        }
    }

    fn find(&self, packet: u32) -> IpAddr {
        let found = self.waiting.iter().find(|(_, all)| all.contains(&packet));
        *found.expect("it waits").0
    }
}

impl Scene {
    fn check_bounds(&self) {
        let (table, limits) = (&self.table, &self.table.limits);
        let list = table.list(self.now);
        let incomplete = list.iter().filter(|entry| entry.mac.is_none()).count();
        let strangers = table
            .entries
            .values()
            .filter(|entry| entry.is_stranger())
            .count();
        assert_eq!((incomplete, strangers), (table.incomplete, table.strangers));
        assert!(strangers <= limits.strangers);
        assert!(list.len() - strangers <= limits.entries);
        assert!(incomplete * 2 <= limits.entries + 1);
        let waiting = list.iter().map(|entry| entry.waiting);
        assert!(waiting.clone().all(|count| count <= limits.packets));
        assert_eq!(waiting.sum::<usize>(), table.waiting.0);
        assert!(table.waiting.0 <= limits.all_packets && table.waiting.1 <= limits.all_bytes);
    }
}

proptest! {
    #[test]
    fn no_packet_is_lost_doubled_or_overtaken(steps in steps()) {
        let limits = Limits {
            entries: 6,
            strangers: 2,
            packets: 5,
            bytes: 2000,
            all_packets: 12,
            all_bytes: 5000,
        };
        let mut scene = Scene::new(limits);
        let mut model = Model::default();
        for (number, step) in steps.into_iter().enumerate() {
            let packet = u32::try_from(number).unwrap();
            match step {
                Step::Send(to, len) => {
                    let now = scene.now;
                    let known = scene.state(to).is_some_and(|(_, mac)| mac.is_some());
                    match scene.table.resolve(host(to), len, || packet, now) {
                        Resolution::Resolved(_) => assert!(known),
                        Resolution::Waiting => model.waiting.entry(host(to)).or_default().push(packet),
                        Resolution::Full => assert!(scene.state(to).is_none()),
                    }
                }
                Step::Claim(of, at, claim) => {
                    let now = scene.now;
                    scene.table.claim(host(of), at.map(mac), claim, now);
                }
                Step::Remove(of) => scene.table.remove(host(of)),
                Step::Pass(ms) => {
                    let end = scene.now + Duration::from_millis(ms);
                    while let Some(at) = scene.table.deadline().filter(|at| *at <= end) {
                        scene.now = scene.now.max(at);
                        let now = scene.now;
                        scene.table.poll(now);
                        scene.check_bounds();
                        model.heed(&mut scene, RETRANS_TIMER);
                        let later = scene.table.deadline();
                        assert!(later.is_none_or(|later| later > now), "time goes on");
                    }
                    scene.now = end;
                }
            }
            scene.check_bounds();
            model.heed(&mut scene, Duration::ZERO);
        }
        // At the end all that waits fails, or was dropped and counted.
        for of in 0..12 {
            scene.table.remove(host(of));
        }
        model.heed(&mut scene, Duration::ZERO);
        assert!(model.waiting.values().all(Vec::is_empty));
        assert_eq!(model.dropped, scene.table.counters().dropped);
    }
}
