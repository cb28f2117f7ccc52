//! The hook for unhandled frames: the frames that it is called for, and the treatment of the rest.

use super::datagrams::{datagram as packet, *};
use super::*;

/// The frames that the hook was called for.
type Asked = Arc<Mutex<Vec<Vec<u8>>, LEAF>>;

/// A stack whose hook takes all frames, or none.
fn net(take: bool, tcp: bool) -> (Net, Asked) {
    let asked = Asked::default();
    let kept = asked.clone();
    let net = Net::with(one_packet_each(), |builder| {
        let hook = move |frame: &crate::link::Frame| {
            kept.lock().push(frame.to_vec());
            take
        };
        builder.on_unhandled(hook).unhandled_tcp(tcp)
    });
    (net, asked)
}

/// Guards `Driver::claimed` for frames that are not TCP.
#[test]
fn udp_and_unknown_protocols_are_offered() {
    let all: Vec<_> = [
        (false, UDP),
        (false, NOBODY_S),
        (true, UDP),
        (true, NOBODY_S),
    ]
    .map(|(v6, protocol)| match protocol {
        UDP => ip::samples::udp(addresses(v6), (7, 7), b"echo"),
        _ => packet(v6, protocol, b"anything"),
    })
    .into();
    for take in [true, false] {
        let (mut net, asked) = net(take, false);
        all.iter().for_each(|packet| net.raw(packet));
        let answers = if take { 0 } else { 4 };
        assert_eq!(net.said().len(), answers, "protocol unreachable");
        assert_eq!(*asked.lock(), all);
        let stats = net.stack.stats();
        let counted = [
            stats.frames_claimed,
            stats.frames_unsupported,
            stats.frames_stray,
        ];
        assert_eq!(counted, if take { [4, 0, 0] } else { [0, 2, 2] });
    }
}

/// What came in fragments is offered whole.
#[test]
fn what_came_in_fragments_and_icmp_of_others_are_offered_and_pings_are_not() {
    for v6 in [false, true] {
        let (mut net, asked) = net(true, false);
        let whole = ip::samples::udp(addresses(v6), (7, 7), b"in two parts");
        let payload = &whole[whole.len() - 20..];
        for (at, part) in [(0, &payload[..8]), (8, &payload[8..])] {
            net.raw(&fragment(v6, UDP, (0, at, at == 0), part));
        }
        // The answer to a ping of the second stack.
        let kind = if v6 { 129 } else { 0 };
        let echo = message(addresses(v6), kind, 0, &[0, 1, 0, 2]);
        let reply = packet(v6, icmp_protocol(v6), &echo);
        net.raw(&reply);
        net.raw(&ping(v6, &[0, 1, 0, 2]));
        assert_eq!(net.said().len(), 1);
        let mut asked = std::mem::take(&mut *asked.lock());
        if !v6 {
            // Nothing forbids to cut it again.
            asked[0][6] = 0x40;
            sum_header(&mut asked[0]);
        }
        assert_eq!(asked, [whole, reply]);
        let stats = net.stack.stats();
        assert_eq!((stats.frames_fragments, stats.frames_claimed), (2, 2));
    }
}

/// Guards `Unclaimed::keep_segment` and the call in `Driver::unknown`.
#[test]
fn tcp_without_a_connection_is_offered_only_on_request() {
    for (take, tcp, resets, offered) in
        [(true, false, 1, 0), (true, true, 0, 1), (false, true, 1, 1)]
    {
        let (mut net, asked) = net(take, tcp);
        let (raw, _stream) = net.accepted();
        raw.send(&net, ACK | PSH, b"ours");
        net.seen();
        let mut stranger = Raw::new(6000);
        stranger.to.1 = 81;
        stranger.send(&net, ACK, b"whose?");
        let seen = net.seen();
        assert_eq!(seen.len(), resets, "{take} {tcp}");
        assert_eq!(asked.lock().len(), offered, "{take} {tcp}");
        assert_eq!(net.stack.stats().frames_stray, resets as u64);
    }
}
