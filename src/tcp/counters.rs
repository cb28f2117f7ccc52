//! Counters of connections.

pub(crate) use crate::counter::Counter;
use std::cell::Cell;

/// Counters of connections.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Segments given to the link.
    pub(crate) sent: Counter,
    /// Retransmissions by loss detection (SACK, duplicate ACKs) and tail loss probes.
    pub(crate) repaired: Counter,
    /// Segments that the link refused for good.
    pub(crate) lost: Counter,
    /// Times that the link had no room.
    pub(crate) link_full: Counter,
    /// Segments that were not accepted.
    pub(crate) refused: Counter,
    /// Segments dropped because a backlog was full.
    pub(crate) backlog_full: Counter,
    /// ICMP errors that quote a segment in flight.
    pub(crate) icmp_errors: Counter,
    /// Times that an ICMP error made a connection send smaller packets.
    pub(crate) mtu_lowered: Counter,
    /// Other ICMP errors.
    pub(crate) icmp_ignored: Counter,
    /// Connections reset because an invariant was broken.
    pub(crate) broken: Counter,
    /// Payload bytes of the segments given to the link.
    pub(crate) bytes_sent: Counter,
    /// Retransmitted segments and their bytes: those that begin before SND.MAX.
    pub(crate) sent_again: Counter,
    pub(crate) bytes_sent_again: Counter,
    /// Connections opened by this side, and by peers.
    pub(crate) active_opens: Counter,
    pub(crate) passive_opens: Counter,
    /// Those of them that ended before they were established.
    pub(crate) attempts_failed: Counter,
    /// Established connections that did not end by closing.
    pub(crate) resets: Counter,
}

/// Segments sent in one step of a connection. They are added to the counters once, at the end of the
/// step.
#[derive(Debug)]
pub(crate) struct Sent<'a> {
    counters: &'a Counters,
    segments: Cell<u64>,
    bytes: Cell<u64>,
    again: Cell<(u64, u64)>,
}

impl<'a> Sent<'a> {
    pub(crate) fn new(counters: &'a Counters) -> Sent<'a> {
        Sent {
            counters,
            segments: Cell::new(0),
            bytes: Cell::new(0),
            again: Cell::new((0, 0)),
        }
    }

    /// Counts a segment with this many bytes of payload. `again`: it is a retransmission.
    pub(crate) fn add(&self, bytes: usize, again: bool) {
        let bytes = bytes as u64;
        self.segments.set(self.segments.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
        if again {
            let (segments, all) = self.again.get();
            self.again.set((segments + 1, all + bytes));
        }
    }
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        let add = |counter: &Counter, count| {
            if count > 0 {
                counter.add(count);
            }
        };
        add(&self.counters.sent, self.segments.get());
        add(&self.counters.bytes_sent, self.bytes.get());
        let (segments, bytes) = self.again.get();
        add(&self.counters.sent_again, segments);
        add(&self.counters.bytes_sent_again, bytes);
    }
}

impl Counters {
    /// The sum of several sets of counters.
    pub(crate) fn sum<'a>(all: impl Iterator<Item = &'a Counters> + Clone) -> Counters {
        let sum = |one: fn(&Counters) -> &Counter| {
            Counter::new(all.clone().map(|counters| one(counters).get()).sum())
        };
        Counters {
            sent: sum(|all| &all.sent),
            repaired: sum(|all| &all.repaired),
            lost: sum(|all| &all.lost),
            link_full: sum(|all| &all.link_full),
            refused: sum(|all| &all.refused),
            backlog_full: sum(|all| &all.backlog_full),
            icmp_errors: sum(|all| &all.icmp_errors),
            mtu_lowered: sum(|all| &all.mtu_lowered),
            icmp_ignored: sum(|all| &all.icmp_ignored),
            broken: sum(|all| &all.broken),
            bytes_sent: sum(|all| &all.bytes_sent),
            sent_again: sum(|all| &all.sent_again),
            bytes_sent_again: sum(|all| &all.bytes_sent_again),
            active_opens: sum(|all| &all.active_opens),
            passive_opens: sum(|all| &all.passive_opens),
            attempts_failed: sum(|all| &all.attempts_failed),
            resets: sum(|all| &all.resets),
        }
    }
}
