//! ICMP echo messages, as the kernel takes and gives them.

use crate::buf::{Buf, Gather};
use crate::checksum::Checksum;
use std::ops::Range;

/// Bytes of the header of an echo message: type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;
/// Position of the identifier.
const IDENTIFIER: usize = 4;

/// The family of the messages, and whether the kernel sees to identifiers and checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kernel) struct Form {
    pub(in crate::kernel) v4: bool,
    /// That of a raw socket; the kernel has one for each ping socket.
    pub(in crate::kernel) identifier: Option<u16>,
}

impl Form {
    const fn request_type(self) -> u8 {
        if self.v4 { 8 } else { 128 }
    }

    const fn reply_type(self) -> u8 {
        if self.v4 { 0 } else { 129 }
    }

    /// A request as it is given to the kernel; nothing, if it is none.
    pub(super) fn request(self, payload: Gather) -> Option<Gather> {
        let mut header = [0; HEADER];
        let mut at = 0;
        for buf in &payload {
            let part = buf.len().min(HEADER - at);
            header[at..at + part].copy_from_slice(&buf[..part]);
            at += part;
        }
        if at < HEADER || header[..2] != [self.request_type(), 0] {
            return None;
        }
        let Some(identifier) = self.identifier else {
            return Some(payload);
        };
        header[2..4].fill(0);
        header[IDENTIFIER..IDENTIFIER + 2].copy_from_slice(&identifier.to_be_bytes());
        let rest = behind(payload, HEADER);
        // Of IPv6 the kernel computes it.
        if self.v4 {
            let mut sum = Checksum::new();
            sum.add_bytes(&header);
            rest.iter().for_each(|buf| sum.add_bytes(buf));
            header[2..4].copy_from_slice(&sum.checksum());
        }
        let mut request = Gather::from_iter([Buf::copy_of(&header)]);
        request.extend(rest);
        Some(request)
    }

    /// The part of a received message that is a reply for this socket.
    pub(super) fn accept(self, bytes: &[u8]) -> Option<Range<usize>> {
        // A raw socket of IPv4 gives the IP header too.
        let start = match (self.identifier, self.v4) {
            (Some(_), true) => usize::from(bytes.first()? & 15) * 4,
            _ => 0,
        };
        let message = bytes.get(start..)?;
        let ours = self.identifier.is_none_or(|identifier| {
            message.get(IDENTIFIER..IDENTIFIER + 2) == Some(&identifier.to_be_bytes())
        });
        let reply = message.len() >= HEADER && message[..2] == [self.reply_type(), 0];
        (reply && ours).then_some(start..bytes.len())
    }
}

/// Without the first bytes.
fn behind(payload: Gather, mut count: usize) -> Gather {
    payload
        .into_iter()
        .filter_map(|mut buf| {
            let part = buf.len().min(count);
            buf.advance(part);
            count -= part;
            (!buf.is_empty()).then_some(buf)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: Form = Form {
        v4: true,
        identifier: Some(0x1234),
    };

    fn flat(payload: &Gather) -> Vec<u8> {
        payload.iter().flat_map(|buf| buf.to_vec()).collect()
    }

    #[test]
    fn a_raw_request_has_our_identifier_and_a_checksum() {
        let whole = Buf::copy_of(&[8, 0, 9, 9, 7, 7, 0, 1, b'a', b'b', b'c']);
        let pieces = || [whole.slice(0..3), whole.slice(3..9), whole.slice(9..11)];
        let request = RAW.request(Gather::from_iter(pieces())).unwrap();
        let bytes = flat(&request);
        assert_eq!(bytes[4..], [0x12, 0x34, 0, 1, b'a', b'b', b'c']);
        assert_eq!(internet_checksum::checksum(&bytes), [0, 0]);
        let by_the_kernel = Form {
            identifier: None,
            ..RAW
        };
        let request = by_the_kernel.request(Gather::from_iter(pieces())).unwrap();
        assert_eq!(flat(&request), whole.to_vec());
    }

    #[test]
    fn what_is_no_echo_request_is_not_sent() {
        for bytes in [
            &[][..],
            &[8, 0, 0, 0, 0, 0, 0],
            &[0; 8],
            &[8, 1, 0, 0, 0, 0, 0, 0],
            &[3, 3, 0, 0, 0, 0, 0, 0],
        ] {
            let payload = Gather::from_iter([Buf::copy_of(bytes)]);
            assert!(RAW.request(payload).is_none(), "{bytes:?}");
        }
    }

    #[test]
    fn only_replies_with_our_identifier_are_received() {
        let packet = |message: &[u8]| [&[0x46][..], &[0; 23], message].concat();
        let reply = packet(&[0, 0, 0, 0, 0x12, 0x34, 0, 1, 5]);
        assert_eq!(RAW.accept(&reply), Some(24..33));
        for other in [
            packet(&[0, 0, 0, 0, 0x12, 0x35, 0, 1, 5]),
            packet(&[8, 0, 0, 0, 0x12, 0x34, 0, 1, 5]),
            packet(&[0, 0, 0, 0, 0x12, 0x34, 0]),
            vec![0x4f],
            vec![],
        ] {
            assert_eq!(RAW.accept(&other), None);
        }
        let v6 = Form {
            v4: false,
            identifier: None,
        };
        assert_eq!(v6.accept(&[129, 0, 0, 0, 1, 1, 0, 1]), Some(0..8));
        assert_eq!(v6.accept(&[135, 0, 0, 0, 1, 1, 0, 1]), None);
    }
}
