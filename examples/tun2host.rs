//! The core of a tun2socks tool: what enters a TUN device goes to its original destination by sockets of the
//! operating system. The connection of a TCP client is made before its SYN is answered, so an unreachable
//! destination is refused here too; one thread makes all of these connections, and waits for them with a poller.
//! Each UDP flow, and each ping, is spliced to a socket of its own; an ICMP error
//! that this socket receives is passed on to the client.
//!
//! ```sh
//! ip tuntap add tun0 mode tun && ip link set tun0 up && ip route add 203.0.113.0/24 dev tun0
//! cargo run --release --example tun2host -- tun0
//! ```
//!
//! (Its own connections must not be routed into the device again.)

#[path = "support/dials.rs"]
mod dials;

use anyhow::Context;
use clap::Parser;
use dials::Dials;
use ipnet::IpNet;
use rustix::process::{Resource, getrlimit, setrlimit};
use sosplice::kernel::{KernelPing, KernelStream, KernelUdp};
use sosplice::link::tun::Tun;
use sosplice::splice::{self, Options};
use sosplice::stack::{FlowOptions, PingListener};
use sosplice::{ConditionalListener, ConnectionRequest, Intercept, Stack, UdpListener};
use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::thread;
use std::time::Duration;

/// Maximum number of clients that wait for their destination. SYNs of others are not answered, and are
/// retransmitted.
const DIALLING: usize = 4096;

/// Splices connections, UDP flows and pings that enter a TUN to their original destinations.
#[derive(Parser)]
struct Arguments {
    /// The device: NAME, or NAME@NAMESPACE for one in a network namespace of `ip netns`
    tun: String,
    /// An address of the stack behind the device, with its prefix length
    #[arg(long, default_value = "198.18.0.1/15")]
    address: IpNet,
    /// How many seconds a destination may take to answer
    #[arg(long, default_value_t = 10)]
    connect_timeout: u64,
    /// End connections that were idle for this many seconds
    #[arg(long, default_value_t = 300)]
    idle: u64,
}

/// Connects to the destination of each client, then answers it, and joins both. The connections live until both
/// directions have ended.
fn relay_connections(
    listener: &ConditionalListener,
    timeout: Duration,
    options: &Options,
) -> anyhow::Result<()> {
    listener.set_nonblocking(true);
    let mut dials = Dials::<ConnectionRequest>::new(listener, timeout)?;
    loop {
        for (client, server) in dials.ended()? {
            match server {
                Ok(server) => report(client.local_addr(), join(client, server, options)),
                Err(error) => refuse(client, &error),
            }
        }
        loop {
            let client = match listener.pending() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                client => client.context("the device is gone")?,
            };
            if let Err((client, error)) = dials.start(client.local_addr(), client) {
                refuse(client, &error);
            }
        }
    }
}

fn join(client: ConnectionRequest, server: KernelStream, options: &Options) -> anyhow::Result<()> {
    splice::join(client.accept()?, server, options.clone())?;
    Ok(())
}

fn refuse(client: ConnectionRequest, error: &io::Error) {
    report::<(), _>(client.local_addr(), Err(error));
    client.refuse();
}

/// Joins each UDP flow with a connected socket. A flow that was idle ends on both sides.
fn relay_datagrams(listener: &UdpListener, options: &Options) -> io::Result<()> {
    for flow in listener.incoming() {
        let (client, _) = flow?;
        let to = client.local_addr();
        match KernelUdp::connect(to) {
            Ok(server) => report(to, splice::join(client, server, options.clone())),
            Err(error) => {
                client.refuse_with(&error);
                report::<(), _>(to, Err(error));
            }
        }
    }
    Ok(())
}

/// The same for pings.
fn relay_pings(listener: &PingListener, options: &Options) -> io::Result<()> {
    for client in listener.incoming() {
        let client = client?;
        let to = client.destination();
        match KernelPing::connect(to) {
            Ok(server) => report(to, splice::join(client, server, options.clone())),
            Err(error) => {
                client.refuse_with(&error);
                report::<(), _>(to, Err(error));
            }
        }
    }
    Ok(())
}

fn report<T, E: Display>(to: impl Display, result: Result<T, E>) {
    result.map_or_else(|error| eprintln!("{to}: {error}"), drop);
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    // Each connection, flow and ping has a descriptor.
    let mut descriptors = getrlimit(Resource::Nofile);
    descriptors.current = descriptors.maximum;
    setrlimit(Resource::Nofile, descriptors)?;
    let builder = match arguments.tun.split_once('@') {
        Some((name, namespace)) => Tun::builder(name).netns(namespace),
        None => Tun::builder(&arguments.tun),
    };
    let stack = Stack::builder(builder.build()?)
        .address(arguments.address)
        .build()?;
    let listener = ConditionalListener::intercept(&stack, Intercept::all(), DIALLING)?;
    let datagrams = UdpListener::intercept(&stack, Intercept::all(), FlowOptions::default())?;
    let pings = PingListener::intercept(&stack, Intercept::all(), PingListener::options())?;
    println!(
        "every connection into {} goes to its destination",
        arguments.tun
    );

    let timeout = Duration::from_secs(arguments.connect_timeout);
    let options = Options::default()
        .idle(Duration::from_secs(arguments.idle))
        .forward_eof(true)
        .forward_reset(true);
    // The stack ends flows that are idle.
    let flows = Options::default().forward_reset(true);
    thread::scope(|scope| {
        scope.spawn(|| report("UDP", relay_datagrams(&datagrams, &flows)));
        scope.spawn(|| report("pings", relay_pings(&pings, &flows)));
        relay_connections(&listener, timeout, &options)
    })
}
