//! RFC 9293 3.8.6.3, 5681 4.2, 2018, 2883.

use super::*;

fn blocks(emission: &Emission) -> Vec<(u32, u32)> {
    let base = THEIRS + 1;
    let sack = &emission.segment.options.sack;
    sack.iter()
        .map(|(start, end)| (start - base, end - base))
        .collect()
}

/// Past the first segments, which are all acknowledged.
fn settled(config: &Config) -> Raw {
    let mut raw = Raw::established(config, ms(50));
    for _ in 0..16 {
        raw.send(ACK, MSS);
        raw.one();
    }
    raw.tcb.read(raw.tcb.in_order(), true, raw.now);
    raw.all();
    raw
}

#[test]
fn every_second_segment_is_acknowledged_or_after_40_ms() {
    let mut raw = settled(&config());
    raw.send(ACK, MSS);
    raw.none();
    raw.send(ACK, MSS);
    assert_eq!(raw.one().segment.ack, raw.seq);
    raw.send(ACK, MSS);
    let all = raw.pass(ms(100));
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].0, ms(50 + 40));
    // Data in the other direction carries it.
    raw.send(ACK, MSS);
    raw.write(10);
    assert_eq!(raw.one().segment.ack, raw.seq);
    assert!(raw.pass(ms(100)).iter().all(|(_, one)| one.segment.len > 0));
}

#[test]
fn out_of_order_data_is_acknowledged_at_once_the_latest_first() {
    let mut raw = settled(&config());
    let base = 16 * 1000;
    for (ahead, expected) in [
        (1000, vec![(1000, 1100)]),
        (3000, vec![(3000, 3100), (1000, 1100)]),
        (1100, vec![(1000, 1200), (3000, 3100)]),
        (5000, vec![(5000, 5100), (1000, 1200), (3000, 3100)]),
        (
            7000,
            vec![(7000, 7100), (5000, 5100), (1000, 1200), (3000, 3100)],
        ),
        (
            9000,
            vec![(9000, 9100), (7000, 7100), (5000, 5100), (1000, 1200)],
        ),
    ] {
        raw.send_at(ahead, ACK, 100);
        let ack = raw.one();
        assert_eq!(ack.segment.ack, raw.seq);
        let expected: Vec<_> = expected.iter().map(|(a, b)| (a + base, b + base)).collect();
        assert_eq!(blocks(&ack), expected);
    }
    raw.send(ACK, 1000);
    let ack = raw.one();
    assert_eq!(ack.segment.ack, raw.seq.wrapping_add(200));
    assert_eq!(blocks(&ack).len(), 4);
}

/// Beside timestamps three fit (RFC 2018 3).
#[test]
fn three_blocks_beside_timestamps() {
    let mut raw = Raw::established(&stamped(), ms(50));
    for k in 1..6 {
        raw.send_at(1000 * k, ACK, 100);
    }
    assert_eq!(blocks(&raw.one()).len(), 3);
}

/// RFC 2883 4.
#[test]
fn duplicates_are_reported_once() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.send(ACK, 1000);
    raw.all();
    raw.send_at(-500, ACK, 500);
    assert_eq!(blocks(&raw.one()), [(500, 1000)]);
    // Partly new.
    raw.send_at(-100, ACK, 200);
    raw.seq = raw.seq.wrapping_add(100);
    assert_eq!(blocks(&raw.one()), [(900, 1000)]);
    raw.send(ACK, 10);
    assert!(blocks(&raw.acked()).is_empty());
    // Out of order, twice: the block around it comes second.
    raw.send_at(1000, ACK, 200);
    raw.all();
    raw.send_at(1050, ACK, 100);
    assert_eq!(blocks(&raw.one()), [(2160, 2260), (2110, 2310)]);
    raw.send_at(3000, ACK, 100);
    assert_eq!(blocks(&raw.one()), [(4110, 4210), (2110, 2310)]);
}

#[test]
fn without_sack_no_blocks_are_sent() {
    let plain = Config {
        sack: false,
        ..config()
    };
    let mut raw = Raw::established(&plain, ms(50));
    raw.send_at(1000, ACK, 100);
    assert!(blocks(&raw.one()).is_empty());
}

/// RFC 2018 4: in all acknowledgements while data is missing; the first one does not wait for data to
/// send. Each packet fits the path's size (RFC 6691) with all options.
#[test]
fn data_carries_blocks_too_and_makes_room_for_them() {
    for (config, room) in [(config(), MSS), (stamped(), MSS)] {
        for holes in 1..=6 {
            let mut raw = Raw::established(&config, ms(50));
            raw.tcb.set_nodelay(true);
            raw.write(10_000);
            for hole in 0..holes {
                raw.send_at(1000 + 2000 * hole, ACK, 100);
            }
            let all = raw.soon();
            assert_eq!(all[0].segment.len, 0, "at once, and alone");
            let most = if config.timestamps.is_some() { 3 } else { 4 };
            let count = most.min(usize::try_from(holes).unwrap());
            for one in &all {
                assert_eq!(blocks(one).len(), count, "{one:?}");
                assert!(one.size + 4 + 8 * count <= room, "{one:?}");
                assert_eq!(one.segment.len, one.size);
            }
            assert_eq!(all[1].size, room - 4 - 8 * count);
            // So do probes and retransmissions.
            let again = raw.pass(ms(400));
            assert!(again.iter().any(|(_, one)| one.again));
            for (_, one) in &again {
                assert_eq!(blocks(one).len(), count);
                assert!(one.segment.len + 4 + 8 * count <= room, "{one:?}");
            }
            // Nothing is missing any more.
            raw.send(ACK, 20_000);
            raw.acknowledge(10_000, &[]);
            raw.all();
            let last = raw.flight(3);
            assert!(last.iter().all(|one| blocks(one).is_empty()));
            assert_eq!(last[0].segment.len, room);
        }
    }
}

/// A link that cuts is given whole segments of the smaller size.
#[test]
fn cut_packets_have_room_for_blocks_too() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.most = 64_000;
    raw.send_at(1000, ACK, 100);
    raw.all();
    let all = raw.flight(20);
    assert_eq!((all[0].size, all[0].segment.len % all[0].size), (988, 0));
    assert_eq!(blocks(&all[0]).len(), 1);
}

/// A black hole depends on the packet size, not the payload: a segment with blocks was full too.
#[test]
fn a_full_segment_with_blocks_is_full_for_the_path() {
    let large = Config {
        mtu: 1500,
        ..config()
    };
    let mut raw = Raw::established(&large, ms(50));
    raw.send_at(1000, ACK, 100);
    raw.all();
    raw.write(1448);
    assert_eq!(raw.one().size, 1448);
    let sizes: Vec<_> = raw.pass(ms(3000)).iter().map(|one| one.1.size).collect();
    assert_eq!(sizes[..4], [1448, 1448, 1012, 500]);
}

#[test]
fn the_end_is_acknowledged_soon() {
    let mut raw = settled(&config());
    raw.send(ACK | FIN, 10);
    assert_eq!(raw.acked().segment.ack, raw.seq);
    // At once if nothing can take it along: this side has ended too.
    let mut raw = Raw::established(&config(), ms(50));
    raw.shutdown();
    raw.one();
    raw.send(ACK | FIN, 0);
    assert_eq!(raw.one().segment.ack, raw.seq);
}

#[test]
fn the_own_end_takes_the_acknowledgement_of_the_peers_along() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.send(ACK | FIN, 10);
    raw.none();
    raw.shutdown();
    let fin = raw.one().segment;
    assert_eq!((fin.flags, fin.ack), (ACK | FIN, raw.seq));
    assert!(raw.pass(ms(100)).is_empty());
}

#[test]
fn answers_carry_acknowledgements() {
    let mut raw = Raw::established(&config(), ms(50));
    let mut bare = 0;
    for _ in 0..20 {
        raw.send(ACK, 10);
        bare += raw.all().len();
        raw.write(10);
        let answer = raw.one();
        raw.acknowledge(answer.payload.end, &[]);
    }
    assert_eq!(bare, 0);
}
