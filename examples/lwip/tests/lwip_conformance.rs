//! The conformance suite over lwIP: a protocol in C, over a stack in C, which has a thread of its own. Skipped with a
//! message if there was no lwIP when this was built.

#![allow(
    unsafe_code,
    clippy::unwrap_used,
    reason = "a test of a C interface, that says by panicking what it did not expect"
)]

#[cfg(lwip)]
#[path = "../../../tests/support/clock.rs"]
mod clock;
#[cfg(lwip)]
#[path = "conformance/pair.rs"]
#[allow(dead_code, reason = "another test uses the rest")]
mod pair;

#[cfg(lwip)]
fn main() {
    pair::main(false);
}

#[cfg(not(lwip))]
fn main() {
    let required = std::env::var("SOSPLICE_REQUIRE_NET").is_ok_and(|value| value == "1");
    assert!(!required, "needs liblwip-dev");
    println!("skipped, needs liblwip-dev");
}
