//! The two ends that are compared: a connection of the crate's stack, and a socket of plain smoltcp. Packets go in
//! and out, and an application calls.

use crate::clock::SetClock;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::wire::{HardwareAddress, IpCidr, IpEndpoint};
use sosplice::clock::Clock;
use sosplice::link::memory::{self, MemoryLink};
use sosplice::link::{Capabilities, Frame, Link, Packet};
use sosplice::stack::{Driver, TcpState};
use sosplice::{Stack, TcpListener, TcpSocket, TcpStream};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub(crate) const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The port of the listener, at both ends.
pub(crate) const PORT: u16 = 80;
/// Most packets of one poll of smoltcp; all that the buffers of [`Setting`] can hold is less.
pub(crate) const MOST_PACKETS: usize = 1024;
const NEVER: Duration = Duration::from_secs(48 * 3600);

/// How both are set up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    /// The ends dial, else the peer does.
    pub(crate) dials: bool,
    pub(crate) stamps: bool,
    pub(crate) receive_buffer: usize,
    pub(crate) send_buffer: usize,
}

/// Where a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Open,
    TimeWait,
    Gone,
}

/// The result of a receive call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    Bytes(usize),
    End,
    /// The end was there.
    Forgotten,
    Nothing,
}

pub(crate) trait End {
    /// A packet arrives.
    fn packet(&mut self, packet: &[u8]);
    /// Does the pending work, and returns the packets to send.
    fn poll(&mut self) -> Vec<Vec<u8>>;
    fn write(&mut self, bytes: &[u8]) -> usize;
    fn read(&mut self, bytes: &mut [u8]) -> Read;
    fn shutdown(&mut self);
    fn abort(&mut self);
    fn state(&self) -> State;
}

/// The crate's.
pub(crate) struct Ours {
    wire: MemoryLink,
    driver: Driver,
    stack: Stack,
    listener: Option<TcpListener>,
    stream: Option<TcpStream>,
}

impl Ours {
    pub(crate) fn new(setting: &Setting, clock: &Arc<SetClock>) -> Ours {
        let (link, wire) = memory::pair(
            memory::Config::default()
                .frames(4096)
                .capabilities(Capabilities::new(1500).checksum(true)),
        );
        let (stack, driver) = Stack::builder(link)
            .address("10.0.0.1/24".parse().unwrap())
            .receive_buffer(setting.receive_buffer)
            .send_buffer(setting.send_buffer)
            .user_timeout(NEVER)
            .half_closed_timeout(None)
            .fin_wait_timeout(NEVER)
            .stall_timeout(None)
            .ack_delay(None)
            .clock(clock.clone())
            .seed(1)
            .build_with_driver()
            .unwrap();
        let (mut listener, mut stream) = (None, None);
        if setting.dials {
            stream = TcpSocket::new(&stack)
                .start(SocketAddr::from((PEER, PORT)))
                .ok();
        } else {
            let any = TcpListener::bind(&stack, (OWN, PORT)).unwrap();
            any.set_nonblocking(true);
            listener = Some(any);
        }
        let ours = Ours {
            wire,
            driver,
            stack,
            listener,
            stream,
        };
        if let Some(stream) = &ours.stream {
            stream.set_nonblocking(true);
        }
        ours
    }
}

impl End for Ours {
    fn packet(&mut self, packet: &[u8]) {
        let taken = self.wire.transmit(&Packet::new(packet, &[], 20));
        taken.expect("the link has room");
    }

    fn poll(&mut self) -> Vec<Vec<u8>> {
        let mut frames: Vec<Frame> = Vec::new();
        while self.driver.poll().expect("the link is there") {}
        if let Some(Ok((stream, _))) = self.listener.as_ref().map(TcpListener::accept) {
            stream.set_nonblocking(true);
            self.stream = Some(stream);
        }
        self.wire.receive(&mut frames, 4096).expect("there is one");
        frames.iter().map(Frame::to_vec).collect()
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let stream = self.stream.as_ref();
        stream.map_or(0, |stream| stream.send(bytes).unwrap_or(0))
    }

    fn read(&mut self, bytes: &mut [u8]) -> Read {
        match self.stream.as_ref().map(|stream| stream.recv(bytes)) {
            Some(Ok(0)) => Read::End,
            Some(Ok(count)) => Read::Bytes(count),
            Some(Err(error)) => {
                let reset = ErrorKind::ConnectionReset;
                assert!([ErrorKind::WouldBlock, reset].contains(&error.kind()));
                Read::Nothing
            }
            None => Read::Nothing,
        }
    }

    fn shutdown(&mut self) {
        if let Some(stream) = &self.stream {
            stream.shutdown(Shutdown::Write).ok();
        }
    }

    fn abort(&mut self) {
        if let Some(stream) = &self.stream {
            stream.abort();
        }
    }

    fn state(&self) -> State {
        let sockets = self.stack.sockets();
        let mut states = sockets.iter().filter(|socket| socket.peer.is_some());
        match states.next().map(|socket| socket.state) {
            None | Some(TcpState::Closed) => State::Gone,
            Some(TcpState::TimeWait) => State::TimeWait,
            Some(_) => State::Open,
        }
    }
}

/// A link as a device of smoltcp. It is full at some time: without a bound, a socket that sends without end would keep
/// `poll` for ever, and take all memory.
#[derive(Default)]
pub(crate) struct Device {
    inbox: VecDeque<Vec<u8>>,
    outbox: Vec<Vec<u8>>,
}

pub(crate) struct Rx(Vec<u8>);
pub(crate) struct Tx<'a>(&'a mut Vec<Vec<u8>>);

impl phy::RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

impl phy::Device for Device {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Rx, Tx<'_>)> {
        let packet = self.inbox.pop_front()?;
        Some((Rx(packet), Tx(&mut self.outbox)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Tx<'_>> {
        (self.outbox.len() < MOST_PACKETS).then_some(Tx(&mut self.outbox))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities
    }
}

/// smoltcp's.
pub(crate) struct Plain {
    device: Device,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    clock: Arc<SetClock>,
    /// It has received the peer's FIN; smoltcp drops that state at the end of TIME-WAIT.
    ended: bool,
}

impl Plain {
    pub(crate) fn new(setting: &Setting, clock: &Arc<SetClock>) -> Plain {
        let mut device = Device::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = 1;
        let now = smoltcp::time::Instant::ZERO;
        let mut interface = Interface::new(config, &mut device, now);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(OWN.into(), 24)).unwrap();
        });
        let buffer = |size| tcp::SocketBuffer::new(vec![0; size]);
        let (receive, send) = (setting.receive_buffer, setting.send_buffer);
        let mut socket = tcp::Socket::new(buffer(receive), buffer(send));
        socket.set_ack_delay(None);
        socket.set_tsval_generator(setting.stamps.then_some(|| 1));
        if setting.dials {
            let peer = IpEndpoint::new(PEER.into(), PORT);
            let context = interface.context();
            socket.connect(context, peer, 50_000).unwrap();
        } else {
            socket.listen(PORT).unwrap();
        }
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Plain {
            device,
            interface,
            sockets,
            handle,
            clock: clock.clone(),
            ended: false,
        }
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

impl End for Plain {
    fn packet(&mut self, packet: &[u8]) {
        self.device.inbox.push_back(packet.to_vec());
    }

    fn poll(&mut self) -> Vec<Vec<u8>> {
        let micros = i64::try_from(self.clock.passed().as_micros()).unwrap();
        let now = smoltcp::time::Instant::from_micros(micros);
        self.interface
            .poll(now, &mut self.device, &mut self.sockets);
        self.ended |= matches!(
            self.socket().state(),
            tcp::State::CloseWait
                | tcp::State::Closing
                | tcp::State::LastAck
                | tcp::State::TimeWait
        );
        std::mem::take(&mut self.device.outbox)
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        self.socket().send_slice(bytes).unwrap_or(0)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Read {
        match self.socket().recv_slice(bytes) {
            Err(tcp::RecvError::InvalidState) if self.ended => Read::Forgotten,
            Ok(0) | Err(tcp::RecvError::InvalidState) => Read::Nothing,
            Ok(count) => Read::Bytes(count),
            Err(tcp::RecvError::Finished) => Read::End,
        }
    }

    fn shutdown(&mut self) {
        self.socket().close();
    }

    fn abort(&mut self) {
        self.socket().abort();
    }

    fn state(&self) -> State {
        match self.sockets.get::<tcp::Socket<'_>>(self.handle).state() {
            // A listening socket listens again after a reset.
            tcp::State::Closed | tcp::State::Listen => State::Gone,
            tcp::State::TimeWait => State::TimeWait,
            _ => State::Open,
        }
    }
}

/// The clock that both have.
pub(crate) fn clock() -> Arc<SetClock> {
    let clock = SetClock::new();
    let _: &dyn Clock = &*clock;
    clock
}
