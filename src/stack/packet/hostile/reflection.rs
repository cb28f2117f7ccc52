//! Forged segments: they have no effect, and cause at most one answer, without answer loops.

use super::*;

/// Guards `Driver::unknown` and `Stateless`: no answer is larger than its cause, and none is sent to or
/// about foreign addresses.
#[test]
fn answers_without_a_connection_are_no_larger_than_their_cause() {
    let mut net = Net::new();
    let _listener = net.listen(80);
    for payload in [0, 1, 100, 1400] {
        for flags in 0..64 {
            let mut raw = Raw::new(5000 + flags);
            raw.to.1 = 81;
            raw.send(&net, flags as u8, &pattern(0, payload));
            let seen = net.seen();
            assert!(seen.len() <= 1 && seen.iter().all(|frame| frame.payload.is_empty()));
            assert!(seen.iter().all(|frame| frame.has(RST)));
            assert!(flags as u8 & RST == 0 || seen.is_empty(), "none to a reset");
        }
    }
    for source in [[0, 0, 0, 0], [224, 0, 0, 1], [255, 255, 255, 255]] {
        let mut raw = Raw::new(5000);
        raw.from.0 = source.into();
        raw.send(&net, SYN, b"");
        let echo = [8, 0, 0xf7, 0xfc, 0, 1, 0, 2];
        let mut ping = datagrams::datagram(false, 1, &echo);
        ping[12..16].copy_from_slice(&source);
        ping[10..12].fill(0);
        let sum = checksum(&ping[..20]);
        ping[10..12].copy_from_slice(&sum);
        net.raw(&ping);
        net.turn();
        let mut frames = Vec::new();
        assert_eq!(net.wire.receive(&mut frames, 10).unwrap(), 0, "{source:?}");
    }
    assert_eq!(net.stack.stats().frames_bad_address, 6);
    assert_eq!(net.stack.stats().connections, 0);
}

/// Guards `Verdict::Challenge` (RFC 5961 7): once a second, and separately for each connection, so that
/// an attacker cannot measure it (CVE-2016-5696).
#[test]
fn challenges_are_limited_by_each_connection_for_itself() {
    let mut net = Net::new();
    let (mut raw, stream) = net.accepted();
    let (mut other, other_stream) = net.dialled();
    other.send(&net, SYN | ACK, b"");
    other.seq = other.seq.wrapping_add(1);
    net.turn();
    net.drain();
    let future = Raw {
        ack: raw.ack.wrapping_add(5000),
        ..raw
    };
    for second in 1..=3 {
        for i in 0..100 {
            raw.send_at(&net, 1 + i, RST, b"");
            raw.send_at(&net, i * 100, SYN, b"");
            future.send_at(&net, i, ACK, b"forged");
            raw.send_at(&net, -100_000, ACK, b"");
            net.turn();
        }
        let seen = net.drain();
        assert_eq!(seen.len(), 1, "second {second}: {seen:#?}");
        assert_eq!(seen[0].header.flags, ACK);
        // The other one has its own.
        other.send_at(&net, 10, RST, b"");
        let seen = net.seen();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].tuple.local_port, other.from.1);
        net.pass(Duration::from_millis(1001));
    }
    works(&mut net, &mut raw, &stream);
    works(&mut net, &mut other, &other_stream);
}

/// Guards `judge_outside`: both sides received a forged byte, and each takes the other's
/// acknowledgement for a keep-alive (an ACK storm).
#[test]
fn two_sides_that_disagree_do_not_answer_each_other_for_ever() {
    let mut net = Net::new();
    let (mut raw, stream) = net.accepted();
    // The stack believes that the peer has sent this, and the peer that the stack has.
    raw.send(&net, ACK, b"x");
    raw.ack = raw.ack.wrapping_add(1);
    let mut answers = net.seen().len();
    for _ in 0..1000 {
        raw.send(&net, ACK, b"");
        answers += net.seen().len();
    }
    assert!(answers <= 2, "{answers} answers within no time");
    // And with a smaller acknowledgement each is a keep-alive.
    raw.ack = raw.ack.wrapping_sub(1);
    for _ in 0..10 {
        raw.send(&net, ACK, b"");
        assert_eq!(net.one().header.flags, ACK);
    }
    raw.seq = raw.seq.wrapping_add(1);
    assert_eq!(read(&stream), b"x");
    works(&mut net, &mut raw, &stream);
}

/// Guards the same in `TimeWait::answer`.
#[test]
fn two_sides_in_time_wait_do_not_answer_each_other_for_ever() {
    let mut net = Net::new();
    let (raw, _listener) = in_time_wait(&mut net);
    let disagrees = Raw {
        ack: raw.ack.wrapping_add(1),
        ..raw
    };
    for _ in 0..1000 {
        disagrees.send_at(&net, -1, ACK, b"");
        assert!(net.seen().is_empty());
    }
    raw.send_at(&net, -1, ACK, b"");
    assert_eq!(net.one().header.flags, ACK, "a keep-alive");
}

/// Any forged segment causes at most one answer, and neither data nor FIN is accepted.
#[test]
fn a_forged_segment_draws_one_answer_at_most() {
    let mut net = Net::new();
    let (mut raw, stream) = net.accepted();
    for offset in [-1_000_000, -70_000, -1000, -1, 300_000, 1 << 30, i32::MIN] {
        for flags in [
            ACK,
            ACK | FIN,
            ACK | PSH,
            ACK | SYN,
            ACK | RST,
            RST,
            SYN,
            FIN,
            0,
        ] {
            for payload in [0, 1, 1000] {
                // Data that begins before the window must not reach into it, nor must a FIN.
                if offset == -1 && (payload > 1 || flags & FIN != 0)
                    || offset == -1000 && flags & FIN != 0
                {
                    continue;
                }
                raw.send_at(&net, offset, flags, &pattern(0, payload));
                let seen = net.seen();
                assert!(seen.len() <= 1, "{offset} {flags} {payload}: {seen:#?}");
                assert!(seen.iter().all(|frame| frame.header.flags == ACK));
            }
        }
    }
    assert_eq!(error_kind(&stream), Some(ErrorKind::WouldBlock));
    works(&mut net, &mut raw, &stream);
}

/// Positions are 64 bits wide: a reset of 4 GiB ago is not accepted, and data of a second before the
/// wrap is old.
#[test]
fn a_duplicate_from_before_the_wrap_is_old() {
    let mut net = Net::new();
    let (mut raw, stream) = net.accepted();
    for round in 0..10 {
        raw.send_data(&net, &pattern(round * 100, 100));
        net.turn();
        assert_eq!(read(&stream), pattern(round * 100, 100));
        raw.send_at(&net, -100, ACK, &[0xff; 100]);
        raw.send_at(&net, -100, RST, b"");
        net.turn();
        net.drain();
    }
    assert!(raw.seq < u32::MAX / 2, "the wrap is behind us");
    works(&mut net, &mut raw, &stream);
}
