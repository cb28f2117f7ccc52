//! A sandbox, a guest, and servers.

use crate::guest::Guest;
use crate::namespace::{Namespace, available};
use crate::program::Program;
use simple_dns::rdata::{A, CNAME, RData};
use simple_dns::{CLASS, Name, Packet, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE};
use sosplice::{Stack, TcpSocket, TcpStream, UdpSocket};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A new folder, which is removed with the value.
pub(crate) struct Folder(PathBuf);

pub(crate) fn folder(test: &str) -> Folder {
    let path = std::env::temp_dir().join(format!("sosplice-{}-{test}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    Folder(path)
}

impl Folder {
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

pub(crate) struct Scene {
    inside: Namespace,
    guest: Guest,
    sandbox: Program,
    folder: Folder,
}

/// A namespace with servers. `None` if it cannot be made here.
pub(crate) fn servers(test: &str) -> Option<Namespace> {
    if !available(test) {
        return None;
    }
    let inside = Namespace::new("s");
    inside.ip("route add local 10.99.0.0/16 dev lo");
    for port in [80, 81] {
        let listener = inside.enter(|| TcpListener::bind(("0.0.0.0", port)).unwrap());
        thread::Builder::new()
            .spawn(move || echo(&listener))
            .unwrap();
    }
    // Nothing is answered here, as long as the test runs.
    let silent = inside.enter(|| std::net::UdpSocket::bind("0.0.0.0:7").unwrap());
    std::mem::forget(silent);
    name_server(&inside);
    Some(inside)
}

/// Starts a sandbox there.
pub(crate) fn start(inside: &Namespace, options: &[&str]) -> Program {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", inside.name()]);
    command.arg(crate::example::path("sandbox")).args(options);
    if !options.contains(&"--dns") {
        command.args(["--dns", "10.99.0.53"]);
    }
    Program::start(command, "the gateway")
}

impl Scene {
    /// `None` if it cannot be made here.
    pub(crate) fn new(test: &str, options: &[&str]) -> Option<Scene> {
        let inside = servers(test)?;
        let folder = folder(&format!("{test}-socket"));
        let socket = folder.join("net");
        let listen = ["--listen", socket.to_str().unwrap()];
        let sandbox = start(&inside, &[&listen[..], options].concat());
        let guest = Guest::start(&socket);
        Some(Scene {
            inside,
            guest,
            sandbox,
            folder,
        })
    }

    pub(crate) fn sandbox(&self) -> &Program {
        &self.sandbox
    }

    /// The guest's connection to a destination.
    pub(crate) fn connect(&self, to: &str) -> io::Result<TcpStream> {
        connect(&self.guest.stack, to)
    }

    /// The path of the sandbox's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("net")
    }

    /// Both ends of one.
    pub(crate) fn connect_both(&self, to: &str) -> (TcpStream, std::net::TcpStream) {
        let listener = self.inside.enter(|| TcpListener::bind(to).unwrap());
        let stream = self.connect(to).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(LIMIT)).unwrap();
        (stream, server)
    }

    /// A port of the guest.
    pub(crate) fn listen(&self, port: u16) -> sosplice::TcpListener {
        sosplice::TcpListener::bind(&self.guest.stack, ("0.0.0.0", port)).unwrap()
    }

    /// A connection of a program of the host.
    pub(crate) fn connect_from_host(&self, to: &str) -> std::net::TcpStream {
        let stream = self.inside.enter(|| std::net::TcpStream::connect(to));
        let stream = stream.unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// Sends some bytes to a server and back.
    pub(crate) fn echoes(&self, to: &str) -> io::Result<()> {
        let mut stream = self.connect(to)?;
        stream.write_all(b"there and back")?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        assert_eq!(answer, b"there and back", "{to}");
        Ok(())
    }

    pub(crate) fn datagrams(&self, to: &str) -> UdpSocket {
        let socket = UdpSocket::bind(&self.guest.stack, "0.0.0.0:0").unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
    }

    /// The guest asks the gateway for the addresses of a name.
    pub(crate) fn ask(&self, name: &str) -> Result<Vec<String>, RCODE> {
        let socket = self.datagrams("10.0.2.1:53");
        socket.send(&query(name)).unwrap();
        let mut answer = [0; 512];
        let len = socket.recv(&mut answer).unwrap();
        read(&answer[..len])
    }

    pub(crate) fn ask_over_tcp(&self, name: &str) -> Result<Vec<String>, RCODE> {
        let mut stream = self.connect("10.0.2.1:53").unwrap();
        stream.write_all(&framed(&query(name))).unwrap();
        read(&message(&mut stream).unwrap())
    }

    /// Another guest takes the place of this one.
    pub(crate) fn restart_guest(&mut self) {
        self.guest.kill();
        self.guest = Guest::start(&self.folder.join("net"));
    }

    /// A host program's connection.
    pub(crate) fn host_connects(&self, to: &str) -> std::net::TcpStream {
        self.inside
            .enter(|| std::net::TcpStream::connect(to).unwrap())
    }

    /// The only guest is gone.
    pub(crate) fn without_guest(self) -> Scene {
        self.guest.kill();
        self
    }

    /// Waits for something that another thread or program does.
    #[allow(clippy::disallowed_methods, reason = "between looks")]
    pub(crate) fn until<R>(&self, look: impl Fn() -> Option<R>) -> R {
        for _ in 0..LIMIT.as_millis() / 20 {
            if let Some(found) = look() {
                return found;
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("{}", self.sandbox.said());
    }

    /// Waits until what the sandbox has printed is as wanted.
    pub(crate) fn wait_for(&self, wanted: impl Fn(&str) -> bool) {
        self.until(|| wanted(&self.sandbox.said()).then_some(()));
    }

    /// Ends the sandbox, and returns what it has printed.
    pub(crate) fn end(mut self) -> String {
        assert!(self.sandbox.terminate(LIMIT).success());
        self.sandbox.said()
    }
}

/// A connection of a stack, that does not wait for ever.
pub(crate) fn connect(stack: &Stack, to: &str) -> io::Result<TcpStream> {
    let stream = TcpSocket::new(stack).connect_timeout(to.parse().unwrap(), LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

fn echo(listener: &TcpListener) {
    for mut stream in listener.incoming().map_while(Result::ok) {
        let run = move || {
            let mut bytes = [0; 4096];
            while let Ok(len @ 1..) = stream.read(&mut bytes) {
                if stream.write_all(&bytes[..len]).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().spawn(run).unwrap();
    }
}

/// The messages of the name server for a query. Names end with `good.test`, but an alias.
fn answers(query: &[u8]) -> Vec<Vec<u8>> {
    let query = Packet::parse(query).unwrap();
    let name = query.questions[0].qname.to_string();
    let record = |name: &str, data| {
        ResourceRecord::new(Name::new(name).unwrap().into_owned(), CLASS::IN, 60, data)
    };
    let address = |address: [u8; 4]| {
        RData::A(A {
            address: u32::from_be_bytes(address),
        })
    };
    let mut answer = query.clone().into_reply();
    answer.answers = match name.as_str() {
        "gateway.good.test" => vec![record(&name, address([10, 0, 2, 1]))],
        "metadata.good.test" => vec![record(&name, address([169, 254, 169, 254]))],
        "alias.test" => vec![
            record(&name, RData::CNAME(CNAME(Name::new("other.test").unwrap()))),
            record("other.test", address([10, 99, 7, 2])),
        ],
        _ => vec![record(&name, address([10, 99, 7, 1]))],
    };
    let mut all = Vec::new();
    if name == "forged.good.test" {
        let mut forged = answer.clone();
        forged.answers = vec![record(&name, address([10, 99, 7, 66]))];
        forged.set_id(query.id().wrapping_add(1));
        all.push(forged.build_bytes_vec().unwrap());
        forged.set_id(query.id());
        forged.questions[0].qname = Name::new("www.good.test").unwrap();
        all.push(forged.build_bytes_vec().unwrap());
    }
    all.push(answer.build_bytes_vec_compressed().unwrap());
    all
}

fn name_server(inside: &Namespace) {
    let socket = inside.enter(|| std::net::UdpSocket::bind("10.99.0.53:53").unwrap());
    let over_udp = move || {
        let mut query = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut query) {
            for answer in answers(&query[..len]) {
                socket.send_to(&answer, from).unwrap();
            }
        }
    };
    thread::Builder::new().spawn(over_udp).unwrap();
    let listener = inside.enter(|| TcpListener::bind("10.99.0.53:53").unwrap());
    let over_tcp = move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            while let Ok(query) = message(&mut stream) {
                for answer in answers(&query) {
                    stream.write_all(&framed(&answer)).unwrap();
                }
            }
        }
    };
    thread::Builder::new().spawn(over_tcp).unwrap();
}

fn framed(message: &[u8]) -> Vec<u8> {
    let len = u16::try_from(message.len()).unwrap();
    [&len.to_be_bytes(), message].concat()
}

fn message(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut message = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

const ID: u16 = 77;

fn query(name: &str) -> Vec<u8> {
    let mut query = Packet::new_query(ID);
    let (kind, class) = (QTYPE::TYPE(TYPE::A), QCLASS::CLASS(CLASS::IN));
    let question = Question::new(Name::new(name).unwrap(), kind, class, false);
    query.questions.push(question);
    query.build_bytes_vec().unwrap()
}

/// The addresses in an answer.
fn read(answer: &[u8]) -> Result<Vec<String>, RCODE> {
    let answer = Packet::parse(answer).unwrap();
    assert_eq!(answer.id(), ID);
    let address = |record: &ResourceRecord<'_>| match &record.rdata {
        RData::A(data) => Some(Ipv4Addr::from_bits(data.address).to_string()),
        _ => None,
    };
    match answer.rcode() {
        RCODE::NoError => Ok(answer.answers.iter().filter_map(address).collect()),
        code => Err(code),
    }
}
