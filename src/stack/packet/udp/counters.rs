//! The counters of RFC 4113, the listing, and what moves them.

use super::*;
use crate::stack::DatagramTable;

/// Received, sent, without a port, dropped, unsent, ICMP errors; flows begun, refused and expired.
fn counters(net: &Net) -> [u64; 9] {
    let stats = net.stack.stats();
    [
        stats.datagrams_received,
        stats.datagrams_sent,
        stats.datagrams_no_port,
        stats.datagrams_dropped,
        stats.datagrams_unsent,
        stats.datagram_icmp_errors,
        stats.flows_opened,
        stats.flows_refused,
        stats.flows_expired,
    ]
}

#[test]
fn each_counter_moves_by_what_it_counts() {
    let mut net = Net::new();
    let socket = net.bound("10.0.0.1:7");
    assert_eq!(counters(&net), [0; 9]);
    let mut expected = [0; 9];
    let mut step = |net: &mut Net, which: usize, what: &str| {
        net.turn();
        expected[which] += 1;
        assert_eq!(counters(net), expected, "{what}");
    };
    net.arrives("10.0.0.2:9", "10.0.0.1:7", b"?");
    step(&mut net, 0, "received");
    socket.send_to(b"!", "10.0.0.2:9").unwrap();
    step(&mut net, 1, "sent");
    net.arrives("10.0.0.2:9", "10.0.0.1:8", b"?");
    step(&mut net, 2, "no port");
    net.arrives("10.0.0.2:9", "10.0.0.77:8", b"?");
    step(&mut net, 2, "another host's");
    socket.shutdown(Shutdown::Read).unwrap();
    net.arrives("10.0.0.2:9", "10.0.0.1:7", b"?");
    step(&mut net, 3, "shut down");
    let lost = crate::sockbuf::Datagram::new([], crate::sockbuf::Addresses::to(at("224.0.0.1:1")));
    socket.send_datagrams(&mut vec![lost]).unwrap();
    step(&mut net, 4, "no way");
    socket.take_error();
    let quoted = datagram_of("10.0.0.1:7", "10.0.0.2:9", b"!");
    let ends = addresses(false);
    net.raw(&from_to(
        ends,
        1,
        &message(ends, 3, 3, &[&[0; 4], &quoted[..]].concat()),
    ));
    step(&mut net, 5, "port unreachable");
    let listener = net.flows(Intercept::all(), FlowOptions::default().max_flows(1));
    net.arrives("10.0.0.2:9", "192.0.2.1:7", b"");
    expected[0] += 1;
    expected[6] += 1;
    assert_eq!(counters(&net), expected, "the flow's first is received");
    net.arrives("10.0.0.2:9", "192.0.2.1:8", b"");
    expected[7] += 1;
    assert_eq!(counters(&net), expected);
    let stats = net.stack.stats();
    assert_eq!((stats.datagram_sockets, stats.flows), (1, 1));
    net.pass(Duration::from_secs(31));
    expected[8] += 1;
    assert_eq!(counters(&net), expected);
    drop((socket, listener));
    let stats = net.stack.stats();
    assert_eq!((stats.datagram_sockets, stats.flows), (0, 0));
    // None of it is TCP's.
    assert_eq!((stats.segments_received, stats.icmp_errors), (0, 0));
}

/// What passes the stack's own queue counts on both sides.
#[test]
fn looped_datagrams_are_sent_and_received() {
    let mut net = Net::new();
    let [a, b] = ["10.0.0.1:7", "10.0.0.1:8"].map(|address| net.bound(address));
    a.send_to(b"1", "10.0.0.1:8").unwrap();
    net.turn();
    received(&b).unwrap();
    assert_eq!(counters(&net)[..2], [1, 1]);
}

#[test]
fn the_listing() {
    let mut net = Net::new();
    let bound = net.bound("0.0.0.0:53");
    let connected = net.bound("[fd00::1]:7");
    connected.connect("[fd00::2]:9").unwrap();
    let by_flow = net.flows(Intercept::all().ports(7..=7), FlowOptions::default());
    let by_endpoint = net.flows(
        Intercept::all(),
        FlowOptions::default().mapping(Mapping::Endpoint).records(1),
    );
    net.arrives("10.0.0.2:9", "10.0.0.1:53", b"query");
    net.arrives("10.0.0.2:9", "192.0.2.1:7", b"one");
    net.pass(Duration::from_secs(7));
    net.arrives("10.0.0.2:9", "192.0.2.1:8", b"three");
    net.arrives("10.0.0.2:9", "192.0.2.1:9", b"four");
    let expected = "\
Kind   Local        Peer         Recv-Q  Send-Q  Dropped  Idle
bound  0.0.0.0:53   *                 5       0        0     7
bound  [fd00::1]:7  [fd00::2]:9       0       0        0     7
flow   192.0.2.1:7  10.0.0.2:9        3       0        0     7
flow   *            10.0.0.2:9        5       0        1     0";
    let listed = net.listed();
    assert_eq!(DatagramTable(&listed).to_string(), expected);
    assert_eq!(listed[0].id, bound.end().id());
    assert_eq!(listed[1].peer, connected.peer_addr().ok());
    assert_eq!(listed[3].local, None);
    drop((by_flow, by_endpoint));
    assert_eq!(net.listed().len(), 2);
}
