//! The side of a host in a LAN.
//!
//! | file | contents |
//! |---|---|
//! | `config` | settings |
//! | `station` | the state of a host: what it does with frames, packets and times; it calls nothing |
//! | `addresses` | own addresses: probed, announced, defended |
//! | `arp`, `ndp` | messages about hardware addresses |
//! | `routes` | next hops, and gateways that do not answer |
//! | `dhcp`, `autoconf`, `groups` | DHCPv4, router advertisements, IGMP and MLD: state machines of their own |
//!
//! This file has the locks and the transport. The state is a leaf, and nothing is called with it held.
//!
//! Packets that have waited for a neighbour must leave before later ones to it. While there are any, or a thread sends
//! one, other threads find the link full; they are woken as with any full link.

mod addresses;
mod arp;
mod autoconf;
mod config;
mod dhcp;
mod groups;
mod ndp;
mod routes;
mod station;
#[cfg(test)]
mod tests;

pub use addresses::{AddressState, HostAddress};
pub use config::{HostConfig, HostConfigError};

use super::carry::{capabilities, check, receive, send};
use super::frame::{HEADER, Mac};
use super::neighbours::Neighbour;
use crate::clock::{self, Clock};
use crate::link::{
    Capabilities, Flow, Frame, Interest, Link, LinkEvent, Packet, ReceiveError, TransmitError,
};
use crate::lock::{LEAF, Mutex};
use station::{Departure, Outgoing, Station};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// While the transport has no room for frames of the host itself, it is tried again after this time.
const RETRY: Duration = Duration::from_millis(1);

/// Counters of a [`Host`], in frames except where noted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostStats {
    /// Received and passed on as IP packets.
    pub passed: u64,
    /// Requests of ARP that were answered.
    pub arp_answered: u64,
    /// Neighbour solicitations that were answered.
    pub neighbours_answered: u64,
    /// Control messages that need no answer, e.g. about addresses of others.
    pub ignored: u64,
    /// Times that another host had, or claimed, an address of this one.
    pub conflicts: u64,
    /// Frames of this host that the link has looped back.
    pub looped: u64,
    /// Dropped: too short, lengths or checksums wrong, a source that is no host.
    pub malformed: u64,
    /// Dropped: with a tag of a virtual LAN.
    pub tagged: u64,
    /// Dropped: another protocol than IPv4, IPv6 and ARP.
    pub unknown: u64,
    /// Dropped: to another hardware address.
    pub not_for_us: u64,
    /// Dropped: to a group of which the host is no member, or to one host in a frame to many.
    pub multicast: u64,
    /// Packets that were not sent for want of a route.
    pub no_route: u64,
    /// Packets that were not sent because the next hop does not answer.
    pub unreachable: u64,
    /// Packets that were dropped as the oldest of too many that waited for a neighbour.
    pub waiting_dropped: u64,
    /// Packets that were dropped because the table of neighbours was full.
    pub neighbours_full: u64,
    /// Neighbours that did not answer.
    pub neighbours_failed: u64,
    /// Changes of a neighbour's hardware address.
    pub neighbours_moved: u64,
    /// Messages that were sent to servers of DHCP.
    pub dhcp_sent: u64,
    /// Messages of DHCP that were heeded.
    pub dhcp_accepted: u64,
    /// Messages of DHCP that were malformed, or no answers.
    pub dhcp_ignored: u64,
    /// Addresses that a server of DHCP refused.
    pub dhcp_refused: u64,
    /// Addresses of DHCP that another host has.
    pub dhcp_declined: u64,
    /// Leases of DHCP that ended because no server renewed them.
    pub dhcp_expired: u64,
    /// Router solicitations that were sent.
    pub routers_solicited: u64,
    /// Router advertisements that were heeded.
    pub advertisements: u64,
    /// Parts of router advertisements that were malformed, or found no room.
    pub advertisements_dropped: u64,
    /// Redirects. They are not heeded.
    pub redirects: u64,
    /// Messages about groups that were sent.
    pub groups_sent: u64,
    /// Queries about groups that were heeded.
    pub group_queries: u64,
    /// Other messages about groups, e.g. reports of other hosts, and malformed ones.
    pub groups_ignored: u64,
    /// Joins of groups that were refused for want of room.
    pub groups_refused: u64,
    /// Messages of the host's own that were dropped, for want of room in the transport or because it refused them.
    pub answers_dropped: u64,
}

/// A link of IP packets for a host in a LAN, over a transport of Ethernet frames. See the [module](super).
///
/// * **Addresses** are probed before use, announced, and defended (RFC 5227, 4862, 7527); the stack above gets each of
///   them when it may be used, and loses it to a host that insists on it, or with its lease
///   ([`Link::take_events`]). [`Stack::wait_for_address`](crate::Stack::wait_for_address) waits for one;
///   [`addresses`](Self::addresses) lists all.
/// * **Neighbours**: a table for both families by RFC 4861 7.3 ([`neighbours`](Self::neighbours)), of at most 1,024
///   entries in use. Packets wait for the answer to ARP or to a neighbour solicitation, and leave in order: for one
///   neighbour up to 64 of at most 128 KiB, in all 512 of at most 1 MiB, beyond that the oldest is dropped. When the
///   neighbour does not answer for three seconds, they fail with
///   [`HostUnreachable`](std::io::ErrorKind::HostUnreachable), and so does an attempt to connect; a connection goes on.
/// * **Routes**: networks of the addresses are on the link, others are reached by gateways: the longest prefix wins, and
///   a gateway that does not answer is passed over while another one does. Without a route, packets and attempts to
///   connect fail at once.
/// * **DHCPv4 and router advertisements**, if configured, give addresses, gateways, routes, name servers
///   ([`dns`](Self::dns)) and the MTU, which can be smaller than the configured one. Larger packets are reported to the
///   stack as those of a path with a small MTU.
/// * **Groups** are joined by the host for its own addresses, and by the program ([`join`](Self::join)).
/// * **Received** are frames to the own hardware address, to all, and to joined groups. An IP packet in a frame to the
///   own hardware address is passed on whatever its destination, for stacks that intercept. Redirects are not heeded.
///
/// A stack takes addresses from the program, too ([`Builder::address`](crate::stack::Builder::address)), but the host
/// answers only for its own. A program that keeps the host in an [`Arc`] gives a clone to the stack.
///
/// Threads and locks: any thread may call any method; the host's state is a leaf, held while one frame or packet is
/// handled. [`transmit`](Link::transmit) may send the host's own messages, and never calls the stack.
///
/// ```
/// use sosplice::link::ethernet::{Host, HostConfig};
/// use sosplice::{Stack, TcpListener, TcpStream, link::memory};
/// use std::sync::Arc;
/// let (a, b) = memory::pair(memory::Config::default().mtu(1514));
/// let server = HostConfig::new("02:00:00:00:00:02".parse()?).address("10.0.0.2/24".parse()?);
/// let client = HostConfig::new("02:00:00:00:00:01".parse()?).address("10.0.0.1/24".parse()?);
/// // No other host is on this wire, so there is nothing to probe.
/// let host = Arc::new(Host::new(a, client.probe(false))?);
/// let client = Stack::builder(host.clone()).build()?;
/// let server = Stack::builder(Host::new(b, server.probe(false))?).build()?;
///
/// let listener = TcpListener::bind(&server, "10.0.0.2:80")?;
/// TcpStream::connect(&client, "10.0.0.2:80")?;
/// let neighbours = host.neighbours();
/// assert_eq!(neighbours[0].mac, Some("02:00:00:00:00:02".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Host<T> {
    transport: T,
    clock: Arc<dyn Clock>,
    mac: Mac,
    capabilities: Capabilities,
    station: Mutex<Station, LEAF>,
    /// A thread sends the frames that wait in `station`.
    sending: AtomicBool,
    /// `station` has events.
    events: AtomicBool,
}

impl<T: Link> Host<T> {
    /// A host over a transport of frames.
    ///
    /// # Errors
    /// See [`HostConfigError`].
    pub fn new(transport: T, config: HostConfig) -> Result<Host<T>, HostConfigError> {
        config.check()?;
        let seed = match config.seed {
            Some(seed) => seed,
            None => getrandom::u64().map_err(HostConfigError::Random)?,
        };
        let capabilities = capabilities(&transport, config.mtu);
        Ok(Host {
            transport,
            clock: clock::system(),
            mac: config.mac,
            capabilities,
            station: Mutex::new(Station::new(config, seed)),
            sending: AtomicBool::new(false),
            events: AtomicBool::new(true),
        })
    }

    /// Sets the clock of its timers; the system's by default. It is to be that of the stack
    /// ([`Builder::clock`](crate::stack::Builder::clock)).
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Host<T> {
        self.clock = clock;
        self
    }

    /// The transport below.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// The hardware address.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Counters.
    pub fn stats(&self) -> HostStats {
        self.station.lock().stats()
    }

    /// The table of neighbours, by address.
    pub fn neighbours(&self) -> Vec<Neighbour> {
        let now = self.clock.now();
        self.station.lock().neighbours.list(now)
    }

    /// The host's addresses, also those that are not used yet.
    pub fn addresses(&self) -> Vec<HostAddress> {
        let station = self.station.lock();
        station.addresses.iter().map(|own| own.describe()).collect()
    }

    /// The name servers that DHCP and router advertisements have named.
    pub fn dns(&self) -> Vec<IpAddr> {
        self.station.lock().dns()
    }

    /// Joins a multicast group: packets to it are passed on, and routers are told (IGMP, MLD). Once more if it is
    /// joined already.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if it is no multicast group,
    /// [`QuotaExceeded`](io::ErrorKind::QuotaExceeded) beyond 512 groups of its family.
    pub fn join(&self, group: IpAddr) -> io::Result<()> {
        if !group.is_multicast() {
            let why = "no multicast group: give an address in 224.0.0.0/4 or ff00::/8";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let now = self.clock.now();
        let joined = self.station.lock().join(group, now);
        self.transport.wake();
        match joined {
            true => Ok(()),
            false => {
                let why = "the host is in 512 groups of this family: leave one first";
                Err(io::Error::new(io::ErrorKind::QuotaExceeded, why))
            }
        }
    }

    /// Takes back one [`join`](Self::join). Returns whether there was one.
    pub fn leave(&self, group: IpAddr) -> bool {
        let now = self.clock.now();
        let left = self.station.lock().leave(group, now);
        self.transport.wake();
        left
    }

    /// Gives the address of DHCP back to its server, e.g. before the program ends. The stack loses the address.
    pub fn release(&self) {
        let now = self.clock.now();
        self.station.lock().release(now);
        self.events.store(true, Ordering::Release);
        self.flush();
        self.transport.wake();
    }

    /// The link was away, and may be one to another network now: asks DHCP and routers again, and announces the
    /// addresses to the other hosts.
    pub fn reconnected(&self) {
        let now = self.clock.now();
        self.station.lock().reconnected(now);
        self.transport.wake();
    }

    /// Puts received frames into the station, and does what is due.
    fn process(&self, received: Vec<Frame>, packets: &mut Vec<Frame>) {
        let now = self.clock.now();
        let mut station = self.station.lock();
        station.begin(now);
        let passed = received
            .into_iter()
            .filter_map(|frame| station.receive(frame, now));
        packets.extend(passed);
        station.poll(now);
        self.events
            .store(!station.events.is_empty(), Ordering::Release);
        let has_outgoing = station.has_outgoing();
        drop(station);
        if has_outgoing {
            self.flush();
        }
    }

    /// Sends the frames that wait, while the transport has room and no other thread does.
    fn flush(&self) {
        while !self.sending.swap(true, Ordering::Acquire) {
            let full = self.send_outgoing();
            self.sending.store(false, Ordering::Release);
            // A frame that was queued meanwhile by a thread that saw this one at work.
            if full || !self.station.lock().has_outgoing() {
                return;
            }
        }
    }

    /// `true` if the transport has no room.
    fn send_outgoing(&self) -> bool {
        loop {
            let next = self.station.lock().next_outgoing();
            let Some(outgoing) = next else { return false };
            let result = match &outgoing {
                Outgoing::Answer(bytes) => {
                    self.transport.transmit(&Packet::new(bytes, &[], HEADER))
                }
                Outgoing::Packet(to, packet) => packet.send(&self.transport, (*to, self.mac)),
            };
            match result {
                Ok(()) => self.station.lock().is_sent(false),
                Err(TransmitError::Full) => {
                    self.station.lock().put_back(outgoing);
                    return true;
                }
                // A transport that is gone says so when it receives.
                Err(TransmitError::Refused(_) | TransmitError::Gone(_)) => {
                    self.station.lock().is_sent(true);
                }
            }
        }
    }
}

impl<T: Link> Link for Host<T> {
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
        let now = self.clock.now();
        let mut station = self.station.lock();
        if station.has_departures() {
            drop(station);
            self.flush();
            station = self.station.lock();
            if station.has_departures() {
                return Err(TransmitError::Full);
            }
        }
        station.begin(now);
        let before = station.neighbours.deadline();
        let departure = station.depart(packet, now);
        let after = station.neighbours.deadline();
        let has_events = !station.events.is_empty();
        let has_outgoing = station.has_outgoing();
        drop(station);
        if has_events {
            self.events.store(true, Ordering::Release);
        }
        if has_outgoing {
            self.flush();
        }
        let earlier = after.is_some_and(|after| before.is_none_or(|before| after < before));
        if earlier || has_events {
            self.transport.wake();
        }
        match departure {
            Departure::Now(to) => send(&self.transport, (to, self.mac), packet),
            Departure::Taken => Ok(()),
        }
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.transport.wait(interest, deadline)
    }

    fn wake(&self) {
        self.transport.wake();
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn descriptors(&self) -> Option<[std::os::fd::BorrowedFd<'_>; 2]> {
        self.transport.descriptors()
    }

    fn deadline(&self) -> Option<Instant> {
        let transport = self.transport.deadline();
        let now = self.clock.now();
        let mut station = self.station.lock();
        station.begin(now);
        let retry = station.has_outgoing().then_some(now + RETRY);
        let event = (!station.events.is_empty()).then_some(now);
        let all = [station.deadline(), retry, event, transport];
        all.into_iter().flatten().min()
    }

    fn take_events(&self, events: &mut Vec<LinkEvent>) {
        if self.events.swap(false, Ordering::AcqRel) {
            let now = self.clock.now();
            let mut station = self.station.lock();
            station.begin(now);
            events.append(&mut station.events);
        }
    }

    fn manages_addresses(&self) -> bool {
        true
    }

    fn reseed(&self, seed: u64) {
        self.station.lock().reseed(seed);
        self.transport.reseed(crate::random::mix(seed));
    }

    fn steer(&self, flow: &Flow) -> Option<usize> {
        self.transport.steer(flow)
    }
}
