//! ICMP errors about datagrams: those that the stack sends, and those that it receives. RFC 1122 4.1.3.3.

use super::*;
use crate::stack::PingListener;

/// An error about a datagram from `from` to `to`, as a router or the peer would send it to `from`.
fn error((from, to): (&str, &str), (kind, code, word): (u8, u8, u32)) -> Vec<u8> {
    let quoted = datagram_of(from, to, b"some payload");
    let own = at(from).ip();
    let router: IpAddr = match own {
        IpAddr::V4(_) => [10, 0, 0, 254].into(),
        IpAddr::V6(_) => "fd00::fe".parse().unwrap(),
    };
    let rest = [&word.to_be_bytes()[..], &quoted].concat();
    let v6 = own.is_ipv6();
    let message = message((router, own), kind, code, &rest);
    from_to((router, own), icmp_protocol(v6), &message)
}

const PORT: [(u8, u8, u32); 2] = [(3, 3, 0), (1, 4, 0)];
const HOST: [(u8, u8, u32); 2] = [(3, 1, 0), (1, 3, 0)];
const PROHIBITED: [(u8, u8, u32); 2] = [(3, 13, 0), (1, 1, 0)];
const TIME: [(u8, u8, u32); 2] = [(11, 0, 0), (3, 0, 0)];

const OWN: [(&str, &str); 2] = [("10.0.0.1:7", "10.0.0.2:9"), ("[fd00::1]:7", "[fd00::2]:9")];

/// RFC 1122 4.1.3.1, RFC 4443 3.1: the sender of a datagram to a closed port of ours, and to no one else's.
#[test]
fn a_closed_port_is_reported_to_the_sender() {
    for (v6, (own, peer)) in [false, true].into_iter().zip(OWN) {
        let mut net = Net::new();
        let packet = datagram_of(peer, own, b"anyone?");
        net.raw(&packet);
        let said = net.said();
        let (kind, code, _) = PORT[usize::from(v6)];
        assert_eq!(said.len(), 1);
        assert_eq!((said[0].kind, said[0].code, said[0].word), (kind, code, 0));
        assert_eq!(said[0].rest, packet, "all of it is quoted");
        let stats = net.stack.stats();
        assert_eq!((stats.datagrams_no_port, stats.icmp_errors_sent), (1, 1));
        // It is said in a host's words: of what was sent 576 or 1,280 bytes at most.
        net.raw(&datagram_of(peer, own, &[7; 1400]));
        let all = net.packets();
        assert_eq!(all[0].len(), if v6 { 1280 } else { 576 });
        // Other hosts' ports are theirs.
        let other = if v6 { "[fd00::77]:7" } else { "10.0.0.77:7" };
        net.arrives(peer, other, b"anyone?");
        assert_eq!(net.packets().len(), 0);
        assert_eq!(net.stack.stats().frames_stray, 3);
    }
}

/// RFC 1122 3.2.2.1, RFC 4443 2.4 f; the same limit as for all errors.
#[test]
fn errors_about_closed_ports_are_limited() {
    let mut net = Net::new();
    let flood = |net: &mut Net, count: u16| {
        for port in 1..=count {
            let from = format!("10.0.0.2:{port}");
            net.arrives(&from, "10.0.0.1:7", b"");
        }
        net.packets().len()
    };
    let first = flood(&mut net, 500);
    assert!((20..=80).contains(&first), "{first}");
    net.pass(Duration::from_secs(1));
    assert!(flood(&mut net, 500) >= 20);
    let stats = net.stack.stats();
    assert_eq!(stats.datagrams_no_port, 1000);
    assert_eq!(stats.icmp_errors_sent + stats.icmp_errors_limited, 1000);
}

/// BSD and Linux: once, to the next call, of a socket that is connected to whom the datagram went.
#[test]
fn a_connected_socket_is_told_once_that_its_peer_does_not_listen() {
    for (v6, (own, peer)) in [false, true].into_iter().zip(OWN) {
        for (error_kind, expected) in [
            (PORT, ErrorKind::ConnectionRefused),
            (PROHIBITED, ErrorKind::HostUnreachable),
        ] {
            let mut net = Net::new();
            let socket = net.bound(own);
            socket.connect(peer).unwrap();
            socket.send(b"anyone?").unwrap();
            net.sent();
            net.raw(&error((own, peer), error_kind[usize::from(v6)]));
            net.turn();
            assert_eq!(kind(socket.recv(&mut [0; 9])), expected);
            assert_eq!(kind(socket.recv(&mut [0; 9])), ErrorKind::WouldBlock);
            // By sending, too; what was to be sent is not.
            net.raw(&error((own, peer), error_kind[usize::from(v6)]));
            net.turn();
            assert_eq!(kind(socket.send(b"lost")), expected);
            socket.send(b"sent").unwrap();
            assert_eq!(net.sent(), [got(own, peer, b"sent")]);
            net.arrives(peer, own, b"here I am");
            assert_eq!(received(&socket).unwrap().0, b"here I am");
            assert_eq!(net.stack.stats().datagram_icmp_errors, 2);
        }
    }
}

/// Data that has arrived comes first.
#[test]
fn an_error_does_not_hide_what_has_arrived() {
    let mut net = Net::new();
    let socket = net.bound(OWN[0].0);
    socket.connect(OWN[0].1).unwrap();
    net.arrives(OWN[0].1, OWN[0].0, b"data");
    net.raw(&error(OWN[0], PORT[0]));
    net.turn();
    assert_eq!(socket.recv(&mut [0; 9]).unwrap(), 4);
    assert_eq!(kind(socket.recv(&mut [0; 9])), ErrorKind::ConnectionRefused);
}

/// Linux without `IP_RECVERR`, BSD's `udp_notify`: one client that is gone must not disturb a server of many.
#[test]
fn an_unconnected_socket_is_not_disturbed() {
    for (v6, (own, peer)) in [false, true].into_iter().zip(OWN) {
        let mut net = Net::new();
        let socket = net.bound(own);
        socket.send_to(b"answer", peer).unwrap();
        net.sent();
        for kind in [PORT, PROHIBITED, HOST, TIME] {
            net.raw(&error((own, peer), kind[usize::from(v6)]));
        }
        net.turn();
        assert_eq!(socket.take_error(), None);
        assert_eq!(received(&socket), None);
        let stats = net.stack.stats();
        assert_eq!((stats.datagram_icmp_errors, stats.icmp_ignored), (4, 0));
    }
}

#[test]
fn soft_errors_end_nothing() {
    for (v6, (own, peer)) in [false, true].into_iter().zip(OWN) {
        let mut net = Net::new();
        let socket = net.bound(own);
        socket.connect(peer).unwrap();
        for kind in [HOST, TIME] {
            net.raw(&error((own, peer), kind[usize::from(v6)]));
        }
        net.turn();
        assert_eq!(socket.take_error(), None);
        assert_eq!(net.stack.stats().datagram_icmp_errors, 2);
    }
}

#[test]
fn errors_that_quote_nothing_of_ours_are_ignored() {
    for (v6, (own, peer)) in [false, true].into_iter().zip(OWN) {
        let mut net = Net::new();
        let socket = net.bound(own);
        socket.connect(peer).unwrap();
        let refused = PORT[usize::from(v6)];
        let good = error((own, peer), refused);
        let moved = |address: &str, from: &str, to: &str| address.replace(from, to);
        let mut forged = vec![
            error((&moved(own, ":7", ":8"), peer), refused),
            error((own, &moved(peer, ":9", ":10")), refused),
            error((own, &moved(peer, "2", "3")), refused),
        ];
        // The checksum; and what was quoted went from another host.
        let mut damaged = good.clone();
        *damaged.last_mut().unwrap() ^= 1;
        forged.push(damaged);
        for packet in &forged {
            net.raw(packet);
        }
        let ip = if v6 { 40 } else { 20 };
        // Cut before the ports of the quoted datagram are there.
        for len in 0..8 + ip + 8 {
            let ends = ip::addresses(&good);
            let mut icmp = good[ip..ip + len].to_vec();
            if len >= 4 {
                icmp[2..4].fill(0);
                let sum = ip::header::icmp_checksum(ends.0, ends.1, &icmp);
                icmp[2..4].copy_from_slice(&sum);
            }
            net.raw(&from_to(ends, icmp_protocol(v6), &icmp));
        }
        net.turn();
        assert_eq!(socket.take_error(), None, "{v6}");
        assert_eq!(net.stack.stats().datagram_icmp_errors, 0);
        net.raw(&good);
        net.turn();
        assert_eq!(socket.take_error(), Some(SoError::ConnectionRefused));
    }
}

/// RFC 1191, 8201: the size is learnt, for all sockets; nothing larger goes in one piece.
#[test]
fn a_path_that_takes_less_is_learnt() {
    for (v6, (own, peer)) in [false, true].into_iter().zip(OWN) {
        let mut net = Net::new();
        let socket = net.bound(own);
        socket.connect(peer).unwrap();
        let headers = if v6 { 48 } else { 28 };
        socket.send(&vec![1; 1500 - headers]).unwrap();
        assert_eq!(net.sent().len(), 1);
        let too_big = if v6 { (2, 0, 1400) } else { (3, 4, 1400) };
        net.raw(&error((own, peer), too_big));
        net.turn();
        assert_eq!(socket.take_error(), None);
        socket.send(&vec![2; 1400 - headers]).unwrap();
        assert_eq!(net.sent().len(), 1, "{v6}: fits");
        socket.send(&vec![3; 1401 - headers]).unwrap();
        let sizes: Vec<usize> = net.packets().iter().map(Vec::len).collect();
        assert!(sizes.iter().all(|len| *len <= 1400), "{sizes:?}");
        assert_ne!(sizes.len(), 1);
        // To another host, all as before.
        let other = if v6 { "[fd00::3]:9" } else { "10.0.0.3:9" };
        socket.send_to(&vec![1; 1500 - headers], other).unwrap();
        assert_eq!(net.sent().len(), 1);
        // No router makes it smaller than every host takes.
        let tiny = if v6 { (2, 0, 0) } else { (3, 4, 68) };
        net.raw(&error((own, peer), tiny));
        net.turn();
        let least = if v6 { 1280 } else { 552 };
        socket.send(&vec![4; least - headers]).unwrap();
        assert_eq!(net.sent().len(), 1);
    }
}

/// A flow's client has gone: its socket is told; and its destination, which is none of ours, is told nothing.
#[test]
fn a_flow_is_told_that_its_client_is_gone() {
    for mapping in [Mapping::Flow, Mapping::Endpoint] {
        let mut net = Net::new();
        let options = FlowOptions::default().mapping(mapping);
        let listener = net.flows(Intercept::all(), options);
        net.arrives("10.0.0.2:9", "192.0.2.1:53", b"?");
        let (flow, _) = accepted(&listener).unwrap();
        let mut out = [0; 9];
        flow.recv_from(&mut out).unwrap();
        match mapping {
            Mapping::Flow => flow.send(b"!").unwrap(),
            _ => flow.send_to(b"!", "192.0.2.1:53").unwrap(),
        };
        net.sent();
        net.raw(&error(("192.0.2.1:53", "10.0.0.2:10"), PORT[0]));
        net.turn();
        assert_eq!(flow.take_error(), None, "another client's");
        net.raw(&error(("192.0.2.1:53", "10.0.0.2:9"), PORT[0]));
        net.turn();
        assert_eq!(kind(flow.recv_from(&mut out)), ErrorKind::ConnectionRefused);
        // It is not over.
        net.arrives("10.0.0.2:9", "192.0.2.1:53", b"again");
        assert_eq!(flow.recv_from(&mut out).unwrap().0, 5);
    }
}

/// The program refuses: the client is told, in the name of its destination.
#[test]
fn a_refused_flow_is_unreachable_to_its_client() {
    for (v6, (destination, client)) in [false, true].into_iter().zip([
        ("192.0.2.1:53", "10.0.0.2:9"),
        ("[2001:db8::1]:53", "[fd00::2]:9"),
    ]) {
        for mapping in [Mapping::Flow, Mapping::Endpoint] {
            let mut net = Net::new();
            let options = FlowOptions::default().mapping(mapping);
            let listener = net.flows(Intercept::all(), options);
            net.arrives(client, destination, b"?");
            let (flow, _) = accepted(&listener).unwrap();
            flow.refuse();
            let packets = net.packets();
            assert_eq!(packets.len(), 1, "{mapping:?}");
            let ends = ip::addresses(&packets[0]);
            assert_eq!(ends, (at(destination).ip(), at(client).ip()));
            let icmp = &packets[0][if v6 { 40 } else { 20 }..];
            assert!(ip::header::icmp_checksum_holds(ends.0, ends.1, icmp));
            let (kind, code, _) = PORT[usize::from(v6)];
            assert_eq!((icmp[0], icmp[1]), (kind, code));
            let quoted = &icmp[8..];
            assert_eq!(ip::addresses(quoted), (ends.1, ends.0));
            let udp = &quoted[if v6 { 40 } else { 20 }..];
            assert_eq!((ip::be16(udp, 0), ip::be16(udp, 2)), (9, 53));
            // The place is free, and the client may try again.
            assert_eq!(net.listed(), []);
            net.arrives(client, destination, b"?");
            assert!(accepted(&listener).is_some());
        }
    }
}

/// The reason why a flow is refused is told: what an administrator forbids is "prohibited".
#[test]
fn a_prohibited_flow_is_prohibited_to_its_client() {
    for (v6, (destination, client)) in [false, true].into_iter().zip([
        ("192.0.2.1:53", "10.0.0.2:9"),
        ("[2001:db8::1]:53", "[fd00::2]:9"),
    ]) {
        let mut net = Net::new();
        let listener = net.flows(Intercept::all(), FlowOptions::default());
        net.arrives(client, destination, b"?");
        let (flow, _) = accepted(&listener).unwrap();
        flow.end().set_error(SoError::Prohibited);
        flow.refuse();
        let packets = net.packets();
        let icmp = &packets[0][if v6 { 40 } else { 20 }..];
        let prohibited = if v6 { (1, 1) } else { (3, 13) };
        assert_eq!((icmp[0], icmp[1]), prohibited);
        // With the error of another socket.
        for (kind, told) in [
            (ErrorKind::PermissionDenied, prohibited),
            (
                ErrorKind::ConnectionRefused,
                if v6 { (1, 4) } else { (3, 3) },
            ),
            (ErrorKind::TimedOut, if v6 { (1, 3) } else { (3, 1) }),
        ] {
            net.arrives(client, destination, b"?");
            let (flow, _) = accepted(&listener).unwrap();
            flow.refuse_with(&kind.into());
            let packets = net.packets();
            let icmp = &packets[0][if v6 { 40 } else { 20 }..];
            assert_eq!((icmp[0], icmp[1]), told, "{kind:?}");
        }
    }
}

/// Who forges a report about a datagram need not know any that was sent, so connections do not believe it.
#[test]
fn a_report_about_a_datagram_is_not_one_for_connections() {
    for (v6, (own, peer)) in [false, true].into_iter().zip(OWN) {
        let mut net = Net::new();
        let _socket = net.bound(own);
        let too_big = if v6 { (2, 0, 1280) } else { (3, 4, 600) };
        net.raw(&error((own, peer), too_big));
        net.turn();
        let addressing = &net.stack.shared().addressing;
        assert_eq!(net.stack.stats().datagram_icmp_errors, 1);
        assert_eq!(addressing.paths.len(), 0);
        assert_eq!(addressing.datagram_paths.len(), 1);
    }
}

/// Pings: one that is refused has no port that could be unreachable; one to all hosts of a network begins no flow.
#[test]
fn pings_are_refused_as_such_and_not_passed_on_to_many() {
    let mut net = Net::new();
    let options = PingListener::options();
    let pings = PingListener::intercept(&net.stack, Intercept::all(), options).unwrap();
    pings.set_nonblocking(true);
    for (destination, why, expected) in [
        ([192, 0, 2, 1], None, Some((3, 1))),
        ([192, 0, 2, 1], Some(SoError::Prohibited), Some((3, 13))),
        ([10, 0, 0, 255], None, None),
    ] {
        let ends = ([10, 0, 0, 2].into(), destination.into());
        net.raw(&from_to(ends, 1, &message(ends, 8, 0, &[0, 7, 0, 1])));
        net.turn();
        let flow = pings.accept();
        assert_eq!(flow.is_ok(), expected.is_some(), "{destination:?}");
        if let Ok(flow) = flow {
            why.into_iter().for_each(|why| flow.end().set_error(why));
            flow.refuse();
        }
        let told = net.packets().first().map(|packet| (packet[20], packet[21]));
        assert_eq!(told, expected);
    }
}
