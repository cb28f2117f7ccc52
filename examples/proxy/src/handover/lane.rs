//! Devices that can change hands: a [`Lane`] is a queue of a device that this process reads, or does not, and a
//! [`Passage`] the way for packets from the process that reads to the one that did before.
//!
//! A passed packet is one packet of a `SOCK_SEQPACKET` socket: the state of its checksum and the size of its segments,
//! and the bytes. If the socket is full, since the former process lags behind, it is lost, as in a network.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_send_buffer_size, set_socket_send_buffer_size_force};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType,
};
use sosplice::clock::{Clock, SystemClock};
use sosplice::link::tun::Tun;
use sosplice::link::{
    Capabilities, Checksum, Flow, Frame, Interest, Link, Packet, ReceiveError, TransmitError,
};
use std::collections::HashSet;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

/// Length of the description of a packet.
const HEADER: usize = 8;
/// The largest packet that the kernel gives, and its description.
const MOST: usize = HEADER + 65_575;
/// Bytes of passed packets that wait, with what the kernel needs for each.
const ROOM: usize = 32 * 1024 * 1024;
/// Most pieces of a packet that are sent as such.
const PIECES: usize = 64;

const TCP: u8 = 6;
const SYN: u8 = 2;
/// FIN, SYN, RST and ACK.
const FLAGS: u8 = 1 | SYN | 4 | 16;

/// See the module. The other end is in a [`Lane`] of the former process.
#[derive(Debug)]
pub(crate) struct Passage {
    socket: OwnedFd,
    open: AtomicBool,
    /// Clients whose handshakes the former process has begun, and which may repeat their first segment.
    diverted: OnceLock<HashSet<SocketAddr>>,
}

impl Passage {
    pub(super) fn new(socket: OwnedFd) -> Passage {
        Passage {
            socket,
            open: AtomicBool::new(true),
            diverted: OnceLock::new(),
        }
    }

    pub(super) fn divert(&self, clients: Vec<SocketAddr>) {
        // Once: a process takes over once.
        self.diverted.set(clients.into_iter().collect()).ok();
    }

    /// The former process has ended.
    pub(super) fn close(&self) {
        self.open.store(false, Ordering::Relaxed);
    }

    /// Passes a packet on; `false` if there is no process for it.
    pub(crate) fn pass(&self, frame: &Frame) -> bool {
        if !self.open.load(Ordering::Relaxed) {
            return false;
        }
        let header = describe(frame);
        let together;
        let mut pieces = vec![IoSlice::new(&header), IoSlice::new(&frame.head)];
        if frame.rest.len() < PIECES {
            pieces.extend(frame.rest.iter().map(|piece| IoSlice::new(piece)));
        } else {
            together = frame.to_vec();
            pieces[1] = IoSlice::new(&together);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            let mut none = SendAncillaryBuffer::default();
            match rustix::net::sendmsg(&self.socket, &pieces, &mut none, flags) {
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => {
                    self.close();
                    return false;
                }
                // Lost, if it was not sent: see the module.
                _ => return true,
            }
        }
    }

    /// Whether it is the first segment of such a client.
    fn diverts(&self, frame: &Frame) -> bool {
        let Some(clients) = self.diverted.get().filter(|clients| !clients.is_empty()) else {
            return false;
        };
        self.open.load(Ordering::Relaxed)
            && beginner(&frame.head).is_some_and(|client| clients.contains(&client))
    }
}

/// The sender of a SYN.
fn beginner(packet: &[u8]) -> Option<SocketAddr> {
    let (address, at) = match packet.first()? >> 4 {
        4 if packet.get(9) == Some(&TCP) => {
            let source: [u8; 4] = *packet.get(12..)?.first_chunk()?;
            (IpAddr::from(source), usize::from(packet[0] & 15) * 4)
        }
        6 if packet.get(6) == Some(&TCP) => {
            let source: [u8; 16] = *packet.get(8..)?.first_chunk()?;
            (IpAddr::from(source), 40)
        }
        _ => return None,
    };
    let tcp = packet.get(at..)?;
    let port = u16::from_be_bytes(*tcp.first_chunk()?);
    (tcp.get(13)? & FLAGS == SYN).then(|| SocketAddr::new(address, port))
}

fn describe(frame: &Frame) -> [u8; HEADER] {
    let (kind, start, offset) = match frame.checksum {
        Checksum::Complete => (0, 0, 0),
        Checksum::Verified => (1, 0, 0),
        Checksum::Partial { start, offset } => (2, start, offset),
    };
    let segment = frame.segment.map_or(0, NonZeroU16::get);
    let [a, b] = u16::to_ne_bytes(start);
    let [c, d] = u16::to_ne_bytes(offset);
    let [e, f] = segment.to_ne_bytes();
    [kind, 0, a, b, c, d, e, f]
}

/// `None` if it is none.
fn described(bytes: &[u8]) -> Option<Frame> {
    let ([kind, _, a, b, c, d, e, f], packet) = bytes.split_first_chunk::<HEADER>()?;
    let checksum = match kind {
        0 => Checksum::Complete,
        1 => Checksum::Verified,
        2 => Checksum::Partial {
            start: u16::from_ne_bytes([*a, *b]),
            offset: u16::from_ne_bytes([*c, *d]),
        },
        _ => return None,
    };
    let segment = NonZeroU16::new(u16::from_ne_bytes([*e, *f]));
    Some(Frame::new(packet).checksum(checksum).segment(segment))
}

#[derive(Debug)]
struct Turn {
    /// This process reads the device.
    reads: bool,
    /// Passed packets may be left, which are older than those of the device.
    left: bool,
    /// The driver has asked for packets since the last change, so it is done with those of before.
    asked: bool,
    buffer: Vec<u8>,
}

/// A queue of a device. See the module.
#[derive(Debug)]
pub(crate) struct Lane {
    tun: Tun,
    /// For packets that another process passes on, and the end that it gets.
    passed: OwnedFd,
    giving: OwnedFd,
    /// To the former process.
    passage: Option<Arc<Passage>>,
    turn: Mutex<Turn>,
}

impl Lane {
    /// One that reads the device from the start, or not before [`read`](Self::read).
    pub(crate) fn new(tun: Tun, reads: bool, passage: Option<Arc<Passage>>) -> io::Result<Lane> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = SocketType::SEQPACKET;
        let (passed, giving) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)?;
        // The first needs a privilege that goes beyond the limits of the system.
        if set_socket_send_buffer_size_force(&giving, ROOM).is_err() {
            set_socket_send_buffer_size(&giving, ROOM)?;
        }
        Ok(Lane {
            tun,
            passed,
            giving,
            passage,
            turn: Mutex::new(Turn {
                reads,
                left: false,
                asked: false,
                buffer: Vec::new(),
            }),
        })
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the device from now on. No packet of it is read by this process after it has returned `false`.
    pub(super) fn read(&self, on: bool) {
        {
            let mut turn = self.turn();
            turn.left |= on && !turn.reads;
            turn.reads = on;
            turn.asked = false;
        }
        self.tun.wake();
    }

    /// Whether all packets from before the last change have been handled.
    pub(super) fn is_settled(&self) -> bool {
        self.turn().asked
    }

    pub(super) fn tun(&self) -> &Tun {
        &self.tun
    }

    /// The end for the process that passes packets on.
    pub(super) fn giving(&self) -> BorrowedFd<'_> {
        self.giving.as_fd()
    }

    /// Appends passed packets.
    fn receive_passed(&self, turn: &mut Turn, frames: &mut Vec<Frame>, max: usize) -> usize {
        turn.buffer.resize(MOST, 0);
        let before = frames.len();
        while frames.len() - before < max {
            let buffer = &mut turn.buffer[..];
            match rustix::net::recv(&self.passed, buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
                // Longer ones do not exist.
                Ok((_, count)) => frames.extend(turn.buffer.get(..count).and_then(described)),
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        frames.len() - before
    }

    /// Reads the device; the first segments of clients that the former process knows go there.
    fn receive_own(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        let before = frames.len();
        let result = self.tun.receive(frames, max);
        let Some(passage) = &self.passage else {
            return result;
        };
        let mut at = before;
        while let Some(frame) = frames.get(at) {
            if passage.diverts(frame) && passage.pass(frame) {
                frames.remove(at);
            } else {
                at += 1;
            }
        }
        result.map(|_| frames.len() - before)
    }
}

impl Link for Lane {
    fn capabilities(&self) -> Capabilities {
        self.tun.capabilities()
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        let turn = &mut *self.turn();
        turn.asked = true;
        if !turn.reads || turn.left {
            let count = self.receive_passed(turn, frames, max);
            turn.left &= count > 0;
            if !turn.reads || count > 0 {
                return Ok(count);
            }
        }
        self.receive_own(frames, max)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        self.tun.transmit(packet)
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        if self.turn().reads {
            return self.tun.wait(interest, deadline);
        }
        let Some([device, wake]) = self.tun.descriptors() else {
            return self.tun.wait(interest, deadline);
        };
        let rest = deadline.map(|at| at.saturating_duration_since(SystemClock.now()));
        let rest = rest.and_then(|rest| Timespec::try_from(rest).ok());
        let reads = interest.overlaps(Interest::READABLE);
        let writes = interest.overlaps(Interest::WRITABLE);
        let flag = |on, flag| if on { flag } else { PollFlags::empty() };
        let mut fds = [
            PollFd::from_borrowed_fd(device, flag(writes, PollFlags::OUT)),
            PollFd::from_borrowed_fd(wake, PollFlags::IN),
            PollFd::new(&self.passed, flag(reads, PollFlags::IN)),
        ];
        // May return early: also after a signal.
        poll(&mut fds, rest.as_ref()).ok();
        // It clears its wake-up, and knows whether the device is gone.
        self.tun.wait(Interest::NONE, Some(SystemClock.now()))
    }

    fn wake(&self) {
        self.tun.wake();
    }

    /// While another process reads, the first one is that of passed packets. It always has room: a thread that waits for
    /// room in the device, which TUNs practically always have, asks again and again then.
    fn descriptors(&self) -> Option<[BorrowedFd<'_>; 2]> {
        let own = self.tun.descriptors()?;
        let reads = self.turn().reads;
        Some(match reads {
            true => own,
            false => [self.passed.as_fd(), own[1]],
        })
    }

    fn steer(&self, flow: &Flow) -> Option<usize> {
        self.tun.steer(flow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TCP segment with these flags.
    fn segment(v6: bool, flags: u8) -> Vec<u8> {
        let mut packet = vec![0; if v6 { 60 } else { 40 }];
        let at = packet.len() - 20;
        match v6 {
            true => {
                (packet[0], packet[6]) = (0x60, TCP);
                packet[8..24].copy_from_slice(&[0xfd; 16]);
            }
            false => {
                (packet[0], packet[9]) = (0x45, TCP);
                packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
            }
        }
        packet[at..at + 2].copy_from_slice(&7000_u16.to_be_bytes());
        packet[at + 13] = flags;
        packet
    }

    #[test]
    fn a_passed_packet_is_the_same() {
        let kinds = [
            Checksum::Complete,
            Checksum::Verified,
            Checksum::Partial {
                start: 40,
                offset: 16,
            },
        ];
        for checksum in kinds {
            for size in [None, NonZeroU16::new(1440)] {
                let frame = Frame::new(b"packet").checksum(checksum).segment(size);
                let bytes = [&describe(&frame)[..], b"packet"].concat();
                let passed = described(&bytes).unwrap();
                assert_eq!(passed.to_vec(), b"packet");
                assert_eq!((passed.checksum, passed.segment), (checksum, size));
            }
        }
        assert!(described(&[0; HEADER - 1]).is_none());
        assert!(described(&[3; HEADER]).is_none());
    }

    #[test]
    fn first_segments_are_found() {
        for (v6, client) in [
            (false, "10.0.0.1:7000"),
            (true, "[fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd]:7000"),
        ] {
            let client = client.parse().ok();
            // With bits of ECN, and without.
            for (flags, found) in [
                (SYN, client),
                (SYN | 0xc0, client),
                (SYN | 16, None),
                (16, None),
            ] {
                let whole = segment(v6, flags);
                assert_eq!(beginner(&whole), found);
                for len in 0..whole.len() - 6 {
                    assert_eq!(beginner(&whole[..len]), None, "{len}");
                }
            }
        }
    }

    #[test]
    fn packets_pass_until_the_other_end_is_closed() {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = SocketType::SEQPACKET;
        let (near, far) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
        let passage = Passage::new(near);
        let clients = vec!["10.0.0.1:7000".parse().unwrap()];
        passage.divert(clients);
        let syn = Frame::new(&segment(false, SYN));
        assert!(passage.diverts(&syn) && passage.pass(&syn));
        assert!(!passage.diverts(&Frame::new(&segment(true, SYN))));
        let mut bytes = [0; 100];
        let (_, count) = rustix::net::recv(&far, &mut bytes[..], RecvFlags::empty()).unwrap();
        assert_eq!(described(&bytes[..count]).unwrap().to_vec(), syn.to_vec());
        // Full: lost, and no error.
        while rustix::net::send(&passage.socket, &[0; 1000], SendFlags::DONTWAIT).is_ok() {}
        assert!(passage.pass(&syn));
        drop(far);
        assert!(!passage.pass(&syn) && !passage.diverts(&syn));
    }
}
