//! The end of the stream arrives during a pass that has not seen it, or the pass forwards it.

use super::*;

fn end_of_file() {
    let world = World::new(2);
    let splice = world.splice();
    world.a.send(b"x").unwrap();
    let a = world.a.clone();
    let sender = spawn(move || a.shutdown(Shutdown::Write).unwrap());
    world.work();
    join(sender);
    world.work();
    let end = splice.end().map(|end| (end.cause, end.bytes));
    claim(
        end == Some((Cause::Eof, 1)),
        "the end is found, after the last byte",
    );
    claim(received(&world.d) == b"x", "the last byte arrives");
}

#[test]
fn the_end_is_found() {
    explore("EOF during a pass", end_of_file);
}

#[test]
#[should_panic(expected = "the end is found")]
fn fails_without_rescan() {
    explore_without(Protection::Rescan, end_of_file);
}

/// A thread writes to the sink as soon as the splice has ended.
fn forwarded() {
    let world = World::new(2);
    let splice = world.splice_with(Options {
        forward_eof: true,
        ..world.options()
    });
    world.a.send(b"x").unwrap();
    world.a.shutdown(Shutdown::Write).unwrap();
    let c = world.c.clone();
    let writer = spawn(move || splice.is_ended() && c.send(b"z").is_ok());
    world.work();
    claim(!join(writer), "no write after the end");
    claim(received(&world.d) == b"x", "the last byte arrives");
    claim(
        world.d.recv(&mut [0; 8]).ok() == Some(0),
        "the end is forwarded",
    );
}

#[test]
fn no_write_after_a_forwarded_end() {
    explore("EOF during a pass, forwarded", forwarded);
}

#[test]
#[should_panic(expected = "no write after the end")]
fn fails_if_the_sink_is_closed_afterwards() {
    explore_without(Protection::EofFirst, forwarded);
}
