//! Leases of DHCPv4: which hardware address may have which IPv4 address, and until when.
//!
//! One table by address, and an index by hardware address, each of which has at most one lease. It calls nothing; times
//! are arguments. An address is, for another guest, in this order of preference:
//!
//! 1. never leased;
//! 2. over: its lease has expired, or its guest has released it; the one that is over the longest comes first;
//! 3. offered: until its guest has asked for it, another one may be faster, so that offers alone use up nothing.
//!
//! A lease that lasts is never given to another guest, except where there is only one address for whichever guest asks.

use crate::link::ethernet::frame::Mac;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// How long an offered address is kept for its guest while there are others.
pub(super) const OFFERED: Duration = Duration::from_secs(30);
/// How long an address that a guest has found in use by another host is not given.
pub(super) const DECLINED: Duration = Duration::from_secs(600);
/// Longest name of a guest in bytes.
const MAX_NAME: usize = 63;
/// A longer lease has no end by its message, whose number this is, and one that no guest sees here.
const LONGEST: Duration = Duration::from_secs(u32::MAX as u64);
const MINUTE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Offered,
    /// Acknowledged.
    Bound,
    /// Given back; kept for the same guest while there are others.
    Over,
    /// In use by another host.
    Declined,
}

impl State {
    /// Which of the two orders its record is in.
    fn order(self) -> usize {
        usize::from(self == State::Offered)
    }
}

/// The record of an address.
#[derive(Debug, Clone)]
struct Record {
    mac: Mac,
    state: State,
    until: Instant,
    name: Option<Box<str>>,
}

/// A lease that lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    pub(super) mac: Mac,
    pub(super) until: Instant,
    pub(super) name: Option<String>,
}

/// The decision about a guest that asks for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Verdict {
    Given,
    Refused,
    /// The rate of new guests is exceeded.
    Later,
}

/// The table. See the module.
#[derive(Debug)]
pub(super) struct Leases {
    pool: RangeInclusive<Ipv4Addr>,
    /// The only addresses of some guests, which no others get; perhaps outside the pool.
    reserved: HashMap<Mac, Ipv4Addr>,
    only_for: HashMap<Ipv4Addr, Mac>,
    lasts: Duration,
    /// There is one address, for whichever guest asks.
    for_any: bool,
    /// New guests in a minute.
    rate: Option<u32>,
    /// The begin of the current minute, and the new guests in it.
    minute: Option<(Instant, u32)>,
    records: BTreeMap<Ipv4Addr, Record>,
    of: HashMap<Mac, Ipv4Addr>,
    /// Records by their ends, and then offers by theirs: in this order they are given to other guests.
    ends: [BTreeSet<(Instant, Ipv4Addr)>; 2],
    /// Addresses of the pool before this one have a record, or are reserved.
    new: u64,
    /// The oldest first.
    declined: VecDeque<Ipv4Addr>,
}

impl Leases {
    /// One address, for whichever guest asks.
    pub(super) fn for_any(address: Ipv4Addr, lasts: Duration) -> Leases {
        Leases {
            for_any: true,
            ..Leases::new(address..=address, &[], lasts)
        }
    }

    pub(super) fn new(
        pool: RangeInclusive<Ipv4Addr>,
        reserved: &[(Mac, Ipv4Addr)],
        lasts: Duration,
    ) -> Leases {
        let turned = reserved.iter().map(|(mac, address)| (*address, *mac));
        Leases {
            new: pool.start().to_bits().into(),
            pool,
            reserved: reserved.iter().copied().collect(),
            only_for: turned.collect(),
            lasts: lasts.min(LONGEST),
            for_any: false,
            rate: None,
            minute: None,
            records: BTreeMap::new(),
            of: HashMap::new(),
            ends: [BTreeSet::new(), BTreeSet::new()],
            declined: VecDeque::new(),
        }
    }

    /// Sets how many guests that have no record may get one in a minute.
    pub(super) fn rate(mut self, rate: Option<u32>) -> Leases {
        self.rate = rate;
        self
    }

    /// Chooses an address for a guest (RFC 2131 4.3.1): its own, the one that it wishes, or another one.
    pub(super) fn offer(
        &mut self,
        mac: Mac,
        wish: Option<Ipv4Addr>,
        now: Instant,
    ) -> Option<Ipv4Addr> {
        if self.for_any {
            return Some(*self.pool.start());
        }
        let reserved = self.reserved.get(&mac);
        let own = reserved.or_else(|| self.of.get(&mac)).copied();
        let own = own.filter(|own| self.may_have(mac, *own, now));
        let free = |wish: &Ipv4Addr| {
            let record = self.records.get(wish);
            record.is_none_or(|record| record.until <= now) && self.may_have(mac, *wish, now)
        };
        let address = match own.or(wish.filter(free)) {
            Some(address) => address,
            None => self.any(mac, now)?,
        };
        if self.holder(address, now) != Some(mac) {
            self.put(address, mac, (State::Offered, OFFERED), now);
        }
        Some(address)
    }

    /// Whether a guest gets the address if it asks for it.
    fn may_have(&self, mac: Mac, address: Ipv4Addr, now: Instant) -> bool {
        let permitted = match self.only_for.get(&address) {
            Some(only) => *only == mac,
            None => self.pool.contains(&address) && !self.reserved.contains_key(&mac),
        };
        let Some(record) = self.records.get(&address).filter(|_| permitted) else {
            return permitted;
        };
        match record.state {
            State::Declined => record.until <= now,
            State::Bound => record.mac == mac || record.until <= now || self.for_any,
            State::Offered | State::Over => true,
        }
    }

    /// An address for a guest without one, by the order of preference.
    fn any(&mut self, mac: Mac, now: Instant) -> Option<Ipv4Addr> {
        if self.reserved.contains_key(&mac) {
            return None;
        }
        while self.new <= u64::from(self.pool.end().to_bits()) {
            let bits = u32::try_from(self.new).expect("invariant: the pool's end is an address");
            let address = Ipv4Addr::from_bits(bits);
            if !self.records.contains_key(&address) && !self.only_for.contains_key(&address) {
                return Some(address);
            }
            self.new += 1;
        }
        let [ends, offers] = &self.ends;
        let over = ends.first().filter(|end| end.0 <= now);
        over.or_else(|| offers.first()).map(|end| end.1)
    }

    /// Whether a guest that asks for an address gets it (RFC 2131 4.3.2); then it has it, and no other one.
    pub(super) fn request(
        &mut self,
        mac: Mac,
        address: Ipv4Addr,
        name: Option<String>,
        now: Instant,
    ) -> Verdict {
        if !self.may_have(mac, address, now) {
            return Verdict::Refused;
        }
        if !self.is_admitted(mac, now) {
            return Verdict::Later;
        }
        self.put(address, mac, (State::Bound, self.lasts), now);
        if let (Some(record), Some(name)) = (self.records.get_mut(&address), name) {
            record.name = Some(name.into());
        }
        Verdict::Given
    }

    /// Whether the rate of new guests permits this one. Those with a reservation, and those that come again, are not
    /// new.
    fn is_admitted(&mut self, mac: Mac, now: Instant) -> bool {
        let record = self
            .of
            .get(&mac)
            .and_then(|address| self.records.get(address));
        let is_new = record.is_none_or(|record| record.state == State::Offered);
        let Some(rate) = self
            .rate
            .filter(|_| is_new && !self.reserved.contains_key(&mac))
        else {
            return true;
        };
        let minute = self.minute.filter(|(begin, _)| now < *begin + MINUTE);
        let (begin, count) = minute.unwrap_or((now, 0));
        self.minute = Some((begin, rate.min(count.saturating_add(1))));
        count < rate
    }

    /// Makes a record, in place of that of the address and that of the guest.
    fn put(
        &mut self,
        address: Ipv4Addr,
        mac: Mac,
        (state, lasts): (State, Duration),
        now: Instant,
    ) {
        let mut name = None;
        if let Some(former) = self.take(address) {
            if former.mac == mac {
                name = former.name;
            } else if self.of.get(&former.mac) == Some(&address) {
                self.of.remove(&former.mac);
            }
        }
        let other = self.of.insert(mac, address);
        if let Some((other, mut record)) = other.and_then(|other| Some((other, self.take(other)?)))
        {
            name = record.name.take();
            (record.state, record.until) = (State::Over, now);
            self.insert(other, record);
        }
        let until = now + lasts;
        let record = Record {
            mac,
            state,
            until,
            name,
        };
        self.insert(address, record);
    }

    fn take(&mut self, address: Ipv4Addr) -> Option<Record> {
        let record = self.records.remove(&address)?;
        self.ends[record.state.order()].remove(&(record.until, address));
        Some(record)
    }

    fn insert(&mut self, address: Ipv4Addr, record: Record) {
        if !self.only_for.contains_key(&address) {
            self.ends[record.state.order()].insert((record.until, address));
        }
        self.records.insert(address, record);
    }

    /// A guest has chosen the offer of another server.
    pub(super) fn forget_offer(&mut self, mac: Mac, now: Instant) {
        if let Some(address) = self.of.get(&mac).copied() {
            self.end(mac, address, (State::Over, now), |state| {
                state == State::Offered
            });
        }
    }

    /// A guest gives its address back. `false` if it has another one.
    pub(super) fn release(&mut self, mac: Mac, address: Ipv4Addr, now: Instant) -> bool {
        !self.for_any
            && self.end(mac, address, (State::Over, now), |state| {
                state == State::Bound
            })
    }

    /// A guest has found its address in use by another host. `false` if it is not its own.
    pub(super) fn decline(&mut self, mac: Mac, address: Ipv4Addr, now: Instant) -> bool {
        self.set_aside(mac, address, now + DECLINED, now)
    }

    /// Another host has the address of a guest: until then it is not given. `false` if it is not the guest's. At most a
    /// quarter of the addresses are not given for this reason: a guest may report anything.
    pub(super) fn set_aside(
        &mut self,
        mac: Mac,
        address: Ipv4Addr,
        until: Instant,
        now: Instant,
    ) -> bool {
        let had = |state| matches!(state, State::Offered | State::Bound);
        let declined = (State::Declined, until);
        if self.for_any || !self.end(mac, address, declined, had) {
            return false;
        }
        self.of.remove(&mac);
        self.declined.push_back(address);
        if self.declined.len() > (size(&self.pool) / 4).max(1) {
            let oldest = self.declined.pop_front();
            let oldest = oldest.expect("invariant: there is the new one");
            if let Some(record) = self
                .records
                .get(&oldest)
                .filter(|r| r.state == State::Declined)
            {
                let mac = record.mac;
                self.end(mac, oldest, (State::Over, now), |_| true);
            }
        }
        true
    }

    /// Ends the lease of an address, if it is this guest's and in such a state.
    fn end(
        &mut self,
        mac: Mac,
        address: Ipv4Addr,
        end: (State, Instant),
        had: impl Fn(State) -> bool,
    ) -> bool {
        let is_own = |record: &&Record| record.mac == mac && had(record.state);
        if self.records.get(&address).filter(is_own).is_none() {
            return false;
        }
        let mut record = self.take(address).expect("invariant: it was there");
        (record.state, record.until) = end;
        self.insert(address, record);
        true
    }

    /// The guest that alone may use the address.
    pub(super) fn holder(&self, address: Ipv4Addr, now: Instant) -> Option<Mac> {
        let record = self.records.get(&address)?;
        (record.state == State::Bound && record.until > now).then_some(record.mac)
    }

    /// Whether the address is the guest's in any case: by its lease, or reserved.
    pub(super) fn is_of(&self, mac: Mac, address: Ipv4Addr, now: Instant) -> bool {
        self.holder(address, now) == Some(mac) || self.only_for.get(&address) == Some(&mac)
    }

    /// Leases that last, by address.
    pub(super) fn list(&self, now: Instant) -> Vec<Lease> {
        let lasts = |record: &Record| record.state == State::Bound && record.until > now;
        let all = self.records.iter().filter(|(_, record)| lasts(record));
        all.map(|(address, record)| Lease {
            address: *address,
            mac: record.mac,
            until: record.until,
            name: record.name.as_deref().map(String::from),
        })
        .collect()
    }
}

/// The number of addresses in a range.
pub(super) fn size(range: &RangeInclusive<Ipv4Addr>) -> usize {
    let [first, last] = [range.start(), range.end()].map(|address| address.to_bits());
    usize::try_from(u64::from(last) + 1 - u64::from(first.min(last))).unwrap_or(usize::MAX)
}

/// A host's name as it can be shown: at most 63 of the characters of names, without the others.
pub(super) fn name(bytes: &[u8]) -> Option<String> {
    let permitted = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    let bytes = bytes.iter().copied().filter(permitted).take(MAX_NAME);
    let name: String = bytes.map(char::from).collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests;
