//! The system calls of a packet socket.

use super::super::frame::Mac;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType,
    SockaddrStorage, bind, getsockname, getsockopt, recvmsg, setsockopt, socket,
};
use nix::{cmsg_space, getsockopt_impl, libc, setsockopt_impl, sockopt_impl};
use rustix::net::sockopt::{
    set_socket_recv_buffer_size, set_socket_recv_buffer_size_force, set_socket_send_buffer_size,
    set_socket_send_buffer_size_force, socket_recv_buffer_size,
};
use std::ffi::c_int;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};

sockopt_impl!(
    VnetHeader,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_VNET_HDR,
    bool
);
sockopt_impl!(
    AuxData,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_AUXDATA,
    bool
);
sockopt_impl!(
    IgnoreOutgoing,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_IGNORE_OUTGOING,
    bool
);
sockopt_impl!(
    Member,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_ADD_MEMBERSHIP,
    libc::packet_mreq
);
sockopt_impl!(
    Statistics,
    GetOnly,
    libc::SOL_PACKET,
    libc::PACKET_STATISTICS,
    libc::tpacket_stats
);

/// The least memory that the kernel counts for a frame that waits in a socket.
const LEAST_FRAME: usize = 256;
/// The index of an interface that was deleted.
const DELETED: c_int = -1;

/// An Ethernet interface.
#[derive(Debug)]
pub(super) struct Interface {
    address: LinkAddr,
    pub(super) mac: Mac,
}

/// Why there is no such interface.
#[derive(Debug)]
pub(super) enum NoInterface {
    Missing,
    NotEthernet,
    System(Errno),
}

/// Finds an interface in the network namespace of the calling thread.
pub(super) fn interface(name: &str) -> Result<Interface, NoInterface> {
    let all = getifaddrs().map_err(NoInterface::System)?;
    let mut found = all
        .filter(|each| each.interface_name == name)
        .map(|each| (each.flags, each.address))
        .peekable();
    found.peek().ok_or(NoInterface::Missing)?;
    let ethernet = found.find_map(|(flags, address)| {
        let address = *address?.as_link_addr()?;
        let is_ethernet = address.hatype() == libc::ARPHRD_ETHER && address.halen() == 6;
        let is_loopback = flags.contains(InterfaceFlags::IFF_LOOPBACK);
        let mac = address.addr().map(Mac)?;
        (is_ethernet && !is_loopback).then_some(Interface { address, mac })
    });
    ethernet.ok_or(NoInterface::NotEthernet)
}

/// A socket for all frames of the interface, which it receives from now on. An error names the call.
pub(super) fn open(interface: &Interface) -> Result<OwnedFd, (&'static str, Errno)> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(
        AddressFamily::Packet,
        SockType::Raw,
        flags,
        SockProtocol::EthAll,
    )
    .map_err(|errno| ("socket", errno))?;
    setsockopt(&fd, VnetHeader, &true).map_err(|errno| ("PACKET_VNET_HDR", errno))?;
    setsockopt(&fd, AuxData, &true).map_err(|errno| ("PACKET_AUXDATA", errno))?;
    setsockopt(&fd, IgnoreOutgoing, &true).map_err(|errno| ("PACKET_IGNORE_OUTGOING", errno))?;
    bind(fd.as_raw_fd(), &interface.address).map_err(|errno| ("bind", errno))?;
    discard(&fd);
    Ok(fd)
}

/// Discards the frames that have arrived before: those of all interfaces until the socket was bound to one.
fn discard(fd: &OwnedFd) {
    let most = socket_recv_buffer_size(fd).unwrap_or(0) / LEAST_FRAME;
    for _ in 0..=most {
        if rustix::io::read(fd, &mut [0; 1]) == Err(rustix::io::Errno::AGAIN) {
            break;
        }
    }
    // Reading them sets the counters to 0.
    dropped(fd);
}

/// Frames that the kernel has dropped since the last call, because the socket's memory was full.
pub(super) fn dropped(fd: &OwnedFd) -> u64 {
    getsockopt(fd, Statistics).map_or(0, |count| count.tp_drops.into())
}

/// Bounds of the memory for frames to receive and to send: as given, or as much of it as the system allows.
pub(super) fn set_memory(fd: &OwnedFd, receive: usize, send: usize) -> rustix::io::Result<()> {
    set_socket_recv_buffer_size_force(fd, receive)
        .or_else(|_| set_socket_recv_buffer_size(fd, receive))?;
    set_socket_send_buffer_size_force(fd, send).or_else(|_| set_socket_send_buffer_size(fd, send))
}

/// Frames that the interface is to receive in addition to those to its own address and to all hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Also {
    Groups,
    Host(Mac),
    Everything,
}

/// The interface receives those frames too, as long as the socket is open.
pub(super) fn receive_also(fd: &OwnedFd, interface: &Interface, also: Also) -> Result<(), Errno> {
    let (kind, len, mac) = match also {
        Also::Groups => (libc::PACKET_MR_ALLMULTI, 0, [0; 6]),
        Also::Host(Mac(mac)) => (libc::PACKET_MR_UNICAST, 6, mac),
        Also::Everything => (libc::PACKET_MR_PROMISC, 0, [0; 6]),
    };
    let [a, b, c, d, e, f] = mac;
    let member = libc::packet_mreq {
        mr_ifindex: c_int::try_from(interface.address.ifindex()).unwrap_or(DELETED),
        mr_type: u16::try_from(kind).expect("invariant: a small constant"),
        mr_alen: len,
        mr_address: [a, b, c, d, e, f, 0, 0],
    };
    setsockopt(fd, Member, &member)
}

/// Whether the interface of a socket was deleted, or moved to another namespace.
pub(super) fn is_deleted(fd: &OwnedFd) -> bool {
    // Not read as a `LinkAddr`: the kernel's is shorter.
    let name = getsockname::<SockaddrStorage>(fd.as_raw_fd()).ok();
    let address = name.as_ref().and_then(SockaddrStorage::as_link_addr);
    address.is_some_and(|address| address.as_ref().sll_ifindex == DELETED)
}

/// A tag of a virtual LAN: the kind that it has in a frame, and its value.
pub(super) type Tag = (u16, u16);

/// Receives a frame into several buffers. Returns its length with the virtio-net header, and the tag that the kernel has
/// taken out of it.
pub(super) fn receive(
    fd: &OwnedFd,
    buffers: &mut [IoSliceMut<'_>],
) -> Result<(usize, Option<Tag>), Errno> {
    let mut control = cmsg_space!(libc::tpacket_auxdata);
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(fd.as_raw_fd(), buffers, Some(&mut control), flags)?;
    if message.flags.contains(MsgFlags::MSG_TRUNC) {
        return Err(Errno::EMSGSIZE);
    }
    let tag = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Unknown(unknown) => tag(&unknown.data_bytes),
        _ => None,
    });
    Ok((message.bytes, tag))
}

/// The tag in `struct tpacket_auxdata`.
fn tag(auxdata: &[u8]) -> Option<Tag> {
    let (status, rest) = auxdata.split_first_chunk()?;
    let status = u32::from_ne_bytes(*status);
    // Lengths of the frame: four bytes twice, two bytes twice.
    let (tci, rest) = rest.get(12..)?.split_first_chunk()?;
    let (kind, _) = rest.split_first_chunk()?;
    let kind = match status & libc::TP_STATUS_VLAN_TPID_VALID {
        0 => super::super::frame::TAGGED,
        _ => u16::from_ne_bytes(*kind),
    };
    let has_tag = status & libc::TP_STATUS_VLAN_VALID != 0;
    has_tag.then_some((kind, u16::from_ne_bytes(*tci)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_found_in_what_the_kernel_says_about_a_frame() {
        let auxdata = |status: u32, kind: u16| {
            let mut bytes = status.to_ne_bytes().to_vec();
            bytes.extend([9; 12]);
            bytes.extend(7u16.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes
        };
        let (valid, kind) = (libc::TP_STATUS_VLAN_VALID, libc::TP_STATUS_VLAN_TPID_VALID);
        assert_eq!(tag(&auxdata(valid | kind, 0x88a8)), Some((0x88a8, 7)));
        assert_eq!(tag(&auxdata(valid | 1, 0)), Some((0x8100, 7)));
        assert_eq!(tag(&auxdata(1, 0)), None);
        let whole = auxdata(valid | kind, 0x8100);
        for len in 0..whole.len() {
            assert_eq!(tag(&whole[..len]), None, "{len}");
        }
    }
}
