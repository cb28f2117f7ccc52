//! The twin: the same proxy with smoltcp alone. An interface and a `SocketSet` for each side, two
//! sockets for each proxied connection, bytes copied.

use crate::peers::{
    BACK, FIRST_PORT, FRONT, HEADER_MAX, PAYLOAD_MAX, PROXY_PORT, Proxy, SERVER, SERVER_PORT, Seen,
    Wire, pattern,
};
use crate::{FRAMES, Offload};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::num::NonZeroUsize;

/// How bytes get from one socket to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copying {
    /// One copy: from ring to ring.
    RingToRing,
    /// Two: through a buffer of 64 KiB.
    Buffer,
}

struct Header {
    bytes: [u8; HEADER_MAX],
    len: usize,
    payload: usize,
}

/// A link as a device of smoltcp, and its other end. Received packets share one buffer, which stays in
/// the cache; so do those to send.
struct Device {
    inbox: VecDeque<Header>,
    outbox: Vec<Seen>,
    /// Room for a header, and the payload of every packet.
    rx: Vec<u8>,
    tx: Vec<u8>,
    offload: Offload,
    keep: bool,
}

struct Rx<'a>(&'a [u8]);

struct Tx<'a> {
    packet: &'a mut [u8],
    outbox: &'a mut Vec<Seen>,
    keep: bool,
}

impl phy::RxToken for Rx<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl phy::TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let result = f(&mut self.packet[..len]);
        let mut seen = Seen::new(self.packet, len);
        if self.keep {
            seen.payload = self.packet[Seen::header_len(self.packet)..len].to_vec();
        }
        self.outbox.push(seen);
        result
    }
}

impl phy::Device for Device {
    type RxToken<'a> = Rx<'a>;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Rx<'_>, Tx<'_>)> {
        let header = self.inbox.pop_front()?;
        let from = HEADER_MAX - header.len;
        self.rx[from..HEADER_MAX].copy_from_slice(&header.bytes[..header.len]);
        let tx = Tx {
            packet: &mut self.tx,
            outbox: &mut self.outbox,
            keep: self.keep,
        };
        Some((Rx(&self.rx[from..HEADER_MAX + header.payload]), tx))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        (self.outbox.len() < FRAMES).then_some(Tx {
            packet: &mut self.tx,
            outbox: &mut self.outbox,
            keep: self.keep,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities.segmentation.tcpv4 = self.offload.size().and_then(NonZeroUsize::new);
        capabilities
    }
}

impl Wire for Device {
    fn send(&mut self, header: &[u8], payload: usize) -> bool {
        let room = self.inbox.len() < FRAMES;
        if room {
            let mut bytes = [0; HEADER_MAX];
            bytes[..header.len()].copy_from_slice(header);
            self.inbox.push_back(Header {
                bytes,
                len: header.len(),
                payload,
            });
        }
        room
    }

    fn take(&mut self, seen: &mut Vec<Seen>) {
        seen.append(&mut self.outbox);
    }
}

struct Side {
    device: Device,
    interface: Interface,
    sockets: SocketSet<'static>,
}

impl Side {
    fn new(address: Ipv4Addr, offload: Offload) -> Side {
        let mut rx = vec![0; HEADER_MAX];
        rx.extend((0..PAYLOAD_MAX).map(pattern));
        let mut device = Device {
            inbox: VecDeque::new(),
            outbox: Vec::new(),
            rx,
            tx: vec![0; HEADER_MAX + PAYLOAD_MAX],
            offload,
            keep: false,
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = u64::from(address.to_bits());
        let mut interface = Interface::new(config, &mut device, Instant::now());
        let address = IpCidr::new(IpAddress::from(address), 24);
        interface.update_ip_addrs(|addresses| addresses.extend([address]));
        Side {
            device,
            interface,
            sockets: SocketSet::new(Vec::new()),
        }
    }

    fn poll(&mut self) {
        let (device, sockets) = (&mut self.device, &mut self.sockets);
        self.interface.poll(Instant::now(), device, sockets);
    }

    fn add(&mut self, ring: usize) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; ring]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_congestion_control(tcp::CongestionControl::Cubic);
        self.sockets.add(socket)
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }
}

/// See the module.
pub(crate) struct Twin {
    front: Side,
    back: Side,
    pairs: Vec<(SocketHandle, SocketHandle)>,
    listening: Vec<SocketHandle>,
    /// Sockets that listen at a time, while there are fewer than this many connections.
    backlog: usize,
    flows: usize,
    /// The port of the next connection to the server.
    port: u16,
    comes_and_goes: bool,
    ring: usize,
    copying: Copying,
    buffer: Vec<u8>,
}

impl Twin {
    pub(crate) fn new(flows: u16, offload: Offload, copying: Copying, ring: usize) -> Twin {
        Twin {
            front: Side::new(FRONT, offload),
            back: Side::new(BACK, offload),
            pairs: Vec::new(),
            listening: Vec::new(),
            backlog: 1,
            flows: flows.into(),
            port: FIRST_PORT,
            comes_and_goes: false,
            ring,
            copying,
            buffer: vec![0; 65_536],
        }
    }

    /// For connections that come and go, so many at a time.
    #[allow(dead_code, reason = "not every bench has it")]
    pub(crate) fn churning(at_a_time: usize, ring: usize) -> Twin {
        Twin {
            backlog: at_a_time,
            comes_and_goes: true,
            ..Twin::new(u16::MAX, Offload::Nothing, Copying::RingToRing, ring)
        }
    }

    /// Keeps sockets listening until all flows are accepted.
    fn accept(&mut self) {
        for at in (0..self.listening.len()).rev() {
            let a = self.listening[at];
            if self.front.socket(a).state() == tcp::State::Listen {
                continue;
            }
            self.listening.swap_remove(at);
            let b = self.back.add(self.ring);
            let Side {
                interface, sockets, ..
            } = &mut self.back;
            sockets
                .get_mut::<tcp::Socket<'_>>(b)
                .connect(interface.context(), (SERVER, SERVER_PORT), self.port)
                .expect("a connection");
            self.port = self.port.checked_add(1).unwrap_or(FIRST_PORT);
            self.pairs.push((a, b));
        }
        while self.listening.len() < self.backlog.min(self.flows - self.pairs.len()) {
            let a = self.front.add(self.ring);
            self.front.socket(a).listen(PROXY_PORT).expect("a listener");
            self.listening.push(a);
        }
    }

    /// Forwards ends, and removes pairs that have both. TIME-WAIT is left out.
    fn close(&mut self) {
        for at in (0..self.pairs.len()).rev() {
            let (front, back) = self.pairs[at];
            let a: &mut tcp::Socket<'_> = self.front.sockets.get_mut(front);
            let b: &mut tcp::Socket<'_> = self.back.sockets.get_mut(back);
            if has_ended(a) {
                b.close();
            }
            if has_ended(b) {
                a.close();
            }
            let over = |socket: &tcp::Socket<'_>| {
                matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait)
            };
            if over(a) && over(b) {
                self.front.sockets.remove(front);
                self.back.sockets.remove(back);
                self.pairs.swap_remove(at);
            }
        }
    }

    fn step(&mut self) {
        for (a, b) in &self.pairs {
            let (a, b) = (
                self.front.sockets.get_mut(*a),
                self.back.sockets.get_mut(*b),
            );
            match self.copying {
                Copying::RingToRing => {
                    ring_to_ring(a, b);
                    ring_to_ring(b, a);
                }
                Copying::Buffer => {
                    through_buffer(a, b, &mut self.buffer);
                    through_buffer(b, a, &mut self.buffer);
                }
            }
        }
    }
}

/// Its peer has closed, and everything before that was taken.
fn has_ended(source: &tcp::Socket<'_>) -> bool {
    use tcp::State::{CloseWait, Closed, Closing, LastAck, TimeWait};
    let closed = matches!(
        source.state(),
        CloseWait | Closing | LastAck | TimeWait | Closed
    );
    closed && !source.can_recv()
}

fn ring_to_ring(source: &mut tcp::Socket<'_>, sink: &mut tcp::Socket<'_>) {
    while source.can_recv() && sink.can_send() {
        let count = source.recv(|bytes| {
            let count = sink.send_slice(bytes).unwrap_or(0);
            (count, count)
        });
        if count.unwrap_or(0) == 0 {
            return;
        }
    }
}

fn through_buffer(source: &mut tcp::Socket<'_>, sink: &mut tcp::Socket<'_>, buffer: &mut [u8]) {
    while source.can_recv() && sink.can_send() {
        let room = (sink.send_capacity() - sink.send_queue()).min(buffer.len());
        let count = source.recv_slice(&mut buffer[..room]).unwrap_or(0);
        let sent = sink.send_slice(&buffer[..count]);
        assert_eq!(sent, Ok(count), "there was room");
    }
}

impl Proxy for Twin {
    fn front(&mut self) -> &mut dyn Wire {
        &mut self.front.device
    }

    fn back(&mut self) -> &mut dyn Wire {
        &mut self.back.device
    }

    fn turn(&mut self) {
        if !self.listening.is_empty() || self.pairs.len() < self.flows {
            self.accept();
        }
        self.front.poll();
        self.step();
        if self.comes_and_goes {
            self.close();
        }
        self.back.poll();
    }

    fn keep_payload(&mut self, keep: bool) {
        self.front.device.keep = keep;
        self.back.device.keep = keep;
    }
}
