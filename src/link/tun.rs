//! A TUN device of Linux or Android, with the virtio-net header where there is one.
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
//! **A descriptor that another program has attached** ([`Tun::from_fd`]) needs no privilege: Android's `VpnService`
//! gives one, or a helper passes it over a Unix socket (`SCM_RIGHTS`). Kind, name and virtio-net header are read
//! back, and a descriptor that does not fit is refused ([`FdError`]). What the kernel may hide is in [`FdBuilder`]:
//! the flags, where SELinux forbids to ask, and the MTU of an interface in another network namespace. The `Tun` owns
//! the descriptor. The device is another's: it is left as it was found, as above, whoever else has it open; if the
//! former offloads cannot be read, since the device is in another namespace, they are off afterwards, as in a new
//! device. Without the virtio-net header they are switched off at once: nothing could describe what they leave
//! undone. Closing deletes the interface if it was made by attaching, is not persistent, and no other program has a
//! duplicate of the descriptor.
//!
//! **A descriptor keeps its network namespace alive**: after `ip netns del` the devices in it exist and
//! carry packets until the last `Tun` in it is dropped, without an error.
//!
//! Locks: none. All calls are system calls; one `Tun` may be shared by any number of sending threads.

mod from_fd;
mod inherit;
pub(super) mod ioctl;
mod linkinfo;
mod open;
mod settings;

pub use super::place::Place;
pub use from_fd::{FdBuilder, FdError};
pub use open::{Builder, Difference, OpenError, TapKind};
pub use settings::DeviceSettings;
#[cfg(all(feature = "tun-rs", target_os = "linux"))]
pub(super) use settings::SUPER_FRAME;

use super::{
    Capabilities, Checksum, Frame, Interest, Link, Packet, ReceiveError, TransmitError, poll_flags,
    poll_until, retry,
};
use crate::buf::{Buf, FrameMut, Gather, MAX_FRAME};
use crate::link::virtio::{self, Content, HEADER};
use crate::link::waker::Waker;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use settings::Settings;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

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
    content: Content,
    /// A virtio-net header is in front of each packet.
    virtio: bool,
    capabilities: Capabilities,
    /// `None` without the header, and when it is dropped.
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
        Builder::new(name, Content::Packets)
    }

    /// Takes over the descriptor of a TUN that another program has attached: Android's `VpnService`, or a helper with
    /// privileges that passes it over a Unix socket. This needs no privilege. Packets may have a virtio-net header or
    /// not, as the kernel tells; without one there is no offload.
    ///
    /// ```no_run
    /// use sosplice::{Stack, link::tun::Tun};
    /// use std::os::fd::OwnedFd;
    /// fn serve(descriptor: OwnedFd) -> Result<Stack, Box<dyn std::error::Error>> {
    ///     let tun = Tun::from_fd(descriptor)?;
    ///     Ok(Stack::builder(tun).address("10.1.0.2/24".parse()?).build()?)
    /// }
    /// ```
    ///
    /// # Errors
    /// See [`FdError`]; the descriptor is closed then.
    pub fn from_fd(fd: impl Into<OwnedFd>) -> Result<Tun, FdError> {
        Tun::fd_builder().build(fd)
    }

    /// Settings to take over descriptors with: those that the kernel may not tell, and offloads.
    ///
    /// ```no_run
    /// use sosplice::link::tun::{FdError, Tun};
    /// use std::os::fd::OwnedFd;
    /// /// Nothing is asked of the kernel that an app may not ask.
    /// fn of_vpn_service(descriptor: OwnedFd) -> Result<Tun, FdError> {
    ///     Tun::fd_builder().virtio_header(false).mtu(1500).build(descriptor)
    /// }
    /// ```
    pub fn fd_builder() -> FdBuilder {
        FdBuilder::new(Content::Packets)
    }

    /// The device's name and namespace. The namespace of a descriptor that was taken over is not known, and its name,
    /// if the kernel does not tell it, is `descriptor` and its number.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The device's settings, for another process that continues with a duplicate of this descriptor
    /// ([`Builder::build_queues_from`], which has an example). `None` if packets have no virtio-net header.
    pub fn device_settings(&self) -> Option<DeviceSettings> {
        self.settings.as_ref().map(|settings| settings.to_inherit())
    }

    /// Whether the former settings of the device are restored when the last of the queues that were opened together
    /// is closed: `true` after opening, `false` after [`Builder::build_queues_from`]. Of the processes with duplicates
    /// of the descriptors, one should do it, the last one: a process that ends first would change the device under the
    /// other one. [`Builder::build_queues_from`] has an example.
    pub fn restore_at_end(&self, on: bool) {
        if let Some(settings) = &self.settings {
            settings.restore_at_end(on);
        }
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
        let len = self.header_len();
        let Some(packet) = bytes.get(len..) else {
            return Err(ReceiveError::Lost(self.error(Errno::MSGSIZE)));
        };
        // After a header of another length there is no IP header.
        if !self.content.is_plausible(packet) {
            self.check_header().map_err(ReceiveError::Lost)?;
            self.check_information(bytes).map_err(ReceiveError::Lost)?;
        }
        let described = self.virtio.then(|| bytes.first_chunk()).flatten();
        let (checksum, segment) = described.map_or((Checksum::Complete, None), virtio::described);
        let head = if count <= len + COPY_UP_TO {
            Buf::copy_of(packet)
        } else {
            let whole = spare.take().map(FrameMut::freeze);
            whole.map_or_else(|| Buf::copy_of(&[]), |buf| buf.slice(len..buf.len()))
        };
        Ok(Some(Frame {
            head,
            rest: Gather::new(),
            checksum,
            segment,
        }))
    }

    /// Length of the virtio-net header.
    const fn header_len(&self) -> usize {
        match self.virtio {
            true => HEADER,
            false => 0,
        }
    }

    /// Whether received bytes begin with packet information. Checked at open where that is possible
    /// ([`FdBuilder`]).
    fn check_information(&self, bytes: &[u8]) -> io::Result<()> {
        // `struct tun_pi`: flags, and a number of Ethernet.
        let kind = bytes.get(2..4);
        let follows = bytes.get(4 + self.header_len()..);
        if !matches!(kind, Some([0x08, 0x00] | [0x86, 0xdd]))
            || !follows.is_some_and(|packet| self.content.is_plausible(packet))
        {
            return Ok(());
        }
        let why = format!("{}: {}", self.place, Difference::PacketInformation);
        Err(io::Error::new(io::ErrorKind::InvalidData, why))
    }

    /// Whether the header in front of each packet still has the length that was set. This costs a
    /// system call, so it is called only after another error.
    fn check_header(&self) -> io::Result<()> {
        if !self.virtio {
            return Ok(());
        }
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
        let header = virtio::header(packet, &self.capabilities, self.content).map_err(|why| {
            TransmitError::Refused(io::Error::new(io::ErrorKind::InvalidInput, why))
        })?;
        let header = &header[..self.header_len()];
        match virtio::write(&self.fd, header, packet) {
            Ok(count) if count == header.len() + packet.len() => Ok(()),
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
    use std::num::NonZeroU16;

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
            content: Content::Packets,
            virtio: true,
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
