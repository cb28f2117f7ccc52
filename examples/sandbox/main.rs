//! The network of a virtual machine, without privileges: what a guest sends goes to its destination by sockets of
//! this process. It needs no TUN device, no bridge and no namespace.
//!
//! ```sh
//! cargo run --release --example sandbox -- --qemu /tmp/net.sock
//! qemu-system-x86_64 ... -device virtio-net-pci,netdev=n,romfile= \
//!     -netdev stream,id=n,server=on,addr.type=unix,addr.path=/tmp/net.sock
//! ```
//!
//! So either program can be started first, and the sandbox can be restarted while the guest runs: it connects again.
//! With `--listen` and QEMU's `server=off` the guest can be restarted, but QEMU does not connect again.
//!
//! * TCP: the connection to the destination is made before the guest's SYN is answered, so an unreachable one is
//!   refused in the guest too. Then both are spliced.
//! * UDP flows and pings are spliced to sockets of their own.
//! * Port 53 of the gateway is the host's name server. The gateway has no other services, and the host's
//!   loopback addresses cannot be reached; its other addresses can.
//! * `--allow` limits what the guest reaches, by network (`10.0.0.0/8`), by name (`example.org`, `*.example.org`), and
//!   by port (`192.0.2.0/24:443`, `example.org:443`). A name leads to the addresses that the gateway's name service
//!   gave for it, for their time to live and at least a minute; connections may last longer. Queries for other names
//!   are refused. The name server of an allowed name chooses its addresses, also in networks that only the host reaches,
//!   but not loopback, link-local and the guest's own. What is not allowed is refused: TCP with a reset, the rest with
//!   "administratively prohibited".
//! * `--guest 10.0.2.15-10.0.2.99` is for several guests, each with an address of its own. They share the rules, and
//!   what names lead to.
//! * `--forward 127.0.0.1:8080:80` lets host programs connect to port 80 of the guest.
//! * `--top` shows what passes, SIGUSR1 shows it once, `--pcap` writes it to a file.
//! * DHCP, router advertisements, ARP and neighbour discovery: [`sosplice::link::ethernet::Edge`].
//!
//! | file | contents |
//! |---|---|
//! | `arguments`, `rule` | the command line, rules of `--allow` |
//! | `policy`, `names` | which destinations are allowed, and the addresses of names |
//! | `dns`, `resolver` | queries and answers as messages; the name service |
//! | `relay`, `flows`, `shares` | the traffic; a table of it; how many connections of a guest may be in progress |
//! | `capture` | the file of frames |

mod arguments;
mod capture;
#[path = "../support/dials.rs"]
mod dials;
mod dns;
mod flows;
#[path = "../support/dns.rs"]
mod message;
mod names;
mod policy;
mod relay;
mod resolver;
mod rule;
mod shares;
mod threads;

use anyhow::Context;
use arguments::{Arguments, Transport};
use capture::Capture;
use clap::Parser;
use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use flows::Flows;
use policy::Policy;
use relay::{Network, report, report_again};
use resolver::Resolver;
use rustix::process::{Resource, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use sosplice::link::Link;
use sosplice::link::ethernet::{Edge, FrameDatagrams, FrameStream, Tap};
use sosplice::stack::{FlowOptions, PingListener};
use sosplice::{ConditionalListener, Intercept, Stack, UdpListener};
use std::io::{IsTerminal, Write, stdout};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// Maximum number of connections that wait for their destination, all in one thread. SYNs of others are not answered,
/// and are retransmitted.
const DIALLING: usize = 4096;

/// How long a flow to a name server is kept after its last answer, and how many there are at most.
const ANSWERED: Duration = Duration::from_secs(3);
const QUERIES: usize = 4096;

/// Time between looks at the transport, and between tables.
const TICK: Duration = Duration::from_secs(1);
/// How long the end of connections may take at the end.
const FAREWELL: Duration = Duration::from_millis(200);
/// Goes to the upper left corner of a terminal, and clears it.
const CLEAR: &str = "\x1b[H\x1b[J";

/// A transport of frames that can tell guests apart.
trait Guests: Link {
    /// How many guests are gone.
    fn gone(&self) -> u64;
}

impl Guests for FrameStream {
    fn gone(&self) -> u64 {
        self.stats().disconnects
    }
}

/// With datagrams it is unknown when their peer is gone.
impl Guests for FrameDatagrams {
    fn gone(&self) -> u64 {
        0
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    // Each connection, flow and ping has a descriptor.
    let mut descriptors = getrlimit(Resource::Nofile);
    descriptors.current = descriptors.maximum;
    setrlimit(Resource::Nofile, descriptors)?;
    let stream = |stream: FrameStream| match arguments.large_frames {
        true => stream.trust_checksums().large_frames(),
        false => stream.trust_checksums(),
    };
    match arguments.transport()? {
        Transport::Qemu(path) => serve(&arguments, stream(FrameStream::connect(path)?)),
        Transport::Listen(path) => serve(&arguments, stream(FrameStream::listen(path)?)),
        Transport::Datagrams(path) => {
            serve(&arguments, FrameDatagrams::bind(path)?.trust_checksums())
        }
        Transport::Tap(name) => serve(&arguments, Tap::open(name)?),
    }
}

/// Others may be behind it.
impl Guests for Tap {
    fn gone(&self) -> u64 {
        0
    }
}

/// All that runs.
struct Sandbox<T> {
    edge: Arc<Edge<Capture<T>>>,
    stack: Stack,
    network: Network,
}

/// Serves guests until a signal arrives, then prints the counters.
fn serve<T: Guests + 'static>(arguments: &Arguments, transport: T) -> anyhow::Result<()> {
    let signals = signals()?;
    let sandbox = Sandbox::new(arguments, transport)?;
    sandbox.relay(arguments.guest.last.is_some())?;
    for forward in &arguments.forward {
        let listener = TcpListener::bind(forward.host).with_context(|| forward.host.to_string())?;
        let guest = forward.guest.unwrap_or(arguments.guest.first);
        let to = (guest, forward.port).into();
        let (stack, network) = (sandbox.stack.clone(), sandbox.network.clone());
        thread::Builder::new().spawn(move || network.forward(&listener, &stack, to))?;
    }
    if let Some(options) = arguments.transport()?.qemu() {
        println!("QEMU: {options}");
    }
    println!("the gateway of the guest is {}", arguments.gateway.addr());
    loop {
        match signals.recv_timeout(TICK) {
            Ok(SIGUSR1) => sandbox.show(true)?,
            Err(RecvTimeoutError::Timeout) if arguments.top => sandbox.show(false)?,
            Err(RecvTimeoutError::Timeout) => {}
            Ok(_) | Err(RecvTimeoutError::Disconnected) => break,
        }
        sandbox.end_abandoned();
        report_again();
    }
    sandbox.network.closing.store(true, Ordering::SeqCst);
    sandbox.show(true)?;
    // Resets for the guest and for all others, also if the socket to the guest has no room at once.
    sandbox.network.flows.end_before(u64::MAX);
    signals.recv_timeout(FAREWELL).ok();
    sandbox.edge.transport().flush();
    Ok(())
}

/// Signals, in another thread.
fn signals() -> anyhow::Result<Receiver<i32>> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1])?;
    let (sender, receiver) = unbounded();
    let run = move || signals.forever().try_for_each(|signal| sender.send(signal));
    thread::Builder::new().spawn(run)?;
    Ok(receiver)
}

impl<T: Guests + 'static> Sandbox<T> {
    fn new(arguments: &Arguments, transport: T) -> anyhow::Result<Sandbox<T>> {
        let file = arguments.pcap.as_deref();
        let capture = Capture::new(transport, file, arguments.pcap_limit);
        let capture = capture.context("the file for the capture")?;
        let edge = Arc::new(Edge::new(capture, arguments.edge())?);
        let alive = Duration::from_secs(arguments.keep_alive.max(1));
        let idle = Duration::from_secs(arguments.idle.max(1));
        // A guest that is paused keeps its connections for as long as idle ones last.
        let probes = u32::try_from(idle.as_secs() / alive.as_secs()).unwrap_or(u32::MAX);
        let mut builder = Stack::builder(Arc::clone(&edge))
            .address(arguments.gateway.into())
            .send_buffer(relay::BUFFER)
            .receive_buffer(relay::BUFFER)
            .keep_alive(alive, alive, probes.max(1));
        for address in arguments.addresses_v6() {
            builder = builder.address(address);
        }
        let inside = arguments.inside();
        let policy = Arc::new(Policy::new(arguments.allow.clone(), inside.clone()));
        let resolver = arguments.resolver()?;
        let resolver = resolver.map(|address| Resolver::new(address, Arc::clone(&policy)));
        let network = Network {
            own: inside.iter().map(ipnet::IpNet::addr).collect(),
            resolver: resolver.transpose()?.map(Arc::new),
            policy,
            flows: Flows::default(),
            gone: {
                let edge = Arc::clone(&edge);
                Arc::new(move || edge.transport().transport().gone())
            },
            connect_timeout: Duration::from_secs(arguments.connect_timeout),
            idle,
            closing: Arc::default(),
        };
        let stack = builder.build()?;
        Ok(Sandbox {
            edge,
            stack,
            network,
        })
    }

    /// Starts a thread for each kind of traffic. Of several guests none has all flows.
    fn relay(&self, several: bool) -> anyhow::Result<()> {
        let stack = &self.stack;
        let connections = ConditionalListener::intercept(stack, Intercept::all(), DIALLING)?;
        let share = |all: usize| if several { all / 8 } else { all };
        let flows = FlowOptions::default();
        let flows = flows.clone().max_flows_per_client(share(flows.max_flows));
        let datagrams = UdpListener::intercept(stack, Intercept::all(), flows)?;
        // A query has one answer. More precise, so it takes precedence.
        let queries = FlowOptions::default()
            .answered_timeout(ANSWERED)
            .max_flows_per_client(share(QUERIES))
            .max_flows(QUERIES);
        let names = Intercept::all().ports(53..=53);
        let names = UdpListener::intercept(stack, names, queries)?;
        let pings = PingListener::intercept(stack, Intercept::all(), PingListener::options())?;
        for listeners in [
            Listeners::Connections(connections, share(DIALLING)),
            Listeners::Datagrams(datagrams),
            Listeners::Datagrams(names),
            Listeners::Pings(pings),
        ] {
            let network = self.network.clone();
            thread::Builder::new().spawn(move || report("the stack", network.run(listeners)))?;
        }
        Ok(())
    }

    /// Ends the connections of a guest that is gone: it does not come back with them.
    fn end_abandoned(&self) {
        let ended = self.network.flows.end_before((self.network.gone)());
        self.network.policy.counters.abandoned.add_all(ended);
    }

    /// Prints a table of what passes, and if asked the counters.
    fn show(&self, counters: bool) -> anyhow::Result<()> {
        let mut out = stdout().lock();
        if !counters && out.is_terminal() {
            write!(out, "{CLEAR}")?;
        }
        writeln!(out, "{}", self.network.flows.table(&self.stack))?;
        if counters {
            let relayed = &self.network.policy.counters;
            let (edge, stack) = (self.edge.stats(), self.stack.stats());
            writeln!(out, "{relayed:#?}\n{edge:#?}\n{stack:#?}")?;
        }
        Ok(out.flush()?)
    }
}

/// One of the kinds of traffic.
enum Listeners {
    /// With the number that may wait for their destinations at once, of each guest.
    Connections(ConditionalListener, usize),
    Datagrams(UdpListener),
    Pings(PingListener),
}
