//! TCP connections of two stacks over an in-memory link.
#![allow(clippy::unwrap_used, reason = "tests")]

use sosplice::link::memory;
use sosplice::{Intercept, Stack, TcpListener, TcpSocket, TcpStream};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;

fn stacks() -> (Stack, Stack) {
    let (a, b) = memory::pair(memory::Config::default());
    let server = Stack::builder(a).address("10.0.0.1/24".parse().unwrap());
    let client = Stack::builder(b).address("10.0.0.2/24".parse().unwrap());
    let server = server
        .address("fd00::1/64".parse().unwrap())
        .build()
        .unwrap();
    let client = client
        .address("fd00::2/64".parse().unwrap())
        .build()
        .unwrap();
    (server, client)
}

fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len)
        .map(|i| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0])
        .collect()
}

fn echo(address: &str, len: usize) {
    let (server, client) = stacks();
    let listener = TcpListener::bind(&server, address).unwrap();
    let serving = thread::Builder::new()
        .spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buf = vec![0; 10_000];
            loop {
                let count = stream.read(&mut buf).unwrap();
                if count == 0 {
                    stream.shutdown(Shutdown::Write).unwrap();
                    return;
                }
                stream.write_all(&buf[..count]).unwrap();
            }
        })
        .unwrap();
    let stream = TcpStream::connect(&client, address).unwrap();
    let mut writer = stream.clone();
    let writing = thread::Builder::new()
        .spawn(move || {
            let mut sent = 0;
            while sent < len {
                let count = (len - sent).min(7001);
                writer.write_all(&pattern(sent, count)).unwrap();
                sent += count;
            }
            writer.shutdown(Shutdown::Write).unwrap();
        })
        .unwrap();
    let mut all = Vec::new();
    (&stream).read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), len);
    assert!(all == pattern(0, len), "bytes differ");
    writing.join().unwrap();
    serving.join().unwrap();
    assert_eq!((server.stats().broken, client.stats().broken), (0, 0));
}

#[test]
fn echo_over_ipv4() {
    echo("10.0.0.1:80", 10_000_000);
}

#[test]
fn echo_over_ipv6() {
    echo("[fd00::1]:80", 1_000_000);
}

#[test]
fn nobody_listens() {
    let (_server, client) = stacks();
    let error = TcpStream::connect(&client, "10.0.0.1:80").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn an_intercepting_listener_accepts_any_destination() {
    let (server, client) = stacks();
    let own = TcpListener::bind(&server, "10.0.0.1:80").unwrap();
    let any = TcpListener::intercept(&server, Intercept::all(), 8).unwrap();
    for destination in ["203.0.113.5:443", "10.0.0.1:81", "[2001:db8::7]:25"] {
        let destination = destination.parse().unwrap();
        let mut stream = TcpStream::connect(&client, destination).unwrap();
        let (mut accepted, peer) = any.accept().unwrap();
        assert_eq!(
            accepted.local_addr(),
            destination,
            "the original destination"
        );
        assert_eq!(peer, stream.local_addr());
        stream.write_all(b"hello").unwrap();
        let mut got = [0; 5];
        accepted.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
    }
    let stream = TcpStream::connect(&client, "10.0.0.1:80").unwrap();
    let (accepted, _) = own.accept().unwrap();
    assert_eq!(
        accepted.local_addr(),
        stream.peer_addr(),
        "other listeners come first"
    );
    let taken = TcpListener::intercept(&server, Intercept::all(), 8).unwrap_err();
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
}

#[test]
fn the_most_precise_rule_gets_the_connection() {
    let (server, client) = stacks();
    let listen = |rule: Intercept| TcpListener::intercept(&server, rule, 8);
    let net = |text: &str| Intercept::all().addresses(text.parse().unwrap());
    // The least precise one was there first.
    let rest = listen(Intercept::all()).unwrap();
    let port = listen(Intercept::all().ports(443..=443)).unwrap();
    let wide = listen(net("203.0.0.0/8")).unwrap();
    let ports = listen(net("203.0.113.0/24").ports(80..=90)).unwrap();
    let expected = [
        (&ports, "203.0.113.5:85"),
        (&wide, "203.0.113.5:443"),
        (&wide, "203.0.114.5:85"),
        (&port, "198.51.100.1:443"),
        (&rest, "198.51.100.1:80"),
        (&rest, "[2001:db8::7]:80"),
    ];
    for (listener, destination) in expected {
        let destination = destination.parse().unwrap();
        let _stream = TcpStream::connect(&client, destination).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(accepted.local_addr(), destination);
    }
    let kind = |rule| listen(rule).unwrap_err().kind();
    let overlaps = net("203.0.113.9/24").ports(90..=100);
    assert_eq!(kind(overlaps), std::io::ErrorKind::AddrInUse);
    let nothing = std::ops::RangeInclusive::new(81, 80);
    let nothing = Intercept::all().ports(nothing);
    assert_eq!(kind(nothing), std::io::ErrorKind::InvalidInput);
}

#[test]
fn an_address_that_is_not_ours_is_an_error() {
    let (server, client) = stacks();
    let kind = |address: &str| {
        let error = TcpListener::bind(&server, address).map(drop);
        error.map_err(|error| error.kind())
    };
    assert_eq!(
        kind("10.0.0.9:80"),
        Err(std::io::ErrorKind::AddrNotAvailable)
    );
    let held = TcpListener::bind(&server, "10.0.0.1:80").unwrap();
    assert_eq!(kind("10.0.0.1:80"), Err(std::io::ErrorKind::AddrInUse));
    assert_eq!(kind("0.0.0.0:80"), Err(std::io::ErrorKind::AddrInUse));
    drop(held);
    assert_eq!(kind("10.0.0.1:80"), Ok(()));
    let nowhere = TcpStream::connect(&client, "0.0.0.0:80").unwrap_err();
    assert_eq!(nowhere.kind(), std::io::ErrorKind::InvalidInput);
}

/// `TcpSocket::data`: before the splice's bytes, once for each attempt, and with the end of the stream.
#[test]
fn first_bytes_of_a_connection() {
    let (server, client) = stacks();
    let listener = TcpListener::bind(&server, "10.0.0.1:80").unwrap();
    let at = listener.local_addr();
    let socket = TcpSocket::new(&client).data(b"first ");
    for _ in 0..2 {
        let mut stream = socket.start(at).unwrap();
        stream.wait_connected(None).unwrap();
        stream.write_all(b"second").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = String::new();
        listener
            .accept()
            .unwrap()
            .0
            .read_to_string(&mut all)
            .unwrap();
        assert_eq!(all, "first second");
    }
    let (near, far) = sosplice::local::pair();
    near.send(b"spliced").unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    let stream = socket.start(at).unwrap();
    let options = sosplice::splice::Options::default().forward_eof(true);
    let splice = far.splice_to(&stream, options).unwrap();
    assert_eq!(splice.wait().bytes, 7);
    let mut all = String::new();
    listener
        .accept()
        .unwrap()
        .0
        .read_to_string(&mut all)
        .unwrap();
    assert_eq!(all, "first spliced");

    let large = vec![0; (1 << 20) + 1];
    let refused = TcpSocket::new(&client).data(&large).start(at).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
    assert!(refused.to_string().contains("send buffer"), "{refused}");
    let nobody = TcpSocket::new(&client)
        .data(b"lost")
        .connect("10.0.0.1:81".parse().unwrap());
    assert_eq!(
        nobody.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );
    assert_eq!(client.stats().active_opens, 4, "none for the large one");
}

#[test]
fn first_bytes_of_a_connection_that_is_shut_down_at_once() {
    let (server, client) = stacks();
    let listener = TcpListener::bind(&server, "10.0.0.1:80").unwrap();
    let at = listener.local_addr();
    for len in [1, 100, 100_000, 1 << 18] {
        let bytes = pattern(0, len);
        let stream = TcpSocket::new(&client).data(&bytes).start(at).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        let mut accepted = listener.accept().unwrap().0;
        accepted.read_to_end(&mut all).unwrap();
        assert!(all == bytes);
        drop(accepted);
        assert_eq!({ stream.clone() }.read(&mut [0]).unwrap(), 0);
        assert_eq!(stream.take_error(), None);
    }
    // Given up while it connects.
    for _ in 0..100 {
        let socket = TcpSocket::new(&client).data(b"x");
        drop(socket.start(at).unwrap());
        socket.start(at).unwrap().abort();
    }
}
