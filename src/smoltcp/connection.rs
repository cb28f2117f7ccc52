//! One adopted socket of smoltcp: payload between its ring buffers and the socket buffers, and what its states mean.

use super::port::Port;
use crate::buf::{Buf, FrameMut, Taken};
use crate::error::SoError;
use crate::protocol::Wakeup;
use smoltcp::socket::tcp::{RecvError, Socket, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::IpEndpoint;
use std::sync::Arc;

/// Most bytes that are copied into one frame, and leave it before the next: a quarter of it costs more in passes than it
/// saves in caches (`benches/smoltcp.rs`).
const CHUNK: usize = 65_536;

/// A socket without a handle waits so long in FIN-WAIT-2 for the end of its peer (Linux: `tcp_fin_timeout`).
const FIN_WAIT: Duration = Duration::from_secs(60);

/// A connection of smoltcp.
#[derive(Debug)]
pub(super) struct Connection {
    port: Arc<Port>,
    /// This side's and the peer's.
    ends: (IpEndpoint, IpEndpoint),
    /// It was dialled, by a SYN of this side.
    is_dialled: bool,
    /// It is established, or was.
    is_connected: bool,
    /// This side's FIN is behind the bytes in smoltcp's buffer, or sent.
    is_closed: bool,
    /// The peer's FIN was passed on.
    has_ended: bool,
    /// Bytes wait in `so_snd` for space in smoltcp's buffer.
    is_blocked: bool,
    /// `so_error` has the end of the connection, or it has ended in order.
    is_settled: bool,
    /// State, and length of the send queue, when it was served last.
    seen: (State, usize),
    /// When anything of the peer was observed last; `None` before the first look.
    quiet_since: Option<Instant>,
    /// When a connection without a handle is reset.
    deadline: Option<Instant>,
}

/// The result of a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use]
pub(super) struct Served {
    /// The interface has something to send.
    pub(super) must_poll: bool,
    /// There is more to receive: the socket is to be served again.
    pub(super) has_more: bool,
    /// smoltcp's socket is no longer needed.
    pub(super) is_over: bool,
}

impl Connection {
    pub(super) fn new(port: Arc<Port>, ends: (IpEndpoint, IpEndpoint), state: State) -> Connection {
        let is_connected = !matches!(state, State::SynSent | State::SynReceived);
        if is_connected {
            port.end.connected();
        }
        let is_closed = matches!(state, State::FinWait1 | State::FinWait2);
        if is_closed {
            port.end.cantsendmore();
        }
        Connection {
            port,
            ends,
            is_dialled: state == State::SynSent,
            is_connected,
            is_closed,
            has_ended: false,
            is_blocked: false,
            is_settled: false,
            seen: (State::Closed, 0),
            quiet_since: None,
            deadline: None,
        }
    }

    /// Whether this socket is still the adopted one. A closed one has no addresses; another one may have taken its
    /// place since, with other addresses, or in a state from which the adopted one has gone on.
    pub(super) fn is_its(&self, socket: &Socket<'_>) -> bool {
        let early = matches!(
            socket.state(),
            State::SynSent | State::SynReceived | State::Listen
        );
        match (socket.local_endpoint(), socket.remote_endpoint()) {
            (Some(local), Some(remote)) => {
                (local, remote) == self.ends && !(early && self.is_connected)
            }
            _ => !early || !self.is_connected && !self.is_dialled,
        }
    }

    /// Whether it must be served without a request.
    pub(super) fn is_due(&mut self, socket: &Socket<'_>, now: Instant) -> bool {
        let seen = (socket.state(), socket.send_queue());
        let before = std::mem::replace(&mut self.seen, seen);
        let is_progress = seen != before && seen.0 != State::Closed;
        if is_progress || socket.can_recv() || self.quiet_since.is_none() {
            self.quiet_since = Some(now);
        }
        seen.0 != before.0
            || seen.0 == State::Closed
            || socket.can_recv() && !self.port.is_held()
            || self.is_blocked && seen.1 < socket.send_capacity()
            || self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// When it must be served next, if nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Moves what can be moved in both directions, and follows the state of the connection.
    pub(super) fn serve(&mut self, socket: &mut Socket<'_>, now: Instant) -> Served {
        self.port.served();
        let mut must_poll = self.reset(socket);
        self.connect(socket);
        let received = self.receive(socket);
        must_poll |= received | self.send(socket);
        self.follow(socket, now);
        must_poll |= self.reset(socket);
        self.seen = (socket.state(), socket.send_queue());
        let has_more = received && socket.can_recv();
        let is_over = self.is_settled && !has_more && socket.remote_endpoint().is_none();
        if is_over {
            self.port.over();
        }
        Served {
            must_poll,
            has_more,
            is_over,
        }
    }

    /// The socket is not there any more, or cannot be served any more.
    pub(super) fn lose(&self, error: SoError) {
        self.port.over();
        if !self.is_settled {
            self.port.fail(error);
        }
    }

    /// Resets the connection, if that is wanted. `true` if the interface must be polled for that: once, since it may
    /// have no room, or no neighbour to send to, and then says itself when to try again.
    fn reset(&mut self, socket: &mut Socket<'_>) -> bool {
        if !self.port.is_reset() {
            return false;
        }
        self.is_settled = true;
        let is_new = socket.state() != State::Closed;
        socket.abort();
        is_new && socket.remote_endpoint().is_some()
    }

    fn connect(&mut self, socket: &Socket<'_>) {
        let not_yet = matches!(
            socket.state(),
            State::SynSent | State::SynReceived | State::Listen | State::Closed
        );
        // A connection may have come and gone since.
        let is_there = !not_yet || socket.can_recv();
        if !self.is_connected && is_there && !self.port.is_reset() {
            self.is_connected = true;
            self.port.end.connected();
        }
    }

    /// Copies from smoltcp's buffer to `so_rcv`. `true` if its window has become larger.
    fn receive(&mut self, socket: &mut Socket<'_>) -> bool {
        if self.port.is_reset() {
            return false;
        }
        // At the end of these states smoltcp drops what was not taken.
        let is_last = matches!(socket.state(), State::TimeWait | State::Closed);
        if !socket.can_recv() {
            return false;
        }
        let room = if is_last { CHUNK } else { self.port.room() };
        if room == 0 {
            return false;
        }
        if self.port.is_detached() || !self.append(copy(socket, room.min(CHUNK))) {
            self.port.reset();
            return false;
        }
        true
    }

    /// `false` if the socket is closed, and the bytes are refused. After a shutdown for reading they are dropped.
    fn append(&self, buf: Buf) -> bool {
        let end = &self.port.end;
        let mut rcv = end.rcv();
        if rcv.buf.is_finished() {
            drop(rcv);
            return !self.port.is_detached();
        }
        rcv.buf.append(buf);
        end.sorwakeup(&rcv, Wakeup::Data);
        true
    }

    /// Copies from `so_snd` to smoltcp's buffer, then the end. `true` if the interface has something to send.
    fn send(&mut self, socket: &mut Socket<'_>) -> bool {
        if !self.is_connected || self.is_closed || !socket.may_send() {
            return false;
        }
        let room = socket.send_capacity() - socket.send_queue();
        let end = &self.port.end;
        let mut taken = Taken::new();
        let mut snd = end.snd();
        let count = snd.buf.len().min(room);
        if count > 0 {
            snd.buf.take_bufs(count, &mut taken);
            end.sowwakeup(&snd, Wakeup::Space);
        }
        self.is_blocked = !snd.buf.is_empty();
        self.is_closed = snd.buf.is_finished();
        drop(snd);
        for buf in &taken {
            let sent = socket.send_slice(buf);
            debug_assert_eq!(sent, Ok(buf.len()), "there was room");
        }
        if self.is_closed && !self.port.is_reset() {
            socket.close();
        }
        count > 0 || self.is_closed
    }

    /// What the state of the connection means for the socket.
    fn follow(&mut self, socket: &mut Socket<'_>, now: Instant) {
        let state = socket.state();
        let shut = self.is_connected && !self.is_closed && !socket.may_send();
        if shut && state != State::Closed {
            self.was_shut();
        }
        let is_last = matches!(
            state,
            State::CloseWait | State::Closing | State::LastAck | State::TimeWait
        );
        if is_last && !self.has_ended && !socket.can_recv() && !self.port.is_reset() {
            self.has_ended = true;
            self.port.end.cantrcvmore();
        }
        let is_closed = matches!(state, State::Closed | State::Listen) && !socket.can_recv();
        if is_closed && !self.is_settled {
            self.is_settled = true;
            match self.ending(socket, now) {
                Some(error) => self.port.fail(error),
                // Its last bytes may have been held back until now.
                None => self.port.end.cantrcvmore(),
            }
        }
        self.deadline = (state == State::FinWait2 && self.port.is_detached())
            .then(|| self.deadline.unwrap_or(now + FIN_WAIT));
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            self.port.reset();
        }
    }

    /// The program has closed smoltcp's socket. What it has not taken cannot be sent any more, and its end would look
    /// like that of the whole.
    fn was_shut(&mut self) {
        self.is_closed = true;
        let unsent = self.port.end.with_snd(|so_snd| !so_snd.is_empty());
        if unsent {
            self.port.reset();
        } else {
            self.port.end.cantsendmore();
        }
    }

    /// Why smoltcp's socket is closed; `None` after an orderly end.
    fn ending(&self, socket: &mut Socket<'_>, now: Instant) -> Option<SoError> {
        let nothing = socket.recv(|_| (0, ()));
        let has_ended = self.has_ended || nothing == Err(RecvError::Finished);
        if has_ended && self.is_closed && socket.send_queue() == 0 {
            return None;
        }
        let silence = self.quiet_since.zip(socket.timeout());
        Some(
            if silence.is_some_and(|(since, limit)| since + limit <= now) {
                SoError::TimedOut
            } else if socket.remote_endpoint().is_some() {
                SoError::ConnectionAborted
            } else if self.is_dialled && !self.is_connected {
                SoError::ConnectionRefused
            } else {
                SoError::ConnectionReset
            },
        )
    }
}

/// Takes up to `most` bytes from smoltcp's buffer, whose content is in one or two pieces.
fn copy(socket: &mut Socket<'_>, most: usize) -> Buf {
    let mut left = socket.recv_queue().min(most);
    let mut frame = FrameMut::with_capacity(left);
    while left > 0 {
        let count = socket.recv(|bytes| {
            let count = bytes.len().min(left);
            frame.bytes_mut().extend_from_slice(&bytes[..count]);
            (count, count)
        });
        match count {
            Ok(count) if count > 0 => left -= count,
            _ => break,
        }
    }
    frame.freeze()
}
