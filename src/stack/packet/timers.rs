//! Each time limit at its moment: a microsecond earlier the connection still exists.

use super::*;
use std::thread;

const SECOND: Duration = Duration::from_secs(1);
const INSTANT: Duration = Duration::from_micros(1);

fn limited(build: impl FnOnce(Builder) -> Builder) -> Net {
    Net::with(one_packet_each(), build)
}

impl Net {
    /// The connection ends exactly after `time`.
    fn ends_after(&mut self, time: Duration, what: &str) {
        self.pass(time - INSTANT);
        assert_eq!(self.stack.stats().connections, 1, "{what}: before");
        self.pass(INSTANT);
        assert_eq!(self.stack.stats().connections, 0, "{what}: after");
        self.healthy();
    }

    fn count(&mut self, flags: u8) -> usize {
        let seen = self.seen();
        seen.iter().filter(|one| one.header.flags == flags).count()
    }
}

/// The peer acknowledges this side's FIN.
fn half_closed_by_us(net: &mut Net) -> (Raw, TcpStream) {
    let (mut raw, stream) = net.accepted();
    stream.shutdown(Shutdown::Write).unwrap();
    raw.take(&net.seen());
    raw.send(net, ACK, b"");
    net.turn();
    (raw, stream)
}

fn half_closed_by_the_peer(net: &mut Net) -> (Raw, TcpStream) {
    let (mut raw, stream) = net.accepted();
    raw.fin(net);
    net.turn();
    net.drain();
    (raw, stream)
}

/// Guards `Limits::default`: the values in the documentation of `stack`.
#[test]
fn the_defaults_are_those_of_the_table() {
    let mut net = Net::new();
    let (_raw, stream) = net.accepted();
    let limits = stream.conn().options.limits();
    let table = [
        ("connect", Some(limits.connect), Some(75)),
        ("half-open", Some(limits.half_open), Some(20)),
        ("user", Some(stream.user_timeout()), Some(300)),
        ("half-closed", stream.half_closed_timeout(), None),
        ("FIN-WAIT-2", Some(stream.fin_wait_timeout()), Some(60)),
        ("keep-alive", stream.keep_alive().map(|on| on.idle), None),
        ("linger", stream.linger(), None),
    ];
    for (name, found, seconds) in table {
        assert_eq!(found, seconds.map(Duration::from_secs), "{name}");
    }
    assert_eq!((limits.syn_retries, limits.syn_ack_retries), (None, None));
    assert_eq!(net.stack.shared().config.time_wait, SECOND * 60);
    let text = include_str!("../../doc/timers.md");
    for row in ["| 75 s |", "| 20 s |", "| 5 min |", "| 60 s |", "| off |"] {
        assert!(text.contains(row), "{row}");
    }
}

/// Guards `Limits::syn_sent` and the condition of `Tcb::emit`.
#[test]
fn syns_are_counted() {
    for (retries, seconds) in [(0, 1), (1, 3), (3, 15), (6, 75)] {
        let mut net = limited(|builder| builder.syn_retries(retries));
        let (_raw, stream) = net.dialled();
        net.ends_after(SECOND * seconds, "connecting");
        let syns = net.count(SYN);
        assert_eq!(syns, retries as usize, "after {seconds} s");
        assert_eq!(stream.take_error(), Some(SoError::TimedOut));
    }
}

/// The same without a connect timeout: the documented time for six retries.
#[test]
fn six_retries_take_two_minutes() {
    let mut net = limited(|builder| builder.syn_retries(6).connect_timeout(SECOND * 1000));
    let (_raw, _stream) = net.dialled();
    net.ends_after(SECOND * 123, "connecting");
    assert_eq!(net.count(SYN), 6);
}

/// Guards `Limits::syn_received`.
#[test]
fn half_open_connections_end() {
    type Build = fn(Builder) -> Builder;
    let table: [(Build, u64, usize); 5] = [
        (|builder| builder, 20, 4),
        (|builder| builder.syn_ack_retries(0), 1, 0),
        (|builder| builder.syn_ack_retries(2), 7, 2),
        (|builder| builder.half_open_timeout(SECOND * 5), 5, 2),
        (|builder| builder.connect_timeout(SECOND * 2), 2, 1),
    ];
    for (build, seconds, again) in table {
        let mut net = limited(build);
        let _listener = net.listen(80);
        Raw::new(5000).syn(&mut net);
        net.ends_after(SECOND * u32::try_from(seconds).unwrap(), "half open");
        assert_eq!(net.count(SYN | ACK), again, "{seconds} s");
    }
}

/// Guards `limits.user` in `Watch::next`, and `limits` in `Tcb::apply`.
#[test]
fn a_connections_user_timeout_counts_more_than_the_stacks() {
    for own in [None, Some(SECOND * 7), Some(SECOND * 70)] {
        let mut net = limited(|builder| builder.user_timeout(SECOND * 30));
        let (_raw, mut stream) = net.accepted();
        assert_eq!(stream.user_timeout(), SECOND * 30);
        net.pass(SECOND * 100);
        stream.write_all(b"anybody?").unwrap();
        if let Some(own) = own {
            // It applies to data in flight.
            stream.set_user_timeout(own).unwrap();
            assert_eq!(stream.user_timeout(), own);
        }
        net.ends_after(own.unwrap_or(SECOND * 30), "user timeout");
        assert_eq!(error_kind(&stream), Some(ErrorKind::TimedOut));
    }
}

/// Guards `limits.fin_wait` in `Watch::next`.
#[test]
fn fin_wait_2_ends_at_its_timeout() {
    for own in [None, Some(SECOND * 3)] {
        let mut net = limited(|builder| builder.fin_wait_timeout(SECOND * 8));
        let (_raw, stream) = half_closed_by_us(&mut net);
        // It does not apply while there is a handle.
        net.pass(SECOND * 1000);
        if let Some(own) = own {
            stream.set_fin_wait_timeout(own).unwrap();
        }
        let limit = stream.fin_wait_timeout();
        assert_eq!(limit, own.unwrap_or(SECOND * 8));
        drop(stream);
        net.turn();
        net.ends_after(limit, "FIN-WAIT-2");
    }
}

/// Guards `Watch::half_closed` in both states, and `moved` for what is received, acknowledged
/// and queued.
#[test]
fn an_idle_half_closed_connection_ends() {
    let build = |builder: Builder| builder.half_closed_timeout(Some(SECOND * 60));
    let mut net = limited(build);
    let (mut raw, stream) = half_closed_by_us(&mut net);
    for _ in 0..3 {
        net.pass(SECOND * 59);
        raw.send_data(&net, b"on and on");
        net.turn();
    }
    assert_eq!(read(&stream), b"on and onon and onon and on");
    net.ends_after(SECOND * 60, "FIN-WAIT-2");
    assert_eq!(error_kind(&stream), Some(ErrorKind::TimedOut));
    assert!(net.seen().pop().unwrap().has(RST));

    let mut net = limited(build);
    let (mut raw, mut stream) = half_closed_by_the_peer(&mut net);
    for _ in 0..3 {
        net.pass(SECOND * 59);
        stream.write_all(b"still talking").unwrap();
        let seen = net.seen();
        raw.take(&seen);
        net.pass(SECOND / 2);
        net.drain();
        raw.send(&net, ACK, b"");
        net.turn();
    }
    net.ends_after(SECOND * 60, "CLOSE-WAIT");
    assert_eq!(stream.take_error(), Some(SoError::TimedOut));
}

/// Guards that only progress counts, and that a writer with a silent peer is covered as well.
#[test]
fn a_sign_of_life_is_no_motion() {
    let build = |builder: Builder| builder.half_closed_timeout(Some(SECOND * 60));
    let mut net = limited(build);
    let (mut raw, mut stream) = half_closed_by_the_peer(&mut net);
    raw.window = 0;
    raw.send(&net, ACK, b"");
    net.turn();
    stream.write_all(b"no room").unwrap();
    for _ in 0..59 {
        net.pass(SECOND);
        raw.send(&net, ACK, b"");
    }
    net.drain();
    net.ends_after(SECOND, "CLOSE-WAIT, a closed window");
    assert_eq!(error_kind(&stream), Some(ErrorKind::TimedOut));
}

/// Guards the default, the setting of one connection, and `State` in `Watch::half_closed`.
#[test]
fn only_half_closed_connections_and_only_if_set() {
    let mut net = limited(|builder| builder.half_closed_timeout(Some(SECOND)));
    let (_raw, stream) = net.accepted();
    net.pass(SECOND * 100);
    assert_eq!(error_kind(&stream), Some(ErrorKind::WouldBlock));

    let mut net = Net::new();
    let (_raw, stream) = half_closed_by_us(&mut net);
    net.pass(SECOND * 86_400);
    assert_eq!(net.stack.stats().connections, 1);
    stream.set_half_closed_timeout(Some(SECOND)).unwrap();
    net.turn();
    assert_eq!(net.stack.stats().connections, 0, "idle for a day");

    let mut net = limited(|builder| builder.half_closed_timeout(Some(SECOND)));
    let (_raw, stream) = net.accepted();
    stream.set_half_closed_timeout(None).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    net.turn();
    net.pass(SECOND * 100);
    assert_eq!(net.stack.stats().connections, 1);
}

/// Guards `Limits::zero`, `above_zero` and the clamps.
#[test]
fn zero_and_for_ever() {
    type Build = fn(Builder, Duration) -> Builder;
    let setters: [(&str, Build); 5] = [
        ("connect_timeout", Builder::connect_timeout),
        ("half_open_timeout", Builder::half_open_timeout),
        ("user_timeout", Builder::user_timeout),
        ("fin_wait_timeout", Builder::fin_wait_timeout),
        ("half_closed_timeout", |builder, time| {
            builder.half_closed_timeout(Some(time))
        }),
    ];
    for (name, set) in setters {
        let (link, _other) = memory::pair(one_packet_each());
        let builder = Stack::builder(link).address("10.0.0.1/24".parse().unwrap());
        match set(builder, Duration::ZERO).build_with_driver() {
            Err(BuildError::Timeout(said)) => assert_eq!(said, name),
            other => panic!("{name}: {other:?}"),
        }
        let mut net = limited(|builder| set(builder, Duration::MAX));
        let (_raw, stream) = half_closed_by_us(&mut net);
        net.pass(SECOND);
        drop(stream);
        net.turn();
        net.healthy();
    }
    let mut net = limited(|builder| builder.syn_retries(u32::MAX).syn_ack_retries(u32::MAX));
    let (_raw, stream) = net.accepted();
    for result in [
        stream.set_user_timeout(Duration::ZERO),
        stream.set_fin_wait_timeout(Duration::ZERO),
        stream.set_half_closed_timeout(Some(Duration::ZERO)),
    ] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    stream.set_user_timeout(Duration::MAX).unwrap();
    stream.set_fin_wait_timeout(Duration::MAX).unwrap();
    stream.set_half_closed_timeout(Some(Duration::MAX)).unwrap();
    (&stream).write_all(b"x").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    net.pass(SECOND);
    net.healthy();
}

/// Guards `Work::DETACH` and `Work::ABORT` in SYN-SENT: a cancelled attempt leaves no state.
#[test]
fn a_cancelled_attempt_leaves_no_state() {
    for abort in [false, true] {
        let mut net = Net::new();
        let (raw, stream) = net.dialled();
        let kept = abort.then(|| stream.clone());
        match abort {
            true => stream.abort(),
            false => drop(stream),
        }
        assert!(net.seen().is_empty(), "RFC 9293 3.10.4, 3.10.5");
        assert_eq!(net.stack.stats().connections, 0);
        net.pass(SECOND * 100);
        assert!(net.seen().is_empty(), "no SYN is retransmitted");
        assert_eq!(net.driver.poll_at(), None, "no timer is left");
        raw.send(&net, SYN | ACK, b"");
        let answer = net.one();
        assert_eq!(answer.header.flags, RST);
        assert_eq!(answer.header.seq, raw.ack, "RFC 9293 3.10.7.1");
        if let Some(kept) = kept {
            assert_eq!(kept.take_error(), Some(SoError::ConnectionAborted));
        }
    }
}

/// Guards the wake-ups: a thread that waits for the connection is woken.
#[test]
fn a_blocked_connect_is_cancelled_by_another_handle() {
    for how in ["abort", "shutdown"] {
        let mut net = Net::new();
        let (_raw, stream) = net.dialled();
        let waiting = stream.clone();
        let waiter = thread::Builder::new().spawn(move || waiting.wait_connected(None));
        // The thread waits already, or is about to: both return.
        match how {
            "abort" => stream.abort(),
            _ => stream.shutdown(Shutdown::Both).unwrap(),
        }
        let error = waiter.unwrap().join().unwrap().unwrap_err();
        let kind = io::Error::from(error).kind();
        assert_eq!(kind, ErrorKind::ConnectionAborted, "{how}");
        drop(stream);
        net.turn();
        assert_eq!(net.stack.stats().connections, 0, "{how}");
    }
}

/// Found by fuzzing: a clock that leaps (a machine that was stopped, a simulator) must not cause
/// overflows.
#[test]
fn a_clock_that_leaps_is_no_round_trip_time() {
    for days in [1, 7, 25, 50, 20_000] {
        let mut net = Net::new();
        let (mut raw, stream) = net.accepted();
        for round in 0..3 {
            let data = pattern(round, 100);
            assert_eq!(stream.send(&data).unwrap(), 100);
            let seen = net.seen();
            assert_eq!(raw.take(&seen), data);
            raw.send(&net, ACK, b"");
            // The clock is not read before the answer arrives.
            *net.clock.0.lock() += SECOND * 86_400 * days;
            assert!(net.seen().is_empty());
        }
        // Lost data is retransmitted as before.
        stream.send(b"lost").unwrap();
        net.seen();
        net.pass(SECOND * 60);
        assert_eq!(raw.take(&net.drain()[..1]), b"lost");
        net.healthy();
    }
}
