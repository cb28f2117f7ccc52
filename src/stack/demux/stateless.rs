//! Answers to segments that belong to no connection. They are dropped when the link is full. They may be a
//! flood, so they are composed without allocation and without a lock.

use crate::link::{Checksum, Link, Packet};
use crate::tcp::wire::{
    self, ACK, FIN, Header, MAX_CANONICAL, RST, SYN, Segment, SynOptions, Tuple,
};

/// Sends a header without a connection, with TSval and TSecr if there are any, if the link has room.
pub(in crate::stack) fn answer(
    link: &dyn Link,
    tuple: &Tuple,
    (header, timestamps): (&Header, Option<(u32, u32)>),
) -> bool {
    let mut out = [0; MAX_CANONICAL];
    let from = (tuple.local, tuple.local_port);
    let to = (tuple.remote, tuple.remote_port);
    let mut len = wire::compose(&mut out, from, to, header, 0);
    let ip_header_len = tuple.ip_header_len();
    if let Some(timestamps) = timestamps {
        len = wire::add_timestamps(&mut out, (len, ip_header_len), timestamps);
    }
    let partial = link.capabilities().checksum;
    let checksum = wire::finish(&mut out[..len], ip_header_len, std::iter::empty(), partial);
    let packet = Packet {
        header: &out[..len],
        payload: &[],
        ip_header_len,
        checksum,
        segment: None,
    };
    link.transmit(&packet).is_ok()
}

/// Answers a segment without a connection with a reset (RFC 9293 3.10.7.1).
pub(in crate::stack) fn reset(link: &dyn Link, segment: &Segment) {
    let theirs = &segment.header;
    if theirs.has(RST) {
        return;
    }
    let (seq, ack, flags) = if theirs.has(ACK) {
        (theirs.ack, 0, RST)
    } else {
        let payload = u32::try_from(segment.payload_len).unwrap_or(0);
        let len = payload + u32::from(theirs.has(SYN)) + u32::from(theirs.has(FIN));
        (0, theirs.seq.wrapping_add(len), RST | ACK)
    };
    let header = Header {
        seq,
        ack,
        flags,
        window: 0,
        options: SynOptions::default(),
    };
    answer(link, &segment.tuple, (&header, None));
}

/// Sends an answer if the link has room.
pub(crate) fn send(link: &dyn Link, packet: &[u8], ip_header_len: usize) -> bool {
    let packet = Packet {
        header: packet,
        payload: &[],
        ip_header_len,
        checksum: Checksum::Complete,
        segment: None,
    };
    link.transmit(&packet).is_ok()
}
