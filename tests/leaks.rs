//! After all parts were used and dropped nothing is left over: no thread, no descriptor, no growing
//! memory. A program of its own with one test, since it counts the resources of the process.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use sosplice::clock::{Clock, SystemClock};
use sosplice::kernel::KernelStream;
use sosplice::link::memory;
use sosplice::socket::poller::{Interest, Mode, Poller, Token};
use sosplice::splice::{Dispatch, Options, SplicePool};
use sosplice::{Stack, TcpListener, TcpStream};
use std::fs;
use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

/// Names of the threads, and descriptors.
fn left() -> (Vec<String>, usize) {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let comm = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
    let mut names: Vec<String> = tasks.filter_map(|task| comm(task.unwrap())).collect();
    names.sort();
    (names, fs::read_dir("/proc/self/fd").unwrap().count())
}

fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Stacks, pools, pollers, connections of all kinds, spliced, used, and dropped with work in them.
fn use_everything(round: u32) {
    let links = (
        memory::pair(memory::Config::default()),
        memory::pair(memory::Config::default()),
    );
    let build = |link, address: &str| {
        let builder = Stack::builder(link).address(address.parse().unwrap());
        builder.build().unwrap()
    };
    let ((a, b), (c, d)) = links;
    let client = build(a, "10.0.1.1/24");
    let front = build(b, "10.0.1.2/24");
    let back = build(c, "10.0.2.2/24");
    let server = build(d, "10.0.2.1/24");
    let service = TcpListener::bind(&server, "10.0.2.1:80").unwrap();
    let proxy = TcpListener::bind(&front, "10.0.1.2:80").unwrap();
    let pool = SplicePool::builder().workers(2).build();
    let poller = Poller::new();
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut open = Vec::new();
    for number in 0..10 {
        let user = TcpStream::connect(&client, "10.0.1.2:80").unwrap();
        let (inside, _) = proxy.accept().unwrap();
        let outside = TcpStream::connect(&back, "10.0.2.1:80").unwrap();
        let (mut at_server, _) = service.accept().unwrap();
        let dispatch = [Dispatch::Worker, Dispatch::Direct][number % 2];
        let options = Options::default()
            .pool(pool.clone())
            .dispatch(dispatch)
            .idle(Duration::from_secs(60));
        inside.splice_to(&outside, options.clone()).unwrap();
        outside.splice_to(&inside, options.clone()).unwrap();
        (&user).write_all(&[7; 50_000]).unwrap();
        at_server.read_exact(&mut [0; 50_000]).unwrap();
        poller
            .add(&user, Token(number), Interest::READABLE, Mode::Level)
            .unwrap();
        let kernel = KernelStream::connect(host.local_addr().unwrap()).unwrap();
        let accepted = host.accept().unwrap().0;
        at_server.splice_to(&kernel, options).unwrap();
        (&user).write_all(b"more").unwrap();
        open.push((user, inside, outside, at_server, kernel, accepted));
    }
    // In any order of dropping, sockets first or stacks first.
    match round % 3 {
        0 => drop((
            open, pool, poller, proxy, service, client, front, back, server,
        )),
        1 => drop((
            pool, poller, proxy, service, client, front, back, server, open,
        )),
        _ => drop((
            client, open, server, pool, front, service, back, proxy, poller,
        )),
    }
}

#[test]
fn nothing_is_left() {
    // The thread for the kernel's sockets and the global pool stay, once started.
    use_everything(0);
    let settle = |what: &str, done: &dyn Fn() -> bool| {
        let start = SystemClock.now();
        while !done() {
            let waited = SystemClock.now() - start;
            assert!(waited < Duration::from_secs(60), "{what}: {:?}", left());
            thread::yield_now();
        }
    };
    let ours = |name: &String| name.starts_with("so_splice") || name.starts_with("sosplice:driver");
    let none = || !left().0.iter().any(ours);
    settle("threads of the first round", &none);
    let before = left();
    let mut memory = Vec::new();
    for round in 1..=12 {
        use_everything(round);
        settle("threads and descriptors", &|| left() == before);
        memory.push(resident());
    }
    let (early, late) = (memory[3], memory[11]);
    assert!(late < early + (8 << 20), "memory grows: {memory:?}");
}
