//! In the steady state a proxy allocates no memory.
//!
//! A program of its own with one test, since it counts what the whole process allocates. Time does not
//! advance: a timer that fires, at most ten times a second for each connection, allocates.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]
#![allow(unsafe_code, reason = "an allocator that counts")]

#[path = "support/clock.rs"]
mod clock;

use clock::SetClock;
use sosplice::buf::{Buf, Chain};
use sosplice::link::memory;
use sosplice::splice::{Dispatch, Options, SplicePool};
use sosplice::stack::Driver;
use sosplice::{Stack, TcpListener, TcpSocket, TcpStream};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is the system's; only a number is kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// client, front | back, server: a proxy in the middle, one direction spliced.
struct World {
    sides: Vec<(Stack, Driver)>,
    pool: SplicePool,
    client: TcpStream,
    server: TcpStream,
    _middle: (TcpStream, TcpStream),
}

impl World {
    fn new(dispatch: Dispatch, offload: bool) -> World {
        let mut config = memory::Config::default();
        if !offload {
            (config.capabilities.segment_v4, config.capabilities.mtu) = (None, 1500);
        }
        let ((a, b), (c, d)) = (memory::pair(config), memory::pair(config));
        let clock = SetClock::new();
        let addresses = ["10.0.1.1/24", "10.0.1.2/24", "10.0.2.2/24", "10.0.2.1/24"];
        let links = [a, b, c, d].into_iter().zip(addresses);
        let mut sides: Vec<_> = links
            .map(|(link, address)| {
                let builder = Stack::builder(link).address(address.parse().unwrap());
                builder.clock(clock.clone()).build_with_driver().unwrap()
            })
            .collect();
        let pool = SplicePool::builder().workers(1).dispatch(dispatch);
        let pool = pool.manual().build();
        let listen = |side: usize, at: &str| {
            let listener = TcpListener::bind(&sides[side].0, at).unwrap();
            listener.set_nonblocking(true);
            listener
        };
        let (front, service) = (listen(1, "10.0.1.2:80"), listen(3, "10.0.2.1:80"));
        let client = TcpSocket::new(&sides[0].0)
            .start("10.0.1.2:80".parse().unwrap())
            .unwrap();
        let outside = TcpSocket::new(&sides[2].0)
            .start("10.0.2.1:80".parse().unwrap())
            .unwrap();
        drive(&mut sides, &pool);
        let (inside, server) = (front.accept().unwrap().0, service.accept().unwrap().0);
        let options = Options::default().pool(pool.clone());
        inside.splice_to(&outside, options).unwrap();
        client.set_nonblocking(true);
        server.set_nonblocking(true);
        World {
            sides,
            pool,
            client,
            server,
            _middle: (inside, outside),
        }
    }

    /// Carries `bytes`, and counts the allocations of the stacks and the pool meanwhile.
    fn carry(&mut self, bytes: usize, piece: &Buf) -> u64 {
        let (mut left, mut allocated) = (bytes, 0);
        let mut out = vec![0; 65_536];
        while left > 0 {
            let mut chain = Chain::from(piece.clone());
            self.client.send_chain(&mut chain).ok();
            allocated += drive(&mut self.sides, &self.pool);
            while let Ok(count) = self.server.recv(&mut out) {
                left = left.saturating_sub(count);
            }
            allocated += drive(&mut self.sides, &self.pool);
        }
        allocated
    }
}

/// Runs until there is no more work. Returns the number of allocations.
fn drive(sides: &mut [(Stack, Driver)], pool: &SplicePool) -> u64 {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    loop {
        let mut worked = false;
        for (_, driver) in &mut *sides {
            worked |= driver.poll().unwrap();
        }
        worked |= pool.run_one();
        if !worked {
            return ALLOCATIONS.load(Ordering::Relaxed) - before;
        }
    }
}

#[test]
fn nothing_is_allocated_for_a_segment() {
    for dispatch in [Dispatch::Worker, Dispatch::Direct, Dispatch::Adaptive] {
        for offload in [true, false] {
            let mut world = World::new(dispatch, offload);
            let piece = Buf::copy_of(&vec![7; 60_000]);
            world.carry(10_000_000, &piece);
            let segments = |world: &World| world.sides[2].0.stats().segments_sent;
            let before = segments(&world);
            let allocated = world.carry(10_000_000, &piece);
            let sent = segments(&world) - before;
            // A worker's queue is a list of blocks of 31 places.
            let most = match dispatch {
                Dispatch::Direct => 0,
                _ => world.pool.stats().passes / 31 + 1,
            };
            assert!(sent > 100, "{sent}");
            assert!(
                allocated <= most,
                "{dispatch:?}, offload {offload}: {allocated} for {sent} segments"
            );
        }
    }
}
