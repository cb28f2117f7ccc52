//! `defect_n` is row n of the list of suspected defects in FreeBSD's implementation.

use super::*;

// Row: EOF that arrives while a pass runs | may be lost until the next event | not lost | not
// lost
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

// Row: the sink is shut down while a pass runs | may be lost until the next event | not lost |
// not lost
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

// Row: EOF while the sink is full | ends with bytes left on the source | drains first | drains
// first
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

// Row: bytes wait and the sink is shut down, reset or failed | they are taken and lost | they
// stay on the source | they stay on the source
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

// Row: bytes for a sink that still connects | taken and lost | held | held
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

// Row: `SO_SNDBUF` of the sink is lowered | bytes may be lost | takes what fits | takes what fits
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

// Row: a second, failing set-up | resets the counter and extends the limit | changes nothing |
// changes nothing
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

// Row: a reader sleeps on the source when it is spliced | stalls the worker | sleeps until the
// end | sleeps until the end, stalls nothing
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

// Row: an end without data on the source | poll may wait for ever | woken if readable
// | upcalls and pollers are always notified
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
        bench.left[1].add_rcv_upcall(Arc::new(Tell(sender.clone())));
        bench.right[0].add_snd_upcall(Arc::new(Tell(sender)));
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

// Row: no workers | `ENXIO`, but success for a loser of the race | - | `ENXIO` for everyone
#[test]
fn defect_8_a_disabled_pool_fails_for_everyone() {
    let bench = Bench::with(|builder| builder.workers(0));
    for _ in 0..2 {
        let error = bench.left[1]
            .splice_to(&bench.right[0], bench.options())
            .unwrap_err();
        assert_eq!(error, SpliceError::PoolDisabled);
    }
}

// Row: number of threads | one per processor, `num_wq` only selects | one | as many as asked for
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

// Row: a timer fires while a pass runs | waits for it, on a thread that all share | waits for the buffer
// | does not wait
#[test]
fn defect_10_a_timer_never_waits_for_a_pass() {
    let bench = Bench::new();
    let (pool, clock) = (bench.pool.clone(), bench.clock.clone());
    let fire = move |_: &SocketEnd| {
        clock.advance(1000);
        while pool.run_one() {}
    };
    let sink = scripted(SoState::Stream, fire, |_| {});
    sink.end().connected();
    let options = Options {
        lifetime: Some(Duration::from_secs(1)),
        ..bench.options()
    };
    let splice = bench.left[1].splice_to(&sink, options).unwrap();
    bench.left[0].send(b"in a pass").unwrap();
    bench.run();
    let end = splice.wait();
    assert_eq!((end.cause, end.bytes), (Cause::Lifetime, 9));
}

// Row: timeouts out of range | accepted | `EINVAL` | `EINVAL`
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

// Row: a late timer of an old splice | may end the new one | does nothing | does nothing
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
