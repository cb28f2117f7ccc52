//! A proxy that another one takes over from (`--handover`), on TUN devices of the tests' own in namespaces, as `net.rs`.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "support/example.rs"]
mod example;
#[path = "handover/failures.rs"]
mod failures;
#[path = "handover/load.rs"]
mod load;
#[path = "support/long.rs"]
mod long;
#[path = "support/namespace.rs"]
mod namespace;
#[path = "handover/peer.rs"]
mod peer;
#[path = "support/program.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod program;
#[path = "handover/reload.rs"]
mod reload;
#[path = "handover/scene.rs"]
mod scene;

use load::Size;
use long::times;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};
use rustix::process::Signal;
use scene::{LIMIT, Scene, exchange, says, until};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::thread;

/// Connections of all kinds across handovers, and new ones all the time.
fn survive(test: &str, queues: bool, v6: bool) {
    let Some(scene) = Scene::new(test, queues, v6) else {
        return;
    };
    let size = times(
        Size { busy: 40, idle: 40 },
        Size {
            busy: 300,
            idle: 700,
        },
    );
    let mut proxy = scene.proxy(&["--grace", "100"]);
    for _ in 0..times(1, 3) {
        let mut next = None;
        let seen = load::run(&scene, size, |progress| {
            progress.begun();
            progress.more();
            progress.mark();
            next = Some(scene.proxy(&["--grace", "100"]));
            says(&proxy, "handed over to process");
            progress.more();
        });
        println!("{test}: {size:?}: {}", seen.check());
        assert!(proxy.ended(LIMIT).success());
        let said = proxy.said();
        assert!(said.contains(", 0 reset at the end"), "{said}");
        proxy = next.unwrap();
        says(&proxy, "has drained and ended");
    }
    scene.echo();
    scene.serves();
    assert!(proxy.terminate(LIMIT).success());
}

#[test]
fn no_connection_is_lost_with_one_queue() {
    survive("no_connection_is_lost_with_one_queue", false, false);
}

#[test]
fn no_connection_is_lost_with_two_queues() {
    survive("no_connection_is_lost_with_two_queues", true, true);
}

/// A client whose handshake the former process has begun repeats its first segment: the answer is still that one's.
#[test]
fn a_handshake_ends_where_it_began() {
    let Some(scene) = Scene::plain("a_handshake_ends_where_it_began") else {
        return;
    };
    scene.echo();
    let former = scene.proxy(&["--grace", "100"]);
    // Of a host that does not answer.
    let syn = syn([10, 78, 1, 77], [10, 78, 1, 2]);
    let begin = || {
        scene.client.enter(|| {
            let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW)).unwrap();
            let to = SocketAddrV4::new([10, 78, 1, 2].into(), 0);
            sendto(&raw, &syn, SendFlags::empty(), &to).unwrap();
        });
        // What follows on the way has arrived, so that has.
        scene.serves();
    };
    let sockets = |proxy: &program::Program| {
        let before = proxy.said().matches("worker 0").count();
        proxy.signal(Signal::USR1);
        until("a table", || {
            proxy.said().matches("worker 0").count() > before
        });
        let said = proxy.said();
        said[said.rfind("LISTEN").unwrap()..].to_owned()
    };
    begin();
    assert!(sockets(&former).contains("10.78.1.77:7000"));
    let next = scene.proxy(&[]);
    says(&former, "handed over");
    begin();
    let table = sockets(&next);
    assert!(!table.contains("10.78.1.77"), "{table}");
}

/// The first segment of a TCP connection from port 7000 to port 80, in an IPv4 packet.
fn syn(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let mut tcp = vec![0; 20];
    tcp[..2].copy_from_slice(&7000_u16.to_be_bytes());
    tcp[3] = 80;
    (tcp[12], tcp[13]) = (0x50, 2);
    tcp[14] = 0xff;
    let pseudo = [&from[..], &to, &[0, 6, 0, 20], &tcp].concat();
    let words = pseudo.chunks(2);
    let sum: u32 = words
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let sum = !((folded & 0xffff) + (folded >> 16));
    tcp[16..18].copy_from_slice(&sum.to_be_bytes()[2..]);
    let mut packet = vec![0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0];
    packet.extend([&from[..], &to, &tcp].concat());
    packet
}

/// The former process has nothing left but bytes that the server takes only later: it ends after them.
#[test]
fn bytes_for_a_slow_server_are_not_lost() {
    const BYTES: usize = 1_500_000;
    let Some(scene) = Scene::plain("bytes_for_a_slow_server_are_not_lost") else {
        return;
    };
    let server = scene.listener();
    let mut former = scene.proxy(&["--grace", "100"]);
    let mut client = scene.connect().unwrap();
    let (mut slow, proxy) = server.accept().unwrap();
    assert!(proxy.port() < 33_280, "{proxy}");
    client.write_all(&vec![7; BYTES]).unwrap();
    let _next = scene.proxy(&[]);
    says(&former, "handed over");
    client.shutdown(Shutdown::Write).unwrap();
    slow.shutdown(Shutdown::Write).unwrap();
    // The client has seen the end, and its bytes are acknowledged: the rest is between the proxy and the server.
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    drop(client);
    // Its ports are others than those of the new one.
    let _other = scene.connect().unwrap();
    let (_, proxy) = server.accept().unwrap();
    assert!(proxy.port() >= 33_280, "{proxy}");
    slow.set_read_timeout(Some(LIMIT)).unwrap();
    let mut bytes = Vec::new();
    slow.read_to_end(&mut bytes).unwrap();
    assert!(
        bytes.len() == BYTES && bytes.iter().all(|byte| *byte == 7),
        "{}",
        bytes.len()
    );
    assert!(former.ended(LIMIT).success());
}

/// Its time is its own, whatever the new one does.
#[test]
fn the_former_ends_at_its_deadline_though_the_new_one_stands_still() {
    let test = "the_former_ends_at_its_deadline_though_the_new_one_stands_still";
    let Some(scene) = Scene::plain(test) else {
        return;
    };
    scene.echo();
    let mut former = scene.proxy(&["--grace", "0.5"]);
    let mut client = scene.connect().unwrap();
    exchange(&mut client).unwrap();
    let mut next = scene.proxy(&["--grace", "0.5"]);
    next.signal(Signal::STOP);
    assert!(former.ended(LIMIT).success());
    assert!(
        former.said().contains(", 1 reset at the end"),
        "{}",
        former.said()
    );
    next.signal(Signal::CONT);
    says(&next, "has drained and ended");
    // It was reset, or is now.
    assert!(exchange(&mut client).is_err());
    scene.serves();
    assert!(next.terminate(LIMIT).success());
}

/// The new one is ended at once: its connections end, those of the former one do not, and it accepts none.
#[test]
fn the_former_does_not_come_back() {
    let Some(scene) = Scene::plain("the_former_does_not_come_back") else {
        return;
    };
    scene.echo();
    let mut former = scene.proxy(&["--grace", "100"]);
    let mut old = scene.connect().unwrap();
    exchange(&mut old).unwrap();
    let mut next = scene.proxy(&["--grace", "100"]);
    says(&former, "handed over");
    exchange(&mut old).unwrap();
    let mut new = scene.connect().unwrap();
    exchange(&mut new).unwrap();
    next.signal(Signal::TERM);
    says(&next, "stopping");
    // Still passed on.
    exchange(&mut old).unwrap();
    exchange(&mut new).unwrap();
    assert_eq!(next.terminate(LIMIT).code(), Some(128 + 15));
    says(&former, "no process accepts");
    exchange(&mut old).unwrap();
    assert!(exchange(&mut new).is_err());
    assert!(scene.connect().is_err());
    // A third one may take over from it now.
    let mut third = scene.proxy(&[]);
    scene.serves();
    exchange(&mut old).unwrap();
    drop(old);
    assert!(former.ended(LIMIT).success());
    scene.serves();
    assert!(third.terminate(LIMIT).success());
}

/// A process that drains after a signal can be taken over from, too.
#[test]
fn one_that_was_stopped_can_be_taken_over_from() {
    let Some(scene) = Scene::plain("one_that_was_stopped_can_be_taken_over_from") else {
        return;
    };
    scene.echo();
    let mut former = scene.proxy(&["--grace", "100"]);
    let mut old = scene.connect().unwrap();
    exchange(&mut old).unwrap();
    former.signal(Signal::TERM);
    until("the end of the listener", || scene.connect().is_err());
    let _next = scene.proxy(&[]);
    scene.serves();
    exchange(&mut old).unwrap();
    drop(old);
    assert!(former.ended(LIMIT).success());
}

/// A third one waits until the first has drained; the message says so.
#[test]
fn a_third_process_is_refused_while_the_first_drains() {
    let Some(scene) = Scene::plain("a_third_process_is_refused_while_the_first_drains") else {
        return;
    };
    scene.echo();
    let mut first = scene.proxy(&["--grace", "100"]);
    let mut old = scene.connect().unwrap();
    exchange(&mut old).unwrap();
    let second = scene.proxy(&[]);
    says(&first, "handed over");
    let said = scene.failing(&scene.socket(), &[]);
    assert!(
        said.contains("which still drains: try again when"),
        "{said}"
    );
    exchange(&mut old).unwrap();
    drop(old);
    assert!(first.ended(LIMIT).success());
    says(&second, "has drained and ended");
    let mut third = scene.proxy(&[]);
    scene.serves();
    assert!(third.terminate(LIMIT).success());
}

/// Neither notes nor totals can be written: signals, the handover and the end need neither.
#[test]
fn full_outputs_stop_nothing() {
    let Some(scene) = Scene::plain("full_outputs_stop_nothing") else {
        return;
    };
    scene.echo();
    let start = || {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = std::process::Command::new(example::path("proxy"));
        scene.arguments(&mut command, &scene.socket(), &["--grace", "0.2"]);
        command.stdout(writer.try_clone().unwrap());
        command.stderr(writer.try_clone().unwrap());
        let child = command.spawn().unwrap();
        (Killed(child), reader, writer)
    };
    let fill = |writer: &std::io::PipeWriter| {
        // Opened once more, so that only this one does not wait.
        let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
        let flags = OFlags::WRONLY | OFlags::NONBLOCK;
        let writer = rustix::fs::open(path, flags, Mode::empty()).unwrap();
        while rustix::io::write(&writer, &[b'x'; 4096]).is_ok() {}
        while rustix::io::write(&writer, b"x").is_ok() {}
    };
    let (mut former, _reader, writer) = start();
    until("it serves", || scene.connect().is_ok());
    fill(&writer);
    let mut old = scene.connect().unwrap();
    exchange(&mut old).unwrap();
    let (mut next, _other, writer) = start();
    // It ends by its deadline, without totals.
    former.ended();
    fill(&writer);
    scene.serves();
    // And so does one that is stopped.
    rustix::process::kill_process(next.pid(), Signal::TERM).unwrap();
    next.ended();
}

/// A child that does not outlive its test.
struct Killed(std::process::Child);

impl Killed {
    fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.0)
    }

    fn ended(&mut self) {
        until("its end", || self.0.try_wait().unwrap().is_some());
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Signals while the new process waits for the former one, which stands still.
#[test]
fn early_signals_do_not_end_the_new_one() {
    let Some(scene) = Scene::plain("early_signals_do_not_end_the_new_one") else {
        return;
    };
    scene.echo();
    let former = scene.proxy(&["--grace", "100"]);
    former.signal(Signal::STOP);
    let (started, next) = mpsc::channel();
    let mut next = thread::scope(|scope| {
        let scene = &scene;
        scope.spawn(move || {
            let mut command = std::process::Command::new(example::path("proxy"));
            scene.arguments(&mut command, &scene.socket(), &[]);
            started.send(Killed(command.spawn().unwrap())).unwrap();
        });
        next.recv_timeout(LIMIT).unwrap()
    });
    // Its question waits: it has got so far.
    let path = scene.socket();
    until("its connection", || waits(&path));
    for signal in [Signal::HUP, Signal::USR1, Signal::STOP, Signal::CONT] {
        rustix::process::kill_process(next.pid(), signal).unwrap();
    }
    former.signal(Signal::CONT);
    says(&former, "handed over");
    scene.serves();
    assert!(next.0.try_wait().unwrap().is_none());
}

/// Whether a connection waits at a Unix socket: two lines have its path, the listener's and that of the connection.
fn waits(path: &std::path::Path) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let path = path.to_str().unwrap();
    sockets.lines().filter(|line| line.ends_with(path)).count() > 1
}

/// The former process ends while the new one waits for its answer.
#[test]
fn the_new_one_goes_on_when_the_former_has_ended() {
    let Some(scene) = Scene::plain("the_new_one_goes_on_when_the_former_has_ended") else {
        return;
    };
    scene.echo();
    let mut former = scene.proxy(&[]);
    former.signal(Signal::STOP);
    let path = scene.socket();
    thread::scope(|scope| {
        let started = scope.spawn(|| scene.proxy(&[]));
        until("its connection", || waits(&path));
        former.signal(Signal::KILL);
        assert!(!former.ended(LIMIT).success());
        let mut next = started.join().unwrap();
        scene.serves();
        assert!(next.terminate(LIMIT).success());
    });
}

/// Counters are served by the new process, at the address of the former one.
#[test]
fn metrics_move_with_it() {
    let Some(scene) = Scene::plain("metrics_move_with_it") else {
        return;
    };
    scene.echo();
    // A free port, which the kernel has given to this test.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = free.local_addr().unwrap();
    drop(free);
    let more = ["--grace", "100", "--metrics", &at.to_string()];
    let former = scene.proxy(&more);
    let scrape = || {
        let mut stream = std::net::TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    };
    let mut old = scene.connect().unwrap();
    exchange(&mut old).unwrap();
    assert!(scrape().contains("sosplice_clients_total 1"));
    let _next = scene.proxy(&more);
    says(&former, "handed over");
    for _ in 0..20 {
        assert!(scrape().contains("sosplice_clients_total 0"));
    }
}
