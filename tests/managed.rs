//! The example `proxy` under a service manager: notifications, the watchdog, passed descriptors, and its unit files. The
//! test stands in for the manager. Most need root, in namespaces as `net.rs`; threads are stopped with `ptrace(2)` by
//! `python3`, and `systemd-analyze` reads the units.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "support/example.rs"]
mod example;
#[path = "support/namespace.rs"]
mod namespace;
#[path = "support/program.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod program;

use namespace::{Namespace, available_with, skip};
use program::{Program, output};
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use sosplice::clock::{Clock, SystemClock};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);
const FRONT: &str = "10.79.1.2:80";
const BACKEND: &str = "10.79.1.1:8080";
/// Its quarter is the time between pings.
const WATCHDOG: &str = "WATCHDOG_USEC=400000";

/// Stops one thread of another process until its standard input ends.
const STOP: &str = r"
import ctypes, os, sys
SEIZE, INTERRUPT, WALL = 0x4206, 0x4207, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
thread = int(sys.argv[1])
for request in SEIZE, INTERRUPT:
    if libc.ptrace(request, thread, None, None):
        sys.exit(os.strerror(ctypes.get_errno()))
os.waitpid(thread, WALL)
print('stopped', flush=True)
sys.stdin.read()
";

/// Passes a device, a listening socket, and one that the proxy does not know; no capability is left.
const PASS: &str = r"
import fcntl, os, socket, struct, sys
device = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(device, 0x400454ca, struct.pack('16sH22x', b't0', 0x5001))
sockets = socket.create_server(('127.0.0.1', 9100)), socket.socket()
high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 50) for fd in (device, *(one.fileno() for one in sockets))]
for number, fd in enumerate(high, 3):
    os.dup2(fd, number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='3', LISTEN_FDNAMES='t0:metrics:other')
os.dup2(1, 2)
os.execvp('setpriv', ['setpriv', '--bounding-set=-all', '--inh-caps=-all', *sys.argv[1:]])
";

fn until(mut condition: impl FnMut() -> bool) {
    let end = SystemClock.now() + LIMIT;
    while !condition() {
        assert!(SystemClock.now() < end, "it does not come true");
        thread::yield_now();
    }
}

/// The test as the service manager.
#[derive(Debug)]
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Drop for Manager {
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok();
    }
}

impl Manager {
    fn new(namespace: &Namespace) -> Manager {
        let path = std::env::temp_dir().join(format!("{}-notify", namespace.name()));
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Manager { socket, path }
    }

    fn next(&self) -> String {
        self.next_with("")
    }

    /// The next one with this text; those before are not of interest.
    fn next_with(&self, text: &str) -> String {
        let end = SystemClock.now() + LIMIT;
        let mut last = String::new();
        loop {
            let mut message = [0; 4096];
            let received = self.socket.recv(&mut message).ok();
            assert!(
                received.is_some() && SystemClock.now() < end,
                "{text}: no such notification, the last one is {last}"
            );
            last = String::from_utf8_lossy(&message[..received.unwrap()]).into_owned();
            if last.contains(text) {
                return last;
            }
        }
    }

    /// Waits until this was the last one for four times as long as the watchdog would wait.
    fn falls_silent_after(&self, expected: &str) {
        let end = SystemClock.now() + LIMIT;
        let mut last = String::new();
        let quiet = Duration::from_millis(1600);
        self.socket.set_read_timeout(Some(quiet)).unwrap();
        loop {
            let mut message = [0; 4096];
            match self.socket.recv(&mut message) {
                Ok(len) => last = String::from_utf8_lossy(&message[..len]).into_owned(),
                Err(_) if last == expected => break,
                Err(_) => {}
            }
            assert!(
                SystemClock.now() < end,
                "{expected} is not the last one, but {last}"
            );
        }
        self.socket.set_read_timeout(Some(LIMIT)).unwrap();
    }
}

struct Scene {
    /// Kernel, clients and backend; behind the device is the proxy.
    namespace: Namespace,
    manager: Manager,
    config: PathBuf,
}

impl Drop for Scene {
    fn drop(&mut self) {
        fs::remove_file(&self.config).ok();
    }
}

impl Scene {
    fn new(test: &str) -> Option<Scene> {
        if !available_with(test, &["bash", "python3", "setpriv"]) {
            return None;
        }
        let namespace = Namespace::new("m");
        namespace.tun("t0", &["10.79.1.1/24"], 1500);
        let manager = Manager::new(&namespace);
        let config = manager.path.with_extension("toml");
        fs::write(&config, format!("[[backend]]\naddress = \"{BACKEND}\"\n")).unwrap();
        // It sends back what it gets.
        let listener = namespace.enter(|| TcpListener::bind(BACKEND)).unwrap();
        let serve = move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let echo = move || std::io::copy(&mut &stream, &mut &stream).ok();
                thread::Builder::new().spawn(echo).unwrap();
            }
        };
        thread::Builder::new().spawn(serve).unwrap();
        Some(Scene {
            namespace,
            manager,
            config,
        })
    }

    /// Starts the proxy with these variables; its complaints are read too.
    fn proxy(&self, variables: &[&str], more: &[&str]) -> Program {
        let variables = variables.join(" ");
        let line = format!("{variables} exec \"$0\" \"$@\" 2>&1");
        let mut command = Command::new("bash");
        command.args(["-c", &line]).arg(example::path("proxy"));
        let tun = format!("t0@{}=10.79.1.2/24", self.namespace.name());
        command.args(["--tun", &tun, "--listen", FRONT, "--config"]);
        command.arg(&self.config).args(more);
        let proxy = Program::start(command, "listening");
        self.namespace.wait_until_up("t0");
        proxy
    }

    fn notify(&self) -> String {
        format!("NOTIFY_SOCKET={}", self.manager.path.display())
    }

    fn connect(&self) -> TcpStream {
        let stream = self.namespace.enter(|| TcpStream::connect(FRONT)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// Bytes pass through the proxy.
    fn exchange(&self) {
        exchange(&mut self.connect());
    }
}

fn exchange(stream: &mut TcpStream) {
    stream.write_all(b"there and back").unwrap();
    let mut answer = [0; 14];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"there and back");
}

fn monotonic_micros() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec * 1_000_000 + now.tv_nsec / 1000).unwrap()
}

#[test]
fn the_manager_is_notified_from_start_to_end() {
    let Some(scene) = Scene::new("the_manager_is_notified_from_start_to_end") else {
        return;
    };
    let manager = &scene.manager;
    let notify = scene.notify();
    let mut proxy = scene.proxy(&[&notify, WATCHDOG, "WATCHDOG_PID=$$"], &["--grace", "60"]);
    assert_eq!(manager.next(), "READY=1\n");
    let mut stream = scene.connect();
    exchange(&mut stream);
    let status = manager.next_with("STATUS=serving: 1 connections");
    assert!(status.contains("0 waiting; 1 of 1 backends up"), "{status}");
    for _ in 0..3 {
        manager.next_with("WATCHDOG=1\n");
    }
    for right in [true, false] {
        if !right {
            fs::write(&scene.config, "backends = none").unwrap();
        }
        let before = monotonic_micros();
        proxy.signal(Signal::HUP);
        let reloading = manager.next_with("RELOADING=1\n");
        let time = reloading
            .lines()
            .find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
        let time: u64 = time.unwrap().parse().unwrap();
        assert!((before..=monotonic_micros()).contains(&time), "{reloading}");
        manager.next_with("READY=1\n");
    }
    // The log is written by a thread of its own.
    until(|| proxy.said().contains("renewed: ") && proxy.said().contains("nothing is changed"));
    // It has not noticed any of this.
    exchange(&mut stream);
    proxy.signal(Signal::TERM);
    let stopping = manager.next_with("STOPPING=1\n");
    assert!(
        stopping.contains("EXTEND_TIMEOUT_USEC=20000000\n"),
        "{stopping}"
    );
    manager.next_with("STATUS=stopping: 1 connections");
    for _ in 0..3 {
        let more = manager.next_with("EXTEND_TIMEOUT_USEC=20000000\n");
        assert!(more.contains("WATCHDOG=1\n"), "{more}");
    }
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert!(proxy.ended(LIMIT).success());
}

/// The threads of a program with this name.
fn threads(program: &Program, name: &str) -> Vec<String> {
    let folder = format!("/proc/{}/task", program.id());
    let all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let named = all.filter(|entry| {
        let comm = fs::read_to_string(entry.path().join("comm"));
        comm.is_ok_and(|comm| comm.trim() == name)
    });
    named
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_thread_that_hangs_stops_the_pings() {
    let Some(scene) = Scene::new("a_thread_that_hangs_stops_the_pings") else {
        return;
    };
    let manager = &scene.manager;
    let queue = format!(
        "t0 in network namespace {}: queue 0",
        scene.namespace.name()
    );
    for (dispatch, thread, silent) in [
        ("direct", "receive", &*queue),
        ("worker", "sosplice:driver", &*queue),
        ("worker", "so_splice:0", "worker 0"),
    ] {
        let arguments = ["--dispatch", dispatch, "--workers", "1"];
        let mut proxy = scene.proxy(&[&scene.notify(), WATCHDOG], &arguments);
        manager.next_with("READY=1\n");
        let mut stream = scene.connect();
        exchange(&mut stream);
        manager.next_with("WATCHDOG=1\n");
        let found = threads(&proxy, thread);
        assert_eq!(found.len(), 1, "{thread}");
        let mut stop = Command::new("python3");
        stop.args(["-c", STOP, &found[0]]).stdin(Stdio::piped());
        let stopped = Program::start(stop, "stopped");
        manager.falls_silent_after(&format!("STATUS=no progress: {silent}\n"));
        // Others are alive, also that which notifies.
        proxy.signal(Signal::HUP);
        let next = [manager.next(), manager.next()];
        assert!(next[0].starts_with("RELOADING=1\n"), "{next:?}");
        assert_eq!(next[1], "READY=1\n");
        drop(stopped);
        let next = manager.next();
        assert!(next.starts_with("WATCHDOG=1\nSTATUS=serving"), "{next}");
        exchange(&mut stream);
        drop(stream);
        assert!(proxy.terminate(LIMIT).success());
        let said = proxy.said();
        assert!(
            said.contains(&format!("error: no progress: {silent}")),
            "{said}"
        );
    }
}

#[test]
fn a_manager_that_does_not_read_holds_nothing() {
    let Some(scene) = Scene::new("a_manager_that_does_not_read_holds_nothing") else {
        return;
    };
    // A ping each millisecond.
    let mut proxy = scene.proxy(&[&scene.notify(), "WATCHDOG_USEC=4000"], &[]);
    let other = UnixDatagram::unbound().unwrap();
    other.set_nonblocking(true).unwrap();
    until(|| {
        let sent = other.send_to(b"", &scene.manager.path);
        sent.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    });
    for _ in 0..3 {
        proxy.signal(Signal::HUP);
        scene.exchange();
    }
    until(|| proxy.said().contains("renewed: "));
    assert!(proxy.terminate(LIMIT).success());
    // One that is not there.
    let mut proxy = scene.proxy(&["NOTIFY_SOCKET=/nonexistent/notify", WATCHDOG], &[]);
    scene.exchange();
    until(|| proxy.said().contains("cannot notify the service manager"));
    assert!(proxy.terminate(LIMIT).success());
    assert_eq!(proxy.said().matches("cannot notify").count(), 1);
}

#[test]
fn descriptors_are_passed_by_name() {
    let Some(scene) = Scene::new("descriptors_are_passed_by_name") else {
        return;
    };
    let mut command = Command::new("ip");
    command.args([
        "netns",
        "exec",
        scene.namespace.name(),
        "python3",
        "-c",
        PASS,
    ]);
    command.arg(example::path("proxy"));
    command.args([
        "--tun",
        "t0=10.79.1.2/24",
        "--listen",
        FRONT,
        "--backend",
        BACKEND,
    ]);
    let mut proxy = Program::start(command, "listening");
    scene.namespace.wait_until_up("t0");
    scene.exchange();
    let mut scrape = scene
        .namespace
        .enter(|| TcpStream::connect("127.0.0.1:9100"))
        .unwrap();
    scrape.set_read_timeout(Some(LIMIT)).unwrap();
    scrape.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    scrape.read_to_string(&mut page).unwrap();
    assert!(page.contains("sosplice_clients_total 1\n"), "{page}");
    until(|| {
        proxy
            .said()
            .contains("warning: descriptor 5 (other) is not used")
    });
    assert!(proxy.terminate(LIMIT).success());
}

/// The complaints of a proxy, for a device that does not exist, that gets this descriptor as its standard input.
fn refused(variables: &str, input: impl Into<OwnedFd>, more: &[&str]) -> String {
    let line = format!("{variables} exec \"$0\" \"$@\" 3<&0 </dev/null");
    let mut command = Command::new("sh");
    command
        .args(["-c", &line])
        .arg(example::path("proxy"))
        .stdin(Stdio::from(input.into()));
    command.args(["--tun", "nosuchtun=10.79.1.2/24", "--listen", FRONT]);
    command.args(["--backend", BACKEND]).args(more);
    let output = command.output().unwrap();
    let complaints = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{variables}: {complaints}");
    complaints
}

#[test]
fn what_is_malformed_is_ignored_or_explained() {
    let null = || fs::File::open("/dev/null").unwrap();
    for (variables, expected) in [
        ("LISTEN_PID=$$ LISTEN_FDS=many", "invalid LISTEN_FDS"),
        ("LISTEN_PID=$$ LISTEN_FDS=-1", "invalid LISTEN_FDS"),
        (
            "LISTEN_PID=$$ LISTEN_FDS=40",
            "which are to be open: Bad file",
        ),
        (
            "LISTEN_PID=$$ LISTEN_FDS=4000000000",
            "which are to be open",
        ),
        ("LISTEN_PID=$$ LISTEN_FDS=4294967295", "overflow"),
        ("LISTEN_PID=me LISTEN_FDS=1", "invalid LISTEN_PID"),
        ("WATCHDOG_USEC=0", "give microseconds, at least 1"),
        ("WATCHDOG_USEC=soon", "give microseconds, at least 1"),
        (
            "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=nosuchtun",
            "the passed descriptor with the name nosuchtun: descriptor 3 is not a TUN",
        ),
    ] {
        let complaints = refused(variables, null(), &[]);
        assert!(
            complaints.starts_with("error: "),
            "{variables}: {complaints}"
        );
        assert!(complaints.contains(expected), "{variables}: {complaints}");
    }
    let queues = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=nosuchtun";
    let complaints = refused(queues, null(), &["--queues", "2"]);
    assert!(
        complaints.contains("give one for each of the 2 queue(s)"),
        "{complaints}"
    );
    // What is not for this process, or empty, is as if it was not there: the device is missed.
    for variables in [
        "NOTIFY_SOCKET= WATCHDOG_USEC= LISTEN_FDS= LISTEN_PID=",
        "LISTEN_PID=1 LISTEN_FDS=1 LISTEN_FDNAMES=a:b:c WATCHDOG_USEC=1000 WATCHDOG_PID=1",
        "LISTEN_PID=$$ LISTEN_FDS=0 LISTEN_FDNAMES=",
        "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=a:b:c",
    ] {
        let complaints = refused(variables, null(), &[]);
        assert!(
            complaints.contains("nosuchtun"),
            "{variables}: {complaints}"
        );
        assert!(!complaints.contains("LISTEN"), "{variables}: {complaints}");
    }
}

#[test]
fn a_passed_socket_for_metrics_listens() {
    let Some(scene) = Scene::new("a_passed_socket_for_metrics_listens") else {
        return;
    };
    let tun = format!("t0@{}=10.79.1.2/24", scene.namespace.name());
    let refused = |input: OwnedFd, more: &[&str]| {
        let line = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=metrics exec \"$0\" \"$@\" 3<&0";
        let mut command = Command::new("sh");
        command
            .args(["-c", line])
            .arg(example::path("proxy"))
            .stdin(Stdio::from(input));
        command
            .args(["--tun", &tun, "--listen", FRONT, "--backend", BACKEND])
            .args(more);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let path = scene.manager.path.with_extension("listener");
    let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
    fs::remove_file(path).unwrap();
    let file = fs::File::open("/dev/null").unwrap();
    for other in [udp.into(), unix.into(), file.into()] {
        let complaints = refused(other, &[]);
        let expected = "descriptor 3 (metrics) is no listening TCP socket: use ListenStream=";
        assert!(complaints.contains(expected), "{complaints}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let complaints = refused(listener.into(), &["--metrics", "127.0.0.1:0"]);
    assert!(
        complaints.contains("and a passed socket for them: give one"),
        "{complaints}"
    );
}

/// The unit files, with the path of the program as it is here.
fn units(place: &Path) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/proxy/systemd");
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let units = files.filter(|path| path.extension().is_some_and(|kind| kind != "sysusers"));
    let program = example::path("proxy").display().to_string();
    let copied = units.map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        let copy = place.join(path.file_name().unwrap());
        fs::write(
            &copy,
            text.replace("/usr/local/bin/sosplice-proxy", &program),
        )
        .unwrap();
        copy
    });
    copied.collect()
}

#[test]
fn unit_files_are_right() {
    let tool = "systemd-analyze";
    if Command::new(tool).arg("--version").output().is_err() {
        skip("unit_files_are_right", "needs systemd-analyze");
        return;
    }
    let place = std::env::temp_dir().join(format!("sosplice-units-{}", std::process::id()));
    fs::create_dir_all(&place).unwrap();
    let units = units(&place);
    assert_eq!(units.len(), 3);
    let verify = Command::new(tool)
        .args(["verify", "--man=no"])
        .args(&units)
        .output()
        .unwrap();
    let complaints = String::from_utf8(verify.stderr).unwrap();
    assert!(
        verify.status.success() && complaints.is_empty(),
        "{complaints}"
    );
    // 0 is not exposed, 100 is without any protection.
    let mut security = Command::new(tool);
    security.args(["security", "--no-pager", "--offline=yes", "--threshold=20"]);
    output(security.arg(place.join("sosplice-proxy.service")));
    fs::remove_dir_all(place).unwrap();
}
