//! A connection's control block: positions without payload.
//!
//! It holds no bytes and reads no clock. Its owner calls, in four groups:
//!
//! * *getters*, at any time;
//! * *network events and timers*: [`handle_segment`](Tcb::handle_segment),
//!   [`handle_timeout`](Tcb::handle_timeout), [`handle_icmp`](Tcb::handle_icmp);
//! * *calls of the application*: [`written`](Tcb::written), [`read`](Tcb::read),
//!   [`shutdown`](Tcb::shutdown), [`detach`](Tcb::detach), [`abort`](Tcb::abort), options;
//! * *results*, after any of those: [`poll_transmit`](Tcb::poll_transmit) until it returns `None` or
//!   the link is full, [`poll_event`](Tcb::poll_event) until it returns `None`, and
//!   [`deadline`](Tcb::deadline), when `handle_timeout` must be called.
//!
//! The owner keeps the payload of a received segment as [`Taken`] directs: bytes by position, of which
//! those below RCV.NXT go to the reader. [`Emission::payload`](super::segment::Emission) selects the
//! payload to send from the written bytes.
//!
//! Each variable of the RFC has one owner: receive sequence space and window [`Receiver`], send
//! sequence space and the peer's window [`Sender`], transmit record and losses [`Recovery`], the
//! congestion window [`Congestion`], the size of segments [`PathMtu`], times [`Timers`], limits
//! [`Watch`].

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
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

/// The configuration of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// ISS (RFC 6528).
    pub(crate) iss: u32,
    /// The link's MTU in bytes.
    pub(crate) mtu: usize,
    pub(crate) v6: bool,
    /// The cached path MTU.
    pub(crate) path: Option<Known>,
    /// Bytes of the receive buffer: the largest window.
    pub(crate) receive_buffer: usize,
    /// Initial window in bytes.
    pub(crate) initial_window: usize,
    /// Offer timestamps, beginning with this unpredictable value (RFC 7323 7.1).
    pub(crate) timestamps: Option<u32>,
    /// Offer SACK.
    pub(crate) sack: bool,
    /// The SYN|ACK was sent before, as a cookie (RFC 4987 3.6).
    pub(crate) answered: bool,
    /// `None`: no delayed acknowledgements.
    pub(crate) ack_delay: Option<Duration>,
    pub(crate) nodelay: bool,
    pub(crate) minimum_rto: Duration,
    pub(crate) congestion: Kind,
    /// Offer ECN (RFC 3168).
    pub(crate) ecn: bool,
    pub(crate) limits: Arc<Limits>,
}

/// Default minimum of the retransmission timeout.
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
    /// An abort by this side, or data for a closed socket.
    Aborted,
    /// A time limit.
    TimedOut,
    /// The link, a driver or the address of the stack is gone.
    FromBelow(SoError),
    /// An ICMP error.
    Icmp(SoError),
}

/// How a connection without a TIME-WAIT record has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    /// The state before.
    pub(crate) before: TcpState,
    /// It was an active open.
    pub(crate) active: bool,
    pub(crate) cause: Cause,
}

impl Ending {
    /// Its `so_error`.
    pub(crate) fn error(self) -> Option<SoError> {
        use TcpState::*;
        match (self.cause, self.before) {
            (Cause::Reset, SynSent) => Some(SoError::ConnectionRefused),
            // RFC 9293 3.10.7.4, and BSD: a simultaneous open that is reset was refused.
            (Cause::Reset, SynReceived) if self.active => Some(SoError::ConnectionRefused),
            // The peer has all data and our FIN: no data was lost.
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

/// An event, reported once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// The connection is established.
    Established,
    /// The peer's FIN was received in order: no data follows RCV.NXT.
    PeerClosed,
    /// The connection has ended; [`Tcb::poll_transmit`] may still have a reset.
    Ended(Ending),
    /// TIME-WAIT: a record remains, once the last acknowledgement was sent.
    TimeWait(Record),
}

/// The result of a received segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Taken {
    /// Payload to keep.
    pub(crate) kept: Option<Kept>,
    /// It was acceptable.
    pub(crate) accepted: bool,
    /// Payload was dropped because of memory pressure.
    pub(crate) declined: bool,
}

/// A reset that is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reset {
    /// For this connection.
    Own,
    /// For an old connection with the same tuple: <SEQ=SEG.ACK><CTL=RST> (RFC 9293 3.10.7.3).
    Answer(u32),
}

/// The state of the handshake.
#[derive(Debug, Clone, Copy, Default)]
struct Handshake {
    /// A SYN or SYN|ACK is to be sent.
    due: bool,
    /// When it was first sent.
    sent_at: Option<Instant>,
    /// Number of retransmissions.
    retransmissions: u32,
    /// It was retransmitted at once after a stale acknowledgement.
    hurried: bool,
}

/// The negotiated options.
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
    /// It is an active open.
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
    /// A close before the connection is established, which takes effect then.
    wants_close: bool,
    reset: Option<Reset>,
    /// A keep-alive probe is to be sent.
    keep_alive_due: bool,
    /// When a challenge ACK was last sent (RFC 5961 7).
    challenged_at: Option<Instant>,
    news: Vec<News>,
}

/// RFC 5961 7: minimum interval of challenge ACKs.
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

    /// A SYN for a listener (RFC 9293 3.10.7.2). `None` if it is not a SYN. Its payload is not kept.
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

    /// The time of the latest progress in either direction.
    pub(crate) fn moved_at(&self) -> Instant {
        self.watch.moved_at()
    }

    /// Payload of a full segment.
    pub(crate) fn mss(&self) -> usize {
        self.path.mss()
    }

    /// The finding about the path MTU since the last call.
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

    /// Whether data or FIN of ours is not acknowledged, or not sent.
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

    /// A line for debugging.
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

    /// Releases memory that an idle connection does not need.
    pub(crate) fn release_memory(&mut self) {
        self.recovery.release_memory();
        self.receiver.release_memory();
        if self.recovery.record().is_empty() {
            self.congestion.release_memory();
        }
    }

    /// Reads from all parts: a processor that has none of them in its caches fetches them at once, and not one after the
    /// other.
    pub(crate) fn prefetch(&self) {
        black_box((
            self.receiver.lines(),
            self.recovery.lines(),
            self.congestion.lines(),
            self.path.mss(),
            self.news.len(),
            self.sender.lines(),
            self.watch.lines(),
            self.timers.get(Timer::Probe),
            self.state,
        ));
    }

    // Calls of the application.

    /// The program has written all bytes up to a position.
    pub(crate) fn written(&mut self, to: u64, now: Instant) {
        if !self.wants_close && self.state != TcpState::Closed {
            self.note_app_limit();
            self.sender.write(to);
            self.settle(now);
        }
    }

    /// CheckIfApplicationLimited (draft-ietf-ccwg-bbr 4.1.2.4): all written data was sent, and cwnd has
    /// room for more.
    fn note_app_limit(&mut self) {
        let pipe = self.recovery.pipe();
        let free = pipe < self.congestion.window() && !self.recovery.owes();
        if self.congestion.is_model() && free && self.sender.nxt() == self.sender.end() {
            self.congestion.limit_by_app(pipe);
        }
    }

    /// The reader has read all bytes up to a position. `idle`: it waits for more, so a withheld window
    /// update must be sent.
    pub(crate) fn read(&mut self, to: u64, idle: bool, now: Instant) {
        let rtt = self.recovery.rtt().smoothed();
        self.receiver.read(to, rtt, now);
        if state::may_receive(self.state) && self.receiver.wants_update(idle) {
            self.delayed_ack.demand();
        }
    }

    /// The position that the reader has to reach for an update of the window.
    pub(crate) fn next_update(&self) -> u64 {
        self.receiver.next_update()
    }

    /// Limits window plus unread bytes.
    pub(crate) fn set_receive_buffer(&mut self, bytes: usize) {
        self.receiver.set_capacity(bytes);
    }

    /// Sets the policy for received data.
    pub(crate) fn set_accept_policy(&mut self, accept_policy: AcceptPolicy) {
        self.receiver.set_accept_policy(accept_policy);
    }

    pub(crate) fn set_nodelay(&mut self, nodelay: bool) {
        self.sender.set_nodelay(nodelay);
    }

    /// Changes the congestion control, keeping the present window.
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

    /// No more bytes will be written (RFC 9293 3.10.4). Takes effect when the connection is
    /// established.
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

    /// The socket has no handle any more: data that arrives from now on resets the connection (RFC 9293
    /// 3.10.4, 1122 4.2.2.13). `abort`: there is unread data, or the linger time is zero.
    pub(crate) fn detach(&mut self, abort: bool, linger: Option<Duration>, now: Instant) {
        self.watch.detach(linger, now);
        // RFC 9293 3.10.4: in SYN-SENT nothing is sent.
        if abort || self.state == TcpState::SynSent {
            self.abort(Cause::Aborted);
        } else {
            self.shutdown(now);
        }
    }

    /// Ends the connection at once; a reset is sent if the peer has state for it (RFC 9293 3.10.5). In TIME-WAIT the
    /// program has nothing left to abort, and the peer may not have the acknowledgement of its FIN yet: no effect.
    pub(crate) fn abort(&mut self, cause: Cause) {
        use TcpState::*;
        if self.state == TimeWait && cause == Cause::Aborted {
            return;
        }
        let is_reported = matches!(
            self.state,
            SynReceived | Established | FinWait1 | FinWait2 | CloseWait | Closing | LastAck
        );
        if is_reported {
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
            // No record remains, and its acknowledgement is not sent any more.
            self.news.retain(|news| !matches!(news, News::TimeWait(_)));
            self.news.push(News::Ended(ending));
        }
    }

    /// Applies an event to the state. `false` if it has no effect.
    fn change(&mut self, event: Event) -> bool {
        let Some(next) = step(self.state, event) else {
            return false;
        };
        self.state = next;
        true
    }

    // Timers.

    /// Updates the limits and the probes of a closed window.
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

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, without an earlier event.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let watch = self.watch.deadline();
        self.timers.next().into_iter().chain(watch).min()
    }

    /// Whether a timer other than limits and keep-alive is set.
    pub(crate) fn has_timers(&self) -> bool {
        self.timers.next().is_some()
    }

    /// Whether there is nothing to send or report until the next event.
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

    /// When a limit is reached: the only deadline while the link is full.
    pub(crate) fn limit(&self) -> Option<Instant> {
        self.watch.deadline()
    }

    /// Applies the limits only.
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

    /// Handles the due timers.
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
                // RFC 8985 7.3: the timeout restarts with the probe.
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

    /// Applies a new segment size.
    fn apply_mss(&mut self) {
        let mss = self.path.mss();
        self.recovery.set_mss(mss);
        self.congestion.set_mss(mss);
    }

    /// Processes an ICMP error that quotes this sequence number (RFC 5927 4.1, 9293 3.9.2.2, 5461).
    /// `false` if that is not in flight.
    pub(crate) fn handle_icmp(&mut self, seq: u32, kind: IcmpErrorKind, now: Instant) -> bool {
        if !self.is_in_flight(seq) {
            return false;
        }
        let attempt = self.state == TcpState::SynSent;
        match kind {
            IcmpErrorKind::Hard(error) if attempt => self.abort(Cause::Icmp(error)),
            IcmpErrorKind::Soft if attempt && self.watch.has_soft_failed(now) => {
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

    /// RFC 1191 6, 8201 5.4: data of packets that were too big is retransmitted at once, in smaller
    /// ones.
    fn too_big(&mut self, mtu: usize) {
        if !state::is_synchronised(self.state) || !self.path.too_big(mtu) {
            return;
        }
        // Unpaced like a first flight; a whole window could overflow the path.
        let burst = self.congestion.initial_burst();
        self.apply_mss();
        self.recovery.too_large(self.path.mss());
        self.pacer.allow(burst.min(self.congestion.window()));
    }

    /// The next event; each is returned once.
    pub(crate) fn poll_event(&mut self) -> Option<News> {
        let first = *self.news.first()?;
        // The record must include the last acknowledgement.
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
