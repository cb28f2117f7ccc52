//! Features of this crate only: forwarded ends, low-water marks and rates of a splice, and its end as a
//! value, a callback and a future.

use super::proxy::SMALL;
use super::{BOTH, Case, Outcome, RESETS, World};
use crate::error::SoError;
use crate::socket::Socket;
use crate::splice::{Cause, End, Options, Rate, Splice, SplicePool};
use std::io::ErrorKind;
use std::net::Shutdown;
use std::num::NonZeroU64;
use std::sync::mpsc;
use std::time::Duration;

const NO_KERNEL: &str = "has it not";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "forward_eof",
        behaviour: "after the last byte the sink is shut down for writing, if wanted",
        freebsd: NO_KERNEL,
        openbsd: NO_KERNEL,
        here: "`Options::forward_eof`",
        flavors: BOTH,
        run: forward_eof,
    },
    Case {
        name: "forward_eof with a full sink",
        behaviour: "a forwarded end of file comes after all bytes, though the sink was full",
        freebsd: NO_KERNEL,
        openbsd: NO_KERNEL,
        here: "`Options::forward_eof`",
        flavors: BOTH,
        run: forward_eof_with_full_sink,
    },
    Case {
        name: "forward_eof forwards no other end",
        behaviour: "limit, unsplice, close and reset are not forwarded as end of file",
        freebsd: NO_KERNEL,
        openbsd: NO_KERNEL,
        here: "`Options::forward_eof`",
        flavors: BOTH,
        run: forward_eof_only,
    },
    Case {
        name: "a proxy in two splices",
        behaviour: "request, half-close, answer, close: both ends see all of it",
        freebsd: "the program shuts down",
        openbsd: "the program shuts down",
        here: "`Options::forward_eof` in both directions",
        flavors: BOTH,
        run: whole_proxy,
    },
    Case {
        name: "forward_reset of the source",
        behaviour: "when the source is reset, so is the sink's peer, if wanted",
        freebsd: NO_KERNEL,
        openbsd: NO_KERNEL,
        here: "`Options::forward_reset`",
        flavors: BOTH,
        run: forward_reset_of_source,
    },
    Case {
        name: "forward_reset of the sink",
        behaviour: "when the sink is reset, so is the source's peer, if wanted",
        freebsd: NO_KERNEL,
        openbsd: NO_KERNEL,
        here: "`Options::forward_reset`",
        flavors: BOTH,
        run: forward_reset_of_sink,
    },
    Case {
        name: "forward_reset forwards no end of file",
        behaviour: "end of file and shutdown are not forwarded as resets",
        freebsd: NO_KERNEL,
        openbsd: NO_KERNEL,
        here: "`Options::forward_reset`",
        flavors: BOTH,
        run: forward_reset_only,
    },
    Case {
        name: "low-water mark of a splice",
        behaviour: "fewer bytes than a splice's low-water mark wait for more",
        freebsd: NO_KERNEL,
        openbsd: NO_KERNEL,
        here: "`Options::lowat`",
        flavors: BOTH,
        run: lowat,
    },
    Case {
        name: "low-water mark and the last bytes",
        behaviour: "a splice's low-water mark holds back neither the last bytes nor a limit",
        freebsd: NO_KERNEL,
        openbsd: NO_KERNEL,
        here: "`Options::lowat`",
        flavors: BOTH,
        run: lowat_is_overridden,
    },
    Case {
        name: "rate of a splice",
        behaviour: "a splice moves no more than its burst and rate, and no less",
        freebsd: NO_KERNEL,
        openbsd: NO_KERNEL,
        here: "`Options::rate`",
        flavors: BOTH,
        run: rate,
    },
    Case {
        name: "burst after a rest",
        behaviour: "an idle splice saves up its burst, and no more",
        freebsd: NO_KERNEL,
        openbsd: NO_KERNEL,
        here: "`Options::rate`",
        flavors: BOTH,
        run: burst,
    },
    Case {
        name: "a rate holds up no end",
        behaviour: "a rate holds up neither unsplice nor the end of file after the last byte",
        freebsd: NO_KERNEL,
        openbsd: NO_KERNEL,
        here: "`Options::rate`",
        flavors: BOTH,
        run: rate_and_end,
    },
    Case {
        name: "the end as a value",
        behaviour: "cause, bytes, passes, and how many bytes were left, at the end",
        freebsd: NO_KERNEL,
        openbsd: NO_KERNEL,
        here: "`Splice::end`, `Socket::splice_end`",
        flavors: BOTH,
        run: end,
    },
    Case {
        name: "the end as a callback",
        behaviour: "callbacks at the end are called once, also if the end came before",
        freebsd: NO_KERNEL,
        openbsd: NO_KERNEL,
        here: "`Splice::on_end`",
        flavors: BOTH,
        run: on_end,
    },
    Case {
        name: "a callback that splices again",
        behaviour: "a callback may splice again: a stream in pieces without a thread of the user's",
        freebsd: NO_KERNEL,
        openbsd: NO_KERNEL,
        here: "`Splice::on_end`",
        flavors: BOTH,
        run: on_end_splices_again,
    },
    Case {
        name: "a callback that closes both sockets",
        behaviour: "a callback may close both sockets in the thread that runs the splice",
        freebsd: NO_KERNEL,
        openbsd: NO_KERNEL,
        here: "`Splice::on_end`",
        flavors: BOTH,
        run: on_end_closes,
    },
    Case {
        name: "the end as a future",
        behaviour: "a future of the end wakes its task once",
        freebsd: NO_KERNEL,
        openbsd: NO_KERNEL,
        here: "`Splice::ended`",
        flavors: BOTH,
        run: future,
    },
    Case {
        name: "a dropped handle",
        behaviour: "a splice goes on when its handle is dropped",
        freebsd: "has no handles",
        openbsd: "has no handles",
        here: "`Splice`",
        flavors: BOTH,
        run: dropped_handle,
    },
    Case {
        name: "a dropped pool",
        behaviour: "a pool that is dropped ends its splices",
        freebsd: NO_KERNEL,
        openbsd: NO_KERNEL,
        here: "`Cause::PoolClosed`",
        flavors: BOTH,
        run: dropped_pool,
    },
    Case {
        name: "statistics of a pool",
        behaviour: "a pool counts its splices, bytes, and ends by cause",
        freebsd: NO_KERNEL,
        openbsd: NO_KERNEL,
        here: "`SplicePool::stats`",
        flavors: BOTH,
        run: statistics,
    },
];

fn forwarding(world: &World<'_>) -> Options {
    Options {
        forward_eof: true,
        ..world.options()
    }
}

fn forward_eof(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let splice = proxy.splice_with(forwarding(world));
    world.exchange(&proxy.client, &proxy.server, b"all");
    world.assert_silent(&proxy.server);
    proxy.client.shutdown(Shutdown::Write).expect("connected");
    world.until("end of file has arrived", || {
        world.try_read(&proxy.server) == Ok(Vec::new())
    });
    assert_eq!(world.end_of(&splice).cause, Cause::Eof);
    let error = proxy.sink.send(b"x").expect_err("it is shut down");
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    world.exchange(&proxy.server, &proxy.sink, b"the other direction stands");
    Outcome::Passed
}

fn forward_eof_with_full_sink(world: &World<'_>) -> Outcome {
    let proxy = world.proxy_with(SMALL);
    let splice = proxy.splice_with(forwarding(world));
    let sent = world.stall(&proxy);
    proxy.client.shutdown(Shutdown::Write).expect("connected");
    assert!(world.receive(&proxy.server, sent.len()) == sent);
    world.until("end of file has arrived", || {
        world.try_read(&proxy.server) == Ok(Vec::new())
    });
    assert_eq!(world.end_of(&splice).bytes, sent.len() as u64);
    Outcome::Passed
}

fn forward_eof_only(world: &World<'_>) -> Outcome {
    if !world.factory().resets() {
        return RESETS;
    }
    let limit = Options {
        limit: Some(1),
        ..forwarding(world)
    };
    for way in 0..4 {
        let proxy = world.proxy();
        let options = if way == 0 {
            limit.clone()
        } else {
            forwarding(world)
        };
        let splice = proxy.splice_with(options);
        world.exchange(&proxy.client, &proxy.server, b"x");
        match way {
            0 => {}
            1 => assert!(proxy.source.unsplice().is_ok()),
            2 => proxy.client.abort(),
            _ => drop(proxy.source),
        }
        world.end_of(&splice);
        world.assert_silent(&proxy.server);
        world.exchange(&proxy.sink, &proxy.server, b"the sink is mine again");
    }
    Outcome::Passed
}

fn whole_proxy(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let there = proxy.splice_with(forwarding(world));
    let back = proxy.sink.splice_to(&proxy.source, forwarding(world));
    let back = back.expect("the other direction is free");
    world.exchange(&proxy.client, &proxy.server, b"request");
    proxy.client.shutdown(Shutdown::Write).expect("connected");
    world.until("the server has all of the request", || {
        world.try_read(&proxy.server) == Ok(Vec::new())
    });
    world.pump(&proxy.server, &proxy.client, 30_000, || false);
    proxy.server.shutdown(Shutdown::Write).expect("connected");
    world.until("the client has all of the answer", || {
        world.try_read(&proxy.client) == Ok(Vec::new())
    });
    let ends = [world.end_of(&there), world.end_of(&back)];
    assert_eq!(ends.map(|end| end.cause), [Cause::Eof; 2]);
    assert_eq!(ends.map(|end| end.bytes), [7, 30_000]);
    assert_eq!(proxy.errors(), [None, None]);
    Outcome::Passed
}

fn resetting(world: &World<'_>) -> Options {
    Options {
        forward_reset: true,
        ..world.options()
    }
}

fn forward_reset_of_source(world: &World<'_>) -> Outcome {
    if !world.factory().resets() {
        return RESETS;
    }
    let reset = SoError::ConnectionReset;
    let proxy = world.proxy();
    let splice = proxy.splice_with(resetting(world));
    world.exchange(&proxy.client, &proxy.server, b"x");
    proxy.client.abort();
    assert_eq!(world.end_of(&splice).cause, Cause::SourceError(reset));
    world.until("the server is reset", || {
        proxy.server.take_error() == Some(reset)
    });
    Outcome::Passed
}

fn forward_reset_of_sink(world: &World<'_>) -> Outcome {
    if !world.factory().resets() {
        return RESETS;
    }
    let reset = SoError::ConnectionReset;
    let proxy = world.proxy();
    let splice = proxy.splice_with(resetting(world));
    world.exchange(&proxy.client, &proxy.server, b"x");
    proxy.server.abort();
    assert_eq!(world.end_of(&splice).cause, Cause::SinkError(reset));
    world.until("the client is reset", || {
        proxy.client.take_error() == Some(reset)
    });
    Outcome::Passed
}

fn forward_reset_only(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let splice = proxy.splice_with(resetting(world));
    proxy.client.shutdown(Shutdown::Write).expect("connected");
    assert_eq!(world.end_of(&splice).cause, Cause::Eof);
    world.exchange(&proxy.sink, &proxy.server, b"still there");

    let proxy = world.proxy();
    let splice = proxy.splice_with(resetting(world));
    proxy.sink.shutdown(Shutdown::Write).expect("connected");
    assert_eq!(world.end_of(&splice).cause, Cause::SinkShutdown);
    proxy.source.take_error();
    world.exchange(&proxy.client, &proxy.source, b"still there");
    Outcome::Passed
}

fn waiting_for(world: &World<'_>, lowat: usize) -> Options {
    Options {
        lowat,
        ..world.options()
    }
}

fn lowat(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let splice = proxy.splice_with(waiting_for(world, 10));
    world.send(&proxy.client, b"nine byte");
    world.arrived(&proxy.source, 9);
    world.settle();
    assert_eq!(splice.bytes(), 0);
    world.send(&proxy.client, b"s");
    assert_eq!(world.receive(&proxy.server, 10), b"nine bytes");
    world.exchange(&proxy.client, &proxy.server, b"more than ten");
    Outcome::Passed
}

fn lowat_is_overridden(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let splice = proxy.splice_with(waiting_for(world, 10));
    world.send(&proxy.client, b"last");
    proxy.client.shutdown(Shutdown::Write).expect("connected");
    assert_eq!(world.receive(&proxy.server, 4), b"last");
    assert_eq!(world.end_of(&splice).cause, Cause::Eof);

    let proxy = world.proxy();
    let splice = proxy.splice_with(Options {
        limit: Some(4),
        ..waiting_for(world, 10)
    });
    world.exchange(&proxy.client, &proxy.server, b"last");
    assert_eq!(world.end_of(&splice).cause, Cause::Limit);

    let proxy = world.proxy_with(SMALL);
    proxy.splice_with(waiting_for(world, usize::MAX));
    let half = proxy.source.rcv_hiwat() / 2;
    let count = half * 10;
    let mut open = true;
    // The last bytes may be fewer than the mark, and wait for the end of the stream.
    world.pump(&proxy.client, &proxy.server, count, || {
        let arrived = proxy.source.spliced() + proxy.source.readable_bytes() as u64;
        let last = open && arrived == count as u64;
        if last {
            open = false;
            proxy.client.shutdown(Shutdown::Write).expect("connected");
        }
        last
    });
    Outcome::Passed
}

const VIRTUAL: Outcome = Outcome::NotApplicable("virtual time");
const SECOND: Duration = Duration::from_secs(1);

fn at_rate(world: &World<'_>, bytes_per_second: u64, burst: u64) -> Options {
    let nonzero = |value| NonZeroU64::new(value).expect("not zero");
    Options {
        rate: Some(Rate {
            bytes_per_second: nonzero(bytes_per_second),
            burst: nonzero(burst),
        }),
        ..world.options()
    }
}

fn rate(world: &World<'_>) -> Outcome {
    if !world.is_virtual() {
        return VIRTUAL;
    }
    let proxy = world.proxy();
    let splice = proxy.splice_with(at_rate(world, 10_000, 5000));
    world.send(&proxy.client, &[7; 60_000]);
    // Sending may take time.
    world.sleep(SECOND);
    let before = splice.bytes();
    assert!(before >= 5000, "{before}");
    for seconds in 1..=3 {
        world.sleep(SECOND);
        let moved = splice.bytes() - before;
        let expected = seconds * 10_000;
        // A pass moves at least the bytes of 10 ms.
        assert!(moved.abs_diff(expected) <= 100, "{moved}, not {expected}");
    }
    assert_eq!(world.receive(&proxy.server, 60_000), [7; 60_000]);
    assert!(world.pool().stats().stalls_rate > 0);
    Outcome::Passed
}

fn burst(world: &World<'_>) -> Outcome {
    if !world.is_virtual() {
        return VIRTUAL;
    }
    let proxy = world.proxy();
    let splice = proxy.splice_with(at_rate(world, 1000, 3000));
    for _ in 0..2 {
        // An idle time in which ten seconds' bytes would be allowed.
        world.sleep(10 * SECOND);
        let before = splice.bytes();
        world.send(&proxy.client, &[7; 5000]);
        world.until("all has arrived", || {
            splice.bytes() + proxy.source.readable_bytes() as u64 == before + 5000
        });
        world.settle();
        let at_once = splice.bytes() - before;
        assert!((3000..=3100).contains(&at_once), "{at_once}");
        world.sleep(SECOND);
        let moved = splice.bytes() - before;
        assert!(moved.abs_diff(at_once + 1000) <= 100, "{moved}");
        world.receive(&proxy.server, 5000);
    }
    Outcome::Passed
}

fn rate_and_end(world: &World<'_>) -> Outcome {
    if !world.is_virtual() {
        return VIRTUAL;
    }
    let proxy = world.proxy();
    proxy.splice_with(at_rate(world, 1000, 100));
    world.send(&proxy.client, &[7; 500]);
    let end = proxy.source.unsplice().expect("it has not moved all bytes");
    assert!(end.bytes < 500);
    let splice = proxy.splice_with(at_rate(world, 1000, 100));
    proxy.client.shutdown(Shutdown::Write).expect("connected");
    let end_again = world.end_of(&splice);
    assert_eq!(end_again.cause, Cause::Eof);
    assert_eq!(end.bytes + end_again.bytes, 500);
    Outcome::Passed
}

fn end(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let splice = proxy.splice_with(Options {
        limit: Some(4),
        ..world.options()
    });
    assert_eq!(splice.end(), None);
    world.send(&proxy.client, b"four and the rest");
    let end = world.end_of(&splice);
    assert_eq!((end.cause, end.bytes, end.residual), (Cause::Limit, 4, 13));
    assert!(end.passes > 0);
    assert_eq!(splice.wait_timeout(Duration::ZERO), Some(end));
    assert_eq!(splice.unsplice().ok(), None);
    proxy.source.take_error();
    assert_eq!(world.receive(&proxy.source, 13), b" and the rest");
    assert_eq!(splice.end(), Some(end), "later reads do not change it");
    Outcome::Passed
}

fn on_end(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let splice = proxy.splice(world);
    let (sender, ends) = mpsc::channel();
    let tell = |splice: &Splice, number: u32| {
        let sender = sender.clone();
        splice.on_end(move |end: End| sender.send((number, end)).expect("the receiver exists"));
    };
    tell(&splice, 1);
    tell(&splice, 2);
    world.exchange(&proxy.client, &proxy.server, b"x");
    assert_eq!(ends.try_iter().count(), 0);
    proxy.client.shutdown(Shutdown::Write).expect("connected");
    let end = world.end_of(&splice);
    let mut told = Vec::new();
    world.until("both are told", || {
        told.extend(ends.try_iter());
        told.len() >= 2
    });
    tell(&splice, 3);
    told.extend(ends.try_iter());
    assert_eq!(told, [(1, end), (2, end), (3, end)]);
    // No second call: the sender is the last one.
    drop((proxy, splice));
    world.settle();
    assert_eq!(ends.try_iter().count(), 0);
    Outcome::Passed
}

/// Splices in pieces of 1000 bytes until the end.
fn in_pieces(source: Socket, sink: Socket, options: Options, ends: mpsc::Sender<End>) {
    let splice = source.splice_to(&sink, options.clone());
    splice.expect("it is free").on_end(move |end| {
        ends.send(end).expect("the receiver exists");
        if end.cause == Cause::Limit {
            in_pieces(source, sink, options, ends);
        }
    });
}

fn on_end_splices_again(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let (sender, ends) = mpsc::channel();
    let options = Options {
        limit: Some(1000),
        ..world.options()
    };
    in_pieces(proxy.source, proxy.sink, options, sender);
    world.pump(&proxy.client, &proxy.server, 10_500, || false);
    proxy.client.shutdown(Shutdown::Write).expect("connected");
    let mut all = Vec::new();
    world.until("the last one has ended", || {
        all.extend(ends.try_iter());
        all.last().is_some_and(|end| end.cause != Cause::Limit)
    });
    assert_eq!(all.len(), 11);
    assert_eq!(all.iter().map(|end| end.bytes).sum::<u64>(), 10_500);
    // The callback held the last handles.
    world.until("the server sees end of file", || {
        world.try_read(&proxy.server) == Ok(Vec::new())
    });
    Outcome::Passed
}

fn on_end_closes(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let splice = proxy.splice(world);
    let sockets = (proxy.source, proxy.sink);
    splice.on_end(move |_| drop(sockets));
    world.exchange(&proxy.client, &proxy.server, b"x");
    proxy.client.shutdown(Shutdown::Write).expect("connected");
    for end in [&proxy.client, &proxy.server] {
        world.until("end of file", || world.try_read(end) == Ok(Vec::new()));
    }
    assert_eq!(world.end_of(&splice).cause, Cause::Eof);
    Outcome::Passed
}

#[cfg(not(feature = "async"))]
fn future(_: &World<'_>) -> Outcome {
    Outcome::NotApplicable("the feature async")
}

#[cfg(feature = "async")]
fn future(world: &World<'_>) -> Outcome {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Wake, Waker};

    #[derive(Default)]
    struct Woken(AtomicUsize);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    let proxy = world.proxy();
    let splice = proxy.splice(world);
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut cx = Context::from_waker(&waker);
    let mut ended = pin!(splice.ended());
    for _ in 0..3 {
        assert_eq!(ended.as_mut().poll(&mut cx), Poll::Pending);
    }
    world.exchange(&proxy.client, &proxy.server, b"x");
    assert_eq!(woken.0.load(Ordering::SeqCst), 0);
    proxy.client.shutdown(Shutdown::Write).expect("connected");
    world.until("its task is woken", || woken.0.load(Ordering::SeqCst) > 0);
    let end = splice.wait();
    assert_eq!(ended.as_mut().poll(&mut cx), Poll::Ready(end));
    assert_eq!(pin!(splice.ended()).poll(&mut cx), Poll::Ready(end));
    world.settle();
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    Outcome::Passed
}

fn dropped_handle(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    drop(proxy.splice(world));
    world.exchange(&proxy.client, &proxy.server, b"goes on");
    assert!(proxy.source.unsplice().is_ok());
    Outcome::Passed
}

fn dropped_pool(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let mut builder = SplicePool::builder().dispatch(world.config().dispatch);
    if let Some(time) = world.factory().time() {
        builder = builder.clock(time.clock()).manual();
    }
    let options = Options {
        pool: Some(builder.build()),
        ..Options::default()
    };
    let splice = proxy.splice_with(options);
    assert_eq!(splice.end().map(|end| end.cause), Some(Cause::PoolClosed));
    world.exchange(&proxy.client, &proxy.source, b"mine");
    proxy.splice(world);
    world.exchange(&proxy.client, &proxy.server, b"another pool");
    Outcome::Passed
}

fn statistics(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let [there, back] = proxy.splice_both(world);
    world.exchange(&proxy.client, &proxy.server, b"there");
    world.exchange(&proxy.server, &proxy.client, b"back");
    assert!(there.unsplice().is_ok());
    world.end_of(&there);
    proxy.server.shutdown(Shutdown::Write).expect("connected");
    world.end_of(&back);
    let stats = world.pool().stats();
    assert_eq!((stats.started, stats.ended(), stats.bytes), (2, 2, 9));
    let by = [Cause::Unspliced, Cause::Eof, Cause::Limit].map(|cause| stats.ended_by(cause));
    assert_eq!(by, [1, 1, 0]);
    assert!(stats.passes >= 2);
    Outcome::Passed
}
