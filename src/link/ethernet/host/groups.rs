//! Membership in groups: the host's side of IGMP and MLD, as a state machine that is given packets and times.
//!
//! IGMPv3 (RFC 3376) and MLDv2 (RFC 3810), of any source: a group is joined in mode EXCLUDE without sources. While a
//! querier of an older version is heard (IGMPv1, IGMPv2, MLDv1), that version is spoken.
//!
//! * **A join** is reported at once and, as often as the querier's robustness says (2), again within 1 s (10 s in
//!   older versions); **a leave** in the same way, with the older ones once and only if no other host has reported.
//! * **Queries** are answered after a random time of at most the one they allow: a general query with one report of
//!   all groups. A query about single sources is answered like one about their group.
//! * **Without an IPv4 address** nothing is sent; the groups are reported when there is one. MLD is sent from ::
//!   while there is no link-local address, and again when there is (RFC 3590).
//! * 224.0.0.1, ff02::1 and groups of the interface itself are never reported.
//! * At most 512 groups of each family. Up to 60 share a report: so many fit within any link's MTU.

#[cfg(test)]
mod tests;

use crate::link::ethernet::wire::groups::*;
use crate::link::ethernet::wire::ndp::ALL_NODES;
use crate::random::Random;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Maximum number of groups of a family.
const MAX_GROUPS: usize = 512;
/// Maximum number of records in a report.
const MAX_RECORDS: usize = 60;
/// RFC 3376 8, 3810 9: Robustness Variable, Query Interval, Query Response Interval, Unsolicited Report Interval.
const ROBUSTNESS: u8 = 2;
const QUERY_INTERVAL: Duration = Duration::from_secs(125);
const QUERY_RESPONSE: Duration = Duration::from_secs(10);
const REPORT_AGAIN: Duration = Duration::from_secs(1);
/// Unsolicited Report Interval of the older versions (RFC 2236 8.10, 2710 7.10).
const OLD_REPORT_AGAIN: Duration = Duration::from_secs(10);

/// Counters of [`Groups`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct GroupsStats {
    /// Messages.
    pub(super) sent: u64,
    /// Queries that were heeded.
    pub(super) queries: u64,
    /// Other messages, e.g. reports of other hosts.
    pub(super) ignored: u64,
    /// Invalid messages.
    pub(super) malformed: u64,
    /// Joins without room.
    pub(super) refused: u64,
}

#[derive(Debug, Clone, Copy)]
struct Group {
    address: IpAddr,
    /// How often it was joined. None: it is being left.
    joins: u32,
    /// So many reports of the join, or the leave, are still to be sent.
    reports: u8,
    /// The time of the next one.
    next: Instant,
    /// The time of an answer to a query.
    answer: Option<Instant>,
    /// This host has sent the last report (older versions).
    was_last: bool,
}

/// The groups of IPv4, or of IPv6.
#[derive(Debug)]
struct Family {
    /// The address of messages.
    source: Option<IpAddr>,
    groups: Vec<Group>,
    /// The time of the answer to a general query (version 3).
    answer: Option<Instant>,
    version: Version,
    /// Until when queriers of versions 1 and 2 count as present.
    older: [Option<Instant>; 2],
    robustness: u8,
    interval: Duration,
}

/// See the module. The order of calls: any at any time, `poll` also at the `deadline`, until it returns nothing.
#[derive(Debug)]
pub(super) struct Groups {
    v4: Family,
    v6: Family,
    random: Random,
    stats: GroupsStats,
}

/// Whether routers learn about the members of a group (RFC 3376 5, 3810 6).
fn is_reported(group: IpAddr) -> bool {
    match group {
        IpAddr::V4(group) => group != ALL_HOSTS,
        IpAddr::V6(group) => group != ALL_NODES && group.octets()[1] & 15 > 1,
    }
}

impl Family {
    fn new(source: Option<IpAddr>) -> Family {
        Family {
            source,
            groups: Vec::new(),
            answer: None,
            version: Version::V3,
            older: [None; 2],
            robustness: ROBUSTNESS,
            interval: QUERY_INTERVAL,
        }
    }

    fn find(&mut self, group: IpAddr) -> Option<&mut Group> {
        let mut groups = self.groups.iter_mut();
        groups.find(|found| found.address == group)
    }

    fn join(&mut self, address: IpAddr, now: Instant) -> bool {
        let reports = if is_reported(address) {
            self.robustness
        } else {
            0
        };
        if let Some(group) = self.find(address) {
            if group.joins == 0 {
                (group.reports, group.next) = (reports, now);
            }
            group.joins += 1;
            return true;
        }
        if self.groups.len() == MAX_GROUPS {
            // One that is being left: its members are asked for later.
            let left = self.groups.iter().position(|group| group.joins == 0);
            let Some(left) = left else { return false };
            self.groups.remove(left);
        }
        self.groups.push(Group {
            address,
            joins: 1,
            reports,
            next: now,
            answer: None,
            was_last: false,
        });
        true
    }

    fn leave(&mut self, address: IpAddr, now: Instant) {
        let (version, robustness) = (self.version, self.robustness);
        let can_send = self.source.is_some();
        let Some(group) = self.find(address) else {
            return;
        };
        group.joins = group.joins.saturating_sub(1);
        if group.joins > 0 {
            return;
        }
        group.answer = None;
        group.next = now;
        group.reports = match version {
            _ if !can_send || !is_reported(address) => 0,
            Version::V1 => 0,
            Version::V2 => u8::from(group.was_last),
            Version::V3 => robustness,
        };
        self.forget();
    }

    /// Removes the groups that were left.
    fn forget(&mut self) {
        self.groups
            .retain(|group| group.joins > 0 || group.reports > 0);
    }

    /// Reports all groups anew.
    fn restart(&mut self, now: Instant) {
        for group in self.groups.iter_mut() {
            group.reports = match group.joins {
                0 => 0,
                _ if is_reported(group.address) => self.robustness,
                _ => 0,
            };
            group.next = now;
        }
        self.forget();
    }

    /// Messages have another source from now on. The first one reports all groups.
    fn set_source(&mut self, source: Option<IpAddr>, now: Instant) {
        let is_first = self.source.is_none_or(|source| source.is_unspecified());
        self.source = source;
        if is_first && source.is_some_and(|source| !source.is_unspecified()) {
            self.restart(now);
        }
    }

    /// The version may have become another one. Then nothing that was to be sent is (RFC 3376 7.2.1).
    fn advance(&mut self, now: Instant) {
        let is_present = |at: usize| self.older[at].is_some_and(|until| until > now);
        let version = match (is_present(0), is_present(1)) {
            (true, _) => Version::V1,
            (_, true) => Version::V2,
            _ => Version::V3,
        };
        if version != self.version {
            self.version = version;
            self.answer = None;
            for group in self.groups.iter_mut() {
                (group.reports, group.answer) = (0, None);
            }
            self.forget();
        }
    }

    fn queried(&mut self, query: Query, random: &mut Random, now: Instant) {
        let older = match query.version {
            Version::V1 => Some(0),
            Version::V2 => Some(1),
            Version::V3 => None,
        };
        match older {
            Some(at) => {
                let present = self.interval * self.robustness.into() + QUERY_RESPONSE;
                self.older[at] = Some(now + present);
            }
            None => {
                self.robustness = match query.robustness {
                    0 => ROBUSTNESS,
                    robustness => robustness,
                };
                self.interval = match query.interval {
                    Duration::ZERO => QUERY_INTERVAL,
                    interval => interval,
                };
            }
        }
        self.advance(now);
        let mut at = || now + random.below(query.max_response);
        if self.version == Version::V3 && query.group.is_none() {
            let at = at();
            self.answer = Some(self.answer.map_or(at, |before| before.min(at)));
            return;
        }
        let asked = |group: &&mut Group| {
            let is_member = group.joins > 0 && is_reported(group.address);
            is_member && query.group.is_none_or(|asked| asked == group.address)
        };
        for group in self.groups.iter_mut().filter(asked) {
            let at = at();
            group.answer = Some(group.answer.map_or(at, |before| before.min(at)));
        }
    }

    /// Another host has reported a group: with the older versions one is enough.
    fn reported(&mut self, address: IpAddr) {
        if self.version == Version::V3 {
            return;
        }
        let Some(group) = self.find(address) else {
            return;
        };
        if group.joins > 0 && group.answer.is_some() {
            (group.answer, group.was_last) = (None, false);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.source?;
        let groups = self.groups.iter();
        let groups = groups.filter(|group| group.reports > 0);
        let reports = groups.map(|group| group.next);
        let answers = self.groups.iter().filter_map(|group| group.answer);
        reports.chain(answers).chain(self.answer).min()
    }

    fn poll(&mut self, random: &mut Random, now: Instant) -> Option<Vec<u8>> {
        self.advance(now);
        let source = self.source?;
        let report = match self.version {
            Version::V3 => {
                let changes = self.changes(random, now);
                let records = if changes.is_empty() {
                    self.answers(now)
                } else {
                    changes
                };
                (!records.is_empty()).then(|| emit(source, Report::Records(&records)))
            }
            version => {
                let report = self.old_report(version, random, now)?;
                Some(emit(source, report))
            }
        };
        self.forget();
        report
    }

    /// Records of joins and leaves that are due.
    fn changes(&mut self, random: &mut Random, now: Instant) -> Vec<(u8, IpAddr)> {
        let again = now + random.below(REPORT_AGAIN);
        let groups = self.groups.iter_mut();
        let due = groups.filter(|group| group.reports > 0 && group.next <= now);
        let record = |group: &mut Group| {
            group.reports -= 1;
            group.next = again;
            let kind = if group.joins > 0 {
                TO_EXCLUDE
            } else {
                TO_INCLUDE
            };
            (kind, group.address)
        };
        due.take(MAX_RECORDS).map(record).collect()
    }

    /// Records for queries whose answer is due.
    fn answers(&mut self, now: Instant) -> Vec<(u8, IpAddr)> {
        let is_general = self.answer.take_if(|at| *at <= now).is_some();
        let groups = self.groups.iter_mut();
        let members = groups.filter(|group| group.joins > 0 && is_reported(group.address));
        let due = members.filter_map(|group| {
            if is_general {
                group.answer = Some(now);
            }
            (group.answer? <= now).then_some(group)
        });
        let mut due: Vec<_> = due.collect();
        due.truncate(MAX_RECORDS);
        let record = |group: &mut Group| {
            group.answer = None;
            (IS_EXCLUDE, group.address)
        };
        due.into_iter().map(record).collect()
    }

    /// A report of an older version: of one group.
    fn old_report(
        &mut self,
        version: Version,
        random: &mut Random,
        now: Instant,
    ) -> Option<Report<'static>> {
        let is_due = |group: &&mut Group| {
            let report = group.reports > 0 && group.next <= now;
            report || group.answer.is_some_and(|at| at <= now)
        };
        let group = self.groups.iter_mut().find(is_due)?;
        if group.answer.take_if(|at| *at <= now).is_none() {
            group.reports -= 1;
            group.next = now + random.below(OLD_REPORT_AGAIN);
        }
        group.was_last = true;
        match group.joins {
            0 => Some(Report::Done(group.address)),
            _ => Some(Report::Member(version, group.address)),
        }
    }
}

impl Groups {
    pub(super) fn new(seed: u64) -> Groups {
        Groups {
            v4: Family::new(None),
            v6: Family::new(Some(Ipv6Addr::UNSPECIFIED.into())),
            random: Random::new(seed),
            stats: GroupsStats::default(),
        }
    }

    fn family(&mut self, group: IpAddr) -> &mut Family {
        match group {
            IpAddr::V4(_) => &mut self.v4,
            IpAddr::V6(_) => &mut self.v6,
        }
    }

    /// Replaces the random numbers.
    pub(super) fn reseed(&mut self, seed: u64) {
        self.random = Random::new(seed);
    }

    pub(super) fn stats(&self) -> GroupsStats {
        self.stats
    }

    /// Whether frames to this group are for the host.
    pub(super) fn contains(&self, group: IpAddr) -> bool {
        let family = if group.is_ipv4() { &self.v4 } else { &self.v6 };
        let mut groups = family.groups.iter();
        groups.any(|found| found.address == group && found.joins > 0)
    }

    /// Joins a group, once more if it is joined. Returns whether there was room.
    pub(super) fn join(&mut self, group: IpAddr, now: Instant) -> bool {
        let joined = group.is_multicast() && self.family(group).join(group, now);
        self.stats.refused += u64::from(!joined);
        joined
    }

    /// Takes back one join.
    pub(super) fn leave(&mut self, group: IpAddr, now: Instant) {
        self.family(group).leave(group, now);
    }

    /// The host's IPv4 address on the link.
    pub(super) fn set_ipv4(&mut self, address: Option<Ipv4Addr>, now: Instant) {
        self.v4.set_source(address.map(IpAddr::V4), now);
    }

    /// The host's link-local address, once it is known to be its alone.
    pub(super) fn set_ipv6(&mut self, address: Option<Ipv6Addr>, now: Instant) {
        let address = address.unwrap_or(Ipv6Addr::UNSPECIFIED);
        self.v6.set_source(Some(address.into()), now);
    }

    /// The link was away: all groups are reported again.
    pub(super) fn restart(&mut self, now: Instant) {
        self.v4.restart(now);
        self.v6.restart(now);
    }

    /// A packet with a message about groups ([`is_message`]), whose lengths were checked.
    pub(super) fn receive(&mut self, packet: &[u8], now: Instant) {
        let Some((from, received)) = parse(packet) else {
            self.stats.malformed += 1;
            return;
        };
        let (family, random) = match from {
            IpAddr::V4(_) => (&mut self.v4, &mut self.random),
            IpAddr::V6(_) => (&mut self.v6, &mut self.random),
        };
        family.advance(now);
        match received {
            Received::Query(query) => {
                self.stats.queries += 1;
                family.queried(query, random, now);
            }
            Received::Report(group) if family.source != Some(from) => {
                self.stats.ignored += 1;
                family.reported(group);
            }
            Received::Report(_) | Received::Other => self.stats.ignored += 1,
        }
    }

    /// When `poll` has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let all = [self.v4.deadline(), self.v6.deadline()];
        all.into_iter().flatten().min()
    }

    /// An IP packet that is due.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Vec<u8>> {
        let packet = self.v4.poll(&mut self.random, now);
        let packet = packet.or_else(|| self.v6.poll(&mut self.random, now))?;
        self.stats.sent += 1;
        Some(packet)
    }
}
