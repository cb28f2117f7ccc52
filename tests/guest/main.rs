//! `examples/sandbox` with a real guest: Debian's cloud kernel and busybox in QEMU, without KVM unless it works. All is
//! in a namespace that the test makes, so that nothing leaves the machine. Needs root, QEMU, and what `.ci/net` puts
//! into `target/guest`; otherwise skipped with a message.
//!
//! ```text
//!   namespace: QEMU (guest) --- Unix socket --- sandbox --- loopback with all of 10.99/16: servers of the test
//! ```
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod machine;
mod servers;

#[path = "../support/example.rs"]
mod example;
#[path = "../support/namespace.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod namespace;
#[path = "../support/program.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod program;

use machine::{Image, Machine};
use namespace::{Namespace, available};
use program::Program;
use rustix::process::Signal;
use servers::Transfers;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(200);
/// What the guest may reach after the restart of the sandbox.
const RULES: [&str; 4] = ["--allow", "name.test:80", "--allow", "10.99.0.9"];

struct Scene {
    inside: Namespace,
    image: Image,
    transfers: Arc<Transfers>,
}

impl Scene {
    fn new(test: &str) -> Option<Scene> {
        if !available(test) {
            return None;
        }
        let image = Image::new(test)?;
        let inside = Namespace::new("g");
        inside.ip("route add local 10.99.0.0/16 dev lo");
        inside.ip("addr add fd99::1/128 dev lo");
        let transfers = servers::start(&inside);
        Some(Scene {
            inside,
            image,
            transfers,
        })
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        let inside = self.inside.name();
        command.args(["netns", "exec", inside]).arg(program);
        command
    }

    fn sandbox(&self, transport: &str, options: &[&str]) -> Program {
        let mut command = self.command(example::path("sandbox"));
        command.args([transport, &self.image.path("net"), "--dns", "10.99.0.53"]);
        command.args(["--forward", "127.0.0.1:8080:80"]);
        command.args(options);
        Program::start(command, "the gateway")
    }

    fn guest(&self, netdev: &str, kernel: &str) -> Machine {
        let qemu = self.command("qemu-system-x86_64");
        Machine::boot(qemu, &self.image, netdev, kernel)
    }

    /// Whether a host program reaches a program in the guest, and gets its answer.
    fn forwarded(&self) -> io::Result<bool> {
        let mut stream = self.inside.enter(|| TcpStream::connect("127.0.0.1:8080"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(b"from the host")?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer == "from the guest\n")
    }
}

/// Waits for something that the guest does.
#[allow(
    clippy::disallowed_methods,
    reason = "between looks at what another program does"
)]
#[track_caller]
fn until(guest: &Machine, done: impl Fn() -> bool) {
    for _ in 0..LIMIT.as_millis() / 50 {
        if done() {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("the guest does not go on:\n{}", guest.said());
}

/// The lines that the guest reports.
fn results(said: &str) -> BTreeMap<&str, &str> {
    let lines = said
        .lines()
        .filter_map(|line| line.trim().split_once("RESULT "));
    lines
        .map(|(_, result)| result.split_once(' ').unwrap_or((result, "")))
        .collect()
}

/// Of `network.act`.
const RESULTS: [(&str, &str); 12] = [
    ("lease", "10.0.2.15/24 10.0.2.1 10.0.2.1 65520 86400"),
    ("ping-gateway", ""),
    ("ping-server", ""),
    ("ping6-gateway", ""),
    ("name", "10.99.7.7"),
    ("down", "5000000"),
    ("up", "equal"),
    ("up6", "equal"),
    ("refused", "refused"),
    ("gateway-refused", "refused"),
    ("connections", "200"),
    ("forwarded", "from the host"),
];
const AFTER_RESTART: [(&str, &str); 7] = [
    ("interrupted", "reset"),
    ("after-restart", ""),
    ("without-a-name", "refused refused"),
    ("without-pings", ""),
    ("no-name", "REFUSED"),
    ("by-name", "5000000"),
    ("another-port", "refused"),
];

/// How the sandbox is restarted while bytes flow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Restart {
    /// The guest receives, and gets a reset.
    Terminated,
    /// The guest sends, and gets a reset for what it sends to the next sandbox.
    Killed,
}

/// Starts all, restarts the sandbox with rules if it can connect again, and compares the guest's report.
fn boot(test: &str, transport: &str, netdev: impl Fn(&Image) -> String, restart: Option<Restart>) {
    let Some(scene) = Scene::new(test) else {
        return;
    };
    let [capture, limited] = ["guest.pcap", "limited.pcap"].map(|name| scene.image.path(name));
    let mut sandbox = scene.sandbox(transport, &["--pcap", &capture]);
    let kernel = match restart {
        None => "act=network",
        Some(Restart::Terminated) => "act=network restart=83",
        Some(Restart::Killed) => "act=network restart=84",
    };
    let mut guest = scene.guest(&netdev(&scene.image), kernel);
    until(&guest, || guest.said().contains("GUEST LISTENS"));
    // The guest may not listen yet.
    until(&guest, || scene.forwarded().unwrap_or(false));
    let mut expected = BTreeMap::from(RESULTS);
    if let Some(how) = restart {
        until(&guest, || scene.transfers.counts() == (1, 0));
        match how {
            Restart::Terminated => assert!(sandbox.terminate(LIMIT).success()),
            Restart::Killed => sandbox.signal(Signal::KILL),
        }
        until(&guest, || scene.transfers.counts() == (1, 1));
        let options = [&RULES[..], &["--pcap", &limited]].concat();
        sandbox = scene.sandbox(transport, &options);
        expected.extend(AFTER_RESTART);
    }
    guest.qemu.ended(LIMIT);
    let said = guest.said();
    assert_eq!(results(&said), expected, "{said}");
    assert!(sandbox.terminate(LIMIT).success());
    let shown = sandbox.said();
    assert!(shown.contains("malformed: 0"), "{shown}");
    assert_eq!(
        shown.contains("queries_refused: 0"),
        restart.is_none(),
        "{shown}"
    );
    frames_are_large(&capture);
    let mut limited = restart.iter().flat_map(|_| frames(&limited));
    assert_eq!(
        limited.any(|frame| prohibits_pings(&frame)),
        restart.is_some()
    );
}

/// The frames in a file.
fn frames(capture: &str) -> Vec<Vec<u8>> {
    let file = std::fs::read(capture).unwrap();
    let mut frames = Vec::new();
    let mut rest = &file[24..];
    while let Some((header, frame)) = rest.split_first_chunk::<16>() {
        let len = u32::from_ne_bytes(header[8..12].try_into().unwrap());
        let (frame, next) = frame.split_at(usize::try_from(len).unwrap());
        frames.push(frame.to_vec());
        rest = next;
    }
    frames
}

/// Segments are as large as the MTU that the guest was offered, in both directions.
fn frames_are_large(capture: &str) {
    let mut largest = [0; 2];
    for frame in frames(capture) {
        // The gateway's own address.
        let from_gateway = frame[6..12] == [0x02, 0x73, 0x70, 0x6c, 0x69, 0x01];
        let largest = &mut largest[usize::from(from_gateway)];
        *largest = frame.len().max(*largest);
    }
    assert!(largest.iter().all(|len| *len > 60_000), "{largest:?}");
}

/// "Administratively prohibited", about a ping.
fn prohibits_pings(frame: &[u8]) -> bool {
    let is = |at: usize, bytes: &[u8]| frame.get(at..at + bytes.len()) == Some(bytes);
    let (ip, icmp, quote) = (14, 34, 42);
    is(12, &[8, 0]) && is(ip + 9, &[1]) && is(icmp, &[3, 13]) && is(quote + 9, &[1])
}

#[test]
fn a_guest_that_listens() {
    let netdev = |image: &Image| {
        let path = image.path("net");
        format!("stream,id=n,server=on,addr.type=unix,addr.path={path}")
    };
    boot(
        "a_guest_that_listens",
        "--qemu",
        netdev,
        Some(Restart::Terminated),
    );
}

fn connecting(image: &Image) -> String {
    let path = image.path("net");
    format!("stream,id=n,server=off,addr.type=unix,addr.path={path}")
}

#[test]
fn a_guest_that_connects() {
    boot("a_guest_that_connects", "--listen", connecting, None);
}

#[test]
fn a_guest_over_datagrams() {
    let netdev = |image: &Image| {
        let (here, there) = (image.path("guest"), image.path("net"));
        format!("dgram,id=n,local.type=unix,local.path={here},remote.type=unix,remote.path={there}")
    };
    boot(
        "a_guest_over_datagrams",
        "--datagrams",
        netdev,
        Some(Restart::Killed),
    );
}

/// Each time while bytes flow both ways: its reset button, then the end of QEMU, and another one.
#[test]
fn a_guest_that_is_reset_and_one_that_is_killed() {
    let Some(scene) = Scene::new("a_guest_that_is_reset_and_one_that_is_killed") else {
        return;
    };
    let mut sandbox = scene.sandbox("--listen", &["--keep-alive", "1"]);
    let sockets = sandbox.sockets();
    let guest = scene.guest(&connecting(&scene.image), "act=transfers");
    until(&guest, || scene.transfers.counts() == (2, 0));
    guest.reset();
    until(&guest, || scene.transfers.counts() == (4, 2));
    let mut said = guest.said();
    drop(guest);
    let guest = scene.guest(&connecting(&scene.image), "act=transfers");
    until(&guest, || scene.transfers.counts() == (6, 4));
    said.push_str(&guest.said());
    assert_eq!(
        said.matches("RESULT lease 10.0.2.15/24").count(),
        3,
        "{said}"
    );
    guest.kill();
    until(&guest, || {
        scene.transfers.counts() == (6, 6) && sandbox.sockets() == sockets
    });
    assert!(sandbox.terminate(LIMIT).success());
    let shown = sandbox.said();
    assert!(
        shown.contains("abandoned: 4,") && shown.contains("\n0 flows"),
        "{shown}"
    );
}
