#!/bin/bash
# A connected socket for pings says that it is not connected.
#
# Linux has two kinds of sockets for ICMP echo: raw ones, and datagram ones that need no privileges (`ping` uses them).
# connect() fixes the peer of both, and from then on send() works, and packets of other hosts are not received. One
# would expect getpeername() to say who that is, as it does for UDP, and `peer_addr().is_ok()` to be a test for
# "connected", as in the documentation of std and socket2. It fails with ENOTCONN: the kernel looks at the peer's
# port, and these have none. Only a port given to connect() makes it succeed, which the protocol has no use for; it then comes back
# in the name. So a program that asks a socket that it was handed whether it is connected (a wrapper, a reactor, a
# systemd socket) takes a connected one for an unconnected one.
#
# Seen with Linux 6.18, socket2 0.6.1 (cargo), as root or with net.ipv4.ping_group_range:
#   udp: peer 127.0.0.1:9
#   ping: sent 8 bytes, peer_addr: NotConnected
#   ping, connected to port 9: peer 127.0.0.1:9
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "ping-peer"
version = "0.0.0"
edition = "2021"

[dependencies]
socket2 = { version = "=0.6.1", features = ["all"] }
TOML
cat >src/main.rs <<'RUST'
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::net::{SocketAddr, UdpSocket};

fn connected(port: u16) -> Socket {
    let open = |kind| Socket::new(Domain::IPV4, kind, Some(Protocol::ICMPV4));
    let socket = open(Type::DGRAM).or_else(|_| open(Type::RAW)).unwrap();
    let peer: SocketAddr = ([127, 0, 0, 1], port).into();
    socket.connect(&SockAddr::from(peer)).unwrap();
    socket
}

fn main() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.connect("127.0.0.1:9").unwrap();
    println!("udp: peer {}", udp.peer_addr().unwrap());
    let ping = connected(0);
    // Type 8, its checksum, identifier 0, number 1.
    let sent = ping.send(&[8, 0, 0xf7, 0xfe, 0, 0, 0, 1]).unwrap();
    let error = ping.peer_addr().unwrap_err();
    println!("ping: sent {sent} bytes, peer_addr: {:?}", error.kind());
    let peer = connected(9).peer_addr().unwrap().as_socket().unwrap();
    println!("ping, connected to port 9: peer {peer}");
}
RUST
cargo run --quiet --release | tee seen
cat >expected <<'TEXT'
udp: peer 127.0.0.1:9
ping: sent 8 bytes, peer_addr: NotConnected
ping, connected to port 9: peer 127.0.0.1:9
TEXT
diff expected seen && echo "as described, on Linux $(uname -r)"
