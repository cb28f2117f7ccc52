//! Out-of-order payload.
//!
//! Holds exactly the accepted out-of-order bytes (I1). Of overlapping segments the latest is kept.
//! Deterministic; under the connection's ownership.

use crate::buf::{Buf, Chain};
use std::collections::BTreeMap;

/// Beyond this many pieces, adjacent ones are copied together. If holes separate more than that, the
/// next compaction is at twice the remaining number: each byte is copied a few times at most.
const MAX_PIECES: usize = 128;

/// Pieces by position; they never overlap and are never empty.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pieces: BTreeMap<u64, Buf>,
    /// Real memory of the pieces.
    memory: usize,
    /// Number of pieces after the latest compaction.
    left: usize,
}

impl Store {
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes held.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.pieces.values().map(Buf::len).sum()
    }

    /// Real memory held.
    pub(crate) fn memory(&self) -> usize {
        self.memory
    }

    fn put(&mut self, at: u64, buf: Buf) {
        self.memory += buf.footprint();
        let former = self.pieces.insert(at, buf);
        self.memory -= former.map_or(0, |former| former.footprint());
    }

    fn remove(&mut self, at: u64) -> Option<Buf> {
        let buf = self.pieces.remove(&at)?;
        self.memory -= buf.footprint();
        Some(buf)
    }

    /// Stores `payload` at `position`, replacing overlapped bytes.
    pub(crate) fn insert(&mut self, position: u64, payload: impl Iterator<Item = Buf>) {
        let mut at = position;
        for buf in payload {
            let end = at + buf.len() as u64;
            self.clear(at, end);
            if !buf.is_empty() {
                self.keep(at, buf);
            }
            at = end;
        }
        if self.pieces.len() > MAX_PIECES.max(2 * self.left) {
            self.compact();
            self.left = self.pieces.len();
        }
    }

    /// Removes and returns the bytes from `from` up to `to`, all of which must be here.
    ///
    /// `None`, without a change, if one is missing: a broken invariant (I1).
    pub(crate) fn take(&mut self, from: u64, to: u64) -> Option<Chain> {
        let mut at = from;
        let mut chain = Chain::default();
        while at < to {
            let mut buf = self.remove(at)?;
            let end = at + buf.len() as u64;
            if end > to {
                let rest = buf.split_off(usize::try_from(to - at).ok()?);
                self.put(to, rest);
            }
            at += buf.len() as u64;
            chain.append(buf);
        }
        Some(chain)
    }

    /// Removes the bytes at `from..to`.
    fn clear(&mut self, from: u64, to: u64) {
        let before = self.pieces.range(..from).next_back();
        if let Some((&start, buf)) = before
            && start + buf.len() as u64 > from
            && let Some(mut buf) = self.remove(start)
        {
            let mut cut = buf.split_off(usize::try_from(from - start).unwrap_or(0));
            if from + cut.len() as u64 > to {
                cut.advance(usize::try_from(to - from).unwrap_or(0));
                self.keep(to, cut);
            }
            self.keep(start, buf);
        }
        while let Some((&start, _)) = self.pieces.range(from..to).next() {
            let Some(mut buf) = self.remove(start) else {
                break;
            };
            if start + buf.len() as u64 > to {
                buf.advance(usize::try_from(to - start).unwrap_or(0));
                self.keep(to, buf);
            }
        }
    }

    /// Stores a piece. A small one is copied, so that it does not keep a large frame alive.
    fn keep(&mut self, at: u64, buf: Buf) {
        let buf = if buf.footprint() > buf.len() {
            Buf::copy_of(&buf)
        } else {
            buf
        };
        self.put(at, buf);
    }

    fn compact(&mut self) {
        let mut joined: BTreeMap<u64, Buf> = BTreeMap::new();
        let mut run: Vec<u8> = Vec::new();
        let mut run_start = 0;
        for (start, buf) in std::mem::take(&mut self.pieces) {
            if run_start + run.len() as u64 != start && !run.is_empty() {
                joined.insert(run_start, Buf::from(std::mem::take(&mut run)));
            }
            if run.is_empty() {
                run_start = start;
            }
            run.extend_from_slice(&buf);
        }
        if !run.is_empty() {
            joined.insert(run_start, Buf::from(run));
        }
        self.memory = joined.values().map(Buf::footprint).sum();
        self.pieces = joined;
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "small numbers")]
mod tests {
    use super::*;
    use crate::cases::cases;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(cases(1_000, 10_000))]

        /// The store behaves as memory with a bit for each byte that is there.
        #[test]
        fn last_writer_wins(
            writes in proptest::collection::vec((0u64..300, 0usize..60, 1usize..4), 1..30),
        ) {
            let mut store = Store::default();
            let mut model: Vec<Option<u8>> = vec![None; 1000];
            for (round, (at, len, parts)) in (1u8..).zip(writes) {
                let buf = Buf::copy_of(&vec![round; len]);
                let step = len.div_ceil(parts).max(1);
                let parts = (0..len).step_by(step).map(|i| buf.slice(i..(i + step).min(len)));
                store.insert(at, parts);
                model[at as usize..at as usize + len].fill(Some(round));
            }
            prop_assert_eq!(store.len(), model.iter().flatten().count());
            let mut at = 0;
            while at < model.len() {
                let run = model[at..].iter().take_while(|byte| byte.is_some()).count();
                if run > 1 {
                    let half = at + run / 2;
                    let mut got = store.take(at as u64, half as u64).unwrap().to_vec();
                    got.extend(store.take(half as u64, (at + run) as u64).unwrap().to_vec());
                    let want: Vec<u8> = model[at..at + run].iter().flatten().copied().collect();
                    prop_assert_eq!(got, want);
                }
                at += run.max(1);
            }
        }
    }

    #[test]
    fn tiny_pieces_do_not_hold_much_memory() {
        let mut store = Store::default();
        for position in 0..60_000u64 {
            store.insert(1 + position, std::iter::once(Buf::copy_of(&[1])));
            assert!(store.pieces.len() <= MAX_PIECES + 1);
        }
        assert_eq!(store.take(1, 60_001).unwrap().len(), 60_000);
        assert!(store.is_empty());
    }

    /// A peer leaves a hole behind each segment: pieces are not copied again for every further one.
    #[test]
    fn many_holes_do_not_make_each_segment_dear() {
        const LEN: usize = 1000;
        let mut store = Store::default();
        let mut copied = 0;
        for round in 0..1000u64 {
            let (left, segment) = (store.left, Buf::copy_of(&[1; LEN]));
            store.insert(round * 2 * LEN as u64, std::iter::once(segment));
            if store.left != left {
                copied += store.left;
            }
        }
        assert_eq!(store.len(), 1000 * LEN);
        assert!(copied <= 2000, "{copied} segments were copied");
    }

    /// A large segment again and again, of which all but a byte is sent once more.
    #[test]
    fn remains_of_overlapped_pieces_hold_no_large_frames() {
        let mut store = Store::default();
        for round in 0..100u64 {
            let large = Buf::copy_of(&[1; 60_000]);
            store.insert(1 + round, std::iter::once(large));
            assert!(
                store.memory() <= 60_000 + round as usize * 512,
                "{} bytes of memory for {}",
                store.memory(),
                store.len()
            );
        }
    }

    #[test]
    fn a_missing_byte_is_noticed() {
        let mut store = Store::default();
        store.insert(10, std::iter::once(Buf::copy_of(b"abc")));
        assert!(store.take(9, 12).is_none());
        assert!(store.take(10, 14).is_none());
    }
}
