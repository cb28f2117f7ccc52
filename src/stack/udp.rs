//! Datagrams: the sockets and flows of a stack, and to which of them a datagram belongs.
//!
//! | file | contents |
//! |---|---|
//! | `table` | sockets and flows by their addresses; when flows expire |
//! | `listener` | intercepting listeners and their queues; [`UdpListener`] |
//! | `socket` | the program's handle, [`UdpSocket`] |
//! | `echo` | the same for pings: [`PingListener`], [`PingFlow`] |
//!
//! A datagram belongs, in this order, to the flow with its addresses, to the most precisely bound socket, to the
//! flow of its sender if that has an endpoint-independent mapping, and to the intercepting listener with the most
//! precise rule, where it begins a flow. Otherwise the hook for unhandled frames is asked, and then, if it was for
//! an address of the stack, its sender gets a "port unreachable".

mod echo;
mod info;
mod listener;
mod socket;
mod table;

pub use echo::{PingFlow, PingListener};
pub use info::{DatagramInfo, DatagramTable};
pub(in crate::stack) use listener::Flows;
#[cfg(feature = "async")]
pub(in crate::stack) use listener::Open;
pub use listener::{FlowOptions, Mapping, UdpListener};
pub use socket::UdpSocket;
pub(in crate::stack) use table::UdpTable;

use crate::error::SoError;
use crate::ip::fragment::Progress;
use crate::ip::header::HOP_LIMIT;
use crate::ip::{icmp, is_endpoint};
use crate::link::{Checksum, Frame, Link, Packet, TransmitError};
use crate::protocol::SocketEnd;
use crate::stack::Shared;
use crate::stack::routes::{Network, Route};
use crate::tcp::block::path_mtu::{By, Finding, Known};
use crate::tcp::icmp::{IcmpError, IcmpErrorKind};
use crate::udp::wire::{self, Received};
use crate::udp::{
    Host, Kind, Names, Source, Timeouts, Transport, Udp, UdpCounters, Way, echo as echo_wire,
};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Payload bytes of each buffer of a socket: some of the longest datagrams.
pub(in crate::stack) const HIWAT: usize = 256 * 1024;
/// Datagrams of each buffer.
pub(in crate::stack) const LIMIT: usize = 1024;
/// A bound socket does not expire.
const NEVER: Timeouts = Timeouts {
    unanswered: Duration::MAX,
    answered: Duration::MAX,
};

/// What has become of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::stack) enum Outcome {
    /// A socket or a flow has it, or it was dropped and counted.
    Done,
    /// It is for none of them. `own`: its destination is an address of the stack.
    Nobody { own: bool },
}

impl Shared {
    /// A datagram that arrived on this queue. `looped`: the stack has sent it to itself.
    pub(in crate::stack) fn datagram(
        self: &Arc<Self>,
        queue: u16,
        (received, looped): (Received, bool),
        now: Instant,
    ) -> Outcome {
        let tuple = &{ received.tuple };
        if let Some(udp) = self.udp.flow(tuple) {
            // A flow's client is no address of the stack.
            match looped {
                true => self.received.bad_address.add(1),
                false => udp.receive(received, now),
            }
            return Outcome::Done;
        }
        let (own, martian, routed) = {
            let network = self.addressing.network.lock();
            if network.is_broadcast(tuple.local) {
                return Outcome::Nobody { own: false };
            }
            let forged = network.is_martian(tuple.remote);
            let routed = looped || network.is_routed(tuple.remote);
            (network.is_own(tuple.local), forged && !looped, routed)
        };
        if martian {
            self.received.bad_address.add(1);
            return Outcome::Done;
        }
        if own && let Some(udp) = self.udp.bound(tuple) {
            udp.receive(received, now);
            return Outcome::Done;
        }
        if !routed {
            self.received.unrouted.add(1);
            return Outcome::Done;
        }
        if looped || tuple.remote_port == 0 {
            return Outcome::Nobody { own };
        }
        let listener = self.udp.listener_for(tuple, own);
        let endpoint = self.udp.endpoint(tuple, own);
        // A listener that is more precise than the one of the sender's flow has a flow of its own.
        let endpoint = endpoint.filter(|(owner, _)| {
            let precedes = |flows: &Arc<Flows>| flows.rule.rank() < owner.rule.rank();
            !listener.as_ref().is_some_and(precedes)
        });
        if let Some((_, udp)) = endpoint {
            udp.receive(received, now);
            return Outcome::Done;
        }
        match listener {
            Some(flows) => {
                self.begin_flow(&flows, (Transport::Udp, queue, received), now);
                Outcome::Done
            }
            None => Outcome::Nobody { own },
        }
    }

    /// A ping to an address that is none of the stack's. `false` if nothing intercepts it.
    pub(in crate::stack) fn ping(
        self: &Arc<Self>,
        queue: u16,
        received: Received,
        now: Instant,
    ) -> bool {
        let tuple = &{ received.tuple };
        if let Some(flow) = self.pings.flow(tuple) {
            flow.receive(received, now);
            return true;
        }
        let passes = {
            let network = self.addressing.network.lock();
            network.is_routed(tuple.remote) && !network.is_broadcast(tuple.local)
        };
        if !passes {
            return false;
        }
        let flows = self.pings.listener_for(tuple, false);
        if let Some(flows) = &flows {
            self.begin_flow(flows, (Transport::Echo, queue, received), now);
        }
        flows.is_some()
    }

    /// The sockets and flows of a transport.
    pub(super) fn datagrams(&self, of: Transport) -> &UdpTable {
        match of {
            Transport::Udp => &self.udp,
            Transport::Echo => &self.pings,
        }
    }

    /// Begins a flow with its first datagram, unless a limit forbids it. If another thread was first, that one's
    /// gets the datagram.
    fn begin_flow(
        self: &Arc<Self>,
        flows: &Arc<Flows>,
        (transport, queue, received): (Transport, u16, Received),
        now: Instant,
    ) {
        let table = self.datagrams(transport);
        let tuple = received.tuple;
        if self.is_down(queue) || !flows.reserve(tuple.remote) {
            table.counters.flows_refused.add(1);
            return;
        }
        let options = &flows.options;
        let end = SocketEnd::for_datagrams(options.hiwat, options.hiwat, options.records);
        let kind = match options.mapping {
            Mapping::Endpoint if transport == Transport::Udp => {
                let (first, client) = tuple.ends();
                Kind::Endpoint { client, first }
            }
            _ => Kind::Flow(tuple),
        };
        let host: Arc<dyn Host> = self.clone();
        let udp = Udp::new(host, end, (transport, kind, queue), options.timeouts());
        if let Err(first) = table.insert(&udp, flows) {
            flows.release(tuple.remote, &udp);
            if let Some(first) = first {
                first.receive(received, now);
            }
            return;
        }
        table.counters.flows.add(1);
        if let Some(at) = self.look_at(table, &udp, now) {
            self.expires_at(at);
        }
        // Either the queue that goes down has found the flow in the table, or this finds it down.
        if self.is_down(queue) {
            udp.finish(Some(self.why_down()));
        }
        udp.receive(received, now);
        if !flows.offer(&udp) {
            udp.finish(None);
        }
    }

    /// Ends the flows through which nothing has passed for their time.
    pub(in crate::stack) fn expire_flows(&self, now: Instant) {
        for table in [&self.udp, &self.pings] {
            while let Some(udp) = table.due(now) {
                if udp.expires() > self.since_epoch(now) {
                    self.look_at(table, &udp, now);
                } else {
                    table.counters.flows_expired.add(1);
                    udp.finish(None);
                }
            }
        }
    }

    /// Has a flow looked at when it may have expired, and returns when that is, unless it is beyond any clock.
    fn look_at(&self, table: &UdpTable, udp: &Arc<Udp>, now: Instant) -> Option<Instant> {
        let since_epoch = self.since_epoch(now);
        let at = udp.expires_before(since_epoch);
        let at = at.min(udp.give_back(since_epoch));
        let at = self.epoch.checked_add(at)?;
        table.arm(udp, at);
        Some(at)
    }

    /// Ends the sockets and flows of a stack that goes down, or of a queue or an address that is gone.
    pub(in crate::stack) fn end_datagrams(&self, error: SoError, which: impl Fn(&Udp) -> bool) {
        let all = self.udp.all().into_iter().chain(self.pings.all());
        let ended = all.filter(|udp| which(udp));
        ended.for_each(|udp| udp.finish(Some(error)));
    }

    /// An ICMP error about a datagram that we have sent. `false` if no socket of ours sent it.
    pub(in crate::stack) fn datagram_error(&self, error: &IcmpError) -> bool {
        let tuple = &error.tuple;
        let udp = self.udp.flow(tuple).or_else(|| self.udp.bound(tuple));
        let Some(udp) = udp.or_else(|| self.udp.endpoint_that_sent(tuple)) else {
            return false;
        };
        self.udp.counters.icmp_errors.add(1);
        // BSD's `udp_notify`: one of many peers that is gone is no error of the socket.
        let connected = udp.names().1.is_some();
        match error.kind {
            IcmpErrorKind::Hard(error) if connected => udp.end.fail_once(error),
            IcmpErrorKind::Hard(_) | IcmpErrorKind::Soft => {}
            IcmpErrorKind::TooBig(mtu) => self.learn_mtu(tuple.remote, mtu),
        }
        true
    }

    /// A router reports the size that passes; one that does not say so means the least that every host takes.
    fn learn_mtu(&self, to: IpAddr, reported: usize) {
        let least = if to.is_ipv4() { 552 } else { 1280 };
        let mtu = reported.max(least).min(self.capabilities().mtu);
        let found = Finding::Smaller(Known {
            mtu,
            by: By::Router,
        });
        let paths = &self.addressing.datagram_paths;
        paths.learn(to, found, self.clock.now());
    }
}

/// The source of a datagram, if it can be sent.
fn source(network: &Network, from: Source, to: IpAddr) -> Result<IpAddr, SoError> {
    let is_host = |address| is_endpoint(address) && !network.is_broadcast(address);
    let reaches = |from: IpAddr| from.is_ipv4() == to.is_ipv4();
    if !is_host(to) {
        return Err(SoError::HostUnreachable);
    }
    let looped = network.is_own(to);
    match network.route_to(to) {
        Route::Unreachable if !looped => return Err(SoError::HostUnreachable),
        Route::Prohibited if !looped => return Err(SoError::Prohibited),
        _ => {}
    }
    let source = match from {
        Source::Own(from) if reaches(from) && !network.is_own(from) => {
            return Err(SoError::AddressNotAvailable);
        }
        Source::Own(from) => Some(from),
        Source::Named(from) => Some(from).filter(|from| is_host(*from)),
        Source::Any if looped => Some(to),
        Source::Any => network.source_for(to),
    };
    let source = source.filter(|from| reaches(*from));
    source.ok_or(SoError::HostUnreachable)
}

impl Host for Shared {
    fn way(&self, from: Source, to: IpAddr) -> Result<Way, SoError> {
        let link = self.capabilities().mtu;
        let (source, looped, mtu) = {
            let network = self.addressing.network.lock();
            let looped = network.is_own(to);
            (source(&network, from, to)?, looped, network.mtu_to(to))
        };
        let now = self.clock.now();
        let paths = [&self.addressing.paths, &self.addressing.datagram_paths];
        let known = paths.map(|paths| Some(paths.get(to, now)?.mtu).filter(|_| !looped));
        let mtu = known.into_iter().chain([mtu]).flatten();
        let mtu = mtu.fold(link, usize::min);
        Ok(Way {
            source,
            looped,
            mtu: if looped { usize::MAX } else { mtu },
        })
    }

    fn link(&self, queue: u16, looped: bool) -> &dyn Link {
        let queue = &self.queues[usize::from(queue)];
        match looped {
            true => &queue.loopback,
            false => &queue.link,
        }
    }

    fn queues(&self) -> usize {
        self.queues.len()
    }

    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn since_epoch(&self, now: Instant) -> Duration {
        Shared::since_epoch(self, now)
    }

    fn fragment(
        &self,
        link: &dyn Link,
        packet: (&Packet<'_>, usize),
        progress: &mut Option<Progress>,
    ) -> Result<(), TransmitError> {
        self.send_fragments(link, packet, progress)
    }

    fn blocked(&self, udp: &Arc<Udp>) {
        let queue = &self.queues[usize::from(udp.queue)];
        let wake = queue.run_queue.lock().block_datagrams(udp);
        queue.wake_if(wake);
    }

    fn refuse(&self, udp: &Udp, why: SoError) {
        let Some((client, destination)) = udp.client() else {
            return;
        };
        // It quotes a datagram, or a request, such as the client has sent.
        let packet = match udp.transport {
            Transport::Udp => wire::compose((client, destination), &[], (HOP_LIMIT, false)),
            Transport::Echo => echo_wire::request((client, destination), HOP_LIMIT),
        };
        let about = Frame::new(packet.bytes()).checksum(Checksum::Verified);
        let kind = match why {
            SoError::Prohibited => icmp::Kind::Prohibited,
            SoError::HostUnreachable | SoError::NetworkDown => icmp::Kind::HostUnreachable,
            // Pings have no ports.
            _ if udp.transport == Transport::Echo => icmp::Kind::HostUnreachable,
            _ => icmp::Kind::PortUnreachable,
        };
        let link = Host::link(self, udp.queue, false);
        self.icmp_error(link, kind, &about, self.clock.now());
    }

    fn connected(&self, udp: &Udp, names: Names) {
        self.udp.rename(udp, names);
    }

    fn closed(&self, udp: &Udp) {
        self.datagrams(udp.transport).remove(udp);
        self.wake_all_if_abandoned();
    }

    fn detached(&self) {
        self.lifecycle.attached.fetch_sub(1, Ordering::AcqRel);
        self.wake_all_if_abandoned();
    }

    fn counters(&self, of: Transport) -> &UdpCounters {
        &self.datagrams(of).counters
    }

    fn is_pressed(&self) -> (bool, bool) {
        (self.memory.is_pressed(), self.memory.is_used_up())
    }

    fn holds(&self, before: usize, after: usize) {
        self.memory.change(before, after);
    }
}
