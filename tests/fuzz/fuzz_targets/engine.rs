//! The TCP engine, which sees no payload, beside plain smoltcp, which does: they emit the same frames and
//! deliver the same bytes, whatever the network does to them. See `tcp::oracle` in the crate, which is
//! reachable with `--cfg sosplice_fuzz` only.
//!
//! The input's head is the weather; each byte behind it decides whether a frame is lost, delayed, sent
//! twice or cut anew, or what an application does next. To run it: `.ci/fuzz 60 engine`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sosplice::fuzz_engine(input));
