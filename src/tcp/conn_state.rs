//! One connection's state: control block ([`block`](super::block)), out-of-order payload, and the service
//! step that keeps them and the socket's buffers together.
//!
//! Everything here runs under the connection's ownership (rank 1) and takes the locks of the two
//! socket buffers (2, 3) one at a time. Nothing here reads a clock.

use super::block::path_mtu::Known;
use super::block::segment::{Emission, Segment, SegmentOptions};
use super::block::tcb::{Cause, Config, News, Tcb};
use super::block::time::Instant;
use super::home::{Home, TimerKey};
use super::icmp::{IcmpError, IcmpErrorKind};
use super::limits::Limits;
use super::memory::{AcceptPolicy, Account};
use super::options::Options;
use super::output::Waiting;
use super::service::{Absorbed, Done, Ending, Env, Served, Work};
use super::state::TcpState;
use super::store::Store;
use super::time_wait::TimeWait;
use super::wire::{self, MAX_HEADER, TCP_HEADER, Tuple};
use crate::buf::{Buf, Chain, Gather};
use crate::error::SoError;
use crate::ip::{self, IPV4_HEADER, PROTO_TCP};
use smallvec::SmallVec;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

/// The initial window is the receive buffer up to this size; a larger buffer is offered as its reader
/// keeps up.
const INITIAL_WINDOW: usize = 256 * 1024;
/// While `so_rcv` has no more memory than this, reading is noticed at the next service step, unless the window is to be
/// updated: until then, or until the connection rests, the memory is counted.
const LITTLE: usize = 4096;

/// The initial values of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnConfig {
    pub(crate) home: Home,
    pub(crate) rcv_buffer: usize,
    pub(crate) iss: u32,
    /// Maximum packet size in bytes.
    pub(crate) mtu: usize,
    /// The cached path MTU to the peer.
    pub(crate) path: Option<Known>,
    /// The first timestamp (RFC 7323 3.2).
    pub(crate) timestamp: u32,
    pub(crate) ack_delay: Option<Duration>,
    pub(crate) opening: Opening,
    pub(crate) ecn: bool,
    pub(crate) began: std::time::Instant,
}

/// How a connection is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// By this side.
    Active,
    /// By the peer: its SYN is in the backlog.
    Passive,
    /// By the peer, and the SYN was answered with a cookie.
    Cookie,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ConnState {
    tuple: Tuple,
    /// The configuration of the control block, until it is made.
    config: Option<Box<Config>>,
    /// Bytes of `so_rcv`.
    capacity: usize,
    limits: Arc<Limits>,
    /// `None` before the SYN has arrived, and after the end.
    block: Option<Box<Tcb>>,
    began: Instant,
    over: bool,
    store: Store,
    /// In-order bytes on their way to `so_rcv`.
    inbox: Chain,
    /// The peer's FIN arrived in order, and `so_rcv` is to be closed.
    eof: bool,
    /// A packet that the link had no room for.
    waiting: Option<Box<Waiting>>,
    established: bool,
    said_established: bool,
    detached: bool,
    /// Nothing can be sent any more: the link is gone.
    down: bool,
    ended: Option<Ending>,
    record: Option<Box<TimeWait>>,
    /// Set when the queues' memory was released: the time of the latest progress then.
    released_at: Option<Instant>,
    /// The next deadline, as of the latest service step.
    due: Option<Instant>,
    /// Bytes dropped from `so_snd` so far.
    dropped: u64,
    /// Memory was short at the latest check of the buffers.
    pressed: bool,
    /// Bytes of `so_rcv` may have been read since the latest look at it.
    lags: bool,
    /// The smallest window update in bytes.
    step: u64,
    pub(crate) account: Account,
    /// The timer that the host keeps for this connection.
    pub(crate) armed: Option<TimerKey>,
}

impl ConnState {
    pub(crate) fn new(
        tuple: Tuple,
        (config, options): (&ConnConfig, &Options),
        link_mtu: usize,
        now: Instant,
    ) -> ConnState {
        let block = Config {
            iss: config.iss,
            mtu: config.mtu,
            v6: tuple.local.is_ipv6(),
            path: config.path,
            receive_buffer: config.rcv_buffer,
            // Splices wait for their low-water marks, so the window includes those from the start.
            initial_window: config.rcv_buffer.min(INITIAL_WINDOW),
            timestamps: Some(config.timestamp),
            answered: config.opening == Opening::Cookie,
            ack_delay: config.ack_delay,
            nodelay: options.nodelay(),
            congestion: options.congestion(),
            ecn: config.ecn,
            limits: options.limits(),
            ..Config::default()
        };
        let active = config.opening == Opening::Active;
        ConnState {
            tuple,
            limits: options.limits(),
            block: active.then(|| Box::new(Tcb::connect(&block, now))),
            config: (!active).then(|| Box::new(block)),
            capacity: config.rcv_buffer,
            began: now,
            over: false,
            store: Store::default(),
            inbox: Chain::default(),
            eof: false,
            waiting: None,
            established: false,
            said_established: false,
            detached: false,
            down: false,
            ended: None,
            record: None,
            released_at: None,
            due: None,
            dropped: 0,
            pressed: false,
            lags: false,
            step: (config.rcv_buffer / 4).min(4 * link_mtu) as u64,
            account: Account::default(),
            armed: None,
        }
    }

    /// Before a round.
    pub(crate) fn prefetch(&self) {
        if let Some(block) = &self.block {
            block.prefetch();
        }
    }

    /// The public state.
    pub(crate) fn tcp_state(&self) -> TcpState {
        match &self.block {
            Some(block) => block.state(),
            None if self.over => TcpState::Closed,
            None => TcpState::SynReceived,
        }
    }

    /// Whether the queues' memory was released, without progress since.
    pub(crate) fn has_released_memory(&self) -> bool {
        self.over || self.released_at == Some(self.moved_at())
    }

    /// When an idle connection releases the memory of its queues.
    fn release_at(&self) -> Option<Instant> {
        let block = self.block.as_ref()?;
        let idle = block.state() == TcpState::Established && !block.has_timers();
        let after = self
            .limits
            .rest
            .filter(|_| idle && !self.has_released_memory())?;
        Some(block.moved_at() + after)
    }

    /// Releases the memory of the queues if it is time for that; otherwise returns when that will be.
    fn release_memory(&mut self, env: &Env<'_>) -> Option<Instant> {
        let at = self.release_at()?;
        if env.now < at {
            return Some(at);
        }
        self.released_at = Some(self.moved_at());
        if let Some(block) = &mut self.block {
            block.release_memory();
        }
        self.inbox.shrink();
        let mut rcv = env.end.rcv();
        rcv.buf.shrink();
        self.account.set_rcv(&rcv.buf);
        // No timer causes another look.
        rcv.rcvd_from = 0;
        drop(rcv);
        env.end.snd().buf.shrink();
        None
    }

    /// Real memory of out-of-order data.
    pub(crate) fn reassembly_memory(&self) -> usize {
        self.store.memory()
    }

    /// The time of the latest progress in either direction, or of the beginning.
    pub(crate) fn moved_at(&self) -> Instant {
        self.block
            .as_ref()
            .map_or(self.began, |block| block.moved_at())
    }

    /// Processes a received segment. A service step must follow.
    pub(crate) fn input(&mut self, segment: &wire::Segment, env: &Env<'_>) {
        if self.over || self.ended.is_some() {
            env.counters.refused.add(1);
            return;
        }
        let received = segment.bare();
        let floor = self.floor();
        let Some(block) = &mut self.block else {
            self.accept(&received, env);
            return;
        };
        let memory = env.memory;
        block.set_accept_policy(match memory.is_pressed() {
            true => memory.accept_policy(self.account.unread(), floor),
            false => AcceptPolicy::Everything,
        });
        let taken = block.handle_segment(&received, env.now);
        env.counters.refused.add(u64::from(!taken.accepted));
        memory.dropped.add(u64::from(taken.declined));
        if let Some(kept) = taken.kept {
            let bytes = cut(&segment.payload, kept.skip, kept.len);
            if self.store.is_empty() && kept.growth == kept.len as u64 {
                bytes.into_iter().for_each(|buf| self.inbox.append(buf));
            } else {
                self.store.insert(kept.position, bytes.into_iter());
                let end = kept.position + kept.growth;
                match self.store.take(kept.position, end) {
                    Some(in_order) => self.inbox.append_chain(in_order),
                    None => self.break_down(env),
                }
            }
        }
        self.note();
    }

    /// The SYN of a connection that the peer opens.
    fn accept(&mut self, syn: &Segment, env: &Env<'_>) {
        let config = self.config.as_deref();
        match config.and_then(|config| Tcb::accept(config, syn, env.now)) {
            Some(block) => {
                self.block = Some(Box::new(block));
                self.config = None;
            }
            None => env.counters.refused.add(1),
        }
    }

    /// The store lacks in-order bytes, a bug: ends this connection.
    fn break_down(&mut self, env: &Env<'_>) {
        debug_assert!(false, "invariant broken: the store has all in-order bytes");
        env.counters.broken.add(1);
        self.abort(Cause::Aborted);
    }

    /// Processes an ICMP error. A service step must follow.
    pub(crate) fn icmp(&mut self, error: &IcmpError, env: &Env<'_>) {
        let Some(block) = self.block.as_mut().filter(|_| self.ended.is_none()) else {
            env.counters.icmp_ignored.add(1);
            return;
        };
        let before = block.mss();
        if !block.handle_icmp(error.seq, error.kind, env.now) {
            env.counters.icmp_ignored.add(1);
            return;
        }
        env.counters.icmp_errors.add(1);
        let lowered = matches!(error.kind, IcmpErrorKind::TooBig(_)) && block.mss() < before;
        env.counters.mtu_lowered.add(u64::from(lowered));
        self.note();
    }

    /// Handles the events of the block.
    fn note(&mut self) {
        let Some(block) = &mut self.block else { return };
        while let Some(news) = block.poll_event() {
            match news {
                News::Established => self.established = true,
                News::PeerClosed => self.eof = true,
                News::Ended(ending) => {
                    self.ended = Some(Ending {
                        before: ending.before,
                        error: ending.error(),
                    });
                }
                News::TimeWait(record) => {
                    self.record = Some(Box::new(TimeWait {
                        tuple: self.tuple,
                        record,
                    }));
                }
            }
        }
    }

    /// The urgent part of the service step of an established connection, during a batch.
    pub(crate) fn absorb(&mut self, env: &Env<'_>) -> Absorbed {
        let can_wait = |conn: &ConnState| {
            conn.said_established
                && conn.ended.is_none()
                && conn.tcp_state() == TcpState::Established
        };
        if !can_wait(self) {
            return Absorbed::Nothing;
        }
        let pressed = self.pressed || env.memory.is_pressed();
        if pressed || !self.inbox.is_empty() || self.eof {
            self.deliver(false, env);
        }
        self.drop_acknowledged(env);
        if !can_wait(self) {
            return Absorbed::Nothing;
        }
        let quiet = self.block.as_ref().is_some_and(|block| block.is_quiet());
        if !quiet || pressed || self.waiting.is_some() || self.due.is_some_and(|at| at <= env.now) {
            return Absorbed::Part;
        }
        self.check_memory(env);
        self.due = self.deadline();
        Absorbed::Whole(self.due.into_iter().chain(self.release_at()).min())
    }

    /// The service step, run before the owner releases the connection.
    pub(crate) fn serve(&mut self, work: Work, env: &Env<'_>) -> Served {
        if self.over {
            // Received data can still be read.
            self.account.set_rcv(&env.end.rcv().buf);
            self.account.update(0, env.memory);
            return Served::default();
        }
        self.apply(work, env);
        self.expire(env);
        self.note();
        let all = work.is_everything() || self.pressed || env.memory.is_pressed();
        if all || work.has(Work::READ) || self.lags || !self.inbox.is_empty() || self.eof {
            self.deliver(work.has(Work::IDLE), env);
        }
        let dropped = self.drop_acknowledged(env);
        if all || work.has(Work::WRITTEN) || dropped {
            self.queue(env);
        }
        self.transmit(env);
        self.note();
        let mut served = Served {
            link_full: self.waiting.is_some(),
            ..Served::default()
        };
        served.path = self.block.as_mut().and_then(|block| block.take_finding());
        if self.established && !self.said_established {
            self.said_established = true;
            served.established = true;
            env.end.connected();
        }
        served.done = self.conclude(env);
        if served.done.is_none() {
            self.due = self.deadline();
            served.next = self.due.into_iter().chain(self.release_memory(env)).min();
        }
        self.check_memory(env);
        served
    }

    fn check_memory(&mut self, env: &Env<'_>) {
        let ahead = match self.store.is_empty() {
            true => 0,
            false => self.store.memory(),
        };
        self.account.update(ahead, env.memory);
    }

    fn abort(&mut self, cause: Cause) {
        match &mut self.block {
            Some(block) => block.abort(cause),
            None => {
                // The SYN was not processed yet.
                let error = match cause {
                    Cause::FromBelow(error) => error,
                    Cause::TimedOut => SoError::TimedOut,
                    _ => SoError::ConnectionAborted,
                };
                self.ended.get_or_insert(Ending {
                    before: TcpState::SynReceived,
                    error: Some(error),
                });
            }
        }
        self.note();
    }

    /// Applies the work bits.
    fn apply(&mut self, work: Work, env: &Env<'_>) {
        if work.has(Work::OPTIONS) {
            self.limits = env.options.limits();
            let (nodelay, congestion) = (env.options.nodelay(), env.options.congestion());
            if let Some(config) = &mut self.config {
                config.nodelay = nodelay;
                config.congestion = congestion;
                config.limits = self.limits.clone();
            }
            if let Some(block) = &mut self.block {
                block.set_nodelay(nodelay);
                block.set_congestion(congestion, env.now);
                block.set_limits(self.limits.clone(), env.now);
            }
        }
        if work.has(Work::DETACH) && !self.detached {
            self.detached = true;
            // RFC 1122 4.2.2.13: unread data is lost, and the peer must be notified.
            let unread = !env.end.rcv().buf.is_empty() || !self.inbox.is_empty();
            env.end.cantsendmore();
            self.queue(env);
            let linger = env.options.linger();
            let abort = unread || linger == Some(Duration::ZERO);
            match &mut self.block {
                Some(block) => block.detach(abort, linger, env.now),
                None => self.abort(Cause::Aborted),
            }
        }
        if work.has(Work::ABORT) {
            self.abort(Cause::Aborted);
        }
        let below = Work::FROM_BELOW.iter().find(|(gone, _)| work.has(*gone));
        if let Some((_, error)) = below {
            self.down = true;
            self.abort(Cause::FromBelow(*error));
        }
    }

    /// Handles deadlines; while the link is full, only limits.
    fn expire(&mut self, env: &Env<'_>) {
        if self.due.is_none_or(|at| env.now < at) {
            return;
        }
        match &mut self.block {
            Some(block) if self.waiting.is_some() => block.handle_limits(env.now),
            Some(block) => block.handle_timeout(env.now),
            None => self.abort(Cause::TimedOut),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.block {
            Some(block) if self.waiting.is_some() => block.limit(),
            Some(block) => block.deadline(),
            None if self.over => None,
            None => Some(self.began + self.limits.syn_received()),
        }
    }

    /// Moves in-order bytes to `so_rcv`, and updates the window by the bytes that were read.
    fn deliver(&mut self, idle: bool, env: &Env<'_>) {
        let pressed = env.memory.is_pressed();
        self.pressed = pressed;
        let capacity = match pressed {
            true => self.floor(),
            false => self.capacity,
        };
        let (account, block) = (&mut self.account, &mut self.block);
        let mut unread = 0;
        // After shutdown(Read) they are acknowledged and dropped, as in BSD.
        env.end.append_rcv_and(&mut self.inbox, |rcv| {
            rcv.buf.set_pressed(pressed);
            account.set_rcv(&rcv.buf);
            unread = rcv.buf.len();
            rcv.rcvd_from = 0;
            if let Some(block) = block {
                block.set_receive_buffer(capacity);
                block.read(rcv.buf.chain().start(), idle || unread == 0, env.now);
                // Only then there is another look (`release_memory`).
                let rests = block.state() == TcpState::Established;
                if rests && !pressed && rcv.buf.memory() <= LITTLE {
                    rcv.rcvd_from = block.next_update();
                }
            }
        });
        // A splice need not tell that it has read.
        self.lags = unread > 0;
        if std::mem::take(&mut self.eof) {
            env.end.cantrcvmore();
        }
    }

    /// The window while memory is short: at least the smallest window update, and a small window
    /// completely.
    fn floor(&self) -> usize {
        let capacity = self.capacity as u64;
        let floor = if self.step < capacity / 4 {
            self.step.max(capacity / 8).max(16 * 1024).min(capacity)
        } else {
            capacity
        };
        usize::try_from(floor).unwrap_or(usize::MAX)
    }

    /// Drops acknowledged bytes from `so_snd`. `false` if there are none.
    fn drop_acknowledged(&mut self, env: &Env<'_>) -> bool {
        let acknowledged = self.block.as_ref().map_or(0, |block| block.acknowledged());
        let count = usize::try_from(acknowledged.saturating_sub(self.dropped)).unwrap_or(0);
        if count == 0 {
            return false;
        }
        self.dropped = acknowledged;
        let pressed = env.memory.is_pressed();
        let account = &mut self.account;
        env.end.drop_snd_and(count, |so_snd| {
            so_snd.set_pressed(pressed);
            account.set_snd(so_snd.memory());
        });
        true
    }

    /// Passes new bytes of `so_snd`, and its end, to the block.
    fn queue(&mut self, env: &Env<'_>) {
        let (end, closed) = {
            let mut snd = env.end.snd();
            snd.buf.set_pressed(env.memory.is_pressed());
            self.account.set_snd(snd.buf.memory());
            (snd.buf.chain().end(), snd.buf.is_closed())
        };
        if let Some(block) = &mut self.block {
            block.written(end, env.now);
            if closed {
                block.shutdown(env.now);
            }
        }
    }

    /// Transmits until there is nothing to send, or the link is full and a packet waits for it.
    fn transmit(&mut self, env: &Env<'_>) {
        if let Some(mut waiting) = self.waiting.take()
            && !waiting.send(env)
        {
            self.waiting = Some(waiting);
            return;
        }
        let can = env.link.capabilities();
        let (longest, ip_header) = match self.tuple.local.is_ipv4() {
            true => (can.segment_v4, IPV4_HEADER),
            false => (can.segment_v6, wire::LONGEST_IPV6_HEADER),
        };
        let longest = longest.unwrap_or(0).saturating_sub(ip_header);
        loop {
            let Some(block) = &mut self.block else { return };
            // To the byte: with one segment less than arrives in a super-frame, the rest would be a packet of its own.
            let most = longest.saturating_sub(block.header_len());
            let Some(emission) = block.poll_transmit(most, env.now) else {
                return;
            };
            let Some(mut packet) = self.packet(&emission, env) else {
                debug_assert!(false, "invariant broken: an emitted payload is in so_snd");
                env.counters.broken.add(1);
                self.abort(Cause::Aborted);
                continue;
            };
            if !packet.send(env) {
                self.waiting = Some(Box::new(packet));
                return;
            }
        }
    }

    fn packet(&self, emission: &Emission, env: &Env<'_>) -> Option<Waiting> {
        let payload = if emission.payload.is_empty() {
            Gather::new()
        } else {
            let snd = env.end.snd();
            let chain = snd.buf.chain();
            let (from, to) = (emission.payload.start, emission.payload.end);
            if from < chain.start() || to > chain.end() {
                return None;
            }
            chain.range(from..to)
        };
        let several = emission.segment.len > emission.size;
        let size = u16::try_from(emission.size).ok().and_then(NonZeroU16::new);
        let mut header = composed(&self.tuple, emission, env.options.hop_limit());
        let ip_header_len = wire::set_length(&mut header, emission.segment.len);
        Some(Waiting {
            header,
            ip_header_len,
            payload,
            segment: size.filter(|_| several),
            again: emission.again,
        })
    }

    /// Drops the block when its work is complete.
    fn conclude(&mut self, env: &Env<'_>) -> Option<Done> {
        if !self.inbox.is_empty() || (self.waiting.is_some() && !self.down) {
            return None;
        }
        if let Some(record) = self.record.take() {
            self.finish(None, env);
            return Some(Done::TimeWait(*record));
        }
        let ending = self.ended?;
        env.counters.attempts_failed.add(u64::from(ending.failed()));
        env.counters.resets.add(u64::from(ending.reset()));
        self.finish(ending.error(), env);
        Some(Done::Closed(ending))
    }

    fn finish(&mut self, error: Option<SoError>, env: &Env<'_>) {
        self.over = true;
        self.block = None;
        self.waiting = None;
        // Closed first: a writer must not succeed with bytes that are then flushed.
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

/// References to `len` bytes after the first `skip`.
fn cut(payload: &[Buf], mut skip: usize, mut len: usize) -> Gather {
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

/// IP and TCP header, checksums not filled in.
fn composed(tuple: &Tuple, emission: &Emission, hop_limit: u8) -> SmallVec<[u8; MAX_HEADER]> {
    let segment = &emission.segment;
    let mut header = [0; MAX_HEADER];
    let ip_len = ip::header::write(
        &mut header,
        (tuple.local, tuple.remote),
        PROTO_TCP,
        TCP_HEADER,
    );
    match ip_len {
        IPV4_HEADER => {
            header[8] = hop_limit;
            if !emission.dont_fragment {
                header[6] = 0;
            }
        }
        _ => header[7] = hop_limit,
    }
    if emission.markable {
        wire::set_ect(&mut header);
    }
    let tcp = &mut header[ip_len..];
    tcp[0..2].copy_from_slice(&tuple.local_port.to_be_bytes());
    tcp[2..4].copy_from_slice(&tuple.remote_port.to_be_bytes());
    tcp[4..8].copy_from_slice(&segment.seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&segment.ack.to_be_bytes());
    tcp[13] = segment.flags;
    tcp[14..16].copy_from_slice(&segment.window.to_be_bytes());
    let tcp_len = TCP_HEADER + write_options(&mut tcp[TCP_HEADER..], &segment.options);
    let words = u8::try_from(tcp_len / 4).expect("invariant: at most 60 bytes");
    tcp[12] = words << 4;
    SmallVec::from_buf_and_len(header, ip_len + tcp_len)
}

/// Writes the options of a segment, padded to words (RFC 9293 3.1, 7323 appendix A, 2018 3). Returns
/// their length.
fn write_options(out: &mut [u8], options: &SegmentOptions) -> usize {
    let mut at = 0;
    let mut put = |bytes: [u8; 4]| {
        out[at..at + 4].copy_from_slice(&bytes);
        at += 4;
    };
    if let Some(mss) = options.mss {
        let [high, low] = mss.to_be_bytes();
        put([2, 4, high, low]);
    }
    if let Some(shift) = options.window_scale {
        put([1, 3, 3, shift]);
    }
    if options.sack_permitted {
        put([1, 1, 4, 2]);
    }
    if let Some(stamps) = options.timestamps {
        put([1, 1, 8, 10]);
        put(stamps.value.to_be_bytes());
        put(stamps.echo.to_be_bytes());
    }
    if let Ok(count @ 1..) = u8::try_from(options.sack.len()) {
        put([1, 1, 5, 2 + 8 * count]);
        for (start, end) in &options.sack {
            put(start.to_be_bytes());
            put(end.to_be_bytes());
        }
    }
    at
}
