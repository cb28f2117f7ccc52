//! The kernel's sockets: TCP over loopback, unix sockets, and vsock where the kernel has its loopback.

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, VsockAddr};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use sosplice::Socket;
use sosplice::conformance::{Factory, Setup};
use sosplice::kernel::{Address, KernelStream};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Bytes of a kernel buffer: few.
const BUFFER: usize = 16_384;

pub(crate) fn loopback() -> Box<dyn Factory> {
    Box::new(Loopback)
}

pub(crate) fn unix() -> Box<dyn Factory> {
    Box::new(Unix)
}

pub(crate) fn vsock() -> Box<dyn Factory> {
    Box::new(Vsock)
}

/// Whether the kernel has vsock within one machine (`modprobe vsock_loopback`).
pub(crate) fn has_vsock() -> bool {
    vsock_listener().is_ok()
}

fn connected(fd: impl Into<OwnedFd>, setup: Setup) -> Socket {
    let stream = KernelStream::from_fd(fd).unwrap();
    stream.set_rcv_hiwat(setup.rcv_hiwat);
    stream.set_snd_hiwat(setup.snd_hiwat);
    stream.as_ref().clone()
}

struct Loopback;

impl Factory for Loopback {
    fn stands_still(&self) -> bool {
        false
    }

    fn connect(&self, setup: Setup) -> (Socket, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // The accepted socket inherits them.
        set_socket_recv_buffer_size(&listener, BUFFER).unwrap();
        set_socket_send_buffer_size(&listener, BUFFER).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        set_socket_send_buffer_size(&client, BUFFER).unwrap();
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
        }
        (connected(client, setup), connected(server, setup))
    }
}

struct Unix;

impl Factory for Unix {
    fn stands_still(&self) -> bool {
        false
    }

    fn resets(&self) -> bool {
        false
    }

    fn connect(&self, setup: Setup) -> (Socket, Socket) {
        let (client, server) = UnixStream::pair().unwrap();
        for stream in [&client, &server] {
            set_socket_send_buffer_size(stream, BUFFER).unwrap();
        }
        (connected(client, setup), connected(server, setup))
    }
}

fn vsock_listener() -> nix::Result<OwnedFd> {
    let (family, flags) = (AddressFamily::Vsock, SockFlag::SOCK_CLOEXEC);
    let listener = socket::socket(family, SockType::Stream, flags, None)?;
    // This machine, and any port.
    socket::bind(listener.as_raw_fd(), &VsockAddr::new(1, u32::MAX))?;
    socket::listen(&listener, Backlog::new(1)?)?;
    Ok(listener)
}

struct Vsock;

impl Factory for Vsock {
    fn stands_still(&self) -> bool {
        false
    }

    fn resets(&self) -> bool {
        false
    }

    fn connect(&self, setup: Setup) -> (Socket, Socket) {
        let listener = vsock_listener().unwrap();
        let at: VsockAddr = socket::getsockname(listener.as_raw_fd()).unwrap();
        let (cid, port) = (at.cid(), at.port());
        let client = KernelStream::start(Address::Vsock { cid, port }).unwrap();
        let server = rustix::net::accept(&listener).unwrap();
        client.wait_connected(None).unwrap();
        let client = client.into_fd().unwrap().0;
        (connected(client, setup), connected(server, setup))
    }
}
