//! TCP between two stacks over a link in memory.

use crate::clock::SetClock;
use sosplice::clock::Clock;
use sosplice::conformance::{Connecting, Factory, Setup, Time, Verdict};
use sosplice::stack::{Builder, Driver};
use sosplice::{Socket, Stack, TcpListener, TcpSocket, TcpStream, link};
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
        looped: true,
        ..Threads::to("10.0.0.2:0")
    })
}

pub(crate) fn in_virtual_time() -> Box<dyn Factory> {
    Box::new(Manual::new(false))
}

pub(crate) fn looped_in_virtual_time() -> Box<dyn Factory> {
    Box::new(Manual::new(true))
}

/// Both ends of a link, not built yet.
fn builders(setup: Setup) -> [Builder; 2] {
    let (a, b) = link::memory::pair(link::memory::Config::default());
    let builder = |link, host: u8| {
        Stack::builder(link)
            .address(format!("10.0.0.{host}/24").parse().unwrap())
            .address(format!("fd00::{host}/64").parse().unwrap())
            .receive_buffer(setup.rcv_hiwat)
            .send_buffer(setup.snd_hiwat)
    };
    [builder(a, 1), builder(b, 2)]
}

/// Two stacks with drivers of their own. All connections of one setup share them.
#[derive(Clone)]
struct Stacks {
    setup: Setup,
    client: Stack,
    server: Stack,
}

static STACKS: LazyLock<Mutex<Vec<Stacks>>> = LazyLock::new(Mutex::default);

fn stacks(setup: Setup) -> Stacks {
    let mut all = STACKS.lock().unwrap();
    if let Some(known) = all.iter().find(|stacks| stacks.setup == setup) {
        return known.clone();
    }
    let [client, server] = builders(setup).map(|builder| builder.build().unwrap());
    let fresh = Stacks {
        setup,
        client,
        server,
    };
    all.push(fresh.clone());
    fresh
}

/// Sockets whose stacks have threads, with this address of the server.
struct Threads {
    at: &'static str,
    /// The server dials itself.
    looped: bool,
}

impl Threads {
    fn to(at: &'static str) -> Threads {
        Threads { at, looped: false }
    }
}

impl Factory for Threads {
    fn connect(&self, setup: Setup) -> (Socket, Socket) {
        let stacks = stacks(setup);
        let listener = TcpListener::bind(&stacks.server, self.at).unwrap();
        let client = if self.looped {
            &stacks.server
        } else {
            &stacks.client
        };
        let client = TcpStream::connect(client, listener.local_addr()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (client.as_ref().clone(), server.as_ref().clone())
    }

    fn listening(&self) -> Option<Socket> {
        let server = &stacks(Setup::default()).server;
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
    /// The server dials itself.
    looped: bool,
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
    fn new(looped: bool) -> Manual {
        let clock = SetClock::new();
        let drivers = Drivers {
            clock: clock.clone(),
            all: Mutex::default(),
        };
        Manual {
            clock,
            pairs: Mutex::default(),
            drivers: Arc::new(drivers),
            looped,
        }
    }

    fn stacks(&self, setup: Setup) -> (Stack, Stack) {
        let mut pairs = self.pairs.lock().unwrap();
        if !pairs.iter().any(|pair| pair.setup == setup) {
            let [client, server] = builders(setup).map(|builder| {
                let (stack, driver) = builder
                    .clock(self.clock.clone())
                    .seed(1)
                    .build_with_driver()
                    .unwrap();
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
        let client = if self.looped {
            &pair.server
        } else {
            &pair.client
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
