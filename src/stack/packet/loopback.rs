//! Connections of a stack with itself: both ends are its own, and no packet is sent on the link.

use super::*;
use crate::long::times;
use crate::stack::driver::{Running, Turn};
use crate::stack::{ConditionalListener, Intercept};

/// Two addresses of each family: to itself, and from one to the other.
const PAIRS: [(&str, &str); 4] = [
    ("10.0.0.1", "10.0.0.1"),
    ("10.0.0.1", "10.0.0.9"),
    ("fd00::1", "fd00::1"),
    ("fd00::1", "fd00::9"),
];

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

fn net() -> Net {
    Net::with(one_packet_each(), with_others)
}

fn with_others(builder: Builder) -> Builder {
    let others = ["10.0.0.9/24", "fd00::9/64"].map(|net| net.parse().unwrap());
    others.into_iter().fold(builder, Builder::address)
}

fn dial(net: &Net, (from, to): (&str, &str), port: u16) -> TcpStream {
    let stream = TcpSocket::new(&net.stack)
        .bind(at(from, 0))
        .start(at(to, port))
        .unwrap();
    stream.set_nonblocking(true);
    stream
}

/// Both ends of a new connection: the connecting one, and the accepted one.
fn joined(net: &mut Net, pair: (&str, &str)) -> [TcpStream; 2] {
    let listener = TcpListener::bind(&net.stack, at(pair.1, 80)).unwrap();
    let near = dial(net, pair, 80);
    net.turn();
    let (far, peer) = listener.accept().unwrap();
    assert_eq!(
        (peer, far.local_addr()),
        (near.local_addr(), near.peer_addr())
    );
    far.set_nonblocking(true);
    near.wait_connected(None).unwrap();
    [near, far]
}

/// No packet has left the stack, and there was no error.
fn stays_inside(net: &mut Net) {
    assert!(net.seen().is_empty(), "seen on the wire");
    net.healthy();
    let stats = net.stack.stats();
    assert_eq!((stats.frames_bad_address, stats.segments_lost), (0, 0));
    assert_eq!(stats.segments_retransmitted, 0);
}

#[test]
fn a_connection_to_an_own_address_stays_in_the_stack() {
    for pair in PAIRS {
        let mut net = net();
        let [near, far] = joined(&mut net, pair);
        assert_eq!(net.stack.stats().connections, 2);
        for (mut from, to) in [(&near, &far), (&far, &near)] {
            for round in 0..10 {
                let data = pattern(round * 3000, 3000);
                from.write_all(&data).unwrap();
                net.turn();
                assert_eq!(read(to), data, "{pair:?}");
            }
        }
        // One direction is closed, the other continues.
        near.shutdown(Shutdown::Write).unwrap();
        net.turn();
        assert!(is_end(&far));
        (&far).write_all(b"still there").unwrap();
        net.turn();
        assert_eq!(read(&near), b"still there");
        drop(far);
        net.turn();
        assert!(is_end(&near));
        let stats = net.stack.stats();
        assert_eq!((stats.connections, stats.time_wait), (0, 1), "{pair:?}");
        net.pass(Duration::from_secs(61));
        assert_eq!(net.stack.stats().time_wait, 0);
        stays_inside(&mut net);
    }
}

#[test]
fn a_closed_port_of_the_stack_refuses_at_once() {
    for pair in PAIRS {
        let mut net = net();
        let stream = dial(&net, pair, 81);
        net.turn();
        assert_eq!(
            stream.take_error(),
            Some(SoError::ConnectionRefused),
            "{pair:?}"
        );
        assert_eq!(net.stack.stats().connections, 0);
        stays_inside(&mut net);
    }
}

/// The local address is the destination, although there are routes over the link.
#[test]
fn routes_do_not_lead_to_own_addresses() {
    let source = "10.0.0.9".parse().unwrap();
    let own = Route::Link {
        source: Some(source),
        mtu: None,
    };
    for route in [Route::Unreachable, Route::Prohibited, own] {
        let mut net = net();
        let to_all = [("10.0.0.0/8".parse().unwrap(), route)];
        net.stack.set_routes(to_all).unwrap();
        let listener = net.listen(80);
        let stream = TcpSocket::new(&net.stack)
            .start(at("10.0.0.1", 80))
            .unwrap();
        net.turn();
        stream.wait_connected(None).unwrap();
        assert_eq!(stream.local_addr().ip(), stream.peer_addr().ip());
        assert!(listener.accept().is_ok());
        stays_inside(&mut net);
    }
}

#[test]
fn listeners_of_every_kind_accept_their_own_stack() {
    let mut net = net();
    let everywhere = net.listen(80);
    let all = Intercept::all().ports(81..=81);
    let intercepting = TcpListener::intercept(&net.stack, all, 9).unwrap();
    intercepting.set_nonblocking(true);
    for (port, listener) in [(80, &everywhere), (81, &intercepting)] {
        for pair in PAIRS {
            let near = dial(&net, pair, port);
            net.turn();
            let (far, _) = listener.accept().unwrap();
            far.set_nonblocking(true);
            (&near).write_all(b"hello").unwrap();
            net.turn();
            assert_eq!(read(&far), b"hello", "{pair:?}");
        }
    }
    stays_inside(&mut net);
}

#[test]
fn a_stack_decides_about_its_own_syns() {
    let mut net = net();
    let some = Intercept::all().ports(82..=82);
    let deciding = [
        ConditionalListener::bind(&net.stack, at("0.0.0.0", 80)).unwrap(),
        ConditionalListener::intercept(&net.stack, some, 9).unwrap(),
    ];
    for (listener, port) in deciding.iter().zip([80, 82]) {
        listener.set_nonblocking(true);
        for pair in PAIRS {
            let streams = [(); 3].map(|()| dial(&net, pair, port));
            net.turn();
            let [accepted, refused, ignored] = [(); 3].map(|()| listener.pending().unwrap());
            let far = accepted.accept().unwrap();
            far.set_nonblocking(true);
            refused.refuse();
            ignored.ignore();
            net.turn();
            streams[0].wait_connected(None).unwrap();
            (&streams[0]).write_all(b"hello").unwrap();
            assert_eq!(streams[1].take_error(), Some(SoError::ConnectionRefused));
            net.turn();
            assert_eq!(read(&far), b"hello");
            // An ignored SYN is retransmitted.
            net.pass(Duration::from_millis(1100));
            let again = listener.pending().unwrap();
            assert_eq!(again.peer_addr(), streams[2].local_addr());
            let far = again.accept().unwrap();
            net.turn();
            streams[2].wait_connected(None).unwrap();
            drop(far);
        }
    }
    assert!(net.seen().is_empty());
    net.healthy();
}

/// Guards `Queue::way_back`: cookies are looped back, and their acknowledgements begin looped
/// connections.
#[test]
fn a_full_backlog_answers_its_own_stack_with_cookies() {
    let mut net = net();
    let at_port = at("10.0.0.1", 80);
    let listener = TcpListener::bind_with_backlog(&net.stack, at_port, 2).unwrap();
    listener.set_nonblocking(true);
    for port in 1..=2 {
        Raw::new(port).send(&net, SYN, b"");
    }
    net.seen();
    let near = [(); 2].map(|()| dial(&net, PAIRS[0], 80));
    net.turn();
    assert_eq!(net.stack.stats().syn_cookies_accepted, 2);
    for near in near {
        let (far, peer) = listener.accept().unwrap();
        assert_eq!(peer, near.local_addr());
        far.set_nonblocking(true);
        (&near).write_all(b"hello").unwrap();
        net.turn();
        assert_eq!(read(&far), b"hello");
    }
    assert!(net.drain().is_empty());
    net.healthy();
}

#[test]
fn a_reset_reaches_the_other_end() {
    for pair in PAIRS {
        let mut net = net();
        let [near, far] = joined(&mut net, pair);
        near.abort();
        net.turn();
        assert_eq!(error_kind(&far), Some(ErrorKind::ConnectionReset));
        // Unread bytes too.
        let listener = net.listen(81);
        let near = dial(&net, pair, 81);
        net.turn();
        let (far, _) = listener.accept().unwrap();
        (&near).write_all(b"unread").unwrap();
        net.turn();
        drop(far);
        net.turn();
        assert_eq!(error_kind(&near), Some(ErrorKind::ConnectionReset));
        drop(near);
        net.turn();
        assert_eq!(net.stack.stats().connections, 0);
        assert!(net.drain().is_empty());
        net.healthy();
    }
}

/// Much in both directions at once, with buffers smaller and larger than the queue.
#[test]
fn much_goes_both_ways_at_once() {
    const LEN: usize = 6 << 20;
    for buffer in [2048, 70_000, 8 << 20] {
        for pair in [PAIRS[0], PAIRS[3]] {
            let build = |builder: Builder| {
                with_others(builder)
                    .receive_buffer(buffer)
                    .send_buffer(buffer)
            };
            let mut net = Net::with(one_packet_each(), build);
            let ends = joined(&mut net, pair);
            let data = pattern(0, LEN.min(buffer * 100));
            let mut done = [(0, 0); 2];
            while done
                .iter()
                .any(|(sent, got)| (*sent, *got) != (data.len(), data.len()))
            {
                for (end, (sent, got)) in ends.iter().zip(&mut done) {
                    let mut end = end;
                    *sent += end.write(&data[*sent..]).unwrap_or(0);
                    let part = read(end);
                    assert!(part[..] == data[*got..*got + part.len()], "at {got}");
                    *got += part.len();
                }
                net.pass(Duration::from_millis(1));
            }
            stays_inside(&mut net);
        }
    }
}

/// More connections than the queue has places: those that find it full wait, and none is lost,
/// independently of room in the link.
#[test]
fn a_full_queue_delays_connections_and_loses_no_frame() {
    let count = times(300, 1000);
    let config = memory::Config {
        frames: 1,
        ..one_packet_each()
    };
    let mut net = Net::with(config, |builder| builder);
    // The link is full, and stays so.
    let outside = TcpSocket::new(&net.stack).start(at("10.0.0.2", 9)).unwrap();
    let also_outside = TcpSocket::new(&net.stack).start(at("10.0.0.2", 9)).unwrap();
    let listener = TcpListener::bind_with_backlog(&net.stack, at("10.0.0.1", 80), count).unwrap();
    listener.set_nonblocking(true);
    let near: Vec<_> = (0..count).map(|_| dial(&net, PAIRS[0], 80)).collect();
    let closed: Vec<_> = (0..count).map(|_| dial(&net, PAIRS[0], 81)).collect();
    let stats = net.stack.stats();
    assert_eq!(
        stats.blocked,
        2 * count - 256 + 1,
        "for the queue, and for the link"
    );
    net.turn();
    for stream in &closed {
        assert_eq!(stream.take_error(), Some(SoError::ConnectionRefused));
    }
    let far: Vec<_> = (0..count).map(|_| listener.accept().unwrap().0).collect();
    for (round, stream) in near.iter().chain(&far).enumerate() {
        stream.set_nonblocking(true);
        let mut stream = stream;
        stream.write_all(&pattern(round, 100)).unwrap();
    }
    net.turn();
    let mut texts: Vec<_> = near.iter().chain(&far).map(read).collect();
    texts.sort();
    let mut sent: Vec<_> = (0..2 * count).map(|round| pattern(round, 100)).collect();
    sent.sort();
    assert!(texts == sent);
    let stats = net.stack.stats();
    assert_eq!((stats.blocked, stats.segments_lost), (1, 0), "for the link");
    assert_eq!(stats.segments_retransmitted, 0);
    net.healthy();
    drop((outside, also_outside));
}

/// Packets on the link with addresses of a looped connection are dropped: they do not end it, inject
/// data, or cause an answer.
#[test]
fn packets_on_the_link_do_not_reach_a_looped_connection() {
    for pair in PAIRS {
        let mut net = net();
        let [near, far] = joined(&mut net, pair);
        // The forger knows all sequence numbers.
        (&near).write_all(b"x").unwrap();
        let (near_seq, far_seq) = numbers(&net);
        net.turn();
        assert_eq!(read(&far), b"x");
        let of = |from: &TcpStream, seq, ack| Raw {
            from: (from.local_addr().ip(), from.local_addr().port()),
            to: (from.peer_addr().ip(), from.peer_addr().port()),
            seq,
            ack,
            ..Raw::new(0)
        };
        let forged = [of(&near, near_seq, far_seq), of(&far, far_seq, near_seq)];
        let mut count = 0;
        for raw in &forged {
            for flags in [RST, ACK | RST, SYN, ACK, ACK | FIN] {
                raw.send(&net, flags, b"");
                raw.send(&net, flags, b"forged");
                count += 2;
            }
        }
        assert!(net.seen().is_empty());
        assert_eq!(net.stack.stats().frames_bad_address, count);
        (&far).write_all(b"y").unwrap();
        net.turn();
        assert_eq!(read(&near), b"y");
        assert!(read(&far).is_empty() && !is_end(&far));
        // Nor do they affect a record in TIME-WAIT.
        near.shutdown(Shutdown::Write).unwrap();
        net.turn();
        drop(far);
        net.turn();
        assert!(is_end(&near));
        assert_eq!(net.stack.stats().time_wait, 1);
        for raw in &forged {
            raw.send_at(&net, 1, ACK | FIN, b"");
            raw.send_at(&net, 1000, SYN, b"");
            count += 2;
        }
        assert!(net.seen().is_empty());
        assert_eq!(net.stack.stats().frames_bad_address, count);
        net.healthy();
    }
}

/// Sequence numbers after the byte that waits in the queue, and its acknowledgement.
fn numbers(net: &Net) -> (u32, u32) {
    let loopback = &net.stack.shared().queues[0].loopback;
    let mut frames = Vec::new();
    assert_eq!(loopback.take(&mut frames, 2), 1);
    let back = Packet {
        header: &frames[0].head,
        payload: &frames[0].rest,
        ip_header_len: 0,
        checksum: Checksum::partial_tcp(20),
        segment: None,
    };
    loopback.transmit(&back).unwrap();
    match wire::parse(frames.remove(0)) {
        Parsed::Tcp(one) => (one.header.seq.wrapping_add(1), one.header.ack),
        other => panic!("not a segment: {other:?}"),
    }
}

/// The hook is not called for looped packets.
#[test]
fn the_hook_is_not_called_for_looped_segments() {
    let mut net = Net::with(one_packet_each(), |builder| {
        builder
            .on_unhandled(|frame| panic!("called for {frame:?}"))
            .unhandled_tcp(true)
    });
    let stream = dial(&net, PAIRS[0], 81);
    net.turn();
    assert_eq!(stream.take_error(), Some(SoError::ConnectionRefused));
    stays_inside(&mut net);
}

#[test]
fn removing_an_address_ends_both_ends() {
    for (from, to) in PAIRS {
        for gone in [from, to] {
            let mut net = net();
            let [near, far] = joined(&mut net, (from, to));
            let dialling = dial(&net, (from, to), 80);
            net.stack.remove_address(gone.parse().unwrap()).unwrap();
            for end in [&near, &far, &dialling] {
                assert_eq!(end.take_error(), Some(SoError::AddressRemoved), "{gone}");
            }
            assert_eq!(net.stack.stats().connections, 0);
            net.turn();
            assert_eq!(net.stack.stats().connections, 0, "no SYN is answered");
            assert!(net.drain().is_empty());
            // It is another host's address now.
            let other = ["10.0.0.1", "10.0.0.9", "fd00::1", "fd00::9"];
            let still = other
                .iter()
                .find(|one| **one != gone && one.contains(':') == gone.contains(':'));
            let stream = TcpSocket::new(&net.stack)
                .bind(at(still.unwrap(), 0))
                .start(at(gone, 80));
            assert_eq!(net.one().header.flags, SYN);
            drop(stream);
            net.healthy();
        }
    }
}

/// Guards `Loopback::end`.
#[test]
fn a_stack_that_goes_down_ends_both_ends() {
    let mut net = net();
    let [near, far] = joined(&mut net, PAIRS[1]);
    let dialling = dial(&net, PAIRS[0], 80);
    (&near).write_all(b"never arrives").unwrap();
    let Net { stack, driver, .. } = net;
    drop(driver);
    for end in [near, far, dialling] {
        assert_eq!(error_kind(&end), Some(ErrorKind::NetworkDown));
    }
    let shared = stack.shared();
    assert!(!shared.queues[0].loopback.has_frames());
    assert_eq!(stack.stats().connections, 0);
    let late = TcpSocket::new(&stack).start(at("10.0.0.1", 80));
    assert_eq!(late.unwrap_err().kind(), ErrorKind::NetworkDown);
}

/// BSD and Linux connect such a socket to itself (a simultaneous open with one end); here it is an error.
#[test]
fn a_connection_to_itself_is_refused() {
    let net = net();
    for address in ["10.0.0.1", "fd00::1"] {
        let itself = at(address, 7000);
        let error = TcpSocket::new(&net.stack)
            .bind(itself)
            .start(itself)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(
            error.to_string().ends_with("to itself: give another port"),
            "{error}"
        );
    }
    // Such a port is not chosen either.
    let mut net = Net::with(one_packet_each(), |builder| {
        builder.ephemeral_ports(7000..=7001)
    });
    let stream = dial(&net, PAIRS[0], 7000);
    assert_eq!(stream.local_addr().port(), 7001);
    net.turn();
    assert_eq!(stream.take_error(), Some(SoError::ConnectionRefused));
    stays_inside(&mut net);
}

/// Guards `Loopback::fall_asleep`, `RunQueue::fall_asleep` and the wake-up in `Loopback::transmit`.
#[test]
fn a_driver_does_not_sleep_while_its_stack_talks_to_itself() {
    let mut net = net();
    let listener = net.listen(80);
    net.turn();
    assert_eq!(net.driver.poll_at(), None);
    let first = dial(&net, PAIRS[0], 80);
    assert_eq!(net.driver.poll_at(), Some(net.clock.now()));
    assert!(net.driver.poll().unwrap(), "there is work");
    net.turn();
    let Net {
        stack,
        driver,
        clock,
        ..
    } = net;
    let mut sleeper = Running::new(driver);
    let timers = sleeper.fall_asleep();
    assert!(timers.is_some(), "only timers are left");
    let second = TcpSocket::new(&stack).start(at("10.0.0.1", 80)).unwrap();
    // It was woken: this returns at once, and not at the deadline.
    let limit = SystemClock.now() + Duration::from_secs(20);
    sleeper
        .link()
        .wait(crate::link::Interest::READABLE, Some(limit))
        .unwrap();
    assert!(SystemClock.now() < limit);
    sleeper.wake_up();
    assert_eq!(sleeper.fall_asleep(), None, "there is a frame");
    while sleeper.turn() == Turn::Busy {}
    assert!(sleeper.fall_asleep().is_some());
    sleeper.wake_up();
    for _ in [&first, &second] {
        listener.accept().unwrap();
    }
    // Nor while one waits for room, though there is no frame.
    let conn = stack.shared().table.conn(&second.conn().tuple);
    stack.shared().blocked(&conn);
    assert_eq!(sleeper.fall_asleep(), None);
    drop(clock);
}

/// Both ends have one home, whichever that is.
#[test]
fn both_ends_belong_to_one_queue() {
    let mut nets = queues::nets(with_others);
    let listener = nets[0].listen(80);
    for queue in [0, 1, 1, 0] {
        let stream = TcpSocket::new(&nets[0].stack)
            .queue(queue)
            .start(at("10.0.0.9", 80))
            .unwrap();
        nets[1 - queue].turn();
        assert!(
            listener.accept().is_err(),
            "the other driver is not involved"
        );
        nets[queue].turn();
        let (far, _) = listener.accept().unwrap();
        far.set_nonblocking(true);
        assert_eq!((stream.queue(), far.queue()), (queue, queue));
        (&stream).write_all(b"hello").unwrap();
        nets[queue].turn();
        assert_eq!(read(&far), b"hello");
    }
    let homes = [(); 4].map(|()| dial(&nets[0], PAIRS[1], 80).queue());
    assert_eq!(homes.iter().sum::<usize>(), 2, "they take turns: {homes:?}");
    let stats = nets[0].stack.queue_stats();
    assert!(stats.iter().all(|queue| queue.segments_astray == 0));
    nets.iter_mut().for_each(stays_inside);
}
