//! Free frames, by size.
//!
//! The pools are shared by all threads, each under a lock (rank 6). A thread that drives a stack makes
//! and drops many frames in a row: while it is [`at_work`] it keeps some free ones in a magazine of its
//! own, which exchanges many frames at a time with the pools (Bonwick and Adams, "Magazines and Vmem",
//! USENIX 2001). So there is little contention for the lock, and a frame is reused on the processor
//! whose caches have it. An idle thread keeps none ([`give_back`]).

use super::{Frame, MAX_FRAME};
use crate::lock::{Mutex, POOL};
use crate::sync::KEEPS_FRAMES;
use std::cell::RefCell;
use std::sync::Arc;

/// Frames of one size.
struct Class {
    capacity: usize,
    /// Maximum number of free frames in the pool.
    pooled: usize,
    /// Maximum number of free frames in a magazine; half of them are moved at a time.
    loaded: usize,
}

const fn class(capacity: usize, pooled: usize, loaded: usize) -> Class {
    Class {
        capacity,
        pooled,
        loaded,
    }
}

const CLASSES: [Class; 4] = [
    class(256, 4096, 128),
    class(2048, 2048, 128),
    class(16_384, 512, 16),
    class(MAX_FRAME, 512, 8),
];

/// Each pool has cache lines of its own, against false sharing.
#[repr(align(128))]
struct Pool(Mutex<Vec<Arc<Frame>>, POOL>);

static POOLS: [Pool; CLASSES.len()] = [const { Pool(Mutex::new(Vec::new())) }; CLASSES.len()];

/// Free frames of one thread. They return to the pools when it ends.
struct Magazine {
    at_work: bool,
    frames: [Vec<Arc<Frame>>; CLASSES.len()],
}

thread_local! {
    static MAGAZINE: RefCell<Magazine> = const {
        RefCell::new(Magazine {
            at_work: false,
            frames: [const { Vec::new() }; CLASSES.len()],
        })
    };
}

impl Magazine {
    fn take(&mut self, class: usize) -> Option<Arc<Frame>> {
        let frames = &mut self.frames[class];
        if frames.is_empty() {
            let mut pool = POOLS[class].0.lock();
            let left = pool.len().saturating_sub(CLASSES[class].loaded / 2);
            frames.extend(pool.drain(left..));
        }
        frames.pop()
    }

    fn put(&mut self, class: usize, frame: Arc<Frame>) {
        let frames = &mut self.frames[class];
        if frames.len() == CLASSES[class].loaded {
            // The latest, which are in the CPU cache, stay.
            unload(class, frames.drain(..CLASSES[class].loaded / 2));
        }
        frames.push(frame);
    }

    fn give_back(&mut self) {
        for (class, frames) in self.frames.iter_mut().enumerate() {
            if !frames.is_empty() {
                unload(class, frames.drain(..));
            }
        }
    }
}

impl Drop for Magazine {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Moves frames to the pool as far as it has room; frees the rest after releasing the lock.
fn unload(class: usize, mut frames: impl ExactSizeIterator<Item = Arc<Frame>>) {
    let mut pool = POOLS[class].0.lock();
    let room = CLASSES[class].pooled.saturating_sub(pool.len());
    pool.extend(frames.by_ref().take(room));
    drop(pool);
    drop(frames);
}

/// The calling thread's magazine, if it is at work and not ending.
fn loaded<R>(work: impl FnOnce(&mut Magazine) -> R) -> Option<R> {
    let inside = |magazine: &RefCell<Magazine>| {
        let mut magazine = magazine.borrow_mut();
        magazine.at_work.then(|| work(&mut magazine))
    };
    MAGAZINE.try_with(inside).ok().flatten()
}

/// Until this is dropped the calling thread uses its magazine.
pub(crate) struct AtWork {
    before: bool,
}

pub(crate) fn at_work() -> AtWork {
    let begin = |magazine: &RefCell<Magazine>| {
        let at_work = &mut magazine.borrow_mut().at_work;
        std::mem::replace(at_work, KEEPS_FRAMES)
    };
    AtWork {
        before: MAGAZINE.try_with(begin).unwrap_or(false),
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let end = |magazine: &RefCell<Magazine>| magazine.borrow_mut().at_work = self.before;
        // A thread that ends has no magazine any more.
        MAGAZINE.try_with(end).ok();
    }
}

/// The calling thread is idle: returns its free frames to the pools.
pub(crate) fn give_back() {
    let all = |magazine: &RefCell<Magazine>| magazine.borrow_mut().give_back();
    MAGAZINE.try_with(all).ok();
}

/// The pool with frames of at least this capacity.
pub(super) fn class_for(capacity: usize) -> Option<usize> {
    CLASSES.iter().position(|class| class.capacity >= capacity)
}

pub(super) fn capacity(class: usize) -> usize {
    CLASSES[class].capacity
}

/// A free frame, if there is one.
pub(super) fn take(class: usize) -> Option<Arc<Frame>> {
    loaded(|magazine| magazine.take(class)).unwrap_or_else(|| POOLS[class].0.lock().pop())
}

/// Stores a frame without other references.
pub(super) fn put(class: usize, frame: Arc<Frame>) {
    let mut frame = Some(frame);
    loaded(|magazine| magazine.put(class, frame.take().expect("called once")));
    if let Some(frame) = frame {
        let mut pool = POOLS[class].0.lock();
        if pool.len() < CLASSES[class].pooled {
            pool.push(frame);
        }
    }
}

/// Frames in the pools, and their capacity.
pub(super) fn pooled() -> impl Iterator<Item = (usize, usize)> {
    let of = |(pool, class): (&Pool, &Class)| (pool.0.lock().len(), class.capacity);
    POOLS.iter().zip(&CLASSES).map(of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::Buf;

    /// Free frames of the calling thread, whose capacity is this.
    fn mine(capacity: usize) -> usize {
        let class = class_for(capacity).unwrap();
        MAGAZINE.with_borrow(|magazine| magazine.frames[class].len())
    }

    #[test]
    fn a_thread_at_work_keeps_its_frames_and_then_gives_them_back() {
        let bufs = || std::iter::repeat_with(|| Buf::copy_of(&[1; 10_000]));
        let memory = |buf: &Buf| buf.as_ptr();
        drop(Buf::copy_of(&[1; 10_000]));
        assert_eq!(mine(10_000), 0, "not at work");
        let outer = at_work();
        let some: Vec<_> = bufs().take(8).collect();
        let places: Vec<_> = some.iter().map(memory).collect();
        drop(some);
        drop(at_work());
        assert!(mine(10_000) >= 8, "still at work");
        let again: Vec<_> = bufs().take(8).collect();
        assert!(again.iter().map(memory).eq(places.into_iter().rev()));
        drop(again);
        drop(bufs().take(40).collect::<Vec<_>>());
        assert!(mine(10_000) <= 16);
        drop(outer);
        give_back();
        assert_eq!(mine(10_000), 0);
    }

    #[test]
    fn a_thread_that_ends_leaves_no_frame_behind() {
        struct Late(Option<Buf>);
        thread_local! {
            static LATE: RefCell<Late> = const { RefCell::new(Late(None)) };
        }
        let work = || {
            // The order in which the two are dropped is unspecified, and must not matter.
            LATE.with_borrow_mut(|late| late.0 = Some(Buf::copy_of(&[1; 100])));
            let _at_work = at_work();
            drop(Buf::copy_of(&[1; 100]));
            assert!(mine(100) > 0);
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, work);
            thread.unwrap().join().unwrap();
        });
    }
}
