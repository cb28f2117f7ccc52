//! Each counter changes by its events only.

use super::*;

/// The changes of the counters since then, without present quantities.
fn since(net: &Net, before: &Stats) -> Stats {
    let now = net.stack.stats();
    Stats {
        frames_received: now.frames_received - before.frames_received,
        segments_received: now.segments_received - before.segments_received,
        bytes_received: now.bytes_received - before.bytes_received,
        segments_sent: now.segments_sent - before.segments_sent,
        bytes_sent: now.bytes_sent - before.bytes_sent,
        segments_retransmitted: now.segments_retransmitted - before.segments_retransmitted,
        bytes_retransmitted: now.bytes_retransmitted - before.bytes_retransmitted,
        active_opens: now.active_opens - before.active_opens,
        passive_opens: now.passive_opens - before.passive_opens,
        attempts_failed: now.attempts_failed - before.attempts_failed,
        connections_reset: now.connections_reset - before.connections_reset,
        ..now
    }
}

fn only(stats: &Stats, expected: &[(TcpState, usize)]) {
    for state in TcpState::ALL {
        let expected = expected.iter().find(|(other, _)| *other == state);
        let expected = expected.map_or(0, |(_, count)| *count);
        assert_eq!(stats.in_state(state), expected, "{state}");
    }
    let all: usize = TcpState::ALL.iter().map(|s| stats.in_state(*s)).sum();
    let sockets = all - stats.in_state(TcpState::Listen);
    assert_eq!(sockets, stats.connections + stats.time_wait);
}

#[test]
fn segments_and_bytes_of_both_directions() {
    let mut net = Net::new();
    let (mut raw, mut stream) = net.accepted();
    let before = net.stack.stats();
    assert_eq!((before.segments_received, before.segments_sent), (2, 1));
    assert_eq!((before.bytes_received, before.bytes_sent), (0, 0));
    raw.send_data(&net, &pattern(0, 1000));
    raw.send_data(&net, &pattern(1000, 7));
    assert_eq!(net.one().payload.len(), 0);
    // A duplicate counts as a segment, and is answered.
    raw.send_at(&net, -7, ACK, &pattern(1000, 7));
    net.one();
    stream.write_all(&pattern(0, 2000)).unwrap();
    let seen = net.seen();
    assert_eq!(seen.len(), 2);
    let change = since(&net, &before);
    assert_eq!((change.segments_received, change.bytes_received), (3, 1014));
    assert_eq!(change.frames_received, 3);
    assert_eq!((change.segments_sent, change.bytes_sent), (4, 2000));
    assert_eq!(change.segments_retransmitted, 0);
    assert_eq!((change.receive_queue, change.send_queue), (1007, 2000));
    assert!(change.buffer_memory >= 3007);
    raw.take(&seen);
    raw.send(&net, ACK, b"");
    net.turn();
    assert_eq!(read(&stream).len(), 1007);
    let change = since(&net, &before);
    assert_eq!((change.receive_queue, change.send_queue), (0, 0));
    assert_eq!(change.buffer_memory, 0);
}

#[test]
fn frames_dropped_by_the_parser_are_no_segments() {
    let mut net = Net::new();
    net.raw(&[0x45; 40]);
    net.turn();
    let stats = net.stack.stats();
    assert_eq!((stats.frames_received, stats.segments_received), (1, 0));
}

#[test]
fn the_timer_retransmits_unacknowledged_data() {
    let mut net = Net::new();
    let (raw, mut stream) = net.accepted();
    stream.write_all(&pattern(0, 500)).unwrap();
    assert_eq!(net.seen().len(), 1);
    let before = net.stack.stats();
    net.pass(Duration::from_secs(20));
    let again = net.drain();
    assert!(again.len() > 2);
    assert!(again.iter().all(|frame| frame.payload.len() == 500));
    let change = since(&net, &before);
    let count = again.len() as u64;
    assert_eq!(
        (change.segments_sent, change.bytes_sent),
        (count, count * 500)
    );
    assert_eq!(change.segments_retransmitted, count);
    assert_eq!(change.bytes_retransmitted, count * 500);
    assert_eq!(raw.ack, again[0].header.seq);
}

#[test]
fn a_syn_and_a_fin_that_are_sent_again_count() {
    let mut net = Net::new();
    let (raw, stream) = net.dialled();
    let count = |net: &Net| net.stack.stats().segments_retransmitted;
    assert_eq!(count(&net), 0);
    net.pass(Duration::from_millis(1500));
    assert_eq!((net.one().header.flags, count(&net)), (SYN, 1));
    raw.send(&net, SYN | ACK, b"");
    net.seen();
    assert_eq!(count(&net), 1);
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(net.one().has(FIN));
    assert_eq!(count(&net), 1);
    net.pass(Duration::from_secs(5));
    let fins = net.drain().len() as u64;
    assert_eq!((fins > 0, count(&net)), (true, 1 + fins));
    assert_eq!(net.stack.stats().bytes_retransmitted, 0);
}

#[test]
fn the_probes_of_a_closed_window_are_no_retransmissions() {
    let mut net = Net::new();
    let (mut raw, mut stream) = net.accepted();
    raw.window = 0;
    raw.send(&net, ACK, b"");
    net.turn();
    stream.write_all(b"waits").unwrap();
    net.pass(Duration::from_secs(20));
    assert!(net.drain().len() > 2, "probes");
    assert_eq!(net.stack.stats().segments_retransmitted, 0);
}

#[test]
fn opens_of_either_side_and_how_they_fail() {
    let mut net = Net::new();
    let listener = net.listen(80);
    only(&net.stack.stats(), &[(TcpState::Listen, 1)]);
    let mut raw = Raw::new(5000);
    raw.syn(&mut net);
    let stats = net.stack.stats();
    only(&stats, &[(TcpState::Listen, 1), (TcpState::SynReceived, 1)]);
    assert_eq!((stats.half_open, stats.accept_queue), (1, 0));
    assert_eq!((stats.active_opens, stats.passive_opens), (0, 1));
    assert_eq!(stats.timers, 1);
    // The peer resets.
    raw.send(&net, RST, b"");
    net.turn();
    let stats = net.stack.stats();
    only(&stats, &[(TcpState::Listen, 1)]);
    assert_eq!((stats.attempts_failed, stats.connections_reset), (1, 0));
    assert_eq!(stats.half_open, 0);

    // Two active opens: one is refused, one times out.
    let (mut refusing, refused) = net.dialled();
    only(
        &net.stack.stats(),
        &[(TcpState::Listen, 1), (TcpState::SynSent, 1)],
    );
    refusing.seq = 0;
    refusing.send(&net, RST | ACK, b"");
    net.turn();
    assert_eq!(net.stack.stats().attempts_failed, 2);
    let (_silent, late) = net.dialled();
    net.pass(Duration::from_secs(200));
    net.drain();
    let stats = net.stack.stats();
    assert_eq!((stats.active_opens, stats.passive_opens), (2, 1));
    assert_eq!((stats.attempts_failed, stats.connections_reset), (3, 0));
    assert_eq!(stats.timers, 0);
    drop((refused, late, listener));
    only(&net.stack.stats(), &[]);
}

#[test]
fn resets_of_established_connections() {
    let mut net = Net::new();
    let (raw, stream) = net.accepted();
    let stats = net.stack.stats();
    only(&stats, &[(TcpState::Established, 1)]);
    raw.send(&net, RST, b"");
    net.turn();
    let stats = net.stack.stats();
    only(&stats, &[]);
    assert_eq!((stats.connections_reset, stats.attempts_failed), (1, 0));
    drop(stream);
    // This side may do it too, and in CLOSE-WAIT.
    let (mut raw, stream) = net.accepted();
    raw.fin(&net);
    net.seen();
    only(&net.stack.stats(), &[(TcpState::CloseWait, 1)]);
    stream.abort();
    net.seen();
    assert_eq!(net.stack.stats().connections_reset, 2);
    // After this side has closed it does not count.
    let (raw, stream) = net.accepted();
    stream.shutdown(Shutdown::Write).unwrap();
    net.seen();
    only(&net.stack.stats(), &[(TcpState::FinWait1, 1)]);
    raw.send(&net, RST, b"");
    net.turn();
    assert_eq!(net.stack.stats().connections_reset, 2);
    only(&net.stack.stats(), &[]);
}

#[test]
fn each_state_on_the_way_to_an_orderly_end() {
    // This side closes first.
    let mut net = Net::new();
    let listener = net.listen(80);
    let mut raw = Raw::new(5000);
    raw.handshake(&mut net);
    let with = |state| [(TcpState::Listen, 1), (state, 1)];
    let stats = net.stack.stats();
    assert_eq!((stats.half_open, stats.accept_queue), (0, 1));
    let (stream, _) = listener.accept().unwrap();
    assert_eq!(net.stack.stats().accept_queue, 0);
    stream.shutdown(Shutdown::Write).unwrap();
    raw.take(&net.seen());
    only(&net.stack.stats(), &with(TcpState::FinWait1));
    raw.send(&net, ACK, b"");
    net.turn();
    only(&net.stack.stats(), &with(TcpState::FinWait2));
    raw.fin(&net);
    net.turn();
    let stats = net.stack.stats();
    only(&stats, &with(TcpState::TimeWait));
    assert_eq!((stats.connections, stats.time_wait), (0, 1));
    net.pass(Duration::from_secs(300));
    only(&net.stack.stats(), &[(TcpState::Listen, 1)]);
    net.drain();
    drop(stream);

    // Both at the same time.
    let mut raw = Raw::new(5001);
    raw.handshake(&mut net);
    let (stream, _) = listener.accept().unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    net.seen();
    raw.fin(&net);
    net.turn();
    only(&net.stack.stats(), &with(TcpState::Closing));
    raw.ack = raw.ack.wrapping_add(1);
    raw.send(&net, ACK, b"");
    net.turn();
    only(&net.stack.stats(), &with(TcpState::TimeWait));
    net.pass(Duration::from_secs(300));
    net.drain();
    drop(stream);

    // The peer closes first.
    let mut raw = Raw::new(5002);
    raw.handshake(&mut net);
    let (stream, _) = listener.accept().unwrap();
    raw.fin(&net);
    net.seen();
    only(&net.stack.stats(), &with(TcpState::CloseWait));
    drop(stream);
    raw.take(&net.seen());
    only(&net.stack.stats(), &with(TcpState::LastAck));
    raw.send(&net, ACK, b"");
    net.turn();
    let stats = net.stack.stats();
    only(&stats, &[(TcpState::Listen, 1)]);
    assert_eq!((stats.passive_opens, stats.connections_reset), (3, 0));
    assert_eq!(stats.attempts_failed, 0);
}

#[test]
fn a_reset_that_waits_for_room_is_of_a_closed_connection() {
    let mut config = one_packet_each();
    config.frames = 1;
    let net = Net::with(config, |builder| builder);
    let stream = TcpSocket::new(&net.stack)
        .start("10.0.0.2:9".parse().unwrap())
        .unwrap();
    let other = TcpSocket::new(&net.stack)
        .start("10.0.0.2:9".parse().unwrap())
        .unwrap();
    let stats = net.stack.stats();
    only(&stats, &[(TcpState::SynSent, 2)]);
    assert_eq!(
        (stats.blocked, stats.segments_sent, stats.link_full),
        (1, 1, 1)
    );
    stream.abort();
    // RFC 9293 3.10.5: in SYN-SENT no reset is sent.
    only(&net.stack.stats(), &[(TcpState::SynSent, 1)]);
    drop((stream, other));
}

#[test]
fn memory_of_out_of_order_data() {
    let mut net = Net::new();
    let (mut raw, stream) = net.accepted();
    // More than half of its frame; with less, the whole frame would count.
    raw.send_at(&net, 100, ACK, &pattern(100, 1100));
    net.turn();
    let stats = net.stack.stats();
    assert_eq!((stats.reassembly_memory, stats.receive_queue), (1100, 0));
    raw.send_data(&net, &pattern(0, 100));
    net.turn();
    let stats = net.stack.stats();
    assert_eq!((stats.reassembly_memory, stats.receive_queue), (0, 1200));
    drop(stream);
}

/// Busy time of a thread, with a slow link.
#[test]
fn a_driver_is_busy_between_waking_and_sleeping() {
    const WORK: Duration = Duration::from_millis(3);
    const SLEEP: Duration = Duration::from_secs(5);

    /// Receiving takes some time, then no frame arrives for a while; in the end the link is gone.
    #[derive(Debug)]
    struct Slow {
        clock: Arc<TestClock>,
        turns: Mutex<u32, LEAF>,
    }

    impl Link for Slow {
        fn capabilities(&self) -> Capabilities {
            memory::Config::default().capabilities
        }
        fn receive(
            &self,
            _frames: &mut Vec<crate::link::Frame>,
            _max: usize,
        ) -> Result<usize, crate::link::ReceiveError> {
            *self.clock.0.lock() += WORK;
            Ok(0)
        }
        fn transmit(&self, _packet: &Packet<'_>) -> Result<(), crate::link::TransmitError> {
            Ok(())
        }
        fn wait(
            &self,
            _interest: crate::link::Interest,
            _deadline: Option<Instant>,
        ) -> io::Result<()> {
            *self.clock.0.lock() += SLEEP;
            let mut turns = self.turns.lock();
            *turns += 1;
            match *turns {
                10 => Err(ErrorKind::NetworkDown.into()),
                _ => Ok(()),
            }
        }
        fn wake(&self) {}
    }

    let clock = Arc::new(TestClock(Mutex::new(SystemClock.now())));
    let link = Slow {
        clock: clock.clone(),
        turns: Mutex::new(0),
    };
    let builder = Stack::builder(link).clock(clock.clone());
    let builder = builder.address("10.0.0.1/24".parse().unwrap());
    let (stack, driver) = builder.build_with_driver().unwrap();
    let busy = || {
        stack
            .driver_stats()
            .iter()
            .map(|one| one.busy)
            .collect::<Vec<_>>()
    };
    *clock.0.lock() += SLEEP;
    assert_eq!(busy(), [Duration::ZERO], "not started");
    driver::Running::new(driver).run();
    assert_eq!(busy(), [WORK * 10]);
    *clock.0.lock() += SLEEP;
    assert_eq!(busy(), [WORK * 10], "over");
}

#[test]
fn work_left_to_the_driver() {
    let mut net = Net::new();
    let (raw, _stream) = net.accepted();
    let tuple = Tuple {
        local: raw.to.0,
        remote: raw.from.0,
        local_port: raw.to.1,
        remote_port: raw.from.1,
    };
    let shared = net.stack.shared();
    let Some(Entry::Conn(conn)) = shared.table.get(&tuple) else {
        panic!("a connection is in the table");
    };
    shared.hand_over(&conn);
    assert_eq!(net.stack.stats().handed_over, 1);
    net.turn();
    assert_eq!(net.stack.stats().handed_over, 0);
}
