//! The heart of a tun2socks tool: every TCP connection that enters a TUN device is spliced to a
//! connection of the operating system to its original destination. That is dialled before the client's
//! SYN is answered, so who cannot be reached there is refused here.
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
use sosplice::socket::poller::{Events, Interest, Mode, Poller, Token};
use sosplice::splice::Options;
use sosplice::{DecidingListener, Intercept, Pending, Stack};
use std::collections::HashMap;
use std::io;
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

/// Connections to destinations that do not stand yet, and the clients that wait for them.
type Dialling = HashMap<Token, (Pending, KernelStream)>;

/// Dials the destination. Its client is not answered before that has an end.
fn dial(client: Pending, poller: &Poller, dialling: &mut Dialling, token: Token) {
    let started = KernelStream::start(client.local_addr()).and_then(|server| {
        poller.add(&server, token, Interest::WRITABLE, Mode::Edge)?;
        Ok(server)
    });
    match started {
        Ok(server) => drop(dialling.insert(token, (client, server))),
        Err(error) => {
            eprintln!("{}: {error}", client.local_addr());
            client.refuse();
        }
    }
}

/// The destination has answered, or will not: so does the client's `connect()`. Splices both ways; the
/// connections live as long as a splice does.
fn join(
    client: Pending,
    server: KernelStream,
    poller: &Poller,
    options: &Options,
) -> anyhow::Result<()> {
    poller.delete(&server)?;
    if let Err(error) = server.wait_connected(None) {
        client.refuse();
        return Err(error.into());
    }
    let pair = Arc::new((client.accept()?, server));
    let up = pair.0.splice_to(&pair.1, options.clone())?;
    let down = pair.1.splice_to(&pair.0, options.clone())?;
    for splice in [up, down] {
        let pair = pair.clone();
        splice.on_end(move |_| drop(pair));
    }
    Ok(())
}

/// Hands each client on, from its SYN to the splices.
fn serve(listener: &DecidingListener, options: &Options) -> anyhow::Result<()> {
    const LISTENER: Token = Token(0);
    let poller = Poller::new();
    listener.set_nonblocking(true);
    poller.add(listener, LISTENER, Interest::READABLE, Mode::Level)?;
    let mut dialling = Dialling::new();
    let mut tokens = (1..).map(Token);
    let mut events = Events::default();
    loop {
        poller.wait(&mut events, None)?;
        for event in &events {
            if event.token() != LISTENER {
                let Some((client, server)) = dialling.remove(&event.token()) else {
                    continue;
                };
                let destination = client.local_addr();
                if let Err(error) = join(client, server, &poller, options) {
                    eprintln!("{destination}: {error}");
                }
                continue;
            }
            match listener.pending() {
                Ok(client) => {
                    let token = tokens.next().context("2^64 connections")?;
                    dial(client, &poller, &mut dialling, token);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("the device is gone"),
            }
        }
    }
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
    let listener = DecidingListener::intercept(&stack, Intercept::all(), 4096)?;
    println!("every connection into {name} goes to its destination");

    let options = Options {
        idle: Some(Duration::from_secs(arguments.idle)),
        forward_eof: true,
        forward_reset: true,
        ..Options::default()
    };
    serve(&listener, &options)
}
