//! Bad datagrams: dropped, counted by reason, and nothing else is harmed.

use super::*;

/// What has been counted: malformed, wrong checksums, bad addresses, for others.
fn counted(net: &Net) -> [u64; 4] {
    let stats = net.stack.stats();
    [
        stats.frames_malformed,
        stats.frames_bad_checksum,
        stats.frames_bad_address,
        stats.frames_stray,
    ]
}

const ENDS: [(&str, &str); 2] = [("10.0.0.2:9", "10.0.0.1:7"), ("[fd00::2]:9", "[fd00::1]:7")];

/// A packet with other bytes in the UDP header, whose checksum is right but for that.
fn patched((from, to): (&str, &str), at: usize, value: u16, sum: bool) -> Vec<u8> {
    let mut packet = datagram_of(from, to, b"payload!");
    let udp = packet.len() - 16;
    packet[udp + at..udp + at + 2].copy_from_slice(&value.to_be_bytes());
    if sum {
        let ends = (self::at(from).ip(), self::at(to).ip());
        packet[udp + 6..udp + 8].fill(0);
        let len = usize::from(ip::be16(&packet, udp + 4));
        let mut sum = ip::header::pseudo_header(ends.0, ends.1, UDP, len);
        sum.add_bytes(&packet[udp..packet.len().min(udp + len)]);
        packet[udp + 6..udp + 8].copy_from_slice(&sum.checksum());
    }
    packet
}

#[test]
fn each_kind_is_counted_and_nothing_is_received() {
    for ends in ENDS {
        let mut net = Net::new();
        let socket = net.bound(ends.1);
        let listener = net.flows(Intercept::all(), FlowOptions::default());
        let v6 = ends.0.starts_with('[');
        let mut expected = [0; 4];
        let mut check = |packet: &[u8], reason: usize, what: &str| {
            net.raw(packet);
            net.turn();
            expected[reason] += 1;
            assert_eq!(counted(&net), expected, "{what}");
            assert_eq!(received(&socket), None, "{what}");
        };
        for len in [0, 1, 7] {
            check(&patched(ends, 4, len, true), 0, "shorter than its header");
        }
        for len in [17, 1000, u16::MAX] {
            check(&patched(ends, 4, len, true), 0, "longer than the packet");
        }
        check(&patched(ends, 2, 0, true), 2, "to port 0");
        check(&patched(ends, 6, 0x1234, false), 1, "the checksum is wrong");
        if v6 {
            check(&patched(ends, 6, 0, false), 1, "no checksum, RFC 8200 8.1");
        }
        let mut damaged = datagram_of(ends.0, ends.1, b"payload!");
        *damaged.last_mut().unwrap() ^= 1;
        check(&damaged, 1, "a byte is wrong");
        // An IP packet with less than a header in it.
        for len in 0..8 {
            let ends = (at(ends.0).ip(), at(ends.1).ip());
            let short = from_to(
                ends,
                UDP,
                &datagram_of("10.0.0.2:9", "10.0.0.1:7", b"")[20..20 + len],
            );
            check(&short, 0, "no room for a header");
        }
        assert!(accepted(&listener).is_none());
        assert_eq!(net.sent(), [], "none of it is answered");
        let stats = net.stack.stats();
        assert_eq!((stats.datagrams_received, stats.flows), (0, 0));
        // The socket is as good as before.
        net.arrives(ends.0, ends.1, b"good");
        assert_eq!(received(&socket).unwrap().0, b"good");
    }
}

/// RFC 768: over IPv4 the sender may do without.
#[test]
fn no_checksum_is_none_over_ipv4() {
    let mut net = Net::new();
    let socket = net.bound(ENDS[0].1);
    net.raw(&patched(ENDS[0], 6, 0, false));
    net.turn();
    assert_eq!(received(&socket).unwrap().0, b"payload!");
}

/// What lies behind the UDP datagram in its IP packet, or behind that in its frame, is no part of it (Linux cuts
/// it off).
#[test]
fn bytes_behind_a_datagram_are_no_part_of_it() {
    for ends in ENDS {
        let mut net = Net::new();
        let socket = net.bound(ends.1);
        net.raw(&patched(ends, 4, 12, true));
        let mut padded = datagram_of(ends.0, ends.1, b"four");
        padded.extend([0; 18]);
        net.raw(&padded);
        net.raw(&patched(ends, 4, 8, true));
        net.turn();
        assert_eq!(received(&socket).unwrap().0, b"payl");
        assert_eq!(received(&socket).unwrap().0, b"four");
        assert_eq!(received(&socket).unwrap().0, b"");
        assert_eq!(counted(&net), [0; 4]);
    }
}

#[test]
fn a_frame_that_ends_early_is_dropped() {
    for ends in ENDS {
        let mut net = Net::new();
        let socket = net.bound(ends.1);
        let whole = datagram_of(ends.0, ends.1, b"payload!");
        for len in 1..whole.len() {
            net.raw(&whole[..len]);
        }
        net.turn();
        assert_eq!(received(&socket), None);
        assert_eq!(counted(&net)[0], whole.len() as u64 - 1);
        assert_eq!(net.sent(), []);
    }
}

/// RFC 1122 4.1.3.1 and 3.2.2: groups and broadcasts reach no socket here, and draw no error.
#[test]
fn nothing_for_many_is_answered() {
    let mut net = Net::new();
    let socket = net.bound("0.0.0.0:7");
    let listener = net.flows(Intercept::all(), FlowOptions::default());
    for to in [
        "10.0.0.255:7",
        "10.0.0.0:7",
        "255.255.255.255:7",
        "224.0.0.1:7",
        "239.1.2.3:9",
        "10.0.0.255:9",
        "[ff02::1]:7",
        "[ff0e::1]:9",
    ] {
        let from = if to.starts_with('[') {
            "[fd00::2]:9"
        } else {
            "10.0.0.2:9"
        };
        net.arrives(from, to, b"everyone");
        assert_eq!(received(&socket), None, "{to}");
    }
    assert!(accepted(&listener).is_none());
    assert_eq!(net.complete().len(), 0);
    assert_eq!(counted(&net), [0, 0, 0, 8]);
}

/// A super-frame is as many datagrams as it has segments: each with the same addresses, the last one shorter.
#[test]
fn a_super_frame_that_arrives_is_cut() {
    let config = one_packet_each();
    let config = memory::Config {
        capabilities: config
            .capabilities
            .datagrams_v4(65_535)
            .datagrams_v6(65_535),
        ..config
    };
    for ends in ENDS {
        let mut net = Net::with(config, |builder| builder);
        let socket = net.bound(ends.1);
        let all = pattern(0, 10_100);
        let whole = datagram_of(ends.0, ends.1, &all);
        let headers = whole.len() - all.len();
        let payload = [Buf::copy_of(&whole[headers..])];
        let ip_header_len = headers - 8;
        for size in [1000, 1200, 10_099, 10_100, 20_000] {
            let packet = Packet::new(&whole[..headers], &payload, ip_header_len);
            let packet = packet
                .checksum(Checksum::partial_udp(ip_header_len as u16))
                .segment(NonZeroU16::new(size));
            net.wire.transmit(&packet).unwrap();
            net.turn();
            for part in all.chunks(size.into()) {
                let (payload, from) = received(&socket).unwrap();
                assert!(payload == part, "{size}");
                assert_eq!(from, at(ends.0));
            }
            assert_eq!(received(&socket), None);
        }
        // To a closed port: as many datagrams that nothing received, one error.
        let closed = ends.1.replace(":7", ":8");
        let whole = datagram_of(ends.0, &closed, &all);
        let packet = Packet::new(&whole[..headers], &payload, ip_header_len)
            .checksum(Checksum::partial_udp(ip_header_len as u16))
            .segment(NonZeroU16::new(1000));
        net.wire.transmit(&packet).unwrap();
        assert_eq!(net.said().len(), 1);
        assert_eq!(net.stack.stats().datagrams_no_port, 11);
    }
}
