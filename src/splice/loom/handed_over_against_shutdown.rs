//! A waiter is handed over to the worker while the last handle of the pool is dropped.

use super::*;
use crate::callbacks::{self, CALLS_IN_A_ROW, Once};

fn hand_over() {
    let world = World::new(1);
    let splice = world.splice();
    let told = Told::listen(&splice, &world.d);
    let kept = world.keep();
    let World { a, b, c, d, pool } = world;
    // In a callback, so that the notification comes later, and after many others, so that the worker
    // does it.
    let other = spawn(move || {
        callbacks::during(|| {
            (0..CALLS_IN_A_ROW).for_each(|_| callbacks::call(Once::new(|| {})));
            splice.unsplice().ok();
        });
        splice
    });
    drop(pool);
    let splice = join(other);
    let end = splice.end();
    let told = told.all();
    claim(
        told.len() == 1 && told.first().map(|told| told.0) == end,
        "one end is notified",
    );
    drop((a, b, c, d, kept));
}

#[test]
fn the_end_is_notified_once() {
    explore("who waits is handed over against shutdown", hand_over);
}

#[test]
#[should_panic(expected = "one end is notified")]
fn fails_if_the_queue_is_not_looked_at_again() {
    explore_without(Protection::LastWaiters, hand_over);
}
