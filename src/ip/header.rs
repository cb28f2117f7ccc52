//! The IP header: its fields, how it is written, and the checksums that depend on it.
//!
//! RFC 791, 8200. Pure.

use crate::checksum::Checksum;
use crate::checksum::checksum;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const IPV4_HEADER: usize = 20;
pub(crate) const IPV6_HEADER: usize = 40;

pub(crate) const PROTO_ICMP: u8 = 1;
pub(crate) const PROTO_TCP: u8 = 6;
pub(crate) const PROTO_UDP: u8 = 17;
pub(crate) const PROTO_ICMPV6: u8 = 58;

/// Hop limit of what is sent, unless another is set (RFC 1700).
pub(crate) const HOP_LIMIT: u8 = 64;
/// The bits of the traffic class that routers mark: congestion experienced, if both are set (RFC 3168 5).
pub(crate) const CE: u8 = 0b11;
/// What a length field of IP can say.
pub(crate) const MAX_LENGTH: usize = 65_535;

/// 0, if the field cannot say it.
pub(crate) fn length_field(len: usize) -> [u8; 2] {
    u16::try_from(len).unwrap_or(0).to_be_bytes()
}

/// Why a frame was dropped by a parser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Malformed {
    /// Too short, lengths that disagree, a version that is neither 4 nor 6.
    Header,
    /// Not dropped: a fragment, see [`part`](super::packet::part).
    Fragment,
    /// An unknown protocol, or an unknown IPv6 option whose kind requires that the packet is dropped silently.
    Protocol,
    /// An IPv6 extension header that this host refuses with a parameter problem (RFC 8200 4, RFC 4443 3.4).
    Parameter { code: u8, pointer: u32 },
    /// A wrong checksum.
    Checksum,
    /// A source or destination that no TCP connection has, or a route that the source chose.
    Address,
}

/// The place of a fragment in its packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) identification: u32,
    /// Offset of its payload in the payload of the packet.
    pub(crate) offset: usize,
    /// More fragments follow.
    pub(crate) more: bool,
    /// Length of the headers that are repeated in each fragment.
    pub(crate) unfragmentable_len: usize,
    /// Protocol or next header of the packet's payload, and the offset of the field with that value.
    pub(crate) next_header: u8,
    pub(crate) next_header_at: usize,
}

/// Whether a host may have the address on a network. TCP never talks to or from others: "this network"
/// (0/8), loopback, multicast, reserved (240/4, with the broadcast address), and IPv4 addresses in the
/// form of IPv6 (RFC 1122 3.2.1.3 and 4.2.3.10, RFC 1812 5.3.7, RFC 4291 2.5, RFC 6890).
pub(crate) fn is_endpoint(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !matches!(address.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(address) => {
            let odd = address.is_unspecified() || address.is_loopback() || address.is_multicast();
            !odd && address.to_ipv4_mapped().is_none()
        }
    }
}

/// The key of a peer: an IPv4 address, or a /64 of IPv6, in which a host can have any number of
/// addresses (RFC 4291 2.5.4, 8981).
pub(crate) fn peer_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let network = address.to_bits() >> 64 << 64;
            Ipv6Addr::from_bits(network).into()
        }
    }
}

/// Whether the checksum of an ICMP message is right.
pub(crate) fn icmp_checksum_holds(source: IpAddr, destination: IpAddr, icmp: &[u8]) -> bool {
    icmp_checksum(source, destination, icmp) == [0, 0]
}

pub(crate) fn icmp_checksum(source: IpAddr, destination: IpAddr, icmp: &[u8]) -> [u8; 2] {
    let mut sum = icmp_sum(source, destination, icmp.len());
    sum.add_bytes(icmp);
    sum.checksum()
}

/// The initial sum for an ICMP message of this length: ICMPv6 has a pseudo-header, ICMP has none.
pub(crate) fn icmp_sum(source: IpAddr, destination: IpAddr, len: usize) -> Checksum {
    match source {
        IpAddr::V4(_) => Checksum::new(),
        IpAddr::V6(_) => pseudo_header(source, destination, PROTO_ICMPV6, len),
    }
}

/// Source and destination of an IP packet whose header is whole.
pub(crate) fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    if packet[0] >> 4 == 4 {
        (
            IpAddr::V4(Ipv4Addr::from(array::<4>(packet, 12))),
            IpAddr::V4(Ipv4Addr::from(array::<4>(packet, 16))),
        )
    } else {
        (
            IpAddr::V6(Ipv6Addr::from(array::<16>(packet, 8))),
            IpAddr::V6(Ipv6Addr::from(array::<16>(packet, 24))),
        )
    }
}

/// The sum that a transport checksum begins with.
pub(crate) fn pseudo_header(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    len: usize,
) -> Checksum {
    let mut all = [0; 40];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            all[..4].copy_from_slice(&source.octets());
            all[4..8].copy_from_slice(&destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            all[..16].copy_from_slice(&source.octets());
            all[16..32].copy_from_slice(&destination.octets());
        }
        _ => unreachable!("invariant: both ends of a packet are of one family"),
    }
    let len = u32::try_from(len).expect("invariant: a segment is at most 64 KiB");
    all[32..36].copy_from_slice(&len.to_be_bytes());
    all[39] = protocol;
    let mut sum = Checksum::new();
    sum.add_bytes(&all);
    sum
}

/// The checksum of an IPv4 header.
pub(crate) fn ipv4_checksum_of(header: &[u8]) -> [u8; 2] {
    checksum(header)
}

/// The checksum of an IPv4 header without options.
pub(crate) fn ipv4_checksum(header: &[u8]) -> [u8; 2] {
    checksum(&header[..IPV4_HEADER])
}

/// Options, TCP's or IPv4's, by kind, with what is behind their length: until the end, or until one whose
/// length makes no sense.
pub(crate) fn options(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        while let [1, rest @ ..] = bytes {
            bytes = rest;
        }
        let [kind, len, ..] = *bytes else {
            return None;
        };
        if kind == 0 {
            return None;
        }
        let (option, rest) = bytes.split_at_checked(len.into())?;
        bytes = rest;
        Some((kind, option.get(2..)?))
    })
}

/// Writes the header of a packet of this protocol with `len` bytes behind it, its checksum zero. Returns
/// its length.
pub(crate) fn write(
    out: &mut [u8],
    (source, destination): (IpAddr, IpAddr),
    protocol: u8,
    len: usize,
) -> usize {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            out[..IPV4_HEADER].fill(0);
            out[0] = 0x45;
            out[2..4].copy_from_slice(&length_field(IPV4_HEADER + len));
            out[6] = 0x40; // don't fragment
            out[8] = HOP_LIMIT;
            out[9] = protocol;
            out[12..16].copy_from_slice(&source.octets());
            out[16..20].copy_from_slice(&destination.octets());
            IPV4_HEADER
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            out[..IPV6_HEADER].fill(0);
            out[0] = 0x60;
            out[4..6].copy_from_slice(&length_field(len));
            out[6] = protocol;
            out[7] = HOP_LIMIT;
            out[8..24].copy_from_slice(&source.octets());
            out[24..40].copy_from_slice(&destination.octets());
            IPV6_HEADER
        }
        _ => unreachable!("invariant: both ends of a packet are of one family"),
    }
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
