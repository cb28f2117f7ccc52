//! Copies of a machine, which have the same memory: here stacks with the same seed.

use super::*;
use crate::link::memory as pairs;
use crate::link::{Frame, Interest, ReceiveError, TransmitError};
use std::iter;

fn seeded() -> Net {
    Net::with(one_packet_each(), |builder| builder.seed(7))
}

/// Numbers that follow from each secret. Each call draws new ones where they count up.
fn numbers(net: &Net) -> Vec<(&'static str, Vec<u64>)> {
    let shared = net.stack.shared();
    let addressing = &shared.addressing;
    let hosts = [2, 3, 4, 5].map(|host| IpAddr::from([10, 0, 0, host]));
    let tuples = hosts.map(|remote| Tuple {
        local: [10, 0, 0, 1].into(),
        remote,
        local_port: 80,
        remote_port: 5000,
    });
    let age = Duration::from_secs(9);
    let isn = tuples.map(|tuple| addressing.isn.initial_sequence_number(&tuple, age));
    let beyond = tuples.map(|tuple| addressing.isn.number_after(&tuple, 77));
    let stamps = tuples.map(|tuple| addressing.isn.initial_timestamp(&tuple, age));
    let dialled = hosts.map(|host| {
        let to = SocketAddr::new(host, 443);
        let ports = &addressing.ephemeral_ports;
        ports.ports_to([10, 0, 0, 1].into(), to).next().unwrap()
    });
    let drawn = iter::repeat_with(|| addressing.ephemeral_ports.all_from_random().next().unwrap());
    let identifications = hosts.map(|host| {
        let ends = ([10, 0, 0, 1].into(), host);
        addressing.identifications.next(&addressing.isn, ends, 17)
    });
    let errors = (0..4).map(|count| addressing.isn.keyed_hash((age, count)));
    vec![
        ("sequence numbers", isn.map(u64::from).to_vec()),
        ("those after TIME-WAIT", beyond.map(u64::from).to_vec()),
        ("timestamps", stamps.map(u64::from).to_vec()),
        ("ports of connections", dialled.map(u64::from).to_vec()),
        ("ports of datagrams", drawn.take(4).map(u64::from).collect()),
        ("identifications", identifications.map(u64::from).to_vec()),
        ("the limit of ICMP errors", errors.collect()),
    ]
}

/// Guards each line of `Stack::replace_secrets`.
#[test]
fn copies_choose_the_same_numbers_until_they_are_reseeded() {
    let (original, copy) = (seeded(), seeded());
    assert_eq!(numbers(&original), numbers(&copy));
    let changes: [&dyn Fn(&Stack); 2] = [&|stack| stack.reseed_repeatably(8), &|stack| {
        stack.reseed().unwrap()
    }];
    for change in changes {
        change(&copy.stack);
        let (here, there) = (numbers(&original), numbers(&copy));
        for (here, there) in here.iter().zip(&there) {
            assert_ne!(here, there);
        }
    }
    // Two copies that are reseeded differ from each other too.
    original.stack.reseed().unwrap();
    for (here, there) in numbers(&original).iter().zip(numbers(&copy)) {
        assert_ne!(*here, there);
    }
    let (again, other) = (seeded(), seeded());
    again.stack.reseed_repeatably(8);
    other.stack.reseed_repeatably(8);
    assert_eq!(numbers(&again), numbers(&other), "repeatable in tests");
}

/// As in a stack that was built without a seed: its hasher was drawn before it was copied.
#[test]
fn a_stack_with_secrets_of_the_system_gets_others() {
    let net = Net::new();
    let before = numbers(&net);
    net.stack.reseed().unwrap();
    for (before, after) in before.iter().zip(numbers(&net)) {
        assert_ne!(*before, after);
    }
}

/// The next connection between the ends of a former one, of which both copies know the last number.
#[test]
fn a_number_beyond_time_wait_is_not_known_to_the_other_copy() {
    let answers = [false, true].map(|reseed| {
        let mut net = seeded();
        let (mut raw, _listener) = in_time_wait(&mut net);
        let last = raw.ack;
        if reseed {
            net.stack.reseed().unwrap();
        }
        raw.seq = raw.seq.wrapping_add(1000);
        let answer = raw.syn(&mut net).header.seq;
        assert!(answer.wrapping_sub(last).cast_signed() > 0);
        (last, answer)
    });
    assert_eq!(answers[0].0, answers[1].0);
    assert_ne!(answers[0].1, answers[1].1);
}

/// Established, half-open and opening connections keep their numbers and timestamps, and a socket its port.
#[test]
fn connections_go_on_with_other_secrets() {
    let mut net = Net::new();
    let (mut accepted, stream) = net.accepted();
    let (mut dialled, dialling) = net.dialled();
    let listener = net.listen(81);
    let mut half_open = Raw::new(5001);
    half_open.to.1 = 81;
    half_open.syn(&mut net);
    let port = stream.local_addr().port();
    net.stack.reseed().unwrap();
    works(&mut net, &mut accepted, &stream);
    half_open.send(&net, ACK, b"");
    net.turn();
    let (third, _) = listener.accept().unwrap();
    third.set_nonblocking(true);
    works(&mut net, &mut half_open, &third);
    dialled.send(&net, SYN | ACK, b"");
    dialled.seq = dialled.seq.wrapping_add(1);
    net.turn();
    works(&mut net, &mut dialled, &dialling);
    assert_eq!(stream.local_addr().port(), port);
    // And new ones begin.
    let mut late = Raw::new(5002);
    late.to.1 = 81;
    late.handshake(&mut net);
    let (fourth, _) = listener.accept().unwrap();
    fourth.set_nonblocking(true);
    works(&mut net, &mut late, &fourth);
}

/// A cookie of the other copy begins no connection in this one, and neither does one that this copy sent before. The
/// next one is accepted.
#[test]
fn cookies_of_before_are_not_accepted() {
    let mut net = Net::new();
    let listener = TcpListener::bind_with_backlog(&net.stack, "10.0.0.1:80", 16).unwrap();
    listener.set_nonblocking(true);
    for port in 1..=100 {
        Raw::new(port).send(&net, SYN, b"");
        net.turn();
    }
    net.drain();
    let mut early = Raw::new(5000);
    early.syn(&mut net);
    net.stack.reseed().unwrap();
    early.send(&net, ACK, b"");
    assert_eq!(net.one().header.flags, RST, "no cookie is valid");
    let mut late = Raw::new(5001);
    late.syn(&mut net);
    early.send(&net, ACK, b"");
    assert_eq!(net.one().header.flags, RST, "cookies are sent again");
    late.send(&net, ACK, b"");
    net.turn();
    let (stream, peer) = listener.accept().unwrap();
    stream.set_nonblocking(true);
    assert_eq!(peer.port(), 5001);
    works(&mut net, &mut late, &stream);
    assert_eq!(net.stack.stats().syn_cookies_accepted, 1);
}

/// Notes its seeds.
#[derive(Debug)]
struct Seeded {
    link: MemoryLink,
    seeds: Arc<Mutex<Vec<u64>, LEAF>>,
}

impl Link for Seeded {
    fn capabilities(&self) -> Capabilities {
        self.link.capabilities()
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        self.link.receive(frames, max)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        self.link.transmit(packet)
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.link.wait(interest, deadline)
    }

    fn wake(&self) {
        self.link.wake();
    }

    fn reseed(&self, seed: u64) {
        self.seeds.lock().push(seed);
    }
}

#[test]
fn each_link_gets_a_seed_of_its_own() {
    let (links, _far) = pairs::queues(2, one_packet_each());
    let seeds: Arc<Mutex<Vec<u64>, LEAF>> = Arc::default();
    let links = links.into_iter().map(|link| Seeded {
        link,
        seeds: seeds.clone(),
    });
    let builder = Stack::with_queues(links).address("10.0.0.1/24".parse().unwrap());
    let (stack, _drivers) = builder.build_with_drivers().unwrap();
    stack.reseed_repeatably(1);
    stack.reseed_repeatably(1);
    stack.reseed().unwrap();
    let seeds = seeds.lock();
    assert_eq!((seeds.len(), seeds[..2] == seeds[2..4]), (6, true));
    let different: std::collections::HashSet<&u64> = seeds[2..].iter().collect();
    assert_eq!(different.len(), 4);
}
