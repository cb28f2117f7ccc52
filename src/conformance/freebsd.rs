//! FreeBSD's cases (`tests/sys/kern/socket_splice.c`).

use super::{BOTH, Case, Outcome, Setup, World};

pub(super) const CASES: &[Case] = &[Case {
    name: "F05 splice_limit_bytes",
    behaviour: "a limit is exact; the next byte is the user's",
    freebsd: "ends without an error",
    openbsd: "`EFBIG`",
    here: "",
    flavors: BOTH,
    run: limit_bytes,
}];

fn limit_bytes(world: &World<'_>) -> Outcome {
    let ([l0, l1], [r0, r1]) = (
        world.connect(Setup::default()),
        world.connect(Setup::default()),
    );
    let mut options = world.options();
    options.limit = Some(129);
    let splice = l1.splice_to(&r0, options).expect("a splice");
    world.exchange(&l0, &r1, &[7; 128]);
    assert_eq!(l1.spliced(), 128);
    world.exchange(&l0, &r1, b"x");
    world.until("the splice has ended", || splice.is_ended());
    assert_eq!(splice.bytes(), 129);
    Outcome::Passed
}
