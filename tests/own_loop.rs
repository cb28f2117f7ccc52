//! The example `own_loop`: each loop on its own link, and on a TUN device with the kernel's TCP behind
//! it (needs root, otherwise skipped with a message).
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
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
/// For the first SYN to be sent.
const SHORT: Duration = Duration::from_millis(300);
const LOOPS: [&[&str]; 3] = [
    &["--loop", "epoll"],
    &["--loop", "mio"],
    &["--loop", "tokio"],
];

fn own_loop(arguments: &[&str]) -> Output {
    let path = example::path("own_loop");
    Command::new(path).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn every_byte_comes_back_in_each_loop() {
    for (connections, bytes) in [("8", "1048576"), ("1", "1"), ("100", "5000")] {
        for which in LOOPS {
            let arguments = [which, &["--connections", connections, "--bytes", bytes]].concat();
            let output = own_loop(&arguments);
            let (said, complaints) = (text(&output.stdout), text(&output.stderr));
            assert!(output.status.success(), "{arguments:?}: {said}{complaints}");
            let equal =
                format!("{connections} of {connections} connections brought every byte back");
            assert!(said.contains(&equal), "{arguments:?}: {said}");
            assert_eq!(complaints, "", "{arguments:?}");
        }
    }
}

#[test]
fn the_tasks_of_tokio_learn_how_much_their_splices_moved() {
    let output = own_loop(&["--loop", "tokio", "--connections", "3", "--bytes", "70001"]);
    let told = text(&output.stdout).matches(": 70001 bytes up, 70001 down");
    assert_eq!(told.count(), 3);
}

#[test]
fn bad_arguments_are_explained() {
    let cases: [(&[&str], &str); 7] = [
        (&["--loop", "poll"], "[possible values: epoll, mio, tokio]"),
        (&["--connections", "0"], "1..=100"),
        (&["--bytes", "0"], "1..=1073741824"),
        (&["--port", "0"], "1..=65535"),
        (&["--backend", "10.0.0.1"], "invalid socket address"),
        (&["--address", "10.0.0.2"], "invalid IP address"),
        (&["--tun", "t", "--bytes", "1"], "cannot be used with"),
    ];
    for (arguments, expected) in cases {
        let output = own_loop(arguments);
        let complaints = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {complaints}");
        assert!(complaints.contains(expected), "{arguments:?}: {complaints}");
    }
    let help = own_loop(&["--help"]);
    assert!(help.status.success());
    assert!(text(&help.stdout).contains("Exit status: 0 if all went well"));
}

#[test]
fn a_missing_device_is_one_clear_line() {
    for which in LOOPS {
        let output = own_loop(&[which, &["--tun", "sosplice-none"]].concat());
        let complaints = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{complaints}");
        assert_eq!(complaints.lines().count(), 1, "{complaints}");
        let expected = "there is no interface sosplice-none";
        assert!(complaints.contains(expected), "{complaints}");
    }
}

/// The kernel's clients and a server, on one side of a device, and the proxy on the other.
struct Scene {
    namespace: Namespace,
    program: Program,
    listener: TcpListener,
}

impl Scene {
    fn new(which: &[&str]) -> Scene {
        let namespace = Namespace::new("own");
        namespace.tun("tl", &["10.97.0.1/24"], 1500);
        let listener = namespace.enter(|| TcpListener::bind("10.97.0.1:0").unwrap());
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace.name()]);
        command.arg(example::path("own_loop")).args(which);
        let backend = listener.local_addr().unwrap().to_string();
        command.args(["--tun", "tl", "--address", "10.97.0.2/24", "--backend"]);
        command.arg(backend);
        let program = Program::start(command, "listening on 10.97.0.2:80");
        namespace.wait_until_up("tl");
        Scene {
            namespace,
            program,
            listener,
        }
    }

    /// Sends some megabytes to the server, which sends them back.
    fn exchange(&self) {
        let bytes: Vec<u8> = (0..5_000_000u32).map(|at| at.to_le_bytes()[1]).collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = self.listener.accept().unwrap();
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                stream.write_all(&all).unwrap();
            });
            let connect = || TcpStream::connect("10.97.0.2:80").unwrap();
            let mut stream = self.namespace.enter(connect);
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            stream.write_all(&bytes).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            assert!(all == bytes, "{} bytes came back", all.len());
        });
    }
}

#[test]
fn each_loop_on_a_device_until_it_is_deleted() {
    if !available("each_loop_on_a_device_until_it_is_deleted") {
        return;
    }
    for which in LOOPS {
        let mut scene = Scene::new(which);
        scene.exchange();
        scene.exchange();
        scene.namespace.ip("link del tl");
        let status = scene.program.ended(LIMIT);
        assert_eq!(status.code(), Some(1), "{which:?}");
    }
}

/// The first SYN to the backend is lost, so the rest depends on the driver's deadline.
#[test]
fn each_loop_wakes_for_timers() {
    if !available("each_loop_wakes_for_timers") {
        return;
    }
    for which in LOOPS {
        let scene = Scene::new(which);
        // The kernel's router solicitations would wake the loop, too.
        let quiet = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6";
        let mut command = Command::new("ip");
        command.args(["netns", "exec", scene.namespace.name(), "sh", "-c", quiet]);
        assert!(command.status().unwrap().success());
        scene.namespace.ip("addr del 10.97.0.1/24 dev tl");
        scene.namespace.ip("addr add 10.97.0.9/24 dev tl");
        let connect = || TcpStream::connect("10.97.0.2:80").unwrap();
        let mut stream = scene.namespace.enter(connect);
        stream.set_read_timeout(Some(SHORT)).unwrap();
        stream.read(&mut [0]).unwrap_err();
        scene.namespace.ip("addr add 10.97.0.1/24 dev tl");
        set_socket_timeout(&scene.listener, Timeout::Recv, Some(LIMIT)).unwrap();
        let (mut server, _) = scene.listener.accept().unwrap();
        server.write_all(b"x").unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
}

#[test]
fn a_signal_ends_each_loop_in_order() {
    if !available("a_signal_ends_each_loop_in_order") {
        return;
    }
    for which in LOOPS {
        let mut scene = Scene::new(which);
        scene.exchange();
        let status = scene.program.terminate(LIMIT);
        assert!(status.success(), "{which:?}: {status}");
    }
}
