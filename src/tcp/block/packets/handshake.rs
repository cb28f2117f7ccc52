//! RFC 9293 3.5, 3.10.7.2, 3.10.7.3.

use super::*;
use crate::error::SoError;
use crate::tcp::block::segment::RST;

fn syn_ack(raw: &Raw, flags: u8, len: usize) -> Segment {
    let mut segment = raw.segment(SYN | ACK | flags, len);
    segment.ack = seq(0);
    segment.options = offer(&config());
    segment
}

/// The peer's answer arrives.
fn connected() -> Raw {
    let mut raw = Raw::dialling(&config());
    let segment = syn_ack(&raw, 0, 0);
    raw.give(&segment);
    (raw.seq, raw.ack) = (THEIRS + 1, seq(0));
    assert_eq!(raw.state(), TcpState::Established);
    let ack = raw.one();
    assert_eq!(
        (ack.segment.flags, ack.segment.seq, ack.segment.ack),
        (ACK, seq(0), THEIRS + 1)
    );
    raw
}

fn error(raw: &mut Raw) -> Option<SoError> {
    raw.events().into_iter().find_map(|news| match news {
        News::Ended(ending) => ending.error(),
        _ => None,
    })
}

#[test]
fn three_segments() {
    let mut raw = connected();
    assert_eq!(raw.events(), [News::Established]);
    raw.write(10);
    assert_eq!(places(&raw.all()), [(0, 10)]);
}

#[test]
fn a_syn_is_sent_again_after_1_2_and_4_seconds() {
    let mut raw = Raw::dialling(&config());
    let all = raw.pass(ms(16_000));
    let at: Vec<_> = all.iter().map(|(at, _)| at.as_secs()).collect();
    assert_eq!(at, [1, 3, 7, 15]);
    assert!(
        all.iter()
            .all(|(_, syn)| syn.segment.flags == SYN && syn.segment.seq == OURS)
    );
    raw.pass(ms(60_000));
    assert_eq!(error(&mut raw), Some(SoError::TimedOut));
    raw.none();
}

#[test]
fn options_offered_by_both_are_negotiated() {
    let mut raw = Raw::listening(&stamped());
    let options = raw.one().segment.options;
    assert_eq!(options.mss, Some(1012));
    assert!(options.sack_permitted && options.window_scale == Some(0));
    assert_eq!(
        options.timestamps,
        Some(Timestamps {
            value: 5000,
            echo: 100
        })
    );
    // Nothing was offered.
    let now = raw.now;
    let syn = Segment {
        seq: THEIRS,
        flags: SYN,
        window: 50_000,
        ..Segment::default()
    };
    let tcb = Tcb::accept(&stamped(), &syn, now).unwrap();
    let mut raw = Raw::new(tcb, now, &config());
    let options = raw.one().segment.options;
    assert!(!options.sack_permitted && options.window_scale.is_none());
    assert!(options.timestamps.is_none());
    assert_eq!(raw.tcb.mss(), 536, "RFC 9293 3.7.1");
}

#[test]
fn only_a_syn_opens_a_connection() {
    for flags in [0, ACK, FIN, RST | SYN, SYN | ACK, SYN | FIN] {
        let segment = Segment {
            flags,
            ..Segment::default()
        };
        assert!(
            Tcb::accept(&config(), &segment, any_time()).is_none(),
            "{flags}"
        );
    }
}

/// Known fault: a SYN|ACK with a FIN was dropped.
#[test]
fn a_syn_ack_may_carry_data_and_the_end() {
    let mut raw = Raw::dialling(&config());
    let segment = syn_ack(&raw, FIN, 5);
    let taken = raw.give(&segment);
    assert_eq!(
        taken.kept.map(|kept| (kept.position, kept.growth)),
        Some((0, 5))
    );
    assert_eq!(raw.state(), TcpState::CloseWait);
    assert_eq!(raw.events(), [News::Established, News::PeerClosed]);
    assert_eq!(raw.one().segment.ack, THEIRS + 7);
}

/// Known fault: RFC 9293 3.5.2; the SYN is retransmitted at once, but only once.
#[test]
fn a_stale_acknowledgement_is_reset_and_the_syn_retransmitted() {
    let mut raw = Raw::dialling(&config());
    raw.ack = 77;
    raw.send(ACK, 0);
    let all = raw.all();
    let flags: Vec<_> = all
        .iter()
        .map(|one| (one.segment.flags, one.segment.seq))
        .collect();
    assert_eq!(flags, [(RST, 77), (SYN, OURS)]);
    raw.send(SYN | ACK, 0);
    assert_eq!(raw.one().segment.flags, RST);
    raw.send(ACK | RST, 0);
    raw.none();
    assert_eq!(raw.state(), TcpState::SynSent);
}

#[test]
fn a_reset_of_our_syn_is_a_refusal() {
    let mut raw = Raw::dialling(&config());
    raw.send(RST, 0);
    assert_eq!(raw.state(), TcpState::SynSent, "it acknowledges nothing");
    raw.ack = seq(0);
    raw.send(RST | ACK, 0);
    assert_eq!(error(&mut raw), Some(SoError::ConnectionRefused));
    raw.none();
}

/// Both sides open.
fn crossed() -> Raw {
    let mut raw = Raw::dialling(&config());
    let mut segment = raw.segment(SYN, 0);
    segment.options = offer(&config());
    raw.give(&segment);
    assert_eq!(raw.state(), TcpState::SynReceived);
    let answer = raw.one().segment;
    assert_eq!(
        (answer.flags, answer.seq, answer.ack),
        (SYN | ACK, OURS, THEIRS + 1)
    );
    raw.ack = seq(0);
    raw
}

#[test]
fn a_simultaneous_open_with_a_syn_ack_or_an_ack() {
    let mut raw = crossed();
    let answer = syn_ack(&raw, 0, 0);
    raw.give(&answer);
    assert_eq!(raw.state(), TcpState::Established);
    assert_eq!(raw.one().segment.flags, ACK);
    let mut raw = crossed();
    raw.seq = THEIRS + 1;
    raw.send(ACK, 0);
    assert_eq!(raw.events(), [News::Established]);
    raw.none();
}

/// Known fault: RFC 9293 3.10.7.4: it was *refused*; a passive open was reset.
#[test]
fn a_simultaneous_open_that_is_reset_is_refused() {
    let mut raw = crossed();
    raw.seq = THEIRS + 1;
    raw.send(RST, 0);
    assert_eq!(error(&mut raw), Some(SoError::ConnectionRefused));
    let mut raw = Raw::listening(&config());
    raw.all();
    raw.seq = THEIRS + 1;
    raw.send(RST, 0);
    assert_eq!(error(&mut raw), Some(SoError::ConnectionReset));
}

#[test]
fn in_syn_received() {
    let mut raw = Raw::listening(&config());
    raw.all();
    // The peer has not received our answer.
    let mut syn = raw.segment(SYN, 0);
    syn.options = offer(&config());
    raw.give(&syn);
    assert_eq!(raw.one().segment.flags, SYN | ACK);
    raw.seq = THEIRS + 1;
    // An acknowledgement of another connection.
    raw.ack = 5;
    raw.send(ACK, 0);
    let reset = raw.one().segment;
    assert_eq!((reset.flags, reset.seq), (RST, 5));
    raw.ack = seq(0);
    let taken = raw.send(ACK, 10);
    assert_eq!(taken.kept.map(|kept| kept.growth), Some(10));
    assert_eq!(raw.events(), [News::Established]);
}

/// RFC 4987 3.6, 7323 4: the SYN|ACK is not retransmitted, and its timestamp is echoed.
#[test]
fn a_peer_that_acknowledges_a_cookie_is_established_at_once() {
    for (age, known) in [(70, true), (1000, true), (1001, false), (0, false)] {
        let answered = Config {
            answered: true,
            ..stamped()
        };
        let mut raw = Raw::listening(&answered);
        raw.none();
        (raw.seq, raw.ack) = (THEIRS + 1, seq(0));
        raw.echo = 5000u32.wrapping_sub(age);
        let taken = raw.send(ACK, 10);
        assert_eq!(taken.kept.map(|kept| kept.growth), Some(10));
        assert_eq!(raw.events(), [News::Established]);
        assert_eq!(raw.acked().segment.ack, raw.seq);
        let sample = known.then(|| ms(age.into()));
        assert_eq!(raw.tcb.round_trip(), sample);
    }
    // Without timestamps there is no RTT sample: this block did not send the SYN|ACK.
    let answered = Config {
        answered: true,
        ..config()
    };
    let mut raw = Raw::listening(&answered);
    (raw.seq, raw.ack) = (THEIRS + 1, seq(0));
    raw.send(ACK, 0);
    assert_eq!(raw.tcb.round_trip(), None);
}

#[test]
fn a_fin_ends_a_handshake_too() {
    let mut raw = Raw::listening(&config());
    raw.all();
    (raw.seq, raw.ack) = (THEIRS + 1, seq(0));
    raw.send(ACK | FIN, 0);
    assert_eq!(raw.state(), TcpState::CloseWait);
    assert_eq!(raw.events(), [News::Established, News::PeerClosed]);
}

/// Known fault: RFC 9293 3.10.4: nothing is sent.
#[test]
fn a_close_in_syn_sent_sends_nothing() {
    let mut raw = Raw::dialling(&config());
    raw.tcb.detach(false, None, raw.now);
    raw.none();
    assert_eq!(error(&mut raw), Some(SoError::ConnectionAborted));
    assert!(raw.tcb.deadline().is_none());
}

#[test]
fn a_shutdown_before_the_connection_is_established_waits() {
    let mut raw = Raw::dialling(&config());
    raw.write(5);
    raw.shutdown();
    raw.none();
    let answer = syn_ack(&raw, 0, 0);
    raw.give(&answer);
    assert_eq!(raw.state(), TcpState::FinWait1);
    let fin = raw.one();
    assert!(fin.segment.has(FIN) && fin.payload == (0..5));
}

#[test]
fn a_syn_that_was_lost_twice_begins_with_one_segment() {
    let mut raw = Raw::dialling(&config());
    raw.pass(ms(3500));
    let answer = syn_ack(&raw, 0, 0);
    raw.give(&answer);
    raw.all();
    assert_eq!(raw.flight(5).len(), 1, "RFC 5681 3.1");
}
