//! Opening a TUN or TAP device, and its errors.

use super::settings::{self, Settings};
use super::{Tun, ioctl, linkinfo};
use crate::link::Capabilities;
use crate::link::place::{NamespaceError, Place};
use crate::link::virtio::Content;
use crate::link::waker::Waker;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::netdevice;
use std::io;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Most queues of a device (the kernel's `MAX_TAP_QUEUES`).
const QUEUES: RangeInclusive<usize> = 1..=256;

/// An attached descriptor, its settings and capabilities.
type Opened = (OwnedFd, Arc<Settings>, Capabilities);

/// Why a TUN device was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No such interface, and [`create`](Builder::create) is off.
    #[error("there is no interface {0}: create it with `{create}`", create = .0.ip(&format!("tuntap add {} mode tun", .0.name)))]
    NotFound(Place),
    /// No such interface with several queues, and [`create`](Builder::create) is off.
    #[error("there is no interface {0}: create it with `{create}`", create = .0.ip(&format!("tuntap add {} mode tun multi_queue", .0.name)))]
    NoQueues(Place),
    /// Another process, or another [`Tun`] of this one, holds the device.
    #[error(
        "{0} is busy: this process or another one holds it (a TUN has one user at a time, unless it was made with several queues)"
    )]
    Busy(Place),
    /// The interface exists, but is not a single-queue TUN.
    #[error("{0} is not a single-queue TUN (a TAP, a multi-queue TUN, which is opened with queues(), or no tunnel at all); `{show}` shows what it is", show = .0.ip(&format!("-d link show {}", .0.name)))]
    NotTun(Place),
    /// The interface exists, but is not a TUN with several queues.
    #[error("{0} is not a multi-queue TUN (a single-queue TUN, a TAP, or no tunnel at all); `{show}` shows what it is: delete it, and create it with `{create}`", show = .0.ip(&format!("-d link show {}", .0.name)), create = .0.ip(&format!("tuntap add {} mode tun multi_queue", .0.name)))]
    NotMultiQueue(Place),
    /// The number of queues is 0, or more than a device can have.
    #[error("{queues} queues of {place}: give 1 to 256")]
    QueueCount {
        /// Which device.
        place: Place,
        /// The requested number of queues.
        queues: usize,
    },
    /// Another process holds queues of the device with other settings, which apply to all queues.
    #[error(
        "{place} is open elsewhere with other settings: {difference}; all queues have the settings of the first one opened: open the device here alone or first, or give the other program the same settings"
    )]
    OtherSettings {
        /// Which device.
        place: Place,
        /// The difference.
        difference: Difference,
    },
    /// A descriptor that is to be a queue of the device is something else.
    #[error(
        "{descriptor} is not a queue of {place}: give duplicates of descriptors that another process has opened for it"
    )]
    NotItsQueue {
        /// Which device.
        place: Place,
        /// `descriptor` and its number.
        descriptor: String,
    },
    /// No such interface, and [`create`](Builder::create) is off. [`Tap`](crate::link::ethernet::Tap)s only.
    #[error("there is no interface {0}: create it with `{create}`", create = .1.create(.0))]
    NoTap(Place, TapKind),
    /// The interface exists, but is not a TAP of this kind.
    #[error("{0} is not a {1} TAP (a {other} one, a TUN, or no tunnel at all); `{show}` shows what it is", other = .1.other(), show = .0.ip(&format!("-d link show {}", .0.name)))]
    NotTap(Place, TapKind),
    /// The process may not use the TAP.
    #[error("no permission for {0}: run with CAP_NET_ADMIN, or make the device yours with `{own}`", own = .0.ip(&format!("tuntap add {} mode tap user $USER", .0.name)))]
    TapProhibited(Place),
    /// The process may not use the device.
    #[error("no permission for {0}: run with CAP_NET_ADMIN, or make the device yours with `{own}`", own = .0.ip(&format!("tuntap add {} mode tun user $USER", .0.name)))]
    Prohibited(Place),
    /// No such network namespace.
    #[error("there is no network namespace {netns} for {place}: create it with `ip netns add {netns}`", netns = .0.netns.as_deref().unwrap_or("?"), place = .0.name)]
    NoNamespace(Place),
    /// The process may not enter the network namespace.
    #[error("no permission to enter the network namespace of {0}: run with CAP_SYS_ADMIN")]
    NamespaceProhibited(Place),
    /// The name cannot be one of an interface.
    #[error("{0:?} is not an interface name: 1 to 15 bytes, without '/', ':', '%' and white space")]
    BadName(String),
    /// TUN devices are not available here.
    #[error(
        "/dev/net/tun does not work here ({0}): load the module with `modprobe tun`, or give the container the device"
    )]
    NoDriver(io::Error),
    /// The process may not open `/dev/net/tun`.
    #[error("no permission to open /dev/net/tun: run as root, or change the mode of the file")]
    DriverProhibited,
    /// Another system call failed.
    #[error("cannot open {place}: {call}: {error}")]
    System {
        /// Which device.
        place: Place,
        /// The call that failed.
        call: &'static str,
        /// Its error.
        error: io::Error,
    },
}

/// Kind of a TAP device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(clippy::exhaustive_enums, reason = "there are these two")]
pub enum TapKind {
    /// With one queue.
    #[error("single-queue")]
    Single,
    /// With several queues: [`Builder::queues`].
    #[error("multi-queue")]
    Multi,
}

impl TapKind {
    fn other(self) -> TapKind {
        match self {
            TapKind::Single => TapKind::Multi,
            TapKind::Multi => TapKind::Single,
        }
    }

    /// The command that makes such a device.
    fn create(self, place: &Place) -> String {
        let more = match self {
            TapKind::Single => "",
            TapKind::Multi => " multi_queue",
        };
        place.ip(&format!("tuntap add {} mode tap{more}", place.name))
    }
}

impl From<Option<usize>> for TapKind {
    /// By the number of queues that are asked for.
    fn from(queues: Option<usize>) -> TapKind {
        match queues {
            None => TapKind::Single,
            Some(_) => TapKind::Multi,
        }
    }
}

/// How the settings of a device differ from those that a [`Tun`] needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Difference {
    /// Packets come without a virtio-net header (`IFF_VNET_HDR` is off).
    #[error("its packets have no virtio-net header (IFF_VNET_HDR is off, and is needed)")]
    NoVirtioHeader,
    /// Packets come with a virtio-net header (`IFF_VNET_HDR` is on).
    #[error("its packets have a virtio-net header (IFF_VNET_HDR is on)")]
    VirtioHeader,
    /// Packets come with four bytes of packet information in front (`IFF_NO_PI` is off).
    #[error("its packets have packet information in front (IFF_NO_PI is off, and is needed)")]
    PacketInformation,
    /// The virtio-net header has another length, in bytes.
    #[error("its virtio-net headers have {0} bytes, and 10 are needed (TUNSETVNETHDRSZ)")]
    HeaderLength(i32),
}

/// Settings to open a [`Tun`] with, or a [`Tap`](crate::link::ethernet::Tap).
#[derive(Debug)]
#[must_use = "nothing is opened before build()"]
pub struct Builder<D = Tun> {
    pub(super) place: Place,
    pub(super) content: Content,
    offload: bool,
    pub(super) super_frame: usize,
    create: bool,
    /// The device has several queues.
    queues: Option<usize>,
    device: PhantomData<fn() -> D>,
}

impl<D> Clone for Builder<D> {
    fn clone(&self) -> Builder<D> {
        Builder {
            place: self.place.clone(),
            ..*self
        }
    }
}

impl<D> Builder<D> {
    pub(in crate::link) fn new(name: &str, content: Content) -> Builder<D> {
        Builder {
            place: Place {
                name: name.to_owned(),
                netns: None,
            },
            content,
            offload: true,
            super_frame: settings::SUPER_FRAME,
            create: false,
            queues: None,
            device: PhantomData,
        }
    }

    /// The named network namespace of the device (`/run/netns/NAME`, see `ip netns`); by default the
    /// calling thread's. The namespace exists as long as the [`Tun`] is open, even if its name is
    /// deleted (`ip netns del`). The namespace of the calling thread does not change.
    pub fn netns(mut self, name: &str) -> Builder<D> {
        self.place.netns = Some(name.to_owned());
        self
    }

    /// Whether to leave segmentation (TCP's and, since Linux 6.2, UDP's) and checksums to the kernel, in both
    /// directions. On by default; what the kernel refuses is off; see the [capabilities](crate::link::Link::capabilities).
    pub fn offload(mut self, on: bool) -> Builder<D> {
        self.offload = on;
        self
    }

    /// Length of the largest packet in bytes that is given to the kernel to be cut into segments:
    /// 65,212 by default, the maximum of the kernel's own TCP; at least 1,280. That leaves room for
    /// link headers, VLAN tags and tunnels where the kernel forwards it.
    ///
    /// For receivers **on this host** it may be more, up to 500,000: each then costs a fraction of the
    /// system calls, and of the kernel's work for each packet. A length that does not fit the IP header is
    /// 0 there, as in the kernel's own super-frames (BIG TCP). The kernel cuts such
    /// packets in software, into many small ones, when it forwards them to another device; so do not ask
    /// for it unless most receivers are here. Other values are taken for the nearest that is allowed.
    ///
    /// ```no_run
    /// use sosplice::link::{Link, tun::Tun};
    /// let tun = Tun::builder("tun0").super_frame(500_000).build()?;
    /// assert_eq!(tun.capabilities().segment_v4, Some(500_000));
    /// # Ok::<(), sosplice::link::tun::OpenError>(())
    /// ```
    pub fn super_frame(mut self, bytes: usize) -> Builder<D> {
        self.super_frame = settings::super_frame(bytes);
        self
    }

    /// Whether to create the interface if there is none; it is then deleted with the [`Tun`]. Off by
    /// default.
    pub fn create(mut self, on: bool) -> Builder<D> {
        self.create = on;
        self
    }

    /// Opens this many queues of a multi-queue device, 1 to 256: with
    /// [`build_queues`](Self::build_queues) all of them, with [`build`](Self::build) one. Each is a
    /// link of its own; while it is open the kernel sends packets to it, which must be received. By
    /// default the device has a single queue.
    ///
    /// ```no_run
    /// use sosplice::{Stack, link::tun::Tun};
    /// let queues = Tun::builder("tun0").queues(4).build_queues()?;
    /// let stack = Stack::with_queues(queues).address("10.1.0.2/24".parse()?).build()?;
    /// assert_eq!(stack.queues(), 4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn queues(mut self, count: usize) -> Builder<D> {
        self.queues = Some(count);
        self
    }

    /// Opens all the queues.
    pub(in crate::link) fn open_queues(self) -> Result<Vec<Tun>, OpenError> {
        let queues = self.queues.unwrap_or(1);
        if !QUEUES.contains(&queues) {
            let place = self.place;
            return Err(OpenError::QueueCount { place, queues });
        }
        let first = self.clone().open()?;
        let settings = first.settings.clone();
        let mut all = vec![first];
        for _ in 1..queues {
            all.push(self.clone().attach_queue(settings.clone())?);
        }
        Ok(all)
    }

    /// Opens the device, or a queue of it.
    pub(in crate::link) fn open(self) -> Result<Tun, OpenError> {
        if !self.place.is_valid() {
            return Err(OpenError::BadName(self.place.name));
        }
        self.attach_queue(None)
    }

    /// `settings`: those of a queue that was opened before this one.
    fn attach_queue(self, settings: Option<Arc<Settings>>) -> Result<Tun, OpenError> {
        let opened = self.place.within(|| self.open_here(settings));
        let (fd, settings, capabilities) = opened.map_err(|error| self.outside(error))??;
        let waker = Waker::new().map_err(|error| self.system("eventfd", error))?;
        Ok(Tun {
            fd,
            place: self.place,
            content: self.content,
            virtio: true,
            capabilities,
            settings: Some(settings),
            foreign_header: AtomicBool::new(false),
            waker,
        })
    }

    /// Opens in the namespace of the calling thread.
    fn open_here(&self, settings: Option<Arc<Settings>>) -> Result<Opened, OpenError> {
        let name = self.place.name.as_str();
        let socket = linkinfo::socket().map_err(|error| self.system("socket", error))?;
        let exists = match netdevice::name_to_index(&socket, name) {
            Ok(_) => true,
            Err(Errno::NODEV) => false,
            Err(error) => return Err(self.system("SIOCGIFINDEX", error)),
        };
        if !exists && !self.create {
            return Err(self.not_found());
        }
        let fd = open_driver()?;
        self.attach(&fd)?;
        self.check_settings(&socket, &fd)?;
        let mtu =
            ioctl::mtu(socket.as_fd(), name).map_err(|error| self.system("SIOCGIFMTU", error))?;
        let settings = match settings {
            Some(settings) => settings,
            None => Settings::apply(socket, fd.as_fd(), self.offload)
                .map(Arc::new)
                .map_err(|(call, errno)| self.system(call, errno))?,
        };
        let capabilities = settings.capabilities(mtu, self.super_frame, self.content);
        Ok((fd, settings, capabilities))
    }

    /// A queue of a device that other programs have open gets their settings, not the requested ones.
    fn check_settings(&self, socket: &OwnedFd, fd: &OwnedFd) -> Result<(), OpenError> {
        let info = linkinfo::look_up(socket.as_fd(), fd.as_fd())
            .map_err(|error| self.system("RTM_GETLINK", error))?;
        let header =
            ioctl::header_len(fd.as_fd()).map_err(|error| self.system("TUNGETVNETHDRSZ", error))?;
        let difference = if info.packet_information {
            Difference::PacketInformation
        } else if !info.virtio_header {
            Difference::NoVirtioHeader
        } else if info.queues > 1 && header != settings::header_len() {
            Difference::HeaderLength(header)
        } else {
            return Ok(());
        };
        Err(OpenError::OtherSettings {
            place: self.place.clone(),
            difference,
        })
    }

    fn attach(&self, fd: &OwnedFd) -> Result<(), OpenError> {
        let mut flags = ioctl::IFF_NO_PI | ioctl::IFF_VNET_HDR;
        flags |= match self.content {
            Content::Packets => ioctl::IFF_TUN,
            Content::Frames => ioctl::IFF_TAP,
        };
        if self.queues.is_some() {
            flags |= ioctl::IFF_MULTI_QUEUE;
        }
        ioctl::set_interface(fd.as_fd(), &self.place.name, flags).map_err(|error| match error {
            Errno::BUSY => OpenError::Busy(self.place.clone()),
            Errno::PERM | Errno::ACCESS => self.prohibited(),
            Errno::INVAL => self.other_kind(),
            error => self.system("TUNSETIFF", error),
        })
    }

    fn not_found(&self) -> OpenError {
        let place = self.place.clone();
        match (self.content, self.queues) {
            (Content::Packets, None) => OpenError::NotFound(place),
            (Content::Packets, Some(_)) => OpenError::NoQueues(place),
            (Content::Frames, queues) => OpenError::NoTap(place, queues.into()),
        }
    }

    fn other_kind(&self) -> OpenError {
        let place = self.place.clone();
        match (self.content, self.queues) {
            (Content::Packets, None) => OpenError::NotTun(place),
            (Content::Packets, Some(_)) => OpenError::NotMultiQueue(place),
            (Content::Frames, queues) => OpenError::NotTap(place, queues.into()),
        }
    }

    fn prohibited(&self) -> OpenError {
        let place = self.place.clone();
        match self.content {
            Content::Packets => OpenError::Prohibited(place),
            Content::Frames => OpenError::TapProhibited(place),
        }
    }

    pub(super) fn outside(&self, error: NamespaceError) -> OpenError {
        let place = self.place.clone();
        match error {
            NamespaceError::NotFound => OpenError::NoNamespace(place),
            NamespaceError::Prohibited => OpenError::NamespaceProhibited(place),
            NamespaceError::System(call, error) => OpenError::System { place, call, error },
        }
    }

    pub(super) fn system(&self, call: &'static str, error: Errno) -> OpenError {
        OpenError::System {
            place: self.place.clone(),
            call,
            error: error.into(),
        }
    }
}

impl Builder<Tun> {
    /// Opens all the queues, in their order.
    ///
    /// # Errors
    /// See [`OpenError`]; no queue is open then. [`NotMultiQueue`](OpenError::NotMultiQueue) if the
    /// device was created with a single queue.
    pub fn build_queues(self) -> Result<Vec<Tun>, OpenError> {
        self.open_queues()
    }

    /// Opens the device, or a queue of it.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn build(self) -> Result<Tun, OpenError> {
        self.open()
    }
}

fn open_driver() -> Result<OwnedFd, OpenError> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open("/dev/net/tun", flags, Mode::empty()).map_err(|error| match error {
        Errno::PERM | Errno::ACCESS => OpenError::DriverProhibited,
        error => OpenError::NoDriver(error.into()),
    })
}
