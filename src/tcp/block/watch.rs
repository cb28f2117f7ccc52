//! Time limits of a connection (RFC 9293 3.8.3), and keep-alive (3.8.4).
//!
//! The limits are those of [`limits`](crate::tcp::limits), the probes those of
//! [`keep_alive`](crate::tcp::keep_alive). Pure: time is an argument.
//!
//! A segment costs little here: progress only moves limits to later times, so a limit is computed again
//! only when it would be reached, or when the connection's state changes.

use crate::error::SoError;
use crate::tcp::block::time::Instant;
use crate::tcp::keep_alive::{Due, KeepAliveTimer};
use crate::tcp::limits::Limits;
use crate::tcp::state::TcpState;
use std::sync::Arc;
use std::time::Duration;

/// The progress of a connection, as it concerns its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) state: TcpState,
    /// RCV.NXT, SND.UNA, and the bytes written.
    pub(crate) moved: (u64, u64, u64),
    /// Data of ours is not acknowledged.
    pub(crate) outstanding: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Watch {
    limits: Arc<Limits>,
    keep_alive: KeepAliveTimer,
    began: Instant,
    /// When an acceptable segment was last received, or data was first outstanding since.
    received_at: Instant,
    /// When the peer last acknowledged new data, or data was first outstanding since.
    progress: Instant,
    outstanding: bool,
    moved: ((u64, u64, u64), Instant),
    fin_wait_since: Option<Instant>,
    /// The end of the linger time of a closed socket.
    linger_until: Option<Instant>,
    detached: bool,
    /// The latest soft ICMP error (BSD's `t_softerror`), until the peer makes progress.
    soft_error: Option<SoError>,
    state: TcpState,
    /// A lower bound of the next deadline.
    next_due: Option<Instant>,
}

impl Watch {
    /// A value of each cache line.
    pub(crate) fn lines(&self) -> impl Sized + use<> {
        (self.received_at, self.outstanding)
    }

    pub(crate) fn new(limits: Arc<Limits>, now: Instant) -> Watch {
        Watch {
            limits,
            keep_alive: KeepAliveTimer::new(now),
            began: now,
            received_at: now,
            progress: now,
            outstanding: false,
            moved: ((0, 0, 0), now),
            fin_wait_since: None,
            linger_until: None,
            detached: false,
            soft_error: None,
            state: TcpState::Closed,
            next_due: None,
        }
    }

    pub(crate) fn set(&mut self, limits: Arc<Limits>, now: Instant) {
        if self.limits.keep_alive != limits.keep_alive {
            // Restarts the idle time.
            self.keep_alive.received(now);
        }
        self.limits = limits;
        self.next_due = self.next();
    }

    /// The socket has no handle any more; its data may take `linger` to be delivered.
    pub(crate) fn detach(&mut self, linger: Option<Duration>, now: Instant) {
        self.detached = true;
        self.linger_until = linger.map(|time| now + time);
        self.next_due = self.next();
    }

    pub(crate) fn is_detached(&self) -> bool {
        self.detached
    }

    /// The time of the latest progress.
    pub(crate) fn moved_at(&self) -> Instant {
        self.moved.1
    }

    /// An acceptable segment has arrived; `progress`: it acknowledges new data.
    pub(crate) fn received(&mut self, progress: bool, now: Instant) {
        let asked = self.keep_alive.has_probed();
        self.keep_alive.received(now);
        if progress {
            self.soft_error = None;
            self.progress = now;
        }
        // A closed socket does not wait for a peer that only advertises a closed window.
        if progress || !self.detached {
            self.received_at = now;
        }
        if asked {
            // The interval before the next probe may be shorter than the last one.
            self.next_due = self.next();
        }
    }

    /// The connection is established.
    pub(crate) fn established(&mut self) {
        self.soft_error = None;
    }

    pub(crate) fn note_soft_error(&mut self, error: SoError) {
        self.soft_error = Some(error);
    }

    pub(crate) fn soft_error(&self) -> Option<SoError> {
        self.soft_error
    }

    /// Whether soft ICMP errors have lasted long enough to end the attempt to connect.
    pub(crate) fn has_soft_failed(&self, now: Instant) -> bool {
        self.soft_error.is_some() && now >= self.began + Limits::soft_error_time()
    }

    /// The connection has ended.
    pub(crate) fn end(&mut self) {
        (self.state, self.outstanding, self.next_due) = (TcpState::Closed, false, None);
    }

    /// Records the progress of the connection.
    pub(crate) fn update(&mut self, at: Standing, now: Instant) {
        if at.outstanding && !self.outstanding {
            self.received_at = now;
            self.progress = now;
        }
        let before = (self.state, self.outstanding, self.fin_wait_since);
        (self.state, self.outstanding) = (at.state, at.outstanding);
        let waits = self.detached && at.state == TcpState::FinWait2;
        self.fin_wait_since = self.fin_wait_since.or(Some(now)).filter(|_| waits);
        if self.moved.0 != at.moved {
            self.moved = (at.moved, now);
        }
        if before != (self.state, self.outstanding, self.fin_wait_since) {
            self.next_due = self.next();
        }
    }

    /// When to call [`due`](Self::due), without an earlier event.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.next_due
    }

    /// The due action.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Due> {
        if self.next_due.is_none_or(|at| now < at) {
            return None;
        }
        if self.limit().is_some_and(|at| now >= at) {
            return Some(Due::Dead);
        }
        let due = match self.is_watched() {
            true => self.keep_alive.due(self.limits.keep_alive, now),
            false => None,
        };
        self.next_due = self.next();
        due
    }

    /// The time of the next limit or probe.
    fn next(&self) -> Option<Instant> {
        let keep_alive = self
            .keep_alive
            .deadline(self.limits.keep_alive)
            .filter(|_| self.is_watched());
        self.limit().into_iter().chain(keep_alive).min()
    }

    /// Keep-alive applies to idle connections: retransmissions probe the peer as well, and a closed
    /// socket has limits of its own.
    fn is_watched(&self) -> bool {
        use TcpState::*;
        let idle = matches!(self.state, Established | CloseWait | FinWait2);
        idle && !self.outstanding && !self.detached
    }

    fn limit(&self) -> Option<Instant> {
        match self.state {
            TcpState::Closed | TcpState::TimeWait => None,
            TcpState::SynSent => Some(self.began + self.limits.syn_sent()),
            TcpState::Listen | TcpState::SynReceived => {
                Some(self.began + self.limits.syn_received())
            }
            _ if self.outstanding => {
                let user = self.received_at + self.limits.user;
                let stall = self.limits.stall.map(|time| self.progress + time);
                let linger = self.linger_until.into_iter();
                let all = linger.chain(self.half_closed()).chain(stall);
                all.chain([user]).min()
            }
            _ => {
                let fin_wait = self.fin_wait_since.map(|at| at + self.limits.fin_wait);
                fin_wait.or_else(|| self.half_closed())
            }
        }
    }

    /// The half-closed limit, for a connection with a handle.
    fn half_closed(&self) -> Option<Instant> {
        let half_closed = matches!(self.state, TcpState::CloseWait | TcpState::FinWait2);
        let limit = self.limits.half_closed;
        let limit = limit.filter(|_| half_closed && !self.detached);
        limit.map(|limit| self.moved.1 + limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::block::time::start as any_time;

    fn at(state: TcpState, una: u64, outstanding: bool) -> Standing {
        Standing {
            state,
            moved: (0, una, 10),
            outstanding,
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A received segment moves a limit to a later time, which is not computed for each segment.
    #[test]
    fn a_limit_is_computed_when_it_would_be_reached() {
        let start = any_time();
        let mut watch = Watch::new(Arc::default(), start);
        watch.update(at(TcpState::Established, 0, true), start);
        let first = Some(start + seconds(300));
        assert_eq!(watch.deadline(), first);
        for second in 1..=100 {
            let now = start + seconds(second);
            watch.received(true, now);
            watch.update(at(TcpState::Established, second, true), now);
            assert_eq!(watch.deadline(), first);
        }
        assert_eq!(
            watch.due(start + seconds(300)),
            None,
            "a segment was received"
        );
        assert_eq!(watch.deadline(), Some(start + seconds(400)));
        assert_eq!(watch.due(start + seconds(400)), Some(Due::Dead));
        watch.update(at(TcpState::Established, 101, false), start + seconds(399));
        assert_eq!(watch.deadline(), None, "no limit applies");
    }

    /// Guards the case that a limit moves to an earlier time.
    #[test]
    fn an_answered_probe_brings_the_next_one_nearer_than_the_interval() {
        let start = any_time();
        let keep_alive = crate::keep_alive::KeepAlive {
            idle: seconds(5),
            interval: seconds(60),
            probes: 3,
        };
        let limits = Limits {
            keep_alive: Some(keep_alive),
            ..Limits::default()
        };
        let mut watch = Watch::new(Arc::new(limits), start);
        watch.update(at(TcpState::Established, 0, false), start);
        assert_eq!(watch.due(start + seconds(5)), Some(Due::Probe));
        assert_eq!(watch.deadline(), Some(start + seconds(65)));
        watch.received(false, start + seconds(6));
        assert_eq!(watch.deadline(), Some(start + seconds(11)));
        assert_eq!(watch.due(start + seconds(11)), Some(Due::Probe));
    }
}
