//! A monitor on the wire, beside each stack: for every received frame and every sent packet it checks
//! the rules that an observer of these alone can check.
//!
//! | rule | RFC |
//! |---|---|
//! | no data beyond the right edge that the peer has advertised, except for probes of a byte | 9293 3.8.6 |
//! | ACK and right edge never decrease; acknowledged data has arrived | 9293 3.8.6, 7323 2.4 |
//! | one SYN, one FIN, no data after it; retransmissions have the same bytes | 9293 3.4 |
//! | SACK blocks have arrived, the first one has the latest segment; a D-SACK block has arrived twice | 2018 4, 2883 4 |
//! | timestamps and their echoes never decrease, are present if negotiated, and echo received ones; a retransmission may have an older one, down to the original's | 7323 3.2, 4.3 |
//! | options are answers to offers; segments are no larger than the peer's MSS and the link's MTU | 9293 3.7.1, 6691, 7323 1.3 |
//! | retransmissions without an answer back off exponentially, except for a first probe | 6298 5.5, 8985 7.3 |
//! | a reset, or an ACK without information, answers a segment or ends the connection | 9293 3.10.7, 5961 7 |
//! | with a long RTT, bursts are a first flight or paced | 6928 2 |
//! | every second full segment and out-of-order data are acknowledged, in time | 9293 3.8.6.3, 5681 4.2 |
//! | checksums are right | 9293 3.1 |
//!
//! It shares only the format of frames and packets with the crate. A violation is reported with the
//! connection's last segments.

mod ranges;
mod rules;
mod segment;
#[cfg(test)]
mod tests;
mod view;

use segment::{Segment, Unread};
use sosplice::link::{Capabilities, Checksum, Packet};
use std::collections::{HashMap, VecDeque};
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use view::View;

/// The rule that was broken, if one was.
type Verdict = Result<(), String>;

/// Segments of each connection that are kept.
const HISTORY: usize = 60;

/// The settings of a link and a stack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    mtu: usize,
    /// The largest packet of IPv4 and of IPv6 that the link cuts.
    segments: [Option<usize>; 2],
    /// How long an acknowledgement may wait.
    ack_delay: Duration,
    /// How late something may be done that is due.
    lateness: Duration,
    /// The least that a packet and its answer take.
    round_trip: Duration,
}

impl Limits {
    pub(crate) fn new(
        link: &Capabilities,
        ack_delay: Option<Duration>,
        lateness: Duration,
        round_trip: Duration,
    ) -> Limits {
        Limits {
            mtu: link.mtu,
            segments: [link.segment_v4, link.segment_v6],
            ack_delay: ack_delay.unwrap_or_default(),
            lateness,
            round_trip,
        }
    }
}

/// Frames that a stack takes from its link at once. It may send before it has looked at all of them.
#[derive(Debug, Clone, Copy, Default)]
struct Batch {
    number: u64,
    frames: usize,
}

/// A segment that has left or arrived.
#[derive(Debug)]
struct Passed {
    at: Instant,
    leaves: bool,
    segment: Segment,
}

#[derive(Debug, Default)]
struct Connection {
    view: View,
    history: VecDeque<Passed>,
}

impl Connection {
    fn pass(&mut self, segment: &Segment, leaves: bool, at: Instant) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(Passed {
            at,
            leaves,
            segment: segment.clone(),
        });
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Monitor {
    start: Instant,
    limits: Limits,
    /// By the addresses of this side and of the other.
    connections: HashMap<(SocketAddr, SocketAddr), Connection>,
    /// The link was full, and nothing has left since: everything may be late.
    blocked: bool,
    batch: Batch,
    /// The first rule that was broken, and by which connection.
    broken: Option<String>,
}

impl Monitor {
    pub(crate) fn new(limits: Limits, start: Instant) -> Monitor {
        Monitor {
            start,
            limits,
            connections: HashMap::new(),
            blocked: false,
            batch: Batch::default(),
            broken: None,
        }
    }

    /// The first violation so far, if any.
    pub(crate) fn verdict(&self) -> Verdict {
        self.broken.clone().map_or(Ok(()), Err)
    }

    /// At the end of a run: nothing is overdue.
    pub(crate) fn finish(&mut self, now: Instant) -> Verdict {
        let limits = self.limits;
        let late = self.connections.iter_mut().find_map(|(ends, connection)| {
            let late = connection.view.check_late(&limits, now);
            Some((*ends, late.err()?))
        });
        if let Some((ends, why)) = late {
            self.breaks(ends, &why);
        }
        self.verdict()
    }

    /// The next frames arrive as one batch.
    pub(crate) fn batch(&mut self, frames: usize) {
        self.batch.number += 1;
        self.batch.frames = frames;
    }

    /// A frame reaches the stack.
    pub(crate) fn arrives(&mut self, frame: &[u8], checksum: Checksum, now: Instant) {
        // A link that cuts packets leaves the sum of the whole one's pseudo-header in each.
        let checksum = match checksum.is_vouched_for() {
            true => Checksum::Verified,
            false => checksum,
        };
        let segment = match Segment::read(frame, checksum) {
            Ok(segment) => segment,
            // An ICMP error may concern each connection.
            Err(Unread::Other) => return self.reset_intervals(),
            Err(Unread::Malformed | Unread::Checksum) => return,
        };
        let ends = (segment.destination, segment.source);
        let connection = self.connections.entry(ends).or_default();
        connection.pass(&segment, false, now);
        let late = connection.view.check_late(&self.limits, now);
        let delay = self.limits.ack_delay;
        connection.view.arrives(&segment, (self.batch, delay), now);
        if self.blocked {
            connection.view.due = None;
        }
        if let Err(why) = late {
            self.breaks(ends, &why);
        }
    }

    /// The link has taken a packet from the stack; `bytes` are all of it.
    pub(crate) fn leaves(&mut self, packet: &Packet<'_>, bytes: &[u8], now: Instant) {
        self.blocked = false;
        let segment = match Segment::read(bytes, packet.checksum) {
            Ok(segment) => segment,
            Err(Unread::Other) => return,
            Err(why) => {
                let why = format!("a packet that is not right: {why:?}: {bytes:?}");
                self.broken.get_or_insert(why);
                return;
            }
        };
        let size = packet.segment.map_or(segment.len, |size| size.get().into());
        let size = size.min(segment.len);
        let ends = (segment.source, segment.destination);
        let connection = self.connections.entry(ends).or_default();
        connection.pass(&segment, true, now);
        let view = &mut connection.view;
        let other = |syn: &Segment| segment.syn && syn.seq != segment.seq;
        if view.out.syn.as_ref().is_some_and(other) && view.is_over() {
            *view = view.next(now);
        }
        let payload = &bytes[bytes.len() - segment.len..];
        let verdict = view.leaves((&segment, payload), size, &self.limits, now);
        view.waited = false;
        if let Err(why) = verdict {
            self.breaks(ends, &why);
        }
    }

    /// The link had no room for a packet.
    pub(crate) fn full(&mut self) {
        self.blocked = true;
        self.reset_intervals();
        for connection in self.connections.values_mut() {
            connection.view.due = None;
            connection.view.waited = true;
        }
    }

    fn reset_intervals(&mut self) {
        for connection in self.connections.values_mut() {
            connection.view.repeats.clear();
        }
    }

    fn breaks(&mut self, ends: (SocketAddr, SocketAddr), why: &str) {
        if self.broken.is_some() {
            return;
        }
        let (local, remote) = ends;
        let mut text = format!("the wire monitor of {local}, peer {remote}: {why}\n");
        let history = self.connections.get(&ends).map(|one| &one.history);
        for passed in history.into_iter().flatten() {
            let at = passed.at - self.start;
            let way = if passed.leaves { "|>" } else { ">|" };
            let line = format!("{:>14.6} {way} {}", at.as_secs_f64(), passed.segment);
            writeln!(text, "{line}").unwrap();
        }
        self.broken = Some(text);
    }
}
