//! Splices step by step: a pool without threads, and a clock set by hand.
//!
//! Here the bench; the tests are in `defects`, `lessons`, `fairness`, `join`, `places`, `behaviour` and
//! `counters`.

mod behaviour;
mod counters;
mod defects;
mod fairness;
mod join;
mod lessons;
mod places;

use super::*;
use crate::buf::Buf;
use crate::clock::{Clock, SystemClock};
use crate::error::SoError;
use crate::local;
use crate::lock::{LEAF, Mutex};
use crate::protocol::{Protocol, SocketEnd, Upcall, Wakeup};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

#[derive(Debug)]
struct TestClock {
    start: Instant,
    millis: AtomicU64,
}

impl TestClock {
    fn advance(&self, millis: u64) {
        self.millis.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.millis.load(Ordering::SeqCst))
    }
}

/// Two connected pairs and a pool: left\[1\] is to be spliced to right\[0\].
struct Bench {
    clock: Arc<TestClock>,
    pool: SplicePool,
    left: [Socket; 2],
    right: [Socket; 2],
}

const HIWAT: usize = 100;

impl Bench {
    fn new() -> Bench {
        Bench::with(|builder| builder)
    }

    fn with(configure: impl FnOnce(Builder) -> Builder) -> Bench {
        let clock = Arc::new(TestClock {
            start: SystemClock.now(),
            millis: AtomicU64::new(0),
        });
        let builder = SplicePool::builder().workers(2).clock(clock.clone());
        let pool = configure(builder.manual()).build();
        let pair = || {
            let (a, b) = local::pair_with_hiwat(HIWAT, HIWAT);
            a.set_nonblocking(true);
            b.set_nonblocking(true);
            [a, b]
        };
        Bench {
            clock,
            pool,
            left: pair(),
            right: pair(),
        }
    }

    fn options(&self) -> Options {
        Options {
            pool: Some(self.pool.clone()),
            ..Options::default()
        }
    }

    fn splice(&self) -> Splice {
        self.splice_with(self.options())
    }

    fn splice_with(&self, options: Options) -> Splice {
        self.left[1].splice_to(&self.right[0], options).unwrap()
    }

    fn run(&self) {
        while self.pool.run_one() {}
    }
}

fn read(socket: &Socket) -> Result<Vec<u8>, ErrorKind> {
    let chain = socket.recv_chain(10_000).map_err(|error| error.kind())?;
    Ok(chain.to_vec())
}

fn cause(splice: &Splice) -> Option<Cause> {
    splice.end().map(|end| end.cause)
}

type Hook = Box<dyn Fn(&SocketEnd) + Send + Sync>;

/// A protocol that calls back.
struct Scripted {
    end: Arc<SocketEnd>,
    state: SoState,
    on_output: Hook,
    on_rcvd: Hook,
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}

impl Protocol for Scripted {
    fn output(&self) {
        crate::lock::assert_none_held();
        (self.on_output)(&self.end);
    }
    fn rcvd(&self, _idle: bool) {
        crate::lock::assert_none_held();
        (self.on_rcvd)(&self.end);
    }
    fn abort(&self) {}
    fn detach(&self) {}
    fn name(&self) -> &'static str {
        "scripted"
    }
    fn so_state(&self) -> SoState {
        self.state
    }
}

fn scripted(
    state: SoState,
    on_output: impl Fn(&SocketEnd) + Send + Sync + 'static,
    on_rcvd: impl Fn(&SocketEnd) + Send + Sync + 'static,
) -> Socket {
    let end = SocketEnd::new(HIWAT, HIWAT);
    let protocol = Scripted {
        end: end.clone(),
        state,
        on_output: Box::new(on_output),
        on_rcvd: Box::new(on_rcvd),
    };
    let socket = Socket::new(end, Arc::new(protocol));
    socket.set_nonblocking(true);
    socket
}

fn silent() -> Socket {
    scripted(SoState::Stream, |_| {}, |_| {})
}

struct Tell(mpsc::Sender<Wakeup>);

impl Upcall for Tell {
    fn wakeup(&self, what: Wakeup) {
        self.0.send(what).ok();
    }
}
