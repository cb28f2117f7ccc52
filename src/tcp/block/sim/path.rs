//! One direction of a path: a rate, a queue of bytes that drops at its tail, a delay, and impairments.

use crate::tcp::block::time::Instant;
use std::time::Duration;

/// Numbers that follow from a seed (splitmix64).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// From 0 to 1.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn chance(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.fraction() < chance
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Path {
    /// Bytes per second; `None`: no limit.
    pub(crate) rate: Option<f64>,
    /// Maximum bytes in the queue.
    pub(crate) queue: usize,
    pub(crate) delay: Duration,
    /// Chance that a packet is lost.
    pub(crate) loss: f64,
    /// Chance that a packet is late, and by how much.
    pub(crate) late: (f64, Duration),
    /// Each packet is delayed by up to this; `true`: with reordering.
    pub(crate) jitter: (Duration, bool),
    /// Chance that a packet arrives twice.
    pub(crate) twice: f64,
    /// Larger packets are dropped.
    pub(crate) mtu: usize,
    /// Packets sent in this period are lost.
    pub(crate) outage: Option<(Duration, Duration)>,
    /// The packet with this number is lost, counted from 1.
    pub(crate) drops: Option<u64>,
    /// Packets that find this many bytes in the queue are marked, if allowed (RFC 3168 5).
    pub(crate) marks: usize,
}

impl Path {
    pub(crate) const PERFECT: Path = Path {
        rate: None,
        queue: usize::MAX,
        delay: Duration::ZERO,
        loss: 0.0,
        late: (0.0, Duration::ZERO),
        jitter: (Duration::ZERO, false),
        twice: 0.0,
        mtu: usize::MAX,
        outage: None,
        drops: None,
        marks: usize::MAX,
    };
}

/// A path with its packets in flight.
#[derive(Debug)]
pub(crate) struct Direction {
    pub(crate) path: Path,
    random: Random,
    busy_until: Instant,
    /// When the last packet that overtakes none arrives.
    last: Instant,
    began: Instant,
    pub(crate) dropped: u64,
    pub(crate) packets: u64,
    /// The longest queue, in bytes.
    pub(crate) longest: usize,
    /// The latest packet was to be marked.
    pub(crate) marks: bool,
    pub(crate) marked: u64,
}

impl Direction {
    pub(crate) fn new(path: Path, seed: u64, now: Instant) -> Direction {
        Direction {
            path,
            random: Random::new(seed),
            busy_until: now,
            last: now,
            began: now,
            dropped: 0,
            packets: 0,
            longest: 0,
            marks: false,
            marked: 0,
        }
    }

    /// When a packet of this size arrives: never, once or twice.
    pub(crate) fn send(&mut self, bytes: usize, now: Instant) -> Vec<Instant> {
        self.packets += 1;
        let path = &self.path;
        let mut leaves = now;
        if let Some(rate) = path.rate {
            let waiting = self.busy_until.saturating_duration_since(now).as_secs_f64() * rate;
            #[expect(clippy::cast_possible_truncation, reason = "a queue is small")]
            let queued = waiting as usize + bytes;
            if waiting > 0.0 && queued > path.queue {
                self.dropped += 1;
                return Vec::new();
            }
            self.longest = self.longest.max(queued);
            self.marks = queued > path.marks;
            let takes = Duration::from_secs_f64(bytes as f64 / rate);
            self.busy_until = self.busy_until.max(now) + takes;
            leaves = self.busy_until;
        }
        let outage = path.outage.is_some_and(|(from, to)| {
            let at = now - self.began;
            from <= at && at < to
        });
        let lost = self.random.chance(path.loss);
        let late = self.random.chance(path.late.0);
        let twice = self.random.chance(path.twice);
        let lost = lost || path.drops == Some(self.packets);
        if lost || outage || bytes > path.mtu {
            self.dropped += 1;
            return Vec::new();
        }
        let delay = path.delay + if late { path.late.1 } else { Duration::ZERO };
        let mut at = leaves + delay;
        let (jitter, overtakes) = path.jitter;
        if !jitter.is_zero() {
            at += jitter.mul_f64(self.random.fraction());
            if !overtakes {
                at = at.max(self.last);
                self.last = at;
            }
        }
        if twice { vec![at, at] } else { vec![at] }
    }
}
