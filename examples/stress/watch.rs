//! The present operation of each thread and its start: detects threads without progress.
//!
//! Each thread has a [`Post`] and records its operations there. A thread that may sleep until its
//! socket is closed stores a handle of that socket; the reaper ends such sockets after a while, and
//! then the thread must wake up. A thread without a new operation for [`STUCK`] hangs: the watchdog
//! prints the operations of all threads and ends the process.

use crate::handle::Handle;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use parking_lot::Mutex;
use sosplice::clock::{Clock, SystemClock};
use std::borrow::Cow;
use std::net::Shutdown;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Time after which a thread in one operation counts as hanging.
pub(crate) const STUCK: Duration = Duration::from_secs(30);
/// How long a thread may sleep before its socket is ended.
const SLEEP: Duration = Duration::from_millis(200);
const TICK: Duration = Duration::from_millis(100);

/// The present operation of a thread.
#[derive(Debug)]
pub(crate) struct Post {
    name: String,
    operations: AtomicU64,
    doing: Mutex<Doing>,
    left: AtomicBool,
}

#[derive(Debug)]
struct Doing {
    what: Cow<'static, str>,
    since: Instant,
    /// The socket that it may sleep on for ever.
    sleeps_on: Option<Handle>,
}

impl Post {
    fn change(&self, what: Option<Cow<'static, str>>, sleeps_on: Option<Handle>) {
        let former = {
            let mut doing = self.doing.lock();
            if let Some(what) = what {
                doing.what = what;
                doing.since = SystemClock.now();
            }
            std::mem::replace(&mut doing.sleeps_on, sleeps_on)
        };
        // The last handle closes the socket: not under the lock.
        drop(former);
    }

    /// An operation begins.
    pub(crate) fn begin(&self, what: impl Into<Cow<'static, str>>) {
        self.operations.fetch_add(1, Ordering::Relaxed);
        self.change(Some(what.into()), None);
    }

    /// Runs a call that may last until its socket is ended.
    pub(crate) fn sleeping_on<R>(&self, socket: &Handle, call: impl FnOnce(&Handle) -> R) -> R {
        self.change(None, Some(socket.clone()));
        let result = call(socket);
        self.change(None, None);
        result
    }

    /// The thread is done.
    pub(crate) fn leave(&self) {
        self.change(None, None);
        self.left.store(true, Ordering::Release);
    }

    fn describe(&self, now: Instant) -> String {
        let doing = self.doing.lock();
        let (name, what) = (&self.name, &doing.what);
        if self.left.load(Ordering::Acquire) {
            return format!("{name}: done");
        }
        let time = now.saturating_duration_since(doing.since);
        match &doing.sleeps_on {
            None => format!("{name}: {what} for {time:.1?}"),
            // Not the socket itself, whose locks may be the cause.
            Some(socket) => format!("{name}: {what} for {time:.1?} on {}", socket.end().id()),
        }
    }
}

/// All posts.
#[derive(Debug, Default)]
pub(crate) struct Posts {
    posts: Mutex<Vec<Arc<Post>>>,
}

impl Posts {
    pub(crate) fn open(&self, name: String) -> Arc<Post> {
        let post = Arc::new(Post {
            name,
            operations: AtomicU64::new(0),
            doing: Mutex::new(Doing {
                what: "start".into(),
                since: SystemClock.now(),
                sleeps_on: None,
            }),
            left: AtomicBool::new(false),
        });
        self.posts.lock().push(post.clone());
        post
    }

    pub(crate) fn operations(&self) -> u64 {
        let posts = self.posts.lock();
        let counts = posts.iter();
        counts
            .map(|post| post.operations.load(Ordering::Relaxed))
            .sum()
    }

    fn all(&self) -> Vec<Arc<Post>> {
        self.posts.lock().clone()
    }

    /// The watchdog's thread, until `done` is disconnected.
    pub(crate) fn guard(&self, done: &Receiver<()>) {
        while done.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
            let now = SystemClock.now();
            let hangs = |post: &Arc<Post>| {
                let since = post.doing.lock().since;
                !post.left.load(Ordering::Acquire) && now.saturating_duration_since(since) > STUCK
            };
            let posts = self.all();
            let Some(stuck) = posts.iter().find(|post| hangs(post)) else {
                continue;
            };
            eprintln!("error: a thread hangs: {}", stuck.describe(now));
            for post in &posts {
                eprintln!("  {}", post.describe(now));
            }
            process::exit(1);
        }
    }

    /// The reaper's thread, until `done` is disconnected: ends the sockets of sleeping threads.
    pub(crate) fn reap(&self, post: &Post, done: &Receiver<()>) {
        let mut round = 0_u64;
        while done.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
            round += 1;
            for sleeper in self.all() {
                let socket = {
                    let doing = sleeper.doing.lock();
                    let time = SystemClock.now().saturating_duration_since(doing.since);
                    doing.sleeps_on.clone().filter(|_| time > SLEEP)
                };
                let Some(socket) = socket else { continue };
                post.begin("end the socket of a sleeper");
                if round.is_multiple_of(2) {
                    socket.abort();
                } else {
                    // Cannot fail at present; if it does, the next round aborts.
                    socket.shutdown(Shutdown::Both).ok();
                }
                // Most often there is none.
                socket.unsplice().ok();
            }
            post.begin("rest");
        }
        post.leave();
    }
}
