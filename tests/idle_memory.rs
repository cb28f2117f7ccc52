//! Memory of an idle connection, and of an idle flow of datagrams, after traffic: a program of its own with one
//! test, since it counts all allocations of the process.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]
#![allow(unsafe_code, reason = "an allocator that counts")]

#[path = "support/clock.rs"]
mod clock;

use clock::SetClock;
use sosplice::buf::{Buf, Chain};
use sosplice::link::memory;
use sosplice::sockbuf::Addresses;
use sosplice::splice::{self, Options};
use sosplice::stack::{Driver, FlowOptions};
use sosplice::{
    Intercept, Stack, TcpListener, TcpSocket, TcpStream, UdpListener, UdpSocket, local,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Duration;

struct Counting;

static HELD: AtomicIsize = AtomicIsize::new(0);

fn count(bytes: usize, sign: isize) {
    HELD.fetch_add(bytes.cast_signed() * sign, Ordering::Relaxed);
}

// SAFETY: everything is the system's; only a number is kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(layout.size(), -1);
        count(size, 1);
        // SAFETY: the caller's contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn drive(drivers: &mut [Driver]) {
    loop {
        let mut worked = false;
        for driver in &mut *drivers {
            worked |= driver.poll().unwrap();
        }
        if !worked {
            return;
        }
    }
}

/// Sends so many bytes, all of which arrive.
fn carry(from: &TcpStream, to: &TcpStream, bytes: usize, drivers: &mut [Driver]) {
    let mut rest = Chain::from(Buf::copy_of(&vec![7; bytes]));
    let mut out = vec![0; 65_536];
    let mut left = bytes;
    while left > 0 {
        from.send_chain(&mut rest).ok();
        drive(drivers);
        while let Ok(count) = to.recv(&mut out) {
            left -= count;
        }
        drive(drivers);
    }
}

#[test]
fn idle_sockets_hold_little_memory() {
    connections();
    flows();
}

fn connections() {
    const COUNT: usize = 200;
    let clock = SetClock::new();
    let (a, b) = memory::pair(memory::Config::default());
    let build = |link, address: &str| {
        let builder = Stack::builder(link).address(address.parse().unwrap());
        builder.clock(clock.clone()).build_with_driver().unwrap()
    };
    let (here, near) = build(a, "10.0.0.1/24");
    let (there, far) = build(b, "10.0.0.2/24");
    let mut drivers = [near, far];
    let listener = TcpListener::bind(&there, "10.0.0.2:80").unwrap();
    listener.set_nonblocking(true);
    let open = |drivers: &mut [Driver]| {
        let client = TcpSocket::new(&here)
            .start("10.0.0.2:80".parse().unwrap())
            .unwrap();
        drive(drivers);
        let server = listener.accept().unwrap().0;
        client.set_nonblocking(true);
        server.set_nonblocking(true);
        (client, server)
    };
    // Global objects: scratch memory, pools, tables.
    let first = open(&mut drivers);
    carry(&first.0, &first.1, 500_000, &mut drivers);
    clock.advance(Duration::from_secs(6));
    drive(&mut drivers);
    let before = HELD.load(Ordering::Relaxed);
    let mut pairs = Vec::with_capacity(COUNT);
    for _ in 0..COUNT {
        let pair = open(&mut drivers);
        carry(&pair.0, &pair.1, 300_000, &mut drivers);
        carry(&pair.1, &pair.0, 1000, &mut drivers);
        pairs.push(pair);
    }
    let each = || {
        let more = HELD.load(Ordering::Relaxed) - before;
        usize::try_from(more).unwrap() / (2 * COUNT)
    };
    let awake = each();
    assert!(awake <= 24 * 1024, "{awake} bytes for a new connection");
    clock.advance(Duration::from_secs(6));
    drive(&mut drivers);
    let at_rest = each();
    assert!(
        (1000..4096).contains(&at_rest),
        "{at_rest} bytes for a connection"
    );
    // It is as usable as before.
    for (client, server) in &pairs {
        carry(server, client, 10_000, &mut drivers);
        carry(client, server, 10_000, &mut drivers);
    }
    clock.advance(Duration::from_secs(6));
    drive(&mut drivers);
    let again = each();
    assert!(
        (1000..4096).contains(&again),
        "{again} bytes for a connection"
    );
    println!("{awake} bytes awake, {at_rest} and {again} at rest");
}

/// Each as a relay has it: intercepted, accepted, and joined with a socket on the other side.
fn flows() {
    const COUNT: u16 = 1000;
    let clock = SetClock::new();
    let (a, b) = memory::pair(memory::Config::default());
    let build = |link, address: &str| {
        let builder = Stack::builder(link).address(address.parse().unwrap());
        builder.clock(clock.clone()).build_with_driver().unwrap()
    };
    let (here, near) = build(a, "10.0.0.1/24");
    let (there, far) = build(b, "10.0.0.2/24");
    let mut drivers = [near, far];
    let listener =
        UdpListener::intercept(&there, Intercept::all(), FlowOptions::default()).unwrap();
    listener.set_nonblocking(true);
    let client = UdpSocket::bind(&here, "10.0.0.1:4000").unwrap();
    client.set_nonblocking(true);
    let mut buffer = [0; 2000];
    let mut flows = Vec::with_capacity(COUNT.into());
    let mut begin = |number: u16, drivers: &mut [Driver]| {
        let [high, low] = number.to_be_bytes();
        let to = SocketAddr::from(([203, 0, high, low], 53));
        client.send_datagram(&[1; 100], Addresses::to(to)).unwrap();
        drive(drivers);
        let (flow, _) = listener.accept().unwrap();
        assert_eq!(flow.local_addr(), to);
        flow.recv(&mut buffer).unwrap();
        for _ in 0..20 {
            client.send_datagram(&[2; 1000], Addresses::to(to)).unwrap();
            drive(drivers);
            flow.recv(&mut buffer).unwrap();
            flow.send(&[3; 1200]).unwrap();
            drive(drivers);
            client.recv(&mut buffer).unwrap();
        }
        flow
    };
    // Global objects.
    flows.push(begin(60_000, &mut drivers));
    let before = HELD.load(Ordering::Relaxed);
    flows.extend((0..COUNT).map(|number| begin(number, &mut drivers)));
    clock.advance(Duration::from_secs(20));
    drive(&mut drivers);
    let held = HELD.load(Ordering::Relaxed) - before;
    let each = usize::try_from(held).unwrap() / usize::from(COUNT);
    println!("{each} bytes for an idle flow");
    assert!((300..1536).contains(&each), "{each} bytes for a flow");
    // With the socket on the other side, and the splices of both directions.
    let before = HELD.load(Ordering::Relaxed);
    let joined: Vec<_> = flows
        .drain(..)
        .map(|flow| {
            let (server, _peer) = local::datagram_pair();
            splice::join(flow, server, Options::default()).unwrap()
        })
        .collect();
    let held = HELD.load(Ordering::Relaxed) - before;
    println!(
        "{} bytes more for each relay",
        held / isize::try_from(joined.len()).unwrap()
    );
}
