//! Settings that are read again while connections come and go.

use crate::long::times;
use crate::scene::{LIMIT, Scene, exchange, until};
use rustix::process::Signal;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

const CLIENTS: usize = 8;

/// Every connection is served, and one that is open all the time stays so.
#[test]
fn settings_are_read_again_under_load_without_an_error() {
    let Some(scene) = Scene::plain("settings_are_read_again_under_load_without_an_error") else {
        return;
    };
    scene.echo();
    let (connections, reloads) = times((800, 4), (10_000, 20));
    let file = scene.path("proxy.toml");
    let write = |number: usize| {
        let weight = number % 5 + 1;
        let balance = ["round-robin", "least", "client"][number % 3];
        let address = scene.back();
        let text = format!(
            "balance = \"{balance}\"\nper_client = {}\n[check]\ninterval = 0.{weight}\n\
             [[backend]]\naddress = \"{address}\"\nweight = {weight}\n",
            10_000 + number
        );
        fs::write(&file, text).unwrap();
    };
    write(0);
    let mut proxy = scene.proxy(&["--config", file.to_str().unwrap()]);
    let mut open = scene.connect().unwrap();
    exchange(&mut open).unwrap();
    let done = AtomicUsize::new(0);
    let errors: Vec<_> = thread::scope(|scope| {
        let client = || {
            let mut errors = Vec::new();
            while done.fetch_add(1, Ordering::Relaxed) < connections {
                let served = scene.connect().and_then(|mut stream| exchange(&mut stream));
                errors.extend(served.err());
            }
            errors
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        for number in 1..=reloads {
            let turn = connections * number / (reloads + 1);
            until("connections", || done.load(Ordering::Relaxed) >= turn);
            write(number);
            proxy.signal(Signal::HUP);
            until("a reload", || {
                proxy.said().matches("renewed:").count() == number
            });
        }
        clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect()
    });
    assert!(errors.is_empty(), "{} errors: {errors:?}", errors.len());
    exchange(&mut open).unwrap();
    drop(open);
    assert!(proxy.terminate(LIMIT).success());
    let said = proxy.said();
    println!("{connections} connections, {reloads} reloads, 0 errors");
    assert!(
        said.contains(&format!("{} connections in", connections + 1)),
        "{said}"
    );
    assert!(!said.contains("refused:"), "{said}");
}
