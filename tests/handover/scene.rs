//! Two networks of a test, a server that sends back all it receives, and proxies between them.

use crate::example;
use crate::namespace::{Namespace, available_with};
use crate::program::Program;
use sosplice::clock::{Clock, SystemClock};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Where clients connect to, and the server, in IPv4 and in IPv6.
const FRONTS: [&str; 2] = ["10.78.1.2:80", "[fd78:1::2]:80"];
const BACKS: [&str; 2] = ["10.78.2.1:8080", "[fd78:2::1]:8080"];
/// Limit of everything that is waited for.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Scene {
    pub(crate) client: Namespace,
    pub(crate) server: Namespace,
    place: PathBuf,
    /// Devices with two queues.
    queues: bool,
    v6: bool,
    _turn: MutexGuard<'static, ()>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.place).ok();
    }
}

impl Scene {
    /// One with single queues and IPv4.
    pub(crate) fn plain(test: &str) -> Option<Scene> {
        Scene::new(test, false, false)
    }

    pub(crate) fn new(test: &str, queues: bool, v6: bool) -> Option<Scene> {
        static TURN: Mutex<()> = Mutex::new(());
        if !available_with(test, &["bash"]) {
            return None;
        }
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let client = Namespace::new("c");
        let server = Namespace::new("s");
        for (namespace, device, addresses) in [
            (&client, "tc", ["10.78.1.1/24", "fd78:1::1/64"]),
            (&server, "ts", ["10.78.2.1/24", "fd78:2::1/64"]),
        ] {
            match queues {
                true => namespace.tun_queues(device, &addresses, 1500),
                false => namespace.tun(device, &addresses, 1500),
            }
        }
        let place = std::env::temp_dir().join(format!("sosplice-{}", client.name()));
        fs::create_dir_all(&place).unwrap();
        Some(Scene {
            client,
            server,
            place,
            queues,
            v6,
            _turn: turn,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    pub(crate) fn front(&self) -> SocketAddr {
        FRONTS[usize::from(self.v6)].parse().unwrap()
    }

    pub(crate) fn back(&self) -> SocketAddr {
        BACKS[usize::from(self.v6)].parse().unwrap()
    }

    /// The socket of the handover.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path("handover")
    }

    /// The devices as the messages name them.
    pub(crate) fn devices(&self) -> [String; 2] {
        [("tc", &self.client), ("ts", &self.server)]
            .map(|(device, namespace)| format!("{device}@{}", namespace.name()))
    }

    /// The command of a proxy; its complaints are on its standard output.
    pub(crate) fn command(&self, socket: &Path, more: &[&str]) -> Command {
        let mut command = Command::new("bash");
        command
            .args(["-c", "exec \"$0\" \"$@\" 2>&1"])
            .arg(example::path("proxy"));
        self.arguments(&mut command, socket, more);
        command
    }

    pub(crate) fn arguments(&self, command: &mut Command, socket: &Path, more: &[&str]) {
        let [front, back] = self.devices();
        command.args(["--tun", &format!("{front}=10.78.1.2/24,fd78:1::2/64")]);
        command.args(["--tun", &format!("{back}=10.78.2.2/24,fd78:2::2/64")]);
        if self.queues {
            command.args(["--queues", "2"]);
        }
        command.args(["--handover"]).arg(socket);
        command.args(more);
        if !more.contains(&"--listen") {
            command.args(["--listen", &self.front().to_string()]);
        }
        if !more.contains(&"--config") {
            command.args(["--backend", &self.back().to_string()]);
        }
    }

    /// A proxy that serves.
    pub(crate) fn proxy(&self, more: &[&str]) -> Program {
        Program::start(self.command(&self.socket(), more), "listening on")
    }

    /// A proxy that does not start: its complaints.
    pub(crate) fn failing(&self, socket: &Path, more: &[&str]) -> String {
        let output = self.command(socket, more).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!output.status.success(), "{said}");
        said
    }

    /// A server that sends back what it receives, in threads of its own.
    pub(crate) fn echo(&self) {
        let listener = self.listener();
        let serve = move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let copy = move || std::io::copy(&mut &stream, &mut &stream);
                thread::Builder::new().spawn(copy).unwrap();
            }
        };
        thread::Builder::new().spawn(serve).unwrap();
    }

    /// The server's socket.
    pub(crate) fn listener(&self) -> TcpListener {
        self.server
            .enter(|| TcpListener::bind(self.back()).unwrap())
    }

    pub(crate) fn connect(&self) -> std::io::Result<TcpStream> {
        let front = self.front();
        let stream = self
            .client
            .enter(|| TcpStream::connect_timeout(&front, LIMIT))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(stream)
    }

    /// A new connection works.
    pub(crate) fn serves(&self) {
        exchange(&mut self.connect().unwrap()).unwrap();
    }
}

/// Sends bytes and gets them back.
pub(crate) fn exchange(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut back = [0; 16];
    stream.write_all(b"sixteen bytes ok")?;
    stream.read_exact(&mut back)?;
    assert_eq!(&back, b"sixteen bytes ok");
    Ok(())
}

pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = SystemClock.now() + LIMIT;
    while !condition() {
        assert!(SystemClock.now() < end, "{what}");
        thread::yield_now();
    }
}

/// Waits until a program has printed this.
pub(crate) fn says(program: &Program, words: &str) {
    until(words, || program.said().contains(words));
}
