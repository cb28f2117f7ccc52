//! State of a host. It calls nothing: frames, packets and times are put in; frames, packets and events are taken out.

use super::HostStats;
use super::addresses::{Origin, Own};
use super::autoconf::{self, Autoconf};
use super::config::HostConfig;
use super::dhcp::{DhcpClient, DhcpEvent, DhcpSettings};
use super::groups::Groups;
use super::routes::{Route, Routes};
use crate::link::ethernet::carry::{Waiting, trim, without_link_header};
use crate::link::ethernet::frame::{self, HEADER, Mac, Refused};
use crate::link::ethernet::neighbours::{Action, Limits, Neighbours, Resolution};
use crate::link::ethernet::wire::dhcp::{CLIENT_PORT, SERVER_PORT};
use crate::link::ethernet::wire::groups::{self, ALL_HOSTS};
use crate::link::ethernet::wire::ip;
use crate::link::ethernet::wire::ndp::{
    ALL_NODES, Message, REDIRECT, ROUTER_SOLICITATION, group_mac, solicited_group,
};
use crate::link::{Frame, LinkEvent, Packet, Undelivered};
use crate::random::Random;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

/// Maximum number of frames that wait for room in the transport: more are dropped and counted.
const MAX_ANSWERS: usize = 256;
/// Maximum number of events that wait for the stack. Of packets that were not delivered: the others are never many.
const MAX_EVENTS: usize = 512;
/// Longest control message that is read; longer ones are malformed.
const MAX_CONTROL: usize = 2048;

/// Where a packet goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Departure {
    /// To this hardware address.
    Now(Mac),
    /// It waits for its neighbour, or was given up: it is not the caller's any more.
    Taken,
}

#[derive(Debug)]
pub(super) struct Station {
    pub(super) config: HostConfig,
    pub(super) stats: HostStats,
    pub(super) random: Random,
    pub(super) addresses: Vec<Own>,
    pub(super) routes: Routes,
    pub(super) neighbours: Neighbours<Waiting>,
    pub(super) groups: Groups,
    /// Groups of the program, each as often as it was joined.
    joined: Vec<IpAddr>,
    /// The largest packet of each family at present, in bytes.
    mtu: (usize, usize),
    pub(super) dhcp: Option<DhcpClient>,
    pub(super) autoconf: Option<Autoconf>,
    /// Control messages to send, as frames. They are dropped rather than delayed for long.
    answers: VecDeque<Vec<u8>>,
    /// Packets that have waited for their neighbours. None is dropped.
    departures: VecDeque<(Mac, Waiting)>,
    /// One of them is being sent.
    is_departing: bool,
    pub(super) events: Vec<LinkEvent>,
    begun: bool,
}

/// A frame to send.
#[derive(Debug)]
pub(super) enum Outgoing {
    Answer(Vec<u8>),
    Packet(Mac, Waiting),
}

impl Station {
    pub(super) fn new(config: HostConfig, seed: u64) -> Station {
        let mtu = (config.mtu, config.mtu);
        let mut random = Random::new(seed);
        let groups = Groups::new(random.next());
        Station {
            config,
            stats: HostStats::default(),
            random,
            addresses: Vec::new(),
            routes: Routes::default(),
            neighbours: Neighbours::new(Limits::default()),
            groups,
            joined: Vec::new(),
            mtu,
            dhcp: None,
            autoconf: None,
            answers: VecDeque::new(),
            departures: VecDeque::new(),
            is_departing: false,
            events: Vec::new(),
            begun: false,
        }
    }

    /// Replaces all random numbers: times, transactions, nonces.
    pub(super) fn reseed(&mut self, seed: u64) {
        self.random = Random::new(seed);
        self.groups.reseed(self.random.next());
        if let Some(autoconf) = &mut self.autoconf {
            autoconf.reseed(self.random.next());
        }
        if let Some(dhcp) = &mut self.dhcp {
            dhcp.reseed(self.random.next());
        }
    }

    /// Begins to probe addresses and to ask for them, at the first call.
    pub(super) fn begin(&mut self, now: Instant) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let (mac, mtu) = (self.config.mac, self.config.mtu);
        if self.config.has_v6() {
            let address = Ipv6Net::new(autoconf::link_local(mac), 64);
            let address = address.expect("invariant: a length of at most 128");
            self.add_own(address.into(), Origin::Configured, now);
        }
        for address in self.config.addresses.clone() {
            if self.own(address.addr()).is_none() {
                self.add_own(address, Origin::Configured, now);
            }
        }
        if self.config.slaac {
            let mtu = u32::try_from(mtu).unwrap_or(u32::MAX);
            let seed = self.random.next();
            self.autoconf = Some(Autoconf::new(mac, mtu, seed, now));
        }
        if self.config.dhcp {
            let settings = DhcpSettings {
                remembered: self.config.dhcp_address,
                mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            };
            let seed = self.random.next();
            self.dhcp = Some(DhcpClient::new(mac, settings, seed, now));
        }
        self.set_routes();
    }

    /// A received frame. Returns the IP packet that it passes on.
    pub(super) fn receive(&mut self, mut received: Frame, now: Instant) -> Option<Frame> {
        received.pull_up(HEADER + 8 + 60 + 8);
        let header = match frame::parse(&received.head, self.config.vlan) {
            Ok(header) => header,
            Err(Refused::Tagged) => return self.drop_as(|stats| &mut stats.tagged),
            Err(Refused::Short | Refused::Source) => {
                return self.drop_as(|stats| &mut stats.malformed);
            }
        };
        let own = header.destination == self.config.mac;
        if header.destination.is_unicast() && !own {
            return self.drop_as(|stats| &mut stats.not_for_us);
        }
        let all = header.destination == Mac::BROADCAST;
        if !own && !all && !self.is_member(header.destination) {
            return self.drop_as(|stats| &mut stats.multicast);
        }
        without_link_header(&mut received, header.len);
        match header.kind {
            frame::ARP => {
                self.arp(&received.head, now);
                None
            }
            frame::IPV4 => self.ipv4(received, header, now),
            frame::IPV6 => self.ipv6(received, header, now),
            _ => self.drop_as(|stats| &mut stats.unknown),
        }
    }

    fn drop_as(&mut self, counter: impl FnOnce(&mut HostStats) -> &mut u64) -> Option<Frame> {
        *counter(&mut self.stats) += 1;
        None
    }

    fn ipv4(&mut self, mut received: Frame, header: frame::Header, now: Instant) -> Option<Frame> {
        let Some((header_len, len)) = ip::v4_lengths(&received.head, received.len()) else {
            return self.drop_as(|stats| &mut stats.malformed);
        };
        if header.source == self.config.mac {
            return self.drop_as(|stats| &mut stats.looped);
        }
        let packet = &received.head;
        if groups::is_message(packet) {
            self.control(&received, len, |station, packet| {
                station.group_message(packet, now)
            });
            return None;
        }
        let destination = Ipv4Addr::from_octets(packet[16..20].try_into().ok()?);
        let whole = frame::be16(packet, 6) & 0x3fff == 0;
        let port = packet.get(header_len + 2..header_len + 4);
        let to_client = whole && packet[9] == ip::UDP && port == Some(&CLIENT_PORT.to_be_bytes());
        if to_client && self.dhcp.is_some() {
            self.control(&received, len, |station, packet| station.dhcp(packet, now));
            return None;
        }
        let to_many = destination.is_multicast() || self.means_all(destination);
        let joined = !destination.is_multicast() || self.is_joined(destination.into());
        // RFC 1122 3.3.6: a packet to one host in a frame to many is none for us. The other way round is allowed (RFC
        // 6085).
        if !joined || !to_many && !header.destination.is_unicast() {
            return self.drop_as(|stats| &mut stats.multicast);
        }
        trim(&mut received, len);
        self.stats.passed += 1;
        Some(received)
    }

    fn ipv6(&mut self, mut received: Frame, header: frame::Header, now: Instant) -> Option<Frame> {
        let Some(len) = ip::v6_length(&received.head, received.len()) else {
            return self.drop_as(|stats| &mut stats.malformed);
        };
        let packet = &received.head;
        let discovery = ROUTER_SOLICITATION..=REDIRECT;
        if packet[6] == ip::ICMPV6 && packet.get(40).is_some_and(|kind| discovery.contains(kind)) {
            self.control(&received, len, |station, packet| {
                station.discovery(packet, header.source, now)
            });
            return None;
        }
        if header.source == self.config.mac {
            return self.drop_as(|stats| &mut stats.looped);
        }
        if groups::is_message(packet) {
            self.control(&received, len, |station, packet| {
                station.group_message(packet, now)
            });
            return None;
        }
        let destination = Ipv6Addr::from_octets(packet[24..40].try_into().ok()?);
        let to_many = destination.is_multicast();
        let joined = !to_many || self.is_joined(destination.into());
        if !joined || !to_many && !header.destination.is_unicast() {
            return self.drop_as(|stats| &mut stats.multicast);
        }
        trim(&mut received, len);
        self.stats.passed += 1;
        Some(received)
    }

    /// Handles a control message, in a packet whose length field is `len`.
    fn control(&mut self, received: &Frame, len: usize, handle: impl FnOnce(&mut Station, &[u8])) {
        if len == 0 || received.len() > MAX_CONTROL {
            self.stats.malformed += 1;
            return;
        }
        handle(self, &received.to_complete_vec()[..len]);
    }

    /// Whether frames to this group's hardware address are for the host.
    fn is_member(&self, group: Mac) -> bool {
        let proxied = matches!(group.0, [0x33, 0x33, 0xff, ..])
            && self.config.proxy.iter().any(|net| net.addr().is_ipv6());
        proxied || self.all_groups().any(|joined| group_mac(joined) == group)
    }

    fn is_joined(&self, group: IpAddr) -> bool {
        let always = [IpAddr::V4(ALL_HOSTS), ALL_NODES.into()];
        always.contains(&group) || self.groups.contains(group)
    }

    /// The groups of which the host is a member.
    fn all_groups(&self) -> impl Iterator<Item = IpAddr> {
        let own = self.addresses.iter().map(|own| own.net.addr());
        let solicited = own.filter_map(solicited_group);
        let v6 = self.config.has_v6().then_some(ALL_NODES.into());
        let always = [Some(ALL_HOSTS.into()), v6].into_iter().flatten();
        always.chain(solicited).chain(self.joined.iter().copied())
    }

    /// Joins a group for the program. `false` if it is none, or there is no room.
    pub(super) fn join(&mut self, group: IpAddr, now: Instant) -> bool {
        self.begin(now);
        let joined = self.groups.join(group, now);
        if joined {
            self.joined.push(group);
        }
        joined
    }

    /// Takes back one join. `false` if there was none.
    pub(super) fn leave(&mut self, group: IpAddr, now: Instant) -> bool {
        let Some(at) = self.joined.iter().position(|joined| *joined == group) else {
            return false;
        };
        self.joined.swap_remove(at);
        self.groups.leave(group, now);
        true
    }

    /// The addresses from which routers are told of the groups.
    pub(super) fn set_group_sources(&mut self, now: Instant) {
        let v4 = self.addresses.iter().filter(|own| own.is_in_use());
        let v4 = v4
            .map(|own| own.net.addr())
            .find_map(|address| match address {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            });
        self.groups.set_ipv4(v4, now);
        self.groups.set_ipv6(self.link_local(), now);
    }

    /// The routes that belong to the present addresses and settings.
    pub(super) fn set_routes(&mut self) {
        let in_use = self.addresses.iter().filter(|own| own.is_in_use());
        // Addresses made by advertisements do not make their prefix one of the link (RFC 4861 6.3.4).
        let in_use = in_use.filter(|own| own.origin != Origin::Slaac);
        let mut routes: Vec<_> = in_use.map(|own| Route::on_link(own.net.trunc())).collect();
        let config = &self.config;
        routes.extend(
            config
                .routes
                .iter()
                .map(|(net, gateway)| Route::via(*net, *gateway, 1)),
        );
        routes.extend(
            config
                .gateways
                .iter()
                .map(|gateway| Route::via(default(*gateway), *gateway, 1)),
        );
        if config.has_v6() {
            let link = Ipv6Net::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);
            routes.push(Route::on_link(
                link.expect("invariant: a length of at most 128").into(),
            ));
        }
        if let Some(lease) = self.dhcp.as_ref().and_then(DhcpClient::lease) {
            let route = |(network, via): &(Ipv4Net, Option<Ipv4Addr>)| Route {
                network: (*network).into(),
                via: via.map(IpAddr::V4),
                preference: 1,
            };
            routes.extend(lease.routes.iter().map(route));
        }
        if let Some(autoconf) = &self.autoconf {
            routes.extend(
                autoconf
                    .on_link()
                    .map(|prefix| Route::on_link(prefix.into())),
            );
            routes.extend(autoconf.routes().map(|route| {
                Route::via(
                    route.network.into(),
                    route.router.into(),
                    route.preference as u8,
                )
            }));
        }
        self.routes.set(routes);
    }

    /// Where a packet goes that is not larger than the link takes.
    pub(super) fn depart(&mut self, packet: &Packet<'_>, now: Instant) -> Departure {
        let Some(to) = ip::destination(packet.header) else {
            self.stats.malformed += 1;
            return Departure::Taken;
        };
        let mtu = if to.is_ipv4() { self.mtu.0 } else { self.mtu.1 };
        let size = match packet.segment {
            Some(segment) => packet.header.len() + usize::from(segment.get()),
            None => packet.len(),
        };
        if size > mtu {
            self.undelivered(&Waiting::new(packet), Undelivered::TooBig(mtu));
            return Departure::Taken;
        }
        let group = to.is_multicast().then(|| group_mac(to));
        let to_all = matches!(to, IpAddr::V4(to) if self.means_all(to));
        match group.or(to_all.then_some(Mac::BROADCAST)) {
            Some(group) => Departure::Now(group),
            None => self.resolve(to, packet.len(), || Waiting::new(packet), now),
        }
    }

    fn resolve(
        &mut self,
        to: IpAddr,
        bytes: usize,
        packet: impl FnOnce() -> Waiting,
        now: Instant,
    ) -> Departure {
        let Some(hop) = self.routes.hop(to) else {
            self.stats.no_route += 1;
            self.undelivered(&packet(), Undelivered::NoRoute);
            return Departure::Taken;
        };
        match self.neighbours.resolve(hop.address, bytes, packet, now) {
            Resolution::Resolved(mac) => Departure::Now(mac),
            Resolution::Waiting => {
                self.heed_neighbours(now);
                Departure::Taken
            }
            Resolution::Full => Departure::Taken,
        }
    }

    /// Reports a packet to the stack.
    fn undelivered(&mut self, packet: &Waiting, why: Undelivered) {
        if self.events.len() < MAX_EVENTS {
            let packet = packet.frame();
            self.events.push(LinkEvent::Undelivered { packet, why });
        }
    }

    /// Does what the table of neighbours wants.
    pub(super) fn heed_neighbours(&mut self, now: Instant) {
        while let Some(action) = self.neighbours.next_action() {
            match action {
                Action::Solicit { address, at } => self.solicit(address, at),
                Action::Send { to, packet } => self.departures.push_back((to, packet)),
                Action::Failed { address, packets } => self.unreachable(address, packets, now),
                Action::NoRouter { address } => self.no_router(address, now),
            }
        }
    }

    /// A router has become a host (RFC 4861 6.3.5).
    fn no_router(&mut self, address: IpAddr, now: Instant) {
        if let (IpAddr::V6(address), Some(autoconf)) = (address, &mut self.autoconf) {
            autoconf.no_router(address);
        }
        self.heed_autoconf(now);
    }

    /// Asks for a neighbour's hardware address.
    fn solicit(&mut self, address: IpAddr, at: Option<Mac>) {
        match (address, self.source_for(address)) {
            (IpAddr::V4(address), source) => {
                // Without an address as a host that probes one, so that no host files it.
                let source = match source {
                    Some(IpAddr::V4(source)) => source,
                    _ => Ipv4Addr::UNSPECIFIED,
                };
                self.ask_arp(source, address, at.unwrap_or(Mac::BROADCAST));
            }
            (IpAddr::V6(address), Some(IpAddr::V6(source))) => self.ask_ndp(source, address, at),
            // From no address it would be the probe of a host that wants this one for itself.
            (IpAddr::V6(_), _) => {}
        }
    }

    /// A neighbour does not answer. Its packets go by another gateway, if there is one.
    fn unreachable(&mut self, address: IpAddr, packets: Vec<Waiting>, now: Instant) {
        self.routes.failed(address, now);
        for packet in packets {
            let to = ip::destination(packet.bytes()).expect("invariant: it had a destination");
            let other = self
                .routes
                .hop(to)
                .filter(|hop| hop.address != address && !hop.is_down);
            if other.is_none() {
                self.stats.unreachable += 1;
                self.undelivered(&packet, Undelivered::HostUnreachable);
                continue;
            }
            let bytes = packet.len();
            // A copy, since the table may have no room for it.
            let copy = packet.clone();
            if let Departure::Now(mac) = self.resolve(to, bytes, || copy, now) {
                self.departures.push_back((mac, packet));
            }
        }
    }

    /// The hardware address of a neighbour was received, in a message about itself.
    pub(super) fn heard(&mut self, address: impl Into<IpAddr>, now: Instant) {
        self.routes.answered(address.into());
        self.heed_neighbours(now);
    }

    /// A datagram to the port of DHCP's clients.
    fn dhcp(&mut self, packet: &[u8], now: Instant) {
        match (ip::udp_payload(packet), &mut self.dhcp) {
            (Some(payload), Some(client)) => client.receive(payload, now),
            _ => self.stats.malformed += 1,
        }
        self.poll_dhcp(now);
    }

    fn poll_dhcp(&mut self, now: Instant) {
        while let Some(message) = self.dhcp.as_mut().and_then(|client| client.poll(now)) {
            let mut packet = Vec::new();
            let (from, to) = ((message.from, CLIENT_PORT), (message.to, SERVER_PORT));
            ip::emit_udp(&mut packet, from, to, &message.payload);
            self.send_control(packet, now);
        }
        while let Some(event) = self.dhcp.as_mut().and_then(DhcpClient::event) {
            self.heed_dhcp(event, now);
        }
    }

    pub(super) fn release(&mut self, now: Instant) {
        if let Some(client) = &mut self.dhcp {
            client.release(now);
        }
        self.poll_dhcp(now);
    }

    pub(super) fn reconnected(&mut self, now: Instant) {
        self.begin(now);
        if let Some(client) = &mut self.dhcp {
            client.confirm(now);
        }
        if let Some(autoconf) = &mut self.autoconf {
            autoconf.restart(now);
        }
        self.groups.restart(now);
        self.announce_again(now);
    }

    fn heed_dhcp(&mut self, event: DhcpEvent, now: Instant) {
        let held = self.addresses.iter().find(|own| own.origin == Origin::Dhcp);
        let held = held.map(|own| own.net);
        match event {
            DhcpEvent::Bound(lease) | DhcpEvent::Renewed(lease) => {
                let net = IpNet::V4(lease.address);
                if held != Some(net) {
                    held.iter()
                        .for_each(|held| self.remove_own(held.addr(), now));
                    // An address that the program has configured, too, stays as it is.
                    if self.own(net.addr()).is_none() {
                        self.add_own(net, Origin::Dhcp, now);
                    }
                }
            }
            DhcpEvent::Lost => held
                .iter()
                .for_each(|held| self.remove_own(held.addr(), now)),
        }
        let max = self.config.mtu;
        let lease = self.dhcp.as_ref().and_then(DhcpClient::lease);
        let mtu = lease.and_then(|lease| lease.mtu);
        self.mtu.0 = mtu.map_or(max, |mtu| max.min(mtu.into()));
        self.set_routes();
    }

    /// Sends an IP packet of the host's own: a control message. To another host it goes like any packet.
    pub(super) fn send_control(&mut self, packet: Vec<u8>, now: Instant) {
        let header_len = if packet[0] >> 4 == 4 {
            ip::IPV4_HEADER
        } else {
            ip::IPV6_HEADER
        };
        let whole = Packet::new(&packet, &[], header_len);
        if let Departure::Now(to) = self.depart(&whole, now) {
            let kind = if packet[0] >> 4 == 4 {
                frame::IPV4
            } else {
                frame::IPV6
            };
            let mut bytes = frame::header(to, self.config.mac, kind).to_vec();
            bytes.extend(packet);
            self.answer(bytes);
        }
    }

    /// Another host has the address that DHCP has given.
    pub(super) fn decline(&mut self, now: Instant) {
        if let Some(client) = &mut self.dhcp {
            client.conflict(now);
        }
        self.poll_dhcp(now);
    }

    /// Another host has an address that router advertisements have made.
    pub(super) fn duplicate(&mut self, address: Ipv6Addr, now: Instant) {
        if let Some(autoconf) = &mut self.autoconf {
            autoconf.duplicate(address);
        }
        self.remove_own(address.into(), now);
    }

    fn group_message(&mut self, packet: &[u8], now: Instant) {
        self.groups.receive(packet, now);
        self.poll_groups(now);
    }

    fn poll_groups(&mut self, now: Instant) {
        while let Some(packet) = self.groups.poll(now) {
            self.send_control(packet, now);
        }
    }

    /// A redirect: any host of the link could send one, so it is not heeded.
    pub(super) fn redirected(&mut self) {
        match &mut self.autoconf {
            Some(autoconf) => autoconf.redirected(),
            None => self.stats.ignored += 1,
        }
    }

    /// A router advertisement. `false` if it is invalid.
    pub(super) fn advertised(&mut self, message: &Message<'_>, now: Instant) -> bool {
        let Some(autoconf) = &mut self.autoconf else {
            self.stats.ignored += 1;
            return true;
        };
        let valid = autoconf.advertised(message, now);
        self.heed_autoconf(now);
        valid
    }

    fn poll_autoconf(&mut self, now: Instant) {
        let from = self.link_local().unwrap_or(Ipv6Addr::UNSPECIFIED);
        while let Some(packet) = self
            .autoconf
            .as_mut()
            .and_then(|autoconf| autoconf.poll(from, now))
        {
            self.send_control(packet, now);
        }
        self.heed_autoconf(now);
    }

    fn heed_autoconf(&mut self, now: Instant) {
        let Some(autoconf) = &mut self.autoconf else {
            return;
        };
        if !autoconf.has_changed() {
            return;
        }
        let wanted: Vec<_> = autoconf.addresses().copied().collect();
        let parameters = autoconf.parameters();
        let had = self
            .addresses
            .iter()
            .filter(|own| own.origin == Origin::Slaac);
        let had: Vec<_> = had.map(|own| own.net).collect();
        let is_wanted = |net: &IpNet| wanted.iter().any(|one| IpNet::V6(one.address) == *net);
        for net in had.iter().filter(|net| !is_wanted(net)) {
            self.remove_own(net.addr(), now);
        }
        for address in &wanted {
            let net = IpNet::V6(address.address);
            if self.own(net.addr()).is_none() {
                self.add_own(net, Origin::Slaac, now);
            }
            let by_advertisement =
                self.own(net.addr()).map(|own| own.origin) == Some(Origin::Slaac);
            self.set_deprecated(net.addr(), address.deprecated && by_advertisement);
        }
        let max = self.config.mtu;
        let mtu = parameters.mtu.and_then(|mtu| usize::try_from(mtu).ok());
        self.mtu.1 = mtu.map_or(max, |mtu| max.min(mtu));
        if let Some(time) = parameters.retransmit {
            self.neighbours.set_retrans(time);
        }
        if let Some(time) = parameters.reachable {
            // RFC 4861 6.3.2: half to one and a half of it.
            let time = time / 2 + self.random.below(time);
            self.neighbours.set_reachable(time);
        }
        self.set_routes();
    }

    /// Does what is due.
    pub(super) fn poll(&mut self, now: Instant) {
        self.begin(now);
        self.poll_addresses(now);
        for gateway in self.routes.seek(now) {
            self.neighbours.seek(gateway, now);
        }
        self.neighbours.poll(now);
        self.heed_neighbours(now);
        if self
            .dhcp
            .as_ref()
            .and_then(DhcpClient::deadline)
            .is_some_and(|at| at <= now)
        {
            self.poll_dhcp(now);
        }
        if self
            .autoconf
            .as_ref()
            .and_then(Autoconf::deadline)
            .is_some_and(|at| at <= now)
        {
            self.poll_autoconf(now);
        }
        if self.groups.deadline().is_some_and(|at| at <= now) {
            self.poll_groups(now);
        }
    }

    /// When [`poll`](Self::poll) has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let own = [
            self.addresses_deadline(),
            self.routes.deadline(),
            self.neighbours.deadline(),
            self.dhcp.as_ref().and_then(DhcpClient::deadline),
            self.autoconf.as_ref().and_then(Autoconf::deadline),
            self.groups.deadline(),
        ];
        own.into_iter().flatten().min()
    }

    pub(super) fn stats(&self) -> HostStats {
        let neighbours = self.neighbours.counters();
        let dhcp = self
            .dhcp
            .as_ref()
            .map(DhcpClient::stats)
            .unwrap_or_default();
        let autoconf = self
            .autoconf
            .as_ref()
            .map(Autoconf::stats)
            .unwrap_or_default();
        let groups = self.groups.stats();
        HostStats {
            waiting_dropped: neighbours.dropped,
            neighbours_full: neighbours.full,
            neighbours_failed: neighbours.failed,
            neighbours_moved: neighbours.moved,
            dhcp_sent: dhcp.sent,
            dhcp_accepted: dhcp.accepted,
            dhcp_ignored: dhcp.ignored,
            dhcp_refused: dhcp.refused,
            dhcp_declined: dhcp.declined,
            dhcp_expired: dhcp.expired,
            routers_solicited: autoconf.sent,
            advertisements: autoconf.accepted,
            advertisements_dropped: autoconf.dropped,
            redirects: autoconf.redirects,
            groups_sent: groups.sent,
            group_queries: groups.queries,
            groups_ignored: groups.ignored + groups.malformed,
            groups_refused: groups.refused,
            ..self.stats
        }
    }

    /// Name servers that DHCP and router advertisements have named.
    pub(super) fn dns(&self) -> Vec<IpAddr> {
        let lease = self.dhcp.as_ref().and_then(DhcpClient::lease);
        let v4 = lease
            .into_iter()
            .flat_map(|lease| lease.dns.iter().copied());
        let v6 = self.autoconf.iter().flat_map(Autoconf::dns);
        v4.map(IpAddr::V4).chain(v6.map(IpAddr::V6)).collect()
    }

    /// Queues a control message, as a frame.
    pub(super) fn answer(&mut self, frame: Vec<u8>) {
        match self.answers.len() < MAX_ANSWERS {
            true => self.answers.push_back(frame),
            false => self.stats.answers_dropped += 1,
        }
    }

    /// Whether packets have to be sent before any new one.
    pub(super) fn has_departures(&self) -> bool {
        self.is_departing || !self.departures.is_empty()
    }

    pub(super) fn next_outgoing(&mut self) -> Option<Outgoing> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(Outgoing::Answer(answer));
        }
        let (to, packet) = self.departures.pop_front()?;
        self.is_departing = true;
        Some(Outgoing::Packet(to, packet))
    }

    /// The frame was sent, or the transport refused it.
    pub(super) fn is_sent(&mut self, refused: bool) {
        self.is_departing = false;
        self.stats.answers_dropped += u64::from(refused);
    }

    /// The transport had no room.
    pub(super) fn put_back(&mut self, outgoing: Outgoing) {
        self.is_departing = false;
        match outgoing {
            Outgoing::Answer(frame) => self.answers.push_front(frame),
            Outgoing::Packet(to, packet) => self.departures.push_front((to, packet)),
        }
    }

    pub(super) fn has_outgoing(&self) -> bool {
        !self.departures.is_empty() || !self.answers.is_empty()
    }
}

/// The default route's network.
fn default(gateway: IpAddr) -> IpNet {
    match gateway {
        IpAddr::V4(_) => Ipv4Net::default().into(),
        IpAddr::V6(_) => Ipv6Net::default().into(),
    }
}
