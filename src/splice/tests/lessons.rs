//! Faults that FreeBSD and OpenBSD fixed after their first versions, named by the version or the date
//! of the fix.
//!
//! The fix of 2024-07 about the lock for moving datagrams has no test here, since there are no
//! datagrams; that of 2013 (a limit can be distinguished from end of file) is in the conformance suite,
//! too.

use super::*;
use std::sync::atomic::{AtomicBool, AtomicUsize};

fn pair(hiwat: usize) -> [Socket; 2] {
    let (a, b) = local::pair_with_hiwat(hiwat, hiwat);
    [a, b].map(|socket| {
        socket.set_nonblocking(true);
        socket
    })
}

/// A pool with threads.
fn threads(workers: usize) -> Options {
    Options {
        pool: Some(SplicePool::builder().workers(workers).build()),
        ..Options::default()
    }
}

/// Numbers that do not repeat within a test.
fn stream(count: usize) -> Vec<u8> {
    let numbers = 0..u32::try_from(count / 4).unwrap();
    numbers.flat_map(u32::to_be_bytes).collect()
}

/// Sends all bytes as there is room.
fn flood(client: &Socket, bytes: &[u8]) {
    client.set_nonblocking(false);
    let mut sent = 0;
    while sent < bytes.len() {
        sent += client.send(&bytes[sent..]).unwrap();
    }
}

/// Reads this many bytes, waiting for them.
fn all(server: &Socket, count: usize) -> Vec<u8> {
    server.set_nonblocking(false);
    let mut got = Vec::new();
    while got.len() < count {
        got.extend(server.recv_chain(count - got.len()).unwrap().to_vec());
    }
    got
}

// Row: a splice that is being set up | was visible to wake-ups before it had a sink (14.2) | two
// races until 2012 | is on both buffers at once
#[test]
fn lesson_15_0_a_half_built_splice_is_not_visible() {
    let ([client, source], [sink, server]) = (pair(1000), pair(1000));
    let bytes = stream(200_000);
    let over = AtomicBool::new(false);
    let options = threads(1);
    thread::scope(|scope| {
        scope.spawn(|| flood(&client, &bytes));
        scope.spawn(|| {
            // Contention between taking the two locks.
            while !over.load(Ordering::SeqCst) {
                let snd = sink.end().snd();
                thread::yield_now();
                drop(snd);
            }
        });
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                let rcv = source.end().rcv();
                let snd = sink.end().snd();
                assert_eq!(rcv.is_diverted(), snd.is_diverted());
            }
        });
        let reader = scope.spawn(|| all(&server, bytes.len()));
        while !reader.is_finished() {
            let splice = source.splice_to(&sink, options.clone()).unwrap();
            splice.unsplice().unwrap();
        }
        over.store(true, Ordering::SeqCst);
        assert!(reader.join().unwrap() == bytes);
    });
}

// Row: the check of the sink fails | left an object behind that a worker might hold (14.2) | - |
// nothing was touched yet
#[test]
fn lesson_15_0_a_check_of_the_sink_that_fails_leaves_the_source_alone() {
    let options = threads(2);
    let sources = [pair(1000), pair(1000)];
    let [sink, server] = pair(1000);
    for round in 0..200 {
        let barrier = std::sync::Barrier::new(2);
        let race = |source: &Socket| {
            barrier.wait();
            source.splice_to(&sink, options.clone())
        };
        let results = thread::scope(|scope| {
            let threads = sources.each_ref().map(|[client, source]| {
                client.send(b"x").unwrap();
                scope.spawn(|| race(source))
            });
            threads.map(|thread| thread.join().unwrap())
        });
        let winner = results.iter().position(Result::is_ok).unwrap();
        let [loser_client, loser] = &sources[1 - winner];
        assert_eq!(
            results[1 - winner].as_ref().unwrap_err(),
            &SpliceError::Busy(Role::Sink)
        );
        assert!(!loser.end().rcv().is_diverted(), "round {round}");
        assert_eq!(read(loser).unwrap(), b"x");
        assert_eq!(loser_client.send(b"y").unwrap(), 1);
        assert_eq!(read(loser).unwrap(), b"y");
        results[winner].as_ref().unwrap().unsplice().unwrap();
        assert_eq!(all(&server, 1), b"x");
    }
}

// Row: unsplice while another thread sets up | `ENOTCONN` | waits for the buffer lock | finds the
// splice, or none
#[test]
fn lesson_15_0_unsplice_races_with_set_up() {
    let ([client, source], [sink, server]) = (pair(1000), pair(1000));
    let options = threads(1);
    let bytes = stream(100_000);
    let ended = AtomicUsize::new(0);
    let started = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| flood(&client, &bytes));
        let reader = scope.spawn(|| all(&server, bytes.len()));
        let unsplicer = scope.spawn(|| {
            while !reader.is_finished() {
                let result = source.unsplice();
                ended.fetch_add(usize::from(result.is_ok()), Ordering::SeqCst);
            }
            reader.join().unwrap()
        });
        while !unsplicer.is_finished() {
            match source.splice_to(&sink, options.clone()) {
                Ok(_) => started.fetch_add(1, Ordering::SeqCst),
                Err(error) => {
                    // The sink: the splice may have ended between the two checks.
                    let busy = [Role::Source, Role::Sink].map(SpliceError::Busy);
                    assert!(busy.contains(&error), "{error}");
                    0
                }
            };
        }
        assert!(unsplicer.join().unwrap() == bytes);
    });
    let last = usize::from(source.unsplice().is_ok());
    assert_eq!(
        ended.into_inner() + last,
        started.into_inner(),
        "each is ended once"
    );
}

// Row: one, two or many workers, and none | a queue for each processor id, with holes (14.2) | one
// | any number
#[test]
fn lesson_15_0_any_number_of_workers() {
    for workers in [1, 2, 7] {
        let options = threads(workers);
        let pairs: Vec<_> = (0..20).map(|_| (pair(1000), pair(1000))).collect();
        for ([client, source], [sink, _]) in &pairs {
            source.splice_to(sink, options.clone()).unwrap();
            client.send(b"served").unwrap();
        }
        for (_, [_, server]) in &pairs {
            assert_eq!(all(server, 6), b"served");
        }
    }
    let [_, source] = pair(1000);
    let none = source.splice_to(&source, threads(0));
    assert_eq!(none.unwrap_err(), SpliceError::PoolDisabled);
}

// Row: sockets with KTLS | taken for plain streams (14.2), then `EINVAL` | - | `EINVAL`
#[test]
fn lesson_15_0_encrypted_sockets_are_refused() {
    let bench = Bench::new();
    let tls = scripted(SoState::Encrypted, |_| {}, |_| {});
    tls.end().connected();
    let as_source = tls.splice_to(&bench.right[0], bench.options());
    let as_sink = bench.left[1].splice_to(&tls, bench.options());
    let errors = [as_source.unwrap_err(), as_sink.unwrap_err()];
    assert_eq!(
        errors,
        [Role::Source, Role::Sink].map(SpliceError::Encrypted)
    );
    assert!(
        errors
            .iter()
            .all(|error| error.errno(Flavor::FreeBsd) == Errno::EINVAL)
    );
}

// Row: bytes are queued, more arrive during the set-up | - | two races until 2012 | none is lost,
// none comes twice
#[test]
fn lesson_2011_bytes_arrive_during_set_up() {
    let options = threads(1);
    for _ in 0..100 {
        let ([client, source], [sink, server]) = (pair(10_000), pair(10_000));
        let bytes = stream(8000);
        client.send(&bytes[..400]).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| flood(&client, &bytes[400..]));
            let splice = source.splice_to(&sink, options.clone()).unwrap();
            assert!(splice.bytes() >= 400, "in the call");
            assert!(all(&server, bytes.len()) == bytes);
        });
    }
}

// Row: a limit and end of file | 0 for both | `EFBIG` and 0 since 2013 | `Cause::Limit` and
// `Cause::Eof`
#[test]
fn lesson_2013_a_limit_can_be_told_from_the_end_of_file() {
    for (limit, expected) in [(4, Cause::Limit), (5, Cause::Eof)] {
        let bench = Bench::new();
        let splice = bench.splice_with(Options {
            limit: Some(limit),
            ..bench.options()
        });
        bench.left[0].send(b"four").unwrap();
        bench.left[0].shutdown(Shutdown::Write).unwrap();
        bench.run();
        assert_eq!((cause(&splice), splice.bytes()), (Some(expected), 4));
    }
}

// Row: many small pieces before a pass | moved one by one in the wake-up | so until tasks came |
// one pass, and a check
#[test]
fn lesson_1_133_wakeups_are_batched() {
    let bench = Bench::new();
    let splice = bench.splice();
    let before = bench.pool.stats().passes;
    for _ in 0..50 {
        bench.left[0].send(b"x").unwrap();
    }
    bench.run();
    assert_eq!(splice.bytes(), 50);
    // The second one is for a wake-up during the first.
    assert!(bench.pool.stats().passes - before <= 2);
}

// Row: rings of one, two and several splices | go round for ever | endless until 2016, then `ELOOP`
// | by flavor
#[test]
fn lesson_2016_rings_end() {
    for count in [1, 2, 5] {
        let bench = Bench::new();
        let pairs: Vec<_> = (0..count).map(|_| pair(HIWAT)).collect();
        let mut splices = Vec::new();
        for (at, [_, source]) in pairs.iter().enumerate() {
            let sink = &pairs[(at + 1) % count][0];
            source.set_flavor(Flavor::OpenBsd);
            splices.push(source.splice_to(sink, bench.options()).unwrap());
        }
        pairs[0][0].send(b"foo").unwrap();
        bench.run();
        let ended: Vec<_> = splices.iter().filter_map(Splice::end).collect();
        assert_eq!(ended.len(), 1);
        assert_eq!((ended[0].cause, ended[0].residual), (Cause::Loop, 3));
        let passed: u64 = splices.iter().map(Splice::bytes).sum();
        assert_eq!(passed, 3 * 128);
    }
}

// Row: a chain of 127, 128 and 129 splices | passes | `ELOOP` at the 129th | by flavor
#[test]
fn lesson_2021_chains_of_127_to_129() {
    for (flavor, count, arrives) in [
        (Flavor::OpenBsd, 127, true),
        (Flavor::OpenBsd, 128, true),
        (Flavor::OpenBsd, 129, false),
        (Flavor::FreeBsd, 200, true),
    ] {
        let bench = Bench::new();
        let pairs: Vec<_> = (0..=count).map(|_| pair(HIWAT)).collect();
        let splices: Vec<_> = pairs
            .windows(2)
            .map(|two| {
                two[0][1].set_flavor(flavor);
                two[0][1].splice_to(&two[1][0], bench.options()).unwrap()
            })
            .collect();
        pairs[0][0].send(b"foo").unwrap();
        bench.run();
        let server = &pairs[count][1];
        if arrives {
            assert_eq!(read(server).unwrap(), b"foo");
        } else {
            assert_eq!(read(server), Err(ErrorKind::WouldBlock));
            assert_eq!(cause(&splices[128]), Some(Cause::Loop));
            assert_eq!(read(&pairs[128][1]).unwrap(), b"foo");
        }
    }
}

// Row: a chain of direct splices | - | recursed without bound (2020) | no deeper than one
#[test]
fn lesson_2020_03_wakeups_do_not_recurse() {
    const LINKS: usize = 200;
    let bench = Bench::with(|builder| builder.dispatch(Dispatch::Direct));
    let (depth, deepest) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let sources: Vec<_> = (0..=LINKS).map(|_| silent()).collect();
    let mut sinks = Vec::new();
    for two in sources.windows(2) {
        // Its output hands the bytes to the next source, in the same thread.
        let next = two[1].end().clone();
        let (depth, deepest) = (depth.clone(), deepest.clone());
        let hand_on = move |end: &SocketEnd| {
            let now = 1 + depth.fetch_add(1, Ordering::SeqCst);
            deepest.fetch_max(now, Ordering::SeqCst);
            let bytes = {
                let mut snd = end.snd();
                let count = snd.buf.len();
                snd.buf.take(count)
            };
            next.append_rcv_chain(bytes);
            depth.fetch_sub(1, Ordering::SeqCst);
        };
        let sink = scripted(SoState::Stream, hand_on, |_| {});
        sink.end().connected();
        two[0].splice_to(&sink, bench.options()).unwrap();
        sinks.push(sink);
    }
    run_list::scope(Budget::DRIVER, || {
        sources[0].end().append_rcv([Buf::copy_of(b"foo")]);
    });
    assert_eq!(read(&sources[LINKS]).unwrap(), b"foo");
    assert_eq!(deepest.load(Ordering::SeqCst), 1);
}

/// A protocol whose last reference may not be dropped under a lock.
#[derive(Debug)]
struct Picky;

impl Drop for Picky {
    fn drop(&mut self) {
        crate::lock::assert_none_held();
    }
}

impl Protocol for Picky {
    fn output(&self) {}
    fn rcvd(&self, _idle: bool) {}
    fn abort(&self) {}
    fn detach(&self) {}
    fn name(&self) -> &'static str {
        "picky"
    }
}

// Row: the last reference to a socket goes with its splice | - | dropped under a lock, a deadlock
// (2020) | dropped under none
#[test]
fn lesson_2020_04_no_last_reference_is_dropped_under_a_lock() {
    let picky = || {
        let end = SocketEnd::new(HIWAT, HIWAT);
        end.connected();
        let socket = Socket::new(end, Arc::new(Picky));
        socket.set_nonblocking(true);
        socket
    };
    type EndIt = fn(&Socket, &Socket, &Bench);
    let ways: [EndIt; 6] = [
        |source, _, _| assert!(source.unsplice().is_ok()),
        |source, _, bench| {
            source.end().append_rcv([Buf::copy_of(b"limit")]);
            bench.run();
        },
        |source, _, bench| {
            source.end().cantrcvmore();
            bench.run();
        },
        |_, sink, bench| {
            sink.end().set_error(SoError::ConnectionReset);
            sink.end().cantsendmore();
            bench.run();
        },
        |_, _, bench| {
            bench.clock.advance(1000);
            bench.run();
        },
        |_, _, _| {},
    ];
    for end_it in ways {
        let bench = Bench::new();
        let (source, sink) = (picky(), picky());
        let protocols = [&source, &sink].map(|socket| Arc::downgrade(socket.protocol()));
        let options = Options {
            limit: Some(5),
            lifetime: Some(Duration::from_secs(1)),
            ..bench.options()
        };
        let splice = source.splice_to(&sink, options).unwrap();
        end_it(&source, &sink, &bench);
        drop((source, sink));
        assert!(splice.is_ended());
        bench.run();
        assert!(protocols.iter().all(|it| it.upgrade().is_none()));
    }
}

// Row: the sink is closed while a set-up fails | - | a deadlock (2020) | both get their answer
#[test]
fn lesson_2020_04_the_sink_is_closed_while_it_fails() {
    let options = threads(1);
    for _ in 0..200 {
        let ([client, source], [sink, server]) = (pair(HIWAT), pair(HIWAT));
        client.send(b"stays or goes").unwrap();
        let options = options.clone();
        let result = thread::scope(|scope| {
            let result = scope.spawn({
                let (sink, source) = (sink.clone(), &source);
                move || source.splice_to(&sink, options)
            });
            server.abort();
            drop(sink);
            result.join().unwrap()
        });
        match result {
            Err(error) => assert_eq!(error, SpliceError::NotConnected(Role::Sink)),
            Ok(splice) => assert!(splice.wait().bytes <= 13),
        }
        let moved = usize::try_from(source.spliced()).unwrap();
        assert_eq!(moved + source.readable_bytes(), 13);
    }
}

// Row: a stream with something else | `EPROTONOSUPPORT` | compared too late, a panic (2020) |
// `EPROTONOSUPPORT` before anything is touched
#[test]
fn lesson_2020_06_the_kind_is_compared_before_anything_is_touched() {
    let bench = Bench::new();
    let splice = bench.splice();
    bench.left[0].send(b"seven b").unwrap();
    bench.run();
    let other = scripted(SoState::NotAStream, |_| {}, |_| {});
    // A busy source too: the kind comes first.
    for flavor in [Flavor::FreeBsd, Flavor::OpenBsd] {
        bench.left[1].set_flavor(flavor);
        let error = bench.left[1].splice_to(&other, bench.options());
        assert_eq!(error.unwrap_err(), SpliceError::NotAStream(Role::Sink));
    }
    assert!(!other.end().snd().is_diverted());
    assert_eq!((splice.bytes(), splice.end()), (7, None));
    assert_eq!(bench.left[1].spliced(), 7);
    assert_eq!(bench.pool.stats().started, 1);
}

// Row: reads while the splice is being set up | - | not serialised until 2024 | each byte goes one
// way
#[test]
fn lesson_2024_07_reads_during_set_up() {
    let ([client, source], [sink, server]) = (pair(1000), pair(1000));
    let bytes = stream(100_000);
    let over = AtomicBool::new(false);
    let taken = Mutex::<Vec<u8>, LEAF>::new(Vec::new());
    let options = threads(1);
    let through = thread::scope(|scope| {
        scope.spawn(|| flood(&client, &bytes));
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                let got = read(&source).unwrap_or_default();
                taken.lock().extend(got);
            }
        });
        let mut through = Vec::new();
        while through.len() + taken.lock().len() < bytes.len() {
            drop(source.splice_to(&sink, options.clone()));
            source.unsplice().ok();
            through.extend(read(&server).unwrap_or_default());
        }
        over.store(true, Ordering::SeqCst);
        through
    });
    // The same bytes, over both ways.
    let mut both = [through, taken.lock().clone()].concat();
    let mut sent = bytes.clone();
    both.sort_unstable();
    sent.sort_unstable();
    assert!(both == sent, "a byte is lost or duplicated");
}

// Row: a socket is closed by the thread that runs its splice | - | waited for itself (2025) | does not wait
#[test]
fn lesson_2025_07_close_inside_the_worker() {
    let options = threads(1);
    let ([client, source], [sink, server]) = (pair(HIWAT), pair(HIWAT));
    let ([near, echo], [other_sink, far]) = (pair(HIWAT), pair(HIWAT));
    let beside = echo.splice_to(&other_sink, options.clone()).unwrap();
    let splice = source.splice_to(&sink, options.clone()).unwrap();
    let (sender, names) = mpsc::channel();
    let sockets = (source, sink, echo, other_sink);
    splice.on_end(move |_| {
        // Closes its own sockets, and those of another splice of this worker.
        drop(sockets);
        let name = thread::current().name().map(str::to_owned);
        sender.send(name).unwrap();
    });
    client.shutdown(Shutdown::Write).unwrap();
    let name = names.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(name.as_deref(), Some("so_splice:0"));
    assert_eq!(splice.wait().cause, Cause::Eof);
    assert_eq!(beside.wait().cause, Cause::SourceClosed);
    for end in [client, server, near, far] {
        assert_eq!(read(&end).unwrap(), b"");
    }
}

// Row: many checks of a packet that cannot go on | - | counted as hops until 2026 | only moves count
#[test]
fn lesson_2026_looks_are_no_hops() {
    let bench = Bench::new();
    bench.left[1].set_flavor(Flavor::OpenBsd);
    let splice = bench.splice();
    for _ in 0..3 {
        bench.left[0].send(&[7; HIWAT]).unwrap();
        bench.run();
    }
    let before = bench.pool.stats().passes;
    for _ in 0..300 {
        bench.right[0].set_snd_lowat(HIWAT);
        bench.run();
    }
    assert!(bench.pool.stats().passes - before >= 300, "it has looked");
    let mut got = 0;
    while got < 3 * HIWAT {
        got += read(&bench.right[1]).unwrap().len();
        bench.run();
    }
    assert_eq!((splice.end(), bench.left[1].take_error()), (None, None));
}

// Row: unsplice of a socket that is not spliced | `ENOTCONN` | `EPROTO`; 0 until 2025 | by flavor
#[test]
fn lesson_2025_unsplice_of_an_unspliced_socket_fails() {
    let bench = Bench::new();
    let error = bench.left[1].unsplice().unwrap_err();
    assert_eq!(error, UnspliceError::NotSpliced);
    assert_eq!(error.errno(Flavor::FreeBsd), Errno::ENOTCONN);
    assert_eq!(error.errno(Flavor::OpenBsd), Errno::EPROTO);
}

// Row: idle times of 2^31, 2^32 and 2^62 seconds | accepted | refused by a binding until 2021 |
// accepted
#[test]
fn lesson_2021_01_long_idle_times() {
    for seconds in [1 << 31, 1 << 32, 1 << 62] {
        let bench = Bench::new();
        let time = Some(Duration::from_secs(seconds));
        let splice = bench.splice_with(Options {
            idle: time,
            lifetime: time,
            ..bench.options()
        });
        bench.clock.advance(1000 * 60 * 60 * 24 * 365);
        bench.left[0].send(b"after a year").unwrap();
        bench.run();
        assert_eq!((splice.bytes(), splice.end()), (12, None));
    }
}
