//! The hook for frames that nobody claims: what it is asked about, and what becomes of the rest.

use super::datagrams::datagram as packet;
use super::*;

/// What the hook was asked about.
type Asked = Arc<Mutex<Vec<Vec<u8>>, LEAF>>;

/// A stack whose hook takes everything, or nothing.
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
    const UDP: u8 = 17;
    const NOBODY_S: u8 = 253;
    let all: Vec<_> = [
        (false, UDP),
        (false, NOBODY_S),
        (true, UDP),
        (true, NOBODY_S),
    ]
    .map(|(v6, protocol)| packet(v6, protocol, b"\0\x07\0\x07\0\x0c\0\0echo"))
    .into();
    for take in [true, false] {
        let (mut net, asked) = net(take, false);
        all.iter().for_each(|packet| net.raw(packet));
        let answers = if take { 0 } else { 4 };
        assert_eq!(net.said().len(), answers, "protocol unreachable");
        assert_eq!(*asked.lock(), all);
        let stats = net.stack.stats();
        let counted = (stats.frames_claimed, stats.frames_unsupported);
        assert_eq!(counted, if take { (4, 0) } else { (0, 4) });
    }
}

#[test]
fn fragments_and_icmp_of_others_are_offered_and_pings_are_not() {
    let (mut net, asked) = net(true, false);
    let mut fragment = packet(false, 17, b"part");
    fragment[6] = 0x20;
    fragment[10..12].fill(0);
    let sum = checksum(&fragment[..20]);
    fragment[10..12].copy_from_slice(&sum);
    // The answer to a ping of the second stack.
    let reply = packet(false, 1, &[0, 0, 0xff, 0xfc, 0, 1, 0, 2]);
    let ping = packet(false, 1, &[8, 0, 0xf7, 0xfc, 0, 1, 0, 2]);
    for packet in [&fragment, &reply, &ping] {
        net.raw(packet);
    }
    net.turn();
    assert_eq!(*asked.lock(), [fragment, reply]);
    let mut answers = Vec::new();
    assert_eq!(net.wire.receive(&mut answers, 10).unwrap(), 1);
    assert_eq!(net.stack.stats().frames_fragments, 0);
}

/// Guards `Unclaimed::keep_segment` and the question in `Driver::unknown`.
#[test]
fn tcp_for_nobody_is_offered_only_if_asked_for() {
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
