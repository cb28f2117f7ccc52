//! The proxy of this crate over two links in memory: in one thread, or in one for each of their queues.

use crate::peers::{
    BACK, CLIENT, FIRST_PORT, FRONT, HEADER_MAX, MSS, PAYLOAD_MAX, PROXY_PORT, Proxy, SERVER,
    SERVER_PORT, Seen, Wire, pattern,
};
use crate::{FRAMES, Offload};
use sosplice::buf::{Buf, FrameMut};
use sosplice::link::memory::{self, MemoryLink};
use sosplice::link::{Checksum, Flow, Frame, Link, Packet};
use sosplice::splice::{Dispatch, Options};
use sosplice::stack::{Builder, Driver, Stats};
use sosplice::{SplicePool, Stack, TcpListener, TcpSocket, TcpStream};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Instant;

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
        let packet = Packet::new(header, if len == 0 { &[] } else { &payload }, 20)
            .checksum(Checksum::partial_tcp(20))
            .segment(NonZeroU16::new(MSS).filter(|_| len > usize::from(MSS)));
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

/// A queue of one of the stacks, and the peer's end of it. A wrapper between a link and its stack.
pub(crate) type Between<'a> = &'a dyn Fn(MemoryLink) -> Arc<dyn Link>;
pub(crate) type Tune<'a> = &'a dyn Fn(Builder) -> Builder;

/// No wrapper.
pub(crate) fn plain(link: MemoryLink) -> Arc<dyn Link> {
    Arc::new(link)
}

struct Side {
    stack: Stack,
    driver: Driver,
    wire: MemoryWire,
}

impl Side {
    /// All queues of a stack.
    fn all(
        queues: usize,
        address: IpAddr,
        offload: Offload,
        (segment, ring): (usize, usize),
        (between, tune): (Between<'_>, Tune<'_>),
    ) -> Vec<Side> {
        let mut config = memory::Config::default()
            .frames(FRAMES)
            .bytes(FRAMES * (HEADER_MAX + PAYLOAD_MAX));
        config.capabilities.segment_v4 = offload.size();
        let (links, peers) = memory::queues(queues, config);
        let builder = Stack::with_queues(links.into_iter().map(between))
            .address(ipnet::IpNet::new(address, 24).expect("a prefix"))
            .receive_buffer(ring)
            .send_buffer(ring);
        let (stack, drivers) = tune(builder).build_with_drivers().expect("a stack");
        let side = |(driver, link)| {
            // Of its own: threads that share one would count references to it in turns.
            let mut payload = FrameMut::with_capacity(segment);
            payload.bytes_mut().extend((0..segment).map(pattern));
            let wire = MemoryWire {
                link,
                payload: payload.freeze(),
                frames: Vec::new(),
                keep: false,
            };
            Side {
                stack: stack.clone(),
                driver,
                wire,
            }
        };
        drivers.into_iter().zip(peers).map(side).collect()
    }
}

/// Two stacks and a splice in each direction of each pair of connections; for several queues, the part
/// of one of them.
pub(crate) struct Ours {
    streams: Vec<Arc<(TcpStream, TcpStream)>>,
    listener: TcpListener,
    pool: SplicePool,
    options: Options,
    front: Side,
    back: Side,
    flows: usize,
    comes_and_goes: bool,
}

impl Ours {
    #[allow(dead_code, reason = "not every bench has one thread")]
    pub(crate) fn new(flows: u16, offload: Offload, segment: usize, ring: usize) -> Ours {
        Ours::tuned(
            flows,
            offload,
            (segment, ring),
            &|builder| builder,
            Options::default(),
        )
    }

    /// With further settings of stacks and splices.
    pub(crate) fn tuned(
        flows: u16,
        offload: Offload,
        sizes: (usize, usize),
        tune: &dyn Fn(Builder) -> Builder,
        options: Options,
    ) -> Ours {
        let mut all = Ours::queues((1, flows), offload, sizes, (&plain, tune), &options);
        all.pop().expect("one queue")
    }

    /// With a wrapper between the front link and its stack, and further settings.
    #[allow(dead_code, reason = "not every bench has it")]
    pub(crate) fn behind(
        flows: u16,
        offload: Offload,
        sizes: (usize, usize),
        front: (Between<'_>, Tune<'_>),
    ) -> Ours {
        let options = Options::default();
        let mut all = Ours::queues((1, flows), offload, sizes, front, &options);
        all.pop().expect("one queue")
    }

    /// A proxy whose links have several queues: each of them, with its share of the flows, for a thread.
    pub(crate) fn queues(
        (queues, flows): (usize, u16),
        offload: Offload,
        sizes: (usize, usize),
        (between, tune): (Between<'_>, Tune<'_>),
        options: &Options,
    ) -> Vec<Ours> {
        let fronts = Side::all(queues, FRONT.into(), offload, sizes, (between, tune));
        let backs = Side::all(queues, BACK.into(), offload, sizes, (&plain, tune));
        let at = SocketAddr::new(FRONT.into(), PROXY_PORT);
        let mut listener = None;
        let queue = |(front, back): (Side, Side)| {
            let bind = || TcpListener::bind(&front.stack, at).expect("a listener");
            let listener = listener.get_or_insert_with(bind).clone();
            listener.set_nonblocking(true);
            let pool = SplicePool::builder()
                .workers(1)
                .dispatch(Dispatch::Direct)
                .manual()
                .build();
            Ours {
                streams: Vec::new(),
                listener,
                options: options.clone().pool(pool.clone()),
                comes_and_goes: false,
                pool,
                front,
                back,
                flows: usize::from(flows) / queues,
            }
        };
        fronts.into_iter().zip(backs).map(queue).collect()
    }

    #[allow(dead_code, reason = "not every bench has several queues")]
    /// The ports whose flows arrive on its queue.
    pub(crate) fn ports(&self) -> Vec<u16> {
        let queue = self.front.driver.queue();
        let by = |port: u16| {
            let flow = Flow {
                local: SocketAddr::new(CLIENT.into(), port),
                remote: SocketAddr::new(FRONT.into(), PROXY_PORT),
            };
            self.front.wire.link.steer(&flow)
        };
        let ports = (FIRST_PORT..).filter(|port| by(*port).is_none_or(|by| by == queue));
        ports.take(self.flows).collect()
    }

    /// For connections that come and go.
    pub(crate) fn churning(
        offload: Offload,
        sizes: (usize, usize),
        tune: &dyn Fn(Builder) -> Builder,
        options: Options,
    ) -> Ours {
        Ours {
            comes_and_goes: true,
            ..Ours::tuned(1, offload, sizes, tune, options)
        }
    }

    /// Checks that all visitors have left.
    pub(crate) fn check_churn(&mut self) {
        self.turn();
        let stats = self.pool.stats();
        assert_eq!(stats.started, stats.ended());
        for side in [&self.front, &self.back] {
            let stats = side.stack.stats();
            assert_eq!((stats.connections, stats.broken), (0, 0));
        }
    }

    /// The next deadline.
    pub(crate) fn poll_at(&self) -> Option<Instant> {
        let drivers = [&self.front, &self.back].map(|side| side.driver.poll_at());
        let all = drivers.into_iter().chain([self.pool.poll_at()]);
        all.flatten().min()
    }

    fn accept(&mut self) {
        while let Ok((client, _)) = self.listener.accept() {
            let to = SocketAddr::new(SERVER.into(), SERVER_PORT);
            let server = TcpSocket::new(&self.back.stack)
                .queue(client.queue())
                .start(to);
            let server = server.expect("a connection");
            let pair = Arc::new((client, server));
            for (source, sink) in [(&pair.0, &pair.1), (&pair.1, &pair.0)] {
                let splice = source
                    .splice_to(sink, self.options.clone())
                    .expect("a splice");
                if self.comes_and_goes {
                    let pair = pair.clone();
                    splice.on_end(move |_| drop(pair));
                }
            }
            if !self.comes_and_goes {
                self.streams.push(pair);
            }
        }
    }

    /// Counters of the front stack.
    #[allow(dead_code, reason = "not every bench asks")]
    pub(crate) fn front_stats(&self) -> Stats {
        self.front.stack.stats()
    }

    /// Connections that were reset because of a bug.
    pub(crate) fn broken(&self) -> u64 {
        self.front.stack.stats().broken + self.back.stack.stats().broken
    }

    /// Segments that arrived by another queue than their connection's.
    #[allow(dead_code, reason = "not every bench has several queues")]
    pub(crate) fn astray(&self) -> u64 {
        let stacks = [&self.front.stack, &self.back.stack].into_iter();
        let queues = stacks.flat_map(Stack::queue_stats);
        queues.map(|queue| queue.segments_astray).sum()
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
        self.front.driver.poll().expect("the link is there");
        if self.comes_and_goes || self.streams.len() < self.flows {
            self.accept();
        }
        self.back.driver.poll().expect("the link is there");
        while self.pool.run_one() {}
    }

    fn keep_payload(&mut self, keep: bool) {
        self.front.wire.keep = keep;
        self.back.wire.keep = keep;
    }
}
