//! Bytes between two sockets of one smoltcp `SocketSet`, in one thread: as a splice, and its twins, copied by the
//! program's own loop from ring to ring, or through a buffer.
//!
//! The peers have negligible cost; checksums are left to the link, but for one case. So this is the cost of smoltcp's
//! TCP and of moving the bytes. `cargo bench --bench smoltcp` prints a table of interleaved rounds; `-- count "1 flow x 1460" spliced`
//! works for `valgrind --tool=callgrind`.
#![allow(missing_docs, reason = "a program")]

#[path = "support/machine.rs"]
#[allow(dead_code, reason = "its time is of one thread")]
mod machine;
#[path = "support/peers.rs"]
#[allow(dead_code, reason = "other benches use the rest")]
mod peers;

use machine::summary;
use peers::{
    BACK, FIRST_PORT, FRONT, HEADER_MAX, Offload, PAYLOAD_MAX, PROXY_PORT, Proxy, Rig, SERVER,
    SERVER_PORT, Seen, Wire, pattern,
};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Checksum, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::socket::AnySocket;
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use sosplice::smoltcp::Adapter;
use sosplice::splice::{self, Join};
use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::time::Duration;

/// Bytes of each ring.
const RING: usize = 256 * 1024;
/// Frames that a link holds in each direction.
const FRAMES: usize = 256;
const ROUNDS: usize = 9;
/// The splice against the better twin.
const TARGET: f64 = 1.1;

struct Case {
    name: &'static str,
    flows: u16,
    /// Payload of the client's segments.
    segment: usize,
    offload: Offload,
    /// smoltcp computes the checksums of what it sends, as it does for most devices; those of received segments are
    /// not verified.
    sums: bool,
    /// Bytes of a round.
    bytes: u64,
}

const CASES: [Case; 5] = [
    Case {
        name: "1 flow x 64 KiB",
        flows: 1,
        segment: 44 * 1460,
        offload: Offload::Segments,
        sums: false,
        bytes: 2 << 30,
    },
    Case {
        name: "1 flow x 1460",
        flows: 1,
        segment: 1460,
        offload: Offload::Nothing,
        sums: false,
        bytes: 1 << 30,
    },
    Case {
        name: "1 flow x 1460, checksums",
        flows: 1,
        segment: 1460,
        offload: Offload::Nothing,
        sums: true,
        bytes: 1 << 30,
    },
    Case {
        name: "16 flows x 1460",
        flows: 16,
        segment: 1460,
        offload: Offload::Nothing,
        sums: false,
        bytes: 256 << 20,
    },
    Case {
        name: "100 flows x 1460",
        flows: 100,
        segment: 1460,
        offload: Offload::Nothing,
        sums: false,
        bytes: 64 << 20,
    },
];

const CONTESTANTS: [&str; 3] = ["spliced", "ring to ring", "through 64 KiB"];

struct Header {
    bytes: [u8; HEADER_MAX],
    len: usize,
    payload: usize,
}

/// A peer's end of the link.
#[derive(Default)]
struct Port {
    inbox: VecDeque<Header>,
    outbox: Vec<Seen>,
}

impl Wire for Port {
    fn send(&mut self, header: &[u8], payload: usize) -> bool {
        let room = self.inbox.len() < FRAMES;
        if room {
            let mut bytes = [0; HEADER_MAX];
            bytes[..header.len()].copy_from_slice(header);
            let len = header.len();
            self.inbox.push_back(Header {
                bytes,
                len,
                payload,
            });
        }
        room
    }

    fn take(&mut self, seen: &mut Vec<Seen>) {
        seen.append(&mut self.outbox);
    }
}

/// The link of client and server. Received packets share one buffer, which stays in the cache; so do those to send.
struct Device {
    ports: [Port; 2],
    /// Room for a header, and the payload of every packet.
    rx: Vec<u8>,
    tx: Vec<u8>,
    offload: Offload,
    sums: bool,
    keep: bool,
}

struct Rx<'a>(&'a [u8]);

struct Tx<'a> {
    packet: &'a mut [u8],
    ports: &'a mut [Port; 2],
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
        let to_server = self.packet[16..20] == SERVER.octets();
        self.ports[usize::from(to_server)].outbox.push(seen);
        result
    }
}

impl phy::Device for Device {
    type RxToken<'a> = Rx<'a>;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Rx<'_>, Tx<'_>)> {
        let mut ports = self.ports.iter_mut();
        let header = ports.find_map(|port| port.inbox.pop_front())?;
        let from = HEADER_MAX - header.len;
        self.rx[from..HEADER_MAX].copy_from_slice(&header.bytes[..header.len]);
        let tx = Tx {
            packet: &mut self.tx,
            ports: &mut self.ports,
            keep: self.keep,
        };
        Some((Rx(&self.rx[from..HEADER_MAX + header.payload]), tx))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        let room = self.ports.iter().all(|port| port.outbox.len() < FRAMES);
        room.then_some(Tx {
            packet: &mut self.tx,
            ports: &mut self.ports,
            keep: self.keep,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities.checksum = ChecksumCapabilities::ignored();
        if self.sums {
            capabilities.checksum.tcp = Checksum::Tx;
        }
        capabilities.segmentation.tcpv4 = self.offload.size().and_then(NonZeroUsize::new);
        capabilities
    }
}

/// How bytes get from one socket to the other.
enum Mover {
    /// The connections that are spliced.
    Spliced(Box<Adapter>, Vec<Join>),
    RingToRing,
    Buffer(Vec<u8>),
}

/// A proxy with one interface and one set, in which the sockets of a flow have successive handles.
struct Forwarder {
    device: Device,
    interface: Interface,
    sockets: SocketSet<'static>,
    pairs: Vec<(SocketHandle, SocketHandle)>,
    dialled: usize,
    mover: Mover,
}

impl Forwarder {
    fn new(case: &Case, mover: Mover) -> Forwarder {
        let mut rx = vec![0; HEADER_MAX];
        rx.extend((0..PAYLOAD_MAX).map(pattern));
        let mut device = Device {
            ports: Default::default(),
            rx,
            tx: vec![0; HEADER_MAX + PAYLOAD_MAX],
            offload: case.offload,
            sums: case.sums,
            keep: false,
        };
        let config = Config::new(HardwareAddress::Ip);
        let mut interface = Interface::new(config, &mut device, Instant::now());
        interface.update_ip_addrs(|addresses| {
            addresses.extend([FRONT, BACK].map(|ip| IpCidr::new(IpAddress::from(ip), 24)));
        });
        let mut sockets = SocketSet::new(Vec::new());
        let mut add = || {
            let ring = || tcp::SocketBuffer::new(vec![0; RING]);
            let mut socket = tcp::Socket::new(ring(), ring());
            socket.set_nagle_enabled(false);
            socket.set_ack_delay(None);
            sockets.add(socket)
        };
        let pairs: Vec<_> = (0..case.flows).map(|_| (add(), add())).collect();
        for (a, _) in &pairs {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(*a);
            socket.listen(PROXY_PORT).expect("a listener");
        }
        Forwarder {
            device,
            interface,
            sockets,
            pairs,
            dialled: 0,
            mover,
        }
    }

    /// Dials the server for a flow that was accepted.
    fn accept(&mut self) {
        let Some((a, b)) = self.pairs.get(self.dialled) else {
            return;
        };
        let accepted = self.sockets.get::<tcp::Socket<'_>>(*a).state();
        if accepted != tcp::State::Established {
            return;
        }
        let port = FIRST_PORT + u16::try_from(self.dialled).expect("few flows");
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(*b);
        let (context, to) = (self.interface.context(), (SERVER, SERVER_PORT));
        socket.connect(context, to, port).expect("a connection");
        if let Mover::Spliced(adapter, joins) = &mut self.mover {
            let ends =
                [a, b].map(|handle| adapter.adopt(&self.sockets, *handle).expect("is connected"));
            let [a, b] = ends;
            joins.push(splice::join(a, b, splice::Options::default()).expect("no splice yet"));
        }
        self.dialled += 1;
    }

    fn copy(&mut self, now: Instant) {
        let sockets = &mut self.sockets;
        match &mut self.mover {
            Mover::Spliced(adapter, _) => {
                adapter.polled(sockets, now);
            }
            Mover::RingToRing => {
                let mut all = sockets
                    .iter_mut()
                    .filter_map(|(_, socket)| tcp::Socket::downcast_mut(socket));
                while let (Some(a), Some(b)) = (all.next(), all.next()) {
                    ring_to_ring(a, b);
                    ring_to_ring(b, a);
                }
            }
            Mover::Buffer(buffer) => {
                for (a, b) in &self.pairs {
                    through_buffer(sockets, *a, *b, buffer);
                    through_buffer(sockets, *b, *a, buffer);
                }
            }
        }
    }
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

fn through_buffer(
    sockets: &mut SocketSet<'_>,
    source: SocketHandle,
    sink: SocketHandle,
    buffer: &mut [u8],
) {
    loop {
        let to = sockets.get::<tcp::Socket<'_>>(sink);
        let room = if to.may_send() {
            to.send_capacity() - to.send_queue()
        } else {
            0
        };
        let room = room.min(buffer.len());
        let from = sockets.get_mut::<tcp::Socket<'_>>(source);
        if room == 0 || !from.can_recv() {
            return;
        }
        let count = from.recv_slice(&mut buffer[..room]).unwrap_or(0);
        let sent = sockets
            .get_mut::<tcp::Socket<'_>>(sink)
            .send_slice(&buffer[..count]);
        assert_eq!(sent, Ok(count), "there was room");
    }
}

impl Proxy for Forwarder {
    fn front(&mut self) -> &mut dyn Wire {
        &mut self.device.ports[0]
    }

    fn back(&mut self) -> &mut dyn Wire {
        &mut self.device.ports[1]
    }

    fn turn(&mut self) {
        let now = Instant::now();
        self.interface
            .poll(now, &mut self.device, &mut self.sockets);
        self.accept();
        self.copy(now);
    }

    fn keep_payload(&mut self, keep: bool) {
        self.device.keep = keep;
    }
}

/// Processor time of all threads.
fn busy() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("time goes forwards")
}

fn contestant(case: &Case, which: usize) -> Rig<Forwarder> {
    let mover = match which {
        0 => Mover::Spliced(Box::new(Adapter::new(|| {})), Vec::new()),
        1 => Mover::RingToRing,
        _ => Mover::Buffer(vec![0; 65_536]),
    };
    let mut rig = Rig::new(
        Forwarder::new(case, mover),
        case.flows,
        case.segment,
        FRAMES,
    );
    // Uses all rings once.
    rig.transfer(u64::from(case.flows) * RING as u64 * 5 / 4);
    rig.settle();
    rig
}

/// Not inlined, so that `valgrind --tool=callgrind` can select it by name.
#[inline(never)]
fn transfer(rig: &mut Rig<Forwarder>, bytes: u64) {
    rig.transfer(bytes);
}

fn table() {
    machine::caption(&format!(
        "processor time for a gigabyte, in ms, of all threads; median (range) of {ROUNDS} interleaved rounds"
    ));
    println!(
        "one SocketSet, rings of {RING} bytes, MTU 1500, no Nagle, no delayed ACK; checksums are left to the link where the case does not say"
    );
    for case in &CASES {
        let mut contestants = [0, 1, 2].map(|which| contestant(case, which));
        let mut costs = [const { Vec::new() }; 3];
        let mut ratios = [const { Vec::new() }; 2];
        for round in 0..ROUNDS {
            let mut now = [0.0; 3];
            for turn in 0..3 {
                let which = (round + turn) % 3;
                let start = busy();
                transfer(&mut contestants[which], case.bytes);
                now[which] = (busy() - start).as_secs_f64() * 1e12 / case.bytes as f64;
                contestants[which].settle();
                costs[which].push(now[which]);
            }
            ratios[0].push(now[0] / now[1]);
            ratios[1].push(now[0] / now[2]);
        }
        println!("\n{}", case.name);
        for (name, costs) in CONTESTANTS.iter().zip(costs) {
            let (median, least, most) = summary(costs);
            println!("  {name:<16} {median:8.1}  ({least:.1} to {most:.1})");
        }
        for (name, ratios) in CONTESTANTS[1..].iter().zip(ratios) {
            let (median, least, most) = summary(ratios);
            println!(
                "  spliced / {name:<16} {median:5.2}  ({least:.2} to {most:.2}), target {TARGET}"
            );
        }
        for contestant in &contestants {
            assert_eq!(
                contestant.repeated(),
                0,
                "segments were retransmitted without losses"
            );
        }
    }
}

/// Runs one contestant, for valgrind.
fn count(case: &str, name: &str) {
    let case = CASES.iter().find(|one| one.name == case);
    let which = CONTESTANTS.iter().position(|other| *other == name);
    let (Some(case), Some(which)) = (case, which) else {
        panic!("count CASE CONTESTANT, as the table calls them");
    };
    let mut rig = contestant(case, which);
    transfer(&mut rig, case.bytes / 16);
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [.., command, case, contestant] if command == "count" => count(case, contestant),
        [only] if only == "--bench" => table(),
        _ => {
            for case in &CASES {
                for which in 0..3 {
                    contestant(case, which);
                }
            }
        }
    }
}
