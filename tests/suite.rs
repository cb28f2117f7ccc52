//! Running the conformance suite: reports, their order, and stuck cases.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use sosplice::clock::{Clock, SystemClock};
use sosplice::conformance::{
    self, BOTH, Case, CaseEnd, Config, Factory, Failure, Outcome, Setup, Time,
};
use sosplice::error::Flavor;
use sosplice::protocol::{Protocol, SocketEnd};
use sosplice::splice::Dispatch;
use sosplice::{Socket, local};
use std::panic;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Time limit of a case that is to be stuck.
const SHORT: Duration = Duration::from_millis(500);

/// Two that pass bytes, and between them one that needs no connection.
const NAMES: [&str; 3] = ["F01 splice_basic", "F07 splice_listen", "T01 args-default"];

fn some(case: &Case) -> bool {
    NAMES.contains(&case.name)
}

fn short() -> [Config; 1] {
    [Config::default().time_limit(SHORT)]
}

struct Memory;

impl Factory for Memory {
    fn connect(&self, setup: Setup) -> (Socket, Socket) {
        local::pair_with_hiwat(setup.rcv_hiwat, setup.snd_hiwat)
    }
}

/// Takes bytes and never delivers them.
#[derive(Debug)]
struct Hole(Arc<SocketEnd>);

impl Protocol for Hole {
    fn output(&self) {
        let queued = self.0.with_snd(|buf| buf.len());
        self.0.drop_snd(queued);
    }
    fn rcvd(&self, _idle: bool) {}
    fn abort(&self) {}
    fn detach(&self) {}
    fn name(&self) -> &'static str {
        "hole"
    }
}

fn hole(setup: Setup) -> Socket {
    let end = SocketEnd::new(setup.rcv_hiwat, setup.snd_hiwat);
    end.connected();
    Socket::new(end.clone(), Arc::new(Hole(end)))
}

struct Holes;

impl Factory for Holes {
    fn connect(&self, setup: Setup) -> (Socket, Socket) {
        (hole(setup), hole(setup))
    }
}

/// The same in virtual time, in which there is always something to do and nothing happens.
struct BusyHoles;

impl Factory for BusyHoles {
    fn connect(&self, setup: Setup) -> (Socket, Socket) {
        (hole(setup), hole(setup))
    }
    fn time(&self) -> Option<&dyn Time> {
        Some(self)
    }
}

impl Time for BusyHoles {
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SystemClock)
    }
    fn advance(&self, _by: Duration) {}
    fn run(&self) -> bool {
        true
    }
    fn poll_at(&self) -> Option<Duration> {
        None
    }
}

/// Never returns from a call, until it is dropped.
struct Waits(Mutex<Receiver<()>>);

impl Factory for Waits {
    fn connect(&self, _setup: Setup) -> (Socket, Socket) {
        self.0.lock().unwrap().recv().ok();
        panic!("the test is over");
    }
}

fn waits() -> (Sender<()>, Arc<dyn Factory>) {
    let (over, wait) = channel();
    (over, Arc::new(Waits(Mutex::new(wait))))
}

fn stuck(end: &CaseEnd) -> Option<&str> {
    match &end.result {
        Err(Failure::Stuck { waits_for, .. }) => Some(waits_for),
        _ => None,
    }
}

/// Name, dispatch and flavor of each case that is to run.
fn expected(configs: &[Config]) -> Vec<(&'static str, Dispatch, Flavor)> {
    let mut all = Vec::new();
    for config in configs {
        for case in conformance::cases().filter(|case| some(case)) {
            let flavors = case.flavors.iter();
            all.extend(flavors.map(|flavor| (case.name, config.dispatch, *flavor)));
        }
    }
    all
}

fn told(end: &CaseEnd) -> (&'static str, Dispatch, Flavor) {
    (end.case.name, end.config.dispatch, end.flavor)
}

#[test]
fn each_case_is_reported_as_it_ends_in_order_with_every_dispatch() {
    let reported = Mutex::new(Vec::new());
    let begun = Arc::new(Mutex::new(Vec::new()));
    /// Records when a case requests its first sockets.
    struct Notes(Arc<Mutex<Vec<usize>>>);
    impl Factory for Notes {
        fn connect(&self, setup: Setup) -> (Socket, Socket) {
            self.0.lock().unwrap().push(0);
            Memory.connect(setup)
        }
    }
    let report = conformance::run(Arc::new(Notes(begun.clone())), Config::ALL, some, |end| {
        // Those before it have connected; those behind it have not begun.
        reported
            .lock()
            .unwrap()
            .push((told(end), begun.lock().unwrap().len()));
    });
    report.assert_passed();
    let reported = reported.into_inner().unwrap();
    let (order, connected): (Vec<_>, Vec<_>) = reported.into_iter().unzip();
    assert_eq!(order, expected(&Config::ALL));
    assert_eq!(order, report.ends.iter().map(told).collect::<Vec<_>>());
    assert!(connected.is_sorted() && connected.first() < connected.last());
    for dispatch in [Dispatch::Adaptive, Dispatch::Worker, Dispatch::Direct] {
        assert!(order.iter().any(|(_, other, _)| *other == dispatch));
    }
    assert_eq!(Config::default(), Config::ALL[0]);
    assert_eq!(Config::default().dispatch, Dispatch::default());
    let lines = report.to_string();
    assert!(lines.contains("passed          F01 splice_basic (FreeBsd, Adaptive)\n"));
    assert!(lines.contains("not applicable  F07 splice_listen (OpenBsd, Direct): "));
}

#[test]
fn a_protocol_that_never_delivers_is_stuck_by_name_and_the_others_run() {
    let mut reported = Vec::new();
    let report = conformance::run(Arc::new(Holes), short(), some, |end| {
        reported.push(end.to_string());
    });
    assert_eq!(
        report.ends.iter().map(told).collect::<Vec<_>>(),
        expected(&short())
    );
    for end in &report.ends {
        if end.case.name == "F07 splice_listen" {
            assert!(matches!(end.result, Ok(Outcome::NotApplicable(_))), "{end}");
        } else {
            assert!(stuck(end).is_some() && end.took >= SHORT, "{end}");
        }
    }
    let line = "STUCK           F01 splice_basic (FreeBsd, Adaptive): not after 500ms: \
        the bytes have arrived";
    assert!(reported.iter().any(|other| other == line), "{reported:#?}");
    let panicked = panic::catch_unwind(|| report.assert_passed()).unwrap_err();
    let said = panicked.downcast_ref::<String>().unwrap();
    assert!(said.contains(line), "{said}");
}

#[test]
fn an_endless_loop_in_virtual_time_is_stuck() {
    let only = |case: &Case| case.name == "F01 splice_basic";
    let report = conformance::run(Arc::new(BusyHoles), short(), only, |_| {});
    assert_eq!(report.ends.len(), BOTH.len());
    for end in &report.ends {
        assert_eq!(stuck(end), Some("the bytes have arrived"), "{end}");
    }
}

#[test]
fn a_call_that_does_not_return_is_stuck() {
    let (over, factory) = waits();
    let only = |case: &Case| case.name == "F01 splice_basic";
    let report = conformance::run(factory, short(), only, |_| {});
    let ends = report.ends.iter().map(|end| stuck(end).is_some());
    assert_eq!(ends.collect::<Vec<_>>(), [true; 2]);
    drop(over);
}

#[test]
fn one_case_is_reported_as_stuck() {
    let (over, factory) = waits();
    let case = conformance::cases().find(|case| case.name == NAMES[0]);
    let run = move || case.unwrap().run(&factory, short()[0], Flavor::FreeBsd);
    let panicked = panic::catch_unwind(panic::AssertUnwindSafe(run)).unwrap_err();
    let said = panicked.downcast_ref::<String>().unwrap();
    let start = "STUCK           F01 splice_basic (FreeBsd, Adaptive): not after 500ms: ";
    assert!(said.starts_with(start), "{said}");
    drop(over);
}

#[test]
fn a_failed_case_reports_the_reason() {
    struct Fails;
    impl Factory for Fails {
        fn connect(&self, _setup: Setup) -> (Socket, Socket) {
            panic!("no network");
        }
    }
    let report = conformance::run(Arc::new(Fails), [Config::default()], some, |_| {});
    let failed = report.ends.iter().filter(|end| end.result.is_err());
    for end in failed {
        assert_eq!(
            end.result,
            Err(Failure::Panicked("no network".into())),
            "{end}"
        );
    }
    assert!(
        report
            .to_string()
            .contains("FAILED          F01 splice_basic (FreeBsd, Adaptive): no network\n")
    );
}
