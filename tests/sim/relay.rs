//! The proxy: two connections, and splices between them that end for all kinds of reasons and are set
//! up again; between two splices it may copy by hand.

use crate::ear::Ear;
use crate::plan::{ConnPlan, log_uniform};
use crate::world::{Failure, Scene, check};
use fastrand::Rng;
use sosplice::buf::Chain;
use sosplice::clock::Clock;
use sosplice::splice::{Cause, Dispatch, End, Options, Role, Splice, SpliceError};
use sosplice::{Socket, TcpStream, local};
use std::io;
use std::net::Shutdown;
use std::time::{Duration, Instant};

/// A present splice, and its expected state.
#[derive(Debug)]
struct Active {
    splice: Splice,
    options: Options,
    begun: Instant,
    /// Bytes that it was last seen to have moved, and since when.
    bytes: u64,
    moved_at: Instant,
    unspliced: bool,
    pool: usize,
}

/// One direction of a relay.
#[derive(Debug)]
struct Way {
    name: String,
    source: Socket,
    sink: Socket,
    ears: [Ear; 2],
    active: Option<Active>,
    /// Bytes given to the sink.
    moved: u64,
    /// Taken from the source, not yet given to the sink.
    carried: Chain,
    /// Copies by hand until so many more bytes are moved.
    by_hand: u64,
    /// Number of further splices with a time limit, so that the run ends.
    timed: u32,
    done: bool,
}

#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) conn: usize,
    /// First those from the client, then those from the server.
    ways: Vec<Way>,
    breaks: Option<u64>,
    pub(crate) over: bool,
}

impl Relay {
    pub(crate) fn new(
        scene: &Scene,
        conn: usize,
        inside: &TcpStream,
        outside: &TcpStream,
        rng: &mut Rng,
    ) -> Relay {
        let inside: &Socket = inside;
        let outside: &Socket = outside;
        let plan = &scene.plan.conns[conn];
        let mut hops = vec![
            (inside.clone(), outside.clone()),
            (outside.clone(), inside.clone()),
        ];
        if plan.detour {
            let (a, b) = local::pair_with_hiwat(rng.usize(1..50_000), rng.usize(1..50_000));
            hops = vec![
                (inside.clone(), a.clone()),
                (b.clone(), outside.clone()),
                (outside.clone(), b),
                (a, inside.clone()),
            ];
        }
        let mut sockets: Vec<(Socket, Ear)> = Vec::new();
        for (source, _) in &hops {
            source.set_nonblocking(true);
            sockets.push((source.clone(), scene.listen(source)));
        }
        let ear = |socket: &Socket| {
            let known = sockets
                .iter()
                .find(|(other, _)| other.end().id() == socket.end().id());
            known.map(|(_, ear)| ear.clone()).unwrap()
        };
        let ways = hops.iter().enumerate().map(|(index, (source, sink))| Way {
            name: format!("{conn}.{index}"),
            source: source.clone(),
            sink: sink.clone(),
            ears: [ear(source), ear(sink)],
            active: None,
            moved: 0,
            carried: Chain::default(),
            by_hand: 0,
            timed: 6,
            done: false,
        });
        Relay {
            conn,
            ways: ways.collect(),
            breaks: plan.relay_breaks,
            over: false,
        }
    }

    pub(crate) fn step(&mut self, scene: &Scene, rng: &mut Rng) -> Result<bool, Failure> {
        if self.over {
            return Ok(false);
        }
        let moved: u64 = self.ways.iter().map(Way::moved).sum();
        if self.breaks.is_some_and(|after| moved >= after) {
            scene.note(self.conn, "the relay breaks off", 3);
            return self.give_up(scene).map(|()| true);
        }
        let first = rng.usize(0..self.ways.len());
        for turn in 0..self.ways.len() {
            let index = (first + turn) % self.ways.len();
            let plan = &scene.plan.conns[self.conn];
            match self.ways[index].step(scene, plan, rng)? {
                Step::Nothing => {}
                Step::Something => {
                    if self.ways.iter().all(|way| way.done) {
                        scene.note(self.conn, "the relay closes", 4);
                        self.over = true;
                        self.check_totals(scene)?;
                        self.close();
                    }
                    return Ok(true);
                }
                Step::Failed(why) => {
                    scene.note(self.conn, &why, 5);
                    check(scene.is_rude(), || {
                        format!("the relay of {} failed: {why}", self.conn)
                    })?;
                    return self.give_up(scene).map(|()| true);
                }
            }
        }
        Ok(false)
    }

    /// Every way has given its sink all that was sent.
    fn check_totals(&self, scene: &Scene) -> Result<(), Failure> {
        let totals = scene.plan.conns[self.conn].totals;
        let half = self.ways.len() / 2;
        for (index, way) in self.ways.iter().enumerate() {
            let total = totals[index / half];
            check(way.moved == total || scene.is_rude(), || {
                format!("way {}: {} of {total} bytes", way.name, way.moved)
            })?;
        }
        Ok(())
    }

    /// Closes all sockets, splices or not.
    fn give_up(&mut self, scene: &Scene) -> Result<(), Failure> {
        self.over = true;
        let active: Vec<_> = self
            .ways
            .iter_mut()
            .filter_map(|way| Some((way.name.clone(), way.active.take()?)))
            .collect();
        self.close();
        for (name, active) in active {
            let end = active.splice.end();
            check(end.is_some(), || {
                format!("way {name}: closed, but its splice goes on")
            })?;
            scene.ended(active.pool, end.as_ref().unwrap());
        }
        Ok(())
    }

    fn close(&mut self) {
        self.ways.clear();
    }

    /// For each direction (0 from the client): bytes that have left the first source, and bytes that
    /// the last sink was given.
    pub(crate) fn moved(&self) -> Vec<(usize, (u64, u64))> {
        let half = self.ways.len() / 2;
        let sides = self.ways.chunks(half.max(1)).enumerate();
        sides
            .map(|(side, ways)| (side, (ways[0].moved(), ways[half - 1].moved())))
            .collect()
    }

    /// When all actors are idle: no splice may be left after its timeout.
    pub(crate) fn check_timers(&self, scene: &Scene) -> Result<(), Failure> {
        let now = scene.clock.now();
        for way in &self.ways {
            let Some(active) = &way.active else { continue };
            let idle = active.options.idle.map(|idle| active.moved_at + idle);
            let life = active.options.lifetime.map(|life| active.begun + life);
            let over = idle.into_iter().chain(life).any(|at| at < now);
            check(!over || active.splice.is_ended(), || {
                format!("way {}: its time is over: {active:?}", way.name)
            })?;
        }
        Ok(())
    }

    /// Before time advances: samples all splices.
    pub(crate) fn sample(&mut self, scene: &Scene) -> Result<(), Failure> {
        let now = scene.clock.now();
        for way in &mut self.ways {
            way.sample(now)?;
            scene.check_buffers(&way.source)?;
        }
        Ok(())
    }
}

enum Step {
    Nothing,
    Something,
    Failed(String),
}

impl Way {
    fn moved(&self) -> u64 {
        self.moved
            + self
                .active
                .as_ref()
                .map_or(0, |active| active.splice.bytes())
    }

    fn step(&mut self, scene: &Scene, plan: &ConnPlan, rng: &mut Rng) -> Result<Step, Failure> {
        if self.done {
            return Ok(Step::Nothing);
        }
        if let Some(active) = &mut self.active {
            if let Some(end) = active.splice.end() {
                return self.ended(scene, end, plan, rng);
            }
            if rng.u32(0..1000) < plan.unsplices {
                active.unspliced = true;
                let end = active.splice.unsplice();
                scene.note(0, "unsplices", 6);
                check(end.is_ok(), || {
                    format!(
                        "way {}: a splice that had not ended could not be ended",
                        self.name
                    )
                })?;
                return Ok(Step::Something);
            }
            return Ok(Step::Nothing);
        }
        if self.by_hand > 0 || !self.carried.is_empty() {
            return self.copy(scene, rng);
        }
        self.splice(scene, rng)
    }

    fn splice(&mut self, scene: &Scene, rng: &mut Rng) -> Result<Step, Failure> {
        let mut options = Options::default()
            .limit((rng.u32(0..3) == 0).then(|| log_uniform(rng, 100_000).max(1)))
            .forward_eof(rng.bool())
            .forward_reset(rng.bool())
            .dispatch(match rng.u32(0..3) {
                0 => None,
                1 => Some(Dispatch::Worker),
                _ => Some(Dispatch::Direct),
            });
        if rng.u32(0..8) == 0 {
            options.lowat = rng.usize(0..5000);
        }
        if self.timed > 0 && rng.u32(0..3) == 0 {
            self.timed -= 1;
            options.idle = rng
                .bool()
                .then(|| Duration::from_micros(log_uniform(rng, 2_000_000).max(1)));
            options.lifetime = rng
                .bool()
                .then(|| Duration::from_micros(log_uniform(rng, 5_000_000).max(1)));
        }
        let Some(pool) = scene.pool(rng) else {
            self.by_hand = u64::MAX;
            return Ok(Step::Something);
        };
        options.pool = scene.pools.borrow()[pool].clone();
        let begun = scene.clock.now();
        let splice = match self.source.splice_to(&self.sink, options.clone()) {
            Ok(splice) => splice,
            // Both directions are over, and its last bytes are still here: no kernel splices that.
            Err(SpliceError::NotConnected(Role::Source))
                if self.source.end().with_rcv(|buf| buf.is_closed()) =>
            {
                self.by_hand = u64::MAX;
                return Ok(Step::Something);
            }
            Err(error) => return Ok(Step::Failed(format!("way {}: {error}", self.name))),
        };
        options.pool = None;
        scene.note(
            0,
            &format!(
                "way {}: splices {:?} {:?} {:?}",
                self.name, options.limit, options.idle, options.lifetime
            ),
            7,
        );
        self.active = Some(Active {
            splice,
            options,
            begun,
            bytes: 0,
            moved_at: begun,
            unspliced: false,
            pool,
        });
        scene.started(pool);
        Ok(Step::Something)
    }

    /// Before time advances: records the latest progress.
    fn sample(&mut self, now: Instant) -> Result<(), Failure> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let bytes = active.splice.bytes();
        check(bytes >= active.bytes, || {
            format!("way {}: its counter went back", self.name)
        })?;
        if bytes > active.bytes {
            (active.bytes, active.moved_at) = (bytes, now);
        }
        let limit = active.options.limit.unwrap_or(u64::MAX);
        check(bytes <= limit, || {
            format!("way {}: {bytes} bytes, its limit is {limit}", self.name)
        })?;
        check(
            active.splice.is_ended() || self.source.spliced() == bytes,
            || {
                format!(
                    "way {}: the source counts {}, the splice {bytes}",
                    self.name,
                    self.source.spliced()
                )
            },
        )
    }

    fn ended(
        &mut self,
        scene: &Scene,
        end: End,
        plan: &ConnPlan,
        rng: &mut Rng,
    ) -> Result<Step, Failure> {
        let Some(active) = self.active.take() else {
            return Ok(Step::Nothing);
        };
        scene.note(
            0,
            &format!("way {}: {:?} after {}", self.name, end.cause, end.bytes),
            end.bytes,
        );
        scene.ended(active.pool, &end);
        self.check_end(scene, &active, &end)?;
        self.moved += end.bytes;
        if rng.u32(0..100) < plan.by_hand {
            self.by_hand = log_uniform(rng, 20_000);
        }
        match end.cause {
            Cause::Eof => {
                let mut one = [0];
                let result = self.source.recv(&mut one);
                // A rude application may have sent a reset after it.
                let right = matches!(result, Ok(0)) || scene.is_rude();
                check(right, || {
                    format!("way {}: after the end of the stream: {result:?}", self.name)
                })?;
                let closed = self.sink.end().with_snd(|buf| buf.is_closed());
                check(closed >= active.options.forward_eof, || {
                    format!("way {}: the end was not forwarded", self.name)
                })?;
                if !closed {
                    self.sink.shutdown(Shutdown::Write).ok();
                }
                self.done = true;
                Ok(Step::Something)
            }
            Cause::Unspliced | Cause::Limit | Cause::Idle | Cause::Lifetime | Cause::PoolClosed => {
                Ok(Step::Something)
            }
            other => Ok(Step::Failed(format!("way {}: {other:?}", self.name))),
        }
    }

    /// A splice ends for a cause that has happened.
    fn check_end(&self, scene: &Scene, active: &Active, end: &End) -> Result<(), Failure> {
        let (now, options) = (scene.clock.now(), &active.options);
        let moved_at = if end.bytes > active.bytes {
            now
        } else {
            active.moved_at
        };
        let happened = match end.cause {
            Cause::Unspliced => active.unspliced,
            Cause::Limit => options.limit == Some(end.bytes),
            Cause::Idle => options.idle.is_some_and(|idle| now >= moved_at + idle),
            Cause::Lifetime => options
                .lifetime
                .is_some_and(|life| now >= active.begun + life),
            Cause::Eof => self.source.end().with_rcv(|buf| buf.is_finished()),
            Cause::PoolClosed => scene.pools.borrow()[active.pool].is_none(),
            Cause::SourceError(_) | Cause::SinkError(_) | Cause::SinkShutdown => scene.is_rude(),
            _ => false,
        };
        check(happened, || {
            format!("way {}: ended with {end:?}, {active:?}", self.name)
        })?;
        check(end.bytes <= options.limit.unwrap_or(u64::MAX), || {
            format!("way {}: {end:?}, {options:?}", self.name)
        })?;
        check(self.source.spliced() == end.bytes, || {
            format!(
                "way {}: the source counts {}: {end:?}",
                self.name,
                self.source.spliced()
            )
        })
    }

    /// As any program would.
    fn copy(&mut self, scene: &Scene, rng: &mut Rng) -> Result<Step, Failure> {
        let failed = |what: &str, error: io::Error| Ok(Step::Failed(format!("{what}: {error}")));
        let [source, sink] = &self.ears;
        if !self.carried.is_empty() {
            if !sink.writable(scene) {
                return Ok(Step::Nothing);
            }
            return match self.sink.send_chain(&mut self.carried) {
                Ok(count) => {
                    self.moved += count as u64;
                    self.by_hand = self.by_hand.saturating_sub(count as u64);
                    scene.note(0, "sent by hand", count as u64);
                    Ok(Step::Something)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    sink.deaf_to_space();
                    Ok(Step::Nothing)
                }
                Err(error) => failed("send", error),
            };
        }
        if !source.readable(scene) {
            return Ok(Step::Nothing);
        }
        match self.source.recv_chain(rng.usize(1..20_000)) {
            Ok(chain) if chain.is_empty() => {
                scene.note(0, "end by hand", 0);
                self.sink.shutdown(Shutdown::Write).ok();
                self.done = true;
                Ok(Step::Something)
            }
            Ok(chain) => {
                self.carried = chain;
                Ok(Step::Something)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                source.deaf_to_bytes();
                Ok(Step::Nothing)
            }
            Err(error) => failed("receive", error),
        }
    }
}
