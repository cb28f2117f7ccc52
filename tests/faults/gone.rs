//! Links that fail, at every call: once, and permanently. Connections and splices end with the cause,
//! errors are reported, received data stays readable, and nothing is left over.

use crate::world::{BACK, BYTES, FRONT, Fault, Plan, World};
use sosplice::error::SoError;
use sosplice::splice::{Cause, Dispatch};
use sosplice::{TcpListener, TcpSocket};
use std::io::ErrorKind;
use std::sync::atomic::Ordering;

const BOTH: [Dispatch; 2] = [Dispatch::Worker, Dispatch::Direct];

/// How many calls of `receive` and `transmit` there are if nothing fails.
fn calls(side: usize, dispatch: Dispatch) -> (usize, usize) {
    let mut world = World::new(side, None, dispatch);
    assert!(world.run(World::is_complete));
    let link = world.faulty.clone();
    let calls = [&link.received, &link.transmitted].map(|calls| calls.load(Ordering::Relaxed));
    // Larger first flights, fewer calls.
    let least = 8;
    assert!(calls[0] > least && calls[1] > least, "{calls:?}");
    world.nothing_is_left();
    (calls[0], calls[1])
}

/// The stack at `side` is down, and all objects report it.
fn is_down(world: &World, side: usize) {
    let down = SoError::NetworkDown;
    let said = world.sides[side].gone.as_ref().unwrap().to_string();
    assert_eq!(said, "the card was pulled");
    if let Some(pair) = &world.pair {
        // An end of stream may have been carried on before.
        let causes = match side {
            FRONT => [Cause::SourceError(down), Cause::SinkError(down)],
            _ => [Cause::SinkError(down), Cause::SourceError(down)],
        };
        let ends = pair.ends.map(|end| end.expect("a splice goes on"));
        let exact = ends.iter().zip(&causes).any(|(end, cause)| end == cause);
        for (end, cause) in ends.into_iter().zip(causes) {
            // The proxy resets both sides at the first event: the other splice may see that.
            let reset = matches!(
                end,
                Cause::SourceError(SoError::ConnectionAborted)
                    | Cause::SinkError(SoError::ConnectionAborted)
            );
            let known = end == cause || end == Cause::Eof || (exact && reset);
            assert!(known, "{end:?}, not {cause:?}: {:?}", pair.ends);
        }
        assert!(world.is_told(), "the poller has no event");
    }
    let stack = &world.sides[side].stack;
    assert_eq!(stack.stats().connections, 0);
    let refused = TcpSocket::new(stack).start("10.0.9.9:1".parse().unwrap());
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::NetworkDown);
    assert!(TcpListener::bind(stack, "0.0.0.0:81").is_err());
    if side == FRONT {
        let error = world.listener().accept().map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NetworkDown);
    }
}

fn fails(side: usize, dispatch: Dispatch, plan: Plan) {
    let mut world = World::new(side, Some(plan), dispatch);
    let failed = |world: &World| world.sides[side].gone.is_some();
    assert!(world.run(failed), "{plan:?}: the driver continues");
    // The users of the other stacks find out, or have all that they wait for.
    let ended = |world: &World| {
        let client = &world.client;
        let server = world.server.as_ref();
        (client.eof || client.error.is_some())
            && server.is_none_or(|server| server.eof || server.error.is_some())
            && world
                .pair
                .as_ref()
                .is_none_or(|pair| pair.ends.iter().all(Option::is_some))
    };
    assert!(
        world.run(ended),
        "{plan:?}: a call still waits: {:?}",
        world.client
    );
    is_down(&world, side);
    let whole = world.client.eof && world.client.error.is_none();
    assert!(
        !whole || world.client.got == BYTES,
        "{plan:?}: a clean end that is none"
    );
    world.nothing_is_left();
}

#[test]
fn a_link_that_fails_in_any_receive_ends_all() {
    for dispatch in BOTH {
        for side in [FRONT, BACK] {
            // The driver looks again and again while others work: not each call is another moment.
            let count = calls(side, dispatch).0.min(150);
            for (at, for_good) in (0..count).flat_map(|at| [(at, false), (at, true)]) {
                let plan = Plan {
                    fault: Fault::Receive,
                    at,
                    for_good,
                };
                fails(side, dispatch, plan);
            }
        }
    }
}

#[test]
fn a_link_that_is_gone_in_any_transmit_ends_all() {
    for dispatch in BOTH {
        for side in [FRONT, BACK] {
            for at in 0..calls(side, dispatch).1 {
                // A single report must be enough.
                let plan = Plan {
                    fault: Fault::Gone,
                    at,
                    for_good: false,
                };
                fails(side, dispatch, plan);
            }
        }
    }
}

#[test]
fn a_packet_that_is_refused_at_any_moment_is_only_late() {
    for dispatch in BOTH {
        for side in [FRONT, BACK] {
            let (_, count) = calls(side, dispatch);
            for at in 0..count {
                let plan = Plan {
                    fault: Fault::Refused,
                    at,
                    for_good: false,
                };
                let mut world = World::new(side, Some(plan), dispatch);
                assert!(world.run(World::is_complete), "{plan:?}");
                assert_eq!(world.stats(side).segments_lost, 1, "{plan:?}");
                world.nothing_is_left();
            }
        }
    }
}
