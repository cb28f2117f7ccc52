//! Frames over a Unix stream socket, each after its length.

use super::frame::{HEADER, MAX_FRAME};
use crate::buf::{Buf, FrameMut};
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
use rustix::event::{PollFd, PollFlags};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use smallvec::SmallVec;
use std::io::{self, IoSlice};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The length in front of each frame.
const PREFIX: usize = 4;
/// Bytes of one read, while no frame longer than that is incomplete.
const READ: usize = 64 << 10;
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
/// The buffers are one incomplete frame in each direction and what one read returns, 64 KiB.
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
    /// Bytes from `at` on are not parsed.
    bytes: Vec<u8>,
    at: usize,
    /// A frame of which only a part was received, and its length.
    partial: Option<(FrameMut, usize)>,
}

/// The rest of a frame that was written in part.
#[derive(Debug, Default)]
struct Output {
    rest: Vec<u8>,
    at: usize,
}

/// A length that no frame has.
#[derive(Debug)]
struct BadLength;

impl Input {
    /// The next frame that is whole.
    fn next(&mut self) -> Result<Option<Buf>, BadLength> {
        let whole = |(frame, len): &mut (FrameMut, usize)| frame.bytes_mut().len() == *len;
        if let Some((frame, _)) = self.partial.take_if(whole) {
            return Ok(Some(frame.freeze()));
        }
        let rest = &self.bytes[self.at..];
        let (None, Some((prefix, rest))) = (&self.partial, rest.split_first_chunk::<PREFIX>())
        else {
            return Ok(None);
        };
        let len = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
        if len == 0 || len > MAX_FRAME {
            return Err(BadLength);
        }
        if let Some(whole) = rest.get(..len) {
            self.at += PREFIX + len;
            return Ok(Some(Buf::copy_of(whole)));
        }
        let mut frame = FrameMut::with_capacity(len);
        frame.bytes_mut().extend_from_slice(rest);
        self.partial = Some((frame, len));
        self.at = self.bytes.len();
        Ok(None)
    }

    /// Whether `next` returns a frame, or an error.
    fn is_ready(&mut self) -> bool {
        if let Some((frame, len)) = &mut self.partial {
            return frame.bytes_mut().len() == *len;
        }
        let rest = &self.bytes[self.at..];
        rest.split_first_chunk::<PREFIX>()
            .is_some_and(|(prefix, rest)| {
                let len = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
                len == 0 || len > MAX_FRAME || rest.len() >= len
            })
    }

    /// One read, for the missing part of a frame or for more of them. Returns 0 at the end of the stream.
    fn fill(&mut self, peer: &UnixStream) -> Result<usize, Errno> {
        if let Some((frame, len)) = &mut self.partial {
            let bytes = frame.bytes_mut();
            let have = bytes.len();
            bytes.resize(*len, 0);
            let result = retry(|| rustix::io::read(peer, &mut bytes[have..]));
            bytes.truncate(have + *result.as_ref().unwrap_or(&0));
            return result;
        }
        self.bytes.drain(..self.at);
        self.at = 0;
        self.bytes
            .reserve_exact(READ.saturating_sub(self.bytes.len()));
        let bytes = &mut self.bytes;
        retry(|| rustix::io::read(peer, spare_capacity(bytes)))
    }
}

impl Output {
    /// Writes the rest of a frame. Whether none is left.
    fn finish(&mut self, peer: &UnixStream) -> Result<bool, Errno> {
        while self.at < self.rest.len() {
            match send(peer, &[IoSlice::new(&self.rest[self.at..])]) {
                Ok(count) => self.at += count,
                Err(Errno::AGAIN) => return Ok(false),
                Err(errno) => return Err(errno),
            }
        }
        self.clear();
        Ok(true)
    }

    fn clear(&mut self) {
        self.rest.clear();
        self.at = 0;
    }

    /// Writes a frame, in part if there is not enough room.
    fn write(&mut self, peer: &UnixStream, packet: &Packet<'_>) -> Result<(), Errno> {
        let len = u32::try_from(packet.len()).map_err(|_| Errno::MSGSIZE)?;
        let prefix = len.to_be_bytes();
        let mut pieces: SmallVec<[IoSlice<'_>; 32]> = SmallVec::new();
        pieces.extend([IoSlice::new(&prefix), IoSlice::new(packet.header)]);
        pieces.extend(packet.payload.iter().map(|buf| IoSlice::new(buf)));
        let count = send(peer, &pieces[..pieces.len().min(IOV_MAX)])?;
        let mut skip = count;
        for piece in pieces {
            let done = skip.min(piece.len());
            skip -= done;
            self.rest.extend_from_slice(&piece[done..]);
        }
        Ok(())
    }
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
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            result => result?,
        };
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
        stream.set_nonblocking(true)?;
        FrameStream::new(Peers::One, Some(stream))
    }

    fn new(peers: Peers, peer: Option<UnixStream>) -> io::Result<FrameStream> {
        let connects = Counter::new(u64::from(peer.is_some()));
        Ok(FrameStream {
            peers,
            peer: Mutex::new(peer.map(Arc::new)),
            input: Mutex::default(),
            output: Mutex::default(),
            unfinished: AtomicBool::new(false),
            buffered: AtomicBool::new(false),
            waker: Waker::new()?,
            counters: Counters {
                connects,
                ..Counters::default()
            },
        })
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
                Peers::Connected(path) => UnixStream::connect(path),
                Peers::One => return None,
            };
            let next = next
                .and_then(|next| next.set_nonblocking(true).map(|()| next))
                .ok()?;
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
        self.counters.disconnects.add(1);
        *self.input.lock() = Input::default();
        self.output.lock().clear();
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
                        checksum: Checksum::Complete,
                        segment: None,
                    });
                    count += 1;
                    continue;
                }
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

    /// Writes the rest of a frame, if there is one.
    fn finish(&self, peer: &UnixStream) {
        let mut output = self.output.lock();
        // The receiving thread finds out that the peer is gone.
        let left = !output.finish(peer).unwrap_or(true);
        self.unfinished.store(left, Ordering::Release);
    }
}

/// Whether no process listens at a socket file.
fn is_stale(path: &Path) -> bool {
    let error = UnixStream::connect(path).err();
    error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

impl Link for FrameStream {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(MAX_FRAME)
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        let Some(peer) = self.peer() else {
            return match self.peers {
                Peers::One => Err(ReceiveError::Gone(self.gone())),
                _ => Ok(0),
            };
        };
        let (count, connected) = self.read(&peer, frames, max);
        if !connected {
            self.disconnect(&peer);
        }
        Ok(count)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        if packet.len() > MAX_FRAME || packet.len() < HEADER || packet.segment.is_some() {
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

    fn wake(&self) {
        self.waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn limit() -> Option<Instant> {
        Some(SystemClock.now() + Duration::from_secs(20))
    }

    fn frame(bytes: &[u8]) -> Packet<'_> {
        Packet::new(bytes, &[], HEADER)
    }

    /// Receives `count` frames.
    fn receive(link: &FrameStream, count: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let deadline = limit();
        while frames.len() < count {
            link.wait(Interest::READABLE, deadline).unwrap();
            assert!(
                Some(SystemClock.now()) < deadline,
                "{} of {count} frames",
                frames.len()
            );
            link.receive(&mut frames, 3).unwrap();
        }
        frames.iter().map(Frame::to_vec).collect()
    }

    fn pair() -> (FrameStream, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (FrameStream::from_stream(near).unwrap(), far)
    }

    fn encoded(frames: &[Vec<u8>]) -> Vec<u8> {
        let one = |frame: &Vec<u8>| {
            [
                &u32::try_from(frame.len()).unwrap().to_be_bytes()[..],
                frame,
            ]
            .concat()
        };
        frames.iter().flat_map(one).collect()
    }

    fn of_lengths(lens: &[usize]) -> Vec<Vec<u8>> {
        let bytes = |len: &usize| {
            (0..*len)
                .map(|at| u8::try_from(at * 7 % 251).unwrap())
                .collect()
        };
        lens.iter().map(bytes).collect()
    }

    #[test]
    fn frames_arrive_whole_however_the_stream_is_cut() {
        let sent = of_lengths(&[60, 1, 1514, MAX_FRAME, 14, 40_000, 60, 60, 60, 60, 9014]);
        for cut in [1, 1000, 70_000, usize::MAX] {
            let (near, mut far) = pair();
            let sent = if cut == 1 { &sent[..3] } else { &sent };
            let bytes = encoded(sent);
            std::thread::scope(move |scope| {
                scope.spawn(move || {
                    bytes
                        .chunks(cut)
                        .for_each(|part| far.write_all(part).unwrap())
                });
                assert!(receive(&near, sent.len()) == *sent, "pieces of {cut}");
            });
        }
    }

    #[test]
    fn a_frame_that_is_written_in_part_is_completed_first() {
        let (near, mut far) = pair();
        let sent = of_lengths(&[MAX_FRAME; 40]);
        let mut count = 0;
        while near.transmit(&frame(&sent[count])).is_ok() {
            count += 1;
        }
        assert!((1..40).contains(&count), "{count} frames fill the socket");
        assert!(matches!(
            near.transmit(&frame(&sent[0])),
            Err(TransmitError::Full)
        ));
        let expected = encoded(&sent[..count]);
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut bytes = vec![0; expected.len()];
                far.read_exact(&mut bytes).unwrap();
                (bytes == expected, far)
            });
            // No further frame is sent: the waiting thread writes the rest.
            let deadline = limit();
            while near.unfinished.load(Ordering::Acquire) {
                near.wait(Interest::READABLE, deadline).unwrap();
                assert!(Some(SystemClock.now()) < deadline);
            }
            assert!(reader.join().unwrap().0);
        });
    }

    #[test]
    fn lengths_of_no_frame_end_the_connection() {
        for len in [0, MAX_FRAME + 1, 0xffff_ffff] {
            let (near, mut far) = pair();
            far.write_all(&encoded(&of_lengths(&[60]))).unwrap();
            far.write_all(&u32::try_from(len).unwrap().to_be_bytes())
                .unwrap();
            assert_eq!(receive(&near, 1).len(), 1);
            let mut frames = Vec::new();
            while near.receive(&mut frames, 9).is_ok() {}
            assert!(frames.is_empty());
            assert_eq!(
                near.stats(),
                StreamStats {
                    connects: 1,
                    disconnects: 1,
                    bad_lengths: 1
                }
            );
        }
    }

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Place {
            let name = format!("sosplice-{}-{name}.sock", std::process::id());
            Place(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).ok();
        }
    }

    #[test]
    fn the_next_peer_is_accepted_when_one_is_gone() {
        let place = Place::new("accept");
        drop(UnixListener::bind(&place.0).unwrap());
        let link = FrameStream::listen(&place.0).expect("a file without a listener is replaced");
        assert!(matches!(
            link.transmit(&frame(&[0; 60])),
            Err(TransmitError::Refused(_))
        ));
        for _ in 0..3 {
            let mut far = UnixStream::connect(&place.0).unwrap();
            let sent = of_lengths(&[60, 100]);
            far.write_all(&encoded(&sent)).unwrap();
            // A part of a frame is not continued by the next peer.
            far.write_all(&[0, 0, 1, 0, 7]).unwrap();
            assert!(receive(&link, 2) == sent);
            link.transmit(&frame(&sent[0])).unwrap();
            let mut bytes = [0; 64];
            far.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes[..], encoded(&sent[..1]));
            drop(far);
            while link.is_connected() {
                link.wait(Interest::READABLE, limit()).unwrap();
                link.receive(&mut Vec::new(), 1).unwrap();
            }
        }
        assert_eq!(
            link.stats(),
            StreamStats {
                connects: 3,
                disconnects: 3,
                bad_lengths: 0
            }
        );
    }

    #[test]
    fn a_peer_that_listens_again_is_connected_again() {
        let place = Place::new("connect");
        let link = FrameStream::connect(&place.0).unwrap();
        link.wait(Interest::READABLE, Some(SystemClock.now()))
            .unwrap();
        assert!(!link.is_connected(), "no socket is there yet");
        for round in 0..2 {
            let listener = UnixListener::bind(&place.0).unwrap();
            std::thread::scope(|scope| {
                let sent = of_lengths(&[60 + round]);
                let bytes = encoded(&sent);
                scope.spawn(move || listener.accept().unwrap().0.write_all(&bytes).unwrap());
                assert!(receive(&link, 1) == sent);
            });
            std::fs::remove_file(&place.0).unwrap();
            while link.is_connected() {
                link.wait(Interest::READABLE, limit()).unwrap();
                link.receive(&mut Vec::new(), 1).unwrap();
            }
        }
        assert_eq!(link.stats().connects, 2);
    }

    #[test]
    fn a_socket_in_use_is_not_replaced() {
        let place = Place::new("in-use");
        let _link = FrameStream::listen(&place.0).unwrap();
        let error = FrameStream::listen(&place.0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn wake_ends_a_wait_without_a_peer() {
        let place = Place::new("wake");
        let link = FrameStream::listen(&place.0).unwrap();
        link.wake();
        link.wait(Interest::READABLE, limit()).unwrap();
    }
}
