//! Fragments that a stack receives, and those that it sends.
//!
//! Received fragments of all queues are kept in one place ([`ip::reassembly`]), because those of one packet may
//! arrive by several queues. A reassembled packet is handled like any other, whatever its protocol, and whether
//! or not its destination is an address of the stack.
//!
//! Locks: its own, a leaf, taken for fragments only.

use crate::ip;
use crate::ip::fragment::{Progress, fragment};
use crate::ip::icmp::Kind;
use crate::ip::reassembly::{Added, Dropped, Reassembler};
use crate::link::{Frame, Link, Packet, TransmitError};
use crate::lock::{LEAF, Mutex};
use crate::stack::Shared;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::stack) struct Fragments {
    reassembler: Mutex<Reassembler, LEAF>,
    /// There are incomplete packets. Written under the lock.
    waiting: AtomicBool,
}

impl Fragments {
    /// When the next packet expires.
    pub(in crate::stack) fn next_expiry(&self) -> Option<Instant> {
        let waiting = self.waiting.load(Ordering::Relaxed);
        waiting.then(|| self.reassembler.lock().next_expiry())?
    }

    /// Memory of incomplete packets in bytes.
    pub(in crate::stack) fn memory(&self) -> usize {
        self.reassembler.lock().memory()
    }

    fn add(&self, frame: Frame, now: Instant) -> (Added, u64) {
        let mut reassembler = self.reassembler.lock();
        let added = reassembler.add(frame, now);
        let waiting = !reassembler.is_empty();
        self.waiting.store(waiting, Ordering::Relaxed);
        (added, reassembler.take_evicted())
    }

    /// See [`Reassembler::expire`].
    fn expire(&self, now: Instant) -> Option<Option<Frame>> {
        if !self.waiting.load(Ordering::Relaxed) {
            return None;
        }
        let mut reassembler = self.reassembler.lock();
        let expired = reassembler.expire(now);
        let waiting = !reassembler.is_empty();
        self.waiting.store(waiting, Ordering::Relaxed);
        expired
    }

    /// Drops all fragments: the stack is down.
    pub(in crate::stack) fn forget(&self) {
        let forgotten = std::mem::take(&mut *self.reassembler.lock());
        drop(forgotten);
    }
}

impl Shared {
    /// Sends a packet, whose checksum is complete, in fragments, beginning at `progress`. If the link is full,
    /// `progress` has the place to continue.
    pub(in crate::stack) fn send_fragments(
        &self,
        link: &dyn Link,
        (packet, mtu): (&Packet<'_>, usize),
        progress: &mut Option<Progress>,
    ) -> Result<(), TransmitError> {
        let ends = ip::addresses(packet.header);
        let protocol = packet.header[if ends.0.is_ipv4() { 9 } else { 6 }];
        let addressing = &self.addressing;
        let identification = || {
            let next = &addressing.identifications;
            Progress::new(next.next(&addressing.isn, ends, protocol))
        };
        let progress = progress.get_or_insert_with(identification);
        fragment(packet, mtu, progress, |part| link.transmit(part))
    }

    /// Adds a fragment. Returns its packet if that is complete.
    pub(in crate::stack) fn put_together(
        &self,
        link: &dyn Link,
        frame: Frame,
        now: Instant,
    ) -> Option<Frame> {
        let counters = &self.received;
        counters.fragments.add(1);
        let (source, destination) = ip::addresses(&frame.head);
        let copy = source.is_ipv6().then(|| frame.clone());
        let (added, evicted) = self.fragments.add(frame, now);
        counters.reassembly_evicted.add(evicted);
        match added {
            Added::Waits(Some(until)) => self.expires_at(until),
            Added::Waits(None) | Added::Duplicate => {}
            Added::Whole(frame) => {
                counters.reassembled.add(1);
                return Some(frame);
            }
            Added::Dropped(why, kind) => {
                match why {
                    Dropped::Malformed => counters.malformed.add(1),
                    Dropped::Overlap => counters.reassembly_overlaps.add(1),
                    Dropped::Limit => counters.reassembly_evicted.add(1),
                    Dropped::Abandoned => {}
                }
                let told = kind.zip(copy).filter(|_| self.is_own(destination));
                if let Some((kind, frame)) = told {
                    self.icmp_error(link, kind, &frame, now);
                }
            }
        }
        None
    }

    /// Drops expired packets, and sends errors to their sources.
    pub(in crate::stack) fn expire_fragments(&self, link: &dyn Link, now: Instant) {
        while let Some(first) = self.fragments.expire(now) {
            self.received.reassembly_timeouts.add(1);
            let Some(first) = first else { continue };
            let (source, destination) = ip::addresses(&first.head);
            if self.is_own(destination) && !self.is_own(source) {
                self.icmp_error(link, Kind::Reassembly, &first, now);
            }
        }
    }
}
