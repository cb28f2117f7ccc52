//! Sets of positions as sorted, non-adjacent ranges.
//!
//! Reassembly ([`receiver`](super::receiver)) and the SACK scoreboard ([`recovery`](super::recovery))
//! are such sets. Pure.

use smallvec::SmallVec;
use std::ops::Range;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct RangeSet {
    /// Sorted, not empty, and with at least one position between two of them.
    ranges: Vec<Range<u64>>,
}

impl RangeSet {
    /// Number of ranges.
    pub(crate) fn len(&self) -> usize {
        self.ranges.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.ranges.iter()
    }

    /// One past the last position.
    pub(crate) fn end(&self) -> Option<u64> {
        self.ranges.last().map(|range| range.end)
    }

    /// Index of the first range that ends at or after a position.
    fn touching(&self, position: u64) -> usize {
        self.ranges.partition_point(|range| range.end < position)
    }

    /// The range in which a position is.
    pub(crate) fn covering(&self, position: u64) -> Option<&Range<u64>> {
        let at = self.ranges.partition_point(|range| range.end <= position);
        self.ranges.get(at).filter(|range| range.start <= position)
    }

    /// Whether the set contains the whole range.
    #[cfg(test)]
    pub(crate) fn covers(&self, range: &Range<u64>) -> bool {
        self.covering(range.start)
            .is_some_and(|known| known.end >= range.end)
    }

    /// Whether it overlaps or adjoins a range of the set.
    pub(crate) fn touches(&self, range: &Range<u64>) -> bool {
        let at = self.touching(range.start);
        self.ranges
            .get(at)
            .is_some_and(|known| known.start <= range.end)
    }

    /// The parts of a range that are not in the set.
    pub(crate) fn missing(&self, range: &Range<u64>) -> SmallVec<[Range<u64>; 4]> {
        let mut gaps = SmallVec::new();
        let mut from = range.start;
        let at = self
            .ranges
            .partition_point(|known| known.end <= range.start);
        for known in &self.ranges[at..] {
            if known.start >= range.end {
                break;
            }
            if from < known.start {
                gaps.push(from..known.start);
            }
            from = from.max(known.end);
        }
        if from < range.end {
            gaps.push(from..range.end);
        }
        gaps
    }

    /// Adds a range.
    pub(crate) fn insert(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        let first = self.touching(range.start);
        let behind = self.ranges[first..].partition_point(|known| known.start <= range.end);
        let last = first + behind;
        if first == last {
            self.ranges.insert(first, range);
            return;
        }
        let joined =
            range.start.min(self.ranges[first].start)..range.end.max(self.ranges[last - 1].end);
        self.ranges[first] = joined;
        self.ranges.drain(first + 1..last);
    }

    /// The end of the contiguous range that begins at or before `to`; `to` if there is none.
    pub(crate) fn reach(&self, to: u64) -> u64 {
        let at = self.touching(to);
        match self.ranges.get(at) {
            Some(known) if known.start <= to => known.end,
            Some(_) | None => to,
        }
    }

    /// Removes all below a position.
    pub(crate) fn remove_below(&mut self, position: u64) {
        let at = self.ranges.partition_point(|range| range.end <= position);
        self.ranges.drain(..at);
        if let Some(first) = self.ranges.first_mut() {
            first.start = first.start.max(position);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.ranges = Vec::new();
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers")]
mod tests {
    use super::*;
    use crate::cases::cases;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(cases(1_000, 1_000))]

        /// Compared with a bit map.
        #[test]
        fn ranges_are_those_of_a_row_of_bits(
            steps in proptest::collection::vec((0u64..200, 0u64..30, 0u8..10), 1..40),
        ) {
            let mut set = RangeSet::default();
            let mut bits = [false; 300];
            for (at, len, action) in steps {
                let range = at..at + len;
                let cells = at as usize..(at + len) as usize;
                let gaps: usize = set.missing(&range).iter().map(|gap| (gap.end - gap.start) as usize).sum();
                prop_assert_eq!(gaps, bits[cells.clone()].iter().filter(|bit| !**bit).count());
                if len > 0 {
                    prop_assert_eq!(set.covers(&range), bits[cells.clone()].iter().all(|bit| *bit));
                }
                if action == 0 {
                    set.remove_below(at);
                    bits[..at as usize].fill(false);
                } else {
                    set.insert(range);
                    bits[cells].fill(true);
                }
                let mut model = [false; 300];
                let mut behind = None;
                for range in set.iter() {
                    prop_assert!(range.start < range.end && behind.is_none_or(|end| end < range.start));
                    behind = Some(range.end);
                    model[range.start as usize..range.end as usize].fill(true);
                }
                prop_assert_eq!(model, bits);
                let reach = (at as usize..).find(|cell| !bits[*cell]).unwrap() as u64;
                prop_assert_eq!(set.reach(at), reach);
                prop_assert_eq!(set.covering(at).is_some(), bits[at as usize]);
            }
        }
    }

    #[test]
    fn ranges_that_touch_are_joined() {
        let mut set = RangeSet::default();
        set.insert(10..20);
        assert!(set.touches(&(20..30)) && set.touches(&(5..10)) && !set.touches(&(21..30)));
        assert_eq!(set.end(), Some(20));
        set.clear();
        assert!(set.is_empty() && set.end().is_none());
    }
}
