#!/bin/bash
# Data that has arrived and was acknowledged is gone when a smoltcp socket leaves TIME-WAIT.
#
# Two sockets on a loopback interface. One closes its side first (a request without a body, say) and still reads; the
# other answers and closes. The first one is then in TIME-WAIT with the answer in its receive buffer. One would
# expect to read it whenever one likes, and then the end: TIME-WAIT is about what is still in the network, and
# std, BSD and Linux keep what a program has not read for as long as the socket is open. Here it is so for ten seconds; then the
# socket resets itself to CLOSED, buffer included, and a reader that comes later (it waited for a lock, for another
# connection, for back-pressure to end) gets an error as if it had never been connected: neither the data nor the end.
#
# Seen with smoltcp 0.14.0 (cargo):
#   1 s later: TIME-WAIT; read "answer"; read: Finished
#   11 s later: CLOSED; read: InvalidState; read: InvalidState
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "time-wait"
version = "0.0.0"
edition = "2021"

[dependencies]
smoltcp = { version = "=0.14.0", default-features = false, features = ["std", "medium-ip", "proto-ipv4", "socket-tcp"] }
TOML
cat >src/main.rs <<'RUST'
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Loopback, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

fn run(pause: Duration) {
    let mut now = Instant::ZERO;
    let mut device = Loopback::new(Medium::Ip);
    let mut iface = Interface::new(Config::new(HardwareAddress::Ip), &mut device, now);
    iface.update_ip_addrs(|all| all.push(IpCidr::new(IpAddress::v4(127, 0, 0, 1), 8)).unwrap());
    let socket = || Socket::new(SocketBuffer::new(vec![0; 4096]), SocketBuffer::new(vec![0; 4096]));
    let mut sockets = SocketSet::new(vec![]);
    let (server, client) = (sockets.add(socket()), sockets.add(socket()));
    sockets.get_mut::<Socket>(server).listen(80).unwrap();
    sockets.get_mut::<Socket>(client).connect(iface.context(), (IpAddress::v4(127, 0, 0, 1), 80), 5000).unwrap();
    let mut turn = |sockets: &mut SocketSet, by: Duration| {
        let end = now + by;
        while now < end {
            now += Duration::from_millis(10);
            iface.poll(now, &mut device, sockets);
        }
    };
    let short = Duration::from_millis(200);
    turn(&mut sockets, short);
    // The client closes first and still reads, the server answers and closes.
    sockets.get_mut::<Socket>(client).close();
    turn(&mut sockets, short);
    sockets.get_mut::<Socket>(server).send_slice(b"answer").unwrap();
    sockets.get_mut::<Socket>(server).close();
    turn(&mut sockets, short);
    turn(&mut sockets, pause);
    let client = sockets.get_mut::<Socket>(client);
    print!("{} s later: {}", pause.total_millis() / 1000, client.state());
    let mut got = [0; 100];
    for _ in 0..2 {
        match client.recv_slice(&mut got) {
            Ok(len) => print!("; read {:?}", std::str::from_utf8(&got[..len]).unwrap()),
            Err(error) => print!("; read: {error:?}"),
        }
    }
    println!();
}

fn main() {
    run(Duration::from_secs(1));
    run(Duration::from_secs(11));
}
RUST
CARGO_TARGET_DIR=$folder/target cargo run --quiet >seen
cat seen
diff seen - <<'SEEN'
1 s later: TIME-WAIT; read "answer"; read: Finished
11 s later: CLOSED; read: InvalidState; read: InvalidState
SEEN
