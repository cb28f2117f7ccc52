//! What belongs to the device and not to who opens it: which packets its reader completes, and how long
//! the header in front of each packet is.
//!
//! Whoever opens a device sets both, and the last of the queues that were opened together puts back what
//! was found. What somebody else has set meanwhile stays: only what is still as it was set here is put
//! back, so that several who come and go in any order leave the device as the first one found it. The length
//! of the header stays while anybody else has a queue: with another one he would lose every packet.

use super::{HEADER, ioctl, linkinfo};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, Result};
use std::ffi::c_int;

/// What was found, and what was set. One for all queues that are opened together.
#[derive(Debug)]
pub(super) struct Settings {
    /// A [`linkinfo::socket`] of the device's network namespace.
    socket: OwnedFd,
    /// Offloads that were found; `None` if the kernel does not say.
    found: Option<u32>,
    found_header: c_int,
    /// Offloads that were set.
    offload: u32,
}

/// [`HEADER`] as the kernel wants it.
pub(super) fn header_len() -> c_int {
    c_int::try_from(HEADER).expect("invariant: a small constant")
}

impl Settings {
    /// Sets the header and the offloads of the device, with `offload` those that the kernel has, and
    /// remembers what was there. The error says which call failed.
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

    /// The last queue is about to be closed. A device that is gone has no settings.
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

    /// Whether somebody else has a queue of the device open.
    fn is_shared(&self, tun: BorrowedFd<'_>) -> bool {
        linkinfo::look_up(self.socket.as_fd(), tun).is_ok_and(|info| info.queues > 1)
    }
}

/// Which offloads the kernel left to us. A device remembers what its last user asked for, so nothing
/// is asked for explicitly too.
fn set_offload(tun: BorrowedFd<'_>, wanted: bool) -> Result<u32> {
    let all = ioctl::TUN_F_CSUM | ioctl::TUN_F_TSO4 | ioctl::TUN_F_TSO6;
    if wanted && ioctl::set_offload(tun, all).is_ok() {
        return Ok(all);
    }
    ioctl::set_offload(tun, 0)?;
    Ok(0)
}
