//! A cache of the path MTU of each destination, as found by connections (RFC 1191 6.3, 8201 5.2, 5.3).
//!
//! A new connection starts with the cached size. Only connections add entries, from reports that they
//! have accepted: a forger of reports must know a segment in flight. Datagrams use these entries too, and
//! have a cache of their own for reports about datagrams. An entry is valid for ten minutes,
//! or until a connection finds that larger packets pass.
//!
//! Locks: its own, a leaf, taken when a connection begins and when one has a finding; and for datagrams.

use crate::lock::{LEAF, Mutex};
use crate::tcp::block::path_mtu::{By, Finding, Known, LIFE};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

/// Maximum number of destinations; beyond it the oldest entry is evicted.
pub(super) const MOST: usize = 1024;

/// The path MTU of each destination, and when it was found.
#[derive(Debug, Default)]
pub(super) struct Paths(Mutex<HashMap<IpAddr, (Known, Instant)>, LEAF>);

fn is_old(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) >= LIFE
}

impl Paths {
    pub(super) fn get(&self, to: IpAddr, now: Instant) -> Option<Known> {
        let mut paths = self.0.lock();
        let (known, since) = *paths.get(&to)?;
        if is_old(since, now) {
            paths.remove(&to);
            return None;
        }
        Some(known)
    }

    /// Records the finding of a connection.
    pub(super) fn learn(&self, to: IpAddr, finding: Finding, now: Instant) {
        let mut paths = self.0.lock();
        let former = paths.get(&to).filter(|(_, since)| !is_old(*since, now));
        let former = former.map(|(known, _)| *known);
        let found = match finding {
            Finding::Smaller(found) => found,
            Finding::Larger => {
                if former.is_some_and(|former| former.by != By::Router) {
                    paths.remove(&to);
                }
                return;
            }
        };
        // An older connection may know a larger size; a router's report outranks a guess.
        let outranked = |former: Known| {
            let equal = (former.by == By::Router) == (found.by == By::Router);
            match equal {
                true => former.mtu < found.mtu,
                false => former.by == By::Router,
            }
        };
        if former.is_some_and(outranked) {
            return;
        }
        if paths.len() >= MOST && !paths.contains_key(&to) {
            paths.retain(|_, (_, since)| !is_old(*since, now));
            let oldest = paths.iter().min_by_key(|(_, (_, since))| *since);
            let oldest = oldest.map(|(to, _)| *to).filter(|_| paths.len() >= MOST);
            oldest.and_then(|oldest| paths.remove(&oldest));
        }
        paths.insert(to, (found, now));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};
    use std::time::Duration;

    fn to(host: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + host).into()
    }

    fn smaller(mtu: usize, by: By) -> Finding {
        Finding::Smaller(Known { mtu, by })
    }

    #[test]
    fn entries_expire_after_ten_minutes() {
        let (paths, start) = (Paths::default(), SystemClock.now());
        let at = |seconds| start + Duration::from_secs(seconds);
        paths.learn(to(1), smaller(1400, By::Router), at(0));
        paths.learn(to(1), smaller(1400, By::Router), at(100));
        let known = paths.get(to(1), at(699)).map(|known| known.mtu);
        assert_eq!((known, paths.get(to(2), at(0))), (Some(1400), None));
        assert_eq!((paths.get(to(1), at(700)), paths.len()), (None, 0));
        // An expired entry does not outrank a new finding.
        paths.learn(to(1), smaller(576, By::Router), at(0));
        paths.learn(to(1), smaller(1400, By::Router), at(600));
        let known = paths.get(to(1), at(600)).map(|known| known.mtu);
        assert_eq!(known, Some(1400));
    }

    #[test]
    fn the_smaller_size_counts_and_routers_more_than_guesses() {
        let (paths, now) = (Paths::default(), SystemClock.now());
        let table = [
            (smaller(1064, By::Silence), Some(1064)),
            (smaller(552, By::Silence), Some(552)),
            (smaller(1064, By::Probe), Some(552)),
            (smaller(552, By::Probe), Some(552)),
            (Finding::Larger, None),
            (smaller(552, By::Silence), Some(552)),
            (smaller(1400, By::Router), Some(1400)),
            (smaller(1450, By::Router), Some(1400)),
            (smaller(1300, By::Router), Some(1300)),
            (smaller(552, By::Silence), Some(1300)),
            (Finding::Larger, Some(1300)),
        ];
        for (finding, known) in table {
            paths.learn(to(1), finding, now);
            let found = paths.get(to(1), now).map(|known| known.mtu);
            assert_eq!(found, known, "{finding:?}");
        }
    }

    #[test]
    fn of_too_many_destinations_the_oldest_goes() {
        let (paths, start) = (Paths::default(), SystemClock.now());
        let most = u32::try_from(MOST).unwrap();
        let at = |host: u32| start + Duration::from_micros(host.into());
        for host in 0..2 * most {
            paths.learn(to(host), smaller(1400, By::Router), at(host));
            assert!(paths.len() <= MOST);
        }
        let now = at(2 * most);
        assert!((0..most).all(|host| paths.get(to(host), now).is_none()));
        assert!((most..2 * most).all(|host| paths.get(to(host), now).is_some()));
        // Updating an entry evicts none.
        paths.learn(to(most), smaller(1300, By::Router), now);
        assert_eq!(paths.len(), MOST);
    }
}
