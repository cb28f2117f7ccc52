//! Flows in any order of events, beside a list of what there should be.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

#[derive(Debug, Clone)]
enum Op {
    /// From this client and port to this destination.
    Arrive(u8, u8, u8),
    Accept,
    /// Reads all of an accepted flow, answers it, or closes it.
    Read(usize),
    Answer(usize),
    Close(usize),
    Refuse(usize),
    Pass(u64),
    /// The listener is closed, and a new one opened.
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0u8..2, 0u8..3, 0u8..3).prop_map(|(host, port, to)| Op::Arrive(host, port, to)),
        4 => Just(Op::Accept),
        2 => (0usize..8).prop_map(Op::Read),
        2 => (0usize..8).prop_map(Op::Answer),
        2 => (0usize..8).prop_map(Op::Close),
        1 => (0usize..8).prop_map(Op::Refuse),
        2 => (1u64..40).prop_map(Op::Pass),
        1 => Just(Op::Reopen),
    ]
}

/// What a flow should be.
#[derive(Debug)]
struct Expected {
    client: SocketAddr,
    /// Of a mapping by flow.
    server: Option<SocketAddr>,
    queue: VecDeque<(u64, SocketAddr)>,
    used: u64,
    answered: bool,
    over: bool,
}

impl Expected {
    fn until(&self) -> u64 {
        self.used + if self.answered { 180 } else { 30 }
    }
}

struct Model {
    net: Net,
    mapping: Mapping,
    listener: UdpListener,
    flows: Vec<Expected>,
    /// By their numbers in `flows`.
    waiting: VecDeque<usize>,
    open: Vec<(usize, UdpSocket)>,
    now: u64,
    serial: u64,
    opened: u64,
    refused: u64,
    /// The first flow of the present listener.
    first: usize,
}

const TOTAL: usize = 7;
const PER_CLIENT: usize = 4;
const BACKLOG: usize = 3;

impl Model {
    fn new(mapping: Mapping) -> Model {
        let net = Net::new();
        let listener = Model::listen(&net, mapping);
        Model {
            net,
            mapping,
            listener,
            flows: Vec::new(),
            waiting: VecDeque::new(),
            open: Vec::new(),
            now: 0,
            serial: 0,
            opened: 0,
            refused: 0,
            first: 0,
        }
    }

    fn listen(net: &Net, mapping: Mapping) -> UdpListener {
        let options = options()
            .mapping(mapping)
            .max_flows(TOTAL)
            .max_flows_per_client(PER_CLIENT)
            .backlog(BACKLOG);
        net.flows(Intercept::all(), options)
    }

    fn live(&self) -> impl Iterator<Item = (usize, &Expected)> {
        self.flows.iter().enumerate().filter(|(_, flow)| !flow.over)
    }

    fn arrive(&mut self, (host, port, to): (u8, u8, u8)) {
        let client = SocketAddr::from(([10, 0, 0, 2 + host], 100 + u16::from(port)));
        let server = SocketAddr::from(([192, 0, 2, 1 + to], 53));
        self.serial += 1;
        let payload = self.serial.to_be_bytes();
        self.net
            .arrives(&client.to_string(), &server.to_string(), &payload);
        let is_it = |flow: &Expected| {
            flow.client == client && flow.server.is_none_or(|only| only == server)
        };
        let found = self.live().find(|(_, flow)| is_it(flow)).map(|it| it.0);
        let number = found.unwrap_or(self.flows.len());
        if found.is_none() {
            // Those of closed listeners have no place in this one.
            let of_client = |flow: &Expected| flow.client.ip() == client.ip();
            let counted = self.live().filter(|(number, _)| *number >= self.first);
            let (total, of_client) = counted.fold((0, 0), |(all, his), (_, flow)| {
                (all + 1, his + usize::from(of_client(flow)))
            });
            if total >= TOTAL || of_client >= PER_CLIENT || self.waiting.len() >= BACKLOG {
                self.refused += 1;
                return;
            }
            self.opened += 1;
            self.waiting.push_back(number);
            self.flows.push(Expected {
                client,
                server: (self.mapping == Mapping::Flow).then_some(server),
                queue: VecDeque::new(),
                used: self.now,
                answered: false,
                over: false,
            });
        }
        let now = self.now;
        let flow = &mut self.flows[number];
        flow.queue.push_back((self.serial, server));
        flow.used = now;
    }

    fn accept(&mut self) {
        let want = self.waiting.pop_front();
        let found = accepted(&self.listener);
        assert_eq!(found.is_some(), want.is_some());
        if let (Some(number), Some((socket, from))) = (want, found) {
            let flow = &self.flows[number];
            assert_eq!(from, flow.client);
            let local = flow.server.unwrap_or_else(|| at("0.0.0.0:0"));
            assert_eq!(socket.local_addr(), local);
            self.open.push((number, socket));
        }
    }

    fn read(&mut self, which: usize) {
        let Some((number, socket)) = self.open.get(which) else {
            return;
        };
        let flow = &mut self.flows[*number];
        let mut out = [0; 100];
        loop {
            let want = flow.queue.pop_front();
            match (socket.recv_from(&mut out), want) {
                (Ok((8, from)), Some((serial, server))) => {
                    assert_eq!(out[..8], serial.to_be_bytes());
                    let peer = flow.server.map_or(server, |_| flow.client);
                    assert_eq!(from, peer);
                }
                (Err(error), None) => {
                    let expected = match flow.over {
                        true => ErrorKind::UnexpectedEof,
                        false => ErrorKind::WouldBlock,
                    };
                    assert_eq!(error.kind(), expected);
                    return;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn answer(&mut self, which: usize) {
        let Some((number, socket)) = self.open.get(which) else {
            return;
        };
        let flow = &mut self.flows[*number];
        let server = flow.server.unwrap_or_else(|| at(SERVER));
        let to = flow.server.map_or(server, |_| flow.client);
        let sent = socket.send_to(b"answer", to);
        if flow.over {
            assert_eq!(kind(sent), ErrorKind::BrokenPipe);
            assert_eq!(self.net.sent(), []);
            return;
        }
        sent.unwrap();
        (flow.answered, flow.used) = (true, self.now);
        let client = flow.client.to_string();
        assert_eq!(
            self.net.sent(),
            [got(&server.to_string(), &client, b"answer")]
        );
    }

    fn pass(&mut self, seconds: u64) {
        self.net.pass(Duration::from_secs(seconds));
        self.now += seconds;
        let now = self.now;
        for flow in self.flows.iter_mut().filter(|flow| flow.until() <= now) {
            flow.over = true;
        }
        let flows = &self.flows;
        self.waiting.retain(|number| !flows[*number].over);
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Arrive(host, port, to) => self.arrive((host, port, to)),
            Op::Accept => self.accept(),
            Op::Read(which) => self.read(which),
            Op::Answer(which) => self.answer(which),
            Op::Close(which) | Op::Refuse(which) if which < self.open.len() => {
                let (number, socket) = self.open.remove(which);
                match op {
                    Op::Refuse(_) => socket.refuse(),
                    _ => drop(socket),
                }
                self.flows[number].over = true;
                self.net.complete();
            }
            Op::Close(_) | Op::Refuse(_) => {}
            Op::Pass(seconds) => self.pass(seconds),
            Op::Reopen => {
                self.listener.close();
                for number in std::mem::take(&mut self.waiting) {
                    self.flows[number].over = true;
                }
                self.first = self.flows.len();
                self.listener = Model::listen(&self.net, self.mapping);
            }
        }
        self.check();
    }

    fn check(&self) {
        let live = self.live().count();
        let listed = self.net.listed();
        assert_eq!(listed.len(), live);
        assert!(listed.iter().all(|info| info.is_flow));
        let stats = self.net.stack.stats();
        assert_eq!(stats.flows, live);
        assert_eq!(stats.flows_opened, self.opened);
        assert_eq!(stats.flows_refused, self.refused);
        let udp = &self.net.stack.shared().udp;
        assert_eq!(udp.armed(), live);
        let counted = self.live().filter(|(number, _)| *number >= self.first);
        let listeners = udp.listeners();
        let counts = listeners[0].counts();
        assert_eq!(counts, (counted.count(), self.waiting.len()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn flows_in_any_order(
        endpoint: bool,
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let mapping = if endpoint { Mapping::Endpoint } else { Mapping::Flow };
        let mut model = Model::new(mapping);
        ops.iter().for_each(|op| model.apply(op));
        // Everything is closed: no place, timer or flow is left.
        model.open.clear();
        model.listener.close();
        prop_assert_eq!(model.net.listed(), []);
        let stats = model.net.stack.stats();
        prop_assert_eq!((stats.flows, stats.broken), (0, 0));
        prop_assert_eq!(model.net.stack.shared().udp.armed(), 0);
    }
}
