//! System calls for many datagrams at once, with their addresses: `recvmmsg`, `sendmmsg`, `UDP_SEGMENT`, `UDP_GRO`,
//! the queue of ICMP errors.

use crate::lock::{LEAF, Mutex};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo, sock_extended_err};
use nix::sys::socket::{
    self, ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn6,
    SockaddrStorage, sockopt,
};
#[cfg(target_os = "linux")]
use rustix::net::addr::SocketAddrArg;
#[cfg(target_os = "linux")]
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny};
use smallvec::SmallVec;
use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

/// Messages of one call.
pub(super) const MESSAGES: usize = 32;
/// Most datagrams of one message to send (`UDP_MAX_SEGMENTS` of older kernels).
pub(super) const SEGMENTS: usize = 64;
/// Most pieces of one message (`UIO_MAXIOV`).
pub(super) const PIECES: usize = 1024;
/// Longest message.
const LONGEST: usize = 65_536;
/// Rooms for one call each that are kept.
const ROOMS: usize = 4;

/// Memory that messages are read into. It is used again and again, so that it need not be cleared each time; what
/// was read is copied out of it, into no more memory than it needs.
#[derive(Debug)]
pub(super) struct Room(Vec<Vec<u8>>);

static FREE: Mutex<Vec<Room>, LEAF> = Mutex::new(Vec::new());

impl Room {
    pub(super) fn take() -> Room {
        FREE.lock().pop().unwrap_or(Room(Vec::new()))
    }

    pub(super) fn give_back(self) {
        let mut free = FREE.lock();
        if free.len() < ROOMS {
            free.push(self);
        }
    }

    /// The bytes of a message.
    pub(super) fn bytes(&self, index: usize, message: &Message) -> &[u8] {
        &self.0[index][..message.len]
    }
}

/// A message that was read: one datagram, or several of the same length (but for the last one) and source.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message {
    pub(super) len: usize,
    /// Length of each datagram; 0 for one datagram.
    pub(super) segment: usize,
    pub(super) from: Option<SocketAddr>,
    /// The address that it was sent to.
    pub(super) local: Option<IpAddr>,
}

/// Which control messages a socket wants, and what it is allowed to do.
pub(super) fn set_options(socket: &impl AsFd, v4: bool) {
    // Without one of these, which an old kernel may not know, something is missing and nothing breaks: addresses of
    // this side, datagrams in runs, reports of ICMP errors.
    socket::setsockopt(socket, sockopt::UdpGroSegment, &true).ok();
    socket::setsockopt(socket, sockopt::Ipv4RecvErr, &true).ok();
    if v4 {
        socket::setsockopt(socket, sockopt::Ipv4PacketInfo, &true).ok();
    } else {
        socket::setsockopt(socket, sockopt::Ipv6RecvErr, &true).ok();
        socket::setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true).ok();
    }
}

/// Whether the kernel cuts super-datagrams.
pub(super) fn segments(socket: &impl AsFd) -> bool {
    socket::getsockopt(socket, sockopt::UdpGsoSegment).is_ok()
}

/// Reads up to this many messages into the room.
pub(super) fn receive(
    socket: &impl AsRawFd,
    Room(room): &mut Room,
    want: usize,
) -> Result<Vec<Message>, Errno> {
    let want = want.clamp(1, MESSAGES);
    while room.len() < want {
        room.push(vec![0; LONGEST]);
    }
    let control = cmsg_space!(in6_pktinfo, in_pktinfo, i32);
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(want, Some(control));
    let slices = room.iter_mut().take(want);
    let mut slices: Vec<_> = slices.map(|bytes| [IoSliceMut::new(bytes)]).collect();
    let flags = MsgFlags::MSG_DONTWAIT;
    let read = socket::recvmmsg(
        socket.as_raw_fd(),
        &mut headers,
        slices.iter_mut(),
        flags,
        None,
    )?;
    let messages = read.map(|header| {
        let mut message = Message {
            len: header.bytes,
            segment: 0,
            from: header.address.as_ref().and_then(address),
            local: None,
        };
        header
            .cmsgs()
            .into_iter()
            .flatten()
            .for_each(|control| message.learn(&control));
        message
    });
    Ok(messages.collect())
}

impl Message {
    fn learn(&mut self, control: &ControlMessageOwned) {
        match control {
            ControlMessageOwned::UdpGroSegments(size) => {
                self.segment = usize::try_from(*size).unwrap_or(0);
            }
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                self.local = Some(v4(info.ipi_addr).into());
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                self.local = Some(IpAddr::from(address).to_canonical());
            }
            _ => {}
        }
    }
}

fn v4(address: in_addr) -> Ipv4Addr {
    // In network order, whatever the machine's is.
    Ipv4Addr::from(address.s_addr.to_ne_bytes())
}

/// A socket of IPv6 gives addresses of IPv4 as mapped ones.
fn address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let of_v4 = address.as_sockaddr_in().copied().map(SocketAddrV4::from);
    let of_v6 = address.as_sockaddr_in6().copied().map(SocketAddrV6::from);
    let found = of_v4.map(SocketAddr::from).or(of_v6.map(SocketAddr::from));
    found.map(|found| match found.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::from((ip, found.port())),
        IpAddr::V6(_) => found,
    })
}

/// What is said about a message in control messages. A call sends several messages if there is nothing to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Control {
    /// The address that it is sent from.
    pub(super) local: Option<IpAddr>,
    /// Length of the datagrams that the kernel is to cut it into.
    pub(super) segment: Option<u16>,
}

/// Messages to send.
#[derive(Debug, Default)]
pub(super) struct Outgoing<'a> {
    /// The bytes of all of them.
    pub(super) pieces: Vec<IoSlice<'a>>,
    /// Of each one: its pieces; its destination, or none: the peer that the socket is connected to.
    pub(super) messages: SmallVec<[(Range<usize>, Option<SocketAddr>); MESSAGES]>,
    /// Of the first one; then there are no others.
    pub(super) control: Control,
}

/// Sends messages from the front. Returns how many the kernel has taken: at least one, or its error about the first.
pub(super) fn send(
    socket: &(impl AsRawFd + AsFd),
    outgoing: &Outgoing<'_>,
) -> Result<usize, Errno> {
    match outgoing.control == Control::default() {
        true => send_all(socket, outgoing),
        false => send_one(socket, outgoing, 0).map(|_| 1),
    }
}

#[cfg(target_os = "linux")]
fn send_all(socket: &(impl AsRawFd + AsFd), outgoing: &Outgoing<'_>) -> Result<usize, Errno> {
    let messages = &outgoing.messages;
    let to = messages.iter().map(|(_, to)| to.map(|to| to.as_any()));
    let to: SmallVec<[Option<SocketAddrAny>; MESSAGES]> = to.collect();
    let mut controls: Vec<_> = messages
        .iter()
        .map(|_| SendAncillaryBuffer::default())
        .collect();
    let headers = messages.iter().zip(&to).zip(&mut controls);
    let mut headers: Vec<_> = headers
        .map(|(((pieces, _), to), control)| {
            let pieces = &outgoing.pieces[pieces.clone()];
            match to {
                Some(to) => MMsgHdr::new_with_addr(to, pieces, control),
                None => MMsgHdr::new(pieces, control),
            }
        })
        .collect();
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmmsg(socket, &mut headers, flags)
        .map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

/// With a call for each: `sendmmsg` is not to be had elsewhere.
#[cfg(not(target_os = "linux"))]
fn send_all(socket: &(impl AsRawFd + AsFd), outgoing: &Outgoing<'_>) -> Result<usize, Errno> {
    send_each(socket, outgoing)
}

#[cfg(any(test, not(target_os = "linux")))]
fn send_each(socket: &impl AsRawFd, outgoing: &Outgoing<'_>) -> Result<usize, Errno> {
    for at in 0..outgoing.messages.len() {
        match send_one(socket, outgoing, at) {
            Ok(_) => {}
            Err(error) if at == 0 => return Err(error),
            // The next call gets the error again.
            Err(_) => return Ok(at),
        }
    }
    Ok(outgoing.messages.len())
}

fn send_one(socket: &impl AsRawFd, outgoing: &Outgoing<'_>, at: usize) -> Result<usize, Errno> {
    let Control { local, segment } = outgoing.control;
    let Some((pieces, to)) = outgoing.messages.get(at) else {
        return Ok(0);
    };
    let (from_v4, from_v6) = sources(local);
    let mut control: SmallVec<[ControlMessage<'_>; 2]> = SmallVec::new();
    control.extend(segment.as_ref().map(ControlMessage::UdpGsoSegments));
    control.extend(from_v4.as_ref().map(ControlMessage::Ipv4PacketInfo));
    control.extend(from_v6.as_ref().map(ControlMessage::Ipv6PacketInfo));
    let to = to.map(SockaddrStorage::from);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let pieces = &outgoing.pieces[pieces.clone()];
    socket::sendmsg(socket.as_raw_fd(), pieces, &control, flags, to.as_ref())
}

fn sources(local: Option<IpAddr>) -> (Option<in_pktinfo>, Option<in6_pktinfo>) {
    match local.map(|local| local.to_canonical()) {
        None => (None, None),
        Some(IpAddr::V4(local)) => {
            let info = in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: in_addr {
                    s_addr: u32::from_ne_bytes(local.octets()),
                },
                ipi_addr: in_addr { s_addr: 0 },
            };
            (Some(info), None)
        }
        Some(IpAddr::V6(local)) => {
            let info = in6_pktinfo {
                ipi6_addr: in6_addr {
                    s6_addr: local.octets(),
                },
                ipi6_ifindex: 0,
            };
            (None, Some(info))
        }
    }
}

/// An entry of the queue of errors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Report {
    pub(super) errno: Errno,
    /// An ICMP message is the reason; otherwise this host's own refusal, which the call has returned too.
    pub(super) by_icmp: bool,
    /// Where the datagram was sent.
    pub(super) to: Option<SocketAddr>,
    /// The host that has sent the ICMP message.
    pub(super) by: Option<IpAddr>,
    /// Type and code of the ICMP message.
    pub(super) icmp: (u8, u8),
    /// Of a datagram that was too long for a link: the longest packet that it takes.
    pub(super) mtu: u32,
}

impl Report {
    /// The hop limit was used up on the way, or fragments were missing.
    pub(super) fn is_time_exceeded(&self) -> bool {
        let kind = match self.by {
            Some(IpAddr::V6(_)) => 3,
            _ => 11,
        };
        self.by_icmp && self.icmp.0 == kind
    }
}

const BY_ICMP: [u8; 2] = [2, 3];

/// Takes the next entry of the queue of errors.
pub(super) fn next_report(socket: &impl AsRawFd) -> Option<Report> {
    let mut control = cmsg_space!(sock_extended_err, SockaddrIn6, in6_pktinfo, in_pktinfo);
    let room = control.capacity();
    control.resize(room, 0);
    let mut nothing = [0; 1];
    let mut pieces = [IoSliceMut::new(&mut nothing)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let read = socket::recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut pieces,
        Some(&mut control),
        flags,
    );
    let read = read.ok()?;
    let to = read.address.as_ref().and_then(address);
    let report = |error: sock_extended_err, by: Option<IpAddr>| Report {
        errno: Errno::from_raw(i32::try_from(error.ee_errno).unwrap_or(0)),
        by_icmp: BY_ICMP.contains(&error.ee_origin),
        to,
        by: by.map(|by| by.to_canonical()),
        icmp: (error.ee_type, error.ee_code),
        mtu: error.ee_info,
    };
    let found = read.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(error, by) => {
            Some(report(error, by.map(|by| v4(by.sin_addr).into())))
        }
        ControlMessageOwned::Ipv6RecvErr(error, by) => Some(report(
            error,
            by.map(|by| Ipv6Addr::from(by.sin6_addr.s6_addr).into()),
        )),
        _ => None,
    });
    // An entry that says nothing is an entry.
    Some(found.unwrap_or(Report {
        errno: Errno::UnknownErrno,
        by_icmp: false,
        to,
        by: None,
        icmp: (0, 0),
        mtu: 0,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    /// Waits for messages, and reads them.
    fn read(socket: &UdpSocket) -> Vec<Message> {
        loop {
            match receive(socket, &mut Room(Vec::new()), 4) {
                Err(Errno::EAGAIN) => std::thread::yield_now(),
                other => return other.unwrap(),
            }
        }
    }

    #[test]
    fn a_run_leaves_as_one_message_and_is_one_again_with_its_addresses() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let (from, to) = (UdpSocket::bind(any).unwrap(), UdpSocket::bind(any).unwrap());
            let own = from.local_addr().unwrap();
            let local = to.local_addr().unwrap();
            set_options(&to, local.is_ipv4());
            if !segments(&from) {
                eprintln!("skipped: the kernel does not cut messages");
                return;
            }
            let bytes = [7; 3000];
            for source in [None, Some(own.ip())] {
                let message = |pieces, segment| Outgoing {
                    pieces,
                    messages: SmallVec::from_iter([(0..2, Some(local))]),
                    control: Control {
                        local: source,
                        segment,
                    },
                };
                let pieces = |len: usize| bytes[..len].split_at(len / 3);
                let both = |(a, b)| vec![IoSlice::new(a), IoSlice::new(b)];
                let run = message(both(pieces(3000)), Some(1200));
                assert_eq!(send(&from, &run), Ok(1));
                assert_eq!(send(&from, &message(both(pieces(1000)), None)), Ok(1));
                let mut messages = read(&to);
                while messages.len() < 2 {
                    messages.extend(read(&to));
                }
                let [run, one] = &messages[..] else {
                    panic!("{messages:?}")
                };
                assert_eq!((run.len, run.segment, one.len), (3000, 1200, 1000));
                assert_eq!((run.from, run.local), (Some(own), Some(local.ip())));
            }
        }
    }

    /// As on systems without `sendmmsg`.
    #[test]
    fn messages_leave_one_by_one() {
        let [from, to] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let bytes = [b"one", b"two", b"six"];
        let local = to.local_addr().unwrap();
        let nowhere = "0.0.0.0:0".parse().unwrap();
        let outgoing = |last| Outgoing {
            pieces: bytes.iter().map(|bytes| IoSlice::new(&bytes[..])).collect(),
            messages: [(0..1, Some(local)), (1..2, Some(local)), (2..3, Some(last))]
                .into_iter()
                .collect(),
            control: Control::default(),
        };
        assert_eq!(send_each(&from, &outgoing(local)), Ok(3));
        assert_eq!(send_each(&from, &outgoing(nowhere)), Ok(2));
        for expected in [bytes[0], bytes[1], bytes[2], bytes[0], bytes[1]] {
            let mut buffer = [0; 8];
            let len = to.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], expected);
        }
        let mut first = outgoing(local);
        first.messages[0].1 = Some(nowhere);
        assert!(send_each(&from, &first).is_err());
    }

    #[test]
    fn time_exceeded_of_both_families() {
        let report = |by: &str, kind| Report {
            errno: Errno::EHOSTUNREACH,
            by_icmp: true,
            to: None,
            by: by.parse().ok(),
            icmp: (kind, 0),
            mtu: 0,
        };
        let is = |by, kind| report(by, kind).is_time_exceeded();
        assert!(is("10.0.0.1", 11) && is("fd00::1", 3));
        assert!(!is("10.0.0.1", 3) && !is("fd00::1", 1));
    }
}
