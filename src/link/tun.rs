//! A TUN device of Linux, with the virtio-net header.
//!
//! * [`Tun`] is the open device. Super-frames of up to 64 KiB cross it whole in both directions and
//!   checksums are left to the kernel, so at MTU 1500 its throughput is several times higher. Every
//!   frame is one `read`, every packet one gathering `writev`.
//! * [`Builder`] opens it, in a named network namespace if asked; [`OpenError`] names the obstacle and
//!   its remedy.
//!
//! The administrator creates the device: `ip tuntap add tun0 mode tun`, an address, `ip link set tun0
//! up`. A longer queue (`ip link set tun0 txqueuelen 10000`) keeps the kernel from dropping packets of
//! bursts.
//!
//! **Several queues** ([`Builder::queues`]), for as many receiving threads
//! ([`Stack::with_queues`](crate::Stack::with_queues)): the device is created with `ip tuntap add tun0
//! mode tun multi_queue`, and opened once for each queue. The kernel sends the packets of a connection
//! to the queue that last sent a packet of it; for a connection that it does not know, or that has sent
//! nothing for three seconds, it selects a queue by a hash. It records the queue after it has answered,
//! so a SYN|ACK may arrive on any queue. Later packets arrive on the connection's home queue
//! ([`TcpStream::queue`](crate::TcpStream::queue)). The result of the hash is not known in advance
//! ([`Link::steer`] returns `None`).
//!
//! While the interface is down no packets arrive, and sending fails with EIO
//! ([`TransmitError::Refused`]). When it is deleted, reads and writes fail with EBADFD or ENODEV and
//! `poll` reports an error (the link is gone). Any other error loses one packet
//! ([`ReceiveError::Lost`], [`TransmitError::Refused`]).
//!
//! **Offload is a property of the device**, not of an open descriptor, and so is the length of the
//! virtio-net header. A device that was created with `ip tuntap` outlives its users and keeps the
//! settings of the last one. So the last of the queues that were opened together restores the former
//! settings, unless another program has changed them meanwhile (the header length only if no other
//! program has a queue open). A process that is killed cannot restore them: checksum and segmentation
//! offload stay on (`ethtool -k` shows them), and a program that opens the device without a virtio-net
//! header then gets packets without checksums. [`Tun`] is not affected, since it makes its settings at
//! open, with and without [`offload`](Builder::offload); for other programs use `ethtool -K tun0 tx off
//! tso off`, or delete the device and create it again.
//!
//! **Queues of one device share these settings**, also between programs. If another program has a queue
//! open, a new queue gets that program's flags, so opening checks them and fails without a change if
//! they do not fit ([`OpenError::OtherSettings`]). Offload is different: opening sets it for all
//! queues, also those of other programs; each packet's header describes its offloads. Another program
//! can change the settings later. A change of offloads costs speed only. After a change of the header
//! length received packets count as lost and sent packets are refused, until the length is restored.
//! Packets sent between the change and the next received packet are lost too, since the kernel finds no
//! IP header in its place.
//!
//! **Super-frames** are at most 65,212 bytes long ([`Builder::super_frame`]): that leaves room for link
//! headers, VLAN tags and tunnels where the kernel forwards them, up to 65,535 bytes in all. The kernel
//! cuts larger ones into single packets in software: measured behind a veth, 674,000 packets for a
//! gigabyte instead of 18,000, with 3 times the CPU time.
//!
//! **A descriptor keeps its network namespace alive**: after `ip netns del` the devices in it exist and
//! carry packets until the last `Tun` in it is dropped, without an error.
//!
//! Locks: none. All calls are system calls; one `Tun` may be shared by any number of sending threads.

mod ioctl;
mod linkinfo;
mod open;
mod settings;

pub use open::{Builder, Difference, OpenError, Place};

use super::{
    Capabilities, Checksum, Frame, Interest, Link, Packet, ReceiveError, TransmitError, poll_flags,
    poll_until, retry,
};
use crate::buf::{Buf, FrameMut, Gather, MAX_FRAME};
use crate::link::waker::Waker;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use settings::Settings;
use smallvec::SmallVec;
use std::io::{self, IoSlice};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The header in front of each packet, `struct virtio_net_hdr`, fields in native order.
const HEADER: usize = 10;

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
/// Datagrams of UDP (USO).
const GSO_UDP: u8 = 5;
/// A flag in addition: segments have ECN's CWR flag.
const GSO_ECN: u8 = 0x80;

/// Maximum number of pieces of one `writev`.
const IOV_MAX: usize = 1024;

/// A packet up to this many bytes is copied out of the 64 KiB frame that it was read into.
const COPY_UP_TO: usize = 2048;

/// An open TUN device. Dropping it detaches from the interface, which continues to exist.
///
/// ```no_run
/// use sosplice::link::{Interest, Link, tun::Tun};
/// let tun = Tun::open("tun0")?;
/// let mut frames = Vec::new();
/// loop {
///     tun.wait(Interest::READABLE, None)?;
///     tun.receive(&mut frames, 64)?;
///     for frame in frames.drain(..) {
///         println!("{} bytes", frame.len());
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    place: Place,
    capabilities: Capabilities,
    /// `Some` until it is dropped.
    settings: Option<Arc<Settings>>,
    /// Another process has changed the header length: nothing can be read or written until it is
    /// restored.
    foreign_header: AtomicBool,
    /// Ends `wait`.
    waker: Waker,
}

impl Tun {
    /// Opens the existing TUN `name` in the network namespace of the calling thread, with offloads.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(name: &str) -> Result<Tun, OpenError> {
        Tun::builder(name).build()
    }

    /// Settings to open the TUN `name` with.
    ///
    /// ```no_run
    /// use sosplice::link::tun::Tun;
    /// let tun = Tun::builder("tun0").netns("client").offload(false).build()?;
    /// # Ok::<(), sosplice::link::tun::OpenError>(())
    /// ```
    pub fn builder(name: &str) -> Builder {
        Builder::new(name)
    }

    /// The device's name and namespace.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// A system error, with the name of this device.
    fn error(&self, errno: Errno) -> io::Error {
        let error = io::Error::from(errno);
        let why = match is_gone(errno) {
            true => format!("{}: the device was deleted ({error})", self.place),
            false => format!("{}: {error}", self.place),
        };
        io::Error::new(error.kind(), why)
    }

    /// Reads one packet, or `None` if there is none now. `spare` is the buffer to read into, reused
    /// until a frame keeps it.
    fn read(&self, spare: &mut Option<FrameMut>) -> Result<Option<Frame>, ReceiveError> {
        let frame = spare.get_or_insert_with(|| FrameMut::with_capacity(MAX_FRAME));
        let bytes = frame.bytes_mut();
        bytes.clear();
        // After a longer header some kernels leave stale bytes, which might look like a packet.
        bytes.resize(HEADER + 1, 0);
        bytes.clear();
        let count = match retry(|| rustix::io::read(&self.fd, spare_capacity(bytes))) {
            Ok(count) => count,
            Err(Errno::AGAIN) => return Ok(None),
            Err(errno) if is_gone(errno) => return Err(ReceiveError::Gone(self.error(errno))),
            Err(errno) => return Err(ReceiveError::Lost(self.error(errno))),
        };
        let Some((header, packet)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(ReceiveError::Lost(self.error(Errno::MSGSIZE)));
        };
        // After a header of another length there is no IP header.
        if !packet
            .first()
            .is_some_and(|byte| matches!(byte >> 4, 4 | 6))
        {
            self.check_header().map_err(ReceiveError::Lost)?;
        }
        let (checksum, segment) = described(header);
        let head = if count <= HEADER + COPY_UP_TO {
            Buf::copy_of(packet)
        } else {
            let whole = spare.take().map(FrameMut::freeze);
            whole.map_or_else(|| Buf::copy_of(&[]), |buf| buf.slice(HEADER..buf.len()))
        };
        Ok(Some(Frame {
            head,
            rest: Gather::new(),
            checksum,
            segment,
        }))
    }

    /// Whether the header in front of each packet still has the length that was set. This costs a
    /// system call, so it is called only after another error.
    fn check_header(&self) -> io::Result<()> {
        // A deleted device is reported elsewhere.
        let len = ioctl::header_len(self.fd.as_fd()).unwrap_or(settings::header_len());
        let foreign = len != settings::header_len();
        self.foreign_header.store(foreign, Ordering::Relaxed);
        if !foreign {
            return Ok(());
        }
        let why = format!(
            "{}: another process has changed the length of the virtio-net header from {HEADER} bytes to \
             {len}; nothing crosses the device until that is put back",
            self.place
        );
        Err(io::Error::new(io::ErrorKind::InvalidData, why))
    }

    /// The virtio-net header for a packet.
    fn header(&self, packet: &Packet<'_>) -> Result<[u8; HEADER], &'static str> {
        let mut header = [0; HEADER];
        if let Checksum::Partial { start, offset } = packet.checksum {
            if !self.capabilities.checksum {
                return Err("checksum offload is off");
            }
            header[0] = F_NEEDS_CSUM;
            header[6..8].copy_from_slice(&start.to_ne_bytes());
            header[8..10].copy_from_slice(&offset.to_ne_bytes());
        }
        let is_udp = matches!(packet.checksum, Checksum::Partial { offset: 6, .. });
        let (headers, len) = (transport_headers(packet), packet.len());
        let payload = headers.map_or(0, |headers| len.saturating_sub(headers));
        let segment = packet
            .segment
            .filter(|size| headers.is_none() || payload > usize::from(size.get()));
        let (kind, most) = match (segment, packet.header.first().map(|byte| byte >> 4)) {
            (None, _) => (GSO_NONE, Some(self.capabilities.mtu)),
            (Some(_), Some(4)) if is_udp => (GSO_UDP, self.capabilities.datagrams_v4),
            (Some(_), Some(6)) if is_udp => (GSO_UDP, self.capabilities.datagrams_v6),
            (Some(_), Some(4)) => (GSO_TCPV4, self.capabilities.segment_v4),
            (Some(_), Some(6)) => (GSO_TCPV6, self.capabilities.segment_v6),
            _ => return Err("neither IPv4 nor IPv6"),
        };
        if len > most.ok_or("segmentation offload is off")? {
            return Err("the packet is larger than the link takes");
        }
        if let Some(size) = segment {
            let headers =
                headers.ok_or("only TCP and UDP whose checksums the link fills in are cut")?;
            let len = u16::try_from(headers).map_err(|_| "header too long")?;
            header[1] = kind;
            header[2..4].copy_from_slice(&len.to_ne_bytes());
            header[4..6].copy_from_slice(&size.get().to_ne_bytes());
        }
        Ok(header)
    }

    /// One gathering write; a payload in too many pieces is copied together first. Returns the number
    /// of bytes written, including the header.
    fn write(&self, header: &[u8], packet: &Packet<'_>) -> Result<usize, Errno> {
        let together;
        let mut pieces: SmallVec<[IoSlice<'_>; 32]> = SmallVec::new();
        pieces.push(IoSlice::new(header));
        pieces.push(IoSlice::new(packet.header));
        if packet.payload.len() + pieces.len() <= IOV_MAX {
            pieces.extend(packet.payload.iter().map(|buf| IoSlice::new(buf)));
        } else {
            together = gather(packet.payload);
            pieces.push(IoSlice::new(&together));
        }
        retry(|| rustix::io::writev(&self.fd, &pieces))
    }
}

/// Checksum state and segment size from the virtio-net header of a packet.
fn described(header: &[u8; HEADER]) -> (Checksum, Option<NonZeroU16>) {
    let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let checksum = match header[0] {
        flags if flags & F_NEEDS_CSUM != 0 => Checksum::Partial {
            start: field(6),
            offset: field(8),
        },
        flags if flags & F_DATA_VALID != 0 => Checksum::Verified,
        _ => Checksum::Complete,
    };
    let segment = match header[1] & !GSO_ECN {
        GSO_NONE => None,
        _ => NonZeroU16::new(field(4)),
    };
    (checksum, segment)
}

/// Length of the headers of a packet whose checksum is TCP's or UDP's, and left to the link.
fn transport_headers(packet: &Packet<'_>) -> Option<usize> {
    match packet.checksum {
        Checksum::Partial { start, offset: 16 } => {
            let start = usize::from(start);
            let words = packet.header.get(start + 12)? >> 4;
            Some(start + usize::from(words) * 4)
        }
        Checksum::Partial { start, offset: 6 } => Some(usize::from(start) + 8),
        _ => None,
    }
}

/// Copies all bytes to one buffer.
fn gather(payload: &[Buf]) -> Buf {
    let mut frame = FrameMut::with_capacity(payload.iter().map(Buf::len).sum());
    let bytes = frame.bytes_mut();
    payload.iter().for_each(|buf| bytes.extend_from_slice(buf));
    frame.freeze()
}

/// Whether an error means that the device was deleted. All others concern one packet, or a device that
/// may work again soon: EIO an interface that is down, EINVAL a packet that the kernel cannot describe
/// or settings of another process, EFAULT, ENOMEM and so on.
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::BADFD | Errno::NODEV)
}

impl Drop for Tun {
    fn drop(&mut self) {
        if let Some(settings) = self.settings.take().and_then(Arc::into_inner) {
            settings.put_back(self.fd.as_fd());
        }
    }
}

impl Link for Tun {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        if self.foreign_header.load(Ordering::Relaxed) {
            self.check_header().map_err(ReceiveError::Lost)?;
        }
        let mut spare = None;
        for count in 0..max {
            match self.read(&mut spare) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return Ok(count),
                // The next call gets the error again.
                Err(ReceiveError::Gone(_)) if count > 0 => return Ok(count),
                Err(error) => return Err(error),
            }
        }
        Ok(max)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        if self.foreign_header.load(Ordering::Relaxed) {
            self.check_header().map_err(TransmitError::Refused)?;
        }
        let header = self.header(packet).map_err(|why| {
            TransmitError::Refused(io::Error::new(io::ErrorKind::InvalidInput, why))
        })?;
        match self.write(&header, packet) {
            Ok(count) if count == HEADER + packet.len() => Ok(()),
            // A TUN never writes a part. The written part is no packet, and the rest would be none
            // either.
            Ok(_) => Err(TransmitError::Refused(io::ErrorKind::WriteZero.into())),
            Err(Errno::AGAIN | Errno::NOBUFS) => Err(TransmitError::Full),
            Err(errno) if is_gone(errno) => Err(TransmitError::Gone(self.error(errno))),
            Err(errno) => {
                let checked = self.check_header();
                Err(TransmitError::Refused(
                    checked.err().unwrap_or_else(|| self.error(errno)),
                ))
            }
        }
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        let mut fds = [
            PollFd::new(&self.fd, poll_flags(interest)),
            PollFd::new(&self.waker.fd, PollFlags::IN),
        ];
        // E.g. out of memory, which is no error of the device. The caller receives, and waits again.
        if poll_until(&mut fds, deadline).is_err() {
            return Ok(());
        }
        if fds[1].revents().contains(PollFlags::IN) {
            self.waker.clear();
        }
        if fds[0]
            .revents()
            .intersects(PollFlags::ERR | PollFlags::NVAL)
        {
            return Err(self.error(Errno::NODEV));
        }
        Ok(())
    }

    fn wake(&self) {
        self.waker.wake();
    }

    fn descriptors(&self) -> Option<[BorrowedFd<'_>; 2]> {
        Some([self.fd.as_fd(), self.waker.fd.as_fd()])
    }
}

impl AsFd for Tun {
    /// The device, to be polled along with other files.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uses a pipe that is nearly full, since a TUN never writes a part of a packet.
    #[test]
    fn a_short_write_is_a_lost_packet() {
        let (_reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let tun = Tun {
            fd: writer.into(),
            place: Place {
                name: "pipe".into(),
                netns: None,
            },
            capabilities: Capabilities {
                mtu: 1500,
                checksum: true,
                segment_v4: Some(65_535),
                segment_v6: None,
                datagrams_v4: None,
                datagrams_v6: None,
            },
            settings: None,
            foreign_header: AtomicBool::new(false),
            waker: Waker::new().unwrap(),
        };
        let mut header = [0x45; 40];
        header[32] = 0x50;
        let packet = Packet {
            header: &header,
            payload: &[Buf::copy_of(&[7; 40_000])],
            ip_header_len: 20,
            checksum: Checksum::partial_tcp(20),
            segment: NonZeroU16::new(1460),
        };
        tun.transmit(&packet).unwrap();
        let short = tun.transmit(&packet).unwrap_err();
        let lost =
            matches!(&short, TransmitError::Refused(why) if why.kind() == io::ErrorKind::WriteZero);
        assert!(lost, "{short}");
        let full = tun.transmit(&packet).unwrap_err();
        assert!(matches!(full, TransmitError::Full), "{full}");
    }
}
