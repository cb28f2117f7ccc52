//! TCP connections of two stacks over an in-memory link.
#![allow(clippy::unwrap_used, reason = "tests")]

use sosplice::link::memory;
use sosplice::{Stack, TcpListener, TcpStream};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;

fn stacks() -> (Stack, Stack) {
    let (a, b) = memory::pair(memory::Config::default());
    let server = Stack::builder(a).address("10.0.0.1/24".parse().unwrap());
    let client = Stack::builder(b).address("10.0.0.2/24".parse().unwrap());
    let server = server
        .address("fd00::1/64".parse().unwrap())
        .build()
        .unwrap();
    let client = client
        .address("fd00::2/64".parse().unwrap())
        .build()
        .unwrap();
    (server, client)
}

fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len)
        .map(|i| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0])
        .collect()
}

fn echo(address: &str, len: usize) {
    let (server, client) = stacks();
    let listener = TcpListener::bind(&server, address.parse().unwrap()).unwrap();
    let serving = thread::Builder::new()
        .spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buf = vec![0; 10_000];
            loop {
                let count = stream.read(&mut buf).unwrap();
                if count == 0 {
                    stream.shutdown(Shutdown::Write).unwrap();
                    return;
                }
                stream.write_all(&buf[..count]).unwrap();
            }
        })
        .unwrap();
    let stream = TcpStream::connect(&client, address.parse().unwrap()).unwrap();
    let mut writer = stream.clone();
    let writing = thread::Builder::new()
        .spawn(move || {
            let mut sent = 0;
            while sent < len {
                let count = (len - sent).min(7001);
                writer.write_all(&pattern(sent, count)).unwrap();
                sent += count;
            }
            writer.shutdown(Shutdown::Write).unwrap();
        })
        .unwrap();
    let mut all = Vec::new();
    (&stream).read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), len);
    assert!(all == pattern(0, len), "bytes differ");
    writing.join().unwrap();
    serving.join().unwrap();
    assert_eq!((server.stats().broken, client.stats().broken), (0, 0));
}

#[test]
fn echo_over_ipv4() {
    echo("10.0.0.1:80", 10_000_000);
}

#[test]
fn echo_over_ipv6() {
    echo("[fd00::1]:80", 1_000_000);
}

#[test]
fn nobody_listens() {
    let (_server, client) = stacks();
    let error = TcpStream::connect(&client, "10.0.0.1:80".parse().unwrap()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}
