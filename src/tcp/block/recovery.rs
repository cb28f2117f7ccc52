//! Loss recovery: the transmit record, loss detection, and retransmission.
//!
//! RFC 8985 (RACK-TLP) with a peer that supports SACK, RFC 6582 (NewReno) and 3042 without; RFC 6937bis
//! (PRR) for the sending rate meanwhile; RFC 6298 for timeouts. A spurious recovery or timeout is
//! undone: if all data is acknowledged before the first retransmission, by timestamps (Eifel, RFC 3522,
//! 4015), by D-SACK (RFC 3708), or if original transmissions are acknowledged after a timeout (F-RTO,
//! RFC 5682 3).
//!
//! One file for each idea: [`record`], [`rack`], [`tlp`], [`prr`], [`rto`], [`rtt`]; this one combines
//! them. Deterministic; time is an argument.

pub(crate) mod prr;
pub(crate) mod rack;
pub(crate) mod record;
pub(crate) mod rto;
pub(crate) mod rtt;
pub(crate) mod tlp;

use super::congestion::{AckSample, Congestion};
use super::range_set::RangeSet;
use super::seq::older;
use super::stamp::StampClock;
use super::timers::{Timer, Timers};
use crate::tcp::block::time::Instant;
use prr::Prr;
use rack::Rack;
use record::{Record, Sent, Status};
use rto::Rto;
use rtt::Rtt;
use smallvec::SmallVec;
use std::ops::Range;
use std::time::Duration;
use tlp::{Tlp, Verdict};

/// RFC 5681 3.2: number of duplicate acknowledgements that indicate a loss without SACK.
const DUPLICATES: u64 = 3;

/// An acceptable acknowledgement.
#[derive(Debug, Clone)]
pub(crate) struct Ack<'a> {
    /// The new SND.UNA.
    pub(crate) una: u64,
    /// SND.NXT.
    pub(crate) nxt: u64,
    /// SACK blocks (RFC 2018), in `una..nxt`.
    pub(crate) blocks: &'a [Range<u64>],
    /// D-SACK block (RFC 2883).
    pub(crate) duplicate: Option<Range<u64>>,
    /// TSecr, with timestamps.
    pub(crate) echo: Option<u32>,
    /// It is a duplicate acknowledgement (RFC 5681 2).
    pub(crate) repeated: bool,
    pub(crate) now: Instant,
}

/// The phase of loss recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    /// Fast recovery until RecoveryPoint is acknowledged.
    Recovery,
    /// After a retransmission timeout, until RecoveryPoint is acknowledged.
    Loss,
}

/// State for detecting a spurious recovery.
#[derive(Debug, Clone)]
struct Episode {
    /// SND.UNA when it began.
    began: u64,
    /// The first retransmission: the time of its timestamp, and its end.
    first: Option<(Instant, u64)>,
    /// Retransmitted bytes, and those of them reported as duplicates.
    resent: u64,
    duplicated: u64,
}

/// The data delivered by an acknowledgement.
#[derive(Debug, Default)]
struct Sample {
    /// Bytes acknowledged cumulatively, and newly delivered bytes (cumulatively or by SACK).
    acked: u64,
    delivered: u64,
    /// Transmission times of the first and the last segment that were sent once.
    oldest: Option<Instant>,
    newest: Option<Instant>,
    /// A segment that was sent once, before the latest timeout, was delivered.
    original: bool,
    reordered: bool,
    /// A retransmission is acknowledged: what was sent once before or behind it may have waited for it.
    repeated: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Recovery {
    record: Record,
    /// The SACKed ranges above SND.UNA: the entries of `record` with status `Sacked`.
    scoreboard: RangeSet,
    rtt: Rtt,
    rto: Rto,
    rack: Rack,
    tlp: Tlp,
    prr: Prr,
    phase: Phase,
    /// RecoveryPoint: SND.NXT when the present recovery began.
    recovery_point: u64,
    episode: Option<Box<Episode>>,
    /// Duplicate acknowledgements of a peer without SACK, less the segments acknowledged since.
    dup_acks: u64,
    /// SACK was negotiated.
    sack: bool,
    /// `Some` if timestamps were negotiated.
    stamps: Option<StampClock>,
    /// The time of the timestamp of the latest retransmission.
    last_rexmit_stamp: Option<Instant>,
    /// Payload of a full segment.
    mss: u64,
}

impl Recovery {
    /// A value of each cache line.
    pub(crate) fn lines(&self) -> impl Sized + use<> {
        (
            self.rack.line(),
            self.record.in_flight(),
            self.scoreboard.is_empty(),
            self.rtt.least(),
            self.rtt.smoothed(),
            self.recovery_point,
            self.mss,
        )
    }

    pub(crate) fn new(minimum_rto: Duration, mss: usize) -> Recovery {
        Recovery {
            record: Record::default(),
            scoreboard: RangeSet::default(),
            rtt: Rtt::default(),
            rto: Rto::new(minimum_rto),
            rack: Rack::new(),
            tlp: Tlp::default(),
            prr: Prr::default(),
            phase: Phase::Open,
            recovery_point: 0,
            episode: None,
            dup_acks: 0,
            sack: false,
            stamps: None,
            last_rexmit_stamp: None,
            mss: mss.max(1) as u64,
        }
    }

    /// The options negotiated in the handshake.
    pub(crate) fn agree(&mut self, sack: bool, stamps: Option<StampClock>) {
        self.sack = sack;
        self.stamps = stamps;
    }

    pub(crate) fn set_mss(&mut self, mss: usize) {
        self.mss = mss.max(1) as u64;
    }

    /// The RTT sample of the handshake.
    pub(crate) fn sample_handshake(&mut self, rtt: Duration, now: Instant) {
        self.rtt.sample(rtt, now);
    }

    pub(crate) fn rtt(&self) -> &Rtt {
        &self.rtt
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// The present retransmission timeout.
    pub(crate) fn timeout(&self) -> Duration {
        self.rto.timeout(&self.rtt)
    }

    /// Timeouts in a row.
    pub(crate) fn timeouts(&self) -> u32 {
        self.rto.backoff()
    }

    /// Bytes in the network.
    pub(crate) fn pipe(&self) -> u64 {
        self.record
            .in_flight()
            .saturating_sub(self.dup_acks * self.mss)
    }

    /// A tail loss probe is to be sent.
    pub(crate) fn probe_due(&self) -> bool {
        self.tlp.due
    }

    /// Releases memory that an idle connection does not need.
    pub(crate) fn release_memory(&mut self) {
        self.record.release_memory();
        if self.scoreboard.is_empty() {
            self.scoreboard.clear();
        }
    }

    // Acknowledgements.

    /// Processes an acceptable acknowledgement.
    pub(crate) fn acknowledged(&mut self, ack: &Ack<'_>, cc: &mut Congestion, timers: &mut Timers) {
        let rack = self.rack.clone();
        let sample = self.deliver(ack, cc);
        let rtt = self.measure(&sample, ack);
        self.note_duplicate_ack(ack);
        if sample.acked > 0 {
            self.rto.reset();
        }
        self.undo(&sample, ack, cc, &rack);
        self.end_probe(&sample, ack, cc);
        let ended = self.end_phase(ack.una, cc);
        let before = self.record.lost();
        self.find_lost(&sample, ack, cc, timers);
        let lost = self.record.lost() > before;
        if lost && self.phase == Phase::Open {
            self.begin(sample.delivered, ack, cc);
        }
        match self.phase {
            _ if cc.is_model() => cc.model(rtt, (self.pipe(), self.sack), ack.now),
            Phase::Recovery => {
                let safe = sample.acked > 0 && !lost;
                let delivered = self.delivered(&sample, ack);
                let target = (cc.ssthresh(), self.mss, safe);
                let window = self.prr.window(delivered, self.pipe(), target);
                // RFC 6582 3.2: after a partial acknowledgement one segment is sent at once.
                let partial = !self.sack && sample.acked > 0;
                let least = if partial { self.pipe() + self.mss } else { 0 };
                cc.set_window(window.max(least));
            }
            // RFC 5681 3.1: cumulatively acknowledged bytes.
            Phase::Open | Phase::Loss if sample.acked > 0 && !ended => {
                cc.acknowledged(&AckSample {
                    delivered: match self.phase {
                        Phase::Loss => sample.delivered,
                        _ => sample.acked,
                    },
                    una: ack.una,
                    nxt: ack.nxt,
                    rtt,
                    srtt: self.rtt.smoothed(),
                    now: ack.now,
                })
            }
            Phase::Open | Phase::Loss => {}
        }
        self.set_timers(sample.acked > 0, ack.now, timers);
    }

    /// Updates the record with the delivered data.
    fn deliver(&mut self, ack: &Ack<'_>, cc: &mut Congestion) -> Sample {
        let mut sample = Sample::default();
        let (fack, point, now) = (self.rack.fack(), self.recovery_point, ack.now);
        let (rack, rtt) = (&mut self.rack, &self.rtt);
        let mut delivered = |sample: &mut Sample, sent: &Sent| {
            sample.delivered += sent.len();
            rack.delivered(sent, rtt, now);
            cc.packet_arrived(sent, now);
            if !sent.retransmitted {
                sample.reordered |= sent.end < fack;
                sample.original |= sent.start < point;
                sample.oldest.get_or_insert(sent.xmit_ts);
                sample.newest = sample.newest.max(Some(sent.xmit_ts));
            }
        };
        self.record.acknowledge(ack.una, |sent| {
            sample.acked += sent.len();
            sample.repeated |= sent.retransmitted;
            if sent.status != Status::Sacked {
                delivered(&mut sample, sent);
            }
        });
        let mut blocks: SmallVec<[Range<u64>; 4]> = ack.blocks.iter().cloned().collect();
        blocks.sort_unstable_by_key(|block| block.start);
        let mut end = ack.una;
        for block in blocks {
            for piece in self.scoreboard.missing(&block) {
                self.record
                    .sack(&piece, |sent| delivered(&mut sample, sent));
                self.scoreboard.insert(piece);
            }
            end = end.max(block.end);
        }
        self.scoreboard.remove_below(ack.una);
        self.rack.advance(end);
        if sample.reordered {
            self.rack.saw_reordering();
        }
        sample
    }

    /// The latest RTT sample: RFC 6298 3 (Karn's algorithm), and RFC 7323 4 if only timestamps identify the
    /// acknowledged segment.
    fn measure(&mut self, sample: &Sample, ack: &Ack<'_>) -> Option<Duration> {
        let since = |at: Instant| ack.now.saturating_duration_since(at);
        if let (Some(oldest), Some(newest)) = (sample.oldest, sample.newest)
            && !sample.repeated
        {
            self.rtt.sample(since(oldest), ack.now);
            self.rtt.note_least(since(newest), ack.now);
            return Some(since(newest));
        }
        let (stamps, echo) = (self.stamps?, ack.echo?);
        if sample.acked > 0 && sample.delivered > 0 {
            let passed = stamps.at(ack.now).wrapping_sub(echo);
            let plausible = !older(stamps.at(ack.now), echo) && passed < 120_000;
            let rtt = Duration::from_millis(passed.into());
            if plausible && passed > 0 {
                self.rtt.sample(rtt, ack.now);
            }
        }
        None
    }

    /// RFC 2883, 8985 6.2 step 4.
    fn note_duplicate_ack(&mut self, ack: &Ack<'_>) {
        let Some(range) = &ack.duplicate else { return };
        if self.tlp.is_outstanding() {
            // Only the tail loss probe was a duplicate.
            return;
        }
        self.rack.saw_duplicate(ack.una, ack.nxt);
        if let Some(episode) = &mut self.episode
            && range.start >= episode.began
            && range.end <= self.recovery_point
        {
            episode.duplicated += range.end - range.start;
        }
    }

    /// Undoes the latest recovery if it was spurious. `rack`: the state before the acknowledgement.
    fn undo(&mut self, sample: &Sample, ack: &Ack<'_>, cc: &mut Congestion, rack: &Rack) {
        let Some(episode) = &self.episode else {
            return;
        };
        // Eifel: the acknowledged segment was sent before the first retransmission.
        let eifel = match (episode.first, self.stamps, ack.echo) {
            (Some((at, end)), Some(stamps), Some(echo)) => {
                sample.acked > 0 && ack.una >= end && older(echo, stamps.at(at))
            }
            _ => false,
        };
        // The first hole was filled without a retransmission.
        let unaided = episode.first.is_none() && sample.acked > 0 && sample.original;
        let late = (eifel || unaided) && self.phase != Phase::Open;
        let duplicated = episode.resent > 0 && episode.duplicated >= episode.resent;
        let frto =
            self.phase == Phase::Loss && self.sack && self.stamps.is_none() && sample.original;
        if !(late || duplicated || frto) {
            return;
        }
        if episode.first.is_some() {
            // The delivered data was the original transmission.
            self.rack.restore(rack);
        }
        if self.phase != Phase::Loss {
            self.rack.saw_reordering();
        }
        if self.phase != Phase::Open {
            self.record.find_all();
            self.phase = Phase::Open;
        }
        self.episode = None;
        cc.undo(ack.now);
    }

    fn end_probe(&mut self, sample: &Sample, ack: &Ack<'_>, cc: &mut Congestion) {
        let bare = ack.repeated && sample.delivered == 0;
        match self
            .tlp
            .acknowledged(ack.una, ack.duplicate.is_some(), bare)
        {
            Verdict::Waiting | Verdict::Done => {}
            Verdict::Repaired => {
                if self.phase == Phase::Open {
                    cc.lost();
                    cc.recovered();
                }
            }
        }
    }

    /// `true` if a recovery has ended.
    fn end_phase(&mut self, una: u64, cc: &mut Congestion) -> bool {
        if self.phase == Phase::Open || una < self.recovery_point {
            return false;
        }
        if self.phase == Phase::Recovery {
            cc.recovered();
        }
        self.phase = Phase::Open;
        self.dup_acks = 0;
        self.rack.recovered();
        true
    }

    fn find_lost(
        &mut self,
        sample: &Sample,
        ack: &Ack<'_>,
        cc: &mut Congestion,
        timers: &mut Timers,
    ) {
        if self.sack {
            self.detect(ack.now, cc, timers);
            return;
        }
        // RFC 5681 3.2, 6582 3.2.
        let segments = sample.acked.div_ceil(self.mss);
        self.dup_acks = match self.phase {
            Phase::Open if sample.acked > 0 => 0,
            _ => self.dup_acks.saturating_sub(segments.saturating_sub(1)),
        };
        self.dup_acks += u64::from(ack.repeated && self.phase != Phase::Loss);
        let partial = self.phase == Phase::Recovery && sample.acked > 0;
        let third = self.phase == Phase::Open && self.dup_acks >= DUPLICATES;
        if partial || third {
            self.record
                .lose_first(self.mss, |sent| cc.packet_lost(sent, false, ack.now));
        }
    }

    /// RFC 8985 6.2 step 5.
    fn detect(&mut self, now: Instant, cc: &mut Congestion, timers: &mut Timers) {
        let recovering = self.phase != Phase::Open;
        let context = (self.mss, recovering);
        let (record, rtt) = (&mut self.record, &self.rtt);
        let (_, next) = self.rack.detect(record, rtt, context, now, |sent| {
            cc.packet_lost(sent, true, now);
        });
        match next {
            Some(at) => timers.set(Timer::Reorder, at),
            None => timers.stop(Timer::Reorder),
        }
    }

    /// A recovery begins (RFC 6937bis).
    fn begin(&mut self, delivered: u64, ack: &Ack<'_>, cc: &mut Congestion) {
        self.phase = Phase::Recovery;
        self.recovery_point = ack.nxt;
        self.tlp.give_up();
        self.prr = Prr::new(self.pipe() + self.record.lost() + delivered);
        self.episode = Some(Box::new(Episode {
            began: ack.una,
            first: None,
            resent: 0,
            duplicated: 0,
        }));
        cc.lost();
    }

    /// DeliveredData of RFC 6937bis; a duplicate acknowledgement without SACK delivers a segment.
    fn delivered(&self, sample: &Sample, ack: &Ack<'_>) -> u64 {
        match self.sack {
            true => sample.delivered,
            false if ack.repeated => self.mss,
            false => sample.delivered.min(self.mss),
        }
    }

    fn set_timers(&mut self, advanced: bool, now: Instant, timers: &mut Timers) {
        if self.record.is_empty() {
            timers.stop(Timer::Retransmit);
            timers.stop(Timer::Probe);
            timers.stop(Timer::Reorder);
            return;
        }
        if advanced {
            // RFC 6298 5.3.
            timers.set(Timer::Retransmit, now + self.timeout());
            self.schedule_probe(now, timers);
        } else if self.phase != Phase::Open || self.record.sacked() > 0 {
            timers.stop(Timer::Probe);
        }
    }

    /// RFC 8985 7.2.
    fn schedule_probe(&mut self, now: Instant, timers: &mut Timers) {
        let eligible = self.phase == Phase::Open
            && self.sack
            && self.record.sacked() == 0
            && self.record.in_flight() > 0
            && !self.tlp.is_outstanding();
        let alone = self.record.in_flight() <= self.mss;
        let timeout = Tlp::timeout(&self.rtt, alone).filter(|_| eligible);
        match timeout {
            None => timers.stop(Timer::Probe),
            Some(timeout) => {
                let at = now + timeout;
                let rto = timers.get(Timer::Retransmit).unwrap_or(at);
                timers.set(Timer::Probe, at.min(rto));
            }
        }
    }

    // Timers.

    /// The retransmission timeout has expired (RFC 6298 5.4 to 5.6).
    pub(crate) fn timed_out(
        &mut self,
        nxt: u64,
        cc: &mut Congestion,
        now: Instant,
        timers: &mut Timers,
    ) {
        let Some(first) = self.record.first() else {
            return;
        };
        let una = first.start;
        // The peer has discarded SACKed data (reneging, RFC 2018 8).
        let reneged = first.status == Status::Sacked;
        let again = self.phase != Phase::Open && una < self.recovery_point;
        cc.timed_out(!again, nxt);
        if !again {
            self.episode = Some(Box::new(Episode {
                began: una,
                first: None,
                resent: 0,
                duplicated: 0,
            }));
        }
        self.phase = Phase::Loss;
        self.recovery_point = nxt;
        let sack = self.sack;
        self.record
            .lose_all(reneged, |sent| cc.packet_lost(sent, sack, now));
        if reneged {
            self.scoreboard.clear();
        }
        self.dup_acks = 0;
        self.tlp.give_up();
        self.rto.back_off();
        timers.stop(Timer::Probe);
        timers.stop(Timer::Reorder);
        timers.set(Timer::Retransmit, now + self.timeout());
    }

    /// The reordering timer has expired (RFC 8985 6.3).
    pub(crate) fn reordering_is_over(
        &mut self,
        (una, nxt): (u64, u64),
        cc: &mut Congestion,
        now: Instant,
        timers: &mut Timers,
    ) {
        self.detect(now, cc, timers);
        if self.record.lost() > 0 && self.phase == Phase::Open {
            let ack = Ack {
                una,
                nxt,
                blocks: &[],
                duplicate: None,
                echo: None,
                repeated: false,
                now,
            };
            self.begin(0, &ack, cc);
        }
        if self.phase == Phase::Recovery {
            if !cc.is_model() {
                let target = (cc.ssthresh(), self.mss, false);
                cc.set_window(self.prr.window(0, self.pipe(), target));
            }
            timers.stop(Timer::Probe);
        }
    }

    /// The probe timer has expired (RFC 8985 7.3).
    pub(crate) fn demand_probe(&mut self) {
        self.tlp.due = !self.record.is_empty();
    }

    /// Larger packets do not pass: their data is retransmitted, without reducing the window (RFC 1191
    /// 6, 8201 5.4).
    pub(crate) fn too_large(&mut self, size: usize) {
        self.record
            .judge(|sent| Some(usize::from(sent.size) > size));
    }

    // Transmission.

    /// The next range to retransmit, if the window has room for it.
    pub(crate) fn next(&mut self, window: u64, most: u64) -> Option<Range<u64>> {
        let room = window.saturating_sub(self.pipe());
        let most = most.min(room / self.mss * self.mss);
        if most == 0 {
            return None;
        }
        self.record.next_lost(most)
    }

    /// The time for the timestamp of a retransmission from this position on: earlier than now, on a
    /// path with reordering.
    ///
    /// A receiver drops segments older than TS.Recent (PAWS, RFC 7323 5.3), which is that of the
    /// retransmission once it has filled the hole: all packets that it has overtaken would be dropped,
    /// and each such loss would cause further ones. So its timestamp is no later than those of packets
    /// that may still be in flight, and no earlier than those of lower positions, which the receiver
    /// has in order.
    pub(crate) fn date(&mut self, start: u64, now: Instant) -> Instant {
        let allowance = self.rack.allowance(&self.rtt);
        let at = now.checked_sub(allowance).unwrap_or(now);
        let at = self.record.sent_at(start).map_or(at, |sent| at.max(sent));
        let at = self.last_rexmit_stamp.map_or(at, |last| at.max(last));
        self.last_rexmit_stamp = Some(at);
        at
    }

    /// Whether a retransmission is due, now or when there is room.
    pub(crate) fn owes(&self) -> bool {
        self.record.lost() > 0
    }

    /// New data was sent.
    pub(crate) fn sent(
        &mut self,
        range: Range<u64>,
        size: usize,
        now: Instant,
        timers: &mut Timers,
    ) {
        let size = u16::try_from(size).unwrap_or(u16::MAX);
        self.prr.sent(range.end - range.start);
        let end = range.end;
        self.record.push(range, size, now);
        if self.tlp.due {
            self.tlp.sent(end, false);
            self.restart_after_probe(now, timers);
            return;
        }
        if !timers.is_set(Timer::Retransmit) {
            // RFC 6298 5.1.
            timers.set(Timer::Retransmit, now + self.timeout());
        }
        self.schedule_probe(now, timers);
    }

    /// Data was retransmitted.
    pub(crate) fn resent(
        &mut self,
        range: Range<u64>,
        size: usize,
        now: Instant,
        timers: &mut Timers,
    ) {
        let size = u16::try_from(size).unwrap_or(u16::MAX);
        let len = range.end - range.start;
        let head = self
            .record
            .first()
            .is_some_and(|first| first.start == range.start);
        self.prr.sent(len);
        self.record.resent(&range, size, now);
        if let Some(episode) = self.episode.as_mut().filter(|_| self.phase != Phase::Open) {
            episode.resent += len;
            let dated = self.last_rexmit_stamp.unwrap_or(now);
            episode.first.get_or_insert((dated, range.end));
        }
        if head || !timers.is_set(Timer::Retransmit) {
            timers.set(Timer::Retransmit, now + self.timeout());
        }
    }

    /// All data was acknowledged before a tail loss probe was sent.
    pub(crate) fn cancel_probe(&mut self) {
        self.tlp.due = false;
    }

    /// The range for a tail loss probe without new data, of at most this many bytes.
    pub(crate) fn tail(&self, most: u64) -> Option<Range<u64>> {
        self.record.tail(most)
    }

    /// A tail loss probe with old data was sent; `nxt` is SND.NXT.
    pub(crate) fn probed(
        &mut self,
        range: &Range<u64>,
        nxt: u64,
        now: Instant,
        timers: &mut Timers,
    ) {
        let size = u16::try_from(self.mss).unwrap_or(u16::MAX);
        self.record.resent(range, size, now);
        self.tlp.sent(nxt, true);
        self.restart_after_probe(now, timers);
    }

    fn restart_after_probe(&self, now: Instant, timers: &mut Timers) {
        timers.stop(Timer::Probe);
        timers.set(Timer::Retransmit, now + self.timeout());
    }
}
