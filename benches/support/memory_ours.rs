//! The proxy of this crate over two links in memory, in one thread.

use crate::peers::{
    BACK, FRONT, HEADER_MAX, MSS, PAYLOAD_MAX, PROXY_PORT, Proxy, SERVER, SERVER_PORT, Seen, Wire,
    pattern,
};
use crate::{FRAMES, Offload};
use sosplice::buf::{Buf, FrameMut};
use sosplice::link::memory::{self, MemoryLink};
use sosplice::link::{Checksum, Frame, Link, Packet};
use sosplice::splice::{Dispatch, Options};
use sosplice::stack::{Builder, Driver, Stats};
use sosplice::{SplicePool, Stack, TcpListener, TcpStream};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

/// The peer's end of a link.
struct MemoryWire {
    link: MemoryLink,
    payload: Buf,
    frames: Vec<Frame>,
    keep: bool,
}

impl Wire for MemoryWire {
    fn send(&mut self, header: &[u8], len: usize) -> bool {
        let payload = [self.payload.slice(0..len)];
        let packet = Packet {
            header,
            payload: if len == 0 { &[] } else { &payload },
            ip_header_len: 20,
            checksum: Checksum::Partial,
            segment: NonZeroU16::new(MSS).filter(|_| len > usize::from(MSS)),
        };
        self.link.transmit(&packet).is_ok()
    }

    fn take(&mut self, seen: &mut Vec<Seen>) {
        let received = self.link.receive(&mut self.frames, FRAMES);
        received.expect("the proxy holds its end");
        for frame in self.frames.drain(..) {
            let mut one = Seen::new(&frame.head, frame.len());
            if self.keep {
                one.payload = frame.to_vec().split_off(Seen::header_len(&frame.head));
            }
            seen.push(one);
        }
    }
}

struct Side {
    stack: Stack,
    driver: Driver,
    wire: MemoryWire,
}

impl Side {
    /// What stands between the link and the stack is given.
    fn new<L: Link + 'static>(
        (address, offload): (IpAddr, Offload),
        (segment, ring): (usize, usize),
        between: impl FnOnce(MemoryLink) -> L,
        options: impl FnOnce(Builder) -> Builder,
    ) -> Side {
        let mut config = memory::Config {
            frames: FRAMES,
            bytes: FRAMES * (HEADER_MAX + PAYLOAD_MAX),
            ..memory::Config::default()
        };
        config.capabilities.segment_v4 = offload.size();
        let (link, peer) = memory::pair(config);
        let builder = Stack::builder(between(link))
            .address(ipnet::IpNet::new(address, 24).expect("a prefix"))
            .receive_buffer(ring)
            .send_buffer(ring);
        let (stack, driver) = options(builder).manual().expect("a stack");
        let mut payload = FrameMut::with_capacity(segment);
        payload.bytes_mut().extend((0..segment).map(pattern));
        let wire = MemoryWire {
            link: peer,
            payload: payload.freeze(),
            frames: Vec::new(),
            keep: false,
        };
        Side {
            stack,
            driver,
            wire,
        }
    }
}

/// Two stacks and a splice in each direction of each pair of connections.
pub(crate) struct Ours {
    streams: Vec<(TcpStream, TcpStream)>,
    listener: TcpListener,
    pool: SplicePool,
    front: Side,
    back: Side,
    flows: usize,
}

impl Ours {
    #[allow(dead_code, reason = "not every bench asks for no more")]
    pub(crate) fn new(flows: u16, offload: Offload, segment: usize, ring: usize) -> Ours {
        Ours::behind(
            flows,
            offload,
            (segment, ring),
            |link| link,
            |builder| builder,
        )
    }

    /// As [`new`](Self::new), with something between the front link and its stack, which has further
    /// options.
    pub(crate) fn behind<L: Link + 'static>(
        flows: u16,
        offload: Offload,
        sizes: (usize, usize),
        between: impl FnOnce(MemoryLink) -> L,
        options: impl FnOnce(Builder) -> Builder,
    ) -> Ours {
        let front = Side::new((FRONT.into(), offload), sizes, between, options);
        let back = Side::new((BACK.into(), offload), sizes, |link| link, |back| back);
        let at = SocketAddr::new(FRONT.into(), PROXY_PORT);
        let listener = TcpListener::bind(&front.stack, at).expect("a listener");
        listener.set_nonblocking(true);
        let pool = SplicePool::builder()
            .workers(1)
            .dispatch(Dispatch::Direct)
            .manual()
            .build();
        Ours {
            streams: Vec::new(),
            listener,
            pool,
            front,
            back,
            flows: flows.into(),
        }
    }

    fn accept(&mut self) {
        while let Ok((client, _)) = self.listener.accept() {
            let to = SocketAddr::new(SERVER.into(), SERVER_PORT);
            let server = TcpStream::start(&self.back.stack, to).expect("a connection");
            let options = || Options {
                pool: Some(self.pool.clone()),
                ..Options::default()
            };
            client.splice_to(&server, options()).expect("a splice");
            server.splice_to(&client, options()).expect("a splice");
            self.streams.push((client, server));
        }
    }

    /// Counters of the front stack.
    #[allow(dead_code, reason = "not every bench asks")]
    pub(crate) fn front_stats(&self) -> Stats {
        self.front.stack.stats()
    }

    /// Connections that were reset because of an error of ours.
    pub(crate) fn broken(&self) -> u64 {
        self.front.stack.stats().broken + self.back.stack.stats().broken
    }
}

impl Proxy for Ours {
    fn front(&mut self) -> &mut dyn Wire {
        &mut self.front.wire
    }

    fn back(&mut self) -> &mut dyn Wire {
        &mut self.back.wire
    }

    fn turn(&mut self) {
        self.front.driver.run_once().expect("the link is there");
        if self.streams.len() < self.flows {
            self.accept();
        }
        self.back.driver.run_once().expect("the link is there");
        while self.pool.run_one() {}
    }

    fn keep_payload(&mut self, keep: bool) {
        self.front.wire.keep = keep;
        self.back.wire.keep = keep;
    }
}
