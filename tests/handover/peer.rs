//! One side of a handover, step by step: messages as `examples/proxy/src/handover/control.rs` has them.

use crate::scene::LIMIT;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketType, accept, bind, connect, listen, recv, sendmsg, socket,
};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

pub(crate) struct Peer(OwnedFd);

fn packets() -> OwnedFd {
    socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap()
}

impl Peer {
    pub(crate) fn connect(path: &Path) -> Peer {
        let socket = packets();
        connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        Peer(socket)
    }

    /// Listens in place of a proxy.
    pub(crate) fn listen(path: &Path) -> OwnedFd {
        let socket = packets();
        bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        listen(&socket, 4).unwrap();
        socket
    }

    pub(crate) fn accept(listener: &OwnedFd) -> Peer {
        Peer(accept(listener).unwrap())
    }

    pub(crate) fn say(&self, version: u32, message: &str) {
        self.say_with(version, message, &mut SendAncillaryBuffer::default());
    }

    fn say_with(&self, version: u32, message: &str, fds: &mut SendAncillaryBuffer<'_, '_, '_>) {
        let text = format!("{{\"version\":{version},\"message\":{message}}}");
        let data = [IoSlice::new(text.as_bytes())];
        sendmsg(&self.0, &data, fds, SendFlags::NOSIGNAL).unwrap();
    }

    /// The first message of a process with such devices.
    pub(crate) fn hello(&self, version: u32, devices: &[String; 2]) {
        let [front, back] = devices;
        let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        let fds = [this.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        self.say_with(
            version,
            &format!(
                "{{\"Hello\":{{\"common\":[\"{front}\",\"{back}\",\"no --queues\",\"no --no-offload\"],\"pid\":1}}}}"
            ),
            &mut control,
        );
    }

    /// The next message, empty at the end. (Descriptors are dropped.)
    pub(crate) fn hear(&self) -> String {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let limit = Timespec::try_from(LIMIT).unwrap();
        assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1, "no answer");
        let mut bytes = vec![0; 200_000];
        let (count, _) = recv(&self.0, &mut bytes[..], RecvFlags::empty()).unwrap_or_default();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }
}
