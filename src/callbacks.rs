//! Callbacks: foreign code, called one after the other on each thread, never nested.
//!
//! A program registers code that the library calls: callbacks for the end of a splice, wakers,
//! subscribers of events, a hook for frames. Such code calls the library in turn, and so may cause the
//! next callback; a peer can control how often, with records for a program that splices record by
//! record. Nested calls would use more and more of the thread's stack. So while a thread is inside a
//! callback, [`call`] appends further ones to the thread's list, and the outermost call works through
//! that list iteratively when the callback has returned.
//!
//! | code | where | waits on the list |
//! |---|---|---|
//! | callbacks of [`Splice::on_end`](crate::Splice::on_end), wakers of `Splice::ended` | `splice::task` | yes |
//! | callbacks of [`TcpListener::on_accept`](crate::TcpListener::on_accept) | `stack::accept::backlog` | yes |
//! | callbacks of [`TcpStream::on_connected`](crate::TcpStream::on_connected) | `stack::shared` | yes |
//! | wakers of sockets | `socket::aio` | no, a separate thread calls them: a callback may wait for the task |
//! | subscribers of events | `events` | yes |
//! | destructors of values in upcalls and wakers of a closed socket | `socket` | yes |
//! | a socket that is dropped in [`Upcall::closing`](crate::protocol::Upcall::closing) | `socket` | yes |
//! | the hook for frames, [`Upcall::closing`](crate::protocol::Upcall::closing) itself | `stack::demux::unhandled`, `socket` | no, the library needs its result ([`during`]); callbacks that it causes do |
//!
//! Upcalls that run under a buffer's lock, links and clocks must not call functions that cause
//! callbacks. A [`Protocol`](crate::protocol::Protocol) is called directly: the thread's stack grows
//! with the layers of protocols. A poller has no callbacks.
//!
//! 1. The list is called with no lock held, in order of insertion.
//! 2. After [`CALLS_IN_A_ROW`] of them the others are moved to another thread, if possible
//!    ([`Callback::hand_over`]), so that a peer cannot keep a thread from its other work.
//! 3. After a panic the rest of the list is still called. The panic is then resumed in the outermost
//!    call.
//! 4. The list is empty when no callback runs, so a thread that ends leaves no entry. After the
//!    thread's storage is destroyed callbacks are called directly.
//!
//! The list belongs to its thread: no lock.

use crate::lock;
use crate::sync::thread_local;
use std::any::Any;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};

/// Number of callbacks in a row after which a thread hands over the others.
pub(crate) const CALLS_IN_A_ROW: usize = 64;

/// Foreign code to be called.
pub(crate) trait Callback {
    /// Calls it, once. Called with no lock held.
    fn call(&mut self);

    /// Moves it to another thread, or to a later turn of this one. `false` if that is not possible, so
    /// that it must be called here.
    fn hand_over(&mut self) -> bool {
        false
    }
}

/// A callback from a closure.
pub(crate) struct Once<F>(Option<F>);

impl<F: FnOnce()> Once<F> {
    pub(crate) fn new(code: F) -> Once<F> {
        Once(Some(code))
    }
}

impl<F: FnOnce()> Callback for Once<F> {
    fn call(&mut self) {
        if let Some(code) = self.0.take() {
            code();
        }
    }
}

/// The callbacks of a thread.
struct Calls {
    /// A callback is running.
    inside: bool,
    /// An [`Upcall::closing`](crate::protocol::Upcall::closing) is running.
    closing: bool,
    /// The callbacks to be called afterwards.
    list: VecDeque<Box<dyn Callback>>,
}

thread_local! {
    static CALLS: RefCell<Calls> = const {
        RefCell::new(Calls {
            inside: false,
            closing: false,
            list: VecDeque::new(),
        })
    };
}

/// The state of a thread that is to call a callback.
#[derive(Clone, Copy)]
enum Place {
    /// Inside a callback.
    Inside,
    /// It was outside, and is inside now.
    Outside,
    /// The thread is ending, and its storage is destroyed.
    Nowhere,
}

/// A callback is to be called.
fn enter() -> Place {
    let was_inside = with_calls(|calls| std::mem::replace(&mut calls.inside, true));
    was_inside.map_or(Place::Nowhere, |inside| match inside {
        true => Place::Inside,
        false => Place::Outside,
    })
}

#[cold]
fn put_off(code: Box<dyn Callback>) {
    with_calls(|calls| calls.list.push_back(code));
}

/// `None` when the thread is ending and its storage is destroyed.
fn with_calls<R>(change: impl FnOnce(&mut Calls) -> R) -> Option<R> {
    CALLS.try_with(|calls| change(&mut calls.borrow_mut())).ok()
}

/// Calls a callback: now or, inside another one, after that has returned. Must be called with no lock
/// held.
pub(crate) fn call(mut code: impl Callback + 'static) {
    lock::assert_none_held();
    match enter() {
        Place::Inside => put_off(Box::new(code)),
        Place::Outside => outermost(|| code.call()),
        Place::Nowhere => code.call(),
    }
}

/// Calls foreign code whose result is needed now. Callbacks that become due meanwhile are called
/// afterwards.
pub(crate) fn during<R>(code: impl FnOnce() -> R) -> R {
    lock::assert_none_held();
    match enter() {
        Place::Outside => outermost(code),
        Place::Inside | Place::Nowhere => code(),
    }
}

fn outermost<R>(code: impl FnOnce() -> R) -> R {
    let result = panic::catch_unwind(AssertUnwindSafe(code));
    let later = work_through();
    match (result, later) {
        (Ok(result), Ok(())) => result,
        (Err(panic), _) | (Ok(_), Err(panic)) => panic::resume_unwind(panic),
    }
}

/// As [`during`], for a socket that is being closed: the close of another one meanwhile is deferred
/// ([`is_closing`]).
pub(crate) fn while_closing(code: impl FnOnce()) {
    struct Over;
    impl Drop for Over {
        fn drop(&mut self) {
            with_calls(|calls| calls.closing = false);
        }
    }
    during(|| {
        with_calls(|calls| calls.closing = true);
        let _over = Over;
        code();
    });
}

/// Whether this thread is inside a callback.
#[cfg(feature = "async")]
pub(crate) fn is_inside() -> bool {
    with_calls(|calls| calls.inside) == Some(true)
}

/// Whether this thread is in [`while_closing`].
pub(crate) fn is_closing() -> bool {
    with_calls(|calls| calls.closing) == Some(true)
}

/// The next callback. If there is none, marks the thread as outside.
fn next() -> Option<Box<dyn Callback>> {
    with_calls(|calls| {
        let next = calls.list.pop_front();
        if next.is_none() {
            calls.inside = false;
            if calls.list.capacity() > 2 * CALLS_IN_A_ROW {
                calls.list = VecDeque::new();
            }
        }
        next
    })
    .flatten()
}

/// Calls the list, including later additions. Returns the first panic, if there was one.
fn work_through() -> Result<(), Box<dyn Any + Send>> {
    let mut result = Ok(());
    let mut called = 0;
    while let Some(mut code) = next() {
        called += 1;
        let call = move || {
            if called <= CALLS_IN_A_ROW || !code.hand_over() {
                code.call();
            }
            // Its captured values are foreign too.
            drop(code);
        };
        result = result.and(panic::catch_unwind(AssertUnwindSafe(call)));
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    /// The calls, in order.
    #[derive(Clone, Default)]
    struct Log(Rc<RefCell<Vec<usize>>>);

    impl Log {
        fn call(&self, number: usize) {
            let log = self.clone();
            call(Once::new(move || log.0.borrow_mut().push(number)));
        }

        fn take(&self) -> Vec<usize> {
            self.0.take()
        }
    }

    /// Can always be handed over.
    struct Movable(Log, usize, Rc<RefCell<Vec<usize>>>);

    impl Callback for Movable {
        fn call(&mut self) {
            self.0.0.borrow_mut().push(self.1);
        }

        fn hand_over(&mut self) -> bool {
            self.2.borrow_mut().push(self.1);
            true
        }
    }

    #[test]
    fn at_once_outside_and_afterwards_inside() {
        let log = Log::default();
        log.call(1);
        assert_eq!(log.take(), [1]);
        let inner = log.clone();
        call(Once::new(move || {
            inner.call(2);
            let innermost = inner.clone();
            call(Once::new(move || {
                innermost.call(5);
                innermost.0.borrow_mut().push(3);
            }));
            inner.call(4);
            inner.0.borrow_mut().push(1);
        }));
        assert_eq!(log.take(), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_result_is_there_at_once_also_inside() {
        let log = Log::default();
        let result = during(|| {
            log.call(2);
            let inner = during(|| {
                log.call(3);
                7
            });
            log.0.borrow_mut().push(1);
            inner
        });
        assert_eq!((result, log.take()), (7, vec![1, 2, 3]));
    }

    #[test]
    fn a_panic_resumes_when_all_were_called() {
        let log = Log::default();
        let panicked = panic::catch_unwind(AssertUnwindSafe(|| {
            during(|| {
                log.call(1);
                call(Once::new(|| panic!("the first")));
                call(Once::new(|| panic!("the second")));
                log.call(2);
            });
        }));
        let message = panicked.unwrap_err();
        assert_eq!(message.downcast_ref::<&str>(), Some(&"the first"));
        assert_eq!(log.take(), [1, 2]);
        let panicked = panic::catch_unwind(AssertUnwindSafe(|| {
            while_closing(|| {
                log.call(3);
                panic!("itself");
            });
        }));
        assert!(panicked.is_err() && !is_closing());
        log.call(4);
        assert_eq!(log.take(), [3, 4], "it is outside again");
    }

    #[test]
    fn callbacks_that_can_move_do_so_after_a_while() {
        let (log, elsewhere) = (Log::default(), Rc::new(RefCell::new(Vec::new())));
        let last = CALLS_IN_A_ROW + 3;
        during(|| {
            for number in 1..=last {
                call(Movable(log.clone(), number, elsewhere.clone()));
            }
            log.call(last + 1);
        });
        let here: Vec<_> = (1..=CALLS_IN_A_ROW).chain([last + 1]).collect();
        assert_eq!(log.take(), here);
        let there: Vec<_> = (CALLS_IN_A_ROW + 1..=last).collect();
        assert_eq!(*elsewhere.borrow(), there);
    }

    #[test]
    fn a_socket_is_closed_after_the_one_whose_close_drops_it() {
        assert!(!is_closing());
        while_closing(|| {
            assert!(is_closing());
            call(Once::new(|| assert!(!is_closing())));
        });
    }
}
