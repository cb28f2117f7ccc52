//! The server of DHCPv4 (RFC 2131, 2132): messages. Which address a guest gets is in [`leases`].

use super::leases::{self, Verdict};
use super::{EdgeStats, Gateway};
use crate::link::ethernet::frame::{self, Mac};
use crate::link::ethernet::neighbours::{MAX_SOLICITS, RETRANS_TIMER};
use crate::link::ethernet::wire::dhcp::*;
use crate::link::ethernet::wire::ip;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

/// The option with the guest's name.
const NAME: u8 = 12;

/// So many addresses are tried for a discovery, if others than the guest answer for them.
const CHOICES: usize = 4;

/// The counter of a message without an answer.
type Counter = fn(&mut EdgeStats) -> &mut u64;

impl Gateway {
    /// The payload of a datagram to the server's port (RFC 2131 4.3). `source`: of the frame.
    pub(super) fn dhcp(&mut self, payload: &[u8], source: Mac, now: Instant) {
        let Some(message) = Message::parse(payload) else {
            self.stats.malformed += 1;
            return;
        };
        let (Some(mac), None) = (message.mac(), message.relay()) else {
            self.stats.malformed += 1;
            return;
        };
        if self.several() && mac != source {
            self.stats.spoofed += 1;
            return;
        }
        let name = message.option(NAME).and_then(leases::name);
        match self.decide(&message, (mac, name), now) {
            Ok((kind, address)) => self.reply(&message, mac, (kind, address)),
            Err(counter) => *counter(&mut self.stats) += 1,
        }
    }

    /// The kind of the answer and its address, if there is one.
    fn decide(
        &mut self,
        message: &Message<'_>,
        (mac, name): (Mac, Option<String>),
        now: Instant,
    ) -> Result<(u8, Ipv4Addr), Counter> {
        let own = self.config.gateway.addr();
        let ignored: Counter = |stats| &mut stats.ignored;
        match message.kind {
            DISCOVER => {
                let address = self.choose(mac, message.requested, now);
                let address = address.ok_or::<Counter>(|stats| &mut stats.no_address)?;
                Ok((OFFER, address))
            }
            // Another server was selected.
            REQUEST if message.server.is_some_and(|server| server != own) => {
                self.leases.forget_offer(mac, now);
                Err(ignored)
            }
            // After an offer or a restart the address is an option, at renewal it is in use.
            REQUEST => {
                let address = message.requested.or(message.ciaddr()).ok_or(ignored)?;
                if self.is_taken(address, mac, now) {
                    return Ok((NAK, Ipv4Addr::UNSPECIFIED));
                }
                match self.leases.request(mac, address, name, now) {
                    Verdict::Given => {
                        self.leased(address, mac, now);
                        Ok((ACK, address))
                    }
                    // E.g. an address of the network that the guest was in before.
                    Verdict::Refused => Ok((NAK, Ipv4Addr::UNSPECIFIED)),
                    Verdict::Later => Err(|stats| &mut stats.leases_limited),
                }
            }
            INFORM => {
                message.ciaddr().ok_or(ignored)?;
                Ok((ACK, Ipv4Addr::UNSPECIFIED))
            }
            // RFC 2131 4.4.4, 4.4.6: they name their server. Those of another one are none of this one's.
            DECLINE | RELEASE if message.server.is_some_and(|server| server != own) => Err(ignored),
            DECLINE => {
                self.stats.declined += 1;
                if let Some(address) = message.requested {
                    self.leases.decline(mac, address, now);
                }
                Err(ignored)
            }
            RELEASE => {
                if let Some(address) = message.ciaddr() {
                    self.leases.release(mac, address, now);
                }
                Err(ignored)
            }
            _ => Err(ignored),
        }
    }

    /// An address that no other guest answers for.
    fn choose(&mut self, mac: Mac, wish: Option<Ipv4Addr>, now: Instant) -> Option<Ipv4Addr> {
        for _ in 0..CHOICES {
            let address = self.leases.offer(mac, wish, now)?;
            if !self.is_taken(address, mac, now) {
                return Some(address);
            }
            let until = now + RETRANS_TIMER * MAX_SOLICITS.into();
            self.leases.set_aside(mac, address, until, now);
        }
        None
    }

    /// Sends an answer to where RFC 2131 4.1 wants it.
    fn reply(&mut self, message: &Message<'_>, mac: Mac, (kind, yours): (u8, Ipv4Addr)) {
        let (to_mac, to) = match message.ciaddr() {
            _ if kind == NAK => (Mac::BROADCAST, Ipv4Addr::BROADCAST),
            Some(address) => (mac, address),
            None if message.wants_broadcast() => (Mac::BROADCAST, Ipv4Addr::BROADCAST),
            None => (mac, yours),
        };
        let fields = Writer::new(&self.fixed_fields(message, kind, yours));
        let payload = self.options(message, kind, fields).finish();
        let mut bytes = frame::header(to_mac, self.config.mac, frame::IPV4).to_vec();
        let from = (self.config.gateway.addr(), SERVER_PORT);
        ip::emit_udp(&mut bytes, from, (to, CLIENT_PORT), &payload);
        match kind {
            NAK => self.stats.dhcp_refused += 1,
            _ => self.stats.dhcp_answered += 1,
        }
        self.answer(bytes);
    }

    fn fixed_fields(&self, message: &Message<'_>, kind: u8, yours: Ipv4Addr) -> [u8; FIXED] {
        let request = message.fixed;
        let mut fixed = [0; FIXED];
        fixed[..3].copy_from_slice(&FROM_SERVER);
        // Transaction, flags, the client's address: as in the request.
        fixed[4..8].copy_from_slice(&request[4..8]);
        fixed[10..12].copy_from_slice(&request[10..12]);
        if kind == ACK {
            fixed[12..16].copy_from_slice(&request[12..16]);
        }
        fixed[16..20].copy_from_slice(&yours.octets());
        fixed[28..44].copy_from_slice(&request[28..44]);
        fixed
    }

    fn options(&self, message: &Message<'_>, kind: u8, fields: Writer) -> Writer {
        let gateway = self.config.gateway;
        let mut answer = fields.option(KIND, &[kind]);
        answer = answer.option(SERVER, &gateway.addr().octets());
        if kind != NAK {
            if message.kind != INFORM {
                let lease = u32::try_from(self.config.lease.as_secs()).unwrap_or(u32::MAX);
                answer = answer.option(LEASE, &lease.to_be_bytes());
                answer = answer.option(RENEW, &(lease / 2).to_be_bytes());
                answer = answer.option(REBIND, &(lease - lease / 8).to_be_bytes());
            }
            answer = answer.option(MASK, &gateway.netmask().octets());
            answer = answer.option(ROUTER, &gateway.addr().octets());
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
                answer = answer.option(DNS, &servers.concat());
            }
            let mtu = u16::try_from(self.config.mtu).expect("invariant: the MTU was checked");
            answer = answer.option(MTU, &mtu.to_be_bytes());
        }
        // RFC 6842.
        match message.client {
            Some(client) => answer.option(CLIENT, client),
            None => answer,
        }
    }
}
