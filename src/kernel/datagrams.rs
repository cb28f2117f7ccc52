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

use super::reactor::Reactor;
use super::{Next, ROUNDS, Readiness, Ready};
use crate::buf::{Buf, FrameMut, Gather};
use crate::counter::Counter;
use crate::error::SoError;
use crate::lock::{LEAF, Mutex};
use crate::protocol::{Protocol, SoState, SocketEnd, Wakeup};
use crate::sockbuf::{Addresses, Datagram};
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
    held: Mutex<VecDeque<Datagram>, LEAF>,
    /// Datagrams that were taken from `so_snd`, and that the kernel has no room for.
    waiting: Mutex<Vec<Datagram>, LEAF>,
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
    fn deliver(&self, held: &mut VecDeque<Datagram>) -> Option<usize> {
        let mut rcv = self.end.rcv();
        if rcv.buf.is_closed() {
            return None;
        }
        let mut any = false;
        while let Some(first) = held.front() {
            // One that never finds room is dropped there, and counted.
            let never = rcv.buf.is_empty() || first.len() > rcv.buf.hiwat();
            if !never && !rcv.buf.has_room_for(first.len()) {
                break;
            }
            if let Some(Datagram { payload, addresses }) = held.pop_front() {
                any |= rcv.buf.append_record(payload, addresses);
            }
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
        let mut left = 0;
        // Cleared first: readiness that is reported from here on counts.
        if self.may_write.swap(false, Ordering::AcqRel) {
            left = self.transmit(descriptor, &batch);
        }
        if left < batch.len() {
            batch.drain(..left);
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
    fn take(&self, batch: &mut Vec<Datagram>) {
        let mut unfit = 0;
        let mut snd = self.end.snd();
        let mut any = false;
        while batch.len() < BATCH
            && let Some((payload, addresses)) = snd.buf.take_record()
        {
            any = true;
            let payload = match self.kind {
                Kind::Udp => Some(payload),
                Kind::Ping(form) => form.request(payload),
            };
            match payload {
                Some(payload) => batch.push(Datagram::new(payload, addresses)),
                None => unfit += 1,
            }
        }
        if any {
            self.end.sowwakeup(&snd, Wakeup::Space);
        }
        drop(snd);
        self.unsent.add(unfit);
    }

    /// Sends datagrams from the front. Returns how many are done with: less than all, if the kernel has no room.
    fn transmit(&self, descriptor: &UdpSocket, batch: &[Datagram]) -> usize {
        let mut sending = Sending {
            datagrams: self,
            at: 0,
            single: 0,
            repeats: 0,
        };
        while sending.at < batch.len() {
            let (outgoing, runs) = sending.messages(batch);
            match messages::send(descriptor, &outgoing) {
                Ok(count) => sending.done(runs[..count.min(runs.len())].iter().sum()),
                Err(Errno::EAGAIN) => return sending.at,
                Err(Errno::EINTR) => {}
                Err(errno) => sending.failed(descriptor, errno, (runs[0], batch)),
            }
        }
        sending.at
    }

    /// A call has met an error that is not about what it was to do: an earlier datagram's.
    fn look_for_errors(&self, descriptor: &UdpSocket, errno: Errno) -> Next {
        if self.take_reports(descriptor) == 0 {
            let Some(error) = so_error(errno) else {
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
            last = Some(error);
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
        if descriptor.is_some() {
            self.reactor.forget(self.token);
        }
        drop(descriptor);
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

/// Datagrams on their way to the kernel.
struct Sending<'a> {
    datagrams: &'a Datagrams,
    /// Datagrams that are done with.
    at: usize,
    /// Up to here each datagram is a message.
    single: usize,
    /// How often the first one was tried again.
    repeats: usize,
}

impl Sending<'_> {
    /// Messages for one call, and how many datagrams each of them has.
    fn messages<'b>(&self, batch: &'b [Datagram]) -> (Outgoing<'b>, Vec<usize>) {
        let (mut outgoing, mut runs) = (Outgoing::default(), Vec::new());
        let mut at = self.at;
        while at < batch.len() && runs.len() < MESSAGES {
            let run = self.run(&batch[at..], at);
            let Addresses { peer, local } = batch[at].addresses;
            let control = Control {
                local: local.filter(|local| Some(*local) != self.datagrams.own),
                segment: match run {
                    1 => None,
                    _ => u16::try_from(batch[at].len()).ok(),
                },
            };
            let plain = control == Control::default();
            if !plain && at > self.at {
                break;
            }
            let bufs = batch[at..at + run].iter().flat_map(|one| &one.payload);
            let begin = outgoing.pieces.len();
            outgoing.pieces.extend(bufs.map(|buf| IoSlice::new(buf)));
            outgoing.messages.push((begin..outgoing.pieces.len(), peer));
            outgoing.control = control;
            runs.push(run);
            at += run;
            if !plain {
                break;
            }
        }
        (outgoing, runs)
    }

    /// How many datagrams from the front become one message.
    fn run(&self, batch: &[Datagram], at: usize) -> usize {
        let Offload { works, longest } = &self.datagrams.offload;
        let len = batch[0].len();
        let cut = at >= self.single
            && len > 0
            && len <= longest.load(Ordering::Relaxed)
            && works.load(Ordering::Relaxed);
        if !cut {
            return 1;
        }
        let run = Datagram::run(batch, (MOST, SEGMENTS));
        let pieces: usize = batch[..run].iter().map(|one| one.payload.len()).sum();
        if pieces > messages::PIECES { 1 } else { run }
    }

    fn done(&mut self, count: usize) {
        self.at += count;
        self.repeats = 0;
    }

    /// The first message was not sent: it had this many datagrams.
    fn failed(&mut self, descriptor: &UdpSocket, errno: Errno, (run, batch): (usize, &[Datagram])) {
        let Datagrams { offload, .. } = self.datagrams;
        // Perhaps it is an earlier datagram's, and this one was not looked at. Another thread may have taken the
        // report.
        let reports = self.datagrams.take_reports(descriptor);
        let earlier = reports > 0 && self.repeats < ERRORS;
        if earlier || self.repeats == 0 && may_be_earlier(errno) {
            self.repeats += 1;
            return;
        }
        let first = &batch[self.at];
        match errno {
            // No device does it that this one is to leave by.
            Errno::EIO if run > 1 => offload.works.store(false, Ordering::Relaxed),
            Errno::EINVAL | Errno::EMSGSIZE if run > 1 => {
                self.single = self.at + run;
                // A packet that holds such a datagram is too long for the path, if not for its source address.
                if first.addresses.local.is_none() {
                    offload
                        .longest
                        .fetch_min(first.len().saturating_sub(1), Ordering::Relaxed);
                }
            }
            _ => {
                self.datagrams.unsent.add(run as u64);
                self.done(run);
                // A full queue of a device drops, as one on the way would.
                if errno != Errno::ENOBUFS {
                    let error = so_error(errno).unwrap_or(SoError::HostUnreachable);
                    self.datagrams.end.fail_once(error);
                }
            }
        }
    }
}

/// Messages on their way into frames.
struct Packing {
    frame: FrameMut,
    /// Lengths of the datagrams in the frame.
    cuts: Vec<(usize, Addresses)>,
    /// Bytes to come.
    left: usize,
    datagrams: VecDeque<Datagram>,
}

impl Packing {
    fn new(left: usize) -> Packing {
        Packing {
            frame: FrameMut::with_capacity(left.min(SHARED)),
            cuts: Vec::new(),
            left,
            datagrams: VecDeque::new(),
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
        if segment == 0 || bytes.len() <= segment {
            self.cuts.push((bytes.len(), addresses));
        } else {
            let each = bytes.chunks(segment).map(|part| (part.len(), addresses));
            self.cuts.extend(each);
        }
    }

    /// Cuts the frame into datagrams.
    fn seal(&mut self, next: FrameMut) {
        let whole: Buf = std::mem::replace(&mut self.frame, next).freeze();
        let mut at = 0;
        for (len, addresses) in self.cuts.drain(..) {
            let payload = Gather::from_iter([whole.slice(at..at + len)]);
            at += len;
            self.datagrams.push_back(Datagram::new(payload, addresses));
        }
    }

    fn finish(mut self) -> VecDeque<Datagram> {
        self.seal(FrameMut::with_capacity(0));
        self.datagrams
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
