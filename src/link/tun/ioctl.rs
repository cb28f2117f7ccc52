//! The `ioctl` calls of a TUN device, as safe functions.

#![allow(
    unsafe_code,
    reason = "ioctl arguments are a matter between the caller and the driver"
)]

use rustix::fd::BorrowedFd;
use rustix::io::Result;
use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl, opcode};
use std::ffi::c_int;

const TUNSETIFF: Opcode = opcode::write::<c_int>(b'T', 202);
const TUNSETOFFLOAD: Opcode = opcode::write::<c_int>(b'T', 208);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<c_int>(b'T', 216);
const SIOCGIFMTU: Opcode = 0x8921;

/// A TUN: IP packets, no link header.
pub(super) const IFF_TUN: u16 = 0x0001;
/// One of several queues; the device has to have been made so.
pub(super) const IFF_MULTI_QUEUE: u16 = 0x0100;
/// No packet information in front of each packet.
pub(super) const IFF_NO_PI: u16 = 0x1000;
/// A virtio-net header in front of each packet.
pub(super) const IFF_VNET_HDR: u16 = 0x4000;

/// The reader completes checksums.
pub(super) const TUN_F_CSUM: u32 = 1;
/// The reader takes TCP/IPv4 super-frames.
pub(super) const TUN_F_TSO4: u32 = 2;
/// The reader takes TCP/IPv6 super-frames.
pub(super) const TUN_F_TSO6: u32 = 4;

/// Longest name of an interface, in bytes.
pub(super) const NAME_MAX: usize = 15;

/// The kernel's `struct ifreq`: a name and a union, of which two members are used here. As large as
/// on 64-bit kernels; the others read and write less.
#[repr(C)]
struct Ifreq {
    name: [u8; NAME_MAX + 1],
    value: [u8; 24],
}

impl Ifreq {
    /// Names that are too long are cut; the caller has checked.
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
}

/// Attaches an open `/dev/net/tun` to the interface `name`.
pub(super) fn set_interface(tun: BorrowedFd<'_>, name: &str, flags: u16) -> Result<()> {
    let mut ifreq = Ifreq::new(name);
    ifreq.value[..2].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: TUNSETIFF reads a `struct ifreq` and writes it back; ours is as large as any kernel's,
    // and every pattern of bytes is a valid one.
    unsafe { ioctl(tun, Updater::<TUNSETIFF, Ifreq>::new(&mut ifreq)) }
}

/// Says which packets the reader is ready to complete.
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
pub(super) fn mtu(socket: BorrowedFd<'_>, name: &str) -> Result<usize> {
    let mut ifreq = Ifreq::new(name);
    // SAFETY: SIOCGIFMTU reads the name in a `struct ifreq` and writes the whole back, as above.
    unsafe { ioctl(socket, Updater::<SIOCGIFMTU, Ifreq>::new(&mut ifreq))? };
    let [a, b, c, d, ..] = ifreq.value;
    Ok(usize::try_from(c_int::from_ne_bytes([a, b, c, d])).unwrap_or(0))
}
