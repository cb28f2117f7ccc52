//! Chains and rings of splices: OpenBSD's `loop` cases for UDP.
//!
//! The kernel's sockets, and those of two stacks, have a network between them, which does not count: a ring through
//! it goes on. OpenBSD's loopback passes the count on, as a pair in memory does here.

use crate::kinds::{KINDS, Kind, LIMIT, Pair, read};
use sosplice::Socket;
use sosplice::error::SoError;
use sosplice::splice::{Cause, Dispatch, Options, Splice};

/// So many pairs, each spliced to the next: what the first one's user sends, the last one's receives.
fn chain(kind: impl Fn(usize) -> Kind, v4: bool, splices: usize) -> (Vec<Pair>, Vec<Splice>) {
    let pairs: Vec<_> = (0..=splices).map(|at| kind(at).pair(v4)).collect();
    // Each pair is used in one direction: its user's socket is the sink of the splice before.
    let spliced = pairs
        .windows(2)
        .map(|pair| {
            let dispatch = Options::default().dispatch(Dispatch::Direct);
            pair[0].inside.splice_to(&pair[1].user, dispatch).unwrap()
        })
        .collect();
    (pairs, spliced)
}

/// L01 chain.pl: {v4, v6} x udp x {1, 2, 3, 127, 128}.
#[test]
fn a_chain_of_up_to_128_splices_passes_a_datagram() {
    for v4 in [true, false] {
        for splices in [1, 2, 3, 127, 128] {
            for kind in KINDS {
                let (pairs, spliced) = chain(|_| kind, v4, splices);
                pairs[0].user.send(b"foo").unwrap();
                let last = &pairs[splices].inside;
                last.set_read_timeout(Some(LIMIT)).unwrap();
                assert_eq!(read(last), b"foo", "{kind:?}, {splices}");
                assert!(spliced.iter().all(|splice| !splice.is_ended()));
            }
            let (pairs, _spliced) = chain(|at| KINDS[at % 3], v4, splices);
            pairs[0].user.send(b"foo").unwrap();
            assert_eq!(read(&pairs[splices].inside), b"foo", "mixed, {splices}");
        }
    }
}

/// chain.pl with 129 fails.
#[test]
fn a_chain_of_129_splices_ends_with_eloop_at_the_last_one() {
    let (pairs, spliced) = chain(|_| Kind::Memory, true, 129);
    pairs[0].user.send(b"foo").unwrap();
    let end = spliced[128].wait_timeout(LIMIT).unwrap();
    assert_eq!((end.cause, end.bytes, end.residual), (Cause::Loop, 0, 3));
    let source = &pairs[128].inside;
    assert_eq!(source.take_error(), Some(SoError::SpliceLoop));
    assert_eq!(read(source), b"foo");
    assert!(spliced[..128].iter().all(|splice| !splice.is_ended()));
}

/// L03 loop.pl: {v4, v6} x udp; in memory there is one of them.
#[test]
fn both_ends_of_a_connection_spliced_to_each_other_end_with_eloop() {
    for dispatch in [Dispatch::Worker, Dispatch::Direct, Dispatch::Adaptive] {
        for payload in [&b"foo"[..], b""] {
            let Pair { user, inside } = Kind::Memory.pair(true);
            let options = || Options::default().dispatch(dispatch);
            let there = user.splice_to(&inside, options()).unwrap();
            let back = inside.splice_to(&user, options()).unwrap();
            user.send(payload).unwrap();
            // At one end the datagram is left, after 128 splices.
            let ended = loop {
                if let Some(end) = back.end().or_else(|| there.end()) {
                    break end;
                }
                std::thread::yield_now();
            };
            assert_eq!((ended.cause, ended.residual), (Cause::Loop, payload.len()));
            let at = |socket: &Socket| socket.end().with_rcv(|rcv| rcv.records()) == 1;
            let end = if at(&inside) { &inside } else { &user };
            assert_eq!(end.take_error(), Some(SoError::SpliceLoop));
            assert_eq!(read(end), payload);
        }
    }
}
