//! OpenBSD's cases (`regress/sys/kern/sosplice`), and cases that its table implies but does not list.
//!
//! Here the table. Names with a number are rows of `tcp` and `loop`; `args-…` without one are files of
//! the same suite, or variations. Not included: rows for address families (T12 to T14, half of each L),
//! since the factory chooses the family; urgent data, UDP, and the errors of the option as bytes.
//! Below: `harness` and `relay` (the rows of `tcp`), `aborts`, `loops`, `relayd`.

mod aborts;
mod args;
mod errors;
mod harness;
mod loops;
mod relay;
mod relayd;

use super::{BOTH, Case, OPENBSD, Outcome, World};
use args::{DEFAULT, LONG, SMALL_BUFFERS, SMALL_RECEIVE, SMALL_SEND};
use harness::run;

type Run = fn(&World<'_>) -> Outcome;

/// The same on both systems.
const fn alike(
    name: &'static str,
    behaviour: &'static str,
    result: &'static str,
    run: Run,
) -> Case {
    Case {
        name,
        behaviour,
        freebsd: result,
        openbsd: "",
        here: "",
        flavors: BOTH,
        run,
    }
}

/// All bytes arrive, and the splice ends at the end of the stream.
const fn all(name: &'static str, behaviour: &'static str, run: Run) -> Case {
    alike(name, behaviour, "all bytes, then the end", run)
}

/// A limit is reached.
const fn limited(name: &'static str, behaviour: &'static str, run: Run) -> Case {
    Case {
        openbsd: "`EFBIG`",
        ..alike(name, behaviour, "exactly so many bytes, no error", run)
    }
}

/// A timeout occurs.
const fn timed(name: &'static str, behaviour: &'static str, run: Run) -> Case {
    Case {
        openbsd: "`ETIMEDOUT`",
        here: "OpenBSD's idle time; only moved bytes re-arm it",
        ..alike(name, behaviour, "ends after a lifetime, no error", run)
    }
}

const LIMIT: usize = 32_117;

pub(super) const CASES: &[Case] = &[
    all("T01 args-default", "251 bytes", |world| run(world, DEFAULT)),
    all("T02 args-short", "the same, in small blocks", |world| {
        run(world, DEFAULT.block(7))
    }),
    all(
        "T03 args-long",
        "131072 bytes, more than all buffers hold",
        |world| run(world, LONG),
    ),
    all("T04 args-null", "no byte", |world| {
        run(world, DEFAULT.len(0))
    }),
    all(
        "T05 args-null-sleep-client",
        "no byte, after 3 s",
        |world| run(world, DEFAULT.len(0).client_sleeps(3000)),
    ),
    all(
        "T06 args-null-max-sleep-client",
        "no byte, after 3 s, with a limit",
        |world| run(world, DEFAULT.len(0).limit(113).client_sleeps(3000)),
    ),
    all(
        "T07 args-null-max-sleep-client-nonblock",
        "the same, non-blocking",
        |world| {
            run(
                world,
                DEFAULT.len(0).limit(113).client_sleeps(3000).nonblock(),
            )
        },
    ),
    all("T08 args-sleep-client", "much, after 3 s", |world| {
        run(world, LONG.client_sleeps(3000))
    }),
    all(
        "T09 args-sleep-relay",
        "the client is blocked when the splice begins",
        |world| run(world, LONG.relay_sleeps(3000)),
    ),
    all(
        "T10 args-sleep-server",
        "the drain is full for 3 s",
        |world| run(world, LONG.server_sleeps(3000)),
    ),
    all("T11 args-nonblock", "much, non-blocking", |world| {
        run(world, LONG.nonblock())
    }),
    limited("T18 args-max", "131072 bytes, limit 32117", |world| {
        run(world, LONG.limit(LIMIT))
    }),
    limited(
        "T19 args-max-sleep-client",
        "the same, after 3 s",
        |world| run(world, LONG.limit(LIMIT).client_sleeps(3000)),
    ),
    all(
        "T53 args-reverse",
        "from the server to the client",
        |world| run(world, DEFAULT.reverse()),
    ),
    all(
        "T54 args-reverse-long",
        "much, from the server to the client",
        |world| run(world, LONG.reverse()),
    ),
    all(
        "T55 args-reverse-nonblock",
        "the same, non-blocking",
        |world| run(world, DEFAULT.reverse().nonblock()),
    ),
    all(
        "T62 args-smallbuf",
        "much, buffers of 4096 bytes",
        |world| run(world, LONG.buffers(SMALL_BUFFERS)),
    ),
    all(
        "T66 args-smallrcv",
        "much, receive buffers of 4096 bytes",
        |world| run(world, LONG.buffers(SMALL_RECEIVE)),
    ),
    all(
        "T70 args-smallsnd",
        "much, send buffers of 4096 bytes",
        |world| run(world, LONG.buffers(SMALL_SEND)),
    ),
    limited(
        "args-max-sleep-relay",
        "a limit that queued bytes meet",
        |world| run(world, LONG.limit(LIMIT).relay_sleeps(3000)),
    ),
    limited(
        "args-max-sleep-server",
        "a limit behind a full drain",
        |world| run(world, LONG.limit(LIMIT * 3).server_sleeps(3000)),
    ),
    limited("args-max-nonblock", "a limit, non-blocking", |world| {
        run(world, LONG.limit(LIMIT).nonblock())
    }),
    limited(
        "args-max-reverse",
        "a limit, from the server to the client",
        |world| run(world, LONG.limit(LIMIT).reverse()),
    ),
    limited("args-max-smallbuf", "a limit beyond the buffers", |world| {
        run(world, LONG.limit(LIMIT).buffers(SMALL_BUFFERS))
    }),
    limited("args-max-short", "a limit inside a small block", |world| {
        run(world, DEFAULT.limit(113).block(7))
    }),
    limited("args-max-one", "a limit of one byte", |world| {
        run(world, DEFAULT.limit(1))
    }),
    limited(
        "args-max-equal",
        "a limit of all bytes: the end is still to be read",
        |world| run(world, DEFAULT.limit(251)),
    ),
    limited("args-max-below", "a limit of all bytes but one", |world| {
        run(world, LONG.limit(131_071))
    }),
    all(
        "args-max-above",
        "a limit of one byte more than there are",
        |world| run(world, DEFAULT.limit(252)),
    ),
    all(
        "args-max-again",
        "a new splice after each 113 of 131072 bytes",
        |world| run(world, LONG.limit(113).again(0)),
    ),
    all(
        "args-max-again-one",
        "a new splice for each byte",
        |world| run(world, DEFAULT.limit(1).again(0)),
    ),
    all(
        "args-max-again-smallbuf",
        "a new splice after each buffer",
        |world| run(world, LONG.limit(4096).again(0).buffers(SMALL_BUFFERS)),
    ),
    timed(
        "args-idle-sleep-client",
        "the client is silent for too long",
        |world| run(world, DEFAULT.client_sleeps(3000).times_out(2, 0)),
    ),
    timed(
        "args-idle-pause-client",
        "the client falls silent",
        |world| {
            run(
                world,
                DEFAULT.block(100).client_pauses(3000).times_out(2, 100),
            )
        },
    ),
    timed(
        "args-idle-max",
        "the limit is not reached in time",
        |world| {
            run(
                world,
                DEFAULT
                    .block(100)
                    .client_pauses(3000)
                    .limit(101)
                    .times_out(2, 100),
            )
        },
    ),
    all(
        "args-idle-trickle",
        "a byte in less than the timeout, for longer than the timeout",
        |world| run(world, DEFAULT.block(50).client_pauses(1500).idle(2)),
    ),
    all("args-idle-long", "a timeout that does not come", |world| {
        run(world, LONG.client_sleeps(3000).idle(4))
    }),
    all(
        "args-idle-again",
        "a new splice after each timeout",
        |world| {
            run(
                world,
                DEFAULT.block(200).client_pauses(5000).idle(2).again(4),
            )
        },
    ),
    all(
        "args-idle-sleep-server",
        "a full drain is idle too",
        |world| run(world, LONG.server_sleeps(5000).idle(2).again(2)),
    ),
    limited("args-max-idle", "a limit before the timeout", |world| {
        run(world, DEFAULT.limit(113).idle(2))
    }),
    all(
        "args-relay-write",
        "the relay writes into the drain meanwhile",
        |world| run(world, LONG.writes()),
    ),
    all(
        "args-relay-write-sleep-server",
        "the same, into a full drain",
        |world| run(world, LONG.writes().server_sleeps(3000)),
    ),
    Case {
        openbsd: "nothing",
        flavors: OPENBSD,
        ..alike(
            "args-relay-read",
            "the relay reads from the source meanwhile",
            "the bytes that are queued",
            |world| run(world, LONG.reads().server_sleeps(3000)),
        )
    },
    Case {
        openbsd: "each question about both",
        ..alike(
            "args-order",
            "which of two faults is reported, and that nothing changes",
            "all of the source's first",
            errors::order,
        )
    },
    Case {
        openbsd: "`ECONNRESET`, copied to the source; nothing is lost",
        ..alike(
            "args-server-abort",
            "the server resets the drain",
            "bytes are lost, no error on the source",
            aborts::server_aborts,
        )
    },
    Case {
        openbsd: "`ECONNRESET`, copied to the source; nothing is lost",
        ..alike(
            "args-server-exit",
            "the server closes with unread bytes",
            "bytes are lost, no error on the source",
            aborts::server_exits,
        )
    },
    Case {
        openbsd: "`ECONNRESET` when bytes have followed",
        ..alike(
            "args-server-exit-eof",
            "the server closes, all bytes read",
            "ends when bytes have followed, no error on the source",
            aborts::server_exits_politely,
        )
    },
    Case {
        openbsd: "drains first, then ends with `ECONNRESET`",
        ..alike(
            "args-client-abort",
            "the client resets the source, the drain is full",
            "ends with bytes left on the source",
            aborts::client_aborts,
        )
    },
    Case {
        openbsd: "`ECONNRESET`",
        ..alike(
            "args-client-abort-max",
            "the client resets the source, a limit comes first",
            "`ECONNRESET`",
            aborts::client_aborts_before_the_limit,
        )
    },
    Case {
        openbsd: "goes on, the error stays",
        ..alike(
            "args-max-both",
            "one direction has ended by its limit, and its error was not read yet",
            "goes on",
            aborts::errors_apart,
        )
    },
    alike(
        "L01 chain",
        "bytes pass up to 128 splices",
        "unchanged",
        loops::chains,
    ),
    Case {
        openbsd: "`ELOOP` at the 129th, the bytes stay there",
        ..alike(
            "L01 chain-129",
            "bytes pass more than 128 splices",
            "unchanged",
            loops::long_chains,
        )
    },
    Case {
        flavors: OPENBSD,
        openbsd: "`ELOOP` after 128 splices, the bytes can be read",
        ..alike(
            "L03 loop",
            "both ends of a connection are spliced to each other",
            "bytes go round for ever",
            loops::ring,
        )
    },
    Case {
        flavors: OPENBSD,
        openbsd: "`ELOOP` after 128 splices, the bytes can be read",
        ..alike(
            "L03 loop-wide",
            "rings of several connections, or of two echo servers",
            "bytes go round for ever",
            loops::wide_rings,
        )
    },
    alike(
        "L03 slow-drain",
        "bytes that wait for the drain are checked often",
        "they pass",
        loops::slow_drain,
    ),
    Case {
        openbsd: "spliced again, on each `ETIMEDOUT`",
        ..alike(
            "relayd one-sided",
            "only one direction moves; relayd compares the counters",
            "-",
            relayd::one_sided,
        )
    },
    Case {
        openbsd: "spliced again, on each `ETIMEDOUT`",
        ..alike(
            "relayd ping-pong",
            "questions and answers, each direction slower than the timeout",
            "-",
            relayd::ping_pong,
        )
    },
    Case {
        openbsd: "read again, on each `EFBIG`",
        ..alike(
            "relayd http",
            "bodies are spliced, the lines between them are read",
            "-",
            relayd::http_bodies,
        )
    },
];
