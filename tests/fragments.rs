//! Packets larger than the MTU, between a stack and the kernel. Needs root, `ip` and `ping`; everything happens
//! in namespaces that each test makes and removes.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "support/namespace.rs"]
mod namespace;

use namespace::{Namespace, available, run};
use sosplice::link::tun::Tun;
use sosplice::{Stack, TcpListener, UdpSocket};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

/// A namespace with a device, and a stack at its other end.
fn network() -> (Namespace, Stack) {
    let namespace = Namespace::new("fragments");
    namespace.tun("t0", &["10.99.1.1/24", "fd99::1/64"], 1500);
    let stack = at_device(&namespace);
    (namespace, stack)
}

fn at_device(namespace: &Namespace) -> Stack {
    let tun = Tun::builder("t0").netns(namespace.name()).build().unwrap();
    let builder = Stack::builder(tun).address("10.99.1.2/24".parse().unwrap());
    let stack = builder.address("fd99::2/64".parse().unwrap()).build();
    namespace.wait_until_up("t0");
    stack.unwrap()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0])
        .collect()
}

#[test]
fn the_kernel_pings_with_sixty_thousand_bytes() {
    if !available("the_kernel_pings_with_sixty_thousand_bytes") {
        return;
    }
    let (namespace, stack) = network();
    for to in ["10.99.1.2", "fd99::2"] {
        let mut ping = Command::new("ip");
        let exec = ["netns", "exec", namespace.name(), "ping"];
        let large = ["-s", "60000", "-c", "3", "-i", "0.01", "-W", "10", to];
        run(ping.args(exec).args(large));
    }
    let stats = stack.stats();
    assert_eq!(stats.packets_reassembled, 6);
    assert_eq!((stats.reassembly_timeouts, stats.fragment_memory), (0, 0));
}

/// The largest datagrams of both families, there and back.
#[test]
fn the_kernels_largest_datagrams_come_back() {
    if !available("the_kernels_largest_datagrams_come_back") {
        return;
    }
    let (namespace, stack) = network();
    for (at, from, largest) in [
        ("10.99.1.2:7", "10.99.1.1:0", 65_507),
        ("[fd99::2]:7", "[fd99::1]:0", 65_527),
    ] {
        let echo = UdpSocket::bind(&stack, at).unwrap();
        let socket = namespace.enter(|| std::net::UdpSocket::bind(from).unwrap());
        let limit = Some(Duration::from_secs(10));
        socket.set_read_timeout(limit).unwrap();
        for len in [1472, 1473, 20_000, largest] {
            let sent = pattern(len);
            socket.send_to(&sent, at).unwrap();
            let mut heard = vec![0; 70_000];
            let (count, peer) = echo.recv_from(&mut heard).unwrap();
            assert!(heard[..count] == sent, "{at} {len}: there");
            echo.send_to(&heard[..count], peer).unwrap();
            let (count, _) = socket.recv_from(&mut heard).unwrap();
            assert!(heard[..count] == sent, "{at} {len}: and back");
        }
    }
    assert!(stack.stats().packets_reassembled >= 6);
}

/// client --- 1500 --- router --- 700 --- router --- device of the stack: the first router cuts each segment, since
/// the client does not look for the path's MTU.
#[test]
fn a_connection_through_a_router_that_cuts() {
    if !available("a_connection_through_a_router_that_cuts") {
        return;
    }
    let [client, first, second] = ["client", "first", "second"].map(Namespace::new);
    join(&client, ("10.99.3.1/24", "10.99.3.2/24"), &first, 1500);
    join(&first, ("10.99.2.1/24", "10.99.2.2/24"), &second, 700);
    second.tun("t0", &["10.99.1.1/24"], 1500);
    client.ip("route add default via 10.99.3.2");
    first.ip("route add 10.99.1.0/24 via 10.99.2.2");
    second.ip("route add 10.99.3.0/24 via 10.99.2.1");
    let set = |namespace: &Namespace, key: &str| {
        let path = format!("/proc/sys/net/ipv4/{key}");
        namespace.enter(|| fs::write(path, "1").unwrap());
    };
    set(&client, "ip_no_pmtu_disc");
    set(&first, "ip_forward");
    set(&second, "ip_forward");
    let stack = at_device(&second);

    let listener = TcpListener::bind(&stack, "10.99.1.2:80").unwrap();
    let text = pattern(3_000_000);
    let to: SocketAddr = "10.99.1.2:80".parse().unwrap();
    let socket = client.enter(|| TcpStream::connect(to).unwrap());
    let (mut accepted, _) = listener.accept().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            (&socket).write_all(&text).unwrap();
            socket.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        accepted.read_to_end(&mut got).unwrap();
        assert!(got == text);
    });
    // The other way the stack finds the path's MTU.
    accepted.write_all(&text[..500_000]).unwrap();
    drop(accepted);
    let mut got = Vec::new();
    (&socket).read_to_end(&mut got).unwrap();
    assert!(got == text[..500_000]);
    let stats = stack.stats();
    assert!(stats.packets_reassembled > 1000, "{stats:?}");
    assert_eq!((stats.reassembly_overlaps, stats.broken), (0, 0));
    assert_eq!(stats.mtu_lowered, 1);
}

/// A pair of devices between two namespaces, with these addresses.
fn join(one: &Namespace, addresses: (&str, &str), other: &Namespace, mtu: usize) {
    let name = |namespace: &Namespace| {
        format!("v{mtu}-{}", &namespace.name()[namespace.name().len() - 3..])
    };
    let (a, b) = (name(one), name(other));
    one.ip(&format!(
        "link add {a} type veth peer name {b} netns {}",
        other.name()
    ));
    for (namespace, device, address) in [(one, a, addresses.0), (other, b, addresses.1)] {
        namespace.ip(&format!("addr add {address} dev {device}"));
        namespace.ip(&format!("link set {device} mtu {mtu} up"));
    }
}
