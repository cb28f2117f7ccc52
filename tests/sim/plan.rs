//! The plan of a run: all random choices made before it begins.

use crate::network::Path;
use fastrand::Rng;
use sosplice::link::Capabilities;
use std::time::Duration;

/// Whether an application aborts, so that a run need not deliver all bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manners {
    /// All applications send all bytes and read to the end: all bytes arrive.
    Polite,
    /// Some abort, or close with bytes unread; networks break for long; links and pools go.
    Rude,
}

/// How an application is notified that it can continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hears {
    /// It tries all the time.
    Polls,
    /// By a poller, once for each change.
    Edges,
}

#[derive(Debug, Clone)]
pub(crate) struct StackPlan {
    pub(crate) seed: u64,
    pub(crate) receive_buffer: usize,
    pub(crate) send_buffer: usize,
    pub(crate) time_wait: Duration,
    pub(crate) ack_delay: Option<Duration>,
    pub(crate) capabilities: Capabilities,
}

#[derive(Debug, Clone)]
pub(crate) struct PoolPlan {
    pub(crate) workers: usize,
    pub(crate) quantum: usize,
    pub(crate) direct: bool,
}

/// A connection from a client through the proxy to a server.
#[derive(Debug, Clone)]
pub(crate) struct ConnPlan {
    pub(crate) begins: Duration,
    /// Bytes from the client, and from the server.
    pub(crate) totals: [u64; 2],
    pub(crate) v6: bool,
    /// Between the two connections lies a pair of sockets in memory, and each way is two splices.
    pub(crate) detour: bool,
    /// In thousandths of the steps.
    pub(crate) pauses: [u32; 2],
    /// After so many bytes, sent or received, this side breaks off.
    pub(crate) breaks: [Option<u64>; 2],
    /// Chance in thousandths of a step to end a splice by hand.
    pub(crate) unsplices: u32,
    /// Chance in hundredths to relay by hand between two splices.
    pub(crate) by_hand: u32,
    /// The proxy gives the connection up after so many bytes.
    pub(crate) relay_breaks: Option<u64>,
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) manners: Manners,
    pub(crate) hears: Hears,
    pub(crate) paths: [[Path; 2]; 2],
    pub(crate) stacks: [StackPlan; 4],
    pub(crate) pools: Vec<PoolPlan>,
    pub(crate) conns: Vec<ConnPlan>,
    /// Chance in ten-thousandths that time advances although an actor has work.
    pub(crate) hesitates: u32,
    /// Chance in hundredths, for each actor, that it postpones its work.
    pub(crate) laziness: u32,
    /// When a stack's link fails permanently, and which.
    pub(crate) link_goes: Option<(Duration, usize)>,
    /// When the first pool is dropped.
    pub(crate) pool_goes: Option<Duration>,
}

/// One of these.
fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(0..of.len())]
}

/// Small ones are as frequent as large ones.
pub(crate) fn log_uniform(rng: &mut Rng, max: u64) -> u64 {
    let bits = rng.u32(0..=64 - max.leading_zeros());
    rng.u64(0..1 << bits).min(max)
}

fn millis(rng: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.u64(range))
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Plan {
        let rng = &mut Rng::with_seed(seed);
        let manners = match rng.u32(0..3) {
            0 => Manners::Rude,
            _ => Manners::Polite,
        };
        let rude = manners == Manners::Rude;
        let count = rng.usize(1..=4);
        Plan {
            manners,
            hears: pick(rng, &[Hears::Polls, Hears::Edges]),
            paths: std::array::from_fn(|_| paths(rng, rude)),
            stacks: std::array::from_fn(|_| stack(rng)),
            pools: (0..rng.usize(1..=3)).map(|_| pool(rng)).collect(),
            conns: (0..count).map(|_| conn(rng, rude, count)).collect(),
            hesitates: pick(rng, &[0, 5, 50]),
            laziness: pick(rng, &[0, 20, 80]),
            link_goes: (rude && rng.u32(0..6) == 0)
                .then(|| (millis(rng, 0..3000), rng.usize(0..4))),
            pool_goes: (rude && rng.u32(0..4) == 0).then(|| millis(rng, 0..3000)),
        }
    }
}

impl Plan {
    /// How late something may be done that is due.
    pub(crate) fn lateness(&self) -> Duration {
        match self.hesitates {
            0 => Duration::ZERO,
            // Up to 5 ms at a time, and any step may be one of these.
            _ => Duration::from_millis(500),
        }
    }
}

fn paths(rng: &mut Rng, rude: bool) -> [Path; 2] {
    let is_bad = rng.u32(0..3) > 0;
    let delay = Duration::from_micros(pick(rng, &[0, 50, 1000, 20_000, 150_000]));
    let narrows = (rng.u32(0..6) == 0).then(|| (millis(rng, 0..2000), rng.usize(1280..1480)));
    let longest = if rude { 200_000 } else { 20_000 };
    let partition = (is_bad && rng.u32(0..4) == 0).then(|| {
        let begin = millis(rng, 0..2000);
        (begin, begin + millis(rng, 1..longest))
    });
    std::array::from_fn(|_| {
        let mut path = Path {
            delay,
            rate: pick(
                rng,
                &[
                    None,
                    None,
                    Some(100_000_000),
                    Some(1_000_000),
                    Some(100_000),
                ],
            ),
            queue: rng.usize(2..200),
            says_full: rng.bool(),
            ..Path::PERFECT
        };
        if is_bad {
            path.jitter = delay.mul_f64(pick(rng, &[0.0, 0.1, 1.0]));
            path.loss = pick(rng, &[0.0, 0.001, 0.01, 0.05]);
            path.duplication = pick(rng, &[0.0, 0.0, 0.02]);
            path.corruption = pick(rng, &[0.0, 0.0, 0.01]);
            path.partition = partition;
        }
        path.narrows = narrows;
        path
    })
}

fn stack(rng: &mut Rng) -> StackPlan {
    let buffer = |rng: &mut Rng| match rng.u32(0..3) {
        0 => rng.usize(2048..8000),
        1 => rng.usize(8000..66_000),
        _ => rng.usize(66_000..300_000),
    };
    StackPlan {
        seed: rng.u64(..),
        receive_buffer: buffer(rng),
        send_buffer: buffer(rng),
        time_wait: millis(rng, 100..60_000),
        ack_delay: pick(rng, &[None, None, Some(Duration::from_millis(10))]),
        capabilities: Capabilities::new(pick(rng, &[1500, 1500, 1500, 9000, 1280]))
            .checksum(rng.bool())
            .segment_v4(pick(rng, &[None, Some(20_000), Some(65_535)])),
    }
}

fn pool(rng: &mut Rng) -> PoolPlan {
    PoolPlan {
        workers: rng.usize(1..=2),
        quantum: pick(rng, &[100, 1000, 16_384, 262_144]),
        direct: rng.bool(),
    }
}

fn conn(rng: &mut Rng, rude: bool, count: usize) -> ConnPlan {
    let most = pick(rng, &[20_000, 200_000, 200_000, 1_000_000]) / count as u64;
    let total = |rng: &mut Rng| log_uniform(rng, most);
    let breaks = |rng: &mut Rng| (rude && rng.u32(0..3) == 0).then(|| log_uniform(rng, most));
    ConnPlan {
        begins: millis(rng, 0..1000),
        totals: [total(rng), total(rng)],
        v6: rng.u32(0..3) == 0,
        detour: rng.u32(0..4) == 0,
        pauses: [pick(rng, &[0, 5, 50]), pick(rng, &[0, 5, 50])],
        breaks: [breaks(rng), breaks(rng)],
        unsplices: pick(rng, &[0, 0, 2, 20]),
        by_hand: pick(rng, &[0, 0, 30]),
        relay_breaks: (rude && rng.u32(0..5) == 0).then(|| log_uniform(rng, most)),
    }
}
