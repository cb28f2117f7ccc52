//! FreeBSD's cases (`tests/sys/kern/socket_splice.c`), by number and name.
//!
//! F02 (capability rights) is in `sockopt`. Secondary checks of these cases have cases of their own in
//! the neighbouring files.

use super::proxy::Heard;
use super::{BOTH, Case, Outcome, World};
use crate::protocol::SoState;
use crate::splice::{Cause, Options, Role, SpliceError, UnspliceError};
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "F01 splice_basic",
        behaviour: "both directions pass, are counted, and the counts outlive the splices",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: basic,
    },
    Case {
        name: "F03 splice_error",
        behaviour: "what cannot be spliced or unspliced",
        freebsd: "`EINVAL`, `ENOTCONN`, `EBUSY`, `EPROTONOSUPPORT`",
        openbsd: "the same; unspliced: `EPROTO`",
        here: "by flavor",
        flavors: BOTH,
        run: errors,
    },
    Case {
        name: "F04 splice_kevent",
        behaviour: "a spliced source does not become readable",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: kevent,
    },
    Case {
        name: "F05 splice_limit_bytes",
        behaviour: "a limit is exact; the next byte is the user's",
        freebsd: "ends without an error",
        openbsd: "`EFBIG`",
        here: "by flavor",
        flavors: BOTH,
        run: limit_bytes,
    },
    Case {
        name: "F06 splice_limit_timeout",
        behaviour: "after the timeout bytes stay on the source",
        freebsd: "an absolute lifetime",
        openbsd: "re-armed by each move",
        here: "two options: lifetime and idle time",
        flavors: BOTH,
        run: limit_timeout,
    },
    Case {
        name: "F07 splice_listen",
        behaviour: "listening sockets cannot be spliced",
        freebsd: "`EINVAL`",
        openbsd: "`EOPNOTSUPP`; unspliced: `EPROTO`",
        here: "by flavor",
        flavors: BOTH,
        run: listen,
    },
    Case {
        name: "F08 splice_loop",
        behaviour: "bytes go round in a ring; closing it ends it",
        freebsd: "",
        openbsd: "they end with `ELOOP`",
        here: "by flavor",
        flavors: super::FREEBSD,
        run: ring,
    },
    Case {
        name: "F09 splice_nonblock",
        behaviour: "bytes written until `EAGAIN` arrive completely and in order",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: nonblock,
    },
    Case {
        name: "F10 splice_resplice",
        behaviour: "a second splice of the same sockets counts from 0",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: resplice,
    },
    Case {
        name: "F11 splice_throughput",
        behaviour: "much data in both directions at once",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: throughput,
    },
    Case {
        name: "F12 splice_v4v6",
        behaviour: "the two connections may be of different kinds",
        freebsd: "",
        openbsd: "",
        here: "any protocol with any other",
        flavors: BOTH,
        run: two_kinds,
    },
];

fn basic(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    proxy.splice_both(world);
    world.exchange(&proxy.client, &proxy.server, b"x");
    assert_eq!(proxy.counters(), [1, 0]);
    world.exchange(&proxy.server, &proxy.client, b"y");
    assert_eq!(proxy.counters(), [1, 1]);
    let end = proxy.source.unsplice().expect("spliced");
    assert_eq!((end.cause, end.bytes), (Cause::Unspliced, 1));
    assert!(proxy.sink.unsplice().is_ok());
    assert_eq!(proxy.counters(), [1, 1]);
    Outcome::Passed
}

fn errors(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let (source, sink) = (&proxy.source, &proxy.sink);
    let zero = Options {
        limit: Some(0),
        ..world.options()
    };
    let zero = source.splice_to(sink, zero);
    assert_eq!(zero.map(drop), Err(SpliceError::ZeroLimit));
    assert_eq!(source.unsplice(), Err(UnspliceError::NotSpliced));
    proxy.splice(world);
    assert!(source.unsplice().is_ok());
    assert_eq!(source.unsplice(), Err(UnspliceError::NotSpliced));

    proxy.splice(world);
    let busy = world.splice_error(source, &proxy.server);
    assert_eq!(busy, SpliceError::Busy(Role::Source));
    let busy = world.splice_error(&proxy.client, sink);
    assert_eq!(busy, SpliceError::Busy(Role::Sink));

    let (free, taker) = (&proxy.client, &proxy.server);
    let unix = world.odd(SoState::NotAStream);
    let wrong = [
        world.splice_error(free, &unix),
        world.splice_error(&unix, taker),
    ];
    assert_eq!(
        wrong,
        [Role::Sink, Role::Source].map(SpliceError::NotAStream)
    );
    let unconnected = world.odd(SoState::Unconnected);
    let unconnected = world
        .factory()
        .unconnected()
        .map_or(unconnected, |socket| world.adopt(socket));
    let wrong = [
        world.splice_error(free, &unconnected),
        world.splice_error(&unconnected, taker),
    ];
    let expected = [Role::Sink, Role::Source].map(SpliceError::NotConnected);
    assert_eq!(wrong, expected);
    Outcome::Passed
}

fn kevent(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let heard = Arc::new(Heard::default());
    proxy.source.add_rcv_upcall(heard.clone());
    proxy.splice_both(world);
    world.exchange(&proxy.client, &proxy.server, b"ping");
    world.exchange(&proxy.server, &proxy.client, b"pong");
    world.settle();
    assert_eq!(heard.count(), 0);
    assert!(proxy.source.unsplice().is_ok());
    assert_eq!(heard.count(), 1);
    Outcome::Passed
}

fn limit_bytes(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let splice = proxy.splice_with(Options {
        limit: Some(129),
        ..world.options()
    });
    world.exchange(&proxy.client, &proxy.server, &[7; 128]);
    assert_eq!(proxy.source.spliced(), 128);
    assert_eq!(splice.end(), None);
    world.exchange(&proxy.client, &proxy.server, b"x");
    let end = world.end_of(&splice);
    assert_eq!((end.cause, end.bytes), (Cause::Limit, 129));
    proxy.source.take_error();
    world.exchange(&proxy.client, &proxy.source, b"y");
    for socket in [&proxy.client, &proxy.source, &proxy.sink, &proxy.server] {
        assert_eq!(socket.readable_bytes(), 0);
    }
    Outcome::Passed
}

fn limit_timeout(world: &World<'_>) -> Outcome {
    for is_idle in [true, false] {
        let proxy = world.proxy();
        let time = Some(Duration::from_millis(if world.is_virtual() {
            500
        } else {
            50
        }));
        let splice = proxy.splice_with(Options {
            idle: time.filter(|_| is_idle),
            lifetime: time.filter(|_| !is_idle),
            ..world.options()
        });
        if world.is_virtual() {
            // In real time a slow machine may be too late for this.
            world.exchange(&proxy.client, &proxy.server, &[7; 128]);
            assert_eq!(splice.end(), None);
            world.sleep(Duration::from_millis(550));
        }
        let end = world.end_of(&splice);
        let expected = if is_idle {
            Cause::Idle
        } else {
            Cause::Lifetime
        };
        assert_eq!(end.cause, expected);
        proxy.source.take_error();
        world.exchange(&proxy.client, &proxy.source, b"x");
        world.assert_silent(&proxy.server);
    }
    Outcome::Passed
}

fn listen(world: &World<'_>) -> Outcome {
    let Some(listening) = world.factory().listening() else {
        return Outcome::NotApplicable("a listening socket");
    };
    let listening = world.adopt(listening);
    let proxy = world.proxy();
    let wrong = [
        world.splice_error(&proxy.source, &listening),
        world.splice_error(&listening, &proxy.sink),
    ];
    assert_eq!(
        wrong,
        [Role::Sink, Role::Source].map(SpliceError::Listening)
    );
    assert_eq!(listening.unsplice(), Err(UnspliceError::Listening));
    Outcome::Passed
}

fn ring(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let (a, b) = (proxy.client, proxy.source);
    let splices = [(&a, &b), (&b, &a)].map(|(source, sink)| {
        let splice = source.splice_to(sink, world.options());
        splice.expect("a ring is allowed")
    });
    a.send(b"go").expect("there is room");
    world.until("the bytes have gone round", || {
        splices.iter().map(|splice| splice.bytes()).sum::<u64>() > 1000
    });
    drop((a, b));
    for splice in splices {
        let end = world.end_of(&splice);
        let closed = [Cause::SourceClosed, Cause::SinkClosed];
        assert!(closed.contains(&end.cause), "{end:?}");
    }
    Outcome::Passed
}

fn nonblock(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    proxy.splice_both(world);
    let sent = world.fill(&proxy.client);
    let got = world.receive(&proxy.server, sent.len());
    assert!(got == sent, "the received bytes differ");
    world.assert_silent(&proxy.server);
    Outcome::Passed
}

fn resplice(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    proxy.splice_both(world);
    world.exchange(&proxy.client, &proxy.server, b"one");
    world.exchange(&proxy.server, &proxy.client, b"two!");
    assert_eq!(proxy.counters(), [3, 4]);
    assert!(proxy.source.unsplice().is_ok());
    assert!(proxy.sink.unsplice().is_ok());
    proxy.splice_both(world);
    assert_eq!(proxy.counters(), [0, 0]);
    world.exchange(&proxy.client, &proxy.server, b"again");
    assert_eq!(proxy.counters(), [5, 0]);
    Outcome::Passed
}

fn throughput(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    proxy.splice_both(world);
    if world.is_virtual() {
        world.pump(&proxy.client, &proxy.server, 2_000_017, || false);
        world.pump(&proxy.server, &proxy.client, 900_001, || false);
    } else {
        // Each end is shared by two threads.
        proxy.client.set_nonblocking(true);
        proxy.server.set_nonblocking(true);
        std::thread::scope(|scope| {
            scope.spawn(|| world.pump(&proxy.client, &proxy.server, 2_000_017, || false));
            scope.spawn(|| world.pump(&proxy.server, &proxy.client, 900_001, || false));
        });
    }
    assert_eq!(proxy.counters(), [2_000_017, 900_001]);
    Outcome::Passed
}

fn two_kinds(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    proxy.splice_both(world);
    world.exchange(&proxy.client, &proxy.server, b"there");
    world.exchange(&proxy.server, &proxy.client, b"back");
    assert_eq!(proxy.counters(), [5, 4]);
    let end = proxy.sink.unsplice().expect("spliced");
    assert_eq!((end.bytes, end.residual), (4, 0));
    assert_eq!(world.try_read(&proxy.sink), Err(ErrorKind::WouldBlock));
    Outcome::Passed
}
