//! Addresses that no host can have ("martians", RFC 1122 3.2.1.3, RFC 1812 5.3.7): packets from there
//! are not answered, connecting there fails, and the stack cannot have them.

use super::*;
use crate::stack::{ConditionalListener, Intercept};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Addresses that are martians for every stack.
const NOBODY: [&str; 16] = [
    "0.0.0.0",
    "0.1.2.3",
    "127.0.0.1",
    "127.255.255.255",
    "224.0.0.1",
    "239.1.2.3",
    "240.0.0.1",
    "255.255.255.254",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:10.0.0.2",
    "::ffff:127.0.0.1",
    "ff02::1",
    "ff05::2",
    "ff0e::1",
];

/// The stack's own, its networks', and their broadcast addresses.
const OWN: [&str; 4] = ["10.0.0.1", "10.0.0.0", "10.0.0.255", "fd00::1"];

fn own_of(address: IpAddr) -> IpAddr {
    ip(if address.is_ipv4() {
        "10.0.0.1"
    } else {
        "fd00::1"
    })
}

fn peer_of(address: IpAddr) -> IpAddr {
    ip(if address.is_ipv4() {
        "10.0.0.2"
    } else {
        "fd00::2"
    })
}

const ICMP: [u8; 2] = [1, 58];

/// An ICMP packet of either family, checksums filled in; `options` are IPv4's.
fn icmp(from: IpAddr, to: IpAddr, options: &[u8], message: &[u8]) -> Vec<u8> {
    let mut packet;
    let mut message = message.to_vec();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let words = 5 + options.len() as u8 / 4;
            let len = 4 * words + message.len() as u8;
            packet = vec![0x40 | words, 0, 0, len, 0, 0, 0x40, 0, 64, ICMP[0], 0, 0];
            packet.extend(from.octets().into_iter().chain(to.octets()));
            packet.extend(options);
            let sum = checksum(&packet);
            packet[10..12].copy_from_slice(&sum);
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let len = message.len() as u8;
            packet = vec![0x60, 0, 0, 0, 0, len, ICMP[1], 64];
            packet.extend(from.octets().into_iter().chain(to.octets()));
            let pseudo = [&packet[8..40], &[0, 0, 0, len, 0, 0, 0, ICMP[1]]].concat();
            let sum = checksum(&[&pseudo[..], &message].concat());
            message[2..4].copy_from_slice(&sum);
        }
        _ => panic!("two families"),
    }
    packet.extend(message);
    packet
}

fn ping(from: IpAddr, to: IpAddr, options: &[u8]) -> Vec<u8> {
    let kind = if from.is_ipv4() { 8 } else { 128 };
    icmp(from, to, options, &[kind, 0, 0, 0, 0, 1, 0, 2])
}

impl Net {
    /// Number of frames that the stack answers with.
    fn answers(&mut self) -> usize {
        self.turn();
        let mut frames = Vec::new();
        self.wire.receive(&mut frames, 1000).unwrap()
    }

    fn bad_addresses(&self) -> u64 {
        self.stack.stats().frames_bad_address
    }
}

fn raw(from: IpAddr, to: IpAddr) -> Raw {
    let mut raw = Raw::new(5000);
    (raw.from.0, raw.to.0) = (from, to);
    raw
}

/// Guards `wire::is_endpoint` and `Network::is_martian`: packets from there are dropped and counted, to
/// an open port and to a closed one, with any listener.
#[test]
fn packets_from_impossible_addresses_are_not_answered() {
    for source in NOBODY.into_iter().chain(OWN).map(ip) {
        let mut net = Net::new();
        let _bound = net.listen(80);
        let _deciding = ConditionalListener::bind(&net.stack, "10.0.0.1:82".parse().unwrap());
        let _all = TcpListener::intercept(&net.stack, Intercept::all().ports(83..=90), 9).unwrap();
        let mut raw = raw(source, own_of(source));
        let mut sent = 0;
        for port in [80, 81, 82, 83] {
            raw.to.1 = port;
            for flags in [SYN, ACK, ACK | FIN, SYN | ACK, 0] {
                raw.send(&net, flags, b"");
                sent += 1;
            }
        }
        net.raw(&ping(source, own_of(source), &[]));
        assert_eq!(net.answers(), 0, "{source}");
        assert_eq!(net.bad_addresses(), sent + 1, "{source}");
        let stats = net.stack.stats();
        assert_eq!((stats.connections, stats.half_open), (0, 0), "{source}");
        assert_eq!(
            (stats.frames_stray, stats.syn_cookies_sent),
            (0, 0),
            "{source}"
        );
        // A valid source is answered.
        raw.from.0 = peer_of(source);
        raw.to.1 = 81;
        raw.send(&net, SYN, b"");
        net.raw(&ping(raw.from.0, raw.to.0, &[]));
        assert_eq!(net.answers(), 2, "{source}");
        net.healthy();
    }
}

/// Guards the same for destinations, with an intercepting listener.
#[test]
fn impossible_destinations_are_not_intercepted() {
    for destination in NOBODY.into_iter().chain(["10.0.0.0", "10.0.0.255"]).map(ip) {
        let mut net = Net::new();
        let listener = TcpListener::intercept(&net.stack, Intercept::all(), 9).unwrap();
        listener.set_nonblocking(true);
        let peer = peer_of(destination);
        let mut raw = raw(peer, destination);
        raw.send(&net, SYN, b"");
        raw.send(&net, ACK, b"");
        assert_eq!(
            (net.answers(), net.bad_addresses()),
            (0, 2),
            "{destination}"
        );
        // A ping to a group is for others.
        net.raw(&ping(peer, destination, &[]));
        assert_eq!(net.answers(), 0, "{destination}");
        assert_eq!(net.stack.stats().connections, 0);
        raw.to.0 = if destination.is_ipv4() {
            ip("8.8.8.8")
        } else {
            ip("2606::1")
        };
        raw.handshake(&mut net);
        assert_eq!(listener.accept().unwrap().0.local_addr().ip(), raw.to.0);
        net.healthy();
    }
}

/// A SYN from a foreign address to itself.
#[test]
fn a_syn_from_its_own_destination_is_not_intercepted() {
    let mut net = Net::new();
    let _listener = TcpListener::intercept(&net.stack, Intercept::all(), 9).unwrap();
    for port in [80, 81] {
        let mut raw = raw(ip("8.8.8.8"), ip("8.8.8.8"));
        (raw.from.1, raw.to.1) = (80, port);
        raw.send(&net, SYN, b"");
    }
    assert_eq!((net.answers(), net.bad_addresses()), (0, 2));
}

/// Guards `wire::is_source_routed`.
#[test]
fn source_routed_packets_are_dropped() {
    let (peer, own) = (ip("10.0.0.2"), ip("10.0.0.1"));
    // Loose and strict, at their end and on the way, first and behind others.
    let routes: [&[u8]; 5] = [
        &[131, 7, 8, 10, 0, 0, 9, 0],
        &[137, 7, 8, 10, 0, 0, 9, 0],
        &[131, 7, 4, 10, 0, 0, 9, 0],
        &[1, 131, 7, 8, 10, 0, 0, 9],
        &[148, 4, 0, 0, 1, 137, 7, 8, 10, 0, 0, 9],
    ];
    let mut net = Net::new();
    let listener = net.listen(80);
    for (sent, options) in (1..).zip(routes) {
        net.raw(&ping(peer, own, options));
        net.raw(&with_options(&segment(peer, own, SYN), options));
        net.raw(&with_options(&segment(peer, own, ACK), options));
        assert_eq!(net.answers(), 0, "{options:?}");
        assert_eq!(net.bad_addresses(), 3 * sent, "{options:?}");
    }
    assert_eq!(net.stack.stats().connections, 0);
    // A router alert, a record route, nothing at all, and bytes that look like one after the end.
    let others: [&[u8]; 4] = [
        &[148, 4, 0, 0],
        &[7, 7, 4, 0, 0, 0, 0, 0],
        &[1, 1, 1, 1],
        &[0, 131, 3, 4],
    ];
    for options in others {
        net.raw(&ping(peer, own, options));
        assert_eq!(net.answers(), 1, "{options:?}");
    }
    net.raw(&with_options(&segment(peer, own, SYN), others[0]));
    assert_eq!(net.one().header.flags, SYN | ACK);
    drop(listener);
    net.healthy();
}

/// A complete segment to port 80.
fn segment(from: IpAddr, to: IpAddr, flags: u8) -> Vec<u8> {
    let header = Header {
        seq: 7,
        ack: 0,
        flags,
        window: 1000,
        options: SynOptions::default(),
    };
    let mut out = [0; MAX_CANONICAL];
    let len = wire::compose(&mut out, (from, 5000), (to, 80), &header, 0);
    wire::finish(&mut out[..len], 20, std::iter::empty(), false);
    out[..len].to_vec()
}

fn with_options(packet: &[u8], options: &[u8]) -> Vec<u8> {
    let mut packet = [&packet[..20], options, &packet[20..]].concat();
    packet[0] += options.len() as u8 / 4;
    packet[3] = packet.len() as u8;
    packet[10..12].fill(0);
    let header_len = 20 + options.len();
    let sum = checksum(&packet[..header_len]);
    packet[10..12].copy_from_slice(&sum);
    packet
}

/// An error about the SYN of this connection, with other addresses.
fn error(syn: &Seen, (from, to): (IpAddr, IpAddr), (of, about): (IpAddr, IpAddr)) -> Vec<u8> {
    let v6 = from.is_ipv6();
    let header = Header { ..syn.header };
    let mut quote = [0; MAX_CANONICAL];
    let own = (of, syn.tuple.remote_port);
    wire::compose(&mut quote, own, (about, syn.tuple.local_port), &header, 0);
    let (kind, code, ip_header_len) = if v6 { (1, 4, 40) } else { (3, 3, 20) };
    let message = [&[kind, code, 0, 0, 0, 0, 0, 0], &quote[..ip_header_len + 8]].concat();
    icmp(from, to, &[], &message)
}

/// Guards `Driver::icmp`: of the sender of an error, and of its quoted addresses.
#[test]
fn errors_from_or_about_impossible_addresses_are_ignored() {
    for odd in NOBODY.into_iter().chain(OWN).map(ip) {
        let mut net = Net::new();
        let (own, peer) = (own_of(odd), peer_of(odd));
        let to = SocketAddr::new(peer, 9);
        let stream = TcpSocket::new(&net.stack).start(to).unwrap();
        let syn = net.one();
        let from_odd = error(&syn, (odd, own), (own, peer));
        let about_odd = error(&syn, (peer, own), (own, odd));
        net.raw(&from_odd);
        net.raw(&about_odd);
        net.turn();
        assert_eq!(net.bad_addresses(), 2, "{odd}");
        let stats = net.stack.stats();
        assert_eq!((stats.icmp_errors, stats.icmp_ignored), (0, 0), "{odd}");
        assert_eq!(stream.take_error(), None, "{odd}");
        net.raw(&error(&syn, (peer, own), (own, peer)));
        net.turn();
        assert_eq!(stream.take_error(), Some(SoError::ConnectionRefused));
    }
}

/// The sources of the frames that the hook is called for, in order.
type Asked = Arc<Mutex<Vec<IpAddr>, LEAF>>;

fn hooked() -> (Net, Asked) {
    let asked = Asked::default();
    let kept = asked.clone();
    let net = Net::with(one_packet_each(), |builder| {
        let hook = move |frame: &crate::link::Frame| {
            kept.lock().push(ip::addresses(&frame.head).0);
            true
        };
        builder.on_unhandled(hook).unhandled_tcp(true)
    });
    (net, asked)
}

/// A datagram for a port at which nothing receives.
fn udp(from: IpAddr, to: IpAddr) -> Vec<u8> {
    ip::samples::udp((from, to), (7, 7), b"echo")
}

/// Guards `Driver::is_martian` before the hook.
#[test]
fn the_hook_is_not_called_for_impossible_addresses() {
    for odd in NOBODY.into_iter().chain(OWN).map(ip) {
        let (mut net, asked) = hooked();
        let (own, peer) = (own_of(odd), peer_of(odd));
        let mut stranger = raw(odd, own);
        stranger.to.1 = 81;
        stranger.send(&net, ACK, b"");
        net.raw(&udp(odd, own));
        let mut fragment = udp(odd, own);
        if odd.is_ipv4() {
            fragment[6] = 0x20;
            fragment[10..12].fill(0);
            let sum = checksum(&fragment[..20]);
            fragment[10..12].copy_from_slice(&sum);
        } else {
            fragment[6] = 44;
        }
        net.raw(&fragment);
        let reply = if odd.is_ipv4() { 0 } else { 129 };
        net.raw(&icmp(odd, own, &[], &[reply, 0, 0, 0, 0, 1, 0, 2]));
        assert_eq!(net.answers(), 0, "{odd}");
        assert_eq!(net.bad_addresses(), 4, "{odd}");
        assert!(asked.lock().is_empty(), "{odd}");
        net.raw(&udp(peer, own));
        net.turn();
        assert_eq!(*asked.lock(), [peer]);
    }
}

/// The hook is called for multicast and broadcast, also from the unspecified address: DHCP, and
/// duplicate address detection (RFC 4862 5.4.2). It is not called for impossible destinations.
#[test]
fn the_hook_is_called_for_multicast_and_broadcast() {
    let many = [
        ("10.0.0.2", "224.0.0.251"),
        ("10.0.0.2", "255.255.255.255"),
        ("10.0.0.2", "10.0.0.255"),
        ("0.0.0.0", "255.255.255.255"),
        ("fd00::2", "ff02::1"),
        ("::", "ff02::1:ff00:1"),
    ];
    let nowhere = [
        ("10.0.0.2", "127.0.0.1"),
        ("10.0.0.2", "0.0.0.0"),
        ("10.0.0.2", "240.0.0.1"),
        ("fd00::2", "::1"),
        ("fd00::2", "::ffff:10.0.0.1"),
        ("127.0.0.1", "224.0.0.251"),
        ("0.0.0.0", "10.0.0.1"),
        ("::", "fd00::1"),
    ];
    let (mut net, asked) = hooked();
    for (from, to) in many.into_iter().chain(nowhere) {
        net.raw(&udp(ip(from), ip(to)));
    }
    net.turn();
    assert_eq!(*asked.lock(), many.map(|(from, _)| ip(from)));
    assert_eq!(net.bad_addresses(), nowhere.len() as u64);
}

/// Guards `Shared::source_of`: every way to connect fails at once, and nothing is sent.
#[test]
fn connecting_to_where_no_host_is_is_refused_at_once() {
    let mut net = Net::new();
    let all = NOBODY.into_iter().chain(["10.0.0.0", "10.0.0.255"]);
    let ports = all.map(|address| (ip(address), 80));
    for (address, port) in ports.chain([(ip("10.0.0.2"), 0), (ip("fd00::2"), 0)]) {
        let to = SocketAddr::new(address, port);
        let from = SocketAddr::new(own_of(address), 7000);
        let stack = &net.stack;
        let second = Duration::from_secs(1);
        let results = [
            TcpStream::connect(stack, to),
            TcpStream::connect_timeout(stack, to, second),
            TcpSocket::new(stack).bind(from).connect(to),
            TcpSocket::new(stack).queue(0).connect(to),
            TcpSocket::new(stack).start(to),
            TcpSocket::new(stack).bind(from).start(to),
            TcpSocket::new(stack).queue(0).start(to),
        ];
        for error in results.map(Result::unwrap_err) {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{to}");
            let said = format!("no host can be reached at {to}: give a port and the address");
            assert!(error.to_string().starts_with(&said), "{error}");
        }
    }
    assert!(net.seen().is_empty(), "nothing was sent");
    assert_eq!(net.stack.stats().active_opens, 0);
}

/// Guards `Network::add_address`: both when a stack is built and later.
#[test]
fn a_stack_has_only_addresses_that_a_host_can_have() {
    let bad = NOBODY.map(|address| IpNet::from(ip(address)));
    let networks = ["10.7.0.0/24", "10.7.0.255/24", "fd77::/64"].map(|net| net.parse().unwrap());
    let net = Net::new();
    for address in bad.into_iter().chain(networks) {
        let later = net.stack.add_address(address).unwrap_err();
        let (link, _far) = memory::pair(memory::Config::default());
        let built = Stack::builder(link).address(address).build().unwrap_err();
        assert_eq!(built.to_string(), later.to_string());
        assert!(later.to_string().starts_with(&match address.prefix_len() {
            24 | 64 => address.to_string(),
            _ => address.addr().to_string(),
        }));
    }
    assert_eq!(net.stack.addresses().len(), 2);
}
