//! Peers of a proxy with negligible cost: a client that sends and a server that acknowledges, made of
//! header templates. They exchange real TCP with the proxy, one packet of up to 64 KiB at a time;
//! payload is passed as a length, and the wire fills in the bytes.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

/// The client, the proxy's two sides, the server.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
pub(crate) const FRONT: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
pub(crate) const BACK: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
/// Where the proxy listens, and where the server does.
pub(crate) const PROXY_PORT: u16 = 8080;
pub(crate) const SERVER_PORT: u16 = 9000;
/// Port of the client's first flow.
pub(crate) const FIRST_PORT: u16 = 10_000;

pub(crate) const MSS: u16 = 1460;
/// Window that the peers announce: 65,535 << 7 is 8 MiB.
const SHIFT: u8 = 7;
/// MSS and window scale.
pub(crate) const OPTIONS: [u8; 8] = [
    2,
    4,
    MSS.to_be_bytes()[0],
    MSS.to_be_bytes()[1],
    1,
    3,
    3,
    SHIFT,
];

/// Length of a header with options.
pub(crate) const HEADER_MAX: usize = 48;
/// Maximum payload of a segment.
pub(crate) const PAYLOAD_MAX: usize = 65_495;

/// The bytes of a payload.
pub(crate) fn pattern(at: usize) -> u8 {
    (at as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .to_be_bytes()[0]
}

/// Whether the links cut large frames into segments.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Offload {
    Segments,
    Nothing,
}

impl Offload {
    /// The largest frame.
    pub(crate) fn size(self) -> Option<usize> {
        match self {
            Offload::Segments => Some(65_535),
            Offload::Nothing => None,
        }
    }
}

/// A peer's end of a link to the proxy.
pub(crate) trait Wire {
    /// Sends a header and `len` bytes of the pattern, from its start. `false`: the link is full.
    fn send(&mut self, header: &[u8], len: usize) -> bool;
    /// Appends received packets.
    fn take(&mut self, seen: &mut Vec<Seen>);
}

/// Something between a client and a server, in one thread.
pub(crate) trait Proxy {
    /// The client's end of the front link.
    fn front(&mut self) -> &mut dyn Wire;
    /// The server's end of the back link.
    fn back(&mut self) -> &mut dyn Wire;
    /// Does a part of the present work.
    fn turn(&mut self);
    /// From now on wires keep the payload they see, or not.
    fn keep_payload(&mut self, keep: bool);
}

/// The relevant fields of a packet that the proxy sent.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) proxy_port: u16,
    pub(crate) peer_port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    window: u32,
    shift: u8,
    pub(crate) len: usize,
    /// Empty unless asked for.
    pub(crate) payload: Vec<u8>,
}

impl Seen {
    /// Reads the header of a packet of `total` bytes.
    pub(crate) fn new(packet: &[u8], total: usize) -> Seen {
        let be16 = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let be32 = |at: usize| u32::from(be16(at)) << 16 | u32::from(be16(at + 2));
        let header_len = Seen::header_len(packet);
        let mut seen = Seen {
            proxy_port: be16(20),
            peer_port: be16(22),
            seq: be32(24),
            ack: be32(28),
            flags: packet[33],
            window: be16(34).into(),
            shift: 0,
            len: total - header_len,
            payload: Vec::new(),
        };
        if seen.flags & SYN != 0 {
            let mut options = &packet[40..header_len];
            while let [kind, rest @ ..] = options {
                if *kind == 0 {
                    break;
                }
                if let (3, [_, shift, ..]) = (*kind, rest) {
                    seen.shift = *shift;
                }
                let skip = if *kind == 1 {
                    0
                } else {
                    usize::from(rest[0]) - 1
                };
                options = &rest[skip..];
            }
        }
        seen
    }

    pub(crate) fn header_len(packet: &[u8]) -> usize {
        20 + usize::from(packet[32] >> 4) * 4
    }
}

/// A TCP/IPv4 header from a peer to the proxy. Checksums are left to the link, except IP's.
pub(crate) struct Header {
    bytes: [u8; HEADER_MAX],
    len: usize,
}

impl Header {
    pub(crate) fn new(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), options: &[u8]) -> Header {
        let len = 40 + options.len();
        let mut bytes = [0; HEADER_MAX];
        bytes[0] = 0x45;
        bytes[8] = 64;
        bytes[9] = 6;
        bytes[12..16].copy_from_slice(&from.0.octets());
        bytes[16..20].copy_from_slice(&to.0.octets());
        bytes[20..22].copy_from_slice(&from.1.to_be_bytes());
        bytes[22..24].copy_from_slice(&to.1.to_be_bytes());
        bytes[32] = u8::try_from((len - 20) / 4 * 16).expect("at most 60 bytes");
        bytes[34..36].copy_from_slice(&u16::MAX.to_be_bytes());
        bytes[40..len].copy_from_slice(options);
        Header { bytes, len }
    }

    /// The header for a segment.
    pub(crate) fn segment(&mut self, flags: u8, seq: u32, ack: u32, payload: usize) -> &[u8] {
        let total = u16::try_from(self.len + payload).expect("at most 64 KiB");
        self.bytes[2..4].copy_from_slice(&total.to_be_bytes());
        self.bytes[10..12].fill(0);
        let words = self.bytes[..20].chunks_exact(2);
        let sum: u32 = words
            .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
            .sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = !(sum + (sum >> 16));
        self.bytes[10..12].copy_from_slice(&sum.to_be_bytes()[2..]);
        self.bytes[24..28].copy_from_slice(&seq.to_be_bytes());
        self.bytes[28..32].copy_from_slice(&ack.to_be_bytes());
        self.bytes[33] = flags;
        &self.bytes[..self.len]
    }
}

/// A flow of the client.
struct Sender {
    header: Header,
    next: u32,
    /// End of the window.
    edge: u32,
    shift: u8,
    /// The acknowledgement sent to the proxy.
    ack: u32,
    established: bool,
    /// In `Client::ready`.
    ready: bool,
}

/// Sends on all flows in turn, one segment at a time, as much as windows and the link allow.
pub(crate) struct Client {
    flows: Vec<Sender>,
    /// Which flow has a port.
    by_port: Vec<u16>,
    ports: Vec<u16>,
    ready: VecDeque<usize>,
    /// All flows are established: sending may begin.
    open: bool,
    segment: usize,
    /// Maximum number of segments sent in a turn.
    burst: usize,
    /// Packets of the proxy.
    answers: u64,
    seen: Vec<Seen>,
}

impl Client {
    fn new(ports: Vec<u16>, segment: usize, burst: usize) -> Client {
        let flow = |port: &u16| Sender {
            header: Header::new((CLIENT, *port), (FRONT, PROXY_PORT), &[]),
            next: 1,
            edge: 1,
            shift: 0,
            ack: 0,
            established: false,
            ready: false,
        };
        let mut by_port = vec![0; 1 << 16];
        for (index, port) in (0..).zip(&ports) {
            by_port[usize::from(*port)] = index;
        }
        Client {
            flows: ports.iter().map(flow).collect(),
            by_port,
            ports,
            ready: VecDeque::new(),
            open: false,
            segment,
            burst,
            answers: 0,
            seen: Vec::new(),
        }
    }

    fn dial(&mut self, index: usize, wire: &mut dyn Wire) -> bool {
        let mut header = Header::new((CLIENT, self.ports[index]), (FRONT, PROXY_PORT), &OPTIONS);
        wire.send(header.segment(SYN, 0, 0, 0), 0)
    }

    fn send(&mut self, wire: &mut dyn Wire) {
        for _ in 0..self.burst {
            let Some(&index) = self.ready.front().filter(|_| self.open) else {
                return;
            };
            let flow = &mut self.flows[index];
            let header = flow.header.segment(ACK, flow.next, flow.ack, self.segment);
            if !wire.send(header, self.segment) {
                return;
            }
            flow.next = flow
                .next
                .wrapping_add(u32::try_from(self.segment).expect("64 KiB"));
            self.ready.pop_front();
            flow.ready = flow.edge.wrapping_sub(flow.next) as usize >= self.segment;
            if flow.ready {
                self.ready.push_back(index);
            }
        }
    }

    fn receive(&mut self, wire: &mut dyn Wire) {
        wire.take(&mut self.seen);
        self.answers += self.seen.len() as u64;
        for seen in self.seen.drain(..) {
            assert_eq!(
                seen.flags & (RST | FIN),
                0,
                "the proxy ended a flow: {seen:?}"
            );
            let index = usize::from(self.by_port[usize::from(seen.peer_port)]);
            let flow = &mut self.flows[index];
            if seen.flags & SYN != 0 {
                flow.ack = seen.seq.wrapping_add(1);
                flow.shift = seen.shift;
                flow.edge = seen.ack.wrapping_add(seen.window);
                flow.established = true;
                let header = flow.header.segment(ACK, flow.next, flow.ack, 0);
                assert!(wire.send(header, 0), "a handshake found the link full");
            } else {
                flow.edge = seen.ack.wrapping_add(seen.window << flow.shift);
            }
            let room = flow.edge.wrapping_sub(flow.next).cast_signed();
            if !flow.ready && usize::try_from(room).is_ok_and(|room| room >= self.segment) {
                flow.ready = true;
                self.ready.push_back(index);
            }
        }
    }
}

/// A flow of the server.
struct Receiver {
    header: Header,
    next: u32,
    /// Where in the pattern the next byte is.
    at: usize,
    dirty: bool,
}

/// Acknowledges all data, once for each flow and batch, and keeps its window open.
pub(crate) struct Server {
    flows: Vec<Receiver>,
    by_port: Vec<Option<usize>>,
    dirty: VecDeque<usize>,
    segment: usize,
    seen: Vec<Seen>,
    bytes: u64,
    /// Packets of the proxy.
    packets: u64,
    repeated: u64,
    /// Bytes that were compared.
    checked: u64,
}

impl Server {
    fn new(segment: usize) -> Server {
        Server {
            flows: Vec::new(),
            by_port: vec![None; 1 << 16],
            dirty: VecDeque::new(),
            segment,
            seen: Vec::new(),
            bytes: 0,
            packets: 0,
            repeated: 0,
            checked: 0,
        }
    }

    fn accept(&mut self, syn: &Seen, wire: &mut dyn Wire) {
        let (from, to) = ((SERVER, SERVER_PORT), (BACK, syn.proxy_port));
        let next = syn.seq.wrapping_add(1);
        let mut header = Header::new(from, to, &OPTIONS);
        let sent = wire.send(header.segment(SYN | ACK, 0, next, 0), 0);
        assert!(sent, "a handshake found the link full");
        self.by_port[usize::from(syn.proxy_port)] = Some(self.flows.len());
        self.flows.push(Receiver {
            header: Header::new(from, to, &[]),
            next,
            at: 0,
            dirty: false,
        });
    }

    fn receive(&mut self, wire: &mut dyn Wire) {
        let mut batch = std::mem::take(&mut self.seen);
        wire.take(&mut batch);
        self.packets += batch.len() as u64;
        for seen in batch.drain(..) {
            assert_eq!(
                seen.flags & (RST | FIN),
                0,
                "the proxy ended a flow: {seen:?}"
            );
            let Some(index) = self.by_port[usize::from(seen.proxy_port)] else {
                self.accept(&seen, wire);
                continue;
            };
            let flow = &mut self.flows[index];
            if seen.len == 0 {
                continue;
            }
            if seen.seq == flow.next {
                self.bytes += seen.len as u64;
                flow.next = seen
                    .seq
                    .wrapping_add(u32::try_from(seen.len).expect("64 KiB"));
                let from = flow.at;
                flow.at = (from + seen.len) % self.segment;
                self.checked += self.check(&seen, from);
            } else {
                self.repeated += 1;
            }
            let flow = &mut self.flows[index];
            if !flow.dirty {
                flow.dirty = true;
                self.dirty.push_back(index);
            }
        }
        self.seen = batch;
        while let Some(&index) = self.dirty.front() {
            let flow = &mut self.flows[index];
            if !wire.send(flow.header.segment(ACK, 1, flow.next, 0), 0) {
                return;
            }
            flow.dirty = false;
            self.dirty.pop_front();
        }
    }

    /// Fails if the payload, as far as it was kept, is not the pattern from there on.
    fn check(&self, seen: &Seen, from: usize) -> u64 {
        let mut kept = seen.payload.iter().enumerate();
        let right = kept.all(|(i, byte)| pattern((from + i) % self.segment) == *byte);
        assert!(right, "the proxy has changed the bytes");
        seen.payload.len() as u64
    }
}

/// A proxy with its peers and established flows.
pub(crate) struct Rig<P> {
    pub(crate) proxy: P,
    client: Client,
    server: Server,
}

impl<P: Proxy> Rig<P> {
    /// Connects `flows` flows and compares the bytes for a moment.
    #[allow(dead_code, reason = "not every bench lets it choose")]
    pub(crate) fn new(proxy: P, flows: u16, segment: usize, burst: usize) -> Rig<P> {
        let ports = (FIRST_PORT..).take(flows.into()).collect();
        Rig::from_ports(proxy, ports, segment, burst)
    }

    /// As [`new`](Self::new), a flow from each of these ports of the client.
    pub(crate) fn from_ports(proxy: P, ports: Vec<u16>, segment: usize, burst: usize) -> Rig<P> {
        let flows = ports.len();
        let mut rig = Rig {
            proxy,
            client: Client::new(ports, segment, burst),
            server: Server::new(segment),
        };
        for index in 0..flows {
            while !rig.client.dial(index, rig.proxy.front()) {
                rig.turn();
            }
            // A SYN at a time: backlogs are not measured.
            rig.turn_until("a flow to be established", |rig| {
                rig.client.flows[index].established && rig.server.flows.len() > index
            });
        }
        rig.client.open = true;
        rig.proxy.keep_payload(true);
        rig.transfer(flows as u64 * 4096);
        rig.proxy.keep_payload(false);
        assert!(rig.server.checked > 0, "no payload was compared");
        rig
    }

    fn turn(&mut self) {
        self.client.send(self.proxy.front());
        self.proxy.turn();
        self.server.receive(self.proxy.back());
        self.client.receive(self.proxy.front());
    }

    fn turn_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..1_000_000 {
            if done(self) {
                return;
            }
            self.turn();
        }
        panic!("waited in vain for {what}");
    }

    /// Moves at least so many bytes from the client to the server.
    pub(crate) fn transfer(&mut self, bytes: u64) {
        let until = self.server.bytes + bytes;
        let mut idle = 0;
        while self.server.bytes < until {
            let before = self.server.bytes;
            self.turn();
            idle = if self.server.bytes == before {
                idle + 1
            } else {
                0
            };
            assert!(idle < 1_000_000, "no byte moves any more");
        }
    }

    /// Lets all data arrive and be acknowledged, so that no timer runs meanwhile.
    pub(crate) fn settle(&mut self) {
        self.client.open = false;
        let mut before = u64::MAX;
        while before != self.server.bytes {
            before = self.server.bytes;
            let turns = 10_000 / self.server.flows.len().max(10);
            (0..turns.max(10)).for_each(|_| self.turn());
        }
        self.client.open = true;
    }

    /// No flow sends by itself from now on.
    pub(crate) fn hush(&mut self) {
        self.settle();
        self.client.open = false;
    }

    /// Sends one segment on a flow, and has it acknowledged to both sides.
    pub(crate) fn send_one(&mut self, index: usize) {
        let flow = &mut self.client.flows[index];
        let header = flow
            .header
            .segment(ACK, flow.next, flow.ack, self.client.segment);
        let sent = self.proxy.front().send(header, self.client.segment);
        assert!(sent, "an empty link is full");
        let segment = u32::try_from(self.client.segment).expect("64 KiB");
        flow.next = flow.next.wrapping_add(segment);
        let until = self.server.bytes + u64::from(segment);
        self.turn_until("a segment", |rig| rig.server.bytes >= until);
        // The server's acknowledgement.
        self.proxy.turn();
    }

    #[allow(dead_code, reason = "not every bench asks")]
    /// Packets that the proxy sent to the client and to the server for each of the client's.
    #[allow(dead_code, reason = "not every bench asks")]
    pub(crate) fn packets(&self) -> (f64, f64) {
        let segments = self.server.bytes as f64 / self.client.segment as f64;
        let packets = (self.client.answers as f64, self.server.packets as f64);
        (packets.0 / segments, packets.1 / segments)
    }

    /// Segments that the proxy retransmitted.
    #[allow(dead_code, reason = "not every bench asks")]
    pub(crate) fn repeated(&self) -> u64 {
        self.server.repeated
    }
}
