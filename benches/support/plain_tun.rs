//! A TUN or TAP opened without this crate, for the baselines.

#![allow(
    unsafe_code,
    reason = "ioctl arguments are a matter between the caller and the driver"
)]

use anyhow::{Context, anyhow};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{IntegerSetter, Setter, Updater, ioctl, opcode};
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::ffi::c_int;
use std::str::FromStr;

/// `NAME[@NETNS][=ADDRESS/PREFIX]`.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) name: String,
    netns: Option<String>,
    /// The proxy's own address on the device.
    #[allow(dead_code, reason = "forwarding needs none")]
    pub(crate) address: Option<String>,
}

impl FromStr for Spec {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Spec> {
        let (device, address) = match text.split_once('=') {
            Some((device, address)) => (device, Some(address.to_owned())),
            None => (text, None),
        };
        let (name, netns) = match device.split_once('@') {
            Some((name, netns)) => (name, Some(netns.to_owned())),
            None => (device, None),
        };
        Ok(Spec {
            name: name.to_owned(),
            netns,
            address,
        })
    }
}

/// An open device, non-blocking, and its MTU.
#[derive(Debug)]
pub(crate) struct PlainTun {
    #[allow(
        dead_code,
        reason = "one program of the peers takes no more than the namespace"
    )]
    pub(crate) fd: OwnedFd,
    #[allow(dead_code, reason = "forwarding does not look")]
    pub(crate) mtu: usize,
}

impl Spec {
    /// Opens the device, with a virtio-net header of 10 bytes and all offloads, or with neither.
    #[allow(dead_code, reason = "others open a TAP")]
    pub(crate) fn open(&self, header: bool) -> anyhow::Result<PlainTun> {
        self.inside(|| self.attach(header, if header { 0x5001 } else { 0x1001 }))
    }

    /// Opens a TAP, without header and offloads.
    #[allow(dead_code, reason = "most open a TUN")]
    pub(crate) fn open_tap(&self) -> anyhow::Result<PlainTun> {
        self.inside(|| self.attach(false, 0x1002))
    }

    /// Runs `attach` in a thread that is in the namespace.
    pub(crate) fn inside<T: Send>(
        &self,
        attach: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        std::thread::scope(|scope| {
            let inside = std::thread::Builder::new().spawn_scoped(scope, || {
                if let Some(netns) = &self.netns {
                    let file = std::fs::File::open(format!("/run/netns/{netns}"))?;
                    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
                }
                attach()
            })?;
            inside.join().map_err(|_| anyhow!("a panic"))?
        })
        .with_context(|| format!("opening {self:?}"))
    }

    fn attach(&self, header: bool, kind: u16) -> anyhow::Result<PlainTun> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
        let mut ifreq = [0u8; 40];
        let name = self.name.as_bytes();
        ifreq[..name.len()].copy_from_slice(name);
        ifreq[16..18].copy_from_slice(&kind.to_ne_bytes());
        // SAFETY: TUNSETIFF reads and writes a `struct ifreq` of 40 bytes.
        unsafe {
            ioctl(
                &fd,
                Updater::<{ opcode::write::<c_int>(b'T', 202) }, _>::new(&mut ifreq),
            )?;
        }
        if header {
            // SAFETY: TUNSETVNETHDRSZ reads an int.
            unsafe {
                ioctl(
                    &fd,
                    Setter::<{ opcode::write::<c_int>(b'T', 216) }, c_int>::new(10),
                )?;
            }
        }
        let set = |offloads| {
            // SAFETY: TUNSETOFFLOAD takes its argument by value.
            unsafe {
                ioctl(
                    &fd,
                    IntegerSetter::<{ opcode::write::<c_int>(b'T', 208) }>::new_usize(offloads),
                )
            }
        };
        // Checksums, segments of TCP, datagrams of UDP: the latter since Linux 6.2.
        let (streams, datagrams) = (1 | 2 | 4, 0x20 | 0x40);
        match header {
            true => set(streams | datagrams).or_else(|_| set(streams))?,
            false => set(0)?,
        }
        let any = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        // SAFETY: SIOCGIFMTU reads and writes a `struct ifreq` of 40 bytes.
        unsafe { ioctl(&any, Updater::<0x8921, _>::new(&mut ifreq))? };
        let mtu = u32::from_ne_bytes([ifreq[16], ifreq[17], ifreq[18], ifreq[19]]);
        Ok(PlainTun {
            fd,
            mtu: usize::try_from(mtu)?,
        })
    }
}
