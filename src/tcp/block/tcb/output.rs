//! Transmission, in this order: resets, the handshake, SACK for out-of-order data, retransmissions,
//! probes, new data, acknowledgements.

use super::{News, Reset, Tcb};
use crate::tcp::block::congestion::rate::Departure;
use crate::tcp::block::pace::Pacer;
use crate::tcp::block::recovery::Phase;
use crate::tcp::block::segment::{
    ACK, Emission, FIN, PSH, RST, SACK_BLOCKS, SYN, Segment, SegmentOptions, Timestamps, sack_len,
};
use crate::tcp::block::sender::Choice;
use crate::tcp::block::state;
use crate::tcp::block::time::Instant;
use crate::tcp::block::timers::Timer;
use crate::tcp::state::TcpState;
use std::ops::Range;
use std::time::Duration;

/// RFC 9293 3.8.6.1: maximum interval between probes.
const LONGEST_PERSIST: Duration = Duration::from_secs(60);

impl Tcb {
    /// The next packet to send, which counts as sent. `most`: maximum payload of a packet, if the link
    /// cuts it into segments. `None`: nothing to send until the next event.
    pub(crate) fn poll_transmit(&mut self, most: usize, now: Instant) -> Option<Emission> {
        if let Some(reset) = self.reset.take() {
            return Some(self.emit_reset(reset));
        }
        match self.state {
            TcpState::Closed | TcpState::Listen => return None,
            TcpState::SynSent | TcpState::SynReceived => return self.emit_handshake(now),
            _ => {}
        }
        if self.delayed_ack.is_due() && self.agreed.sack && self.receiver.has_blocks() {
            return Some(self.emit_ack(now));
        }
        let data = state::may_send(self.state)
            .then(|| self.emit_data(most, now))
            .flatten();
        data.or_else(|| self.emit_due_ack(now))
    }

    // Segments without data.

    fn bare(&self, segment: Segment) -> Emission {
        Emission {
            segment,
            payload: 0..0,
            size: 0,
            again: false,
            markable: false,
            dont_fragment: true,
        }
    }

    /// RFC 9293 3.10.5 and 3.10.7.3.
    fn emit_reset(&mut self, reset: Reset) -> Emission {
        let segment = match reset {
            Reset::Own => Segment {
                seq: self.sender.bare_seq(),
                ack: self.receiver.nxt_seq(),
                flags: RST | ACK,
                ..Segment::default()
            },
            Reset::Answer(seq) => Segment {
                seq,
                flags: RST,
                ..Segment::default()
            },
        };
        self.bare(segment)
    }

    fn stamps(&self, now: Instant) -> Option<Timestamps> {
        let clock = self.stamps.as_ref()?;
        Some(Timestamps {
            value: clock.at(now),
            echo: self.receiver.echo(),
        })
    }

    /// A SYN, or SYN|ACK.
    fn emit_handshake(&mut self, now: Instant) -> Option<Emission> {
        if !self.handshake.due {
            return None;
        }
        self.handshake.due = false;
        let first = self.handshake.sent_at.is_none();
        self.handshake.sent_at.get_or_insert(now);
        let doubled = self.recovery.timeout() * (1 << self.handshake.retransmissions.min(6));
        let wait = doubled.min(Duration::from_secs(60));
        self.timers.set(Timer::Handshake, now + wait);
        let answer = self.state == TcpState::SynReceived;
        let agreed = if answer { self.agreed } else { self.offered };
        let (flags, ack, window) = if answer {
            let advertised = self.receiver.advertise_syn();
            (
                SYN | ACK | self.ecn.syn_ack(),
                advertised.ack,
                advertised.window,
            )
        } else {
            let flags = SYN | self.ecn.syn(self.handshake.retransmissions);
            (flags, 0, self.receiver.syn_window())
        };
        let mut emission = self.bare(Segment {
            seq: self.sender.iss(),
            ack,
            flags,
            window,
            options: SegmentOptions {
                mss: Some(self.path.offer()),
                window_scale: agreed.scaled.then(|| self.receiver.scale()),
                sack_permitted: agreed.sack,
                timestamps: self.stamps(now).filter(|_| agreed.timestamps),
                ..SegmentOptions::default()
            },
            len: 0,
            marked: false,
        });
        emission.again = !first;
        Some(emission)
    }

    /// Maximum number of SACK blocks: one less with timestamps (RFC 2018 3).
    fn most_blocks(&self) -> usize {
        match self.agreed.sack {
            true => SACK_BLOCKS - usize::from(self.agreed.timestamps),
            false => 0,
        }
    }

    /// Bytes of the SACK option of a segment that is sent now.
    fn sack_room(&self) -> usize {
        sack_len(self.receiver.blocks(self.most_blocks()))
    }

    /// Length of the TCP header of a segment with data that is sent now.
    pub(crate) fn header_len(&self) -> usize {
        self.path.tcp_header_len() + self.sack_room()
    }

    /// Bytes of payload in a full segment that is sent now (RFC 6691: options take room).
    fn full(&self) -> usize {
        (self.path.mss().saturating_sub(self.sack_room())).max(1)
    }

    /// A segment with this sequence number and an acknowledgement. All of them carry SACK blocks (RFC
    /// 2018 4).
    fn head(&mut self, seq: u32, flags: u8, len: usize, now: Instant) -> Segment {
        let sack = self.receiver.sack(self.most_blocks());
        let advertised = self.receiver.advertise();
        self.delayed_ack.sent(len > 0, now);
        self.timers.stop(Timer::DelayedAck);
        Segment {
            seq,
            ack: advertised.ack,
            flags: ACK | flags | self.ecn.echo(),
            window: advertised.window,
            options: SegmentOptions {
                timestamps: self.stamps(now),
                sack,
                ..SegmentOptions::default()
            },
            len,
            marked: false,
        }
    }

    fn emit_ack(&mut self, now: Instant) -> Emission {
        let seq = self.sender.bare_seq();
        let segment = self.head(seq, 0, 0, now);
        if let Some(News::TimeWait(record)) = self.news.last_mut() {
            // The record continues from here: timestamps must not decrease (RFC 7323 3.2).
            record.timestamps = segment.options.timestamps;
        }
        self.bare(segment)
    }

    fn emit_due_ack(&mut self, now: Instant) -> Option<Emission> {
        if std::mem::take(&mut self.keep_alive_due) {
            // RFC 9293 3.8.4: one sequence number below what the peer expects.
            let mut emission = self.emit_ack(now);
            emission.segment.seq = self.sender.bare_seq().wrapping_sub(1);
            return Some(emission);
        }
        self.delayed_ack.is_due().then(|| self.emit_ack(now))
    }

    // Segments with data.

    /// The range of positions as a packet: its payload, and the FIN if it is included.
    fn packet(&mut self, range: Range<u64>, again: bool, now: Instant) -> Emission {
        let payload = range.start.min(self.sender.written())..range.end.min(self.sender.written());
        let len = usize::try_from(payload.end - payload.start).unwrap_or(0);
        let mut flags = 0;
        if range.end > self.sender.written() {
            flags |= FIN;
        }
        if len > 0 && payload.end == self.sender.written() {
            flags |= PSH;
        }
        let seq = self.sender.seq(range.start);
        let size = self.full().min(len);
        Emission {
            segment: self.head(seq, flags, len, now),
            payload,
            size,
            again,
            markable: false,
            dont_fragment: self.path.dont_fragment(),
        }
    }

    fn emit_data(&mut self, most: usize, now: Instant) -> Option<Emission> {
        if self.recovery.probe_due()
            && let Some(probe) = self.emit_tail_probe(now)
        {
            self.note_departure(&probe, now);
            return Some(probe);
        }
        let rate = self.congestion.pace(self.round_trip());
        let mss = self.full() as u64;
        let most = (most as u64).max(mss) / mss * mss;
        let free = self.pacer.free();
        let most = rate.map_or(most, |rate| most.min(Pacer::burst(rate, mss).max(free)));
        let most = if self.ecn.must_send_cwr() { mss } else { most };
        let idle = self.recovery.record().is_empty();
        if let Some(at) = self.pacer.release(now).filter(|_| rate.is_some() && !idle) {
            if self.recovery.owes() || self.sender.nxt() < self.sender.end() {
                self.timers.set(Timer::Pace, at);
                if self.congestion.is_model() {
                    self.note_limit(false);
                }
            }
            return None;
        }
        let emission = self
            .emit_again(most, now)
            .or_else(|| self.emit_new(most, now));
        if let Some(emission) = &emission {
            let bytes = emission.segment.len as u64;
            self.note_departure(emission, now);
            match rate {
                Some(rate) => self.pacer.sent(bytes, (rate, mss), now),
                None => self.timers.stop(Timer::Pace),
            }
        }
        emission
    }

    /// Reports a sent packet to congestion control and pacer. It is in the record, unless it is a probe
    /// of a closed window.
    fn note_departure(&mut self, emission: &Emission, now: Instant) {
        self.congestion.sent(&Departure {
            bytes: emission.segment.len as u64,
            in_flight: self.recovery.pipe(),
            record: self.recovery.record(),
            now,
        });
    }

    /// Retransmission of lost data.
    fn emit_again(&mut self, most: u64, now: Instant) -> Option<Emission> {
        let window = self.congestion.window();
        let range = self.recovery.next(window, most)?;
        self.path.resent(&range, now);
        let dated = self.recovery.date(range.start, now);
        let mut emission = self.packet(range.clone(), true, now);
        emission.segment.options.timestamps = self.stamps(dated);
        self.recovery
            .resent(range, emission.full(), now, &mut self.timers);
        Some(emission)
    }

    /// New data, within both windows.
    fn emit_new(&mut self, most: u64, now: Instant) -> Option<Emission> {
        if self.recovery.owes() {
            self.note_limit(true);
            return None;
        }
        let idle = self.recovery.record().is_empty();
        if idle && self.sender.nxt() < self.sender.end() {
            let rto = self.recovery.timeout();
            if self.congestion.wake(rto, now) {
                self.pacer.allow(self.congestion.initial_burst());
            }
        }
        let mss = self.full() as u64;
        let room = self
            .congestion
            .window()
            .saturating_sub(self.recovery.pipe());
        if let Some(size) = self.path.probe_size(now)
            && let Some(emission) = self.emit_larger(size, room, now)
        {
            return Some(emission);
        }
        match self.sender.choose(room, (mss, most)) {
            Choice::Send { len, fin } => {
                self.timers.stop(Timer::Persist);
                Some(self.send_new(len, fin, now))
            }
            Choice::Closed => {
                self.note_limit(false);
                self.persist(idle, now)
            }
            choice @ (Choice::Congested | Choice::Nagle | Choice::Nothing) => {
                self.timers.stop(Timer::Persist);
                self.sender.cancel_probe();
                self.note_limit(choice == Choice::Congested);
                None
            }
        }
    }

    /// A path MTU probe (RFC 4821 7.3), sent among other segments, since its loss alone would cost a
    /// timeout.
    fn emit_larger(&mut self, size: usize, room: u64, now: Instant) -> Option<Emission> {
        let len = size as u64;
        let start = self.sender.nxt();
        let queued = self.sender.written() - start.min(self.sender.written());
        let usable = self.sender.edge().saturating_sub(start);
        let enough = 4 * len <= queued.min(usable) && room >= self.path.mss() as u64;
        let enough = enough && self.sack_room() == 0;
        if !enough || self.recovery.phase() != Phase::Open {
            return None;
        }
        let mut emission = self.packet(start..start + len, false, now);
        emission.size = size;
        self.mark_new(&mut emission);
        self.path.probe_sent(start..start + len);
        self.sender.sent(len, false, len);
        self.recovery
            .sent(start..start + len, size, now, &mut self.timers);
        Some(emission)
    }

    /// RFC 3168 6.1.2, 6.1.5, 6.1.6: only new data that is not a probe of a closed window.
    fn mark_new(&mut self, emission: &mut Emission) {
        if emission.segment.len > 0 {
            let (flags, markable) = self.ecn.sent();
            emission.segment.flags |= flags;
            emission.markable = markable;
        }
    }

    fn send_new(&mut self, len: u64, fin: bool, now: Instant) -> Emission {
        let start = self.sender.nxt();
        let range = start..start + len + u64::from(fin);
        let full = self.full() as u64;
        let mut emission = self.packet(range.clone(), false, now);
        self.mark_new(&mut emission);
        self.sender.sent(len, fin, full);
        self.recovery
            .sent(range, emission.full(), now, &mut self.timers);
        emission
    }

    /// RFC 7661 4.1.
    fn note_limit(&mut self, limited: bool) {
        let span = (self.sender.una(), self.sender.nxt());
        self.congestion
            .validate(limited, self.recovery.pipe(), span);
    }

    /// A closed window: with data in flight, its acknowledgement will update the window; otherwise the
    /// peer is probed, for the first time after an RTO (RFC 9293 3.8.6.1).
    fn persist(&mut self, idle: bool, now: Instant) -> Option<Emission> {
        if !idle {
            return None;
        }
        if !self.sender.probe_due() {
            if !self.timers.is_set(Timer::Persist) {
                self.set_persist(now);
            }
            return None;
        }
        let start = self.sender.nxt();
        let (len, fin) = self.sender.probe();
        // A probe does not count as a retransmission.
        let emission = self.packet(start..start + len + u64::from(fin), false, now);
        self.set_persist(now);
        Some(emission)
    }

    fn set_persist(&mut self, now: Instant) {
        let doubled = self.recovery.timeout() * (1 << self.sender.probes().min(16));
        self.timers
            .set(Timer::Persist, now + doubled.min(LONGEST_PERSIST));
    }

    /// RFC 8985 7.3: new data if there is some and the window has room; else the last segment again.
    fn emit_tail_probe(&mut self, now: Instant) -> Option<Emission> {
        let mss = self.full() as u64;
        if let Choice::Send { len, fin } = self.sender.choose(u64::MAX, (mss, mss)) {
            return Some(self.send_new(len, fin, now));
        }
        let Some(range) = self.recovery.tail(mss) else {
            self.recovery.cancel_probe();
            return None;
        };
        let emission = self.packet(range.clone(), true, now);
        let nxt = self.sender.nxt();
        self.recovery.probed(&range, nxt, now, &mut self.timers);
        Some(emission)
    }
}
