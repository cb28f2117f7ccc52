//! Bytes through a proxy in memory by the number of receive queues: 1, 2 and 4, each in a thread with
//! both of the proxy's drivers for it, its share of the flows, and their peers.
//!
//! It shows whether threads that share only two stacks obstruct each other: with as many idle
//! processors as queues the rate should grow with their number, and the processor time per byte should
//! not change. With fewer processors than queues only the latter is meaningful. Two proxies of one
//! queue each, with half of the flows each, share nothing: their loss against one is caused by the
//! machine. The peers and the link are as in `memory`, and take part of the time. `cargo bench --bench
//! queues` prints a table of interleaved rounds, `-- --test` runs each case for a moment.
#![allow(missing_docs, reason = "a program")]

#[path = "support/machine.rs"]
mod machine;
#[path = "support/memory_ours.rs"]
#[allow(dead_code, reason = "`scale` uses the rest")]
mod ours;
#[path = "support/peers.rs"]
#[allow(dead_code, reason = "`scale` uses the rest")]
mod peers;

use ours::Ours;
use peers::{Offload, Rig};
use sosplice::clock::{Clock, SystemClock};
use sosplice::splice::Options;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

/// Bytes of each receive and send buffer.
const RING: usize = 256 * 1024;
/// Frames that a queue of a link holds in each direction.
pub(crate) const FRAMES: usize = 256;
const ROUNDS: usize = 7;
/// Of each contestant: proxies, and the queues of each.
const CONTESTANTS: [(u16, usize); 4] = [(1, 1), (1, 2), (1, 4), (2, 1)];

struct Case {
    name: &'static str,
    flows: u16,
    /// Payload of the client's segments.
    segment: usize,
    offload: Offload,
    /// Bytes of a round, of all flows together.
    bytes: u64,
}

const CASES: [Case; 2] = [
    Case {
        name: "16 flows x 64 KiB",
        flows: 16,
        segment: 44 * 1460,
        offload: Offload::Segments,
        bytes: 4 << 30,
    },
    Case {
        name: "1000 flows x 1460",
        flows: 1000,
        segment: 1460,
        offload: Offload::Nothing,
        bytes: 256 << 20,
    },
];

/// A proxy with its peers, one rig for each queue.
struct Contestant(Vec<Rig<Ours>>);

/// Times of a round.
struct Taken {
    wall: Duration,
    /// Of all threads.
    cpu: Duration,
}

impl Contestant {
    /// A contestant with established flows.
    fn new(case: &Case, (proxies, queues): (u16, usize)) -> Contestant {
        let sizes = (case.segment, RING);
        let proxy = |_| {
            Ours::queues(
                (queues, case.flows / proxies),
                case.offload,
                sizes,
                (&ours::plain, &|builder| builder),
                &Options::default(),
            )
        };
        let all = (0..proxies).flat_map(proxy);
        // Each in a thread of its own, as it will run: memory is shared by thread.
        let rig = |ours: Ours| {
            let ports = ours.ports();
            thread::scope(|scope| {
                let begin = || Rig::from_ports(ours, ports, case.segment, FRAMES);
                let thread = thread::Builder::new().spawn_scoped(scope, begin);
                thread.expect("a thread").join().expect("no panic")
            })
        };
        Contestant(all.map(rig).collect())
    }

    /// Moves this many bytes, each queue its share, in a thread for each.
    fn transfer(&mut self, bytes: u64) -> Taken {
        let share = bytes / self.0.len() as u64;
        let barrier = Barrier::new(self.0.len());
        let barrier = &barrier;
        let times = thread::scope(|scope| {
            let threads: Vec<_> = (0..)
                .zip(&mut self.0)
                .map(|(queue, rig)| {
                    let work = move || {
                        machine::stay_on(queue);
                        barrier.wait();
                        let (start, busy) = (SystemClock.now(), machine::busy());
                        rig.transfer(share);
                        let cpu = machine::busy().saturating_sub(busy);
                        let end = SystemClock.now();
                        // Uses no processor time while others still work.
                        barrier.wait();
                        rig.settle();
                        (start, end, cpu)
                    };
                    let thread = thread::Builder::new().spawn_scoped(scope, work);
                    thread.expect("a thread")
                })
                .collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().expect("no panic");
            threads.into_iter().map(join).collect::<Vec<_>>()
        });
        let first = times.iter().map(|(start, ..)| *start).min();
        let last = times.iter().map(|(_, end, _)| *end).max();
        Taken {
            wall: last.expect("a thread") - first.expect("a thread"),
            cpu: times.iter().map(|(.., cpu)| *cpu).sum(),
        }
    }

    fn check(&self) {
        for rig in &self.0 {
            assert_eq!(rig.proxy.broken(), 0, "connections were reset");
            assert_eq!(rig.repeated(), 0, "retransmitted without losses");
            assert_eq!(rig.proxy.astray(), 0, "segments by another queue");
        }
    }
}

fn table(rounds: usize, divisor: u64) {
    let what = "Gbit per second, and per second of a processor's time";
    machine::caption(&format!(
        "{what}; median (range) of {rounds} interleaved rounds"
    ));
    println!("buffers and rings {RING} bytes, MTU 1500, MSS 1460, 64 KiB = 44 segments in a frame");
    println!(
        "with segmentation left to the link; queues hold {FRAMES} frames; one thread for each"
    );
    println!(
        "queue, on a processor of its own if there are as many, with drivers, splices and peers;"
    );
    println!("CUBIC; no Nagle; checksums left to the link; payload by reference; system clock");
    for case in &CASES {
        let mut contestants = CONTESTANTS.map(|one| Contestant::new(case, one));
        let mut rates = [const { (Vec::new(), Vec::new()) }; CONTESTANTS.len()];
        for contestant in &mut contestants {
            // Uses all rings once.
            contestant.transfer(u64::from(case.flows) * RING as u64 * 5 / 4);
        }
        for round in 0..rounds {
            for turn in 0..CONTESTANTS.len() {
                let which = (round + turn) % CONTESTANTS.len();
                let bytes = case.bytes / divisor;
                let taken = contestants[which].transfer(bytes);
                let rate = |time: Duration| bytes as f64 * 8e-9 / time.as_secs_f64();
                rates[which].0.push(rate(taken.wall));
                rates[which].1.push(rate(taken.cpu));
            }
        }
        println!("\n{}", case.name);
        println!("  proxies x queues  Gbit/s                        of one   per processor-second");
        let one = machine::summary(rates[0].0.clone()).0;
        for (((proxies, queues), (wall, cpu)), contestant) in
            CONTESTANTS.iter().zip(rates).zip(&contestants)
        {
            let ((wall, least, most), (cpu, low, high)) =
                (machine::summary(wall), machine::summary(cpu));
            let range = format!("({least:.2} to {most:.2})");
            println!(
                "  {proxies:>12} x {queues}  {wall:7.2} {range:<20} {:7.2}  {cpu:7.2} ({low:.2} to {high:.2})",
                wall / one
            );
            contestant.check();
        }
    }
}

fn main() {
    if std::env::args().any(|argument| argument == "--test") {
        table(1, 64);
    } else {
        table(ROUNDS, 1);
    }
}
