//! The network of a virtual machine, without privileges: what a guest sends goes to its destination by sockets of
//! this process. It needs no TUN device, no bridge and no namespace.
//!
//! ```sh
//! cargo run --release --example sandbox -- --connect /tmp/net.sock
//! qemu-system-x86_64 ... -device virtio-net-pci,netdev=n \
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
//! * `--forward 127.0.0.1:8080:80` lets host programs connect to port 80 of the guest.
//! * DHCP, router advertisements, ARP and neighbour discovery: [`sosplice::link::ethernet::Edge`].

mod arguments;
mod relay;

use anyhow::Context;
use arguments::{Arguments, Transport};
use clap::Parser;
use relay::{Network, report};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use sosplice::link::Link;
use sosplice::link::ethernet::{Edge, FrameDatagrams, FrameStream};
use sosplice::stack::{FlowOptions, PingListener};
use sosplice::{ConditionalListener, Intercept, Stack, UdpListener};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Maximum number of connections that wait for their destination, each with a connecting thread. SYNs of others are
/// not answered, and are retransmitted.
const DIALLING: usize = 512;

/// How long a flow to a name server is kept after its last answer, and how many there are at most.
const ANSWERED: Duration = Duration::from_secs(3);
const QUERIES: usize = 4096;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.transport()? {
        Transport::Listen(path) => serve(&arguments, FrameStream::listen(path)?),
        Transport::Connect(path) => serve(&arguments, FrameStream::connect(path)?),
        Transport::Datagrams(path) => serve(&arguments, FrameDatagrams::bind(path)?),
    }
}

/// Serves the guest until a signal arrives, then prints the counters.
fn serve<T: Link + 'static>(arguments: &Arguments, transport: T) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let edge = Arc::new(Edge::new(transport, arguments.edge())?);
    let network = Arc::new(arguments.network()?);
    let mut builder = Stack::builder(Arc::clone(&edge)).address(arguments.gateway.into());
    for address in arguments.addresses_v6() {
        builder = builder.address(address);
    }
    let stack = builder.build()?;
    relay(&stack, &network)?;
    for forward in &arguments.forward {
        let listener = TcpListener::bind(forward.host).with_context(|| forward.host.to_string())?;
        let (stack, to) = (stack.clone(), (arguments.guest, forward.guest).into());
        let network = Arc::clone(&network);
        thread::Builder::new().spawn(move || report(to, network.forward(&listener, &stack, to)))?;
    }
    println!("the gateway of the guest is {}", arguments.gateway.addr());
    signals.forever().next();
    println!("{:#?}\n{:#?}", edge.stats(), stack.stats());
    Ok(())
}

/// Starts a thread for each kind of traffic.
fn relay(stack: &Stack, network: &Arc<Network>) -> anyhow::Result<()> {
    let connections = ConditionalListener::intercept(stack, Intercept::all(), DIALLING)?;
    // All flows are those of one client.
    let flows = FlowOptions::default();
    let flows = flows.clone().max_flows_per_client(flows.max_flows);
    let datagrams = UdpListener::intercept(stack, Intercept::all(), flows)?;
    // A query has one answer. More precise, so it takes precedence.
    let queries = FlowOptions::default()
        .answered_timeout(ANSWERED)
        .max_flows_per_client(QUERIES)
        .max_flows(QUERIES);
    let names = Intercept::all().ports(53..=53);
    let names = UdpListener::intercept(stack, names, queries)?;
    let pings = PingListener::intercept(stack, Intercept::all(), PingListener::options())?;
    for listeners in [
        Listeners::Connections(connections),
        Listeners::Datagrams(datagrams),
        Listeners::Datagrams(names),
        Listeners::Pings(pings),
    ] {
        let network = Arc::clone(network);
        thread::Builder::new().spawn(move || report("the stack", network.run(listeners)))?;
    }
    Ok(())
}

/// One of the kinds of traffic.
enum Listeners {
    Connections(ConditionalListener),
    Datagrams(UdpListener),
    Pings(PingListener),
}
