//! The control interface: answers to ping, and resets for segments that nobody wants.
//!
//! A smoltcp `Interface` without sockets. Its answers are not worth waiting for: when the link is
//! full they are dropped. Under a leaf lock of its own.

use crate::link::{Capabilities, Checksum, Frame, Link, Packet};
use crate::tcp::engine::Received;
use crate::tcp::wire::{self, MAX_CANONICAL, Segment};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::HardwareAddress;

pub(crate) struct Control {
    iface: Interface,
    sockets: SocketSet<'static>,
    caps: DeviceCapabilities,
}

impl Control {
    pub(crate) fn new(link: &Capabilities) -> Control {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ip;
        caps.max_transmission_unit = link.mtu;
        let mut port = Port {
            rx: None,
            tx: Vec::new(),
            caps: &caps,
        };
        let mut iface = Interface::new(Config::new(HardwareAddress::Ip), &mut port, Instant::ZERO);
        // Which addresses are ours has been checked before.
        iface.set_any_ip(true);
        Control {
            iface,
            sockets: SocketSet::new(Vec::new()),
            caps,
        }
    }

    /// The answer to an ICMP packet, if it deserves one.
    pub(crate) fn icmp(&mut self, frame: &Frame) -> Option<Vec<u8>> {
        self.answer(&frame.to_vec())
    }

    /// The reset for a segment without a connection (RFC 9293 3.10.7.1).
    pub(crate) fn reset(&mut self, segment: &Segment) -> Option<Vec<u8>> {
        let tuple = &segment.tuple;
        let mut header = [0; MAX_CANONICAL];
        let from = (tuple.remote, tuple.remote_port);
        let to = (tuple.local, tuple.local_port);
        let len = wire::compose(&mut header, from, to, &segment.header, segment.payload_len);
        let zeros = vec![0; segment.payload_len];
        let payload = std::iter::once(&zeros[..]);
        wire::finish(&mut header[..len], tuple.ip_header_len(), payload, false);
        self.answer(&[&header[..len], &zeros].concat())
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

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
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

impl Device for Port<'_> {
    type RxToken<'t>
        = Received<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Sending<'t>
    where
        Self: 't;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        Some((Received(self.rx.take()?), Sending(&mut self.tx)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending<'_>> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.caps.clone()
    }
}
