//! UDP: one socket or flow of a stack, and its datagrams on the wire. RFC 768, 1122 4.1, 4787.
//!
//! | file | contents |
//! |---|---|
//! | `udp` | [`Udp`], the protocol of one socket: sending, and what becomes of received datagrams |
//! | `wire` | datagrams in packets |
//! | `echo` | pings, which a stack treats as the datagrams of flows |
//!
//! A socket is *bound* to an address of the stack (and may be connected to a peer), or it is a *flow* that an
//! intercepting listener has accepted: from one client to one destination, or, with an endpoint-independent
//! mapping, from one client to all destinations. A flow's datagrams, seen by the program, go to and come from the
//! client's destinations, as those of the client's own socket do.
//!
//! Datagrams are sent by whichever thread brings them, one thread at a time ([`Turn`]), in order. When the link is
//! full, the datagrams that were taken from `so_snd` stay with the socket, and its driver tries again; then
//! `so_snd` fills, and writers wait. So nothing is lost between a splice and the link. Everything else that cannot
//! be sent is dropped and counted, and sets `so_error` where a kernel would.
//!
//! Locks: `so_rcv` (2), `so_snd` (3), and leaves: addresses of a bound socket, datagrams that wait. None is held
//! while the link transmits.

pub(crate) mod echo;
pub(crate) mod wire;

use crate::buf::Gather;
use crate::counter::Counter;
use crate::error::SoError;
use crate::ip::fragment::Progress;
use crate::ip::{self, Tuple};
use crate::link::{Capabilities, Link, Packet, TransmitError};
use crate::lock::{LEAF, Mutex};
use crate::protocol::{Protocol, SoState, SocketEnd, Wakeup};
use crate::sockbuf::{Addresses, Run};
use crate::turn::Turn;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use wire::{Headers, MAX_SEGMENTS, Received, UDP_HEADER};

/// A flow through which nothing has passed for so long gives the memory of its empty buffers back.
pub(crate) const RESTS: Duration = Duration::from_secs(5);
/// Datagrams that are taken from `so_snd` at once: a super-frame's.
const BATCH: usize = MAX_SEGMENTS;
/// Longest super-frame: with room for the headers of a VLAN and of a tunnel in 64 KiB.
const MOST: usize = 65_000;

/// From which address a datagram goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source {
    /// Whichever suits.
    Any,
    /// This one, if it is the stack's.
    Own(IpAddr),
    /// This one, in whose name a flow answers.
    Named(IpAddr),
}

/// How a datagram gets to an address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    pub(crate) source: IpAddr,
    /// The destination is an address of the stack itself.
    pub(crate) looped: bool,
    /// Largest packet.
    pub(crate) mtu: usize,
}

/// What a socket needs of its stack.
pub(crate) trait Host: Send + Sync + std::fmt::Debug {
    /// How a datagram gets to `to`.
    fn way(&self, from: Source, to: IpAddr) -> Result<Way, SoError>;

    fn link(&self, queue: u16, looped: bool) -> &dyn Link;

    fn queues(&self) -> usize;

    fn now(&self) -> Instant;

    /// Time since the stack was built.
    fn since_epoch(&self, now: Instant) -> Duration;

    /// Sends a packet, whose checksum is complete, in fragments for this MTU, beginning at `progress`. If the link is
    /// full, `progress` has the place to continue.
    fn fragment(
        &self,
        link: &dyn Link,
        packet: (&Packet<'_>, usize),
        progress: &mut Option<Progress>,
    ) -> Result<(), TransmitError>;

    /// The link is full: the driver is to call [`Udp::resume`] when there is room.
    fn blocked(&self, udp: &Arc<Udp>);

    /// Tells a flow's client that its destination cannot be reached, for this reason.
    fn refuse(&self, udp: &Udp, why: SoError);

    /// A bound socket has these addresses from now on.
    fn connected(&self, udp: &Udp, names: Names);

    /// The socket is closed, or has ended: nothing is received for it any more.
    fn closed(&self, udp: &Udp);

    /// The program has closed the socket.
    fn detached(&self);

    fn counters(&self, of: Transport) -> &UdpCounters;

    /// Whether the memory of all buffers is short, and whether it is used up.
    fn is_pressed(&self) -> (bool, bool);

    /// A receive buffer holds so much memory instead of so much.
    fn holds(&self, before: usize, after: usize);
}

/// What the sockets of a stack count (RFC 4113).
#[derive(Debug, Default)]
pub(crate) struct UdpCounters {
    pub(crate) received: Counter,
    pub(crate) sent: Counter,
    /// Received datagrams that found a full buffer.
    pub(crate) dropped: Counter,
    /// Datagrams for no socket, flow or rule.
    pub(crate) no_port: Counter,
    /// Datagrams that could not be sent.
    pub(crate) unsent: Counter,
    /// Flows that began, and those that were refused because of a limit.
    pub(crate) flows: Counter,
    pub(crate) flows_refused: Counter,
    /// Flows that ended because no datagram passed.
    pub(crate) flows_expired: Counter,
    /// ICMP errors about datagrams of ours.
    pub(crate) icmp_errors: Counter,
}

/// What carries the datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    /// Echo messages of ICMP: pings.
    Echo,
}

impl Transport {
    /// Bytes before what the socket gives.
    fn headers(self, v4: bool) -> usize {
        let ip = if v4 { ip::IPV4_HEADER } else { ip::IPV6_HEADER };
        match self {
            Transport::Udp => ip + UDP_HEADER,
            Transport::Echo => ip,
        }
    }
}

/// What a socket is.
#[derive(Debug)]
pub(crate) enum Kind {
    /// Bound to an address of the stack, or to all of them (the unspecified one), and connected or not.
    Bound(Mutex<Names, LEAF>),
    /// From one client to one destination.
    Flow(Tuple),
    /// From one client to all destinations, of which this was the first.
    Endpoint {
        client: SocketAddr,
        first: SocketAddr,
    },
}

/// The addresses of a bound socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names {
    pub(crate) local: SocketAddr,
    pub(crate) peer: Option<SocketAddr>,
}

/// How long a flow lasts without a datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    pub(crate) unanswered: Duration,
    pub(crate) answered: Duration,
}

/// One socket, or one flow.
#[derive(Debug)]
pub(crate) struct Udp {
    me: Weak<Udp>,
    pub(crate) end: Arc<SocketEnd>,
    host: Arc<dyn Host>,
    pub(crate) transport: Transport,
    pub(crate) kind: Kind,
    pub(crate) timeouts: Timeouts,
    /// By which queue it transmits.
    pub(crate) queue: u16,
    hop_limit: AtomicU8,
    sending: Turn,
    /// Datagrams that were taken from `so_snd`, and wait for room in the link.
    waiting: Mutex<VecDeque<Run>, LEAF>,
    /// How much of the first of them has been sent in fragments.
    partly: Mutex<Option<Progress>, LEAF>,
    /// Memory of `so_rcv` that the stack has counted; changed under its lock.
    counted: AtomicUsize,
    /// When a datagram last passed, in nanoseconds since the stack was built.
    used: AtomicU64,
    answered: AtomicBool,
    /// Handed out to the program.
    pub(crate) attached: AtomicBool,
    ended: AtomicBool,
}

impl Udp {
    pub(crate) fn new(
        host: Arc<dyn Host>,
        end: Arc<SocketEnd>,
        (transport, kind, queue): (Transport, Kind, u16),
        timeouts: Timeouts,
    ) -> Arc<Udp> {
        end.connected();
        let used = nanos(host.since_epoch(host.now()));
        Arc::new_cyclic(|me| Udp {
            me: me.clone(),
            end,
            host,
            transport,
            kind,
            timeouts,
            queue,
            hop_limit: AtomicU8::new(ip::header::HOP_LIMIT),
            sending: Turn::default(),
            waiting: Mutex::default(),
            partly: Mutex::default(),
            counted: AtomicUsize::new(0),
            used: AtomicU64::new(used),
            answered: AtomicBool::new(false),
            attached: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        })
    }

    /// This side's address and the peer's, as far as there is one of each.
    pub(crate) fn names(&self) -> (Option<SocketAddr>, Option<SocketAddr>) {
        match &self.kind {
            Kind::Bound(names) => {
                let names = *names.lock();
                (Some(names.local), names.peer)
            }
            Kind::Flow(tuple) => {
                let (local, peer) = tuple.ends();
                (Some(local), Some(peer))
            }
            Kind::Endpoint { client, .. } => (None, Some(*client)),
        }
    }

    /// The client of a flow, and its destination, or the first of them.
    pub(crate) fn client(&self) -> Option<(SocketAddr, SocketAddr)> {
        match &self.kind {
            Kind::Bound(_) => None,
            Kind::Flow(tuple) => {
                let (local, peer) = tuple.ends();
                Some((peer, local))
            }
            Kind::Endpoint { client, first } => Some((*client, *first)),
        }
    }

    /// Payload bytes that were taken from `so_snd` and wait for room in the link.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.lock().iter().map(Run::len).sum()
    }

    /// Connects a bound socket: it receives from this peer only, and sends to it.
    pub(crate) fn connect(&self, peer: SocketAddr) -> Result<(), SoError> {
        if let Kind::Bound(names) = &self.kind {
            let bound = names.lock().local.ip();
            let way = self.host.way(own_or_any(bound), peer.ip())?;
            let now = {
                let mut names = names.lock();
                names.local.set_ip(way.source);
                // As in received datagrams: without a scope.
                names.peer = Some(SocketAddr::new(peer.ip(), peer.port()));
                *names
            };
            self.host.connected(self, now);
        }
        Ok(())
    }

    /// Whether a datagram of so many bytes with these addresses can be sent, as far as that is known at once.
    pub(crate) fn check(&self, addresses: Addresses, len: usize) -> Result<(), SoError> {
        let (from, _, to) = self.ends_of(addresses)?;
        let v4 = to.is_ipv4();
        if self.transport.headers(v4) + len > wire::largest(v4) {
            return Err(SoError::MessageSize);
        }
        self.host.way(from, to.ip()).map(drop)
    }

    pub(crate) fn set_hop_limit(&self, hop_limit: u8) {
        self.hop_limit.store(hop_limit, Ordering::Relaxed);
    }

    pub(crate) fn hop_limit(&self) -> u8 {
        self.hop_limit.load(Ordering::Relaxed)
    }

    /// Datagrams have arrived.
    pub(crate) fn receive(&self, received: Received, now: Instant) {
        self.touch(now);
        let (local, peer) = received.tuple.ends();
        let addresses = match &self.kind {
            Kind::Bound(_) => Addresses::to(peer).from_local(local.ip()),
            Kind::Flow(_) => Addresses::default(),
            // To the program these are the client's own datagrams, on their way out.
            Kind::Endpoint { .. } => Addresses::to(local),
        };
        let count = received.count();
        let taken = match self.host.is_pressed() {
            (_, true) => 0,
            (pressed, false) => {
                let held = |memory| self.count(memory);
                self.end
                    .append_run_rcv(received.run(addresses), pressed, held)
            }
        };
        let counters = self.host.counters(self.transport);
        counters.received.add(taken as u64);
        counters.dropped.add((count - taken) as u64);
    }

    /// `so_rcv`, which is locked, holds so much memory.
    fn count(&self, memory: usize) {
        let before = self.counted.swap(memory, Ordering::Relaxed);
        if before != memory {
            self.host.holds(before, memory);
        }
    }

    fn touch(&self, now: Instant) {
        let used = nanos(self.host.since_epoch(now));
        self.used.fetch_max(used, Ordering::Relaxed);
    }

    /// When it ends if nothing passes until then, as time since the stack was built.
    pub(crate) fn expires(&self) -> Duration {
        let answered = self.answered.load(Ordering::Relaxed);
        let idle = match answered {
            true => self.timeouts.answered,
            false => self.timeouts.unanswered,
        };
        self.last_used().saturating_add(idle)
    }

    /// When to see whether it has expired: also when it would, had it just been answered.
    pub(crate) fn expires_before(&self, now: Duration) -> Duration {
        let answered = self.timeouts.answered.max(Duration::from_millis(1));
        self.expires().min(now.saturating_add(answered))
    }

    /// Time since the stack was built at which a datagram last passed.
    pub(crate) fn last_used(&self) -> Duration {
        Duration::from_nanos(self.used.load(Ordering::Relaxed))
    }

    /// Gives memory back that empty buffers keep, if nothing has passed for [`RESTS`]. Returns when it is to be looked
    /// at again; times are since the stack was built.
    pub(crate) fn give_back(&self, now: Duration) -> Duration {
        let rests = self.last_used().saturating_add(RESTS);
        if rests > now {
            return rests;
        }
        self.end.rcv().buf.shrink();
        self.end.snd().buf.shrink();
        self.expires()
    }

    /// It is over: what has arrived can be read, and nothing is sent any more.
    pub(crate) fn finish(&self, error: Option<SoError>) {
        if !self.ended.swap(true, Ordering::AcqRel) {
            self.end.disconnected(error);
            self.host.closed(self);
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Sends what is there, in order.
    fn send(&self) {
        self.sending.take(|| {
            loop {
                let mut batch = std::mem::take(&mut *self.waiting.lock());
                if batch.is_empty() {
                    self.take(&mut batch);
                }
                if batch.is_empty() {
                    return;
                }
                Batch::new(self).transmit(&mut batch);
                if !batch.is_empty() {
                    *self.waiting.lock() = batch;
                    if let Some(me) = self.me.upgrade() {
                        self.host.blocked(&me);
                    }
                    return;
                }
            }
        });
    }

    /// Takes datagrams from `so_snd`.
    fn take(&self, batch: &mut VecDeque<Run>) {
        let mut snd = self.end.snd();
        let mut left = BATCH;
        while left > 0
            && let Some(run) = snd.buf.take_run((MOST - wire::MAX_HEADERS, left))
        {
            left -= run.count();
            batch.push_back(run);
        }
        if !batch.is_empty() {
            self.end.sowwakeup(&snd, Wakeup::Space);
        }
    }

    /// The headers of a packet, and what is behind them; `None` if it is none that this transport sends.
    fn composed(&self, route: &Route, payload: Gather, partial: bool) -> Option<(Headers, Gather)> {
        let ends = (route.from, route.to);
        match self.transport {
            Transport::Udp => {
                let headers = wire::compose(ends, &payload, (self.hop_limit(), partial));
                Some((headers, payload))
            }
            Transport::Echo => echo::reply(ends, &payload, self.hop_limit()),
        }
    }

    /// The link has room again.
    pub(crate) fn resume(&self) {
        self.send();
    }

    /// From and to where a datagram goes.
    fn ends_of(&self, addresses: Addresses) -> Result<(Source, u16, SocketAddr), SoError> {
        let named = addresses.peer.ok_or(SoError::DestinationRequired);
        if named.is_ok_and(|peer| peer.port() == 0) {
            return Err(SoError::AddressNotAvailable);
        }
        match &self.kind {
            Kind::Flow(tuple) => {
                let (local, peer) = tuple.ends();
                Ok((Source::Named(local.ip()), local.port(), peer))
            }
            // The program's peer is whom the client talks to.
            Kind::Endpoint { client, .. } => {
                let from = named?;
                Ok((Source::Named(from.ip()), from.port(), *client))
            }
            Kind::Bound(names) => {
                let names = *names.lock();
                let to = named.or_else(|error| names.peer.ok_or(error))?;
                let from = addresses.local.unwrap_or(names.local.ip());
                Ok((own_or_any(from), names.local.port(), to))
            }
        }
    }
}

/// An unspecified address means whichever suits.
fn own_or_any(address: IpAddr) -> Source {
    match address.is_unspecified() {
        true => Source::Any,
        false => Source::Own(address),
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Where datagrams go, in one piece of work.
#[derive(Debug, Clone, Copy)]
struct Route {
    from: SocketAddr,
    to: SocketAddr,
    way: Way,
}

/// Datagrams that are sent together.
struct Batch<'a> {
    udp: &'a Udp,
    caps: Option<(bool, Capabilities)>,
    /// Of the datagram before, with its addresses.
    route: Option<(Addresses, Route)>,
    /// How much of the next one has been sent in fragments.
    partly: Option<Progress>,
}

impl<'a> Batch<'a> {
    fn new(udp: &'a Udp) -> Batch<'a> {
        Batch {
            udp,
            caps: None,
            route: None,
            partly: udp.partly.lock().take(),
        }
    }

    /// Sends datagrams from the front. Those that are left wait for room.
    fn transmit(&mut self, batch: &mut VecDeque<Run>) {
        let mut sent = 0;
        let counters = self.udp.host.counters(self.udp.transport);
        while let Some(mut run) = batch.pop_front() {
            let route = self.route_for(run.addresses);
            let most = route.map_or(1, |route| self.together(&route, run.size));
            if most < run.count() {
                let first = run.cut(most);
                batch.push_front(std::mem::replace(&mut run, first));
            }
            let count = run.count();
            let result = route.map_err(Trouble::Failed);
            match result.and_then(|route| self.send(&route, &run)) {
                Ok(()) => sent += count,
                Err(Trouble::Full) => {
                    batch.push_front(run);
                    break;
                }
                Err(Trouble::Dropped) => counters.unsent.add(count as u64),
                Err(Trouble::Failed(error)) => {
                    counters.unsent.add(count as u64);
                    self.udp.end.fail_once(error);
                }
            }
        }
        if sent > 0 {
            self.udp.answered.store(true, Ordering::Relaxed);
            self.udp.touch(self.udp.host.now());
            counters.sent.add(sent as u64);
        }
    }

    /// How many datagrams of this size may go in one packet, which the link cuts.
    fn together(&mut self, route: &Route, size: usize) -> usize {
        let udp = self.udp;
        let v4 = route.to.is_ipv4();
        let headers = udp.transport.headers(v4);
        let caps = self.capabilities(udp.host.link(udp.queue, route.way.looped), route.way.looped);
        let most = match v4 {
            true => caps.datagrams_v4,
            false => caps.datagrams_v6,
        };
        // A link that cuts computes the checksum of each datagram.
        let fits = headers + size <= route.way.mtu;
        let cuts = fits && caps.checksum && size > 0 && udp.transport == Transport::Udp;
        let most = most.filter(|_| cuts).unwrap_or(0).min(MOST);
        (most.saturating_sub(headers) / size.max(1)).clamp(1, MAX_SEGMENTS)
    }

    /// Sends datagrams in one packet.
    fn send(&mut self, route: &Route, run: &Run) -> Result<(), Trouble> {
        let mut partly = self.partly.take();
        let udp = self.udp;
        let v4 = route.to.is_ipv4();
        let headers = udp.transport.headers(v4);
        if headers + run.size > wire::largest(v4) {
            return Err(Trouble::Failed(SoError::MessageSize));
        }
        let link = udp.host.link(udp.queue, route.way.looped);
        let caps = self.capabilities(link, route.way.looped);
        let fits = headers + run.size <= route.way.mtu;
        let (header, payload) = udp
            .composed(route, run.payload.clone(), caps.checksum && fits)
            .ok_or(Trouble::Dropped)?;
        let mut packet =
            Packet::new(header.bytes(), &payload, header.ip_header_len).checksum(header.checksum);
        if run.count() > 1 {
            packet = packet.segment(u16::try_from(run.size).ok().and_then(NonZeroU16::new));
        }
        let sent = match fits {
            true => link.transmit(&packet),
            false => {
                let large = (&packet, route.way.mtu);
                udp.host.fragment(link, large, &mut partly)
            }
        };
        if matches!(sent, Err(TransmitError::Full)) {
            *udp.partly.lock() = partly;
        }
        sent.map_err(|error| Trouble::of(&error, route.way.looped))
    }

    fn capabilities(&mut self, link: &dyn Link, looped: bool) -> Capabilities {
        match self.caps {
            Some((of, caps)) if of == looped => caps,
            _ => {
                let caps = link.capabilities();
                self.caps = Some((looped, caps));
                caps
            }
        }
    }

    fn route_for(&mut self, addresses: Addresses) -> Result<Route, SoError> {
        if let Some((of, route)) = self.route
            && of == addresses
        {
            return Ok(route);
        }
        let (from, port, to) = self.udp.ends_of(addresses)?;
        let way = self.udp.host.way(from, to.ip())?;
        let route = Route {
            from: SocketAddr::new(way.source, port),
            to,
            way,
        };
        self.route = Some((addresses, route));
        Ok(route)
    }
}

/// Why a datagram was not sent.
enum Trouble {
    /// There is no room now.
    Full,
    /// It is lost, as one on the wire might be.
    Dropped,
    /// It is lost, and the program is told.
    Failed(SoError),
}

impl Trouble {
    /// The stack's own queue is no wire that becomes free without its reader: what it has no room for is dropped,
    /// as a kernel's is.
    fn of(error: &TransmitError, looped: bool) -> Trouble {
        match error {
            TransmitError::Full if !looped => Trouble::Full,
            TransmitError::Gone(_) => Trouble::Failed(SoError::NetworkDown),
            _ => Trouble::Dropped,
        }
    }
}

impl Drop for Udp {
    fn drop(&mut self) {
        self.count(0);
    }
}

impl Protocol for Udp {
    fn output(&self) {
        self.send();
    }

    /// After every read: the last pass of a splice is one that finds no more.
    fn rcvd(&self, _idle: bool) {
        // Who has taken something has seen it counted, under the lock.
        if self.counted.load(Ordering::Relaxed) > 0 {
            self.end.with_rcv(|rcv| self.count(rcv.records_memory()));
        }
    }

    /// A flow's client is told, by an ICMP error, that its destination cannot be reached.
    fn abort(&self) {
        if !matches!(self.kind, Kind::Bound(_)) {
            let why = self.end.error().unwrap_or(SoError::ConnectionRefused);
            self.host.refuse(self, why);
        }
        self.finish(Some(SoError::ConnectionAborted));
    }

    fn detach(&self) {
        self.end.flush_rcv();
        self.rcvd(false);
        self.send();
        self.finish(None);
        if self.attached.swap(false, Ordering::AcqRel) {
            self.host.detached();
        }
    }

    fn name(&self) -> &'static str {
        match self.transport {
            Transport::Udp => "udp",
            Transport::Echo => "icmp",
        }
    }

    fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        let (local, peer) = self.names();
        local.zip(peer)
    }

    fn so_state(&self) -> SoState {
        match self.names() {
            (Some(_), Some(_)) => SoState::Datagrams,
            _ => SoState::UnconnectedDatagrams,
        }
    }

    fn queue(&self) -> Option<usize> {
        (self.host.queues() > 1).then_some(self.queue.into())
    }
}

#[cfg(test)]
mod loom;
