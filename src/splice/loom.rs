//! Models of splices: every way in which two or three threads can interleave, with the real sockets,
//! splices and workers over the pair in memory. Each says one thing, and fails without the
//! protection that its twin takes away. Buffers of one or two bytes, workers run by hand.

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

    /// With the first pass over.
    fn splice(&self) -> Splice {
        self.splice_with(self.options())
    }

    fn splice_with(&self, options: Options) -> Splice {
        self.b.splice_to(&self.c, options).unwrap()
    }

    /// A reference to the splice, so that it is not gone before a thread looks: loom does not see
    /// the count.
    fn keep(&self) -> Option<Arc<dyn Upcall>> {
        self.b.end().rcv().diversion().cloned()
    }

    /// A worker until it finds nothing to do.
    fn work(&self) {
        while self.pool.run_one() {}
    }
}

/// A worker in a thread of its own, until it finds nothing to do.
fn work(pool: &SplicePool) -> JoinHandle<()> {
    let pool = pool.clone();
    spawn(move || while pool.run_one() {})
}

fn received(socket: &Socket) -> Vec<u8> {
    let mut bytes = [0; 8];
    let count = socket.recv(&mut bytes).unwrap_or(0);
    bytes[..count].to_vec()
}

/// What was told about the end of a splice.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<(End, usize)>>>);

impl Told {
    /// Notes each end, and how many bytes `d` has then.
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

/// A clock that stands still until it is moved on.
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
