//! Every connection into a TUN goes to its original destination: with netstack-smoltcp.

#[path = "../device.rs"]
mod device;
#[path = "../../../support/plain_tun.rs"]
mod plain_tun;

use anyhow::Context;
use device::Device;
use futures::{SinkExt, StreamExt};
use netstack_smoltcp::StackBuilder;
use plain_tun::Spec;
use std::net::SocketAddr;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

async fn relay(mut client: netstack_smoltcp::TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let mut server = TcpStream::connect(to).await?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let device: Spec = std::env::args().nth(1).expect("NAME@NAMESPACE").parse()?;
    let tun = device.open(false)?;
    let builder = StackBuilder::default()
        .enable_tcp(true)
        .enable_icmp(true)
        .mtu(tun.mtu);
    let (stack, runner, _, listener) = builder.build()?;
    tokio::spawn(runner.context("no TCP")?);
    let (mut to_stack, mut from_stack) = stack.split();
    let device = Device::new(tun.fd)?;
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
    println!("listening");
    let mut listener = listener.context("no TCP")?;
    while let Some((client, _, to)) = listener.next().await {
        tokio::spawn(relay(client, to));
    }
    Ok(())
}
