//! The events in order: a hash, so that two runs can be compared, and lines of text on demand.

use crate::clock::SetClock;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Clones write to the same trace.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    clock: Arc<SetClock>,
    hash: Arc<AtomicU64>,
    prints: bool,
}

impl Trace {
    pub(crate) fn new(clock: &Arc<SetClock>, prints: bool) -> Trace {
        Trace {
            clock: clock.clone(),
            hash: Arc::new(AtomicU64::new(0xcbf2_9ce4_8422_2325)),
            prints,
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash.load(Ordering::Relaxed)
    }

    /// One thread: load and store need not be one step.
    fn mix(&self, value: u64) {
        let hash = self.hash.load(Ordering::Relaxed) ^ value;
        let hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        self.hash.store(hash, Ordering::Relaxed);
    }

    /// A line, made only on demand; `value` goes into the hash.
    pub(crate) fn line<T: Display>(&self, value: u64, text: impl FnOnce() -> T) {
        self.mix(value);
        self.mix(self.clock.passed().as_nanos() as u64);
        if self.prints {
            println!("{:>14.6} {}", self.clock.passed().as_secs_f64(), text());
        }
    }

    pub(crate) fn packet(&self, network: &str, what: &str, end: usize, bytes: &[u8]) {
        let words = bytes.chunks(64).map(|part| u64::from(part[part.len() / 2]));
        let sum = words.fold(bytes.len() as u64, |sum, word| {
            sum.wrapping_mul(31).wrapping_add(word)
        });
        self.line(sum, || format!("{network}{end} {what} {}", brief(bytes)));
    }
}

/// A packet in few words.
fn brief(bytes: &[u8]) -> String {
    let v6 = bytes.first().is_some_and(|first| first >> 4 == 6);
    let (ip, protocol) = if v6 { (40, 6) } else { (20, 9) };
    if bytes.len() < ip + 20 || bytes[protocol] != 6 {
        return format!("{} bytes, no TCP", bytes.len());
    }
    let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let half = |at: usize| u16::from_be_bytes(bytes[at..at + 2].try_into().unwrap());
    let header = usize::from(bytes[ip + 12] >> 4) * 4;
    let flags: String = "FSRPA"
        .chars()
        .enumerate()
        .filter(|(bit, _)| bytes[ip + 13] >> bit & 1 != 0)
        .map(|(_, flag)| flag)
        .collect();
    format!(
        "{}->{} {flags} seq {} ack {} win {} len {}",
        half(ip),
        half(ip + 2),
        word(ip + 4),
        word(ip + 8),
        half(ip + 14),
        bytes.len().saturating_sub(ip + header)
    )
}
