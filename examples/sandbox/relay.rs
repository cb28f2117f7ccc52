//! The guest's traffic, to sockets of the operating system.

use crate::Listeners;
use crate::dials::Dials;
use crate::flows::{Flow, Flows, Kind};
use crate::policy::{Counter, Policy};
use crate::resolver::Resolver;
use crate::shares::{Place, Shares};
use crate::threads::Threads;
use sosplice::clock::{Clock, SystemClock};
use sosplice::kernel::{KernelPing, KernelStream, KernelUdp};
use sosplice::splice::{self, Options};
use sosplice::stack::PingFlow;
use sosplice::{ConditionalListener, ConnectionRequest, Socket, Stack, TcpSocket, UdpSocket};
use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// What the guest can reach.
#[derive(Clone)]
pub(crate) struct Network {
    /// The gateway's addresses.
    pub(crate) own: Vec<IpAddr>,
    pub(crate) resolver: Option<Arc<Resolver>>,
    pub(crate) policy: Arc<Policy>,
    pub(crate) flows: Flows,
    /// How many guests are gone.
    pub(crate) gone: Arc<dyn Fn() -> u64 + Send + Sync>,
    pub(crate) connect_timeout: Duration,
    pub(crate) idle: Duration,
    /// Nothing new is served: it waits for the next sandbox.
    pub(crate) closing: Arc<AtomicBool>,
}

/// Where something that the guest sends goes.
enum Way<'a> {
    Out,
    /// The gateway's name service.
    Names(&'a Resolver),
}

/// A guest that waits for the connection to its destination.
struct Dial {
    client: ConnectionRequest,
    flow: Flow,
    _place: Place,
}

/// Why a SYN is not answered.
const TOO_MANY: &str = "too many connections of this guest wait for their destinations";

/// Time until connections of host programs are accepted again, when that has failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Lines about failures in each second: a guest can cause any number.
const LINES: usize = 20;

/// Lines since the last second.
static REPORTED: AtomicUsize = AtomicUsize::new(0);

pub(crate) fn report<T, E: Display>(to: impl Display, result: Result<T, E>) {
    if let Err(error) = result
        && REPORTED.fetch_add(1, Ordering::Relaxed) < LINES
    {
        eprintln!("{to}: {error}");
    }
}

/// Another second begins.
pub(crate) fn report_again() {
    let count = REPORTED.swap(0, Ordering::Relaxed);
    if count > LINES {
        eprintln!("... and {} more", count - LINES);
    }
}

impl Network {
    /// Where a destination of the guest is; a ping has no port.
    fn way(&self, to: IpAddr, port: Option<u16>) -> io::Result<Way<'_>> {
        match &self.resolver {
            _ if !self.own.contains(&to) => match self.policy.allows(to, port, SystemClock.now()) {
                true => Ok(Way::Out),
                false => Err(io::Error::new(ErrorKind::PermissionDenied, "not allowed")),
            },
            Some(resolver) if port == Some(53) => Ok(Way::Names(resolver)),
            _ => Err(ErrorKind::ConnectionRefused.into()),
        }
    }

    /// One of the guest's, between it and a destination.
    fn flow(&self, kind: Kind, guest: SocketAddr, to: SocketAddr) -> Flow {
        Flow {
            kind,
            guest,
            peer: to,
            other: to,
            name: self.policy.name(to.ip(), SystemClock.now()),
            generation: (self.gone)(),
        }
    }

    fn options(&self) -> Options {
        Options::default()
            .idle(self.idle)
            .forward_eof(true)
            .forward_reset(true)
    }

    /// What is accepted before the end.
    fn served<T>(&self, incoming: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
        incoming.filter(|_| !self.closing.load(Ordering::SeqCst))
    }

    pub(crate) fn run(&self, listener: Listeners) -> anyhow::Result<()> {
        match listener {
            Listeners::Connections(listener, share) => self.connections(&listener, share)?,
            Listeners::Datagrams(listener) => {
                for flow in self.served(listener.incoming()) {
                    let (client, from) = flow?;
                    report(client.local_addr(), self.datagrams(client, from));
                }
            }
            Listeners::Pings(listener) => {
                for client in self.served(listener.incoming()) {
                    let client = client?;
                    report(client.destination(), self.pings(client));
                }
            }
        }
        Ok(())
    }

    /// Connects to the destinations of guests, of which each has a share of the connections that are being made.
    fn connections(&self, listener: &ConditionalListener, share: usize) -> anyhow::Result<()> {
        listener.set_nonblocking(true);
        let mut dials = Dials::new(listener, self.connect_timeout)?;
        let shares = Shares::new(share);
        loop {
            for (dial, server) in dials.ended()? {
                let Dial { client, flow, .. } = dial;
                report(flow.peer, self.join(client, flow, server));
            }
            while let Some(client) = pending(listener)? {
                if self.closing.load(Ordering::SeqCst) {
                    continue;
                }
                let to = client.local_addr();
                match shares.take(client.peer_addr().ip()) {
                    Some(place) => report(to, self.connect(&mut dials, client, place)),
                    // The SYN is not answered, and comes again.
                    None => report(to, Err::<(), _>(TOO_MANY)),
                }
            }
        }
    }

    /// Begins to connect to the destination of a guest.
    fn connect(
        &self,
        dials: &mut Dials<Dial>,
        client: ConnectionRequest,
        place: Place,
    ) -> anyhow::Result<()> {
        let (guest, to) = (client.peer_addr(), client.local_addr());
        let flow = self.flow(Kind::Tcp, guest, to);
        self.policy.counters.connections.add();
        let dial = Dial {
            client,
            flow,
            _place: place,
        };
        let started = match self.way(to.ip(), Some(to.port())) {
            Ok(Way::Names(resolver)) => {
                return Ok(resolver.accept(dial.client, self.connect_timeout)?);
            }
            Ok(Way::Out) => dials.start(to, dial),
            Err(error) => Err((dial, error)),
        };
        match started {
            Ok(()) => Ok(()),
            Err((dial, error)) => self.join(dial.client, dial.flow, Err(error)),
        }
    }

    /// Answers the guest, and joins both; or refuses it.
    fn join(
        &self,
        client: ConnectionRequest,
        flow: Flow,
        server: io::Result<KernelStream>,
    ) -> anyhow::Result<()> {
        let counters = &self.policy.counters;
        match server {
            Ok(server) => {
                let client = client.accept()?;
                buffers(&client, &server);
                let join = splice::join(client, server, self.options())?;
                self.flows.add(flow, join);
                Ok(())
            }
            Err(error) => {
                count(
                    &error,
                    &counters.connections_prohibited,
                    &counters.connections_failed,
                );
                client.refuse();
                Err(error.into())
            }
        }
    }

    fn datagrams(&self, client: UdpSocket, guest: SocketAddr) -> anyhow::Result<()> {
        let to = client.local_addr();
        let counters = &self.policy.counters;
        counters.flows.add();
        let server = match self.way(to.ip(), Some(to.port())) {
            Ok(Way::Names(resolver)) => {
                resolver.serve(client);
                return Ok(());
            }
            Ok(Way::Out) => KernelUdp::connect(to),
            Err(error) => Err(error),
        };
        match server {
            Ok(server) => {
                let join = splice::join(client, server, of_flows())?;
                self.flows.add(self.flow(Kind::Udp, guest, to), join);
                Ok(())
            }
            Err(error) => {
                count(&error, &counters.flows_prohibited, &counters.flows_failed);
                client.refuse_with(&error);
                Err(error.into())
            }
        }
    }

    fn pings(&self, client: PingFlow) -> anyhow::Result<()> {
        let (guest, to) = (client.client(), client.destination());
        let counters = &self.policy.counters;
        counters.pings.add();
        let server = self.way(to, None).and_then(|_| KernelPing::connect(to));
        match server {
            Ok(server) => {
                let join = splice::join(client, server, of_flows())?;
                let [guest, to] = [guest, to].map(|address| SocketAddr::new(address, 0));
                self.flows.add(self.flow(Kind::Ping, guest, to), join);
                Ok(())
            }
            Err(error) => {
                count(&error, &counters.pings_prohibited, &counters.pings_failed);
                client.refuse_with(&error);
                Err(error.into())
            }
        }
    }

    /// Connects host programs to a port of the guest.
    pub(crate) fn forward(&self, listener: &TcpListener, stack: &Stack, to: SocketAddr) {
        let threads = Threads::new();
        for client in listener.incoming() {
            let client = match client {
                Ok(client) => client,
                Err(error) => {
                    // It did not wait, or there are no descriptors until others end.
                    report("the host's socket", Err::<(), _>(&error));
                    if error.kind() != ErrorKind::ConnectionAborted {
                        thread::park_timeout(PAUSE);
                    }
                    continue;
                }
            };
            let (stack, network) = (stack.clone(), self.clone());
            let join = move || -> anyhow::Result<()> {
                let other = client.peer_addr()?;
                let guest = TcpSocket::new(&stack).connect_timeout(to, network.connect_timeout)?;
                let flow = Flow {
                    other,
                    name: None,
                    ..network.flow(Kind::Forward, to, guest.local_addr())
                };
                let client = KernelStream::from_std(client)?;
                buffers(&guest, &client);
                let join = splice::join(guest, client, network.options())?;
                network.flows.add(flow, join);
                Ok(())
            };
            let join = move || report(to, join());
            report(to, threads.run(join));
        }
    }
}

/// The next client, if there is one.
fn pending(listener: &ConditionalListener) -> io::Result<Option<ConnectionRequest>> {
    match listener.pending() {
        Ok(client) => Ok(Some(client)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Bytes of each socket's buffers, of which only what waits is in memory. Smaller ones fill and empty in turns, and
/// each turn wakes other threads and programs.
pub(crate) const BUFFER: usize = 1 << 20;

/// For the same reason data goes on when there is room for more than a few packets of it.
fn buffers(guest: &Socket, host: &Socket) {
    host.set_rcv_hiwat(BUFFER);
    host.set_snd_hiwat(BUFFER);
    guest.set_snd_lowat(BUFFER / 2);
    host.set_snd_lowat(BUFFER / 4);
}

/// The stack ends flows that are idle.
fn of_flows() -> Options {
    Options::default().forward_reset(true)
}

fn count(error: &io::Error, prohibited: &Counter, failed: &Counter) {
    match error.kind() {
        ErrorKind::PermissionDenied => prohibited.add(),
        _ => failed.add(),
    }
}
