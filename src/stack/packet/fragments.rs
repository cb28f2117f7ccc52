//! Fragments: what becomes whole, what is dropped, and who is told. RFC 791 3.2, 8200 4.5, 5722, 6946, 1858,
//! 7112, 3168 5.3.

use super::datagrams::*;
use super::*;
use crate::ip::fragment::{Progress, fragment as into_fragments};
use crate::ip::reassembly::{Added, Reassembler};
use std::sync::atomic::Ordering;

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

/// Puts what a stack has sent together: packets as they were before they were cut.
fn joined(packets: &[Vec<u8>], mtu: usize) -> Vec<Vec<u8>> {
    let (now, mut all) = (SystemClock.now(), Vec::new());
    let mut reassembler = Reassembler::default();
    for packet in packets {
        assert!(packet.len() <= mtu, "{} bytes", packet.len());
        let mut frame = crate::link::Frame::new(packet);
        match ip::parse(&mut frame) {
            Ok(_) => all.push(packet.clone()),
            Err(ip::Malformed::Fragment) => {
                if let Added::Whole(whole) = reassembler.add(frame, now) {
                    all.push(whole.to_vec());
                }
            }
            Err(why) => panic!("{why:?}"),
        }
    }
    assert!(reassembler.is_empty());
    all
}

/// RFC 1122 3.2.2.6, RFC 4443 4.2: all that was asked comes back, in packets of the size that the link, the route
/// and the path take.
#[test]
fn a_large_ping_is_answered_in_fragments() {
    let route = |net, mtu| (net, Route::LINK.with_mtu(mtu));
    for v6 in [false, true] {
        for (rest, mtu) in [(1480, 1500), (4000, 1400), (60_000, 1500), (65_503, 1300)] {
            let mut net = Net::new();
            net.stack
                .set_routes([
                    route("10.0.0.0/24".parse().unwrap(), mtu),
                    route("fd00::/64".parse().unwrap(), mtu),
                ])
                .unwrap();
            let rest = pattern(0, rest);
            let ping = ping(v6, &rest);
            for part in cut(v6, 7, &ping, 1432) {
                net.raw(&part);
            }
            let packets = net.packets();
            assert!(packets.len() > 1);
            let all = joined(&packets, mtu);
            assert_eq!(all.len(), 1);
            assert_eq!(said(&all[0]), pong(v6, &rest), "{v6} {}", rest.len());
        }
    }
}

/// What is smaller than the MTU is not cut, and may not be on its way.
#[test]
fn a_small_answer_is_one_packet() {
    for v6 in [false, true] {
        let mut net = Net::new();
        let headers = if v6 { 44 } else { 24 };
        for len in [4, 500, 1500 - headers] {
            let rest = pattern(0, len);
            net.raw(&ping(v6, &rest));
            let packets = net.packets();
            assert_eq!((packets.len(), packets[0].len()), (1, headers + len));
            assert!(v6 || packets[0][4..8] == [0, 0, 0x40, 0], "RFC 6864 4.1");
            assert_eq!(said(&packets[0]), pong(v6, &rest));
        }
    }
}

fn two(config: memory::Config) -> [(Stack, Driver); 2] {
    let (a, b) = memory::pair(config);
    let build = |link, last: u8| {
        let v4 = format!("10.0.0.{last}/24").parse().unwrap();
        let v6 = format!("fd00::{last}/64").parse().unwrap();
        let builder = Stack::builder(link).address(v4).address(v6);
        builder.build_with_driver().unwrap()
    };
    [build(a, 1), build(b, 2)]
}

/// Also over a link that is full after a few fragments, which cannot take a whole datagram at any time.
#[test]
fn the_largest_datagram_crosses_a_link_that_is_often_full() {
    for frames in [3, 256] {
        let [(a, mut drives_a), (b, mut drives_b)] = two(one_packet_each().frames(frames));
        for (from, to, largest) in [
            ("10.0.0.1:0", "10.0.0.2:9", 65_507),
            ("[fd00::1]:0", "[fd00::2]:9", 65_527),
        ] {
            let sender = UdpSocket::bind(&a, from).unwrap();
            let receiver = UdpSocket::bind(&b, to).unwrap();
            receiver.set_nonblocking(true);
            for len in [1472, 1473, 9000, largest] {
                let bytes = pattern(len, len);
                assert_eq!(sender.send_to(&bytes, to).unwrap(), len);
                let mut got = vec![0; 70_000];
                let mut found = None;
                for _ in 0..1000 {
                    drives_b.poll().unwrap();
                    drives_a.poll().unwrap();
                    found = receiver.recv_from(&mut got).ok();
                    if found.is_some() {
                        break;
                    }
                }
                let (count, peer) = found.expect("it arrives");
                assert_eq!(peer, sender.local_addr().to_string().parse().unwrap());
                assert!(got[..count] == bytes, "{frames} {len}");
            }
        }
        let stats = b.stats();
        assert_eq!(stats.packets_reassembled, 7, "IPv6's headers are longer");
        assert_eq!((stats.fragment_memory, stats.reassembly_evicted), (0, 0));
    }
}

/// A link that cuts packets on their way, as a router before a narrow link does.
#[derive(Debug)]
struct Narrow(MemoryLink, AtomicUsize);

impl Link for Narrow {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    fn receive(
        &self,
        frames: &mut Vec<crate::link::Frame>,
        max: usize,
    ) -> Result<usize, crate::link::ReceiveError> {
        self.0.receive(frames, max)
    }
    fn transmit(&self, packet: &Packet<'_>) -> Result<(), crate::link::TransmitError> {
        if packet.len() <= 576 {
            return self.0.transmit(packet);
        }
        let number = self.1.fetch_add(1, Ordering::Relaxed) as u32;
        let mut progress = Progress::new(number);
        let mut all = Vec::new();
        into_fragments(packet, 576, &mut progress, |part| {
            all.push((part.header.to_vec(), part.payload.to_vec()));
            Ok::<_, ()>(())
        })
        .unwrap();
        // Late and in disorder, but for a link that is full.
        all.reverse();
        for (header, payload) in &all {
            self.0.transmit(&Packet::new(header, payload, 20))?;
        }
        Ok(())
    }
    fn wait(&self, interest: crate::link::Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.0.wait(interest, deadline)
    }
    fn wake(&self) {
        self.0.wake();
    }
}

/// Connections over a path that cuts every full segment in both directions.
#[test]
fn connections_stand_what_routers_cut() {
    let mut config = one_packet_each().frames(100_000).bytes(64 << 20);
    config.capabilities.checksum = false;
    let (a, b) = memory::pair(config);
    let build = |link, last: u8| {
        let v4 = format!("10.0.0.{last}/24").parse().unwrap();
        let v6 = format!("fd00::{last}/64").parse().unwrap();
        let link = Narrow(link, AtomicUsize::new(0));
        let builder = Stack::builder(link).address(v4).address(v6);
        builder.build_with_driver().unwrap()
    };
    let [(a, mut drives_a), (b, mut drives_b)] = [build(a, 1), build(b, 2)];
    for to in ["10.0.0.2:80", "[fd00::2]:80"] {
        let listener = TcpListener::bind(&b, to).unwrap();
        listener.set_nonblocking(true);
        let mut sender = TcpSocket::new(&a).start(to.parse().unwrap()).unwrap();
        sender.set_nonblocking(true);
        let text = pattern(7, 300_000);
        let (mut sent, mut got, mut receiver) = (0, Vec::new(), None);
        for _ in 0..100_000 {
            drives_a.poll().unwrap();
            drives_b.poll().unwrap();
            if receiver.is_none() {
                receiver = listener.accept().ok().map(|(stream, _)| stream);
                receiver.iter().for_each(|one| one.set_nonblocking(true));
            }
            sent += sender.write(&text[sent..]).unwrap_or(0);
            got.extend(receiver.iter().flat_map(read));
            if got.len() == text.len() {
                break;
            }
        }
        assert!(got == text, "{to}: {} of {sent}", got.len());
    }
    let stats = b.stats();
    assert!(stats.packets_reassembled >= 400, "{stats:?}");
    assert_eq!(stats.segments_refused + stats.frames_bad_checksum, 0);
    assert_eq!((stats.reassembly_overlaps, stats.broken), (0, 0));
}

/// RFC 8201 4: a router's report quotes the first fragment, with its fragment header. IPv4's routers cut fragments
/// again.
#[test]
fn a_report_about_a_fragment_lowers_the_path_mtu() {
    let mut net = Net::new();
    let socket = UdpSocket::bind(&net.stack, "[fd00::1]:9").unwrap();
    let bytes = pattern(0, 4000);
    let send = |net: &mut Net, mtu| {
        socket.send_to(&bytes, "[fd00::2]:9").unwrap();
        let packets = net.packets();
        let all = joined(&packets, mtu);
        assert!(all.len() == 1 && all[0].ends_with(&bytes));
        packets
    };
    let packets = send(&mut net, 1500);
    assert_eq!(packets[0].len(), 1496);
    let report = |about: &[u8]| {
        let quote = [&1300u32.to_be_bytes(), &about[..1200]].concat();
        datagram(true, 58, &message(addresses(true), 2, 0, &quote))
    };
    net.raw(&report(&packets[1]));
    net.turn();
    assert_eq!(
        send(&mut net, 1500)[0].len(),
        1496,
        "a later one does not show its ports"
    );
    net.raw(&report(&packets[0]));
    net.turn();
    assert_eq!(send(&mut net, 1300)[0].len(), 1296);
}
