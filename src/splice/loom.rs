//! Models of splices: all interleavings of two or three threads, with the real sockets, splices and
//! workers over the pair in memory. Each model checks one claim, and must fail when its protection is
//! switched off. Buffers hold one or two bytes, workers run by hand.

#![cfg(sosplice_loom)]

mod close_against_everything;
mod eof_during_a_pass;
mod handed_over_against_shutdown;
mod shutdown_with_work_queued;
mod unsplice_against_set_up;
mod unsplice_against_timer;
mod unsplice_against_users;
mod unsplice_against_worker;
mod wakeup_against_pass;

use super::{Cause, Dispatch, End, Options, Splice, SplicePool};
use crate::clock::{self, Clock};
use crate::error::{Flavor, SoError};
use crate::local;
use crate::protocol::{SocketEnd, Upcall};
use crate::socket::Socket;
use crate::sync::Protection;
use crate::sync::model::{JoinHandle, claim, explore, explore_without, join, spawn};
use std::net::Shutdown;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// `a` sends to `b`, which is spliced to `c`; `d` receives.
struct World {
    a: Socket,
    b: Socket,
    c: Socket,
    d: Socket,
    pool: SplicePool,
}

impl World {
    fn new(hiwat: usize) -> World {
        let pool = SplicePool::builder().workers(1).manual().build();
        World::with(hiwat, pool)
    }

    fn with(hiwat: usize, pool: SplicePool) -> World {
        let (a, b) = local::pair_with_hiwat(hiwat, hiwat);
        let (c, d) = local::pair_with_hiwat(hiwat, hiwat);
        for socket in [&a, &b, &c, &d] {
            socket.set_nonblocking(true);
        }
        World { a, b, c, d, pool }
    }

    fn options(&self) -> Options {
        Options {
            pool: Some(self.pool.clone()),
            ..Options::default()
        }
    }

    /// Sets up the splice and runs its first pass.
    fn splice(&self) -> Splice {
        self.splice_with(self.options())
    }

    fn splice_with(&self, options: Options) -> Splice {
        self.b.splice_to(&self.c, options).unwrap()
    }

    /// A reference that keeps the splice alive until a thread uses it: loom does not track the
    /// reference count.
    fn keep(&self) -> Option<Arc<dyn Upcall>> {
        self.b.end().rcv().diversion().cloned()
    }

    /// Runs a worker until it has no work.
    fn work(&self) {
        while self.pool.run_one() {}
    }
}

/// Runs a worker in a thread of its own until it has no work.
fn work(pool: &SplicePool) -> JoinHandle<()> {
    let pool = pool.clone();
    spawn(move || while pool.run_one() {})
}

fn received(socket: &Socket) -> Vec<u8> {
    let mut bytes = [0; 8];
    let count = socket.recv(&mut bytes).unwrap_or(0);
    bytes[..count].to_vec()
}

/// The ends that a callback received.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<(End, usize)>>>);

impl Told {
    /// Records each end, and the number of bytes that `d` has then.
    fn listen(splice: &Splice, d: &Socket) -> Told {
        let told = Told::default();
        let (ends, d) = (told.0.clone(), d.clone());
        splice.on_end(move |end| {
            let received = d.readable_bytes();
            ends.lock().unwrap().push((end, received));
        });
        told
    }

    fn all(&self) -> Vec<(End, usize)> {
        self.0.lock().unwrap().clone()
    }
}

/// A clock that is advanced by hand.
#[derive(Debug)]
struct TestClock(Mutex<Instant>);

impl TestClock {
    fn new() -> Arc<TestClock> {
        Arc::new(TestClock(Mutex::new(clock::system().now())))
    }

    fn advance(&self) {
        *self.0.lock().unwrap() += Duration::from_secs(1);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Instant {
        *self.0.lock().unwrap()
    }
}
