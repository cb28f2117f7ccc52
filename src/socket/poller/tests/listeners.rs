//! Listeners: a connection that waits to be accepted makes it readable.

use super::*;
use crate::link::memory::{self, MemoryLink};
use crate::stack::Driver;
use crate::{Stack, TcpListener, TcpSocket, TcpStream};

/// Two stacks that the test drives.
struct Net {
    server: (Stack, Driver),
    client: (Stack, Driver),
    listener: TcpListener,
}

fn stack(link: MemoryLink, address: &str) -> (Stack, Driver) {
    let builder = Stack::builder(link).address(address.parse().unwrap());
    builder.build_with_driver().unwrap()
}

impl Net {
    fn new() -> Net {
        let (a, b) = memory::pair(memory::Config::default());
        let server = stack(a, "10.0.0.1/24");
        let client = stack(b, "10.0.0.2/24");
        let at: std::net::SocketAddr = "10.0.0.1:80".parse().unwrap();
        let listener = TcpListener::bind(&server.0, at).unwrap();
        listener.set_nonblocking(true);
        Net {
            server,
            client,
            listener,
        }
    }

    fn connect(&mut self) -> TcpStream {
        let at = self.listener.local_addr();
        let stream = TcpSocket::new(&self.client.0).start(at).unwrap();
        for _ in 0..10 {
            self.client.1.poll().unwrap();
            self.server.1.poll().unwrap();
        }
        assert!(stream.end().snd().is_connected());
        stream
    }
}

#[test]
fn a_listener_is_readable_while_a_connection_waits() {
    let mut net = Net::new();
    let poller = Poller::new();
    poller
        .add(&net.listener, Token(1), Interest::READABLE, Mode::Level)
        .unwrap();
    assert_eq!(now(&poller), []);
    let _streams = [net.connect(), net.connect()];
    for _ in 0..2 {
        assert_eq!(now(&poller), [(1, true, false)]);
        net.listener.accept().unwrap();
    }
    assert_eq!(now(&poller), []);
}

#[test]
fn each_connection_is_an_edge() {
    let mut net = Net::new();
    let poller = Poller::new();
    poller
        .add(&net.listener, Token(1), Interest::BOTH, Mode::Edge)
        .unwrap();
    for _ in 0..2 {
        let _stream = net.connect();
        assert_eq!(now(&poller), [(1, true, false)]);
        assert_eq!(now(&poller), []);
    }
    poller
        .modify(&net.listener, Token(2), Interest::READABLE, Mode::Edge)
        .unwrap();
    assert_eq!(now(&poller), [(2, true, false)], "two still wait");
}

#[test]
fn listeners_are_added_once_and_deleted_once() {
    let mut net = Net::new();
    let poller = Poller::new();
    let _stream = net.connect();
    let add = || poller.add(&net.listener, Token(1), Interest::READABLE, Mode::Level);
    add().unwrap();
    assert_eq!(add().unwrap_err().kind(), ErrorKind::AlreadyExists);
    poller.delete(&net.listener).unwrap();
    assert_eq!(now(&poller), []);
    assert_eq!(
        poller.delete(&net.listener).unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn a_closed_listener_leaves_silently() {
    let mut net = Net::new();
    let poller = Poller::new();
    poller
        .add(&net.listener, Token(1), Interest::READABLE, Mode::Level)
        .unwrap();
    let _stream = net.connect();
    let entry = poller.list.ready.lock().entries[0].clone();
    net.listener.close();
    assert!(entry.upgrade().is_none(), "the registration was dropped");
    assert_eq!(now(&poller), []);
    let again = poller.add(&net.listener, Token(1), Interest::READABLE, Mode::Level);
    assert_eq!(again.unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_stack_that_goes_down_makes_its_listeners_ready() {
    for mode in MODES {
        let Net {
            server: (_stack, driver),
            listener,
            ..
        } = Net::new();
        let poller = Poller::new();
        poller
            .add(&listener, Token(1), Interest::READABLE, mode)
            .unwrap();
        assert_eq!(now(&poller), []);
        drop(driver);
        let [event] = poll(&poller)[..] else { panic!() };
        assert!(event.is_readable() && event.is_read_closed());
        assert_eq!(event.error(), Some(SoError::DriverDropped));
        assert_eq!(
            listener.accept().unwrap_err().kind(),
            ErrorKind::NetworkDown
        );
    }
}

#[test]
fn listeners_and_streams_share_a_poller() {
    let mut net = Net::new();
    let poller = Poller::new();
    poller
        .add(&net.listener, Token(0), Interest::READABLE, Mode::Edge)
        .unwrap();
    let client = net.connect();
    assert_eq!(now(&poller), [(0, true, false)]);
    let (inside, _) = net.listener.accept().unwrap();
    poller
        .add(&inside, Token(1), Interest::READABLE, Mode::Edge)
        .unwrap();
    assert_eq!(now(&poller), []);
    client.send(b"request").unwrap();
    net.server.1.poll().unwrap();
    assert_eq!(now(&poller), [(1, true, false)]);
}
