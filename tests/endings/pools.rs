//! Pools with work in them.

use super::*;
use sosplice::local;
use sosplice::splice::{Cause, Dispatch, Options, Rate, SpliceError, SplicePool};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn options(pool: &SplicePool, dispatch: Dispatch) -> Options {
    Options::default().pool(pool.clone()).dispatch(dispatch)
}

const BOTH: [Dispatch; 2] = [Dispatch::Worker, Dispatch::Direct];

#[test]
fn splices_of_every_kind_end_with_their_pool() {
    for dispatch in BOTH {
        let pool = SplicePool::builder().workers(2).build();
        let ended = Arc::new(AtomicUsize::new(0));
        let plain = options(&pool, dispatch);
        let one = NonZeroU64::MIN;
        let slow = Rate {
            bytes_per_second: one,
            burst: one,
        };
        let kinds = [
            plain.clone(),
            plain.clone().idle(LIMIT),
            plain.clone().lifetime(LIMIT),
            plain.rate(slow),
        ];
        let mut splices = Vec::new();
        for kind in kinds {
            // One that waits for bytes, one that waits for room, and one whose bytes wait for their rate.
            for bytes in [0, 10, 100_000] {
                let ((a, b), (c, d)) = (local::pair(), local::pair_with_hiwat(10, 10));
                a.set_nonblocking(true);
                if bytes > 0 {
                    a.send(&vec![7; bytes]).unwrap();
                }
                let splice = b.splice_to(&c, kind.clone()).unwrap();
                let count = ended.clone();
                splice.on_end(move |end| {
                    assert_eq!(end.cause, Cause::PoolClosed);
                    count.fetch_add(1, Ordering::Relaxed);
                });
                splices.push((splice, a, b, c, d));
            }
        }
        drop(pool);
        for (splice, a, b, ..) in &splices {
            let end = splice.wait_timeout(LIMIT).expect("it ends");
            assert_eq!(end.cause, Cause::PoolClosed);
            // Bytes that were not moved are still there, and the socket can be used as usual.
            assert_eq!(b.readable_bytes(), end.residual);
            if end.residual > 0 {
                drop(b.recv_chain(end.residual).unwrap());
            }
            a.send(b"!").unwrap();
            assert_eq!(b.recv_chain(1).unwrap().to_vec(), b"!");
        }
        eventually("every callback was called", || {
            ended.load(Ordering::Relaxed) == splices.len()
        });
    }
}

#[test]
fn waiting_for_a_splice_returns_when_its_pool_is_dropped() {
    let pool = SplicePool::builder().workers(1).build();
    let ((_a, b), (c, _d)) = (local::pair(), local::pair());
    let splice = b.splice_to(&c, options(&pool, Dispatch::Worker)).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| splice.wait());
        drop(pool);
        assert_eq!(waiting.join().unwrap().cause, Cause::PoolClosed);
    });
}

#[test]
fn a_pool_is_dropped_in_a_callback_on_its_own_worker() {
    bounded("a pool that is dropped by its worker", || {
        let pool = SplicePool::builder().workers(1).build();
        let ((a, b), (c, _d)) = (local::pair(), local::pair());
        let ((_e, f), (g, _h)) = (local::pair(), local::pair());
        let limited = options(&pool, Dispatch::Worker).limit(3);
        let other = f.splice_to(&g, options(&pool, Dispatch::Worker)).unwrap();
        let last = b.splice_to(&c, limited).unwrap();
        last.on_end(move |_| drop(pool));
        a.send(b"end").unwrap();
        assert_eq!(last.wait().cause, Cause::Limit);
        assert_eq!(other.wait().cause, Cause::PoolClosed);
    });
}

#[test]
fn a_disabled_pool_is_an_error_and_others_are_not_affected() {
    let none = SplicePool::builder().workers(0).build();
    let ((a, b), (c, d)) = (local::pair(), local::pair());
    let refused = b.splice_to(&c, options(&none, Dispatch::Worker));
    assert_eq!(refused.unwrap_err(), SpliceError::PoolDisabled);
    b.splice_to(&c, Options::default()).unwrap();
    a.send(b"through").unwrap();
    assert_eq!(d.recv_chain(7).unwrap().to_vec(), b"through");
}
