//! RFC 9293 3.8.6, 7323 2.

use super::*;
use crate::tcp::block::sim::path::Random;

#[test]
fn a_window_closes_and_opens_in_worthwhile_steps() {
    let mut raw = Raw::established(&config(), ms(50));
    let mut edge = THEIRS + 1 + 60_000;
    while raw.send(ACK, MSS).kept.is_some() {
        for ack in raw.all() {
            assert_eq!(
                ack.segment.ack + u32::from(ack.segment.window),
                edge,
                "it stays"
            );
        }
    }
    raw.seq -= 1000;
    raw.all();
    assert_eq!(raw.tcb.in_order(), 60_000);
    // No window update byte by byte (3.8.6.2.2), until there is room for two segments.
    for read in 1..2000 {
        raw.tcb.read(read, false, raw.now);
        raw.none();
    }
    raw.tcb.read(2000, false, raw.now);
    let ack = raw.one().segment;
    edge += 2000;
    assert_eq!((ack.ack + u32::from(ack.window), ack.window), (edge, 2000));
    raw.tcb.read(60_000, true, raw.now);
    assert_eq!(raw.one().segment.window, 60_000);
}

/// Known fault: the first probe was sent at once. RFC 9293 3.8.6.1: after an RTO, then at longer
/// intervals.
#[test]
fn a_closed_window_is_probed_after_an_rto() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.window = 0;
    raw.send(ACK, 1);
    raw.acked();
    raw.write(3000);
    raw.none();
    let mut at = Vec::new();
    for _ in 0..4 {
        let all = raw.pass(ms(60_000).min(ms(250 << at.len())));
        assert_eq!(all.len(), 1, "one each: {all:?}");
        assert_eq!(all[0].1.payload, 0..1);
        at.push(all[0].0.as_millis());
        raw.acknowledge(0, &[]);
        raw.none();
    }
    assert_eq!(at, [300, 800, 1800, 3800]);
    assert_eq!(raw.state(), TcpState::Established);
    // It opens: all data is sent at once, from SND.UNA on.
    raw.window = 5000;
    raw.acknowledge(0, &[]);
    assert_eq!(places(&raw.all()), [(0, 1000), (1000, 2000), (2000, 3000)]);
}

/// Known fault: with waiting data the first probe was sent at once and a second one after it.
#[test]
fn a_window_that_closes_on_waiting_data_is_probed_once_after_an_rto() {
    // It closes when all data within it is acknowledged, or in the handshake already.
    let mut closing = Raw::established(&config(), ms(50));
    closing.window = 1000;
    closing.send(ACK, 1);
    closing.all();
    assert_eq!(places(&closing.flight(5)), [(0, 1000)]);
    closing.window = 0;
    closing.acknowledge(1000, &[]);
    closing.none();
    let mut closed = Raw::dialling(&config());
    closed.write(5000);
    closed.window = 0;
    closed.ack = seq(0);
    let mut answer = closed.segment(SYN | ACK, 0);
    answer.options = offer(&config());
    closed.pass(ms(50));
    closed.give(&answer);
    closed.seq = THEIRS + 1;
    assert_eq!(closed.one().segment.flags, ACK);
    for (mut raw, start) in [(closing, 1000), (closed, 0)] {
        let began = raw.since();
        raw.write(1000);
        raw.none();
        // Duplicate acknowledgements cause no probe either.
        raw.acknowledge(start, &[]);
        raw.none();
        let probes = raw.pass(ms(600));
        assert_eq!(probes.len(), 1, "{probes:?}");
        assert_eq!(probes[0].1.payload, start..start + 1);
        assert!(probes[0].0 - began >= ms(200), "{probes:?}");
    }
}

#[test]
fn a_probe_that_is_taken_counts() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.window = 0;
    raw.send(ACK, 1);
    raw.acked();
    raw.write(2);
    raw.shutdown();
    raw.none();
    assert_eq!(
        places(
            &raw.pass(ms(300))
                .into_iter()
                .map(|all| all.1)
                .collect::<Vec<_>>()
        ),
        [(0, 1)]
    );
    raw.acknowledge(1, &[]);
    raw.none();
    let all = raw.pass(ms(300));
    assert!(
        all[0].1.payload == (1..2) && all[0].1.segment.has(FIN),
        "{all:?}"
    );
    raw.acknowledge(3, &[]);
    assert_eq!(raw.state(), TcpState::FinWait2);
    assert!(
        raw.pass(ms(100_000)).is_empty(),
        "an end that was taken is not probed for"
    );
}

/// Known fault: 60 bytes left as six segments of 10. RFC 9293 3.8.6.2.1.
#[test]
fn no_silly_segments() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.write(60);
    assert_eq!(places(&raw.all()), [(0, 60)]);
    raw.window = 10;
    raw.acknowledge(60, &[]);
    raw.write(60);
    raw.none();
    // The override.
    let all = raw.pass(ms(300));
    assert_eq!(all[0].1.payload, 60..70);
    raw.window = 1000;
    raw.acknowledge(70, &[]);
    assert_eq!(places(&raw.all()), [(70, 120)]);
}

/// RFC 9293 3.8.6: the window shrinks.
#[test]
fn data_beyond_a_shrunk_window_is_retransmitted() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.flight(4);
    raw.window = 500;
    raw.acknowledge(1000, &[]);
    raw.write(1000);
    raw.none();
    let all = raw.pass(ms(600));
    assert!(
        all.iter().any(|(_, one)| one.payload.start == 1000),
        "{all:?}"
    );
    assert!(
        all.iter().all(|(_, one)| one.payload.end <= 4000),
        "nothing new"
    );
}

/// RFC 7323 2.2, 2.3.
#[test]
fn windows_are_scaled_but_for_those_of_a_syn() {
    let large = Config {
        receive_buffer: 1 << 20,
        ..config()
    };
    let mut raw = Raw::listening(&large);
    let answer = raw.one().segment;
    assert_eq!(
        (answer.window, answer.options.window_scale),
        (65_535, Some(5))
    );
    (raw.seq, raw.ack) = (THEIRS + 1, seq(0));
    raw.send(ACK, 10);
    assert_eq!(raw.acked().segment.window, (65_535 - 10) >> 5);
}

#[test]
fn small_writes_join_while_a_small_one_is_in_flight() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.write(10);
    assert_eq!(places(&raw.all()), [(0, 10)]);
    raw.write(10);
    raw.write(10);
    raw.none();
    raw.acknowledge(10, &[]);
    assert_eq!(places(&raw.all()), [(10, 30)]);
    raw.tcb.set_nodelay(true);
    raw.write(10);
    assert_eq!(places(&raw.all()), [(30, 40)]);
}

/// RFC 6928, and a packet that the link cuts.
#[test]
fn the_first_flight_is_ten_segments() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.most = 64_000;
    let all = raw.flight(40);
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].segment.len, all[0].size), (10_000, 1000));
    assert_eq!(raw.tcb.congestion_window(), 10_000);
}

/// Bursts of small segments are paced by full ones: otherwise they would be spaced out.
#[test]
fn small_segments_leave_together_where_bursts_are_paced() {
    let mut raw = Raw::established(&config(), ms(100));
    raw.tcb.set_nodelay(true);
    assert_eq!(raw.flight(10).len(), 10);
    raw.pass(ms(100));
    raw.acknowledge(10_000, &[]);
    let mut burst = 0;
    while raw.written == 10_000 + burst {
        raw.write(50);
        burst += raw.all().len() as u64 * 50;
    }
    assert!((1000..2000).contains(&burst), "{burst}");
    raw.write(1);
    assert_eq!(raw.pass(ms(10))[0].1.segment.len, 51, "what waits joins");
}

/// A writer that fills a small buffer as soon as there is room, in pieces; segments that arrive
/// together are acknowledged together.
#[test]
fn a_full_send_buffer_does_not_make_ever_smaller_segments() {
    const BUFFER: u64 = 2420;
    let mut raw = Raw::established(&config(), ms(300));
    raw.tcb.set_nodelay(true);
    // Acknowledgements in flight: time and position.
    let mut flying: Vec<(Duration, u64)> = Vec::new();
    let mut random = Random::new(1);
    let (mut acknowledged, mut segments) = (0, 0);
    while acknowledged < 100 * BUFFER {
        while raw.written < acknowledged + BUFFER {
            let piece = 1 << random.below(13);
            let piece = (acknowledged + BUFFER - raw.written).min(piece);
            raw.write(usize::try_from(piece).unwrap());
            let left = raw.all();
            segments += left.len();
            let now = raw.since();
            flying.extend(left.iter().map(|one| (now + ms(300), one.payload.end)));
        }
        let arrives = flying.iter().map(|(at, _)| *at).min();
        let mut wait = arrives.unwrap() - raw.since();
        if let Some(at) = raw.tcb.deadline() {
            wait = wait.min(at.saturating_duration_since(raw.now));
        }
        let left = raw.pass(wait);
        segments += left.len();
        flying.extend(
            left.iter()
                .map(|(at, one)| (*at + ms(300), one.payload.end)),
        );
        let now = raw.since();
        let arrived = flying.iter().filter(|(at, _)| *at <= now);
        acknowledged = arrived.map(|(_, to)| *to).max().unwrap_or(acknowledged);
        flying.retain(|(at, _)| *at > now);
        raw.acknowledge(acknowledged, &[]);
    }
    assert!(segments < 100 * 20, "{segments} in 100 rounds");
}
