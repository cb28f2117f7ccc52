//! The program in C, between clients and servers of the kernel, in a namespace that each test makes and removes. Needs
//! root and `liblwip-dev`, otherwise skipped with a message.
//!
//! ```text
//!   clients, servers 10.7.0.1 --- tap0 --- 10.7.0.2 lwip_proxy
//! ```
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "../../../tests/support/long.rs"]
mod long;
#[path = "../../../tests/support/namespace.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod namespace;
#[path = "../../../tests/support/program.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod program;

use namespace::{Namespace, available_with, skip};
use program::{Program, output};
use rustix::net::sockopt;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
const SERVER: &str = "10.7.0.1:8080";
const PROXY: &str = "10.7.0.2:80";

/// Whose thread lwIP is in, and whose moves the bytes.
const MODES: [&[&str]; 4] = [&["-w", "1"], &["-w", "2"], &["-w", "0"], &["-t"]];

/// The program, compiled once.
fn compiled() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        // This test is TARGET/PROFILE/deps/NAME-HASH.
        let test = std::env::current_exe().unwrap();
        let target = test.ancestors().nth(3).unwrap();
        let out = target.join("lwip");
        fs::create_dir_all(&out).unwrap();
        let build = if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        };
        let mut make = Command::new("make");
        make.current_dir(env!("CARGO_MANIFEST_DIR"));
        make.args(["--silent", "--always-make"]);
        make.arg(format!("BUILD={build}"));
        make.arg(format!("TARGET={}", target.display()));
        make.arg(format!("OUT={}", out.display()));
        output(&mut make);
        out.join("lwip_proxy")
    })
}

struct Scene {
    program: Program,
    host: Namespace,
}

impl Scene {
    fn new(test: &str, options: &[&str]) -> Option<Scene> {
        if !Path::new("/usr/include/lwip/lwip/tcp.h").exists() {
            skip(test, "needs liblwip-dev");
            return None;
        }
        if !available_with(test, &["make", "cc"]) {
            return None;
        }
        let host = Namespace::new("lwip");
        host.ip("tuntap add tap0 mode tap");
        host.ip("addr add 10.7.0.1/24 dev tap0");
        host.ip("link set tap0 txqueuelen 10000 up");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", host.name()]).arg(compiled());
        command.args(options);
        command.args(["tap0", "10.7.0.2/24", "80", "10.7.0.1", "8080"]);
        let program = Program::start(command, "listening");
        host.wait_until_up("tap0");
        Some(Scene { program, host })
    }

    fn listen(&self) -> TcpListener {
        let listener = self.host.enter(|| TcpListener::bind(SERVER).unwrap());
        // Connections inherit it.
        sockopt::set_socket_recv_buffer_size(&listener, 65_536).unwrap();
        listener
    }

    fn dial(&self) -> io::Result<TcpStream> {
        let to = PROXY.parse().unwrap();
        let stream = self.host.enter(|| TcpStream::connect_timeout(&to, LIMIT));
        stream.map(patient)
    }

    /// A client's end and the server's.
    fn connect(&self, listener: &TcpListener) -> (TcpStream, TcpStream) {
        let client = self.dial().unwrap();
        let (server, _) = listener.accept().unwrap();
        (client, patient(server))
    }

    /// Both ends of a connection: the client's first, or the server's.
    fn connect_in_order(
        &self,
        listener: &TcpListener,
        client_first: bool,
    ) -> (TcpStream, TcpStream) {
        let (client, server) = self.connect(listener);
        match client_first {
            true => (client, server),
            false => (server, client),
        }
    }

    /// Ends the program, which must have nothing to complain about. Returns what it has printed.
    fn ends_well(mut self) -> String {
        let status = self.program.terminate(LIMIT);
        let said = self.program.said();
        assert!(status.success(), "{status}: {said}");
        said
    }
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Bytes with a period that no buffer has.
fn pattern() -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    PATTERN.get_or_init(|| {
        let hash = |at: u32| (at.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0];
        (0..65_521).map(hash).collect()
    })
}

fn send(mut to: &TcpStream, total: usize) {
    let mut left = total;
    while left > 0 {
        let part = left.min(pattern().len());
        to.write_all(&pattern()[..part]).unwrap();
        left -= part;
    }
    to.shutdown(Shutdown::Write).unwrap();
}

/// Calls again what a stopped process has interrupted: with a time limit, the kernel does not.
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Reads to the end of the stream, and compares. Returns the number of bytes.
fn check(mut from: &TcpStream) -> usize {
    let mut bytes = vec![0; 65_536];
    let mut total = 0;
    loop {
        let count = uninterrupted(|| from.read(&mut bytes)).unwrap();
        if count == 0 {
            return total;
        }
        let expected = pattern().iter().cycle().skip(total % pattern().len());
        assert!(bytes[..count].iter().eq(expected.take(count)), "at {total}");
        total += count;
    }
}

#[test]
fn bulk_both_ways_at_once() {
    let total = long::times(10_000_000, 50_000_000);
    for mode in MODES {
        let Some(scene) = Scene::new("bulk_both_ways_at_once", mode) else {
            return;
        };
        let listener = scene.listen();
        let pairs: Vec<_> = (0..3).map(|_| scene.connect(&listener)).collect();
        thread::scope(|scope| {
            for stream in pairs.iter().flat_map(|(a, b)| [a, b]) {
                scope.spawn(|| send(stream, total));
                scope.spawn(|| assert_eq!(check(stream), total, "{mode:?}"));
            }
        });
        scene.ends_well();
    }
}

#[test]
fn curl_gets_a_file() {
    let test = "curl_gets_a_file";
    let Some(scene) = Scene::new(test, &[]) else {
        return;
    };
    if !available_with(test, &["curl", "python3"]) {
        return;
    }
    let folder = std::env::temp_dir().join(scene.host.name());
    fs::create_dir(&folder).unwrap();
    let mut bytes = vec![0; long::times(20_000_000, 200_000_000)];
    for block in bytes.chunks_mut(pattern().len()) {
        block.copy_from_slice(&pattern()[..block.len()]);
    }
    fs::write(folder.join("file"), &bytes).unwrap();
    drop(bytes);
    let inside = |program: &str| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", scene.host.name(), program]);
        command.current_dir(&folder);
        command
    };
    let mut server = inside("python3");
    server.args(["-u", "-m", "http.server", "8080", "--bind", "10.7.0.1"]);
    let server = Program::start(server, "Serving");
    for copy in ["first", "second"] {
        let mut curl = inside("curl");
        curl.args(["--silent", "--show-error", "--fail", "--max-time", "120"]);
        output(curl.args(["--output", copy, "http://10.7.0.2/file"]));
    }
    let mut digest = Command::new("sha256sum");
    digest.current_dir(&folder);
    let digests = output(digest.args(["file", "first", "second"]));
    let digests: Vec<_> = digests.lines().map(|line| &line[..64]).collect();
    assert_eq!(digests, [digests[0]; 3]);
    drop(server);
    fs::remove_dir_all(&folder).unwrap();
    scene.ends_well();
}

#[test]
fn half_close_both_ways() {
    for mode in MODES {
        let Some(scene) = Scene::new("half_close_both_ways", mode) else {
            return;
        };
        let listener = scene.listen();
        for client_first in [true, false] {
            let (mut first, mut second) = scene.connect_in_order(&listener, client_first);
            first.write_all(b"request").unwrap();
            first.shutdown(Shutdown::Write).unwrap();
            let mut all = String::new();
            second.read_to_string(&mut all).unwrap();
            assert_eq!(all, "request", "{mode:?}");
            // The other direction is as before.
            second.write_all(b"answer").unwrap();
            let mut answer = [0; 6];
            first.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"answer");
            drop(second);
            assert_eq!(first.read(&mut answer).unwrap(), 0, "{mode:?}");
        }
        scene.ends_well();
    }
}

/// Closes with a reset.
fn reset(stream: TcpStream) {
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
}

#[test]
fn resets_both_ways() {
    for mode in MODES {
        let Some(scene) = Scene::new("resets_both_ways", mode) else {
            return;
        };
        let listener = scene.listen();
        for client_first in [true, false] {
            let (mut first, mut second) = scene.connect_in_order(&listener, client_first);
            first.write_all(b"x").unwrap();
            second.read_exact(&mut [0]).unwrap();
            reset(first);
            let error = second.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{mode:?}");
        }
        scene.ends_well();
    }
}

#[test]
fn a_server_that_refuses_resets_the_client() {
    for mode in MODES {
        let Some(scene) = Scene::new("a_server_that_refuses_resets_the_client", mode) else {
            return;
        };
        // It may arrive before the call to connect has returned.
        let got = scene.dial().and_then(|mut client| client.read(&mut [0]));
        let error = got.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{mode:?}");
        scene.ends_well();
    }
}

#[test]
fn a_slow_reader_stops_the_writer_and_takes_no_memory() {
    for mode in MODES {
        let test = "a_slow_reader_stops_the_writer_and_takes_no_memory";
        let Some(scene) = Scene::new(test, mode) else {
            return;
        };
        let listener = scene.listen();
        let (mut client, server) = scene.connect(&listener);
        sockopt::set_socket_send_buffer_size(&client, 65_536).unwrap();
        client
            .set_write_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        let before = scene.program.resident();
        let mut sent = 0;
        // Until nothing moved for a second.
        let stopped = loop {
            let from = sent % pattern().len();
            match uninterrupted(|| client.write(&pattern()[from..])) {
                Ok(count) => sent += count,
                Err(error) => break error,
            }
            assert!(sent < 16 << 20, "{mode:?}: not stopped after {sent} bytes");
        };
        assert_eq!(stopped.kind(), ErrorKind::WouldBlock);
        // Two buffers of the proxy, lwIP's, and the kernel's at both ends.
        assert!(
            (256 << 10..4 << 20).contains(&sent),
            "{mode:?}: {sent} bytes"
        );
        let grown = scene.program.resident().saturating_sub(before);
        assert!(grown < 8 << 20, "{mode:?}: {grown} bytes more");
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(check(&server), sent, "{mode:?}");
        scene.ends_well();
    }
}

#[test]
fn a_limit_is_exact() {
    let Some(scene) = Scene::new("a_limit_is_exact", &["-l", "1000000"]) else {
        return;
    };
    let listener = scene.listen();
    let (mut client, server) = scene.connect(&listener);
    let writer = thread::Builder::new().spawn(move || {
        // It fails when the proxy closes.
        let blocks = std::iter::repeat_n(pattern(), 100);
        blocks
            .map(|block| client.write_all(block))
            .any(|sent| sent.is_err())
    });
    assert_eq!(check(&server), 1_000_000);
    assert!(writer.unwrap().join().unwrap());
    assert!(scene.ends_well().contains("limit after 1000000 bytes"));
}

#[test]
fn an_idle_connection_ends() {
    for mode in MODES {
        let options = [mode, &["-i", "1"]].concat();
        let Some(scene) = Scene::new("an_idle_connection_ends", &options) else {
            return;
        };
        let listener = scene.listen();
        let (mut client, mut server) = scene.connect(&listener);
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
        assert_eq!(
            uninterrupted(|| client.read(&mut [0])).unwrap(),
            0,
            "{mode:?}"
        );
        assert_eq!(
            uninterrupted(|| server.read(&mut [0])).unwrap(),
            0,
            "{mode:?}"
        );
        assert!(scene.ends_well().contains("idle after"), "{mode:?}");
    }
}

#[test]
fn many_connections() {
    for mode in MODES {
        let Some(scene) = Scene::new("many_connections", mode) else {
            return;
        };
        let listener = scene.listen();
        for _ in 0..long::times(2, 10) {
            let pairs: Vec<_> = (0..100).map(|_| scene.connect(&listener)).collect();
            for (mut client, mut server) in pairs {
                client.write_all(b"short").unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                let mut all = String::new();
                server.read_to_string(&mut all).unwrap();
                assert_eq!(all, "short", "{mode:?}");
            }
        }
        scene.ends_well();
    }
}
