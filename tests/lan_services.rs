//! What a LAN gives to a stack, and learns from it: addresses by DHCP and by router advertisements, both of dnsmasq; and
//! the groups that it has joined, in a bridge of the kernel that asks for them. Needs root, `ip`, `bridge` and
//! `dnsmasq`; everything happens in namespaces that each test makes and removes.
#![cfg(target_os = "linux")]
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/namespace.rs"]
mod namespace;
#[path = "support/program.rs"]
#[allow(dead_code, reason = "not every test needs it")]
mod program;

use ipnet::IpNet;
use namespace::{Namespace, available_with};
use program::Program;
use sosplice::link::Link;
use sosplice::link::ethernet::{AfPacket, Host, HostConfig, Mac, Tap};
use sosplice::{Stack, TcpStream, UdpSocket};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

const MAC: Mac = Mac([2, 0, 0, 0, 7, 9]);
/// What the tests expect happens in this time, on any machine.
const LIMIT: Duration = Duration::from_secs(60);

fn ready(test: &str) -> bool {
    available_with(test, &["dnsmasq", "bridge"])
}

/// What the cable ends in on the side of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tap,
    AfPacket,
}

/// A server in a namespace with the interface `v0`, and the other end of its cable. It uses the interface, or a bridge
/// to which the cable leads.
#[derive(Debug)]
struct Lan {
    kind: Kind,
    interface: &'static str,
    server: Namespace,
    port: Namespace,
    leases: PathBuf,
}

impl Lan {
    fn new(kind: Kind) -> Lan {
        Lan::with(kind, "v0")
    }

    fn with(kind: Kind, interface: &'static str) -> Lan {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (server, port) = (Namespace::new("server"), Namespace::new("port"));
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let leases = format!("leases-{}-{count}", std::process::id());
        let leases = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(leases);
        match kind {
            Kind::Tap => server.ip("tuntap add v0 mode tap"),
            Kind::AfPacket => {
                set(&port, "net/ipv6/conf/all/disable_ipv6", "1");
                let netns = port.name();
                server.ip(&format!("link add v0 type veth peer name v0 netns {netns}"));
                port.ip("link set v0 up");
            }
        }
        if interface != "v0" {
            server.ip(&format!("link add {interface} type bridge forward_delay 0"));
            server.ip(&format!("link set v0 master {interface}"));
        }
        server.ip(&format!("addr add 10.77.0.1/24 dev {interface}"));
        server.ip(&format!("addr add fd77::1/64 dev {interface} nodad"));
        server.ip(&format!("addr add fe80::77/64 dev {interface} nodad"));
        // Networks behind the server.
        server.ip("addr add 192.0.2.7/32 dev lo");
        server.ip("addr add 2001:db8::7/128 dev lo");
        server.ip("link set v0 up");
        server.ip(&format!("link set {interface} up"));
        Lan {
            kind,
            interface,
            server,
            port,
            leases,
        }
    }

    fn transport(&self) -> Arc<dyn Link> {
        match self.kind {
            Kind::Tap => Arc::new(
                Tap::builder("v0")
                    .netns(self.server.name())
                    .build()
                    .unwrap(),
            ),
            Kind::AfPacket => {
                let socket = AfPacket::builder("v0").netns(self.port.name());
                Arc::new(socket.mac(MAC).build().unwrap())
            }
        }
    }

    fn station(&self, config: HostConfig) -> Station {
        let host = Arc::new(Host::new(self.transport(), config).unwrap());
        let stack = Stack::builder(host.clone()).build().unwrap();
        self.server.wait_until_up("v0");
        Station { host, stack }
    }

    /// Starts dnsmasq, as a server of DHCP or with router advertisements, and no others.
    fn dnsmasq(&self, options: &[&str]) -> Dnsmasq {
        let mut command = Command::new("ip");
        let script = "exec dnsmasq \"$@\" 2>&1";
        command.args([
            "netns",
            "exec",
            self.server.name(),
            "sh",
            "-c",
            script,
            "sh",
        ]);
        command.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--pid-file",
        ]);
        command.args(["--user=root", "--port=0", "--bind-interfaces"]);
        command.arg(format!("--interface={}", self.interface));
        command.args(["--log-facility=-", "--log-dhcp", "--no-ping"]);
        command.arg(format!("--dhcp-leasefile={}", self.leases.display()));
        command.args(options);
        Dnsmasq(Program::start(command, "started"))
    }

    /// Sends a word to the address, where a socket of the kernel sends it back.
    fn talk(&self, station: &Station, address: &str) {
        let listener = self.server.enter(|| TcpListener::bind(address).unwrap());
        let mut near = TcpStream::connect(&station.stack, address).unwrap();
        let (mut far, peer) = listener.accept().unwrap();
        let mut word = [0; 5];
        near.write_all(b"hello").unwrap();
        far.read_exact(&mut word).unwrap();
        far.write_all(&word).unwrap();
        near.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"hello");
        assert!(station.has(peer.ip()), "{peer}");
    }
}

impl Lan {
    /// Sends a datagram that is larger than the advertised MTU of 1,400 bytes, until it has arrived.
    fn takes_in_fragments(&self, station: &Station, address: &str, data: &[u8]) {
        let far = self
            .server
            .enter(|| std::net::UdpSocket::bind(address).unwrap());
        far.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let is_v6 = far.local_addr().unwrap().is_ipv6();
        let any = if is_v6 { "[::]:0" } else { "0.0.0.0:0" };
        let near = UdpSocket::bind(&station.stack, any).unwrap();
        let mut received = [0; 2000];
        // The first one may only find out the size.
        let arrives = (0..30).any(|_| {
            near.send_to(data, address).ok();
            far.recv(&mut received).is_ok_and(|len| len == data.len())
        });
        assert!(arrives && received.starts_with(data));
        assert!(self.reassembled(is_v6) > 0);
    }

    /// How many packets the server has put together.
    fn reassembled(&self, v6: bool) -> u32 {
        let read = |file: &str| {
            let path = format!("/proc/thread-self/net/{file}");
            self.server.enter(|| std::fs::read_to_string(path).unwrap())
        };
        let row = |text: String, first: &str| {
            let row = text.lines().find(|line| line.starts_with(first)).unwrap();
            row.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        if v6 {
            return row(read("snmp6"), "Ip6ReasmOKs")[1].parse().unwrap();
        }
        let names = row(read("snmp"), "Ip: Forwarding");
        let at = names.iter().position(|name| name == "ReasmOKs").unwrap();
        let values = read("snmp").lines().nth(1).unwrap().to_owned();
        row(values, "Ip:")[at].parse().unwrap()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        std::fs::remove_file(&self.leases).ok();
    }
}

/// Sets a value below `/proc/sys` of a namespace.
fn set(namespace: &Namespace, name: &str, value: &str) {
    namespace.enter(|| std::fs::write(format!("/proc/sys/{name}"), value).unwrap());
}

/// Waits for something that other programs do.
#[allow(
    clippy::disallowed_methods,
    reason = "between looks at what another program does"
)]
fn comes_true(limit: Duration, done: impl Fn() -> bool) -> bool {
    for _ in 0..limit.as_millis() / 20 {
        if done() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    false
}

fn until(what: &str, done: impl Fn() -> bool) {
    assert!(comes_true(LIMIT, done), "{what}: not within {LIMIT:?}");
}

/// A running server, and what it reports.
struct Dnsmasq(Program);

impl Dnsmasq {
    /// How many lines have these words.
    fn count(&self, words: &str) -> usize {
        self.0
            .said()
            .lines()
            .filter(|line| line.contains(words))
            .count()
    }

    fn reports(&self, words: &str, count: usize) {
        until(&format!("{count} times {words}"), || {
            self.count(words) >= count
        });
    }

    fn stop(mut self) {
        self.0.terminate(LIMIT);
    }
}

/// A stack in the LAN.
struct Station {
    host: Arc<Host<Arc<dyn Link>>>,
    stack: Stack,
}

impl Station {
    fn has(&self, address: IpAddr) -> bool {
        self.stack
            .addresses()
            .iter()
            .any(|net| net.addr() == address)
    }

    /// Waits for an address in this network.
    fn address_in(&self, network: &str) -> IpNet {
        let network: IpNet = network.parse().unwrap();
        let find = || {
            let all = self.stack.addresses();
            all.into_iter().find(|net| net.trunc() == network)
        };
        until(&format!("an address in {network}"), || find().is_some());
        find().unwrap()
    }
}

fn config() -> HostConfig {
    HostConfig::new(MAC).probe(false)
}

const NETWORK: &str = "10.77.0.0/24";
const RANGE: &str = "--dhcp-range=10.77.0.100,10.77.0.150,2m";

#[test]
fn a_server_gives_an_address_a_router_name_servers_and_an_mtu() {
    if !ready("a_server_gives_an_address") {
        return;
    }
    for kind in [Kind::AfPacket, Kind::Tap] {
        let lan = Lan::new(kind);
        let dns = "--dhcp-option=option:dns-server,10.77.0.53,10.77.0.54";
        let server = lan.dnsmasq(&[RANGE, dns, "--dhcp-option=option:mtu,1400"]);
        let station = lan.station(config().dhcp(true).probe(kind == Kind::Tap));
        station.address_in(NETWORK);
        lan.talk(&station, "10.77.0.1:80");
        lan.talk(&station, "192.0.2.7:80");
        let expected = ["10.77.0.53", "10.77.0.54"].map(|dns| dns.parse::<IpAddr>().unwrap());
        assert_eq!(station.host.dns(), expected);
        assert_eq!(server.count("DHCPNAK"), 0);
        lan.takes_in_fragments(&station, "10.77.0.1:7", &[1; 1450]);
        station.host.release();
        server.reports("DHCPRELEASE", 1);
        until("no address", || station.stack.addresses().is_empty());
        assert_eq!(station.host.dns(), Vec::<IpAddr>::new());
    }
}

/// After a restart of the program the former address is asked for, and no other is offered.
#[test]
fn an_address_from_before_a_restart_is_confirmed() {
    if !ready("an_address_from_before_a_restart") {
        return;
    }
    let lan = Lan::new(Kind::AfPacket);
    let server = lan.dnsmasq(&[RANGE]);
    let first = lan.station(config().dhcp(true)).address_in(NETWORK);
    assert_eq!((server.count("DHCPOFFER"), server.count("DHCPACK")), (1, 1));
    let IpAddr::V4(address) = first.addr() else {
        panic!("{first}")
    };
    let second = lan.station(config().dhcp(true).dhcp_address(address));
    assert_eq!(second.address_in(NETWORK), first);
    assert_eq!((server.count("DHCPOFFER"), server.count("DHCPACK")), (1, 2));
    lan.talk(&second, "10.77.0.1:80");
}

/// The server wants leases to be renewed each second.
#[test]
fn a_lease_is_renewed_also_by_a_server_that_has_lost_it() {
    if !ready("a_lease_is_renewed") {
        return;
    }
    let lan = Lan::new(Kind::AfPacket);
    let soon = [
        RANGE,
        "--dhcp-option=option:T1,1",
        "--dhcp-option=option:T2,3",
        "--dhcp-authoritative",
    ];
    let server = lan.dnsmasq(&soon);
    let station = lan.station(config().dhcp(true));
    let address = station.address_in(NETWORK);
    server.reports("DHCPACK", 3);
    assert_eq!(server.count("DHCPDISCOVER"), 1);
    server.stop();
    std::fs::remove_file(&lan.leases).unwrap();
    let server = lan.dnsmasq(&soon);
    server.reports("DHCPACK", 3);
    assert_eq!(server.count("DHCPDISCOVER"), 0);
    assert_eq!(station.stack.addresses(), [address]);
    lan.talk(&station, "192.0.2.7:80");
}

/// The cable is put into another network.
#[test]
fn in_another_network_the_former_address_is_refused() {
    if !ready("in_another_network") {
        return;
    }
    let lan = Lan::new(Kind::AfPacket);
    let server = lan.dnsmasq(&[RANGE]);
    let station = lan.station(config().dhcp(true));
    station.address_in(NETWORK);
    server.stop();
    std::fs::remove_file(&lan.leases).unwrap();
    lan.server.ip("addr del 10.77.0.1/24 dev v0");
    lan.server.ip("addr add 10.78.0.1/24 dev v0");
    let server = lan.dnsmasq(&[
        "--dhcp-range=10.78.0.100,10.78.0.150,2m",
        "--dhcp-authoritative",
    ]);
    station.host.reconnected();
    let address = station.address_in("10.78.0.0/24");
    assert_eq!(server.count("DHCPNAK"), 1);
    assert_eq!(
        station.stack.addresses(),
        [address],
        "the former one is gone"
    );
    lan.talk(&station, "10.78.0.1:80");
    lan.talk(&station, "192.0.2.7:80");
}

/// The first offer is six seconds late: the question has been asked again meanwhile.
#[test]
fn a_server_that_answers_late_is_heard() {
    if !ready("a_server_that_answers_late") {
        return;
    }
    let lan = Lan::new(Kind::AfPacket);
    let server = lan.dnsmasq(&[RANGE, "--dhcp-reply-delay=6"]);
    let station = lan.station(config().dhcp(true));
    station.address_in(NETWORK);
    assert!(server.count("DHCPDISCOVER") >= 2);
    lan.talk(&station, "10.77.0.1:80");
}

/// Another host has the address: the server hears of it, and gives another one after ten seconds.
#[test]
fn an_address_that_another_host_has_is_declined() {
    if !ready("an_address_that_another_host_has") {
        return;
    }
    let lan = Lan::with(Kind::AfPacket, "br0");
    let other = Namespace::new("other");
    let netns = other.name();
    lan.server
        .ip(&format!("link add p1 type veth peer name v0 netns {netns}"));
    lan.server.ip("link set p1 master br0 up");
    other.ip("addr add 10.77.0.120/24 dev v0");
    other.ip("link set v0 up");
    other.wait_until_up("v0");
    let server = lan.dnsmasq(&[RANGE, "--dhcp-host=02:00:00:00:07:09,10.77.0.120"]);
    let station = lan.station(config().dhcp(true).probe(true));
    let address = station.address_in(NETWORK);
    assert_eq!(server.count("DHCPDECLINE(br0) 10.77.0.120"), 1);
    assert_ne!(address.addr(), IpAddr::from([10, 77, 0, 120]));
    assert_eq!(station.host.stats().conflicts, 1);
    lan.talk(&station, "10.77.0.1:80");
}

/// With a gateway for a network of its own (RFC 3442), and none for the rest.
#[test]
fn classless_routes_are_heeded() {
    if !ready("classless_routes") {
        return;
    }
    let lan = Lan::new(Kind::AfPacket);
    let routes = "--dhcp-option=option:classless-static-route,192.0.2.0/24,10.77.0.1";
    let _server = lan.dnsmasq(&[RANGE, routes]);
    let station = lan.station(config().dhcp(true));
    station.address_in(NETWORK);
    lan.talk(&station, "192.0.2.7:80");
    let other = TcpStream::connect(&station.stack, "198.51.100.1:80").unwrap_err();
    assert_eq!(other.kind(), ErrorKind::HostUnreachable, "{other}");
    assert!(station.host.stats().no_route > 0);
}

const PREFIX: &str = "--dhcp-range=::,constructor:v0,ra-only,64,10m";

/// The address of the hardware address in a prefix.
fn own_in(prefix: &str) -> IpNet {
    format!("{prefix}::ff:fe00:709/64").parse().unwrap()
}

#[test]
fn router_advertisements_give_addresses_a_router_name_servers_and_an_mtu() {
    if !ready("router_advertisements") {
        return;
    }
    for kind in [Kind::AfPacket, Kind::Tap] {
        let lan = Lan::new(kind);
        let dns = "--dhcp-option=option6:dns-server,[fd77::53]";
        let mtu = "--ra-param=v0,mtu:1400,10,600";
        let server = lan.dnsmasq(&["--enable-ra", PREFIX, dns, mtu]);
        let station = lan.station(config().slaac(true).probe(kind == Kind::Tap));
        assert_eq!(station.address_in("fd77::/64"), own_in("fd77"));
        lan.talk(&station, "[fd77::1]:80");
        lan.talk(&station, "[2001:db8::7]:80");
        assert_eq!(station.host.dns(), ["fd77::53".parse::<IpAddr>().unwrap()]);
        lan.takes_in_fragments(&station, "[fd77::1]:7", &[1; 1450]);
        assert!(server.count("RTR-SOLICIT") + server.count("RTR-ADVERT") >= 1);
    }
}

/// RFC 4862 5.4: another host has the address that would be made.
#[test]
fn an_address_of_another_host_is_not_made() {
    if !ready("an_address_of_another_host") {
        return;
    }
    let lan = Lan::new(Kind::AfPacket);
    let other = own_in("fd77").addr();
    lan.server.ip(&format!("addr add {other}/128 dev v0 nodad"));
    let _server = lan.dnsmasq(&["--enable-ra", PREFIX]);
    let station = lan.station(config().slaac(true).probe(true));
    until("a conflict", || station.host.stats().conflicts == 1);
    until("a link-local address", || {
        !station.stack.addresses().is_empty()
    });
    assert!(!station.has(other));
    let addresses = station.host.addresses();
    assert!(addresses.iter().all(|own| own.address.addr() != other));
}

/// A router that gives its prefix up and has another one: the old address remains, for what uses it.
#[test]
fn another_prefix_makes_another_address() {
    if !ready("another_prefix") {
        return;
    }
    let lan = Lan::new(Kind::AfPacket);
    let _server = lan.dnsmasq(&["--enable-ra", PREFIX]);
    let station = lan.station(config().slaac(true));
    station.address_in("fd77::/64");
    lan.server.ip("addr add fd78::1/64 dev v0 nodad");
    lan.server.ip("addr del fd77::1/64 dev v0");
    assert_eq!(station.address_in("fd78::/64"), own_in("fd78"));
    assert!(station.stack.addresses().contains(&own_in("fd77")));
    lan.talk(&station, "[fd78::1]:80");
}

/// A bridge that forwards groups only where they were joined, and asks for members.
struct Snooping<'a>(&'a Lan);

impl Snooping<'_> {
    /// Puts `v0` into the bridge `br0`, which speaks these versions and asks every two seconds.
    fn new<'a>(lan: &'a Lan, igmp: u8, mld: u8) -> Snooping<'a> {
        lan.server.ip(&format!(
            "link add br0 type bridge forward_delay 0 mcast_snooping 1 mcast_querier 1 mcast_stats_enabled 1 \
             mcast_query_interval 200 mcast_startup_query_interval 200 mcast_query_response_interval 100 \
             mcast_last_member_interval 20 mcast_igmp_version {igmp} mcast_mld_version {mld}"
        ));
        lan.server.ip("link set v0 master br0");
        lan.server.ip("link set br0 up");
        Snooping(lan)
    }

    fn says(&self, tool: &str, arguments: &str) -> String {
        let mut command = Command::new(tool);
        let name = self.0.server.name();
        program::output(
            command
                .args(["-n", name])
                .args(arguments.split_whitespace()),
        )
    }

    fn forwards(&self, group: &str) -> bool {
        let all = self.says("bridge", "mdb show dev br0");
        all.lines()
            .any(|line| line.contains(&format!("port v0 grp {group} ")))
    }

    /// Received reports in a version, like `v3`, of IGMP or MLD.
    fn reports(&self, protocol: &str, version: &str) -> u32 {
        let all = self.says("ip", "link xstats type bridge dev br0");
        let (_, all) = all.split_once(&format!("{protocol} reports:")).unwrap();
        let received = all.lines().find(|line| line.contains("RX:")).unwrap();
        let mut words = received.split_whitespace();
        words.find(|word| *word == version).unwrap();
        words.next().unwrap().parse().unwrap()
    }
}

/// The versions of the querier, and those in which the host is to speak.
#[test]
fn a_switch_learns_the_groups_of_a_host() {
    if !ready("a_switch_learns_the_groups") {
        return;
    }
    for (igmp, mld) in [(3, 2), (2, 1)] {
        let lan = Lan::new(Kind::AfPacket);
        let switch = Snooping::new(&lan, igmp, mld);
        let config = config().address("10.77.0.9/24".parse().unwrap());
        let station = lan.station(config.address("fd77::9/64".parse().unwrap()));
        let group = "239.1.2.3";
        until("a solicited-node group", || {
            switch.forwards("ff02::1:ff00:9")
        });
        station.host.join(group.parse().unwrap()).unwrap();
        until("a joined group", || switch.forwards(group));
        // Queries are answered in the querier's version.
        let (igmp, mld) = (format!("v{igmp}"), format!("v{mld}"));
        let before = switch.reports("IGMP", &igmp);
        until("answers", || switch.reports("IGMP", &igmp) >= before + 2);
        let before = switch.reports("MLD", &mld);
        until("answers", || switch.reports("MLD", &mld) >= before + 2);
        assert!(switch.forwards(group) && switch.forwards("ff02::1:ff00:9"));
        // A single message in version 2: if that is lost, the switch goes on for minutes (RFC 2236 3).
        let leaves = || {
            assert!(station.host.leave(group.parse().unwrap()));
            let is_left = comes_true(Duration::from_secs(10), || !switch.forwards(group));
            if !is_left {
                let table = switch.says("bridge", "-d -s mdb show");
                eprintln!("not left: {:?}, {table}", station.host.stats());
                station.host.join(group.parse().unwrap()).unwrap();
            }
            is_left
        };
        assert!((0..3).any(|_| leaves()), "{group} is not left");
        let errors = switch.says("ip", "link xstats type bridge dev br0");
        assert_eq!(errors.matches("parse errors: 0").count(), 2, "{errors}");
    }
}
