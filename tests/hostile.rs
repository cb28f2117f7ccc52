//! A flood of forged SYNs, and the kernel's TCP that connects all the same. Needs root; in a namespace
//! that the test makes and removes.
#![cfg(target_os = "linux")]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests"
)]

#[path = "support/namespace.rs"]
mod namespace;

use namespace::{Namespace, available};
use sosplice::link::tun::Tun;
use sosplice::link::{
    Capabilities, Checksum, Frame, Interest, Link, Packet, ReceiveError, TransmitError,
};
use sosplice::{Stack, TcpListener};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const FORGED: u16 = 10_000;
const BACKLOG: usize = 8;

/// A TUN on which forged SYNs come before anything else.
#[derive(Debug)]
struct Flooded {
    tun: Tun,
    sent: AtomicU16,
}

/// A SYN from the unused address 10.99.1.100 to 10.99.1.2:80.
fn forged(port: u16) -> Frame {
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet.extend([10, 99, 1, 100, 10, 99, 1, 2]);
    packet.extend(port.to_be_bytes());
    packet.extend([
        0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    Frame::new(&packet).checksum(Checksum::Verified)
}

impl Link for Flooded {
    fn capabilities(&self) -> Capabilities {
        self.tun.capabilities()
    }

    fn receive(&self, frames: &mut Vec<Frame>, max: usize) -> Result<usize, ReceiveError> {
        // Only the driver receives.
        let sent = self.sent.load(Ordering::Relaxed);
        if sent == FORGED {
            return self.tun.receive(frames, max);
        }
        let count = (FORGED - sent).min(u16::try_from(max).unwrap());
        frames.extend((sent..sent + count).map(|port| forged(1 + port)));
        self.sent.store(sent + count, Ordering::Relaxed);
        Ok(usize::from(count))
    }

    fn transmit(&self, packet: &Packet<'_>) -> Result<(), TransmitError> {
        self.tun.transmit(packet)
    }

    fn wait(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<()> {
        self.tun.wait(interest, deadline)
    }

    fn wake(&self) {
        self.tun.wake();
    }
}

#[test]
fn the_kernel_connects_through_a_flood() {
    if !available("the_kernel_connects_through_a_flood") {
        return;
    }
    let namespace = Namespace::new("flood");
    namespace.tun("t0", &["10.99.1.1/24"], 1500);
    let link = Flooded {
        tun: Tun::builder("t0").netns(namespace.name()).build().unwrap(),
        sent: AtomicU16::new(0),
    };
    let builder = Stack::builder(link).address("10.99.1.2/24".parse().unwrap());
    let (stack, mut driver) = builder.build_with_driver().unwrap();
    let listener = TcpListener::bind_with_backlog(&stack, "10.99.1.2:80", BACKLOG).unwrap();
    for _ in 0..usize::from(FORGED) / 32 {
        driver.poll().unwrap();
    }
    thread::spawn(move || {
        while let Ok(worked) = driver.poll() {
            if !worked {
                thread::yield_now();
            }
        }
    });
    let to: SocketAddr = "10.99.1.2:80".parse().unwrap();
    let limit = Duration::from_secs(10);
    let text: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_be_bytes).collect();
    for _ in 0..5 {
        let connect = || TcpStream::connect_timeout(&to, limit).unwrap();
        let mut client = namespace.enter(connect);
        client.set_read_timeout(Some(limit)).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut got = Vec::new();
                server.read_to_end(&mut got).unwrap();
                server.write_all(&got).unwrap();
                server.shutdown(Shutdown::Write).unwrap();
            });
            client.write_all(&text[..100_000]).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut back = Vec::new();
            client.read_to_end(&mut back).unwrap();
            assert!(back == text[..100_000]);
        });
    }
    let stats = stack.stats();
    assert_eq!((stats.syn_cookies_accepted, stats.broken), (5, 0));
    assert!(stats.syn_cookies_sent >= u64::from(FORGED) - BACKLOG as u64);
}
