//! Every connection into a TUN goes to its original destination: with ipstack.

#[path = "../device.rs"]
mod device;
#[path = "../../../support/plain_tun.rs"]
mod plain_tun;

use device::Device;
use ipstack::{IpStack, IpStackConfig, IpStackStream, IpStackTcpStream, TcpConfig, TcpOptions};
use plain_tun::Spec;
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;

async fn relay(mut client: IpStackTcpStream) -> std::io::Result<()> {
    let mut server = TcpStream::connect(client.peer_addr()).await?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await.ok();
    server.shutdown().await.ok();
    client.shutdown().await
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let device: Spec = std::env::args().nth(1).expect("NAME@NAMESPACE").parse()?;
    let tun = device.open(false)?;
    let mtu = u16::try_from(tun.mtu)?;
    let mut tcp = TcpConfig::default();
    // Of larger segments the window, which is not scaled, does not hold two: nothing is received.
    tcp.options = Some(vec![TcpOptions::MaximumSegmentSize(8000.min(mtu - 40))]);
    tcp.read_buffer_size = 65_535;
    tcp.max_unacked_bytes = 256 * 1024;
    let mut config = IpStackConfig::default();
    config.mtu(mtu)?.with_tcp_config(tcp);
    let mut stack = IpStack::new(config, Device::new(tun.fd)?);
    println!("listening");
    loop {
        if let IpStackStream::Tcp(client) = stack.accept().await? {
            tokio::spawn(relay(client));
        }
    }
}
