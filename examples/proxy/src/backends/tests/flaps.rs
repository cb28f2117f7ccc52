//! Backends that come and go, in virtual time: the service of a relay without its connections.

use super::*;
use crate::checks::{Checks, Schedule};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};

const SECOND: Duration = Duration::from_secs(1);

/// Clients come at a fixed rate and stay for a while.
struct Scene {
    backends: Backends,
    now: Instant,
    /// When connections end, and with which backend.
    open: BTreeMap<(Instant, u32), usize>,
    clients: u32,
    attempts: Vec<u32>,
    served: Vec<u32>,
}

impl Scene {
    fn new(weights: &[u16], balance: Balance) -> Scene {
        Scene {
            backends: backends(weights, balance),
            now: now(),
            open: BTreeMap::new(),
            clients: 0,
            attempts: vec![0; weights.len()],
            served: vec![0; weights.len()],
        }
    }

    fn end_due(&mut self) {
        while let Some((&(end, number), &index)) = self.open.first_key_value() {
            if end > self.now {
                return;
            }
            self.open.remove(&(end, number));
            self.backends.leave(index);
        }
    }

    /// A client, which stays for this time. Returns its backend: none only if none answers.
    fn client(&mut self, answers: impl Fn(usize) -> bool, stay: Duration) -> Option<usize> {
        self.end_due();
        self.clients += 1;
        let mut tried = Tried::default();
        loop {
            let chosen = self.backends.choose(client(self.clients), &tried, self.now);
            let Choice::Backend(index) = chosen else {
                return None;
            };
            tried.add(self.backends.all()[index].id);
            self.attempts[index] += 1;
            if answers(index) {
                self.backends.took(index, self.now);
                self.open.insert((self.now + stay, self.clients), index);
                self.served[index] += 1;
                return Some(index);
            }
            self.backends.refused(index, self.now, |_| false);
            self.backends.leave(index);
        }
    }
}

/// Ten clients a second for 200 seconds. The second backend refuses for half of the time, in periods of 20 seconds.
#[test]
fn clients_are_served_elsewhere_while_a_backend_flaps() {
    for balance in [Balance::RoundRobin, Balance::Least, Balance::Client] {
        let mut scene = Scene::new(&[1, 1, 1], balance);
        let start = scene.now;
        let mut vain = 0;
        for _ in 0..2000 {
            let second = (scene.now - start).as_secs();
            let answers = |index| index != 1 || second % 20 < 10;
            let before = scene.attempts[1] - scene.served[1];
            assert!(scene.client(answers, 2 * SECOND).is_some());
            vain += scene.attempts[1] - scene.served[1] - before;
            scene.now += SECOND / 10;
        }
        // In each of the ten periods three refusals, after which it rests for ten seconds; one more at the end of that at most.
        assert!((10..=40).contains(&vain), "{balance:?}: {vain} in vain");
        // It has served when it could.
        assert!(scene.served[1] > 100, "{balance:?}: {:?}", scene.served);
    }
}

/// One that refuses at once has the fewest connections: it must not get all clients.
#[test]
fn one_that_refuses_does_not_draw_all_clients() {
    let mut scene = Scene::new(&[1, 1], Balance::Least);
    for _ in 0..1000 {
        assert_eq!(scene.client(|index| index == 0, 60 * SECOND), Some(0));
        scene.now += SECOND / 10;
    }
    // 100 seconds: three strikes, then one after each rest.
    assert!(scene.attempts[1] <= STRIKES + 10, "{:?}", scene.attempts);
}

#[test]
fn the_balance_is_back_after_a_recovery() {
    for balance in [Balance::RoundRobin, Balance::Least] {
        let mut scene = Scene::new(&[2, 1, 1], balance);
        let mut run = |answers: fn(usize) -> bool, clients: u32| {
            scene.served = vec![0; 3];
            for _ in 0..clients {
                scene.client(answers, SECOND);
                scene.now += SECOND / 20;
            }
            scene.served.clone()
        };
        let while_down = run(|index| index != 0, 400);
        assert_eq!(while_down[0], 0);
        assert!(while_down[1].abs_diff(while_down[2]) <= 8, "{while_down:?}");
        // Until its rest is over, and those that came meanwhile have ended.
        run(|_| true, 240);
        let after = run(|_| true, 400);
        let wanted = [200_u32, 100, 100];
        for (count, wanted) in after.iter().zip(wanted) {
            assert!(count.abs_diff(wanted) <= 8, "{balance:?}: {after:?}");
        }
    }
}

/// The share of the clients of other backends that move when one of N goes: Maglev's table keeps nearly all of them.
#[test]
fn few_clients_of_others_move_when_one_of_many_goes() {
    for count in [2, 3, 5, 10, 30, MOST] {
        let mut all = backends(&vec![1; count], Balance::Client);
        let before = all.table.clone();
        let gone = count / 2;
        all.set_up(gone, false);
        let others = || before.iter().zip(&all.table);
        let kept = others().filter(|(was, _)| usize::from(**was) != gone);
        let of_others = kept.clone().count();
        let moved = kept.filter(|(was, is)| was != is).count();
        assert!(all.table.iter().all(|index| usize::from(*index) != gone));
        // From 0.01 % with three to 0.48 % with 64; with two none can move.
        let bound = if count == 2 { 0 } else { of_others / 150 };
        println!("{count}: {moved} of {of_others} moved");
        assert!(moved <= bound, "{count}: {moved} of {of_others}");
        let shares: Vec<_> = (0..count)
            .filter(|index| *index != gone)
            .map(|index| {
                all.table
                    .iter()
                    .filter(|one| usize::from(**one) == index)
                    .count()
            })
            .collect();
        let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
        assert!(most - least <= most / 50 + 1, "{count}: {least} to {most}");
    }
}

/// One answer in two: it is neither taken out nor brought back; three in a row, then two in a row do it.
#[test]
fn checks_of_one_that_flaps_change_its_state_seldom() {
    let schedule = Schedule {
        interval: 2 * SECOND,
        rise: 2,
        fall: 3,
    };
    let start = now();
    let mut checks = Checks::new(&[true], schedule, start);
    let mut changes = Vec::new();
    let mut now = start;
    for turn in 0..60 {
        assert_eq!(checks.due(now), [0]);
        let answers = match turn {
            0..20 => turn % 2 == 0,
            20..30 => false,
            30..50 => turn % 2 == 0,
            _ => true,
        };
        if let Some(up) = checks.result(0, answers) {
            changes.push(((now - start).as_secs(), up));
        }
        now = checks.next().unwrap();
    }
    // The answer in turn 19 was a failure too.
    assert_eq!(changes, [(42, false), (102, true)]);
}

proptest! {
    /// The state is that of the last results in a row, as a plain reading of all of them has it.
    #[test]
    fn checks_follow_their_model(
        (rise, fall) in (1_u32..5, 1_u32..5),
        results in prop::collection::vec(any::<bool>(), 0..60),
    ) {
        let schedule = Schedule { interval: SECOND, rise, fall };
        let mut checks = Checks::new(&[true], schedule, now());
        let mut up = true;
        for end in 1..=results.len() {
            let last = results[end - 1];
            let row = results[..end].iter().rev().take_while(|one| **one == last).count();
            let needed = if last { rise } else { fall };
            let changes = last != up && row >= needed as usize;
            let told = checks.result(0, last);
            prop_assert_eq!(told, changes.then_some(last));
            up = told.unwrap_or(up);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever happens in whatever order: no limit is exceeded, none that is down, tried or of weight 0 is chosen, and a
    /// place is found if there is one.
    #[test]
    fn limits_hold_for_any_order_of_events(
        balance in prop::sample::select(vec![Balance::RoundRobin, Balance::Least, Balance::Client]),
        limits in prop::collection::vec(prop::option::of(1_u32..4), 1..6),
        weights in prop::collection::vec(0_u16..4, 6),
        events in prop::collection::vec((0_u8..8, any::<prop::sample::Index>()), 0..120),
    ) {
        let specs = limits.iter().zip(&weights).zip(1..).map(|((limit, weight), number)| Spec {
            limit: *limit,
            ..spec(number, *weight)
        });
        let mut all = of(specs, balance);
        let mut open = Vec::new();
        let mut tried = Tried::default();
        let mut down = HashSet::new();
        let mut time = now();
        for (kind, at) in events {
            let index = at.index(limits.len());
            match kind {
                0..=3 => match all.choose(client(u32::from(kind)), &tried, time) {
                    Choice::Backend(chosen) => {
                        prop_assert!(!down.contains(&chosen) && weights[chosen] > 0);
                        prop_assert!(!tried.has(Id(chosen as u64)));
                        open.push(chosen);
                    }
                    Choice::Full | Choice::None => {
                        // Those that do not rest come first, so only all of those need be full.
                        let rested = |one: &&Backend| one.serves() && !tried.has(one.id) && !one.rests(time);
                        let full = all.all().iter().filter(rested).all(|one| !one.has_room());
                        prop_assert!(full);
                    }
                },
                4 if !open.is_empty() => all.leave(open.swap_remove(at.index(open.len()))),
                5 => {
                    let up = !down.remove(&index);
                    if up {
                        down.insert(index);
                    }
                    all.set_up(index, !up);
                }
                6 if !open.is_empty() => {
                    let index = open.swap_remove(at.index(open.len()));
                    all.refused(index, time, |_| false);
                    all.leave(index);
                }
                7 => {
                    time += SECOND;
                    tried = Tried::default();
                    tried.add(Id(index as u64));
                }
                _ => {}
            }
            for (index, one) in all.all().iter().enumerate() {
                let present = open.iter().filter(|other| **other == index).count();
                prop_assert_eq!(one.active as usize, present);
                prop_assert!(limits[index].is_none_or(|limit| one.active <= limit));
            }
        }
    }
}

proptest! {
    /// The number of connections of each client is what has entered and not left, up to the limit.
    #[test]
    fn clients_are_counted(events in prop::collection::vec((0_u16..3, 0_u16..3, any::<bool>()), 0..80)) {
        const LIMIT: u32 = 2;
        let mut clients = Clients::default();
        let mut model: BTreeMap<u16, u32> = BTreeMap::new();
        for (network, host, enters) in events {
            let address = IpAddr::from([0xfd00, 0, 0, network, host, 0, 0, 1]);
            let count = model.entry(network).or_default();
            if enters {
                prop_assert_eq!(clients.enter(address, Some(LIMIT)), *count < LIMIT);
                *count = (*count + 1).min(LIMIT);
            } else if *count > 0 {
                clients.leave(address);
                *count -= 1;
            }
        }
        let present = model.values().filter(|count| **count > 0).count();
        prop_assert_eq!(clients.active.len(), present);
    }
}
