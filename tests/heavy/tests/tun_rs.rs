//! Links over devices of tun-rs: real ones of Linux, with the kernel's TCP at the other end. Needs root and `ip`;
//! everything happens in namespaces that each test makes and removes.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../support/exchange.rs"]
mod exchange;
#[path = "../../support/namespace.rs"]
mod namespace;

use exchange::{LIMIT, exchange};
use namespace::{Namespace, available};
use sosplice::link::ethernet::{Edge, EdgeConfig};
use sosplice::link::tun_rs::Device;
use sosplice::link::{Checksum, Interest, Link, Packet, ReceiveError, TransmitError};
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Instant;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// A new device `t0` of tun-rs.
fn device(
    namespace: &Namespace,
    builder: impl FnOnce(DeviceBuilder) -> DeviceBuilder + Send,
) -> SyncDevice {
    let make = || builder(DeviceBuilder::new().name("t0")).build_sync();
    let device = namespace.enter(make).unwrap();
    namespace.ip("addr add 10.99.1.1/24 dev t0");
    namespace.ip("link set t0 mtu 1400 txqueuelen 10000 up");
    device
}

fn link(namespace: &Namespace, offload: bool) -> Device {
    let device = device(namespace, |builder| builder.offload(offload));
    namespace.enter(|| Device::new(device)).unwrap()
}

#[test]
fn bytes_cross_with_and_without_offload() {
    if !available("bytes_cross_with_and_without_offload") {
        return;
    }
    for offload in [false, true] {
        let namespace = Namespace::new("tunrs");
        let link = link(&namespace, offload);
        let able = link.capabilities();
        assert_eq!((able.mtu, able.checksum), (1400, offload));
        assert_eq!(able.segment_v4.is_some(), offload);
        exchange(&namespace, vec![Arc::new(link)], 4 << 20);
    }
}

/// Frames of a TAP, whose kernel is the guest of a gateway.
#[test]
fn frames_cross_with_and_without_offload() {
    if !available("frames_cross_with_and_without_offload") {
        return;
    }
    for offload in [false, true] {
        let namespace = Namespace::new("tunrs");
        let builder = |builder: DeviceBuilder| builder.layer(Layer::L2).offload(offload);
        let device = device(&namespace, builder);
        let frames = Device::frames(device, 1400).unwrap();
        let able = frames.capabilities();
        assert_eq!((able.mtu, able.segment_v4.is_some()), (1414, offload));
        let addresses = (
            "10.99.1.2/24".parse().unwrap(),
            "10.99.1.1".parse().unwrap(),
        );
        let edge = Edge::new(frames, EdgeConfig::new(addresses.0, addresses.1)).unwrap();
        exchange(&namespace, vec![Arc::new(edge)], 1 << 20);
    }
}

#[test]
fn queues_are_links_of_one_stack() {
    if !available("queues_are_links_of_one_stack") {
        return;
    }
    let namespace = Namespace::new("tunrs");
    let first = device(&namespace, |builder| {
        builder.offload(true).multi_queue(true)
    });
    let second = first.try_clone().unwrap();
    let queues = [first, second].map(|device| Device::with_mtu(device, 1400).unwrap());
    let queues = queues.map(|queue| Arc::new(queue) as Arc<dyn Link>);
    exchange(&namespace, queues.into(), 1 << 20);
}

#[test]
#[allow(
    clippy::disallowed_methods,
    reason = "deadlines are of the system's clock"
)]
fn waits_end_by_a_wake_up_or_at_their_deadline() {
    if !available("waits_end_by_a_wake_up_or_at_their_deadline") {
        return;
    }
    let namespace = Namespace::new("tunrs");
    let link = link(&namespace, false);
    // Neighbour discovery and the like.
    while link.receive(&mut Vec::new(), 64).unwrap() > 0 {}
    for interest in [Interest::READABLE, Interest::NONE] {
        link.wake();
        link.wake();
        link.wait(interest, None).unwrap();
        let soon = Instant::now() + std::time::Duration::from_millis(20);
        link.wait(interest, Some(soon)).unwrap();
        let read = link.receive(&mut Vec::new(), 64).unwrap() > 0;
        assert!(read || Instant::now() >= soon, "a wake-up is left over");
        thread::scope(|scope| {
            let wake = || link.wake();
            thread::Builder::new().spawn_scoped(scope, wake).unwrap();
            link.wait(interest, Some(Instant::now() + LIMIT)).unwrap();
        });
        link.wake();
        link.wait(interest, None).unwrap();
    }
    // A device that is full is tried again soon.
    link.wait(Interest::WRITABLE, None).unwrap();
    link.wait(Interest::BOTH, None).unwrap();
}

#[test]
fn a_deleted_device_is_gone() {
    if !available("a_deleted_device_is_gone") {
        return;
    }
    for offload in [false, true] {
        let namespace = Namespace::new("tunrs");
        let link = link(&namespace, offload);
        namespace.ip("link del t0");
        assert!(link.wait(Interest::READABLE, None).is_err());
        let received = link.receive(&mut Vec::new(), 64);
        assert!(
            matches!(received, Err(ReceiveError::Gone(_))),
            "{received:?}"
        );
        let mut packet = [0; 20];
        packet[0] = 0x45;
        let sent = link.transmit(&Packet::new(&packet, &[], 20));
        assert!(matches!(sent, Err(TransmitError::Gone(_))), "{sent:?}");
    }
}

#[test]
fn what_a_device_cannot_do_is_refused() {
    if !available("what_a_device_cannot_do_is_refused") {
        return;
    }
    let namespace = Namespace::new("tunrs");
    let link = link(&namespace, false);
    let mut packet = [0; 1401];
    packet[0] = 0x45;
    let partial = Packet::new(&packet[..40], &[], 20).checksum(Checksum::partial_tcp(20));
    for packet in [Packet::new(&packet, &[], 20), partial] {
        match link.transmit(&packet) {
            Err(TransmitError::Refused(error)) => {
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            }
            other => panic!("{other:?}"),
        }
    }
}
