//! A splice is ended while another thread ends it too, or sleeps until it has ended.

use super::*;

/// Two threads, and a worker with a pass to run.
fn twice() {
    let world = World::new(2);
    let splice = Arc::new(world.splice());
    let told = Told::listen(&splice, &world.d);
    world.a.send(b"x").unwrap();
    let kept = world.keep();
    let unsplice = |splice: &Arc<Splice>| {
        let splice = splice.clone();
        spawn(move || splice.unsplice().is_ok())
    };
    let threads = [unsplice(&splice), unsplice(&splice)];
    world.work();
    let ended = threads.map(join);
    claim(ended[0] != ended[1], "one of them has ended it");
    claim(told.all().len() == 1, "one end is told");
    drop(kept);
}

#[test]
fn one_ends_it() {
    explore("unsplice against unsplice", twice);
}

/// The first failure is the second end of the splice.
#[test]
#[should_panic(expected = "+ Detach")]
fn fails_without_the_identity_check() {
    explore_without(Protection::OneEnds, twice);
}

/// While an OpenBSD splice lasts, its source appears empty.
fn asleep() {
    let world = Arc::new(World::new(1));
    world.b.set_flavor(Flavor::OpenBsd);
    world.b.set_nonblocking(false);
    let splice = world.splice();
    for byte in [b"x", b"y", b"z"] {
        world.a.send(byte).unwrap();
        world.work();
    }
    // Both threads hold the world, so that neither tears it down while the other one sleeps for ever.
    let other = world.clone();
    let reader = spawn(move || received(&other.b));
    splice.unsplice().unwrap();
    claim(
        join(reader) == b"z",
        "the sleeping reader reads the remaining bytes",
    );
}

#[test]
fn a_sleeping_reader_is_woken() {
    explore("unsplice against reader", asleep);
}

#[test]
#[should_panic(expected = "deadlock")]
fn fails_without_waking_the_reader() {
    explore_without(Protection::WakeSleepers, asleep);
}
