//! Which bytes have arrived ahead of their turn, and what the peer is told of them (RFC 2018).
//!
//! Ranges of positions, none of which touch, all beyond the next byte expected. The bytes themselves
//! are in the [`store`](super::store). Pure.

use smallvec::SmallVec;
use std::collections::BTreeMap;

/// Ranges at most. A peer that sends every second byte fills no more than that.
pub(crate) const MOST: usize = 128;
/// Blocks of a SACK option: as many as fit (RFC 2018 3).
pub(crate) const BLOCKS: usize = 4;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// Starts and ends.
    ranges: BTreeMap<u64, u64>,
    /// A position in each range that was reported lately, the latest first.
    latest: SmallVec<[u64; BLOCKS]>,
}

impl Ahead {
    pub(crate) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// All of them, in order.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ranges.iter().map(|(start, end)| (*start, *end))
    }

    /// `start..end` has arrived. `false`, and it does not count: there are too many ranges.
    pub(crate) fn add(&mut self, start: u64, end: u64) -> bool {
        let (mut from, mut to) = (start, end);
        let touched: SmallVec<[u64; 4]> = self
            .ranges
            .range(..=end)
            .rev()
            .take_while(|(_, range_end)| **range_end >= start)
            .map(|(range_start, _)| *range_start)
            .collect();
        if touched.is_empty() && self.ranges.len() >= MOST {
            return false;
        }
        for range_start in touched {
            from = from.min(range_start);
            to = to.max(self.ranges.remove(&range_start).unwrap_or(range_start));
        }
        self.ranges.insert(from, to);
        self.latest.retain(|at| *at < from || *at >= to);
        self.latest.truncate(BLOCKS - 1);
        self.latest.insert(0, start);
        true
    }

    /// How far the bytes go without a hole that are in order up to `to`.
    pub(crate) fn reach(&self, to: u64) -> u64 {
        let before = self.ranges.range(..=to).next_back();
        before.map_or(to, |(_, end)| to.max(*end))
    }

    /// Everything up to `to` is in order. Returns how far that goes now.
    pub(crate) fn advance(&mut self, to: u64) -> u64 {
        let reach = self.reach(to);
        self.ranges = self.ranges.split_off(&(reach + 1));
        self.latest.retain(|at| *at > reach);
        reach
    }

    /// What a SACK option says: the range of the latest segment first, then those that were told
    /// lately, then the first ones.
    pub(crate) fn blocks(&self) -> SmallVec<[(u64, u64); BLOCKS]> {
        let mut blocks = SmallVec::new();
        let latest = self.latest.iter();
        let latest = latest.filter_map(|at| self.ranges.range(..=*at).next_back());
        for (start, end) in latest.chain(self.ranges.iter().take(BLOCKS)) {
            let is_new = !blocks.contains(&(*start, *end));
            if is_new && blocks.len() < BLOCKS {
                blocks.push((*start, *end));
            }
        }
        blocks
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "small numbers")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// As a row of bits.
        #[test]
        fn ranges_are_those_of_a_row_of_bits(
            steps in proptest::collection::vec((0u64..200, 1u64..30, proptest::bool::weighted(0.1)), 1..40),
        ) {
            let mut ahead = Ahead::default();
            let mut bits = [false; 300];
            let mut next = 0;
            for (at, len, in_order) in steps {
                let start = if in_order { next } else { next + 1 + at % 200 };
                let end = (start + len).min(299);
                if start >= end {
                    continue;
                }
                bits[start as usize..end as usize].fill(true);
                if in_order {
                    let want = (next as usize..).find(|i| !bits[*i]).unwrap() as u64;
                    prop_assert_eq!(ahead.reach(end), want);
                    next = ahead.advance(end);
                    prop_assert_eq!(next, want);
                } else {
                    prop_assert!(ahead.add(start, end));
                    let (from, to) = ahead.blocks()[0];
                    prop_assert!(from <= start && end <= to, "the latest comes first");
                }
                let mut model = [false; 300];
                for (from, to) in &ahead.ranges {
                    prop_assert!(*from > next && (*from == 0 || !bits[*from as usize - 1]) && !bits[*to as usize]);
                    model[*from as usize..*to as usize].fill(true);
                }
                prop_assert_eq!(&model[next as usize..], &bits[next as usize..]);
                let blocks = ahead.blocks();
                prop_assert_eq!(blocks.len(), ahead.len().min(BLOCKS));
                for (i, block) in blocks.iter().enumerate() {
                    prop_assert!(ahead.ranges.get(&block.0) == Some(&block.1));
                    prop_assert!(!blocks[..i].contains(block), "said twice");
                }
            }
        }
    }

    #[test]
    fn the_number_of_ranges_is_limited() {
        let mut ahead = Ahead::default();
        for i in 1..=MOST as u64 {
            assert!(ahead.add(2 * i, 2 * i + 1));
        }
        assert!(!ahead.add(1000, 1001));
        assert!(ahead.add(3, 4), "it joins two");
        assert!(ahead.add(1000, 1001));
        assert_eq!(ahead.blocks().len(), BLOCKS);
    }
}
