//! Stacks in one Ethernet: hosts, and the gateway of a guest, over a transport in memory.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests"
)]

#[path = "support/clock.rs"]
mod clock;

use clock::SetClock;
use sosplice::clock::{Clock, system};
use sosplice::error::SoError;
use sosplice::link::Link;
use sosplice::link::ethernet::{AddressState, Edge, EdgeConfig, Host, HostConfig, Mac};
use sosplice::link::memory::{self, MemoryLink};
use sosplice::socket::ConnectError;
use sosplice::splice::{Cause, Options};
use sosplice::stack::Driver;
use sosplice::{Intercept, Stack, TcpListener, TcpSocket, TcpStream};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

fn wire() -> (MemoryLink, MemoryLink) {
    memory::pair(memory::Config::default().mtu(1514))
}

/// With addresses of both families.
fn config(last: u8) -> HostConfig {
    HostConfig::new(mac(last))
        .address(format!("10.0.0.{last}/24").parse().unwrap())
        .address(format!("fd00::{last}/64").parse().unwrap())
}

/// A host without probes of its addresses, which take seconds.
fn host(transport: MemoryLink, config: HostConfig) -> (Arc<Host<MemoryLink>>, Stack) {
    let host = Arc::new(Host::new(transport, config.probe(false)).unwrap());
    let stack = Stack::builder(host.clone()).build().unwrap();
    (host, stack)
}

fn data() -> Vec<u8> {
    (0..300_000_u32)
        .flat_map(|at| (at / 5).to_le_bytes())
        .collect()
}

/// Sends data and the end, and returns the answer.
fn ask(mut stream: TcpStream) -> Vec<u8> {
    stream.write_all(&data()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

/// Sends back what it receives.
fn echo(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    stream.write_all(&received).unwrap();
}

/// A connection between two stacks, with data both ways.
fn talk(client: &Stack, server: &Stack, address: &str) {
    let listener = TcpListener::bind(server, address).unwrap();
    let near = TcpStream::connect(client, address).unwrap();
    let asking = thread::spawn(move || ask(near));
    echo(&listener);
    assert!(asking.join().unwrap() == data());
}

#[test]
fn two_hosts_talk_over_both_families() {
    let (a, b) = wire();
    let (near, client) = host(a, config(1));
    let (_far, server) = host(b, config(2));
    talk(&client, &server, "10.0.0.2:80");
    talk(&client, &server, "[fd00::2]:80");
    talk(&client, &server, "[fe80::ff:fe00:2]:80");
    let neighbours = near.neighbours();
    assert!(
        neighbours.iter().all(|one| one.mac == Some(mac(2))),
        "{neighbours:?}"
    );
    assert_eq!(neighbours.len(), 3);
    let addresses = near.addresses();
    assert!(addresses.iter().all(|one| one.state == AddressState::InUse));
    assert_eq!(client.addresses().len(), 3);
}

/// client (host) --- gateway with a splice --- server (host)
#[test]
fn a_host_reaches_another_network_by_a_gateway_and_its_splices() {
    let (a, b) = wire();
    let guest = HostConfig::new(mac(15)).dhcp(true).slaac(true);
    let (_client_host, client) = host(a, guest);
    let gateway = EdgeConfig::new("10.0.2.1/24".parse().unwrap(), "10.0.2.15".parse().unwrap());
    let gateway = gateway.gateway_v6("fd00:2::1/64".parse::<ipnet::Ipv6Net>().unwrap());
    let edge = Stack::builder(Edge::new(b, gateway).unwrap());
    let edge = edge.address("10.0.2.1/24".parse().unwrap());
    let edge = edge
        .address("fd00:2::1/64".parse().unwrap())
        .build()
        .unwrap();
    let (c, d) = wire();
    let (_front, back) = host(c, config(1));
    let (_server_host, server) = host(d, config(2));

    let service = TcpListener::bind(&server, "10.0.0.2:80").unwrap();
    let serving = thread::spawn(move || (0..2).for_each(|_| echo(&service)));
    client
        .wait_for_address(|net| net.addr().is_ipv4(), LONG)
        .unwrap();
    let global = |net: &ipnet::IpNet| net.addr().to_string().starts_with("fd00:2:");
    client.wait_for_address(global, LONG).unwrap();
    for far in ["192.0.2.9:80", "[2001:db8::9]:80"] {
        // Whatever the client wants to reach.
        let rule = Intercept::all().ports(80..=80);
        let proxy = TcpListener::intercept(&edge, rule, 16).unwrap();
        let asking = thread::spawn({
            let client = client.clone();
            move || ask(TcpStream::connect(&client, far).unwrap())
        });
        let (inside, _) = proxy.accept().unwrap();
        let outside = TcpStream::connect(&back, "10.0.0.2:80").unwrap();
        let up = inside.splice_to(&outside, Options::default()).unwrap();
        let down = outside.splice_to(&inside, Options::default()).unwrap();
        assert_eq!(up.wait().cause, Cause::Eof);
        outside.shutdown(Shutdown::Write).unwrap();
        let end = down.wait();
        assert_eq!((end.cause, end.bytes), (Cause::Eof, data().len() as u64));
        inside.shutdown(Shutdown::Write).unwrap();
        assert!(asking.join().unwrap() == data());
    }
    serving.join().unwrap();
}

/// A host and its stack in virtual time, and the other end of its wire.
struct Scene {
    clock: Arc<SetClock>,
    host: Arc<Host<MemoryLink>>,
    stack: Stack,
    driver: Driver,
    far: MemoryLink,
}

impl Scene {
    fn new(config: HostConfig) -> Scene {
        let clock = SetClock::new();
        let (transport, far) = wire();
        let host = Host::new(transport, config.seed(1))
            .unwrap()
            .clock(clock.clone());
        let host = Arc::new(host);
        let builder = Stack::builder(host.clone()).clock(clock.clone());
        let (stack, driver) = builder.build_with_driver().unwrap();
        Scene {
            clock,
            host,
            stack,
            driver,
            far,
        }
    }

    /// Runs the stack, by its own deadlines alone.
    fn pass(&mut self, time: Duration) {
        let end = self.clock.now() + time;
        loop {
            while self.driver.poll().unwrap() {}
            let mut frames = Vec::new();
            while self.far.receive(&mut frames, 64).unwrap() > 0 {}
            let next = self.driver.poll_at().filter(|at| *at <= end);
            let Some(next) = next.filter(|next| *next > self.clock.now()) else {
                break;
            };
            self.clock.jump(next);
        }
        self.clock.jump(end);
        while self.driver.poll().unwrap() {}
    }
}

/// The driver wakes for the timers of its link.
#[test]
fn a_stack_has_an_address_after_its_probes() {
    let mut scene = Scene::new(config(1));
    assert!(scene.stack.addresses().is_empty());
    let error = TcpListener::bind(&scene.stack, "10.0.0.1:80").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    scene.pass(Duration::from_secs(3));
    assert_eq!(scene.stack.addresses().len(), 2, "those of IPv6");
    scene.pass(Duration::from_secs(6));
    assert_eq!(scene.stack.addresses().len(), 3);
    TcpListener::bind(&scene.stack, "10.0.0.1:80").unwrap();
}

#[test]
fn connecting_to_a_host_that_is_not_there_fails_soon() {
    let mut scene = Scene::new(config(1).probe(false));
    for to in ["10.0.0.77:80", "[fd00::77]:80"] {
        let stream = TcpSocket::new(&scene.stack)
            .start(to.parse().unwrap())
            .unwrap();
        scene.pass(Duration::from_millis(2900));
        assert_eq!(
            stream.wait_connected(Some(system().now())),
            Err(ConnectError::Pending),
            "{to}"
        );
        scene.pass(Duration::from_millis(200));
        let error = stream.wait_connected(None).unwrap_err();
        assert_eq!(
            error,
            ConnectError::Failed(SoError::HostUnreachable),
            "{to}"
        );
    }
    assert_eq!(scene.host.stats().neighbours_failed, 2);
}

#[test]
fn connecting_without_a_route_fails_at_once() {
    let mut scene = Scene::new(config(1).probe(false));
    let stream = TcpSocket::new(&scene.stack)
        .start("192.0.2.1:80".parse().unwrap())
        .unwrap();
    scene.pass(Duration::ZERO);
    let error = stream.wait_connected(None).unwrap_err();
    assert_eq!(error, ConnectError::Failed(SoError::HostUnreachable));
    assert_eq!(scene.host.stats().no_route, 1);
}

/// No error of an own link ends a connection that exists.
#[test]
fn a_connection_survives_a_neighbour_that_is_away() {
    let (a, b) = wire();
    let clock = SetClock::new();
    let build = |transport, last| {
        let host = Host::new(transport, config(last).probe(false).seed(1)).unwrap();
        let builder = Stack::builder(host.clock(clock.clone())).clock(clock.clone());
        builder.build_with_driver().unwrap()
    };
    let ((client, mut near), (server, mut far)) = (build(a, 1), build(b, 2));
    let listener = TcpListener::bind(&server, "10.0.0.2:80").unwrap();
    let mut stream = TcpSocket::new(&client)
        .start("10.0.0.2:80".parse().unwrap())
        .unwrap();
    // A turn that only answers ARP is none with work for the stack.
    let run = |near: &mut Driver, mut far: Option<&mut Driver>| {
        for _ in 0..16 {
            near.poll().unwrap();
            far.iter_mut().for_each(|far| assert!(far.poll().is_ok()));
        }
    };
    run(&mut near, Some(&mut far));
    let (mut accepted, _) = listener.accept().unwrap();
    // The server's machine stands still for a minute, while data is sent to it.
    stream.write_all(b"data").unwrap();
    for _ in 0..600 {
        clock.advance(Duration::from_millis(100));
        run(&mut near, None);
    }
    for _ in 0..600 {
        clock.advance(Duration::from_millis(100));
        run(&mut near, Some(&mut far));
    }
    let mut received = [0; 4];
    accepted.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"data");
}

/// client --- gateway of several guests, of which none has the address
#[test]
fn a_connection_to_a_guest_that_is_not_there_fails_soon() {
    let (transport, _guests) = wire();
    let config = EdgeConfig::new("10.0.2.1/24".parse().unwrap(), "10.0.2.15".parse().unwrap());
    let config = config.pool("10.0.2.15".parse().unwrap()..="10.0.2.20".parse().unwrap());
    let stack = Stack::builder(Edge::new(transport, config).unwrap());
    let stack = stack
        .address("10.0.2.1/24".parse().unwrap())
        .build()
        .unwrap();
    let error = TcpStream::connect(&stack, "10.0.2.99:80").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");
}
