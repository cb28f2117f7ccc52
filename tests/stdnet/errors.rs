//! Errors: which, and how often.

use super::nets::{LIMIT, Listener, Net, Stream};
use super::streams::nobody;
use sosplice::clock::{Clock, SystemClock};
use std::io::ErrorKind;
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

/// Long enough to be measured, and a whole number of a kernel's ticks.
const SHORT: Duration = Duration::from_millis(40);

/// Writes until it does not work any more.
fn fill(stream: &impl Stream) -> ErrorKind {
    loop {
        if let Err(error) = stream.write(&[7; 10_000]) {
            return error.kind();
        }
    }
}

pub(crate) fn timeouts(net: &impl Net) {
    let (client, _server) = net.pair();
    client.set_read_timeout(Some(SHORT)).unwrap();
    client.set_write_timeout(Some(SHORT)).unwrap();
    assert_eq!(client.read_timeout(), Some(SHORT));
    assert_eq!(client.write_timeout(), Some(SHORT));
    let begin = SystemClock.now();
    assert_eq!(client.read_error(), Some(ErrorKind::WouldBlock));
    assert!(begin.elapsed() >= SHORT);
    let peeked = client.peek(&mut [0; 9]).unwrap_err();
    assert_eq!(peeked.kind(), ErrorKind::WouldBlock);
    let begin = SystemClock.now();
    assert_eq!(fill(&client), ErrorKind::WouldBlock);
    assert!(begin.elapsed() >= SHORT);
    client.set_read_timeout(None).unwrap();
    client.set_write_timeout(None).unwrap();
    assert_eq!(
        (client.read_timeout(), client.write_timeout()),
        (None, None)
    );
}

pub(crate) fn nothing_waits_for_zero(net: &impl Net) {
    let (client, _server) = net.pair();
    let zero = Some(Duration::ZERO);
    let error = client.set_read_timeout(zero).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let error = client.set_write_timeout(zero).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(client.read_timeout(), Some(LIMIT), "unchanged");
    let listener = net.listen();
    let error = net.connect_timeout(listener.local_addr(), Duration::ZERO);
    assert_eq!(error.map(drop).unwrap_err().kind(), ErrorKind::InvalidInput);
}

pub(crate) fn nonblocking(net: &impl Net) {
    let listener = net.listen();
    listener.set_nonblocking(true);
    let nobody = listener.accept().map(drop).unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::WouldBlock);
    let (client, server) = net.pair();
    client.set_nonblocking(true);
    assert_eq!(client.read_error(), Some(ErrorKind::WouldBlock));
    let peeked = client.peek(&mut [0; 9]).unwrap_err();
    assert_eq!(peeked.kind(), ErrorKind::WouldBlock);
    assert_eq!(fill(&client), ErrorKind::WouldBlock);
    client.set_nonblocking(false);
    server.write_all(b"x").unwrap();
    assert_eq!(client.read(&mut [0; 9]).unwrap(), 1);
}

pub(crate) fn refused(net: &impl Net) {
    let nobody = nobody(net);
    let error = net.connect(&[nobody]).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let error = net.connect_timeout(nobody, LIMIT).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

/// The backlog is full: no answer.
pub(crate) fn a_black_hole(net: &impl Net) {
    let listener = net.bind_narrow();
    let at = listener.local_addr();
    let waiting = net.connect(&[at]).unwrap();
    let begin = SystemClock.now();
    let error = net.connect_timeout(at, SHORT * 5).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(begin.elapsed() >= SHORT * 5 && begin.elapsed() < LIMIT);
    let (_, peer) = listener.accept().unwrap();
    assert_eq!(peer, waiting.local_addr());
}

pub(crate) fn addresses_in_use(net: &impl Net) {
    let listener = net.listen();
    let error = net.bind(&[listener.local_addr()]).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    let foreign = ([192, 0, 2, 1], 80).into();
    let error = net.bind(&[foreign]).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
}

pub(crate) fn linger_zero_resets_the_peer(net: &impl Net) {
    let (client, server) = net.pair();
    client.write_all(b"abc").unwrap();
    assert!(server.peek(&mut [0; 9]).unwrap() > 0);
    client.set_linger(Some(Duration::ZERO));
    let other = client.try_clone().unwrap();
    drop(client);
    server.write_all(b"still open").unwrap();
    assert_eq!(other.read(&mut [0; 99]).unwrap(), 10);
    drop(other);
    let mut kinds = Vec::new();
    while kinds.len() < 2 {
        match server.read(&mut [0; 9]) {
            // Linux throws received bytes away with the reset, or not, as it comes.
            Ok(3) => {}
            result => kinds.push(result.map_err(|error| error.kind())),
        }
    }
    assert_eq!(kinds, [Err(ErrorKind::ConnectionReset), Ok(0)]);
}

pub(crate) fn unread_bytes_reset_the_peer(net: &impl Net) {
    let (client, server) = net.pair();
    client.write_all(b"never read").unwrap();
    assert!(server.peek(&mut [0; 9]).unwrap() > 0);
    drop(server);
    assert_eq!(client.read_error(), Some(ErrorKind::ConnectionReset));
    assert_eq!(
        client.read(&mut [0; 9]).unwrap(),
        0,
        "an error is reported once"
    );
    assert_eq!(client.write_error(), Some(ErrorKind::BrokenPipe));
}

/// A connection that the peer has reset, with the error not reported yet.
fn reset<N: Net>(net: &N) -> N::Stream {
    let (client, server) = net.pair();
    server.set_linger(Some(Duration::ZERO));
    drop(server);
    client
}

pub(crate) fn a_write_after_a_reset(net: &impl Net) {
    let client = reset(net);
    assert_eq!(fill(&client), ErrorKind::ConnectionReset);
    for _ in 0..2 {
        assert_eq!(client.write_error(), Some(ErrorKind::BrokenPipe));
    }
    assert_eq!(
        client.read(&mut [0; 9]).unwrap(),
        0,
        "the error was reported"
    );
}

pub(crate) fn a_reset_wakes_the_writer(net: &impl Net) {
    let (client, server) = net.pair();
    client.set_nonblocking(true);
    assert_eq!(fill(&client), ErrorKind::WouldBlock);
    client.set_nonblocking(false);
    let writer = thread::Builder::new().spawn(move || fill(&client)).unwrap();
    server.set_linger(Some(Duration::ZERO));
    drop(server);
    assert_eq!(writer.join().unwrap(), ErrorKind::ConnectionReset);
}

pub(crate) fn take_error_takes_it(net: &impl Net) {
    let (client, server) = net.pair();
    assert_eq!(client.take_error(), None);
    server.set_linger(Some(Duration::ZERO));
    drop(server);
    let deadline = SystemClock.now() + LIMIT;
    let error = loop {
        if let Some(error) = client.take_error() {
            break error;
        }
        assert!(SystemClock.now() < deadline);
        thread::yield_now();
    };
    assert_eq!(error, ErrorKind::ConnectionReset);
    assert_eq!(client.take_error(), None);
    assert_eq!(client.read(&mut [0; 9]).unwrap(), 0);
    assert_eq!(client.write_error(), Some(ErrorKind::BrokenPipe));
}

/// The peer has closed: the first bytes draw a reset.
pub(crate) fn a_write_after_the_end(net: &impl Net) {
    let (client, server) = net.pair();
    drop(server);
    assert_eq!(client.read(&mut [0; 9]).unwrap(), 0);
    assert_eq!(client.write(b"nobody").unwrap(), 6);
    let first = net.either(ErrorKind::BrokenPipe, ErrorKind::ConnectionReset);
    assert_eq!(fill(&client), first);
    assert_eq!(client.write_error(), Some(ErrorKind::BrokenPipe));
}

pub(crate) fn a_connection_that_is_over(net: &impl Net) {
    let client = reset(net);
    assert_eq!(client.read_error(), Some(ErrorKind::ConnectionReset));
    let gone = client
        .shutdown(Shutdown::Write)
        .map_err(|error| error.kind());
    assert_eq!(gone, net.either(Err(ErrorKind::NotConnected), Ok(())));
    let gone = client.peer_addr().map_err(|error| error.kind()).err();
    assert_eq!(gone, net.either(Some(ErrorKind::NotConnected), None));
}

pub(crate) fn port_zero_is_invalid(net: &impl Net) {
    let error = net.connect(&[net.server()]).map(drop).unwrap_err();
    let kind = net.either(ErrorKind::ConnectionRefused, ErrorKind::InvalidInput);
    assert_eq!(error.kind(), kind);
}
