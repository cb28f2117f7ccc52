//! Running cases: each in a thread of its own, which is abandoned at its time limit.

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

/// Runs all cases for which `select` returns true, each in all its flavors and with each of these
/// configurations ([`Config::ALL`]: every dispatch). `report` is called in this thread with each case
/// as it ends.
///
/// A case that exceeds its time limit is stuck: it is reported with the condition that it waits for,
/// and the others follow. Its thread and its sockets are abandoned, and end if they can. So a factory's
/// sockets should not hold shared locks while they wait.
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

/// The result of a case, displayed as one line.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CaseEnd {
    /// The case.
    pub case: Case,
    /// Its configuration.
    pub config: Config,
    /// The flavor of its sockets.
    pub flavor: Flavor,
    /// The result.
    pub result: Result<Outcome, Failure>,
    /// How long it took, in real time.
    pub took: Duration,
}

/// Why a case has not passed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// It has panicked with this message: a socket does not behave as specified.
    #[error("{0}")]
    Panicked(String),
    /// It has exceeded its time limit.
    #[error("not after {limit:?}: {waits_for}")]
    Stuck {
        /// The time limit.
        limit: Duration,
        /// The condition that it waits for.
        waits_for: String,
    },
    /// Its thread could not be started.
    #[error("its thread could not be started: {0}")]
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

/// The results of a run.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Report {
    /// The result of each case, in order.
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

/// The state shared by a case and the thread that waits for it.
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

    /// Sets the condition that the case waits for; returns the former one.
    pub(super) fn waits_for(&self, what: String) -> String {
        std::mem::replace(&mut *self.waits_for.lock(), what)
    }

    /// Whether the case was abandoned.
    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    fn give_up(&self) -> String {
        self.given_up.store(true, Ordering::Relaxed);
        self.waits_for.lock().clone()
    }
}

/// Runs a case in a thread of its own, and waits for it up to its time limit.
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
        // The receiver is gone if the case was stuck.
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

/// The message of a panic.
fn message(panic: &(dyn Any + Send)) -> String {
    let message = panic.downcast_ref::<String>().cloned();
    message
        .or_else(|| {
            panic
                .downcast_ref::<&str>()
                .map(|message| (*message).to_owned())
        })
        .unwrap_or_default()
}
