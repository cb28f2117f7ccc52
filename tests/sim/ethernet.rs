//! Guests on a switch of Ethernet that loses frames, their gateway, and a proxy behind it. Whatever is lost, all data
//! arrives at both ends, in order and once; also when a guest's hardware address changes meanwhile.
//!
//! ```text
//! guest 0 (Host) -- switch -- gateway (Edge), stack 1, listener, splices, stack 2 -- network -- stack 3, server
//! guest 1 (Host) -----+
//! ```

use crate::ALONE;
use crate::clock::SetClock;
use crate::lan::{Faults, Lan, Port};
use crate::long::times;
use crate::network::{Network, Path};
use crate::setting;
use crate::trace::Trace;
use fastrand::Rng;
use ipnet::Ipv4Net;
use sosplice::clock::Clock;
use sosplice::error::SoError;
use sosplice::link::ethernet::{Edge, EdgeConfig, Host, HostConfig, Mac};
use sosplice::link::{
    Capabilities, Flow, Frame, Interest, Link, LinkEvent, Packet, ReceiveError, TransmitError,
};
use sosplice::splice::{Cause, Dispatch, Options, Splice, SplicePool};
use sosplice::stack::Driver;
use sosplice::{Intercept, Stack, TcpListener, TcpSocket, TcpStream};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

const SERVER: &str = "10.1.0.2:80";
const SERVER_V6: &str = "[fd01::2]:80";
/// A timeout that must not expire.
const NEVER: Duration = Duration::from_secs(48 * 3600);
/// A run ends within this time.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

/// A guest's link, whose hardware address changes: one of two hosts on the same port.
#[derive(Debug)]
struct Roaming {
    hosts: Vec<Host<Port>>,
    current: AtomicUsize,
}

impl Roaming {
    fn host(&self) -> &Host<Port> {
        &self.hosts[self.current.load(Ordering::SeqCst)]
    }

    fn moves(&self) {
        self.current.store(1, Ordering::SeqCst);
        // Gratuitous ARP, and unsolicited advertisements.
        self.host().reconnected();
    }
}

impl Link for Roaming {
    fn capabilities(&self) -> Capabilities {
        self.host().capabilities()
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        self.host().receive(frames, max)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        self.host().transmit(packet)
    }

    fn wait(&self, _interest: Interest, _deadline: Option<Instant>) -> io::Result<()> {
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.host().deadline()
    }

    fn wake(&self) {}

    fn take_events(&self, events: &mut Vec<LinkEvent>) {
        let before = events.len();
        self.host().take_events(events);
        if self.current.load(Ordering::SeqCst) > 0 {
            // Its addresses are those that the stack has.
            events.truncate(before);
        }
    }

    fn manages_addresses(&self) -> bool {
        true
    }

    fn steer(&self, _flow: &Flow) -> Option<usize> {
        None
    }
}

/// Sends data to the server, which returns it.
struct Client {
    link: Arc<Roaming>,
    stack: Stack,
    driver: Driver,
    server: SocketAddr,
    stream: Option<TcpStream>,
    data: Vec<u8>,
    sent: usize,
    closed: bool,
    back: Vec<u8>,
    done: bool,
    retries: u32,
    /// When its hardware address changes.
    moves: Option<Instant>,
    /// It has changed during the connection.
    moved: bool,
}

impl Client {
    /// `false` if there is nothing to do.
    fn step(&mut self, rng: &mut Rng) -> bool {
        if self.done {
            return false;
        }
        let Some(stream) = &mut self.stream else {
            // Once it has an address: DHCP and discovery take their time.
            let family = |address: IpAddr| match address {
                IpAddr::V4(_) => self.server.is_ipv4(),
                IpAddr::V6(address) => !address.is_unicast_link_local() && self.server.is_ipv6(),
            };
            let ready = self.stack.addresses().iter().any(|own| family(own.addr()));
            let stream = ready.then(|| TcpSocket::new(&self.stack).start(self.server));
            self.stream = stream.and_then(Result::ok);
            if let Some(stream) = &self.stream {
                stream.set_nonblocking(true);
            }
            return self.stream.is_some();
        };
        if let Some(error) = stream.take_error() {
            // As in any host: its gateway has not answered while it was connecting.
            assert_eq!(error, SoError::HostUnreachable);
            assert!(self.back.is_empty());
            (self.stream, self.sent, self.closed) = (None, 0, false);
            self.retries += 1;
            return true;
        }
        let mut worked = false;
        if self.sent < self.data.len() {
            let end = self.data.len().min(self.sent + rng.usize(1..20_000));
            match stream.write(&self.data[self.sent..end]) {
                Ok(count) => {
                    self.sent += count;
                    worked = true;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
        } else if !self.closed {
            stream.shutdown(Shutdown::Write).unwrap();
            self.closed = true;
            worked = true;
        }
        let mut out = [0; 20_000];
        match stream.read(&mut out) {
            Ok(0) => {
                assert!(self.back == self.data, "all of it came back");
                self.done = true;
                true
            }
            Ok(count) => {
                self.back.extend_from_slice(&out[..count]);
                assert!(self.data.starts_with(&self.back), "in order");
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                worked
            }
        }
    }
}

/// The server's side of a connection: what came and is to be returned.
struct Echo {
    stream: TcpStream,
    left: Vec<u8>,
    ended: bool,
    done: bool,
}

impl Echo {
    fn step(&mut self) -> bool {
        if self.done {
            return false;
        }
        let mut worked = false;
        let mut bytes = [0; 10_000];
        if !self.ended && self.left.len() < 50_000 {
            match self.stream.read(&mut bytes) {
                Ok(0) => self.ended = true,
                Ok(count) => self.left.extend_from_slice(&bytes[..count]),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
            worked = self.ended;
        }
        if !self.left.is_empty() {
            match self.stream.write(&self.left) {
                Ok(count) => {
                    self.left.drain(..count);
                    worked = true;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
        } else if self.ended {
            self.stream.shutdown(Shutdown::Write).unwrap();
            self.done = true;
            worked = true;
        }
        worked
    }
}

struct World {
    rng: Rng,
    clock: Arc<SetClock>,
    lan: Lan,
    network: Network,
    edge: Arc<Edge<Port>>,
    /// Those of the gateway, of the proxy's other side, and of the server.
    stacks: Vec<Stack>,
    drivers: Vec<Driver>,
    pool: SplicePool,
    listeners: [TcpListener; 2],
    relays: Vec<(TcpStream, TcpStream, [Splice; 2])>,
    echoes: Vec<Echo>,
    clients: Vec<Client>,
}

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

/// Addresses of a guest: given by the gateway, or configured.
fn guest(number: u8, several: bool, dynamic: bool) -> HostConfig {
    let config = HostConfig::new(mac(10 + number)).seed(number.into());
    if dynamic {
        return config.dhcp(true).slaac(true);
    }
    let last = if several { 200 + number } else { 15 };
    config
        .address(format!("10.0.2.{last}/24").parse().unwrap())
        .address(format!("fd00::{last}/64").parse().unwrap())
        .gateway("10.0.2.1".parse().unwrap())
        .gateway("fd00::1".parse().unwrap())
        .probe(false)
}

fn builder(
    link: impl Link + 'static,
    clock: &Arc<SetClock>,
    rng: &mut Rng,
) -> sosplice::stack::Builder {
    Stack::builder(link)
        .clock(clock.clone())
        .seed(rng.u64(..))
        .connect_timeout(NEVER)
        .half_open_timeout(NEVER)
        .user_timeout(NEVER)
        .half_closed_timeout(None)
        .stall_timeout(None)
        .ack_delay(None)
}

fn edge(port: Port, several: bool, clock: &Arc<SetClock>) -> Arc<Edge<Port>> {
    let gateway: Ipv4Net = "10.0.2.1/24".parse().unwrap();
    let mut config = EdgeConfig::new(gateway, Ipv4Addr::new(10, 0, 2, 15))
        .gateway_v6("fd00::1/64".parse::<ipnet::Ipv6Net>().unwrap())
        .lease(Duration::from_secs(120));
    if several {
        config = config.pool(Ipv4Addr::new(10, 0, 2, 10)..=Ipv4Addr::new(10, 0, 2, 13));
    }
    Arc::new(Edge::new(port, config).unwrap().clock(clock.clone()))
}

fn faults(rng: &mut Rng) -> Faults {
    let mut some = |most: f64| match rng.bool() {
        true => rng.f64() * most,
        false => 0.0,
    };
    let mut faults = Faults {
        loss: some(0.1),
        control_loss: some(0.5),
        duplication: some(0.2),
        ..Faults::default()
    };
    faults.delay = Duration::from_micros(rng.u64(0..20_000));
    faults.jitter = faults.delay.mul_f64(rng.f64());
    faults
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng::with_seed(seed);
        let clock = SetClock::new();
        let lan = Lan::new(rng.u64(..), faults(&mut rng), &clock);
        let several = rng.bool();
        let edge = edge(lan.port(), several, &clock);
        let path = Path {
            delay: Duration::from_micros(rng.u64(0..20_000)),
            loss: if rng.bool() { 0.05 } else { 0.0 },
            ..Path::PERFECT
        };
        let trace = Trace::new(&clock, false);
        let network = Network::new("b", rng.u64(..), [path; 2], &clock, &trace);
        let end = |index| network.end(index, Capabilities::new(1500), (None, Duration::ZERO));
        let builders = [
            builder(edge.clone(), &clock, &mut rng)
                .address("10.0.2.1/24".parse().unwrap())
                .address("fd00::1/64".parse().unwrap()),
            builder(end(0), &clock, &mut rng)
                .address("10.1.0.1/24".parse().unwrap())
                .address("fd01::1/64".parse().unwrap()),
            builder(end(1), &clock, &mut rng)
                .address("10.1.0.2/24".parse().unwrap())
                .address("fd01::2/64".parse().unwrap()),
        ];
        let built = builders.map(|builder| builder.build_with_driver().unwrap());
        let (stacks, drivers): (Vec<_>, Vec<_>) = built.into_iter().unzip();
        let any = SocketAddr::from(([0; 4], 80));
        let listeners = [
            TcpListener::intercept(&stacks[0], Intercept::all(), 64).unwrap(),
            TcpListener::bind(&stacks[2], any).unwrap(),
        ];
        listeners.iter().for_each(|one| one.set_nonblocking(true));
        let dispatch = match rng.bool() {
            true => Dispatch::Direct,
            false => Dispatch::Worker,
        };
        let pool = SplicePool::builder().clock(clock.clone()).workers(1);
        let count = if several { rng.u8(1..4) } else { 1 };
        let clients = (0..count).map(|number| client(number, several, &lan, &clock, &mut rng));
        World {
            clients: clients.collect(),
            pool: pool.dispatch(dispatch).manual().build(),
            relays: Vec::new(),
            echoes: Vec::new(),
            rng,
            clock,
            lan,
            network,
            edge,
            stacks,
            drivers,
            listeners,
        }
    }

    fn accept(&mut self) -> bool {
        let Ok((inside, _)) = self.listeners[0].accept() else {
            return false;
        };
        let to = inside.local_addr();
        assert!([SERVER, SERVER_V6].contains(&to.to_string().as_str()));
        let outside = TcpSocket::new(&self.stacks[1]).start(to).unwrap();
        let options = || Options::default().pool(self.pool.clone()).forward_eof(true);
        let up = inside.splice_to(&outside, options()).unwrap();
        let down = outside.splice_to(&inside, options()).unwrap();
        self.relays.push((inside, outside, [up, down]));
        true
    }

    fn serve(&mut self) -> bool {
        let Ok((stream, _)) = self.listeners[1].accept() else {
            return false;
        };
        stream.set_nonblocking(true);
        self.echoes.push(Echo {
            stream,
            left: Vec::new(),
            ended: false,
            done: false,
        });
        true
    }

    /// Lets one of them do something; `false` if it has nothing to do.
    fn step(&mut self, actor: usize) -> bool {
        let guests = self.clients.len();
        match actor {
            0..3 => self.drivers[actor].poll().unwrap(),
            3 => self.pool.run_one(),
            4 => self.accept(),
            5 => self.serve(),
            _ if actor < 6 + guests => self.clients[actor - 6].driver.poll().unwrap(),
            _ if actor < 6 + 2 * guests => self.clients[actor - 6 - guests].step(&mut self.rng),
            _ => self.echoes[actor - 6 - 2 * guests].step(),
        }
    }

    fn run_until_idle(&mut self) {
        let mut idle = 0;
        loop {
            let actors = 6 + 2 * self.clients.len() + self.echoes.len();
            let actor = self.rng.usize(0..actors);
            idle = if self.step(actor) { 0 } else { idle + 1 };
            // Some had nothing to do: perhaps none has.
            if idle == 8 {
                if !(0..actors).any(|actor| self.step(actor)) {
                    return;
                }
                idle = 0;
            }
        }
    }

    /// Lets all of them work, and then time pass to the next event.
    fn turn(&mut self) {
        self.lan.run();
        self.network.run();
        let now = self.clock.now();
        for client in &mut self.clients {
            if client.moves.is_some_and(|at| at <= now) {
                client.moves = None;
                client.link.moves();
                client.moved = client.stream.is_some() && !client.done;
            }
        }
        self.run_until_idle();
        let drivers = self.clients.iter().map(|client| &client.driver);
        let drivers = drivers.chain(&self.drivers).filter_map(Driver::poll_at);
        let moves = self.clients.iter().filter_map(|client| client.moves);
        let networks = [self.lan.next(), self.network.next()];
        let timers = drivers.chain(moves).chain(self.pool.poll_at());
        let next = timers.chain(networks.into_iter().flatten()).min();
        let next = next.unwrap_or(now + Duration::from_secs(1));
        self.clock.jump(next.max(now + Duration::from_nanos(1)));
    }

    /// Until all data has come back.
    fn run(&mut self) {
        while !self.clients.iter().all(|client| client.done) {
            self.turn();
            assert!(self.clock.passed() < LONGEST, "{}", self.state());
        }
    }

    /// For a run that does not end.
    fn state(&self) -> String {
        let clients = self.clients.iter().map(|client| {
            let (data, sent, back) = (client.data.len(), client.sent, client.back.len());
            let addresses = client.stack.addresses();
            let neighbours = client.link.host().neighbours();
            format!(
                "to {}, done {}: {sent} of {data} bytes sent, {back} came back; {addresses:?} {neighbours:?} {:?}",
                client.server,
                client.done,
                client.link.host().stats()
            )
        });
        let clients: Vec<_> = clients.collect();
        let (edge, relays) = (&self.edge, self.relays.len());
        format!(
            "it does not end: {clients:#?}, {relays} relays, {:#?} {:#?}",
            edge.stats(),
            edge.guests()
        )
    }

    /// The splices have ended as their sources have, and nothing is left.
    fn finish(mut self) -> (u64, u64) {
        // The last acknowledgements.
        let until = self.clock.now() + Duration::from_secs(300);
        while self.clock.now() < until {
            self.turn();
        }
        assert_eq!(self.relays.len(), self.clients.len());
        for (inside, outside, splices) in self.relays.drain(..) {
            for splice in splices {
                assert_eq!(splice.end().expect("it has ended").cause, Cause::Eof);
            }
            drop((inside, outside));
        }
        self.network.verdict().unwrap();
        drop((self.clients, self.echoes));
        for stack in &self.stacks {
            assert_eq!(stack.stats().broken, 0);
        }
        self.lan.lost()
    }
}

fn client(number: u8, several: bool, lan: &Lan, clock: &Arc<SetClock>, rng: &mut Rng) -> Client {
    let dynamic = rng.bool();
    let port = lan.port();
    let config = guest(number, several, dynamic);
    // With a lease the address is that of the hardware address, which stays then.
    let roams = !dynamic && rng.bool();
    let host = |config| {
        Host::new(port.clone(), config)
            .unwrap()
            .clock(clock.clone())
    };
    let mut hosts = vec![host(config.clone())];
    if roams {
        let mut other = config;
        other.mac = mac(100 + number);
        hosts.push(host(other));
    }
    let link = Arc::new(Roaming {
        hosts,
        current: AtomicUsize::new(0),
    });
    let (stack, driver) = builder(link.clone(), clock, rng)
        .build_with_driver()
        .unwrap();
    let server = if rng.bool() { SERVER } else { SERVER_V6 };
    let data = (0..rng.usize(0..100_000)).map(|at| (at * 7 + at / 251) as u8);
    let moves = clock.start() + Duration::from_millis(rng.u64(0..1000));
    Client {
        link,
        stack,
        driver,
        server: server.parse().unwrap(),
        stream: None,
        data: data.collect(),
        sent: 0,
        closed: false,
        back: Vec::new(),
        done: false,
        retries: 0,
        moves: roams.then_some(moves),
        moved: false,
    }
}

#[test]
fn all_data_arrives_over_a_switch_that_loses_frames() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let count = setting("SOSPLICE_SIM_SEEDS").unwrap_or(times(60, 1000));
    let first = setting("SOSPLICE_SIM_FIRST").unwrap_or(0);
    let (mut lost, mut control_lost, mut moves, mut spoofed) = (0, 0, 0, 0);
    for seed in first..first + count {
        let result = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            world.run();
            let moved = world.clients.iter().filter(|client| client.moved);
            let counted = (moved.count(), world.edge.stats().spoofed);
            (world.finish(), counted)
        });
        let ((all, control), (moved, dropped)) =
            result.unwrap_or_else(|_| panic!("seed {seed} failed"));
        lost += all;
        control_lost += control;
        moves += moved;
        spoofed += dropped;
    }
    println!(
        "{count} seeds: {lost} frames lost, {control_lost} of control, {moves} moves, {spoofed} spoofed"
    );
    assert!(count < 20 || (control_lost > 10 && lost > control_lost && moves > 5 && spoofed > 0));
}
