//! TAP devices and packet sockets: the kernel's TCP and UDP at the other end of the cable. Needs root, `ip`, `tc`,
//! `ethtool` and `python3`; everything happens in namespaces that each test makes and removes.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "support/namespace.rs"]
mod namespace;

use namespace::{Namespace, available_with, run};
use sosplice::link::ethernet::{
    AfPacket, AfPacketBuilder, AfPacketError, Edge, EdgeConfig, Host, HostConfig, MAX_FRAME, Mac,
    Tap, Vlan,
};
use sosplice::link::tun::{OpenError, Tun};
use sosplice::link::{
    Capabilities, Checksum, Frame, Interest, Link, Packet, ReceiveError, TransmitError,
};
use sosplice::stack::Driver;
use sosplice::{Stack, splice};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU16;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

const GATEWAY: &str = "10.99.1.1/24";
const GATEWAY_V6: &str = "fd99::1/64";
const GUEST: &str = "10.99.1.2/24";
const GUEST_V6: &str = "fd99::2/64";

fn ready(test: &str) -> bool {
    available_with(test, &["ethtool", "python3", "tc"])
}

/// What the cable ends in on the side of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tap,
    AfPacket,
}

const KINDS: [Kind; 2] = [Kind::Tap, Kind::AfPacket];

/// A kernel with the interface `v0` at one end of a cable, and the namespace with the other end, if it is one of a veth.
#[derive(Debug)]
struct Cable {
    kind: Kind,
    kernel: Namespace,
    here: Option<Namespace>,
}

impl Cable {
    fn new(kind: Kind, mtu: usize) -> Cable {
        let kernel = Namespace::new("eth");
        let here = match kind {
            Kind::Tap => {
                kernel.ip("tuntap add v0 mode tap");
                None
            }
            Kind::AfPacket => {
                let here = Namespace::new("port");
                set(&here, "net/ipv6/conf/all/disable_ipv6", "1");
                let name = here.name();
                kernel.ip(&format!("link add v0 type veth peer name v0 netns {name}"));
                here.ip(&format!("link set v0 mtu {mtu} up"));
                Some(here)
            }
        };
        kernel.ip(&format!("addr add {GUEST} dev v0"));
        kernel.ip(&format!("addr add {GUEST_V6} dev v0 nodad"));
        kernel.ip(&format!("link set v0 mtu {mtu} txqueuelen 10000 up"));
        Cable { kind, kernel, here }
    }

    fn tap(&self, offload: bool) -> Tap {
        let builder = Tap::builder("v0").netns(self.kernel.name());
        builder.offload(offload).build().unwrap()
    }

    fn socket(&self) -> AfPacketBuilder {
        AfPacket::builder("v0").netns(self.here.as_ref().unwrap().name())
    }

    fn transport(&self, offload: bool) -> Arc<dyn Link> {
        let transport: Arc<dyn Link> = match self.kind {
            Kind::Tap => Arc::new(self.tap(offload)),
            Kind::AfPacket => Arc::new(self.socket().offload(offload).build().unwrap()),
        };
        self.kernel.wait_until_up("v0");
        transport
    }

    /// The interface that goes down when the stack's end of the cable does.
    fn port(&self) -> &Namespace {
        self.here.as_ref().unwrap_or(&self.kernel)
    }
}

/// Sets a value below `/proc/sys` of a namespace.
fn set(namespace: &Namespace, name: &str, value: &str) {
    namespace.enter(|| std::fs::write(format!("/proc/sys/{name}"), value).unwrap());
}

fn ethtool(namespace: &Namespace, device: &str, settings: &str) {
    run(Command::new("ip")
        .args(["netns", "exec", namespace.name(), "ethtool", "-K", device])
        .args(settings.split_whitespace()));
}

fn config(mtu: usize) -> EdgeConfig {
    let config = EdgeConfig::new(GATEWAY.parse().unwrap(), "10.99.1.2".parse().unwrap());
    let gateway: ipnet::Ipv6Net = GATEWAY_V6.parse().unwrap();
    config.gateway_v6(gateway).mtu(mtu)
}

/// A transport, and the number and sum of the lengths of its frames with more than 1,000 bytes.
#[derive(Debug)]
struct Watched {
    transport: Arc<dyn Link>,
    received: [AtomicUsize; 2],
    sent: [AtomicUsize; 2],
}

impl Watched {
    fn new(transport: Arc<dyn Link>) -> Arc<Watched> {
        Arc::new(Watched {
            transport,
            received: Default::default(),
            sent: Default::default(),
        })
    }

    fn count([frames, bytes]: &[AtomicUsize; 2], len: usize) {
        if len > 1000 {
            frames.fetch_add(1, Ordering::Relaxed);
            bytes.fetch_add(len, Ordering::Relaxed);
        }
    }

    /// Mean lengths of what was received and sent.
    fn means(&self) -> [usize; 2] {
        [&self.received, &self.sent].map(|[frames, bytes]| {
            bytes.load(Ordering::Relaxed) / frames.load(Ordering::Relaxed).max(1)
        })
    }
}

impl Link for Watched {
    fn capabilities(&self) -> Capabilities {
        self.transport.capabilities()
    }
    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        let before = frames.len();
        let result = self.transport.receive(frames, max);
        let new = frames[before..].iter();
        new.for_each(|frame| Watched::count(&self.received, frame.len()));
        result
    }
    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        let result = self.transport.transmit(packet);
        if result.is_ok() {
            Watched::count(&self.sent, packet.len());
        }
        result
    }
    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.transport.wait(interest, deadline)
    }
    fn wake(&self) {
        self.transport.wake();
    }
}

fn stack(link: impl Link + 'static) -> Stack {
    let builder = Stack::builder(link).address(GATEWAY.parse().unwrap());
    let builder = builder.address(GATEWAY_V6.parse().unwrap());
    builder.send_buffer(1 << 20).build().unwrap()
}

/// A connection from the kernel in `from` to a stack.
fn connection(stack: &Stack, from: &Namespace, to: &str) -> (TcpStream, sosplice::TcpStream) {
    let at = SocketAddr::new(to.split('/').next().unwrap().parse().unwrap(), 80);
    let listener = sosplice::TcpListener::bind(stack, at).unwrap();
    let near = from.enter(|| TcpStream::connect(at).unwrap());
    let (inside, _) = listener.accept().unwrap();
    (near, inside)
}

const PERIOD: usize = 251;
const PART: usize = 1 << 18;
const MUCH: usize = 12 << 20;

/// Everything arrives as it was sent.
fn transfer(mut from: impl Write + Send, mut to: impl Read, bytes: usize) {
    let pattern: Vec<u8> = (0..=250).cycle().take(PART + PERIOD).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            for at in (0..bytes).step_by(PART) {
                let start = at % PERIOD;
                from.write_all(&pattern[start..start + PART.min(bytes - at)])
                    .unwrap();
            }
        });
        let mut part = vec![0; PART];
        let mut got = 0;
        while got < bytes {
            let count = to.read(&mut part).unwrap();
            assert!(count > 0, "{got}");
            let start = got % PERIOD;
            assert!(part[..count] == pattern[start..start + count], "{got}");
            got += count;
        }
    });
}

/// With offloads super-frames and partial checksums cross in both directions, without them single frames.
#[test]
fn the_kernels_tcp_over_each_device() {
    if !ready("the_kernels_tcp_over_each_device") {
        return;
    }
    for (kind, offload, mtu) in [
        (Kind::Tap, true, 1500),
        (Kind::Tap, true, 9000),
        (Kind::Tap, false, 1500),
        (Kind::AfPacket, true, 1500),
        (Kind::AfPacket, true, 9000),
        (Kind::AfPacket, false, 1500),
        (Kind::AfPacket, false, 9000),
    ] {
        for gateway in [GATEWAY, GATEWAY_V6] {
            let cable = Cable::new(kind, mtu);
            if !offload {
                ethtool(&cable.kernel, "v0", "tx off tso off gso off gro off");
            }
            let watched = Watched::new(cable.transport(offload));
            let can = watched.capabilities();
            assert_eq!((can.mtu, can.checksum), (mtu + 14, offload));
            assert_eq!(can.segment_v4, offload.then_some(65_212 + 14));
            let edge = Arc::new(Edge::new(watched.clone(), config(mtu)).unwrap());
            let stack = stack(edge.clone());
            let (near, inside) = connection(&stack, &cable.kernel, gateway);
            transfer(&near, &inside, MUCH);
            transfer(&inside, &near, MUCH);
            let case = format!("{kind:?}, offload {offload}, MTU {mtu}, {gateway}");
            let [received, sent] = watched.means();
            println!("{case}: received {received} bytes a frame, sent {sent}");
            match offload {
                true => assert!(received > 20_000 && sent > 20_000, "{case}"),
                false => assert!(received <= mtu + 14 && sent <= mtu + 14, "{case}"),
            }
            let stats = stack.stats();
            assert_eq!(stats.transmit_errors, 0, "{case}");
            assert_eq!(stats.frames_bad_checksum, 0, "{case}");
            assert_eq!(edge.stats().malformed, 0, "{case}");
        }
    }
}

/// Counter of a protocol in `/proc/net/snmp`.
fn snmp(namespace: &Namespace, protocol: &str, name: &str) -> u64 {
    let text = namespace.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
    let mut lines = text.lines().filter(|line| line.starts_with(protocol));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|each| each == name).unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

/// The kernel in between completes checksums and cuts super-frames: its other interface does neither, and the receiver
/// verifies.
#[test]
fn checksums_and_segments_are_right_behind_a_router() {
    if !ready("checksums_and_segments_are_right_behind_a_router") {
        return;
    }
    for kind in KINDS {
        let cable = Cable::new(kind, 1500);
        let (router, client) = (&cable.kernel, Namespace::new("far"));
        set(router, "net/ipv4/ip_forward", "1");
        set(router, "net/ipv6/conf/all/forwarding", "1");
        let name = client.name();
        router.ip(&format!("link add v1 type veth peer name v1 netns {name}"));
        for (namespace, v4, v6) in [
            (router, "10.98.1.1/24", "fd98::1/64"),
            (&client, "10.98.1.2/24", "fd98::2/64"),
        ] {
            namespace.ip(&format!("addr add {v4} dev v1"));
            namespace.ip(&format!("addr add {v6} dev v1 nodad"));
            namespace.ip("link set v1 up");
        }
        client.ip("route add default via 10.98.1.1");
        client.ip("route add default via fd98::1");
        ethtool(router, "v1", "tx off tso off gso off rx off gro off");
        ethtool(&client, "v1", "tx off tso off gso off rx off gro off");
        let edge = Edge::new(cable.transport(true), config(1500)).unwrap();
        let stack = stack(edge);
        for gateway in [GATEWAY, GATEWAY_V6] {
            let (near, inside) = connection(&stack, &client, gateway);
            transfer(&near, &inside, MUCH);
            transfer(&inside, &near, MUCH);
        }
        assert_eq!(snmp(&client, "Tcp:", "InCsumErrors"), 0, "{kind:?}");
        assert_eq!(snmp(&client, "Tcp:", "InErrs"), 0, "{kind:?}");
        assert_eq!(stack.stats().frames_bad_checksum, 0, "{kind:?}");
    }
}

/// See there.
const DATAGRAMS: &str = include_str!("support/super_frame.py");

#[test]
fn datagrams_cross_in_super_frames() {
    if !ready("datagrams_cross_in_super_frames") {
        return;
    }
    for kind in KINDS {
        for (offload, gateway) in [(true, GATEWAY), (true, GATEWAY_V6), (false, GATEWAY)] {
            let cable = Cable::new(kind, 1500);
            if !offload {
                ethtool(
                    &cable.kernel,
                    "v0",
                    "tx off gso off tx-udp-segmentation off",
                );
            }
            let watched = Watched::new(cable.transport(offload));
            let can = watched.capabilities();
            assert_eq!(can.datagrams_v4.is_some(), offload, "Linux 6.2 has it");
            let edge = Edge::new(watched.clone(), config(1500)).unwrap();
            let stack = stack(edge);
            let (to, _) = gateway.split_once('/').unwrap();
            let at = SocketAddr::new(to.parse().unwrap(), 7);
            let any = if at.is_ipv4() { "0.0.0.0" } else { "::" };
            let echo = sosplice::UdpSocket::bind(&stack, at).unwrap();
            let count = 50;
            let program = Command::new("ip")
                .args(["netns", "exec", cable.kernel.name()])
                .args(["python3", "-c", DATAGRAMS, any, to, "1200", "50"])
                .spawn();
            let mut program = program.unwrap();
            let mut datagrams = Vec::new();
            while datagrams.len() < count {
                echo.recv_many(&mut datagrams, count).unwrap();
            }
            while !datagrams.is_empty() {
                echo.send_many(&mut datagrams).unwrap();
            }
            assert!(program.wait().unwrap().success(), "{kind:?} {offload}");
            let means = watched.means();
            assert_eq!(
                means.map(|bytes| bytes > 20_000),
                [offload; 2],
                "{kind:?} {gateway}: frames of {means:?} bytes"
            );
            assert_eq!(stack.stats().transmit_errors, 0);
            assert_eq!(stack.stats().frames_bad_checksum, 0);
        }
    }
}

/// A super-frame of UDP from 10.99.1.2 to a port of 10.99.1.1, in a frame with tags.
fn tagged(to: Mac, tags: &[u16], payload: &[u8]) -> Vec<u8> {
    let mut frame = to.0.to_vec();
    frame.extend([2, 0, 0, 0, 0, 9]);
    for tag in tags {
        frame.extend([0x81, 0]);
        frame.extend(tag.to_be_bytes());
    }
    let len = u16::try_from(8 + payload.len()).unwrap();
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0];
    ip.extend([10, 99, 1, 2, 10, 99, 1, 1]);
    ip[2..4].copy_from_slice(&(20 + len).to_be_bytes());
    let header_sum = !u16::try_from(sum(&ip)).unwrap();
    ip[10..12].copy_from_slice(&header_sum.to_be_bytes());
    let mut udp = [0x12, 0x34, 0, 9, 0, 0, 0, 0];
    udp[4..6].copy_from_slice(&len.to_be_bytes());
    let pseudo = [&ip[12..20], &[0, 17], &len.to_be_bytes()].concat();
    udp[6..8].copy_from_slice(&u16::try_from(sum(&pseudo)).unwrap().to_be_bytes());
    frame.extend([8, 0]);
    [&frame[..], &ip, &udp, payload].concat()
}

/// The kernel takes tags out of frames; they are back in them, also in super-frames with partial checksums.
#[test]
fn tagged_frames_are_dropped_or_stripped() {
    if !ready("tagged_frames_are_dropped_or_stripped") {
        return;
    }
    for (kind, tags) in [
        (Kind::Tap, &[7u16][..]),
        (Kind::AfPacket, &[7]),
        (Kind::AfPacket, &[7, 8]),
    ] {
        for vlan in [Vlan::Drop, Vlan::Strip] {
            let cable = Cable::new(kind, 1500);
            let sender = AfPacket::builder("v0").netns(cable.kernel.name());
            let sender = sender.build().unwrap();
            let transport = cable.transport(true);
            let edge = Edge::new(transport.clone(), config(1500).vlan(vlan)).unwrap();
            let payload: Vec<u8> = (0..=250).cycle().take(10_000).collect();
            let frame = tagged(config(1500).mac, tags, &payload);
            let start = 14 + 4 * u16::try_from(tags.len()).unwrap() + 20;
            let packet = Packet::new(&frame, &[], start.into())
                .checksum(Checksum::Partial { start, offset: 6 })
                .segment(NonZeroU16::new(1000));
            sender.transmit(&packet).unwrap();
            let mut packets = Vec::new();
            let is_ours = |frame: &Frame| frame.head[16..20] == [10, 99, 1, 1];
            while !packets.iter().any(is_ours) && edge.stats().tagged == 0 {
                edge.wait(Interest::READABLE, None).unwrap();
                edge.receive(&mut packets, 64).unwrap();
            }
            let ours: Vec<&Frame> = packets.iter().filter(|frame| is_ours(frame)).collect();
            let expected = u64::from(vlan == Vlan::Drop);
            assert_eq!(edge.stats().tagged, expected, "{kind:?} {tags:?}");
            assert_eq!(ours.is_empty(), vlan == Vlan::Drop);
            if let [frame] = ours[..] {
                assert_eq!(frame.segment, NonZeroU16::new(1000), "in one piece");
                let whole = frame.to_complete_vec();
                assert_eq!(whole[28..], payload);
                assert_eq!(sum(&udp_with_pseudo_header(&whole)), 0xffff, "{kind:?}");
            }
        }
    }
}

fn udp_with_pseudo_header(ip: &[u8]) -> Vec<u8> {
    let len = u16::try_from(ip.len() - 20).unwrap();
    [&ip[12..20], &[0, 17], &len.to_be_bytes(), &ip[20..]].concat()
}

fn sum(bytes: &[u8]) -> u32 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum & 0xffff) + (sum >> 16)
}

/// A connection survives an interface that is down for a while.
#[test]
fn an_interface_that_was_down_carries_frames_again() {
    if !ready("an_interface_that_was_down_carries_frames_again") {
        return;
    }
    for kind in KINDS {
        let cable = Cable::new(kind, 1500);
        let (transport, socket) = match kind {
            Kind::Tap => (cable.transport(true), None),
            Kind::AfPacket => {
                let socket = Arc::new(cable.socket().build().unwrap());
                cable.kernel.wait_until_up("v0");
                (socket.clone() as Arc<dyn Link>, Some(socket))
            }
        };
        let stack = stack(Edge::new(transport, config(1500)).unwrap());
        let (mut near, mut inside) = connection(&stack, &cable.kernel, GATEWAY);
        transfer(&near, &inside, 1 << 20);
        for round in 1..=2 {
            cable.port().ip("link set v0 down");
            let before = stack.stats().segments_lost + stack.stats().transmit_errors;
            inside.write_all(b"into the void").unwrap();
            while stack.stats().segments_lost + stack.stats().transmit_errors == before {
                thread::yield_now();
            }
            if let Some(socket) = &socket {
                assert_eq!(socket.stats().downs, round);
            }
            cable.port().ip("link set v0 up");
            cable.kernel.ip(&format!("addr replace {GUEST} dev v0"));
            let mut heard = [0; 13];
            near.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"into the void", "{kind:?}");
            near.write_all(b"and back").unwrap();
            inside.read_exact(&mut heard[..8]).unwrap();
            assert_eq!(&heard[..8], b"and back", "{kind:?}");
        }
    }
}

/// Also if it was down before, of which the kernel reports nothing.
#[test]
fn a_deleted_interface_ends_the_link() {
    if !ready("a_deleted_interface_ends_the_link") {
        return;
    }
    let gateway = |transport| stack(Edge::new(transport, config(1500)).unwrap());
    let host = |transport| {
        let config = HostConfig::new(Mac([2, 0, 0, 0, 0, 5])).probe(false);
        let config = config.address(GATEWAY.parse().unwrap());
        let host = Host::new(transport, config).unwrap();
        Stack::builder(host).build().unwrap()
    };
    for (kind, down_before, stack) in [
        (
            Kind::Tap,
            false,
            &gateway as &dyn Fn(Arc<dyn Link>) -> Stack,
        ),
        (Kind::AfPacket, false, &gateway),
        (Kind::AfPacket, true, &gateway),
        (Kind::AfPacket, true, &host),
    ] {
        let cable = Cable::new(kind, 1500);
        let stack = stack(cable.transport(true));
        let (_near, mut inside) = connection(&stack, &cable.kernel, GATEWAY);
        if down_before {
            cable.port().ip("link set v0 down");
        }
        cable.port().ip("link del v0");
        let error = inside.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NetworkDown, "{kind:?}");
    }
}

/// Each of several sockets at an interface receives all frames, and none that it or another one sends.
#[test]
fn several_programs_at_one_interface() {
    if !ready("several_programs_at_one_interface") {
        return;
    }
    let cable = Cable::new(Kind::AfPacket, 1500);
    let other = cable.socket().build().unwrap();
    let mut program = Command::new("ip")
        .args(["netns", "exec", cable.port().name(), "python3", "-c"])
        .arg("import socket; s = socket.socket(17, 3, 0x0300); s.bind(('v0', 0)); print('ready', flush=True); s.recv(65600)")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(program.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let stack = stack(Edge::new(cable.transport(true), config(1500)).unwrap());
    let (near, inside) = connection(&stack, &cable.kernel, GATEWAY);
    transfer(&near, &inside, MUCH);
    transfer(&inside, &near, MUCH);
    let mut frames = Vec::new();
    other.receive(&mut frames, 10_000).unwrap();
    assert!(!frames.is_empty());
    let gateway = config(1500).mac;
    let own = frames.iter().find(|frame| frame.head[6..12] == gateway.0);
    assert!(own.is_none(), "{own:?}");
    assert!(program.wait().unwrap().success());
    // A TAP has one user.
    let cable = Cable::new(Kind::Tap, 1500);
    let _tap = cable.tap(true);
    let second = Tap::builder("v0").netns(cable.kernel.name()).build();
    assert!(matches!(second, Err(OpenError::Busy(_))), "{second:?}");
}

/// One thread receives from a TAP and a packet socket, and moves what it receives from one to the other. A device that
/// is deleted takes only its own stack down.
#[test]
fn one_thread_for_several_devices() {
    if !ready("one_thread_for_several_devices") {
        return;
    }
    let cables = [Kind::Tap, Kind::AfPacket].map(|kind| Cable::new(kind, 1500));
    let [(front, driver), (back, other)] = [0, 1].map(|at: usize| {
        let edge = Edge::new(cables[at].transport(true), config(1500)).unwrap();
        let builder = Stack::builder(edge).address(GATEWAY.parse().unwrap());
        builder.build_with_driver().unwrap()
    });
    let receive = || Driver::run_all([driver, other]);
    let receiving = thread::Builder::new().spawn(receive).unwrap();
    let (near, client) = connection(&front, &cables[0].kernel, GATEWAY);
    let listener = cables[1]
        .kernel
        .enter(|| TcpListener::bind("10.99.1.2:80").unwrap());
    let server = sosplice::TcpStream::connect(&back, "10.99.1.2:80").unwrap();
    let (far, _) = listener.accept().unwrap();
    let options = splice::Options::default().dispatch(splice::Dispatch::Direct);
    let joined = splice::join(client, server, options).unwrap();
    transfer(&near, &far, MUCH);
    transfer(&far, &near, MUCH);
    let (_more, mut inside) = connection(&back, &cables[1].kernel, GATEWAY);
    cables[0].kernel.ip("link del v0");
    drop((near, far, joined));
    inside.write_all(b"the other one").unwrap();
    cables[1].port().ip("link del v0");
    let error = inside.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NetworkDown);
    receiving.join().unwrap().unwrap();
}

/// The host has an address at the interface, and the stack one at a macvlan of it.
#[test]
fn a_macvlan_is_an_interface_of_its_own() {
    if !ready("a_macvlan_is_an_interface_of_its_own") {
        return;
    }
    let cable = Cable::new(Kind::AfPacket, 1500);
    let port = cable.port();
    port.ip("link add link v0 name m0 type macvlan mode bridge");
    port.ip("link set m0 up");
    port.ip("addr add 10.99.1.7/24 dev v0");
    let socket = AfPacket::builder("m0").netns(port.name()).build().unwrap();
    let edge = config(1500).mac(socket.mac());
    let stack = stack(Edge::new(socket, edge).unwrap());
    cable.kernel.wait_until_up("v0");
    let (near, inside) = connection(&stack, &cable.kernel, GATEWAY);
    transfer(&near, &inside, MUCH);
    transfer(&inside, &near, MUCH);
    let listener = port.enter(|| TcpListener::bind("10.99.1.7:80").unwrap());
    let near = cable.kernel.enter(|| TcpStream::connect("10.99.1.7:80"));
    let far = listener.accept().unwrap().0;
    transfer(near.unwrap(), far, MUCH);
}

/// Until it is bound a socket receives the frames of all interfaces.
#[test]
fn frames_of_other_interfaces_are_not_received() {
    if !ready("frames_of_other_interfaces_are_not_received") {
        return;
    }
    let cable = Cable::new(Kind::AfPacket, 1500);
    let here = cable.port();
    here.ip("link set lo up");
    here.ip("addr replace 127.0.0.1/8 dev lo");
    let socket = here.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    let to = socket.local_addr().unwrap();
    let stop = AtomicUsize::new(0);
    let mut foreign: Vec<Frame> = Vec::new();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while stop.load(Ordering::Relaxed) == 0 {
                    socket.send_to(&[0x5a; 500], to).unwrap();
                }
            });
        }
        for _ in 0..100 {
            let port = cable.socket().build().unwrap();
            let mut frames = Vec::new();
            port.receive(&mut frames, 1000).unwrap();
            foreign.extend(frames.into_iter().find(|frame| frame.head[6..12] == [0; 6]));
        }
        stop.store(1, Ordering::Relaxed);
    });
    assert!(foreign.is_empty(), "{foreign:?}");
}

/// A kernel that may send super-frames beyond 64 KiB (BIG TCP): TCP repeats them in shorter ones.
#[test]
fn longer_super_frames_are_lost_and_counted() {
    if !ready("longer_super_frames_are_lost_and_counted") {
        return;
    }
    let cable = Cable::new(Kind::AfPacket, 1500);
    cable.kernel.ip("link set v0 gso_max_size 200000");
    let stack = stack(Edge::new(cable.transport(true), config(1500)).unwrap());
    let (near, inside) = connection(&stack, &cable.kernel, GATEWAY_V6);
    while stack.stats().receive_errors == 0 {
        transfer(&near, &inside, MUCH);
    }
    transfer(&inside, &near, MUCH);
}

/// Frames that the interface's queue refuses are sent again, and none is lost.
#[test]
fn a_full_queue_of_the_interface_is_a_full_link() {
    if !ready("a_full_queue_of_the_interface_is_a_full_link") {
        return;
    }
    let cable = Cable::new(Kind::AfPacket, 1500);
    let netns = ["netns", "exec", cable.port().name()];
    run(Command::new("ip").args(netns).args([
        "tc", "qdisc", "add", "dev", "v0", "root", "tbf", "rate", "100mbit", "burst", "16kb",
        "limit", "20kb",
    ]));
    let stack = stack(Edge::new(cable.transport(false), config(1500)).unwrap());
    let (near, inside) = connection(&stack, &cable.kernel, GATEWAY);
    transfer(&inside, &near, 4 << 20);
    let stats = stack.stats();
    assert!(stats.link_full > 0);
    assert_eq!((stats.transmit_errors, stats.segments_lost), (0, 0));
    assert_eq!(stats.segments_retransmitted, 0);
}

#[test]
fn frames_without_room_are_counted() {
    if !ready("frames_without_room_are_counted") {
        return;
    }
    let cable = Cable::new(Kind::AfPacket, 1500);
    let port = cable.socket().receive_buffer(1).build().unwrap();
    cable.kernel.wait_until_up("v0");
    let to = "10.99.1.255:9";
    let socket = cable.kernel.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_broadcast(true).unwrap();
        socket
    });
    for _ in 0..100 {
        socket.send_to(&[0; 1000], to).unwrap();
    }
    let dropped = port.stats().dropped;
    assert!(dropped > 50, "{dropped}");
    assert_eq!(port.stats().dropped, dropped, "the sum");
}

/// The longest frame is taken, a longer one is not, and shorter ones than a header neither.
#[test]
fn frames_of_any_length() {
    if !ready("frames_of_any_length") {
        return;
    }
    for kind in KINDS {
        let cable = Cable::new(kind, 1500);
        let transport = cable.transport(true);
        for len in [0, 1, 13, 1515, MAX_FRAME, 70_000] {
            let result = transport.transmit(&Packet::new(&vec![0; len], &[], 14));
            assert!(
                matches!(result, Err(TransmitError::Refused(_))),
                "{kind:?} {len}: {result:?}"
            );
        }
        for len in [14, 60, 1514] {
            transport
                .transmit(&Packet::new(&vec![0xff; len], &[], 14))
                .unwrap();
        }
    }
}

#[test]
fn obstacles_are_named() {
    if !ready("obstacles_are_named") {
        return;
    }
    let namespace = Namespace::new("eth");
    let socket = |name: &str| AfPacket::builder(name).netns(namespace.name()).build();
    let none = socket("none").unwrap_err();
    assert!(matches!(none, AfPacketError::NotFound(_)), "{none}");
    let list = format!("`ip -n {} link`", namespace.name());
    assert!(none.to_string().contains(&list), "{none}");
    assert!(matches!(socket("lo"), Err(AfPacketError::NotEthernet(_))));
    namespace.ip("tuntap add t0 mode tun");
    namespace.ip("link set t0 up");
    assert!(matches!(socket("t0"), Err(AfPacketError::NotEthernet(_))));
    assert!(matches!(socket("a/b"), Err(AfPacketError::BadName(_))));
    let group = AfPacket::builder("v0").mac(Mac::BROADCAST).build();
    assert!(matches!(group, Err(AfPacketError::Mac(Mac::BROADCAST))));
    let nowhere = AfPacket::builder("v0").netns("sosplice-none").build();
    assert!(matches!(nowhere, Err(AfPacketError::NoNamespace(_))));

    let tap = |name: &str| Tap::builder(name).netns(namespace.name());
    for (result, create) in [
        (tap("none").build(), "tuntap add none mode tap`"),
        (
            tap("none").queues(2).build(),
            "tuntap add none mode tap multi_queue`",
        ),
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, OpenError::NoTap(..)), "{error}");
        assert!(error.to_string().contains(create), "{error}");
    }
    let tun = tap("t0").build().unwrap_err();
    assert!(matches!(tun, OpenError::NotTap(..)), "{tun}");
    assert!(tun.to_string().contains("not a single-queue TAP"), "{tun}");
    let made = tap("t1").create(true).build().unwrap();
    let other = Tun::builder("t1").netns(namespace.name()).build();
    assert!(matches!(
        other,
        Err(OpenError::NotTun(_) | OpenError::Busy(_))
    ));
    drop(made);
}

/// The interface's own address, and one that it is told.
#[test]
fn hardware_addresses() {
    if !ready("hardware_addresses") {
        return;
    }
    let cable = Cable::new(Kind::AfPacket, 1500);
    cable.port().ip("link set v0 address 02:00:00:00:00:77");
    let other: Mac = "02:00:00:00:00:99".parse().unwrap();
    let port = cable.socket().mac(other).promiscuous(true).build().unwrap();
    assert_eq!(port.mac(), "02:00:00:00:00:77".parse().unwrap());
    let show = || {
        let command = ["-n", cable.port().name(), "-d", "link", "show", "v0"];
        let output = Command::new("ip").args(command).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let text = show();
    assert!(
        text.contains("promiscuity 1") || text.contains("promiscuity 2"),
        "{text}"
    );
    assert!(text.contains("allmulti 1"), "{text}");
    drop(port);
    let text = show();
    assert!(text.contains("promiscuity 0"), "{text}");
}
