//! A model of [`Turn`]: the work of a thread that comes while another one works is done.

#![cfg(sosplice_loom)]

use super::Turn;
use crate::sync::Protection;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::model::{claim, explore, explore_without, join, spawn};
use std::sync::Arc;

/// Two threads with a piece of work each, without other synchronisation.
fn turns() {
    let left = Arc::new((Turn::default(), AtomicUsize::new(0), AtomicUsize::new(0)));
    let other = left.clone();
    let come = |left: &(Turn, AtomicUsize, AtomicUsize)| {
        let (turn, wanted, done) = left;
        wanted.fetch_add(1, Ordering::Relaxed);
        turn.take(|| done.store(wanted.load(Ordering::Relaxed), Ordering::Relaxed));
    };
    let thread = spawn(move || come(&other));
    come(&left);
    join(thread);
    claim(left.2.load(Ordering::Relaxed) == 2, "everything is done");
}

#[test]
fn everything_is_done() {
    explore("turns", turns);
}

#[test]
#[should_panic(expected = "everything is done")]
fn fails_without_setting_the_flag() {
    explore_without(Protection::LeaveWord, turns);
}

#[test]
#[should_panic(expected = "everything is done")]
fn fails_if_the_word_is_not_seen() {
    explore_without(Protection::SeeWord, turns);
}
