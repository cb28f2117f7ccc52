//! How long a connection waits: time limits of our own, and when it is to be served next.

use super::{Env, Event, Tcb};
use crate::tcp::keep_alive::Due;
use smoltcp::socket::tcp::State;
use std::time::{Duration, Instant};

impl Tcb {
    /// Time limits of our own; the engine's would kill idle connections.
    pub(super) fn expire(&mut self, env: &Env<'_>) {
        let outstanding =
            self.guard.snd_una() < self.guard.snd_max() || self.guard.snd_una() < self.queued;
        if outstanding && !self.outstanding {
            self.heard = env.now;
            self.progress = env.now;
        }
        self.outstanding = outstanding;
        let waits = self.detached && self.state() == State::FinWait2;
        if !waits {
            self.fin_wait_since = None;
        } else if self.fin_wait_since.is_none() {
            self.fin_wait_since = Some(env.now);
        }
        let standing = (self.guard.rcv_nxt_seq(), self.guard.snd_una(), self.queued);
        if self.moved.0 != standing {
            self.moved = (standing, env.now);
        }
        let late = self.own_deadline().is_some_and(|at| env.now >= at);
        let due = match self.is_watched() {
            true => self.vigil.due(env.now),
            false => None,
        };
        if late || due == Some(Due::Dead) {
            self.abort(self.soft_error.map_or(Event::Timer, Event::Icmp));
            self.emit(env);
        } else if due == Some(Due::Probe) {
            // The engine writes the acknowledgement, so it knows the window that was advertised.
            self.probing = true;
            self.draw_ack(&self.guard.below_window(), 1, env);
            self.probing = false;
        }
    }

    /// Keep-alive is for connections that wait for their peer: data under way asks for itself, and
    /// a socket that nobody holds has limits of its own.
    fn is_watched(&self) -> bool {
        let idle = matches!(
            self.state(),
            State::Established | State::CloseWait | State::FinWait2
        );
        idle && !self.outstanding && !self.detached && self.ended.is_none()
    }

    pub(super) fn own_deadline(&self) -> Option<Instant> {
        match self.state() {
            State::Closed => None,
            State::SynSent | State::Listen | State::SynReceived => self.handshake_deadline(),
            _ if self.outstanding => {
                let user = self.heard + self.limits.user;
                let linger = self.linger_until.into_iter();
                let stall = self.limits.stall.map(|time| self.progress + time);
                linger
                    .chain(self.half_closed_deadline())
                    .chain(stall)
                    .chain([user])
                    .min()
            }
            _ => {
                let fin_wait = self.fin_wait_since.map(|at| at + self.limits.fin_wait);
                fin_wait.or_else(|| self.half_closed_deadline())
            }
        }
    }

    pub(super) fn handshake_deadline(&self) -> Option<Instant> {
        match self.state() {
            State::SynSent => Some(self.began + self.limits.syn_sent()),
            State::Listen | State::SynReceived => Some(self.began + self.limits.syn_received()),
            _ => None,
        }
    }

    /// Of a connection that its user still holds: one that is closed has limits of its own.
    fn half_closed_deadline(&self) -> Option<Instant> {
        let half_closed = matches!(self.state(), State::CloseWait | State::FinWait2);
        let limit = self
            .limits
            .half_closed
            .filter(|_| half_closed && !self.detached);
        limit.map(|limit| self.moved.1 + limit)
    }

    pub(super) fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let own = self.own_deadline();
        let vigil = self.vigil.deadline().filter(|_| self.is_watched());
        let engine_now = self.engine_time(now);
        // Behind a full link nothing is due before the link has room.
        let blocked = !self.waiting.is_empty();
        let engine = self.engine.as_mut().filter(|_| !blocked);
        let at = engine.and_then(|engine| engine.poll_at(engine_now));
        // What waits for an engine's timer is not at rest.
        let rest = if at.is_none() { self.rest_at() } else { None };
        let at = at.map(|at| {
            // What is due at once was just tried, and waits for the peer.
            let micros = (at.total_micros() - engine_now.total_micros()).max(1000);
            now + Duration::from_micros(micros.unsigned_abs())
        });
        let probe = self.probe_at().filter(|_| !blocked);
        let others = [own, at, vigil, probe, rest];
        others.into_iter().flatten().min()
    }
}
