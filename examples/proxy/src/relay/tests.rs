//! The relay with several backends, in memory: clients, the proxy, and servers on one link each.

mod limits;
mod measured;

use super::pair::Pair;
use super::*;
use crate::backends::Spec;
use crate::checks::{Checker, Schedule};
use crate::totals::Direction;
use proxy_header::ProxyHeader;
use proxy_header::{ParseConfig, ProxiedAddress, Tlv};
use sosplice::TcpStream;
use sosplice::error::SoError;
use sosplice::link::memory;
use std::io;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;

const FRONT: &str = "10.0.1.2:80";
const ENDING: Ending = Ending::Closed;

/// Four stacks; the servers' has the addresses 10.0.2.1 to 10.0.2.4.
struct Net {
    client: Stack,
    front: Stack,
    back: Stack,
    server: Stack,
}

impl Net {
    fn new() -> Net {
        let stack = |link, addresses: &[&str]| {
            let builder = Stack::builder(link).connect_timeout(Duration::from_millis(400));
            let with = |builder: sosplice::stack::Builder, address: &&str| {
                builder.address(address.parse().unwrap())
            };
            addresses.iter().fold(builder, with).build().unwrap()
        };
        let (a, b) = memory::pair(memory::Config::default());
        let (c, d) = memory::pair(memory::Config::default());
        let servers = ["10.0.2.1/24", "10.0.2.2/24", "10.0.2.3/24", "10.0.2.4/24"];
        Net {
            client: stack(a, &["10.0.1.1/24"]),
            front: stack(b, &["10.0.1.2/24"]),
            back: stack(c, &["10.0.2.254/24"]),
            server: stack(d, &servers),
        }
    }

    fn relay(&self, terms: Terms, offers: Vec<Offer>) -> Running {
        let listener = TcpListener::bind(&self.front, FRONT).unwrap();
        self.relay_on(listener, terms, offers)
    }

    fn relay_on(&self, listener: TcpListener, terms: Terms, offers: Vec<Offer>) -> Running {
        let means = Means {
            dial: self.back.clone(),
            pool: SplicePool::builder().workers(1).build(),
        };
        let services = Services::new(offers, Balance::RoundRobin);
        let (relay, events) = Relay::new(listener, means, terms, services);
        let shared = relay.shared();
        Running {
            shared,
            events,
            thread: thread::Builder::new().spawn(move || relay.run().0).unwrap(),
        }
    }

    /// Sends these bytes and the end of the stream.
    fn start(&self, bytes: &[u8]) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(&self.client, FRONT)?;
        stream.write_all(bytes)?;
        stream.shutdown(Shutdown::Write)?;
        Ok(stream)
    }

    /// Sends bytes and returns the answer.
    fn ask(&self, bytes: &[u8]) -> io::Result<String> {
        answer(self.start(bytes)?)
    }

    /// A server that answers with its number and what it has received.
    fn serve(&self, number: u8) -> Server {
        let at = address(number);
        let listener = Arc::new(TcpListener::bind(&self.server, at).unwrap());
        let accepting = Arc::clone(&listener);
        let serve = move || {
            while let Ok((mut stream, _)) = accepting.accept() {
                let mut bytes = Vec::new();
                if stream.read_to_end(&mut bytes).is_ok() {
                    let bytes = String::from_utf8_lossy(&bytes).into_owned();
                    write!(stream, "{number}:{bytes}").ok();
                }
            }
        };
        thread::Builder::new().spawn(serve).unwrap();
        Server(listener)
    }
}

fn patient() -> Terms {
    let long = Duration::from_secs(20);
    Terms {
        head_timeout: long,
        queue: (0, long),
        ..Terms::default()
    }
}

fn answer(mut stream: TcpStream) -> io::Result<String> {
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

struct Server(Arc<TcpListener>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.close();
    }
}

struct Running {
    shared: Arc<Shared>,
    events: Sender<Event>,
    thread: JoinHandle<Totals>,
}

impl Running {
    fn stop(self) -> Totals {
        self.events
            .send(Event::Stop(Duration::from_secs(20)))
            .unwrap();
        self.thread.join().unwrap()
    }

    /// Admits a client in this thread, as if it had asked for this name.
    fn admit(&self, net: &Net, name: Option<&str>) -> TcpStream {
        let aside = TcpListener::bind(&net.front, "10.0.1.2:81").unwrap();
        let client = TcpStream::connect(&net.client, "10.0.1.2:81").unwrap();
        let (stream, peer) = aside.accept().unwrap();
        let terms = Arc::clone(&lock(&self.shared.state).terms);
        let head = Head {
            server_name: name.map(str::to_owned),
            ..Head::default()
        };
        self.shared.admit(stream, peer, terms, head);
        client
    }

    /// The only connection.
    fn pair(&self) -> Arc<Pair> {
        let state = lock(&self.shared.state);
        let mut pairs = state.pairs.values();
        let pair = pairs.next().map(Arc::clone).unwrap();
        assert!(pairs.next().is_none());
        pair
    }

    fn served(&self) -> Vec<(u64, u64, u32)> {
        let state = lock(&self.shared.state);
        let all = state.services.all().iter();
        let all = all.flat_map(|service| service.backends.all());
        all.map(|backend| (backend.served, backend.failed, backend.active))
            .collect()
    }

    fn is_up(&self, backend: usize) -> bool {
        lock(&self.shared.state).services.all()[0].backends.all()[backend].up
    }
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::new([10, 0, 2, number].into(), 8080)
}

fn offer(number: u8) -> Offer {
    Offer {
        name: None,
        spec: Spec {
            address: address(number),
            weight: 1,
            limit: None,
        },
    }
}

/// No host has its address.
fn silent(number: u8) -> Offer {
    offer(number)
}

fn until(mut condition: impl FnMut() -> bool) {
    let end = SystemClock.now() + Duration::from_secs(20);
    while !condition() {
        assert!(SystemClock.now() < end, "it does not come true");
        thread::yield_now();
    }
}

/// The reset may come before, between or after the client's calls.
#[track_caller]
fn reset(result: io::Result<String>) {
    let kind = result.unwrap_err().kind();
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    assert!(
        matches!(kind, ConnectionReset | BrokenPipe | NotConnected),
        "{kind:?}"
    );
}

#[test]
fn backends_serve_in_turn() {
    let net = Net::new();
    let _servers = [net.serve(1), net.serve(2)];
    let relay = net.relay(patient(), vec![offer(1), offer(2)]);
    let mut answers: Vec<_> = (0..4).map(|_| net.ask(b"hello").unwrap()).collect();
    answers.sort();
    assert_eq!(answers, ["1:hello", "1:hello", "2:hello", "2:hello"]);
    let shared = Arc::clone(&relay.shared);
    let totals = relay.stop();
    assert_eq!(
        (totals.connections, totals.retried, totals.refused.len()),
        (4, 0, 0)
    );
    assert_eq!((totals.up.bytes, totals.down.bytes), (20, 28));
    assert!(lock(&shared.state).pairs.is_empty());
}

/// The second does not listen, the third is no host: the client notices nothing but the time.
#[test]
fn a_refused_or_silent_backend_is_tried_elsewhere() {
    let net = Net::new();
    let _server = net.serve(1);
    let relay = net.relay(patient(), vec![offer(2), silent(99), offer(1)]);
    for _ in 0..4 {
        assert_eq!(net.ask(b"hello").unwrap(), "1:hello");
    }
    until(|| relay.served().iter().all(|(_, _, active)| *active == 0));
    let served = relay.served();
    assert_eq!(served[2].0, 4);
    assert!(
        served[0].1 > 0 && served[1].1 > 0 && served[2].1 == 0,
        "{served:?}"
    );
    let totals = relay.stop();
    assert_eq!(totals.retried, served[0].1 + served[1].1);
    assert_eq!((totals.up.bytes, totals.down.bytes), (20, 28));
}

#[test]
fn a_client_is_reset_when_all_backends_have_refused() {
    let net = Net::new();
    let relay = net.relay(patient(), vec![offer(1), offer(2)]);
    reset(net.ask(b"hello"));
    let _server = net.serve(2);
    assert_eq!(net.ask(b"again").unwrap(), "2:again");
    assert_eq!(relay.stop().refused, [(Refusal::Down, 1)]);
}

#[test]
fn a_full_backend_refuses_or_lets_wait() {
    let mut limited = offer(1);
    limited.spec.limit = Some(1);
    let net = Net::new();
    let _server = net.serve(1);
    let relay = net.relay(patient(), vec![limited.clone()]);
    let mut first = TcpStream::connect(&net.client, FRONT).unwrap();
    until(|| relay.served()[0].2 == 1);
    reset(net.ask(b"second"));
    first.write_all(b"first").unwrap();
    first.shutdown(Shutdown::Write).unwrap();
    assert_eq!(answer(first).unwrap(), "1:first");
    assert_eq!(relay.stop().refused, [(Refusal::Full, 1)]);

    let mut terms = patient();
    terms.queue = (1, Duration::from_secs(20));
    let relay = net.relay(terms, vec![limited.clone()]);
    let first = TcpStream::connect(&net.client, FRONT).unwrap();
    until(|| relay.served()[0].2 == 1);
    let second = net.start(b"second").unwrap();
    until(|| lock(&relay.shared.state).waiting.len() == 1);
    reset(net.ask(b"third"));
    first.shutdown(Shutdown::Write).unwrap();
    assert_eq!(answer(first).unwrap(), "1:");
    assert_eq!(answer(second).unwrap(), "1:second");
    assert_eq!(relay.stop().refused, [(Refusal::Full, 1)]);

    let mut terms = patient();
    terms.queue = (1, Duration::from_millis(10));
    let relay = net.relay(terms, vec![limited]);
    let first = TcpStream::connect(&net.client, FRONT).unwrap();
    until(|| relay.served()[0].2 == 1);
    reset(net.ask(b"late"));
    drop(first);
    assert_eq!(relay.stop().refused, [(Refusal::Late, 1)]);
}

#[test]
fn a_client_has_a_limit() {
    let net = Net::new();
    let _server = net.serve(1);
    let mut terms = patient();
    terms.per_client = Some(1);
    let relay = net.relay(terms, vec![offer(1)]);
    let first = TcpStream::connect(&net.client, FRONT).unwrap();
    until(|| relay.served()[0].2 == 1);
    reset(net.ask(b"second"));
    first.shutdown(Shutdown::Write).unwrap();
    assert_eq!(answer(first).unwrap(), "1:");
    until(|| relay.served()[0].2 == 0);
    assert_eq!(net.ask(b"third").unwrap(), "1:third");
    assert_eq!(relay.stop().refused, [(Refusal::Client, 1)]);
}

#[test]
fn headers_are_sent_and_passed_on() {
    let net = Net::new();
    let listener = TcpListener::bind(&net.server, address(1)).unwrap();
    let mut terms = patient();
    terms.send_proxy = Some(Version::V2);
    terms.expected.proxy = true;
    let relay = net.relay(terms, vec![offer(1)]);
    let told = ProxiedAddress::stream(
        "192.0.2.7:7000".parse().unwrap(),
        "192.0.2.1:443".parse().unwrap(),
    );
    let mut header = ProxyHeader::with_address(told.clone());
    header.append_tlv(Tlv::UniqueId(b"one".into()));
    let mut bytes = Vec::new();
    header.encode_v2(&mut bytes).unwrap();
    bytes.extend(b"hello");
    let mut client = TcpStream::connect(&net.client, FRONT).unwrap();
    // In two parts.
    client.write_all(&bytes[..20]).unwrap();
    until(|| !relay.shared.lobby.is_empty());
    client.write_all(&bytes[20..]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut arrived = Vec::new();
    let (mut server, _) = listener.accept().unwrap();
    server.read_to_end(&mut arrived).unwrap();
    let (header, len) = ProxyHeader::parse(&arrived, ParseConfig::default()).unwrap();
    assert_eq!(header.proxied_address(), Some(&told));
    assert_eq!(header.unique_id(), Some(&b"one"[..]));
    assert_eq!(&arrived[len..], b"hello");
    drop(server);
    assert_eq!(relay.stop().up.bytes, 5);
}

#[test]
fn wrong_first_bytes_are_a_reset_and_nothing_else_is_harmed() {
    let net = Net::new();
    let _server = net.serve(1);
    let mut terms = patient();
    terms.expected.proxy = true;
    let relay = net.relay(terms, vec![offer(1)]);
    reset(net.ask(b"GET / HTTP/1.1\r\n\r\n"));
    reset(net.ask(b"PROXY TCP4 "));
    let right = b"PROXY TCP4 192.0.2.7 192.0.2.1 7000 443\r\nhello";
    assert_eq!(net.ask(right).unwrap(), "1:hello");
    let refused = relay.stop().refused;
    for fault in [Fault::NoHeader, Fault::Ended] {
        assert!(refused.contains(&(Refusal::Head(fault), 1)), "{refused:?}");
    }
}

#[test]
fn first_bytes_have_a_time_limit() {
    let net = Net::new();
    let mut terms = patient();
    terms.expected.tls = true;
    terms.head_timeout = Duration::from_millis(5);
    let relay = net.relay(terms, vec![offer(1)]);
    let late = TcpStream::connect(&net.client, FRONT).unwrap();
    reset(answer(late));
    assert_eq!(relay.stop().refused, [(Refusal::Head(Fault::Late), 1)]);
}

/// The one before may take its time.
#[test]
fn a_shorter_time_limit_of_new_settings_holds_at_once() {
    let net = Net::new();
    let mut terms = patient();
    terms.expected.tls = true;
    terms.head_timeout = Duration::from_secs(100_000);
    let relay = net.relay(terms.clone(), vec![offer(1)]);
    let first = TcpStream::connect(&net.client, FRONT).unwrap();
    until(|| !relay.shared.lobby.is_empty());
    terms.head_timeout = Duration::from_millis(5);
    relay
        .shared
        .renew(terms, vec![offer(1)], Balance::RoundRobin);
    let late = TcpStream::connect(&net.client, FRONT).unwrap();
    late.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    reset(answer(late));
    assert!(!relay.shared.lobby.is_empty());
    drop(first);
    relay.stop();
}

/// What was accepted is served, though it has no backend yet: its first bytes are missing, or there is no room.
#[test]
fn those_in_the_lobby_and_in_the_queue_are_served_while_it_drains() {
    let net = Net::new();
    let _server = net.serve(1);
    let mut limited = offer(1);
    limited.spec.limit = Some(1);
    let mut terms = patient();
    terms.queue = (1, Duration::from_secs(20));
    terms.expected.proxy = true;
    let relay = net.relay(terms, vec![limited]);
    let head = b"PROXY TCP4 192.0.2.7 192.0.2.1 7000 443\r\n";
    let mut guest = TcpStream::connect(&net.client, FRONT).unwrap();
    until(|| !relay.shared.lobby.is_empty());
    let mut served = TcpStream::connect(&net.client, FRONT).unwrap();
    served.write_all(head).unwrap();
    until(|| relay.served()[0].2 == 1);
    let waiting = net.start(head).unwrap();
    until(|| lock(&relay.shared.state).waiting.len() == 1);
    let stop = Event::Stop(Duration::from_secs(20));
    relay.events.send(stop).unwrap();
    until(|| TcpStream::connect(&net.client, FRONT).is_err());
    served.shutdown(Shutdown::Write).unwrap();
    assert_eq!(answer(served).unwrap(), "1:");
    assert_eq!(answer(waiting).unwrap(), "1:");
    guest.write_all(head).unwrap();
    guest.shutdown(Shutdown::Write).unwrap();
    assert_eq!(answer(guest).unwrap(), "1:");
    assert_eq!(relay.thread.join().unwrap().cut_off, 0);
}

/// Another process accepts, but clients may have begun with this one.
#[test]
fn one_that_leaves_serves_what_still_reaches_it() {
    let net = Net::new();
    let _server = net.serve(1);
    let relay = net.relay(patient(), vec![offer(1)]);
    // A connection of the stack that is none of the relay's yet.
    let aside = TcpListener::bind(&net.front, "10.0.1.2:81").unwrap();
    let client = TcpStream::connect(&net.client, "10.0.1.2:81").unwrap();
    let (stream, peer) = aside.accept().unwrap();
    let leave = Event::Leave {
        grace: Duration::from_secs(20),
        front: net.front.clone(),
    };
    relay.events.send(leave).unwrap();
    until(|| lock(&relay.shared.state).stopped);
    assert_eq!(net.ask(b"late").unwrap(), "1:late");
    let terms = Arc::clone(&lock(&relay.shared.state).terms);
    relay.shared.admit(stream, peer, terms, Head::default());
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(answer(client).unwrap(), "1:");
    let totals = relay.thread.join().unwrap();
    assert_eq!((totals.connections, totals.cut_off), (2, 0));
    assert!(TcpStream::connect(&net.client, FRONT).is_err());
}

/// When the other process has ended, what it would have accepted is refused. A signal before that changes nothing.
#[test]
fn one_that_leaves_serves_until_the_other_one_has_ended() {
    let net = Net::new();
    let _server = net.serve(1);
    let relay = net.relay(patient(), vec![offer(1)]);
    let first = TcpStream::connect(&net.client, FRONT).unwrap();
    until(|| relay.served()[0].2 == 1);
    let leave = Event::Leave {
        grace: Duration::from_secs(20),
        front: net.front.clone(),
    };
    relay.events.send(leave).unwrap();
    relay.events.send(Event::Stop(Duration::ZERO)).unwrap();
    until(|| relay.events.is_empty());
    for _ in 0..5 {
        drop(TcpStream::connect(&net.client, FRONT).unwrap());
    }
    relay.events.send(Event::Left).unwrap();
    until(|| TcpStream::connect(&net.client, FRONT).is_err());
    first.shutdown(Shutdown::Write).unwrap();
    assert_eq!(answer(first).unwrap(), "1:");
    assert_eq!(relay.thread.join().unwrap().cut_off, 0);
}

#[test]
fn checks_take_a_backend_out_and_back() {
    let net = Net::new();
    let server = net.serve(1);
    let _other = net.serve(2);
    let relay = net.relay(patient(), vec![offer(1), offer(2)]);
    let schedule = Schedule {
        interval: Duration::from_millis(250),
        rise: 2,
        fall: 3,
    };
    let mut checker = Checker::new(net.back.clone(), Arc::clone(&relay.shared));
    checker.start(Some(schedule)).unwrap();
    drop(server);
    until(|| !relay.is_up(0));
    for _ in 0..4 {
        assert_eq!(net.ask(b"hello").unwrap(), "2:hello");
    }
    let _server = net.serve(1);
    until(|| relay.is_up(0));
    let answers = [0; 2].map(|_| net.ask(b"hello").unwrap());
    assert!(answers.contains(&"1:hello".to_owned()), "{answers:?}");
    drop(checker);
    assert_eq!(relay.stop().retried, 0);
}

#[test]
fn what_checks_have_found_holds_for_others_after_new_settings() {
    let net = Net::new();
    let relay = net.relay(patient(), vec![offer(1)]);
    let schedule = Schedule {
        interval: Duration::from_millis(100),
        rise: 1,
        fall: 1,
    };
    let mut checker = Checker::new(net.back.clone(), Arc::clone(&relay.shared));
    checker.start(Some(schedule)).unwrap();
    until(|| !relay.is_up(0));
    let renew = || {
        relay
            .shared
            .renew(patient(), vec![offer(1)], Balance::RoundRobin);
    };
    renew();
    let server = net.serve(1);
    checker.start(Some(schedule)).unwrap();
    until(|| relay.is_up(0));
    drop(server);
    until(|| !relay.is_up(0));
    renew();
    checker.start(None).unwrap();
    assert!(relay.is_up(0));
    relay.stop();
}

/// A client's reset, or the end of the grace time, in another thread than that of the backend's refusal.
#[test]
fn what_ends_a_connection_twice_is_counted_once() {
    let net = Net::new();
    let mut terms = patient();
    terms.per_client = Some(9);
    let relay = net.relay(terms, vec![silent(99), silent(98)]);
    let shared = &relay.shared;
    let begin = || (relay.admit(&net, None), relay.pair());
    let refused = SoError::ConnectionRefused;
    // Refused, and with the next backend, when the reset's thread comes.
    let (_client, former) = begin();
    assert!(shared.give_up(&former, &refused));
    shared.dial(&former.client, former.tried.clone());
    assert!(!shared.over(&former, Verdict::Resets, ENDING));
    assert!(shared.over(&relay.pair(), Verdict::Resets, ENDING));
    // The reset is first.
    let (_client, former) = begin();
    assert!(shared.over(&former, Verdict::Resets, ENDING));
    assert!(!shared.give_up(&former, &refused) && !shared.over(&former, Verdict::Resets, ENDING));
    assert!(relay.served().iter().all(|(_, _, active)| *active == 0));
    assert!(lock(&shared.state).clients.is_empty());
    relay.stop();
}

/// One direction begins again after an idle time, in another thread than that which ends the connection.
#[test]
fn what_has_ended_does_not_begin_again() {
    let net = Net::new();
    let relay = net.relay(patient(), vec![silent(99)]);
    let _client = relay.admit(&net, None);
    let pair = relay.pair();
    assert!(relay.shared.over(&pair, Verdict::Closes, ENDING));
    relay.shared.again(&pair, Direction::Up);
    assert!(lock(&pair.lanes).iter().all(|lane| lane.splice.is_none()));
    relay.stop();
}

fn limited(number: u8) -> Offer {
    let mut limited = offer(number);
    limited.spec.limit = Some(1);
    limited
}

fn queue(most: usize) -> Terms {
    let mut terms = patient();
    terms.queue.0 = most;
    terms.per_client = Some(9);
    terms
}

#[test]
fn those_who_wait_are_served_when_a_backend_has_refused_another() {
    let net = Net::new();
    let relay = net.relay(queue(9), vec![limited(99)]);
    let first = net.start(b"first").unwrap();
    until(|| relay.served()[0].2 == 1);
    let second = net.start(b"second").unwrap();
    until(|| lock(&relay.shared.state).waiting.len() == 1);
    // Each in turn finds out that it does not answer.
    reset(answer(first));
    reset(answer(second));
    let shared = Arc::clone(&relay.shared);
    assert_eq!(relay.stop().refused, [(Refusal::Down, 2)]);
    assert!(lock(&shared.state).clients.is_empty());
}

#[test]
fn a_client_that_leaves_keeps_no_place() {
    let net = Net::new();
    let _server = net.serve(1);
    let mut terms = queue(2);
    terms.per_client = Some(3);
    let relay = net.relay(terms, vec![limited(1)]);
    let first = TcpStream::connect(&net.client, FRONT).unwrap();
    until(|| relay.served()[0].2 == 1);
    let reset_one = |count| {
        let second = net.start(b"second").unwrap();
        until(|| lock(&relay.shared.state).waiting.len() == count);
        second.abort();
        until(|| {
            let state = lock(&relay.shared.state);
            let left = state.waiting.iter().filter(|one| one.client.has_left());
            left.count() == count
        });
    };
    // Neither in the queue, nor of the client's connections.
    reset_one(1);
    reset_one(2);
    let third = net.start(b"third").unwrap();
    until(|| {
        let state = lock(&relay.shared.state);
        state.waiting.len() == 1 && !state.waiting[0].client.has_left()
    });
    third.abort();
    until(|| lock(&relay.shared.state).waiting[0].client.has_left());
    // No backend gets it.
    first.shutdown(Shutdown::Write).unwrap();
    assert_eq!(answer(first).unwrap(), "1:");
    until(|| lock(&relay.shared.state).clients.is_empty());
    assert_eq!(relay.served(), [(1, 0, 0)]);
    assert_eq!(relay.stop().refused, [(Refusal::Left, 3)]);
}

/// The head of the queue waits for another service than that which has room.
#[test]
fn the_first_one_that_can_be_served_is() {
    let net = Net::new();
    let listeners = [1, 2].map(|number| TcpListener::bind(&net.server, address(number)).unwrap());
    let named = |number: u8, name: &str| Offer {
        name: Some(name.into()),
        ..limited(number)
    };
    let relay = net.relay(queue(9), vec![named(1, "a"), named(2, "b")]);
    let admit = |name: &str| relay.admit(&net, Some(name));
    let _a = admit("a");
    let b = admit("b");
    let _waiting = [admit("a"), admit("b")];
    assert_eq!(lock(&relay.shared.state).waiting.len(), 2);
    // Before it is reset: then it would be in the listener's queue no longer.
    let _first = listeners[1].accept().unwrap();
    b.abort();
    until(|| lock(&relay.shared.state).waiting.len() == 1);
    listeners[1].accept().unwrap();
    let left = lock(&relay.shared.state).waiting[0]
        .client
        .server_name
        .clone();
    assert_eq!(left.as_deref(), Some("a"));
}

/// A client whose backend does not answer, when the backends are exchanged: the new ones are not those that were tried.
#[test]
fn other_backends_are_tried_after_new_settings() {
    let net = Net::new();
    let _server = net.serve(1);
    let relay = net.relay(patient(), vec![silent(99)]);
    let client = net.start(b"hello").unwrap();
    until(|| relay.served()[0].2 == 1);
    relay
        .shared
        .renew(patient(), vec![offer(1)], Balance::RoundRobin);
    assert_eq!(answer(client).unwrap(), "1:hello");
    relay.stop();
}

/// Backends that open and close their listeners while clients come: each gets its whole answer or a reset, and then
/// nothing is counted any more.
#[test]
fn backends_that_flap_under_load() {
    const CLIENTS: usize = 1000;
    const AT_ONCE: usize = 16;
    let net = Net::new();
    let mut terms = queue(AT_ONCE);
    terms.per_client = Some(1000);
    let offers = || {
        [1, 2, 3].map(|number| {
            let mut offer = offer(number);
            offer.spec.limit = Some(3);
            offer
        })
    };
    let _stays = net.serve(1);
    let relay = net.relay(terms.clone(), offers().into());
    let (left, whole) = (AtomicUsize::new(CLIENTS), AtomicUsize::new(0));
    let ask = || {
        while let Ok(number) = left.try_update(Relaxed, Relaxed, |left| left.checked_sub(1)) {
            let bytes = number.to_string().repeat(1 + number % 50);
            match net.ask(bytes.as_bytes()) {
                Ok(text) => {
                    let (_, echo) = text.split_once(':').unwrap();
                    assert_eq!(echo, bytes);
                    whole.fetch_add(1, Relaxed);
                }
                result => reset(result),
            }
        }
    };
    thread::scope(|scope| {
        let spawn = |ask| thread::Builder::new().spawn_scoped(scope, ask).unwrap();
        let asking: Vec<_> = (0..AT_ONCE).map(|_| spawn(ask)).collect();
        let mut turn = 0_usize;
        while asking.iter().any(|one| !one.is_finished()) {
            let _flaps = net.serve(if turn.is_multiple_of(2) { 2 } else { 3 });
            let served = || left.load(Relaxed);
            let now = served();
            until(|| served() == 0 || served() + 10 < now);
            if turn.is_multiple_of(4) {
                let again = offers().into_iter().take(2 + turn / 4 % 2);
                relay
                    .shared
                    .renew(terms.clone(), again.collect(), Balance::Least);
            }
            turn += 1;
        }
    });
    relay
        .shared
        .renew(terms, offers().into(), Balance::RoundRobin);
    until(|| lock(&relay.shared.state).pairs.is_empty());
    let shared = Arc::clone(&relay.shared);
    assert!(relay.served().iter().all(|(_, _, active)| *active == 0));
    let totals = relay.stop();
    let state = lock(&shared.state);
    assert!(state.clients.is_empty() && state.waiting.is_empty() && !state.serving);
    assert_eq!(totals.connections, CLIENTS as u64);
    // One stays, so all others were reset by a server.
    assert_eq!(totals.refused, []);
    assert!(whole.into_inner() > CLIENTS / 2, "{totals:?}");
}

/// Beginnings of connections, of which each has one fault.
fn malformed_heads() -> Vec<(Vec<u8>, Fault)> {
    let v1 = b"PROXY TCP4 192.0.2.7 192.0.2.1 7000 443\r\n";
    let v2 = b"\r\n\r\n\0\r\nQUIT\n";
    let after = |bytes: &[u8]| [&v1[..], bytes].concat();
    let records: Vec<u8> = (0..5000).flat_map(|_| [22, 3, 1, 0, 1, 1]).collect();
    vec![
        (after(b""), Fault::Ended),
        (after(b"GET / HTTP/1.1\r\n\r\n"), Fault::NoTls),
        (after(v1), Fault::NoTls),
        (after(b"\x16\x03\x01\x40\x01"), Fault::Hello),
        (after(b"\x16\x03\x01\x00\x04\x01\xff\xff\xff"), Fault::Long),
        (
            after(b"\x16\x03\x01\x00\x08\x01\0\0\x04\x03\x03\0\0"),
            Fault::Hello,
        ),
        (after(&records), Fault::Long),
        (
            b"PROXY TCP4 192.0.2.7 fd00::1 7000 443\r\n".to_vec(),
            Fault::Header,
        ),
        (
            b"PROXY TCP4 192.0.2.7 192.0.2.1 7000 65536\r\n".to_vec(),
            Fault::Header,
        ),
        (
            [&b"PROXY UNKNOWN "[..], &[b'x'; 200]].concat(),
            Fault::Header,
        ),
        (
            [v2, &b"\x21\x11\xff\xff"[..], &[0; 9000]].concat(),
            Fault::Long,
        ),
        (
            [v2, &b"\x21\x11\0\x04"[..], &[0; 40]].concat(),
            Fault::Header,
        ),
        (
            [v2, &b"\x21\x11\0\x0e"[..], &[1; 40]].concat(),
            Fault::Header,
        ),
        (
            [v2, &b"\x21\x11\0\x13"[..], &[9; 12], &[3, 0, 4, 1, 2, 3, 4]].concat(),
            Fault::Checksum,
        ),
        (b"\0".to_vec(), Fault::NoHeader),
    ]
}

/// Over connections: what is malformed, or goes on for too long, is a reset, and the next client is served.
#[test]
fn malformed_heads_are_counted_resets() {
    let net = Net::new();
    let _server = net.serve(1);
    let mut terms = patient();
    terms.expected = Expected {
        proxy: true,
        tls: true,
    };
    let relay = net.relay(terms, vec![offer(1)]);
    for (bytes, fault) in &malformed_heads() {
        let times = || {
            let state = lock(&relay.shared.state);
            let refused = state.totals.refused.iter();
            let mut refused = refused.filter(|(why, _)| *why == Refusal::Head(*fault));
            refused.next().map_or(0, |(_, times)| *times)
        };
        let before = times();
        reset(net.ask(bytes));
        assert_eq!(
            times(),
            before + 1,
            "{fault:?}: {:?}",
            &bytes[..bytes.len().min(60)]
        );
    }
    // The lobby's thread forgets one after its client has been reset.
    until(|| relay.shared.lobby.is_empty());
    assert_eq!(relay.served(), [(0, 0, 0)]);
    relay.stop();
}
