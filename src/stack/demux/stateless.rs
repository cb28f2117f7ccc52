//! Answers without a connection: to pings, and to segments that belong to no connection. They are
//! dropped when the link is full.
//!
//! Pings are answered by a smoltcp `Interface` without sockets, under a leaf lock of its own; segments,
//! which may be a flood, by a header that is composed here, without allocation and without a lock.

use crate::link::{Capabilities, Checksum, Frame, Link, Packet};
use crate::tcp::wire::{
    self, ACK, FIN, Header, MAX_CANONICAL, RST, SYN, Segment, SynOptions, Tuple,
};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::HardwareAddress;

pub(crate) struct Stateless {
    iface: Interface,
    sockets: SocketSet<'static>,
    caps: DeviceCapabilities,
}

impl Stateless {
    pub(crate) fn new(link: &Capabilities) -> Stateless {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ip;
        caps.max_transmission_unit = link.mtu;
        let mut port = Port {
            rx: None,
            tx: Vec::new(),
            caps: &caps,
        };
        let mut iface = Interface::new(Config::new(HardwareAddress::Ip), &mut port, Instant::ZERO);
        // The caller has checked the destination.
        iface.set_any_ip(true);
        Stateless {
            iface,
            sockets: SocketSet::new(Vec::new()),
            caps,
        }
    }

    /// The answer to an ICMP packet, if any.
    pub(crate) fn icmp(&mut self, frame: &Frame) -> Option<Vec<u8>> {
        self.answer(&frame.to_vec())
    }

    fn answer(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let mut port = Port {
            rx: Some(packet),
            tx: Vec::new(),
            caps: &self.caps,
        };
        self.iface
            .poll_ingress_single(Instant::ZERO, &mut port, &mut self.sockets);
        (!port.tx.is_empty()).then_some(port.tx)
    }
}

impl std::fmt::Debug for Stateless {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stateless").finish_non_exhaustive()
    }
}

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

struct Port<'a> {
    rx: Option<&'a [u8]>,
    tx: Vec<u8>,
    caps: &'a DeviceCapabilities,
}

struct Sending<'a>(&'a mut Vec<u8>);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.0.clear();
        self.0.resize(len, 0);
        f(self.0)
    }
}

struct Question<'a>(&'a [u8]);

impl RxToken for Question<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl Device for Port<'_> {
    type RxToken<'t>
        = Question<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Sending<'t>
    where
        Self: 't;

    fn receive(&mut self, _now: Instant) -> Option<(Question<'_>, Sending<'_>)> {
        Some((Question(self.rx.take()?), Sending(&mut self.tx)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending<'_>> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.caps.clone()
    }
}
