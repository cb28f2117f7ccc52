//! OpenBSD's harness: a client writes a pattern, a relay forwards it, a server reads to the end.
//!
//! ```text
//! client ──> source = relay = drain ──> server
//! ```
//!
//! Each run is made three times: the relay copies (the control), splices, and splices its only
//! socket to itself, so that the client is the server too. Nobody blocks: the three are small state
//! machines that take turns, so it works in virtual time as in real time. Neighbours: `relay`, the
//! relay; the table of runs is in the parent.

use super::relay::{Mode, Relay};
use crate::conformance::{Outcome, Setup, World};
use crate::socket::Socket;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::time::Duration;

/// What OpenBSD's sockets have.
const BUFFERS: usize = 16_384;
const SMALL: usize = 4096;

/// How long nobody looks while somebody sleeps.
const SLICE: Duration = Duration::from_millis(10);

/// What a run is like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Args {
    /// Bytes that the client sends.
    pub(super) len: usize,
    /// Bytes in one call of client and server, and of a relay that copies.
    pub(super) block: usize,
    /// Bytes that the relay forwards.
    pub(super) limit: Option<usize>,
    pub(super) idle: Option<Duration>,
    /// The relay splices again after a limit or a timeout, with the whole limit, up to the end.
    pub(super) again: bool,
    /// How often the timeout ends a splice.
    pub(super) timeouts: usize,
    /// The timeout comes after so many bytes.
    pub(super) timeout_after: Option<usize>,
    pub(super) client_sleep: Duration,
    /// The client sleeps after each block.
    pub(super) client_pause: Duration,
    pub(super) relay_sleep: Duration,
    pub(super) server_sleep: Duration,
    /// The relay's sockets do not block.
    pub(super) nonblock: bool,
    /// The connections are made the other way round.
    pub(super) reverse: bool,
    pub(super) buffers: Setup,
    /// The relay tries to read while it splices: it gets nothing (OpenBSD).
    pub(super) reads: bool,
    /// The relay writes while it splices: [`MARK`]s.
    pub(super) writes: bool,
}

pub(super) const DEFAULT: Args = Args {
    len: 251,
    block: 8192,
    limit: None,
    idle: None,
    again: false,
    timeouts: 0,
    timeout_after: None,
    client_sleep: Duration::ZERO,
    client_pause: Duration::ZERO,
    relay_sleep: Duration::ZERO,
    server_sleep: Duration::ZERO,
    nonblock: false,
    reverse: false,
    buffers: Setup {
        rcv_hiwat: BUFFERS,
        snd_hiwat: BUFFERS,
    },
    reads: false,
    writes: false,
};

/// More than all buffers together hold.
pub(super) const LONG: Args = Args {
    len: 131_072,
    ..DEFAULT
};

pub(super) const SMALL_BUFFERS: Setup = Setup {
    rcv_hiwat: SMALL,
    snd_hiwat: SMALL,
};

pub(super) const SMALL_RECEIVE: Setup = Setup {
    rcv_hiwat: SMALL,
    ..DEFAULT.buffers
};

pub(super) const SMALL_SEND: Setup = Setup {
    snd_hiwat: SMALL,
    ..DEFAULT.buffers
};

/// What the relay writes itself; not in the pattern.
pub(super) const MARK: u8 = b'\n';

/// Changes, to be chained.
impl Args {
    pub(super) fn len(self, len: usize) -> Args {
        Args { len, ..self }
    }

    pub(super) fn block(self, block: usize) -> Args {
        Args { block, ..self }
    }

    pub(super) fn limit(self, limit: usize) -> Args {
        let limit = Some(limit);
        Args { limit, ..self }
    }

    /// A timeout that does not come.
    pub(super) fn idle(self, seconds: u64) -> Args {
        let idle = Some(Duration::from_secs(seconds));
        Args { idle, ..self }
    }

    /// A timeout that comes after so many bytes.
    pub(super) fn times_out(self, seconds: u64, after: usize) -> Args {
        Args {
            timeouts: 1,
            timeout_after: Some(after),
            ..self.idle(seconds)
        }
    }

    /// The relay splices again whenever a limit or a timeout has come: this often the latter.
    pub(super) fn again(self, timeouts: usize) -> Args {
        Args {
            again: true,
            timeouts,
            ..self
        }
    }

    pub(super) fn client_sleeps(self, millis: u64) -> Args {
        let client_sleep = Duration::from_millis(millis);
        Args {
            client_sleep,
            ..self
        }
    }

    pub(super) fn client_pauses(self, millis: u64) -> Args {
        let client_pause = Duration::from_millis(millis);
        Args {
            client_pause,
            ..self
        }
    }

    pub(super) fn relay_sleeps(self, millis: u64) -> Args {
        let relay_sleep = Duration::from_millis(millis);
        Args {
            relay_sleep,
            ..self
        }
    }

    pub(super) fn server_sleeps(self, millis: u64) -> Args {
        let server_sleep = Duration::from_millis(millis);
        Args {
            server_sleep,
            ..self
        }
    }

    pub(super) fn nonblock(self) -> Args {
        let nonblock = true;
        Args { nonblock, ..self }
    }

    pub(super) fn reverse(self) -> Args {
        let reverse = true;
        Args { reverse, ..self }
    }

    pub(super) fn buffers(self, buffers: Setup) -> Args {
        Args { buffers, ..self }
    }

    pub(super) fn reads(self) -> Args {
        let reads = true;
        Args { reads, ..self }
    }

    pub(super) fn writes(self) -> Args {
        let writes = true;
        Args { writes, ..self }
    }
}

impl Args {
    /// Bytes that arrive at the server.
    fn forwarded(&self) -> usize {
        match (self.timeout_after, self.limit) {
            _ if self.again => self.len,
            (Some(count), _) => count,
            (None, limit) => limit.map_or(self.len, |limit| limit.min(self.len)),
        }
    }

    fn sleeps(&self) -> bool {
        let sleeps = [
            self.client_sleep,
            self.client_pause,
            self.relay_sleep,
            self.server_sleep,
        ];
        sleeps.iter().any(|sleep| !sleep.is_zero())
    }

    /// Only a relay that splices can do it.
    fn needs_splice(&self) -> bool {
        self.idle.is_some() || self.again || self.reads || self.writes
    }
}

/// What a turn of somebody who does not wait has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Acted,
    /// There is nothing to do now.
    Waits,
    Done,
}

impl Turn {
    pub(super) fn acted(acted: bool) -> Turn {
        if acted { Turn::Acted } else { Turn::Waits }
    }
}

/// Takes turns until one says that this is done.
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

/// Printable; no period that a buffer's size has.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    let hashes = (0..len as u64).map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]);
    hashes.map(|hash| b'!' + hash % 94).collect()
}

/// Says where they differ instead of printing both.
#[track_caller]
pub(super) fn assert_same(what: &str, got: &[u8], expected: &[u8]) {
    let same = got.iter().zip(expected).take_while(|(a, b)| a == b).count();
    assert!(
        got == expected,
        "{what}: {} bytes instead of {}, the first {same} are right",
        got.len(),
        expected.len()
    );
}

/// Writes a pattern and then says that it was all: by exiting, or by a shutdown if it still reads.
#[derive(Debug)]
struct Client {
    socket: Option<Socket>,
    text: Vec<u8>,
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
        if self.sent == self.text.len() {
            if !self.exits {
                socket.shutdown(Shutdown::Write).expect("still connected");
            }
            self.socket = None;
            return true;
        }
        let block = &self.text[self.sent..self.text.len().min(self.sent + self.block)];
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

/// All three, and how long they have been at it.
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
                text: pattern(args.len),
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

    /// Everybody does what can be done without waiting.
    fn act(&mut self) {
        while self.client.step(self.now) | self.relay.step(self.now) | self.server.step(self.now) {}
    }

    fn is_over(&self) -> bool {
        self.client.socket.is_none() && self.relay.is_over() && self.server.at_end
    }

    fn somebody_sleeps(&self) -> bool {
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
                self.is_over() || self.somebody_sleeps()
            });
            if self.is_over() {
                return self.check();
            }
            world.sleep(SLICE);
            self.now += SLICE;
        }
    }

    fn check(self) {
        let (forwarded, rest) = self.client.text.split_at(self.args.forwarded());
        let of_client = |byte: &u8| *byte != MARK;
        let got: Vec<u8> = self.server.got.iter().copied().filter(of_client).collect();
        assert_same("server", &got, forwarded);
        self.relay
            .check(forwarded.len(), rest, self.server.got.len() - got.len());
    }
}
