//! The relay: a thread for each client, which reads heads and no bodies.
//!
//! A head is inspected in place (`peek`), and read when it is complete. So all bytes after it are still
//! in the socket: a splice moves the body, with its length as the limit, and the next request waits.

use crate::head::{self, Body, Parsed, Request, Response};
use proxy_header::{ProxiedAddress, ProxyHeader};
use sosplice::clock::{Clock, SystemClock};
use sosplice::splice::{Cause, Options, Splice};
use sosplice::{Stack, TcpListener, TcpStream};
use std::collections::HashMap;
use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Largest head, in bytes, and largest line with the size of a chunk.
const HEAD: usize = 16 * 1024;
/// Enough for most of them.
const FIRST_LOOK: usize = 1024;
/// How long a client may continue sending after the last response before it is reset.
const LINGER: Duration = Duration::from_secs(2);
/// Stack of a client's thread, in bytes.
const STACK_SIZE: usize = 256 * 1024;

/// The relay and its routes.
#[derive(Debug)]
pub(crate) struct Relay {
    /// Backends are reached through it.
    pub(crate) stack: Stack,
    /// Names of hosts in lower case, without a port.
    pub(crate) routes: HashMap<String, SocketAddr>,
    pub(crate) default: Option<SocketAddr>,
    /// How long a head may take, a backend to answer, and a body to make no progress.
    pub(crate) timeout: Duration,
}

/// Why a request was not relayed.
enum Fault {
    /// The client gets an answer of this status.
    Answer(u16),
    /// The client is reset, to signal that its response was cut off.
    Reset,
}

/// Why no head was read.
enum Unread {
    /// The stream has ended, or the connection failed; before the first byte?
    Ended(bool),
    /// Timeout; before the first byte?
    Late(bool),
    TooLarge,
    Bad(u16),
}

/// A connection to a backend, kept for further requests of its client.
struct Backend {
    address: SocketAddr,
    stream: TcpStream,
}

/// The body of a request on its way to the backend. Dropping it ends the splice.
struct Upload(Option<Splice>);

impl Upload {
    /// Bytes moved so far.
    fn moved(&self) -> u64 {
        self.0.as_ref().map_or(0, Splice::bytes)
    }

    fn is_cut_off(&self) -> bool {
        let end = self.0.as_ref().and_then(Splice::end);
        end.is_some_and(|end| matches!(end.cause, Cause::Eof | Cause::SourceError(_)))
    }

    /// Waits for the end. `true` if the whole body was moved.
    fn finish(&self) -> bool {
        let end = self.0.as_ref().map(Splice::wait);
        end.is_none_or(|end| end.cause == Cause::Limit)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Fails if it has ended before.
        self.0.as_ref().map(Splice::unsplice);
    }
}

impl Relay {
    /// Relays for all clients of a listener, until that or its stack ends.
    pub(crate) fn run(self: Arc<Self>, listener: &TcpListener) -> io::Error {
        loop {
            let client = match listener.accept() {
                Ok((client, _)) => client,
                Err(gone) => return gone,
            };
            let relay = self.clone();
            let thread = thread::Builder::new().stack_size(STACK_SIZE);
            if let Err(error) = thread.spawn(move || relay.serve(&client)) {
                eprintln!("a client is turned away: {error}");
            }
        }
    }

    /// Relays the requests of a client one after the other.
    pub(crate) fn serve(&self, client: &TcpStream) {
        client.set_write_timeout(Some(self.timeout)).ok();
        let (relay, mut backend) = (self, None);
        let session = Session { relay, client };
        let ended = loop {
            match session.exchange(&mut backend) {
                Ok(true) => {}
                ended => break ended,
            }
        };
        match ended {
            Err(Fault::Reset) => return client.abort(),
            Err(Fault::Answer(status)) => {
                let reason = reason(status);
                eprintln!("{}: {status} {reason}", client.peer_addr());
                let end = "Content-Length: 0\r\nConnection: close\r\n\r\n";
                let answer = format!("HTTP/1.1 {status} {reason}\r\n{end}");
                // Ignored if the client has gone.
                send(client, answer.as_bytes()).ok();
            }
            Ok(_) => {}
        }
        linger(client);
    }
}

/// A client that is served.
struct Session<'a> {
    relay: &'a Relay,
    client: &'a TcpStream,
}

impl Session<'_> {
    /// One request and its response. `false` if there is none, or no further one.
    fn exchange(&self, kept: &mut Option<Backend>) -> Result<bool, Fault> {
        let request = match self.take(self.client, head::request) {
            Ok(request) => request,
            Err(Unread::Ended(true) | Unread::Late(true)) => return Ok(false),
            Err(Unread::Ended(false)) => return Err(Fault::Answer(400)),
            Err(Unread::Late(false)) => return Err(Fault::Answer(408)),
            Err(Unread::TooLarge) => return Err(Fault::Answer(431)),
            Err(Unread::Bad(status)) => return Err(Fault::Answer(status)),
        };
        let route = self.relay.routes.get(&request.host).copied();
        let address = route.or(self.relay.default).ok_or(Fault::Answer(404))?;
        let backend = self.backend(kept.take(), address)?;
        send(&backend.stream, &request.head).map_err(bad_gateway)?;
        let upload = self.upload(&backend.stream, request.body)?;
        let response = self.response(&backend.stream, &request, &upload)?;

        // A backend that answers early and closes does not need the rest of the request, without which
        // the next request cannot be found.
        let cut = !response.keep_alive && upload.moved() < request.body;
        let last = !request.keep_alive || response.body == Body::Rest || cut;
        let close: &[u8] = if last { b"Connection: close\r\n" } else { b"" };
        send(self.client, &[&response.head, close, b"\r\n"].concat()).map_err(reset)?;
        self.download(&backend.stream, response.body)?;
        if last || !upload.finish() {
            return Ok(false);
        }
        *kept = response.keep_alive.then_some(backend);
        Ok(true)
    }

    /// The kept connection, if the backend has not closed it, or a new one with the PROXY protocol's
    /// header.
    fn backend(&self, kept: Option<Backend>, address: SocketAddr) -> Result<Backend, Fault> {
        if let Some(kept) = kept.filter(|kept| kept.address == address && is_idle(&kept.stream)) {
            return Ok(kept);
        }
        let timeout = self.relay.timeout;
        let connected = TcpStream::connect_timeout(&self.relay.stack, address, timeout);
        let stream = connected.map_err(|error| match error.kind() {
            ErrorKind::TimedOut => Fault::Answer(504),
            _ => Fault::Answer(502),
        })?;
        stream.set_write_timeout(Some(timeout)).ok();
        let from = ProxiedAddress::stream(self.client.peer_addr(), self.client.local_addr());
        let mut header = Vec::new();
        let encoded = ProxyHeader::with_address(from).encode_v2(&mut header);
        encoded.map_err(bad_gateway)?;
        send(&stream, &header).map_err(bad_gateway)?;
        Ok(Backend { address, stream })
    }

    /// Starts the splice of a request's body. If the client ends or fails within it, so
    /// does the connection to the backend.
    fn upload(&self, backend: &TcpStream, length: u64) -> Result<Upload, Fault> {
        let options = Options::default()
            .limit(length)
            .idle(self.relay.timeout)
            .forward_eof(true)
            .forward_reset(true);
        let started = (length > 0).then(|| self.client.splice_to(backend, options));
        started.transpose().map(Upload).map_err(bad_gateway)
    }

    /// The head of the final response. Interim ones (100, 103) are passed on.
    fn response(
        &self,
        backend: &TcpStream,
        request: &Request,
        upload: &Upload,
    ) -> Result<Response, Fault> {
        loop {
            let moved = upload.moved();
            let parse = |bytes: &[u8]| head::response(bytes, request.is_head);
            let status = match self.take(backend, parse) {
                // No upgrade was requested.
                Ok(response) if response.status == 101 => 502,
                Ok(response) if response.status >= 200 => return Ok(response),
                Ok(interim) => {
                    send(self.client, &[&interim.head, &b"\r\n"[..]].concat()).map_err(reset)?;
                    continue;
                }
                Err(_) if upload.is_cut_off() => 400,
                Err(Unread::Late(_)) if upload.moved() > moved => continue,
                Err(Unread::Late(_)) => {
                    let waits = self.client.readable_bytes() == 0;
                    if waits && upload.moved() < request.body {
                        408
                    } else {
                        504
                    }
                }
                Err(_) => 502,
            };
            return Err(Fault::Answer(status));
        }
    }

    /// The body of a response: one splice, or one for each chunk.
    fn download(&self, backend: &TcpStream, body: Body) -> Result<(), Fault> {
        match body {
            Body::Length(0) => return Ok(()),
            Body::Length(length) => return self.splice(backend, Some(length)),
            Body::Rest => return self.splice(backend, None),
            Body::Chunked => {}
        }
        loop {
            let (line, size) = self.look(backend, head::chunk_size).map_err(reset)?;
            if size == 0 {
                let parse = |bytes: &[u8]| head::last_chunk(bytes, line);
                let (len, ()) = self.look(backend, parse).map_err(reset)?;
                return self.splice(backend, Some(len as u64));
            }
            // With its size line, and the end of line after it.
            let limit = size.checked_add(line as u64 + 2).ok_or(Fault::Reset)?;
            self.splice(backend, Some(limit))?;
        }
    }

    /// Moves this many bytes to the client, or all until the end of the stream, and waits for that.
    fn splice(&self, backend: &TcpStream, limit: Option<u64>) -> Result<(), Fault> {
        let options = Options::default().limit(limit).idle(self.relay.timeout);
        let splice = backend.splice_to(self.client, options).map_err(reset)?;
        match (splice.wait().cause, limit) {
            (Cause::Limit, Some(_)) | (Cause::Eof, None) => Ok(()),
            _ => Err(Fault::Reset),
        }
    }

    /// As [`look`](Self::look), and reads the bytes.
    fn take<T>(&self, stream: &TcpStream, parse: impl Fn(&[u8]) -> Parsed<T>) -> Result<T, Unread> {
        let (mut len, value) = self.look(stream, parse)?;
        while len > 0 {
            let taken = stream.recv_chain(len).map_err(|_| Unread::Ended(false))?;
            len -= taken.len();
        }
        Ok(value)
    }

    /// Waits until `parse` succeeds at the front of a stream. Returns the length and the value.
    fn look<T>(
        &self,
        stream: &TcpStream,
        parse: impl Fn(&[u8]) -> Parsed<T>,
    ) -> Result<(usize, T), Unread> {
        let deadline = SystemClock.now() + self.relay.timeout;
        let mut bytes = vec![0; FIRST_LOOK];
        let mut seen = 0;
        loop {
            // Sleeps until there are more bytes.
            stream.set_rcv_lowat(seen + 1);
            let left = deadline.saturating_duration_since(SystemClock.now());
            let left = left.max(Duration::from_millis(1));
            stream.set_read_timeout(Some(left)).ok();
            let count = stream.peek(&mut bytes).unwrap_or(0);
            if count <= seen {
                let late = SystemClock.now() >= deadline;
                let why = if late { Unread::Late } else { Unread::Ended };
                return Err(why(seen == 0));
            }
            seen = count;
            match parse(&bytes[..seen]) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) if seen == HEAD => return Err(Unread::TooLarge),
                Ok(None) if seen == bytes.len() => bytes.resize(HEAD, 0),
                Ok(None) => {}
                Err(bad) => return Err(Unread::Bad(bad.0)),
            }
        }
    }
}

fn bad_gateway<E>(_: E) -> Fault {
    Fault::Answer(502)
}

fn reset<E>(_: E) -> Fault {
    Fault::Reset
}

fn send(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)
}

/// Whether a backend has neither ended the connection nor sent unexpected bytes.
fn is_idle(backend: &TcpStream) -> bool {
    backend.set_nonblocking(true);
    let looked = backend.peek(&mut [0]);
    backend.set_nonblocking(false);
    looked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        404 => "Not Found",
        408 => "Request Timeout",
        411 => "Length Required",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        504 => "Gateway Timeout",
        _ => "Bad Gateway",
    }
}

/// Ends a connection. Unread bytes would make that a reset, which can overtake the response (RFC 9112,
/// 9.6): so they are read, until the client has closed too.
fn linger(client: &TcpStream) {
    client.shutdown(Shutdown::Write).ok();
    let deadline = SystemClock.now() + LINGER;
    loop {
        let left = deadline.saturating_duration_since(SystemClock.now());
        if left.is_zero() || client.set_read_timeout(Some(left)).is_err() {
            return;
        }
        match client.recv_chain(usize::MAX) {
            Ok(bytes) if !bytes.is_empty() => {}
            _ => return,
        }
    }
}
