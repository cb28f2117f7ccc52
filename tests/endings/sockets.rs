//! The last handle of a socket.

use super::*;
use sosplice::error::SoError;
use sosplice::local;
use sosplice::splice::{Cause, Options};
use std::io::{ErrorKind, Read, Write};

#[test]
fn sent_bytes_are_delivered_then_the_end() {
    let (server, client) = stacks();
    let (far, near) = connection(&server, &client);
    let bytes = vec![7; 3_000_000];
    let sent = bytes.clone();
    let writer = move || {
        let mut near = &near;
        near.write_all(&sent).unwrap();
        // The last handle is dropped with most bytes still to be sent.
    };
    let thread = thread::Builder::new().spawn(writer).unwrap();
    let mut all = Vec::new();
    (&far).read_to_end(&mut all).unwrap();
    thread.join().unwrap();
    assert!(all == bytes);
    drop(far);
    eventually("both connections end", || {
        server.stats().connections + client.stats().connections == 0
    });
}

#[test]
fn unread_bytes_reset_the_peer() {
    let (server, client) = stacks();
    let (far, near) = connection(&server, &client);
    near.send(b"unread").unwrap();
    eventually("the bytes arrive", || far.readable_bytes() == 6);
    drop(far);
    let error = near.recv(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn one_of_several_handles_ends_nothing() {
    let (server, client) = stacks();
    let (far, near) = connection(&server, &client);
    let other = near.clone();
    drop(near);
    other.send(b"still").unwrap();
    assert_eq!(far.recv_chain(5).unwrap().to_vec(), b"still");
}

#[test]
fn an_abort_wakes_threads_of_other_handles() {
    let (server, client) = stacks();
    let (_far, near) = connection(&server, &client);
    let other = near.clone();
    let (told, tell) = crossbeam_channel::bounded(1);
    let reader = move || {
        told.send(()).unwrap();
        other.recv(&mut [0]).unwrap_err().kind()
    };
    let reader = thread::Builder::new().spawn(reader).unwrap();
    tell.recv_timeout(LIMIT).unwrap();
    near.abort();
    assert_eq!(reader.join().unwrap(), ErrorKind::ConnectionAborted);
}

#[test]
fn the_other_side_of_a_splice_is_usable_again() {
    let (server, client) = stacks();
    for close_source in [true, false] {
        let (far, near) = connection(&server, &client);
        let (a, b) = local::pair();
        let splice = match close_source {
            true => far.splice_to(&a, Options::default()).unwrap(),
            false => a.splice_to(&far, Options::default()).unwrap(),
        };
        drop(far);
        let expected = match close_source {
            true => Cause::SourceClosed,
            false => Cause::SinkClosed,
        };
        assert_eq!(splice.wait_timeout(LIMIT).unwrap().cause, expected);
        a.send(b"out").unwrap();
        b.send(b"in").unwrap();
        assert_eq!(b.recv_chain(3).unwrap().to_vec(), b"out");
        assert_eq!(a.recv_chain(2).unwrap().to_vec(), b"in");
        drop(near);
    }
}

#[test]
fn a_splice_continues_without_its_handle() {
    let (server, client) = stacks();
    let (far, near) = connection(&server, &client);
    let (a, b) = local::pair();
    drop(far.splice_to(&a, Options::default()).unwrap());
    near.send(b"through").unwrap();
    assert_eq!(b.recv_chain(7).unwrap().to_vec(), b"through");
    assert_eq!(far.unsplice().unwrap().bytes, 7);
}

#[test]
fn one_end_of_a_pair_in_memory() {
    let (a, b) = local::pair();
    a.send(b"last words").unwrap();
    drop(a);
    assert_eq!(b.recv_chain(10).unwrap().to_vec(), b"last words");
    assert_eq!(b.recv(&mut [0]).unwrap(), 0);
    // As in TCP, the first unwanted byte causes the reset.
    drop(b.send(b"?"));
    let error = b.send(b"?").unwrap_err();
    let told = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
    assert!(told.contains(&error.kind()), "{error}");
    let (a, b) = local::pair();
    b.send(b"unread").unwrap();
    drop(a);
    assert_eq!(b.take_error(), Some(SoError::ConnectionReset));
}

#[test]
fn a_dropped_attempt_to_connect_leaves_no_state() {
    let (_server, client) = stacks();
    // An unused address, so there is no answer.
    let attempt = TcpSocket::new(&client)
        .start("10.0.0.9:80".parse().unwrap())
        .unwrap();
    assert_eq!(client.stats().connections, 1);
    drop(attempt);
    eventually("it is forgotten", || client.stats().connections == 0);
}

#[test]
fn a_descriptor_table_closes_its_sockets() {
    use sosplice::error::Flavor;
    use sosplice::sockopt::{Abi, Layout, Table, set_splice};

    let abi = Abi {
        flavor: Flavor::OpenBsd,
        layout: Layout::Lp64,
    };
    let table = Table::new(16);
    let ((user, inside), (outside, server)) = (local::pair(), local::pair());
    let (source, sink) = (
        table.insert(inside).unwrap(),
        table.insert(outside).unwrap(),
    );
    let option = sink.to_ne_bytes();
    set_splice(&table, source, Some(&option), abi, &Options::default()).unwrap();
    user.send(b"through").unwrap();
    assert_eq!(server.recv_chain(7).unwrap().to_vec(), b"through");
    drop(table);
    assert_eq!(server.recv(&mut [0]).unwrap(), 0);
    assert_eq!(user.recv(&mut [0]).unwrap(), 0);
}
