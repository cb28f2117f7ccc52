//! Datagrams: sockets and flows of a stack against a peer made of raw packets, in virtual time. RFC 768,
//! 1122 4.1, 4787, and what Linux and BSD do where these say nothing.

mod bad;
mod counters;
mod errors;
mod flows;
mod link;
mod sockets;
#[cfg(feature = "async")]
mod tasks;

use super::datagrams::*;
use super::*;
use crate::stack::{DatagramInfo, FlowOptions, Mapping, UdpListener, UdpSocket};

/// A datagram of the stack, as its receiver sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Got {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) payload: Vec<u8>,
}

pub(super) fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

fn got(from: &str, to: &str, payload: &[u8]) -> Got {
    Got {
        from: at(from),
        to: at(to),
        payload: payload.to_vec(),
    }
}

/// A datagram from one address to another one.
pub(super) fn datagram_of(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let (from, to) = (at(from), at(to));
    let ports = (from.port(), to.port());
    ip::samples::udp((from.ip(), to.ip()), ports, payload)
}

/// The datagram in a packet of the stack, every field of which is checked.
fn parsed(packet: &[u8], hop_limit: u8) -> Got {
    let ip = ip::parse(&mut crate::link::Frame::new(packet)).unwrap();
    assert_eq!(ip.protocol, UDP, "{packet:02x?}");
    assert_eq!(ip.total_len, packet.len());
    assert_eq!(packet[if ip.header_len == 20 { 8 } else { 7 }], hop_limit);
    let udp = &packet[ip.header_len..];
    assert_eq!(usize::from(ip::be16(udp, 4)), udp.len());
    assert_ne!(ip::be16(udp, 6), 0, "a checksum");
    let mut sum = ip::header::pseudo_header(ip.source, ip.destination, UDP, udp.len());
    sum.add_bytes(udp);
    assert_eq!(sum.checksum(), [0, 0], "the checksum");
    Got {
        from: SocketAddr::new(ip.source, ip::be16(udp, 0)),
        to: SocketAddr::new(ip.destination, ip::be16(udp, 2)),
        payload: udp[8..].to_vec(),
    }
}

/// What to expect of [`UdpSocket::recv_from`].
fn received(socket: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
    let mut out = vec![0; 70_000];
    match socket.recv_from(&mut out) {
        Ok((len, from)) => Some((out[..len].to_vec(), from)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

/// A stack with a second address of each family.
fn several() -> Net {
    Net::with(one_packet_each(), |builder| {
        builder
            .address("10.0.0.9/24".parse().unwrap())
            .address("fd00::9/64".parse().unwrap())
    })
}

impl Net {
    pub(super) fn bound(&self, address: &str) -> UdpSocket {
        let socket = UdpSocket::bind(&self.stack, address).unwrap();
        socket.set_nonblocking(true);
        socket
    }

    fn flows(&self, rule: Intercept, options: FlowOptions) -> UdpListener {
        let listener = UdpListener::intercept(&self.stack, rule, options).unwrap();
        listener.set_nonblocking(true);
        listener
    }

    /// The peer sends a datagram, and the stack takes it.
    fn arrives(&mut self, from: &str, to: &str, payload: &[u8]) {
        self.raw(&datagram_of(from, to, payload));
        self.turn();
    }

    /// The datagrams that the stack has sent. Nothing else may be there.
    fn sent(&mut self) -> Vec<Got> {
        let packets = self.complete();
        packets.iter().map(|packet| parsed(packet, 64)).collect()
    }

    /// The packets that the stack has sent, with their checksums filled in.
    pub(super) fn complete(&mut self) -> Vec<Vec<u8>> {
        self.turn();
        let mut frames = Vec::new();
        while self.wire.receive(&mut frames, 10_000).unwrap() > 0 {}
        frames
            .iter()
            .map(crate::link::Frame::to_complete_vec)
            .collect()
    }

    fn listed(&self) -> Vec<DatagramInfo> {
        self.stack.datagram_sockets()
    }
}

/// A new flow, which does not block.
fn accepted(listener: &UdpListener) -> Option<(UdpSocket, SocketAddr)> {
    match listener.accept() {
        Ok((flow, from)) => {
            flow.set_nonblocking(true);
            Some((flow, from))
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            None
        }
    }
}
