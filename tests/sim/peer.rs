//! A client or a server: sends its stream, checks the other one, in random pieces and with pauses.

use crate::ear::Ear;
use crate::plan::log_uniform;
use crate::world::{Failure, Scene, check, fail};
use fastrand::Rng;
use sosplice::TcpStream;
use sosplice::clock::Clock;
use std::io;
use std::net::Shutdown;
use std::time::{Duration, Instant};

/// The byte at a position of a stream.
pub(crate) fn byte(stream: usize, position: u64) -> u8 {
    let mixed = (position ^ (stream as u64) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8 ^ (mixed >> 24) as u8
}

fn piece(stream: usize, from: u64, len: usize) -> Vec<u8> {
    (from..from + len as u64)
        .map(|at| byte(stream, at))
        .collect()
}

/// The remaining work of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It sends, receives, or both.
    Talks,
    /// It sent and received all, and closed.
    Done,
    /// This side broke off.
    Broke,
    /// The connection ended with an error, or before its stream did.
    Failed,
}

#[derive(Debug)]
pub(crate) struct Peer {
    /// 2 * connection, plus 1 for the server.
    pub(crate) stream: usize,
    socket: Option<TcpStream>,
    pub(crate) ear: Ear,
    total: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Bytes that the other side is to send.
    expected: u64,
    shut: bool,
    at_end: bool,
    pauses: u32,
    pub(crate) pause: Option<Instant>,
    breaks: Option<u64>,
    pub(crate) stage: Stage,
}

impl Peer {
    pub(crate) fn new(scene: &Scene, stream: usize, socket: TcpStream) -> Peer {
        let conn = &scene.plan.conns[stream / 2];
        let side = stream % 2;
        socket.set_nonblocking(true);
        let ear = scene.listen(&socket);
        Peer {
            stream,
            socket: Some(socket),
            ear,
            total: conn.totals[side],
            sent: 0,
            received: 0,
            expected: conn.totals[1 - side],
            shut: false,
            at_end: false,
            pauses: conn.pauses[side],
            pause: None,
            breaks: conn.breaks[side],
            stage: Stage::Talks,
        }
    }

    /// One random thing that it may do. Whether it did anything.
    pub(crate) fn step(&mut self, scene: &Scene, rng: &mut Rng) -> Result<bool, Failure> {
        let now = scene.clock.now();
        let Some(socket) = self.socket.clone() else {
            return Ok(false);
        };
        if self.pause.is_some_and(|until| now < until) {
            return Ok(false);
        }
        self.pause = None;
        if self
            .breaks
            .is_some_and(|after| self.sent + self.received >= after)
        {
            self.break_off(scene, rng);
            return Ok(true);
        }
        if rng.u32(0..1000) < self.pauses {
            let most = if rng.bool() { 5 } else { 1500 };
            self.pause = Some(now + Duration::from_millis(rng.u64(1..=most)));
            return Ok(true);
        }
        let sends_first = rng.bool();
        for turn in 0..2 {
            let acted = match (turn == 0) == sends_first {
                true => self.send(scene, &socket, rng),
                false => self.receive(scene, &socket, rng)?,
            };
            if acted {
                self.finish(scene);
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn send(&mut self, scene: &Scene, socket: &TcpStream, rng: &mut Rng) -> bool {
        if self.shut || !self.ear.writable(scene) {
            return false;
        }
        if self.sent == self.total {
            match socket.shutdown(Shutdown::Write) {
                Ok(()) => self.shut = true,
                Err(error) => self.failed(scene, &error),
            }
            return true;
        }
        let most = (self.total - self.sent).min(log_uniform(rng, 65_536).max(1));
        let bytes = piece(self.stream, self.sent, usize::try_from(most).unwrap());
        match socket.send(&bytes) {
            Ok(count) => {
                self.sent += count as u64;
                scene.note(self.stream, "sent", count as u64);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.ear.deaf_to_space();
                false
            }
            Err(error) => {
                self.failed(scene, &error);
                true
            }
        }
    }

    fn receive(
        &mut self,
        scene: &Scene,
        socket: &TcpStream,
        rng: &mut Rng,
    ) -> Result<bool, Failure> {
        if self.at_end || self.stage != Stage::Talks || !self.ear.readable(scene) {
            return Ok(false);
        }
        let mut bytes = vec![0; usize::try_from(log_uniform(rng, 65_536).max(1)).unwrap()];
        let peeked = match rng.u32(0..8) {
            0 => socket.peek(&mut bytes).unwrap_or(0),
            _ => 0,
        };
        let peeked = bytes[..peeked].to_vec();
        match socket.recv(&mut bytes) {
            Ok(0) => {
                self.at_end = true;
                scene.note(self.stream, "end of stream", self.received);
                check(self.received == self.expected || scene.is_rude(), || {
                    format!(
                        "stream {}: the end came after {} of {} bytes",
                        self.stream, self.received, self.expected
                    )
                })?;
                Ok(true)
            }
            Ok(count) => {
                let right = piece(self.stream ^ 1, self.received, count);
                let same =
                    bytes[..count] == right && peeked.iter().zip(&right).all(|(a, b)| a == b);
                check(same, || {
                    format!(
                        "stream {}: wrong bytes after {}",
                        self.stream, self.received
                    )
                })?;
                self.received += count as u64;
                scene.delivered_at.set(scene.clock.passed());
                scene.note(self.stream, "received", count as u64);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.ear.deaf_to_bytes();
                Ok(false)
            }
            Err(error) => {
                self.failed(scene, &error);
                Ok(true)
            }
        }
    }

    fn finish(&mut self, scene: &Scene) {
        if self.shut && self.at_end && self.stage == Stage::Talks {
            self.stage = if self.received == self.expected {
                Stage::Done
            } else {
                Stage::Failed
            };
            scene.note(self.stream, "closes", 0);
            self.socket = None;
        }
    }

    fn failed(&mut self, scene: &Scene, error: &io::Error) {
        scene.note(self.stream, &format!("failed: {error}"), 1);
        self.stage = Stage::Failed;
        self.socket = None;
    }

    fn break_off(&mut self, scene: &Scene, rng: &mut Rng) {
        if let Some(socket) = self.socket.take().filter(|_| rng.bool()) {
            socket.abort();
        }
        scene.note(self.stream, "breaks off", 2);
        self.stage = Stage::Broke;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.stage != Stage::Talks
    }

    /// The documented invariants of the buffers.
    pub(crate) fn check(&self, scene: &Scene) -> Result<(), Failure> {
        match &self.socket {
            Some(socket) => scene.check_buffers(socket),
            None => Ok(()),
        }
    }

    /// For a run that was to end well.
    pub(crate) fn check_end(&self) -> Result<(), Failure> {
        if self.stage != Stage::Done || self.sent != self.total {
            return fail(format!(
                "stream {}: {:?} after {} of {} sent and {} of {} received",
                self.stream, self.stage, self.sent, self.total, self.received, self.expected
            ));
        }
        Ok(())
    }
}
