//! Memory exhaustion: real memory is bounded for any segmentation of the payload.

use super::*;
use crate::buf::FrameMut;
use crate::long::times;
use crate::tcp::service::Work;

/// A link whose frames are as large as those of a TUN with segmentation offload: a byte of payload
/// keeps 64 KiB alive.
fn in_a_large_frame(bytes: &[u8]) -> Buf {
    let mut frame = FrameMut::with_capacity(65_000);
    frame.bytes_mut().extend_from_slice(bytes);
    frame.freeze()
}

/// Hands the connection a segment as it comes from such a link.
fn large(net: &Net, raw: &Raw, offset: u32, payload: &[u8]) {
    let conn = conn(net, raw);
    let header = Header {
        seq: raw.seq.wrapping_add(offset),
        ack: raw.ack,
        flags: ACK,
        window: raw.window,
        options: SynOptions::default(),
    };
    let segment = Segment {
        tuple: conn.tuple,
        header,
        payload: std::iter::once(in_a_large_frame(payload)).collect(),
        payload_len: payload.len(),
        sack: None,
        looped: false,
        marked: false,
        timestamps: None,
    };
    assert!(conn.leave(segment));
    conn.run(Work::SERVE, Runner::Driver);
}

fn received(stream: &TcpStream) -> (usize, usize) {
    let rcv = stream.as_ref().end().rcv();
    (rcv.buf.len(), rcv.buf.memory())
}

/// Guards `SockBuf::keep_memory_bounded`: a window full of unread tiny segments.
#[test]
fn tiny_segments_hold_no_more_than_four_windows() {
    for (size, window) in [(1, times(16_384, 65_536)), (511, 65_536), (600, 65_536)] {
        let mut net = Net::with(one_packet_each(), |b| b.receive_buffer(window));
        let (raw, stream) = net.accepted();
        let mut most = 0;
        let mut sent = 0;
        while sent + size < window {
            large(&net, &raw, sent as u32, &pattern(sent, size));
            net.drain();
            sent += size;
            most = most.max(received(&stream).1);
        }
        assert_eq!(received(&stream).0, sent);
        assert!(most <= 4 * window + 65_600, "{most} bytes for {sent}");
        assert_eq!(read(&stream), pattern(0, sent));
        net.healthy();
    }
}

/// The store and the limit of holes: after a hole byte by byte, every second byte, every third.
#[test]
fn every_second_byte_holds_no_more_than_a_window() {
    let mut net = Net::with(one_packet_each(), |b| b.receive_buffer(65_536));
    let (raw, stream) = net.accepted();
    let conn = conn(&net, &raw);
    for step in [1, 2, 3, 1000] {
        for at in (1..times(4_000, 20_000)).step_by(step) {
            large(&net, &raw, at, &pattern(at as usize, 1));
            net.drain();
            let memory = conn.reassembly_memory();
            assert!(memory <= 2 * 65_536 + 256 * 129, "{memory} bytes at {at}");
        }
    }
    // Large ones, all but a byte of which is retransmitted.
    for at in 1..300 {
        large(&net, &raw, at, &pattern(at as usize, 60_000));
        net.drain();
        let memory = conn.reassembly_memory();
        assert!(memory <= 2 * 65_536 + 256 * 129, "{memory} bytes at {at}");
    }
    large(&net, &raw, 0, &pattern(0, 1));
    assert_eq!(read(&stream), pattern(0, 60_299));
    net.healthy();
}

/// In-order data is not overwritten; of overlapping out-of-order data the latest is kept.
#[test]
fn overlapping_data_does_not_change_delivered_bytes() {
    let mut net = Net::new();
    let (mut raw, stream) = net.accepted();
    raw.send(&net, ACK, b"0123456789");
    raw.send(&net, ACK, b"xxxxxxxxxxAB");
    raw.send_at(&net, 5, ACK, b"yyyyyyyC");
    raw.send_at(&net, 20, ACK, b"first");
    raw.send_at(&net, 20, ACK, b"FIRST");
    raw.send_at(&net, 22, ACK, b"2ndXX");
    raw.send_at(&net, 13, ACK, b"......");
    raw.send_at(&net, 14, ACK, b"!!!!!!!");
    net.turn();
    let got = read(&stream);
    assert_eq!(
        got,
        b"0123456789ABC......!!I2ndXX",
        "{:?}",
        String::from_utf8_lossy(&got)
    );
    raw.seq = raw.seq.wrapping_add(got.len() as u32);
    works(&mut net, &mut raw, &stream);
}

/// Guards `Limits::stall`: a window that never opens, and a peer that answers every probe.
#[test]
fn a_slow_reader_is_given_up_if_so_configured() {
    for stall in [None, Some(Duration::from_secs(120))] {
        let mut net = Net::with(one_packet_each(), |builder| builder.stall_timeout(stall));
        let (mut raw, mut stream) = net.accepted();
        raw.window = 0;
        raw.send(&net, ACK, b"");
        net.turn();
        stream.write_all(&pattern(0, 100_000)).unwrap();
        let began = net.clock.now();
        let (mut answered, mut open) = (0, true);
        while net.clock.now() < began + Duration::from_secs(1000) && open {
            for probe in net.seen() {
                open &= !probe.has(RST);
                answered += 1;
                raw.send(&net, ACK, b"");
            }
            net.pass(Duration::from_secs(1));
        }
        let lasted = net.clock.now() - began;
        assert!(answered > 5, "{answered}");
        assert_eq!(open, stall.is_none());
        if let Some(stall) = stall {
            assert!(
                lasted >= stall && lasted < stall + Duration::from_secs(5),
                "{lasted:?}"
            );
            assert_eq!(error_kind(&stream), Some(ErrorKind::TimedOut));
            assert_eq!(net.stack.stats().connections, 0);
        }
    }
}

/// A peer that reads slowly makes progress, and is not ended.
#[test]
fn progress_holds_the_stall_timeout_off() {
    let mut net = Net::with(one_packet_each(), |builder| {
        builder.stall_timeout(Some(Duration::from_secs(120)))
    });
    let (mut raw, mut stream) = net.accepted();
    raw.window = 0;
    raw.send(&net, ACK, b"");
    net.turn();
    stream.write_all(b"twenty bytes of data").unwrap();
    let mut got = Vec::new();
    for _ in 0..12 {
        net.pass(Duration::from_secs(100));
        got.extend(raw.take(&in_order(&raw, net.drain())));
        raw.window = 1;
        raw.send(&net, ACK, b"");
        got.extend(raw.take(&in_order(&raw, net.seen())));
        raw.window = 0;
        raw.send(&net, ACK, b"");
        net.turn();
    }
    assert!(got.len() >= 12 && b"twenty bytes of data".starts_with(&got));
    assert_eq!(error_kind(&stream), Some(ErrorKind::WouldBlock));
}

/// The frames at the peer's next expected byte, without retransmissions.
fn in_order(raw: &Raw, seen: Vec<Seen>) -> Vec<Seen> {
    let mut next = raw.ack;
    let data = seen.into_iter().filter(|frame| !frame.payload.is_empty());
    data.filter(|frame| {
        let fits = frame.header.seq == next;
        next = next.wrapping_add(if fits { frame.payload.len() as u32 } else { 0 });
        fits
    })
    .collect()
}

/// Guards `Conn::leave`: segments for a connection that another thread is running.
#[test]
fn the_backlog_of_segments_is_bounded() {
    let mut net = Net::new();
    let (mut raw, stream) = net.accepted();
    let conn = conn(&net, &raw);
    let segment = || Segment {
        tuple: conn.tuple,
        header: Header {
            seq: raw.seq,
            ack: raw.ack,
            flags: ACK,
            window: raw.window,
            options: SynOptions::default(),
        },
        payload: std::iter::once(in_a_large_frame(b"x")).collect(),
        payload_len: 1,
        sack: None,
        looped: false,
        marked: false,
        timestamps: None,
    };
    let left = (0..600).filter(|_| conn.leave(segment())).count();
    assert_eq!(left, 512);
    assert_eq!(net.stack.stats().segments_backlog_full, 88);
    conn.run(Work::SERVE, Runner::Driver);
    assert_eq!(read(&stream), b"x");
    raw.seq = raw.seq.wrapping_add(1);
    works(&mut net, &mut raw, &stream);
}
