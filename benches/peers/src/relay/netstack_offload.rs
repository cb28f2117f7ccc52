//! Every connection into a TUN goes to its original destination: with netstack-smoltcp over tun-rs,
//! which takes segmentation offload from the device.

#[path = "../../../support/plain_tun.rs"]
mod plain_tun;

use anyhow::Context;
use futures::{SinkExt, StreamExt};
use netstack_smoltcp::StackBuilder;
use plain_tun::Spec;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tun_rs::{AsyncDevice, DeviceBuilder, IDEAL_BATCH_SIZE, VIRTIO_NET_HDR_LEN};

async fn relay(mut client: netstack_smoltcp::TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let mut server = TcpStream::connect(to).await?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let device: Spec = std::env::args().nth(1).expect("NAME@NAMESPACE").parse()?;
    let tun = device.inside(|| {
        let builder = DeviceBuilder::new().name(&device.name);
        Ok(builder.offload(true).build_sync()?)
    })?;
    let mtu = device.inside(|| Ok(tun.mtu()?))?.into();
    let builder = StackBuilder::default()
        .enable_tcp(true)
        .enable_icmp(true)
        .mtu(mtu);
    let (stack, runner, _, listener) = builder.build()?;
    tokio::spawn(runner.context("no TCP")?);
    let (mut to_stack, mut from_stack) = stack.split();
    let device = Arc::new(AsyncDevice::new(tun)?);
    let writing = device.clone();
    tokio::spawn(async move {
        let mut frame = vec![0; VIRTIO_NET_HDR_LEN];
        while let Some(Ok(packet)) = from_stack.next().await {
            frame.truncate(VIRTIO_NET_HDR_LEN);
            frame.extend_from_slice(&packet);
            writing.send(&frame).await.ok();
        }
    });
    tokio::spawn(async move {
        let mut frame = vec![0; VIRTIO_NET_HDR_LEN + 65_535];
        let mut packets = vec![vec![0; mtu + 4]; IDEAL_BATCH_SIZE];
        let mut sizes = vec![0; IDEAL_BATCH_SIZE];
        while let Ok(count) = device
            .recv_multiple(&mut frame, &mut packets, &mut sizes, 0)
            .await
        {
            for (packet, size) in packets.iter().zip(&sizes).take(count) {
                to_stack.send(packet[..*size].to_vec()).await.ok();
            }
        }
    });
    println!("listening");
    let mut listener = listener.context("no TCP")?;
    while let Some((client, _, to)) = listener.next().await {
        tokio::spawn(relay(client, to));
    }
    Ok(())
}
