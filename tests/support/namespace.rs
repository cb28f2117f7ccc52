//! Network namespaces of a test's own, so that no packet leaves the machine and nothing of the
//! machine's configuration changes. Names carry the process id; a guard removes them.

use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

/// The same as [`available`], and whether these programs are there.
#[allow(dead_code, reason = "not every test needs other programs")]
pub(crate) fn available_with(test: &str, tools: &[&str]) -> bool {
    // Any option does: only those that are missing cannot be started.
    let missing = |tool: &&&str| Command::new(tool).arg("-V").output().is_err();
    match tools.iter().find(missing) {
        Some(tool) => {
            skip(test, &format!("needs {tool}"));
            false
        }
        None => available(test),
    }
}

/// Whether this process may make namespaces and TUN devices. If not, prints a message (see [`skip`]).
pub(crate) fn available(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    let driver = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .is_ok();
    let tool = Command::new("ip").arg("-V").output().is_ok();
    let available = root && driver && tool;
    if !available {
        skip(
            test,
            &format!("needs root ({root}), /dev/net/tun ({driver}) and ip ({tool})"),
        );
    }
    available
}

/// Prints why a test does not run, or fails it if `SOSPLICE_REQUIRE_NET=1` is set.
pub(crate) fn skip(test: &str, why: &str) {
    let required = std::env::var("SOSPLICE_REQUIRE_NET").is_ok_and(|value| value == "1");
    assert!(!required, "{test}: {why}");
    println!("{test}: skipped, {why}");
}

/// Runs a command; on failure panics with its output.
pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A network namespace that is deleted when dropped.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// A new one with a unique name, its loopback up.
    pub(crate) fn new(tag: &str) -> Namespace {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sosplice-{}-{count}-{tag}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Namespace { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// As `ip netns` lists it.
    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` inside.
    pub(crate) fn ip(&self, arguments: &str) {
        run(Command::new("ip")
            .args(["-n", &self.name])
            .args(arguments.split_whitespace()));
    }

    /// Makes a TUN device with IPv4 and IPv6 addresses (`10.x.y.z/24 fd00::1/64`), up.
    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) fn tun(&self, device: &str, addresses: &[&str], mtu: usize) {
        self.ip(&format!("tuntap add {device} mode tun"));
        self.set_up(device, addresses, mtu);
    }

    /// As [`tun`](Self::tun), a device that can have several queues.
    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) fn tun_queues(&self, device: &str, addresses: &[&str], mtu: usize) {
        self.ip(&format!("tuntap add {device} mode tun multi_queue"));
        self.set_up(device, addresses, mtu);
    }

    #[allow(dead_code, reason = "not every test needs it")]
    fn set_up(&self, device: &str, addresses: &[&str], mtu: usize) {
        for address in addresses {
            let no_dad = if address.contains(':') { "nodad" } else { "" };
            self.ip(&format!("addr add {address} dev {device} {no_dad}"));
        }
        self.ip(&format!("link set {device} mtu {mtu} txqueuelen 10000 up"));
    }

    /// Waits until packets sent into a device that a program has just opened arrive there. The kernel
    /// starts its queues a moment after the opening, and drops earlier packets; a connection would then
    /// wait a second for its next SYN.
    #[allow(dead_code, reason = "not every test needs it")]
    #[allow(clippy::disallowed_methods, reason = "`ip` waits for nothing")]
    pub(crate) fn wait_until_up(&self, device: &str) {
        // Each look takes a millisecond or more.
        for _ in 0..5000 {
            let show = Command::new("ip")
                .args(["-n", &self.name, "link", "show", device])
                .output()
                .unwrap();
            let show = String::from_utf8(show.stdout).unwrap();
            if show.contains("LOWER_UP") && !show.contains("state DOWN") {
                return;
            }
        }
        panic!("{device} is still down");
    }

    /// Runs `work` in a thread inside the namespace, e.g. to make sockets there.
    #[allow(dead_code, reason = "one test does not use it")]
    pub(crate) fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let file = File::open(format!("/run/netns/{}", self.name)).unwrap();
        thread::scope(|scope| {
            let inside = thread::Builder::new().spawn_scoped(scope, || {
                let kind = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(
                    rustix::fd::AsFd::as_fd(&file),
                    Some(kind),
                )
                .unwrap();
                work()
            });
            inside.unwrap().join().unwrap()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Ignored, so that the failure of a test is reported, not this one.
        Command::new("ip")
            .args(["netns", "del", &self.name])
            .status()
            .ok();
    }
}
