//! ICMP errors of the stack's own: about what, to whom, how large and how many. RFC 1122 3.2.2, 1812 4.3.2,
//! 4443 2.4.

use super::datagrams::*;
use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn no_such_protocol(v6: bool, about: &[u8]) -> Said {
    let (kind, code, word) = if v6 { (4, 1, 6) } else { (3, 2, 0) };
    Said {
        kind,
        code,
        word,
        rest: about.to_vec(),
    }
}

/// RFC 1122 3.2.2.1, 4443 3.4.
#[test]
fn the_sender_of_an_unknown_protocol_is_told() {
    for v6 in [false, true] {
        let mut net = Net::new();
        let packet = datagram(v6, NOBODY_S, b"anybody?");
        net.raw(&packet);
        assert_eq!(net.said(), [no_such_protocol(v6, &packet)]);
        let stats = net.stack.stats();
        assert_eq!((stats.frames_unsupported, stats.icmp_errors_sent), (1, 1));
    }
}

/// RFC 1812 4.3.2.3: 576 bytes. RFC 4443 2.4 c: 1280.
#[test]
fn an_error_quotes_as_much_as_every_host_takes() {
    for (v6, largest, headers) in [(false, 576, 28), (true, 1280, 48)] {
        let mut net = Net::new();
        for len in [largest - headers - 21, 1400] {
            let packet = datagram(v6, NOBODY_S, &pattern(0, len));
            net.raw(&packet);
            let sent = net.packets();
            assert_eq!(sent.len(), 1);
            assert_eq!(sent[0].len(), largest.min(packet.len() + headers));
            let quote = said(&sent[0]).rest;
            assert_eq!(quote, packet[..quote.len()], "{v6} {len}");
        }
    }
}

/// Padding of the link is no part of the packet.
#[test]
fn an_error_quotes_the_packet_and_no_more() {
    for v6 in [false, true] {
        let mut net = Net::new();
        let packet = datagram(v6, NOBODY_S, b"short");
        net.raw(&[&packet, &[0xee; 20][..]].concat());
        assert_eq!(net.said()[0].rest, packet);
    }
}

/// RFC 1122 3.2.2: about no error, no later fragment, nothing to or from many. RFC 4443 2.4 e.
#[test]
fn an_error_is_not_sent_about_everything() {
    let own = ["10.0.0.1", "fd00::1"];
    let many = [
        "224.0.0.1",
        "255.255.255.255",
        "10.0.0.255",
        "10.0.0.0",
        "ff02::1",
    ];
    let odd = [
        "0.0.0.0",
        "127.0.0.1",
        "10.0.0.255",
        "::",
        "::1",
        "ff02::1",
        "10.0.0.1",
        "fd00::1",
    ];
    let to_many = many.map(|to| {
        (
            ip(if to.contains(':') {
                "fd00::2"
            } else {
                "10.0.0.2"
            }),
            ip(to),
        )
    });
    let from_odd = odd.map(|from| (ip(from), ip(own[usize::from(from.contains(':'))])));
    let elsewhere =
        [("10.0.0.2", "10.0.0.77"), ("fd00::2", "fd00::77")].map(|(a, b)| (ip(a), ip(b)));
    let mut net = Net::new();
    for ends in to_many.into_iter().chain(from_odd).chain(elsewhere) {
        net.raw(&from_to(ends, NOBODY_S, b"anybody?"));
        assert!(net.packets().is_empty(), "{ends:?}");
    }
    assert_eq!(net.stack.stats().icmp_errors_sent, 0);
}

/// The gate that all kinds of errors have before them.
#[test]
fn no_error_is_about_an_error_or_a_later_fragment() {
    use crate::ip::icmp::{Kind, may_answer};
    let about = |packet: &[u8]| may_answer(Kind::PortUnreachable, &crate::link::Frame::new(packet));
    for v6 in [false, true] {
        let ends = addresses(v6);
        assert!(about(&datagram(v6, UDP, b"question")));
        assert!(about(&ping(v6, &[0; 8])));
        let errors: &[u8] = if v6 {
            &[1, 2, 3, 4, 100, 127, 137]
        } else {
            &[3, 4, 5, 11, 12, 1, 19, 200]
        };
        for kind in errors {
            let error = datagram(v6, icmp_protocol(v6), &message(ends, *kind, 0, &[0; 32]));
            assert!(!about(&error), "{v6} {kind}");
        }
        assert!(!about(&datagram(v6, icmp_protocol(v6), b"")), "no type");
    }
    let mut later = datagram(false, UDP, b"question");
    (later[6], later[7]) = (0x20, 1);
    assert!(!about(&later));
    (later[6], later[7]) = (0x20, 0);
    assert!(about(&later), "the first one");
    let fragment = |offset: u8| {
        datagram(
            true,
            44,
            &[UDP, 0, 0, offset | 1, 0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8],
        )
    };
    assert!(about(&fragment(0)) && !about(&fragment(8)));
    // Behind options an error is one too.
    let ends = addresses(true);
    for (kind, answered) in [(1, false), (128, true)] {
        let options = [
            &[58, 0, 1, 4, 0, 0, 0, 0][..],
            &message(ends, kind, 0, &[0; 8]),
        ]
        .concat();
        assert_eq!(about(&datagram(true, 60, &options)), answered);
    }
}

/// RFC 4443 2.4 e.3: a packet too big, and an option that asks for it, is told of also to many.
#[test]
fn two_kinds_of_errors_are_about_packets_to_many_too() {
    use crate::ip::icmp::{Kind, may_answer};
    let kinds = [
        (Kind::TooBig { mtu: 1280 }, true),
        (
            Kind::Parameter {
                code: 2,
                pointer: 42,
            },
            true,
        ),
        (
            Kind::Parameter {
                code: 1,
                pointer: 6,
            },
            false,
        ),
        (Kind::PortUnreachable, false),
        (Kind::HopLimit, false),
    ];
    let packet = from_to((ip("fd00::2"), ip("ff02::1")), UDP, b"all of you");
    for (kind, answered) in kinds {
        assert_eq!(
            may_answer(kind, &crate::link::Frame::new(&packet)),
            answered,
            "{kind:?}"
        );
    }
}

/// Every kind in both families: type, code and the second word (RFC 792, 1191, 1812 5.2.7.1, 4443 3).
#[test]
fn what_the_kinds_of_errors_look_like() {
    use crate::ip::icmp::{Kind, compose};
    let table = [
        (Kind::PortUnreachable, (3, 3, 0), (1, 4, 0)),
        (
            Kind::ProtocolUnreachable { pointer: 48 },
            (3, 2, 0),
            (4, 1, 48),
        ),
        (Kind::HostUnreachable, (3, 1, 0), (1, 3, 0)),
        (Kind::Prohibited, (3, 13, 0), (1, 1, 0)),
        (Kind::HopLimit, (11, 0, 0), (3, 0, 0)),
        (Kind::Reassembly, (11, 1, 0), (3, 1, 0)),
        (
            Kind::Parameter {
                code: 0,
                pointer: 4,
            },
            (12, 0, 4 << 24),
            (4, 0, 4),
        ),
        (Kind::TooBig { mtu: 1400 }, (3, 4, 1400), (2, 0, 1400)),
    ];
    for (kind, v4, v6) in table {
        for (expected, v6) in [(v4, false), (v6, true)] {
            let packet = datagram(v6, UDP, b"question");
            let error = compose(kind, addresses(v6).1, &crate::link::Frame::new(&packet));
            let said = said(&error);
            assert_eq!((said.kind, said.code, said.word), expected, "{kind:?}");
            assert_eq!(said.rest, packet);
        }
    }
}

/// RFC 4443 2.4 f. What an error takes of the limit is random, so that it cannot be measured.
#[test]
fn errors_are_limited() {
    let mut net = Net::new();
    let ask = |net: &mut Net, count: usize| {
        for _ in 0..count {
            net.raw(&datagram(true, NOBODY_S, b"anybody?"));
        }
        net.packets().len()
    };
    let first = ask(&mut net, 1000);
    assert!((25..150).contains(&first), "{first}");
    let stats = net.stack.stats();
    assert_eq!(stats.icmp_errors_sent, first as u64);
    assert_eq!(stats.icmp_errors_limited, 1000 - first as u64);
    net.pass(Duration::from_secs(1));
    let second = ask(&mut net, 1000);
    assert!((25..150).contains(&second), "{second}");
    let mut all = 0;
    for _ in 0..1000 {
        net.pass(Duration::from_millis(10));
        all += ask(&mut net, 100);
    }
    assert!((9000..11_000).contains(&all), "{all} in ten seconds");
    net.healthy();
}

/// As with a reset: who cannot be answered is not.
#[test]
fn no_error_goes_to_where_no_route_leads() {
    let mut net = Net::new();
    net.stack
        .set_routes([("192.0.2.0/24".parse().unwrap(), Route::Unreachable)])
        .unwrap();
    let ends = |from| (ip(from), ip("10.0.0.1"));
    net.raw(&from_to(ends("192.0.2.1"), NOBODY_S, b"anybody?"));
    assert!(net.packets().is_empty());
    net.raw(&from_to(ends("192.0.3.1"), NOBODY_S, b"anybody?"));
    assert_eq!(net.packets().len(), 1);
}
