//! Settings of the device that all of its queues share: the offloads of its reader, and the length of
//! the header in front of each packet.
//!
//! Opening a device sets both, and the last of the queues that were opened together restores the former
//! values. A value that another program has changed meanwhile is not restored, so that several programs
//! that open and close the device in any order leave it as the first one found it. The header length is
//! not restored while another program has a queue open, since that would lose all of its packets.

use super::{ioctl, linkinfo};
use crate::link::Capabilities;
use crate::link::virtio::{Content, HEADER};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, Result};
use std::ffi::c_int;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};

/// Default size of the largest packet that is given to the kernel to be cut into segments. A forwarded
/// packet needs room for its new link header, VLAN tags and tunnel headers below 65,536 bytes: the
/// kernel cuts a larger one in software. Its own TCP leaves the same room.
pub(in crate::link) const SUPER_FRAME: usize = 65_212;

/// Accepted sizes: from the smallest IPv6 MTU to the largest size for which the kernel allocates memory
/// (17 fragments of 32 KiB).
const SUPER_FRAMES: RangeInclusive<usize> = 1280..=500_000;

/// The former and the present values; shared by all queues that are opened together.
#[derive(Debug)]
pub(super) struct Settings {
    /// A [`linkinfo::socket`] in the device's network namespace; `None` if that is not known.
    socket: Option<OwnedFd>,
    /// Offloads to restore; `None` if the kernel does not report the former ones.
    found: Option<u32>,
    found_header: c_int,
    /// Offloads set at open.
    offload: u32,
    /// The former ones are restored at the end.
    restores: AtomicBool,
}

/// The settings of a device that is open, for another process that continues with it
/// ([`Builder::build_queues_from`](super::Builder::build_queues_from)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "it crosses process boundaries as it is"
)]
pub struct DeviceSettings {
    /// The offloads of the device's reader (`TUN_F_*`).
    pub offload: u32,
    /// Those to restore at the end; `None` if they are not known.
    pub former_offload: Option<u32>,
    /// Length of the virtio-net header to restore at the end, in bytes.
    pub former_header: i32,
}

/// [`HEADER`] in the kernel's type.
pub(super) fn header_len() -> c_int {
    c_int::try_from(HEADER).expect("invariant: a small constant")
}

impl Settings {
    /// Sets the header length and the offloads of the device (with `offload` all that the kernel
    /// supports), and stores the former values. The error names the call that failed.
    pub(super) fn apply(
        socket: OwnedFd,
        tun: BorrowedFd<'_>,
        offload: bool,
    ) -> std::result::Result<Settings, (&'static str, Errno)> {
        let found = ioctl::offload(socket.as_fd(), tun).ok();
        let found_header = ioctl::header_len(tun).map_err(|errno| ("TUNGETVNETHDRSZ", errno))?;
        ioctl::set_header_len(tun, header_len()).map_err(|errno| ("TUNSETVNETHDRSZ", errno))?;
        let offload = set_offload(tun, offload).map_err(|errno| ("TUNSETOFFLOAD", errno))?;
        Ok(Settings {
            socket: Some(socket),
            found,
            found_header,
            offload,
            restores: AtomicBool::new(true),
        })
    }

    /// As [`apply`](Self::apply), for a descriptor that another program has attached. `socket` may be in a namespace
    /// with another device of the same name, whose offloads do not follow those that are set: then, and without
    /// `socket`, the former ones are not known, and those to be restored are none, with which any program can read
    /// packets.
    pub(super) fn take_over(
        socket: Option<OwnedFd>,
        tun: BorrowedFd<'_>,
        offload: bool,
    ) -> std::result::Result<Settings, (&'static str, Errno)> {
        let read = || ioctl::offload(socket.as_ref()?.as_fd(), tun).ok();
        let found = read();
        let found_header = ioctl::header_len(tun).unwrap_or(header_len());
        if found_header != header_len() {
            ioctl::set_header_len(tun, header_len()).map_err(|errno| ("TUNSETVNETHDRSZ", errno))?;
        }
        let _ = ioctl::set_offload(tun, 0);
        let without = read();
        let offload = match set_offload(tun, offload) {
            Ok(offload) => offload,
            // Forbidden like the other calls: they are what the other program has set, and are not used.
            Err(Errno::ACCESS | Errno::PERM) => 0,
            Err(errno) => return Err(("TUNSETOFFLOAD", errno)),
        };
        let is_the_device = without == Some(0) && read() == Some(offload);
        Ok(Settings {
            socket: socket.filter(|_| is_the_device),
            found: found.filter(|_| is_the_device).or(Some(0)),
            found_header,
            offload,
            restores: AtomicBool::new(true),
        })
    }

    /// Those of a device that another process has opened and set up. Nothing is set, and nothing restored for now.
    pub(super) fn inherit(socket: OwnedFd, from: DeviceSettings) -> Settings {
        Settings {
            socket: Some(socket),
            found: from.former_offload,
            found_header: from.former_header,
            offload: from.offload,
            restores: AtomicBool::new(false),
        }
    }

    pub(super) fn to_inherit(&self) -> DeviceSettings {
        DeviceSettings {
            offload: self.offload,
            former_offload: self.found,
            former_header: self.found_header,
        }
    }

    pub(super) fn restore_at_end(&self, on: bool) {
        self.restores.store(on, Ordering::Relaxed);
    }

    /// The capabilities of a device with this MTU, for super-frames of this size.
    pub(super) fn capabilities(
        &self,
        mtu: usize,
        super_frame: usize,
        content: Content,
    ) -> Capabilities {
        let link_header = content.link_header();
        let segment = self.offloads().then_some(super_frame + link_header);
        // UDP's length field ends there, also for receivers on this host.
        let datagrams = self
            .offloads_datagrams()
            .then_some(super_frame.min(SUPER_FRAME) + link_header);
        Capabilities {
            mtu: mtu + link_header,
            checksum: self.offloads(),
            segment_v4: segment,
            segment_v6: segment,
            datagrams_v4: datagrams,
            datagrams_v6: datagrams,
        }
    }

    /// Whether checksums and segmentation are left to the kernel.
    fn offloads(&self) -> bool {
        self.offload != 0
    }

    /// Whether the kernel takes and gives UDP super-frames.
    fn offloads_datagrams(&self) -> bool {
        self.offload & ioctl::TUN_F_USO != 0
    }

    /// Restores the former values when the last queue is about to be closed. Does nothing for a deleted
    /// device.
    pub(super) fn put_back(&self, tun: BorrowedFd<'_>) {
        if !self.restores.load(Ordering::Relaxed) {
            return;
        }
        let is_ours = self.socket.as_ref().is_none_or(|socket| {
            ioctl::offload(socket.as_fd(), tun).is_ok_and(|now| now == self.offload)
        });
        if let Some(found) = self.found.filter(|_| is_ours) {
            let _ = ioctl::set_offload(tun, found);
        }
        let other_header = self.found_header != header_len();
        if other_header && ioctl::header_len(tun) == Ok(header_len()) && !self.is_shared(tun) {
            let _ = ioctl::set_header_len(tun, self.found_header);
        }
    }

    /// Whether another program has a queue of the device open, as far as that is known.
    fn is_shared(&self, tun: BorrowedFd<'_>) -> bool {
        self.socket.as_ref().is_some_and(|socket| {
            linkinfo::look_up(socket.as_fd(), tun).is_ok_and(|info| info.queues > 1)
        })
    }
}

/// Sets the offloads and returns those that the kernel accepted. A device keeps the settings of its
/// last user, so "none" must be set explicitly too.
fn set_offload(tun: BorrowedFd<'_>, wanted: bool) -> Result<u32> {
    let streams = ioctl::TUN_F_CSUM | ioctl::TUN_F_TSO4 | ioctl::TUN_F_TSO6;
    // Kernels before 6.2 refuse those of datagrams.
    for all in [streams | ioctl::TUN_F_USO, streams] {
        if wanted && ioctl::set_offload(tun, all).is_ok() {
            return Ok(all);
        }
    }
    ioctl::set_offload(tun, 0)?;
    Ok(0)
}

/// The nearest size of super-frames that is allowed.
pub(super) fn super_frame(bytes: usize) -> usize {
    bytes.clamp(*SUPER_FRAMES.start(), *SUPER_FRAMES.end())
}
