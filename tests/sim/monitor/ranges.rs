//! A sorted set of ranges of positions.

use std::ops::Range;

/// Sorted; no two of them touch, and none is empty.
#[derive(Debug, Default)]
pub(super) struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// The first range that ends at or behind a position.
    fn touching(&self, position: u64) -> usize {
        self.0.partition_point(|range| range.end < position)
    }

    pub(super) fn insert(&mut self, new: Range<u64>) {
        if new.is_empty() {
            return;
        }
        let first = self.touching(new.start);
        let count = self.0[first..].partition_point(|range| range.start <= new.end);
        let joined = &self.0[first..first + count];
        let start = joined
            .first()
            .map_or(new.start, |range| range.start.min(new.start));
        let end = joined
            .last()
            .map_or(new.end, |range| range.end.max(new.end));
        match count {
            1 => self.0[first] = start..end,
            _ => {
                self.0.drain(first..first + count);
                self.0.insert(first, start..end);
            }
        }
    }

    pub(super) fn covers(&self, range: &Range<u64>) -> bool {
        let known = self.0.get(self.touching(range.start + 1));
        known.is_some_and(|known| known.start <= range.start && range.end <= known.end)
    }

    /// The parts of a range that are in the set.
    pub(super) fn overlaps(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let from = self.touching(range.start + 1);
        let known = self.0[from..].iter();
        known
            .take_while(|known| known.start < range.end)
            .map(|known| known.start.max(range.start)..known.end.min(range.end))
            .collect()
    }

    /// Behind the positions that go on from here without a gap.
    pub(super) fn reach(&self, from: u64) -> u64 {
        match self.0.get(self.touching(from)) {
            Some(known) if known.start <= from => known.end,
            _ => from,
        }
    }
}

#[test]
fn it_is_a_set() {
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..300 {
        let (mut ranges, mut set) = (Ranges::default(), [false; 40]);
        for _ in 0..12 {
            let start = random.usize(0..36);
            let range = start..start + random.usize(0..4);
            let overlap: usize = range.clone().filter(|&at| set[at]).count();
            let wide = range.start as u64..range.end as u64;
            let overlaps = ranges.overlaps(&wide);
            let found: u64 = overlaps.iter().map(|part| part.end - part.start).sum();
            assert_eq!(found, overlap as u64);
            set[range.clone()].fill(true);
            ranges.insert(wide);
        }
        for at in 0..40 {
            let reach = (at..40).find(|&at| !set[at]).unwrap_or(40);
            assert_eq!(ranges.reach(at as u64), reach as u64);
            assert_eq!(ranges.covers(&(at as u64..at as u64 + 1)), set[at]);
        }
        let apart = ranges.0.windows(2).all(|pair| pair[0].end < pair[1].start);
        assert!(apart, "{ranges:?}");
    }
}
