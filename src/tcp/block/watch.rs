//! How long a connection waits for its peer: the limits that a user can set (RFC 9293 3.8.3), and
//! keep-alive (3.8.4).
//!
//! The limits are those of [`limits`](crate::tcp::limits), the probes those of
//! [`keep_alive`](crate::tcp::keep_alive). Pure: time is an argument.

use crate::error::SoError;
use crate::keep_alive::KeepAlive;
use crate::tcp::keep_alive::{Due, Vigil};
use crate::tcp::limits::Limits;
use crate::tcp::state::TcpState;
use std::time::{Duration, Instant};

/// Where a connection is, as far as its limits are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) state: TcpState,
    /// RCV.NXT, SND.UNA, and what the user has written.
    pub(crate) moved: (u64, u64, u64),
    /// Something of ours is not acknowledged.
    pub(crate) outstanding: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Watch {
    limits: Limits,
    vigil: Vigil,
    began: Instant,
    /// When something acceptable was last heard, or something was first outstanding since.
    heard: Instant,
    /// When the peer last acknowledged something new, or something was first outstanding since.
    progress: Instant,
    outstanding: bool,
    moved: ((u64, u64, u64), Instant),
    fin_wait_since: Option<Instant>,
    /// When a closed socket's linger time is over.
    linger_until: Option<Instant>,
    detached: bool,
    /// What a router last said about the way (BSD's `t_softerror`), until the peer makes progress.
    soft_error: Option<SoError>,
}

impl Watch {
    pub(crate) fn new(limits: Limits, keep_alive: Option<KeepAlive>, now: Instant) -> Watch {
        let mut vigil = Vigil::new(now);
        vigil.set(keep_alive, now);
        Watch {
            limits,
            vigil,
            began: now,
            heard: now,
            progress: now,
            outstanding: false,
            moved: ((0, 0, 0), now),
            fin_wait_since: None,
            linger_until: None,
            detached: false,
            soft_error: None,
        }
    }

    pub(crate) fn set(&mut self, limits: Limits, keep_alive: Option<KeepAlive>, now: Instant) {
        self.limits = limits;
        self.vigil.set(keep_alive, now);
    }

    /// No user holds the socket any more; what it has written is waited for no longer than `linger`.
    pub(crate) fn detach(&mut self, linger: Option<Duration>, now: Instant) {
        self.detached = true;
        self.linger_until = linger.map(|time| now + time);
    }

    pub(crate) fn is_detached(&self) -> bool {
        self.detached
    }

    /// When something last moved.
    pub(crate) fn moved_at(&self) -> Instant {
        self.moved.1
    }

    /// Something acceptable has arrived; `progress`: it acknowledges something new.
    pub(crate) fn heard(&mut self, progress: bool, now: Instant) {
        self.vigil.heard(now);
        if progress {
            self.soft_error = None;
            self.progress = now;
        }
        // A closed socket does not wait for a peer that only says that its window is closed.
        if progress || !self.detached {
            self.heard = now;
        }
    }

    /// The handshake is over.
    pub(crate) fn established(&mut self) {
        self.soft_error = None;
    }

    pub(crate) fn note_soft_error(&mut self, error: SoError) {
        self.soft_error = Some(error);
    }

    pub(crate) fn soft_error(&self) -> Option<SoError> {
        self.soft_error
    }

    /// Routers have said for long enough that the peer cannot be reached.
    pub(crate) fn despairs(&self, now: Instant) -> bool {
        self.soft_error.is_some() && now >= self.began + Limits::disbelief()
    }

    /// Takes note of where the connection is now.
    pub(crate) fn update(&mut self, at: Standing, now: Instant) {
        if at.outstanding && !self.outstanding {
            self.heard = now;
            self.progress = now;
        }
        self.outstanding = at.outstanding;
        let waits = self.detached && at.state == TcpState::FinWait2;
        self.fin_wait_since = self.fin_wait_since.or(Some(now)).filter(|_| waits);
        if self.moved.0 != at.moved {
            self.moved = (at.moved, now);
        }
    }

    /// When something is due, if nothing happens before.
    pub(crate) fn deadline(&self, state: TcpState) -> Option<Instant> {
        let vigil = self.vigil.deadline().filter(|_| self.is_watched(state));
        self.limit(state).into_iter().chain(vigil).min()
    }

    /// What is due.
    pub(crate) fn due(&mut self, state: TcpState, now: Instant) -> Option<Due> {
        if self.limit(state).is_some_and(|at| now >= at) {
            return Some(Due::Dead);
        }
        match self.is_watched(state) {
            true => self.vigil.due(now),
            false => None,
        }
    }

    /// Keep-alive is for connections that wait for their peer: data under way asks for itself, and a
    /// closed socket has limits of its own.
    fn is_watched(&self, state: TcpState) -> bool {
        use TcpState::*;
        let idle = matches!(state, Established | CloseWait | FinWait2);
        idle && !self.outstanding && !self.detached
    }

    fn limit(&self, state: TcpState) -> Option<Instant> {
        match state {
            TcpState::Closed | TcpState::TimeWait => None,
            TcpState::SynSent => self.began.checked_add(self.limits.syn_sent()),
            TcpState::Listen | TcpState::SynReceived => {
                self.began.checked_add(self.limits.syn_received())
            }
            _ if self.outstanding => {
                let user = self.heard + self.limits.user;
                let stall = self.limits.stall.map(|time| self.progress + time);
                let linger = self.linger_until.into_iter();
                let all = linger.chain(self.half_closed(state)).chain(stall);
                all.chain([user]).min()
            }
            _ => {
                let fin_wait = self.fin_wait_since.map(|at| at + self.limits.fin_wait);
                fin_wait.or_else(|| self.half_closed(state))
            }
        }
    }

    /// Of a connection that its user still holds.
    fn half_closed(&self, state: TcpState) -> Option<Instant> {
        let half_closed = matches!(state, TcpState::CloseWait | TcpState::FinWait2);
        let limit = self.limits.half_closed;
        let limit = limit.filter(|_| half_closed && !self.detached);
        limit.map(|limit| self.moved.1 + limit)
    }
}
