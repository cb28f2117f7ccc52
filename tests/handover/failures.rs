//! What goes wrong in the middle: the process that serves goes on, and nothing is lost.

use crate::peer::Peer;
use crate::program::Program;
use crate::scene::{LIMIT, Scene, exchange, says, until};
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;

/// A proxy, and a connection through it.
fn served(scene: &Scene) -> (Program, TcpStream) {
    scene.echo();
    let proxy = scene.proxy(&["--grace", "100"]);
    let mut open = scene.connect().unwrap();
    exchange(&mut open).unwrap();
    (proxy, open)
}

/// It serves as before, and can be taken over from.
fn goes_on(scene: &Scene, mut proxy: Program, mut open: TcpStream) {
    exchange(&mut open).unwrap();
    scene.serves();
    let mut next = scene.proxy(&[]);
    exchange(&mut open).unwrap();
    scene.serves();
    drop(open);
    assert!(proxy.ended(LIMIT).success());
    scene.serves();
    assert!(next.terminate(LIMIT).success());
}

#[test]
fn a_new_process_that_fails_changes_nothing() {
    let Some(scene) = Scene::plain("a_new_process_that_fails_changes_nothing") else {
        return;
    };
    let (proxy, mut open) = served(&scene);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let socket = scene.socket();
    for (arguments, complaint) in [
        // Before it asks, after it has asked, and when it has got the devices.
        (
            vec!["--listen", "10.9.9.9:80"],
            "none of the --tun has this address",
        ),
        (
            vec!["--queues", "2"],
            "--queues 2, no --no-offload there; these must be the same",
        ),
        (vec!["--no-offload"], "command lines differ"),
        (vec!["--metrics", &at], "metrics: cannot listen"),
    ] {
        let said = scene.failing(&socket, &arguments);
        assert!(said.contains(complaint), "{arguments:?}: {said}");
        exchange(&mut open).unwrap();
    }
    goes_on(&scene, proxy, open);
}

/// One that ends, or stands still, at each step.
#[test]
fn a_peer_that_ends_or_stands_still_changes_nothing() {
    let Some(scene) = Scene::plain("a_peer_that_ends_or_stands_still_changes_nothing") else {
        return;
    };
    let (proxy, mut open) = served(&scene);
    let (path, devices) = (scene.socket(), scene.devices());
    // At once, and after each message.
    drop(Peer::connect(&path));
    says(&proxy, "has closed the connection at once");
    let peer = Peer::connect(&path);
    peer.hello(1, &devices);
    assert!(peer.hear().contains("Offered"));
    drop(peer);
    says(&proxy, "has given up");
    let peer = Peer::connect(&path);
    peer.hello(1, &devices);
    assert!(peer.hear().contains("Offered"));
    peer.say(1, "\"Take\"");
    assert!(peer.hear().contains("Yours"));
    drop(peer);
    says(&proxy, "has ended");
    exchange(&mut open).unwrap();
    // It takes over and stands still: it cannot say that it serves when the other has gone on.
    let late = Peer::connect(&path);
    late.hello(1, &devices);
    assert!(late.hear().contains("Offered"));
    late.say(1, "\"Take\"");
    assert!(late.hear().contains("Yours"));
    assert_eq!(late.hear(), "", "closed");
    exchange(&mut open).unwrap();
    // Silent ones, and one that sends a byte now and then.
    let silent = [(); 3].map(|()| Peer::connect(&path));
    let wrong = Peer::connect(&path);
    wrong.say(1, "\"Serving\"");
    says(&proxy, "a process begins with Serving");
    goes_on(&scene, proxy, open);
    drop(silent);
}

/// The messages of the other one while a process prepares itself.
#[test]
fn one_at_a_time() {
    let Some(scene) = Scene::plain("one_at_a_time") else {
        return;
    };
    let (proxy, open) = served(&scene);
    let peer = Peer::connect(&scene.socket());
    peer.hello(1, &scene.devices());
    assert!(peer.hear().contains("Offered"));
    let said = scene.failing(&scene.socket(), &[]);
    assert!(said.contains("is about to take over"), "{said}");
    drop(peer);
    says(&proxy, "has given up");
    goes_on(&scene, proxy, open);
}

#[test]
fn other_versions_are_refused_by_both_sides() {
    let Some(scene) = Scene::plain("other_versions_are_refused_by_both_sides") else {
        return;
    };
    let (proxy, open) = served(&scene);
    let peer = Peer::connect(&scene.socket());
    peer.hello(2, &scene.devices());
    let answer = peer.hear();
    assert!(
        answer.contains("it has version 2 of the handover, this process version 1"),
        "{answer}"
    );
    // The other way round.
    let other = scene.path("other");
    let listener = Peer::listen(&other);
    let said = std::thread::scope(|scope| {
        let asked = scope.spawn(|| scene.failing(&other, &[]));
        let peer = Peer::accept(&listener);
        assert!(peer.hear().contains("Hello"));
        peer.say(2, "{\"Refused\":{\"why\":\"?\"}}");
        asked.join().unwrap()
    });
    assert!(said.contains("it has version 2 of the handover"), "{said}");
    goes_on(&scene, proxy, open);
}

#[test]
fn a_path_that_is_no_socket_is_left_alone() {
    let Some(scene) = Scene::plain("a_path_that_is_no_socket_is_left_alone") else {
        return;
    };
    let file = scene.path("file");
    fs::write(&file, "precious").unwrap();
    let said = scene.failing(&file, &[]);
    assert!(said.contains("exists and is no socket"), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    let link = scene.path("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let said = scene.failing(&link, &[]);
    assert!(said.contains("exists and is no socket"), "{said}");
    assert_eq!(fs::read_to_string(&link).unwrap(), "precious");
    let said = scene.failing(&scene.path("no/directory"), &[]);
    assert!(said.contains("its directory"), "{said}");
    let long = scene.path(&"x".repeat(120));
    let said = scene.failing(&long, &[]);
    assert!(said.contains("up to 107 bytes"), "{said}");
    let stream = scene.path("stream");
    let _listener = UnixListener::bind(&stream).unwrap();
    let said = scene.failing(&stream, &[]);
    assert!(said.contains("the socket of another program"), "{said}");
    assert!(stream.exists());
    // No device was touched, and none is busy. A socket that was left is replaced; only its owner may connect.
    drop(Peer::listen(&scene.socket()));
    let proxy = scene.proxy(&[]);
    let metadata = fs::metadata(scene.socket()).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    scene.echo();
    scene.serves();
    drop(proxy);
    // So is that of a process that was killed.
    let mut proxy = scene.proxy(&[]);
    until("it serves", || scene.connect().is_ok());
    assert!(proxy.terminate(LIMIT).success());
}

/// Even if the mode of the file would let it.
#[test]
fn another_user_is_refused() {
    let Some(scene) = Scene::plain("another_user_is_refused") else {
        return;
    };
    let (proxy, open) = served(&scene);
    let mode = fs::Permissions::from_mode(0o777);
    fs::set_permissions(scene.socket(), mode).unwrap();
    // Of this thread only.
    let answer = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let nobody = rustix::process::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            Peer::connect(&scene.socket()).hear()
        });
        other.join().unwrap()
    });
    assert_eq!(answer, "");
    says(&proxy, "of another user (65534)");
    goes_on(&scene, proxy, open);
}
