//! ICMP errors: which are accepted, and their effects. RFC 1122 4.2.3.9, 5927, 1191, 8201, in both
//! families.

mod paths;

use super::datagrams::datagram as packet;
use super::*;

/// An error as a router would send it: type, code, the second word of its header.
#[derive(Clone, Copy)]
struct Kind(u8, u8, u32);

/// Kinds, IPv4 first, IPv6 second.
const PORT: [Kind; 2] = [Kind(3, 3, 0), Kind(1, 4, 0)];
const PROHIBITED: [Kind; 2] = [Kind(3, 13, 0), Kind(1, 1, 0)];
const PROTOCOL: [Kind; 2] = [Kind(3, 2, 0), Kind(4, 1, 6)];
const NET: [Kind; 2] = [Kind(3, 0, 0), Kind(1, 0, 0)];
const HOST: [Kind; 2] = [Kind(3, 1, 0), Kind(1, 3, 0)];
const TIME: [Kind; 2] = [Kind(11, 0, 0), Kind(3, 0, 0)];

/// An error about a segment of the stack, with this sequence number.
fn error(seen: &Seen, seq: u32, kind: [Kind; 2]) -> Vec<u8> {
    let v6 = seen.tuple.local.is_ipv6();
    let Kind(kind, code, word) = kind[usize::from(v6)];
    let header = Header { seq, ..seen.header };
    let mut quote = [0; MAX_CANONICAL];
    let from = (seen.tuple.remote, seen.tuple.remote_port);
    let to = (seen.tuple.local, seen.tuple.local_port);
    wire::compose(&mut quote, from, to, &header, seen.payload.len());
    let ip_header_len = if v6 { 40 } else { 20 };
    let mut icmp = vec![kind, code, 0, 0];
    icmp.extend(word.to_be_bytes());
    icmp.extend_from_slice(&quote[..ip_header_len + 8]);
    let protocol = if v6 { 58 } else { 1 };
    let mut ip = packet(v6, protocol, &icmp);
    if let IpAddr::V4(sender) = seen.tuple.remote {
        ip[16..20].copy_from_slice(&sender.octets());
        ip[10..12].fill(0);
        let sum = checksum(&ip[..20]);
        ip[10..12].copy_from_slice(&sum);
    }
    let mut summed = icmp.clone();
    if v6 {
        let len = icmp.len() as u8;
        summed = [&ip[8..40], &[0, 0, 0, len, 0, 0, 0, protocol], &icmp].concat();
    }
    let sum = checksum(&summed);
    ip[ip_header_len + 2..ip_header_len + 4].copy_from_slice(&sum);
    ip
}

impl Net {
    fn icmp(&mut self, seen: &Seen, kind: [Kind; 2]) {
        self.raw(&error(seen, seen.header.seq, kind));
        self.turn();
    }

    fn icmp_counters(&self) -> (u64, u64) {
        let stats = self.stack.stats();
        (stats.icmp_errors, stats.icmp_ignored)
    }
}

/// An attempt to connect, and its SYN.
fn dialling(net: &mut Net, v6: bool) -> (Seen, TcpStream) {
    let to = if v6 { "[fd00::2]:9" } else { "10.0.0.2:9" };
    let stream = TcpSocket::new(&net.stack)
        .start(to.parse().unwrap())
        .unwrap();
    stream.set_nonblocking(true);
    (net.one(), stream)
}

/// An established connection, over either family.
fn standing(net: &mut Net, v6: bool) -> (Raw, TcpStream) {
    let (syn, stream) = dialling(net, v6);
    let mut raw = Raw::new(9);
    raw.from.0 = stream.peer_addr().ip();
    raw.to = (stream.local_addr().ip(), stream.local_addr().port());
    raw.ack = syn.header.seq.wrapping_add(1);
    raw.send(net, SYN | ACK, b"");
    raw.seq = raw.seq.wrapping_add(1);
    net.turn();
    net.drain();
    (raw, stream)
}

/// Guards `IcmpErrorKind::Hard` in `Tcb::icmp`.
#[test]
fn a_hard_error_ends_an_attempt_to_connect_at_once() {
    for v6 in [false, true] {
        for (kind, ends_with) in [
            (PORT, SoError::ConnectionRefused),
            (PROTOCOL, SoError::HostUnreachable),
            (PROHIBITED, SoError::HostUnreachable),
        ] {
            let mut net = Net::new();
            let (syn, stream) = dialling(&mut net, v6);
            net.icmp(&syn, kind);
            assert_eq!(stream.take_error(), Some(ends_with), "{v6}");
            assert_eq!(net.icmp_counters(), (1, 0));
            assert_eq!(net.stack.stats().connections, 0);
        }
    }
}

/// BSD's `tcp_notify`.
#[test]
fn a_soft_error_that_stays_ends_an_attempt_to_connect() {
    for kind in [NET, HOST, TIME] {
        let mut net = Net::new();
        let (syn, stream) = dialling(&mut net, false);
        let mut syns = 1;
        net.icmp(&syn, kind);
        while stream.take_error().is_none() {
            assert_eq!(net.stack.stats().connections, 1);
            net.pass(Duration::from_millis(500));
            for syn in net.drain() {
                syns += 1;
                net.icmp(&syn, kind);
            }
        }
        assert_eq!(syns, 5);
        assert_eq!(net.stack.stats().connections, 0);
        // A single one is ignored, however late.
        let mut net = Net::new();
        let (_, stream) = dialling(&mut net, false);
        net.pass(Duration::from_secs(20));
        let late = net.drain().pop().unwrap();
        net.icmp(&late, kind);
        assert_eq!(stream.take_error(), None);
    }
}

#[test]
fn a_soft_error_explains_why_an_attempt_to_connect_timed_out() {
    for v6 in [false, true] {
        for kind in [NET, HOST, TIME] {
            let mut net = Net::new();
            let (syn, stream) = dialling(&mut net, v6);
            net.icmp(&syn, kind);
            net.pass(Duration::from_secs(74));
            assert_eq!(stream.take_error(), None, "{v6}");
            net.pass(Duration::from_secs(2));
            assert_eq!(stream.take_error(), Some(SoError::HostUnreachable), "{v6}");
        }
    }
}

/// Guards the end of `Tcb::soft_error` when the handshake is over, and when the peer acknowledges.
#[test]
fn a_soft_error_is_cleared_when_the_peer_answers() {
    for acknowledge in [false, true] {
        let mut net = Net::new();
        let (syn, mut stream) = dialling(&mut net, false);
        net.icmp(&syn, HOST);
        let mut raw = Raw::new(9);
        raw.to.1 = stream.local_addr().port();
        raw.ack = syn.header.seq.wrapping_add(1);
        raw.send(&net, SYN | ACK, b"");
        raw.seq = raw.seq.wrapping_add(1);
        net.turn();
        net.drain();
        if acknowledge {
            stream.write_all(b"hello").unwrap();
            let segment = net.one();
            net.icmp(&segment, HOST);
            raw.take(&[segment]);
            raw.send(&net, ACK, b"");
        }
        stream.write_all(b"anybody?").unwrap();
        net.pass(Duration::from_secs(302));
        assert_eq!(stream.take_error(), Some(SoError::TimedOut));
    }
}

/// Guards the state in `Tcb::icmp`, and `Tcb::soft_error` in ESTABLISHED.
#[test]
fn no_icmp_error_ends_an_established_connection() {
    for v6 in [false, true] {
        for kind in [PORT, PROTOCOL, PROHIBITED, NET, HOST, TIME] {
            let mut net = Net::new();
            let (mut raw, mut stream) = standing(&mut net, v6);
            stream.write_all(b"one").unwrap();
            let segment = net.one();
            net.icmp(&segment, kind);
            assert_eq!(net.icmp_counters(), (1, 0));
            raw.take(&[segment]);
            raw.send_data(&net, b"answer");
            net.turn();
            assert_eq!(read(&stream), b"answer");
            net.drain();
            // Later the peer is gone.
            stream.write_all(b"two").unwrap();
            let segment = net.one();
            net.icmp(&segment, kind);
            net.pass(Duration::from_secs(299));
            assert_eq!(stream.take_error(), None);
            net.pass(Duration::from_secs(3));
            assert_eq!(stream.take_error(), Some(SoError::HostUnreachable), "{v6}");
        }
    }
}

/// Guards the order in `Driver::icmp`: an error goes to the address that its connection has.
#[test]
fn an_intercepted_connection_gets_icmp_errors_too() {
    let mut net = Net::new();
    let listener = TcpListener::intercept(&net.stack, Intercept::all(), 4).unwrap();
    listener.set_nonblocking(true);
    let mut raw = Raw::new(5000);
    raw.to.0 = [10, 0, 0, 77].into();
    raw.handshake(&mut net);
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"hello").unwrap();
    let segment = net.one();
    net.icmp(&segment, HOST);
    assert_eq!(net.icmp_counters(), (1, 0));
    net.pass(Duration::from_secs(302));
    assert_eq!(stream.take_error(), Some(SoError::HostUnreachable));
}

#[test]
fn errors_that_do_not_quote_data_in_flight_are_ignored() {
    for v6 in [false, true] {
        let mut net = Net::new();
        let (syn, stream) = dialling(&mut net, v6);
        for off in [-1, 1, 1 << 20] {
            let forged = syn.header.seq.wrapping_add_signed(off);
            net.raw(&error(&syn, forged, PORT));
        }
        net.turn();
        assert_eq!(stream.take_error(), None);
        assert_eq!(net.icmp_counters(), (0, 3));

        let mut net = Net::new();
        let (mut raw, mut stream) = standing(&mut net, v6);
        stream.write_all(b"acknowledged").unwrap();
        let old = net.one();
        raw.take(std::slice::from_ref(&old));
        raw.send(&net, ACK, b"");
        stream.write_all(b"in flight").unwrap();
        let segment = net.one();
        let (una, nxt) = (segment.header.seq, segment.header.seq.wrapping_add(9));
        for seq in [old.header.seq, una.wrapping_sub(1), nxt] {
            net.raw(&error(&segment, seq, HOST));
        }
        net.turn();
        assert_eq!(net.icmp_counters(), (0, 3));
        for seq in [una, nxt.wrapping_sub(1)] {
            net.raw(&error(&segment, seq, HOST));
        }
        net.turn();
        assert_eq!(net.icmp_counters(), (2, 3));
    }
}

/// Guards the checksum, the address and the table in `icmp::parse` and `Driver::icmp`.
#[test]
fn errors_that_are_damaged_or_about_others_end_nothing() {
    for v6 in [false, true] {
        let mut net = Net::new();
        let (syn, stream) = dialling(&mut net, v6);
        let good = error(&syn, syn.header.seq, PORT);
        let mut damaged = good.clone();
        *damaged.last_mut().unwrap() ^= 1;
        net.raw(&damaged);
        for cut in 1..good.len() {
            let mut short = good[..cut].to_vec();
            if v6 && cut >= 40 {
                short[4..6].copy_from_slice(&(cut as u16 - 40).to_be_bytes());
            } else if !v6 && cut >= 20 {
                short[2..4].copy_from_slice(&(cut as u16).to_be_bytes());
                short[10..12].fill(0);
                let sum = checksum(&short[..20]);
                short[10..12].copy_from_slice(&sum);
            }
            net.raw(&short);
        }
        let mut other = syn.clone();
        other.tuple.remote_port ^= 1;
        net.raw(&error(&other, syn.header.seq, PORT));
        // To another host than the one that sent the segment.
        let mut astray = good.clone();
        if v6 {
            astray[39] ^= 4;
            astray[43] ^= 4;
        } else {
            astray[19] ^= 4;
            astray[11] ^= 4;
        }
        net.raw(&astray);
        net.turn();
        assert_eq!(stream.take_error(), None, "{v6}");
        assert_eq!(net.icmp_counters(), (0, 1), "{v6}");
        net.raw(&good);
        net.turn();
        assert_eq!(stream.take_error(), Some(SoError::ConnectionRefused));
    }
}

/// "Packet too big", with this MTU.
fn too_big(mtu: u32) -> [Kind; 2] {
    [Kind(3, 4, mtu), Kind(2, 0, mtu)]
}

/// Simulates a path: reports packets that are too big, and returns the received bytes and the largest
/// payload.
fn through(net: &mut Net, raw: &mut Raw, mtu: usize, len: usize) -> (Vec<u8>, usize) {
    let headers = if raw.from.0.is_ipv6() { 60 } else { 40 };
    let (mut got, mut largest) = (Vec::new(), 0);
    for _ in 0..1000 {
        let seen = net.seen();
        if seen.is_empty() && got.len() >= len {
            break;
        }
        for frame in seen {
            if frame.payload.len() + headers > mtu {
                net.icmp(&frame, too_big(mtu as u32));
            } else if frame.header.seq == raw.ack {
                largest = largest.max(frame.payload.len());
                got.extend(raw.take(&[frame]));
            }
        }
        raw.send(net, ACK, b"");
    }
    (got, largest)
}

/// Guards the duplicates in `Tcb::too_big`: no time passes, and the peer sends nothing.
#[test]
fn packets_that_were_too_big_are_retransmitted_at_once() {
    for (v6, largest) in [(false, 1360), (true, 1340)] {
        for len in [1400, 100_000] {
            let mut net = Net::new();
            let (_raw, mut stream) = standing(&mut net, v6);
            stream.write_all(&pattern(0, len)).unwrap();
            let first = net.seen()[0].clone();
            net.icmp(&first, too_big(1400));
            let again = net.seen()[0].clone();
            assert_eq!(again.header.seq, first.header.seq, "{v6} {len}");
            assert_eq!(again.payload, pattern(0, largest), "{v6} {len}");
        }
    }
}

/// A link that cuts large packets, and records the sizes.
#[derive(Debug)]
struct Cutting(MemoryLink, Arc<Mutex<Vec<u16>, LEAF>>);

impl Link for Cutting {
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
        self.1.lock().extend(packet.segment.map(NonZeroU16::get));
        self.0.transmit(packet)
    }
    fn wait(&self, interest: crate::link::Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.0.wait(interest, deadline)
    }
    fn wake(&self) {
        self.0.wake();
    }
}

/// Segments are smaller also if the link cuts them, after an error and with a clamp.
#[test]
fn a_link_that_cuts_gets_the_smaller_size() {
    for (clamp, before) in [(65_495, 1460), (1000, 1000)] {
        let sizes = Arc::<Mutex<Vec<u16>, LEAF>>::default();
        let clock = Arc::new(TestClock(Mutex::new(SystemClock.now())));
        let (link, wire) = memory::pair(memory::Config::default());
        let (stack, driver) = Stack::builder(Cutting(link, sizes.clone()))
            .address("10.0.0.1/24".parse().unwrap())
            .clock(clock.clone())
            .mss(clamp)
            .build_with_driver()
            .unwrap();
        let mut net = Net {
            clock,
            stack,
            driver,
            wire,
        };
        let (mut raw, mut stream) = standing(&mut net, false);
        stream.write_all(&pattern(0, 60_000)).unwrap();
        let first = net.seen()[0].clone();
        let cut = std::mem::take(&mut *sizes.lock());
        assert!(!cut.is_empty() && cut.iter().all(|size| *size == before));
        net.icmp(&first, too_big(900));
        let mut got = Vec::new();
        for _ in 0..100 {
            for frame in net.seen() {
                if frame.header.seq == raw.ack {
                    got.extend(raw.take(&[frame]));
                    raw.send(&net, ACK, b"");
                }
            }
            // The rest is retransmitted by timer.
            net.pass(Duration::from_secs(1));
        }
        let cut = sizes.lock().clone();
        assert!(
            !cut.is_empty() && cut.iter().all(|size| *size == 860),
            "{cut:?}"
        );
        assert!(got == pattern(0, 60_000));
        net.healthy();
    }
}

#[test]
fn a_packet_too_big_makes_smaller_ones_and_sends_again_at_once() {
    for (v6, mtu, largest) in [
        (false, 1400, 1360),
        (false, 576, 536),
        (true, 1400, 1340),
        (true, 1280, 1220),
    ] {
        let mut net = Net::new();
        let (mut raw, mut stream) = standing(&mut net, v6);
        let all = pattern(0, 50_000);
        stream.write_all(&all).unwrap();
        let (got, sent) = through(&mut net, &mut raw, mtu, all.len());
        assert!(got == all, "{v6} {mtu}: {} bytes", got.len());
        assert_eq!(sent, largest, "{v6} {mtu}");
        assert_eq!(net.stack.stats().mtu_lowered, 1);
        // The other direction is not affected.
        raw.send_data(&net, b"answer");
        net.turn();
        assert_eq!(read(&stream), b"answer");
        net.healthy();
    }
}

/// Guards the bounds in `Tcb::too_big`.
#[test]
fn no_router_makes_segments_smaller_than_every_host_takes() {
    // Below that routers may fragment the packets.
    let least = 512;
    for (v6, mtu, largest) in [(false, 0, least), (false, 68, least), (true, 1279, 1440)] {
        let mut net = Net::new();
        let (mut raw, mut stream) = standing(&mut net, v6);
        stream.write_all(&pattern(0, 50_000)).unwrap();
        let first = net.seen()[0].clone();
        net.icmp(&first, too_big(mtu));
        net.drain();
        assert_eq!(net.icmp_counters(), (1, 0));
        net.pass(Duration::from_secs(5));
        let (_, sent) = through(&mut net, &mut raw, 1500, 50_000);
        assert_eq!(sent, largest, "{v6} {mtu}");
        net.healthy();
    }
}

/// Guards the check for segments in flight, for these errors too.
#[test]
fn a_packet_too_big_never_makes_larger_ones_and_must_quote_what_is_in_flight() {
    let mut net = Net::new();
    let (mut raw, mut stream) = standing(&mut net, false);
    stream.write_all(&pattern(0, 1460)).unwrap();
    let segment = net.one();
    let forged = segment.header.seq.wrapping_sub(1);
    net.raw(&error(&segment, forged, too_big(576)));
    net.icmp(&segment, too_big(1400));
    net.icmp(&segment, too_big(1500));
    assert_eq!(net.stack.stats().mtu_lowered, 1);
    assert_eq!(net.icmp_counters(), (2, 1));
    stream.write_all(&pattern(1460, 5000)).unwrap();
    let (got, sent) = through(&mut net, &mut raw, 1500, 6460);
    assert!(got == pattern(0, 6460));
    assert_eq!(sent, 1360);
}

/// The clamp of the MSS holds for active and passive opens.
#[test]
fn no_more_than_the_clamp_is_announced_or_sent() {
    for v6 in [false, true] {
        let mut net = Net::with(one_packet_each(), |builder| builder.mss(1000));
        let to = if v6 { "[fd00::2]:9" } else { "10.0.0.2:9" };
        let dialled = TcpSocket::new(&net.stack)
            .start(to.parse().unwrap())
            .unwrap();
        assert_eq!(net.one().header.options.mss, Some(1000), "{v6}");
        drop(dialled);
        net.seen();

        let (mut raw, mut stream) = standing(&mut net, v6);
        stream.write_all(&pattern(0, 20_000)).unwrap();
        let (got, sent) = through(&mut net, &mut raw, 1500, 20_000);
        assert!(got == pattern(0, 20_000));
        assert_eq!(sent, 1000);
    }
    let mut net = Net::with(one_packet_each(), |builder| builder.mss(1000));
    let _listener = net.listen(80);
    let answer = Raw::new(5000).syn(&mut net);
    assert_eq!(answer.header.options.mss, Some(1000));
}
