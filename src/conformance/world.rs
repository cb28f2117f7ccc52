//! The environment of a case: sockets, splices, and time.

use super::run::Watch;
use super::{Config, Connecting, Factory, Setup};
use crate::error::Flavor;
use crate::socket::Socket;
use crate::splice::{Options, SplicePool};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::panic;
use std::time::Duration;

/// The world of one case: a factory, a pool of its own, and time, real or virtual.
///
/// In real time protocol and pool have threads of their own. In virtual time
/// ([`is_virtual`](Self::is_virtual)) all work is done inside [`until`](Self::until) and
/// [`sleep`](Self::sleep), so a case must not block elsewhere: sockets are non-blocking there.
pub struct World<'a> {
    factory: &'a dyn Factory,
    config: Config,
    flavor: Flavor,
    pool: SplicePool,
    watch: &'a Watch,
}

impl fmt::Debug for World<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World")
            .field("config", &self.config)
            .field("flavor", &self.flavor)
            .finish_non_exhaustive()
    }
}

impl<'a> World<'a> {
    pub(super) fn new(
        factory: &'a dyn Factory,
        config: Config,
        flavor: Flavor,
        watch: &'a Watch,
    ) -> World<'a> {
        let builder = SplicePool::builder()
            .workers(config.workers)
            .dispatch(config.dispatch);
        let pool = match factory.time() {
            Some(time) => builder.clock(time.clock()).manual().build(),
            None => builder.build(),
        };
        World {
            factory,
            config,
            flavor,
            pool,
            watch,
        }
    }

    /// The factory of the sockets.
    pub fn factory(&self) -> &dyn Factory {
        self.factory
    }

    /// The configuration of the case.
    pub fn config(&self) -> Config {
        self.config
    }

    /// The flavor of all sockets.
    pub fn flavor(&self) -> Flavor {
        self.flavor
    }

    /// The pool of all splices.
    pub fn pool(&self) -> &SplicePool {
        &self.pool
    }

    /// Options for a splice in this world's pool.
    pub fn options(&self) -> Options {
        Options {
            pool: Some(self.pool.clone()),
            ..Options::default()
        }
    }

    /// Whether time is virtual.
    pub fn is_virtual(&self) -> bool {
        self.factory.time().is_some()
    }

    /// A new connection. Sockets are non-blocking in virtual time, blocking in real time.
    pub fn connect(&self, setup: Setup) -> [Socket; 2] {
        let (a, b) = self.factory.connect(setup);
        [self.adopt(a), self.adopt(b)]
    }

    /// A connection whose handshake is held, if the factory supports that.
    pub fn connecting(&self) -> Option<Connecting> {
        let connecting = self.factory.connecting()?;
        Some(Connecting {
            socket: self.adopt(connecting.socket),
            complete: connecting.complete,
        })
    }

    /// Gives a socket this world's flavor, blocking mode and timeouts. A call that waits in vain
    /// returns after twice the time limit, so that the thread of a stuck case ends.
    pub fn adopt(&self, socket: Socket) -> Socket {
        socket.set_flavor(self.flavor);
        socket.set_nonblocking(self.is_virtual());
        let patience = self.config.time_limit.saturating_mul(2);
        let patience = Some(patience.max(Duration::from_nanos(1)));
        socket.set_read_timeout(patience).expect("not zero");
        socket.set_write_timeout(patience).expect("not zero");
        socket
    }

    /// Waits until `happened` returns true; in virtual time by doing the pending work, and then by
    /// advancing time from one deadline to the next. If `happened` does work itself, it must do all
    /// that is possible.
    ///
    /// # Panics
    /// If it does not happen: in real time at the case's time limit, in virtual time when there is no
    /// deadline left.
    #[track_caller]
    pub fn until(&self, what: &str, happened: impl FnMut() -> bool) {
        let before = self.watch.waits_for(what.to_owned());
        self.until_it_has(what, happened);
        self.watch.waits_for(before);
    }

    #[track_caller]
    fn until_it_has(&self, what: &str, mut happened: impl FnMut() -> bool) {
        while !happened() {
            if !self.turn() && !self.skip() {
                assert!(
                    happened(),
                    "no event is left to wait for, but not yet: {what}"
                );
                return;
            }
        }
    }

    /// Advances or waits for a time.
    pub fn sleep(&self, duration: Duration) {
        let Some(time) = self.factory.time() else {
            return pause(duration);
        };
        let end = time.clock().now() + duration;
        loop {
            while self.turn() {}
            let now = time.clock().now();
            if now >= end {
                return;
            }
            let step = self.poll_at().unwrap_or(Duration::MAX);
            time.advance(step.clamp(Duration::from_nanos(1), end - now));
        }
    }

    /// In virtual time, does all pending work. In real time, waits a moment: for events that must *not*
    /// happen, and so that threads are most likely asleep.
    pub fn settle(&self) {
        match self.is_virtual() {
            true => while self.turn() {},
            false => pause(Duration::from_millis(5)),
        }
    }

    /// Does a piece of work in virtual time, or waits a moment for threads in real time.
    ///
    /// # Panics
    /// At the case's time limit.
    fn turn(&self) -> bool {
        if self.watch.is_given_up() {
            // It was reported as stuck: unwinds without a second report.
            panic::resume_unwind(Box::new("the case has taken too long"));
        }
        match self.factory.time() {
            Some(time) => time.run() | self.pool.run_one(),
            None => {
                pause(Duration::from_micros(50));
                true
            }
        }
    }

    /// Advances virtual time to the next deadline, if there is one.
    fn skip(&self) -> bool {
        let deadline = self.poll_at();
        if let (Some(time), Some(wait)) = (self.factory.time(), deadline) {
            time.advance(wait.max(Duration::from_nanos(1)));
        }
        deadline.is_some()
    }

    fn poll_at(&self) -> Option<Duration> {
        let time = self.factory.time()?;
        let now = time.clock().now();
        let pool = self.pool.poll_at();
        let pool = pool.map(|at| at.saturating_duration_since(now));
        [time.poll_at(), pool].into_iter().flatten().min()
    }

    /// Sends all of `bytes`, in virtual time as there is room.
    #[track_caller]
    pub fn send(&self, mut socket: &Socket, bytes: &[u8]) {
        let mut sent = 0;
        self.until("all bytes are sent", || {
            while sent < bytes.len()
                && let Some(count) = ready(socket.write(&bytes[sent..]))
            {
                sent += count;
            }
            sent == bytes.len()
        });
    }

    /// Receives this many bytes.
    #[track_caller]
    pub fn receive(&self, mut socket: &Socket, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let mut got = 0;
        self.until("the bytes have arrived", || {
            while got < count
                && let Some(more) = ready(socket.read(&mut bytes[got..]))
            {
                assert_ne!(more, 0, "end of file after {got} of {count} bytes");
                got += more;
            }
            got == count
        });
        bytes
    }

    /// Sends bytes on one socket and asserts that they arrive at the other.
    #[track_caller]
    pub fn exchange(&self, from: &Socket, to: &Socket, bytes: &[u8]) {
        self.send(from, bytes);
        assert_eq!(self.receive(to, bytes.len()), bytes);
    }

    /// Reads without waiting.
    pub fn try_read(&self, socket: &Socket) -> Result<Vec<u8>, ErrorKind> {
        let was = socket.is_nonblocking();
        socket.set_nonblocking(true);
        let chain = socket.recv_chain(usize::MAX);
        socket.set_nonblocking(was);
        Ok(chain.map_err(|error| error.kind())?.to_vec())
    }
}

/// The result of a non-blocking call.
#[track_caller]
pub(super) fn ready(result: io::Result<usize>) -> Option<usize> {
    match result {
        Ok(count) => Some(count),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
            None
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "threads of a protocol are waited for; virtual time waits for nothing"
)]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
