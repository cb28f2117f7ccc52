//! The protocol of a kernel socket for datagrams: UDP, or pings.
//!
//! | file | contents |
//! |---|---|
//! | `datagrams` | [`Datagrams`]: reading, sending, errors |
//! | `echo` | echo messages, as the kernel takes and gives them |
//! | `messages` | system calls for many datagrams at once |
//!
//! What the kernel has is read while `so_rcv` has room; then the kernel's buffer fills, and drops. Several datagrams
//! of one source that the kernel gives as one (`UDP_GRO`) are copied into one frame and cut by reference; small ones
//! share a frame. Datagrams of the same addresses and length are sent as one (`UDP_SEGMENT`), where that can be had.
//!
//! An error ends nothing. That of an earlier datagram, an ICMP message has brought it, is taken from the kernel's
//! queue of errors, for a call that meets it does nothing else: the call is repeated.
//!
//! Locks: `so_rcv` (2), `so_snd` (3), and leaves: the descriptor, datagrams that wait, errors. None is held during a
//! system call.

mod echo;
mod messages;

pub(super) use echo::Form;

use super::reactor::{Next, ROUNDS, Reactor, Readiness, Ready};
use crate::buf::{Buf, FrameMut, Gather};
use crate::counter::Counter;
use crate::error::SoError;
use crate::lock::{LEAF, Mutex};
use crate::protocol::{Protocol, SoState, SocketEnd, Wakeup};
use crate::sockbuf::{Addresses, Run};
use crate::socket::Socket;
use crate::turn::Turn;
use messages::{Control, MESSAGES, Message, Outgoing, Room, SEGMENTS};
use mio::unix::SourceFd;
use mio::{Interest, Token};
use nix::errno::Errno;
use rustix::net::sockopt;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// Payload bytes of each of the socket's buffers: some of the longest datagrams.
const HIWAT: usize = 256 * 1024;
/// Datagrams of each buffer.
const LIMIT: usize = 1024;
/// Datagrams that are taken from `so_snd` at once.
const BATCH: usize = 128;
/// Bytes of each of the kernel's buffers: it counts some hundred for the smallest datagram.
const KERNEL: usize = 1024 * 1024;
/// Bytes of small datagrams that share a frame.
const SHARED: usize = 16_384;
/// Bytes of a message to be cut by the kernel: with room for headers in 64 KiB.
const MOST: usize = 65_000;
/// ICMP errors that are kept for the program.
const ERRORS: usize = 64;

/// An ICMP error about a datagram that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PathError {
    /// Where the datagram was sent.
    pub to: Option<SocketAddr>,
    /// What the error means for a socket.
    pub error: SoError,
    /// The host that has sent the ICMP message: the destination, or a router.
    pub by: Option<IpAddr>,
    /// Type and code of the ICMP message, of the address family of the datagram.
    pub icmp: (u8, u8),
    /// The longest packet that the path takes, in bytes, if the datagram was too long.
    pub mtu: Option<u32>,
}

/// What the messages are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Udp,
    Ping(Form),
}

/// One socket of the kernel.
#[derive(Debug)]
pub(super) struct Datagrams {
    me: Weak<Datagrams>,
    token: Token,
    pub(super) end: Arc<SocketEnd>,
    reactor: Arc<Reactor>,
    kind: Kind,
    /// The peer that it is connected to. (The kernel does not tell that of a socket for pings.)
    peer: Option<SocketAddr>,
    /// The address that it is bound to, if it is one.
    own: Option<IpAddr>,
    /// `None` once it is closed.
    descriptor: Mutex<Option<Arc<UdpSocket>>, LEAF>,
    reading: Turn,
    writing: Turn,
    /// Set by readiness, cleared before a system call that may find out that it is over.
    may_read: AtomicBool,
    may_write: AtomicBool,
    /// The reactor is to report that the socket is writable: only while the kernel had no room, for otherwise each
    /// datagram that leaves a device would wake it.
    asks_for_room: AtomicBool,
    /// Datagrams that were read, and found no room.
    held: Mutex<VecDeque<Run>, LEAF>,
    /// Datagrams that were taken from `so_snd`, and that the kernel has no room for.
    waiting: Mutex<VecDeque<Run>, LEAF>,
    /// Length of the longest messages that were read of late.
    usual: AtomicUsize,
    offload: Offload,
    /// The socket is closed.
    detached: AtomicBool,
    errors: Mutex<VecDeque<PathError>, LEAF>,
    pub(super) unsent: Counter,
}

/// Whether the kernel cuts messages into datagrams.
#[derive(Debug)]
struct Offload {
    works: AtomicBool,
    /// Longest datagrams that it cuts messages into: longer ones do not fit into packets.
    longest: AtomicUsize,
}

impl Datagrams {
    /// A socket that is bound, and connected or not.
    pub(super) fn start(
        socket: UdpSocket,
        kind: Kind,
        peer: Option<SocketAddr>,
    ) -> io::Result<(Socket, Arc<Datagrams>)> {
        socket.set_nonblocking(true)?;
        let local = socket.local_addr()?;
        messages::set_options(&socket, local.is_ipv4());
        let own = Some(local.ip().to_canonical()).filter(|own| !own.is_unspecified());
        enlarge_buffers(&socket);
        let reactor = Reactor::global()?;
        let end = SocketEnd::for_datagrams(HIWAT, HIWAT, LIMIT);
        end.connected();
        let offload = Offload {
            works: AtomicBool::new(kind == Kind::Udp && messages::segments(&socket)),
            longest: AtomicUsize::new(usize::from(u16::MAX)),
        };
        let datagrams = Arc::new_cyclic(|me| Datagrams {
            me: me.clone(),
            token: reactor.token(),
            end: end.clone(),
            reactor,
            kind,
            peer,
            own,
            descriptor: Mutex::new(None),
            reading: Turn::default(),
            writing: Turn::default(),
            may_read: AtomicBool::new(true),
            may_write: AtomicBool::new(true),
            asks_for_room: AtomicBool::new(false),
            held: Mutex::default(),
            waiting: Mutex::default(),
            usual: AtomicUsize::new(0),
            offload,
            detached: AtomicBool::new(false),
            errors: Mutex::default(),
            unsent: Counter::default(),
        });
        datagrams.register(socket)?;
        Ok((Socket::new(end, datagrams.clone()), datagrams))
    }

    fn register(self: &Arc<Self>, descriptor: UdpSocket) -> io::Result<()> {
        let registered = self.reactor.register(
            (self.token, self.clone()),
            &mut SourceFd(&descriptor.as_raw_fd()),
            Interest::READABLE,
        );
        *self.descriptor.lock() = Some(Arc::new(descriptor));
        registered?;
        // What was reported before there was a descriptor led to nothing.
        self.may_read.store(true, Ordering::Release);
        self.may_write.store(true, Ordering::Release);
        self.resume();
        Ok(())
    }

    fn descriptor(&self) -> Option<Arc<UdpSocket>> {
        self.descriptor.lock().clone()
    }

    pub(super) fn live(&self) -> io::Result<Arc<UdpSocket>> {
        self.descriptor()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Takes the ICMP errors that have come, the oldest first.
    pub(super) fn take_errors(&self) -> Vec<PathError> {
        std::mem::take(&mut *self.errors.lock()).into()
    }

    /// Reads what the kernel has and `so_rcv` has room for.
    fn fill(&self) {
        let Some(descriptor) = self.descriptor() else {
            return;
        };
        for _ in 0..ROUNDS {
            if let Next::Stop = self.read(&descriptor) {
                return;
            }
        }
        self.reactor.again(self.me.clone());
    }

    fn read(&self, descriptor: &UdpSocket) -> Next {
        let mut held = std::mem::take(&mut *self.held.lock());
        let want = self.deliver(&mut held);
        if !held.is_empty() {
            *self.held.lock() = held;
        }
        let Some(want) = want else { return Next::Stop };
        // Cleared first: readiness that is reported from here on counts.
        if self.detached.load(Ordering::Acquire) || !self.may_read.swap(false, Ordering::AcqRel) {
            return Next::Stop;
        }
        let mut room = Room::take();
        let read = messages::receive(descriptor, &mut room, want);
        let next = match read {
            Ok(messages) => {
                // After a short read the kernel reports what comes later.
                self.may_read
                    .fetch_or(messages.len() == want, Ordering::AcqRel);
                self.take_over(&room, &messages);
                Next::Again
            }
            Err(Errno::EAGAIN) => Next::Stop,
            Err(errno) => self.look_for_errors(descriptor, errno),
        };
        room.give_back();
        next
    }

    /// Moves datagrams to `so_rcv` as far as it has room. Returns how many messages may be read, if any.
    fn deliver(&self, held: &mut VecDeque<Run>) -> Option<usize> {
        let mut rcv = self.end.rcv();
        if rcv.buf.is_closed() {
            return None;
        }
        let mut any = false;
        while let Some(mut first) = held.pop_front() {
            let (space, room) = (rcv.buf.space(), rcv.buf.record_limit() - rcv.buf.records());
            // One that never finds room is dropped there, and counted.
            let never = rcv.buf.is_empty() || first.size > rcv.buf.hiwat();
            let most = match first.len() <= space {
                true => room,
                false => (space / first.size.max(1)).min(room),
            };
            let now = most.max(usize::from(never));
            if now < first.count() {
                let begun = first.cut(now);
                held.push_front(std::mem::replace(&mut first, begun));
            }
            if now == 0 {
                break;
            }
            any |= rcv.buf.append_run(first) > 0;
        }
        if any {
            self.end.sorwakeup(&rcv, Wakeup::Data);
        }
        let space = rcv.buf.space();
        if space == 0 || !held.is_empty() {
            return None;
        }
        let usual = self.usual.load(Ordering::Relaxed).max(1);
        Some((space / usual).clamp(1, MESSAGES))
    }

    /// Copies what was read into frames, cuts it into datagrams, and delivers these.
    fn take_over(&self, room: &Room, messages: &[Message]) {
        let longest = messages.iter().map(|message| message.len).max();
        let usual = self.usual.load(Ordering::Relaxed) / 2;
        self.usual
            .store(usual.max(longest.unwrap_or(0)), Ordering::Relaxed);
        let left = messages.iter().map(|message| message.len).sum();
        let mut packing = Packing::new(left);
        for (index, message) in messages.iter().enumerate() {
            let bytes = room.bytes(index, message);
            let Some(part) = self.accept(bytes) else {
                continue;
            };
            let addresses = Addresses {
                peer: message.from,
                local: message.local,
            };
            packing.add(&bytes[part], message.segment, addresses);
        }
        let mut held = packing.finish();
        self.deliver(&mut held);
        if !held.is_empty() {
            *self.held.lock() = held;
        }
    }

    /// The part of a message that is for the program.
    fn accept(&self, bytes: &[u8]) -> Option<Range<usize>> {
        match self.kind {
            Kind::Udp => Some(0..bytes.len()),
            Kind::Ping(form) => form.accept(bytes),
        }
    }

    /// Sends what is there, in order.
    fn flush(&self) {
        let Some(descriptor) = self.descriptor() else {
            self.end.flush_snd();
            return;
        };
        for _ in 0..ROUNDS {
            if let Next::Stop = self.write(&descriptor) {
                return;
            }
        }
        self.reactor.again(self.me.clone());
    }

    fn write(&self, descriptor: &UdpSocket) -> Next {
        let mut batch = std::mem::take(&mut *self.waiting.lock());
        if batch.is_empty() {
            self.take(&mut batch);
        }
        if batch.is_empty() {
            if self.detached.load(Ordering::Acquire) {
                self.let_go();
            }
            return Next::Stop;
        }
        // Cleared first: readiness that is reported from here on counts.
        if self.may_write.swap(false, Ordering::AcqRel) {
            self.transmit(descriptor, &mut batch);
        }
        if !batch.is_empty() {
            *self.waiting.lock() = batch;
            self.ask_for_room(descriptor, true);
            return Next::Stop;
        }
        self.may_write.store(true, Ordering::Release);
        self.ask_for_room(descriptor, false);
        Next::Again
    }

    /// Has the reactor report when the kernel has room, which may be so already; or not any more.
    fn ask_for_room(&self, descriptor: &UdpSocket, asks: bool) {
        if self.asks_for_room.load(Ordering::Relaxed) == asks {
            return;
        }
        let interest = match asks {
            true => Interest::READABLE | Interest::WRITABLE,
            false => Interest::READABLE,
        };
        let source = &mut SourceFd(&descriptor.as_raw_fd());
        match self.reactor.reregister(self.token, source, interest) {
            Ok(()) => self.asks_for_room.store(asks, Ordering::Relaxed),
            // The system is short of memory.
            Err(_) if asks => {
                self.may_write.store(true, Ordering::Release);
                self.reactor.again(self.me.clone());
            }
            Err(_) => {}
        }
    }

    /// Takes datagrams from `so_snd`.
    fn take(&self, batch: &mut VecDeque<Run>) {
        let mut unfit = 0;
        let mut snd = self.end.snd();
        let (mut any, mut left) = (false, BATCH);
        let cuts = self.offload.works.load(Ordering::Relaxed);
        let most = if cuts { SEGMENTS } else { 1 };
        while left > 0
            && let Some(mut run) = snd.buf.take_run((MOST, most.min(left)))
        {
            any = true;
            left -= run.count();
            if let Kind::Ping(form) = self.kind {
                let Some(request) = form.request(run.payload) else {
                    unfit += 1;
                    continue;
                };
                run.payload = request;
            }
            batch.push_back(run);
        }
        if any {
            self.end.sowwakeup(&snd, Wakeup::Space);
        }
        drop(snd);
        self.unsent.add(unfit);
    }

    /// Sends datagrams from the front. What is left waits until the kernel has room.
    fn transmit(&self, descriptor: &UdpSocket, batch: &mut VecDeque<Run>) {
        let mut repeats = 0;
        while !batch.is_empty() {
            self.offload.prepare(batch);
            let outgoing = self.messages(batch);
            let sent = messages::send(descriptor, &outgoing);
            drop(outgoing);
            match sent {
                Ok(count) => {
                    batch.drain(..count.min(batch.len()));
                    repeats = 0;
                }
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                Err(errno) => self.failed(descriptor, errno, (batch, &mut repeats)),
            }
        }
    }

    /// Messages for one call.
    fn messages<'b>(&self, batch: &'b VecDeque<Run>) -> Outgoing<'b> {
        let mut outgoing = Outgoing::default();
        for run in batch.iter().take(MESSAGES) {
            let local = run.addresses.local;
            let control = Control {
                local: local.filter(|local| Some(*local) != self.own),
                segment: (run.count() > 1)
                    .then(|| u16::try_from(run.size).ok())
                    .flatten(),
            };
            let plain = control == Control::default();
            if !plain && !outgoing.messages.is_empty() {
                break;
            }
            let begin = outgoing.pieces.len();
            let bufs = run.payload.iter();
            outgoing.pieces.extend(bufs.map(|buf| IoSlice::new(buf)));
            let pieces = begin..outgoing.pieces.len();
            outgoing.messages.push((pieces, run.addresses.peer));
            outgoing.control = control;
            if !plain {
                break;
            }
        }
        outgoing
    }

    /// The first message was not sent, after so many repetitions.
    fn failed(
        &self,
        descriptor: &UdpSocket,
        errno: Errno,
        (batch, repeats): (&mut VecDeque<Run>, &mut usize),
    ) {
        // Perhaps it is an earlier datagram's, and this one was not looked at. Another thread may have taken the
        // report.
        let reports = self.take_reports(descriptor);
        let earlier = reports > 0 && *repeats < ERRORS;
        if earlier || *repeats == 0 && may_be_earlier(errno) {
            *repeats += 1;
            return;
        }
        let Some(first) = batch.front() else { return };
        let (count, size) = (first.count(), first.size);
        match errno {
            // No device does it that this one is to leave by.
            Errno::EIO if count > 1 => self.offload.works.store(false, Ordering::Relaxed),
            Errno::EINVAL | Errno::EMSGSIZE if count > 1 => {
                // A packet that holds such a datagram is too long for the path, if not for its source address.
                if first.addresses.local.is_none() {
                    let longest = &self.offload.longest;
                    longest.fetch_min(size.saturating_sub(1), Ordering::Relaxed);
                }
                split_first(batch);
            }
            _ => {
                batch.pop_front();
                *repeats = 0;
                self.unsent.add(count as u64);
                let error = so_error(errno).unwrap_or(SoError::HostUnreachable);
                // A full queue of a device drops, as one on the way would; and one destination of several that cannot
                // be reached is no error of the others.
                let of_one = self.peer.is_none() && error == SoError::HostUnreachable;
                if errno != Errno::ENOBUFS && !of_one {
                    self.end.fail_once(error);
                }
            }
        }
    }

    /// A call has met an error that is not about what it was to do: an earlier datagram's.
    fn look_for_errors(&self, descriptor: &UdpSocket, errno: Errno) -> Next {
        if self.take_reports(descriptor) == 0 {
            let Some(error) = so_error(errno) else {
                // Readiness has not gone: the next thread that comes by tries again.
                self.may_read.store(true, Ordering::Release);
                return Next::Stop;
            };
            self.report(error);
        }
        self.may_read.store(true, Ordering::Release);
        Next::Again
    }

    /// Takes what the kernel's queue of errors has. Returns how many ICMP errors that were.
    fn take_reports(&self, descriptor: &UdpSocket) -> usize {
        let mut count = 0;
        let mut last = None;
        while count < ERRORS
            && let Some(report) = messages::next_report(descriptor)
        {
            let Some(error) = so_error(report.errno).filter(|_| report.by_icmp) else {
                continue;
            };
            count += 1;
            let too_long = error == SoError::MessageSize;
            let mut errors = self.errors.lock();
            if errors.len() == ERRORS {
                errors.pop_front();
            }
            errors.push_back(PathError {
                to: report.to,
                error,
                by: report.by,
                icmp: report.icmp,
                mtu: too_long.then_some(report.mtu),
            });
            // One way was too long; the next datagram may take another one (RFC 1122 3.2.2.4).
            if !report.is_time_exceeded() {
                last = Some(error);
            }
        }
        if let Some(error) = last {
            self.report(error);
        }
        count
    }

    /// An ICMP error has come. A socket that is not connected has many peers, and the error of one is not that of
    /// the socket; after "too long" the kernel sends shorter fragments.
    fn report(&self, error: SoError) {
        if self.peer.is_some() && error != SoError::MessageSize {
            self.end.fail_once(error);
        }
    }

    /// Lets the descriptor go, which closes it.
    fn let_go(&self) {
        let descriptor = self.descriptor.lock().take();
        if let Some(descriptor) = &descriptor {
            self.reactor.forget(self.token);
            // As for a connection: there may be a duplicate.
            (self.reactor).deregister(&mut SourceFd(&descriptor.as_raw_fd()));
        }
    }

    /// It ends at once: what was received stays readable, what was not sent is gone.
    fn finish(&self, error: SoError) {
        self.let_go();
        let unsent = std::mem::take(&mut *self.waiting.lock());
        drop(unsent);
        self.end.disconnected(Some(error));
        self.end.flush_snd();
    }
}

impl Offload {
    /// Splits runs at the front that the kernel does not cut.
    fn prepare(&self, batch: &mut VecDeque<Run>) {
        while let Some(first) = batch.front() {
            let cut = self.works.load(Ordering::Relaxed)
                && first.size <= self.longest.load(Ordering::Relaxed)
                && first.payload.len() <= messages::PIECES;
            if cut || first.count() == 1 {
                return;
            }
            split_first(batch);
        }
    }
}

/// Makes the datagrams of the first run messages of their own.
fn split_first(batch: &mut VecDeque<Run>) {
    if let Some(mut run) = batch.pop_front() {
        let each: Vec<Run> = (0..run.count()).map(|_| run.cut(1)).collect();
        each.into_iter().rev().for_each(|one| batch.push_front(one));
    }
}

/// Messages on their way into frames.
struct Packing {
    frame: FrameMut,
    /// Length of each message in the frame, and of its datagrams.
    cuts: Vec<(usize, usize, Addresses)>,
    /// Bytes to come.
    left: usize,
    runs: VecDeque<Run>,
}

impl Packing {
    fn new(left: usize) -> Packing {
        Packing {
            frame: FrameMut::with_capacity(left.min(SHARED)),
            cuts: Vec::new(),
            left,
            runs: VecDeque::new(),
        }
    }

    /// Adds a message, which may hold several datagrams.
    fn add(&mut self, bytes: &[u8], segment: usize, addresses: Addresses) {
        let room = self.frame.bytes_mut();
        if room.capacity() - room.len() < bytes.len() {
            let next = FrameMut::with_capacity(bytes.len().max(self.left.min(SHARED)));
            self.seal(next);
        }
        self.left = self.left.saturating_sub(bytes.len());
        self.frame.bytes_mut().extend_from_slice(bytes);
        let size = match segment {
            0 => bytes.len(),
            _ => segment.min(bytes.len()),
        };
        self.cuts.push((bytes.len(), size, addresses));
    }

    /// Cuts the frame into messages.
    fn seal(&mut self, next: FrameMut) {
        let whole: Buf = std::mem::replace(&mut self.frame, next).freeze();
        let mut at = 0;
        for (len, size, addresses) in self.cuts.drain(..) {
            let payload = Gather::from_iter([whole.slice(at..at + len)]);
            at += len;
            self.runs.push_back(Run {
                payload,
                size,
                addresses,
            });
        }
    }

    fn finish(mut self) -> VecDeque<Run> {
        self.seal(FrameMut::with_capacity(0));
        self.runs
    }
}

impl Ready for Datagrams {
    fn ready(&self, ready: Readiness) {
        self.may_read.fetch_or(ready.readable, Ordering::AcqRel);
        self.may_write.fetch_or(ready.writable, Ordering::AcqRel);
        if ready.over
            && let Some(descriptor) = self.descriptor()
        {
            self.take_reports(&descriptor);
        }
        self.resume();
    }

    fn resume(&self) {
        self.reading.take(|| self.fill());
        self.writing.take(|| self.flush());
    }

    fn give_up(&self) {
        self.finish(SoError::ConnectionAborted);
    }
}

impl Protocol for Datagrams {
    fn output(&self) {
        self.writing.take(|| self.flush());
    }

    fn rcvd(&self, _idle: bool) {
        self.reading.take(|| self.fill());
    }

    fn abort(&self) {
        self.finish(SoError::ConnectionAborted);
        self.end.flush_rcv();
    }

    /// What is to be sent is sent, then the descriptor is closed.
    fn detach(&self) {
        self.detached.store(true, Ordering::Release);
        self.end.flush_rcv();
        let unread = std::mem::take(&mut *self.held.lock());
        drop(unread);
        self.end.cantsendmore();
        self.writing.take(|| self.flush());
    }

    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Udp => "kernel-udp",
            Kind::Ping(_) => "kernel-icmp",
        }
    }

    fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        Some((self.descriptor()?.local_addr().ok()?, self.peer?))
    }

    fn so_state(&self) -> SoState {
        match self.peer {
            Some(_) => SoState::Datagrams,
            None => SoState::UnconnectedDatagrams,
        }
    }
}

/// Bursts of small datagrams need more than the default, of which they use up some hundred bytes each.
fn enlarge_buffers(socket: &UdpSocket) {
    // Above the system's limit only with privileges.
    if sockopt::set_socket_recv_buffer_size_force(socket, KERNEL).is_err() {
        sockopt::set_socket_recv_buffer_size(socket, KERNEL).ok();
    }
    if sockopt::set_socket_send_buffer_size_force(socket, KERNEL).is_err() {
        sockopt::set_socket_send_buffer_size(socket, KERNEL).ok();
    }
}

/// Whether an ICMP message may have brought it.
fn may_be_earlier(errno: Errno) -> bool {
    !matches!(errno, Errno::EPERM | Errno::EDESTADDRREQ) && so_error(errno).is_some()
}

/// What an error of a call, or of a path, is for a socket; `None` if it is neither of the network nor of a datagram.
fn so_error(errno: Errno) -> Option<SoError> {
    Some(match errno {
        Errno::ECONNREFUSED => SoError::ConnectionRefused,
        Errno::EMSGSIZE => SoError::MessageSize,
        Errno::EPERM | Errno::EACCES => SoError::Prohibited,
        Errno::ENETDOWN => SoError::NetworkDown,
        Errno::EDESTADDRREQ | Errno::ENOTCONN => SoError::DestinationRequired,
        Errno::EHOSTUNREACH
        | Errno::ENETUNREACH
        | Errno::EHOSTDOWN
        | Errno::ENONET
        | Errno::ENOPROTOOPT
        | Errno::EOPNOTSUPP
        | Errno::EPROTO => SoError::HostUnreachable,
        _ => return None,
    })
}
