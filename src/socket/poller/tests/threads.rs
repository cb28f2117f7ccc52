//! Races: no event is missed or reported twice.

use super::*;
use crate::protocol::{Upcall, Wakeup};
use crate::splice::{Cause, Dispatch, End, Options, SplicePool};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Waits with a limit, so that a lost wake-up is a failure.
fn wait(poller: &Poller, events: &mut Events) {
    let count = poller.wait(events, Some(PATIENCE)).unwrap();
    assert!(count > 0, "a wake-up was lost");
}

/// Sets a flag in any case: other threads must stop after a failure.
struct Finally<'a>(&'a AtomicBool);

impl Drop for Finally<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The time after which a missing event counts as lost.
fn give_up() -> Instant {
    SystemClock.now() + PATIENCE
}

#[test]
fn a_wake_ends_a_wait_of_another_thread() {
    const WAKES: usize = 1000;
    let poller = Poller::new();
    let woken = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut events = Events::default();
            for _ in 0..WAKES {
                let start = SystemClock.now();
                assert_eq!(poller.wait(&mut events, Some(PATIENCE)).unwrap(), 0);
                assert!(
                    SystemClock.now() - start < PATIENCE / 2,
                    "it was the timeout"
                );
                woken.fetch_add(1, Ordering::SeqCst);
            }
        });
        for wakes in 1..=WAKES {
            poller.wake();
            while woken.load(Ordering::SeqCst) < wakes {
                thread::yield_now();
            }
        }
    });
}

/// Changes at each check, without an event.
#[derive(Default)]
struct Restless(Mutex<Upcalls, LEAF>);

impl Watched for Restless {
    fn edit(&self, edit: &mut dyn FnMut(&mut Upcalls)) {
        edit(&mut self.0.lock());
    }

    fn condition(&self, upcall: &dyn Upcall) -> Option<Condition> {
        upcall.wakeup(Wakeup::Data);
        Some(Condition::default())
    }
}

impl Sealed for Arc<Restless> {
    fn watched(&self) -> Arc<dyn Watched> {
        self.clone()
    }
}

impl Pollable for Arc<Restless> {}

#[test]
fn wakeups_without_events_do_not_prolong_a_wait() {
    let poller = Poller::new();
    let restless = Arc::new(Restless::default());
    poller
        .add(&restless, Token(0), Interest::READABLE, Mode::Edge)
        .unwrap();
    let timeout = Duration::from_millis(20);
    let start = SystemClock.now();
    let count = poller.wait(&mut Events::default(), Some(timeout)).unwrap();
    assert_eq!(count, 0);
    assert!(SystemClock.now() >= start + timeout);
}

/// Small buffers: each side waits for the other one all the time.
fn stream(mode: Mode) {
    const BYTES: usize = 200_000;
    let (a, b) = pair();
    let (reader, writer) = (Poller::new(), Poller::new());
    writer.add(&a, Token(0), Interest::WRITABLE, mode).unwrap();
    reader.add(&b, Token(0), Interest::READABLE, mode).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut events = Events::default();
            let mut sent = 0;
            while sent < BYTES {
                wait(&writer, &mut events);
                while sent < BYTES
                    && let Ok(count) = a.send(&[0; 7][..(BYTES - sent).min(7)])
                {
                    sent += count;
                }
            }
        });
        let mut events = Events::default();
        let mut got = 0;
        while got < BYTES {
            wait(&reader, &mut events);
            while let Ok(count) = b.recv(&mut [0; 5]) {
                got += count;
            }
        }
    });
}

#[test]
fn no_byte_is_missed_by_levels() {
    stream(Mode::Level);
}

#[test]
fn no_byte_is_missed_by_edges() {
    stream(Mode::Edge);
}

/// Registrations come and go while bytes arrive and others wait.
#[test]
fn nothing_is_reported_after_delete_returns() {
    let (a, b) = pair();
    let poller = Poller::new();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                a.send(b"x").ok();
                b.recv(&mut [0; 3]).ok();
            }
        });
        scope.spawn(|| {
            let mut events = Events::default();
            while !done.load(Ordering::SeqCst) {
                poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
            }
        });
        let _done = Finally(&done);
        for _ in 0..20_000 {
            poller
                .add(&b, Token(0), Interest::BOTH, Mode::Level)
                .unwrap();
            poll(&poller);
            poller.delete(&b).unwrap();
            assert_eq!(poll(&poller), [], "an event after delete");
        }
    });
}

const SPLICES: usize = 500;

/// Traffic while splices are set up and ended.
struct Flood {
    far: Socket,
    source: Socket,
    sink: Socket,
    drain: Socket,
    over: AtomicBool,
}

impl Flood {
    fn new() -> Flood {
        let (far, source) = local::pair_with_hiwat(4096, 4096);
        let (sink, drain) = local::pair_with_hiwat(4096, 4096);
        for socket in [&far, &source, &sink, &drain] {
            socket.set_nonblocking(true);
        }
        Flood {
            far,
            source,
            sink,
            drain,
            over: AtomicBool::new(false),
        }
    }

    fn traffic(&self) {
        while !self.over.load(Ordering::SeqCst) {
            self.far.send(&[0; 1000]).ok();
            self.drain.recv_chain(10_000).ok();
        }
    }

    /// Splices again and again; half end by themselves.
    fn splices(&self, dispatch: Dispatch) -> Vec<End> {
        let pool = SplicePool::builder().workers(2).build();
        let splice = |at: usize| {
            let options = Options {
                limit: at.is_multiple_of(2).then_some(1 + (at * 97 % 5000) as u64),
                dispatch: Some(dispatch),
                pool: Some(pool.clone()),
                ..Options::default()
            };
            let splice = self.source.splice_to(&self.sink, options).unwrap();
            if !at.is_multiple_of(2) {
                splice.unsplice().unwrap();
            }
            splice.wait_timeout(PATIENCE).expect("the bytes flow")
        };
        (0..SPLICES).map(splice).collect()
    }
}

fn every_end_is_seen(dispatch: Dispatch, mode: Mode) {
    let flood = Flood::new();
    let poller = Poller::new();
    let (source, sink) = (&flood.source, &flood.sink);
    poller
        .add(source, Token(0), Interest::READABLE, mode)
        .unwrap();
    poller
        .add(sink, Token(1), Interest::WRITABLE, mode)
        .unwrap();
    thread::scope(|scope| {
        scope.spawn(|| flood.traffic());
        let splices = scope.spawn(|| flood.splices(dispatch));
        let over = Finally(&flood.over);
        let give_up = give_up();
        let mut events = Events::default();
        let mut seen = [Vec::new(), Vec::new()];
        while seen.iter().any(|ends| ends.len() < SPLICES) {
            assert!(SystemClock.now() < give_up, "an end was lost");
            wait(&poller, &mut events);
            for event in &events {
                let Token(at) = event.token();
                seen[at].extend([event.source_end(), event.sink_end()][at]);
                assert_eq!([event.sink_end(), event.source_end()][at], None);
            }
        }
        drop(over);
        let ends = splices.join().unwrap();
        assert!(ends.iter().any(|end| end.cause == Cause::Limit));
        assert!(ends.iter().any(|end| end.cause == Cause::Unspliced));
        assert!(seen.iter().all(|seen| *seen == ends));
    });
    assert!(
        poll(&poller)
            .iter()
            .all(|event| event.source_end().is_none())
    );
}

#[test]
fn every_end_is_seen_by_edges() {
    every_end_is_seen(Dispatch::Worker, Mode::Edge);
    every_end_is_seen(Dispatch::Direct, Mode::Edge);
}

#[test]
fn every_end_is_seen_by_levels() {
    every_end_is_seen(Dispatch::Worker, Mode::Level);
}

#[test]
fn several_threads_share_the_ends() {
    let flood = Flood::new();
    let poller = Poller::new();
    let source = &flood.source;
    poller
        .add(source, Token(0), Interest::READABLE, Mode::Edge)
        .unwrap();
    let seen = AtomicUsize::new(0);
    let give_up = give_up();
    thread::scope(|scope| {
        scope.spawn(|| flood.traffic());
        for _ in 0..3 {
            scope.spawn(|| {
                let mut events = Events::default();
                while seen.load(Ordering::SeqCst) < SPLICES && SystemClock.now() < give_up {
                    poller.wait(&mut events, Some(PATIENCE)).unwrap();
                    let ends = events.iter().filter(|event| event.source_end().is_some());
                    seen.fetch_add(ends.count(), Ordering::SeqCst);
                }
                // One wake is for one thread.
                poller.wake();
            });
        }
        let _over = Finally(&flood.over);
        flood.splices(Dispatch::Worker);
    });
    assert_eq!(seen.load(Ordering::SeqCst), SPLICES);
}

/// The thread that takes a level leaves it in the list, and wakes the next one.
#[test]
fn a_level_is_reported_to_all_waits() {
    for _ in 0..50 {
        let (poller, a, _b) = watched(Interest::READABLE, Mode::Level);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| wait(&poller, &mut Events::default()));
            }
            for _ in 0..100 {
                thread::yield_now();
            }
            a.send(b"x").unwrap();
        });
    }
}

/// Bytes left by a splice are not reported before its end.
#[test]
fn the_end_comes_before_what_it_leaves() {
    const ROUNDS: usize = 300;
    let ((far, source), (sink, _drain)) = (pair(), pair());
    while sink.send(&[0; 10]).is_ok() {}
    far.send(b"stuck").unwrap();
    let poller = Poller::new();
    let (token, interest, mode) = (Token(0), Interest::READABLE, Mode::Edge);
    poller.add(&source, token, interest, mode).unwrap();
    let pool = SplicePool::builder().manual().build();
    let [begun, heard, ended] = [(); 3].map(|()| AtomicUsize::new(0));
    let over = AtomicBool::new(false);
    let reach = |counter: &AtomicUsize, round| {
        while counter.load(Ordering::SeqCst) < round && !over.load(Ordering::SeqCst) {
            thread::yield_now();
        }
    };
    thread::scope(|scope| {
        // Queues it for a check all the time.
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                poller.modify(&source, token, interest, mode).unwrap();
            }
        });
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                let options = Options {
                    pool: Some(pool.clone()),
                    ..Options::default()
                };
                source.splice_to(&sink, options).unwrap();
                begun.store(round, Ordering::SeqCst);
                reach(&heard, round);
                source.unsplice().unwrap();
                reach(&ended, round);
            }
        });
        let _over = Finally(&over);
        let give_up = give_up();
        let mut round = 0;
        let mut too_early = 0;
        while ended.load(Ordering::SeqCst) < ROUNDS {
            assert!(SystemClock.now() < give_up, "an end was lost");
            round = begun.load(Ordering::SeqCst);
            heard.store(round, Ordering::SeqCst);
            for event in poll(&poller) {
                match event.source_end() {
                    Some(_) => ended.store(round, Ordering::SeqCst),
                    None if ended.load(Ordering::SeqCst) < round => too_early += 1,
                    None => {}
                }
            }
        }
        assert_eq!((round, too_early), (ROUNDS, 0));
    });
}
