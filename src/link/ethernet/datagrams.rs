//! Frames over a Unix datagram socket.

use super::frame::{HEADER, MAX_FRAME};
use super::socket_file;
use crate::buf::{Buf, FrameMut};
use crate::link::waker::Waker;
use crate::link::{
    Capabilities, Checksum, Frame, Interest, Link, Packet, ReceiveError, TransmitError, poll_flags,
    poll_until, retry,
};
use crate::lock::{LEAF, Mutex};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrUnix};
use smallvec::SmallVec;
use std::io::{self, IoSlice};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Bytes that the kernel is asked to hold for a peer. The system may have a lower limit.
const SEND_BUFFER: usize = 1 << 20;
/// A frame up to this many bytes is copied out of the memory that it was read into.
const COPY_UP_TO: usize = 2048;
/// Maximum number of pieces of one message.
const IOV_MAX: usize = 1024;
/// Bytes of `sockaddr_un`.
const LONGEST: u32 = 110;

/// A transport of frames over a Unix datagram socket, one frame in each datagram, as QEMU (`-netdev dgram`) and
/// vfkit have it.
///
/// Frames are sent to the peer whose frame came last, or to the path that was
/// [given](Self::bind_with_peer). Those to a peer that is not there are refused as lost; when it returns, they
/// arrive again. A datagram longer than 65,549 bytes is cut off at this length.
///
/// The kernel queues about ten datagrams for a peer (`net.unix.max_dgram_qlen`). Whether there is room again is
/// reported by a second socket, connected to the peer: this one stays as it is, since a connected socket receives from
/// no other peer, nor from the same one after a restart. A stream socket ([`FrameStream`](super::FrameStream)) is
/// faster.
///
/// Locks: the peer's path, and the second socket, both leaves.
///
/// ```
/// use sosplice::link::ethernet::FrameDatagrams;
/// use sosplice::link::{Interest, Link};
/// let path = std::env::temp_dir().join(format!("frames-{}.sock", std::process::id()));
/// let link = FrameDatagrams::bind(&path)?;
/// std::os::unix::net::UnixDatagram::unbound()?.send_to(&[7; 60], &path)?;
/// link.wait(Interest::READABLE, None)?;
/// assert_eq!(link.receive(&mut Vec::new(), 16)?, 1);
/// # std::fs::remove_file(path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FrameDatagrams {
    socket: UnixDatagram,
    peer: Mutex<Option<Arc<Path>>, LEAF>,
    /// An attempt to send found the peer's queue, or this socket's own buffer, full.
    full: AtomicBool,
    /// Writable when the peer's queue has room. `None` while it has, and if only `socket` is full.
    queue: Mutex<Option<Arc<UnixDatagram>>, LEAF>,
    /// Readable when a frame can be received; also, if a packet found no room, when there is room again.
    ready: OwnedFd,
    waker: Waker,
    /// Of received frames.
    checksum: Checksum,
}

impl FrameDatagrams {
    /// A socket at a path, whose peer is learned from its first frame. A socket file that no process uses any more
    /// is replaced.
    ///
    /// # Errors
    /// If the socket cannot be made, e.g. because another process has one at the path.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<FrameDatagrams> {
        let path = path.as_ref();
        let socket = socket_file::bind(
            path,
            |path| UnixDatagram::bind(path),
            |path| connected(path).map(drop),
        )?;
        FrameDatagrams::from_socket(socket)
    }

    /// The same, with a peer at another path, which need not be there yet.
    ///
    /// # Errors
    /// See [`bind`](Self::bind).
    pub fn bind_with_peer(
        path: impl AsRef<Path>,
        peer: impl Into<PathBuf>,
    ) -> io::Result<FrameDatagrams> {
        let link = FrameDatagrams::bind(path)?;
        *link.peer.lock() = Some(peer.into().into());
        Ok(link)
    }

    /// A bound socket that is not connected.
    ///
    /// # Errors
    /// If the system has no descriptors left.
    pub fn from_socket(socket: UnixDatagram) -> io::Result<FrameDatagrams> {
        socket.set_nonblocking(true)?;
        rustix::net::sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER).ok();
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&ready, &socket, EventData::new_u64(0), EventFlags::IN)?;
        Ok(FrameDatagrams {
            socket,
            peer: Mutex::new(None),
            full: AtomicBool::new(false),
            queue: Mutex::new(None),
            ready,
            waker: Waker::new()?,
            checksum: Checksum::Complete,
        })
    }

    /// Checksums in received frames count as verified: see
    /// [`FrameStream::trust_checksums`](super::FrameStream::trust_checksums).
    #[must_use]
    pub fn trust_checksums(mut self) -> FrameDatagrams {
        self.checksum = Checksum::Verified;
        self
    }

    /// The peer's path, once it is known.
    pub fn peer(&self) -> Option<PathBuf> {
        self.peer.lock().as_deref().map(Path::to_owned)
    }

    /// Reads one frame, or `None` if there is none now. `spare` is the memory to read into, reused until a frame
    /// keeps it.
    fn read(&self, spare: &mut Option<FrameMut>) -> Result<Option<Buf>, Errno> {
        let frame = spare.get_or_insert_with(|| FrameMut::with_capacity(MAX_FRAME));
        let bytes = frame.bytes_mut();
        bytes.clear();
        let received = retry(|| {
            let room = spare_capacity(bytes);
            rustix::net::recvfrom(&self.socket, room, RecvFlags::empty())
        });
        let from = match received {
            Ok((_, _, from)) => from.and_then(|from| {
                // One with the longest path has a zero behind it, for which `sockaddr_un` has no room; rustix 1.1.6
                // panics for it.
                let fits = from.addr_len() <= LONGEST;
                fits.then(|| SocketAddrUnix::try_from(from).ok())?
            }),
            Err(Errno::AGAIN) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        bytes.truncate(MAX_FRAME);
        if let Some(path) = from.as_ref().and_then(SocketAddrUnix::path_bytes) {
            self.learn(Path::new(std::ffi::OsStr::from_bytes(path)));
        }
        if bytes.len() <= COPY_UP_TO {
            return Ok(Some(Buf::copy_of(bytes)));
        }
        Ok(spare.take().map(FrameMut::freeze))
    }

    fn learn(&self, path: &Path) {
        let mut peer = self.peer.lock();
        if peer.as_deref() != Some(path) {
            *peer = Some(path.into());
        }
    }

    /// Sends one frame.
    fn send(&self, peer: &Path, packet: &Packet<'_>) -> Result<(), Errno> {
        let together;
        let mut pieces: SmallVec<[IoSlice<'_>; 32]> = SmallVec::new();
        if packet.payload.len() < IOV_MAX {
            pieces.push(IoSlice::new(packet.header));
            pieces.extend(packet.payload.iter().map(|buf| IoSlice::new(buf)));
        } else {
            together = packet.to_vec();
            pieces.push(IoSlice::new(&together));
        }
        let (to, flags) = (
            SocketAddrUnix::new(peer)?,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        );
        retry(|| {
            let mut nothing = SendAncillaryBuffer::default();
            rustix::net::sendmsg_addr(&self.socket, &to, &pieces, &mut nothing, flags)
        })
        .map(drop)
    }

    /// A packet found no room: `wait`, and the descriptor, are to report it.
    fn await_room(&self, peer: &Path) {
        // A peer that is connected to this socket lets no other one connect, and has no limit of its own.
        let queue = match has_room(&self.socket) {
            true => connected(peer).ok().map(Arc::new),
            false => None,
        };
        let mut present = self.queue.lock();
        // The former one leaves the set when it is closed.
        match &queue {
            Some(queue) => {
                let flags = EventFlags::OUT;
                epoll::add(&self.ready, queue, EventData::new_u64(0), flags).ok();
            }
            None => self.watch(EventFlags::IN | EventFlags::OUT),
        }
        *present = queue;
        self.full.store(true, Ordering::Release);
    }

    /// The receiving thread is awake: connections that wait for room try again after this, and report if they find
    /// none.
    fn look_for_room(&self) {
        let mut queue = self.queue.lock();
        if self.full.swap(false, Ordering::AcqRel) {
            *queue = None;
            self.watch(EventFlags::IN);
        }
    }

    /// The events of the socket.
    fn watch(&self, events: EventFlags) {
        epoll::modify(&self.ready, &self.socket, EventData::new_u64(0), events).ok();
    }
}

/// A socket that is connected to another one.
fn connected(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    Ok(socket)
}

/// Whether a socket is writable.
fn has_room(socket: &UnixDatagram) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::OUT)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|count| count > 0)
}

impl Link for FrameDatagrams {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(MAX_FRAME)
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        if self.full.load(Ordering::Acquire) {
            self.look_for_room();
        }
        let mut spare = None;
        for count in 0..max {
            match self.read(&mut spare) {
                Ok(Some(head)) => {
                    frames.push(Frame {
                        head,
                        rest: SmallVec::new(),
                        checksum: self.checksum,
                        segment: None,
                    });
                }
                Ok(None) => return Ok(count),
                Err(errno) => return Err(ReceiveError::Lost(errno.into())),
            }
        }
        Ok(max)
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
            let why = "the peer of the socket for frames is not known yet";
            return Err(TransmitError::Refused(io::Error::new(
                io::ErrorKind::NotConnected,
                why,
            )));
        };
        match self.send(&peer, packet) {
            Ok(()) => Ok(()),
            Err(Errno::AGAIN | Errno::NOBUFS) => {
                self.await_room(&peer);
                Err(TransmitError::Full)
            }
            Err(errno) => Err(TransmitError::Refused(errno.into())),
        }
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        let mut flags = poll_flags(interest);
        let wants_room = flags.contains(PollFlags::OUT);
        let queue = self.queue.lock().clone().filter(|_| wants_room);
        if queue.is_some() {
            flags.remove(PollFlags::OUT);
        }
        let mut fds: SmallVec<[PollFd<'_>; 3]> = SmallVec::new();
        fds.push(PollFd::new(&self.socket, flags));
        fds.push(PollFd::new(&self.waker.fd, PollFlags::IN));
        fds.extend(queue.iter().map(|queue| PollFd::new(queue, PollFlags::OUT)));
        if poll_until(&mut fds, deadline).is_ok() && fds[1].revents().contains(PollFlags::IN) {
            self.waker.clear();
        }
        Ok(())
    }

    fn wake(&self) {
        self.waker.wake();
    }

    fn descriptors(&self) -> Option<[BorrowedFd<'_>; 2]> {
        Some([self.ready.as_fd(), self.waker.fd.as_fd()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::ethernet::socket_file::Place;

    /// Whether the first descriptor is readable.
    fn is_ready(link: &FrameDatagrams) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(
            link.descriptors().unwrap()[0],
            PollFlags::IN,
        )];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    fn frame(bytes: &[u8]) -> Packet<'_> {
        Packet::new(bytes, &[], HEADER)
    }

    #[test]
    fn a_peer_that_restarts_is_reached_again() {
        let (here, there) = (Place::new("here"), Place::new("there"));
        drop(UnixDatagram::bind(&here.0).unwrap());
        let link = FrameDatagrams::bind(&here.0).expect("a file without a socket is replaced");
        assert!(
            FrameDatagrams::bind(&here.0).is_err(),
            "the socket is in use"
        );
        assert!(matches!(
            link.transmit(&frame(&[0; 60])),
            Err(TransmitError::Refused(_))
        ));
        for round in 0..3 {
            let peer = UnixDatagram::bind(&there.0).unwrap();
            peer.send_to(&[round; 60], &here.0).unwrap();
            let mut frames = Vec::new();
            assert_eq!(link.receive(&mut frames, 9).unwrap(), 1);
            assert_eq!(frames[0].to_vec(), [round; 60]);
            link.transmit(&frame(&[round; 70])).unwrap();
            let mut bytes = [0; 100];
            assert_eq!(peer.recv(&mut bytes).unwrap(), 70);
            drop(peer);
            std::fs::remove_file(&there.0).unwrap();
            assert!(matches!(
                link.transmit(&frame(&[0; 60])),
                Err(TransmitError::Refused(_))
            ));
        }
    }

    #[test]
    fn a_full_queue_reports_that_it_is_full() {
        let (here, there) = (Place::new("full-here"), Place::new("full-there"));
        let peer = UnixDatagram::bind(&there.0).unwrap();
        let link = FrameDatagrams::bind_with_peer(&here.0, &there.0).unwrap();
        let mut count = 0;
        while link.transmit(&frame(&[7; 1514])).is_ok() {
            count += 1;
        }
        assert!(matches!(
            link.transmit(&frame(&[7; 1514])),
            Err(TransmitError::Full)
        ));
        assert!(count > 0);
        assert!(has_room(&link.socket), "it is the peer that has none");
        assert!(!is_ready(&link));
        for _ in 0..count {
            peer.recv(&mut [0; 2000]).unwrap();
        }
        assert!(is_ready(&link));
        link.wait(Interest::BOTH, None).unwrap();
        link.receive(&mut Vec::new(), 9).unwrap();
        assert!(!is_ready(&link), "no packet waits any more");
        link.transmit(&frame(&[7; 1514])).unwrap();
    }

    #[test]
    fn a_peer_that_is_connected_to_this_socket_reports_room_by_this_socket() {
        let (here, there) = (Place::new("conn-here"), Place::new("conn-there"));
        let link = FrameDatagrams::bind(&here.0).unwrap();
        let peer = UnixDatagram::bind(&there.0).unwrap();
        peer.connect(&here.0).unwrap();
        peer.send(&[7; 60]).unwrap();
        link.receive(&mut Vec::new(), 9).unwrap();
        let mut count = 0;
        while link.transmit(&frame(&[7; MAX_FRAME])).is_ok() {
            count += 1;
        }
        assert!(!is_ready(&link));
        for _ in 0..count {
            peer.recv(&mut vec![0; MAX_FRAME]).unwrap();
        }
        assert!(is_ready(&link));
        link.wait(Interest::WRITABLE, None).unwrap();
        link.receive(&mut Vec::new(), 9).unwrap();
        link.transmit(&frame(&[7; 1514])).unwrap();
    }

    #[test]
    fn a_peer_with_the_longest_path_is_heard_and_not_known() {
        let here = Place::new("far");
        let link = FrameDatagrams::bind(&here.0).unwrap();
        let folder = here.0.with_extension("folder");
        std::fs::create_dir(&folder).unwrap();
        let mut path = folder.as_os_str().as_bytes().to_vec();
        path.push(b'/');
        path.resize(108, b'x');
        let kind = rustix::net::SocketType::DGRAM;
        let peer = rustix::net::socket(rustix::net::AddressFamily::UNIX, kind, None).unwrap();
        rustix::net::bind(&peer, &SocketAddrUnix::new(&path[..]).unwrap()).unwrap();
        UnixDatagram::from(peer).send_to(&[7; 60], &here.0).unwrap();
        assert_eq!(link.receive(&mut Vec::new(), 9).unwrap(), 1);
        assert_eq!(link.peer(), None);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_longest_frame_passes() {
        let (here, there) = (Place::new("long-here"), Place::new("long-there"));
        let far = FrameDatagrams::bind(&there.0).unwrap();
        let link = FrameDatagrams::bind_with_peer(&here.0, &there.0).unwrap();
        link.transmit(&frame(&[7; MAX_FRAME])).unwrap();
        let mut frames = Vec::new();
        assert_eq!(far.receive(&mut frames, 9).unwrap(), 1);
        assert_eq!(frames[0].len(), MAX_FRAME);
        assert!(link.transmit(&frame(&[7; MAX_FRAME + 1])).is_err());
    }
}
