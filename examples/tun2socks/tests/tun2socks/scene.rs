//! The two namespaces, what runs in them, and the program.

use crate::namespace::{Namespace, available, skip};
use crate::program::Program;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

pub(crate) const LIMIT: Duration = Duration::from_secs(30);
pub(crate) const PROXY: &str = "127.0.0.1:1080";
/// A server's addresses.
pub(crate) const SERVER: [&str; 2] = ["10.99.0.7", "fd99::7"];

const DANTE: &str = "
logoutput: stdout
internal: 127.0.0.1 port = 1080
external: 10.99.0.1
external: fd99::1
clientmethod: none
socksmethod: none
user.unprivileged: nobody
client pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }
socks block { from: 0.0.0.0/0 to: 10.99.66.0/24 }
socks pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }
socks pass { from: 0.0.0.0/0 to: ::/0 }
socks pass { from: ::/0 to: 0.0.0.0/0 command: udpreply }
";

/// The proxy of a scene.
#[derive(Clone, Copy)]
pub(crate) enum Proxy {
    Dante,
    /// Has no datagrams.
    Microsocks(&'static [&'static str]),
    /// None, or the test's own.
    Other,
}

pub(crate) struct Scene {
    pub(crate) clients: Namespace,
    pub(crate) host: Namespace,
    tool: Option<Program>,
    proxy: Option<Child>,
    files: Files,
}

/// Files of a scene: the configuration of a proxy, and the names that the namespace knows.
struct Files {
    configuration: PathBuf,
    /// What `ip netns exec` puts in place of files of `/etc`.
    etc: PathBuf,
}

impl Drop for Files {
    fn drop(&mut self) {
        fs::remove_file(&self.configuration).ok();
        fs::remove_dir_all(&self.etc).ok();
    }
}

fn exists(program: &str) -> bool {
    Command::new(program).arg("-V").output().is_ok()
}

impl Scene {
    /// With a proxy, and the program with these options; `None` if something is missing.
    pub(crate) fn new(test: &str, proxy: Proxy, options: &[&str]) -> Option<Scene> {
        let scene = Scene::without_tool(test, proxy)?;
        Some(scene.with_tool(options))
    }

    fn without_tool(test: &str, proxy: Proxy) -> Option<Scene> {
        if !available(test) {
            return None;
        }
        let needed = match proxy {
            Proxy::Dante => "danted",
            Proxy::Microsocks(_) => "microsocks",
            Proxy::Other => "ip",
        };
        for program in [needed, "dig"] {
            if !exists(program) {
                skip(test, &format!("needs {program}"));
                return None;
            }
        }
        let clients = Namespace::new("c");
        clients.tun("tc", &["10.98.0.1/24", "fd98::1/64"], 1500);
        clients.ip("route add default dev tc");
        clients.ip("-6 route add default dev tc");
        let host = Namespace::new("h");
        host.ip("address add 10.99.0.1/16 dev lo");
        host.ip("address add fd99::1/128 dev lo nodad");
        host.ip("address add fd99::7/128 dev lo nodad");
        let files = Files {
            configuration: std::env::temp_dir().join(format!("{}.conf", host.name())),
            etc: PathBuf::from("/etc/netns").join(host.name()),
        };
        fs::create_dir_all(&files.etc).unwrap();
        fs::write(files.etc.join("hosts"), "10.99.0.7 server.test\n").unwrap();
        let scene = Scene {
            clients,
            host,
            tool: None,
            proxy: None,
            files,
        };
        Some(scene.with_proxy(proxy))
    }

    fn with_proxy(mut self, proxy: Proxy) -> Scene {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.host.name()]);
        match proxy {
            Proxy::Dante => {
                fs::write(&self.files.configuration, DANTE).unwrap();
                command
                    .arg("danted")
                    .arg("-f")
                    .arg(&self.files.configuration);
            }
            Proxy::Microsocks(options) => {
                command.args(["microsocks", "-i", "127.0.0.1", "-p", "1080"]);
                command.args(options);
            }
            Proxy::Other => return self,
        }
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.proxy = Some(command.spawn().unwrap());
        let connected = || TcpStream::connect(PROXY).is_ok();
        // Each look takes a while; the proxy listens within a fraction of a second.
        assert!(self.host.enter(|| (0..1_000_000).any(|_| connected())));
        self
    }

    fn with_tool(mut self, options: &[&str]) -> Scene {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.host.name()]);
        command.arg(env!("CARGO_BIN_EXE_tun2socks"));
        command.arg(format!("tc@{}", self.clients.name()));
        command.args(["--proxy", PROXY]).args(options);
        self.tool = Some(Program::start(command, "what enters"));
        self.clients.wait_until_up("tc");
        self
    }

    pub(crate) fn connect(&self, to: &str, port: u16) -> io::Result<TcpStream> {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let stream = self
            .clients
            .enter(|| TcpStream::connect_timeout(&to, LIMIT))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(stream)
    }

    /// A client's socket for datagrams, connected.
    pub(crate) fn datagrams(&self, to: &str, port: u16) -> UdpSocket {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let any: IpAddr = if to.is_ipv4() {
            [0; 4].into()
        } else {
            [0; 16].into()
        };
        let socket = self.clients.enter(|| UdpSocket::bind((any, 0)).unwrap());
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
    }

    pub(crate) fn listen(&self, address: &str, port: u16) -> TcpListener {
        self.host
            .enter(|| TcpListener::bind((address, port)).unwrap())
    }

    pub(crate) fn bind(&self, address: &str, port: u16) -> UdpSocket {
        self.host
            .enter(|| UdpSocket::bind((address, port)).unwrap())
    }

    /// A server that sends datagrams back, with the sender's address in front, as long as the test runs.
    pub(crate) fn echo(&self, address: &str) -> u16 {
        let socket = self.bind(address, 0);
        let port = socket.local_addr().unwrap().port();
        let serve = move || {
            let mut bytes = vec![0; 65_536];
            while let Ok((count, from)) = socket.recv_from(&mut bytes) {
                let answer = [format!("{from:<48}").as_bytes(), &bytes[..count]].concat();
                socket.send_to(&answer, from).ok();
            }
        };
        thread::Builder::new().spawn(serve).unwrap();
        port
    }

    /// The output of `dig` in the clients' namespace.
    pub(crate) fn dig(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("ip");
        command.args([
            "netns",
            "exec",
            self.clients.name(),
            "dig",
            "+tries=1",
            "+time=20",
        ]);
        crate::program::output(command.args(arguments))
    }

    /// All processes in the host's namespace end: dante has several.
    fn end_all(&self) {
        let list = Command::new("ip")
            .args(["netns", "pids", self.host.name()])
            .output()
            .unwrap();
        for pid in String::from_utf8_lossy(&list.stdout).split_whitespace() {
            let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.end_all();
        self.proxy.iter_mut().for_each(|proxy| drop(proxy.wait()));
    }
}

/// The next connection, within the time limit.
pub(crate) fn accepted(listener: &TcpListener) -> TcpStream {
    let mut wait = [PollFd::new(listener, PollFlags::IN)];
    let limit = Timespec::try_from(LIMIT).unwrap();
    assert_eq!(poll(&mut wait, Some(&limit)).unwrap(), 1, "no connection");
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Bytes that differ from place to place.
pub(crate) fn pattern(count: usize) -> Vec<u8> {
    let byte = |at: u32| u8::try_from(at.wrapping_mul(2_654_435_761) >> 24).unwrap();
    (0..u32::try_from(count).unwrap()).map(byte).collect()
}

/// A datagram there and back: from which address the server saw it come, and the payload.
pub(crate) fn ask(socket: &UdpSocket, payload: &[u8]) -> (String, Vec<u8>) {
    socket.send(payload).unwrap();
    let mut answer = vec![0; 65_536];
    let count = socket.recv(&mut answer).unwrap();
    let from = String::from_utf8_lossy(&answer[..48]).trim().to_owned();
    (from, answer[48..count].to_vec())
}
