//! Messages about groups: IGMP (RFC 1112, 2236, 3376) and MLD (RFC 2710, 3810), in IP packets with a router alert
//! option (RFC 2113, 2711).

use super::ip::{self, ICMPV6, IPV4_HEADER, IPV6_HEADER};
use crate::checksum::checksum;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

const IGMP: u8 = 2;
const HOP_BY_HOP: u8 = 0;
/// The option in IPv4.
const ROUTER_ALERT: [u8; 4] = [0x94, 4, 0, 0];
/// The header in IPv6, with the option for MLD, and padding of two bytes.
const ALERT_HEADER: [u8; 8] = [ICMPV6, 0, 5, 2, 0, 0, 1, 0];
/// Precedence of internetwork control (RFC 3376 4).
const TYPE_OF_SERVICE: u8 = 0xc0;

const IGMP_QUERY: u8 = 0x11;
const IGMP_V1_REPORT: u8 = 0x12;
const IGMP_V2_REPORT: u8 = 0x16;
const IGMP_LEAVE: u8 = 0x17;
const IGMP_V3_REPORT: u8 = 0x22;
const MLD_QUERY: u8 = 130;
const MLD_V1_REPORT: u8 = 131;
const MLD_DONE: u8 = 132;
const MLD_V2_REPORT: u8 = 143;

/// Kinds of records in a report (RFC 3376 4.2.12, 3810 5.2.12). All are of no sources.
pub(in crate::link::ethernet) const IS_EXCLUDE: u8 = 2;
pub(in crate::link::ethernet) const TO_INCLUDE: u8 = 3;
pub(in crate::link::ethernet) const TO_EXCLUDE: u8 = 4;

pub(in crate::link::ethernet) const ALL_HOSTS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
const ALL_ROUTERS_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 2);
const REPORTS_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 22);
const REPORTS_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

/// Versions of IGMP. MLD has two of them: MLDv1 is the same as IGMPv2, and MLDv2 as IGMPv3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::link::ethernet) enum Version {
    V1,
    V2,
    V3,
}

/// A router's question for members of a group, or of all groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::link::ethernet) struct Query {
    pub(in crate::link::ethernet) version: Version,
    pub(in crate::link::ethernet) group: Option<IpAddr>,
    pub(in crate::link::ethernet) max_response: Duration,
    /// The querier's robustness; 0 and in older versions: none.
    pub(in crate::link::ethernet) robustness: u8,
    /// Time between its queries; zero and in older versions: none.
    pub(in crate::link::ethernet) interval: Duration,
}

/// A received message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::link::ethernet) enum Received {
    Query(Query),
    /// Another host is a member. In version 3 hosts need not know.
    Report(IpAddr),
    /// For routers.
    Other,
}

/// A message to send.
#[derive(Debug, Clone, Copy)]
pub(in crate::link::ethernet) enum Report<'a> {
    /// Of version 1 or 2.
    Member(Version, IpAddr),
    /// Of version 2.
    Done(IpAddr),
    /// Of version 3: kinds and groups.
    Records(&'a [(u8, IpAddr)]),
}

/// Whether a packet whose lengths were checked has a message about groups.
pub(in crate::link::ethernet) fn is_message(packet: &[u8]) -> bool {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => packet.get(9) == Some(&IGMP),
        Some(6) => mld(packet).is_some_and(|message| {
            let kinds = [MLD_QUERY, MLD_V1_REPORT, MLD_DONE, MLD_V2_REPORT];
            message.first().is_some_and(|kind| kinds.contains(kind))
        }),
        _ => false,
    }
}

/// The ICMPv6 message behind a header with options.
fn mld(packet: &[u8]) -> Option<&[u8]> {
    let (header, rest) = packet.split_at_checked(IPV6_HEADER)?;
    let (options, message) = rest.split_at_checked(usize::from(*rest.get(1)?) * 8 + 8)?;
    (header[6] == HOP_BY_HOP && options[0] == ICMPV6).then_some(message)
}

/// Whether there is a router alert among the options of a header.
fn has_alert(mut options: &[u8]) -> bool {
    loop {
        match *options {
            [0, ref rest @ ..] => options = rest,
            [5, 2, _, _, ..] => return true,
            [_, len, ref rest @ ..] if usize::from(len) <= rest.len() => {
                options = &rest[len.into()..];
            }
            _ => return false,
        }
    }
}

/// A number in a code with a mantissa of `bits`, behind an exponent of 3 bits (RFC 3376 4.1.1, 3810 5.1.3).
fn decode(code: u16, bits: u32) -> u32 {
    let code = u32::from(code);
    match code >> (bits + 3) {
        0 => code,
        _ => (code & ((1 << bits) - 1) | 1 << bits) << ((code >> bits & 7) + 3),
    }
}

/// The source and the message of a packet whose lengths were checked.
pub(in crate::link::ethernet) fn parse(packet: &[u8]) -> Option<(IpAddr, Received)> {
    match packet.first()? >> 4 {
        4 => parse_igmp(packet),
        6 => parse_mld(packet),
        _ => None,
    }
}

fn address_v4(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

fn address_v6(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(octets.into())
}

fn parse_igmp(packet: &[u8]) -> Option<(IpAddr, Received)> {
    let (header, message) = packet.split_at_checked(usize::from(packet[0] & 15) * 4)?;
    let (from, to) = (address_v4(header, 12)?, address_v4(header, 16)?);
    let is_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    let is_whole = checksum(header) == [0, 0] && checksum(message) == [0, 0] && !is_fragment;
    if !is_whole || from.is_multicast() || from.is_broadcast() || message.len() < 8 {
        return None;
    }
    let group = address_v4(message, 4)?;
    let received = match message[0] {
        IGMP_QUERY => {
            let (version, code) = match (message.len(), message[1]) {
                (8, 0) => (Version::V1, 100),
                (8, code) => (Version::V2, code.into()),
                (12.., code) => (Version::V3, decode(code.into(), 4)),
                _ => return None,
            };
            let is_general = group.is_unspecified();
            let is_aimed = to == group || (is_general && to == ALL_HOSTS) || !to.is_multicast();
            if !is_aimed || !(is_general || group.is_multicast()) {
                return None;
            }
            Received::Query(Query {
                version,
                group: Some(group.into()).filter(|_| !is_general),
                max_response: Duration::from_millis(u64::from(code) * 100),
                robustness: message.get(8).map_or(0, |byte| byte & 7),
                interval: interval(message.get(9)),
            })
        }
        IGMP_V1_REPORT | IGMP_V2_REPORT if to == group && group.is_multicast() => {
            Received::Report(group.into())
        }
        _ => Received::Other,
    };
    Some((from.into(), received))
}

fn interval(code: Option<&u8>) -> Duration {
    let seconds = code.map_or(0, |code| decode(u16::from(*code), 4));
    Duration::from_secs(seconds.into())
}

/// RFC 3810 6.2: from a link-local address, with a hop limit of 1, and a router alert.
fn parse_mld(packet: &[u8]) -> Option<(IpAddr, Received)> {
    let message = mld(packet)?;
    let (from, to) = (address_v6(packet, 8)?, address_v6(packet, 24)?);
    let options = &packet[IPV6_HEADER + 2..packet.len() - message.len()];
    let holds = ip::transport_sum(&packet[8..40], ICMPV6, message) == [0, 0];
    if !holds || packet[7] != 1 || !from.is_unicast_link_local() || !has_alert(options) {
        return None;
    }
    let group = || address_v6(message, 8);
    let received = match *message.first()? {
        MLD_QUERY => {
            let code = u16::from_be_bytes([*message.get(4)?, *message.get(5)?]);
            let (version, millis) = match message.len() {
                24 => (Version::V2, code.into()),
                28.. => (Version::V3, decode(code, 12)),
                _ => return None,
            };
            let group = group()?;
            let is_general = group.is_unspecified();
            let is_aimed =
                to == group || (is_general && to == super::ndp::ALL_NODES) || !to.is_multicast();
            if !is_aimed || !(is_general || group.is_multicast()) {
                return None;
            }
            Received::Query(Query {
                version,
                group: Some(group.into()).filter(|_| !is_general),
                max_response: Duration::from_millis(millis.into()),
                robustness: message.get(24).map_or(0, |byte| byte & 7),
                interval: interval(message.get(25)),
            })
        }
        MLD_V1_REPORT if to == group()? && to.is_multicast() => Received::Report(to.into()),
        _ => Received::Other,
    };
    Some((from.into(), received))
}

/// The packet of a message, from an address of the same family as the groups in it.
pub(in crate::link::ethernet) fn emit(from: IpAddr, report: Report<'_>) -> Vec<u8> {
    match from {
        IpAddr::V4(from) => emit_igmp(from, report),
        IpAddr::V6(from) => emit_mld(from, report),
    }
}

fn push(message: &mut Vec<u8>, group: IpAddr) {
    match group {
        IpAddr::V4(group) => message.extend(group.octets()),
        IpAddr::V6(group) => message.extend(group.octets()),
    }
}

/// A message of version 3: kind of message, count and records.
fn records(kind: u8, records: &[(u8, IpAddr)]) -> Vec<u8> {
    let count = u16::try_from(records.len()).expect("invariant: there are few groups");
    let mut message = vec![kind, 0, 0, 0, 0, 0];
    message.extend(count.to_be_bytes());
    for (kind, group) in records {
        message.extend([*kind, 0, 0, 0]);
        push(&mut message, *group);
    }
    message
}

fn emit_igmp(from: Ipv4Addr, report: Report<'_>) -> Vec<u8> {
    let old = |kind: u8, group: IpAddr| {
        let mut message = vec![kind, 0, 0, 0];
        push(&mut message, group);
        message
    };
    let (to, mut message) = match report {
        Report::Member(Version::V1, group) => (group, old(IGMP_V1_REPORT, group)),
        Report::Member(_, group) => (group, old(IGMP_V2_REPORT, group)),
        Report::Done(group) => (ALL_ROUTERS_V4.into(), old(IGMP_LEAVE, group)),
        Report::Records(all) => (REPORTS_V4.into(), records(IGMP_V3_REPORT, all)),
    };
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    let mut packet = vec![0; IPV4_HEADER];
    let len = IPV4_HEADER + ROUTER_ALERT.len() + message.len();
    let len = u16::try_from(len).expect("invariant: there are few groups");
    packet[..2].copy_from_slice(&[0x46, TYPE_OF_SERVICE]);
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[8..10].copy_from_slice(&[1, IGMP]);
    packet[12..16].copy_from_slice(&from.octets());
    packet.truncate(16);
    push(&mut packet, to);
    packet.extend(ROUTER_ALERT);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    packet.extend(message);
    packet
}

fn emit_mld(from: Ipv6Addr, report: Report<'_>) -> Vec<u8> {
    let old = |kind: u8, group: IpAddr| {
        let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        push(&mut message, group);
        message
    };
    let (to, mut message) = match report {
        Report::Member(_, group) => (group, old(MLD_V1_REPORT, group)),
        Report::Done(group) => (super::ndp::ALL_ROUTERS.into(), old(MLD_DONE, group)),
        Report::Records(all) => (REPORTS_V6.into(), records(MLD_V2_REPORT, all)),
    };
    let len = u16::try_from(ALERT_HEADER.len() + message.len());
    let len = len.expect("invariant: there are few groups").to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, len[0], len[1], HOP_BY_HOP, 1];
    packet.extend(from.octets());
    push(&mut packet, to);
    let sum = ip::transport_sum(&packet[8..], ICMPV6, &message);
    message[2..4].copy_from_slice(&sum);
    packet.extend(ALERT_HEADER);
    packet.extend(message);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3376 4.1.1, 3810 5.1.3.
    #[test]
    fn codes_are_numbers_or_have_an_exponent() {
        let igmp = [0, 127, 128, 0x8f, 0xff].map(|code| decode(code, 4));
        assert_eq!(igmp, [0, 127, 128, 31 << 3, 31 << 10]);
        let mld = [0x7fff, 0x8000, 0x9001, 0xffff].map(|code| decode(code, 12));
        assert_eq!(mld, [0x7fff, 0x8000, 0x1001 << 4, 0x1fff << 10]);
    }

    #[test]
    fn a_router_alert_is_found_among_options() {
        assert!(has_alert(&[5, 2, 0, 0]) && has_alert(&[0, 1, 1, 0, 5, 2, 0, 0]));
        for options in [
            &[][..],
            &[1, 4, 5, 2, 0, 0],
            &[5],
            &[5, 2, 0],
            &[1, 9, 0, 5, 2, 0, 0],
        ] {
            assert!(!has_alert(options));
        }
    }
}
