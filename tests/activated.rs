//! The example `activated` with descriptors passed as systemd does: listening sockets, and accepted ones. One test lets
//! `systemd-socket-activate` do that, and is skipped with a message where there is none.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "support/example.rs"]
mod example;
#[path = "support/namespace.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod namespace;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

/// A running relay, which ends with the test.
struct Relay(Child);

impl Drop for Relay {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Relay {
    /// Passes a socket on as descriptor 3, with the variables of `sd_listen_fds(3)`.
    fn with(socket: impl Into<OwnedFd>, arguments: &[&str]) -> Relay {
        let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&0 </dev/null";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(example::path("activated"));
        command.args(arguments).stdin(Stdio::from(socket.into()));
        Relay(command.spawn().unwrap())
    }

    fn ended(mut self) -> ExitStatus {
        self.0.wait().unwrap()
    }
}

/// A destination: it sends back what it gets, once that has ended.
trait Echo: Read + Write + Sized + Send + 'static {
    fn echo(mut self) {
        let mut all = Vec::new();
        self.read_to_end(&mut all).unwrap();
        self.write_all(&all).unwrap();
    }
}

impl Echo for TcpStream {}
impl Echo for UnixStream {}

fn spawn(work: impl FnOnce() + Send + 'static) {
    thread::Builder::new().spawn(work).unwrap();
}

fn echo_over_tcp(count: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap().to_string();
    spawn(move || {
        let streams = listener.incoming().take(count);
        streams.for_each(|stream| spawn(|| stream.unwrap().echo()));
    });
    at
}

fn echo_over_unix(count: usize, name: &str) -> String {
    let name = format!("sosplice-activated-{}-{name}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    spawn(move || {
        let streams = listener.incoming().take(count);
        streams.for_each(|stream| spawn(|| stream.unwrap().echo()));
    });
    format!("unix:@{name}")
}

fn exchange_over_tcp(mut stream: TcpStream, bytes: &[u8]) {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert!(all == bytes, "{} bytes came back", all.len());
}

fn exchange_over_unix(mut stream: UnixStream, bytes: &[u8]) {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut writer = stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            writer.write_all(bytes).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert!(all == bytes, "{} bytes came back", all.len());
    });
}

fn pattern(len: u32) -> Vec<u8> {
    (0..len).map(|at| at.to_le_bytes()[1]).collect()
}

#[test]
fn a_listening_socket_of_tcp_to_a_unix_socket() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let _relay = Relay::with(listener, &[&echo_over_unix(3, "a")]);
    for len in [0, 1, 3_000_001] {
        exchange_over_tcp(TcpStream::connect(at).unwrap(), &pattern(len));
    }
}

#[test]
fn a_listening_unix_socket_to_tcp_through_a_device() {
    let name = format!("sosplice-activated-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let _relay = Relay::with(listener, &[&echo_over_tcp(3), "--device", "lo"]);
    for len in [0, 1, 3_000_001] {
        exchange_over_unix(UnixStream::connect_addr(&address).unwrap(), &pattern(len));
    }
}

#[test]
fn an_accepted_connection_has_a_process_that_ends_with_it() {
    let (user, accepted) = UnixStream::pair().unwrap();
    let relay = Relay::with(accepted, &[&echo_over_unix(1, "b")]);
    exchange_over_unix(user, &pattern(3_000_001));
    assert!(relay.ended().success());
}

#[test]
fn a_destination_that_refuses_resets_the_client() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let _relay = Relay::with(listener, &[&nobody.to_string()]);
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_start_without_a_socket_is_explained() {
    let mut command = Command::new(example::path("activated"));
    let output = command.arg("127.0.0.1:1").output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        complaints.contains("systemd has passed no socket"),
        "{complaints}"
    );
    let output = command.arg("localhost").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "a wrong command line");
}

/// Waits until the socket is there.
fn connect(path: &std::path::Path) -> UnixStream {
    for _ in 0..3000 {
        if let Ok(stream) = UnixStream::connect(path) {
            return stream;
        }
        thread::park_timeout(Duration::from_millis(10));
    }
    panic!("systemd-socket-activate does not listen");
}

#[test]
fn systemd_passes_its_sockets_on() {
    let tool = "systemd-socket-activate";
    if Command::new(tool).arg("--version").output().is_err() {
        namespace::skip(
            "systemd_passes_its_sockets_on",
            "needs systemd-socket-activate",
        );
        return;
    }
    for mode in [&[][..], &["--accept"]] {
        let name = format!("sosplice-activated-{}-{}", std::process::id(), mode.len());
        let path = std::env::temp_dir().join(name);
        let to = echo_over_tcp(2);
        let mut command = Command::new(tool);
        command.arg("--listen").arg(&path).args(mode);
        command.arg(example::path("activated")).arg(to);
        let _relay = Relay(command.spawn().unwrap());
        for len in [1, 1_000_001] {
            exchange_over_unix(connect(&path), &pattern(len));
        }
        std::fs::remove_file(&path).ok();
    }
}
