//! Options of a kernel connection, and the kernel's timers.

use super::*;
use crate::clock::{Clock, SystemClock};
use crate::kernel::KeepAlive;
use rustix::net::sockopt;

const SECOND: Duration = Duration::from_secs(1);
/// Nothing here takes so long unless something is wrong.
const LIMIT: Duration = Duration::from_secs(10);

/// A listener with a full backlog: further connection attempts get no answer.
pub(super) fn black_hole() -> (TcpListener, Vec<TcpStream>, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let address = listener.local_addr().unwrap();
    let waiting = TcpStream::connect(address).unwrap();
    (listener, vec![waiting], address)
}

/// Guards the deadline of `connect_timeout`, and that a dropped stream closes its descriptor.
#[test]
fn an_attempt_to_connect_is_cancelled() {
    let (_listener, _waiting, address) = black_hole();
    let begin = SystemClock.now();
    let error = KernelStream::connect_timeout(address, SECOND / 5).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!((SECOND / 5..LIMIT).contains(&begin.elapsed()));

    let stream = KernelStream::start(address).unwrap();
    let kernels = Arc::downgrade(&stream.conn.stream().unwrap());
    let error = stream.wait_connected(Some(SystemClock.now() + SECOND / 20));
    assert!(error.is_err());
    drop(stream);
    while kernels.upgrade().is_some() {
        assert!(begin.elapsed() < LIMIT, "the descriptor is still open");
        thread::yield_now();
    }
    let zero = KernelStream::connect_timeout(address, Duration::ZERO).unwrap_err();
    assert_eq!(zero.kind(), ErrorKind::InvalidInput);
}

/// Guards that a cancel by another handle wakes a thread blocked in connect.
#[test]
fn a_blocked_connect_is_cancelled_by_another_handle() {
    for abort in [true, false] {
        let (_listener, _waiting, address) = black_hole();
        let stream = KernelStream::start(address).unwrap();
        let waiting = stream.clone();
        let waiter = thread::Builder::new().spawn(move || waiting.wait_connected(None));
        match abort {
            true => stream.abort(),
            false => stream.shutdown(Shutdown::Both).unwrap(),
        }
        let error = waiter.unwrap().join().unwrap().unwrap_err();
        let kind = io::Error::from(error).kind();
        assert_eq!(kind, ErrorKind::ConnectionAborted);
    }
}

/// The kernel ends the attempt by itself: one SYN, `TCP_USER_TIMEOUT` counts for it too.
#[test]
fn the_kernels_timeout_arrives_as_timed_out() {
    let (_listener, _waiting, address) = black_hole();
    let stream = KernelStream::start(address).unwrap();
    stream.set_user_timeout(Some(SECOND / 2)).unwrap();
    let error = stream.wait_connected(Some(SystemClock.now() + LIMIT));
    assert_eq!(error, Err(SoError::TimedOut.into()));
    assert!(stream.nodelay().is_err(), "the descriptor is gone");
}

#[test]
fn options_are_the_kernels() {
    let (_user, near) = connection();
    let kernels = near.conn.stream().unwrap();
    assert!(!near.nodelay().unwrap());
    near.set_nodelay(true).unwrap();
    assert!(near.nodelay().unwrap() && sockopt::tcp_nodelay(&*kernels).unwrap());

    assert_eq!(near.keep_alive().unwrap(), None);
    let wanted = KeepAlive {
        idle: Duration::from_millis(1500),
        interval: SECOND * 9,
        probes: 1000,
    };
    near.set_keep_alive(Some(wanted)).unwrap();
    let rounded = KeepAlive {
        idle: SECOND * 2,
        interval: SECOND * 9,
        probes: 127,
    };
    assert_eq!(near.keep_alive().unwrap(), Some(rounded));
    near.set_keep_alive(None).unwrap();
    assert!(!sockopt::socket_keepalive(&*kernels).unwrap());

    assert_eq!(near.user_timeout().unwrap(), None);
    let table = [
        (Duration::from_micros(1), 1),
        (SECOND * 30, 30_000),
        (Duration::MAX, i32::MAX.unsigned_abs()),
    ];
    for (wanted, millis) in table {
        near.set_user_timeout(Some(wanted)).unwrap();
        let time = Duration::from_millis(millis.into());
        assert_eq!(near.user_timeout().unwrap(), Some(time));
    }
    near.set_user_timeout(None).unwrap();
    assert_eq!(sockopt::tcp_user_timeout(&*kernels).unwrap(), 0);

    near.set_ttl(3).unwrap();
    assert_eq!(
        (near.ttl().unwrap(), sockopt::ip_ttl(&*kernels).unwrap()),
        (3, 3)
    );
    assert_eq!(near.linger().unwrap(), None);
}

#[test]
fn both_families_have_a_time_to_live() {
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let near = KernelStream::connect(listener.local_addr().unwrap()).unwrap();
    near.set_ttl(7).unwrap();
    assert_eq!(near.ttl().unwrap(), 7);
}

#[test]
fn zero_and_for_ever() {
    let (_user, near) = connection();
    let zero = KeepAlive {
        probes: 0,
        ..KeepAlive::default()
    };
    for result in [
        near.set_keep_alive(Some(zero)),
        near.set_user_timeout(Some(Duration::ZERO)),
        near.set_ttl(0),
        near.set_ttl(256),
    ] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    let long = KeepAlive {
        idle: Duration::MAX,
        interval: Duration::MAX,
        probes: u32::MAX,
    };
    near.set_keep_alive(Some(long)).unwrap();
    let blocks = near.set_linger(Some(SECOND)).unwrap_err();
    assert_eq!(blocks.kind(), ErrorKind::Unsupported);
}

/// Guards `closes_with_reset`, also when bytes wait in `so_snd`.
#[test]
fn the_last_close_with_linger_zero_resets() {
    for full in [false, true] {
        let (mut user, near) = connection();
        near.set_linger(Some(Duration::ZERO)).unwrap();
        assert_eq!(near.linger().unwrap(), Some(Duration::ZERO));
        if full {
            near.set_nonblocking(true);
            while near.send(&[0; 100_000]).is_ok() {}
        }
        let other = near.clone();
        drop(near);
        assert!(other.nodelay().is_ok(), "another handle is there");
        drop(other);
        user.set_read_timeout(Some(LIMIT)).unwrap();
        let error = user.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}
