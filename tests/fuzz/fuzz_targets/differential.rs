//! The crate's TCP beside plain smoltcp: the same segments of a peer and the same calls at both, and what is
//! delivered, where it ends and how it is closed is the same. What differs on purpose is in a table,
//! `tests/differential/twins.rs`.
//!
//! The input's head is how both are set up; behind it is a program of what the peer and the applications do.
//! To run it: `.ci/fuzz 60 differential`. `cargo test --test differential` does the same for inputs that
//! follow seeds.
#![no_main]

#[path = "../../support/clock.rs"]
mod clock;
#[path = "../../differential/twins.rs"]
mod twins;

use sosplice_fuzz::Input;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    for excuse in twins::run(input) {
        assert!(twins::EXCUSES.iter().any(|(known, ..)| *known == excuse));
    }
});
