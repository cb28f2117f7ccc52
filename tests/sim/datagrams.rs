//! Datagrams through a proxy, over networks with faults: each one that arrives is one that was sent, whole, between
//! the addresses that it was sent between; and without faults all arrive, in order.
//!
//! ```text
//! clients, stack 0 -- network a -- stack 1, flows, splices, sockets, stack 2 -- network b -- stack 3, servers
//! ```

use crate::ALONE;
use crate::clock::SetClock;
use crate::network::{Network, Path};
use crate::trace::Trace;
use fastrand::Rng;
use sosplice::link::Capabilities;
use sosplice::sockbuf::Datagram;
use sosplice::splice::{Cause, Dispatch, Options, Splice, SplicePool};
use sosplice::stack::{Driver, FlowOptions, UdpListener, UdpSocket};
use sosplice::{Intercept, Stack};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

const SERVERS: [&str; 3] = ["10.1.0.2:53", "10.1.0.2:443", "10.1.0.3:53"];
const CLIENTS: usize = 4;
const ADDRESSES: [&[&str]; 4] = [
    &["10.0.0.2/24"],
    &["10.0.0.1/24"],
    &["10.1.0.1/24"],
    &["10.1.0.2/24", "10.1.0.3/24"],
];

/// From a client to a server, by their numbers.
type Ends = (usize, usize);

struct Client {
    socket: UdpSocket,
    left: usize,
    /// What it has sent to each server, and what has come back.
    sent: HashSet<(usize, Vec<u8>)>,
    back: Vec<(usize, Vec<u8>)>,
}

struct World {
    rng: Rng,
    clock: Arc<SetClock>,
    networks: [Network; 2],
    stacks: Vec<Stack>,
    drivers: Vec<Driver>,
    pool: SplicePool,
    listener: UdpListener,
    relays: Vec<(UdpSocket, UdpSocket, [Splice; 2])>,
    clients: Vec<Client>,
    servers: Vec<UdpSocket>,
    /// The longest datagram. Where bits are changed it is in one packet, for a sum does not see a bit that is changed
    /// in one fragment, and changed back in another one.
    longest: usize,
    /// Whose datagrams come to the servers from this address.
    sources: HashMap<SocketAddr, Ends>,
    arrived: Vec<(Ends, Vec<u8>)>,
}

/// `corrupts`: bits of packets are changed.
fn path(rng: &mut Rng, faults: bool, corrupts: bool) -> Path {
    let some = |rng: &mut Rng, most: f64| match rng.bool() {
        true => rng.f64() * most,
        false => 0.0,
    };
    let delay = Duration::from_micros(rng.u64(0..30_000));
    let path = Path {
        delay,
        rate: rng.bool().then(|| rng.u64(100_000..10_000_000)),
        queue: 20,
        says_full: true,
        ..Path::PERFECT
    };
    if !faults {
        return path;
    }
    Path {
        jitter: delay.mul_f64(rng.f64()),
        says_full: rng.bool(),
        loss: some(rng, 0.2),
        duplication: some(rng, 0.2),
        corruption: if corrupts { 0.2 } else { 0.0 },
        ..path
    }
}

impl World {
    fn new(seed: u64, faults: bool) -> World {
        let mut rng = Rng::with_seed(seed);
        let clock = SetClock::new();
        let trace = Trace::new(&clock, false);
        let corrupts = faults && rng.bool();
        let networks = ["a", "b"].map(|name| {
            let paths = [(); 2].map(|()| path(&mut rng, faults, corrupts));
            Network::new(name, rng.u64(..), paths, &clock, &trace)
        });
        let (mut stacks, mut drivers) = (Vec::new(), Vec::new());
        for (index, addresses) in ADDRESSES.into_iter().enumerate() {
            let can = Capabilities::new(rng.usize(1280..=1500)).checksum(!faults);
            let end = networks[index / 2].end(index % 2, can, (None, Duration::ZERO));
            let mut builder = Stack::builder(end).clock(clock.clone()).seed(rng.u64(..));
            for address in addresses {
                builder = builder.address(address.parse().unwrap());
            }
            let (stack, driver) = builder.build_with_driver().unwrap();
            stacks.push(stack);
            drivers.push(driver);
        }
        let dispatch = match rng.bool() {
            true => Dispatch::Direct,
            false => Dispatch::Worker,
        };
        let pool = SplicePool::builder().clock(clock.clone()).workers(1);
        let options = FlowOptions::default();
        let listener = UdpListener::intercept(&stacks[1], Intercept::all(), options).unwrap();
        listener.set_nonblocking(true);
        let bind = |stack: &Stack, address: &str| {
            let socket = UdpSocket::bind(stack, address).unwrap();
            socket.set_nonblocking(true);
            socket
        };
        let clients = (0..CLIENTS).map(|_| Client {
            socket: bind(&stacks[0], "0.0.0.0:0"),
            left: rng.usize(1..60),
            sent: HashSet::new(),
            back: Vec::new(),
        });
        World {
            clients: clients.collect(),
            servers: SERVERS.map(|address| bind(&stacks[3], address)).into(),
            longest: if corrupts { 1000 } else { 4000 },
            pool: pool.dispatch(dispatch).manual().build(),
            rng,
            clock,
            networks,
            stacks,
            drivers,
            listener,
            relays: Vec::new(),
            sources: HashMap::new(),
            arrived: Vec::new(),
        }
    }

    /// A client sends one, to any server, of any size up to some fragments.
    fn send(&mut self, number: usize) -> bool {
        let client = &mut self.clients[number];
        if client.left == 0 {
            return false;
        }
        client.left -= 1;
        let server = self.rng.usize(0..SERVERS.len());
        let len = match self.rng.bool() {
            true => self.rng.usize(0..500),
            false => self.rng.usize(0..self.longest),
        };
        let mut payload = vec![number as u8, server as u8, client.left as u8];
        payload.extend((0..len).map(|at| (at * (client.left + 7)) as u8));
        client.socket.send_to(&payload, SERVERS[server]).unwrap();
        client.sent.insert((server, payload));
        true
    }

    fn receive(&mut self, number: usize) -> bool {
        let client = &mut self.clients[number];
        let mut out = vec![0; 5000];
        let Ok((len, from)) = client.socket.recv_from(&mut out) else {
            return false;
        };
        let server = SERVERS.iter().position(|server| from == addr(server));
        let server = server.expect("from an address that the client has sent to");
        let one = (server, out[..len].to_vec());
        assert!(client.sent.contains(&one), "one of its own, whole");
        client.back.push(one);
        true
    }

    /// A server sends each back that comes.
    fn serve(&mut self, server: usize) -> bool {
        let mut all: Vec<Datagram> = Vec::new();
        if self.servers[server].recv_many(&mut all, 7).is_err() {
            return false;
        }
        for one in &all {
            let payload = one.to_vec();
            let client = usize::from(payload[0]);
            let sent = &self.clients[client].sent;
            assert!(
                sent.contains(&(server, payload.clone())),
                "one of those sent"
            );
            let source = one.addresses.peer.unwrap();
            let ends = *self.sources.entry(source).or_insert((client, server));
            assert_eq!(ends, (client, server), "each flow has its own source");
            self.arrived.push((ends, payload));
        }
        self.servers[server].send_many(&mut all).unwrap();
        true
    }

    fn accept(&mut self) -> bool {
        let Ok((flow, _)) = self.listener.accept() else {
            return false;
        };
        let out = UdpSocket::bind(&self.stacks[2], "0.0.0.0:0").unwrap();
        out.connect(flow.local_addr()).unwrap();
        let options = || Options::default().pool(self.pool.clone());
        let up = flow.splice_to(&out, options()).unwrap();
        let down = out.splice_to(&flow, options()).unwrap();
        self.relays.push((flow, out, [up, down]));
        true
    }

    /// Lets one of them do something; `false` if it has nothing to do.
    fn step(&mut self, actor: usize) -> bool {
        match actor {
            0..4 => self.drivers[actor].poll().unwrap(),
            4 => self.pool.run_one(),
            5 => self.accept(),
            6..9 => self.serve(actor - 6),
            9..13 => self.receive(actor - 9),
            _ => self.rng.u8(0..4) == 0 && self.send(actor - 13),
        }
    }

    fn run_until_idle(&mut self) {
        let mut idle = 0;
        loop {
            let actor = self.rng.usize(0..13 + CLIENTS);
            idle = if self.step(actor) { 0 } else { idle + 1 };
            // Some had nothing to do: perhaps none has.
            if idle == 8 {
                let worked = (0..13).any(|actor| self.step(actor));
                if !worked {
                    return;
                }
                idle = 0;
            }
        }
    }

    /// Runs until nothing happens any more but that time ends flows.
    fn run(&mut self) {
        for _ in 0..100_000 {
            self.networks.iter().for_each(Network::run);
            self.run_until_idle();
            let next = self.networks.iter().filter_map(Network::next).min();
            match next {
                Some(at) => self.clock.jump(at),
                None if self.clients.iter().all(|client| client.left == 0) => return,
                None => {}
            }
        }
        panic!("it does not end");
    }

    fn finish(mut self) {
        // Both sides of each flow end by its time.
        self.clock.advance(Duration::from_secs(181));
        self.run_until_idle();
        assert_eq!(self.stacks[1].stats().flows, 0);
        for (flow, out, splices) in self.relays.drain(..) {
            let [up, down] = splices.map(|splice| splice.end().expect("it has ended").cause);
            assert_eq!((up, down), (Cause::Eof, Cause::SinkShutdown));
            drop((flow, out));
        }
        drop((self.clients, self.servers));
        for stack in &self.stacks {
            let stats = stack.stats();
            assert_eq!(stats.datagram_sockets, 0);
            assert_eq!((stats.buffer_memory, stats.broken), (0, 0));
        }
    }
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn count<T: std::hash::Hash + Eq>(all: impl IntoIterator<Item = T>) -> HashMap<T, usize> {
    let mut found = HashMap::new();
    all.into_iter()
        .for_each(|one| *found.entry(one).or_default() += 1);
    found
}

#[test]
fn datagrams_arrive_whole_and_between_their_addresses() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut arrived = 0;
    for seed in 0..40 {
        let mut world = World::new(seed, true);
        world.run();
        arrived += world.arrived.len();
        world.finish();
    }
    assert!(arrived > 1000, "{arrived}");
}

#[test]
fn without_faults_all_datagrams_arrive_once_and_in_order() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for seed in 0..15 {
        let mut world = World::new(seed, false);
        world.run();
        let sent: usize = world.clients.iter().map(|client| client.sent.len()).sum();
        let once = |all: &HashMap<_, usize>| all.values().all(|count| *count == 1);
        let arrived = count(world.arrived.iter());
        assert!(once(&arrived), "seed {seed}");
        assert_eq!(arrived.len(), sent, "seed {seed}");
        for client in &world.clients {
            let back = count(client.back.iter().cloned());
            assert_eq!(back.len(), client.sent.len(), "seed {seed}");
            // Of each flow, in order: the number of those that are left counts down.
            for server in 0..SERVERS.len() {
                let of_flow = client.back.iter().filter(|(of, _)| *of == server);
                let numbers: Vec<u8> = of_flow.map(|(_, payload)| payload[2]).collect();
                assert!(
                    numbers.is_sorted_by(|a, b| a > b),
                    "seed {seed}: {numbers:?}"
                );
            }
        }
        world.finish();
    }
}
