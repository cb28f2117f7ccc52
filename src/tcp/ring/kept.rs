//! Mappings that wait for their next ring.

use super::mapping::Mapping;
use crate::lock::{Mutex, POOL};
use std::collections::VecDeque;

/// Mappings that wait at most.
const MOST: usize = 1024;

static SHELF: Shelf = Shelf(Mutex::new(VecDeque::new()));

/// A mapping that is kept when its ring is gone.
#[derive(Debug)]
pub(crate) struct Kept(Option<Mapping>);

impl Kept {
    /// `None`: the system refuses.
    pub(super) fn new(len: usize, piece: u8) -> Option<Kept> {
        let mapping = SHELF.take(len, piece);
        let mapping = mapping.or_else(|| Mapping::new(len, piece));
        let mapping = mapping.or_else(|| {
            // Those of other lengths count too.
            SHELF.clear();
            Mapping::new(len, piece)
        });
        let mapping = mapping.or_else(|| Mapping::own(len));
        mapping.map(|mapping| Kept(Some(mapping)))
    }

    /// See [`Mapping::lend`].
    pub(super) fn lend(&mut self) -> &'static mut [u8] {
        self.0.as_mut().map_or(&mut [], Mapping::lend)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Own memory would stay with the process.
        if let Some(mapping) = self.0.take().filter(Mapping::is_shared) {
            drop(SHELF.put(mapping));
        }
    }
}

/// Last in, first out: then the page tables are filled.
struct Shelf(Mutex<VecDeque<Mapping>, POOL>);

impl Shelf {
    /// One of this length and on this memory.
    fn take(&self, len: usize, piece: u8) -> Option<Mapping> {
        let mut waiting = self.0.lock();
        let wanted = |mapping: &Mapping| (mapping.len(), mapping.piece()) == (len, piece);
        let at = waiting.iter().rposition(wanted)?;
        waiting.remove(at)
    }

    /// If there is no room, the one that has waited longest, maybe for a thread that has ended, is
    /// given back.
    fn put(&self, mapping: Mapping) -> Option<Mapping> {
        let mut waiting = self.0.lock();
        let oldest = (waiting.len() == MOST).then(|| waiting.pop_front());
        waiting.push_back(mapping);
        oldest.flatten()
    }

    fn clear(&self) {
        let waiting = std::mem::take(&mut *self.0.lock());
        drop(waiting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_of_a_length_is_used_first_and_their_number_is_limited() {
        let shelf = Shelf(Mutex::default());
        let one = |len| Mapping::new(len, 0).unwrap();
        let (a, mut b) = (one(5000), one(5000));
        let address = b.lend().as_ptr();
        for mapping in [a, b, one(6000)] {
            assert!(shelf.put(mapping).is_none());
        }
        assert!(shelf.take(5000, 1).is_none());
        assert_eq!(shelf.take(5000, 0).unwrap().lend().as_ptr(), address);
        assert!(shelf.take(7000, 0).is_none());
        for _ in 2..MOST {
            assert!(shelf.put(one(5000)).is_none());
        }
        for _ in 0..MOST {
            assert!(
                shelf
                    .put(one(7000))
                    .is_some_and(|oldest| oldest.len() != 7000)
            );
        }
        assert!(shelf.take(5000, 0).is_none());
        assert!(shelf.take(7000, 0).is_some());
        shelf.clear();
        assert!(shelf.take(7000, 0).is_none());
    }
}
