//! SYN floods, and forged answers to our SYN.

use super::*;

const BACKLOG: usize = 16;

fn flooded(cookies: bool) -> (Net, TcpListener) {
    let mut net = Net::with(one_packet_each(), |builder| builder.syn_cookies(cookies));
    let at = "10.0.0.1:80";
    let listener = TcpListener::bind_with_backlog(&net.stack, at, BACKLOG).unwrap();
    listener.set_nonblocking(true);
    for port in 1..=1000 {
        Raw::new(port).send(&net, SYN, b"");
        net.turn();
    }
    (net, listener)
}

/// Guards `Shared::answer_with_cookie`, `cookie_of` and `accept_cookie`.
#[test]
fn a_syn_flood_does_not_shut_clients_out() {
    let (mut net, listener) = flooded(true);
    assert_eq!(net.seen().len(), 1000);
    let stats = net.stack.stats();
    assert_eq!(stats.connections, BACKLOG, "no state for the others");
    assert_eq!(stats.syn_cookies_sent, 1000 - BACKLOG as u64);
    let mut honest = Raw::new(5000);
    honest.options.window_scale = Some(7);
    honest.window = 1000;
    let answer = honest.syn(&mut net);
    assert_eq!(answer.header.options.window_scale, Some(3), "256 KiB");
    assert_eq!(answer.header.options.mss, Some(1460));
    assert_eq!(answer.header.window, u16::MAX);
    honest.send(&net, ACK, b"");
    net.turn();
    let (mut stream, peer) = listener.accept().unwrap();
    assert_eq!(peer.port(), 5000);
    stream.set_nonblocking(true);
    assert!(net.seen().is_empty(), "the SYN|ACK has left before");
    works(&mut net, &mut honest, &stream);
    assert_eq!(net.stack.stats().syn_cookies_accepted, 1);
    // Its window scale is kept: 1000 << 7 is more than the first flight.
    stream.write_all(&pattern(0, 70_000)).unwrap();
    let mut total = 0;
    loop {
        let seen = net.seen();
        if seen.is_empty() {
            break;
        }
        total += honest.take(&seen).len();
        honest.send(&net, ACK, b"");
    }
    assert_eq!(total, 70_000);
}

/// Guards `accepts` and `reserve_beyond`: connections that are not accepted fill the backlog too.
#[test]
fn connections_that_are_not_accepted_fill_the_backlog() {
    let (mut net, listener) = flooded(true);
    net.drain();
    let mut late = Raw::new(4999);
    late.syn(&mut net);
    for port in 5000..5000 + BACKLOG as u16 {
        let mut raw = Raw::new(port);
        raw.syn(&mut net);
        raw.send(&net, ACK, b"");
        net.turn();
        net.drain();
    }
    let dropped = net.stack.stats().syns_dropped;
    late.send(&net, ACK, b"");
    Raw::new(6000).send(&net, SYN, b"");
    assert!(net.seen().is_empty(), "neither a connection nor an answer");
    assert_eq!(net.stack.stats().syns_dropped, dropped + 2);
    // Its data is retransmitted when there is room, and accepted.
    drop(listener.accept().unwrap());
    net.seen();
    late.send(&net, ACK, b"hello");
    net.turn();
    let all = std::iter::from_fn(|| listener.accept().ok());
    let (stream, peer) = all.last().unwrap();
    assert_eq!(peer.port(), 4999);
    stream.set_nonblocking(true);
    assert_eq!(read(&stream), b"hello");
}

#[test]
fn without_cookies_the_backlog_is_a_limit_for_all() {
    let (net, _listener) = flooded(false);
    assert_eq!(net.drain().len(), BACKLOG);
    let stats = net.stack.stats();
    assert_eq!((stats.connections, stats.syn_cookies_sent), (BACKLOG, 0));
    assert_eq!(stats.syns_dropped, 1000 - BACKLOG as u64);
}

/// Guards `cookie_of`: a forger does not know the cookie, and it expires.
#[test]
fn a_guessed_or_old_cookie_is_reset() {
    let (mut net, listener) = flooded(true);
    net.drain();
    let mut raw = Raw::new(5000);
    raw.syn(&mut net);
    let guess = Raw {
        ack: raw.ack ^ 1 << 20,
        ..raw
    };
    guess.send(&net, ACK, b"");
    assert_eq!(net.one().header.flags, RST);
    let elsewhere = Raw {
        from: (raw.from.0, 5001),
        ..raw
    };
    elsewhere.send(&net, ACK, b"");
    assert_eq!(net.one().header.flags, RST);
    net.pass(Duration::from_secs(150));
    net.drain();
    raw.send(&net, ACK, b"");
    assert_eq!(net.one().header.flags, RST);
    assert!(listener.accept().is_err());
    assert_eq!(net.stack.stats().syn_cookies_accepted, 0);
}

#[test]
fn a_syn_from_an_address_to_itself_is_not_answered() {
    let mut net = Net::new();
    let _listener = net.listen(80);
    let mut raw = Raw::new(80);
    raw.from.0 = raw.to.0;
    raw.send(&net, SYN, b"");
    assert!(net.seen().is_empty(), "LAND");
    assert_eq!(net.stack.stats().connections, 0);
}

/// RFC 9293 3.10.7.2: in LISTEN only an acknowledgement is answered, with a reset. At a closed port all
/// but resets are reset (3.10.7.1).
#[test]
fn in_listen_a_segment_without_syn_and_ack_is_dropped() {
    let mut net = Net::new();
    let _listener = net.listen(80);
    let at = "10.0.0.1:81".parse().unwrap();
    let _deciding = ConditionalListener::bind(&net.stack, at).unwrap();
    for flags in [
        0,
        PSH,
        FIN,
        FIN | PSH,
        SYN | FIN,
        SYN | RST,
        SYN | FIN | RST,
        RST,
        ACK,
        ACK | FIN,
        SYN | ACK,
        SYN | ACK | FIN,
    ] {
        for (port, listens) in [(80, true), (81, true), (82, false)] {
            let mut raw = Raw::new(5000);
            (raw.to.1, raw.ack) = (port, 777);
            raw.send(&net, flags, b"data");
            let answers = flags & RST == 0 && (!listens || flags & ACK != 0);
            let seen = net.seen();
            assert_eq!(seen.len(), usize::from(answers), "{flags} {port}: {seen:?}");
            for reset in seen {
                let (seq, said) = match flags & ACK {
                    0 => (0, RST | ACK),
                    _ => (777, RST),
                };
                assert_eq!((reset.header.seq, reset.header.flags), (seq, said));
            }
            assert_eq!(net.stack.stats().connections, 0);
        }
    }
    assert_eq!(net.stack.shared().accepting.held.lock().len(), (0, 0));
}

/// Only a host that has received our SYN can refuse or accept it.
#[test]
fn a_blind_reset_or_answer_to_our_syn_does_nothing() {
    let mut net = Net::new();
    let (mut raw, stream) = net.dialled();
    for wrong in [1, 1000, 1 << 31, u32::MAX] {
        let blind = Raw {
            ack: raw.ack.wrapping_add(wrong),
            ..raw
        };
        blind.send(&net, RST | ACK, b"");
        assert!(net.seen().is_empty());
        blind.send(&net, SYN | ACK, b"");
        // The SYN is retransmitted once, at once.
        let again = SYN;
        let seen = net.seen();
        let flags = seen.iter().map(|frame| frame.header.flags);
        assert!(
            flags
                .into_iter()
                .all(|flags| flags == RST || flags == again)
        );
    }
    raw.send(&net, RST, b"");
    assert!(net.seen().is_empty(), "without an acknowledgement");
    raw.send(&net, SYN | ACK, b"");
    raw.seq = raw.seq.wrapping_add(1);
    assert_eq!(net.one().header.flags, ACK);
    works(&mut net, &mut raw, &stream);
}

/// Guards `wire::syn_options`: an invalid length ends the options, earlier ones apply.
#[test]
fn options_with_bad_lengths_do_no_harm() {
    let mut net = Net::new();
    let _listener = net.listen(80);
    for kind in 0..=255u8 {
        for len in [0, 1, 2, 3, 4, 5, 8, 11, 40, 255] {
            let mut options = [2, 4, 2, 88, 3, 3, 255, 1, kind, len, 255, 255];
            options[11] = len;
            let port = 1000 + u16::from(kind);
            Raw::new(port).send_with(&net, SYN, &options, b"");
            let answer = net.one();
            assert_eq!(answer.header.flags, SYN | ACK, "{options:?}");
            let mut raw = Raw::new(port);
            raw.seq = raw.seq.wrapping_add(1);
            raw.send(&net, RST, b"");
            assert!(net.seen().is_empty());
        }
    }
    assert_eq!(net.stack.stats().connections, 0);
    net.healthy();
}

/// A tiny MSS would cost a frame for each few bytes.
#[test]
fn a_tiny_mss_does_not_multiply_segments() {
    for mss in [0, 1, 48, 216] {
        for active in [false, true] {
            let mut net = Net::new();
            let (mut raw, mut stream) = if active {
                let (mut raw, stream) = net.dialled();
                raw.options.mss = Some(mss);
                raw.send(&net, SYN | ACK, b"");
                raw.seq = raw.seq.wrapping_add(1);
                net.turn();
                net.drain();
                (raw, stream)
            } else {
                let listener = net.listen(80);
                let mut raw = Raw::new(5000);
                raw.options.mss = Some(mss);
                raw.handshake(&mut net);
                (raw, listener.accept().unwrap().0)
            };
            stream.set_nonblocking(true);
            stream.write_all(&pattern(0, 20_000)).unwrap();
            let (mut frames, mut bytes) = (0, 0);
            while bytes < 20_000 {
                let seen = net.seen();
                assert!(!seen.is_empty());
                frames += seen.len();
                bytes += raw.take(&seen).len();
                raw.send(&net, ACK, b"");
            }
            // The last of a flight may be shorter.
            assert!(frames <= 20_000 / 216 + 30, "MSS {mss}: {frames} frames");
        }
    }
}

/// Guards `Shared::hold_syn`: the program decides first, so no cookie is sent.
#[test]
fn held_syns_count_in_the_backlog() {
    let mut net = Net::new();
    let at = "10.0.0.1:80".parse().unwrap();
    let listener = ConditionalListener::bind_with_backlog(&net.stack, at, 3).unwrap();
    for port in 1..=1000 {
        Raw::new(port).send(&net, SYN, b"");
        net.turn();
    }
    assert!(net.seen().is_empty());
    assert_eq!(net.stack.shared().accepting.held.lock().len(), (3, 3));
    assert_eq!(net.stack.stats().syns_dropped, 997);
    drop(listener);
}
