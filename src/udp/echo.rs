//! Pings as datagrams: the echo messages of ICMP and ICMPv6 (RFC 792, RFC 4443 4).
//!
//! A flow is that of one client, one destination and one identifier (RFC 5508 3). Each record is a whole message,
//! from its type on: requests arrive as the client has sent them, and replies are sent with the client's identifier
//! and a new checksum, whatever these were. Pure.

use super::wire::Headers;
use crate::buf::{Buf, Gather};
use crate::ip::header::{self, PROTO_ICMP, PROTO_ICMPV6, icmp_sum};
use crate::ip::packet::{into_payload, payload_of, sum_payload, total_len};
use crate::ip::{IPV4_HEADER, Tuple, addresses, be16, is_endpoint};
use crate::link::{Checksum, Frame};
use crate::udp::wire::Received;
use std::net::SocketAddr;

/// Type, code, checksum, identifier, number.
pub(crate) const ECHO_HEADER: usize = 8;
const REQUEST: [u8; 2] = [8, 128];
const REPLY: [u8; 2] = [0, 129];

/// The request in an ICMP packet, if it is one and its checksum holds. The client's port is the identifier, the
/// destination's is 0.
pub(crate) fn parse(frame: &Frame, ip_header_len: usize) -> Option<Received> {
    let (source, destination) = addresses(&frame.head);
    let v6 = usize::from(source.is_ipv6());
    let icmp = frame.head.get(ip_header_len..ip_header_len + ECHO_HEADER)?;
    let total_len = total_len(&frame.head);
    let len = total_len.checked_sub(ip_header_len)?;
    let known = icmp[0] == REQUEST[v6] && icmp[1] == 0 && len >= ECHO_HEADER;
    if !known || !is_endpoint(source) || !is_endpoint(destination) {
        return None;
    }
    let mut sum = icmp_sum(source, destination, len);
    sum_payload(frame, ip_header_len, total_len, &mut sum);
    if !frame.checksum.is_vouched_for() && sum.checksum() != [0, 0] {
        return None;
    }
    Some(Received {
        tuple: Tuple {
            local: destination,
            remote: source,
            local_port: 0,
            remote_port: be16(icmp, 4),
        },
        payload: payload_of(frame, ip_header_len, len),
        len,
        segment: None,
    })
}

/// The headers of a reply to the client, and its data. `None`: the message is no reply, or is too short.
pub(crate) fn reply(
    (from, to): (SocketAddr, SocketAddr),
    message: &Gather,
    hop_limit: u8,
) -> Option<(Headers, Gather)> {
    let v6 = usize::from(from.is_ipv6());
    let len = message.iter().map(Buf::len).sum();
    let mut bytes = [0; super::wire::MAX_HEADERS];
    let protocol = [PROTO_ICMP, PROTO_ICMPV6][v6];
    let ip_header_len = header::write(&mut bytes, (from.ip(), to.ip()), protocol, len);
    let echo = &mut bytes[ip_header_len..ip_header_len + ECHO_HEADER];
    if copy_front(message, echo) < ECHO_HEADER || echo[0] != REPLY[v6] || echo[1] != 0 {
        return None;
    }
    let [first, rest @ ..] = &message[..] else {
        return None;
    };
    let whole = Frame::with_rest(first.clone(), rest.iter().cloned().collect());
    let data = skip_front(whole, len);
    echo[2..4].fill(0);
    echo[4..6].copy_from_slice(&to.port().to_be_bytes());
    let mut sum = icmp_sum(from.ip(), to.ip(), len);
    sum.add_bytes(echo);
    data.iter().for_each(|part| sum.add_bytes(part));
    echo[2..4].copy_from_slice(&sum.checksum());
    if ip_header_len == IPV4_HEADER {
        bytes[8] = hop_limit;
        let sum = header::ipv4_checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum);
    } else {
        bytes[7] = hop_limit;
    }
    let headers = Headers {
        bytes,
        len: ip_header_len + ECHO_HEADER,
        ip_header_len,
        checksum: Checksum::Complete,
    };
    Some((headers, data))
}

/// The headers of a request from a client, as a flow's client has sent one.
pub(crate) fn request((from, to): (SocketAddr, SocketAddr), hop_limit: u8) -> Headers {
    let v6 = usize::from(from.is_ipv6());
    let message = [REPLY[v6], 0, 0, 0, 0, 0, 0, 0];
    let message = [Buf::copy_of(&message)].into_iter().collect();
    let (mut headers, _) = reply((from, to), &message, hop_limit).expect("invariant: a reply");
    let at = headers.ip_header_len;
    let echo = &mut headers.bytes[at..at + ECHO_HEADER];
    echo[0] = REQUEST[v6];
    echo[4..6].copy_from_slice(&from.port().to_be_bytes());
    echo[2..4].fill(0);
    let mut sum = icmp_sum(from.ip(), to.ip(), ECHO_HEADER);
    sum.add_bytes(echo);
    echo[2..4].copy_from_slice(&sum.checksum());
    headers
}

/// Fills `out` from the front of a message; returns how far.
fn copy_front(message: &[Buf], out: &mut [u8]) -> usize {
    let mut filled = 0;
    for buf in message {
        let count = buf.len().min(out.len() - filled);
        out[filled..filled + count].copy_from_slice(&buf[..count]);
        filled += count;
    }
    filled
}

/// The data of a message of `len` bytes.
fn skip_front(mut whole: Frame, len: usize) -> Gather {
    whole.pull_up(ECHO_HEADER);
    into_payload(whole, ECHO_HEADER, len - ECHO_HEADER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ip;

    /// A request in, a reply out, with another identifier on the way.
    #[test]
    fn a_reply_gets_the_identifier_of_its_request() {
        for v6 in [false, true] {
            let ends = ip::samples::addresses(v6);
            let (kind, protocol) = if v6 { (128, 58) } else { (8, 1) };
            let mut message = vec![kind, 0, 0, 0, 0x12, 0x34, 0, 7, b'd', b'a', b't'];
            let sum = header::icmp_checksum(ends.0, ends.1, &message);
            message[2..4].copy_from_slice(&sum);
            let mut frame = Frame::new(&ip::samples::from_to(ends, protocol, &message));
            let ip = ip::parse(&mut frame).unwrap();
            let received = parse(&frame, ip.header_len).unwrap();
            assert_eq!((received.tuple.remote_port, received.len), (0x1234, 11));
            message[0] = REPLY[usize::from(v6)];
            message[4..6].copy_from_slice(&[9, 9]);
            let (destination, client) = received.tuple.ends();
            // In any pieces.
            for at in [1, 5, 8, 9] {
                let (a, b) = message.split_at(at);
                let pieces: Gather = [Buf::copy_of(a), Buf::copy_of(b)].into_iter().collect();
                let (headers, data) = reply((destination, client), &pieces, 64).unwrap();
                let packet = crate::link::Packet::new(headers.bytes(), &data, ip.header_len);
                let packet = packet.to_vec();
                let icmp = &packet[ip.header_len..];
                assert_eq!(
                    (&icmp[4..8], &icmp[8..]),
                    (&[0x12, 0x34, 0, 7][..], &b"dat"[..])
                );
                assert!(header::icmp_checksum_holds(ends.1, ends.0, icmp));
            }
            message[0] = kind;
            let request: Gather = [Buf::copy_of(&message)].into_iter().collect();
            assert!(
                reply((destination, client), &request, 64).is_none(),
                "no reply"
            );
            let short: Gather = [Buf::copy_of(&[0; 7])].into_iter().collect();
            assert!(reply((destination, client), &short, 64).is_none());
        }
    }
}
