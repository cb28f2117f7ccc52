//! A stack over a link that has events.

use crate::clock::{Clock, SystemClock};
use crate::error::SoError;
use crate::link::{
    Capabilities, Frame, Interest, Link, LinkEvent, Packet, ReceiveError, TransmitError,
    Undelivered,
};
use crate::lock::{LEAF, Mutex};
use crate::stack::{BuildError, Driver};
use crate::{Stack, TcpListener, UdpSocket};
use ipnet::IpNet;
use std::io::{self, ErrorKind};
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// A link with events, a timer, and the packets that were sent.
#[derive(Debug, Default)]
struct Eventful {
    events: Mutex<Vec<LinkEvent>, LEAF>,
    sent: Mutex<Vec<Vec<u8>>, LEAF>,
    deadline: Mutex<Option<Instant>, LEAF>,
    unmanaged: bool,
}

impl Link for Eventful {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(1500)
    }
    fn receive(&self, _frames: &mut Vec<Frame>, _max: usize) -> Result<usize, ReceiveError> {
        Ok(0)
    }
    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        self.sent.lock().push(packet.to_vec());
        Ok(())
    }
    fn wait(&self, _interest: Interest, _deadline: Option<Instant>) -> io::Result<()> {
        Ok(())
    }
    fn wake(&self) {}
    fn deadline(&self) -> Option<Instant> {
        *self.deadline.lock()
    }
    fn take_events(&self, events: &mut Vec<LinkEvent>) {
        events.append(&mut self.events.lock());
    }
    fn manages_addresses(&self) -> bool {
        !self.unmanaged
    }
}

fn stack(events: impl IntoIterator<Item = LinkEvent>) -> (Arc<Eventful>, Stack, Driver) {
    let link = Arc::new(Eventful::default());
    link.events.lock().extend(events);
    let (stack, driver) = Stack::builder(link.clone()).build_with_driver().unwrap();
    (link, stack, driver)
}

fn added(net: &str) -> LinkEvent {
    LinkEvent::AddressAdded(net.parse().unwrap())
}

#[test]
fn the_links_addresses_are_the_stacks() {
    let (link, stack, mut driver) = stack([added("10.0.0.1/24")]);
    assert_eq!(stack.addresses(), ["10.0.0.1/24".parse().unwrap()]);
    link.events.lock().push(added("fd00::1/64"));
    // That one cannot be an address of a stack, and the other is one already.
    link.events
        .lock()
        .extend([added("127.0.0.1/8"), added("10.0.0.1/24")]);
    driver.poll().unwrap();
    assert_eq!(stack.addresses().len(), 2);
    let listener = TcpListener::bind(&stack, "10.0.0.1:80").unwrap();
    let socket = UdpSocket::bind(&stack, "10.0.0.1:9").unwrap();
    let lost = || LinkEvent::AddressRemoved("10.0.0.1".parse().unwrap());
    link.events.lock().extend([lost(), lost()]);
    driver.poll().unwrap();
    assert_eq!(stack.addresses(), ["fd00::1/64".parse().unwrap()]);
    let error = socket.recv_from(&mut [0; 9]).unwrap_err();
    let removed = io::Error::from(SoError::AddressRemoved);
    assert_eq!(error.kind(), removed.kind());
    drop(listener);
}

/// RFC 6724 5, rule 3.
#[test]
fn a_deprecated_address_is_the_source_without_another_one_only() {
    let nets = ["2001:db8:1::1/64", "2001:db8:2::1/64"];
    let (link, stack, mut driver) = stack(nets.map(added));
    let mut source = |change: Option<(&str, bool)>| {
        link.events
            .lock()
            .extend(change.map(|(address, deprecated)| {
                let address = address.parse().unwrap();
                LinkEvent::AddressDeprecated {
                    address,
                    deprecated,
                }
            }));
        driver.poll().unwrap();
        let socket = UdpSocket::bind(&stack, "[::]:0").unwrap();
        socket.connect("[2001:db8:1::9]:9").unwrap();
        socket.send(b"hello").unwrap();
        let sent = link.sent.lock().pop().unwrap();
        Ipv6Addr::from_octets(sent[8..24].try_into().unwrap()).to_string()
    };
    assert_eq!(source(None), "2001:db8:1::1");
    assert_eq!(source(Some(("2001:db8:1::1", true))), "2001:db8:2::1");
    assert_eq!(source(Some(("2001:db8:2::1", true))), "2001:db8:1::1");
    assert_eq!(source(Some(("2001:db8:2::1", false))), "2001:db8:2::1");
}

#[test]
fn other_links_need_an_address() {
    let link = Eventful {
        unmanaged: true,
        ..Eventful::default()
    };
    let error = Stack::builder(link).build_with_driver().unwrap_err();
    assert!(matches!(error, BuildError::NoAddress), "{error}");
}

#[test]
fn the_driver_calls_at_the_links_deadline() {
    let (link, _stack, mut driver) = stack([added("10.0.0.1/24")]);
    driver.poll().unwrap();
    assert_eq!(driver.poll_at(), None);
    let at = SystemClock.now() + Duration::from_secs(1000);
    *link.deadline.lock() = Some(at);
    assert_eq!(driver.poll_at(), Some(at));
}

#[test]
fn a_packet_that_was_not_delivered_is_an_error_of_its_socket() {
    let rows = [
        (
            "192.0.2.1:9",
            Undelivered::HostUnreachable,
            ErrorKind::HostUnreachable,
        ),
        (
            "192.0.2.1:9",
            Undelivered::NoRoute,
            ErrorKind::HostUnreachable,
        ),
        (
            "[2001:db8::1]:9",
            Undelivered::HostUnreachable,
            ErrorKind::HostUnreachable,
        ),
        (
            "[2001:db8::1]:9",
            Undelivered::NoRoute,
            ErrorKind::HostUnreachable,
        ),
    ];
    for (to, why, kind) in rows {
        let (link, stack, mut driver) = stack([added("10.0.0.1/24"), added("2001:db8:1::1/64")]);
        let any = if to.starts_with('[') {
            "[::]:0"
        } else {
            "0.0.0.0:0"
        };
        let socket = UdpSocket::bind(&stack, any).unwrap();
        socket.connect(to).unwrap();
        socket.send(b"hello").unwrap();
        let packet = Frame::new(&link.sent.lock().pop().unwrap());
        link.events
            .lock()
            .push(LinkEvent::Undelivered { packet, why });
        driver.poll().unwrap();
        let error = socket.send(b"again").unwrap_err();
        assert_eq!(error.kind(), kind, "{to} {why:?}");
        assert!(socket.send(b"once").is_ok());
    }
}

/// Packets that no ICMP error is about, and ones that are no packets.
#[test]
fn other_packets_that_were_not_delivered_have_no_effect() {
    let (link, _stack, mut driver) = stack([added("10.0.0.1/24")]);
    let mut multicast = [0; 28];
    multicast[0] = 0x45;
    multicast[12..20].copy_from_slice(&[10, 0, 0, 1, 224, 0, 0, 1]);
    for packet in [&b""[..], b"E", &[0x60; 39], &[0x15; 60], &multicast] {
        for why in [Undelivered::NoRoute, Undelivered::TooBig(1400)] {
            let packet = Frame::new(packet);
            link.events
                .lock()
                .push(LinkEvent::Undelivered { packet, why });
        }
    }
    assert!(!driver.poll().unwrap());
}

/// Guards the order in `go_down`, and the notification in `add_address`.
#[test]
fn a_thread_waits_for_an_address_of_the_link() {
    let (link, stack, mut driver) = stack([]);
    let v4 = |net: &IpNet| net.addr().is_ipv4();
    let error = stack.wait_for_address(v4, Duration::ZERO).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    thread::scope(|scope| {
        let found = scope.spawn(|| stack.wait_for_address(v4, None));
        for event in [added("fd00::1/64"), added("10.0.0.1/24")] {
            link.events.lock().push(event);
            driver.poll().unwrap();
        }
        let found = found.join().unwrap().unwrap();
        assert_eq!(found, "10.0.0.1/24".parse().unwrap());
        stack.remove_address(found.addr()).unwrap();
        let ended = scope.spawn(|| stack.wait_for_address(v4, None));
        drop(driver);
        let error = ended.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NetworkDown);
    });
}
