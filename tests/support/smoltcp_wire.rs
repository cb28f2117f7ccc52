//! Interfaces of smoltcp with a link in memory.

#![allow(dead_code, reason = "not every test asks everything of it")]

use smoltcp::iface::{Config, Interface};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

type Queue = Arc<Mutex<VecDeque<Vec<u8>>>>;

/// Most frames on the way in one direction: a socket that sends without end stops here, and so does the `poll` in which
/// it does.
pub(crate) const FRAMES: usize = 1024;

/// An end of a link, as a device.
pub(crate) struct Wire {
    medium: Medium,
    inbox: Queue,
    outbox: Queue,
}

/// Both ends of a link.
pub(crate) fn wires(medium: Medium) -> [Wire; 2] {
    let (there, back) = (Queue::default(), Queue::default());
    let wire = |inbox: &Queue, outbox: &Queue| Wire {
        medium,
        inbox: inbox.clone(),
        outbox: outbox.clone(),
    };
    [wire(&back, &there), wire(&there, &back)]
}

impl Wire {
    /// Drops what the other end has sent.
    pub(crate) fn lose(&self) {
        self.inbox.lock().expect("no panic").clear();
    }

    /// Packets that the other end has sent.
    pub(crate) fn waiting(&self) -> usize {
        self.inbox.lock().expect("no panic").len()
    }
}

pub(crate) struct Rx(Vec<u8>);

pub(crate) struct Tx<'a>(&'a Queue);

impl phy::RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        let mut queue = self.0.lock().expect("no panic");
        // An answer to a received frame may find no room, and is lost.
        if queue.len() < FRAMES {
            queue.push_back(packet);
        }
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx<'_>)> {
        let packet = self.inbox.lock().expect("no panic").pop_front()?;
        Some((Rx(packet), Tx(&self.outbox)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        let is_full = self.outbox.lock().expect("no panic").len() >= FRAMES;
        (!is_full).then_some(Tx(&self.outbox))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = self.medium;
        capabilities.max_transmission_unit = 1500;
        capabilities
    }
}

/// The address of a host.
pub(crate) fn address(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, host)
}

/// The interface of a host.
pub(crate) fn interface(host: u8, wire: &mut Wire, hardware: HardwareAddress) -> Interface {
    let mut config = Config::new(hardware);
    config.random_seed = host.into();
    let mut interface = Interface::new(config, wire, Instant::ZERO);
    let address = IpCidr::new(IpAddress::from(address(host)), 24);
    interface.update_ip_addrs(|addresses| addresses.push(address).expect("the first"));
    interface
}

/// A socket with buffers of these sizes.
pub(crate) fn socket(receive: usize, send: usize) -> tcp::Socket<'static> {
    let ring = |size| tcp::SocketBuffer::new(vec![0; size]);
    let mut socket = tcp::Socket::new(ring(receive), ring(send));
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    socket
}
