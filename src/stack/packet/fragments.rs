//! Fragments: what becomes whole, what is dropped, and who is told. RFC 791 3.2, 8200 4.5, 5722, 6946, 1858,
//! 7112, 3168 5.3.

use super::datagrams::*;
use super::*;

/// A packet in fragments with so many bytes of payload each.
fn cut(v6: bool, id: u32, packet: &[u8], size: usize) -> Vec<Vec<u8>> {
    let (header_len, protocol) = if v6 { (40, packet[6]) } else { (20, packet[9]) };
    let payload = &packet[header_len..];
    let part = |at: usize| {
        let end = (at + size).min(payload.len());
        fragment(
            v6,
            protocol,
            (id, at, end < payload.len()),
            &payload[at..end],
        )
    };
    (0..payload.len()).step_by(size).map(part).collect()
}

fn pong(v6: bool, rest: &[u8]) -> Said {
    Said {
        kind: if v6 { 129 } else { 0 },
        code: 0,
        word: ip::be32(rest, 0),
        rest: rest[4..].to_vec(),
    }
}

#[test]
fn a_ping_in_fragments_is_answered() {
    for v6 in [false, true] {
        for reversed in [false, true] {
            let mut net = Net::new();
            let rest = pattern(0, 1200);
            let mut parts = cut(v6, 7, &ping(v6, &rest), 104);
            if reversed {
                parts.reverse();
            }
            let (last, parts_before) = parts.split_last().unwrap();
            for part in parts_before {
                net.raw(part);
                net.raw(part);
            }
            assert!(net.packets().is_empty());
            assert!(net.stack.stats().fragment_memory > 1000);
            net.raw(last);
            assert_eq!(net.said(), [pong(v6, &rest)], "{v6} {reversed}");
            let stats = net.stack.stats();
            assert_eq!(stats.frames_fragments, 2 * parts.len() as u64 - 1);
            assert_eq!((stats.packets_reassembled, stats.fragment_memory), (1, 0));
        }
    }
}

#[test]
fn a_segment_in_fragments_is_as_any_other() {
    for v6 in [false, true] {
        let mut net = Net::new();
        let listener =
            TcpListener::bind(&net.stack, if v6 { "[::]:80" } else { "0.0.0.0:80" }).unwrap();
        listener.set_nonblocking(true);
        let mut raw = Raw::new(5000);
        (raw.from.0, raw.to.0) = addresses(v6);
        raw.handshake(&mut net);
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true);
        for (id, size) in [(1, 24), (2, 400), (3, 1000)] {
            let text = pattern(id, 1200);
            let header = Header {
                seq: raw.seq,
                ack: raw.ack,
                flags: ACK | PSH,
                window: 60_000,
                options: SynOptions::default(),
            };
            let mut out = [0; MAX_CANONICAL];
            let len = wire::compose(&mut out, raw.from, raw.to, &header, text.len());
            wire::finish(
                &mut out[..len],
                if v6 { 40 } else { 20 },
                std::iter::once(&text[..]),
                false,
            );
            let packet = [&out[..len], &text].concat();
            for part in cut(v6, id as u32, &packet, size).iter().rev() {
                net.raw(part);
            }
            net.turn();
            assert_eq!(read(&stream), text);
            raw.seq = raw.seq.wrapping_add(text.len() as u32);
        }
        // One byte of one fragment, and TCP's checksum does not hold.
        let header = Header {
            seq: raw.seq,
            ack: raw.ack,
            flags: ACK | PSH,
            window: 60_000,
            options: SynOptions::default(),
        };
        let mut out = [0; MAX_CANONICAL];
        let len = wire::compose(&mut out, raw.from, raw.to, &header, 100);
        wire::finish(
            &mut out[..len],
            if v6 { 40 } else { 20 },
            std::iter::once(&[7; 100][..]),
            false,
        );
        let mut parts = cut(v6, 9, &[&out[..len], &[7; 100]].concat(), 48);
        *parts[1].last_mut().unwrap() ^= 1;
        parts.iter().for_each(|part| net.raw(part));
        net.turn();
        assert!(read(&stream).is_empty());
        assert_eq!(net.stack.stats().frames_bad_checksum, 1);
        net.healthy();
    }
}

/// RFC 8200 4.5, RFC 7112 5; in IPv4 nobody is told.
#[test]
fn fragments_that_make_no_sense_are_dropped_and_their_source_is_told() {
    let udp = |len| vec![0; len];
    let tcp = pattern(0, 16);
    // Protocol, offset, more, payload; code and pointer.
    let rows = [
        (UDP, 0, true, udp(20), Some((0, 4))),
        (UDP, 80, true, udp(7), Some((0, 4))),
        (UDP, 65_528, false, udp(8), Some((0, 42))),
        (UDP, 65_000, true, udp(1000), Some((0, 42))),
        (6, 0, true, tcp, Some((3, 0))),
        (UDP, 8, true, udp(0), None),
        (UDP, 8, false, udp(0), None),
        (UDP, 0, true, udp(0), None),
    ];
    for v6 in [false, true] {
        for (protocol, offset, more, payload, told) in &rows {
            let mut net = Net::new();
            let part = fragment(v6, *protocol, (1, *offset, *more), payload);
            net.raw(&part);
            let said = net.said();
            let told = told.filter(|_| v6);
            let heard = said.first().map(|said| (said.code, said.word));
            assert_eq!(
                (heard, said.len()),
                (told, usize::from(told.is_some())),
                "{v6} {offset}"
            );
            assert!(
                said.iter()
                    .all(|said| said.kind == 4 && said.rest == part[..said.rest.len()])
            );
            let stats = net.stack.stats();
            assert_eq!((stats.frames_malformed, stats.fragment_memory), (1, 0));
        }
    }
}

/// RFC 7112 5: all headers are in the first fragment, wherever they lie in memory.
#[test]
fn a_first_fragment_has_all_headers() {
    let options: &[u8] = &[6, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let payload = [options, &[7; 30]].concat();
    for (first, told) in [(8, true), (16, true), (32, true), (40, false)] {
        for split in [false, true] {
            let mut net = Net::new();
            for (at, part) in [(0, &payload[..first]), (first, &payload[first..])] {
                let packet = fragment(true, 60, (1, at, at == 0), part);
                let cut = if split { 48 } else { packet.len() };
                let parts = [&packet[..cut], &packet[cut..]].map(Buf::copy_of);
                let sent = Packet::new(&parts[0], &parts[1..], 40);
                net.wire.transmit(&sent).unwrap();
            }
            let heard = net
                .packets()
                .iter()
                .map(|one| said(one))
                .collect::<Vec<_>>();
            assert_eq!(heard.len(), usize::from(told), "{first} {split}");
            assert!(heard.iter().all(|said| (said.kind, said.code) == (4, 3)));
            let whole = u64::from(!told);
            assert_eq!(net.stack.stats().packets_reassembled, whole);
        }
    }
    // A fragment in a fragment is none (RFC 8200 4.1).
    let mut net = Net::new();
    let inner = [&[6, 0, 0, 1, 0, 0, 0, 9][..], &[7; 32]].concat();
    net.raw(&fragment(true, 44, (1, 0, true), &inner));
    assert_eq!(net.said()[0].code, 3);
}

/// RFC 5722 4: what overlaps is dropped with all of its packet, and in IPv6 also what comes later.
#[test]
fn overlaps_drop_the_packet() {
    for v6 in [false, true] {
        let rest = pattern(0, 72);
        let whole = ping(v6, &rest);
        let parts = cut(v6, 7, &whole, 24);
        let payload = &whole[if v6 { 40 } else { 20 }..];
        let icmp = icmp_protocol(v6);
        let evil = [
            (
                "a byte differs",
                fragment(
                    v6,
                    icmp,
                    (7, 0, true),
                    &[&[payload[0]], &payload[2..25]].concat(),
                ),
            ),
            (
                "shorter",
                fragment(v6, icmp, (7, 24, true), &payload[24..40]),
            ),
            ("longer", fragment(v6, icmp, (7, 0, true), &payload[..32])),
            (
                "in the middle",
                fragment(v6, icmp, (7, 16, true), &payload[16..40]),
            ),
            (
                "beyond the end",
                fragment(v6, icmp, (7, 160, true), &[0; 8]),
            ),
            (
                "another end",
                fragment(v6, icmp, (7, 64, false), &payload[64..72]),
            ),
            (
                "the same without an end",
                fragment(v6, icmp, (7, 72, true), &payload[72..76].repeat(2)),
            ),
        ];
        for (name, evil) in evil {
            let mut net = Net::new();
            let order = [&parts[0], &parts[1], &parts[3], &evil, &parts[2]];
            order.into_iter().for_each(|part| net.raw(part));
            assert!(net.packets().is_empty(), "{v6} {name}");
            assert_eq!(net.stack.stats().reassembly_overlaps, 1, "{v6} {name}");
            // All of it once more, within the time: IPv4 soon has another packet with its number.
            parts.iter().for_each(|part| net.raw(part));
            let answers = net.packets().len();
            assert_eq!(answers, usize::from(!v6), "{v6} {name}");
            if v6 {
                net.pass(Duration::from_secs(31));
                assert!(net.packets().is_empty(), "no error is sent (RFC 8200 4.5)");
                parts.iter().for_each(|part| net.raw(part));
                assert_eq!(net.said().len(), 1, "{name}");
            }
        }
    }
}

/// RFC 792, RFC 8200 4.5: code 1, with the first fragment, if that has come.
#[test]
fn the_source_of_what_stays_incomplete_is_told() {
    for v6 in [false, true] {
        for (first, told) in [(true, 1), (false, 0)] {
            let mut net = Net::new();
            let parts = cut(v6, 7, &ping(v6, &pattern(0, 132)), 48);
            let part = if first { &parts[0] } else { &parts[1] };
            net.raw(part);
            net.pass(Duration::from_millis(29_900));
            assert!(net.packets().is_empty());
            assert_eq!(net.stack.stats().reassembly_timeouts, 0);
            net.pass(Duration::from_millis(200));
            let said = net.said();
            assert_eq!(said.len(), told);
            let kind = if v6 { 3 } else { 11 };
            assert!(
                said.iter()
                    .all(|said| (said.kind, said.code, &said.rest) == (kind, 1, part))
            );
            let stats = net.stack.stats();
            assert_eq!((stats.reassembly_timeouts, stats.fragment_memory), (1, 0));
            // What comes now is of another packet.
            net.raw(if first { &parts[1] } else { &parts[0] });
            assert!(net.packets().is_empty());
        }
    }
}

/// The time is from the first fragment that comes, however many follow.
#[test]
fn fragments_do_not_prolong_the_time() {
    let mut net = Net::new();
    let parts = cut(true, 7, &ping(true, &pattern(0, 392)), 40);
    for part in &parts[..9] {
        net.raw(part);
        net.pass(Duration::from_secs(4));
    }
    assert_eq!(net.stack.stats().reassembly_timeouts, 1);
}

/// RFC 6946 4: a packet in one fragment is nobody else's.
#[test]
fn an_atomic_fragment_is_by_itself() {
    let mut net = Net::new();
    let rest = pattern(0, 132);
    let parts = cut(true, 7, &ping(true, &rest), 48);
    let (peer, own) = addresses(true);
    let alone = message((peer, own), 128, 0, b"\0\x09\0\x09alone");
    net.raw(&parts[0]);
    net.raw(&fragment(true, 58, (7, 0, false), &alone));
    assert_eq!(net.said(), [pong(true, b"\0\x09\0\x09alone")]);
    net.raw(&parts[1]);
    net.raw(&parts[2]);
    assert_eq!(net.said(), [pong(true, &rest)]);
    assert_eq!(net.stack.stats().frames_fragments, 3);
}

/// RFC 791 3.2: addresses, protocol and identification. RFC 8200 4.5: not the protocol.
#[test]
fn fragments_of_other_packets_are_kept_apart() {
    for v6 in [false, true] {
        let mut net = Net::new();
        let rest = pattern(0, 132);
        let parts = cut(v6, 7, &ping(v6, &rest), 48);
        let others = [
            cut(v6, 8, &ping(v6, &pattern(9, 132)), 48).remove(0),
            fragment(v6, NOBODY_S, (7, 0, true), &[0; 48]),
        ];
        net.raw(&parts[1]);
        net.raw(&others[0]);
        if !v6 {
            net.raw(&others[1]);
        }
        net.raw(&parts[2]);
        net.raw(&parts[0]);
        assert_eq!(net.said(), [pong(v6, &rest)], "{v6}");
    }
}

/// RFC 3168 5.3.
#[test]
fn marks_of_fragments_are_combined() {
    // Codepoints of two fragments, and of the whole; none: it is dropped.
    let rows = [
        ((0, 0), Some(0)),
        ((2, 2), Some(2)),
        ((2, 3), Some(3)),
        ((3, 2), Some(3)),
        ((3, 1), Some(3)),
        ((3, 3), Some(3)),
        ((0, 3), None),
        ((3, 0), None),
        ((2, 1), Some(2)),
    ];
    for v6 in [false, true] {
        for ((one, other), whole) in rows {
            let offered = Arc::<Mutex<Vec<u8>, LEAF>>::default();
            let kept = offered.clone();
            let mut net = Net::with(one_packet_each(), |builder| {
                builder.on_unhandled(move |frame| {
                    let shift = if frame.head[0] >> 4 == 4 { 0 } else { 4 };
                    kept.lock().push(frame.head[1] >> shift & 3);
                    true
                })
            });
            for (at, codepoint) in [(0, one), (8, other)] {
                let mut part = fragment(v6, NOBODY_S, (1, at, at == 0), &[0; 8]);
                part[1] |= codepoint << if v6 { 4 } else { 0 };
                sum_header(&mut part);
                net.raw(&part);
            }
            net.turn();
            assert_eq!(*offered.lock(), Vec::from_iter(whole), "{v6} {one} {other}");
            assert_eq!(
                net.stack.stats().frames_malformed,
                u64::from(whole.is_none())
            );
        }
    }
}

/// A flood of packets that never become whole: memory is bounded, and others are answered.
#[test]
fn a_flood_of_fragments_harms_no_other() {
    let mut net = Net::new();
    let listener = net.listen(80);
    let rest = pattern(0, 1000);
    let parts = cut(false, 7, &ping(false, &rest), 504);
    net.raw(&parts[0]);
    net.turn();
    for id in 0..20_000u32 {
        let from = IpAddr::from([10, 0, 0, 66]);
        let ends = (from, addresses(false).1);
        let part = fragment_from(ends, UDP, (id, 8, true), &[0; 1400]);
        net.raw(&part);
        if id % 1000 == 0 {
            net.turn();
            assert!(net.stack.stats().fragment_memory <= (4 << 20) / 8 + 4096);
        }
    }
    let mut raw = Raw::new(5000);
    raw.handshake(&mut net);
    assert!(listener.accept().is_ok());
    net.drain();
    net.raw(&parts[1]);
    assert_eq!(net.said(), [pong(false, &rest)]);
    assert!(net.stack.stats().reassembly_evicted > 19_000);
    net.pass(Duration::from_secs(31));
    assert_eq!(net.stack.stats().fragment_memory, 0);
    net.healthy();
}

/// Fragments come by any queue of a link.
#[test]
fn a_stack_that_goes_down_forgets_fragments() {
    let mut net = Net::new();
    net.raw(&cut(true, 7, &ping(true, &pattern(0, 132)), 48)[0]);
    net.turn();
    assert!(net.stack.stats().fragment_memory > 0);
    drop(net.driver);
    assert_eq!(net.stack.stats().fragment_memory, 0);
}
