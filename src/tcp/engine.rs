//! One smoltcp socket with an interface of its own: the only file that drives the engine.
//!
//! The engine keeps sequence numbers, windows, timers and congestion control. It is fed headers with
//! zeros behind them, and what it emits is a header and a length: nothing is ever written into its
//! rings but zeros. Deterministic; under the connection's ownership (rank 1).

#![cfg_attr(
    not(sosplice_tcp_engine),
    allow(dead_code, reason = "the control block is used in its place")
)]

use super::guard::Emission;
use super::ring::{Kept, ring};
use super::wire::{self, Header, MAX_CANONICAL, SynOptions, TCP_HEADER, Tuple};
use crate::link::Capabilities;
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{
    ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken,
};
use smoltcp::socket::tcp::{self, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpEndpoint};
use std::cell::RefCell;
use std::num::{NonZeroU16, NonZeroUsize};

/// A frame that the engine emitted, without its payload.
#[derive(Debug)]
pub(crate) struct Emitted<'a> {
    /// IP and TCP header, checksums not filled in.
    pub(crate) header: &'a mut [u8],
    pub(crate) ip_header_len: usize,
    pub(crate) emission: Emission,
    /// The payload is to be cut into segments of this size.
    pub(crate) segment: Option<NonZeroU16>,
}

/// Where the engine's frames go.
pub(crate) trait Outlet {
    /// Whether another frame may be emitted now. A reply to a received segment does not ask.
    fn ready(&self) -> bool;
    /// Takes a frame. It cannot be refused.
    fn emit(&mut self, emitted: Emitted<'_>);
}

/// Sizes and options of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EngineConfig {
    pub(crate) rcv_ring: usize,
    pub(crate) snd_ring: usize,
    /// The rings lie on this piece of the memory that rings share ([`ring`]), if that can be had.
    pub(crate) shared_rings: Option<u8>,
    pub(crate) nagle: bool,
    /// Seeds the engine's initial sequence number.
    pub(crate) seed: u64,
}

/// Largest IPv4 packet.
const MAX_PACKET: usize = 65_535;
/// Largest frame, and room for its header before it.
const ZEROS: usize = 65_536;

struct Scratch {
    /// A header, written right before the zeros.
    rx: Vec<u8>,
    /// Whatever the engine writes. Never read behind the header.
    tx: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        rx: vec![0; MAX_CANONICAL + ZEROS],
        tx: vec![0; MAX_CANONICAL + ZEROS],
    });
}

/// See the module.
pub(crate) struct Engine {
    iface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    caps: DeviceCapabilities,
    /// Largest TCP/IPv4 packet that the link cuts into segments.
    segment_v4: Option<usize>,
    /// Payload of a segment over IPv4, as far as it is known.
    mss_v4: usize,
    shared_rings: Option<u8>,
    #[cfg(any(test, sosplice_fuzz))]
    config: EngineConfig,
    /// Behind the sockets, so dropped after them.
    _memory: [Option<Kept>; 2],
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Engine {
    fn new(link: &Capabilities, config: &EngineConfig) -> Engine {
        let caps = device_capabilities(link);
        let iface = interface(&caps, config.seed);
        let (rcv, rcv_memory) = ring(config.rcv_ring, config.shared_rings);
        let (snd, snd_memory) = ring(config.snd_ring, config.shared_rings);
        let mut socket = tcp::Socket::new(rcv, snd);
        socket.set_nagle_enabled(config.nagle);
        socket.set_ack_delay(None);
        socket.set_congestion_control(tcp::CongestionControl::Cubic);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Engine {
            iface,
            sockets,
            handle,
            caps,
            segment_v4: link.segment_v4,
            mss_v4: mss_v4(link.mtu),
            shared_rings: config.shared_rings,
            #[cfg(any(test, sosplice_fuzz))]
            config: *config,
            _memory: [rcv_memory, snd_memory],
        }
    }

    /// An engine that waits for a SYN to `tuple`.
    pub(crate) fn listening(link: &Capabilities, config: &EngineConfig, tuple: &Tuple) -> Engine {
        let mut engine = Engine::new(link, config);
        let local = IpEndpoint::new(IpAddress::from(tuple.local), tuple.local_port);
        engine
            .socket_mut()
            .listen(local)
            .expect("invariant: a new socket with a port listens");
        engine
    }

    /// An engine that sends a SYN when it is polled.
    pub(crate) fn connecting(link: &Capabilities, config: &EngineConfig, tuple: &Tuple) -> Engine {
        let mut engine = Engine::new(link, config);
        let remote = IpEndpoint::new(IpAddress::from(tuple.remote), tuple.remote_port);
        let local = IpEndpoint::new(IpAddress::from(tuple.local), tuple.local_port);
        let Engine {
            iface,
            sockets,
            handle,
            ..
        } = &mut engine;
        sockets
            .get_mut::<tcp::Socket<'_>>(*handle)
            .connect(iface.context(), remote, local)
            .expect("invariant: the stack has checked both ends");
        engine
    }

    /// Size of its send ring.
    pub(crate) fn snd_capacity(&self) -> usize {
        self.socket().send_capacity()
    }

    /// See [`EngineConfig::shared_rings`].
    pub(crate) fn shares_rings(&self) -> Option<u8> {
        self.shared_rings
    }

    #[cfg(any(test, sosplice_fuzz))]
    pub(crate) fn config(&self) -> EngineConfig {
        self.config
    }

    fn socket(&self) -> &tcp::Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub(crate) fn state(&self) -> State {
        self.socket().state()
    }

    /// A reset is still to be emitted.
    pub(crate) fn has_peer(&self) -> bool {
        self.socket().remote_endpoint().is_some()
    }

    pub(crate) fn rcv_queue(&self) -> usize {
        self.socket().recv_queue()
    }

    pub(crate) fn snd_queue(&self) -> usize {
        self.socket().send_queue()
    }

    pub(crate) fn set_nagle(&mut self, enabled: bool) {
        self.socket_mut().set_nagle_enabled(enabled);
    }

    /// How long acknowledgements of what is fed from now on wait. `None`: not at all.
    pub(crate) fn set_ack_delay(&mut self, delay: Option<std::time::Duration>) {
        self.socket_mut().set_ack_delay(delay.map(Duration::from));
    }

    /// Largest packet that it sends, unless a link cuts it into segments.
    pub(crate) fn mtu(&self) -> usize {
        self.caps.max_transmission_unit
    }

    /// Sends no packet larger than `mtu` from now on. `false`: it does not anyway. Only behind the
    /// handshake: initial sequence numbers come from the interface.
    pub(crate) fn lower_mtu(&mut self, mtu: usize) -> bool {
        let lower = mtu < self.caps.max_transmission_unit;
        if lower {
            self.mss_v4 = self.mss_v4.min(mss_v4(mtu));
            self.caps.max_transmission_unit = mtu;
            self.caps.segmentation.tcpv4 = super_frame(self.segment_v4, mtu, self.mss_v4);
            self.renew();
        }
        lower
    }

    /// The peer takes segments of this payload: what leaves together is a multiple of it. Only behind the
    /// handshake, as with [`lower_mtu`](Self::lower_mtu).
    pub(crate) fn fit_segments(&mut self, mss: usize) {
        let mss = mss.min(mss_v4(self.mtu()));
        let most = super_frame(self.segment_v4, self.mtu(), mss);
        self.mss_v4 = mss;
        if self.caps.segmentation.tcpv4 != most {
            self.caps.segmentation.tcpv4 = most;
            self.renew();
        }
    }

    /// An interface reads its device's capabilities once. Everything that a connection remembers is in its
    /// socket, so it can move to another.
    fn renew(&mut self) {
        self.iface = interface(&self.caps, 0);
    }

    /// Feeds a header and `len` zeros.
    pub(crate) fn feed(
        &mut self,
        now: Instant,
        tuple: &Tuple,
        header: &Header,
        len: usize,
        outlet: &mut dyn Outlet,
    ) {
        let mut composed = [0; MAX_CANONICAL];
        let remote = (tuple.remote, tuple.remote_port);
        let local = (tuple.local, tuple.local_port);
        let header_len = wire::compose(&mut composed, remote, local, header, len);
        SCRATCH.with_borrow_mut(|scratch| {
            let from = MAX_CANONICAL - header_len;
            scratch.rx[from..MAX_CANONICAL].copy_from_slice(&composed[..header_len]);
            let rx = Some(&scratch.rx[from..MAX_CANONICAL + len]);
            let mut port = Port {
                rx,
                tx: &mut scratch.tx,
                caps: &self.caps,
                outlet,
            };
            self.iface
                .poll_ingress_single(now, &mut port, &mut self.sockets);
        });
    }

    /// Emits one frame, if there is one and the outlet is ready. Timers act here too.
    pub(crate) fn egress(&mut self, now: Instant, outlet: &mut dyn Outlet) -> bool {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut port = Port {
                rx: None,
                tx: &mut scratch.tx,
                caps: &self.caps,
                outlet,
            };
            self.iface.poll_egress(now, &mut port, &mut self.sockets) != PollResult::None
        })
    }

    /// Takes up to `count` bytes from the receive ring. Returns how many.
    pub(crate) fn dequeue(&mut self, count: usize) -> usize {
        let socket = self.socket_mut();
        repeat(count, |want| {
            let some = |ring: &mut [u8]| (ring.len().min(want), ring.len().min(want));
            socket.recv(some).unwrap_or(0)
        })
    }

    /// Counts up to `count` bytes in the send ring; nothing is written. Returns how many.
    pub(crate) fn enqueue(&mut self, count: usize) -> usize {
        let socket = self.socket_mut();
        repeat(count, |want| {
            let some = |ring: &mut [u8]| (ring.len().min(want), ring.len().min(want));
            socket.send(some).unwrap_or(0)
        })
    }

    /// Sends a FIN behind everything that is queued.
    pub(crate) fn close(&mut self) {
        self.socket_mut().close();
    }

    /// Goes to CLOSED; the next egress emits a reset.
    pub(crate) fn abort(&mut self) {
        self.socket_mut().abort();
    }

    /// When the engine wants to be polled next. `None`: when something happens.
    pub(crate) fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        self.iface.poll_at(now, &self.sockets)
    }
}

fn interface(caps: &DeviceCapabilities, seed: u64) -> Interface {
    let mut settings = Config::new(HardwareAddress::Ip);
    settings.random_seed = seed;
    let mut port = Port {
        rx: None,
        tx: &mut [],
        caps,
        outlet: &mut Nowhere,
    };
    let mut iface = Interface::new(settings, &mut port, Instant::ZERO);
    // Which addresses are ours is the stack's business.
    iface.set_any_ip(true);
    iface
}

/// The rings hand out contiguous parts: twice is enough, and nothing is an end.
fn repeat(count: usize, mut step: impl FnMut(usize) -> usize) -> usize {
    let mut done = 0;
    while done < count {
        match step(count - done) {
            0 => break,
            some => done += some,
        }
    }
    done
}

pub(crate) fn device_capabilities(link: &Capabilities) -> DeviceCapabilities {
    let mut caps = DeviceCapabilities::default();
    caps.medium = Medium::Ip;
    caps.max_transmission_unit = link.mtu;
    // Verified before and filled in behind.
    caps.checksum = ChecksumCapabilities::ignored();
    // Never tcpv6: the engine then counts segments as sent that it never emits.
    caps.segmentation.tcpv4 = super_frame(link.segment_v4, link.mtu, mss_v4(link.mtu));
    caps
}

fn mss_v4(mtu: usize) -> usize {
    mtu.saturating_sub(wire::IPV4_HEADER + TCP_HEADER).max(1)
}

/// The largest packet that the engine may emit, for the link to cut: whole segments, so that none but the
/// last is shorter than it may be.
fn super_frame(link: Option<usize>, mtu: usize, mss: usize) -> Option<NonZeroUsize> {
    const HEADERS: usize = wire::IPV4_HEADER + TCP_HEADER;
    let room = link?.min(MAX_PACKET).checked_sub(HEADERS)?;
    let size = HEADERS + room / mss * mss;
    NonZeroUsize::new(size).filter(|_| size > mtu)
}

struct Nowhere;

impl Outlet for Nowhere {
    fn ready(&self) -> bool {
        false
    }
    fn emit(&mut self, _emitted: Emitted<'_>) {}
}

/// A device that holds one received frame and hands emitted ones to the outlet.
pub(crate) struct Port<'a> {
    pub(crate) rx: Option<&'a [u8]>,
    pub(crate) tx: &'a mut [u8],
    pub(crate) caps: &'a DeviceCapabilities,
    pub(crate) outlet: &'a mut dyn Outlet,
}

/// A received frame, for any device that has one to give.
pub(crate) struct Received<'a>(pub(crate) &'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(crate) struct Sending<'a> {
    tx: &'a mut [u8],
    outlet: &'a mut dyn Outlet,
    segment: Option<NonZeroU16>,
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let result = f(&mut self.tx[..len]);
        let ip_header_len = if self.tx[0] >> 4 == 4 {
            wire::IPV4_HEADER
        } else {
            wire::IPV6_HEADER
        };
        let header_len = ip_header_len + usize::from(self.tx[ip_header_len + 12] >> 4) * 4;
        let emission = Emission {
            header: emitted_header(&self.tx[ip_header_len..]),
            len: len - header_len,
        };
        self.outlet.emit(Emitted {
            header: &mut self.tx[..header_len],
            ip_header_len,
            emission,
            segment: self.segment,
        });
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size;
    }
}

fn emitted_header(tcp: &[u8]) -> Header {
    debug_assert!(
        tcp.len() >= TCP_HEADER,
        "invariant: the engine emits whole headers"
    );
    Header {
        seq: wire::be32(tcp, 4),
        ack: wire::be32(tcp, 8),
        flags: tcp[13],
        window: wire::be16(tcp, 14),
        options: SynOptions::default(),
    }
}

impl Device for Port<'_> {
    type RxToken<'t>
        = Received<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Sending<'t>
    where
        Self: 't;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        let frame = self.rx.take()?;
        Some((
            Received(frame),
            Sending {
                tx: self.tx,
                outlet: self.outlet,
                segment: None,
            },
        ))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending<'_>> {
        let ready = self.outlet.ready();
        ready.then_some(Sending {
            tx: self.tx,
            outlet: self.outlet,
            segment: None,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.caps.clone()
    }
}
