//! `examples/tun2host` with the kernel's TCP and UDP, `ping`, `dig` and `iperf3` on both sides, in namespaces that
//! the test makes and removes. Needs root, otherwise skipped with a message.
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
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use sosplice::clock::{Clock, SystemClock};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

struct Scene {
    program: Program,
    clients: Namespace,
    host: Namespace,
}

impl Scene {
    fn new(test: &str) -> Option<Scene> {
        Scene::with_timeout(test, "2")
    }

    /// So many seconds for a destination.
    fn with_timeout(test: &str, timeout: &str) -> Option<Scene> {
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
        command.args(["--address", "10.98.0.2/24", "--connect-timeout", timeout]);
        let program = Program::start(command, "every connection");
        clients.wait_until_up("tc");
        Some(Scene {
            program,
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

/// Connections in progress have no threads, and those that end meanwhile are answered as ever.
#[test]
fn a_thousand_dials_at_once_in_a_few_threads() {
    const COUNT: usize = 1000;
    let Some(scene) = Scene::with_timeout("a_thousand_dials_at_once_in_a_few_threads", "20") else {
        return;
    };
    let program = &scene.program;
    let (before, memory) = (program.threads(), program.resident());
    // No answer comes from there.
    let silent: Vec<_> = (0..COUNT)
        .map(|number| {
            let [.., high, low] = number.to_be_bytes();
            let to = SocketAddr::from(([10, 97, 1 + high, low], 80));
            scene.clients.enter(|| connecting(to))
        })
        .collect();
    let start = SystemClock.now();
    while program.sockets() < COUNT {
        assert!(start.elapsed() < LIMIT, "not all are dialled");
        thread::yield_now();
    }
    let (threads, more) = (program.threads(), program.resident().saturating_sub(memory));
    println!("{COUNT} dials: {before} threads before, {threads} now, and {more} bytes more");
    assert!(threads <= before + 2, "{threads} threads");

    let error = scene.connect(destination(1, 9)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let listener = scene.host.enter(|| TcpListener::bind("0.0.0.0:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    thread::scope(|scope| {
        scope.spawn(|| echo(listener.accept().unwrap().0));
        let mut stream = scene.connect(destination(2, port)).unwrap();
        stream.write_all(b"hello").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(&answer[24..], b"hello");
    });
    // And at the end of their time the others are refused.
    for socket in silent {
        let mut events = [PollFd::new(&socket, PollFlags::OUT)];
        let limit = Timespec::try_from(LIMIT).unwrap();
        assert_eq!(poll(&mut events, Some(&limit)).unwrap(), 1);
        let error = sockopt::socket_error(&socket).unwrap().unwrap_err();
        assert_eq!(error, Errno::CONNREFUSED);
    }
}

/// A socket that begins to connect.
fn connecting(to: SocketAddr) -> OwnedFd {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let family = AddressFamily::INET;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None).unwrap();
    let error = rustix::net::connect(&socket, &to).unwrap_err();
    assert_eq!(error, Errno::INPROGRESS);
    socket
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

impl Scene {
    fn client_socket(&self) -> UdpSocket {
        let socket = self.clients.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
    }

    /// Bound to one of the host's many addresses.
    fn server_socket(&self, at: SocketAddr) -> UdpSocket {
        let socket = self.host.enter(|| UdpSocket::bind(at).unwrap());
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
    }

    /// What a program in a namespace prints, if it ends with success.
    fn output(&self, inside: &Namespace, command: &str) -> Result<String, String> {
        let output = Command::new("ip")
            .args(["netns", "exec", inside.name()])
            .args(command.split_whitespace())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.success() {
            true => Ok(text),
            false => Err(text + &String::from_utf8_lossy(&output.stderr)),
        }
    }
}

/// All flows are open at once, and each has its own destination; among the datagrams are empty and large ones.
#[test]
fn two_thousand_flows_of_datagrams() {
    const COUNT: u16 = 2000;
    let Some(scene) = Scene::new("two_thousand_flows_of_datagrams") else {
        return;
    };
    let first = scene.server_socket(destination(1, 0));
    let port = first.local_addr().unwrap().port();
    let rest = (2..=COUNT).map(|number| scene.server_socket(destination(number, port)));
    let servers: Vec<_> = std::iter::once(first).chain(rest).collect();
    let client = scene.client_socket();
    let payload = |number: u16| vec![number.to_be_bytes()[1]; usize::from(number % 1400)];
    let mut buffer = [0; 2000];
    for round in 0..2 {
        for number in 1..=COUNT {
            let sent = payload(number + round);
            client.send_to(&sent, destination(number, port)).unwrap();
            let server = &servers[usize::from(number) - 1];
            let (len, from) = server.recv_from(&mut buffer).unwrap();
            assert!(buffer[..len] == sent, "flow {number}");
            server.send_to(&buffer[..len], from).unwrap();
            let (len, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!(from, destination(number, port));
            assert!(buffer[..len] == sent, "flow {number}");
        }
    }
}

/// The kernel's client cuts them, and so does the relay's way back.
#[test]
fn datagrams_of_sixty_thousand_bytes() {
    let Some(scene) = Scene::new("datagrams_of_sixty_thousand_bytes") else {
        return;
    };
    let server = scene.server_socket(destination(5, 0));
    let client = scene.client_socket();
    client.connect(server.local_addr().unwrap()).unwrap();
    let bytes: Vec<u8> = (0..=250).cycle().take(65_507).collect();
    let mut buffer = vec![0; 70_000];
    for len in [1472, 1473, 9000, 60_000, 65_507] {
        client.send(&bytes[..len]).unwrap();
        let (count, from) = server.recv_from(&mut buffer).unwrap();
        assert!(buffer[..count] == bytes[..len], "{len} there");
        server.send_to(&bytes[..len], from).unwrap();
        let count = client.recv(&mut buffer).unwrap();
        assert!(buffer[..count] == bytes[..len], "{len} back");
    }
}

/// The relay's socket learns it from the kernel, and the client from an ICMP error.
#[test]
fn a_closed_port_refuses_datagrams() {
    let Some(scene) = Scene::new("a_closed_port_refuses_datagrams") else {
        return;
    };
    let client = scene.client_socket();
    client.connect(destination(6, 9)).unwrap();
    client.send(b"anybody there?").unwrap();
    let error = client.recv(&mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn pings_reach_their_destination_or_are_refused() {
    let Some(scene) = Scene::new("pings_reach_their_destination_or_are_refused") else {
        return;
    };
    for size in [56, 1400, 20_000] {
        let ping = format!("ping -n -c 3 -i 0.01 -W 10 -s {size} 10.99.7.7");
        let output = scene.output(&scene.clients, &ping).unwrap();
        assert!(output.contains("3 received"), "{output}");
    }
    let ping = "ping -n -c 1 -W 10 10.96.1.1";
    let output = scene.output(&scene.clients, ping).unwrap_err();
    assert!(output.contains("Unreachable"), "{output}");
}

#[test]
fn dig_gets_its_answer() {
    let Some(scene) = Scene::new("dig_gets_its_answer") else {
        return;
    };
    if Command::new("dig").arg("-v").output().is_err() {
        namespace::skip("dig_gets_its_answer", "needs dig");
        return;
    }
    let server = scene.server_socket(destination(8, 53));
    thread::scope(|scope| {
        scope.spawn(|| {
            // The question back, as an answer with no record.
            let mut buffer = [0; 1000];
            let (len, from) = server.recv_from(&mut buffer).unwrap();
            buffer[2] |= 0x80;
            server.send_to(&buffer[..len], from).unwrap();
        });
        let output = scene.output(
            &scene.clients,
            "dig +tries=1 +time=20 @10.99.0.8 example.org",
        );
        let output = output.unwrap();
        assert!(output.contains("status: NOERROR"), "{output}");
    });
}

#[test]
fn iperf3_counts_no_loss_at_a_moderate_rate() {
    let Some(scene) = Scene::new("iperf3_counts_no_loss_at_a_moderate_rate") else {
        return;
    };
    if Command::new("iperf3").arg("-v").output().is_err() {
        namespace::skip("iperf3_counts_no_loss_at_a_moderate_rate", "needs iperf3");
        return;
    }
    let mut command = Command::new("ip");
    command.args(["netns", "exec", scene.host.name()]);
    command.args(["iperf3", "-s", "-1", "--forceflush", "-B", "10.99.9.9"]);
    let _server = Program::start(command, "Server listening");
    for reverse in ["", "-R"] {
        let iperf = format!("iperf3 -c 10.99.9.9 -u -b 20M -l 1200 -t 1 -J {reverse}");
        let output = scene.output(&scene.clients, &iperf);
        let output = output.unwrap_or_else(|error| panic!("{error}"));
        let sum = output.split("\"sum\":").last().unwrap();
        let packets = sum.split("\"packets\":").nth(1).unwrap();
        let packets: u64 = packets
            .trim_start()
            .split(|c: char| !c.is_ascii_digit())
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert!(packets > 1000, "{output}");
        if reverse.is_empty() {
            break;
        }
    }
}

/// A download over QUIC, by a program that knows nothing of the relay. Needs the Python package `aioquic`.
#[test]
fn a_quic_transfer() {
    let Some(scene) = Scene::new("a_quic_transfer") else {
        return;
    };
    let mut has_it = Command::new("python3");
    has_it.args(["-c", "import aioquic"]);
    if !has_it.output().unwrap().status.success() {
        namespace::skip("a_quic_transfer", "needs aioquic");
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/quic.py");
    let folder = std::env::temp_dir().join(format!("sosplice-quic-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| folder.join(name));
    program::output(
        Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
            .args(["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=test", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate),
    );
    let mut command = Command::new("ip");
    command.args(["netns", "exec", scene.host.name(), "python3", script]);
    command.args(["serve", "10.99.4.4", "4433"]);
    command.arg(&certificate).arg(&key);
    let _server = Program::start(command, "serving");
    let fetch = format!("python3 {script} fetch 10.99.4.4 4433 5000000");
    let output = scene.output(&scene.clients, &fetch).unwrap();
    assert_eq!(output.trim(), "same");
    std::fs::remove_dir_all(&folder).unwrap();
}
