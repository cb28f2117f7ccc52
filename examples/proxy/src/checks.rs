//! Active checks of backends: a connection every so often.
//!
//! [`Checks`] is pure; [`run`] makes the connections, in the thread of a [`Checker`].

use crate::backends::MOST;
use crate::log::PROXY;
use crate::relay::Shared;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use sosplice::clock::{Clock, SystemClock};
use sosplice::socket::poller::{Events, Interest, Mode, Poller, Token};
use sosplice::{Stack, TcpSocket, TcpStream};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// When a backend is checked, and how many results in a row change its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// Also how long a backend may take to answer.
    pub(crate) interval: Duration,
    pub(crate) rise: u32,
    pub(crate) fall: u32,
}

#[derive(Debug)]
struct Check {
    up: bool,
    /// Results in a row that contradict the state.
    contrary: u32,
    due: Instant,
}

/// The state of the checks of several backends.
#[derive(Debug)]
pub(crate) struct Checks {
    schedule: Schedule,
    all: Vec<Check>,
}

impl Checks {
    /// With the state that each one has. The first checks are spread over an interval.
    pub(crate) fn new(states: &[bool], schedule: Schedule, now: Instant) -> Checks {
        let parts = u32::try_from(states.len().clamp(1, MOST)).unwrap_or(1);
        let check = |(part, up): (u32, &bool)| Check {
            up: *up,
            contrary: 0,
            due: now + schedule.interval / parts * part,
        };
        Checks {
            schedule,
            all: (0..parts).zip(states).map(check).collect(),
        }
    }

    /// Those that are to be checked now; the next time of each is an interval later.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<usize> {
        let mut due = Vec::new();
        for (index, check) in self.all.iter_mut().enumerate() {
            if check.due <= now {
                check.due = now + self.schedule.interval;
                due.push(index);
            }
        }
        due
    }

    /// When the next check is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.all.iter().map(|check| check.due).min()
    }

    /// The result of a check; returns the new state if that has changed.
    pub(crate) fn result(&mut self, index: usize, answered: bool) -> Option<bool> {
        let Schedule { rise, fall, .. } = self.schedule;
        let check = &mut self.all[index];
        if answered == check.up {
            check.contrary = 0;
            return None;
        }
        check.contrary += 1;
        if check.contrary < if answered { rise } else { fall } {
            return None;
        }
        check.up = answered;
        check.contrary = 0;
        Some(answered)
    }
}

/// Checks until the other end of `stop` is dropped, or `goes_on` says no, and reports changes. Of each backend its address, and whether it
/// is up.
fn run(
    dial: &Stack,
    backends: &[(SocketAddr, bool)],
    schedule: Schedule,
    (stop, goes_on): (&Receiver<()>, impl Fn() -> bool),
    mut wait: impl FnMut(&Poller, &mut Events, Duration) -> io::Result<usize>,
    mut report: impl FnMut(usize, bool),
) -> io::Result<()> {
    let states: Vec<_> = backends.iter().map(|(_, up)| *up).collect();
    let mut checks = Checks::new(&states, schedule, SystemClock.now());
    let mut settle = |checks: &mut Checks, index, answered| {
        if let Some(up) = checks.result(index, answered) {
            report(index, up);
        }
    };
    let poller = Poller::new();
    // A check that ends without traffic: a reset, as after it nothing remains.
    let socket = TcpSocket::new(dial).linger(Some(Duration::ZERO));
    let mut pending: HashMap<usize, TcpStream> = HashMap::new();
    let mut events = Events::with_capacity(MOST);
    while stop.try_recv() != Err(TryRecvError::Disconnected) && goes_on() {
        let now = SystemClock.now();
        for index in checks.due(now) {
            // The former one has had a whole interval.
            let silent = pending.remove(&index).is_some();
            let started = socket.start(backends[index].0);
            let watched = started.and_then(|stream| {
                poller.add(&stream, Token(index), Interest::WRITABLE, Mode::Edge)?;
                Ok(stream)
            });
            let failed = watched.map(|stream| pending.insert(index, stream)).is_err();
            if silent || failed {
                settle(&mut checks, index, false);
            }
        }
        let rest = checks
            .next()
            .map(|next| next.saturating_duration_since(now));
        let rest = rest.unwrap_or(schedule.interval).min(LOOK);
        wait(&poller, &mut events, rest)?;
        for event in events.iter() {
            let Token(index) = event.token();
            if let Some(stream) = pending.remove(&index) {
                let answered = stream.wait_connected(Some(now)).is_ok();
                settle(&mut checks, index, answered);
            }
        }
    }
    Ok(())
}

fn tell(backend: SocketAddr, up: bool) {
    let backend = tracing::field::display(backend);
    match up {
        true => {
            info!(target: PROXY, event = "backend_up", backend, "backend {backend}: up, by its checks")
        }
        false => {
            warn!(target: PROXY, event = "backend_down", backend, "backend {backend}: down, by its checks")
        }
    }
}

/// Checks of the backends of a relay, in a thread of their own.
#[derive(Debug)]
pub(crate) struct Checker {
    dial: Stack,
    relay: Arc<Shared>,
    /// The thread, which ends when the sender is dropped.
    running: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Checker {
    pub(crate) fn new(dial: Stack, relay: Arc<Shared>) -> Checker {
        Checker {
            dial,
            relay,
            running: None,
        }
    }

    /// Ends the former checks, and begins those of the present backends. What the former ones have found holds until
    /// others find something else; without checks all backends are up.
    /// If they cannot begin, or do not go on, all backends are up too: their last results must not hold for ever. In the
    /// latter case they begin again after an interval.
    pub(crate) fn start(&mut self, schedule: Option<Schedule>) -> io::Result<()> {
        self.start_with(schedule, |poller, events, rest| {
            poller.wait(events, Some(rest))
        })
    }

    pub(crate) fn start_with(
        &mut self,
        schedule: Option<Schedule>,
        mut wait: impl FnMut(&Poller, &mut Events, Duration) -> io::Result<usize> + Send + 'static,
    ) -> io::Result<()> {
        self.stop();
        let (dial, relay) = (self.dial.clone(), Arc::clone(&self.relay));
        let list = relay.list();
        let Some(schedule) = schedule else {
            list.into_iter().for_each(|one| relay.set_up(one.id, true));
            return Ok(());
        };
        let (until, stop) = bounded(0);
        let check = move || {
            loop {
                let list = relay.list();
                let states: Vec<_> = list.iter().map(|one| (one.address, one.up)).collect();
                let report = |index: usize, up| {
                    tell(list[index].address, up);
                    relay.set_up(list[index].id, up);
                };
                // None is begun, or left open, while the proxy drains: its end waits for its connections.
                let until = (&stop, || !relay.is_stopped());
                let result = run(&dial, &states, schedule, until, &mut wait, report);
                let Err(error) = result else { return };
                let again = schedule.interval;
                error!(
                    target: PROXY,
                    event = "checks_failed",
                    cause = %error,
                    "checks: {error}: all backends count as up, until checks begin again in {again:?}"
                );
                relay.checks_failed(&list);
                if stop.recv_timeout(again) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        };
        let started = thread::Builder::new().name("checks".into()).spawn(check);
        let thread = started.inspect_err(|_| self.relay.checks_failed(&list))?;
        self.running = Some((until, thread));
        Ok(())
    }

    /// Once it returns, no more results come.
    fn stop(&mut self) {
        if let Some((until, thread)) = self.running.take() {
            drop(until);
            // One that has panicked is over too.
            thread.join().ok();
        }
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.stop();
    }
}

/// How often to look for the end.
const LOOK: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: Schedule = Schedule {
        interval: Duration::from_secs(2),
        rise: 2,
        fall: 3,
    };

    #[test]
    fn several_results_in_a_row_change_the_state() {
        let mut checks = Checks::new(&[true], SCHEDULE, SystemClock.now());
        let mut results = |answers: &[bool]| -> Vec<_> {
            let changes = answers.iter().map(|answered| checks.result(0, *answered));
            changes.collect()
        };
        assert_eq!(results(&[false, false, true, false, false]), [None; 5]);
        assert_eq!(results(&[false]), [Some(false)]);
        assert_eq!(results(&[false, true, false, true]), [None; 4]);
        assert_eq!(results(&[true, true]), [Some(true), None]);
    }

    #[test]
    fn one_that_is_down_comes_up() {
        let mut checks = Checks::new(&[false], SCHEDULE, SystemClock.now());
        let changes = [true; 3].map(|answered| checks.result(0, answered));
        assert_eq!(changes, [None, Some(true), None]);
    }

    #[test]
    fn checks_are_spread_and_come_at_intervals() {
        let start = SystemClock.now();
        let mut checks = Checks::new(&[true; 4], SCHEDULE, start);
        let mut times = vec![Vec::new(); 4];
        let mut now = start;
        while now < start + 3 * SCHEDULE.interval {
            for index in checks.due(now) {
                times[index].push((now - start).as_millis());
            }
            now = checks.next().unwrap();
        }
        assert_eq!(times[0], [0, 2000, 4000]);
        assert_eq!(times[3], [1500, 3500, 5500]);
    }

    #[test]
    fn without_backends_there_is_nothing_to_check() {
        let mut checks = Checks::new(&[], SCHEDULE, SystemClock.now());
        assert!(checks.due(SystemClock.now()).is_empty() && checks.next().is_none());
    }
}
