//! The limits of a stack: reached exactly, answered as documented, counted, and free again when a
//! connection ends.

use super::*;
use crate::long::times;

fn limited(build: impl FnOnce(Builder) -> Builder) -> (Net, TcpListener) {
    let net = Net::with(one_packet_each(), build);
    let listener = net.listen(80);
    (net, listener)
}

/// A peer with an address of its own.
fn client(host: u8, port: u16) -> Raw {
    let mut raw = Raw::new(port);
    raw.from.0 = [10, 0, 0, host].into();
    raw
}

/// Its connection is established and accepted.
fn opened(net: &mut Net, listener: &TcpListener, mut raw: Raw) -> (Raw, TcpStream) {
    raw.handshake(net);
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true);
    (raw, stream)
}

fn reset(net: &mut Net, raw: &Raw) {
    raw.send(net, RST, b"");
    net.turn();
}

/// Guards `Table::insert` and `Shared::admits`.
#[test]
fn a_stack_has_no_more_connections_than_its_limit() {
    let (mut net, listener) = limited(|builder| builder.max_connections(3));
    let all = [(); 3].map(|()| listener.clone());
    let mut open: Vec<_> = (2..)
        .zip(&all)
        .map(|(host, listener)| opened(&mut net, listener, client(host, 5000)))
        .collect();
    assert_eq!(net.stack.stats().connections_refused, 0);
    let late = client(9, 5000);
    late.send(&net, SYN, b"");
    assert!(net.seen().is_empty(), "no connection and no cookie");
    let dial = |net: &Net| TcpSocket::new(&net.stack).start("10.0.0.2:9".parse().unwrap());
    let error = dial(&net).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
    assert!(error.to_string().contains("has 3 connections"), "{error}");
    let stats = net.stack.stats();
    assert_eq!((stats.connections, stats.connections_refused), (3, 2));
    assert_eq!((stats.syns_dropped, stats.syn_cookies_sent), (0, 0));
    // Existing connections continue, and one that ends makes room.
    let (mut raw, stream) = open.pop().unwrap();
    works(&mut net, &mut raw, &stream);
    reset(&mut net, &raw);
    let (mut raw, stream) = opened(&mut net, &listener, late);
    works(&mut net, &mut raw, &stream);
    let stats = net.stack.stats();
    assert_eq!((stats.connections, stats.connections_refused), (3, 2));
    // So does one in TIME-WAIT, whose record does not count.
    drop(stream);
    raw.take(&net.seen());
    raw.fin(&net);
    net.seen();
    assert_eq!(net.stack.stats().time_wait, 1);
    dial(&net).unwrap();
}

/// Guards `Shared::accept_cookie`: the last place is taken when a cookie is acknowledged.
#[test]
fn a_cookie_is_no_place_in_a_stack_that_has_become_full() {
    let (mut net, _) = limited(|builder| builder.max_connections(2));
    let at = "10.0.0.1:81";
    let listener = TcpListener::bind_with_backlog(&net.stack, at, 1).unwrap();
    listener.set_nonblocking(true);
    let to_port_81 = |host| {
        let mut raw = client(host, 5000);
        raw.to.1 = 81;
        raw
    };
    to_port_81(2).send(&net, SYN, b"");
    net.seen();
    let mut late = to_port_81(3);
    late.syn(&mut net);
    assert_eq!(net.stack.stats().syn_cookies_sent, 1);
    let dialled = TcpSocket::new(&net.stack)
        .start("10.0.0.2:9".parse().unwrap())
        .unwrap();
    net.seen();
    late.send(&net, ACK, b"");
    assert!(net.seen().is_empty());
    let stats = net.stack.stats();
    assert_eq!(
        (stats.connections_refused, stats.syn_cookies_accepted),
        (1, 0)
    );
    // It believes that the connection is established; when there is room, its data is accepted.
    dialled.abort();
    drop(dialled);
    net.seen();
    late.send(&net, ACK, b"hello");
    net.turn();
    let (stream, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip(), late.from.0);
    stream.set_nonblocking(true);
    assert_eq!(read(&stream), b"hello");
}

/// Guards `Shared::admits` for SYNs that are held, and `accept_held`.
#[test]
fn a_held_syn_needs_a_place_when_it_is_accepted() {
    let mut net = Net::with(one_packet_each(), |builder| builder.max_connections(1));
    let listener = ConditionalListener::bind(&net.stack, "10.0.0.1:80".parse().unwrap()).unwrap();
    listener.set_nonblocking(true);
    for host in [2, 3] {
        client(host, 5000).send(&net, SYN, b"");
    }
    net.turn();
    let [first, second] = [(); 2].map(|()| listener.pending().unwrap());
    let stream = first.accept().unwrap();
    let error = second.accept().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
    client(4, 5000).send(&net, SYN, b"");
    net.seen();
    assert!(listener.pending().is_err(), "not even held");
    assert_eq!(net.stack.stats().connections_refused, 2);
    assert_eq!(net.stack.shared().accepting.held.lock().len(), (0, 0));
    stream.abort();
    net.turn();
    client(4, 5000).send(&net, SYN, b"");
    net.turn();
    listener.pending().unwrap().accept().unwrap();
}

/// Guards `Shared::admits_half_open`: over all listeners, independently of their backlogs.
#[test]
fn a_stack_has_no_more_half_open_connections_than_its_limit() {
    for cookies in [true, false] {
        let (mut net, listener) = limited(|b| b.max_half_open(3).syn_cookies(cookies));
        let other = net.listen(81);
        for port in [5000, 5001, 5002] {
            let mut raw = Raw::new(port);
            raw.to.1 = 80 + port % 2;
            raw.syn(&mut net);
        }
        assert_eq!(net.stack.stats().half_open_full, 0);
        let mut late = Raw::new(5003);
        late.send(&net, SYN, b"");
        let answers = net.seen().len();
        let stats = net.stack.stats();
        assert_eq!((stats.connections, stats.half_open_full), (3, 1));
        let (sent, dropped) = (stats.syn_cookies_sent, stats.syns_dropped);
        assert_eq!((sent, dropped), if cookies { (1, 0) } else { (0, 1) });
        assert_eq!(answers, usize::from(cookies));
        if cookies {
            // It may complete the handshake, though the limit of half-open ones is reached.
            late.syn(&mut net);
            late.send(&net, ACK, b"");
            net.turn();
            assert_eq!(listener.accept().unwrap().1.port(), 5003);
        }
        // One that times out makes room.
        let mut first = Raw::new(5000);
        first.seq = first.seq.wrapping_add(1);
        reset(&mut net, &first);
        net.drain();
        let before = net.stack.stats();
        Raw::new(5004).syn(&mut net);
        let after = net.stack.stats();
        assert_eq!(after.connections, before.connections + 1);
        assert_eq!(after.half_open_full, before.half_open_full);
        drop(other);
    }
}

/// A client that opens connections without end, and another one that can still connect.
///
/// Guards `Peers`, and `Shared::admit`: only established connections count.
#[test]
fn one_peer_does_not_take_the_places_of_others() {
    let limits = |b: Builder| b.max_connections(8).max_connections_per_peer(Some(5));
    let (mut net, listener) = limited(limits);
    // Forged SYNs with the honest client's address do not use its limit.
    for port in 1..=2 {
        client(3, port).send(&net, SYN, b"");
    }
    net.seen();
    let mut greedy: Vec<_> = (5000..5005)
        .map(|port| opened(&mut net, &listener, client(2, port)))
        .collect();
    for port in 5005..5100 {
        client(2, port).send(&net, SYN, b"");
    }
    assert!(net.seen().is_empty());
    let stats = net.stack.stats();
    assert_eq!(stats.peer_connections_refused, 95);
    assert_eq!((stats.connections, stats.connections_refused), (7, 0));
    let (mut raw, stream) = opened(&mut net, &listener, client(3, 5000));
    works(&mut net, &mut raw, &stream);
    // This side's own connections to it do not count.
    reset(&mut net, &raw);
    drop(
        TcpSocket::new(&net.stack)
            .start("10.0.0.2:9".parse().unwrap())
            .unwrap(),
    );
    net.seen();
    // One that ends makes room for one.
    let (raw, _) = greedy.pop().unwrap();
    reset(&mut net, &raw);
    net.drain();
    let _open = opened(&mut net, &listener, client(2, 6000));
    client(2, 6001).send(&net, SYN, b"");
    assert!(net.seen().is_empty());
    assert_eq!(net.stack.stats().peer_connections_refused, 96);
}

/// Handshakes in progress when the limit is reached.
#[test]
fn a_peer_that_completes_too_many_handshakes_at_once_is_reset() {
    let (mut net, listener) = limited(|b| b.max_connections_per_peer(Some(2)));
    let mut all: Vec<_> = (5000..5003).map(|port| client(2, port)).collect();
    all.iter_mut().for_each(|raw| drop(raw.syn(&mut net)));
    for (count, raw) in all.iter().enumerate() {
        raw.send(&net, ACK, b"");
        let seen = net.seen();
        let is_reset = seen.iter().any(|frame| frame.has(RST));
        assert_eq!(is_reset, count == 2, "{seen:?}");
    }
    assert!(listener.accept().is_ok() && listener.accept().is_ok());
    assert!(listener.accept().is_err());
    let stats = net.stack.stats();
    assert_eq!((stats.connections, stats.peer_connections_refused), (2, 1));
}

/// Counters are exact for any order of events.
#[test]
fn random_openings_and_endings_leave_no_count() {
    let mut random = fastrand::Rng::with_seed(0x11a1);
    let mut net = Net::with(one_packet_each(), |builder| {
        let builder = builder
            .max_connections(40)
            .max_half_open(12)
            .time_wait_limit(20);
        builder.max_connections_per_peer(Some(6))
    });
    let listener = TcpListener::bind_with_backlog(&net.stack, "10.0.0.1:80", 20).unwrap();
    listener.set_nonblocking(true);
    let (mut peers, mut streams): (Vec<Raw>, Vec<TcpStream>) = (Vec::new(), Vec::new());
    for step in 0..times(2_000, 10_000u32) {
        match random.u8(..10) {
            0..=3 => {
                let raw = client(2 + random.u8(..8), 1000 + random.u16(..500));
                raw.send(&net, SYN, b"");
                // As the peer's own parser sees it, the peer is local.
                let from = |frame: &Seen| (frame.tuple.local, frame.tuple.local_port) == raw.from;
                for answer in net
                    .seen()
                    .iter()
                    .filter(|one| one.has(SYN | ACK) && from(one))
                {
                    let seq = answer.header.ack;
                    let ack = answer.header.seq.wrapping_add(1);
                    peers.push(Raw { seq, ack, ..raw });
                }
            }
            4 | 5 if !peers.is_empty() => {
                let raw = &peers[random.usize(..peers.len())];
                raw.send(&net, ACK, b"");
            }
            6 if !peers.is_empty() => {
                let raw = peers.swap_remove(random.usize(..peers.len()));
                raw.send(&net, [RST, ACK | FIN][random.usize(..2)], b"");
            }
            7 => streams.extend(listener.accept().map(|(stream, _)| stream)),
            8 if !streams.is_empty() => {
                let stream = streams.swap_remove(random.usize(..streams.len()));
                if random.bool() {
                    stream.abort();
                }
            }
            9 => {
                let to = SocketAddr::new([10, 0, 0, 2 + random.u8(..8)].into(), 9);
                streams.extend(TcpSocket::new(&net.stack).start(to));
            }
            _ => net.pass(Duration::from_millis(random.u64(..500))),
        }
        net.turn();
        net.drain();
        let shared = net.stack.shared();
        let standing = shared.table.all().len();
        assert_eq!(net.stack.stats().connections, standing, "step {step}");
        assert!(standing <= 40 && shared.accepting.half_open.lock().len() <= 12);
        assert!(shared.accepting.peers.len() <= standing);
    }
    let stats = net.stack.stats();
    assert!(stats.connections_refused > 10, "{stats:?}");
    assert!(stats.peer_connections_refused > 10, "{stats:?}");
    assert!(stats.half_open_full > 10, "{stats:?}");
    drop((streams, listener));
    net.pass(Duration::from_secs(600));
    let shared = net.stack.shared();
    assert_eq!(
        (net.stack.stats().connections, shared.accepting.peers.len()),
        (0, 0)
    );
    assert_eq!(shared.accepting.half_open.lock().len(), 0);
    net.healthy();
}
