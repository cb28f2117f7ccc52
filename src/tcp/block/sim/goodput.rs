//! Throughput in virtual time.

use super::path::Path;
use super::world::{App, World};
use crate::tcp::block::congestion::algorithm::Kind;
use crate::tcp::block::tcb::Config;
use std::time::Duration;

pub(super) fn ms(ms: f64) -> Duration {
    Duration::from_secs_f64(ms / 1000.0)
}

/// 100 Mbit/s, a round trip, a queue of so many round trips' bytes.
pub(super) fn path(rtt: f64, queue: f64) -> Path {
    let rate = 100e6 / 8.0;
    #[expect(clippy::cast_possible_truncation, reason = "small numbers")]
    let queue = (rate * rtt / 1000.0 * queue) as usize;
    Path {
        rate: Some(rate),
        queue: queue.max(10_000),
        delay: ms(rtt / 2.0),
        ..Path::PERFECT
    }
}

pub(super) fn run(mut world: World) -> World {
    assert!(world.run(Duration::from_secs(4000)), "it ends");
    world.check_closed();
    world
}

/// The second end is to send this many bytes. The first path leads to it.
fn downloading(bytes: u64, ways: [Path; 2], seed: u64) -> World {
    downloading_with(Config::default(), bytes, ways, seed)
}

/// The same with two such ends.
pub(super) fn downloading_with(both: Config, bytes: u64, ways: [Path; 2], seed: u64) -> World {
    let config = |iss| Config {
        iss,
        receive_buffer: 8 << 20,
        ..both.clone()
    };
    let apps = [
        App {
            closes: false,
            ..App::default()
        },
        App {
            total: bytes,
            buffer: 8 << 20,
            ..App::default()
        },
    ];
    World::new([config(1), config(2)], apps, ways, seed).without_bytes()
}

/// The second end has sent this many bytes.
fn download(bytes: u64, there: Path, back: Path, seed: u64) -> World {
    run(downloading(bytes, [back, there], seed))
}

fn median(bytes: u64, seeds: u64, there: impl Fn() -> Path, rtt: f64) -> f64 {
    let mut all: Vec<f64> = (0..seeds)
        .map(|seed| {
            let back = path(rtt, 4.0);
            download(bytes, there(), back, seed).goodput(0)
        })
        .collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// When the last byte arrived.
fn took(world: &World) -> Duration {
    world.ends[0].complete_at.unwrap() - world.start
}

/// Slow start from ten segments (RFC 6928) takes this time: no standard sender is faster.
#[test]
fn without_loss_it_is_as_fast_as_slow_start() {
    for (rtt, least) in [(1.0, 94.0), (10.0, 75.0), (50.0, 32.0), (200.0, 8.7)] {
        let there = Path {
            queue: 900_000,
            ..path(rtt, 1.0)
        };
        let world = download(2_000_000, there, path(rtt, 4.0), 1);
        assert!(world.goodput(0) >= least, "{rtt} ms: {}", world.goodput(0));
        let sender = &world.ends[1].monitor;
        assert_eq!(sender.again, 0, "no retransmission");
        assert!(sender.small <= 2, "{} small segments", sender.small);
        assert!(
            sender.longest_burst <= 20_000,
            "{} at once",
            sender.longest_burst
        );
    }
}

/// Known fault: late packets cost nine tenths of the rate.
#[test]
fn reordering_costs_at_most_a_tenth() {
    let clean = download(20_000_000, path(50.0, 1.0), path(50.0, 4.0), 1).goodput(0);
    for late in [(0.01, ms(5.0)), (0.1, ms(10.0))] {
        let there = Path {
            late,
            ..path(50.0, 1.0)
        };
        let world = download(20_000_000, there, path(50.0, 4.0), 1);
        let rate = world.goodput(0);
        assert!(rate >= 0.9 * clean, "{late:?}: {rate:.1} of {clean:.1}");
    }
}

/// Known fault: overtaken acknowledgements were dropped because of their timestamps.
#[test]
fn sacked_data_is_not_retransmitted_under_reordering() {
    let jitter = |queue| Path {
        jitter: (ms(5.0), true),
        ..path(50.0, queue)
    };
    for seed in 0..3 {
        let world = download(20_000_000, jitter(1.0), jitter(4.0), seed);
        let (again, dropped) = (world.ends[1].monitor.again, world.ways[1].dropped);
        assert!(again <= dropped + 10, "{again} for {dropped}");
    }
}

/// Known fault: packets overtaken by a retransmission were dropped because of its newer timestamp.
#[test]
fn retransmissions_do_not_outdate_overtaken_packets() {
    let jitter = |queue| Path {
        jitter: (ms(5.0), true),
        ..path(50.0, queue)
    };
    for seed in 0..3 {
        let mut world = downloading(40_000_000, [jitter(4.0), jitter(1.0)], seed);
        world.strict = true;
        let world = run(world);
        assert!(world.refused <= 3, "{} refused", world.refused);
        assert!(world.goodput(0) >= 80.0, "{}", world.goodput(0));
    }
}

/// Known fault: a shallow queue (the kernel's CUBIC has 39 Mbit/s), and each hole was filled twice.
#[test]
fn a_shallow_queue_is_used_and_each_hole_repaired_once() {
    for (queue, least) in [(0.1, 50.0), (0.3, 60.0), (1.0, 70.0)] {
        let world = download(20_000_000, path(50.0, queue), path(50.0, 4.0), 1);
        assert!(world.goodput(0) >= least, "{queue}: {}", world.goodput(0));
        let (again, dropped) = (world.ends[1].monitor.again, world.ways[1].dropped);
        assert!(again <= dropped + 2, "{again} for {dropped}");
    }
}

/// Known fault: the last segment of a short answer cost a timeout of a second.
#[test]
fn one_lost_packet_costs_few_round_trips() {
    for bytes in [10_000, 64_000] {
        let clean = took(&download(bytes, path(50.0, 1.0), path(50.0, 4.0), 1));
        for packet in 2..=bytes / 1448 + 2 {
            let there = Path {
                drops: Some(packet),
                ..path(50.0, 1.0)
            };
            let with = took(&download(bytes, there, path(50.0, 4.0), 1));
            // The acknowledgement of a lone segment may be delayed.
            let least = if packet == bytes.div_ceil(1448) + 1 {
                360.0
            } else {
                170.0
            };
            assert!(
                with <= clean + ms(least),
                "packet {packet} of {bytes}: {with:?}, {clean:?}"
            );
        }
    }
}

#[test]
fn an_outage_is_over_soon() {
    for seconds in [0.5, 1.0, 3.0, 10.0] {
        let outage = (ms(400.0), ms(400.0 + 1000.0 * seconds));
        let there = Path {
            outage: Some(outage),
            ..path(50.0, 1.0)
        };
        let world = download(5_000_000, there, path(50.0, 4.0), 1);
        let clean = took(&download(5_000_000, path(50.0, 1.0), path(50.0, 4.0), 1));
        let wasted = took(&world) - clean;
        assert!(wasted <= outage.1.mul_f64(2.2), "{seconds} s: {wasted:?}");
        let mss = world.ends[1].tcb.as_ref().unwrap().mss();
        assert_eq!(mss, 1448, "it was no black hole");
    }
}

/// RFC 4821: large packets are dropped without a report.
#[test]
fn a_black_hole_is_found_out() {
    for mtu in [1400, 1200, 600] {
        let there = Path {
            mtu,
            ..path(50.0, 1.0)
        };
        let world = download(500_000, there, path(50.0, 4.0), 1);
        assert!(took(&world) < ms(5000.0), "{mtu}: {:?}", took(&world));
        let mss = world.ends[1].tcb.as_ref().unwrap().mss();
        assert!(mss + 52 <= mtu);
    }
}

#[test]
fn random_loss_does_not_stop_it() {
    let table = [(0.001, 10.0), (0.01, 2.0), (0.03, 0.8)];
    for (loss, least) in table {
        let there = Path {
            loss,
            ..path(50.0, 1.0)
        };
        let rate = download(4_000_000, there, path(50.0, 4.0), 1).goodput(0);
        assert!(rate >= least, "{loss}: {rate}");
    }
}

/// Prints figures: `cargo test goodput_figures -- --ignored --nocapture`.
#[test]
#[ignore = "figures"]
fn goodput_figures() {
    println!("2 MB without loss, queue of one BDP");
    for rtt in [1.0, 10.0, 50.0, 200.0] {
        let rate = median(2_000_000, 1, || path(rtt, 1.0), rtt);
        println!("{rtt:>6} ms {rate:8.2}");
    }
    println!("20 MB at 50 ms");
    let base = path(50.0, 1.0);
    let late = |chance, by| Path {
        late: (chance, ms(by)),
        ..base.clone()
    };
    let lossy = |loss| Path {
        loss,
        ..base.clone()
    };
    let cells = [
        ("queue 1 BDP", base.clone()),
        ("queue 0.1 BDP", path(50.0, 0.1)),
        ("queue 0.3 BDP", path(50.0, 0.3)),
        ("1 % late by 5 ms", late(0.01, 5.0)),
        ("10 % late by 10 ms", late(0.1, 10.0)),
        ("loss 0.1 %", lossy(0.001)),
        ("loss 1 %", lossy(0.01)),
        ("loss 3 %", lossy(0.03)),
    ];
    for (name, there) in cells {
        let mut all = Vec::new();
        for seed in 0..5 {
            let world = download(20_000_000, there.clone(), path(50.0, 4.0), seed);
            let sender = &world.ends[1].monitor;
            all.push((
                world.goodput(0),
                sender.again,
                world.ways[1].dropped,
                sender.longest_burst,
                world.ends[0].monitor.segments,
            ));
        }
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        println!("{name:>20} {:?}", all[2]);
    }
}

/// Prints a sender's state over time.
#[test]
#[ignore = "figures"]
fn timeline() {
    let var =
        |name: &str, default: f64| std::env::var(name).map_or(default, |v| v.parse().unwrap());
    let rtt = var("RTT", 50.0);
    let there = Path {
        loss: var("LOSS", 0.0),
        late: (var("LATE", 0.0), ms(var("BY", 5.0))),
        jitter: (ms(var("JITTER", 0.0)), var("OVERTAKES", 1.0) > 0.0),
        marks: path(rtt, var("MARKS", 1e6)).queue,
        ..path(rtt, var("QUEUE", 1.0))
    };
    let back = Path {
        jitter: there.jitter,
        ..path(rtt, 4.0)
    };
    #[expect(clippy::cast_possible_truncation, reason = "small numbers")]
    let bytes = (var("MB", 2.0) * 1e6) as u64;
    let kind = std::env::var("KIND").map_or(Kind::Cubic, |name| name.parse().unwrap());
    let config = Config {
        congestion: kind,
        ecn: std::env::var_os("ECN").is_some(),
        ..Config::default()
    };
    let mut world = downloading_with(config, bytes, [back, there], 1);
    let mut at = Duration::ZERO;
    world.trace = std::env::var_os("TRACE").is_some();
    let step = ms(var("STEP", rtt / 2.0));
    while !world.run(at) && world.ends[0].complete_at.is_none() {
        at += step;
        if let (Some(tcb), Some(peer)) = (&world.ends[1].tcb, &world.ends[0].tcb) {
            println!(
                "{at:>8?} got {:>9} drops {:>5} again {:>5} {}",
                peer.in_order(),
                world.ways[1].dropped,
                world.ends[1].monitor.again,
                tcb.brief()
            );
        }
    }
    println!("{:.2} Mbit/s", world.goodput(0));
}
