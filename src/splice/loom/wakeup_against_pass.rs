//! Bytes wake a splice that is idle, or that is about to become idle.

use super::*;

fn on_a_worker() {
    let world = World::new(2);
    world.splice();
    world.a.send(b"x").unwrap();
    let a = world.a.clone();
    let sender = spawn(move || a.send(b"y").unwrap());
    world.work();
    join(sender);
    world.work();
    claim(received(&world.d) == b"xy", "every byte arrives");
}

#[test]
fn every_byte_arrives() {
    explore("wake-up against pass", on_a_worker);
}

#[test]
#[should_panic(expected = "every byte arrives")]
fn fails_without_rescan() {
    explore_without(Protection::Rescan, on_a_worker);
}

/// One thread sends, the other one reads, and each runs the pass that it has caused.
fn in_the_users_threads() {
    let world = World::new(1);
    world.splice_with(Options {
        dispatch: Some(Dispatch::Direct),
        ..world.options()
    });
    world.a.send(b"x").unwrap();
    world.a.send(b"y").unwrap();
    let a = world.a.clone();
    let sender = spawn(move || a.send(b"z").unwrap_or(0));
    let mut bytes = received(&world.d);
    let sent = 2 + join(sender);
    world.work();
    for _ in 0..2 {
        bytes.extend(received(&world.d));
    }
    claim(bytes == b"xyz"[..sent], "every byte arrives");
}

#[test]
fn every_byte_arrives_without_a_worker() {
    explore("wake-up against pass, direct", in_the_users_threads);
}

#[test]
#[should_panic(expected = "every byte arrives")]
fn fails_without_a_worker_and_rescan() {
    explore_without(Protection::Rescan, in_the_users_threads);
}

/// The sink's peer makes room while a pass finds none.
fn room() {
    let world = World::new(1);
    world.splice();
    for byte in [b"x", b"y", b"z"] {
        world.a.send(byte).unwrap();
        if byte != b"z" {
            world.work();
        }
    }
    let d = world.d.clone();
    let reader = spawn(move || received(&d));
    world.work();
    let mut bytes = join(reader);
    for _ in 0..2 {
        world.work();
        bytes.extend(received(&world.d));
    }
    claim(bytes == b"xyz", "every byte arrives");
}

#[test]
fn room_is_noticed() {
    explore("wake-up against pass, room", room);
}

#[test]
#[should_panic(expected = "every byte arrives")]
fn fails_without_rescan_for_room() {
    explore_without(Protection::Rescan, room);
}

#[test]
#[should_panic(expected = "every byte arrives")]
fn fails_if_the_wish_for_room_comes_late() {
    explore_without(Protection::WantsFirst, room);
}
