//! A model of the signal: entries are added while a wait takes the first of them and clears it.

#![cfg(sosplice_loom)]

use super::*;
use crate::sync::model::{claim, explore, explore_without, join, spawn};

fn entries_against_wait() {
    let list = Arc::new(ReadyList::default());
    let signal = list.signal(|| Ok::<_, ()>(Signal::default())).unwrap();
    let adds = list.clone();
    let thread = spawn(move || {
        adds.push(());
        adds.push(());
    });
    let mut taken = Vec::new();
    list.take(&mut taken, usize::MAX, None);
    taken.clear();
    list.give_back(&mut taken);
    join(thread);
    let is_empty = list.ready.lock().entries.is_empty();
    claim(is_empty || signal.is_set(), "an entry sets the signal");
}

/// The signal is asked for when there may be entries.
fn entry_against_signal() {
    let list = Arc::new(ReadyList::default());
    let adds = list.clone();
    let thread = spawn(move || adds.push(()));
    let signal = list.signal(|| Ok::<_, ()>(Signal::default())).unwrap();
    join(thread);
    claim(signal.is_set(), "an entry before it sets the signal");
}

#[test]
fn an_entry_sets_the_signal() {
    explore("entries against a wait", entries_against_wait);
}

#[test]
fn an_entry_before_the_signal_sets_it() {
    explore("entry against the signal", entry_against_signal);
}

#[test]
#[should_panic(expected = "an entry sets the signal")]
fn fails_if_the_signal_is_cleared_without_the_lock() {
    explore_without(Protection::ClearLocked, entries_against_wait);
}
