mod families;
mod options;
mod udp;

use super::*;
use crate::error::SoError;
use crate::local;
use crate::splice::{Cause, Options, Role, SpliceError, SplicePool};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::thread;
use std::time::Duration;

/// A socket of the kernel, and the other end of its connection as a `KernelStream`.
fn connection() -> (TcpStream, KernelStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let user = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    (user, KernelStream::from_std(accepted).unwrap())
}

fn pattern(len: usize) -> Vec<u8> {
    let byte = |at: usize| u8::try_from((at * 31 + at / 251) % 256).unwrap();
    (0..len).map(byte).collect()
}

#[test]
fn bytes_go_through_between_two_kernel_sockets() {
    let ((mut a, near), (mut b, far)) = (connection(), connection());
    let options = || Options {
        forward_eof: true,
        ..Options::default()
    };
    let up = near.splice_to(&far, options()).unwrap();
    let down = far.splice_to(&near, options()).unwrap();
    let (there, back) = (pattern(20_000_003), pattern(7_000_001));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut a = &a;
            a.write_all(&there).unwrap();
            a.shutdown(Shutdown::Write).unwrap();
        });
        scope.spawn(|| {
            let mut b = &b;
            b.write_all(&back).unwrap();
            b.shutdown(Shutdown::Write).unwrap();
        });
        let at_b = scope.spawn(|| {
            let mut all = Vec::new();
            (&b).read_to_end(&mut all).unwrap();
            all
        });
        let mut all = Vec::new();
        (&a).read_to_end(&mut all).unwrap();
        assert!(all == back, "down");
        assert!(at_b.join().unwrap() == there, "up");
    });
    assert_eq!((up.wait().cause, up.wait().bytes), (Cause::Eof, 20_000_003));
    assert_eq!(
        (down.wait().cause, down.wait().bytes),
        (Cause::Eof, 7_000_001)
    );
    drop((near, far));
    assert_eq!(a.read(&mut [0]).unwrap(), 0);
    assert_eq!(b.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_list_of_splices_identifies_connections() {
    let (user, near) = connection();
    let (a, b) = local::pair();
    let pool = SplicePool::builder().workers(1).build();
    let options = Options {
        pool: Some(pool.clone()),
        ..Options::default()
    };
    near.splice_to(&a, options).unwrap();
    let splices = pool.splices();
    let addresses = (user.peer_addr().unwrap(), user.local_addr().unwrap());
    assert_eq!(splices[0].source.addresses, Some(addresses));
    let shown = format!("kernel {}-{}", addresses.0, addresses.1);
    assert_eq!(splices[0].source.to_string(), shown);
    assert_eq!(
        splices[0].sink.to_string(),
        format!("local {}", a.end().id())
    );
    drop((user, b));
}

#[test]
fn back_pressure_is_exact() {
    let (mut user, near) = connection();
    near.set_rcv_hiwat(5000);
    user.write_all(&pattern(100_000)).unwrap();
    while near.readable_bytes() < 5000 {
        thread::yield_now();
    }
    let mut got = Vec::new();
    while got.len() < 100_000 {
        assert!(near.readable_bytes() <= 5000);
        got.extend(near.recv_chain(1000).unwrap().to_vec());
    }
    assert!(got == pattern(100_000));
}

#[test]
fn a_writer_waits_for_a_slow_kernel() {
    let (mut user, near) = connection();
    near.set_snd_hiwat(10_000);
    let bytes = pattern(8_000_000);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut near: &Socket = &near;
            near.write_all(&bytes).unwrap();
        });
        let mut got = vec![0; bytes.len()];
        user.read_exact(&mut got).unwrap();
        assert!(got == bytes);
    });
}

#[test]
fn bytes_written_before_a_close_arrive() {
    let (mut user, near) = connection();
    let bytes = pattern(3_000_000);
    thread::scope(|scope| {
        let sent = &bytes;
        scope.spawn(move || {
            let mut socket: &Socket = &near;
            socket.write_all(sent).unwrap();
        });
        let mut all = Vec::new();
        user.read_to_end(&mut all).unwrap();
        assert!(all == bytes);
    });
}

#[test]
fn unread_bytes_or_abort_reset_the_peer() {
    let (mut user, near) = connection();
    user.write_all(b"unread").unwrap();
    while near.readable_bytes() < 6 {
        thread::yield_now();
    }
    drop(near);
    let error = user.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);

    let (mut user, near) = connection();
    near.abort();
    let error = user.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(near.take_error(), Some(SoError::ConnectionAborted));
}

#[test]
fn a_reset_of_the_peer_ends_the_splice_on_both_sides() {
    for as_source in [true, false] {
        let (user, near) = connection();
        let (a, b) = local::pair();
        let splice = match as_source {
            true => near.splice_to(&a, Options::default()),
            false => a.splice_to(&near, Options::default()),
        };
        sockopt::set_socket_linger(&user, Some(Duration::ZERO)).unwrap();
        drop(user);
        let end = splice.unwrap().wait();
        let expected = match as_source {
            true => Cause::SourceError(SoError::ConnectionReset),
            false => Cause::SinkError(SoError::ConnectionReset),
        };
        assert_eq!(end.cause, expected);
        drop(b);
    }
}

#[test]
fn refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let error = KernelStream::connect(nobody).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let (a, b) = local::pair();
    a.send(b"held").unwrap();
    let sink = KernelStream::start(nobody).unwrap();
    // On loopback the answer may have arrived already.
    match b.splice_to(&sink, Options::default()) {
        Err(error) => assert_eq!(error, SpliceError::NotConnected(Role::Sink)),
        Ok(splice) => {
            let end = splice.wait();
            assert_eq!(end.cause, Cause::SinkError(SoError::ConnectionRefused));
            assert_eq!((end.bytes, end.residual), (0, 4));
        }
    }
    assert_eq!(sink.take_error(), Some(SoError::ConnectionRefused));
    assert_eq!(b.readable_bytes(), 4);
}

#[test]
fn bytes_for_a_connecting_socket_are_held_and_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (a, b) = local::pair();
    a.send(b"early").unwrap();
    let sink = KernelStream::start(listener.local_addr().unwrap()).unwrap();
    b.splice_to(&sink, Options::default()).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    let mut bytes = [0; 5];
    accepted.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"early");
}

#[test]
fn the_descriptor_is_given_back_unharmed() {
    let (mut user, near) = connection();
    let (a, b) = local::pair();
    let pool = SplicePool::builder().workers(1).build();
    let options = Options {
        pool: Some(pool.clone()),
        limit: Some(4),
        ..Options::default()
    };
    let splice = near.splice_to(&a, options).unwrap();
    let early = near.clone().give_back();
    assert_eq!(early.unwrap_err(), GiveBackError::Spliced);
    user.write_all(b"headbody").unwrap();
    splice.wait();
    while near.readable_bytes() < 4 {
        thread::yield_now();
    }
    let other = near.clone();
    let (mut stream, unread) = near.give_back().unwrap();
    assert_eq!(unread.to_vec(), b"body");
    assert_eq!(b.recv_chain(10).unwrap().to_vec(), b"head");
    stream.write_all(b"still here").unwrap();
    let mut bytes = [0; 10];
    user.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still here");
    user.write_all(b"more").unwrap();
    stream.read_exact(&mut bytes[..4]).unwrap();
    assert_eq!(other.recv(&mut [0]).unwrap(), 0);
    assert_eq!(other.give_back().unwrap_err(), GiveBackError::Gone);
}

#[test]
fn closed_connections_leave_the_reactor() {
    let (user, near) = connection();
    let weak = Arc::downgrade(&near.conn);
    drop(near);
    drop(user);
    while weak.upgrade().is_some() {
        thread::yield_now();
    }
}

#[test]
fn an_end_that_arrives_with_the_last_bytes_is_read() {
    for _ in 0..200 {
        let (mut user, near) = connection();
        user.write_all(b"last").unwrap();
        drop(user);
        let mut all = Vec::new();
        let mut near: &Socket = &near;
        near.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"last");
    }
}
