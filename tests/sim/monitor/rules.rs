//! The checks of each sent segment.

use super::segment::Segment;
use super::view::{Repeats, View, is_older};
use super::{Limits, Verdict};
use std::ops::Range;
use std::time::{Duration, Instant};

/// The MSS of a peer without the option (RFC 9293 3.7.1).
const DEFAULT_MSS: [usize; 2] = [536, 1220];
/// RFC 6928 2: the first flight, and the first one after idle time, leave at once.
const FIRST_FLIGHT: u64 = 14_600;
/// Length of a paced burst, at four windows per RTT at most (twice cwnd, which may be twice the amount
/// in flight).
const BURST: Duration = Duration::from_millis(3);

/// RFC 6298 2.5.
const LARGEST_RTO: Duration = Duration::from_secs(60);

fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(otherwise()) }
}

impl View {
    /// A segment leaves. `size`: payload of each packet that the link makes of it.
    pub(super) fn leaves(
        &mut self,
        (segment, payload): (&Segment, &[u8]),
        size: usize,
        limits: &Limits,
        now: Instant,
    ) -> Verdict {
        if segment.rst {
            return self.check_reset();
        }
        if segment.syn {
            self.check_syn(segment)?;
        }
        self.check_late(limits, now)?;
        self.check_stamps(segment)?;
        self.check_ack(segment, limits, now)?;
        self.check_blocks(segment)?;
        self.check_position(segment)?;
        if segment.occupies() {
            check(!self.silent, || "data after a reset".into())?;
            self.check_backoff(segment, limits, now)?;
            self.check_data(segment, payload)?;
            check_size(self, segment, size, limits)?;
            self.check_burst(segment, limits, now)?;
        }
        Ok(())
    }

    /// Each answers a segment, but for the one that breaks off.
    fn check_reset(&mut self) -> Verdict {
        self.resets += 1;
        self.silent |= self.is_established() && !self.is_over();
        self.reset = true;
        self.due = None;
        let (resets, heard) = (self.resets, self.heard);
        check(resets <= heard + 1, || {
            format!("{resets} resets after {heard} segments")
        })
    }

    /// Options that were not offered must not be used (RFC 7323 1.3, 2.2, 2018 2).
    fn check_syn(&mut self, segment: &Segment) -> Verdict {
        let first = self.out.syn.get_or_insert_with(|| segment.clone());
        check(first.seq == segment.seq, || {
            "another SYN with another number".into()
        })?;
        self.out.end = self.out.end.max(1);
        let Some(theirs) = self.incoming.syn.as_ref().filter(|_| segment.ack.is_some()) else {
            return Ok(());
        };
        let more = (segment.scale.is_some() && theirs.scale.is_none())
            || (segment.sack_permitted && !theirs.sack_permitted)
            || (segment.stamps.is_some() && theirs.stamps.is_none());
        check(!more, || {
            "a SYN|ACK with an option that the SYN has not".into()
        })
    }

    /// RFC 7323 3.2: in every segment or in none; never older; the echo of one that has arrived.
    fn check_stamps(&mut self, segment: &Segment) -> Verdict {
        let agreed = self.agreed(|syn| syn.stamps.is_some());
        let needs = agreed && !segment.syn;
        let Some((value, echo)) = segment.stamps else {
            return check(!needs, || "no timestamp, though both sides offered".into());
        };
        check(agreed || segment.syn, || {
            "a timestamp that is not agreed on".into()
        })?;
        let before = self.stamp_before(segment, value);
        let older = before.is_some_and(|before| is_older(value, before));
        check(!older, || format!("a timestamp that goes back to {value}"))?;
        if segment.ack.is_some() {
            check(self.knows_stamp(echo), || {
                format!("an echo of {echo}, which never arrived")
            })?;
            let before = self.echo.replace(echo);
            let older = before.is_some_and(|before| is_older(echo, before));
            check(!older, || format!("an echo that goes back to {echo}"))?;
        }
        Ok(())
    }

    /// The timestamp that this one must not be older than: the newest so far. A retransmission may have
    /// an older one, but not older than the original's.
    fn stamp_before(&mut self, segment: &Segment, value: u32) -> Option<u32> {
        let end = self.out.end;
        let start = self.out.position(segment.seq, end).max(0).cast_unsigned();
        let behind = start + segment.len as u64 + u64::from(segment.fin || segment.syn);
        let first = self.dates.partition_point(|(behind, _)| *behind <= start);
        let first = self.dates.get(first).map(|(_, value)| *value);
        if behind > end {
            self.dates.push((behind, value));
        }
        if segment.occupies() && !segment.syn && start < end {
            return first;
        }
        self.out.stamp.replace(value)
    }

    /// ACK and window never decrease (RFC 9293 3.8.6), and acknowledged data has arrived.
    fn check_ack(&mut self, segment: &Segment, limits: &Limits, now: Instant) -> Verdict {
        let Some(ack) = segment.ack else {
            self.incoming.edge = 1 + u64::from(segment.window);
            return check(segment.syn, || "a segment without ACK".into());
        };
        let before = self.incoming.acked;
        let ack = self.incoming.position(ack, before);
        let arrived = self.arrived.reach(0);
        check(ack >= before.cast_signed(), || {
            format!("an ACK that goes back from {before} to {ack}")
        })?;
        let ack = ack.cast_unsigned();
        check(ack <= arrived, || {
            format!("an ACK of {ack}, but only {arrived} has arrived")
        })?;
        let shift = self.shift(&self.out, segment);
        let edge = ack + (u64::from(segment.window) << shift);
        let known = self.incoming.edge;
        let ended = self.incoming.fin.is_some_and(|fin| ack > fin);
        // RFC 7323 2.4: by less than a unit it may.
        check(edge + (1 << shift) > known || ended, || {
            format!("a window's edge that goes back from {known} to {edge}")
        })?;
        let at_end = segment.seq == self.bare_seq();
        let idle = !segment.occupies() && at_end && ack == before && edge <= known;
        if idle && segment.blocks().is_empty() {
            self.idle_acks += 1;
            let (idle, heard) = (self.idle_acks, self.heard);
            check(idle <= heard, || {
                format!("{idle} ACKs without new information after {heard} segments")
            })?;
        }
        self.acknowledged(ack);
        self.incoming.edge = known.max(edge);
        let late = now + limits.ack_delay + limits.lateness;
        self.due = (ack < self.taken() && !self.reset).then_some(late);
        Ok(())
    }

    fn bare_seq(&self) -> u32 {
        let initial = self.out.syn.as_ref().map_or(0, |syn| syn.seq);
        initial.wrapping_add(self.out.end as u32)
    }

    /// RFC 9293 3.8.6.3, 5681 4.2: an acknowledgement that has not left in time.
    pub(super) fn check_late(&mut self, limits: &Limits, now: Instant) -> Verdict {
        let due = self.due.filter(|due| *due + limits.lateness < now);
        check(due.is_none(), || {
            let late = due.map(|due| now - due);
            format!(
                "an ACK that is late by {late:?}: up to {} has arrived, up to {} is acknowledged",
                self.taken(),
                self.incoming.acked
            )
        })
    }

    /// RFC 2018 4 and 2883 4.
    fn check_blocks(&mut self, segment: &Segment) -> Verdict {
        if segment.blocks().is_empty() {
            return Ok(());
        }
        check(self.agreed(|syn| syn.sack_permitted), || {
            "a SACK that is not agreed on".into()
        })?;
        let ack = self.incoming.acked;
        let blocks = segment.blocks().iter().map(|(start, end)| {
            let at = |seq| u64::try_from(self.incoming.position(seq, ack));
            Some(at(*start).ok()?..at(*end).ok()?).filter(|block| !block.is_empty())
        });
        let Some(blocks) = blocks.collect::<Option<Vec<_>>>() else {
            return Err("a SACK block that is none".into());
        };
        let (first, second) = (&blocks[0], blocks.get(1));
        let inside = |known: &Range<u64>| known.start <= first.start && first.end <= known.end;
        let tells_again = first.end <= ack || second.is_some_and(inside);
        if tells_again {
            self.check_duplicate(first)?;
        }
        let rest = &blocks[usize::from(tells_again)..];
        for block in rest {
            check(block.start > ack, || {
                format!("a SACK block at {block:?} that the ACK of {ack} includes")
            })?;
            check(self.arrived.covers(block), || {
                format!("a SACK block of {block:?}, which has not arrived")
            })?;
        }
        self.check_first(rest)
    }

    /// RFC 2883 4: each duplicate is reported once at most.
    fn check_duplicate(&mut self, block: &Range<u64>) -> Verdict {
        check(self.twice.covers(block), || {
            format!("a D-SACK of {block:?}, which has arrived once")
        })?;
        self.duplicates_told += 1;
        let (told, again) = (self.duplicates_told, self.again);
        check(told <= again, || {
            format!("{told} D-SACKs of {again} duplicates")
        })
    }

    /// RFC 2018 4: the first block has the segment that was received last.
    fn check_first(&self, blocks: &[Range<u64>]) -> Verdict {
        let ack = self.incoming.acked;
        let first = blocks.first();
        let mut latest = self.latest.iter().filter(|(at, _)| *at > ack);
        // Segments that may have been accepted since then may have moved the ACK.
        let moved = self.latest.iter().rev().take_while(|(_, sure)| !sure);
        let moved = moved.map(|(at, _)| at).any(|at| *at <= ack);
        let none = moved || latest.clone().all(|(_, sure)| !sure);
        let right = latest.any(|(at, _)| first.is_some_and(|first| first.contains(at)));
        check(none || right || self.waited, || {
            let latest = &self.latest;
            format!("a first SACK block of {first:?}, though {latest:?} came last")
        })
    }

    fn check_position(&self, segment: &Segment) -> Verdict {
        let (acked, end) = (self.out.acked, self.out.end);
        let start = self.out.position(segment.seq, end);
        let right = match segment.syn {
            true => start == 0,
            // A keep-alive begins one before (RFC 9293 3.8.4).
            false => start >= acked.cast_signed() - 1 && start <= end.cast_signed(),
        };
        check(right || segment.occupies(), || {
            format!("a bare ACK at {start}, not within {acked} and {end}")
        })
    }

    /// RFC 6298 5.5: repeated retransmissions of the same first byte, without new information from the
    /// peer. The first time it may be a probe; then intervals double up to the largest.
    fn check_backoff(&mut self, segment: &Segment, limits: &Limits, now: Instant) -> Verdict {
        let start = self.out.position(segment.seq, self.out.end);
        let start = start.max(0).cast_unsigned();
        let Some(repeats) = self.repeats.get_mut(&start) else {
            let first = Repeats {
                last: now,
                interval: Duration::ZERO,
                intervals: 0,
            };
            self.repeats.insert(start, first);
            return Ok(());
        };
        let (before, interval) = (repeats.interval, now - repeats.last);
        let least = match repeats.intervals {
            0 | 1 => before,
            _ => (2 * before).min(LARGEST_RTO),
        };
        *repeats = Repeats {
            last: now,
            interval,
            intervals: repeats.intervals + 1,
        };
        let slack = 3 * limits.lateness + Duration::from_millis(1);
        check(interval + slack >= least, || {
            format!("{start} is sent again after {interval:?}, and before that after {before:?}")
        })
    }

    fn check_data(&mut self, segment: &Segment, payload: &[u8]) -> Verdict {
        if segment.syn {
            return check(segment.len == 0 && !segment.fin, || {
                "a SYN with more than options".into()
            });
        }
        let (behind, edge) = (self.out.end, self.out.edge);
        let start = self.out.position(segment.seq, behind).cast_unsigned();
        let range = start..start + segment.len as u64;
        let end = range.end + u64::from(segment.fin);
        check((1..=behind).contains(&start), || {
            format!("data at {start}, and all before ends at {behind}")
        })?;
        // RFC 9293 3.8.6.1: probes have a byte.
        let probe = segment.len <= 1 && start >= edge;
        check(end <= edge || probe, || {
            format!("data up to {end}, beyond the edge at {edge}")
        })?;
        if let Some(fin) = self.out.fin {
            check(range.end <= fin, || format!("data behind the FIN at {fin}"))?;
        }
        if segment.fin {
            let fin = *self.out.fin.get_or_insert(range.end);
            check(fin == range.end && fin > self.sent.len() as u64, || {
                format!("a FIN at {}, not behind all that was sent", range.end)
            })?;
        }
        let from = usize::try_from(start - 1).unwrap();
        let known = self.sent.get(from..).unwrap_or_default();
        let same = known.len().min(payload.len());
        check(known[..same] == payload[..same], || {
            format!("other bytes at {start} than before")
        })?;
        self.sent.extend_from_slice(&payload[same..]);
        self.out.end = behind.max(end);
        Ok(())
    }

    /// With a long RTT, a burst is at most a first flight, or paced.
    fn check_burst(&mut self, segment: &Segment, limits: &Limits, now: Instant) -> Verdict {
        if self.burst.0 != Some(now) {
            self.burst = (Some(now), 0);
        }
        self.burst.1 += segment.len as u64;
        if limits.round_trip < BURST {
            return Ok(());
        }
        let share = 4.0 * BURST.as_secs_f64() / limits.round_trip.as_secs_f64();
        let paced = (self.widest as f64 * share) as u64;
        let most = FIRST_FLIGHT.max(2 * limits.mtu as u64) + paced + 4 * limits.mtu as u64;
        let burst = self.burst.1;
        check(burst <= most, || {
            format!("{burst} bytes at once, more than {most}")
        })
    }
}

/// RFC 9293 3.7.1, 6691: payload and options come to the peer's MSS, and packets to the link's MTU.
fn check_size(view: &View, segment: &Segment, size: usize, limits: &Limits) -> Verdict {
    if segment.len == 0 {
        return Ok(());
    }
    let v6 = usize::from(segment.source.is_ipv6());
    let told = view.incoming.syn.as_ref().and_then(|syn| syn.mss);
    let mss = told.map_or(DEFAULT_MSS[v6], usize::from);
    check(size + segment.options <= mss, || {
        format!("{size} bytes in a segment, and the peer's MSS is {mss}")
    })?;
    let packet = segment.headers + size;
    check(packet <= limits.mtu, || {
        format!("a packet of {packet} bytes, and the MTU is {}", limits.mtu)
    })?;
    let whole = segment.headers + segment.len;
    let most = limits.segments[v6].unwrap_or(0);
    check(size == segment.len || whole <= most, || {
        format!("a packet of {whole} bytes for the link to cut, which takes {most}")
    })
}
