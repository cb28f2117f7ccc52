//! Neighbours: the hardware addresses of hosts on a link, and the packets that wait for them.
//!
//! For both families, by the rules and with the states of RFC 4861 7.3.2 ([`NeighbourState`]). The table calls nothing:
//! packets, messages and times are put in, [`Action`]s are taken out with [`next_action`](Neighbours::next_action) after
//! every other call. Memory is bounded ([`Limits`]):
//!
//! * An entry is made for a packet to be sent. Beyond the maximum it takes the place of the entry whose last use is the
//!   longest ago. Entries whose hardware address is being asked for are not replaced; they may be half of all.
//! * A message of another host makes an entry only if it shows that packets will be sent there ([`Claim::creates`]);
//!   such entries have a small maximum of their own, replace none, and are removed unless they are used soon. So a
//!   flood of forged messages changes no entry in use.
//! * Beyond the maximum of waiting packets the oldest is dropped and counted.

use super::frame::Mac;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Requests to all hosts, and then to the known address, before a neighbour counts as unreachable (RFC 4861 10).
pub(super) const MAX_SOLICITS: u8 = 3;
/// Time between two requests, unless a router advertises another one (RFC 4861, RetransTimer).
pub(super) const RETRANS_TIMER: Duration = Duration::from_secs(1);
/// How long a neighbour counts as reachable after it has answered (RFC 4861, ReachableTime).
pub(super) const REACHABLE_TIME: Duration = Duration::from_secs(30);
/// How long a used entry waits for a confirmation before it is probed (RFC 4861, DELAY_FIRST_PROBE_TIME).
pub(super) const DELAY_FIRST_PROBE: Duration = Duration::from_secs(5);
/// How long an entry that another host's message made may stay unused.
pub(super) const UNUSED: Duration = Duration::from_secs(60);

/// Bounds of a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Entries that were made for packets.
    pub(super) entries: usize,
    /// Entries that other hosts' messages made.
    pub(super) strangers: usize,
    /// Packets that wait for one neighbour, and their bytes.
    pub(super) packets: usize,
    pub(super) bytes: usize,
    /// Packets that wait for all neighbours, and their bytes.
    pub(super) all_packets: usize,
    pub(super) all_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            entries: 1024,
            strangers: 256,
            packets: 64,
            bytes: 128 << 10,
            all_packets: 512,
            all_bytes: 1 << 20,
        }
    }
}

/// The state of a neighbour (RFC 4861 7.3.2), also for IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "the RFC has these five")]
pub enum NeighbourState {
    /// Its hardware address is being asked for. Packets wait.
    Incomplete,
    /// It has answered in the last 30 seconds, or as long as a router advertises.
    Reachable,
    /// It was reachable, and no packet has been sent to it since then.
    Stale,
    /// A packet was sent to a stale address; it will be probed after 5 seconds.
    Delay,
    /// It is being probed. Packets are sent to the known address.
    Probe,
}

/// An entry of the table of neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address, unless it is [`Incomplete`](NeighbourState::Incomplete).
    pub mac: Option<Mac>,
    /// Its state.
    pub state: NeighbourState,
    /// Whether it has advertised itself as a router (IPv6).
    pub is_router: bool,
    /// Packets that wait for its hardware address.
    pub waiting: usize,
}

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Resolution {
    Resolved(Mac),
    /// The table has it, and returns it as [`Action::Send`] or [`Action::Failed`].
    Waiting,
    /// There is no room for another neighbour. The packet was not taken.
    Full,
}

/// To be done by the table's owner, in this order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action<P> {
    /// Ask for the address: all hosts, or the one that had it.
    Solicit { address: IpAddr, at: Option<Mac> },
    /// Send a packet that has waited.
    Send { to: Mac, packet: P },
    /// The neighbour does not answer: its entry was removed. The packets that have waited for it.
    Failed { address: IpAddr, packets: Vec<P> },
    /// The neighbour has been a router and is none any more (RFC 4861 7.2.5).
    NoRouter { address: IpAddr },
}

/// Contents of a message about the hardware address of a neighbour, besides the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Claim {
    /// It is the answer to a request of ours, so that the neighbour is reachable: an ARP reply, or an advertisement with
    /// this flag.
    pub(super) solicited: bool,
    /// It replaces another hardware address: all of ARP, solicitations, and advertisements with this flag.
    pub(super) overrides: bool,
    /// The neighbour is a router, or is none, or the message does not contain that.
    pub(super) router: Option<bool>,
    /// It was a request to us, so that an answer will have to be sent.
    pub(super) creates: bool,
}

impl Claim {
    /// The sender of an ARP request or of a neighbour solicitation; `to_us`: for an address of ours.
    pub(super) fn request(to_us: bool) -> Claim {
        Claim {
            overrides: true,
            creates: to_us,
            ..Claim::default()
        }
    }

    /// An ARP reply; `to_us`: to our hardware address. Others are gratuitous.
    pub(super) fn reply(to_us: bool) -> Claim {
        Claim {
            solicited: to_us,
            overrides: true,
            ..Claim::default()
        }
    }
}

/// Counters of a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counters {
    /// Waiting packets that were dropped, as the oldest of too many.
    pub(super) dropped: u64,
    /// Packets that were refused because no room could be made for their neighbour.
    pub(super) full: u64,
    /// Neighbours that did not answer.
    pub(super) failed: u64,
    /// Known neighbours whose hardware address changed.
    pub(super) moved: u64,
}

/// What is known of a hardware address.
#[derive(Debug, Clone, Copy)]
enum Reach {
    Reachable {
        until: Instant,
    },
    Stale,
    Delay {
        until: Instant,
    },
    Probe {
        sent: u8,
        next: Instant,
    },
    /// Stale, not used yet, and made by another host's message.
    Stranger {
        until: Instant,
    },
}

#[derive(Debug)]
enum State<P> {
    Incomplete {
        sent: u8,
        next: Instant,
        waiting: VecDeque<(P, usize)>,
        bytes: usize,
    },
    Known {
        mac: Mac,
        reach: Reach,
    },
}

#[derive(Debug)]
struct Entry<P> {
    state: State<P>,
    is_router: bool,
    /// Number of the last use.
    used: u64,
}

impl<P> Entry<P> {
    /// When it has to do something.
    fn due(&self) -> Option<Instant> {
        match self.state {
            State::Incomplete { next, .. } => Some(next),
            State::Known { reach, .. } => match reach {
                Reach::Reachable { .. } | Reach::Stale => None,
                Reach::Delay { until } | Reach::Stranger { until } => Some(until),
                Reach::Probe { next, .. } => Some(next),
            },
        }
    }

    fn is_incomplete(&self) -> bool {
        matches!(self.state, State::Incomplete { .. })
    }

    fn is_stranger(&self) -> bool {
        let State::Known { reach, .. } = self.state else {
            return false;
        };
        matches!(reach, Reach::Stranger { .. })
    }
}

/// What a due entry does.
enum Turn {
    Solicit(Option<Mac>),
    Fail,
    Forget,
}

/// The table; `P` is a packet that waits. See the module.
#[derive(Debug)]
pub(super) struct Neighbours<P> {
    limits: Limits,
    retrans: Duration,
    reachable: Duration,
    entries: HashMap<IpAddr, Entry<P>>,
    /// Of these, entries whose hardware address is unknown, and entries of other hosts' messages.
    incomplete: usize,
    strangers: usize,
    /// Packets that wait, and their bytes.
    waiting: (usize, usize),
    actions: VecDeque<Action<P>>,
    /// No entry is due before; may be too early.
    deadline: Option<Instant>,
    uses: u64,
    counters: Counters,
}

impl<P> Neighbours<P> {
    pub(super) fn new(limits: Limits) -> Neighbours<P> {
        Neighbours {
            limits,
            retrans: RETRANS_TIMER,
            reachable: REACHABLE_TIME,
            entries: HashMap::new(),
            incomplete: 0,
            strangers: 0,
            waiting: (0, 0),
            actions: VecDeque::new(),
            deadline: None,
            uses: 0,
            counters: Counters::default(),
        }
    }

    /// Sets the time between two requests.
    pub(super) fn set_retrans(&mut self, time: Duration) {
        self.retrans = time;
    }

    /// Sets how long a neighbour counts as reachable, from the next confirmation on. RFC 4861 6.3.2 wants a random time
    /// near the advertised one.
    pub(super) fn set_reachable(&mut self, time: Duration) {
        self.reachable = time;
    }

    pub(super) fn counters(&self) -> Counters {
        self.counters
    }

    /// The hardware address of a packet's next hop. While it is unknown the table takes the packet, of so many bytes.
    pub(super) fn resolve(
        &mut self,
        address: IpAddr,
        bytes: usize,
        packet: impl FnOnce() -> P,
        now: Instant,
    ) -> Resolution {
        self.uses += 1;
        let Some(entry) = self.entries.get_mut(&address) else {
            if !self.begin(address, now) {
                self.counters.full += 1;
                return Resolution::Full;
            }
            self.keep(address, (packet(), bytes));
            return Resolution::Waiting;
        };
        entry.used = self.uses;
        let State::Known { mac, reach } = &mut entry.state else {
            self.keep(address, (packet(), bytes));
            return Resolution::Waiting;
        };
        let mac = *mac;
        let stranger = match *reach {
            Reach::Reachable { until } if now < until => return Resolution::Resolved(mac),
            Reach::Delay { .. } | Reach::Probe { .. } => return Resolution::Resolved(mac),
            Reach::Stranger { .. } => true,
            Reach::Reachable { .. } | Reach::Stale => false,
        };
        let until = now + DELAY_FIRST_PROBE;
        *reach = Reach::Delay { until };
        self.wake_at(until);
        if stranger {
            self.strangers -= 1;
            self.make_room(0);
        }
        Resolution::Resolved(mac)
    }

    /// Removes the least used entry if there is no room for so many more. `false` if none can be removed.
    fn make_room(&mut self, more: usize) -> bool {
        let ours = self.entries.len() - self.strangers;
        ours + more <= self.limits.entries || self.evict()
    }

    /// Asks for an address without a packet for it.
    pub(super) fn seek(&mut self, address: IpAddr, now: Instant) {
        if !self.entries.contains_key(&address) {
            self.begin(address, now);
        }
    }

    /// Begins to ask for an address. `false` if there is no room.
    fn begin(&mut self, address: IpAddr, now: Instant) -> bool {
        if self.incomplete * 2 >= self.limits.entries || !self.make_room(1) {
            return false;
        }
        let next = now + self.retrans;
        let state = State::Incomplete {
            sent: 1,
            next,
            waiting: VecDeque::new(),
            bytes: 0,
        };
        self.insert(address, state);
        self.incomplete += 1;
        self.wake_at(next);
        self.actions
            .push_back(Action::Solicit { address, at: None });
        true
    }

    fn insert(&mut self, address: IpAddr, state: State<P>) {
        let entry = Entry {
            state,
            is_router: false,
            used: self.uses,
        };
        self.entries.insert(address, entry);
    }

    /// Removes the entry whose last use is the longest ago.
    fn evict(&mut self) -> bool {
        let replaceable = |entry: &Entry<P>| !entry.is_incomplete() && !entry.is_stranger();
        let all = self.entries.iter().filter(|(_, entry)| replaceable(entry));
        let oldest = all.min_by_key(|(_, entry)| entry.used);
        let Some(address) = oldest.map(|(address, _)| *address) else {
            return false;
        };
        self.entries.remove(&address);
        true
    }

    /// Keeps a packet for a neighbour that is asked for.
    fn keep(&mut self, address: IpAddr, packet: (P, usize)) {
        let limits = self.limits;
        let Some(State::Incomplete { waiting, bytes, .. }) = self.state(address) else {
            return;
        };
        let added = packet.1;
        *bytes += added;
        waiting.push_back(packet);
        let too_many = waiting.len() > limits.packets || *bytes > limits.bytes;
        self.waiting.0 += 1;
        self.waiting.1 += added;
        if too_many {
            self.drop_oldest(address);
        }
        while self.waiting.0 > limits.all_packets || self.waiting.1 > limits.all_bytes {
            let most = self.entries.iter().max_by_key(|(address, entry)| {
                let State::Incomplete { bytes, waiting, .. } = &entry.state else {
                    return (0, 0, **address);
                };
                (*bytes, waiting.len(), **address)
            });
            let most = *most.expect("invariant: packets wait").0;
            self.drop_oldest(most);
        }
    }

    fn state(&mut self, address: IpAddr) -> Option<&mut State<P>> {
        self.entries.get_mut(&address).map(|entry| &mut entry.state)
    }

    /// Drops waiting packets of a neighbour, the oldest first: one, and more while they exceed its limit.
    fn drop_oldest(&mut self, address: IpAddr) {
        let limits = self.limits;
        loop {
            let Some(State::Incomplete { waiting, bytes, .. }) = self.state(address) else {
                return;
            };
            let Some((_packet, len)) = waiting.pop_front() else {
                return;
            };
            *bytes -= len;
            let done = waiting.len() <= limits.packets && *bytes <= limits.bytes;
            self.waiting.0 -= 1;
            self.waiting.1 -= len;
            self.counters.dropped += 1;
            if done {
                return;
            }
        }
    }

    fn wake_at(&mut self, at: Instant) {
        self.deadline = Some(self.deadline.map_or(at, |deadline| deadline.min(at)));
    }

    /// A message about a neighbour: its hardware address, if the message contains one.
    pub(super) fn claim(&mut self, address: IpAddr, mac: Option<Mac>, claim: Claim, now: Instant) {
        let until = now + self.reachable;
        let Some(entry) = self.entries.get_mut(&address) else {
            if let Some(mac) = mac.filter(|_| claim.creates) {
                self.acquaint(address, mac, now);
            }
            return;
        };
        let fresh = match claim.solicited {
            true => Reach::Reachable { until },
            false => Reach::Stale,
        };
        match &mut entry.state {
            State::Incomplete { .. } => {
                let Some(mac) = mac else { return };
                let known = State::Known { mac, reach: fresh };
                let former = std::mem::replace(&mut entry.state, known);
                self.complete(former, mac);
            }
            State::Known { mac: known, reach } => {
                let moved = mac.is_some_and(|mac| mac != *known);
                if moved && !claim.overrides {
                    // Which of both is right is found out when it is used.
                    if matches!(reach, Reach::Reachable { .. }) {
                        *reach = Reach::Stale;
                    }
                    return;
                }
                *known = mac.unwrap_or(*known);
                self.counters.moved += u64::from(moved);
                let stranger = matches!(reach, Reach::Stranger { .. });
                if (claim.solicited || moved) && !stranger {
                    *reach = fresh;
                }
            }
        }
        self.set_router(address, claim.router);
    }

    fn set_router(&mut self, address: IpAddr, router: Option<bool>) {
        let (Some(is_router), Some(entry)) = (router, self.entries.get_mut(&address)) else {
            return;
        };
        if std::mem::replace(&mut entry.is_router, is_router) && !is_router {
            self.actions.push_back(Action::NoRouter { address });
        }
    }

    /// The packets that have waited may be sent.
    fn complete(&mut self, former: State<P>, to: Mac) {
        let packets = self.take_waiting(former);
        let sends = packets.into_iter();
        self.actions
            .extend(sends.map(|packet| Action::Send { to, packet }));
    }

    /// The packets of an entry that is no longer asked for.
    fn take_waiting(&mut self, former: State<P>) -> Vec<P> {
        let State::Incomplete { waiting, bytes, .. } = former else {
            return Vec::new();
        };
        self.incomplete -= 1;
        self.waiting.0 -= waiting.len();
        self.waiting.1 -= bytes;
        waiting.into_iter().map(|(packet, _)| packet).collect()
    }

    /// Another host will be sent an answer (RFC 826, RFC 4861 7.2.3).
    fn acquaint(&mut self, address: IpAddr, mac: Mac, now: Instant) {
        if self.strangers >= self.limits.strangers {
            return;
        }
        let until = now + UNUSED;
        let reach = Reach::Stranger { until };
        self.insert(address, State::Known { mac, reach });
        self.strangers += 1;
        self.wake_at(until);
    }

    /// The hardware address of a neighbour to which packets have been sent.
    pub(super) fn known(&self, address: IpAddr) -> Option<Mac> {
        let entry = self
            .entries
            .get(&address)
            .filter(|entry| !entry.is_stranger())?;
        match entry.state {
            State::Known { mac, .. } => Some(mac),
            State::Incomplete { .. } => None,
        }
    }

    /// Another host uses the address of a known neighbour, which keeps it: whether it still answers is asked at once,
    /// unless it has done so in the last seconds.
    pub(super) fn doubt(&mut self, address: IpAddr, now: Instant) {
        let (retry, reachable) = (now + self.retrans, self.reachable);
        let Some(State::Known { mac, reach }) = self.state(address) else {
            return;
        };
        let doubted = match *reach {
            Reach::Reachable { until } => now + reachable >= until + DELAY_FIRST_PROBE,
            Reach::Stale | Reach::Delay { .. } => true,
            Reach::Probe { .. } | Reach::Stranger { .. } => false,
        };
        if !doubted {
            return;
        }
        let at = Some(*mac);
        *reach = Reach::Probe {
            sent: 1,
            next: retry,
        };
        self.wake_at(retry);
        self.actions.push_back(Action::Solicit { address, at });
    }

    /// Forgets a neighbour. Its packets fail.
    pub(super) fn remove(&mut self, address: IpAddr) {
        let Some(entry) = self.entries.remove(&address) else {
            return;
        };
        self.strangers -= usize::from(entry.is_stranger());
        let packets = self.take_waiting(entry.state);
        self.actions.push_back(Action::Failed { address, packets });
    }

    /// Does what is due.
    pub(super) fn poll(&mut self, now: Instant) {
        if self.deadline.is_none_or(|at| at > now) {
            return;
        }
        let is_due = |entry: &Entry<P>| entry.due().is_some_and(|at| at <= now);
        let due = self.entries.iter().filter(|(_, entry)| is_due(entry));
        let mut due: Vec<_> = due.map(|(address, _)| *address).collect();
        // The same order in each run of a simulation.
        due.sort_unstable();
        for address in due {
            self.turn(address, now);
        }
        self.deadline = self.entries.values().filter_map(Entry::due).min();
    }

    fn turn(&mut self, address: IpAddr, now: Instant) {
        let retry = now + self.retrans;
        let Some(state) = self.state(address) else {
            return;
        };
        let turn = match state {
            State::Incomplete { sent, .. } if *sent >= MAX_SOLICITS => Turn::Fail,
            State::Incomplete { sent, next, .. } => {
                *sent += 1;
                *next = retry;
                Turn::Solicit(None)
            }
            State::Known { mac, reach } => {
                let sent = match *reach {
                    Reach::Stranger { .. } => None,
                    Reach::Probe { sent, .. } => Some(sent),
                    Reach::Delay { .. } | Reach::Reachable { .. } | Reach::Stale => Some(0),
                };
                match sent {
                    None => Turn::Forget,
                    Some(MAX_SOLICITS..) => Turn::Fail,
                    Some(sent) => {
                        *reach = Reach::Probe {
                            sent: sent + 1,
                            next: retry,
                        };
                        Turn::Solicit(Some(*mac))
                    }
                }
            }
        };
        match turn {
            Turn::Solicit(at) => self.actions.push_back(Action::Solicit { address, at }),
            Turn::Fail => {
                self.counters.failed += 1;
                self.remove(address);
            }
            Turn::Forget => {
                self.entries.remove(&address);
                self.strangers -= 1;
            }
        }
    }

    /// When [`poll`](Self::poll) has to be called; may be too early.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(super) fn next_action(&mut self) -> Option<Action<P>> {
        self.actions.pop_front()
    }

    /// All entries, by address.
    pub(super) fn list(&self, now: Instant) -> Vec<Neighbour> {
        let all = self.entries.iter();
        let mut list: Vec<_> = all
            .map(|(address, entry)| entry.describe(*address, now))
            .collect();
        list.sort_unstable_by_key(|neighbour| neighbour.address);
        list
    }
}

impl<P> Entry<P> {
    fn describe(&self, address: IpAddr, now: Instant) -> Neighbour {
        let (mac, state, waiting) = match &self.state {
            State::Incomplete { waiting, .. } => (None, NeighbourState::Incomplete, waiting.len()),
            State::Known { mac, reach } => {
                let state = match *reach {
                    Reach::Reachable { until } if now < until => NeighbourState::Reachable,
                    Reach::Reachable { .. } | Reach::Stale | Reach::Stranger { .. } => {
                        NeighbourState::Stale
                    }
                    Reach::Delay { .. } => NeighbourState::Delay,
                    Reach::Probe { .. } => NeighbourState::Probe,
                };
                (Some(*mac), state, 0)
            }
        };
        Neighbour {
            address,
            mac,
            state,
            is_router: self.is_router,
            waiting,
        }
    }
}

#[cfg(test)]
mod tests;
