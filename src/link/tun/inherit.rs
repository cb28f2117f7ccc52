//! A device that another process has opened, taken over by duplicates of its descriptors while that process still has
//! it open.
//!
//! The kernel lets one descriptor hold a queue (a second open of a single-queue device fails with EBUSY), but any
//! number of processes have duplicates of it: each packet is read by one of them, and all can send.

use super::open::{Builder, OpenError};
use super::settings::{DeviceSettings, Settings};
use super::{Tun, ioctl, linkinfo};
use crate::link::waker::Waker;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

impl Builder<Tun> {
    /// Makes the queues of duplicates of the descriptors that another process has opened with such a builder and still
    /// uses, in their order; name, namespace and super-frames are as for that. It changes nothing of the device, and
    /// restores nothing when it is closed, unless it is told to ([`Tun::restore_at_end`]). Either process may send; a
    /// packet is received by the one that reads it first, so only one should read.
    ///
    /// ```no_run
    /// use sosplice::link::tun::{DeviceSettings, OpenError, Tun};
    /// use std::os::fd::{AsFd, OwnedFd};
    ///
    /// /// What the process that opened the device gives, over a Unix socket. The other one restores the settings.
    /// fn given(tun: &Tun) -> Option<(OwnedFd, DeviceSettings)> {
    ///     let duplicate = tun.as_fd().try_clone_to_owned().ok()?;
    ///     tun.restore_at_end(false);
    ///     Some((duplicate, tun.device_settings()?))
    /// }
    /// /// In the other process.
    /// fn taken((duplicate, settings): (OwnedFd, DeviceSettings)) -> Result<Vec<Tun>, OpenError> {
    ///     let queues = Tun::builder("tun0").build_queues_from(vec![duplicate], settings)?;
    ///     queues.iter().for_each(|queue| queue.restore_at_end(true));
    ///     Ok(queues)
    /// }
    /// ```
    ///
    /// # Errors
    /// [`OpenError::NotItsQueue`] if one is no descriptor of the device, [`OpenError::QueueCount`] if there is none;
    /// others of [`OpenError`]. All are closed then.
    pub fn build_queues_from(
        self,
        fds: Vec<OwnedFd>,
        settings: DeviceSettings,
    ) -> Result<Vec<Tun>, OpenError> {
        if fds.is_empty() {
            let place = self.place;
            return Err(OpenError::QueueCount { place, queues: 0 });
        }
        let looked = self.place.within(|| self.look(&fds));
        let (socket, mtu) = looked.map_err(|error| self.outside(error))??;
        let settings = Arc::new(Settings::inherit(socket, settings));
        let capabilities = settings.capabilities(mtu, self.super_frame, self.content);
        let queue = |fd| {
            let waker = Waker::new().map_err(|error| self.system("eventfd", error))?;
            Ok(Tun {
                fd,
                place: self.place.clone(),
                content: self.content,
                virtio: true,
                capabilities,
                settings: Some(settings.clone()),
                foreign_header: AtomicBool::new(false),
                waker,
            })
        };
        fds.into_iter().map(queue).collect()
    }

    /// In the namespace of the device: a socket, and the MTU.
    fn look(&self, fds: &[OwnedFd]) -> Result<(OwnedFd, usize), OpenError> {
        for fd in fds {
            let is_queue = ioctl::interface(fd.as_fd()).is_ok_and(|(name, flags)| {
                let fits = flags & ioctl::IFF_TUN != 0 && flags & ioctl::IFF_VNET_HDR != 0;
                // Kernels before 5.2 do not tell.
                name == self.place.name && fits && ioctl::is_here(fd.as_fd()).unwrap_or(true)
            });
            if !is_queue {
                return Err(OpenError::NotItsQueue {
                    place: self.place.clone(),
                    descriptor: format!("descriptor {}", fd.as_raw_fd()),
                });
            }
        }
        let socket = linkinfo::socket().map_err(|error| self.system("socket", error))?;
        let mtu = ioctl::mtu(socket.as_fd(), &self.place.name);
        let mtu = mtu.map_err(|error: Errno| self.system("SIOCGIFMTU", error))?;
        Ok((socket, mtu))
    }
}
