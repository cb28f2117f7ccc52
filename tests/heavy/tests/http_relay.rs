//! The example `http_relay`: its relay between clients and backends on links in memory, and the program
//! as its users see it. hyper is a client and a backend that this project has not written; other ones are
//! scripts, byte by byte.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "../../support/example.rs"]
mod example;
#[path = "../../../examples/http_relay/head.rs"]
mod head;
#[path = "../../support/long.rs"]
mod long;
#[path = "../../../examples/http_relay/relay.rs"]
mod relay;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use long::times;
use proptest::prelude::*;
use proxy_header::{ParseConfig, ProxyHeader};
use relay::Relay;
use sosplice::link::memory;
use sosplice::stack::{SocketInfo, TcpState};
use sosplice::{Stack, TcpListener, TcpStream};
use std::convert::Infallible;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// Time limit for expected events.
const LONG: Duration = Duration::from_secs(60);
/// Timeout for requests that must fail.
const SHORT: Duration = Duration::from_millis(300);

const VIA: &str = "Via: 1.1 http_relay\r\n";

/// Clients, the relay and a stack of backends: red.example and blue.example are hyper, and
/// script.example is defined by a test. There is no listener for dead.example.
struct World {
    client: Stack,
    server: Stack,
    relay: Arc<Relay>,
    /// Connections that hyper's backends have accepted.
    accepted: Arc<AtomicU32>,
}

fn network(a: &str, b: &str) -> (Stack, Stack) {
    let (left, right) = memory::pair(memory::Config::default());
    let stack = |link, address: &str| {
        let builder = Stack::builder(link).address(address.parse().unwrap());
        builder.build().unwrap()
    };
    (stack(left, a), stack(right, b))
}

impl World {
    fn new(timeout: Duration) -> World {
        let (client, front) = network("10.0.1.1/24", "10.0.1.2/24");
        let (back, server) = network("10.0.2.2/24", "10.0.2.1/24");
        let hosts: [&'static str; 4] = [
            "red.example",
            "blue.example",
            "script.example",
            "dead.example",
        ];
        let route = |(host, port): (&&str, u16)| ((*host).to_owned(), ([10, 0, 2, 1], port).into());
        let relay = Arc::new(Relay {
            stack: back,
            routes: hosts.iter().zip(81..).map(route).collect(),
            default: None,
            timeout,
        });
        let accepted = Arc::new(AtomicU32::new(0));
        for (host, port) in hosts.into_iter().take(2).zip(81..) {
            let accepted = accepted.clone();
            listen(&server, port, move |stream| {
                accepted.fetch_add(1, Ordering::SeqCst);
                echo(host, stream);
            });
        }
        let listener = TcpListener::bind(&front, "10.0.1.2:80").unwrap();
        let running = relay.clone();
        spawn(move || drop(running.run(&listener)));
        World {
            client,
            server,
            relay,
            accepted,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.client, "10.0.1.2:80").unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        stream
    }

    /// Sets how script.example serves a connection, after reading its PROXY protocol header.
    fn script(&self, serve: impl Fn(TcpStream) + Clone + Send + 'static) {
        listen(&self.server, 83, move |stream| {
            proxied(&stream);
            serve(stream);
        });
    }

    /// All that is answered to these bytes, with the end of the stream behind them.
    fn answer(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        rest(&stream)
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) {
    thread::Builder::new().spawn(work).unwrap();
}

fn listen(stack: &Stack, port: u16, serve: impl Fn(TcpStream) + Clone + Send + 'static) {
    let listener = TcpListener::bind(stack, ("10.0.2.1", port)).unwrap();
    spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            spawn(move || serve(stream));
        }
    });
}

/// The client of a connection that begins with the PROXY protocol.
fn proxied(mut stream: impl Read) -> SocketAddr {
    let mut header = [0; 28];
    stream.read_exact(&mut header).unwrap();
    let (header, len) = ProxyHeader::parse(&header, ParseConfig::default()).unwrap();
    assert_eq!(len, 28);
    let address = header.proxied_address().unwrap();
    assert_eq!(address.destination.port(), 80);
    address.source
}

/// The next head, byte by byte; empty at the end of the stream.
fn take_head(mut stream: &TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() > 0 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Everything up to the end of the stream.
fn rest(mut stream: &TcpStream) -> String {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    String::from_utf8(all).unwrap()
}

#[track_caller]
fn expect(mut stream: &TcpStream, expected: &str) {
    let mut bytes = vec![0; expected.len()];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), expected);
}

fn send(mut stream: &TcpStream, bytes: impl AsRef<[u8]>) {
    stream.write_all(bytes.as_ref()).unwrap();
}

/// Bytes that are other ones for each number.
fn pattern(number: usize, len: usize) -> Bytes {
    let byte = |at: usize| (at ^ number << 20).wrapping_mul(0x9e37_79b9).to_le_bytes()[3];
    (0..len).map(byte).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap()
}

/// A backend that sends each body back, with its own name and the client's address. `/empty` has none.
fn echo(name: &'static str, stream: TcpStream) {
    let client = proxied(&stream);
    runtime().block_on(hyper_echo(name, client, stream));
}

async fn hyper_echo(name: &str, client: SocketAddr, stream: impl AsyncRead + AsyncWrite + Unpin) {
    let answer = async |request: Request<Incoming>| {
        let empty = request.uri().path() == "/empty";
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let response = Response::builder()
            .header("x-host", name)
            .header("x-client", client.to_string());
        let response = match empty {
            true => response.status(204).body(Full::default()),
            false => response.body(Full::new(body)),
        };
        Ok::<_, Infallible>(response.unwrap())
    };
    let builder = hyper::server::conn::http1::Builder::new();
    let connection = builder.serve_connection(TokioIo::new(stream), service_fn(answer));
    // The relay may end it at any time.
    connection.await.ok();
}

/// A hyper client's requests, one after the other on one connection.
fn with_hyper<R>(
    world: &World,
    exchange: impl AsyncFnOnce(hyper::client::conn::http1::SendRequest<Full<Bytes>>) -> R,
) -> R {
    let stream = world.connect();
    runtime().block_on(async {
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.unwrap();
        let (connection, result) = tokio::join!(connection, exchange(sender));
        connection.unwrap();
        result
    })
}

#[test]
fn many_requests_of_all_sizes_to_two_hosts_on_one_connection() {
    let world = World::new(LONG);
    let sizes = [0, 1, 1459, 1460, 1461, 65_536, 1_000_000, 5_000_000];
    with_hyper(&world, async |mut sender| {
        for number in 0..80 {
            let host = ["red.example", "Blue.Example:80"][number / 2 % 2];
            let body = pattern(number, sizes[number % sizes.len()]);
            let request = Request::post(format!("/{number}")).header("host", host);
            let request = request.body(Full::new(body.clone())).unwrap();
            let response = sender.send_request(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            let from = response.headers()["x-host"].to_str().unwrap().to_owned();
            assert!(host.to_lowercase().starts_with(&from), "{host}: {from}");
            assert!(
                response.headers()["x-client"]
                    .to_str()
                    .unwrap()
                    .starts_with("10.0.1.1:")
            );
            let received = response.into_body().collect().await.unwrap().to_bytes();
            assert!(
                received == body,
                "request {number}: {} bytes",
                received.len()
            );
        }
    });
    // A connection to a backend is kept until a request goes to another one.
    assert_eq!(world.accepted.load(Ordering::SeqCst), 40);
}

#[test]
fn responses_without_a_body_are_followed_by_others() {
    let world = World::new(LONG);
    with_hyper(&world, async |mut sender| {
        for number in 0..20 {
            let (method, path, status) = match number % 3 {
                0 => (Method::HEAD, "/", 200),
                1 => (Method::GET, "/empty", 204),
                _ => (Method::PUT, "/", 200),
            };
            let request = Request::builder().method(method.clone()).uri(path);
            let body = if method == Method::PUT {
                pattern(number, 1000)
            } else {
                Bytes::new()
            };
            let request = request
                .header("host", "red.example")
                .body(Full::new(body.clone()));
            let response = sender.send_request(request.unwrap()).await.unwrap();
            assert_eq!(response.status(), status);
            let received = response.into_body().collect().await.unwrap().to_bytes();
            assert!(received == body);
        }
    });
    assert_eq!(world.accepted.load(Ordering::SeqCst), 1);
}

#[test]
fn many_clients_at_once() {
    let world = World::new(LONG);
    thread::scope(|scope| {
        for client in 0..20 {
            let world = &world;
            scope.spawn(move || {
                with_hyper(world, async |mut sender| {
                    for number in 0..10 {
                        let host = ["red.example", "blue.example"][(client + number) % 2];
                        let body = pattern(client * 10 + number, 50_000 * number);
                        let request = Request::post("/").header("host", host);
                        let request = request.body(Full::new(body.clone())).unwrap();
                        let response = sender.send_request(request).await.unwrap();
                        assert_eq!(response.headers()["x-host"], host);
                        let received = response.into_body().collect().await.unwrap();
                        assert!(received.to_bytes() == body);
                    }
                });
            });
        }
    });
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let world = World::new(LONG);
    world.script(|stream| {
        for number in 0.. {
            if take_head(&stream).is_empty() {
                return;
            }
            let mut body = [0; 2];
            (&stream).read_exact(&mut body).unwrap();
            assert_eq!(&body, b"xy");
            send(
                &stream,
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{}",
                    number % 10
                ),
            );
        }
    });
    let one = "POST / HTTP/1.1\r\nHost: script.example\r\nContent-Length: 2\r\n\r\nxy";
    let stream = world.connect();
    send(&stream, one.repeat(50));
    for number in 0..50 {
        expect(
            &stream,
            &format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n{VIA}\r\n{}",
                number % 10
            ),
        );
    }
}

#[test]
fn a_head_may_arrive_byte_by_byte() {
    let world = World::new(LONG);
    let stream = world.connect();
    for byte in b"\r\nGET / HTTP/1.1\r\nHost: red.example\r\nConnection: close\r\n\r\n" {
        send(&stream, [*byte]);
    }
    assert!(rest(&stream).starts_with("HTTP/1.1 200 OK\r\n"));
}

#[test]
fn hop_by_hop_fields_are_not_forwarded() {
    let world = World::new(LONG);
    world.script(|stream| {
        let head = take_head(&stream);
        let answer =
            "HTTP/1.1 200 OK\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n";
        send(
            &stream,
            format!("{answer}Content-Length: {}\r\n\r\n{head}", head.len()),
        );
    });
    let answer = world.answer(
        b"GET http://script.example/a?b HTTP/1.1\r\nHost: elsewhere\r\nX-End: 1\r\nTE: trailers\r\n\
          Connection: close, X-Secret, content-length\r\nX-Secret: 1\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n",
    );
    let seen = format!(
        "GET http://script.example/a?b HTTP/1.1\r\nHost: script.example\r\nX-End: 1\r\n\
         Content-Length: 0\r\n{VIA}Connection: close\r\n\r\n"
    );
    let len = seen.len();
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n{VIA}Connection: close\r\n\r\n");
    assert_eq!(answer, head + &seen);
}

#[test]
fn chunks_are_passed_on_as_they_are_and_others_follow() {
    let body = "3\r\nabc\r\nA;name=\"value\"\r\n0123456789\r\n0f\r\nfifteen bytes..\r\n000;last\r\n\
                Digest: x\r\nOther: y\r\n\r\n";
    let world = World::new(LONG);
    world.script(move |stream| {
        while !take_head(&stream).is_empty() {
            send(
                &stream,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nTrailer: Digest\r\n\r\n",
            );
            for byte in body.as_bytes() {
                send(&stream, [*byte]);
            }
            take_head(&stream);
            let large = "x".repeat(3_000_000);
            send(
                &stream,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2dc6c0\r\n",
            );
            send(&stream, format!("{large}\r\n0\r\n\r\n"));
        }
    });
    let stream = world.connect();
    for _ in 0..3 {
        send(&stream, "GET / HTTP/1.1\r\nHost: script.example\r\n\r\n");
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nTrailer: Digest\r\n";
        expect(&stream, &format!("{head}{VIA}\r\n{body}"));
        send(&stream, "GET / HTTP/1.1\r\nHost: script.example\r\n\r\n");
        expect(
            &stream,
            &format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{VIA}\r\n2dc6c0\r\n"),
        );
        expect(&stream, &"x".repeat(3_000_000));
        expect(&stream, "\r\n0\r\n\r\n");
    }
}

#[test]
fn a_body_up_to_the_end_of_the_stream_ends_the_client_s_too() {
    let world = World::new(LONG);
    world.script(|stream| {
        take_head(&stream);
        send(
            &stream,
            format!("HTTP/1.0 200 OK\r\n\r\n{}", "x".repeat(1_000_000)),
        );
    });
    let stream = world.connect();
    send(&stream, "GET / HTTP/1.1\r\nHost: script.example\r\n\r\n");
    let head = format!("HTTP/1.1 200 OK\r\n{VIA}Connection: close\r\n\r\n");
    expect(&stream, &head);
    assert!(rest(&stream) == "x".repeat(1_000_000));
}

#[test]
fn interim_responses_are_passed_on() {
    let world = World::new(LONG);
    world.script(|stream| {
        take_head(&stream);
        send(&stream, "HTTP/1.1 100 Continue\r\n\r\n");
        let mut body = [0; 5];
        (&stream).read_exact(&mut body).unwrap();
        send(&stream, "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n");
        send(
            &stream,
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        );
    });
    let stream = world.connect();
    let head = "POST / HTTP/1.1\r\nHost: script.example\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    send(&stream, head);
    expect(&stream, &format!("HTTP/1.1 100 Continue\r\n{VIA}\r\n"));
    send(&stream, "hello");
    expect(
        &stream,
        &format!("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n{VIA}\r\n"),
    );
    expect(
        &stream,
        &format!("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n{VIA}\r\n"),
    );
}

#[test]
fn a_client_of_the_former_version_gets_one_response() {
    let world = World::new(LONG);
    world.script(|stream| {
        assert!(take_head(&stream).starts_with("GET / HTTP/1.0\r\n"));
        send(&stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let stream = world.connect();
    send(&stream, "GET / HTTP/1.0\r\nHost: script.example\r\n\r\n");
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{VIA}Connection: close\r\n\r\nok");
    assert_eq!(rest(&stream), head);
}

/// Statuses, and requests that are answered so.
fn bad_requests() -> Vec<(u16, String)> {
    let host = "Host: red.example\r\n";
    vec![
        (400, "nonsense\r\n\r\n".to_owned()),
        (400, "\0\x01\x02\r\n\r\n".to_owned()),
        (400, format!("GET / HTTP/1.1\r\n{host}")),
        (400, format!("GET / HTTP/2.0\r\n{host}\r\n")),
        (400, "GET / HTTP/1.1\r\n\r\n".to_owned()),
        (400, format!("GET / HTTP/1.1\r\n{host}{host}\r\n")),
        (400, format!("GET / HTTP/1.1\r\n{host}Field : x\r\n\r\n")),
        (
            400,
            format!("GET / HTTP/1.1\r\n{host}Field: x\r\n folded\r\n\r\n"),
        ),
        (400, format!("GET red.example HTTP/1.1\r\n{host}\r\n")),
        (
            400,
            format!("POST / HTTP/1.1\r\n{host}Content-Length: +1\r\n\r\nx"),
        ),
        (
            400,
            format!("POST / HTTP/1.1\r\n{host}Content-Length: 1, 1\r\n\r\nx"),
        ),
        (
            400,
            format!("POST / HTTP/1.1\r\n{host}Content-Length: \r\n\r\n"),
        ),
        (
            400,
            format!("POST / HTTP/1.1\r\n{host}Content-Length: 1\r\nContent-Length: 1\r\n\r\nx"),
        ),
        (
            400,
            format!("POST / HTTP/1.1\r\n{host}Content-Length: 18446744073709551616\r\n\r\n"),
        ),
        (
            400,
            format!(
                "POST / HTTP/1.1\r\n{host}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            411,
            format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            501,
            format!("CONNECT red.example:443 HTTP/1.1\r\n{host}\r\n"),
        ),
        (
            404,
            "GET / HTTP/1.1\r\nHost: green.example\r\n\r\n".to_owned(),
        ),
        (404, "GET / HTTP/1.0\r\n\r\n".to_owned()),
        (
            502,
            "GET / HTTP/1.1\r\nHost: dead.example\r\n\r\n".to_owned(),
        ),
        (
            431,
            format!(
                "GET / HTTP/1.1\r\n{host}X: {}\r\n\r\n",
                "x".repeat(16 * 1024)
            ),
        ),
        (
            431,
            format!("GET / HTTP/1.1\r\n{host}{}\r\n", "X: x\r\n".repeat(101)),
        ),
        (431, "x".repeat(100_000)),
    ]
}

#[test]
fn bad_requests_are_answered() {
    let world = World::new(LONG);
    for (status, request) in bad_requests() {
        let answer = world.answer(request.as_bytes());
        let status = format!("HTTP/1.1 {status} ");
        let request = &request[..request.len().min(200)];
        assert!(answer.starts_with(&status), "{request:?}: {answer:?}");
        assert!(
            answer.ends_with("\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
            "{answer}"
        );
    }
    // Just as large as it may be.
    let start = "GET / HTTP/1.1\r\nHost: red.example\r\nConnection: close\r\nX: ";
    let field = "x".repeat(16 * 1024 - start.len() - 4);
    let answer = world.answer(format!("{start}{field}\r\n\r\n").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert_eq!(world.answer(b""), "");
}

#[test]
fn the_rest_of_a_refused_request_does_not_reset_the_answer() {
    let world = World::new(LONG);
    let stream = world.connect();
    let writer = stream.clone();
    spawn(move || {
        let head = "POST / HTTP/1.1\r\nHost: green.example\r\nContent-Length: 3000000\r\n\r\n";
        send(&writer, head);
        send(&writer, pattern(1, 3_000_000));
        writer.shutdown(Shutdown::Write).unwrap();
    });
    assert!(rest(&stream).starts_with("HTTP/1.1 404 Not Found\r\n"));
}

#[test]
fn silent_clients_and_backends_are_given_up() {
    let world = World::new(SHORT);
    world.script(|stream| {
        take_head(&stream);
        // Holds it open.
        rest(&stream);
    });
    let stream = world.connect();
    send(&stream, "GET / HTTP/1.1\r\nHost: ");
    assert!(rest(&stream).starts_with("HTTP/1.1 408 Request Timeout\r\n"));
    let stream = world.connect();
    send(
        &stream,
        "POST / HTTP/1.1\r\nHost: script.example\r\nContent-Length: 5\r\n\r\nhe",
    );
    assert!(rest(&stream).starts_with("HTTP/1.1 408 Request Timeout\r\n"));
    let stream = world.connect();
    send(
        &stream,
        "POST / HTTP/1.1\r\nHost: script.example\r\nContent-Length: 5\r\n\r\nhello",
    );
    assert!(rest(&stream).starts_with("HTTP/1.1 504 Gateway Timeout\r\n"));
    // Without the beginning of a request there is no answer.
    assert_eq!(rest(&world.connect()), "");
    let stream = world.connect();
    send(&stream, "GET / HTTP/1.1\r\nHost: red.example\r\n\r\n");
    let answer = rest(&stream);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(!answer.contains("408"), "{answer}");
}

#[test]
fn a_backend_may_take_longer_than_the_timeout_while_the_request_goes_on() {
    let world = World::new(SHORT * 7);
    world.script(|stream| {
        take_head(&stream);
        let mut body = [0; 20];
        (&stream).read_exact(&mut body).unwrap();
        send(&stream, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    });
    let stream = world.connect();
    send(
        &stream,
        "POST / HTTP/1.1\r\nHost: script.example\r\nContent-Length: 20\r\n\r\n",
    );
    let never = world.connect();
    never.set_read_timeout(Some(SHORT / 2)).unwrap();
    for _ in 0..20 {
        // Waits for a part of the timeout, all in all for several of them.
        never.peek(&mut [0]).ok();
        send(&stream, "x");
    }
    expect(
        &stream,
        &format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{VIA}\r\n"),
    );
}

#[test]
fn a_client_may_end_behind_its_request_but_not_within() {
    let world = World::new(LONG);
    let request = "POST / HTTP/1.1\r\nHost: red.example\r\nContent-Length: 5\r\n\r\n";
    assert!(
        world
            .answer(format!("{request}hello").as_bytes())
            .ends_with("\r\n\r\nhello")
    );
    let answer = world.answer(format!("{request}he").as_bytes());
    assert!(
        answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
        "{answer}"
    );
    let large = [
        request.replace('5', "5000000").as_bytes(),
        &pattern(1, 2_000_000),
    ]
    .concat();
    let answer = world.answer(&large);
    assert!(
        answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
        "{answer}"
    );
}

#[test]
fn bad_responses_are_a_bad_gateway() {
    let world = World::new(LONG);
    let cases: [&'static str; 9] = [
        "",
        "nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/3 200 OK\r\n\r\n",
    ];
    let next = Arc::new(AtomicU32::new(0));
    world.script(move |stream| {
        take_head(&stream);
        send(&stream, cases[next.fetch_add(1, Ordering::SeqCst) as usize]);
    });
    for case in cases {
        let answer = world.answer(b"GET / HTTP/1.1\r\nHost: script.example\r\n\r\n");
        let answer =
            answer.trim_start_matches("HTTP/1.1 100 Continue\r\nVia: 1.1 http_relay\r\n\r\n");
        assert!(
            answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"),
            "{case:?}: {answer}"
        );
    }
}

#[test]
fn a_response_that_is_cut_off_resets_the_client() {
    let world = World::new(LONG);
    let cases: [&'static str; 7] = [
        "Content-Length: 100\r\n\r\nonly so much",
        "Content-Length: 18446744073709551615\r\n\r\nonly so much",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhe",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nField",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n",
        "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n\r\n\r\n",
    ];
    let next = Arc::new(AtomicU32::new(0));
    world.script(move |stream| {
        take_head(&stream);
        let body = cases[next.fetch_add(1, Ordering::SeqCst) as usize];
        send(&stream, format!("HTTP/1.1 200 OK\r\n{body}"));
    });
    for case in cases {
        let mut stream = world.connect();
        send(&stream, "GET / HTTP/1.1\r\nHost: script.example\r\n\r\n");
        let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{case}");
    }
}

#[test]
fn an_answer_before_the_end_of_a_request_arrives() {
    let world = World::new(LONG);
    world.script(|stream| {
        take_head(&stream);
        send(
            &stream,
            "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno",
        );
        stream.shutdown(Shutdown::Write).unwrap();
        // Until the relay gives it up.
        rest(&stream);
    });
    let stream = world.connect();
    send(
        &stream,
        "POST / HTTP/1.1\r\nHost: script.example\r\nContent-Length: 9000000\r\n\r\nsome",
    );
    let head =
        format!("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n{VIA}Connection: close\r\n\r\nno");
    assert_eq!(rest(&stream), head);
}

#[test]
fn a_kept_connection_that_its_backend_has_ended_is_replaced() {
    let world = World::new(LONG);
    world.script(|stream| {
        take_head(&stream);
        send(&stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let stream = world.connect();
    for _ in 0..20 {
        send(&stream, "GET / HTTP/1.1\r\nHost: script.example\r\n\r\n");
        expect(
            &stream,
            &format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{VIA}\r\nok"),
        );
        // Until the end of the backend's stream has arrived at the relay.
        let is_open = |socket: &SocketInfo| socket.state == TcpState::Established;
        while world.relay.stack.sockets().iter().any(is_open) {
            thread::yield_now();
        }
        // And has been acted upon: the driver does one thing after the other.
        world.answer(b"GET / HTTP/1.1\r\nHost: red.example\r\n\r\n");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..Default::default() })]

    /// Heads with a few bytes changed, and any bytes: never a panic, never more than there is, and the
    /// same from a longer stream.
    #[test]
    fn any_bytes_are_parsed_or_refused(
        which in 0..6usize,
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        any in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut bytes: Vec<u8> = match which {
            0 => b"POST /x HTTP/1.1\r\nHost: red.example:80\r\nContent-Length: 12\r\nConnection: a, b\r\n\r\n".to_vec(),
            1 => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".to_vec(),
            2 => b"GET http://blue.example/ HTTP/1.0\r\n\r\n".to_vec(),
            3 => b"1f;x=y\r\n".to_vec(),
            4 => b"0\r\nA: b\r\n\r\n".to_vec(),
            _ => any.clone(),
        };
        for (at, byte) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        let longer = [&bytes[..], &any].concat();
        macro_rules! check {
            ($parse:expr) => {
                if let Ok(Some((len, value))) = $parse(&bytes) {
                    prop_assert!(len <= bytes.len());
                    prop_assert_eq!($parse(&longer), Ok(Some((len, value))));
                }
            };
        }
        check!(head::request);
        check!(|bytes: &[u8]| head::response(bytes, false));
        check!(head::chunk_size);
        check!(|bytes: &[u8]| head::last_chunk(bytes, 3));
    }
}

/// Whole requests with a few bytes changed: each is answered or ended, and none ends the relay's thread in
/// another way.
#[test]
fn changed_requests_are_answered_or_ended() {
    let world = World::new(LONG);
    let (inside, outside) = network("10.0.3.1/24", "10.0.3.2/24");
    let listener = TcpListener::bind(&inside, "10.0.3.1:80").unwrap();
    let relay = Relay {
        stack: world.relay.stack.clone(),
        routes: world.relay.routes.clone(),
        default: Some("10.0.2.1:84".parse().unwrap()),
        timeout: SHORT,
    };
    let one =
        b"POST / HTTP/1.1\r\nHost: dead.example\r\nContent-Length: 4\r\nConnection: x\r\n\r\nbody";
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..300 {
        let mut request = one.repeat(2);
        for _ in 0..random.usize(0..4) {
            let at = random.usize(..request.len());
            match random.u8(0..3) {
                0 => request[at] = random.u8(..),
                1 => drop(request.remove(at)),
                _ => request.truncate(at.max(1)),
            }
        }
        let mut client = TcpStream::connect(&outside, "10.0.3.1:80").unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        client.write_all(&request).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| relay.serve(&accepted));
            let answer = rest(&client);
            let known = answer.is_empty() || answer.starts_with("HTTP/1.1 ");
            assert!(known, "round {round}: {answer:?}");
        });
    }
}

fn http_relay(arguments: &[&str]) -> Output {
    let path = example::path("http_relay");
    Command::new(path).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn the_program_checks_every_body() {
    let long = times("1048576", "4194304");
    for (connections, bytes) in [("4", long), ("30", "10001"), ("1", "1")] {
        let output = http_relay(&["--connections", connections, "--bytes", bytes]);
        let (said, complaints) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{said}{complaints}");
        let all = connections.parse::<u32>().unwrap() * 8;
        assert!(
            said.contains(&format!("{all} of {all} responses are right")),
            "{said}"
        );
        assert_eq!(complaints, "");
    }
}

#[test]
fn bad_arguments_are_explained() {
    let real = [
        "--tun",
        "t",
        "--address",
        "10.9.0.2/24",
        "--listen",
        "10.9.0.2:80",
    ];
    let cases: [(&[&str], &str); 6] = [
        (&["--connections", "0"], "1..=1000"),
        (&["--bytes", "0"], "1..=1073741824"),
        (&["--timeout", "0"], "1..=86400"),
        (&["--route", "x"], "like example.com=10.1.0.1:8080"),
        (&["--tun", "t"], "--address"),
        (&real, "give a --route or a --default"),
    ];
    for (arguments, expected) in cases {
        let output = http_relay(arguments);
        let complaints = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {complaints}");
        assert!(complaints.contains(expected), "{arguments:?}: {complaints}");
    }
    let help = http_relay(&["--help"]);
    assert!(help.status.success());
    assert!(text(&help.stdout).contains("Exit status: 0 if all went well"));
}

#[cfg(target_os = "linux")]
#[path = "../../support/namespace.rs"]
mod namespace;
#[cfg(target_os = "linux")]
#[path = "../../support/program.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod program;

#[test]
#[cfg(target_os = "linux")]
fn a_missing_device_is_one_clear_line() {
    let arguments =
        "--tun sosplice-none --address 10.9.0.2/24 --listen 10.9.0.2:80 --default 10.9.0.1:80";
    let output = http_relay(&arguments.split(' ').collect::<Vec<_>>());
    let complaints = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{complaints}");
    assert_eq!(complaints.lines().count(), 1, "{complaints}");
    assert!(
        complaints.contains("there is no interface sosplice-none"),
        "{complaints}"
    );
}

/// A kernel's socket in a namespace, with hyper behind it. Where it is.
#[cfg(target_os = "linux")]
fn kernel_backend(namespace: &namespace::Namespace, name: &'static str) -> SocketAddr {
    let bind = || std::net::TcpListener::bind("10.96.0.1:0").unwrap();
    let listener = namespace.enter(bind);
    let address = listener.local_addr().unwrap();
    let serve = move |stream: std::net::TcpStream| {
        let client = proxied(&stream);
        assert_eq!(client.ip(), address.ip());
        stream.set_nonblocking(true).unwrap();
        runtime().block_on(async {
            let stream = tokio::net::TcpStream::from_std(stream).unwrap();
            hyper_echo(name, client, stream).await;
        });
    };
    spawn(move || {
        for stream in listener.incoming().map(Result::unwrap) {
            spawn(move || serve(stream));
        }
    });
    address
}

/// `curl` through the program on a TUN device, to hyper on the kernel's sockets. Needs root.
#[test]
#[cfg(target_os = "linux")]
fn curl_and_the_kernel_s_backends_on_a_device() {
    let test = "curl_and_the_kernel_s_backends_on_a_device";
    if !namespace::available(test) {
        return;
    }
    if Command::new("curl").arg("-V").output().is_err() {
        return namespace::skip(test, "needs curl");
    }
    let namespace = namespace::Namespace::new("http");
    namespace.tun("th", &["10.96.0.1/24"], 1500);
    let inside = |program: &str| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace.name(), program]);
        command
    };
    let mut relay = inside(example::path("http_relay").to_str().unwrap());
    relay.args("--tun th --address 10.96.0.2/24 --listen 10.96.0.2:80".split(' '));
    let names = ["red.example", "blue.example"];
    for name in names {
        let address = kernel_backend(&namespace, name);
        relay.arg(format!("--route={name}={address}"));
    }
    let _relay = program::Program::start(relay, "listening on 10.96.0.2:80");
    namespace.wait_until_up("th");

    let folder = std::env::temp_dir().join(format!("sosplice-http-relay-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let body = pattern(1, 3_000_000);
    std::fs::write(folder.join("body"), &body).unwrap();
    let mut curl = inside("curl");
    for number in 0..4 {
        let name = names[number / 2];
        curl.args((number > 0).then_some("--next"));
        curl.args([
            "-sS",
            "--fail",
            "--max-time",
            "60",
            "--data-binary",
            "@body",
        ]);
        curl.args([
            "--resolve",
            &format!("{name}:80:10.96.0.2"),
            &format!("http://{name}/"),
        ]);
        curl.args([
            "-w",
            "%{num_connects} %header{x-host}\\n",
            "-o",
            &number.to_string(),
        ]);
    }
    let said = program::output(curl.current_dir(&folder));
    let expected = "1 red.example\n0 red.example\n1 blue.example\n0 blue.example\n";
    assert_eq!(said, expected);
    for number in 0..4 {
        let received = std::fs::read(folder.join(number.to_string())).unwrap();
        assert!(
            received == body,
            "request {number}: {} bytes",
            received.len()
        );
    }
    std::fs::remove_dir_all(folder).unwrap();
}
