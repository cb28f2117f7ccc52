//! The last handle of a pool is dropped while its worker has a pass to run.

use super::*;

/// The worker is a thread: loom checks that it ends.
fn shutdown() {
    let pool = SplicePool::builder().workers(1).build();
    let world = World::with(2, pool);
    let splice = world.splice();
    let told = Told::listen(&splice, &world.d);
    world.a.send(b"x").unwrap();
    let kept = world.keep();
    let World { a, b, c, d, pool } = world;
    drop(pool);
    let end = splice.wait();
    claim(end.cause == Cause::PoolClosed, "it ends with the pool");
    claim(
        d.readable_bytes() as u64 == end.bytes,
        "moved bytes have left",
    );
    claim(
        d.readable_bytes() + b.readable_bytes() == 1,
        "no byte is lost",
    );
    drop((a, b, c, told, kept));
}

#[test]
fn splice_and_worker_end() {
    explore("pool shutdown with work queued", shutdown);
}

#[test]
#[should_panic(expected = "deadlock")]
fn fails_without_waking_the_worker() {
    explore_without(Protection::LastLook, shutdown);
}

#[test]
#[should_panic(expected = "deadlock")]
fn fails_if_the_splice_is_not_ended() {
    explore_without(Protection::LastEnd, shutdown);
}
