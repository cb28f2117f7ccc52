//! Marks of SYNs that were not answered: what a flood of SYNs costs is bounded.
//!
//! Most of what a forged SYN costs is its answer, the cookie. Beyond a number of cookies a second a SYN is answered
//! only when it comes again after [`PAUSE`] or more, as a client retransmits it after a second (RFC 6298 2.1; RFC
//! 4987 3.3 recommends such a filter for caches of SYNs). A forger must remember its SYNs and send each of them
//! twice. One that is repeated earlier begins anew, so each SYN draws at most one answer in that time.
//!
//! A mark is 16 bits: the time and a tag, both short. It is in the bucket that a keyed hash of the SYN names, where
//! it replaces the oldest one, if that is older than a retransmission takes: so those that are in the table are not
//! driven out by a faster flood, and a client comes in as one of those that find a place. The table is allocated with
//! the first mark, and has half a million of them: at 100,000 SYNs a second, 99 % of the clients are remembered for a
//! second, 85 % for three; at a million about 40 % for a second. A forged SYN has the tag of another one in one of 150
//! cases, and is answered then.
//!
//! Locks: none, atomic. Two threads that write the same bucket lose a mark at worst.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

/// How many cookies a second are sent for SYNs that come once.
pub(in crate::stack) const MAX_COOKIES: u32 = 10_000;
/// The unit of a mark's time, which wraps after 64 of them: after 12.8 s a retransmission may count as early.
const TICK: Duration = Duration::from_millis(200);
/// So many ticks: at least 0.6 s, and always after 0.8 s.
const PAUSE: u16 = 4;
/// A mark is kept for so many ticks, at least 1.2 s: beyond the first retransmission.
const KEPT: u16 = 7;
const TIMES: u16 = 64;
const TAGS: u16 = u16::MAX / TIMES;
/// 1 MiB.
const BUCKETS: usize = 1 << 16;

/// Eight marks. 0 is none: a tag is at least 1.
#[derive(Default)]
struct Bucket([AtomicU16; 8]);

/// See the module.
#[derive(Default)]
pub(in crate::stack) struct SynMarks {
    /// The second of the latest cookie, and how many were sent in it.
    sent: AtomicU64,
    table: OnceLock<Box<[Bucket]>>,
}

impl fmt::Debug for SynMarks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SynMarks")
            .field("memory", &self.memory())
            .finish_non_exhaustive()
    }
}

impl SynMarks {
    /// Whether a SYN with this hash is to be answered, if so many cookies are allowed in a second. Otherwise it is
    /// marked.
    pub(super) fn allow(&self, limit: u32, now: Duration, hash: impl FnOnce() -> u64) -> bool {
        self.is_within(limit, now.as_secs()) || self.is_repeated(hash(), now)
    }

    fn is_within(&self, limit: u32, second: u64) -> bool {
        let low = u64::from(u32::MAX);
        let one_more = |sent: u64| {
            let (latest, count) = (sent >> 32, sent & low);
            // Another thread may be in the next second already.
            let (second, before) = match latest.wrapping_sub(second) & low {
                0 | 1 => (latest, count),
                _ => (second & low, 0),
            };
            (before < u64::from(limit)).then_some(second << 32 | (before + 1))
        };
        self.sent
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .is_ok()
    }

    /// Whether there is an earlier mark, which is renewed.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "parts of a hash and of a time"
    )]
    fn is_repeated(&self, hash: u64, now: Duration) -> bool {
        let table = self.table.get_or_init(|| {
            std::iter::repeat_with(Bucket::default)
                .take(BUCKETS)
                .collect()
        });
        let Bucket(marks) = &table[hash as usize % BUCKETS];
        let tag = 1 + (hash >> 32) as u16 % TAGS;
        let tick = (now.as_millis() / TICK.as_millis()) as u16 % TIMES;
        let read = |mark: &AtomicU16| {
            let value = mark.load(Ordering::Relaxed);
            let age = tick.wrapping_sub(value % TIMES) % TIMES;
            (value / TIMES, age)
        };
        let mine = marks.iter().find(|mark| read(mark).0 == tag);
        let repeated = mine.is_some_and(|mark| read(mark).1 >= PAUSE);
        let age = |mark: &AtomicU16| match read(mark) {
            (0, _) => TIMES,
            (_, age) => age,
        };
        let oldest = || {
            let mark = marks.iter().max_by_key(|mark| age(mark));
            mark.filter(|mark| age(mark) >= KEPT)
        };
        if let Some(mark) = mine.or_else(oldest) {
            mark.store(tag * TIMES + tick, Ordering::Relaxed);
        }
        repeated
    }

    /// Bytes of the table.
    pub(in crate::stack) fn memory(&self) -> usize {
        self.table.get().map_or(0, |table| size_of_val(&**table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Random, mix};

    const SECOND: Duration = Duration::from_secs(1);

    fn none(marks: &SynMarks, hash: u64, now: Duration) -> bool {
        marks.allow(0, now, || hash)
    }

    #[test]
    fn so_many_in_a_second_need_no_mark() {
        let marks = SynMarks::default();
        for second in [0, 1, 2, 7, u64::from(u32::MAX), 1 << 32] {
            let now = Duration::from_secs(second);
            let allowed = (0..30).filter(|i| marks.allow(10, now, || mix(1000 * second + i)));
            assert_eq!(allowed.count(), 10, "{second}");
        }
        // Two threads, one of which is in the next second already.
        let both = SynMarks::default();
        let allowed = (0..100).filter(|i| both.is_within(10, 11 - i % 2));
        assert!(allowed.count() <= 20);
        let unlimited = SynMarks::default();
        assert!((0..1000).all(|_| unlimited.allow(u32::MAX, SECOND, || 1)));
        assert_eq!(unlimited.memory(), 0, "no table");
    }

    #[test]
    fn a_repetition_counts_after_a_pause_and_once() {
        let ms = Duration::from_millis;
        let (marks, eager) = (SynMarks::default(), SynMarks::default());
        for start in (0..30_000).step_by(37) {
            let (syn, start) = (mix(start), ms(start));
            assert!(!none(&marks, syn, start));
            assert!(none(&marks, syn, start + ms(800)));
            assert!(!none(&marks, syn, start + ms(1300)), "too early after that");
            assert!(none(&marks, syn, start + ms(2300)));
            assert!(none(&marks, syn, start + ms(4300)));
            assert!(none(&marks, syn, start + ms(8300)));
            let often = (0..100).map(|i| none(&eager, syn, start + ms(590) * i));
            assert_eq!(often.filter(|answered| *answered).count(), 0, "{start:?}");
        }
    }

    #[test]
    fn the_memory_does_not_grow_and_marks_last_for_seconds() {
        let marks = SynMarks::default();
        let mut random = Random::new(1);
        let mut chance = 0;
        // 100,000 a second, for a while; some clients among them.
        for step in 0..1_000_000u64 {
            let now = Duration::from_micros(10 * step);
            chance += u32::from(none(&marks, random.next(), now));
        }
        assert_eq!(marks.memory(), 1 << 20);
        assert!(chance < 1_000_000 / 100, "{chance} answered by chance");
        let start = Duration::from_secs(10);
        let clients: Vec<u64> = (0..1000).map(|_| random.next()).collect();
        // The retransmissions after one and after three seconds (RFC 6298 5.5, and 2.1 of older clients); then a flood
        // that is ten times as fast, which goes on all the time.
        for (seconds, rate, least) in [(1, 100_000, 990), (3, 100_000, 850), (1, 1_000_000, 300)] {
            let start = start + 20 * SECOND * seconds + Duration::from_secs(rate / 1000);
            let mut flood = |start: Duration, seconds: u32| {
                for step in 0..u64::from(seconds) * rate {
                    let time = Duration::from_nanos(1_000_000_000 / rate * step);
                    none(&marks, random.next(), start + time);
                }
            };
            flood(start - 2 * SECOND, 2);
            for client in &clients {
                none(&marks, *client, start);
            }
            flood(start, seconds);
            let later = start + SECOND * seconds;
            let known = clients
                .iter()
                .filter(|client| none(&marks, **client, later));
            let known = known.count();
            assert!(known > least, "{known} are remembered for {seconds} s");
        }
    }
}
