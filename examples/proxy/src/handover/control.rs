//! The Unix socket of a handover: its file, its connections and their messages.
//!
//! Each message is one packet of a `SOCK_SEQPACKET` socket, with a length, a deadline and a sender of the same user, so
//! a peer that is slow or sends anything else costs a bounded time.

use anyhow::{Context, bail};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::process::{PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use sosplice::clock::{Clock, SystemClock};
use sosplice::link::tun::DeviceSettings;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

/// The version of messages and of passed packets.
pub(super) const VERSION: u32 = 1;
/// Largest message in bytes.
const MOST: usize = 128 * 1024;
/// Most descriptors of a message: two devices with 64 queues and a passage, a listener, and a process.
const DESCRIPTORS: usize = 2 * 65 + 2;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// See the table of [`handover`](super).
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Message {
    /// A descriptor: the process (a pidfd, which is one in any namespace).
    Hello {
        common: Vec<String>,
        pid: u32,
    },
    /// Descriptors: the queues of each device and its passage, the listener, and the process.
    Offered {
        pid: u32,
        /// The half of the ports for the second process.
        upper: bool,
        devices: Vec<Device>,
    },
    Refused {
        why: String,
    },
    Take,
    Yours {
        half_open: Vec<SocketAddr>,
    },
    Serving,
}

/// The message and its version, which is checked first.
#[derive(Serialize, Deserialize)]
struct Envelope<M> {
    version: u32,
    message: M,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Device {
    pub(super) queues: usize,
    pub(super) settings: Settings,
}

/// [`DeviceSettings`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Settings {
    offload: u32,
    former_offload: Option<u32>,
    former_header: i32,
}

impl From<DeviceSettings> for Settings {
    fn from(from: DeviceSettings) -> Settings {
        Settings {
            offload: from.offload,
            former_offload: from.former_offload,
            former_header: from.former_header,
        }
    }
}

impl From<Settings> for DeviceSettings {
    fn from(from: Settings) -> DeviceSettings {
        DeviceSettings {
            offload: from.offload,
            former_offload: from.former_offload,
            former_header: from.former_header,
        }
    }
}

/// What is at the path of a socket.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing, or the socket of a process that has ended.
    Nothing,
    Listener(Connection),
}

/// Connects to the process that listens at `path`.
pub(super) fn connect(path: &Path) -> anyhow::Result<Found> {
    let shown = path.display();
    let address = SocketAddrUnix::new(path)
        .with_context(|| format!("--handover {shown}: give a path of up to 107 bytes"))?;
    if !is_socket(path)? {
        return Ok(Found::Nothing);
    }
    let socket = socket()?;
    match retry(|| rustix::net::connect(&socket, &address)) {
        Ok(()) => {}
        Err(Errno::CONNREFUSED | Errno::NOENT) => return Ok(Found::Nothing),
        Err(Errno::AGAIN) => {
            bail!("--handover {shown}: the process there is busy with others, try again later")
        }
        Err(Errno::PROTOTYPE) => {
            bail!("--handover {shown} is the socket of another program: give another path")
        }
        Err(error) => {
            return Err(io::Error::from(error)).with_context(|| format!("--handover {shown}"));
        }
    }
    let connection = Connection { socket };
    connection
        .check_user()
        .with_context(|| format!("--handover {shown}"))?;
    Ok(Found::Listener(connection))
}

/// Whether there is a socket at `path`; an error if there is anything else.
fn is_socket(path: &Path) -> anyhow::Result<bool> {
    let shown = path.display();
    match rustix::fs::lstat(path) {
        Ok(file) if FileType::from_raw_mode(file.st_mode) == FileType::Socket => Ok(true),
        Ok(_) => {
            bail!(
                "--handover {shown} exists and is no socket: give the path of one, or one that does not exist"
            )
        }
        Err(Errno::NOENT) => {
            let parent = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            match parent.map(rustix::fs::stat).transpose() {
                Ok(_) => Ok(false),
                Err(error) => Err(io::Error::from(error))
                    .with_context(|| format!("--handover {shown}: its directory")),
            }
        }
        Err(error) => Err(io::Error::from(error)).with_context(|| format!("--handover {shown}")),
    }
}

/// Listens at `path`, where a socket that another process has left is replaced. Only this user may connect.
pub(super) fn listen(path: &Path) -> anyhow::Result<OwnedFd> {
    let shown = path.display();
    let address = SocketAddrUnix::new(path).with_context(|| format!("--handover {shown}"))?;
    if is_socket(path)? {
        rustix::fs::unlink(path).with_context(|| format!("--handover {shown}"))?;
    }
    let socket = socket()?;
    // The file gets this mode when it is made, less the mask of the process.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).context("fchmod")?;
    rustix::net::bind(&socket, &address)
        .and_then(|()| rustix::net::listen(&socket, BACKLOG))
        .with_context(|| format!("--handover {shown}: cannot listen there"))?;
    Ok(socket)
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok(socket)
}

/// A connection to another process of the same user.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
}

impl Connection {
    /// One that waits at the listener, if there is one.
    pub(super) fn accept(listener: &OwnedFd) -> io::Result<Option<Connection>> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match retry(|| rustix::net::accept_with(listener, flags)) {
            Ok(socket) => {
                let connection = Connection { socket };
                connection.check_user()?;
                Ok(Some(connection))
            }
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The mode of the file keeps other users out already, unless its mode or place changes.
    fn check_user(&self) -> io::Result<()> {
        // (That of rustix has no place for a process of another namespace, whose id is 0.)
        let peer = getsockopt(&self.socket, PeerCredentials)?.uid();
        if peer == 0 || peer == rustix::process::geteuid().as_raw() {
            return Ok(());
        }
        let why = format!("the process there is of another user ({peer})");
        Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
    }

    pub(super) fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_bytes(&encode(message, VERSION)?, fds)
    }

    fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other("too many descriptors"));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let data = [IoSlice::new(bytes)];
        retry(|| rustix::net::sendmsg(&self.socket, &data, &mut control, flags))?;
        Ok(())
    }

    /// The next message; `None` if the peer has closed the connection.
    pub(super) fn receive(&self, deadline: Instant) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        loop {
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
            poll_until(&mut fds, deadline)?;
            match self.receive_now() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            if SystemClock.now() >= deadline {
                let why = "no answer in time: it stands still, or is another program";
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
        }
    }

    /// As [`receive`](Self::receive), or an error if nothing is there.
    pub(super) fn receive_now(&self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MOST];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = {
            let mut data = [IoSliceMut::new(&mut bytes)];
            retry(|| rustix::net::recvmsg(&self.socket, &mut data, &mut control, flags))
        };
        let count = match received {
            Ok(received) => received.bytes,
            Err(Errno::CONNRESET) => 0,
            Err(error) => return Err(error.into()),
        };
        let fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let fds: Vec<_> = fds.flatten().collect();
        if count == 0 {
            return Ok(None);
        }
        Ok(Some((decode(&bytes[..count])?, fds)))
    }

    /// No message can be sent from now on, by either side; those that were are still there.
    pub(super) fn close(&self) {
        rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both).ok();
    }
}

#[cfg(test)]
impl Connection {
    pub(super) fn pair() -> io::Result<(Connection, Connection)> {
        let (flags, kind) = (SocketFlags::NONBLOCK, SocketType::SEQPACKET);
        let (one, other) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)?;
        Ok((Connection { socket: one }, Connection { socket: other }))
    }
}

#[cfg(test)]
impl From<Connection> for OwnedFd {
    fn from(connection: Connection) -> OwnedFd {
        connection.socket
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn encode(message: &Message, version: u32) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(&Envelope { version, message })?)
}

fn decode(bytes: &[u8]) -> io::Result<Message> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let outside: Envelope<serde_json::Value> = serde_json::from_slice(bytes)
        .map_err(|_| invalid("it is no proxy that can hand over".into()))?;
    if outside.version != VERSION {
        return Err(invalid(format!(
            "it has version {} of the handover, this process version {VERSION}: end it, then start the new one",
            outside.version
        )));
    }
    serde_json::from_value(outside.message).map_err(|why| invalid(format!("its message: {why}")))
}

/// This process, for another one.
pub(super) fn this_process() -> io::Result<OwnedFd> {
    Ok(pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?)
}

/// Repeats a call that a signal interrupted.
fn retry<R>(mut call: impl FnMut() -> Result<R, Errno>) -> Result<R, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Waits until one of them has an event, or until the deadline.
pub(super) fn poll_until(fds: &mut [PollFd<'_>], deadline: Instant) -> io::Result<()> {
    let rest = || {
        let rest = deadline.saturating_duration_since(SystemClock.now());
        Timespec::try_from(rest).ok()
    };
    retry(|| poll(fds, rest().as_ref()))?;
    Ok(())
}

/// Waits until one of them has an event.
pub(super) fn poll_for_ever(fds: &mut [PollFd<'_>]) -> io::Result<()> {
    retry(|| poll(fds, None))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_other_versions_and_of_others_are_refused() {
        let hello = Message::Hello {
            common: vec!["tun0".into()],
            pid: 1,
        };
        let bytes = encode(&hello, VERSION).unwrap();
        assert_eq!(decode(&bytes).unwrap(), hello);
        let other = decode(&encode(&hello, VERSION + 1).unwrap()).unwrap_err();
        assert!(other.to_string().contains("has version 2"), "{other}");
        // Also if the messages of that version are not known here.
        let other = decode(b"{\"version\":7,\"message\":\"Howdy\"}").unwrap_err();
        assert!(other.to_string().contains("has version 7"), "{other}");
        let unknown = decode(b"{\"version\":1,\"message\":\"Howdy\"}").unwrap_err();
        assert!(unknown.to_string().contains("Howdy"), "{unknown}");
        for len in 0..bytes.len() {
            let cut = decode(&bytes[..len]).unwrap_err();
            assert!(cut.to_string().contains("no proxy"), "{cut}");
        }
    }

    #[test]
    fn the_largest_message_fits() {
        let address: SocketAddr = "[fd00:1111:2222:3333:4444:5555:6666:7777]:65535"
            .parse()
            .unwrap();
        let half_open = vec![address; super::super::post::NAMED];
        let bytes = encode(&Message::Yours { half_open }, VERSION).unwrap();
        assert!(bytes.len() <= MOST, "{}", bytes.len());
    }
}
