//! The network's side of a guest's Ethernet: the gateway.

mod arp;
mod dhcp;
mod ip;
mod ndp;
#[cfg(test)]
mod tests;

use super::frame::{self, HEADER, Mac, Refused, Vlan};
use crate::clock::{Clock, SystemClock};
use crate::link::{
    Capabilities, Checksum, Flow, Frame, Interest, Link, Packet, ReceiveError, TransmitError,
};
use crate::lock::{LEAF, Mutex};
use ipnet::{Ipv4Net, Ipv6Net};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The gateway's address of the link itself, in router advertisements.
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Packets and bytes that wait until the guest's hardware address is known.
const MAX_WAITING: usize = 64;
const MAX_WAITING_BYTES: usize = 128 << 10;
/// Frames to send after one batch: more than may wait for the guest.
const MAX_ANSWERS: usize = 128;
/// Longest control message that is read; longer ones are malformed.
const MAX_CONTROL: usize = 2048;
/// Maximum number of name servers.
const MAX_DNS: usize = 8;

/// Addresses and settings of an [`Edge`].
///
/// ```
/// use sosplice::link::ethernet::EdgeConfig;
/// let config = EdgeConfig::new("10.0.2.1/24".parse()?, "10.0.2.15".parse()?)
///     .gateway_v6("fd00::1/64".parse::<ipnet::Ipv6Net>()?)
///     .dns(["10.0.2.1".parse()?, "fd00::1".parse()?])
///     .mtu(9000);
/// assert_eq!(config.mtu, 9000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EdgeConfig {
    /// The gateway's address and the network's prefix length.
    pub gateway: Ipv4Net,
    /// The address that DHCP gives to the guest.
    pub guest: Ipv4Addr,
    /// The gateway's IPv6 address, and the prefix of 64 bits from which the guest makes its own (SLAAC). `None`:
    /// no IPv6. In addition the gateway has the address fe80::1.
    pub gateway_v6: Option<Ipv6Net>,
    /// The gateway's hardware address.
    pub mac: Mac,
    /// The name servers that DHCP and router advertisements name; at most 8.
    pub dns: Vec<IpAddr>,
    /// Largest IP packet in bytes, also announced to the guest: 576 (with IPv6 1,280) to 65,535.
    pub mtu: usize,
    /// How long a lease of DHCP lasts; the guest renews it after half of this time.
    pub lease: Duration,
    /// What happens to frames with tags of virtual LANs.
    pub vlan: Vlan,
}

impl EdgeConfig {
    /// A network of IPv4 with a gateway and a guest, the gateway as its name server, MTU 1500, leases of a day.
    pub fn new(gateway: Ipv4Net, guest: Ipv4Addr) -> EdgeConfig {
        EdgeConfig {
            gateway,
            guest,
            gateway_v6: None,
            mac: Mac([0x02, 0x73, 0x70, 0x6c, 0x69, 0x01]),
            dns: vec![gateway.addr().into()],
            mtu: 1500,
            lease: Duration::from_secs(86_400),
            vlan: Vlan::Drop,
        }
    }

    /// Sets [`gateway_v6`](field@Self::gateway_v6).
    #[must_use]
    pub fn gateway_v6(mut self, gateway: impl Into<Option<Ipv6Net>>) -> EdgeConfig {
        self.gateway_v6 = gateway.into();
        self
    }

    /// Sets [`mac`](field@Self::mac).
    #[must_use]
    pub fn mac(mut self, mac: Mac) -> EdgeConfig {
        self.mac = mac;
        self
    }

    /// Sets [`dns`](field@Self::dns).
    #[must_use]
    pub fn dns(mut self, servers: impl IntoIterator<Item = IpAddr>) -> EdgeConfig {
        self.dns = servers.into_iter().collect();
        self
    }

    /// Sets [`mtu`](field@Self::mtu).
    #[must_use]
    pub fn mtu(mut self, bytes: usize) -> EdgeConfig {
        self.mtu = bytes;
        self
    }

    /// Sets [`lease`](field@Self::lease).
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> EdgeConfig {
        self.lease = lease;
        self
    }

    /// Sets [`vlan`](field@Self::vlan).
    #[must_use]
    pub fn vlan(mut self, vlan: Vlan) -> EdgeConfig {
        self.vlan = vlan;
        self
    }

    fn check(&self) -> Result<(), ConfigError> {
        let least = if self.gateway_v6.is_some() { 1280 } else { 576 };
        if !self.gateway.contains(&self.guest) || self.guest == self.gateway.addr() {
            return Err(ConfigError::Guest {
                guest: self.guest,
                gateway: self.gateway,
            });
        }
        if let Some(gateway) = self.gateway_v6.filter(|gateway| gateway.prefix_len() != 64) {
            return Err(ConfigError::Prefix(gateway));
        }
        if !(least..=65_535).contains(&self.mtu) {
            return Err(ConfigError::Mtu {
                mtu: self.mtu,
                least,
            });
        }
        if !self.mac.is_unicast() {
            return Err(ConfigError::Mac(self.mac));
        }
        match self.dns.len() {
            0..=MAX_DNS => Ok(()),
            count => Err(ConfigError::Dns(count)),
        }
    }
}

/// Why no [`Edge`] was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The guest's address.
    #[error("the guest's address {guest} is to be another one than the gateway's in {gateway}")]
    Guest {
        /// The guest's address.
        guest: Ipv4Addr,
        /// The gateway's.
        gateway: Ipv4Net,
    },
    /// The IPv6 prefix.
    #[error("{0}: a guest makes its own addresses in prefixes of 64 bits only")]
    Prefix(Ipv6Net),
    /// The MTU.
    #[error("an MTU of {mtu} bytes: it is to be between {least} and 65535")]
    Mtu {
        /// The MTU.
        mtu: usize,
        /// The least one.
        least: usize,
    },
    /// The gateway's hardware address.
    #[error("{0} is not the hardware address of one host")]
    Mac(Mac),
    /// Too many name servers.
    #[error("{0} name servers: at most 8 fit in the answers to the guest")]
    Dns(usize),
}

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
    /// Times that the guest found its address in use by another host.
    pub declined: u64,
    /// Control messages that need no answer, e.g. about addresses of others.
    pub ignored: u64,
    /// Times that another host claimed an address of the gateway.
    pub conflicts: u64,
    /// Changes of the guest's hardware address.
    pub moves: u64,
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
    /// Packets to the guest that were dropped while its hardware address was unknown.
    pub waiting_dropped: u64,
    /// Answers that the transport had no room for, or refused.
    pub answers_dropped: u64,
}

/// State of the gateway. It calls nothing: frames are put in, answers and packets are taken out.
#[derive(Debug)]
struct Gateway {
    config: EdgeConfig,
    stats: EdgeStats,
    guest: Option<Mac>,
    /// IP packets for the guest, oldest first, without link headers.
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
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
        Gateway {
            config,
            stats: EdgeStats::default(),
            guest: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            answers: Vec::new(),
            defended: None,
            advertised: None,
            next_advertisement: None,
        }
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
                self.arp(&received.head, now);
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

    fn ipv4(&mut self, mut received: Frame, header: frame::Header, _now: Instant) -> Option<Frame> {
        let packet = &received.head;
        let header_len = packet.first().map_or(0, |byte| usize::from(byte & 15) * 4);
        let short = header_len < ip::IPV4_HEADER || packet.len() < header_len;
        if short || packet[0] >> 4 != 4 {
            return self.drop_as(|stats| &mut stats.malformed);
        }
        // 0 in a super-frame that does not fit the field.
        let len = usize::from(frame::be16(packet, 2));
        if len != 0 && (len < header_len || len > received.len()) {
            return self.drop_as(|stats| &mut stats.malformed);
        }
        self.learn(header.source);
        let destination = Ipv4Addr::from_octets(packet[16..20].try_into().ok()?);
        let first_fragment = frame::be16(packet, 6) & 0x3fff == 0;
        let is_own = destination.is_broadcast() || destination == self.config.gateway.addr();
        let to_server =
            packet.get(header_len + 2..header_len + 4) == Some(&dhcp::SERVER_PORT.to_be_bytes());
        if packet[9] == ip::UDP && first_fragment && is_own && to_server {
            self.control(&received, len, |gateway, packet| {
                match ip::udp_payload(packet) {
                    Some(payload) => gateway.dhcp(payload),
                    None => gateway.stats.malformed += 1,
                }
            });
            return None;
        }
        let to_all = destination.is_broadcast() || destination == self.config.gateway.broadcast();
        if destination.is_multicast() || to_all || !header.destination.is_unicast() {
            return self.drop_as(|stats| &mut stats.multicast);
        }
        trim(&mut received, len);
        self.stats.passed += 1;
        Some(received)
    }

    fn ipv6(&mut self, mut received: Frame, header: frame::Header, now: Instant) -> Option<Frame> {
        let packet = &received.head;
        if packet.len() < ip::IPV6_HEADER || packet[0] >> 4 != 6 {
            return self.drop_as(|stats| &mut stats.malformed);
        }
        // 0 also in a super-frame with a jumbo payload option.
        let len = match frame::be16(packet, 4) {
            0 => 0,
            payload => ip::IPV6_HEADER + usize::from(payload),
        };
        if len > received.len() {
            return self.drop_as(|stats| &mut stats.malformed);
        }
        self.learn(header.source);
        let discovery = ndp::ROUTER_SOLICITATION..=ndp::REDIRECT;
        if packet[6] == ip::ICMPV6 && packet.get(40).is_some_and(|kind| discovery.contains(kind)) {
            self.control(&received, len, |gateway, packet| {
                gateway.discovery(packet, header.source, now)
            });
            return None;
        }
        if packet[24] == 0xff || !header.destination.is_unicast() {
            return self.drop_as(|stats| &mut stats.multicast);
        }
        trim(&mut received, len);
        self.stats.passed += 1;
        Some(received)
    }

    /// Handles a control message, in a packet whose length field is `len`.
    fn control(&mut self, received: &Frame, len: usize, handle: impl FnOnce(&mut Gateway, &[u8])) {
        if len == 0 || received.len() > MAX_CONTROL {
            self.stats.malformed += 1;
            return;
        }
        handle(self, &received.to_complete_vec()[..len]);
    }

    /// The guest is where its last frame came from.
    fn learn(&mut self, source: Mac) {
        if self.guest == Some(source) {
            return;
        }
        self.stats.moves += u64::from(self.guest.is_some());
        self.guest = Some(source);
        self.waiting_bytes = 0;
        for packet in std::mem::take(&mut self.waiting) {
            let kind = kind_of(&packet);
            let mut bytes = frame::header(source, self.config.mac, kind).to_vec();
            bytes.extend(packet);
            self.answers.push(bytes);
        }
    }

    /// Keeps a packet until the guest is known.
    fn keep(&mut self, packet: Vec<u8>) {
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

/// Removes the link header, of `len` bytes.
fn without_link_header(frame: &mut Frame, len: usize) {
    frame.head.advance(len);
    if let Checksum::Partial { start, offset } = frame.checksum {
        let len = u16::try_from(len).expect("invariant: at most 22 bytes");
        frame.checksum = match start.checked_sub(len) {
            Some(start) => Checksum::Partial { start, offset },
            None => Checksum::Complete,
        };
    }
}

/// Removes the padding after a packet of `len` bytes.
fn trim(frame: &mut Frame, len: usize) {
    if len != 0 && frame.rest.is_empty() && len < frame.head.len() {
        frame.head = frame.head.slice(0..len);
    }
}

/// The type of the frame that carries an IP packet.
fn kind_of(packet: &[u8]) -> u16 {
    match packet.first().map(|byte| byte >> 4) {
        Some(6) => frame::IPV6,
        _ => frame::IPV4,
    }
}

/// A link of IP packets to one guest behind a transport of Ethernet frames, whose gateway it is. See the
/// [module](super).
///
/// * **ARP, neighbour discovery**: it answers for the gateway's addresses, also when a host probes them before it
///   uses them itself (RFC 5227, 4862), and for no others.
/// * **DHCPv4**: any guest is offered the one address for it, with mask, router, name servers and MTU. A guest
///   that asks to keep an address of another network is refused at once, so that it discovers again.
/// * **Router advertisements** with the prefix, the MTU and the name servers: when solicited, and every ten minutes
///   from then on.
/// * **The guest's hardware address** is that of its last frame. It is kept while the transport has no peer.
///   Packets sent before it is known wait: the last 64, of at most 128 KiB.
/// * Frames to others, and to groups, are dropped.
///
/// The stack above it is to have the gateway's addresses.
///
/// Locks: the gateway's state, a leaf, for control messages and while the guest is unknown; the transport is
/// called without it.
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
    mac: Mac,
    capabilities: Capabilities,
    gateway: Mutex<Gateway, LEAF>,
    /// The guest's hardware address, also in `gateway`: zero while it is unknown.
    guest: AtomicU64,
}

impl<T: Link> Edge<T> {
    /// A gateway over a transport of frames.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn new(transport: T, config: EdgeConfig) -> Result<Edge<T>, ConfigError> {
        config.check()?;
        let can = transport.capabilities();
        // A super-frame's size is that of frames, and transports do not cut them yet.
        let capabilities = Capabilities::new(config.mtu.min(can.mtu.saturating_sub(HEADER)))
            .checksum(can.checksum);
        Ok(Edge {
            transport,
            mac: config.mac,
            capabilities,
            gateway: Mutex::new(Gateway::new(config)),
            guest: AtomicU64::new(0),
        })
    }

    /// The transport below.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// The guest's hardware address, once it has sent a frame.
    pub fn guest(&self) -> Option<Mac> {
        Mac::from_bits(self.guest.load(Ordering::Acquire))
    }

    /// Counters.
    pub fn stats(&self) -> EdgeStats {
        self.gateway.lock().stats
    }

    /// Puts received frames into the gateway, and sends its answers.
    fn process(&self, received: Vec<Frame>, packets: &mut Vec<Frame>) {
        let now = SystemClock.now();
        let mut gateway = self.gateway.lock();
        packets.extend(
            received
                .into_iter()
                .filter_map(|frame| gateway.receive(frame, now)),
        );
        gateway.tick(now);
        let answers = std::mem::take(&mut gateway.answers);
        let guest = gateway.guest.map_or(0, Mac::to_bits);
        self.guest.store(guest, Ordering::Release);
        drop(gateway);
        let send = |answer: &Vec<u8>| {
            self.transport
                .transmit(&Packet::new(answer, &[], HEADER))
                .is_err()
        };
        let dropped = answers.iter().filter(|answer| send(answer)).count();
        if dropped > 0 {
            self.gateway.lock().stats.answers_dropped += u64::try_from(dropped).unwrap_or(u64::MAX);
        }
    }

    fn send_to(&self, guest: Mac, packet: &Packet<'_>) -> Result<(), TransmitError> {
        let kind = kind_of(packet.header);
        let mut header: SmallVec<[u8; 160]> = SmallVec::new();
        header.extend_from_slice(&frame::header(guest, self.mac, kind));
        header.extend_from_slice(packet.header);
        let checksum = match packet.checksum {
            Checksum::Partial { start, offset } => {
                let start = usize::from(start) + HEADER;
                let start =
                    u16::try_from(start).map_err(|_| refused("a header that is too long"))?;
                Checksum::Partial { start, offset }
            }
            other => other,
        };
        self.transport.transmit(&Packet {
            header: &header,
            payload: packet.payload,
            ip_header_len: packet.ip_header_len + HEADER,
            checksum,
            segment: None,
        })
    }

    /// Keeps a packet, unless the guest became known meanwhile.
    fn keep(&self, packet: &Packet<'_>) -> Option<Mac> {
        let whole = Frame::new(&packet.to_vec())
            .checksum(packet.checksum)
            .to_complete_vec();
        let mut gateway = self.gateway.lock();
        if gateway.guest.is_none() {
            gateway.keep(whole);
        }
        gateway.guest
    }
}

fn refused(why: &str) -> TransmitError {
    TransmitError::Refused(io::Error::new(io::ErrorKind::InvalidInput, why))
}

impl<T: Link> Link for Edge<T> {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        let before = frames.len();
        let mut received = Vec::new();
        let result = self.transport.receive(&mut received, max);
        self.process(received, frames);
        result.map(|_| frames.len() - before)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        if packet.segment.is_some() || packet.len() > self.capabilities.mtu {
            return Err(refused("the packet is larger than the link takes"));
        }
        match self.guest().or_else(|| self.keep(packet)) {
            Some(guest) => self.send_to(guest, packet),
            None => Ok(()),
        }
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        let own = self.gateway.lock().next_advertisement;
        self.transport
            .wait(interest, deadline.into_iter().chain(own).min())
    }

    fn wake(&self) {
        self.transport.wake();
    }

    fn steer(&self, flow: &Flow) -> Option<usize> {
        self.transport.steer(flow)
    }
}
