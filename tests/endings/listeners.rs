//! Listeners with connections that were not accepted.

use super::*;
use sosplice::ConditionalListener;
use std::io::ErrorKind;

#[test]
fn unaccepted_connections_are_reset() {
    let (server, client) = stacks();
    let listener = TcpListener::bind(&server, "10.0.0.1:80").unwrap();
    let streams: Vec<_> = (0..5)
        .map(|_| TcpStream::connect(&client, "10.0.0.1:80").unwrap())
        .collect();
    drop(listener);
    for stream in &streams {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let error = stream.recv(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    drop(streams);
    eventually("nothing is left", || {
        server.stats().connections + client.stats().connections == 0
    });
    let error = TcpStream::connect(&client, "10.0.0.1:80").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn accepted_connections_outlive_their_listener() {
    let (server, client) = stacks();
    // The listener is dropped when this returns.
    let (far, near) = connection(&server, &client);
    near.send(b"still").unwrap();
    assert_eq!(far.recv_chain(5).unwrap().to_vec(), b"still");
}

#[test]
fn a_close_wakes_threads_in_accept() {
    let (server, _client) = stacks();
    let listener = TcpListener::bind(&server, "10.0.0.1:80").unwrap();
    let other = listener.clone();
    let waiting = thread::Builder::new()
        .spawn(move || other.accept().map(drop).unwrap_err().kind())
        .unwrap();
    listener.close();
    eventually("accept returns", || waiting.is_finished());
    assert_eq!(waiting.join().unwrap(), ErrorKind::InvalidInput);
    TcpListener::bind(&server, "10.0.0.1:80").unwrap();
}

#[test]
fn syns_not_returned_are_refused_and_returned_ones_can_be_decided() {
    let (server, client) = stacks();
    let at = "10.0.0.1:80".parse().unwrap();
    let listener = ConditionalListener::bind(&server, at).unwrap();
    let first = TcpSocket::new(&client).start(at).unwrap();
    let pending = listener.pending().unwrap();
    let second = TcpSocket::new(&client).start(at).unwrap();
    eventually("the second SYN is held", || {
        server.stats().frames_received >= 2
    });
    drop(listener);
    let error = std::io::Error::from(second.wait_connected(Some(now() + LIMIT)).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let inside = pending.accept().unwrap();
    first.wait_connected(Some(now() + LIMIT)).unwrap();
    first.send(b"served").unwrap();
    assert_eq!(inside.recv_chain(6).unwrap().to_vec(), b"served");
}
