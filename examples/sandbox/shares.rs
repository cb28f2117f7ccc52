//! Shares of guests: none takes all places for connections that are being made.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The places that are taken, by guest.
type Taken = Mutex<HashMap<IpAddr, usize>>;

pub(crate) struct Shares {
    taken: Arc<Taken>,
    /// The most of one guest.
    share: usize,
}

/// One of the places of a guest, until it is dropped.
pub(crate) struct Place {
    taken: Arc<Taken>,
    guest: IpAddr,
}

impl Shares {
    pub(crate) fn new(share: usize) -> Shares {
        let taken = Arc::default();
        Shares { taken, share }
    }

    /// A place for a guest, unless it has its share.
    pub(crate) fn take(&self, guest: IpAddr) -> Option<Place> {
        let mut taken = lock(&self.taken);
        let count = taken.entry(guest).or_default();
        if *count >= self.share {
            return None;
        }
        *count += 1;
        let taken = Arc::clone(&self.taken);
        Some(Place { taken, guest })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        if let Entry::Occupied(mut count) = taken.entry(self.guest) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

fn lock(taken: &Taken) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_guest_leaves_places_to_others() {
        let shares = Shares::new(2);
        let (one, other) = ("10.0.2.15".parse().unwrap(), "10.0.2.16".parse().unwrap());
        let mut places: Vec<_> = [one, one, other]
            .map(|guest| shares.take(guest).unwrap())
            .into();
        assert!(shares.take(one).is_none());
        places.remove(0);
        assert!(shares.take(one).is_some());
        places.clear();
        assert!(lock(&shares.taken).is_empty());
    }
}
