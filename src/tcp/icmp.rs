//! ICMP errors about connections: their meaning, and the segment that they quote.
//!
//! RFC 792 and 4443 for the formats, RFC 1122 4.2.3.9 and 5461 for hard and soft errors, RFC 1191 and
//! 8201 for packets that are too big. Any host can send one, so it counts only if it quotes a segment
//! in flight (RFC 5927 4.1): the control block ([`Tcb::handle_icmp`](super::block::tcb::Tcb)) checks
//! that and acts. Pure; no locks.

use super::wire::Tuple;
use crate::error::SoError;
use crate::ip::extension;
use crate::ip::header::icmp_checksum_holds;
use crate::ip::{self, IPV4_HEADER, IPV6_HEADER, PROTO_TCP, PROTO_UDP};
use crate::link::Frame;
use std::net::IpAddr;

/// Length of an error's own header: the quote follows it.
const HEADER: usize = 8;
/// Minimum length of the quoted transport header: ports and sequence number.
const QUOTE: usize = 8;

/// The kind of an ICMP error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IcmpErrorKind {
    /// A soft error: the path may work again.
    Soft,
    /// A hard error, which ends an attempt to connect.
    Hard(SoError),
    /// The packet is too big; this size fits. 0 if the router does not report a size.
    TooBig(usize),
}

/// An error that quotes a TCP segment or a datagram of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IcmpError {
    /// Of TCP or UDP.
    pub(crate) protocol: u8,
    pub(crate) tuple: Tuple,
    /// Sequence number of the quoted segment, as it was on the wire; of a datagram nothing.
    pub(crate) seq: u32,
    pub(crate) kind: IcmpErrorKind,
}

/// The error in an ICMP packet. `None` if it is not an error, or not about a TCP segment from its
/// receiver.
pub(crate) fn parse(frame: &Frame, ip_header_len: usize) -> Option<IcmpError> {
    let all = frame.to_vec();
    let v4 = all[0] >> 4 == 4;
    let end = if v4 {
        usize::from(ip::be16(&all, 2))
    } else {
        IPV6_HEADER + usize::from(ip::be16(&all, 4))
    };
    let icmp = all.get(ip_header_len..end)?;
    if icmp.len() < HEADER {
        return None;
    }
    let kind = if v4 {
        trouble_v4(icmp)
    } else {
        trouble_v6(icmp)
    }?;
    let (from, to) = ip::addresses(&all);
    if !frame.checksum.is_vouched_for() && !icmp_checksum_holds(from, to, icmp) {
        return None;
    }
    let (protocol, tuple, seq) = quoted(&icmp[HEADER..], v4)?;
    let error = IcmpError {
        protocol,
        tuple,
        seq,
        kind,
    };
    // The error goes to the source of the quoted packet.
    (tuple.local == to).then_some(error)
}

fn trouble_v4(icmp: &[u8]) -> Option<IcmpErrorKind> {
    Some(match (icmp[0], icmp[1]) {
        (3, 3) => IcmpErrorKind::Hard(SoError::ConnectionRefused),
        // Protocol; network, host, communication administratively prohibited.
        (3, 2 | 9 | 10 | 13) => IcmpErrorKind::Hard(SoError::HostUnreachable),
        (3, 4) => IcmpErrorKind::TooBig(usize::from(ip::be16(icmp, 6))),
        // Network, host, source route and the like; time exceeded in transit.
        (3, _) | (11, 0) => IcmpErrorKind::Soft,
        _ => return None,
    })
}

fn trouble_v6(icmp: &[u8]) -> Option<IcmpErrorKind> {
    Some(match (icmp[0], icmp[1]) {
        (1, 4) => IcmpErrorKind::Hard(SoError::ConnectionRefused),
        // Prohibited, refused by policy, route rejects; next header unknown to the peer.
        (1, 1 | 5 | 6) | (4, 1) => IcmpErrorKind::Hard(SoError::HostUnreachable),
        (2, _) => IcmpErrorKind::TooBig(usize::try_from(ip::be32(icmp, 4)).unwrap_or(usize::MAX)),
        // No route, beyond scope, address; time exceeded in transit.
        (1, _) | (3, 0) => IcmpErrorKind::Soft,
        _ => return None,
    })
}

/// An error of this kind about a packet of ours that was not sent.
pub(crate) fn about(packet: &Frame, kind: IcmpErrorKind) -> Option<IcmpError> {
    let v4 = packet.head.first()? >> 4 == 4;
    let (protocol, tuple, seq) = quoted(&packet.head, v4)?;
    Some(IcmpError {
        protocol,
        tuple,
        seq,
        kind,
    })
}

/// The protocol of a quoted packet, TCP or UDP, both ends, and, of TCP, the sequence number.
fn quoted(quote: &[u8], v4: bool) -> Option<(u8, Tuple, u32)> {
    let (least, version) = if v4 {
        (IPV4_HEADER, 4)
    } else {
        (IPV6_HEADER, 6)
    };
    if quote.len() < least || quote[0] >> 4 != version {
        return None;
    }
    // A later fragment has no transport header.
    let (protocol, header_len, later) = if v4 {
        let later = ip::be16(quote, 6) & 0x1fff != 0;
        (quote[9], usize::from(quote[0] & 0x0f) * 4, later)
    } else {
        let (last, later) = extension::last(quote);
        (last.kind, last.at, later)
    };
    if !matches!(protocol, PROTO_TCP | PROTO_UDP) || later || header_len < least {
        return None;
    }
    let tcp = quote.get(header_len..header_len + QUOTE)?;
    let (local, remote): (IpAddr, IpAddr) = ip::addresses(quote);
    let tuple = Tuple {
        local,
        remote,
        local_port: ip::be16(tcp, 0),
        remote_port: ip::be16(tcp, 2),
    };
    Some((protocol, tuple, ip::be32(tcp, 4)))
}
