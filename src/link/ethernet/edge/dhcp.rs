//! The server of DHCPv4 (RFC 2131, 2132): it has one address, for whichever guest asks.

use super::{Gateway, ip};
use crate::link::ethernet::frame::{self, Mac};
use std::net::{IpAddr, Ipv4Addr};

pub(super) const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// Length of the fixed fields, after which the magic number and the options follow.
const FIXED: usize = 236;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Some clients refuse shorter messages, as those of BOOTP are not (RFC 1542 2.1).
const LEAST: usize = 300;
const BROADCAST_FLAG: u16 = 0x8000;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;
const RELEASE: u8 = 7;
const INFORM: u8 = 8;

const PAD: u8 = 0;
const MASK: u8 = 1;
const ROUTER: u8 = 3;
const DNS: u8 = 6;
const MTU: u8 = 26;
const REQUESTED: u8 = 50;
const LEASE: u8 = 51;
const OVERLOAD: u8 = 52;
const KIND: u8 = 53;
const SERVER: u8 = 54;
const RENEW: u8 = 58;
const REBIND: u8 = 59;
const CLIENT: u8 = 61;
const END: u8 = 255;

/// The parts of a client's message that the server uses.
#[derive(Debug)]
struct Message<'a> {
    kind: u8,
    /// All fixed fields.
    fixed: &'a [u8; FIXED],
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client: Option<&'a [u8]>,
}

/// Options up to the end option. One that is cut off ends them too.
fn options(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        loop {
            match *bytes {
                [PAD, ref rest @ ..] => bytes = rest,
                [END, ..] | [] | [_] => return None,
                [kind, len, ref rest @ ..] => {
                    let (value, rest) = rest.split_at_checked(len.into())?;
                    bytes = rest;
                    return Some((kind, value));
                }
            }
        }
    })
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    bytes.try_into().map(|octets: [u8; 4]| octets.into()).ok()
}

impl<'a> Message<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Message<'a>> {
        let (fixed, rest) = bytes.split_first_chunk::<FIXED>()?;
        let rest = rest.strip_prefix(&MAGIC)?;
        // A request from Ethernet.
        if fixed[..3] != [1, 1, 6] {
            return None;
        }
        let overload = options(rest).find(|option| option.0 == OVERLOAD);
        let overload = overload
            .and_then(|option| option.1.first().copied())
            .unwrap_or(0);
        let file = if overload & 1 == 0 {
            &[]
        } else {
            &fixed[108..]
        };
        let name = if overload & 2 == 0 {
            &[]
        } else {
            &fixed[44..108]
        };
        let find = |kind: u8| {
            let mut all = options(rest).chain(options(file)).chain(options(name));
            all.find(|option| option.0 == kind).map(|option| option.1)
        };
        Some(Message {
            kind: *find(KIND)?.first()?,
            fixed,
            requested: find(REQUESTED).and_then(address),
            server: find(SERVER).and_then(address),
            client: find(CLIENT),
        })
    }

    /// A fixed field, or nothing for 0.0.0.0.
    fn field(&self, at: usize) -> Option<Ipv4Addr> {
        address(&self.fixed[at..at + 4]).filter(|address| !address.is_unspecified())
    }

    /// The address that the client has.
    fn ciaddr(&self) -> Option<Ipv4Addr> {
        self.field(12)
    }

    fn relay(&self) -> Option<Ipv4Addr> {
        self.field(24)
    }

    fn mac(&self) -> Option<Mac> {
        let mac = self.fixed[28..34].try_into().map(Mac).ok();
        mac.filter(|mac| mac.is_unicast())
    }

    fn wants_broadcast(&self) -> bool {
        frame::be16(self.fixed, 10) & BROADCAST_FLAG != 0
    }
}

impl Gateway {
    /// The payload of a datagram to the server's port. RFC 2131 4.3.
    pub(super) fn dhcp(&mut self, payload: &[u8]) {
        let Some(message) = Message::parse(payload) else {
            self.stats.malformed += 1;
            return;
        };
        let (Some(mac), None) = (message.mac(), message.relay()) else {
            self.stats.malformed += 1;
            return;
        };
        match self.decide(&message) {
            Some(answer) => self.reply(&message, mac, answer),
            None => self.stats.ignored += 1,
        }
    }

    /// The kind of the answer, if there is one.
    fn decide(&mut self, message: &Message<'_>) -> Option<u8> {
        let own = self.config.gateway.addr();
        match message.kind {
            DISCOVER => Some(OFFER),
            // Another server was selected.
            REQUEST if message.server.is_some_and(|server| server != own) => None,
            // After an offer or a restart the address is an option, at renewal it is in use.
            REQUEST => match message.requested.or(message.ciaddr())? == self.config.guest {
                true => Some(ACK),
                // E.g. an address of the network that the guest was in before.
                false => Some(NAK),
            },
            INFORM => message.ciaddr().map(|_| ACK),
            DECLINE => {
                self.stats.declined += 1;
                None
            }
            // The only address stays the guest's.
            RELEASE => None,
            _ => None,
        }
    }

    /// Sends an answer to where RFC 2131 4.1 wants it.
    fn reply(&mut self, message: &Message<'_>, mac: Mac, kind: u8) {
        let inform = message.kind == INFORM;
        let yours = match kind {
            NAK => Ipv4Addr::UNSPECIFIED,
            _ if inform => Ipv4Addr::UNSPECIFIED,
            _ => self.config.guest,
        };
        let (to_mac, to) = match message.ciaddr() {
            _ if kind == NAK => (Mac::BROADCAST, Ipv4Addr::BROADCAST),
            Some(address) => (mac, address),
            None if message.wants_broadcast() => (Mac::BROADCAST, Ipv4Addr::BROADCAST),
            None => (mac, yours),
        };
        let mut payload = self.fixed_fields(message, kind, yours);
        self.options(message, kind, &mut payload);
        payload.resize(payload.len().max(LEAST), PAD);
        let mut bytes = frame::header(to_mac, self.config.mac, frame::IPV4).to_vec();
        let from = (self.config.gateway.addr(), SERVER_PORT);
        ip::emit_udp(&mut bytes, from, (to, CLIENT_PORT), &payload);
        match kind {
            NAK => self.stats.dhcp_refused += 1,
            _ => self.stats.dhcp_answered += 1,
        }
        self.answer(bytes);
    }

    fn fixed_fields(&self, message: &Message<'_>, kind: u8, yours: Ipv4Addr) -> Vec<u8> {
        let request = message.fixed;
        let mut fixed = [0; FIXED];
        fixed[..4].copy_from_slice(&[2, 1, 6, 0]);
        // Transaction, flags, the client's address: as in the request.
        fixed[4..8].copy_from_slice(&request[4..8]);
        fixed[10..12].copy_from_slice(&request[10..12]);
        if kind == ACK {
            fixed[12..16].copy_from_slice(&request[12..16]);
        }
        fixed[16..20].copy_from_slice(&yours.octets());
        fixed[28..44].copy_from_slice(&request[28..44]);
        [&fixed[..], &MAGIC].concat()
    }

    fn options(&self, message: &Message<'_>, kind: u8, payload: &mut Vec<u8>) {
        let mut add = |kind: u8, value: &[u8]| {
            let len =
                u8::try_from(value.len()).expect("invariant: an option has at most 255 bytes");
            payload.extend([kind, len]);
            payload.extend(value);
        };
        let gateway = self.config.gateway;
        add(KIND, &[kind]);
        add(SERVER, &gateway.addr().octets());
        if kind != NAK {
            if message.kind != INFORM {
                let lease = u32::try_from(self.config.lease.as_secs()).unwrap_or(u32::MAX);
                add(LEASE, &lease.to_be_bytes());
                add(RENEW, &(lease / 2).to_be_bytes());
                add(REBIND, &(lease - lease / 8).to_be_bytes());
            }
            add(MASK, &gateway.netmask().octets());
            add(ROUTER, &gateway.addr().octets());
            let servers: Vec<_> = self
                .config
                .dns
                .iter()
                .filter_map(|server| match server {
                    IpAddr::V4(server) => Some(server.octets()),
                    IpAddr::V6(_) => None,
                })
                .collect();
            if !servers.is_empty() {
                add(DNS, &servers.concat());
            }
            let mtu = u16::try_from(self.config.mtu).expect("invariant: the MTU was checked");
            add(MTU, &mtu.to_be_bytes());
        }
        // RFC 6842.
        if let Some(client) = message.client {
            add(CLIENT, client);
        }
        payload.push(END);
    }
}
