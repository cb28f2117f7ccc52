//! Frames to segments, and canonical headers.
//!
//! A frame is parsed once, here. Only complete, well-formed TCP segments for a unicast address reach a
//! connection. Other frames are ICMP packets, or are dropped and counted by reason. RFC 791, 8200,
//! 9293, 7323, 2018.

use super::block::segment as block;
use crate::buf::Gather;
pub(crate) use crate::ip::Tuple;
use crate::ip::header::{
    CE, PROTO_ICMP, PROTO_ICMPV6, be16, be32, ipv4_checksum, length_field, options, pseudo_header,
};
use crate::ip::{
    self, IPV4_HEADER, IPV6_HEADER, MAX_LENGTH, Malformed, PROTO_TCP, PROTO_UDP, is_endpoint,
};
use crate::link::{self, Frame};
use smallvec::SmallVec;
use std::net::IpAddr;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
#[cfg(test)]
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;

pub(crate) const TCP_HEADER: usize = 20;
const ICMP_HEADER: usize = 8;
/// Offset of the checksum in the TCP header.
const TCP_CHECKSUM: usize = 16;

/// CE and ECT(0), the lowest bits of the traffic class (RFC 3168 5).
const ECT_0: u8 = 0b10;

/// Largest shift of the window scale option (RFC 7323 2.3).
const MAX_SHIFT: u8 = 14;

/// The options of a SYN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SynOptions {
    pub(crate) mss: Option<u16>,
    pub(crate) window_scale: Option<u8>,
    pub(crate) sack_permitted: bool,
}

/// The fields of a TCP header that are used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) options: SynOptions,
}

impl Header {
    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A received segment.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) tuple: Tuple,
    pub(crate) header: Header,
    pub(crate) payload: Gather,
    pub(crate) payload_len: usize,
    /// Blocks of a SACK option (RFC 2018), present in few segments.
    pub(crate) sack: Option<Box<[(u32, u32)]>>,
    /// It was sent by the stack to itself, and did not arrive on a link.
    pub(crate) looped: bool,
    /// A router has marked it: CE (RFC 3168 5).
    pub(crate) marked: bool,
    /// TSval and TSecr (RFC 7323 3.2).
    pub(crate) timestamps: Option<(u32, u32)>,
}

impl Segment {
    /// Without its payload, for the control block.
    pub(crate) fn bare(&self) -> block::Segment {
        let header = &self.header;
        block::Segment {
            seq: header.seq,
            ack: header.ack,
            flags: header.flags,
            window: header.window,
            options: block::SegmentOptions {
                mss: header.options.mss,
                window_scale: header.options.window_scale,
                sack_permitted: header.options.sack_permitted,
                timestamps: self
                    .timestamps
                    .map(|(value, echo)| block::Timestamps { value, echo }),
                sack: self
                    .sack
                    .as_deref()
                    .map(SmallVec::from_slice)
                    .unwrap_or_default(),
            },
            len: self.payload_len,
            marked: self.marked,
        }
    }
}

/// A parsed frame.
#[derive(Debug)]
pub(crate) enum Parsed {
    Tcp(Segment),
    /// An ICMP packet.
    Icmp {
        ip_header_len: usize,
        frame: Frame,
    },
    /// A UDP datagram.
    Udp(Frame, ip::Packet),
    /// A fragment of a packet.
    Fragment(Frame),
    /// A whole packet of another protocol, or one with an error that is reported to its sender (ICMP).
    Foreign(Frame, Malformed),
    Dropped(Malformed),
}

pub(crate) fn parse(mut frame: Frame) -> Parsed {
    let ip = match ip::parse(&mut frame) {
        Ok(ip) => ip,
        Err(Malformed::Fragment) => return Parsed::Fragment(frame),
        Err(why @ Malformed::Parameter { .. }) => return Parsed::Foreign(frame, why),
        Err(why) => return Parsed::Dropped(why),
    };
    match (ip.protocol, ip.source.is_ipv4()) {
        (PROTO_TCP, _) => match parse_tcp(frame, &ip) {
            Ok(segment) => Parsed::Tcp(segment),
            Err(why) => Parsed::Dropped(why),
        },
        (PROTO_ICMP, true) | (PROTO_ICMPV6, false) => {
            frame.pull_up(ip.header_len + ICMP_HEADER);
            Parsed::Icmp {
                ip_header_len: ip.header_len,
                frame,
            }
        }
        (PROTO_UDP, _) => Parsed::Udp(frame, ip),
        _ => Parsed::Foreign(frame, Malformed::Protocol),
    }
}

fn parse_tcp(frame: Frame, ip: &ip::Packet) -> Result<Segment, Malformed> {
    let head: &[u8] = frame.head.get(ip.header_len..).unwrap_or_default();
    if head.len() < TCP_HEADER {
        return Err(Malformed::Header);
    }
    let header_len = usize::from(head[12] >> 4) * 4;
    let segment_len = ip.total_len - ip.header_len;
    if header_len < TCP_HEADER || header_len > head.len() || header_len > segment_len {
        return Err(Malformed::Header);
    }
    if !is_endpoint(ip.source) || !is_endpoint(ip.destination) {
        return Err(Malformed::Address);
    }
    let tuple = Tuple {
        local: ip.destination,
        remote: ip.source,
        local_port: be16(head, 2),
        remote_port: be16(head, 0),
    };
    if tuple.local_port == 0 || tuple.remote_port == 0 {
        return Err(Malformed::Address);
    }
    if !frame.checksum.is_vouched_for() && !checksum_holds(&frame, ip) {
        return Err(Malformed::Checksum);
    }
    let flags = head[13];
    let options = match flags & SYN {
        0 => SynOptions::default(),
        _ => syn_options(&head[TCP_HEADER..header_len]),
    };
    let header = Header {
        seq: be32(head, 4),
        ack: be32(head, 8),
        flags,
        window: be16(head, 14),
        options,
    };
    let sack = (flags & SYN == 0)
        .then(|| sack_blocks(&head[TCP_HEADER..header_len]))
        .flatten();
    let timestamps = timestamps(&head[TCP_HEADER..header_len]);
    let payload_len = segment_len - header_len;
    let payload = ip::packet::into_payload(frame, ip.header_len + header_len, payload_len);
    Ok(Segment {
        tuple,
        header,
        payload,
        payload_len,
        sack,
        looped: false,
        marked: ip.ecn == CE,
        timestamps,
    })
}

fn checksum_holds(frame: &Frame, ip: &ip::Packet) -> bool {
    let len = ip.total_len - ip.header_len;
    let mut sum = pseudo_header(ip.source, ip.destination, PROTO_TCP, len);
    ip::packet::sum_payload(frame, ip.header_len, ip.total_len, &mut sum);
    sum.checksum() == [0, 0]
}

/// Verifies the checksum; ICMPv6 includes a pseudo-header, ICMP does not.
pub(crate) fn shift_for(capacity: usize) -> u8 {
    let bits = usize::BITS - capacity.leading_zeros();
    u8::try_from(bits.saturating_sub(16)).unwrap_or(u8::MAX)
}

fn syn_options(bytes: &[u8]) -> SynOptions {
    let mut found = SynOptions::default();
    for option in options(bytes) {
        match option {
            (2, [high, low]) => found.mss = Some(u16::from_be_bytes([*high, *low])),
            (3, [shift]) => found.window_scale = Some((*shift).min(MAX_SHIFT)),
            (4, []) => found.sack_permitted = true,
            _ => {}
        }
    }
    found
}

fn sack_blocks(bytes: &[u8]) -> Option<Box<[(u32, u32)]>> {
    let (_, blocks) = options(bytes).find(|(kind, _)| *kind == 5)?;
    let blocks = blocks.chunks_exact(8);
    Some(
        blocks
            .map(|block| (be32(block, 0), be32(block, 4)))
            .collect(),
    )
}

fn timestamps(bytes: &[u8]) -> Option<(u32, u32)> {
    let option = match bytes {
        // The usual layout (RFC 7323 appendix A).
        [1, 1, 8, 10, option @ ..] if option.len() >= 8 => option,
        _ => {
            options(bytes)
                .find(|(kind, option)| *kind == 8 && option.len() == 8)?
                .1
        }
    };
    Some((be32(option, 0), be32(option, 4)))
}

/// Longest header that [`compose`] writes, with [timestamps](add_timestamps).
pub(crate) const MAX_CANONICAL: usize = IPV6_HEADER + TCP_HEADER + 12 + 12;

/// Writes an IP and a TCP header for a segment from `from` to `to` that carries `payload_len`
/// bytes, with checksum fields zero. Returns the headers' length.
pub(crate) fn compose(
    out: &mut [u8; MAX_CANONICAL],
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    header: &Header,
    payload_len: usize,
) -> usize {
    let mut options = [0u8; 12];
    let options_len = if header.has(SYN) {
        write_options(&mut options, &header.options)
    } else {
        0
    };
    let tcp_len = TCP_HEADER + options_len;
    let ip_len = ip::header::write(out, (from.0, to.0), PROTO_TCP, tcp_len + payload_len);
    let tcp = &mut out[ip_len..ip_len + tcp_len];
    tcp[0..2].copy_from_slice(&from.1.to_be_bytes());
    tcp[2..4].copy_from_slice(&to.1.to_be_bytes());
    tcp[4..8].copy_from_slice(&header.seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&header.ack.to_be_bytes());
    let words = u8::try_from(tcp_len / 4).expect("invariant: at most 32 bytes");
    tcp[12] = words << 4;
    tcp[13] = header.flags;
    tcp[14..16].copy_from_slice(&header.window.to_be_bytes());
    tcp[16..20].fill(0);
    tcp[TCP_HEADER..].copy_from_slice(&options[..options_len]);
    ip_len + tcp_len
}

/// Adds timestamps (RFC 7323 appendix A) to headers of this length that [`compose`] wrote for a segment
/// without payload. Returns the new length.
pub(crate) fn add_timestamps(
    out: &mut [u8; MAX_CANONICAL],
    (at, ip_header_len): (usize, usize),
    (value, echo): (u32, u32),
) -> usize {
    out[at..at + 4].copy_from_slice(&[1, 1, 8, 10]);
    out[at + 4..at + 8].copy_from_slice(&value.to_be_bytes());
    out[at + 8..at + 12].copy_from_slice(&echo.to_be_bytes());
    out[ip_header_len + 12] += 3 << 4;
    let (field, fixed) = match ip_header_len {
        IPV4_HEADER => (2, 0),
        _ => (4, IPV6_HEADER),
    };
    out[field..field + 2].copy_from_slice(&length_field(at + 12 - fixed));
    at + 12
}

fn write_options(out: &mut [u8; 12], options: &SynOptions) -> usize {
    let mut len = 0;
    let mut put = |bytes: &[u8]| {
        out[len..len + bytes.len()].copy_from_slice(bytes);
        len += bytes.len();
    };
    if let Some(mss) = options.mss {
        let [high, low] = mss.to_be_bytes();
        put(&[2, 4, high, low]);
    }
    if let Some(shift) = options.window_scale {
        put(&[1, 3, 3, shift]);
    }
    if options.sack_permitted {
        put(&[1, 1, 4, 2]);
    }
    len
}

/// Routers may mark the packet with this header (RFC 3168 5).
pub(crate) fn set_ect(header: &mut [u8]) {
    header[1] |= match header[0] >> 4 {
        4 => ECT_0,
        _ => ECT_0 << 4,
    };
}

/// IPv6 with a jumbo payload option, TCP, and all options that fit.
pub(crate) const MAX_HEADER: usize = LONGEST_IPV6_HEADER + 60;
/// IPv6 with a jumbo payload option.
pub(crate) const LONGEST_IPV6_HEADER: usize = IPV6_HEADER + JUMBO;
/// Length of a hop-by-hop header with the jumbo payload option.
const JUMBO: usize = 8;
/// Length of the IP header in front, if it has no options.
pub(crate) fn ip_header_of(header: &[u8]) -> usize {
    match header[0] >> 4 {
        4 => IPV4_HEADER,
        _ => IPV6_HEADER,
    }
}

/// Writes the payload length into headers without IP options. A length that does not fit is a total
/// length of 0 in IPv4, as in the kernel's own super-frames, and a jumbo payload option (RFC 2675) in
/// IPv6. Returns the length of the IP header.
pub(crate) fn set_length(header: &mut SmallVec<[u8; MAX_HEADER]>, payload: usize) -> usize {
    let total = header.len() + payload;
    if ip_header_of(header) == IPV4_HEADER {
        header[2..4].copy_from_slice(&length_field(total));
        return IPV4_HEADER;
    }
    let len = total - IPV6_HEADER;
    header[4..6].copy_from_slice(&length_field(len));
    if len <= MAX_LENGTH {
        return IPV6_HEADER;
    }
    let mut option = [PROTO_TCP, 0, 0xc2, 4, 0, 0, 0, 0];
    let len = u32::try_from(len + JUMBO).unwrap_or(u32::MAX);
    option[4..].copy_from_slice(&len.to_be_bytes());
    header[6] = 0; // hop by hop
    header.insert_from_slice(IPV6_HEADER, &option);
    IPV6_HEADER + JUMBO
}

/// Fills in the checksums of an outgoing packet: always the IPv4 header's; TCP's in full or, for a link
/// with checksum offload, only the sum of the pseudo-header.
pub(crate) fn finish<'a>(
    header: &mut [u8],
    ip_header_len: usize,
    payload: impl Iterator<Item = &'a [u8]> + Clone,
    partial: bool,
) -> link::Checksum {
    if ip_header_len == IPV4_HEADER {
        header[10..12].fill(0);
        let sum = ipv4_checksum(header);
        header[10..12].copy_from_slice(&sum);
    }
    let (source, destination) = ip::addresses(header);
    let len = header.len() - ip_header_len + payload.clone().map(<[u8]>::len).sum::<usize>();
    let mut sum = pseudo_header(source, destination, PROTO_TCP, len);
    let tcp = &mut header[ip_header_len..];
    tcp[TCP_CHECKSUM..TCP_CHECKSUM + 2].fill(0);
    let field = if partial {
        // The link sums from here on, so the field holds the sum itself, not its complement.
        sum.checksum().map(|byte| !byte)
    } else {
        sum.add_bytes(tcp);
        payload.for_each(|part| sum.add_bytes(part));
        sum.checksum()
    };
    tcp[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&field);
    match u16::try_from(ip_header_len) {
        Ok(start) if partial => link::Checksum::partial_tcp(start),
        _ => link::Checksum::Complete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::Buf;
    use crate::cases::cases;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn checksum(vouched: bool) -> link::Checksum {
        match vouched {
            true => link::Checksum::Verified,
            false => link::Checksum::Complete,
        }
    }

    fn frame(bytes: &[u8], vouched: bool) -> Frame {
        Frame {
            checksum: checksum(vouched),
            ..Frame::new(bytes)
        }
    }

    fn ends(v6: bool) -> ((IpAddr, u16), (IpAddr, u16)) {
        match v6 {
            false => (
                (Ipv4Addr::new(10, 0, 0, 1).into(), 5),
                (Ipv4Addr::new(10, 0, 0, 2).into(), 6),
            ),
            true => (
                (Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).into(), 5),
                (Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).into(), 6),
            ),
        }
    }

    fn packet(v6: bool, header: &Header, payload: &[u8]) -> Vec<u8> {
        let (from, to) = ends(v6);
        let mut out = [0; MAX_CANONICAL];
        let len = compose(&mut out, from, to, header, payload.len());
        let ip = if v6 { IPV6_HEADER } else { IPV4_HEADER };
        finish(&mut out[..len], ip, std::iter::once(payload), false);
        [&out[..len], payload].concat()
    }

    fn header() -> impl Strategy<Value = Header> {
        (
            any::<u32>(),
            any::<u32>(),
            any::<u8>(),
            any::<u16>(),
            any::<(Option<u16>, bool)>(),
            0u8..20,
        )
            .prop_map(|(seq, ack, flags, window, (mss, sack_permitted), shift)| {
                let window_scale = (shift < 15).then_some(shift);
                let options = SynOptions {
                    mss,
                    window_scale,
                    sack_permitted,
                };
                let options = if flags & SYN == 0 {
                    SynOptions::default()
                } else {
                    options
                };
                Header {
                    seq,
                    ack,
                    flags,
                    window,
                    options,
                }
            })
    }

    proptest! {
        #![proptest_config(cases(1_000, 10_000))]

        #[test]
        fn composed_headers_parse_back(
            v6: bool, header in header(), payload in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let packet = packet(v6, &header, &payload);
            let Parsed::Tcp(segment) = parse(frame(&packet, false)) else {
                panic!("a valid segment was refused");
            };
            prop_assert_eq!(segment.header, header);
            prop_assert_eq!(segment.payload_len, payload.len());
            let got: Vec<u8> = segment.payload.iter().flat_map(|buf| buf.to_vec()).collect();
            prop_assert_eq!(got, payload);
        }

        #[test]
        fn a_flipped_bit_is_noticed(header in header(), at in 0usize..400, bit in 0u8..8) {
            let mut packet = packet(false, &header, &[0x5a; 10]);
            let at = at % packet.len();
            packet[at] ^= 1 << bit;
            // One flipped bit is always caught by the checksums or the lengths.
            prop_assert!(matches!(parse(frame(&packet, false)), Parsed::Dropped(_) | Parsed::Foreign(..)));
        }

        #[test]
        fn any_bytes_are_survived(
            bytes in proptest::collection::vec(any::<u8>(), 0..120), version in 0u8..3,
            cut in 0usize..120, vouched: bool,
        ) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = match version { 0 => *first, 1 => 0x45, _ => 0x60 };
            }
            let cut = cut.min(bytes.len());
            let rest = Gather::from_iter([Buf::copy_of(&bytes[cut..])]);
            let frame = Frame { rest, ..frame(&bytes[..cut], vouched) };
            drop(parse(frame));
        }
    }

    /// RFC 3168 5: the bits in the headers of both families.
    #[test]
    fn a_mark_is_seen_where_a_router_sets_it() {
        let header = Header {
            seq: 1,
            ack: 2,
            flags: ACK,
            window: 3,
            options: SynOptions::default(),
        };
        for (v6, shift) in [(false, 0), (true, 4)] {
            let plain = packet(v6, &header, b"x");
            assert_eq!(plain[1], 0);
            let mut markable = plain.clone();
            set_ect(&mut markable);
            assert_eq!(markable[1], 0b10 << shift, "ECT(0)");
            for codepoint in 0..4 {
                let mut bytes = plain.clone();
                bytes[1] = codepoint << shift;
                let Parsed::Tcp(segment) = parse(frame(&bytes, true)) else {
                    panic!("a valid segment was refused");
                };
                assert_eq!(segment.marked, codepoint == 0b11, "{codepoint:b}");
            }
        }
    }

    fn patch(good: &[u8], at: usize, value: u8) -> Vec<u8> {
        let mut bytes = good.to_vec();
        bytes[at] = value;
        bytes
    }

    #[test]
    fn fragments_other_protocols_and_odd_addresses_are_no_segments() {
        let header = Header {
            seq: 1,
            ack: 2,
            flags: ACK,
            window: 3,
            options: SynOptions::default(),
        };
        let why = |bytes: &[u8]| match parse(frame(bytes, true)) {
            Parsed::Dropped(why) | Parsed::Foreign(_, why) => Some(why),
            _ => None,
        };
        let good = packet(false, &header, b"x");
        assert_eq!(why(&good), None);
        let patched = |at, value| patch(&good, at, value);
        let is_fragment = |bytes: &[u8]| matches!(parse(frame(bytes, true)), Parsed::Fragment(..));
        assert!(is_fragment(&patched(6, 0x20)), "more fragments");
        assert!(is_fragment(&patched(7, 1)), "an offset");
        assert_eq!(why(&patched(9, 47)), Some(Malformed::Protocol), "GRE");
        assert_eq!(
            why(&patched(12, 224)),
            Some(Malformed::Address),
            "from multicast"
        );
        assert_eq!(
            why(&patched(0, 0x44)),
            Some(Malformed::Header),
            "header of 16 bytes"
        );
        assert_eq!(
            why(&patched(3, 255)),
            Some(Malformed::Header),
            "longer than the frame"
        );
        assert_eq!(
            why(&patched(32, 0x40)),
            Some(Malformed::Header),
            "TCP header of 16 bytes"
        );
        let good = packet(true, &header, b"x");
        assert_eq!(why(&good), None);
        let patched = |at, value| patch(&good, at, value);
        assert_eq!(why(&patched(6, 47)), Some(Malformed::Protocol), "GRE");
        assert_eq!(
            why(&patched(6, 0)),
            Some(Malformed::Header),
            "options that are cut off"
        );
    }

    #[test]
    fn options_with_bad_lengths_end_the_list() {
        assert_eq!(
            syn_options(&[2, 4, 5, 180, 3, 3, 20]).window_scale,
            Some(14)
        );
        assert_eq!(syn_options(&[8, 0, 2, 4, 5, 180]), SynOptions::default());
        assert_eq!(syn_options(&[8, 200, 2, 4, 5, 180]), SynOptions::default());
        assert_eq!(syn_options(&[2, 4, 5]), SynOptions::default());
        assert_eq!(syn_options(&[2]), SynOptions::default());
        assert_eq!(syn_options(&[1, 1, 4, 2, 0, 2, 4, 1, 1]).mss, None);
    }
}
