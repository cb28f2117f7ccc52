//! Every connection into a TUN goes to its original destination: with this crate.

use sosplice::kernel::KernelStream;
use sosplice::link::tun::Tun;
use sosplice::splice::{self, Options};
use sosplice::{ConditionalListener, ConnectionRequest, Intercept, Stack};
use std::future::poll_fn;
use std::net::SocketAddr;

async fn connect(to: SocketAddr) -> std::io::Result<KernelStream> {
    let server = KernelStream::start(to)?;
    poll_fn(|cx| server.poll_connected(cx)).await?;
    Ok(server)
}

/// Connects to the destination, then answers the client, and joins both.
async fn relay(client: ConnectionRequest) -> anyhow::Result<()> {
    let Ok(server) = connect(client.local_addr()).await else {
        client.refuse();
        return Ok(());
    };
    let options = Options::default().forward_eof(true).forward_reset(true);
    splice::join(client.accept()?, server, options)?;
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let device = std::env::args().nth(1).expect("NAME@NAMESPACE");
    let (name, namespace) = device.split_once('@').expect("NAME@NAMESPACE");
    let tun = Tun::builder(name).netns(namespace).build()?;
    let stack = Stack::builder(tun)
        .address("198.18.0.1/15".parse()?)
        .build()?;
    let listener = ConditionalListener::intercept(&stack, Intercept::all(), 1024)?;
    println!("listening");
    loop {
        let client = listener.pending_async().await?;
        tokio::spawn(relay(client));
    }
}
