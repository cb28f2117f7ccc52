//! RFC 8985, 6937bis, 6298, 3522, 5682, 3708, 6582, 3042.

use super::*;
use crate::tcp::block::congestion::algorithm::Kind;
use crate::tcp::block::recovery::Phase;

fn phase(raw: &Raw) -> Phase {
    raw.tcb.recovery_phase()
}

#[test]
fn a_hole_is_filled_once_when_three_segments_are_behind_it() {
    let mut raw = Raw::established(&config(), ms(50));
    assert_eq!(raw.flight(10).len(), 10);
    raw.pass(ms(50));
    raw.acknowledge(0, &[(1000, 2000)]);
    raw.acknowledge(0, &[(1000, 3000)]);
    raw.none();
    raw.acknowledge(0, &[(1000, 4000)]);
    assert_eq!(places(&raw.all()), [(0, 1000)]);
    assert_eq!(phase(&raw), Phase::Recovery);
    raw.acknowledge(0, &[(1000, 10_000)]);
    raw.none();
    raw.pass(ms(50));
    raw.acknowledge(10_000, &[]);
    assert_eq!(phase(&raw), Phase::Open);
    assert_eq!(raw.tcb.congestion_window(), 7000, "CUBIC");
    assert!(raw.pass(ms(5000)).is_empty());
}

/// Known fault: a lost retransmission stalled recovery until the timeout.
#[test]
fn a_lost_retransmission_is_sent_again_after_a_round_trip() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.write(30_000);
    raw.all();
    raw.pass(ms(50));
    raw.acknowledge(0, &[(1000, 4000)]);
    let first = raw.all();
    assert_eq!(first[0].payload, 0..1000);
    raw.acknowledge(0, &[(1000, 10_000)]);
    let later = raw.soon();
    assert!(!later.is_empty(), "PRR sends on");
    raw.pass(ms(10));
    // Segments sent after it have arrived.
    let end = later[0].payload.end;
    raw.acknowledge(0, &[(1000, end)]);
    let all = raw.all();
    assert_eq!(all[0].payload, 0..1000, "{all:?}");
}

/// Known fault: the last segment of an answer cost a timeout of a second.
#[test]
fn a_lost_end_is_found_after_two_round_trips() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.flight(4);
    raw.pass(ms(50));
    raw.acknowledge(2000, &[]);
    let all = raw.pass(ms(140));
    assert_eq!(
        places(&all.iter().map(|one| one.1.clone()).collect::<Vec<_>>()),
        [(3000, 4000)]
    );
    assert_eq!(all[0].0.as_millis(), 100 + 102);
    // Which indicates the loss before it.
    raw.pass(ms(30));
    raw.acknowledge(2000, &[(3000, 4000)]);
    assert_eq!(places(&raw.all()), [(2000, 3000)]);
}

/// Known fault: a lone probe did not allow for the peer's delayed acknowledgement.
#[test]
fn a_lone_segment_waits_for_a_delayed_acknowledgement() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.write(100);
    raw.one();
    let all = raw.pass(ms(249));
    assert!(all.is_empty(), "{all:?}");
    assert_eq!(raw.pass(ms(52)).len(), 1);
}

#[test]
fn a_timeout_sends_one_segment_and_doubles() {
    let plain = Config {
        sack: false,
        ..config()
    };
    let mut raw = Raw::established(&plain, ms(50));
    raw.flight(10);
    let all = raw.pass(ms(4000));
    let at: Vec<_> = all.iter().map(|(at, _)| at.as_millis()).collect();
    assert_eq!(at, [300, 800, 1800, 3800], "200 ms beyond the round trip");
    assert!(all.iter().all(|(_, one)| one.payload.start == 0));
    raw.acknowledge(1000, &[]);
    assert_eq!(raw.soon().len(), 2, "slow start");
}

/// Eifel (RFC 3522, 4015).
#[test]
fn a_spurious_timeout_is_undone() {
    let mut raw = Raw::established(&stamped(), ms(50));
    raw.flight(10);
    let echo = raw.echo;
    let again = raw.pass(ms(700));
    assert!(again.len() >= 2 && raw.tcb.congestion_window() == 1000);
    // It was only late: the ACK echoes the first transmission.
    raw.echo = echo;
    raw.acknowledge(10_000, &[]);
    assert_eq!(phase(&raw), Phase::Open);
    assert!(raw.tcb.congestion_window() >= 10_000);
    raw.write(10_000);
    assert_eq!(raw.soon().len(), 10);
}

/// F-RTO (RFC 5682), without timestamps.
#[test]
fn a_timeout_is_undone_by_original_transmissions() {
    for kind in [Kind::Cubic, Kind::Reno, Kind::Bbr] {
        let mut raw = Raw::established(
            &Config {
                congestion: kind,
                ..config()
            },
            ms(50),
        );
        raw.write(10 * MSS);
        raw.soon();
        raw.pass(ms(1200));
        assert_eq!(phase(&raw), Phase::Loss);
        assert_eq!(raw.tcb.congestion_window(), 1000, "{kind}");
        raw.acknowledge(2000, &[]);
        assert_eq!(phase(&raw), Phase::Open);
        assert_eq!(raw.tcb.congestion_window(), 10_000 + 2000, "{kind}");
        raw.none();
    }
}

/// RFC 3708: the original of the retransmission had arrived.
#[test]
fn a_spurious_recovery_is_undone_by_d_sack() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.flight(10);
    raw.pass(ms(50));
    raw.acknowledge(0, &[(1000, 4000)]);
    assert_eq!(places(&raw.all()), [(0, 1000)]);
    // It was only late.
    raw.acknowledge(10_000, &[]);
    assert_eq!(raw.tcb.congestion_window(), 7000);
    raw.acknowledge(10_000, &[(0, 1000)]);
    assert_eq!(raw.tcb.congestion_window(), 10_000);
    // From then on a delay of a quarter of the RTT is no loss.
    raw.flight(10);
    raw.pass(ms(50));
    raw.acknowledge(10_000, &[(11_000, 16_000)]);
    raw.none();
    let later = raw.pass(ms(30));
    assert_eq!(later[0].1.payload, 10_000..11_000);
    assert!(later[0].0.as_millis() > 110);
}

#[test]
fn a_spurious_recovery_is_undone_by_timestamps() {
    let mut raw = Raw::established(&stamped(), ms(50));
    raw.flight(10);
    let echo = raw.echo;
    raw.pass(ms(50));
    raw.acknowledge(0, &[(1000, 4000)]);
    assert_eq!(places(&raw.all()), [(0, 1000)]);
    raw.echo = echo;
    raw.acknowledge(4000, &[]);
    assert_eq!(phase(&raw), Phase::Open);
    assert_eq!(
        raw.tcb.congestion_window(),
        10_000 + 4000,
        "as before, plus the acknowledged bytes"
    );
}

/// Data marked lost was acknowledged before its retransmission.
#[test]
fn a_recovery_without_retransmissions_is_undone() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.flight(10);
    raw.pass(ms(50));
    raw.acknowledge(0, &[(1000, 4000)]);
    assert_eq!(phase(&raw), Phase::Recovery);
    raw.acknowledge(10_000, &[]);
    assert_eq!(phase(&raw), Phase::Open);
    assert!(raw.tcb.congestion_window() >= 10_000);
    raw.none();
}

/// RFC 7323 5.3: packets overtaken by a retransmission would be too old after it.
#[test]
fn a_retransmission_is_dated_back_where_packets_overtake_each_other() {
    let mut raw = Raw::established(&stamped(), ms(80));
    raw.flight(10);
    raw.pass(ms(80));
    raw.acknowledge(0, &[(1000, 2000)]);
    raw.acknowledge(10_000, &[]);
    raw.flight(10);
    let echo = raw.echo;
    raw.pass(ms(80));
    raw.acknowledge(10_000, &[(11_000, 20_000)]);
    let window = raw.tcb.congestion_window();
    let resent = raw.pass(ms(30));
    let (at, one) = &resent[0];
    assert_eq!(one.payload, 10_000..11_000);
    let stamp = one.segment.options.timestamps.unwrap().value;
    let back = at.as_millis() - u128::from(stamp - 5000);
    assert!(
        (15..=20).contains(&back),
        "{back}: a quarter of a round trip"
    );
    // Which is still later than the first transmission.
    raw.echo = echo;
    raw.acknowledge(20_000, &[]);
    assert_eq!(phase(&raw), Phase::Open);
    assert!(raw.tcb.congestion_window() >= window);
}

/// Acknowledgements overtake each other: each has room for only a few blocks, so all of them are used.
#[test]
fn blocks_of_an_overtaken_acknowledgement_count() {
    for (config, una) in [(stamped(), 0), (config(), 1000)] {
        let mut raw = Raw::established(&config, ms(50));
        raw.flight(10);
        raw.pass(ms(50));
        let mut late = raw.segment(ACK, 0);
        late.options.sack = [(seq(2000), seq(5000))].into_iter().collect();
        raw.pass(ms(3));
        raw.acknowledge(una, &[(9000, 10_000)]);
        assert_eq!(raw.tcb.sacked(), 1000);
        raw.give(&late);
        assert_eq!(raw.tcb.sacked(), 4000);
    }
}

/// A segment older than an RTO may be from before a wrap (RFC 7323 5).
#[test]
fn blocks_of_an_acknowledgement_that_is_too_old_do_not_count() {
    let mut raw = Raw::established(&stamped(), ms(50));
    raw.flight(10);
    raw.pass(ms(50));
    let mut late = raw.segment(ACK, 0);
    late.options.sack = [(seq(2000), seq(5000))].into_iter().collect();
    late.options.timestamps = Some(Timestamps {
        value: 200u32.wrapping_sub(400),
        echo: raw.echo,
    });
    raw.give(&late);
    assert_eq!(raw.tcb.sacked(), 0);
}

/// RFC 2883 4: a block is a D-SACK if it is below the acknowledgement.
#[test]
fn a_block_of_an_overtaken_acknowledgement_is_no_d_sack() {
    let mut raw = Raw::established(&config(), ms(80));
    raw.flight(10);
    raw.pass(ms(80));
    let mut late = raw.segment(ACK, 0);
    late.options.sack = [(seq(1000), seq(2000))].into_iter().collect();
    raw.acknowledge(2000, &[]);
    raw.give(&late);
    raw.acknowledge(2000, &[(3000, 4000)]);
    let resent = raw.pass(ms(30));
    assert_eq!(resent[0].1.payload, 2000..3000);
    assert_eq!(
        resent[0].0.as_millis(),
        180,
        "after a quarter of a round trip"
    );
}

/// RFC 6582 and 3042: a peer without SACK.
#[test]
fn without_sack_three_duplicates_are_a_loss_and_two_send_something_new() {
    let plain = Config {
        sack: false,
        ..config()
    };
    let mut raw = Raw::established(&plain, ms(50));
    raw.write(40_000);
    assert_eq!(raw.all().len(), 10);
    raw.pass(ms(50));
    raw.acknowledge(0, &[]);
    assert_eq!(places(&raw.all()), [(10_000, 11_000)], "limited transmit");
    raw.acknowledge(0, &[]);
    assert_eq!(places(&raw.soon()), [(11_000, 12_000)]);
    raw.acknowledge(0, &[]);
    assert_eq!(places(&raw.soon())[0], (0, 1000));
    // A partial acknowledgement.
    raw.acknowledge(3000, &[]);
    assert_eq!(places(&raw.soon())[0], (3000, 4000));
    raw.acknowledge(12_000, &[]);
    assert_eq!(phase(&raw), Phase::Open);
}

/// RFC 3042, 8985 3.2: SACKed data makes room for new data before a loss is detected.
#[test]
fn with_sack_two_segments_behind_a_hole_send_something_new_too() {
    let mut raw = Raw::established(&config(), ms(50));
    assert_eq!(raw.flight(20).len(), 10);
    raw.pass(ms(50));
    for k in 1..=2u64 {
        raw.acknowledge(0, &[(1000, 1000 + k * 1000)]);
        let start = (9 + k) * 1000;
        let mut left = raw.all();
        left.extend(raw.pass(ms(5)).into_iter().map(|(_, one)| one));
        assert_eq!(places(&left), [(start, start + 1000)]);
    }
    assert_eq!(phase(&raw), Phase::Open);
}

/// RFC 2018 8: a peer may discard data that it has only SACKed.
#[test]
fn data_that_a_peer_discards_is_retransmitted() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.flight(4);
    raw.pass(ms(50));
    raw.acknowledge(0, &[(1000, 4000)]);
    raw.all();
    raw.acknowledge(1000, &[]);
    let all = raw.pass(ms(2000));
    assert_eq!(all[0].1.payload, 1000..2000, "{all:?}");
}

/// Without SACK, what follows a hole is acknowledged with it, however long it was open.
#[test]
fn data_that_waited_for_a_retransmission_gives_no_round_trip() {
    let mut raw = Raw::established(
        &Config {
            sack: false,
            ..config()
        },
        ms(50),
    );
    assert_eq!(raw.flight(3).len(), 3);
    let again = raw.pass(Duration::from_secs(3));
    assert!(!again.is_empty(), "the first one is lost");
    raw.acknowledge(3 * MSS as u64, &[]);
    assert!(raw.tcb.round_trip().unwrap() < ms(100));
}
