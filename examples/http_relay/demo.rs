//! Clients, relay and backends in one process:
//!
//! ```text
//! clients --link-- front stack [ relay ] back stack --link-- backends red and blue
//! ```
//!
//! A client sends all its requests at once, to both hosts in turn, and checks the responses to the
//! byte. A backend echoes each body, with its own name and the client's address from the PROXY
//! protocol.

use crate::head;
use crate::relay::Relay;
use anyhow::{Context, ensure};
use proxy_header::ParseConfig;
use proxy_header::io::ProxiedStream;
use sosplice::link::memory;
use sosplice::{Stack, TcpListener, TcpStream};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

const FRONT: &str = "10.0.1.2:80";
const RED: (&str, &str) = ("red.example", "10.0.2.1:80");
const BLUE: (&str, &str) = ("blue.example", "10.0.2.1:81");
/// Requests of each client.
const REQUESTS: u32 = 8;

/// Runs the clients to their end.
pub(crate) fn run(connections: u16, bytes: u32, timeout: Duration) -> anyhow::Result<()> {
    let (client, front) = network("10.0.1.1/24", "10.0.1.2/24")?;
    let (back, server) = network("10.0.2.2/24", "10.0.2.1/24")?;
    let (stack, default) = (back, None);
    let route = |(name, address)| Ok((String::from(name), listen(&server, name, address)?));
    let routes = [RED, BLUE]
        .map(route)
        .into_iter()
        .collect::<io::Result<_>>()?;
    let relay = Arc::new(Relay {
        stack,
        routes,
        default,
        timeout,
    });
    let listener = TcpListener::bind_with_backlog(&front, FRONT, connections.into())?;
    thread::Builder::new().spawn(move || relay.run(&listener))?;

    println!("{connections} connections, {REQUESTS} requests on each, bodies up to {bytes} bytes");
    let right: io::Result<u32> = thread::scope(|scope| {
        let start = |_| {
            let stream = TcpStream::connect(&client, FRONT)?;
            thread::Builder::new().spawn_scoped(scope, move || requests(&stream, bytes))
        };
        let clients: io::Result<Vec<_>> = (0..connections).map(start).collect();
        clients?.into_iter().map(join).sum()
    });
    let (right, all) = (
        right.context("a client")?,
        u32::from(connections) * REQUESTS,
    );
    println!("{right} of {all} responses are right, to the byte");
    ensure!(right == all, "responses differ from what they should be");
    Ok(())
}

/// Two stacks with a link between them.
fn network(a: &str, b: &str) -> anyhow::Result<(Stack, Stack)> {
    let (left, right) = memory::pair(memory::Config::default());
    let a = Stack::builder(left).address(a.parse()?).build()?;
    let b = Stack::builder(right).address(b.parse()?).build()?;
    Ok((a, b))
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().expect("invariant: no client panics")
}

/// A request and its response.
fn exchange(client: SocketAddr, at: u32, bytes: u32) -> (Vec<u8>, Vec<u8>) {
    let (name, _) = [RED, BLUE][(at / 3 % 2) as usize];
    let len = [0, 1, bytes, bytes / 3][(at % 4) as usize];
    let seed = u32::from(client.port()) << 8 | at;
    let byte = |at: u32| (at ^ seed).wrapping_mul(0x9e37_79b9).to_be_bytes()[0];
    let body: Vec<u8> = (0..len).map(byte).collect();
    let fields = format!("Content-Length: {len}\r\n");
    let request = format!("POST /{at} HTTP/1.1\r\nHost: {name}\r\n{fields}\r\n");
    let via = "Via: 1.1 http_relay\r\n";
    let response = format!("HTTP/1.1 200 {name} to {client}\r\n{fields}{via}\r\n");
    let with_body = |head: String| [head.as_bytes(), &body].concat();
    (with_body(request), with_body(response))
}

/// Sends requests without waiting for responses, and counts the correct ones.
fn requests(mut stream: &TcpStream, bytes: u32) -> io::Result<u32> {
    let client = stream.local_addr();
    thread::scope(|scope| {
        let mut writer = stream;
        let send = move || {
            (0..REQUESTS).try_for_each(|at| writer.write_all(&exchange(client, at, bytes).0))
        };
        let sender = thread::Builder::new().spawn_scoped(scope, send)?;
        let mut right = 0;
        for at in 0..REQUESTS {
            let (_, response) = exchange(client, at, bytes);
            let mut received = vec![0; response.len()];
            stream.read_exact(&mut received)?;
            right += u32::from(received == response);
        }
        join(sender).map(|()| right)
    })
}

/// A backend, with a thread for each connection.
fn listen(server: &Stack, name: &'static str, address: &str) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(server, address)?;
    let address = listener.local_addr();
    thread::Builder::new().spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve =
                move || serve(name, &stream).unwrap_or_else(|error| eprintln!("{name}: {error}"));
            thread::Builder::new().spawn(serve).ok();
        }
    })?;
    Ok(address)
}

fn serve(name: &str, mut stream: &TcpStream) -> io::Result<()> {
    let reader = ProxiedStream::create_from_std(stream, ParseConfig::default())?;
    let client = reader
        .proxy_header()
        .proxied_address()
        .map(|address| address.source);
    let client = client.ok_or(io::ErrorKind::InvalidData)?;
    let mut reader = BufReader::new(reader);
    let mut head = Vec::new();
    while reader.read_until(b'\n', &mut head)? > 0 {
        let Some((_, request)) = head::request(&head).map_err(|_| io::ErrorKind::InvalidData)?
        else {
            continue;
        };
        let line = format!("HTTP/1.1 200 {name} to {client}\r\n");
        write!(stream, "{line}Content-Length: {}\r\n\r\n", request.body)?;
        io::copy(&mut (&mut reader).take(request.body), &mut stream)?;
        head.clear();
    }
    Ok(())
}
