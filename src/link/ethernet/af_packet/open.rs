//! Opening a packet socket, and its errors.

use super::super::frame::Mac;
use super::AfPacket;
use super::socket::{self, Also, Interface, NoInterface};
use crate::counter::Counter;
use crate::link::Capabilities;
use crate::link::ethernet::frame::HEADER;
use crate::link::place::{NamespaceError, Place};
use crate::link::tun::ioctl;
use crate::link::waker::Waker;
use crate::lock::Mutex;
use nix::errno::Errno;
use rustix::fd::{AsFd, OwnedFd};
use std::io;
use std::sync::atomic::AtomicBool;

/// Memory for frames that wait to be received: the kernel drops those that find it full.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Memory for frames that were sent and have not left.
const SEND_BUFFER: usize = 2 << 20;
/// Largest packet that is given to the kernel to be cut into segments, as the kernel's own TCP has it.
const SUPER_FRAME: usize = 65_212;

/// Why no packet socket was opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AfPacketError {
    /// No such interface.
    #[error("there is no interface {0}: `{list}` shows those that there are", list = .0.ip("link"))]
    NotFound(Place),
    /// The interface has no frames of Ethernet.
    #[error(
        "{0} is no Ethernet interface: packet sockets need one, e.g. a network card, a veth, a macvlan or a bridge"
    )]
    NotEthernet(Place),
    /// The process may not open packet sockets.
    #[error("no permission for a packet socket at {0}: run with CAP_NET_RAW in the namespace")]
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
    /// The hardware address is not one of a host.
    #[error("{0} is not the hardware address of one host")]
    Mac(Mac),
    /// Another system call failed.
    #[error("cannot open a packet socket at {place}: {call}: {error}")]
    System {
        /// Which interface.
        place: Place,
        /// The call that failed.
        call: &'static str,
        /// Its error.
        error: io::Error,
    },
}

/// Settings to open an [`AfPacket`] with.
#[derive(Debug, Clone)]
#[must_use = "nothing is opened before build()"]
pub struct AfPacketBuilder {
    place: Place,
    offload: bool,
    mac: Option<Mac>,
    promiscuous: bool,
    receive_buffer: usize,
    send_buffer: usize,
}

impl AfPacketBuilder {
    pub(super) fn new(name: &str) -> AfPacketBuilder {
        AfPacketBuilder {
            place: Place {
                name: name.to_owned(),
                netns: None,
            },
            offload: true,
            mac: None,
            promiscuous: false,
            receive_buffer: RECEIVE_BUFFER,
            send_buffer: SEND_BUFFER,
        }
    }

    /// The named network namespace of the interface (`/run/netns/NAME`, see `ip netns`); by default the calling
    /// thread's, which does not change.
    pub fn netns(mut self, name: &str) -> AfPacketBuilder {
        self.place.netns = Some(name.to_owned());
        self
    }

    /// Whether to leave segmentation (TCP's and, since Linux 6.2, UDP's) and checksums of frames that are sent to the
    /// kernel, which does what the interface cannot do. On by default. Received frames may be super-frames in any
    /// case: what the interface and the host merge, or what the other end of a veth has not cut (`ethtool -k`).
    pub fn offload(mut self, on: bool) -> AfPacketBuilder {
        self.offload = on;
        self
    }

    /// The hardware address of the host behind the transport, if it differs from that of the interface
    /// ([`AfPacket::mac`]): a network card then receives frames to it too. Without this, or
    /// [`promiscuous`](Self::promiscuous), a card drops them; a veth and a macvlan in mode `passthru` receive all
    /// frames.
    pub fn mac(mut self, mac: Mac) -> AfPacketBuilder {
        self.mac = Some(mac);
        self
    }

    /// Whether a network card is to receive frames to all hosts. Off by default.
    pub fn promiscuous(mut self, on: bool) -> AfPacketBuilder {
        self.promiscuous = on;
        self
    }

    /// Memory in bytes for frames that wait to be received, 4 MiB by default; frames that find it full are dropped
    /// and [counted](super::AfPacketStats::dropped). A super-frame takes 64 KiB and more. Without CAP_NET_ADMIN not more
    /// than `net.core.rmem_max`.
    pub fn receive_buffer(mut self, bytes: usize) -> AfPacketBuilder {
        self.receive_buffer = bytes;
        self
    }

    /// Memory in bytes for frames that were sent and have not left the interface, 2 MiB by default; the link is full
    /// when it is used up. Without CAP_NET_ADMIN not more than `net.core.wmem_max`.
    pub fn send_buffer(mut self, bytes: usize) -> AfPacketBuilder {
        self.send_buffer = bytes;
        self
    }

    /// Opens the socket.
    ///
    /// # Errors
    /// See [`AfPacketError`].
    pub fn build(self) -> Result<AfPacket, AfPacketError> {
        if !self.place.is_valid() {
            return Err(AfPacketError::BadName(self.place.name));
        }
        if let Some(mac) = self.mac.filter(|mac| !mac.is_unicast()) {
            return Err(AfPacketError::Mac(mac));
        }
        let opened = self.place.within(|| self.open());
        let (fd, mac, mtu) = opened.map_err(|error| self.outside(error))??;
        let waker = Waker::new().map_err(|error| self.system("eventfd", error.into()))?;
        Ok(AfPacket {
            capabilities: self.capabilities(mtu),
            fd,
            mac,
            place: self.place,
            down: AtomicBool::new(false),
            no_memory: AtomicBool::new(false),
            waker,
            counters: super::Counters::default(),
            dropped: Mutex::new(Counter::default()),
        })
    }

    /// Opens in the namespace of the calling thread.
    fn open(&self) -> Result<(OwnedFd, Mac, usize), AfPacketError> {
        let interface = socket::interface(&self.place.name).map_err(|error| {
            let place = self.place.clone();
            match error {
                NoInterface::Missing => AfPacketError::NotFound(place),
                NoInterface::NotEthernet => AfPacketError::NotEthernet(place),
                NoInterface::System(errno) => self.system("getifaddrs", errno.into()),
            }
        })?;
        let fd = socket::open(&interface).map_err(|(call, errno)| match errno {
            Errno::EPERM | Errno::EACCES => AfPacketError::Prohibited(self.place.clone()),
            Errno::ENODEV | Errno::ENXIO => AfPacketError::NotFound(self.place.clone()),
            errno => self.system(call, errno.into()),
        })?;
        self.settings(&fd, &interface)?;
        let mtu = ioctl::mtu(fd.as_fd(), &self.place.name)
            .map_err(|errno| self.system("SIOCGIFMTU", errno.into()))?;
        Ok((fd, interface.mac, mtu))
    }

    fn settings(&self, fd: &OwnedFd, interface: &Interface) -> Result<(), AfPacketError> {
        socket::set_memory(fd, self.receive_buffer, self.send_buffer)
            .map_err(|errno| self.system("SO_RCVBUF", errno.into()))?;
        let other = self.mac.filter(|mac| *mac != interface.mac);
        let also = [
            Some(Also::Groups),
            other.map(Also::Host),
            self.promiscuous.then_some(Also::Everything),
        ];
        for also in also.into_iter().flatten() {
            socket::receive_also(fd, interface, also)
                .map_err(|errno| self.system("PACKET_ADD_MEMBERSHIP", errno.into()))?;
        }
        Ok(())
    }

    fn capabilities(&self, mtu: usize) -> Capabilities {
        let segment = self.offload.then_some(SUPER_FRAME + HEADER);
        let datagrams = segment.filter(|_| cuts_datagrams());
        Capabilities::new(mtu + HEADER)
            .checksum(self.offload)
            .segment_v4(segment)
            .segment_v6(segment)
            .datagrams_v4(datagrams)
            .datagrams_v6(datagrams)
    }

    fn outside(&self, error: NamespaceError) -> AfPacketError {
        let place = self.place.clone();
        match error {
            NamespaceError::NotFound => AfPacketError::NoNamespace(place),
            NamespaceError::Prohibited => AfPacketError::NamespaceProhibited(place),
            NamespaceError::System(call, error) => AfPacketError::System { place, call, error },
        }
    }

    fn system(&self, call: &'static str, error: io::Error) -> AfPacketError {
        AfPacketError::System {
            place: self.place.clone(),
            call,
            error,
        }
    }
}

/// Whether the kernel knows the virtio-net header of UDP super-frames: Linux 6.2 and later. It has no other sign.
fn cuts_datagrams() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split('.')
        .map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (6, 2)
}
