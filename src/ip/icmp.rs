//! ICMP errors that this host sends: their format, the packets that may cause one, and the rate limit.
//!
//! RFC 792, 1122 3.2.2 and 1812 4.3.2; RFC 4443 2.4 and 3. A peer that can forge addresses could measure a shared
//! limit (CVE-2020-25705), so each error takes a random share of it. Pure; the limit is atomic.

use super::extension;
use super::header::{
    self, IPV4_HEADER, IPV6_HEADER, PROTO_ICMP, PROTO_ICMPV6, addresses, be16, is_endpoint,
};
use crate::link::Frame;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Length of an error's header; the quote follows.
const HEADER: usize = 8;
/// Largest error, which every host accepts (RFC 1812 4.3.2.3, RFC 4443 2.4 c).
const LARGEST_V4: usize = 576;
const LARGEST_V6: usize = 1280;

/// The kind of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "for datagram sockets and relays")]
pub(crate) enum Kind {
    /// No socket receives on the port.
    PortUnreachable,
    /// The protocol is unknown. IPv6 reports the offset of its number.
    ProtocolUnreachable { pointer: u32 },
    /// The destination does not answer.
    HostUnreachable,
    /// A rule forbids it.
    Prohibited,
    /// The hop limit was exceeded.
    HopLimit,
    /// The time for reassembly was exceeded (RFC 8200 4.5).
    Reassembly,
    /// An invalid field, or one that this host does not support.
    Parameter { code: u8, pointer: u32 },
    /// The packet is larger than this MTU and must not be fragmented.
    TooBig { mtu: u32 },
}

impl Kind {
    /// The error about a packet of an unknown protocol; none if its last header says "no next header" (RFC 8200
    /// 4.7).
    pub(crate) fn unknown_protocol(packet: &[u8]) -> Option<Kind> {
        if packet[0] >> 4 == 4 {
            return Some(Kind::ProtocolUnreachable { pointer: 9 });
        }
        let (last, _) = extension::last(packet);
        let pointer = u32::try_from(last.kind_at).unwrap_or(u32::MAX);
        (last.kind != extension::NO_NEXT_HEADER).then_some(Kind::ProtocolUnreachable { pointer })
    }

    /// Type, code, and the second word of the header.
    fn v4(self) -> (u8, u8, u32) {
        match self {
            Kind::PortUnreachable => (3, 3, 0),
            Kind::ProtocolUnreachable { .. } => (3, 2, 0),
            Kind::HostUnreachable => (3, 1, 0),
            Kind::Prohibited => (3, 13, 0),
            Kind::HopLimit => (11, 0, 0),
            Kind::Reassembly => (11, 1, 0),
            Kind::Parameter { pointer, .. } => (12, 0, pointer << 24),
            Kind::TooBig { mtu } => (3, 4, mtu & 0xffff),
        }
    }

    fn v6(self) -> (u8, u8, u32) {
        match self {
            Kind::PortUnreachable => (1, 4, 0),
            Kind::ProtocolUnreachable { pointer } => (4, extension::UNKNOWN_NEXT_HEADER, pointer),
            Kind::HostUnreachable => (1, 3, 0),
            Kind::Prohibited => (1, 1, 0),
            Kind::HopLimit => (3, 0, 0),
            Kind::Reassembly => (3, 1, 0),
            Kind::Parameter { code, pointer } => (4, code, pointer),
            Kind::TooBig { mtu } => (2, 0, mtu),
        }
    }

    /// Whether it is also sent about packets to multicast addresses (RFC 4443 2.4 e.3).
    fn is_for_many(self) -> bool {
        matches!(
            self,
            Kind::TooBig { .. }
                | Kind::Parameter {
                    code: extension::UNKNOWN_OPTION,
                    ..
                }
        )
    }
}

/// Whether an error may be sent about a packet: not about another error, and not if source or destination are
/// not a single host's (RFC 1122 3.2.2, RFC 4443 2.4 e). The caller checks the broadcast addresses of networks.
pub(crate) fn may_answer(kind: Kind, about: &Frame) -> bool {
    let head = &about.head;
    let (source, destination) = addresses(head);
    let to_many = match destination {
        IpAddr::V4(address) => address.is_multicast() || address == Ipv4Addr::BROADCAST,
        IpAddr::V6(address) => address.is_multicast() && !kind.is_for_many(),
    };
    !to_many && is_endpoint(source) && !is_error(kind, head)
}

/// Whether a packet is an ICMP error, or a later fragment, which may be part of one.
fn is_error(kind: Kind, packet: &[u8]) -> bool {
    if packet[0] >> 4 == 4 {
        let header_len = usize::from(packet[0] & 0x0f) * 4;
        let later = be16(packet, 6) & 0x1fff != 0;
        // A packet without a type may be an error.
        let query = |kind: &u8| matches!(kind, 0 | 8 | 13..=18);
        let icmp = packet[9] == PROTO_ICMP;
        return later || icmp && !packet.get(header_len).is_some_and(query);
    }
    let (last, later) = extension::last(packet);
    // Invalid fragments are reported at any offset (RFC 8200 4.5).
    let later = later && !matches!(kind, Kind::Parameter { .. });
    let query = |kind: &u8| *kind >= 128 && *kind != 137;
    later || last.kind == PROTO_ICMPV6 && !packet.get(last.at).is_some_and(query)
}

/// An error about a packet, to its source.
pub(crate) fn compose(kind: Kind, from: IpAddr, about: &Frame) -> Vec<u8> {
    let to = addresses(&about.head).0;
    let (ip_header_len, largest, len, protocol) = match to {
        IpAddr::V4(_) => {
            let len = usize::from(be16(&about.head, 2));
            (IPV4_HEADER, LARGEST_V4, len, PROTO_ICMP)
        }
        IpAddr::V6(_) => {
            let len = IPV6_HEADER + usize::from(be16(&about.head, 4));
            (IPV6_HEADER, LARGEST_V6, len, PROTO_ICMPV6)
        }
    };
    let mut quote = len.min(about.len()).min(largest - ip_header_len - HEADER);
    let mut packet = vec![0; ip_header_len + HEADER];
    packet.reserve_exact(quote);
    for part in std::iter::once(&about.head).chain(&about.rest) {
        let count = part.len().min(quote);
        packet.extend_from_slice(&part[..count]);
        quote -= count;
    }
    let icmp_len = packet.len() - ip_header_len;
    header::write(&mut packet, (from, to), protocol, icmp_len);
    let (number, code, word) = if to.is_ipv4() { kind.v4() } else { kind.v6() };
    let icmp = &mut packet[ip_header_len..];
    icmp[..2].copy_from_slice(&[number, code]);
    icmp[4..8].copy_from_slice(&word.to_be_bytes());
    let sum = header::icmp_checksum(from, to, icmp);
    icmp[2..4].copy_from_slice(&sum);
    if to.is_ipv4() {
        let sum = header::ipv4_checksum(&packet);
        packet[10..12].copy_from_slice(&sum);
    }
    packet
}

/// The rate limit: Linux's `icmp_msgs_per_sec` and `icmp_msgs_burst`.
const PER_SECOND: u64 = 1000;
const BURST: u64 = 50;
const NANOS_EACH: u64 = 1_000_000_000 / PER_SECOND;

/// A token bucket for errors (RFC 4443 2.4 f).
#[derive(Debug, Default)]
pub(crate) struct Allowance {
    /// When the bucket is full again, in nanoseconds since the epoch.
    paid: AtomicU64,
}

impl Allowance {
    /// Takes zero, one or two tokens for an error, depending on an unpredictable number. `false`: there are none.
    pub(crate) fn take(&self, since_epoch: Duration, random: u64) -> bool {
        let now = u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX);
        let price = random % 3 * NANOS_EACH;
        let pay = |paid: u64| {
            let from = paid.max(now);
            (from - now <= (BURST - 1) * NANOS_EACH).then(|| from.saturating_add(price))
        };
        let relaxed = Ordering::Relaxed;
        self.paid.fetch_update(relaxed, relaxed, pay).is_ok()
    }
}
