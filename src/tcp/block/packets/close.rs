//! RFC 9293 3.6, 3.10.4, 3.10.7.4.

use super::*;
use crate::error::SoError;
use crate::tcp::block::segment::RST;
use crate::tcp::block::tcb::Cause;

/// Known fault: in CLOSE-WAIT the FIN waited until all was acknowledged.
#[test]
fn the_fin_follows_the_last_byte_also_when_the_peer_closed_first() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.send(ACK | FIN, 0);
    assert_eq!(raw.state(), TcpState::CloseWait);
    raw.acked();
    raw.write(2500);
    raw.shutdown();
    assert_eq!(raw.state(), TcpState::LastAck);
    let all = raw.all();
    assert_eq!(places(&all), [(0, 1000), (1000, 2000), (2000, 2500)]);
    assert!(all[2].segment.has(FIN));
    raw.acknowledge(2501, &[]);
    assert_eq!(raw.state(), TcpState::Closed);
    let events = raw.events();
    assert!(
        matches!(events[..], [News::PeerClosed, News::Ended(ending)] if ending.error().is_none())
    );
    raw.none();
}

#[test]
fn closed_by_us_first() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.write(10);
    raw.shutdown();
    assert_eq!(raw.state(), TcpState::FinWait1);
    assert!(raw.one().segment.has(FIN));
    raw.acknowledge(11, &[]);
    assert_eq!(raw.state(), TcpState::FinWait2);
    assert_eq!(raw.send(ACK, 100).kept.map(|kept| kept.growth), Some(100));
    raw.all();
    raw.send(ACK | FIN, 0);
    assert_eq!(raw.state(), TcpState::TimeWait);
    assert_eq!(
        raw.events(),
        [News::PeerClosed],
        "until the acknowledgement was sent"
    );
    assert_eq!(raw.one().segment.ack, raw.seq);
    let [News::TimeWait(record)] = raw.events()[..] else {
        panic!()
    };
    assert_eq!((record.snd_nxt, record.rcv_nxt), (seq(11), raw.seq));
    assert!(raw.tcb.deadline().is_none());
}

/// In TIME-WAIT, with the acknowledgement of the FIN delayed by a busy link.
fn unacknowledged() -> Raw {
    let mut raw = Raw::established(&config(), ms(50));
    raw.shutdown();
    raw.one();
    raw.acknowledge(1, &[]);
    raw.send(ACK | FIN, 100);
    assert_eq!(raw.state(), TcpState::TimeWait);
    assert_eq!(raw.events(), [News::PeerClosed]);
    raw
}

#[test]
fn a_close_with_unread_data_leaves_time_wait_alone() {
    let mut raw = unacknowledged();
    raw.tcb.detach(true, None, raw.now);
    raw.tcb.abort(Cause::Aborted);
    assert_eq!(raw.one().segment.ack, raw.seq);
    assert!(matches!(raw.events()[..], [News::TimeWait(_)]));
}

/// The acknowledgement that the record waits for is not sent any more.
#[test]
fn a_link_that_is_gone_ends_time_wait_at_once() {
    let mut raw = unacknowledged();
    raw.tcb.abort(Cause::FromBelow(SoError::NetworkDown));
    assert_eq!(raw.state(), TcpState::Closed);
    raw.none();
    let events = raw.events();
    assert!(matches!(events[..], [News::Ended(ending)] if ending.error().is_none()));
}

/// The acknowledgement of the FIN may be delayed by a busy link.
#[test]
fn timestamps_do_not_go_back_in_time_wait() {
    let mut raw = Raw::established(&stamped(), ms(50));
    raw.shutdown();
    raw.one();
    raw.ack = seq(1);
    raw.send(ACK | FIN, 0);
    raw.now += ms(20);
    let last = raw.one().segment.options.timestamps;
    let [News::PeerClosed, News::TimeWait(record)] = raw.events()[..] else {
        panic!()
    };
    assert_eq!(record.timestamps, last);
}

#[test]
fn closed_by_both_at_once() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.shutdown();
    raw.one();
    raw.send(ACK | FIN, 0);
    assert_eq!(raw.state(), TcpState::Closing);
    assert_eq!(raw.one().segment.ack, raw.seq);
    raw.acknowledge(1, &[]);
    assert_eq!(raw.state(), TcpState::TimeWait);
    assert!(matches!(
        raw.events()[..],
        [News::PeerClosed, News::TimeWait(_)]
    ));
}

#[test]
fn a_fin_that_acknowledges_ours_skips_closing() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.shutdown();
    raw.one();
    raw.ack = seq(1);
    raw.send(ACK | FIN, 0);
    assert_eq!(raw.state(), TcpState::TimeWait);
}

#[test]
fn a_lost_fin_is_sent_again() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.shutdown();
    raw.one();
    let all = raw.pass(ms(2000));
    let at: Vec<_> = all.iter().map(|(at, _)| at.as_millis()).collect();
    assert_eq!(at[..2], [300, 550], "a probe, and the first timeout");
    assert!(
        all.iter()
            .all(|(_, fin)| fin.segment.has(FIN) && fin.segment.seq == seq(0))
    );
}

#[test]
fn a_fin_before_a_hole_is_filled_is_kept() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.send_at(100, ACK | FIN, 50);
    assert_eq!(raw.state(), TcpState::Established);
    assert_eq!(raw.one().segment.options.sack.len(), 1);
    raw.send(ACK, 100);
    assert_eq!(raw.state(), TcpState::CloseWait);
    assert_eq!(raw.tcb.in_order(), 150);
    assert_eq!(raw.one().segment.ack, THEIRS + 152);
}

#[test]
fn data_for_a_closed_socket_resets() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.tcb.detach(false, None, raw.now);
    raw.one();
    raw.acknowledge(1, &[]);
    raw.send(ACK, 5);
    let reset = raw.one().segment;
    assert!(reset.has(RST) && reset.seq == seq(1));
    assert_eq!(raw.state(), TcpState::Closed);
}

#[test]
fn an_abort_is_reported() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.tcb.detach(true, None, raw.now);
    let reset = raw.one().segment;
    assert!(reset.has(RST) && reset.seq == seq(0));
    raw.none();
    let [News::Ended(ending)] = raw.events()[..] else {
        panic!()
    };
    assert_eq!(ending.error(), Some(SoError::ConnectionAborted));
}

#[test]
fn a_reset_after_everything_is_no_error() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.send(ACK | FIN, 0);
    raw.shutdown();
    raw.all();
    raw.send(RST, 0);
    let [_, News::Ended(ending)] = raw.events()[..] else {
        panic!()
    };
    assert_eq!(ending.error(), None);
}

#[test]
fn data_after_the_fin_is_ignored_but_not_its_acknowledgement() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.write(10);
    raw.one();
    raw.send(ACK | FIN, 0);
    raw.acked();
    raw.ack = seq(10);
    assert_eq!(raw.send(ACK, 100).kept, None);
    assert_eq!(raw.tcb.acknowledged(), 10);
    assert_eq!(raw.one().segment.ack, THEIRS + 2);
}
