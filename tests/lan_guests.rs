//! Several guests of one gateway: hosts of the kernel in a bridge, with busybox's client of DHCP, and an [`Edge`] on a TAP
//! device in the same bridge. Needs root, `ip` and `busybox`; everything happens in namespaces that the test makes and
//! removes.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]
#![allow(
    clippy::disallowed_methods,
    reason = "peers have threads of their own, and between looks at what another program does it sleeps"
)]

#[path = "support/namespace.rs"]
mod namespace;

use namespace::{Namespace, available, run, skip};
use sosplice::link::ethernet::{Edge, EdgeConfig, Guest, Mac, Tap};
use sosplice::{Intercept, Stack, TcpListener, TcpStream};
use std::fs;
use std::io::{Read, Write};
use std::net::{self, IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// What the test expects happens in this time, on any machine.
const LIMIT: Duration = Duration::from_secs(60);
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 10);
const RESERVED: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 99);
const FAR: &str = "203.0.113.5:80";
const FAR_V6: &str = "[2001:db8::5]:80";

/// Waits for something that other programs do.
fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..LIMIT.as_millis() / 20 {
        if done() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("{what}: not within {LIMIT:?}");
}

/// What the client of DHCP runs when it has an address.
const SCRIPT: &str = "#!/bin/sh
case $1 in
bound | renew)
    ip addr replace $ip/$mask dev $interface
    ip route replace default via $router
    ;;
esac
";

fn script() -> PathBuf {
    let path = format!("udhcpc-{}", std::process::id());
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(path);
    fs::write(&path, SCRIPT).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn mac(number: u8) -> Mac {
    Mac([2, 0, 0, 0, 8, number])
}

/// A bridge with a TAP device for the gateway.
struct Bridge {
    lan: Namespace,
    script: PathBuf,
}

impl Drop for Bridge {
    fn drop(&mut self) {
        fs::remove_file(&self.script).ok();
    }
}

impl Bridge {
    fn new() -> Bridge {
        let lan = Namespace::new("lan");
        lan.ip("link add br0 type bridge");
        lan.ip("tuntap add t0 mode tap");
        lan.ip("link set t0 master br0");
        lan.ip("link set t0 up");
        lan.ip("link set br0 up");
        Bridge {
            lan,
            script: script(),
        }
    }

    fn guest(&self, number: u8) -> Host {
        let host = Namespace::new("guest");
        let (name, mac) = (host.name(), mac(number));
        self.lan.ip(&format!(
            "link add g{number} type veth peer name v0 netns {name}"
        ));
        self.lan.ip(&format!("link set g{number} master br0"));
        host.ip(&format!("link set v0 address {mac}"));
        self.lan.ip(&format!("link set g{number} up"));
        host.ip("link set v0 up");
        Host(host)
    }
}

/// A host of the kernel.
struct Host(Namespace);

impl Host {
    /// Gets an address by DHCP; the client ends then.
    fn dhcp(&self, bridge: &Bridge, options: &[&str]) {
        let mut command = Command::new("ip");
        command.args([
            "netns",
            "exec",
            self.0.name(),
            "busybox",
            "udhcpc",
            "-i",
            "v0",
            "-n",
            "-q",
            "-f",
        ]);
        command
            .args(["-t", "20", "-T", "1", "-s"])
            .arg(&bridge.script);
        run(command.args(options));
    }

    /// Sends a word, which comes back.
    fn talk(&self, to: &str) {
        let mut stream = self.0.enter(|| {
            let to: SocketAddr = to.parse().unwrap();
            net::TcpStream::connect_timeout(&to, LIMIT).unwrap()
        });
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(b"hello").unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"hello");
    }

    /// A word sent to it comes back; `connect` makes the connection.
    fn answers<S: Read + Write>(&self, at: IpAddr, connect: impl FnOnce(SocketAddr) -> S) {
        let listener = self.0.enter(|| net::TcpListener::bind((at, 0)).unwrap());
        let to = listener.local_addr().unwrap();
        let answer = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut word = [0; 5];
            stream.read_exact(&mut word).unwrap();
            stream.write_all(&word).unwrap();
        });
        let mut stream = connect(to);
        stream.write_all(b"hello").unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).unwrap();
        answer.join().unwrap();
    }

    /// Whether the kernel has made an address of the advertised prefix, and has checked it.
    fn has_v6(&self) -> bool {
        let mut command = Command::new("ip");
        command.args([
            "-n",
            self.0.name(),
            "-6",
            "addr",
            "show",
            "dev",
            "v0",
            "scope",
            "global",
        ]);
        let shown = String::from_utf8(command.output().unwrap().stdout).unwrap();
        shown.contains("fd78:") && !shown.contains("tentative")
    }
}

fn gateway(bridge: &Bridge) -> (Arc<Edge<Tap>>, Stack) {
    let tap = Tap::builder("t0").netns(bridge.lan.name()).build().unwrap();
    let mut config = EdgeConfig::new("10.78.0.1/24".parse().unwrap(), FIRST)
        .pool(FIRST..=Ipv4Addr::new(10, 78, 0, 12))
        .reservations([(mac(3), RESERVED)]);
    config.gateway_v6 = Some("fd78::1/64".parse().unwrap());
    let edge = Arc::new(Edge::new(tap, config).unwrap());
    let builder = Stack::builder(edge.clone()).address("10.78.0.1/24".parse().unwrap());
    let stack = builder
        .address("fd78::1/64".parse().unwrap())
        .build()
        .unwrap();
    let listener = TcpListener::intercept(&stack, Intercept::all(), 16).unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut word = [0; 5];
            // A guest may go away.
            if stream.read_exact(&mut word).is_ok() {
                stream.write_all(&word).ok();
            }
        }
    });
    bridge.lan.wait_until_up("t0");
    (edge, stack)
}

fn of(guests: &[Guest], number: u8) -> &Guest {
    let found = guests.iter().find(|guest| guest.mac == mac(number));
    found.expect("it is listed")
}

#[test]
fn guests_in_a_bridge_have_addresses_of_their_own() {
    if Command::new("busybox").output().is_err() {
        return skip("guests_in_a_bridge", "needs busybox");
    }
    if !available("guests_in_a_bridge") {
        return;
    }
    let bridge = Bridge::new();
    let (edge, stack) = gateway(&bridge);
    let hosts = [1, 2, 3].map(|number| bridge.guest(number));
    hosts[0].dhcp(&bridge, &["-x", "hostname:one"]);
    hosts[1].dhcp(&bridge, &["-x", "hostname:two"]);
    hosts[2].dhcp(&bridge, &[]);
    let second = Ipv4Addr::new(10, 78, 0, 11);
    let expected = [
        (1, FIRST, Some("one")),
        (2, second, Some("two")),
        (3, RESERVED, None),
    ];
    let guests = edge.guests();
    for (number, address, name) in expected {
        let guest = of(&guests, number);
        assert_eq!(guest.addresses, [IpAddr::from(address)]);
        assert!(guest.lease_ends.is_some());
        if let Some(name) = name {
            assert_eq!(guest.name.as_deref(), Some(name));
        }
    }
    // Outwards, inwards, and to each other without the gateway.
    for (host, (_, address, _)) in hosts.iter().zip(expected) {
        host.talk(FAR);
        host.answers(address.into(), |to| TcpStream::connect(&stack, to).unwrap());
    }
    hosts[1].answers(second.into(), |to| {
        hosts[0].0.enter(|| net::TcpStream::connect(to).unwrap())
    });
    // The same address again, and another client's is refused.
    hosts[0].dhcp(&bridge, &["-r", "10.78.0.10"]);
    hosts[1].dhcp(&bridge, &["-r", "10.78.0.10"]);
    assert_eq!(of(&edge.guests(), 2).addresses, [IpAddr::from(second)]);
    v6(&hosts[..2], &edge, &stack);
    theft(&hosts, &edge);
}

/// By router advertisements, with several addresses of a guest.
fn v6(hosts: &[Host], edge: &Edge<Tap>, stack: &Stack) {
    let extra = ["fd78::a1", "fd78::a2"];
    for (host, extra) in hosts.iter().zip(extra) {
        until("an address of the prefix", || host.has_v6());
        host.talk(FAR_V6);
        host.0.ip(&format!("addr add {extra}/64 dev v0 nodad"));
        let extra: Ipv6Addr = extra.parse().unwrap();
        host.answers(extra.into(), |to| TcpStream::connect(stack, to).unwrap());
    }
    for number in [1, 2] {
        let guests = edge.guests();
        let addresses = &of(&guests, number).addresses;
        assert!(addresses.len() >= 2, "{addresses:?}");
    }
}

/// A guest uses the address of another one, which is served as before.
fn theft(hosts: &[Host], edge: &Edge<Tap>) {
    let spoofed = edge.stats().spoofed;
    hosts[1].0.ip("addr add 10.78.0.10/32 dev v0");
    let socket = hosts[1].0.enter(|| UdpSocket::bind((FIRST, 0)).unwrap());
    until("a forged datagram is counted", || {
        socket.send_to(b"forged", "203.0.113.5:9").ok();
        edge.stats().spoofed > spoofed
    });
    hosts[0].talk(FAR);
    assert_eq!(of(&edge.guests(), 1).addresses[0], IpAddr::from(FIRST));
}
