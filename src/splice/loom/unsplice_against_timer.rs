//! A splice is ended, or moves a byte, while its timer fires.

use super::*;

fn world(clock: &Arc<TestClock>) -> World {
    let pool = SplicePool::builder().workers(1).clock(clock.clone());
    World::with(2, pool.manual().build())
}

/// The splice is ended and another one set up, while the timer of the first one fires.
fn lifetime() {
    let clock = TestClock::new();
    let world = world(&clock);
    let first = world.splice_with(Options {
        lifetime: Some(Duration::from_secs(1)),
        ..world.options()
    });
    let told = Told::listen(&first, &world.d);
    let kept = world.keep();
    clock.advance();
    let worker = work(&world.pool);
    let unspliced = first.unsplice();
    let second = world.splice();
    join(worker);
    let ends: Vec<End> = told.all().iter().map(|(end, _)| *end).collect();
    claim(
        ends.len() == 1 && first.end() == Some(ends[0]),
        "it ends once",
    );
    let cause = unspliced.map_or(Cause::Lifetime, |end| end.cause);
    claim(ends[0].cause == cause, "who has ended it knows");
    claim(
        !second.is_ended() && second.unsplice().is_ok(),
        "the next one continues",
    );
    drop(kept);
}

#[test]
fn a_late_timer_ends_no_other_splice() {
    explore("unsplice against timer", lifetime);
}

/// The first failure is the second end of the splice.
#[test]
#[should_panic(expected = "Ended + Detach")]
fn fails_if_any_splice_will_do() {
    explore_without(Protection::Identity, lifetime);
}

/// The idle time is over unless the pass that runs moves its byte first.
fn idle() {
    let clock = TestClock::new();
    let world = world(&clock);
    let splice = world.splice_with(Options {
        idle: Some(Duration::from_secs(1)),
        dispatch: Some(Dispatch::Direct),
        ..world.options()
    });
    let kept = world.keep();
    clock.advance();
    let worker = work(&world.pool);
    world.a.send(b"x").unwrap();
    join(worker);
    let idle = splice.end().is_some_and(|end| end.cause == Cause::Idle);
    claim(idle != (splice.bytes() == 1), "it was idle");
    drop(kept);
}

#[test]
fn a_byte_in_time_keeps_it_alive() {
    explore("idle time-out against pass", idle);
}

#[test]
#[should_panic(expected = "it was idle")]
fn fails_if_the_question_comes_before_the_locks() {
    explore_without(Protection::DueUnderLocks, idle);
}
