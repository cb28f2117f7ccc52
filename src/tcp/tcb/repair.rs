//! What was lost on the way is sent again, beside the engine (see [`recovery`](crate::tcp::recovery)).

use super::{Env, LEAST_V4, LEAST_V6, Tcb};
use crate::tcp::guard::Feed;
use crate::tcp::wire::TCP_HEADER;
use std::net::IpAddr;
use std::ops::Range;
use std::time::Instant;

impl Tcb {
    /// An acknowledgement that says once more what the one before has said, while something is in flight,
    /// of a peer that says what it has.
    pub(super) fn repeats(&self, feed: &Feed, before: (u64, u64)) -> bool {
        let in_flight = self.guard.snd_una() < self.guard.snd_max();
        let same = feed.says_nothing() && self.guard.heard() == before;
        same && in_flight && self.guard.takes_sack()
    }

    /// What an acceptable segment acknowledges, and says of what is behind that. `false`: nothing new.
    pub(super) fn hear(&mut self, sack: Option<&[(u32, u32)]>, env: &Env<'_>) -> bool {
        let (offset, guard) = (self.offset.unwrap_or(0), &self.guard);
        let position = |seq: u32| guard.send_position(seq.wrapping_sub(offset));
        let sack = sack.filter(|_| guard.takes_sack());
        let blocks = sack.unwrap_or_default().iter();
        let blocks = blocks.filter_map(|(start, end)| Some(position(*start)?..position(*end)?));
        let sent = (guard.snd_max(), self.segment_size(self.mtu()) as u64);
        self.recovery.heard(guard.snd_una(), blocks, sent, env.now)
    }

    fn header_len(&self) -> usize {
        self.tuple.ip_header_len() + TCP_HEADER
    }

    /// Text in flight is watched, of a peer that says what it has.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        let in_flight = self.guard.snd_una() < self.guard.snd_max().min(self.queued);
        let watched = in_flight && self.guard.takes_sack() && self.ended.is_none();
        self.recovery.probe_at().filter(|_| watched)
    }

    pub(super) fn probe(&mut self, env: &Env<'_>) {
        if self.probe_at().is_none_or(|at| env.now < at) || !self.waiting.is_empty() {
            return;
        }
        let sent = self.guard.snd_max();
        let all = (self.guard.snd_una(), sent.min(self.queued), sent);
        let segment = self.segment_size(self.mtu());
        if let Some(range) = self.recovery.probe(all, segment as u64) {
            self.send_again(range, segment, env);
        }
    }

    /// The engine's, if there is one.
    fn mtu(&self) -> usize {
        self.engine.as_ref().map_or(0, |engine| engine.mtu())
    }

    /// Payload of a full segment.
    pub(super) fn segment_size(&self, mtu: usize) -> usize {
        let default = match self.tuple.local {
            IpAddr::V4(_) => LEAST_V4,
            IpAddr::V6(_) => LEAST_V6,
        };
        let default = default - self.header_len();
        let theirs = self.guard.remote_mss().map_or(default, usize::from);
        theirs.min(mtu.saturating_sub(self.header_len())).max(1)
    }

    /// What the link cuts into segments is a multiple of what the peer takes.
    pub(super) fn fit_segments(&mut self) {
        let mss = self.segment_size(self.mtu());
        if let Some(engine) = &mut self.engine {
            engine.fit_segments(mss);
        }
    }

    /// Sends again what the peer lacks.
    pub(super) fn repair(&mut self, env: &Env<'_>) {
        if self.recovery.is_idle() || self.ended.is_some() || !self.waiting.is_empty() {
            return;
        }
        let segment = self.segment_size(self.mtu());
        let can = env.link.capabilities();
        let most = match self.tuple.local {
            IpAddr::V4(_) => can.segment_v4,
            IpAddr::V6(_) => can.segment_v6,
        };
        let most = most.unwrap_or(0).min(usize::from(u16::MAX));
        let most = most.saturating_sub(self.header_len()) / segment * segment;
        let most = most.max(segment) as u64;
        let sent = self.guard.snd_max();
        let all = (sent.min(self.queued), sent);
        while let Some(range) = self.recovery.next(all, most, segment as u64) {
            self.send_again(range, segment, env);
            if !self.waiting.is_empty() {
                return;
            }
        }
    }

    fn send_again(&mut self, range: Range<u64>, segment: usize, env: &Env<'_>) {
        env.counters.repaired.add(1);
        self.recovery.sent(range.end, false, env.now);
        let tuple = self.tuple;
        let (mut wire, _) = self.split(env);
        wire.again(&tuple, range, segment);
        self.broken |= wire.broken;
    }
}
