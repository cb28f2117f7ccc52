//! The cost of many connections: memory, time to open them, and a segment beside idle ones.
//!
//! A proxy in memory, in one thread, as in `memory`: two stacks and two splices for each pair of
//! connections. `cargo bench --bench scale` prints a table for 2, 20, 200, ... 100,000 connections,
//! each in a process of its own, beside a twin with all sockets in one smoltcp `SocketSet`, as far as
//! that goes; `-- LIMIT` ends it at this many connections.
#![allow(missing_docs, reason = "a program")]

#[path = "support/machine.rs"]
mod machine;
#[path = "support/memory_ours.rs"]
#[allow(dead_code, reason = "`memory` uses the rest")]
mod ours;
#[path = "support/peers.rs"]
#[allow(dead_code, reason = "`memory` uses the rest")]
mod peers;
#[path = "support/memory_twin.rs"]
#[allow(dead_code, reason = "`memory` uses the rest")]
mod twin;

use machine::{busy, caption, summary};
use ours::Ours;
use peers::{Offload, Proxy, Rig};
use sosplice::clock::{Clock, SystemClock};
use sosplice::splice::Options;
use sosplice::stack::Builder;
use std::hint::black_box;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use twin::{Copying, Twin};

/// Frames that a link holds in each direction.
pub(crate) const FRAMES: usize = 256;
/// Bytes of each receive and send buffer: the default.
const RING: usize = 256 * 1024;
/// Of the twin, whose rings are memory.
const TWIN_RING: usize = 8 * 1024;
const SEGMENT: usize = 1460;
/// Pairs of connections.
const PAIRS: [u16; 6] = [1, 10, 100, 1_000, 5_000, 50_000];
/// More take the twin minutes.
const TWIN_PAIRS: u16 = 1_000;
const ROUNDS: usize = 5;

/// The system's time, and what was skipped.
#[derive(Debug, Default)]
struct Leaping(AtomicU64);

impl Clock for Leaping {
    fn now(&self) -> Instant {
        SystemClock.now() + Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

impl Leaping {
    fn leap(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }
}

/// Resident memory of the process in bytes, with page tables. The memory shared by all rings is left
/// out, since it would be counted for each of them.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.map(|line| line.trim().trim_end_matches("kB").trim());
        kib.and_then(|kib| kib.parse().ok()).unwrap_or(0)
    };
    let all: usize = ["RssAnon:", "VmPTE:"].into_iter().map(kib).sum();
    all * 1024
}

/// Time of one segment, each on the flow that `next` says.
fn segments<P: Proxy>(rig: &mut Rig<P>, count: usize, mut next: impl FnMut() -> usize) -> f64 {
    let start = busy();
    (0..count).for_each(|_| rig.send_one(next()));
    (busy() - start).as_secs_f64() * 1e6 / count as f64
}

/// Flow after flow, far from each other in memory.
fn stride(pairs: usize) -> impl FnMut() -> usize {
    let mut at = 0;
    move || {
        at = (at + 7919) % pairs;
        at
    }
}

/// One row of the table, as it is printed by the process that measured it.
fn ours(pairs: u16, timers: bool) {
    let clock = Arc::new(Leaping::default());
    let tune = |builder: Builder| {
        let builder = builder.clock(clock.clone()).ephemeral_ports(1024..=65_535);
        match timers {
            true => builder.keep_alive(Duration::from_secs(7200), Duration::from_secs(75), 8),
            false => builder,
        }
    };
    let options = Options::default().idle(timers.then_some(Duration::from_secs(86_400)));
    let before = resident();
    let start = SystemClock.now();
    let proxy = Ours::tuned(pairs, Offload::Nothing, (SEGMENT, RING), &tune, options);
    let mut rig = Rig::new(proxy, pairs, SEGMENT, FRAMES);
    rig.hush();
    let open = (SystemClock.now() - start).as_secs_f64();
    let awake = resident();
    let flows = usize::from(pairs);
    let rest = |rig: &mut Rig<Ours>| {
        clock.leap(10);
        while rig.proxy.poll_at().is_some_and(|at| at <= clock.now()) {
            rig.proxy.turn();
        }
        let due = rig.proxy.poll_at();
        assert_eq!(
            due.is_some(),
            timers,
            "{due:?}: idle connections have no timer"
        );
    };
    rest(&mut rig);
    let at_rest = resident();
    let count = 20_000.max(flows);
    let mut rounds = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        rest(&mut rig);
        rounds[2].push(segments(&mut rig, flows, stride(flows)));
        rounds[1].push(segments(&mut rig, count, stride(flows)));
        rounds[0].push(segments(&mut rig, count, || 0));
    }
    // Each once more, so that none was lost; and idle again.
    rest(&mut rig);
    let afterwards = resident();
    assert_eq!(rig.proxy.broken(), 0, "connections were reset");
    assert_eq!(rig.repeated(), 0, "segments were retransmitted");
    let each = |bytes: usize| bytes.saturating_sub(before) as f64 / (2.0 * flows as f64);
    let [same, other, resting] = rounds.map(|values| summary(values).0);
    println!(
        "{open} {} {} {} {same} {other} {resting}",
        each(awake),
        each(at_rest),
        each(afterwards)
    );
    black_box(rig);
}

fn shared_set(pairs: u16) {
    let before = resident();
    let start = SystemClock.now();
    let twin = Twin::new(pairs, Offload::Nothing, Copying::RingToRing, TWIN_RING);
    let mut rig = Rig::new(twin, pairs, SEGMENT, FRAMES);
    rig.hush();
    let open = (SystemClock.now() - start).as_secs_f64();
    let flows = usize::from(pairs);
    let count = (20_000 / flows).max(50);
    let mut rounds = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        rounds[0].push(segments(&mut rig, count, || 0));
        rounds[1].push(segments(&mut rig, count, stride(flows)));
    }
    let memory = resident().saturating_sub(before) as f64 / (2.0 * flows as f64);
    let [same, other] = rounds.map(|values| summary(values).0);
    println!("{open} {memory} {memory} {memory} {same} {other} {other}");
    black_box(rig);
}

/// The figures of a row, from a process of its own, so that memory is measured separately.
fn row(contestant: &str, pairs: u16) -> Vec<f64> {
    let program = std::env::current_exe().expect("a program has a path");
    let output = Command::new(program)
        .args(["one", contestant, &pairs.to_string()])
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let figures = text.split_whitespace().map(str::parse).collect();
    match figures {
        Ok(figures) if output.status.success() => figures,
        _ => panic!("{text}{}", String::from_utf8_lossy(&output.stderr)),
    }
}

fn table(limit: u32) {
    caption("one thread's processor time, medians; each row is a process");
    println!(
        "{SEGMENT} bytes through a proxy in memory, which are acknowledged to both sides; buffers"
    );
    println!(
        "of {RING} bytes (the twin's {TWIN_RING}); at rest: 10 s later. Memory is what the process"
    );
    println!("has resident, with the peers' (some 200 bytes for each pair).");
    for (contestant, what, most) in [
        ("ours", "this crate", u16::MAX),
        (
            "timers",
            "this crate, with keep-alive and idle timers armed",
            u16::MAX,
        ),
        ("twin", "one SocketSet, ring to ring", TWIN_PAIRS),
    ] {
        println!("\n{what}");
        println!(
            "{:>12} {:>9} | {:>8} {:>8} {:>8} | {:>9} {:>9} {:>9} | against 2",
            "connections",
            "open, s",
            "awake, B",
            "at rest",
            "again",
            "same, us",
            "others",
            "at rest"
        );
        let mut first = None;
        for pairs in PAIRS {
            if pairs > most || u32::from(pairs) * 2 > limit {
                continue;
            }
            let figures = row(contestant, pairs);
            let [open, awake, rest, again, same, other, resting] = figures[..] else {
                panic!("seven figures: {figures:?}");
            };
            let (first_same, first_other) = *first.get_or_insert((same, other));
            println!(
                "{:>12} {open:>9.2} | {awake:>8.0} {rest:>8.0} {again:>8.0} | {same:>9.2} {other:>9.2} {resting:>9.2} | {:.2} {:.2}",
                u32::from(pairs) * 2,
                same / first_same,
                other / first_other,
            );
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [one, contestant, pairs] = &arguments[..]
        && one == "one"
    {
        let pairs = pairs.parse().expect("a number of pairs");
        return match &contestant[..] {
            "ours" => ours(pairs, false),
            "timers" => ours(pairs, true),
            _ => shared_set(pairs),
        };
    }
    let limit = arguments.iter().find_map(|argument| argument.parse().ok());
    let bench = arguments.iter().any(|argument| argument == "--bench");
    table(limit.unwrap_or(if bench { 100_000 } else { 200 }));
}
