//! Each congestion control on a path, alone and beside another flow.

use super::goodput::{downloading_with, ms};
use super::path::{Direction, Path};
use super::world::World;
use crate::long::times;
use crate::tcp::block::congestion::algorithm::Kind;
use crate::tcp::block::recovery::Phase;
use crate::tcp::block::tcb::Config;
use crate::tcp::block::time::Instant;
use std::time::Duration;

const KINDS: [Kind; 3] = [Kind::Cubic, Kind::Reno, Kind::Bbr];
/// Bytes per second.
const RATE: f64 = 30e6 / 8.0;
/// The payload rate of full packets in Mbit/s.
const FULL: f64 = RATE * 8e-6 * 1448.0 / 1500.0;
/// More than any test sends.
const MUCH: u64 = 10 << 30;

/// A round trip, and a queue of so many round trips' bytes.
fn path(rtt: f64, queue: f64) -> Path {
    #[expect(clippy::cast_possible_truncation, reason = "small numbers")]
    let queue = (RATE * rtt / 1000.0 * queue) as usize;
    Path {
        rate: Some(RATE),
        queue: queue.max(10_000),
        delay: ms(rtt / 2.0),
        ..Path::PERFECT
    }
}

/// A transfer without an end over this path, with this round trip in milliseconds.
fn endless(kind: Kind, there: Path, rtt: f64, seed: u64) -> World {
    let config = Config {
        congestion: kind,
        ..Config::default()
    };
    downloading_with(config, MUCH, [path(rtt, 4.0), there], seed)
}

fn received(world: &World) -> u64 {
    world.ends[0].tcb.as_ref().map_or(0, |tcb| tcb.in_order())
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Mbit/s between two times.
fn rate(world: &mut World, from: Duration, to: Duration) -> f64 {
    world.run(from);
    let before = received(world);
    world.run(to);
    (received(world) - before) as f64 * 8e-6 / (to - from).as_secs_f64()
}

/// Share of the path from the fifth second on.
fn share(kind: Kind, there: Path, rtt: f64) -> f64 {
    let mut world = endless(kind, there, rtt, 1);
    rate(&mut world, seconds(5), seconds(times(8, 15))) / FULL
}

#[test]
fn each_uses_all_of_a_clean_path() {
    for kind in KINDS {
        for rtt in [2.0, 20.0, 50.0] {
            let share = share(kind, path(rtt, 1.0), rtt);
            assert!(share > 0.9, "{kind} at {rtt} ms: {share}");
        }
    }
}

/// The purpose of BBR.
#[test]
fn bbr_uses_a_path_that_loses_packets_at_random() {
    for loss in [0.01, 0.03] {
        for rtt in [10.0, 50.0, 100.0] {
            let there = Path {
                loss,
                ..path(rtt, 1.0)
            };
            let bbr = share(Kind::Bbr, there.clone(), rtt);
            let cubic = share(Kind::Cubic, there, rtt);
            assert!(bbr > 0.85, "{loss}: {bbr}");
            assert!(cubic < 0.6, "{loss}: {cubic}, so the test proves nothing");
        }
    }
}

/// The longest queue from the third second on, in round trips' bytes.
fn queue(kind: Kind) -> f64 {
    let mut world = endless(kind, path(50.0, 8.0), 50.0, 1);
    world.run(seconds(3));
    world.ways[1].longest = 0;
    world.run(seconds(times(13, 30)));
    world.ways[1].longest as f64 / (RATE * 0.05)
}

#[test]
fn the_queue_of_bbr_is_short_whatever_there_is_room_for() {
    let (bbr, cubic) = (queue(Kind::Bbr), queue(Kind::Cubic));
    assert!(bbr < 1.0, "{bbr}");
    assert!(cubic > 2.0, "{cubic}: so the test proves nothing");
}

/// Several flows that share the forward path.
struct Shared {
    worlds: Vec<World>,
    way: Direction,
}

impl Shared {
    fn new(kinds: &[Kind], there: &Path, rtt: f64) -> Shared {
        let mut worlds = Vec::new();
        for (seed, kind) in (1..).zip(kinds) {
            worlds.push(endless(*kind, there.clone(), rtt, seed));
        }
        Shared {
            way: Direction::new(there.clone(), 1, worlds[0].start),
            worlds,
        }
    }

    /// Until a time after the beginning, at which one of them begins.
    fn run_but_for(&mut self, late: usize, time: Duration) {
        let app = &mut self.worlds[late].ends[1].app;
        (app.total, app.closes) = (0, false);
        self.run(time);
        let world = &mut self.worlds[late];
        world.ends[1].app.total = MUCH;
        world.now = world.start + time;
        std::mem::swap(&mut world.ways[1], &mut self.way);
        world.serve(1);
        std::mem::swap(&mut world.ways[1], &mut self.way);
    }

    /// Until a time after the beginning.
    fn run(&mut self, time: Duration) {
        let until = self.worlds[0].start + time;
        let next = |worlds: &[World]| -> Option<(usize, Instant)> {
            let all = worlds.iter().map(World::next).enumerate();
            let all = all.filter_map(|(index, at)| Some((index, at?)));
            all.min_by_key(|(_, at)| *at)
        };
        while let Some((index, at)) = next(&self.worlds) {
            if at > until {
                return;
            }
            let world = &mut self.worlds[index];
            std::mem::swap(&mut world.ways[1], &mut self.way);
            world.step();
            std::mem::swap(&mut world.ways[1], &mut self.way);
        }
    }

    /// Mbit/s of each between two times.
    fn rates(&mut self, from: Duration, to: Duration) -> Vec<f64> {
        self.run(from);
        let before: Vec<u64> = self.worlds.iter().map(received).collect();
        self.run(to);
        let after = self.worlds.iter().map(received);
        let time = (to - from).as_secs_f64();
        after
            .zip(before)
            .map(|(after, before)| (after - before) as f64 * 8e-6 / time)
            .collect()
    }
}

#[test]
fn two_flows_of_the_same_kind_get_about_the_same() {
    for kind in KINDS {
        let mut shared = Shared::new(&[kind, kind], &path(20.0, 1.0), 20.0);
        shared.run_but_for(1, seconds(5));
        let rates = shared.rates(seconds(20), seconds(times(30, 60)));
        let (least, most) = (rates[0].min(rates[1]), rates[0].max(rates[1]));
        assert!(most < 2.0 * least, "{kind}: {rates:?}");
        assert!(least + most > 0.85 * FULL, "{kind}: {rates:?}");
    }
}

/// Not fair, but neither starves.
#[test]
fn bbr_and_cubic_live_beside_each_other() {
    for queue in [0.5, 1.0, 4.0] {
        let mut shared = Shared::new(&[Kind::Bbr, Kind::Cubic], &path(30.0, queue), 30.0);
        let rates = shared.rates(seconds(times(10, 20)), seconds(times(25, 60)));
        assert!(rates[0].min(rates[1]) > 0.1 * FULL, "{queue}: {rates:?}");
    }
}

/// RFC 3168: a router that marks packets above a queue of a third of a BDP, and drops them above two.
/// The share of the path, the marks, the drops, and the longest queue from the third second on in round
/// trips' bytes.
fn marking(kind: Kind, ecn: bool) -> (f64, u64, u64, f64) {
    let full = path(50.0, 1.0).queue;
    let there = Path {
        marks: full / 3,
        ..path(50.0, 2.0)
    };
    let config = Config {
        congestion: kind,
        ecn,
        ..Config::default()
    };
    let mut world = downloading_with(config, MUCH, [path(50.0, 4.0), there], 1);
    world.run(seconds(3));
    world.ways[1].longest = 0;
    let share = rate(&mut world, seconds(5), seconds(times(15, 35))) / FULL;
    let way = &world.ways[1];
    let longest = way.longest as f64 / full as f64;
    (share, way.marked, way.dropped, longest)
}

#[test]
fn marks_take_the_place_of_drops() {
    for kind in KINDS {
        let (share, marked, dropped, longest) = marking(kind, true);
        let without = marking(kind, false);
        assert!(
            share > 0.85 && marked > 0,
            "{kind}: {share}, {marked} marks"
        );
        assert_eq!(
            (dropped, without.1),
            (0, 0),
            "{kind}: marks instead of drops"
        );
        assert!(longest < 0.75 * without.3, "{kind}: {longest}");
    }
}

/// Bytes in flight of the sender over time, each tenth of a round trip of 50 ms: in round trips' bytes.
fn in_flight(world: &mut World, from: Duration, to: Duration) -> Vec<f64> {
    let mut all = Vec::new();
    let mut at = from;
    while at < to {
        world.run(at);
        let pipe = world.ends[1].tcb.as_ref().map_or(0, |tcb| tcb.in_flight());
        all.push(pipe as f64 / (RATE * 0.05));
        at += ms(5.0);
    }
    all
}

/// draft-ietf-ccwg-bbr 5.3.4.
#[test]
fn bbr_looks_for_the_shortest_round_trip_every_five_seconds() {
    let mut world = endless(Kind::Bbr, path(50.0, 2.0), 50.0, 1);
    let before = in_flight(&mut world, seconds(2), ms(4900.0));
    let pause = in_flight(&mut world, ms(4900.0), ms(6900.0));
    let least = |all: &[f64]| all.iter().copied().fold(f64::MAX, f64::min);
    assert!(least(&before) > 0.8, "{}", least(&before));
    // For a fifth of a second and a round trip.
    let short = pause.iter().filter(|pipe| **pipe < 0.6).count();
    assert!((35..100).contains(&short), "{short} times 5 ms");
    let after = in_flight(&mut world, ms(7000.0), seconds(9));
    assert!(least(&after) > 0.8, "{}", least(&after));
}

/// draft-ietf-ccwg-bbr 5.5.3: two cycles.
#[test]
fn bbr_follows_a_path_that_gets_slower_and_faster() {
    let mut world = endless(Kind::Bbr, path(50.0, 4.0), 50.0, 1);
    world.run(seconds(6));
    world.ways[1].path.rate = Some(RATE / 4.0);
    world.run(seconds(20));
    world.ways[1].longest = 0;
    let slow = rate(&mut world, seconds(20), seconds(25)) / (FULL / 4.0);
    let queue = world.ways[1].longest as f64 / (RATE / 4.0 * 0.05);
    assert!(slow > 0.85 && queue < 2.0, "{slow}, a queue of {queue}");
    world.ways[1].path.rate = Some(RATE);
    let fast = rate(&mut world, seconds(32), seconds(37)) / FULL;
    assert!(fast > 0.85, "{fast}");
}

/// draft-ietf-ccwg-bbr 5.5.10.2: a shallow queue does not cause repeated retransmissions.
#[test]
fn bbr_leaves_room_in_a_shallow_queue() {
    let mut world = endless(Kind::Bbr, path(50.0, 0.15), 50.0, 1);
    world.run(seconds(3));
    let (dropped, packets) = (world.ways[1].dropped, world.ways[1].packets);
    let share = rate(&mut world, seconds(3), seconds(times(13, 23))) / FULL;
    let dropped = (world.ways[1].dropped - dropped) as f64;
    let lost = dropped / (world.ways[1].packets - packets) as f64;
    assert!(share > 0.85, "{share}");
    assert!(lost < 0.01, "{lost}");
}

/// draft-ietf-ccwg-bbr 5.6.4.4: the window recovers after a timeout.
#[test]
fn bbr_is_back_soon_after_an_outage() {
    let there = Path {
        outage: Some((seconds(4), seconds(6))),
        ..path(50.0, 1.0)
    };
    let mut world = endless(Kind::Bbr, there, 50.0, 1);
    let window = |world: &World| {
        world.ends[1]
            .tcb
            .as_ref()
            .map(|tcb| tcb.congestion_window())
    };
    world.run(ms(3900.0));
    let before = window(&world);
    world.run(ms(5900.0));
    assert_eq!(window(&world), Some(1448), "a segment at a time");
    world.run(seconds(6));
    let arrived = received(&world);
    let phase = |world: &World| world.ends[1].tcb.as_ref().map(|tcb| tcb.recovery_phase());
    while received(&world) == arrived || phase(&world) != Some(Phase::Open) {
        world.step();
    }
    assert!(
        window(&world) >= before,
        "{:?} of {before:?}",
        window(&world)
    );
    let back = world.now - world.start;
    let share = rate(&mut world, back + ms(200.0), back + ms(1200.0)) / FULL;
    assert!(share > 0.8, "{share} from {back:?} on");
}
