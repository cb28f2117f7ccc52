//! Socket options, seen from the peer: keep-alive, linger, hop limit.

use super::*;
use crate::stack::KeepAlive;

const SECOND: Duration = Duration::from_secs(1);
const KEEP: KeepAlive = KeepAlive {
    idle: Duration::from_secs(60),
    interval: Duration::from_secs(5),
    probes: 3,
};

/// A stack with keep-alive for all connections.
fn keeping() -> Net {
    Net::with(one_packet_each(), |builder| {
        builder.keep_alive(KEEP.idle, KEEP.interval, KEEP.probes)
    })
}

fn is_probe(raw: &Raw, seen: &Seen) -> bool {
    let header = &seen.header;
    header.seq == raw.ack.wrapping_sub(1)
        && header.ack == raw.seq
        && header.flags == ACK
        && seen.payload.is_empty()
}

/// Guards `KeepAliveTimer::due` and `Tcb::expire` (RFC 1122 4.2.3.6).
#[test]
fn a_dead_peer_is_probed_and_then_timed_out() {
    let mut net = keeping();
    let (raw, stream) = net.accepted();
    net.pass(KEEP.idle - SECOND);
    assert!(net.seen().is_empty());
    net.pass(SECOND);
    for _ in 0..KEEP.probes {
        assert!(is_probe(&raw, &net.one()));
        assert_eq!(error_kind(&stream), Some(ErrorKind::WouldBlock));
        net.pass(KEEP.interval - SECOND);
        assert!(net.seen().is_empty());
        net.pass(SECOND);
    }
    assert!(net.one().has(RST));
    assert_eq!(error_kind(&stream), Some(ErrorKind::TimedOut));
    assert!(is_end(&stream));
    assert_eq!(net.stack.stats().connections, 0);
    net.healthy();
}

/// Guards `KeepAliveTimer::received`: a live peer answers, without further effect.
#[test]
fn a_live_peer_answers_and_stays() {
    let mut net = keeping();
    let (mut raw, mut stream) = net.accepted();
    for round in 0..10 {
        net.pass(KEEP.idle);
        assert!(is_probe(&raw, &net.one()), "round {round}");
        net.pass(KEEP.interval);
        assert!(is_probe(&raw, &net.one()), "one is lost");
        raw.send(&net, ACK, b"");
        assert!(net.seen().is_empty());
    }
    raw.send_data(&net, b"still here");
    assert_eq!(net.soon().header.ack, raw.seq);
    assert_eq!(read(&stream), b"still here");
    stream.write_all(b"so am I").unwrap();
    let seen = net.seen();
    assert_eq!(raw.take(&seen), b"so am I");
    net.healthy();
}

/// Guards the call of `KeepAliveTimer::received` for data segments, and `Watch::is_watched` for
/// unacknowledged data, for which retransmissions probe the peer.
#[test]
fn only_an_idle_connection_is_probed() {
    let mut net = keeping();
    let (mut raw, mut stream) = net.accepted();
    for _ in 0..5 {
        net.pass(KEEP.idle - SECOND);
        raw.send_data(&net, b"x");
        assert_eq!(
            net.soon().header.ack,
            raw.seq,
            "an acknowledgement, no probe"
        );
    }
    assert_eq!(read(&stream), b"xxxxx");
    net.drain();
    stream.write_all(b"unanswered").unwrap();
    net.pass(KEEP.idle + KEEP.interval * (KEEP.probes + 1));
    let seen = net.seen();
    assert!(seen.len() > 2);
    assert!(
        seen.iter().all(|one| one.payload == b"unanswered"),
        "{seen:#?}"
    );
    assert_eq!(error_kind(&stream), Some(ErrorKind::WouldBlock));
    net.healthy();
}

/// A peer that has lost the connection answers with a reset.
#[test]
fn a_restarted_peer_answers_with_a_reset() {
    let mut net = keeping();
    let (raw, stream) = net.accepted();
    net.pass(KEEP.idle);
    let probe = net.one();
    assert!(is_probe(&raw, &probe));
    // RFC 9293 3.10.7.1: SEQ = SEG.ACK.
    assert_eq!(probe.header.ack, raw.seq);
    raw.send(&net, RST, b"");
    net.turn();
    assert_eq!(error_kind(&stream), Some(ErrorKind::ConnectionReset));
}

/// Guards `State::CloseWait | State::FinWait2` of `Tcb::is_watched`.
#[test]
fn half_closed_connections_are_probed_too() {
    let mut net = keeping();
    let (mut raw, stream) = net.accepted();
    stream.shutdown(Shutdown::Write).unwrap();
    let seen = net.seen();
    raw.take(&seen);
    raw.send(&net, ACK, b"");
    net.pass(KEEP.idle);
    assert!(is_probe(&raw, &net.one()), "FIN-WAIT-2");
    drop(stream);
    let mut net = keeping();
    let (mut raw, stream) = net.accepted();
    raw.fin(&net);
    net.soon();
    net.pass(KEEP.idle);
    assert!(is_probe(&raw, &net.one()), "CLOSE-WAIT");
    drop(stream);
    net.healthy();
}

/// The probe is acceptable, and answered.
#[test]
fn a_probe_of_the_peer_is_answered() {
    let mut net = Net::new();
    let (mut raw, _stream) = net.accepted();
    raw.send_data(&net, b"data");
    net.drain();
    net.turn();
    net.drain();
    for _ in 0..3 {
        raw.send_at(&net, -1, ACK, b"");
        let answer = net.one();
        assert_eq!((answer.header.seq, answer.header.ack), (raw.ack, raw.seq));
    }
    net.healthy();
}

/// Guards `KeepAliveTimer::set`.
#[test]
fn keep_alive_is_off_until_it_is_set() {
    let mut net = Net::new();
    let (raw, stream) = net.accepted();
    assert_eq!(stream.keep_alive(), None);
    net.pass(Duration::from_secs(86_400));
    assert!(net.seen().is_empty());
    stream.set_keep_alive(Some(KEEP)).unwrap();
    assert_eq!(stream.keep_alive(), Some(KEEP));
    net.pass(KEEP.idle - SECOND);
    assert!(net.seen().is_empty(), "the idle time begins when it is set");
    net.pass(SECOND);
    assert!(is_probe(&raw, &net.one()));
    stream.set_keep_alive(None).unwrap();
    net.pass(Duration::from_secs(86_400));
    assert!(net.seen().is_empty());
    let never = KeepAlive { probes: 0, ..KEEP };
    let refused = stream.set_keep_alive(Some(never)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    let (link, _other) = memory::pair(one_packet_each());
    let stack = Stack::builder(link)
        .address("10.0.0.1/24".parse().unwrap())
        .keep_alive(SECOND, Duration::ZERO, 1)
        .build_with_driver();
    assert!(matches!(stack, Err(BuildError::KeepAlive)));
}

/// Guards `linger` in `Tcb::apply`.
#[test]
fn the_last_close_with_linger_zero_resets() {
    let mut net = Net::new();
    let (_raw, mut stream) = net.accepted();
    stream.set_linger(Some(Duration::ZERO));
    let other = stream.try_clone().unwrap();
    stream.write_all(b"in flight").unwrap();
    assert_eq!(net.one().payload, b"in flight");
    drop(stream);
    assert!(net.seen().is_empty(), "there is another handle");
    assert_eq!(other.linger(), Some(Duration::ZERO));
    drop(other);
    assert!(net.one().has(RST));
    assert_eq!(net.stack.stats().connections, 0);
}

/// Guards `linger_until` in `Watch::next`.
#[test]
fn lingering_data_is_reset_after_its_time() {
    for answers in [false, true] {
        let mut net = Net::new();
        let (mut raw, mut stream) = net.accepted();
        stream.set_linger(Some(SECOND * 10));
        stream.write_all(b"to be delivered").unwrap();
        drop(stream);
        let seen = net.seen();
        assert_eq!(raw.take(&seen), b"to be delivered");
        if answers {
            raw.send(&net, ACK, b"");
        }
        net.pass(SECOND * 10);
        let reset = net.seen().iter().any(|one| one.has(RST));
        assert_eq!(
            reset, !answers,
            "all data and the FIN were acknowledged: {answers}"
        );
        net.healthy();
    }
}

/// Guards the hop limit in `Wire::emit`, in both families, for data and acknowledgements.
#[test]
fn the_time_to_live_is_on_every_packet() {
    let mut net = Net::new();
    for address in ["10.0.0.2", "fd00::2"] {
        let to = SocketAddr::new(address.parse().unwrap(), 9);
        let stream = TcpSocket::new(&net.stack).start(to).unwrap();
        let hops = |net: &mut Net| {
            net.turn();
            let mut frames = Vec::new();
            net.wire.receive(&mut frames, 10).unwrap();
            assert_eq!(frames.len(), 1);
            let frame = frames.remove(0);
            let hops = frame.head[if to.is_ipv4() { 8 } else { 7 }];
            let Parsed::Tcp(segment) = wire::parse(frame) else {
                panic!("the checksums are wrong");
            };
            (hops, segment.header.seq)
        };
        let (default, iss) = hops(&mut net);
        assert_eq!((u32::from(default), stream.ttl()), (64, 64));
        stream.set_ttl(3).unwrap();
        assert_eq!(stream.ttl(), 3);
        let mut raw = Raw::new(9);
        raw.from.0 = to.ip();
        raw.to = (stream.local_addr().ip(), stream.local_addr().port());
        raw.ack = iss.wrapping_add(1);
        raw.send(&net, SYN | ACK, b"");
        assert_eq!(hops(&mut net).0, 3, "the third of the handshake");
        (&stream).write_all(b"data").unwrap();
        assert_eq!(hops(&mut net).0, 3, "data");
        for wrong in [0, 256] {
            let error = stream.set_ttl(wrong).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        stream.abort();
        net.turn();
        net.drain();
    }
}

/// Number of segments sent at once, with an RTT of 100 ms.
fn first_burst(net: &mut Net, kind: Option<Congestion>) -> usize {
    let listener = net.listen(80);
    let mut raw = Raw::new(5000);
    raw.syn(net);
    net.pass(SECOND / 10);
    raw.send(net, ACK, b"");
    assert!(net.seen().is_empty());
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true);
    if let Some(kind) = kind {
        stream.set_congestion(kind);
        assert_eq!(stream.congestion(), kind);
    }
    stream.write_all(&pattern(0, 14_000)).unwrap();
    net.seen().len()
}

/// CUBIC sends its initial window at once, and BBR paces.
#[test]
fn each_connection_has_its_congestion_control() {
    let table = [
        (Congestion::Cubic, None, 10),
        (Congestion::Bbr, None, 1),
        (Congestion::Cubic, Some(Congestion::Bbr), 1),
        (Congestion::Bbr, Some(Congestion::Reno), 10),
    ];
    for (all, one, segments) in table {
        let mut net = Net::with(one_packet_each(), |builder| builder.congestion(all));
        let burst = first_burst(&mut net, one);
        assert_eq!(burst, segments, "{all}, {one:?}");
        net.healthy();
    }
}

/// All packets that the stack sends, as on the wire.
fn packets(net: &mut Net) -> Vec<Vec<u8>> {
    net.turn();
    let mut frames = Vec::new();
    while net.wire.receive(&mut frames, 1000).unwrap() > 0 {}
    let parts = |frame: &crate::link::Frame| -> Vec<u8> {
        let rest = frame.rest.iter().flat_map(|buf| buf.to_vec());
        frame.head.iter().copied().chain(rest).collect()
    };
    frames.iter().map(parts).collect()
}

/// RFC 3168 5, 6.1.1: the bits of IP and TCP, of both families.
#[test]
fn ecn_is_agreed_on_where_it_is_switched_on() {
    const SETUP: u8 = 0xc0;
    for (on, v6) in [(true, false), (true, true), (false, false), (false, true)] {
        let mut net = Net::with(one_packet_each(), |builder| builder.ecn(on));
        let listener = net.listen(80);
        let mut raw = Raw::new(5000);
        if v6 {
            raw.from.0 = "fd00::2".parse().unwrap();
            raw.to.0 = "fd00::1".parse().unwrap();
        }
        raw.send(&net, SYN | SETUP, b"");
        let answer = net.one();
        assert_eq!(answer.header.flags & SETUP, if on { 0x40 } else { 0 });
        raw.seq = raw.seq.wrapping_add(1);
        raw.ack = answer.header.seq.wrapping_add(1);
        raw.send(&net, ACK, b"");
        assert!(net.seen().is_empty());
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"data").unwrap();
        let all = packets(&mut net);
        let bits = u16::from_be_bytes([all[0][0], all[0][1]]);
        let ecn = if v6 { bits >> 4 } else { bits } & 0b11;
        assert_eq!(ecn, if on { 0b10 } else { 0 }, "ECT(0)");
        raw.send_data(&net, b"request");
        net.pass(SOON);
        let all = packets(&mut net);
        assert_eq!(all[0][1], 0, "not of an acknowledgement");
    }
}
