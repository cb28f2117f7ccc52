//! Taking over the descriptor of a TUN or TAP device that another program has attached.
//!
//! `TUNGETIFF` tells kind, name and virtio-net header of any descriptor, and needs no privilege. MTU, packet
//! information and present offloads are known by name, in the network namespace of the device. `TUNGETDEVNETNS` tells
//! which one that is, to programs with privileges; without, the interface of that name and kind in the namespace of
//! the calling thread is taken for the device, unless the program gives the MTU.

use super::open::Difference;
use super::settings::{self, Settings};
use super::{Tun, ioctl, linkinfo};
use crate::link::Capabilities;
use crate::link::place::Place;
use crate::link::virtio::Content;
use crate::link::waker::Waker;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{FileType, OFlags};
use rustix::io::{Errno, FdFlags};
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Major and minor number of `/dev/net/tun`.
const DRIVER: (u32, u32) = (10, 200);

/// Smallest MTU of IPv4 (RFC 791), and the largest packet.
const MTU: std::ops::RangeInclusive<usize> = 68..=65_535;

/// Why a descriptor was not taken over. It is closed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FdError {
    /// The descriptor is a file, a socket, another device, or none at all.
    #[error(
        "{descriptor} is not a TUN or TAP device ({error}): give one that was attached with TUNSETIFF"
    )]
    NotTun {
        /// `descriptor` and its number.
        descriptor: String,
        /// The error of the kernel.
        error: io::Error,
    },
    /// It is an open `/dev/net/tun` without an interface.
    #[error(
        "{0} has no interface: it was not attached with TUNSETIFF, or the interface was deleted"
    )]
    NotAttached(String),
    /// It is a TUN device, and was given to a [`Tap`](crate::link::ethernet::Tap).
    #[error("{0} is a TUN device (IP packets), not a TAP: use Tun::from_fd")]
    IsTun(Place),
    /// It is a TAP device, and was given to a [`Tun`].
    #[error("{0} is a TAP device (Ethernet frames), not a TUN: use Tap::from_fd")]
    IsTap(Place),
    /// The device is not as the program says, or has settings that cannot be used.
    #[error(
        "{place} has other settings: {difference}; attach it with IFF_NO_PI, with or without IFF_VNET_HDR, and say what holds"
    )]
    OtherSettings {
        /// Which device.
        place: Place,
        /// The difference.
        difference: Difference,
    },
    /// The kernel does not tell whether packets have a virtio-net header: [`FdBuilder::virtio_header`] is needed.
    #[error(
        "the kernel does not tell the flags of {descriptor} (TUNGETIFF: {error}): say them with virtio_header()"
    )]
    FlagsUnknown {
        /// `descriptor` and its number.
        descriptor: String,
        /// The error of the kernel.
        error: io::Error,
    },
    /// The MTU is not known, e.g. since the interface is in another network namespace: [`FdBuilder::mtu`] is needed.
    #[error(
        "the MTU of {0} is not known here (it may be in another network namespace): say it with mtu()"
    )]
    MtuUnknown(Place),
    /// The MTU is not one of a device.
    #[error("{0} is no MTU: give 68 to 65535 bytes")]
    BadMtu(usize),
    /// Descriptors that are to be queues of one device are those of several.
    #[error("{other} is not a queue of {first}: give descriptors of one device")]
    OtherDevice {
        /// The device of the first descriptor.
        first: Place,
        /// That of another one.
        other: Place,
    },
    /// Another system call failed.
    #[error("cannot use {descriptor}: {call}: {error}")]
    System {
        /// `descriptor` and its number.
        descriptor: String,
        /// The call that failed.
        call: &'static str,
        /// Its error.
        error: io::Error,
    },
}

/// Settings to take over descriptors with, for a [`Tun`] or a [`Tap`](crate::link::ethernet::Tap): those that the
/// kernel does not tell, and what [`Builder`](super::Builder) has too.
///
/// The descriptor is set to non-blocking, which holds also for duplicates of it in other programs, and to
/// close-on-exec.
#[derive(Debug)]
#[must_use = "nothing is taken over before build()"]
pub struct FdBuilder<D = Tun> {
    content: Content,
    virtio_header: Option<bool>,
    mtu: Option<usize>,
    offload: bool,
    super_frame: usize,
    device: PhantomData<fn() -> D>,
}

impl<D> FdBuilder<D> {
    pub(in crate::link) fn new(content: Content) -> FdBuilder<D> {
        FdBuilder {
            content,
            virtio_header: None,
            mtu: None,
            offload: true,
            super_frame: settings::SUPER_FRAME,
            device: PhantomData,
        }
    }

    /// Whether each packet has a virtio-net header in front (`IFF_VNET_HDR`). By default the kernel is asked; where it
    /// does not answer (`TUNGETIFF` may be forbidden, e.g. by the policies of SELinux), this is needed. If it does,
    /// another answer is an error.
    pub fn virtio_header(mut self, on: bool) -> FdBuilder<D> {
        self.virtio_header = Some(on);
        self
    }

    /// The MTU of the interface in bytes (of IP packets, also for a TAP), 68 to 65,535. By default it is read from the
    /// interface, which is in the network namespace of the calling thread then. If the program may not ask which
    /// namespace the device is in (that needs `CAP_NET_ADMIN` there), nothing is looked up by name if this is given.
    pub fn mtu(mut self, bytes: usize) -> FdBuilder<D> {
        self.mtu = Some(bytes);
        self
    }

    /// Whether to leave segmentation and checksums to the kernel, in both directions: on by default. It needs the
    /// virtio-net header; without one it is off.
    pub fn offload(mut self, on: bool) -> FdBuilder<D> {
        self.offload = on;
        self
    }

    /// As [`Builder::super_frame`](super::Builder::super_frame).
    pub fn super_frame(mut self, bytes: usize) -> FdBuilder<D> {
        self.super_frame = settings::super_frame(bytes);
        self
    }

    /// Takes over all queues of a device. None is left if there is an error.
    pub(in crate::link) fn take_all(&self, fds: Vec<OwnedFd>) -> Result<Vec<Tun>, FdError> {
        let own = fds.len();
        let mut all: Vec<Tun> = Vec::with_capacity(own);
        for fd in fds {
            let tun = self.take(fd, own, all.first())?;
            all.push(tun);
        }
        Ok(all)
    }

    /// Takes over one of `own` descriptors. `first`: the first queue of this device.
    fn take(&self, fd: OwnedFd, own: usize, first: Option<&Tun>) -> Result<Tun, FdError> {
        if let Some(mtu) = self.mtu.filter(|mtu| !MTU.contains(mtu)) {
            return Err(FdError::BadMtu(mtu));
        }
        let found = self.look(&fd)?;
        if let Some(first) = first.filter(|first| first.place != found.place && found.is_named) {
            let (first, other) = (first.place.clone(), found.place);
            return Err(FdError::OtherDevice { first, other });
        }
        prepare(&fd).map_err(|(call, errno)| system(&fd, call, errno))?;
        let near = self.near(&fd, &found)?;
        let mtu = self.mtu.or(near.as_ref().map(|near| near.mtu));
        let mtu = mtu.ok_or_else(|| FdError::MtuUnknown(found.place.clone()))?;
        let settings = match (found.virtio, first) {
            (false, _) => {
                // Without the header there is no place for what offloads need. A kernel that forbids this call has
                // not let another program set them either.
                let _ = ioctl::set_offload(fd.as_fd(), 0);
                None
            }
            (true, Some(first)) => first.settings.clone(),
            (true, None) => Some(Arc::new(self.settings(&fd, &found, near, own)?)),
        };
        let capabilities = match &settings {
            Some(settings) => settings.capabilities(mtu, self.super_frame, self.content),
            None => Capabilities::new(mtu + self.content.link_header()),
        };
        let waker = Waker::new().map_err(|errno| system(&fd, "eventfd", errno))?;
        Ok(Tun {
            fd,
            place: found.place,
            content: self.content,
            virtio: found.virtio,
            capabilities,
            settings,
            foreign_header: AtomicBool::new(false),
            waker,
        })
    }

    /// What the descriptor itself tells.
    fn look(&self, fd: &OwnedFd) -> Result<Found, FdError> {
        let (name, flags) = match ioctl::interface(fd.as_fd()) {
            Ok(found) => found,
            Err(errno @ (Errno::ACCESS | Errno::PERM)) => return self.look_without(fd, errno),
            Err(Errno::BADFD) => return Err(FdError::NotAttached(describe(fd))),
            Err(errno) => return Err(not_tun(fd, errno)),
        };
        let place = Place { name, netns: None };
        let is_tap = flags & ioctl::IFF_TAP != 0;
        match self.content {
            Content::Packets if is_tap => return Err(FdError::IsTap(place)),
            Content::Frames if !is_tap => return Err(FdError::IsTun(place)),
            _ => {}
        }
        let virtio = flags & ioctl::IFF_VNET_HDR != 0;
        if self.virtio_header.is_some_and(|said| said != virtio) {
            let difference = match virtio {
                true => Difference::VirtioHeader,
                false => Difference::NoVirtioHeader,
            };
            return Err(FdError::OtherSettings { place, difference });
        }
        Ok(Found {
            place,
            is_named: true,
            virtio,
            several: flags & ioctl::IFF_MULTI_QUEUE != 0,
        })
    }

    /// The same for a kernel that forbids the question: what the program says.
    fn look_without(&self, fd: &OwnedFd, forbidden: Errno) -> Result<Found, FdError> {
        let file = rustix::fs::fstat(fd).ok();
        let is_driver = file.is_none_or(|file| {
            let number = (
                rustix::fs::major(file.st_rdev),
                rustix::fs::minor(file.st_rdev),
            );
            FileType::from_raw_mode(file.st_mode) == FileType::CharacterDevice && number == DRIVER
        });
        if !is_driver {
            return Err(not_tun(fd, Errno::NOTTY));
        }
        let virtio = self.virtio_header.ok_or_else(|| FdError::FlagsUnknown {
            descriptor: describe(fd),
            error: forbidden.into(),
        })?;
        Ok(Found {
            place: Place {
                name: describe(fd),
                netns: None,
            },
            is_named: false,
            virtio,
            several: false,
        })
    }

    /// What the network namespace of this thread tells about the device, if it is there.
    fn near(&self, fd: &OwnedFd, found: &Found) -> Result<Option<Near>, FdError> {
        let is_here = found
            .is_named
            .then(|| ioctl::is_here(fd.as_fd()).ok())
            .flatten();
        // Not known: a look by name, unless the program knows better.
        if !is_here.unwrap_or(found.is_named && self.mtu.is_none()) {
            return Ok(None);
        }
        let Some(near) = Near::look(fd, &found.place.name) else {
            return Ok(None);
        };
        match near.info {
            // It is another device of the same name.
            Some(info) if info.virtio_header != found.virtio => Ok(None),
            Some(info) if info.packet_information => Err(FdError::OtherSettings {
                place: found.place.clone(),
                difference: Difference::PacketInformation,
            }),
            _ => Ok(Some(near)),
        }
    }

    /// Sets the header length and offloads.
    fn settings(
        &self,
        fd: &OwnedFd,
        found: &Found,
        near: Option<Near>,
        own: usize,
    ) -> Result<Settings, FdError> {
        let others = match near.as_ref().and_then(|near| near.info) {
            Some(info) => usize::try_from(info.queues).is_ok_and(|queues| queues > own),
            None => found.several,
        };
        let header = ioctl::header_len(fd.as_fd()).unwrap_or(settings::header_len());
        if others && header != settings::header_len() {
            return Err(FdError::OtherSettings {
                place: found.place.clone(),
                difference: Difference::HeaderLength(header),
            });
        }
        Settings::take_over(near.map(|near| near.socket), fd.as_fd(), self.offload)
            .map_err(|(call, errno)| system(fd, call, errno))
    }
}

impl FdBuilder<Tun> {
    /// Takes over an attached descriptor of a TUN device.
    ///
    /// # Errors
    /// See [`FdError`]; the descriptor is closed then.
    pub fn build(self, fd: impl Into<OwnedFd>) -> Result<Tun, FdError> {
        self.take(fd.into(), 1, None)
    }

    /// Takes over several queues of one device, in their order. Each descriptor is to be attached by itself; a
    /// duplicate of another one is the same queue.
    ///
    /// # Errors
    /// See [`FdError`]; all descriptors are closed then.
    pub fn build_queues(self, fds: Vec<OwnedFd>) -> Result<Vec<Tun>, FdError> {
        self.take_all(fds)
    }
}

/// What a descriptor tells, or the program.
struct Found {
    place: Place,
    /// The name in `place` is that of the interface.
    is_named: bool,
    virtio: bool,
    /// The device can have other queues.
    several: bool,
}

/// What is known of a device in the network namespace of the calling thread.
struct Near {
    /// A [`linkinfo::socket`] in it.
    socket: OwnedFd,
    /// `None` for drivers that behave like that of TAPs (`macvtap`), and where netlink is forbidden.
    info: Option<linkinfo::LinkInfo>,
    mtu: usize,
}

impl Near {
    fn look(fd: &OwnedFd, name: &str) -> Option<Near> {
        let socket = linkinfo::socket().ok()?;
        let mtu = ioctl::mtu(socket.as_fd(), name).ok()?;
        let info = linkinfo::look_up(socket.as_fd(), fd.as_fd()).ok();
        Some(Near { socket, info, mtu })
    }
}

/// As if it had been opened here.
fn prepare(fd: &OwnedFd) -> Result<(), (&'static str, Errno)> {
    let set = |errno| ("F_SETFD", errno);
    rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC).map_err(set)?;
    let flags = rustix::fs::fcntl_getfl(fd).map_err(|errno| ("F_GETFL", errno))?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK).map_err(|errno| ("F_SETFL", errno))
}

fn describe(fd: &OwnedFd) -> String {
    format!("descriptor {}", fd.as_raw_fd())
}

fn not_tun(fd: &OwnedFd, errno: Errno) -> FdError {
    FdError::NotTun {
        descriptor: describe(fd),
        error: errno.into(),
    }
}

fn system(fd: &OwnedFd, call: &'static str, errno: Errno) -> FdError {
    FdError::System {
        descriptor: describe(fd),
        call,
        error: errno.into(),
    }
}
