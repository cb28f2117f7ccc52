//! `examples/tun2host` with the kernel's TCP on both sides, in namespaces that the test makes and
//! removes. Needs root, otherwise skipped with a message.
//!
//! ```text
//!   namespace C: clients, tc --- tun2host, in namespace H, whose loopback has all of 10.99/16: servers
//! ```
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "support/example.rs"]
mod example;
#[path = "support/namespace.rs"]
mod namespace;
#[path = "support/program.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod program;

use namespace::{Namespace, available};
use program::Program;
use sosplice::clock::{Clock, SystemClock};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

struct Scene {
    _program: Program,
    clients: Namespace,
    host: Namespace,
}

impl Scene {
    fn new(test: &str) -> Option<Scene> {
        if !available(test) {
            return None;
        }
        let example = example::path("tun2host");
        let clients = Namespace::new("c");
        clients.tun("tc", &["10.98.0.1/24"], 1500);
        clients.ip("route add 10.96.0.0/14 dev tc");
        let host = Namespace::new("h");
        host.ip("route add local 10.99.0.0/16 dev lo");
        host.ip("route add unreachable 10.96.1.0/24");
        // No program reads packets from it.
        host.tun("hole", &["10.97.0.1/16"], 1500);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", host.name()]).arg(example);
        command.arg(format!("tc@{}", clients.name()));
        command.args(["--address", "10.98.0.2/24", "--connect-timeout", "2"]);
        let program = Program::start(command, "every connection");
        clients.wait_until_up("tc");
        Some(Scene {
            _program: program,
            clients,
            host,
        })
    }

    fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let stream = self
            .clients
            .enter(|| TcpStream::connect_timeout(&to, LIMIT))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(stream)
    }
}

/// Sends the original destination, then echoes.
fn echo(stream: TcpStream) {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut stream = stream;
    let here = stream.local_addr().unwrap();
    stream.write_all(format!("{here:<24}").as_bytes()).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    stream.write_all(&all).unwrap();
}

fn destination(number: u16, port: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    (Ipv4Addr::new(10, 99, high, low), port).into()
}

#[test]
fn a_thousand_connections_to_a_thousand_destinations() {
    const COUNT: u16 = 1000;
    let Some(scene) = Scene::new("a_thousand_connections_to_a_thousand_destinations") else {
        return;
    };
    let listener = scene.host.enter(|| TcpListener::bind("0.0.0.0:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    thread::scope(|scope| {
        scope.spawn(|| {
            for stream in listener.incoming().take(COUNT.into()) {
                thread::Builder::new()
                    .spawn(move || echo(stream.unwrap()))
                    .unwrap();
            }
        });
        // All of them are open at once.
        let open = |number| (number, scene.connect(destination(number, port)).unwrap());
        let streams: Vec<_> = (1..=COUNT).map(open).collect();
        for (number, mut stream) in streams {
            let bytes: Vec<u8> = (0..usize::from(number) * 7)
                .map(|at| u8::try_from((at + usize::from(number)) % 251).unwrap())
                .collect();
            stream.write_all(&bytes).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            let reached = String::from_utf8_lossy(&answer[..24]).trim().to_owned();
            assert_eq!(reached, destination(number, port).to_string());
            assert!(answer[24..] == bytes, "connection {number}");
        }
    });
}

#[test]
fn a_refused_destination_refuses_the_client() {
    let Some(scene) = Scene::new("a_refused_destination_refuses_the_client") else {
        return;
    };
    // In answer to the SYN: the client's connect() fails, not a read afterwards.
    let error = scene.connect(destination(1, 9)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_destination_out_of_reach_refuses_the_client() {
    let Some(scene) = Scene::new("a_destination_out_of_reach_refuses_the_client") else {
        return;
    };
    // Well before the timeout of two seconds, even if the first SYN is lost.
    let at_once = Duration::ZERO..Duration::from_millis(1900);
    let in_time = Duration::from_secs(2)..Duration::from_secs(10);
    for (to, within) in [("10.96.1.1:80", at_once), ("10.97.0.9:80", in_time)] {
        let start = SystemClock.now();
        let error = scene.connect(to.parse().unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
        let time = SystemClock.now() - start;
        assert!(within.contains(&time), "{to}: {time:?}");
    }
}

#[test]
fn bulk_both_ways() {
    let Some(scene) = Scene::new("bulk_both_ways") else {
        return;
    };
    let bytes: Vec<u8> = (0..20_000_000u32)
        .map(|at| u8::try_from(at.wrapping_mul(2_654_435_761) >> 24).unwrap())
        .collect();
    let listener = scene.host.enter(|| TcpListener::bind("0.0.0.0:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    thread::scope(|scope| {
        scope.spawn(|| echo(listener.accept().unwrap().0));
        let mut stream = scene.connect(destination(77, port)).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let sent = &bytes;
        scope.spawn(move || {
            writer.write_all(sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer[24..] == bytes);
    });
}
