//! IP packets in frames and out of them.

use super::frame::{self, HEADER, Mac};
use crate::link::{Capabilities, Checksum, Frame, Link, Packet, ReceiveError, TransmitError};
use smallvec::SmallVec;
use std::io;
use std::num::NonZeroU16;

/// What a link of packets of at most `mtu` bytes can do over a transport of frames.
pub(super) fn capabilities(transport: &impl Link, mtu: usize) -> Capabilities {
    let can = transport.capabilities();
    let packet = |frame: usize| frame.saturating_sub(HEADER);
    Capabilities {
        mtu: mtu.min(packet(can.mtu)),
        checksum: can.checksum,
        segment_v4: can.segment_v4.map(packet),
        segment_v6: can.segment_v6.map(packet),
        datagrams_v4: can.datagrams_v4.map(packet),
        datagrams_v6: can.datagrams_v6.map(packet),
    }
}

/// Receives frames, up to `max`, and appends the packets that `process` finds in them. Returns the number of packets.
pub(super) fn receive(
    transport: &impl Link,
    (packets, max): (&mut Vec<Frame>, usize),
    process: impl FnOnce(Vec<Frame>, &mut Vec<Frame>),
) -> Result<usize, ReceiveError> {
    let before = packets.len();
    let mut received = Vec::new();
    let result = transport.receive(&mut received, max);
    // Also those that came before an error.
    process(received, packets);
    result.map(|_| packets.len() - before)
}

/// Refuses a packet that is larger than the MTU. The length of a super-frame is the transport's matter.
pub(super) fn check(packet: &Packet<'_>, mtu: usize) -> Result<(), TransmitError> {
    match packet.segment.is_some() || packet.len() <= mtu {
        true => Ok(()),
        false => Err(refused("the packet is larger than the link takes")),
    }
}

/// Removes the link header, of `len` bytes.
pub(super) fn without_link_header(frame: &mut Frame, len: usize) {
    frame.head.advance(len);
    if let Checksum::Partial { start, offset } = frame.checksum {
        let len = u16::try_from(len).expect("invariant: at most 22 bytes");
        frame.checksum = match start.checked_sub(len) {
            Some(start) => Checksum::Partial { start, offset },
            None => Checksum::Complete,
        };
    }
}

/// Removes the padding after a packet of `len` bytes.
pub(super) fn trim(frame: &mut Frame, len: usize) {
    if len != 0 && frame.rest.is_empty() && len < frame.head.len() {
        frame.head = frame.head.slice(0..len);
    }
}

/// The type of the frame that carries an IP packet.
fn kind_of(packet: &[u8]) -> u16 {
    match packet.first().map(|byte| byte >> 4) {
        Some(6) => frame::IPV6,
        _ => frame::IPV4,
    }
}

/// Sends an IP packet in a frame, from one hardware address to another.
pub(super) fn send(
    transport: &impl Link,
    (to, from): (Mac, Mac),
    packet: &Packet<'_>,
) -> Result<(), TransmitError> {
    let mut header: SmallVec<[u8; 160]> = SmallVec::new();
    header.extend_from_slice(&frame::header(to, from, kind_of(packet.header)));
    header.extend_from_slice(packet.header);
    transport.transmit(&Packet {
        header: &header,
        payload: packet.payload,
        ip_header_len: packet.ip_header_len + HEADER,
        checksum: in_frame(packet.checksum)?,
        segment: packet.segment,
    })
}

/// The state of the checksum of a packet that a link header precedes.
fn in_frame(checksum: Checksum) -> Result<Checksum, TransmitError> {
    let Checksum::Partial { start, offset } = checksum else {
        return Ok(checksum);
    };
    let start = u16::try_from(usize::from(start) + HEADER)
        .map_err(|_| refused("a header that is too long"))?;
    Ok(Checksum::Partial { start, offset })
}

pub(super) fn refused(why: &str) -> TransmitError {
    TransmitError::Refused(io::Error::new(io::ErrorKind::InvalidInput, why))
}

/// An IP packet that waits for the hardware address of its destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiting {
    bytes: Vec<u8>,
    ip_header_len: usize,
    checksum: Checksum,
    segment: Option<NonZeroU16>,
}

impl Waiting {
    /// A copy of the packet.
    pub(super) fn new(packet: &Packet<'_>) -> Waiting {
        Waiting {
            bytes: packet.to_vec(),
            ip_header_len: packet.ip_header_len,
            checksum: packet.checksum,
            segment: packet.segment,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The packet as one that was received.
    pub(super) fn frame(&self) -> Frame {
        let frame = Frame::new(&self.bytes).checksum(self.checksum);
        frame.segment(self.segment)
    }

    /// Sends it as [`send`] does.
    pub(super) fn send(&self, transport: &impl Link, way: (Mac, Mac)) -> Result<(), TransmitError> {
        let packet = Packet {
            header: &self.bytes,
            payload: &[],
            ip_header_len: self.ip_header_len,
            checksum: self.checksum,
            segment: self.segment,
        };
        send(transport, way, &packet)
    }
}
