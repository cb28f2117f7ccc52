//! A proxy in virtual time, over links one of which is controlled by the test:
//!
//! ```text
//! client --link-- front [ two splices ] back --link-- server
//! ```
//!
//! The client sends a stream and ends it; the server answers with another one. Every byte that
//! arrives is compared. All of it runs in the thread of the test.

use crate::clock::SetClock;
use sosplice::clock::Clock;
use sosplice::link::memory::{self, MemoryLink};
use sosplice::link::{Capabilities, Frame, Interest, Link, Packet, ReceiveError, TransmitError};
use sosplice::socket::poller::{Events, Mode, Poller, Token};
use sosplice::splice::{Cause, Dispatch, Options, Splice, SplicePool};
use sosplice::stack::{Driver, Stats};
use sosplice::{Stack, TcpListener, TcpSocket, TcpStream};
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Bytes of each direction: some windows.
pub(crate) const BYTES: usize = 30_000;
/// Longer than anything here lasts; below the user timeout of 5 min.
const LIMIT: Duration = Duration::from_secs(280);

/// The fault of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `receive` fails.
    Receive,
    /// `transmit` refuses the packet.
    Refused,
    /// `transmit` reports that the link is gone.
    Gone,
    /// `transmit` has no room, for so long.
    Full(Duration),
    /// `receive` gives one frame at a time.
    Single,
}

/// When: at a call of that kind, counted from 0.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) fault: Fault,
    pub(crate) at: usize,
    pub(crate) for_good: bool,
}

/// A link that follows a plan.
#[derive(Debug)]
pub(crate) struct Faulty {
    link: MemoryLink,
    plan: Option<Plan>,
    clock: Arc<SetClock>,
    full_until: Mutex<Option<Instant>>,
    pub(crate) received: AtomicUsize,
    pub(crate) transmitted: AtomicUsize,
}

impl Faulty {
    /// The fault of this call, if it has one.
    fn fault(&self, calls: &AtomicUsize, kinds: &[Fault]) -> Option<Fault> {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        let plan = self.plan?;
        let now = call == plan.at || (plan.for_good && call > plan.at);
        let same =
            |kind: &Fault| std::mem::discriminant(kind) == std::mem::discriminant(&plan.fault);
        (now && kinds.iter().any(same)).then_some(plan.fault)
    }
}

fn pulled() -> io::Error {
    io::Error::other("the card was pulled")
}

impl Link for Faulty {
    fn capabilities(&self) -> Capabilities {
        self.link.capabilities()
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        match self.fault(&self.received, &[Fault::Receive, Fault::Single]) {
            Some(Fault::Receive) => Err(ReceiveError::Gone(pulled())),
            Some(_) => self.link.receive(frames, max.min(1)),
            None => self.link.receive(frames, max),
        }
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        let kinds = [Fault::Refused, Fault::Gone, Fault::Full(Duration::ZERO)];
        let fault = self.fault(&self.transmitted, &kinds);
        let mut full_until = self.full_until.lock().unwrap();
        match fault {
            Some(Fault::Refused) => return Err(TransmitError::Refused(pulled())),
            Some(Fault::Gone) => return Err(TransmitError::Gone(pulled())),
            Some(Fault::Full(time)) => *full_until = Some(self.clock.now() + time),
            _ => {}
        }
        if full_until.is_some_and(|until| self.clock.now() < until) {
            return Err(TransmitError::Full);
        }
        self.link.transmit(packet)
    }

    fn wait(&self, _interest: Interest, _deadline: Option<Instant>) -> io::Result<()> {
        unreachable!("drivers are run by hand")
    }

    fn wake(&self) {
        self.link.wake();
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a pattern")]
fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|at| (at * 31 % 251) as u8).collect()
}

/// One end of a connection and its progress.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) stream: TcpStream,
    sent: usize,
    pub(crate) got: usize,
    pub(crate) eof: bool,
    pub(crate) error: Option<ErrorKind>,
}

impl User {
    fn new(stream: TcpStream) -> User {
        stream.set_nonblocking(true);
        User {
            stream,
            sent: 0,
            got: 0,
            eof: false,
            error: None,
        }
    }

    fn note(&mut self, error: &io::Error) {
        let early = [ErrorKind::WouldBlock, ErrorKind::NotConnected];
        if !early.contains(&error.kind()) {
            self.error.get_or_insert(error.kind());
        }
    }

    /// Sends as much as there is room for, then the end.
    fn send(&mut self) -> bool {
        let before = self.sent;
        while self.sent < BYTES && self.error.is_none() {
            match self
                .stream
                .send(&pattern(self.sent, (BYTES - self.sent).min(4000)))
            {
                Ok(count) => self.sent += count,
                Err(error) => {
                    self.note(&error);
                    break;
                }
            }
        }
        if self.sent == BYTES && before < BYTES {
            self.stream.shutdown(Shutdown::Write).ok();
        }
        self.sent > before
    }

    /// Receives bytes, and checks that they are the next ones.
    fn receive(&mut self) -> bool {
        let before = (self.got, self.eof, self.error);
        while !self.eof && self.error.is_none() {
            let mut bytes = [0; 4000];
            match self.stream.recv(&mut bytes) {
                Ok(0) => self.eof = true,
                Ok(count) => {
                    let expected = pattern(self.got, count);
                    assert!(
                        bytes[..count] == expected[..],
                        "other bytes at {}",
                        self.got
                    );
                    self.got += count;
                }
                Err(error) => {
                    self.note(&error);
                    break;
                }
            }
        }
        assert!(self.got <= BYTES, "more than was sent");
        before != (self.got, self.eof, self.error)
    }
}

/// A stack and its driver.
pub(crate) struct Side {
    pub(crate) stack: Stack,
    driver: Driver,
    /// The driver's error when its link was gone.
    pub(crate) gone: Option<io::Error>,
}

impl Side {
    fn new(link: impl Link + 'static, address: &str, clock: &Arc<SetClock>) -> Side {
        let builder = Stack::builder(link)
            .address(address.parse().unwrap())
            .clock(clock.clone())
            .keep_alive(Duration::from_secs(30), Duration::from_secs(5), 3);
        let (stack, driver) = builder.build_with_driver().unwrap();
        Side {
            stack,
            driver,
            gone: None,
        }
    }

    fn run(&mut self) -> bool {
        match (self.driver.poll(), &self.gone) {
            (Ok(worked), None) => worked,
            (Ok(_), Some(gone)) => panic!("a driver whose link is gone ({gone}) continues"),
            (Err(error), gone) => {
                let first = gone.is_none();
                self.gone.get_or_insert(error);
                first
            }
        }
    }
}

/// Both connections of the proxy, and its splices.
pub(crate) struct Pair {
    pub(crate) inside: TcpStream,
    pub(crate) outside: TcpStream,
    splices: [Splice; 2],
    pub(crate) ends: [Option<Cause>; 2],
}

/// See the module.
pub(crate) struct World {
    clock: Arc<SetClock>,
    pub(crate) sides: [Side; 4],
    pool: SplicePool,
    dispatch: Dispatch,
    listeners: [TcpListener; 2],
    pub(crate) client: User,
    pub(crate) pair: Option<Pair>,
    pub(crate) server: Option<User>,
    pub(crate) faulty: Arc<Faulty>,
    poller: Poller,
    told: bool,
}

const CLIENT: usize = 0;
pub(crate) const FRONT: usize = 1;
pub(crate) const BACK: usize = 2;
const SERVER: usize = 3;

fn one_packet_each() -> memory::Config {
    let mut config = memory::Config::default();
    config.capabilities.segment_v4 = None;
    config
}

impl World {
    /// `which`: the stack of the proxy whose link follows the plan.
    pub(crate) fn new(which: usize, plan: Option<Plan>, dispatch: Dispatch) -> World {
        let clock = SetClock::new();
        let (a, b) = memory::pair(one_packet_each());
        let (c, d) = memory::pair(one_packet_each());
        let faulty = |link, plan| {
            Arc::new(Faulty {
                link,
                plan,
                clock: clock.clone(),
                full_until: Mutex::default(),
                received: AtomicUsize::new(0),
                transmitted: AtomicUsize::new(0),
            })
        };
        let on = |side| plan.filter(|_| which == side);
        let (b, c) = (faulty(b, on(FRONT)), faulty(c, on(BACK)));
        let sides = [
            Side::new(a, "10.0.1.1/24", &clock),
            Side::new(b.clone(), "10.0.1.2/24", &clock),
            Side::new(c.clone(), "10.0.2.2/24", &clock),
            Side::new(d, "10.0.2.1/24", &clock),
        ];
        let listen = |side: usize, at| {
            let listener = TcpListener::bind(&sides[side].stack, at).unwrap();
            listener.set_nonblocking(true);
            listener
        };
        let listeners = [listen(FRONT, "10.0.1.2:80"), listen(SERVER, "10.0.2.1:80")];
        let to = "10.0.1.2:80".parse().unwrap();
        let client = User::new(TcpSocket::new(&sides[CLIENT].stack).start(to).unwrap());
        World {
            pool: SplicePool::builder()
                .workers(1)
                .clock(clock.clone())
                .manual()
                .build(),
            clock,
            sides,
            dispatch,
            listeners,
            client,
            pair: None,
            server: None,
            faulty: if which == FRONT { b } else { c },
            poller: Poller::new(),
            told: false,
        }
    }

    pub(crate) fn stats(&self, side: usize) -> Stats {
        self.sides[side].stack.stats()
    }

    /// The proxy: accepts, dials, splices, and carries ends on.
    fn proxy(&mut self) -> bool {
        if let Some(pair) = &mut self.pair {
            return pair.look();
        }
        let Ok((inside, _)) = self.listeners[0].accept() else {
            return false;
        };
        let to = "10.0.2.1:80".parse().unwrap();
        let Ok(outside) = TcpSocket::new(&self.sides[BACK].stack).start(to) else {
            inside.abort();
            return true;
        };
        for (token, socket) in [&inside, &outside].into_iter().enumerate() {
            let added = self
                .poller
                .add(socket, Token(token), Interest::READABLE, Mode::Edge);
            added.unwrap();
        }
        let options = Options::default()
            .pool(self.pool.clone())
            .dispatch(self.dispatch);
        let up = inside.splice_to(&outside, options.clone());
        let down = outside.splice_to(&inside, options);
        let (Ok(up), Ok(down)) = (up, down) else {
            // One of them has failed already.
            inside.abort();
            outside.abort();
            return true;
        };
        self.pair = Some(Pair {
            inside,
            outside,
            splices: [up, down],
            ends: [None; 2],
        });
        true
    }

    fn users(&mut self) -> bool {
        let mut worked = self.client.send() | self.client.receive();
        if self.server.is_none()
            && let Ok((stream, _)) = self.listeners[1].accept()
        {
            self.server = Some(User::new(stream));
            worked = true;
        }
        if let Some(server) = &mut self.server {
            worked |= server.receive();
            worked |= server.eof && server.send();
        }
        worked
    }

    /// Everything that can be done now.
    fn turn(&mut self) {
        for _ in 0..10_000 {
            let mut worked = false;
            for side in &mut self.sides {
                worked |= side.run();
            }
            worked |= self.pool.run_one();
            worked |= self.proxy();
            worked |= self.users();
            let mut events = Events::default();
            self.poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
            self.told |= events
                .iter()
                .any(|event| event.source_end().is_some() || event.sink_end().is_some());
            if !worked {
                return;
            }
        }
        panic!("it does not become idle");
    }

    /// Lets time pass until `done`. `false`: that did not come.
    pub(crate) fn run(&mut self, done: impl Fn(&World) -> bool) -> bool {
        let until = self.clock.now() + LIMIT;
        loop {
            self.turn();
            let now = self.clock.now();
            if done(self) || now >= until {
                return done(self);
            }
            let living = self.sides.iter().filter(|side| side.gone.is_none());
            let timers = living.filter_map(|side| side.driver.poll_at());
            let next = timers.chain(self.pool.poll_at()).min();
            let step = now + Duration::from_micros(1);
            // A link that is full has room after some time, without a deadline.
            let look = now + Duration::from_secs(1);
            self.clock.jump(next.unwrap_or(look).min(look).max(step));
        }
    }

    /// Both streams have arrived, to the last byte and the end.
    pub(crate) fn is_complete(&self) -> bool {
        let all = |user: &User| user.got == BYTES && user.eof;
        all(&self.client) && self.server.as_ref().is_some_and(all)
    }

    /// Whether a poller reported the end of a splice.
    pub(crate) fn is_told(&self) -> bool {
        self.told
    }

    pub(crate) fn listener(&self) -> &TcpListener {
        &self.listeners[0]
    }

    /// Drops all handles; nothing is left over after some time.
    #[track_caller]
    pub(crate) fn nothing_is_left(mut self) {
        let given = (self.pair.take(), self.server.take());
        drop(given);
        self.client.stream.abort();
        // Connections without an answer end by a timer.
        for _ in 0..3 {
            self.run(|world| (0..4).all(|side| world.stats(side).connections == 0));
        }
        for side in 0..4 {
            let stats = self.stats(side);
            assert_eq!((stats.connections, stats.broken), (0, 0), "{side}");
        }
        assert_eq!(self.pool.stats().panics, 0);
    }
}

impl Pair {
    /// Carries an end of stream on, and a failure to both sides.
    fn look(&mut self) -> bool {
        let sinks = [&self.outside, &self.inside];
        let mut worked = false;
        for direction in 0..2 {
            if self.ends[direction].is_some() {
                continue;
            }
            let Some(end) = self.splices[direction].end() else {
                continue;
            };
            worked = true;
            self.ends[direction] = Some(end.cause);
            if end.cause == Cause::Eof {
                sinks[direction].shutdown(Shutdown::Write).ok();
            } else {
                sinks.iter().for_each(|socket| socket.abort());
            }
        }
        worked
    }
}
