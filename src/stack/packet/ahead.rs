//! Out-of-order segments: they are kept, and reported to the peer at once (RFC 2018, 5681 4.2).

use super::*;
use crate::tcp::block::receiver::MOST_RANGES as MOST;

/// SACK blocks without other options (RFC 2018 3).
const BLOCKS: usize = 4;

/// The blocks of a frame's SACK option, counted from `base`.
fn blocks(frame: &[u8], base: u32) -> Vec<(u32, u32)> {
    let tcp = if frame[0] >> 4 == 4 { 20 } else { 40 };
    let mut options = &frame[tcp + 20..tcp + usize::from(frame[tcp + 12] >> 4) * 4];
    while let [kind, rest @ ..] = options {
        match kind {
            1 => options = rest,
            5 => {
                let body = &rest[1..usize::from(rest[0]) - 1];
                let edge = |at| ip::be32(body, at).wrapping_sub(base);
                return (0..body.len())
                    .step_by(8)
                    .map(|at| (edge(at), edge(at + 4)))
                    .collect();
            }
            _ => options = &rest[usize::from(rest[0]) - 1..],
        }
    }
    Vec::new()
}

/// What the stack has sent, each packet whole.
fn frames(net: &mut Net) -> Vec<Vec<u8>> {
    net.turn();
    let mut frames = Vec::new();
    while net.wire.receive(&mut frames, 1000).unwrap() > 0 {}
    frames.iter().map(crate::link::Frame::to_vec).collect()
}

/// An accepted connection whose peer supports SACK, or not.
fn accepted(net: &mut Net, v6: bool, sack: bool) -> (Raw, TcpStream) {
    let listener = net.listen(80);
    let mut raw = Raw::new(5000);
    if v6 {
        raw.from.0 = "fd00::2".parse().unwrap();
        raw.to.0 = "fd00::1".parse().unwrap();
    }
    raw.options.sack_permitted = sack;
    raw.handshake(net);
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true);
    (raw, stream)
}

#[test]
fn out_of_order_data_is_kept_and_reported() {
    for v6 in [false, true] {
        let mut net = Net::new();
        let (raw, stream) = accepted(&mut net, v6, true);
        let all = pattern(0, 1400);
        let mut told = Vec::new();
        for i in [1, 3, 5, 7, 9, 11] {
            raw.send_at(&net, i * 100, ACK, &all[i as usize * 100..][..100]);
            let frames = frames(&mut net);
            assert_eq!(frames.len(), 1, "each is answered at once");
            assert_eq!(ip::be32(&frames[0], if v6 { 48 } else { 28 }), raw.seq);
            told = blocks(&frames[0], raw.seq);
        }
        assert_eq!(told, [(1100, 1200), (900, 1000), (700, 800), (500, 600)]);
        // The latest comes first; ranges that touch are one.
        raw.send_at(&net, 600, ACK, &all[600..700]);
        let frame = &frames(&mut net)[0];
        assert_eq!(
            blocks(frame, raw.seq),
            [(500, 800), (1100, 1200), (900, 1000), (100, 200)]
        );
        for i in [0, 2, 4, 8, 10] {
            raw.send_at(&net, i * 100, ACK, &all[i as usize * 100..][..100]);
        }
        let last = frames(&mut net).pop().unwrap();
        assert!(blocks(&last, raw.seq).is_empty());
        assert!(read(&stream) == all[..1200], "no retransmission is needed");
        net.healthy();
    }
}

#[test]
fn without_sack_support_no_blocks_are_sent() {
    let mut net = Net::new();
    let (raw, stream) = accepted(&mut net, false, false);
    raw.send_at(&net, 5, ACK, b"world");
    let frames = frames(&mut net);
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].len(), 40, "no options");
    raw.send_at(&net, 0, ACK, b"hello");
    net.turn();
    assert_eq!(read(&stream), b"helloworld");
    net.healthy();
}

#[test]
fn every_second_byte_fills_a_limited_number_of_holes() {
    let mut net = Net::new();
    let (raw, stream) = accepted(&mut net, false, true);
    let most = i32::try_from(MOST).unwrap();
    for i in 1..=most + 50 {
        raw.send_at(&net, 2 * i, ACK, &pattern(2 * i as usize, 1));
        let frames = frames(&mut net);
        assert_eq!(frames.len(), 1, "data that is not kept is answered too");
        assert_eq!(blocks(&frames[0], raw.seq).len(), BLOCKS.min(i as usize));
    }
    let end = 2 * MOST + 1;
    raw.send_at(&net, 0, ACK, &pattern(0, 2));
    for i in 1..most {
        raw.send_at(&net, 2 * i + 1, ACK, &pattern(2 * i as usize + 1, 1));
    }
    net.turn();
    assert!(read(&stream) == pattern(0, end));
    net.healthy();
}

/// More than a packet can carry becomes in order at once.
#[test]
fn a_hole_before_a_whole_window_is_filled() {
    let mut net = Net::with(one_packet_each(), |b| b.receive_buffer(400_000));
    let listener = net.listen(80);
    let mut raw = Raw::new(5000);
    raw.options.window_scale = Some(7);
    raw.handshake(&mut net);
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true);
    let all = pattern(0, 300_000);
    // The window follows the reader, so some bytes are read before.
    for _ in 0..5 {
        for part in pattern(0, 140_000).chunks(1400) {
            raw.send_data(&net, part);
        }
        net.turn();
        assert_eq!(read(&stream).len(), 140_000);
        net.seen();
    }
    for (i, part) in all.chunks(1400).enumerate().skip(1) {
        raw.send_at(&net, i as i32 * 1400, ACK, part);
        net.turn();
    }
    raw.send_at(&net, 0, ACK, &all[..1400]);
    let last = net.seen().pop().unwrap();
    assert_eq!(last.header.ack, raw.seq.wrapping_add(300_000));
    assert!(read(&stream) == all);
    net.healthy();
}
