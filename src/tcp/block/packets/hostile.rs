//! RFC 5961, 1337, 7323 5, and acceptance in RFC 9293 3.10.7.4.

use super::*;
use crate::tcp::block::segment::RST;

/// RFC 5961 3.2.
#[test]
fn only_the_next_sequence_number_resets() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.send_at(1, RST, 0);
    assert_eq!(raw.one().segment.ack, raw.seq, "a challenge");
    raw.send_at(2, RST, 0);
    raw.none();
    raw.pass(ms(1000));
    raw.send_at(3, RST, 0);
    raw.one();
    raw.send_at(-1, RST, 0);
    raw.send_at(100_000, RST, 0);
    raw.none();
    assert_eq!(raw.state(), TcpState::Established);
    raw.send_at(0, RST, 0);
    assert_eq!(raw.state(), TcpState::Closed);
}

/// RFC 5961 4.2.
#[test]
fn a_syn_is_challenged() {
    for ahead in [-1, 0, 100, 1_000_000] {
        let mut raw = Raw::established(&config(), ms(50));
        raw.send_at(ahead, SYN, 0);
        assert_eq!(raw.one().segment.flags, ACK);
        raw.send_at(ahead, SYN | ACK, 0);
        raw.none();
    }
}

/// RFC 5961 5.2.
#[test]
fn an_acknowledgement_of_unsent_data_is_challenged() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.write(10);
    raw.one();
    raw.ack = seq(11);
    assert_eq!(raw.send(ACK, 5).kept, None);
    assert_eq!(raw.one().segment.ack, THEIRS + 1);
    raw.seq = THEIRS + 1;
    raw.ack = seq(0).wrapping_sub(60_000);
    assert_eq!(raw.send(ACK, 5).kept, None, "older than any window");
    raw.seq = THEIRS + 1;
    raw.ack = seq(0).wrapping_sub(1);
    assert!(raw.send(ACK, 5).kept.is_some(), "an old one");
    assert_eq!(raw.tcb.acknowledged(), 0);
}

#[test]
fn segments_outside_the_window_are_answered_and_not_kept() {
    let mut raw = Raw::established(&config(), ms(50));
    assert_eq!(raw.send_at(60_000, ACK, 10).kept, None);
    assert_eq!(raw.one().segment.ack, raw.seq);
    assert_eq!(raw.send_at(-10, ACK, 10).kept, None);
    raw.one();
    // Both edges cut.
    let kept = raw.send_at(-10, ACK, 15).kept.unwrap();
    assert_eq!(
        (kept.skip, kept.len, kept.position, kept.growth),
        (10, 5, 0, 5)
    );
    let kept = raw.send_at(59_990, ACK | FIN, 100).kept.unwrap();
    assert_eq!((kept.skip, kept.len, kept.growth), (0, 10, 0));
    raw.seq = raw.seq.wrapping_add(5);
    raw.send(ACK, 59_985);
    assert_eq!(raw.state(), TcpState::Established, "the FIN was cut");
}

#[test]
fn nothing_without_an_acknowledgement() {
    let mut raw = Raw::established(&config(), ms(50));
    assert_eq!(raw.send(0, 10).kept, None);
    raw.none();
}

/// RFC 9293 3.8.4; and no ACK storm.
#[test]
fn a_keep_alive_is_answered_and_a_disagreement_is_not() {
    let mut raw = Raw::established(&config(), ms(50));
    for _ in 0..3 {
        raw.send_at(-1, ACK, 0);
        raw.one();
    }
    raw.ack = seq(1);
    raw.send_at(-1, ACK, 0);
    raw.one();
    for _ in 0..3 {
        raw.send_at(-1, ACK, 0);
        raw.send_at(5, ACK, 0);
        raw.none();
    }
}

/// RFC 7323 5.3, 3.2.
#[test]
fn segments_older_than_ts_recent_are_dropped() {
    let mut raw = Raw::established(&stamped(), ms(50));
    raw.pass(ms(1000));
    raw.send(ACK, 10);
    raw.acked();
    let mut old = raw.segment(ACK, 10);
    old.options.timestamps = Some(Timestamps {
        value: 500,
        echo: 0,
    });
    assert_eq!(raw.give(&old).kept, None);
    assert_eq!(raw.one().segment.ack, raw.seq);
    // A segment without the option is dropped, without an answer.
    old.options.timestamps = None;
    assert_eq!(raw.give(&old).kept, None);
    raw.none();
    // A reset is exempt.
    old.flags = RST;
    raw.give(&old);
    assert_eq!(raw.state(), TcpState::Closed);
}

/// A segment that was overtaken by a retransmission is accepted; one older than the whole window is
/// not.
#[test]
fn data_that_fills_a_hole_may_be_older() {
    let mut raw = Raw::established(&stamped(), ms(50));
    let late = raw.segment(ACK, 100);
    raw.pass(ms(100));
    raw.send_at(100, ACK, 100);
    assert_eq!(raw.one().segment.options.timestamps.unwrap().echo, 150);
    // The first ten bytes again.
    raw.pass(ms(100));
    raw.send_at(0, ACK, 10);
    assert_eq!(raw.one().segment.options.timestamps.unwrap().echo, 350);
    assert_eq!(raw.give(&late).kept.map(|kept| kept.growth), Some(190));
    raw.all();
    let mut older = late.clone();
    older.seq = THEIRS + 1 + 300;
    raw.seq = THEIRS + 1 + 200;
    raw.send_at(200, ACK, 100);
    older.seq = raw.seq;
    older.options.timestamps = Some(Timestamps { value: 99, echo: 0 });
    assert_eq!(raw.give(&older).kept, None);
}

#[test]
fn a_peer_that_sends_every_second_byte_fills_a_limited_number_of_holes() {
    let mut raw = Raw::established(&config(), ms(50));
    let kept = (0..2000)
        .filter(|k| raw.send_at(1 + 2 * k, ACK, 1).kept.is_some())
        .count();
    assert_eq!(kept, 1024);
    raw.all();
    raw.send(ACK, 1);
    assert_eq!(raw.tcb.in_order(), 2);
}

#[test]
fn nonsense_in_a_sack_option_is_ignored() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.flight(5);
    raw.acknowledge(
        0,
        &[(4000, 6000), (3000, 2000), (2000, 2000), (1 << 31, 3000)],
    );
    raw.none();
    let lost: Vec<_> = raw.pass(ms(90)).into_iter().collect();
    assert!(lost.is_empty());
}
