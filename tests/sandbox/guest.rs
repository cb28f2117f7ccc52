//! Guests without machines: stacks of this crate over the sandbox's socket. The only one has the address that it would
//! be given, and knows the gateway's hardware address; several on a hub are hosts, and ask.

use sosplice::Stack;
use sosplice::link::ethernet::{AddressState, FrameStream, Host, HostConfig, Mac};
use sosplice::link::{Capabilities, Frame, Interest, Link, Packet, ReceiveError, TransmitError};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

const HEADER: usize = 14;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// The default of `EdgeConfig`.
const GATEWAY: [u8; 6] = [0x02, 0x73, 0x70, 0x6c, 0x69, 0x01];

#[derive(Debug)]
struct Ethernet(FrameStream);

impl Link for Ethernet {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(9000)
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        let mut received = Vec::new();
        let result = self.0.receive(&mut received, max);
        received.retain(|frame| frame.len() > HEADER && frame.head[12..HEADER] == [8, 0]);
        received
            .iter_mut()
            .for_each(|frame| frame.head.advance(HEADER));
        let count = received.len();
        frames.append(&mut received);
        result.map(|_| count)
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        let header = [&GATEWAY[..], &MAC, &[8, 0], packet.header].concat();
        let at = packet.ip_header_len + HEADER;
        self.0.transmit(&Packet::new(&header, packet.payload, at))
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.0.wait(interest, deadline)
    }

    fn wake(&self) {
        self.0.wake();
    }
}

pub(crate) struct Guest {
    pub(crate) stack: Stack,
    socket: UnixStream,
}

impl Guest {
    /// Connects to the sandbox.
    pub(crate) fn start(path: &Path) -> Guest {
        let socket = UnixStream::connect(path).unwrap();
        let link = Ethernet(FrameStream::from_stream(socket.try_clone().unwrap()).unwrap());
        let builder = Stack::builder(link).address("10.0.2.15/24".parse().unwrap());
        let stack = builder.build().unwrap();
        Guest { stack, socket }
    }

    /// It is gone without a further frame.
    pub(crate) fn kill(&self) {
        self.socket.shutdown(Shutdown::Both).unwrap();
    }
}

/// A host of a network that asks for its address.
pub(crate) struct Neighbour {
    pub(crate) stack: Stack,
    host: Arc<Host<FrameStream>>,
}

impl Neighbour {
    pub(crate) fn start(socket: UnixStream, number: u8) -> Neighbour {
        let config = HostConfig::new(Mac([2, 0, 0, 0, 1, number]));
        let config = config.dhcp(true).probe(false);
        let transport = FrameStream::from_stream(socket).unwrap();
        let host = Arc::new(Host::new(transport, config).unwrap());
        let stack = Stack::builder(Arc::clone(&host)).build().unwrap();
        Neighbour { stack, host }
    }

    /// Once it has one.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        let addresses = self.host.addresses();
        let mut used = addresses
            .iter()
            .filter(|own| own.state == AddressState::InUse);
        used.find_map(|own| own.address.addr().is_ipv4().then_some(own.address.addr()))
    }
}

/// Connects so many sockets with each other and with the sandbox, as a hub does. It runs as long as the test.
pub(crate) fn hub<const COUNT: usize>(path: &Path) -> [UnixStream; COUNT] {
    let mut ports = vec![UnixStream::connect(path).unwrap()];
    let sockets = [(); COUNT].map(|()| {
        let (near, far) = UnixStream::pair().unwrap();
        ports.push(near);
        far
    });
    let writers: Vec<_> = ports.iter().map(|port| port.try_clone().unwrap()).collect();
    let writers = Arc::new(Mutex::new(writers));
    for (from, mut port) in ports.into_iter().enumerate() {
        let writers = Arc::clone(&writers);
        let run = move || {
            while let Ok(frame) = frame(&mut port) {
                let mut writers = writers.lock().unwrap();
                let others = writers.iter_mut().enumerate().filter(|(to, _)| *to != from);
                // One that is gone does not receive it.
                others.for_each(|(_, writer)| writer.write_all(&frame).unwrap_or(()));
            }
        };
        thread::Builder::new().spawn(run).unwrap();
    }
    sockets
}

/// A frame with its length in front.
fn frame(port: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    port.read_exact(&mut len)?;
    let mut frame = vec![0; 4 + usize::try_from(u32::from_be_bytes(len)).unwrap()];
    frame[..4].copy_from_slice(&len);
    port.read_exact(&mut frame[4..])?;
    Ok(frame)
}
