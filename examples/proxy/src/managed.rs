//! The proxy under a service manager such as systemd: descriptors that it passes (`sd_listen_fds(3)`), notifications for
//! it (`sd_notify(3)`), and its watchdog.
//!
//! One thread sends all notifications. It alone waits for a manager that does not read.

use crate::log::PROXY;
use crate::relay::Shared;
use crate::watch::Watch;
use anyhow::{Context, bail, ensure};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use rustix::net::sockopt::socket_acceptconn;
use sd_notify::NotifyState;
use sosplice::clock::{Clock, SystemClock};
use sosplice::probe::Probe;
use std::env;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tracing::{error, warn};

/// The name of a socket for metrics.
const METRICS: &str = "metrics";
/// Between two notifications of how the proxy is doing, at most.
const TICK: Duration = Duration::from_secs(5);
/// Ticks in the watchdog's interval. A ping is for the progress between two ticks.
const TICKS: u32 = 4;
/// While connections end, each tick extends the time for that by so much.
const EXTENSION: Duration = Duration::from_secs(20);
/// How long the end of the process waits for the manager to take the last notification.
const FLUSH: Duration = Duration::from_secs(1);

/// The descriptors that the manager has passed, by name.
#[derive(Debug)]
pub(crate) struct Passed(Vec<(String, OwnedFd)>);

impl Passed {
    /// Takes them. Call it before descriptors are opened: they have numbers from 3 on.
    pub(crate) fn take() -> anyhow::Result<Passed> {
        let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
        if !set("LISTEN_PID") || !set("LISTEN_FDS") {
            return Ok(Passed(Vec::new()));
        }
        let why = "LISTEN_PID and LISTEN_FDS: give the process, and the number of its descriptors from 3 on, \
                   which are to be open";
        // The first call checks numbers and descriptors, the second one makes them this process's.
        if sd_notify::listen_fds().context(why)?.len() == 0 {
            return Ok(Passed(Vec::new()));
        }
        let all = sd_listen_fds::get().context(why)?.into_iter();
        let named = all.map(|(name, fd)| (name.unwrap_or_default(), fd.into_std()));
        Ok(Passed(named.collect()))
    }

    /// Those of a TUN device: one for each queue, or none if it was not passed.
    pub(crate) fn tun(&mut self, device: &str, queues: usize) -> anyhow::Result<Vec<OwnedFd>> {
        let fds = self.named(device);
        let count = fds.len();
        ensure!(
            count == 0 || count == queues,
            "{count} descriptors with the name {device} were passed: give one for each of the {queues} queue(s)"
        );
        Ok(fds)
    }

    /// The listening socket for metrics.
    pub(crate) fn metrics(&mut self) -> anyhow::Result<Option<TcpListener>> {
        let mut fds = self.named(METRICS);
        let Some(fd) = fds.pop() else { return Ok(None) };
        let number = fd.as_raw_fd();
        let why = || {
            format!(
                "descriptor {number} ({METRICS}) is no listening TCP socket: use ListenStream=ADDRESS:PORT, Accept=no"
            )
        };
        if !fds.is_empty() {
            bail!("several descriptors have the name {METRICS}: give one");
        }
        ensure!(socket_acceptconn(&fd).with_context(why)?, why());
        let listener = TcpListener::from(fd);
        listener.local_addr().with_context(why)?;
        listener.set_nonblocking(false)?;
        Ok(Some(listener))
    }

    /// Complains about those that are left.
    pub(crate) fn finish(self) {
        for (name, fd) in self.0 {
            let number = fd.as_raw_fd();
            warn!(
                target: PROXY,
                event = "descriptor_not_used",
                "warning: descriptor {number} ({name}) is not used: its name is neither that of a --tun nor {METRICS}"
            );
        }
    }

    fn named(&mut self, name: &str) -> Vec<OwnedFd> {
        let found = self.0.extract_if(.., |(one, _)| one == name);
        found.map(|(_, fd)| fd).collect()
    }
}

/// How the manager wants to be notified.
#[derive(Debug)]
pub(crate) struct Wanted {
    notify: bool,
    watchdog: Option<Duration>,
}

impl Wanted {
    /// As the environment says.
    pub(crate) fn read() -> anyhow::Result<Wanted> {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let watchdog = match set("WATCHDOG_USEC") {
            None => None,
            Some(text) => {
                let number = text.to_str().and_then(|text| text.parse::<u64>().ok());
                let number = number.filter(|number| *number > 0);
                number.with_context(|| {
                    format!("WATCHDOG_USEC={text:?}: give microseconds, at least 1, or unset it")
                })?;
                // `None` if it is for another process.
                sd_notify::watchdog_enabled()
            }
        };
        Ok(Wanted {
            notify: set("NOTIFY_SOCKET").is_some(),
            watchdog,
        })
    }

    /// Begins to notify, at first that the proxy is ready.
    pub(crate) fn start(self, watch: Watch, relay: Arc<Shared>) -> Manager {
        if !self.notify {
            return Manager(None);
        }
        let (words, inbox) = unbounded();
        let manager = Manager(Some(words));
        manager.ready();
        let period = self.watchdog.map(|interval| interval / TICKS);
        let notifier = Notifier {
            roll: Roll::call(&watch),
            watch,
            relay,
            watchdog: period.is_some(),
            stopping: false,
            told: String::new(),
            failed: false,
        };
        let period = period.map_or(TICK, |period| period.clamp(Duration::from_millis(1), TICK));
        let run = move || notifier.run(&inbox, period);
        if let Err(error) = thread::Builder::new().name("manager".into()).spawn(run) {
            error!(target: PROXY, event = "not_notified", "the service manager is not notified: {error}");
            return Manager(None);
        }
        manager
    }
}

/// What the manager is to be told.
#[derive(Debug)]
enum Word {
    Ready,
    Reloading,
    Stopping,
    /// Nothing more; answered by dropping the sender.
    End(Sender<()>),
}

/// The service manager, if there is one. No call waits for it, but for the last one.
#[derive(Debug, Clone)]
pub(crate) struct Manager(Option<Sender<Word>>);

impl Manager {
    /// The proxy serves, or has read its file again.
    pub(crate) fn ready(&self) {
        self.tell(Word::Ready);
    }

    /// The file is being read again.
    pub(crate) fn reloading(&self) {
        self.tell(Word::Reloading);
    }

    /// Connections get time to end.
    pub(crate) fn stopping(&self) {
        self.tell(Word::Stopping);
    }

    /// Waits until the manager has all notifications, for a second at most.
    pub(crate) fn end(&self) {
        let (answer, done) = bounded(0);
        self.tell(Word::End(answer));
        done.recv_timeout(FLUSH).ok();
    }

    fn tell(&self, word: Word) {
        if let Some(words) = &self.0 {
            // Fails only after the end.
            words.send(word).ok();
        }
    }
}

/// The threads that move bytes, asked for a sign of life.
#[derive(Debug)]
struct Roll(Vec<(String, Probe)>);

impl Roll {
    fn call(watch: &Watch) -> Roll {
        let stacks = watch.stacks.iter();
        let receiving = stacks.map(|(name, stack)| (format!("{name}: queue"), stack.probe()));
        let workers = ("worker".to_owned(), watch.pool.probe());
        Roll(receiving.chain([workers]).collect())
    }

    /// Those that have made no progress since they were asked.
    fn silent(&self) -> Vec<String> {
        let mut silent = Vec::new();
        for (name, probe) in &self.0 {
            silent.extend(
                probe
                    .silent()
                    .iter()
                    .map(|number| format!("{name} {number}")),
            );
        }
        silent
    }
}

/// The thread that notifies.
#[derive(Debug)]
struct Notifier {
    watch: Watch,
    relay: Arc<Shared>,
    roll: Roll,
    /// Whether pings are wanted.
    watchdog: bool,
    stopping: bool,
    /// The latest status.
    told: String,
    /// Whether the latest notification could not be sent.
    failed: bool,
}

impl Notifier {
    fn run(mut self, inbox: &Receiver<Word>, period: Duration) {
        let mut next = SystemClock.now() + period;
        loop {
            match inbox.recv_deadline(next) {
                Ok(Word::Ready) => self.notify(&[NotifyState::Ready]),
                Ok(Word::Reloading) => {
                    let now = NotifyState::monotonic_usec_now().into_iter();
                    let all: Vec<_> = [NotifyState::Reloading].into_iter().chain(now).collect();
                    self.notify(&all);
                }
                Ok(Word::Stopping) => {
                    self.stopping = true;
                    self.notify(&[NotifyState::Stopping, extension()]);
                }
                Ok(Word::End(answer)) => return drop(answer),
                Err(RecvTimeoutError::Timeout) => {
                    self.tick();
                    next = SystemClock.now() + period;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// A ping, and more time to stop, if all threads have made progress since the last ones.
    fn tick(&mut self) {
        let silent = self.roll.silent();
        let mut all = Vec::new();
        if silent.is_empty() {
            self.roll = Roll::call(&self.watch);
            all.extend(self.watchdog.then_some(NotifyState::Watchdog));
            all.extend(self.stopping.then(extension));
        }
        let status = self.status(&silent);
        if status != self.told {
            if !silent.is_empty() {
                error!(target: PROXY, event = "no_progress", "{status}");
            }
            self.told.clone_from(&status);
            all.push(NotifyState::Status(&status));
        }
        if !all.is_empty() {
            self.notify(&all);
        }
    }

    fn status(&self, silent: &[String]) -> String {
        if !silent.is_empty() {
            return format!("no progress: {}", silent.join(", "));
        }
        let (counts, backends) = (self.relay.counts(), self.relay.backends());
        let up = backends.iter().filter(|backend| backend.up).count();
        let doing = if self.stopping { "stopping" } else { "serving" };
        format!(
            "{doing}: {} connections, {} waiting; {up} of {} backends up",
            counts.present,
            counts.waiting,
            backends.len()
        )
    }

    fn notify(&mut self, all: &[NotifyState<'_>]) {
        let result = sd_notify::notify(all);
        if let Err(error) = &result
            && !self.failed
        {
            let at = env::var_os("NOTIFY_SOCKET").unwrap_or_default();
            error!(
                target: PROXY,
                event = "not_notified",
                "NOTIFY_SOCKET={at:?}: cannot notify the service manager: {error}"
            );
        }
        self.failed = result.is_err();
    }
}

fn extension() -> NotifyState<'static> {
    let micros = u32::try_from(EXTENSION.as_micros());
    NotifyState::ExtendTimeoutUsec(micros.unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sosplice::Stack;
    use sosplice::link::memory;
    use sosplice::local;
    use sosplice::splice::{Dispatch, Options, SplicePool};

    /// Two queues and two workers, none of which has a thread: they make progress when the test calls them.
    #[test]
    fn each_thread_that_makes_no_progress_is_found() {
        let (links, _others) = memory::queues(2, memory::Config::default());
        let builder = Stack::with_queues(links).address("10.0.0.1/24".parse().unwrap());
        let (stack, mut drivers) = builder.build_with_drivers().unwrap();
        let pool = SplicePool::builder().workers(2).manual();
        let pool = pool.dispatch(Dispatch::Worker).build();
        let watch = Watch {
            stacks: vec![("tun0".to_owned(), stack)],
            pool: pool.clone(),
        };
        let roll = Roll::call(&watch);
        let all = ["tun0: queue 0", "tun0: queue 1", "worker 0", "worker 1"];
        assert_eq!(roll.silent(), all);
        drivers[1].poll().unwrap();
        assert_eq!(roll.silent(), [all[0], all[2], all[3]]);
        drivers[0].poll().unwrap();
        while !roll.silent().is_empty() {
            pool.run_one();
        }
        // Progress before the question does not count.
        let roll = Roll::call(&watch);
        assert_eq!(roll.silent(), all);
        drivers.iter_mut().for_each(|driver| drop(driver.poll()));
        assert_eq!(roll.silent(), all[2..]);
        // A driver that has ended makes no more.
        drop(drivers.pop());
        while pool.run_one() {}
        assert_eq!(Roll::call(&watch).silent()[..2], all[..2]);
    }

    #[test]
    fn workers_that_were_not_started_are_not_waited_for() {
        let pool = SplicePool::builder().workers(2).build();
        let watch = Watch {
            stacks: Vec::new(),
            pool: pool.clone(),
        };
        assert!(Roll::call(&watch).silent().is_empty());
        let ((_a, b), (c, _d)) = (local::pair(), local::pair());
        let splice = b.splice_to(&c, Options::default().pool(pool)).unwrap();
        let roll = Roll::call(&watch);
        while !roll.silent().is_empty() {
            thread::yield_now();
        }
        drop(splice);
    }
}
