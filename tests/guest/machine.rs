//! QEMU, and what it boots.

use crate::namespace;
use crate::program::{self, Program};
use rustix::process::Signal;
use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Kernel and first file system of the guest, in a folder that is removed at the end.
pub(crate) struct Image(PathBuf);

impl Image {
    pub(crate) fn new(test: &str) -> Option<Image> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let programs = ["qemu-system-x86_64", "cpio", "/bin/busybox"];
        let missing = |program: &&str| Command::new(program).arg("--help").output().is_err();
        if !root.join("target/guest/boot").exists() || programs.iter().any(missing) {
            let why = "needs QEMU, cpio, busybox and a kernel in target/guest: see .ci/net";
            namespace::skip(test, why);
            return None;
        }
        let folder = env::temp_dir().join(format!("sosplice-{}-{test}", std::process::id()));
        program::output(Command::new(root.join("tests/guest/image")).arg(&folder));
        Some(Image(folder))
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// An emulated processor, which every host can run. KVM is faster where it works, but whether it does, is seen only when
/// a guest boots or does not (nested, for example): so it is asked for by SOSPLICE_KVM=1.
fn processor() -> [&'static str; 4] {
    match env::var_os("SOSPLICE_KVM").is_some_and(|value| value == "1") {
        true => ["-accel", "kvm", "-cpu", "host"],
        false => ["-accel", "tcg", "-cpu", "max"],
    }
}

/// A running machine.
pub(crate) struct Machine {
    pub(crate) qemu: Program,
    monitor: PathBuf,
}

impl Machine {
    /// Boots, by a command that begins in the namespace. `kernel` are further options of the command line: one that
    /// is reset boots again.
    pub(crate) fn boot(mut command: Command, image: &Image, netdev: &str, kernel: &str) -> Machine {
        let monitor = PathBuf::from(image.path("monitor"));
        command.args(["-M", "q35", "-m", "256", "-nodefaults", "-no-user-config"]);
        command.args(processor());
        command.args(["-display", "none", "-serial", "stdio"]);
        command.arg("-monitor");
        command.arg(format!("unix:{},server=on,wait=off", monitor.display()));
        command.args(["-kernel", &image.path("kernel")]);
        command.args(["-initrd", &image.path("initramfs")]);
        command.arg("-append");
        command.arg(format!("console=ttyS0 loglevel=6 tsc=unstable {kernel}"));
        command.args(["-device", "virtio-net-pci,netdev=n,romfile="]);
        command.args(["-netdev", netdev]);
        command.stdin(Stdio::null());
        let qemu = Program::start(command, "Linux version");
        Machine { qemu, monitor }
    }

    pub(crate) fn said(&self) -> String {
        self.qemu.said()
    }

    /// As a failure of the host does.
    pub(crate) fn kill(&self) {
        self.qemu.signal(Signal::KILL);
    }

    /// As its reset button does.
    pub(crate) fn reset(&self) {
        let mut monitor = UnixStream::connect(&self.monitor).unwrap();
        monitor.write_all(b"system_reset\n").unwrap();
        monitor.shutdown(Shutdown::Write).unwrap();
        // Until it has read that.
        let mut answers = String::new();
        monitor.read_to_string(&mut answers).unwrap();
    }
}
