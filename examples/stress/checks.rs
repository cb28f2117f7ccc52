//! Checks for leftovers when all is closed.
//!
//! All must end within a bounded time: connections deliver their data, splices end with their sockets,
//! stacks and pools end their threads.

use crate::ends::Pool;
use crate::run::pause;
use crate::stage::{Faults, Stage};
use crate::watch::Post;
use crate::world::Host;
use sosplice::buf;
use sosplice::clock::{Clock, SystemClock};
use sosplice::stack::{SocketTable, Stats};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long it may take. A closed connection may have to retransmit, with longer and longer pauses.
const LIMIT: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(10);
/// Maximum memory in the pools of free frames.
const POOLED: usize = 64 << 20;

/// Names of the threads of stacks and pools.
const THREADS: [&str; 2] = ["sosplice:driver", "so_splice:"];

/// The threads of stacks and pools, on systems with /proc. Others are not the crate's: a sanitizer has
/// one of its own.
fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten();
    // A thread that ends meanwhile is one less.
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let is_ours = |name: &String| THREADS.iter().any(|start| name.starts_with(start));
    names.filter(is_ours).collect()
}

/// Whether it becomes true in time.
fn becomes(mut condition: impl FnMut() -> bool) -> bool {
    let end = SystemClock.now() + LIMIT;
    while !condition() {
        if SystemClock.now() > end {
            return false;
        }
        pause(TICK);
    }
    true
}

/// While stacks and pools exist: closes all sockets and checks for leftovers.
pub(crate) fn nothing_is_left(stage: &Stage, main: &Post) {
    let check = |what: &'static str, condition: &dyn Fn() -> bool, left: &dyn Fn() -> String| {
        let waiting = || {
            main.begin(what);
            condition()
        };
        if !becomes(waiting) {
            let left = left();
            stage
                .faults
                .report(format!("{what}: after {LIMIT:?} there is still {left}"));
        }
    };
    main.begin("close everything");
    stage.arena.living();
    stage.arena.splices.clear();
    stage.arena.bells.clear();
    stage.arena.sockets.clear();
    let connections = || -> usize { stats(stage).map(|(_, stats)| stats.connections).sum() };
    check("connections", &|| connections() == 0, &|| {
        format!("{}\n{}", connections(), sockets_of(stage))
    });
    let sockets = || stage.arena.living();
    check("sockets", &|| sockets() == 0, &|| {
        let some = stage.arena.remains();
        format!("{} of them, such as {:?}", some.len(), some.first())
    });
    for pool in pools(stage) {
        let open = || {
            let stats = pool.pool.stats();
            stats.started - stats.ended()
        };
        check("splices", &|| open() == 0, &|| {
            format!("{} in {}", open(), pool.name)
        });
        let wrong = || pool.ends.differ_from(&pool.pool.stats());
        check("ends of splices", &|| wrong().is_empty(), &|| {
            format!("a difference in {}: {}", pool.name, wrong().join("; "))
        });
        let timer = || pool.pool.poll_at();
        check("timers", &|| timer().is_none(), &|| {
            format!("{:?} in {}", timer(), pool.name)
        });
    }
    let guests = || {
        stage
            .guests
            .all()
            .abs_diff(stage.guest_splices.load(Ordering::Relaxed))
    };
    check("splices of guests", &|| guests() == 0, &|| {
        guests().to_string()
    });
    check("frames in use", &|| buf::frames_in_use() == 0, &|| {
        buf::frames_in_use().to_string()
    });
    let pooled = buf::pooled_bytes();
    if pooled > POOLED {
        stage.faults.report(format!(
            "{pooled} bytes of free frames, but {POOLED} is the most"
        ));
    }
    counters(stage);
}

fn pools(stage: &Stage) -> [&Arc<Pool>; 2] {
    [&stage.world.chaos, &stage.world.couriers]
}

/// The listings of all stacks.
fn sockets_of(stage: &Stage) -> String {
    let hosts = stage.world.hosts();
    let lists = hosts.map(|host| SocketTable(&host.stack.sockets()).to_string());
    lists.collect::<Vec<_>>().join("\n")
}

/// The counters of all stacks.
pub(crate) fn stats(stage: &Stage) -> impl Iterator<Item = (String, Stats)> {
    let of = |host: &Host| (host.address.to_string(), host.stack.stats());
    stage.world.hosts().map(of)
}

/// Counters that must be zero, since all frames are made by stacks.
fn counters(stage: &Stage) {
    for (host, stats) in stats(stage) {
        let none = [
            ("broken invariants", stats.broken),
            ("malformed frames", stats.frames_malformed),
            ("fragments", stats.frames_fragments),
            ("unsupported frames", stats.frames_unsupported),
            ("wrong checksums", stats.frames_bad_checksum),
            ("wrong addresses", stats.frames_bad_address),
            ("segments that the link did not take", stats.segments_lost),
        ];
        for (what, count) in none {
            if count > 0 {
                stage
                    .faults
                    .report(format!("{host} has counted {count} {what}"));
            }
        }
    }
}

/// Drops stacks and pools: their threads end.
pub(crate) fn end_of_the_world(stage: Arc<Stage>, faults: &Faults) {
    if threads().is_empty() && cfg!(any(target_os = "linux", target_os = "android")) {
        faults.report("no stack has a thread, or the names of threads have changed".into());
    }
    match Arc::into_inner(stage) {
        Some(stage) => drop(stage),
        None => faults.report("the stage is still referenced, though no thread is left".into()),
    }
    if !becomes(|| threads().is_empty()) {
        faults.report(format!(
            "threads of stacks and pools that were dropped: {:?}",
            threads()
        ));
    }
}
