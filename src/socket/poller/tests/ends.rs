//! Splices: silence while they last, and one event for each end, whatever its cause.

use super::*;
use crate::error::Flavor;
use crate::splice::{Cause, End, Options, Role, SplicePool};
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug)]
struct TestClock {
    start: Instant,
    millis: AtomicU64,
}

impl Clock for TestClock {
    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.millis.load(Ordering::SeqCst))
    }
}

/// far --- source ==> sink --- drain, in a pool that the test runs.
struct Bench {
    clock: Arc<TestClock>,
    pool: Option<SplicePool>,
    far: Socket,
    source: Option<Socket>,
    sink: Option<Socket>,
    drain: Socket,
}

impl Bench {
    fn new() -> Bench {
        let clock = Arc::new(TestClock {
            start: SystemClock.now(),
            millis: AtomicU64::new(0),
        });
        let pool = SplicePool::builder().clock(clock.clone()).manual().build();
        let ((far, source), (sink, drain)) = (pair(), pair());
        Bench {
            clock,
            pool: Some(pool),
            far,
            source: Some(source),
            sink: Some(sink),
            drain,
        }
    }

    fn pool(&self) -> &SplicePool {
        self.pool.as_ref().unwrap()
    }

    fn source(&self) -> &Socket {
        self.source.as_ref().unwrap()
    }

    fn sink(&self) -> &Socket {
        self.sink.as_ref().unwrap()
    }

    fn options(&self) -> Options {
        Options {
            pool: self.pool.clone(),
            ..Options::default()
        }
    }

    fn splice(&self) {
        self.splice_with(|_| {});
    }

    fn splice_with(&self, set: impl FnOnce(&mut Options)) {
        let mut options = self.options();
        set(&mut options);
        self.source().splice_to(self.sink(), options).unwrap();
    }

    fn run(&self) {
        while self.pool().run_one() {}
    }

    fn wait_a_minute(&self) {
        self.clock.millis.fetch_add(60_000, Ordering::SeqCst);
        self.run();
    }
}

/// The reported ends; asserts that there is nothing else.
fn ends(events: &[Event]) -> Vec<(usize, Role, Cause)> {
    let mut ends = Vec::new();
    for event in events {
        let token = event.token().0;
        ends.extend(
            event
                .source_end()
                .map(|end| (token, Role::Source, end.cause)),
        );
        ends.extend(event.sink_end().map(|end| (token, Role::Sink, end.cause)));
    }
    ends
}

type Set = fn(&mut Options);
type Finish = fn(&mut Bench);

/// Every cause, and how to produce it.
const CAUSES: [(Cause, Set, Finish); 12] = [
    (
        Cause::Unspliced,
        |_| {},
        |bench| {
            bench.source().unsplice().unwrap();
        },
    ),
    (
        Cause::Limit,
        |options| options.limit = Some(3),
        |bench| {
            bench.far.send(b"abc").unwrap();
            bench.run();
        },
    ),
    (
        Cause::Idle,
        |options| options.idle = Some(Duration::from_secs(60)),
        |bench| bench.wait_a_minute(),
    ),
    (
        Cause::Lifetime,
        |options| options.lifetime = Some(Duration::from_secs(60)),
        |bench| bench.wait_a_minute(),
    ),
    (
        Cause::Eof,
        |_| {},
        |bench| {
            bench.far.shutdown(Shutdown::Write).unwrap();
            bench.run();
        },
    ),
    (
        Cause::SourceError(SoError::ConnectionReset),
        |_| {},
        |bench| {
            bench.far.abort();
            bench.run();
        },
    ),
    (
        Cause::SourceClosed,
        |_| {},
        |bench| drop(bench.source.take()),
    ),
    (
        Cause::SinkShutdown,
        |_| {},
        |bench| {
            bench.sink().shutdown(Shutdown::Write).unwrap();
            bench.run();
        },
    ),
    (
        Cause::SinkError(SoError::ConnectionReset),
        |_| {},
        |bench| {
            bench.drain.abort();
            bench.run();
        },
    ),
    (Cause::SinkClosed, |_| {}, |bench| drop(bench.sink.take())),
    (Cause::PoolClosed, |_| {}, |bench| drop(bench.pool.take())),
    (
        Cause::Loop,
        |_| {},
        |bench| {
            bench.drain.splice_to(&bench.far, bench.options()).unwrap();
            bench.far.send(b"x").unwrap();
            bench.run();
        },
    ),
];

/// Whether this socket is still open after the cause, so that the end can be reported.
fn is_told(cause: Cause, role: Role) -> bool {
    match role {
        Role::Source => cause != Cause::SourceClosed,
        Role::Sink => cause != Cause::SinkClosed,
    }
}

/// Each poller waits for the condition that the splice hides.
fn pollers(bench: &Bench, mode: Mode) -> [(Poller, Role); 2] {
    let (of_source, of_sink) = (Poller::new(), Poller::new());
    let (source, sink) = (bench.source(), bench.sink());
    of_source
        .add(source, Token(1), Interest::READABLE, mode)
        .unwrap();
    of_sink
        .add(sink, Token(1), Interest::WRITABLE, mode)
        .unwrap();
    [(of_source, Role::Source), (of_sink, Role::Sink)]
}

fn flavors(cause: Cause) -> &'static [Flavor] {
    match cause {
        Cause::Loop => &[Flavor::OpenBsd],
        _ => &[Flavor::FreeBsd, Flavor::OpenBsd],
    }
}

#[test]
fn every_cause_is_reported_once_to_both_sides() {
    for (cause, set, finish) in CAUSES {
        for flavor in flavors(cause) {
            for mode in MODES {
                let mut bench = Bench::new();
                bench.source().set_flavor(*flavor);
                let pollers = pollers(&bench, mode);
                poll(&pollers[1].0);
                bench.splice_with(set);
                for (poller, role) in &pollers {
                    assert_eq!(poll(poller), [], "{cause:?} {role}: it is spliced");
                }
                finish(&mut bench);
                for (poller, role) in pollers {
                    let first = poll(&poller);
                    let expected = match is_told(cause, role) {
                        true => vec![(1, role, cause)],
                        false => vec![],
                    };
                    assert_eq!(ends(&first), expected, "{flavor:?} {mode:?}");
                    assert_eq!(ends(&poll(&poller)), [], "{cause:?} {role}: only once");
                }
            }
        }
    }
}

#[test]
fn every_cause_wakes_threads_that_wait() {
    for (cause, set, finish) in CAUSES {
        for mode in MODES {
            let mut bench = Bench::new();
            bench.source().set_flavor(flavors(cause)[0]);
            bench.splice_with(set);
            let pollers = pollers(&bench, mode);
            thread::scope(|scope| {
                let waiting = pollers.map(|(poller, role)| {
                    let wait = move || {
                        let mut events = Events::default();
                        poller.wait(&mut events, Some(PATIENCE)).unwrap();
                        ends(&events.list)
                    };
                    (role, is_told(cause, role).then(|| scope.spawn(wait)))
                });
                finish(&mut bench);
                for (role, thread) in waiting {
                    if let Some(thread) = thread {
                        assert_eq!(thread.join().unwrap(), [(1, role, cause)], "{mode:?}");
                    }
                }
            });
        }
    }
}

/// Ends are reported independent of the interests.
#[test]
fn an_end_is_reported_to_waits_for_the_other_direction() {
    for mode in MODES {
        let bench = Bench::new();
        let poller = Poller::new();
        // Neither condition will ever hold.
        poller
            .add(bench.source(), Token(1), Interest::WRITABLE, mode)
            .unwrap();
        poller
            .add(bench.sink(), Token(2), Interest::READABLE, mode)
            .unwrap();
        bench.source().send(&[0; 10]).unwrap();
        bench.source().send(&[0; 10]).unwrap();
        bench.splice();
        assert_eq!(poll(&poller), []);
        bench.source().unsplice().unwrap();
        let events = poll(&poller);
        let expected = [
            (1, Role::Source, Cause::Unspliced),
            (2, Role::Sink, Cause::Unspliced),
        ];
        assert_eq!(ends(&events), expected);
        assert_eq!(brief(&events), [(1, false, false), (2, false, false)]);
        assert_eq!(poll(&poller), [], "and then nothing holds");
    }
}

#[test]
fn a_spliced_source_is_silent_and_its_other_direction_is_not() {
    for mode in MODES {
        let bench = Bench::new();
        let poller = Poller::new();
        poller
            .add(bench.source(), Token(1), Interest::READABLE, mode)
            .unwrap();
        poller
            .add(bench.sink(), Token(2), Interest::WRITABLE, mode)
            .unwrap();
        poll(&poller);
        bench.splice();
        for _ in 0..100 {
            bench.far.send(b"traffic").unwrap();
            assert_eq!(poll(&poller), [], "there are bytes");
            bench.run();
            assert_eq!(bench.drain.recv_chain(100).unwrap().len(), 7);
            assert_eq!(poll(&poller), []);
        }
        let both = Interest::BOTH;
        poller.modify(bench.source(), Token(1), both, mode).unwrap();
        poller.modify(bench.sink(), Token(2), both, mode).unwrap();
        bench.drain.send(b"back").unwrap();
        assert_eq!(now(&poller), [(1, false, true), (2, true, false)]);
    }
}

#[test]
fn nothing_gets_through_a_splice_not_even_the_end_or_an_error() {
    for mode in MODES {
        let bench = Bench::new();
        let poller = Poller::new();
        bench.splice();
        poller
            .add(bench.source(), Token(1), Interest::READABLE, mode)
            .unwrap();
        poller
            .add(bench.sink(), Token(2), Interest::WRITABLE, mode)
            .unwrap();
        bench.far.send(b"last").unwrap();
        bench.far.shutdown(Shutdown::Write).unwrap();
        assert_eq!(poll(&poller), [], "the splice has not run yet");
        bench.drain.abort();
        assert_eq!(poll(&poller), []);
        // Looking must find it hidden, too.
        let modified = poller.modify(bench.source(), Token(1), Interest::READABLE, mode);
        modified.unwrap();
        poller
            .modify(bench.sink(), Token(2), Interest::WRITABLE, mode)
            .unwrap();
        assert_eq!(poll(&poller), []);
        poller
            .modify(bench.source(), Token(1), Interest::BOTH, mode)
            .unwrap();
        let [event] = poll(&poller)[..] else { panic!() };
        assert!(event.is_writable() && !event.is_readable() && !event.is_read_closed());
        bench.run();
        let reset = Cause::SinkError(SoError::ConnectionReset);
        let events = poll(&poller);
        assert_eq!(
            ends(&events),
            [(1, Role::Source, reset), (2, Role::Sink, reset)]
        );
        assert!(events[0].is_readable() && events[0].is_read_closed());
        assert!(events[1].is_writable() && events[1].error().is_some());
    }
}

/// Bytes that arrived during the splice are an edge after its end.
#[test]
fn residual_bytes_are_an_edge_at_the_end() {
    for mode in MODES {
        let bench = Bench::new();
        let poller = Poller::new();
        poller
            .add(bench.source(), Token(1), Interest::READABLE, mode)
            .unwrap();
        bench.splice_with(|options| options.limit = Some(3));
        bench.far.send(b"abcdef").unwrap();
        bench.run();
        let [event] = poll(&poller)[..] else { panic!() };
        let end = event.source_end().unwrap();
        assert_eq!((end.cause, end.bytes, end.residual), (Cause::Limit, 3, 3));
        assert!(event.is_readable());
        assert_eq!(poll(&poller).len(), usize::from(mode == Mode::Level));
    }
}

#[test]
fn a_socket_that_is_spliced_again_at_once_reports_each_end() {
    for mode in MODES {
        let bench = Bench::new();
        let [(of_source, _), (of_sink, _)] = pollers(&bench, mode);
        poll(&of_sink);
        for limit in 1..=3 {
            bench.splice_with(|options| options.limit = Some(limit));
            bench
                .far
                .send(&[0; 3][..limit.try_into().unwrap()])
                .unwrap();
            bench.run();
        }
        bench.splice();
        assert_eq!(bench.source().splice_end(Role::Source), None);
        for limit in 1..=3 {
            let end = |end: Option<End>| end.map(|end| (end.cause, end.bytes));
            let [event] = poll(&of_source)[..] else {
                panic!()
            };
            assert_eq!(end(event.source_end()), Some((Cause::Limit, limit)));
            assert_eq!((event.is_readable(), event.sink_end()), (false, None));
            let [event] = poll(&of_sink)[..] else {
                panic!()
            };
            assert_eq!(end(event.sink_end()), Some((Cause::Limit, limit)));
            assert_eq!((event.is_writable(), event.source_end()), (false, None));
        }
        assert_eq!((poll(&of_source), poll(&of_sink)), (vec![], vec![]));
    }
}

#[test]
fn an_end_before_add_is_no_event_and_modify_keeps_one() {
    let bench = Bench::new();
    bench.splice();
    bench.source().unsplice().unwrap();
    let poller = Poller::new();
    let (mode, token) = (Mode::Edge, Token(1));
    poller
        .add(bench.source(), token, Interest::READABLE, mode)
        .unwrap();
    assert_eq!(poll(&poller), []);
    bench.splice();
    bench.source().unsplice().unwrap();
    let modified = poller.modify(bench.source(), Token(2), Interest::WRITABLE, mode);
    modified.unwrap();
    assert_eq!(ends(&poll(&poller)), [(2, Role::Source, Cause::Unspliced)]);
    bench.splice();
    bench.source().unsplice().unwrap();
    poller.delete(bench.source()).unwrap();
    poller
        .add(bench.source(), token, Interest::READABLE, mode)
        .unwrap();
    assert_eq!(poll(&poller), [], "it belonged to another registration");
}

#[test]
fn both_roles_of_one_socket_end_in_one_event() {
    let bench = Bench::new();
    let poller = Poller::new();
    let socket = bench.source();
    socket.splice_to(socket, bench.options()).unwrap();
    poller
        .add(socket, Token(1), Interest::BOTH, Mode::Level)
        .unwrap();
    assert_eq!(poll(&poller), []);
    bench.far.shutdown(Shutdown::Write).unwrap();
    bench.run();
    let events = poll(&poller);
    let eof = [(1, Role::Source, Cause::Eof), (1, Role::Sink, Cause::Eof)];
    assert_eq!(ends(&events), eof);
    assert_eq!(brief(&events), [(1, true, true)]);
}

#[test]
fn a_socket_being_closed_gets_no_event_of_its_own_end() {
    for mode in MODES {
        let mut bench = Bench::new();
        let [(of_source, _), (of_sink, _)] = pollers(&bench, mode);
        poll(&of_sink);
        bench.splice();
        let entries = || of_source.list.ready.lock().entries.len();
        poll(&of_source);
        bench.source = None;
        assert_eq!(entries(), 0, "a thread that waits is not even woken");
        assert_eq!(ends(&poll(&of_sink)).len(), 1);
    }
}

#[test]
fn ends_do_not_pile_up_for_a_poller_that_is_gone() {
    let bench = Bench::new();
    let poller = Poller::new();
    poller
        .add(bench.source(), Token(1), Interest::READABLE, Mode::Edge)
        .unwrap();
    drop(poller);
    bench.splice();
    bench.source().unsplice().unwrap();
    let upcall = bench.source().end().rcv().upcalls()[0].clone();
    let registration = format!("{:?}", Registration::of(&upcall).unwrap());
    assert!(registration.contains("source_ends: []"), "{registration}");
}
