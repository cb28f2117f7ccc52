//! RFC 9293 3.8.3 (user timeout), 3.8.4 (keep-alive), and limits of our own.

use super::*;
use crate::error::SoError;
use crate::keep_alive::KeepAlive;
use crate::tcp::block::segment::RST;
use crate::tcp::limits::Limits;
use std::sync::Arc;

fn ended(raw: &mut Raw) -> Option<SoError> {
    raw.events().into_iter().find_map(|news| match news {
        News::Ended(ending) => ending.error(),
        _ => None,
    })
}

#[test]
fn an_idle_connection_has_no_timer() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.send(ACK, 10);
    raw.all();
    raw.write(10);
    raw.all();
    raw.acknowledge(10, &[]);
    assert_eq!(raw.tcb.deadline(), None);
}

#[test]
fn unacknowledged_data_times_out() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.pass(ms(1_000_000));
    raw.write(10);
    let all = raw.pass(ms(299_000));
    assert!(all.len() < 20, "retransmission backs off");
    assert_eq!(raw.state(), TcpState::Established);
    let all = raw.pass(ms(2000));
    assert!(all.last().unwrap().1.segment.has(RST));
    assert_eq!(ended(&mut raw), Some(SoError::TimedOut));
}

#[test]
fn a_dead_peer_is_probed_and_then_timed_out() {
    let watched = Config {
        limits: Arc::new(Limits {
            keep_alive: Some(KeepAlive {
                idle: ms(60_000),
                interval: ms(10_000),
                probes: 3,
            }),
            ..Limits::default()
        }),
        ..config()
    };
    let mut raw = Raw::established(&watched, ms(50));
    let all = raw.pass(ms(200_000));
    let at: Vec<_> = all.iter().map(|(at, _)| at.as_secs()).collect();
    assert_eq!(at, [60, 70, 80, 90]);
    assert!(
        all[..3]
            .iter()
            .all(|(_, one)| one.segment.seq == seq(0).wrapping_sub(1))
    );
    assert!(all[3].1.segment.has(RST));
    assert_eq!(ended(&mut raw), Some(SoError::TimedOut));
    let mut raw = Raw::established(&watched, ms(50));
    for _ in 0..10 {
        assert_eq!(raw.pass(ms(60_000)).len(), 1);
        raw.send(ACK, 0);
    }
    assert_eq!(raw.state(), TcpState::Established, "a live one answers");
}

#[test]
fn fin_wait_2_of_a_closed_socket_ends() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.tcb.detach(false, None, raw.now);
    raw.one();
    raw.acknowledge(1, &[]);
    raw.pass(ms(59_000));
    assert_eq!(raw.state(), TcpState::FinWait2);
    raw.pass(ms(2000));
    assert_eq!(raw.state(), TcpState::Closed);
    // One with a handle does not.
    let mut raw = Raw::established(&config(), ms(50));
    raw.shutdown();
    raw.one();
    raw.acknowledge(1, &[]);
    raw.pass(ms(7_200_000));
    assert_eq!(raw.state(), TcpState::FinWait2);
}

#[test]
fn lingering_data_is_reset_after_its_time() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.write(10);
    raw.all();
    raw.tcb.detach(false, Some(ms(5000)), raw.now);
    raw.pass(ms(4900));
    assert_eq!(raw.state(), TcpState::FinWait1);
    let all = raw.pass(ms(200));
    assert!(all.last().unwrap().1.segment.has(RST));
}

#[test]
fn a_closed_socket_does_not_wait_for_ever_for_a_closed_window() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.window = 0;
    raw.send(ACK, 1);
    raw.tcb.read(1, false, raw.now);
    raw.write(10);
    raw.all();
    raw.tcb.detach(false, None, raw.now);
    for _ in 0..29 {
        raw.pass(ms(10_000));
        raw.acknowledge(0, &[]);
        assert_eq!(raw.state(), TcpState::FinWait1);
    }
    raw.pass(ms(20_000));
    assert_eq!(raw.state(), TcpState::Closed);
}

#[test]
fn limits_of_the_half_closed_and_of_the_half_open() {
    let limited = Config {
        limits: Arc::new(Limits {
            half_closed: Some(ms(10_000)),
            ..Limits::default()
        }),
        ..config()
    };
    let mut raw = Raw::established(&limited, ms(50));
    raw.send(ACK | FIN, 0);
    raw.pass(ms(9000));
    assert_eq!(raw.state(), TcpState::CloseWait);
    raw.pass(ms(2000));
    assert_eq!(ended(&mut raw), Some(SoError::TimedOut));
    let mut raw = Raw::listening(&config());
    raw.one();
    let all = raw.pass(ms(19_000));
    assert_eq!(all.len(), 4, "1, 2, 4, 8 seconds");
    raw.pass(ms(2000));
    assert_eq!(raw.state(), TcpState::Closed);
}
