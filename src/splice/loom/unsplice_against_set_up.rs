//! A splice is ended while it is being set up.

use super::*;

fn unsplice() {
    let world = World::new(2);
    world.a.send(b"x").unwrap();
    let (b, c, options) = (world.b.clone(), world.c.clone(), world.options());
    let setter = spawn(move || b.splice_to(&c, options).unwrap());
    let first = world.b.unsplice();
    let splice = join(setter);
    let end = first.or_else(|_| world.b.unsplice());
    claim(
        end.ok() == splice.end() && splice.is_ended(),
        "it is ended once",
    );
    let diverted = world.b.end().rcv().is_diverted() || world.c.end().snd().is_diverted();
    claim(!diverted, "both buffers are free");
    let moved = world.d.readable_bytes();
    claim(
        moved as u64 == splice.bytes(),
        "no byte moves after the end",
    );
    claim(moved + world.b.readable_bytes() == 1, "no byte is lost");
}

#[test]
fn both_buffers_are_free() {
    explore("unsplice against set-up", unsplice);
}

#[test]
#[should_panic(expected = "both buffers are free")]
fn fails_if_one_comes_after_the_other() {
    explore_without(Protection::BothAtOnce, unsplice);
}
