//! The proxy with several backends, between programs that others have written: curl and openssl as clients, nginx and
//! openssl as servers. In namespaces, as `net.rs`.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "backends/attacks.rs"]
mod attacks;
#[path = "support/example.rs"]
mod example;
#[path = "support/namespace.rs"]
mod namespace;
#[path = "backends/operator.rs"]
mod operator;
#[path = "support/program.rs"]
mod program;

use namespace::{Namespace, available_with};
use program::{Program, output};
use sosplice::clock::{Clock, SystemClock};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

const FRONT: &str = "10.78.1.2:8443";

struct Scene {
    client: Namespace,
    server: Namespace,
    /// Files of the servers.
    place: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.place).ok();
    }
}

impl Scene {
    fn new(test: &str) -> Option<Scene> {
        static TURN: Mutex<()> = Mutex::new(());
        if !available_with(test, &["curl", "nginx", "openssl", "timeout"]) {
            return None;
        }
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let client = Namespace::new("c");
        client.tun("tc", &["10.78.1.1/24"], 1500);
        let server = Namespace::new("s");
        server.tun("ts", &["10.78.2.1/24"], 1500);
        let place = std::env::temp_dir().join(format!("sosplice-{}", client.name()));
        fs::create_dir_all(&place).unwrap();
        Some(Scene {
            client,
            server,
            place,
            _turn: turn,
        })
    }

    fn proxy(&self, more: &[&str]) -> Program {
        // What it complains about is read too.
        let mut command = Command::new("bash");
        command
            .args(["-c", "exec \"$0\" \"$@\" 2>&1"])
            .arg(example::path("proxy"));
        command.args(["--tun", &format!("tc@{}=10.78.1.2/24", self.client.name())]);
        command.args(["--tun", &format!("ts@{}=10.78.2.2/24", self.server.name())]);
        command.args(["--listen", FRONT]).args(more);
        Program::start(command, "listening")
    }

    /// nginx on this port, which answers with the port and the client's address of the PROXY header.
    fn nginx(&self, port: u16) -> Program {
        let place = self.place.join(port.to_string());
        fs::create_dir_all(&place).unwrap();
        let at = place.display();
        let text = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/errors;
             events {{}}
             http {{
                 access_log off;
                 client_body_temp_path {at}/a; proxy_temp_path {at}/b; fastcgi_temp_path {at}/c;
                 uwsgi_temp_path {at}/d; scgi_temp_path {at}/e;
                 server {{
                     listen 10.78.2.1:{port} proxy_protocol;
                     return 200 \"{port} $proxy_protocol_addr\\n\";
                 }}
             }}"
        );
        let file = place.join("nginx.conf");
        fs::write(&file, text).unwrap();
        let line = format!("echo started; exec nginx -c {}", file.display());
        let mut command = within(&self.server, &["bash", "-c", &line]);
        command.current_dir(&place);
        let program = Program::start(command, "started");
        let listens = || {
            let sockets = output(&mut within(&self.server, &["cat", "/proc/net/tcp"]));
            sockets.contains(&format!(":{port:04X} 00000000:0000 0A"))
        };
        until(listens);
        program
    }

    fn curl(&self, more: &[&str]) -> String {
        let mut line = vec!["curl", "--silent", "--max-time", "20"];
        line.extend(more);
        let url = format!("http://{FRONT}/");
        line.push(&url);
        let output = within(&self.client, &line).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

fn until(mut condition: impl FnMut() -> bool) {
    let end = SystemClock.now() + Duration::from_secs(20);
    while !condition() {
        assert!(SystemClock.now() < end, "it does not come true");
        thread::yield_now();
    }
}

fn within(namespace: &Namespace, line: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace.name()]).args(line);
    command
}

/// curl as another proxy, nginx as the backends; the third backend does not exist.
#[test]
fn headers_of_the_proxy_protocol_pass_from_curl_to_nginx() {
    let Some(scene) = Scene::new("headers_of_the_proxy_protocol_pass_from_curl_to_nginx") else {
        return;
    };
    let mut servers = [8081, 8082].map(|port| Some(scene.nginx(port)));
    let mut backends = Vec::new();
    for port in [8081, 8082, 8083] {
        backends.extend(["--backend".to_owned(), format!("10.78.2.1:{port}")]);
    }
    let mut arguments: Vec<&str> = backends.iter().map(String::as_str).collect();
    arguments.extend(["--accept-proxy", "--send-proxy", "v2", "--check", "0.2"]);
    arguments.extend(["--metrics", "127.0.0.1:0"]);
    let mut proxy = scene.proxy(&arguments);
    let told = ["--haproxy-protocol"];
    let mut answers: Vec<_> = (0..6).map(|_| scene.curl(&told)).collect();
    answers.sort();
    answers.dedup();
    assert_eq!(answers, ["8081 10.78.1.1\n", "8082 10.78.1.1\n"]);
    // The address of a client behind that.
    let (host, port) = FRONT.split_once(':').unwrap();
    let header = "PROXY TCP4 192.0.2.9 192.0.2.1 7000 80\\r\\n";
    let request = "GET / HTTP/1.0\\r\\n\\r\\n";
    let line =
        format!("exec 3<>/dev/tcp/{host}/{port}; cat <&3 & printf '{header}{request}' >&3; wait");
    let said = output(&mut within(
        &scene.client,
        &["timeout", "20", "bash", "-c", &line],
    ));
    assert!(said.contains(" 192.0.2.9\n"), "{said}");
    assert_eq!(scene.curl(&[]), "", "without a header");
    until(|| proxy.said().contains("backend 10.78.2.1:8083: down"));
    let metrics = proxy.said();
    let metrics = metrics
        .lines()
        .find_map(|line| line.strip_prefix("metrics on "));
    let said =
        output(Command::new("curl").args(["--silent", "--max-time", "20", metrics.unwrap()]));
    for sample in [
        "sosplice_backend_up{backend=\"10.78.2.1:8083\",name=\"\"} 0",
        "sosplice_refused_total{reason=\"it does not begin with a header",
        "sosplice_clients_total 7",
        "sosplice_connection_seconds_count 7",
        "# EOF",
    ] {
        assert!(said.contains(sample), "{sample} in {said}");
    }
    // One of the servers ends: nobody notices.
    servers[0] = None;
    for _ in 0..4 {
        assert_eq!(scene.curl(&told), "8082 10.78.1.1\n");
    }
    assert!(proxy.terminate(Duration::from_secs(20)).success());
    let said = proxy.said();
    assert!(
        said.contains("1 refused: it does not begin with a header"),
        "{said}"
    );
    assert!(
        said.contains("backend 10.78.2.1:8083 (any, weight 1): down"),
        "{said}"
    );
}

#[test]
fn tls_servers_are_found_by_name() {
    let Some(scene) = Scene::new("tls_servers_are_found_by_name") else {
        return;
    };
    let names = [
        ("one.example", 8444),
        ("two.example", 8445),
        ("any.example", 8446),
    ];
    let servers = names.map(|(name, port)| {
        let (key, certificate) = (scene.place.join("key"), scene.place.join(name));
        let mut make = Command::new("openssl");
        make.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ]);
        make.args(["-nodes", "-days", "2", "-subj", &format!("/CN={name}")]);
        make.arg("-keyout").arg(key.with_extension(name));
        output(make.arg("-out").arg(&certificate));
        let at = format!("10.78.2.1:{port}");
        let mut command = within(
            &scene.server,
            &["openssl", "s_server", "-accept", &at, "-www"],
        );
        command
            .arg("-cert")
            .arg(&certificate)
            .arg("-key")
            .arg(key.with_extension(name));
        Program::start(command, "ACCEPT")
    });
    let proxy = scene.proxy(&[
        "--backend",
        "10.78.2.1:8444,name=one.example",
        "--backend",
        "10.78.2.1:8445,name=*.two.example",
        "--backend",
        "10.78.2.1:8446",
    ]);
    let asks = [
        ("one.example", "one.example"),
        ("x.two.example", "two.example"),
        ("three.example", "any.example"),
    ];
    for (name, answers) in asks {
        let line = format!("openssl s_client -connect {FRONT} -servername {name} </dev/null");
        let said = output(&mut within(
            &scene.client,
            &["timeout", "20", "bash", "-c", &line],
        ));
        assert!(said.contains(&format!("CN = {answers}")), "{name}: {said}");
    }
    assert_eq!(scene.curl(&[]), "", "no TLS");
    drop((proxy, servers));
}

/// A file, read again at SIGHUP while connections are open: further clients get the new backend, the open one stays, and
/// a file with a mistake changes nothing.
#[test]
fn a_file_is_read_again_without_losing_a_connection() {
    let Some(scene) = Scene::new("a_file_is_read_again_without_losing_a_connection") else {
        return;
    };
    let _servers = [8081, 8082].map(|port| scene.nginx(port));
    let file = scene.place.join("proxy.toml");
    let write = |port: u16| {
        let text = format!("send_proxy = \"v1\"\n[[backend]]\naddress = \"10.78.2.1:{port}\"\n");
        fs::write(&file, text).unwrap();
    };
    write(8081);
    let proxy = scene.proxy(&["--config", file.to_str().unwrap()]);
    let front: SocketAddr = FRONT.parse().unwrap();
    let mut open = scene.client.enter(|| TcpStream::connect(front).unwrap());
    open.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut ask = || {
        open.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        let mut said = String::new();
        while !said.contains(" 10.78.1.1\n") {
            let mut bytes = [0; 1000];
            let count = open.read(&mut bytes).unwrap();
            assert!(count > 0, "an end after {said}");
            said.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        }
        said
    };
    assert!(ask().contains("8081 "));
    write(8082);
    proxy.signal(rustix::process::Signal::HUP);
    until(|| proxy.said().contains("renewed: 10.78.2.1:8082"));
    assert_eq!(scene.curl(&[]), "8082 10.78.1.1\n");
    fs::write(&file, "[[backend]]\naddres = 1\n").unwrap();
    proxy.signal(rustix::process::Signal::HUP);
    until(|| proxy.said().contains("nothing is changed") && proxy.said().contains("line 2"));
    assert_eq!(scene.curl(&[]), "8082 10.78.1.1\n");
    assert!(ask().contains("8081 "));
}
