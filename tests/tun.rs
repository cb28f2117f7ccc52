//! A TUN device against the kernel's own network stack. Needs root, except for the first tests;
//! everything happens in namespaces that each test makes and removes.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "support/namespace.rs"]
mod namespace;

use namespace::{Namespace, available, run};
use sosplice::buf::Buf;
use sosplice::clock::{Clock, SystemClock};
use sosplice::error::SoError;
use sosplice::link::tun::{OpenError, Tun};
use sosplice::link::{Checksum, Frame, Interest, Link, Packet, ReceiveError, TransmitError};
use sosplice::splice::{Cause, Options, Splice};
use sosplice::{Stack, TcpListener};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::num::NonZeroU16;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

const KERNEL: [u8; 4] = [10, 99, 1, 1];
const OURS: [u8; 4] = [10, 99, 1, 2];

fn soon(seconds: u64) -> Instant {
    SystemClock.now() + Duration::from_secs(seconds)
}

/// A namespace with the kernel at 10.99.1.1 behind `t0`.
fn network() -> Namespace {
    let namespace = Namespace::new("tun");
    namespace.tun("t0", &["10.99.1.1/24", "fd99::1/64"], 1500);
    namespace
}

fn open(namespace: &Namespace) -> Tun {
    Tun::builder("t0").netns(namespace.name()).build().unwrap()
}

/// The next frame for which `wanted` returns true; the kernel also sends its own (router
/// solicitations).
fn next(tun: &Tun, wanted: impl Fn(&[u8]) -> bool) -> Frame {
    let deadline = soon(10);
    let mut frames = Vec::new();
    loop {
        tun.receive(&mut frames, 1).unwrap();
        match frames.pop() {
            Some(frame) if wanted(&frame.head) => return frame,
            Some(_) => {}
            None => {
                assert!(SystemClock.now() < deadline, "nothing came");
                tun.wait(Interest::READABLE, Some(deadline)).unwrap();
            }
        }
    }
}

fn sum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0)));
    let mut sum = words.sum::<u32>() + start;
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// IPv4 from us to the kernel.
fn ipv4(protocol: u8, len: usize) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    ip[2..4].copy_from_slice(&u16::try_from(20 + len).unwrap().to_be_bytes());
    ip.extend(OURS);
    ip.extend(KERNEL);
    let checksum = !sum(&ip, 0);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    ip
}

/// IPv6 from us to the kernel.
fn ipv6(protocol: u8, len: usize) -> Vec<u8> {
    let mut ip = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
    ip[4..6].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
    let address = |last| [0xfd, 0x99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    ip.extend(address(2));
    ip.extend(address(1));
    ip
}

/// A TCP segment from us to the kernel.
#[derive(Clone, Copy)]
struct Segment<'a> {
    ports: (u16, u16),
    seq: u32,
    ack: u32,
    flags: u8,
    options: &'a [u8],
    payload: usize,
}

impl Segment<'_> {
    /// Its headers, the sum of the pseudo-header in the checksum field.
    fn headers(&self, version: Version) -> Vec<u8> {
        let header = 20 + self.options.len();
        let len = header + self.payload;
        let mut packet = match version {
            Version::V4 => ipv4(6, len),
            Version::V6 => ipv6(6, len),
        };
        let pseudo = sum(version.addresses(&packet), 6 + u32::try_from(len).unwrap());
        packet.extend(self.ports.0.to_be_bytes());
        packet.extend(self.ports.1.to_be_bytes());
        packet.extend(self.seq.to_be_bytes());
        packet.extend(self.ack.to_be_bytes());
        packet.extend([
            u8::try_from(header / 4 * 16).unwrap(),
            self.flags,
            0xff,
            0xff,
        ]);
        packet.extend(pseudo.to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(self.options);
        packet
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Version {
    V4,
    V6,
}

impl Version {
    /// Length of the IP header.
    fn header(self) -> usize {
        match self {
            Version::V4 => 20,
            Version::V6 => 40,
        }
    }

    /// Both addresses, of which the pseudo-header is made.
    fn addresses(self, packet: &[u8]) -> &[u8] {
        match self {
            Version::V4 => &packet[12..20],
            Version::V6 => &packet[8..40],
        }
    }

    fn is_tcp(self, packet: &[u8]) -> bool {
        match self {
            Version::V4 => packet[0] == 0x45 && packet[9] == 6,
            Version::V6 => packet[0] >> 4 == 6 && packet[6] == 6,
        }
    }
}

fn partial<'a>(header: &'a [u8], payload: &'a [Buf], segment: u16) -> Packet<'a> {
    let ip_header_len = match header.first() {
        Some(byte) if byte >> 4 == 6 => 40,
        _ => 20,
    };
    Packet::new(header, payload, ip_header_len.into())
        .checksum(Checksum::partial_tcp(ip_header_len))
        .segment(NonZeroU16::new(segment))
}

fn complete(header: &[u8]) -> Packet<'_> {
    partial(header, &[], 0).checksum(Checksum::Complete)
}

fn is_icmp(packet: &[u8]) -> bool {
    packet[0] == 0x45 && packet[9] == 1
}

fn number(packet: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(packet[at..at + 4].try_into().unwrap())
}

fn ping(tun: &Tun) -> Result<(), TransmitError> {
    let mut packet = ipv4(1, 16);
    let mut echo = [8, 0, 0, 0, 0, 7, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8];
    let checksum = !sum(&echo, 0);
    echo[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(echo);
    tun.transmit(&complete(&packet))
}

#[test]
fn a_device_that_does_not_exist_is_not_created() {
    let error = Tun::open("sosplice-none").unwrap_err();
    assert!(matches!(error, OpenError::NotFound(_)), "{error}");
    assert_eq!(
        error.to_string(),
        "there is no interface sosplice-none: create it with `ip tuntap add sosplice-none mode tun`"
    );
}

#[test]
fn names_that_the_kernel_would_read_differently_are_errors() {
    for name in ["", "0123456789abcdef", "a/b", "a b", "tun%d", ".."] {
        let error = Tun::open(name).unwrap_err();
        assert!(matches!(error, OpenError::BadName(_)), "{name}: {error}");
    }
}

#[test]
fn a_namespace_that_does_not_exist_is_an_error() {
    let error = Tun::builder("t0").netns("sosplice-none").build();
    let text = error.unwrap_err().to_string();
    let hint = "create it with `ip netns add sosplice-none`";
    assert!(text.ends_with(hint), "{text}");
    for name in ["", "../netns", "a/b"] {
        let error = Tun::builder("t0").netns(name).build().unwrap_err();
        assert!(matches!(error, OpenError::NoNamespace(_)), "{error}");
    }
}

#[test]
fn errors_of_opening_are_distinguished() {
    if !available("errors_of_opening_are_distinguished") {
        return;
    }
    let namespace = network();
    let build = |name: &str| Tun::builder(name).netns(namespace.name()).build();
    namespace.ip("tuntap add tap0 mode tap");
    namespace.ip("tuntap add many0 mode tun multi_queue");
    let _open = open(&namespace);
    assert!(matches!(build("none0"), Err(OpenError::NotFound(_))));
    assert!(matches!(build("t0"), Err(OpenError::Busy(_))));
    assert!(matches!(build("lo"), Err(OpenError::NotTun(_))));
    assert!(matches!(build("tap0"), Err(OpenError::NotTun(_))));
    assert!(matches!(build("many0"), Err(OpenError::NotTun(_))));
    let queues = |name: &str, count| {
        let builder = Tun::builder(name).netns(namespace.name());
        builder.queues(count).build_queues()
    };
    assert_eq!(queues("many0", 3).unwrap().len(), 3);
    assert!(matches!(queues("none0", 2), Err(OpenError::NoQueues(_))));
    for count in [0, 257, usize::MAX] {
        let error = queues("many0", count).unwrap_err();
        assert!(matches!(error, OpenError::QueueCount { .. }), "{error}");
    }
    for name in ["t0", "tap0", "lo"] {
        let error = queues(name, 2).unwrap_err();
        assert!(matches!(error, OpenError::NotMultiQueue(_)), "{error}");
        let right = format!("tuntap add {name} mode tun multi_queue`");
        assert!(error.to_string().ends_with(&right), "{error}");
    }
}

/// A stack over both queues of a device, the kernel behind it.
fn two_queues() -> (Namespace, Stack) {
    let namespace = Namespace::new("queues");
    namespace.tun_queues("t0", &["10.99.1.1/24"], 1500);
    let builder = Tun::builder("t0").netns(namespace.name());
    let queues = builder.queues(2).build_queues().unwrap();
    let stack = Stack::with_queues(queues).address("10.99.1.2/24".parse().unwrap());
    let stack = stack.build().unwrap();
    namespace.wait_until_up("t0");
    (namespace, stack)
}

const STREAMS: usize = 16;
const BYTES: usize = 1_000_000;

/// Echoes.
fn echo(mut stream: sosplice::TcpStream) {
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    stream
        .set_write_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let mut part = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut part).unwrap() {
            0 => return,
            count => stream.write_all(&part[..count]).unwrap(),
        }
    }
}

/// The kernel sends bytes on each connection, and has them back.
fn there_and_back(kernels: Vec<TcpStream>, ours: Vec<sosplice::TcpStream>) {
    let pattern: &[u8] = &(0..=250).cycle().take(BYTES).collect::<Vec<u8>>();
    thread::scope(|scope| {
        for stream in ours {
            scope.spawn(|| echo(stream));
        }
        for mut kernel in kernels {
            kernel
                .set_read_timeout(Some(Duration::from_secs(30)))
                .unwrap();
            kernel
                .set_write_timeout(Some(Duration::from_secs(30)))
                .unwrap();
            let mut writer = kernel.try_clone().unwrap();
            scope.spawn(move || writer.write_all(pattern).unwrap());
            scope.spawn(move || {
                let mut got = vec![0; BYTES];
                kernel.read_exact(&mut got).unwrap();
                assert!(got == pattern);
                kernel.shutdown(std::net::Shutdown::Both).unwrap();
            });
        }
    });
}

/// Both receiving threads have work, and each connection's segments arrive at its own: the kernel
/// learns from sent packets.
#[test]
fn flows_spread_over_queues_and_stay_there() {
    if !available("flows_spread_over_queues_and_stay_there") {
        return;
    }
    let (namespace, stack) = two_queues();
    let listener = TcpListener::bind(&stack, "10.99.1.2:80").unwrap();
    let kernels: Vec<TcpStream> = namespace.enter(|| {
        let connect = |_| TcpStream::connect("10.99.1.2:80").unwrap();
        (0..STREAMS).map(connect).collect()
    });
    let accept = |_| listener.accept().unwrap().0;
    let ours: Vec<_> = (0..STREAMS).map(accept).collect();
    let homes = ours.iter().map(|stream| stream.queue()).sum::<usize>();
    assert!((1..STREAMS).contains(&homes), "all streams on one queue");
    there_and_back(kernels, ours);
    let stats = stack.queue_stats();
    for one in &stats {
        assert!(one.frames_received > 50, "{stats:?}");
        assert_eq!(one.segments_astray, 0, "{stats:?}");
    }
    assert_eq!(stack.stats().broken, 0);
}

/// The same for connections that the stack opens on one of its queues. The kernel answers a SYN before
/// it has learned from it.
#[test]
fn dialled_flows_arrive_on_the_chosen_queue() {
    if !available("dialled_flows_arrive_on_the_chosen_queue") {
        return;
    }
    let (namespace, stack) = two_queues();
    let service = namespace.enter(|| std::net::TcpListener::bind("10.99.1.1:81").unwrap());
    let to = service.local_addr().unwrap();
    for queue in [0, 1] {
        let before = stack.queue_stats();
        let dial = |_| {
            let ours = sosplice::TcpSocket::new(&stack)
                .queue(queue)
                .connect(to)
                .unwrap();
            (service.accept().unwrap().0, ours)
        };
        let (kernels, ours): (Vec<_>, Vec<_>) = (0..STREAMS).map(dial).unzip();
        assert!(ours.iter().all(|stream| stream.queue() == queue));
        there_and_back(kernels, ours);
        let after = stack.queue_stats();
        let received = |queue: usize| after[queue].frames_received - before[queue].frames_received;
        let astray = after[1 - queue].segments_astray - before[1 - queue].segments_astray;
        let all = format!("{before:?} {after:?}");
        assert!(received(queue) > 100, "{all}");
        assert!(astray <= STREAMS as u64, "more than SYN|ACKs: {all}");
        // The kernel's own multicast.
        assert!(received(1 - queue) < astray + 20, "{all}");
    }
    assert_eq!(stack.stats().broken, 0);
}

#[test]
fn a_device_of_another_user_needs_a_capability() {
    if !available("a_device_of_another_user_needs_a_capability") {
        return;
    }
    let namespace = Namespace::new("tun");
    namespace.ip("tuntap add t0 mode tun user 12345");
    let error = namespace.enter(|| {
        use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::NET_ADMIN);
        set_capabilities(None, sets).unwrap();
        Tun::open("t0").unwrap_err()
    });
    assert!(matches!(error, OpenError::Prohibited(_)), "{error}");
}

#[test]
fn created_on_request_and_gone_with_the_last_user() {
    if !available("created_on_request_and_gone_with_the_last_user") {
        return;
    }
    let namespace = Namespace::new("tun");
    let build = |create| {
        Tun::builder("t1")
            .netns(namespace.name())
            .create(create)
            .build()
    };
    assert!(build(false).is_err());
    let tun = build(true).unwrap();
    namespace.ip("link show t1");
    drop(tun);
    assert!(build(false).is_err());
}

#[test]
fn the_caller_stays_in_its_namespace() {
    if !available("the_caller_stays_in_its_namespace") {
        return;
    }
    let here = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let before = here();
    let namespace = network();
    let _tun = open(&namespace);
    assert_eq!(here(), before);
}

#[test]
fn packets_of_the_kernel_arrive() {
    if !available("packets_of_the_kernel_arrive") {
        return;
    }
    let namespace = network();
    let tun = open(&namespace);
    assert_eq!(tun.capabilities().mtu, 1500);
    namespace.wait_until_up("t0");
    namespace.enter(|| {
        let socket = UdpSocket::bind("10.99.1.1:0").unwrap();
        socket.send_to(b"hello", "10.99.1.2:9").unwrap();
    });
    let frame = next(&tun, |packet| packet[0] == 0x45 && packet[9] == 17);
    assert_eq!(frame.len(), 20 + 8 + 5);
    assert_eq!(&frame.head[28..], b"hello");
    assert!(
        frame.head.footprint() <= 256,
        "a small packet in a small frame"
    );
}

#[test]
fn the_kernel_answers_a_ping() {
    if !available("the_kernel_answers_a_ping") {
        return;
    }
    let namespace = network();
    let tun = open(&namespace);
    // Earlier answers of the kernel are dropped.
    namespace.wait_until_up("t0");
    ping(&tun).unwrap();
    let reply = next(&tun, is_icmp);
    assert_eq!(reply.head[20], 0, "echo reply");
    assert_eq!(reply.head[28..], [1, 2, 3, 4, 5, 6, 7, 8]);
}

/// A connection between the kernel's TCP and headers written here.
struct Peer<'a> {
    tun: &'a Tun,
    version: Version,
    kernel: TcpStream,
    ports: (u16, u16),
    /// Our next sequence number, and the kernel's.
    seq: u32,
    ack: u32,
}

impl<'a> Peer<'a> {
    /// `complete`: the checksum is filled in.
    fn new(namespace: &Namespace, tun: &'a Tun, version: Version, complete: bool) -> Self {
        let address = match version {
            Version::V4 => "10.99.1.2:80",
            Version::V6 => "[fd99::2]:80",
        };
        let ip = version.header();
        let (kernel, ports, ack) = thread::scope(|scope| {
            let kernel = scope.spawn(|| namespace.enter(|| TcpStream::connect(address)));
            let syn = next(tun, |packet| version.is_tcp(packet)).head;
            let ports = (80, u16::from_be_bytes([syn[ip], syn[ip + 1]]));
            let ack = number(&syn, ip + 4) + 1;
            let segment = Segment {
                ports,
                seq: 1000,
                ack,
                flags: 0x12,
                // MSS 1400, window scale 7.
                options: &[2, 4, 0x05, 0x78, 1, 3, 3, 7],
                payload: 0,
            };
            let mut header = segment.headers(version);
            if complete {
                let sum = !sum(&header[ip..], 0);
                header[ip + 16..ip + 18].copy_from_slice(&sum.to_be_bytes());
            }
            let packet = match complete {
                true => self::complete(&header),
                false => partial(&header, &[], 0),
            };
            tun.transmit(&packet).unwrap();
            (kernel.join().unwrap().unwrap(), ports, ack)
        });
        let timeout = Some(Duration::from_secs(10));
        kernel.set_read_timeout(timeout).unwrap();
        Peer {
            tun,
            version,
            kernel,
            ports,
            seq: 1001,
            ack,
        }
    }

    fn segment(&self, payload: usize) -> Segment<'static> {
        Segment {
            ports: self.ports,
            seq: self.seq,
            ack: self.ack,
            flags: 0x18,
            options: &[],
            payload,
        }
    }

    /// Sends the pieces in one packet, to be cut by the kernel, and has the kernel read them.
    fn send(&mut self, pieces: &[Buf], segment: u16) {
        let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
        let header = self.segment(bytes.len()).headers(self.version);
        let packet = partial(&header, pieces, segment);
        self.tun.transmit(&packet).unwrap();
        let mut got = vec![0; bytes.len()];
        self.kernel.read_exact(&mut got).unwrap();
        assert!(got == bytes, "the kernel read other bytes");
        self.seq += u32::try_from(bytes.len()).unwrap();
    }

    /// The next segment with a payload that the kernel sends, and its payload.
    fn data(&self) -> (Frame, Buf) {
        let ip = self.version.header();
        let wanted = |packet: &[u8]| self.version.is_tcp(packet) && packet.len() > ip + 40;
        let frame = next(self.tun, wanted);
        let headers = ip + usize::from(frame.head[ip + 12] >> 4) * 4;
        let payload = frame.head.slice(headers..frame.head.len());
        (frame, payload)
    }
}

fn pattern(len: usize) -> Buf {
    let bytes: Vec<u8> = (0..=250).cycle().take(len).collect();
    Buf::copy_of(&bytes)
}

fn super_frames_cross_whole(version: Version) {
    let namespace = network();
    let tun = open(&namespace);
    let can = tun.capabilities();
    assert_eq!(
        (can.segment_v4, can.segment_v6),
        (Some(65_212), Some(65_212))
    );
    let mut peer = Peer::new(&namespace, &tun, version, false);
    let payload = pattern(13_000);
    peer.kernel.write_all(&payload).unwrap();
    let mut got = Vec::new();
    while got.len() < payload.len() {
        let (frame, payload) = peer.data();
        assert!(frame.len() > 1500, "{} bytes", frame.len());
        assert!(matches!(
            frame.checksum,
            Checksum::Partial { offset: 16, .. }
        ));
        got.extend_from_slice(&payload);
    }
    assert!(got == payload[..]);

    let payload = pattern(30_000);
    peer.send(&[payload.slice(0..11), payload.slice(11..30_000)], 1400);
    peer.send(&[payload.slice(0..700)], 1400);
    let pieces: Vec<Buf> = (0..3000)
        .map(|n| payload.slice(n * 10..n * 10 + 10))
        .collect();
    peer.send(&pieces, 1400);
    let whole = pattern(65_212 - version.header() - 20);
    peer.send(&[whole], 1400);
}

#[test]
fn super_frames_cross_whole_over_ipv4() {
    if available("super_frames_cross_whole_over_ipv4") {
        super_frames_cross_whole(Version::V4);
    }
}

#[test]
fn super_frames_cross_whole_over_ipv6() {
    if available("super_frames_cross_whole_over_ipv6") {
        super_frames_cross_whole(Version::V6);
    }
}

#[test]
fn without_offload_segments_are_single_and_complete() {
    if !available("without_offload_segments_are_single_and_complete") {
        return;
    }
    let namespace = network();
    // The device keeps the settings of its last user.
    drop(open(&namespace));
    let tun = Tun::builder("t0").netns(namespace.name()).offload(false);
    let tun = tun.build().unwrap();
    let can = tun.capabilities();
    assert_eq!(
        (can.checksum, can.segment_v4, can.segment_v6),
        (false, None, None)
    );
    let mut peer = Peer::new(&namespace, &tun, Version::V4, true);
    peer.kernel.write_all(&pattern(13_000)).unwrap();
    let (frame, _) = peer.data();
    assert_eq!(frame.len(), 1440);
    assert_eq!(frame.checksum, Checksum::Complete);
    let pseudo = sum(&frame.head[12..20], 6 + 1420);
    assert_eq!(sum(&frame.head[20..], u32::from(pseudo)), 0xffff);

    let header = peer.segment(0).headers(Version::V4);
    let refused = tun.transmit(&partial(&header, &[], 0));
    assert!(matches!(refused, Err(TransmitError::Refused(_))));
}

#[test]
fn packets_that_make_no_sense_are_refused() {
    if !available("packets_that_make_no_sense_are_refused") {
        return;
    }
    let namespace = network();
    let tun = open(&namespace);
    let refused = |packet: &Packet<'_>| {
        let result = tun.transmit(packet);
        assert!(
            matches!(result, Err(TransmitError::Refused(_))),
            "{result:?}"
        );
    };
    refused(&complete(&[]));
    refused(&complete(&[0xff; 40]));
    let segment = Segment {
        ports: (1, 2),
        seq: 0,
        ack: 0,
        flags: 0x10,
        options: &[],
        payload: 3000,
    };
    let header = segment.headers(Version::V4);
    let payload = [pattern(3000)];
    refused(&partial(&header, &payload, 0));
    refused(&partial(&header, &payload, 1460).checksum(Checksum::Complete));
    for (start, offset) in [(60_000, 16), (20, 60_000), (41, 0)] {
        refused(&partial(&header, &[], 0).checksum(Checksum::Partial { start, offset }));
    }
    // Neither TCP nor UDP, as it seems: nothing else is cut.
    let start = 20;
    refused(&partial(&header, &payload, 1460).checksum(Checksum::Partial { start, offset: 2 }));
    ping(&tun).unwrap();
}

#[test]
fn wake_ends_a_wait() {
    if !available("wake_ends_a_wait") {
        return;
    }
    let namespace = Namespace::new("tun");
    namespace.ip("tuntap add t0 mode tun");
    let tun = open(&namespace);
    let limit = soon(10);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| tun.wait(Interest::READABLE, Some(limit)));
        tun.wake();
        waiter.join().unwrap().unwrap();
    });
    tun.wake();
    tun.wake();
    tun.wait(Interest::READABLE, Some(limit)).unwrap();
    assert!(SystemClock.now() < limit);
    let deadline = SystemClock.now() + Duration::from_millis(20);
    tun.wait(Interest::READABLE, Some(deadline)).unwrap();
    assert!(
        SystemClock.now() >= deadline,
        "nothing is left of the wake-ups"
    );
}

#[test]
fn an_interface_that_is_down_refuses_and_comes_back() {
    if !available("an_interface_that_is_down_refuses_and_comes_back") {
        return;
    }
    let namespace = network();
    let tun = open(&namespace);
    namespace.ip("link set t0 down");
    let result = ping(&tun);
    assert!(
        matches!(result, Err(TransmitError::Refused(_))),
        "{result:?}"
    );
    let mut frames = Vec::new();
    tun.receive(&mut frames, 1000).unwrap();
    assert_eq!(tun.receive(&mut frames, 1).unwrap(), 0);
    tun.wait(
        Interest::BOTH,
        Some(SystemClock.now() + Duration::from_millis(20)),
    )
    .unwrap();
    namespace.ip("link set t0 up");
    ping(&tun).unwrap();
    next(&tun, is_icmp);
}

#[test]
fn a_deleted_device_is_gone() {
    if !available("a_deleted_device_is_gone") {
        return;
    }
    let namespace = network();
    let tun = open(&namespace);
    let limit = soon(10);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            // Receives all earlier packets of the kernel, so that only the end wakes.
            while tun.receive(&mut Vec::new(), 100).is_ok() {
                tun.wait(Interest::READABLE, Some(limit))?;
            }
            Err::<(), _>(std::io::Error::other("receive"))
        });
        run(Command::new("ip").args(["-n", namespace.name(), "link", "del", "t0"]));
        assert!(waiter.join().unwrap().is_err());
    });
    assert!(SystemClock.now() < limit, "the end did not wake the waiter");
    let said = [
        tun.wait(Interest::READABLE, Some(limit))
            .unwrap_err()
            .to_string(),
        match tun.receive(&mut Vec::new(), 1) {
            Err(ReceiveError::Gone(error)) => error.to_string(),
            other => panic!("{other:?}"),
        },
        match ping(&tun) {
            Err(TransmitError::Gone(error)) => error.to_string(),
            other => panic!("{other:?}"),
        },
    ];
    let place = format!("t0 in network namespace {}: ", namespace.name());
    assert!(said.iter().all(|why| why.starts_with(&place)), "{said:?}");
}

/// A stack at 10.99.1.2 behind a namespace's `t0`.
fn stack(namespace: &Namespace) -> Stack {
    let builder = Stack::builder(open(namespace)).address("10.99.1.2/24".parse().unwrap());
    builder.build().unwrap()
}

fn cause(splice: &Splice) -> Cause {
    let end = splice.wait_timeout(Duration::from_secs(60));
    end.expect("a splice goes on").cause
}

/// Both directions of a connection between two networks are spliced, and one network goes down while
/// bytes flow: its splices end with the cause, and no others.
#[test]
fn a_deleted_device_ends_its_splices_and_no_others() {
    if !available("a_deleted_device_ends_its_splices_and_no_others") {
        return;
    }
    let (client, server) = (network(), network());
    let (front, back) = (stack(&client), stack(&server));
    let listener = TcpListener::bind(&front, "10.99.1.2:80").unwrap();
    let connect = || {
        let near = client.enter(|| TcpStream::connect("10.99.1.2:80").unwrap());
        near.set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        (near, listener.accept().unwrap().0)
    };
    // Flows all the time, over the device that stays.
    let ((mut user, loud), (mut echo, quiet)) = (connect(), connect());
    let splices = [
        loud.splice_to(&quiet, Options::default()).unwrap(),
        quiet.splice_to(&loud, Options::default()).unwrap(),
    ];
    let service = server.enter(|| std::net::TcpListener::bind("10.99.1.1:80").unwrap());
    let (mut near, inside) = connect();
    let outside = sosplice::TcpStream::connect(&back, "10.99.1.1:80").unwrap();
    let mut source = service.accept().unwrap().0;
    let down = outside.splice_to(&inside, Options::default()).unwrap();
    let up = inside.splice_to(&outside, Options::default()).unwrap();
    thread::scope(|scope| {
        // It gets no segment about the end: the kernel only has no route any more.
        source
            .set_write_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        scope.spawn(move || while source.write_all(&[7; 10_000]).is_ok() {});
        near.read_exact(&mut [0; 1_000_000]).unwrap();
        server.ip("link del t0");
        assert_eq!(cause(&down), Cause::SourceError(SoError::NetworkDown));
        assert_eq!(cause(&up), Cause::SinkError(SoError::NetworkDown));
        inside.send(b"the end").unwrap();
        inside.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).unwrap();
        assert!(rest.ends_with(b"\x07the end"));
        user.write_all(b"still there").unwrap();
        let mut heard = [0; 11];
        echo.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"still there");
        assert!(splices.iter().all(|splice| !splice.is_ended()));
        assert_eq!(
            outside.send(b"x").unwrap_err().kind(),
            ErrorKind::NetworkDown
        );
    });
    // A device of the same name is another one: a new stack is at home there.
    server.tun("t0", &["10.99.1.1/24"], 1500);
    let back = stack(&server);
    let outside = sosplice::TcpStream::connect(&back, "10.99.1.1:80").unwrap();
    service.accept().unwrap().0.write_all(b"again").unwrap();
    assert_eq!(outside.recv_chain(5).unwrap().to_vec(), b"again");
}
