//! The core of a tun2socks tool: every TCP connection that enters a TUN device is spliced to a
//! connection of the operating system to its original destination. That is made before the client's SYN
//! is answered, so an unreachable destination is refused here too.
//!
//! ```sh
//! ip tuntap add tun0 mode tun && ip link set tun0 up && ip route add 203.0.113.0/24 dev tun0
//! cargo run --release --example tun2host -- tun0
//! ```
//!
//! (Its own connections must not be routed into the device again.)

use anyhow::Context;
use clap::Parser;
use ipnet::IpNet;
use sosplice::kernel::KernelStream;
use sosplice::link::tun::Tun;
use sosplice::splice::{self, Options};
use sosplice::{ConditionalListener, ConnectionRequest, Intercept, Stack};
use std::thread;
use std::time::Duration;

/// Maximum number of clients that wait for their destination, each with a connecting thread. SYNs of
/// others are not answered, and are retransmitted.
const DIALLING: usize = 1024;

/// Splices connections that enter a TUN to their original destinations.
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

/// Connects to the destination, then answers the client, and joins both. The connections live until
/// both directions have ended.
fn serve(client: ConnectionRequest, timeout: Duration, options: &Options) -> anyhow::Result<()> {
    let server = match KernelStream::connect_timeout(client.local_addr(), timeout) {
        Ok(server) => server,
        Err(error) => {
            client.refuse();
            return Err(error.into());
        }
    };
    splice::join(client.accept()?, server, options.clone())?;
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let builder = match arguments.tun.split_once('@') {
        Some((name, namespace)) => Tun::builder(name).netns(namespace),
        None => Tun::builder(&arguments.tun),
    };
    let stack = Stack::builder(builder.build()?)
        .address(arguments.address)
        .build()?;
    let listener = ConditionalListener::intercept(&stack, Intercept::all(), DIALLING)?;
    println!(
        "every connection into {} goes to its destination",
        arguments.tun
    );

    let timeout = Duration::from_secs(arguments.connect_timeout);
    let options = Options::default()
        .idle(Duration::from_secs(arguments.idle))
        .forward_eof(true)
        .forward_reset(true);
    for client in listener.incoming() {
        let client = client.context("the device is gone")?;
        let (to, options) = (client.local_addr(), options.clone());
        thread::Builder::new().spawn(move || {
            serve(client, timeout, &options).unwrap_or_else(|error| eprintln!("{to}: {error}"));
        })?;
    }
    Ok(())
}
