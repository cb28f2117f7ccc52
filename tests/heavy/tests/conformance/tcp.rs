//! TCP between two stacks over a link in memory: of packets, or of Ethernet frames between a host and a gateway.

use crate::clock::SetClock;
use sosplice::clock::{Clock, system};
use sosplice::conformance::{Connecting, Factory, Setup, Time, Verdict};
use sosplice::link::ethernet::{Edge, EdgeConfig, Host, HostConfig, Mac};
use sosplice::link::memory;
use sosplice::stack::{Builder, Driver};
use sosplice::{Socket, Stack, TcpListener, TcpSocket, TcpStream};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

pub(crate) fn v4() -> Box<dyn Factory> {
    Box::new(Threads::to("10.0.0.2:0"))
}

pub(crate) fn v6() -> Box<dyn Factory> {
    Box::new(Threads::to("[fd00::2]:0"))
}

/// Both ends are of one stack.
pub(crate) fn looped() -> Box<dyn Factory> {
    Box::new(Threads {
        ends: Ends::One,
        ..Threads::to("10.0.0.2:0")
    })
}

pub(crate) fn ethernet() -> Box<dyn Factory> {
    Box::new(Threads {
        ends: Ends::OnEthernet,
        ..Threads::to("10.0.0.2:0")
    })
}

pub(crate) fn in_virtual_time() -> Box<dyn Factory> {
    Box::new(Manual::new(Ends::Linked))
}

pub(crate) fn looped_in_virtual_time() -> Box<dyn Factory> {
    Box::new(Manual::new(Ends::One))
}

pub(crate) fn ethernet_in_virtual_time() -> Box<dyn Factory> {
    Box::new(Manual::new(Ends::OnEthernet))
}

/// Where the ends of a connection are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// In two stacks with a link of packets.
    Linked,
    /// In a host on Ethernet, and in the gateway, which is the server.
    OnEthernet,
    /// The server dials itself.
    One,
}

impl Ends {
    /// Client and server, not built yet.
    fn builders(self, setup: Setup, clock: &Arc<dyn Clock>) -> [Builder; 2] {
        let address = |host: u8| [format!("10.0.0.{host}/24"), format!("fd00::{host}/64")];
        let builders = match self {
            Ends::Linked | Ends::One => {
                let (a, b) = memory::pair(memory::Config::default());
                [Stack::builder(a), Stack::builder(b)]
            }
            Ends::OnEthernet => {
                let (a, b) = memory::pair(memory::Config::default().mtu(1514));
                let mut config = HostConfig::new(Mac([2, 0, 0, 0, 0, 1])).probe(false);
                for address in address(1) {
                    config = config.address(address.parse().unwrap());
                }
                let host = Host::new(a, config).unwrap().clock(clock.clone());
                let gateway = "10.0.0.2/24".parse().unwrap();
                let mut config = EdgeConfig::new(gateway, "10.0.0.1".parse().unwrap());
                config.gateway_v6 = Some("fd00::2/64".parse().unwrap());
                let edge = Edge::new(b, config).unwrap().clock(clock.clone());
                [Stack::builder(host), Stack::builder(edge)]
            }
        };
        let mut hosts = 1..;
        builders.map(|mut builder| {
            for address in address(hosts.next().unwrap()) {
                builder = builder.address(address.parse().unwrap());
            }
            builder
                .receive_buffer(setup.rcv_hiwat)
                .send_buffer(setup.snd_hiwat)
                .clock(clock.clone())
        })
    }
}

/// Two stacks with drivers of their own. All connections of one setup share them.
#[derive(Clone)]
struct Stacks {
    ends: Ends,
    setup: Setup,
    client: Stack,
    server: Stack,
    /// The other end of the link, which would be gone without it.
    _other: Stack,
}

static STACKS: LazyLock<Mutex<Vec<Stacks>>> = LazyLock::new(Mutex::default);

fn stacks(ends: Ends, setup: Setup) -> Stacks {
    let mut all = STACKS.lock().unwrap();
    let same = |stacks: &&Stacks| stacks.ends == ends && stacks.setup == setup;
    if let Some(known) = all.iter().find(same) {
        return known.clone();
    }
    let builders = ends.builders(setup, &system());
    let [other, server] = builders.map(|builder| builder.build().unwrap());
    let dials = if ends == Ends::One { &server } else { &other };
    let fresh = Stacks {
        ends,
        setup,
        client: dials.clone(),
        server,
        _other: other,
    };
    all.push(fresh.clone());
    fresh
}

/// Sockets whose stacks have threads, with this address of the server.
struct Threads {
    at: &'static str,
    ends: Ends,
}

impl Threads {
    fn to(at: &'static str) -> Threads {
        let ends = Ends::Linked;
        Threads { at, ends }
    }
}

impl Factory for Threads {
    fn connect(&self, setup: Setup) -> (Socket, Socket) {
        let stacks = stacks(self.ends, setup);
        let listener = TcpListener::bind(&stacks.server, self.at).unwrap();
        let client = TcpStream::connect(&stacks.client, listener.local_addr()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (client.as_ref().clone(), server.as_ref().clone())
    }

    fn listening(&self) -> Option<Socket> {
        let server = &stacks(self.ends, Setup::default()).server;
        let listener = TcpListener::bind(server, self.at).unwrap();
        Some(listener.as_ref().clone())
    }
}

/// Two stacks driven by the test.
struct Pair {
    setup: Setup,
    client: Stack,
    server: Stack,
}

/// Sockets in virtual time.
struct Manual {
    clock: Arc<SetClock>,
    pairs: Mutex<Vec<Pair>>,
    drivers: Arc<Drivers>,
    ends: Ends,
}

struct Drivers {
    clock: Arc<SetClock>,
    all: Mutex<Vec<Driver>>,
}

impl Drivers {
    /// Until there is a connection to accept. A ring of splices may keep the stacks busy for ever.
    fn accept(&self, listener: &TcpListener) -> Socket {
        listener.set_nonblocking(true);
        let turns = (0..10_000).map(|_| self.run());
        let mut accepted = turns.filter_map(|_| listener.accept().ok());
        let (stream, _) = accepted.next().expect("a connection");
        stream.as_ref().clone()
    }

    fn run(&self) -> bool {
        let mut all = self.all.lock().unwrap();
        let turns = all.iter_mut().map(|driver| driver.poll().unwrap());
        turns.fold(false, |any, worked| any | worked)
    }
}

impl Manual {
    fn new(ends: Ends) -> Manual {
        let clock = SetClock::new();
        let drivers = Drivers {
            clock: clock.clone(),
            all: Mutex::default(),
        };
        Manual {
            clock,
            pairs: Mutex::default(),
            drivers: Arc::new(drivers),
            ends,
        }
    }

    fn stacks(&self, setup: Setup) -> (Stack, Stack) {
        let mut pairs = self.pairs.lock().unwrap();
        if !pairs.iter().any(|pair| pair.setup == setup) {
            let clock: Arc<dyn Clock> = self.clock.clone();
            let [client, server] = self.ends.builders(setup, &clock).map(|builder| {
                let (stack, driver) = builder.seed(1).build_with_driver().unwrap();
                self.drivers.all.lock().unwrap().push(driver);
                stack
            });
            pairs.push(Pair {
                setup,
                client,
                server,
            });
        }
        let pair = pairs.iter().find(|pair| pair.setup == setup).unwrap();
        let client = match self.ends {
            Ends::One => &pair.server,
            Ends::Linked | Ends::OnEthernet => &pair.client,
        };
        (client.clone(), pair.server.clone())
    }
}

impl Factory for Manual {
    fn connect(&self, setup: Setup) -> (Socket, Socket) {
        let (client, server) = self.stacks(setup);
        let listener = TcpListener::bind(&server, "10.0.0.2:0").unwrap();
        let client = TcpSocket::new(&client)
            .start(listener.local_addr())
            .unwrap();
        let server = self.drivers.accept(&listener);
        (client.as_ref().clone(), server)
    }

    fn listening(&self) -> Option<Socket> {
        let (_, server) = self.stacks(Setup::default());
        let listener = TcpListener::bind(&server, "10.0.0.2:0").unwrap();
        Some(listener.as_ref().clone())
    }

    fn connecting(&self) -> Option<Connecting> {
        let (client, server) = self.stacks(Setup::default());
        let at: SocketAddr = "10.0.0.2:7".parse().unwrap();
        let client = TcpSocket::new(&client).start(at).unwrap();
        let socket = client.as_ref().clone();
        let drivers = self.drivers.clone();
        // Nothing moves until the drivers run: the SYN is still on the link.
        let complete = move |verdict| match verdict {
            Verdict::Accept => {
                let listener = TcpListener::bind(&server, at).unwrap();
                Some(drivers.accept(&listener))
            }
            Verdict::Refuse => {
                while drivers.run() {}
                None
            }
        };
        Some(Connecting {
            socket,
            complete: Box::new(complete),
        })
    }

    fn time(&self) -> Option<&dyn Time> {
        Some(&*self.drivers)
    }
}

impl Time for Drivers {
    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    fn run(&self) -> bool {
        Drivers::run(self)
    }

    fn poll_at(&self) -> Option<Duration> {
        let now = self.clock.now();
        let all = self.all.lock().unwrap();
        let deadlines = all.iter().filter_map(Driver::poll_at);
        deadlines.min().map(|at| at.saturating_duration_since(now))
    }
}
