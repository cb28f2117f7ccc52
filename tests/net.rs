//! Real traffic through the proxy: curl, iperf3, Python's web server and the kernel's TCP on both
//! sides, in namespaces that each test makes and removes. Needs root, otherwise it is skipped with a
//! message; with `SOSPLICE_REQUIRE_NET=1` it fails instead.
//!
//! ```text
//!   namespace C: client, tc 10.78.1.1 --- 10.78.1.2 proxy 10.78.2.2 --- ts 10.78.2.1, server: namespace S
//! ```
//!
//! The proxy is `examples/proxy`, built here in the profile of the test; `SOSPLICE_PROXY` is the path
//! of another program with the same options `--tun --listen --backend`. It prints a line when it
//! listens. One test runs at a time.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "support/example.rs"]
mod example;
#[path = "support/long.rs"]
mod long;
#[path = "support/namespace.rs"]
mod namespace;
#[path = "support/program.rs"]
mod program;

use long::times;
use namespace::{Namespace, available, skip};
use program::{Program, output};
use rustix::event::{PollFd, PollFlags, poll};
use sosplice::clock::{Clock, SystemClock};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

const FRONT: &str = "10.78.1.2:8080";
const BACKEND: &str = "10.78.2.1:8080";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/net/server.py");
const MIB: usize = 1 << 20;
/// How long a stream and a connection wait.
const LIMIT: Option<Duration> = Some(Duration::from_secs(20));

/// Path of the proxy.
fn proxy() -> PathBuf {
    std::env::var_os("SOSPLICE_PROXY").map_or_else(|| example::path("proxy"), PathBuf::from)
}

/// Whether the programs at both ends are installed. If not, prints a message (see [`skip`]).
fn has_programs(test: &str) -> bool {
    let missing: Vec<&str> = ["curl", "iperf3", "python3"]
        .into_iter()
        .filter(|program| Command::new(program).arg("--version").output().is_err())
        .collect();
    if !missing.is_empty() {
        skip(test, &format!("needs {}", missing.join(", ")));
    }
    missing.is_empty()
}

/// Client, proxy and server.
struct Scene {
    proxy: Program,
    client: Namespace,
    server: Namespace,
    front: SocketAddr,
    _turn: MutexGuard<'static, ()>,
}

impl Scene {
    /// `None` if this machine or user cannot.
    fn new(test: &str, mtu: usize) -> Option<Scene> {
        Scene::with(test, mtu, FRONT, &[])
    }

    /// As [`new`](Self::new), listening at `front`, and with more arguments for the proxy.
    fn with(test: &str, mtu: usize, front: &str, more: &[&str]) -> Option<Scene> {
        static TURN: Mutex<()> = Mutex::new(());
        if !available(test) || !has_programs(test) {
            return None;
        }
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let program = proxy();
        let client = Namespace::new("c");
        client.tun("tc", &["10.78.1.1/24", "fd78:1::1/64"], mtu);
        let server = Namespace::new("s");
        server.tun("ts", &["10.78.2.1/24", "fd78:2::1/64"], mtu);
        let mut command = Command::new(program);
        let addresses = "10.78.1.2/24,fd78:1::2/64";
        command.args(["--tun", &format!("tc@{}={addresses}", client.name())]);
        command.args(["--tun", &format!("ts@{}=10.78.2.2/24", server.name())]);
        command
            .args(["--listen", front, "--backend", BACKEND])
            .args(more);
        Some(Scene {
            proxy: Program::start(command, ""),
            client,
            server,
            front: front.parse().unwrap(),
            _turn: turn,
        })
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        let front = self.front;
        let limit = LIMIT.unwrap();
        bounded(
            self.client
                .enter(|| TcpStream::connect_timeout(&front, limit))?,
        )
    }

    fn listen(&self) -> TcpListener {
        self.server.enter(|| TcpListener::bind(BACKEND).unwrap())
    }

    /// Starts the web server.
    fn serve(&self) -> Program {
        let (address, port) = BACKEND.split_once(':').unwrap();
        let mut command = within(&self.server, &["python3", SCRIPT, "serve", address, port]);
        command.env("PYTHONUNBUFFERED", "1");
        Program::start(command, "listening")
    }

    /// Runs a shell command in the client's namespace for so many seconds at most.
    fn shell(&self, seconds: u32, line: &str) -> String {
        output(&mut self.shell_command(seconds, line))
    }

    fn shell_command(&self, seconds: u32, line: &str) -> Command {
        let limit = seconds.to_string();
        let line = format!("set -o pipefail; {line}");
        within(
            &self.client,
            &["timeout", "-k", "1", &limit, "bash", "-c", &line],
        )
    }
}

/// A stream that gives up, so that a proxy that fails fails the test instead of hanging it.
fn bounded(stream: TcpStream) -> std::io::Result<TcpStream> {
    stream.set_read_timeout(LIMIT)?;
    stream.set_write_timeout(LIMIT)?;
    Ok(stream)
}

fn accept(listener: &TcpListener) -> TcpStream {
    let limit = LIMIT.map(|limit| limit.try_into().unwrap());
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    assert_eq!(
        poll(&mut fds, limit.as_ref()),
        Ok(1),
        "no connection arrived"
    );
    bounded(listener.accept().unwrap().0).unwrap()
}

fn within(namespace: &Namespace, line: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace.name()]).args(line);
    command
}

fn digest(bytes: usize) -> String {
    let count = bytes.to_string();
    output(Command::new("timeout").args(["60", "python3", SCRIPT, "digest", &count]))
        .trim()
        .to_owned()
}

/// Bytes that differ from place to place.
fn pattern(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

#[test]
fn a_large_download_arrives_intact() {
    let Some(scene) = Scene::new("a_large_download_arrives_intact", 1500) else {
        return;
    };
    let _server = scene.serve();
    let size = times(128, 1024) * MIB;
    let line = format!("curl -sS --fail http://{FRONT}/bytes/{size} | sha256sum");
    let start = SystemClock.now();
    let got = scene.shell(120, &line);
    println!("{size} bytes down in {:?}", SystemClock.now() - start);
    assert_eq!(got.split_whitespace().next(), Some(digest(size).as_str()));
}

#[test]
fn a_large_upload_arrives_intact() {
    let Some(scene) = Scene::new("a_large_upload_arrives_intact", 1500) else {
        return;
    };
    let _server = scene.serve();
    let size = times(128, 1024) * MIB;
    let line = format!("python3 {SCRIPT} generate {size} | curl -sS --fail -T - http://{FRONT}/");
    let start = SystemClock.now();
    let got = scene.shell(120, &line);
    println!("{size} bytes up in {:?}", SystemClock.now() - start);
    assert_eq!(got.trim(), digest(size));
}

#[test]
fn fifty_downloads_at_once_arrive_intact() {
    let Some(scene) = Scene::new("fifty_downloads_at_once_arrive_intact", 1500) else {
        return;
    };
    let _server = scene.serve();
    let size = times(4, 20) * MIB;
    let line = format!("curl -sS --fail http://{FRONT}/bytes/{size} | sha256sum");
    let want = digest(size);
    thread::scope(|scope| {
        let downloads: Vec<_> = (0..50)
            .map(|_| scope.spawn(|| scene.shell(120, &line)))
            .collect();
        for download in downloads {
            let got = download.join().unwrap();
            assert_eq!(got.split_whitespace().next(), Some(want.as_str()));
        }
    });
}

#[test]
fn a_half_closed_connection_still_carries_the_answer() {
    let Some(scene) = Scene::new("a_half_closed_connection_still_carries_the_answer", 1500) else {
        return;
    };
    let listener = scene.listen();
    let sent = pattern(MIB);
    thread::scope(|scope| {
        // Sends nothing before it has received the end.
        scope.spawn(|| {
            let mut stream = accept(&listener);
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            stream.write_all(&got).unwrap();
        });
        let mut stream = scene.connect().unwrap();
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    });
}

#[test]
fn ipv6_in_front_of_ipv4_carries_both_ways() {
    let test = "ipv6_in_front_of_ipv4_carries_both_ways";
    let Some(scene) = Scene::with(test, 1500, "[fd78:1::2]:8080", &["--dispatch", "direct"]) else {
        return;
    };
    let listener = scene.listen();
    let (up, down) = (pattern(8 * MIB), pattern(5 * MIB));
    let stream = scene.connect().unwrap();
    let server = accept(&listener);
    thread::scope(|scope| {
        for (end, bytes) in [(&stream, &up), (&server, &down)] {
            scope.spawn(move || {
                let mut end = end;
                end.write_all(bytes).unwrap();
                end.shutdown(Shutdown::Write).unwrap();
            });
        }
        for (mut end, bytes) in [(&server, &up), (&stream, &down)] {
            let mut got = Vec::new();
            end.read_to_end(&mut got).unwrap();
            assert!(got == *bytes, "{} of {} bytes", got.len(), bytes.len());
        }
    });
}

#[test]
fn a_limit_ends_the_connection_at_its_last_byte() {
    let test = "a_limit_ends_the_connection_at_its_last_byte";
    let Some(scene) = Scene::with(test, 1500, FRONT, &["--max-bytes", "1000003"]) else {
        return;
    };
    let listener = scene.listen();
    let sent = pattern(2 * MIB);
    let mut stream = scene.connect().unwrap();
    thread::scope(|scope| {
        // The rest is sent after the connection was closed.
        scope.spawn(|| drop(accept(&listener).write_all(&sent)));
        let mut got = vec![0; 1_000_003];
        stream.read_exact(&mut got).unwrap();
        assert!(got == sent[..got.len()]);
        assert!(!matches!(stream.read(&mut [0]), Ok(1)), "one byte too many");
    });
}

#[test]
fn an_idle_connection_is_ended() {
    let Some(scene) = Scene::with("an_idle_connection_is_ended", 1500, FRONT, &["--idle", "1"])
    else {
        return;
    };
    let listener = scene.listen();
    let mut stream = scene.connect().unwrap();
    let mut server = accept(&listener);
    server.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    let before = SystemClock.now();
    assert!(!matches!(stream.read(&mut [0]), Ok(1)));
    let after = SystemClock.now() - before;
    let limits = Duration::from_millis(500)..Duration::from_secs(10);
    assert!(limits.contains(&after), "ended after {after:?}");
}

#[test]
fn a_server_that_dies_ends_the_download() {
    let Some(scene) = Scene::new("a_server_that_dies_ends_the_download", 1500) else {
        return;
    };
    let _server = scene.serve();
    let line = format!("curl -sS -o /dev/null http://{FRONT}/die/{}", 10 * MIB);
    let start = SystemClock.now();
    let status = scene.shell_command(20, &line).status().unwrap();
    // 18: part of the file; 56: connection reset.
    assert!(matches!(status.code(), Some(18 | 56)), "{status}");
    let took = SystemClock.now() - start;
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn a_backend_that_refuses_resets_the_client() {
    let Some(scene) = Scene::new("a_backend_that_refuses_resets_the_client", 1500) else {
        return;
    };
    // A proxy that dials before it answers refuses at once.
    let end = scene
        .connect()
        .and_then(|mut stream| stream.read(&mut [0; 1]));
    let kind = end.map_err(|error| error.kind());
    let reset = [ErrorKind::ConnectionReset, ErrorKind::ConnectionRefused];
    assert!(kind.is_err_and(|kind| reset.contains(&kind)), "{kind:?}");
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the case is a reader that lets time pass"
)]
fn a_client_that_stops_reading_loses_no_byte() {
    let Some(scene) = Scene::new("a_client_that_stops_reading_loses_no_byte", 1500) else {
        return;
    };
    let listener = scene.listen();
    let sent = pattern(64 * MIB);
    let before = scene.proxy.resident();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = accept(&listener);
            stream.write_all(&sent).unwrap();
        });
        let mut stream = scene.connect().unwrap();
        let mut first = [0; 1000];
        stream.read_exact(&mut first).unwrap();
        thread::sleep(Duration::from_secs(5));
        let grown = scene.proxy.resident().saturating_sub(before);
        println!("the proxy holds {} KiB more", grown / 1024);
        assert!(grown < 32 * MIB, "{grown} bytes");
        let mut got = first.to_vec();
        stream.read_to_end(&mut got).unwrap();
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    });
}

#[test]
fn sigterm_prints_totals_and_ends_well() {
    let Some(mut scene) = Scene::new("sigterm_prints_totals_and_ends_well", 1500) else {
        return;
    };
    let _server = scene.serve();
    scene.shell(
        20,
        &format!("curl -sS --fail -o /dev/null http://{FRONT}/bytes/{MIB}"),
    );
    let before = scene.proxy.said().len();
    let status = scene.proxy.terminate(Duration::from_secs(10));
    assert!(status.success(), "{status}");
    let said = scene.proxy.said();
    assert!(
        said[before..].contains(|c: char| c.is_ascii_digit()),
        "{said}"
    );
}

/// The error that ends a busy stream.
fn reset_of(mut call: impl FnMut() -> std::io::Result<usize>) -> ErrorKind {
    loop {
        match call() {
            Ok(0) => panic!("a clean end that is none"),
            Ok(_) => {}
            Err(error) => return error.kind(),
        }
    }
}

#[test]
fn a_deleted_device_ends_the_proxy() {
    let ways = ["worker", "direct"].map(|dispatch| [("tc", dispatch), ("ts", dispatch)]);
    for (device, dispatch) in ways.into_iter().flatten() {
        let name = "a_deleted_device_ends_the_proxy";
        let Some(mut scene) = Scene::with(name, 1500, FRONT, &["--dispatch", dispatch]) else {
            return;
        };
        let listener = scene.listen();
        let mut near = scene.connect().unwrap();
        let mut far = accept(&listener);
        let limit = Some(Duration::from_secs(2));
        far.set_write_timeout(limit).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let end = reset_of(|| far.write(&[7; 10_000]));
                let expected = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
                // The peer behind the deleted device gets no segment: its own kernel times out.
                assert!(device == "ts" || expected.contains(&end), "{end:?}");
            });
            near.read_exact(&mut [0; 1_000_000]).unwrap();
            if device == "tc" {
                scene.client.ip("link del tc");
            } else {
                scene.server.ip("link del ts");
                let end = reset_of(|| near.read(&mut [0; 4096]));
                assert_eq!(end, ErrorKind::ConnectionReset);
                // The dead backend is noticed at the next client.
                scene.connect().ok();
            }
        });
        let status = scene.proxy.ended(Duration::from_secs(10));
        assert_eq!(status.code(), Some(1), "{device}");
    }
}

/// The number behind `"key":`, the first after `"section":`.
fn figure(json: &str, section: &str, key: &str) -> f64 {
    let behind = |text: &str, name: &str| {
        let at = text.find(&format!("\"{name}\":"));
        let at = at.unwrap_or_else(|| panic!("no {name} in {json}"));
        text[at + name.len() + 3..].to_owned()
    };
    let value = behind(&behind(json, section), key);
    let end = value.find([',', '}', '\n']).unwrap();
    value[..end].trim().parse().unwrap()
}

/// Gbit/s, and CPU seconds of the proxy per gigabyte.
fn iperf3(scene: &Scene, arguments: &str) -> (f64, f64) {
    let line = ["iperf3", "-s", "-1", "--forceflush", "-p", "8080"];
    let _server = Program::start(within(&scene.server, &line), "listening");
    let before = scene.proxy.cpu();
    let seconds = times(1, 3);
    let json = scene.shell(
        30,
        &format!("iperf3 -c 10.78.1.2 -p 8080 -t {seconds} -J {arguments}"),
    );
    let spent = scene.proxy.cpu() - before;
    let bytes = figure(&json, "sum_received", "bytes");
    assert!(bytes > 0.0);
    let rate = figure(&json, "sum_received", "bits_per_second");
    (rate / 1e9, spent.as_secs_f64() / (bytes / 1e9))
}

#[test]
fn iperf3_both_directions_one_and_eight_streams() {
    let test = "iperf3_both_directions_one_and_eight_streams";
    if Command::new("iperf3").arg("-v").output().is_err() {
        skip(test, "there is no iperf3");
        return;
    }
    let mut rows =
        String::from("| MTU | direction | streams | Gbit/s | proxy CPU s/GB |\n|-|-|-|-|-|\n");
    for mtu in [1500, 65_500] {
        let Some(scene) = Scene::new(test, mtu) else {
            return;
        };
        for (direction, flag) in [("up", ""), ("down", "-R")] {
            for streams in [1, 8] {
                let (rate, cost) = iperf3(&scene, &format!("{flag} -P {streams}"));
                let row = format!("| {mtu} | {direction} | {streams} | {rate:.2} | {cost:.3} |\n");
                rows.push_str(&row);
            }
        }
    }
    println!("{rows}");
}
