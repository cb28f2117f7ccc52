//! Loss recovery with SACK.

use super::*;
use smallvec::SmallVec;
use std::ops::Range;

const MSS: usize = 1460;

/// A peer that supports SACK, and a stack that sends to it with a window of many segments.
fn sending(config: memory::Config, total: usize) -> (Net, Raw, TcpStream) {
    let mut net = Net::with(config, |builder| builder.send_buffer(1 << 20));
    let listener = net.listen(80);
    let mut raw = Raw::new(5000);
    raw.options.sack_permitted = true;
    raw.options.window_scale = Some(4);
    raw.window = 10_000;
    raw.handshake(&mut net);
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true);
    stream.write_all(&pattern(0, total)).unwrap();
    (net, raw, stream)
}

/// Acknowledges until this many segments are in flight. Returns their first sequence number, and the
/// segments.
fn flight(net: &mut Net, raw: &mut Raw, segments: usize) -> (u32, Vec<Seen>) {
    for _ in 0..100 {
        let seen = net.seen();
        if seen.len() >= segments {
            return (raw.ack, seen);
        }
        for frame in &seen {
            raw.take(std::slice::from_ref(frame));
            raw.send(net, ACK, b"");
        }
    }
    panic!("the window stays small");
}

/// Adds a SACK option (RFC 2018 3) to the headers of a segment without payload and other options.
fn append_sack(header: &mut SmallVec<[u8; 100]>, ip_header_len: usize, blocks: &[(u32, u32)]) {
    let Ok(count) = u8::try_from(blocks.len()) else {
        return;
    };
    if count == 0 {
        return;
    }
    header.extend_from_slice(&[1, 1, 5, 2 + 8 * count]);
    for (start, end) in blocks {
        header.extend_from_slice(&start.to_be_bytes());
        header.extend_from_slice(&end.to_be_bytes());
    }
    header[ip_header_len + 12] += (1 + 2 * count) << 4;
    let (at, fixed) = match ip_header_len {
        ip::IPV4_HEADER => (2, 0),
        _ => (4, ip::IPV6_HEADER),
    };
    let len = u16::try_from(header.len() - fixed).unwrap_or(u16::MAX);
    header[at..at + 2].copy_from_slice(&len.to_be_bytes());
}

/// An acknowledgement with SACK blocks, relative to it.
fn sack(net: &Net, raw: &Raw, blocks: &[(usize, usize)]) {
    let header = Header {
        seq: raw.seq,
        ack: raw.ack,
        flags: ACK,
        window: raw.window,
        options: SynOptions::default(),
    };
    let mut out = [0; MAX_CANONICAL];
    let len = wire::compose(&mut out, raw.from, raw.to, &header, 0);
    let mut header: SmallVec<[u8; 100]> = SmallVec::from_slice(&out[..len]);
    let at = |offset: usize| raw.ack.wrapping_add(offset as u32);
    let blocks: Vec<_> = blocks
        .iter()
        .map(|(from, to)| (at(*from), at(*to)))
        .collect();
    append_sack(&mut header, 20, &blocks);
    wire::finish(&mut header, 20, std::iter::empty::<&[u8]>(), false);
    net.raw(&header);
}

/// The ranges of the frames' data, relative to an acknowledgement.
fn places(seen: &[Seen], from: u32) -> Vec<Range<usize>> {
    let data = seen.iter().filter(|frame| !frame.payload.is_empty());
    data.map(|frame| {
        let start = frame.header.seq.wrapping_sub(from) as usize;
        start..start + frame.payload.len()
    })
    .collect()
}

/// All packets arrive from here on; earlier out-of-order data follows `got`.
fn finish(net: &mut Net, raw: &mut Raw, mut got: Vec<u8>, total: usize) {
    let start = raw.ack.wrapping_sub(got.len() as u32);
    for _ in 0..1000 {
        net.pass(Duration::from_millis(20));
        for frame in net.drain() {
            let at = frame.header.seq.wrapping_sub(start) as usize;
            if at <= got.len() && at + frame.payload.len() > got.len() {
                got.extend(&frame.payload[got.len() - at..]);
            }
        }
        raw.ack = start.wrapping_add(got.len() as u32);
        raw.send(net, ACK, b"");
        if got.len() == total {
            break;
        }
    }
    assert!(got == pattern(0, total), "{} of {total}", got.len());
    net.healthy();
}

#[test]
fn a_hole_is_filled_at_once() {
    let (mut net, mut raw, _stream) = sending(one_packet_each(), 400_000);
    let begin = raw.ack;
    let (una, seen) = flight(&mut net, &mut raw, 12);
    let got = una.wrapping_sub(begin) as usize;
    // The third and the fourth are lost.
    raw.take(&seen[..2]);
    let hole = 0..2 * MSS;
    sack(&net, &raw, &[(2 * MSS, 3 * MSS)]);
    sack(&net, &raw, &[(2 * MSS, 4 * MSS)]);
    let new = places(&net.seen(), raw.ack);
    assert!(
        new.iter().all(|place| place.start >= hole.end),
        "they may still arrive: {new:?}"
    );
    sack(&net, &raw, &[(2 * MSS, 6 * MSS)]);
    let again = places(&net.seen(), raw.ack);
    // RFC 6937bis: seven tenths of the delivered bytes.
    assert_eq!((again.len(), &again[0]), (1, &(0..MSS)));
    sack(&net, &raw, &[(2 * MSS, 8 * MSS)]);
    assert_eq!(places(&net.seen(), raw.ack)[0], MSS..2 * MSS);
    // No time has passed, and none is needed.
    raw.ack = una.wrapping_add((12 * MSS) as u32);
    raw.send(&net, ACK, b"");
    let got = pattern(0, got + 12 * MSS);
    finish(&mut net, &mut raw, got, 400_000);
}

#[test]
fn a_large_packet_that_is_lost_is_sent_again_in_large_ones() {
    let (mut net, mut raw, _stream) = sending(memory::Config::default(), 900_000);
    let begin = raw.ack;
    // Frames of many segments.
    let mut una = raw.ack;
    let mut lost = 0;
    for _ in 0..200 {
        let seen = net.seen();
        let large = |frame: &Seen| frame.payload.len() >= 8 * MSS;
        if let [first, second, ..] = &seen[..]
            && large(first)
            && large(second)
        {
            una = raw.ack;
            lost = first.payload.len();
            sack(&net, &raw, &[(lost, lost + second.payload.len())]);
            break;
        }
        // Acknowledged as separate segments: the window grows by one for each.
        let end = raw.ack.wrapping_add(raw.clone().take(&seen).len() as u32);
        while raw.ack != end {
            let left = end.wrapping_sub(raw.ack);
            raw.ack = raw.ack.wrapping_add(left.min(MSS as u32));
            raw.send(&net, ACK, b"");
        }
    }
    assert!(lost > 0, "no large packets");
    let again = places(&net.seen(), una);
    let first = again.iter().find(|place| place.start == 0).unwrap();
    assert!(first.len() > MSS && first.end <= lost, "{again:?}");
    let got = pattern(0, una.wrapping_sub(begin) as usize);
    finish(&mut net, &mut raw, got, 900_000);
}

#[test]
fn impossible_acknowledgements_are_refused() {
    let (mut net, mut raw, _stream) = sending(one_packet_each(), 400_000);
    let begin = raw.ack;
    let (una, seen) = flight(&mut net, &mut raw, 12);
    let sent = places(&seen, una).last().unwrap().end;
    let nonsense = [(sent + 100, sent + 10_000), (5000, sent + 1), (9000, 3000)];
    sack(&net, &raw, &nonsense);
    let places = places(&net.seen(), una);
    assert!(places.iter().all(|place| place.start >= sent), "{places:?}");
    let got = pattern(0, una.wrapping_sub(begin) as usize);
    let in_flight = seen.iter().flat_map(|frame| frame.payload.clone());
    let got = got.into_iter().chain(in_flight).collect::<Vec<_>>();
    raw.ack = begin.wrapping_add(got.len() as u32);
    finish(&mut net, &mut raw, got, 400_000);
}

/// An acknowledgement may arrive with duplicate data, in the batch in which a loss is reported.
#[test]
fn an_acknowledgement_with_duplicate_data_counts() {
    let (mut net, mut raw, _stream) = sending(one_packet_each(), 400_000);
    let begin = raw.ack;
    raw.send_data(&net, b"question");
    let (una, _) = flight(&mut net, &mut raw, 12);
    let got = una.wrapping_sub(begin) as usize + 4 * MSS;
    sack(&net, &raw, &[(4 * MSS, 9 * MSS)]);
    raw.ack = una.wrapping_add((4 * MSS) as u32);
    raw.send_at(&net, -8, ACK, b"question");
    let again = places(&net.seen(), una);
    assert!(
        again.iter().all(|place| place.start >= 4 * MSS),
        "{again:?}"
    );
    // Later segments are not acknowledged, so there is a tail loss probe.
    net.pass(Duration::from_millis(150));
    net.healthy();
    let got = pattern(0, got);
    finish(&mut net, &mut raw, got, 400_000);
}

/// The last segments of all are lost.
#[test]
fn a_lost_end_is_sent_again_soon() {
    let total = 100 * MSS;
    let (mut net, mut raw, _stream) = sending(one_packet_each(), total);
    let begin = raw.ack;
    let mut frames = Vec::new();
    // Round trips of 5 ms.
    for _ in 0..100 {
        net.pass(Duration::from_millis(5));
        frames = net.drain();
        let behind = raw.ack.wrapping_sub(begin) as usize;
        let sent: usize = frames.iter().map(|frame| frame.payload.len()).sum();
        if behind + sent == total {
            break;
        }
        raw.take(&frames);
        raw.send(&net, ACK, b"");
    }
    assert!(frames.len() >= 4, "{}", frames.len());
    let una = raw.ack;
    let lost = places(&frames, una).last().unwrap().end;
    // RFC 8985 7.2: two round trips. They are paced, so the last RTT samples are less than 5 ms.
    assert!(net.drain().is_empty());
    net.pass(Duration::from_millis(2));
    assert_eq!(
        places(&net.drain(), una),
        [Range {
            start: lost - MSS,
            end: lost
        }]
    );
    sack(&net, &raw, &[(lost - MSS, lost)]);
    let again = places(&net.seen(), una);
    let sum: usize = again.iter().map(Range::len).sum();
    // The first at once, the others as data is delivered (RFC 6937bis).
    assert_eq!((again[0].start, sum), (0, (lost - MSS).min(MSS)));
    let got = pattern(0, una.wrapping_sub(begin) as usize);
    finish(&mut net, &mut raw, got, total);
}
