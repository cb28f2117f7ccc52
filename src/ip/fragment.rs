//! Fragmentation of packets that are larger than the MTU (RFC 791 3.2, RFC 8200 4.5). Pure.
//!
//! Fragments refer to the payload. The transport checksum must be complete, because no link can complete it for
//! the fragments.

use super::extension::FRAGMENT;
use super::header::{self, IPV6_HEADER, length_field};
use crate::buf::{Buf, Gather};
use crate::link::Packet;
use smallvec::SmallVec;

/// Length of IPv6's fragment header.
const FRAGMENT_HEADER: usize = 8;
/// Length of the headers of a first fragment of UDP over IPv6; longer ones are allocated.
const USUAL: usize = IPV6_HEADER + FRAGMENT_HEADER + 8;

/// How much of a packet has been sent: the rest follows when a full link has room again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    identification: u32,
    /// Bytes after the IP header.
    sent: usize,
}

impl Progress {
    pub(crate) fn new(identification: u32) -> Progress {
        Progress {
            identification,
            sent: 0,
        }
    }
}

/// Sends a packet, whose IP header has no options or extension headers, in fragments of at most `mtu` bytes, in
/// order. Continues where an earlier call has stopped.
///
/// # Errors
/// The first error of `send`.
///
/// # Panics
/// If the first fragment has no room for the transport header.
pub(crate) fn fragment<E>(
    packet: &Packet<'_>,
    mtu: usize,
    progress: &mut Progress,
    mut send: impl FnMut(&Packet<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let (ip_header, transport) = packet.header.split_at(packet.ip_header_len);
    let v4 = ip_header[0] >> 4 == 4;
    let fixed = ip_header.len() + if v4 { 0 } else { FRAGMENT_HEADER };
    let step = mtu.saturating_sub(fixed) & !7;
    assert!(
        step >= transport.len().max(8),
        "an MTU of {mtu} bytes has no room for the headers of a fragment"
    );
    let total = packet.len() - ip_header.len();
    let mut payload = Rest::new(packet.payload);
    drop(payload.take(progress.sent.saturating_sub(transport.len())));
    while progress.sent < total {
        let offset = progress.sent;
        let len = step.min(total - offset);
        let place = (progress.identification, offset, offset + len < total);
        let mut head = SmallVec::<[u8; USUAL]>::from_slice(ip_header);
        match v4 {
            true => write_v4(&mut head, place, len),
            false => write_v6(&mut head, place, len),
        }
        let first = if offset == 0 { transport } else { &[] };
        head.extend_from_slice(first);
        let part = payload.take(len - first.len());
        send(&Packet::new(&head, &part, fixed))?;
        progress.sent += len;
    }
    Ok(())
}

fn write_v4(head: &mut [u8], (identification, offset, more): (u32, usize, bool), len: usize) {
    let units = u16::try_from(offset / 8).expect("invariant: a packet is at most 64 KiB");
    let field = u16::from(more) << 13 | units;
    let total = head.len() + len;
    head[2..4].copy_from_slice(&length_field(total));
    head[4..6].copy_from_slice(&identification.to_be_bytes()[2..]);
    head[6..8].copy_from_slice(&field.to_be_bytes());
    head[10..12].fill(0);
    let sum = header::ipv4_checksum_of(head);
    head[10..12].copy_from_slice(&sum);
}

fn write_v6(
    head: &mut SmallVec<[u8; USUAL]>,
    (identification, offset, more): (u32, usize, bool),
    len: usize,
) {
    let offset = u16::try_from(offset).expect("invariant: a packet is at most 64 KiB");
    let field = offset | u16::from(more);
    head.extend_from_slice(&[head[6], 0]);
    head.extend_from_slice(&field.to_be_bytes());
    head.extend_from_slice(&identification.to_be_bytes());
    head[6] = FRAGMENT;
    head[4..6].copy_from_slice(&length_field(FRAGMENT_HEADER + len));
}

/// The rest of a payload.
struct Rest<'a> {
    bufs: &'a [Buf],
    /// Bytes of the first buffer that have been taken.
    taken: usize,
}

impl<'a> Rest<'a> {
    fn new(bufs: &'a [Buf]) -> Rest<'a> {
        Rest { bufs, taken: 0 }
    }

    fn take(&mut self, mut len: usize) -> Gather {
        let mut part = Gather::new();
        while let [first, rest @ ..] = self.bufs
            && len > 0
        {
            let end = first.len().min(self.taken + len);
            if end > self.taken {
                part.push(first.slice(self.taken..end));
            }
            len -= end - self.taken;
            self.taken = end;
            if end == first.len() {
                *self = Rest::new(rest);
            }
        }
        part
    }
}

#[cfg(test)]
mod tests;
