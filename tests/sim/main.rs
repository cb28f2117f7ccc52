//! Simulation: whole stacks with virtual time, a network and a scheduler that follow a seed, and
//! applications with random valid calls.
//!
//! `.ci/sim 10000` runs this many seeds, `.ci/sim --replay 42` one of them with a line for everything
//! that happens. `cargo test` runs some. Checks: sent bytes arrive in order and once; counters match
//! the bytes given to the sink; a splice ends for a cause that has occurred; buffers are within their
//! limits; every end that can finish does, in bounded time; at the end nothing is left over; and no
//! segment breaks a rule that an observer on the wire can check ([`monitor`]).

#![allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "a test whose numbers are small"
)]

#[path = "../support/clock.rs"]
mod clock;
mod datagrams;
mod ear;
mod ethernet;
mod goodput;
mod lan;
#[path = "../support/long.rs"]
mod long;
mod monitor;
mod network;
mod peer;
mod plan;
mod relay;
mod trace;
mod world;

use long::times;
use plan::Plan;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use world::{Failure, Outcome, World};

/// Frames are counted for the whole process: one run at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn run(seed: u64, plan: Plan, prints: bool) -> Result<Outcome, Failure> {
    let _alone = ALONE.lock().unwrap_or_else(|broken| broken.into_inner());
    let run = || World::new(seed, plan, prints).run();
    panic::catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err("a panic".into()))
}

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value}: give a number")),
    )
}

/// `SOSPLICE_SIM_SEEDS` many, from `SOSPLICE_SIM_FIRST` on.
#[test]
fn seeds() {
    let count = setting("SOSPLICE_SIM_SEEDS").unwrap_or(times(100, 200));
    let first = setting("SOSPLICE_SIM_FIRST").unwrap_or(0);
    let (mut bytes, mut splices, mut lost, mut steps, mut time) = (0, 0, 0, 0, 0.0);
    let mut longest = (0.0, 0);
    let mut failures = Vec::new();
    for seed in first..first + count {
        match run(seed, Plan::new(seed), false) {
            Ok(outcome) => {
                bytes += outcome.bytes;
                splices += outcome.splices;
                lost += outcome.lost;
                steps += outcome.steps;
                let seconds = outcome.time.as_secs_f64();
                time += seconds;
                if seconds > longest.0 {
                    longest = (seconds, seed);
                }
            }
            Err(why) => {
                println!("seed {seed}: {why:.8000}\n");
                failures.push(seed);
            }
        }
    }
    println!(
        "{count} seeds from {first}: {splices} splices, {bytes} bytes delivered, {lost} packets lost, \
         {steps} steps, {time:.0} s of virtual time, the longest {:.0} s (seed {})",
        longest.0, longest.1
    );
    assert!(
        failures.is_empty(),
        "seeds {failures:?} failed: .ci/sim --replay SEED shows how"
    );
}

/// Seeds that have failed, and the fault.
const ONCE_FAILED: &[(u64, &str)] = &[
    (5901, "so_rcv held more memory than its limit"),
    (6884, "segments of single bytes without end"),
    (1426, "after packet too big a whole window left at once"),
    (4243, "the same over IPv6"),
    (17540, "a timestamp went back when TIME-WAIT began"),
];

#[test]
fn seeds_that_once_failed() {
    for (seed, what) in ONCE_FAILED {
        let result = run(*seed, Plan::new(*seed), false);
        assert!(result.is_ok(), "seed {seed}, once: {what}: {result:?}");
    }
}

/// One seed, with a line for everything that happens.
#[test]
#[ignore = "for .ci/sim --replay"]
fn replay() {
    let seed = setting("SOSPLICE_SIM_FIRST").unwrap_or(0);
    let plan = Plan::new(seed);
    println!("{plan:#?}");
    let outcome = run(seed, plan, true);
    println!("{outcome:?}");
    assert!(outcome.is_ok());
}

/// A seed is no help if a second run differs.
#[test]
fn a_seed_repeats() {
    for seed in 0..times(10, 20) {
        let [first, second] = [(); 2].map(|()| run(seed, Plan::new(seed), false).unwrap());
        assert_eq!(first.hash, second.hash, "seed {seed}: {first:?} {second:?}");
    }
}
