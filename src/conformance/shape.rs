//! Topologies: a socket spliced to itself, chains and rings; set-up by several threads.
//!
//! A ring is legal. In the FreeBSD flavor its bytes circulate for ever, and must not starve other
//! splices; in the OpenBSD flavor they may pass 128 splices, as long as protocols pass buffers on
//! without copying them: on a network the count restarts.

use super::proxy::{SMALL, pattern};
use super::{BOTH, Case, FREEBSD, OPENBSD, Outcome, RESETS, Setup, World};
use crate::error::{Flavor, SoError};
use crate::protocol::SoState;
use crate::socket::Socket;
use crate::splice::{Cause, Role, Splice, SpliceError, SplicePool, UnspliceError};
use std::collections::BTreeSet;
use std::net::Shutdown;
use std::thread;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "a socket spliced to itself",
        behaviour: "a socket spliced to itself is an echo; end of file ends it",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: echo,
    },
    Case {
        name: "a socket is source and sink",
        behaviour: "a socket is source of one splice and sink of another at the same time",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: both_roles,
    },
    Case {
        name: "busy in either role",
        behaviour: "a second splice of a source, or into a sink, is refused",
        freebsd: "`EBUSY`",
        openbsd: "`EBUSY`",
        here: "",
        flavors: BOTH,
        run: busy,
    },
    Case {
        name: "a chain of splices",
        behaviour: "bytes pass several proxies, each counts them; end of file stops at the first",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: chain,
    },
    Case {
        name: "a ring goes on and starves nobody",
        behaviour: "a ring goes on and starves no other splice of its worker",
        freebsd: "",
        openbsd: "ends",
        here: "by flavor",
        flavors: FREEBSD,
        run: ring_starves_nobody,
    },
    Case {
        name: "a ring is stopped by unsplice",
        behaviour: "a ring that never rests is stopped by unsplice; no byte is lost",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: FREEBSD,
        run: ring_stopped,
    },
    Case {
        name: "a ring of several connections",
        behaviour: "a ring of several connections goes round",
        freebsd: "",
        openbsd: "ends",
        here: "by flavor",
        flavors: FREEBSD,
        run: long_ring,
    },
    Case {
        name: "a ring ends after 128 splices",
        behaviour: "a ring ends after 128 splices; the bytes stay readable",
        freebsd: "goes on",
        openbsd: "`ELOOP`",
        here: "by flavor, where buffers are handed on without copying",
        flavors: OPENBSD,
        run: ring_ends,
    },
    Case {
        name: "a slow sink is no ring",
        behaviour: "300 checks of bytes that cannot go on do not count as 300 splices",
        freebsd: "",
        openbsd: "`ELOOP` until 2026",
        here: "as OpenBSD since",
        flavors: BOTH,
        run: slow_sink,
    },
    Case {
        name: "unsplice of what is not spliced",
        behaviour: "unsplice of a socket that is not spliced: never, no longer, the sink, twice",
        freebsd: "`ENOTCONN`",
        openbsd: "`EPROTO`",
        here: "by flavor",
        flavors: BOTH,
        run: unsplice_of_unspliced,
    },
    Case {
        name: "unsplice leaves everything in place",
        behaviour: "bytes that unsplice leaves are the user's, and a new splice's",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: unsplice_leaves_bytes,
    },
    Case {
        name: "unsplice by several threads",
        behaviour: "unsplice by several threads: one succeeds",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: unsplice_by_many,
    },
    Case {
        name: "splice by several threads",
        behaviour: "splice by several threads: one succeeds, the others find it busy",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: splice_by_many,
    },
    Case {
        name: "set and unset under a flood",
        behaviour: "set and unset under a flood: every byte arrives once and in order",
        freebsd: "a half-built splice was visible at first",
        openbsd: "two races until 2012",
        here: "set up at once, under both locks",
        flavors: BOTH,
        run: flood,
    },
    Case {
        name: "set-ups that fail under a flood",
        behaviour: "set-ups that fail under a flood disturb nothing",
        freebsd: "freed an object in use at first",
        openbsd: "",
        here: "checked before anything is set up",
        flavors: BOTH,
        run: failing_under_flood,
    },
    Case {
        name: "the order of errors",
        behaviour: "two faults at once: which one is reported",
        freebsd: "all about the source, then all about the sink",
        openbsd: "listening of both, connected of both, busy of both",
        here: "by flavor of the source",
        flavors: BOTH,
        run: order_of_errors,
    },
    Case {
        name: "the kind of socket is looked at first",
        behaviour: "no stream: reported before anything else is checked or changed",
        freebsd: "`EPROTONOSUPPORT`",
        openbsd: "`EPROTONOSUPPORT`; a panic until 2020",
        here: "`EPROTONOSUPPORT`",
        flavors: BOTH,
        run: kind_first,
    },
    Case {
        name: "encrypted below the socket",
        behaviour: "a socket that is encrypted below (KTLS) cannot be spliced in either role",
        freebsd: "`EINVAL`; taken for plain bytes at first",
        openbsd: "has no such sockets",
        here: "`EINVAL`",
        flavors: BOTH,
        run: encrypted,
    },
    Case {
        name: "a connection that is over",
        behaviour: "a connection whose directions have both ended is not connected",
        freebsd: "`ENOTCONN`",
        openbsd: "`ENOTCONN`",
        here: "",
        flavors: BOTH,
        run: over,
    },
    Case {
        name: "a pool without workers",
        behaviour: "a pool without workers refuses every splice",
        freebsd: "`ENXIO`",
        openbsd: "a compile-time option",
        here: "`ENXIO`",
        flavors: BOTH,
        run: no_workers,
    },
];

/// Both ends of a connection, each spliced to the other.
fn ring(world: &World<'_>, a: &Socket, b: &Socket) -> [Splice; 2] {
    [(a, b), (b, a)].map(|(source, sink)| {
        let splice = source.splice_to(sink, world.options());
        splice.expect("a ring is allowed")
    })
}

fn total(splices: &[Splice]) -> u64 {
    splices.iter().map(Splice::bytes).sum()
}

fn echo(world: &World<'_>) -> Outcome {
    let [user, echo] = world.connect(SMALL);
    let splice = echo.splice_to(&echo, world.options());
    let splice = splice.expect("a socket can be spliced to itself");
    world.exchange(&user, &user, b"echo");
    world.pump(&user, &user, 50_000, || false);
    user.shutdown(Shutdown::Write).expect("connected");
    let end = world.end_of(&splice);
    assert_eq!((end.cause, end.bytes), (Cause::Eof, 50_004));
    world.exchange(&echo, &user, b"still open");
    Outcome::Passed
}

fn both_roles(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let splices = proxy.splice_both(world);
    world.exchange(&proxy.client, &proxy.server, b"there");
    world.exchange(&proxy.server, &proxy.client, b"back");
    assert!(proxy.source.unsplice().is_ok());
    assert_eq!(splices[1].end(), None, "each ends alone");
    world.exchange(&proxy.server, &proxy.client, b"back again");
    world.exchange(&proxy.client, &proxy.source, b"mine");
    Outcome::Passed
}

fn busy(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let other = world.proxy();
    let splice = proxy.splice(world);
    let errors = [
        world.splice_error(&proxy.source, &other.sink),
        world.splice_error(&other.source, &proxy.sink),
        world.splice_error(&proxy.source, &proxy.sink),
        world.splice_error(&proxy.source, &proxy.source),
    ];
    let [source, sink] = [Role::Source, Role::Sink].map(SpliceError::Busy);
    assert_eq!(errors, [source, sink, source, source]);
    world.exchange(&proxy.client, &proxy.server, b"the first goes on");
    assert!(splice.unsplice().is_ok());
    let mine = proxy.source.splice_to(&other.sink, world.options());
    assert!(mine.is_ok(), "it is free again");
    world.exchange(&proxy.client, &other.server, b"elsewhere");
    Outcome::Passed
}

fn chain(world: &World<'_>) -> Outcome {
    const LINKS: usize = 8;
    let pairs: Vec<_> = (0..=LINKS).map(|_| world.connect(SMALL)).collect();
    let splice = |two: &[[Socket; 2]]| two[0][1].splice_to(&two[1][0], world.options());
    let splices: Vec<_> = pairs.windows(2).map(splice).collect();
    let (first, last) = (&pairs[0][0], &pairs[LINKS][1]);
    world.exchange(first, last, b"foo");
    world.pump(first, last, 20_000, || false);
    first.shutdown(Shutdown::Write).expect("connected");
    let splices: Vec<_> = splices.into_iter().map(|s| s.expect("free")).collect();
    assert_eq!(world.end_of(&splices[0]).cause, Cause::Eof);
    world.assert_silent(last);
    assert!(splices[1..].iter().all(|splice| !splice.is_ended()));
    assert!(splices.iter().all(|splice| splice.bytes() == 20_003));
    Outcome::Passed
}

fn ring_starves_nobody(world: &World<'_>) -> Outcome {
    let [a, b] = world.connect(Setup::default());
    let round = ring(world, &a, &b);
    a.send(&[1; 1000]).expect("there is room");
    world.until("it goes round", || total(&round) > 50_000);
    let proxy = world.proxy();
    let splice = proxy.splice(world);
    for _ in 0..5 {
        world.exchange(&proxy.client, &proxy.server, b"served");
    }
    world.pump(&proxy.client, &proxy.server, 50_000, || false);
    assert_eq!(splice.bytes(), 50_030);
    let before = total(&round);
    world.until("the ring is served, too", || total(&round) > before + 2000);
    Outcome::Passed
}

fn ring_stopped(world: &World<'_>) -> Outcome {
    let [a, b] = world.connect(Setup::default());
    let round = ring(world, &a, &b);
    let bytes = pattern(0, 1000);
    world.send(&a, &bytes);
    world.until("it goes round", || total(&round) > 10_000);
    let ends = [a.unsplice(), b.unsplice()].map(|end| end.expect("spliced"));
    assert_eq!(ends.map(|end| end.cause), [Cause::Unspliced; 2]);
    world.until("all bytes have come to rest", || {
        a.readable_bytes() + b.readable_bytes() == 1000
    });
    // They begin where the ring was cut.
    let mut all = world.try_read(&a).unwrap_or_default();
    all.extend(world.try_read(&b).unwrap_or_default());
    let sorted = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes.sort_unstable();
        bytes
    };
    assert_eq!(sorted(&all), sorted(&bytes));
    Outcome::Passed
}

fn long_ring(world: &World<'_>) -> Outcome {
    let pairs: Vec<_> = (0..5).map(|_| world.connect(SMALL)).collect();
    let mut splices = Vec::new();
    for (at, [_, source]) in pairs.iter().enumerate() {
        let sink = &pairs[(at + 1) % pairs.len()][0];
        let splice = source.splice_to(sink, world.options());
        splices.push(splice.expect("a ring is allowed"));
    }
    world.send(&pairs[0][0], b"round");
    world.until("it goes round", || total(&splices) > 5000);
    drop(pairs);
    for splice in &splices {
        world.end_of(splice);
    }
    Outcome::Passed
}

fn ring_ends(world: &World<'_>) -> Outcome {
    let [a, b] = world.connect(Setup::default());
    let round = ring(world, &a, &b);
    a.send(b"foo").expect("there is room");
    // Three bytes through 128 splices; if they continue, the protocol has copied them.
    world.until("it has ended, or goes on", || {
        round.iter().any(Splice::is_ended) || total(&round) > 3 * 1000
    });
    let ended = round
        .iter()
        .zip([&a, &b])
        .find(|(splice, _)| splice.is_ended());
    let Some((splice, source)) = ended else {
        return Outcome::NotApplicable("buffers that are handed on");
    };
    let end = splice.wait();
    assert_eq!((end.cause, end.residual), (Cause::Loop, 3));
    assert_eq!(total(&round), 3 * 128);
    assert_eq!(world.receive(source, 3), b"foo");
    assert_eq!(source.take_error(), Some(SoError::SpliceLoop));
    Outcome::Passed
}

fn slow_sink(world: &World<'_>) -> Outcome {
    let proxy = world.proxy_with(SMALL);
    let splice = proxy.splice(world);
    let sent = world.stall(&proxy);
    for _ in 0..300 {
        // Room for one byte is less than the mark, so the pass moves nothing.
        proxy.sink.set_snd_lowat(2000);
        if world.is_virtual() {
            world.settle();
        }
    }
    assert!(world.receive(&proxy.server, sent.len()) == sent);
    world.exchange(&proxy.client, &proxy.server, b"goes on");
    assert_eq!((splice.end(), proxy.source.take_error()), (None, None));
    Outcome::Passed
}

fn unsplice_of_unspliced(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let not = Err(UnspliceError::NotSpliced);
    assert_eq!(proxy.source.unsplice(), not, "never spliced");
    let splice = proxy.splice(world);
    assert_eq!(proxy.sink.unsplice(), not, "the sink of a splice");
    assert_eq!(proxy.client.unsplice(), not, "the other end");
    assert!(proxy.source.unsplice().is_ok());
    assert_eq!(proxy.source.unsplice(), not, "twice");
    assert_eq!(splice.unsplice(), not, "by its handle");
    proxy.splice(world);
    proxy.client.shutdown(Shutdown::Write).expect("connected");
    world.until("it has ended by itself", || {
        proxy.source.splice_end(Role::Source).is_some()
    });
    assert_eq!(proxy.source.unsplice(), not, "ended by itself");
    assert_eq!(proxy.source.take_error(), None);
    Outcome::Passed
}

fn unsplice_leaves_bytes(world: &World<'_>) -> Outcome {
    let proxy = world.proxy_with(SMALL);
    let splice = proxy.splice(world);
    let sent = world.stall(&proxy);
    let end = proxy.source.unsplice().expect("it is stalled");
    assert_eq!((end.cause, splice.wait()), (Cause::Unspliced, end));
    assert!(end.residual > 0 && end.residual == proxy.source.readable_bytes());
    let moved = usize::try_from(end.bytes).expect("fits");
    assert_eq!(world.receive(&proxy.source, 100), sent[moved..][..100]);
    let again = proxy.splice(world);
    let got = world.receive(&proxy.server, sent.len() - 100);
    assert!(got == [&sent[..moved], &sent[moved + 100..]].concat());
    assert_eq!(again.bytes() + end.bytes + 100, sent.len() as u64);
    Outcome::Passed
}

/// The results of several threads that all do this at once.
fn by_many<R: Send>(what: impl Fn() -> R + Sync) -> Vec<R> {
    let all_there = std::sync::Barrier::new(4);
    let run = || {
        all_there.wait();
        what()
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, R>| thread.join();
        threads
            .into_iter()
            .map(|thread| join(thread).expect("no panic"))
            .collect()
    })
}

fn unsplice_by_many(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    for round in 0..20 {
        let splice = proxy.splice(world);
        let results = by_many(|| match round % 2 {
            0 => proxy.source.unsplice(),
            _ => splice.unsplice(),
        });
        let winners: Vec<_> = results.iter().flatten().collect();
        assert_eq!(winners, [&splice.wait()]);
    }
    world.exchange(&proxy.client, &proxy.source, b"mine");
    Outcome::Passed
}

fn splice_by_many(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    for _ in 0..20 {
        let results = by_many(|| proxy.source.splice_to(&proxy.sink, world.options()));
        let winners: Vec<_> = results.iter().flatten().collect();
        assert_eq!(winners.len(), 1);
        let errors = results.iter().filter_map(|result| result.as_ref().err());
        let busy = SpliceError::Busy(Role::Source);
        // FreeBSD checks the source first, but the state may change between two checks.
        let allowed = [busy, SpliceError::Busy(Role::Sink)];
        assert!(errors.clone().all(|error| allowed.contains(error)));
        assert!(winners[0].unsplice().is_ok());
    }
    Outcome::Passed
}

fn flood(world: &World<'_>) -> Outcome {
    let proxy = world.proxy_with(SMALL);
    let mut splice = None;
    let (mut moved, mut ended) = (0, 0);
    world.pump(&proxy.client, &proxy.server, 300_000, || {
        let new = match splice.take() {
            None => Some(proxy.splice(world)),
            Some(old) => {
                let old: Splice = old;
                let mut ends = vec![old.unsplice().ok()];
                ends.push(proxy.source.unsplice().ok());
                assert_eq!(ends.iter().flatten().count(), 1);
                ended += 1;
                moved += old.wait().bytes;
                None
            }
        };
        splice = new;
        splice.is_some()
    });
    let rest = splice.map_or(0, |splice| splice.bytes());
    assert_eq!(moved + rest, 300_000);
    assert_eq!(world.pool().stats().ended(), ended);
    Outcome::Passed
}

fn failing_under_flood(world: &World<'_>) -> Outcome {
    let proxy = world.proxy_with(SMALL);
    let other = world.proxy();
    let splice = proxy.splice(world);
    let taken = other.splice(world);
    let listening = world.odd(SoState::Listening);
    let unconnected = world.odd(SoState::Unconnected);
    let mut errors = BTreeSet::new();
    world.pump(&proxy.client, &proxy.server, 200_000, || {
        // A busy source; a free one with unsuitable sinks.
        for sink in [&listening, &unconnected, &other.sink] {
            for source in [&proxy.source, &proxy.server] {
                errors.insert(world.splice_error(source, sink).to_string());
            }
        }
        false
    });
    assert!(errors.len() >= 4, "{errors:?}");
    assert_eq!((splice.bytes(), splice.end()), (200_000, None));
    world.exchange(&other.client, &other.server, b"untouched");
    assert_eq!(taken.bytes(), 9);
    assert_eq!(world.pool().stats().started, 2);
    Outcome::Passed
}

fn order_of_errors(world: &World<'_>) -> Outcome {
    use Role::{Sink, Source};
    use SpliceError::{Busy, Listening, NotConnected};
    let (free, taken) = (world.proxy(), world.proxy());
    taken.splice(world);
    let listening = world.odd(SoState::Listening);
    let unconnected = world.odd(SoState::Unconnected);
    let (busy_source, busy_sink) = (&taken.source, &taken.sink);
    let both = [
        (
            &unconnected,
            &listening,
            NotConnected(Source),
            Listening(Sink),
        ),
        (busy_source, &listening, Busy(Source), Listening(Sink)),
        (busy_source, &unconnected, Busy(Source), NotConnected(Sink)),
        (
            &listening,
            &unconnected,
            Listening(Source),
            Listening(Source),
        ),
        (
            &unconnected,
            busy_sink,
            NotConnected(Source),
            NotConnected(Source),
        ),
        (busy_source, busy_sink, Busy(Source), Busy(Source)),
        (&free.source, &listening, Listening(Sink), Listening(Sink)),
    ];
    for (source, sink, freebsd, openbsd) in both {
        let error = world.splice_error(source, sink);
        assert_eq!(error, world.by_flavor(freebsd, openbsd));
    }
    // The source's flavor applies.
    let sink = &free.sink;
    sink.set_flavor(world.by_flavor(Flavor::OpenBsd, Flavor::FreeBsd));
    let error = world.splice_error(busy_source, &listening);
    assert_eq!(error, world.by_flavor(Busy(Source), Listening(Sink)));
    Outcome::Passed
}

fn kind_first(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    world.send(&proxy.client, b"untouched");
    world.arrived(&proxy.source, 9);
    let unix = world.odd(SoState::NotAStream);
    let listening = world.odd(SoState::Listening);
    let error = world.splice_error(&listening, &unix);
    assert_eq!(error, SpliceError::NotAStream(Role::Sink));
    let error = world.splice_error(&proxy.source, &unix);
    assert_eq!(error, SpliceError::NotAStream(Role::Sink));
    let error = world.splice_error(&unix, &unix);
    assert_eq!(error, SpliceError::NotAStream(Role::Source));
    assert_eq!(world.receive(&proxy.source, 9), b"untouched");
    Outcome::Passed
}

fn encrypted(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let tls = world.odd(SoState::Encrypted);
    tls.end().connected();
    let error = world.splice_error(&tls, &proxy.sink);
    assert_eq!(error, SpliceError::Encrypted(Role::Source));
    let error = world.splice_error(&proxy.source, &tls);
    assert_eq!(error, SpliceError::Encrypted(Role::Sink));
    proxy.splice(world);
    world.exchange(&proxy.client, &proxy.server, b"plain");
    Outcome::Passed
}

fn over(world: &World<'_>) -> Outcome {
    if !world.factory().resets() {
        return RESETS;
    }
    let (dead, proxy) = (world.proxy(), world.proxy());
    dead.client.abort();
    world.until("the reset has arrived", || {
        dead.source.end().error().is_some() && dead.source.end().snd().buf.is_closed()
    });
    dead.source.take_error();
    let error = world.splice_error(&dead.source, &proxy.sink);
    assert_eq!(error, SpliceError::NotConnected(Role::Source));
    let error = world.splice_error(&proxy.source, &dead.source);
    assert_eq!(error, SpliceError::NotConnected(Role::Sink));
    Outcome::Passed
}

fn no_workers(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let mut options = world.options();
    options.pool = Some(SplicePool::builder().workers(0).build());
    for _ in 0..2 {
        let splice = proxy.source.splice_to(&proxy.sink, options.clone());
        assert_eq!(splice.map(drop), Err(SpliceError::PoolDisabled));
    }
    proxy.splice(world);
    world.exchange(&proxy.client, &proxy.server, b"another pool");
    Outcome::Passed
}
