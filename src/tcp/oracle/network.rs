//! Two stacks over a bad network with virtual time, and what the oracle checks of them.
//!
//! Chance decides what happens to a frame and what the applications do. In a test ([`property`]) it is
//! a seed; a fuzzer's input ([`fuzz`]) decides as long as there is some of it, then its seed does.

#![allow(
    clippy::cast_possible_truncation,
    clippy::significant_drop_in_scrutinee,
    reason = "small numbers, one thread"
)]

#[cfg(sosplice_fuzz)]
pub(crate) mod fuzz;
#[cfg(test)]
mod property;

use super::{Birth, byte, compare};
use crate::clock::Clock;
use crate::link::{Capabilities, Frame, Interest, Link, Packet, ReceiveError, TransmitError};
use crate::lock::{LEAF, Mutex};
use crate::stack::{Driver, Stack, TcpListener, TcpStream};
use crate::tcp::wire::{self, FIN, MAX_CANONICAL, Parsed, SYN, Segment};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Virtual time, in microseconds since the run began.
#[derive(Debug)]
struct TestClock {
    base: Instant,
    micros: AtomicU64,
}

impl Clock for TestClock {
    fn now(&self) -> Instant {
        self.base + Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }
}

/// A link whose both queues the test holds.
#[derive(Debug, Clone)]
struct TestLink {
    caps: Capabilities,
    inbox: Arc<Mutex<Vec<Frame>, LEAF>>,
    outbox: Arc<Mutex<Vec<Vec<u8>>, LEAF>>,
}

impl TestLink {
    fn new(caps: Capabilities) -> TestLink {
        TestLink {
            caps,
            inbox: Arc::default(),
            outbox: Arc::default(),
        }
    }
}

impl Link for TestLink {
    fn capabilities(&self) -> Capabilities {
        self.caps
    }

    fn receive(&self, frames: &mut Vec<Frame>, _max: usize) -> Result<usize, ReceiveError> {
        frames.append(&mut self.inbox.lock());
        Ok(frames.len())
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        self.outbox.lock().push(packet.to_vec());
        Ok(())
    }

    fn wait(&self, _interest: Interest, _deadline: Option<Instant>) -> io::Result<()> {
        Ok(())
    }

    fn wake(&self) {}
}

/// Bytes while there are some, then xorshift64*.
struct Random {
    input: VecDeque<u8>,
    state: u64,
}

impl Random {
    fn new(seed: u64, input: &[u8]) -> Random {
        Random {
            input: input.iter().copied().collect(),
            state: seed | 1,
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        let value = match self.input.pop_front() {
            // One byte for each decision: the whole range, coarsely.
            Some(byte) if bound > 256 => u64::from(byte) * bound / 256,
            Some(byte) => byte.into(),
            None => self.next(),
        };
        value % bound.max(1)
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33
    }

    fn chance(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }
}

/// What the network does, in thousandths of the frames.
#[derive(Debug, Clone, Copy)]
struct Weather {
    seed: u64,
    loss: u64,
    duplication: u64,
    delay: u64,
    overlap: u64,
    buffers: (usize, usize),
    totals: (u64, u64),
    v6: bool,
    segment: bool,
    nagle: bool,
    /// Users change their minds: about Nagle's algorithm, and in this round about the connection.
    restless: bool,
    abort: Option<u32>,
}

/// One side of the run.
struct Host {
    link: TestLink,
    stack: Stack,
    driver: Driver,
    stream: Option<TcpStream>,
    sends: u64,
    sent: u64,
    total: u64,
    received: u64,
    shut: bool,
    finished: bool,
    /// One of both sides has aborted the connection.
    aborted: bool,
    /// The other side has the connection too; before, it may fail.
    stands: bool,
}

impl Host {
    fn new(weather: &Weather, index: u64, clock: &Arc<TestClock>) -> Host {
        let segment_v4 = weather.segment.then_some(20_000);
        let caps = Capabilities {
            mtu: 1500,
            checksum: false,
            segment_v4,
            segment_v6: None,
        };
        let link = TestLink::new(caps);
        let host = index + 1;
        let buffer = if index == 0 {
            weather.buffers.0
        } else {
            weather.buffers.1
        };
        let mut builder = Stack::builder(link.clone())
            .address(format!("10.0.0.{host}/24").parse().unwrap())
            .address(format!("fd00::{host}/64").parse().unwrap())
            .receive_buffer(buffer)
            .send_buffer(buffer)
            .user_timeout(Duration::from_secs(1_000_000))
            .clock(clock.clone())
            .seed(weather.seed ^ index << 60);
        // Whoever gives its engine back whenever it can is not to be told from others.
        if weather.seed >> index & 1 == 1 {
            builder = builder.rest_at_once();
        }
        let (stack, driver) = builder.manual().unwrap();
        let total = if index == 0 {
            weather.totals.0
        } else {
            weather.totals.1
        };
        Host {
            link,
            stack,
            driver,
            stream: None,
            sends: index,
            sent: 0,
            total,
            received: 0,
            shut: false,
            finished: false,
            aborted: false,
            stands: false,
        }
    }

    /// The connection is over, or at the end of what it receives.
    fn has_failed(&self) -> bool {
        let stream = self.stream.as_ref();
        stream.is_some_and(|stream| stream.end().rcv().buf.is_closed())
    }

    fn hold(&mut self, stream: TcpStream, nagle: bool) {
        stream.set_nonblocking(true);
        stream.set_nodelay(!nagle);
        self.stream = Some(stream);
    }

    /// The application does something, or not.
    fn act(&mut self, random: &mut Random, restless: bool) {
        let Some(stream) = &self.stream else { return };
        if restless && random.chance(100) {
            stream.set_nodelay(random.chance(500));
        }
        if random.chance(700) && self.sent < self.total {
            let count = (random.below(3000) + 1).min(self.total - self.sent);
            let bytes: Vec<u8> = (self.sent..self.sent + count)
                .map(|i| byte(self.sends, i))
                .collect();
            self.sent += stream.send(&bytes).unwrap_or(0) as u64;
        }
        if self.sent == self.total && !self.shut && random.chance(500) {
            stream.shutdown(Shutdown::Write).unwrap();
            self.shut = true;
        }
        if random.chance(600) {
            let mut bytes = vec![0; random.below(4000) as usize + 1];
            match stream.recv(&mut bytes) {
                Ok(0) => self.finished = true,
                Ok(count) => {
                    let from = self.received;
                    let same = |(i, b): (u64, &u8)| *b == byte(1 - self.sends, i);
                    assert!(
                        (from..).zip(&bytes[..count]).all(same),
                        "delivered bytes differ"
                    );
                    self.received += count as u64;
                }
                Err(_) if self.aborted => self.finished = true,
                // The attempt was given up in one of these calls.
                Err(_) if !self.stands && self.has_failed() => {}
                Err(error) => assert_eq!(
                    error.kind(),
                    io::ErrorKind::WouldBlock,
                    "{}",
                    stream.conn().describe()
                ),
            }
        }
    }
}

/// Frames on their way: when they arrive, in order, to whom.
type InFlight = BTreeMap<(u64, u64), (usize, Vec<u8>)>;

struct Network {
    weather: Weather,
    random: Random,
    in_flight: InFlight,
    serial: u64,
    /// Rounds since a frame was last on its way.
    quiet: u32,
}

impl Network {
    fn post(&mut self, now: u64, to: usize, frame: Vec<u8>) {
        let slow = self.random.chance(self.weather.delay);
        let delay = 500 + if slow { self.random.below(5000) } else { 0 };
        self.serial += 1;
        self.in_flight
            .insert((now + delay, self.serial), (to, frame));
    }

    fn send(&mut self, now: u64, to: usize, frame: Vec<u8>) {
        if self.random.chance(self.weather.overlap) {
            for part in self.overlapping(&frame) {
                self.post(now, to, part);
            }
        }
        if self.random.chance(self.weather.loss) {
            return;
        }
        if self.random.chance(self.weather.duplication) {
            self.post(now, to, frame.clone());
        }
        self.post(now, to, frame);
    }

    /// Parts of a data segment, as a peer that retransmits with other boundaries would send them.
    fn overlapping(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        let Parsed::Tcp(segment) = wire::parse(Frame::new(frame)) else {
            return Vec::new();
        };
        if segment.payload_len < 2 || segment.header.has(SYN) {
            return Vec::new();
        }
        (0..2).map(|_| self.part(&segment)).collect()
    }

    fn part(&mut self, segment: &Segment) -> Vec<u8> {
        let bytes = segment.payload[0].to_vec();
        let from = self.random.below(bytes.len() as u64) as usize;
        let to = from + self.random.below((bytes.len() - from) as u64 + 1) as usize;
        let mut header = segment.header;
        header.seq = header.seq.wrapping_add(from as u32);
        if to < bytes.len() {
            header.flags &= !FIN;
        }
        let tuple = &segment.tuple;
        let mut out = [0; MAX_CANONICAL];
        let (from_end, to_end) = (
            (tuple.remote, tuple.remote_port),
            (tuple.local, tuple.local_port),
        );
        let part = &bytes[from..to];
        let len = wire::compose(&mut out, from_end, to_end, &header, part.len());
        wire::finish(
            &mut out[..len],
            tuple.ip_header_len(),
            std::iter::once(part),
            false,
        );
        [&out[..len], part].concat()
    }
}

/// Runs until both sides have everything, then lets the twins go through it.
fn run(weather: Weather, input: &[u8]) {
    let clock = Arc::new(TestClock {
        base: crate::clock::system().now(),
        micros: 0.into(),
    });
    let mut hosts = [
        Host::new(&weather, 0, &clock),
        Host::new(&weather, 1, &clock),
    ];
    let address = if weather.v6 {
        "[fd00::2]:80"
    } else {
        "10.0.0.2:80"
    };
    let listener = TcpListener::bind(&hosts[1].stack, address).unwrap();
    listener.set_nonblocking(true);
    let stream = TcpStream::start(&hosts[0].stack, address.parse().unwrap()).unwrap();
    hosts[0].hold(stream, weather.nagle);
    let random = Random::new(weather.seed, input);
    let mut network = Network {
        weather,
        random,
        in_flight: InFlight::new(),
        serial: 0,
        quiet: 0,
    };
    let Some(outcome) = talk(&mut hosts, &mut network, &listener, &clock) else {
        return;
    };
    if outcome == Outcome::Finished {
        assert_eq!(hosts[0].received, hosts[1].sent);
        assert_eq!(hosts[1].received, hosts[0].sent);
    }
    for (index, host) in hosts.iter().enumerate() {
        assert_eq!(host.stack.stats().broken, 0);
        let Some(stream) = &host.stream else { continue };
        let (config, ops) = stream.conn().taps();
        let birth = Birth {
            tuple: stream.conn().tuple,
            connects: index == 0,
            config,
            link: host.link.caps,
        };
        compare(&birth, &ops, index as u64, 1 - index as u64);
    }
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Finished,
    Aborted,
}

/// Rounds that follow an abort.
const AFTERMATH: u32 = 50;

/// Until both sides have everything, or some time after one has aborted; none if the connection never
/// stood.
fn talk(
    hosts: &mut [Host; 2],
    network: &mut Network,
    listener: &TcpListener,
    clock: &TestClock,
) -> Option<Outcome> {
    let weather = network.weather;
    let mut rounds = 0;
    while !hosts.iter().all(|host| host.finished && host.shut) {
        rounds += 1;
        if rounds >= 100_000 {
            for stream in hosts.iter().filter_map(|host| host.stream.as_ref()) {
                eprintln!("{}", stream.conn().describe());
            }
        }
        assert!(
            rounds < 100_000,
            "no progress: {:?}",
            hosts.each_ref().map(|h| (h.sent, h.received))
        );
        if weather.abort == Some(rounds) {
            let mut streams = hosts.iter().filter_map(|host| host.stream.as_ref());
            streams.next_back()?.abort();
            hosts.iter_mut().for_each(|host| host.aborted = true);
        }
        if weather.abort.is_some_and(|at| rounds > at + AFTERMATH) {
            return Some(Outcome::Aborted);
        }
        if hosts[1].stream.is_none() && hosts[0].has_failed() && !hosts[0].aborted {
            // So many were lost that the half-open connection was given up (20 s), before or after
            // the other side took it for established: that can happen.
            let waited = Duration::from_micros(clock.micros.load(Ordering::Relaxed));
            assert!(weather.loss > 0 && waited >= Duration::from_secs(20));
            return None;
        }
        if hosts[1].stream.is_none()
            && let Ok((stream, _)) = listener.accept()
        {
            hosts[1].hold(stream, weather.nagle);
            hosts.iter_mut().for_each(|host| host.stands = true);
        }
        for host in &mut *hosts {
            host.act(&mut network.random, weather.restless);
        }
        step(hosts, network, clock);
    }
    let aborted = hosts[0].aborted;
    Some(if aborted {
        Outcome::Aborted
    } else {
        Outcome::Finished
    })
}

/// Everything that happens until the next moment at which something can happen.
fn step(hosts: &mut [Host; 2], network: &mut Network, clock: &TestClock) {
    let now = clock.micros.load(Ordering::Relaxed);
    for (index, host) in hosts.iter_mut().enumerate() {
        while host.driver.run_once().unwrap() {}
        for frame in host.link.outbox.lock().drain(..).collect::<Vec<_>>() {
            network.send(now, 1 - index, frame);
        }
    }
    let arrival = network.in_flight.keys().next().map(|(at, _)| *at);
    let timers = hosts.iter().filter_map(|host| host.driver.next_deadline());
    let timer = timers.min().map(|at| (at - clock.base).as_micros() as u64);
    // The applications act again after a while in any case; the quieter, the later.
    network.quiet = if arrival.is_some() {
        0
    } else {
        network.quiet + 1
    };
    let soon = now + (2000 << network.quiet.min(16));
    let next = arrival
        .into_iter()
        .chain(timer)
        .chain([soon])
        .min()
        .unwrap_or(now);
    clock.micros.store(next.max(now + 1), Ordering::Relaxed);
    while let Some(entry) = network.in_flight.first_entry() {
        if entry.key().0 > next {
            break;
        }
        let (to, frame) = entry.remove();
        hosts[to].link.inbox.lock().push(Frame::new(&frame));
    }
}
