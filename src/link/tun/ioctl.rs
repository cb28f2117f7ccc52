//! The `ioctl` calls of a TUN device, as safe functions.

#![allow(
    unsafe_code,
    reason = "ioctl arguments are a matter between the caller and the driver"
)]

use crate::link::place::NAME_MAX;
use rustix::fd::{BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::Result;
use rustix::ioctl::{IntegerSetter, Ioctl, IoctlOutput, Opcode, Setter, Updater, ioctl, opcode};
use rustix::net::netdevice;
use std::ffi::{c_int, c_uint, c_void};

const TUNGETIFF: Opcode = opcode::read::<c_uint>(b'T', 210);
const TUNGETVNETHDRSZ: Opcode = opcode::read::<c_int>(b'T', 215);
const TUNSETIFF: Opcode = opcode::write::<c_int>(b'T', 202);
const TUNSETOFFLOAD: Opcode = opcode::write::<c_int>(b'T', 208);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<c_int>(b'T', 216);
const TUNGETDEVNETNS: Opcode = opcode::none(b'T', 227);
const SIOCGIFMTU: Opcode = 0x8921;
const SIOCETHTOOL: Opcode = 0x8946;

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
/// The string set with the names of features.
const ETH_SS_FEATURES: u32 = 4;
/// Length of each, in bytes.
const ETH_GSTRING_LEN: usize = 32;
/// An upper bound: the kernel has them in a word of 64 bits.
const FEATURES: usize = 128;

/// A TUN: IP packets, no link header.
pub(super) const IFF_TUN: u16 = 0x0001;
/// A TAP: frames of Ethernet.
pub(super) const IFF_TAP: u16 = 0x0002;
/// One of several queues; the device must be multi-queue.
pub(super) const IFF_MULTI_QUEUE: u16 = 0x0100;
/// No packet information in front of each packet.
pub(super) const IFF_NO_PI: u16 = 0x1000;
/// A virtio-net header in front of each packet.
pub(super) const IFF_VNET_HDR: u16 = 0x4000;

/// The reader accepts partial checksums.
pub(super) const TUN_F_CSUM: u32 = 1;
/// The reader accepts TCP/IPv4 super-frames.
pub(super) const TUN_F_TSO4: u32 = 2;
/// The reader accepts TCP/IPv6 super-frames.
pub(super) const TUN_F_TSO6: u32 = 4;
/// The reader accepts such super-frames with ECN's CWR flag.
const TUN_F_TSO_ECN: u32 = 8;
/// The reader accepts UDP super-frames over IPv4 and over IPv6: the kernel requires both or none.
pub(super) const TUN_F_USO: u32 = 0x20 | 0x40;

/// The ethtool features that correspond to the offloads of the reader.
const OFFLOADS: [(&str, u32); 5] = [
    ("tx-checksum-ip-generic", TUN_F_CSUM),
    ("tx-tcp-segmentation", TUN_F_TSO4),
    ("tx-tcp6-segmentation", TUN_F_TSO6),
    ("tx-tcp-ecn-segmentation", TUN_F_TSO_ECN),
    ("tx-udp-segmentation", TUN_F_USO),
];

/// The kernel's `struct ifreq`: a name and a union, of which two members are used here. As large as on
/// 64-bit kernels; others read and write less.
#[repr(C)]
struct Ifreq {
    name: [u8; NAME_MAX + 1],
    value: [u8; 24],
}

impl Ifreq {
    /// Truncates long names; the caller has checked the length.
    fn new(name: &str) -> Ifreq {
        let mut ifreq = Ifreq {
            name: [0; NAME_MAX + 1],
            value: [0; 24],
        };
        for (to, from) in ifreq.name[..NAME_MAX].iter_mut().zip(name.bytes()) {
            *to = from;
        }
        ifreq
    }

    fn name(&self) -> Result<&str> {
        let name = self.name.split(|byte| *byte == 0).next().unwrap_or(&[]);
        std::str::from_utf8(name).map_err(|_| rustix::io::Errno::INVAL)
    }
}

/// Attaches an open `/dev/net/tun` to the interface `name`.
pub(super) fn set_interface(tun: BorrowedFd<'_>, name: &str, flags: u16) -> Result<()> {
    let mut ifreq = Ifreq::new(name);
    ifreq.value[..2].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: TUNSETIFF reads a `struct ifreq` and writes it back; ours is as large as any kernel's,
    // and every pattern of bytes is a valid one.
    unsafe { ioctl(tun, Updater::<TUNSETIFF, Ifreq>::new(&mut ifreq)) }
}

/// What the kernel tells of the interface.
fn request(tun: BorrowedFd<'_>) -> Result<Ifreq> {
    let mut ifreq = Ifreq::new("");
    // SAFETY: TUNGETIFF writes a `struct ifreq`; ours is as large as any kernel's.
    unsafe { ioctl(tun, Updater::<TUNGETIFF, Ifreq>::new(&mut ifreq))? };
    Ok(ifreq)
}

/// The interface's current name, and its flags, of which [`IFF_NO_PI`] means something else here.
pub(super) fn interface(tun: BorrowedFd<'_>) -> Result<(String, u16)> {
    let ifreq = request(tun)?;
    let [a, b, ..] = ifreq.value;
    Ok((ifreq.name()?.to_owned(), u16::from_ne_bytes([a, b])))
}

/// Whether the device is in the network namespace of the calling thread. To ask needs `CAP_NET_ADMIN` in that of the
/// device.
pub(super) fn is_here(tun: BorrowedFd<'_>) -> Result<bool> {
    // SAFETY: TUNGETDEVNETNS takes no argument and returns a new descriptor.
    let namespace = rustix::fs::fstat(unsafe { ioctl(tun, DeviceNamespace)? })?;
    let own = rustix::fs::stat("/proc/thread-self/ns/net")?;
    Ok((namespace.st_dev, namespace.st_ino) == (own.st_dev, own.st_ino))
}

/// `TUNGETDEVNETNS`.
struct DeviceNamespace;

// SAFETY: the call reads and writes no memory, and what it returns is a descriptor that has no other owner.
unsafe impl Ioctl for DeviceNamespace {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        TUNGETDEVNETNS
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> Result<OwnedFd> {
        // SAFETY: the kernel has made it for this call.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}

/// The interface's index. `socket` must be in the device's network namespace.
pub(super) fn index(socket: BorrowedFd<'_>, tun: BorrowedFd<'_>) -> Result<u32> {
    netdevice::name_to_index(socket, request(tun)?.name()?)
}

/// The length in bytes of the header in front of each packet.
pub(super) fn header_len(tun: BorrowedFd<'_>) -> Result<c_int> {
    let mut len: c_int = 0;
    // SAFETY: TUNGETVNETHDRSZ writes an `int`.
    unsafe { ioctl(tun, Updater::<TUNGETVNETHDRSZ, c_int>::new(&mut len))? };
    Ok(len)
}

/// The offloads of the device's reader, as set by the latest [`set_offload`]. `socket` must be in the
/// device's network namespace.
pub(super) fn offload(socket: BorrowedFd<'_>, tun: BorrowedFd<'_>) -> Result<u32> {
    let name = request(tun)?.name;
    let mut count = SetInfo {
        cmd: ETHTOOL_GSSET_INFO,
        reserved: 0,
        mask: 1 << ETH_SS_FEATURES,
        count: 0,
    };
    ethtool(socket, name, &mut count)?;
    let count = usize::try_from(count.count).unwrap_or(usize::MAX);
    if count > FEATURES {
        return Err(rustix::io::Errno::OVERFLOW);
    }
    let mut strings = Strings {
        cmd: ETHTOOL_GSTRINGS,
        set: ETH_SS_FEATURES,
        len: 0,
        names: [[0; ETH_GSTRING_LEN]; FEATURES],
    };
    ethtool(socket, name, &mut strings)?;
    let mut features = Features {
        cmd: ETHTOOL_GFEATURES,
        size: u32::try_from(FEATURES / 32).unwrap_or(0),
        blocks: [Block::default(); FEATURES / 32],
    };
    ethtool(socket, name, &mut features)?;
    let is_active = |feature: &str| {
        let at = strings.names.iter().position(|name| {
            let (name, rest) = name.split_at(feature.len());
            name == feature.as_bytes() && rest.first() == Some(&0)
        });
        at.is_some_and(|at| features.blocks[at / 32].active >> (at % 32) & 1 != 0)
    };
    let bits = OFFLOADS.iter().filter(|(feature, _)| is_active(feature));
    Ok(bits.fold(0, |all, (_, bits)| all | bits))
}

/// `struct ethtool_sset_info` for one set, padded as in C.
#[repr(C)]
struct SetInfo {
    cmd: u32,
    reserved: u32,
    mask: u64,
    count: u32,
}

/// `struct ethtool_gstrings`.
#[repr(C)]
struct Strings {
    cmd: u32,
    set: u32,
    len: u32,
    names: [[u8; ETH_GSTRING_LEN]; FEATURES],
}

/// `struct ethtool_gfeatures`.
#[repr(C)]
struct Features {
    cmd: u32,
    size: u32,
    blocks: [Block; FEATURES / 32],
}

/// `struct ethtool_get_features_block`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Block {
    available: u32,
    requested: u32,
    active: u32,
    never_changed: u32,
}

/// The ethtool commands used here: each reads and writes a structure that begins with the command's
/// number, no larger than ours.
trait Command {}
impl Command for SetInfo {}
impl Command for Strings {}
impl Command for Features {}

fn ethtool<C: Command>(
    socket: BorrowedFd<'_>,
    name: [u8; NAME_MAX + 1],
    command: &mut C,
) -> Result<()> {
    let mut ifreq = Ifreq {
        name,
        value: [0; 24],
    };
    let address = std::ptr::from_mut(command)
        .expose_provenance()
        .to_ne_bytes();
    ifreq.value[..address.len()].copy_from_slice(&address);
    // SAFETY: SIOCETHTOOL reads a `struct ifreq` with the address of a command, and writes within the
    // structure that belongs to the command's number: the only structures here are those of `Command`,
    // made with their numbers. The number of strings was asked for before, and of the features the
    // kernel writes no more blocks than it is told that there are. The command is borrowed mutably until
    // the call returns.
    unsafe { ioctl(socket, Updater::<SIOCETHTOOL, Ifreq>::new(&mut ifreq)) }
}

/// Sets the offloads of the device's reader.
pub(super) fn set_offload(tun: BorrowedFd<'_>, bits: u32) -> Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    unsafe {
        ioctl(
            tun,
            IntegerSetter::<TUNSETOFFLOAD>::new_usize(bits as usize),
        )
    }
}

/// Sets the length in bytes of the header in front of each packet.
pub(super) fn set_header_len(tun: BorrowedFd<'_>, len: c_int) -> Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads an `int`.
    unsafe { ioctl(tun, Setter::<TUNSETVNETHDRSZ, c_int>::new(len)) }
}

/// The MTU of the interface `name` in the network namespace of `socket`.
pub(in crate::link) fn mtu(socket: BorrowedFd<'_>, name: &str) -> Result<usize> {
    let mut ifreq = Ifreq::new(name);
    // SAFETY: SIOCGIFMTU reads the name in a `struct ifreq` and writes the whole back, as above.
    unsafe { ioctl(socket, Updater::<SIOCGIFMTU, Ifreq>::new(&mut ifreq))? };
    let [a, b, c, d, ..] = ifreq.value;
    Ok(usize::try_from(c_int::from_ne_bytes([a, b, c, d])).unwrap_or(0))
}
