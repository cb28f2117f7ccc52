//! Information about a TUN device from netlink (`RTM_GETLINK`): the flags that apply to all of its
//! queues, and their number.
//!
//! `TUNGETIFF` cannot be used: it reuses the bit of `IFF_NO_PI` for "no filter", so that the bit is
//! always set.

use super::ioctl;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST: u16 = 1;
/// `struct nlmsghdr` and `struct ifinfomsg`.
const HEADERS: usize = 16 + 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_TUN_PI: u16 = 4;
const IFLA_TUN_VNET_HDR: u16 = 5;
const IFLA_TUN_NUM_QUEUES: u16 = 8;
const IFLA_TUN_NUM_DISABLED_QUEUES: u16 = 9;
/// Flags in the type of an attribute.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// The flags of a TUN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct LinkInfo {
    /// `IFF_NO_PI` is off.
    pub(super) packet_information: bool,
    /// `IFF_VNET_HDR` is on.
    pub(super) virtio_header: bool,
    /// Number of open queues, including disabled ones.
    pub(super) queues: u32,
}

/// A netlink socket in the network namespace of the calling thread. It is also used for `ioctl`s about
/// devices.
pub(super) fn socket() -> Result<OwnedFd, Errno> {
    socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // NETLINK_ROUTE is protocol 0.
        None,
    )
}

/// The information about an open device. `socket` must be in its network namespace.
pub(super) fn look_up(socket: BorrowedFd<'_>, tun: BorrowedFd<'_>) -> Result<LinkInfo, Errno> {
    let index = ioctl::index(socket, tun)?;
    let mut request = [0; HEADERS];
    let len = u32::try_from(HEADERS).expect("invariant: a small constant");
    request[..4].copy_from_slice(&len.to_ne_bytes());
    request[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    request[20..24].copy_from_slice(&index.to_ne_bytes());
    sendto(
        socket,
        &request,
        SendFlags::empty(),
        &SocketAddrNetlink::new(0, 0),
    )?;
    let mut answer = vec![0; 32 * 1024];
    let (_, len) = recv(socket, &mut answer[..], RecvFlags::empty())?;
    parse(&answer[..len.min(answer.len())]).ok_or(Errno::PROTO)
}

/// `None` if it is not an answer about a TUN device.
fn parse(answer: &[u8]) -> Option<LinkInfo> {
    if u16::from_ne_bytes(*answer.get(4..)?.first_chunk()?) != RTM_NEWLINK {
        return None;
    }
    let info = find(answer.get(HEADERS..)?, IFLA_LINKINFO)?;
    let data = find(info, IFLA_INFO_DATA)?;
    let flag = |which| Some(find(data, which)?.first()? != &0);
    let number = |which| {
        let bytes = find(data, which).and_then(<[u8]>::first_chunk);
        bytes.map(|bytes| u32::from_ne_bytes(*bytes))
    };
    Some(LinkInfo {
        packet_information: flag(IFLA_TUN_PI)?,
        virtio_header: flag(IFLA_TUN_VNET_HDR)?,
        // Present only for multi-queue devices.
        queues: number(IFLA_TUN_NUM_QUEUES).unwrap_or(1)
            + number(IFLA_TUN_NUM_DISABLED_QUEUES).unwrap_or(0),
    })
}

/// The payload of the first attribute of a type: two bytes of length, two of type, padded to four.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let [a, b, c, d, ..] = *attributes else {
            return None;
        };
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let payload = attributes.get(4..len)?;
        if u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK == wanted {
            return Some(payload);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
        let len = u16::try_from(4 + payload.len()).unwrap();
        let mut all = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        all.extend(payload);
        all.resize(all.len().next_multiple_of(4), 0);
        all
    }

    fn answer(data: &[u8]) -> Vec<u8> {
        let info = [attribute(1, b"tun\0"), attribute(2 | 0x8000, data)].concat();
        let mut all = vec![0; HEADERS];
        all[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
        all.extend(attribute(3, b"t0\0"));
        all.extend(attribute(IFLA_LINKINFO, &info));
        all
    }

    #[test]
    fn flags_and_queues_are_found() {
        let data = [
            attribute(4, &[0]),
            attribute(5, &[1]),
            attribute(8, &2u32.to_ne_bytes()),
            attribute(9, &1u32.to_ne_bytes()),
        ];
        let found = parse(&answer(&data.concat())).unwrap();
        let expected = LinkInfo {
            packet_information: false,
            virtio_header: true,
            queues: 3,
        };
        assert_eq!(found, expected);
        let found = parse(&answer(&data[..2].concat())).unwrap();
        assert_eq!(
            found,
            LinkInfo {
                queues: 1,
                ..expected
            }
        );
    }

    #[test]
    fn truncated_and_unrelated_answers_are_ignored() {
        let whole = answer(&[attribute(4, &[1]), attribute(5, &[0])].concat());
        assert!(parse(&whole).is_some());
        for len in 0..whole.len() - 8 {
            assert_eq!(parse(&whole[..len]), None, "{len}");
        }
        assert_eq!(parse(&answer(&attribute(5, &[1]))), None);
        let mut other = whole;
        other[4] = 2;
        assert_eq!(parse(&other), None);
        // Invalid lengths.
        assert_eq!(find(&[0, 0, 0, 0, 9, 9, 9, 9], 7), None);
        assert_eq!(find(&[2, 0, 1, 0], 1), None);
    }
}
