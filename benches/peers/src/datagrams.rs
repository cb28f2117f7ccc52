//! Other userspace stacks as relays from a TUN to the kernel's UDP sockets: `datagrams --stack ipstack --tun tc@client`.
//!
//! Each as its documentation shows, with what it lacks there for speed: netstack-smoltcp's example makes a socket for
//! every datagram, here flows are kept in a map; packets are read from the device until there is none, so that a
//! wake-up serves many.

mod device;
#[path = "../../support/plain_tun.rs"]
mod plain_tun;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use device::Device;
use futures::{SinkExt, StreamExt};
use ipstack::{IpStack, IpStackConfig, IpStackStream};
use netstack_smoltcp::StackBuilder;
use plain_tun::{PlainTun, Spec};
use rustix::fd::OwnedFd;
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

const MTU: u16 = 1500;

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Ipstack,
    Netstack,
}

/// Relays datagrams from a TUN.
#[derive(Parser)]
struct Arguments {
    #[arg(long, value_enum)]
    stack: Kind,
    /// NAME@NAMESPACE
    #[arg(long)]
    tun: Spec,
    /// Threads of the runtime; 0: that of the program.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

async fn connect(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = match to {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?,
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await?,
    };
    socket.connect(to).await?;
    Ok(socket)
}

async fn with_ipstack(tun: OwnedFd) -> anyhow::Result<()> {
    let mut config = IpStackConfig::default();
    config.mtu(MTU)?;
    let device = Device::new(tun)?;
    let mut stack = IpStack::new(config, device);
    println!("listening");
    loop {
        let IpStackStream::Udp(client) = stack.accept().await? else {
            continue;
        };
        let server = Arc::new(connect(client.peer_addr()).await?);
        let (mut from_client, mut to_client) = tokio::io::split(client);
        let to_server = server.clone();
        tokio::spawn(async move {
            let mut datagram = [0; 2048];
            while let Ok(count @ 1..) = from_client.read(&mut datagram).await {
                to_server.send(&datagram[..count]).await.ok();
            }
        });
        tokio::spawn(async move {
            let mut datagram = [0; 2048];
            while let Ok(count) = server.recv(&mut datagram).await {
                if to_client.write_all(&datagram[..count]).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn with_netstack(tun: OwnedFd) -> anyhow::Result<()> {
    let builder = StackBuilder::default()
        .enable_udp(true)
        .mtu(MTU.into())
        .stack_buffer_size(4096)
        .udp_buffer_size(4096);
    let (stack, _, udp, _) = builder.build()?;
    let (mut to_stack, mut from_stack) = stack.split();
    let (mut from_clients, mut to_clients) = udp.context("no UDP")?.split();
    let device = Device::new(tun)?;
    let writing = device.clone();
    tokio::spawn(async move {
        while let Some(Ok(packet)) = from_stack.next().await {
            writing.write(&packet).await.ok();
        }
    });
    tokio::spawn(async move {
        let mut packet = [0; 65_536];
        while let Ok(count) = device.read(&mut packet).await {
            to_stack.send(packet[..count].to_vec()).await.ok();
        }
    });
    let (answers, mut answered) = mpsc::channel(4096);
    tokio::spawn(async move {
        while let Some(answer) = answered.recv().await {
            to_clients.send(answer).await.ok();
        }
    });
    println!("listening");
    let mut flows: HashMap<(SocketAddr, SocketAddr), Arc<UdpSocket>> = HashMap::new();
    while let Some((datagram, client, to)) = from_clients.next().await {
        let server = match flows.get(&(client, to)) {
            Some(server) => server,
            None => {
                let server = Arc::new(connect(to).await?);
                let (reading, answers) = (server.clone(), answers.clone());
                tokio::spawn(async move {
                    let mut datagram = [0; 2048];
                    while let Ok(count) = reading.recv(&mut datagram).await {
                        let answer = (datagram[..count].to_vec(), to, client);
                        if answers.send(answer).await.is_err() {
                            return;
                        }
                    }
                });
                flows.entry((client, to)).or_insert(server)
            }
        };
        server.send(&datagram).await.ok();
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let PlainTun { fd, .. } = arguments.tun.open(false)?;
    let mut builder = match arguments.threads {
        0 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if arguments.threads > 0 {
        builder.worker_threads(arguments.threads);
    }
    builder.enable_all().build()?.block_on(async {
        // A task of a worker: what is polled by the thread of the program wakes others more slowly.
        let relay = match arguments.stack {
            Kind::Ipstack => tokio::spawn(with_ipstack(fd)),
            Kind::Netstack => tokio::spawn(with_netstack(fd)),
        };
        relay.await?
    })
}
