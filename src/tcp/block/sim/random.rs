//! Random paths: all bytes arrive once and in order, both ends close, the monitor finds no fault, and
//! the run ends.

use super::path::{Path, Random};
use super::world::{App, World};
use crate::tcp::block::congestion::algorithm::Kind;
use crate::tcp::block::tcb::Config;
use std::time::Duration;

fn config(random: &mut Random, iss: u32) -> Config {
    Config {
        iss,
        mtu: [576, 1500, 9000][usize::try_from(random.below(3)).unwrap()],
        receive_buffer: [3000, 60_000, 1 << 20][usize::try_from(random.below(3)).unwrap()],
        timestamps: random.chance(0.7).then_some(u32::MAX - 500),
        sack: random.chance(0.7),
        ack_delay: random.chance(0.7).then(|| Duration::from_millis(40)),
        nodelay: random.chance(0.5),
        ecn: random.chance(0.5),
        congestion: [Kind::Cubic, Kind::Reno, Kind::Bbr][usize::try_from(random.below(3)).unwrap()],
        ..Config::default()
    }
}

fn app(random: &mut Random) -> App {
    let total = [0, 1, 5000, 200_000][usize::try_from(random.below(4)).unwrap()];
    App {
        total: total + random.below(1000) * u64::from(total > 0),
        buffer: 2000 + random.below(100_000),
        closes: random.chance(0.6),
        after: 0,
        reads: random.chance(0.3).then(|| {
            (
                1 + random.below(5000),
                Duration::from_millis(1 + random.below(10)),
            )
        }),
    }
}

fn path(random: &mut Random) -> Path {
    let often = |random: &mut Random, most: u64| {
        if random.chance(0.5) {
            0.0
        } else {
            random.below(most) as f64 / 1000.0
        }
    };
    Path {
        rate: random
            .chance(0.7)
            .then(|| 20_000.0 * (1 + random.below(1000)) as f64),
        queue: 3000 + usize::try_from(random.below(100_000)).unwrap(),
        delay: Duration::from_micros(random.below(100_000)),
        loss: often(random, 150),
        late: (
            often(random, 300),
            Duration::from_micros(random.below(50_000)),
        ),
        twice: often(random, 100),
        marks: usize::try_from(random.below(50_000)).unwrap(),
        ..Path::PERFECT
    }
}

fn run(seed: u64) {
    let mut random = Random::new(seed);
    let configs = [
        config(&mut random, u32::MAX - 2000),
        config(&mut random, 77),
    ];
    let mut apps = [app(&mut random), app(&mut random)];
    if !apps[0].closes && !apps[1].closes {
        apps[0].closes = true;
    }
    let paths = [path(&mut random), path(&mut random)];
    let mut world = World::new(configs, apps, paths, seed);
    world.trace = std::env::var_os("TRACE").is_some();
    let ended = world.run(Duration::from_secs(100_000));
    // A handshake may time out, and so may a silent peer.
    let given_up = world
        .ends
        .iter()
        .any(|end| end.ended.is_some_and(|ending| ending.error().is_some()));
    if given_up {
        let began = world.ends.iter().all(|end| end.established_at.is_some());
        assert!(
            !began,
            "given up: {:?}",
            [0, 1].map(|end| world.ends[end].ended)
        );
        return;
    }
    assert!(ended, "it does not end");
    world.check_closed();
    for end in &world.ends {
        let bytes = world.ends.iter().map(|end| end.app.total).sum::<u64>();
        let most = 300 + bytes / 8 + 40 * end.monitor.again;
        assert!(
            end.monitor.segments < most,
            "{} segments",
            end.monitor.segments
        );
    }
}

#[test]
fn whatever_happens_all_arrives() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().unwrap();
            seed..seed + 1
        }
        Err(_) => 0..std::env::var("SEEDS").map_or(300, |seeds| seeds.parse().unwrap()),
    };
    for seed in seeds {
        let result = std::panic::catch_unwind(|| run(seed));
        if let Err(panic) = result {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
