//! The network's side of a guest's Ethernet: the gateway.

mod arp;
mod config;
mod dhcp;
mod guests;
mod leases;
mod ndp;
#[cfg(test)]
mod tests;

pub use config::{ConfigError, EdgeConfig};
pub use guests::Guest;
use leases::Leases;

use super::carry::{Waiting, capabilities, check, receive, send, trim, without_link_header};
use super::frame::{self, HEADER, Mac, Refused};
use super::neighbours::{Limits, Neighbours};
use super::wire::{
    dhcp::SERVER_PORT,
    ip,
    ndp::{REDIRECT, ROUTER_SOLICITATION},
};
use crate::clock::{self, Clock};
use crate::link::{
    Capabilities, Flow, Frame, Interest, Link, LinkEvent, Packet, ReceiveError, TransmitError,
    Undelivered,
};
use crate::lock::{Guard, LEAF, Mutex};
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// The gateway's address of the link itself, in router advertisements.
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Packets and bytes that wait until the guest's hardware address is known.
const MAX_WAITING: usize = 64;
const MAX_WAITING_BYTES: usize = 128 << 10;
/// Answers to send after one batch.
const MAX_ANSWERS: usize = 128;
/// Longest control message that is read; longer ones are malformed.
const MAX_CONTROL: usize = 2048;

/// Counters of an [`Edge`], in frames except where noted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EdgeStats {
    /// Received and passed on as IP packets.
    pub passed: u64,
    /// Requests of ARP that were answered.
    pub arp_answered: u64,
    /// Neighbour solicitations that were answered.
    pub neighbours_answered: u64,
    /// Router advertisements that were sent.
    pub advertisements: u64,
    /// Messages of DHCP that were answered with an offer or an acknowledgement.
    pub dhcp_answered: u64,
    /// Requests of DHCP for another address, refused.
    pub dhcp_refused: u64,
    /// Discoveries of DHCP without an answer: all addresses have leases that last.
    pub no_address: u64,
    /// Requests of DHCP without an answer: by new guests beyond
    /// [`new_guests_per_minute`](field@EdgeConfig::new_guests_per_minute).
    pub leases_limited: u64,
    /// Times that the guest found its address in use by another host.
    pub declined: u64,
    /// Control messages that need no answer, e.g. about addresses of others.
    pub ignored: u64,
    /// Times that another host claimed an address of the gateway.
    pub conflicts: u64,
    /// Changes of the guest's hardware address.
    pub moves: u64,
    /// With several guests: requests of ARP and neighbour solicitations of the gateway's own.
    pub solicitations: u64,
    /// Dropped: too short, lengths or checksums wrong, a source that is no host.
    pub malformed: u64,
    /// Dropped: with a tag of a virtual LAN.
    pub tagged: u64,
    /// Dropped: another protocol than IPv4, IPv6 and ARP.
    pub unknown: u64,
    /// Dropped: to another hardware address than the gateway's.
    pub not_for_us: u64,
    /// Dropped: to a group or to all hosts, and not for the gateway.
    pub multicast: u64,
    /// Dropped, with several guests: from an address that is another guest's, or none of the network, or with another
    /// hardware address in the message than in the frame.
    pub spoofed: u64,
    /// Packets to the guest that were dropped while its hardware address was unknown.
    pub waiting_dropped: u64,
    /// With several guests: packets to an address that no guest answered for.
    pub unanswered: u64,
    /// With several guests: packets to addresses outside the network.
    pub unreachable: u64,
    /// Answers that the transport had no room for, or refused.
    pub answers_dropped: u64,
}

/// State of the gateway. It calls nothing: frames are put in, answers and packets are taken out.
#[derive(Debug)]
struct Gateway {
    config: EdgeConfig,
    stats: EdgeStats,
    leases: Leases,
    /// Of several guests.
    neighbours: Neighbours<Waiting>,
    /// The only guest.
    guest: Option<Mac>,
    /// IP packets for the guest, oldest first.
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// Packets to guests that do not answer, until the stack is told.
    failed: Vec<Waiting>,
    /// Packets whose guest has become known, to be sent there before the answers.
    released: VecDeque<(Mac, Waiting)>,
    /// Frames to send.
    answers: Vec<Vec<u8>>,
    /// Time of the last defence of an address.
    defended: Option<Instant>,
    /// Time of the last router advertisement to all.
    advertised: Option<Instant>,
    next_advertisement: Option<Instant>,
}

impl Gateway {
    fn new(config: EdgeConfig) -> Gateway {
        let leases = match &config.pool {
            None => Leases::for_any(config.guest, config.lease),
            Some(pool) => Leases::new(pool.clone(), &config.reservations, config.lease)
                .rate(config.new_guests_per_minute),
        };
        Gateway {
            config,
            stats: EdgeStats::default(),
            leases,
            neighbours: Neighbours::new(Limits::default()),
            guest: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            failed: Vec::new(),
            released: VecDeque::new(),
            answers: Vec::new(),
            defended: None,
            advertised: None,
            next_advertisement: None,
        }
    }

    /// Whether there may be more than one guest.
    fn several(&self) -> bool {
        self.config.pool.is_some()
    }

    /// A received frame. Returns the IP packet that it passes on.
    fn receive(&mut self, mut received: Frame, now: Instant) -> Option<Frame> {
        received.pull_up(HEADER + 8 + 60 + 8);
        let header = match frame::parse(&received.head, self.config.vlan) {
            Ok(header) if header.source != self.config.mac => header,
            Ok(_) => return self.drop_as(|stats| &mut stats.not_for_us),
            Err(Refused::Tagged) => return self.drop_as(|stats| &mut stats.tagged),
            Err(Refused::Short | Refused::Source) => {
                return self.drop_as(|stats| &mut stats.malformed);
            }
        };
        if header.destination.is_unicast() && header.destination != self.config.mac {
            return self.drop_as(|stats| &mut stats.not_for_us);
        }
        without_link_header(&mut received, header.len);
        match header.kind {
            frame::ARP => {
                self.learn(header.source);
                self.arp(&received.head, header.source, now);
                None
            }
            frame::IPV4 => self.ipv4(received, header, now),
            frame::IPV6 => self.ipv6(received, header, now),
            _ => self.drop_as(|stats| &mut stats.unknown),
        }
    }

    fn drop_as(&mut self, counter: impl FnOnce(&mut EdgeStats) -> &mut u64) -> Option<Frame> {
        *counter(&mut self.stats) += 1;
        None
    }

    fn ipv4(&mut self, received: Frame, header: frame::Header, now: Instant) -> Option<Frame> {
        let packet = &received.head;
        let Some((header_len, len)) = ip::v4_lengths(packet, received.len()) else {
            return self.drop_as(|stats| &mut stats.malformed);
        };
        self.learn(header.source);
        let destination = Ipv4Addr::from_octets(packet[16..20].try_into().ok()?);
        let source = Ipv4Addr::from_octets(packet[12..16].try_into().ok()?);
        let first_fragment = frame::be16(packet, 6) & 0x3fff == 0;
        let is_own = destination.is_broadcast() || destination == self.config.gateway.addr();
        let to_server =
            packet.get(header_len + 2..header_len + 4) == Some(&SERVER_PORT.to_be_bytes());
        if packet[9] == ip::UDP && first_fragment && is_own && to_server {
            self.control(&received, len, |gateway, packet| {
                match ip::udp_payload(packet) {
                    Some(payload) => gateway.dhcp(payload, header.source, now),
                    None => gateway.stats.malformed += 1,
                }
            });
            return None;
        }
        let to_all = destination.is_broadcast() || destination == self.config.gateway.broadcast();
        if destination.is_multicast() || to_all || !header.destination.is_unicast() {
            return self.drop_as(|stats| &mut stats.multicast);
        }
        self.pass((received, len), source.into(), header.source, now)
    }

    /// Passes on a packet whose length field is `len`, if its source is the guest's.
    fn pass(
        &mut self,
        (mut received, len): (Frame, usize),
        from: IpAddr,
        mac: Mac,
        now: Instant,
    ) -> Option<Frame> {
        if !self.may_use(from, mac, now) {
            return None;
        }
        trim(&mut received, len);
        self.stats.passed += 1;
        Some(received)
    }

    fn ipv6(&mut self, received: Frame, header: frame::Header, now: Instant) -> Option<Frame> {
        let packet = &received.head;
        let Some(len) = ip::v6_length(packet, received.len()) else {
            return self.drop_as(|stats| &mut stats.malformed);
        };
        self.learn(header.source);
        let discovery = ROUTER_SOLICITATION..=REDIRECT;
        if packet[6] == ip::ICMPV6 && packet.get(40).is_some_and(|kind| discovery.contains(kind)) {
            self.control(&received, len, |gateway, packet| {
                gateway.discovery(packet, header.source, now)
            });
            return None;
        }
        if packet[24] == 0xff || !header.destination.is_unicast() {
            return self.drop_as(|stats| &mut stats.multicast);
        }
        let source = Ipv6Addr::from_octets(packet[8..24].try_into().ok()?);
        self.pass((received, len), source.into(), header.source, now)
    }

    /// Handles a control message, in a packet whose length field is `len`.
    fn control(&mut self, received: &Frame, len: usize, handle: impl FnOnce(&mut Gateway, &[u8])) {
        if len == 0 || received.len() > MAX_CONTROL {
            self.stats.malformed += 1;
            return;
        }
        handle(self, &received.to_complete_vec()[..len]);
    }

    /// The only guest is where its last frame came from.
    fn learn(&mut self, source: Mac) {
        if self.guest == Some(source) || self.several() {
            return;
        }
        self.stats.moves += u64::from(self.guest.is_some());
        self.guest = Some(source);
        self.waiting_bytes = 0;
        let waiting = self.waiting.drain(..).map(|packet| (source, packet));
        self.released.extend(waiting);
    }

    /// Keeps a packet until the guest is known.
    fn keep(&mut self, packet: Waiting) {
        self.waiting_bytes += packet.len();
        self.waiting.push_back(packet);
        while self.waiting.len() > MAX_WAITING || self.waiting_bytes > MAX_WAITING_BYTES {
            let oldest = self
                .waiting
                .pop_front()
                .expect("invariant: there is the new one");
            self.waiting_bytes -= oldest.len();
            self.stats.waiting_dropped += 1;
        }
    }

    /// Queues a frame to be sent.
    fn answer(&mut self, bytes: Vec<u8>) {
        match self.answers.len() < MAX_ANSWERS {
            true => self.answers.push(bytes),
            false => self.stats.answers_dropped += 1,
        }
    }
}

/// A link of IP packets to one guest behind a transport of Ethernet frames, or to several, whose gateway it is. See the
/// [module](super).
///
/// * **ARP, neighbour discovery**: it answers for the gateway's addresses, also when a host probes them before it
///   uses them itself (RFC 5227, 4862), and for no others.
/// * **DHCPv4**: the only guest, or whichever takes its place, is offered the one address for it, with mask, router, name
///   servers and MTU. A guest that asks to keep an address of another network is refused at once, so that it discovers
///   again.
/// * **Router advertisements** with the prefix, the MTU and the name servers: when solicited, and every ten minutes
///   from then on.
/// * **The guest's hardware address** is that of its last frame. It is kept while the transport has no peer.
///   Packets sent before it is known wait: the last 64, of at most 128 KiB.
/// * Frames to others, and to groups, are dropped.
///
/// # Several guests
///
/// With a [`pool`](EdgeConfig::pool) there are several guests on the transport, e.g. on a bridge, where they reach each
/// other without the gateway.
///
/// * **Leases** belong to hardware addresses, whatever the client identifier (copies of one disk image have the same):
///   the same guest gets the same address as long as no other one needs it. Others get addresses that were never leased,
///   then those whose lease has been over the longest, and then those that were only offered: a lease that lasts is never
///   given to another guest. A guest that asks for its old address gets it if it is free. An address that a guest
///   declines is not given for ten minutes; a quarter of the pool at most.
/// * **Hardware addresses**: packets to an address with a lease are sent to the guest that has it. For any other address
///   of the network (static ones, and those that guests make of their own for IPv6) the gateway asks, by ARP or neighbour
///   solicitation, and packets wait meanwhile: 64 for an address, 512 in all. After three seconds without an answer they
///   are dropped, and an attempt to connect fails with [`HostUnreachable`](std::io::ErrorKind::HostUnreachable). It keeps
///   1,024 addresses.
/// * **No guest takes the address of another one.** One with a lease is used by its guest only; any other one by the guest
///   that has answered for it, as long as that one answers: when another guest uses it, its owner is asked, and after
///   three seconds without an answer the address is the other one's. What is sent from an address of another guest, or
///   from one outside of the network, is dropped and counted ([`EdgeStats::spoofed`]).
/// * Packets to addresses outside of the network are dropped and counted.
///
/// The stack above it is to have the gateway's addresses.
///
/// Locks: the gateway's state, a leaf, for control messages and while the guest is unknown; with several guests for each
/// packet. The transport is called without it.
///
/// ```
/// use sosplice::link::ethernet::{Edge, EdgeConfig};
/// use sosplice::link::{Link, Packet, memory};
/// let (transport, guest) = memory::pair(memory::Config::default().mtu(1514));
/// let edge = Edge::new(transport, EdgeConfig::new("10.0.2.1/24".parse()?, "10.0.2.15".parse()?))?;
///
/// // The guest asks for the gateway.
/// let mut request = vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 8, 6];
/// request.extend([0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 1]);
/// guest.transmit(&Packet::new(&request, &[], 14))?;
/// let mut frames = Vec::new();
/// edge.receive(&mut frames, 64)?;
/// assert!(frames.is_empty(), "it is no IP packet");
/// guest.receive(&mut frames, 64)?;
/// assert_eq!(frames[0].to_vec()[20..22], [0, 2], "an answer");
/// assert_eq!(edge.guest(), Some("02:00:00:00:00:09".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Edge<T> {
    transport: T,
    clock: Arc<dyn Clock>,
    mac: Mac,
    several: bool,
    capabilities: Capabilities,
    gateway: Mutex<Gateway, LEAF>,
    /// The guest's hardware address, also in `gateway`: zero while it is unknown.
    guest: AtomicU64,
    /// There are packets to guests that do not answer.
    failed: AtomicBool,
}

impl<T: Link> Edge<T> {
    /// A gateway over a transport of frames.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn new(transport: T, config: EdgeConfig) -> Result<Edge<T>, ConfigError> {
        config.check()?;
        let capabilities = capabilities(&transport, config.mtu);
        Ok(Edge {
            transport,
            clock: clock::system(),
            mac: config.mac,
            several: config.pool.is_some(),
            capabilities,
            gateway: Mutex::new(Gateway::new(config)),
            guest: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        })
    }

    /// Sets the clock of its timers; the system's by default. It is to be that of the stack
    /// ([`Builder::clock`](crate::stack::Builder::clock)).
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Edge<T> {
        self.clock = clock;
        self
    }

    /// The transport below.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// The only guest's hardware address, once it has sent a frame. `None` if there are several ([`guests`](Self::guests)).
    pub fn guest(&self) -> Option<Mac> {
        Mac::from_bits(self.guest.load(Ordering::Acquire))
    }

    /// The guests that have leases, or to which packets were sent, by hardware address.
    pub fn guests(&self) -> Vec<Guest> {
        let now = self.clock.now();
        self.gateway.lock().guests(now)
    }

    /// Counters.
    pub fn stats(&self) -> EdgeStats {
        let gateway = self.gateway.lock();
        let (mut stats, table) = (gateway.stats, gateway.neighbours.counters());
        drop(gateway);
        stats.waiting_dropped += table.dropped + table.full;
        stats.moves += table.moved;
        stats
    }

    /// Puts received frames into the gateway, and sends its answers.
    fn process(&self, received: Vec<Frame>, packets: &mut Vec<Frame>) {
        let now = self.clock.now();
        let mut gateway = self.gateway.lock();
        packets.extend(
            received
                .into_iter()
                .filter_map(|frame| gateway.receive(frame, now)),
        );
        gateway.tick(now);
        let guest = gateway.guest.map_or(0, Mac::to_bits);
        self.guest.store(guest, Ordering::Release);
        self.send_answers(gateway);
    }

    /// Sends the gateway's answers, without its lock.
    fn send_answers(&self, mut gateway: Guard<'_, Gateway, LEAF>) {
        if !gateway.failed.is_empty() {
            self.failed.store(true, Ordering::Release);
        }
        let answers = std::mem::take(&mut gateway.answers);
        let released = std::mem::take(&mut gateway.released);
        drop(gateway);
        let release =
            |(to, packet): &(Mac, Waiting)| packet.send(&self.transport, (*to, self.mac)).is_err();
        let send = |answer: &Vec<u8>| {
            self.transport
                .transmit(&Packet::new(answer, &[], HEADER))
                .is_err()
        };
        let released = released.iter().filter(|packet| release(packet)).count();
        let dropped = released + answers.iter().filter(|answer| send(answer)).count();
        if dropped > 0 {
            self.gateway.lock().stats.answers_dropped += u64::try_from(dropped).unwrap_or(u64::MAX);
        }
    }

    /// The hardware address of the guest that a packet is for, of several. While it is unknown the gateway keeps the
    /// packet, and asks for it.
    fn resolve(&self, packet: &Packet<'_>) -> Option<Mac> {
        let now = self.clock.now();
        let mut gateway = self.gateway.lock();
        let before = gateway.neighbours.deadline();
        let to = gateway.resolve(packet, now);
        let changed = gateway.neighbours.deadline() != before;
        self.send_answers(gateway);
        if changed {
            self.transport.wake();
        }
        to
    }

    /// Keeps a packet, unless the guest became known meanwhile.
    fn keep(&self, packet: &Packet<'_>) -> Option<Mac> {
        let copy = Waiting::new(packet);
        let mut gateway = self.gateway.lock();
        if gateway.guest.is_none() {
            gateway.keep(copy);
        }
        gateway.guest
    }
}

impl<T: Link> Link for Edge<T> {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        receive(&self.transport, (frames, max), |received, frames| {
            self.process(received, frames);
        })
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        check(packet, self.capabilities.mtu)?;
        let to = match self.several {
            true => self.resolve(packet),
            false => self.guest().or_else(|| self.keep(packet)),
        };
        match to {
            Some(guest) => send(&self.transport, (guest, self.mac), packet),
            None => Ok(()),
        }
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.transport.wait(interest, deadline)
    }

    fn deadline(&self) -> Option<Instant> {
        let transport = self.transport.deadline();
        let gateway = self.gateway.lock();
        let own = [gateway.next_advertisement, gateway.neighbours.deadline()];
        own.into_iter().chain([transport]).flatten().min()
    }

    fn wake(&self) {
        self.transport.wake();
    }

    fn take_events(&self, events: &mut Vec<LinkEvent>) {
        if self.failed.swap(false, Ordering::AcqRel) {
            let failed = std::mem::take(&mut self.gateway.lock().failed);
            events.extend(failed.iter().map(|packet| LinkEvent::Undelivered {
                packet: packet.frame(),
                why: Undelivered::HostUnreachable,
            }));
        }
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn descriptors(&self) -> Option<[std::os::fd::BorrowedFd<'_>; 2]> {
        self.transport.descriptors()
    }

    fn reseed(&self, seed: u64) {
        // It has no secrets of its own.
        self.transport.reseed(seed);
    }

    fn steer(&self, flow: &Flow) -> Option<usize> {
        self.transport.steer(flow)
    }
}
