//! A splice is ended while its pass runs.

use super::*;

fn unsplice() {
    let world = World::new(2);
    let splice = world.splice();
    let told = Told::listen(&splice, &world.d);
    world.a.send(b"x").unwrap();
    let kept = world.keep();
    let worker = work(&world.pool);
    let end = splice.unsplice().unwrap();
    join(worker);
    let moved = world.d.readable_bytes();
    claim(moved as u64 == end.bytes, "no byte moves after the end");
    claim(moved + world.b.readable_bytes() == 1, "no byte is lost");
    claim(
        told.all() == [(end, moved)],
        "one is notified, when all bytes have left",
    );
    drop(kept);
}

#[test]
fn the_count_is_final_and_one_end_is_notified() {
    explore("unsplice against worker", unsplice);
}

#[test]
#[should_panic(expected = "no byte moves after the end")]
fn fails_if_a_pass_does_not_look() {
    explore_without(Protection::OnBuffers, unsplice);
}

#[test]
#[should_panic(expected = "one is notified, when all bytes have left")]
fn fails_if_the_last_pass_is_not_waited_for() {
    explore_without(Protection::LastPass, unsplice);
}
