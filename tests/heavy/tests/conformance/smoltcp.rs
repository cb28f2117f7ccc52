//! Sockets of plain smoltcp that were adopted: two interfaces with a link in memory, each with a set of sockets and an
//! adapter.

use crate::clock::SetClock;
use crate::smoltcp_wire::{Wire, address, interface, socket, wires};
use smoltcp::iface::{Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::Medium;
use smoltcp::socket::tcp;
use smoltcp::time;
use smoltcp::wire::HardwareAddress;
use sosplice::Socket;
use sosplice::clock::Clock;
use sosplice::conformance::{Connecting, Factory, Setup, Time, Verdict};
use sosplice::smoltcp::Adapter;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

pub(crate) fn real() -> Box<dyn Factory> {
    Box::new(Threaded::new())
}

pub(crate) fn in_virtual_time() -> Box<dyn Factory> {
    let clock = SetClock::new();
    let start = clock.now();
    let net = Mutex::new(Net::new(|| {}));
    let time = Arc::new(Manual { clock, start, net });
    Box::new(Virtual(time))
}

/// What a program with smoltcp owns.
struct Side {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    adapter: Adapter,
}

impl Side {
    fn new(host: u8, mut wire: Wire, adapter: Adapter) -> Side {
        let interface = interface(host, &mut wire, HardwareAddress::Ip);
        Side {
            wire,
            interface,
            sockets: SocketSet::new(Vec::new()),
            adapter,
        }
    }

    fn turn(&mut self, now: time::Instant) -> bool {
        let polled = self.interface.poll(now, &mut self.wire, &mut self.sockets);
        let worked = self.adapter.polled(&mut self.sockets, now);
        while let Some(handle) = self.adapter.finished() {
            self.sockets.remove(handle);
        }
        worked | (polled == PollResult::SocketStateChanged)
    }

    fn delay(&mut self, now: time::Instant) -> Option<time::Duration> {
        let interface = self.interface.poll_delay(now, &self.sockets);
        let delays = [interface, self.adapter.poll_delay(now)];
        delays.into_iter().flatten().min()
    }

    /// The adopted socket has buffers of the same sizes as smoltcp's: together they hold what the case requests.
    fn add(&mut self, setup: Setup) -> SocketHandle {
        let socket = socket(setup.rcv_hiwat / 2, setup.snd_hiwat / 2);
        self.sockets.add(socket)
    }
}

/// Two interfaces: the second one is the server's.
struct Net {
    sides: [Side; 2],
    port: u16,
}

impl Net {
    fn new(wake: impl Fn() + Clone + Send + Sync + 'static) -> Net {
        let [client, server] = wires(Medium::Ip);
        let sides = [
            Side::new(1, client, Adapter::new(wake.clone())),
            Side::new(2, server, Adapter::new(wake)),
        ];
        Net { sides, port: 1024 }
    }

    fn turn(&mut self, now: time::Instant) -> bool {
        let turns = self.sides.iter_mut().map(|side| side.turn(now));
        turns.fold(false, |any, worked| any | worked)
    }

    fn delay(&mut self, now: time::Instant) -> Option<time::Duration> {
        let delays = self.sides.iter_mut().filter_map(|side| side.delay(now));
        delays.min()
    }

    fn port(&mut self) -> u16 {
        self.port += 1;
        self.port
    }

    fn listen(&mut self, setup: Setup, port: u16) -> SocketHandle {
        let server = &mut self.sides[1];
        let handle = server.add(setup);
        let socket = server.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.listen(port).unwrap();
        handle
    }

    /// The SYN is not sent yet.
    fn dial(&mut self, setup: Setup, port: u16) -> Socket {
        let client = &mut self.sides[0];
        let handle = client.add(setup);
        let socket = client.sockets.get_mut::<tcp::Socket<'_>>(handle);
        let context = client.interface.context();
        socket.connect(context, (address(2), port), port).unwrap();
        client.adapter.adopt(&client.sockets, handle).unwrap()
    }

    /// The socket of a listening one that has accepted a connection.
    fn accepted(&mut self, handle: SocketHandle) -> Option<Socket> {
        let server = &mut self.sides[1];
        let socket = server.sockets.get::<tcp::Socket<'_>>(handle);
        let there = socket.state() == tcp::State::Established;
        there.then(|| server.adapter.adopt(&server.sockets, handle).unwrap())
    }
}

/// Two interfaces in virtual time.
struct Manual {
    clock: Arc<SetClock>,
    start: Instant,
    net: Mutex<Net>,
}

impl Manual {
    fn now(&self) -> time::Instant {
        let micros = (self.clock.now() - self.start).as_micros();
        time::Instant::from_micros(i64::try_from(micros).unwrap())
    }

    /// Until there is a connection. A ring of splices may keep the interfaces busy for ever.
    fn accept(&self, handle: SocketHandle) -> Socket {
        let turns = (0..10_000).map(|_| {
            let mut net = self.net.lock().unwrap();
            net.turn(self.now());
            net.accepted(handle)
        });
        turns.into_iter().flatten().next().expect("a connection")
    }
}

impl Time for Manual {
    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    fn run(&self) -> bool {
        self.net.lock().unwrap().turn(self.now())
    }

    fn poll_at(&self) -> Option<Duration> {
        let delay = self.net.lock().unwrap().delay(self.now());
        delay.map(Duration::from)
    }
}

struct Virtual(Arc<Manual>);

impl Factory for Virtual {
    fn connect(&self, setup: Setup) -> (Socket, Socket) {
        let (client, listener) = {
            let mut net = self.0.net.lock().unwrap();
            let port = net.port();
            let listener = net.listen(setup, port);
            (net.dial(setup, port), listener)
        };
        (client, self.0.accept(listener))
    }

    fn connecting(&self) -> Option<Connecting> {
        let (socket, port) = {
            let mut net = self.0.net.lock().unwrap();
            let port = net.port();
            (net.dial(Setup::default(), port), port)
        };
        let manual = self.0.clone();
        let complete = move |verdict| match verdict {
            Verdict::Accept => {
                let listener = manual.net.lock().unwrap().listen(Setup::default(), port);
                Some(manual.accept(listener))
            }
            Verdict::Refuse => {
                while manual.run() {}
                None
            }
        };
        Some(Connecting {
            socket,
            complete: Box::new(complete),
        })
    }

    fn time(&self) -> Option<&dyn Time> {
        Some(&*self.0)
    }
}

/// Two interfaces in a thread.
struct Threaded {
    net: Arc<Mutex<Net>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Threaded {
    fn new() -> Threaded {
        let looping: Arc<Mutex<Option<Thread>>> = Arc::default();
        let wakes = looping.clone();
        let wake = move || {
            let thread = wakes.lock().unwrap().clone();
            if let Some(thread) = thread {
                thread.unpark();
            }
        };
        let net = Arc::new(Mutex::new(Net::new(wake)));
        let stop = Arc::new(AtomicBool::new(false));
        let (serves, stops) = (net.clone(), stop.clone());
        let body = move || {
            while !stops.load(Ordering::Acquire) {
                let now = time::Instant::now();
                let (worked, delay) = {
                    let mut net = serves.lock().unwrap();
                    (net.turn(now), net.delay(now))
                };
                if !worked {
                    let delay = delay.map_or(Duration::from_secs(1), Duration::from);
                    thread::park_timeout(delay);
                }
            }
        };
        let thread = thread::Builder::new().spawn(body).unwrap();
        *looping.lock().unwrap() = Some(thread.thread().clone());
        let thread = Some(thread);
        Threaded { net, stop, thread }
    }

    fn wake(&self) {
        let thread = self.thread.as_ref();
        thread.unwrap().thread().unpark();
    }
}

impl Drop for Threaded {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Factory for Threaded {
    fn connect(&self, setup: Setup) -> (Socket, Socket) {
        let (client, listener) = {
            let mut net = self.net.lock().unwrap();
            let port = net.port();
            let listener = net.listen(setup, port);
            (net.dial(setup, port), listener)
        };
        self.wake();
        loop {
            let accepted = self.net.lock().unwrap().accepted(listener);
            if let Some(server) = accepted {
                return (client, server);
            }
            thread::yield_now();
        }
    }
}
