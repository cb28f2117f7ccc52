//! Frames over a Unix datagram socket.

use super::frame::{HEADER, MAX_FRAME};
use crate::buf::{Buf, FrameMut};
use crate::clock::{Clock, SystemClock};
use crate::link::waker::Waker;
use crate::link::{
    Capabilities, Checksum, Frame, Interest, Link, Packet, ReceiveError, TransmitError, poll_flags,
    poll_until,
};
use crate::lock::{LEAF, Mutex};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use smallvec::SmallVec;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Time between attempts to send to a peer whose queue is full: `poll` does not report its room.
const RETRY: Duration = Duration::from_micros(200);

/// A transport of frames over a Unix datagram socket, one frame in each datagram, as QEMU (`-netdev dgram`) and
/// vfkit have it.
///
/// Frames are sent to the peer whose frame came last, or to the path that was
/// [given](Self::bind_with_peer). Those to a peer that is not there are refused as lost; when it returns, they
/// arrive again. A datagram longer than 65,549 bytes is cut off at this length.
///
/// The kernel queues about ten datagrams for a peer and does not report when there is room again, so a full queue
/// is tried every 200 µs. A stream socket ([`FrameStream`](super::FrameStream)) is faster.
///
/// Locks: the peer's path, a leaf.
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
    peer: Mutex<Option<PathBuf>, LEAF>,
    /// The last attempt to send found the peer's queue full.
    full: AtomicBool,
    waker: Waker,
}

impl FrameDatagrams {
    /// A socket at a path, whose peer is learned from its first frame. A socket file that no process uses any more
    /// is replaced.
    ///
    /// # Errors
    /// If the socket cannot be made, e.g. because another process has one at the path.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<FrameDatagrams> {
        let path = path.as_ref();
        let socket = match UnixDatagram::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
                std::fs::remove_file(path)?;
                UnixDatagram::bind(path)?
            }
            result => result?,
        };
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
        *link.peer.lock() = Some(peer.into());
        Ok(link)
    }

    /// A bound socket that is not connected.
    ///
    /// # Errors
    /// If the system has no descriptors left.
    pub fn from_socket(socket: UnixDatagram) -> io::Result<FrameDatagrams> {
        socket.set_nonblocking(true)?;
        Ok(FrameDatagrams {
            socket,
            peer: Mutex::new(None),
            full: AtomicBool::new(false),
            waker: Waker::new()?,
        })
    }

    /// The peer's path, once it is known.
    pub fn peer(&self) -> Option<PathBuf> {
        self.peer.lock().clone()
    }

    /// Reads one frame, or `None` if there is none now.
    fn read(&self, spare: &mut [u8]) -> io::Result<Option<Buf>> {
        let (len, from) = loop {
            match self.socket.recv_from(spare) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                result => break result?,
            }
        };
        if let Some(path) = from.as_pathname() {
            let mut peer = self.peer.lock();
            if peer.as_deref() != Some(path) {
                *peer = Some(path.to_owned());
            }
        }
        Ok(Some(Buf::copy_of(&spare[..len])))
    }
}

/// Whether no process has the socket of a socket file.
fn is_stale(path: &Path) -> bool {
    let connected = UnixDatagram::unbound().and_then(|socket| socket.connect(path));
    connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

impl Link for FrameDatagrams {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(MAX_FRAME)
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        let mut spare = FrameMut::with_capacity(MAX_FRAME);
        spare.bytes_mut().resize(MAX_FRAME, 0);
        for count in 0..max {
            match self.read(spare.bytes_mut()) {
                Ok(Some(head)) => {
                    frames.push(Frame {
                        head,
                        rest: SmallVec::new(),
                        checksum: Checksum::Complete,
                        segment: None,
                    });
                }
                Ok(None) => return Ok(count),
                Err(error) => return Err(ReceiveError::Lost(error)),
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
        let Some(peer) = self.peer() else {
            let why = "the peer of the socket for frames is not known yet";
            return Err(TransmitError::Refused(io::Error::new(
                io::ErrorKind::NotConnected,
                why,
            )));
        };
        let result = self.socket.send_to(&packet.to_vec(), peer);
        let full = |error: &io::Error| {
            let errno = Errno::from_io_error(error);
            matches!(errno, Some(Errno::AGAIN | Errno::NOBUFS | Errno::INTR))
        };
        let is_full = result.as_ref().is_err_and(full);
        self.full.store(is_full, Ordering::Release);
        match result {
            Ok(_) => Ok(()),
            Err(_) if is_full => Err(TransmitError::Full),
            Err(error) => Err(TransmitError::Refused(error)),
        }
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        let mut flags = poll_flags(interest);
        let mut deadline = deadline;
        if flags.contains(PollFlags::OUT) && self.full.load(Ordering::Acquire) {
            flags.remove(PollFlags::OUT);
            let retry = SystemClock.now() + RETRY;
            deadline = Some(deadline.map_or(retry, |at| at.min(retry)));
        }
        let mut fds = [
            PollFd::new(&self.socket, flags),
            PollFd::new(&self.waker.fd, PollFlags::IN),
        ];
        if poll_until(&mut fds, deadline).is_ok() && fds[1].revents().contains(PollFlags::IN) {
            self.waker.clear();
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

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Place {
            let name = format!("sosplice-{}-{name}.dgram", std::process::id());
            Place(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).ok();
        }
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
        // Returns soon although the socket is writable, and nothing arrives.
        link.wait(Interest::BOTH, None).unwrap();
        peer.recv(&mut [0; 2000]).unwrap();
        link.transmit(&frame(&[7; 1514])).unwrap();
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
