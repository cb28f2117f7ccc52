//! A connection's control block: positions without payload.
//!
//! It holds no bytes and reads no clock. Its owner calls, in four groups:
//!
//! * *getters*, at any time;
//! * *what happened*: [`handle_segment`](Tcb::handle_segment), [`handle_timeout`](Tcb::handle_timeout),
//!   [`handle_icmp`](Tcb::handle_icmp);
//! * *what the user did*: [`written`](Tcb::written), [`read`](Tcb::read), [`shutdown`](Tcb::shutdown),
//!   [`detach`](Tcb::detach), [`abort`](Tcb::abort), options;
//! * *what follows*, after any of those: [`poll_transmit`](Tcb::poll_transmit) until there is nothing
//!   or the link is full, [`poll_event`](Tcb::poll_event) until there is nothing, and
//!   [`deadline`](Tcb::deadline), by which `handle_timeout` is to be called.
//!
//! Payload of a received segment is kept by the owner as [`Taken`] says: bytes by position, of which
//! those below RCV.NXT go to the reader. Payload that is sent is picked out of what the
//! user has written by [`Emission::payload`](super::segment::Emission).
//!
//! Each variable of the RFC has one owner: receive sequence space and window [`Receiver`], send
//! sequence space and the peer's window [`Sender`], what was sent when and what is lost
//! [`Recovery`], the congestion window [`Congestion`], the size of segments [`PathMtu`], times
//! [`Timers`], limits [`Watch`].

mod input;
mod output;

use super::auto_tune;
use super::congestion::Congestion;
use super::congestion::algorithm::Kind;
use super::delayed_ack::DelayedAck;
use super::ecn::Ecn;
use super::pace::Pacer;
use super::path_mtu::{Finding, Known, PathMtu};
use super::receiver::{Kept, Receiver};
use super::recovery::{Phase, Recovery};
use super::segment::{Segment, Timestamps};
use super::sender::Sender;
use super::stamp::StampClock;
use super::state::{self, Event, step};
use super::time_wait::Record;
use super::timers::{Timer, Timers};
use super::watch::{Standing, Watch};
use crate::error::SoError;
use crate::tcp::block::time::Instant;
use crate::tcp::icmp::IcmpErrorKind;
use crate::tcp::keep_alive::Due;
use crate::tcp::limits::Limits;
use crate::tcp::memory::AcceptPolicy;
use crate::tcp::state::TcpState;
use std::sync::Arc;
use std::time::Duration;

/// How a connection is made.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// ISS (RFC 6528).
    pub(crate) iss: u32,
    /// Bytes of a packet that the link carries.
    pub(crate) mtu: usize,
    pub(crate) v6: bool,
    /// What is known of the path.
    pub(crate) path: Option<Known>,
    /// Bytes of the receive buffer: the largest window.
    pub(crate) receive_buffer: usize,
    /// Bytes of it that are offered at first.
    pub(crate) initial_window: usize,
    /// Offer timestamps, beginning with this number, which is not to be guessed (RFC 7323 7.1).
    pub(crate) timestamps: Option<u32>,
    /// Offer SACK.
    pub(crate) sack: bool,
    /// The SYN|ACK has left before: it was a cookie (RFC 4987 3.6).
    pub(crate) answered: bool,
    /// `None`: no acknowledgement waits.
    pub(crate) ack_delay: Option<Duration>,
    pub(crate) nodelay: bool,
    pub(crate) minimum_rto: Duration,
    pub(crate) congestion: Kind,
    /// Offer ECN (RFC 3168).
    pub(crate) ecn: bool,
    pub(crate) limits: Arc<Limits>,
}

/// The smallest retransmission timeout, unless another is set.
pub(crate) const MINIMUM_RTO: Duration = Duration::from_millis(200);

impl Default for Config {
    fn default() -> Config {
        Config {
            iss: 0,
            mtu: 1500,
            v6: false,
            path: None,
            receive_buffer: 256 * 1024,
            initial_window: auto_tune::INITIAL,
            timestamps: Some(0),
            sack: true,
            answered: false,
            ack_delay: Some(Duration::from_millis(40)),
            nodelay: false,
            minimum_rto: MINIMUM_RTO,
            congestion: Kind::Cubic,
            ecn: false,
            limits: Arc::default(),
        }
    }
}

/// Why a connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// An accepted RST.
    Reset,
    /// Both sides have closed.
    Finished,
    /// Our own call, or data for a socket that is closed.
    Aborted,
    /// A time limit.
    TimedOut,
    /// What it stood on is gone: the link, a driver, its address.
    FromBelow(SoError),
    /// A router's word.
    Icmp(SoError),
}

/// How a connection of which nothing remains has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    /// The state before.
    pub(crate) before: TcpState,
    /// We have opened it.
    pub(crate) active: bool,
    pub(crate) cause: Cause,
}

impl Ending {
    /// What `so_error` says.
    pub(crate) fn error(self) -> Option<SoError> {
        use TcpState::*;
        match (self.cause, self.before) {
            (Cause::Reset, SynSent) => Some(SoError::ConnectionRefused),
            // RFC 9293 3.10.7.4, and BSD: a simultaneous open that is reset was refused.
            (Cause::Reset, SynReceived) if self.active => Some(SoError::ConnectionRefused),
            // The other side has everything and our FIN: nothing was lost.
            (Cause::Reset, Closing | LastAck | TimeWait) => None,
            (Cause::Reset, _) => Some(SoError::ConnectionReset),
            (Cause::Finished, _) => None,
            (Cause::Aborted, _) => Some(SoError::ConnectionAborted),
            (Cause::TimedOut, _) => Some(SoError::TimedOut),
            (Cause::Icmp(error), _) => Some(error),
            (Cause::FromBelow(_), TimeWait) => None,
            (Cause::FromBelow(error), _) => Some(error),
        }
    }
}

/// What is told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// The handshake is over.
    Established,
    /// The peer's FIN came in order: nothing more is to be read behind RCV.NXT.
    PeerClosed,
    /// Nothing remains, but for a reset that [`Tcb::poll_transmit`] may still have.
    Ended(Ending),
    /// A record remains, once the last acknowledgement has left.
    TimeWait(Record),
}

/// What became of a received segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Taken {
    /// Payload that is to be kept.
    pub(crate) kept: Option<Kept>,
    /// It was acceptable.
    pub(crate) accepted: bool,
    /// Payload was dropped for want of memory.
    pub(crate) declined: bool,
}

/// A reset that is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reset {
    /// For this connection.
    Own,
    /// For another one of the same ends: <SEQ=SEG.ACK><CTL=RST> (RFC 9293 3.10.7.3).
    Answer(u32),
}

/// The handshake, until it is over.
#[derive(Debug, Clone, Copy, Default)]
struct Handshake {
    /// A SYN or SYN|ACK is to be sent.
    due: bool,
    /// When it was first sent.
    sent_at: Option<Instant>,
    /// How often it was sent again.
    retransmissions: u32,
    /// It was sent again at once after a stale acknowledgement.
    hurried: bool,
}

/// What both SYNs have agreed on.
#[derive(Debug, Clone, Copy, Default)]
struct Agreed {
    timestamps: bool,
    sack: bool,
    scaled: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Tcb {
    state: TcpState,
    /// We have opened it.
    active: bool,
    receiver: Receiver,
    delayed_ack: DelayedAck,
    sender: Sender,
    recovery: Recovery,
    congestion: Congestion,
    ecn: Ecn,
    pacer: Pacer,
    path: PathMtu,
    timers: Timers,
    watch: Watch,
    stamps: Option<StampClock>,
    offered: Agreed,
    agreed: Agreed,
    handshake: Handshake,
    /// The user has closed; before the connection is established that waits.
    wants_close: bool,
    reset: Option<Reset>,
    /// A keep-alive probe is to be sent.
    keep_alive_due: bool,
    /// When a challenge was last answered (RFC 5961 7).
    challenged_at: Option<Instant>,
    news: Vec<News>,
}

/// RFC 5961 7: no more than one challenge in this time.
const CHALLENGE_EVERY: Duration = Duration::from_secs(1);

impl Tcb {
    fn new(config: &Config, active: bool, now: Instant) -> Tcb {
        let mut path = PathMtu::new(config.mtu, config.v6);
        if let Some(known) = config.path {
            path.begin(known, now);
        }
        let mss = path.mss();
        let buffer = (config.receive_buffer, config.initial_window);
        Tcb {
            state: TcpState::Closed,
            active,
            receiver: Receiver::new(buffer, path.link_mss(), now),
            delayed_ack: DelayedAck::new(config.ack_delay),
            sender: Sender::new(config.iss, config.nodelay),
            recovery: Recovery::new(config.minimum_rto, mss),
            congestion: Congestion::new(config.congestion, mss, config.iss),
            ecn: Ecn::new(config.ecn),
            pacer: Pacer::default(),
            path,
            timers: Timers::default(),
            watch: Watch::new(config.limits.clone(), now),
            stamps: config.timestamps.map(|offset| StampClock::new(now, offset)),
            offered: Agreed {
                timestamps: config.timestamps.is_some(),
                sack: config.sack,
                scaled: true,
            },
            agreed: Agreed::default(),
            handshake: Handshake {
                due: true,
                ..Handshake::default()
            },
            wants_close: false,
            reset: None,
            keep_alive_due: false,
            challenged_at: None,
            news: Vec::new(),
        }
    }

    /// An active OPEN (RFC 9293 3.10.1).
    pub(crate) fn connect(config: &Config, now: Instant) -> Tcb {
        let mut tcb = Tcb::new(config, true, now);
        tcb.change(Event::Connect);
        tcb.settle(now);
        tcb
    }

    /// A SYN has come for a listener (RFC 9293 3.10.7.2). `None`: it is none. Its payload is not kept.
    pub(crate) fn accept(config: &Config, syn: &Segment, now: Instant) -> Option<Tcb> {
        use super::segment::{ACK, FIN, RST, SYN};
        if syn.flags & (SYN | ACK | RST | FIN) != SYN {
            return None;
        }
        let mut tcb = Tcb::new(config, false, now);
        tcb.change(Event::Accept);
        tcb.synchronise(syn, now);
        if config.answered {
            tcb.handshake.due = false;
            tcb.receiver.advertise_syn();
        }
        tcb.settle(now);
        Some(tcb)
    }

    // Getters.

    pub(crate) fn state(&self) -> TcpState {
        self.state
    }

    /// Bytes of the received stream that are in order.
    #[cfg(test)]
    pub(crate) fn in_order(&self) -> u64 {
        self.receiver.in_order()
    }

    /// Bytes of the sent stream that are acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.sender.acknowledged_bytes()
    }

    /// When something last moved in either direction.
    pub(crate) fn moved_at(&self) -> Instant {
        self.watch.moved_at()
    }

    /// Payload of a full segment.
    pub(crate) fn mss(&self) -> usize {
        self.path.mss()
    }

    /// What was found out about the path since the last call.
    pub(crate) fn take_finding(&mut self) -> Option<Finding> {
        self.path.take_finding()
    }

    /// SRTT.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.recovery.rtt().smoothed()
    }

    /// cwnd, in bytes.
    #[cfg(test)]
    pub(crate) fn congestion_window(&self) -> u64 {
        self.congestion.window()
    }

    /// Something of ours is not acknowledged, or not sent.
    pub(crate) fn is_outstanding(&self) -> bool {
        self.sender.una() < self.sender.max() || self.sender.una() < self.sender.end()
    }

    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> u64 {
        self.recovery.pipe()
    }

    #[cfg(test)]
    pub(crate) fn recovery_phase(&self) -> Phase {
        self.recovery.phase()
    }

    /// Bytes that the peer has out of order.
    #[cfg(test)]
    pub(crate) fn sacked(&self) -> u64 {
        self.recovery.record().sacked()
    }

    /// The invariants that the parts' documentation states.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let (una, nxt, max) = (self.sender.una(), self.sender.nxt(), self.sender.max());
        assert!(una <= nxt && nxt <= max && max <= self.sender.end().max(nxt) && max <= nxt + 2);
        let record = self.recovery.record();
        record.check();
        let covered = record.in_flight() + record.lost() + record.sacked();
        assert!(
            self.state == TcpState::Closed || covered == nxt - una,
            "{covered} of {una}..{nxt}"
        );
        let nxt = self.receiver.nxt();
        assert!(self.receiver.edge() >= nxt && self.receiver.ahead().all(|one| one.start > nxt));
        assert!(self.congestion.window() >= self.path.mss() as u64);
    }

    #[cfg(test)]
    pub(crate) fn send_span(&self) -> (u64, u64) {
        (self.sender.una(), self.sender.max())
    }

    #[cfg(test)]
    pub(crate) fn send_number(&self, position: u64) -> u32 {
        self.sender.seq(position)
    }

    #[cfg(test)]
    pub(crate) fn receive_next(&self) -> u32 {
        self.receiver.nxt_seq()
    }

    #[cfg(test)]
    pub(crate) fn is_closed(&self) -> bool {
        self.wants_close
    }

    /// A line for the eye.
    #[cfg(test)]
    pub(crate) fn brief(&self) -> String {
        format!(
            "{} {:?} cwnd {} ssthresh {} pipe {} lost {} sacked {} edge+{} srtt {:?} min {:?} {}",
            self.state,
            self.recovery.phase(),
            self.congestion.window() / 1448,
            self.congestion.ssthresh().min(1 << 40) / 1448,
            self.recovery.pipe() / 1448,
            self.recovery.record().lost() / 1448,
            self.recovery.record().sacked() / 1448,
            self.sender.edge().saturating_sub(self.sender.nxt()) / 1448,
            self.recovery.rtt().smoothed().unwrap_or_default(),
            self.recovery.rtt().least().unwrap_or_default(),
            self.congestion.brief(),
        )
    }

    /// Gives back memory that an idle connection does not need.
    pub(crate) fn rest(&mut self) {
        self.recovery.rest();
        self.receiver.rest();
        if self.recovery.record().is_empty() {
            self.congestion.rest();
        }
    }

    // What the user did.

    /// The user has written all up to a position.
    pub(crate) fn written(&mut self, to: u64, now: Instant) {
        if !self.wants_close && self.state != TcpState::Closed {
            self.note_app_limit();
            self.sender.write(to);
            self.settle(now);
        }
    }

    /// CheckIfApplicationLimited (draft-ietf-ccwg-bbr 4.1.2.4): all that was written has left, and more could.
    fn note_app_limit(&mut self) {
        let pipe = self.recovery.pipe();
        let free = pipe < self.congestion.window() && !self.recovery.owes();
        if self.congestion.is_model() && free && self.sender.nxt() == self.sender.end() {
            self.congestion.limit_by_app(pipe);
        }
    }

    /// The reader has taken all up to a position. `idle`: it waits for more, so what the peer does not yet
    /// know of the window is to be told.
    pub(crate) fn read(&mut self, to: u64, idle: bool, now: Instant) {
        let rtt = self.recovery.rtt().smoothed();
        self.receiver.read(to, rtt, now);
        if state::may_receive(self.state) && self.receiver.wants_update(idle) {
            self.delayed_ack.demand();
        }
    }

    /// Bytes of window and of what waits to be read come to no more than this.
    pub(crate) fn set_receive_buffer(&mut self, bytes: usize) {
        self.receiver.set_capacity(bytes);
    }

    /// What is taken of what arrives from now on.
    pub(crate) fn set_accept_policy(&mut self, accept_policy: AcceptPolicy) {
        self.receiver.set_accept_policy(accept_policy);
    }

    pub(crate) fn set_nodelay(&mut self, nodelay: bool) {
        self.sender.set_nodelay(nodelay);
    }

    /// Another congestion control, which goes on from the present window.
    pub(crate) fn set_congestion(&mut self, kind: Kind, now: Instant) {
        let (seed, nxt) = (self.sender.iss(), self.sender.nxt());
        if !self.congestion.change(kind, (seed, nxt)) {
            return;
        }
        self.pacer.allow(self.congestion.initial_burst());
        if let Some(rtt) = self.recovery.rtt().least() {
            self.congestion.established(rtt, now);
        }
    }

    pub(crate) fn set_limits(&mut self, limits: Arc<Limits>, now: Instant) {
        self.watch.set(limits, now);
    }

    /// Nothing is written any more (RFC 9293 3.10.4). Before the connection is established that waits.
    pub(crate) fn shutdown(&mut self, now: Instant) {
        self.wants_close = true;
        self.close();
        self.settle(now);
    }

    fn close(&mut self) {
        if self.wants_close && self.change(Event::Close) {
            self.sender.close();
        }
    }

    /// No user holds the socket any more: data that arrives from now on resets the connection (RFC 9293
    /// 3.10.4, 1122 4.2.2.13). `abort`: what had arrived was not read, or nothing is to linger.
    pub(crate) fn detach(&mut self, abort: bool, linger: Option<Duration>, now: Instant) {
        self.watch.detach(linger, now);
        // RFC 9293 3.10.4: in SYN-SENT nothing is sent.
        if abort || self.state == TcpState::SynSent {
            self.abort(Cause::Aborted);
        } else {
            self.shutdown(now);
        }
    }

    /// Ends the connection at once; a reset is sent where the peer knows of it (RFC 9293 3.10.5).
    pub(crate) fn abort(&mut self, cause: Cause) {
        use TcpState::*;
        let told = matches!(
            self.state,
            SynReceived | Established | FinWait1 | FinWait2 | CloseWait | Closing | LastAck
        );
        if told {
            self.reset = Some(Reset::Own);
        }
        self.end(cause);
    }

    fn end(&mut self, cause: Cause) {
        let ending = Ending {
            before: self.state,
            active: self.active,
            cause,
        };
        if self.change(Event::Gone) {
            self.timers.clear();
            self.watch.end();
            self.news.push(News::Ended(ending));
        }
    }

    /// The state that follows. `false`: the event means nothing now.
    fn change(&mut self, event: Event) -> bool {
        let Some(next) = step(self.state, event) else {
            return false;
        };
        self.state = next;
        true
    }

    // Timers.

    /// Takes note of where the connection is, for its limits and for probes of a closed window.
    fn settle(&mut self, now: Instant) {
        let at = Standing {
            state: self.state,
            moved: (
                self.receiver.nxt(),
                self.sender.una(),
                self.sender.written(),
            ),
            outstanding: state::is_synchronised(self.state) && self.is_outstanding(),
        };
        self.watch.update(at, now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if nothing happens before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let watch = self.watch.deadline();
        self.timers.next().into_iter().chain(watch).min()
    }

    /// Something is to happen at some time, whatever the peer does: more than limits and keep-alive.
    pub(crate) fn has_timers(&self) -> bool {
        self.timers.next().is_some()
    }

    /// Nothing is to be sent or told before something happens.
    pub(crate) fn is_quiet(&self) -> bool {
        self.state == TcpState::Established
            && self.sender.nxt() == self.sender.end()
            && !self.delayed_ack.is_due()
            && !self.recovery.owes()
            && !self.recovery.probe_due()
            && !self.keep_alive_due
            && self.reset.is_none()
            && self.news.is_empty()
            && !self.path.has_finding()
    }

    /// When a limit is reached: all that counts behind a full link.
    pub(crate) fn limit(&self) -> Option<Instant> {
        self.watch.deadline()
    }

    /// Does what limits ask for, and nothing else that is due.
    pub(crate) fn handle_limits(&mut self, now: Instant) {
        if let Some(due) = self.watch.due(now) {
            match due {
                Due::Probe => self.keep_alive_due = true,
                Due::Dead => {
                    let error = self.watch.soft_error();
                    self.abort(error.map_or(Cause::TimedOut, Cause::Icmp));
                }
            }
        }
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.handle_limits(now);
        self.note_app_limit();
        for timer in Timer::ALL {
            if self.timers.take_due(timer, now) {
                self.expire(timer, now);
            }
        }
        self.settle(now);
    }

    fn expire(&mut self, timer: Timer, now: Instant) {
        match timer {
            Timer::Handshake => {
                self.handshake.retransmissions += 1;
                self.handshake.due = true;
            }
            Timer::Probe => {
                self.recovery.demand_probe();
                // RFC 8985 7.3: the timeout begins anew with the probe.
                let again = now + self.recovery.timeout();
                self.timers.set(Timer::Retransmit, again);
            }
            Timer::Retransmit => self.retransmission_times_out(now),
            Timer::Reorder => {
                let span = (self.sender.una(), self.sender.nxt());
                let before = self.recovery.phase();
                let (cc, timers) = (&mut self.congestion, &mut self.timers);
                self.recovery.reordering_is_over(span, cc, now, timers);
                self.note_reduction(before);
            }
            Timer::Persist => self.sender.demand_probe(),
            Timer::DelayedAck => self.delayed_ack.demand(),
            Timer::Pace => {}
        }
    }

    fn retransmission_times_out(&mut self, now: Instant) {
        let size = self.recovery.record().first().map_or(0, |first| first.size);
        let nxt = self.sender.nxt();
        let (cc, timers) = (&mut self.congestion, &mut self.timers);
        self.recovery.timed_out(nxt, cc, now, timers);
        self.ecn.reduced(nxt);
        if self.path.timed_out(self.recovery.timeouts(), size.into()) {
            self.apply_mss();
        }
    }

    /// RFC 3168 6.1.2: a recovery that has begun reduces the window too.
    fn note_reduction(&mut self, before: Phase) {
        if before == Phase::Open && self.recovery.phase() != Phase::Open {
            self.ecn.reduced(self.sender.nxt());
        }
    }

    /// Segments have another size from now on.
    fn apply_mss(&mut self) {
        let mss = self.path.mss();
        self.recovery.set_mss(mss);
        self.congestion.set_mss(mss);
    }

    /// Takes what an ICMP error says about a segment of ours with this sequence number (RFC 5927 4.1,
    /// 9293 3.9.2.2, 5461). `false`: it is not about something in flight.
    pub(crate) fn handle_icmp(&mut self, seq: u32, kind: IcmpErrorKind, now: Instant) -> bool {
        if !self.is_in_flight(seq) {
            return false;
        }
        let attempt = self.state == TcpState::SynSent;
        match kind {
            IcmpErrorKind::Hard(error) if attempt => self.abort(Cause::Icmp(error)),
            IcmpErrorKind::Soft if attempt && self.watch.despairs(now) => {
                self.abort(Cause::Icmp(SoError::HostUnreachable));
            }
            IcmpErrorKind::Hard(_) | IcmpErrorKind::Soft => {
                self.watch.note_soft_error(SoError::HostUnreachable);
            }
            IcmpErrorKind::TooBig(mtu) => self.too_big(mtu),
        }
        true
    }

    fn is_in_flight(&self, seq: u32) -> bool {
        let position = self.sender.position(seq);
        if matches!(self.state, TcpState::SynSent | TcpState::SynReceived) {
            return position == -1;
        }
        let (una, max) = (self.sender.una(), self.sender.max());
        u64::try_from(position).is_ok_and(|position| una <= position && position < max)
    }

    /// RFC 1191 6, 8201 5.4: what does not fit is sent again at once, in smaller packets.
    fn too_big(&mut self, mtu: usize) {
        if !state::is_synchronised(self.state) || !self.path.too_big(mtu) {
            return;
        }
        // A first flight at once; a whole window would overflow the path.
        let burst = self.congestion.initial_burst();
        self.apply_mss();
        self.recovery.too_large(self.path.mss());
        self.pacer.allow(burst.min(self.congestion.window()));
    }

    /// What has happened, once.
    pub(crate) fn poll_event(&mut self) -> Option<News> {
        let first = *self.news.first()?;
        // The record counts what the last acknowledgement has told.
        if matches!(first, News::TimeWait(_)) && self.delayed_ack.is_due() {
            return None;
        }
        self.news.remove(0);
        Some(match first {
            News::TimeWait(record) => News::TimeWait(Record {
                rcv_nxt: self.receiver.nxt_seq(),
                ..record
            }),
            news => news,
        })
    }

    fn time_wait(&self, now: Instant) -> Record {
        let stamps = self.stamps.filter(|_| self.agreed.timestamps);
        Record {
            snd_nxt: self.sender.seq(self.sender.max()),
            rcv_nxt: self.receiver.nxt_seq(),
            timestamps: stamps.map(|stamps| Timestamps {
                value: stamps.at(now),
                echo: self.receiver.echo(),
            }),
        }
    }
}
