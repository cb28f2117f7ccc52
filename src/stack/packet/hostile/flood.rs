//! Floods of SYNs beyond the number of cookies of a second.

use super::*;

const BACKLOG: usize = 16;
const FORGED: [u8; 4] = [10, 0, 0, 3];
const MILLI: Duration = Duration::from_millis(1);

fn flooded(most: Option<u32>) -> (Net, TcpListener) {
    // With a seed: by chance a forged SYN has the mark of another one.
    let mut net = Net::with(one_packet_each(), |builder| {
        builder.max_syn_cookies(most).seed(1)
    });
    let listener = TcpListener::bind_with_backlog(&net.stack, "10.0.0.1:80", BACKLOG).unwrap();
    listener.set_nonblocking(true);
    for port in 1..=BACKLOG as u16 {
        Raw::new(port).send(&net, SYN, b"");
    }
    assert_eq!(net.seen().len(), BACKLOG, "the backlog is full");
    (net, listener)
}

/// Forged SYNs, all of them different. Returns how many were answered.
fn forge(net: &mut Net, numbers: std::ops::Range<u32>) -> usize {
    for number in numbers.clone() {
        let mut raw = Raw::new(1000 + (number % 50_000) as u16);
        raw.from.0 = FORGED.into();
        raw.seq = number;
        raw.send(net, SYN, b"");
    }
    let seen = net.seen().into_iter();
    // The half-open connections retransmit.
    seen.filter(|frame| frame.tuple.local == IpAddr::from(FORGED))
        .count()
}

fn table(net: &Net) -> usize {
    net.stack.shared().accepting.syn_marks.memory()
}

/// Guards `SynMarks`: what a flood costs in answers is bounded, and so is what it costs in memory.
#[test]
fn a_flood_is_answered_with_so_many_cookies_a_second() {
    let (mut net, _listener) = flooded(Some(100));
    assert_eq!(forge(&mut net, 0..100), 100);
    assert_eq!(table(&net), 0, "nothing is remembered yet");
    for second in 1..20 {
        let answered = forge(&mut net, second * 1000..second * 1000 + 1000);
        assert!(answered < 100 + 20, "{answered}");
        assert!(second == 1 || answered >= 100, "{answered}");
        assert_eq!(table(&net), 1 << 20);
        net.pass(1000 * MILLI);
    }
    let stats = net.stack.stats();
    let all = stats.syn_cookies_sent + stats.syn_cookies_withheld;
    assert_eq!(all, 100 + 19_000);
    assert_eq!(stats.syns_dropped, 0, "those are others");
    assert!(stats.syn_cookies_withheld > 16_500, "{stats:?}");
    net.healthy();
}

/// Clients get in with their first retransmission, after a second (RFC 6298 2.1), also if the network has
/// duplicated the SYN.
#[test]
fn clients_connect_through_a_flood_with_their_second_syn() {
    let (mut net, listener) = flooded(Some(0));
    let clients = 100;
    for port in 0..clients {
        net.seen();
        let raw = Raw::new(5000 + port);
        raw.send(&net, SYN, b"");
        raw.send(&net, SYN, b"");
        assert!(net.seen().is_empty());
        let from = 10_000 * u32::from(port);
        forge(&mut net, from..from + 300);
        net.pass(10 * MILLI);
    }
    for port in 0..clients {
        net.seen();
        let mut raw = Raw::new(5000 + port);
        raw.handshake(&mut net);
        let (stream, peer) = listener.accept().unwrap();
        assert_eq!(peer.port(), raw.from.1);
        stream.set_nonblocking(true);
        works(&mut net, &mut raw, &stream);
        net.pass(10 * MILLI);
    }
    let stats = net.stack.stats();
    assert_eq!(stats.syn_cookies_accepted, u64::from(clients));
    net.healthy();
}

/// A forger that repeats what it has sent must do so at the pace of a client, and each SYN draws one answer in that
/// time.
#[test]
fn a_forger_that_repeats_its_syns_must_wait_too() {
    let (mut net, _listener) = flooded(Some(0));
    for _ in 0..20 {
        assert_eq!(forge(&mut net, 0..100), 0, "too early");
        net.pass(500 * MILLI);
    }
    net.pass(400 * MILLI);
    assert_eq!(forge(&mut net, 0..100), 100);
    assert_eq!(forge(&mut net, 0..100), 0, "not twice");
    // Another sequence number, port or address is another SYN.
    net.pass(1000 * MILLI);
    assert!(forge(&mut net, 1000..1100) <= 2);
    net.seen();
    for change in [(1, 0, 0), (0, 1, 0), (0, 0, 1)] {
        let mut raw = Raw::new(1000 + change.1);
        raw.from.0 = [10, 0, 0, 3 + change.2].into();
        raw.seq = 100_000 + change.0;
        raw.send(&net, SYN, b"");
        assert!(net.seen().is_empty(), "{change:?}");
    }
}

#[test]
fn without_a_limit_every_syn_is_answered_at_once() {
    let (mut net, _listener) = flooded(None);
    let most = accept::syn_marks::MAX_COOKIES + 2000;
    let answered: usize = (0..most / 1000)
        .map(|part| forge(&mut net, 1000 * part..1000 * part + 1000))
        .sum();
    assert_eq!(answered, most as usize);
    assert_eq!(table(&net), 0);
    assert_eq!(net.stack.stats().syn_cookies_withheld, 0);
    // With the default there is one.
    let (mut net, _listener) = flooded(config::Config::default().max_syn_cookies);
    let answered: usize = (0..most / 1000)
        .map(|part| forge(&mut net, 1000 * part..1000 * part + 1000))
        .sum();
    assert!(answered < most as usize - 1900, "{answered}");
}

/// Guards the order in `Shared::turn_away`: a SYN that is dropped in any case is not marked.
#[test]
fn no_marks_without_cookies() {
    let mut net = Net::with(one_packet_each(), |builder| {
        builder.syn_cookies(false).max_syn_cookies(Some(0))
    });
    let _listener = TcpListener::bind_with_backlog(&net.stack, "10.0.0.1:80", 1).unwrap();
    assert_eq!(forge(&mut net, 0..100), 1);
    assert_eq!(table(&net), 0);
    let stats = net.stack.stats();
    assert_eq!((stats.syns_dropped, stats.syn_cookies_withheld), (99, 0));
}
