//! The program's view of spliced sockets: reads, writes, readiness, and the end.
//!
//! A source that is spliced is read differently in the two flavors; a sink can be written to in
//! both. Cases with sleeping threads are for real time.

use super::proxy::{Heard, Proxy, SMALL};
use super::{BOTH, Case, FREEBSD, OPENBSD, Outcome, RESETS, World};
use crate::error::SoError;
use crate::socket::Socket;
use crate::splice::{Cause, Options, Role};
use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "a read of the source that does not wait",
        behaviour: "a non-blocking read of the source while bytes are stuck there",
        freebsd: "takes them",
        openbsd: "`EWOULDBLOCK`, as if there were none",
        here: "by flavor",
        flavors: BOTH,
        run: read,
    },
    Case {
        name: "MSG_PEEK on the source",
        behaviour: "`MSG_PEEK` on the source while bytes are stuck there",
        freebsd: "shows them",
        openbsd: "`EWOULDBLOCK`",
        here: "by flavor",
        flavors: BOTH,
        run: peek,
    },
    Case {
        name: "a read that waits takes what is there",
        behaviour: "a blocking read of the source takes the bytes that are stuck there",
        freebsd: "",
        openbsd: "sleeps",
        here: "by flavor",
        flavors: FREEBSD,
        run: waiting_read_takes,
    },
    Case {
        name: "a read that waits sleeps until the splice has ended",
        behaviour: "a blocking read of the source sleeps until the splice has ended",
        freebsd: "takes them",
        openbsd: "",
        here: "by flavor",
        flavors: OPENBSD,
        run: waiting_read_sleeps,
    },
    Case {
        name: "a reader that slept before the splice was set",
        behaviour: "a reader that slept before sleeps on, and gets the remaining bytes at the end",
        freebsd: "set-up and worker wait for it",
        openbsd: "sleeps without a lock",
        here: "as OpenBSD",
        flavors: BOTH,
        run: sleeping_reader,
    },
    Case {
        name: "SO_RCVTIMEO of a reader of the source",
        behaviour: "`SO_RCVTIMEO` brings a reader of the source back in time",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: reader_with_timeout,
    },
    Case {
        name: "reads during set-up",
        behaviour: "reads during set-up: each byte goes to the reader or to the sink, once",
        freebsd: "",
        openbsd: "not serialised until 2024",
        here: "serialised",
        flavors: BOTH,
        run: reads_during_setup,
    },
    Case {
        name: "end of file is read after the end only",
        behaviour: "a read after the source's end of file, while bytes are stuck",
        freebsd: "a read takes the bytes",
        openbsd: "`EWOULDBLOCK`: the end of file comes after the bytes",
        here: "by flavor",
        flavors: BOTH,
        run: eof_behind_stuck_bytes,
    },
    Case {
        name: "a write to the sink",
        behaviour: "a write to the sink goes between the bytes of the splice, whole",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: write,
    },
    Case {
        name: "a write to a full sink that does not wait",
        behaviour: "a non-blocking write to a full sink: `EWOULDBLOCK`, and later it goes",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: write_to_full_sink,
    },
    Case {
        name: "a writer that slept before the splice was set",
        behaviour: "a writer that slept before shares the room that comes with the splice",
        freebsd: "set-up and worker wait for it",
        openbsd: "sleeps without a lock",
        here: "as OpenBSD",
        flavors: BOTH,
        run: sleeping_writer,
    },
    Case {
        name: "FIONREAD",
        behaviour: "`FIONREAD` counts the bytes that are stuck on the source, and those on the sink",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: readable_bytes,
    },
    Case {
        name: "readiness of the source",
        behaviour: "readiness of the source is not reported, nor end of file; reported at the end",
        freebsd: "`kevent` so; `poll` reports end of file",
        openbsd: "reported at the end if readable",
        here: "always reported at the end",
        flavors: BOTH,
        run: readiness_of_source,
    },
    Case {
        name: "readiness of the sink",
        behaviour: "readiness of the sink is not reported; reported at the end",
        freebsd: "",
        openbsd: "reported at the end if writable",
        here: "always reported at the end",
        flavors: BOTH,
        run: readiness_of_sink,
    },
    Case {
        name: "the other directions are as ever",
        behaviour: "reads of the sink and writes of the source, and their readiness, are as ever",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: other_directions,
    },
    Case {
        name: "every end can be seen on both sockets",
        behaviour: "every end is reported to upcalls of both sockets, for every cause",
        freebsd: "not where the source has no data",
        openbsd: "by `so_error`",
        here: "and `splice_end` has the cause",
        flavors: BOTH,
        run: every_end_is_reported,
    },
    Case {
        name: "a sleeping reader wakes at every end",
        behaviour: "a sleeping reader of the source wakes at every end, for every cause",
        freebsd: "not where the source has no data",
        openbsd: "by `so_error`",
        here: "it is woken; without anything to read it sleeps on",
        flavors: BOTH,
        run: sleeper_wakes,
    },
    Case {
        name: "splice_end of both roles",
        behaviour: "a socket reports how its latest splice has ended; nothing while one lasts",
        freebsd: "cannot be asked",
        openbsd: "cannot be asked",
        here: "`Socket::splice_end`",
        flavors: BOTH,
        run: splice_end,
    },
];

const REAL: Outcome = Outcome::NotApplicable("real time");

/// The result of a sleeping thread, which must return long before its own timeout ([`patient`]).
#[track_caller]
fn back<T>(world: &World<'_>, sleeper: thread::ScopedJoinHandle<'_, T>) -> T {
    world.until("the sleeper is back", || sleeper.is_finished());
    sleeper.join().expect("no panic")
}

/// Sets a read timeout longer than the case waits.
fn patient(socket: &Socket) {
    let long = Some(Duration::from_secs(120));
    socket.set_read_timeout(long).expect("not zero");
}

/// A splice with bytes stuck on its source, and the sent bytes.
fn stuck(world: &World<'_>) -> (Proxy, Vec<u8>) {
    let proxy = world.proxy_with(SMALL);
    proxy.splice(world);
    let sent = world.stall(&proxy);
    (proxy, sent)
}

/// Ends the splice and asserts that the remaining bytes can be read from the source.
#[track_caller]
fn assert_rest(world: &World<'_>, proxy: &Proxy, sent: &[u8]) {
    let end = proxy.source.unsplice().expect("it is stalled");
    let moved = usize::try_from(end.bytes).expect("fits");
    let rest = world.receive(&proxy.source, sent.len() - moved);
    assert!(rest == sent[moved..], "the remaining bytes differ");
    assert!(world.receive(&proxy.server, moved) == sent[..moved]);
}

fn read(world: &World<'_>) -> Outcome {
    let (proxy, sent) = stuck(world);
    let moved = usize::try_from(proxy.source.spliced()).expect("fits");
    let got = world.try_read(&proxy.source);
    match world.by_flavor(true, false) {
        true => {
            let got = got.expect("bytes are there");
            assert!(!got.is_empty() && sent[moved..].starts_with(&got));
        }
        false => {
            assert_eq!(got, Err(ErrorKind::WouldBlock));
            assert_rest(world, &proxy, &sent);
        }
    }
    Outcome::Passed
}

fn peek(world: &World<'_>) -> Outcome {
    let (proxy, sent) = stuck(world);
    let moved = usize::try_from(proxy.source.spliced()).expect("fits");
    proxy.source.set_nonblocking(true);
    let mut bytes = [0; 10];
    let got = proxy.source.peek(&mut bytes).map_err(|error| error.kind());
    assert_eq!(got, world.by_flavor(Ok(10), Err(ErrorKind::WouldBlock)));
    if got.is_ok() {
        assert_eq!(bytes, sent[moved..][..10]);
    }
    proxy.source.set_nonblocking(world.is_virtual());
    assert_rest(world, &proxy, &sent);
    Outcome::Passed
}

fn waiting_read_takes(world: &World<'_>) -> Outcome {
    if world.is_virtual() {
        return REAL;
    }
    let (proxy, sent) = stuck(world);
    let moved = usize::try_from(proxy.source.spliced()).expect("fits");
    let mut bytes = [0; 10];
    assert_eq!(proxy.source.recv(&mut bytes).expect("bytes are there"), 10);
    assert_eq!(bytes, sent[moved..][..10]);
    Outcome::Passed
}

fn waiting_read_sleeps(world: &World<'_>) -> Outcome {
    if world.is_virtual() {
        return REAL;
    }
    let (proxy, sent) = stuck(world);
    let woken = AtomicBool::new(false);
    patient(&proxy.source);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let bytes = proxy.source.recv_chain(10).expect("bytes at the end");
            woken.store(true, Ordering::SeqCst);
            bytes.to_vec()
        });
        world.settle();
        assert!(!woken.load(Ordering::SeqCst));
        let end = proxy.source.unsplice().expect("it is stalled");
        let moved = usize::try_from(end.bytes).expect("fits");
        assert_eq!(back(world, reader), sent[moved..][..10]);
    });
    Outcome::Passed
}

fn sleeping_reader(world: &World<'_>) -> Outcome {
    if world.is_virtual() {
        return REAL;
    }
    let proxy = world.proxy();
    let taken = AtomicUsize::new(0);
    patient(&proxy.source);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let bytes = proxy.source.recv_chain(5).expect("bytes at the end");
            taken.store(bytes.len(), Ordering::SeqCst);
            bytes.to_vec()
        });
        world.settle();
        let splice = proxy.splice(world);
        let sent = b"by the splice";
        world.send(&proxy.client, sent);
        // A late thread is not asleep yet: then FreeBSD's reader takes some bytes.
        let taken = || taken.load(Ordering::SeqCst);
        world.until("all have come somewhere", || {
            splice.bytes() + taken() as u64 == sent.len() as u64
        });
        let other = world.proxy();
        other.splice(world);
        world.exchange(&other.client, &other.server, b"nobody is stalled");
        assert!(proxy.source.unsplice().is_ok());
        let early = taken();
        assert!(early == 0 || world.by_flavor(true, false));
        if early == 0 {
            world.send(&proxy.client, b"later");
        }
        let got = back(world, reader);
        assert!(got == b"later" || early > 0 && sent.starts_with(&got));
        assert_eq!(
            world.receive(&proxy.server, sent.len() - early),
            sent[early..]
        );
    });
    Outcome::Passed
}

fn reader_with_timeout(world: &World<'_>) -> Outcome {
    if world.is_virtual() {
        return REAL;
    }
    let proxy = world.proxy();
    let splice = proxy.splice(world);
    let short = Some(Duration::from_millis(5));
    proxy.source.set_read_timeout(short).expect("not zero");
    let error = proxy.source.recv(&mut [0]).expect_err("nothing is there");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    world.exchange(&proxy.client, &proxy.server, b"passes");
    assert_eq!(splice.end(), None);
    Outcome::Passed
}

fn reads_during_setup(world: &World<'_>) -> Outcome {
    const NUMBERS: u32 = 50_000;
    let proxy = world.proxy_with(SMALL);
    let [client, source] = [&proxy.client, &proxy.source];
    // Numbered records, so that the parts can be merged again.
    let sent: Vec<u8> = (0..NUMBERS).flat_map(u32::to_be_bytes).collect();
    let (mut at_source, mut at_server) = (Vec::new(), Vec::new());
    let mut done = 0;
    client.set_nonblocking(true);
    let mut turn = 0;
    world.until("every byte has gone one way", || {
        loop {
            let before = (done, at_source.len() + at_server.len());
            done += client.send(&sent[done..]).unwrap_or(0);
            turn += 1;
            if turn % 3 == 0 && source.unsplice().is_err() {
                proxy.splice(world);
            }
            at_source.extend(world.try_read(source).unwrap_or_default());
            at_server.extend(world.try_read(&proxy.server).unwrap_or_default());
            let after = (done, at_source.len() + at_server.len());
            if after == before && turn % 3 != 0 {
                break after.1 == sent.len();
            }
        }
    });
    assert_merge(&sent, &at_source, &at_server);
    Outcome::Passed
}

/// Asserts that both are parts of the stream, in order, and together the whole stream.
#[track_caller]
fn assert_merge(sent: &[u8], one: &[u8], other: &[u8]) {
    assert_eq!(one.len() + other.len(), sent.len());
    // Possible positions of `one` after a prefix of the stream; several, since equal bytes are ambiguous.
    let (mut reached, mut next) = (vec![0], Vec::new());
    for (at, byte) in sent.iter().enumerate() {
        for &count in &reached {
            // Both are in order, so one that is there already is the last.
            if other.get(at - count) == Some(byte) && next.last() != Some(&count) {
                next.push(count);
            }
            if one.get(count) == Some(byte) {
                next.push(count + 1);
            }
        }
        assert!(!next.is_empty(), "byte {at} is in order in neither part");
        std::mem::swap(&mut reached, &mut next);
        next.clear();
    }
}

fn eof_behind_stuck_bytes(world: &World<'_>) -> Outcome {
    let (proxy, sent) = stuck(world);
    proxy.client.shutdown(Shutdown::Write).expect("connected");
    world.settle();
    match world.by_flavor(true, false) {
        true => assert_eq!(world.receive(&proxy.source, 1).len(), 1),
        false => {
            let got = world.try_read(&proxy.source);
            assert_eq!(got, Err(ErrorKind::WouldBlock));
            assert!(world.receive(&proxy.server, sent.len()) == sent);
        }
    }
    world.until("end of file, at last", || {
        drop(world.try_read(&proxy.server));
        world.try_read(&proxy.source) == Ok(Vec::new())
    });
    Outcome::Passed
}

fn write(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    proxy.splice(world);
    for _ in 0..20 {
        world.send(&proxy.client, &[b'a'; 100]);
        world.send(&proxy.sink, &[b'b'; 100]);
    }
    let got = world.receive(&proxy.server, 4000);
    // There was room for all bytes, so no call was partial.
    for run in got.chunk_by(|a, b| a == b) {
        let is_whole = run[0] == b'a' || run.len().is_multiple_of(100);
        assert!(is_whole, "{} b in a row", run.len());
    }
    let count = got.iter().filter(|byte| **byte == b'a').count();
    assert_eq!((count, proxy.source.spliced()), (2000, 2000));
    Outcome::Passed
}

fn write_to_full_sink(world: &World<'_>) -> Outcome {
    world.with_full_sink(|| {
        let (proxy, sent) = stuck(world);
        proxy.sink.set_nonblocking(true);
        let error = proxy.sink.send(b"!").err()?;
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert!(world.receive(&proxy.server, sent.len()) == sent);
        world.exchange(&proxy.sink, &proxy.server, b"!");
        Some(Outcome::Passed)
    })
}

fn sleeping_writer(world: &World<'_>) -> Outcome {
    if world.is_virtual() {
        return REAL;
    }
    const EACH: usize = 50_000;
    let proxy = world.proxy_with(SMALL);
    let full = world.fill(&proxy.sink);
    let got = thread::scope(|scope| {
        scope.spawn(|| (&proxy.sink).write_all(&[255; EACH]).expect("room comes"));
        world.settle();
        proxy.splice(world);
        scope.spawn(|| (&proxy.client).write_all(&[254; EACH]).expect("room comes"));
        world.settle();
        let other = world.proxy();
        other.splice(world);
        world.exchange(&other.client, &other.server, b"nobody is stalled");
        world.receive(&proxy.server, full.len() + 2 * EACH)
    });
    assert!(got.starts_with(&full));
    let count = |which| got.iter().filter(|byte| **byte == which).count();
    assert_eq!((count(254), count(255)), (EACH, EACH));
    assert_eq!(proxy.source.spliced(), EACH as u64);
    Outcome::Passed
}

fn readable_bytes(world: &World<'_>) -> Outcome {
    let (proxy, sent) = stuck(world);
    assert!(proxy.source.readable_bytes() > 0);
    world.send(&proxy.server, b"back");
    world.arrived(&proxy.sink, 4);
    assert!(world.receive(&proxy.server, sent.len()) == sent);
    assert_eq!(proxy.source.readable_bytes(), 0);
    Outcome::Passed
}

fn readiness_of_source(world: &World<'_>) -> Outcome {
    world.with_full_sink(|| {
        let proxy = world.proxy_with(SMALL);
        let heard = Arc::new(Heard::default());
        proxy.source.add_rcv_upcall(heard.clone());
        let splice = proxy.splice(world);
        let sent = world.stall(&proxy);
        proxy.client.shutdown(Shutdown::Write).expect("connected");
        world.settle();
        if splice.bytes() == sent.len() as u64 {
            return None;
        }
        assert_eq!((heard.count(), splice.end()), (0, None));
        assert!(world.receive(&proxy.server, sent.len()) == sent);
        world.end_of(&splice);
        assert_eq!(heard.count(), 1);
        Some(Outcome::Passed)
    })
}

fn readiness_of_sink(world: &World<'_>) -> Outcome {
    let proxy = world.proxy_with(SMALL);
    let heard = Arc::new(Heard::default());
    proxy.sink.add_snd_upcall(heard.clone());
    let splice = proxy.splice(world);
    let sent = world.stall(&proxy);
    assert!(world.receive(&proxy.server, sent.len()) == sent);
    world.settle();
    assert_eq!((heard.count(), splice.end()), (0, None));
    assert!(splice.unsplice().is_ok());
    assert_eq!(heard.count(), 1);
    world.exchange(&proxy.sink, &proxy.server, b"mine");
    world.until("room is told again", || heard.count() > 1);
    Outcome::Passed
}

fn other_directions(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let heard = [Arc::new(Heard::default()), Arc::new(Heard::default())];
    proxy.sink.add_rcv_upcall(heard[0].clone());
    proxy.source.add_snd_upcall(heard[1].clone());
    proxy.splice(world);
    world.exchange(&proxy.server, &proxy.sink, b"to the sink");
    world.exchange(&proxy.source, &proxy.client, b"from the source");
    world.until("both were told", || {
        heard.iter().all(|heard| heard.count() > 0)
    });
    world.exchange(&proxy.client, &proxy.server, b"spliced");
    assert_eq!(proxy.counters(), [7, 0]);
    Outcome::Passed
}

/// A way to end a splice, and its cause.
type Way = (fn(&World<'_>, &Proxy), Cause);

const WAYS: &[Way] = &[
    (
        |_, proxy| assert!(proxy.source.unsplice().is_ok()),
        Cause::Unspliced,
    ),
    (
        |world, proxy| world.send(&proxy.client, b"limit"),
        Cause::Limit,
    ),
    (|_, _| {}, Cause::Lifetime),
    (
        |_, proxy| proxy.client.shutdown(Shutdown::Write).expect("open"),
        Cause::Eof,
    ),
    (
        |_, proxy| proxy.client.abort(),
        Cause::SourceError(SoError::ConnectionReset),
    ),
    (
        |_, proxy| proxy.sink.shutdown(Shutdown::Write).expect("open"),
        Cause::SinkShutdown,
    ),
    (
        |_, proxy| proxy.server.abort(),
        Cause::SinkError(SoError::ConnectionReset),
    ),
];

/// Options that make each of [`WAYS`] possible.
fn options_for(world: &World<'_>, cause: Cause) -> Options {
    Options {
        limit: Some(5),
        lifetime: (cause == Cause::Lifetime).then(|| Duration::from_millis(10)),
        ..world.options()
    }
}

fn every_end_is_reported(world: &World<'_>) -> Outcome {
    if !world.factory().resets() {
        return RESETS;
    }
    for (end_it, cause) in WAYS {
        let proxy = world.proxy();
        let heard = [Arc::new(Heard::default()), Arc::new(Heard::default())];
        proxy.source.add_rcv_upcall(heard[0].clone());
        proxy.sink.add_snd_upcall(heard[1].clone());
        let splice = proxy.splice_with(options_for(world, *cause));
        end_it(world, &proxy);
        let end = world.end_of(&splice);
        assert_eq!(end.cause, *cause);
        assert!(heard.iter().all(|heard| heard.count() > 0), "{cause:?}");
        assert_eq!(proxy.source.splice_end(Role::Source), Some(end));
        assert_eq!(proxy.sink.splice_end(Role::Sink), Some(end));
    }
    Outcome::Passed
}

fn sleeper_wakes(world: &World<'_>) -> Outcome {
    if !world.factory().resets() {
        return RESETS;
    }
    if world.is_virtual() {
        return REAL;
    }
    for (end_it, cause) in WAYS {
        let proxy = world.proxy();
        let splice = proxy.splice_with(options_for(world, *cause));
        patient(&proxy.source);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let got = proxy.source.recv_chain(100);
                got.map(|bytes| bytes.to_vec())
                    .map_err(|error| error.kind())
            });
            world.settle();
            end_it(world, &proxy);
            world.end_of(&splice);
            if !proxy.source.end().rcv().buf.is_closed() && !reader.is_finished() {
                // There is nothing to read yet, except perhaps an error.
                world.send(&proxy.client, b"after");
            }
            let got = back(world, reader);
            assert_ne!(got, Err(ErrorKind::WouldBlock), "it was not woken");
        });
    }
    Outcome::Passed
}

fn splice_end(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let ends = || {
        let roles = [Role::Source, Role::Sink];
        [&proxy.source, &proxy.sink].map(|socket| roles.map(|role| socket.splice_end(role)))
    };
    assert_eq!(ends(), [[None, None]; 2]);
    proxy.splice(world);
    assert_eq!(ends(), [[None, None]; 2]);
    world.exchange(&proxy.client, &proxy.server, b"x");
    let end = Some(proxy.source.unsplice().expect("spliced"));
    assert_eq!(ends(), [[end, None], [None, end]]);
    proxy.splice(world);
    assert_eq!(ends(), [[None, None]; 2]);
    Outcome::Passed
}
