//! Plain smoltcp with an adapter: on Ethernet, beside sockets of other kinds; and the example.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "../../support/example.rs"]
mod example;
#[path = "../../support/smoltcp_wire.rs"]
mod smoltcp_wire;

use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::phy::Medium;
use smoltcp::socket::{tcp, udp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress};
use smoltcp_wire::{Wire, address, interface, socket, wires};
use sosplice::local;
use sosplice::smoltcp::{Adapter, AdoptError};
use sosplice::splice::{self, Cause, Options};
use std::process::Command;

struct Host {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
}

impl Host {
    fn on_ethernet(host: u8, mut wire: Wire) -> Host {
        let hardware = HardwareAddress::Ethernet(EthernetAddress([2, 0, 0, 0, 0, host]));
        let interface = interface(host, &mut wire, hardware);
        Host {
            wire,
            interface,
            sockets: SocketSet::new(Vec::new()),
        }
    }

    fn poll(&mut self, now: Instant) {
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
    }

    fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }
}

/// A dialled connection waits for ARP; its sockets are spliced meanwhile.
#[test]
fn a_connection_on_ethernet_is_spliced_while_it_connects() {
    let [near, far] = wires(Medium::Ethernet);
    let (mut near, mut far) = (Host::on_ethernet(1, near), Host::on_ethernet(2, far));
    let mut listener = socket(4096, 4096);
    listener.listen(80).unwrap();
    let server = far.sockets.add(listener);
    let mut dialled = socket(4096, 4096);
    let context = near.interface.context();
    dialled.connect(context, (address(2), 80), 4000).unwrap();
    let handle = near.sockets.add(dialled);
    let mut adapter = Adapter::new(|| ());
    let outside = adapter.adopt(&near.sockets, handle).unwrap();
    let (user, inside) = local::pair();
    user.send(b"early").unwrap();
    let join = splice::join(inside, outside, Options::default().forward_eof(true)).unwrap();
    let mut now = Instant::from_secs(1);
    let (mut request, mut answered) = (Vec::new(), false);
    while join.end().is_none() {
        near.poll(now);
        adapter.polled(&mut near.sockets, now);
        far.poll(now);
        let socket = far.tcp(server);
        if socket.can_recv() {
            request.extend(socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap());
        }
        if request == b"early" && !answered {
            socket.send_slice(b"late").unwrap();
            socket.close();
            answered = true;
        }
        if user.readable_bytes() == 4 {
            user.shutdown(std::net::Shutdown::Write).unwrap();
        }
        now += Duration::from_millis(10);
        assert!(now < Instant::from_secs(100), "it takes too long");
    }
    let ends = join.end().unwrap();
    assert_eq!((ends.a_to_b.cause, ends.a_to_b.bytes), (Cause::Eof, 5));
    assert_eq!((ends.b_to_a.cause, ends.b_to_a.bytes), (Cause::Eof, 4));
}

#[test]
fn a_socket_of_another_kind_is_not_adopted() {
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY], vec![0; 100]);
    let mut sockets = SocketSet::new(Vec::new());
    let handle = sockets.add(udp::Socket::new(buffer(), buffer()));
    let mut adapter = Adapter::new(|| ());
    let refused = adapter.adopt(&sockets, handle).map(drop);
    assert_eq!(refused, Err(AdoptError::NotTcp(handle)));
    assert!(!adapter.polled(&mut sockets, Instant::ZERO));
}

#[test]
fn the_example_bridges_with_ten_lines() {
    let source = include_str!("../../../examples/smoltcp_bridge.rs");
    let code = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let (bridge, rest): (Vec<_>, Vec<_>) = code.partition(|line| line.ends_with("// bridge"));
    assert_eq!(bridge.len(), 10);
    for word in ["adapter", "splice", "Kernel"] {
        let others: Vec<_> = rest.iter().filter(|line| line.contains(word)).collect();
        assert!(others.is_empty(), "not counted: {others:?}");
    }
    let output = Command::new(example::path("smoltcp_bridge"))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(
        said.starts_with("8 clients have sent 1000000 bytes each"),
        "{said}"
    );
}
