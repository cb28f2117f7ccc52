//! A TUN device against the kernel's own network stack. Needs root, except for the first tests;
//! everything happens in namespaces that each test makes and removes.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "support/namespace.rs"]
mod namespace;

use namespace::{Namespace, available, run};
use sosplice::buf::Buf;
use sosplice::clock::{Clock, SystemClock};
use sosplice::link::tun::{OpenError, Tun};
use sosplice::link::{Checksum, Frame, Link, Packet, TransmitError};
use std::io::{Read, Write};
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

/// The next frame that `wanted` says yes to; the kernel also sends its own (router solicitations).
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
                tun.wait(false, Some(deadline)).unwrap();
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

/// IPv4 and TCP headers from us to the kernel, the sum of the pseudo-header in the checksum field.
fn tcp(
    ports: (u16, u16),
    seq: u32,
    ack: u32,
    flags: u8,
    options: &[u8],
    payload: usize,
) -> Vec<u8> {
    let len = 20 + options.len();
    let mut packet = ipv4(6, len + payload);
    let pseudo = sum(&packet[12..20], 6 + u32::try_from(len + payload).unwrap());
    packet.extend(ports.0.to_be_bytes());
    packet.extend(ports.1.to_be_bytes());
    packet.extend(seq.to_be_bytes());
    packet.extend(ack.to_be_bytes());
    packet.extend([u8::try_from(len / 4 * 16).unwrap(), flags, 0xff, 0xff]);
    packet.extend(pseudo.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(options);
    packet
}

fn partial<'a>(header: &'a [u8], payload: &'a [Buf], segment: u16) -> Packet<'a> {
    Packet {
        header,
        payload,
        ip_header_len: 20,
        checksum: Checksum::Partial,
        segment: NonZeroU16::new(segment),
    }
}

fn complete(header: &[u8]) -> Packet<'_> {
    Packet {
        checksum: Checksum::Complete,
        ..partial(header, &[], 0)
    }
}

fn is_tcp(packet: &[u8]) -> bool {
    packet[0] == 0x45 && packet[9] == 6
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
fn what_is_in_the_way_is_told_apart() {
    if !available("what_is_in_the_way_is_told_apart") {
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
    assert!(matches!(error, OpenError::NotPermitted(_)), "{error}");
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
fn what_the_kernel_sends_arrives() {
    if !available("what_the_kernel_sends_arrives") {
        return;
    }
    let namespace = network();
    let tun = open(&namespace);
    assert_eq!(tun.capabilities().mtu, 1500);
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
    ping(&tun).unwrap();
    let reply = next(&tun, is_icmp);
    assert_eq!(reply.head[20], 0, "echo reply");
    assert_eq!(reply.head[28..], [1, 2, 3, 4, 5, 6, 7, 8]);
}

/// A connection between the kernel's TCP and headers written here.
struct Peer<'a> {
    tun: &'a Tun,
    kernel: TcpStream,
    ports: (u16, u16),
    /// Our next sequence number, and the kernel's.
    seq: u32,
    ack: u32,
}

impl<'a> Peer<'a> {
    fn new(namespace: &Namespace, tun: &'a Tun, checksum: Checksum) -> Peer<'a> {
        let kernel = thread::scope(|scope| {
            let kernel = scope.spawn(|| namespace.enter(|| TcpStream::connect("10.99.1.2:80")));
            let syn = next(tun, is_tcp).head;
            let ports = (80, u16::from_be_bytes([syn[20], syn[21]]));
            let ack = number(&syn, 24) + 1;
            // MSS 1460, window scale 7.
            let options = [2, 4, 0x05, 0xb4, 1, 3, 3, 7];
            let mut header = tcp(ports, 1000, ack, 0x12, &options, 0);
            if checksum == Checksum::Complete {
                let sum = !sum(&header[20..], 0);
                header[36..38].copy_from_slice(&sum.to_be_bytes());
            }
            let packet = Packet {
                checksum,
                ..partial(&header, &[], 0)
            };
            tun.transmit(&packet).unwrap();
            (kernel.join().unwrap().unwrap(), ports, ack)
        });
        let (kernel, ports, ack) = kernel;
        let timeout = Some(Duration::from_secs(10));
        kernel.set_read_timeout(timeout).unwrap();
        Peer {
            tun,
            kernel,
            ports,
            seq: 1001,
            ack,
        }
    }

    /// Sends the pieces in one packet, to be cut by the kernel, and has the kernel read them.
    fn send(&mut self, pieces: &[Buf], segment: u16) {
        let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
        let header = tcp(self.ports, self.seq, self.ack, 0x18, &[], bytes.len());
        self.tun
            .transmit(&partial(&header, pieces, segment))
            .unwrap();
        let mut got = vec![0; bytes.len()];
        self.kernel.read_exact(&mut got).unwrap();
        assert!(got == bytes, "the kernel read other bytes");
        self.seq += u32::try_from(bytes.len()).unwrap();
    }

    /// The next segment with a payload that the kernel sends.
    fn data(&self) -> Frame {
        next(self.tun, |packet| is_tcp(packet) && packet.len() > 60)
    }
}

fn pattern(len: usize) -> Buf {
    let bytes: Vec<u8> = (0..=250).cycle().take(len).collect();
    Buf::copy_of(&bytes)
}

#[test]
fn super_frames_cross_whole_in_both_directions() {
    if !available("super_frames_cross_whole_in_both_directions") {
        return;
    }
    let namespace = network();
    let tun = open(&namespace);
    assert_eq!(tun.capabilities().segment_v4, Some(65_535));
    let mut peer = Peer::new(&namespace, &tun, Checksum::Partial);
    let payload = pattern(14_000);
    peer.kernel.write_all(&payload).unwrap();
    let mut got = Vec::new();
    while got.len() < payload.len() {
        let frame = peer.data();
        assert!(frame.len() > 1500, "{} bytes", frame.len());
        assert!(frame.checksum_ok);
        let headers = 20 + usize::from(frame.head[32] >> 4) * 4;
        got.extend_from_slice(&frame.head[headers..]);
    }
    assert!(got == payload[..]);

    let payload = pattern(30_000);
    peer.send(&[payload.slice(0..11), payload.slice(11..30_000)], 1460);
    peer.send(&[payload.slice(0..700)], 1460);
    let pieces: Vec<Buf> = (0..3000)
        .map(|n| payload.slice(n * 10..n * 10 + 10))
        .collect();
    peer.send(&pieces, 1460);
}

#[test]
fn without_offload_segments_are_single_and_complete() {
    if !available("without_offload_segments_are_single_and_complete") {
        return;
    }
    let namespace = network();
    // The device remembers what its last user wanted.
    drop(open(&namespace));
    let tun = Tun::builder("t0").netns(namespace.name()).offload(false);
    let tun = tun.build().unwrap();
    assert_eq!(
        (tun.capabilities().checksum, tun.capabilities().segment_v4),
        (false, None)
    );
    let mut peer = Peer::new(&namespace, &tun, Checksum::Complete);
    peer.kernel.write_all(&pattern(14_000)).unwrap();
    let frame = peer.data();
    assert_eq!(frame.len(), 1500);
    assert!(!frame.checksum_ok);
    let pseudo = sum(&frame.head[12..20], 6 + 1480);
    assert_eq!(sum(&frame.head[20..], u32::from(pseudo)), 0xffff);

    let header = tcp(peer.ports, peer.seq, peer.ack, 0x18, &[], 0);
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
    let header = tcp((1, 2), 0, 0, 0x10, &[], 3000);
    let payload = [pattern(3000)];
    refused(&partial(&header, &payload, 0));
    refused(&Packet {
        checksum: Checksum::Complete,
        ..partial(&header, &payload, 1460)
    });
    refused(&Packet {
        ip_header_len: 60_000,
        ..partial(&header, &[], 0)
    });
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
        let waiter = scope.spawn(|| tun.wait(false, Some(limit)));
        tun.wake();
        waiter.join().unwrap().unwrap();
    });
    tun.wake();
    tun.wake();
    tun.wait(false, Some(limit)).unwrap();
    assert!(SystemClock.now() < limit);
    let deadline = SystemClock.now() + Duration::from_millis(20);
    tun.wait(false, Some(deadline)).unwrap();
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
    tun.wait(true, Some(SystemClock.now() + Duration::from_millis(20)))
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
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            // Whatever the kernel has sent before is taken, so that only the end wakes.
            while tun.receive(&mut Vec::new(), 100).is_ok() {
                tun.wait(false, Some(soon(10)))?;
            }
            Err::<(), _>(std::io::Error::other("receive"))
        });
        run(Command::new("ip").args(["-n", namespace.name(), "link", "del", "t0"]));
        assert!(waiter.join().unwrap().is_err());
    });
    assert!(tun.wait(false, Some(soon(10))).is_err());
    assert!(tun.receive(&mut Vec::new(), 1).is_err());
    assert!(matches!(ping(&tun), Err(TransmitError::Gone(_))));
}
