//! The proxy between real networks, on TUN devices.

use crate::arguments::{Arguments, Mode, TunSpec, usage};
use crate::checks::Checker;
use crate::ending;
use crate::handover::{self, Candidate, Given, Origin, Post, Start, lane::Lane};
use crate::log::{self, PROXY};
use crate::managed::{Manager, Passed, Wanted};
use crate::metrics;
use crate::relay::{Event, Means, Relay, Shared};
use crate::report;
use crate::services::{Offer, Services};
use crate::settings::{Frame, Settings};
use crate::top;
use crate::totals::{Failure, Totals};
use crate::watch::Watch;
use anyhow::{Context, bail};
use crossbeam_channel::Sender;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use sosplice::clock::{Clock, SystemClock};
use sosplice::link::tun::{self, Tun};
use sosplice::splice::SplicePool;
use sosplice::stack::{Builder, Driver};
use sosplice::{Stack, TcpListener};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpListener as KernelListener};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tracing::{error, info};

/// Socket buffers, in bytes, by default. Smaller ones fill and empty in turns, and each turn wakes
/// threads.
const BUFFER: usize = 4 * 1024 * 1024;
/// Local ports of connections to the backend. One is used again a second after its connection has ended, so this is the
/// number of connections in a second; with fewer, all ports are looked at for each connection.
const PORTS: RangeInclusive<u16> = 1024..=65_535;
/// Connections that wait to be accepted.
const BACKLOG: usize = 1024;
/// Scrapes that wait to be answered.
const METRICS_BACKLOG: i32 = 16;
/// Number of probes to a silent peer.
const PROBES: u32 = 6;
/// Time for sending resets.
const LAST_RESETS: Duration = Duration::from_secs(1);
/// How often to check whether the last bytes were sent.
const LOOK: Duration = Duration::from_millis(5);

/// A stack and how to call it. With `--handover`, its device can change hands.
struct Side {
    name: String,
    stack: Stack,
    lanes: Vec<Arc<Lane>>,
}

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
    let own = (&sides[..], front, metrics.as_ref());
    take_over(arguments, (start, &stopping), own, events.clone())?;
    let devices = [&sides[front], &sides[back]];
    tell_start(arguments, at, devices, (&settings, &pool))?;
    let watch = show(arguments, (&sides, pool), relay.shared(), metrics)?;
    show_on(wishes, watch.clone())?;
    let checker = Checker::new(sides[back].stack.clone(), relay.shared());
    let mut renewing = Renewing {
        relay: relay.shared(),
        checker,
        path: arguments.config.clone(),
        frame,
    };
    renewing.checker.start(settings.checks)?;
    let manager = wanted.start(watch, relay.shared())?;
    renewing.on(renewals, manager.clone())?;
    let stop = Stop {
        wishes: (events, arguments.grace),
        manager: manager.clone(),
        count: AtomicUsize::new(0),
    };
    let stop = stop.on(ends)?;
    if arguments.top {
        top::start(relay.shared(), stop)?;
    }
    let start = SystemClock.now();
    let shared = relay.shared();
    let (totals, deadline) = relay.run();
    // Those that were reset a moment ago may still have resets to send.
    flush(&sides, deadline.max(SystemClock.now() + LAST_RESETS));
    top::close();
    tell_end(&totals, SystemClock.now() - start);
    print(
        &totals,
        &report::backends(&shared.backends()),
        &sides,
        start,
    )?;
    manager.end();
    match totals.failure {
        Some(Failure::Listening(error)) => Err(error).context(sides[front].name.clone()),
        Some(Failure::Dialling(error)) => Err(error).context(sides[back].name.clone()),
        None => Ok(ExitCode::SUCCESS),
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
) -> io::Result<()> {
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
    writeln!(
        io::stdout(),
        "{at} on {} to {} through {}; {:?} dispatch, {} worker(s)",
        front.name,
        addresses_of(&settings.offers),
        back.name,
        arguments.dispatch,
        pool.workers()
    )
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

/// The devices of both sides, and the settings at the start.
struct Plan {
    front: usize,
    back: usize,
    frame: Frame,
    settings: Settings,
}

impl Plan {
    fn new(arguments: &Arguments, listen: SocketAddr) -> anyhow::Result<Plan> {
        let front = front(&arguments.tun, listen.ip());
        let buffer = arguments.buffer.unwrap_or(BUFFER);
        // The device of the backends depends on them; that they fit to it is checked then.
        let own: Vec<IpAddr> = arguments.tun.iter().flat_map(addresses).collect();
        let any = Frame {
            addresses: own.clone(),
            own: own.clone(),
            listen,
            buffer,
        };
        let settings = match &arguments.config {
            Some(path) => Settings::read(path, &any)?,
            None => Settings::of(arguments),
        };
        let first = settings
            .offers
            .first()
            .context("no backend: give --backend")?;
        let back = back(&arguments.tun, front, first.spec.address.ip());
        let frame = Frame {
            addresses: addresses(&arguments.tun[back]).collect(),
            own,
            listen,
            buffer,
        };
        let settings = match &arguments.config {
            // Its mistakes have lines.
            Some(path) => Settings::read(path, &frame)?,
            None => settings
                .fit(&frame)
                .map_or_else(|why| usage(&why), |()| settings),
        };
        Ok(Plan {
            front,
            back,
            frame,
            settings,
        })
    }
}

/// Reads the file again.
struct Renewing {
    relay: Arc<Shared>,
    checker: Checker,
    path: Option<PathBuf>,
    frame: Frame,
}

impl Renewing {
    /// At each signal, until the process ends.
    fn on(mut self, mut signals: Signals, manager: Manager) -> io::Result<()> {
        let renew = move || {
            for _ in signals.forever() {
                manager.reloading();
                match self.renew() {
                    Ok(backends) => info!(
                        target: PROXY,
                        event = "configuration",
                        backends,
                        "renewed: {backends}"
                    ),
                    Err(error) => {
                        self.relay.reject();
                        error!(
                            target: PROXY,
                            event = "configuration_rejected",
                            cause = format!("{error:#}"),
                            "nothing is changed: {error:#}"
                        );
                    }
                }
                manager.ready();
            }
        };
        thread::Builder::new().name("renew".into()).spawn(renew)?;
        Ok(())
    }

    fn renew(&mut self) -> anyhow::Result<String> {
        let path = self.path.as_ref();
        let path = path.context("there is no file: give one by --config")?;
        let settings = Settings::read(path, &self.frame)?;
        let backends = addresses_of(&settings.offers);
        let relay = &self.relay;
        relay.renew(settings.terms, settings.offers, settings.balance);
        if let Err(error) = self.checker.start(settings.checks) {
            error!(
                target: PROXY,
                event = "checks_failed",
                cause = %error,
                "no checks: {error}: all backends count as up"
            );
        }
        Ok(backends)
    }
}

fn addresses_of(offers: &[Offer]) -> String {
    list(offers.iter().map(|offer| offer.spec.address))
}

fn list(all: impl Iterator<Item = impl ToString>) -> String {
    let all: Vec<_> = all.map(|one| one.to_string()).collect();
    all.join(", ")
}

fn addresses(spec: &TunSpec) -> impl Iterator<Item = IpAddr> {
    spec.addresses.iter().map(ipnet::IpNet::addr)
}

/// The device for listening.
fn front(specs: &[TunSpec], listen: IpAddr) -> usize {
    if specs.len() > 2 {
        usage("--tun can be given once or twice, not more often");
    }
    let has = |spec: &TunSpec| spec.addresses.iter().any(|net| net.addr() == listen);
    specs.iter().position(has).unwrap_or_else(|| {
        usage(&format!(
            "--listen {listen}: none of the --tun has this address, give one of theirs"
        ))
    })
}

/// The device for the backends.
fn back(specs: &[TunSpec], front: usize, backend: IpAddr) -> usize {
    let near = |spec: &TunSpec| spec.addresses.iter().any(|net| net.contains(&backend));
    let other = if specs.len() == 2 { 1 - front } else { front };
    specs.iter().position(near).unwrap_or(other)
}

/// If the receiving thread moves the bytes, one thread receives from all devices, so that forwarding
/// wakes no second thread. With several queues there is one for each.
fn open_all(
    arguments: &Arguments,
    passed: &mut Passed,
    mut start: Option<&mut Start>,
) -> anyhow::Result<Vec<Side>> {
    let mut sides = Vec::new();
    let queues = usize::from(arguments.queues.unwrap_or(1));
    let mut drivers: Vec<Vec<Driver>> = (0..queues).map(|_| Vec::new()).collect();
    for (index, spec) in arguments.tun.iter().enumerate() {
        let origin = start.as_mut().map(|start| start.origin(index));
        let Opened {
            name,
            builder,
            lanes,
        } = open(spec, arguments, passed, origin)?;
        let stack = if arguments.dispatch != Mode::Worker {
            let (stack, all) = builder.build_with_drivers().with_context(|| name.clone())?;
            for driver in all {
                drivers[driver.queue()].push(driver);
            }
            stack
        } else {
            builder.build().with_context(|| name.clone())?
        };
        sides.push(Side { name, stack, lanes });
    }
    for (queue, drivers) in drivers.into_iter().enumerate() {
        if drivers.is_empty() {
            continue;
        }
        let receive = || {
            if let Err(error) = Driver::run_all(drivers) {
                error!(target: PROXY, event = "receiving_failed", "receiving: {error}");
            }
        };
        let name = match queue {
            0 => "receive".into(),
            queue => format!("receive:{queue}"),
        };
        thread::Builder::new().name(name).spawn(receive)?;
    }
    Ok(sides)
}

struct Opened {
    name: String,
    builder: Builder,
    lanes: Vec<Arc<Lane>>,
}

fn open(
    spec: &TunSpec,
    arguments: &Arguments,
    passed: &mut Passed,
    origin: Option<Origin>,
) -> anyhow::Result<Opened> {
    let (ports, given) = match origin {
        Some(Origin { upper, given, .. }) => (handover::ports(upper), given),
        None => (PORTS, None),
    };
    let passage = given.as_ref().map(|given| given.passage.clone());
    let fds = passed.tun(&spec.name, arguments.queues.unwrap_or(1).into())?;
    let queues = match given {
        Some(Given {
            queues, settings, ..
        }) => builder(spec, arguments).build_queues_from(queues, settings)?,
        None if !fds.is_empty() => from_passed(spec, arguments, fds)?,
        None if arguments.handover.is_some() => handover::open_left(&builder(spec, arguments))?,
        None => builder(spec, arguments).build_queues()?,
    };
    let name = queues[0].place().to_string();
    let mut lanes = Vec::new();
    let mut builder = match arguments.handover {
        Some(_) => {
            for queue in queues {
                let lane = Lane::new(queue, passage.is_none(), passage.clone());
                lanes.push(Arc::new(lane.context("a socket for packets")?));
            }
            Stack::with_queues(lanes.clone())
        }
        None => Stack::with_queues(queues),
    };
    if let Some(passage) = passage {
        builder = builder
            .on_unhandled(move |frame| passage.pass(frame))
            .unhandled_tcp(true);
    }
    builder = builder
        .receive_buffer(arguments.buffer.unwrap_or(BUFFER))
        .send_buffer(arguments.buffer.unwrap_or(BUFFER))
        .ephemeral_ports(ports)
        .busy_poll(Duration::from_micros(arguments.busy_poll))
        .congestion(arguments.congestion)
        .connect_timeout(arguments.connect_timeout)
        .keep_alive(arguments.keep_alive, arguments.keep_alive / PROBES, PROBES);
    for address in &spec.addresses {
        builder = builder.address(*address);
    }
    Ok(Opened {
        name,
        builder,
        lanes,
    })
}

/// The settings of a device.
fn builder(spec: &TunSpec, arguments: &Arguments) -> tun::Builder {
    let mut builder = Tun::builder(&spec.name).offload(!arguments.no_offload);
    if let Some(bytes) = arguments.super_frame {
        builder = builder.super_frame(bytes);
    }
    if let Some(netns) = &spec.netns {
        builder = builder.netns(netns);
    }
    if let Some(queues) = arguments.queues {
        builder = builder.queues(queues.into());
    }
    builder
}

/// The queues of a device that another program has attached.
fn from_passed(
    spec: &TunSpec,
    arguments: &Arguments,
    fds: Vec<OwnedFd>,
) -> anyhow::Result<Vec<Tun>> {
    let name = &spec.name;
    if let Some(netns) = &spec.netns {
        bail!("{name}@{netns}: a descriptor with the name {name} was passed: leave out @{netns}");
    }
    let mut builder = Tun::fd_builder().offload(!arguments.no_offload);
    if let Some(bytes) = arguments.super_frame {
        builder = builder.super_frame(bytes);
    }
    let queues = builder.build_queues(fds);
    queues.with_context(|| format!("the passed descriptor with the name {name}"))
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
    fn on(self, mut signals: Signals) -> io::Result<Arc<Stop>> {
        let stop = Arc::new(self);
        let stops = Arc::clone(&stop);
        let watch = move || signals.forever().for_each(|signal| stops.now(128 + signal));
        thread::Builder::new().name("signals".into()).spawn(watch)?;
        Ok(stop)
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
    metrics: Option<KernelListener>,
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
        rustix::net::listen(&listener, METRICS_BACKLOG).context("metrics")?;
        let at = metrics::serve(listener, relay, watch.clone())?;
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
