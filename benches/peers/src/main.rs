//! Other userspace stacks as relays from a TUN to the kernel's UDP sockets: `peers --stack ipstack --tun tc@client`.
//!
//! Each as its documentation shows, with what it lacks there for speed: netstack-smoltcp's example makes a socket for
//! every datagram, here flows are kept in a map; packets are read from the device until there is none, so that a
//! wake-up serves many.

#[path = "../../support/plain_tun.rs"]
mod plain_tun;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use futures::{SinkExt, StreamExt};
use ipstack::{IpStack, IpStackConfig, IpStackStream};
use netstack_smoltcp::StackBuilder;
use plain_tun::{PlainTun, Spec};
use rustix::fd::OwnedFd;
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
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

/// The device, for tokio.
struct Device(Arc<AsyncFd<OwnedFd>>);

impl Device {
    async fn write(&self, packet: &[u8]) -> io::Result<()> {
        loop {
            let mut writable = self.0.writable().await?;
            match writable.try_io(|fd| Ok(rustix::io::write(fd, packet)?)) {
                Ok(written) => return written.map(drop),
                Err(_) => continue,
            }
        }
    }

    async fn read(&self, packet: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut readable = self.0.readable().await?;
            if let Ok(read) = readable.try_io(|fd| Ok(rustix::io::read(fd, &mut *packet)?)) {
                return read;
            }
        }
    }
}

impl AsyncRead for Device {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut readable = ready!(self.0.poll_read_ready(cx))?;
            let space = buf.initialize_unfilled();
            if let Ok(read) = readable.try_io(|fd| Ok(rustix::io::read(fd, &mut *space)?)) {
                buf.advance(read?);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Device {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        packet: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut writable = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(written) = writable.try_io(|fd| Ok(rustix::io::write(fd, packet)?)) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The device, for the runtime.
fn registered(tun: OwnedFd) -> io::Result<Arc<AsyncFd<OwnedFd>>> {
    // SAFETY: an `OwnedFd` is the same open descriptor until it is dropped.
    let device = unsafe { AsyncFd::register(tun)? };
    Ok(Arc::new(device))
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
    let device = Device(registered(tun)?);
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
    let device = registered(tun)?;
    let writing = Device(device.clone());
    tokio::spawn(async move {
        while let Some(Ok(packet)) = from_stack.next().await {
            writing.write(&packet).await.ok();
        }
    });
    let reading = Device(device);
    tokio::spawn(async move {
        let mut packet = [0; 65_536];
        while let Ok(count) = reading.read(&mut packet).await {
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
