//! The loops without a device: clients and a backend, with a stack and threads of the usual kind, at
//! the other end of a link that is a pair of datagram sockets. It can be polled like a TUN; the
//! library's own links in memory have no descriptors.

use crate::proxy::{Arguments, Proxy, run_loop};
use anyhow::{Context, ensure};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use sosplice::clock::{Clock, SystemClock};
use sosplice::link::{Capabilities, Frame, Interest, Link, Packet, ReceiveError, TransmitError};
use sosplice::{Stack, TcpListener, TcpStream};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Arc;
use std::thread::{self, ScopedJoinHandle};
use std::time::Instant;

const MTU: usize = 1500;

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (near, far) = UnixDatagram::pair()?;
    let proxy = Proxy::new(Arc::new(Datagrams::new(near)?), arguments)?;
    // Open until the loop has ended: it sends its last acknowledgements when the other end has all bytes.
    let far = Arc::new(Datagrams::new(far)?);
    let ends = (proxy.listener.local_addr(), arguments.backend);
    let (connections, bytes) = (arguments.connections, arguments.bytes);
    let (stop, running) = UnixStream::pair()?;
    let link = far.clone();
    let beside = thread::Builder::new().spawn(move || {
        let _running = running; // Its end stops the loop.
        traffic(link, ends, connections, bytes)
    })?;
    run_loop(proxy, &stop, arguments.which)?;
    drop(far);
    let equal = beside
        .join()
        .expect("invariant: the other end does not panic")?;
    println!("{equal} of {connections} connections brought every byte back");
    ensure!(equal == connections, "bytes differ from what was sent");
    Ok(())
}

/// A link on a datagram socket: like a VPN's link around its tunnel.
#[derive(Debug)]
struct Datagrams {
    socket: UnixDatagram,
    wake: OwnedFd,
}

impl Datagrams {
    fn new(socket: UnixDatagram) -> io::Result<Datagrams> {
        socket.set_nonblocking(true)?;
        let wake = eventfd(0, EventfdFlags::NONBLOCK)?;
        Ok(Datagrams { socket, wake })
    }
}

impl Link for Datagrams {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(MTU)
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        let mut bytes = [0; MTU];
        for count in 0..max {
            match self.socket.recv(&mut bytes) {
                Ok(len) => frames.push(Frame::new(&bytes[..len])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(count),
                Err(error) => return Err(ReceiveError::Gone(error)),
            }
        }
        Ok(max)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        let mut bytes = packet.header.to_vec();
        packet
            .payload
            .iter()
            .for_each(|part| bytes.extend_from_slice(part));
        match self.socket.send(&bytes) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(TransmitError::Full),
            Err(error) => Err(TransmitError::Gone(error)),
        }
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::IN, interest.overlaps(Interest::READABLE));
        wanted.set(PollFlags::OUT, interest.overlaps(Interest::WRITABLE));
        let mut fds = [
            PollFd::new(&self.socket, wanted),
            PollFd::new(&self.wake, PollFlags::IN),
        ];
        let left = deadline.map(|deadline| deadline.saturating_duration_since(SystemClock.now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        poll(&mut fds, left.as_ref()).ok(); // Returning early does no harm.
        rustix::io::read(&self.wake, &mut [0; 8]).ok(); // Empty, if it was not this that ended the wait.
        Ok(())
    }

    fn wake(&self) {
        rustix::io::write(&self.wake, &1u64.to_ne_bytes()).ok(); // Fails if it is readable for long.
    }

    fn descriptors(&self) -> Option<[BorrowedFd<'_>; 2]> {
        Some([self.socket.as_fd(), self.wake.as_fd()])
    }
}

/// Clients of an echoing backend. Returns the number of correct echoes.
fn traffic(
    link: Arc<Datagrams>,
    (proxy, backend): (SocketAddr, SocketAddr),
    connections: u16,
    bytes: u32,
) -> anyhow::Result<u16> {
    let net = ipnet::IpNet::new(backend.ip(), 24)?;
    let stack = Stack::builder(link).address(net).build()?;
    let listener = TcpListener::bind_with_backlog(&stack, backend, connections.into())?;
    thread::scope(|scope| {
        let clients: io::Result<Vec<_>> = (0..connections)
            .map(|number| {
                thread::Builder::new().spawn_scoped(scope, {
                    let stack = &stack;
                    move || exchange(&TcpStream::connect(stack, proxy)?, number, bytes)
                })
            })
            .collect();
        for _ in 0..connections {
            let (stream, _) = listener.accept()?;
            thread::Builder::new().spawn_scoped(scope, move || echo(&stream))?;
        }
        let join =
            |client: ScopedJoinHandle<'_, _>| client.join().expect("invariant: no client panics");
        clients?
            .into_iter()
            .map(join)
            .sum::<io::Result<u16>>()
            .context("a client")
    })
}

fn echo(mut stream: &TcpStream) -> io::Result<()> {
    io::copy(&mut { stream }, &mut stream)?;
    stream.shutdown(Shutdown::Write)
}

/// 1 if the echo is correct.
fn exchange(mut stream: &TcpStream, number: u16, bytes: u32) -> io::Result<u16> {
    let byte = |at: u32| {
        (at ^ u32::from(number))
            .wrapping_mul(0x9e37_79b9)
            .to_be_bytes()[0]
    };
    let sent: Vec<u8> = (0..bytes).map(byte).collect();
    let mut received = Vec::new();
    thread::scope(|scope| {
        let (mut writer, sent) = (stream, &sent);
        let send = move || {
            writer
                .write_all(sent)
                .and_then(|()| writer.shutdown(Shutdown::Write))
        };
        let sender = thread::Builder::new().spawn_scoped(scope, send)?;
        stream.read_to_end(&mut received)?;
        sender.join().expect("invariant: the sender does not panic")
    })?;
    Ok(u16::from(received == sent))
}
