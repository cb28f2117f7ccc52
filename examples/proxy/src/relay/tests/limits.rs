//! Bounds: of the lobby, of the queue while the relay ends, of a circle, of checks that do not go on.

use super::*;
use std::net::Ipv6Addr;
use std::sync::atomic::AtomicBool;

const HEADER: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 7000 443\r\n";

fn heads(clients: usize, memory: usize) -> Terms {
    let mut terms = patient();
    terms.expected.proxy = true;
    terms.head_room = Room { clients, memory };
    terms
}

fn refused(relay: &Running, why: Refusal) -> u64 {
    let state = lock(&relay.shared.state);
    let mut refused = state.totals.refused.iter();
    let found = refused.find(|(other, _)| *other == why);
    found.map_or(0, |(_, times)| *times)
}

const CROWDED: Refusal = Refusal::Head(Fault::Crowded);

/// Connects, and waits until it is in the lobby.
fn silent_client(net: &Net, relay: &Running, count: usize) -> TcpStream {
    let client = TcpStream::connect(&net.client, FRONT).unwrap();
    until(|| relay.shared.lobby.held().0 == count);
    client
}

#[test]
fn the_lobby_has_room_for_so_many_clients_and_parts_with_the_oldest() {
    let net = Net::new();
    let _server = net.serve(1);
    let relay = net.relay(heads(2, 64 << 20), vec![offer(1)]);
    let first = silent_client(&net, &relay, 1);
    let mut second = silent_client(&net, &relay, 2);
    let third = TcpStream::connect(&net.client, FRONT).unwrap();
    reset(answer(first));
    assert_eq!(relay.shared.lobby.held().0, 2);
    assert_eq!(refused(&relay, CROWDED), 1);
    second.write_all(HEADER).unwrap();
    second.shutdown(Shutdown::Write).unwrap();
    assert_eq!(answer(second).unwrap(), "1:");
    // Other settings, which evict at once.
    let fourth = silent_client(&net, &relay, 2);
    relay
        .shared
        .renew(heads(1, 64 << 20), vec![offer(1)], Balance::RoundRobin);
    reset(answer(third));
    assert_eq!(
        (refused(&relay, CROWDED), relay.shared.lobby.held().0),
        (2, 1)
    );
    drop(fourth);
    relay.stop();
}

/// Each one sends most of a header, in packets of a byte.
#[test]
fn the_memory_of_the_lobby_is_bounded() {
    const CLIENTS: usize = 60;
    const MEMORY: usize = 1 << 18;
    let net = Net::new();
    let _server = net.serve(1);
    let relay = net.relay(heads(1000, MEMORY), vec![offer(1)]);
    let (length, part) = (4000_u16.to_be_bytes(), [7; 300]);
    let head = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11"[..], &length, &part].concat();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = TcpStream::connect(&net.client, FRONT).unwrap();
        client.set_nodelay(true);
        for byte in &head {
            // It may be reset already.
            client.write_all(&[*byte]).ok();
        }
        client.write_all(&[7; 3000]).ok();
        clients.push(client);
    }
    until(|| refused(&relay, CROWDED) > 0 && relay.shared.lobby.held().1 <= MEMORY);
    let (count, memory) = relay.shared.lobby.held();
    assert!(count < CLIENTS && memory <= MEMORY, "{count} with {memory}");
    // The next one is served.
    assert_eq!(net.ask(&[HEADER, b"hello"].concat()).unwrap(), "1:hello");
    drop(clients);
    until(|| relay.shared.lobby.held() == (0, 0));
    relay.stop();
}

/// The counters of the lobby come back to nothing after all ways out of it.
#[test]
fn nothing_is_left_of_clients_that_have_left_the_lobby() {
    let net = Net::new();
    let _server = net.serve(1);
    let mut terms = heads(1000, 64 << 20);
    let relay = net.relay(terms.clone(), vec![offer(1)]);
    assert_eq!(net.ask(&[HEADER, b"hello"].concat()).unwrap(), "1:hello");
    reset(net.ask(b"PROXY TCP4 "));
    reset(net.ask(b"GET"));
    let left = silent_client(&net, &relay, 1);
    left.abort();
    until(|| relay.shared.lobby.held() == (0, 0));
    terms.head_timeout = Duration::from_millis(1);
    relay
        .shared
        .renew(terms, vec![offer(1)], Balance::RoundRobin);
    reset(answer(TcpStream::connect(&net.client, FRONT).unwrap()));
    assert_eq!(relay.shared.lobby.held(), (0, 0));
    // After it has handed over the last one.
    until(|| relay.shared.lobby.is_empty());
    assert_eq!(relay.stop().cut_off, 0);
}

/// One whose first bytes are missing, one without a backend that has room, and one that is served.
#[test]
fn what_is_left_at_the_deadline_is_reset_and_counted() {
    let net = Net::new();
    let _server = net.serve(1);
    let mut terms = heads(9, 64 << 20);
    terms.queue.0 = 1;
    let relay = net.relay(terms, vec![limited(1)]);
    let guest = silent_client(&net, &relay, 1);
    let mut served = TcpStream::connect(&net.client, FRONT).unwrap();
    served.write_all(HEADER).unwrap();
    until(|| relay.served()[0].2 == 1);
    let waiting = net.start(HEADER).unwrap();
    until(|| lock(&relay.shared.state).waiting.len() == 1);
    relay.events.send(Event::Stop(Duration::ZERO)).unwrap();
    for client in [guest, served, waiting] {
        reset(answer(client));
    }
    assert_eq!(relay.thread.join().unwrap().cut_off, 3);
}

/// While it drains, the queue's time limit holds on.
#[test]
fn those_who_wait_are_refused_in_time_while_it_drains() {
    let net = Net::new();
    let _server = net.serve(1);
    let mut terms = patient();
    terms.queue = (1, Duration::from_millis(50));
    let relay = net.relay(terms, vec![limited(1)]);
    let first = TcpStream::connect(&net.client, FRONT).unwrap();
    until(|| relay.served()[0].2 == 1);
    let waiting = net.start(b"late").unwrap();
    // Or refused already, if this thread is slow.
    until(|| lock(&relay.shared.state).waiting.len() == 1 || refused(&relay, Refusal::Late) == 1);
    let stop = Event::Stop(Duration::from_secs(20));
    relay.events.send(stop).unwrap();
    reset(answer(waiting));
    first.shutdown(Shutdown::Write).unwrap();
    assert_eq!(answer(first).unwrap(), "1:");
    let totals = relay.thread.join().unwrap();
    assert_eq!(totals.refused, [(Refusal::Late, 1)]);
    assert_eq!(totals.cut_off, 0);
}

/// The settings cannot tell if another host translates addresses.
#[test]
fn a_backend_that_leads_back_is_noticed_at_the_first_connection() {
    let net = Net::new();
    let listener = TcpListener::bind(&net.back, "10.0.2.254:80").unwrap();
    let itself = Offer {
        name: None,
        spec: Spec {
            address: "10.0.2.254:80".parse().unwrap(),
            weight: 1,
            limit: None,
        },
    };
    let relay = net.relay_on(listener, patient(), vec![itself]);
    let client = TcpStream::connect(&net.server, "10.0.2.254:80").unwrap();
    reset(answer(client));
    let totals = relay.stop();
    assert_eq!(totals.connections, 1);
    assert_eq!(totals.refused, [(Refusal::Loop, 1)]);
}

#[test]
fn checks_that_do_not_go_on_leave_no_backend_down() {
    let net = Net::new();
    let relay = net.relay(patient(), vec![offer(1)]);
    let schedule = Schedule {
        interval: Duration::from_millis(50),
        rise: 1,
        fall: 1,
    };
    let fails = Arc::new(AtomicBool::new(false));
    let failing = Arc::clone(&fails);
    let mut checker = Checker::new(net.back.clone(), Arc::clone(&relay.shared));
    checker
        .start_with(Some(schedule), move |poller, events, rest| {
            match failing.load(Relaxed) {
                true => Err(io::Error::other("no poller")),
                false => poller.wait(events, Some(rest)),
            }
        })
        .unwrap();
    until(|| !relay.is_up(0));
    assert_eq!(relay.shared.counts().checks_failed, 0);
    fails.store(true, Relaxed);
    until(|| relay.is_up(0) && relay.shared.counts().checks_failed > 1);
    // It begins again.
    fails.store(false, Relaxed);
    until(|| !relay.is_up(0));
    drop(checker);
    relay.stop();
}

#[test]
fn the_queue_is_served_in_the_order_of_arrival() {
    const CLIENTS: usize = 5;
    let net = Net::new();
    let listener = TcpListener::bind(&net.server, address(1)).unwrap();
    let relay = net.relay(queue(CLIENTS), vec![limited(1)]);
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        clients.push(net.start(&[b'0' + u8::try_from(number).unwrap()]).unwrap());
        until(|| lock(&relay.shared.state).waiting.len() == number);
    }
    for (number, client) in clients.into_iter().enumerate() {
        let (mut server, _) = listener.accept().unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).unwrap();
        assert_eq!(text, number.to_string());
        drop(server);
        assert_eq!(answer(client).unwrap(), "");
    }
    assert_eq!(relay.stop().refused, []);
}

/// Told by a header: addresses of one /64 are one client.
#[test]
fn a_client_of_ipv6_is_a_network_of_64_bits() {
    let net = Net::new();
    let _server = net.serve(1);
    let mut terms = heads(9, 64 << 20);
    terms.per_client = Some(2);
    let relay = net.relay(terms, vec![offer(1)]);
    let header = |network: u16, host: u16| {
        let address = Ipv6Addr::new(0xfd00, 0, 0, network, host, 0, 0, host);
        format!("PROXY TCP6 {address} fd00::1 7000 443\r\n")
    };
    let enter = |network, host| {
        let mut client = TcpStream::connect(&net.client, FRONT).unwrap();
        client.write_all(header(network, host).as_bytes()).unwrap();
        client
    };
    let open = [enter(1, 1), enter(1, 2)];
    until(|| relay.served()[0].2 == 2);
    reset(answer(enter(1, 3)));
    let other = enter(2, 1);
    until(|| relay.served()[0].2 == 3);
    for client in open.into_iter().chain([other]) {
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(answer(client).unwrap(), "1:");
    }
    assert_eq!(relay.stop().refused, [(Refusal::Client, 1)]);
}
