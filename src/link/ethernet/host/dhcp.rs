//! The client of DHCPv4 (RFC 2131, 2132, 3396, 3442, 6842): a state machine that is given messages and times.
//!
//! | state | sends | next state |
//! |---|---|---|
//! | `Init` | | `Selecting` at its time |
//! | `Selecting` | DISCOVER to all, after 4, 8, 16, 32, 64, 64 ... s again | `Requesting` the first offer |
//! | `Requesting` | REQUEST to all, 4 times in a minute | `Bound` by ACK; `Init` by NAK and without an answer |
//! | `Rebooting` | REQUEST to all for an address from before, 3 times in 28 s | `Bound` by ACK; `Init` by NAK; without an answer `Bound` while its lease lasts, else `Init` |
//! | `Bound` | | `Renewing` after T1 |
//! | `Renewing` | REQUEST to its server, again after half of the time that is left | `Bound` by ACK; `Init` by NAK; `Rebinding` after T2 |
//! | `Rebinding` | REQUEST to all, again after half of the time that is left | `Bound` by ACK; `Init` by NAK and when the lease ends |
//! | `Stopped` | | |
//!
//! An address that another host uses is declined, and the next one asked for 10 s later. Choices where the standards
//! leave one: the first message is sent at once, and so is the one after a first NAK, after further ones 1 to 64 s
//! later; the first offer is taken; an ACK for another address than the one asked for, and a lease of 0 s, count as
//! no answer. The client is identified by its hardware address.

mod lease;
#[cfg(test)]
mod tests;

use super::config::is_host;
use crate::link::ethernet::frame::Mac;
use crate::link::ethernet::wire::dhcp::*;
use crate::random::Random;
pub(super) use lease::Lease;
use lease::Times;
use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// The first time until a message is sent again (RFC 2131 4.1). It doubles four times.
const RETRANSMIT: Duration = Duration::from_secs(4);
const DOUBLINGS: u32 = 4;
/// All times until a message is sent again are up to so much longer or shorter.
const JITTER: Duration = Duration::from_secs(1);
/// A message of an offer, and of a restart, is sent so often.
const REQUESTS: u32 = 4;
const REBOOT_REQUESTS: u32 = 3;
/// Renewals are sent again after this time at the earliest (RFC 2131 4.4.5), or after 1/16 of a short lease.
const RENEW_AGAIN: Duration = Duration::from_secs(60);
/// Time from an address that is in use until the next is asked for (RFC 2131 3.1, 5.), and after many (RFC 5227 2.1).
const AFTER_CONFLICT: Duration = Duration::from_secs(10);
const AFTER_CONFLICTS: Duration = Duration::from_secs(60);
const MANY_CONFLICTS: u32 = 10;
/// The options that are asked for. The order matters to RFC 3442.
const WANTED: [u8; 8] = [MASK, ROUTES, ROUTER, DNS, MTU, LEASE, RENEW, REBIND];

/// Settings of a [`DhcpClient`].
#[derive(Debug, Clone, Copy)]
pub(super) struct DhcpSettings {
    /// The address from before a restart, which is asked for first.
    pub(super) remembered: Option<Ipv4Addr>,
    /// Largest IP packet in bytes that can be received.
    pub(super) mtu: u16,
}

/// A message to port 67 of a server, or of all of them, from port 68.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ToSend {
    pub(super) payload: Vec<u8>,
    /// The client's address, or 0.0.0.0.
    pub(super) from: Ipv4Addr,
    /// 255.255.255.255 for all.
    pub(super) to: Ipv4Addr,
}

/// What has happened to the address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DhcpEvent {
    /// It is the client's, once the host has seen that no other host uses it.
    Bound(Lease),
    /// It stays the client's. The rest of the lease may have changed.
    Renewed(Lease),
    /// It must not be used any more.
    Lost,
}

/// Counters of a [`DhcpClient`], in messages except where noted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DhcpStats {
    pub(super) sent: u64,
    /// Received: offers that were taken, ACKs and NAKs.
    pub(super) accepted: u64,
    /// Received and dropped: malformed, of another transaction, client or server, or nothing was asked.
    pub(super) ignored: u64,
    /// NAKs.
    pub(super) refused: u64,
    /// Addresses that another host used.
    pub(super) declined: u64,
    /// Leases that ended because no server renewed them.
    pub(super) expired: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Init { at: Instant },
    Selecting,
    Requesting { address: Ipv4Addr, server: Ipv4Addr },
    Rebooting { address: Ipv4Addr },
    Bound,
    Renewing,
    Rebinding,
    Stopped,
}

/// A transaction: messages that are answers to each other.
#[derive(Debug, Clone, Copy)]
struct Exchange {
    transaction: [u8; 4],
    began: Instant,
    /// Seconds since then, in the last message that was no answer to an offer.
    seconds: u16,
    /// How often the present message was sent.
    sent: u32,
    /// When it is sent next.
    next: Instant,
}

/// An address in use.
#[derive(Debug, Clone)]
struct Held {
    lease: Lease,
    times: Option<Times>,
}

/// See the module. The order of calls: `receive` and `poll` at any time, `poll` also at the `deadline`, until it
/// returns nothing; then `event` until it returns nothing.
#[derive(Debug)]
pub(super) struct DhcpClient {
    mac: Mac,
    settings: DhcpSettings,
    random: Random,
    state: State,
    exchange: Exchange,
    held: Option<Held>,
    /// The address that a server may give again.
    wanted: Option<Ipv4Addr>,
    /// NAKs and conflicts, one after the other.
    refusals: u32,
    conflicts: u32,
    /// The last message about an address, and its time.
    farewell: Option<(ToSend, Instant)>,
    events: VecDeque<DhcpEvent>,
    stats: DhcpStats,
}

impl DhcpClient {
    pub(super) fn new(mac: Mac, settings: DhcpSettings, seed: u64, now: Instant) -> DhcpClient {
        let exchange = Exchange {
            transaction: [0; 4],
            began: now,
            seconds: 0,
            sent: 0,
            next: now,
        };
        let mut client = DhcpClient {
            mac,
            settings,
            random: Random::new(seed),
            state: State::Init { at: now },
            exchange,
            held: None,
            wanted: settings.remembered,
            refusals: 0,
            conflicts: 0,
            farewell: None,
            events: VecDeque::new(),
            stats: DhcpStats::default(),
        };
        if let Some(address) = settings.remembered {
            client.begin(State::Rebooting { address }, now);
        }
        client
    }

    /// Replaces the random numbers.
    pub(super) fn reseed(&mut self, seed: u64) {
        self.random = Random::new(seed);
    }

    pub(super) fn stats(&self) -> DhcpStats {
        self.stats
    }

    /// What is in force.
    pub(super) fn lease(&self) -> Option<&Lease> {
        self.held.as_ref().map(|held| &held.lease)
    }

    pub(super) fn event(&mut self) -> Option<DhcpEvent> {
        self.events.pop_front()
    }

    /// The payload of a datagram to port 68.
    pub(super) fn receive(&mut self, payload: &[u8], now: Instant) {
        while self.advance(now) {}
        let message = Message::parse_reply(payload).filter(|message| self.is_answer(message));
        match message.and_then(|message| self.accept(&message, now)) {
            Some(()) => self.stats.accepted += 1,
            None => self.stats.ignored += 1,
        }
    }

    /// Another host uses the address.
    pub(super) fn conflict(&mut self, now: Instant) {
        let Some(held) = self.lose() else { return };
        self.stats.declined += 1;
        self.conflicts += 1;
        self.wanted = None;
        self.begin(State::Stopped, now);
        let message = self.message(DECLINE).option(SERVER, &held.server.octets());
        let message = message.option(REQUESTED, &held.address.addr().octets());
        let message = to_all(message.finish());
        self.farewell = Some((message, now));
        let wait = match self.conflicts {
            0..MANY_CONFLICTS => AFTER_CONFLICT,
            _ => AFTER_CONFLICTS,
        };
        self.state = State::Init { at: now + wait };
    }

    /// Gives the address back, and stops.
    pub(super) fn release(&mut self, now: Instant) {
        self.begin(State::Stopped, now);
        let Some(held) = self.lose() else { return };
        let mut fixed = self.fixed();
        fixed[12..16].copy_from_slice(&held.address.addr().octets());
        let message = Writer::new(&fixed).option(KIND, &[RELEASE]);
        let message = message.option(CLIENT, &self.identifier());
        let message = message.option(SERVER, &held.server.octets());
        let message = ToSend {
            payload: message.finish(),
            from: held.address.addr(),
            to: held.server,
        };
        self.farewell = Some((message, now));
    }

    /// The link was away, or the client stopped. It may be another network now: the address is asked for again, and
    /// stays in use until a server refuses it.
    pub(super) fn confirm(&mut self, now: Instant) {
        let own = self.lease().map(|lease| lease.address.addr());
        match own.or(self.wanted) {
            Some(address) => self.begin(State::Rebooting { address }, now),
            None => self.state = State::Init { at: now },
        }
    }

    /// When `poll` has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let times = self.held.as_ref().and_then(|held| held.times);
        let own = match self.state {
            State::Init { at } => Some(at),
            State::Bound => times.map(|times| times.renew),
            State::Renewing => times.map(|times| times.rebind.min(self.exchange.next)),
            State::Stopped => None,
            _ => Some(self.exchange.next),
        };
        let farewell = self.farewell.as_ref().map(|farewell| farewell.1);
        let expiry = times.map(|times| times.expire);
        own.into_iter().chain(farewell).chain(expiry).min()
    }

    /// A message that is due.
    pub(super) fn poll(&mut self, now: Instant) -> Option<ToSend> {
        if let Some((message, _)) = self.farewell.take() {
            self.stats.sent += 1;
            return Some(message);
        }
        while self.advance(now) {}
        let is_sending = !matches!(
            self.state,
            State::Init { .. } | State::Bound | State::Stopped
        );
        if !is_sending || self.exchange.next > now {
            return None;
        }
        let message = self.present_message(now)?;
        self.exchange.next = self.again(now);
        self.exchange.sent += 1;
        self.stats.sent += 1;
        Some(message)
    }

    /// One transition for which the time has come, if there is one.
    fn advance(&mut self, now: Instant) -> bool {
        let times = self.held.as_ref().and_then(|held| held.times);
        let is_over = |sent: u32| self.exchange.sent >= sent && self.exchange.next <= now;
        let is_due = |time: fn(Times) -> Instant| times.is_some_and(|times| time(times) <= now);
        if is_due(|times| times.expire) {
            self.stats.expired += 1;
            self.lose();
            self.state = State::Init { at: now };
            return true;
        }
        match self.state {
            State::Init { at } if at <= now => self.begin(State::Selecting, now),
            State::Requesting { .. } if is_over(REQUESTS) => self.state = State::Init { at: now },
            State::Rebooting { .. } if is_over(REBOOT_REQUESTS) => {
                self.state = match self.held {
                    Some(_) => State::Bound,
                    None => State::Init { at: now },
                }
            }
            State::Bound if is_due(|times| times.renew) => self.begin(State::Renewing, now),
            // The same transaction: a late answer of the server counts.
            State::Renewing if is_due(|times| times.rebind) => {
                self.state = State::Rebinding;
                self.exchange.next = now;
            }
            _ => return false,
        }
        true
    }

    /// Begins a transaction.
    fn begin(&mut self, state: State, now: Instant) {
        let [.., a, b, c, d] = self.random.next().to_be_bytes();
        self.state = state;
        self.exchange = Exchange {
            transaction: [a, b, c, d],
            began: now,
            seconds: 0,
            sent: 0,
            next: now,
        };
    }

    /// The address is not in use any more. Returns its lease.
    fn lose(&mut self) -> Option<Lease> {
        let held = self.held.take()?;
        self.events.clear();
        self.events.push_back(DhcpEvent::Lost);
        Some(held.lease)
    }

    /// Whether a message is a server's answer to this client's present transaction.
    fn is_answer(&self, message: &Message<'_>) -> bool {
        let identifier = self.identifier();
        self.exchange.sent > 0
            && message.transaction() == self.exchange.transaction
            && message.mac() == Some(self.mac)
            && message.client.is_none_or(|client| client == identifier)
    }

    /// The address that was asked for, and the server that is to answer, or any.
    fn asked(&self) -> Option<(Ipv4Addr, Option<Ipv4Addr>)> {
        let own = || self.lease().map(|lease| lease.address.addr());
        match self.state {
            State::Requesting { address, server } => Some((address, Some(server))),
            State::Rebooting { address } => Some((address, None)),
            State::Renewing => Some((own()?, self.lease().map(|lease| lease.server))),
            State::Rebinding => Some((own()?, None)),
            State::Init { .. } | State::Selecting | State::Bound | State::Stopped => None,
        }
    }

    fn accept(&mut self, message: &Message<'_>, now: Instant) -> Option<()> {
        let server = message.server.filter(|server| is_host((*server).into()))?;
        if message.kind == OFFER && self.state == State::Selecting {
            let address = Lease::parse(message, now)?.0.address.addr();
            self.state = State::Requesting { address, server };
            (self.exchange.sent, self.exchange.next) = (0, now);
            return Some(());
        }
        let (address, expected) = self.asked()?;
        if expected.is_some_and(|expected| expected != server) {
            return None;
        }
        match message.kind {
            ACK => {
                let (lease, times) = Lease::parse(message, now)?;
                (lease.address.addr() == address).then(|| self.bind(lease, times))
            }
            NAK => {
                self.refuse(now);
                Some(())
            }
            _ => None,
        }
    }

    fn bind(&mut self, lease: Lease, times: Option<Times>) {
        let times = times.map(|times| times.earlier(&mut self.random));
        self.wanted = Some(lease.address.addr());
        self.refusals = 0;
        self.state = State::Bound;
        let held = Held {
            lease: lease.clone(),
            times,
        };
        let event = match self.held.replace(held) {
            None => DhcpEvent::Bound(lease),
            Some(_) => {
                self.conflicts = 0;
                self.events
                    .retain(|event| !matches!(event, DhcpEvent::Renewed(_)));
                DhcpEvent::Renewed(lease)
            }
        };
        self.events.push_back(event);
    }

    /// A server knows that the address is wrong here.
    fn refuse(&mut self, now: Instant) {
        self.stats.refused += 1;
        self.lose();
        self.wanted = None;
        let wait = match self.refusals {
            0 => Duration::ZERO,
            count => Duration::from_secs(1 << (count - 1).min(6)),
        };
        self.refusals = self.refusals.saturating_add(1);
        self.state = State::Init { at: now + wait };
    }

    /// When the present message is to be sent again.
    fn again(&mut self, now: Instant) -> Instant {
        let jitter = self.random.below(JITTER * 2);
        let until = |end: Instant, times: Times| {
            let least = (times.length / 16).clamp(RETRANSMIT, RENEW_AGAIN);
            now + (end.saturating_duration_since(now) / 2).max(least)
        };
        let times = self.held.as_ref().and_then(|held| held.times);
        match (self.state, times) {
            (State::Renewing, Some(times)) => until(times.rebind, times),
            (State::Rebinding, Some(times)) => until(times.expire, times),
            _ => {
                let doubled = RETRANSMIT * (1 << self.exchange.sent.min(DOUBLINGS));
                now + doubled - JITTER + jitter
            }
        }
    }

    fn identifier(&self) -> [u8; 7] {
        let [a, b, c, d, e, f] = self.mac.0;
        [1, a, b, c, d, e, f]
    }

    /// Fixed fields of a message without the client's address.
    fn fixed(&self) -> [u8; FIXED] {
        let mut fixed = [0; FIXED];
        fixed[..3].copy_from_slice(&FROM_CLIENT);
        fixed[4..8].copy_from_slice(&self.exchange.transaction);
        fixed[8..10].copy_from_slice(&self.exchange.seconds.to_be_bytes());
        fixed[28..34].copy_from_slice(&self.mac.0);
        fixed
    }

    fn message(&self, kind: u8) -> Writer {
        let message = Writer::new(&self.fixed()).option(KIND, &[kind]);
        message.option(CLIENT, &self.identifier())
    }

    /// With the options that are asked for.
    fn question(message: Writer, mtu: u16) -> Vec<u8> {
        // RFC 2132 9.10.
        let size = mtu.max(576).to_be_bytes();
        let message = message.option(MAX_SIZE, &size).option(PARAMETERS, &WANTED);
        message.finish()
    }

    /// The message of the present state (RFC 2131, table 4 and 5).
    fn present_message(&mut self, now: Instant) -> Option<ToSend> {
        if !matches!(self.state, State::Requesting { .. }) {
            let seconds = now.saturating_duration_since(self.exchange.began).as_secs();
            self.exchange.seconds = u16::try_from(seconds).unwrap_or(u16::MAX);
        }
        let mtu = self.settings.mtu;
        let request = self.message(REQUEST);
        match self.state {
            State::Selecting => {
                let discover = self.message(DISCOVER);
                let discover = match self.wanted {
                    Some(address) => discover.option(REQUESTED, &address.octets()),
                    None => discover,
                };
                Some(to_all(Self::question(discover, mtu)))
            }
            State::Requesting { address, server } => {
                let request = request.option(REQUESTED, &address.octets());
                let request = request.option(SERVER, &server.octets());
                Some(to_all(Self::question(request, mtu)))
            }
            State::Rebooting { address } => {
                let request = request.option(REQUESTED, &address.octets());
                Some(to_all(Self::question(request, mtu)))
            }
            State::Renewing | State::Rebinding => {
                let lease = self.lease()?;
                let (from, server) = (lease.address.addr(), lease.server);
                let mut payload = Self::question(request, mtu);
                payload[12..16].copy_from_slice(&from.octets());
                let to = match self.state {
                    State::Renewing => server,
                    _ => Ipv4Addr::BROADCAST,
                };
                Some(ToSend { payload, from, to })
            }
            State::Init { .. } | State::Bound | State::Stopped => None,
        }
    }
}

fn to_all(payload: Vec<u8>) -> ToSend {
    ToSend {
        payload,
        from: Ipv4Addr::UNSPECIFIED,
        to: Ipv4Addr::BROADCAST,
    }
}
