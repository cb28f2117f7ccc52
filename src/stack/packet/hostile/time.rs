//! Clocks that stop and jump.

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn jump(net: &Net, forward: bool) {
    let mut now = net.clock.0.lock();
    *now = if forward { *now + HOUR } else { *now - HOUR };
}

/// No effect without a running timer: an idle connection, a listener, a record.
#[test]
fn an_idle_connection_survives_jumps_of_the_clock() {
    let mut net = Net::new();
    let (mut raw, stream) = net.accepted();
    for forward in [true, false, false, false, true, true, true] {
        jump(&net, forward);
        net.turn();
        works(&mut net, &mut raw, &stream);
    }
    assert_eq!(net.stack.stats().connections, 1);
}

/// Data passes while the clock is stopped, and lost data is retransmitted when a timer is due.
#[test]
fn a_stopped_clock_delays_only_timers() {
    let mut net = Net::new();
    let (mut raw, mut stream) = net.accepted();
    let mut got = Vec::new();
    for round in 0..50 {
        stream.write_all(&pattern(round * 1000, 1000)).unwrap();
        got.extend(raw.take(&net.seen()));
        raw.send_data(&net, b"ping");
        net.turn();
        assert_eq!(read(&stream), b"ping");
        raw.send(&net, ACK, b"");
        got.extend(raw.take(&net.seen()));
    }
    assert_eq!(got, pattern(0, 50_000));
    stream.write_all(b"lost").unwrap();
    assert_eq!(net.one().payload, b"lost");
    assert!(net.seen().is_empty());
    jump(&net, true);
    let mut again = net.seen();
    // An hour is more than the user timeout.
    assert!(again.pop().unwrap().has(RST));
    assert_eq!(error_kind(&stream), Some(ErrorKind::TimedOut));
}

/// Data in flight, and a jump: it is retransmitted, at the latest when the clock has caught up.
#[test]
fn data_in_flight_survives_a_jump_back() {
    let mut net = Net::with(one_packet_each(), |b| b.user_timeout(10 * HOUR));
    let (mut raw, mut stream) = net.accepted();
    jump(&net, true);
    for forward in [false, true, true, false] {
        stream.write_all(b"in flight").unwrap();
        assert_eq!(net.one().payload, b"in flight");
        jump(&net, forward);
        net.pass(HOUR + Duration::from_secs(2));
        let seen = net.drain();
        assert!(
            !seen.is_empty() && seen[0].payload == b"in flight",
            "{seen:#?}"
        );
        raw.take(&seen[..1]);
        raw.send(&net, ACK, b"");
        net.turn();
        works(&mut net, &mut raw, &stream);
    }
}
