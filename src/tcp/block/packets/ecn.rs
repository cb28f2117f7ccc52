//! RFC 3168: explicit congestion notification.

use super::*;
use crate::tcp::block::congestion::algorithm::Kind;
use crate::tcp::block::segment::{CWR, ECE};

fn willing() -> Config {
    Config {
        ecn: true,
        ..config()
    }
}

/// Takes the peer's SYN or SYN|ACK.
fn receive_syn(raw: &mut Raw, flags: u8) {
    let mut segment = raw.segment(flags, 0);
    segment.seq = THEIRS;
    segment.options = offer(&config());
    if flags & ACK != 0 {
        raw.ack = seq(0);
        segment.ack = raw.ack;
    }
    raw.seq = THEIRS + 1;
    raw.give(&segment);
}

/// A block that has got a SYN with these flags, and its answer's.
fn listening(config: &Config, flags: u8) -> (Raw, u8) {
    let now = any_time();
    let syn = Segment {
        seq: THEIRS,
        flags: SYN | flags,
        window: 50_000,
        options: offer(config),
        ..Segment::default()
    };
    let tcb = Tcb::accept(config, &syn, now).unwrap();
    let mut raw = Raw::new(tcb, now, config);
    let answer = raw.one();
    assert!(!answer.markable, "RFC 3168 6.1.1");
    raw.seq = THEIRS + 1;
    raw.ack = seq(0);
    (raw, answer.segment.flags & (ECE | CWR))
}

/// An established connection with ECN.
fn agreed_with(config: &Config) -> Raw {
    let (mut raw, flags) = listening(config, ECE | CWR);
    assert_eq!(flags, ECE);
    raw.pass(ms(50));
    raw.send(ACK, 0);
    assert_eq!(raw.state(), TcpState::Established);
    raw.events();
    raw
}

fn agreed() -> Raw {
    agreed_with(&willing())
}

fn is_agreed(raw: &mut Raw) -> bool {
    assert_eq!(raw.state(), TcpState::Established);
    raw.flight(1)[0].markable
}

/// Bytes of the peer, marked on the path.
fn receive_marked(raw: &mut Raw, flags: u8, len: usize) {
    let mut segment = raw.segment(ACK | flags, len);
    segment.marked = true;
    raw.seq = raw.seq.wrapping_add(u32::try_from(len).unwrap());
    raw.give(&segment);
}

/// Acknowledges all up to a position, with ECE.
fn echo(raw: &mut Raw, to: u64) {
    raw.ack = seq(to);
    let segment = raw.segment(ACK | ECE, 0);
    raw.give(&segment);
}

fn flags(emission: &Emission) -> u8 {
    emission.segment.flags & (ECE | CWR)
}

#[test]
fn without_the_option_no_bit_is_set() {
    let (mut raw, answer) = listening(&config(), ECE | CWR);
    assert_eq!(answer, 0);
    raw.send(ACK, 0);
    let all = raw.flight(3);
    assert!(all.iter().all(|one| !one.markable && flags(one) == 0));
    let window = raw.tcb.congestion_window();
    receive_marked(&mut raw, 0, 500);
    receive_marked(&mut raw, 0, 500);
    assert_eq!(flags(&raw.one()), 0);
    echo(&mut raw, 3000);
    assert!(raw.tcb.congestion_window() >= window);
    assert_eq!(flags(&raw.flight(1)[0]), 0);
}

/// RFC 3168 6.1.1.
#[test]
fn a_syn_with_both_flags_is_answered_with_one() {
    for (syn, answer) in [(ECE | CWR, ECE), (0, 0), (ECE, 0), (CWR, 0)] {
        let (mut raw, flags) = listening(&willing(), syn);
        assert_eq!(flags, answer, "{syn:x}");
        raw.send(ACK, 0);
        assert_eq!(is_agreed(&mut raw), answer != 0, "{syn:x}");
    }
}

/// RFC 3168 6.1.1: an answer with both flags is of a host that reflects them.
#[test]
fn a_syn_ack_with_one_flag_agrees() {
    for (answer, agrees) in [(ECE, true), (0, false), (ECE | CWR, false), (CWR, false)] {
        let now = any_time();
        let mut raw = Raw::new(Tcb::connect(&willing(), now), now, &willing());
        let syn = raw.one();
        assert_eq!(syn.segment.flags, SYN | ECE | CWR);
        assert!(!syn.markable);
        receive_syn(&mut raw, SYN | ACK | answer);
        raw.all();
        assert_eq!(is_agreed(&mut raw), agrees, "{answer:x}");
    }
}

/// RFC 3168 6.1.1.1.
#[test]
fn a_syn_that_is_not_answered_is_sent_again_without() {
    let now = any_time();
    let mut raw = Raw::new(Tcb::connect(&willing(), now), now, &willing());
    assert_eq!(flags(&raw.one()), ECE | CWR);
    let again = raw.pass(ms(1000));
    assert_eq!(again[0].1.segment.flags, SYN);
    // The answer to the first one is late: the peer has received the second one since.
    receive_syn(&mut raw, SYN | ACK | ECE);
    raw.all();
    assert!(!is_agreed(&mut raw));
}

/// RFC 3168 6.1.1.
#[test]
fn a_peer_that_retransmits_without_flags_does_not_agree() {
    let (mut raw, _) = listening(&willing(), ECE | CWR);
    receive_syn(&mut raw, SYN);
    assert_eq!(raw.one().segment.flags, SYN | ACK);
    raw.send(ACK, 0);
    assert!(!is_agreed(&mut raw));
    // Nor does one that sets the flags only in a retransmission.
    let (mut raw, _) = listening(&willing(), 0);
    receive_syn(&mut raw, SYN | ECE | CWR);
    assert_eq!(raw.one().segment.flags, SYN | ACK);
}

/// RFC 3168 6.1.4, 6.1.5.
#[test]
fn only_new_data_may_be_marked() {
    let mut raw = agreed();
    let all = raw.flight(2);
    assert!(all.iter().all(|one| one.markable));
    raw.send(ACK, 2 * MSS);
    let ack = raw.one();
    assert!(ack.segment.len == 0 && !ack.markable, "an acknowledgement");
    let again = raw.pass(ms(1000));
    let again = again.iter().map(|(_, one)| one);
    let all: Vec<_> = again.filter(|one| one.again).collect();
    assert!(!all.is_empty() && all.iter().all(|one| !one.markable));
    raw.acknowledge(2 * MSS as u64, &[]);
    raw.shutdown();
    let fin = raw.one();
    assert!(fin.segment.has(FIN) && !fin.markable);
}

/// RFC 3168 6.1.6.
#[test]
fn probes_of_a_closed_window_may_not_be_marked() {
    let mut raw = agreed();
    raw.window = 0;
    raw.send(ACK, 0);
    raw.write(10);
    raw.none();
    let probes = raw.pass(ms(3000));
    assert!(probes.len() >= 2, "{probes:?}");
    let probe = |one: &Emission| one.segment.len == 1 && !one.markable;
    assert!(probes.iter().all(|(_, one)| probe(one)));
}

/// RFC 3168 6.1.3.
#[test]
fn a_mark_is_echoed_until_the_peer_has_reduced() {
    let mut raw = agreed();
    receive_marked(&mut raw, 0, 10);
    assert_eq!(flags(&raw.one()), ECE, "at once");
    raw.send(ACK, 2 * MSS);
    assert_eq!(flags(&raw.one()), ECE, "and again");
    assert_eq!(flags(&raw.flight(1)[0]), ECE, "also with data");
    raw.send(ACK | CWR, 2 * MSS);
    assert_eq!(flags(&raw.one()), 0);
    receive_marked(&mut raw, CWR, 2 * MSS);
    assert_eq!(flags(&raw.one()), ECE, "marked after the reduction");
}

/// RFC 3168 6.1.5: it may be forged or old.
#[test]
fn a_mark_of_old_data_does_not_count() {
    let mut raw = agreed();
    raw.send(ACK, 100);
    raw.all();
    let mut old = raw.segment(ACK, 100);
    old.seq = old.seq.wrapping_sub(100);
    old.marked = true;
    raw.give(&old);
    assert_eq!(flags(&raw.one()), 0);
    let mut bare = raw.segment(ACK, 0);
    bare.marked = true;
    raw.give(&bare);
    raw.send(ACK, 2 * MSS);
    assert_eq!(flags(&raw.one()), 0);
}

/// RFC 3168 6.1.2.
#[test]
fn an_echo_reduces_the_window_once_in_a_round_trip() {
    for (kind, to) in [(Kind::Cubic, 7000), (Kind::Reno, 5000)] {
        let mut raw = agreed_with(&Config {
            congestion: kind,
            ..willing()
        });
        assert_eq!(raw.flight(30).len(), 10);
        echo(&mut raw, 1000);
        // The first acknowledgement has opened it by a segment.
        let reduced = raw.tcb.congestion_window();
        assert!((to..to + 800).contains(&reduced), "{kind}: {reduced}");
        assert_eq!(
            raw.tcb.recovery_phase(),
            super::super::recovery::Phase::Open
        );
        for to in 2..=10 {
            echo(&mut raw, to * 1000);
        }
        let window = raw.tcb.congestion_window();
        assert!(window >= reduced, "{kind}: {window} in the same round trip");
        // The link would cut a larger packet into segments that all have the flag.
        raw.most = 10 * MSS;
        let next = raw.soon();
        assert_eq!((flags(&next[0]), next[0].segment.len), (CWR, MSS), "alone");
        assert!(next[1..].iter().all(|one| flags(one) == 0), "once");
        assert!(next.iter().all(|one| one.markable));
        echo(&mut raw, 11_000);
        assert!(raw.tcb.congestion_window() < window, "the next round trip");
    }
}

/// RFC 3168 6.1.2: a loss is signalled too, and a mark in the same round trip is not a further
/// reduction.
#[test]
fn a_loss_is_signalled_too_and_not_counted_twice() {
    let mut raw = agreed();
    raw.flight(10);
    for end in [2, 3, 4] {
        raw.acknowledge(0, &[(1000, end * 1000)]);
    }
    let again = raw.one();
    assert!(again.again && flags(&again) == 0, "only with new data");
    raw.write(30 * MSS);
    echo(&mut raw, 10_000);
    let window = raw.tcb.congestion_window();
    assert_eq!(window, 7000, "as after the loss");
    let next = raw.soon();
    assert_eq!(flags(&next[0]), CWR);
    assert!(next[1..].iter().all(|one| flags(one) == 0));
}

#[test]
fn a_timeout_is_signalled_too() {
    let mut raw = agreed();
    raw.flight(1);
    raw.pass(ms(3000));
    raw.acknowledge(1000, &[]);
    assert_eq!(flags(&raw.flight(1)[0]), CWR);
}
