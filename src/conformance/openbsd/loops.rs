//! Chains and rings of splices (`loop/chain.pl`, `loop/loop.pl`).
//!
//! OpenBSD counts how many splices a packet has passed and stops it before the 129th; FreeBSD does not.
//! A protocol that copies bytes restarts the count at each of its connections, so the limit is never
//! reached there.

use super::args::DEFAULT;
use super::harness::{Turn, turns};
use crate::buf::{Buf, Chain};
use crate::conformance::{Outcome, World};
use crate::error::{Flavor, SoError};
use crate::socket::Socket;
use crate::splice::{Cause, Role, Splice};

const MOST: usize = 128;

/// Whether bytes keep their count from one end of a connection to the other.
fn keeps_hops(world: &World<'_>) -> bool {
    let [a, b] = world.connect(DEFAULT.buffers);
    let mut counted = Buf::copy_of(b"x");
    counted.hop();
    a.send_chain(&mut Chain::from(counted)).expect("room");
    world.until("it is there", || b.readable_bytes() == 1);
    let got = b.recv_chain(1).expect("it is there");
    got.iter().all(|buf| buf.hops() == 1)
}

/// A chain of connections; the second end of each is spliced to the first end of the next.
fn chain(world: &World<'_>, splices: usize) -> (Vec<[Socket; 2]>, Vec<Splice>) {
    let connections: Vec<_> = (0..=splices)
        .map(|_| world.connect(DEFAULT.buffers))
        .collect();
    let joints = connections.windows(2);
    let splices = joints.map(|pair| join(world, &pair[0][1], &pair[1][0]));
    let splices = splices.collect();
    (connections, splices)
}

fn join(world: &World<'_>, source: &Socket, drain: &Socket) -> Splice {
    let splice = source.splice_to(drain, world.options());
    splice.expect("nothing is wrong with these sockets")
}

pub(super) fn chains(world: &World<'_>) -> Outcome {
    for length in [1, 2, 3, 127, MOST] {
        let (connections, splices) = chain(world, length);
        world.exchange(&connections[0][0], &connections[length][1], b"foo");
        assert!(splices.iter().all(|splice| !splice.is_ended()));
    }
    Outcome::Passed
}

pub(super) fn long_chains(world: &World<'_>) -> Outcome {
    if !keeps_hops(world) {
        return Outcome::NotApplicable("bytes that keep their count");
    }
    for length in [MOST + 1, 200] {
        let (connections, splices) = chain(world, length);
        if world.flavor() == Flavor::FreeBsd {
            world.exchange(&connections[0][0], &connections[length][1], b"foo");
            continue;
        }
        world.send(&connections[0][0], b"foo");
        world.until("a splice has ended", || {
            splices.iter().any(Splice::is_ended)
        });
        for (at, splice) in splices.iter().enumerate() {
            let end = splice.end().map(|end| (end.cause, end.bytes, end.residual));
            let expected = (at == MOST).then_some((Cause::Loop, 0, 3));
            assert_eq!(end, expected, "splice {at}");
        }
        let stopped = &connections[MOST][1];
        assert_eq!(stopped.readable_bytes(), 3, "they stay there");
        assert_eq!(stopped.take_error(), Some(SoError::SpliceLoop));
        assert_eq!(world.receive(stopped, 3), b"foo");
    }
    Outcome::Passed
}

pub(super) fn ring(world: &World<'_>) -> Outcome {
    if !keeps_hops(world) {
        return Outcome::NotApplicable("bytes that keep their count");
    }
    for queued in [false, true] {
        let [a, b] = world.connect(DEFAULT.buffers);
        if queued {
            world.send(&a, b"foo");
            world.until("it is queued", || b.readable_bytes() == 3);
        }
        let _there = join(world, &a, &b);
        let _back = join(world, &b, &a);
        if !queued {
            world.send(&a, b"foo");
        }
        if world.is_virtual() {
            ends(world, &[&b]);
        }
        // In real time a read blocks until the ring has ended.
        assert_eq!(world.receive(&b, 3), b"foo");
        assert_eq!(b.take_error(), Some(SoError::SpliceLoop));
        assert_eq!(b.spliced(), 3 * MOST as u64);
        let end = b.splice_end(Role::Source).map(|end| end.cause);
        assert_eq!(end, Some(Cause::Loop));
        let other = (a.take_error(), a.splice_end(Role::Source));
        assert_eq!(other, (None, None), "no byte has passed");
    }
    Outcome::Passed
}

/// Rings of more connections, and two echo servers that are connected to each other.
pub(super) fn wide_rings(world: &World<'_>) -> Outcome {
    if !keeps_hops(world) {
        return Outcome::NotApplicable("bytes that keep their count");
    }
    for width in [2, 3, 5] {
        let (connections, mut splices) = chain(world, width - 1);
        let (first, last) = (&connections[0][0], &connections[width - 1][1]);
        splices.push(join(world, last, first));
        world.send(first, b"foo");
        let sources = connections.iter().map(|[_, source]| source);
        stops_after_128(world, sources.collect(), &splices);
    }
    let [a, b] = world.connect(DEFAULT.buffers);
    let splices = [join(world, &b, &b), join(world, &a, &a)];
    world.send(&a, b"foo");
    stops_after_128(world, vec![&b, &a], &splices);
    Outcome::Passed
}

/// Waits until one of these has its splice ended; asserts that bytes do not pass more splices than
/// allowed.
fn ends(world: &World<'_>, sources: &[&Socket]) {
    world.until("a splice has ended", || {
        let passed = sources.iter().map(|source| source.spliced());
        assert!(
            passed.sum::<u64>() <= 3 * MOST as u64,
            "bytes pass too many splices"
        );
        let mut ended = sources.iter().map(|source| source.splice_end(Role::Source));
        ended.any(|end| end.is_some())
    });
}

/// `sources` in the order in which the bytes pass them.
fn stops_after_128(world: &World<'_>, sources: Vec<&Socket>, splices: &[Splice]) {
    ends(world, &sources);
    let stop = MOST % sources.len();
    for (at, splice) in splices.iter().enumerate() {
        let cause = splice.end().map(|end| end.cause);
        let expected = (at == stop).then_some(Cause::Loop);
        assert_eq!(cause, expected, "splice {at} of {}", splices.len());
    }
    let hops: u64 = sources.iter().map(|source| source.spliced() / 3).sum();
    assert_eq!(hops, MOST as u64);
    assert_eq!(sources[stop].take_error(), Some(SoError::SpliceLoop));
    assert_eq!(world.receive(sources[stop], 3), b"foo");
}

/// A byte that waits for a slow drain is checked often, but has passed only one splice.
pub(super) fn slow_drain(world: &World<'_>) -> Outcome {
    if !world.factory().stands_still() {
        return Outcome::NotApplicable("buffers that stand still");
    }
    let [client, source] = world.connect(DEFAULT.buffers);
    let [drain, server] = world.connect(DEFAULT.buffers);
    for socket in [&client, &server, &drain] {
        socket.set_nonblocking(true);
    }
    let mut filled = 0;
    turns(world, "the drain is full", || {
        match drain.send(&[b'.'; 1000]) {
            Ok(count) => {
                filled += count;
                Turn::Acted
            }
            Err(_) if filled >= DEFAULT.buffers.snd_hiwat + DEFAULT.buffers.rcv_hiwat => Turn::Done,
            Err(_) => Turn::Waits,
        }
    });
    let splice = join(world, &source, &drain);
    for _ in 0..300 {
        world.send(&client, b"x");
        drain.set_snd_lowat(1);
        source.set_rcv_lowat(1);
        if world.is_virtual() {
            world.settle();
        }
    }
    world.until("everything waits", || source.readable_bytes() == 300);
    assert!(!splice.is_ended());
    let mut got: Vec<u8> = Vec::new();
    turns(world, "everything has arrived", || {
        let read = world.try_read(&server);
        got.extend(read.as_deref().unwrap_or_default());
        match got.len() == filled + 300 {
            true => Turn::Done,
            false => Turn::acted(read.is_ok()),
        }
    });
    assert!(got[filled..].iter().all(|byte| *byte == b'x'));
    assert!(!splice.is_ended());
    Outcome::Passed
}
