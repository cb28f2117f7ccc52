//! The relay of the harness: copies, or splices as OpenBSD's `relay.pl` does.
//!
//! Its loop: splice, with the rest of the limit; wait until the source is readable; fetch `SO_ERROR`
//! and the counter; if the splice has ended below the limit, splice once more; at the end of the stream
//! a read must return 0. Then the relay shuts the drain down, and reads the bytes that the splice has
//! left. Neighbours: `harness` drives it.

use super::args::{Args, MARK, assert_same};
use crate::conformance::World;
use crate::error::{Flavor, SoError};
use crate::socket::Socket;
use crate::splice::{Cause, End, Role};
use std::io::ErrorKind;
use std::net::Shutdown;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Copy,
    Splice,
    /// Source and drain are the same socket.
    Echo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Asleep,
    Copies,
    Splices,
    /// Reads the bytes that were not forwarded.
    Empties,
    Over,
}

pub(super) struct Relay<'a> {
    world: &'a World<'a>,
    args: Args,
    mode: Mode,
    source: Socket,
    drain: Socket,
    state: State,
    /// Bytes forwarded.
    done: usize,
    /// Bytes read and not yet written.
    held: Vec<u8>,
    /// It has spliced again because a splice was short.
    was_short: bool,
    timeouts: usize,
    marks: usize,
    last: Option<Cause>,
    rest: Vec<u8>,
}

impl<'a> Relay<'a> {
    pub(super) fn new(
        world: &'a World<'a>,
        args: Args,
        mode: Mode,
        [source, drain]: [Socket; 2],
    ) -> Relay<'a> {
        for socket in [&source, &drain] {
            socket.set_nonblocking(args.nonblock);
        }
        Relay {
            world,
            args,
            mode,
            source,
            drain,
            state: State::Asleep,
            done: 0,
            held: Vec::new(),
            was_short: false,
            timeouts: 0,
            marks: 0,
            last: None,
            rest: Vec::new(),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// `true` if it did some work.
    pub(super) fn step(&mut self, now: Duration) -> bool {
        match self.state {
            State::Asleep if now < self.args.relay_sleep => return false,
            State::Asleep if self.mode == Mode::Copy => self.state = State::Copies,
            State::Asleep => self.splice(),
            State::Copies => return self.copy(),
            State::Splices => return self.wait(),
            State::Empties => return self.empty(),
            State::Over => return false,
        }
        true
    }

    fn left(&self) -> Option<usize> {
        let done = if self.args.again { 0 } else { self.done };
        self.args.limit.map(|limit| limit - done)
    }

    fn splice(&mut self) {
        let mut options = self.world.options();
        options.limit = self.left().map(|left| left as u64);
        options.idle = self.args.idle;
        let splice = self.source.splice_to(&self.drain, options);
        splice.expect("nothing is wrong with these sockets");
        self.state = State::Splices;
    }

    /// The source is readable only when the splice has ended.
    fn wait(&mut self) -> bool {
        if let Some(end) = self.source.splice_end(Role::Source) {
            self.ended(end);
            return true;
        }
        if self.args.reads {
            match self.world.try_read(&self.source).as_deref() {
                // It has ended meanwhile.
                Err(ErrorKind::WouldBlock) | Ok([]) => {}
                other => panic!("a read while spliced: {other:?}"),
            }
        }
        let before = self.marks;
        if self.args.writes && self.marks < 1000 {
            self.marks += write(&self.drain, &[MARK; 100]);
        }
        self.marks > before
    }

    fn ended(&mut self, end: End) {
        let error = self.source.take_error();
        let expected = match end.cause {
            Cause::Eof => None,
            Cause::Limit => Some(SoError::SpliceLimit),
            Cause::Idle => Some(SoError::SpliceTimedOut),
            other => panic!("the splice has ended with {other:?}"),
        };
        let expected = expected.filter(|_| self.world.flavor() == Flavor::OpenBsd);
        assert_eq!(error, expected, "SO_ERROR of the source: {end:?}");
        let count = usize::try_from(self.source.spliced()).expect("less than was sent");
        assert_eq!(end.bytes, count as u64, "the counter");
        if let Some(left) = self.left() {
            assert!(count <= left, "{count} bytes spliced, the limit was {left}");
            assert_eq!(count == left, end.cause == Cause::Limit, "{end:?}");
        }
        self.done += count;
        self.timeouts += usize::from(end.cause == Cause::Idle);
        let is_short = end.cause == Cause::Eof && self.args.limit.is_some() && !self.was_short;
        if is_short || (self.args.again && end.cause != Cause::Eof) {
            self.was_short |= is_short;
            return self.splice();
        }
        if end.cause == Cause::Eof {
            let read = self.world.try_read(&self.source);
            assert_eq!(read.as_deref(), Ok(&[][..]), "a read at the end");
        }
        self.finish(end.cause);
    }

    fn copy(&mut self) -> bool {
        if !self.held.is_empty() {
            let count = write(&self.drain, &self.held);
            self.held.drain(..count);
            return count > 0;
        }
        let want = self.left().unwrap_or(usize::MAX).min(self.args.block);
        if want == 0 {
            self.finish(Cause::Limit);
            return true;
        }
        match at_once(&self.source, |source| source.recv_chain(want)) {
            Ok(bytes) if bytes.is_empty() => self.finish(Cause::Eof),
            Ok(bytes) => {
                self.held = bytes.to_vec();
                self.done += bytes.len();
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "relay: {error}");
                return false;
            }
        }
        true
    }

    fn finish(&mut self, cause: Cause) {
        self.last = Some(cause);
        self.drain
            .shutdown(Shutdown::Write)
            .expect("still connected");
        self.state = State::Empties;
    }

    fn empty(&mut self) -> bool {
        match self.world.try_read(&self.source) {
            Ok(bytes) if bytes.is_empty() => self.state = State::Over,
            Ok(bytes) => self.rest.extend(bytes),
            Err(error) => {
                assert_eq!(error, ErrorKind::WouldBlock, "relay");
                return false;
            }
        }
        true
    }

    /// Asserts the forwarded bytes, those left on the source, and the marks that it wrote.
    pub(super) fn check(self, forwarded: usize, rest: &[u8], marks: usize) {
        assert_eq!(self.done, forwarded, "bytes forwarded");
        assert_same("left on the source", &self.rest, rest);
        assert_eq!(self.marks, marks, "bytes that the relay wrote");
        // In real time it may never find room.
        let must_write = self.args.writes && self.world.is_virtual();
        assert!(marks > 0 || !must_write, "the relay has written");
        assert_eq!(self.timeouts, self.args.timeouts, "timeouts");
        let limit = self.args.limit.filter(|_| !self.args.again);
        let last = match limit {
            _ if self.args.timeout_after.is_some() => Cause::Idle,
            Some(limit) if limit <= self.args.len => Cause::Limit,
            _ => Cause::Eof,
        };
        assert_eq!(self.last, Some(last), "how it ended");
        for socket in [&self.source, &self.drain] {
            assert_eq!(socket.take_error(), None, "SO_ERROR after the loop");
        }
    }
}

/// A non-blocking call.
fn at_once<R>(socket: &Socket, call: impl FnOnce(&Socket) -> R) -> R {
    let was = socket.is_nonblocking();
    socket.set_nonblocking(true);
    let result = call(socket);
    socket.set_nonblocking(was);
    result
}

/// Writes as much as there is room for.
fn write(socket: &Socket, bytes: &[u8]) -> usize {
    match at_once(socket, |socket| socket.send(bytes)) {
        Ok(count) => count,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "relay: {error}");
            0
        }
    }
}
