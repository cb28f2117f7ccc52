#!/bin/bash
# A smoltcp socket forgets the receive window that it has advertised in a zero-window probe, and then loses received data.
#
# Two sockets on a loopback interface. The server's application has read 900 bytes of the client's stream: too few for
# a window update of their own. Then the server, which has data for a client that does not read, sends a zero-window
# probe, and that advertises the 900 bytes. At the same time the client reads and sends an update, so its window is open
# when the probe arrives, and it takes note of what that advertises. It sends its last 1400 bytes and its FIN in one
# segment, which fits in the advertised window.
#
# One would expect all of the client's stream, and then its end: what a segment advertises, the socket must accept. (It
# does when any other segment has advertised it.) But dispatch() returns after a probe without noting the window that
# was sent ("leave the rest of the state intact"), so that the segment is trimmed to the older window. The FIN behind the
# trimmed bytes is accepted all the same, and the server reads an orderly end 400 bytes too early.
#
# Seen with smoltcp 0.14.0 (cargo):
#   advertised by a probe: read 5000 of 5400 bytes, then Finished
#   advertised by data: read 5400 of 5400 bytes, then Finished
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "probed-window"
version = "0.0.0"
edition = "2021"

[dependencies]
smoltcp = { version = "=0.14.0", default-features = false, features = ["std", "medium-ip", "proto-ipv4", "socket-tcp"] }
TOML
cat >src/main.rs <<'RUST'
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Loopback, Medium};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

struct World {
    now: Instant,
    device: Loopback,
    iface: Interface,
    sockets: SocketSet<'static>,
}

impl World {
    fn tcp(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Polls until nothing is left to be sent now.
    fn settle(&mut self) {
        for _ in 0..50 {
            self.iface.poll(self.now, &mut self.device, &mut self.sockets);
        }
    }

    fn read(&mut self, handle: SocketHandle, most: usize) -> Result<usize, RecvError> {
        self.tcp(handle).recv_slice(&mut vec![0; most])
    }
}

fn run(probes: bool) {
    let mut device = Loopback::new(Medium::Ip);
    let now = Instant::ZERO;
    let mut iface = Interface::new(Config::new(HardwareAddress::Ip), &mut device, now);
    iface.update_ip_addrs(|all| all.push(IpCidr::new(IpAddress::v4(127, 0, 0, 1), 8)).unwrap());
    let socket = || {
        let buffer = || SocketBuffer::new(vec![0; 5000]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        socket
    };
    let mut sockets = SocketSet::new(vec![]);
    let (server, client) = (sockets.add(socket()), sockets.add(socket()));
    let mut world = World { now, device, iface, sockets };
    world.tcp(server).listen(80).unwrap();
    let to = (IpAddress::v4(127, 0, 0, 1), 80);
    let client_socket = world.sockets.get_mut::<Socket>(client);
    client_socket.connect(world.iface.context(), to, 5000).unwrap();
    world.settle();

    // The client does not read: its window is full, and the server keeps 1000 bytes.
    if probes {
        world.tcp(server).send_slice(&[1; 5000]).unwrap();
        world.settle();
        world.tcp(server).send_slice(&[1; 1000]).unwrap();
        world.settle();
    }
    world.tcp(client).send_slice(&[2; 4000]).unwrap();
    world.settle();
    let mut total = world.read(server, 900).unwrap();
    world.settle();
    let send_last = |client: &mut Socket| {
        client.send_slice(&[2; 1400]).unwrap();
        client.close();
    };
    if probes {
        // At the time of the probe the client reads, and its update is sent when the probe is on its way.
        let delay = world.iface.poll_delay(world.now, &world.sockets).unwrap();
        world.now += delay;
        world.read(client, 5000).unwrap();
        world.iface.poll_egress(world.now, &mut world.device, &mut world.sockets);
        // The client receives the probe, and sends its last segment, which follows its update at once.
        world.iface.poll_ingress_single(world.now, &mut world.device, &mut world.sockets);
        send_last(world.tcp(client));
        world.iface.poll_egress(world.now, &mut world.device, &mut world.sockets);
    } else {
        world.tcp(server).send_slice(&[1]).unwrap();
        world.settle();
        send_last(world.tcp(client));
    }
    let mut end = None;
    for _ in 0..100 {
        world.settle();
        match world.read(server, 5000) {
            Ok(count) => total += count,
            Err(error) => end = end.or(Some(error)),
        }
        world.now += Duration::from_millis(100);
    }
    let by = if probes { "a probe" } else { "data" };
    println!("advertised by {by}: read {total} of 5400 bytes, then {:?}", end.unwrap());
}

fn main() {
    run(true);
    run(false);
}
RUST
CARGO_TARGET_DIR=$folder/target cargo run --quiet >seen
cat seen
diff seen - <<'SEEN'
advertised by a probe: read 5000 of 5400 bytes, then Finished
advertised by data: read 5400 of 5400 bytes, then Finished
SEEN
