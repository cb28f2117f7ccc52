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
    // What goes the other way carries it.
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
fn what_came_twice_is_told_once() {
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
    assert!(blocks(&raw.one()).is_empty());
    // Out of order, twice: the block around it comes second.
    raw.send_at(1000, ACK, 200);
    raw.all();
    raw.send_at(1050, ACK, 100);
    assert_eq!(blocks(&raw.one()), [(2160, 2260), (2110, 2310)]);
    raw.send_at(3000, ACK, 100);
    assert_eq!(blocks(&raw.one()), [(4110, 4210), (2110, 2310)]);
}

#[test]
fn without_sack_nothing_is_told() {
    let plain = Config {
        sack: false,
        ..config()
    };
    let mut raw = Raw::established(&plain, ms(50));
    raw.send_at(1000, ACK, 100);
    assert!(blocks(&raw.one()).is_empty());
}

/// What tells of holes is not left to data that goes the other way.
#[test]
fn data_does_not_take_the_place_of_blocks() {
    let mut raw = Raw::established(&config(), ms(50));
    raw.write(10);
    raw.send_at(1000, ACK, 100);
    let all = raw.all();
    assert_eq!(
        all.iter().map(|one| one.segment.len).collect::<Vec<_>>(),
        [0, 10]
    );
    assert_eq!(blocks(&all[0]).len(), 1);
}

#[test]
fn the_end_is_acknowledged_at_once() {
    let mut raw = settled(&config());
    raw.send(ACK | FIN, 10);
    assert_eq!(raw.one().segment.ack, raw.seq);
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
    assert_eq!(bare, 1, "only the first");
}
