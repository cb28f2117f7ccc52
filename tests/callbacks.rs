//! Callbacks that call the library again, thousands of times in a row: no thread's stack grows.
//!
//! Each test runs in a process of its own whose threads have small stacks, since a stack overflow ends
//! the process.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

/// Tests that run [`alone`].
macro_rules! tests {
    ($($(#[$attribute:meta])* fn $name:ident() $body:block)*) => {
        $(
            $(#[$attribute])*
            #[test]
            fn $name() {
                let path = concat!(module_path!(), "::", stringify!($name));
                // Without the crate's name.
                let (_, path) = path.split_once("::").unwrap();
                $crate::alone(path, || $body);
            }
        )*
    };
}

#[path = "callbacks/ends.rs"]
mod ends;
#[path = "support/long.rs"]
mod long;
#[path = "callbacks/others.rs"]
mod others;
#[path = "callbacks/rules.rs"]
mod rules;

use crossbeam_channel::{Receiver, Sender, unbounded};
use long::times;
use sosplice::splice::{Dispatch, Options, SplicePool};
use sosplice::{Socket, local};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// Bytes of stack that each thread has: twenty calls inside each other are too many.
const STACK: usize = 256 * 1024;
/// What the smallest call takes of it: where to return to, and the caller's frame.
const CALL: usize = 16;
/// More than anything here takes.
const LIMIT: Duration = Duration::from_secs(120);
/// Set in the process that is to run the test.
const CHILD: &str = "SOSPLICE_CALLBACKS_CHILD";

/// Calls in a row, for each way in which splices are dispatched.
fn many() -> usize {
    times(2 * STACK / CALL, 1_000_000)
}

/// Calls in a row where one way is like another, and what is dropped at once: inside each other they would
/// need more than the stack, however small they are.
fn deep() -> usize {
    times(STACK / CALL + 1, 100_000)
}

/// Runs `body`, which is the test of this name, alone in a process, in a thread with a small stack.
#[track_caller]
fn alone(name: &str, body: impl FnOnce() + Send + 'static) {
    if std::env::var_os(CHILD).is_some() {
        let small = thread::Builder::new().stack_size(STACK);
        return small.spawn(body).unwrap().join().unwrap();
    }
    let mut test = Command::new(std::env::current_exe().unwrap());
    test.args([name, "--exact", "--nocapture"]);
    // Of the library's threads, which have the default size.
    test.env(CHILD, "1")
        .env("RUST_MIN_STACK", STACK.to_string());
    let output = test.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}: {said}\n{printed}",
        output.status
    );
    assert!(printed.contains("1 passed"), "{name} is no test: {printed}");
}

/// A pool of one worker.
fn pool(dispatch: Dispatch) -> SplicePool {
    SplicePool::builder().workers(1).dispatch(dispatch).build()
}

fn options(pool: &SplicePool) -> Options {
    Options::default().pool(pool.clone())
}

/// Two pairs with room for [`many`] bytes, the second of one to be spliced to the first of the other.
fn pairs() -> [Socket; 4] {
    let many = many();
    let ((a, b), (c, d)) = (
        local::pair_with_hiwat(many, many),
        local::pair_with_hiwat(many, many),
    );
    [a, b, c, d]
}

/// Counts calls, and reports the last one.
#[derive(Clone)]
struct Calls {
    left: Arc<AtomicUsize>,
    done: Sender<()>,
}

impl Calls {
    /// So many.
    fn new(count: usize) -> (Calls, Receiver<()>) {
        let (done, wait) = unbounded();
        let left = Arc::new(AtomicUsize::new(count));
        (Calls { left, done }, wait)
    }

    /// One more. `true`: others are to come.
    fn count(&self) -> bool {
        let left = self.left.fetch_sub(1, Ordering::SeqCst) - 1;
        if left == 0 {
            self.done.send(()).unwrap();
        }
        left > 0
    }
}
