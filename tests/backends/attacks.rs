//! Clients and backends that misbehave, each followed by a client that does not: it is served.

use super::*;
use std::io;
use std::net::{Shutdown, TcpListener};

const HEADER: &[u8] = b"PROXY TCP4 192.0.2.9 192.0.2.1 7000 443\r\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const ADDRESSES: [u8; 12] = [192, 0, 2, 9, 192, 0, 2, 1, 27, 88, 1, 187];

/// A backend, with a thread for each connection.
fn backend(scene: &Scene, port: u16, serve: fn(TcpStream) -> io::Result<()>) {
    let listener = scene
        .server
        .enter(move || TcpListener::bind(("10.78.2.1", port)).unwrap());
    let accept = move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = move || serve(stream).ok();
            thread::Builder::new().spawn(serve).unwrap();
        }
    };
    thread::Builder::new().spawn(accept).unwrap();
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    write!(stream, "{} bytes", bytes.len())
}

/// Answers before it is asked.
fn early(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(b"early ")?;
    echo(stream)
}

fn resets(stream: TcpStream) -> io::Result<()> {
    linger(&stream);
    Ok(())
}

/// Its end is a reset.
fn linger(stream: &TcpStream) {
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).unwrap();
}

impl Scene {
    fn connect(&self) -> TcpStream {
        let front: SocketAddr = FRONT.parse().unwrap();
        let stream = self
            .client
            .enter(|| TcpStream::connect_timeout(&front, Duration::from_secs(20)).unwrap());
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    fn ask(&self, bytes: &[u8]) -> io::Result<String> {
        let mut stream = self.connect();
        stream.write_all(bytes)?;
        finish(stream)
    }
}

fn finish(mut stream: TcpStream) -> io::Result<String> {
    stream.shutdown(Shutdown::Write)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[track_caller]
fn reset(result: io::Result<String>) {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    let kind = result.unwrap_err().kind();
    let is_reset = matches!(kind, ConnectionReset | BrokenPipe | NotConnected);
    assert!(is_reset, "{kind:?}");
}

fn v2(command: u8, family: u8, addresses: &[u8], tlvs: &[u8]) -> Vec<u8> {
    let len = u16::try_from(addresses.len() + tlvs.len()).unwrap();
    let fixed = [command, family];
    [V2, &fixed, &len.to_be_bytes(), addresses, tlvs].concat()
}

fn config(scene: &Scene, more: &str, ports: &[u16]) -> String {
    let mut text = more.to_owned();
    for port in ports {
        text += &format!("[[backend]]\naddress = \"10.78.2.1:{port}\"\n");
    }
    let file = scene.place.join("proxy.toml");
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

fn metrics(proxy: &Program) -> String {
    // A thread of its own writes that, a whole line at once.
    until(|| proxy.said().contains("metrics on "));
    let said = proxy.said();
    let at = said.split("metrics on ").nth(1).unwrap();
    let at = at.split_whitespace().next().unwrap().to_owned();
    output(Command::new("curl").args(["--silent", "--max-time", "20", &at]))
}

fn until_idle(proxy: &Program) {
    until(|| {
        let page = metrics(proxy);
        page.contains("\nsosplice_connections 0\n") && page.contains("\nsosplice_heads 0\n")
    });
}

fn end_well(mut proxy: Program) {
    assert!(proxy.terminate(Duration::from_secs(20)).success());
    let said = proxy.said();
    assert!(!said.contains("panicked"), "{said}");
    assert!(!said.contains("BROKEN"), "{said}");
}

#[test]
fn first_bytes_of_all_kinds() {
    let Some(scene) = Scene::new("first_bytes_of_all_kinds") else {
        return;
    };
    backend(&scene, 9001, echo);
    let terms = "accept_proxy = true\nhead_timeout = 20\nhead_clients = 40\n";
    let file = config(&scene, terms, &[9001]);
    let proxy = scene.proxy(&["--config", &file, "--metrics", "127.0.0.1:0"]);
    let healthy = || {
        let text = scene.ask(&[HEADER, b"hello"].concat()).unwrap();
        assert_eq!(text, "5 bytes");
    };
    healthy();
    // A header in pieces of one byte; the longest line.
    let line = [&b"PROXY UNKNOWN "[..], &[b'x'; 91], b"\r\n"].concat();
    for head in [HEADER, &line] {
        let mut slow = scene.connect();
        for byte in head {
            slow.write_all(&[*byte]).unwrap();
        }
        assert_eq!(finish(slow).unwrap(), "0 bytes");
    }
    // Nested extensions, which are not looked into; a local connection; addresses of Unix sockets.
    let ssl = [0x20, 0, 8, 1, 0, 0, 0, 0, 0x21, 0xff, 0xff];
    for head in [
        v2(0x21, 0x11, &ADDRESSES, &ssl),
        v2(0x20, 0x00, &[], &[]),
        v2(0x20, 0x11, &ADDRESSES, &[]),
        v2(0x21, 0x31, &[b'/'; 216], &[]),
    ] {
        let text = scene.ask(&[&head, &b"hello"[..]].concat()).unwrap();
        assert_eq!(text, "5 bytes", "{head:?}");
    }
    let wrong_sum = [3, 0, 4, 1, 2, 3, 4];
    for head in [
        [V2, &[0x21, 0x11, 0xff, 0xff][..], &[0; 60_000]].concat(),
        [&b"PROXY UNKNOWN "[..], &[b'x'; 200]].concat(),
        v2(0x21, 0x11, &ADDRESSES, &wrong_sum),
        v2(0x21, 0x12, &ADDRESSES, &[]),
        v2(0x21, 0x11, &ADDRESSES, &[0x20, 0xff, 0xff]),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.9".to_vec(),
    ] {
        reset(scene.ask(&head));
        healthy();
    }
    // A reset in the header.
    for len in 0..HEADER.len() {
        let mut stream = scene.connect();
        stream.write_all(&HEADER[..len]).unwrap();
        linger(&stream);
    }
    healthy();
    // Many that send nothing, or half of it: others are served among them.
    let mut silent = Vec::new();
    for number in 0..200 {
        let mut stream = scene.connect();
        // It may be reset by the next ones, not yet by this one.
        stream.write_all(&HEADER[..number % HEADER.len()]).unwrap();
        silent.push(stream);
        if number % 20 == 0 {
            healthy();
        }
    }
    until(|| metrics(&proxy).contains("sosplice_heads 40\n"));
    let page = metrics(&proxy);
    assert!(
        page.contains("reason=\"too many clients whose first bytes are missing"),
        "{page}"
    );
    assert!(page.contains("whose CRC32c is wrong\"} 1\n"), "{page}");
    drop(silent);
    until_idle(&proxy);
    healthy();
    end_well(proxy);
}

#[test]
fn backends_that_misbehave_and_reloads_in_each_phase() {
    let Some(scene) = Scene::new("backends_that_misbehave_and_reloads_in_each_phase") else {
        return;
    };
    backend(&scene, 9001, echo);
    backend(&scene, 9002, resets);
    backend(&scene, 9003, early);
    let terms = "accept_proxy = true\nhead_timeout = 20\n";
    let file = config(&scene, terms, &[9002]);
    let proxy = scene.proxy(&["--config", &file, "--metrics", "127.0.0.1:0"]);
    let renewed = std::cell::Cell::new(0);
    let reload = |ports: &[u16]| {
        config(&scene, terms, ports);
        renewed.set(renewed.get() + 1);
        proxy.signal(rustix::process::Signal::HUP);
        let sample = format!(
            "sosplice_reloads_total{{result=\"renewed\"}} {}\n",
            renewed.get()
        );
        until(|| metrics(&proxy).contains(&sample));
    };
    // It accepts, then resets.
    for _ in 0..20 {
        reset(scene.ask(&[HEADER, b"hello"].concat()));
    }
    // It answers before the request: what it says comes before the end of the client's stream.
    reload(&[9003]);
    let mut client = scene.connect();
    client.write_all(HEADER).unwrap();
    let mut said = [0; 6];
    client.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"early ");
    // A reload with an open connection, with half a header, with a header and no data, and after the client's end.
    let mut half = scene.connect();
    half.write_all(&HEADER[..20]).unwrap();
    reload(&[9001]);
    client.write_all(b"hello").unwrap();
    assert_eq!(finish(client).unwrap(), "5 bytes");
    half.write_all(&HEADER[20..]).unwrap();
    half.write_all(b"abc").unwrap();
    reload(&[9001, 9003]);
    half.write_all(b"def").unwrap();
    assert_eq!(finish(half).unwrap(), "6 bytes");
    // The client's end in the segment of its header, and without data.
    reload(&[9001]);
    assert_eq!(scene.ask(HEADER).unwrap(), "0 bytes");
    // Files with mistakes: nothing changes, each is counted.
    let mistakes = [
        "idle = 0\n",
        "accept_proxy = 1\n",
        "[[backend]]\naddress = \"10.78.1.2:8443\"\n",
        "\0",
    ];
    for (number, mistake) in (1..).zip(mistakes) {
        config(&scene, mistake, &[9002]);
        proxy.signal(rustix::process::Signal::HUP);
        let sample = format!("sosplice_reloads_total{{result=\"rejected\"}} {number}\n");
        until(|| metrics(&proxy).contains(&sample));
        assert_eq!(scene.ask(&[HEADER, b"hello"].concat()).unwrap(), "5 bytes");
    }
    assert!(
        proxy.said().contains("this proxy listens there"),
        "{}",
        proxy.said()
    );
    until_idle(&proxy);
    end_well(proxy);
}

/// The proxy's own address as a backend, by the command line.
#[test]
fn a_backend_that_is_the_proxy_is_refused_at_the_start() {
    let Some(scene) = Scene::new("a_backend_that_is_the_proxy_is_refused_at_the_start") else {
        return;
    };
    for (backend, why) in [
        (FRONT.to_owned(), "this proxy listens there"),
        (
            format!("{FRONT},name=a.example"),
            "this proxy listens there",
        ),
        ("10.78.2.2:80".into(), "the proxy itself has this address"),
    ] {
        let mut command = Command::new("timeout");
        command.arg("20").arg(example::path("proxy"));
        command.args(["--tun", &format!("tc@{}=10.78.1.2/24", scene.client.name())]);
        command.args(["--tun", &format!("ts@{}=10.78.2.2/24", scene.server.name())]);
        command.args(["--listen", FRONT, "--backend", &backend]);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(why), "{said}");
    }
}

/// A ClientHello of more than 16 KiB in two records, in three segments and byte by byte.
#[test]
fn hellos_in_parts() {
    let Some(scene) = Scene::new("hellos_in_parts") else {
        return;
    };
    backend(&scene, 9001, echo);
    let proxy = scene.proxy(&[
        "--backend",
        "10.78.2.1:9001,name=a.example",
        "--metrics",
        "127.0.0.1:0",
    ]);
    for padding in [10, 17_000] {
        let hello = hello("a.example", padding);
        let expected = format!("{} bytes", hello.len());
        let third = hello.len() / 3;
        let mut stream = scene.connect();
        for part in hello.chunks(third + 1) {
            stream.write_all(part).unwrap();
        }
        assert_eq!(finish(stream).unwrap(), expected);
        let mut stream = scene.connect();
        for byte in hello.chunks(1 + padding / 100) {
            stream.write_all(byte).unwrap();
        }
        assert_eq!(finish(stream).unwrap(), expected);
    }
    reset(scene.ask(&hello("a.example", 30_000)));
    reset(scene.ask(&hello("b.example", 10)));
    reset(scene.ask(b"\x16\x03\x01\xff\xff"));
    until_idle(&proxy);
    end_well(proxy);
}

fn hello(name: &str, padding: usize) -> Vec<u8> {
    let block = |kind: u16, bytes: &[u8]| {
        let len = u16::try_from(bytes.len()).unwrap();
        [&kind.to_be_bytes()[..], &len.to_be_bytes(), bytes].concat()
    };
    let entry = block(0, name.as_bytes());
    // A kind of one byte: the first of the two is the list's length.
    let list = u16::try_from(entry.len() - 1).unwrap().to_be_bytes();
    let names = block(0, &[&list, &entry[1..]].concat());
    let extensions = [block(21, &vec![0; padding]), names].concat();
    let len = u16::try_from(extensions.len()).unwrap().to_be_bytes();
    let fixed = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 0x01, 1, 0]].concat();
    let body = [&fixed[..], &len, &extensions].concat();
    let len = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[1, len[1], len[2], len[3]], &body[..]].concat();
    let record = |part: &[u8]| {
        let len = u16::try_from(part.len()).unwrap().to_be_bytes();
        [&[22, 3, 1, len[0], len[1]], part].concat()
    };
    message.chunks(1 << 14).flat_map(record).collect()
}

/// HAProxy before the proxy, whose headers have a checksum and an identifier.
#[test]
fn headers_of_haproxy_with_a_checksum() {
    let test = "headers_of_haproxy_with_a_checksum";
    if !available_with(test, &["haproxy"]) {
        return;
    }
    let Some(scene) = Scene::new(test) else {
        return;
    };
    let _server = scene.nginx(8081);
    let proxy = scene.proxy(&[
        "--backend",
        "10.78.2.1:8081",
        "--accept-proxy",
        "--send-proxy",
        "v2",
        "--metrics",
        "127.0.0.1:0",
    ]);
    let file = scene.place.join("haproxy.cfg");
    let text = format!(
        "defaults\n timeout connect 20s\n timeout client 20s\n timeout server 20s\n mode tcp\n\
         listen one\n bind 10.78.1.1:7001\n unique-id-format %[uuid()]\n\
         server a {FRONT} send-proxy-v2 proxy-v2-options crc32c,unique-id\n"
    );
    fs::write(&file, text).unwrap();
    let line = format!("echo started; exec haproxy -db -f {}", file.display());
    let _haproxy = Program::start(within(&scene.client, &["bash", "-c", &line]), "started");
    let ask = "curl --silent --max-time 20 --retry 20 --retry-connrefused http://10.78.1.1:7001/";
    for _ in 0..5 {
        let said = output(&mut within(
            &scene.client,
            &["timeout", "30", "bash", "-c", ask],
        ));
        assert_eq!(said, "8081 10.78.1.1\n");
    }
    let page = metrics(&proxy);
    assert!(!page.contains("sosplice_refused_total{"), "{page}");
    end_well(proxy);
}
