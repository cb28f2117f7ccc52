//! Names, in the three modes.

use crate::scene::{Proxy, Scene, accepted, ask};
use simple_dns::rdata::{A, OPT, RData, TXT};
use simple_dns::{CLASS, Packet, PacketFlag, QTYPE, Question, RCODE, ResourceRecord, TYPE};
use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

const RESOLVER: &str = "10.99.0.53";

/// A resolver's answer: for each name the address 10.99.0.N, N being its length, or 2,000 bytes.
fn resolve(query: &[u8]) -> Vec<u8> {
    let query = Packet::parse(query).unwrap();
    let question = query.questions[0].clone();
    let length = u8::try_from(question.qname.to_string().len()).unwrap();
    let data = match question.qtype {
        QTYPE::TYPE(TYPE::TXT) => {
            let text = (0..10).map(|_| "x".repeat(199));
            let text = text.fold(TXT::new(), |all, part| {
                all.with_string(&part).unwrap().into_owned()
            });
            RData::TXT(text)
        }
        _ => RData::A(A {
            address: Ipv4Addr::new(10, 99, 0, length).into(),
        }),
    };
    let mut reply = Packet::new_reply(query.id());
    reply.answers.push(ResourceRecord::new(
        question.qname.clone(),
        CLASS::IN,
        60,
        data,
    ));
    reply.questions.push(question);
    reply.build_bytes_vec().unwrap()
}

fn read_message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn write_message(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, message].concat())
}

/// A resolver over UDP and TCP, as long as the test runs. Over TCP it answers so many queries at once, in reverse
/// order. Returns how many connections it has had.
fn resolver(scene: &Scene, at_once: usize, per_connection: usize) -> Arc<AtomicUsize> {
    let (socket, listener) = (scene.bind(RESOLVER, 53), scene.listen(RESOLVER, 53));
    let datagrams = move || {
        let mut bytes = [0; 2000];
        while let Ok((count, from)) = socket.recv_from(&mut bytes) {
            socket.send_to(&resolve(&bytes[..count]), from).ok();
        }
    };
    thread::Builder::new().spawn(datagrams).unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    let streams = move || {
        for mut stream in listener.incoming().map(Result::unwrap) {
            count.fetch_add(1, Ordering::SeqCst);
            let serve = move || {
                for _ in 0..per_connection {
                    let read = |_| read_message(&mut stream);
                    let Ok(queries) = (0..at_once).map(read).collect::<Result<Vec<_>, _>>() else {
                        return;
                    };
                    for query in queries.iter().rev() {
                        write_message(&mut stream, &resolve(query)).unwrap();
                    }
                }
            };
            thread::Builder::new().spawn(serve).unwrap();
        }
    };
    thread::Builder::new().spawn(streams).unwrap();
    connections
}

fn query(id: u16, name: &str, kind: TYPE) -> Vec<u8> {
    let mut query = Packet::new_query(id);
    let name = name.try_into().unwrap();
    query
        .questions
        .push(Question::new(name, kind.into(), CLASS::IN.into(), false));
    query.build_bytes_vec().unwrap()
}

#[test]
fn queries_as_datagrams() {
    for (options, server) in [
        (&[][..], RESOLVER),
        (&["--resolver", "10.99.0.53:53"], "192.0.2.1"),
    ] {
        let Some(scene) = Scene::new("queries_as_datagrams", Proxy::Dante, options) else {
            return;
        };
        resolver(&scene, 1, usize::MAX);
        let server = format!("@{server}");
        assert_eq!(scene.dig(&["+short", &server, "name.test"]), "10.99.0.9\n");
        assert_eq!(
            scene.dig(&["+short", "+tcp", &server, "name2.test"]),
            "10.99.0.10\n"
        );
    }
}

#[test]
fn queries_over_tcp() {
    let proxy = Proxy::Microsocks(&[]);
    let Some(scene) = Scene::new("queries_over_tcp", proxy, &["--dns", "tcp"]) else {
        return;
    };
    let connections = resolver(&scene, 1, usize::MAX);
    assert_eq!(
        scene.dig(&["+short", "@10.99.0.53", "name.test"]),
        "10.99.0.9\n"
    );
    assert_eq!(
        scene.dig(&["+short", "@10.99.0.53", "name2.test"]),
        "10.99.0.10\n"
    );
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    // Too long for a datagram of the default size, and for one without EDNS; not for a larger one.
    for size in ["+bufsize=1232", "+noedns"] {
        let output = scene.dig(&["@10.99.0.53", size, "+ignore", "long.test", "TXT"]);
        assert!(
            output.contains("flags: qr tc") && output.contains("ANSWER: 0"),
            "{output}"
        );
    }
    let output = scene.dig(&[
        "@10.99.0.53",
        "+bufsize=4096",
        "+ignore",
        "long.test",
        "TXT",
    ]);
    assert!(
        !output.contains(" tc") && output.contains("ANSWER: 1"),
        "{output}"
    );
    // dig asks again over TCP.
    let output = scene.dig(&["@10.99.0.53", "long.test", "TXT"]);
    assert!(
        output.contains("(TCP)") && output.contains("ANSWER: 1"),
        "{output}"
    );
}

#[test]
fn queries_with_the_same_number_are_kept_apart() {
    const CLIENTS: usize = 60;
    let proxy = Proxy::Microsocks(&[]);
    let options = ["--dns", "tcp", "--resolver", "10.99.0.53:53"];
    let name = "queries_with_the_same_number_are_kept_apart";
    let Some(scene) = Scene::new(name, proxy, &options) else {
        return;
    };
    let connections = resolver(&scene, CLIENTS, usize::MAX);
    let sockets: Vec<_> = (0..CLIENTS)
        .map(|_| scene.datagrams("192.0.2.1", 53))
        .collect();
    for (at, socket) in sockets.iter().enumerate() {
        socket
            .send(&query(7, &"a".repeat(at + 1), TYPE::A))
            .unwrap();
    }
    for (at, socket) in sockets.iter().enumerate() {
        let mut bytes = [0; 600];
        let count = socket.recv(&mut bytes).unwrap();
        let answer = Packet::parse(&bytes[..count]).unwrap();
        assert_eq!(
            (answer.id(), answer.questions[0].qname.to_string().len()),
            (7, at + 1)
        );
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[test]
fn queries_that_a_resolver_has_not_answered_are_sent_again() {
    let proxy = Proxy::Microsocks(&[]);
    let options = ["--dns", "tcp"];
    let name = "queries_that_a_resolver_has_not_answered_are_sent_again";
    let Some(scene) = Scene::new(name, proxy, &options) else {
        return;
    };
    // One answer, then the connection ends: at about the time of the next query.
    let connections = resolver(&scene, 1, 1);
    let socket = scene.datagrams(RESOLVER, 53);
    for id in 0..20 {
        // Neither is a query.
        socket.send(&[0; 11]).unwrap();
        socket.send(&[0xff; 20]).unwrap();
        socket.send(&query(id, "name.test", TYPE::A)).unwrap();
        let mut answer = [0; 600];
        let count = socket.recv(&mut answer).unwrap();
        assert_eq!(Packet::parse(&answer[..count]).unwrap().id(), id);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 20);
}

#[test]
fn fake_addresses() {
    let Some(scene) = Scene::new("fake_addresses", Proxy::Dante, &["--dns", "fake"]) else {
        return;
    };
    let short = |arguments: &[&str]| {
        scene
            .dig(&[&["+short"], arguments].concat())
            .trim()
            .to_owned()
    };
    let fake = short(&["@198.18.0.1", "server.test"]);
    assert!(fake.starts_with("198.18."), "{fake}");
    // Whatever the resolver, the case and the transport.
    assert_eq!(short(&["@192.0.2.53", "+tcp", "SERVER.test"]), fake);
    assert_eq!(short(&["@198.18.0.1", "-x", &fake]), "server.test.");
    assert_ne!(short(&["@198.18.0.1", "other.test"]), fake);
    for kind in ["AAAA", "HTTPS", "SVCB"] {
        let output = scene.dig(&["@198.18.0.1", "server.test", kind]);
        assert!(
            output.contains("NOERROR") && output.contains("ANSWER: 0"),
            "{output}"
        );
    }
    for (arguments, status) in [
        (&["server.test", "MX"][..], "NOTIMP"),
        (&["server.test", "TYPE65000"], "NOTIMP"),
        (&["server.test", "ANY", "+notcp"], "NOTIMP"),
        (&["server.test", "CH", "TXT"], "NOTIMP"),
        (&["-x", "198.18.77.77"], "NXDOMAIN"),
        (&["10.0.0.1"], "NXDOMAIN"),
        (&["with\\032space.test"], "NXDOMAIN"),
    ] {
        let output = scene.dig(&[&["@198.18.0.1"], arguments].concat());
        assert!(output.contains(&format!("status: {status}")), "{output}");
    }

    // dante resolves the name, by the hosts file of its namespace.
    let listener = scene.listen("10.99.0.7", 0);
    let port = listener.local_addr().unwrap().port();
    let mut stream = scene.connect(&fake, port).unwrap();
    accepted(&listener).write_all(b"by name").unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"by name");
    let socket = scene.datagrams(&fake, scene.echo("10.99.0.7"));
    assert_eq!(ask(&socket, b"by name too").1, b"by name too");

    // No name has this one.
    let error = scene.connect("198.19.5.5", 80).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let socket = scene.datagrams("198.19.5.5", 80);
    socket.send(b"question").unwrap();
    let error = socket.recv(&mut [0; 100]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn queries_that_make_no_sense() {
    let Some(scene) = Scene::new(
        "queries_that_make_no_sense",
        Proxy::Other,
        &["--dns", "fake"],
    ) else {
        return;
    };
    let socket = scene.datagrams("198.18.0.1", 53);
    let asked = |bytes: &[u8]| {
        socket.send(bytes).unwrap();
        let mut answer = [0; 600];
        let count = socket.recv(&mut answer).unwrap();
        let answer = Packet::parse(&answer[..count]).unwrap();
        assert!(answer.has_flags(PacketFlag::RESPONSE));
        (answer.id(), answer.rcode())
    };
    let good = query(7, "name.test", TYPE::A);
    // Not answered: no header, and an answer.
    socket.send(&[]).unwrap();
    socket.send(&good[..11]).unwrap();
    socket
        .send(&[&good[..2], &[0x80], &good[3..]].concat())
        .unwrap();
    // Cut off anywhere; no question, two of them, as many as there can be; a name that refers to itself.
    for cut in 12..good.len() {
        assert_eq!(asked(&good[..cut]), (7, RCODE::FormatError), "{cut}");
    }
    let counts = |count: u16| [&good[..4], &count.to_be_bytes(), &good[6..]].concat();
    for bytes in [
        counts(0),
        [&counts(2), &good[12..]].concat(),
        counts(u16::MAX),
        [&good[..12], &[0xc0, 12, 0, 1, 0, 1]].concat(),
    ] {
        assert_eq!(asked(&bytes), (7, RCODE::FormatError), "{bytes:02x?}");
    }
    // An update, which is no query (RFC 2136).
    let update = [&good[..2], &[0x28], &good[3..]].concat();
    assert_eq!(asked(&update), (7, RCODE::NotImplemented));
    let mut extended = Packet::parse(&good).unwrap();
    *extended.opt_mut() = Some(OPT {
        opt_codes: Vec::new(),
        udp_packet_size: 0,
        version: 0,
    });
    assert_eq!(
        asked(&extended.build_bytes_vec().unwrap()),
        (7, RCODE::NoError)
    );

    // Over TCP: several in one segment, and a length without a message.
    let mut stream = scene.connect("198.18.0.1", 53).unwrap();
    let framed = |id: u16| {
        let message = query(id, &format!("name{id}.test"), TYPE::A);
        [
            &u16::try_from(message.len()).unwrap().to_be_bytes()[..],
            &message,
        ]
        .concat()
    };
    stream
        .write_all(&[framed(1), framed(2), vec![0, 0], framed(3), vec![1, 0, 7]].concat())
        .unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut addresses = HashSet::new();
    for id in 1..=3 {
        let message = read_message(&mut stream).unwrap();
        let answer = Packet::parse(&message).unwrap();
        assert_eq!((answer.id(), answer.answers.len()), (id, 1));
        addresses.insert(format!("{:?}", answer.answers[0].rdata));
    }
    assert_eq!(addresses.len(), 3);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}
