//! The flow of bytes: waiting conditions; no byte is lost, duplicated or reordered.
//!
//! Buffers may be larger than requested, so "full" means: filled until no byte moves.

use super::proxy::SMALL;
use super::{BOTH, Case, Connecting, Outcome, Setup, Verdict, World};
use crate::socket::Socket;
use crate::splice::{Cause, Options};
use std::net::Shutdown;
use std::time::Duration;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "queued bytes are moved in the call",
        behaviour: "the first pass runs in the thread that splices",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: moved_in_the_call,
    },
    Case {
        name: "a full source is drained",
        behaviour: "the sender was blocked before the splice is set; all of it passes",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: full_source,
    },
    Case {
        name: "a full sink stalls the splice, and room lets it go on",
        behaviour: "a full sink: no byte is taken that it has no room for",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: full_sink,
    },
    Case {
        name: "a stalled splice stalls no other",
        behaviour: "a splice is stalled, another one of the same worker goes on",
        freebsd: "a sleeping writer of the sink stalls its worker",
        openbsd: "goes on",
        here: "as OpenBSD",
        flavors: BOTH,
        run: stalls_no_other,
    },
    Case {
        name: "both directions are independent",
        behaviour: "one direction is stalled, the other passes",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: independent_directions,
    },
    Case {
        name: "small buffers",
        behaviour: "a long stream through small buffers, both directions spliced",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: small_buffers,
    },
    Case {
        name: "small source, large sink, and the reverse",
        behaviour: "a long stream between buffers of different sizes",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: unequal_buffers,
    },
    Case {
        name: "blocking and non-blocking sockets",
        behaviour: "`O_NONBLOCK` of either socket plays no part",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: nonblocking_plays_no_part,
    },
    Case {
        name: "SO_RCVLOWAT of the source",
        behaviour: "`SO_RCVLOWAT` of the source plays no part: single bytes pass",
        freebsd: "",
        openbsd: "",
        here: "a splice can have a low-water mark of its own",
        flavors: BOTH,
        run: rcvlowat,
    },
    Case {
        name: "SO_SNDLOWAT of the sink",
        behaviour: "`SO_SNDLOWAT` of the sink: less room is not used, unless all fits",
        freebsd: "plays no part",
        openbsd: "respected",
        here: "as OpenBSD",
        flavors: BOTH,
        run: sndlowat,
    },
    Case {
        name: "SO_RCVTIMEO and SO_SNDTIMEO",
        behaviour: "`SO_RCVTIMEO` and `SO_SNDTIMEO` play no part",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: timeouts_of_calls,
    },
    Case {
        name: "SO_SNDBUF of the sink lowered while spliced",
        behaviour: "`SO_SNDBUF` of the sink is lowered while spliced",
        freebsd: "bytes are lost if the send then fails",
        openbsd: "takes what fits",
        here: "as OpenBSD",
        flavors: BOTH,
        run: sink_shrinks,
    },
    Case {
        name: "a connecting sink holds the bytes",
        behaviour: "a sink still connects: the bytes wait on the source",
        freebsd: "taken and lost",
        openbsd: "held",
        here: "as OpenBSD",
        flavors: BOTH,
        run: connecting_sink,
    },
    Case {
        name: "a connecting source",
        behaviour: "a source still connects: bytes pass as soon as it is established",
        freebsd: "",
        openbsd: "",
        here: "",
        flavors: BOTH,
        run: connecting_source,
    },
    Case {
        name: "end of file before a connecting sink stands",
        behaviour: "end of file before a connecting sink is established: bytes are moved, then the splice ends",
        freebsd: "taken and lost",
        openbsd: "held",
        here: "as OpenBSD",
        flavors: BOTH,
        run: eof_for_connecting_sink,
    },
];

fn moved_in_the_call(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    world.send(&proxy.client, b"queued");
    world.arrived(&proxy.source, 6);
    let splice = proxy.splice(world);
    assert_eq!((splice.bytes(), proxy.source.readable_bytes()), (6, 0));
    assert_eq!(world.receive(&proxy.server, 6), b"queued");
    Outcome::Passed
}

fn full_source(world: &World<'_>) -> Outcome {
    let proxy = world.proxy_with(SMALL);
    let sent = world.fill(&proxy.client);
    proxy.splice(world);
    assert!(world.receive(&proxy.server, sent.len()) == sent);
    world.assert_silent(&proxy.server);
    world.exchange(&proxy.client, &proxy.server, b"after");
    assert_eq!(proxy.source.spliced(), sent.len() as u64 + 5);
    Outcome::Passed
}

fn full_sink(world: &World<'_>) -> Outcome {
    if !world.factory().stands_still() {
        return Outcome::NotApplicable("buffers that stand still");
    }
    let proxy = world.proxy_with(SMALL);
    let splice = proxy.splice(world);
    for _ in 0..3 {
        let sent = world.stall(&proxy);
        let stalled_at = world.standstill(&splice);
        assert!(world.receive(&proxy.server, sent.len()) == sent);
        assert!(splice.bytes() > stalled_at);
    }
    assert_eq!(splice.end(), None);
    world.assert_silent(&proxy.server);
    Outcome::Passed
}

fn stalls_no_other(world: &World<'_>) -> Outcome {
    let stalled = world.proxy_with(SMALL);
    stalled.splice(world);
    let sent = world.stall(&stalled);
    for _ in 0..=world.config().workers {
        let other = world.proxy();
        other.splice(world);
        world.exchange(&other.client, &other.server, b"passes");
        world.pump(&other.client, &other.server, 100_000, || false);
    }
    assert!(world.receive(&stalled.server, sent.len()) == sent);
    Outcome::Passed
}

fn independent_directions(world: &World<'_>) -> Outcome {
    let proxy = world.proxy_with(SMALL);
    proxy.splice_both(world);
    let sent = world.stall(&proxy);
    world.pump(&proxy.server, &proxy.client, 50_000, || false);
    assert_eq!(proxy.sink.spliced(), 50_000);
    assert!(world.receive(&proxy.server, sent.len()) == sent);
    Outcome::Passed
}

fn small_buffers(world: &World<'_>) -> Outcome {
    let proxy = world.proxy_with(SMALL);
    let [there, back] = proxy.splice_both(world);
    world.pump(&proxy.client, &proxy.server, 131_072, || false);
    world.pump(&proxy.server, &proxy.client, 131_072, || false);
    assert_eq!([there.bytes(), back.bytes()], [131_072; 2]);
    Outcome::Passed
}

fn unequal_buffers(world: &World<'_>) -> Outcome {
    let setups = [SMALL, Setup::default()];
    for (left, right) in [(setups[0], setups[1]), (setups[1], setups[0])] {
        let [client, source] = world.connect(left);
        let [sink, server] = world.connect(right);
        let splice = source.splice_to(&sink, world.options());
        world.pump(&client, &server, 600_000, || false);
        assert_eq!(splice.expect("connected").bytes(), 600_000);
    }
    Outcome::Passed
}

fn nonblocking_plays_no_part(world: &World<'_>) -> Outcome {
    for (source, sink) in [(true, false), (false, true), (true, true), (false, false)] {
        let proxy = world.proxy_with(SMALL);
        proxy.source.set_nonblocking(source);
        proxy.sink.set_nonblocking(sink);
        proxy.splice(world);
        world.pump(&proxy.client, &proxy.server, 50_000, || false);
    }
    Outcome::Passed
}

fn rcvlowat(world: &World<'_>) -> Outcome {
    let proxy = world.proxy();
    proxy.source.set_rcv_lowat(1000);
    proxy.splice(world);
    world.exchange(&proxy.client, &proxy.server, b"x");
    world.exchange(&proxy.client, &proxy.server, b"y");
    Outcome::Passed
}

fn sndlowat(world: &World<'_>) -> Outcome {
    if !world.factory().stands_still() {
        return Outcome::NotApplicable("buffers that stand still");
    }
    let proxy = world.proxy_with(SMALL);
    let splice = proxy.splice(world);
    proxy.sink.set_snd_lowat(2000);
    let sent = world.stall(&proxy);
    let stalled_at = world.standstill(&splice);
    let mut got = world.receive(&proxy.server, 1);
    world.settle();
    assert_eq!(
        splice.bytes(),
        stalled_at,
        "room for one byte is too little"
    );
    // The last bytes do not wait for the mark.
    proxy.client.shutdown(Shutdown::Write).expect("connected");
    got.extend(world.receive(&proxy.server, sent.len() - 1));
    assert!(got == sent);
    let end = world.end_of(&splice);
    assert_eq!((end.cause, end.bytes), (Cause::Eof, sent.len() as u64));
    Outcome::Passed
}

fn timeouts_of_calls(world: &World<'_>) -> Outcome {
    let proxy = world.proxy_with(SMALL);
    let short = Some(Duration::from_millis(1));
    for socket in [&proxy.source, &proxy.sink] {
        socket.set_read_timeout(short).expect("not zero");
        socket.set_write_timeout(short).expect("not zero");
    }
    let splice = proxy.splice(world);
    world.sleep(Duration::from_millis(10));
    let sent = world.stall(&proxy);
    world.sleep(Duration::from_millis(10));
    assert_eq!(splice.end(), None);
    assert!(world.receive(&proxy.server, sent.len()) == sent);
    Outcome::Passed
}

fn sink_shrinks(world: &World<'_>) -> Outcome {
    let proxy = world.proxy_with(SMALL);
    let splice = proxy.splice(world);
    let before = world.stall(&proxy);
    proxy.sink.set_snd_hiwat(10);
    assert!(world.receive(&proxy.server, before.len()) == before);
    world.pump(&proxy.client, &proxy.server, 20_000, || false);
    proxy.sink.set_snd_hiwat(4096);
    world.pump(&proxy.client, &proxy.server, 20_000, || false);
    assert_eq!(splice.bytes(), before.len() as u64 + 40_000);
    Outcome::Passed
}

/// A connection with these bytes on the source, and a sink that is still connecting.
fn held(world: &World<'_>, bytes: &[u8]) -> Option<([Socket; 2], Connecting)> {
    let [client, source] = world.connect(Setup::default());
    world.send(&client, bytes);
    world.arrived(&source, bytes.len());
    // Last: in virtual time the handshake proceeds with other work.
    Some(([client, source], world.connecting()?))
}

fn connecting_sink(world: &World<'_>) -> Outcome {
    let Some(([client, source], connecting)) = held(world, b"held") else {
        return Outcome::NotApplicable("a held connection");
    };
    let splice = source.splice_to(&connecting.socket, world.options());
    let splice = splice.expect("a sink may be connecting");
    assert_eq!((splice.bytes(), source.readable_bytes()), (0, 4));
    let server = (connecting.complete)(Verdict::Accept).expect("accepted");
    let server = world.adopt(server);
    assert_eq!(world.receive(&server, 4), b"held");
    world.exchange(&client, &server, b"and on");
    assert_eq!(splice.bytes(), 10);
    Outcome::Passed
}

fn connecting_source(world: &World<'_>) -> Outcome {
    let [sink, server] = world.connect(Setup::default());
    let Some(connecting) = world.connecting() else {
        return Outcome::NotApplicable("a held connection");
    };
    let splice = connecting.socket.splice_to(&sink, world.options());
    let splice = splice.expect("a source may be connecting");
    let client = (connecting.complete)(Verdict::Accept).expect("accepted");
    let client = world.adopt(client);
    world.exchange(&client, &server, b"welcome");
    assert_eq!((splice.bytes(), splice.end()), (7, None));
    Outcome::Passed
}

fn eof_for_connecting_sink(world: &World<'_>) -> Outcome {
    let Some(([client, source], connecting)) = held(world, b"all of it") else {
        return Outcome::NotApplicable("a held connection");
    };
    let splice = source.splice_to(
        &connecting.socket,
        Options {
            forward_eof: true,
            ..world.options()
        },
    );
    let splice = splice.expect("a sink may be connecting");
    client.shutdown(Shutdown::Write).expect("connected");
    assert_eq!(splice.end(), None);
    let server = (connecting.complete)(Verdict::Accept).expect("accepted");
    let server = world.adopt(server);
    assert_eq!(world.receive(&server, 9), b"all of it");
    let end = world.end_of(&splice);
    assert_eq!((end.cause, end.bytes, end.residual), (Cause::Eof, 9, 0));
    world.until("the end of file has been forwarded", || {
        world.try_read(&server) == Ok(Vec::new())
    });
    Outcome::Passed
}
