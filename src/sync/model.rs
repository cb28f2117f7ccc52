//! Runs models: all interleavings of their threads with at most three preemptions, or
//! `LOOM_MAX_PREEMPTIONS`.
//!
//! A model is a function that makes its world, starts threads with [`spawn`], waits for them, and
//! asserts conditions with [`claim`]. A claim that does not hold fails the model at the end of the run,
//! after all objects are dropped, so that none is dropped while threads use it.

#![cfg(sosplice_loom)]

use super::{Protection, modelled, remove, thread};
use crate::lock;
use ::loom::model::Builder;
pub(crate) use ::loom::thread::JoinHandle;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

// The ranks are defined in `lock`.
const _: () = assert!(modelled::CONNECTION == lock::CONNECTION && modelled::POOL == lock::POOL);

const PREEMPTIONS: usize = 3;
/// Steps of one run.
const BRANCHES: usize = 5000;

std::thread_local! {
    /// The first claim of this run that did not hold.
    static BROKEN: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Runs a model with all protections.
pub(crate) fn explore(name: &str, model: fn()) {
    explore_all(name, None, model);
}

/// Runs a model without one of the protections: it must fail.
pub(crate) fn explore_without(protection: Protection, model: fn()) {
    explore_all("", Some(protection), model);
}

fn explore_all(name: &str, without: Option<Protection>, model: fn()) {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    builder.max_branches = BRANCHES;
    remove(without);
    let start = crate::clock::system().now();
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        BROKEN.take();
        join(spawn(model));
        if let Some(claim) = BROKEN.take() {
            let runs = counted.load(Ordering::Relaxed);
            panic!("does not hold in run {runs}: {claim}");
        }
    });
    let time = crate::clock::system().now() - start;
    let runs = runs.load(Ordering::Relaxed);
    println!("{name}: {runs} interleavings in {time:.1?}");
}

/// Asserts a condition.
pub(crate) fn claim(holds: bool, what: &'static str) {
    if !holds && BROKEN.get().is_none() {
        BROKEN.set(Some(what));
    }
}

/// A thread of the model.
pub(crate) fn spawn<R: Send + 'static>(body: impl FnOnce() -> R + Send + 'static) -> JoinHandle<R> {
    let thread = thread::Builder::new().spawn(body);
    thread.expect("loom has room for it")
}

/// Waits for a thread.
pub(crate) fn join<R>(thread: JoinHandle<R>) -> R {
    thread.join().expect("a panic ends the model")
}
