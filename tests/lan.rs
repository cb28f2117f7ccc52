//! Stacks as hosts of a real LAN: a bridge with kernel hosts, a router, and stacks over a packet socket and a TAP
//! device. Needs root, `ip`, `ping` and `arping` (iputils); everything happens in namespaces that each test makes and
//! removes.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "support/namespace.rs"]
mod namespace;

use namespace::{Namespace, available_with, skip};
use sosplice::link::ethernet::{
    AddressState, AfPacket, Edge, EdgeConfig, Host, HostConfig, Mac, Tap,
};
use sosplice::link::{Frame, Link, Packet};
use sosplice::{Stack, TcpListener};
use std::fs::Permissions;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// The stack's addresses.
const OWN: &str = "10.5.0.9/24";
const OWN_V6: &str = "fd05::9/64";
const MAC: Mac = Mac([2, 0, 0, 0, 5, 9]);

fn ready(test: &str) -> bool {
    available_with(test, &["arping", "ping"])
}

/// What connects the stack to the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tap,
    AfPacket,
}

const KINDS: [Kind; 2] = [Kind::Tap, Kind::AfPacket];

/// A bridge and the stack's port: the TAP device `t0` in the bridge's namespace, or one end of a veth in one of its own.
#[derive(Debug)]
struct Lan {
    switch: Namespace,
    port: Namespace,
}

impl Lan {
    fn new() -> Lan {
        let (switch, port) = (Namespace::new("switch"), Namespace::new("port"));
        for namespace in [&switch, &port] {
            set(namespace, "net/ipv6/conf/all/disable_ipv6", "1");
            set(namespace, "net/ipv6/conf/default/disable_ipv6", "1");
        }
        switch.ip("link add br0 type bridge forward_delay 0 mcast_snooping 0");
        switch.ip("link set br0 up");
        let lan = Lan { switch, port };
        lan.plug(&lan.port, "v0");
        lan.switch.ip("tuntap add t0 mode tap");
        lan.switch.ip("link set t0 master br0 up");
        lan
    }

    /// Connects a namespace to the bridge, by an interface of this name.
    fn plug(&self, namespace: &Namespace, name: &str) {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let port = format!("p{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let netns = namespace.name();
        self.switch.ip(&format!(
            "link add {port} type veth peer name {name} netns {netns}"
        ));
        self.switch.ip(&format!("link set {port} master br0 up"));
        namespace.ip(&format!("link set {name} up"));
        namespace.wait_until_up(name);
    }

    /// A kernel with these addresses.
    fn kernel(&self, addresses: &[&str]) -> Namespace {
        let namespace = Namespace::new("host");
        self.plug(&namespace, "v0");
        for address in addresses {
            let no_dad = if address.contains(':') { "nodad" } else { "" };
            namespace.ip(&format!("addr add {address} dev v0 {no_dad}"));
        }
        namespace
    }

    fn transport(&self, kind: Kind) -> Arc<dyn Link> {
        match kind {
            Kind::Tap => {
                let tap = Tap::builder("t0").netns(self.switch.name()).build();
                self.switch.wait_until_up("t0");
                Arc::new(tap.unwrap())
            }
            Kind::AfPacket => {
                let socket = AfPacket::builder("v0").netns(self.port.name());
                Arc::new(socket.mac(MAC).build().unwrap())
            }
        }
    }

    fn station(&self, kind: Kind, config: HostConfig) -> Station {
        let host = Arc::new(Host::new(self.transport(kind), config).unwrap());
        let pongs = Arc::new(AtomicUsize::new(0));
        let counted = pongs.clone();
        let hook = move |frame: &Frame| {
            let is_pong = match frame.head[0] >> 4 {
                4 => frame.head[9] == 1 && frame.head[20] == 0,
                _ => frame.head[6] == 58 && frame.head[40] == 129,
            };
            counted.fetch_add(usize::from(is_pong), Ordering::Relaxed);
            is_pong
        };
        let builder = Stack::builder(host.clone()).on_unhandled(hook);
        let stack = builder.build().unwrap();
        Station { host, stack, pongs }
    }
}

/// A stack in the LAN.
struct Station {
    host: Arc<Host<Arc<dyn Link>>>,
    stack: Stack,
    /// Answers to pings.
    pongs: Arc<AtomicUsize>,
}

/// With both addresses, which are not probed.
fn config() -> HostConfig {
    let config = HostConfig::new(MAC).probe(false);
    let config = config.address(OWN.parse().unwrap());
    config.address(OWN_V6.parse().unwrap())
}

/// Sets a value below `/proc/sys` of a namespace.
fn set(namespace: &Namespace, name: &str, value: &str) {
    namespace.enter(|| std::fs::write(format!("/proc/sys/{name}"), value).unwrap());
}

fn inside(namespace: &Namespace, command: &str) -> Output {
    let mut words = command.split_whitespace();
    let program = words.next().unwrap();
    let netns = ["netns", "exec", namespace.name(), program];
    let output = Command::new("ip").args(netns).args(words).output();
    output.unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn address(net: &str) -> IpAddr {
    net.split('/').next().unwrap().parse().unwrap()
}

const PERIOD: usize = 251;
const PART: usize = 1 << 18;
const MUCH: usize = 4 << 20;

/// Everything arrives as it was sent.
fn transfer(mut from: impl Write + Send, mut to: impl Read) {
    let pattern: Vec<u8> = (0..=250).cycle().take(PART + PERIOD).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            for at in (0..MUCH).step_by(PART) {
                let start = at % PERIOD;
                from.write_all(&pattern[start..start + PART]).unwrap();
            }
        });
        let mut part = vec![0; PART];
        let mut got = 0;
        while got < MUCH {
            let count = to.read(&mut part).unwrap();
            assert!(count > 0, "{got}");
            let start = got % PERIOD;
            assert!(part[..count] == pattern[start..start + count], "{got}");
            got += count;
        }
    });
}

/// A connection from the kernel to the stack, with data both ways.
fn accept(stack: &Stack, kernel: &Namespace, own: IpAddr) {
    let at = SocketAddr::new(own, 80);
    let listener = TcpListener::bind(stack, at).unwrap();
    let near = kernel.enter(|| std::net::TcpStream::connect(at).unwrap());
    let (inside, _) = listener.accept().unwrap();
    transfer(&near, &inside);
    transfer(&inside, &near);
}

/// A connection from the stack to the kernel.
fn connect(stack: &Stack, kernel: &Namespace, to: IpAddr) {
    let listener = kernel.enter(|| std::net::TcpListener::bind(SocketAddr::new(to, 0)).unwrap());
    let at = listener.local_addr().unwrap();
    let near = sosplice::TcpStream::connect(stack, at).unwrap();
    let (inside, _) = listener.accept().unwrap();
    transfer(&near, &inside);
    transfer(&inside, &near);
}

fn talk(station: &Station, kernel: &Namespace, own: IpAddr, to: IpAddr) {
    accept(&station.stack, kernel, own);
    connect(&station.stack, kernel, to);
}

/// Pings both ways.
fn ping(station: &Station, kernel: &Namespace, own: IpAddr, to: IpAddr) {
    let output = inside(kernel, &format!("ping -c 3 -i 0.2 -W 5 {own}"));
    assert!(output.status.success(), "{}", text(&output));
    let before = station.pongs.load(Ordering::Relaxed);
    let packet = echo_request(own, to);
    let header = if to.is_ipv4() { 20 } else { 40 };
    station
        .host
        .transmit(&Packet::new(&packet, &[], header))
        .unwrap();
    while station.pongs.load(Ordering::Relaxed) == before {
        thread::yield_now();
    }
}

fn echo_request(from: IpAddr, to: IpAddr) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut ip = vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 1, 0, 0];
            ip.extend([from.octets(), to.octets()].concat());
            let checksum = checksum(&ip);
            ip[10..12].copy_from_slice(&checksum);
            ip.extend([8, 0, 0xf7, 0xfd, 0, 1, 0, 1]);
            ip
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let addresses = [from.octets(), to.octets()].concat();
            let mut icmp = [128, 0, 0, 0, 0, 1, 0, 1];
            let sum = checksum(&[&addresses[..], &[0, 8, 0, 58], &icmp].concat());
            icmp[2..4].copy_from_slice(&sum);
            [&[0x60, 0, 0, 0, 0, 8, 58, 64][..], &addresses, &icmp].concat()
        }
        _ => unreachable!("one family"),
    }
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

#[test]
fn hosts_of_a_lan_talk_and_ping() {
    if !ready("hosts_of_a_lan_talk_and_ping") {
        return;
    }
    for kind in KINDS {
        let lan = Lan::new();
        let kernel = lan.kernel(&["10.5.0.2/24", "fd05::2/64"]);
        let station = lan.station(kind, config());
        for (own, to) in [(OWN, "10.5.0.2"), (OWN_V6, "fd05::2")] {
            let (own, to) = (address(own), address(to));
            talk(&station, &kernel, own, to);
            ping(&station, &kernel, own, to);
        }
        let stats = station.stack.stats();
        assert_eq!(stats.transmit_errors, 0, "{kind:?}");
        assert_eq!(stats.frames_bad_checksum, 0, "{kind:?}");
        let neighbours = station.host.neighbours();
        let known = |to: &str| neighbours.iter().any(|one| one.address == address(to));
        assert!(known("10.5.0.2") && known("fd05::2"), "{neighbours:?}");
    }
}

/// Two stacks, one on each kind of port.
#[test]
fn two_stacks_in_a_lan() {
    if !ready("two_stacks_in_a_lan") {
        return;
    }
    let lan = Lan::new();
    let one = lan.station(Kind::AfPacket, config());
    let other = HostConfig::new(Mac([2, 0, 0, 0, 5, 8])).probe(false);
    let other = other.address("10.5.0.8/24".parse().unwrap());
    let other = lan.station(Kind::Tap, other.address("fd05::8/64".parse().unwrap()));
    for at in ["10.5.0.8:80", "[fd05::8]:80"] {
        let listener = TcpListener::bind(&other.stack, at).unwrap();
        let near = sosplice::TcpStream::connect(&one.stack, at).unwrap();
        let (inside, _) = listener.accept().unwrap();
        transfer(&near, &inside);
        transfer(&inside, &near);
    }
    assert_eq!(one.stack.stats().frames_bad_checksum, 0);
    assert_eq!(other.stack.stats().frames_bad_checksum, 0);
}

/// A kernel routes between the LAN and another network.
#[test]
fn other_networks_are_reached_through_a_router() {
    if !ready("other_networks_are_reached_through_a_router") {
        return;
    }
    for kind in KINDS {
        let lan = Lan::new();
        let router = lan.kernel(&["10.5.0.1/24", "fd05::1/64"]);
        set(&router, "net/ipv4/ip_forward", "1");
        set(&router, "net/ipv6/conf/all/forwarding", "1");
        let far = Namespace::new("far");
        let netns = far.name();
        router.ip(&format!("link add v1 type veth peer name v1 netns {netns}"));
        for (namespace, v4, v6) in [
            (&router, "10.6.0.1/24", "fd06::1/64"),
            (&far, "10.6.0.2/24", "fd06::2/64"),
        ] {
            namespace.ip(&format!("addr add {v4} dev v1"));
            namespace.ip(&format!("addr add {v6} dev v1 nodad"));
            namespace.ip("link set v1 up");
        }
        far.ip("route add default via 10.6.0.1");
        far.ip("route add default via fd06::1");
        // One by the default gateway, one by a route.
        let config = config()
            .gateway("10.5.0.1".parse().unwrap())
            .route("fd06::/64".parse().unwrap(), "fd05::1".parse().unwrap());
        let station = lan.station(kind, config);
        for (own, to) in [(OWN, "10.6.0.2"), (OWN_V6, "fd06::2")] {
            let (own, to) = (address(own), address(to));
            talk(&station, &far, own, to);
            ping(&station, &far, own, to);
        }
        assert_eq!(station.host.stats().no_route, 0);
        let nowhere = sosplice::TcpStream::connect(&station.stack, "[fd07::1]:80").unwrap_err();
        let kinds = [ErrorKind::NetworkUnreachable, ErrorKind::HostUnreachable];
        assert!(kinds.contains(&nowhere.kind()), "{nowhere}");
    }
}

/// The line of `ip neigh` about an address.
fn neighbour(namespace: &Namespace, of: &str) -> String {
    text(&inside(namespace, &format!("ip neigh show {of}")))
}

/// An address moves from one kernel to another, which announces it.
#[test]
fn a_neighbour_that_moves_is_followed() {
    if !ready("a_neighbour_that_moves_is_followed") {
        return;
    }
    let lan = Lan::new();
    let station = lan.station(Kind::AfPacket, config());
    let first = lan.kernel(&["10.5.0.2/24", "fd05::2/64"]);
    let second = lan.kernel(&["10.5.0.3/24", "fd05::3/64"]);
    set(&second, "net/ipv6/conf/v0/ndisc_notify", "1");
    for (own, to) in [(OWN, "10.5.0.2"), (OWN_V6, "fd05::2")] {
        let (own, to) = (address(own), address(to));
        talk(&station, &first, own, to);
    }
    first.ip("addr del 10.5.0.2/24 dev v0");
    first.ip("addr del fd05::2/64 dev v0");
    second.ip("addr add 10.5.0.2/24 dev v0");
    second.ip("addr add fd05::2/64 dev v0 nodad");
    let output = inside(&second, "arping -U -c 1 -I v0 10.5.0.2");
    assert!(output.status.success(), "{}", text(&output));
    for (own, to) in [(OWN, "10.5.0.2"), (OWN_V6, "fd05::2")] {
        let (own, to) = (address(own), address(to));
        talk(&station, &second, own, to);
    }
    assert!(station.host.stats().neighbours_moved >= 1);
}

/// The stack's address moves to another stack: the kernel learns from the announcements.
#[test]
fn an_address_of_the_stack_that_moves_is_announced() {
    if !ready("an_address_of_the_stack_that_moves_is_announced") {
        return;
    }
    let lan = Lan::new();
    let kernel = lan.kernel(&["10.5.0.2/24", "fd05::2/64"]);
    let first = lan.station(Kind::AfPacket, config());
    for (own, to) in [(OWN, "10.5.0.2"), (OWN_V6, "fd05::2")] {
        talk(&first, &kernel, address(own), address(to));
    }
    // It delivers what is left first, and defends the address until then.
    let gone = Arc::downgrade(&first.host);
    drop(first);
    while gone.upgrade().is_some() {
        thread::yield_now();
    }
    let other = Mac([2, 0, 0, 0, 5, 0x99]);
    let mut config = config();
    config.mac = other;
    let second = lan.station(Kind::Tap, config);
    // Nothing is sent by the kernel, and so nothing is asked.
    while !neighbour(&kernel, "10.5.0.9").contains(&other.to_string()) {}
    accept(&second.stack, &kernel, address(OWN));
    // An announcement overrides nothing over IPv6 (RFC 9131): the kernel's entry is in doubt, and is put right when it
    // is asked.
    while !neighbour(&kernel, "fd05::9").contains("STALE") {}
    connect(&second.stack, &kernel, address("fd05::2"));
    assert!(neighbour(&kernel, "fd05::9").contains(&other.to_string()));
    accept(&second.stack, &kernel, address(OWN_V6));
}

/// Two hosts with the same address: the one that was there keeps it.
#[test]
fn duplicate_addresses_are_detected() {
    if !ready("duplicate_addresses_are_detected") {
        return;
    }
    let lan = Lan::new();
    let kernel = lan.kernel(&[OWN, OWN_V6]);
    let station = lan.station(Kind::AfPacket, config().probe(true));
    let state = |own: &str| {
        let all = station.host.addresses();
        let found = all.iter().find(|one| one.address.addr() == address(own));
        found.unwrap().state
    };
    while [OWN, OWN_V6].map(state) != [AddressState::Conflict; 2] {
        thread::yield_now();
    }
    let used = station.stack.addresses();
    let ours = used.iter().find(|net| net.addr() == address(OWN));
    assert_eq!(ours, None);
    drop(kernel);
    drop(station);

    let station = lan.station(Kind::Tap, config());
    let kernel = lan.kernel(&["10.5.0.2/24"]);
    let probe = inside(&kernel, "arping -D -c 2 -I v0 10.5.0.9");
    assert!(!probe.status.success(), "{}", text(&probe));
    kernel.ip(&format!("addr add {OWN_V6} dev v0"));
    while !text(&inside(&kernel, "ip addr show dev v0")).contains("dadfailed") {}
    assert!(
        station
            .host
            .addresses()
            .iter()
            .all(|one| one.state == AddressState::InUse)
    );
}

/// A host that is not there, and one that goes away and returns.
#[test]
fn a_host_that_disappears() {
    if !ready("a_host_that_disappears") {
        return;
    }
    let lan = Lan::new();
    let station = lan.station(Kind::AfPacket, config());
    for nobody in ["10.5.0.77:80", "[fd05::77]:80"] {
        let error = sosplice::TcpStream::connect(&station.stack, nobody).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{nobody}");
    }
    assert!(station.host.stats().neighbours_failed >= 2);
    let kernel = lan.kernel(&["10.5.0.2/24"]);
    let listener = kernel.enter(|| std::net::TcpListener::bind("10.5.0.2:80").unwrap());
    let mut near = sosplice::TcpStream::connect(&station.stack, "10.5.0.2:80").unwrap();
    let (mut far, _) = listener.accept().unwrap();
    transfer(&near, &far);
    kernel.ip("link set v0 down");
    let before = station.stack.stats().segments_retransmitted;
    near.write_all(b"are you there?").unwrap();
    while station.stack.stats().segments_retransmitted == before {
        thread::yield_now();
    }
    kernel.ip("link set v0 up");
    let mut heard = [0; 14];
    far.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"are you there?");
}

/// What a client of DHCP does with an address.
const SCRIPT: &str = r#"#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
ip link set $interface mtu $mtu
ip route add default via $router
"#;

/// The gateway of a kernel, which configures itself by DHCP (busybox) and by router advertisements.
#[test]
fn a_kernel_configures_itself_by_the_gateway() {
    if !ready("a_kernel_configures_itself_by_the_gateway") {
        return;
    }
    if Command::new("busybox").arg("true").output().is_err() {
        return skip("a_kernel_configures_itself_by_the_gateway", "needs busybox");
    }
    let file = format!("udhcpc-{}.sh", std::process::id());
    let script = Path::new(env!("CARGO_TARGET_TMPDIR")).join(file);
    std::fs::write(&script, SCRIPT).unwrap();
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    let lan = Lan::new();
    let config = EdgeConfig::new("10.5.0.1/24".parse().unwrap(), "10.5.0.15".parse().unwrap());
    let gateway: ipnet::Ipv6Net = "fd05::1/64".parse().unwrap();
    let config = config.gateway_v6(gateway).mac(MAC).mtu(1400);
    let edge = Arc::new(Edge::new(lan.transport(Kind::AfPacket), config).unwrap());
    let builder = Stack::builder(edge.clone()).address("10.5.0.1/24".parse().unwrap());
    let stack = builder.address("fd05::1/64".parse().unwrap()).build();
    let stack = stack.unwrap();
    let kernel = lan.kernel(&[]);
    let command = format!("busybox udhcpc -i v0 -n -q -f -s {}", script.display());
    let output = inside(&kernel, &command);
    std::fs::remove_file(&script).unwrap();
    assert!(output.status.success(), "{output:?}");
    let show = text(&inside(&kernel, "ip addr show dev v0"));
    assert!(show.contains("inet 10.5.0.15/24"), "{show}");
    assert!(show.contains("mtu 1400"), "{show}");
    let route = text(&inside(&kernel, "ip route get 203.0.113.5"));
    assert!(route.contains("via 10.5.0.1"), "{route}");
    let made = loop {
        if let Some(made) = made(&kernel) {
            break made;
        }
    };
    let route = text(&inside(&kernel, "ip -6 route get 2001:db8::1"));
    assert!(route.contains(" via fe80::"), "{route}");
    for (own, to) in [("10.5.0.1", address("10.5.0.15")), ("fd05::1", made)] {
        accept(&stack, &kernel, address(own));
        connect(&stack, &kernel, to);
    }
    assert!(edge.stats().dhcp_answered >= 2);
}

/// The address that a kernel has made of an advertised prefix, once it has probed it.
fn made(kernel: &Namespace) -> Option<IpAddr> {
    let command = "ip -6 -o addr show dev v0 scope global -tentative";
    let show = text(&inside(kernel, command));
    let mut words = show.split_whitespace();
    words.find(|word| *word == "inet6")?;
    words.next().map(address)
}
