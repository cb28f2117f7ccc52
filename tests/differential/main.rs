//! The crate's TCP beside plain smoltcp: the same segments and the same calls, and the same result.
//!
//! The same as the fuzz target `differential`, with inputs that follow seeds. `.ci/fuzz 60 differential`
//! looks for others.

#![allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "a test whose numbers are small"
)]

#[path = "../support/clock.rs"]
mod clock;
#[allow(dead_code, unreachable_pub, reason = "the fuzz targets use more of it")]
#[path = "../fuzz/src/lib.rs"]
mod input;
#[path = "../support/long.rs"]
mod long;
#[path = "twins.rs"]
mod twins;

use input::Input;
use long::times;
use twins::EXCUSES;

fn program(seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let len = random.usize(0..600);
    (0..len).map(|_| random.u8(..)).collect()
}

/// `SOSPLICE_DIFFERENTIAL_SEEDS` many.
#[test]
fn both_do_the_same() {
    let seeds = std::env::var("SOSPLICE_DIFFERENTIAL_SEEDS");
    let seeds = seeds.map_or(times(200, 500), |seeds| seeds.parse().unwrap());
    let mut used = [0; EXCUSES.len()];
    for seed in 0..seeds {
        let bytes = program(seed);
        let run = std::panic::catch_unwind(|| twins::run(&bytes));
        let excuses = run.unwrap_or_else(|_| panic!("seed {seed}"));
        for excuse in excuses {
            let row = EXCUSES.iter().position(|(known, ..)| *known == excuse);
            used[row.unwrap()] += 1;
        }
    }
    for ((excuse, section, what), count) in EXCUSES.iter().zip(used) {
        println!("{count:>7} {excuse:?}, {section}: plain smoltcp {what}");
    }
}
