//! What a splice does, step by step: a pool without threads, and a clock that is set.
//!
//! `defect_n` is row n of the list of suspected defects in FreeBSD's implementation.

use super::*;
use crate::buf::Buf;
use crate::clock::{Clock, SystemClock};
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

#[test]
fn defect_1_end_of_file_during_a_pass_is_not_lost() {
    let bench = Bench::new();
    let source = silent();
    let at_eof = source.end().clone();
    let sink = scripted(SoState::Stream, move |_| at_eof.cantrcvmore(), |_| {});
    sink.end().connected();
    let splice = source.splice_to(&sink, bench.options()).unwrap();
    source.end().append_rcv([Buf::copy_of(b"last")]);
    bench.run();
    assert_eq!(cause(&splice), Some(Cause::Eof));
    assert_eq!(splice.bytes(), 4);
}

#[test]
fn defect_1_shutdown_of_the_sink_during_a_pass_is_not_lost() {
    let bench = Bench::new();
    let sink = silent();
    sink.end().connected();
    let closed = sink.end().clone();
    let source = scripted(SoState::Stream, |_| {}, move |_| closed.cantsendmore());
    let splice = source.splice_to(&sink, bench.options()).unwrap();
    bench.run();
    assert_eq!(cause(&splice), Some(Cause::SinkShutdown));
}

#[test]
fn defect_2_end_of_file_with_a_full_sink_drains_first() {
    let bench = Bench::new();
    let splice = bench.splice();
    for _ in 0..3 {
        bench.left[0].send(&[7; HIWAT]).unwrap();
        bench.run();
    }
    bench.left[0].shutdown(Shutdown::Write).unwrap();
    bench.run();
    assert_eq!(splice.end(), None, "100 bytes are still on the source");
    for _ in 0..3 {
        assert_eq!(read(&bench.right[1]).unwrap(), [7; HIWAT]);
        bench.run();
    }
    let end = splice.wait();
    assert_eq!((end.cause, end.bytes), (Cause::Eof, 300));
    assert_eq!(
        read(&bench.right[1]),
        Err(ErrorKind::WouldBlock),
        "nothing is shut down"
    );
    assert_eq!(read(&bench.left[1]).unwrap(), b"");
}

#[test]
fn defect_3_a_sink_that_is_gone_takes_nothing() {
    type Break = fn(&Bench);
    let ways: [(Break, Cause); 3] = [
        (
            |b| b.right[0].shutdown(Shutdown::Write).unwrap(),
            Cause::SinkShutdown,
        ),
        (
            |b| b.right[1].abort(),
            Cause::SinkError(SoError::ConnectionReset),
        ),
        (
            |b| b.right[0].end().set_error(SoError::HostUnreachable),
            Cause::SinkError(SoError::HostUnreachable),
        ),
    ];
    for (break_sink, expected) in ways {
        let bench = Bench::new();
        let splice = bench.splice();
        bench.left[0].send(b"arrives").unwrap();
        bench.run();
        // Bytes and breakage before any pass can run.
        bench.left[0].send(b"stays").unwrap();
        break_sink(&bench);
        bench.run();
        let end = splice.wait();
        assert_eq!((end.cause, end.bytes), (expected, 7));
        assert_eq!(read(&bench.left[1]).unwrap(), b"stays");
        assert_eq!(bench.left[1].spliced(), 7);
        let untouched = match expected {
            Cause::SinkError(error) => Some(error),
            _ => None,
        };
        assert_eq!(bench.right[0].take_error(), untouched);
        assert_eq!(bench.left[1].take_error(), None);
    }
}

#[test]
fn defect_3_a_connecting_sink_holds_the_bytes() {
    let bench = Bench::new();
    let sink = silent();
    let splice = bench.left[1].splice_to(&sink, bench.options()).unwrap();
    bench.left[0].send(b"early").unwrap();
    bench.run();
    assert_eq!((splice.bytes(), bench.left[1].readable_bytes()), (0, 5));
    sink.end().connected();
    bench.run();
    assert_eq!(splice.bytes(), 5);
    assert_eq!(sink.end().snd().buf.chain().to_vec(), b"early");

    let refused = silent();
    bench.left[1].unsplice().unwrap();
    let splice = bench.left[1].splice_to(&refused, bench.options()).unwrap();
    bench.left[0].send(b"kept").unwrap();
    bench.run();
    refused.end().set_error(SoError::ConnectionRefused);
    refused.end().cantrcvmore();
    refused.end().cantsendmore();
    bench.run();
    assert_eq!(
        cause(&splice),
        Some(Cause::SinkError(SoError::ConnectionRefused))
    );
    assert_eq!(read(&bench.left[1]).unwrap(), b"kept");
}

#[test]
fn defect_3_a_sink_that_shrinks_takes_what_fits() {
    let bench = Bench::new();
    let splice = bench.splice();
    bench.right[0].set_snd_hiwat(10);
    bench.right[1].set_rcv_hiwat(10);
    bench.left[0].send(&[1; 50]).unwrap();
    bench.run();
    assert_eq!((splice.bytes(), bench.left[1].readable_bytes()), (20, 30));
}

#[test]
fn defect_4_a_failed_call_changes_nothing() {
    let bench = Bench::new();
    let splice = bench.splice_with(Options {
        limit: Some(10),
        ..bench.options()
    });
    bench.left[0].send(b"12345678").unwrap();
    bench.run();
    let again = bench.left[1].splice_to(&bench.right[1], bench.options());
    assert_eq!(again.unwrap_err(), SpliceError::Busy(Role::Source));
    let busy_sink = bench.right[1].splice_to(&bench.right[0], bench.options());
    assert_eq!(busy_sink.unwrap_err(), SpliceError::Busy(Role::Sink));
    assert_eq!(bench.left[1].spliced(), 8);
    bench.left[0].send(b"90abc").unwrap();
    bench.run();
    assert_eq!((splice.wait().cause, splice.bytes()), (Cause::Limit, 10));
    assert_eq!(read(&bench.left[1]).unwrap(), b"abc");
    assert_eq!(bench.pool.stats().started, 1);
}

#[test]
fn defect_5_a_blocked_reader_stalls_nothing_and_wakes_at_the_end() {
    let bench = Bench::new();
    bench.left[1].set_nonblocking(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| read(&bench.left[1]));
        let splice = bench.splice_with(Options {
            limit: Some(5),
            ..bench.options()
        });
        bench.left[0].send(b"12345after").unwrap();
        bench.run();
        // The reader may have come first and taken everything, or only what follows the limit.
        let got = reader.join().unwrap().unwrap();
        match splice.end() {
            Some(end) => assert_eq!((end.bytes, &got[..]), (5, &b"after"[..])),
            None => assert_eq!(got, b"12345after"),
        }
    });
}

struct Tell(mpsc::Sender<Wakeup>);

impl Upcall for Tell {
    fn wakeup(&self, what: Wakeup) {
        self.0.send(what).ok();
    }
}

#[test]
fn defect_6_every_end_is_observable_without_data() {
    type EndIt = fn(&Bench);
    let ways: [(EndIt, Cause); 7] = [
        (|b| drop(b.left[0].send(b"limit")), Cause::Limit),
        (|b| b.clock.advance(5000), Cause::Lifetime),
        (|b| assert!(b.left[1].unsplice().is_ok()), Cause::Unspliced),
        (
            |b| drop(b.right[0].shutdown(Shutdown::Write)),
            Cause::SinkShutdown,
        ),
        (
            |b| b.right[1].abort(),
            Cause::SinkError(SoError::ConnectionReset),
        ),
        (|b| drop(b.left[0].shutdown(Shutdown::Write)), Cause::Eof),
        (
            |b| b.left[0].abort(),
            Cause::SourceError(SoError::ConnectionReset),
        ),
    ];
    for (end_it, expected) in ways {
        let bench = Bench::new();
        let (sender, heard) = mpsc::channel();
        bench.left[1].set_rcv_upcall(Some(Arc::new(Tell(sender.clone()))));
        bench.right[0].set_snd_upcall(Some(Arc::new(Tell(sender))));
        let splice = bench.splice_with(Options {
            limit: Some(5),
            lifetime: Some(Duration::from_secs(5)),
            ..bench.options()
        });
        assert_eq!(heard.try_iter().count(), 0);
        end_it(&bench);
        bench.run();
        assert_eq!(cause(&splice), Some(expected));
        let heard: BTreeSet<_> = heard.try_iter().map(|what| format!("{what:?}")).collect();
        assert!(
            heard.contains("Data") && heard.contains("Space"),
            "{expected:?}: {heard:?}"
        );
        assert_eq!(bench.pool.stats().ended_by(expected), 1);
        assert_eq!(bench.pool.stats().ended(), 1);
    }
}

#[test]
fn defect_8_a_disabled_pool_fails_for_everyone() {
    let bench = Bench::with(|builder| builder.workers(0));
    for _ in 0..2 {
        let error = bench.left[1]
            .splice_to(&bench.right[0], bench.options())
            .unwrap_err();
        assert_eq!((error, error.errno()), (SpliceError::PoolDisabled, 6));
    }
}

#[test]
fn defect_9_n_workers_are_n_threads() {
    let pool = SplicePool::builder().workers(2).build();
    let (sender, names) = mpsc::channel();
    let mut sockets = Vec::new();
    for _ in 0..6 {
        let source = silent();
        let sender = sender.clone();
        let sink = scripted(
            SoState::Stream,
            move |end| {
                let name = thread::current().name().map(str::to_owned);
                sender.send(name).unwrap();
                let count = end.snd().buf.len();
                end.drop_snd(count);
            },
            |_| {},
        );
        sink.end().connected();
        let options = Options {
            pool: Some(pool.clone()),
            ..Options::default()
        };
        source.splice_to(&sink, options).unwrap();
        source.end().append_rcv([Buf::copy_of(b"x")]);
        sockets.push((source, sink));
    }
    let names: BTreeSet<_> = names.iter().take(6).map(Option::unwrap).collect();
    assert_eq!(
        names.into_iter().collect::<Vec<_>>(),
        ["so_splice:0", "so_splice:1"]
    );
}

#[test]
fn defect_11_timeouts_are_checked() {
    let bench = Bench::new();
    let try_with = |options| bench.left[1].splice_to(&bench.right[0], options).map(drop);
    let zero = Some(Duration::ZERO);
    let idle = try_with(Options {
        idle: zero,
        ..bench.options()
    });
    let lifetime = try_with(Options {
        lifetime: zero,
        ..bench.options()
    });
    let limit = try_with(Options {
        limit: Some(0),
        ..bench.options()
    });
    assert_eq!(idle, Err(SpliceError::ZeroTimeout));
    assert_eq!(lifetime, Err(SpliceError::ZeroTimeout));
    assert_eq!(limit, Err(SpliceError::ZeroLimit));
    let huge = Some(Duration::from_secs(1 << 62));
    assert_eq!(
        try_with(Options {
            idle: huge,
            lifetime: huge,
            ..bench.options()
        }),
        Ok(())
    );
}

#[test]
fn defect_12_a_late_timer_or_handle_of_an_old_splice_does_nothing() {
    let bench = Bench::new();
    let lifetime = Some(Duration::from_secs(1));
    let old = bench.splice_with(Options {
        lifetime,
        ..bench.options()
    });
    bench.left[1].unsplice().unwrap();
    let new = bench.splice();
    bench.clock.advance(2000);
    bench.run();
    assert_eq!(old.unsplice(), Err(UnspliceError::NotSpliced));
    assert_eq!((cause(&old), new.end()), (Some(Cause::Unspliced), None));
    bench.left[0].send(b"x").unwrap();
    bench.run();
    assert_eq!((old.bytes(), new.bytes()), (0, 1));
}

#[test]
fn a_late_queue_entry_of_an_old_splice_does_nothing() {
    let bench = Bench::new();
    let old = bench.splice();
    bench.left[0].send(b"queued").unwrap();
    let end = bench.left[1].unsplice().unwrap();
    assert_eq!((end.cause, end.bytes), (Cause::Unspliced, 0));
    assert_eq!(old.wait(), end);
    bench.run();
    assert_eq!(read(&bench.left[1]).unwrap(), b"queued");
}

#[test]
fn idle_is_rearmed_by_moved_bytes_and_lifetime_is_not() {
    let second = Some(Duration::from_secs(1));
    for (idle, lifetime, expected) in [(second, None, None), (None, second, Some(Cause::Lifetime))]
    {
        let bench = Bench::new();
        let splice = bench.splice_with(Options {
            idle,
            lifetime,
            ..bench.options()
        });
        for _ in 0..3 {
            bench.clock.advance(600);
            bench.left[0].send(b"x").unwrap();
            bench.run();
        }
        assert_eq!(cause(&splice), expected);
    }
}

#[test]
fn idle_ends_a_splice_that_moves_nothing() {
    let bench = Bench::new();
    let idle = Some(Duration::from_secs(1));
    let splice = bench.splice_with(Options {
        idle,
        ..bench.options()
    });
    bench.clock.advance(999);
    assert_eq!(
        bench.pool.next_deadline().map(|at| at > bench.clock.now()),
        Some(true)
    );
    bench.run();
    assert_eq!(cause(&splice), None);
    // Room and window updates are no bytes.
    bench.right[0].set_snd_lowat(1);
    bench.clock.advance(1);
    bench.run();
    assert_eq!(cause(&splice), Some(Cause::Idle));
    assert_eq!(bench.pool.next_deadline(), None);
}

#[test]
fn a_limit_that_queued_bytes_meet_ends_the_splice_in_the_call() {
    let bench = Bench::new();
    bench.left[0].send(b"0123456789").unwrap();
    let splice = bench.splice_with(Options {
        limit: Some(4),
        ..bench.options()
    });
    let end = splice.end().unwrap();
    assert_eq!((end.cause, end.bytes, end.passes), (Cause::Limit, 4, 1));
    assert_eq!(read(&bench.right[1]).unwrap(), b"0123");
    assert_eq!(read(&bench.left[1]).unwrap(), b"456789");
}

#[test]
fn a_long_pass_goes_to_the_back_of_the_queue() {
    let bench = Bench::with(|builder| builder.workers(1).quantum(10));
    let other = Bench::new();
    bench.left[0].send(&[1; 50]).unwrap();
    other.left[0].send(&[2; 50]).unwrap();
    let long = bench.splice();
    let beside = other.splice_with(bench.options());
    let mut progress = Vec::new();
    while bench.pool.run_one() {
        progress.push((long.bytes(), beside.bytes()));
    }
    assert_eq!(progress[..4], [(20, 10), (20, 20), (30, 20), (30, 30)]);
    assert_eq!(progress.last(), Some(&(50, 50)));
    assert!(bench.pool.stats().requeues >= 8);
}

#[test]
fn only_the_edge_that_matters_wakes() {
    let bench = Bench::new();
    bench.splice();
    let passes = || bench.pool.stats().passes;
    let before = passes();
    bench.right[0].set_snd_hiwat(HIWAT);
    bench.run();
    assert_eq!(
        passes(),
        before,
        "space means nothing to a splice without data"
    );
    for _ in 0..4 {
        bench.left[0].send(&[7; HIWAT]).unwrap();
        bench.run();
        if bench.left[1].readable_bytes() == HIWAT {
            break;
        }
    }
    let before = passes();
    bench.left[1].set_rcv_lowat(1);
    bench.run();
    assert_eq!(
        passes(),
        before,
        "data means nothing to a splice without room"
    );
}

#[test]
fn both_directions_share_a_worker() {
    let bench = Bench::with(|builder| builder.workers(3));
    let pairs = [Bench::new(), Bench::new(), Bench::new()];
    for pair in &pairs {
        pair.left[1]
            .splice_to(&pair.right[0], bench.options())
            .unwrap();
        pair.right[0]
            .splice_to(&pair.left[1], bench.options())
            .unwrap();
    }
    let worker = |socket: &Socket| {
        let diversion = socket.end().rcv().diversion().cloned().unwrap();
        Task::of(&diversion).unwrap().worker
    };
    let workers = pairs
        .each_ref()
        .map(|pair| (worker(&pair.left[1]), worker(&pair.right[0])));
    assert_eq!(workers, [(0, 0), (1, 1), (2, 2)]);
}

#[test]
fn close_ends_a_splice_in_both_roles() {
    let bench = Bench::new();
    let splice = bench.splice();
    let Bench {
        left: [l0, l1],
        right: [r0, r1],
        ..
    } = bench;
    l0.send(b"unread").unwrap();
    drop(l1);
    assert_eq!(cause(&splice), Some(Cause::SourceClosed));
    assert_eq!(
        l0.send(b"x").unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );

    let bench = Bench::new();
    let splice = bench.left[1].splice_to(&r0, bench.options()).unwrap();
    bench.left[0].send(b"moved").unwrap();
    bench.run();
    bench.left[0].send(b"stays").unwrap();
    drop(r0);
    assert_eq!(cause(&splice), Some(Cause::SinkClosed));
    assert_eq!(read(&r1).unwrap(), b"moved");
    assert_eq!(read(&bench.left[1]).unwrap(), b"stays");
}

#[test]
fn sockets_are_freed_though_they_are_spliced() {
    let bench = Bench::new();
    let splices = [
        bench.splice(),
        bench.right[0]
            .splice_to(&bench.left[1], bench.options())
            .unwrap(),
    ];
    bench.left[0].send(b"in the queue").unwrap();
    let Bench {
        left,
        right,
        pool,
        clock,
    } = bench;
    let sockets = left.iter().chain(&right);
    let ends: Vec<_> = sockets.map(|socket| Arc::downgrade(socket.end())).collect();
    drop((left, right));
    assert!(ends.iter().all(|end| end.upgrade().is_none()));
    assert!(splices.iter().all(|splice| splice.task.upgrade().is_none()));
    assert_eq!(Arc::strong_count(pool.shared()), 1);
    drop((pool, clock));
    assert!(
        splices.iter().all(Splice::is_ended),
        "the handles still know the end"
    );
}

#[test]
fn a_dropped_pool_ends_its_splices() {
    let Bench { left, right, .. } = Bench::new();
    for manual in [true, false] {
        let builder = SplicePool::builder().workers(1);
        let pool = if manual { builder.manual() } else { builder }.build();
        let options = Options {
            pool: Some(pool.clone()),
            ..Options::default()
        };
        let splice = left[1].splice_to(&right[0], options).unwrap();
        drop(pool);
        assert_eq!(splice.wait().cause, Cause::PoolClosed);
    }
}

#[test]
fn direct_splices_run_in_the_call_that_wakes_them() {
    let bench = Bench::with(|builder| builder.dispatch(Dispatch::Direct));
    bench.splice();
    bench.left[0].send(b"at once").unwrap();
    assert_eq!(read(&bench.right[1]).unwrap(), b"at once");
    assert!(!bench.pool.run_one(), "nothing was left to a worker");
}

#[test]
fn a_direct_wakeup_outside_of_any_call_goes_to_the_worker() {
    let bench = Bench::with(|builder| builder.dispatch(Dispatch::Direct));
    let source = silent();
    let splice = source.splice_to(&bench.right[0], bench.options()).unwrap();
    source.end().append_rcv([Buf::copy_of(b"x")]);
    assert_eq!(splice.bytes(), 0);
    bench.run();
    assert_eq!(splice.bytes(), 1);
}

#[test]
fn a_direct_ring_lets_the_user_go() {
    let bench = Bench::with(|builder| builder.dispatch(Dispatch::Direct));
    let [a, b] = &bench.left;
    a.splice_to(b, bench.options()).unwrap();
    b.splice_to(a, bench.options()).unwrap();
    a.send(b"round").unwrap();
    let before = a.spliced() + b.spliced();
    for _ in 0..100 {
        assert!(bench.pool.run_one(), "the ring never rests");
    }
    assert!(a.spliced() + b.spliced() > before);
}

#[test]
fn the_thread_of_a_pass_can_end_its_splice() {
    let bench = Bench::new();
    let slot = Arc::new(Mutex::<Option<Socket>, LEAF>::new(None));
    let (sender, ends) = mpsc::channel();
    let in_pass = slot.clone();
    let sink = scripted(
        SoState::Stream,
        move |_| {
            let source = in_pass.lock().take();
            sender.send(source.map(|source| source.unsplice())).unwrap();
        },
        |_| {},
    );
    sink.end().connected();
    let splice = bench.left[1].splice_to(&sink, bench.options()).unwrap();
    *slot.lock() = Some(bench.left[1].clone());
    bench.left[0].send(b"x").unwrap();
    bench.run();
    let end = ends.recv().unwrap().unwrap().unwrap();
    assert_eq!((end.cause, end.bytes), (Cause::Unspliced, 1));
    assert_eq!(splice.wait(), end);
}

#[test]
fn the_thread_of_a_pass_can_close_the_source() {
    let Bench {
        pool,
        left: [l0, l1],
        ..
    } = Bench::new();
    let slot = Arc::new(Mutex::<Option<Socket>, LEAF>::new(None));
    let in_pass = slot.clone();
    let close = move |_: &SocketEnd| {
        let source = in_pass.lock().take();
        drop(source);
    };
    let sink = scripted(SoState::Stream, close, |_| {});
    sink.end().connected();
    let options = Options {
        pool: Some(pool.clone()),
        ..Options::default()
    };
    let splice = l1.splice_to(&sink, options).unwrap();
    *slot.lock() = Some(l1);
    l0.send(b"x").unwrap();
    while pool.run_one() {}
    assert_eq!(splice.wait().cause, Cause::SourceClosed);
    assert_eq!(read(&l0).unwrap(), b"");
}

#[test]
fn a_socket_can_be_spliced_to_itself() {
    let bench = Bench::new();
    let [user, echo] = &bench.left;
    echo.splice_to(echo, bench.options()).unwrap();
    user.send(b"echo").unwrap();
    bench.run();
    assert_eq!(read(user).unwrap(), b"echo");
    user.shutdown(Shutdown::Write).unwrap();
    bench.run();
    assert_eq!(echo.unsplice().unwrap_err().errno(), 57);
}

#[test]
fn what_cannot_be_spliced() {
    let bench = Bench::new();
    let good = &bench.left[1];
    for (state, error, errno) in [
        (
            SoState::Listening,
            SpliceError::Listening as fn(Role) -> SpliceError,
            22,
        ),
        (SoState::Unconnected, SpliceError::NotConnected, 57),
        (SoState::NotAStream, SpliceError::NotAStream, 43),
    ] {
        let bad = scripted(state, |_| {}, |_| {});
        let as_source = bad.splice_to(good, bench.options()).unwrap_err();
        let as_sink = good.splice_to(&bad, bench.options()).unwrap_err();
        assert_eq!(
            [as_source, as_sink],
            [error(Role::Source), error(Role::Sink)]
        );
        assert_eq!(as_sink.errno(), errno);
    }
    let dead = &bench.right[0];
    bench.right[1].abort();
    let as_source = dead.splice_to(good, bench.options()).unwrap_err();
    let as_sink = good.splice_to(dead, bench.options()).unwrap_err();
    assert_eq!(as_source, SpliceError::NotConnected(Role::Source));
    assert_eq!(as_sink, SpliceError::NotConnected(Role::Sink));
    assert_eq!(bench.pool.stats().started, 0);
}

#[test]
fn a_reader_of_a_spliced_source_takes_what_is_there() {
    let bench = Bench::new();
    let splice = bench.splice();
    bench.left[0].send(b"abcdef").unwrap();
    let mut two = [0; 2];
    assert_eq!(bench.left[1].recv(&mut two).unwrap(), 2);
    bench.run();
    assert_eq!(read(&bench.right[1]).unwrap(), b"cdef");
    assert_eq!(splice.bytes(), 4, "what a reader takes is not counted");
}

#[test]
fn messages_say_what_would_be_right() {
    assert_eq!(
        SpliceError::Busy(Role::Sink).to_string(),
        "the sink is already the sink of a splice, unsplice that one first"
    );
}
