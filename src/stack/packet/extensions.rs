//! IPv6 extension headers: what is passed over, what is dropped, and who is told. RFC 8200 4.

use super::datagrams::*;
use super::*;
use crate::ip::extension::{MOST_BYTES, MOST_HEADERS};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const NO_NEXT_HEADER: u8 = 59;
const DESTINATION: u8 = 60;
const ICMP: u8 = 58;

/// A header of this kind without what it begins with, to be put before others.
type Extension<'a> = (u8, &'a [u8]);

/// Six bytes of padding, and a longer one.
const PAD: &[u8] = &[1, 4, 0, 0, 0, 0];
const PAD_14: &[u8] = &[0, 0, 1, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const NOTHING: &[u8] = &[0, 0, 0, 0, 0, 0];

/// A packet from the peer with these headers before its payload.
fn extended(headers: &[Extension<'_>], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    let kinds = headers
        .iter()
        .map(|(kind, _)| *kind)
        .skip(1)
        .chain([protocol]);
    for ((kind, body), next) in headers.iter().zip(kinds) {
        let units = match *kind {
            FRAGMENT => 0,
            _ => (body.len() + 2) / 8 - 1,
        };
        all.extend([next, units as u8]);
        all.extend_from_slice(body);
    }
    all.extend_from_slice(payload);
    let first = headers.first().map_or(protocol, |(kind, _)| *kind);
    datagram(true, first, &all)
}

fn ping_behind(headers: &[Extension<'_>]) -> Vec<u8> {
    let message = message(addresses(true), 128, 0, b"\0\x01\0\x02data");
    extended(headers, ICMP, &message)
}

const PONG: (u8, u8) = (129, 0);

/// What the stack answers to a ping with these headers: type, code and pointer of an error.
fn answer(net: &mut Net, packet: &[u8]) -> Option<(u8, u8, u32)> {
    net.raw(packet);
    let said = net.said();
    assert!(said.len() <= 1, "{said:?}");
    let said = said.first()?;
    if said.kind == PONG.0 {
        assert_eq!((said.word, &said.rest[..]), (0x1_0002, &b"data"[..]));
        return Some((said.kind, said.code, 0));
    }
    assert_eq!(said.rest, packet, "the quote");
    Some((said.kind, said.code, said.word))
}

/// RFC 8200 4.1 to 4.6, RFC 5095 3.
#[test]
fn what_asks_for_nothing_is_passed_over() {
    let router_alert: &[u8] = &[5, 2, 0, 0, 1, 0];
    let unknown: &[u8] = &[0x3e, 4, 9, 9, 9, 9];
    let rows: [&[Extension<'_>]; 10] = [
        &[(HOP_BY_HOP, PAD)],
        &[(HOP_BY_HOP, router_alert)],
        &[(DESTINATION, unknown)],
        &[(DESTINATION, PAD_14)],
        &[(DESTINATION, NOTHING)],
        // Segments left: none, whatever the type.
        &[(ROUTING, &[2, 0, 0, 0, 0, 0])],
        &[(ROUTING, &[0, 0, 0, 0, 0, 0])],
        // An atomic fragment (RFC 6946).
        &[(FRAGMENT, &[0, 0, 0, 0, 0, 7])],
        &[
            (HOP_BY_HOP, PAD),
            (DESTINATION, PAD),
            (ROUTING, &[4, 0, 0, 0, 0, 0]),
            (FRAGMENT, &[0, 0, 1, 2, 3, 4]),
            (DESTINATION, PAD),
        ],
        &[(DESTINATION, PAD); MOST_HEADERS],
    ];
    for headers in rows {
        let mut net = Net::new();
        let packet = ping_behind(headers);
        assert_eq!(
            answer(&mut net, &packet),
            Some((PONG.0, PONG.1, 0)),
            "{headers:?}"
        );
    }
}

/// TCP behind them: a handshake, and text.
#[test]
fn a_connection_whose_peer_sends_options_is_as_any_other() {
    let mut net = Net::new();
    let listener = TcpListener::bind(&net.stack, "[::]:80").unwrap();
    listener.set_nonblocking(true);
    let (peer, own) = addresses(true);
    let segment = |seq: u32, ack: u32, flags: u8, text: &[u8]| {
        let header = Header {
            seq,
            ack,
            flags,
            window: 1000,
            options: SynOptions::default(),
        };
        let mut out = [0; MAX_CANONICAL];
        let len = wire::compose(&mut out, (peer, 5000), (own, 80), &header, text.len());
        wire::finish(&mut out[..len], 40, std::iter::once(text), false);
        let tcp = [&out[40..len], text].concat();
        extended(&[(HOP_BY_HOP, PAD), (DESTINATION, PAD_14)], 6, &tcp)
    };
    net.raw(&segment(100, 0, SYN, b""));
    let theirs = net.one().header.seq.wrapping_add(1);
    net.raw(&segment(101, theirs, ACK, b""));
    // The headers of the last one lie in several buffers.
    let packet = segment(101, theirs, ACK, b"text");
    for cut in 1..packet.len() {
        let parts = [&packet[..cut], &packet[cut..]].map(Buf::copy_of);
        let sent = Packet {
            header: &parts[0],
            payload: &parts[1..],
            ip_header_len: 40,
            checksum: Checksum::Complete,
            segment: None,
        };
        net.wire.transmit(&sent).unwrap();
    }
    net.turn();
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true);
    assert_eq!(read(&stream), b"text");
    assert_eq!(
        net.stack.stats().segments_received as usize,
        2 + packet.len() - 40
    );
}

/// RFC 8200 4.2: the highest bits of an option's kind.
#[test]
fn an_unknown_option_says_what_becomes_of_its_packet() {
    for kind in [HOP_BY_HOP, DESTINATION] {
        for (option, told) in [
            (0x40, None),
            (0x7f, None),
            (0x80, Some((4, 2, 44))),
            (0xbf, Some((4, 2, 44))),
            (0xc0, Some((4, 2, 44))),
            (0xff, Some((4, 2, 44))),
        ] {
            let mut net = Net::new();
            let options: &[u8] = &[1, 0, option, 2, 9, 9];
            let packet = ping_behind(&[(kind, options)]);
            assert_eq!(answer(&mut net, &packet), told, "{kind} {option:x}");
            assert_eq!(net.stack.stats().frames_unsupported, 1);
        }
    }
}

/// RFC 8200 4.2: 10 is told of although the packet went to many, 11 is not.
#[test]
fn an_unknown_option_to_many() {
    let many = (addresses(true).0, "ff02::1".parse().unwrap());
    for (option, told) in [(0x40, 0), (0x80, 1), (0xc0, 0)] {
        let mut net = Net::new();
        net.raw(&from_to(
            many,
            DESTINATION,
            &[ICMP, 0, option, 4, 0, 0, 0, 0, 128, 0, 0, 0],
        ));
        let said = net.said();
        assert_eq!(said.len(), told, "{option:x}");
        assert!(
            said.iter()
                .all(|said| (said.kind, said.code, said.word) == (4, 2, 42))
        );
    }
}

/// RFC 8200 4.4: where the type is.
#[test]
fn a_route_that_is_not_at_its_end_is_refused() {
    for kind in [0, 2, 3, 4, 200] {
        let mut net = Net::new();
        let packet = ping_behind(&[(DESTINATION, PAD), (ROUTING, &[kind, 1, 0, 0, 0, 0])]);
        assert_eq!(answer(&mut net, &packet), Some((4, 0, 50)), "{kind}");
    }
}

/// RFC 8200 4, 4.3, 4.7.
#[test]
fn next_headers_that_are_none_of_ours() {
    let rows = [
        (AUTHENTICATION, Some((4, 1, 40))),
        (50, Some((4, 1, 40))),
        (NOBODY_S, Some((4, 1, 40))),
        (NO_NEXT_HEADER, None),
    ];
    for (next, told) in rows {
        let mut net = Net::new();
        let packet = extended(&[(DESTINATION, PAD)], next, &[0; 16]);
        assert_eq!(answer(&mut net, &packet), told, "{next}");
        assert_eq!(net.stack.stats().frames_unsupported, 1);
    }
    let mut net = Net::new();
    let late = ping_behind(&[(DESTINATION, PAD), (HOP_BY_HOP, PAD)]);
    assert_eq!(
        answer(&mut net, &late),
        Some((4, 1, 40)),
        "hop-by-hop options come first"
    );
}

/// RFC 8504 5.3: bounds; and what is cut off.
#[test]
fn headers_without_end_are_dropped() {
    let long = [&[1, 253][..], &[0; 253], &[1, 253], &[0; 253]].concat();
    let long: &[u8] = &[&long[..], &[1, 0, 1, 0][..], PAD, PAD].concat()[..510];
    let many: &[Extension<'_>] = &[(DESTINATION, PAD); MOST_HEADERS + 1];
    let large = [(DESTINATION, long); MOST_BYTES / 512 + 1];
    let atomic: &[u8] = &[0, 0, 0, 0, 0, 7];
    let fragments: &[Extension<'_>] = &[(FRAGMENT, atomic); 2];
    for headers in [
        many,
        &large,
        fragments,
        &[(DESTINATION, &[1, 5, 0, 0, 0, 0])],
    ] {
        let mut net = Net::with(one_packet_each().mtu(9000), |builder| builder);
        assert_eq!(answer(&mut net, &ping_behind(headers)), None);
        assert_eq!(net.stack.stats().frames_malformed, 1, "{}", headers.len());
    }
    let whole = ping_behind(&[(HOP_BY_HOP, PAD), (DESTINATION, PAD_14)]);
    let mut net = Net::new();
    for len in 40..whole.len() {
        let mut cut = whole[..len].to_vec();
        cut[5] = (len - 40) as u8;
        assert_eq!(answer(&mut net, &cut), None, "{len}");
    }
}

/// Nobody but the destination looks at options, so the hook gets what it is for as before.
#[test]
fn another_protocol_behind_options_is_offered() {
    let asked = Arc::<Mutex<Vec<Vec<u8>>, LEAF>>::default();
    let kept = asked.clone();
    let mut net = Net::with(one_packet_each(), |builder| {
        builder.on_unhandled(move |frame| {
            kept.lock().push(frame.to_vec());
            true
        })
    });
    let packet = extended(&[(HOP_BY_HOP, PAD)], NOBODY_S, b"for you");
    net.raw(&packet);
    assert!(net.packets().is_empty());
    assert_eq!(*asked.lock(), [packet]);
}
