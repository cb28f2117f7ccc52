//! When acknowledgements are sent.

use super::*;

const DELAY: Duration = Duration::from_millis(40);
const MOMENT: Duration = Duration::from_micros(1);

/// A connection on which an answer has just been in time.
fn answered(net: &mut Net) -> (Raw, TcpStream) {
    let (mut raw, mut stream) = net.accepted();
    raw.send_data(net, b"question");
    assert!(net.seen().is_empty(), "it waits a moment");
    stream.write_all(b"answer").unwrap();
    assert_eq!(raw.take(&net.seen()), b"answer");
    raw.send(net, ACK, b"");
    (raw, stream)
}

#[test]
fn an_acknowledgement_rides_on_the_answer() {
    let mut net = Net::new();
    let (mut raw, mut stream) = answered(&mut net);
    for _ in 0..3 {
        raw.send_data(&net, b"question");
        net.pass(DELAY / 2);
        assert!(net.seen().is_empty(), "delayed");
        stream.write_all(b"answer").unwrap();
        let seen = net.one();
        assert_eq!(
            (seen.header.ack, &seen.payload[..]),
            (raw.seq, &b"answer"[..])
        );
        raw.take(&[seen]);
        raw.send(&net, ACK, b"");
    }
    net.healthy();
}

#[test]
fn an_acknowledgement_waits_in_vain_once() {
    let mut net = Net::new();
    let (mut raw, mut stream) = answered(&mut net);
    raw.send_data(&net, b"question");
    net.pass(DELAY - MOMENT);
    assert!(net.seen().is_empty(), "delayed");
    net.pass(MOMENT);
    assert_eq!(net.one().header.ack, raw.seq, "no longer than this");
    raw.send_data(&net, b"question");
    assert_eq!(net.soon().header.ack, raw.seq);
    // An answer in time, and they are delayed again.
    stream.write_all(b"answer").unwrap();
    assert_eq!(raw.take(&net.seen()), b"answer");
    raw.send(&net, ACK, b"");
    raw.send_data(&net, b"question");
    assert!(net.seen().is_empty());
}

#[test]
fn a_full_segment_is_acknowledged_at_once() {
    let mut net = Net::new();
    let (mut raw, _stream) = answered(&mut net);
    raw.send_data(&net, &pattern(0, 1460));
    assert_eq!(net.one().header.ack, raw.seq);
    // Also after a delayed one, and when two together are a full segment.
    raw.send_data(&net, b"question");
    assert!(net.seen().is_empty());
    raw.send_data(&net, &pattern(0, 1460));
    assert_eq!(net.one().header.ack, raw.seq);
    raw.send_data(&net, &pattern(0, 1000));
    assert!(net.seen().is_empty());
    raw.send_data(&net, &pattern(0, 1000));
    assert_eq!(net.one().header.ack, raw.seq);
}

#[test]
fn a_hole_is_acknowledged_at_once_and_the_end_soon() {
    let mut net = Net::new();
    let (mut raw, _stream) = answered(&mut net);
    raw.send_data(&net, b"waits");
    assert!(net.seen().is_empty());
    raw.send_at(&net, 5, ACK, b"ahead");
    assert_eq!(net.one().header.ack, raw.seq, "a hole (RFC 5681 4.2)");
    raw.send_data(&net, b"holes");
    let ack = raw.seq.wrapping_add(5);
    assert_eq!(net.one().header.ack, ack, "it is filled");
    raw.seq = ack;
    raw.send_data(&net, b"waits");
    assert!(net.seen().is_empty());
    raw.send(&net, FIN | ACK, b"");
    let ack = raw.seq.wrapping_add(1);
    assert_eq!(net.soon().header.ack, ack, "the end, a moment later");
    net.healthy();
}

/// The sender of two small writes waits for the acknowledgement of the first (RFC 896): not for long.
#[test]
fn a_request_without_an_answer_is_acknowledged_soon() {
    let mut net = Net::new();
    let (mut raw, _stream) = net.accepted();
    raw.send_data(&net, b"first");
    net.pass(SOON - MOMENT);
    assert!(net.seen().is_empty());
    net.pass(MOMENT);
    assert_eq!(net.one().header.ack, raw.seq);
}

#[test]
fn a_short_connection_has_no_packet_for_acknowledgements_alone() {
    let mut net = Net::new();
    let (mut raw, mut stream) = net.accepted();
    raw.send_data(&net, b"question");
    net.turn();
    assert_eq!(read(&stream), b"question");
    stream.write_all(b"answer").unwrap();
    assert_eq!(raw.take(&net.seen()), b"answer");
    raw.send(&net, FIN | ACK, b"");
    assert!(net.seen().is_empty());
    drop(stream);
    let fin = net.one().header;
    assert_eq!((fin.flags, fin.ack), (FIN | ACK, raw.seq.wrapping_add(1)));
}

#[test]
fn delayed_acknowledgements_can_be_switched_off() {
    let mut net = Net::with(one_packet_each(), |builder| builder.ack_delay(None));
    let (mut raw, _stream) = net.accepted();
    raw.send_data(&net, b"question");
    assert_eq!(net.one().header.ack, raw.seq);
}

/// RFC 9293 3.8.6.3: never longer than half a second.
#[test]
fn a_delay_has_a_limit() {
    let mut net = Net::with(one_packet_each(), |builder| {
        builder.ack_delay(Some(Duration::MAX))
    });
    let (mut raw, _stream) = answered(&mut net);
    raw.send_data(&net, b"question");
    net.pass(Duration::from_millis(500) - MOMENT);
    assert!(net.seen().is_empty());
    net.pass(MOMENT);
    assert_eq!(net.one().header.ack, raw.seq);
}

#[test]
fn a_full_segment_is_acknowledged_at_once_after_idle_time() {
    let mut net = Net::new();
    let (mut raw, stream) = answered(&mut net);
    raw.send_data(&net, b"question");
    assert!(net.seen().is_empty(), "delayed");
    // A keep-alive of the peer is still answered.
    raw.send_at(&net, -1, ACK, b"?");
    assert_eq!(net.one().header.ack, raw.seq);
    assert_eq!(read(&stream), b"questionquestion");
    net.pass(Duration::from_secs(20));
    net.seen();
    raw.send_data(&net, &pattern(0, 1460));
    assert_eq!(net.one().header.ack, raw.seq);
    net.healthy();
}
