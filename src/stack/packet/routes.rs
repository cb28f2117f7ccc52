//! Addresses, routes, ports and TIME-WAIT, seen from a peer.

use super::*;
use ipnet::IpNet;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn kind(result: io::Result<TcpStream>) -> ErrorKind {
    result.unwrap_err().kind()
}

fn start(net: &Net, to: &str) -> io::Result<TcpStream> {
    TcpSocket::new(&net.stack).start(at(to))
}

fn start_from(net: &Net, from: &str, to: &str) -> io::Result<TcpStream> {
    TcpSocket::new(&net.stack).bind(at(from)).start(at(to))
}

fn link(source: Option<&str>, mtu: Option<usize>) -> Route {
    let source = source.map(|source| source.parse().unwrap());
    Route::Link { source, mtu }
}

const FAMILIES: [(&str, &str, usize); 2] =
    [("10.0.0.1", "10.0.0.2", 40), ("fd00::1", "fd00::2", 60)];

/// A peer of either family.
fn peer(local: &str, remote: &str) -> Raw {
    let mut raw = Raw::new(5000);
    raw.from.0 = remote.parse().unwrap();
    raw.to.0 = local.parse().unwrap();
    raw
}

/// Guards `Shared::source_of`.
#[test]
fn a_route_refuses_or_chooses_the_source() {
    let mut net = Net::with(one_packet_each(), |builder| {
        builder
            .address(net("10.0.0.7/24"))
            .address(net("fd00::7/64"))
            .route(net("192.168.0.0/16"), link(Some("10.0.0.7"), None))
            .route(net("2001:db8::/32"), link(Some("fd00::7"), None))
            .route(net("0.0.0.0/0"), Route::Unreachable)
            .route(net("::/0"), Route::Prohibited)
    });
    assert_eq!(kind(start(&net, "8.8.8.8:80")), ErrorKind::HostUnreachable);
    assert_eq!(
        kind(start(&net, "[2606::1]:80")),
        ErrorKind::PermissionDenied
    );
    let refused = start_from(&net, "10.0.0.1:0", "8.8.8.8:80");
    assert_eq!(kind(refused), ErrorKind::HostUnreachable);
    assert!(net.seen().is_empty(), "nothing was sent");
    let rows = [
        ("192.168.3.3:80", "10.0.0.7"),
        ("[2001:db8::3]:80", "fd00::7"),
        ("10.0.0.3:80", "10.0.0.1"),
        ("[fd00::3]:80", "fd00::1"),
    ];
    let mut streams = Vec::new();
    for (to, source) in rows {
        streams.push(start(&net, to).unwrap());
        assert_eq!(net.one().tuple.remote.to_string(), source);
    }
    net.stack.set_routes([]).unwrap();
    assert!(start(&net, "8.8.8.8:80").is_ok());
    net.healthy();
}

/// The MSS that is announced and sent, for active and passive opens.
#[test]
fn a_route_clamps_the_segment_size() {
    for (local, remote, headers) in FAMILIES {
        let mut net = Net::with(one_packet_each(), |builder| {
            builder
                .route(net("10.0.0.2/32"), link(None, Some(1300)))
                .route(net("fd00::2/128"), link(None, Some(1300)))
        });
        let mss = Some((1300 - headers) as u16);
        let to = SocketAddr::new(remote.parse().unwrap(), 80);
        let _stream = TcpSocket::new(&net.stack).start(to).unwrap();
        assert_eq!(net.one().header.options.mss, mss, "dialled");
        let any = SocketAddr::new(local.parse().unwrap(), 80);
        let listener = TcpListener::bind(&net.stack, any).unwrap();
        let mut raw = peer(local, remote);
        assert_eq!(raw.syn(&mut net).header.options.mss, mss, "accepted");
        raw.send(&net, ACK, b"");
        net.turn();
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&[1; 5000]).unwrap();
        let longest = net.seen().iter().map(|frame| frame.payload.len()).max();
        assert_eq!(longest, Some(1300 - headers));
        net.healthy();
    }
}

/// Guards `Driver::unknown`: neither accepted nor reset.
#[test]
fn segments_from_unreachable_networks_are_dropped() {
    for (local, remote, _) in FAMILIES {
        let mut net = Net::new();
        let any = SocketAddr::new(local.parse().unwrap(), 80);
        let listener = TcpListener::bind(&net.stack, any).unwrap();
        let mut established = peer(local, remote);
        established.handshake(&mut net);
        for route in [Route::Unreachable, Route::Prohibited] {
            let before = net.stack.stats().frames_unrouted;
            let routes = [("10.0.0.2/32", route), ("fd00::2/128", route)];
            let routes = routes.map(|(to, route)| (to.parse().unwrap(), route));
            net.stack.set_routes(routes).unwrap();
            let mut raw = peer(local, remote);
            raw.from.1 = 5001;
            raw.send(&net, SYN, b"");
            raw.send(&net, ACK, b"stray");
            assert!(net.seen().is_empty());
            assert_eq!(net.stack.stats().frames_unrouted, before + 2);
        }
        established.send_data(&net, b"an established connection goes on");
        assert!(net.soon().has(ACK));
        net.stack.set_routes([]).unwrap();
        let mut raw = peer(local, remote);
        raw.from.1 = 5001;
        raw.syn(&mut net);
        drop(listener);
        net.healthy();
    }
}

/// Guards `Stack::dial`: the requested source, or an error.
#[test]
fn connecting_from_an_address() {
    let mut net = Net::new();
    let rows = [
        ("10.0.0.1:7", "10.0.0.2:80"),
        ("[fd00::1]:7", "[fd00::2]:80"),
    ];
    for (from, to) in rows {
        let stream = start_from(&net, from, to).unwrap();
        assert_eq!(stream.local_addr(), at(from));
        assert_eq!(net.one().tuple.remote_port, 7);
        let again = start_from(&net, from, to);
        assert_eq!(kind(again), ErrorKind::AddrInUse);
        let other_end = SocketAddr::new(at(to).ip(), 81);
        let other = TcpSocket::new(&net.stack).bind(at(from)).start(other_end);
        assert_eq!(other.unwrap().local_addr(), at(from), "another connection");
        stream.abort();
        net.turn();
        assert!(start_from(&net, from, to).is_ok(), "free again");
        net.seen();
    }
    let to = "10.0.0.2:80";
    let chosen = start_from(&net, "0.0.0.0:9", to).unwrap();
    assert_eq!(chosen.local_addr(), at("10.0.0.1:9"));
    let chosen = start_from(&net, "10.0.0.1:0", to).unwrap();
    assert!(chosen.local_addr().port() >= 49_152);
    let not_own = start_from(&net, "10.0.0.9:9", to);
    assert_eq!(kind(not_own), ErrorKind::AddrNotAvailable);
    let families = start_from(&net, "[fd00::1]:9", to);
    assert_eq!(kind(families), ErrorKind::InvalidInput);
    let itself = start_from(&net, "10.0.0.1:9", "10.0.0.1:9");
    assert_eq!(kind(itself), ErrorKind::InvalidInput);
    net.healthy();
}

/// Guards `Shared::connect`: a tuple in TIME-WAIT is not used.
#[test]
fn a_tuple_in_time_wait_is_not_dialled() {
    let mut net = Net::new();
    let (raw, _listener) = in_time_wait(&mut net);
    let again = |net: &Net| start_from(net, "10.0.0.1:80", "10.0.0.2:5000");
    assert_eq!(kind(again(&net)), ErrorKind::AddrInUse);
    net.pass(Duration::from_secs(61));
    let stream = again(&net).unwrap();
    let syn = net.one();
    assert!(syn.header.seq.wrapping_sub(raw.ack).cast_signed() > 0);
    drop(stream);
}

/// Guards `EphemeralPorts::ports_to` and the range.
#[test]
fn all_ports_in_use() {
    let mut net = Net::with(one_packet_each(), |builder| {
        builder.ephemeral_ports(100..=109)
    });
    let mut streams: Vec<TcpStream> = (0..10)
        .map(|_| start(&net, "10.0.0.2:80").unwrap())
        .collect();
    let full = start(&net, "10.0.0.2:80");
    assert_eq!(kind(full), ErrorKind::AddrNotAvailable);
    assert!(start(&net, "10.0.0.2:81").is_ok(), "another destination");
    assert!(start(&net, "[fd00::2]:80").is_ok());
    let mut ports: Vec<u16> = streams.iter().map(|one| one.local_addr().port()).collect();
    ports.sort_unstable();
    assert!(ports.into_iter().eq(100..=109));
    let freed = streams.pop().unwrap();
    let port = freed.local_addr().port();
    drop(freed);
    net.turn();
    let next = start(&net, "10.0.0.2:80").unwrap();
    assert_eq!(next.local_addr().port(), port);
}

/// Guards `Stack::dial` and `Table::reusable`: a port in TIME-WAIT is reused after a second, if there is
/// no other.
#[test]
fn ports_in_time_wait_are_used_again() {
    for (ports, other) in [(80..=80, None), (80..=81, Some(81))] {
        let mut net = Net::with(one_packet_each(), |builder| {
            builder.ephemeral_ports(ports.clone())
        });
        let (raw, listener) = in_time_wait(&mut net);
        drop(listener);
        let free = start(&net, "10.0.0.2:5000");
        match other {
            Some(port) => assert_eq!(free.as_ref().unwrap().local_addr().port(), port),
            None => assert_eq!(kind(free), ErrorKind::AddrNotAvailable),
        }
        net.seen();
        net.pass(Duration::from_millis(999));
        assert_eq!(
            kind(start(&net, "10.0.0.2:5000")),
            ErrorKind::AddrNotAvailable
        );
        net.pass(Duration::from_millis(1));
        net.seen();
        let again = start(&net, "10.0.0.2:5000").unwrap();
        assert_eq!(again.local_addr().port(), 80);
        let syn = net.one();
        assert!(syn.header.seq.wrapping_sub(raw.ack).cast_signed() > 0);
        let stats = net.stack.stats();
        assert_eq!((stats.time_wait, stats.time_wait_reused), (0, 1));
    }
}

#[test]
fn ports_out_of_range_are_refused() {
    #[expect(clippy::reversed_empty_ranges, reason = "refused")]
    for range in [0..=9, 0..=0, 9..=8] {
        let (link, _far) = memory::pair(one_packet_each());
        let builder = Stack::builder(link).address(net("10.0.0.1/24"));
        let built = builder.ephemeral_ports(range.clone()).build_with_driver();
        assert!(matches!(built, Err(BuildError::EphemeralPorts(bad)) if bad == range));
    }
    let (link, _far) = memory::pair(one_packet_each());
    let builder = Stack::builder(link).address(net("10.0.0.1/24"));
    let built = builder
        .route(net("10.0.0.0/8"), link_of(1))
        .build_with_driver();
    assert!(matches!(built, Err(BuildError::Route(RouteError::Mtu(..)))));
}

fn link_of(mtu: usize) -> Route {
    link(None, Some(mtu))
}

/// Guards `Stack::remove_address`.
#[test]
fn an_address_comes_and_goes() {
    for (local, remote, _) in [("10.0.5.1", "10.0.5.2", 0), ("fd05::1", "fd05::2", 0)] {
        let mut net = Net::new();
        let (address, to) = (local.parse().unwrap(), remote.parse().unwrap());
        let any = SocketAddr::new(address, 80);
        let error = TcpListener::bind(&net.stack, any).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
        net.stack
            .add_address(IpNet::new(address, 24).unwrap())
            .unwrap();
        let listener = TcpListener::bind(&net.stack, any).unwrap();
        let mut raw = peer(local, remote);
        raw.handshake(&mut net);
        let (accepted, _) = listener.accept().unwrap();
        accepted.set_nonblocking(true);
        let dialled = TcpSocket::new(&net.stack)
            .start(SocketAddr::new(to, 9))
            .unwrap();
        assert_eq!(dialled.local_addr().ip(), address);
        let other = start(&net, "10.0.0.2:80").unwrap();
        net.seen();
        net.stack.remove_address(address).unwrap();
        assert_eq!(accepted.take_error(), Some(SoError::AddressRemoved));
        assert_eq!(dialled.take_error(), Some(SoError::AddressRemoved));
        assert_eq!(other.take_error(), None);
        let told: Vec<bool> = net.seen().iter().map(|frame| frame.has(RST)).collect();
        // RFC 9293 3.10.5: in SYN-SENT no reset is sent.
        let resets = 1;
        assert_eq!(told, vec![true; resets], "a reset for each");
        raw.from.1 = 5001;
        raw.send(&net, SYN, b"");
        assert!(net.seen().is_empty(), "no listener");
        let from = SocketAddr::new(address, 9);
        let late = TcpSocket::new(&net.stack)
            .bind(from)
            .start(SocketAddr::new(to, 80));
        assert_eq!(late.unwrap_err().kind(), ErrorKind::AddrNotAvailable);
        net.stack
            .add_address(IpNet::new(address, 24).unwrap())
            .unwrap();
        raw.syn(&mut net);
        net.healthy();
    }
}

/// Guards `Table::drop_oldest`.
#[test]
fn the_oldest_record_makes_room() {
    let mut net = Net::with(one_packet_each(), |builder| builder.time_wait_limit(2));
    let listener = net.listen(80);
    let mut closed = Vec::new();
    for port in 5000..5003 {
        let mut raw = Raw::new(port);
        raw.handshake(&mut net);
        drop(listener.accept().unwrap());
        raw.take(&net.seen());
        raw.fin(&net);
        net.seen();
        closed.push(raw);
    }
    let stats = net.stack.stats();
    assert_eq!((stats.time_wait, stats.time_wait_dropped), (2, 1));
    let answers = closed.iter().map(|raw| {
        raw.send_at(&net, -1, ACK | FIN, b"");
        net.driver.poll().unwrap();
        net.drain()[0].header.flags & RST
    });
    assert_eq!(answers.collect::<Vec<_>>(), [RST, 0, 0]);
    net.pass(Duration::from_secs(61));
    net.pass(Duration::from_secs(61));
    assert_eq!(net.stack.stats().time_wait, 0);
}

/// Guards the limit against queue entries of removed records.
#[test]
fn a_tuple_that_is_reused_fills_no_queue() {
    let mut net = Net::with(one_packet_each(), |builder| builder.time_wait_limit(2));
    let listener = net.listen(80);
    let mut raw = Raw::new(5000);
    for _ in 0..9 {
        raw.handshake(&mut net);
        drop(listener.accept().unwrap());
        raw.take(&net.seen());
        raw.fin(&net);
        net.seen();
        raw.seq = raw.seq.wrapping_add(1);
        let stats = net.stack.stats();
        assert_eq!((stats.time_wait, stats.time_wait_dropped), (1, 0));
        assert!(net.stack.shared().table.places() <= 2);
        net.pass(Duration::from_millis(1));
    }
}

/// Guards `Shared::accept_syn`: a refused SYN does not remove the record.
#[test]
fn a_full_backlog_keeps_the_record() {
    let mut net = Net::new();
    let (old, listener) = in_time_wait(&mut net);
    drop(listener);
    let any = SocketAddr::new([0, 0, 0, 0].into(), 80);
    let _listener = TcpListener::bind_with_backlog(&net.stack, any, 1).unwrap();
    Raw::new(6000).handshake(&mut net);
    let mut new = old.clone();
    new.seq = old.seq.wrapping_add(1000);
    new.send(&net, SYN, b"");
    assert!(net.seen().is_empty());
    assert_eq!(net.stack.stats().syns_dropped, 1);
    old.send_at(&net, -1, ACK | FIN, b"");
    let answer = net.one();
    assert_eq!((answer.header.flags, answer.header.seq), (ACK, old.ack));
}

/// Guards `Shared::turn_away`: the record would take the acknowledgement of a cookie.
#[test]
fn no_cookie_in_the_place_of_a_record() {
    let mut net = Net::with(one_packet_each(), |builder| builder.max_half_open(1));
    let (old, listener) = in_time_wait(&mut net);
    let mut other = Raw::new(6000);
    other.syn(&mut net);
    let mut new = old.clone();
    new.seq = old.seq.wrapping_add(1000);
    new.send(&net, SYN, b"");
    assert!(net.seen().is_empty());
    let stats = net.stack.stats();
    assert_eq!((stats.syns_dropped, stats.syn_cookies_sent), (1, 0));
    other.send(&net, ACK, b"");
    net.turn();
    // It is retransmitted, and there is room.
    new.handshake(&mut net);
    listener.accept().unwrap();
    listener.accept().unwrap();
}

/// Guards `TimeWait::answer` for addresses that are not the stack's, in both families.
#[test]
fn an_intercepted_connection_is_reused_by_a_larger_syn() {
    for (local, remote) in [("203.0.113.1", "10.0.0.2"), ("2001:db8::1", "fd00::2")] {
        let mut net = Net::new();
        let listener = TcpListener::intercept(&net.stack, Intercept::all(), 9).unwrap();
        let mut raw = peer(local, remote);
        raw.handshake(&mut net);
        drop(listener.accept().unwrap());
        raw.take(&net.seen());
        raw.fin(&net);
        net.seen();
        let mut old = raw.clone();
        old.seq = raw.seq.wrapping_sub(1);
        old.send(&net, SYN, b"");
        assert_eq!(net.one().header.flags, ACK, "not larger");
        let (last, seq) = (raw.ack, raw.seq);
        raw.syn(&mut net);
        assert!(raw.ack.wrapping_sub(last).cast_signed() > 0);
        assert_eq!(raw.seq, seq.wrapping_add(1), "the first that is larger");
        net.healthy();
    }
}

/// Both stacks are ours: one connects to the same port again and again.
#[test]
fn a_port_is_used_again_at_once() {
    let (a, b) = memory::pair(memory::Config::default());
    let clock = Arc::new(TestClock(Mutex::new(SystemClock.now())));
    let build = |link, address| {
        let builder = Stack::builder(link).address(net(address));
        builder.clock(clock.clone()).build_with_driver().unwrap()
    };
    let (server, mut serving) = build(a, "fd00::1/64");
    let (client, mut dialling) = build(b, "fd00::2/64");
    let listener = TcpListener::bind(&server, at("[fd00::1]:80")).unwrap();
    listener.set_nonblocking(true);
    for _ in 0..20 {
        let mut turn = || {
            for _ in 0..10 {
                serving.poll().unwrap();
                dialling.poll().unwrap();
            }
        };
        let (from, to) = (at("[fd00::2]:1023"), at("[fd00::1]:80"));
        let stream = TcpSocket::new(&client).bind(from).start(to).unwrap();
        turn();
        // The server closes first, and has the record.
        drop(listener.accept().unwrap());
        turn();
        drop(stream);
        turn();
        assert_eq!(server.stats().time_wait, 1);
        *clock.0.lock() += Duration::from_micros(100);
    }
}
