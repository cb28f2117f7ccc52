//! Segments around the ends of windows, streams and connections, and a link that is full.

use super::*;
use crate::stack::{ConditionalListener, Intercept};

// Faults that a peer could trigger.

/// The SYN|ACK's window is not shifted, and the buffer is a limit.
#[test]
fn a_batch_larger_than_the_ring_straight_after_the_handshake_does_not_panic() {
    for active in [false, true] {
        let mut net = Net::with(memory::Config::default(), |builder| builder);
        let all = pattern(0, 300_000);
        let (mut raw, stream) = if active {
            let (mut raw, stream) = net.dialled();
            raw.send(&net, SYN | ACK, b"");
            raw.seq = raw.seq.wrapping_add(1);
            (raw, Some(stream))
        } else {
            (Raw::new(5000), None)
        };
        let listener = net.listen(80);
        if !active {
            raw.syn(&mut net);
            raw.send(&net, ACK, b"");
        }
        for (i, part) in all.chunks(60_000).enumerate() {
            raw.send_at(&net, i as i32 * 60_000, ACK, part);
        }
        net.turn();
        let stream = stream.unwrap_or_else(|| listener.accept().unwrap().0);
        stream.set_nonblocking(true);
        let mut got = read(&stream);
        assert!(
            got.len() >= 60_000,
            "what the window allowed: {}",
            got.len()
        );
        // The peer retransmits the rest, from the acknowledged position.
        while got.len() < all.len() {
            let from = got.len();
            let part = &all[from..all.len().min(from + 60_000)];
            raw.send_at(&net, from as i32, ACK, part);
            net.turn();
            got.extend(read(&stream));
            assert!(got.len() > from, "no progress at {from}");
        }
        assert!(got == all, "bytes differ");
        net.healthy();
    }
}

/// A segment that is cut on the right loses its FIN.
#[test]
fn a_fin_on_a_segment_cut_at_the_edge_is_no_end() {
    let mut net = Net::with(memory::Config::default(), |b| b.receive_buffer(4096));
    let (mut raw, stream) = net.accepted();
    let all = pattern(0, 4096 + 5);
    raw.send(&net, ACK | FIN, &all);
    let ack = net.one();
    assert_eq!(
        ack.header.ack,
        raw.seq.wrapping_add(4096),
        "neither the rest nor the FIN"
    );
    let mut got = read(&stream);
    assert!(!is_end(&stream));
    raw.seq = raw.seq.wrapping_add(4096);
    raw.send(&net, ACK | FIN, &all[4096..]);
    net.turn();
    got.extend(read(&stream));
    assert!(got == all && is_end(&stream));
    net.healthy();
}

#[test]
fn a_reset_somewhere_in_the_window_is_challenged() {
    let mut net = Net::new();
    let (raw, stream) = net.accepted();
    raw.send_at(&net, 99, RST, b"");
    let challenge = net.one();
    assert_eq!(
        (challenge.header.flags, challenge.header.ack),
        (ACK, raw.seq)
    );
    assert_eq!(error_kind(&stream), Some(ErrorKind::WouldBlock));
    raw.send_at(&net, -1, RST, b"");
    assert!(net.seen().is_empty(), "outside: nothing");
    raw.send(&net, RST, b"");
    assert!(net.seen().is_empty());
    assert_eq!(error_kind(&stream), Some(ErrorKind::ConnectionReset));
}

/// With a full window, a FIN and a reset after it are still accepted.
#[test]
fn a_reset_behind_a_fin_in_a_full_window_counts() {
    let mut net = Net::with(one_packet_each(), |b| b.receive_buffer(2048));
    let (mut raw, stream) = net.accepted();
    raw.send_data(&net, &pattern(0, 1024));
    raw.send_data(&net, &pattern(1024, 1024));
    assert_eq!(net.seen().pop().unwrap().header.window, 0);
    raw.fin(&net);
    raw.send(&net, RST, b"");
    net.turn();
    assert_eq!(stream.take_error(), Some(SoError::ConnectionReset));
    assert_eq!(read(&stream), pattern(0, 2048));
}

#[test]
fn an_ack_of_unsent_bytes_is_not_accepted() {
    let mut net = Net::new();
    let listener = net.listen(80);
    let mut raw = Raw::new(5000);
    raw.window = 1000;
    raw.handshake(&mut net);
    let (mut stream, _) = listener.accept().unwrap();
    let all = pattern(0, 5000);
    stream.write_all(&all).unwrap();
    let mut got = raw.take(&net.seen());
    assert_eq!(got.len(), 1000);
    let honest = raw.ack;
    raw.ack = honest.wrapping_add(2000);
    raw.send(&net, ACK, b"");
    assert_eq!(net.one().header.flags, ACK, "a challenge");
    raw.ack = honest;
    raw.window = 60_000;
    for _ in 0..20 {
        raw.send(&net, ACK, b"");
        got.extend(raw.take(&net.seen()));
    }
    assert!(got == all, "{}", got.len());
    net.healthy();
}

/// Guards `wire::parse_ip`.
#[test]
fn an_ip_fragment_is_no_segment() {
    let mut net = Net::new();
    let (raw, stream) = net.accepted();
    let mut out = [0; MAX_CANONICAL];
    let header = Header {
        seq: raw.seq,
        ack: raw.ack,
        flags: ACK,
        window: 1000,
        options: SynOptions::default(),
    };
    for (at, value) in [(6, 0x20), (7, 0x01)] {
        let len = wire::compose(&mut out, raw.from, raw.to, &header, 4);
        out[at] = value;
        wire::finish(&mut out[..len], 20, std::iter::once(&b"evil"[..]), false);
        net.raw(&[&out[..len], b"evil"].concat());
    }
    assert!(net.seen().is_empty());
    assert_eq!(net.stack.stats().frames_fragments, 2);
    assert!(read(&stream).is_empty());
}

/// No data with a SYN.
#[test]
fn data_in_a_syn_is_not_kept() {
    let mut net = Net::new();
    let listener = net.listen(80);
    let mut raw = Raw::new(5000);
    raw.send(&net, SYN, b"early");
    let answer = net.one();
    raw.seq = raw.seq.wrapping_add(1);
    raw.ack = answer.header.seq.wrapping_add(1);
    assert_eq!(answer.header.ack, raw.seq);
    raw.send(&net, ACK, b"later");
    net.turn();
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true);
    assert_eq!(read(&stream), b"later");
    net.seen();

    let (mut raw, stream) = net.dialled();
    raw.send(&net, SYN | ACK, b"early");
    raw.seq = raw.seq.wrapping_add(1);
    let seen = net.seen();
    // RFC 9293 3.10.7.3: data with the SYN|ACK is accepted.
    raw.seq = raw.seq.wrapping_add(5);
    assert_eq!(seen.last().unwrap().header.ack, raw.seq);
    raw.send(&net, ACK, b"later");
    net.turn();
    let early: &[u8] = b"early";
    assert_eq!(read(&stream), [early, b"later"].concat());
    net.healthy();
}

/// The FIN does not wait for the peer's retransmission.
#[test]
fn a_fin_before_a_hole_is_filled_does_not_cost_a_second() {
    let mut net = Net::new();
    let (raw, stream) = net.accepted();
    raw.send_at(&net, 5, ACK | FIN, b"world");
    net.turn();
    raw.send(&net, ACK, b"hello");
    let last = net.seen().pop().unwrap();
    assert_eq!(last.header.ack, raw.seq.wrapping_add(11));
    assert_eq!(read(&stream), b"helloworld");
    assert!(is_end(&stream));
    net.healthy();
}

/// Guards the step in `Tcb::deliver`.
#[test]
fn reading_byte_by_byte_draws_no_silly_windows() {
    let mut net = Net::with(one_packet_each(), |b| b.receive_buffer(8192));
    let (mut raw, mut stream) = net.accepted();
    for part in pattern(0, 8192).chunks(1024) {
        raw.send_data(&net, part);
    }
    assert_eq!(net.seen().pop().unwrap().header.window, 0);
    let mut windows = Vec::new();
    for _ in 0..8192 {
        stream.read_exact(&mut [0; 1]).unwrap();
        windows.extend(net.seen().iter().map(|frame| frame.header.window));
    }
    assert!(windows.len() <= 4, "{windows:?}");
    assert!(windows.iter().all(|window| *window >= 2048), "{windows:?}");
}

#[test]
fn write_write_read_does_not_wait() {
    let mut net = Net::new();
    let (mut raw, mut stream) = net.accepted();
    stream.write_all(b"one").unwrap();
    stream.write_all(b"two").unwrap();
    assert_eq!(raw.take(&net.seen()), b"onetwo");
    raw.send_data(&net, b"x");
    assert_eq!(net.soon().header.ack, raw.seq);

    stream.set_nodelay(false);
    stream.write_all(b"one").unwrap();
    stream.write_all(b"two").unwrap();
    assert_eq!(raw.take(&net.seen()), b"one", "with Nagle the second waits");
}

/// Guards `set_congestion_control`.
#[test]
fn the_first_flight_is_bounded_by_congestion_control() {
    let mut net = Net::new();
    let (mut raw, mut stream) = net.accepted();
    stream.write_all(&pattern(0, 60_000)).unwrap();
    let flight = raw.take(&net.seen()).len();
    assert!(flight > 0 && flight <= 20_000, "{flight}");
}

/// Guards `Waiting` and the run queue's blocked list.
#[test]
fn a_full_link_drops_nothing() {
    let mut config = one_packet_each();
    config.frames = 2;
    let mut net = Net::with(config, |builder| builder);
    let (mut raw, mut stream) = net.accepted();
    let all = pattern(0, 100_000);
    stream.write_all(&all).unwrap();
    let mut got = Vec::new();
    for _ in 0..1000 {
        net.turn();
        let seen = net.drain();
        if seen.is_empty() {
            break;
        }
        got.extend(raw.take(&seen));
        raw.send(&net, ACK, b"");
    }
    assert!(got == all, "{} bytes", got.len());
    let stats = net.stack.stats();
    assert!(stats.link_full > 0);
    assert_eq!((stats.segments_lost, stats.broken), (0, 0));
}

/// An aborted connection stays until its RST was sent.
#[test]
fn an_abort_sends_its_reset_without_handles_and_with_a_full_link() {
    let mut config = one_packet_each();
    config.frames = 1;
    let mut net = Net::with(config, |builder| builder);
    let (raw, stream) = net.accepted();
    let mut other = stream.clone();
    other.write_all(b"fills the link").unwrap();
    drop(other);
    stream.abort();
    drop(stream);
    let first = net.drain();
    assert_eq!(first[0].payload, b"fills the link");
    let reset = net.one();
    assert!(reset.has(RST), "{reset:?}");
    assert_eq!(reset.header.seq, raw.ack.wrapping_add(14));
    assert_eq!(net.stack.stats().connections, 0);
}

/// A timer's reset that finds the link full waits too.
#[test]
fn a_time_out_with_a_full_link_ends_the_connection() {
    let mut config = one_packet_each();
    config.frames = 1;
    let mut net = Net::with(config, |builder| {
        builder.connect_timeout(Duration::from_millis(500))
    });
    let listener = net.listen(80);
    let mut raw = Raw::new(5000);
    raw.syn(&mut net);
    // Another connection's frame fills the link.
    let unanswered = TcpSocket::new(&net.stack).start("10.0.0.2:9".parse().unwrap());
    *net.clock.0.lock() += Duration::from_millis(600);
    net.turn();
    for _ in 0..5 {
        net.drain();
        net.pass(Duration::from_secs(1));
    }
    assert_eq!(net.stack.stats().connections, 0);
    drop((listener, unanswered));
}

/// Guards `Shared::initial_sequence_number` (RFC 6528).
#[test]
fn initial_sequence_numbers_differ_and_grow() {
    let mut net = Net::new();
    let listener = net.listen(80);
    let mut numbers = Vec::new();
    for port in 5000..5020 {
        let mut raw = Raw::new(port);
        numbers.push(raw.syn(&mut net).header.seq);
        if port == 5000 {
            raw.send(&net, ACK, b"");
            net.turn();
            listener.accept().unwrap().0.abort();
            assert!(net.one().has(RST));
        }
    }
    let mut distinct = numbers.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), 20);
    net.pass(Duration::from_secs(10));
    net.drain();
    let again = Raw::new(5000).syn(&mut net).header.seq;
    let ahead = again.wrapping_sub(numbers[0]);
    assert_eq!(ahead, 10_000_000 / 4, "one tick in 4 us");
}

/// Guards the order in `Tcb::serve`: bytes first, then the error.
#[test]
fn received_bytes_stay_readable_after_a_reset() {
    let mut net = Net::new();
    let (mut raw, mut stream) = net.accepted();
    raw.send_data(&net, b"last words");
    raw.send(&net, RST, b"");
    net.turn();
    let mut out = [0; 100];
    assert_eq!(stream.read(&mut out).unwrap(), 10);
    assert_eq!(error_kind(&stream), Some(ErrorKind::ConnectionReset));
    assert!(is_end(&stream), "reported once");
    assert_eq!(net.stack.stats().connections, 0);
}

// Timers.

#[test]
fn an_idle_connection_survives_a_day() {
    let mut net = Net::new();
    let (mut raw, stream) = net.accepted();
    net.pass(Duration::from_secs(86_400));
    assert!(net.seen().is_empty());
    raw.send_data(&net, b"still here");
    net.turn();
    assert_eq!(read(&stream), b"still here");
}

/// Guards the user timeout.
#[test]
fn unacknowledged_data_times_out() {
    let mut net = Net::new();
    let (_raw, mut stream) = net.accepted();
    net.pass(Duration::from_secs(1000));
    stream.write_all(b"anybody?").unwrap();
    net.pass(Duration::from_secs(299));
    assert_eq!(error_kind(&stream), Some(ErrorKind::WouldBlock));
    net.pass(Duration::from_secs(2));
    assert_eq!(error_kind(&stream), Some(ErrorKind::TimedOut));
    let seen = net.seen();
    assert!(seen.last().unwrap().has(RST));
    assert!(seen.len() < 20, "retransmission backs off");
    assert_eq!(net.stack.stats().connections, 0);
}

#[test]
fn a_connection_attempt_times_out() {
    let mut net = Net::new();
    let (_raw, stream) = net.dialled();
    net.pass(Duration::from_secs(74));
    assert_eq!(net.stack.stats().connections, 1);
    net.pass(Duration::from_secs(2));
    assert_eq!(stream.take_error(), Some(SoError::TimedOut));
    assert_eq!(net.stack.stats().connections, 0);
    assert!(net.seen().iter().filter(|frame| frame.has(SYN)).count() >= 4);
}

#[test]
fn fin_wait_2_of_a_closed_socket_ends() {
    let mut net = Net::new();
    let (mut raw, stream) = net.accepted();
    drop(stream);
    let fin = net.seen();
    raw.take(&fin);
    raw.send(&net, ACK, b"");
    net.pass(Duration::from_secs(59));
    assert_eq!(net.stack.stats().connections, 1);
    net.pass(Duration::from_secs(2));
    assert_eq!(net.stack.stats().connections, 0);
}

#[test]
fn a_closed_socket_does_not_wait_for_ever_for_a_closed_window() {
    let mut net = Net::new();
    let (mut raw, mut stream) = net.accepted();
    stream.write_all(&pattern(0, 5000)).unwrap();
    let seen = net.seen();
    raw.take(&seen);
    raw.window = 0;
    stream.write_all(&pattern(5000, 5000)).unwrap();
    raw.send(&net, ACK, b"");
    net.turn();
    drop(stream);
    for _ in 0..29 {
        net.pass(Duration::from_secs(10));
        raw.send(&net, ACK, b"");
        net.turn();
        assert_eq!(net.stack.stats().connections, 1);
    }
    net.pass(Duration::from_secs(20));
    assert_eq!(net.stack.stats().connections, 0);
}

/// A left-over timer for window probes would send acknowledgements without end.
#[test]
fn a_fin_acknowledged_through_a_closed_window_ends_the_probes() {
    let mut net = Net::new();
    let (mut raw, mut stream) = net.accepted();
    raw.window = 0;
    raw.send_data(&net, b"no more");
    net.turn();
    net.drain();
    stream.write_all(b"x").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    net.pass(Duration::from_secs(2));
    let probe = net.drain().pop().expect("a window probe");
    assert!(probe.payload == b"x" && probe.has(FIN), "{probe:?}");
    // The peer had room for one byte that it did not advertise.
    raw.take(&[probe]);
    raw.send(&net, ACK, b"");
    net.pass(Duration::from_secs(600));
    let seen = net.drain();
    assert!(seen.is_empty(), "{} of {:?}", seen.len(), seen[0]);
    raw.send_data(&net, b", but the last");
    raw.fin(&net);
    net.turn();
    assert_eq!(read(&stream), b"no more, but the last");
    assert!(is_end(&stream));
}

/// A peer whose window is counted in units of 128 bytes, with room for two segments of 50.
fn in_units(net: &mut Net) -> (Raw, TcpStream) {
    let listener = net.listen(80);
    let mut raw = Raw::new(5000);
    raw.options.window_scale = Some(7);
    raw.handshake(net);
    raw.window = 1;
    raw.send_data(net, b"little room");
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true);
    stream.set_nodelay(true);
    net.seen();
    (raw, stream)
}

/// Sends two segments of 50 bytes; the first is acknowledged with a window that rounds to 0.
fn half_taken(net: &mut Net, raw: &mut Raw, stream: &mut TcpStream) -> Seen {
    stream.write_all(&pattern(0, 50)).unwrap();
    let first = net.one();
    stream.write_all(&pattern(50, 50)).unwrap();
    let second = net.one();
    assert_eq!((first.payload.len(), second.payload.len()), (50, 50));
    raw.take(&[first]);
    raw.window = 0;
    second
}

/// The timer for window probes replaced that for retransmissions, and probes were sent after the FIN,
/// which was never retransmitted.
#[test]
fn a_lost_fin_is_retransmitted_to_a_window_that_rounds_to_zero() {
    let mut net = Net::new();
    let (mut raw, mut stream) = in_units(&mut net);
    let second = half_taken(&mut net, &mut raw, &mut stream);
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(net.one().has(FIN), "which is lost");
    raw.send(&net, ACK, b"");
    net.turn();
    raw.take(&[second]);
    raw.send(&net, ACK, b"");
    net.turn();
    raw.window = 100;
    raw.send(&net, ACK, b"");
    net.pass(Duration::from_secs(5));
    assert!(net.drain().iter().any(|frame| frame.has(FIN)));
    net.healthy();
}

/// The same with data, and the peer's next window update is lost too.
#[test]
fn lost_data_is_retransmitted_to_a_window_that_rounds_to_zero() {
    let mut net = Net::new();
    let (mut raw, mut stream) = in_units(&mut net);
    let lost = half_taken(&mut net, &mut raw, &mut stream);
    raw.send(&net, ACK, b"");
    net.pass(Duration::from_secs(10));
    let again = net.drain();
    let begins = |frame: &Seen| frame.header.seq == lost.header.seq && !frame.payload.is_empty();
    assert!(again.iter().any(begins), "{again:?}");
    net.healthy();
}

#[test]
fn a_half_open_connection_ends_after_twenty_seconds() {
    let mut net = Net::new();
    let _listener = net.listen(80);
    let mut raw = Raw::new(1000);
    raw.syn(&mut net);
    net.pass(Duration::from_secs(19));
    assert_eq!(net.stack.stats().connections, 1);
    net.pass(Duration::from_secs(2));
    assert_eq!(net.stack.stats().connections, 0);
}

#[test]
fn half_closed_by_us_lasts_as_long_as_the_user_reads() {
    let mut net = Net::new();
    let (mut raw, mut stream) = net.accepted();
    stream.write_all(b"request").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(raw.take(&net.seen()), b"request");
    raw.send(&net, ACK, b"");
    net.pass(Duration::from_secs(7200));
    raw.send_data(&net, b"response");
    raw.fin(&net);
    net.turn();
    assert_eq!(read(&stream), b"response");
    assert!(is_end(&stream));
    let error = stream.write(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    assert_eq!(net.seen().pop().unwrap().header.ack, raw.seq);
    assert_eq!(net.stack.stats().connections, 0, "a record in TIME-WAIT");
}

#[test]
fn half_closed_by_the_peer_still_takes_our_bytes() {
    let mut net = Net::new();
    let (mut raw, mut stream) = net.accepted();
    raw.fin(&net);
    net.turn();
    net.drain();
    assert!(is_end(&stream));
    net.pass(Duration::from_secs(7200));
    stream.write_all(b"late answer").unwrap();
    drop(stream);
    let seen = net.seen();
    assert_eq!(raw.take(&seen), b"late answer");
    // RFC 9293 3.10.4: after the last byte, at once.
    assert!(seen.last().unwrap().has(FIN));
    raw.send(&net, ACK, b"");
    assert!(net.seen().is_empty());
    assert_eq!(net.stack.stats().connections, 0);
    net.healthy();
}

/// Guards `TimeWait`.
#[test]
fn time_wait_answers_a_fin_and_lets_a_larger_syn_through() {
    let mut net = Net::new();
    let (raw, listener) = in_time_wait(&mut net);
    raw.send_at(&net, -1, ACK | FIN, b"");
    let again = net.one();
    assert_eq!((again.header.flags, again.header.ack), (ACK, raw.seq));
    assert_eq!(again.header.seq, raw.ack);
    raw.send(&net, RST, b"");
    raw.send(&net, ACK, b"");
    assert!(net.seen().is_empty(), "RFC 1337");
    let mut old = raw.clone();
    old.seq = raw.seq.wrapping_sub(1000);
    old.send(&net, SYN, b"");
    assert_eq!(net.one().header.flags, ACK, "an old duplicate");
    let mut new = raw.clone();
    new.seq = raw.seq.wrapping_add(1000);
    for flags in [SYN | FIN, SYN | ACK] {
        new.send(&net, flags, b"");
        let ack = net.one().header;
        assert_eq!(
            (ack.flags, ack.ack),
            (ACK, raw.seq),
            "it begins no connection"
        );
    }
    let answer = new.syn(&mut net);
    assert!(answer.header.seq.wrapping_sub(raw.ack).cast_signed() > 0);
    new.send(&net, ACK, b"hi");
    net.turn();
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true);
    assert_eq!(read(&stream), b"hi");
}

#[test]
fn time_wait_ends() {
    let mut net = Net::new();
    let (raw, _listener) = in_time_wait(&mut net);
    net.pass(Duration::from_secs(61));
    raw.send_at(&net, -1, ACK | FIN, b"");
    assert!(net.one().has(RST), "no record is left");
}

#[test]
fn time_wait_that_was_restarted_ends() {
    let mut net = Net::new();
    let (raw, _listener) = in_time_wait(&mut net);
    net.pass(Duration::from_secs(30));
    raw.send_at(&net, -1, ACK | FIN, b"");
    net.one();
    let listed = |net: &Net| {
        net.stack
            .sockets()
            .iter()
            .filter(|one| one.peer.is_some())
            .count()
    };
    net.pass(Duration::from_secs(59));
    assert_eq!(listed(&net), 1);
    net.pass(Duration::from_secs(2));
    assert_eq!(
        listed(&net),
        0,
        "it is not listed for longer than it answers"
    );
    raw.send_at(&net, -1, ACK | FIN, b"");
    assert!(net.one().has(RST));
}

// Opening and closing.

#[test]
fn simultaneous_open() {
    let mut net = Net::new();
    let (mut raw, mut stream) = net.dialled();
    let iss = raw.ack.wrapping_sub(1);
    raw.send(&net, SYN, b"");
    let answer = net.one();
    assert_eq!((answer.header.flags, answer.header.seq), (SYN | ACK, iss));
    raw.send(&net, SYN | ACK, b"");
    raw.seq = raw.seq.wrapping_add(1);
    net.turn();
    stream.write_all(b"hello").unwrap();
    assert_eq!(raw.take(&net.seen()), b"hello");
    raw.send_data(&net, b"world");
    net.turn();
    assert_eq!(read(&stream), b"world");
    net.healthy();
}

/// RFC 9293 3.10.7.4: "signal the user 'connection refused'", as BSD does. A passive open is not
/// reported.
#[test]
fn a_simultaneous_open_that_is_reset_is_refused() {
    let mut net = Net::new();
    let (mut raw, stream) = net.dialled();
    raw.send(&net, SYN, b"");
    assert_eq!(net.one().header.flags, SYN | ACK);
    raw.seq = raw.seq.wrapping_add(1);
    raw.send(&net, RST, b"");
    assert!(net.seen().is_empty());
    assert_eq!(stream.take_error(), Some(SoError::ConnectionRefused));
    let listener = net.listen(80);
    let mut raw = Raw::new(5000);
    raw.syn(&mut net);
    raw.send(&net, RST, b"");
    assert!(net.seen().is_empty());
    assert!(listener.accept().is_err());
    assert_eq!(net.stack.stats().connections, 0);
}

#[test]
fn simultaneous_close() {
    let mut net = Net::new();
    let (mut raw, stream) = net.accepted();
    stream.shutdown(Shutdown::Write).unwrap();
    let fin = net.one();
    assert!(fin.has(FIN));
    raw.fin(&net); // it does not acknowledge our FIN
    assert_eq!(net.one().header.ack, raw.seq);
    assert_eq!(net.stack.stats().connections, 1);
    raw.take(&[fin]);
    raw.send(&net, ACK, b"");
    assert!(net.seen().is_empty());
    assert!(is_end(&stream));
    assert_eq!(stream.take_error(), None);
    assert_eq!(net.stack.stats().connections, 0);
    net.healthy();
}

/// Guards `Tcb::deliver` of a detached socket (RFC 1122 4.2.2.13).
#[test]
fn a_peer_that_sends_on_after_our_close_is_reset() {
    let mut net = Net::new();
    let (mut raw, stream) = net.accepted();
    drop(stream);
    raw.take(&net.seen());
    raw.send_data(&net, b"and another thing");
    assert!(net.seen().iter().any(|frame| frame.has(RST)));
    assert_eq!(net.stack.stats().connections, 0);
}

#[test]
fn closing_with_unread_bytes_resets() {
    let mut net = Net::new();
    let (mut raw, stream) = net.accepted();
    raw.send_data(&net, b"never read");
    net.turn();
    net.drain();
    drop(stream);
    assert!(net.one().has(RST));
    assert_eq!(net.stack.stats().connections, 0);
}

#[test]
fn a_shutdown_before_the_connection_is_established_sends_its_fin_afterwards() {
    let mut net = Net::new();
    let (mut raw, stream) = net.dialled();
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(net.seen().is_empty());
    raw.send(&net, SYN | ACK, b"");
    raw.seq = raw.seq.wrapping_add(1);
    let seen = net.seen();
    assert!(seen.last().unwrap().has(FIN), "{seen:?}");
    raw.take(&seen);
    raw.send_data(&net, b"one way");
    raw.fin(&net);
    net.turn();
    assert_eq!(read(&stream), b"one way");
}

/// The FIN follows the last byte, also when the window is small.
#[test]
fn a_shutdown_with_much_to_send_delays_the_fin() {
    let mut net = Net::with(one_packet_each(), |b| b.send_buffer(8192));
    let listener = net.listen(80);
    let mut raw = Raw::new(5000);
    raw.window = 3000;
    raw.handshake(&mut net);
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_snd_hiwat(200_000);
    let all = pattern(0, 100_000);
    stream.write_all(&all).unwrap();
    drop(stream);
    let mut got = Vec::new();
    for _ in 0..200 {
        let seen = net.seen();
        let end = seen.iter().any(|frame| frame.has(FIN));
        got.extend(raw.take(&seen));
        raw.send(&net, ACK, b"");
        if end {
            break;
        }
    }
    assert!(got == all, "{}", got.len());
    raw.fin(&net);
    net.turn();
    assert_eq!(net.stack.stats().connections, 0);
}

#[test]
fn the_backlog_is_a_limit() {
    let mut net = Net::with(one_packet_each(), |builder| builder.syn_cookies(false));
    let at = "10.0.0.1:80";
    let listener = TcpListener::bind_with_backlog(&net.stack, at, 3).unwrap();
    for port in 1..=3 {
        Raw::new(5000 + port).syn(&mut net);
    }
    let mut fourth = Raw::new(5004);
    fourth.send(&net, SYN, b"");
    assert!(net.seen().is_empty(), "dropped, its sender tries again");
    assert_eq!(net.stack.stats().syns_dropped, 1);
    // Half-open ones time out; then there is room.
    net.pass(Duration::from_secs(76));
    net.drain();
    fourth.handshake(&mut net);
    listener.set_nonblocking(true);
    let (_stream, peer) = listener.accept().unwrap();
    assert_eq!(peer.port(), 5004);
}

/// Guards `Shared::add_listener`: every listener has room for one.
#[test]
fn a_backlog_of_nothing_is_one() {
    let at = "10.0.0.1:80".parse().unwrap();
    for (intercepts, backlog) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        let mut net = Net::with(one_packet_each(), |builder| builder.syn_cookies(false));
        let listener = match intercepts {
            false => TcpListener::bind_with_backlog(&net.stack, at, backlog),
            true => TcpListener::intercept(&net.stack, Intercept::all(), backlog),
        };
        let listener = listener.unwrap();
        let mut first = Raw::new(5001);
        first.handshake(&mut net);
        let mut second = Raw::new(5002);
        second.send(&net, SYN, b"");
        assert!(net.seen().is_empty(), "the first has the only place");
        let (_first, peer) = listener.accept().unwrap();
        assert_eq!(peer.port(), 5001);
        second.handshake(&mut net);
        let listening = net.stack.sockets().remove(0).listening.unwrap();
        assert_eq!((listening.backlog, listening.waiting), (1, 1));
    }
    for (intercepts, backlog) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        let mut net = Net::with(one_packet_each(), |builder| builder.syn_cookies(false));
        let listener = match intercepts {
            false => ConditionalListener::bind_with_backlog(&net.stack, at, backlog),
            true => ConditionalListener::intercept(&net.stack, Intercept::all(), backlog),
        };
        let listener = listener.unwrap();
        for port in [5001, 5002] {
            Raw::new(port).send(&net, SYN, b"");
        }
        net.turn();
        assert_eq!(
            net.stack.stats().syns_dropped,
            1,
            "the first has the only place"
        );
        let pending = listener.pending().unwrap();
        assert_eq!(pending.peer_addr().port(), 5001);
        pending.ignore();
        Raw::new(5002).send(&net, SYN, b"");
        net.turn();
        let listening = net.stack.sockets().remove(0).listening.unwrap();
        assert_eq!((listening.backlog, listening.waiting), (1, 1));
    }
}

#[test]
fn a_closed_listener_resets_waiting_connections() {
    let mut net = Net::new();
    let listener = net.listen(80);
    Raw::new(5000).handshake(&mut net);
    Raw::new(5001).syn(&mut net);
    drop(listener);
    let seen = net.seen();
    assert_eq!(seen.iter().filter(|frame| frame.has(RST)).count(), 2);
    assert_eq!(net.stack.stats().connections, 0);
}

// The stack around connections.

#[test]
fn ping_is_answered() {
    let mut net = Net::new();
    let mut echo = [8, 0, 0, 0, 0, 1, 0, 2, b'p', b'i', b'n', b'g'];
    let sum = checksum(&echo);
    echo[2..4].copy_from_slice(&sum);
    let mut ip = [
        0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 1, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1,
    ];
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    net.raw(&[&ip[..], &echo].concat());

    let from = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let to = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let mut echo6 = [128, 0, 0, 0, 0, 1, 0, 2, b'p', b'i', b'n', b'g'];
    let pseudo = [&from[..], &to, &[0, 0, 0, 12, 0, 0, 0, 58], &echo6].concat();
    let sum = checksum(&pseudo);
    echo6[2..4].copy_from_slice(&sum);
    let ip6 = [0x60, 0, 0, 0, 0, 12, 58, 64];
    net.raw(&[&ip6[..], &from, &to, &echo6].concat());

    net.turn();
    let mut frames = Vec::new();
    net.wire.receive(&mut frames, 10).unwrap();
    assert_eq!(frames.len(), 2);
    let (v4, v6) = (frames[0].to_vec(), frames[1].to_vec());
    assert_eq!((v4[20], &v4[28..]), (0, &b"ping"[..]));
    assert_eq!(v4[12..20], [10, 0, 0, 1, 10, 0, 0, 2]);
    assert_eq!((v6[40], &v6[48..]), (129, &b"ping"[..]));
}

#[test]
fn unknown_connections_are_reset_but_resets_are_not() {
    let mut net = Net::new();
    let mut raw = Raw::new(5000);
    raw.ack = 777;
    raw.send(&net, ACK, b"what?");
    let reset = net.one();
    assert_eq!((reset.header.flags, reset.header.seq), (RST, 777));
    raw.send(&net, SYN, b"");
    let reset = net.one();
    assert_eq!((reset.header.flags, reset.header.seq), (RST | ACK, 0));
    assert_eq!(reset.header.ack, raw.seq.wrapping_add(1));
    raw.send(&net, RST, b"");
    raw.send(&net, RST | ACK, b"");
    assert!(net.seen().is_empty());
    raw.to.0 = [10, 0, 0, 77].into();
    raw.send(&net, SYN, b"");
    assert!(net.seen().is_empty(), "not ours to reset");
}

/// Guards `Driver::unknown`: a proxy that was started again has none of its former connections, and the peer is to
/// learn it.
#[test]
fn segments_to_an_intercepted_destination_are_reset_as_by_itself() {
    for conditional in [false, true] {
        let mut net = Net::new();
        let rule = Intercept::all().addresses("10.0.0.64/26".parse().unwrap());
        let _open = match conditional {
            false => Ok(TcpListener::intercept(&net.stack, rule, 9).unwrap()),
            true => Err(ConditionalListener::intercept(&net.stack, rule, 9).unwrap()),
        };
        let mut raw = Raw::new(5000);
        (raw.to.0, raw.ack) = ([10, 0, 0, 77].into(), 777);
        raw.send(&net, ACK, b"of a former connection");
        let reset = net.one();
        assert_eq!((reset.header.flags, reset.header.seq), (RST, 777));
        assert_eq!(reset.tuple.remote, raw.to.0);
        for flags in [RST, RST | ACK, FIN, 0] {
            raw.send(&net, flags, b"");
        }
        raw.to.0 = [10, 0, 0, 7].into();
        raw.send(&net, ACK, b"to another host");
        assert!(net.seen().is_empty());
        assert_eq!(net.stack.stats().frames_stray, 6);
    }
}

#[test]
fn a_zero_window_stalls_and_reopens() {
    let mut net = Net::new();
    let (mut raw, mut stream) = net.accepted();
    raw.window = 0;
    raw.send_data(&net, b"no more");
    net.turn();
    net.drain();
    let all = pattern(0, 10_000);
    stream.write_all(&all).unwrap();
    net.pass(Duration::from_secs(900));
    // Probes of one byte, which the peer answers without accepting it, so there is no timeout.
    let probes = net.drain();
    assert!(!probes.is_empty() && probes.iter().all(|probe| probe.payload.len() <= 1));
    assert!(stream.take_error().is_some(), "no answer for 5 minutes");

    let mut net = Net::new();
    let (mut raw, mut stream) = net.accepted();
    raw.window = 0;
    raw.send_data(&net, b"no more");
    net.turn();
    net.drain();
    stream.write_all(&all).unwrap();
    for _ in 0..20 {
        net.pass(Duration::from_secs(60));
        net.drain();
        raw.send(&net, ACK, b"");
    }
    raw.window = 60_000;
    let mut got = Vec::new();
    for _ in 0..20 {
        raw.send(&net, ACK, b"");
        net.turn();
        got.extend(raw.take(&net.drain()));
    }
    assert!(got == all, "{}", got.len());
    net.healthy();
}

/// The window that a probe advertises is used.
#[test]
fn a_window_advertised_by_a_probe_can_be_filled() {
    let mut net = Net::with(memory::Config::default(), |b| b.receive_buffer(65_000));
    let (mut raw, mut stream) = net.accepted();
    raw.window = 0;
    let all = pattern(0, 75_000);
    for part in all[..30_000].chunks(1000) {
        raw.send_data(&net, part);
    }
    net.turn();
    net.drain();
    stream.write_all(b"waits for a window").unwrap();
    let mut got = vec![0; 10_000];
    net.turn();
    stream.read_exact(&mut got).unwrap();
    net.pass(Duration::from_secs(5));
    let probe = net.drain().pop().unwrap();
    assert_eq!(probe.payload.len(), 1, "{probe:?}");
    let edge = probe
        .header
        .ack
        .wrapping_add(u32::from(probe.header.window));
    let room = edge.wrapping_sub(raw.seq) as usize;
    raw.send_data(&net, &all[30_000..30_000 + room]);
    net.turn();
    got.extend(read(&stream));
    assert!(got == all[..30_000 + room], "{} bytes", got.len());
    net.healthy();
}

/// Guards the positions of `so_snd`: a retransmission carries the bytes of its range.
#[test]
fn a_retransmission_has_the_right_payload() {
    let mut net = Net::new();
    let (mut raw, mut stream) = net.accepted();
    let all = pattern(0, 50_000);
    stream.write_all(&all).unwrap();
    let mut got = Vec::new();
    let mut lost = 0usize;
    for round in 0..2000 {
        net.turn();
        for frame in net.drain() {
            // Every third frame is lost; the rest is accepted in order only.
            lost += 1;
            if lost.is_multiple_of(3) || frame.payload.is_empty() {
                continue;
            }
            let at = frame.header.seq.wrapping_sub(raw.ack) as usize;
            if at == 0 {
                got.extend(raw.take(&[frame]));
            } else if at < 60_000 {
                let from = got.len() + at;
                assert!(frame.payload == all[from..from + frame.payload.len()]);
            }
        }
        if got.len() == all.len() {
            break;
        }
        raw.send(&net, ACK, b"");
        if round % 2 == 0 {
            net.pass(Duration::from_secs(1));
        }
    }
    assert!(got == all, "{}", got.len());
    net.healthy();
}

/// A connection over IPv6, over a link that cuts packets up to a size into segments.
fn over_v6(most: Option<usize>) -> (Net, Raw, TcpStream) {
    let mut config = memory::Config::default();
    config.capabilities.segment_v6 = most;
    let mut net = Net::with(config, |builder| builder);
    let listener = TcpListener::bind(&net.stack, "[fd00::1]:80").unwrap();
    let mut raw = Raw::new(5000);
    raw.from.0 = "fd00::2".parse().unwrap();
    raw.to.0 = "fd00::1".parse().unwrap();
    raw.handshake(&mut net);
    let (stream, _) = listener.accept().unwrap();
    (net, raw, stream)
}

#[test]
fn ipv6_segments_leave_in_one_packet() {
    const MSS: usize = 1440;
    for (most, longest) in [
        (Some(65_535), usize::MAX),
        (Some(5000), (5000 - 60) / MSS * MSS),
        (Some(1500), MSS),
        (None, MSS),
    ] {
        let (mut net, mut raw, mut stream) = over_v6(most);
        let all = pattern(0, 100_000);
        stream.write_all(&all).unwrap();
        let (mut got, mut frames) = (Vec::new(), Vec::new());
        for _ in 0..200 {
            let seen = net.seen();
            if seen.is_empty() {
                break;
            }
            frames.extend(seen.iter().map(|frame| frame.payload.len()));
            got.extend(raw.take(&seen));
            raw.send(&net, ACK, b"");
        }
        assert!(got == all, "{most:?}: {}", got.len());
        let largest = frames.iter().max().copied().unwrap_or(0);
        match longest {
            usize::MAX => assert!(largest > 10 * MSS, "{frames:?}"),
            _ => assert_eq!(largest, longest, "{most:?}: {frames:?}"),
        }
        net.healthy();
    }
}

/// Guards `super_frame` and `Tcb::emit_new`: a packet that the link is to cut is a multiple of the
/// peer's MSS, within the windows, also after idle time.
#[test]
fn ipv4_super_frames_are_whole_segments() {
    for (mss, most) in [(1460, 10_000), (1000, 10_000), (536, 9000), (1460, 2500)] {
        let mut config = memory::Config::default();
        config.capabilities.segment_v4 = Some(most);
        let mut net = Net::with(config, |builder| builder);
        let listener = net.listen(80);
        let mut raw = Raw::new(5000);
        raw.options.mss = Some(mss);
        raw.handshake(&mut net);
        let (mut stream, _) = listener.accept().unwrap();
        let mss = usize::from(mss);
        let whole = (most - 40) / mss * mss;
        for round in 0..2 {
            let all = pattern(0, 250_000);
            stream.write_all(&all).unwrap();
            let (mut got, mut frames) = (Vec::new(), Vec::new());
            while got.len() < all.len() {
                let seen = net.seen();
                assert!(!seen.is_empty(), "{mss} {most}: {}", got.len());
                frames.extend(seen.iter().map(|frame| frame.payload.len()));
                got.extend(raw.take(&seen));
                raw.send(&net, ACK, b"");
            }
            assert!(got == all);
            assert_eq!(
                frames.iter().max(),
                Some(&whole),
                "{mss} {most}: {frames:?}"
            );
            // It releases memory.
            net.pass(Duration::from_secs(60));
            assert!(net.drain().is_empty(), "{round}");
        }
        net.healthy();
    }
}

/// Guards `Conn::resume`: a link that is full again and again does not pile up timers.
#[test]
fn timers_do_not_pile_up_while_the_link_is_full() {
    let mut config = one_packet_each();
    config.frames = 1;
    let mut net = Net::with(config, |builder| builder);
    let (_raw, mut stream) = net.accepted();
    stream.write_all(&pattern(0, 10_000)).unwrap();
    for _ in 0..100 {
        *net.clock.0.lock() += Duration::from_micros(10);
        net.turn();
    }
    let timers = net.stack.shared().queues[0].run_queue.lock().timers();
    assert!(timers <= 8, "{timers}");
}

#[test]
fn a_gone_link_ends_connections() {
    let mut net = Net::new();
    let (_raw, stream) = net.accepted();
    let Net {
        mut driver,
        wire,
        stack,
        ..
    } = net;
    drop(wire);
    while driver.poll().is_ok() {}
    assert_eq!(stream.take_error(), Some(SoError::NetworkDown));
    assert!(is_end(&stream));
    assert_eq!(stack.stats().connections, 0);
}

#[test]
fn data_in_flight_when_the_window_shrank_is_retransmitted() {
    let mut net = Net::new();
    let (mut raw, mut stream) = net.accepted();
    let all = pattern(0, 2048);
    stream.write_all(&all).unwrap();
    let flight = net.seen();
    assert_eq!(flight.len(), 2);
    let mut got = raw.take(&flight[..1]);
    // The second segment is lost, and the window with it.
    raw.window = 0;
    raw.send(&net, ACK, b"");
    // Less than a retransmission timeout.
    let wait = 190;
    net.pass(Duration::from_millis(wait));
    assert!(net.drain().is_empty());
    raw.window = 60_000;
    raw.send(&net, ACK, b"");
    net.pass(Duration::from_secs(3));
    got.extend(raw.take(&net.drain()[..1]));
    assert!(got == all, "{}", got.len());
    net.healthy();
}
