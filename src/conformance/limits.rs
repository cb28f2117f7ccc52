//! Limits, timeouts, and the byte counter that is compared with the limit.
//!
//! The counter belongs to the source: only a splice that is set up resets it, only bytes that a
//! splice has moved advance it, and it can be read afterwards.

use super::proxy::{Proxy, SMALL};
use super::{BOTH, Case, FREEBSD, Outcome, World};
use crate::protocol::SoState;
use crate::splice::{Cause, Options, Role, Splice, SpliceError, UnspliceError};
use std::net::Shutdown;
use std::time::Duration;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "a limit inside of what is queued",
        behaviour: "a limit inside of the queued bytes splits them; the call succeeds and the splice has ended",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: limit_in_queued_bytes,
    },
    Case {
        name: "a limit that queued bytes meet exactly",
        behaviour: "a limit that queued bytes meet exactly: the call succeeds and the splice has ended",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: limit_met_exactly,
    },
    Case {
        name: "limit and end of file in one pass",
        behaviour: "limit and end of file in one pass: the limit counts",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: limit_and_eof,
    },
    Case {
        name: "end of file below the limit",
        behaviour: "end of file below the limit ends the splice after the bytes that there were",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: eof_below_limit,
    },
    Case {
        name: "a limit behind a full sink",
        behaviour: "a limit counts moved bytes, not those that wait for a full sink",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: limit_behind_full_sink,
    },
    Case {
        name: "spliced again after each limit",
        behaviour: "a stream in pieces, spliced again after each limit: none lost, each count exact",
        freebsd: "",
        openbsd: "may end short of the limit for lack of memory",
        here: "never short",
        flavors: BOTH,
        run: limit_again_and_again,
    },
    Case {
        name: "the largest limit",
        behaviour: "the largest limit is as good as none",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: largest_limit,
    },
    Case {
        name: "the counter of a socket that was never spliced",
        behaviour: "the counter of a socket that was never spliced",
        freebsd: "0; of a listening socket `ENOTCONN`",
        openbsd: "0",
        here: "as OpenBSD",
        flavors: BOTH,
        run: counter_of_unspliced,
    },
    Case {
        name: "calls that fail leave counter and limit alone",
        behaviour: "calls that fail, while a splice runs and after it: counter and limit",
        freebsd: "they set the counter to 0, which extends the limit",
        openbsd: "they change nothing",
        here: "as OpenBSD",
        flavors: BOTH,
        run: failing_calls,
    },
    Case {
        name: "counters of source and sink are independent",
        behaviour: "the sink's counter is that of its own splice",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: independent_counters,
    },
    Case {
        name: "the counter includes what the peer has seen",
        behaviour: "bytes are counted before they can arrive",
        freebsd: "",
        openbsd: "after each send",
        here: "as FreeBSD",
        flavors: BOTH,
        run: counted_before_seen,
    },
    Case {
        name: "bytes that the user reads first are not counted",
        behaviour: "bytes that the user reads before or after the splice are not counted",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: read_before_and_after,
    },
    Case {
        name: "bytes that the user reads while spliced are not counted",
        behaviour: "bytes that the user reads while spliced are not counted, nor do they meet the limit",
        freebsd: "",
        openbsd: "cannot be read",
        here: "by flavor",
        flavors: FREEBSD,
        run: read_while_spliced,
    },
    Case {
        name: "the counter outlives the splice",
        behaviour: "the counter outlives the splice, until the next one is set up",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: counter_outlives,
    },
    Case {
        name: "timeouts and limits of zero",
        behaviour: "timeouts and limits of 0 are none",
        freebsd: "",
        openbsd: "",
        here: "the same in the option; refused where `None` can be said",
        flavors: BOTH,
        run: zero,
    },
    Case {
        name: "the longest timeouts",
        behaviour: "timeouts of 2^31 to 2^64 seconds",
        freebsd: "not checked",
        openbsd: "none",
        here: "as OpenBSD",
        flavors: BOTH,
        run: longest_timeouts,
    },
    Case {
        name: "moved bytes re-arm the idle time",
        behaviour: "the timeout is re-armed by moved bytes",
        freebsd: "nothing re-arms it",
        openbsd: "they do",
        here: "`Options::idle`",
        flavors: BOTH,
        run: idle_rearmed,
    },
    Case {
        name: "moves of no bytes do not re-arm the idle time",
        behaviour: "the timeout is not re-armed by wake-ups without bytes",
        freebsd: "",
        openbsd: "they do",
        here: "only moved bytes count",
        flavors: BOTH,
        run: idle_not_rearmed,
    },
    Case {
        name: "nothing re-arms the lifetime",
        behaviour: "the timeout is absolute",
        freebsd: "",
        openbsd: "moves do",
        here: "`Options::lifetime`",
        flavors: BOTH,
        run: lifetime,
    },
    Case {
        name: "idle time and lifetime together",
        behaviour: "of idle time and lifetime, the first to expire ends the splice",
        freebsd: "has only the lifetime",
        openbsd: "has only the idle time",
        here: "both",
        flavors: BOTH,
        run: idle_and_lifetime,
    },
    Case {
        name: "each direction has its own idle time",
        behaviour: "bytes of one direction do not re-arm the other's timeout",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: one_sided,
    },
    Case {
        name: "the idle time passes while bytes are stuck",
        behaviour: "the timeout passes while bytes are stuck: they stay, and a new splice takes them",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: idle_while_stuck,
    },
    Case {
        name: "a late timer of an old splice",
        behaviour: "a late timer of an old splice does nothing to the next one",
        freebsd: "may dissolve it",
        openbsd: "does nothing",
        here: "as OpenBSD",
        flavors: BOTH,
        run: late_timer,
    },
    Case {
        name: "an old handle cannot end a new splice",
        behaviour: "a handle ends its own splice and no later one",
        freebsd: "has no handles",
        openbsd: "has no handles",
        here: "`Splice::unsplice`",
        flavors: BOTH,
        run: old_handle,
    },
];

fn limited(world: &World<'_>, proxy: &Proxy, limit: u64) -> Splice {
    proxy.splice_with(Options {
        limit: Some(limit),
        ..world.options()
    })
}

fn limit_in_queued_bytes(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    world.send(&proxy.client, b"0123456789");
    world.arrived(&proxy.source, 10);
    let end = limited(world, &proxy, 4).end();
    let end = end.expect("it ends in the call");
    assert_eq!((end.cause, end.bytes, end.residual), (Cause::Limit, 4, 6));
    proxy.source.take_error();
    assert_eq!(world.receive(&proxy.server, 4), b"0123");
    assert_eq!(world.receive(&proxy.source, 6), b"456789");
    world.assert_silent(&proxy.server);
    Outcome::Passed
}

fn limit_met_exactly(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    world.send(&proxy.client, b"0123456789");
    world.arrived(&proxy.source, 10);
    let end = limited(world, &proxy, 10).end();
    let end = end.expect("it ends in the call");
    assert_eq!((end.cause, end.bytes, end.residual), (Cause::Limit, 10, 0));
    assert_eq!(world.receive(&proxy.server, 10), b"0123456789");
    Outcome::Passed
}

fn limit_and_eof(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    world.send(&proxy.client, b"four");
    proxy.client.shutdown(Shutdown::Write).expect("connected");
    world.until("end of file has arrived", || {
        proxy.source.end().rcv().buf.is_closed()
    });
    let end = limited(world, &proxy, 4).end().expect("it ends at once");
    assert_eq!((end.cause, end.bytes), (Cause::Limit, 4));
    proxy.source.take_error();
    assert_eq!(world.try_read(&proxy.source), Ok(Vec::new()));
    Outcome::Passed
}

fn eof_below_limit(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let splice = limited(world, &proxy, 5);
    world.send(&proxy.client, b"four");
    proxy.client.shutdown(Shutdown::Write).expect("connected");
    let end = world.end_of(&splice);
    assert_eq!((end.cause, end.bytes), (Cause::Eof, 4));
    assert_eq!(proxy.errors(), [None, None]);
    Outcome::Passed
}

fn limit_behind_full_sink(world: &World<'_>) -> Outcome {
    world.with_full_sink(|| {
        let proxy = world.proxy_with(SMALL);
        let first = proxy.splice(world);
        let sent = world.stall(&proxy);
        let moved = first.unsplice().expect("spliced").bytes;
        // One byte less than available.
        let limit = sent.len() as u64 - moved - 1;
        let splice = limited(world, &proxy, limit);
        world.settle();
        if splice.is_ended() {
            return None;
        }
        let got = world.receive(&proxy.server, sent.len() - 1);
        assert!(got == sent[..sent.len() - 1]);
        let end = world.end_of(&splice);
        assert_eq!((end.cause, end.bytes), (Cause::Limit, limit));
        proxy.source.take_error();
        assert_eq!(world.receive(&proxy.source, 1), sent[sent.len() - 1..]);
        Some(Outcome::Passed)
    })
}

fn limit_again_and_again(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let mut splice = limited(world, &proxy, 1);
    let mut done = 0;
    let mut limit = 1;
    world.pump(&proxy.client, &proxy.server, 100_000, || {
        let is_ended = splice.is_ended();
        if is_ended {
            let end = splice.wait();
            assert_eq!((end.cause, end.bytes), (Cause::Limit, limit));
            proxy.source.take_error();
            done += limit;
            limit = 1 + limit * 3 % 10_007;
            splice = limited(world, &proxy, limit);
        }
        is_ended
    });
    assert_eq!(done + splice.bytes(), 100_000);
    Outcome::Passed
}

fn largest_limit(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let splice = limited(world, &proxy, u64::MAX);
    world.pump(&proxy.client, &proxy.server, 10_000, || false);
    assert_eq!((splice.bytes(), splice.end()), (10_000, None));
    Outcome::Passed
}

fn counter_of_unspliced(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    world.exchange(&proxy.client, &proxy.source, b"not spliced");
    assert_eq!(proxy.counters(), [0, 0]);
    assert_eq!(world.odd(SoState::Listening).spliced(), 0);
    Outcome::Passed
}

fn failing_calls(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let splice = limited(world, &proxy, 10);
    world.exchange(&proxy.client, &proxy.server, b"12345678");
    let fail = || {
        let listening = world.odd(SoState::Listening);
        let unconnected = world.odd(SoState::Unconnected);
        let unix = world.odd(SoState::NotAStream);
        for sink in [&listening, &unconnected, &unix] {
            world.splice_error(&proxy.source, sink);
        }
    };
    fail();
    let busy = world.splice_error(&proxy.source, &proxy.server);
    assert_eq!(busy, SpliceError::Busy(Role::Source));
    let busy = world.splice_error(&proxy.client, &proxy.sink);
    assert_eq!(busy, SpliceError::Busy(Role::Sink));
    assert_eq!(proxy.source.spliced(), 8);
    world.send(&proxy.client, b"90abc");
    let end = world.end_of(&splice);
    assert_eq!((end.cause, end.bytes), (Cause::Limit, 10));
    fail();
    assert_eq!(proxy.source.unsplice(), Err(UnspliceError::NotSpliced));
    assert_eq!(proxy.source.spliced(), 10);
    proxy.source.take_error();
    assert_eq!(world.receive(&proxy.source, 3), b"abc");
    Outcome::Passed
}

fn independent_counters(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    proxy.splice_both(world);
    world.exchange(&proxy.client, &proxy.server, b"three");
    world.exchange(&proxy.server, &proxy.client, b"sixsix");
    assert_eq!(proxy.counters(), [5, 6]);
    assert!(proxy.source.unsplice().is_ok());
    proxy.splice(world);
    assert_eq!(proxy.counters(), [0, 6]);
    Outcome::Passed
}

fn counted_before_seen(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    proxy.splice(world);
    for count in 1..=50 {
        world.exchange(&proxy.client, &proxy.server, b"x");
        assert_eq!(proxy.source.spliced(), count);
    }
    Outcome::Passed
}

fn read_before_and_after(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    world.exchange(&proxy.client, &proxy.source, b"by the user");
    let splice = limited(world, &proxy, 3);
    world.send(&proxy.client, b"123and the user again");
    assert_eq!(world.end_of(&splice).bytes, 3);
    proxy.source.take_error();
    assert_eq!(world.receive(&proxy.source, 18), b"and the user again");
    assert_eq!(proxy.source.spliced(), 3);
    Outcome::Passed
}

fn read_while_spliced(world: &World<'_>) -> Outcome {
    world.with_full_sink(|| {
        let proxy = world.proxy_with(SMALL);
        let first = proxy.splice(world);
        let sent = world.stall(&proxy);
        let moved = first.unsplice().expect("spliced").bytes;
        let left = sent.len() - usize::try_from(moved).expect("fits");
        let splice = limited(world, &proxy, left as u64 - 100);
        let held = splice.bytes();
        let taken = proxy.source.recv_chain(100).ok()?;
        if splice.bytes() != held {
            return None;
        }
        let taken = taken.to_vec();
        assert_eq!(taken.len(), 100);
        // Without those 100 bytes the limit is just reached.
        let at = usize::try_from(moved + held).expect("fits");
        assert_eq!(taken, sent[at..][..100], "the user's bytes");
        let got = world.receive(&proxy.server, sent.len() - 100);
        assert!(got == [&sent[..at], &sent[at + 100..]].concat());
        assert_eq!(world.end_of(&splice).cause, Cause::Limit);
        Some(Outcome::Passed)
    })
}

fn counter_outlives(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let splice = proxy.splice(world);
    world.exchange(&proxy.client, &proxy.server, b"seven b");
    proxy.sink.close();
    assert_eq!(world.end_of(&splice).bytes, 7);
    assert_eq!(proxy.source.spliced(), 7);
    proxy.source.shutdown(Shutdown::Both).expect("open");
    assert_eq!(proxy.source.spliced(), 7);
    let other = world.proxy();
    let error = world.splice_error(&proxy.source, &other.sink);
    assert_eq!(error, SpliceError::NotConnected(Role::Source));
    assert_eq!((proxy.source.spliced(), splice.bytes()), (7, 7));
    Outcome::Passed
}

fn zero(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let none = Some(Duration::ZERO);
    let wrong = [
        Options {
            idle: none,
            ..world.options()
        },
        Options {
            lifetime: none,
            ..world.options()
        },
    ];
    for options in wrong {
        let splice = proxy.source.splice_to(&proxy.sink, options);
        assert_eq!(splice.map(drop), Err(SpliceError::ZeroTimeout));
    }
    let limit = Options {
        limit: Some(0),
        ..world.options()
    };
    let splice = proxy.source.splice_to(&proxy.sink, limit);
    assert_eq!(splice.map(drop), Err(SpliceError::ZeroLimit));
    assert_eq!(world.pool().stats().started, 0);
    Outcome::Passed
}

fn longest_timeouts(world: &World<'_>) -> Outcome {
    for seconds in [1 << 31, 1 << 32, 1 << 62, u64::MAX] {
        let proxy = world.proxy();
        let time = Some(Duration::from_secs(seconds));
        let splice = proxy.splice_with(Options {
            idle: time,
            lifetime: time,
            ..world.options()
        });
        world.exchange(&proxy.client, &proxy.server, b"passes");
        assert_eq!(splice.end(), None);
    }
    Outcome::Passed
}

const SECOND: Duration = Duration::from_secs(1);
const MOST_OF_IT: Duration = Duration::from_millis(700);
const VIRTUAL: Outcome = Outcome::NotApplicable("virtual time");

fn idle_for(world: &World<'_>, proxy: &Proxy, idle: Duration) -> Splice {
    proxy.splice_with(Options {
        idle: Some(idle),
        ..world.options()
    })
}

fn idle_rearmed(world: &World<'_>) -> Outcome {
    if !world.is_virtual() {
        return VIRTUAL;
    }
    let proxy = world.proxy();
    let splice = idle_for(world, &proxy, SECOND);
    for _ in 0..5 {
        world.sleep(MOST_OF_IT);
        world.exchange(&proxy.client, &proxy.server, b"x");
    }
    world.sleep(MOST_OF_IT);
    assert_eq!(splice.end(), None);
    world.sleep(MOST_OF_IT);
    let end = splice.end().expect("a second without bytes");
    assert_eq!((end.cause, end.bytes), (Cause::Idle, 5));
    Outcome::Passed
}

fn idle_not_rearmed(world: &World<'_>) -> Outcome {
    if !world.is_virtual() {
        return VIRTUAL;
    }
    let proxy = world.proxy();
    let splice = idle_for(world, &proxy, SECOND);
    for _ in 0..3 {
        world.sleep(SECOND / 4);
        // The program's bytes, and the room after them, wake the sink.
        world.exchange(&proxy.sink, &proxy.server, b"mine");
        proxy.source.set_rcv_lowat(1);
    }
    assert_eq!(splice.end(), None);
    world.sleep(SECOND / 4);
    assert_eq!(splice.end().map(|end| end.cause), Some(Cause::Idle));
    Outcome::Passed
}

fn lifetime(world: &World<'_>) -> Outcome {
    if !world.is_virtual() {
        return VIRTUAL;
    }
    let proxy = world.proxy();
    let splice = proxy.splice_with(Options {
        lifetime: Some(SECOND),
        ..world.options()
    });
    world.sleep(MOST_OF_IT);
    world.exchange(&proxy.client, &proxy.server, b"x");
    assert_eq!(splice.end(), None);
    world.sleep(SECOND - MOST_OF_IT);
    let end = splice.end().expect("a second is over");
    assert_eq!((end.cause, end.bytes), (Cause::Lifetime, 1));
    proxy.source.take_error();
    world.exchange(
        &proxy.client,
        &proxy.source,
        b"late, and a byte of the user's",
    );
    Outcome::Passed
}

fn idle_and_lifetime(world: &World<'_>) -> Outcome {
    if !world.is_virtual() {
        return VIRTUAL;
    }
    let cases = [
        (SECOND, 2 * SECOND, Cause::Idle),
        (2 * SECOND, SECOND, Cause::Lifetime),
    ];
    for (idle, lifetime, expected) in cases {
        let proxy = world.proxy();
        let splice = proxy.splice_with(Options {
            idle: Some(idle),
            lifetime: Some(lifetime),
            ..world.options()
        });
        world.sleep(SECOND);
        assert_eq!(splice.end().map(|end| end.cause), Some(expected));
    }
    Outcome::Passed
}

fn one_sided(world: &World<'_>) -> Outcome {
    if !world.is_virtual() {
        return VIRTUAL;
    }
    let proxy = world.proxy();
    let there = idle_for(world, &proxy, SECOND);
    let back = proxy.sink.splice_to(
        &proxy.source,
        Options {
            idle: Some(SECOND),
            ..world.options()
        },
    );
    let back = back.expect("the other direction is free");
    for _ in 0..2 {
        world.sleep(MOST_OF_IT);
        world.exchange(&proxy.client, &proxy.server, b"x");
    }
    assert_eq!(back.end().map(|end| end.cause), Some(Cause::Idle));
    assert_eq!(there.end(), None);
    Outcome::Passed
}

fn idle_while_stuck(world: &World<'_>) -> Outcome {
    if !world.is_virtual() {
        return VIRTUAL;
    }
    let proxy = world.proxy_with(SMALL);
    let splice = idle_for(world, &proxy, SECOND);
    let sent = world.stall(&proxy);
    world.sleep(SECOND);
    let end = splice.end().expect("nothing has moved for a second");
    assert_eq!(end.cause, Cause::Idle);
    assert!(end.residual > 0);
    assert_eq!(proxy.source.readable_bytes(), end.residual);
    let again = proxy.splice(world);
    assert!(world.receive(&proxy.server, sent.len()) == sent);
    assert_eq!(end.bytes + again.bytes(), sent.len() as u64);
    Outcome::Passed
}

fn late_timer(world: &World<'_>) -> Outcome {
    if !world.is_virtual() {
        return VIRTUAL;
    }
    let proxy = world.proxy();
    let old = proxy.splice_with(Options {
        idle: Some(SECOND),
        lifetime: Some(SECOND),
        ..world.options()
    });
    world.sleep(MOST_OF_IT);
    assert!(proxy.source.unsplice().is_ok());
    let new = idle_for(world, &proxy, SECOND);
    world.sleep(MOST_OF_IT);
    assert_eq!(new.end(), None);
    assert_eq!(old.end().map(|end| end.cause), Some(Cause::Unspliced));
    world.sleep(MOST_OF_IT);
    assert_eq!(new.end().map(|end| end.cause), Some(Cause::Idle));
    Outcome::Passed
}

fn old_handle(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let old = proxy.splice(world);
    world.exchange(&proxy.client, &proxy.server, b"old");
    assert!(old.unsplice().is_ok());
    let new = proxy.splice(world);
    assert_eq!(old.unsplice(), Err(UnspliceError::NotSpliced));
    world.exchange(&proxy.client, &proxy.server, b"newer");
    assert_eq!((old.bytes(), new.bytes(), new.end()), (3, 5, None));
    Outcome::Passed
}
