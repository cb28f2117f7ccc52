//! Bytes through a proxy in memory, in one thread: this crate and its twins, smoltcp alone with the
//! bytes copied from ring to ring, or through a buffer.
//!
//! The peers have negligible cost and pass payload by reference; checksums are left to the link. So
//! this is the cost of the TCPs and of moving the bytes between them only: without system calls,
//! checksums, and the first access to the payload, which a real link causes with any proxy. `cargo
//! bench --bench memory` prints a table of interleaved rounds after criterion's figures, with a filter
//! only the latter; `-- table` prints only the table, and `-- count "1 flow x 64 KiB" ours` works for
//! `valgrind --tool=callgrind`.
#![allow(missing_docs, reason = "a program")]

#[path = "support/machine.rs"]
mod machine;
#[path = "support/memory_ours.rs"]
#[allow(dead_code, reason = "`scale` uses the rest")]
mod ours;
#[path = "support/peers.rs"]
#[allow(dead_code, reason = "`scale` uses the rest")]
mod peers;
#[path = "support/steps.rs"]
mod steps;
#[path = "support/memory_twin.rs"]
mod twin;

use criterion::{Criterion, Throughput};
use machine::{busy, summary};
use ours::Ours;
use peers::{Offload, Rig};
use sosplice::splice::Options;
use sosplice::stack::Builder;
use std::sync::Arc;
use std::time::Duration;
use steps::Steps;
use twin::{Copying, Twin};

/// Bytes of each receive and send buffer.
const RING: usize = 256 * 1024;
/// Frames that a link holds in each direction.
pub(crate) const FRAMES: usize = 256;
const ROUNDS: usize = 7;

struct Case {
    name: &'static str,
    flows: u16,
    /// Payload of the client's segments.
    segment: usize,
    offload: Offload,
    /// Most segments that arrive at a time.
    burst: usize,
    /// Bytes of a round.
    bytes: u64,
    /// Ours against the better twin.
    target: f64,
}

const CASES: [Case; 4] = [
    Case {
        name: "1 flow x 64 KiB",
        flows: 1,
        segment: 44 * 1460,
        offload: Offload::Segments,
        burst: FRAMES,
        bytes: 4 << 30,
        target: 1.4,
    },
    Case {
        name: "16 flows x 64 KiB",
        flows: 16,
        segment: 44 * 1460,
        offload: Offload::Segments,
        burst: FRAMES,
        bytes: 2 << 30,
        target: 2.5,
    },
    Case {
        name: "1000 flows x 1460",
        flows: 1000,
        segment: 1460,
        offload: Offload::Nothing,
        burst: FRAMES,
        bytes: 128 << 20,
        target: 2.5,
    },
    Case {
        name: "1000 flows x 1460, 16 at a time",
        flows: 1000,
        segment: 1460,
        offload: Offload::Nothing,
        burst: 16,
        bytes: 64 << 20,
        target: 2.5,
    },
];

const CONTESTANTS: [&str; 3] = ["ours", "ring to ring", "through 64 KiB"];

enum Contestant {
    Ours(Box<Rig<Ours>>),
    Twin(Box<Rig<Twin>>),
}

impl Contestant {
    /// A contestant with established flows.
    fn new(case: &Case, which: usize) -> Contestant {
        let (flows, offload, segment) = (case.flows, case.offload, case.segment);
        let twin = |copying| {
            let twin = Twin::new(flows, offload, copying, RING);
            Contestant::Twin(Box::new(Rig::new(twin, flows, segment, case.burst)))
        };
        match which {
            0 => {
                let ours = Ours::new(flows, offload, segment, RING);
                Contestant::Ours(Box::new(Rig::new(ours, flows, segment, case.burst)))
            }
            1 => twin(Copying::RingToRing),
            _ => twin(Copying::Buffer),
        }
    }

    /// Uses all its rings once.
    fn warm(mut self, case: &Case) -> Contestant {
        self.time(u64::from(case.flows) * RING as u64 * 5 / 4);
        self
    }

    /// Moves this many bytes. Not inlined, so that `valgrind --tool=callgrind` can select it by name.
    #[inline(never)]
    fn transfer(&mut self, bytes: u64) {
        match self {
            Contestant::Ours(rig) => rig.transfer(bytes),
            Contestant::Twin(rig) => rig.transfer(bytes),
        }
    }

    /// Processor time for this many bytes.
    fn time(&mut self, bytes: u64) -> Duration {
        let start = busy();
        self.transfer(bytes);
        let taken = busy().saturating_sub(start);
        match self {
            Contestant::Ours(rig) => rig.settle(),
            Contestant::Twin(rig) => rig.settle(),
        }
        taken
    }

    /// Packets to the client and to the server for each of the client's.
    fn packets(&self) -> (f64, f64) {
        match self {
            Contestant::Ours(rig) => rig.packets(),
            Contestant::Twin(rig) => rig.packets(),
        }
    }

    fn check(&self) {
        let repeated = match self {
            Contestant::Ours(rig) => {
                assert_eq!(rig.proxy.broken(), 0, "connections were reset");
                rig.repeated()
            }
            Contestant::Twin(rig) => rig.repeated(),
        };
        assert_eq!(repeated, 0, "segments were retransmitted without losses");
    }
}

fn criterion_figures(criterion: &mut Criterion, smoke: bool) {
    for case in &CASES {
        let mut group = criterion.benchmark_group(case.name);
        let chunk = case.bytes / 32;
        group.throughput(Throughput::Bytes(chunk));
        for (which, name) in CONTESTANTS.iter().enumerate() {
            let mut contestant = None;
            group.bench_function(*name, |bencher| {
                let contestant = contestant.get_or_insert_with(|| {
                    let new = Contestant::new(case, which);
                    if smoke { new } else { new.warm(case) }
                });
                bencher.iter_custom(|iterations| contestant.time(iterations * chunk));
                contestant.check();
            });
        }
        group.finish();
    }
}

fn caption() {
    let what = "Gbit per second of one thread's processor time";
    machine::caption(&format!(
        "{what}, median (range) of {ROUNDS} interleaved rounds"
    ));
    println!("buffers and rings {RING} bytes, MTU 1500, MSS 1460, 64 KiB = 44 segments in a frame");
    println!("with segmentation left to the link; links hold {FRAMES} frames; CUBIC; no Nagle; no");
    println!("delayed ACK; checksums left to the link; payload by reference; system clock");
}

fn table() {
    caption();
    for case in &CASES {
        let mut contestants = [0, 1, 2].map(|which| Contestant::new(case, which).warm(case));
        let mut rates = [const { Vec::new() }; 3];
        let mut ratios = Vec::new();
        for round in 0..ROUNDS {
            let mut now = [0.0; 3];
            for turn in 0..3 {
                let which = (round + turn) % 3;
                let seconds = contestants[which].time(case.bytes).as_secs_f64();
                now[which] = case.bytes as f64 * 8e-9 / seconds;
                rates[which].push(now[which]);
            }
            ratios.push(now[0] / now[1].max(now[2]));
        }
        println!("\n{}", case.name);
        for ((name, rates), contestant) in CONTESTANTS.iter().zip(rates).zip(&contestants) {
            let (median, least, most) = summary(rates);
            let (acks, packets) = contestant.packets();
            println!(
                "  {name:<18} {median:7.2}  ({least:.2} to {most:.2}), \
                 packets out for one in: {acks:.2} back, {packets:.2} on"
            );
        }
        let (median, least, most) = summary(ratios);
        println!(
            "  ours / better twin {median:5.2}  ({least:.2} to {most:.2}), target {:.1}",
            case.target
        );
        contestants.iter().for_each(Contestant::check);
    }
}

/// Runs one contestant, for valgrind.
fn count(case: &str, contestant: &str) {
    let case = CASES.iter().find(|one| one.name == case);
    let which = CONTESTANTS.iter().position(|name| *name == contestant);
    let (Some(case), Some(which)) = (case, which) else {
        panic!("count CASE CONTESTANT, as the table calls them");
    };
    let mut contestant = Contestant::new(case, which);
    if which == 0 {
        let clock = Arc::new(Steps::new());
        let (segment, tune) = (case.segment, |builder: Builder| {
            builder.clock(clock.clone())
        });
        let sizes = (segment, RING);
        let ours = Ours::tuned(case.flows, case.offload, sizes, &tune, Options::default());
        contestant = Contestant::Ours(Box::new(Rig::new(ours, case.flows, segment, case.burst)));
    }
    // Its queues and windows have grown; not by `transfer`, which is counted.
    let warm = u64::from(case.flows) * 16 * case.segment as u64;
    match &mut contestant {
        Contestant::Ours(rig) => rig.transfer(warm),
        Contestant::Twin(rig) => rig.transfer(warm),
    }
    contestant.transfer(case.bytes / 16);
    contestant.check();
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [.., command, case, contestant] = &arguments[..]
        && command == "count"
    {
        return count(case, contestant);
    }
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let bench = arguments.iter().any(|argument| argument == "--bench");
    let test = arguments.iter().any(|argument| argument == "--test");
    criterion_figures(&mut criterion, test || !bench);
    criterion.final_summary();
    if arguments == ["--bench"] || arguments.iter().any(|argument| argument == "table") {
        table();
    }
}
