//! Settings of the device that all of its queues share: the offloads of its reader, and the length of
//! the header in front of each packet.
//!
//! Opening a device sets both, and the last of the queues that were opened together restores the former
//! values. A value that another program has changed meanwhile is not restored, so that several programs
//! that open and close the device in any order leave it as the first one found it. The header length is
//! not restored while another program has a queue open, since that would lose all of its packets.

use super::{HEADER, ioctl, linkinfo};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, Result};
use std::ffi::c_int;

/// The former and the present values; shared by all queues that are opened together.
#[derive(Debug)]
pub(super) struct Settings {
    /// A [`linkinfo::socket`] in the device's network namespace.
    socket: OwnedFd,
    /// Former offloads; `None` if the kernel does not report them.
    found: Option<u32>,
    found_header: c_int,
    /// Offloads set at open.
    offload: u32,
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
            socket,
            found,
            found_header,
            offload,
        })
    }

    /// Whether checksums and segmentation are left to the kernel.
    pub(super) fn offloads(&self) -> bool {
        self.offload != 0
    }

    /// Whether the kernel takes and gives UDP super-frames.
    pub(super) fn offloads_datagrams(&self) -> bool {
        self.offload & ioctl::TUN_F_USO != 0
    }

    /// Restores the former values when the last queue is about to be closed. Does nothing for a deleted
    /// device.
    pub(super) fn put_back(&self, tun: BorrowedFd<'_>) {
        let now = ioctl::offload(self.socket.as_fd(), tun).ok();
        if let Some(found) = self.found.filter(|_| now == Some(self.offload)) {
            let _ = ioctl::set_offload(tun, found);
        }
        let other_header = self.found_header != header_len();
        if other_header && ioctl::header_len(tun) == Ok(header_len()) && !self.is_shared(tun) {
            let _ = ioctl::set_header_len(tun, self.found_header);
        }
    }

    /// Whether another program has a queue of the device open.
    fn is_shared(&self, tun: BorrowedFd<'_>) -> bool {
        linkinfo::look_up(self.socket.as_fd(), tun).is_ok_and(|info| info.queues > 1)
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
