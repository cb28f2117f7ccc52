//! Datagrams: each flow of a client is an association with the proxy, and lasts as long as that.
//!
//! A flow is all that one address and port of a client sends, so the client has one address outside, as it would
//! have behind a NAT with an endpoint-independent mapping; the header of each datagram has its destination. Flows to
//! a fake address or to a resolver have one destination, and all answers are given to the client in its name.
//!
//! Payloads are not copied: a header is another piece of the datagram. Errors of both sockets are ICMP messages about
//! single datagrams, and end nothing (dante sends one if a rule forbids the destination).

use crate::tool::Tool;
use fast_socks5::util::target_addr::TargetAddr;
use fast_socks5::{new_udp_header, parse_udp_request};
use sosplice::buf::Buf;
use sosplice::kernel::KernelUdp;
use sosplice::sockbuf::{Addresses, Datagram};
use sosplice::{Socket, UdpSocket};
use std::future::poll_fn;
use tokio::io::AsyncReadExt;

/// Datagrams that are received at once.
const BATCH: usize = 64;

/// Carries the datagrams of a flow, all to one destination if there is one. Returns when the flow or the association
/// has ended.
pub(crate) async fn relay(
    tool: &Tool,
    flow: UdpSocket,
    only: Option<TargetAddr>,
) -> anyhow::Result<()> {
    let (mut association, relay) = match tool.proxy.associate().await {
        Ok(both) => both,
        Err(error) => {
            flow.refuse();
            return Err(error);
        }
    };
    tokio::select! {
        () = outwards(&flow, &relay, only.as_ref()) => {}
        () = inwards(&flow, &relay, only.as_ref()) => {}
        // The proxy ends the association, or breaks its rules by sending something.
        _ = association.read_u8() => {}
    }
    // First: what the client sends from now on begins another association.
    drop(flow);
    Ok(())
}

/// Waits for datagrams; none if the socket has ended.
pub(crate) async fn received(socket: &Socket) -> Vec<Datagram> {
    let mut datagrams = Vec::new();
    while poll_fn(|cx| socket.poll_recv_datagrams(cx, &mut datagrams, BATCH))
        .await
        .is_err()
    {}
    datagrams
}

/// Sends datagrams, but those with an error.
async fn send(socket: &Socket, mut datagrams: Vec<Datagram>) {
    while !datagrams.is_empty() {
        let sent = poll_fn(|cx| socket.poll_send_datagrams(cx, &mut datagrams)).await;
        if sent.is_err() {
            datagrams.remove(0);
        }
    }
}

/// From the client to the proxy, until the flow ends.
async fn outwards(flow: &UdpSocket, relay: &KernelUdp, only: Option<&TargetAddr>) {
    let framed = |datagram: Datagram| {
        let to = only.cloned();
        let to = to.or(datagram.addresses.peer.map(TargetAddr::Ip))?;
        let header = Buf::from(new_udp_header(to).ok()?);
        let pieces = std::iter::once(header).chain(datagram.payload);
        Some(Datagram::new(pieces, Addresses::default()))
    };
    loop {
        let datagrams = received(flow).await;
        if datagrams.is_empty() {
            return;
        }
        send(relay, datagrams.into_iter().filter_map(framed).collect()).await;
    }
}

/// From the proxy to the client.
async fn inwards(flow: &UdpSocket, relay: &KernelUdp, only: Option<&TargetAddr>) {
    loop {
        let mut answers = Vec::new();
        for datagram in received(relay).await {
            answers.extend(unframed(datagram, only).await);
        }
        send(flow, answers).await;
    }
}

/// What the client is to receive of a datagram of the proxy. Pieces of larger ones (RFC 1928 7) and what is none are
/// dropped, and so is what does not come from the only destination.
async fn unframed(datagram: Datagram, only: Option<&TargetAddr>) -> Option<Datagram> {
    let bytes = match &datagram.payload[..] {
        [bytes] => bytes.clone(),
        _ => Buf::from(datagram.to_vec()),
    };
    let (piece, from, payload) = parse_udp_request(&bytes).await.ok()?;
    let addresses = match (only, from) {
        (Some(TargetAddr::Domain(..)), _) => Addresses::default(),
        (Some(only), from) => (*only == from).then(Addresses::default)?,
        (None, TargetAddr::Ip(from)) => Addresses::to(from),
        (None, TargetAddr::Domain(..)) => return None,
    };
    let payload = bytes.slice(bytes.len() - payload.len()..bytes.len());
    (piece == 0).then(|| Datagram::new([payload], addresses))
}
