//! OpenBSD's harness: a client writes a pattern, a relay forwards it, a server reads to the end.
//!
//! ```text
//! client ──> source = relay = drain ──> server
//! ```
//!
//! Each run is made three times: the relay copies (the control), splices, and splices its only socket
//! to itself, so that the client is the server too. No call blocks: the three are small state machines
//! that take turns, in virtual and in real time. Neighbours: `relay`, the relay; the table of runs is
//! in the parent.

use super::args::{Args, LONG, MARK, assert_same};
use super::relay::{Mode, Relay};
use crate::conformance::{Outcome, World};
use crate::socket::Socket;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::sync::LazyLock;
use std::time::Duration;

/// The time step while one of them sleeps.
const SLICE: Duration = Duration::from_millis(10);

/// The result of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Acted,
    /// There is no work now.
    Waits,
    Done,
}

impl Turn {
    pub(super) fn acted(acted: bool) -> Turn {
        if acted { Turn::Acted } else { Turn::Waits }
    }
}

/// Takes turns until `act` reports that all is done.
#[track_caller]
pub(super) fn turns(world: &World<'_>, what: &str, mut turn: impl FnMut() -> Turn) {
    world.until(what, || {
        let mut last = Turn::Acted;
        while last == Turn::Acted {
            last = turn();
        }
        last == Turn::Done
    });
}

/// Runs in all modes.
pub(super) fn run(world: &World<'_>, args: Args) -> Outcome {
    if args.sleeps() && !world.is_virtual() {
        return Outcome::NotApplicable("virtual time");
    }
    for mode in [Mode::Copy, Mode::Splice, Mode::Echo] {
        if mode != Mode::Copy || !args.needs_splice() {
            Scene::new(world, args, mode).play();
        }
    }
    Outcome::Passed
}

/// Printable, with a period that no buffer size has.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    // Hundreds of runs use the same one.
    static LONGEST: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let hash = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0];
        let hashes = (0..LONG.len as u64).map(hash);
        hashes.map(|hash| b'!' + hash % 94).collect()
    });
    LONGEST[..len].to_vec()
}

/// Writes a pattern and then ends the stream: by exiting, or by a shutdown if it still reads.
#[derive(Debug)]
struct Client {
    socket: Option<Socket>,
    pattern: Vec<u8>,
    sent: usize,
    block: usize,
    pause: Duration,
    wakes_at: Duration,
    exits: bool,
}

impl Client {
    fn step(&mut self, now: Duration) -> bool {
        let Some(socket) = self.socket.as_ref().filter(|_| now >= self.wakes_at) else {
            return false;
        };
        if self.sent == self.pattern.len() {
            if !self.exits {
                socket.shutdown(Shutdown::Write).expect("still connected");
            }
            self.socket = None;
            return true;
        }
        let block = &self.pattern[self.sent..self.pattern.len().min(self.sent + self.block)];
        match socket.send(block) {
            Ok(count) => {
                self.sent += count;
                self.wakes_at = now + self.pause;
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "client: {error}");
                false
            }
        }
    }
}

/// Reads to the end.
#[derive(Debug)]
struct Server {
    socket: Socket,
    got: Vec<u8>,
    block: usize,
    wakes_at: Duration,
    at_end: bool,
}

impl Server {
    fn step(&mut self, now: Duration) -> bool {
        if self.at_end || now < self.wakes_at {
            return false;
        }
        match self.socket.recv_chain(self.block) {
            Ok(bytes) => {
                self.at_end = bytes.is_empty();
                self.got.extend(bytes.to_vec());
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "server: {error}");
                false
            }
        }
    }
}

/// All three, and the elapsed time.
struct Scene<'a> {
    world: &'a World<'a>,
    args: Args,
    client: Client,
    relay: Relay<'a>,
    server: Server,
    now: Duration,
}

impl<'a> Scene<'a> {
    fn new(world: &'a World<'a>, args: Args, mode: Mode) -> Scene<'a> {
        let connect = || {
            let [a, b] = world.connect(args.buffers);
            if args.reverse { [b, a] } else { [a, b] }
        };
        let [client, source] = connect();
        let [drain, server] = match mode {
            Mode::Echo => [source.clone(), client.clone()],
            Mode::Copy | Mode::Splice => connect(),
        };
        for socket in [&client, &server] {
            socket.set_nonblocking(true);
        }
        Scene {
            world,
            args,
            client: Client {
                socket: Some(client),
                pattern: pattern(args.len),
                sent: 0,
                block: args.block,
                pause: args.client_pause,
                wakes_at: args.client_sleep,
                exits: mode != Mode::Echo,
            },
            relay: Relay::new(world, args, mode, [source, drain]),
            server: Server {
                socket: server,
                got: Vec::new(),
                block: args.block,
                wakes_at: args.server_sleep,
                at_end: false,
            },
            now: Duration::ZERO,
        }
    }

    /// Each does the work that needs no waiting.
    fn act(&mut self) {
        while self.client.step(self.now) | self.relay.step(self.now) | self.server.step(self.now) {}
    }

    fn is_over(&self) -> bool {
        self.client.socket.is_none() && self.relay.is_over() && self.server.at_end
    }

    fn a_thread_sleeps(&self) -> bool {
        let until = [
            self.client.wakes_at,
            self.args.relay_sleep,
            self.server.wakes_at,
        ];
        until.into_iter().any(|at| at > self.now)
    }

    fn play(mut self) {
        let world = self.world;
        loop {
            world.until("the server has read everything", || {
                self.act();
                self.is_over() || self.a_thread_sleeps()
            });
            if self.is_over() {
                return self.check();
            }
            world.sleep(SLICE);
            self.now += SLICE;
        }
    }

    fn check(self) {
        let (forwarded, rest) = self.client.pattern.split_at(self.args.forwarded());
        let mut got = self.server.got.clone();
        if self.args.writes {
            got.retain(|byte| *byte != MARK);
        }
        assert_same("server", &got, forwarded);
        self.relay
            .check(forwarded.len(), rest, self.server.got.len() - got.len());
    }
}
