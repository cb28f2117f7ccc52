//! Through dante and microsocks.

use crate::namespace::{Namespace, skip};
use crate::program::{Program, output};
use crate::scene::{Proxy, SERVER, Scene, accepted, ask, pattern};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::process::Command;
use std::thread;

/// A connection whose server sends something and ends it. microsocks ends one that is closed in one direction, so this
/// is all that a test of it can ask for.
fn download(scene: &Scene, address: &str) {
    let listener = scene.listen(address, 0);
    let port = listener.local_addr().unwrap().port();
    let bytes = pattern(1_000_000);
    thread::scope(|scope| {
        scope.spawn(|| accepted(&listener).write_all(&bytes).unwrap());
        let mut answer = Vec::new();
        let mut stream = scene.connect(address, port).unwrap();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer == bytes, "{address}");
    });
}

/// Sends a connection's bytes back.
fn serve_one(listener: &std::net::TcpListener) {
    let mut stream = accepted(listener);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    stream.write_all(&all).unwrap();
}

fn there_and_back(scene: &Scene, address: &str, bytes: &[u8]) {
    let listener = scene.listen(address, 0);
    let port = listener.local_addr().unwrap().port();
    thread::scope(|scope| {
        scope.spawn(|| serve_one(&listener));
        let mut stream = scene.connect(address, port).unwrap();
        let mut writer = stream.try_clone().unwrap();
        scope.spawn(move || {
            writer.write_all(bytes).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer == bytes, "{address}");
    });
}

#[test]
fn connections_of_both_families() {
    let Some(scene) = Scene::new("connections_of_both_families", Proxy::Dante, &[]) else {
        return;
    };
    for address in SERVER {
        there_and_back(&scene, address, &pattern(5_000_000));
    }
}

#[test]
fn datagrams_of_both_families_and_all_sizes() {
    let name = "datagrams_of_both_families_and_all_sizes";
    let Some(scene) = Scene::new(name, Proxy::Dante, &[]) else {
        return;
    };
    for address in SERVER {
        let socket = scene.datagrams(address, scene.echo(address));
        // The larger ones are in fragments on the device.
        for size in [1, 0, 1000, 1452, 1473, 9000, 40_000] {
            let payload = pattern(size);
            let (_, answer) = ask(&socket, &payload);
            assert!(
                answer == payload,
                "{address}: {size} bytes, {} back",
                answer.len()
            );
        }
    }
}

#[test]
fn a_client_has_the_same_address_for_all_destinations() {
    let name = "a_client_has_the_same_address_for_all_destinations";
    let Some(scene) = Scene::new(name, Proxy::Dante, &[]) else {
        return;
    };
    let (first, second) = (scene.echo("10.99.0.7"), scene.echo("10.99.0.8"));
    let socket = scene.datagrams("10.99.0.7", first);
    let (at_first, _) = ask(&socket, b"question");
    socket.connect(("10.99.0.8", second)).unwrap();
    let (at_second, answer) = ask(&socket, b"question");
    assert_eq!((at_first, answer), (at_second, b"question".to_vec()));
}

#[test]
fn what_the_proxy_refuses_is_refused() {
    let Some(scene) = Scene::new("what_the_proxy_refuses_is_refused", Proxy::Dante, &[]) else {
        return;
    };
    // No server; forbidden by a rule.
    for address in ["10.99.0.7", "fd99::7", "10.99.66.1"] {
        let error = scene.connect(address, 9).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{address}");
    }
    // dante tells by ICMP that datagrams are forbidden, and the association outlives that.
    let port = scene.echo("10.99.0.7");
    let socket = scene.datagrams("10.99.66.1", 9);
    socket.send(b"forbidden").unwrap();
    socket.connect(("10.99.0.7", port)).unwrap();
    assert_eq!(ask(&socket, b"allowed").1, b"allowed");
}

#[test]
fn a_proxy_without_datagrams_refuses_them() {
    let name = "a_proxy_without_datagrams_refuses_them";
    let Some(scene) = Scene::new(name, Proxy::Microsocks(&[]), &[]) else {
        return;
    };
    for address in SERVER {
        download(&scene, address);
        let socket = scene.datagrams(address, 9);
        socket.send(b"question").unwrap();
        let error = socket.recv(&mut [0; 100]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{address}");
    }
}

#[test]
fn the_right_password_and_a_wrong_one() {
    let proxy = Proxy::Microsocks(&["-u", "user", "-P", "secret"]);
    let login = |password| ["--user", "user", "--password", password];
    let name = "the_right_password_and_a_wrong_one";
    let Some(scene) = Scene::new(name, proxy, &login("secret")) else {
        return;
    };
    download(&scene, "10.99.0.7");
    for options in [&login("wrong")[..], &[]] {
        let scene = Scene::new(name, proxy, options).unwrap();
        let _listener = scene.listen("10.99.0.7", 80);
        let error = scene.connect("10.99.0.7", 80).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{options:?}");
    }
}

#[test]
fn without_a_proxy_clients_are_refused() {
    let name = "without_a_proxy_clients_are_refused";
    let Some(scene) = Scene::new(name, Proxy::Other, &[]) else {
        return;
    };
    for address in SERVER {
        let error = scene.connect(address, 80).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let socket = scene.datagrams(address, 9);
        socket.send(b"question").unwrap();
        let error = socket.recv(&mut [0; 100]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn iperf3_both_ways() {
    let Some(scene) = Scene::new("iperf3_both_ways", Proxy::Dante, &[]) else {
        return;
    };
    if Command::new("iperf3").arg("-v").output().is_err() {
        skip("iperf3_both_ways", "needs iperf3");
        return;
    }
    let inside = |namespace: &Namespace| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace.name(), "iperf3"]);
        command
    };
    for direction in ["--zerocopy", "--reverse"] {
        // Bound: else its answers come from another address of the host.
        let mut serve = inside(&scene.host);
        serve.args(["-s", "-1", "--forceflush", "-B", "10.99.0.7"]);
        let _server = Program::start(serve, "Server listening");
        let mut iperf3 = inside(&scene.clients);
        iperf3.args([
            "-c",
            "10.99.0.7",
            "-u",
            "-b",
            "20M",
            "-l",
            "1200",
            "-t",
            "1",
        ]);
        iperf3.args(["-J", direction]);
        let report = output(&mut iperf3);
        let sum = report.rsplit("\"sum\":").next().unwrap();
        let number = |name: &str| {
            let value = sum
                .split(&format!("\"{name}\":"))
                .nth(1)
                .unwrap()
                .trim_start();
            let digits = value.split(|c: char| !c.is_ascii_digit()).next().unwrap();
            digits.parse::<u64>().unwrap()
        };
        let (packets, lost) = (number("packets"), number("lost_packets"));
        assert!(
            packets > 1000 && lost * 10 < packets,
            "{lost} of {packets}: {report}"
        );
        println!("{direction}: {lost} of {packets} lost");
    }
}

/// A download over QUIC, by a program that knows nothing of the proxy. Needs the Python package `aioquic`.
#[test]
fn a_quic_transfer() {
    let Some(scene) = Scene::new("a_quic_transfer", Proxy::Dante, &[]) else {
        return;
    };
    let has_it = Command::new("python3")
        .args(["-c", "import aioquic"])
        .output();
    if !has_it.is_ok_and(|output| output.status.success()) {
        skip("a_quic_transfer", "needs aioquic");
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/support/quic.py");
    let folder = std::env::temp_dir().join(format!("sosplice-socks-quic-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| folder.join(name));
    output(
        Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
            .args(["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=test", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate),
    );
    let python = |namespace: &Namespace| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace.name(), "python3", script]);
        command
    };
    let mut serve = python(&scene.host);
    serve
        .args(["serve", "10.99.0.7", "4433"])
        .arg(&certificate)
        .arg(&key);
    let _server = Program::start(serve, "serving");
    let mut fetch = python(&scene.clients);
    let fetched = output(fetch.args(["fetch", "10.99.0.7", "4433", "5000000"]));
    assert_eq!(fetched.trim(), "same");
    fs::remove_dir_all(&folder).unwrap();
}
