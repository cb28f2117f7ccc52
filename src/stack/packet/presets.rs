//! What a [`TcpSocket`] sets before it connects applies from the SYN on.

use super::*;
use crate::stack::{Congestion, KeepAlive};

const SECOND: Duration = Duration::from_secs(1);

fn server() -> SocketAddr {
    "10.0.0.2:5000".parse().unwrap()
}

#[test]
fn every_option_applies_from_the_syn_on() {
    let net = Net::new();
    let keep_alive = KeepAlive {
        idle: SECOND,
        ..KeepAlive::default()
    };
    let socket = TcpSocket::new(&net.stack)
        .nodelay(false)
        .congestion(Congestion::Bbr)
        .ttl(7)
        .linger(Some(SECOND * 2))
        .keep_alive(Some(keep_alive))
        .user_timeout(SECOND * 3)
        .half_closed_timeout(Some(SECOND * 4))
        .fin_wait_timeout(SECOND * 5);
    let stream = socket.start(server()).unwrap();
    assert!(!stream.nodelay());
    assert_eq!(stream.congestion(), Congestion::Bbr);
    assert_eq!(stream.ttl(), 7);
    assert_eq!(stream.linger(), Some(SECOND * 2));
    assert_eq!(stream.keep_alive(), Some(keep_alive));
    assert_eq!(stream.user_timeout(), SECOND * 3);
    assert_eq!(stream.half_closed_timeout(), Some(SECOND * 4));
    assert_eq!(stream.fin_wait_timeout(), SECOND * 5);
    // Another one of the same stack has the stack's defaults.
    let plain = TcpSocket::new(&net.stack).start(server()).unwrap();
    assert_eq!((plain.ttl(), plain.keep_alive()), (64, None));
}

#[test]
fn the_syn_has_the_hop_limit() {
    let mut net = Net::new();
    let socket = TcpSocket::new(&net.stack).ttl(7);
    let _stream = socket.start(server()).unwrap();
    net.turn();
    let mut frames = Vec::new();
    net.wire.receive(&mut frames, 10).unwrap();
    assert_eq!(frames[0].head[8], 7);
}

/// The control block has the values, not only the getters.
#[test]
fn the_keep_alive_of_a_socket_sends_probes() {
    let mut net = Net::new();
    let keep_alive = KeepAlive {
        idle: SECOND * 60,
        interval: SECOND * 5,
        probes: 3,
    };
    let socket = TcpSocket::new(&net.stack).keep_alive(Some(keep_alive));
    let stream = socket.start(server()).unwrap();
    let syn = net.one();
    let mut raw = Raw::new(server().port());
    raw.to.1 = stream.local_addr().port();
    raw.ack = syn.header.seq.wrapping_add(1);
    raw.send(&net, SYN | ACK, b"");
    net.one();
    net.pass(SECOND * 59);
    assert!(net.seen().is_empty());
    net.pass(SECOND);
    let probe = net.one();
    assert_eq!(probe.header.seq, raw.ack.wrapping_sub(1));
}

#[test]
fn options_out_of_range_fail_when_it_connects() {
    let net = Net::new();
    let new = || TcpSocket::new(&net.stack);
    let zero = KeepAlive {
        probes: 0,
        ..KeepAlive::default()
    };
    let wrong = [
        new().ttl(0),
        new().ttl(256),
        new().keep_alive(Some(zero)),
        new().user_timeout(Duration::ZERO),
        new().half_closed_timeout(Some(Duration::ZERO)),
        new().fin_wait_timeout(Duration::ZERO),
        new().queue(1),
    ];
    for socket in wrong {
        let error = socket.start(server()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{socket:?}");
    }
    assert_eq!(net.stack.stats().active_opens, 0);
    let unlimited = new().half_closed_timeout(None).keep_alive(None);
    let stream = unlimited.start(server()).unwrap();
    assert_eq!(
        (stream.half_closed_timeout(), stream.keep_alive()),
        (None, None)
    );
}
