//! RFC 1191, 8201, 4821, 5927, 5461.

use super::*;
use crate::error::SoError;
use crate::tcp::icmp::IcmpErrorKind;

/// Known fault: after "packet too big" all but the first waited for a timeout.
#[test]
fn data_of_packets_too_big_is_retransmitted_at_once() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.flight(10);
    assert!(
        raw.tcb
            .handle_icmp(seq(3000), IcmpErrorKind::TooBig(640), raw.now)
    );
    let all = raw.all();
    let sizes: Vec<_> = all.iter().map(|one| one.segment.len).collect();
    assert!(sizes.iter().all(|size| *size <= 600), "{sizes:?}");
    assert_eq!(
        sizes.iter().sum::<usize>(),
        9600,
        "as much as the window, in whole segments"
    );
    assert!(all.iter().all(|one| one.again && one.dont_fragment));
    assert_eq!(
        raw.tcb.congestion_window(),
        10_000,
        "nothing was lost for want of room"
    );
}

/// A large window that was too big is retransmitted as usual: a first flight at once, and the rest
/// paced.
#[test]
fn a_window_that_does_not_fit_is_no_burst() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.write(200_000);
    let bytes = |all: &[Emission]| all.iter().map(|one| one.segment.len).sum::<usize>();
    let mut sent = 0;
    for _ in 0..2 {
        sent += bytes(&raw.soon());
        raw.pass(ms(10));
        raw.acknowledge(sent as u64, &[]);
    }
    let flight = bytes(&raw.soon());
    assert!(flight > 30_000, "{flight}");
    let first = sent as u64;
    raw.tcb
        .handle_icmp(seq(first), IcmpErrorKind::TooBig(640), raw.now);
    let burst = raw.all();
    assert!(burst.iter().all(|one| one.again));
    assert!((9000..14_000).contains(&bytes(&burst)), "{}", bytes(&burst));
    let rest = raw.pass(ms(60));
    let rest: Vec<_> = rest.into_iter().map(|(_, one)| one).collect();
    assert!(bytes(&rest) + bytes(&burst) > flight / 10 * 9, "{rest:?}");
}

/// Known fault: a path below 576 stalled for ever.
#[test]
fn below_the_floor_routers_may_cut() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.flight(1);
    raw.tcb
        .handle_icmp(seq(0), IcmpErrorKind::TooBig(68), raw.now);
    let all = raw.all();
    assert_eq!(
        all.iter().map(|one| one.segment.len).collect::<Vec<_>>(),
        [512, 488]
    );
    assert!(all.iter().all(|one| !one.dont_fragment));
}

#[test]
fn only_errors_that_quote_a_segment_in_flight_are_accepted() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.flight(2);
    raw.acknowledge(1000, &[]);
    for wrong in [999, 2000, 1 << 31] {
        assert!(
            !raw.tcb
                .handle_icmp(seq(wrong), IcmpErrorKind::TooBig(576), raw.now)
        );
    }
    assert_eq!(raw.tcb.mss(), 1000);
}

/// RFC 4821: a router without reports.
#[test]
fn full_segments_that_time_out_get_smaller() {
    let large = Config {
        mtu: 1500,
        ..config()
    };
    let mut raw = Raw::established(&large, ms(50));
    raw.write(1460);
    raw.one();
    let all = raw.pass(ms(3000));
    let sizes: Vec<_> = all.iter().map(|(_, one)| one.segment.len).collect();
    assert_eq!(sizes[..4], [1460, 1460, 1024, 512], "{all:?}");
}

#[test]
fn a_hard_error_ends_an_attempt_to_connect_and_nothing_else() {
    let mut raw = Raw::dialling(&config());
    let refused = IcmpErrorKind::Hard(SoError::ConnectionRefused);
    assert!(!raw.tcb.handle_icmp(OURS + 5, refused, raw.now));
    assert!(raw.tcb.handle_icmp(OURS, refused, raw.now));
    let [News::Ended(ending)] = raw.events()[..] else {
        panic!()
    };
    assert_eq!(ending.error(), Some(SoError::ConnectionRefused));
    raw.none();
    let mut raw = Raw::established(&config(), ms(50));
    raw.write(1);
    raw.all();
    assert!(raw.tcb.handle_icmp(seq(0), refused, raw.now));
    assert_eq!(raw.state(), TcpState::Established);
    raw.pass(ms(400_000));
    let [News::Ended(ending)] = raw.events()[..] else {
        panic!()
    };
    assert_eq!(
        ending.error(),
        Some(SoError::HostUnreachable),
        "it explains the time-out"
    );
}

#[test]
fn a_soft_error_that_stays_ends_an_attempt_to_connect() {
    let mut raw = Raw::dialling(&config());
    raw.tcb.handle_icmp(OURS, IcmpErrorKind::Soft, raw.now);
    raw.pass(ms(14_000));
    raw.tcb.handle_icmp(OURS, IcmpErrorKind::Soft, raw.now);
    assert_eq!(raw.state(), TcpState::SynSent);
    raw.pass(ms(1500));
    raw.tcb.handle_icmp(OURS, IcmpErrorKind::Soft, raw.now);
    assert_eq!(raw.state(), TcpState::Closed);
}
