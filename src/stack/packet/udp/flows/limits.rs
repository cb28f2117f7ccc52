//! Limits of flows, and who tries to exceed them.

use super::*;
use crate::splice::{Dispatch, Options};

fn client(host: u8, port: u16) -> String {
    format!("10.0.0.{host}:{port}")
}

/// Each limit by itself; what is refused is dropped and counted, and a place that is given back can be had.
#[test]
fn flows_are_limited_in_total_by_client_and_until_accepted() {
    for (limits, allowed) in [
        (options().max_flows(3), [3, 0]),
        (options().max_flows_per_client(3), [3, 3]),
        (options().backlog(3), [3, 0]),
        (options().max_flows(5).max_flows_per_client(3), [3, 2]),
        (options().max_flows(0), [0, 0]),
    ] {
        for mapping in [Mapping::Flow, Mapping::Endpoint] {
            let mut net = Net::new();
            let listener = net.flows(Intercept::all(), limits.clone().mapping(mapping));
            for host in [2, 3] {
                for port in 1..=10 {
                    net.arrives(&client(host, port), SERVER, b"?");
                    net.arrives(&client(host, port), SERVER, b"?");
                }
            }
            let mut flows: Vec<_> = std::iter::from_fn(|| accepted(&listener)).collect();
            let of = |flows: &[(UdpSocket, SocketAddr)], host: u8| {
                let host = IpAddr::from([10, 0, 0, host]);
                flows.iter().filter(|(_, from)| from.ip() == host).count()
            };
            assert_eq!([of(&flows, 2), of(&flows, 3)], allowed, "{limits:?}");
            let count = flows.len();
            let stats = net.stack.stats();
            assert_eq!(stats.flows, count);
            assert_eq!(stats.flows_opened, count as u64);
            assert_eq!(stats.flows_refused, 40 - 2 * count as u64);
            assert_eq!(net.complete().len(), 0, "silently");
            // One is closed: one more may come.
            if flows.pop().is_some() {
                net.arrives(&client(3, 100), SERVER, b"?");
                net.arrives(&client(3, 101), SERVER, b"?");
                let more: Vec<_> = std::iter::from_fn(|| accepted(&listener)).collect();
                assert!(!more.is_empty(), "{limits:?}");
            }
        }
    }
}

/// The program does not accept: flows end as others do, and do not fill the backlog for ever.
#[test]
fn flows_that_were_not_accepted_in_time_make_room() {
    let mut net = Net::new();
    let listener = net.flows(Intercept::all(), options().backlog(3));
    for port in 1..=5 {
        net.arrives(&client(2, port), SERVER, b"?");
    }
    net.pass(Duration::from_secs(20));
    net.arrives(&client(2, 1), SERVER, b"still there");
    net.pass(Duration::from_secs(11));
    let stats = net.stack.stats();
    assert_eq!((stats.flows, stats.flows_expired), (1, 2));
    net.arrives(&client(2, 7), SERVER, b"?");
    net.arrives(&client(2, 8), SERVER, b"?");
    let ports: Vec<u16> = std::iter::from_fn(|| accepted(&listener))
        .map(|(_, from)| from.port())
        .collect();
    assert_eq!(ports, [1, 7, 8], "no flow that is over");
}

#[test]
fn a_closed_listener_drops_what_was_not_accepted_and_leaves_the_rest() {
    for mapping in [Mapping::Flow, Mapping::Endpoint] {
        let mut net = Net::new();
        let listener = net.flows(Intercept::all(), options().mapping(mapping));
        net.arrives(&client(2, 1), SERVER, b"?");
        net.arrives(&client(2, 2), SERVER, b"?");
        let (flow, _) = accepted(&listener).unwrap();
        listener.close();
        assert_eq!(kind(listener.accept()), ErrorKind::InvalidInput);
        assert_eq!(net.listed().len(), 1);
        net.arrives(&client(2, 1), SERVER, b"more");
        net.arrives(&client(2, 2), SERVER, b"not mine");
        net.arrives(&client(2, 3), SERVER, b"not mine");
        assert_eq!(received(&flow).unwrap().0, b"?");
        assert_eq!(received(&flow).unwrap().0, b"more");
        assert_eq!(net.stack.stats().datagrams_no_port, 2);
        drop(flow);
        assert_eq!(net.listed(), []);
        assert_eq!(net.stack.stats().flows, 0);
    }
}

/// A flood of new flows: the memory is that of the limits, nothing is left of flows that are over, and others go on.
#[test]
fn a_flood_of_new_flows_harms_no_one() {
    let mut net = Net::new();
    let server = net.bound("10.0.0.1:7");
    let listener = net.flows(Intercept::all(), options().max_flows_per_client(50));
    net.arrives("10.0.0.77:9", SERVER, b"honest");
    let (honest, _) = accepted(&listener).unwrap();
    for number in 0..20_000_u32 {
        let destination = format!("198.51.{}.{}:53", number >> 8 & 0xff, number & 0xff);
        net.raw(&datagram_of(CLIENT, &destination, b"flood"));
        if number % 1000 == 0 {
            net.arrives("10.0.0.3:9", "10.0.0.1:7", b"beside it");
            assert_eq!(received(&server).unwrap().0, b"beside it");
            net.arrives("10.0.0.77:9", SERVER, b"honest");
            assert_eq!(received(&honest).unwrap().0, b"honest");
        }
    }
    net.turn();
    let stats = net.stack.stats();
    assert_eq!((stats.flows, stats.flows_refused), (51, 19_950));
    assert_eq!(net.stack.shared().udp.armed(), 51);
    // Accepted and closed at once, as a program does that answers "no": each leaves nothing behind.
    drop(std::iter::from_fn(|| accepted(&listener)).collect::<Vec<_>>());
    for number in 0..5_000_u32 {
        let destination = format!("198.51.{}.{}:54", number >> 8 & 0xff, number & 0xff);
        net.arrives(CLIENT, &destination, b"flood");
        drop(accepted(&listener).unwrap());
    }
    assert_eq!(net.stack.stats().flows, 1);
    assert_eq!(
        net.stack.shared().udp.armed(),
        1,
        "timers of flows that are over"
    );
}

/// A flood at one flow that nobody reads: its buffer is full, and no one else's.
#[test]
fn a_flood_at_one_flow_fills_one_buffer() {
    let mut net = Net::new();
    let few = options().hiwat(10_000).records(100);
    let listener = net.flows(Intercept::all(), few);
    net.arrives(CLIENT, SERVER, b"?");
    let (flow, _) = accepted(&listener).unwrap();
    received(&flow).unwrap();
    for _ in 0..1_000 {
        net.arrives(CLIENT, SERVER, &[7; 1000]);
        net.arrives(CLIENT, SERVER, b"");
    }
    net.arrives("10.0.0.3:9", SERVER, b"?");
    assert_eq!(received(&accepted(&listener).unwrap().0).unwrap().0, b"?");
    let held = flow.end().with_rcv(|rcv| (rcv.len(), rcv.records()));
    assert_eq!(held, (10_000, 100));
    assert_eq!(flow.dropped(), 2_000 - 100);
    let stats = net.stack.stats();
    assert_eq!(stats.datagrams_dropped, 1_900);
    assert_eq!(stats.datagrams_received, 102);
    // Larger than the buffer ever takes.
    let mut all = Vec::new();
    flow.recv_many(&mut all, 1000).unwrap();
    let tiny = net.flows(Intercept::all().ports(99..=99), options().hiwat(100));
    net.arrives(CLIENT, "192.0.2.1:99", &[7; 101]);
    let (flow, _) = accepted(&tiny).unwrap();
    assert_eq!(received(&flow), None);
    assert_eq!(flow.dropped(), 1);
}

/// Many flows that nobody reads, each within its own buffer: the memory of all is bounded too, and is given back.
#[test]
fn all_flows_together_stay_within_the_memory_of_the_stack() {
    const LIMIT: usize = 4 << 20;
    for mapping in [Mapping::Flow, Mapping::Endpoint] {
        let mut net = Net::with(one_packet_each(), |builder| {
            builder.max_buffer_memory(LIMIT)
        });
        let listener = net.flows(Intercept::all(), options().mapping(mapping));
        let mut flows = Vec::new();
        for port in 1..=100 {
            for _ in 0..200 {
                net.raw(&datagram_of(&client(2, port), SERVER, &[7; 1400]));
                let in_use = net.stack.stats().buffer_memory;
                assert!(in_use <= LIMIT + (64 << 10), "{in_use}");
                net.turn();
            }
            flows.extend(accepted(&listener));
        }
        let stats = net.stack.stats();
        assert_eq!(stats.datagrams_received + stats.datagrams_dropped, 20_000);
        assert!(stats.memory_pressures > 0 && stats.datagrams_dropped > 10_000);
        // One is read: there is room again, for whom comes then.
        let mut all = Vec::new();
        for (flow, _) in &flows[..30] {
            flow.recv_many(&mut all, 1000).unwrap();
        }
        assert!(net.stack.stats().buffer_memory < LIMIT);
        net.arrives(&client(2, 100), SERVER, b"room");
        assert_eq!(
            net.stack.stats().datagrams_received,
            stats.datagrams_received + 1
        );
        // Half of them end, half are closed.
        drop(flows.split_off(50));
        net.pass(Duration::from_secs(31));
        drop(flows);
        assert_eq!(net.stack.stats().buffer_memory, 0);
    }
}

/// What a splice has taken out of a flow's buffer is no memory of the stack any more, also when nothing more comes.
#[test]
fn what_a_splice_has_moved_is_no_memory_of_the_stack() {
    const LIMIT: usize = 1 << 20;
    for mapping in [Mapping::Flow, Mapping::Endpoint] {
        let mut net = Net::with(one_packet_each(), |builder| {
            builder.max_buffer_memory(LIMIT)
        });
        let listener = net.flows(Intercept::all(), options().mapping(mapping));
        let mut flows = Vec::new();
        let direct = Options::default().dispatch(Dispatch::Direct);
        for port in 1..=100 {
            net.arrives(&client(2, port), SERVER, b"?");
            let (flow, _) = accepted(&listener).unwrap();
            let (user, inside) = crate::local::datagram_pair();
            flow.splice_to(&inside, direct.clone()).unwrap();
            for _ in 0..20 {
                net.raw(&datagram_of(&client(2, port), SERVER, &[7; 1400]));
            }
            net.turn();
            assert_eq!(flow.end().with_rcv(|rcv| rcv.len()), 0);
            assert_eq!(net.stack.stats().buffer_memory, 0, "{port}");
            let mut all = Vec::new();
            assert_eq!(user.recv_datagrams(&mut all, 100).unwrap(), 21);
            flows.push((flow, user, inside));
        }
        assert_eq!(net.stack.stats().datagrams_dropped, 0);
    }
}

/// A client has a whole /64 of IPv6, as for connections and fragments.
#[test]
fn the_addresses_of_one_prefix_of_ipv6_are_one_client() {
    let mut net = Net::new();
    let listener = net.flows(Intercept::all(), options().max_flows_per_client(3));
    for host in 2..=10 {
        net.arrives(&format!("[fd00::{host}]:9"), "[2001:db8::1]:53", b"?");
    }
    let mut flows: Vec<_> = std::iter::from_fn(|| accepted(&listener)).collect();
    assert_eq!(flows.len(), 3);
    flows.pop();
    net.arrives("[fd00::11]:9", "[2001:db8::1]:53", b"?");
    assert!(accepted(&listener).is_some());
}
