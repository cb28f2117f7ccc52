//! Races: nothing is missed and nothing comes twice, whoever does what when.

use super::*;
use crate::splice::{Cause, Dispatch, End, Options, SplicePool};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Waits; not without end, so that a lost wake-up is a failure.
fn wait(poller: &Poller, events: &mut Events) {
    let count = poller.wait(events, Some(PATIENCE)).unwrap();
    assert!(count > 0, "a wake-up was lost");
}

#[test]
fn a_wake_ends_a_wait_of_another_thread() {
    let poller = Poller::new();
    thread::scope(|scope| {
        for _ in 0..1000 {
            let waiting = scope.spawn(|| poller.wait(&mut Events::default(), Some(PATIENCE)));
            poller.wake();
            assert_eq!(waiting.join().unwrap().unwrap(), 0);
        }
    });
}

#[test]
fn wakeups_that_come_to_nothing_do_not_prolong_a_wait() {
    let (poller, _a, b) = watched(Interest::READABLE, Mode::Edge);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    b.set_rcv_lowat(5);
                }
            });
        }
        let start = SystemClock.now();
        let timeout = Duration::from_millis(50);
        let count = poller.wait(&mut Events::default(), Some(timeout)).unwrap();
        let taken = SystemClock.now() - start;
        stop.store(true, Ordering::SeqCst);
        assert_eq!(count, 0);
        assert!(taken >= timeout && taken < PATIENCE / 4, "{taken:?}");
    });
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
        for _ in 0..20_000 {
            poller
                .add(&b, Token(0), Interest::BOTH, Mode::Level)
                .unwrap();
            poll(&poller);
            poller.delete(&b).unwrap();
            if !poll(&poller).is_empty() {
                done.store(true, Ordering::SeqCst);
                panic!("an event after delete");
            }
        }
        done.store(true, Ordering::SeqCst);
    });
}

const SPLICES: usize = 500;

/// What is going on while splices come and go.
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
        let mut events = Events::default();
        let mut seen = [Vec::new(), Vec::new()];
        while seen.iter().any(|ends| ends.len() < SPLICES) {
            wait(&poller, &mut events);
            for event in &events {
                let Token(at) = event.token();
                seen[at].extend([event.source_end(), event.sink_end()][at]);
                assert_eq!([event.sink_end(), event.source_end()][at], None);
            }
        }
        flood.over.store(true, Ordering::SeqCst);
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
    thread::scope(|scope| {
        scope.spawn(|| flood.traffic());
        for _ in 0..3 {
            scope.spawn(|| {
                let mut events = Events::default();
                while seen.load(Ordering::SeqCst) < SPLICES {
                    poller.wait(&mut events, Some(PATIENCE)).unwrap();
                    let ends = events.iter().filter(|event| event.source_end().is_some());
                    seen.fetch_add(ends.count(), Ordering::SeqCst);
                }
                // One wake is for one thread.
                poller.wake();
            });
        }
        flood.splices(Dispatch::Worker);
        flood.over.store(true, Ordering::SeqCst);
    });
    assert_eq!(seen.load(Ordering::SeqCst), SPLICES);
}

/// Who takes what fits wakes another thread for the rest.
#[test]
fn what_does_not_fit_wakes_another_thread() {
    let poller = Poller::new();
    let pairs: Vec<_> = (0..50).map(|_| pair()).collect();
    for (at, (_, b)) in pairs.iter().enumerate() {
        poller
            .add(b, Token(at), Interest::WRITABLE, Mode::Edge)
            .unwrap();
    }
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..50)
            .map(|_| {
                scope.spawn(|| {
                    let mut events = Events::with_capacity(1);
                    wait(&poller, &mut events);
                    events.list[0].token()
                })
            })
            .collect();
        let mut tokens: Vec<_> = waiting
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        tokens.sort();
        assert!(tokens.into_iter().eq((0..50).map(Token)));
    });
}

/// Bytes that a splice has left are not seen before its end.
#[test]
fn the_end_comes_before_what_it_leaves() {
    const ROUNDS: usize = 1000;
    let ((far, source), (sink, _drain)) = (pair(), pair());
    while sink.send(&[0; 10]).is_ok() {}
    far.send(b"stuck").unwrap();
    let poller = Poller::new();
    let (token, interest, mode) = (Token(0), Interest::READABLE, Mode::Edge);
    poller.add(&source, token, interest, mode).unwrap();
    let pool = SplicePool::builder().manual().build();
    let [begun, heard, ended] = [(); 3].map(|()| AtomicUsize::new(0));
    let reach = |counter: &AtomicUsize, round| {
        while counter.load(Ordering::SeqCst) < round {
            thread::yield_now();
        }
    };
    thread::scope(|scope| {
        // Has it looked at all the time.
        scope.spawn(|| {
            while ended.load(Ordering::SeqCst) < ROUNDS {
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
        let mut round = 0;
        let mut too_early = 0;
        while ended.load(Ordering::SeqCst) < ROUNDS {
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
