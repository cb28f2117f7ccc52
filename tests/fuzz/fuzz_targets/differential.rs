//! The crate's TCP beside plain smoltcp: with the same segments of a peer and the same calls, both must
//! deliver the same data, end at the same position and close alike. Deliberate differences are in a
//! table, `tests/differential/twins.rs`.
//!
//! The input begins with the set-up of both, followed by a program for the peer and the applications.
//! To run it: `.ci/fuzz 60 differential`. `cargo test --test differential` does the same for inputs
//! that follow seeds.
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
