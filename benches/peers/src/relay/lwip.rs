//! Every connection into a TUN goes to its original destination: with lwIP, as the crate `lwip` wraps it.

#[path = "../device.rs"]
mod device;
#[path = "../../../support/plain_tun.rs"]
mod plain_tun;

use device::Device;
use futures::{SinkExt, StreamExt};
use lwip::NetStack;
use plain_tun::Spec;
use std::net::SocketAddr;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

async fn relay(mut client: lwip::TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let mut server = TcpStream::connect(to).await?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let device: Spec = std::env::args().nth(1).expect("NAME@NAMESPACE").parse()?;
    let (stack, mut listener, _udp) = NetStack::new()?;
    let (mut to_stack, mut from_stack) = stack.split();
    let device = Device::new(device.open(false)?.fd)?;
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
    while let Some((client, _, to)) = listener.next().await {
        tokio::spawn(relay(client, to));
    }
    Ok(())
}
