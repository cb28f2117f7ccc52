//! Frames of an Ethernet interface, by a packet socket.

mod open;
mod socket;

pub use open::{AfPacketBuilder, AfPacketError};

use super::frame::{HEADER, Mac};
use crate::buf::{Buf, FrameMut, Gather, MAX_FRAME};
use crate::clock::{Clock, SystemClock};
use crate::counter::Counter;
use crate::link::place::Place;
use crate::link::virtio::{self, Content};
use crate::link::waker::Waker;
use crate::link::{
    Capabilities, Checksum, Frame, Interest, Link, Packet, ReceiveError, TransmitError, poll_flags,
    poll_until,
};
use crate::lock::{LEAF, Mutex};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use socket::Tag;
use std::io::{self, IoSliceMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Room in front of a received frame for the tag that the kernel has taken out.
const TAG: usize = 4;
/// A frame up to this many bytes is copied out of the 64 KiB that it was read into.
const COPY_UP_TO: usize = 2048;
/// Time between looks whether an interface that is down was deleted: the kernel does not report that.
const DOWN: Duration = Duration::from_secs(1);
/// Time between attempts to send while the interface's queue is full: `poll` does not report its room.
const RETRY: Duration = Duration::from_micros(200);

/// A transport of frames over an Ethernet interface of Linux (a network card, a veth, a macvlan, a bridge), by an
/// `AF_PACKET` socket: see `packet(7)`, from which it has its name, since a packet is one of IP in this crate.
///
/// Each frame is one `recvmsg` or one gathering `writev`, with the virtio-net header (`PACKET_VNET_HDR`): super-frames of
/// up to 64 KiB cross whole and checksums are left to the kernel, in both directions. Frames are sent through the
/// interface's queueing discipline.
///
/// * **The kernel receives the same frames.** If the interface has an address, its TCP answers segments of the stack
///   behind this transport with resets, and its ARP competes. So give the interface no address and no
///   forwarding (`ip addr flush dev NAME`, `sysctl net.ipv6.conf.NAME.disable_ipv6=1`), or give the stack an interface
///   of its own: `ip link add link eth0 name NAME type macvlan mode bridge`, or one end of a veth whose other end is a
///   port of a bridge. Frames that the host sends by the interface are not received.
/// * **The host behind the transport** has the [interface's hardware address](Self::mac), or another one that
///   is [told to the interface](AfPacketBuilder::mac). Frames to groups are received from all groups.
/// * **Tags of virtual LANs** are taken out of frames by the kernel and put back here, so that a tagged frame does not
///   look like one without; [`Vlan`](super::Vlan) says what becomes of it.
/// * **While the interface is down** frames are refused as lost ([`AfPacketStats::downs`] counts the times), and when it
///   is up again the link works again. When it is deleted, or moved to another namespace, the link is gone; if it was
///   down before, that is found out within a second, or with the next frame that is sent.
/// * **What does not fit** the memory for received frames is dropped by the kernel and counted
///   ([`AfPacketStats::dropped`]); the link is [full](TransmitError::Full) while the memory for frames to send is, or
///   the interface's queue (`ENOBUFS`).
/// * **Super-frames beyond 64 KiB** (BIG TCP) do not fit: they are lost and counted as
///   [errors](ReceiveError::Lost), and TCP repeats them. Leave `gso_max_size` and `gro_max_size` of the interface, and
///   of the other end of a veth, at their default.
///
/// A change of the interface's MTU is not noticed: open it again. CAP_NET_RAW is needed, in the interface's namespace.
///
/// Locks: the count of dropped frames, a leaf. All other calls are system calls.
///
/// ```no_run
/// use sosplice::Stack;
/// use sosplice::link::ethernet::{AfPacket, Edge, EdgeConfig};
/// let port = AfPacket::open("veth0")?;
/// let config = EdgeConfig::new("10.0.2.1/24".parse()?, "10.0.2.15".parse()?).mac(port.mac());
/// let stack = Stack::builder(Edge::new(port, config)?).address("10.0.2.1/24".parse()?).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct AfPacket {
    fd: OwnedFd,
    place: Place,
    mac: Mac,
    capabilities: Capabilities,
    /// The interface was down at the last call that found out.
    down: AtomicBool,
    /// The last frame found the interface's queue full.
    no_memory: AtomicBool,
    /// Ends `wait`.
    waker: Waker,
    counters: Counters,
    /// Frames that the kernel has dropped: reading its counter clears it.
    dropped: Mutex<Counter, LEAF>,
}

#[derive(Debug, Default)]
struct Counters {
    downs: Counter,
    tagged: Counter,
}

/// Counters of an [`AfPacket`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AfPacketStats {
    /// Frames that the kernel has dropped because the memory for received ones was full.
    pub dropped: u64,
    /// Received frames whose tag of a virtual LAN was put back.
    pub tagged: u64,
    /// Times that the interface was found to be down.
    pub downs: u64,
}

impl AfPacket {
    /// Opens a packet socket at the interface `name` in the network namespace of the calling thread, with offloads.
    ///
    /// # Errors
    /// See [`AfPacketError`].
    pub fn open(name: &str) -> Result<AfPacket, AfPacketError> {
        AfPacket::builder(name).build()
    }

    /// Settings to open a packet socket at the interface `name` with.
    ///
    /// ```no_run
    /// use sosplice::link::ethernet::AfPacket;
    /// let port = AfPacket::builder("eth0").netns("lan").mac("02:00:00:00:00:07".parse()?).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn builder(name: &str) -> AfPacketBuilder {
        AfPacketBuilder::new(name)
    }

    /// The interface's name and namespace.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The interface's hardware address, when the socket was opened.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Counters.
    pub fn stats(&self) -> AfPacketStats {
        let dropped = self.dropped.lock();
        dropped.add(socket::dropped(&self.fd));
        AfPacketStats {
            dropped: dropped.get(),
            tagged: self.counters.tagged.get(),
            downs: self.counters.downs.get(),
        }
    }

    /// A system error, with the name of the interface.
    fn error(&self, errno: Errno) -> io::Error {
        let error = io::Error::from(errno);
        io::Error::new(error.kind(), format!("{}: {error}", self.place))
    }

    fn deleted(&self) -> io::Error {
        let why = format!("{}: the interface was deleted", self.place);
        io::Error::new(Errno::NODEV.kind(), why)
    }

    /// The interface is down, or was deleted.
    fn went_down(&self) -> io::Result<()> {
        if !self.down.swap(true, Ordering::AcqRel) {
            self.counters.downs.add(1);
        }
        match socket::is_deleted(&self.fd) {
            true => Err(self.deleted()),
            false => Ok(()),
        }
    }

    /// Reads one frame, or `None` if there is none now. `spare` is the buffer to read into, reused until a frame
    /// keeps it.
    fn read(&self, spare: &mut Option<FrameMut>) -> Result<Option<Frame>, ReceiveError> {
        let room = spare.get_or_insert_with(|| FrameMut::of_any_bytes(MAX_FRAME));
        let mut header = [0; virtio::HEADER];
        let bytes = room.bytes_mut();
        let (len, tag) = loop {
            let mut buffers = [
                IoSliceMut::new(&mut header),
                IoSliceMut::new(&mut bytes[TAG..]),
            ];
            match socket::receive(&self.fd, &mut buffers) {
                Ok(received) => break received,
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return Ok(None),
                // Reported once; frames that have arrived before can still be read.
                Err(nix::Error::ENETDOWN) => self.went_down().map_err(ReceiveError::Gone)?,
                Err(errno) => {
                    let errno = Errno::from_raw_os_error(errno as i32);
                    return Err(ReceiveError::Lost(self.error(errno)));
                }
            }
        };
        let Some(len) = len.checked_sub(virtio::HEADER) else {
            return Err(ReceiveError::Lost(self.error(Errno::MSGSIZE)));
        };
        self.down.store(false, Ordering::Release);
        let (mut checksum, segment) = virtio::described(&header);
        let mut start = TAG;
        if let Some(tag) = tag.filter(|_| len >= HEADER) {
            put_back(bytes, tag);
            self.counters.tagged.add(1);
            start = 0;
            checksum = later(checksum);
        }
        let range = start..TAG + len;
        let head = if range.len() <= COPY_UP_TO {
            Buf::copy_of(&bytes[range])
        } else {
            let whole = spare.take().map(FrameMut::freeze);
            whole.map_or_else(|| Buf::copy_of(&[]), |buf| buf.slice(range))
        };
        Ok(Some(Frame {
            head,
            rest: Gather::new(),
            checksum,
            segment,
        }))
    }
}

/// Moves the addresses of a frame to the front, and a tag behind them.
fn put_back(bytes: &mut [u8], (kind, value): Tag) {
    const ADDRESSES: usize = 12;
    bytes.copy_within(TAG..TAG + ADDRESSES, 0);
    bytes[ADDRESSES..ADDRESSES + 2].copy_from_slice(&kind.to_be_bytes());
    bytes[ADDRESSES + 2..ADDRESSES + TAG].copy_from_slice(&value.to_be_bytes());
}

/// The state of the checksum of a frame that has got a tag.
fn later(checksum: Checksum) -> Checksum {
    match checksum {
        Checksum::Partial { start, offset } => Checksum::Partial {
            start: start.saturating_add(4),
            offset,
        },
        other => other,
    }
}

impl Link for AfPacket {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        let mut spare = None;
        for count in 0..max {
            match self.read(&mut spare) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) if count == 0 && self.down.load(Ordering::Acquire) => {
                    self.went_down().map_err(ReceiveError::Gone)?;
                    return Ok(0);
                }
                Ok(None) => return Ok(count),
                Err(error) => return Err(error),
            }
        }
        Ok(max)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        let header =
            virtio::header(packet, &self.capabilities, Content::Frames).map_err(|why| {
                TransmitError::Refused(io::Error::new(io::ErrorKind::InvalidInput, why))
            })?;
        let result = virtio::write(&self.fd, &header, packet);
        let no_memory = result == Err(Errno::NOBUFS);
        self.no_memory.store(no_memory, Ordering::Release);
        match result {
            Ok(_) => {
                self.down.store(false, Ordering::Release);
                Ok(())
            }
            Err(Errno::AGAIN | Errno::NOBUFS) => Err(TransmitError::Full),
            Err(errno @ (Errno::NETDOWN | Errno::NXIO | Errno::NODEV)) => {
                self.went_down().map_err(TransmitError::Gone)?;
                // There is a deadline now.
                self.wake();
                Err(TransmitError::Refused(self.error(errno)))
            }
            Err(errno) => Err(TransmitError::Refused(self.error(errno))),
        }
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        let mut flags = poll_flags(interest);
        let mut deadline = deadline;
        if flags.contains(PollFlags::OUT) && self.no_memory.load(Ordering::Acquire) {
            flags.remove(PollFlags::OUT);
            let retry = SystemClock.now() + RETRY;
            deadline = Some(deadline.map_or(retry, |at| at.min(retry)));
        }
        let mut fds = [
            PollFd::new(&self.fd, flags),
            PollFd::new(&self.waker.fd, PollFlags::IN),
        ];
        // E.g. out of memory, which is no error of the socket. The caller receives, and waits again.
        if poll_until(&mut fds, deadline).is_err() {
            return Ok(());
        }
        if fds[1].revents().contains(PollFlags::IN) {
            self.waker.clear();
        }
        if fds[0].revents().contains(PollFlags::ERR) {
            // Taken here, since a caller that does not receive would not sleep any more.
            let down = rustix::net::sockopt::socket_error(&self.fd);
            if down == Ok(Err(Errno::NETDOWN)) {
                self.went_down()?;
            }
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        let is_down = self.down.load(Ordering::Acquire);
        is_down.then(|| SystemClock.now() + DOWN)
    }

    fn wake(&self) {
        self.waker.wake();
    }

    fn descriptors(&self) -> Option<[BorrowedFd<'_>; 2]> {
        Some([self.fd.as_fd(), self.waker.fd.as_fd()])
    }
}

impl AsFd for AfPacket {
    /// The socket, to be polled along with other files.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_put_back_where_it_was() {
        let mut bytes = [
            0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 8, 0, 0x45,
        ];
        put_back(&mut bytes, (0x8100, 0x2007));
        assert_eq!(bytes[..12], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(bytes[12..], [0x81, 0, 0x20, 7, 8, 0, 0x45]);
        assert_eq!(
            later(Checksum::partial_tcp(34)),
            Checksum::Partial {
                start: 38,
                offset: 16
            }
        );
        assert_eq!(later(Checksum::Verified), Checksum::Verified);
    }
}
