//! The heart of a tun2socks tool: every TCP connection that enters a TUN device is spliced to a
//! connection of the operating system to its original destination.
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
use sosplice::splice::Options;
use sosplice::{Intercept, Stack, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// Splices what enters a TUN to its original destination.
#[derive(Parser)]
struct Arguments {
    /// The device: NAME, or NAME@NAMESPACE for one in a network namespace of `ip netns`
    tun: String,
    /// An address of the stack behind the device, with its prefix length
    #[arg(long, default_value = "198.18.0.1/15")]
    address: IpNet,
    /// End connections on which nothing has moved for so many seconds
    #[arg(long, default_value_t = 300)]
    idle: u64,
}

/// Dials the destination and splices both ways. The connections live as long as a splice does.
fn join(client: TcpStream, options: &Options) -> anyhow::Result<()> {
    let server = KernelStream::start(client.local_addr())?;
    let pair = Arc::new((client, server));
    let up = pair.0.splice_to(&pair.1, options.clone())?;
    let down = pair.1.splice_to(&pair.0, options.clone())?;
    for splice in [up, down] {
        let pair = pair.clone();
        splice.on_end(move |_| drop(pair));
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let (name, namespace) = match arguments.tun.split_once('@') {
        Some((name, namespace)) => (name, Some(namespace)),
        None => (&*arguments.tun, None),
    };
    let builder = Tun::builder(name);
    let tun = namespace
        .into_iter()
        .fold(builder, |builder, name| builder.netns(name));
    let stack = Stack::builder(tun.build()?)
        .address(arguments.address)
        .build()?;
    let listener = TcpListener::intercept(&stack, Intercept::all(), 4096)?;
    println!("every connection into {name} goes to its destination");

    let options = Options {
        idle: Some(Duration::from_secs(arguments.idle)),
        forward_eof: true,
        forward_reset: true,
        ..Options::default()
    };
    for client in listener.incoming() {
        let client = client.context("the device is gone")?;
        let handle = client.clone();
        if let Err(error) = join(client, &options) {
            eprintln!("{}: {error}", handle.local_addr());
            handle.abort();
        }
    }
    Ok(())
}
