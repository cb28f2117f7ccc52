//! Running cases: each in a thread of its own, which is given up when it takes too long.

use super::{Case, Config, Factory, Outcome, World, cases};
use crate::clock::{Clock, SystemClock};
use crate::error::Flavor;
use crate::lock::{LEAF, Mutex};
use std::any::Any;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Runs all cases that `select` wants, each in all its flavors and with each of these configurations
/// ([`Config::ALL`]: every dispatch). `report` is called in this thread with each case as it ends.
///
/// A case that takes longer than its time limit is stuck: it is reported as such, with what it waits for,
/// and the others follow. Its thread and its sockets are left alone, and end if they can. So what a
/// factory's sockets share had better not be locked while they wait.
pub fn run(
    factory: Arc<dyn Factory>,
    configs: impl IntoIterator<Item = Config>,
    select: impl Fn(&Case) -> bool,
    mut report: impl FnMut(&CaseEnd),
) -> Report {
    let mut ends = Vec::new();
    for config in configs {
        for case in cases().filter(|case| select(case)) {
            for flavor in case.flavors {
                let end = attempt(case, &factory, config, *flavor);
                report(&end);
                ends.push(end);
            }
        }
    }
    Report { ends }
}

/// How a case has ended, shown as one line.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CaseEnd {
    /// The case.
    pub case: Case,
    /// How its splices worked.
    pub config: Config,
    /// The flavor of its sockets.
    pub flavor: Flavor,
    /// How it went.
    pub result: Result<Outcome, Failure>,
    /// How long it took, in real time.
    pub took: Duration,
}

/// Why a case has not passed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// It has panicked, with this message: a socket behaves otherwise than it should.
    #[error("{0}")]
    Panicked(String),
    /// It has not ended in the time that it may take.
    #[error("not after {limit:?}: {waits_for}")]
    Stuck {
        /// The time that it may take.
        limit: Duration,
        /// What it waits for.
        waits_for: String,
    },
    /// There was no thread for it.
    #[error("the system starts no thread for it: {0}")]
    NoThread(String),
}

impl fmt::Display for CaseEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match &self.result {
            Ok(Outcome::Passed) => "passed",
            Ok(Outcome::NotApplicable(_)) => "not applicable",
            Err(Failure::Stuck { .. }) => "STUCK",
            Err(_) => "FAILED",
        };
        let (name, flavor, dispatch) = (self.case.name, self.flavor, self.config.dispatch);
        write!(f, "{word:<15} {name} ({flavor:?}, {dispatch:?})")?;
        match &self.result {
            Ok(Outcome::Passed) => Ok(()),
            Ok(Outcome::NotApplicable(lack)) => write!(f, ": {lack}"),
            Err(failure) => write!(f, ": {failure}"),
        }
    }
}

/// What came out.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Report {
    /// How each case has ended, in this order.
    pub ends: Vec<CaseEnd>,
}

impl Report {
    /// Panics with the list of cases if one has failed or is stuck.
    ///
    /// # Panics
    /// If a case has failed or is stuck.
    #[track_caller]
    pub fn assert_passed(&self) {
        let failed = self.ends.iter().filter(|end| end.result.is_err()).count();
        assert!(failed == 0, "{failed} failed:\n{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ends.iter().try_for_each(|end| writeln!(f, "{end}"))
    }
}

/// What a case and who waits for it know of each other.
#[derive(Debug)]
pub(super) struct Watch {
    waits_for: Mutex<String, LEAF>,
    given_up: AtomicBool,
}

impl Watch {
    fn new() -> Arc<Watch> {
        Arc::new(Watch {
            waits_for: Mutex::new("a call that waits has returned".to_owned()),
            given_up: AtomicBool::new(false),
        })
    }

    /// The case waits for this from now on; returns what it waited for before.
    pub(super) fn waits_for(&self, what: String) -> String {
        std::mem::replace(&mut *self.waits_for.lock(), what)
    }

    /// Whether nobody waits for the case any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    fn give_up(&self) -> String {
        self.given_up.store(true, Ordering::Relaxed);
        self.waits_for.lock().clone()
    }
}

/// Runs a case in a thread of its own, and waits for it as long as it may take.
pub(super) fn attempt(
    case: &Case,
    factory: &Arc<dyn Factory>,
    config: Config,
    flavor: Flavor,
) -> CaseEnd {
    let start = SystemClock.now();
    let (sender, ended) = mpsc::channel();
    let watch = Watch::new();
    let (case, factory, watched) = (*case, factory.clone(), watch.clone());
    let body = move || {
        let run = || (case.run)(&World::new(&*factory, config, flavor, &watched));
        let result = panic::catch_unwind(AssertUnwindSafe(run));
        // Nobody listens any more to one that was stuck.
        sender
            .send(result.map_err(|panic| Failure::Panicked(message(&*panic))))
            .ok();
    };
    let thread = thread::Builder::new().name(case.name.into()).spawn(body);
    let result = match thread {
        Err(error) => Err(Failure::NoThread(error.to_string())),
        Ok(_) => ended.recv_timeout(config.time_limit).unwrap_or_else(|_| {
            Err(Failure::Stuck {
                limit: config.time_limit,
                waits_for: watch.give_up(),
            })
        }),
    };
    CaseEnd {
        case,
        config,
        flavor,
        result,
        took: SystemClock.now() - start,
    }
}

/// What a panic says.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default()
}
