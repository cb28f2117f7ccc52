//! A link over a device of the crate [tun-rs](https://docs.rs/tun-rs), for TUN devices of systems that this crate
//! does not open by itself: macOS, Windows (Wintun), iOS, FreeBSD, OpenBSD, NetBSD. Feature `tun-rs`.
//!
//! [`Device`] takes the crate's synchronous device, without packet information (`packet_information` is off unless it
//! is asked for; the four bytes of address family that packets of macOS have are tun-rs's own matter). The program
//! makes, names and configures it with tun-rs's builder. A device of layer 2 is a transport of frames
//! ([`Device::frames`]), for an [`Edge`](super::ethernet::Edge) or a [`Host`](super::ethernet::Host).
//!
//! **Offload**: on Linux, where tun-rs has it (`offload(true)`): super-frames and partial checksums cross the device
//! whole, as with `link::tun`. Elsewhere each packet is one call.
//!
//! **Full**: a device that is full is tried again after a millisecond, since the other systems do not tell when it has
//! room. On Linux prefer `link::tun`, which waits for room, restores the offloads of the device, and can share a thread
//! with other links.
//!
//! | system | tested |
//! |---|---|
//! | Linux | with real devices |
//! | macOS, Windows, FreeBSD, Android | compiled; nothing was run |
//!
//! Locks: whether `wake` was called (6), innermost.

#[cfg(target_os = "linux")]
use super::tun::SUPER_FRAME;
use super::virtio::{self, Content};
use super::{Capabilities, Checksum, Frame, Interest, Link, Packet, ReceiveError, TransmitError};
use crate::buf::{Buf, FrameMut, Gather, MAX_FRAME};
use crate::clock::{Clock, SystemClock};
use crate::lock::{Condvar, Mutex, POOL};
use std::fmt;
use std::io;
use std::num::NonZeroU16;
use std::time::{Duration, Instant};
use tun_rs::{InterruptEvent, SyncDevice};

/// A packet up to this many bytes is copied out of the buffer that it was read into.
const COPY_UP_TO: usize = 2048;

/// How long a full device is left alone.
const PAUSE: Duration = Duration::from_millis(1);

/// Errors that mean that the device is gone: EBADFD, ENODEV.
#[cfg(any(target_os = "linux", target_os = "android"))]
const GONE: &[i32] = &[77, 19];
/// ENXIO, ENODEV.
#[cfg(not(any(target_os = "linux", target_os = "android", windows)))]
const GONE: &[i32] = &[6, 19];
/// None: see [`is_gone`].
#[cfg(windows)]
const GONE: &[i32] = &[];

/// ENOBUFS, by which a device says that it is full; none on Windows.
#[cfg(any(target_os = "linux", target_os = "android"))]
const FULL: Option<i32> = Some(105);
#[cfg(not(any(target_os = "linux", target_os = "android", windows)))]
const FULL: Option<i32> = Some(55);
#[cfg(windows)]
const FULL: Option<i32> = None;

/// A device of tun-rs as a [`Link`]. Dropping it drops the device, which is the end of the interface if it is not
/// persistent.
///
/// ```no_run
/// use sosplice::{Stack, link::tun_rs::Device};
/// let device = tun_rs::DeviceBuilder::new().mtu(1500).build_sync()?;
/// let stack = Stack::builder(Device::with_mtu(device, 1500)?).address("10.1.0.2/24".parse()?).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Device {
    device: SyncDevice,
    content: Content,
    capabilities: Capabilities,
    /// Length of the virtio-net header in front of each packet: 0, or that of offloads.
    header_len: usize,
    woken: Mutex<bool, POOL>,
    /// For waits that are not for frames.
    changed: Condvar,
    /// Triggered while `woken`.
    event: InterruptEvent,
}

impl Device {
    /// A device of layer 3 (TUN), with the MTU that the interface has.
    ///
    /// # Errors
    /// If the system does not tell the MTU, or has no more descriptors.
    #[cfg(any(
        target_os = "linux",
        target_os = "macos",
        target_os = "windows",
        target_os = "freebsd",
        target_os = "openbsd",
        target_os = "netbsd"
    ))]
    pub fn new(device: SyncDevice) -> io::Result<Device> {
        let mtu = device.mtu()?;
        Device::with_mtu(device, mtu.into())
    }

    /// A device of layer 3 with a given MTU in bytes, for systems on which tun-rs does not tell it (iOS, Android), or
    /// not to the calling thread (a device of another network namespace of Linux).
    ///
    /// # Errors
    /// If the device cannot be used without blocking, or the system has no more descriptors.
    pub fn with_mtu(device: SyncDevice, mtu: usize) -> io::Result<Device> {
        Device::of(device, mtu, Content::Packets)
    }

    /// A device of layer 2 (TAP) with a given MTU in bytes, that of IP packets: a transport of frames.
    ///
    /// ```no_run
    /// use sosplice::link::{ethernet::{Edge, EdgeConfig}, tun_rs::Device};
    /// let device = tun_rs::DeviceBuilder::new().layer(tun_rs::Layer::L2).build_sync()?;
    /// let config = EdgeConfig::new("10.0.2.1/24".parse()?, "10.0.2.15".parse()?);
    /// let edge = Edge::new(Device::frames(device, 1500)?, config)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`with_mtu`](Self::with_mtu).
    pub fn frames(device: SyncDevice, mtu: usize) -> io::Result<Device> {
        Device::of(device, mtu, Content::Frames)
    }

    fn of(device: SyncDevice, mtu: usize, content: Content) -> io::Result<Device> {
        #[cfg(unix)]
        device.set_nonblocking(true)?;
        let plain = Capabilities::new(mtu + content.link_header());
        let (header_len, capabilities) = offloads(&device, plain, content);
        Ok(Device {
            device,
            content,
            capabilities,
            header_len,
            woken: Mutex::new(false),
            changed: Condvar::new(),
            event: InterruptEvent::new()?,
        })
    }

    /// The device, e.g. to change its addresses.
    pub fn device(&self) -> &SyncDevice {
        &self.device
    }

    #[cfg(not(windows))]
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.device.recv(buffer)
    }

    #[cfg(windows)]
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.device.try_recv(buffer)
    }

    #[cfg(not(windows))]
    fn write(&self, header: &[u8], packet: &Packet<'_>) -> io::Result<usize> {
        virtio::with_pieces(header, packet, |pieces| self.device.send_vectored(pieces))
    }

    #[cfg(windows)]
    fn write(&self, _header: &[u8], packet: &Packet<'_>) -> io::Result<usize> {
        self.device.try_send(&packet.to_vec())
    }

    /// A frame of the bytes that were read to `spare`, which is reused until a frame keeps it.
    fn frame(&self, spare: &mut Option<FrameMut>, count: usize) -> Option<Frame> {
        let mut frame = spare.take()?;
        let bytes = frame.bytes_mut();
        let packet = bytes.get(self.header_len..count)?;
        let (checksum, segment) = described(&bytes[..self.header_len]);
        let head = if packet.len() <= COPY_UP_TO {
            let copy = Buf::copy_of(packet);
            *spare = Some(frame);
            copy
        } else {
            bytes.truncate(count);
            frame.freeze().slice(self.header_len..count)
        };
        Some(Frame {
            head,
            rest: Gather::new(),
            checksum,
            segment,
        })
    }

    /// Waits for a wake-up or the deadline.
    fn sleep(&self, deadline: Option<Instant>) {
        let mut woken = self.woken.lock();
        while !*woken {
            if self.changed.wait_until(&mut woken, deadline) {
                return;
            }
        }
        self.rest(&mut woken);
    }

    /// The wake-up was noticed.
    fn rest(&self, woken: &mut bool) {
        // Fails only if nothing was triggered, which leaves nothing to do.
        drop(self.event.reset());
        *woken = false;
    }
}

/// The length of the virtio-net header, and what the device can do with it.
#[cfg(target_os = "linux")]
fn offloads(device: &SyncDevice, plain: Capabilities, content: Content) -> (usize, Capabilities) {
    if !device.tcp_gso() {
        return (0, plain);
    }
    let longest = SUPER_FRAME + content.link_header();
    let datagrams = device.udp_gso().then_some(longest);
    let capabilities = plain
        .checksum(true)
        .segment_v4(longest)
        .segment_v6(longest)
        .datagrams_v4(datagrams)
        .datagrams_v6(datagrams);
    (virtio::HEADER, capabilities)
}

#[cfg(not(target_os = "linux"))]
fn offloads(_: &SyncDevice, plain: Capabilities, _: Content) -> (usize, Capabilities) {
    (0, plain)
}

/// Checksum state and segment size of a packet with this header, or with none.
fn described(header: &[u8]) -> (Checksum, Option<NonZeroU16>) {
    let header = header.first_chunk();
    header.map_or((Checksum::Complete, None), virtio::described)
}

/// Whether an error means that the device is gone. Wintun reports the end of its session, which tun-rs gives as these
/// kinds for reading and for writing.
fn is_gone(error: &io::Error) -> bool {
    let of_session = matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero
    );
    error.raw_os_error().is_some_and(|raw| GONE.contains(&raw)) || (cfg!(windows) && of_session)
}

fn is_full(error: &io::Error) -> bool {
    let raw = error.raw_os_error();
    error.kind() == io::ErrorKind::WouldBlock || (raw.is_some() && raw == FULL)
}

impl Link for Device {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        let mut spare = None;
        for count in 0..max {
            let buffer = spare.get_or_insert_with(|| FrameMut::of_any_bytes(MAX_FRAME));
            match self.read(buffer.bytes_mut()) {
                Ok(len) => match self.frame(&mut spare, len) {
                    Some(frame) => frames.push(frame),
                    None => return Err(ReceiveError::Lost(io::ErrorKind::UnexpectedEof.into())),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(count),
                // The next call gets the error again.
                Err(error) if is_gone(&error) && count > 0 => return Ok(count),
                Err(error) if is_gone(&error) => return Err(ReceiveError::Gone(error)),
                Err(error) => return Err(ReceiveError::Lost(error)),
            }
        }
        Ok(max)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        let header = virtio::header(packet, &self.capabilities, self.content);
        let header = header.map_err(|why| {
            TransmitError::Refused(io::Error::new(io::ErrorKind::InvalidInput, why))
        })?;
        let header = &header[..self.header_len];
        match self.write(header, packet) {
            Ok(count) if count == header.len() + packet.len() => Ok(()),
            Ok(_) => Err(TransmitError::Refused(io::ErrorKind::WriteZero.into())),
            Err(error) if is_full(&error) => Err(TransmitError::Full),
            Err(error) if is_gone(&error) => Err(TransmitError::Gone(error)),
            Err(error) => Err(TransmitError::Refused(error)),
        }
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        let now = SystemClock.now();
        let pause = interest.overlaps(Interest::WRITABLE).then(|| now + PAUSE);
        let until = match (pause, deadline) {
            (Some(pause), Some(deadline)) => Some(pause.min(deadline)),
            (pause, deadline) => pause.or(deadline),
        };
        if !interest.overlaps(Interest::READABLE) {
            self.sleep(until);
            return Ok(());
        }
        let left = until.map(|until| until.saturating_duration_since(now));
        match self.device.wait_readable_intr_timeout(&self.event, left) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.rest(&mut self.woken.lock());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn wake(&self) {
        let mut woken = self.woken.lock();
        if !*woken {
            *woken = true;
            // Fails only if it is triggered already.
            drop(self.event.trigger());
            self.changed.notify_all();
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("capabilities", &self.capabilities)
            .finish_non_exhaustive()
    }
}
