//! The documented behaviour of splices.

use super::*;

/// A protocol with a receive queue.
#[derive(Debug)]
struct Queued(Option<usize>);

impl Protocol for Queued {
    fn output(&self) {}
    fn rcvd(&self, _idle: bool) {}
    fn abort(&self) {}
    fn detach(&self) {}
    fn name(&self) -> &'static str {
        "queued"
    }
    fn queue(&self) -> Option<usize> {
        self.0
    }
}

#[test]
fn a_splice_goes_to_the_worker_of_its_receiving_thread() {
    let pool = SplicePool::builder().workers(3).manual().build();
    let party = |queue| Endpoint {
        end: SocketEnd::new(1, 1),
        protocol: Arc::new(Queued(queue)),
    };
    let worker = |source, sink| task::worker_for(pool.shared(), &party(source), &party(sink));
    for queue in 0..10 {
        assert_eq!(worker(Some(queue), Some(queue)), queue % 3);
        assert_eq!(worker(Some(queue), Some(queue + 1)), queue % 3);
    }
    // Without known queues the next worker in turn is used.
    let next = [(Some(7), None), (None, Some(7)), (None, None)];
    assert_eq!(next.map(|(source, sink)| worker(source, sink)), [0, 1, 2]);
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

/// Bytes postpone the end without re-arming the timer, which fires too early and is set again.
#[test]
fn a_timer_that_fires_too_early_is_armed_again() {
    let bench = Bench::new();
    let splice = bench.splice_with(Options {
        idle: Some(Duration::from_secs(1)),
        ..bench.options()
    });
    bench.clock.advance(600);
    bench.left[0].send(b"x").unwrap();
    bench.run();
    for (passes, expected) in [(400, None), (599, None), (1, Some(Cause::Idle))] {
        bench.clock.advance(passes);
        bench.run();
        assert_eq!(cause(&splice), expected, "{passes} ms");
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
        bench.pool.poll_at().map(|at| at > bench.clock.now()),
        Some(true)
    );
    bench.run();
    assert_eq!(cause(&splice), None);
    // Room and window updates do not count as bytes.
    bench.right[0].set_snd_lowat(1);
    bench.clock.advance(1);
    bench.run();
    assert_eq!(cause(&splice), Some(Cause::Idle));
    assert_eq!(bench.pool.poll_at(), None);
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
        "space does not wake a splice without data"
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
    assert_eq!(passes(), before, "data does not wake a splice without room");
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
    assert!(!bench.pool.run_one(), "no work was left for a worker");
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
        assert!(bench.pool.run_one(), "the ring is never idle");
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
    assert_eq!(echo.unsplice().unwrap_err(), UnspliceError::NotSpliced);
}

#[test]
fn a_visible_end_has_its_error() {
    for _ in 0..1000 {
        let bench = Bench::new();
        bench.left[1].set_flavor(Flavor::OpenBsd);
        let splice = bench.splice_with(Options {
            limit: Some(1),
            ..bench.options()
        });
        bench.left[0].send(b"x").unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                while !splice.is_ended() {}
                let said = bench.left[1].take_error();
                assert_eq!(said, Some(SoError::SpliceLimit));
            });
            bench.run();
        });
    }
}

#[test]
fn sockets_that_cannot_be_spliced() {
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
        assert_eq!(as_sink.errno(Flavor::FreeBsd) as i32, errno);
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
fn a_reader_of_a_spliced_source_takes_queued_bytes() {
    let bench = Bench::new();
    let splice = bench.splice();
    bench.left[0].send(b"abcdef").unwrap();
    let mut two = [0; 2];
    assert_eq!(bench.left[1].recv(&mut two).unwrap(), 2);
    bench.run();
    assert_eq!(read(&bench.right[1]).unwrap(), b"cdef");
    assert_eq!(splice.bytes(), 4, "bytes taken by a reader are not counted");
}

/// Found by fuzzing: the splice waited for room, although its source had closed.
#[test]
fn a_reader_that_takes_the_last_bytes_of_a_stream_ends_the_splice() {
    let bench = Bench::new();
    let splice = bench.splice();
    while bench.left[0].send(&[7; HIWAT]).is_ok() {
        bench.run();
    }
    bench.left[0].shutdown(Shutdown::Write).unwrap();
    bench.run();
    assert_eq!(splice.bytes(), 2 * HIWAT as u64, "the sink is full");
    for bytes in [HIWAT, HIWAT] {
        assert_eq!(cause(&splice), None);
        assert_eq!(read(&bench.left[1]).unwrap().len(), bytes);
        bench.run();
    }
    assert_eq!(cause(&splice), Some(Cause::Eof));
}

#[test]
fn messages_name_the_remedy() {
    assert_eq!(
        SpliceError::Busy(Role::Sink).to_string(),
        "the sink is already the sink of a splice, unsplice that one first"
    );
}

#[test]
fn everything_is_notified_before_the_end_is_visible() {
    let pool = SplicePool::builder().workers(1).build();
    for _ in 0..500 {
        let bench = Bench::new();
        let (sender, heard) = mpsc::channel();
        bench.left[1].set_flavor(Flavor::OpenBsd);
        bench.right[0].add_snd_upcall(Arc::new(Tell(sender)));
        let ended = pool.stats().ended();
        // A timer ends it between two passes; the end of a pass would give it time.
        let splice = bench.splice_with(Options {
            lifetime: Some(Duration::from_micros(100)),
            pool: Some(pool.clone()),
            ..Options::default()
        });
        assert_eq!(splice.wait().cause, Cause::Lifetime);
        let error = bench.left[1].take_error();
        assert_eq!(error, Some(SoError::SpliceTimedOut));
        assert!(heard.try_iter().count() > 0);
        assert_eq!(pool.stats().ended(), ended + 1);
    }
}

#[test]
fn the_error_of_a_splice_replaces_none_of_the_connection() {
    let bench = Bench::new();
    bench.left[1].set_flavor(Flavor::OpenBsd);
    bench.left[0].send(b"123456").unwrap();
    bench.left[0].abort();
    let splice = bench.splice_with(Options {
        limit: Some(4),
        ..bench.options()
    });
    assert_eq!(cause(&splice), Some(Cause::Limit));
    let kept = bench.left[1].take_error();
    assert_eq!(kept, Some(SoError::ConnectionReset));
}

#[test]
fn a_waiter_for_the_end_finds_the_bytes_given_to_the_sink() {
    let bench = Bench::new();
    let slot = Arc::new(Mutex::<Option<Splice>, LEAF>::new(None));
    let (sender, seen) = mpsc::channel();
    let in_pass = slot.clone();
    let look = move |_: &SocketEnd| {
        let splice = in_pass.lock().take();
        if let Some(splice) = splice {
            let waited = splice.wait_timeout(Duration::ZERO);
            sender.send((splice.is_ended(), waited)).unwrap();
        }
    };
    let sink = scripted(SoState::Stream, look, |_| {});
    sink.end().connected();
    let options = Options {
        limit: Some(4),
        ..bench.options()
    };
    *slot.lock() = Some(bench.left[1].splice_to(&sink, options).unwrap());
    bench.left[0].send(b"four").unwrap();
    bench.run();
    assert_eq!(seen.recv().unwrap(), (true, None));
}

/// A datagram that is longer than what 10 ms allow waits for all of its bytes: the splice does not try again and again.
#[test]
fn a_rate_waits_for_a_whole_datagram() {
    let clock = Arc::new(TestClock {
        start: SystemClock.now(),
        millis: AtomicU64::new(0),
    });
    let pool = SplicePool::builder().workers(1).manual();
    let pool = pool.clock(clock.clone()).build();
    let ((a, b), (c, d)) = (local::datagram_pair(), local::datagram_pair());
    let rate = Rate {
        bytes_per_second: 1000.try_into().unwrap(),
        burst: 2000.try_into().unwrap(),
    };
    let options = Options::default().pool(pool.clone()).rate(rate);
    let splice = b.splice_to(&c, options.dispatch(Dispatch::Worker)).unwrap();
    for _ in 0..2 {
        a.send(&[7; 1400]).unwrap();
    }
    let mut turns = 0;
    while pool.run_one() {
        turns += 1;
        assert!(turns < 10, "it does not come to rest");
    }
    assert_eq!(
        (splice.bytes(), d.recv(&mut [0; 2000]).unwrap()),
        (1400, 1400)
    );
    // Of 1400 bytes 600 are there.
    let at = pool.poll_at().unwrap();
    assert_eq!(at - clock.now(), Duration::from_millis(800));
    clock.advance(800);
    while pool.run_one() {}
    assert_eq!(splice.bytes(), 2800);
}
