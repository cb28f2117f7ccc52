//! The proxy between real networks, on TUN devices.

mod devices;
mod settings;

use crate::arguments::{Arguments, usage};
use crate::checks::Checker;
use crate::ending;
use crate::handover::{self, Candidate, Post, Start};
use crate::log::{self, PROXY};
use crate::managed::{Manager, Passed, Wanted};
use crate::metrics;
use crate::relay::{Event, Means, Relay, Shared};
use crate::report;
use crate::services::Services;
use crate::settings::Settings;
use crate::top;
use crate::totals::{Failure, Totals};
use crate::watch::Watch;
use anyhow::{Context, bail};
use crossbeam_channel::Sender;
use devices::{Side, open_all};
use settings::{Plan, Renewing, addresses_of};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use sosplice::TcpListener;
use sosplice::clock::{Clock, SystemClock};
use sosplice::splice::SplicePool;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener as KernelListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tracing::{error, info};

/// Connections that wait to be accepted.
const BACKLOG: usize = 1024;
/// Scrapes that wait to be answered.
const METRICS_BACKLOG: i32 = 16;
/// Time for sending resets.
const LAST_RESETS: Duration = Duration::from_secs(1);
/// How often to check whether the last bytes were sent.
const LOOK: Duration = Duration::from_millis(5);

/// Runs until a signal ends it.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let Some(listen) = arguments.listen else {
        usage("--tun needs --listen");
    };
    let (mut passed, wanted) = (Passed::take()?, Wanted::read()?);
    let Plan {
        front,
        back,
        frame,
        settings,
    } = Plan::new(arguments, listen)?;
    // All of them before anything else: by default they would end the process.
    // With a table the second one is handled as the first one is, to leave the terminal as it was.
    let stopping = ending::at_second_signal(!arguments.top).context("signals")?;
    let [ends, wishes, renewals] = signals().context("signals")?;
    let mut start = Candidate::begin(arguments, front)?;
    let sides = open_all(arguments, &mut passed, start.as_mut())?;
    let pool = arguments.pool();
    let listener = TcpListener::bind_with_backlog(&sides[front].stack, listen, BACKLOG)
        .with_context(|| format!("cannot listen on {listen}"))?;
    let at = listener.local_addr();
    let means = Means {
        dial: sides[back].stack.clone(),
        pool: pool.clone(),
    };
    let services = Services::new(settings.offers.iter().cloned(), settings.balance);
    let (relay, events) = Relay::new(listener, means, settings.terms.clone(), services);
    let metrics = metrics_socket(arguments, &mut passed)?;
    passed.finish();
    let watch = show(arguments, (&sides, pool.clone()), relay.shared(), &metrics)?;
    show_on(wishes, watch.clone())?;
    let own = (&sides[..], front, metrics.as_ref());
    take_over(arguments, (start, &stopping), own, events.clone())?;
    // From here on another process may have left: nothing but the relay ends this one.
    let devices = [&sides[front], &sides[back]];
    tell_start(arguments, at, devices, (&settings, &pool));
    let checker = Checker::new(sides[back].stack.clone(), relay.shared());
    let mut renewing = Renewing {
        relay: relay.shared(),
        checker,
        path: arguments.config.clone(),
        frame,
    };
    renewing.check(settings.checks);
    let manager = wanted.start(watch, relay.shared());
    tell(renewing.on(renewals, manager.clone()));
    let stop = Stop {
        wishes: (events, arguments.grace),
        manager: manager.clone(),
        count: AtomicUsize::new(0),
    };
    let stop = Arc::new(stop);
    tell(Stop::on(&stop, ends));
    if arguments.top {
        tell(top::start(relay.shared(), stop));
    }
    let start = SystemClock.now();
    let shared = relay.shared();
    let (totals, deadline) = relay.run();
    let deadline = deadline.max(SystemClock.now() + LAST_RESETS);
    ending::after_time(deadline.saturating_duration_since(SystemClock.now()));
    // Those that were reset a moment ago may still have resets to send.
    flush(&sides, deadline);
    top::close();
    tell_end(&totals, SystemClock.now() - start);
    let backends = report::backends(&shared.backends());
    // Without a reader, it has ended as well as with one.
    print(&totals, &backends, &sides, start).ok();
    manager.end();
    match totals.failure {
        Some(Failure::Listening(error)) => Err(error).context(sides[front].name.clone()),
        Some(Failure::Dialling(error)) => Err(error).context(sides[back].name.clone()),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// What the proxy can do without.
fn tell(result: io::Result<()>) {
    if let Err(error) = result {
        error!(target: PROXY, event = "failed", "{error}: the proxy goes on without");
    }
}

/// To end, to show, to read the settings again.
fn signals() -> io::Result<[Signals; 3]> {
    let ends = Signals::new([SIGINT, SIGTERM])?;
    Ok([ends, Signals::new([SIGUSR1])?, Signals::new([SIGHUP])?])
}

fn tell_start(
    arguments: &Arguments,
    at: SocketAddr,
    [front, back]: [&Side; 2],
    (settings, pool): (&Settings, &SplicePool),
) {
    let config = arguments.config.as_ref();
    info!(
        target: PROXY,
        event = "start",
        version = env!("CARGO_PKG_VERSION"),
        listen = %at,
        front = front.name,
        back = back.name,
        config = config.map(|path| tracing::field::display(path.display())),
        backends = addresses_of(&settings.offers),
        workers = pool.workers(),
        "listening on {at}"
    );
    let line = format!(
        "{at} on {} to {} through {}; {:?} dispatch, {} worker(s)\n",
        front.name,
        addresses_of(&settings.offers),
        back.name,
        arguments.dispatch,
        pool.workers()
    );
    let show = move || io::stdout().write_all(line.as_bytes()).ok();
    if arguments.top {
        // A terminal, which the table takes over next.
        show();
        return;
    }
    // Nothing waits for what reads it.
    thread::Builder::new()
        .name("headline".into())
        .spawn(show)
        .ok();
}

fn tell_end(totals: &Totals, time: Duration) {
    let reset = totals.cut_off;
    info!(
        target: PROXY,
        event = "drain_end",
        connections = totals.connections,
        reset,
        seconds = time.as_secs_f64(),
        "stopped, {reset} connections were reset"
    );
}

/// Ends the relay, or the process.
#[derive(Debug)]
pub(crate) struct Stop {
    /// How long open connections may take.
    wishes: (Sender<Event>, Duration),
    manager: Manager,
    count: AtomicUsize,
}

impl Stop {
    /// The first time stops the relay, the second time the process, with this status.
    pub(crate) fn now(&self, status: i32) {
        let (events, grace) = &self.wishes;
        let again = self.count.fetch_add(1, Ordering::Relaxed) > 0;
        if again || events.send(Event::Stop(*grace)).is_err() {
            top::close();
            std::process::exit(status);
        }
        ending::after_time(*grace + LAST_RESETS);
        self.manager.stopping();
        info!(
            target: PROXY,
            event = "drain_begin",
            grace_seconds = grace.as_secs_f64(),
            "stopping: open connections may take {grace:?}, a second signal ends at once"
        );
    }

    /// At each signal.
    fn on(stop: &Arc<Stop>, mut signals: Signals) -> io::Result<()> {
        let stop = Arc::clone(stop);
        let watch = move || signals.forever().for_each(|signal| stop.now(128 + signal));
        thread::Builder::new().name("signals".into()).spawn(watch)?;
        Ok(())
    }
}

/// Called when another process has taken over.
fn left(metrics: Option<KernelListener>, grace: Duration) -> Box<dyn Fn() + Send> {
    Box::new(move || {
        if let Some(metrics) = &metrics {
            // From now on the other one answers.
            rustix::net::shutdown(metrics, rustix::net::Shutdown::Both).ok();
        }
        ending::after_time(grace + LAST_RESETS);
    })
}

/// Takes over from another process, if there is one, and waits for one that takes over from this.
fn take_over(
    arguments: &Arguments,
    (start, stopping): (Option<Start>, &AtomicBool),
    (sides, front, metrics): (&[Side], usize, Option<&KernelListener>),
    events: Sender<Event>,
) -> anyhow::Result<()> {
    let (Some(path), Some(start)) = (&arguments.handover, start) else {
        return Ok(());
    };
    let metrics = metrics.map(KernelListener::try_clone).transpose()?;
    let terms = handover::Terms {
        lanes: sides.iter().map(|side| side.lanes.clone()).collect(),
        front: sides[front].stack.clone(),
        upper: start.upper(),
        events,
        grace: arguments.grace,
        left: left(metrics, arguments.grace),
    };
    if stopping.load(Ordering::Relaxed) {
        bail!("ended by a signal at the start");
    }
    let former = match start {
        Start::Second(candidate) => Some(candidate.take()?),
        Start::Alone => None,
    };
    Post::start((path, arguments), former, terms)
}

fn metrics_socket(
    arguments: &Arguments,
    passed: &mut Passed,
) -> anyhow::Result<Option<KernelListener>> {
    let at = match (passed.metrics()?, arguments.metrics) {
        (Some(_), Some(at)) => bail!("--metrics {at}, and a passed socket for them: give one"),
        (socket, None) => return Ok(socket),
        (None, Some(at)) => at,
    };
    let bound = match arguments.handover {
        Some(_) => handover::metrics_socket(at).map(KernelListener::from),
        None => KernelListener::bind(at),
    };
    let bound = bound.with_context(|| format!("metrics: cannot listen on {at}"))?;
    Ok(Some(bound))
}

/// Statistics for the operator, in all forms that are wanted.
fn show(
    arguments: &Arguments,
    (sides, pool): (&[Side], SplicePool),
    relay: Arc<Shared>,
    metrics: &Option<KernelListener>,
) -> anyhow::Result<Watch> {
    let watch = Watch {
        stacks: sides
            .iter()
            .map(|side| (side.name.clone(), side.stack.clone()))
            .collect(),
        pool,
    };
    watch.every(arguments.stats)?;
    if let Some(listener) = metrics {
        // Once more for one that listens already.
        rustix::net::listen(listener, METRICS_BACKLOG).context("metrics")?;
        let at = metrics::serve(listener.try_clone()?, relay, watch.clone())?;
        info!(
            target: PROXY,
            event = "metrics",
            address = %at,
            "metrics on http://{at}/metrics"
        );
    }
    Ok(watch)
}

/// Shows the state at each signal.
fn show_on(mut wishes: Signals, watch: Watch) -> io::Result<()> {
    let show = move || wishes.forever().for_each(|_| watch.show());
    thread::Builder::new().name("wishes".into()).spawn(show)?;
    Ok(())
}

/// Gives the last bytes of closed connections time to reach their peers.
#[expect(
    clippy::disallowed_methods,
    reason = "stacks do not say when they are done"
)]
fn flush(sides: &[Side], deadline: Instant) {
    let busy = |side: &Side| side.stack.stats().connections > 0;
    while sides.iter().any(busy) && SystemClock.now() < deadline {
        thread::sleep(LOOK);
    }
}

fn print(totals: &Totals, backends: &str, sides: &[Side], start: Instant) -> io::Result<()> {
    log::finish();
    let mut out = io::stdout().lock();
    let time = SystemClock.now() - start;
    writeln!(
        out,
        "{} connections in {time:.1?}, {} reset at the end",
        totals.connections, totals.cut_off
    )?;
    write!(
        out,
        "{}{}{backends}",
        report::refused(totals),
        report::table(totals, None)
    )?;
    for side in sides {
        writeln!(out, "{}", report::counters(&side.name, &side.stack))?;
    }
    Ok(())
}
