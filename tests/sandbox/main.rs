//! The example `sandbox`, with a guest that is a stack of this crate: what is allowed, shown and captured. All is in a
//! namespace that each test makes, for which it needs root; otherwise skipped with a message.
//!
//! ```text
//!   guest --- Unix socket --- sandbox --- loopback with all of 10.99/16: servers of the test
//! ```
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod guest;
mod scene;

#[path = "../support/example.rs"]
mod example;
#[path = "../support/namespace.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod namespace;
#[path = "../support/program.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod program;

use guest::Neighbour;
use namespace::Namespace;
use rustix::process::Signal;
use scene::Scene;
use simple_dns::RCODE;
use sosplice::TcpListener;
use std::io::{ErrorKind, Read, Write};
use std::process::Command;

const RULES: [&str; 6] = [
    "--allow",
    "10.99.1.0/24:80",
    "--allow",
    "*.good.test:80",
    "--allow",
    "alias.test",
];

#[test]
fn networks_and_ports_are_allowed() {
    let Some(scene) = Scene::new("networks_and_ports_are_allowed", &RULES) else {
        return;
    };
    scene.echoes("10.99.1.1:80").unwrap();
    for refused in ["10.99.1.1:81", "10.99.2.1:80", "10.0.2.1:80"] {
        let error = scene.echoes(refused).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{refused}");
    }
    // "Administratively prohibited", also for another name server.
    for refused in ["10.99.1.1:81", "10.99.0.54:53"] {
        let socket = scene.datagrams(refused);
        socket.send(b"question").unwrap();
        let error = socket.recv(&mut [0; 100]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{refused}");
    }
    let said = scene.end();
    for counter in ["connections_prohibited: 2,", "flows_prohibited: 2,"] {
        assert!(said.contains(counter), "{said}");
    }
}

#[test]
fn names_are_allowed_by_the_answers_for_them() {
    let name = "names_are_allowed_by_the_answers_for_them";
    let Some(scene) = Scene::new(name, &RULES) else {
        return;
    };
    assert!(scene.echoes("10.99.7.1:80").is_err(), "before a query");
    assert_eq!(scene.ask("bad.test"), Err(RCODE::Refused));
    assert_eq!(scene.ask("www.good.test"), Ok(vec!["10.99.7.1".into()]));
    scene.echoes("10.99.7.1:80").unwrap();
    assert!(scene.echoes("10.99.7.1:81").is_err(), "another port");
    assert!(scene.echoes("10.99.7.2:80").is_err(), "another address");
    // An alias of a name that is not allowed itself, and over TCP.
    assert_eq!(scene.ask_over_tcp("bad.test"), Err(RCODE::Refused));
    let found = scene.ask_over_tcp("alias.test");
    assert_eq!(found, Ok(vec!["10.99.7.2".into()]));
    scene.echoes("10.99.7.2:81").unwrap();
    let said = scene.end();
    for counter in ["queries: 4,", "queries_refused: 2,", "answers_ignored: 0,"] {
        assert!(said.contains(counter), "{said}");
    }
}

#[test]
fn no_answer_leads_into_the_host() {
    let Some(scene) = Scene::new("no_answer_leads_into_the_host", &RULES) else {
        return;
    };
    for (name, address) in [
        ("gateway.good.test", "10.0.2.1"),
        ("metadata.good.test", "169.254.169.254"),
    ] {
        assert_eq!(scene.ask(name), Ok(vec![address.into()]));
        let error = scene.echoes(&format!("{address}:80")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{name}");
    }
    // Forged answers come first, with another number or another question.
    assert_eq!(scene.ask("forged.good.test"), Ok(vec!["10.99.7.1".into()]));
    assert!(scene.echoes("10.99.7.66:80").is_err());
    scene.echoes("10.99.7.1:80").unwrap();
    let said = scene.end();
    for counter in ["addresses_ignored: 2,", "answers_ignored: 2,"] {
        assert!(said.contains(counter), "{said}");
    }
}

#[test]
fn without_rules_all_is_allowed_and_a_missing_resolver_is_reported() {
    let name = "without_rules_all_is_allowed_and_a_missing_resolver_is_reported";
    let Some(scene) = Scene::new(name, &["--dns", "10.99.0.99"]) else {
        return;
    };
    scene.echoes("10.99.2.1:81").unwrap();
    assert_eq!(scene.ask("www.good.test"), Err(RCODE::ServerFailure));
}

#[test]
fn what_passes_is_shown_and_captured() {
    let name = "what_passes_is_shown_and_captured";
    let folder = scene::folder(name);
    let file = folder.join("guest.pcap");
    let options = ["--top", "--pcap", file.to_str().unwrap()];
    let Some(scene) = Scene::new(name, &options) else {
        return;
    };
    assert!(scene.ask("www.good.test").is_ok());
    let mut stream = scene.connect("10.99.7.1:80").unwrap();
    stream.write_all(b"12345").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    let socket = scene.datagrams("10.99.7.2:7");
    socket.send(b"unanswered").unwrap();
    // A table with both.
    scene.wait_for(|said| said.contains("unanswered") && said.contains("2 flows"));
    let said = scene.sandbox().said();
    let row = |kind: &str| {
        let mut rows = said.lines().filter(|line| line.starts_with(kind));
        let row = rows.next_back().unwrap_or_else(|| panic!("{said}"));
        row.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let tcp = row("tcp");
    assert!(tcp[1].starts_with("10.0.2.15:"), "{said}");
    assert_eq!(tcp[2..6], ["10.99.7.1:80", "ESTABLISHED", "5", "5"]);
    assert_eq!(tcp.last().unwrap(), "www.good.test");
    assert_eq!(row("udp")[2..6], ["10.99.7.2:7", "unanswered", "10", "0"]);
    // On request also the counters.
    assert!(!said.contains("queries: 1"));
    scene.sandbox().signal(Signal::USR1);
    scene.wait_for(|said| said.contains("queries: 1") && said.contains("malformed: 0"));
    scene.end();
    if Command::new("tcpdump").arg("--version").output().is_err() {
        namespace::skip(name, "needs tcpdump to read the capture");
        return;
    }
    let mut read = Command::new("tcpdump");
    let read = program::output(
        read.args(["-nn", "-tt", "--time-stamp-precision=nano", "-r"])
            .arg(&file),
    );
    for part in [
        "A? www.good.test.",
        "A 10.99.7.1",
        "10.99.7.1.80: Flags [S]",
        "10.99.7.2.7: UDP, length 10",
    ] {
        assert!(read.contains(part), "{part}: {read}");
    }
    // Nine digits after the point.
    let time = read.split_whitespace().next().unwrap();
    assert_eq!(time.split_once('.').unwrap().1.len(), 9, "{time}");
}

#[test]
fn a_capture_ends_at_its_limit_and_the_guest_does_not() {
    let name = "a_capture_ends_at_its_limit_and_the_guest_does_not";
    let folder = scene::folder(name);
    let file = folder.join("guest.pcap");
    let options = ["--pcap", file.to_str().unwrap(), "--pcap-limit", "500"];
    let Some(scene) = Scene::new(name, &options) else {
        return;
    };
    for _ in 0..3 {
        scene.echoes("10.99.1.1:80").unwrap();
    }
    scene.end();
    let len = std::fs::metadata(&file).unwrap().len();
    assert!((300..=500).contains(&len), "{len} bytes");
}

#[test]
fn connections_of_a_guest_that_is_gone_end() {
    let name = "connections_of_a_guest_that_is_gone_end";
    let Some(mut scene) = Scene::new(name, &[]) else {
        return;
    };
    let (_stream, server) = scene.connect_both("10.99.1.1:4000");
    let (_other, _server) = scene.connect_both("10.99.1.1:4001");
    scene.restart_guest();
    let end = (&server).read(&mut [0; 10]).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    scene.echoes("10.99.1.1:80").unwrap();
    let said = scene.end();
    assert!(said.contains("abandoned: 2,"), "{said}");
}

#[test]
fn several_guests_have_addresses_of_their_own() {
    let name = "several_guests_have_addresses_of_their_own";
    let forward = "127.0.0.1:8080:10.0.2.31:80";
    let options = ["--guest", "10.0.2.30-10.0.2.31", "--forward", forward];
    let Some(scene) = Scene::new(name, &options).map(Scene::without_guest) else {
        return;
    };
    let [first, second] = guest::hub(&scene.socket());
    let guests = [Neighbour::start(first, 1), Neighbour::start(second, 2)];
    let addresses = guests
        .each_ref()
        .map(|guest| scene.until(|| guest.address()));
    let mut sorted = addresses.map(|address| address.to_string());
    sorted.sort();
    assert_eq!(sorted, ["10.0.2.30", "10.0.2.31"]);
    for guest in &guests {
        let mut stream = scene::connect(&guest.stack, "10.99.1.1:80").unwrap();
        stream.write_all(b"12345").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
    }
    let mut both = guests.iter().zip(addresses);
    let second = both.find(|(_, address)| address.to_string() == "10.0.2.31");
    let stack = &second.unwrap().0.stack;
    let listener = TcpListener::bind(stack, "0.0.0.0:80").unwrap();
    scene
        .host_connects("127.0.0.1:8080")
        .write_all(b"hello")
        .unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    let said = scene.end();
    assert!(
        said.contains("connections: 2,") && said.contains("spoofed: 0,"),
        "{said}"
    );
}

/// A kernel at the other end of a TAP device.
#[test]
fn guests_behind_a_tap_device() {
    let name = "guests_behind_a_tap_device";
    let Some(inside) = scene::servers(name) else {
        return;
    };
    inside.ip("tuntap add tap0 mode tap");
    inside.ip("link set tap0 up");
    let guests = ["--guest", "10.0.2.15-10.0.2.20"];
    let options = [&["--tap", "tap0"][..], &guests, &RULES].concat();
    let _sandbox = scene::start(&inside, &options);
    let outside = Namespace::new("k");
    inside.ip(&format!("link set tap0 netns {}", outside.name()));
    outside.ip("link set tap0 up");
    outside.ip("addr add 10.0.2.16/24 dev tap0");
    outside.ip("route add default via 10.0.2.1");
    let connect = |to| outside.enter(|| std::net::TcpStream::connect(to));
    let mut stream = connect("10.99.1.1:80").unwrap();
    stream.write_all(b"12345").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    let error = connect("10.99.1.1:81").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    if Command::new("ping").arg("-V").output().is_err() {
        namespace::skip(name, "needs ping to see what is prohibited");
        return;
    }
    let mut ping = Command::new("ip");
    ping.args([
        "netns",
        "exec",
        outside.name(),
        "ping",
        "-c",
        "1",
        "-W",
        "20",
    ]);
    let shown = ping.arg("10.99.2.1").output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.contains("Packet filtered"), "{shown}");
}

/// The guest can take all of them.
#[test]
fn ports_are_forwarded_again_after_a_lack_of_descriptors() {
    let name = "ports_are_forwarded_again_after_a_lack_of_descriptors";
    let Some(scene) = Scene::new(name, &["--forward", "127.0.0.1:8080:80"]) else {
        return;
    };
    let listener = scene.listen(80);
    let pass = |mut client: std::net::TcpStream| {
        let (mut guest, _) = listener.accept().unwrap();
        guest.write_all(b"from the guest").unwrap();
        drop(guest);
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        assert_eq!(received, b"from the guest");
    };
    scene.echoes("10.99.1.1:80").unwrap();
    pass(scene.connect_from_host("127.0.0.1:8080"));
    scene.sandbox().limit_descriptors(3);
    let client = scene.connect_from_host("127.0.0.1:8080");
    for _ in 0..3 {
        assert!(scene.echoes("10.99.1.1:80").is_err(), "no descriptor");
    }
    scene.sandbox().limit_descriptors(1000);
    pass(client);
    scene.echoes("10.99.1.1:80").unwrap();
    scene.end();
}

#[test]
fn mistakes_in_options_are_explained() {
    let path = example::path("sandbox");
    for (options, part) in [
        (
            &["--qemu", "/x", "--allow", "10.0.0.1/8"][..],
            "the network is 10.0.0.0/8",
        ),
        (
            &["--qemu", "/x", "--allow", "a.test:http"],
            "\"http\" is no port",
        ),
        (
            &["--qemu", "/x", "--allow", "*a.test"],
            "neither an address nor a name",
        ),
        (&["--qemu", "/x", "--listen", "/y"], "cannot be used with"),
        (
            &["--qemu", "/x", "--guest", "10.0.2.9-10.0.2.2"],
            "the guests' addresses",
        ),
        (&[], "--qemu <PATH>"),
        (
            &["--qemu", "/x", "--pcap", "/nonexistent/x"],
            "the file for the capture",
        ),
    ] {
        let output = Command::new(&path).args(options).output().unwrap();
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && complaints.contains(part),
            "{options:?}: {complaints}"
        );
    }
}
