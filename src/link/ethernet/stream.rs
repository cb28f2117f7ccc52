//! Frames over a Unix stream socket, each after its length.

#[cfg(test)]
mod tests;

use super::frame::{HEADER, MAX_FRAME};
use super::socket_file;
use crate::buf::{self, Buf, FrameMut, Gather};
use crate::clock::{Clock, SystemClock};
use crate::counter::Counter;
use crate::link::retry;
use crate::link::waker::Waker;
use crate::link::{
    Capabilities, Checksum, Frame, Interest, Link, Packet, ReceiveError, TransmitError, poll_flags,
    poll_until,
};
use crate::lock::{LEAF, Mutex};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    socket_with,
};
use smallvec::SmallVec;
use std::io::{self, IoSlice};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// The length in front of each frame.
const PREFIX: usize = 4;
/// Memory of one read.
const READ: usize = buf::MAX_FRAME;
/// A frame up to this many bytes is copied out of the memory that it was read into; a longer one is a part of it.
const COPY_UP_TO: usize = 2048;
/// The rest of an incomplete frame longer than this is read into memory of its own, behind the part that was
/// received; the part of a shorter one is copied, and other frames are read behind it.
const LONG: usize = READ / 2;
/// Bytes that the kernel is asked to hold for a peer; by default it is a fifth of that, and a burst of a few large
/// frames waits for the peer several times. The system may have a lower limit.
const SEND_BUFFER: usize = 1 << 20;
/// Time between attempts to connect.
const RETRY: Duration = Duration::from_millis(100);
/// Maximum number of pieces of one write.
const IOV_MAX: usize = 1024;

/// A transport of frames over a Unix stream socket: each frame after its length, four bytes in network order, as
/// QEMU (`-netdev stream`), libkrun and passt have it.
///
/// A peer that closes its socket, or sends a length that no frame has (0, or more than 65,549 bytes), is
/// disconnected, and the next one is [accepted](Self::listen) or [connected](Self::connect). Meanwhile packets are
/// refused as lost, like those to a cable that is unplugged. With [`from_stream`](Self::from_stream) the link is
/// gone instead.
///
/// A frame that the socket takes only in part is completed first; then the socket is full until the peer reads.
/// The buffers are one incomplete frame in each direction and what one read returns, 64 KiB; in the kernel, up to
/// 1 MiB for the peer, if the system's limit (`net.core.wmem_max`) allows it.
///
/// Locks: the connection, the input and the output, all leaves.
///
/// ```
/// use sosplice::link::ethernet::FrameStream;
/// use sosplice::link::{Interest, Link, Packet};
/// use std::os::unix::net::UnixStream;
/// let (near, far) = UnixStream::pair()?;
/// let (near, far) = (FrameStream::from_stream(near)?, FrameStream::from_stream(far)?);
/// near.transmit(&Packet::new(&[7; 60], &[], 14))?;
/// far.wait(Interest::READABLE, None)?;
/// let mut frames = Vec::new();
/// assert_eq!(far.receive(&mut frames, 16)?, 1);
/// assert_eq!(frames[0].to_vec(), [7; 60]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FrameStream {
    peers: Peers,
    peer: Mutex<Option<Arc<UnixStream>>, LEAF>,
    input: Mutex<Input, LEAF>,
    output: Mutex<Output, LEAF>,
    /// A frame was written in part, and its rest is to be written when there is room.
    unfinished: AtomicBool,
    /// Received frames are in the buffer, for which no `poll` waits.
    buffered: AtomicBool,
    waker: Waker,
    /// Readable when the present peer, or the listening socket while there is none, is to be received from; also
    /// when the peer has room, if a packet found none.
    ready: OwnedFd,
    /// `ready` reports room.
    awaits_room: AtomicBool,
    /// The next attempt to connect.
    retry: Mutex<Option<Instant>, LEAF>,
    /// Of received frames.
    checksum: Checksum,
    /// Super-frames of TCP are sent as they are.
    large_frames: bool,
    counters: Counters,
}

/// Where peers come from.
#[derive(Debug)]
enum Peers {
    Accepted(UnixListener),
    Connected(PathBuf),
    One,
}

#[derive(Debug, Default)]
struct Counters {
    connects: Counter,
    disconnects: Counter,
    bad_lengths: Counter,
}

/// Counters of a [`FrameStream`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamStats {
    /// Peers that were accepted or connected.
    pub connects: u64,
    /// Peers that are gone.
    pub disconnects: u64,
    /// Peers that were disconnected because they sent a length that no frame has.
    pub bad_lengths: u64,
}

/// Bytes that were received and not yet returned.
#[derive(Debug, Default)]
struct Input {
    /// Not parsed yet, and none while there is a partial frame. Never empty.
    bytes: Option<Buf>,
    partial: Option<Partial>,
    /// The last read returned less than there was room for.
    drained: bool,
}

/// A long frame of which only a part was received.
#[derive(Debug)]
struct Partial {
    /// The frame begins after `skip` bytes. The memory ends after the length of the next frame, so that a read
    /// returns no more than that.
    memory: FrameMut,
    skip: usize,
    len: usize,
}

impl Partial {
    fn new(received: &[u8], len: usize) -> Partial {
        let mut memory = FrameMut::with_capacity(len + PREFIX);
        let bytes = memory.bytes_mut();
        let skip = bytes.capacity().saturating_sub(len + PREFIX);
        bytes.resize(skip, 0);
        bytes.extend_from_slice(received);
        Partial { memory, skip, len }
    }

    fn is_whole(&mut self) -> bool {
        self.memory.bytes_mut().len() >= self.skip + self.len
    }
}

/// The rest of a frame that was written in part.
#[derive(Debug, Default)]
struct Output {
    rest: Gather,
    /// The peer that has got the beginning.
    of: Weak<UnixStream>,
}

/// A length that no frame has.
#[derive(Debug)]
struct BadLength;

/// The length of the frame that begins here, if it is known.
fn length(bytes: &[u8]) -> Result<Option<usize>, BadLength> {
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    match usize::try_from(u32::from_be_bytes(*prefix)) {
        Ok(len @ 1..=MAX_FRAME) => Ok(Some(len)),
        _ => Err(BadLength),
    }
}

impl Input {
    /// The next frame that is whole.
    fn next(&mut self) -> Result<Option<Buf>, BadLength> {
        if let Some(partial) = self.partial.take_if(Partial::is_whole) {
            let memory = partial.memory.freeze();
            let (frame, end) = (partial.skip, partial.skip + partial.len);
            self.leave(memory.slice(end..memory.len()));
            return Ok(Some(memory.slice(frame..end)));
        }
        let Some(mut bytes) = self.bytes.take() else {
            return Ok(None);
        };
        match length(&bytes)? {
            Some(len) if bytes.len() >= PREFIX + len => {
                bytes.advance(PREFIX);
                let frame = match len > COPY_UP_TO {
                    true => bytes.slice(0..len),
                    false => Buf::copy_of(&bytes[..len]),
                };
                bytes.advance(len);
                self.leave(bytes);
                return Ok(Some(frame));
            }
            Some(len) if len > LONG => self.partial = Some(Partial::new(&bytes[PREFIX..], len)),
            _ => self.bytes = Some(bytes),
        }
        Ok(None)
    }

    /// These bytes are to be parsed next.
    fn leave(&mut self, bytes: Buf) {
        self.bytes = (!bytes.is_empty()).then_some(bytes);
    }

    /// Whether `next` returns a frame, or an error.
    fn is_ready(&mut self) -> bool {
        if let Some(partial) = &mut self.partial {
            return partial.is_whole();
        }
        self.bytes.as_ref().is_some_and(|bytes| {
            length(bytes).map_or(true, |len| {
                len.is_some_and(|len| bytes.len() >= PREFIX + len)
            })
        })
    }

    /// One read, for the missing part of a long frame or for several frames. Returns 0 at the end of the stream.
    fn fill(&mut self, peer: &UnixStream) -> Result<usize, Errno> {
        if let Some(partial) = &mut self.partial {
            return read(peer, partial.memory.bytes_mut(), &mut self.drained);
        }
        let mut memory = FrameMut::with_capacity(READ);
        let bytes = memory.bytes_mut();
        if let Some(received) = &self.bytes {
            bytes.extend_from_slice(received);
        }
        let count = read(peer, bytes, &mut self.drained)?;
        self.leave(memory.freeze());
        Ok(count)
    }
}

/// Appends the bytes of one read, as far as there is capacity for them.
fn read(peer: &UnixStream, bytes: &mut Vec<u8>, drained: &mut bool) -> Result<usize, Errno> {
    let room = bytes.capacity() - bytes.len();
    let count = retry(|| rustix::io::read(peer, spare_capacity(bytes)))?;
    *drained = count < room;
    Ok(count)
}

impl Output {
    /// Writes the rest of a frame. Whether none is left. A peer that is new gets nothing of the former one's.
    fn finish(&mut self, peer: &Arc<UnixStream>) -> Result<bool, Errno> {
        if self.of.as_ptr() != Arc::as_ptr(peer) {
            self.rest.clear();
        }
        while !self.rest.is_empty() {
            let pieces = self.rest.iter().take(IOV_MAX);
            let pieces: SmallVec<[IoSlice<'_>; 8]> = pieces.map(|buf| IoSlice::new(buf)).collect();
            let sent = send(peer, &pieces);
            drop(pieces);
            match sent {
                Ok(count) => advance(&mut self.rest, count),
                Err(Errno::AGAIN) => return Ok(false),
                Err(errno) => return Err(errno),
            }
        }
        Ok(true)
    }

    /// Writes a frame, in part if there is not enough room: then the rest of it is kept, by reference.
    fn write(&mut self, peer: &Arc<UnixStream>, packet: &Packet<'_>) -> Result<(), Errno> {
        let len = u32::try_from(packet.len()).map_err(|_| Errno::MSGSIZE)?;
        let prefix = len.to_be_bytes();
        let mut pieces: SmallVec<[IoSlice<'_>; 32]> = SmallVec::new();
        pieces.extend([IoSlice::new(&prefix), IoSlice::new(packet.header)]);
        pieces.extend(packet.payload.iter().map(|buf| IoSlice::new(buf)));
        let count = send(peer, &pieces[..pieces.len().min(IOV_MAX)])?;
        if count < PREFIX + packet.len() {
            self.rest
                .push(Buf::copy_of(&[&prefix, packet.header].concat()));
            self.rest.extend(packet.payload.iter().cloned());
            self.of = Arc::downgrade(peer);
            advance(&mut self.rest, count);
        }
        Ok(())
    }
}

/// Removes bytes from the front.
fn advance(bufs: &mut Gather, mut count: usize) {
    let mut done = 0;
    for buf in bufs.iter_mut() {
        let part = count.min(buf.len());
        buf.advance(part);
        count -= part;
        done += usize::from(buf.is_empty());
        if count == 0 {
            break;
        }
    }
    bufs.drain(..done);
}

/// One write that raises no signal.
fn send(peer: &UnixStream, pieces: &[IoSlice<'_>]) -> Result<usize, Errno> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    retry(|| rustix::net::sendmsg(peer, pieces, &mut SendAncillaryBuffer::default(), flags))
}

impl FrameStream {
    /// Accepts peers at a socket that it makes, one after the other. A socket file that no process listens at any
    /// more is replaced.
    ///
    /// # Errors
    /// If the socket cannot be made, e.g. because another process listens at the path.
    pub fn listen(path: impl AsRef<Path>) -> io::Result<FrameStream> {
        let path = path.as_ref();
        let connect = |path: &Path| connect(path).map(drop);
        let listener = socket_file::bind(path, |path| UnixListener::bind(path), connect)?;
        FrameStream::from_listener(listener)
    }

    /// Accepts peers at a listening socket, one after the other.
    ///
    /// # Errors
    /// If the system has no descriptors left.
    pub fn from_listener(listener: UnixListener) -> io::Result<FrameStream> {
        listener.set_nonblocking(true)?;
        FrameStream::new(Peers::Accepted(listener), None)
    }

    /// Connects to a listening socket, again and again, every 100 ms, until there is one; also after a peer is
    /// gone.
    ///
    /// # Errors
    /// If the system has no descriptors left.
    pub fn connect(path: impl Into<PathBuf>) -> io::Result<FrameStream> {
        FrameStream::new(Peers::Connected(path.into()), None)
    }

    /// One connection. When the peer closes it, the link is gone.
    ///
    /// # Errors
    /// If the system has no descriptors left.
    pub fn from_stream(stream: UnixStream) -> io::Result<FrameStream> {
        FrameStream::new(Peers::One, Some(stream))
    }

    fn new(peers: Peers, peer: Option<UnixStream>) -> io::Result<FrameStream> {
        let connects = Counter::new(u64::from(peer.is_some()));
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        if let Some(peer) = &peer {
            prepare(&ready, peer)?;
        } else if let Peers::Accepted(listener) = &peers {
            epoll::add(&ready, listener, EventData::new_u64(0), EventFlags::IN)?;
        }
        Ok(FrameStream {
            peers,
            peer: Mutex::new(peer.map(Arc::new)),
            input: Mutex::default(),
            output: Mutex::default(),
            unfinished: AtomicBool::new(false),
            buffered: AtomicBool::new(false),
            waker: Waker::new()?,
            ready,
            awaits_room: AtomicBool::new(false),
            retry: Mutex::default(),
            checksum: Checksum::Complete,
            large_frames: false,
            counters: Counters {
                connects,
                ..Counters::default()
            },
        })
    }

    /// Checksums of IP and its transports in received frames count as verified. The bytes come from another process
    /// through memory: a wrong checksum is either the guest's own fault, or was wrong already in a frame that the
    /// guest forwards from a network, whose damage then passes as data. Adding up all bytes is an eighth of the
    /// processor time of bulk data from a guest.
    ///
    /// ```
    /// use sosplice::link::{Checksum, Interest, Link, Packet, ethernet::FrameStream};
    /// let (near, far) = std::os::unix::net::UnixStream::pair()?;
    /// let near = FrameStream::from_stream(near)?.trust_checksums();
    /// FrameStream::from_stream(far)?.transmit(&Packet::new(&[7; 60], &[], 14))?;
    /// let mut frames = Vec::new();
    /// near.receive(&mut frames, 16)?;
    /// assert_eq!(frames[0].checksum, Checksum::Verified);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn trust_checksums(mut self) -> FrameStream {
        self.checksum = Checksum::Verified;
        self
    }

    /// Segments of TCP of up to 64 KiB go to the peer in one frame each, whatever its MTU. A Linux guest behind QEMU's
    /// virtio-net card (with mergeable buffers, as by default) takes them without negotiation: less than a fifth of
    /// the processor time of frames of 1,514 bytes. It is for guests that are known to be the last hop: one that
    /// forwards packets to containers or networks of a smaller MTU drops such frames, and its connections stall.
    ///
    /// ```
    /// use sosplice::link::{Link, ethernet::FrameStream};
    /// let (near, _far) = std::os::unix::net::UnixStream::pair()?;
    /// let link = FrameStream::from_stream(near)?.large_frames();
    /// assert_eq!(link.capabilities().segment_v4, Some(65_549));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn large_frames(mut self) -> FrameStream {
        self.large_frames = true;
        self
    }

    /// Counters.
    pub fn stats(&self) -> StreamStats {
        StreamStats {
            connects: self.counters.connects.get(),
            disconnects: self.counters.disconnects.get(),
            bad_lengths: self.counters.bad_lengths.get(),
        }
    }

    /// Whether a peer is connected.
    pub fn is_connected(&self) -> bool {
        self.peer.lock().is_some()
    }

    /// The connected peer, or the next one if there is one now.
    fn peer(&self) -> Option<Arc<UnixStream>> {
        let mut peer = self.peer.lock();
        if peer.is_none() {
            let next = match &self.peers {
                Peers::Accepted(listener) => listener.accept().map(|(stream, _)| stream),
                Peers::Connected(path) => connect(path),
                Peers::One => return None,
            };
            let next = next.and_then(|next| {
                prepare(&self.ready, &next)?;
                Ok(next)
            });
            let Ok(next) = next else {
                drop(peer);
                *self.retry.lock() = Some(SystemClock.now() + RETRY);
                return None;
            };
            if let Peers::Accepted(listener) = &self.peers {
                watch(&self.ready, listener, EventFlags::empty());
            }
            self.counters.connects.add(1);
            *peer = Some(Arc::new(next));
        }
        peer.clone()
    }

    /// Ends the connection with a peer, unless that has happened already. Only the receiving thread does it.
    fn disconnect(&self, gone: &Arc<UnixStream>) {
        {
            let mut peer = self.peer.lock();
            if !peer.as_ref().is_some_and(|peer| Arc::ptr_eq(peer, gone)) {
                return;
            }
            *peer = None;
        }
        epoll::delete(&self.ready, gone).ok();
        match &self.peers {
            Peers::Accepted(listener) => watch(&self.ready, listener, EventFlags::IN),
            // The next attempt, or the end of the link, is found out by the waiting thread.
            Peers::Connected(_) | Peers::One => self.waker.wake(),
        }
        self.counters.disconnects.add(1);
        *self.input.lock() = Input::default();
        *self.output.lock() = Output::default();
        self.unfinished.store(false, Ordering::Release);
        self.buffered.store(false, Ordering::Release);
    }

    fn gone(&self) -> io::Error {
        io::Error::new(
            io::ErrorKind::BrokenPipe,
            "the peer has closed the socket for frames",
        )
    }

    /// Appends frames until there are `max` or the socket is empty. Whether the peer is still there.
    fn read(&self, peer: &UnixStream, frames: &mut Vec<Frame>, max: usize) -> (usize, bool) {
        let mut input = self.input.lock();
        let mut count = 0;
        while count < max {
            match input.next() {
                Ok(Some(head)) => {
                    frames.push(Frame {
                        head,
                        rest: SmallVec::new(),
                        checksum: self.checksum,
                        segment: None,
                    });
                    count += 1;
                    continue;
                }
                // A socket that was emptied is not read again before it is readable.
                Ok(None) if std::mem::take(&mut input.drained) => break,
                Ok(None) => {}
                Err(BadLength) => {
                    self.counters.bad_lengths.add(1);
                    return (count, false);
                }
            }
            match input.fill(peer) {
                Ok(0) => return (count, false),
                Ok(_) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return (count, false),
            }
        }
        self.buffered.store(input.is_ready(), Ordering::Release);
        (count, true)
    }

    /// Writes the rest of a frame, if there is one. Called by the receiving thread, which is awake: connections that
    /// wait for room try again after this, and report if they find none.
    fn finish(&self, peer: &Arc<UnixStream>) {
        let mut output = self.output.lock();
        // The receiving thread finds out that the peer is gone.
        let left = !output.finish(peer).unwrap_or(true);
        self.unfinished.store(left, Ordering::Release);
        if !left && self.awaits_room.swap(false, Ordering::AcqRel) {
            watch(&self.ready, peer, EventFlags::IN);
        }
    }
}

/// Connects to a listening socket. Fails instead of waiting if the queue of those that it has not accepted is full.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// Makes a connection ready for use.
fn prepare(ready: &OwnedFd, peer: &UnixStream) -> io::Result<()> {
    peer.set_nonblocking(true)?;
    // Up to the system's limit; without it there are only more turns.
    rustix::net::sockopt::set_socket_send_buffer_size(peer, SEND_BUFFER).ok();
    Ok(epoll::add(
        ready,
        peer,
        EventData::new_u64(0),
        EventFlags::IN,
    )?)
}

/// The events of a socket that is in the set, or is gone.
fn watch(ready: &OwnedFd, socket: impl AsFd, events: EventFlags) {
    epoll::modify(ready, socket, EventData::new_u64(0), events).ok();
}

impl Link for FrameStream {
    fn capabilities(&self) -> Capabilities {
        let segment = self.large_frames.then_some(MAX_FRAME);
        Capabilities::new(MAX_FRAME)
            .segment_v4(segment)
            .segment_v6(segment)
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        let Some(peer) = self.peer() else {
            return match self.peers {
                Peers::One => Err(ReceiveError::Gone(self.gone())),
                _ => Ok(0),
            };
        };
        if self.awaits_room.load(Ordering::Acquire) {
            self.finish(&peer);
        }
        let (count, connected) = self.read(&peer, frames, max);
        if !connected {
            self.disconnect(&peer);
        }
        Ok(count)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        let cut = packet.segment.is_some() && !self.large_frames;
        if packet.len() > MAX_FRAME || packet.len() < HEADER || cut {
            let why = "the frame is larger or smaller than the transport takes";
            return Err(TransmitError::Refused(io::Error::new(
                io::ErrorKind::InvalidInput,
                why,
            )));
        }
        let Some(peer) = self.peer.lock().clone() else {
            return Err(TransmitError::Refused(self.gone()));
        };
        let mut output = self.output.lock();
        let result = match output.finish(&peer) {
            Ok(true) => output.write(&peer, packet),
            Ok(false) => Err(Errno::AGAIN),
            Err(errno) => Err(errno),
        };
        let left = !output.rest.is_empty();
        self.unfinished.store(left, Ordering::Release);
        // With the output locked, as `finish` has it.
        if (left || result.is_err()) && !self.awaits_room.swap(true, Ordering::AcqRel) {
            watch(&self.ready, &*peer, EventFlags::IN | EventFlags::OUT);
        }
        drop(output);
        if left && result.is_ok() {
            // The waiting thread is to write the rest when there is room.
            self.waker.wake();
        }
        match result {
            Ok(()) => Ok(()),
            Err(Errno::AGAIN | Errno::NOBUFS) => Err(TransmitError::Full),
            Err(errno) => Err(TransmitError::Refused(errno.into())),
        }
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        if self.buffered.load(Ordering::Acquire) && interest.overlaps(Interest::READABLE) {
            return Ok(());
        }
        let peer = self.peer();
        let mut deadline = deadline;
        let mut flags = poll_flags(interest);
        let fd = match (&peer, &self.peers) {
            (Some(peer), _) => {
                flags.set(
                    PollFlags::OUT,
                    self.unfinished.load(Ordering::Acquire) || flags.contains(PollFlags::OUT),
                );
                peer.as_fd()
            }
            (None, Peers::Accepted(listener)) => {
                flags = PollFlags::IN;
                listener.as_fd()
            }
            (None, Peers::Connected(_)) => {
                let retry = SystemClock.now() + RETRY;
                deadline = Some(deadline.map_or(retry, |at| at.min(retry)));
                flags = PollFlags::IN;
                self.waker.fd.as_fd()
            }
            (None, Peers::One) => return Err(self.gone()),
        };
        let mut fds = [
            PollFd::from_borrowed_fd(fd, flags),
            PollFd::new(&self.waker.fd, PollFlags::IN),
        ];
        // E.g. out of memory, which is no error of the socket. The caller receives, and waits again.
        if poll_until(&mut fds, deadline).is_err() {
            return Ok(());
        }
        if fds[1].revents().contains(PollFlags::IN) {
            self.waker.clear();
        }
        let writable = fds[0].revents().contains(PollFlags::OUT);
        if let Some(peer) = peer.filter(|_| writable) {
            self.finish(&peer);
        }
        Ok(())
    }

    /// The next attempt to connect, while there is no peer.
    fn deadline(&self) -> Option<Instant> {
        let waits = matches!(self.peers, Peers::Connected(_)) && !self.is_connected();
        if waits { *self.retry.lock() } else { None }
    }

    fn wake(&self) {
        self.waker.wake();
    }

    fn descriptors(&self) -> Option<[BorrowedFd<'_>; 2]> {
        Some([self.ready.as_fd(), self.waker.fd.as_fd()])
    }
}
