//! `examples/sandbox` with a real guest: Debian's cloud kernel and busybox in QEMU, without KVM. All is in a
//! namespace that the test makes, so that nothing leaves the machine. Needs root, QEMU, and what `.ci/net` puts into
//! `target/guest`; otherwise skipped with a message.
//!
//! ```text
//!   namespace: QEMU (guest) --- Unix socket --- sandbox --- loopback with all of 10.99/16: servers of the test
//! ```
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "support/example.rs"]
mod example;
#[path = "support/namespace.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod namespace;
#[path = "support/program.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod program;

use namespace::{Namespace, available};
use program::Program;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(200);
const COMPARED: usize = 5_000_000;

const MODULES: [&str; 8] = [
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
];

/// The only file in a folder whose name begins so.
fn find(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.map_while(Result::ok);
    let mut paths = entries.map(|entry| entry.path());
    paths.find(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    })
}

/// Kernel and first file system of the guest, in a folder that is removed at the end.
struct Image {
    kernel: PathBuf,
    folder: PathBuf,
}

impl Image {
    fn new(test: &str) -> Option<Image> {
        let system = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest");
        let programs = ["qemu-system-x86_64", "cpio"];
        let missing = |program: &&str| Command::new(program).arg("--version").output().is_err();
        let kernel = find(&system.join("boot"), "vmlinuz");
        let (Some(kernel), None) = (kernel, programs.iter().find(|program| missing(program)))
        else {
            namespace::skip(
                test,
                "needs QEMU, cpio and a kernel in target/guest: see .ci/net",
            );
            return None;
        };
        let folder = std::env::temp_dir().join(format!("sosplice-{}-{test}", std::process::id()));
        let root = folder.join("root");
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::create_dir_all(root.join("modules")).unwrap();
        let modules = find(&system.join("lib/modules"), "")
            .unwrap()
            .join("kernel");
        for module in MODULES {
            let path = modules.join(module);
            fs::copy(&path, root.join("modules").join(path.file_name().unwrap())).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for script in ["init", "udhcpc.script"] {
            let from = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tests/guest")
                .join(script);
            fs::copy(from, root.join(script)).unwrap();
            fs::set_permissions(root.join(script), PermissionsExt::from_mode(0o755)).unwrap();
        }
        let archive = "find . | cpio --quiet -o -H newc > ../initramfs";
        program::output(Command::new("sh").args(["-c", archive]).current_dir(&root));
        Some(Image { kernel, folder })
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// Bytes without a pattern that a lost, repeated or moved packet would leave unchanged.
fn bytes() -> Vec<u8> {
    let byte = |at: u32| u8::try_from(at.wrapping_mul(2_654_435_761) >> 24).unwrap();
    (0..u32::try_from(COMPARED).unwrap()).map(byte).collect()
}

/// Serves each connection in a thread.
fn serve(inside: &Namespace, port: u16, work: fn(TcpStream) -> std::io::Result<()>) {
    let listener = inside.enter(|| TcpListener::bind(("::", port)).unwrap());
    let run = move || {
        for stream in listener.incoming().map_while(Result::ok) {
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            // An error shows in what the guest reports.
            thread::Builder::new()
                .spawn(move || work(stream).ok())
                .unwrap();
        }
    };
    thread::Builder::new().spawn(run).unwrap();
}

fn download(stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(&stream).lines();
    while !lines.next().unwrap_or(Ok(String::new()))?.is_empty() {}
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {COMPARED}\r\n\r\n");
    (&stream).write_all(head.as_bytes())?;
    (&stream).write_all(&bytes())
}

/// Answers when the client has closed its direction.
fn upload(mut stream: TcpStream) -> std::io::Result<()> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    let verdict = if all == bytes() { "equal" } else { "different" };
    stream.write_all(verdict.as_bytes())
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    stream.write_all(&all)?;
    stream.shutdown(Shutdown::Write)
}

/// A name server that gives each name the address 10.99.7.7, and no IPv6 address.
fn name_server(inside: &Namespace) {
    let socket = inside.enter(|| UdpSocket::bind("10.99.0.53:53").unwrap());
    let run = move || {
        let mut query = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut query) {
            let mut answer = query[..len].to_vec();
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            if answer[len - 3] == 1 {
                answer[7] = 1;
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 99, 7, 7]);
            }
            socket.send_to(&answer, from).ok();
        }
    };
    thread::Builder::new().spawn(run).unwrap();
}

struct Scene {
    inside: Namespace,
    image: Image,
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
        serve(&inside, 80, download);
        serve(&inside, 81, upload);
        serve(&inside, 82, echo);
        name_server(&inside);
        Some(Scene { inside, image })
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", self.inside.name()])
            .arg(program);
        command
    }

    fn sandbox(&self, transport: &str, socket: &str) -> Program {
        let mut command = self.command(example::path("sandbox"));
        command.args([transport, &self.image.path(socket), "--dns", "10.99.0.53"]);
        command.args(["--forward", "127.0.0.1:8080:80"]);
        Program::start(command, "the gateway")
    }

    fn guest(&self, netdev: &str) -> Program {
        let mut command = self.command("qemu-system-x86_64");
        command.args([
            "-accel",
            "tcg",
            "-M",
            "q35",
            "-cpu",
            "max",
            "-m",
            "256",
            "-nodefaults",
        ]);
        command.args([
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-serial",
            "stdio",
        ]);
        command.arg("-kernel").arg(&self.image.kernel);
        command.args(["-initrd", &self.image.path("initramfs")]);
        command.args(["-append", "console=ttyS0 panic=-1 tsc=unstable"]);
        command.args([
            "-device",
            "virtio-net-pci,netdev=n,romfile=",
            "-netdev",
            netdev,
        ]);
        command.stdin(Stdio::null());
        Program::start(command, "Linux version")
    }

    /// Whether a host program reaches a program in the guest, and gets its answer.
    fn forwarded(&self) -> std::io::Result<bool> {
        let mut stream = self.inside.enter(|| TcpStream::connect("127.0.0.1:8080"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(b"from the host")?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer == "from the guest\n")
    }
}

/// Waits for a line of the guest.
fn wait_for(guest: &Program, line: &str) {
    until(guest, || guest.said().contains(line));
}

/// Waits for something that the guest does.
#[allow(
    clippy::disallowed_methods,
    reason = "between looks at what another program does"
)]
fn until(guest: &Program, done: impl Fn() -> bool) {
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

/// Starts all, restarts the sandbox if asked, and compares the guest's report.
fn boot(test: &str, transport: &str, netdev: impl Fn(&Image) -> String, restart: bool) {
    let Some(scene) = Scene::new(test) else {
        return;
    };
    let mut sandbox = scene.sandbox(transport, "net");
    let mut guest = scene.guest(&netdev(&scene.image));
    wait_for(&guest, "GUEST LISTENS");
    // The guest may not listen yet.
    until(&guest, || scene.forwarded().unwrap_or(false));
    wait_for(&guest, "GUEST RESTARTS");
    if restart {
        sandbox.terminate(LIMIT);
        drop(sandbox);
        sandbox = scene.sandbox(transport, "net");
    }
    guest.ended(LIMIT);
    let said = guest.said();
    let expected = BTreeMap::from([
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
        ("after-restart", ""),
    ]);
    assert_eq!(results(&said), expected, "{said}");
    assert!(sandbox.terminate(LIMIT).success());
    assert!(
        sandbox.said().contains("malformed: 0"),
        "{}",
        sandbox.said()
    );
}

#[test]
fn a_guest_that_listens() {
    let netdev = |image: &Image| {
        let path = image.path("net");
        format!("stream,id=n,server=on,addr.type=unix,addr.path={path}")
    };
    boot("a_guest_that_listens", "--connect", netdev, true);
}

#[test]
fn a_guest_that_connects() {
    let netdev = |image: &Image| {
        let path = image.path("net");
        format!("stream,id=n,server=off,addr.type=unix,addr.path={path}")
    };
    boot("a_guest_that_connects", "--listen", netdev, false);
}

#[test]
fn a_guest_over_datagrams() {
    let netdev = |image: &Image| {
        let (here, there) = (image.path("guest"), image.path("net"));
        format!("dgram,id=n,local.type=unix,local.path={here},remote.type=unix,remote.path={there}")
    };
    boot("a_guest_over_datagrams", "--datagrams", netdev, true);
}
