//! The oracle: a plain smoltcp socket with real payload, fed what the guard let through.
//!
//! A [`Tap`] on each connection writes down what was done to its engine: segments fed (with their
//! payload), calls, times, and what it emitted. Afterwards a twin, which is nothing but smoltcp,
//! goes through the same list: it must emit the same frames, with the same payload, and deliver the
//! same bytes. The runs are whole stacks over a network that loses, delays, duplicates and cuts
//! segments anew so that they overlap.

#![allow(
    clippy::unwrap_used,
    reason = "a test, also where it is compiled for the fuzzer"
)]

mod network;

#[cfg(sosplice_fuzz)]
pub use network::fuzz::engine as fuzz_engine;

use super::engine::{EngineConfig, Received, device_capabilities};
use super::wire::{self, Header, MAX_CANONICAL, Tuple};
use crate::buf::Buf;
use crate::link::Capabilities;
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpEndpoint};
use std::collections::VecDeque;
use std::time::Duration;

/// What was done to an engine, and what it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    Fed(Instant, Vec<u8>),
    Egress(Instant),
    Enqueued(usize),
    Dequeued(usize),
    Nagle(bool),
    /// Another engine takes the place of the former one.
    Reborn(EngineConfig, Capabilities),
    /// Zeros that open its congestion window.
    Primed(usize),
    AckDelay(Option<Duration>),
    Close,
    Abort,
    Emitted(Vec<u8>),
}

impl Op {
    /// One line, for a failed test.
    pub(crate) fn brief(&self) -> String {
        let frame = |frame: &[u8]| {
            let ip = if frame[0] >> 4 == 4 { 20 } else { 40 };
            let header = ip + usize::from(frame[ip + 12] >> 4) * 4;
            let (seq, ack) = (wire::be32(frame, ip + 4), wire::be32(frame, ip + 8));
            let (flags, window) = (frame[ip + 13], wire::be16(frame, ip + 14));
            format!(
                "seq {seq} ack {ack} flags {flags:02x} win {window} len {}",
                frame.len() - header
            )
        };
        match self {
            Op::Fed(now, bytes) => format!("{now} > {}", frame(bytes)),
            Op::Emitted(bytes) => format!("< {}", frame(bytes)),
            other => format!("{other:?}"),
        }
    }
}

/// The list of it, in order.
#[derive(Default)]
pub(crate) struct Tap {
    pub(crate) ops: Vec<Op>,
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ops", self.ops.len())
    }
}

impl Tap {
    pub(crate) fn fed(
        &mut self,
        now: Instant,
        tuple: &Tuple,
        header: &Header,
        len: usize,
        bytes: &[Buf],
    ) {
        let mut out = [0; MAX_CANONICAL];
        let remote = (tuple.remote, tuple.remote_port);
        let local = (tuple.local, tuple.local_port);
        let header_len = wire::compose(&mut out, remote, local, header, len);
        let mut frame = out[..header_len].to_vec();
        bytes.iter().for_each(|buf| frame.extend_from_slice(buf));
        // An answer is drawn with a byte that nobody sent.
        frame.resize(header_len + len, 0);
        self.ops.push(Op::Fed(now, frame));
    }

    pub(crate) fn reborn(&mut self, config: EngineConfig, link: Capabilities) {
        self.ops.push(Op::Reborn(config, link));
    }

    pub(crate) fn primed(&mut self, count: usize) {
        self.ops.push(Op::Primed(count));
    }

    pub(crate) fn nagle(&mut self, enabled: bool) {
        self.ops.push(Op::Nagle(enabled));
    }

    pub(crate) fn ack_delay(&mut self, delay: Option<Duration>) {
        self.ops.push(Op::AckDelay(delay));
    }

    pub(crate) fn abort(&mut self) {
        self.ops.push(Op::Abort);
    }

    pub(crate) fn close(&mut self) {
        self.ops.push(Op::Close);
    }

    pub(crate) fn egress(&mut self, now: Instant) {
        self.ops.push(Op::Egress(now));
    }

    pub(crate) fn dequeued(&mut self, count: usize) {
        self.ops.push(Op::Dequeued(count));
    }

    pub(crate) fn enqueued(&mut self, count: usize) {
        self.ops.push(Op::Enqueued(count));
    }

    pub(crate) fn emitted(&mut self, header: &[u8], payload: &[Buf]) {
        let mut frame = header.to_vec();
        payload.iter().for_each(|buf| frame.extend_from_slice(buf));
        self.ops.push(Op::Emitted(frame));
    }
}

/// The byte at a position of a stream.
fn byte(stream: u64, position: u64) -> u8 {
    (position ^ stream << 40)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .to_be_bytes()[0]
}

/// How the engine of a connection was made.
#[derive(Debug, Clone, Copy)]
struct Birth {
    tuple: Tuple,
    connects: bool,
    config: EngineConfig,
    link: Capabilities,
}

/// Plain smoltcp.
struct Twin {
    iface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    caps: DeviceCapabilities,
    tuple: Tuple,
    out: VecDeque<Vec<u8>>,
    sent: u64,
    received: u64,
}

impl Twin {
    fn new(birth: &Birth) -> Twin {
        let caps = device_capabilities(&birth.link);
        let mut settings = Config::new(HardwareAddress::Ip);
        settings.random_seed = birth.config.seed;
        let mut out = VecDeque::new();
        let mut plain = Plain {
            rx: None,
            out: &mut out,
            caps: &caps,
        };
        let mut iface = Interface::new(settings, &mut plain, Instant::ZERO);
        iface.set_any_ip(true);
        let ring = |size| tcp::SocketBuffer::new(vec![0; size]);
        let mut socket = tcp::Socket::new(ring(birth.config.rcv_ring), ring(birth.config.snd_ring));
        socket.set_nagle_enabled(birth.config.nagle);
        socket.set_ack_delay(None);
        socket.set_congestion_control(tcp::CongestionControl::Cubic);
        let tuple = &birth.tuple;
        let local = IpEndpoint::new(IpAddress::from(tuple.local), tuple.local_port);
        let remote = IpEndpoint::new(IpAddress::from(tuple.remote), tuple.remote_port);
        match birth.connects {
            true => socket.connect(iface.context(), remote, local).unwrap(),
            false => socket.listen(local).unwrap(),
        }
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Twin {
            iface,
            sockets,
            handle,
            caps,
            tuple: birth.tuple,
            out,
            sent: 0,
            received: 0,
        }
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn apply(&mut self, op: &Op, sends: u64, receives: u64) {
        match op {
            Op::Fed(now, frame) => {
                let rx = Some(&frame[..]);
                let mut plain = Plain {
                    rx,
                    out: &mut self.out,
                    caps: &self.caps,
                };
                self.iface
                    .poll_ingress_single(*now, &mut plain, &mut self.sockets);
            }
            Op::Egress(now) => {
                let mut plain = Plain {
                    rx: None,
                    out: &mut self.out,
                    caps: &self.caps,
                };
                let result = self.iface.poll_egress(*now, &mut plain, &mut self.sockets);
                assert!(result == PollResult::None || !self.out.is_empty());
            }
            Op::Enqueued(count) => {
                let from = self.sent;
                let bytes: Vec<u8> = (from..from + *count as u64)
                    .map(|i| byte(sends, i))
                    .collect();
                assert_eq!(self.socket().send_slice(&bytes), Ok(*count));
                self.sent += *count as u64;
            }
            Op::Primed(count) => {
                assert_eq!(self.socket().send_slice(&vec![0; *count]), Ok(*count));
            }
            Op::Dequeued(count) => {
                let mut bytes = vec![0; *count];
                if *count > 0 {
                    assert_eq!(self.socket().recv_slice(&mut bytes), Ok(*count));
                }
                let from = self.received;
                assert!(
                    (from..).zip(&bytes).all(|(i, b)| *b == byte(receives, i)),
                    "bytes differ"
                );
                self.received += *count as u64;
            }
            Op::Reborn(config, link) => {
                assert!(self.out.is_empty(), "the twin emitted more");
                let twin = Twin::new(&Birth {
                    tuple: self.tuple,
                    connects: false,
                    config: *config,
                    link: *link,
                });
                let (sent, received) = (self.sent, self.received);
                *self = Twin {
                    sent,
                    received,
                    ..twin
                };
            }
            Op::Nagle(enabled) => self.socket().set_nagle_enabled(*enabled),
            Op::AckDelay(delay) => self.socket().set_ack_delay(delay.map(Into::into)),
            Op::Close => self.socket().close(),
            Op::Abort => self.socket().abort(),
            Op::Emitted(frame) => {
                let twin = self.out.pop_front().expect("the twin emitted nothing");
                assert!(twin == *frame, "frames differ:\n{twin:02x?}\n{frame:02x?}");
            }
        }
    }
}

/// Goes through the list with a twin.
fn compare(birth: &Birth, ops: &[Op], sends: u64, receives: u64) {
    let mut twin = Twin::new(birth);
    for op in ops {
        twin.apply(op, sends, receives);
    }
    assert!(twin.out.is_empty(), "the twin emitted more");
}

struct Plain<'a> {
    rx: Option<&'a [u8]>,
    out: &'a mut VecDeque<Vec<u8>>,
    caps: &'a DeviceCapabilities,
}

struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Plain<'_> {
    type RxToken<'t>
        = Received<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Sending<'t>
    where
        Self: 't;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        Some((Received(self.rx.take()?), Sending(self.out)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending<'_>> {
        Some(Sending(self.out))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.caps.clone()
    }
}
