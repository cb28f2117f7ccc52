//! A model of failure: a reader runs while the other end is aborted, one side after the other.

#![cfg(sosplice_loom)]

use super::*;
use crate::sync::model::{claim, explore, explore_without, join, spawn};
use std::io::ErrorKind;

fn abort() {
    let (a, b) = pair_with_hiwat(2, 2);
    let reader = spawn(move || {
        let read = b.recv(&mut [0; 2]);
        (b, read.map_err(|error| error.kind()))
    });
    a.abort();
    let (b, read) = join(reader);
    claim(
        read == Err(ErrorKind::ConnectionReset),
        "the reader gets the reset",
    );
    drop((a, b));
}

#[test]
fn a_reset_is_no_end_of_file() {
    explore("abort against reader", abort);
}

#[test]
#[should_panic(expected = "the reader gets the reset")]
fn fails_if_the_failure_is_not_marked_first() {
    explore_without(Protection::FailureFirst, abort);
}
