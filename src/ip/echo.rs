//! Answers to pings (RFC 1122 3.2.2.6, RFC 4443 4.2). Pure.

use super::header::{self, IPV4_HEADER, IPV6_HEADER, PROTO_ICMP, PROTO_ICMPV6, addresses};
use super::packet::{payload_of, sum_payload, total_len};
use crate::buf::Gather;
use crate::checksum::Checksum;
use crate::link::{self, Frame};
use std::net::IpAddr;

/// Length of a message's header: type, code, checksum, identifier, number.
const HEADER: usize = 8;
const REQUEST: [u8; 2] = [8, 128];
const REPLY: [u8; 2] = [0, 129];

/// An answer, with the payload of the request by reference.
#[derive(Debug)]
pub(crate) struct Answer {
    header: [u8; IPV6_HEADER + HEADER],
    pub(crate) ip_header_len: usize,
    pub(crate) payload: Gather,
}

impl Answer {
    /// The answer to an ICMP packet, if it is a ping with a right checksum.
    pub(crate) fn to(frame: &Frame, ip_header_len: usize) -> Option<Answer> {
        let (source, destination) = addresses(&frame.head);
        let v6 = usize::from(source.is_ipv6());
        let icmp = frame.head.get(ip_header_len..ip_header_len + HEADER)?;
        let total_len = total_len(&frame.head);
        let len = total_len - ip_header_len;
        // No link offloads this checksum.
        let partial = matches!(frame.checksum, link::Checksum::Partial { .. });
        if icmp[0] != REQUEST[v6] || len < HEADER || partial {
            return None;
        }
        let mut sum = header::icmp_sum(source, destination, len);
        sum_payload(frame, ip_header_len, total_len, &mut sum);
        if !frame.checksum.is_vouched_for() && sum.checksum() != [0, 0] {
            return None;
        }
        let mut answer = Answer {
            header: [0; IPV6_HEADER + HEADER],
            ip_header_len: match destination {
                IpAddr::V4(_) => IPV4_HEADER,
                IpAddr::V6(_) => IPV6_HEADER,
            },
            payload: payload_of(frame, ip_header_len + HEADER, len - HEADER),
        };
        let protocol = [PROTO_ICMP, PROTO_ICMPV6][v6];
        header::write(&mut answer.header, (destination, source), protocol, len);
        let ip_header = answer.ip_header_len;
        let reply = &mut answer.header[ip_header..ip_header + HEADER];
        reply.copy_from_slice(icmp);
        reply[0] = REPLY[v6];
        // RFC 1624: of the summed bytes only the type changes.
        let mut sum = Checksum::new();
        sum.add_bytes(&[!icmp[2], !icmp[3], !icmp[0], !icmp[1], reply[0], reply[1]]);
        reply[2..4].copy_from_slice(&sum.checksum());
        if v6 == 0 {
            let sum = header::ipv4_checksum(&answer.header);
            answer.header[10..12].copy_from_slice(&sum);
        }
        Some(answer)
    }

    /// IP and ICMP.
    pub(crate) fn header(&self) -> &[u8] {
        &self.header[..self.ip_header_len + HEADER]
    }
}
