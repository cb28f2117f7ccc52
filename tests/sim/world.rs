//! Four stacks, two networks, pools and applications, and the scheduler of the actors.
//!
//! ```text
//! clients, stack 0 -- network a -- stack 1, proxy, stack 2 -- network b -- stack 3, servers
//! ```
//!
//! All of it runs in one thread. In each step one actor that may have work is picked at random. When
//! all are idle, time jumps to the next event; when there is none, the run ends. Then all actors must
//! have finished.

use crate::clock::SetClock;
use crate::ear::{Ear, Ears};
use crate::network::Network;
use crate::peer::Peer;
use crate::plan::{Manners, Plan, StackPlan};
use crate::relay::Relay;
use crate::trace::Trace;
use fastrand::Rng;
use sosplice::buf::MAX_FRAME;
use sosplice::clock::Clock;
use sosplice::sockbuf::SockBuf;
use sosplice::splice::{Cause, Dispatch, End, SplicePool};
use sosplice::stack::Driver;
use sosplice::{Socket, Stack, TcpListener, TcpSocket, buf};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The fault of a run.
pub(crate) type Failure = String;

pub(crate) fn fail<T>(why: impl Into<String>) -> Result<T, Failure> {
    Err(why.into())
}

pub(crate) fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

const PORT: u16 = 80;
/// A timeout that must not expire.
const NEVER: Duration = Duration::from_secs(48 * 3600);
/// A run that can finish does within this time. (It can take long: without a sample of the round trip,
/// which a network that drops half of each burst leaves none of, a retransmission waits for a minute.)
const LONGEST: Duration = Duration::from_secs(20 * 3600);
const MOST_STEPS: u64 = 20_000_000;

/// The expected counters of a pool.
#[derive(Debug, Default)]
struct Tally {
    started: Cell<u64>,
    bytes: Cell<u64>,
    ends: RefCell<Vec<Cause>>,
}

/// The state shared by all actors of a run.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) plan: Plan,
    pub(crate) clock: Arc<SetClock>,
    pub(crate) trace: Trace,
    pub(crate) pools: RefCell<Vec<Option<SplicePool>>>,
    tallies: Vec<Tally>,
    ears: Ears,
    /// When bytes were last received.
    pub(crate) delivered_at: Cell<Duration>,
}

impl Scene {
    fn new(plan: Plan, prints: bool) -> Scene {
        let clock = SetClock::new();
        let pools = plan.pools.iter().map(|pool| {
            let dispatch = if pool.direct {
                Dispatch::Direct
            } else {
                Dispatch::Worker
            };
            let builder = SplicePool::builder()
                .workers(pool.workers)
                .quantum(pool.quantum);
            Some(
                builder
                    .dispatch(dispatch)
                    .clock(clock.clone())
                    .manual()
                    .build(),
            )
        });
        Scene {
            pools: RefCell::new(pools.collect()),
            tallies: plan.pools.iter().map(|_| Tally::default()).collect(),
            trace: Trace::new(&clock, prints),
            ears: Ears::default(),
            delivered_at: Cell::default(),
            plan,
            clock,
        }
    }

    pub(crate) fn is_rude(&self) -> bool {
        self.plan.manners == Manners::Rude
    }

    pub(crate) fn note(&self, who: usize, what: &str, value: u64) {
        self.trace.line(value ^ (who as u64) << 32, || {
            format!("{who} {what} ({value})")
        });
    }

    pub(crate) fn listen(&self, socket: &Socket) -> Ear {
        self.ears.add(socket)
    }

    /// A pool that is there.
    pub(crate) fn pool(&self, rng: &mut Rng) -> Option<usize> {
        let pools = self.pools.borrow();
        let there: Vec<_> = (0..pools.len())
            .filter(|&index| pools[index].is_some())
            .collect();
        (!there.is_empty()).then(|| there[rng.usize(0..there.len())])
    }

    pub(crate) fn started(&self, pool: usize) {
        let tally = &self.tallies[pool];
        tally.started.set(tally.started.get() + 1);
    }

    pub(crate) fn ended(&self, pool: usize, end: &End) {
        let tally = &self.tallies[pool];
        tally.bytes.set(tally.bytes.get() + end.bytes);
        tally.ends.borrow_mut().push(end.cause);
    }

    /// Memory is under its limits.
    pub(crate) fn check_buffers(&self, socket: &Socket) -> Result<(), Failure> {
        let look = |buf: &SockBuf| (buf.len(), buf.hiwat(), buf.memory(), buf.mbmax());
        let rcv = socket.end().with_rcv(look);
        let snd = socket.end().with_snd(look);
        for (name, (len, hiwat, memory, mbmax)) in [("so_rcv", rcv), ("so_snd", snd)] {
            // One frame may just have lost its better half.
            let holds = len <= hiwat && memory <= mbmax + MAX_FRAME;
            check(holds, || {
                format!("{name}: {len} of {hiwat} bytes in {memory} of {mbmax}")
            })?;
        }
        Ok(())
    }

    /// Compares the pool's counters with its splices.
    fn check_pool(&self, index: usize, pool: &SplicePool) -> Result<(), Failure> {
        let (stats, tally) = (pool.stats(), &self.tallies[index]);
        let ends = tally.ends.borrow();
        let causes = ends.iter().all(|&cause| {
            let kind = std::mem::discriminant(&cause);
            let same = ends
                .iter()
                .filter(|other| std::mem::discriminant(*other) == kind)
                .count();
            stats.ended_by(cause) == same as u64
        });
        let right = stats.started == tally.started.get()
            && stats.ended() == ends.len() as u64
            && stats.started == stats.ended()
            && stats.bytes == tally.bytes.get()
            && stats.panics == 0
            && causes;
        check(right, || {
            format!("pool {index} counts {stats:?}, right is {tally:?}")
        })?;
        check(pool.poll_at().is_none(), || {
            format!("pool {index} still has a timer")
        })
    }
}

#[derive(Debug, Clone, Copy)]
enum Actor {
    Driver(usize),
    Pool(usize),
    Accept(usize),
    Ears,
    Begin(usize),
    Peer(usize),
    Relay(usize),
}

#[derive(Debug)]
pub(crate) struct World {
    scene: Scene,
    rng: Rng,
    networks: [Network; 2],
    stacks: Vec<Stack>,
    drivers: Vec<Option<Driver>>,
    /// Of stack 1 and of stack 3.
    listeners: [Option<TcpListener>; 2],
    /// Ports that clients and relays dialled from.
    clients: HashMap<SocketAddr, usize>,
    relayed: HashMap<SocketAddr, usize>,
    begun: Vec<bool>,
    peers: Vec<Option<Peer>>,
    relays: Vec<Relay>,
    steps: u64,
}

/// The statistics of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) hash: u64,
    pub(crate) steps: u64,
    pub(crate) time: Duration,
    /// From the beginning to the last byte that arrived.
    pub(crate) delivered_at: Duration,
    pub(crate) bytes: u64,
    pub(crate) splices: u64,
    pub(crate) lost: u64,
}

fn address(stack: usize, v6: bool) -> SocketAddr {
    let (network, host) = [(1, 1), (1, 2), (2, 2), (2, 1)][stack];
    match v6 {
        false => ([10, 0, network, host], PORT).into(),
        true => (
            [0xfd00, 0, 0, u16::from(network), 0, 0, 0, u16::from(host)],
            PORT,
        )
            .into(),
    }
}

fn stack(index: usize, plan: &Plan, network: &Network, clock: &Arc<SetClock>) -> (Stack, Driver) {
    let StackPlan {
        seed,
        receive_buffer,
        send_buffer,
        time_wait,
        ack_delay,
        capabilities,
    } = plan.stacks[index];
    let clock: Arc<dyn Clock> = clock.clone();
    let delays = (ack_delay, plan.lateness());
    let (v4, v6) = (address(index, false).ip(), address(index, true).ip());
    let builder = Stack::builder(network.end([0, 1, 0, 1][index], capabilities, delays))
        .address(format!("{v4}/24").parse().unwrap())
        .address(format!("{v6}/64").parse().unwrap())
        .receive_buffer(receive_buffer)
        .send_buffer(send_buffer)
        .time_wait(time_wait)
        .ack_delay(ack_delay)
        .clock(clock)
        .seed(seed);
    let seconds = Duration::from_secs;
    let builder = match plan.manners {
        Manners::Polite => builder
            .connect_timeout(NEVER)
            .half_open_timeout(NEVER)
            .user_timeout(NEVER)
            .half_closed_timeout(None)
            .fin_wait_timeout(NEVER)
            .stall_timeout(None),
        Manners::Rude => builder
            .connect_timeout(seconds(40))
            .user_timeout(seconds(60))
            .keep_alive(seconds(20), seconds(5), 3)
            .half_closed_timeout(Some(seconds(90)))
            .fin_wait_timeout(seconds(60))
            .stall_timeout(Some(seconds(120))),
    };
    builder.build_with_driver().unwrap()
}

impl World {
    pub(crate) fn new(seed: u64, plan: Plan, prints: bool) -> World {
        let mut rng = Rng::with_seed(!seed);
        let scene = Scene::new(plan, prints);
        let clock = &scene.clock;
        let network = |index: usize, name, seed| {
            Network::new(name, seed, scene.plan.paths[index], clock, &scene.trace)
        };
        let networks = [network(0, "a", rng.u64(..)), network(1, "b", rng.u64(..))];
        let (stacks, drivers): (Vec<_>, Vec<_>) = (0..4)
            .map(|index| stack(index, &scene.plan, &networks[index / 2], clock))
            .unzip();
        let listener = |stack: usize| {
            let any = SocketAddr::from(([0; 4], PORT));
            let listener = TcpListener::bind_with_backlog(&stacks[stack], any, 64).unwrap();
            listener.set_nonblocking(true);
            Some(listener)
        };
        let conns = scene.plan.conns.len();
        World {
            listeners: [listener(1), listener(3)],
            drivers: drivers.into_iter().map(Some).collect(),
            clients: HashMap::new(),
            relayed: HashMap::new(),
            begun: vec![false; conns],
            peers: (0..2 * conns).map(|_| None).collect(),
            relays: Vec::new(),
            steps: 0,
            stacks,
            networks,
            rng,
            scene,
        }
    }

    /// Until nothing happens any more.
    pub(crate) fn run(mut self) -> Result<Outcome, Failure> {
        let mut actors = self.actors();
        let mut busy = actors.clone();
        loop {
            self.steps += 1;
            if self.steps > MOST_STEPS {
                return fail("it never comes to rest");
            }
            if busy.is_empty() || self.rng.u32(0..10_000) < self.scene.plan.hesitates {
                if !self.advance(busy.is_empty())? {
                    break;
                }
                busy.clone_from(&actors);
                continue;
            }
            let index = self.rng.usize(0..busy.len());
            let actor = busy[index];
            if self.rng.u32(0..100) < self.scene.plan.laziness {
                continue;
            }
            if self.act(actor)? {
                if matches!(actor, Actor::Accept(_)) {
                    actors = self.actors();
                }
                busy.clone_from(&actors);
            } else {
                busy.swap_remove(index);
            }
        }
        self.finish()
    }

    fn actors(&self) -> Vec<Actor> {
        let conns = self.scene.plan.conns.len();
        let mut actors = vec![Actor::Ears, Actor::Accept(0), Actor::Accept(1)];
        actors.extend((0..4).map(Actor::Driver));
        actors.extend((0..self.scene.plan.pools.len()).map(Actor::Pool));
        actors.extend((0..conns).map(Actor::Begin));
        actors.extend((0..2 * conns).map(Actor::Peer));
        actors.extend((0..self.relays.len()).map(Actor::Relay));
        actors
    }

    fn act(&mut self, actor: Actor) -> Result<bool, Failure> {
        let scene = &self.scene;
        match actor {
            Actor::Driver(index) => {
                let Some(driver) = &mut self.drivers[index] else {
                    return Ok(false);
                };
                driver
                    .poll()
                    .map_err(|gone| format!("stack {index}: {gone}"))
            }
            Actor::Pool(index) => Ok(scene.pools.borrow()[index]
                .as_ref()
                .is_some_and(SplicePool::run_one)),
            Actor::Ears => Ok(scene.ears.listen()),
            Actor::Begin(conn) => self.begin(conn),
            Actor::Accept(which) => self.accept(which),
            Actor::Peer(index) => match &mut self.peers[index] {
                Some(peer) => peer.step(scene, &mut self.rng),
                None => Ok(false),
            },
            Actor::Relay(index) => self.relays[index].step(scene, &mut self.rng),
        }
    }

    fn begin(&mut self, conn: usize) -> Result<bool, Failure> {
        let plan = &self.scene.plan.conns[conn];
        if self.begun[conn] || self.scene.clock.passed() < plan.begins {
            return Ok(false);
        }
        self.begun[conn] = true;
        let socket = match TcpSocket::new(&self.stacks[0]).start(address(1, plan.v6)) {
            Ok(socket) => socket,
            Err(error) => {
                check(self.scene.is_rude(), || {
                    format!("a client could not begin: {error}")
                })?;
                return Ok(true);
            }
        };
        self.scene.note(conn, "begins", 8);
        self.clients.insert(socket.local_addr(), conn);
        self.peers[2 * conn] = Some(Peer::new(&self.scene, 2 * conn, socket));
        Ok(true)
    }

    fn accept(&mut self, which: usize) -> Result<bool, Failure> {
        let Some(listener) = &self.listeners[which] else {
            return Ok(false);
        };
        let Ok((socket, peer)) = listener.accept() else {
            return Ok(false);
        };
        let known = if which == 0 {
            &self.clients
        } else {
            &self.relayed
        };
        let Some(&conn) = known.get(&peer) else {
            return fail(format!("{peer} belongs to no connection"));
        };
        self.scene.note(conn, "accepted", which as u64);
        if which == 1 {
            self.peers[2 * conn + 1] = Some(Peer::new(&self.scene, 2 * conn + 1, socket));
            return Ok(true);
        }
        let v6 = self.scene.plan.conns[conn].v6;
        match TcpSocket::new(&self.stacks[2]).start(address(3, v6)) {
            Ok(outside) => {
                self.relayed.insert(outside.local_addr(), conn);
                let relay = Relay::new(&self.scene, conn, &socket, &outside, &mut self.rng);
                self.relays.push(relay);
            }
            Err(error) => {
                check(self.scene.is_rude(), || {
                    format!("a relay could not begin: {error}")
                })?;
            }
        }
        Ok(true)
    }

    /// Lets time go on: a little, or to the next event. `false`: nothing will happen any more.
    fn advance(&mut self, jumps: bool) -> Result<bool, Failure> {
        self.check()?;
        self.networks.iter().try_for_each(Network::verdict)?;
        if jumps {
            self.relays
                .iter()
                .try_for_each(|relay| relay.check_timers(&self.scene))?;
        }
        let now = self.scene.clock.now();
        let next = if jumps {
            match self.next() {
                Some(next) if next > now => next,
                // An expired deadline that no actor handles must not stay.
                Some(_) => now + Duration::from_nanos(1000),
                None => return Ok(false),
            }
        } else {
            now + Duration::from_micros(self.rng.u64(1..5000))
        };
        if next - self.scene.clock.start() > LONGEST {
            return fail(format!(
                "still not over after {LONGEST:?}: {}",
                self.state()
            ));
        }
        self.scene.clock.jump(next);
        self.networks.iter().for_each(Network::run);
        self.misfortune();
        Ok(true)
    }

    fn next(&self) -> Option<Instant> {
        let scene = &self.scene;
        let start = scene.clock.start();
        let begins = (0..self.begun.len()).filter(|&conn| !self.begun[conn]);
        let begins = begins.map(|conn| start + scene.plan.conns[conn].begins);
        let pools = scene.pools.borrow();
        let timers = pools.iter().flatten().filter_map(SplicePool::poll_at);
        let drivers = self.drivers.iter().flatten().filter_map(Driver::poll_at);
        let networks = self.networks.iter().filter_map(Network::next);
        let pauses = self.peers.iter().flatten().filter(|peer| !peer.is_over());
        let pauses = pauses.filter_map(|peer| peer.pause);
        let plan = &scene.plan;
        let goes = plan
            .link_goes
            .map(|(at, _)| at)
            .into_iter()
            .chain(plan.pool_goes);
        let goes = goes
            .map(|at| start + at)
            .filter(|&at| at > scene.clock.now());
        begins
            .chain(timers)
            .chain(drivers)
            .chain(networks)
            .chain(pauses)
            .chain(goes)
            .min()
    }

    /// Links and pools that go.
    fn misfortune(&mut self) {
        let since = self.scene.clock.passed();
        if let Some((at, stack)) = self.scene.plan.link_goes
            && since >= at
            && self.drivers[stack].take().is_some()
        {
            self.scene.note(stack, "link gone", 9);
        }
        if self.scene.plan.pool_goes.is_some_and(|at| since >= at) {
            let pool = self.scene.pools.borrow_mut()[0].take();
            if pool.is_some() {
                self.scene.note(0, "pool dropped", 10);
            }
        }
    }

    /// Checks the invariants.
    fn check(&mut self) -> Result<(), Failure> {
        for relay in &mut self.relays {
            relay.sample(&self.scene)?;
        }
        for relay in &self.relays {
            for (side, moved) in relay.moved() {
                let count =
                    |index: usize, of: fn(&Peer) -> u64| self.peers[index].as_ref().map_or(0, of);
                let sent = count(2 * relay.conn + side, |peer| peer.sent);
                let received = count(2 * relay.conn + 1 - side, |peer| peer.received);
                let (first, last) = moved;
                check(sent >= first && first >= last && last >= received, || {
                    format!(
                        "way {side} of {}: sent {sent}, moved {first} and {last}, received {received}",
                        relay.conn
                    )
                })?;
            }
        }
        self.peers
            .iter()
            .flatten()
            .try_for_each(|peer| peer.check(&self.scene))
    }

    fn state(&self) -> String {
        let peers: Vec<_> = self
            .peers
            .iter()
            .flatten()
            .filter(|peer| !peer.is_over())
            .collect();
        format!(
            "{peers:#?} {:#?} {:#?}",
            self.relays,
            self.stacks.iter().map(Stack::stats).collect::<Vec<_>>()
        )
    }

    /// Nothing happens any more.
    fn finish(mut self) -> Result<Outcome, Failure> {
        self.networks.iter().try_for_each(Network::finish)?;
        let rude = self.scene.is_rude();
        let peers = self.peers.iter().flatten();
        let waits = peers.clone().any(|peer| !peer.is_over())
            || self.relays.iter().any(|relay| !relay.over);
        if waits || (!rude && self.peers.iter().any(Option::is_none)) {
            return fail(format!("a peer or a relay never ends: {}", self.state()));
        }
        if !rude {
            peers.clone().try_for_each(Peer::check_end)?;
        }
        let bytes = peers.map(|peer| peer.received).sum();
        for (index, stack) in self.stacks.iter().enumerate() {
            let stats = stack.stats();
            let clean = stats.connections == 0 && stats.broken == 0;
            let clean = clean && (stats.time_wait == 0 || self.drivers[index].is_none());
            check(clean, || format!("stack {index} leaves {stats:?}"))?;
        }
        for (index, pool) in self.scene.pools.borrow().iter().enumerate() {
            if let Some(pool) = pool {
                self.scene.check_pool(index, pool)?;
            }
        }
        let outcome = Outcome {
            hash: self.scene.trace.hash(),
            steps: self.steps,
            time: self.scene.clock.passed(),
            delivered_at: self.scene.delivered_at.get(),
            bytes,
            splices: self
                .scene
                .tallies
                .iter()
                .map(|tally| tally.started.get())
                .sum(),
            lost: self.networks.iter().map(Network::lost).sum(),
        };
        self.networks.iter().for_each(Network::clear);
        self.listeners = [None, None];
        drop(self);
        let frames = buf::frames_in_use();
        if frames > 0 {
            return fail(format!("{frames} frames are still in use"));
        }
        Ok(outcome)
    }
}
