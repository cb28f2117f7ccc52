//! Timestamps (RFC 7323) in answers without a connection: TIME-WAIT, held SYNs, cookies.

use super::*;
use crate::stack::ConditionalListener;

/// The other options of a peer with timestamps, as in Linux: MSS, SACK, window scale of 7.
const OFFER: [u8; 12] = [2, 4, 5, 180, 4, 2, 1, 1, 1, 3, 3, 7];

/// A raw peer whose segments carry timestamps.
struct Stamped {
    raw: Raw,
    value: u32,
    /// The latest TSval of the stack's.
    echo: u32,
}

impl Stamped {
    fn new(port: u16) -> Stamped {
        Stamped {
            raw: Raw::new(port),
            value: 5_000_000,
            echo: 0,
        }
    }

    fn options(&self) -> Vec<u8> {
        let stamps = [self.value.to_be_bytes(), self.echo.to_be_bytes()].concat();
        [&[1, 1, 8, 10], &stamps[..]].concat()
    }

    fn send(&self, net: &Net, flags: u8, payload: &[u8]) {
        let mut options = self.options();
        if flags & SYN != 0 {
            options.extend(OFFER);
        }
        self.raw.send_with(net, flags, &options, payload);
    }

    fn hear(&mut self, seen: &Seen) {
        self.echo = seen.timestamps.expect("timestamps").0;
    }

    /// The handshake up to the peer's acknowledgement.
    fn handshake(&mut self, net: &mut Net) -> Seen {
        self.send(net, SYN, b"");
        let answer = net.one();
        self.finish(net, &answer);
        answer
    }

    fn finish(&mut self, net: &mut Net, answer: &Seen) {
        assert_eq!(answer.header.flags, SYN | ACK, "{answer:?}");
        assert_eq!(answer.timestamps.map(|(_, echo)| echo), Some(self.value));
        self.hear(answer);
        self.raw.seq = self.raw.seq.wrapping_add(1);
        self.raw.ack = answer.header.seq.wrapping_add(1);
        self.value += 1;
        self.send(net, ACK, b"");
        net.turn();
    }
}

/// A connection with timestamps that the stack has closed first.
fn in_time_wait_with_timestamps(net: &mut Net) -> (Stamped, TcpListener) {
    let listener = net.listen(80);
    let mut peer = Stamped::new(5000);
    peer.handshake(net);
    drop(listener.accept().unwrap());
    let fin = net.one();
    peer.hear(&fin);
    peer.raw.take(&[fin]);
    peer.value += 10;
    peer.send(net, ACK | FIN, b"");
    peer.raw.seq = peer.raw.seq.wrapping_add(1);
    let last = net.one();
    assert_eq!(last.timestamps.map(|(_, echo)| echo), Some(peer.value));
    assert_eq!(net.stack.stats().time_wait, 1);
    (peer, listener)
}

/// Guards `Record::answer`: which SYNs begin a new connection.
#[test]
fn in_time_wait_a_newer_timestamp_counts_more_than_the_sequence_number_rfc_6191() {
    for (newer, ahead, opens) in [
        (1, -1000, true),
        (1, 1000, true),
        (0, 1000, true),
        (0, -1000, false),
        (-1, 1000, false),
    ] {
        let mut net = Net::new();
        let (mut peer, _listener) = in_time_wait_with_timestamps(&mut net);
        let last = (peer.raw.ack, peer.raw.seq, peer.value);
        peer.value = peer.value.wrapping_add_signed(newer);
        peer.raw.seq = peer.raw.seq.wrapping_add_signed(ahead);
        peer.send(&net, SYN, b"");
        let answer = net.one();
        if !opens {
            let said = (answer.header.seq, answer.header.ack);
            assert_eq!((answer.header.flags, said), (ACK, (last.0, last.1)));
            assert_eq!(answer.timestamps.map(|(_, echo)| echo), Some(last.2));
            continue;
        }
        assert!(answer.header.seq.wrapping_sub(last.0).cast_signed() > 0);
        peer.finish(&mut net, &answer);
        assert_eq!(net.stack.stats().connections, 1, "{newer} {ahead}");
    }
}

/// With a later decision the SYN's options still apply, and so does its timestamp for TIME-WAIT.
#[test]
fn a_held_syn_keeps_its_timestamps() {
    for after_time_wait in [false, true] {
        let mut net = Net::new();
        let mut peer = Stamped::new(5000);
        if after_time_wait {
            let (old, listener) = in_time_wait_with_timestamps(&mut net);
            drop(listener);
            peer = old;
            peer.raw.seq = peer.raw.seq.wrapping_sub(1000);
            peer.value += 1;
        }
        let at = "10.0.0.1:80".parse().unwrap();
        let listener = ConditionalListener::bind(&net.stack, at).unwrap();
        listener.set_nonblocking(true);
        peer.send(&net, SYN, b"");
        assert!(net.seen().is_empty());
        let pending = listener.pending().unwrap();
        net.pass(Duration::from_secs(1));
        peer.value += 1000;
        peer.send(&net, SYN, b"");
        assert!(net.seen().is_empty());
        let stream = pending.accept().unwrap();
        stream.set_nonblocking(true);
        let answer = net.one();
        let options = &answer.header.options;
        assert!(options.sack_permitted && options.window_scale.is_some());
        peer.finish(&mut net, &answer);
        peer.send(&net, ACK | PSH, b"hi");
        net.turn();
        assert_eq!(read(&stream), b"hi");
        net.healthy();
    }
}

/// RFC 2018 4, 6691: data segments carry SACK blocks too, in packets of the path's size.
#[test]
fn blocks_ride_on_data_in_packets_that_fit() {
    let mut net = Net::new();
    let listener = net.listen(80);
    let mut peer = Stamped::new(5000);
    peer.handshake(&mut net);
    let (mut stream, _) = listener.accept().unwrap();
    let next = peer.raw.seq;
    peer.raw.seq = next.wrapping_add(100);
    peer.send(&net, ACK, b"ahead");
    peer.raw.seq = next;
    let block = (next.wrapping_add(100), next.wrapping_add(105));
    assert_eq!(net.one().sack.as_deref(), Some(&[block][..]), "at once");
    stream.write_all(&pattern(0, 10_000)).unwrap();
    let seen = net.seen();
    assert!(seen.len() > 3);
    for frame in &seen {
        assert_eq!(frame.sack.as_deref(), Some(&[block][..]));
        assert!(40 + 12 + 12 + frame.payload.len() <= 1500);
    }
    assert_eq!(seen[0].payload.len(), 1460 - 12 - 12);
    assert_eq!(peer.raw.take(&seen), pattern(0, 10_000));
    net.healthy();
}

/// Guards `Shared::answer_with_cookie` and `cookie_of`: all options of the SYN are kept.
#[test]
fn a_cookie_keeps_timestamps_scale_and_sack() {
    let mut net = Net::new();
    let at = "10.0.0.1:80";
    let listener = TcpListener::bind_with_backlog(&net.stack, at, 1).unwrap();
    listener.set_nonblocking(true);
    Raw::new(1).send(&net, SYN, b"");
    net.one();
    let mut peer = Stamped::new(5000);
    peer.raw.window = 1000;
    peer.send(&net, SYN, b"");
    let answer = net.one();
    assert_eq!(net.stack.stats().syn_cookies_sent, 1);
    let options = &answer.header.options;
    assert!(options.sack_permitted && options.window_scale.is_some());
    net.pass(Duration::from_millis(70));
    peer.finish(&mut net, &answer);
    assert!(net.seen().is_empty(), "the SYN|ACK has left before");
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true);
    // Its clock continues, its RTT is known, and so is the peer's window scale.
    stream.write_all(&pattern(0, 20_000)).unwrap();
    let seen = net.seen();
    let stamps = seen[0].timestamps.unwrap();
    assert_eq!(stamps, (peer.echo.wrapping_add(70), peer.value));
    assert_eq!(seen[0].payload.len(), 1448);
    let flight: usize = seen.iter().map(|frame| frame.payload.len()).sum();
    assert!(
        flight > 10_000,
        "{flight} is more than 1000 without a scale"
    );
    net.pass(Duration::from_millis(142));
    assert_eq!(net.seen().len(), 1, "a probe after two round trips");
    // PAWS.
    peer.value -= 1000;
    peer.send(&net, ACK | PSH, b"old");
    net.turn();
    net.drain();
    peer.value += 1000;
    peer.send(&net, ACK | PSH, b"new");
    net.turn();
    assert_eq!(read(&stream), b"new");
    // SACK.
    peer.raw.seq = peer.raw.seq.wrapping_add(100);
    net.drain();
    peer.send(&net, ACK | PSH, b"ahead");
    assert!(net.seen()[0].sack.is_some());
    net.healthy();
}

/// A forger does not know the cookie's timestamp, and that expires as the cookie does.
#[test]
fn a_guessed_timestamp_of_a_cookie_is_reset() {
    for (off, known) in [(0, true), (1, false), (-128_001, false), (1 << 30, false)] {
        let mut net = Net::new();
        let at = "10.0.0.1:80";
        let listener = TcpListener::bind_with_backlog(&net.stack, at, 1).unwrap();
        listener.set_nonblocking(true);
        Raw::new(1).send(&net, SYN, b"");
        net.one();
        let mut peer = Stamped::new(5000);
        peer.send(&net, SYN, b"");
        let answer = net.one();
        peer.hear(&answer);
        peer.echo = peer.echo.wrapping_add_signed(off);
        peer.raw.seq = peer.raw.seq.wrapping_add(1);
        peer.raw.ack = answer.header.seq.wrapping_add(1);
        peer.send(&net, ACK, b"");
        let reset = net.seen();
        assert_eq!(reset.is_empty(), known, "{off}: {reset:?}");
        assert!(reset.iter().all(|frame| frame.header.flags == RST));
        assert_eq!(listener.accept().is_ok(), known);
    }
}

/// Guards `Tcb::header_len`: a super-frame is as long as the link takes with the options that it has, so that those of
/// the kernel, of 45 segments, are sent on whole.
#[test]
fn super_frames_have_as_many_segments_as_fit_with_timestamps() {
    const SEGMENT: usize = 1448;
    for (longest, segments) in [(45 * SEGMENT + 52, 45), (45 * SEGMENT + 51, 44)] {
        let mut config = memory::Config::default();
        config.capabilities.segment_v4 = Some(longest);
        let mut net = Net::with(config, |builder| builder.send_buffer(1 << 20));
        let listener = net.listen(80);
        let mut peer = Stamped::new(5000);
        peer.handshake(&mut net);
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true);
        stream.write_all(&pattern(0, 900_000)).unwrap();
        let (mut got, mut largest) = (0, 0);
        while got < 900_000 {
            let seen = net.seen();
            assert!(!seen.is_empty(), "{got}");
            largest = seen
                .iter()
                .map(|frame| frame.payload.len())
                .fold(largest, usize::max);
            peer.hear(seen.last().unwrap());
            got += peer.raw.take(&seen).len();
            peer.value += 1;
            peer.send(&net, ACK, b"");
        }
        assert_eq!(largest, segments * SEGMENT, "{longest}");
        net.healthy();
    }
}
