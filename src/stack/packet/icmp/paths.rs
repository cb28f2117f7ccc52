//! The path MTU of a destination is found once, and not by each connection separately.

use super::*;
use crate::stack::packet::queues::nets;

/// The sizes of the payloads sent for this many bytes.
fn sizes(net: &mut Net, mut stream: &TcpStream, len: usize) -> Vec<usize> {
    stream.write_all(&pattern(0, len)).unwrap();
    let seen = net.seen();
    seen.iter().map(|frame| frame.payload.len()).collect()
}

/// A connection through which the stack learns a smaller size.
fn learns(net: &mut Net, v6: bool, mtu: u32) -> (Raw, TcpStream) {
    let (raw, mut stream) = standing(net, v6);
    stream.write_all(&pattern(0, 1400)).unwrap();
    let segment = net.one();
    net.icmp(&segment, too_big(mtu));
    net.drain();
    (raw, stream)
}

/// RFC 1191 6.5, 8201 5.4: no time passes, and the peer sends nothing.
#[test]
fn the_rest_of_the_window_is_sent_again_at_once_too() {
    for (v6, full) in [(false, 1360), (true, 1340)] {
        let mut net = Net::new();
        let (mut raw, mut stream) = standing(&mut net, v6);
        stream.write_all(&pattern(0, 100_000)).unwrap();
        let flight = net.seen();
        let bytes: usize = flight.iter().map(|frame| frame.payload.len()).sum();
        assert!(flight.len() >= 10);
        net.icmp(&flight[0], too_big(1400));
        let again = net.seen();
        assert!(again.iter().all(|frame| frame.payload.len() <= full));
        let got = raw.take(&again);
        assert!(got.len() > bytes - full, "{} of {bytes}", got.len());
        assert_eq!(got, pattern(0, got.len()));
        net.healthy();
    }
}

/// Guards `Shared::connection` and `path_found`, for active and passive opens.
#[test]
fn later_connections_start_with_the_known_path_mtu() {
    for (v6, mtu, full, whole) in [
        (false, 1400, 1360, 1460),
        (false, 300, 512, 1460),
        (true, 1300, 1240, 1440),
    ] {
        let mut net = Net::new();
        let before = standing(&mut net, v6);
        let _first = learns(&mut net, v6, mtu);
        let again = standing(&mut net, v6);
        assert_eq!(sizes(&mut net, &again.1, 5000)[0], full, "{mtu}");
        assert_eq!(
            sizes(&mut net, &before.1, 5000)[0],
            whole,
            "existing connections are not affected"
        );
        let at = if v6 { "[fd00::1]:80" } else { "10.0.0.1:80" };
        let listener = TcpListener::bind(&net.stack, at).unwrap();
        let mut raw = Raw::new(5000);
        (raw.from.0, raw.to.0) = (again.0.from.0, again.0.to.0);
        let offer = raw.syn(&mut net).header.options.mss;
        assert_eq!(
            offer.map(usize::from),
            Some(whole),
            "received segments may be larger"
        );
        raw.send(&net, ACK, b"");
        net.turn();
        let (stream, _) = listener.accept().unwrap();
        assert_eq!(sizes(&mut net, &stream, 5000)[0], full);
        // Other destinations have other paths.
        let mut other = Raw::new(5001);
        other.to.0 = raw.to.0;
        other.from.0 = if v6 { "fd00::3" } else { "10.0.0.3" }.parse().unwrap();
        other.handshake(&mut net);
        let (stream, _) = listener.accept().unwrap();
        assert_eq!(sizes(&mut net, &stream, 5000)[0], whole);
        net.healthy();
    }
}

#[test]
fn a_path_mtu_expires_after_ten_minutes() {
    let mut net = Net::new();
    let (mut raw, stream) = learns(&mut net, false, 1400);
    raw.ack = raw.ack.wrapping_add(1400);
    raw.send(&net, ACK, b"");
    net.pass(Duration::from_secs(599));
    net.drain();
    for full in [1360, 1460] {
        let (_raw, stream) = standing(&mut net, false);
        assert_eq!(sizes(&mut net, &stream, 5000)[0], full);
        stream.abort();
        net.pass(Duration::from_secs(1));
        net.drain();
    }
    assert_eq!(sizes(&mut net, &stream, 5000)[0], 1360, "no larger again");
}

/// Guards `Tcb::handle_icmp`: a report must quote data in flight.
#[test]
fn a_forged_report_is_not_cached() {
    let mut net = Net::new();
    let (syn, _dialling) = dialling(&mut net, false);
    net.icmp(&syn, too_big(600));
    let (_raw, mut stream) = standing(&mut net, false);
    stream.write_all(&pattern(0, 1400)).unwrap();
    let segment = net.one();
    for off in [-1, 1400, 1 << 20] {
        let forged = segment.header.seq.wrapping_add_signed(off);
        net.raw(&error(&segment, forged, too_big(600)));
    }
    let mut other = segment.clone();
    other.tuple.remote_port ^= 1;
    net.icmp(&other, too_big(600));
    // A report of a larger size has no effect.
    net.icmp(&segment, too_big(1500));
    assert_eq!(net.stack.shared().addressing.paths.len(), 0);
    assert_eq!(net.stack.stats().mtu_lowered, 0);
    let (_raw, stream) = standing(&mut net, false);
    assert_eq!(sizes(&mut net, &stream, 5000)[0], 1460);
}

/// A finding applies to the connections of all queues.
#[test]
fn a_path_mtu_is_shared_by_all_queues() {
    let [mut one, mut other] = nets(|builder| builder);
    let to = "10.0.0.2:9".parse().unwrap();
    let begun = |net: &mut Net, queue| {
        let stream = TcpSocket::new(&net.stack).queue(queue).start(to).unwrap();
        let syn = net.one();
        let mut raw = Raw::new(9);
        raw.to.1 = stream.local_addr().port();
        raw.ack = syn.header.seq.wrapping_add(1);
        raw.send(net, SYN | ACK, b"");
        raw.seq = raw.seq.wrapping_add(1);
        net.turn();
        net.drain();
        (raw, stream)
    };
    let (_raw, mut stream) = begun(&mut one, 0);
    stream.write_all(&pattern(0, 1400)).unwrap();
    let segment = one.one();
    one.icmp(&segment, too_big(1400));
    let (_raw, stream) = begun(&mut other, 1);
    assert_eq!(sizes(&mut other, &stream, 5000)[0], 1360);
    assert_eq!(other.stack.shared().addressing.paths.len(), 1);
}

/// Routers that drop large packets without a report (RFC 4821): the second connection does not wait for
/// timeouts again, and probes the larger size once, at little cost.
#[test]
fn a_black_hole_is_found_out_once() {
    let mut net = Net::new();
    let (mut raw, mut stream) = standing(&mut net, false);
    stream.write_all(&pattern(0, 1460)).unwrap();
    assert_eq!(net.one().payload.len(), 1460);
    let mut got = Vec::new();
    for _ in 0..100 {
        net.pass(Duration::from_millis(100));
        for frame in net.drain() {
            if frame.payload.len() + 40 <= 1064 && frame.header.seq == raw.ack {
                got.extend(raw.take(&[frame]));
                raw.send(&net, ACK, b"");
            }
        }
    }
    assert!(got == pattern(0, 1460));
    let (_raw, stream) = standing(&mut net, false);
    assert_eq!(sizes(&mut net, &stream, 2000), [1024, 976]);
    let (mut raw, stream) = standing(&mut net, false);
    let flight = sizes(&mut net, &stream, 8000);
    assert_eq!(flight[..3], [1460, 1024, 1024], "it is tried again");
    // It passes: it was an outage.
    raw.ack = raw.ack.wrapping_add(8000);
    raw.send(&net, ACK, b"");
    net.turn();
    assert_eq!(net.stack.shared().addressing.paths.len(), 0);
    let (_raw, stream) = standing(&mut net, false);
    assert_eq!(sizes(&mut net, &stream, 2000), [1460, 540]);
    net.healthy();
}
