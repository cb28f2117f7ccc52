//! The use in a real proxy: OpenBSD's relayd.
//!
//! It splices with the expected number of bytes as limit and with the session's timeout. `EFBIG`: it
//! returns to reading. `ETIMEDOUT`: if the other direction has moved bytes since the last check, it
//! splices again, else it closes. Otherwise, and at the end of the stream, it closes both.

use super::args::{DEFAULT, assert_same};
use super::harness::{Turn, pattern, turns};
use crate::conformance::{Outcome, World};
use crate::error::{Flavor, SoError};
use crate::socket::Socket;
use crate::splice::{Cause, End, Role};
use std::io::ErrorKind;
use std::net::Shutdown;
use std::time::Duration;

const SESSION: Duration = Duration::from_secs(2);

/// One direction of a session.
struct Direction {
    from: Socket,
    to: Socket,
    /// Its counter at the last check by the other direction.
    seen: u64,
    timeouts: usize,
}

impl Direction {
    fn new(world: &World<'_>, from: &Socket, to: &Socket) -> Direction {
        let mut direction = Direction {
            from: from.clone(),
            to: to.clone(),
            seen: 0,
            timeouts: 0,
        };
        direction.splice(world, None);
        direction
    }

    fn splice(&mut self, world: &World<'_>, limit: Option<usize>) {
        let mut options = world.options();
        options.idle = Some(SESSION);
        options.limit = limit.map(|limit| limit as u64);
        let splice = self.from.splice_to(&self.to, options);
        splice.expect("nothing is wrong with these sockets");
        self.seen = 0;
    }

    /// Whether it has moved bytes since the last check by the other direction.
    fn has_moved(&mut self) -> bool {
        let now = self.from.spliced();
        let moved = now > self.seen;
        self.seen = now;
        moved
    }

    /// How its splice has ended; asserts the corresponding `SO_ERROR`.
    fn ended(&self, world: &World<'_>) -> Option<End> {
        let end = self.from.splice_end(Role::Source)?;
        let said = match end.cause {
            Cause::Limit => Some(SoError::SpliceLimit),
            Cause::Idle => Some(SoError::SpliceTimedOut),
            _ => None,
        };
        let openbsd = world.flavor() == Flavor::OpenBsd;
        assert_eq!(self.from.take_error(), said.filter(|_| openbsd));
        Some(end)
    }
}

/// relayd's reaction to the end of a splice; `false` if the session is to be closed.
fn react(world: &World<'_>, session: &mut [Direction; 2]) -> bool {
    let [up, down] = session;
    let alive = |direction: &mut Direction, other: &mut Direction| {
        let Some(end) = direction.ended(world) else {
            return true;
        };
        assert_eq!(end.cause, Cause::Idle);
        direction.timeouts += 1;
        let alive = other.has_moved();
        if alive {
            direction.splice(world, None);
        }
        alive
    };
    alive(up, down) && alive(down, up)
}

/// Ten seconds of traffic in one direction only, then silence.
pub(super) fn one_sided(world: &World<'_>) -> Outcome {
    if !world.is_virtual() {
        return Outcome::NotApplicable("virtual time");
    }
    let [client, inside] = world.connect(DEFAULT.buffers);
    let [outside, server] = world.connect(DEFAULT.buffers);
    let mut session = [(&inside, &outside), (&outside, &inside)]
        .map(|(from, to)| Direction::new(world, from, to));
    for _ in 0..10 {
        world.exchange(&server, &client, &[7; 100]);
        for _ in 0..10 {
            world.sleep(Duration::from_millis(100));
            assert!(react(world, &mut session), "the session lives");
        }
    }
    let [up, down] = [session[0].timeouts, session[1].timeouts];
    assert!((4..=5).contains(&up), "{up} timeouts");
    assert_eq!((down, outside.spliced()), (0, 1000));
    // The last byte was sent a second ago.
    let mut silent = Duration::from_secs(1);
    while react(world, &mut session) {
        world.sleep(Duration::from_millis(100));
        silent += Duration::from_millis(100);
        assert!(silent <= 3 * SESSION, "the session ends");
    }
    assert!(silent >= SESSION, "closed after {silent:?}");
    Outcome::Passed
}

/// Requests and answers in turns, each rarer than the timeout: the other direction keeps a silent one.
pub(super) fn ping_pong(world: &World<'_>) -> Outcome {
    if !world.is_virtual() {
        return Outcome::NotApplicable("virtual time");
    }
    let [client, inside] = world.connect(DEFAULT.buffers);
    let [outside, server] = world.connect(DEFAULT.buffers);
    let mut session = [(&inside, &outside), (&outside, &inside)]
        .map(|(from, to)| Direction::new(world, from, to));
    let turn = Duration::from_millis(1500);
    for _ in 0..5 {
        for (from, to) in [(&client, &server), (&server, &client)] {
            world.exchange(from, to, b"one line");
            let mut slept = Duration::ZERO;
            while slept < turn {
                world.sleep(Duration::from_millis(100));
                slept += Duration::from_millis(100);
                assert!(react(world, &mut session), "the session lives");
            }
        }
    }
    let timeouts = session.map(|direction| direction.timeouts);
    assert!(timeouts.iter().all(|count| *count > 0), "{timeouts:?}");
    Outcome::Passed
}

/// The state of relayd's HTTP relay.
enum At {
    /// Reading a line itself; this part of it has arrived.
    Line(Vec<u8>),
    /// This many bytes of a body are expected.
    Expects(usize),
    /// They are spliced.
    Splices(usize),
    /// The end of the stream.
    End,
}

struct Http<'a> {
    world: &'a World<'a>,
    way: Direction,
    at: At,
    /// Bytes that it has read itself and must write.
    held: Vec<u8>,
}

impl Http<'_> {
    /// `true` if it did some work.
    fn step(&mut self) -> bool {
        if !self.held.is_empty() {
            let Ok(count) = self.way.to.send(&self.held) else {
                return false;
            };
            self.held.drain(..count);
            return true;
        }
        match &mut self.at {
            At::Line(line) => match read_line(&self.way.from, line) {
                Some(at) => {
                    self.held = std::mem::take(line);
                    self.at = at;
                }
                None => return false,
            },
            At::Expects(0) => self.at = At::Line(Vec::new()),
            At::Expects(count) => {
                self.way.splice(self.world, Some(*count));
                self.at = At::Splices(*count);
            }
            At::Splices(count) => {
                let Some(end) = self.way.ended(self.world) else {
                    return false;
                };
                assert_eq!((end.cause, end.bytes), (Cause::Limit, *count as u64));
                assert_eq!(self.way.from.spliced(), end.bytes);
                self.at = At::Expects(0);
            }
            At::End => return false,
        }
        true
    }
}

/// `"<length>\n"`; that many bytes follow.
fn read_line(from: &Socket, line: &mut Vec<u8>) -> Option<At> {
    let mut byte = [0];
    loop {
        match from.recv(&mut byte) {
            Ok(0) => return Some(At::End),
            Ok(_) if byte[0] != b'\n' => line.push(byte[0]),
            Ok(_) => {
                let digits = std::str::from_utf8(line).expect("a line is text");
                let length = digits.parse().expect("a length");
                line.push(b'\n');
                return Some(At::Expects(length));
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                return None;
            }
        }
    }
}

/// Requests with bodies in one stream, one after the other: the relay reads the lines and splices the
/// bodies.
pub(super) fn http_bodies(world: &World<'_>) -> Outcome {
    let [client, inside] = world.connect(DEFAULT.buffers);
    let [outside, server] = world.connect(DEFAULT.buffers);
    for socket in [&client, &inside, &outside, &server] {
        socket.set_nonblocking(true);
    }
    let mut data = Vec::new();
    for length in [1, 113, 0, 40_000, 16_384, 7, 100_000, 0] {
        data.extend(format!("{length}\n").bytes());
        data.extend(pattern(length));
    }
    let mut http = Http {
        world,
        way: Direction {
            from: inside,
            to: outside,
            seen: 0,
            timeouts: 0,
        },
        at: At::Line(Vec::new()),
        held: Vec::new(),
    };
    let (mut sent, mut got) = (0, Vec::new());
    turns(world, "the stream has ended", || {
        let mut acted = http.step();
        if let Ok(count) = client.send(&data[sent..]) {
            sent += count;
            acted |= count > 0;
            if sent == data.len() {
                client.shutdown(Shutdown::Write).expect("connected");
            }
        }
        if let Ok(bytes) = world.try_read(&server) {
            acted |= !bytes.is_empty();
            got.extend(bytes);
        }
        match http.at {
            At::End if got.len() >= data.len() => Turn::Done,
            _ => Turn::acted(acted),
        }
    });
    assert_same("server", &got, &data);
    Outcome::Passed
}
