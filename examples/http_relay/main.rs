//! An HTTP/1.1 relay that picks a backend by the `Host` of each request: as OpenBSD's relayd, and the
//! reason for the limit of a splice.
//!
//! The program reads heads only. A request's head is parsed (`httparse`) and forwarded, after a PROXY
//! protocol header (version 2) on a new connection; its body is moved by a splice whose limit is the
//! `Content-Length`. At the limit the splice ends, and the program uses both sockets again: the
//! backend's for the head of the response, whose body is a splice in the other direction, and the
//! client's for the next request. A chunked response is a splice for each chunk, so many small chunks
//! cost more than one body. Without arguments clients, relay and two backends run in this process, on
//! links in memory, and every body is checked. With `--tun` the relay is a host behind a TUN device.
//!
//! Not done: requests with a chunked body (411) and CONNECT (501); `Upgrade` (the field is left out); TLS
//! and HTTP/2; a second attempt when a kept connection to a backend ends at the moment of the next request
//! (502).

mod demo;
mod head;
mod relay;

use anyhow::bail;
use clap::Parser;
use ipnet::IpNet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

/// Maximum number of connections of clients and to backends together. A client has a thread, so there
/// is a limit.
#[cfg(any(target_os = "linux", target_os = "android"))]
const MOST_CONNECTIONS: usize = 8192;

/// Relays HTTP/1.1 requests to a backend selected by their Host.
///
/// Without --tun all parts run in this process, on links in memory: clients with pipelined requests,
/// the relay, and two backends that echo each body. Every body is checked.
#[derive(Parser)]
#[command(
    name = "http_relay",
    version,
    max_term_width = 100,
    after_help = "\
Answers of its own: 400 for a bad head or a body that is cut off, 404 for a host without a route,
408 and 504 for a client and a backend that are silent, 411 for a chunked request, 431 for a head
of more than 16 KiB, 501 for CONNECT, 502 for a backend that refuses or makes no sense.

Exit status: 0 if all went well, 1 if not (a body differed, a device is missing), 2 for a wrong
command line."
)]
struct Arguments {
    /// Without a device: clients, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 4, conflicts_with = "tun")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// Without a device: bytes of the largest bodies
    #[arg(long, value_name = "N", default_value_t = 4 << 20, conflicts_with = "tun")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    bytes: u32,
    /// A TUN device: NAME, or NAME@NAMESPACE for one in a network namespace of `ip netns` (Linux)
    #[arg(
        long,
        value_name = "NAME[@NETNS]",
        requires = "address",
        requires = "listen"
    )]
    tun: Option<String>,
    /// The relay's address behind the device, with its prefix length
    #[arg(long, value_name = "ADDRESS/PREFIX", requires = "tun")]
    address: Option<IpNet>,
    /// Where clients connect to
    #[arg(long, value_name = "ADDRESS:PORT", requires = "tun")]
    listen: Option<SocketAddr>,
    /// A host's backend, reached through the device; for each host
    #[arg(long, value_name = "HOST=ADDRESS:PORT", requires = "tun", value_parser = route)]
    route: Vec<(String, SocketAddr)>,
    /// The backend of all other hosts
    #[arg(long, value_name = "ADDRESS:PORT", requires = "tun")]
    default: Option<SocketAddr>,
    /// How long a head may take, a backend to answer, and a body to make no progress
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

fn route(argument: &str) -> Result<(String, SocketAddr), String> {
    let route = argument.split_once('=').and_then(|(host, address)| {
        let address = address.parse().ok()?;
        Some((head::name_of(host), address))
    });
    route.ok_or_else(|| "give a host and its backend, like example.com=10.1.0.1:8080".into())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ran = match arguments.tun.clone() {
        Some(tun) => on_a_tun(&tun, arguments),
        None => demo::run(
            arguments.connections,
            arguments.bytes,
            Duration::from_secs(arguments.timeout),
        ),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn on_a_tun(_: &str, _: Arguments) -> anyhow::Result<()> {
    bail!("--tun needs Linux; without it the relay runs in memory, on any system");
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn on_a_tun(tun: &str, arguments: Arguments) -> anyhow::Result<()> {
    use anyhow::Context;
    use clap::{CommandFactory, error::ErrorKind};
    use relay::Relay;
    use sosplice::{Stack, TcpListener, link::tun::Tun};
    use std::sync::Arc;
    let (Some(address), Some(listen)) = (arguments.address, arguments.listen) else {
        bail!("--tun needs --address and --listen");
    };
    if arguments.route.is_empty() && arguments.default.is_none() {
        let why = "no backend: give a --route or a --default";
        Arguments::command()
            .error(ErrorKind::MissingRequiredArgument, why)
            .exit();
    }
    let builder = match tun.split_once('@') {
        Some((name, namespace)) => Tun::builder(name).netns(namespace),
        None => Tun::builder(tun),
    };
    let stack = Stack::builder(builder.build()?)
        .address(address)
        .max_connections(MOST_CONNECTIONS)
        .build()?;
    let listener =
        TcpListener::bind(&stack, listen).with_context(|| format!("cannot listen on {listen}"))?;
    println!("listening on {}", listener.local_addr());
    let relay = Relay {
        stack,
        routes: arguments.route.into_iter().collect(),
        default: arguments.default,
        timeout: Duration::from_secs(arguments.timeout),
    };
    Err(Arc::new(relay).run(&listener)).context("no client can be accepted any more")
}
