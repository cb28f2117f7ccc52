//! The virtio-net header (`struct virtio_net_hdr`), which the kernel has in front of the packets of TUN and TAP devices
//! and of packet sockets: the state of the transport checksum, and the size of the segments that a super-frame
//! consists of.

use super::ethernet::frame;
#[cfg(any(target_os = "linux", target_os = "android"))]
use super::retry;
use super::{Capabilities, Checksum, Packet};
#[cfg(not(windows))]
use crate::buf::{Buf, FrameMut};
#[cfg(any(target_os = "linux", target_os = "android"))]
use rustix::fd::AsFd;
#[cfg(any(target_os = "linux", target_os = "android"))]
use rustix::io::Errno;
#[cfg(not(windows))]
use smallvec::SmallVec;
#[cfg(not(windows))]
use std::io::IoSlice;
use std::num::NonZeroU16;

/// Length of the header. Its fields are in native order.
pub(super) const HEADER: usize = 10;

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
/// Datagrams of UDP (USO).
const GSO_UDP: u8 = 5;
/// A flag in addition: segments have ECN's CWR flag.
const GSO_ECN: u8 = 0x80;

/// Maximum number of pieces of one `writev`, less one for tun-rs.
#[cfg(not(windows))]
const IOV_MAX: usize = 1023;

/// The bytes that follow the virtio-net header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// IP packets.
    Packets,
    /// Frames of Ethernet.
    Frames,
}

impl Content {
    /// Length of the link header in front of an IP packet.
    pub(super) const fn link_header(self) -> usize {
        match self {
            Content::Packets => 0,
            Content::Frames => frame::HEADER,
        }
    }

    /// The version of IP of a packet, or of the packet in a frame behind any number of tags.
    fn version(self, bytes: &[u8]) -> Option<u8> {
        let at = match self {
            Content::Packets => 0,
            Content::Frames => match frame::kind(bytes)? {
                (frame::IPV4 | frame::IPV6, len) => len,
                _ => return None,
            },
        };
        bytes.get(at).map(|byte| byte >> 4)
    }

    /// Whether received bytes look as if the virtio-net header in front of them had the expected length. `false` for
    /// some rare frames too.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(super) fn is_plausible(self, bytes: &[u8]) -> bool {
        let is_arp =
            || matches!(frame::kind(bytes), Some((frame::ARP, at)) if is_ethernet(&bytes[at..]));
        matches!(self.version(bytes), Some(4 | 6)) || (self == Content::Frames && is_arp())
    }
}

/// Whether a message of ARP is about addresses of Ethernet.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn is_ethernet(arp: &[u8]) -> bool {
    arp.len() >= 2 && frame::be16(arp, 0) == 1
}

/// The header for a packet or a frame. The error says why a device that can `can` does not take it.
pub(super) fn header(
    packet: &Packet<'_>,
    can: &Capabilities,
    content: Content,
) -> Result<[u8; HEADER], &'static str> {
    let mut header = [0; HEADER];
    if let Checksum::Partial { start, offset } = packet.checksum {
        if !can.checksum {
            return Err("checksum offload is off");
        }
        header[0] = F_NEEDS_CSUM;
        header[6..8].copy_from_slice(&start.to_ne_bytes());
        header[8..10].copy_from_slice(&offset.to_ne_bytes());
    }
    let is_udp = matches!(packet.checksum, Checksum::Partial { offset: 6, .. });
    let (headers, len) = (transport_headers(packet), packet.len());
    let payload = headers.map_or(0, |headers| len.saturating_sub(headers));
    let segment = packet
        .segment
        .filter(|size| headers.is_none() || payload > usize::from(size.get()));
    let (kind, most) = match (segment, content.version(packet.header)) {
        (None, _) => (GSO_NONE, Some(can.mtu)),
        (Some(_), Some(4)) if is_udp => (GSO_UDP, can.datagrams_v4),
        (Some(_), Some(6)) if is_udp => (GSO_UDP, can.datagrams_v6),
        (Some(_), Some(4)) => (GSO_TCPV4, can.segment_v4),
        (Some(_), Some(6)) => (GSO_TCPV6, can.segment_v6),
        _ => return Err("neither IPv4 nor IPv6"),
    };
    if len > most.ok_or("segmentation offload is off")? {
        return Err("the packet is larger than the link takes");
    }
    if let Some(size) = segment {
        let headers =
            headers.ok_or("only TCP and UDP whose checksums the link fills in are cut")?;
        let len = u16::try_from(headers).map_err(|_| "header too long")?;
        header[1] = kind;
        header[2..4].copy_from_slice(&len.to_ne_bytes());
        header[4..6].copy_from_slice(&size.get().to_ne_bytes());
    }
    Ok(header)
}

/// Checksum state and segment size from the virtio-net header of a packet.
pub(super) fn described(header: &[u8; HEADER]) -> (Checksum, Option<NonZeroU16>) {
    let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let checksum = match header[0] {
        flags if flags & F_NEEDS_CSUM != 0 => Checksum::Partial {
            start: field(6),
            offset: field(8),
        },
        flags if flags & F_DATA_VALID != 0 => Checksum::Verified,
        _ => Checksum::Complete,
    };
    let segment = match header[1] & !GSO_ECN {
        GSO_NONE => None,
        _ => NonZeroU16::new(field(4)),
    };
    (checksum, segment)
}

/// Packets up to this length are copied together, which takes less time than the kernel needs for a list of pieces.
#[cfg(any(target_os = "linux", target_os = "android"))]
const SMALL: usize = 512;

/// One write, gathering unless the packet is small. Returns the number of bytes written, including the header.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn write(fd: impl AsFd, header: &[u8], packet: &Packet<'_>) -> Result<usize, Errno> {
    if packet.len() <= SMALL {
        let mut all: SmallVec<[u8; SMALL + HEADER]> = SmallVec::from_slice(header);
        all.extend_from_slice(packet.header);
        let payload = packet.payload.iter();
        payload.for_each(|buf| all.extend_from_slice(buf));
        return retry(|| rustix::io::write(&fd, &all));
    }
    with_pieces(header, packet, |pieces| {
        retry(|| rustix::io::writev(&fd, pieces))
    })
}

/// Calls `write` with the pieces of a packet; a payload in too many pieces is copied together first.
#[cfg(not(windows))]
pub(super) fn with_pieces<R>(
    header: &[u8],
    packet: &Packet<'_>,
    write: impl FnOnce(&[IoSlice<'_>]) -> R,
) -> R {
    let together;
    let mut pieces: SmallVec<[IoSlice<'_>; 32]> = SmallVec::new();
    pieces.push(IoSlice::new(header));
    pieces.push(IoSlice::new(packet.header));
    if packet.payload.len() + pieces.len() <= IOV_MAX {
        pieces.extend(packet.payload.iter().map(|buf| IoSlice::new(buf)));
    } else {
        together = gather(packet.payload);
        pieces.push(IoSlice::new(&together));
    }
    write(&pieces)
}

/// Length of the headers of a packet whose checksum is TCP's or UDP's, and left to the link.
fn transport_headers(packet: &Packet<'_>) -> Option<usize> {
    match packet.checksum {
        Checksum::Partial { start, offset: 16 } => {
            let start = usize::from(start);
            let words = packet.header.get(start + 12)? >> 4;
            Some(start + usize::from(words) * 4)
        }
        Checksum::Partial { start, offset: 6 } => Some(usize::from(start) + 8),
        _ => None,
    }
}

/// Copies all bytes to one buffer.
#[cfg(not(windows))]
fn gather(payload: &[Buf]) -> Buf {
    let mut frame = FrameMut::with_capacity(payload.iter().map(Buf::len).sum());
    let bytes = frame.bytes_mut();
    payload.iter().for_each(|buf| bytes.extend_from_slice(buf));
    frame.freeze()
}
