//! Through proxies that do unusual things, byte by byte.

use crate::scene::{LIMIT, Proxy, Scene, accepted, ask};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

/// The next client of a proxy: its connection, and its request behind the first three bytes.
fn request(listener: &TcpListener) -> (TcpStream, Vec<u8>) {
    let mut stream = accepted(listener);
    let mut greeting = [0; 3];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting, [5, 1, 0]);
    stream.write_all(&[5, 0]).unwrap();
    let mut head = [0; 5];
    stream.read_exact(&mut head).unwrap();
    let length = match head[3] {
        1 => 4 + 2 - 1,
        3 => usize::from(head[4]) + 2,
        _ => 16 + 2 - 1,
    };
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).unwrap();
    (stream, [&head[1..2], &head[3..], &rest].concat())
}

/// An answer with a code, and the unspecified address.
fn reply(code: u8, port: u16) -> Vec<u8> {
    [&[5, code, 0, 1, 0, 0, 0, 0][..], &port.to_be_bytes()].concat()
}

/// A datagram of the proxy, from 10.99.0.7 and this port.
fn framed(piece: u8, port: u16, payload: &[u8]) -> Vec<u8> {
    [
        &[0, 0, piece, 1, 10, 99, 0, 7][..],
        &port.to_be_bytes(),
        payload,
    ]
    .concat()
}

#[test]
fn data_right_behind_the_answer_is_not_lost() {
    let name = "data_right_behind_the_answer_is_not_lost";
    let Some(scene) = Scene::new(name, Proxy::Other, &[]) else {
        return;
    };
    let listener = scene.listen("127.0.0.1", 1080);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, request) = request(&listener);
            assert_eq!(request, [1, 1, 10, 99, 0, 7, 0, 25]);
            stream
                .write_all(&[&reply(0, 1)[..], b"220 ready\r\n"].concat())
                .unwrap();
        });
        let mut stream = scene.connect("10.99.0.7", 25).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"220 ready\r\n");
    });
}

#[test]
fn answers_that_make_no_sense_refuse_the_client() {
    let name = "answers_that_make_no_sense_refuse_the_client";
    let Some(scene) = Scene::new(name, Proxy::Other, &[]) else {
        return;
    };
    let listener = scene.listen("127.0.0.1", 1080);
    // A refusal; another version; an address of no type; the end.
    for answer in [&reply(1, 1)[..], &[4, 0, 0, 1], &[5, 0, 0, 9], &[]] {
        thread::scope(|scope| {
            scope.spawn(|| request(&listener).0.write_all(answer).unwrap());
            let error = scene.connect("10.99.0.7", 25).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{answer:02x?}");
        });
    }
}

/// Accepts an association: its connection, and the proxy's relay for it.
fn associate(scene: &Scene, listener: &TcpListener) -> (TcpStream, UdpSocket) {
    let (mut stream, request) = request(listener);
    assert_eq!(request, [3, 1, 0, 0, 0, 0, 0, 0]);
    let relay = scene.bind("127.0.0.1", 0);
    relay.set_read_timeout(Some(LIMIT)).unwrap();
    // Its address is that of the proxy.
    stream
        .write_all(&reply(0, relay.local_addr().unwrap().port()))
        .unwrap();
    (stream, relay)
}

fn received(relay: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut bytes = vec![0; 2000];
    let (count, from) = relay.recv_from(&mut bytes).unwrap();
    bytes.truncate(count);
    (bytes, from)
}

#[test]
fn only_whole_datagrams_reach_the_client() {
    let name = "only_whole_datagrams_reach_the_client";
    let Some(scene) = Scene::new(name, Proxy::Other, &[]) else {
        return;
    };
    let listener = scene.listen("127.0.0.1", 1080);
    let socket = scene.datagrams("10.99.0.7", 7);
    socket.send(b"question").unwrap();
    let (_stream, relay) = associate(&scene, &listener);
    let (question, from) = received(&relay);
    assert_eq!(question, framed(0, 7, b"question"));
    let whole = framed(0, 7, b"whole");
    for cut in 0..10 {
        relay.send_to(&whole[..cut], from).unwrap();
    }
    let odd = [
        framed(1, 7, b"first piece"),
        framed(0x82, 7, b"last piece"),
        [&[0, 0, 0, 9][..], &whole[4..]].concat(),
        [&[1, 0, 0, 1][..], &whole[4..]].concat(),
        [&[0, 0, 0, 3, 200][..], b"short"].concat(),
        [&[0, 0, 0, 3, 1][..], b"a", &[0, 7], b"of a name"].concat(),
        // Of the other family.
        [&[0, 0, 0, 4][..], &[0xfd; 16], &[0, 7], b"of IPv6"].concat(),
    ];
    for bytes in &odd {
        relay.send_to(bytes, from).unwrap();
    }
    relay.send_to(&whole, from).unwrap();
    let mut answer = [0; 100];
    let count = socket.recv(&mut answer).unwrap();
    assert_eq!(&answer[..count], b"whole");
}

#[test]
fn when_the_proxy_ends_an_association_the_next_datagram_begins_another() {
    let name = "when_the_proxy_ends_an_association_the_next_datagram_begins_another";
    let Some(scene) = Scene::new(name, Proxy::Other, &[]) else {
        return;
    };
    let listener = scene.listen("127.0.0.1", 1080);
    let socket = scene.datagrams("10.99.0.7", 7);
    for round in 0..3 {
        thread::scope(|scope| {
            let proxy = scope.spawn(|| {
                let (stream, relay) = associate(&scene, &listener);
                let (question, from) = received(&relay);
                let answer = framed(0, 7, &[&[b' '; 48][..], &question[10..]].concat());
                relay.send_to(&answer, from).unwrap();
                stream
            });
            let payload = [round; 10];
            assert_eq!(ask(&socket, &payload).1, payload);
            // Ends the association, and waits until the program has closed its side.
            let mut stream = proxy.join().unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        });
    }
}

#[test]
fn what_is_sent_to_a_fake_address_goes_to_the_proxy_by_name() {
    let name = "what_is_sent_to_a_fake_address_goes_to_the_proxy_by_name";
    let Some(scene) = Scene::new(name, Proxy::Other, &["--dns", "fake"]) else {
        return;
    };
    let listener = scene.listen("127.0.0.1", 1080);
    let fake = scene.dig(&["+short", "@10.99.0.53", "WWW.Example.test"]);
    let fake = fake.trim();
    let target = [&[3, 16][..], b"www.example.test", &[0, 80]].concat();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, request) = request(&listener);
            assert_eq!(request, [&[1][..], &target].concat());
            stream.write_all(&reply(0, 1)).unwrap();
        });
        scene.connect(fake, 80).unwrap();
    });
    let socket = scene.datagrams(fake, 80);
    socket.send(b"question").unwrap();
    let (_stream, relay) = associate(&scene, &listener);
    let (question, from) = received(&relay);
    assert_eq!(question, [&[0, 0, 0][..], &target, b"question"].concat());
    // The answer comes from the address that the proxy has found.
    relay.send_to(&framed(0, 80, b"answer"), from).unwrap();
    let mut answer = [0; 100];
    assert_eq!(socket.recv(&mut answer).unwrap(), 6);
}

#[test]
fn two_thousand_flows_at_once() {
    const FLOWS: usize = 2000;
    let name = "two_thousand_flows_at_once";
    let Some(scene) = Scene::new(name, Proxy::Other, &[]) else {
        return;
    };
    let mut descriptors = getrlimit(Resource::Nofile);
    descriptors.current = descriptors.maximum;
    setrlimit(Resource::Nofile, descriptors).unwrap();
    let listener = scene.listen("127.0.0.1", 1080);
    // One relay for all: it sends each datagram back, as if the destination had.
    let relay = scene.bind("127.0.0.1", 0);
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&relay, 32 << 20).unwrap();
    let port = relay.local_addr().unwrap().port();
    let relaying = move || {
        let mut bytes = [0; 2000];
        while let Ok((count, from)) = relay.recv_from(&mut bytes) {
            relay.send_to(&bytes[..count], from).unwrap();
        }
    };
    thread::Builder::new().spawn(relaying).unwrap();
    thread::scope(|scope| {
        let associations = scope.spawn(|| {
            let accept = |_| {
                let (mut stream, _) = request(&listener);
                stream.write_all(&reply(0, port)).unwrap();
                stream
            };
            (0..FLOWS).map(accept).collect::<Vec<_>>()
        });
        let payload =
            |flow: usize, round: usize| format!("{flow} {round} {}", "x".repeat(flow % 900));
        let sockets: Vec<_> = (0..FLOWS)
            .map(|_| scene.datagrams("10.99.0.7", 7))
            .collect();
        for (flow, socket) in sockets.iter().enumerate() {
            socket.send(payload(flow, 0).as_bytes()).unwrap();
        }
        let _associations = associations.join().unwrap();
        for round in 0..3 {
            for (flow, socket) in sockets.iter().enumerate() {
                let mut bytes = [0; 1000];
                let count = socket.recv(&mut bytes).unwrap();
                assert_eq!(bytes[..count], *payload(flow, round).as_bytes());
                socket.send(payload(flow, round + 1).as_bytes()).unwrap();
            }
        }
    });
}
