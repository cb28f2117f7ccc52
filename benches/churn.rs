//! Connections by the second: accept, connect, splice both ways, 64 bytes there and back, close.
//!
//! A proxy in memory, in one thread, between peers of negligible cost, as in `memory`. `cargo bench
//! --bench churn` prints the processor time of each proxied connection, with 1, 10 and 100 at a time,
//! and that of the twin: smoltcp alone, with a `SocketSet` for each side in which as many sockets
//! listen. `-- count` works for `valgrind --tool=callgrind`, and so does `-- talk 100`: messages on so many
//! established connections.
#![allow(missing_docs, reason = "a program")]

#[path = "support/machine.rs"]
mod machine;
#[path = "support/memory_ours.rs"]
#[allow(dead_code, reason = "`memory` uses the rest")]
mod ours;
#[path = "support/peers.rs"]
#[allow(dead_code, reason = "`memory` uses the rest")]
mod peers;
#[path = "support/steps.rs"]
mod steps;
#[path = "support/memory_twin.rs"]
#[allow(dead_code, reason = "`memory` uses the rest")]
mod twin;
#[path = "support/visits.rs"]
mod visits;

use machine::{busy, caption, summary};
use ours::Ours;
use peers::{Offload, Proxy};
use sosplice::splice::Options;
use sosplice::stack::Builder;
use std::sync::Arc;
use steps::Steps;
use twin::Twin;
use visits::Visits;

/// Frames that a link holds in each direction.
pub(crate) const FRAMES: usize = 4096;
/// Bytes of each receive and send buffer: the default.
const RING: usize = 256 * 1024;
const ROUNDS: usize = 5;
/// That `talk` counts.
const MESSAGES: usize = 20_000;

fn proxy() -> Visits<Ours> {
    tuned(&|builder| builder)
}

fn tuned(more: &dyn Fn(Builder) -> Builder) -> Visits<Ours> {
    let options = Options::default().forward_eof(true).forward_reset(true);
    let sizes = (visits::WORD as usize, RING);
    // A port may be used again after a second: more than the default range are used in that time.
    let tune = |builder: Builder| more(builder.ephemeral_ports(1024..=65_535));
    Visits::new(Ours::churning(Offload::Nothing, sizes, &tune, options))
}

/// The median of rounds, the least and the largest.
fn rounds<P: Proxy>(visits: &mut Visits<P>, count: usize, at_a_time: usize) -> (f64, f64, f64) {
    visits.run(count / 10 + 1, at_a_time);
    let round = |_| {
        let start = busy();
        visits.run(count, at_a_time);
        (busy() - start).as_secs_f64() * 1e6 / count as f64
    };
    summary((0..ROUNDS).map(round).collect())
}

fn table(count: usize) {
    caption("us of one thread's processor time for each proxied connection, median (range)");
    println!(
        "of {ROUNDS} rounds of {count}: both handshakes, two splices, {} bytes there and back,",
        visits::WORD
    );
    println!(
        "both ends; buffers of {RING} bytes. Target: at most 100. The twin has no TIME-WAIT.\n"
    );
    println!("{:>10} {:>8}{:>20}twin", "at a time", "us", "");
    for at_a_time in [1, 10, 100] {
        let mut visits = proxy();
        let (median, least, most) = rounds(&mut visits, count, at_a_time);
        visits.proxy.check_churn();
        let range = format!("({least:.1} to {most:.1})");
        let mut twin = Visits::new(Twin::churning(at_a_time, RING));
        let (other, low, high) = rounds(&mut twin, count / at_a_time.min(10), at_a_time);
        println!(
            "{at_a_time:>10} {median:>8.1}  {range:<16} {other:>8.1}  ({low:.1} to {high:.1})"
        );
    }
}

/// Messages on established connections.
fn talk(connections: usize) {
    let clock = Arc::new(Steps::new());
    let mut visits = tuned(&|builder| builder.clock(clock.clone()));
    visits.talk(20 * connections, connections);
    let start = busy();
    visits.talk(MESSAGES, connections);
    let taken = (busy() - start).as_secs_f64() * 1e6 / MESSAGES as f64;
    println!("{taken:.2} us for each message there and back on {connections} connections");
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name| arguments.iter().any(|argument| argument == name);
    if has("count") {
        proxy().run(5000, 10);
        return;
    }
    if let [.., command, connections] = &arguments[..]
        && command == "talk"
    {
        return talk(connections.parse().expect("a number of connections"));
    }
    table(if has("--bench") { 10_000 } else { 100 });
}
