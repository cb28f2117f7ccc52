//! One connection's state: guard, store, engine, and the service step that keeps them together.
//!
//! Everything here runs under the connection's ownership (rank 1) and takes the locks of the two
//! socket buffers (2, 3) one at a time, at the end both. Nothing here reads a clock.
//!
//! Invariants (asserted; in release a broken one resets this connection and is counted):
//! * I1 the store holds exactly the bytes that were accepted ahead of their turn, and the engine none
//!   of them; after each feed the engine has grown as the guard said.
//! * I2 positions are absolute and only grow; ring lengths are not progress.
//! * I3 why an engine closed follows from the state before and the event ([`closed_by`]).
//! * I4 the engine's `close()` is called only in ESTABLISHED, with all of `so_snd` counted in the
//!   engine, or in CLOSE-WAIT, with all of it acknowledged.
//! * I5 initial sequence numbers come from the segment whose acceptance left LISTEN or SYN-SENT and
//!   from the first emitted SYN. An engine that falls back to LISTEN is destroyed.
//! * I6 an emitted payload lies within `so_snd`.
//! * I7 an engine that takes the place of another is where that one was ([`rest`]).

#![cfg_attr(
    not(sosplice_tcp_engine),
    allow(dead_code, reason = "the control block is used in its place")
)]

mod deadlines;
pub(super) mod outlet;
mod repair;
mod rest;

use super::ack::{AckPolicy, Text};
use super::engine::Engine;
use super::guard::{Feed, Guard, Verdict, hears_windows};
use super::host::{Counters, Sent, TimerKey};
use super::icmp::{IcmpError, Trouble};
use super::keep_alive::Vigil;
use super::limits::Limits;
use super::memory::{Account, Appetite, Memory};
use super::options::Options;
use super::recovery::Recovery;
use super::state::TcpState;
use super::store::Store;
use super::time_wait::TimeWait;
use super::wire::{FIN, Header, MAX_HEADER, RST, Segment, Tuple};
use crate::buf::{Buf, Chain, Gather};
use crate::error::SoError;
use crate::link::Link;
use crate::protocol::SocketEnd;
use outlet::{Waiting, Wire};
use rest::Rest;
use smoltcp::socket::tcp::State;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// No packet is made smaller than these: an MSS of 536 (RFC 9293 3.7.1) and of 1220.
const LEAST_V4: usize = 576;
const LEAST_V6: usize = 1280;

/// What a service step works with.
pub(crate) struct Env<'a> {
    pub(crate) now: Instant,
    pub(crate) link: &'a dyn Link,
    pub(crate) end: &'a SocketEnd,
    pub(crate) counters: &'a Counters,
    pub(crate) memory: &'a Memory,
    pub(crate) sent: Sent<'a>,
    pub(crate) options: &'a Options,
}

/// What the users and the driver want of a connection, as bits that add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Work(pub(crate) u8);

impl Work {
    /// `so_snd` has more bytes or was closed; a timer is due; the link has room.
    pub(crate) const SERVE: Work = Work(1);
    /// The reader sleeps: withheld window updates must go out.
    pub(crate) const IDLE: Work = Work(2);
    pub(crate) const ABORT: Work = Work(4);
    pub(crate) const DETACH: Work = Work(8);
    /// The user has set something.
    pub(crate) const OPTIONS: Work = Work(16);
    /// The link is gone.
    pub(crate) const NETWORK_DOWN: Work = Work(32);
    /// A driver of the stack is.
    pub(crate) const DRIVER_DROPPED: Work = Work(64);
    /// The address is.
    pub(crate) const ADDRESS_REMOVED: Work = Work(128);

    /// What ends a connection from below, and the error that it ends with.
    pub(crate) const FROM_BELOW: [(Work, SoError); 3] = [
        (Work::NETWORK_DOWN, SoError::NetworkDown),
        (Work::DRIVER_DROPPED, SoError::DriverDropped),
        (Work::ADDRESS_REMOVED, SoError::AddressRemoved),
    ];

    pub(crate) fn has(self, other: Work) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) fn add(&mut self, other: Work) {
        self.0 |= other.0;
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Nothing but those.
    fn is_within(self, those: Work) -> bool {
        self.0 & !those.0 == 0
    }
}

/// How a connection ended.
#[derive(Debug)]
pub(crate) enum Done {
    /// Nothing remains.
    Closed(Ending),
    /// A record remains.
    TimeWait(TimeWait),
}

/// Why a connection of which nothing remains has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    /// The state before.
    pub(super) before: TcpState,
    /// What `so_error` says.
    pub(super) error: Option<SoError>,
}

impl Ending {
    /// What `so_error` says.
    pub(crate) fn error(self) -> Option<SoError> {
        self.error
    }

    /// It never stood (RFC 4022, tcpAttemptFails).
    pub(crate) fn failed(self) -> bool {
        matches!(
            self.before,
            TcpState::Listen | TcpState::SynSent | TcpState::SynReceived
        )
    }

    /// It stood, and nobody has closed it on this side (RFC 4022, tcpEstabResets).
    pub(crate) fn reset(self) -> bool {
        matches!(self.before, TcpState::Established | TcpState::CloseWait)
    }
}

/// What a service step left to be done by others.
#[derive(Debug, Default)]
pub(crate) struct Served {
    /// When to serve again at the latest.
    pub(crate) next: Option<Instant>,
    /// The link was full: serve again when it is not.
    pub(crate) link_full: bool,
    /// The handshake is over; said once.
    pub(crate) established: bool,
    pub(crate) done: Option<Done>,
}

/// What an engine's end was due to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// An accepted RST.
    Reset,
    /// An accepted acknowledgement of our FIN, or the end of TIME-WAIT.
    Finished,
    /// Our own call.
    Abort,
    /// A timer of ours.
    Timer,
    /// The link is gone, or what else is below.
    Below(SoError),
    /// An ICMP error ended an attempt to connect, or explains why a timer of ours did.
    Icmp(SoError),
}

/// I3: the error that an ended connection leaves in `so_error`.
pub(crate) fn closed_by(before: State, event: Event) -> Option<SoError> {
    match (event, before) {
        (Event::Reset, State::SynSent) => Some(SoError::ConnectionRefused),
        // The other side has everything and our FIN: nothing was lost (RFC 9293 3.10.7.4).
        (Event::Reset, State::Closing | State::LastAck | State::TimeWait) => None,
        (Event::Reset, _) => Some(SoError::ConnectionReset),
        (Event::Finished, _) => None,
        (Event::Abort, _) => Some(SoError::ConnectionAborted),
        (Event::Timer, _) => Some(SoError::TimedOut),
        (Event::Icmp(error), _) => Some(error),
        (Event::Below(_), State::TimeWait) => None,
        (Event::Below(error), _) => Some(error),
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Tcb {
    tuple: Tuple,
    /// `None` when the connection has ended, and at rest.
    engine: Option<Box<Engine>>,
    rest: Option<Rest>,
    /// When it last took an engine.
    rose: Instant,
    guard: Guard,
    store: Store,
    ack: AckPolicy,
    recovery: Recovery,
    /// In-order bytes on their way to `so_rcv`.
    inbox: Chain,
    /// The peer's FIN came in order and is to be told.
    eof: bool,
    /// Bytes of `so_snd` that are counted in the engine.
    queued: u64,
    /// Packets that the link had no room for.
    waiting: VecDeque<Waiting>,
    /// What is added to the engine's send sequence numbers on the wire.
    offset: Option<u32>,
    wire_iss: u32,
    /// Why the engine is closed, once it is.
    ended: Option<Event>,
    before_end: State,
    established: bool,
    said_established: bool,
    detached: bool,
    /// Nothing can be sent any more, so nothing waits to be.
    down: bool,
    broken: bool,
    began: Instant,
    /// When something acceptable was last heard, or something was first outstanding since.
    heard: Instant,
    /// When the peer last acknowledged something new, or something was first outstanding since.
    progress: Instant,
    outstanding: bool,
    /// What a router last said about the way (BSD's `t_softerror`), until the peer makes progress.
    soft_error: Option<SoError>,
    /// What was acknowledged when something acceptable was last heard.
    acknowledged: u64,
    fin_wait_since: Option<Instant>,
    /// What was received, acknowledged and queued when that last changed, and when it did.
    moved: ((u32, u64, u64), Instant),
    /// When a closed socket's linger time is over.
    linger_until: Option<Instant>,
    pub(crate) vigil: Vigil,
    /// A keep-alive probe is being drawn from the engine.
    probing: bool,
    limits: Limits,
    /// The engine's time, and when that was.
    engine_now: (Duration, Instant),
    /// A window update is worth at least this many bytes.
    step: u64,
    /// What its buffers hold.
    pub(crate) account: Account,
    /// The timer that the host keeps for this connection.
    pub(crate) armed: Option<TimerKey>,
    #[cfg(any(test, sosplice_fuzz))]
    pub(crate) tap: super::oracle::Tap,
    #[cfg(any(test, sosplice_fuzz))]
    pub(crate) engine_config: super::engine::EngineConfig,
}

/// Longer than any of the engine's timers: what is due after it is due after this.
const LONGEST_LEAP: Duration = Duration::from_secs(3600);

impl Tcb {
    pub(crate) fn new(
        tuple: Tuple,
        engine: Engine,
        (rcv_ring, mtu): (usize, usize),
        wire_iss: u32,
        (limits, ack_delay): (Limits, Option<Duration>),
        (epoch, now): (Instant, Instant),
    ) -> Tcb {
        Tcb {
            tuple,
            guard: Guard::new(rcv_ring),
            store: Store::default(),
            ack: AckPolicy::new(ack_delay),
            recovery: Recovery::default(),
            inbox: Chain::default(),
            eof: false,
            queued: 0,
            waiting: VecDeque::new(),
            offset: None,
            wire_iss,
            ended: None,
            before_end: State::Closed,
            established: false,
            said_established: false,
            detached: false,
            down: false,
            broken: false,
            began: now,
            heard: now,
            progress: now,
            outstanding: false,
            soft_error: None,
            acknowledged: 0,
            fin_wait_since: None,
            moved: ((0, 0, 0), now),
            linger_until: None,
            vigil: Vigil::new(now),
            probing: false,
            limits,
            engine_now: (now.saturating_duration_since(epoch), now),
            step: (rcv_ring / 4).min(4 * mtu) as u64,
            account: Account::default(),
            armed: None,
            #[cfg(any(test, sosplice_fuzz))]
            tap: super::oracle::Tap::default(),
            #[cfg(any(test, sosplice_fuzz))]
            engine_config: engine.config(),
            engine: Some(Box::new(engine)),
            rest: None,
            rose: now,
        }
    }

    /// The state, as others see it.
    pub(crate) fn tcp_state(&self) -> TcpState {
        TcpState::of_engine(self.state())
    }

    /// The engine's state; CLOSED when it is gone.
    pub(crate) fn state(&self) -> State {
        match (&self.engine, &self.rest) {
            (Some(engine), _) => engine.state(),
            (None, Some(_)) => State::Established,
            (None, None) => State::Closed,
        }
    }

    /// It has given its engine back.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.rest.is_some()
    }

    /// Real memory of what has arrived out of order.
    pub(crate) fn store_memory(&self) -> usize {
        self.store.memory()
    }

    /// When something last moved in either direction, or the connection began.
    pub(crate) fn moved_at(&self) -> Instant {
        self.moved.1
    }

    /// Counts on from where it was. Time that leaps, because a machine or a simulator stood still, is
    /// cut: the engine's round-trip times overflow after some days.
    fn engine_time(&mut self, now: Instant) -> smoltcp::time::Instant {
        let (time, then) = &mut self.engine_now;
        if now > *then {
            *time += (now - *then).min(LONGEST_LEAP);
            *then = now;
        }
        smoltcp::time::Instant::from_micros(i64::try_from(time.as_micros()).unwrap_or(i64::MAX))
    }

    /// Takes a received segment. A service step follows.
    pub(crate) fn input(&mut self, segment: &Segment, env: &Env<'_>) {
        self.rise(env);
        let Some(engine) = &self.engine else { return };
        if self.ended.is_some() {
            // An engine that fell back to LISTEN would begin again (I5).
            env.counters.refused.add(1);
            return;
        }
        let mut header = segment.header;
        header.ack = header.ack.wrapping_sub(self.offset.unwrap_or(0));
        let state = engine.state();
        let len = segment.payload_len;
        if let Some(reminder) = self.guard.unsettled(state, &header, len) {
            self.draw_ack(&reminder, 1, env);
            self.guard.settle();
        }
        let before = self.guard.heard();
        let memory = env.memory;
        let appetite = match memory.is_pressed() {
            true => memory.appetite(self.account.unread(), self.floor()),
            false => Appetite::Everything,
        };
        self.guard.set_appetite(appetite);
        let verdict = self.guard.judge(state, &header, len);
        if self.guard.has_declined() {
            memory.dropped.add(1);
        }
        let accepted = match verdict {
            Verdict::Feed(_) => true,
            Verdict::FeedThenAnswer(feed, _) => feed.keep,
            Verdict::Drop | Verdict::Answer(_) | Verdict::Challenge(_) => false,
        };
        env.counters.refused.add(u64::from(!accepted));
        if !matches!(verdict, Verdict::Drop | Verdict::Challenge(_)) {
            self.vigil.heard(env.now);
        }
        match verdict {
            Verdict::Drop => {}
            Verdict::Feed(feed) if self.repeats(&feed, before) => {
                if self.hear(segment.sack.as_deref(), env) {
                    self.feed(&feed, &[], env);
                } else if !self.detached {
                    self.heard = env.now;
                }
                return;
            }
            Verdict::Feed(feed) => self.feed(&feed, &segment.payload, env),
            Verdict::Answer(header) => self.draw_ack(&header, 1, env),
            Verdict::Challenge(header) => self.draw_ack(&header, 0, env),
            Verdict::FeedThenAnswer(feed, header) => {
                self.feed(&feed, &segment.payload, env);
                self.draw_ack(&header, 1, env);
            }
        }
        if let Some(feed) = self.guard.replay_fin() {
            self.feed(&feed, &[], env);
        }
        if let Verdict::Feed(_) | Verdict::FeedThenAnswer(..) = verdict {
            self.hear(segment.sack.as_deref(), env);
        }
    }

    /// Takes an ICMP error. A service step follows.
    ///
    /// A hard error ends an attempt to connect. All others, and those of a connection that stands or
    /// waits in a backlog, are soft: routes come back, and errors are easily forged (RFC 5461, 5927 5).
    /// They are remembered and told in the place of a time-out (RFC 1122 4.2.3.9); an attempt to connect
    /// that still hears of them when its SYN has been sent five times ends, as in BSD.
    pub(crate) fn icmp(&mut self, error: &IcmpError, env: &Env<'_>) {
        let state = self.state();
        let seq = error.seq.wrapping_sub(self.offset.unwrap_or(0));
        if self.ended.is_some() || !self.guard.in_flight(state, seq) {
            env.counters.icmp_ignored.add(1);
            return;
        }
        env.counters.icmp_errors.add(1);
        match error.trouble {
            Trouble::Hard(error) if state == State::SynSent => self.abort(Event::Icmp(error)),
            Trouble::Soft if state == State::SynSent && self.despairs(env.now) => {
                self.abort(Event::Icmp(SoError::HostUnreachable));
            }
            Trouble::Hard(_) | Trouble::Soft => self.soft_error = Some(SoError::HostUnreachable),
            Trouble::TooBig(mtu) => self.too_big(mtu, env),
        }
    }

    /// It was told before that the peer cannot be reached, and has tried long enough.
    fn despairs(&self, now: Instant) -> bool {
        self.soft_error.is_some() && now >= self.began + Limits::disbelief()
    }

    /// A packet does not fit through the way: smaller ones from now on (RFC 1191 6, 8201 5.4). The
    /// first of what is in flight is sent again at once, the rest as after any loss: the engine has
    /// no other way. Never larger again: a connection does not probe.
    fn too_big(&mut self, mtu: usize, env: &Env<'_>) {
        /// Three make the engine retransmit; the first may open its window instead.
        const DUPLICATES: usize = 4;
        let handshake = matches!(self.state(), State::SynSent | State::SynReceived);
        // A router of IPv6 that says less is not to be believed (RFC 8201 4); one of IPv4 that says
        // less, or nothing, gets what every host takes (RFC 791, 1191 5).
        let (least, believed) = match self.tuple.local {
            IpAddr::V4(_) => (LEAST_V4, true),
            IpAddr::V6(_) => (LEAST_V6, mtu >= LEAST_V6),
        };
        if handshake || !believed {
            return;
        }
        let engine = self.engine.as_mut();
        if !engine.is_some_and(|engine| engine.lower_mtu(mtu.max(least))) {
            return;
        }
        env.counters.mtu_lowered.add(1);
        for _ in 0..DUPLICATES {
            let header = self.guard.standing(0);
            self.feed_engine(&header, 0, None, env);
        }
    }

    /// Feeds a segment outside the window, whose only effect is the engine's answer.
    fn draw_ack(&mut self, header: &Header, len: usize, env: &Env<'_>) {
        let (before, queue) = (self.state(), self.rcv_queue());
        self.feed_engine(header, len, None, env);
        self.check(
            self.state() == before && self.rcv_queue() == queue,
            "I1: an answer changes nothing",
        );
    }

    fn rcv_queue(&self) -> usize {
        self.engine.as_ref().map_or(0, |engine| engine.rcv_queue())
    }

    fn feed(&mut self, feed: &Feed, payload: &[Buf], env: &Env<'_>) {
        let (before, queue) = (self.state(), self.rcv_queue());
        let mut at = self.inbox.end();
        self.keep(feed, cut(payload, feed.skip, feed.len));
        let complete = self.inbox.end() - at == feed.growth as u64;
        self.check(complete, "I1: the store has what is in order");
        if !complete {
            return;
        }
        let draw = self.choose_ack(feed, env);
        for (header, len) in feed.parts() {
            self.feed_engine(&header, len, Some(at), env);
            at += len as u64;
        }
        if feed.shut && hears_windows(self.state()) {
            self.feed_engine(&self.guard.shut(), 0, None, env);
        }
        if draw {
            self.draw_ack(&self.guard.below_window(), 1, env);
        }
        let after = self.state();
        let grown = self.rcv_queue().wrapping_sub(queue);
        let as_judged = after == State::Listen || grown == feed.growth;
        debug_assert!(
            as_judged,
            "I1: {feed:?} grew {grown} in {before:?}: {:?}",
            self.guard
        );
        self.check(as_judged, "I1: the engine grew as the guard said");
        if self.guard.snd_una() > self.acknowledged {
            self.soft_error = None;
            self.progress = env.now;
        }
        // Nobody waits any more for a peer that only says that its window is closed.
        if !self.detached || self.guard.snd_una() > self.acknowledged {
            self.heard = env.now;
        }
        self.acknowledged = self.guard.snd_una();
        if feed.header.has(FIN) {
            let closed = matches!(
                after,
                State::CloseWait | State::Closing | State::TimeWait | State::LastAck
            );
            self.check(closed, "I1: the engine took the FIN");
            self.eof = true;
        }
        self.note_state(before, after, feed.header.has(RST));
    }

    /// Tells the engine when to acknowledge what it is about to be fed. `true`: an acknowledgement is
    /// to be drawn behind it.
    fn choose_ack(&mut self, feed: &Feed, env: &Env<'_>) -> bool {
        let end = feed.header.has(FIN);
        if feed.growth == 0 && !end {
            return false;
        }
        // Whatever options it has.
        let mtu = self.engine.as_ref().map_or(0, |engine| engine.mtu());
        let full = mtu.saturating_sub(MAX_HEADER);
        let hole = feed.growth > feed.len || self.guard.has_holes();
        let text = match () {
            () if end || hole => Text::Urgent,
            () if feed.growth >= full => Text::Full,
            () => Text::Part,
        };
        let manner = self.ack.receive(text, env.now);
        #[cfg(any(test, sosplice_fuzz))]
        self.tap.ack_delay(manner.delay);
        if let Some(engine) = &mut self.engine {
            engine.set_ack_delay(manner.delay);
        }
        manner.draw
    }

    /// Keeps accepted payload; what is in order now goes to the inbox.
    fn keep(&mut self, feed: &Feed, bytes: Gather) {
        if !feed.keep {
            return;
        }
        if self.store.is_empty() && feed.growth == feed.len {
            bytes.into_iter().for_each(|buf| self.inbox.append(buf));
            return;
        }
        self.store.insert(feed.position, bytes.into_iter());
        let end = feed.position + feed.growth as u64;
        if let Some(in_order) = self.store.take(feed.position, end) {
            self.inbox.append_chain(in_order);
        }
    }

    fn note_state(&mut self, before: State, after: State, reset: bool) {
        let handshake = matches!(before, State::SynSent | State::SynReceived);
        let open = !matches!(
            after,
            State::SynSent | State::SynReceived | State::Closed | State::Listen
        );
        self.established |= handshake && open;
        if handshake && open {
            self.soft_error = None;
        }
        let fell_back = after == State::Listen && before != State::Listen;
        if (after == State::Closed || fell_back) && self.ended.is_none() {
            self.before_end = before;
            self.ended = Some(if reset { Event::Reset } else { Event::Finished });
        }
    }

    /// The payload lies at a position of the inbox, if it has a real one.
    fn feed_engine(&mut self, header: &Header, len: usize, at: Option<u64>, env: &Env<'_>) {
        let now = self.engine_time(env.now);
        #[cfg(any(test, sosplice_fuzz))]
        {
            let bytes = at.map(|at| self.inbox.range(at..at + len as u64));
            let bytes = bytes.unwrap_or_default();
            self.tap.fed(now, &self.tuple, header, len, &bytes);
        }
        #[cfg(not(any(test, sosplice_fuzz)))]
        let _ = at;
        let tuple = self.tuple;
        let (mut wire, engine) = self.split(env);
        if let Some(engine) = engine {
            engine.feed(now, &tuple, header, len, &mut wire);
        }
        wire.release();
        self.broken |= wire.broken;
    }

    fn split<'a>(&'a mut self, env: &'a Env<'_>) -> (Wire<'a>, Option<&'a mut Engine>) {
        let wire = Wire {
            guard: &mut self.guard,
            ack: &mut self.ack,
            recovery: &mut self.recovery,
            waiting: &mut self.waiting,
            offset: &mut self.offset,
            wire_iss: self.wire_iss,
            env,
            held: None,
            queued: self.queued,
            last: false,
            broken: false,
            probe: self.probing,
            #[cfg(any(test, sosplice_fuzz))]
            tap: &mut self.tap,
        };
        (wire, self.engine.as_deref_mut())
    }

    /// An invariant: with debug assertions a panic that names it, otherwise the end of this
    /// connection.
    #[track_caller]
    fn check(&mut self, holds: bool, invariant: &str) {
        debug_assert!(holds, "invariant broken: {invariant}");
        self.broken |= !holds;
    }

    /// What others wait for, of a connection that stands: the bytes that have arrived, and the room
    /// that was acknowledged. `true`: the rest of the service step can wait until the end of a batch.
    pub(crate) fn absorb(&mut self, env: &Env<'_>) -> bool {
        let can_wait = |tcb: &Tcb| {
            tcb.said_established
                && tcb.ended.is_none()
                && !tcb.broken
                && tcb.state() == State::Established
        };
        if !can_wait(self) {
            return false;
        }
        self.deliver(false, env);
        self.drop_acknowledged(env);
        can_wait(self)
    }

    /// The service step, run at every exit from a connection.
    pub(crate) fn serve(&mut self, work: Work, env: &Env<'_>) -> Served {
        if self.stays_at_rest(work, env) {
            let next = self.deadline(env.now);
            return Served {
                next,
                ..Served::default()
            };
        }
        self.rise(env);
        if self.engine.is_none() {
            // What has arrived can still be read.
            self.account.set_rcv(&env.end.rcv().buf);
            self.account.tell(0, env.memory);
            return Served::default();
        }
        self.apply(work, env);
        self.deliver(work.has(Work::IDLE), env);
        self.drop_acknowledged(env);
        self.flush_waiting(env);
        self.repair(env);
        self.queue(env);
        self.emit(env);
        self.nudge(env);
        self.probe(env);
        self.expire(env);
        if self.broken {
            self.give_up(env);
            self.emit(env);
        }
        let mut served = Served {
            // Asked last: a timer's reset may have filled it.
            link_full: !self.waiting.is_empty(),
            ..Served::default()
        };
        if self.established && !self.said_established {
            self.said_established = true;
            self.fit_segments();
            served.established = true;
            env.end.connected();
        }
        served.done = self.conclude(env);
        if served.done.is_none() {
            if self.rest_at().is_some_and(|at| env.now >= at) {
                self.rest(env);
            }
            served.next = self.deadline(env.now);
        }
        let ahead = match self.store.is_empty() {
            true => 0,
            false => self.store.memory(),
        };
        self.account.tell(ahead, env.memory);
        served
    }

    /// What users asked for.
    fn apply(&mut self, work: Work, env: &Env<'_>) {
        if work.has(Work::OPTIONS) {
            let nagle = !env.options.nodelay();
            #[cfg(any(test, sosplice_fuzz))]
            self.tap.nagle(nagle);
            if let Some(engine) = &mut self.engine {
                engine.set_nagle(nagle);
            }
            self.vigil.set(env.options.keep_alive(), env.now);
            self.limits = env.options.limits();
        }
        if work.has(Work::DETACH) && !self.detached {
            self.detached = true;
            // RFC 1122 4.2.2.13: what nobody has read is lost, and the peer must know.
            let unread = !env.end.rcv().buf.is_empty();
            env.end.cantsendmore();
            let linger = env.options.linger();
            self.linger_until = linger.map(|time| env.now + time);
            if unread || self.state() == State::SynSent || linger == Some(Duration::ZERO) {
                self.abort(Event::Abort);
            }
        }
        if self.broken {
            self.give_up(env);
        }
        if work.has(Work::ABORT) {
            self.abort(Event::Abort);
        }
        for (what, error) in Work::FROM_BELOW {
            if work.has(what) {
                self.down = true;
                self.abort(Event::Below(error));
            }
        }
    }

    /// An invariant is broken: this connection ends, and it is counted.
    fn give_up(&mut self, env: &Env<'_>) {
        env.counters.broken.add(1);
        self.broken = false;
        self.abort(Event::Abort);
    }

    fn abort(&mut self, event: Event) {
        let before = self.state();
        if self.ended.is_some() || matches!(before, State::Closed) {
            return;
        }
        self.before_end = before;
        self.ended = Some(event);
        #[cfg(any(test, sosplice_fuzz))]
        self.tap.abort();
        if let Some(engine) = &mut self.engine {
            engine.abort();
        }
    }

    /// In-order bytes to `so_rcv`, and what its reader took out of the engine's ring.
    fn deliver(&mut self, idle: bool, env: &Env<'_>) {
        if self.detached && !self.inbox.is_empty() {
            // RFC 1122 4.2.2.13: new data for a socket that is closed.
            self.abort(Event::Abort);
            self.inbox = Chain::default();
        }
        if !self.inbox.is_empty() {
            // After shutdown(Read) they are acknowledged and dropped, as in BSD.
            env.end.append_rcv_from(&mut self.inbox);
        }
        if std::mem::take(&mut self.eof) {
            env.end.cantrcvmore();
        }
        let pressed = env.memory.is_pressed();
        let (taken, unread) = {
            let mut rcv = env.end.rcv();
            rcv.buf.set_pressed(pressed);
            self.account.set_rcv(&rcv.buf);
            (rcv.buf.chain().start(), rcv.buf.len())
        };
        let mut count = taken.saturating_sub(self.guard.consumed());
        if pressed {
            // The rest is told when memory is no longer short. What has been promised and what waits to
            // be read are to come to no more than the floor.
            let open = self
                .guard
                .capacity()
                .saturating_sub(self.rcv_queue() as u64);
            count = count.min((self.floor() as u64).saturating_sub(open + unread as u64));
        }
        let worth = count >= self.step || unread == 0 || idle;
        if count == 0 || !worth {
            return;
        }
        let Some(engine) = &mut self.engine else {
            return;
        };
        let count = engine.dequeue(usize::try_from(count).unwrap_or(usize::MAX));
        self.guard.consume(count);
        #[cfg(any(test, sosplice_fuzz))]
        self.tap.dequeued(count);
    }

    /// How far the window is opened while memory is short: no less than a window update is worth, and a
    /// small one altogether.
    fn floor(&self) -> usize {
        let capacity = self.guard.capacity();
        let floor = if self.step < capacity / 4 {
            self.step.max(capacity / 8).max(16 * 1024).min(capacity)
        } else {
            capacity
        };
        usize::try_from(floor).unwrap_or(usize::MAX)
    }

    /// Acknowledged bytes leave `so_snd`.
    fn drop_acknowledged(&mut self, env: &Env<'_>) {
        let acknowledged = self.guard.snd_una().min(self.queued);
        let start = {
            let mut snd = env.end.snd();
            // Before anybody is told that there is room.
            snd.buf.set_pressed(env.memory.is_pressed());
            snd.buf.chain().start()
        };
        let count = usize::try_from(acknowledged.saturating_sub(start)).unwrap_or(0);
        if count > 0 {
            env.end.drop_snd(count);
        }
        let in_engine = self.engine.as_ref().map_or(0, |engine| engine.snd_queue()) as u64;
        let open = self.ended.is_none();
        self.check(
            !open || in_engine == self.queued - acknowledged,
            "I2: bytes counted in the engine",
        );
    }

    /// New bytes of `so_snd` are counted in the engine; behind the last one it is closed (I4).
    /// Only once the handshake is over: with text queued, an engine before that sends its SYN without end.
    fn queue(&mut self, env: &Env<'_>) {
        let Some(engine) = &mut self.engine else {
            return;
        };
        let (end, closed) = {
            let snd = env.end.snd();
            self.account.set_snd(snd.buf.memory());
            (snd.buf.chain().end(), snd.buf.is_closed())
        };
        let open = matches!(engine.state(), State::Established | State::CloseWait);
        if !open {
            return;
        }
        let missing = usize::try_from(end.saturating_sub(self.queued)).unwrap_or(usize::MAX);
        if missing > 0 {
            let count = engine.enqueue(missing);
            self.queued += count as u64;
            #[cfg(any(test, sosplice_fuzz))]
            self.tap.enqueued(count);
        }
        // In LAST-ACK the engine ignores window updates, so nothing may be left to send by then.
        let may_close = engine.state() == State::Established || self.guard.snd_una() == end;
        if closed && self.queued == end && may_close {
            #[cfg(any(test, sosplice_fuzz))]
            self.tap.close();
            engine.close();
        }
    }

    /// Emits until there is nothing more, or the link is full and something is waiting for it.
    fn emit(&mut self, env: &Env<'_>) {
        self.flush_waiting(env);
        // A handshake that has waited long enough does not ask once more.
        if !self.waiting.is_empty() || self.handshake_deadline().is_some_and(|at| env.now >= at) {
            return;
        }
        let now = self.engine_time(env.now);
        let before = self.state();
        let (mut wire, engine) = self.split(env);
        let Some(engine) = engine else { return };
        loop {
            #[cfg(any(test, sosplice_fuzz))]
            wire.tap.egress(now);
            if !engine.egress(now, &mut wire) {
                break;
            }
            wire.ack.settled();
            let open = before == State::Established && engine.state() == before;
            if open && wire.last {
                let more = engine.poll_at(now).is_some_and(|at| at <= now);
                debug_assert!(!more, "there is more to emit");
                break;
            }
        }
        wire.release();
        self.broken |= wire.broken;
        self.note_state(before, self.state(), false);
    }

    /// Around a closed window the engine may be left with bytes in flight and without any timer: after
    /// a retransmission that came due while it was closed, or when probes took the retransmission's
    /// place. It is told once more what the peer has said last, and begins to probe; or, if all was
    /// sent, is told so often that it retransmits.
    fn nudge(&mut self, env: &Env<'_>) {
        const DUPLICATES: usize = 4;
        let now = self.engine_time(env.now);
        let unacknowledged = self.guard.snd_una() < self.queued;
        for _ in 0..DUPLICATES {
            let Some(engine) = self.engine.as_mut().filter(|_| unacknowledged) else {
                return;
            };
            if !hears_windows(engine.state()) || engine.poll_at(now).is_some() {
                return;
            }
            let header = self.guard.standing(self.queued);
            self.feed_engine(&header, 0, None, env);
        }
        self.emit(env);
    }

    fn flush_waiting(&mut self, env: &Env<'_>) {
        while let Some(mut waiting) = self.waiting.pop_front() {
            if !waiting.send(env) {
                self.waiting.push_front(waiting);
                return;
            }
        }
    }

    /// The engine goes when nothing is left for it to do.
    fn conclude(&mut self, env: &Env<'_>) -> Option<Done> {
        let state = self.state();
        if state == State::TimeWait && self.waiting.is_empty() && self.inbox.is_empty() {
            let record = TimeWait {
                tuple: self.tuple,
                snd_nxt: self
                    .guard
                    .snd_max_seq()
                    .wrapping_add(self.offset.unwrap_or(0)),
                rcv_nxt: self.guard.rcv_nxt_seq(),
                timestamps: None,
            };
            self.finish(None, env);
            return Some(Done::TimeWait(record));
        }
        let event = self.ended?;
        let reset_to_send = self.engine.as_ref().is_some_and(|engine| engine.has_peer());
        let wait = reset_to_send || !self.waiting.is_empty();
        if wait && state == State::Closed && !self.down {
            return None;
        }
        let ending = Ending {
            before: TcpState::of_engine(self.before_end),
            error: closed_by(self.before_end, event),
        };
        env.counters.attempts_failed.add(u64::from(ending.failed()));
        env.counters.resets.add(u64::from(ending.reset()));
        self.finish(ending.error(), env);
        Some(Done::Closed(ending))
    }

    fn finish(&mut self, error: Option<SoError>, env: &Env<'_>) {
        self.engine = None;
        self.waiting.clear();
        // Closed first: a writer must not be told that bytes were taken that are then flushed.
        env.end.disconnected(error);
        let unsent = {
            let mut snd = env.end.snd();
            let len = snd.buf.len();
            snd.buf.take(len)
        };
        self.account.set_snd(0);
        self.store = Store::default();
        drop(unsent);
    }
}

/// References to `len` bytes behind the first `skip`.
pub(super) fn cut(payload: &[Buf], mut skip: usize, mut len: usize) -> Gather {
    let mut part = Gather::new();
    for buf in payload {
        if len == 0 {
            break;
        }
        if skip >= buf.len() {
            skip -= buf.len();
            continue;
        }
        let count = (buf.len() - skip).min(len);
        part.push(buf.slice(skip..skip + count));
        skip = 0;
        len -= count;
    }
    part
}

#[cfg(test)]
mod scenarios;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i3_table_of_causes() {
        use State::*;
        let refused = SoError::ConnectionRefused;
        let table: [(Event, &[State], Option<SoError>); 7] = [
            (Event::Icmp(refused), &[SynSent, Established], Some(refused)),
            (Event::Reset, &[SynSent], Some(SoError::ConnectionRefused)),
            (
                Event::Reset,
                &[SynReceived, Established, FinWait1, FinWait2, CloseWait],
                Some(SoError::ConnectionReset),
            ),
            (Event::Reset, &[Closing, LastAck, TimeWait], None),
            (Event::Finished, &[LastAck, TimeWait], None),
            (
                Event::Abort,
                &[Established, CloseWait],
                Some(SoError::ConnectionAborted),
            ),
            (
                Event::Timer,
                &[SynSent, Established, FinWait2],
                Some(SoError::TimedOut),
            ),
        ];
        for (event, states, error) in table {
            for state in states {
                assert_eq!(closed_by(*state, event), error, "{event:?} in {state:?}");
            }
        }
    }
}
