#!/bin/bash
# ipstack ends a connection when its peer closes one direction, does not tell the program, and loses the last data.
#
# A peer that sends a request, closes its direction, and waits for the answer (`nc -N`, HTTP/1.0 clients, rsh) gets none:
# if nothing is in flight, ipstack answers the FIN with a FIN of its own, although the program has not closed the
# stream, and an answer that the program writes afterwards fails. RFC 9293 (3.6) lets the other direction go on until
# its user closes it. The program's read is not woken: it ends after the configured timeout (60 s by default, 4 s here), so a
# relay keeps its socket to the server for that long after its client has gone. Data in the segment of the FIN, where
# kernels put the last bytes of a stream, is not delivered; with PSH, as Linux sends it, the segment is not even
# acknowledged. benches/peers.py measures relays with several stacks, and shows all of it.
#
# An in-memory device; the peer is made of single segments.
#
# Seen with ipstack 1.0.1 (cargo):
#   the program reads "question"
#   the peer closes its direction, and gets: ACK, FIN ACK
#   the program reads the end within 1 s: no
#   the program reads the end within 10 s: yes
#   the program writes an answer: broken pipe; the peer gets 0 bytes
#   the peer sends FIN ACK with data, and gets: ACK
#   the program reads nothing within 1 s
#   the peer sends PSH FIN ACK with data, and gets: nothing
#   the program reads nothing within 1 s
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "half-closed"
version = "0.0.0"
edition = "2021"

[dependencies]
etherparse = "0.20"
ipstack = "=1.0.1"
tokio = { version = "1", features = ["io-util", "macros", "rt-multi-thread", "time"] }
TOML
cat >src/main.rs <<'RUST'
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use ipstack::{IpStack, IpStackConfig, IpStackStream, IpStackTcpStream, TcpConfig};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::timeout;

const SECOND: Duration = Duration::from_secs(1);

/// The peer of the program: it sends single segments.
struct Peer {
    wire: DuplexStream,
    seq: u32,
    ack: u32,
    payload: usize,
}

impl Peer {
    async fn send(&mut self, flags: &str, payload: &[u8]) {
        let ip = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        let mut tcp = ip.tcp(5000, 80, self.seq, 65_535);
        for flag in flags.split(' ') {
            tcp = match flag {
                "SYN" => tcp.syn(),
                "FIN" => tcp.fin(),
                "PSH" => tcp.psh(),
                _ => tcp.ack(self.ack),
            };
        }
        let mut packet = Vec::new();
        tcp.write(&mut packet, payload).unwrap();
        self.wire.write_all(&packet).await.unwrap();
        let control = ["SYN", "FIN"].iter().any(|flag| flags.contains(flag));
        self.seq += payload.len() as u32 + u32::from(control);
    }

    /// The flags of all segments that arrive within a while.
    async fn receive(&mut self) -> Vec<String> {
        let mut seen = Vec::new();
        let mut bytes = vec![0; 65_536];
        while let Ok(Ok(count)) = timeout(SECOND / 4, self.wire.read(&mut bytes)).await {
            let mut rest = &bytes[..count];
            while rest.len() > 20 {
                let length = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
                let sliced = SlicedPacket::from_ip(&rest[..length]).unwrap();
                let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { unreachable!() };
                let end = u32::from(tcp.syn()) + u32::from(tcp.fin()) + tcp.payload().len() as u32;
                self.ack = tcp.sequence_number().wrapping_add(end);
                self.payload += tcp.payload().len();
                let flags = [(tcp.syn(), "SYN"), (tcp.fin(), "FIN"), (tcp.rst(), "RST"), (tcp.ack(), "ACK")];
                let names: Vec<_> = flags.iter().filter(|flag| flag.0).map(|flag| flag.1).collect();
                seen.push(names.join(" "));
                rest = &rest[length..];
            }
        }
        seen
    }
}

/// An established connection: the peer and the program's end.
async fn connect() -> (Peer, IpStack, IpStackTcpStream) {
    let (device, wire) = tokio::io::duplex(1 << 20);
    let mut tcp = TcpConfig::default();
    tcp.timeout = 4 * SECOND;
    let mut config = IpStackConfig::default();
    config.with_tcp_config(tcp);
    let mut stack = IpStack::new(config, device);
    let mut peer = Peer { wire, seq: 1000, ack: 0, payload: 0 };
    peer.send("SYN", b"").await;
    peer.receive().await;
    peer.send("ACK", b"").await;
    let Ok(IpStackStream::Tcp(program)) = stack.accept().await else { unreachable!() };
    peer.receive().await;
    (peer, stack, program)
}

fn said(read: &std::io::Result<usize>, bytes: &[u8]) -> String {
    match read {
        Ok(0) => "the end".into(),
        Ok(count) => format!("{:?}", String::from_utf8_lossy(&bytes[..*count])),
        Err(error) => error.kind().to_string(),
    }
}

/// The program waits for the end of the stream, as a copy loop does, and answers then.
async fn half_closed() {
    let (mut peer, _stack, mut program) = connect().await;
    peer.send("ACK", b"question").await;
    peer.receive().await;
    let mut bytes = [0; 100];
    let read = program.read(&mut bytes).await;
    println!("the program reads {}", said(&read, &bytes));
    let (mut reading, mut writing) = tokio::io::split(program);
    let mut end = tokio::spawn(async move { reading.read(&mut [0; 100]).await });
    tokio::time::sleep(SECOND / 4).await;
    peer.send("FIN ACK", b"").await;
    println!("the peer closes its direction, and gets: {}", peer.receive().await[..2].join(", "));
    peer.send("ACK", b"").await;
    for within in [1, 10] {
        let told = timeout(within * SECOND, &mut end).await;
        println!("the program reads the end within {within} s: {}", if told.is_ok() { "yes" } else { "no" });
        if told.is_ok() {
            break;
        }
    }
    let answer = match timeout(SECOND, writing.write_all(b"answer")).await {
        Ok(written) => written.map_or_else(|error| error.kind().to_string(), |()| "written".into()),
        Err(_) => "waits".into(),
    };
    peer.receive().await;
    println!("the program writes an answer: {answer}; the peer gets {} bytes", peer.payload);
}

/// The last data and the end of the stream are in one segment.
async fn with_data() {
    for flags in ["FIN ACK", "PSH FIN ACK"] {
        let (mut peer, _stack, mut program) = connect().await;
        peer.send(flags, b"last words").await;
        let got = peer.receive().await.into_iter().next();
        println!("the peer sends {flags} with data, and gets: {}", got.as_deref().unwrap_or("nothing"));
        let mut bytes = [0; 100];
        match timeout(SECOND, program.read(&mut bytes)).await {
            Ok(read) => println!("the program reads {}", said(&read, &bytes)),
            Err(_) => println!("the program reads nothing within 1 s"),
        }
        std::mem::forget(program);
    }
}

#[tokio::main]
async fn main() {
    half_closed().await;
    with_data().await;
    // A stream that is dropped in its last states waits for its task.
    std::process::exit(0);
}
RUST
cargo run --quiet | tee seen
cat >expected <<'TEXT'
the program reads "question"
the peer closes its direction, and gets: ACK, FIN ACK
the program reads the end within 1 s: no
the program reads the end within 10 s: yes
the program writes an answer: broken pipe; the peer gets 0 bytes
the peer sends FIN ACK with data, and gets: ACK
the program reads nothing within 1 s
the peer sends PSH FIN ACK with data, and gets: nothing
the program reads nothing within 1 s
TEXT
diff expected seen && echo "as described, with ipstack 1.0.1"
