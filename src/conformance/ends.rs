//! How splices end: by their source, by their sink, by a close of either.
//!
//! Each case ends a splice in one way and checks the cause, the bytes that were not moved, `SO_ERROR`
//! of both sockets, and the further use of the sockets.

use super::proxy::SMALL;
use super::{BOTH, Case, Outcome, RESETS, Setup, Verdict, World};
use crate::error::SoError;
use crate::socket::Socket;
use crate::splice::{Cause, End, Options, Splice};
use std::net::Shutdown;
use std::time::Duration;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "eof ends after the last byte and is not forwarded",
        behaviour: "the source's end of file ends the splice; the sink is not shut down",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: eof,
    },
    Case {
        name: "eof with a full sink waits until it is drained",
        behaviour: "end of file while bytes wait on the source",
        freebsd: "the splice ends, the bytes stay on the source",
        openbsd: "the splice ends after the last byte",
        here: "as OpenBSD",
        flavors: BOTH,
        run: eof_with_full_sink,
    },
    Case {
        name: "eof before the splice",
        behaviour: "a source at its end can be spliced: queued bytes are moved in the call",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: eof_before,
    },
    Case {
        name: "shutdown of the source for reading",
        behaviour: "`shutdown(source, SHUT_RD)` discards the queued bytes and ends the splice as end of file",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: source_shut_for_reading,
    },
    Case {
        name: "shutdown of the directions that are not spliced",
        behaviour: "`shutdown(source, SHUT_WR)` and `shutdown(sink, SHUT_RD)` leave the splice alone",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: other_directions_shut,
    },
    Case {
        name: "sink shut down without data",
        behaviour: "`shutdown(sink, SHUT_WR)` ends the splice at once, without any data",
        freebsd: "no error",
        openbsd: "`EPIPE` on the source",
        here: "by flavor",
        flavors: BOTH,
        run: sink_shut,
    },
    Case {
        name: "sink shut down with data",
        behaviour: "`shutdown(sink, SHUT_WR)` while bytes wait for the sink",
        freebsd: "taken from the source and lost",
        openbsd: "stay on the source",
        here: "as OpenBSD",
        flavors: BOTH,
        run: sink_shut_with_data,
    },
    Case {
        name: "sink shut down before the splice",
        behaviour: "a sink that is shut down before: the call succeeds, the splice has ended, nothing was taken",
        freebsd: "the queued bytes are lost",
        openbsd: "nothing is taken",
        here: "as OpenBSD",
        flavors: BOTH,
        run: sink_shut_before,
    },
    Case {
        name: "sink reset by its peer",
        behaviour: "the sink is reset by its peer",
        freebsd: "no error on the source; the sink's may be consumed",
        openbsd: "the sink's error is copied to the source",
        here: "the sink keeps its error in both",
        flavors: BOTH,
        run: sink_reset,
    },
    Case {
        name: "sink reset with data",
        behaviour: "the sink is reset while bytes wait for it: they stay on the source",
        freebsd: "lost",
        openbsd: "they stay",
        here: "as OpenBSD",
        flavors: BOTH,
        run: sink_reset_with_data,
    },
    Case {
        name: "sink whose peer is gone",
        behaviour: "the sink's peer has closed: the splice ends when bytes come back as a reset",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: peer_of_sink_gone,
    },
    Case {
        name: "sink refused while it connects",
        behaviour: "a connecting sink is refused: the bytes that were held stay on the source",
        freebsd: "they were taken and lost before",
        openbsd: "they stay",
        here: "as OpenBSD",
        flavors: BOTH,
        run: sink_refused,
    },
    Case {
        name: "source reset by its peer",
        behaviour: "the source is reset: its received bytes are moved first, the error stays",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: source_reset,
    },
    Case {
        name: "source reset with a full sink",
        behaviour: "the source is reset while the sink is full",
        freebsd: "they stay on the source",
        openbsd: "the splice ends at once, they stay on the source",
        here: "they are moved as those before an end of file",
        flavors: BOTH,
        run: source_reset_with_full_sink,
    },
    Case {
        name: "abort by the user",
        behaviour: "either socket is aborted locally: the splice ends with that error",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: aborted,
    },
    Case {
        name: "source closed with data",
        behaviour: "the source is closed: unread bytes are gone, the peer is reset",
        freebsd: "a last pass may win the race",
        openbsd: "the splice is undone first",
        here: "no pass after the close",
        flavors: BOTH,
        run: source_closed,
    },
    Case {
        name: "sink closed with data",
        behaviour: "the sink is closed: bytes that it had taken are delivered, the rest stays on the source",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: sink_closed,
    },
    Case {
        name: "both closed, source first",
        behaviour: "both are closed, the source first: ends once, both connections go away",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: closed_source_first,
    },
    Case {
        name: "both closed, sink first",
        behaviour: "both are closed, the sink first: ends once, both connections go away",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: closed_sink_first,
    },
    Case {
        name: "a splice keeps no connection open",
        behaviour: "the last handle closes, spliced or not; other handles do not",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: keeps_nothing_open,
    },
    Case {
        name: "SO_ERROR after unsplice",
        behaviour: "`SO_ERROR` of source and sink after unsplice",
        freebsd: "0, 0",
        openbsd: "0, 0",
        here: "",
        flavors: BOTH,
        run: error_after_unsplice,
    },
    Case {
        name: "SO_ERROR after the limit",
        behaviour: "`SO_ERROR` of source and sink after the limit",
        freebsd: "0, 0",
        openbsd: "`EFBIG`, 0",
        here: "and the end of the splice has the cause",
        flavors: BOTH,
        run: error_after_limit,
    },
    Case {
        name: "SO_ERROR after the timeout",
        behaviour: "`SO_ERROR` of source and sink after the timeout",
        freebsd: "0, 0",
        openbsd: "`ETIMEDOUT`, 0",
        here: "and the end of the splice has the cause",
        flavors: BOTH,
        run: error_after_timeout,
    },
    Case {
        name: "SO_ERROR of a splice does not hide the connection's",
        behaviour: "`SO_ERROR` after the limit, of a source that was reset before",
        freebsd: "`ECONNRESET`",
        openbsd: "`ECONNRESET`: it ends the splice before",
        here: "`ECONNRESET`, after the limit",
        flavors: BOTH,
        run: real_error_stays,
    },
    Case {
        name: "SO_ERROR of an ended splice does not end the one in the other direction",
        behaviour: "`EFBIG` on a socket that is the sink of another splice",
        freebsd: "",
        openbsd: "ignored, with `ETIMEDOUT` and `ELOOP`",
        here: "as OpenBSD",
        flavors: BOTH,
        run: error_of_splice_is_no_error_of_sink,
    },
];

#[track_caller]
fn assert_end(end: End, cause: Cause, bytes: u64, residual: usize) {
    assert_eq!(
        (end.cause, end.bytes, end.residual),
        (cause, bytes, residual)
    );
}

fn eof(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let splice = proxy.splice(world);
    world.exchange(&proxy.client, &proxy.server, b"hello");
    world.send(&proxy.client, b"last");
    proxy.client.shutdown(Shutdown::Write).expect("connected");
    assert_end(world.end_of(&splice), Cause::Eof, 9, 0);
    assert_eq!(world.receive(&proxy.server, 4), b"last");
    world.assert_silent(&proxy.server);
    assert_eq!(proxy.errors(), [None, None]);
    assert_eq!(world.try_read(&proxy.source), Ok(Vec::new()));
    world.exchange(&proxy.sink, &proxy.server, b"the sink is mine again");
    world.exchange(&proxy.source, &proxy.client, b"and half of the source");
    Outcome::Passed
}

fn eof_with_full_sink(world: &World<'_>) -> Outcome {
    world.with_full_sink(|| {
        let proxy = world.proxy_with(SMALL);
        let splice = proxy.splice(world);
        let sent = world.stall(&proxy);
        proxy.client.shutdown(Shutdown::Write).expect("connected");
        world.settle();
        if splice.bytes() == sent.len() as u64 {
            return None;
        }
        assert_eq!(splice.end(), None);
        assert!(world.receive(&proxy.server, sent.len()) == sent);
        assert_end(world.end_of(&splice), Cause::Eof, sent.len() as u64, 0);
        world.assert_silent(&proxy.server);
        Some(Outcome::Passed)
    })
}

fn eof_before(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    world.send(&proxy.client, b"queued");
    proxy.client.shutdown(Shutdown::Write).expect("connected");
    world.until("end of file has arrived", || {
        proxy.source.end().rcv().buf.is_closed()
    });
    let splice = proxy.splice(world);
    let end = splice.end().expect("it ends in the call");
    assert_end(end, Cause::Eof, 6, 0);
    assert_eq!(world.receive(&proxy.server, 6), b"queued");
    let end = proxy.splice(world).end().expect("it ends in the call");
    assert_end(end, Cause::Eof, 0, 0);
    Outcome::Passed
}

fn source_shut_for_reading(world: &World<'_>) -> Outcome {
    let proxy = world.proxy_with(SMALL);
    let splice = proxy.splice(world);
    let sent = world.stall(&proxy);
    proxy.source.shutdown(Shutdown::Read).expect("connected");
    assert_eq!(proxy.source.readable_bytes(), 0);
    let end = world.end_of(&splice);
    assert_eq!((end.cause, end.residual), (Cause::Eof, 0));
    let moved = usize::try_from(end.bytes).expect("fits");
    assert!(moved < sent.len());
    assert!(world.receive(&proxy.server, moved) == sent[..moved]);
    world.assert_silent(&proxy.server);
    assert_eq!(world.try_read(&proxy.source), Ok(Vec::new()));
    world.exchange(&proxy.source, &proxy.client, b"it can still write");
    Outcome::Passed
}

fn other_directions_shut(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let splice = proxy.splice(world);
    proxy.source.shutdown(Shutdown::Write).expect("connected");
    proxy.sink.shutdown(Shutdown::Read).expect("connected");
    world.exchange(&proxy.client, &proxy.server, b"still passes");
    world.until("the client sees end of file", || {
        world.try_read(&proxy.client) == Ok(Vec::new())
    });
    world.exchange(&proxy.client, &proxy.server, b"and now");
    assert_eq!(splice.end(), None);
    Outcome::Passed
}

fn sink_shut(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let splice = proxy.splice(world);
    proxy.sink.shutdown(Shutdown::Write).expect("connected");
    assert_end(world.end_of(&splice), Cause::SinkShutdown, 0, 0);
    let expected = world.by_flavor(None, Some(SoError::BrokenPipe));
    assert_eq!(proxy.errors(), [expected, None]);
    world.exchange(&proxy.client, &proxy.source, b"the source is mine again");
    world.exchange(&proxy.server, &proxy.sink, b"and half of the sink");
    Outcome::Passed
}

fn sink_shut_with_data(world: &World<'_>) -> Outcome {
    let proxy = world.proxy_with(SMALL);
    let splice = proxy.splice(world);
    let sent = world.stall(&proxy);
    proxy.sink.shutdown(Shutdown::Write).expect("connected");
    let end = world.end_of(&splice);
    assert_eq!(end.cause, Cause::SinkShutdown);
    let expected = world.by_flavor(None, Some(SoError::BrokenPipe));
    assert_eq!(proxy.errors(), [expected, None]);
    let moved = usize::try_from(end.bytes).expect("fits");
    assert!(world.receive(&proxy.server, moved) == sent[..moved]);
    let rest = world.receive(&proxy.source, sent.len() - moved);
    assert!(rest == sent[moved..], "no byte is lost or duplicated");
    Outcome::Passed
}

fn sink_shut_before(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    world.send(&proxy.client, b"queued");
    world.arrived(&proxy.source, 6);
    proxy.sink.shutdown(Shutdown::Write).expect("connected");
    let end = proxy.splice(world).end().expect("it ends in the call");
    assert_end(end, Cause::SinkShutdown, 0, 6);
    proxy.source.take_error();
    assert_eq!(world.receive(&proxy.source, 6), b"queued");
    Outcome::Passed
}

fn sink_reset(world: &World<'_>) -> Outcome {
    if !world.factory().resets() {
        return RESETS;
    }
    let reset = SoError::ConnectionReset;
    let proxy = world.proxy();
    let splice = proxy.splice(world);
    world.exchange(&proxy.client, &proxy.server, b"hello");
    proxy.server.abort();
    assert_end(world.end_of(&splice), Cause::SinkError(reset), 5, 0);
    let expected = world.by_flavor(None, Some(reset));
    assert_eq!(proxy.errors(), [expected, Some(reset)]);
    world.exchange(&proxy.client, &proxy.source, b"the source is mine again");
    Outcome::Passed
}

fn sink_reset_with_data(world: &World<'_>) -> Outcome {
    let reset = SoError::ConnectionReset;
    let proxy = world.proxy_with(SMALL);
    let splice = proxy.splice(world);
    let sent = world.stall(&proxy);
    proxy.server.abort();
    let end = world.end_of(&splice);
    assert_eq!(end.cause, Cause::SinkError(reset));
    let expected = world.by_flavor(None, Some(reset));
    assert_eq!(proxy.errors(), [expected, Some(reset)]);
    let moved = usize::try_from(end.bytes).expect("fits");
    let rest = world.receive(&proxy.source, sent.len() - moved);
    assert!(rest == sent[moved..], "counted bytes and these are all");
    Outcome::Passed
}

fn peer_of_sink_gone(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let splice = proxy.splice(world);
    proxy.server.close();
    proxy.client.set_nonblocking(true);
    world.until("bytes come back as a reset", || {
        assert!(proxy.client.send(b"x").is_ok());
        world.settle();
        splice.is_ended()
    });
    let end = splice.wait();
    let reset = SoError::ConnectionReset;
    assert_eq!(end.cause, Cause::SinkError(reset));
    assert_eq!(proxy.sink.take_error(), Some(reset));
    Outcome::Passed
}

fn sink_refused(world: &World<'_>) -> Outcome {
    let [client, source] = world.connect(Setup::default());
    world.send(&client, b"held");
    world.arrived(&source, 4);
    let Some(connecting) = world.connecting() else {
        return Outcome::NotApplicable("a held connection");
    };
    let sink = connecting.socket;
    let splice = source.splice_to(&sink, world.options());
    let splice = splice.expect("a sink may be connecting");
    assert!((connecting.complete)(Verdict::Refuse).is_none());
    let refused = SoError::ConnectionRefused;
    assert_end(world.end_of(&splice), Cause::SinkError(refused), 0, 4);
    assert_eq!(source.take_error(), world.by_flavor(None, Some(refused)));
    assert_eq!(world.receive(&source, 4), b"held");
    Outcome::Passed
}

fn source_reset(world: &World<'_>) -> Outcome {
    if !world.factory().resets() {
        return RESETS;
    }
    let reset = SoError::ConnectionReset;
    let proxy = world.proxy();
    world.send(&proxy.client, b"before");
    world.arrived(&proxy.source, 6);
    let splice = proxy.splice(world);
    proxy.client.abort();
    assert_end(world.end_of(&splice), Cause::SourceError(reset), 6, 0);
    assert_eq!(world.receive(&proxy.server, 6), b"before");
    assert_eq!(proxy.errors(), [Some(reset), None]);
    world.exchange(&proxy.sink, &proxy.server, b"the sink is mine again");
    Outcome::Passed
}

fn source_reset_with_full_sink(world: &World<'_>) -> Outcome {
    if !world.factory().resets() {
        return RESETS;
    }
    let reset = SoError::ConnectionReset;
    let proxy = world.proxy_with(SMALL);
    let splice = proxy.splice(world);
    let sent = world.stall(&proxy);
    proxy.client.abort();
    world.until("the reset has arrived", || {
        proxy.source.end().error().is_some()
    });
    let all = proxy.source.readable_bytes() + usize::try_from(splice.bytes()).expect("fits");
    assert!(world.receive(&proxy.server, all) == sent[..all]);
    let end = world.end_of(&splice);
    assert_end(end, Cause::SourceError(reset), all as u64, 0);
    assert_eq!(proxy.errors(), [Some(reset), None]);
    Outcome::Passed
}

fn aborted(world: &World<'_>) -> Outcome {
    let aborted = SoError::ConnectionAborted;
    let proxy = world.proxy();
    let splice = proxy.splice(world);
    proxy.source.abort();
    let end = world.end_of(&splice);
    assert_eq!(end.cause, Cause::SourceError(aborted));
    world.exchange(&proxy.sink, &proxy.server, b"the sink is mine again");

    let proxy = world.proxy();
    let splice = proxy.splice(world);
    proxy.sink.abort();
    let end = world.end_of(&splice);
    assert_eq!(end.cause, Cause::SinkError(aborted));
    let expected = world.by_flavor(None, Some(aborted));
    assert_eq!(proxy.errors(), [expected, Some(aborted)]);
    world.exchange(&proxy.client, &proxy.source, b"the source is mine again");
    Outcome::Passed
}

fn source_closed(world: &World<'_>) -> Outcome {
    let proxy = world.proxy_with(SMALL);
    let splice = proxy.splice(world);
    let sent = world.stall(&proxy);
    drop(proxy.source);
    let end = splice.end().expect("a close ends it at once");
    assert_eq!(end.cause, Cause::SourceClosed);
    assert!(end.residual > 0);
    world.until("the client is reset", || {
        proxy.client.take_error() == Some(SoError::ConnectionReset)
    });
    let moved = usize::try_from(end.bytes).expect("fits");
    assert!(world.receive(&proxy.server, moved) == sent[..moved]);
    world.exchange(&proxy.sink, &proxy.server, b"the sink is mine again");
    assert_eq!(proxy.sink.take_error(), None);
    Outcome::Passed
}

fn sink_closed(world: &World<'_>) -> Outcome {
    let proxy = world.proxy_with(SMALL);
    let splice = proxy.splice(world);
    let sent = world.stall(&proxy);
    drop(proxy.sink);
    let end = splice.end().expect("a close ends it at once");
    assert_eq!(end.cause, Cause::SinkClosed);
    let moved = usize::try_from(end.bytes).expect("fits");
    assert!(world.receive(&proxy.server, moved) == sent[..moved]);
    world.until("then the server sees end of file", || {
        world.try_read(&proxy.server) == Ok(Vec::new())
    });
    assert_eq!(proxy.source.take_error(), None);
    let rest = world.receive(&proxy.source, sent.len() - moved);
    assert!(rest == sent[moved..], "no byte is lost or duplicated");
    Outcome::Passed
}

fn closed_source_first(world: &World<'_>) -> Outcome {
    let proxy = world.proxy_with(SMALL);
    let [there, back] = proxy.splice_both(world);
    let sent = world.stall(&proxy);
    drop(proxy.source);
    drop(proxy.sink);
    assert_eq!(there.wait().cause, Cause::SourceClosed);
    assert_eq!(back.wait().cause, Cause::SinkClosed);
    gone(world, &proxy.client, &proxy.server, &sent, &there);
    Outcome::Passed
}

fn closed_sink_first(world: &World<'_>) -> Outcome {
    let proxy = world.proxy_with(SMALL);
    let [there, back] = proxy.splice_both(world);
    let sent = world.stall(&proxy);
    drop(proxy.sink);
    drop(proxy.source);
    assert_eq!(there.wait().cause, Cause::SinkClosed);
    assert_eq!(back.wait().cause, Cause::SourceClosed);
    gone(world, &proxy.client, &proxy.server, &sent, &there);
    Outcome::Passed
}

/// The client is reset, since its bytes were not read; the server gets the moved bytes, and the end.
fn gone(world: &World<'_>, client: &Socket, server: &Socket, sent: &[u8], there: &Splice) {
    let moved = usize::try_from(there.bytes()).expect("fits");
    assert!(world.receive(server, moved) == sent[..moved]);
    world.until("the server sees end of file", || {
        world.try_read(server) == Ok(Vec::new())
    });
    world.until("the client is reset", || {
        client.take_error() == Some(SoError::ConnectionReset)
    });
    assert_eq!(world.pool().stats().ended(), 2);
}

fn keeps_nothing_open(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let splices = proxy.splice_both(world);
    let other_handles = (proxy.source.clone(), proxy.sink.clone());
    drop((proxy.source, proxy.sink));
    world.exchange(&proxy.client, &proxy.server, b"still open");
    drop(other_handles);
    for end in [&proxy.client, &proxy.server] {
        world.until("end of file", || world.try_read(end) == Ok(Vec::new()));
    }
    assert!(splices.iter().all(Splice::is_ended));
    Outcome::Passed
}

fn error_after_unsplice(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    proxy.splice(world);
    assert!(proxy.source.unsplice().is_ok());
    assert_eq!(proxy.errors(), [None, None]);
    Outcome::Passed
}

fn error_after_limit(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let splice = proxy.splice_with(Options {
        limit: Some(4),
        ..world.options()
    });
    world.exchange(&proxy.client, &proxy.server, b"four");
    assert_eq!(world.end_of(&splice).cause, Cause::Limit);
    let expected = world.by_flavor(None, Some(SoError::SpliceLimit));
    assert_eq!(proxy.errors(), [expected, None]);
    assert_eq!(proxy.errors(), [None, None], "it is reported once");
    Outcome::Passed
}

fn error_after_timeout(world: &World<'_>) -> Outcome {
    for is_idle in [true, false] {
        let proxy = world.proxy();
        let time = Some(Duration::from_millis(20));
        let splice = proxy.splice_with(Options {
            idle: time.filter(|_| is_idle),
            lifetime: time.filter(|_| !is_idle),
            ..world.options()
        });
        world.end_of(&splice);
        let expected = world.by_flavor(None, Some(SoError::SpliceTimedOut));
        assert_eq!(proxy.errors(), [expected, None]);
    }
    Outcome::Passed
}

fn real_error_stays(world: &World<'_>) -> Outcome {
    if !world.factory().resets() {
        return RESETS;
    }
    let proxy = world.proxy();
    world.send(&proxy.client, b"123456");
    world.arrived(&proxy.source, 6);
    proxy.client.abort();
    world.until("the reset has arrived", || {
        proxy.source.end().error().is_some()
    });
    let splice = proxy.splice_with(Options {
        limit: Some(4),
        ..world.options()
    });
    assert_end(world.end_of(&splice), Cause::Limit, 4, 2);
    assert_eq!(world.receive(&proxy.source, 2), b"56");
    assert_eq!(proxy.errors(), [Some(SoError::ConnectionReset), None]);
    Outcome::Passed
}

fn error_of_splice_is_no_error_of_sink(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    let there = proxy.splice_with(Options {
        limit: Some(4),
        ..world.options()
    });
    let back = proxy.sink.splice_to(&proxy.source, world.options());
    let back = back.expect("the other direction is free");
    world.exchange(&proxy.client, &proxy.server, b"four");
    world.end_of(&there);
    world.exchange(&proxy.server, &proxy.client, b"goes on");
    assert_eq!(back.end(), None);
    let expected = world.by_flavor(None, Some(SoError::SpliceLimit));
    assert_eq!(proxy.errors(), [expected, None]);
    Outcome::Passed
}
