//! Datagrams: each flow of a client is an association with the proxy, and lasts as long as that.
//!
//! A flow is all that one address and port of a client sends, so the client has one address outside, as it would
//! have behind a NAT with an endpoint-independent mapping; the header of each datagram has its destination. Flows to
//! a fake address or to a resolver have one destination, and all answers are given to the client in its name.

use crate::tool::Tool;
use fast_socks5::util::target_addr::TargetAddr;
use fast_socks5::{new_udp_header, parse_udp_request};
use sosplice::UdpSocket;
use sosplice::buf::Buf;
use sosplice::sockbuf::{Addresses, Datagram};
use std::future::poll_fn;
use std::io::ErrorKind;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UdpSocket as KernelSocket};

/// Datagrams that are taken at once.
const BATCH: usize = 64;

/// Carries the datagrams of a flow, all to one destination if there is one. Returns when the flow or the association
/// has ended.
pub(crate) async fn relay(
    tool: &Tool,
    flow: UdpSocket,
    only: Option<TargetAddr>,
) -> anyhow::Result<()> {
    let (association, socket) = match tool.proxy.associate().await {
        Ok(both) => both,
        Err(error) => {
            flow.refuse();
            return Err(error);
        }
    };
    flow.set_nonblocking(true);
    tokio::select! {
        () = outwards(&flow, &socket, only.as_ref()) => Ok(()),
        () = inwards(&flow, &socket, only.as_ref()) => Ok(()),
        () = ended(association) => Ok(()),
    }
}

/// Waits for datagrams of a client; none if the flow has ended.
pub(crate) async fn received(flow: &UdpSocket) -> Vec<Datagram> {
    let mut datagrams = Vec::new();
    loop {
        // Errors are ICMP messages about single datagrams too.
        let _ready = poll_fn(|cx| flow.poll_peek(cx, &mut [0])).await;
        if flow.recv_many(&mut datagrams, BATCH).is_ok() {
            return datagrams;
        }
    }
}

/// From the client to the proxy. What cannot be sent is lost, as datagrams may be.
async fn outwards(flow: &UdpSocket, socket: &KernelSocket, only: Option<&TargetAddr>) {
    let mut bytes = Vec::new();
    loop {
        let datagrams = received(flow).await;
        if datagrams.is_empty() {
            return;
        }
        for datagram in datagrams {
            let to = only
                .cloned()
                .or(datagram.addresses.peer.map(TargetAddr::Ip));
            let Some(Ok(header)) = to.map(new_udp_header) else {
                continue;
            };
            bytes.clear();
            bytes.extend_from_slice(&header);
            datagram
                .payload
                .iter()
                .for_each(|buf| bytes.extend_from_slice(buf));
            socket.send(&bytes).await.ok();
        }
    }
}

/// From the proxy to the client, for ever.
async fn inwards(flow: &UdpSocket, socket: &KernelSocket, only: Option<&TargetAddr>) {
    let mut bytes = vec![0; 65_536];
    let mut batch = Vec::new();
    loop {
        let mut next = socket.recv(&mut bytes).await;
        while let Ok(count) = next {
            batch.extend(answer(&bytes[..count], only).await);
            if batch.len() == BATCH {
                break;
            }
            next = socket.try_recv(&mut bytes);
        }
        // Errors are ICMP messages about single datagrams: dante sends one if a rule forbids the destination.
        deliver(flow, &mut batch);
    }
}

/// What the client is to receive of a datagram of the proxy. Pieces of larger ones (RFC 1928 7) and what is none are
/// dropped, and so is what does not come from the only destination.
async fn answer(bytes: &[u8], only: Option<&TargetAddr>) -> Option<Datagram> {
    let (piece, from, payload) = parse_udp_request(bytes).await.ok()?;
    let addresses = match (only, from) {
        (Some(TargetAddr::Domain(..)), _) => Addresses::default(),
        (Some(only), from) => (*only == from).then(Addresses::default)?,
        (None, TargetAddr::Ip(from)) => Addresses::to(from),
        (None, TargetAddr::Domain(..)) => return None,
    };
    (piece == 0).then(|| Datagram::new([Buf::copy_of(payload)], addresses))
}

/// Sends datagrams to the client. Those without room are lost.
fn deliver(flow: &UdpSocket, batch: &mut Vec<Datagram>) {
    while !batch.is_empty() {
        match flow.send_many(batch) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => batch.clear(),
            // About the first one, or about an earlier one.
            Err(_) => drop(batch.remove(0)),
        }
    }
}

/// Waits until the proxy ends the association, or breaks its rules by sending something.
async fn ended(mut association: TcpStream) {
    association.read(&mut [0]).await.ok();
}
