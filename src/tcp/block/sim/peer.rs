//! A block against a plain smoltcp socket: another TCP at the other end of the path.

use super::monitor::Monitor;
use super::path::{Direction, Path};
use crate::tcp::block::segment::{ACK, FIN, PSH, RST, SYN, Segment, SegmentOptions, Timestamps};
use crate::tcp::block::tcb::{Config, News, Tcb};
use crate::tcp::block::time::Instant;
use crate::tcp::block::time::start as any_time;
use smoltcp::iface::{Interface, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::wire::{
    HardwareAddress, IpCidr, IpProtocol, IpRepr, Ipv4Address, Ipv4Packet, Ipv4Repr, TcpControl,
    TcpPacket, TcpRepr, TcpSeqNumber,
};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

const US: Ipv4Address = Ipv4Address::new(10, 0, 0, 1);
const THEM: Ipv4Address = Ipv4Address::new(10, 0, 0, 2);

/// Packets to and from smoltcp.
#[derive(Default)]
struct Wire {
    to: VecDeque<Vec<u8>>,
    from: Vec<Vec<u8>>,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut Vec<Vec<u8>>);

impl smoltcp::phy::RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl smoltcp::phy::TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

fn capabilities() -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = 1500;
    capabilities.checksum = ChecksumCapabilities::ignored();
    capabilities.checksum.tcp = Checksum::None;
    capabilities
}

impl Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Rx, Tx<'_>)> {
        let packet = self.to.pop_front()?;
        Some((Rx(packet), Tx(&mut self.from)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.from))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities()
    }
}

fn compose(segment: &Segment, payload: &[u8]) -> Vec<u8> {
    let mut sack_ranges = [None; 3];
    for (place, block) in sack_ranges.iter_mut().zip(&segment.options.sack) {
        *place = Some(*block);
    }
    let control = match segment.flags & (SYN | FIN | RST | PSH) {
        flags if flags & SYN != 0 => TcpControl::Syn,
        flags if flags & RST != 0 => TcpControl::Rst,
        flags if flags & FIN != 0 => TcpControl::Fin,
        PSH => TcpControl::Psh,
        _ => TcpControl::None,
    };
    let seq = |seq: u32| TcpSeqNumber(seq.cast_signed());
    let repr = TcpRepr {
        src_port: 1,
        dst_port: 2,
        control,
        seq_number: seq(segment.seq),
        ack_number: segment.has(ACK).then(|| seq(segment.ack)),
        window_len: segment.window,
        window_scale: segment.options.window_scale,
        max_seg_size: segment.options.mss,
        sack_permitted: segment.options.sack_permitted,
        sack_ranges,
        timestamp: segment
            .options
            .timestamps
            .map(|stamps| smoltcp::wire::TcpTimestampRepr::new(stamps.value, stamps.echo)),
        payload,
    };
    let ip = Ipv4Repr {
        src_addr: US,
        dst_addr: THEM,
        next_header: IpProtocol::Tcp,
        payload_len: repr.buffer_len(),
        hop_limit: 64,
    };
    let mut packet = vec![0; ip.buffer_len() + repr.buffer_len()];
    ip.emit(
        &mut Ipv4Packet::new_unchecked(&mut packet),
        &capabilities().checksum,
    );
    let mut tcp = TcpPacket::new_unchecked(&mut packet[ip.buffer_len()..]);
    let IpRepr::Ipv4(_) = IpRepr::Ipv4(ip) else {
        unreachable!()
    };
    repr.emit(&mut tcp, &US.into(), &THEM.into(), &capabilities().checksum);
    packet
}

fn parse(packet: &[u8]) -> (Segment, Vec<u8>) {
    let ip = Ipv4Packet::new_checked(packet).unwrap();
    let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
    let repr = TcpRepr::parse(&tcp, &THEM.into(), &US.into(), &capabilities().checksum).unwrap();
    let flags = match repr.control {
        TcpControl::None => 0,
        TcpControl::Psh => PSH,
        TcpControl::Syn => SYN,
        TcpControl::Fin => FIN,
        TcpControl::Rst => RST,
    };
    let ack = repr.ack_number.map(|ack| ack.0.cast_unsigned());
    let segment = Segment {
        seq: repr.seq_number.0.cast_unsigned(),
        ack: ack.unwrap_or(0),
        flags: flags | if ack.is_some() { ACK } else { 0 },
        window: repr.window_len,
        options: SegmentOptions {
            mss: repr.max_seg_size,
            window_scale: repr.window_scale,
            sack_permitted: repr.sack_permitted,
            timestamps: repr.timestamp.map(|stamps| Timestamps {
                value: stamps.tsval,
                echo: stamps.tsecr,
            }),
            sack: repr.sack_ranges.iter().flatten().copied().collect(),
        },
        len: repr.payload.len(),
        marked: false,
    };
    (segment, repr.payload.to_vec())
}

/// Byte of either stream.
fn byte(position: usize) -> u8 {
    (position.wrapping_mul(31) >> 3).to_le_bytes()[0]
}

fn stream(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(byte).collect()
}

/// smoltcp's end.
struct Peer {
    iface: Interface,
    wire: Wire,
    sockets: SocketSet<'static>,
    socket: smoltcp::iface::SocketHandle,
    received: usize,
    sent: usize,
    total: usize,
}

impl Peer {
    fn new(total: usize) -> Peer {
        let mut wire = Wire::default();
        let config = smoltcp::iface::Config::new(HardwareAddress::Ip);
        let mut iface = Interface::new(config, &mut wire, smoltcp::time::Instant::ZERO);
        iface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(THEM.into(), 24)).unwrap();
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; 100_000]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.listen(2).unwrap();
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(socket);
        Peer {
            iface,
            wire,
            sockets,
            socket,
            received: 0,
            sent: 0,
            total,
        }
    }

    /// Processes received packets and timers.
    fn poll(&mut self, now: smoltcp::time::Instant) -> Option<smoltcp::time::Instant> {
        self.iface.poll(now, &mut self.wire, &mut self.sockets);
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
        while socket.can_recv() {
            let from = self.received;
            let count = socket
                .recv(|bytes| {
                    assert_eq!(bytes, stream(from, bytes.len()), "at {from}");
                    (bytes.len(), bytes.len())
                })
                .unwrap();
            self.received += count;
        }
        if socket.may_send() && self.sent < self.total {
            let most = (self.total - self.sent).min(50_000);
            self.sent += socket.send_slice(&stream(self.sent, most)).unwrap();
        }
        if self.sent == self.total && socket.state() == tcp::State::CloseWait {
            socket.close();
        }
        self.iface.poll(now, &mut self.wire, &mut self.sockets);
        self.iface.poll_at(now, &self.sockets)
    }
}

/// A block, smoltcp, and the packets in flight between them.
struct Exchange {
    start: Instant,
    now: Instant,
    ways: [Direction; 2],
    under_way: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    count: u64,
    monitor: Monitor,
    peer: Peer,
    tcb: Tcb,
    /// The received bytes, and how many of them were read.
    kept: Vec<u8>,
    read: u64,
    total: usize,
}

impl Exchange {
    fn new(ours: usize, theirs: usize, path: &Path, seed: u64) -> Exchange {
        let start = any_time();
        Exchange {
            start,
            now: start,
            ways: [0, 1].map(|way| Direction::new(path.clone(), 2 * seed + way, start)),
            under_way: BTreeMap::new(),
            count: 0,
            monitor: Monitor::default(),
            peer: Peer::new(theirs),
            tcb: Tcb::connect(&Config::default(), start),
            kept: Vec::new(),
            read: 0,
            total: ours,
        }
    }

    fn send(&mut self, way: usize, packet: &[u8]) {
        for at in self.ways[way].send(packet.len(), self.now) {
            self.count += 1;
            self.under_way
                .insert((at, self.count), (way, packet.to_vec()));
        }
    }

    /// Runs our end. `true` if it is in TIME-WAIT.
    fn serve(&mut self) -> bool {
        let now = self.now;
        if self.tcb.in_order() > self.read {
            self.read = self.tcb.in_order();
            self.tcb.read(self.read, true, now);
        }
        let mut done = false;
        loop {
            while let Some(emission) = self.tcb.poll_transmit(1, now) {
                self.monitor.leaves(&emission.segment, now);
                let at = usize::try_from(emission.payload.start).unwrap();
                let packet = compose(&emission.segment, &stream(at, emission.segment.len));
                self.send(0, &packet);
            }
            match self.tcb.poll_event() {
                Some(News::Established) => {
                    self.tcb.written(self.total as u64, now);
                    self.tcb.shutdown(now);
                }
                Some(News::PeerClosed) => {}
                Some(News::TimeWait(_)) => done = true,
                Some(News::Ended(ending)) => panic!("{ending:?}"),
                None => return done,
            }
        }
    }

    fn arrive(&mut self, packet: &[u8]) {
        let (segment, payload) = parse(packet);
        self.monitor.arrives(&segment);
        let Some(taken) = self.tcb.handle_segment(&segment, self.now).kept else {
            return;
        };
        let to = usize::try_from(taken.position).unwrap() + taken.len;
        if self.kept.len() < to {
            self.kept.resize(to, 0);
        }
        self.kept[to - taken.len..to].copy_from_slice(&payload[taken.skip..taken.skip + taken.len]);
        let in_order = usize::try_from(self.tcb.in_order()).unwrap();
        let from = usize::try_from(self.read).unwrap();
        assert_eq!(self.kept[from..in_order], stream(from, in_order - from));
    }

    /// Advances to the next event. `true` if both have closed.
    fn step(&mut self) -> bool {
        let done = self.serve();
        let since = (self.now - self.start).as_micros();
        let since = smoltcp::time::Instant::from_micros(i64::try_from(since).unwrap());
        let polled = self.peer.poll(since);
        for packet in std::mem::take(&mut self.peer.wire.from) {
            self.send(1, &packet);
        }
        let micros = |at: smoltcp::time::Instant| at.total_micros().unsigned_abs();
        let timer = polled.map(|at| self.start + Duration::from_micros(micros(at)));
        let next = self.under_way.keys().next().map(|(at, _)| *at);
        let all = [timer, self.tcb.deadline(), next];
        self.now = all.into_iter().flatten().min().unwrap().max(self.now);
        while let Some(entry) = self.under_way.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            match entry.remove() {
                (0, packet) => self.peer.wire.to.push_back(packet),
                (_, packet) => self.arrive(&packet),
            }
        }
        if self.tcb.deadline().is_some_and(|at| at <= self.now) {
            self.tcb.handle_timeout(self.now);
        }
        done
    }
}

/// We send data and close, and then smoltcp does.
fn exchange(ours: usize, theirs: usize, path: &Path, seed: u64) {
    let mut exchange = Exchange::new(ours, theirs, path, seed);
    for _ in 0..1_000_000 {
        if exchange.step() {
            let got = (exchange.peer.received, exchange.kept.len());
            assert_eq!(got, (ours, theirs));
            return;
        }
    }
    panic!("it does not end");
}

#[test]
fn bytes_go_both_ways() {
    let path = Path {
        delay: Duration::from_millis(10),
        rate: Some(1e6),
        queue: 60_000,
        ..Path::PERFECT
    };
    exchange(300_000, 300_000, &path, 1);
    exchange(0, 0, &path, 1);
    exchange(1, 100_000, &path, 1);
}

#[test]
fn whatever_happens_on_the_path() {
    for seed in 0..60 {
        let path = Path {
            delay: Duration::from_millis(seed % 30),
            rate: Some(1e6),
            queue: 30_000,
            loss: [0.0, 0.01, 0.05][usize::try_from(seed % 3).unwrap()],
            late: (0.05, Duration::from_millis(seed % 7)),
            twice: 0.02,
            ..Path::PERFECT
        };
        exchange(60_000, 40_000, &path, seed);
    }
}
