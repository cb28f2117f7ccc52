//! Intercepted flows: how they begin, what they receive and send, their limits, and how they end. RFC 4787.

use super::*;
use crate::splice::{self, Cause};
use crate::stack::Route;

mod limits;
mod model;

pub(super) fn options() -> FlowOptions {
    FlowOptions::default()
}

pub(super) const CLIENT: &str = "10.0.0.2:9";
pub(super) const SERVER: &str = "192.0.2.1:53";

#[test]
fn a_first_datagram_begins_a_flow_with_its_destination() {
    for (client, server) in [
        (CLIENT, SERVER),
        ("[fd00::2]:9", "[2001:db8::1]:53"),
        // A port of the stack's own to which nothing is bound.
        (CLIENT, "10.0.0.1:53"),
    ] {
        let mut net = Net::new();
        let listener = net.flows(Intercept::all(), options());
        assert!(accepted(&listener).is_none());
        net.arrives(client, server, b"one");
        net.arrives(client, server, b"");
        let (flow, from) = accepted(&listener).unwrap();
        assert_eq!(from, at(client));
        assert_eq!(flow.local_addr(), at(server));
        assert_eq!(flow.peer_addr().unwrap(), at(client));
        assert_eq!(received(&flow), Some((b"one".to_vec(), at(client))));
        assert_eq!(received(&flow), Some((vec![], at(client))));
        net.arrives(client, server, b"three");
        assert_eq!(received(&flow).unwrap().0, b"three");
        assert!(accepted(&listener).is_none(), "one flow");
        // It answers in the name of its destination, without being told.
        flow.send(b"answer").unwrap();
        flow.send_to(b"", from).unwrap();
        assert_eq!(
            net.sent(),
            [got(server, client, b"answer"), got(server, client, b"")]
        );
        let stats = net.stack.stats();
        assert_eq!((stats.flows, stats.flows_opened), (1, 1));
        assert_eq!((stats.datagrams_received, stats.datagrams_sent), (3, 2));
    }
}

/// A flow is a connected socket: it sends to its client, and to nobody else in its destination's name.
#[test]
fn a_flow_sends_to_its_client_only() {
    let mut net = Net::new();
    let listener = net.flows(Intercept::all(), options());
    net.arrives(CLIENT, SERVER, b"?");
    let (flow, _) = accepted(&listener).unwrap();
    for other in ["10.0.0.3:9", "10.0.0.2:10", "192.0.2.1:53"] {
        assert_eq!(kind(flow.send_to(b"x", other)), ErrorKind::InvalidInput);
    }
    assert_eq!(kind(flow.connect("10.0.0.3:9")), ErrorKind::InvalidInput);
    assert_eq!(net.sent(), []);
    assert_eq!(flow.take_error(), None);
}

#[test]
fn each_destination_is_a_flow_of_its_own() {
    let mut net = Net::new();
    let listener = net.flows(Intercept::all(), options());
    let ends = [
        (CLIENT, SERVER),
        (CLIENT, "192.0.2.1:54"),
        (CLIENT, "192.0.2.2:53"),
        ("10.0.0.2:10", SERVER),
        ("10.0.0.3:9", SERVER),
    ];
    for (client, server) in ends {
        net.arrives(client, server, server.as_bytes());
    }
    for (client, server) in ends {
        let (flow, from) = accepted(&listener).unwrap();
        assert_eq!((from, flow.local_addr()), (at(client), at(server)));
        assert_eq!(received(&flow).unwrap().0, server.as_bytes());
        assert_eq!(received(&flow), None);
    }
    assert_eq!(net.stack.stats().flows_opened, 5);
}

/// RFC 4787 4.1, 5: one socket for all that a client's port sends, and anyone may answer.
#[test]
fn an_endpoint_is_one_socket_for_all_destinations() {
    for (client, servers, third) in [
        (CLIENT, [SERVER, "198.51.100.7:443"], "198.51.100.8:1"),
        (
            "[fd00::2]:9",
            ["[2001:db8::1]:53", "[2001:db8::2]:443"],
            "[2001:db8::3]:1",
        ),
    ] {
        let mut net = Net::new();
        let listener = net.flows(Intercept::all(), options().mapping(Mapping::Endpoint));
        for server in servers {
            net.arrives(client, server, server.as_bytes());
        }
        let (flow, from) = accepted(&listener).unwrap();
        assert!(accepted(&listener).is_none());
        assert_eq!(from, at(client));
        assert_eq!(flow.peer_addr().unwrap(), at(client));
        assert_eq!(flow.local_addr().port(), 0);
        assert!(flow.local_addr().ip().is_unspecified());
        for server in servers {
            let what = server.as_bytes().to_vec();
            assert_eq!(received(&flow), Some((what, at(server))));
        }
        // In the name of the one it came from, also of one that the client has never sent to.
        for server in [servers[1], servers[0], third] {
            flow.send_to(b"answer", server).unwrap();
            assert_eq!(net.sent(), [got(server, client, b"answer")]);
        }
        assert_eq!(kind(flow.send(b"whose?")), ErrorKind::NotConnected);
        // Names that are no host's.
        for (name, expected) in [
            ("224.0.0.1:53", ErrorKind::HostUnreachable),
            ("[ff02::1]:53", ErrorKind::HostUnreachable),
            ("255.255.255.255:53", ErrorKind::HostUnreachable),
            ("10.0.0.255:53", ErrorKind::HostUnreachable),
            ("0.0.0.0:53", ErrorKind::HostUnreachable),
            ("192.0.2.1:0", ErrorKind::AddrNotAvailable),
            ("[2001:db8::1]:0", ErrorKind::AddrNotAvailable),
        ] {
            if at(name).is_ipv4() == at(client).is_ipv4() {
                assert_eq!(kind(flow.send_to(b"x", name)), expected, "{name}");
            }
        }
        assert_eq!(net.sent(), []);
        // Another port of the client is another one.
        let other = client.replace(":9", ":10");
        net.arrives(&other, servers[0], b"?");
        assert_eq!(accepted(&listener).unwrap().1, at(&other));
    }
}

/// The rule is what a listener gets, also with an endpoint-independent mapping: one for DNS is no way to the rest.
#[test]
fn an_endpoint_gets_what_its_rule_says() {
    let mut net = Net::new();
    let dns = net.flows(
        Intercept::all().ports(53..=53),
        options().mapping(Mapping::Endpoint),
    );
    net.arrives(CLIENT, "192.0.2.1:53", b"dns");
    let (flow, _) = accepted(&dns).unwrap();
    net.arrives(CLIENT, "192.0.2.1:22", b"not dns");
    net.arrives(CLIENT, "10.0.0.1:22", b"closed");
    net.arrives(CLIENT, "192.0.2.9:53", b"more");
    assert_eq!(received(&flow).unwrap().0, b"dns");
    assert_eq!(received(&flow).unwrap().0, b"more");
    assert_eq!(received(&flow), None);
    assert_eq!(net.stack.stats().datagrams_no_port, 2);
    assert_eq!(net.said_to_client(), 1, "of the own address");
    // A second listener for the rest has a socket of its own for the same client.
    let rest = net.flows(Intercept::all(), options().mapping(Mapping::Endpoint));
    net.arrives(CLIENT, "192.0.2.1:22", b"rest");
    net.arrives(CLIENT, "192.0.2.1:53", b"dns");
    let (other, _) = accepted(&rest).unwrap();
    assert_eq!(
        received(&other),
        Some((b"rest".to_vec(), at("192.0.2.1:22")))
    );
    assert_eq!(received(&flow), Some((b"dns".to_vec(), at("192.0.2.1:53"))));
    // Its listener is gone: the flow goes on, with what its rule says.
    drop(dns);
    net.arrives(CLIENT, "192.0.2.1:53", b"dns");
    net.arrives(CLIENT, "192.0.2.1:23", b"rest");
    assert_eq!(received(&flow).unwrap().0, b"dns");
    assert_eq!(received(&other).unwrap().0, b"rest");
    drop(flow);
    net.arrives(CLIENT, "192.0.2.1:53", b"now the rest's");
    assert_eq!(received(&other).unwrap().0, b"now the rest's");
    // A more precise listener takes new flows from a less precise one.
    let precise = net.flows(
        Intercept::all().addresses("192.0.2.0/24".parse().unwrap()),
        options().mapping(Mapping::Endpoint),
    );
    net.arrives(CLIENT, "192.0.2.1:24", b"precise");
    net.arrives(CLIENT, "198.51.100.1:24", b"other");
    let (third, _) = accepted(&precise).unwrap();
    assert_eq!(received(&third).unwrap().0, b"precise");
    assert_eq!(received(&other).unwrap().0, b"other");
    assert_eq!(net.listed().len(), 2);
    drop((third, other));
    assert_eq!(net.listed(), []);
    net.healthy();
}

impl Net {
    /// How many packets there are, all of ICMP.
    fn said_to_client(&mut self) -> usize {
        let packets = self.complete();
        assert!(packets.iter().all(|packet| packet[9] == 1));
        packets.len()
    }
}

/// Bound sockets, then the longest prefix, then the fewest ports.
#[test]
fn the_most_precise_rule_wins() {
    let mut net = Net::new();
    let net_rule = |network: &str| Intercept::all().addresses(network.parse().unwrap());
    // The least precise ones first: the order does not matter.
    let rules = [
        Intercept::all(),
        Intercept::all().ports(53..=60),
        Intercept::all().ports(53..=53),
        net_rule("192.0.2.0/24"),
        net_rule("192.0.2.0/24").ports(53..=53),
        net_rule("192.0.2.1/32"),
    ];
    let listeners = rules.map(|rule| net.flows(rule, options()));
    let bound = net.bound("10.0.0.1:53");
    for (number, (to, expected)) in [
        ("198.51.100.1:80", 0),
        ("198.51.100.1:54", 1),
        ("198.51.100.1:53", 2),
        ("192.0.2.2:80", 3),
        ("192.0.2.2:53", 4),
        ("192.0.2.1:53", 5),
        ("10.0.0.1:54", 1),
    ]
    .into_iter()
    .enumerate()
    {
        net.arrives(&format!("10.0.0.2:{}", 1000 + number), to, b"?");
        for (index, listener) in listeners.iter().enumerate() {
            let found = accepted(listener).map(|(flow, _)| flow.local_addr());
            assert_eq!(found, (index == expected).then(|| at(to)), "{to} {index}");
        }
    }
    net.arrives(CLIENT, "10.0.0.1:53", b"bound");
    assert_eq!(received(&bound).unwrap().0, b"bound");
    // Overlap: the same precision and a destination in common.
    let again = |rule| UdpListener::intercept(&net.stack, rule, options());
    assert_eq!(kind(again(Intercept::all())), ErrorKind::AddrInUse);
    let same = net_rule("192.0.2.77/24").ports(53..=53);
    assert_eq!(kind(again(same)), ErrorKind::AddrInUse);
    let overlaps = Intercept::all().ports(60..=67);
    assert_eq!(kind(again(overlaps)), ErrorKind::AddrInUse);
    again(Intercept::all().ports(61..=68)).unwrap();
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is refused")]
    let none = Intercept::all().ports(2..=1);
    assert_eq!(kind(again(none)), ErrorKind::InvalidInput);
    // TCP's listeners are others.
    TcpListener::intercept(&net.stack, Intercept::all(), 1).unwrap();
    // And the rule is free again.
    drop(listeners);
    again(Intercept::all()).unwrap();
}

/// Linux: the packets that a socket was bound for go there, whatever flows were there before.
#[test]
fn a_flow_that_is_there_keeps_its_datagrams() {
    let mut net = Net::new();
    let all = net.flows(Intercept::all(), options());
    net.arrives(CLIENT, "10.0.0.1:53", b"?");
    let (flow, _) = accepted(&all).unwrap();
    let bound = net.bound("10.0.0.1:53");
    let precise = net.flows(Intercept::all().ports(53..=53), options());
    net.arrives(CLIENT, "10.0.0.1:53", b"flow");
    net.arrives("10.0.0.3:9", "10.0.0.1:53", b"bound");
    assert_eq!(received(&flow).unwrap().0, b"?");
    assert_eq!(received(&flow).unwrap().0, b"flow");
    assert_eq!(received(&bound).unwrap().0, b"bound");
    assert!(accepted(&precise).is_none() && accepted(&all).is_none());
}

#[test]
fn routes_decide_who_may_begin_a_flow() {
    let mut net = Net::with(one_packet_each(), |builder| {
        builder
            .route("203.0.113.0/24".parse().unwrap(), Route::Unreachable)
            .route("198.51.100.0/24".parse().unwrap(), Route::Prohibited)
    });
    let listener = net.flows(Intercept::all(), options());
    for client in ["203.0.113.1:9", "198.51.100.1:9"] {
        net.arrives(client, SERVER, b"?");
        net.arrives(client, "10.0.0.1:7", b"?");
    }
    assert!(accepted(&listener).is_none());
    assert_eq!(net.complete().len(), 0);
    assert_eq!(net.stack.stats().frames_unrouted, 4);
    // The destination need not be reachable: that is the program's business.
    net.arrives(CLIENT, "203.0.113.1:9", b"?");
    let (flow, _) = accepted(&listener).unwrap();
    flow.send(b"!").unwrap();
    assert_eq!(net.sent(), [got("203.0.113.1:9", CLIENT, b"!")]);
    // Its client is cut off: told, and not over.
    net.stack
        .set_routes([("10.0.0.2/32".parse().unwrap(), Route::Prohibited)])
        .unwrap();
    assert_eq!(kind(flow.send(b"!")), ErrorKind::PermissionDenied);
    net.stack.set_routes([]).unwrap();
    flow.send(b"!").unwrap();
    assert_eq!(net.sent().len(), 1);
}

/// RFC 4787 4.3: 30 seconds until it is answered, then 180; either direction keeps it.
#[test]
fn flows_end_when_nothing_has_passed() {
    for mapping in [Mapping::Flow, Mapping::Endpoint] {
        let mut net = Net::new();
        let listener = net.flows(Intercept::all(), options().mapping(mapping));
        let answer = |flow: &UdpSocket| match mapping {
            Mapping::Flow => flow.send(b"!"),
            _ => flow.send_to(b"!", SERVER),
        };
        let second = Duration::from_secs(1);
        net.arrives(CLIENT, SERVER, b"?");
        let (flow, _) = accepted(&listener).unwrap();
        // Refreshed by the client.
        net.pass(29 * second);
        net.arrives(CLIENT, SERVER, b"?");
        net.pass(29 * second);
        assert_eq!(net.listed().len(), 1);
        assert_eq!(net.listed()[0].idle, 29 * second);
        // Answered, then by either side.
        answer(&flow).unwrap();
        net.pass(179 * second);
        answer(&flow).unwrap();
        net.pass(179 * second);
        net.arrives(CLIENT, SERVER, b"?");
        net.pass(179 * second);
        assert_eq!(net.stack.stats().flows, 1);
        net.pass(2 * second);
        let stats = net.stack.stats();
        assert_eq!((stats.flows, stats.flows_expired), (0, 1));
        assert_eq!(net.listed(), []);
        // What has arrived is there, then the end; nothing is sent any more.
        net.sent();
        for _ in 0..3 {
            assert_eq!(received(&flow).unwrap().0, b"?");
        }
        let mut out = [0; 9];
        assert_eq!(kind(flow.recv_from(&mut out)), ErrorKind::UnexpectedEof);
        assert_eq!(kind(flow.recv(&mut out)), ErrorKind::UnexpectedEof);
        assert_eq!(kind(answer(&flow)), ErrorKind::BrokenPipe);
        assert_eq!(net.sent(), []);
        // The client begins anew.
        net.arrives(CLIENT, SERVER, b"again");
        assert_eq!(
            received(&accepted(&listener).unwrap().0).unwrap().0,
            b"again"
        );
        // Never answered: 30 seconds.
        let (flow, _) = {
            net.arrives("10.0.0.2:10", SERVER, b"?");
            accepted(&listener).unwrap()
        };
        net.pass(29 * second);
        assert_eq!(net.listed().len(), 1);
        net.pass(2 * second);
        assert_eq!(net.listed(), []);
        received(&flow).unwrap();
        assert_eq!(kind(flow.recv_from(&mut out)), ErrorKind::UnexpectedEof);
        net.healthy();
    }
}

/// Times that are longer than any clock.
#[test]
fn a_flow_may_last_for_ever() {
    let mut net = Net::new();
    let ages = options()
        .unanswered_timeout(Duration::MAX)
        .answered_timeout(Duration::MAX);
    let listener = net.flows(Intercept::all(), ages);
    net.arrives(CLIENT, SERVER, b"?");
    let (flow, _) = accepted(&listener).unwrap();
    net.pass(Duration::from_secs(1_000_000));
    flow.send(b"!").unwrap();
    net.pass(Duration::from_secs(1_000_000));
    assert_eq!(net.sent().len(), 1);
    assert_eq!(net.listed().len(), 1);
}

/// The end of a flow is the end of what moves its datagrams.
#[test]
fn a_splice_ends_with_its_flow() {
    let mut net = Net::new();
    let listener = net.flows(Intercept::all(), options());
    net.arrives(CLIENT, SERVER, b"one");
    let (flow, _) = accepted(&listener).unwrap();
    let (near, far) = crate::local::datagram_pair();
    let up = flow.splice_to(&near, splice::Options::default()).unwrap();
    let down = near.splice_to(&flow, splice::Options::default()).unwrap();
    let mut out = [0; 100];
    assert_eq!(far.recv(&mut out).unwrap(), 3);
    net.arrives(CLIENT, SERVER, b"");
    assert_eq!(far.recv(&mut out).unwrap(), 0);
    far.send(b"answer").unwrap();
    let mut sent = Vec::new();
    while sent.is_empty() {
        sent = net.sent();
        thread::yield_now();
    }
    assert_eq!(sent, [got(SERVER, CLIENT, b"answer")]);
    net.pass(Duration::from_secs(181));
    assert_eq!(up.wait().cause, Cause::Eof);
    assert_eq!(down.wait().cause, Cause::SinkShutdown);
    assert_eq!((up.wait().bytes, down.wait().bytes), (3, 6));
}

/// By whichever queue a flow's datagrams come, and the first of them may come by two at once.
#[test]
fn a_flow_has_one_queue_and_hears_all() {
    for mapping in [Mapping::Flow, Mapping::Endpoint] {
        let mut nets = queues::nets(|builder| builder);
        let listener = nets[0].flows(Intercept::all(), options().mapping(mapping));
        nets[1].arrives(CLIENT, SERVER, b"first");
        nets[0].arrives(CLIENT, SERVER, b"second");
        let (flow, _) = accepted(&listener).unwrap();
        assert!(accepted(&listener).is_none());
        assert_eq!(received(&flow).unwrap().0, b"first");
        assert_eq!(received(&flow).unwrap().0, b"second");
        flow.send_to(
            b"!",
            if mapping == Mapping::Flow {
                CLIENT
            } else {
                SERVER
            },
        )
        .unwrap();
        assert_eq!(nets[0].sent(), []);
        assert_eq!(nets[1].sent().len(), 1, "by the queue that it came by");
        // Expiry is the first queue's work.
        nets[0].pass(Duration::from_secs(181));
        assert_eq!(nets[0].listed(), []);
    }
}

/// The queue of a flow goes: the flow ends, and its client may come by another one.
#[test]
fn a_queue_that_is_gone_ends_its_flows() {
    let [mut first, second] = queues::nets(|builder| builder);
    let listener = first.flows(Intercept::all(), options());
    let mut second = second;
    second.arrives(CLIENT, SERVER, b"?");
    first.arrives("10.0.0.2:10", SERVER, b"?");
    let (gone, _) = accepted(&listener).unwrap();
    let (stays, _) = accepted(&listener).unwrap();
    drop(second.wire);
    while second.driver.poll().is_ok_and(|worked| worked) {}
    received(&gone).unwrap();
    assert_eq!(kind(gone.recv_from(&mut [0; 9])), ErrorKind::NetworkDown);
    first.arrives(CLIENT, SERVER, b"by the other");
    let (again, _) = accepted(&listener).unwrap();
    assert_eq!(received(&again).unwrap().0, b"by the other");
    stays.send(b"!").unwrap();
    assert_eq!(first.sent().len(), 1);
}
